gcloud compute tpus queued-resources create mine --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --node-id=mine --spot --valid-until-duration=6h --zone=us-west4-a
