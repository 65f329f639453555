"""Guided search compared with a policy whose optimum is known exactly, and with weights worked by hand."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from tabular_policy import (
    STEP_TOKENS,
    TABLE,
    TabularSampler,
    TabularScorer,
    optimum,
    policy,
    total_variation,
    value,
)

from erprm_trl import TransformersSampler, dial
from erprm_trl.rollouts import Completion, Prompt
from erprm_trl.selection import guided_search
from erprm_trl.selection.search.particles import log_mean_exp
from erprm_trl.steps import closed_steps, step_stops


ETA = 3.0


def search(questions, sampler=None, scorer=None, **arguments):
    return guided_search(
        questions, sampler or TabularSampler(), scorer or TabularScorer(ETA), **{"splitter": "newline", **arguments}
    )


def weighted_share(results):
    """Probability of each text if a solution of a result is drawn by its weight, averaged over results."""
    share = Counter()
    for result in results:
        for solution in result.solutions:
            share[solution.text] += math.exp(solution.log_weight) / len(results)
    return share


class Script:
    """A sampler that returns the texts of a script: one list of texts per prompt and round. "." ends a solution."""

    settings = {}

    def __init__(self, *rounds):
        self.rounds = iter(rounds)

    def sample(self, prompts, num_samples, seed, stop=()):
        texts = next(self.rounds)
        assert [len(samples) for samples in texts] == [num_samples] * len(prompts)
        return [[Completion(text, text.endswith("."), 2) for text in samples] for samples in texts]


class ByText:
    """Scores each step by the number in its text."""

    def score(self, questions, steps):
        return [[float(step.strip(".")) for step in solution_steps] for solution_steps in steps]


def test_particle_weights_worked_by_hand():
    script = Script([["0.2\n"], ["0.6\n"]], [["0.9."], ["0.1."]])
    (result,) = search(["q"], script, ByText(), method="particles", eta=2.0, width=2, ess_threshold=0.0)
    # exp(2 * 0.9) and exp(2 * 0.1): the values of earlier steps cancel
    shares = {solution.text: math.exp(solution.log_weight) for solution in result.solutions}
    total = math.exp(1.8) + math.exp(0.2)
    assert shares == pytest.approx({"0.2\n0.9.": math.exp(1.8) / total, "0.6\n0.1.": math.exp(0.2) / total})
    assert result.log_normalizer == pytest.approx(math.log(total / 2))
    assert [solution.text for solution in result.solutions] == ["0.2\n0.9.", "0.6\n0.1."]
    assert result.solutions[0].step_scores == [0.2, 0.9] and result.solutions[0].steps == ["0.2\n", "0.9."]
    assert (result.tokens_generated, result.steps_scored, result.reason) == (8, 4, "finished")


@pytest.mark.parametrize(("threshold", "resampled"), [(0.79, False), (0.81, True)])
def test_resampling_is_triggered_by_the_effective_sample_size(threshold, resampled):
    """Weights 3/4 and 1/4 have an effective sample size of 1.6 of 2, which is resampled above a threshold of 0.8."""
    first = [[f"{math.log(3)}\n"], ["0.0\n"]]
    for seed in range(20):
        script = Script(first, [["1."], ["2."]])
        (result,) = search(
            ["q"], script, ByText(), method="particles", eta=1.0, width=2, ess_threshold=threshold, seed=seed
        )
        begun = Counter(solution.steps[0] for solution in result.solutions)
        before = {f"{math.log(3)}\n": math.log(3), "0.0\n": 0.0}
        if not resampled:
            assert set(begun.values()) == {1}
            continue
        # each half of [0, 1) has one point, so the first particle with weight 3/4 is taken once or twice
        assert begun[f"{math.log(3)}\n"] in (1, 2)
        # all weights become the mean of 3 and 1
        expected = [math.log(2) + solution.value - before[solution.steps[0]] for solution in result.solutions]
        assert result.log_normalizer == pytest.approx(log_mean_exp(np.array(expected)))


# The distribution of the results


def test_the_table_is_a_policy_and_its_values_are_a_martingale():
    assert sum(policy().values()) == pytest.approx(1)
    target, z = optimum(ETA)
    assert z == pytest.approx(math.exp(ETA * value((), ETA)))
    assert total_variation(policy(), target) > 0.2
    # exp(eta V) of a prefix is the mean of its steps' exp(eta V)
    mean = sum(p * math.exp(ETA * value((step.strip(),), ETA)) for step, p in TABLE[0].items())
    assert mean == pytest.approx(z)


@pytest.mark.slow("thousands of searches")
def test_one_particle_samples_from_the_policy():
    results = search(["q"] * 4000, method="particles", eta=ETA, width=1)
    assert total_variation(weighted_share(results), policy()) < 0.025
    assert total_variation(weighted_share(results), optimum(ETA)[0]) > 0.2


class Misleading(TabularScorer):
    """Right scores at the end of a solution, and wrong scores before."""

    def score(self, questions, steps):
        return [
            [
                s if step.startswith("end") else (0.9 if step == "a" else 0.1)
                for s, step in zip(step_scores, solution_steps, strict=True)
            ]
            for step_scores, solution_steps in zip(super().score(questions, steps), steps, strict=True)
        ]


@pytest.mark.slow("thousands of searches")
@pytest.mark.parametrize("scorer", [TabularScorer, Misleading])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_particles_converge_to_the_optimum_for_any_intermediate_values(scorer, threshold):
    arguments = {"method": "particles", "eta": ETA, "ess_threshold": threshold}
    target, z = optimum(ETA)
    results = search(["q"] * 40, scorer=scorer(ETA), width=400, **arguments)
    assert total_variation(weighted_share(results), target) < 0.03  # the policy's distance is above 0.2
    # The normaliser is also unbiased with few particles.
    few = search(["q"] * 1500, scorer=scorer(ETA), width=3, **arguments)
    estimates = np.exp([result.log_normalizer for result in few])
    assert estimates.mean() == pytest.approx(z, abs=4 * estimates.std() / len(estimates) ** 0.5)


def distribution_of_resampling(num_proposals, eta, steps=()):
    """Exact distribution of a chain, by enumeration of all tuples of proposals."""
    law = Counter()
    row = TABLE[len(steps)]
    for proposals in itertools.product(row, repeat=num_proposals):
        chance = math.prod(row[step] for step in proposals)
        weights = [math.exp(eta * value((*steps, step.strip()), eta)) for step in proposals]
        for step, weight in zip(proposals, weights, strict=True):
            p = chance * weight / sum(weights)
            if step.startswith("end"):
                law["\n".join([*steps, step])] += p
            else:
                for text, rest in distribution_of_resampling(num_proposals, eta, (*steps, step.strip())).items():
                    law[text] += p * rest
    return law


@pytest.mark.slow("thousands of searches")
@pytest.mark.parametrize("expansions", [1, 2, 3])
def test_resampling_has_its_exact_distribution(expansions):
    """Chi-square test of the enumerated distribution. 32.91 is its 0.999 quantile with 12 degrees of freedom."""
    law = distribution_of_resampling(expansions, ETA)
    results = search(["q"] * 100, method="resample", eta=ETA, width=30, expansions=expansions)
    counts = Counter(solution.text for result in results for solution in result.solutions)
    assert set(counts) <= set(law) and len(law) == 13
    statistic = sum((counts[text] - 3000 * p) ** 2 / (3000 * p) for text, p in law.items())
    assert statistic < 32.91


def test_resampling_approaches_the_optimum_with_more_proposals():
    distances = [total_variation(distribution_of_resampling(m, ETA), optimum(ETA)[0]) for m in (1, 2, 3)]
    assert distances[0] == pytest.approx(total_variation(policy(), optimum(ETA)[0]))
    assert distances[0] > 1.3 * distances[1] > 1.5 * distances[2]


# Reductions


def plain_samples(question, width):
    """Solutions of the policy without guidance, from a sampler whose samples depend only on the prompts."""
    sampler, texts = TabularSampler(seeded=False), [""] * width
    while True:
        live = [i for i, text in enumerate(texts) if "end" not in text]
        if not live:
            return sorted(texts)
        drawn = sampler.sample([Prompt(question, texts[i]) for i in live], 1, 0, stop=("\n",))
        for i, (completion,) in zip(live, drawn, strict=True):
            texts[i] += completion.text


@pytest.mark.parametrize(
    "arguments",
    [
        {"method": "particles", "eta": 0.0, "width": 6},
        {"method": "particles", "eta": 0.0, "width": 6, "ess_threshold": 0.9},
        {"method": "resample", "eta": 7.0, "width": 6, "expansions": 1},
        {"method": "beam", "width": 1, "expansions": 1},
        {"method": "particles", "eta": 9.0, "width": 1},
    ],
    ids=str,
)
def test_settings_that_reduce_to_plain_sampling(arguments):
    results = search(["q", "r"], TabularSampler(seeded=False), **arguments)
    for result in results:
        texts = sorted(solution.text for solution in result.solutions)
        assert texts == plain_samples(result.question, arguments["width"])
        assert all(
            solution.log_weight == pytest.approx(-math.log(arguments["width"])) or arguments["method"] == "particles"
            for solution in result.solutions
        )


@pytest.mark.slow("thousands of searches")
def test_resampling_with_eta_0_samples_from_the_policy():
    results = search(["q"] * 100, method="resample", eta=0.0, width=30, expansions=3)
    assert total_variation(weighted_share(results), policy()) < 0.035


@pytest.mark.parametrize(("eta", "expected"), [(math.inf, "0.9\n0.8."), (-math.inf, "0.1\n0.2.")])
def test_resampling_at_infinite_eta_is_greedy(eta, expected):
    script = Script([["0.5\n", "0.9\n", "0.1\n"]], [["0.3.", "0.2.", "0.8."]])
    (result,) = search(["q"], script, ByText(), method="resample", eta=eta, width=1, expansions=3)
    assert [solution.text for solution in result.solutions] == [expected]


# Beams


def test_beams_worked_by_hand():
    rounds = (
        # two roots with two proposals each: 0.7 and 0.6 are kept, and the second 0.7 is a duplicate
        [["0.7\n", "0.1\n"], ["0.7\n", "0.6\n"]],
        # 0.7 continues with 0.2 and 0.65., 0.6 with 0.5 and 0.3.: 0.65. and 0.5 are kept
        [["0.2\n", "0.65."], ["0.5\n", "0.3."]],
        # only the solution that has not ended is continued
        [["0.9.", "0.4\n"]],
    )
    (result,) = search(["q"], Script(*rounds), ByText(), method="beam", width=2, expansions=2)
    assert [solution.text for solution in result.solutions] == ["0.6\n0.5\n0.9.", "0.7\n0.65."]
    assert [solution.log_weight for solution in result.solutions] == pytest.approx([-math.log(2)] * 2)
    # scored: 0.7, 0.1, 0.6 and then six more. Generated: 10 proposals of 2 tokens.
    assert (result.steps_scored, result.tokens_generated, result.log_normalizer) == (9, 20, None)


def test_the_value_may_use_another_aggregation():
    def best(aggregation):
        rounds = [["0.7\n", "0.5\n"]], [["0.1\n", "0.2\n"]], [["0.9.", "0.05."]]
        (result,) = search(
            ["q"], Script(*rounds), ByText(), method="beam", width=1, expansions=2, aggregation=aggregation
        )
        return result.solutions[0]

    assert best("last").value == 0.9
    assert best("min").value == 0.2  # the minimum of 0.7, 0.2, 0.9
    assert best("mean").value == pytest.approx(1.8 / 3)


def test_a_wide_beam_finds_the_best_solution():
    (result,) = search(["q"], method="beam", width=6, expansions=8)
    assert result.solutions[0].value == pytest.approx(1.0)
    texts = [solution.text for solution in result.solutions]
    assert len(texts) == len(set(texts)) == 6


# Many questions


@pytest.mark.parametrize("method", ["beam", "resample", "particles"])
def test_questions_do_not_affect_each_other(method):
    arguments = {"method": method, "width": 4, "seed": 5, **({} if method == "beam" else {"eta": ETA})}
    questions = ["one", "two", "one", "three"]
    together = search(questions, **arguments)
    assert [result.question for result in together] == questions
    for index in (0, 1, 3):
        assert search([questions[index]], **arguments) == [together[index]]
    assert together[2] != together[0]  # a repeated question has other random choices
    assert search(questions, **arguments) == together
    assert search(questions, **{**arguments, "seed": 6}) != together


def test_each_round_is_one_call_with_only_unfinished_nodes():
    sampler, scorer = TabularSampler(), TabularScorer(ETA)
    questions = ["q", "r", "s"]
    results = search(questions, sampler, scorer, method="resample", eta=ETA, width=5, expansions=2)
    lengths = {len(solution.steps) for result in results for solution in result.solutions}
    assert lengths == {1, 2, 3} and len(sampler.calls) == 3  # solutions end in different rounds
    assert len({seed for _, _, seed, _ in sampler.calls}) == 3
    for prompts, num_samples, _, stop in sampler.calls:
        assert num_samples == 2 and stop == ("\n",) and not any("end" in prompt.prefix for prompt in prompts)
    assert sampler.num_tokens == sum(result.tokens_generated for result in results)
    assert all(len(solution.step_scores) == len(solution.steps) for result in results for solution in result.solutions)
    asked = [pair for call in scorer.calls for pair in call]
    assert len(asked) == len(set(asked)) == sum(result.steps_scored for result in results)
    assert {solution.num_tokens for result in results for solution in result.solutions} <= {3, 6, 9}
    assert search([], method="beam") == []


# End of a search


def test_the_token_budget_ends_only_its_own_question():
    sampler = Script([["0.5\n"], ["0.4\n"], ["0.3."], ["0.2."]], [["0.6."], ["0.7\n"]])
    results = search(
        ["long", "short"], sampler, ByText(), method="particles", eta=1.0, width=2, ess_threshold=0.0, token_budget=8
    )
    assert [result.reason for result in results] == ["token_budget", "finished"]
    assert [result.tokens_generated for result in results] == [8, 4]
    assert [(solution.text, solution.finished, solution.reason) for solution in results[0].solutions] == [
        ("0.5\n0.6.", True, "finished"),
        ("0.4\n0.7\n", False, "token_budget"),
    ]
    # the weights follow from the reached values
    shares = [math.exp(solution.log_weight) for solution in results[0].solutions]
    assert shares == pytest.approx([1 / (1 + math.exp(0.1)), 1 / (1 + math.exp(-0.1))])


@pytest.mark.parametrize("method", ["beam", "resample", "particles"])
def test_the_score_budget_is_never_exceeded(method):
    arguments = {"method": method, "width": 3, **({} if method == "beam" else {"eta": ETA})}
    free = search(["q", "r"], **arguments)
    for budget in (1, 3, 12, 13, 20, 100):
        for result, whole in zip(search(["q", "r"], score_budget=budget, **arguments), free, strict=True):
            assert result.steps_scored <= budget
            assert result == whole or result.reason == "score_budget"
    assert all(result.reason == "finished" for result in free)


@pytest.mark.parametrize(("budget", "rounds"), [(1, 0), (2, 1), (3, 1), (4, 2)])
def test_a_round_that_fits_the_score_budget_is_run(budget, rounds):
    script = Script([["0.1\n"], ["0.2\n"]], [["0.3."], ["0.4."]])
    (result,) = search(
        ["q"], script, ByText(), method="particles", eta=1.0, width=2, ess_threshold=0.0, score_budget=budget
    )
    assert (result.steps_scored, result.tokens_generated) == (2 * rounds, 4 * rounds)
    assert result.reason == ("finished" if rounds == 2 else "score_budget")


def test_a_budget_below_one_round_gives_empty_solutions():
    (result,) = search(["q"], method="resample", eta=1.0, width=2, score_budget=1)
    assert [(solution.text, solution.steps, solution.value) for solution in result.solutions] == [("", [], 0.0)] * 2
    assert result.tokens_generated == 0 and not result.solutions[0].finished


def test_max_steps_and_max_tokens_end_solutions():
    (result,) = search(["q"], method="particles", eta=1.0, width=20, max_steps=1)
    assert result.reason == "max_steps" and {solution.reason for solution in result.solutions} == {
        "finished",
        "max_steps",
    }
    assert result.solutions[0].finished and not result.solutions[-1].finished
    (result,) = search(["q"], method="particles", eta=1.0, width=20, max_tokens=2 * STEP_TOKENS)
    assert result.reason == "finished" and {solution.reason for solution in result.solutions} == {"finished", "length"}
    assert all(len(solution.steps) == 2 for solution in result.solutions if solution.reason == "length")


def test_a_truncated_step_ends_its_solution_and_ranks_last():
    class Cut(Script):
        def sample(self, *arguments, **more):
            return [
                [completion._replace(finished=completion.text.endswith(".")) for completion in samples]
                for samples in super().sample(*arguments, **more)
            ]

    (result,) = search(
        ["q"], Cut([["0.99", "0.2\n"]], [["0.1.", "0.05\n"]]), ByText(), method="beam", width=1, expansions=2
    )
    assert [(solution.text, solution.reason) for solution in result.solutions] == [("0.2\n0.1.", "finished")]
    (result,) = search(["q"], Cut([["0.99"], ["0.2."]]), ByText(), method="particles", eta=1.0, width=2)
    assert [(solution.text, solution.reason) for solution in result.solutions] == [
        ("0.2.", "finished"),
        ("0.99", "length"),
    ]


class Empty(Script):
    def sample(self, prompts, num_samples, seed, stop=()):
        return [[Completion(text, not text or text == "0.4", 1) for text in texts] for texts in next(self.rounds)]


def test_empty_solutions_and_empty_lines_are_handled():
    (result,) = search(
        ["q"],
        Empty([[""], ["\n"], ["0.4"]], [["0.3\n"]], [[""]]),
        ByText(),
        method="particles",
        eta=1.0,
        width=3,
        ess_threshold=0.0,
    )
    assert [(solution.text, solution.steps, solution.finished) for solution in result.solutions] == [
        ("0.4", ["0.4"], True),
        ("\n0.3\n", ["\n0.3\n"], True),
        ("", [], True),
    ]
    # a solution without steps has value 0, and the empty line was not scored
    assert [solution.value for solution in result.solutions] == [0.4, 0.3, 0.0]
    assert result.steps_scored == 2 and result.log_normalizer == pytest.approx(
        math.log((math.exp(0.4) + math.exp(0.3) + 1) / 3)
    )


# Step boundaries


def test_the_policy_stops_at_the_end_of_a_step():
    assert step_stops("newline") == ("\n",) and step_stops("blank_line") == ("\n\n",)
    assert step_stops("ки") == ("ки",)
    text = "Step 1: add.\nIt is 3.\nStep"
    assert any(text.endswith(stop) for stop in step_stops("step"))
    assert closed_steps(text, "step") == ["Step 1: add.\nIt is 3."]
    assert closed_steps("Step 1: add.\n**Step 2", "step") == ["Step 1: add."]
    assert closed_steps(text + " 2: done", "step") == ["Step 1: add.\nIt is 3.", "Step 2: done"]
    assert closed_steps("Step 1: a Step", "step") == ["Step 1: a Step"]
    assert closed_steps("a\nb\n", "newline") == ["a", "b"] and closed_steps("", "step") == []


def test_steps_with_headings_are_scored_without_the_next_heading():
    class Lengths:
        def score(self, questions, steps):
            assert not any(step.endswith("Step") for solution_steps in steps for step in solution_steps)
            return [[1.0] * len(solution_steps) for solution_steps in steps]

    class Headed:
        settings = {}

        def sample(self, prompts, num_samples, seed, stop=()):
            ends = {"": "Step 1: a\nStep", "Step 1: a\nStep": " 2: b"}
            return [[Completion(ends[p.prefix], p.prefix != "", 4)] * num_samples for p in prompts]

    (result,) = search(["q"], Headed(), Lengths(), method="beam", width=2, splitter="step")
    (solution,) = result.solutions
    assert solution.steps == ["Step 1: a\n", "Step 2: b"] and solution.finished and solution.step_scores == [1.0, 1.0]


def test_stop_strings_end_a_solution(dial_policy):
    sampler = TransformersSampler(*dial_policy, max_new_tokens=16)
    scorer = Constant()
    questions = [row["question"] for row in dial.make_questions(2, seed=0)]
    options = {"method": "resample", "eta": 0.0, "width": 2, "expansions": 1, "splitter": dial.SEPARATOR}
    plain = guided_search(questions, sampler, scorer, **options)
    stopped = guided_search(questions, sampler, scorer, stop="answer", **options)
    assert all("answer" in solution.text for result in plain for solution in result.solutions)
    for result in stopped:
        assert all(solution.finished and "answer" not in solution.text for solution in result.solutions)
        assert all(len(solution.steps) == len(solution.step_scores) > 0 for solution in result.solutions)


def test_solutions_are_continued_from_their_sampled_tokens():
    """The sampled tokens differ from the tokenizer's encoding of the text, and one step has no tokens."""
    asked = []

    class Tokens:
        settings = {}

        def sample(self, prompts, num_samples, seed, stop=()):
            asked.append(prompts)
            drawn = {"": ("a\n", (7, 8)), "a\n": ("b\n", (9,)), "a\nb\n": ("c\n", ()), "a\nb\nc\n": ("d", (1, 0))}
            return [
                [Completion(text, text == "d", len(token_ids), token_ids)]
                for text, token_ids in (drawn[prompt.prefix] for prompt in prompts)
            ]

    guided_search(["q"], Tokens(), Constant(), method="beam", width=1, expansions=1, splitter="newline")
    assert [prompts[0].prefix_ids for prompts in asked] == [None, (7, 8), (7, 8, 9), None]
    assert [prompts[0].prefix for prompts in asked] == ["", "a\n", "a\nb\n", "a\nb\nc\n"]


