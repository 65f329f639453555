"""Weights in half precision: losses and scores stay float32 and agree with float64. Solutions and groups without steps
have no advantages, and rows without labels are not evaluated."""

import pytest
import torch
from datasets import Dataset
from step_fakes import (
    DIAL_FORMAT,
    FakeScorer,
    by_last_number,
    encode,
    generate_fixed,
    questions,
    save_tiny,
    settings,
    tiny_llama,
    word_level,
)

from erprm_trl import ERPRMConfig, ERPRMTrainer, StepScorer
from erprm_trl.policy.online.step_config import StepGRPOConfig, StepPPOConfig
from erprm_trl.policy.online.step_grpo_trainer import StepGRPOTrainer
from erprm_trl.policy.online.step_ppo_trainer import StepPPOTrainer


DTYPES = [torch.bfloat16, torch.float16, torch.float32]
ROWS = [
    {"prompt": "Tom dial 7 . right 15 . ?", "completions": ["7 + 15 = 2", "answer 2"], "labels": [0.9, 1.0]},
    {"prompt": "Ann dial 1 . left 2 . ?", "completions": ["answer 3"], "labels": [0.0]},
]
FORMAT = {name: getattr(DIAL_FORMAT, name) for name in ("separator", "good_token", "bad_token", "prompt_template")}


def erprm(folder, model, data, head="lm", **options):
    options = {**settings(folder), "per_device_train_batch_size": 2, **options}
    options = {key: options[key] for key in options if key not in ("num_generations", "max_completion_length")}
    args = ERPRMConfig(**options, **FORMAT, head=head)
    return ERPRMTrainer(model, args, train_dataset=data, eval_dataset=data, processing_class=word_level())


def exact_log_odds(model, head, batch, tokenizer):
    """Log-odds in float64, from the model's hidden states in its own precision."""
    with torch.no_grad():
        trunk = model.base_model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).last_hidden_state
        if head == "lm":
            good, bad = tokenizer.convert_tokens_to_ids([DIAL_FORMAT.good_token, DIAL_FORMAT.bad_token])
            weight = model.lm_head.weight.double()
            z = trunk.double() @ (weight[good] - weight[bad])
        else:  # the head belongs to the model, and rounds like it
            z = model.score(trunk)[..., 0].double()
    rows = torch.arange(len(z))[:, None].expand_as(batch["step_positions"])[batch["step_mask"]]
    return z[rows, batch["step_positions"][batch["step_mask"]]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head", ["lm", "token"])
def test_reward_models_in_half_precision(head, dtype, tmp_path):
    tokenizer = word_level()
    trainer = erprm(tmp_path, tiny_llama(len(tokenizer), head).to(dtype), Dataset.from_list(ROWS), head)
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    assert batch["step_labels"].dtype == torch.float32
    z = exact_log_odds(trainer.model, head, batch, tokenizer)
    labels = batch["step_labels"][batch["step_mask"]].double()
    expected = (z.clamp_min(0) - labels * z + (-z.abs()).exp().log1p()).mean()
    trainer.model.train()
    loss, outputs = trainer.compute_loss(trainer.model, batch, True, torch.tensor(3))
    assert loss.dtype == outputs["logits"].dtype == torch.float32 and trainer.model.dtype == dtype
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    loss.backward()
    assert all(bool(weight.grad.isfinite().all()) for weight in trainer.model.parameters() if weight.grad is not None)
    scorer = StepScorer(trainer.model, tokenizer, trainer.prm_format)
    scores = scorer.score([row["prompt"] for row in ROWS], [row["completions"] for row in ROWS])
    assert sum(scores, []) == pytest.approx(z.sigmoid().tolist(), abs=1e-5)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_policies_in_half_precision(name, dtype, tmp_path):
    output = {}
    for precision in (dtype, torch.float32):
        path = save_tiny(tmp_path / "policy", word_level())  # the reference policy is loaded from the same path
        trainer = policy(name, tmp_path, path, model_init_kwargs={"dtype": precision}, beta=0.1)
        output[precision] = rollout(trainer, ["4 ки 8 </s>", "2 </s>", "", ""])
        loss = trainer.compute_loss(trainer.model, output[precision] | {"num_items_in_batch": torch.tensor(6)})
        loss.backward()
        assert loss.dtype == torch.float32 and trainer.model.dtype == precision
    half, whole = output[dtype], output[torch.float32]
    floats = {key: value for key, value in half.items() if getattr(value, "is_floating_point", bool)()}
    assert {"advantages", "ref_per_token_logps"} <= floats.keys() and (name == "grpo" or "old_values" in floats)
    for key, value in floats.items():
        assert value.dtype == torch.float32 and bool(value.isfinite().all()), key
        # bfloat16 has 8 bits, so this only detects gross errors.
        torch.testing.assert_close(value, whole[key], atol=0.1, rtol=0.05)
    if name == "grpo":
        assert torch.equal(half["advantages"], whole["advantages"])  # advantages of scores, which are always float32


def policy(name, folder, model=None, **options):
    trainer_class, config = {"grpo": (StepGRPOTrainer, StepGRPOConfig), "ppo": (StepPPOTrainer, StepPPOConfig)}[name]
    tokenizer = word_level()
    args = config(**settings(folder, **{"scale_rewards": "none", "aggregation": "last", **options}))
    model = model or tiny_llama(len(tokenizer))
    return trainer_class(model, FakeScorer(by_last_number), args, questions(4), processing_class=tokenizer)


def rollout(trainer, texts):
    generate_fixed(
        trainer, [ids or [2] for ids in encode(trainer.processing_class, *texts)]
    )  # [2]: an empty completion
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer._generate_and_score_completions([{"prompt": f"Tom dial {row // 2}"} for row in range(len(texts))])


@pytest.mark.parametrize("credit", ["difference", "min_form", "sum", "outcome"])
@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_groups_without_steps_do_not_affect_other_groups(name, credit, tmp_path):
    trainer = policy(name, tmp_path, credit=credit, **({"whiten_advantages": False} if name == "ppo" else {}))
    both = rollout(trainer, ["4 ки 8 </s>", "2 </s>", "", ""])["advantages"]
    alone = rollout(trainer, ["4 ки 8 </s>", "2 </s>"])["advantages"]
    assert not both[2:].any() and torch.equal(both[:2], alone) and bool(alone.any())
    nothing = rollout(trainer, ["", "", "", ""])["advantages"]
    assert len(nothing) == 4 and not nothing.any()


def test_rows_without_labels_do_not_affect_the_evaluation(tmp_path):
    data = erprm(tmp_path, tiny_llama(len(word_level())), Dataset.from_list(ROWS)).train_dataset
    without = [{**row, "step_positions": [], "step_labels": []} for row in data]
    mixed = Dataset.from_list([without[0], data[0], data[1], *without, without[0]], features=data.features)
    trainer = erprm(tmp_path, tiny_llama(len(word_level())), mixed, train_sampling_strategy="sequential", packing=True)
    # Batches have two rows: the first has one row without labels, and the third has no labels at all.
    plain = erprm(tmp_path, tiny_llama(len(word_level())), data)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], abs=1e-6)
    with pytest.raises(ValueError, match="no labelled step"):
        trainer.evaluate(mixed.select([0, 3]))
    trainer.args.max_steps = 3
    assert trainer.train().global_step == 3
    assert [log["grad_norm"] > 0 for log in trainer.state.log_history if "grad_norm" in log] == [True, True, False]
