"""Scores from continuations: hand-worked values, an exactly solvable policy, shared prefixes, budgets and errors."""

import math
import random

import pytest
from scripted_sampler import ScriptedSampler
from tabular_policy import TabularSampler, reward, value

from erprm_trl import MonteCarloScorer, StepScorer, TransformersSampler, dial
from erprm_trl.reward_model.scoring import SolutionTooLong
from erprm_trl.rollouts import Completion, Question, grade, load_questions
from erprm_trl.selection import guided_search


ANSWERS = {"q0": "5", "q1": "7"}


def third_is_right(prompt, seed, sample):
    """The first of three continuations is right, except after a wrong first step."""
    right = sample % 3 == 0 and "bad" not in prompt.prefix
    return f"answer {ANSWERS[prompt.question] if right else 99}"


def scorer_of(answer=third_is_right, takes_seeds=True, **options):
    options = {"grading": "exact", "answer_pattern": r"answer (\d+)", "answers": ANSWERS, **options}
    sampler = ScriptedSampler(answer, takes_seeds=takes_seeds)
    return MonteCarloScorer(sampler, num_continuations=3, **options), sampler


@pytest.mark.parametrize("eta", [0.0, 2.0, math.inf])
def test_scores_worked_by_hand(eta):
    scorer, sampler = scorer_of(eta=eta)
    steps = [["a", "b", "answer 5"], ["bad", "answer 5"], ["a", "answer 6"], [], ["answer 5"]]
    scores = scorer.score(["q0"] * 5, steps)
    third = {0.0: 1 / 3, 2.0: math.log((math.exp(2) + 2) / 3) / 2, math.inf: 1.0}[eta]
    assert [len(row) for row in scores] == [3, 2, 2, 0, 1]
    assert scores[0] == pytest.approx([third, third, 1.0]) and scores[1] == [0.0, 1.0]
    assert scores[2] == pytest.approx([third, 0.0]) and scores[4] == [1.0]
    # The prefix "a" of two solutions is continued once.
    ((prompts, num_samples),) = sampler.calls
    assert [prompt.prefix for prompt in prompts] == ["a\n", "a\nb\n", "bad\n"] and num_samples == 3
    expected = {"continuations": 9, "tokens": 27, "unfinished": 0, "prefixes": 3, "cached_prefixes": 0}
    assert scorer.costs == {**expected, "reduced_prefixes": 0, "grading_timeouts": 0}


def random_answer(prompt, seed, sample):
    return f"answer {random.Random(f'{seed}/{sample}').randrange(4) + 4}"


@pytest.mark.parametrize("takes_seeds", [True, False])
def test_scores_do_not_depend_on_batches_and_order(takes_seeds):
    questions = ["q0", "q1", "q0", "q1"]
    steps = [["a", "b", "c", "answer 5"], ["a", "b", "answer 5"], ["a", "d", "answer 5"], ["e", "answer 7"]]
    whole = scorer_of(random_answer, takes_seeds)[0].score(questions, steps)
    reverse = scorer_of(random_answer, takes_seeds)[0].score(questions[::-1], steps[::-1])[::-1]
    single = [
        scorer_of(random_answer, takes_seeds)[0].score([q], [s])[0] for q, s in zip(questions, steps, strict=True)
    ]
    assert whole == reverse == single
    assert whole[0][0] == whole[2][0] and len({score for row in whole for score in row[:-1]}) > 1
    assert scorer_of(random_answer, takes_seeds, seed=1)[0].score(questions, steps) != whole


def test_the_policys_texts_do_not_depend_on_batches(dial_policy):
    rows = dial.make_questions(3, seed=4)
    questions = [row["question"] for row in rows for _ in range(2)]
    starts = [dial.DialQuestion.parse(question) for question in questions]
    steps = [[f"{s.start} {s.moves[0][0]} {s.moves[0][1]} = {index}", "answer 3"] for index, s in enumerate(starts)]

    def scores(batch_size, order):
        scorer = MonteCarloScorer(
            TransformersSampler(*dial_policy, max_new_tokens=64, batch_size=batch_size),
            "exact",
            4,
            answers=load_questions(rows),
            answer_pattern=dial.ANSWER_PATTERN,
            splitter=dial.SEPARATOR,
        )
        result = scorer.score([questions[i] for i in order], [steps[i] for i in order])
        return [result[order.index(i)] for i in range(6)]

    whole = scores(64, list(range(6)))
    assert whole == scores(5, [3, 1, 5, 0, 2, 4])
    assert {len(row) for row in whole} == {2} and any(row[0] > 0 for row in whole)


