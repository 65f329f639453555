"""Makes preference pairs from a collection: whole solutions of different quality, or different steps after one
prefix, in TRL's preference form."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..functional.aggregation import aggregate
from ..io.counts import counted
from ..reasoning import THINK_CLOSE
from ..reward_model import scoring
from ..rollouts.dataset import RolloutDataset
from ..rollouts.records import RolloutRow
from ..steps import clean_steps
from .pair_texts import PairTexts, suits_messages
from .solution_pairs import Pair, solution_pairs
from .step_pairs import StepValues, branching, step_pairs


if TYPE_CHECKING:
    from datasets import Dataset

    from ..reward_model.scoring import ScoringBackend, StepScorer

logger = logging.getLogger(__name__)

CHOICES = {"level": ("solution", "step"), "rank_by": ("reward", "score"), "completion": ("rest", "step")}


@dataclass
class PairCounts:
    """
    Counts of the questions, pairs and solutions of a collection.

    Attributes:
        questions (`int`): number of questions.
        questions_with_pairs (`int`): number of questions with at least one pair.
        pairs (`int`): number of pairs.
        branching_prefixes (`int`): number of prefixes after which solutions continue with different steps, including
            the bare question. Only for steps.
        branching_after_a_step (`int`): number of these prefixes that have at least one step.
        without_pair (`dict[str, int]`): number of questions without a pair, by reason.
        left_out (`dict[str, int]`): number of solutions, or of branching prefixes, that are in no pair, by reason.
            Solutions that only have no counterpart are not counted.
    """

    questions: int = 0
    questions_with_pairs: int = 0
    pairs: int = 0
    branching_prefixes: int = 0
    branching_after_a_step: int = 0
    without_pair: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def add_question(self, num_pairs: int, reason: str | None) -> None:
        """Counts a question."""
        self.questions += 1
        self.pairs += num_pairs
        if num_pairs:
            self.questions_with_pairs += 1
        else:
            self.without_pair[reason or "no_branch"] += 1

    def __str__(self) -> str:
        questions = f"{self.questions_with_pairs:,} of {counted(self.questions, 'question')}"
        parts = [f"{counted(self.pairs, 'pair')} from {questions}"]
        for name, counts in (("questions without a pair", self.without_pair), ("left out", self.left_out)):
            if counts:
                parts.append(f"{name}: " + ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items())))
        return "; ".join(parts)


def preference_pairs(
    rollouts: RolloutDataset | str | Path,
    level: str = "solution",
    *,
    score: "StepScorer | ScoringBackend | Sequence[Sequence[Sequence[float]]] | None" = None,
    aggregation: str | None = None,
    rank_by: str | None = None,
    eta: float = 0.0,
    min_margin: float = 0.0,
    num_std: float = 1.0,
    pairs_per_question: int | None = 1,
    completion: str = "rest",
    conversational: bool | None = None,
    tokenizer=None,
) -> "Dataset":
    """
    Makes preference pairs for [`~trl.DPOTrainer`] from the solutions of a collection.

    With `level="solution"`, the best solution to a question is paired with the worst, the second best with the second
    worst, and so on. With `level="step"`, a pair has a prefix that several solutions share, and two different steps
    after it. The better step is the one with the higher value, which is estimated from the continuations.

    The prompt is the one that the sampler gave to the policy. If the collection used a chat template, whole solutions
    are written as messages, to which the trainer applies the template. A prefix is inside the assistant's turn, which
    messages cannot express, so pairs of steps are written as rendered text. Solutions that were cut off at the token
    limit are left out, because the trainer would end them with an EOS token. Prompts that questions had of their own
    ([`~erprm_trl.rollouts.Question`]) are not stored in a collection, and are not used.

    Args:
        rollouts ([`~erprm_trl.rollouts.RolloutDataset`], `str` or `Path`):
            Collection, or its folder.
        level (`str`, *optional*, defaults to `"solution"`):
            `"solution"` or `"step"`.
        score ([`~erprm_trl.reward_model.StepScorer`], backend, path, Hub id, address or nested list, *optional*):
            Reward model, or step scores by question and solution from
            [`~erprm_trl.selection.score_rollouts`]. Steps are then compared by their scores instead of by the values
            from continuations, so that the collection needs none.
        aggregation (`str`, *optional*):
            `"min"`, `"last"`, `"product"` or `"mean"` of the step scores of a solution. Defaults to that of the reward
            model, or to `"min"` for a list.
        rank_by (`str`, *optional*):
            `"reward"` compares solutions by their graded reward, `"score"` by their score. Equal solutions are
            compared by the other one, and then by the order in which they were sampled. Defaults to `"score"` if there
            is one. Only for solutions.
        eta (`float`, *optional*, defaults to `0.0`):
            Eta of the values of steps. 0 compares success rates.
        min_margin (`float`, *optional*, defaults to `0.0`):
            Smallest difference of rewards, scores or values.
        num_std (`float`, *optional*, defaults to `1.0`):
            Smallest difference of the values of two steps in standard deviations. Values are posterior means, and the
            standard deviation is the noise that K continuations leave. 0 takes plain values, for any eta and any
            rewards. Not used with `score`.
        pairs_per_question (`int`, *optional*, defaults to `1`):
            Maximum number of pairs per question. `None` for no limit. Each solution is in one pair of solutions at
            most, and each prefix in one pair of steps.
        completion (`str`, *optional*, defaults to `"rest"`):
            Text of a pair of steps. `"rest"` is the whole rest of a solution with this step: the best one with the
            better step, the worst one with the worse step. Pairs whose rewards contradict the values are left out.
            `"step"` is the step alone. It needs [`~erprm_trl.policy.StepDPOTrainer`], because [`~trl.DPOTrainer`] adds
            an EOS token after the step.
        conversational (`bool`, *optional*):
            Whether to write messages. Defaults to `True` for whole solutions of a collection with a chat template.
            Solutions with `</think>` are written as text, because chat templates drop the thinking of messages. So are
            all solutions if the template writes anything between the sampler's prompt and an answer.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the policy. It is only used to render a chat template as text. Defaults to the tokenizer of
            the sampler's model.

    Returns:
        `datasets.Dataset`: rows with `prompt`, `chosen`, `rejected`, `score_chosen` and `score_rejected`. Prompts and
        completions are messages or text. There are also `chat_template_kwargs` if the sampler had some, and
        `chosen_ends` and `rejected_ends` with `completion="step"`.

    Raises:
        `ValueError`: if there is no pair (the message says why), if the solutions have no rewards or continuations and
            there is no `score`, if an argument is unknown, or if scores do not fit the solutions.

    Example:

    ```python
    >>> pairs = preference_pairs("outputs/samples", pairs_per_question=2)
    >>> trainer = trl.DPOTrainer("outputs/policy", train_dataset=pairs)
    ```
    """
    return find_pairs(
        rollouts,
        level,
        score=score,
        aggregation=aggregation,
        rank_by=rank_by,
        eta=eta,
        min_margin=min_margin,
        num_std=num_std,
        pairs_per_question=pairs_per_question,
        completion=completion,
        conversational=conversational,
        tokenizer=tokenizer,
    )[0]


def find_pairs(
    rollouts: RolloutDataset | str | Path,
    level: str = "solution",
    *,
    score: Any = None,
    aggregation: str | None = None,
    rank_by: str | None = None,
    eta: float = 0.0,
    min_margin: float = 0.0,
    num_std: float = 1.0,
    pairs_per_question: int | None = 1,
    completion: str = "rest",
    conversational: bool | None = None,
    tokenizer=None,
) -> "tuple[Dataset, PairCounts]":
    """Makes the dataset of [`preference_pairs`], and counts questions, pairs and solutions."""
    from datasets import Dataset

    rank_by = rank_by or ("reward" if score is None else "score")
    _check_choices(level=level, rank_by=rank_by, completion=completion)
    if not isinstance(rollouts, RolloutDataset):
        rollouts = RolloutDataset(rollouts)
    solutions = rollouts.solutions()
    if isinstance(score, (str, PathLike)):
        score = scoring.StepScorer.from_pretrained(score)
    step_scores = _step_scores(score, rollouts, solutions)
    _check_solutions(rollouts, solutions, level, rank_by, step_scores is not None)
    if level == "solution":
        if aggregation is None:
            aggregation = scoring.StepScorer.of(score).prm_format.aggregation if hasattr(score, "score") else "min"
        options = {"rank_by": rank_by, "min_margin": min_margin, "pairs_per_question": pairs_per_question}
        pairs, counts = _pairs_of_solutions(solutions, step_scores, aggregation, **options)
    else:
        options = {"min_margin": min_margin, "num_std": num_std, "pairs_per_question": pairs_per_question}
        shared = rollouts.settings.shares_continuations
        with_noise = num_std > 0 and step_scores is None
        values = StepValues(solutions, eta, with_noise=with_noise, shared=shared)
        pairs, counts = _pairs_of_steps(solutions, step_scores, values, completion=completion, **options)
    logger.info("%s: %s.", rollouts.path, counts)
    if not pairs:
        raise ValueError(
            f"{rollouts.path}: got no preference pair ({counts}), expected at least one. Collect more solutions per "
            "question, or lower min_margin and num_std."
        )
    if conversational is None:
        thinks = any(THINK_CLOSE in pair.chosen + pair.rejected for pair in pairs)
        conversational = level == "solution" and not thinks and suits_messages(rollouts.settings, tokenizer)
    if conversational and level == "step":
        raise ValueError(
            "conversational: got True with level='step', expected text, because a prefix is inside the assistant's "
            "turn. Leave conversational unset."
        )
    with_ends = level == "step" and completion == "step"
    texts = PairTexts(rollouts.settings, conversational=conversational, with_ends=with_ends, tokenizer=tokenizer)
    return Dataset.from_list([texts.row(pair) for pair in pairs]), counts


def _pairs_of_solutions(
    solutions: list[list[RolloutRow]], step_scores: Any, aggregation: str, **options: Any
) -> tuple[list[Pair], PairCounts]:
    pairs, counts = [], PairCounts()
    for index, rows in enumerate(solutions):
        scores = None
        if step_scores is not None:
            scores = [aggregate([steps], aggregation).item() if steps else None for steps in step_scores[index]]
        new, left_out, reason = solution_pairs(rows, scores, **options)
        counts.add_question(len(new), reason)
        counts.left_out += left_out
        pairs += new
    return pairs, counts


def _pairs_of_steps(
    solutions: list[list[RolloutRow]], step_scores: Any, values: StepValues, **options: Any
) -> tuple[list[Pair], PairCounts]:
    pairs, counts = [], PairCounts()
    for index, rows in enumerate(solutions):
        scores = None if step_scores is None else step_scores[index]
        branches_of = branching(rows, scores, shared=values.shared)
        new, reasons = step_pairs(branches_of, values, **options)
        counts.add_question(len(new), max(reasons, key=reasons.get, default=None))
        counts.left_out += reasons
        counts.branching_prefixes += len(branches_of)
        counts.branching_after_a_step += len(branches_of) - ("" in branches_of)
        pairs += new
    return pairs, counts


def _step_scores(score: Any, rollouts: RolloutDataset, solutions: list[list[RolloutRow]]):
    """Step scores by question and solution, empty for a solution that exceeds the model's context."""
    if score is None:
        return None
    rows = [row for question in solutions for row in question]
    if hasattr(score, "score"):
        steps = [clean_steps(row.steps, rollouts.settings.splitter) for row in rows]
        scorer = scoring.StepScorer.of(score)
        flat = iter(scorer.score([row.question for row in rows], steps, skip_too_long=True))
        return [[list(next(flat)) for _ in question] for question in solutions]
    if [len(question) for question in score] != [len(question) for question in solutions]:
        raise ValueError(
            f"score: got step scores of {sum(map(len, score))} solutions to {len(score)} questions, expected scores "
            f"of {len(rows)} solutions to {len(solutions)} questions, in the same order. Pass score_rollouts(scorer, "
            "rollouts), or the scorer."
        )
    for row, steps in zip(rows, (steps for question in score for steps in question), strict=True):
        if len(steps) not in (0, len(row.steps)):
            raise ValueError(
                f"score: got {len(steps)} scores for the {len(row.steps)} steps of {row.name}, expected one per step. "
                "Pass score_rollouts(scorer, rollouts), or the scorer."
            )
    return score


