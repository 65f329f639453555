"""Stop strings and guided search with a real vLLM give the same texts as transformers, offline and on a server."""

import pytest

from erprm_trl import StepScorer, TransformersSampler, dial
from erprm_trl.dial.experiments.chain import FORMAT
from erprm_trl.rollouts import Prompt, VLLMSampler
from erprm_trl.selection import guided_search


pytestmark = pytest.mark.slow("starts vLLM engines")


QUESTIONS = [row["question"] for row in dial.make_questions(6, seed=3)]
PROMPTS = [Prompt(question) for question in QUESTIONS]
STOP = (dial.SEPARATOR,)


@pytest.fixture(scope="module")
def sampler():
    """The shipped policy in an engine in this process."""
    sampler = VLLMSampler(dial.BASE_PATH, max_new_tokens=48, engine_kwargs={"dtype": "float32", "enforce_eager": True})
    yield sampler
    sampler.close()


def test_stop_strings_end_samples(sampler):
    stopped = sampler.sample(PROMPTS, 4, seed=1, stop=STOP)
    for completion in sum(stopped, []):
        assert (
            completion.text.endswith(dial.SEPARATOR)
            and completion.text.count(dial.SEPARATOR) == 1
            and not completion.finished
        )
        assert completion.num_tokens == len(completion.token_ids) == len(completion.text.split())
    whole = sampler.sample(PROMPTS, 4, seed=1)
    assert [completion.text.split(dial.SEPARATOR)[0] for completion in sum(whole, [])] == [
        completion.text.removesuffix(dial.SEPARATOR) for completion in sum(stopped, [])
    ]
    ended = [Prompt(question, completions[0].text) for question, completions in zip(QUESTIONS, whole, strict=True)]
    assert {
        (completion.text, completion.finished, completion.num_tokens)
        for (completion,) in sampler.sample(ended, 1, 0, stop=STOP)
    } == {("", True, 1)}


def test_greedy_search_equals_that_of_transformers(sampler):
    scorer = StepScorer.from_pretrained(dial.BASE_PATH, prm_format=FORMAT, device="cpu")
    reference = TransformersSampler.from_pretrained(dial.BASE_PATH, max_new_tokens=48, temperature=0)
    arguments = {"method": "particles", "eta": 3.0, "width": 2}
    expected = guided_search(QUESTIONS, reference, scorer, **arguments)
    sampler.temperature = 0
    try:
        results = guided_search(QUESTIONS, sampler, scorer, **arguments)
    finally:
        sampler.temperature = 1.0
    assert [result.solutions[0].text for result in results] == [result.solutions[0].text for result in expected]
    assert [result.tokens_generated for result in results] == [result.tokens_generated for result in expected]
    sampled = guided_search(QUESTIONS, sampler, scorer, **arguments)
    assert all(solution.finished for result in sampled for solution in result.solutions)
    assert guided_search(QUESTIONS, sampler, scorer, **arguments) == sampled
