#!/bin/bash
# Collects rollouts on any number of nodes, with one process and one sampling engine per GPU. Submit it in the
# repository's root:
#
#   sbatch [--nodes=4] recipes/slurm/collect.sh recipes/mistral-7b-metamath/collect.yaml [--seed 1 ...]
#
# Each process takes its share of the chunks. A job that is preempted or runs out of time is requeued and continues.
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

# Each task sees only its own GPU, as number 0. So LOCAL_RANK is 0 in all tasks.
# shellcheck disable=SC2016  # expanded by the tasks
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=0
    exec python recipes/collect_rollouts.py "$@"' bash --config "$config" "$@" &
wait "$!" # bash handles a signal only while it waits, not while a command runs
