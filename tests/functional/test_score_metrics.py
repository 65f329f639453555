"""Brier score, calibration error and AUC against hand-worked values and naive loops in plain Python."""

import math

import pytest
import torch

from erprm_trl.functional.score_metrics import (
    auc,
    auc_within_groups,
    brier_decomposition,
    brier_score,
    calibration_bins,
    expected_calibration_error,
)


def naive_auc_within_groups(scores, positive, groups):
    """Every pair of a positive and a negative of one group, in O(n^2)."""
    wins, pairs = 0.0, 0
    for score, is_positive, group in zip(scores, positive, groups, strict=True):
        for other_score, other_positive, other_group in zip(scores, positive, groups, strict=True):
            if is_positive and not other_positive and group == other_group:
                pairs += 1
                wins += 1.0 if score > other_score else 0.5 if score == other_score else 0.0
    return wins / pairs if pairs else math.nan


def naive_calibration_error(scores, labels, num_bins):
    error = 0.0
    for b in range(num_bins):
        members = [
            (s, y)
            for s, y in zip(scores, labels, strict=True)
            if b / num_bins <= s < (b + 1) / num_bins or (b == num_bins - 1 and s == 1.0)
        ]
        if members:
            mean_score = sum(s for s, _ in members) / len(members)
            mean_label = sum(y for _, y in members) / len(members)
            error += len(members) / len(scores) * abs(mean_score - mean_label)
    return error


def test_brier_score_worked_by_hand():
    # (0.5^2 + 0.2^2 + 0^2) / 3 = 0.29 / 3
    scores, labels = torch.tensor([[0.5, 0.8, 0.3], [1.0, 1.0, 0.3]], dtype=torch.float64)
    assert brier_score(scores, labels).item() == pytest.approx(0.29 / 3, abs=1e-15)


def test_brier_score_limits():
    labels = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert brier_score(labels, labels).item() == 0.0
    constant = brier_score(labels.mean().expand(50), labels)
    assert constant.item() == pytest.approx(labels.var(correction=0).item(), abs=1e-15)
    assert brier_score(torch.ones(3, 2), torch.zeros(3, 2, dtype=torch.bool)).item() == 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_inputs_are_not_averaged_in_low_precision(dtype):
    # 4096 equal terms of 0.25^2 and a last term of 0: a running sum in bfloat16 would stall long before.
    scores = torch.full((4097,), 0.25, dtype=dtype)
    scores[-1] = 0.0
    labels = torch.zeros(4097, dtype=dtype)
    for metric, expected in ((brier_score, 4096 * 0.0625 / 4097), (expected_calibration_error, 1024 / 4097)):
        assert metric(scores, labels).dtype == torch.float64
        assert metric(scores, labels).item() == pytest.approx(expected, abs=1e-14)


def test_calibration_error_worked_by_hand():
    # Two bins. [0, .5): scores .1, .3 (mean .2), labels 0, 1 (mean .5): gap .3, share 2/5.
    # [.5, 1]: scores .5, .9, 1. (mean .8), labels 1, 1, 1: gap .2, share 3/5. Sum .12 + .12 = .24.
    scores = torch.tensor([0.1, 0.5, 0.3, 0.9, 1.0], dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 1, 1])
    assert expected_calibration_error(scores, labels, num_bins=2).item() == pytest.approx(0.24, abs=1e-15)


@pytest.mark.parametrize("num_bins", [1, 3, 10, 100])
def test_calibration_error_against_a_loop(num_bins):
    generator = torch.Generator().manual_seed(num_bins)
    # Hundredths, so that many scores are exactly on the edges, including 0 and 1.
    scores = torch.randint(0, 101, (400,), generator=generator).double() / 100
    labels = torch.rand(400, generator=generator, dtype=torch.float64)
    expected = naive_calibration_error(scores.tolist(), labels.tolist(), num_bins)
    assert expected_calibration_error(scores, labels, num_bins).item() == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_scores_on_an_edge_fall_in_the_upper_bin_in_every_dtype(dtype):
    # Bin k starts at 0.1 k, so both scores are in bin k, where their gaps of +0.01 and -0.01 cancel.
    for k in range(1, 10):
        scores = torch.tensor([k / 10, k / 10 + 0.05], dtype=dtype)
        labels = scores.double() + torch.tensor([0.01, -0.01])
        assert expected_calibration_error(scores, labels).item() == pytest.approx(0.0, abs=1e-9)
        # A score below the edge is in the previous bin, and the two gaps of 0.01 no longer cancel.
        scores = torch.tensor([k / 10 - 0.05, k / 10], dtype=dtype)
        labels = scores.double() + torch.tensor([0.01, -0.01])
        assert expected_calibration_error(scores, labels).item() == pytest.approx(0.01, abs=1e-9)


