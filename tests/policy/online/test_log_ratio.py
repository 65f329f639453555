"""The credit of the log-ratio: advantages worked by hand, agreement with TRL's trainer, the KL, and errors."""

import pytest
import torch
from peft import LoraConfig
from step_fakes import (
    FakeScorer,
    by_text,
    encode,
    generate_fixed,
    questions,
    save_tiny,
    settings,
    tiny_llama,
    word_level,
)
from trl import GRPOConfig, GRPOTrainer

from erprm_trl.policy.online.log_ratio import log_ratio_advantages
from erprm_trl.policy.online.step_config import StepGRPOConfig, StepPPOConfig
from erprm_trl.policy.online.step_grpo_trainer import StepGRPOTrainer
from erprm_trl.policy.online.step_ppo_trainer import StepPPOTrainer


A, B = "4 ки 8 </s>", "2 </s>"
# Log-ratios of A's four tokens and of B's two. The padding must not count.
RATIOS = torch.tensor([[0.1, 0.2, -0.3, 0.4], [0.5, 0.25, 9.0, 9.0]])


def first_is_right(completions, **columns):
    """1 for the first completion of each pair, 0 for the second."""
    return [float(index % 2 == 0) for index in range(len(completions))]


def length(completion_ids, **columns):
    """The share of 12 tokens that a completion has."""
    return [len(ids) / 12 for ids in completion_ids]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A folder with a tiny policy, from which TRL loads the reference."""
    return save_tiny(tmp_path_factory.mktemp("policy"), word_level())


def make_trainer(folder, policy, funcs=(first_is_right,), dataset=None, callbacks=None, peft_config=None, **others):
    options = {"credit": "log_ratio", "eta": 2.0, "splitter": "ки", "scale_rewards": "none", **others}
    return StepGRPOTrainer(
        policy,
        list(funcs),
        StepGRPOConfig(**settings(folder, **options)),
        dataset if dataset is not None else questions(4),
        processing_class=word_level(),
        callbacks=callbacks,
        peft_config=peft_config,
    )


def rollout(trainer, ratios=RATIOS, texts=(A, B)):
    """TRL's batch for two fixed completions, with these log-ratios."""
    generate_fixed(trainer, encode(trainer.processing_class, *texts))
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    calls = []

    def log_probs(model, input_ids, attention_mask, logits_to_keep, batch_size=None, **others):
        calls.append(model)
        logps = torch.full((2, logits_to_keep), -1.0)
        return (logps - ratios[:, :logits_to_keep] if model is trainer.ref_model else logps), None, None

    trainer._get_per_token_logps_and_entropies = log_probs
    return trainer._generate_and_score_completions([{"prompt": "Tom dial 0"}] * 2), calls


# The outcomes 1 and 0 have the advantages 0.5 and -0.5, and beta is 1/2.
BY_HAND = {
    # A's steps begin at tokens 0 and 2, with sums 0.4 and 0.1. B is one step with the sum 0.75.
    None: [[0.3, 0.3, 0.45, 0.45], [-0.875, -0.875, 0, 0]],
    # Sums from each token: 0.4, 0.3, 0.1, 0.4 and 0.75, 0.25.
    1: [[0.3, 0.35, 0.45, 0.3], [-0.875, -0.625, 0, 0]],
    # Steps begin at tokens 0 and 3.
    3: [[0.3, 0.3, 0.3, 0.3], [-0.875, -0.875, 0, 0]],
    100: [[0.3, 0.3, 0.3, 0.3], [-0.875, -0.875, 0, 0]],
}


