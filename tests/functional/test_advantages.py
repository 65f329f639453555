"""Tests step rewards and advantages against hand-worked values, plain Python, TRL's own formula and identities."""

import itertools
import math
import random
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.trainer.utils import nanstd

from erprm_trl.functional import (
    AGGREGATIONS,
    CREDITS,
    advantages,
    aggregate,
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


F64 = torch.float64
ragged = st.lists(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=6), min_size=1, max_size=5)
AGGREGATE = {
    "min": min,
    "last": lambda steps: steps[-1],
    "product": math.prod,
    "mean": lambda steps: sum(steps) / len(steps),
}


def pad(rows, filler=math.nan, width=None, dtype=F64):
    """Pads rows of different lengths with `filler`. Returns the tensor and its mask."""
    width = max([len(row) for row in rows], default=0) if width is None else width
    values = torch.full((len(rows), width), filler, dtype=dtype)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        values[index, : len(row)] = torch.tensor(row, dtype=dtype)
        mask[index, : len(row)] = True
    return values, mask


def rows_of(values, mask):
    """The inverse of `pad`. Checks that the padding is 0."""
    assert (values[~mask] == 0).all()
    return [row[keep].tolist() for row, keep in zip(values, mask, strict=True)]


def random_rows(seed, count, shortest=0, longest=6):
    dice = random.Random(seed)
    return [[dice.random() for _ in range(dice.randint(shortest, longest))] for _ in range(count)]


def assert_rows(values, mask, expected, tolerance=1e-12):
    for got, row in zip(rows_of(values, mask), expected, strict=True):
        assert got == pytest.approx(row, abs=tolerance)


def naive_group_advantages(rows, group_size, gamma=1.0, eps=1e-4, scale="group"):
    """DeepSeekMath's process supervision (section 4.1.3), computed with Python's `statistics`."""

    def deviation(rewards):
        return statistics.stdev(rewards) if len(rewards) > 1 else 0.0

    all_rewards = [reward for row in rows for reward in row]
    result = []
    for start in range(0, len(rows), group_size):
        group = rows[start : start + group_size]
        pooled = [reward for row in group for reward in row]
        mean = statistics.fmean(pooled) if pooled else 0.0
        divisor = 1.0 if scale == "none" else deviation(all_rewards if scale == "batch" else pooled) + eps
        for row in group:
            normalized = [(reward - mean) / divisor for reward in row]
            length = len(row)
            to_go = [sum(gamma ** (j - i) * normalized[j] for j in range(i, length)) for i in range(length)]
            result.append(to_go)
    return result


def naive_gae(rewards, values, gamma, gae_lambda):
    """The advantages of one sequence as sums of discounted deltas, without recursion."""
    padded = [*values, 0.0]
    deltas = [rewards[t] + gamma * padded[t + 1] - values[t] for t in range(len(rewards))]
    return [
        sum((gamma * gae_lambda) ** (j - t) * deltas[j] for j in range(t, len(deltas))) for t in range(len(deltas))
    ]


# Prefix values and step rewards


