#!/bin/bash
# Collects rollouts, one process and one sampling engine a GPU, on any number of nodes. Run from the repository's root:
#
#   sbatch [--nodes=4] recipes/slurm/collect.sh recipes/mistral-7b-metamath/collect.yaml [--seed 1 ...]
#
# Each process takes its share of the chunks. Preempted, or out of time, the job goes back into the queue and continues.
#SBATCH --job-name=collect
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail

config=$1
shift
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${hosts%%$'\n'*} MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))

# Slurm shows each task its own GPU alone, which is number 0 there: LOCAL_RANK is 0 for all of them.
# shellcheck disable=SC2016  # expanded by the tasks
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=0
    exec python recipes/collect_rollouts.py "$@"' bash --config "$config" "$@" &
wait "$!" # in the background, so that the signal is heard at once
