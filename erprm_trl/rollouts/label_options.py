"""The options that make labels cleaner than plain Monte-Carlo estimates. All are off by default."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Judge(Protocol):
    """Scores the steps of solutions. A score below 0.5 says that the step is wrong. Any
    [`~erprm_trl.StepScorer`] is a judge."""

    def score(self, questions: Sequence[str], steps: Sequence[Sequence[str]]) -> list[list[float]]:
        """
        Scores every step.

        Args:
            questions (`Sequence[str]`):
                One question per solution.
            steps (`Sequence[Sequence[str]]`):
                Steps of each solution, without delimiters.

        Returns:
            `list[list[float]]`: one score in [0, 1] per step of each solution. An empty list means that the judge
            could not read the solution.
        """


@dataclass(kw_only=True, frozen=True)
class LabelOptions:
    r"""
    Options of labels that are made from rollouts. They are computed from the stored rewards, so they need no new
    samples. The defaults give plain labels.

    The *first failing prefix* of a wrong solution is its shortest prefix without success: no continuation has a reward
    above 0.5. It is at the latest the whole solution. A right solution has none, because it continues each of its
    prefixes with success.

    Args:
        min_question_rate (`float`, *optional*, defaults to `0.0`):
            Leaves out the solutions of questions whose rate is lower ([`question_rates`]).
        relative (`bool`, *optional*, defaults to `False`):
            Whether to divide the success rate of a prefix by the rate of its question \\( q \\) before the value is
            computed: \\( V_\eta(\min(p_l / q, 1)) \\). Rewards must be in [0, 1], and 0 or 1 at infinite eta. Both
            rates are success rates at the eta of the labels.
        error_tolerance (`int`, *optional*):
            Number of steps d by which the first failing prefix t may be off. In wrong solutions, the steps up to
            \\( t - d - 1 \\) get label 1, those from \\( t + d + 1 \\) label 0, and only the steps between them keep
            their value. `None` keeps all values.
        label_correct_solutions (`str`, *optional*, defaults to `"continuations"`):
            `"ones"` labels every step of a right solution with 1. `"continuations"` labels it like any other solution.
        agree_with ([`Judge`], *optional*):
            Keeps only solutions in which this scorer finds the same first error as the continuations: its first score
            below 0.5 is at the first failing prefix, or there is neither. A solution whose first score that is not
            above 0.5 equals 0.5 is left out, because the judge is undecided.
        agreement_tolerance (`int`, *optional*, defaults to `0`):
            Number of steps by which the two first errors may differ.

    Raises:
        `ValueError`: for an argument outside its range.

    Sources: SCAN (arXiv 2509.16548) for `min_question_rate`, `relative`, `error_tolerance` and
    `label_correct_solutions`; consensus filtering (arXiv 2501.07301) for `agree_with`.
    """

    min_question_rate: float = 0.0
    relative: bool = False
    error_tolerance: int | None = None
    label_correct_solutions: str = "continuations"
    agree_with: Judge | None = None
    agreement_tolerance: int = 0

    def __post_init__(self):
        if not 0 <= self.min_question_rate <= 1:
            raise ValueError(
                f"min_question_rate: got {self.min_question_rate}, expected a rate from 0 to 1. Set 0 to keep all "
                "questions."
            )
        for name in ("error_tolerance", "agreement_tolerance"):
            steps = getattr(self, name)
            if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 0):
                raise ValueError(f"{name}: got {steps!r}, expected a number of steps from 0. Set e.g. {name}=1.")
        if self.label_correct_solutions not in ("continuations", "ones"):
            raise ValueError(
                f"label_correct_solutions: got {self.label_correct_solutions!r}, expected 'continuations' or 'ones'. "
                "Choose one."
            )
        if self.agreement_tolerance and self.agree_with is None:
            raise ValueError(
                f"agreement_tolerance: got {self.agreement_tolerance} without agree_with, expected a judge too. Set "
                "agree_with, or remove agreement_tolerance."
            )

    @property
    def needs_question_rates(self) -> bool:
        """Whether the labels depend on the rates of questions."""
        return self.relative or self.min_question_rate > 0

    @property
    def changes_values(self) -> bool:
        """Whether labels may differ from the values of their prefixes."""
        return self.relative or self.error_tolerance is not None or self.label_correct_solutions == "ones"

    def check(self, estimator: str) -> None:
        """Raises a `ValueError` if the options cannot be combined with an estimator of values."""
        if self.relative and estimator != "sample":
            raise ValueError(
                f"relative: got True with the estimator {estimator!r}, expected 'sample', because the ratio of two "
                "rates has no posterior here. Pass estimator='sample' (label_estimator in ERPRMConfig), or "
                "relative=False."
            )

    def to_json(self, judge: str | None = None) -> dict[str, Any]:
        """
        The options that differ from their defaults, for manifests.

        Args:
            judge (`str`, *optional*):
                Name of the judge.
        """
        plain = LabelOptions()
        options = {name: getattr(self, name) for name in self.__dataclass_fields__}
        changed = {name: value for name, value in options.items() if value != getattr(plain, name)}
        return changed | ({"agree_with": judge} if self.agree_with is not None else {})