def test_prefix_values_worked_by_hand():
    # Steps .8, .5, .9: minima .8 .5 .5; products .8 .40 .36; means .8 .65 2.2/3.
    scores, mask = pad([[0.8, 0.5, 0.9], [0.3]])
    expected = {
        "min": [0.8, 0.5, 0.5],
        "product": [0.8, 0.4, 0.36],
        "mean": [0.8, 0.65, 2.2 / 3],
        "last": [0.8, 0.5, 0.9],
    }
    for aggregation, row in expected.items():
        assert_rows(prefix_values(scores, mask, aggregation), mask, [row, [0.3]])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("filler", [math.nan, math.inf, -math.inf, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_prefix_values_aggregate_every_prefix(aggregation, filler, seed):
    rows = random_rows(seed, 8)
    scores, mask = pad(rows, filler)
    values = prefix_values(scores, mask, aggregation)
    naive = [[AGGREGATE[aggregation](row[: end + 1]) for end in range(len(row))] for row in rows]
    assert_rows(values, mask, naive)
    filled = mask.any(-1)
    last = values[filled].gather(1, mask[filled].sum(-1, keepdim=True) - 1).squeeze(-1)
    assert torch.allclose(last, aggregate(scores[filled], aggregation, mask[filled]), atol=1e-12)


def test_step_rewards_worked_by_hand():
    scores, mask = pad([[0.8, 0.5, 0.9], []])
    # With the question's value .6, differences are .8 - .6, .5 - .8, .9 - .5. With minima .8 .5 .5: .2, -.3, 0.
    assert_rows(step_rewards(scores, mask, "difference", initial_value=0.6), mask, [[0.2, -0.3, 0.4], []])
    by_min = step_rewards(
        scores, mask, "difference", aggregation="min", initial_value=torch.tensor([0.6, 9.0], dtype=F64)
    )
    assert_rows(by_min, mask, [[0.2, -0.3, 0.0], []])
    assert_rows(step_rewards(scores, mask, "sum"), mask, [[0.8, 0.5, 0.9], []])
    assert_rows(step_rewards(scores, mask, "outcome"), mask, [[0.0, 0.0, 0.9], []])
    assert_rows(step_rewards(scores, mask, "outcome", aggregation="product"), mask, [[0.0, 0.0, 0.36], []])
    # Scores T ln 2 and 0 have weights 1/2 and 1, normalised 1/3 and 2/3. A score of 0 has reward 0.
    scores, mask = pad([[0.1 * math.log(2), 0.0]])
    assert_rows(step_rewards(scores, mask, "min_form"), mask, [[0.1 * math.log(2) / 3, 0.0]])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_question_value_is_subtracted_from_the_first_step_only(aggregation):
    scores, mask = pad([[0.8, 0.5, 0.9], [], [0.3]])
    scores, start = scores.float(), torch.tensor([0.61, 0.52, 0.43])
    values = prefix_values(scores, mask, aggregation)
    expected = values - torch.cat([start[:, None], values[:, :-1]], dim=-1)
    expected = expected.masked_fill(~mask, 0.0)
    from_zero = step_rewards(scores, mask, "difference", aggregation=aggregation)
    assert torch.equal(subtract_initial_value(from_zero, mask, start), expected)
    assert torch.equal(
        step_rewards(scores, mask, "difference", aggregation=aggregation, initial_value=start), expected
    )
    # Masked rewards are not read.
    assert torch.equal(subtract_initial_value(from_zero.masked_fill(~mask, torch.nan), mask, start), expected)
    assert subtract_initial_value(torch.zeros(2, 0), torch.ones(2, 0), 0.5).shape == (2, 0)


@settings(deadline=None, max_examples=100)
@given(ragged, st.floats(-2, 2), st.sampled_from(AGGREGATIONS))
def test_differences_telescope(rows, start, aggregation):
    scores, mask = pad(rows)
    rewards = step_rewards(scores, mask, "difference", aggregation=aggregation, initial_value=start)
    assert torch.allclose(rewards.sum(-1), aggregate(scores, aggregation, mask) - start, atol=1e-12)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("seed", range(5))
def test_differences_from_the_group_mean_sum_to_zero(aggregation, seed):
    group_size = 4
    rows = [row if seed % 2 else row or [0.5] for row in random_rows(seed, 12)]  # odd seeds have rows without steps
    rows[0] = []
    scores, mask = pad(rows)
    ends = step_rewards(scores, mask, "outcome", aggregation=aggregation).sum(-1)
    start = group_mean(ends, mask.any(-1), group_size)
    rewards = step_rewards(scores, mask, "difference", aggregation=aggregation, initial_value=start)
    # The sum of v_L - v_0 over a group is n (mean of v_L) - n v_0 = 0 for any number of steps per solution.
    assert rewards.view(-1, group_size * scores.shape[1]).sum(-1).abs().max() < 1e-12


@settings(deadline=None, max_examples=100)
@given(ragged, st.floats(1e-2, 10))
def test_min_form_is_a_soft_minimum(rows, temperature):
    scores, mask = pad(rows)
    total = step_rewards(scores, mask, "min_form", temperature=temperature).sum(-1)
    lowest, mean = aggregate(scores, "min", mask), aggregate(scores, "mean", mask)
    assert (lowest - 1e-12 <= total).all() and (total <= mean + 1e-12).all()
    cold = step_rewards(scores, mask, "min_form", temperature=1e-9).sum(-1)
    assert torch.allclose(cold, lowest, atol=1e-7)
    hot = step_rewards(scores, mask, "min_form", temperature=1e9).sum(-1)
    assert torch.allclose(hot, mean, atol=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_min_form_against_plain_python(seed):
    rows = random_rows(seed, 8)
    scores, mask = pad(rows)
    for temperature in (0.03, 0.1, 1.0):
        expected = []
        for row in rows:
            weights = [math.exp(-score / temperature) for score in row]
            expected.append([weight / sum(weights) * s for weight, s in zip(weights, row, strict=True)])
        assert_rows(step_rewards(scores, mask, "min_form", temperature=temperature), mask, expected)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_credit_of_a_one_step_solution_is_its_score(aggregation):
    scores, mask = pad([[0.3], [0.9]])
    for credit in CREDITS:
        assert_rows(step_rewards(scores, mask, credit, aggregation=aggregation), mask, [[0.3], [0.9]])


@pytest.mark.parametrize("credit", CREDITS)
def test_padding_changes_no_reward(credit):
    rows = random_rows(1, 6)
    expected = rows_of(*[(step_rewards(*pad(rows), credit)), pad(rows)[1]])
    for filler in (math.nan, math.inf, -math.inf, 3.0):
        scores, mask = pad(rows, filler, width=9)
        assert_rows(step_rewards(scores, mask, credit), mask, expected, tolerance=1e-15)


@pytest.mark.parametrize("credit", CREDITS)
def test_no_steps_at_all(credit):
    scores, mask = pad([[], []], width=3)
    assert torch.equal(step_rewards(scores, mask, credit), torch.zeros(2, 3, dtype=F64))
    assert step_rewards(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool), credit).shape == (2, 0)


# Group-relative advantages


def test_group_mean_worked_by_hand():
    values, mask = torch.tensor([1.0, 4.0, math.nan, 6.0, 7.0, math.inf]), torch.tensor([1, 1, 0, 1, 0, 0]).bool()
    assert group_mean(values, mask, 2).tolist() == [2.5, 2.5, 6.0, 6.0, 0.0, 0.0]  # (1 + 4) / 2, 6 / 1, no values


def test_centering_of_wrong_solutions_worked_by_hand():
    # First group: the wrong rewards 1, 3 and 5 have mean 3, and the right row keeps 7. Second group: only a row
    # without steps is wrong. Padding may hold anything.
    rewards, mask = pad([[1.0, 3.0], [5.0], [7.0], [2.0], [], [4.0]], filler=math.nan)
    wrong = torch.tensor([True, True, False, False, True, False])
    centered = center_wrong_solutions(rewards, mask, wrong, 3)
    assert_rows(centered, mask, [[-2.0, 0.0], [2.0], [7.0], [2.0], [], [4.0]])
    assert torch.equal(centered[~mask], torch.zeros_like(centered[~mask]))


def test_group_advantages_worked_by_hand():
    # Rewards 1, 3 | 5: mean 3, squares 4 + 0 + 4, variance 8 / 2, deviation 2. Normalised -1, 0 | 1.
    # Sums from each step on: -1 + 0, 0 | 1. Without division: -2 + 0, 0 | 2.
    rewards, mask = pad([[1.0, 3.0], [5.0]])
    assert_rows(group_step_advantages(rewards, mask, 2, eps=0.0), mask, [[-1.0, 0.0], [1.0]])
    assert_rows(group_step_advantages(rewards, mask, 2, scale="none"), mask, [[-2.0, 0.0], [2.0]])
    assert_rows(group_step_advantages(rewards, mask, 2), mask, [[-2 / 2.0001, 0.0], [2 / 2.0001]])
    # Rewards 0, 1, 5 | 2: mean 2, centred -2, -1, 3 | 0. With gamma 1/2: 3; -1 + 3/2; -2 - 1/2 + 3/4 = -1.75.
    rewards, mask = pad([[0.0, 1.0, 5.0], [2.0]])
    halved = group_step_advantages(rewards, mask, 2, scale="none", gamma=0.5)
    assert_rows(halved, mask, [[-1.75, 0.5, 3.0], [0.0]])
    own = group_step_advantages(rewards, mask, 2, scale="none", gamma=0.0)
    assert_rows(own, mask, [[-2.0, -1.0, 3.0], [0.0]])


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("group_size", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", range(6))
def test_group_advantages_against_plain_python(scale, group_size, seed):
    rows = random_rows(seed, 12)
    rows[:group_size] = [[] for _ in range(group_size)] if seed % 2 else rows[:group_size]
    rewards, mask = pad(rows, filler=[math.nan, math.inf][seed % 2])
    for gamma in (1.0, 0.9, 0.0):
        got = group_step_advantages(rewards, mask, group_size, scale=scale, gamma=gamma)
        assert_rows(got, mask, naive_group_advantages(rows, group_size, gamma, scale=scale), tolerance=1e-9)


@pytest.mark.parametrize("group_size", [2, 4])
@pytest.mark.parametrize("with_missing", [False, True])
def test_one_step_gives_trls_outcome_advantage(group_size, with_missing):
    rewards = torch.rand(8, dtype=F64, generator=torch.Generator().manual_seed(group_size))
    if with_missing:
        rewards[[0, 1, 5]] = math.nan  # groups of two: a group without rewards, and a group with a single reward
    grouped = rewards.view(-1, group_size)
    expected = (grouped - grouped.nanmean(1, keepdim=True)) / (nanstd(grouped, dim=1, keepdim=True) + 1e-4)
    expected = expected.nan_to_num(nan=0.0).view(-1)
    got = group_step_advantages(rewards[:, None], ~rewards.isnan()[:, None], group_size).squeeze(-1)
    assert torch.allclose(got, expected, atol=1e-12)
    of_batch = (grouped - grouped.nanmean(1, keepdim=True)) / (nanstd(rewards) + 1e-4)
    got = group_step_advantages(rewards[:, None], ~rewards.isnan()[:, None], group_size, scale="batch").squeeze(-1)
    assert torch.allclose(got, of_batch.nan_to_num(nan=0.0).view(-1), atol=1e-12)


def test_outcome_supervision_is_a_mask_with_one_position_per_row():
    # Outcomes .2, .6 | 1, 1 are on the last step of solutions with 3, 1, 2 and 1 steps. The group means are .4 and 1.
    scores, mask = pad([[0.5, 0.1, 0.2], [0.6], [0.7, 1.0], [1.0]])
    rewards = step_rewards(scores, mask, "outcome")
    last = torch.arange(3) == mask.sum(-1, keepdim=True) - 1
    outcome = group_step_advantages(rewards, last, 2, scale="none").sum(-1)
    assert outcome.tolist() == pytest.approx([-0.2, 0.2, 0.0, 0.0])


@pytest.mark.parametrize("seed", range(4))
def test_sum_credit_is_deepseekmaths_process_supervision_per_token(seed):
    dice = random.Random(seed)
    rows = random_rows(seed, 8, shortest=1)
    ends = [sorted(dice.sample(range(20), len(row))) for row in rows]
    scores, mask = pad(rows)
    step_ends, _ = pad(ends, filler=7, dtype=torch.long)
    advantages = group_step_advantages(step_rewards(scores, mask, "sum"), mask, 4, eps=0.0)
    tokens = spread_over_steps(advantages, step_ends, mask, 20)
    for start in (0, 4):
        pooled = [score for row in rows[start : start + 4] for score in row]
        mean, deviation = statistics.fmean(pooled), statistics.stdev(pooled)
        for index in range(start, start + 4):
            for t in range(20):  # A_t = sum of the normalised rewards of the steps that end at or after t
                pairs = zip(rows[index], ends[index], strict=True)
                expected = sum((score - mean) / deviation for score, end in pairs if end >= t)
                assert tokens[index, t].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_padding_and_order_of_rows_and_groups_change_nothing(scale):
    rows = random_rows(3, 12)
    rewards, mask = pad(rows, 5.0)
    expected = group_step_advantages(rewards, mask, 4, scale=scale, gamma=0.8)
    wide, wide_mask = pad(rows, -math.inf, width=11)
    padded = group_step_advantages(wide, wide_mask, 4, scale=scale, gamma=0.8)
    assert torch.allclose(padded[:, : rewards.shape[1]], expected, atol=1e-12)
    assert not padded[:, rewards.shape[1] :].any()
    within = torch.tensor([2, 0, 3, 1, 4, 7, 6, 5, 11, 8, 10, 9])
    of_groups = torch.tensor([8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7])
    for order in (within, of_groups):
        moved = group_step_advantages(rewards[order], mask[order], 4, scale=scale, gamma=0.8)
        assert torch.allclose(moved, expected[order], atol=1e-12)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_group_without_steps_gets_zeros_and_does_not_affect_the_others(scale):
    rows = random_rows(5, 4, shortest=1)
    alone = group_step_advantages(*pad(rows), 2, scale=scale)
    rewards, mask = pad([[], [], *rows])
    advantages = group_step_advantages(rewards, mask, 2, scale=scale)
    assert not advantages[:2].any() and torch.allclose(advantages[2:], alone, atol=1e-12)
    assert not group_step_advantages(rewards[:2], mask[:2], 2, scale=scale).any()
    assert group_step_advantages(rewards[:, :0], mask[:, :0], 2, scale=scale).shape == (6, 0)  # no steps anywhere


def test_equal_rewards_give_zero_advantages():
    rewards, mask = pad([[0.5, 0.5, 0.5], [0.5]])
    assert group_step_advantages(rewards, mask, 2).abs().max() < 1e-12


def test_views_are_accepted():
    rewards, mask = pad(random_rows(9, 4, longest=5), 0.0, width=8)
    expected = group_step_advantages(rewards[:, :5].contiguous(), mask[:, :5].contiguous(), 2)
    assert torch.equal(group_step_advantages(rewards[:, :5], mask[:, :5], 2), expected)
    transposed = rewards.T.contiguous().T, mask.T.contiguous().T
    assert torch.equal(group_step_advantages(*transposed, 2)[:, :5], expected)


# Rewards to go and generalised advantages


def test_reward_to_go_includes_the_step_itself():
    # 1 + 2/2 + 4/4 = 3; 2 + 4/2 = 4; 4. Masked positions are skipped, so gaps between rewards do not change the sums.
    together, everywhere = torch.tensor([[1.0, 2.0, 4.0]]), torch.ones(1, 3, dtype=torch.bool)
    assert reward_to_go(together, everywhere, 0.5).tolist() == [[3.0, 4.0, 4.0]]
    apart = torch.tensor([[math.nan, 1.0, math.inf, 2.0, 9.0, 4.0, math.nan]])
    mask = torch.tensor([[0, 1, 0, 1, 0, 1, 0]]).bool()
    assert reward_to_go(apart, mask, 0.5).tolist() == [[0.0, 3.0, 0.0, 4.0, 0.0, 4.0, 0.0]]
    assert reward_to_go(together, everywhere, 0.0).tolist() == [[1.0, 2.0, 4.0]]


def test_generalized_advantages_worked_by_hand():
    # gamma = lambda = .5. delta_1 = 2 - .4 = 1.6; delta_0 = 1 + .5 * .4 - .6 = .6. A_1 = 1.6; A_0 = .6 + .25 * 1.6 =
    # 1.
    rewards, values = torch.tensor([[1.0, 2.0]], dtype=F64), torch.tensor([[0.6, 0.4]], dtype=F64)
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert generalized_advantages(rewards, values, mask, 0.5, 0.5)[0].tolist() == pytest.approx([1.0, 1.6])


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.8), (0.99, 0.0), (1.0, 1.0), (0.0, 0.5)])
@pytest.mark.parametrize("seed", range(5))
def test_generalized_advantages_on_a_mask_with_holes_against_plain_python(gamma, gae_lambda, seed):
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 7, 9, dtype=F64, generator=generator)
    mask = torch.rand(7, 9, generator=generator) < 0.6
    mask[0] = False
    rewards[~mask], values[~mask] = math.nan, math.inf
    got = generalized_advantages(rewards, values, mask, gamma, gae_lambda)
    compact = [
        naive_gae(rewards[i][mask[i]].tolist(), values[i][mask[i]].tolist(), gamma, gae_lambda) for i in range(7)
    ]
    assert_rows(got, mask, compact)