class Constant:
    def score(self, questions, steps):
        return [[0.5] * len(steps_of_solution) for steps_of_solution in steps]


# Errors


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_errors_name_a_score_that_is_not_finite(score):
    class Broken(TabularScorer):
        def score(self, questions, steps):
            return [[score if step == "c" else 0.5 for step in solution_steps] for solution_steps in steps]

    with pytest.raises(ValueError, match=r"step 2 \('c'\) .*question': got -?(nan|inf)"):
        search(["the question"], scorer=Broken(ETA), method="resample", eta=1.0)


def test_too_few_scores_are_an_error():
    class Short:
        def score(self, questions, steps):
            return [[] for _ in steps]

    with pytest.raises(ValueError, match="Scores of 'q': got 0 for 1 steps"):
        search(["q"], scorer=Short(), method="beam")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "mcts"}, "method: got 'mcts', expected one of beam"),
        ({"method": "beam", "eta": 1.0}, "eta: got 1.0 with method='beam'"),
        ({"method": "resample"}, "eta: got None"),
        ({"eta": math.nan}, "eta: got nan"),
        ({"eta": math.inf}, "eta: got inf with method='particles'"),
        ({"eta": 1.0, "expansions": 2}, "expansions: got 2 with method='particles'"),
        ({"eta": 1.0, "ess_threshold": 1.5}, r"ess_threshold: got 1.5"),
        ({"eta": 1.0, "aggregation": "median"}, "aggregation: got 'median'"),
        ({"eta": 1.0, "width": 0}, "width: got 0, expected at least 1"),
        ({"method": "beam", "expansions": 0}, "expansions: got 0"),
        ({"eta": 1.0, "max_steps": 0}, "max_steps: got 0"),
        ({"eta": 1.0, "token_budget": 0}, "token_budget: got 0"),
        ({"eta": 1.0, "splitter": None}, "splitter: got None"),
        ({"eta": 1.0, "splitter": ""}, "Step splitter: got ''"),
    ],
    ids=str,
)
def test_invalid_arguments_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        search(["q"], **arguments)


