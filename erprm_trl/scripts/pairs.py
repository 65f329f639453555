"""Makes preference pairs from the solutions of a collection, for DPO.

erprm pairs --recipe dial
erprm pairs --rollouts outputs/rollouts --level step --pairs_per_question 4 --output_dir outputs/step_pairs

`output_dir` gets `pairs.jsonl` or `pairs.parquet`, which `datasets.load_dataset` and `erprm dpo` read. The settings
and counts are in `pairs.json`.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import erprm_trl

from .. import selection
from ..io import load_tokenizer
from ..io.atomic_files import make_folder, replace_file
from ..io.counts import counted
from .outcome import print_outcome
from .scoring import load_scorer


CARD = """---
configs:
- config_name: default
  data_files: {file}
tags:
- erprm-trl
- preference
---

# Preference pairs

{counts}. The settings are in `pairs.json`.
"""


@dataclass
class PairsArguments:
    """The solutions, and how they are paired."""

    rollouts: str = field(metadata={"help": "Rollout folder with several solutions per question."})
    output_dir: str = field(metadata={"help": "Folder for the pairs."})
    level: str = field(
        default="solution",
        metadata={
            "help": "Whether pairs are whole solutions, or steps after a prefix that solutions share.",
            "choices": ["solution", "step"],
        },
    )
    reward_model: str | None = field(
        default=None,
        metadata={"help": "Folder, Hub id or scoring server of a reward model that compares solutions or steps."},
    )
    aggregation: str | None = field(
        default=None,
        metadata={
            "help": "How step scores become one score per solution. Defaults to the reward model's aggregation.",
            "choices": ["min", "last", "product", "mean"],
        },
    )
    rank_by: str | None = field(
        default=None,
        metadata={
            "help": "Whether solutions are compared by their reward or their score. Defaults to score if there is a "
            "reward model.",
            "choices": ["reward", "score"],
        },
    )
    eta: float = field(default=0.0, metadata={"help": "Eta of the values of steps. 0 compares success rates."})
    min_margin: float = field(default=0.0, metadata={"help": "Smallest difference of rewards, scores or values."})
    num_std: float = field(
        default=1.0,
        metadata={"help": "Smallest difference of the values of two steps, in standard deviations of its noise."},
    )
    pairs_per_question: int = field(
        default=1, metadata={"help": "Maximum number of pairs per question. 0 for no limit."}
    )
    completion: str = field(
        default="rest",
        metadata={
            "help": "Text of a pair of steps: the rest of the solution, or the step alone.",
            "choices": ["rest", "step"],
        },
    )
    conversational: bool | None = field(
        default=None,
        metadata={
            "help": "Whether to write messages. Defaults to true for whole solutions that were sampled with a chat "
            "template."
        },
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "Tokenizer of the policy, to write a chat template as text. Defaults to the sampler's."},
    )
    file_format: str = field(
        default="jsonl", metadata={"help": "Format of the pairs.", "choices": ["jsonl", "parquet"]}
    )
    batch_size: int = field(default=32, metadata={"help": "Maximum number of solutions per scoring batch."})


def main(arguments: PairsArguments) -> "selection.PairCounts":
    """Makes the pairs, writes them, and prints their counts."""
    folder = make_folder(arguments.output_dir)
    collection = erprm_trl.RolloutDataset(arguments.rollouts)
    scorer = None
    if arguments.reward_model is not None:
        scorer = load_scorer(arguments.reward_model, arguments.batch_size)
    tokenizer = None if arguments.tokenizer is None else load_tokenizer(arguments.tokenizer)
    pairs, counts = selection.find_pairs(
        collection,
        arguments.level,
        score=scorer,
        aggregation=arguments.aggregation,
        rank_by=arguments.rank_by,
        eta=arguments.eta,
        min_margin=arguments.min_margin,
        num_std=arguments.num_std,
        pairs_per_question=arguments.pairs_per_question or None,
        completion=arguments.completion,
        conversational=arguments.conversational,
        tokenizer=tokenizer,
    )
    path = folder / f"pairs.{arguments.file_format}"
    _write(pairs, path)
    settings = {**asdict(arguments), "reward_model": None if scorer is None else scorer.model_name}
    replace_file(folder / "pairs.json", json.dumps({"settings": settings, "counts": vars(counts)}, indent=2))
    replace_file(folder / "README.md", CARD.format(file=path.name, counts=counts))
    policy = collection.settings.sampler or collection.settings.completer or {}
    print_outcome(
        *describe(counts),
        f"Pairs: {path}.",
        next_command=f"erprm dpo --dataset_name {arguments.output_dir} --model_name_or_path "
        f"{policy.get('model', 'MODEL')} --output_dir POLICY",
    )
    return counts


def describe(counts: "selection.PairCounts") -> list[str]:
    """
    The counts in sentences.

    Args:
        counts ([`~erprm_trl.selection.PairCounts`]):
            Counts of questions, pairs and solutions.
    """
    questions = f"{counts.questions_with_pairs:,} of {counted(counts.questions, 'question has', 'questions have')}"
    lines = [f"{questions} {counted(counts.pairs, 'pair')}."]
    for reason, count in sorted(counts.without_pair.items()):
        lines.append(f"{counted(count, 'question has', 'questions have')} no pair: {reason.replace('_', ' ')}.")
    left_out = "solution is left out", "solutions are left out"
    if counts.branching_prefixes:
        left_out = "prefix is left out", "prefixes are left out"
        differ = f"After {counted(counts.branching_prefixes, 'prefix', 'prefixes')} the solutions differ"
        lines.append(f"{differ}, {counts.branching_after_a_step} of which have at least one step.")
    for reason, count in sorted(counts.left_out.items()):
        lines.append(f"{counted(count, *left_out)}: {reason.replace('_', ' ')}.")
    return lines


def _write(pairs, path: Path) -> None:
    if path.suffix == ".jsonl":
        replace_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in pairs))
        return
    temporary = path.with_name(f".{path.name}.tmp")
    pairs.to_parquet(str(temporary))
    os.replace(temporary, path)
