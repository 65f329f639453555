"""Samples the solutions of a RAFT round from the current policy, scores them, and selects the solutions to train on.

All processes take part and get the same rows. The first process writes the files, and the other processes read them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import Trainer

from ...reward_model.scoring.backend import ScoringBackend
from ...reward_model.scoring.scorer import StepScorer, solution_scores
from ...reward_model.scoring.sharded import check_sharding
from ...rollouts.collect import collect_rollouts
from ...rollouts.dataset import RolloutDataset
from ...rollouts.questions import Question
from ...rollouts.records import RolloutRow
from ...rollouts.sampling.base import Prompt, decode_continuation
from ...rollouts.sampling.prompt_format import PromptFormat
from ...steps import clean_steps
from ...training.nonfinite import not_finite
from ...training.tracking.coloured_steps import ColouredSteps, solutions_table
from ..scored_batch import first_not_finite
from .policy_sampler import PolicySampler
from .rounds import (
    RoundFolder,
    accuracy_metrics,
    pick_row,
    pick_solutions,
    questions_of_round,
    read_rows,
    round_metrics,
    round_seed,
    write_rows,
)


def load_scorer(
    reward_model: str | Path | StepScorer | ScoringBackend,
    accelerator: Accelerator,
    batch_size: int,
    sharded: bool = False,
) -> StepScorer:
    """
    Loads the reward model: whole on every process, sharded over the processes of a ZeRO-3 training run, or on a
    scoring server.

    Raises:
        `TypeError`: for a list.
        `ValueError`: if the weights of a loaded scorer are partitioned by ZeRO-3. With `sharded=True`, also if the
            reward model is already loaded, or if the training run does not use ZeRO-3.
    """
    if isinstance(reward_model, (list, tuple)):
        raise TypeError(
            f"reward_model: got a {type(reward_model).__name__}, expected one reward model. Pass its path or a scorer."
        )
    if sharded:
        check_sharding(reward_model, accelerator)
        return StepScorer.from_pretrained(reward_model, batch_size=batch_size, accelerator=accelerator)
    if isinstance(reward_model, (str, Path)):
        return StepScorer.from_pretrained(reward_model, batch_size=batch_size, device=accelerator.device)
    scorer = StepScorer.of(reward_model)
    weights = scorer.weights
    if weights is not None and any(hasattr(parameter, "ds_id") for parameter in weights.parameters()):
        raise ValueError(
            "reward_model: got a scorer whose weights are partitioned by ZeRO-3, because it was loaded after the "
            "configuration was created, expected whole weights. Pass the path of the model instead."
        )
    return scorer


def unusable_reasons(
    rows: Sequence[RolloutRow], prompt_ids: Sequence[Sequence[int]], max_length: int | None = None
) -> list[str | None]:
    """
    Returns the reason why each solution cannot be used, or `None`. Solutions that are too long for the reward model
    are found later by scoring.

    Args:
        rows (`Sequence[RolloutRow]`):
            Solutions.
        prompt_ids (`Sequence[Sequence[int]]`):
            Tokens of each solution's prompt.
        max_length (`int`, *optional*):
            Maximum number of the policy's tokens of prompt and solution together.
    """
    reasons: list[str | None] = []
    for row, prompt in zip(rows, prompt_ids, strict=True):
        if not row.finished:
            reasons.append("unfinished")
        elif not row.steps:
            reasons.append("no_steps")
        elif max_length is not None and len(prompt) + row.num_tokens > max_length:
            reasons.append("longer_than_max_length")
        else:
            reasons.append(None)
    return reasons


def completion_ids(prompt_format: PromptFormat, prompt: Prompt, row: RolloutRow) -> list[int]:
    """
    Returns the tokens of a solution to train on.

    These are the sampled tokens, with one exception. Sampling drops a last token that also contains the beginning of
    a stop string, such as `}` with newlines. The part of the solution in this token is encoded here.
    """
    sampled = list(row.token_ids or [])
    if decode_continuation(prompt_format.tokenizer, prompt_format.encode(prompt), sampled) == row.text:
        return sampled
    (ids,) = prompt_format.prefix_ids(prompt, sampled, [row.text])
    return sampled if ids is None else list(ids)


def score_rows(
    rows: Sequence[RolloutRow], unusable: Sequence[str | None], scorer: StepScorer, accelerator: Accelerator
) -> list[list[float]]:
    """
    Scores the steps of every row, and returns the scores on all processes. A row that is unusable or too long for the
    reward model has no scores.

    Each process scores a part of the chunks from sampling. Batches, and therefore the last bits of scores, do not
    depend on the number of processes.
    """
    indices_of_chunk: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        if unusable[index] is None:
            indices_of_chunk.setdefault(row.chunk, []).append(index)
    mine = []
    chunks = sorted(indices_of_chunk)
    for first in range(0, len(chunks), accelerator.num_processes):
        # A process without a chunk still calls the scorer, because a sharded model needs all processes in every call.
        own_chunk = chunks[first + accelerator.process_index : first + accelerator.num_processes][:1]
        indices = indices_of_chunk[own_chunk[0]] if own_chunk else []
        questions = [rows[index].question for index in indices]
        steps = [clean_steps(rows[index].steps, scorer.prm_format.splitter) for index in indices]
        scores = scorer.score(questions, steps, skip_too_long=True)
        mine += zip(indices, scores, strict=True)
    step_scores: list[list[float]] = [[] for _ in rows]
    for index, scores in gather_object(mine):
        step_scores[index] = scores
    return step_scores


def round_solutions(folder: RoundFolder, splitter: str, num_solutions: int) -> tuple[list[str], list[list[Any]]]:
    """Returns the table of a round's first solutions, with steps coloured by score."""
    rows = RolloutDataset(folder.samples).rows[:num_solutions]
    scores = [entry["step_scores"] for entry in read_rows(folder.scores)[:num_solutions]]
    solutions = [
        ColouredSteps(clean_steps(row.steps, splitter), step_scores)
        for row, step_scores in zip(rows, scores, strict=True)
    ]
    return solutions_table([row.question for row in rows], solutions)


