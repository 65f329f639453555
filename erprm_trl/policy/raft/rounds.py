"""The parts of a RAFT round that need no model: its questions, which solutions are kept and why others are not, its
metrics, and its folder on disk."""

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from ...io.atomic_files import replace_file
from ...io.on_disk_sequence import OnDiskSequence
from ...reward_model.prm_format import PRMFormat
from ...rollouts.questions import Question, load_questions
from ...rollouts.records import RolloutRow
from ...rollouts.sampling.base import derived_seed
from ...rollouts.shards import read_manifest, write_manifest
from ..completions import question_text


class PromptedQuestions(OnDiskSequence):
    """
    Questions with the prompts of a dataset.

    Args:
        questions (`Sequence[Question]`):
            The questions and answers.
        prompts (`Sequence[str | list[dict]]`):
            The prompt of each: a text, or a conversation.
    """

    def __init__(self, questions: Sequence[Question], prompts: Sequence[Any]):
        self._questions, self._prompts = questions, prompts

    def __len__(self) -> int:
        return len(self._questions)

    def _read(self, index: int) -> Question:
        return self._questions[index]._replace(prompt=self._prompts[index])


def load_policy_questions(
    dataset,
    *,
    question_column: str | None = None,
    answer_column: str | None = None,
    require_answers: bool = True,
) -> Sequence[Question]:
    """
    Reads questions as TRL's online trainers read a dataset: where there is a column `prompt`, the policy reads it as
    it stands, and the reward model reads the column `question`, or else the prompt's last user message.

    Args:
        dataset ([`~datasets.Dataset`], [`~datasets.IterableDataset`] or iterable of mappings):
            The rows. Rows of a streaming dataset are read into memory.
        question_column, answer_column (`str`, *optional*):
            Columns to read; see [`~erprm_trl.rollouts.load_questions`].
        require_answers (`bool`, *optional*, defaults to `True`):
            Whether rows without answers are an error.
    """
    from datasets import Dataset

    is_table = isinstance(dataset, Dataset)  # its rows stay on disk
    rows = dataset.with_format(None) if is_table else list(dataset)
    columns = {"question_column": question_column, "answer_column": answer_column}
    if not len(rows) or not isinstance(rows[0], Mapping) or "prompt" not in rows[0]:
        return load_questions(rows, require_answers=require_answers, **columns)
    prompts = rows["prompt"] if is_table else [row["prompt"] for row in rows]
    if question_column is None:
        columns["question_column"] = "question"
        if "question" not in rows[0]:
            rows = rows.map(_with_question) if is_table else [{**row, **_with_question(row)} for row in rows]
    return PromptedQuestions(load_questions(rows, require_answers=require_answers, **columns), prompts)


def _with_question(row: Mapping[str, Any]) -> dict[str, str]:
    return {"question": question_text(row["prompt"])}


def questions_of_round(questions: Sequence[Question], index: int, size: int | None, seed: int) -> list[Question]:
    """
    The questions of round `index`, counted from 0: all of them, or the next `size` of a seeded shuffle, which begins
    anew at its end.

    Raises:
        `ValueError`: if there are fewer than `size`.
    """
    if size is None:
        return list(questions)
    if size > len(questions):
        raise ValueError(
            f"questions_per_round: got {size}, expected at most the {len(questions)} questions there are."
        )
    order = random.Random(f"raft-questions-{seed}").sample(range(len(questions)), len(questions))
    return [questions[order[(index * size + offset) % len(order)]] for offset in range(size)]


def round_seed(seed: int, index: int, what: str) -> int:
    """A seed for one purpose in one round, far from those of other rounds and other runs."""
    return derived_seed("raft", seed, index, what)


