"""Updates of an implicit reward model during the training of a policy: the update against an oracle, which scores the
policy gets, what is left out or refused, and checkpoints."""

import json
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from step_fakes import (
    DIAL_FORMAT,
    FakeScorer,
    by_text,
    encode,
    generate_fixed,
    settings,
    tiny_llama,
    word_level,
)
from transformers import AutoModelForCausalLM

from erprm_trl import PRMFormat, StepScorer, dial
from erprm_trl.policy.answer_reward import AnswerReward
from erprm_trl.policy.online.reward_model_updates import STATE_FILE, RewardModelUpdates
from erprm_trl.policy.online.step_config import StepGRPOConfig, StepPPOConfig
from erprm_trl.policy.online.step_grpo_trainer import StepGRPOTrainer
from erprm_trl.policy.online.step_ppo_trainer import StepPPOTrainer


BETA = 0.7
# Two questions with two completions each: one right and one wrong, and two wrong.
TEXTS = ["4 ки answer 8 </s>", "2 ки answer 3 </s>", "1 ки 9 ки answer 7 </s>", "3 </s>"]
STEPS = [["4", "answer 8"], ["2", "answer 3"], ["1", "9", "answer 7"], ["3"]]
ASKED, OUTCOMES = ["Tom dial 0", "Tom dial 0", "Tom dial 1", "Tom dial 1"], [1.0, 0.0, 0.0, 0.0]
ANSWERS = ["8", "8", "6", "6"]


def perturbed(model, scale=0.3):
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(scale * torch.randn_like(weight))
    return model


@pytest.fixture(scope="module")
def reference_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference") / "model"
    tiny_llama(len(word_level())).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def scorer(reference_path):
    """An implicit reward model that differs from its reference model."""
    return make_scorer(reference_path)


def make_scorer(reference_path, *, lora=False, dtype=torch.float32):
    tokenizer = word_level()
    prm_format = PRMFormat(
        head="implicit", separator=dial.SEPARATOR, splitter=dial.SEPARATOR, prompt_template="check {question}",
        aggregation="last", beta=BETA, reference_model=reference_path,
    )  # fmt: skip
    model = tiny_llama(len(tokenizer))
    if lora:
        model = AutoModelForCausalLM.from_pretrained(reference_path)
        config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(model, config)
        model.requires_grad_(False)  # as after loading for scoring
    else:
        perturbed(model)
    reference = AutoModelForCausalLM.from_pretrained(reference_path)
    return StepScorer(model.to(dtype), tokenizer, prm_format, reference_model=reference.to(dtype))


def make_trainer(folder, scorer, *, trainer_class=StepGRPOTrainer, config=StepGRPOConfig, answers=ANSWERS, **others):
    tokenizer = word_level()
    options = {
        "update_reward_model": "before_scoring", "reward_model_learning_rate": 0.01, "outcome_weight": 0.0,
        "grading": "exact", "answer_pattern": dial.ANSWER_PATTERN, **others,
    }  # fmt: skip
    columns = {} if answers is None else {"answer": answers[::2]}
    trainer = trainer_class(
        tiny_llama(len(tokenizer)),
        [scorer],
        args=config(**settings(folder, **options)),
        train_dataset=Dataset.from_dict({"prompt": ASKED[::2], **columns}),
        processing_class=tokenizer,
    )
    generate_fixed(trainer, encode(tokenizer, *TEXTS))
    return trainer


def rollout(trainer, answers=ANSWERS):
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in zip(ASKED, answers, strict=True)]
    return trainer._generate_and_score_completions(rows)


def updates_of(scorer, **options):
    from accelerate import Accelerator

    settings = {"learning_rate": 0.01, "max_batch_tokens": 10_000, **options}
    return RewardModelUpdates(scorer.backend, Accelerator(cpu=True), **settings)


def weights_of(scorer):
    return {name: weight.detach().clone() for name, weight in scorer.model.named_parameters()}


