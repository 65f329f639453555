"""Training of implicit reward models: the logit equals the score, reference log-probabilities are stored, and the
saved model is scored."""

import json
import logging
import math

import pytest
import torch
from datasets import Dataset, load_from_disk
from fake_sampler import FakeSampler
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from zoo import save_tiny, tiny_llama, word_level

from erprm_trl import ERPRMConfig, ERPRMTrainer, PRMFormat, StepScorer, collect_rollouts
from erprm_trl.reward_model import encode_solution
from erprm_trl.reward_model.trainer import reference_log_probs
from erprm_trl.rollouts import Question


QUESTION = "Tom dial 7 . right 15 . ?"
ROWS = [
    {"prompt": QUESTION, "completions": ["7 + 15 = 2", "answer 2"], "label": 1.0},
    {"prompt": QUESTION, "completions": ["7 + 15 = 3", "answer 3"], "label": 0.0},
    {"prompt": "Ann dial 1 . left 2 . ?", "completions": ["1 - 2 = 19", "19 + 0 = 19", "answer 19"], "label": 0.75},
]
DATA = Dataset.from_list(ROWS)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"), word_level())


def config(folder, **options):
    settings = {
        "head": "implicit", "max_steps": 3, "per_device_train_batch_size": 3, "per_device_eval_batch_size": 2,
        "learning_rate": 1e-2, "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no",
        "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "separator": "ки",
        "prompt_template": "{question}", "gradient_checkpointing": False, **options,
    }  # fmt: skip
    return ERPRMConfig(str(folder), **settings)


@torch.no_grad()
def slow_reward(model, reference, tokenizer, prm_format, row, num_steps=None):
    """The definition: one forward of the whole text, and the sum over the tokens after the question."""
    steps = row["completions"][:num_steps]
    question = tokenizer(prm_format.render_prompt(row["prompt"]))["input_ids"]
    solution = [token for step in steps for token in tokenizer(step)["input_ids"] + tokenizer("ки")["input_ids"]]
    ids, total = torch.tensor([question + solution]), 0.0
    for network, sign in ((model, 1), (reference, -1)):
        log_probs = network(ids).logits[0].double().log_softmax(-1)
        total += sign * sum(log_probs[at - 1, ids[0, at]].item() for at in range(len(question), ids.shape[1]))
    return prm_format.beta * total


def test_training_logit_is_the_score_of_the_last_step_and_equals_the_definition(base, tmp_path):
    trainer = ERPRMTrainer(base, config(tmp_path, beta=0.3), train_dataset=DATA, eval_dataset=DATA)
    reference = AutoModelForCausalLM.from_pretrained(base)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)  # the two models are equal
    trainer.train()
    trainer.model.eval()
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(3)])
    logits = trainer._step_logits(trainer.model, batch)[:, 0]
    expected = [
        slow_reward(trainer.model, reference, trainer.processing_class, trainer.prm_format, row) for row in ROWS
    ]
    assert logits.tolist() == pytest.approx(expected, abs=1e-5) and max(map(abs, expected)) > 0.1

    trainer.save_model()
    saved = json.loads((tmp_path / "prm_format.json").read_text())
    assert (saved["head"], saved["beta"], saved["reference_model"]) == ("implicit", 0.3, base)
    scorer = StepScorer.from_pretrained(tmp_path)
    scores = scorer.score(DATA["prompt"][:], DATA["completions"][:])
    assert [solution[-1] for solution in scores] == pytest.approx(logits.sigmoid().tolist(), abs=1e-6)
    first = slow_reward(trainer.model, reference, trainer.processing_class, trainer.prm_format, ROWS[2], 1)
    assert scores[2][0] == pytest.approx(1 / (1 + math.exp(-first)), abs=1e-6)

    metrics = trainer.evaluate()
    losses = [
        -row["label"] * math.log(solution[-1]) - (1 - row["label"]) * math.log(1 - solution[-1])
        for row, solution in zip(ROWS, scores, strict=True)
    ]
    assert metrics["eval_loss"] == pytest.approx(sum(losses) / 3, abs=1e-5)
    assert metrics["eval_auc_within_questions"] == float(scores[0][-1] > scores[1][-1])


@pytest.mark.slow("trains for a hundred steps")
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_outcomes_of_two_solutions_are_learnt(base, tmp_path, gradient_checkpointing):
    options = {"beta": 1.0, "max_steps": 100, "gradient_checkpointing": gradient_checkpointing}
    trainer = ERPRMTrainer(base, config(tmp_path, **options), train_dataset=DATA.select([0, 2]))
    trainer.train()
    trainer.save_model()
    scores = StepScorer.from_pretrained(tmp_path).score(DATA["prompt"][:], DATA["completions"][:])
    assert [scores[0][-1], scores[2][-1]] == pytest.approx([1.0, 0.75], abs=0.05)


