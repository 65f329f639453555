"""The backend protocol: what the facade adds to any class with its five members, the functions that accept such a
class, and that the package's own backends follow the protocol."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from public_models import Eurus
from scripted_sampler import ScriptedSampler
from serving import HeldScorer, serving
from step_fakes import DIAL_FORMAT, FakeScorer, by_last_number
from tabular_policy import TabularSampler
from torch import nn
from zoo import tiny_llama, word_level

from erprm_trl import JudgeScorer, MonteCarloScorer, PRMFormat, StepRewardFunction, StepScorer
from erprm_trl.policy.raft.sampling import load_scorer
from erprm_trl.reward_model import RemoteBackend, ScoringBackend
from erprm_trl.reward_model.scoring import ImplicitBackend, LocalBackend, ShardedBackend, SolutionTooLong, load_format
from erprm_trl.reward_model.scoring import sharded as sharded_scoring
from erprm_trl.reward_model.scoring.server import scoring_app
from erprm_trl.reward_model.scoring.sharded import check_sharding
from erprm_trl.rollouts import RolloutRow
from erprm_trl.selection import guided_search, score_rollouts


class LengthBackend:
    """The example in the protocol's docstring, with a limit of 10 characters per step."""

    prm_format, model_name, context_length, weights = PRMFormat(aggregation="mean"), "length", 10, None

    def __init__(self):
        self.calls = []

    def score(self, questions, steps, skip_too_long):
        self.calls.append((list(questions), [list(solution) for solution in steps]))
        too_long = [any(len(step) > 10 for step in solution) for solution in steps]
        if any(too_long) and not skip_too_long:
            raise SolutionTooLong(too_long.index(True), "has more than 10 characters.")
        lengths = [[len(step) / 10 for step in solution] for solution in steps]
        return [[] if skip else scores for skip, scores in zip(too_long, lengths, strict=True)]


@pytest.fixture
def scorer():
    return StepScorer.from_backend(LengthBackend())


# Checks and conversions of the facade


def test_duplicate_solutions_reach_the_backend_once(scorer):
    questions, steps = ["q", "p", "q", "q", "p"], [["ab"], ["ab"], ("ab",), ["ab", "c"], ["ab"]]
    scores = scorer.score(questions, steps)
    assert scores == [[0.2], [0.2], [0.2], [0.2, 0.1], [0.2]]
    assert scorer.backend.calls == [(["q", "p", "q"], [["ab"], ["ab"], ["ab", "c"]])]
    scores[0].append(1.0)  # duplicates do not share a list
    assert scores[2] == [0.2]


@pytest.mark.parametrize(
    ("steps", "index"),
    [
        ([["a"], ["b" * 11]], 1),
        ([["a"], ["a"], ["b" * 11], ["b" * 11]], 2),
        ([["a"], ["a"], ["a"], ["c", "b" * 11]], 3),
    ],
)
def test_an_error_names_the_solution_by_the_callers_index(scorer, steps, index):
    with pytest.raises(ValueError, match=f"^Solution {index} has more than 10 characters") as error:
        scorer.score(["q"] * len(steps), steps)
    assert error.value.index == index
    expected = [[] if "b" * 11 in solution else [0.1] for solution in steps]
    assert scorer.score(["q"] * len(steps), steps, skip_too_long=True) == expected


def test_errors_of_real_backends_name_the_callers_index():
    local = StepScorer(tiny_llama(46), word_level(), DIAL_FORMAT)
    steps = [["answer 2"], ["answer 2"], ["7 " * 300]]
    with pytest.raises(ValueError, match="^Solution 2 has .* tokens, expected at most the model's context of 256"):
        local.score(["Tom ?"] * 3, steps)
    with serving(scoring_app(local)) as url, pytest.raises(ValueError, match="^Solution 2 is too long for http"):
        StepScorer.from_pretrained(url).score(["Tom ?"] * 3, steps)


def test_lengths_are_checked_before_the_backend_is_called(scorer):
    with pytest.raises(ValueError, match="got 2 questions for 1 solutions, expected one question per solution"):
        scorer.score(["q", "q"], [["a"]])
    assert scorer.backend.calls == []


def test_texts_are_split_and_scores_are_aggregated(scorer):
    assert scorer.split("ab\n\ncdef\n") == ["ab", "cdef"]
    assert scorer.score_texts(["q", "q"], ["ab\ncdef", ""]) == [[0.2, 0.4], []]
    assert scorer.score_solutions(["q", "q"], [["ab", "cdef"], ["a"]]) == pytest.approx([0.3, 0.1])
    assert scorer.score([], []) == []


