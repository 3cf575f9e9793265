mkdir -p 'runs/a b'
cat > 'runs/a b/slurm.sh' <<'END'
#!/bin/bash
# Written by launch.slurm.
#SBATCH --job-name=digits
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --gpus-per-node=8
#SBATCH --partition=gpu
#SBATCH --account=lab
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --output="runs/a b/slurm-%j.log"
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --mem=64G

workdir='runs/a b'

# The tasks get SIGTERM from Slurm; they save and stop. This script gets it only where
# Slurm ends the job itself (scancel, a preemption that requeues), and waits for them.
trap 'ending=1' TERM
export PYTHONUNBUFFERED=1
export LSM_SECRET="$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')"
srun --cpus-per-task=12 --kill-on-bad-exit=1 --label \
  python -m experiments.digits --config=experiments/configs/digits/cnn.py '--config.data.test=it'"'"'s "50 %"' --workdir="$workdir"
status=$?

# Interrupted and saved (0), or told to stop before it could catch the signal (143):
# without a result.json it is not finished, and goes on in the same workdir.
if [ -z "${ending:-}" ] && [ ! -e "$workdir/result.json" ] &&
   { [ "$status" -eq 0 ] || [ "$status" -eq 143 ]; }; then
  echo "launch.slurm: not finished; requeued"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
END
sbatch 'runs/a b/slurm.sh'
