gcloud compute tpus queued-resources create mine --accelerator-type=v5p-128 --runtime-version=v2-alpha-tpuv5 --node-count=2 --node-prefix=mine --reserved --zone=us-west4-a --project=p