class RoundSampling:
    """
    Sampling and selection for a trainer.

    Args:
        trainer ([`RAFTTrainer`]):
            The trainer, with its scorer and prompt format.
        policy ([`PolicySampler`]):
            Policy of the trainer.
    """

    def __init__(self, trainer: Trainer, policy: PolicySampler):
        self.trainer = trainer
        self.policy = policy

    def pick(self, folder: RoundFolder, questions: Sequence[Question], step: int) -> None:
        """
        Samples, scores and selects solutions. Stages that are complete in the folder are skipped.

        Args:
            folder ([`RoundFolder`]):
                Folder of the round.
            questions (`Sequence[Question]`):
                All questions of the run, from which the questions of the round are chosen.
            step (`int`):
                Number of updates in earlier rounds.

        Raises:
            `FloatingPointError`: if the reward model returns a score that is not finite.
        """
        args, scorer, accelerator = self.trainer.args, self.trainer.scorer, self.trainer.accelerator
        chosen = questions_of_round(questions, folder.index, args.questions_per_round, args.seed)
        seed = round_seed(args.seed, folder.index, "samples")
        rows = self.sample(folder.samples, chosen, args.num_generations, seed)
        asked = [chosen[row.question_index] for row in rows]
        prompts = [Prompt(question.question, prompt=question.prompt) for question in asked]
        prompt_ids = [self.trainer.prompt_format.encode(prompt) for prompt in prompts]
        unusable = unusable_reasons(rows, prompt_ids, args.max_length)
        if folder.scores.exists():
            step_scores = [entry["step_scores"] for entry in read_rows(folder.scores)]
        else:
            step_scores = score_rows(rows, unusable, scorer, accelerator)
            if (bad := first_not_finite(step_scores)) is not None:
                what = f"round {folder.index}, the reward model's score of step {bad[1]} of solution {bad[0]}"
                raise not_finite(what, bad[2], step, scorer.weights, accelerator)
        if accelerator.is_main_process:
            write_rows(folder.scores, [{"step_scores": scores} for scores in step_scores])
            self._keep_best(folder, rows, prompts, step_scores, unusable)
        accelerator.wait_for_everyone()

    def _keep_best(
        self,
        folder: RoundFolder,
        rows: list[RolloutRow],
        prompts: list[Prompt],
        step_scores: list[list[float]],
        unusable: list[str | None],
    ) -> None:
        args, prompt_format = self.trainer.args, self.trainer.prompt_format
        scores = solution_scores(step_scores, args.aggregation or self.trainer.scorer.prm_format.aggregation)
        for index, score in enumerate(scores):
            if unusable[index] is None and score is None:
                unusable[index] = "too_long_for_reward_model"
        kept, dropped = pick_solutions(
            rows,
            scores,
            unusable,
            top_k=args.top_k,
            score_threshold=args.score_threshold,
            drop_uniform=self.trainer.drop_uniform,
            deduplicate=args.deduplicate,
        )
        picks = []
        for index in kept:
            ids = completion_ids(prompt_format, prompts[index], rows[index])
            picks.append(pick_row(rows[index], prompt_format.encode(prompts[index]), ids, scores[index]))
        write_rows(folder.picks, picks)
        metrics = round_metrics(rows, scores, kept, dropped)
        folder.add(
            kept=len(kept),
            dropped=dropped,
            reward_model=self.trainer.scorer.model_name,
            metrics={f"raft/{key}": metrics[key] for key in metrics},
        )

    def sample(
        self,
        path: Path,
        questions: list[Question],
        num_solutions: int,
        seed: int,
        num_continuations: int = 0,
        **settings: float,
    ) -> list[RolloutRow]:
        """
        Samples solutions from the current policy, and grades them if there are answers. Solutions that are already in
        `path` are kept.

        Args:
            path, questions, num_solutions, seed, num_continuations:
                See [`collect_rollouts`].
            settings (`float`):
                `temperature` and `top_p`, if they differ from the trainer's.

        Returns:
            `list[RolloutRow]`: all rows of the folder.
        """
        args, prm_format = self.trainer.args, self.trainer.scorer.prm_format
        self.trainer._check_weights()  # sampling from non-finite weights fails without a useful message
        with self.policy.sampler(**settings) as sampler:
            rollouts = collect_rollouts(
                questions,
                sampler,
                path,
                num_solutions=num_solutions,
                num_continuations=num_continuations,
                splitter=prm_format.splitter,
                steps_of=prm_format.steps_of,
                grading=None if questions[0].answer is None else args.grading,
                answer_pattern=args.answer_pattern,
                reasoning=args.reasoning,
                stop=args.stop,
                seed=seed,
                chunk_size=args.chunk_size,
                store_token_ids=True,
                show_progress=not args.disable_tqdm,
            )
        return list(rollouts)

    def accuracy(self, path: Path, questions: list[Question], prefix: str) -> dict[str, float]:
        """Metrics of new samples at temperature 1, with `num_generations_eval` samples per question."""
        args = self.trainer.args
        seed = round_seed(args.seed, 0, "evaluation")
        rows = self.sample(path, questions, args.num_generations_eval, seed, temperature=1.0, top_p=1.0)
        return accuracy_metrics(rows, prefix)
