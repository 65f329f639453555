"""Collects rollouts: solutions of every question and graded continuations of each of their prefixes, streamed to disk.

The work is cut into chunks of consecutive questions. A chunk's questions, batches and seed do not depend on how many
processes there are or on what ran before, so any number of processes, killed and restarted at any moment, write the
same rows.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .grading import Grader
from .questions import Question, fingerprint
from .sampling import Completion, Prompt, Sampler, derived_seed
from .steps import split_steps
from .store import (
    SHARD,
    RolloutDataset,
    append_rows,
    chunk_sizes,
    read_manifest,
    repair_shard,
    shard_paths,
    write_manifest,
)


logger = logging.getLogger(__name__)


def collect_rollouts(
    questions: Sequence[Question],
    sampler: Sampler,
    output_dir: str | Path,
    *,
    num_solutions: int = 2,
    num_continuations: int = 16,
    include_question: bool = False,
    splitter: str = "newline",
    grading: str | Callable[[str, str], float] | None = "math",
    answer_pattern: str | None = None,
    seed: int = 0,
    chunk_size: int = 16,
    store_token_ids: bool = False,
    show_progress: bool = True,
) -> RolloutDataset:
    """
    Samples solutions, splits them into steps, continues every proper prefix, grades everything and stores it.

    Texts that reach `max_new_tokens` are graded as they stand; the manifest says how many there are. Started again in
    the same folder it continues where it was. Launched by `accelerate launch`, each process takes its share of the
    chunks and writes its own shard.

    Args:
        questions (`Sequence[Question]`):
            Questions with reference answers, from [`load_questions`].
        sampler ([`Sampler`]):
            The policy that values are estimated from.
        output_dir (`str` or `Path`):
            Folder of this collection: `manifest.json` and shards `rollouts-00000.jsonl`, ...
        num_solutions (`int`, *optional*, defaults to `2`):
            Solutions a question.
        num_continuations (`int`, *optional*, defaults to `16`):
            K, continuations a prefix. 0 samples and grades solutions only, as best-of-N needs.
        include_question (`bool`, *optional*, defaults to `False`):
            Also continue the bare question K times (the value before the first step).
        splitter (`str`, *optional*, defaults to `"newline"`):
            How solutions are split, see [`split_steps`].
        grading (`str` or `Callable`, *optional*, defaults to `"math"`):
            `"math"`, `"exact"`, a function or its import path, see [`Grader`]. `None` grades nothing, for questions
            without answers: rewards and predictions are `None`, and there can be no continuations.
        answer_pattern (`str`, *optional*):
            Regular expression whose first group is the final answer, see [`Grader`].
        seed (`int`, *optional*, defaults to `0`):
            Seed of the whole collection.
        chunk_size (`int`, *optional*, defaults to `16`):
            Questions a chunk: the unit of work that is written, and lost if the process is killed.
        store_token_ids (`bool`, *optional*, defaults to `False`):
            Keep the sampled tokens of each solution in its row (`token_ids`), for training on exactly them.
        show_progress (`bool`, *optional*, defaults to `True`):
            A progress bar with rate and time left.

    Returns:
        [`RolloutDataset`]: all rows of the folder.

    Raises:
        `ValueError`: if there are no questions, a number is out of range, or the folder holds another configuration's
            rollouts (the differences are named).
    """
    from accelerate import PartialState
    from filelock import FileLock
    from tqdm.auto import tqdm

    _check_numbers(questions, num_solutions, num_continuations, chunk_size)
    if grading is None and num_continuations > 0:
        raise ValueError(
            f"grading: got None with num_continuations={num_continuations}: continuations are nothing but their "
            "rewards. Name a grading, or set num_continuations=0."
        )
    path = Path(output_dir)
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "num_questions": len(questions),
        "questions": fingerprint(questions),
        "num_solutions": num_solutions,
        "num_continuations": num_continuations,
        "include_question": include_question,
        "splitter": splitter,
        "grading": f"{grading.__module__}:{grading.__qualname__}" if callable(grading) else grading,
        "answer_pattern": answer_pattern,
        "seed": seed,
        "chunk_size": chunk_size,
        "sampler": sampler.settings,
        **({"store_token_ids": True} if store_token_ids else {}),
    }
    sizes = chunk_sizes(config)
    # Without cpu=True a launched process on a machine without accelerator believes itself alone.
    state = PartialState(cpu=not torch.accelerator.is_available())
    with FileLock(path / f".{SHARD.format(rank=state.process_index)}.lock", timeout=0):
        # The first process repairs all shards before any appends, also those of processes that this run no longer has.
        if state.is_main_process:
            _open_folder(path, config)
            done = _finished_chunks(path, sizes)
        state.wait_for_everyone()
        if not state.is_main_process:
            done = _finished_chunks(path, sizes)
        state.wait_for_everyone()
        todo = [chunk for chunk in range(len(sizes)) if chunk not in done]
        mine = todo[state.process_index :: state.num_processes]
        started = time.monotonic()
        work = _Collection(questions, sampler, config)
        with (
            nullcontext() if grading is None else Grader(grading, answer_pattern=answer_pattern) as grader,
            open(path / SHARD.format(rank=state.process_index), "ab") as shard,
            tqdm(
                total=len(questions),
                initial=len(questions) - sum(sizes[chunk] for chunk in todo) // num_solutions,
                unit="question",
                desc="Collecting rollouts",
                disable=not (show_progress and state.is_main_process),
            ) as bar,
        ):
            for chunk in mine:
                append_rows(shard, work.run_chunk(chunk, grader))
                bar.set_postfix(rollouts=work.num_rollouts, refresh=False)
                bar.update(sizes[chunk] // num_solutions * state.num_processes)
            num_timeouts = 0 if grader is None else grader.num_timeouts
        state.wait_for_everyone()
    dataset = RolloutDataset(path)
    if state.is_main_process and (mine or "summary" not in dataset.manifest):
        _write_summary(path, dataset, config, time.monotonic() - started, num_timeouts)
    state.wait_for_everyone()
    dataset.manifest = read_manifest(path)
    return dataset


class _Collection:
    """The work on one chunk; holds what all chunks share."""

    def __init__(self, questions: Sequence[Question], sampler: Sampler, config: dict[str, Any]):
        self.questions, self.sampler, self.config = questions, sampler, config
        self.num_rollouts = 0
        in_rows = ("backend", "model", "temperature", "top_p", "top_k", "max_new_tokens")
        self.sampler_settings = {name: value for name, value in sampler.settings.items() if name in in_rows}

    def run_chunk(self, chunk: int, grader: Grader | None) -> list[dict[str, Any]]:
        """All rows of a chunk, in the order of its questions and solutions."""
        first = chunk * self.config["chunk_size"]
        indices = range(first, min(first + self.config["chunk_size"], len(self.questions)))
        solutions = self._sample(
            [Prompt(self.questions[i].question) for i in indices], self.config["num_solutions"], chunk, "solutions"
        )
        rows = [
            self._row(chunk, question, number, solution)
            for question, samples in zip(indices, solutions, strict=True)
            for number, solution in enumerate(samples)
        ]
        if grader is None:
            return rows
        rewards, predictions = grader.grade_and_extract(
            ["".join(row["steps"]) for row in rows], [row["answer"] for row in rows]
        )
        for row, reward, prediction in zip(rows, rewards, predictions, strict=True):
            row["outcome_reward"], row["prediction"] = reward, prediction
        if self.config["num_continuations"] > 0:
            self._continue_prefixes(chunk, rows, grader)
        return rows

    def _row(self, chunk: int, index: int, number: int, solution: Completion) -> dict[str, Any]:
        if self.config.get("store_token_ids") and not solution.token_ids:
            raise ValueError(
                "store_token_ids=True: the sampler returned no token ids. For vLLM's server set "
                "extra_body={'return_token_ids': True}, or leave store_token_ids off."
            )
        steps = split_steps(solution.text, self.config["splitter"])
        return {
            "chunk": chunk,
            "question_index": index,
            "solution_index": number,
            "question": self.questions[index].question,
            "answer": self.questions[index].answer,
            "steps": steps,
            "outcome_reward": None,
            "prediction": None,
            "finished": solution.finished,
            "num_tokens": solution.num_tokens,
            "prefix_rewards": [],
            "question_rewards": None,
            "unusable": None if steps else "no steps",
            "sampler": {**self.sampler_settings, "seed": derived_seed(self.config["seed"], chunk, "solutions")},
            **({"token_ids": solution.token_ids} if self.config.get("store_token_ids") else {}),
        }

    def _continue_prefixes(self, chunk: int, rows: list[dict], grader: Grader) -> None:
        # Where a prefix's rewards go: (row, its number of steps); 0 steps is the bare question, shared by its
        # solutions.
        targets, prompts = [], []
        for row in rows:
            bare_question = [0] if self.config["include_question"] and row["solution_index"] == 0 else []
            for length in [*bare_question, *range(1, len(row["steps"]))]:
                targets.append((row, length))
                prompts.append(Prompt(row["question"], "".join(row["steps"][:length])))
        continuations = self._sample(prompts, self.config["num_continuations"], chunk, "continuations")
        texts = [prompt.prefix + one.text for prompt, some in zip(prompts, continuations, strict=True) for one in some]
        answers = [row["answer"] for row, _ in targets for _ in range(self.config["num_continuations"])]
        rewards = iter(grader.grade(texts, answers))
        for row, length in targets:
            raw = [next(rewards) for _ in range(self.config["num_continuations"])]
            if length == 0:
                row["question_rewards"] = raw
            else:
                row["prefix_rewards"].append(raw)
        by_question = {row["question_index"]: row["question_rewards"] for row in rows if row["solution_index"] == 0}
        for row in rows:
            row["question_rewards"] = by_question[row["question_index"]]

    def _sample(self, prompts: list[Prompt], num_samples: int, chunk: int, what: str) -> list[list[Completion]]:
        if not prompts:
            return []
        self.num_rollouts += len(prompts) * num_samples
        return self.sampler.sample(prompts, num_samples, derived_seed(self.config["seed"], chunk, what))


def _check_numbers(questions, num_solutions: int, num_continuations: int, chunk_size: int) -> None:
    if not questions:
        raise ValueError("Questions: got none, expected at least one.")
    for name, value, least in (
        ("num_solutions", num_solutions, 1),
        ("num_continuations", num_continuations, 0),
        ("chunk_size", chunk_size, 1),
    ):
        if value < least:
            raise ValueError(f"{name}: got {value}, expected at least {least}.")


def _open_folder(path: Path, config: dict[str, Any]) -> None:
    """Writes the manifest of a new folder, or checks that an old one has the same configuration."""
    manifest = read_manifest(path)
    if manifest is None:
        if shard_paths(path):
            raise ValueError(
                f"{path} holds rollouts but no manifest: choose another output_dir, or restore the manifest."
            )
        versions = {name: version(name) for name in ("erprm_trl", "torch", "transformers", "trl")}
        write_manifest(path, {"config": config, "versions": versions})
        return
    old, new = _flatten(manifest["config"]), _flatten(config)
    changed = [
        f"{key} was {old.get(key)!r} and is now {new.get(key)!r}" for key in old | new if old.get(key) != new.get(key)
    ]
    if changed:
        raise ValueError(
            f"{path} holds rollouts of another configuration: {'; '.join(changed)}. Choose another output_dir, or "
            "use the old settings "
            "to continue."
        )


def _finished_chunks(path: Path, sizes: list[int]) -> set[int]:
    return set().union(*(repair_shard(shard, sizes) for shard in shard_paths(path)))


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat.update(_flatten(value, f"{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _write_summary(path: Path, dataset: RolloutDataset, config: dict, seconds: float, num_timeouts: int) -> None:
    rows = dataset.rows
    prefixes = sum(len(row["prefix_rewards"]) for row in rows)
    raw = [rewards for row in rows for rewards in row["prefix_rewards"]]
    unusable = Counter(row["unusable"] for row in rows if row["unusable"])
    summary = {
        "solutions": len(rows),
        "solutions_with_labels": len(rows) - unusable.total(),
        "unusable": dict(unusable),
        "unfinished_share": sum(not row["finished"] for row in rows) / len(rows),
        "mean_outcome_reward": (
            None if config["grading"] is None else sum(row["outcome_reward"] for row in rows) / len(rows)
        ),
        "steps": sum(len(row["steps"]) for row in rows),
        "prefixes": prefixes,
        "mean_prefix_reward": sum(map(sum, raw)) / max(1, sum(map(len, raw))),
        "rollouts": len(rows) + sum(map(len, raw)),
        "grading_timeouts": num_timeouts,
        "seconds_of_last_run": round(seconds, 1),
    }
    logger.info("%s: %s", path, summary)
    write_manifest(path, {**dataset.manifest, "summary": summary})