def oracle_rewards(model, reference, tokenizer, questions, steps):
    """The implicit rewards, with one forward pass per solution, in float64 and without code of the package."""
    rewards = []
    for question, solution in zip(questions, steps, strict=True):
        prompt = tokenizer(f"check {question}", add_special_tokens=False)["input_ids"]
        ids = tokenizer(f"check {question} " + " ".join(f"{step} ки" for step in solution))["input_ids"]
        ids = torch.tensor([ids])
        sums = []
        for network in (model, reference):
            logps = network(ids).logits[0, :-1].double().log_softmax(-1)
            sums.append(logps.gather(-1, ids[0, 1:, None])[len(prompt) - 1 :, 0].sum())
        rewards.append(BETA * (sums[0] - sums[1]))
    return torch.stack(rewards)


def test_an_update_equals_an_oracle(scorer, reference_path):
    model = make_scorer(reference_path).model
    rewards = oracle_rewards(model, scorer.reference_model, scorer.tokenizer, ASKED, STEPS)
    chances = rewards.sigmoid()
    outcomes = torch.tensor(OUTCOMES).double()
    loss = -(outcomes * chances.log() + (1 - outcomes) * (1 - chances).log()).mean()
    loss.backward()
    norm = torch.stack([weight.grad.square().sum() for weight in model.parameters()]).sum().sqrt()
    accuracy = ((chances > 0.5) == (outcomes > 0.5)).double().mean()
    torch.optim.AdamW(model.parameters(), lr=0.01, eps=0.1, weight_decay=0).step()

    update = updates_of(scorer, eps=0.1).step(ASKED, STEPS, OUTCOMES)
    assert update.loss == pytest.approx(loss.item(), abs=1e-5) and update.loss > 0.1
    assert update.accuracy == pytest.approx(accuracy.item())
    assert update.grad_norm == pytest.approx(norm.item(), rel=1e-4)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(scorer.model.get_parameter(name), weight, atol=1e-5, rtol=0)
    # The loss falls, and the reference model has not changed.
    assert updates_of(scorer).step(ASKED, STEPS, OUTCOMES).loss < update.loss
    reference = AutoModelForCausalLM.from_pretrained(reference_path).state_dict()
    assert all(torch.equal(weight, reference[name]) for name, weight in scorer.reference_model.state_dict().items())


def test_batches_padding_and_repeated_solutions_do_not_change_the_update(reference_path):
    results = []
    for max_batch_tokens, order in ((10_000, [0, 1, 2, 3, 0]), (1, [0, 1, 2, 3, 0]), (20, [0, 0, 3, 2, 1])):
        scorer = make_scorer(reference_path)
        update = updates_of(scorer, max_batch_tokens=max_batch_tokens, eps=0.1).step(
            *([values[row] for row in order] for values in (ASKED, STEPS, OUTCOMES))
        )
        results.append((update, weights_of(scorer)))
    (first, weights), *others = results
    model = make_scorer(reference_path)
    losses = [updates_of(make_scorer(reference_path)).step([q], [s], [o]).loss for q, s, o in
              zip(ASKED, STEPS, OUTCOMES, strict=True)]  # fmt: skip
    assert first.loss == pytest.approx((sum(losses) + losses[0]) / 5, abs=1e-5)
    for update, other in others:
        assert update == pytest.approx(first, rel=1e-4)
        for name, weight in weights.items():
            torch.testing.assert_close(other[name], weight, atol=1e-6, rtol=0)
            assert not torch.equal(weight, model.model.get_parameter(name)) or "embed" in name


def test_passes_have_at_most_the_given_number_of_tokens(scorer):
    shapes = []
    scorer.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    updates_of(scorer, max_batch_tokens=20).step(ASKED, STEPS, OUTCOMES)
    assert len(shapes) > 1 and all(rows * tokens <= 20 for rows, tokens in shapes)


def test_solutions_that_are_too_long_are_left_out(scorer):
    expected = updates_of(scorer, learning_rate=0.0).step(ASKED, STEPS, OUTCOMES)
    longer = [*STEPS, ["4"] * 300]
    assert updates_of(scorer, learning_rate=0.0).step([*ASKED, "Tom"], longer, [*OUTCOMES, 1.0]) == expected
    assert updates_of(scorer).step(["Tom"], [["4"] * 300], [1.0]) is None


