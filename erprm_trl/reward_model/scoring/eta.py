"""Reads the scores of a reward model at another eta than the eta of its labels, for rewards of 0 and 1.

A model that was trained at eta 0 predicts success rates, and the value of a success rate is known for every eta. The
scores of a model that was trained at another finite eta are converted to success rates first.
"""

import logging
import math
from collections.abc import Sequence

import torch

from ...functional.soft_values import value_at_eta
from ..prm_format import PRMFormat


logger = logging.getLogger(__name__)


def scores_at_eta(scores: Sequence[Sequence[float]], trained_eta: float, eta: float) -> list[list[float]]:
    """
    Converts step scores to another eta. No model is needed, so scores that were computed once can be read at several
    etas.

    Args:
        scores (`Sequence[Sequence[float]]`):
            Step scores of each solution.
        trained_eta (`float`):
            Eta of these scores: the eta of the labels that the model was trained on.
        eta (`float`):
            Eta to read the scores at.

    Returns:
        `list[list[float]]`: the scores at `eta`. NaN stays NaN, and scores at `trained_eta` itself are unchanged.

    Raises:
        `ValueError`: if one of the two etas is infinite and they differ, or if a score is outside [0, 1].

    Example:

    ```python
    >>> scores_at_eta([[0.5, 1.0]], trained_eta=0, eta=2)
    [[0.716..., 1.0]]
    ```
    """
    check_readable(PRMFormat(eta=trained_eta), eta)
    if trained_eta == eta:
        return [list(solution) for solution in scores]
    flat = torch.tensor([score for solution in scores for score in solution], dtype=torch.float64)
    is_number = ~flat.isnan()  # callers report NaN with the place of the step
    flat[is_number] = value_at_eta(flat[is_number], trained_eta, eta)
    return [solution.tolist() for solution in flat.split([len(solution) for solution in scores])]


def check_readable(prm_format: PRMFormat, eta: float) -> None:
    """
    Checks that the scores of a reward model can be read at an eta.

    Args:
        prm_format ([`PRMFormat`]):
            Format of the reward model, with the eta of its labels.
        eta (`float`):
            Eta to read the scores at.

    Raises:
        `ValueError`: if the eta of the labels is not known, or if one of the two etas is infinite and they differ.
    """
    trained_eta = prm_format.eta
    if trained_eta is None:
        raise ValueError(
            f"eta: got {eta} for a reward model whose format does not record the eta of its labels, expected a model "
            "with a known eta. If it was trained on success rates, set trained_eta=0 (or --trained_eta 0), or "
            "PRMFormat(eta=0) in its prm_format.json. Otherwise do not set eta."
        )
    if trained_eta == eta:
        return
    if math.isinf(trained_eta):
        raise ValueError(
            f"eta: got {eta} for a reward model that was trained at eta={trained_eta}, expected one that was trained "
            "at a finite eta, because the best of several rewards does not determine their success rate. Train a "
            "model with eta=0, or do not set eta."
        )
    if not math.isfinite(eta):
        raise ValueError(
            f"eta: got {eta} for a reward model that was trained at eta={trained_eta}, expected a finite number. A "
            "model's scores are never exactly 0 or 1, so all of them would become equal. Set a large number such as "
            "50."
        )


def as_number(eta: float | str | None) -> float | None:
    """An eta as a number. YAML reads `inf` as a text."""
    try:
        return float(eta) if isinstance(eta, str) else eta
    except ValueError:
        raise ValueError(f"eta: got {eta!r}, expected a number, or 'inf'. Pass for example eta=2.0.") from None


def format_at_eta(prm_format: PRMFormat, eta: float | None, trained_eta: float | None = None) -> PRMFormat:
    """
    Returns the format of scores that are read at an eta. Its `eta` is the eta of the scores.

    Args:
        prm_format ([`PRMFormat`]):
            Format of the reward model.
        eta (`float`, *optional*):
            Eta to read the scores at. `None` leaves the scores as the model gives them.
        trained_eta (`float`, *optional*):
            Eta of the labels, if the format does not record it.

    Raises:
        `ValueError`: if the scores cannot be read at `eta`, or if the format records another eta than `trained_eta`.
    """
    eta, trained_eta = as_number(eta), as_number(trained_eta)
    if trained_eta is not None and prm_format.eta not in (None, trained_eta):
        raise ValueError(
            f"trained_eta: got {trained_eta} for a reward model whose format records eta={prm_format.eta}, expected "
            "the same eta. Do not set trained_eta."
        )
    if trained_eta is not None:
        prm_format = prm_format.with_eta(trained_eta)
    if eta is None:
        return prm_format
    check_readable(prm_format, eta)
    return prm_format.with_eta(eta)


def eta_or_as_trained(prm_format: PRMFormat, eta: float | None, subject: str) -> float | None:
    """
    Returns the eta at which a policy's scores are read: `eta` if the scores can be read there, else `None`, which
    leaves the scores as they are. Logs a warning in the latter case.

    Args:
        prm_format ([`PRMFormat`]):
            Format of the reward model.
        eta (`float`, *optional*):
            Eta of the policy.
        subject (`str`):
            Name of the caller, for the warning.
    """
    if eta is None:
        return None
    try:
        check_readable(prm_format, eta)
    except ValueError as error:
        logger.warning("%s: the scores are used as they are, as values at eta=%s. %s", subject, eta, error)
        return None
    return eta
