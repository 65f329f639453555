"""The parts of a RAFT round that need no model: its questions, the selection of solutions, its metrics, and its folder
on disk."""

import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from ...conversations import question_text
from ...functional.score_metrics import auc_within_groups
from ...io.atomic_files import replace_file
from ...io.config_values import differences
from ...io.on_disk_sequence import OnDiskSequence
from ...reward_model.prm_format import PRMFormat
from ...rollouts.questions import Question, load_questions
from ...rollouts.records import RolloutRow
from ...rollouts.sampling.base import derived_seed
from ...rollouts.shards import read_manifest, write_manifest


class PromptedQuestions(OnDiskSequence):
    """
    Questions together with the prompts of a dataset.

    Args:
        questions (`Sequence[Question]`):
            Questions and answers.
        prompts (`Sequence[str | list[dict]]`):
            Prompt of each question, as a text or a conversation.
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
    Loads the questions of a dataset like TRL's online trainers. If there is a column `prompt`, the policy gets it
    unchanged, and the reward model gets the column `question`, or else the prompt's last user message.

    Args:
        dataset ([`~datasets.Dataset`], [`~datasets.IterableDataset`] or iterable of mappings):
            Rows with the questions. A streaming dataset is read into memory.
        question_column (`str`, *optional*):
            Column of the questions, see [`~erprm_trl.rollouts.load_questions`].
        answer_column (`str`, *optional*):
            Column of the reference answers.
        require_answers (`bool`, *optional*, defaults to `True`):
            Whether rows without answers are an error.
    """
    from datasets import Dataset

    is_table = isinstance(dataset, Dataset)  # rows of a table stay on disk
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
    Returns the questions of round `index`, counted from 0: all questions if `size` is `None`, else the next `size`
    questions of a seeded shuffle, which starts again at its end.

    Raises:
        `ValueError`: if there are fewer than `size` questions.
    """
    if size is None:
        return list(questions)
    if size > len(questions):
        raise ValueError(
            f"questions_per_round: got {size}, expected at most {len(questions)}, the number of questions. Lower it."
        )
    order = random.Random(f"raft-questions-{seed}").sample(range(len(questions)), len(questions))
    return [questions[order[(index * size + offset) % len(order)]] for offset in range(size)]


def round_seed(seed: int, index: int, what: str) -> int:
    """Returns a seed for a purpose and a round, independent of the seeds of other rounds and runs."""
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
    Selects the solutions to train on.

    Args:
        rows (`Sequence[RolloutRow]`):
            Solutions, ordered by question.
        scores (`Sequence[float | None]`):
            Score of each solution, `None` for an unusable solution.
        unusable (`Sequence[str | None]`):
            Reason why a solution cannot be used, or `None`.
        top_k, score_threshold, drop_uniform, deduplicate (*optional*):
            See [`RAFTConfig`]. Among equal scores, the solution that was sampled first is selected.

    Returns:
        `tuple[list[int], dict[str, int]]`: the indices of the selected rows, the best of each question first, and the
        number of dropped rows by reason. Every row is either selected or counted once.
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
    """Returns the row of a selected solution in `picks.jsonl`: its readable text, and the tokens to train on."""
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
    """Returns a training example. Only the sampled tokens have labels, not the prompt."""
    return {
        "input_ids": pick["prompt_ids"] + pick["completion_ids"],
        "labels": [-100] * len(pick["prompt_ids"]) + pick["completion_ids"],
    }


def round_metrics(
    rows: Sequence[RolloutRow], scores: Sequence[float | None], kept: Sequence[int], dropped: dict[str, int]
) -> dict[str, float]:
    """Metrics of a round's solutions and of the selected ones. Accuracies are only included for graded solutions."""
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
        metrics["agreement"] = agreement(rows, scores)
    return {name: value for name, value in metrics.items() if value is not None}


def agreement(rows: Sequence[RolloutRow], scores: Sequence[float | None]) -> float | None:
    """
    How often a right solution has a higher score than a wrong one of the same question (AUC within questions).

    Args:
        rows (`Sequence[RolloutRow]`):
            Graded solutions.
        scores (`Sequence[float | None]`):
            Score of each solution, `None` for a solution that does not count.

    Returns:
        `float` or `None`: the share in [0, 1], or `None` if no question has both a right and a wrong solution.
    """
    scored = [index for index, score in enumerate(scores) if score is not None]
    share = auc_within_groups(
        torch.tensor([scores[index] for index in scored], dtype=torch.float64),
        torch.tensor([rows[index].outcome_reward > 0.5 for index in scored], dtype=torch.bool),
        torch.tensor([rows[index].question_index for index in scored], dtype=torch.long),
    ).item()
    return None if math.isnan(share) else share