def loop_over_tokens(rewards, values, mask, gamma, gae_lambda):
    """The recursion, one token at a time."""
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[-1])):
        here = mask[:, t]
        advantage = rewards[:, t] + gamma * next_value - values[:, t] + gamma * gae_lambda * next_advantage
        next_value = torch.where(here, values[:, t], next_value)
        next_advantage = torch.where(here, advantage, next_advantage)
        advantages[:, t] = torch.where(here, advantage, 0.0)
    return advantages


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 64, 257, 2000])
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 1.0), (1.0, 0.95), (0.99, 0.9), (0.5, 0.0), (0.0, 1.0)])
def test_generalized_advantages_equal_a_loop_over_tokens(gamma, gae_lambda, num_tokens):
    generator = torch.Generator().manual_seed(num_tokens)
    rewards, values = torch.randn(2, 3, num_tokens, generator=generator)
    mask = torch.rand(3, num_tokens, generator=generator) < 0.7
    mask[0] = True
    mask[1, num_tokens // 2 :] = False
    expected = loop_over_tokens(rewards.double(), values.double(), mask, gamma, gae_lambda)
    exact = generalized_advantages(rewards.double(), values.double(), mask, gamma, gae_lambda)
    torch.testing.assert_close(exact, expected, atol=1e-11, rtol=1e-11)
    rounded = generalized_advantages(rewards, values, mask, gamma, gae_lambda)
    assert rounded.dtype == torch.float32
    assert (rounded - expected).abs().max() <= 1e-6 * max(1.0, expected.abs().max().item())


def test_long_rows_and_small_factors_stay_finite():
    """Powers of gamma times lambda underflow after some tokens, and a quotient of them would overflow."""
    rewards = torch.ones(2, 16384)
    mask = torch.ones_like(rewards, dtype=torch.bool)
    mask[1, 1::2] = False
    for gamma, gae_lambda in ((0.01, 0.01), (0.9, 0.95), (0.999, 1.0), (1.0, 1.0)):
        factor = gamma * gae_lambda
        got = generalized_advantages(rewards, torch.zeros_like(rewards), mask, gamma, gae_lambda)
        for row, count in enumerate((16384, 8192)):
            closed = float(count) if factor == 1 else (1 - factor**count) / (1 - factor)
            assert got[row, 0].item() == pytest.approx(closed, rel=1e-6)
        assert got.isfinite().all() and (got[1, 1::2] == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_limits_of_generalized_advantages(seed):
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 4, 8, dtype=F64, generator=generator)
    mask = torch.ones(4, 8, dtype=torch.bool)
    # gamma = lambda = 1: the return at t is the sum of the rewards from t on.
    whole = generalized_advantages(rewards, values, mask, 1.0, 1.0)
    assert torch.allclose(whole + values, rewards.flip(1).cumsum(1).flip(1), atol=1e-12)
    # lambda = 0: the advantage is a single delta.
    following = torch.cat([values[:, 1:], torch.zeros(4, 1, dtype=F64)], dim=1)
    single_delta = generalized_advantages(rewards, values, mask, 0.9, 0.0)
    assert torch.allclose(single_delta, rewards + 0.9 * following - values, atol=1e-12)
    # Values of 0 and lambda = 1: the advantage is the reward to go.
    assert torch.equal(generalized_advantages(rewards, values * 0, mask, 0.9, 1.0), reward_to_go(rewards, mask, 0.9))
    empty = torch.zeros(3, 0)
    assert generalized_advantages(empty, empty, empty.bool()).shape == (3, 0)


# Steps on tokens


def test_placing_and_spreading_worked_by_hand():
    values, mask = pad([[2.0, 3.0], [5.0], []])
    ends, _ = pad([[1, 3], [0], []], filler=2, dtype=torch.long)
    placed = place_at_step_ends(values, ends, mask, 5)
    assert placed.tolist() == [[0, 2, 0, 3, 0], [5, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    spread = spread_over_steps(values, ends, mask, 5)
    assert spread.tolist() == [[2, 2, 3, 3, 0], [5, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    nothing = torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0, dtype=torch.bool)
    for function in (place_at_step_ends, spread_over_steps):
        assert torch.equal(function(*nothing, 3), torch.zeros(2, 3))


@pytest.mark.parametrize("filler", [-1, 0, 3, 10**6])
@pytest.mark.parametrize("seed", range(4))
def test_spreading_and_placing_against_plain_python(filler, seed):
    dice = random.Random(seed)
    rows = random_rows(seed, 8)
    ends = [sorted(dice.sample(range(12), len(row))) for row in rows]
    values, mask = pad(rows)
    step_ends, _ = pad(ends, filler=filler, dtype=torch.long)
    spread, placed = (f(values, step_ends, mask, 12) for f in (spread_over_steps, place_at_step_ends))
    for row, row_ends, got, at in zip(rows, ends, spread.tolist(), placed.tolist(), strict=True):
        owners = [next((index for index, end in enumerate(row_ends) if end >= t), None) for t in range(12)]
        assert got == [0.0 if owner is None else row[owner] for owner in owners]
        assert at == [row[row_ends.index(t)] if t in row_ends else 0.0 for t in range(12)]


@pytest.mark.parametrize("seed", range(5))
def test_a_tokens_advantage_is_the_sum_over_the_steps_that_end_at_or_after_it(seed):
    dice = random.Random(seed)
    rows = random_rows(seed, 8)
    ends = [sorted(dice.sample(range(15), len(row))) for row in rows]
    rewards, mask = pad(rows)
    step_ends, _ = pad(ends, filler=4, dtype=torch.long)
    by_steps = spread_over_steps(reward_to_go(rewards, mask), step_ends, mask, 15)
    by_tokens = place_at_step_ends(rewards, step_ends, mask, 15).flip(1).cumsum(1).flip(1)
    assert torch.allclose(by_steps, by_tokens, atol=1e-12)


# Types and errors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_types(dtype):
    values, mask = torch.rand(4, 3).to(dtype), torch.ones(4, 3, dtype=torch.bool)
    ends = torch.arange(3).expand(4, 3)
    out = torch.float64 if dtype == torch.float64 else torch.float32
    results = [
        *(prefix_values(values, mask, aggregation) for aggregation in AGGREGATIONS),
        *(step_rewards(values, mask, credit) for credit in CREDITS),
        group_mean(values[:, 0], mask[:, 0], 2),
        group_step_advantages(values, mask, 2),
        reward_to_go(values, mask),
        generalized_advantages(values, values, mask),
        place_at_step_ends(values, ends, mask, 5),
        spread_over_steps(values, ends, mask, 5),
    ]
    assert {result.dtype for result in results} == {out}
    # A mask of integers 0 and 1 is accepted.
    assert torch.equal(step_rewards(values, mask.long(), "min_form"), step_rewards(values, mask, "min_form"))
    assert torch.equal(group_step_advantages(values, mask.long(), 2), group_step_advantages(values, mask, 2))


def test_long_sums_of_bfloat16_are_exact():
    # The sum of 512 times 1/256 is 2. A running sum in bfloat16 would stall at 1.
    rewards, mask = torch.full((1, 512), 1 / 256, dtype=torch.bfloat16), torch.ones(1, 512, dtype=torch.bool)
    assert reward_to_go(rewards, mask)[0, 0].item() == 2.0
    assert prefix_values(rewards, mask, "mean")[0, -1].item() == 1 / 256


SCORES, MASK = pad([[0.5], [0.2], [0.1]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: step_rewards(SCORES, MASK, "gain"), "Credit: got 'gain', .*min_form"),
        (lambda: prefix_values(SCORES, MASK, "median"), "Aggregation: got 'median', .*product"),
        (
            lambda: step_rewards(SCORES, MASK, "difference", aggregation="median"),
            "Aggregation: got 'median', .*product",
        ),
        (
            lambda: step_rewards(SCORES, MASK, "outcome", aggregation="median"),
            "Aggregation: got 'median', .*product",
        ),
        (lambda: step_rewards(SCORES, MASK, "min_form", temperature=0.0), "Temperature .*: got 0.0, .*positive"),
        (lambda: step_rewards(SCORES, MASK, "min_form", temperature=-1.0), "Temperature .*: got -1.0, .*positive"),
        (lambda: group_step_advantages(SCORES, MASK, 3, scale="question"), "Scale.*: got 'question', .*'batch'"),
        (lambda: group_step_advantages(SCORES, MASK, 2), "Groups: got 3 rows, .*group_size = 2"),
    ],
)
def test_errors_name_invalid_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_two_credits_give_the_same_rewards():
    """Fails if a new credit has no branch of its own."""
    scores, mask = torch.tensor([[0.9, 0.2, 0.6]]), torch.ones(1, 3, dtype=torch.bool)
    rewards = {credit: tuple(step_rewards(scores, mask, credit, aggregation="mean")[0].tolist()) for credit in CREDITS}
    assert len(set(rewards.values())) == len(CREDITS), rewards


def test_a_credit_without_a_branch_is_an_error(monkeypatch):
    monkeypatch.setattr(advantages, "CREDITS", (*CREDITS, "new"))
    with pytest.raises(ValueError, match="got 'new', expected a credit with a branch"):
        step_rewards(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool), "new")


# Returns of the log-ratio


def test_log_ratio_returns_worked_by_hand():
    # A step of two tokens, a step of two tokens and an end token. Sums from their first tokens: 0.4, 0.1 and 0.
    ratios = [0.1, 0.2, -0.3, 0.4, 0.0]
    # A tool wrote the second token of the other row, which has no steps: its sum is 0.5 + 0.25.
    logps, _ = pad([[ratio - 1.0 for ratio in ratios], [-0.5, 9.0, -0.75]], filler=math.nan)
    ref_logps, _ = pad([[-1.0] * 5, [-1.0, math.inf, -1.0]], filler=math.nan)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0]])
    ends, steps = torch.tensor([[1, 3], [0, 0]]), torch.tensor([[True, True], [False, False]])
    returns = log_ratio_returns(torch.tensor([1.0, -1.0], dtype=F64), logps, ref_logps, mask, ends, steps, beta=0.5)
    expected = [[0.8, 0.8, 0.95, 0.95, 1.0], [-1.375, 0, -1.375, 0, 0]]
    torch.testing.assert_close(returns, torch.tensor(expected, dtype=F64))


