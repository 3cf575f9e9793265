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
secrets:
  LSM_SECRET: 0123456789abcdef0123456789abcdef
setup: |
  set -e
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --allow-existing --python=3.12 .venv
  python3 -m uv pip install --quiet --python=.venv '.[cuda]'
run: |
  export PYTHONUNBUFFERED=1
  export PATH="$PWD/.venv/bin:$PATH"
  export LSM_COORDINATOR="$(echo "$SKYPILOT_NODE_IPS" | head -n 1):8476"
  export LSM_PROCESSES="$SKYPILOT_NUM_NODES" LSM_PROCESS="$SKYPILOT_NODE_RANK"
  status=0; python -m experiments.digits --config=experiments/configs/digits/cnn.py '--workdir=/runs/a b' '--config.data.test=it'"'"'s "$(HOME) 50 %"' || status=$?
  # Interrupted and saved is not finished: SkyPilot starts it again at this status.
  if [ "$status" -eq 0 ] && [ ! -e '/runs/a b/result.json' ]; then exit 75; fi
  exit "$status"
END
sky jobs launch --name digits --yes digits.sky.yaml
