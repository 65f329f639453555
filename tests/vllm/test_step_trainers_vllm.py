"""The step trainers with TRL's colocated vLLM engine. PPO's value head is a submodule of the policy, but is not sent
to the engine."""

import pytest
from peft import LoraConfig
from vllm_training import assert_engine_has_the_trained_weights, assert_trained_on_its_own_samples, train

from erprm_trl import StepGRPOConfig, StepGRPOTrainer, StepPPOConfig, StepPPOTrainer


pytestmark = pytest.mark.slow("starts vLLM engines")


def test_step_grpo_samples_follow_the_policy(colocated_engine, dial_scorer, dial_policy, tmp_path):
    trainer = train(StepGRPOTrainer, StepGRPOConfig, dial_scorer, tmp_path)
    assert_trained_on_its_own_samples(trainer)
    assert_engine_has_the_trained_weights(trainer, dial_policy[0])


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.02},
        {"peft_config": LoraConfig(r=8, target_modules="all-linear"), "learning_rate": 2e-2},
        {"vllm_importance_sampling_correction": False},
    ],
    ids=["full", "lora", "uncorrected"],
)
def test_step_ppo_samples_follow_the_policy(colocated_engine, dial_scorer, dial_policy, tmp_path, options):
    trainer = train(StepPPOTrainer, StepPPOConfig, dial_scorer, tmp_path, **options)
    assert_trained_on_its_own_samples(trainer)
    assert_engine_has_the_trained_weights(trainer, dial_policy[0])
    updates = [entry for entry in trainer.state.log_history if "value/loss" in entry]
    assert len(updates) == 4
    # the head is restored after each sync, and is trained, because its initial values are 0
    assert updates[0]["value/mean"] == 0.0 != updates[-1]["value/mean"]
    assert any(parameter is trainer.value_head.weight for parameter in trainer.model.parameters())
    assert trainer.value_head.weight.abs().max() > 0
