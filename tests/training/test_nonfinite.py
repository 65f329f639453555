"""Tests that every trainer stops at non-finite values before it trains on them or saves them, and names the tensor."""

import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from step_fakes import (
    DIAL_FORMAT,
    FakeScorer,
    by_text,
    encode,
    generate_fixed,
    questions,
    settings,
    tiny_llama,
    word_level,
)
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from erprm_trl import ERPRMConfig, ERPRMTrainer, RAFTConfig, RAFTTrainer, StepRewardFunction, dial
from erprm_trl.policy.online.step_config import StepGRPOConfig, StepPPOConfig
from erprm_trl.policy.online.step_grpo_trainer import StepGRPOTrainer
from erprm_trl.policy.online.step_ppo_trainer import StepPPOTrainer


WEIGHT = "model.layers.1.self_attn.o_proj.weight"
ROWS = [
    {"prompt": "Tom dial 7 . right 15 . ?", "completions": ["7 + 15 = 2", "answer 2"], "labels": [0.9, 1.0]},
    {"prompt": "Ann dial 1 . left 2 . ?", "completions": ["answer 3"], "labels": [0.0]},
] * 2
FORMAT = {name: getattr(DIAL_FORMAT, name) for name in ("separator", "good_token", "bad_token", "prompt_template")}
NAMES = ("erprm lm", "erprm token", "step_grpo", "step_ppo")


def make(name, folder, scorer=None, funcs=(), callbacks=(), **options):
    tokenizer = word_level()
    options = settings(folder, max_steps=4, **options)
    if name.startswith("erprm"):
        head = name.split()[1]
        options = {key: options[key] for key in options if key not in ("num_generations", "max_completion_length")}
        args, data = ERPRMConfig(**options, **FORMAT, head=head), Dataset.from_list(ROWS)
        model = tiny_llama(len(tokenizer), head)
        return ERPRMTrainer(
            model, args, train_dataset=data, eval_dataset=data, processing_class=tokenizer, callbacks=list(callbacks)
        )
    trainer_class, config = {
        "step_grpo": (StepGRPOTrainer, StepGRPOConfig),
        "step_ppo": (StepPPOTrainer, StepPPOConfig),
    }[name]
    trainer = trainer_class(
        tiny_llama(len(tokenizer)),
        [scorer or FakeScorer(by_text), *funcs],
        config(**options),
        questions(8),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
    # Sampling with non-finite weights raises an error of its own, so the test replaces it.
    generate_fixed(trainer, encode(tokenizer, "4 ки 8 </s>", "2 </s>", "6 ки 1 </s>", "9 ки 3 ки 5 </s>"))
    return trainer


class Poison(TrainerCallback):
    """Sets one element of a weight to a non-finite value after the first update."""

    def __init__(self, value):
        self.value = value

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 1:
            dict(model.named_parameters())[WEIGHT].data[0, 0] = self.value


@pytest.mark.slow("trains many times")
@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_the_error_names_a_non_finite_weight(name, value, tmp_path):
    trainer = make(name, tmp_path, callbacks=[Poison(value)])
    assert not trainer.args.logging_nan_inf_filter  # the filter would check each batch again, and hide the value
    with pytest.raises(
        FloatingPointError, match=rf"^Global step 1: .* is -?(nan|inf).* the weight {WEIGHT}\. Restart"
    ):
        trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.slow("trains many times")
@pytest.mark.parametrize("name", NAMES)
def test_a_non_finite_gradient_is_not_applied(name, tmp_path):
    trainer = make(name, tmp_path)
    weight = dict(trainer.model.named_parameters())[WEIGHT]
    weight.register_hook(lambda gradient: gradient * (math.inf if trainer.state.global_step == 2 else 1.0))
    with pytest.raises(
        FloatingPointError, match=r"Global step 2: the norm of the gradients is .* All weights .* finite"
    ):
        trainer.train()
    assert trainer.state.global_step == 2
    assert all(bool(parameter.isfinite().all()) for parameter in trainer.model.parameters())


@pytest.mark.slow("trains many times")
@pytest.mark.parametrize("name", NAMES)
def test_a_non_finite_loss_on_another_process_stops_this_process_too(name, tmp_path, monkeypatch):
    trainer = make(name, tmp_path)
    check, losses = trainer._check_finite, []

    def sum_with_nan(tensor, reduction="mean", scale=1.0):
        losses.append(tensor.item())
        return tensor + math.nan

    def check_with_nan(grad_norm):
        with monkeypatch.context() as patch:
            patch.setattr(trainer.accelerator, "reduce", sum_with_nan)
            return check(grad_norm)

    monkeypatch.setattr(trainer, "_check_finite", check_with_nan)
    with pytest.raises(FloatingPointError, match="Global step 0: the loss is nan.* All weights"):
        trainer.train()
    assert len(losses) == 1 and math.isfinite(losses[0])


@pytest.mark.slow("trains several times")
@pytest.mark.parametrize("is_deepspeed", [False, True])
def test_a_non_finite_loss_of_any_accumulated_batch_is_not_applied(is_deepspeed, tmp_path, monkeypatch):
    trainer = make("erprm lm", tmp_path, gradient_accumulation_steps=3, per_device_train_batch_size=1)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    check, passes, backwards = trainer._checked_loss, [], []
    backward = trainer.accelerator.backward

    def poisoned(loss):
        passes.append(loss)
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "is_deepspeed_enabled", is_deepspeed)
            check(loss + math.inf if len(passes) == 1 else loss)

    monkeypatch.setattr(trainer, "_checked_loss", poisoned)
    monkeypatch.setattr(trainer.accelerator, "backward", lambda loss, **kw: backwards.append(backward(loss, **kw)))
    with pytest.raises(FloatingPointError, match="Global step 0: the loss is inf"):
        trainer.train()
    # DeepSpeed updates the weights in the last backward pass, so the check comes before it.
    assert len(passes) == 3 and len(backwards) == (2 if is_deepspeed else 3)
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.slow("trains")
def test_a_non_finite_weight_that_does_not_affect_the_loss_stops_training(tmp_path):
    trainer = make("erprm lm", tmp_path)
    unused = trainer.processing_class.convert_tokens_to_ids("Zoe")
    trainer.model.model.embed_tokens.weight.data[unused, 0] = math.nan
    assert math.isfinite(trainer.evaluate()["eval_loss"])
    with pytest.raises(FloatingPointError, match="Global step 0: a weight is nan.*model.embed_tokens.weight"):
        trainer.train()


