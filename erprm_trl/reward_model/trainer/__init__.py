"""Trains a process reward model on labelled steps, or on rollouts that are labelled at an `eta`."""

from typing import TYPE_CHECKING

from ..._lazy import lazy_exports


if TYPE_CHECKING:
    from .dataset_formats import to_stepwise
    from .erprm_config import ERPRMConfig
    from .erprm_trainer import ERPRMTrainer
    from .labelled_steps import load_labelled_steps
    from .mixture import LabelledSource
    from .written_forms import from_stepwise

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "dataset_formats": ["to_stepwise"],
        "erprm_config": ["ERPRMConfig"],
        "erprm_trainer": ["ERPRMTrainer"],
        "labelled_steps": ["load_labelled_steps"],
        "mixture": ["LabelledSource"],
        "written_forms": ["from_stepwise"],
    },
)