def test_small_changes_of_bfloat16_weights_are_not_rounded_away(reference_path):
    scorer = make_scorer(reference_path, dtype=torch.bfloat16)
    before = weights_of(scorer)
    updates = updates_of(scorer, learning_rate=1e-4)
    for _ in range(30):
        updates.step(ASKED, STEPS, OUTCOMES)
    # Each update changes a weight by about 1e-4, which is less than half the distance of bfloat16 numbers near 0.3.
    name = "model.layers.1.self_attn.v_proj.weight"
    after = scorer.model.get_parameter(name)
    large = before[name].abs() > 0.25
    assert after.dtype == torch.bfloat16 and large.any()
    assert ((after - before[name]).abs()[large] > 0).float().mean() > 0.5


def test_gradients_of_bfloat16_weights_are_summed_over_batches(reference_path):
    norms = [
        updates_of(make_scorer(reference_path, dtype=torch.bfloat16), max_batch_tokens=max_batch_tokens)
        .step(ASKED, STEPS, OUTCOMES)
        .grad_norm
        for max_batch_tokens in (10_000, 1)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=0.05)


def test_only_an_adapters_weights_are_trained(tmp_path, reference_path):
    scorer = make_scorer(reference_path, lora=True)
    before = weights_of(scorer)
    updates = updates_of(scorer)
    updates.step(ASKED, STEPS, OUTCOMES)
    changed = {name for name, weight in weights_of(scorer).items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    updates.save_model(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file() and not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("when", ["before_scoring", "after_scoring"])
def test_the_policy_gets_the_scores_from_before_or_after_the_update(tmp_path, reference_path, when):
    scorer = make_scorer(reference_path)
    old = scorer.score(ASKED, STEPS)
    trainer = make_trainer(tmp_path, scorer, update_reward_model=when)
    seen = []
    original = trainer._set_advantages
    trainer._set_advantages = lambda output, steps: (seen.append(steps), original(output, steps))
    rollout(trainer)
    new = scorer.score(ASKED, STEPS)
    assert max(abs(a - b) for a, b in zip(sum(old, []), sum(new, []), strict=True)) > 0.01
    expected = new if when == "before_scoring" else old
    (steps,) = seen
    assert steps.scores[steps.mask].tolist() == pytest.approx(sum(expected, []), abs=1e-5)
    # Metrics and tables show the same scores.
    metrics = trainer._metrics["train"]
    assert metrics["steps/mean_score"] == [pytest.approx(sum(sum(expected, [])) / 8, abs=1e-5)]
    assert list(trainer._logs["extra"]["step_scores"]) == [[round(s, 4) for s in scores] for scores in expected]
    assert metrics["rewards/step_reward/mean"] == [pytest.approx(sum(s[-1] for s in expected) / 4, abs=1e-5)]
    # Only the first question has a right and a wrong answer.
    before, after = (float(scores[0][-1] > scores[1][-1]) for scores in (old, new))
    assert metrics["reward_model/agreement_before"] == [before] and metrics["reward_model/agreement_after"] == [after]
    assert metrics["steps/agreement"] == [after if when == "before_scoring" else before]
    chances = [scores[-1] for scores in old]
    losses = [-math.log(p if o else 1 - p) for p, o in zip(chances, OUTCOMES, strict=True)]
    assert metrics["reward_model/loss"] == [pytest.approx(sum(losses) / 4, abs=1e-5)]
    right = [(p > 0.5) == (o > 0.5) for p, o in zip(chances, OUTCOMES, strict=True)]
    assert metrics["reward_model/accuracy"] == [sum(right) / 4]
    assert metrics["reward_model/unused_share"] == [0.0] and "reward_parts/outcome" not in metrics


def test_rows_without_an_answer_are_left_out_and_counted(tmp_path, reference_path):
    scorer, same = make_scorer(reference_path), make_scorer(reference_path)
    trainer = make_trainer(tmp_path, scorer, adam_epsilon=0.1)
    rollout(trainer, ["8", "8", None, None])
    assert trainer._metrics["train"]["reward_model/unused_share"] == [0.5]
    updates_of(same, eps=0.1, max_grad_norm=1.0).step(ASKED[:2], STEPS[:2], OUTCOMES[:2])
    expected = weights_of(same)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights_of(scorer).items())


def test_without_any_answer_nothing_is_updated(tmp_path, scorer):
    before = weights_of(scorer)
    trainer = make_trainer(tmp_path, scorer)
    rollout(trainer, [None] * 4)
    metrics = trainer._metrics["train"]
    assert metrics["reward_model/unused_share"] == [1.0] and "reward_model/loss" not in metrics
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(scorer).items())