@pytest.mark.parametrize("name", ["erprm lm", "step_ppo"])
def test_evaluation_stops_at_a_non_finite_weight(name, tmp_path):
    trainer = make(name, tmp_path)
    dict(trainer.model.named_parameters())[WEIGHT].data[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match=f"Global step 0: .* is nan.* {WEIGHT}"):
        trainer.evaluate() if name == "erprm lm" else trainer.evaluate(eval_dataset=questions(4))


@pytest.mark.slow("trains many times")
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["step_grpo", "step_ppo"])
def test_policy_training_stops_at_non_finite_scores_and_rewards(name, value, tmp_path):
    def last_is_bad(step):
        return value if step == "5" else 0.5

    with pytest.raises(FloatingPointError, match=f"Global step 0: .*score of step 2 of completion 3 is {value}"):
        make(name, tmp_path, scorer=FakeScorer(last_is_bad)).train()

    def grader(completions, **columns):
        return [0.0, math.inf, 0.0, 1.0][: len(completions)]

    with pytest.raises(FloatingPointError, match="Global step 0: the reward of grader for completion 1 is inf"):
        make(name, tmp_path, funcs=[grader]).train()


@pytest.mark.slow("trains several times")
def test_trls_own_trainer_stops_at_a_non_finite_score(tmp_path):
    tokenizer = word_level()
    reward = StepRewardFunction(FakeScorer(lambda step: math.nan))
    args = GRPOConfig(**settings(tmp_path))
    trainer = GRPOTrainer(tiny_llama(len(tokenizer)), reward, args, questions(4), processing_class=tokenizer)
    with pytest.raises(FloatingPointError, match="Global step 0: the reward model's score of step 0 of completion 0"):
        trainer.train()
    # If the reward model is on this machine, the error names its non-finite weight.
    scorer = FakeScorer(lambda step: math.nan, weights=tiny_llama(len(tokenizer)))
    dict(scorer.weights.named_parameters())[WEIGHT].data[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match=f"the weight {WEIGHT}"):
        StepRewardFunction(scorer)(["Tom ?"], ["4 ки"])


@pytest.mark.slow("trains a round")
def test_raft_stops_at_non_finite_scores_losses_and_weights(dial_policy, tmp_path):
    model, tokenizer = dial_policy
    weights = tiny_llama(len(tokenizer))  # finite
    scorer = FakeScorer(lambda step: math.nan if step.startswith("answer") else 0.5, weights=weights)

    def trainer(folder):
        options = {"num_generations": 4, "max_completion_length": 48, "drop_uniform": False}
        args = RAFTConfig(**settings(tmp_path / folder, **options))
        data = Dataset.from_list([{"question": row["question"]} for row in dial.make_questions(2, 0, 1, 2)])
        return RAFTTrainer(tiny, scorer, args, data, processing_class=tokenizer)

    tiny = type(model)(model.config)
    tiny.load_state_dict(model.state_dict())
    with pytest.raises(
        FloatingPointError, match=r"Global step 0: round 0, the reward model's score of step \d+ of sol"
    ):
        trainer("scores").train()
    assert not (tmp_path / "scores" / "round-0" / "scores.jsonl").exists()
    scorer.function = by_text
    second = trainer("loss")
    second.add_callback(Poison(math.inf))
    with pytest.raises(FloatingPointError, match=f"Global step 1: the loss is nan.* the weight {WEIGHT}"):
        second.train()
    with pytest.raises(FloatingPointError, match=f"Global step 0: a weight is inf.* the weight {WEIGHT}"):
        trainer("sampling").train()


def test_an_overflow_is_allowed_while_the_gradient_scaler_can_reduce_its_scale(tmp_path):
    trainer = make("erprm lm", tmp_path)
    scale = [65536.0]
    trainer.accelerator.scaler = SimpleNamespace(is_enabled=lambda: True, get_scale=lambda: scale[0])
    overflow = torch.tensor(math.inf)
    assert trainer._get_grad_norm(trainer.model, overflow) == math.inf
    scale[0] = 0.5
    with pytest.raises(FloatingPointError, match="the norm of the gradients is inf"):
        trainer._get_grad_norm(trainer.model, overflow)
