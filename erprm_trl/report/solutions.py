"""Gathers the solutions of a run with the scores, labels and raw rewards of their steps, for the page.

A page has a limited size. [`choose_questions`] selects the questions that it shows.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..functional.aggregation import AGGREGATIONS
from ..io.counts import counted
from ..reasoning import answer_start
from ..reward_model.scoring.backend import ScoringBackend
from ..reward_model.scoring.scorer import StepScorer, solution_scores
from ..rollouts.dataset import RolloutDataset
from ..rollouts.records import RolloutRow
from ..rollouts.shards import shard_paths
from ..selection.curves import selection_curves
from ..steps import clean_steps
from .comparisons import CURVES, Comparison, first_source
from .rich_text import RichText
from .run_folder import RunFolder, shown_names


DIGITS = 4
StepScores = list[list[list[float]]]  # by question and solution; empty for a solution that was not scored
FOLD_FROM, FOLD_ENDS = 16, 4  # longer solutions show so many steps at each end, and fold the others


@dataclass
class Collection:
    """
    Solutions that were sampled together.

    Args:
        name (`str`):
            Title on the page.
        questions (`list[list[RolloutRow]]`):
            Rows grouped by question.
        splitter (`str`):
            Splitter of the solutions.
        scores (`dict[str, StepScores]`, *optional*):
            Step scores by name of a reward model.
        labels (`StepScores`, *optional*):
            Labels at the page's eta, `None` without continuations.
        path (`Path`, *optional*):
            Folder of the collection.
    """

    name: str
    questions: list[list[RolloutRow]]
    splitter: str
    scores: dict[str, StepScores] = field(default_factory=dict)
    labels: StepScores | None = None
    path: Path | None = None

    @property
    def num_solutions(self) -> int:
        """Number of solutions."""
        return sum(map(len, self.questions))

    def about(self) -> str:
        """The number of solutions and the share of right ones, in words."""
        graded = [row.is_right for rows_N in self.questions for row in rows_N if row.is_graded]
        right = f", {sum(graded) / len(graded):.1%} right" if graded else ""
        questions = counted(len(self.questions), "question")
        return f"{counted(self.num_solutions, 'solution')} of {questions}{right}"

    def fits(self, scores: Any) -> bool:
        """Whether each solution has as many scores as steps, or no scores."""
        try:
            return [len(scores_N) for scores_N in scores] == [len(rows_N) for rows_N in self.questions] and all(
                len(step_scores) in (0, len(row.steps))
                for scores_N, rows_N in zip(scores, self.questions, strict=True)
                for step_scores, row in zip(scores_N, rows_N, strict=True)
            )
        except TypeError:
            return False

    def to_json(
        self, chosen: Sequence[int], eta: float, rich: RichText | None = None, ranking: Sequence[str] = ()
    ) -> dict[str, Any]:
        """
        The chosen questions as the page's script reads them.

        Args:
            chosen (`Sequence[int]`):
                Positions of the questions.
            eta (`float`):
                Value of eta that the labels were computed at.
            rich ([`RichText`], *optional*):
                Collects the formulas of the page.
            ranking (`Sequence[str]`, *optional*):
                Names of reward models from best to worst. The page selects the first trained one.
        """
        rich = RichText() if rich is None else rich
        sources = dict(zip(shown_names(list(self.scores)), self.scores.values(), strict=True))
        kinds = ["model"] * len(sources)
        if self.labels is not None:
            sources[f"labels at eta = {eta:g}"] = self.labels
            kinds.append("label")
        questions = []
        for index in chosen:
            rows = self.questions[index]
            scores = [of_source[index] for of_source in sources.values()]
            questions.append(
                {
                    "index": rows[0].question_index,
                    "question": rich.text(rows[0].question),
                    "answer": rich.answer(rows[0].answer),
                    "rewards": _numbers(rows[0].question_rewards or []),
                    "solutions": [self._solution(row, rich) for row in rows],
                    "scores": [[_numbers(step_scores) for step_scores in scores_N] for scores_N in scores],
                    "aggregates": [
                        {method: _numbers(solution_scores(scores_N, method)) for method in AGGREGATIONS}
                        for scores_N in scores
                    ],
                }
            )
        return {
            "name": self.name,
            "sources": [{"name": name, "kind": kind} for name, kind in zip(sources, kinds, strict=True)],
            "first": first_source(list(self.scores), ranking),
            "numQuestions": len(self.questions),
            "numSolutions": self.num_solutions,
            "questions": questions,
        }

    def _solution(self, row: RolloutRow, rich: RichText) -> dict[str, Any]:
        num_thinking = num_thinking_steps(row.steps)
        return {
            "index": row.solution_index,
            "steps": rich.steps(clean_steps(row.steps, self.splitter)),
            "thinking": num_thinking,
            "fold": folded_steps(len(row.steps), num_thinking),
            "outcome": _number(row.outcome_reward),
            "prediction": rich.answer(row.prediction),
            "finished": row.finished,
            "unusable": row.unusable,
            "rewards": [_numbers(rewards_K) for rewards_K in row.prefix_rewards],
            "generated": row.prefix_generated,
        }


def num_thinking_steps(steps: Sequence[str]) -> int:
    """How many steps of a solution begin before its answer, 0 without `<think>` and `</think>`."""
    start = answer_start("".join(steps))
    if start is None:
        return len(steps)
    ends = itertools.accumulate(map(len, steps), initial=0)
    return sum(place < start for place in itertools.islice(ends, len(steps)))


def folded_steps(num_steps: int, num_thinking: int) -> list[int] | None:
    """The range of steps that a page folds: the thinking before an answer, or else the middle of a long solution."""
    if 1 < num_thinking < num_steps:
        return [0, num_thinking]
    return [FOLD_ENDS, num_steps - FOLD_ENDS] if num_steps > FOLD_FROM else None


def gather_collections(run: RunFolder, eta: float, keep_unscored: bool = False) -> list[Collection]:
    """
    Reads all collections in a run's folder that have scores or labels. If none has, reads the others.

    Args:
        run ([`RunFolder`]):
            The folder. Files that cannot be shown are noted there.
        eta (`float`):
            Value of eta for the labels.
        keep_unscored (`bool`, *optional*, defaults to `False`):
            Whether to return collections without scores and labels too.

    Returns:
        `list[Collection]`: outer folders before inner ones, and scored collections before others at the same depth.
    """
    by_path: dict[Path, Collection] = {}
    for folder in [*run.folders, *_linked(run)]:
        path = folder.resolve()
        if path not in by_path and (collection := _read_rollouts(run, folder, eta)):
            by_path[path] = collection
    collections = list(by_path.values())
    for folder, scores in run.files("step_scores.json"):
        # The files of this name that cache scores (for ProcessBench, for example) are by solution, not by model.
        if isinstance(scores, dict) and "files" not in scores:
            _assign(run, folder, scores, by_path)
    for folder in run.folders:
        _add_raft_scores(run, folder, by_path)
        _add_searched(run, folder, collections)
    kept = [collection for collection in collections if collection.scores or collection.labels or keep_unscored]
    for collection in collections:
        if kept and not any(collection is other for other in kept):
            count = counted(collection.num_solutions, "solution")
            run.notes.append(f"{collection.name}: skipped {count} without scores and labels.")
    return sorted(kept or collections, key=lambda collection: (collection.name.count("/"), not collection.scores))


def score_collections(
    collections: list[Collection], chosen: list[list[int]], scorers: Mapping[str, StepScorer | ScoringBackend]
) -> None:
    """Adds scores by more reward models, for the chosen questions only."""
    for collection, indices in zip(collections, chosen, strict=True):
        rows = [row for index in indices for row in collection.questions[index]]
        questions = [row.question for row in rows]
        steps = [clean_steps(row.steps, collection.splitter) for row in rows]
        for name, scorer in scorers.items():
            new = iter(StepScorer.of(scorer).score(questions, steps, skip_too_long=True))
            scores: StepScores = [[[] for _ in rows_N] for rows_N in collection.questions]
            for index in indices:
                scores[index] = [next(new) for _ in collection.questions[index]]
            collection.scores[name] = scores


def compare_collections(collections: Sequence[Collection]) -> list[Comparison]:
    """Compares the reward models of each collection of graded solutions, on the questions that all of them scored."""
    compared = []
    for collection in collections:
        questions = [
            index
            for index, rows_N in enumerate(collection.questions)
            if len(rows_N) > 1
            and all(row.is_graded for row in rows_N)
            and all(
                bool(step_scores) == bool(row.steps)
                for scores in collection.scores.values()
                for step_scores, row in zip(scores[index], rows_N, strict=True)
            )
        ]
        if collection.scores and questions:
            rows = [collection.questions[index] for index in questions]
            scores = {name: [scores[index] for index in questions] for name, scores in collection.scores.items()}
            ns = [2**power for power in range(min(map(len, rows)).bit_length())]
            curves = selection_curves(rows, scores, ns, num_subsets=1)  # the page does not show weighted votes
            compared.append(Comparison(collection.name, curves))
    return compared


def choose_questions(collections: list[Collection], most: int) -> list[list[int]]:
    """
    Selects questions of each collection, evenly spread over it, with at most `most` solutions in all. Each collection
    keeps at least one question. Small collections are shown whole, and the others share the rest equally.
    """
    chosen: list[list[int]] = [[] for _ in collections]
    order = sorted(range(len(collections)), key=lambda index: collections[index].num_solutions)
    for place, index in enumerate(order):
        sizes = [len(rows) for rows in collections[index].questions]
        chosen[index] = _spread(sizes, most // (len(order) - place))
        most -= sum(sizes[question] for question in chosen[index])
    return chosen


def _spread(sizes: list[int], most: int) -> list[int]:
    if sum(sizes) <= most:
        return list(range(len(sizes)))
    for count in range(min(len(sizes), max(1, most)), 0, -1):
        indices = [position * len(sizes) // count for position in range(count)]
        if sum(sizes[index] for index in indices) <= most:
            return indices
    return [0]


def _read_rollouts(run: RunFolder, folder: Path, eta: float) -> Collection | None:
    manifest = run.read(folder / "manifest.json") if shard_paths(folder) else None
    if not isinstance(manifest, dict) or "chunk_size" not in manifest.get("config", {}):
        return None
    try:
        rollouts = RolloutDataset(folder)
        if not rollouts.rows:
            run.note(folder, "skipped, because no chunk of rollouts is finished yet")
            return None
        questions = rollouts.solutions()
        labels = _labels(rollouts, questions, eta) if rollouts.settings.num_continuations else None
    except (ValueError, KeyError) as error:
        run.note(folder, "skipped, because its rollouts cannot be read", error)
        return None
    return Collection(run.name(folder), questions, rollouts.settings.splitter, labels=labels, path=folder)


def _labels(rollouts: RolloutDataset, questions: list[list[RolloutRow]], eta: float) -> StepScores | None:
    if not any(row.is_usable for rows_N in questions for row in rows_N):
        return None
    labels = iter(rollouts.labels(eta)["labels"])
    return [[list(next(labels)) if row.is_usable else [] for row in rows_N] for rows_N in questions]


def _linked(run: RunFolder) -> list[Path]:
    """Folders of samples that a comparison in another folder names."""
    links = []
    for name in CURVES:
        for folder, curves in run.files(name):
            if isinstance(curves, dict) and "samples" in curves:
                path = folder / curves["samples"]
                if path.is_dir():
                    links.append(path)
                else:
                    run.note(folder / name, "the folder of the compared samples no longer exists")
    return links


def _assign(run: RunFolder, folder: Path, scores: dict[str, StepScores], collections: dict[Path, Collection]) -> None:
    """Assigns the scores of a file to the solutions in its folder, else to the samples that its comparison names, else
    to the only collection with the same numbers of solutions and steps."""
    curves = next((content for name in CURVES if (content := run.read(folder / name))), {})
    linked = collections.get((folder / curves["samples"]).resolve()) if "samples" in curves else None
    first = collections.get(folder.resolve()) or linked
    candidates = [first] if first else collections.values()
    fitting = [collection for collection in candidates if all(map(collection.fits, scores.values()))]
    if len(fitting) == 1:
        fitting[0].scores |= scores
    else:
        reason = "several collections fit" if fitting else "no solutions in the folder fit"
        run.note(folder / "step_scores.json", f"skipped, because {reason} these scores")


def _add_raft_scores(run: RunFolder, folder: Path, collections: dict[Path, Collection]) -> None:
    collection = collections.get((folder / "samples").resolve())
    lines = run.lines(folder / "scores.jsonl")
    if collection is None or lines is None:
        return
    manifest = run.read(folder / "manifest.json") or {}
    scores = iter([line.get("step_scores") for line in lines])
    nested = [[next(scores, None) for _ in rows] for rows in collection.questions]
    if collection.fits(nested) and next(scores, None) is None:
        # A refreshed reward model is not that of the run's configuration.
        name = manifest.get("reward_model") or manifest.get("config", {}).get("reward_model", "reward model")
        collection.scores[str(name)] = nested
    else:
        run.note(folder / "scores.jsonl", "skipped, because the scores do not fit the samples")


def _add_searched(run: RunFolder, folder: Path, collections: list[Collection]) -> None:
    lines = run.lines(folder / "solutions.jsonl")
    if not lines or not all(isinstance(line, dict) and "tokens_generated" in line for line in lines):
        return
    questions, scores = [], []
    for question_index, line in enumerate(lines):
        questions.append(
            [
                RolloutRow(
                    chunk=0,
                    question_index=question_index,
                    solution_index=solution_index,
                    question=line["question"],
                    steps=solution["steps"],
                    outcome_reward=line["reward"] if solution_index == 0 else None,  # the first is the answer
                    finished=solution["finished"],
                )
                for solution_index, solution in enumerate(line["solutions"])
            ]
        )
        scores.append([solution["step_scores"] for solution in line["solutions"]])
    name = f"{run.name(folder)} (guided search)"
    collections.append(Collection(name, questions, "newline", scores={"its reward model": scores}, path=folder))


def _number(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None  # JSON has no non-finite numbers
    return int(value) if value == int(value) else round(float(value), DIGITS)


def _numbers(values: Sequence[float | None]) -> list[float | None]:
    return [_number(value) for value in values]
