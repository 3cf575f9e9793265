gcloud compute tpus queued-resources ssh mine --worker=all --node=all '--command=kill -TERM "$(cat lsm/run.pid)"' --zone=us-west4-a