@pytest.mark.parametrize("step_tokens", BY_HAND)
def test_advantages_worked_by_hand(tmp_path, policy, step_tokens):
    splitter = "ки" if step_tokens is None else None
    trainer = make_trainer(tmp_path, policy, step_tokens=step_tokens, splitter=splitter)
    output, calls = rollout(trainer)
    torch.testing.assert_close(output["advantages"], torch.tensor(BY_HAND[step_tokens]))
    assert calls == [trainer.ref_model, trainer.model]
    metrics = trainer.metrics_of_mode
    assert metrics["reward_parts/kl"] == [pytest.approx(-0.5 * (0.4 + 0.75) / 2)]
    assert metrics["reward_parts/outcome"] == [0.5] and "reward_parts/step" not in metrics
    k3 = (torch.exp(-RATIOS) - 1 + RATIOS)[torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]) == 1]
    assert metrics["kl"] == [pytest.approx(k3.mean().item())]
    per_answer = 1.5 if splitter else 1.0  # "whole_lines" finds no line end
    assert metrics["steps/per_answer"] == [per_answer] and "steps/mean_score" not in metrics


def test_the_beta_may_be_set_instead_of_eta_and_the_outcome_has_its_weight(tmp_path, policy):
    trainer = make_trainer(tmp_path, policy, eta=None, beta=0.5, outcome_weight=2.0)
    output, _ = rollout(trainer)
    torch.testing.assert_close(output["advantages"], torch.tensor([[0.8] * 2 + [0.95] * 2, [-1.375] * 2 + [0, 0]]))


def test_masked_completions_have_no_advantage(tmp_path, policy):
    trainer = make_trainer(tmp_path, policy, mask_truncated_completions=True)
    output, _ = rollout(trainer, texts=("4 ки 8 9", B))
    assert not output["advantages"][0].any() and output["advantages"][1].any()


def test_the_log_probs_of_the_rollout_are_computed_once(tmp_path, policy):
    trainer = make_trainer(tmp_path, policy, num_iterations=2)
    output, calls = rollout(trainer)
    assert calls == [trainer.model, trainer.ref_model]  # TRL's own pass of the policy is used
    torch.testing.assert_close(output["advantages"], torch.tensor(BY_HAND[None]))


def test_padding_does_not_affect_advantages(tmp_path, policy):
    wide = torch.cat([RATIOS, torch.full((2, 4), 7.0)], dim=1)
    output, _ = rollout(make_trainer(tmp_path, policy, pad_to_multiple_of=8), wide)
    expected = torch.nn.functional.pad(torch.tensor(BY_HAND[None]), (0, 4))
    torch.testing.assert_close(output["advantages"], expected)


@pytest.mark.slow("also trains with TRL's trainer")
@pytest.mark.parametrize(
    "others",
    [{}, {"scale_rewards": "batch", "num_iterations": 2}, {"loss_type": "grpo", "reward_weights": [0.3, 2.0]}],
    ids=["group", "batch", "weights"],
)
def test_a_policy_that_equals_its_reference_is_trained_as_by_trls_grpo_bitwise(tmp_path, policy, others):
    updates, options = 3, {"per_device_train_batch_size": 8, "num_generations": 4, "scale_rewards": "group", **others}

    def train(trainer):
        trainer.train()
        return [log["loss"] for log in trainer.state.log_history[:updates]], trainer.model.state_dict()

    # The reference follows the policy after each update. At the second update of a generation they differ, but the
    # returns are those of the rollout.
    sync = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 1.0}
    ours = make_trainer(tmp_path, policy, (first_is_right, length), questions(6), max_steps=updates, **options, **sync)
    our_losses, our_weights = train(ours)
    args = GRPOConfig(**settings(tmp_path, max_steps=updates, **options))
    theirs = GRPOTrainer(policy, [first_is_right, length], args, questions(6), processing_class=word_level())
    their_losses, their_weights = train(theirs)
    assert our_losses == their_losses
    initial = tiny_llama(len(word_level())).state_dict()
    for name, weight in our_weights.items():
        assert torch.equal(weight, their_weights[name])
    assert max((weight - initial[name]).abs().max() for name, weight in our_weights.items()) > 1e-3


