"""The options of the step trainers' configurations that need checks of their own: the credit `"log_ratio"`, and when a
reward model is updated. It imports no model code, so that the help of commands is quick."""

import math
from typing import Any


LOG_RATIO = "log_ratio"
UPDATES = ("before_scoring", "after_scoring")


def check_log_ratio(args: Any) -> None:
    """
    Checks the settings of a [`StepGRPOConfig`] that concern the credit `"log_ratio"`.

    Raises:
        `ValueError`: for a missing or infinite strength of the KL, for two different ones, and for settings that this
            credit or the other credits do not use.
    """
    names = ("splitter", "step_tokens")
    if args.credit != LOG_RATIO:
        unused = [name for name in names if getattr(args, name) is not None]
        if unused:
            raise ValueError(
                f"{unused[0]}: got {getattr(args, unused[0])!r} with credit={args.credit!r}, expected it only with "
                "credit='log_ratio', because the format of the reward model says how to split. Do not set it."
            )
        return
    if all(getattr(args, name) is not None for name in names):
        raise ValueError(
            f"step_tokens: got {args.step_tokens} with splitter={args.splitter!r}, expected only one of them. Remove "
            "the other."
        )
    if args.step_tokens is not None and args.step_tokens < 1:
        raise ValueError(f"step_tokens: got {args.step_tokens}, expected at least 1. Set for example 64.")
    for name in ("eta", "beta"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(
                f"{name}: got {value} with credit='log_ratio', expected a positive finite number, because 1/eta is "
                "the strength of the KL in the returns. Set for example eta=20."
            )
    if args.eta is None and args.beta is None:
        raise ValueError(
            "eta: got None with credit='log_ratio', expected a positive number, because 1/eta is the strength of the "
            "KL in the returns. Set for example eta=20."
        )
    if args.eta is not None and args.beta is not None and not math.isclose(args.beta, 1 / args.eta):
        raise ValueError(
            f"beta: got {args.beta} with eta={args.eta} and credit='log_ratio', expected beta=1/eta={1 / args.eta:g}, "
            "because the KL is in the returns once. Set only one of them (--beta none removes the beta of a recipe)."
        )
    if args.outcome_weight == 0:
        raise ValueError(
            "outcome_weight: got 0 with credit='log_ratio', expected a positive number, because the KL alone only "
            "leads back to the reference. Do not set it."
        )
    if args.center is not None:
        raise ValueError(
            f"center: got {args.center!r} with credit='log_ratio', which has no step rewards, expected None. Do not "
            "set it."
        )
    if args.shard_reward_model:
        raise ValueError(
            "shard_reward_model: got True with credit='log_ratio', which has no reward model, expected False. Do not "
            "set it."
        )