def test_calibration_error_limits():
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.rand(2, 300, generator=generator, dtype=torch.float64)
    assert expected_calibration_error(scores, scores).item() == 0.0
    one_bin = (scores.mean() - labels.mean()).abs().item()
    assert expected_calibration_error(scores, labels, num_bins=1).item() == pytest.approx(one_bin, abs=1e-15)
    constant = expected_calibration_error(labels.mean().expand(300), labels)
    assert constant.item() == pytest.approx(0.0, abs=1e-14)
    # By the triangle inequality, finer nested bins never lower the error.
    errors = [expected_calibration_error(scores, labels, num_bins=2**k).item() for k in range(6)]
    assert all(coarse <= fine + 1e-14 for coarse, fine in zip(errors, errors[1:], strict=False))
    assert errors[0] < 0.5 * errors[-1]


def test_auc_worked_by_hand():
    # Positives .8 and .4, negatives .4 and .1. Pairs: .8>.4 1, .8>.1 1, .4=.4 1/2, .4>.1 1: 3.5 / 4.
    scores = torch.tensor([0.8, 0.4, 0.4, 0.1])
    assert auc(scores, torch.tensor([True, True, False, False])).item() == 3.5 / 4


def test_auc_within_groups_worked_by_hand():
    # Group 5: positive .2 beats negative .1: 1 of 1 pair. Group -3: positive .9 beats .7, loses to .95: 1 of 2.
    # Group 0: positives only: no pair. Pooled 2/3. Across groups, .2 would also have lost to .7 and .95.
    scores = torch.tensor([0.2, 0.9, 0.1, 0.7, 0.95, 0.3])
    positive = torch.tensor([1, 1, 0, 0, 0, 1])
    groups = torch.tensor([5, -3, 5, -3, -3, 0])
    assert auc_within_groups(scores, positive, groups).item() == 2 / 3


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("num_levels", [2, 6, 1000])
def test_auc_against_every_pair(seed, num_levels):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, num_levels, (60,), generator=generator).float()
    scores[:3] = torch.tensor([-torch.inf, torch.inf, -torch.inf])
    positive = torch.rand(60, generator=generator) < 0.4
    groups = torch.randint(-4, 4, (60,), generator=generator) * 2**32
    rows = scores.tolist(), positive.tolist()
    assert auc_within_groups(scores, positive, groups).item() == naive_auc_within_groups(*rows, groups.tolist())
    assert auc(scores, positive).item() == naive_auc_within_groups(*rows, [0] * 60)


def test_auc_limits():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 9, (80,), generator=generator).double()
    positive = torch.rand(80, generator=generator) < 0.5
    groups = torch.randint(0, 5, (80,), generator=generator)
    assert auc(torch.full((80,), 0.3), positive).item() == 0.5
    assert auc(positive.float(), positive).item() == 1.0
    assert auc(-scores, positive).item() == pytest.approx(1 - auc(scores, positive).item(), abs=1e-15)
    assert auc(scores, ~positive).item() == pytest.approx(1 - auc(scores, positive).item(), abs=1e-15)
    # Only the order matters, and within groups only the order inside the group.
    assert auc(torch.exp(scores) - 7, positive) == auc(scores, positive)
    within = auc_within_groups(scores, positive, groups)
    assert auc_within_groups(scores + 100 * groups, positive, groups) == within
    assert auc_within_groups(groups.float(), positive, groups).item() == 0.5
    assert auc_within_groups(scores, positive, torch.full((80,), 7)) == auc(scores, positive)
    shuffled = torch.randperm(80, generator=generator)
    assert auc_within_groups(scores[shuffled], positive[shuffled], groups[shuffled]) == within
    shaped = [values.reshape(8, 10) for values in (scores, positive, groups)]
    assert auc_within_groups(*shaped) == within


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int64])
def test_auc_counts_large_sets_exactly_in_every_dtype(dtype):
    # 20000 negatives at 0, 1 positive at 0 and 1 at 1: (0.5 + 1) / 2, though 20001 is no bfloat16 or float16 count.
    scores = torch.zeros(20002, dtype=dtype)
    positive = torch.zeros(20002, dtype=torch.bool)
    scores[0], positive[:2] = 1, True
    assert auc(scores, positive).item() == 0.75


def test_auc_is_nan_without_both_classes():
    scores = torch.tensor([0.1, 0.2])
    assert auc(scores, torch.tensor([True, True])).isnan()
    assert auc(scores, torch.tensor([False, False])).isnan()
    assert auc(scores[:0], torch.tensor([], dtype=torch.bool)).isnan()
    assert auc_within_groups(scores, torch.tensor([True, False]), torch.tensor([0, 1])).isnan()


@pytest.mark.parametrize("metric", [brier_score, expected_calibration_error])
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (torch.zeros(3), torch.zeros(2), r"`scores` has shape \(3,\) and `labels` \(2,\): expected the same shape"),
        (torch.zeros(0), torch.zeros(0), "not empty"),
        (torch.tensor([0.1, 1.5]), torch.zeros(2), "`scores` is 1.5 at flat index 1: expected probabilities"),
        (torch.tensor([0.1, torch.nan]), torch.zeros(2), "`scores` is nan at flat index 1"),
        (torch.zeros(2, 2), torch.tensor([[0, 1], [-100, 0]]), "`labels` is -100 at flat index 2"),
    ],
)
def test_errors_name_values_that_are_not_probabilities(metric, scores, labels, message):
    with pytest.raises(ValueError, match=message):
        metric(scores, labels)


