"""Metrics of scores as probabilities (Brier score, calibration error) and as a ranking (AUC, pooled or per question).

Pure tensor functions in float64 that treat their inputs as flat lists of scores. The caller selects the steps or
solutions, and leaves out padding.
"""

import torch


def brier_score(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Brier score: the mean squared error of predicted probabilities.

    `mean_i (scores_i - labels_i)^2`

    Args:
        scores (`torch.Tensor`):
            Probabilities in [0, 1], of any shape and dtype.
        labels (`torch.Tensor`):
            Soft or hard labels in [0, 1], of the same shape.

    Returns:
        `torch.Tensor`: float64 scalar in [0, 1].

    Limits: 0 if `scores == labels`, and `labels.var(correction=0)` for the constant score `labels.mean()`. If soft
    labels are estimates, their noise increases the Brier score.

    Source: Brier (1950), "Verification of forecasts expressed in terms of probability", halved for two classes.
    """
    _check_probabilities(scores, labels)
    return (scores.double() - labels.double()).square().mean()


def expected_calibration_error(scores: torch.Tensor, labels: torch.Tensor, num_bins: int = 10) -> torch.Tensor:
    """
    Expected calibration error: the gap between mean score and mean label, averaged over equal-width bins of the score.

    `sum_b (n_b / n) |mean_{i in b} scores_i - mean_{i in b} labels_i|`, where bin b contains the `n_b` scores with
    `b/B <= score < (b+1)/B`

    Args:
        scores (`torch.Tensor`):
            Probabilities in [0, 1], of any shape and dtype. A score of 1.0 is in the last bin.
        labels (`torch.Tensor`):
            Soft or hard labels in [0, 1], of the same shape.
        num_bins (`int`, *optional*, defaults to `10`):
            Number of bins, `B`.

    Returns:
        `torch.Tensor`: float64 scalar in [0, 1].

    Limits: one bin gives `|scores.mean() - labels.mean()|`. The constant score `labels.mean()` gives 0, so report a
    ranking metric in addition. The error is biased upwards if there are few scores per bin.

    Source: Guo et al. (2017), "On calibration of modern neural networks", eq. 3.
    """
    _check_probabilities(scores, labels)
    if num_bins < 1:
        raise ValueError(f"`num_bins` is {num_bins}: expected at least 1. Pass 10 or 15.")
    gaps = scores.double().flatten() - labels.double().flatten()
    gap_by_bin = torch.zeros(num_bins, dtype=torch.float64, device=scores.device)
    gap_by_bin = gap_by_bin.index_add(0, _score_bins(scores, num_bins), gaps)
    return gap_by_bin.abs().sum() / gaps.numel()


def calibration_bins(
    scores: torch.Tensor, labels: torch.Tensor, num_bins: int = 10
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Computes the bins of [`expected_calibration_error`], for a reliability diagram.

    Args:
        scores, labels, num_bins:
            See [`expected_calibration_error`].

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: the number of scores (int64), the mean score and the mean
        label (float64, NaN if the bin is empty) of each bin.

    Limits: the calibration error is `sum_b counts_b |mean_scores_b - mean_labels_b| / sum_b counts_b` over the bins
    that are not empty.
    """
    _check_probabilities(scores, labels)
    if num_bins < 1:
        raise ValueError(f"`num_bins` is {num_bins}: expected at least 1. Pass 10 or 15.")
    bins = _score_bins(scores, num_bins)
    counts = torch.bincount(bins, minlength=num_bins)
    sums = torch.zeros(2, num_bins, dtype=torch.float64, device=scores.device)
    both = torch.stack([scores.double().flatten(), labels.double().flatten()])
    return counts, *(sums.index_add(1, bins, both) / counts)


def brier_decomposition(scores: torch.Tensor, labels: torch.Tensor, num_bins: int = 10) -> dict[str, torch.Tensor]:
    """
    Decomposes the Brier score over the bins of [`expected_calibration_error`].

    `brier = reliability - resolution + uncertainty + within_bin_variance - within_bin_covariance`, where bin b has the
    share `w_b` of the scores, mean score `f_b` and mean label `y_b`, and `y` is the mean of all labels:

    `reliability = sum_b w_b (f_b - y_b)^2`, `resolution = sum_b w_b (y_b - y)^2`, `uncertainty = mean_i (y_i - y)^2`,
    `within_bin_variance = mean_i (f_i - f_b(i))^2`, `within_bin_covariance = 2 mean_i (f_i - f_b(i)) (y_i - y_b(i))`

    Args:
        scores, labels, num_bins:
            See [`expected_calibration_error`].

    Returns:
        `dict[str, torch.Tensor]`: the five terms, float64 scalars. All except the covariance are at least 0.

    Limits: the sum is exact for every number of bins. If scores are constant within each bin, the two within-bin terms
    are 0, and Murphy's three terms remain. Hard labels with mean y have uncertainty `y (1 - y)`. With one bin, the
    resolution is 0.

    Source: Murphy (1973), "A new vector partition of the probability score", for the first three terms; Stephenson,
    Coelho & Jolliffe (2008), "Two extra components in the Brier score decomposition", for the other two. The formulas
    hold for soft labels too: only the uncertainty changes, to the variance of the labels.
    """
    counts, mean_scores, mean_labels = calibration_bins(scores, labels, num_bins)
    bins = _score_bins(scores, num_bins)
    scores, labels = scores.double().flatten(), labels.double().flatten()
    share, filled = counts.double() / counts.sum(), counts > 0
    score_off, label_off = scores - mean_scores[bins], labels - mean_labels[bins]

    def weighted(values_b: torch.Tensor) -> torch.Tensor:
        return (share * values_b.square())[filled].sum()

    return {
        "reliability": weighted(mean_scores - mean_labels),
        "resolution": weighted(mean_labels - labels.mean()),
        "uncertainty": (labels - labels.mean()).square().mean(),
        "within_bin_variance": score_off.square().mean(),
        "within_bin_covariance": 2 * (score_off * label_off).mean(),
    }


def _score_bins(scores: torch.Tensor, num_bins: int) -> torch.Tensor:
    edges = torch.arange(1, num_bins, dtype=torch.float64, device=scores.device) / num_bins
    if scores.is_floating_point():
        # The edges are rounded to the dtype of the scores, so that a score of 0.7 equals the edge 0.7.
        edges = edges.to(scores.dtype).double()
    return torch.bucketize(scores.double().flatten().contiguous(), edges, right=True)


def auc(scores: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """
    Area under the ROC curve: the probability that a random positive has a higher score than a random negative.

    `mean_{i positive, j negative} [scores_i > scores_j] + [scores_i = scores_j] / 2`

    Args:
        scores (`torch.Tensor`):
            Scores of any shape, any real numbers or infinite. Only their order matters.
        positive (`torch.Tensor`):
            Class of each score, of the same shape: booleans, or exactly 0 and 1.

    Returns:
        `torch.Tensor`: float64 scalar in [0, 1]. It is NaN if there is no positive or no negative.

    Limits: 1/2 for constant scores, and `1 - auc` for negated scores.

    Source: Hanley & McNeil (1982), "The meaning and use of the area under a ROC curve" (the Mann-Whitney statistic).
    """
    return auc_within_groups(scores, positive, torch.zeros_like(scores, dtype=torch.long))


def auc_within_groups(scores: torch.Tensor, positive: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """
    AUC over the pairs of the same group, pooled over groups. With one group per question, it measures how well scores
    rank the solutions of a question, independently of how they rank questions by difficulty.

    `sum_g sum_{i positive, j negative in g} ([scores_i > scores_j] + [scores_i = scores_j] / 2) / sum_g P_g N_g`,
    where group g has `P_g` positives and `N_g` negatives

    Args:
        scores (`torch.Tensor`):
            Scores of any shape, any real numbers or infinite. Only their order within a group matters.
        positive (`torch.Tensor`):
            Class of each score, of the same shape: booleans, or exactly 0 and 1.
        groups (`torch.Tensor`):
            Group of each score, of the same shape: integers of any value.

    Returns:
        `torch.Tensor`: float64 scalar in [0, 1]. It is NaN if no group has both a positive and a negative.

    Limits: a single group gives [`auc`]. A score that depends on the group only gives 1/2. The weight of a group is
    its number of pairs.

    Source: Hanley & McNeil (1982), with pairs summed over strata.
    """
    _check_ranking(scores, positive, groups)
    scores, is_positive, groups = scores.detach().flatten(), positive.flatten().bool(), groups.flatten()
    order = torch.argsort(scores, stable=True)
    order = order[torch.argsort(groups[order], stable=True)]
    scores, is_positive, groups = scores[order], is_positive[order], groups[order]

    opens_group = torch.ones_like(is_positive)
    opens_group[1:] = groups[1:] != groups[:-1]
    opens_tie = opens_group.clone()
    opens_tie[1:] |= scores[1:] != scores[:-1]
    # Counts and half counts are exact in float64 up to 2^53 pairs.
    negatives_in_tie, negatives_before_tie = _count_runs(~is_positive, opens_tie)
    negatives_in_group, negatives_before_group = _count_runs(~is_positive, opens_group)
    beaten = negatives_before_tie - negatives_before_group + negatives_in_tie / 2
    return beaten[is_positive].sum() / negatives_in_group[is_positive].sum()


def _count_runs(counted: torch.Tensor, opens_run: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For every element, the number of counted elements in its run, and the number before that run."""
    run = opens_run.cumsum(0) - 1
    inside = torch.zeros_like(run, dtype=torch.float64).index_add(0, run, counted.double())
    return inside[run], (inside.cumsum(0) - inside)[run]


def _check_probabilities(scores: torch.Tensor, labels: torch.Tensor) -> None:
    if scores.shape != labels.shape or not scores.numel():
        raise ValueError(
            f"`scores` has shape {tuple(scores.shape)} and `labels` {tuple(labels.shape)}: expected the same "
            "shape, and not empty. Select the scored positions of both with the same mask."
        )
    for subject, values in (("scores", scores), ("labels", labels)):
        inside = (values >= 0) & (values <= 1)  # False for NaN too
        if not inside.all():
            index = int((~inside).flatten().nonzero()[0])
            raise ValueError(
                f"`{subject}` is {values.flatten()[index].item():g} at flat index {index}: expected probabilities in "
                "[0, 1]. Pass logits through a sigmoid, and leave padding out."
            )


def _check_ranking(scores: torch.Tensor, positive: torch.Tensor, groups: torch.Tensor) -> None:
    if not scores.shape == positive.shape == groups.shape:
        raise ValueError(
            f"`scores`, `positive` and `groups` have shapes {tuple(scores.shape)}, {tuple(positive.shape)} and "
            f"{tuple(groups.shape)}: expected the same shape. Repeat the group's id for each of its scores."
        )
    if scores.isnan().any():
        index = int(scores.isnan().flatten().nonzero()[0])
        raise ValueError(
            f"`scores` is NaN at flat index {index}: expected numbers. Remove this entry from every argument."
        )
    soft = (positive != 0) & (positive != 1)
    if soft.any():
        index = int(soft.flatten().nonzero()[0])
        raise ValueError(
            f"`positive` is {positive.flatten()[index].item():g} at flat index {index}: expected booleans, or 0 and "
            "1. Threshold soft labels first."
        )
    if groups.is_floating_point():
        raise ValueError(f"`groups` has dtype {groups.dtype}: expected integers. Convert it with `.long()`.")
