"""Step scores become an answer: best-of-N, votes, and intervals for both."""

from typing import TYPE_CHECKING

from .._lazy import lazy_exports


if TYPE_CHECKING:
    from .best_of_n import best_of_n, best_of_n_per_question, pass_at_n, pass_at_n_per_question
    from .bootstrap import bootstrap_interval, paired_bootstrap_interval
    from .curves import score_rollouts, selection_curves
    from .guided_search import guided_search
    from .question_search import GuidedResult, GuidedSolution
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
        "best_of_n": ["best_of_n", "best_of_n_per_question", "pass_at_n", "pass_at_n_per_question"],
        "bootstrap": ["bootstrap_interval", "paired_bootstrap_interval"],
        "curves": ["score_rollouts", "selection_curves"],
        "guided_search": ["guided_search"],
        "question_search": ["GuidedResult", "GuidedSolution"],
        "voting": [
            "group_answers",
            "majority_at_n",
            "majority_at_n_per_question",
            "weighted_majority_at_n",
            "weighted_majority_at_n_per_question",
        ],
    },
)
