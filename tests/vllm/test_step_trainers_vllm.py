"""The step trainers with TRL's colocated vLLM engine. PPO's value head is a submodule of the policy, but is not sent
to the engine."""

import pytest
from peft import LoraConfig
from vllm_oracles import greedy_ids
from vllm_training import (
    LONGEST,
    QUESTIONS,
    assert_engine_has_the_trained_weights,
    assert_trained_on_its_own_samples,
    train,
)

from erprm_trl import MonteCarloScorer, StepGRPOConfig, StepGRPOTrainer, StepPPOConfig, StepPPOTrainer, dial
from erprm_trl.reward_model.scoring.trained_policy import OwnPrefix


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


def test_continuations_of_the_policy_come_from_the_engine_with_the_trained_weights(
    colocated_engine, dial_policy, tmp_path
):
    scorer = MonteCarloScorer("policy", num_continuations=2, splitter=dial.SEPARATOR)
    trainer = train(StepGRPOTrainer, StepGRPOConfig, scorer, tmp_path, credit="difference", gamma=0.0)
    assert_trained_on_its_own_samples(trainer)
    assert all(entry["monte_carlo/tokens"] > 0 for entry in trainer.state.log_history if "loss" in entry)
    tokenizer, model = trainer.processing_class, trainer.model.eval()
    trainer.vllm_generation.temperature = 0.0
    prefixes = [OwnPrefix(tuple(tokenizer(question)["input_ids"]), ()) for question in QUESTIONS]
    greedy = tokenizer.batch_decode(greedy_ids(model, tokenizer, QUESTIONS, LONGEST), skip_special_tokens=True)
    continued = trainer._continuations.continue_prefixes(prefixes, 2)
    assert [[each.text for each in pair] for pair in continued] == [[text, text] for text in greedy]
    assert greedy != tokenizer.batch_decode(
        greedy_ids(dial_policy[0], tokenizer, QUESTIONS, LONGEST), skip_special_tokens=True
    )
    assert trainer.vllm_generation.max_completion_length == LONGEST


def test_the_log_ratio_uses_the_log_probs_of_the_trained_model(colocated_engine, tmp_path):
    options = {"credit": "log_ratio", "eta": 10.0, "splitter": dial.SEPARATOR}
    trainer = train(StepGRPOTrainer, StepGRPOConfig, None, tmp_path, **options)
    assert_trained_on_its_own_samples(trainer)
    kls = [entry["kl"] for entry in trainer.state.log_history if "loss" in entry]
    assert abs(kls[0]) < 1e-6 < kls[-1]