@pytest.mark.slow("trains several policies")
def test_a_resumed_run_equals_the_uninterrupted_run(tmp_path, policy):
    """The run is resumed in the middle of a generation, and at its end."""

    def train(folder, **resume):
        options = {"per_device_train_batch_size": 2, "steps_per_generation": 2, "num_iterations": 2, "max_steps": 6}
        options |= {"save_strategy": "steps", "save_steps": 1, "step_tokens": 2, "splitter": None}
        trainer = make_trainer(folder, policy, (length,), **options)
        trainer.train(**resume)
        return trainer

    straight = train(tmp_path / "straight")
    for update in (3, 4):
        torch.manual_seed(update)
        resumed = train(
            tmp_path / f"resumed-{update}", resume_from_checkpoint=tmp_path / f"straight/checkpoint-{update}"
        )
        for name, weight in resumed.model.state_dict().items():
            assert torch.equal(weight, straight.model.state_dict()[name])


def test_the_kl_is_not_in_the_loss(tmp_path, policy):
    trainer = make_trainer(tmp_path, policy)
    with torch.no_grad():
        for parameter in trainer.ref_model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    generate_fixed(trainer, encode(trainer.processing_class, A, B))
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    output = trainer._generate_and_score_completions([{"prompt": "Tom dial 0"}] * 2)
    # At ratio 1, the DAPO loss is minus the sum of the advantages over the six tokens.
    assert output["advantages"].std() > 0.1
    loss = trainer._compute_loss(trainer.model, output)
    assert loss.item() == pytest.approx(-output["advantages"].sum().item() / 6, abs=1e-6)
    assert trainer.beta == 0.5 and len(trainer.metrics_of_mode["kl"]) == 1
    # The reported KL is that of the two models.
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
    mask = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
    policy_logps, ref_logps = (
        model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])
        for model in (tiny_llama(len(trainer.processing_class)), trainer.ref_model)
    )
    ratios = (policy_logps - ref_logps).squeeze(-1)[:, -4:] * output["completion_mask"]
    assert trainer.metrics_of_mode["reward_parts/kl"] == [pytest.approx(-0.5 * ratios.sum(-1).mean().item(), abs=1e-5)]


def test_the_reference_of_an_adapter_is_the_base_model(tmp_path, policy):
    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = make_trainer(
        tmp_path, policy, peft_config=adapter, max_steps=3, learning_rate=0.1, step_tokens=1, splitter=None
    )
    assert trainer.ref_model is None
    trainer.train()
    kls = [log["kl"] for log in trainer.state.log_history if "kl" in log]
    assert kls[0] == pytest.approx(0.0, abs=1e-9) and kls[-1] > 1e-4


def test_evaluation_and_tables_work_without_a_reward_model(tmp_path, policy):
    data = questions(4, answer=["3"] * 4)
    trainer = make_trainer(tmp_path, policy, (), data, log_completions=True, num_generations_eval=2, max_steps=1)
    assert trainer.outcome_weight == 1.0 and trainer.reward_func_names == ["answer_reward"]
    generate_fixed(trainer, encode(trainer.processing_class, A, B, A, B))
    trainer.train()
    assert "steps/accuracy" in trainer.state.log_history[0] and "steps/agreement" not in trainer.state.log_history[0]
    metrics = trainer.evaluate(data.select(range(2)))
    assert {"eval_loss", "eval_kl", "eval_reward_parts/outcome", "eval_steps/per_answer"} <= set(metrics)
    assert trainer._tracking._solutions() is not None  # without scores, steps have no colours


