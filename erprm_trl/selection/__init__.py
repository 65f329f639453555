"""Step scores become an answer: best-of-N, votes, and intervals for both."""

from typing import TYPE_CHECKING

from .._lazy import lazy_exports


if TYPE_CHECKING:
    from .bootstrap import bootstrap_interval, paired_bootstrap_interval
    from .calibration import measure_calibration
    from .comparison import mcnemar, paired_differences, paired_test
    from .curves import score_rollouts, selection_curves
    from .guided_decoding import guided_search
    from .picks import best_of_n, best_of_n_per_question, pass_at_n, pass_at_n_per_question
    from .processbench import JudgedSolution, evaluate_processbench, hold_out, load_processbench
    from .processbench_figures import choose_threshold, first_error, processbench_metrics
    from .processbench_scores import score_judged
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
        "picks": ["best_of_n", "best_of_n_per_question", "pass_at_n", "pass_at_n_per_question"],
        "bootstrap": ["bootstrap_interval", "paired_bootstrap_interval"],
        "calibration": ["measure_calibration"],
        "comparison": ["mcnemar", "paired_differences", "paired_test"],
        "curves": ["score_rollouts", "selection_curves"],
        "guided_decoding": ["guided_search"],
        "processbench": ["JudgedSolution", "evaluate_processbench", "hold_out", "load_processbench"],
        "processbench_figures": ["choose_threshold", "first_error", "processbench_metrics"],
        "processbench_scores": ["score_judged"],
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