def test_other_attributes_are_the_backends(scorer):
    assert (scorer.prm_format, scorer.model_name, scorer.context_length) == (
        PRMFormat(aggregation="mean"),
        "length",
        10,
    )
    assert scorer.weights is None and scorer.reference_model is None and not hasattr(scorer, "model")
    model, tokenizer = tiny_llama(46), word_level()
    local = StepScorer(model, tokenizer, DIAL_FORMAT, batch_size=3, max_batch_tokens=9)
    assert local.weights is local.model is model and local.tokenizer is tokenizer
    assert (local.batch_size, local.max_batch_tokens) == (3, 9)
    assert local.token_ids == DIAL_FORMAT.token_ids(tokenizer) and local.context_length == 256


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([[0.5]], "Wrong.score: got 1 lists of scores for 2 solutions, expected one per solution"),
        ([[0.5], [0.5]], "Wrong.score: got 1 scores for the 2 steps of solution 2, expected one per step"),
        ([[0.5], []], "Solution 2 is too long: got no scores from Wrong.score"),
    ],
)
def test_a_wrong_number_of_scores_is_an_error(answer, message):
    class Wrong(LengthBackend):
        def score(self, questions, steps, skip_too_long):
            return answer

    with pytest.raises(ValueError, match=message):
        StepScorer.from_backend(Wrong()).score(["q"] * 3, [["a"], ["a"], ["b", "c"]])


def test_a_class_without_all_members_is_an_error():
    half = SimpleNamespace(score=print, prm_format=PRMFormat())
    with pytest.raises(TypeError, match="got a SimpleNamespace without model_name, context_length, weights, expected"):
        StepScorer.from_backend(half)
    assert not isinstance(half, ScoringBackend)
    scorer = StepScorer.from_backend(LengthBackend())
    assert StepScorer.of(scorer) is scorer and isinstance(scorer, ScoringBackend)


# The package's backends


@pytest.fixture(
    params=["local", "implicit", "sharded", "remote", "fake", "held", "docstring", "continuations", "judge"]
)
def backend(request, monkeypatch, tmp_path):
    """Each backend, with a tiny model if it needs a model."""
    model, tokenizer = tiny_llama(46), word_level()
    if request.param == "local":
        yield LocalBackend(model, tokenizer, DIAL_FORMAT)
    elif request.param == "implicit":
        eurus = Eurus(tmp_path / "eurus")
        yield ImplicitBackend(*eurus.models, eurus.tokenizer, eurus.prm_format)
    elif request.param == "sharded":
        monkeypatch.setattr(sharded_scoring, "prepare_deepspeed", lambda model, accelerator: model)
        yield ShardedBackend(model, tokenizer, DIAL_FORMAT, Accelerator(cpu=True))
    elif request.param == "remote":
        with serving(scoring_app(LocalBackend(model, tokenizer, DIAL_FORMAT))) as url:
            yield RemoteBackend(url)
    elif request.param == "continuations":
        yield MonteCarloScorer(ScriptedSampler(lambda *_: "The answer is 7."), answers={"Tom ?": "7"})
    elif request.param == "judge":
        yield JudgeScorer(ScriptedSampler(lambda *_: r"\boxed{0}"))
    else:
        yield {"fake": FakeScorer(by_last_number), "held": HeldScorer(), "docstring": LengthBackend()}[request.param]


def test_a_backend_has_the_members_of_the_protocol(backend):
    assert isinstance(backend, ScoringBackend)
    assert StepScorer not in type(backend).__mro__ and type(backend).__mro__[1:] == (object,)  # nothing is inherited
    assert isinstance(backend.prm_format, PRMFormat) and isinstance(backend.model_name, str)
    assert backend.context_length is None or isinstance(backend.context_length, int)
    assert backend.weights is None or isinstance(backend.weights, nn.Module)
    assert (backend.weights is None) == (type(backend) not in (LocalBackend, ImplicitBackend, ShardedBackend))
    assert list(inspect.signature(backend.score).parameters) == ["questions", "steps", "skip_too_long"]
    steps = [["Tom 7", "3 + 4"], [], ["answer 7"]]
    scores = backend.score(["Tom ?"] * 3, [tuple(solution) for solution in steps], skip_too_long=True)
    assert [len(step_scores) for step_scores in scores] == [2, 0, 1]
    assert all(type(score) is float and 0 <= score <= 1 for step_scores in scores for score in step_scores)
    assert scores == StepScorer.of(backend).score(["Tom ?"] * 3, steps, skip_too_long=True)


def test_the_constructor_chooses_the_backend(tmp_path):
    eurus = Eurus(tmp_path / "eurus")
    implicit = StepScorer(eurus.models[0], eurus.tokenizer, eurus.prm_format, reference_model=eurus.models[1])
    assert isinstance(implicit.backend, ImplicitBackend) and implicit.reference_model is eurus.models[1]
    assert isinstance(StepScorer(tiny_llama(46), word_level(), DIAL_FORMAT).backend, LocalBackend)
    assert isinstance(StepScorer.from_pretrained(eurus.path, prm_format=eurus.prm_format).backend, ImplicitBackend)


