"""The solutions of a run with all that is known of their steps: scores by every reward model, labels, raw rewards.
Also which of them a page of limited size shows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..functional.aggregation import AGGREGATIONS
from ..reward_model.scoring.backend import ScoringBackend
from ..reward_model.scoring.scorer import StepScorer, solution_scores
from ..rollouts.dataset import RolloutDataset
from ..rollouts.records import RolloutRow
from ..rollouts.shards import shard_paths
from ..steps import clean_steps
from .run_folder import RunFolder, shown_names


CURVES = ("best_of_n.json", "curves.json")
DIGITS = 4
StepScores = list[list[list[float]]]  # by question and solution; a solution that was not scored has none


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
            How the solutions were split.
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
        """How many there are in all."""
        return sum(map(len, self.questions))

    def about(self) -> str:
        """How many there are and how many are right, in words."""
        graded = [row.is_right for rows_N in self.questions for row in rows_N if row.is_graded]
        right = f", {sum(graded) / len(graded):.1%} right" if graded else ""
        return f"{self.num_solutions:,} solutions of {len(self.questions):,} questions{right}"

    def fits(self, scores: Any) -> bool:
        """Whether scores are those of these solutions: as many for each as it has steps, or none."""
        try:
            return [len(scores_N) for scores_N in scores] == [len(rows_N) for rows_N in self.questions] and all(
                len(step_scores) in (0, len(row.steps))
                for scores_N, rows_N in zip(scores, self.questions, strict=True)
                for step_scores, row in zip(scores_N, rows_N, strict=True)
            )
        except TypeError:
            return False

    def to_json(self, chosen: Sequence[int], eta: float) -> dict[str, Any]:
        """What the page's script reads, of the chosen questions."""
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
                    "question": rows[0].question,
                    "answer": rows[0].answer,
                    "rewards": _numbers(rows[0].question_rewards or []),
                    "solutions": [self._solution(row) for row in rows],
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
            "numQuestions": len(self.questions),
            "numSolutions": self.num_solutions,
            "questions": questions,
        }

    def _solution(self, row: RolloutRow) -> dict[str, Any]:
        return {
            "index": row.solution_index,
            "steps": clean_steps(row.steps, self.splitter),
            "outcome": _number(row.outcome_reward),
            "prediction": row.prediction,
            "finished": row.finished,
            "unusable": row.unusable,
            "rewards": [_numbers(rewards_K) for rewards_K in row.prefix_rewards],
            "generated": row.prefix_generated,
        }


def gather_collections(run: RunFolder, eta: float, keep_unscored: bool = False) -> list[Collection]:
    """
    All collections in a run's folder that have scores or labels; if none has, those without.

    Args:
        run ([`RunFolder`]):
            The folder. What cannot be shown is noted there.
        eta (`float`):
            Of the labels.
        keep_unscored (`bool`, *optional*, defaults to `False`):
            All collections, whatever they have.

    Returns:
        `list[Collection]`: outer folders before inner ones, among them scored ones first.
    """
    by_path: dict[Path, Collection] = {}
    for folder in [*run.folders, *_linked(run)]:
        path = folder.resolve()
        if path not in by_path and (collection := _read_rollouts(run, folder, eta)):
            by_path[path] = collection
    collections = list(by_path.values())
    for folder, scores in run.files("step_scores.json"):
        # ProcessBench's file of the same name has its scores by solution, not by model.
        if isinstance(scores, dict) and "files" not in scores:
            _assign(run, folder, scores, by_path)
    for folder in run.folders:
        _add_raft_scores(run, folder, by_path)
        _add_searched(run, folder, collections)
    kept = [collection for collection in collections if collection.scores or collection.labels or keep_unscored]
    for collection in collections:
        if kept and not any(collection is other for other in kept):
            count = f"{collection.num_solutions:,} solutions"
            run.notes.append(f"{collection.name}: {count} without scores and labels, left out.")
    return sorted(kept or collections, key=lambda collection: (collection.name.count("/"), not collection.scores))


def score_collections(
    collections: list[Collection], chosen: list[list[int]], scorers: Mapping[str, StepScorer | ScoringBackend]
) -> None:
    """Adds the scores of further reward models, of the chosen questions alone."""
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


def choose_questions(collections: list[Collection], most: int) -> list[list[int]]:
    """
    Which questions of each collection are shown: whole ones, evenly spread over it, with at most `most` solutions in
    all (one question of each at least). Small collections are whole; the others share what is left equally.
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
            run.note(folder, "no finished chunk of rollouts yet")
            return None
        questions = rollouts.solutions()
        labels = _labels(rollouts, questions, eta) if rollouts.settings.num_continuations else None
    except (ValueError, KeyError) as error:
        run.note(folder, "its rollouts cannot be read, left out", error)
        return None
    return Collection(run.name(folder), questions, rollouts.settings.splitter, labels=labels, path=folder)


def _labels(rollouts: RolloutDataset, questions: list[list[RolloutRow]], eta: float) -> StepScores | None:
    if not any(row.is_usable for rows_N in questions for row in rows_N):
        return None
    labels = iter(rollouts.labels(eta)["labels"])
    return [[list(next(labels)) if row.is_usable else [] for row in rows_N] for rows_N in questions]


def _linked(run: RunFolder) -> list[Path]:
    """Folders of samples that a comparison elsewhere names."""
    links = []
    for name in CURVES:
        for folder, curves in run.files(name):
            if isinstance(curves, dict) and "samples" in curves:
                path = folder / curves["samples"]
                if path.is_dir():
                    links.append(path)
                else:
                    run.note(folder / name, "the samples that it compares are no longer where they were")
    return links


def _assign(run: RunFolder, folder: Path, scores: dict[str, StepScores], collections: dict[Path, Collection]) -> None:
    """Gives a file's scores to the solutions in its folder, else to those that its comparison names, else to the only
    ones that have as many solutions and steps."""
    curves = next((content for name in CURVES if (content := run.read(folder / name))), {})
    linked = collections.get((folder / curves["samples"]).resolve()) if "samples" in curves else None
    first = collections.get(folder.resolve()) or linked
    candidates = [first] if first else collections.values()
    fitting = [collection for collection in candidates if all(map(collection.fits, scores.values()))]
    if len(fitting) == 1:
        fitting[0].scores |= scores
    else:
        what = "several collections" if fitting else "no solutions in the folder"
        run.note(folder / "step_scores.json", f"left out, for {what} fit these scores")


def _add_raft_scores(run: RunFolder, folder: Path, collections: dict[Path, Collection]) -> None:
    collection = collections.get((folder / "samples").resolve())
    lines = run.lines(folder / "scores.jsonl")
    if collection is None or lines is None:
        return
    manifest = run.read(folder / "manifest.json") or {}
    scores = iter([line.get("step_scores") for line in lines])
    nested = [[next(scores, None) for _ in rows] for rows in collection.questions]
    if collection.fits(nested) and next(scores, None) is None:
        collection.scores[str(manifest.get("config", {}).get("reward_model", "reward model"))] = nested
    else:
        run.note(folder / "scores.jsonl", "left out, for it does not fit the samples")


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
        return None  # JSON has no other numbers
    return int(value) if value == int(value) else round(float(value), DIGITS)


def _numbers(values: Sequence[float | None]) -> list[float | None]:
    return [_number(value) for value in values]