# A real policy and a real reward model


@pytest.mark.slow("searches with a model")
@pytest.mark.parametrize("method", ["beam", "resample", "particles"])
def test_search_on_the_dial_task(method, dial_policy, dial_format):
    from erprm_trl import StepScorer

    questions = [row["question"] for row in dial.make_questions(4, seed=3)]
    sampler = TransformersSampler(*dial_policy, max_new_tokens=16)
    scorer = StepScorer(*dial_policy, dial_format)
    arguments = {"method": method, "width": 3, "seed": 1, **({} if method == "beam" else {"eta": 4.0})}
    results = guided_search(questions, sampler, scorer, **arguments)
    assert guided_search(questions, sampler, scorer, **arguments) == results
    for question, result in zip(questions, results, strict=True):
        best = result.solutions[0]
        assert best.finished and best.steps[-1].split()[0] == "answer" and best.text.count(dial.SEPARATOR) > 2
        assert best.text == "".join(best.steps)
        assert best.step_scores == pytest.approx(scorer.score_texts([question], [best.text])[0], abs=1e-5)
        # every word is one token, and so is the end-of-text token
        assert best.num_tokens == len(best.text.split()) + 1


def test_a_step_of_whole_lines_is_closed_by_the_line_after_it():
    """A displayed formula belongs to the line before it, so the end of that line's step is known one line later."""
    script = Script(
        [["Two and three make five:\n"], ["Two and three make six.\n"]],
        [["\\[2 + 3 = 5\\]\n"], ["Doubled it is twelve.\n"]],
        [["Doubled it is ten.\n"]],
        [["The answer is 10."], ["The answer is 12."]],
    )

    class ByLength:
        def score(self, questions, steps):
            asked.append(steps)
            return [[float(len(step)) for step in solution] for solution in steps]

    asked = []
    (result,) = search(
        ["q"], script, ByLength(), method="particles", eta=0.0, width=2, splitter="whole_lines", ess_threshold=0.0
    )
    assert asked[0] == [["Two and three make five:\n\\[2 + 3 = 5\\]"], ["Two and three make six."]]
    best = max(result.solutions, key=lambda solution: len(solution.text))
    assert best.steps == ["Two and three make five:\n\\[2 + 3 = 5\\]\n", "Doubled it is ten.\n", "The answer is 10."]
    assert [len(solution.step_scores) for solution in result.solutions] == [3, 3]
    assert result.tokens_generated == 2 * 7


def test_a_policy_that_writes_blank_lines_forever_is_stopped():
    class Blank:
        settings = {}

        def sample(self, prompts, num_samples, seed, stop=()):
            return [[Completion("\n", False, 1)] * num_samples for _ in prompts]

    (result,) = search(
        ["q"],
        Blank(),
        ByText(),
        method="particles",
        eta=0.0,
        width=1,
        splitter="whole_lines",
        max_steps=2,
        max_tokens=50,
    )
    assert result.solutions[0].reason == "length" and result.solutions[0].step_scores == []


def test_a_string_of_questions_instead_of_a_list_is_an_error():
    with pytest.raises(TypeError, match="questions: got the str 'Tom', expected a list of strings"):
        search("Tom", eta=ETA)


def test_the_progress_bar_counts_finished_questions(capsys):
    def run(**arguments):
        script = Script([["0.2\n"], ["0.6."]], [["0.9."]])
        search(["q", "p"], script, ByText(), method="particles", eta=1.0, width=1, **arguments)
        return capsys.readouterr().err

    assert "2/2" in run() and "step=2" in run()
    assert run(show_progress=False) == ""
