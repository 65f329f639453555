"""Step PPO: advantages worked by hand, the KL, the value loss, checkpoints, LoRA and bf16."""

import math

import pytest
import torch
from peft import LoraConfig
from safetensors import safe_open
from step_fakes import (
    FakeScorer,
    by_last_number,
    by_text,
    encode,
    generate_fixed,
    questions,
    save_tiny,
    settings,
    tiny_llama,
    word_level,
)
from transformers import AutoModelForCausalLM
from trl import GRPOTrainer

from erprm_trl.policy.online.step_config import StepGRPOConfig, StepPPOConfig
from erprm_trl.policy.online.step_ppo_trainer import StepPPOTrainer
from erprm_trl.policy.online.value_head import VALUE_HEAD_FILE


# A = "4 ки | 8 </s>": steps of two tokens, scores 0.4 and 0.8. B = "2 </s>": one step of 0.2, two tokens of padding.
A, B = "4 ки 8 </s>", "2 </s>"
EIGHT = [A, B, "1 ки 9", "3 </s>", "5 ки 2 ки 6", "8 ки 4 </s>", "7 ки 3", "6 ки 6 ки 6 </s>"]


def make_trainer(folder, *, scorer=None, funcs=(), model=None, peft_config=None, dataset=None, **others):
    tokenizer = word_level()
    args = {"aggregation": "last", "gae_lambda": 1.0, "whiten_advantages": False, **others}
    return StepPPOTrainer(
        model or tiny_llama(len(tokenizer)),
        [scorer or FakeScorer(by_last_number), *funcs],
        args=StepPPOConfig(**settings(folder, **args)),
        train_dataset=questions(4) if dataset is None else dataset,
        processing_class=tokenizer,
        peft_config=peft_config,
    )


def test_beta_defaults_to_a_tenth_on_step_scores_alone(tmp_path):
    path = save_tiny(tmp_path / "policy", word_level())
    alone, with_answers = (make_trainer(tmp_path, model=path, funcs=funcs) for funcs in ([], [outcome_reward]))
    assert (alone.beta, alone.ref_model is None) == (0.1, False)
    assert (with_answers.beta, with_answers.ref_model is None) == (0.0, True)
    assert make_trainer(tmp_path, model=path, beta=0.0).ref_model is None


def rollout(trainer, texts):
    generate_fixed(trainer, encode(trainer.processing_class, *texts))
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    return trainer._generate_and_score_completions([{"prompt": f"Tom dial {i // 2}"} for i in range(len(texts))])


def set_head(trainer, weight=0.3, bias=0.1):
    """Gives the critic nonzero weights that alternate in sign."""
    with torch.no_grad():
        size = trainer.value_head.weight.shape[1]
        trainer.value_head.weight.copy_(torch.tensor([[weight * (-1) ** index for index in range(size)]]))
        trainer.value_head.bias.fill_(bias)


def check(values, expected, atol=2e-6):
    torch.testing.assert_close(values, torch.as_tensor(expected, dtype=torch.float32), atol=atol, rtol=0)


def outcome_reward(completions, **columns):
    """1 for the first completion of each pair, 0 for the second."""
    return [float(index % 2 == 0) for index in range(len(completions))]


