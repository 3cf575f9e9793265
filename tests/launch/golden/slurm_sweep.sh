mkdir -p 'runs/a b'
cat > 'runs/a b/slurm.sh' <<'END'
#!/bin/bash
# Written by launch.slurm.
#SBATCH --job-name=rates
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --array=0-3%2
#SBATCH --signal=TERM@60
#SBATCH --output="runs/a b/slurm-%A_%a.log"
#SBATCH --open-mode=append
#SBATCH --requeue

workdir='runs/a b'
point=()
case "$SLURM_ARRAY_TASK_ID" in
  0) workdir='runs/a b/learning_rate=1e-3,seed=0' point=(--config.optimizer.learning_rate=1e-3 --config.train.seed=0) ;;
  1) workdir='runs/a b/learning_rate=1e-3,seed=1' point=(--config.optimizer.learning_rate=1e-3 --config.train.seed=1) ;;
  2) workdir='runs/a b/learning_rate=3e-3,seed=0' point=(--config.optimizer.learning_rate=3e-3 --config.train.seed=0) ;;
  3) workdir='runs/a b/learning_rate=3e-3,seed=1' point=(--config.optimizer.learning_rate=3e-3 --config.train.seed=1) ;;
esac

# The tasks get SIGTERM from Slurm; they save and stop. This script gets it only where
# Slurm ends the job itself (scancel, a preemption that requeues), and waits for them.
trap 'ending=1' TERM
export PYTHONUNBUFFERED=1
srun --kill-on-bad-exit=1 --label \
  python -m experiments.digits --config=experiments/configs/digits/cnn.py '--config.data.test=it'"'"'s "50 %"' "${point[@]}" --workdir="$workdir"
status=$?

# Interrupted and saved (0), or told to stop before it could catch the signal (143):
# without a result.json it is not finished, and goes on in the same workdir.
if [ -z "${ending:-}" ] && [ ! -e "$workdir/result.json" ] &&
   { [ "$status" -eq 0 ] || [ "$status" -eq 143 ]; }; then
  echo "launch.slurm: not finished; requeued"
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$status"
END
sbatch 'runs/a b/slurm.sh'