TWO_SCORES, RIGHT_AND_WRONG = torch.tensor([0.1, 0.2]), torch.tensor([True, False])


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: auc(TWO_SCORES, RIGHT_AND_WRONG[:1]), r"\(2,\), \(1,\) and \(2,\): expected the same"),
        (lambda: auc(torch.tensor([0.1, torch.nan]), RIGHT_AND_WRONG), "`scores` is NaN at flat index 1"),
        (lambda: auc(TWO_SCORES, torch.tensor([0.3, 1.0])), "`positive` is 0.3 .*expected booleans"),
        (
            lambda: auc_within_groups(TWO_SCORES, RIGHT_AND_WRONG, torch.zeros(2)),
            "`groups` .*float32: expected integers",
        ),
        (lambda: expected_calibration_error(TWO_SCORES, TWO_SCORES, num_bins=0), "`num_bins` is 0: .*at least 1"),
    ],
)
def test_errors_name_inputs_that_cannot_be_ranked(measure, message):
    with pytest.raises(ValueError, match=message):
        measure()


def test_calibration_bins():
    scores, labels = torch.tensor([0.0, 0.2, 0.25, 1.0]), torch.tensor([0.5, 1.0, 0.0, 1.0])
    counts, mean_scores, mean_labels = calibration_bins(scores, labels, num_bins=4)
    assert counts.tolist() == [2, 1, 0, 1]
    assert mean_scores.tolist() == pytest.approx([0.1, 0.25, math.nan, 1.0], nan_ok=True)
    assert mean_labels.tolist() == pytest.approx([0.75, 0.0, math.nan, 1.0], nan_ok=True)
    scores, labels = torch.rand(500), torch.rand(500)
    counts, mean_scores, mean_labels = calibration_bins(scores, labels)
    error = (counts * (mean_scores - mean_labels).abs()).nansum() / counts.sum()
    assert error.item() == pytest.approx(expected_calibration_error(scores, labels).item(), abs=1e-12)
    with pytest.raises(ValueError, match="num_bins"):
        calibration_bins(scores, labels, 0)


def sum_of_parts(parts):
    return (
        parts["reliability"]
        - parts["resolution"]
        + parts["uncertainty"]
        + parts["within_bin_variance"]
        - parts["within_bin_covariance"]
    ).item()


def test_brier_parts_worked_by_hand():
    # Two bins. Scores .1, .3 (mean .2) with labels 0, 1 (mean .5); scores .5, .9 (mean .7) with labels 1, 1 (mean 1).
    # All labels: mean .75. Reliability (.3^2 + .3^2) / 2 = .09; resolution (.25^2 + .25^2) / 2 = .0625;
    # uncertainty .75 * .25 = .1875; within-bin variance (.1^2 + .2^2) / 2 = .025;
    # covariance 2 * (-.1 * -.5 + .1 * .5) / 4 = .05. Brier (.01 + .49 + .25 + .01) / 4 = .19.
    scores = torch.tensor([0.1, 0.5, 0.3, 0.9], dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 1])
    parts = {name: part.item() for name, part in brier_decomposition(scores, labels, num_bins=2).items()}
    assert parts == pytest.approx(
        {
            "reliability": 0.09,
            "resolution": 0.0625,
            "uncertainty": 0.1875,
            "within_bin_variance": 0.025,
            "within_bin_covariance": 0.05,
        },
        abs=1e-15,
    )
    assert brier_score(scores, labels).item() == pytest.approx(0.19, abs=1e-15)


@pytest.mark.parametrize("num_bins", [1, 2, 10, 1000])
@pytest.mark.parametrize("hard", [True, False])
def test_brier_parts_add_up(num_bins, hard):
    generator = torch.Generator().manual_seed(num_bins)
    scores, labels = torch.rand(2, 500, generator=generator)
    labels = (labels < scores) if hard else labels
    parts = brier_decomposition(scores, labels, num_bins)
    assert sum_of_parts(parts) == pytest.approx(brier_score(scores, labels).item(), abs=1e-14)
    assert all(part >= 0 for name, part in parts.items() if name != "within_bin_covariance")


def test_brier_parts_limits():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 10, (400,), generator=generator).double() / 10 + 0.05  # one value per bin
    labels = torch.rand(400, generator=generator) < scores
    parts = brier_decomposition(scores, labels)
    assert parts["within_bin_variance"].item() == pytest.approx(0.0, abs=1e-28)
    assert parts["within_bin_covariance"].item() == pytest.approx(0.0, abs=1e-14)
    mean = labels.double().mean().item()
    assert parts["uncertainty"].item() == pytest.approx(mean * (1 - mean), abs=1e-14)
    assert brier_decomposition(scores, labels, 1)["resolution"].item() == pytest.approx(0.0, abs=1e-28)
    perfect = brier_decomposition(scores, scores)
    assert perfect["reliability"].item() == pytest.approx(0.0, abs=1e-28)
    assert perfect["resolution"].item() == pytest.approx(perfect["uncertainty"].item(), abs=1e-14)