def pick_solutions(
    rows: Sequence[RolloutRow],
    scores: Sequence[float | None],
    unusable: Sequence[str | None],
    *,
    top_k: int = 1,
    score_threshold: float | None = None,
    drop_uniform: bool = False,
    deduplicate: bool = True,
) -> tuple[list[int], dict[str, int]]:
    """
    Which solutions are trained on.

    Args:
        rows (`Sequence[RolloutRow]`):
            Solutions, ordered by question.
        scores (`Sequence[float | None]`):
            Score of each, `None` where it is unusable.
        unusable (`Sequence[str | None]`):
            Why a solution can never be kept, or `None`.
        top_k, score_threshold, drop_uniform, deduplicate (*optional*):
            See [`RAFTConfig`]. Of equal scores the one sampled first is kept.

    Returns:
        `tuple[list[int], dict[str, int]]`: indices of the rows that are kept, the best of a question first, and the
        number of the others by reason: each row is kept or counted once.
    """
    reasons: list[str | None] = list(unusable)
    kept = []
    for _, group in groupby(range(len(rows)), key=lambda index: rows[index].question_index):
        indices = list(group)
        rewards = {rows[index].outcome_reward for index in indices}
        if drop_uniform and len(rewards) == 1:
            for index in indices:
                reasons[index] = "all_right" if rewards == {1.0} else "all_wrong"
            continue
        seen: set[str] = set()
        candidates = []
        for index in indices:
            if reasons[index] is not None:
                continue
            text = rows[index].text
            if deduplicate and text in seen:
                reasons[index] = "duplicate"
            elif score_threshold is not None and scores[index] < score_threshold:
                reasons[index] = "below_threshold"
            else:
                candidates.append(index)
            seen.add(text)
        candidates.sort(key=lambda index: -scores[index])
        kept += candidates[:top_k]
        for index in candidates[top_k:]:
            reasons[index] = "not_best"
    return kept, dict(sorted(Counter(reason for reason in reasons if reason is not None).items()))


def pick_row(row: RolloutRow, prompt_ids: list[int], completion_ids: list[int], score: float) -> dict[str, Any]:
    """A pick as `picks.jsonl` keeps it: texts for people to read, and the tokens that are trained on."""
    return {
        "question_index": row.question_index,
        "solution_index": row.solution_index,
        "prompt": row.question,
        "completion": row.text,
        "score": score,
        "reward": row.outcome_reward,
        "prompt_ids": prompt_ids,
        "completion_ids": completion_ids,
    }


def training_row(pick: dict[str, Any]) -> dict[str, list[int]]:
    """What is trained on: the tokens that were sampled, and nothing of the prompt."""
    return {
        "input_ids": pick["prompt_ids"] + pick["completion_ids"],
        "labels": [-100] * len(pick["prompt_ids"]) + pick["completion_ids"],
    }


def round_metrics(
    rows: Sequence[RolloutRow], scores: Sequence[float | None], kept: Sequence[int], dropped: dict[str, int]
) -> dict[str, float]:
    """The numbers of a round's solutions and picks; accuracies only where solutions were graded."""
    scored = [score for score in scores if score is not None]
    num_steps = sum(len(row.steps) for row in rows)
    metrics = {
        "num_picked": len(kept),
        "mean_score": _mean(scored),
        "picked_score": _mean([scores[index] for index in kept]),
        "unfinished_share": _mean([not row.finished for row in rows]),
        "steps_per_answer": num_steps / len(rows),
        "tokens_per_step": sum(row.num_tokens for row in rows if row.steps) / max(1, num_steps),
        **{f"dropped_{reason}": count for reason, count in dropped.items()},
    }
    if rows[0].is_graded:
        metrics["accuracy"] = _mean([row.outcome_reward for row in rows])
        metrics["picked_accuracy"] = _mean([rows[index].outcome_reward for index in kept])
    return {name: value for name, value in metrics.items() if value is not None}


def accuracy_metrics(rows: Sequence[RolloutRow], prefix: str) -> dict[str, float]:
    """The numbers of an evaluation's solutions, all of them graded."""
    return {
        f"{prefix}_accuracy": _mean([row.outcome_reward for row in rows]),
        f"{prefix}_unfinished_share": _mean([not row.finished for row in rows]),
        f"{prefix}_mean_tokens": _mean([row.num_tokens for row in rows]),
    }


