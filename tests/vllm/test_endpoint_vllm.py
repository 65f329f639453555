"""`EndpointSampler` against vLLM's own server."""

import pytest
import torch
from vllm_oracles import assert_drawn_from, greedy_ids, next_token_probabilities
from vllm_server import vllm_server

from erprm_trl import dial
from erprm_trl.rollouts import Prompt, Question, TransformersSampler, collect_rollouts
from erprm_trl.rollouts.sampling.endpoint_sampler import EndpointSampler


pytestmark = pytest.mark.slow("starts vLLM engines")


ROWS = dial.make_questions(8, seed=3)
LONGEST = 64
OPTIONS = ["--served-model-name", "dial", "--generation-config", "vllm", "--dtype", "float32", "--enforce-eager"]
# A seeded request whose prompt is prefilled in two parts crashes vLLM's CPU engine.
OPTIONS.append("--no-enable-chunked-prefill")


@pytest.fixture(scope="module")
def base_url(tmp_path_factory):
    """The address of a running server."""
    log = tmp_path_factory.mktemp("server") / "log"
    with vllm_server(log, "--model", dial.BASE_PATH, *OPTIONS) as url:
        yield f"{url}/v1"


@pytest.fixture
def sampler(base_url):
    return EndpointSampler(
        "dial", base_url, dial.BASE_PATH, max_new_tokens=LONGEST, extra_body={"return_token_ids": True}
    )


def test_greedy_completions_equal_those_of_transformers(sampler, dial_policy):
    model, tokenizer = dial_policy
    sampler.temperature = 0
    sampled = sampler.sample([Prompt(row["question"]) for row in ROWS], 1, seed=0)
    expected = greedy_ids(model, tokenizer, [row["question"] for row in ROWS], LONGEST)
    assert [list(completion.token_ids) for (completion,) in sampled] == expected
    for (completion,), ids in zip(sampled, expected, strict=True):
        assert completion.finished == (ids[-1] == tokenizer.eos_token_id)
        assert (completion.text, completion.num_tokens) == (
            " " + tokenizer.decode(ids, skip_special_tokens=True),
            len(ids),
        )


def test_the_server_returns_the_reason_of_an_end(sampler):
    prompts = [Prompt(row["question"]) for row in ROWS]
    whole = [completion for (completion,) in sampler.sample(prompts, 1, seed=2)]
    stopped = [completion for (completion,) in sampler.sample(prompts, 1, seed=2, stop=(dial.SEPARATOR,))]
    for completion, short in zip(whole, stopped, strict=True):
        assert short.text == completion.text[: completion.text.index(dial.SEPARATOR) + len(dial.SEPARATOR)]
        assert not short.finished and short.num_tokens == len(short.text.split()) == len(short.token_ids)
    ended = [prompt._replace(prefix=completion.text) for prompt, completion in zip(prompts, whole, strict=True)]
    assert all(
        completion.finished and not completion.text.strip()
        for (completion,) in sampler.sample(ended, 1, 0, stop=(dial.SEPARATOR,))
    )


def test_the_probabilities_of_next_tokens_are_those_of_transformers(sampler, dial_policy):
    prompts, tokens = [Prompt(row["question"]) for row in ROWS], ["answer", "=", "7"]
    expected = torch.tensor(TransformersSampler(*dial_policy).next_token_log_probs(prompts, tokens))
    assert (expected < -6).any()  # also of tokens that are not likely
    measured = torch.tensor(sampler.next_token_log_probs(prompts, tokens))
    torch.testing.assert_close(measured, expected, atol=1e-3, rtol=0)


def test_samples_are_drawn_from_the_softmax(sampler, dial_policy):
    model, tokenizer = dial_policy
    sampler.temperature, sampler.max_new_tokens = 2.0, 1
    (completions,) = sampler.sample([Prompt("Tom dial")], 800, seed=1)
    expected = next_token_probabilities(model, tokenizer, "Tom dial", 2.0)
    assert_drawn_from([completion.token_ids[0] for completion in completions], expected)


def test_a_repeated_collection_has_the_same_rows(sampler, tmp_path):
    options = {"num_continuations": 2, "splitter": dial.SEPARATOR, "grading": "exact", "chunk_size": 4}
    options |= {"answer_pattern": dial.ANSWER_PATTERN, "store_token_ids": True, "show_progress": False}
    questions = [Question(**row) for row in ROWS]
    first, second = (collect_rollouts(questions, sampler, tmp_path / name, **options).rows for name in ("a", "b"))
    assert first == second
    assert len(first) == 16
    assert len({tuple(row.token_ids) for row in first}) > 8
    assert 0.3 < sum(row.outcome_reward for row in first) / 16 < 1


def test_another_seed_gives_other_samples(sampler):
    sampler.temperature = 1.5
    prompts = [Prompt("Tom dial")]
    assert sampler.sample(prompts, 8, seed=1) != sampler.sample(prompts, 8, seed=2)