def accuracy_metrics(rows: Sequence[RolloutRow], prefix: str) -> dict[str, float]:
    """Metrics of an evaluation, whose solutions are all graded."""
    return {
        f"{prefix}_accuracy": _mean([row.outcome_reward for row in rows]),
        f"{prefix}_unfinished_share": _mean([not row.finished for row in rows]),
        f"{prefix}_mean_tokens": _mean([row.num_tokens for row in rows]),
    }


class RoundFolder:
    """
    The folder of a round, `round-0`, ..., with `samples/`, `scores.jsonl`, `picks.jsonl`, `checkpoint-*`, `policy/`,
    `evaluation/` and `manifest.json`. If the reward model is refreshed, also `labels/`, `held_out/` and
    `reward_model/`. Everything that the manifest lists is complete. A resumed run continues or overwrites the rest.

    Args:
        output_dir (`str` or `Path`):
            Folder of the run.
        index (`int`):
            Index of the round, counted from 0.
    """

    def __init__(self, output_dir: str | Path, index: int):
        self.index = index
        self.path = Path(output_dir, f"round-{index}")
        self.samples, self.policy = self.path / "samples", self.path / "policy"
        self.scores, self.picks = self.path / "scores.jsonl", self.path / "picks.jsonl"
        self.labels, self.held_out = self.path / "labels", self.path / "held_out"
        self.reward_model = self.path / "reward_model"

    @property
    def manifest(self) -> dict[str, Any]:
        return read_manifest(self.path, run_again(self.path)) or {}

    def add(self, **entries: Any) -> None:
        """Adds entries to the manifest."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_manifest(self.path, {**self.manifest, **entries})

    def check_config(self, config: dict[str, Any]) -> None:
        """Raises a `ValueError` that names the differences if the folder's round has another configuration."""
        old = _as_compared(self.manifest.get("config", config))
        new = _as_compared(json.loads(json.dumps(config)))
        if changed := sorted(differences(old, new)):
            raise ValueError(
                f"{self.path}: got a round with other settings: {'; '.join(changed)}. Choose another output_dir, or "
                "use the old settings to resume the run."
            )

    @property
    def has_checkpoints(self) -> bool:
        """Whether the round has checkpoints, complete or incomplete."""
        return any(self.path.glob("checkpoint-*"))


def _as_compared(config: dict[str, Any]) -> dict[str, Any]:
    """Prepares a configuration for comparison. The reward model's format gets the fields that an older release did not
    write, without the fields that do not change scores."""
    if "reward_model_format" not in config:
        return config
    prm_format = asdict(PRMFormat(**config["reward_model_format"]))
    del prm_format["expected_ids"], prm_format["eta"]
    return {**config, "reward_model_format": prm_format}


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes JSON lines atomically."""
    replace_file(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads the rows that [`write_rows`] wrote."""
    try:
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    except (OSError, ValueError) as error:
        message = f"{path}: got a damaged file ({error}), expected JSON lines. {run_again(path.parent)}"
        raise ValueError(message) from error


def run_again(folder: Path) -> str:
    """Returns the fix for a damaged file in the folder of a round, or in the folder of the run."""
    if not folder.name.startswith("round-"):
        return f"Move {folder} away, or choose another output_dir. The next run starts from the beginning."
    return f"Move {folder} and all later rounds away. The next run repeats them."


def nothing_kept(folder: RoundFolder, context_length: int | None) -> str:
    """Returns the error message for a round without selected solutions, with the reasons and their fixes."""
    dropped = folder.manifest["dropped"]
    context = "" if context_length is None else f" (the policy's context has {context_length} tokens)"
    remedies = {
        "unfinished": f"raise max_completion_length{context}, or set `stop` to strings that end a solution",
        "no_steps": f"read the texts in {folder.samples}, which are empty",
        "longer_than_max_length": "raise max_length",
        "too_long_for_reward_model": "use a reward model with a longer context, or other questions",
        "below_threshold": "lower score_threshold",
        "all_right": "set drop_uniform=False, or use harder questions",
        "all_wrong": "set drop_uniform=False, or use easier questions",
    }
    reasons = [f"{reason}: {count}, {remedies[reason]}" for reason, count in dropped.items() if reason in remedies]
    return (
        f"{folder.path}: got no solution to train on, expected at least one of {sum(dropped.values())} "
        f"({'; '.join(reasons)}). A round cannot change its settings. For new settings choose another output_dir"
        f"{', or move this folder away' if folder.index == 0 else ''}."
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
