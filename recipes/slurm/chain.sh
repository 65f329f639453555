#!/bin/bash
# Submits the stages of a model. Each starts after the one before it has succeeded. Run it in the repository's root:
#
#   bash recipes/slurm/chain.sh recipes/mistral-7b-metamath [collect train_erprm ...]
#
# Without names, it submits all stages that have a YAML file. It skips finished stages, so the same command continues a
# broken chain once the queue is empty. SBATCH_... variables (account, partition) apply to all stages.
set -euo pipefail

folder=${1%/}
shift
stages=("$@")
if ((${#stages[@]} == 0)); then
    stages=(collect train_erprm collect_test best_of_n train_raft train_step_grpo train_step_ppo)
    named=false
fi

finished() { # looks for what each stage writes last
    local output_dir=$2
    case $1 in
        collect*) grep -qs '"summary"' "$output_dir/manifest.json" ;;
        best_of_n) [[ -f $output_dir/best_of_n.png ]] ;;
        *) [[ -f $output_dir/training_args.bin ]] ;;
    esac
}

previous=""
for stage in "${stages[@]}"; do
    config=$folder/$stage.yaml
    if [[ ! -f $config ]]; then
        [[ ${named:-true} == false ]] && continue
        echo "chain.sh: $config: no such file, expected the YAML of stage $stage." >&2
        exit 1
    fi
    output_dir=$(sed -n 's/^output_dir: *//p' "$config")
    if [[ -f $output_dir/guard.json ]]; then
        echo "chain.sh: the guard stopped $stage: read $output_dir/guard.json, then choose another output_dir." >&2
        exit 1
    fi
    if finished "$stage" "$output_dir"; then
        echo "$stage: finished ($output_dir)"
        continue
    fi
    case $stage in
        collect*) job=(recipes/slurm/collect.sh "$config") ;;
        best_of_n) job=(--gpus=1 --wrap "python recipes/best_of_n.py --config $config") ;;
        *) job=(recipes/slurm/train.sh "$stage" "$config") ;;
    esac
    after=()
    if [[ -n $previous ]]; then after=("--dependency=afterok:$previous" --kill-on-invalid-dep=yes); fi
    previous=$(sbatch --parsable --job-name="${folder##*/}-$stage" "${after[@]}" "${job[@]}")
    previous=${previous%%;*} # a federation of clusters appends the cluster's name
    echo "$stage: job $previous"
done
