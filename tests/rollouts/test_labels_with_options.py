"""Labels of a folder with options: values by hand, counts, caches, and what stays as it was."""

import json
import math

import pytest
from rollout_folders import write_rollouts

from erprm_trl.rollouts import LabelOptions, RolloutDataset


# Rates, with K = 2. Question 0: (1 + 0 + 1 + 0 + 1 + 0) / 6 = 1/2. Question 1: (0 + 0 + 0 + 0 + 0 + 1) / 6 = 1/6.
SOLUTIONS = [
    [(1.0, [0, 1], [0, 0], [1, 1]), (0.0, [1, 0], [0, 0], [0, 1], [1, 1])],
    [(0.0, [0, 0], [0, 0]), (0.0, [0, 1], [1, 1])],
]


class Judge:
    """Names the first errors of SOLUTIONS: none, step 2 instead of 1, step 0, and no verdict."""

    model_name = "judge"

    def __init__(self):
        self.calls = 0

    def __repr__(self):  # in the name of a test, which must be the same in all processes
        return self.model_name

    def score(self, questions, steps):
        self.calls += 1
        scores = {
            ("question 0", 4): [1.0, 1.0, 1.0, 1.0],
            ("question 0", 5): [1.0, 1.0, 0.0, 0.0, 0.0],
            ("question 1", 3): [0.0, 0.0, 0.0],
        }
        answers = [scores[question, len(solution)] for question, solution in zip(questions, steps, strict=True)]
        return [[] if "of 1" in solution[0] and len(solution) == 3 else answer
                for solution, answer in zip(steps, answers, strict=True)]  # fmt: skip


@pytest.fixture
def rollouts(tmp_path):
    return write_rollouts(tmp_path / "rollouts", SOLUTIONS)


def manifests(rollouts):
    return [json.loads(path.read_text()) for path in (rollouts.path / "labels").glob("labels-*.json")]


PLAIN = [[0.5, 0.0, 1.0, 1.0], [0.5, 0.0, 0.5, 1.0, 0.0], [0.0, 0.0, 0.0], [0.5, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, PLAIN),
        ({"min_question_rate": 0.4}, PLAIN[:2]),
        ({"min_question_rate": 1 / 6}, PLAIN),
        # over 1/2, and over 1/6 (0.5 / (1/6) = 3, clipped at 1)
        ({"relative": True}, [[1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]]),
        ({"label_correct_solutions": "ones"}, [[1.0] * 4, *PLAIN[1:]]),
        # first failing prefixes: none, 1, 0, 2 (the whole solution)
        ({"error_tolerance": 0}, [PLAIN[0], [1.0, 0.0, 0.0, 0.0, 0.0], [0.0] * 3, [1.0, 1.0, 0.0]]),
        ({"error_tolerance": 1}, [PLAIN[0], [0.5, 0.0, 0.5, 0.0, 0.0], [0.0] * 3, [1.0, 1.0, 0.0]]),
        ({"agree_with": Judge()}, [PLAIN[0], PLAIN[2]]),
        ({"agree_with": Judge(), "agreement_tolerance": 1}, [PLAIN[0], PLAIN[1], PLAIN[2]]),
        (
            {"relative": True, "error_tolerance": 1, "label_correct_solutions": "ones", "min_question_rate": 0.5},
            [[1.0] * 4, [1.0, 0.0, 1.0, 0.0, 0.0]],
        ),
    ],
    ids=str,
)
def test_labels_worked_by_hand(rollouts, options, expected):
    labels = rollouts.labels(0.0, **options)
    assert [row["labels"] for row in labels] == expected
    assert [row["labels"] for row in RolloutDataset(rollouts.path).labels(0.0, **options)] == expected  # cached
    kept = [record["kept"] for record in manifests(rollouts)]
    assert kept == ([len(expected)] if options else [])


def test_dropped_solutions_and_questions_are_logged_and_recorded(rollouts, caplog):
    options = {"min_question_rate": 0.4, "agree_with": Judge()}
    rollouts.labels(2.0, **options)
    (record,) = manifests(rollouts)
    assert record == {
        "options": {"min_question_rate": 0.4, "agree_with": "judge"},
        "estimator": "sample",
        "eta": 2.0,
        "solutions": 4,
        "kept": 1,
        "dropped": {"a question below min_question_rate": 2, "another first error than the judge": 1},
        "dropped_questions": 1,
    }
    message = "leave out 3 of 4 solutions: 2 with a question below min_question_rate, 1 with another first error"
    assert message in caplog.text
    caplog.clear()
    source = rollouts.label_source(2.0, None, LabelOptions(**options))
    source.labels()
    assert message in caplog.text  # labels from the cache
    for path in (rollouts.path / "labels").glob("labels-*.json"):
        path.unlink()
    assert source.manifest == record  # the labels are computed again


