"""The log-probabilities at the rollout: agreement with an oracle for models that read images."""

import pytest
import torch
from step_fakes import FakeScorer, by_text, encode, generate_fixed, settings
from tiny_llava import questions_about_images, save_llava
from transformers import LlavaForConditionalGeneration

from erprm_trl.policy.online.rollout_log_probs import rollout_log_probs
from erprm_trl.policy.online.step_config import StepGRPOConfig, StepPPOConfig
from erprm_trl.policy.online.step_grpo_trainer import StepGRPOTrainer
from erprm_trl.policy.online.step_ppo_trainer import StepPPOTrainer


TEXTS = ("4 ки 8 </s>", "2 </s>")


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A folder with a policy that reads images, and its processor."""
    return save_llava(tmp_path_factory.mktemp("policy"))


def make_trainer(folder, policy, kind):
    trainer_class, config_class, func, options = {
        "log_ratio": (StepGRPOTrainer, StepGRPOConfig, None, {"credit": "log_ratio", "eta": 2.0}),
        "ppo": (StepPPOTrainer, StepPPOConfig, FakeScorer(by_text), {"beta": 0.5}),
    }[kind]
    trainer = trainer_class(
        policy[0],
        func,
        config_class(**settings(folder, per_device_train_batch_size=2, **options)),
        questions_about_images(answer=["8", "2"]),
        processing_class=policy[1],
    )
    generate_fixed(trainer, encode(policy[1].tokenizer, *TEXTS))
    return trainer


def oracle(folder, output, images=True):
    """Log-probabilities of the completions and the hidden states that chose them, by transformers alone."""
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
    mask = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
    pixels = output["pixel_values"] if images else torch.zeros_like(output["pixel_values"])
    with torch.no_grad():
        result = model(input_ids=ids, attention_mask=mask, pixel_values=pixels, output_hidden_states=True)
    logps = result.logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    length = output["completion_ids"].shape[1]
    return logps[:, -length:], result.hidden_states[-1][:, :-1][:, -length:]


@pytest.mark.parametrize("kind", ["log_ratio", "ppo"])
def test_the_policy_sees_the_images_at_the_rollout(tmp_path, policy, kind):
    trainer = make_trainer(tmp_path, policy, kind)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    with torch.no_grad():
        for parameter in trainer.ref_model.parameters():
            parameter.mul_(0.9)
        if kind == "ppo":
            trainer.value_head.weight.copy_(torch.linspace(-1, 1, 16)[None])
    output = trainer._generate_and_score_completions(list(trainer.train_dataset))
    mask = output["completion_mask"]
    logps, hidden = oracle(policy[0], output)
    blind, _ = oracle(policy[0], output, images=False)
    assert ((logps - blind) * mask).abs().max() > 1e-2
    torch.testing.assert_close(rollout_log_probs(trainer, output) * mask, logps * mask)
    if kind == "ppo":
        values = hidden @ torch.linspace(-1, 1, 16)
        torch.testing.assert_close(output["old_values"], values * mask, atol=1e-5, rtol=1e-5)
    kl = ((logps - output["ref_per_token_logps"]) * mask).sum(-1).mean().item()
    (logged,) = trainer.metrics_of_mode["reward_parts/kl"]
    assert float(logged) == pytest.approx(-0.5 * kl, abs=1e-5) and abs(kl) > 1e-2
    assert trainer._compute_loss(trainer.model, output).isfinite()
