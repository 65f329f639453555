"""The mathematics of the project as pure tensor functions. Each formula is written once. Imports torch only."""

from .._moved import moved_names
from .advantages import (
    CREDITS,
    center_wrong_solutions,
    generalized_advantages,
    group_mean,
    group_step_advantages,
    log_ratio_returns,
    place_at_step_ends,
    prefix_values,
    reward_to_go,
    spread_over_steps,
    step_rewards,
    subtract_initial_value,
)
from .aggregation import AGGREGATIONS, aggregate
from .implicit_rewards import implicit_reward, selected_log_probs, step_log_prob_sums
from .masked import explained_variance, masked_moments, masked_whiten
from .policy_losses import clipped_value_loss, kl_estimate
from .score_metrics import (
    auc,
    auc_within_groups,
    brier_decomposition,
    brier_score,
    calibration_bins,
    expected_calibration_error,
)
from .soft_values import implied_success_rate, soft_value, soft_value_from_rate, value_at_eta
from .step_losses import smoothed_labels, soft_step_cross_entropy, step_log_odds
from .value_noise import (
    bootstrap_value_noise,
    fit_recalibration,
    recalibrate,
    squared_error_without_noise,
)
from .value_posterior import (
    expected_change,
    fit_beta_prior,
    posterior_value,
    precision_weights,
    success_counts,
)


__all__ = [
    "AGGREGATIONS",
    "CREDITS",
    "aggregate",
    "auc",
    "auc_within_groups",
    "bootstrap_value_noise",
    "brier_decomposition",
    "brier_score",
    "calibration_bins",
    "clipped_value_loss",
    "expected_calibration_error",
    "expected_change",
    "explained_variance",
    "fit_beta_prior",
    "fit_recalibration",
    "generalized_advantages",
    "center_wrong_solutions",
    "group_mean",
    "group_step_advantages",
    "implicit_reward",
    "implied_success_rate",
    "kl_estimate",
    "log_ratio_returns",
    "masked_moments",
    "masked_whiten",
    "place_at_step_ends",
    "posterior_value",
    "precision_weights",
    "prefix_values",
    "recalibrate",
    "reward_to_go",
    "selected_log_probs",
    "soft_step_cross_entropy",
    "soft_value",
    "soft_value_from_rate",
    "spread_over_steps",
    "squared_error_without_noise",
    "step_log_odds",
    "step_log_prob_sums",
    "step_rewards",
    "subtract_initial_value",
    "success_counts",
    "value_at_eta",
]

__getattr__ = moved_names(__name__)  # for the memory estimates, which moved to `erprm_trl.memory`
