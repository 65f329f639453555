"""Log-probabilities of next tokens from a completions endpoint, and a judge that reads them."""

import math

import pytest
from faulty_server import FaultyServer

from erprm_trl import EndpointSampler, JudgeScorer, dial
from erprm_trl.rollouts import EndpointError, Prompt


TOKENS = (dial.GOOD_MARK, dial.BAD_MARK)
PROMPTS = [Prompt("7 : + 15"), Prompt("3 : + 2")]


def answering(logprobs):
    """A server whose answers have these log-probabilities."""
    choice = {"text": "1", "finish_reason": "length", "logprobs": logprobs}
    return FaultyServer(lambda body, attempt: {"choices": [choice]})


def listing(**listed):
    return answering({"tokens": ["1"], "top_logprobs": [listed]})


def sampler_for(server, **options):
    quick = {"retry_wait": 0.001, "max_attempts": 2, "max_concurrency": 1}
    return EndpointSampler("pseudo", server.url, dial.build_tokenizer(), **quick, **options)


def ids():
    return dial.build_tokenizer().convert_tokens_to_ids(list(TOKENS))


def test_the_tokens_that_are_asked_for_come_back_by_their_ids():
    good, bad = ids()
    with listing(**{"token_id:0": -0.1, f"token_id:{good}": -1.5, f"token_id:{bad}": -2.5}) as server:
        sampler = sampler_for(server, temperature=0.7, extra_body={"min_p": 0.1})
        assert sampler.next_token_log_probs(PROMPTS, TOKENS) == [[-1.5, -2.5]] * 2
        assert sampler.next_token_log_probs([], TOKENS) == []
    (body, _) = server.bodies
    assert body["prompt"] == dial.build_tokenizer()("7 : + 15")["input_ids"]
    assert (body["max_tokens"], body["temperature"], body["logprobs"], body["min_p"]) == (1, 0, 20, 0.1)
    assert body["logprob_token_ids"] == [good, bad] and "seed" not in body


def test_a_server_that_lists_its_most_likely_tokens_as_texts():
    with listing(**{dial.GOOD_MARK: -0.5, "answer": -2.0, dial.BAD_MARK: -1.0}) as server:
        assert sampler_for(server).next_token_log_probs(PROMPTS[:1], TOKENS) == [[-0.5, -1.0]]
    with listing(**{dial.BAD_MARK: -0.5, "answer": -2.0, "7": -4.0}) as server:  # a bound for the other token
        assert sampler_for(server).next_token_log_probs(PROMPTS[:1], TOKENS) == [[-4.0, -0.5]]


@pytest.mark.parametrize(
    ("logprobs", "message"),
    [
        (None, "without logprobs.top_logprobs.*vLLM or SGLang"),
        ({"tokens": ["1"]}, "without logprobs.top_logprobs"),
        (
            {"top_logprobs": [{"7": -1.0, "3": -0.5}]},
            r"got the most likely tokens \['3', '7'\], expected one of .*",
        ),
    ],
)
def test_an_answer_without_the_tokens_is_an_error(logprobs, message):
    with answering(logprobs) as server, pytest.raises(EndpointError, match=message):
        sampler_for(server).next_token_log_probs(PROMPTS[:1], TOKENS)


def test_a_damaged_answer_is_asked_for_again():
    answers = iter([{"7": "high"}, {TOKENS[0]: -1.0, TOKENS[1]: -1.0}])
    choice = {"text": "", "finish_reason": "length"}

    def body(request, attempt):
        return {"choices": [{**choice, "logprobs": {"top_logprobs": [next(answers)]}}]}

    with FaultyServer(body) as server:
        assert sampler_for(server).next_token_log_probs(PROMPTS[:1], TOKENS) == [[-1.0, -1.0]]


def test_only_single_tokens_have_a_probability():
    with listing(**{"7": -1.0}) as server, pytest.raises(ValueError, match="'7 3', which the tokenizer encodes as"):
        sampler_for(server).next_token_log_probs(PROMPTS, ("7 3", TOKENS[1]))


def test_a_judge_scores_steps_by_the_tokens_of_a_server():
    with listing(**{TOKENS[0]: math.log(0.3), TOKENS[1]: math.log(0.1)}) as server:
        judge = JudgeScorer(sampler_for(server), "{question} {steps}", verdict_tokens=TOKENS)
        assert judge.score(["7 : + 15"], [["7 + 15 = 2", "answer 2"]]) == [pytest.approx([0.75, 0.75])]
    assert len(server.bodies) == 2
