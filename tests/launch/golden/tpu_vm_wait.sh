until [ "$(gcloud compute tpus queued-resources describe mine '--format=value(state.state)' --zone=us-west4-a)" = ACTIVE ]; do sleep 30; done