def test_an_adapter_uses_its_base_model_as_the_reference(base, tmp_path):
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    trainer = ERPRMTrainer(base, config(tmp_path, beta=0.3), train_dataset=DATA, peft_config=lora)
    assert trainer.prm_format.reference_model == base
    reference = AutoModelForCausalLM.from_pretrained(base)
    full = ERPRMTrainer(reference, config(tmp_path / "full", beta=0.3), train_dataset=DATA)
    assert trainer.train_dataset["ref_logps"][:] == pytest.approx(full.train_dataset["ref_logps"][:], abs=1e-5)
    trainer.train()
    trainer.save_model()
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(3)])
    logits = trainer._step_logits(trainer.model.eval(), batch)[:, 0]
    scorer = StepScorer.from_pretrained(tmp_path)
    scores = [solution[-1] for solution in scorer.score(DATA["prompt"][:], DATA["completions"][:])]
    assert scores == pytest.approx(logits.sigmoid().tolist(), abs=1e-6) and max(scores) - min(scores) > 1e-3

    again = ERPRMTrainer(str(tmp_path), config(tmp_path / "again", head=None), train_dataset=DATA)
    assert (again.prm_format.beta, again.prm_format.reference_model) == (0.3, base)
    assert again.train_dataset["ref_logps"][:] == pytest.approx(trainer.train_dataset["ref_logps"][:], abs=1e-5)


def test_a_given_reference_model_is_used_and_recorded(base, tmp_path):
    other = save_tiny(tmp_path / "other", word_level(), hidden_size=8)
    trainer = ERPRMTrainer(base, config(tmp_path, reference_model=other), train_dataset=DATA)
    assert trainer.prm_format.reference_model == other and trainer.prm_format.beta == 0.05
    alone = ERPRMTrainer(other, config(tmp_path), train_dataset=DATA)
    assert trainer.train_dataset["ref_logps"][:] == alone.train_dataset["ref_logps"][:]


def test_reference_log_probabilities_are_cached_by_data_and_reference_model(base, tmp_path, monkeypatch):
    DATA.save_to_disk(tmp_path / "data")
    loads = []
    load = reference_log_probs.load_reference_model
    monkeypatch.setattr(
        reference_log_probs, "load_reference_model", lambda *args: loads.append(args[0].reference_model) or load(*args)
    )

    def column(reference, rows=slice(None)):
        data = load_from_disk(tmp_path / "data").select(range(3)[rows])
        trainer = ERPRMTrainer(base, config(tmp_path, reference_model=reference), train_dataset=data)
        return trainer.train_dataset["ref_logps"][:]

    first = column(base)
    assert column(base) == first and loads == [base]
    assert column(base, slice(1, None)) == first[1:] and len(loads) == 2
    other = tmp_path / "reference"
    save_tiny(other, word_level())
    column(str(other))
    model = tiny_llama(len(word_level()))
    torch.nn.init.normal_(model.lm_head.weight, std=0.5)
    model.save_pretrained(other)  # the same path with other weights
    assert column(str(other)) != first and len(loads) == 4


def test_the_last_label_is_the_outcome(base, tmp_path):
    stepwise = Dataset.from_list(
        [{**row, "labels": [0.3] * (len(row["completions"]) - 1) + [row["label"]]} for row in ROWS]
    ).remove_columns("label")
    trainer = ERPRMTrainer(base, config(tmp_path), train_dataset=stepwise, eval_dataset=stepwise)
    for dataset in (trainer.train_dataset, trainer.eval_dataset):
        assert dataset["step_labels"][:] == [[1.0], [0.0], [0.75]]


def test_rollouts_need_no_continuations(base, tmp_path):
    rollouts = collect_rollouts(
        [Question(f"q{index}?", str(index % 3)) for index in range(6)], FakeSampler(), tmp_path / "rollouts",
        num_solutions=2, num_continuations=0, grading="exact", answer_pattern=r"answer (\d+)", show_progress=False,
    )  # fmt: skip
    trainer = ERPRMTrainer(base, config(tmp_path), train_dataset=tmp_path / "rollouts")
    expected = [[row.outcome_reward] for row in rollouts if row.is_usable]
    assert trainer.train_dataset["step_labels"][:] == expected and len({label for (label,) in expected}) == 2
    trainer.train()
    trainer.create_model_card("implicit")
    card = (tmp_path / "README.md").read_text()
    assert (
        "| labels | outcomes of solutions |" in card and "| beta | 0.05 |" in card and "eta" not in card.split("##")[2]
    )
    assert trainer.prm_format.eta is None


