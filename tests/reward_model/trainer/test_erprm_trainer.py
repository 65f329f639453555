"""Training with ERPRMTrainer: learning, logging, saving, and options that must not change the result."""

import json
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from synchronisation_counts import count_updates
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments
from trl import SFTConfig
from zoo import byte_level_bpe, save_tiny, tiny_llama, word_level

from erprm_trl import ERPRMConfig, ERPRMTrainer, PRMFormat, StepScorer


FORMAT = {
    "separator": "ки",
    "good_token": "✓",
    "bad_token": "✗",
    "prompt_template": "check {question}",
    "splitter": "ки",
}
ROWS = [
    {"prompt": "Tom dial 7 . right 15 . ?", "completions": ["7 + 15 = 2", "answer 2"], "labels": [0.9, 1.0]},
    {"prompt": "Tom dial 7 . right 15 . ?", "completions": ["7 + 15 = 3", "answer 3"], "labels": [0.2, 0.0]},
    {
        "prompt": "Ann dial 1 . left 2 . times 3 . ?",
        "completions": ["1 - 2 = 19", "19 * 3 = 17", "answer 17"],
        "labels": [0.7, 0.6, 1.0],
    },
    {"prompt": "Ann dial 1 . left 2 . ?", "completions": ["answer 3"], "labels": [0.0]},
]
DATA = Dataset.from_list(ROWS)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"), word_level())


def config(folder, **options):
    settings = {
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        **FORMAT,
        **options,
    }
    return ERPRMConfig(str(folder), **settings)


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


@pytest.mark.slow("trains hundreds of steps")
@pytest.mark.parametrize("head", ["lm", "token"])
def test_the_loss_on_two_examples_falls_to_their_entropy(head, model_path, tmp_path):
    data = DATA.select([0, 1])
    trainer = ERPRMTrainer(model_path, config(tmp_path, head=head, max_steps=150), train_dataset=data)
    trainer.train()
    scorer = StepScorer(trainer.model, trainer.processing_class, trainer.prm_format)
    scores = scorer.score(data["prompt"][:], data["completions"][:])
    for got, expected in zip(scores, data["labels"], strict=True):
        assert got == pytest.approx(expected, abs=0.05)
    entropy = -sum(v * math.log(v) + (1 - v) * math.log(1 - v) for v in (0.9, 0.2)) / 4
    assert trainer.evaluate(data)["eval_loss"] == pytest.approx(entropy, abs=0.02)


def test_logged_loss_and_metrics_equal_an_independent_forward(model_path, tmp_path):
    trainer = ERPRMTrainer(model_path, config(tmp_path), train_dataset=DATA, eval_dataset=DATA)
    metrics = trainer.evaluate()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_path), AutoTokenizer.from_pretrained(model_path)
    good, bad = tokenizer.convert_tokens_to_ids(["✓", "✗"])
    scores, labels, questions, positions = [], [], [], []
    for row in ROWS:  # one text at a time, full logits, plain Python
        text = f"check {row['prompt']}"
        for position, (step, label) in enumerate(zip(row["completions"], row["labels"], strict=True)):
            text += f" {step} ки"
            logits = model(torch.tensor([tokenizer.encode(text)])).logits[0, -1].detach().double()
            scores.append(1 / (1 + math.exp(logits[bad] - logits[good])))
            labels.append(label)
            questions.append(row["prompt"])
            positions.append(position)
    pairs = list(zip(scores, labels, strict=True))
    loss = -sum(v * math.log(s) + (1 - v) * math.log(1 - s) for s, v in pairs) / len(pairs)
    assert metrics["eval_loss"] == pytest.approx(loss, abs=1e-5)
    assert metrics["eval_brier"] == pytest.approx(sum((s - v) ** 2 for s, v in pairs) / len(pairs), abs=1e-6)
    assert metrics["eval_mae"] == pytest.approx(sum(abs(s - v) for s, v in pairs) / len(pairs), abs=1e-6)
    assert metrics["eval_accuracy"] == sum((s > 0.5) == (v > 0.5) for s, v in pairs) / len(pairs)

    def auc(same):
        chosen = [
            (a > b) + 0.5 * (a == b)
            for a, v, q in zip(scores, labels, questions, strict=True)
            for b, w, r in zip(scores, labels, questions, strict=True)
            if v > 0.5 >= w and same(q, r)
        ]
        return sum(chosen) / len(chosen)

    assert metrics["eval_auc"] == pytest.approx(auc(lambda q, r: True))
    assert metrics["eval_auc_within_questions"] == pytest.approx(auc(lambda q, r: q == r))
    first = [s for s, position in zip(scores, positions, strict=True) if position == 0]
    assert metrics["eval_score/step_1"] == pytest.approx(sum(first) / len(first), abs=1e-6)