def test_an_evaluation_makes_no_update(tmp_path, scorer):
    before = weights_of(scorer)
    trainer = make_trainer(tmp_path, scorer, per_device_eval_batch_size=4)
    trainer.evaluate(trainer.train_dataset)
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(scorer).items())


@pytest.mark.parametrize("what", ["loss", "gradients"])
def test_a_value_that_is_not_finite_stops_the_run_by_name(tmp_path, scorer, what):
    trainer = make_trainer(tmp_path, scorer)
    if what == "loss":
        original = trainer.reward_model_updates._backward
        trainer.reward_model_updates._backward = lambda *args: original(*args) * math.nan
    else:
        scorer.model.get_input_embeddings().weight.register_hook(lambda gradient: gradient * math.inf)
    before = weights_of(scorer)
    name = "the loss" if what == "loss" else "the norm of the gradients"
    with pytest.raises(FloatingPointError, match=f"Global step 0: {name} of the reward model in update_reward_model"):
        rollout(trainer)
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(scorer).items())


def test_what_cannot_be_updated_is_refused_by_name(tmp_path, scorer, reference_path):
    with pytest.raises(ValueError, match="head='lm', expected head='implicit'.*or remove update_reward_model"):
        make_trainer(tmp_path, FakeScorer(by_text))
    with pytest.raises(ValueError, match="update_reward_model without answers, expected a column of answers"):
        make_trainer(tmp_path, scorer, answers=None)
    elsewhere = FakeScorer(by_text, scorer.prm_format)
    with pytest.raises(ValueError, match="got update_reward_model with a FakeScorer, whose weights cannot be trained"):
        make_trainer(tmp_path, elsewhere)
    with pytest.raises(ValueError, match="in float16, expected bfloat16 or float32"):
        make_trainer(tmp_path, make_scorer(reference_path, dtype=torch.float16))
    with pytest.raises(ValueError, match=r"partitioned or offloaded, expected all weights on the device"):
        offloaded = make_scorer(reference_path)
        offloaded.model.lm_head.to("meta")
        make_trainer(tmp_path, offloaded)
    frozen = make_scorer(reference_path)
    frozen.model.requires_grad_(False)
    with pytest.raises(ValueError, match="update_reward_model: every weight of the given LlamaForCausalLM is frozen"):
        make_trainer(tmp_path, frozen)


@pytest.mark.parametrize(
    ("config", "others", "message"),
    [
        (StepGRPOConfig, {"update_reward_model": "always"}, "got 'always', expected one of before_scoring"),
        (StepGRPOConfig, {"shard_reward_model": True}, "got shard_reward_model=True, expected False"),
        (StepGRPOConfig, {"reward_model_learning_rate": 0.0}, "reward_model_learning_rate: got 0.0, expected a pos"),
        (StepGRPOConfig, {"reward_model_max_batch_tokens": 0}, "reward_model_max_batch_tokens: got 0, expected a pos"),
        (
            StepPPOConfig,
            {"critic": "erprm"},
            "critic='erprm': got update_reward_model='before",
        ),
    ],
)
def test_configurations_that_do_not_fit_are_refused(tmp_path, config, others, message):
    with pytest.raises(ValueError, match=message):
        config(**settings(tmp_path, **{"update_reward_model": "before_scoring", **others}))


