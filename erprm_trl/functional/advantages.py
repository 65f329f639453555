"""Turns step scores into step rewards, and step rewards into advantages: group-relative, or by GAE. Pure tensor
functions.

The steps of a solution are on a padded axis S with a mask, the tokens of a completion on a padded axis T with a mask.
Each step is located by the index of its last token.
"""

import torch
from torch import Tensor

from .aggregation import AGGREGATIONS
from .masked import masked_moments
from .precision import at_least_float32


# To add a credit, add its name here, a branch in `step_rewards` and a row in the table of its docstring. Tests check
# for every credit that the reward of a one-step solution is its score (with initial value 0), that padding and
# solutions without steps get reward 0, and that no two credits give the same rewards. Then check
# `StepGRPOTrainer._token_advantages` (how the rewards are normalised) and `StepPPOConfig.critic` (whether the reward
# model can serve as the critic). Configurations and command lines take their choices from this list.
CREDITS = ("difference", "min_form", "sum", "outcome")


def prefix_values(scores: Tensor, mask: Tensor, aggregation: str) -> Tensor:
    r"""
    Value of each prefix of a solution, aggregated from its step scores: \\( v_l = \mathrm{agg}(s_1 \dots s_l) \\).

    With `"last"`, the value of a prefix is the score of its last step, as in the definition of V. With `"min"`, it is
    the score of its worst step, so the value never recovers after a mistake. Use `"min"` if the scores of the reward
    model judge single steps rather than whole prefixes.

    Args:
        scores (`torch.Tensor`):
            Step scores (N, S).
        mask (`torch.Tensor`):
            Booleans (N, S), True at real steps, which come first.
        aggregation (`str`):
            One of `"min"`, `"last"`, `"product"`, `"mean"`.

    Returns:
        `torch.Tensor`: values (N, S), 0 at padding, in float32, or in float64 if the input is. The value of the last
        real step equals [`aggregate`] of the solution.

    Raises:
        `ValueError`: for an unknown aggregation.
    """
    if aggregation not in AGGREGATIONS:
        raise ValueError(
            f"Aggregation: got {aggregation!r}, expected one of {', '.join(AGGREGATIONS)}. Pass one of these."
        )
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
    Computes the reward of each step from the step scores of a solution.

    | credit | step reward \\( r_l \\) | note |
    |---|---|---|
    | `"difference"` | \\( v_l - v_{l-1} \\) | sums to \\( v_L - v_0 \\), so more steps do not increase the sum |
    | `"min_form"` | \\( \mathrm{softmax}(-s / T)_l \, s_l \\) | sums to a soft minimum of the scores (PURE) |
    | `"sum"` | \\( s_l \\) | more steps give a larger sum, so normalise within the group |
    | `"outcome"` | \\( 0, \dots, 0, \mathrm{agg}(s) \\) | one reward per solution, as in ordinary trainers |

    Args:
        scores (`torch.Tensor`):
            Step scores \\( s \\) (N, S), usually in [0, 1].
        mask (`torch.Tensor`):
            Booleans (N, S), True at real steps, which come first.
        credit (`str`):
            One of `"difference"`, `"min_form"`, `"sum"`, `"outcome"`.
        aggregation (`str`, *optional*, defaults to `"last"`):
            Aggregation agg. For `"difference"`, it computes \\( v_l \\) from the first l scores, see
            [`prefix_values`]. For `"outcome"`, it computes the score of the solution. The other credits do not use it.
        initial_value (`torch.Tensor` or `float`, *optional*, defaults to `0.0`):
            Value \\( v_0 \\) of the question, for `"difference"`: a float, or a tensor (N,).
        temperature (`float`, *optional*, defaults to `0.1`):
            Temperature T > 0, for `"min_form"`.

    Returns:
        `torch.Tensor`: rewards (N, S), 0 at padding, in float32, or in float64 if the input is. All rewards of a
        solution without steps are 0.

    Raises:
        `ValueError`: for an unknown credit or aggregation, or a temperature that is not positive.

    Source: Ng et al. 1999 on potentials; Cheng et al., PURE (2504.15275), equations 4 and 5; Shao et al., DeepSeekMath
    (2402.03300), section 4.1.3.
    """
    if credit not in CREDITS:
        raise ValueError(f"Credit: got {credit!r}, expected one of {', '.join(CREDITS)}. Pass one of these.")
    if temperature <= 0:
        raise ValueError(f"Temperature of min_form: got {temperature}, expected a positive number. Pass e.g. 0.1.")
    scores, mask = _clean(scores, mask)
    if credit == "sum":
        return scores
    if credit == "min_form":
        weights = (-scores / temperature).masked_fill(~mask, -torch.inf).softmax(-1)
        return (weights * scores).masked_fill(~mask, 0.0)  # without steps, the weights of a row are NaN
    if credit == "outcome":
        is_last = mask & (mask.cumsum(-1) == mask.sum(-1, keepdim=True))
        return prefix_values(scores, mask, aggregation).masked_fill(~is_last, 0.0)
    if credit == "difference":
        values = prefix_values(scores, mask, aggregation)
        before = torch.cat([torch.zeros_like(values[:, :1]), values[:, :-1]], dim=-1)
        return subtract_initial_value((values - before).masked_fill(~mask, 0.0), mask, initial_value)
    raise ValueError(f"Credit: got {credit!r}, expected a credit with a branch in step_rewards. Add the branch.")


def subtract_initial_value(rewards: Tensor, mask: Tensor, initial_value: Tensor | float) -> Tensor:
    r"""
    Subtracts the value of the question from the first step's difference reward, \\( r_1 - v_0 \\). The other rewards
    do not change.

    Args:
        rewards (`torch.Tensor`):
            Step rewards (N, S) of credit `"difference"` with \\( v_0 = 0 \\), see [`step_rewards`].
        mask (`torch.Tensor`):
            Booleans (N, S), True at real steps, which come first.
        initial_value (`torch.Tensor` or `float`):
            Value \\( v_0 \\) of the question: a float, or a tensor (N,).

    Returns:
        `torch.Tensor`: rewards (N, S), 0 at padding.
    """
    rewards, mask = _clean(rewards, mask)
    start = initial_value.to(rewards).reshape(-1, 1) if isinstance(initial_value, Tensor) else initial_value
    first = (rewards[:, :1] - start).masked_fill(~mask[:, :1], 0.0)
    return torch.cat([first, rewards[:, 1:]], dim=-1)


def center_wrong_solutions(rewards: Tensor, mask: Tensor, wrong: Tensor, group_size: int) -> Tensor:
    r"""
    Shifts the step rewards of the wrong solutions of each question to mean zero. The rewards of the other solutions do
    not change.

    $$ r'_{il} = r_{il} - \mathrm{mean} \{ r_{jk} : j \text{ is a wrong solution of the group} \} \quad \text{if } i
    \text{ is wrong} $$

    A wrong solution with plausible steps then gains nothing on average. The order of the steps does not change.

    Args:
        rewards (`torch.Tensor`):
            Step rewards (N, S). Every `group_size` consecutive rows are solutions of the same question.
        mask (`torch.Tensor`):
            Booleans (N, S), True where there is a reward.
        wrong (`torch.Tensor`):
            Booleans (N,), True for wrong solutions.
        group_size (`int`):
            Number of solutions per question.

    Returns:
        `torch.Tensor`: rewards (N, S), 0 at padding.

    Source: PROGRS (2604.02341), outcome-conditioned centering, applied to the rewards of steps.
    """
    rewards, mask = _clean(rewards, mask)
    chosen = mask & wrong[:, None]
    shape = (rewards.shape[0] // group_size, group_size * rewards.shape[-1])
    _, means, _ = masked_moments(rewards.reshape(shape), chosen.reshape(shape), dim=-1)
    return rewards - means.repeat_interleave(group_size, dim=0) * chosen


def group_mean(values: Tensor, mask: Tensor, group_size: int) -> Tensor:
    """
    Mean over each group of consecutive rows, repeated for every row of the group.

    Args:
        values (`torch.Tensor`):
            One value per row, (N,).
        mask (`torch.Tensor`):
            Booleans (N,), True where the value counts.
        group_size (`int`):
            Number of rows per group.

    Returns:
        `torch.Tensor`: means (N,). A group without values gets 0.
    """
    _, means, _ = masked_moments(values.reshape(-1, group_size), mask.reshape(-1, group_size), dim=-1)
    return means.squeeze(-1).repeat_interleave(group_size)


def group_step_advantages(
    rewards: Tensor, mask: Tensor, group_size: int, *, scale: str = "group", gamma: float = 1.0, eps: float = 1e-4
) -> Tensor:
    r"""
    Group-relative advantages of steps. All step rewards of a question's solutions are normalised together. The
    advantage of a step is the discounted sum of the normalised rewards of this step and all later steps.

    $$ \hat r_{il} = \frac{r_{il} - \mathrm{mean}(R)}{\mathrm{std}(R) + \epsilon}, \qquad A_{il} = \sum_{j \ge l}
    \gamma^{j - l} \hat r_{ij}, \qquad R = \{ r_{il} \text{ of the group} \} $$

    With one step per solution, this is GRPO's outcome advantage.

    Args:
        rewards (`torch.Tensor`):
            Step rewards (N, S). Every `group_size` consecutive rows are solutions of the same question.
        mask (`torch.Tensor`):
            Booleans (N, S), True where there is a reward. Steps come first. If the mask is True at a single position
            per row, the reward there is the reward of the whole solution (outcome supervision).
        group_size (`int`):
            Number of solutions per question.
        scale (`str`, *optional*, defaults to `"group"`):
            `"group"` divides by the standard deviation of the group (with n - 1), `"batch"` by the standard deviation
            of all rewards. `"none"` does not divide.
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount per step. With 0, the advantage of a step contains its own reward only.
        eps (`float`, *optional*, defaults to `1e-4`):
            Constant added to the standard deviation, as in TRL.

    Returns:
        `torch.Tensor`: advantages of steps (N, S), 0 at padding. Rows without steps are left out of the mean and the
        standard deviation. In a group without any step, all advantages are 0.

    Raises:
        `ValueError`: for an unknown scale, or if the number of rows is not a multiple of `group_size`.

    Source: Shao et al., DeepSeekMath (2402.03300), section 4.1.3.
    """
    if scale not in ("group", "batch", "none"):
        raise ValueError(
            f"Scale of rewards: got {scale!r}, expected 'group', 'batch' or 'none'. Pass one of these three."
        )
    if rewards.shape[0] % group_size:
        raise ValueError(
            f"Groups: got {rewards.shape[0]} rows, expected a multiple of group_size = {group_size}. Pass all "
            "solutions of each question."
        )
    rewards, mask = _clean(rewards, mask)
    shape = (rewards.shape[0] // group_size, group_size * rewards.shape[-1])  # not -1, because S may be 0
    grouped, grouped_mask = rewards.reshape(shape), mask.reshape(shape)
    _, means, variances = masked_moments(grouped, grouped_mask, dim=-1)
    if scale == "batch":
        _, _, variances = masked_moments(rewards.reshape(1, -1), mask.reshape(1, -1), dim=-1)
    normalized = grouped - means if scale == "none" else (grouped - means) / (variances.sqrt() + eps)
    return reward_to_go(normalized.view_as(rewards), mask, gamma)


def log_ratio_returns(
    advantages: Tensor,
    logps: Tensor,
    ref_logps: Tensor,
    mask: Tensor,
    step_ends: Tensor,
    step_mask: Tensor,
    *,
    beta: float,
) -> Tensor:
    r"""
    Return of each step from the outcome and the log-ratio of policy and reference, without a reward model.

    $$ G_l = A(x, a) - \beta \sum_{j \ge l} \log \frac{\pi(a_j)}{\pi_0(a_j)}, \qquad \beta = \frac{1}{\eta} $$

    All tokens of a step get the return of the step, whose sum begins at the first token of the step. With these
    returns, the policy gradient is the gradient of the outcome minus \\( \beta \\) times the KL from the reference.
    The log-ratios of earlier steps do not change it, because they do not depend on the step.

    Args:
        advantages (`torch.Tensor`):
            Advantage A of each completion's outcome, of shape (B,), normalised within its group.
        logps, ref_logps (`torch.Tensor`):
            Log-probabilities (B, T) of the sampled tokens, under the policy that sampled and under the reference.
        mask (`torch.Tensor`):
            Booleans (B, T), True at tokens that the policy sampled.
        step_ends (`torch.Tensor`):
            Index (B, S) of the last token of each step, increasing along a row. Tokens after the last of these belong
            to one more step.
        step_mask (`torch.Tensor`):
            Booleans (B, S), True at real steps. A row without steps is one step.
        beta (`float`):
            Strength of the KL.

    Returns:
        `torch.Tensor`: returns of tokens (B, T), 0 where the mask is False, in float32, or in float64 if the input is.
        If the policy equals the reference, they are the advantages.

    Source: PRL (2601.10201).
    """
    log_ratios, mask = _clean(at_least_float32(logps) - at_least_float32(ref_logps), mask)
    to_go = log_ratios.flip(-1).cumsum(-1).flip(-1)
    num_tokens = log_ratios.shape[1]
    ends = place_at_step_ends(torch.ones_like(step_ends, dtype=log_ratios.dtype), step_ends, step_mask, num_tokens) > 0
    is_first = torch.nn.functional.pad(ends, (1, 0), value=True)[:, :-1]
    first_tokens = (torch.arange(num_tokens, device=ends.device) * is_first).cummax(-1).values
    returns = at_least_float32(advantages)[:, None] - beta * to_go.gather(1, first_tokens)
    return returns.masked_fill(~mask, 0.0)


def reward_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    r"""
    Discounted sum of the reward at each position and all later rewards: \\( G_l = \sum_{j \ge l} \gamma^{j - l} r_j
    \\). Masked positions do not count in \\( j - l \\), and their sum is 0.

    Args:
        rewards (`torch.Tensor`):
            Rewards (B, T).
        mask (`torch.Tensor`):
            Booleans (B, T), True where there is a reward.
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount per position.

    Returns:
        `torch.Tensor`: sums (B, T), in float32, or in float64 if the input is.
    """
    return generalized_advantages(rewards, torch.zeros_like(rewards), mask, gamma, 1.0)


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, gae_lambda: float = 0.95
) -> Tensor:
    r"""
    Generalised advantage estimation (GAE) over ragged sequences.

    $$ \delta_t = r_t + \gamma V_{t+1} - V_t, \qquad A_t = \delta_t + \gamma \lambda A_{t+1}, \qquad V_{T} = A_{T} = 0
    $$

    Args:
        rewards (`torch.Tensor`):
            Rewards (B, T).
        values (`torch.Tensor`):
            Values (B, T) that the critic assigns to the state before each token.
        mask (`torch.Tensor`):
            Booleans (B, T). The recursion runs over the True positions of a row as if the others did not exist.
            Padding, and tokens that the policy did not sample, may therefore be anywhere in a row.
        gamma (`float`, *optional*, defaults to `1.0`), gae_lambda (`float`, *optional*, defaults to `0.95`):
            Discount per token, and \\( \lambda \\), both in [0, 1].

    Returns:
        `torch.Tensor`: advantages (B, T), 0 where the mask is False, in float32, or in float64 if the input is. The
        critic's targets (returns) are `advantages + values`. For \\( \gamma = \lambda = 1 \\), the advantage is the
        sum of the reward at t and all later rewards, minus \\( V_t \\).

    Source: Schulman et al., 1506.02438, equation 16.
    """
    rewards, mask = _clean(rewards, mask)
    values, _ = _clean(values, mask)
    num_tokens = rewards.shape[-1]
    # The value at the next True position, and 0 after the last one.
    here = torch.arange(num_tokens, device=mask.device).masked_fill(~mask, num_tokens)
    after = here.flip(-1).cummin(-1).values.flip(-1)[:, 1:]
    after = torch.nn.functional.pad(after, (0, min(1, num_tokens)), value=num_tokens)
    next_values = torch.nn.functional.pad(values, (0, 1)).gather(1, after)
    deltas = (rewards + gamma * next_values - values).masked_fill(~mask, 0.0)
    # Other positions pass the sum on unchanged. In float64, because powers of a rounded factor lose digits.
    decays = torch.ones_like(deltas, dtype=torch.float64).masked_fill(mask, gamma * gae_lambda)
    return _backward_recursion(deltas.double(), decays).to(deltas.dtype).masked_fill(~mask, 0.0)


def _backward_recursion(terms: Tensor, factors: Tensor) -> Tensor:
    r"""
    Solves \( A_t = d_t + f_t A_{t+1} \) along the last axis by doubling: after k rounds, each position contains the
    terms of the next \( 2^k \) positions. There are \( \lceil \log_2 T \rceil \) rounds, and no division by small
    factors.
    """
    reach = 1
    while reach < terms.shape[-1]:
        reached = terms[:, :-reach] + factors[:, :-reach] * terms[:, reach:]
        factors = torch.cat([factors[:, :-reach] * factors[:, reach:], factors[:, -reach:]], dim=-1)
        terms = torch.cat([reached, terms[:, -reach:]], dim=-1)
        reach *= 2
    return terms


def place_at_step_ends(step_values: Tensor, step_ends: Tensor, mask: Tensor, num_tokens: int) -> Tensor:
    """
    Places the value of each step on its last token.

    Args:
        step_values (`torch.Tensor`):
            Values of steps (B, S).
        step_ends (`torch.Tensor`):
            Index (B, S) of the last token of each step, increasing along a row.
        mask (`torch.Tensor`):
            Booleans (B, S), True at real steps.
        num_tokens (`int`):
            Length T of the token axis.

    Returns:
        `torch.Tensor`: token values (B, T), 0 at all other tokens.
    """
    step_values, mask = _clean(step_values, mask)
    placed = step_values.new_zeros(step_values.shape[0], num_tokens)
    return placed.scatter_add(1, step_ends.masked_fill(~mask, 0), step_values)


def spread_over_steps(step_values: Tensor, step_ends: Tensor, mask: Tensor, num_tokens: int) -> Tensor:
    """
    Gives every token the value of its step. A token belongs to the first step that ends at or after it.

    Args:
        step_values, step_ends, mask, num_tokens:
            See [`place_at_step_ends`].

    Returns:
        `torch.Tensor`: token values (B, T), 0 after the end of the last step and in rows without steps.
    """
    step_values, mask = _clean(step_values, mask)
    ends = step_ends.masked_fill(~mask, num_tokens).contiguous()
    tokens = torch.arange(num_tokens, device=ends.device).expand(ends.shape[0], num_tokens).contiguous()
    owner = torch.searchsorted(ends, tokens)  # S, the index of the extra zero, if no step ends at or after the token
    padded = torch.cat([step_values, step_values.new_zeros(step_values.shape[0], 1)], dim=-1)
    return padded.gather(1, owner)


def _clean(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    # Masked values may be anything, including NaN, so they are set to 0.
    return at_least_float32(values).masked_fill(~mask.bool(), 0.0), mask.bool()
