"""The rows, order and columns of the steps that `compute_metrics` and `predict` get."""

import json

import erprm_runs
import pytest
import torch
from datasets import Dataset
from erprm_runs import FORMAT, NUM_STEPS, ROWS
from forked_launch import launch_forked
from transformers import AutoModelForCausalLM, AutoTokenizer
from zoo import save_tiny, word_level

from erprm_trl import ERPRMConfig, ERPRMTrainer
from erprm_trl.reward_model.trainer.metrics import padded_logits


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"), word_level())


def test_logits_have_the_columns_of_a_classifier_with_two_classes():
    mask = torch.tensor([[True, True], [True, False]])
    good_and_bad = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    expected = [[[2.0, 1.0], [4.0, 3.0]], [[6.0, 5.0], [-100.0, -100.0]]]
    assert padded_logits(good_and_bad, mask).tolist() == expected
    single = torch.tensor([[0.5], [-1.0], [2.0]])
    padded = padded_logits(single, mask)
    assert padded.tolist() == [[[0.0, 0.5], [0.0, -1.0]], [[0.0, 2.0], [-100.0, -100.0]]]
    torch.testing.assert_close(padded[mask].softmax(-1)[:, 1], single[:, 0].sigmoid())


def check(got, expected):
    """Compares the recorded predictions of one process with the logits of each row alone."""
    assert got["metrics"]["eval_rows"] == got["predicted_metrics"]["test_rows"] == len(ROWS)
    for predictions, labels in (got["first"], got["predicted"]):
        assert len(predictions) == len(labels) == len(ROWS)
        for row, num_steps in enumerate(NUM_STEPS):
            assert len(predictions[row]) == len(labels[row]) == max(NUM_STEPS)
            assert labels[row] == pytest.approx([*ROWS[row]["labels"], *[-100.0] * (max(NUM_STEPS) - num_steps)])
            real = torch.tensor(predictions[row][:num_steps])
            torch.testing.assert_close(real, expected[row], atol=1e-5, rtol=0)
            assert all(pair == [-100.0, -100.0] for pair in predictions[row][num_steps:])
    # A prediction has all metrics of an evaluation, and the loss is the mean over all steps.
    same = {
        key.removeprefix("eval_"): value for key, value in got["metrics"].items() if not key.startswith("eval_run")
    }
    for key in ("loss", "brier", "accuracy", "auc", "score/step_1", "rows"):
        assert got["predicted_metrics"][f"test_{key}"] == pytest.approx(same[key], abs=1e-6)
    labels = torch.tensor(sum((row["labels"] for row in ROWS), []))
    scores = torch.cat(expected).softmax(-1)[:, 1]
    loss = torch.nn.functional.binary_cross_entropy(scores, labels)
    assert got["metrics"]["eval_loss"] == pytest.approx(loss.item(), abs=1e-5)