def test_a_column_label_also_trains_an_outcome_reward_model(base, tmp_path):
    options = {"head": "lm", "good_token": "✓", "bad_token": "✗"}
    trainer = ERPRMTrainer(base, config(tmp_path, **options), train_dataset=DATA, eval_dataset=DATA)
    encoded = encode_solution(trainer.processing_class, trainer.prm_format, ROWS[2]["prompt"], ROWS[2]["completions"])
    assert trainer.train_dataset[2]["step_positions"] == encoded.step_positions[-1:]
    assert trainer.eval_dataset["step_labels"][:] == [[1.0], [0.0], [0.75]]


def test_a_prepared_dataset_is_evaluated_without_computing_again(base, tmp_path, caplog):
    trainer = ERPRMTrainer(base, config(tmp_path), train_dataset=DATA, eval_dataset={"a": DATA})
    with caplog.at_level(logging.INFO, logger="erprm_trl"):
        trainer.evaluate(trainer.eval_dataset)
        assert "Loading the reference model" not in caplog.text
        trainer.evaluate(DATA)
        assert "Loading the reference model" in caplog.text


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({"packing": True}, DATA, "head='implicit' with packing=True"),
        ({"label_weighting": "precision"}, DATA, "with label_weighting='precision'"),
        ({"separator": "<s>", "add_missing_tokens": True}, DATA, r"the new tokens \['<s>'\], which the reference"),
        ({"beta": 0.0}, DATA, "beta: got 0.0, expected a number above 0"),
        ({"head": "lm", "beta": 0.1}, DATA, "beta: got 0.1 with head='lm', expected head='implicit'"),
        ({"head": "token", "reference_model": "x"}, DATA, "reference_model: got 'x' with head='token'"),
        ({}, DATA.to_iterable_dataset(), "train dataset is a stream.*Dataset.from_list"),
        ({}, Dataset.from_list([{"input_ids": [1, 2], "labels": [-100, 1]}]), "is token ids.*Pass the texts"),
        ({}, Dataset.from_list([{**ROWS[0], "label": 1.5}]), "label that is NaN or outside.*'label'"),
        ({}, Dataset.from_list([{**ROWS[0], "label": "yes"}]), "column 'label': got 'yes' .*expected a number"),
    ],
)
def test_arguments_and_data_that_are_refused(options, data, message, base, tmp_path):
    with pytest.raises(ValueError, match=message):
        ERPRMTrainer(base, config(tmp_path, **options), train_dataset=data)


def test_a_model_without_a_name_needs_a_reference_model(base, tmp_path):
    model = tiny_llama(len(word_level()))
    with pytest.raises(ValueError, match="without a name, expected a folder or Hub id"):
        ERPRMTrainer(model, config(tmp_path), train_dataset=DATA, processing_class=word_level())
    arguments = config(tmp_path, reference_model=base)
    ERPRMTrainer(model, arguments, train_dataset=DATA, processing_class=word_level())


def test_a_reference_model_that_has_moved_is_named(base, tmp_path):
    trainer = ERPRMTrainer(base, config(tmp_path), train_dataset=DATA)
    trainer.save_model()
    PRMFormat(separator="ки", head="implicit", reference_model=str(tmp_path / "moved")).save(tmp_path)
    with pytest.raises(OSError, match="moved: .*reference model of an implicit.*reference_model of .*prm_format.json"):
        StepScorer.from_pretrained(tmp_path)


@pytest.mark.slow("trains twice")
def test_a_resumed_run_exactly_equals_the_uninterrupted_run(base, tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    first, second = (ERPRMTrainer(base, config(tmp_path / "run", **options), train_dataset=DATA) for _ in range(2))
    first.train()
    second.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    losses = [[log["loss"] for log in trainer.state.log_history if "loss" in log] for trainer in (first, second)]
    assert losses[0] == losses[1] and len(losses[0]) == 4


@pytest.mark.slow("trains in half precision")
def test_half_precision_starts_at_a_reward_of_zero(base, tmp_path):
    trainer = ERPRMTrainer(base, config(tmp_path, bf16=True), train_dataset=DATA)
    trainer.train()
    first = next(log["loss"] for log in trainer.state.log_history if "loss" in log)
    assert first == pytest.approx(-sum(math.log(0.5) for _ in ROWS) / 3, abs=1e-3)
