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
    for one in sum(stopped, []):
        assert one.text.endswith(dial.SEPARATOR) and one.text.count(dial.SEPARATOR) == 1 and not one.finished
        assert one.num_tokens == len(one.token_ids) == len(one.text.split())
    whole = sampler.sample(PROMPTS, 4, seed=1)
    assert [one.text.split(dial.SEPARATOR)[0] for one in sum(whole, [])] == [
        one.text.removesuffix(dial.SEPARATOR) for one in sum(stopped, [])
    ]
    ended = [Prompt(question, some[0].text) for question, some in zip(QUESTIONS, whole, strict=True)]
    assert {(one.text, one.finished, one.num_tokens) for (one,) in sampler.sample(ended, 1, 0, stop=STOP)} == {
        ("", True, 1)
    }


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
    assert [one.solutions[0].text for one in results] == [one.solutions[0].text for one in expected]
    assert [one.tokens_generated for one in results] == [one.tokens_generated for one in expected]
    sampled = guided_search(QUESTIONS, sampler, scorer, **arguments)
    assert all(one.finished for result in sampled for one in result.solutions)
    assert guided_search(QUESTIONS, sampler, scorer, **arguments) == sampled
