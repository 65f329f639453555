"""Pure tensor functions: the mathematics of the project, each written once. Imports torch only."""

from .aggregation import AGGREGATIONS, aggregate
from .score_metrics import auc, auc_within_groups, brier_score, expected_calibration_error
from .soft_values import soft_value, soft_value_from_rate
from .step_losses import soft_step_cross_entropy, step_log_odds


__all__ = [
    "AGGREGATIONS",
    "aggregate",
    "auc",
    "auc_within_groups",
    "brier_score",
    "expected_calibration_error",
    "soft_step_cross_entropy",
    "soft_value",
    "soft_value_from_rate",
    "step_log_odds",
]
