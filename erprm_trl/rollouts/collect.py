"""Collects rollouts, i.e. solutions to every question and graded continuations of each of their prefixes, and writes
them to disk as they are sampled. The solutions are sampled too, or someone else wrote them.

The work is divided into chunks of consecutive questions. The questions, batches and seed of a chunk do not depend on
the number of processes or on earlier runs. Any number of processes, killed and restarted at any moment, therefore
write the same rows.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..io.atomic_files import make_folder, only_writer
from ..reasoning import prompt_opens_thinking
from . import agents
from .chunk import ChunkWork
from .collect_arguments import (
    agent_of,
    check_counts,
    check_grading,
    check_questions,
    completer_of_given,
    sharing_settings,
    splitter_of,
)
from .dataset import RolloutDataset
from .given_solutions import GivenSolution, as_solutions
from .grading.grader import STATED, Grader, comparison_method, grading_name
from .grading.worker import METHODS
from .overlap import OverlappedChunks
from .progress import CollectionProgress
from .questions import Question, fingerprint
from .records import CollectionSettings, RolloutRow
from .sampling.base import Prompt, Sampler, stop_strings
from .shards import (
    MANIFEST,
    RESTORE,
    SHARD,
    append_rows,
    read_manifest,
    repair_shard,
    shard_paths,
    write_manifest,
)
from .solution_groups import SolutionGroups
from .speed import RunSpeed, num_accelerators, prefix_cache_counts
from .summary import summarize_rollouts


logger = logging.getLogger(__name__)


def collect_rollouts(
    questions: Sequence[Question] | None = None,
    sampler: Sampler | None = None,
    output_dir: str | Path | None = None,
    *,
    solutions: str | PathLike | Sequence[GivenSolution] | Iterable[Mapping[str, Any]] | None = None,
    completer: Sampler | None = None,
    num_solutions: int = 2,
    num_continuations: int = 16,
    allocation: str = "fixed",
    target_etas: Sequence[float] = (0.0, 2.0, 10.0),
    tolerance: float = 0.02,
    reuse_continuations: bool | None = None,
    include_question: bool = False,
    splitter: str = "newline",
    grading: str | Callable[[str, str], float] | None = "math",
    answer_pattern: str | None = None,
    reasoning: bool | None = None,
    steps_of: str = "both",
    tools: Sequence[Callable] | None = None,
    environment_factory: "Callable[[], Any] | Mapping[str, Callable[[], Any]] | None" = None,
    max_tool_calling_iterations: int | None = None,
    render_message: Callable[[dict[str, Any]], str] | None = None,
    stop: str | Sequence[str] | None = None,
    seed: int = 0,
    chunk_size: int = 16,
    store_token_ids: bool = False,
    show_progress: bool = True,
) -> RolloutDataset:
    r"""
    Samples solutions, splits them into steps, continues every proper prefix, grades all texts and stores the rewards.

    A prefix is continued from the sampled tokens of its solution. If a token contains both the end of the prefix and
    the text after it, only the end is encoded again. The whole prefix is encoded again, which may give other tokens,
    if the sampler does not return `token_ids`, if another policy wrote the solution, or if an older release created
    the folder.

    With `solutions`, nobody samples solutions: the given ones are continued and graded. Solutions with the same
    question and reference answer are grouped, in the order of the first of them, and the number of solutions per
    question may differ. Given steps keep their boundaries; a text is split by `splitter`. A solution without steps, or
    with a step without content, is graded and stored, but has no labels (`unusable`). A solution that occurs twice is
    kept twice, and continued twice unless `reuse_continuations=True`. The summary in the manifest counts both.

    Texts that reach `max_new_tokens` are graded without their end. The manifest has the share of such solutions. A
    call with the same arguments and folder resumes the collection. With `accelerate launch`, each process works on a
    part of the chunks and writes its own shard.

    Args:
        questions (`Sequence[Question]`):
            Questions with reference answers, from [`load_questions`]. Leave them out if you pass `solutions`.
        sampler ([`Sampler`]):
            Sampler of the policy.
        output_dir (`str` or `Path`):
            Folder of the collection, with `manifest.json` and the shards `rollouts-00000.jsonl`, ...
        solutions (`str`, `PathLike` or iterable, *optional*):
            Solutions that someone else wrote, from [`load_solutions`], or a source for it. Rows then also have the id,
            the correctness and the metadata of the solution.
        completer ([`Sampler`], *optional*):
            Sampler of continuations. Defaults to `sampler`. With another policy than `sampler`, or with `solutions`,
            prefixes are continued from their text, as the beginning of the assistant's turn. Spaces at the end of a
            prefix are left to the completer.
        num_solutions (`int`, *optional*, defaults to `2`):
            Number of solutions per question. Not used with `solutions`.
        num_continuations (`int`, *optional*, defaults to `16`):
            Number K of continuations per prefix. With `allocation="adaptive"`, the largest average number. With 0,
            solutions are only sampled and graded, as for best-of-N.
        allocation (`str`, *optional*, defaults to `"fixed"`):
            How continuations are allocated to prefixes. `"fixed"` continues each prefix K times. `"adaptive"` works in
            a few rounds: it continues prefixes with uncertain labels more often, and prefixes with certain labels not
            at all, see [`~erprm_trl.rollouts.allocation.allocate`]. It needs rewards in [0, 1]. Use a large
            `chunk_size` with it, so that each round is a large batch. Labels are then posterior means with standard
            deviations, see [`RolloutDataset.labels`].
        target_etas (`Sequence[float]`, *optional*, defaults to `(0.0, 2.0, 10.0)`):
            Finite etas for which labels should be precise (adaptive allocation). Labels can be computed for other etas
            too.
        tolerance (`float`, *optional*, defaults to `0.02`):
            Standard deviation at which sampling stops (adaptive allocation). A prefix gets no more continuations if
            any number of them could change its label only by less than this, at each of the target etas.
        reuse_continuations (`bool`, *optional*):
            Whether a continuation (or a solution) also counts for longer prefixes with which it begins. Solutions that
            begin with the same prefix then share the continuations of this prefix, see
            [`~erprm_trl.rollouts.shared_prefixes.SharedPrefixes`]. Defaults to `True` with adaptive allocation.
        include_question (`bool`, *optional*, defaults to `False`):
            Whether the bare question is also continued K times, which estimates the value before the first step.
        splitter (`str`, *optional*, defaults to `"newline"`):
            How solutions are split into steps, see [`split_steps`].
        grading (`str` or `Callable`, *optional*, defaults to `"math"`):
            `"math"`, `"exact"`, a function or its import path, see [`Grader`]. For given solutions that are not
            continued, `"stated"` takes the correctness that their source states. `"environment"` takes `get_reward` of
            the environments. With `None`, for questions without answers, nothing is graded: rewards and predictions
            are `None`, and `num_continuations` must be 0.
        answer_pattern (`str`, *optional*):
            Regular expression whose first group is the final answer, see [`Grader`].
        reasoning (`bool`, *optional*):
            Whether the policy thinks in `<think>...</think>` before its answer, see [`Grader`]. By default, each text
            is searched for the delimiters. If the prompt ends with `<think>`, a text without `</think>` counts as
            unfinished thinking.
        steps_of (`str`, *optional*, defaults to `"both"`):
            Which part of a reasoning text is split into steps: `"both"`, `"thinking"` or `"answer"`, see
            [`split_steps`].
        tools (`Sequence[Callable]`, *optional*):
            Functions that the policy can call, as for `tools` of [`~trl.GRPOTrainer`]. A solution is then a
            conversation, and a step is a turn of the policy. Rows also have the `messages`. The policy needs a chat
            template with tools.
        environment_factory (`Callable` or `dict[str, Callable]`, *optional*):
            Makes environments, as for `environment_factory` of [`~trl.GRPOTrainer`]. A conversation is continued after
            a turn by resetting an environment and making the tool calls up to this turn again. An error is raised if
            their results differ, because labels need deterministic environments. `reset` receives `prompt`,
            `question`, `answer` and the `columns` of the question.
        max_tool_calling_iterations (`int`, *optional*):
            Maximum number of turns whose tool calls are answered. By default, only `max_new_tokens` of the sampler
            limits a conversation, including the results of its tools.
        render_message (`Callable`, *optional*):
            Text of a message as the reward model reads it. Defaults to [`render_message`]. Use the same function in
            [`StepRewardFunction`].
        stop (`str` or `Sequence[str]`, *optional*):
            Strings that end a solution or a continuation, e.g. `"\n\nQuestion:"` for a base model whose prompt has
            solved examples. The text ends before the first of them, and counts as finished. The text after it is
            dropped, and its tokens are not in `token_ids`. Given solutions are not changed.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the collection.
        chunk_size (`int`, *optional*, defaults to `16`):
            Number of questions per chunk. While the texts of a chunk are graded, the next one is sampled. A chunk is
            written when it is complete. A killed process loses the chunks in progress, which are at most two.
        store_token_ids (`bool`, *optional*, defaults to `False`):
            Whether to store the sampled tokens of each solution in its row (`token_ids`), for training on exactly
            these tokens.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar with the rate and the time left.

    Returns:
        [`RolloutDataset`]: all rows of the folder.

    Raises:
        `ValueError`: if there are no questions, an argument is out of range, a given solution has no reference answer,
            or the folder contains rollouts with other settings. The message names the differences.
    """
    check_counts(output_dir, num_solutions, num_continuations, chunk_size)
    sharing = sharing_settings(allocation, target_etas, tolerance, reuse_continuations, num_continuations)
    agent = agent_of(tools, environment_factory, max_tool_calling_iterations, render_message)
    unused = {"solutions": solutions, "completer": completer, "allocation": allocation != "fixed" and allocation}
    unused |= {"reuse_continuations": reuse_continuations, "stop": stop, "store_token_ids": store_token_ids}
    splitter = splitter_of(splitter, steps_of, agent, unused)
    check_grading(grading, num_continuations, solutions is not None, agent)
    if solutions is None:
        check_questions(questions, sampler)
    else:
        completer = completer_of_given(questions, sampler, completer, num_continuations, store_token_ids)
        questions, sampler = _groups(as_solutions(solutions), grading), None
    completer = None if completer is sampler or num_continuations == 0 else completer
    path = make_folder(output_dir)
    reasoning, continue_from = _modes(path, questions[0], sampler, completer, reasoning, num_continuations)
    unchanged = {"seed": seed, "chunk_size": chunk_size, "steps_of": steps_of, "answer_pattern": answer_pattern}
    unchanged |= {"num_continuations": num_continuations, "include_question": include_question, "splitter": splitter}
    settings = CollectionSettings(
        **_extent(questions, num_solutions, chunk_size),
        **unchanged,
        **sharing,
        grading=grading_name(grading),
        sampler={} if sampler is None else sampler.settings,
        store_token_ids=bool(store_token_ids),
        stop=stop_strings(stop),
        reasoning=reasoning,
        continue_from=continue_from,
        completer=None if completer is None else completer.settings,
        agent=None if agent is None else agent.settings,
    )
    return _collect(path, settings, questions, (sampler, completer), grading, show_progress, agent)


def _collect(
    path: Path,
    settings: CollectionSettings,
    questions: Sequence[Question] | SolutionGroups,
    policies: tuple[Sampler | None, Sampler | None],
    grading: str | Callable[[str, str], float] | None,
    show_progress: bool,
    agent: agents.Agent | None,
) -> RolloutDataset:
    """Collects the missing chunks, distributed over the processes, and writes the summary."""
    from accelerate import PartialState

    sizes = settings.chunk_sizes
    # Without cpu=True, a launched process on a machine without accelerator does not see the other processes.
    state = PartialState(cpu=not torch.accelerator.is_available())
    with only_writer(path / SHARD.format(rank=state.process_index), "collecting"):
        # The first process repairs all shards before any append, also shards of earlier runs with more processes.
        if state.is_main_process:
            _open_folder(path, settings)
            done = _finished_chunks(path, sizes)
        state.wait_for_everyone()
        if not state.is_main_process:
            done = _finished_chunks(path, sizes)
        state.wait_for_everyone()
        todo = [chunk for chunk in range(len(sizes)) if chunk not in done]
        started = time.monotonic()
        grader_settings = {"answer_pattern": settings.answer_pattern, "reasoning": settings.reasoning}
        with (
            open(path / SHARD.format(rank=state.process_index), "ab") as shard,
            nullcontext() if grading is None else Grader(comparison_method(grading), **grader_settings) as grader,
        ):
            num_done = sum(map(settings.questions_per_chunk.__getitem__, done))
            show = show_progress and state.is_main_process
            with CollectionProgress(settings, num_done, state.num_processes, show) as progress:
                if agent is None:
                    work = ChunkWork(questions, *policies, settings, progress)
                else:
                    work = agents.ConversationWork(questions, policies[0], settings, progress, agent)
                own = todo[state.process_index :: state.num_processes]
                speed = _run_chunks(work, own, grader, shard, policies)
            num_timeouts = 0 if grader is None else grader.num_timeouts
        state.wait_for_everyone()
        speed = speed.of_all_processes(state)
    dataset = RolloutDataset(path)
    if state.is_main_process and (own or "summary" not in dataset.manifest):
        seconds = round(time.monotonic() - started, 1)
        entries = {"grading_timeouts": num_timeouts, "seconds_of_last_run": seconds, "speed": speed.to_json()}
        _write_summary(dataset, entries)
    state.wait_for_everyone()
    dataset.manifest = read_manifest(path)
    return dataset


def _run_chunks(
    work: ChunkWork | agents.ConversationWork,
    chunks: Sequence[int],
    grader: Grader | None,
    shard,
    policies: tuple[Sampler | None, Sampler | None],
) -> RunSpeed:
    """Processes chunks, and appends their rows to the shard of this process."""
    speed, progress = RunSpeed(), work.progress

    def write(rows: list[RolloutRow]) -> None:
        append_rows(shard, rows)
        speed.count(rows)
        saved = {"saved": work.num_saved} if work.settings.shares_continuations else {}
        progress.end_chunk(rows[0].chunk, rollouts=work.num_rollouts, **saved)

    runner = OverlappedChunks(write, grader.cancel if _may_overlap(grader, policies) else None)
    cached, prompts = prefix_cache_counts(policies)
    runner.run(work.run_chunk(chunk, grader) for chunk in chunks)
    cached_now, prompts_now = prefix_cache_counts(policies)
    speed.cached_tokens, speed.prompt_tokens = cached_now - cached, prompts_now - prompts
    speed.seconds = speed.process_seconds = runner.seconds
    speed.sampling_seconds, speed.tokens = runner.sampling_seconds, progress.num_tokens
    speed.gpu_seconds = runner.seconds * num_accelerators(policies)
    return speed


def _may_overlap(grader: Grader | None, policies: tuple[Sampler | None, Sampler | None]) -> bool:
    """Whether texts can be graded in a second thread, while others are sampled, with the same rewards."""
    # A function that workers cannot import may need this thread, e.g. for signals.
    if grader is None or not grader.uses_workers:
        return False
    # The time limit of other functions is in elapsed time, in which a sampler on the same processor delays them.
    on_processor = any(getattr(policy, "accelerators", None) == [] for policy in policies)
    return grader.method in METHODS or not on_processor


def _write_summary(dataset: RolloutDataset, entries: dict[str, Any]) -> None:
    """Writes the summary of a collection into its manifest, and warns if most solutions are unfinished."""
    settings = dataset.settings
    summary = {**summarize_rollouts(dataset.rows, settings), **entries}
    logger.info("%s: %s", dataset.path, summary)
    if summary["unfinished_share"] > 0.5:
        logger.warning(
            "%s: %.0f%% of the solutions reached max_new_tokens=%s. They are graded without their end, so most "
            "rewards are 0. Set a larger max_new_tokens (in RAFT: max_completion_length), and write to a new folder.",
            dataset.path,
            100 * summary["unfinished_share"],
            settings.sampler.get("max_new_tokens"),
        )
    write_manifest(dataset.path, {**dataset.manifest, "summary": summary})


def _groups(solutions: Sequence[GivenSolution], grading: str | Callable[[str, str], float] | None) -> SolutionGroups:
    is_stated = grading == STATED
    return SolutionGroups(solutions, need_answers=grading is not None and not is_stated, need_correct=is_stated)


def _extent(questions: Sequence[Question] | SolutionGroups, num_solutions: int, chunk_size: int) -> dict[str, Any]:
    """The settings that identify the questions, or the given solutions, and their number."""
    extent = {"num_questions": len(questions)}
    if not isinstance(questions, SolutionGroups):
        return {**extent, "questions": fingerprint(questions), "num_solutions": num_solutions}
    sizes = questions.sizes
    return {
        **extent,
        "questions": questions.fingerprint,
        "num_solutions": int(sizes.max()),
        "rows_per_chunk": np.add.reduceat(sizes, np.arange(0, len(sizes), chunk_size)).tolist(),
    }


def _modes(
    path: Path,
    question: Question,
    sampler: Sampler | None,
    completer: Sampler | None,
    reasoning: bool | None,
    num_continuations: int,
) -> tuple[bool | None, str]:
    """Chooses how texts are graded and how prefixes are continued. A collection that an older release started
    continues in the same way, unless `reasoning` is set."""
    manifest = read_manifest(path)
    if manifest is not None:
        stored = CollectionSettings.from_json(manifest["config"])
        return stored.reasoning if reasoning is None else reasoning, stored.continue_from
    prompt_format = getattr(sampler, "prompt_format", None)
    if prompt_format is None:
        return reasoning, "text"
    if reasoning is None:
        prompt = prompt_format.render(Prompt(question.question, prompt=question.prompt))
        reasoning = True if prompt_opens_thinking(prompt) else None
    return reasoning, "tokens" if num_continuations > 0 and completer is None else "text"


def _open_folder(path: Path, settings: CollectionSettings) -> None:
    """Writes the manifest of a new folder, or checks that an old one has the same settings."""
    manifest = read_manifest(path)
    if manifest is None:
        if shard_paths(path):
            raise ValueError(f"{path}: got rollouts without {MANIFEST}, expected a manifest. {RESTORE}")
        versions = {name: version(name) for name in ("erprm_trl", "torch", "transformers", "trl")}
        write_manifest(path, {"config": settings.to_json(), "versions": versions})
        return
    changed = settings.differences(manifest["config"])
    if changed:
        raise ValueError(
            f"{path}: got rollouts with other settings ({'; '.join(changed)}), expected the settings of this call. "
            "Choose another output_dir, or use the old settings to resume."
        )


def _finished_chunks(path: Path, sizes: list[int]) -> set[int]:
    return set().union(*(repair_shard(shard, sizes) for shard in shard_paths(path)))
