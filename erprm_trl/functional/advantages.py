"""From step scores to token advantages: step rewards, group-relative advantages, GAE. Pure tensor functions.

Steps of a solution lie on a padded axis S with a mask, tokens of a completion on a padded axis T with a mask; a step
is tied to the tokens by the index of its last one.
"""

import torch
from torch import Tensor

from .aggregation import AGGREGATIONS, aggregate
from .masked import masked_moments
from .precision import at_least_float32


# A new credit is a name here and a branch in `step_rewards` (with its row in the table). Contracts that tests hold for
# every credit: a solution of one step is paid its score (from 0), padding and solutions without steps are paid 0, and
# no two credits pay the same. Then look at `StepGRPOTrainer._token_advantages` (how the rewards are normalised) and at
# `StepPPOConfig.critic` (whether the reward model's values can be the critic). Configurations and command lines take
# their choices from this list.
CREDITS = ("difference", "min_form", "sum", "outcome")


def prefix_values(scores: Tensor, mask: Tensor, aggregation: str) -> Tensor:
    r"""
    Value of each prefix of a solution: the aggregate of the steps so far, \\( v_l = \mathrm{agg}(s_1 \dots s_l) \\).

    With `"last"` a step's score is the prefix's value itself, as the definition of V has it. With `"min"` a prefix is
    worth its worst step: a mistake once made is not forgiven, which suits a reward model whose scores judge the step
    more than the prefix.

    Args:
        scores (`torch.Tensor`):
            Step scores (N, S).
        mask (`torch.Tensor`):
            Booleans (N, S), True at real steps, which come first.
        aggregation (`str`):
            One of `"min"`, `"last"`, `"product"`, `"mean"`.

    Returns:
        `torch.Tensor`: values (N, S), 0 at padding; float32, or float64 where the input is. The last real one is
        [`aggregate`] of the solution.
    """
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"Aggregation: got {aggregation!r}, expected one of {', '.join(AGGREGATIONS)}.")
    scores, mask = _clean(scores, mask)
    if aggregation == "min":
        values = scores.masked_fill(~mask, torch.inf).cummin(-1).values
    elif aggregation == "product":
        values = scores.cumprod(-1)
    elif aggregation == "mean":
        values = scores.cumsum(-1) / torch.arange(1, scores.shape[-1] + 1, device=scores.device)
    else:
        values = scores
    return values.masked_fill(~mask, 0.0)


def step_rewards(
    scores: Tensor,
    mask: Tensor,
    credit: str,
    *,
    aggregation: str = "last",
    initial_value: Tensor | float = 0.0,
    temperature: float = 0.1,
) -> Tensor:
    r"""
    Reward of each step from the scores of a solution's steps.

    | credit | step reward \\( r_l \\) | note |
    |---|---|---|
    | `"difference"` | \\( v_l - v_{l-1} \\) | sums to \\( v_L - v_0 \\): nothing to gain by adding steps |
    | `"min_form"` | \\( \mathrm{softmax}(-s / T)_l \, s_l \\) | sums to a soft minimum (PURE) |
    | `"sum"` | \\( s_l \\) | more steps, more reward: normalise within the group |
    | `"outcome"` | \\( 0, \dots, 0, \mathrm{agg}(s) \\) | what ordinary trainers do |

    Args:
        scores (`torch.Tensor`):
            Step scores \\( s \\) (N, S), usually in [0, 1].
        mask (`torch.Tensor`):
            Booleans (N, S), True at real steps, which come first.
        credit (`str`):
            One of `"difference"`, `"min_form"`, `"sum"`, `"outcome"`.
        aggregation (`str`, *optional*, defaults to `"last"`):
            For `"difference"` what makes \\( v_l \\) of the first l scores, see [`prefix_values`] (`"last"`: the score
            itself); for `"outcome"` what makes the solution's score.
        initial_value (`torch.Tensor` or `float`, *optional*, defaults to `0.0`):
            \\( v_0 \\) of `"difference"`, the question's own value: a number or (N,).
        temperature (`float`, *optional*, defaults to `0.1`):
            T > 0 of `"min_form"`.

    Returns:
        `torch.Tensor`: rewards (N, S), 0 at padding; float32, or float64 where the input is. A solution without steps
        has none.

    Raises:
        `ValueError`: for an unknown credit or aggregation, or a temperature that is not positive.

    Source: Ng et al. 1999 on potentials; Cheng et al., PURE (2504.15275), equations 4 and 5; Shao et al., DeepSeekMath
    (2402.03300), section 4.1.3.
    """
    if credit not in CREDITS:
        raise ValueError(f"Credit: got {credit!r}, expected one of {', '.join(CREDITS)}.")
    if temperature <= 0:
        raise ValueError(f"Temperature of min_form: got {temperature}, expected a positive number.")
    scores, mask = _clean(scores, mask)
    if credit == "sum":
        return scores
    if credit == "min_form":
        weights = (-scores / temperature).masked_fill(~mask, -torch.inf).softmax(-1)
        return (weights * scores).masked_fill(~mask, 0.0)  # the weights of a row without steps are NaN
    if credit == "outcome":
        rewards = torch.zeros_like(scores)
        with_steps = mask.any(-1)
        if bool(with_steps.any()):
            last = mask[with_steps].sum(-1) - 1
            rewards[with_steps.nonzero().squeeze(-1), last] = aggregate(
                scores[with_steps], aggregation, mask[with_steps]
            )
        return rewards
    if credit == "difference":
        values = prefix_values(scores, mask, aggregation)
        before = torch.cat([torch.zeros_like(values[:, :1]), values[:, :-1]], dim=-1)
        return subtract_initial_value((values - before).masked_fill(~mask, 0.0), mask, initial_value)
    raise ValueError(f"Credit: got {credit!r}, expected one with a rule in step_rewards. Add the rule.")


