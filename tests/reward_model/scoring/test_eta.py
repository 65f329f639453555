"""Scores that are read at another eta: values worked by hand, errors that say how to fix them, and every caller."""

import json
import logging
import math

import pytest
from step_fakes import DIAL_FORMAT, FakeScorer, by_last_number
from tabular_policy import TabularSampler, value

from erprm_trl import PRMFormat, StepRewardFunction, StepScorer
from erprm_trl.policy.online.step_config import StepGRPOConfig
from erprm_trl.policy.online.step_trainer import _as_step_reward
from erprm_trl.reward_model.scoring import scores_at_eta
from erprm_trl.reward_model.scoring.eta import eta_or_as_trained, format_at_eta
from erprm_trl.scripts import with_bar
from erprm_trl.selection import guided_search


def soft(p, eta):
    """The value of a success rate, from its definition."""
    return math.log(1 + p * (math.exp(eta) - 1)) / eta


def scorer_of(format_eta, **options):
    """Scores a step by its last digit: 0.7 for a step that ends in 7. `format_eta` is in the model's format."""
    backend = FakeScorer(by_last_number, DIAL_FORMAT.with_eta(format_eta))
    return StepScorer.from_backend(backend, **options)


STEPS = [["step 2", "step 7"], ["step 5"], []]
QUESTIONS = ["q"] * 3
RATES = [[0.2, 0.7], [0.5], []]


def at(eta):
    return [[pytest.approx(soft(rate, eta), abs=1e-12) for rate in rates] for rates in RATES]


@pytest.mark.parametrize("eta", [2.0, -3.0, 8.0])
def test_success_rates_are_read_at_any_eta(eta):
    scorer = scorer_of(0.0)
    assert scorer.score(QUESTIONS, STEPS) == RATES and scorer.score(QUESTIONS, STEPS, eta=0) == RATES
    assert scorer.score(QUESTIONS, STEPS, eta=eta) == at(eta)
    assert scorer.at_eta(eta).score(QUESTIONS, STEPS) == at(eta)
    assert scorer.at_eta(eta).score(QUESTIONS, STEPS, eta=0) == RATES  # the argument takes precedence
    assert scorer.at_eta(eta).at_eta(None).score(QUESTIONS, STEPS) == RATES
    assert scorer.score_texts(["q"], ["step 2 ки step 7"], eta=eta) == [at(eta)[0]]
    assert scorer.score_solutions(QUESTIONS[:2], STEPS[:2], eta=eta) == pytest.approx([soft(0.2, eta), soft(0.5, eta)])
    assert with_bar(scorer.at_eta(eta)).score(QUESTIONS, STEPS) == at(eta)


def test_scores_at_a_finite_eta_are_inverted_first():
    backend = FakeScorer(lambda step: soft(by_last_number(step), 2.0), DIAL_FORMAT.with_eta(2.0))
    scorer = StepScorer.from_backend(backend)
    for eta in (-3.0, 8.0):
        assert scorer.score(QUESTIONS, STEPS, eta=eta) == at(eta)
    assert scorer.score(QUESTIONS, STEPS, eta=0)[0] == pytest.approx(RATES[0], abs=1e-12)
    unchanged = scorer.score(QUESTIONS, STEPS)
    assert scorer.score(QUESTIONS, STEPS, eta=2.0) == unchanged  # exactly


def test_the_format_of_a_scorer_has_the_eta_of_its_scores():
    scorer = scorer_of(0.0)
    assert scorer.prm_format is scorer.backend.prm_format
    assert (scorer.prm_format.eta, scorer.trained_eta, scorer.eta) == (0.0, 0.0, None)
    read = scorer.at_eta(2.0)
    assert (read.prm_format.eta, read.trained_eta, read.eta) == (2.0, 0.0, 2.0)
    # A scorer that reads at 2 is a backend, whose scores are values at 2.
    again = StepScorer.from_backend(read, eta=8.0)
    assert again.score(QUESTIONS, STEPS) == at(8.0)


def test_a_model_of_an_unknown_eta_is_refused_until_its_eta_is_stated():
    unknown = scorer_of(None)
    for call in (lambda: unknown.score(QUESTIONS, STEPS, eta=2.0), lambda: scorer_of(None, eta=2.0)):
        with pytest.raises(ValueError, match=r"got 2.0 for .* does not record .*trained_eta=0 .*PRMFormat\(eta=0\)"):
            call()
    assert unknown.backend.calls == []  # refused before anything is scored
    stated = scorer_of(None, eta=2.0, trained_eta=0)
    assert stated.score(QUESTIONS, STEPS) == at(2.0)
    assert unknown.at_eta(2.0, trained_eta=0).score(QUESTIONS, STEPS) == at(2.0)
    assert with_bar(stated).score(QUESTIONS, STEPS) == at(2.0)
    with pytest.raises(ValueError, match="trained_eta: got 0 for a reward model whose format records eta=2.0"):
        scorer_of(2.0, trained_eta=0)


@pytest.mark.parametrize(("trained", "eta"), [(math.inf, 2.0), (-math.inf, 0.0), (0.0, math.inf), (2.0, -math.inf)])
def test_an_infinite_eta_is_refused_on_either_side(trained, eta):
    match = f"got {eta} for a reward model that was trained at eta={trained}, expected"
    with pytest.raises(ValueError, match=match):
        scorer_of(trained).score(QUESTIONS, STEPS, eta=eta)
    with pytest.raises(ValueError, match=match):
        scores_at_eta(RATES, trained, eta)


