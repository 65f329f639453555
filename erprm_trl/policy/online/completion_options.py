"""Options of TRL that need one advantage per completion, and errors for configurations with an advantage per step."""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .step_config import StepGRPOConfig


def refuse_options_of_completions(args: "StepGRPOConfig") -> None:
    """
    Refuses options that need one advantage per completion.

    Args:
        args ([`StepGRPOConfig`]):
            Configuration of a trainer whose advantages differ between the steps of a completion.

    Raises:
        `ValueError`: if such an option is set. The message names it, and says why it is refused.
    """
    given = f"with advantages per step (credit={args.credit!r})"
    fix = "set credit='outcome' in StepGRPOConfig, which has one advantage per completion, or train with GRPOTrainer."
    if args.loss_type == "vespo":
        raise ValueError(
            f"loss_type: got 'vespo' {given}, expected another loss, because VESPO weighs a whole completion by the "
            f"sign of its only advantage. Choose another loss_type, {fix}"
        )
    if args.off_policy_mask_threshold is not None:
        raise ValueError(
            f"off_policy_mask_threshold: got {args.off_policy_mask_threshold} {given}, expected None, because a whole "
            f"completion is masked by the sign of its only advantage. Do not set it, {fix}"
        )
    if args.multi_objective_aggregation != "sum_then_normalize":
        raise ValueError(
            f"multi_objective_aggregation: got {args.multi_objective_aggregation!r} {given}, expected "
            "'sum_then_normalize', because step rewards are always normalised separately from the other rewards. Do "
            f"not set it, {fix}"
        )