def _check_choices(**arguments: str) -> None:
    for name, value in arguments.items():
        if value not in CHOICES[name]:
            expected = " or ".join(map(repr, CHOICES[name]))
            raise ValueError(f"{name}: got {value!r}, expected {expected}. Pass one of these.")


def _check_solutions(
    rollouts: RolloutDataset, solutions: list[list[RolloutRow]], level: str, rank_by: str, has_scores: bool
) -> None:
    if rank_by == "score" and not has_scores:
        raise ValueError("rank_by: got 'score' without score, expected step scores. Pass a reward model as score=.")
    unusable = sum(bool(row.steps) and not row.is_usable for rows in solutions for row in rows)
    if level == "step" and unusable:
        logger.warning(
            "%s: %d solutions have a step without content, so they are in no pair of steps.", rollouts.path, unusable
        )
    needs_rewards = rank_by == "reward" if level == "solution" else not has_scores
    for row in (row for rows in solutions for row in rows):
        if needs_rewards and row.steps and not row.is_graded:
            raise ValueError(
                f"{rollouts.path}: {row.name} has no reward, expected graded solutions. Collect with reference "
                "answers, or pass a reward model as score=."
            )
        if level == "step" and not has_scores and row.lacks_continuations:
            raise ValueError(
                f"{rollouts.path}: {row.name} has {len(row.steps)} steps and rewards for {len(row.prefix_rewards)} "
                f"prefixes, expected rewards for {len(row.steps) - 1}. Collect with num_continuations >= 1, or pass a "
                "reward model as score=."
            )
