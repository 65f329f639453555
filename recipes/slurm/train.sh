#!/bin/bash
# Trains on several nodes. Submit it in the repository's root, with the script's name, its YAML and further arguments:
#
#   sbatch [--nodes=4] recipes/slurm/train.sh train_erprm recipes/mistral-7b-metamath/train_erprm.yaml [--eta inf ...]
#
# ACCELERATE_CONFIG names the configuration, accelerate_configs/multi_node_zero3.yaml by default. A job that is preempted
# or runs out of time is requeued and resumes from its last complete checkpoint.
#SBATCH --job-name=train
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail

stage=$1 config=$2
shift 2
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${hosts%%$'\n'*} MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export ACCELERATE_CONFIG=${ACCELERATE_CONFIG:-accelerate_configs/multi_node_zero3.yaml}

output_dir=$(sed -n 's/^output_dir: *//p' "$config")
arguments=("$@")
for ((i = 0; i < $#; i++)); do
    if [[ ${arguments[i]} == --output_dir ]]; then output_dir=${arguments[i + 1]}; fi
done

# train_raft resumes by itself and has no --resume. The others need a complete checkpoint: its trainer_state.json is
# written last.
resume=()
if [[ $stage != train_raft ]]; then
    for checkpoint in "$output_dir"/checkpoint-*; do
        [[ -d $checkpoint ]] || continue # without a match, the loop gets the pattern itself
        if [[ -f $checkpoint/trainer_state.json ]]; then
            resume=(--resume true)
        else
            echo "$checkpoint is incomplete: moved to $output_dir/unfinished-${checkpoint##*/}"
            rm -rf "$output_dir/unfinished-${checkpoint##*/}"
            mv "$checkpoint" "$output_dir/unfinished-${checkpoint##*/}"
        fi
    done
fi

# shellcheck disable=SC2016  # expanded on each node
srun --kill-on-bad-exit=1 bash -c '
    exec accelerate launch --config_file "$ACCELERATE_CONFIG" \
        --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * SLURM_GPUS_ON_NODE))" \
        --machine_rank "$SLURM_NODEID" --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT" "$@"' \
    bash "recipes/$stage.py" --config "$config" "${resume[@]}" "$@" &
wait "$!" # bash handles a signal only while it waits, not while a command runs