def test_log_ratio_returns_are_the_advantages_if_the_policy_is_the_reference():
    torch.manual_seed(0)
    logps, advantages = -torch.rand(6, 9), torch.randn(6)
    ends, mask = torch.arange(1, 9, 2).expand(6, 4), torch.rand(6, 9) > 0.2
    for steps in (torch.ones(6, 4, dtype=torch.bool), torch.zeros(6, 4, dtype=torch.bool)):
        returns = log_ratio_returns(advantages, logps, logps, mask, ends, steps, beta=7.0)
        assert torch.equal(returns, advantages[:, None].expand(6, 9) * mask)


def test_log_ratio_returns_of_steps_of_one_token_and_of_one_step():
    torch.manual_seed(0)
    logps, ref_logps = -torch.rand(3, 5, dtype=F64), -torch.rand(3, 5, dtype=F64)
    advantages, mask = torch.randn(3, dtype=F64), torch.tensor([[1] * 5, [1] * 3 + [0] * 2, [1, 0, 0, 1, 1]])
    ratios = (logps - ref_logps) * mask
    each = torch.arange(5).expand(3, 5)
    by_token = log_ratio_returns(
        advantages, logps, ref_logps, mask, each, torch.ones(3, 5, dtype=torch.bool), beta=0.3
    )
    expected = (advantages[:, None] - 0.3 * reward_to_go(ratios, torch.ones(3, 5))) * mask
    torch.testing.assert_close(by_token, expected)
    whole = log_ratio_returns(advantages, logps, ref_logps, mask, each, torch.zeros(3, 5, dtype=torch.bool), beta=0.3)
    torch.testing.assert_close(whole, (advantages - 0.3 * ratios.sum(-1))[:, None] * mask)


