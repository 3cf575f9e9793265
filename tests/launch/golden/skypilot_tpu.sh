cat > digits.sky.yaml <<'END'
# Written by launch.skypilot.
name: digits
workdir: .
num_nodes: 1
resources:
  accelerators: tpu-v5litepod-16
  use_spot: false
  job_recovery:
    max_restarts_on_errors: 0
    recover_on_exit_codes:
    - 75
file_mounts:
  /runs:
    source: gs://my-runs
    mode: MOUNT
setup: |
  set -e
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --allow-existing --python=3.12 .venv
  python3 -m uv pip install --quiet --python=.venv '.[tpu]'
run: |
  export PYTHONUNBUFFERED=1
  export PATH="$PWD/.venv/bin:$PATH"
  # The hosts of a TPU slice find each other.
  if [ "$SKYPILOT_NUM_NODES" -gt 1 ]; then export LSM_COORDINATOR=auto; fi
  status=0; python -m experiments.digits --config=experiments/configs/digits/cnn.py '--workdir=/runs/a b' '--config.data.test=it'"'"'s "$(HOME) 50 %"' || status=$?
  # Interrupted and saved is not finished: SkyPilot starts it again at this status.
  if [ "$status" -eq 0 ] && [ ! -e '/runs/a b/result.json' ]; then exit 75; fi
  exit "$status"
END
sky jobs launch --name digits --yes digits.sky.yaml