def logps_and_hidden(model, batch):
    """The log-probability of each sampled token and the hidden state before it, computed without TRL."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    num_tokens = batch["completion_ids"].shape[1]
    output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    logps = output.logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return logps[:, -num_tokens:], output.hidden_states[-1][:, :-1][:, -num_tokens:]


# With all values 0 and gamma = lambda = 1, the advantage of a token is the sum of the rewards from it on.
BY_HAND = {
    "difference": [
        [0.8, 0.8, 0.4, 0.4],
        [0.2, 0.2, 0, 0],
    ],  # rewards 0.4 and 0.8 - 0.4, and nothing is subtracted from the first
    "sum": [[1.2, 1.2, 0.8, 0.8], [0.2, 0.2, 0, 0]],
    "outcome": [[0.8, 0.8, 0.8, 0.8], [0.2, 0.2, 0, 0]],
}


@pytest.mark.parametrize("credit", BY_HAND)
def test_advantages_with_zero_values_worked_by_hand(tmp_path, credit):
    trainer = make_trainer(tmp_path, credit=credit)
    batch = rollout(trainer, [A, B])
    check(batch["advantages"], BY_HAND[credit])
    check(batch["returns"], BY_HAND[credit])
    check(batch["old_values"], torch.zeros(2, 4))
    assert trainer._metrics["train"]["reward_parts/step"] == [pytest.approx(sum(r[0] for r in BY_HAND[credit]) / 2)]


def test_gamma_and_lambda_apply_per_token(tmp_path):
    # A's rewards are 0, 0.4, 0, 0.4. With gamma = 0.5: 0.4, 0.2, 0.5, 0.25. With values 0, lambda = 0.5 gives the
    # same, and both together halve twice: 0.4, 0.1, 0.425, 0.10625.
    check(rollout(make_trainer(tmp_path, gamma=0.5), [A, B])["advantages"][0], [0.25, 0.5, 0.2, 0.4])
    check(rollout(make_trainer(tmp_path, gae_lambda=0.5), [A, B])["advantages"][0], [0.25, 0.5, 0.2, 0.4])
    both = make_trainer(tmp_path, gamma=0.5, gae_lambda=0.5)
    check(rollout(both, [A, B])["advantages"], [[0.10625, 0.425, 0.1, 0.4], [0.05, 0.2, 0, 0]])


def test_the_outcome_is_the_reward_of_the_last_token(tmp_path):
    # With lambda = 0, the advantage is the reward itself: 0.5 * 1 on A's end token, and 0.5 * 0 on B's.
    trainer = make_trainer(tmp_path, funcs=[outcome_reward], outcome_weight=0.5, gae_lambda=0.0)
    check(rollout(trainer, [A, B])["advantages"], [[0, 0.4, 0, 0.9], [0, 0.2, 0, 0]])
    # A pair's second completion has the outcome 0, on its own last token instead of the batch's last position.
    batch = rollout(trainer, [B, A, "</s>", B])
    check(batch["advantages"], [[0, 0.7, 0, 0], [0, 0.4, 0, 0.4], [0.5, 0, 0, 0], [0, 0.2, 0, 0]])
    assert trainer._metrics["train"]["reward_parts/outcome"] == [0.25, 0.25]


def test_a_trained_critic_is_the_baseline(tmp_path):
    trainer = make_trainer(tmp_path, gae_lambda=0.95, gamma=0.9)
    set_head(trainer)
    batch = rollout(trainer, [A, B])
    _, hidden = logps_and_hidden(trainer.model, batch)
    values = (hidden @ trainer.value_head.weight[0] + trainer.value_head.bias).detach() * batch["completion_mask"]
    check(batch["old_values"], values, 1e-5)
    assert values.std() > 0.01
    # Generalised advantages row by row in plain Python.
    for row, rewards in enumerate([[0, 0.4, 0, 0.4], [0, 0.2]]):
        expected, advantage, following = [], 0.0, 0.0
        for reward, value in reversed(list(zip(rewards, values[row].tolist(), strict=False))):
            advantage = reward + 0.9 * following - value + 0.9 * 0.95 * advantage
            following = value
            expected.insert(0, advantage)
        expected += [0.0] * (4 - len(expected))
        check(batch["advantages"][row], expected, 1e-5)
        check(batch["returns"][row], torch.tensor(expected) + values[row], 1e-5)
    assert trainer._metrics["train"]["value/mean"] == [pytest.approx(values.sum().item() / 6, abs=1e-5)]


@pytest.mark.parametrize("credit", ["difference", "outcome"])
def test_advantages_with_the_reward_model_as_critic_worked_by_hand(tmp_path, credit):
    # v_0 = (0.8 + 0.2) / 2 = 0.5. A token's advantage is the last value minus the value before its step: 0.8 - 0.5,
    # 0.8 - 0.4 and 0.2 - 0.5. With lambda = 1, it does not matter at which token a reward is given.
    trainer = make_trainer(tmp_path, critic="erprm", credit=credit)
    assert trainer.value_head is None
    batch = rollout(trainer, [A, B])
    check(batch["advantages"], [[0.3, 0.3, 0.4, 0.4], [-0.3, -0.3, 0, 0]])
    assert "old_values" not in batch
    assert {"value/explained_variance", "return/mean"} <= set(trainer._metrics["train"])
    trainer._compute_loss(trainer.model, batch)
    assert "value/loss" not in trainer._metrics["train"]


def test_the_reward_model_as_critic_with_an_outcome_worked_by_hand(tmp_path):
    # The expected outcome is the prefix's value, with weight 0.5. A's tokens have 0.5 * 1 more, minus
    # 0.5 * (0.5, 0.5, 0.4, 0.4). B's tokens have 0.5 * 0.5 less.
    trainer = make_trainer(tmp_path, critic="erprm", funcs=[outcome_reward], outcome_weight=0.5)
    check(
        rollout(trainer, [A, B])["advantages"],
        [[0.3 + 0.25, 0.3 + 0.25, 0.4 + 0.3, 0.4 + 0.3], [-0.3 - 0.25, -0.3 - 0.25, 0, 0]],
    )


def test_reward_weights_apply_to_all_reward_functions(tmp_path):
    # Rewards of A are 2 * (0, 0.4, 0, 0.4), and 0.5 * 3 at its end. B has 2 * 0.2.
    options = {"funcs": [outcome_reward], "outcome_weight": 0.5, "reward_weights": [2.0, 3.0]}
    trainer = make_trainer(tmp_path, gae_lambda=0.0, **options)
    check(rollout(trainer, [A, B])["advantages"], [[0, 0.8, 0, 2.3], [0, 0.4, 0, 0]])
    assert trainer._metrics["train"]["reward_parts/step"] == [pytest.approx(1.0)]
    # With the reward model as critic, the value has the weights of the rewards, 2 + 0.5: 1.25 and 1 before A's steps,
    # and 1.25 before B's. The rewards are 2 * 0.8 + 0.5 for A and 2 * 0.2 for B.
    options = {**options, "reward_weights": [2.0, 1.0]}
    trainer = make_trainer(tmp_path, critic="erprm", credit="outcome", **options)
    check(rollout(trainer, [A, B])["advantages"], [[0.85, 0.85, 1.1, 1.1], [-0.85, -0.85, 0, 0]])


def test_no_outcome_is_expected_for_rows_without_an_outcome(tmp_path):
    def sometimes(completions, **columns):
        return [1.0, None]

    trainer = make_trainer(tmp_path, critic="erprm", funcs=[sometimes], outcome_weight=0.5)
    # A as above. B has only the decrease of its value.
    check(rollout(trainer, [A, B])["advantages"], [[0.3 + 0.25, 0.3 + 0.25, 0.4 + 0.3, 0.4 + 0.3], [-0.3, -0.3, 0, 0]])


@pytest.mark.parametrize("critic", ["head", "erprm"])
def test_the_reference_model_may_follow_the_policy(tmp_path, critic):
    # The value head is a parameter of the policy that the reference model does not have.
    save_tiny(tmp_path / "policy", word_level())
    sync = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.75}
    options = {"beta": 0.1, "critic": critic, "max_steps": 1, **sync}
    trainer = make_trainer(tmp_path / "run", scorer=FakeScorer(by_text), model=str(tmp_path / "policy"), **options)
    before = {name: weight.clone() for name, weight in trainer.ref_model.named_parameters()}
    trainer.train()
    policy = {name: weight for name, weight in trainer.model.named_parameters() if "value_head" not in name}
    assert policy.keys() == before.keys() and (trainer.value_head is not None) is (critic == "head")
    assert any(not torch.equal(policy[name], weight) for name, weight in before.items())
    for name, weight in trainer.ref_model.named_parameters():
        torch.testing.assert_close(weight, 0.25 * before[name] + 0.75 * policy[name])
    if critic == "head":
        assert trainer.value_head.weight.any()  # it is part of the policy again, and is trained


def lacking(completions, **columns):
    """An outcome of 1 for the first completion of each pair, and none for the second."""
    return [1.0 if index % 2 == 0 else None for index in range(len(completions))]


def test_a_trained_critic_has_another_value_for_rows_without_an_outcome(tmp_path):
    # A has the outcome 0.5 * 1 after the step rewards 0.4 and 0.4, so its returns are 1.3, 1.3, 0.9, 0.9, and its
    # values are 0.5. B has no outcome, so its returns are its step reward 0.2, and its values are 0.1. With the value
    # 0.5 of A, the advantages of B would be 0.2 - 0.5, as if an outcome of 0 had been graded.
    trainer = make_trainer(
        tmp_path, funcs=[lacking], outcome_weight=0.5, vf_coef=1.0, value_clip_range=None, max_steps=1
    )
    assert trainer.value_head.bias.tolist() == [0.0, 0.0]
    with torch.no_grad():
        trainer.value_head.bias.copy_(torch.tensor([0.5, 0.1]))
    batch = rollout(trainer, [A, B])
    assert batch["lacks_outcome"].tolist() == [False, True]
    check(batch["old_values"], [[0.5, 0.5, 0.5, 0.5], [0.1, 0.1, 0, 0]])
    check(batch["returns"], [[1.3, 1.3, 0.9, 0.9], [0.2, 0.2, 0, 0]])
    check(batch["advantages"], [[0.8, 0.8, 0.4, 0.4], [0.1, 0.1, 0, 0]])
    # Each row trains its own value: the gradients of the biases are the sums of value - return over six tokens.
    batch["advantages"] = torch.zeros(2, 4)
    loss = trainer._compute_loss(trainer.model, batch)
    assert loss.item() == pytest.approx((2 * 0.64 + 2 * 0.16 + 2 * 0.01) / 2 / 6, abs=1e-6)
    loss.backward()
    check(trainer.value_head.bias.grad, [-2.4 / 6, -0.2 / 6])


def test_rows_with_an_outcome_are_trained_as_without_the_other_rows_value(tmp_path):
    # The second value exists for answers that may be missing. It has no influence where none is missing.
    def run(folder, answers):
        dataset = questions(4, answer=answers)
        trainer = make_trainer(folder, dataset=dataset, grading="exact", scorer=FakeScorer(by_text))
        set_head(trainer)
        rows = [{"prompt": f"Tom dial {index // 2}", "answer": "8"} for index in range(2)]
        generate_fixed(trainer, encode(trainer.processing_class, A, B))
        trainer.model.train()
        batch = trainer._generate_and_score_completions(rows)
        return len(trainer.value_head.bias), batch

    (num_full, full), (num_partial, partial) = run(tmp_path, ["8"] * 4), run(tmp_path, ["8", None, " ", "8"])
    assert (num_full, num_partial) == (1, 2)
    assert "lacks_outcome" not in full and not partial["lacks_outcome"].any()
    for name in ("old_values", "returns", "advantages"):
        check(full[name], partial[name])
    # With outcome_weight=0, no row has an outcome, so one value is enough.
    assert len(make_trainer(tmp_path, dataset=questions(1, answer=[None]), outcome_weight=0.0).value_head.bias) == 1


def test_unscorable_completions_have_no_step_reward(tmp_path):
    for others in ({}, {"critic": "erprm"}, {"whiten_advantages": True}):
        trainer = make_trainer(tmp_path, **others)
        batch = rollout(trainer, ["</s>", "ки </s>"])
        check(batch["advantages"], torch.zeros(2, 2))
        assert trainer._compute_loss(trainer.model, batch).item() == 0
        assert math.isnan(trainer._metrics["train"]["value/explained_variance"][0])  # returns do not vary


def test_explained_variance_worked_by_hand(tmp_path):
    trainer = make_trainer(tmp_path)
    set_head(trainer, weight=0.0, bias=0.3)
    rollout(trainer, [A, B])
    # A constant critic has an explained variance of 0.
    assert trainer._metrics["train"]["value/explained_variance"] == [pytest.approx(0.0, abs=1e-5)]
    # With the reward model's values: returns 0.8 (4 tokens) and 0.2 (2), values 0.5, 0.5, 0.4, 0.4 and 0.5.
    trainer = make_trainer(tmp_path, critic="erprm", credit="outcome")
    rollout(trainer, [A, B])
    errors, returns = torch.tensor([0.3, 0.3, 0.4, 0.4, -0.3, -0.3]), torch.tensor([0.8] * 4 + [0.2] * 2)
    expected = (1 - errors.var() / returns.var()).item()
    assert trainer._metrics["train"]["value/explained_variance"] == [pytest.approx(expected, abs=1e-5)]


def test_whitened_advantages_have_mean_zero_and_variance_one(tmp_path):
    plain = rollout(make_trainer(tmp_path), EIGHT)
    batch = rollout(make_trainer(tmp_path, whiten_advantages=True), EIGHT)
    mask = batch["completion_mask"].bool()
    assert 0 < (~mask).sum() and batch["advantages"][~mask].abs().max() == 0
    kept = batch["advantages"][mask]
    assert kept.mean().item() == pytest.approx(0, abs=1e-6) and kept.var().item() == pytest.approx(1, abs=1e-5)
    of = plain["advantages"][mask]
    check(kept, (of - of.mean()) / of.std(), 1e-5)
    check(batch["returns"], plain["returns"])  # returns are not whitened


def perturb(model):
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "value_head" not in name:
                weight.add_(0.3 * torch.randn_like(weight))


@pytest.fixture(scope="module")
def policy_path(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("policy") / "model", word_level())


@pytest.mark.parametrize("critic", ["head", "erprm"])
def test_the_kl_is_subtracted_from_the_rewards_and_not_in_the_loss(tmp_path, policy_path, critic):
    trainer = make_trainer(
        tmp_path, model=policy_path, beta=0.5, critic=critic, gae_lambda=0.0 if critic == "head" else 1
    )
    perturb(trainer.model)
    batch = rollout(trainer, [A, B])
    with torch.no_grad():
        logps, _ = logps_and_hidden(trainer.model, batch)
        ref_logps, _ = logps_and_hidden(AutoModelForCausalLM.from_pretrained(policy_path), batch)
    kl = (logps - ref_logps) * batch["completion_mask"]  # k1
    assert kl.abs().max() > 0.1 and kl.min() < 0
    if critic == "head":  # with lambda = 0, the advantage is the reward itself
        expected = torch.tensor([[0, 0.4, 0, 0.4], [0, 0.2, 0, 0]]) - 0.5 * kl
    else:
        to_go = kl.flip(-1).cumsum(-1).flip(-1)
        expected = torch.tensor([[0.3, 0.3, 0.4, 0.4], [-0.3, -0.3, 0, 0]]) - 0.5 * to_go
    expected = expected * batch["completion_mask"]
    check(batch["advantages"], expected, 1e-5)
    metrics = trainer._metrics["train"]
    assert metrics["reward_parts/kl"] == [pytest.approx(-0.5 * kl.sum().item() / 2, abs=1e-5)]

    trainer.args.vf_coef = 0.0
    loss = trainer._compute_loss(trainer.model, batch)
    assert loss.item() == pytest.approx(-expected.sum().item() / 6, abs=1e-5)
    assert trainer.beta == 0.5
    # The logged KL is the mean of k3 over tokens, under the current policy.
    k3 = ((-kl).exp() - 1 + kl) * batch["completion_mask"]
    assert metrics["kl"] == [pytest.approx(k3.sum().item() / 6, abs=1e-5)]


def test_the_kl_may_be_in_the_loss_instead(tmp_path, policy_path):
    trainer = make_trainer(tmp_path, model=policy_path, beta=0.5, kl_in_reward=False, vf_coef=0.0)
    perturb(trainer.model)
    batch = rollout(trainer, [A, B])
    check(batch["advantages"], BY_HAND["difference"])
    assert "reward_parts/kl" not in trainer._metrics["train"]
    with torch.no_grad():
        logps, _ = logps_and_hidden(trainer.model, batch)
    kl = (logps - batch["ref_per_token_logps"]) * batch["completion_mask"]
    k3 = ((-kl).exp() - 1 + kl) * batch["completion_mask"]
    expected = (-batch["advantages"].sum() + 0.5 * k3.sum()).item() / 6
    assert trainer._compute_loss(trainer.model, batch).item() == pytest.approx(expected, abs=1e-5)
    assert trainer._metrics["train"]["kl"] == [pytest.approx(k3.sum().item() / 6, abs=1e-5)]


def test_the_kl_uses_the_rollouts_policy_also_if_trl_stores_its_logps(tmp_path, policy_path):
    # With num_iterations=2, TRL runs the forward pass over the rollout itself.
    trainer = make_trainer(tmp_path, model=policy_path, beta=0.5, num_iterations=2, gae_lambda=0.0)
    perturb(trainer.model)
    batch = rollout(trainer, [A, B])
    kl = (batch["old_per_token_logps"] - batch["ref_per_token_logps"]) * batch["completion_mask"]
    check(batch["advantages"], torch.tensor([[0, 0.4, 0, 0.4], [0, 0.2, 0, 0]]) - 0.5 * kl, 1e-5)


def test_trl_gets_the_policy_itself_and_the_hook_is_removed_after_the_call(tmp_path, monkeypatch):
    trainer, models = make_trainer(tmp_path), []
    original = GRPOTrainer._get_per_token_logps_and_entropies

    def watching(self, model, *args, **kwargs):
        models.append((model, len(model._forward_hooks)))
        if fails:
            raise KeyError("the forward failed")
        return original(self, model, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", watching)
    hooks, fails = len(trainer.model._forward_hooks), False
    rollout(trainer, [A, B])
    assert models == [(trainer.model, hooks + 1)]
    fails = True
    with pytest.raises(KeyError, match="the forward failed"):
        rollout(trainer, [A, B])
    assert len(models) == 2 and len(trainer.model._forward_hooks) == hooks


def test_the_value_loss_has_gradients_in_the_head_and_the_policy(tmp_path):
    trainer = make_trainer(tmp_path, vf_coef=2.0, value_clip_range=None)
    set_head(trainer)
    batch = rollout(trainer, [A, B])
    batch["advantages"] = torch.zeros(2, 4)  # no policy loss
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    reference = tiny_llama(len(trainer.processing_class))
    head = [weight.detach().clone().requires_grad_() for weight in trainer.value_head.parameters()]
    _, hidden = logps_and_hidden(reference, batch)
    errors = (hidden @ head[0][0] + head[1] - batch["returns"]).square() * batch["completion_mask"]
    (2.0 * errors.sum() / 2 / 6).backward()
    assert loss.item() == pytest.approx(errors.sum().item() / 6, abs=1e-6)
    for weight, expected in zip(trainer.value_head.parameters(), head, strict=True):
        check(weight.grad, expected.grad, 1e-5)
        assert weight.grad.abs().max() > 1e-3
    gradients = {name: weight.grad for name, weight in trainer.model.named_parameters()}
    reached = 0
    for name, weight in reference.named_parameters():
        if weight.grad is not None and weight.grad.abs().max() > 1e-4:
            check(gradients[name], weight.grad, 1e-5)
            reached += 1
    assert reached >= 10


def test_the_value_loss_is_clipped_at_the_rollouts_values(tmp_path):
    trainer = make_trainer(tmp_path, vf_coef=1.0, value_clip_range=0.2)
    batch = rollout(trainer, [A, B])  # values 0, and returns 0.8, 0.8, 0.4, 0.4 and 0.2, 0.2
    batch["advantages"] = torch.zeros(2, 4)
    set_head(trainer, weight=0.0, bias=0.5)
    # Errors clipped to 0.2: (0.6, 0.6, 0.2, 0.2, 0, 0). Unclipped: (0.3, 0.3, 0.1, 0.1, 0.3, 0.3). The larger counts.
    loss = trainer._compute_loss(trainer.model, batch)
    expected = (2 * 0.36 + 2 * 0.04 + 2 * 0.09) / 2 / 6
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    metrics = trainer._metrics["train"]
    assert metrics["value/loss"] == [pytest.approx(expected, abs=1e-6)]
    assert metrics["value/clip_fraction"] == [pytest.approx(4 / 6)]
    loss.backward()
    # Only B's tokens have a gradient: (0.5 - 0.2) / 6 each.
    assert trainer.value_head.bias.grad.item() == pytest.approx(2 * 0.3 / 6, abs=1e-6)


def test_values_stored_with_the_rollout_do_not_change(tmp_path):
    trainer = make_trainer(tmp_path, num_iterations=2, learning_rate=0.1, per_device_train_batch_size=2)
    generate_fixed(trainer, encode(trainer.processing_class, A, B))
    seen, super_loss = [], trainer._compute_loss

    def compute_loss(model, inputs):
        loss = super_loss(model, inputs)
        now = trainer.value_head(logps_and_hidden(trainer.model, inputs)[1]).detach() * inputs["completion_mask"]
        # TRL shuffles the rows once, so they are sorted by length for the comparison.
        order = inputs["completion_mask"].sum(-1).argsort(descending=True)
        seen.append((inputs["old_values"][order].clone(), inputs["returns"][order].clone(), now[order]))
        return loss

    trainer._compute_loss = compute_loss
    trainer.train()
    (old_first, returns_first, now_first), (old_second, returns_second, now_second) = seen
    check(old_first, torch.zeros(2, 4))
    assert torch.equal(old_first, old_second) and torch.equal(returns_first, returns_second)
    assert (now_first == 0).all() and now_second.abs().max() > 0.05  # the critic's own values have changed
    check(returns_first, BY_HAND["difference"])


@pytest.mark.slow("trains several times")
@pytest.mark.parametrize("others", [{}, {"num_iterations": 2}])
def test_two_batches_of_four_equal_one_batch_of_eight(tmp_path, others):
    def run(**sizes):
        trainer = make_trainer(
            tmp_path, vf_coef=1.0, optim="sgd", learning_rate=0.5, max_grad_norm=1e6, max_steps=2, **others, **sizes
        )
        set_head(trainer)
        generate_fixed(trainer, encode(trainer.processing_class, *EIGHT))
        trainer.train()
        return trainer.state.log_history, {name: weight.detach() for name, weight in trainer.model.named_parameters()}

    logs, whole = run(per_device_train_batch_size=8)
    other_logs, halves = run(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    for name, weight in whole.items():
        check(halves[name], weight, 1e-5)
    for key in ("loss", "grad_norm"):
        assert [log[key] for log in other_logs[:2]] == pytest.approx([log[key] for log in logs[:2]], rel=1e-4)
    assert logs[0]["grad_norm"] > 0.01


def test_two_updates_per_generation_weight_its_tokens_equally(tmp_path):
    # With a learning rate of 0, the mean of the losses of two updates on half the rows equals the whole loss.
    def losses(**sizes):
        trainer = make_trainer(tmp_path, vf_coef=1.0, optim="sgd", learning_rate=0.0, **sizes)
        set_head(trainer)
        generate_fixed(trainer, encode(trainer.processing_class, *EIGHT))
        trainer.train()
        return [log["loss"] for log in trainer.state.log_history[:-1]]

    (whole,) = losses(per_device_train_batch_size=8, max_steps=1)
    halves = losses(per_device_train_batch_size=4, steps_per_generation=2, max_steps=2)
    assert sum(halves) / 2 == pytest.approx(whole, rel=1e-5) and len(halves) == 2


OF_ROLLOUT = {"value/explained_variance", "value/mean", "return/mean", "reward_parts/step"}
OF_UPDATE = {"value/loss", "value/clip_fraction"}


def trained(folder, **others):
    """A trainer after updates with sampling, a trained critic and all default options."""
    trainer = make_trainer(
        folder, scorer=FakeScorer(by_text), whiten_advantages=True, num_iterations=2, value_clip_range=0.2, **others
    )
    return trainer


def keys_of(file):
    with safe_open(file, "pt") as content:
        return set(content.keys())


def loading_report(folder):
    _, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    return {key: value for key, value in report.items() if value}


@pytest.mark.slow("trains several times")
@pytest.mark.parametrize("critic_learning_rate", [None, 0.05])
def test_resuming_at_a_generation_equals_the_uninterrupted_run(tmp_path, critic_learning_rate):
    others = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "critic_learning_rate": critic_learning_rate}
    straight = trained(tmp_path / "run", **others)
    straight.train()
    assert OF_ROLLOUT | OF_UPDATE <= set(straight.state.log_history[0])
    initial, end = tiny_llama(len(word_level())).state_dict(), straight.model.state_dict()
    assert all(not torch.equal(weight, initial[name]) for name, weight in end.items() if name in initial)
    assert straight.value_head.weight.abs().max() > 0

    checkpoint = tmp_path / "run/checkpoint-2"
    assert keys_of(checkpoint / VALUE_HEAD_FILE) == {"weight", "bias"}
    assert keys_of(checkpoint / "model.safetensors") <= set(initial)
    # A checkpoint with this file is complete.
    last = (checkpoint / "trainer_state.json").stat().st_mtime_ns
    assert all(file.stat().st_mtime_ns <= last for file in checkpoint.iterdir())
    resumed = trained(tmp_path / "resumed", **others)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 4
    for name, weight in resumed.model.state_dict().items():
        assert torch.equal(weight, end[name]), name
    for log, expected in zip(resumed.state.log_history[2:4], straight.state.log_history[2:4], strict=True):
        timing = {"step_time", "perf/tokens_per_second", "perf/mfu", "perf/peak_tflops"}
        assert {key: log[key] for key in log if key not in timing} == {
            key: expected[key] for key in expected if key not in timing
        }
    groups = [
        {len(group["params"]): group["lr"] for group in trainer.optimizer.param_groups}
        for trainer in (straight, resumed)
    ]
    assert groups[0] == groups[1]
    head = {id(weight) for weight in resumed.value_head.parameters()}
    of_head = [group for group in resumed.optimizer.param_groups if head & {id(weight) for weight in group["params"]}]
    rates = {group["lr"] for group in of_head}
    assert rates == {critic_learning_rate or 1e-2}
    if critic_learning_rate:
        assert [{id(weight) for weight in group["params"]} for group in of_head] == [head]
    all_params = [id(weight) for group in resumed.optimizer.param_groups for weight in group["params"]]
    assert sorted(all_params) == sorted(
        id(weight) for weight in resumed.model.parameters()
    )  # each weight is in exactly one group


def test_exported_weights_have_no_value_head(tmp_path, caplog):
    trainer = trained(tmp_path / "run", save_strategy="steps", save_steps=2, max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    trainer.model.save_pretrained(tmp_path / "by_model")
    weights = {name: weight for name, weight in trainer.model.state_dict().items() if "value_head" not in name}
    for folder in (tmp_path / "saved", tmp_path / "by_model", tmp_path / "run/checkpoint-2"):
        assert not any("value_head" in key for key in keys_of(folder / "model.safetensors"))
        caplog.clear()
        assert loading_report(folder) == {}
        assert not caplog.records
        loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
        assert loaded.keys() == weights.keys()
        assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())
    assert not (tmp_path / "saved" / VALUE_HEAD_FILE).exists()


def test_a_checkpoint_without_a_head_is_an_error(tmp_path):
    trainer = trained(tmp_path / "run", critic="erprm", save_strategy="steps", save_steps=2, max_steps=2)
    trainer.train()
    assert not (tmp_path / "run/checkpoint-2" / VALUE_HEAD_FILE).exists()
    with pytest.raises(FileNotFoundError, match="expected a checkpoint of StepPPOTrainer with critic='head'"):
        trained(tmp_path / "other").train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    restarted = trained(tmp_path / "other", model=str(tmp_path / "run/checkpoint-2"), max_steps=1)  # the proposed fix
    assert restarted.train().global_step == 1


@pytest.mark.slow("trains several times")
def test_two_values_resume_and_a_checkpoint_with_one_value_keeps_one(tmp_path, caplog):
    def run(folder, answers=("8", None, "8", None), resume=None):
        dataset = questions(4, answer=list(answers))
        trainer = trained(
            tmp_path / folder, dataset=dataset, grading="exact", max_steps=4, save_strategy="steps", save_steps=2
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    straight = run("run")
    checkpoint = str(tmp_path / "run/checkpoint-2")
    assert straight.value_head.bias.abs().min() > 0  # both values were trained
    resumed = run("resumed", resume=checkpoint)
    end = straight.model.state_dict()
    assert all(torch.equal(weight, end[name]) for name, weight in resumed.model.state_dict().items())
    # A checkpoint with one value, as earlier versions write it for this dataset.
    run("earlier", ["8"] * 4)
    continued = run("continued", resume=str(tmp_path / "earlier/checkpoint-2"))
    assert len(continued.value_head.bias) == 1 and continued.state.global_step == 4
    assert "has a critic with one value, from an earlier version" in caplog.text


SINGLE = {"num_generations": 1, "critic": "head"}


def test_one_completion_per_question_needs_no_group(tmp_path):
    trainer = make_trainer(tmp_path, **SINGLE, per_device_train_batch_size=3, dataset=questions(4, answer=["8"] * 4))
    assert trainer.num_generations == 1 and type(trainer.args.num_generations) is int
    batch = rollout_of(trainer, [A, B, B])
    check(batch["advantages"][:2], [[0.8, 0.8, 0.4, 0.4], [0.2, 0.2, 0, 0]])
    assert "steps/agreement" not in trainer._metrics["train"] and "steps/accuracy" in trainer._metrics["train"]
    assert StepPPOConfig(**settings(tmp_path, **SINGLE, num_generations_eval=4)).num_generations_eval == 4
    copied = StepPPOConfig(**{**settings(tmp_path), **SINGLE, "per_device_train_batch_size": 1})
    assert copied.generation_batch_size == 1


def rollout_of(trainer, texts):
    generate_fixed(trainer, encode(trainer.processing_class, *texts))
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    return trainer._generate_and_score_completions(
        [{"prompt": f"Tom dial {index}", "answer": None} for index in range(len(texts))]
    )


@pytest.mark.slow("trains several times")
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_one_completion_per_question_trains_and_evaluates(tmp_path, policy_path, scale):
    data = questions(8, answer=["8"] * 8)
    trainer = trained(
        tmp_path, **SINGLE, dataset=data, grading="exact", scale_rewards=scale, per_device_eval_batch_size=2, beta=0.1,
        model=policy_path,
    )  # fmt: skip
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 2 and all(math.isfinite(log["loss"]) and log["grad_norm"] > 0 for log in logs)
    assert {"eval_steps/mean_score", "eval_value/mean"} <= set(trainer.evaluate(data))
    # Each question is sampled once per epoch.
    assert sorted(trainer._get_train_sampler()) == sorted(list(range(8)) * 2)  # num_iterations=2


def test_a_critic_that_needs_a_group_refuses_one_completion_per_question(tmp_path):
    with pytest.raises(ValueError, match="num_generations: got 1 with critic='erprm', expected at least 2"):
        StepPPOConfig(**settings(tmp_path, num_generations=1, critic="erprm"))
    with pytest.raises(ValueError, match="requires at least 2 generations"):
        StepGRPOConfig(**settings(tmp_path, num_generations=1))


@pytest.mark.slow("trains several times")
def test_lora_trains_the_head_and_resumes(tmp_path, policy_path):
    def run(folder):
        lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
        return trained(
            tmp_path / folder, model=policy_path, peft_config=lora, beta=0.1,
            max_steps=4, save_strategy="steps", save_steps=2,
        )  # fmt: skip

    straight = run("run")
    assert straight.value_head.weight.requires_grad
    straight.train()
    assert straight.value_head.weight.abs().max() > 0
    checkpoint = tmp_path / "run/checkpoint-2"
    assert (checkpoint / VALUE_HEAD_FILE).exists() and not (checkpoint / "model.safetensors").exists()
    assert all("lora_" in key for key in keys_of(checkpoint / "adapter_model.safetensors"))
    resumed = run("resumed")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    end = straight.model.state_dict()
    for name, weight in resumed.model.state_dict().items():
        assert torch.equal(weight, end[name]), name
    assert any("lora_B" in name and weight.abs().max() > 0 for name, weight in end.items())


@pytest.mark.slow("trains several times")
@pytest.mark.parametrize(
    "others", [{"gradient_checkpointing": True}, {"bf16": True}], ids=["gradient checkpointing", "bf16"]
)
def test_memory_saving_options_change_results_little(tmp_path, others):
    def run(**options):
        trainer = make_trainer(tmp_path, max_steps=1, optim="sgd", learning_rate=0.1, vf_coef=1.0, **options)
        set_head(trainer)
        generate_fixed(trainer, encode(trainer.processing_class, *EIGHT))
        dtypes, super_loss = [], trainer._compute_loss

        def compute_loss(model, inputs):
            dtypes.extend(inputs[key].dtype for key in ("advantages", "returns", "old_values"))
            loss = super_loss(model, inputs)
            dtypes.append(loss.dtype)
            return loss

        trainer._compute_loss = compute_loss
        trainer.train()
        assert set(dtypes) == {torch.float32}
        return trainer.state.log_history[0], {n: w.detach() for n, w in trainer.model.named_parameters()}

    plain_log, plain = run()
    log, weights = run(**others)
    tolerance = 0.1 if "bf16" in others else 1e-5
    for key in ("loss", "grad_norm", "value/loss", "value/mean"):
        assert log[key] == pytest.approx(plain_log[key], abs=tolerance), key
    for name, weight in weights.items():
        assert weight.dtype == torch.float32
        check(weight, plain[name], tolerance / 10)


def test_two_updates_with_sampling_log_everything(tmp_path, policy_path):
    trainer = trained(tmp_path, model=policy_path, eta=10.0, funcs=[outcome_reward])
    assert trainer.beta == 0.1
    trainer.train()
    first, second = trainer.state.log_history[:2]
    of_rollout = OF_ROLLOUT | {"reward_parts/outcome", "reward_parts/kl", "rewards/outcome_reward/mean"}
    assert of_rollout | OF_UPDATE | {"kl"} <= set(first)
    assert OF_UPDATE | {"kl"} <= set(second) and not of_rollout & set(
        second
    )  # the second update uses the same rollout
    for log in (first, second):
        assert math.isfinite(log["loss"]) and log["grad_norm"] > 0
    assert first["kl"] == 0 < second["kl"] and second["value/loss"] < first["value/loss"]


def test_evaluation_logs_metrics(tmp_path):
    trainer = make_trainer(tmp_path, scorer=FakeScorer(by_text), per_device_eval_batch_size=4)
    set_head(trainer)
    assert math.isfinite(trainer.evaluate(eval_dataset=questions(4))["eval_loss"])
    assert trainer.state.log_history[-1]["eval_value/loss"] > 0


def test_truncated_completions_may_be_masked(tmp_path):
    trainer = make_trainer(tmp_path, mask_truncated_completions=True, funcs=[outcome_reward])
    check(rollout(trainer, ["4 ки 8 ки", "2 </s>"])["advantages"], [[0.0] * 4, [0.2, 0.2, 0, 0]])


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"critic": "oracle"}, "critic: got 'oracle'"),
        ({"critic": "erprm", "credit": "sum"}, "critic='erprm': got credit='sum'"),
        ({"gamma": 1.5}, "gamma: got 1.5"),
        ({"gae_lambda": -0.1}, "gae_lambda: got -0.1"),
        ({"value_clip_range": 0.0}, "value_clip_range: got 0.0"),
        ({"credit": "nothing"}, "credit: got 'nothing'"),
    ],
)
def test_invalid_configurations_are_errors(tmp_path, others, message):
    with pytest.raises(ValueError, match=message):
        StepPPOConfig(**settings(tmp_path, **others))