@pytest.mark.parametrize("eta", [0.5, 3.0])
def test_many_continuations_find_the_exact_values_of_a_policy(eta):
    """The values of the tabular policy by enumeration."""
    scorer = MonteCarloScorer(
        TabularSampler(),
        lambda text, answer: reward(tuple(text.splitlines(keepends=True))),
        4000,
        eta,
        answers={"q": "x"},
    )
    (scores,) = scorer.score(["q"], [["a", "c", "end y"]])
    assert scores == pytest.approx([value(("a",), eta), value(("a", "c"), eta), 0.9], abs=0.02)


def test_rewards_are_kept_between_calls():
    scorer, sampler = scorer_of(random_answer)
    first = scorer.score(["q0"], [["a", "b", "answer 5"]])
    assert scorer.score(["q0"], [["a", "b", "c", "answer 5"]])[0][:2] == first[0][:2]
    assert [[prompt.prefix for prompt in prompts] for prompts, _ in sampler.calls] == [
        ["a\n", "a\nb\n"],
        ["a\nb\nc\n"],
    ]
    assert scorer.costs["cached_prefixes"] == 2
    scorer.clear_cache()
    scorer.score(["q0"], [["a", "b", "answer 5"]])
    assert scorer.costs["continuations"] == 15
    forgetful, sampler = scorer_of(random_answer, max_cached=1)
    forgetful.score(["q0"], [["a", "b", "answer 5"]])
    forgetful.score(["q0"], [["a", "b", "answer 5"]])
    assert [len(prompts) for prompts, _ in sampler.calls] == [2, 1]


def test_a_budget_reduces_all_prefixes_evenly_and_counts_them(caplog):
    scorer, sampler = scorer_of(max_continuations=5)
    steps = [["a", "b", "answer 5"]]
    scores = scorer.score(["q0"], steps)  # 2 prefixes with 3 continuations each would be 6
    assert scores == [[0.5, 0.5, 1.0]] and sampler.calls[0][1] == 2
    assert scorer.costs["reduced_prefixes"] == 2 and "Each gets 2 instead of 3" in caplog.text
    assert scorer.score(["q0"], [["a", "answer 5"]])[0][0] == pytest.approx(1 / 3)  # fewer rewards are not kept
    with pytest.raises(ValueError, match="max_continuations: got 5 for a call with 6 prefixes.*Raise it"):
        scorer.score(["q0"], [["x"] * 6 + ["answer 5"]])


def test_the_last_step_of_an_unfinished_solution_is_continued():
    scorer, sampler = scorer_of()
    unfinished = StepScorer.of(scorer).for_unfinished()
    assert unfinished.score(["q0"], [["a", "b"]])[0] == pytest.approx([1 / 3] * 2)
    assert scorer.score(["q0"], [["a", "b"]])[0] == pytest.approx([1 / 3, 0.0])
    assert len(sampler.calls) == 1 and scorer.costs["cached_prefixes"] == 1  # both share the kept rewards
    local = StepScorer.from_backend(scorer)
    assert local.for_unfinished() is not local and unfinished.for_unfinished().backend.last_step == "continuations"


def test_guided_search_continues_unfinished_solutions():
    """With the reward of an unfinished text, every value would be 0."""
    scorer = MonteCarloScorer(
        TabularSampler(), lambda text, answer: reward(tuple(text.splitlines(keepends=True))), 50, answers={"q": "x"}
    )
    (result,) = guided_search(["q"], TabularSampler(), scorer, method="beam", width=2, expansions=6)
    assert result.solutions[0].value >= 0.9


