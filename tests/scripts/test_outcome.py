"""What a command prints last: on one process, with a table of metrics and the next command."""

from erprm_trl.scripts.outcome import first_and_last, print_outcome
from erprm_trl.scripts.train import METRICS, left_out, metrics


def test_one_process_prints(capsys, monkeypatch):
    print_outcome("One line.", "Another.", next_command="erprm report")
    assert capsys.readouterr().out == "One line.\nAnother.\nNext: erprm report\n"
    print_outcome("One line.")
    assert capsys.readouterr().out == "One line.\n"
    monkeypatch.setenv("RANK", "1")
    print_outcome("One line.", next_command="erprm report")
    assert capsys.readouterr().out == ""


def test_the_first_and_the_last_value_of_each_metric():
    history = [{"loss": 2.0}, {"eval_loss": 3.0, "auc": None}, {"loss": 1.0}, {"train_runtime": 9.0}]
    table = first_and_last(history, {"loss": "training loss", "auc": "AUC", "eval_loss": "evaluation loss"})
    assert [line.split() for line in table] == [
        ["first", "last"],
        ["training", "loss", "2.000", "1.000"],
        ["evaluation", "loss", "3.000"],  # logged once
    ]
    assert first_and_last(history, {"auc": "AUC"}) == []
    long = "AUC within questions on the evaluation steps, " + "source" * 5
    assert {len(line) for line in first_and_last(history, {"loss": "loss", "eval_loss": long})} == {len(long) + 20}


def test_data_that_was_not_used_is_named():
    labels = {"solutions": 24, "kept": 2, "dropped": {"no verdict of the judge": 1, "another first error": 21}}
    used = {"rows": 2, "kept": 2, "dropped_rows": {}}
    assert left_out({}) == left_out(used) == []
    assert left_out({**used, "labels": labels, "dropped_rows": {"no steps": 1}}) == [
        "The label options left out 22 of 24 solutions: 21 with another first error, 1 with no verdict of the judge.",
        "1 row was dropped: 1 with no steps.",
    ]
    of_sources = {"own": {**used, "labels": labels}, "gsm8k": {**used, "dropped_rows": {"too long": 3}}}
    assert [line.split(":")[0] for line in left_out({**used, "sources": of_sources})] == [
        "The label options left out 22 of 24 solutions of own",
        "3 rows of gsm8k were dropped",
    ]


def test_each_evaluation_source_has_its_own_metrics():
    assert metrics(None) == metrics("a dataset") == METRICS
    of_two = metrics({"own": "a dataset", "gsm8k": "another"})
    assert of_two["loss"] == "training loss" and "eval_loss" not in of_two
    assert of_two["eval_own_loss"] == "evaluation loss, own"
    assert of_two["eval_gsm8k_auc"] == "AUC on the evaluation steps, gsm8k"
