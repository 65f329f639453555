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

    `questions` are rows of rollouts grouped by question, `steps` their cleaned steps likewise; `scores` are by name of
    a reward model, `labels` those at the page's eta, `None` without continuations.
    """

    name: str
    questions: list[list[dict[str, Any]]]
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
        graded = [
            row["outcome_reward"] for rows in self.questions for row in rows if row["outcome_reward"] is not None
        ]
        right = f", {sum(reward > 0.5 for reward in graded) / len(graded):.1%} right" if graded else ""
        return f"{self.num_solutions:,} solutions of {len(self.questions):,} questions{right}"

    def fits(self, scores: Any) -> bool:
        """Whether scores are those of these solutions: as many for each as it has steps, or none."""
        try:
            return [len(some) for some in scores] == [len(rows) for rows in self.questions] and all(
                len(one) in (0, len(row["steps"]))
                for some, rows in zip(scores, self.questions, strict=True)
                for one, row in zip(some, rows, strict=True)
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
                    "index": rows[0]["question_index"],
                    "question": rows[0]["question"],
                    "answer": rows[0]["answer"],
                    "rewards": _numbers(rows[0].get("question_rewards") or []),
                    "solutions": [self._solution(row) for row in rows],
                    "scores": [[_numbers(one) for one in of_question] for of_question in scores],
                    "aggregates": [
                        {method: _numbers(solution_scores(of_question, method)) for method in AGGREGATIONS}
                        for of_question in scores
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

    def _solution(self, row: dict[str, Any]) -> dict[str, Any]:
        return {
            "index": row["solution_index"],
            "steps": clean_steps(row["steps"], self.splitter),
            "outcome": _number(row["outcome_reward"]),
            "prediction": row["prediction"],
            "finished": row["finished"],
            "unusable": row.get("unusable"),
            "rewards": [_numbers(rewards) for rewards in row["prefix_rewards"]],
            "generated": row.get("prefix_generated"),
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
    found = {}
    for folder in [*run.folders, *_linked(run)]:
        path = folder.resolve()
        if path not in found and (collection := _read_rollouts(run, folder, eta)):
            found[path] = collection
    collections = list(found.values())
    for folder, scores in run.files("step_scores.json"):
        # ProcessBench's file of the same name has its scores by solution, not by model.
        if isinstance(scores, dict) and "files" not in scores:
            _assign(run, folder, scores, found)
    for folder in run.folders:
        _add_raft_scores(run, folder, found)
        _add_searched(run, folder, collections)
    told = [one for one in collections if one.scores or one.labels or keep_unscored]
    for one in collections:
        if told and one not in told:
            run.notes.append(f"{one.name}: {one.num_solutions:,} solutions without scores and labels, left out.")
    return sorted(told or collections, key=lambda one: (one.name.count("/"), not one.scores))


def score_collections(
    collections: list[Collection], chosen: list[list[int]], scorers: Mapping[str, StepScorer | ScoringBackend]
) -> None:
    """Adds the scores of further reward models, of the chosen questions alone."""
    for collection, indices in zip(collections, chosen, strict=True):
        rows = [row for index in indices for row in collection.questions[index]]
        questions = [row["question"] for row in rows]
        steps = [clean_steps(row["steps"], collection.splitter) for row in rows]
        for name, scorer in scorers.items():
            new = iter(StepScorer.of(scorer).score(questions, steps, skip_too_long=True))
            scores: StepScores = [[[] for _ in some] for some in collection.questions]
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
        labels = _labels(rollouts, questions, eta) if manifest["config"].get("num_continuations") else None
    except (ValueError, KeyError) as error:
        run.note(folder, "its rollouts cannot be read, left out", error)
        return None
    return Collection(run.name(folder), questions, manifest["config"]["splitter"], labels=labels, path=folder)


def _labels(rollouts: RolloutDataset, questions: list[list[dict]], eta: float) -> StepScores | None:
    if all(row["unusable"] for row in rollouts.rows):
        return None
    labels = iter(rollouts.labels(eta)["labels"])
    return [[[] if row["unusable"] else list(next(labels)) for row in rows] for rows in questions]


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


def _assign(run: RunFolder, folder: Path, scores: dict[str, StepScores], found: dict[Path, Collection]) -> None:
    """Gives a file's scores to the solutions in its folder, else to those that its comparison names, else to the only
    ones that have as many solutions and steps."""
    curves = next((content for name in CURVES if (content := run.read(folder / name))), {})
    linked = found.get((folder / curves["samples"]).resolve()) if "samples" in curves else None
    first = found.get(folder.resolve()) or linked
    fitting = [one for one in ([first] if first else found.values()) if all(map(one.fits, scores.values()))]
    if len(fitting) == 1:
        fitting[0].scores |= scores
    else:
        what = "several collections" if fitting else "no solutions in the folder"
        run.note(folder / "step_scores.json", f"left out, for {what} fit these scores")


def _add_raft_scores(run: RunFolder, folder: Path, found: dict[Path, Collection]) -> None:
    collection = found.get((folder / "samples").resolve())
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
    for index, line in enumerate(lines):
        questions.append(
            [
                {
                    "question_index": index,
                    "solution_index": number,
                    "question": line["question"],
                    "answer": None,
                    "steps": one["steps"],
                    "outcome_reward": line["reward"] if number == 0 else None,  # the first is the answer
                    "prediction": None,
                    "finished": one["finished"],
                    "prefix_rewards": [],
                }
                for number, one in enumerate(line["solutions"])
            ]
        )
        scores.append([one["step_scores"] for one in line["solutions"]])
    name = f"{run.name(folder)} (guided search)"
    collections.append(Collection(name, questions, "newline", scores={"its reward model": scores}, path=folder))


def _number(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None  # JSON has no other numbers
    return int(value) if value == int(value) else round(float(value), DIGITS)


def _numbers(values: Sequence[float | None]) -> list[float | None]:
    return [_number(value) for value in values]
