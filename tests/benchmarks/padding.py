"""Share of padding in the batches of a reward model's training: `python tests/benchmarks/padding.py`.

Forms the batches of an epoch in each way that `ERPRMTrainer` offers. It trains nothing. The lengths are those of
`training_speed.py`, or of the solutions in rollout folders (`--rollouts`, with the tokenizer of `--model`).
"""

import argparse
from pathlib import Path

import torch
from training_speed import solutions
from transformers.trainer_pt_utils import LengthGroupedSampler

from erprm_trl import PRMFormat, RolloutDataset
from erprm_trl.io.tokenizers import load_tokenizer
from erprm_trl.reward_model.collator import best_fit_decreasing, pack_rows
from erprm_trl.reward_model.encoding import encode_solutions


def lengths_of(folders, model):
    """Number of tokens of each solution with its question, as `ERPRMTrainer` encodes them."""
    tokenizer, lengths = load_tokenizer(model), []
    for folder in folders:
        rows = list(RolloutDataset(folder).rows)
        encoded = encode_solutions(tokenizer, PRMFormat(), [row.question for row in rows], [row.steps for row in rows])
        lengths += [len(solution.input_ids) for solution in encoded]
    return lengths


def in_batches(order, size):
    """The batches of an order."""
    return [order[start : start + size] for start in range(0, len(order), size)]


def token_counts(lengths, size, max_length, seed):
    """Numbers of tokens in the batches of an epoch, with padding, by the name of the option."""
    torch.manual_seed(seed)
    shuffled = torch.randperm(len(lengths)).tolist()
    grouped = list(LengthGroupedSampler(size, lengths=lengths))
    bfd = best_fit_decreasing([lengths[index] for index in shuffled], max_length)
    rows = [sum(lengths[shuffled[index]] for index in row) for row in bfd]

    def padded(order):
        return sum(len(batch) * max(lengths[index] for index in batch) for batch in in_batches(order, size))

    def packed(order):
        batches = [[lengths[index] for index in batch] for batch in in_batches(order, size)]
        return sum((1 + max(pack_rows(batch)[0])) * max(batch) for batch in batches)

    return {
        "random order": padded(shuffled),
        "grouped by length (default)": padded(grouped),
        "packing_strategy='batch', random order": packed(shuffled),
        "packing_strategy='batch', grouped": packed(grouped),
        "packing_strategy='bfd'": sum(len(batch) * max(batch) for batch in in_batches(rows, size)),
        "packing with FlashAttention": sum(lengths),
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rollouts", type=Path, nargs="+")
    parser.add_argument("--model", help="Model whose tokenizer encodes the rollouts.")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--seeds", type=int, default=20, help="Number of shuffles, whose counts are summed.")
    options = parser.parse_args()
    if options.rollouts:
        lengths = lengths_of(options.rollouts, options.model)
    else:
        lengths = [len(row["input_ids"]) for row in solutions(2000, torch.Generator().manual_seed(1))]
    real = options.seeds * sum(lengths)
    print(f"{len(lengths)} solutions, {min(lengths)} to {max(lengths)} tokens, mean {sum(lengths) / len(lengths):.0f}")
    print(f"{'share of padding':<42}" + "".join(f"{f'batch {size}':>12}" for size in options.batch_sizes))
    by_size = [
        [token_counts(lengths, size, options.max_length, seed) for seed in range(options.seeds)]
        for size in options.batch_sizes
    ]
    for name in by_size[0][0]:
        shares = [1 - real / sum(counts[name] for counts in per_seed) for per_seed in by_size]
        print(f"{name:<42}" + "".join(f"{share:>12.1%}" for share in shares))


if __name__ == "__main__":
    main()