class RoundFolder:
    """
    The folder of a round, `round-0`, ...: `samples/`, `scores.jsonl`, `picks.jsonl`, `checkpoint-*`, `policy/`,
    `evaluation/` and `manifest.json`. Whatever the manifest speaks of is complete; the rest is what a run was at when
    it ended, and is continued or written again.

    Args:
        output_dir (`str` or `Path`):
            Folder of the run.
        index (`int`):
            Number of the round, from 0.
    """

    def __init__(self, output_dir: str | Path, index: int):
        self.index = index
        self.path = Path(output_dir, f"round-{index}")
        self.samples, self.policy = self.path / "samples", self.path / "policy"
        self.scores, self.picks = self.path / "scores.jsonl", self.path / "picks.jsonl"

    @property
    def manifest(self) -> dict[str, Any]:
        return read_manifest(self.path, run_again(self.path)) or {}

    def add(self, **entries: Any) -> None:
        """Adds entries to the manifest."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_manifest(self.path, {**self.manifest, **entries})

    def check_config(self, config: dict[str, Any]) -> None:
        """Raises a `ValueError` that names the differences if the folder holds another configuration's round."""
        old = _as_compared(self.manifest.get("config", config))
        new = _as_compared(json.loads(json.dumps(config)))
        changed = [
            f"{key} was {old.get(key)!r} and is now {new.get(key)!r}"
            for key in sorted(old | new)
            if old.get(key) != new.get(key)
        ]
        if changed:
            raise ValueError(
                f"{self.path} holds a round of another configuration: {'; '.join(changed)}. Choose another "
                "output_dir, or use the old settings to continue."
            )

    @property
    def has_checkpoints(self) -> bool:
        """Whether the round's training has begun to save any, whole or not."""
        return any(self.path.glob("checkpoint-*"))


def _as_compared(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration whose reward model's format has all fields, also where an older release wrote it, but those that
    change no score."""
    if "reward_model_format" not in config:
        return config
    prm_format = asdict(PRMFormat(**config["reward_model_format"]))
    del prm_format["expected_ids"]
    return {**config, "reward_model_format": prm_format}


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes JSON lines in one move: the file is there whole or not at all."""
    replace_file(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads what [`write_rows`] wrote."""
    try:
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error}). {run_again(path.parent)}") from error


def run_again(folder: Path) -> str:
    """The remedy for damage in the folder of a round, or in the folder of the run."""
    if not folder.name.startswith("round-"):
        return f"Move {folder} away, or choose another output_dir: the next run begins again."
    return f"Move {folder} and the rounds after it away: the next run makes them again."


def nothing_kept(folder: RoundFolder, context_length: int | None) -> str:
    """The message of the error for a round without picks: why its solutions were dropped, and what to do about it."""
    dropped = folder.manifest["dropped"]
    context = "" if context_length is None else f" (the policy's context has {context_length} tokens)"
    remedies = {
        "unfinished": f"raise max_completion_length{context}, or name strings that end a solution with `stop`",
        "no_steps": f"read {folder.samples}, their texts are empty",
        "longer_than_max_length": "raise max_length",
        "too_long_for_reward_model": "take a reward model with a longer context, or other questions",
        "below_threshold": "lower score_threshold",
        "all_right": "set drop_uniform=False, or take harder questions",
        "all_wrong": "set drop_uniform=False, or take easier questions",
    }
    reasons = [f"{reason}: {count}, {remedies[reason]}" for reason, count in dropped.items() if reason in remedies]
    return (
        f"{folder.path}: got no solution to train on, expected at least one of {sum(dropped.values())} "
        f"({'; '.join(reasons)}). A round keeps its settings: choose another output_dir for new ones"
        f"{', or move this folder away' if folder.index == 0 else ''}."
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