def test_the_docstrings_example_runs():
    import doctest

    from erprm_trl.reward_model.scoring import backend

    names = {"PRMFormat": PRMFormat, "StepScorer": StepScorer}
    (test,) = [test for test in doctest.DocTestFinder().find(backend, extraglobs=names) if test.examples]
    test.examples[-1].want = test.examples[-1].want.replace("```\n", "")
    assert doctest.DocTestRunner().run(test).failed == 0


# Backends that all processes call together


@pytest.mark.parametrize(
    ("questions", "steps", "error"),
    [(["q", "q"], [["a"]], ValueError), (["q"], [[["a"]]], TypeError), (["q"], [["7 " * 300]], ValueError)],
    ids=["lengths", "no text", "too long"],
)
def test_an_error_before_or_in_the_backend_stops_the_other_processes(monkeypatch, questions, steps, error):
    monkeypatch.setattr(sharded_scoring, "prepare_deepspeed", lambda model, accelerator: model)
    told = []

    def gather(num_batches):
        told.append(int(num_batches))
        return torch.cat([num_batches, torch.tensor([1])])

    accelerator = SimpleNamespace(device=torch.device("cpu"), gather=gather)
    sharded = StepScorer.from_backend(ShardedBackend(tiny_llama(46), word_level(), DIAL_FORMAT, accelerator))
    with pytest.raises(error):
        sharded.score(questions, steps)
    assert told == [-1]


# Functions with a scorer argument also accept a backend


def test_reward_functions_and_trainers_accept_a_backend():
    scorer = load_scorer(LengthBackend(), Accelerator(cpu=True), 32)
    assert isinstance(scorer, StepScorer) and scorer.model_name == "length"
    assert StepRewardFunction(LengthBackend())(["q"], ["ab\ncdef"]) == pytest.approx([0.3])
    rows = [
        RolloutRow(chunk=0, question_index=0, solution_index=index, question="q", steps=["ab\n", "c\n"])
        for index in range(2)
    ]
    rollouts = SimpleNamespace(settings=SimpleNamespace(splitter="newline"), solutions=lambda: [rows])
    backend = LengthBackend()
    assert score_rollouts(backend, rollouts) == [[[0.2, 0.1]] * 2] and len(backend.calls[0][0]) == 1
    with pytest.raises(TypeError, match="reward_model: got a list, expected one reward model"):
        load_scorer([LengthBackend()], Accelerator(cpu=True), 32)
    with pytest.raises(ValueError, match="shard_reward_model=True: got a scorer that is already loaded"):
        check_sharding(LengthBackend(), None)
    with pytest.raises(ValueError, match="shard_reward_model=True: got the scorer file judge.yaml"):
        check_sharding("judge.yaml", None)


def test_guided_search_accepts_a_backend():
    results = [
        guided_search(
            ["q"], TabularSampler(), scorer, method="beam", width=2, expansions=2, splitter="newline", seed=3
        )
        for scorer in (FakeScorer(len_in_unit), StepScorer.from_backend(FakeScorer(len_in_unit)))
    ]
    assert results[0] == results[1] and results[0][0].solutions[0].step_scores


def test_a_server_accepts_a_backend():
    held = HeldScorer()
    with serving(scoring_app(held)) as url:
        scores = RemoteBackend(url).score(["q"] * 3, [["a"], ["b"], ["a"]], skip_too_long=True)
    assert held.calls == [2] and scores[0] == scores[2] != scores[1]


def len_in_unit(step):
    return 1 / (1 + len(step))


def test_partitioned_weights_are_refused_for_every_backend():
    model = nn.Linear(1, 1)
    model.weight.ds_id = 0
    with pytest.raises(ValueError, match="partitioned by ZeRO-3"):
        load_scorer(FakeScorer(by_last_number, weights=model), Accelerator(cpu=True), 32)


# Formats of servers and folders


def test_a_servers_format_is_read_from_the_server():
    with pytest.raises(
        ValueError, match=r"got the address of a scoring server.*from_pretrained\(url\).prm_format"
    ) as error:
        PRMFormat.load("http://user:passw0rd@host:8100")
    assert "passw0rd" not in str(error.value)
    with serving(scoring_app(HeldScorer())) as url:
        assert load_format(url) == StepScorer.from_pretrained(url).prm_format == HeldScorer().prm_format
        assert load_format(url, "math-shepherd") == PRMFormat.preset("math-shepherd")
        assert StepRewardFunction(url).prm_format == HeldScorer().prm_format


def test_a_folders_format_is_read_from_the_folder(tmp_path):
    DIAL_FORMAT.save(tmp_path)
    assert load_format(tmp_path) == load_format(str(tmp_path)) == DIAL_FORMAT
    assert load_format(tmp_path, PRMFormat()) == PRMFormat()
    (tmp_path / "base").mkdir()
    with pytest.raises(FileNotFoundError, match="got no prm_format.json"):
        load_format(tmp_path / "base")
