mkdir -p tasks
cat > tasks/one.yaml <<'END'
# Written by launch.skypilot.
name: digits
workdir: .
num_nodes: 1
resources:
  infra: aws/us-east-1
  accelerators: L4
  use_spot: false
file_mounts:
  /runs:
    source: s3://my-runs/lsm
    mode: MOUNT_CACHED
setup: |
  pip install '.[wandb]'
run: |
  export PYTHONUNBUFFERED=1
  status=0; python -m experiments.digits --config=experiments/configs/digits/cnn.py '--workdir=/runs/a b' '--config.data.test=it'"'"'s "$(HOME) 50 %"' || status=$?
  # Interrupted and saved is not finished: SkyPilot starts it again at this status.
  if [ "$status" -eq 0 ] && [ ! -e '/runs/a b/result.json' ]; then exit 75; fi
  exit "$status"
END
sky launch --cluster digits --yes tasks/one.yaml
