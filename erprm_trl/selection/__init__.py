"""Selects answers by step scores (best-of-N, weighted votes, guided search) and evaluates reward models."""

from typing import TYPE_CHECKING

from .._lazy import lazy_exports


if TYPE_CHECKING:
    from .best_of import best_of_n, best_of_n_per_question, pass_at_n, pass_at_n_per_question
    from .bootstrap import bootstrap_interval, paired_bootstrap_interval
    from .candidates import collect_candidates
    from .comparison import mcnemar, paired_differences, paired_test
    from .curves import score_rollouts, selection_curves
    from .evaluation import (
        JudgedSolution,
        choose_threshold,
        evaluate_processbench,
        first_error,
        hold_out,
        load_processbench,
        measure_calibration,
        processbench_metrics,
        score_judged,
        score_rows,
    )
    from .pairs import PairCounts, find_pairs, preference_pairs
    from .search import GuidedResult, GuidedSolution, guided_search
    from .voting import (
        group_answers,
        majority_at_n,
        majority_at_n_per_question,
        weighted_majority_at_n,
        weighted_majority_at_n_per_question,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "best_of": ["best_of_n", "best_of_n_per_question", "pass_at_n", "pass_at_n_per_question"],
        "bootstrap": ["bootstrap_interval", "paired_bootstrap_interval"],
        "candidates": ["collect_candidates"],
        "comparison": ["mcnemar", "paired_differences", "paired_test"],
        "curves": ["score_rollouts", "selection_curves"],
        "evaluation": [
            "JudgedSolution",
            "choose_threshold",
            "evaluate_processbench",
            "first_error",
            "hold_out",
            "load_processbench",
            "measure_calibration",
            "processbench_metrics",
            "score_judged",
            "score_rows",
        ],
        "pairs": ["PairCounts", "find_pairs", "preference_pairs"],
        "search": ["GuidedResult", "GuidedSolution", "guided_search"],
        "voting": [
            "group_answers",
            "majority_at_n",
            "majority_at_n_per_question",
            "weighted_majority_at_n",
            "weighted_majority_at_n_per_question",
        ],
    },
)
