mkdir -p 'runs/a b'
cat > 'runs/a b/slurm.sh' <<'END'
#!/bin/bash
# Written by launch.slurm.
#SBATCH --job-name=digits
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@60
#SBATCH --output="runs/a b/slurm-%j.log"
#SBATCH --open-mode=append
#SBATCH --no-requeue

workdir='runs/a b'

# The tasks get SIGTERM from Slurm; they save and stop. This script gets it only where
# Slurm ends the job itself (scancel, a preemption that requeues), and waits for them.
trap 'ending=1' TERM
export PYTHONUNBUFFERED=1
srun --kill-on-bad-exit=1 --label \
  python -m experiments.digits --config=experiments/configs/digits/cnn.py '--config.data.test=it'"'"'s "50 %"' --workdir="$workdir"
status=$?
exit "$status"
END
sbatch 'runs/a b/slurm.sh'
