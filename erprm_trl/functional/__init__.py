"""Pure tensor functions: the mathematics of the project, each written once. Imports torch only."""

from .advantages import (
    CREDITS,
    generalized_advantages,
    group_mean,
    group_step_advantages,
    place_at_step_ends,
    prefix_values,
    reward_to_go,
    spread_over_steps,
    step_rewards,
)
from .aggregation import AGGREGATIONS, aggregate
from .architecture import Architecture, count_lora_parameters, count_parameters
from .masked import explained_variance, masked_moments, masked_whiten
from .policy_losses import clipped_value_loss, kl_estimate
from .recalibration import fit_recalibration, recalibrate
from .score_metrics import (
    auc,
    auc_within_groups,
    brier_decomposition,
    brier_score,
    calibration_bins,
    expected_calibration_error,
)
from .soft_values import soft_value, soft_value_from_rate
from .step_losses import soft_step_cross_entropy, step_log_odds
from .training_memory import memory_per_gpu, state_bytes
from .value_errors import bootstrap_value_noise, implied_success_rate, squared_error_without_noise
from .value_uncertainty import (
    expected_change,
    fit_beta_prior,
    posterior_value,
    precision_weights,
    success_counts,
)


__all__ = [
    "AGGREGATIONS",
    "CREDITS",
    "Architecture",
    "aggregate",
    "auc",
    "auc_within_groups",
    "bootstrap_value_noise",
    "brier_decomposition",
    "brier_score",
    "calibration_bins",
    "clipped_value_loss",
    "count_lora_parameters",
    "count_parameters",
    "expected_calibration_error",
    "expected_change",
    "explained_variance",
    "fit_beta_prior",
    "fit_recalibration",
    "generalized_advantages",
    "group_mean",
    "group_step_advantages",
    "implied_success_rate",
    "kl_estimate",
    "masked_moments",
    "masked_whiten",
    "memory_per_gpu",
    "place_at_step_ends",
    "posterior_value",
    "precision_weights",
    "prefix_values",
    "recalibrate",
    "reward_to_go",
    "soft_step_cross_entropy",
    "soft_value",
    "soft_value_from_rate",
    "spread_over_steps",
    "squared_error_without_noise",
    "state_bytes",
    "step_log_odds",
    "step_rewards",
    "success_counts",
]
