"""Online trainers for policies: GRPO and PPO with an advantage per step."""

from typing import TYPE_CHECKING

from ..._lazy import lazy_exports


if TYPE_CHECKING:
    from .step_config import StepGRPOConfig, StepPPOConfig
    from .step_grpo_trainer import StepGRPOTrainer
    from .step_ppo_trainer import StepPPOTrainer

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "step_config": ["StepGRPOConfig", "StepPPOConfig"],
        "step_grpo_trainer": ["StepGRPOTrainer"],
        "step_ppo_trainer": ["StepPPOTrainer"],
    },
)