def test_graded_answers_outside_0_and_1_are_refused(tmp_path, scorer):
    trainer = make_trainer(tmp_path, scorer)
    trainer.answer_reward.grader.grade = lambda texts, answers: [-1.0] * len(texts)
    with pytest.raises(ValueError, match=r"got graded answers from -1 to -1, expected outcomes in \[0, 1\]"):
        rollout(trainer)
    assert isinstance(trainer.answer_reward, AnswerReward)


def keys_of(file):
    with safe_open(file, "pt") as content:
        return set(content.keys())


@pytest.mark.slow("trains several times")
@pytest.mark.parametrize("kind", ["full", "lora", "bfloat16"])
@pytest.mark.parametrize("config", [StepGRPOConfig, StepPPOConfig])
def test_a_resumed_run_equals_the_uninterrupted_run(tmp_path, reference_path, kind, config):
    def run(folder, resume=None):
        scorer = make_scorer(
            reference_path, lora=kind == "lora", dtype=torch.bfloat16 if kind == "bfloat16" else torch.float32
        )
        trainer = make_trainer(
            tmp_path / folder, scorer, config=config, max_steps=6, save_strategy="steps", save_steps=2,
            num_iterations=2, trainer_class=StepGRPOTrainer if config is StepGRPOConfig else StepPPOTrainer,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return trainer, scorer

    straight, scorer = run("run")
    assert [log["reward_model/loss"] for log in straight.state.log_history if "reward_model/loss" in log]
    checkpoint = tmp_path / "run/checkpoint-2"
    names = {"step", "exp_avg", "exp_avg_sq", *(["float32"] if kind == "bfloat16" else [])}
    assert {key.rsplit("/")[-1] for key in keys_of(checkpoint / "reward_model" / STATE_FILE)} == names
    last = (checkpoint / "trainer_state.json").stat().st_mtime_ns
    assert all(file.stat().st_mtime_ns <= last for file in (checkpoint / "reward_model").iterdir())
    resumed, again = run("resumed", str(checkpoint))
    for left, right in ((straight.model, resumed.model), (scorer.model, again.model)):
        for name, weight in left.state_dict().items():
            assert torch.equal(right.state_dict()[name], weight), name
    for log, expected in zip(resumed.state.log_history[2:6], straight.state.log_history[2:6], strict=True):
        names = {name for name in expected if name.startswith(("reward_model/", "steps/", "loss"))}
        assert {name: log[name] for name in names} == {name: expected[name] for name in names}


@pytest.mark.slow("trains several times")
def test_the_reward_model_is_saved_next_to_the_policy(tmp_path, scorer, caplog):
    trainer = make_trainer(tmp_path / "run", scorer, save_strategy="steps", save_only_model=True)
    trainer.train()
    trainer.save_model()
    folder = tmp_path / "run/reward_model"
    loaded = StepScorer.from_pretrained(folder)
    assert loaded.prm_format == scorer.prm_format
    assert sum(loaded.score(ASKED, STEPS), []) == pytest.approx(sum(scorer.score(ASKED, STEPS), []), abs=1e-5)
    assert json.loads((folder / "prm_format.json").read_text())["head"] == "implicit"
    # A checkpoint of save_only_model has the reward model, but not the state of its optimizer.
    trainer.reward_model_updates.load(tmp_path / "run/checkpoint-2/reward_model")
    assert f"has no {STATE_FILE}" in caplog.text
    with pytest.raises(FileNotFoundError, match="has no folder 'reward_model', expected a checkpoint of a run with"):
        trainer.reward_model_updates.load(tmp_path / "reward_model")


def test_the_format_of_a_model_without_a_recorded_reference_gets_one(tmp_path, reference_path):
    scorer = make_scorer(reference_path)
    unnamed = PRMFormat(**{**scorer.prm_format.__dict__, "reference_model": None})
    again = StepScorer(scorer.model, scorer.tokenizer, unnamed, reference_model=scorer.reference_model)
    updates_of(again).save_model(tmp_path)
    assert PRMFormat.load(tmp_path).reference_model == reference_path
    assert DIAL_FORMAT.head == "lm"