def test_plain_labels_keep_their_cache(rollouts):
    plain = rollouts.label_source(2.0)
    assert plain.fingerprint == rollouts.label_source(2.0, None, LabelOptions()).fingerprint
    assert plain.manifest is None
    others = [
        {"relative": True}, {"min_question_rate": 0.1}, {"min_question_rate": 0.2}, {"error_tolerance": 0},
        {"error_tolerance": 1}, {"label_correct_solutions": "ones"}, {"agree_with": Judge()},
        {"agree_with": Judge(), "agreement_tolerance": 1},
    ]  # fmt: skip
    named = Judge()
    named.model_name = "another judge"
    options = [LabelOptions(**other) for other in [*others, {"agree_with": named}]]
    fingerprints = {rollouts.label_source(2.0, None, option).fingerprint for option in options}
    assert len(fingerprints | {plain.fingerprint}) == len(options) + 1


def test_labels_at_another_eta_ask_no_judge_again(rollouts):
    judge = Judge()
    first = rollouts.labels(0.0, agree_with=judge)
    second = rollouts.labels(math.inf, agree_with=judge)
    assert judge.calls == 1 and len(first) == len(second) == 2
    assert [row["labels"] for row in second][0] == [1.0, 0.0, 1.0, 1.0]


def test_questions_that_are_left_out_are_not_judged(rollouts):
    class Strict(Judge):
        def score(self, questions, steps):
            assert set(questions) == {"question 0"}
            return super().score(questions, steps)

    assert len(rollouts.labels(0.0, min_question_rate=0.4, agree_with=Strict())) == 1


@pytest.mark.parametrize("eta", [-math.inf, -2.0, 2.0, math.inf])
def test_every_eta_has_all_options(rollouts, eta):
    plain = [row["labels"] for row in rollouts.labels(eta)]
    tolerant = [row["labels"] for row in rollouts.labels(eta, error_tolerance=0)]
    assert tolerant[0] == plain[0] and tolerant[1] == [1.0, plain[1][1], 0.0, 0.0, 0.0]
    relative = [row["labels"] for row in rollouts.labels(eta, relative=True)]
    assert relative[0] == [1.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("eta", [-2.0, 0.0, 2.0])
def test_a_prefix_as_good_as_its_question_has_the_relative_value_1(tmp_path, eta):
    """Rewards between 0 and 1 count as the same successes in part for the prefix and for the question. The first
    prefix and the question have the same rewards, and the second prefix half of them."""
    rollouts = write_rollouts(tmp_path / "rollouts", [[(0.5, [0.5, 0.5], [0.5, 0.0])]])
    value_of_half = {-2.0: 1 - 0.716890, 0.0: 0.5, 2.0: 0.716890}[eta]  # log(1 + (e^eta - 1) / 2) / eta
    labels = rollouts.labels(eta, relative=True, min_question_rate=0.5)  # a mean reward, at every eta
    assert labels[0]["labels"] == pytest.approx([1.0, value_of_half, 0.5], abs=1e-6)


def test_rewards_between_0_and_1_have_no_rate_at_infinite_eta(tmp_path):
    rollouts = write_rollouts(tmp_path / "rollouts", [[(0.5, [1.0, 0.0])]])  # of the question, not of the prefix
    with pytest.raises(ValueError, match=r"relative: got the rewards \[0.0, 0.5, 1.0\] at eta=inf.*relative=False"):
        rollouts.labels(math.inf, relative=True)


def test_options_with_the_posterior(rollouts):
    plain = rollouts.labels(2.0, "posterior")
    cleaned = rollouts.labels(2.0, "posterior", error_tolerance=0, label_correct_solutions="ones")
    assert cleaned[0]["labels"] == [1.0] * 4 and cleaned[0]["label_std"] == [0.0] * 4
    assert cleaned[1]["labels"] == [1.0, plain[1]["labels"][1], 0.0, 0.0, 0.0]
    assert cleaned[1]["label_std"] == [0.0, plain[1]["label_std"][1], 0.0, 0.0, 0.0]
    # The prior is fitted to all questions, also to those that are left out.
    assert rollouts.labels(2.0, "posterior", min_question_rate=0.4)[:] == plain.select([0, 1])[:]
    with pytest.raises(ValueError, match="relative: got True with the estimator 'posterior'"):
        rollouts.labels(2.0, "posterior", relative=True)


def test_an_error_if_nothing_is_kept(rollouts):
    with pytest.raises(ValueError, match="'min_question_rate': 0.9.*leave out every solution.*Relax the options"):
        rollouts.labels(0.0, min_question_rate=0.9)


def test_rates_come_from_the_bare_question_if_it_was_continued(tmp_path):
    rollouts = write_rollouts(tmp_path / "rollouts", SOLUTIONS)
    assert rollouts.question_rates().tolist() == pytest.approx([1 / 2, 1 / 6])
    shard = rollouts.path / "rollouts-00000.jsonl"
    rows = [json.loads(line) | {"question_rewards": [1, 0, 0, 0]} for line in shard.read_text().splitlines()]
    shard.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert RolloutDataset(rollouts.path).question_rates().tolist() == [0.25, 0.25]


def test_outcomes_of_another_policy_do_not_count_for_the_rates(tmp_path):
    rollouts = write_rollouts(tmp_path / "rollouts", SOLUTIONS, completer={"model": "another"})
    assert rollouts.question_rates().tolist() == [2 / 4, 1 / 4]  # only the continuations of the first steps