@pytest.fixture(scope="module")
def expected(model_path):
    """Logits (bad, good) at the separators of every row, from plain forward passes."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_path), AutoTokenizer.from_pretrained(model_path)
    columns = tokenizer.convert_tokens_to_ids([FORMAT["bad_token"], FORMAT["good_token"]])
    logits = []
    for row in ROWS:
        ids = tokenizer.encode(f"check {row['prompt']} " + "".join(f"{step} ки " for step in row["completions"]))
        at = [index for index, token in enumerate(ids) if token == tokenizer.convert_tokens_to_ids("ки")]
        logits.append(model(torch.tensor([ids])).logits[0, at][:, columns].detach())
    return logits


@pytest.mark.parametrize(
    "options", [{}, {"packing": True}, {"streaming": True}], ids=["plain", "packing", "streaming"]
)
def test_predictions_are_padded_and_in_the_order_of_the_dataset(options, model_path, expected, tmp_path):
    erprm_runs.predict(model_path, tmp_path, **options)
    check(json.loads((tmp_path / "0-of-1.json").read_text()), expected)


@pytest.mark.slow("starts processes")
def test_several_processes_predict_the_same_as_one_process(model_path, expected, tmp_path):
    folders = {}
    for world, options in ((2, (False, False)), (2, (True, False)), (3, (False, True))):
        folder = tmp_path / f"{world}-{options}"
        folder.mkdir()
        folders[folder] = (world, [model_path, str(folder), *options])
    errors, printed = launch_forked(erprm_runs.predict, list(folders.values()))
    assert errors == [None] * len(folders)
    assert sorted(printed.split("\n")).count("world 2") == 4 and sorted(printed.split("\n")).count("world 3") == 3
    for folder, (world, _) in folders.items():
        files = sorted(folder.glob("*-of-*.json"))
        assert [file.name for file in files] == [f"{rank}-of-{world}.json" for rank in range(world)]
        for file in files:
            check(json.loads(file.read_text()), expected)


@pytest.mark.slow("starts processes")
def test_several_processes_log_the_training_metrics_of_one_process(model_path, tmp_path):
    """The copy that fills the last batch of an epoch is not in the metrics, and all other rows are."""
    runs = {"one": (1, [4]), "two": (2, [2]), "accumulated": (2, [1, 2])}
    for name in runs:
        (tmp_path / name).mkdir()
    launches = [(world, [model_path, str(tmp_path / name), *sizes]) for name, (world, sizes) in runs.items()]
    errors, _ = launch_forked(erprm_runs.train_and_log, launches)
    assert errors == [None] * len(runs)
    logs = {}
    for name, (world, _) in runs.items():
        entries = json.loads((tmp_path / name / f"0-of-{world}.json").read_text())[:2]
        left_out = ("loss", "grad_norm", "perf/")
        logs[name] = [
            {key: value for key, value in entry.items() if not key.startswith(left_out)} for entry in entries
        ]
    assert {"brier", "auc", "num_tokens", "score/step_1"} <= logs["one"][1].keys()
    for name in ("two", "accumulated"):
        assert [entry.keys() for entry in logs[name]] == [entry.keys() for entry in logs["one"]]
        for got, alone in zip(logs[name], logs["one"], strict=True):
            assert got == pytest.approx(alone, abs=1e-5)


def test_predictions_and_interrupted_evaluations_leave_no_records(model_path, tmp_path):
    args = ERPRMConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, **FORMAT)
    data = Dataset.from_list(ROWS)
    trainer = ERPRMTrainer(model_path, args, train_dataset=data)
    alone = trainer.evaluate(data.select([1]))["eval_loss"]
    trainer.predict(data)
    assert trainer.evaluate(data.select([1]))["eval_loss"] == pytest.approx(alone)

    def interrupt(*_):
        raise KeyboardInterrupt

    trainer.compute_metrics = interrupt
    with pytest.raises(KeyboardInterrupt):
        trainer.evaluate(data)
    trainer.compute_metrics = None
    assert trainer.evaluate(data.select([1]))["eval_loss"] == pytest.approx(alone)


def test_custom_metrics_choose_the_best_checkpoint(model_path, tmp_path):
    """TRL's usual metric, the argmax of the two classes, works with these columns."""

    def accuracy(evaluated):
        mask = evaluated.label_ids != -100
        right = evaluated.predictions.argmax(-1)[mask] == (evaluated.label_ids[mask] > 0.5)
        return {"own_accuracy": right.mean()}

    args = ERPRMConfig(
        str(tmp_path),
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="own_accuracy",
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        **FORMAT,
    )
    data = Dataset.from_list(ROWS)
    trainer = ERPRMTrainer(model_path, args, train_dataset=data, eval_dataset=data, compute_metrics=accuracy)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "eval_own_accuracy" in log]
    assert len(logs) == 2
    for log in logs:
        assert log["eval_own_accuracy"] == pytest.approx(log["eval_accuracy"])
    assert trainer.state.best_metric == pytest.approx(max(log["eval_accuracy"] for log in logs))


def test_metrics_get_inputs_with_one_solution_per_row(model_path, tmp_path):
    def compute_metrics(evaluated):
        return {"same_rows": len(evaluated.inputs) == len(evaluated.predictions) == len(ROWS)}

    options = {"include_for_metrics": ["inputs", "loss"], "use_cpu": True, "bf16": False, "report_to": "none"}
    data = Dataset.from_list(ROWS)
    with pytest.raises(ValueError, match="include_for_metrics: got 'inputs' with packing=True.*Set packing=False"):
        ERPRMTrainer(model_path, ERPRMConfig(str(tmp_path), packing=True, **options, **FORMAT), train_dataset=data)
    args = ERPRMConfig(str(tmp_path), packing=False, **options, **FORMAT)
    trainer = ERPRMTrainer(model_path, args, train_dataset=data, compute_metrics=compute_metrics)
    assert trainer.evaluate(data)["eval_same_rows"]