def subtract_initial_value(rewards: Tensor, mask: Tensor, initial_value: Tensor | float) -> Tensor:
    r"""
    Difference rewards counted from a question's own value: \\( r_1 - v_0 \\) for the first step, the others as they
    are.

    Args:
        rewards (`torch.Tensor`):
            Step rewards (N, S) of credit `"difference"` with \\( v_0 = 0 \\), see [`step_rewards`].
        mask (`torch.Tensor`):
            Booleans (N, S), True at real steps, which come first.
        initial_value (`torch.Tensor` or `float`):
            \\( v_0 \\): a number or (N,).

    Returns:
        `torch.Tensor`: rewards (N, S), 0 at padding.
    """
    rewards, mask = _clean(rewards, mask)
    start = torch.as_tensor(initial_value, dtype=rewards.dtype, device=rewards.device).expand(rewards.shape[0])
    first = (rewards[:, :1] - start[:, None]).masked_fill(~mask[:, :1], 0.0)
    return torch.cat([first, rewards[:, 1:]], dim=-1)


def group_mean(values: Tensor, mask: Tensor, group_size: int) -> Tensor:
    """
    Mean over each group of `group_size` consecutive rows of those values (N,) where the mask (N,) is True, given back
    to every row of the group; 0 where a group has none.
    """
    _, means, _ = masked_moments(values.reshape(-1, group_size), mask.reshape(-1, group_size), dim=-1)
    return means.squeeze(-1).repeat_interleave(group_size)


