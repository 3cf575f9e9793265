cat > digits.sky.yaml <<'END'
# Written by launch.skypilot.
name: digits
workdir: .
num_nodes: 2
resources:
  accelerators: H100:8
  use_spot: true
  job_recovery:
    max_restarts_on_errors: 3
    recover_on_exit_codes:
    - 75
file_mounts:
  /runs:
    source: gs://my-runs
    mode: MOUNT
setup: |
  pip install .
run: |
  export PYTHONUNBUFFERED=1
  export LSM_COORDINATOR="$(echo "$SKYPILOT_NODE_IPS" | head -n 1):8476"
  export LSM_PROCESSES="$SKYPILOT_NUM_NODES" LSM_PROCESS="$SKYPILOT_NODE_RANK"
  status=0; python -m experiments.digits --config=experiments/configs/digits/cnn.py '--workdir=/runs/a b' '--config.data.test=it'"'"'s "$(HOME) 50 %"' || status=$?
  # Interrupted and saved is not finished: SkyPilot starts it again at this status.
  if [ "$status" -eq 0 ] && [ ! -e '/runs/a b/result.json' ]; then exit 75; fi
  exit "$status"
END
sky jobs launch --name digits --yes digits.sky.yaml
