gcloud compute tpus queued-resources delete mine --force --quiet --zone=us-west4-a