def group_step_advantages(
    rewards: Tensor, mask: Tensor, group_size: int, *, scale: str = "group", gamma: float = 1.0, eps: float = 1e-4
) -> Tensor:
    r"""
    Group-relative advantages of steps: all step rewards of a question's solutions are normalised together, and a step
    gets the sum of the normalised rewards from it on.

    $$ \hat r_{il} = \frac{r_{il} - \mathrm{mean}(R)}{\mathrm{std}(R) + \epsilon}, \qquad A_{il} = \sum_{j \ge l}
    \gamma^{j - l} \hat r_{ij}, \qquad R = \{ r_{il} \text{ of the group} \} $$

    With one step a solution this is GRPO's outcome advantage.

    Args:
        rewards (`torch.Tensor`):
            Step rewards (N, S); each run of `group_size` rows answers one question.
        mask (`torch.Tensor`):
            Booleans (N, S), True where there is a reward; steps come first. With a mask that is True at one position a
            row, the reward of that position is the whole solution's: outcome supervision.
        group_size (`int`):
            Solutions a question.
        scale (`str`, *optional*, defaults to `"group"`):
            `"group"` divides by the group's standard deviation (n - 1), `"batch"` by that of all rewards, `"none"` by
            nothing.
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount a step, counted from the step itself. 0 gives each step its own reward alone.
        eps (`float`, *optional*, defaults to `1e-4`):
            As in TRL.

    Returns:
        `torch.Tensor`: advantages of steps (N, S), 0 at padding. Rows without steps take no part; a group in which no
        row has one gets zeros.

    Raises:
        `ValueError`: for another scale, or rows that are no multiple of `group_size`.

    Source: Shao et al., DeepSeekMath (2402.03300), section 4.1.3.
    """
    if scale not in ("group", "batch", "none"):
        raise ValueError(f"Scale of rewards: got {scale!r}, expected 'group', 'batch' or 'none'.")
    if rewards.shape[0] % group_size:
        raise ValueError(f"Groups: got {rewards.shape[0]} rows, expected a multiple of group_size = {group_size}.")
    rewards, mask = _clean(rewards, mask)
    shape = (rewards.shape[0] // group_size, group_size * rewards.shape[-1])  # no -1: S may be 0
    grouped, grouped_mask = rewards.reshape(shape), mask.reshape(shape)
    _, means, variances = masked_moments(grouped, grouped_mask, dim=-1)
    if scale == "batch":
        _, _, variances = masked_moments(rewards.reshape(1, -1), mask.reshape(1, -1), dim=-1)
    normalized = grouped - means if scale == "none" else (grouped - means) / (variances.sqrt() + eps)
    return reward_to_go(normalized.view_as(rewards), mask, gamma)


def reward_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    r"""
    Discounted sum of the rewards from each position on: \\( G_l = \sum_{j \ge l} \gamma^{j - l} r_j \\). Positions
    that the mask hides are skipped, not counted, and get 0.
    """
    return generalized_advantages(rewards, torch.zeros_like(rewards), mask, gamma, 1.0)


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, gae_lambda: float = 0.95
) -> Tensor:
    r"""
    Generalised advantage estimation over ragged sequences.

    $$ \delta_t = r_t + \gamma V_{t+1} - V_t, \qquad A_t = \delta_t + \gamma \lambda A_{t+1}, \qquad V_{T} = A_{T} = 0
    $$

    Args:
        rewards (`torch.Tensor`):
            Rewards (B, T).
        values (`torch.Tensor`):
            The critic's values of the states before each token, (B, T).
        mask (`torch.Tensor`):
            Booleans (B, T). The recursion runs over the True positions of a row as if the others were not there,
            wherever padding or foreign tokens lie.
        gamma (`float`, *optional*, defaults to `1.0`), gae_lambda (`float`, *optional*, defaults to `0.95`):
            Discount a token and \\( \lambda \\), in [0, 1].

    Returns:
        `torch.Tensor`: advantages (B, T), 0 where the mask is False; float32, or float64 where the input is. The
        returns that the critic learns are `advantages + values`. For \\( \gamma = \lambda = 1 \\) it is the sum of the
        rewards from t on minus \\( V_t \\).

    Source: Schulman et al., 1506.02438, equation 16.
    """
    rewards, mask = _clean(rewards, mask)
    values, _ = _clean(values, mask)
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0]) if rewards.shape[-1] else None
    for t in reversed(range(rewards.shape[-1])):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * gae_lambda * next_advantage
        next_value = torch.where(here, values[:, t], next_value)
        next_advantage = torch.where(here, advantage, next_advantage)
        advantages[:, t] = torch.where(here, advantage, 0.0)
    return advantages


def place_at_step_ends(step_values: Tensor, step_ends: Tensor, mask: Tensor, num_tokens: int) -> Tensor:
    """
    Puts each step's value on its last token.

    Args:
        step_values (`torch.Tensor`):
            Values of steps (B, S).
        step_ends (`torch.Tensor`):
            Index of each step's last token (B, S), increasing along a row.
        mask (`torch.Tensor`):
            Booleans (B, S), True at real steps.
        num_tokens (`int`):
            T.

    Returns:
        `torch.Tensor`: (B, T), 0 everywhere else.
    """
    step_values, mask = _clean(step_values, mask)
    placed = step_values.new_zeros(step_values.shape[0], num_tokens)
    return placed.scatter_add(1, step_ends.masked_fill(~mask, 0), step_values)


def spread_over_steps(step_values: Tensor, step_ends: Tensor, mask: Tensor, num_tokens: int) -> Tensor:
    """
    Gives every token the value of the step that it belongs to, the first that ends at or after it.

    Args:
        step_values, step_ends, mask, num_tokens:
            See [`place_at_step_ends`].

    Returns:
        `torch.Tensor`: (B, T); 0 after the last step's end and in rows without steps.
    """
    step_values, mask = _clean(step_values, mask)
    ends = step_ends.masked_fill(~mask, num_tokens).contiguous()
    tokens = torch.arange(num_tokens, device=ends.device).expand(ends.shape[0], num_tokens).contiguous()
    owner = torch.searchsorted(ends, tokens)  # of S where no step ends at or after the token
    padded = torch.cat([step_values, step_values.new_zeros(step_values.shape[0], 1)], dim=-1)
    return padded.gather(1, owner)


def _clean(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    # Values that the mask hides may be anything, NaN included: they are zero from here on.
    return at_least_float32(values).masked_fill(~mask.bool(), 0.0), mask.bool()
