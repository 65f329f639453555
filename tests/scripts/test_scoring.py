"""Scores of several reward models at several etas."""

import math
from types import SimpleNamespace

import pytest
from step_fakes import DIAL_FORMAT, FakeScorer, by_last_number

from erprm_trl import StepScorer
from erprm_trl.reward_model import scoring
from erprm_trl.scripts import progress
from erprm_trl.scripts.best_of_n import BestOfNArguments
from erprm_trl.scripts.scoring import score_with_each, scoring_speed


ROWS = [[SimpleNamespace(question="q", steps=["step 2", "step 7"])], [SimpleNamespace(question="r", steps=["step 5"])]]
SAMPLES = SimpleNamespace(settings=SimpleNamespace(splitter="newline"), solutions=lambda: ROWS)
RATES = [[[0.2, 0.7]], [[0.5]]]


@pytest.fixture
def models(monkeypatch):
    """Two reward models by name: one that was trained at 0, and one of an unknown eta."""
    backends = {name: FakeScorer(by_last_number, DIAL_FORMAT.with_eta(eta)) for name, eta in (("a", 0.0), ("b", None))}

    def load(path, batch_size, backend, **options):
        assert (batch_size, backend) == (8, "local")
        return StepScorer.from_backend(backends[path], **options)

    monkeypatch.setattr(scoring, "load_format", lambda path: backends[path].prm_format)
    monkeypatch.setattr(StepScorer, "from_pretrained", load)
    return backends


def test_a_model_scores_once_for_several_etas(models):
    assert score_with_each(["a", "b"], SAMPLES, 8) == {"a": RATES, "b": RATES}
    scores = score_with_each(["a", "b"], SAMPLES, 8, [0.0, 2.0], trained_eta=0.0)
    assert list(scores) == ["a (eta = 0)", "a (eta = 2)", "b (eta = 0)", "b (eta = 2)"]
    assert scores["a (eta = 0)"] == RATES == scores["b (eta = 0)"]
    expected = [math.log(1 + rate * (math.e**2 - 1)) / 2 for rate in (0.2, 0.7, 0.5)]
    for name in ("a (eta = 2)", "b (eta = 2)"):
        (first,), (second,) = scores[name]
        assert [*first, *second] == pytest.approx(expected)
    assert [len(model.calls) for model in models.values()] == [2, 2]  # one call without an eta, and one for both


def test_nothing_is_scored_if_the_scores_of_one_model_cannot_be_read(models):
    with pytest.raises(ValueError, match="does not record the eta of its labels"):
        score_with_each(["a", "b"], SAMPLES, 8, [2.0])
    assert models["a"].calls == []


def test_the_speed_of_each_model_is_printed(models, monkeypatch, capsys):
    clock = iter([10.0, 10.5, 20.0, 24.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    score_with_each(["a", "b"], SAMPLES, 8)
    assert capsys.readouterr().out.splitlines() == [
        "a scored 2 solutions at 4.0 solutions per second.",
        "b scored 2 solutions at 0.5 solutions per second.",
    ]
    assert scoring_speed(0, 0.0) == "0 solutions" and scoring_speed(1, 0.0) == "1 solution"


def test_best_of_n_takes_one_eta_or_several():
    required = {"samples": "s", "reward_models": ["m"], "output_dir": "o"}
    assert BestOfNArguments(**required).eta is None
    assert BestOfNArguments(**required, eta=2.0).eta == [2.0]  # a number in a YAML file
    assert BestOfNArguments(**required, eta=[0.0, 2.0]).eta == [0.0, 2.0]