def test_equal_infinite_etas_leave_the_scores_as_they_are():
    assert scorer_of(math.inf).score(QUESTIONS, STEPS, eta=math.inf) == RATES
    assert scorer_of(math.inf).score(QUESTIONS, STEPS, eta="inf") == RATES  # as in YAML
    assert scorer_of(math.inf).at_eta("inf").eta == math.inf


def test_nan_stays_at_its_place_and_other_ranges_are_refused():
    (read,) = scores_at_eta([[0.2, math.nan, 0.7]], 0, 2.0)
    assert math.isnan(read[1]) and [read[0], read[2]] == pytest.approx([soft(0.2, 2.0), soft(0.7, 2.0)])
    for trained in (0.0, 3.0):
        with pytest.raises(ValueError, match="outside"):
            scores_at_eta([[1.5]], trained, 2.0)
    assert scores_at_eta([], 0, 2.0) == [] and scores_at_eta([[], []], 0, 2.0) == [[], []]


def test_a_policy_uses_the_scores_as_they_are_if_they_cannot_be_read(caplog):
    assert eta_or_as_trained(PRMFormat(eta=0.0), 2.0, "x") == 2.0 and eta_or_as_trained(PRMFormat(), None, "x") is None
    assert not caplog.records
    for trained in (None, math.inf):
        with caplog.at_level(logging.WARNING):
            assert eta_or_as_trained(PRMFormat(eta=trained), 2.0, "guided_search") is None
        assert "guided_search: the scores are used as they are, as values at eta=2.0. eta: got 2.0" in caplog.text
        caplog.clear()


# Callers


class ExactRates:
    """The exact success rates of prefixes of the tabular policy, whose rewards are made 0 or 1 by rounding up."""

    model_name, context_length, weights = "rates", None, None
    prm_format = PRMFormat(eta=0.0)

    def score(self, questions, steps, skip_too_long=False):
        # At eta = 20 the value of a prefix is a number in (0, 1], which serves as its rate here.
        return [[value(tuple(solution[: n + 1]), 20.0) for n in range(len(solution))] for solution in steps]


class At(ExactRates):
    """The values of the same rates at an eta, as a model that was trained at this eta would give them."""

    def __init__(self, eta):
        self.eta, self.prm_format = eta, PRMFormat(eta=eta)

    def score(self, questions, steps, skip_too_long=False):
        return [[soft(rate, self.eta) for rate in rates] for rates in super().score(questions, steps)]


@pytest.mark.parametrize("method", ["particles", "resample"])
def test_guided_search_reads_the_scores_at_its_eta(method, caplog):
    options = {"method": method, "eta": 3.0, "width": 6, "splitter": "newline", "show_progress": False}

    def answers(scorer):
        results = guided_search(["q0", "q1"], TabularSampler(), scorer, **options)
        solutions = [solution for result in results for solution in result.solutions]
        return [s.text for s in solutions], [s.value for s in solutions]

    texts, values = answers(At(3.0))
    for scorer in (ExactRates(), At(-2.0), StepScorer.from_backend(ExactRates(), eta=1.0)):
        assert answers(scorer)[0] == texts
        assert answers(scorer)[1] == pytest.approx(values, abs=1e-9)
    assert not caplog.records
    unknown = At(3.0)
    unknown.prm_format = PRMFormat()
    assert answers(unknown) == (texts, values) and "as values at eta=3.0" in caplog.text


def test_step_rewards_are_read_at_an_eta(tmp_path):
    prompts, completions = ["check q"], ["step 2 ки step 7"]
    reward = StepRewardFunction(scorer_of(0.0), eta=2.0)
    batch = reward.score_batch(prompts, completions)
    assert batch.completions[0].scores == at(2.0)[0] and batch.rewards == [pytest.approx(soft(0.2, 2.0))]
    assert reward.prm_format.eta == 2.0
    DIAL_FORMAT.save(tmp_path)  # the error comes before the model is loaded, which has no weights here
    with pytest.raises(ValueError, match="does not record the eta of its labels"):
        StepRewardFunction(tmp_path, eta=2.0)
    assert StepRewardFunction(tmp_path, eta=2.0, scorer_kwargs={"trained_eta": 0}).prm_format.eta == 2.0


def test_the_eta_of_a_step_trainer_reads_the_scores_and_sets_beta(tmp_path, caplog):
    def scores(func, eta):
        args = StepGRPOConfig(str(tmp_path), eta=eta, bf16=False, report_to="none", use_cpu=True)
        assert args.beta == (0.0 if eta is None else 1 / eta)
        return _as_step_reward(func, args).score_batch(["q"], ["step 2 ки step 7"]).completions[0].scores

    backend = scorer_of(0.0).backend
    assert scores(backend, 2.0) == at(2.0)[0] and scores(scorer_of(0.0), 4.0) == at(4.0)[0]
    assert scores(backend, None) == RATES[0] and not caplog.records
    assert scores(scorer_of(math.inf), 2.0) == RATES[0] and "The reward model: the scores are used as" in caplog.text
    mine = StepRewardFunction(backend, eta=8.0)
    assert _as_step_reward(mine, StepGRPOConfig(str(tmp_path), eta=2.0, bf16=False, use_cpu=True)) is mine
    with pytest.raises(ValueError, match="eta: got 0.0 without beta, expected a positive number.*Set beta, too"):
        StepGRPOConfig(str(tmp_path), eta=0.0, bf16=False, use_cpu=True)


def test_a_format_at_an_eta_is_json():
    read = format_at_eta(PRMFormat(eta=0.0), 2.0)
    assert json.loads(read.to_json())["eta"] == 2.0
    assert "eta" not in json.loads(PRMFormat().to_json())