def test_a_completion_without_steps_is_one_step(tmp_path, policy):
    output, _ = rollout(make_trainer(tmp_path, policy), texts=("ки ки ки </s>", B))
    torch.testing.assert_close(output["advantages"][0], torch.full((4,), 0.3))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({}, "eta: got None with credit='log_ratio'.*1/eta is the strength"),
        ({"eta": float("inf")}, "eta: got inf with credit='log_ratio', expected a positive finite number"),
        ({"eta": -1.0}, "eta: got -1.0"),
        ({"beta": 0.0}, "beta: got 0.0 with credit='log_ratio'"),
        ({"eta": 2.0, "beta": 0.1}, "beta: got 0.1 with eta=2.0.*expected beta=1/eta=0.5"),
        ({"eta": 2.0, "step_tokens": 0}, "step_tokens: got 0, expected at least 1"),
        ({"eta": 2.0, "step_tokens": 4, "splitter": "newline"}, "step_tokens: got 4 with splitter='newline'"),
        ({"eta": 2.0, "outcome_weight": 0.0}, "outcome_weight: got 0 with credit='log_ratio'"),
        ({"eta": 2.0, "center": "outcome"}, "center: got 'outcome' with credit='log_ratio'"),
        ({"eta": 2.0, "shard_reward_model": True}, "shard_reward_model: got True with credit='log_ratio'"),
        ({"credit": "sum", "step_tokens": 4}, "step_tokens: got 4 with credit='sum'"),
        ({"credit": "sum", "splitter": "newline"}, "splitter: got 'newline' with credit='sum'"),
    ],
)
def test_invalid_configurations(tmp_path, others, message):
    with pytest.raises(ValueError, match=message):
        StepGRPOConfig(**settings(tmp_path, **{"credit": "log_ratio", **others}))


def test_ppo_refuses_the_credit_with_the_reason(tmp_path):
    with pytest.raises(ValueError, match="got 'log_ratio' with StepPPOConfig.*would count it twice"):
        StepPPOConfig(**settings(tmp_path, credit="log_ratio", eta=2.0))


def test_reward_models_and_missing_outcomes_are_errors(tmp_path, policy):
    with pytest.raises(ValueError, match="got a process reward model with credit='log_ratio'"):
        make_trainer(tmp_path, policy, [FakeScorer(by_text)])
    with pytest.raises(ValueError, match=r"got credit='log_ratio' without an outcome.*it has prompt"):
        make_trainer(tmp_path, policy, [])
    with pytest.raises(ValueError, match="got 0 process reward models"):
        make_trainer(tmp_path, policy, [], credit="sum", eta=None, splitter=None)
    with pytest.raises(ValueError, match="got 0 process reward models"):
        StepPPOTrainer(policy, [], StepPPOConfig(**settings(tmp_path)), questions(4))
    # A path that is no process reward model is named. TRL would take it as a model of another kind.
    (tmp_path / "rollouts").mkdir()
    for name, missing in (("rollouts", "prm_format.json"), ("scorer.yaml", "file")):
        with pytest.raises(
            ValueError, match=rf"got 0 process reward models .*--reward_model.*{name}: got no {missing}"
        ):
            StepPPOTrainer(policy, str(tmp_path / name), StepPPOConfig(**settings(tmp_path)), questions(4))


def test_no_reward_function_is_needed_with_answers(tmp_path, policy):
    args = StepGRPOConfig(**settings(tmp_path, credit="log_ratio", eta=5.0))
    trainer = StepGRPOTrainer(policy, args=args, train_dataset=questions(4, answer=["3"] * 4))
    assert trainer.beta == 0.2 and trainer.reward_func_names == ["answer_reward"]
    assert trainer.step_reward.prm_format.splitter == "whole_lines"


def test_tokens_of_tools_have_no_advantage_and_no_log_ratio(tmp_path, policy):
    trainer = make_trainer(tmp_path, policy)
    output, _ = rollout(trainer)
    output["advantages"] = torch.tensor([0.5, -0.5])
    output["tool_mask"] = torch.tensor([[1, 0, 1, 0], [1, 1, 1, 1]])
    ends, steps = torch.tensor([[1, 3], [1, 0]]), torch.tensor([[True, True], [True, False]])
    # A's sums without its second and fourth token are 0.1 - 0.3 and -0.3.
    advantages = log_ratio_advantages(trainer, output, ends, steps)
    torch.testing.assert_close(advantages, torch.tensor([[0.6, 0, 0.65, 0], [-0.875, -0.875, 0, 0]]))
