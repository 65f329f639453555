"""Reads the comparisons of a run, and decides which of its reward models is the best trained one."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .run_folder import RunFolder


CURVES = ("best_of_n.json", "curves.json")
_NOT_TRAINED = re.compile(r"\b(?:not trained|untrained)\b", re.IGNORECASE)


class Comparison(NamedTuple):
    """The name of a comparison on the page, and its curves from [`~erprm_trl.selection.selection_curves`]."""

    name: str
    curves: dict[str, Any]


def comparisons(run: RunFolder) -> Iterator[Comparison]:
    """The comparisons that are written in a run's folder."""
    for file in CURVES:
        for folder, comparison in run.files(file):
            if isinstance(comparison, dict) and {"pass", "majority", "models"} <= set(comparison):
                yield Comparison(run.name(folder), _with_int_keys(comparison))


def is_trained(name: str) -> bool:
    """Whether the name of a reward model does not say that it is the untrained baseline."""
    return not _NOT_TRAINED.search(name)


def method_for(by_method: Mapping[str, Any], aggregation: str) -> Any:
    """The results of a reward model by an aggregation, or by its first one if it lacks that aggregation."""
    return by_method.get(aggregation) or next(iter(by_method.values()))


def ranked_models(curves: Mapping[str, Any], aggregation: str) -> list[str]:
    """
    Names of the reward models of a comparison: trained ones first, then by best-of-N at the largest N, then by the AUC
    within questions.
    """
    n = max(curves["pass"])

    def quality(name: str) -> tuple[bool, float, float]:
        result = method_for(curves["models"][name], aggregation)
        return is_trained(name), result["best_of_n"][n]["mean"], result["auc_within_questions"] or 0.0

    return sorted((name for name, results in curves["models"].items() if results), key=quality, reverse=True)


def first_source(names: Sequence[str], ranking: Sequence[str]) -> int:
    """
    Which reward model a page shows first.

    Args:
        names (`Sequence[str]`):
            Reward models that scored the solutions.
        ranking (`Sequence[str]`):
            Names from best to worst. Trained models without a place follow, then untrained ones.

    Returns:
        `int`: Position in `names`, 0 if there are none.
    """
    places = {name: place for place, name in reversed(list(enumerate(ranking)))}
    order = [(not is_trained(name), places.get(name, len(ranking)), index) for index, name in enumerate(names)]
    return min(order)[2] if order else 0


def _with_int_keys(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """JSON turns the numbers of samples into strings."""

    def curve(points: Mapping[str, Any]) -> dict[int, Any]:
        return {int(n): point for n, point in points.items()}

    models = {
        name: {method: {**result, "best_of_n": curve(result["best_of_n"])} for method, result in by_method.items()}
        for name, by_method in comparison["models"].items()
    }
    return {"pass": curve(comparison["pass"]), "majority": curve(comparison["majority"]), "models": models}