@pytest.mark.parametrize("step_length", [1, 2, 3])
def test_log_ratio_returns_give_the_gradient_of_the_regularised_objective(step_length):
    """Enumerates all texts of three tokens from {0, 1}, with a logit per prefix and token."""
    torch.manual_seed(step_length)
    texts = list(itertools.product((0, 1), repeat=3))
    contexts = {prefix: row for row, prefix in enumerate(sorted({text[:t] for text in texts for t in range(3)}))}
    rows = torch.tensor([[contexts[text[:t]] for t in range(3)] for text in texts])
    tokens, rewards, beta = torch.tensor(texts), torch.rand(8, dtype=F64), 0.7
    logits = torch.randn(len(contexts), 2, dtype=F64, requires_grad=True)
    ref_logps = torch.randn(len(contexts), 2, dtype=F64).log_softmax(-1)[rows, tokens]
    logps = logits.log_softmax(-1)[rows, tokens]
    probability = logps.sum(-1).exp()
    objective = (probability * (rewards - beta * (logps - ref_logps).sum(-1))).sum()
    (expected,) = torch.autograd.grad(objective, logits, retain_graph=True)
    ends = torch.arange(step_length - 1, 3, step_length).expand(8, -1)
    returns = log_ratio_returns(
        rewards, logps.detach(), ref_logps, torch.ones(8, 3), ends, torch.ones_like(ends).bool(), beta=beta
    )
    (gradient,) = torch.autograd.grad((probability.detach()[:, None] * logps * returns).sum(), logits)
    torch.testing.assert_close(gradient, expected)