def test_guided_search_scores_a_prefix_as_unfinished_although_another_question_ends_with_it():
    class TwoQuestions:
        settings = {"backend": "scripted"}

        def sample(self, prompts, num_samples, seed, stop=()):
            return [[self._completion(prompt)] * num_samples for prompt in prompts]

        def _completion(self, prompt):
            is_last = prompt.question == "q0" or prompt.prefix
            return Completion("answer 5" if is_last else "answer 5\n", bool(is_last), 3)

    scorer, sampler = scorer_of()
    guided_search(["q0", "q1"], TwoQuestions(), scorer, method="beam", width=1, expansions=1)
    continued = [(prompt.question, prompt.prefix) for prompts, _ in sampler.calls for prompt in prompts]
    assert continued == [("q1", "answer 5\n")]
    assert scorer.costs["cached_prefixes"] == 1  # continued for its own score, before the whole solution was graded


@pytest.mark.parametrize("splitter", ["newline", "ки", "<step>", " ; "])
def test_the_separator_after_the_last_step_is_no_part_of_the_answer(splitter):
    scorer, _ = scorer_of(grading="math", answer_pattern=None, splitter=splitter)
    assert scorer.score(["q0"] * 2, [["#### 5"], ["a", "#### 6"]])[0] == [1.0]


def test_the_name_changes_with_all_settings_and_hides_the_path_of_a_local_model():
    changes = [{}, {"answers": {**ANSWERS, "q1": "8"}}, {"answer_pattern": r"is (\d+)"}, {"stop": "Q:"}]
    changes += [{"last_step": "continuations"}, {"separator": "\n\n"}, {"context_length": 100}, {"seed": 1}]
    assert len({scorer_of(**change)[0].model_name for change in changes}) == len(changes)
    assert scorer_of()[0].model_name == scorer_of()[0].model_name
    scorer, sampler = scorer_of()
    name = scorer.model_name
    sampler.settings = {**sampler.settings, "temperature": 0.5}
    assert scorer.model_name != name
    sampler.settings["model"] = "/home/ada/policy"
    assert scorer.model_name.startswith("MonteCarloScorer(policy, K=3, ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_continuations": 0}, "num_continuations: got 0, expected at least 1"),
        ({"num_continuations": "8"}, r"num_continuations: got '8' \(str\), expected a whole number"),
        ({"max_continuations": 0}, "max_continuations: got 0"),
        ({"eta": math.nan}, "eta: got NaN"),
        ({"last_step": "other"}, "last_step: got 'other', expected one of reward, continuations"),
        ({"answers": [Question("q", "1"), Question("q ", "2")]}, "got the answers '1' and '2' for the question"),
        ({"answers": [Question("q")]}, "got the question 'q' without an answer"),
        ({"answers": {"q": " "}}, "column 'answer' holds no reference answer"),
    ],
)
def test_invalid_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        MonteCarloScorer(ScriptedSampler(third_is_right), **{"answers": ANSWERS, **options})


def test_errors_of_a_call(dial_policy):
    scorer, _ = scorer_of(grading=lambda text, answer: 1.5)
    with pytest.raises(ValueError, match=r"got the question 'other' without a reference answer.*2 questions"):
        scorer.score(["other"], [["a"]])
    with pytest.raises(ValueError, match=r"got the reward 1.5, expected a number in \[0, 1\]"):
        scorer.score(["q0"], [["a", "b"]])
    question = dial.make_questions(1, seed=4)[0]
    long = MonteCarloScorer(TransformersSampler(*dial_policy), "exact", answers=load_questions([question]))
    steps = [["answer 1"], ["7 " * 600, "answer 1"]]
    with pytest.raises(
        SolutionTooLong, match="Solution 1 has .* tokens with the prompt, expected fewer than"
    ) as error:
        long.score([question["question"]] * 2, steps)
    assert error.value.index == 1
    scores = long.score([question["question"]] * 2, steps, skip_too_long=True)
    assert [len(row) for row in scores] == [1, 0]


def test_the_reward_of_a_solution_is_the_graders():
    texts = ["2 + 3 = 5\nThe answer is 5.", "The answer is 6."]
    scorer = MonteCarloScorer(ScriptedSampler(lambda *_: "The answer is 6."), answers={"q": "What is it? #### 5"})
    scores = scorer.score(["q", "q"], [text.split("\n") for text in texts])
    assert [row[-1] for row in scores] == grade(texts, ["5", "5"]) == [1.0, 0.0]
