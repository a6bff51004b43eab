#!/usr/bin/env bash
# Train on Slurm, one process a node; the arguments are those of launch/train.py:
#
#   sbatch --nodes=4 launch/slurm.sh --config configs/cifar10_pgd.py --workdir runs/cifar10_pgd
#
# Submit it from the root of the repository, with an environment that has spa_jax; --workdir must be on a file system that
# all nodes share. Two minutes before the time limit, and when Slurm preempts the job, every process saves its state
# after the same step and exits with 143; the job is then put back into the queue and goes on from there.
#SBATCH --job-name=spa_jax
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -euo pipefail

status=0
srun --kill-on-bad-exit=1 python launch/train.py --distributed --join_timeout=600 "$@" || status=$?
if [ "$status" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
