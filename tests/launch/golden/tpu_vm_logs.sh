gcloud compute tpus queued-resources ssh mine --worker=3 --node=0 '--command=tail -n 100 -F lsm/run.log' --zone=us-west4-a