@pytest.mark.slow("trains several times")
@pytest.mark.parametrize(
    "options", [{"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}, {"pad_to_multiple_of": 32}]
)
def test_accumulation_and_padding_do_not_change_the_loss(options, model_path, tmp_path):
    """The loss is a mean over the update's steps, so its division into batches and its padding do not matter."""
    whole = {"per_device_train_batch_size": 4, "max_steps": 3, "train_sampling_strategy": "sequential", "optim": "sgd"}
    runs = []
    for change in ({}, options):
        trainer = ERPRMTrainer(model_path, config(tmp_path, **{**whole, **change}), train_dataset=DATA)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        runs.append((weights(trainer), losses))
    assert torch.allclose(runs[0][0], runs[1][0], atol=1e-6)
    assert runs[0][1] == pytest.approx(runs[1][1], abs=1e-5)


@pytest.mark.slow("trains several times")
@pytest.mark.parametrize("options", [{}, {"head": "token"}, {"packing": True}, {"head": "implicit"}], ids=str)
def test_the_device_waits_once_per_update_and_not_per_batch(options, model_path, tmp_path):
    data = DATA.map(lambda row: {"label": row["labels"][-1]}) if options.get("head") == "implicit" else DATA
    for accumulated in (1, 3):
        settings = {"max_steps": 3, "gradient_accumulation_steps": accumulated, "per_device_train_batch_size": 1}
        for logging_steps, most in ((100, 1), (1, 5)):
            args = config(tmp_path, **settings, **options, logging_steps=logging_steps)
            updates = count_updates(ERPRMTrainer(model_path, args, train_dataset=data))
            # The first update checks the weights and the packing, and the last one logs a summary.
            assert updates[1].total() <= most, updates[1]


def test_a_collator_without_step_index_gives_the_same_loss(model_path, tmp_path):
    trainer = ERPRMTrainer(model_path, config(tmp_path), train_dataset=DATA)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    assert batch["step_index"].tolist() == [0, 1, 3, 4, 6, 7, 8, 9]
    trainer.model.train()
    expected = trainer.compute_loss(trainer.model, dict(batch))
    del batch["step_index"]
    assert trainer.compute_loss(trainer.model, batch) == expected


def test_batches_of_an_epochs_end_are_recorded_completely(model_path, tmp_path):
    """All batches of the last update are fetched first, and the last one is smaller."""
    data = Dataset.from_list(ROWS[:3])
    args = config(tmp_path, max_steps=1, gradient_accumulation_steps=2, num_train_epochs=1)
    trainer = ERPRMTrainer(model_path, args, train_dataset=data)
    trainer.train()
    assert trainer.state.log_history[0]["num_tokens"] == sum(len(row["input_ids"]) for row in trainer.train_dataset)


@pytest.mark.slow("trains twice")
def test_a_resumed_run_equals_an_uninterrupted_run_bitwise(model_path, tmp_path):
    straight = ERPRMTrainer(model_path, config(tmp_path / "a", max_steps=6), train_dataset=DATA)
    straight.train()
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    first = ERPRMTrainer(model_path, config(tmp_path / "b", **options), train_dataset=DATA)
    first.train()
    again = ERPRMTrainer(model_path, config(tmp_path / "b", **options), train_dataset=DATA)
    again.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-3"))
    assert torch.equal(weights(straight), weights(again))
    counts = [
        [entry["num_tokens"] for entry in run.state.log_history if "num_tokens" in entry] for run in (straight, again)
    ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("head", ["lm", "token"])
def test_a_checkpoint_gives_the_same_scores_in_plain_transformers(head, model_path, tmp_path):
    from transformers import AutoModelForTokenClassification

    trainer = ERPRMTrainer(
        model_path, config(tmp_path, head=head, save_strategy="steps", save_steps=4), train_dataset=DATA
    )
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-4"):
        scores = StepScorer.from_pretrained(folder).score([ROWS[0]["prompt"]], [ROWS[0]["completions"]])[0]
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = torch.tensor([tokenizer.encode("check Tom dial 7 . right 15 . ? 7 + 15 = 2 ки answer 2 ки")])
        at = (ids[0] == tokenizer.convert_tokens_to_ids("ки")).nonzero()[:, 0]
        if head == "lm":
            logits = AutoModelForCausalLM.from_pretrained(folder)(ids).logits[0, at]
            plain = logits[:, tokenizer.convert_tokens_to_ids(["✓", "✗"])].softmax(-1)[:, 0]
        else:
            plain = AutoModelForTokenClassification.from_pretrained(folder)(ids).logits[0, at, 0].sigmoid()
        assert scores == pytest.approx(plain.tolist(), abs=1e-6)


def test_the_evaluation_loss_is_the_mean_over_steps(model_path, tmp_path):
    # The batches have 4, 4 and 1 steps, so a mean over batches would differ.
    data = DATA.select([0, 1, 2, 3, 3])
    args = config(tmp_path, per_device_eval_batch_size=2)
    trainer = ERPRMTrainer(model_path, args, train_dataset=DATA, eval_dataset=data)
    loss = trainer.evaluate()["eval_loss"]
    scorer = StepScorer(trainer.model, trainer.processing_class, trainer.prm_format)
    scores = sum(scorer.score(data["prompt"][:], data["completions"][:]), [])
    labels = sum(data["labels"][:], [])
    each = [-y * math.log(p) - (1 - y) * math.log1p(-p) for p, y in zip(scores, labels, strict=True)]
    assert loss == pytest.approx(sum(each) / 9, abs=1e-5)
    assert loss != pytest.approx((sum(each[:4]) / 4 + sum(each[4:8]) / 4 + each[8]) / 3, abs=1e-3)


def test_an_outcome_reward_model_is_trained_only_on_the_last_step(model_path, tmp_path):
    trainer = ERPRMTrainer(model_path, config(tmp_path, train_on_last_step_only=True), train_dataset=DATA)
    assert [labels[:] for labels in trainer.train_dataset["step_labels"]] == [[1.0], [0.0], [1.0], [0.0]]


def test_label_smoothing_moves_training_labels_towards_one_half(model_path, tmp_path):
    """A label v becomes (1 - s) v + s / 2."""
    halved = [[0.5 * label + 0.25 for label in row["labels"]] for row in ROWS]
    by_hand = Dataset.from_list([{**row, "labels": labels} for row, labels in zip(ROWS, halved, strict=True)])
    smoothed = ERPRMTrainer(model_path, config(tmp_path, label_smoothing_factor=0.5), train_dataset=DATA)
    expected = ERPRMTrainer(model_path, config(tmp_path), train_dataset=by_hand)
    plain = ERPRMTrainer(model_path, config(tmp_path), train_dataset=DATA)
    for trainer in (smoothed, expected, plain):
        trainer.train()
    torch.testing.assert_close(weights(smoothed), weights(expected), atol=1e-6, rtol=0)
    assert not torch.allclose(weights(smoothed), weights(plain), atol=1e-4)
    # An evaluation uses the unchanged labels.
    assert smoothed.evaluate(DATA)["eval_loss"] == pytest.approx(expected.evaluate(DATA)["eval_loss"], abs=1e-5)
    for value in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="label_smoothing_factor: got .*from 0 .*to 1"):
            config(tmp_path, label_smoothing_factor=value)


def test_plain_training_arguments_are_accepted_as_in_trl(model_path, tmp_path):
    settings = {"max_steps": 1, "learning_rate": 0.5, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    PRMFormat(**FORMAT).save(model_path)
    try:
        trainer = ERPRMTrainer(model_path, TrainingArguments(str(tmp_path / "out"), **settings), train_dataset=DATA)
    finally:
        Path(model_path, "prm_format.json").unlink()
    assert type(trainer.args) is ERPRMConfig and (trainer.args.learning_rate, trainer.args.eta) == (0.5, 2.0)
    trainer.train()
    trainer.save_model()
    StepScorer.from_pretrained(tmp_path / "out")
    with pytest.raises(TypeError, match="ERPRMTrainer: got args of type SFTConfig.*expected ERPRMConfig"):
        ERPRMTrainer(model_path, SFTConfig(str(tmp_path), use_cpu=True, bf16=False), train_dataset=DATA)


def test_paths_may_have_a_tilde_and_be_path_objects(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_tiny(tmp_path / "model", word_level())
    options = {"save_strategy": "steps", "save_steps": 2}
    for model, output in (("~/model", "~/out"), (Path("~/model"), Path("~/other"))):
        trainer = ERPRMTrainer(model, config(output, **options), train_dataset=DATA)
        trainer.train()
        trainer.save_model()
        again = ERPRMTrainer(model, config(output, **options), train_dataset=DATA)
        again.train(resume_from_checkpoint=type(output)(f"{output}/checkpoint-2"))
        assert torch.equal(weights(trainer), weights(again))
    for name in ("out", "other"):
        StepScorer.from_pretrained(tmp_path / name)


@pytest.mark.parametrize("head", ["lm", "token"])
def test_a_lora_adapter_is_trained_saved_and_used_to_score(head, model_path, tmp_path):
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = ERPRMTrainer(
        model_path, config(tmp_path, head=head, gradient_checkpointing=True), train_dataset=DATA, peft_config=lora
    )
    trainer.train()
    trainer.save_model()
    assert (tmp_path / "adapter_config.json").exists()
    inside = StepScorer(trainer.model, trainer.processing_class, trainer.prm_format).score(
        DATA["prompt"][:], DATA["completions"][:]
    )
    scorer = StepScorer.from_pretrained(tmp_path)
    assert scorer.model_name == str(tmp_path)  # not the base model's name
    loaded = scorer.score(DATA["prompt"][:], DATA["completions"][:])
    for trained, reloaded in zip(inside, loaded, strict=True):
        assert trained == pytest.approx(reloaded, abs=1e-6)
    base = ERPRMTrainer(model_path, config(tmp_path, head=head), train_dataset=DATA)
    untrained = StepScorer(base.model, base.processing_class, base.prm_format).score(
        DATA["prompt"][:], DATA["completions"][:]
    )
    assert loaded[0] != pytest.approx(untrained[0], abs=1e-3)


@pytest.mark.slow("trains 60 steps twice")
@pytest.mark.parametrize("lora", [False, True])
def test_missing_tokens_are_added_and_trained(lora, tmp_path):
    path = save_tiny(tmp_path / "model", byte_level_bpe())
    rows = Dataset.from_list([{"prompt": "2 + 2?", "completions": ["two\nlines", "4"], "labels": [0.9, 0.1]}] * 2)
    options = {**dict.fromkeys(FORMAT), "separator": "<|step|>", "good_token": "<|good|>", "bad_token": "<|bad|>"}
    options |= {"max_steps": 60, "learning_rate": 3e-2}
    with pytest.raises(ValueError, match="add_missing_tokens=True"):
        ERPRMTrainer(path, config(tmp_path / "out", **options), train_dataset=rows)
    trainer = ERPRMTrainer(
        path,
        config(tmp_path / "out", add_missing_tokens=True, **options),
        train_dataset=rows,
        peft_config=LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM") if lora else None,
    )
    trainer.train()
    trainer.save_model()
    scores = StepScorer.from_pretrained(tmp_path / "out").score(["2 + 2?"], [["two\nlines", "4"]])[0]
    assert scores == pytest.approx([0.9, 0.1], abs=0.15)


def test_rollout_folders_are_labelled_at_eta(model_path, tmp_path, dial_policy):
    from erprm_trl import TransformersSampler, collect_rollouts, dial, load_questions

    rollouts = collect_rollouts(
        load_questions(dial.make_questions(3, seed=3)),
        TransformersSampler(*dial_policy, max_new_tokens=24),
        tmp_path / "rollouts",
        num_continuations=4,
        splitter=dial.SEPARATOR,
        grading="exact",
        answer_pattern=dial.ANSWER_PATTERN,
        show_progress=False,
    )
    for eta in (0.0, 2.0, math.inf):
        trainer = ERPRMTrainer(model_path, config(tmp_path / "out", eta=eta), train_dataset=str(tmp_path / "rollouts"))
        expected = [label for row in rollouts.labels(eta) for label in row["labels"]]
        got = [label for row in trainer.train_dataset for label in row["step_labels"]]
        assert got == pytest.approx(expected)
    with pytest.raises(FileNotFoundError, match="not a rollout folder"):
        ERPRMTrainer(model_path, config(tmp_path / "out"), train_dataset=str(tmp_path))


def test_the_format_and_the_model_card_are_saved(model_path, tmp_path):
    data = Dataset.from_list([*ROWS, {**ROWS[0], "labels": [7.0, 1.0]}])
    options = {"save_strategy": "steps", "save_steps": 4, "invalid_rows": "drop"}
    trainer = ERPRMTrainer(model_path, config(tmp_path / "out", **options), train_dataset=data)
    trainer.train()
    saved = json.loads((tmp_path / "out" / "checkpoint-4" / "prm_format.json").read_text())
    assert PRMFormat(**saved) == PRMFormat(**FORMAT, head="lm", aggregation="min")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "4 of 5 solutions, 8 labelled steps" in card
    assert "1 with a label that is NaN or outside [0, 1]" in card
    assert str(tmp_path) not in card  # no local path
    # the saved format is the default of the next training, and arguments override it
    options = {**dict.fromkeys(FORMAT), "aggregation": "product"}
    again = ERPRMTrainer(
        str(tmp_path / "out" / "checkpoint-4"), config(tmp_path / "next", **options), train_dataset=DATA
    )
    assert again.prm_format == PRMFormat(**FORMAT, aggregation="product")


def cpu_config(output_dir):
    """The default configuration on a machine without an accelerator."""
    return ERPRMConfig(output_dir, use_cpu=True, bf16=False, report_to="none")


def test_a_model_object_trains_with_default_arguments(model_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny_llama(len(word_level()))
    PRMFormat(**FORMAT).save(model_path)
    try:
        with monkeypatch.context() as patched:
            patched.setattr("erprm_trl.reward_model.trainer.erprm_trainer.ERPRMConfig", cpu_config)
            trainer = ERPRMTrainer(model_path, train_dataset=DATA)
    finally:
        Path(model_path, "prm_format.json").unlink()
    assert trainer.args.output_dir.endswith("-ERPRM")
    assert (trainer.args.eta, trainer.args.learning_rate) == (2.0, 1e-5)
    trainer = ERPRMTrainer(model, config(tmp_path), train_dataset=DATA, processing_class=word_level())
    assert trainer.model is model


def test_steps_beyond_the_models_context_are_dropped_and_counted(model_path, tmp_path):
    long = {"prompt": "Tom ?", "completions": ["7 " * 100, "8 " * 100, "9 " * 100], "labels": [1.0, 0.5, 0.0]}
    for max_length in (None, 1024):
        arguments = config(tmp_path, max_length=max_length)
        trainer = ERPRMTrainer(model_path, arguments, train_dataset=Dataset.from_list([long]))
        counts = trainer.data_counts["train"]
        assert (counts["steps"], counts["dropped_steps"]) == (2, 1)  # the context is 256
        with pytest.raises(ValueError, match="Row 0 .*max_length=256.*model's context"):
            data = Dataset.from_list([{**long, "prompt": "Tom " * 300}])
            ERPRMTrainer(model_path, arguments, train_dataset=data)


def test_wrong_models_and_datasets_are_errors(model_path, tmp_path):
    with pytest.raises(ValueError, match="`train_dataset` is required"):
        ERPRMTrainer(model_path, config(tmp_path))
    with pytest.raises(ValueError, match="num_labels=1"):
        ERPRMTrainer(tiny_llama(46), config(tmp_path, head="token"), train_dataset=DATA, processing_class=word_level())
    with pytest.raises(ValueError, match="without a language-model head"):
        ERPRMTrainer(
            tiny_llama(46, "token"), config(tmp_path, head="lm"), train_dataset=DATA, processing_class=word_level()
        )
    with pytest.raises(TypeError, match="expected a peft.PeftConfig"):
        ERPRMTrainer(model_path, config(tmp_path), train_dataset=DATA, peft_config={"r": 4})


def test_bad_labels_are_an_error_in_every_dataset(model_path, tmp_path):
    """The loss does not check labels, so all datasets are checked: training and evaluation sets, encoded or not."""
    trainer = ERPRMTrainer(model_path, config(tmp_path), train_dataset=DATA)
    encoded = trainer.train_dataset
    bad = Dataset.from_list([*ROWS, {**ROWS[0], "labels": [7.0, 1.0]}])
    bad_encoded = Dataset.from_list([*encoded, {**encoded[0], "step_labels": [7.0] * len(encoded[0]["step_labels"])}])
    for data in (bad, bad_encoded):
        for arguments in ({"train_dataset": data}, {"train_dataset": encoded, "eval_dataset": data}):
            with pytest.raises(ValueError, match="Row 4 of the .*outside"):
                ERPRMTrainer(model_path, config(tmp_path), **arguments)
        for evaluated in (data, {"easy": DATA, "hard": data}):
            with pytest.raises(ValueError, match="Row 4 of the .*outside"):
                trainer.evaluate(evaluated)


def test_several_evaluation_sets_are_logged_separately(model_path, tmp_path):
    sets = {"easy": DATA.select([0, 1]), "hard": DATA.select([2, 3])}
    trainer = ERPRMTrainer(model_path, config(tmp_path), train_dataset=DATA, eval_dataset=sets)
    metrics = trainer.evaluate()
    for name, data in sets.items():
        alone = trainer.evaluate(data)
        assert metrics[f"eval_{name}_loss"] == pytest.approx(alone["eval_loss"], abs=1e-6)
        assert metrics[f"eval_{name}_brier"] == pytest.approx(alone["eval_brier"], abs=1e-6)
