gcloud compute tpus queued-resources describe mine '--format=yaml(name,state,tpu)' --zone=us-west4-a
