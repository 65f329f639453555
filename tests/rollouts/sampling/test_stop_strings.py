"""Tests stop strings: samples are the same as without them, cut at the first stop string, with correct counts."""

import pytest
import torch
from faulty_server import FaultyServer

from erprm_trl import EndpointSampler, TransformersSampler, dial
from erprm_trl.rollouts import EndpointError, Prompt
from erprm_trl.rollouts.sampling.stop_strings import StopStrings


STOP = (dial.SEPARATOR,)
PROMPTS = [Prompt(row["question"]) for row in dial.make_questions(6, seed=2)]


@pytest.mark.slow("samples with many tokenizers")
def test_a_stopped_sample_is_the_beginning_of_the_complete_sample(dial_policy):
    # One sequence per call, because samples depend on the other sequences in the batch.
    sampler = TransformersSampler(*dial_policy, max_new_tokens=48)
    different = set()
    for prompt in PROMPTS:
        for seed in range(3):
            ((long,),) = sampler.sample([prompt], 1, seed)
            ((short,),) = sampler.sample([prompt], 1, seed, stop=STOP)
            assert short.text == long.text[: long.text.index(dial.SEPARATOR) + len(dial.SEPARATOR)]
            assert not short.finished and short.num_tokens == len(short.token_ids) == len(short.text.split())
            assert short.token_ids == long.token_ids[: short.num_tokens]
            assert sampler.sample([prompt], 1, seed, stop=("never said",)) == [[long]]
            different.add(short.text)
    assert len(different) > 4


def test_greedy_decoding_step_by_step_equals_greedy_decoding(dial_policy):
    sampler = TransformersSampler(*dial_policy, max_new_tokens=48, temperature=0)
    whole = [completion for (completion,) in sampler.sample(PROMPTS, 1, seed=0)]
    texts, tokens = [""] * len(PROMPTS), [0] * len(PROMPTS)
    live = list(range(len(PROMPTS)))
    while live:
        samples = sampler.sample([PROMPTS[i]._replace(prefix=texts[i]) for i in live], 1, seed=0, stop=STOP)
        for i, (completion,) in zip(list(live), samples, strict=True):
            texts[i] += completion.text
            tokens[i] += completion.num_tokens
            if completion.finished:
                live.remove(i)
    assert texts == [completion.text for completion in whole] and tokens == [
        completion.num_tokens for completion in whole
    ]


def test_a_text_that_ends_before_a_stop_string_is_finished(dial_policy):
    prefix = next(
        completion.text
        for (completion,) in TransformersSampler(*dial_policy, max_new_tokens=48, temperature=0).sample(
            PROMPTS[:1], 1, 0
        )
    )
    sampler = TransformersSampler(*dial_policy, max_new_tokens=48, temperature=0)
    # one row ends immediately, and is padded until the other row reaches its stop string
    ended, stopped = sampler.sample([PROMPTS[0]._replace(prefix=prefix), PROMPTS[1]], 1, seed=0, stop=STOP)
    assert ended[0].finished and ended[0].text == "" and ended[0].num_tokens == 1
    assert not stopped[0].finished and stopped[0].text.endswith(dial.SEPARATOR)


class Pieces:
    """A small byte-level tokenizer that loses the space before the first word, as SentencePiece does."""

    pieces = (b"", b"a", b".\n\nb", b"\n", b"b", b"\xd0", b"\xb8", b" ")

    def decode(self, ids, skip_special_tokens=False):
        return b"".join(self.pieces[i] for i in ids).decode(errors="replace").removeprefix(" ")


@pytest.mark.parametrize(
    ("rows", "stop", "lengths"),
    [
        ([[1, 2, 1], [1, 3, 3], [1, 1, 1]], ("\n\n",), [2, 3, None]),  # within a token, across tokens, never
        ([[1, 3, 1], [3, 1, 1]], ("\n",), [2, 1]),
        ([[1, 4, 1], [4, 1, 4]], ("ab", "ba"), [2, 2]),
        ([[1, 7, 1], [7, 1, 7]], ("a ",), [2, 3]),
        ([[1, 5, 6], [5, 6, 1]], ("\u0438",), [3, 2]),  # a letter of two tokens
    ],
)
def test_where_rows_are_stopped(rows, stop, lengths):
    # the prompt ends with a newline: what stands in it does not count
    stopping = StopStrings(Pieces(), stop, [[3]] * len(rows), 2)
    ids = torch.tensor([[0, 3, *row] for row in rows])
    for length in (1, 2, 3):
        done = stopping(ids[:, : 2 + length], None)
        assert done.tolist() == [last is not None and last <= length for last in lengths]
    assert stopping.lengths == lengths


def test_servers_that_report_why_a_text_ended():
    choices = [
        {"text": " 1 + 2 = 3 ", "finish_reason": "stop", "stop_reason": dial.SEPARATOR},  # vLLM
        {"text": " 1 + 2 = 3 ", "finish_reason": "stop", "matched_stop": dial.SEPARATOR},  # SGLang
        {"text": f" 1 + 2 = 3 {dial.SEPARATOR}", "finish_reason": "stop"},  # transformers serve
        {"text": " answer 3", "finish_reason": "stop", "stop_reason": None},
        {"text": " answer 3", "finish_reason": "stop", "matched_stop": 2},
        {"text": " answer", "finish_reason": "length", "stop_reason": None},
    ]
    answers = iter({"choices": [choice], "usage": {"completion_tokens": 6}} for choice in choices)
    with FaultyServer(lambda body, attempt: next(answers)) as server:
        sampler = EndpointSampler("pseudo", server.url, dial.build_tokenizer(), max_concurrency=1)
        completions = [completion for (completion,) in sampler.sample(PROMPTS, 1, seed=0, stop=STOP)]
        assert [body["stop"] for body in server.bodies] == [[dial.SEPARATOR]] * 6
    assert {(completion.text, completion.finished) for completion in completions[:3]} == {
        (f" 1 + 2 = 3 {dial.SEPARATOR}", False)
    }
    assert [(completion.text, completion.finished) for completion in completions[3:]] == [
        (" answer 3", True),
        (" answer 3", True),
        (" answer", False),
    ]
    assert [completion.num_tokens for completion in completions] == [6] * 6


def test_the_ids_of_a_stopped_step_match_its_text_or_are_empty():
    tokenizer = dial.build_tokenizer()
    ids = tokenizer(f"1 + 2 = 3 {dial.SEPARATOR}")["input_ids"]
    answers = iter(
        {
            "choices": [
                {"text": " 1 + 2 = 3 ", "finish_reason": "stop", "stop_reason": dial.SEPARATOR, "token_ids": more}
            ]
        }
        for more in (ids, [*ids[:-1], ids[0]])
    )
    with FaultyServer(lambda body, attempt: next(answers)) as server:
        sampler = EndpointSampler("pseudo", server.url, tokenizer, max_concurrency=1)
        completions = [completion for (completion,) in sampler.sample(PROMPTS[:2], 1, seed=0, stop=STOP)]
    assert {completion.text for completion in completions} == {f" 1 + 2 = 3 {dial.SEPARATOR}"}
    assert [completion.token_ids for completion in completions] == [tuple(ids), ()]


def test_a_server_that_does_not_report_why_a_text_ended_raises():
    silent = {"choices": [{"text": " answer 3", "finish_reason": "stop"}]}
    with FaultyServer(lambda body, attempt: silent) as server:
        sampler = EndpointSampler("pseudo", server.url, dial.build_tokenizer(), retry_wait=0.001)
        with pytest.raises(EndpointError, match="neither stop_reason nor matched_stop"):
            sampler.sample(PROMPTS[:1], 1, seed=0, stop=STOP)
        assert set(server.attempts.values()) == {1}
        assert sampler.sample(PROMPTS[:1], 1, seed=0)[0][0].finished  # without stop there is nothing to say
        assert "stop" not in server.bodies[-1]
        with pytest.raises(ValueError, match=r"extra_body: got \['stop'\]"):
            EndpointSampler("pseudo", server.url, dial.build_tokenizer(), extra_body={"stop": ["x"]})


# Strings that end a solution


def test_a_completion_ends_before_a_string(dial_policy):
    """One sequence per call, so that samples are the same as without the string."""
    sampler = TransformersSampler(*dial_policy, max_new_tokens=48)
    for prompt in PROMPTS[:3]:
        ((long,),) = sampler.sample([prompt], 1, 0)
        ((ended,),) = sampler.sample([prompt], 1, 0, until=STOP)
        kept = long.text[: long.text.index(dial.SEPARATOR)].rstrip(" ")
        assert ended.text.rstrip(" ") == kept and ended.finished
        assert ended.token_ids == long.token_ids[: len(kept.split())] and ended.num_tokens == len(ended.token_ids)
        assert sampler.sample([prompt], 1, 0, until=("never said",)) == [[long]]
        # a step ends inside a solution, and the solution ends at its stop string
        ((step,),) = sampler.sample([prompt], 1, 0, stop=STOP, until=("=",))
        assert step.finished and "=" not in step.text and long.text.startswith(step.text)


def test_stopped_rows_are_removed_from_the_batch(dial_policy):
    model, tokenizer = dial_policy
    rows, forward = [], model.forward

    def counting(*args, **kwargs):
        rows.append(len(kwargs["input_ids"]))
        return forward(*args, **kwargs)

    model.forward = counting
    try:
        # each row is stopped at its first step; the one whose prefix has ended is not
        samples = TransformersSampler(model, tokenizer, max_new_tokens=64).sample(PROMPTS, 4, 0, stop=STOP)
        several = list(rows)
        rows.clear()
        whole = TransformersSampler(model, tokenizer, max_new_tokens=64).sample(PROMPTS, 4, 0, stop=("never said",))
    finally:
        del model.forward
    lengths = [completion.num_tokens for completions in samples for completion in completions]
    assert sum(several[1:]) <= sum(length + 8 for length in lengths)
    assert all(completion.finished for completions in whole for completion in completions)
    assert len(rows) > len(several) and min(rows) < len(PROMPTS) * 4


def test_servers_that_end_a_text_at_a_string():
    tokenizer = dial.build_tokenizer()
    ids = tokenizer("1 + 2 = 3")["input_ids"]
    choices = [
        {"text": " 1 + 2 = 3 ", "finish_reason": "stop", "stop_reason": dial.SEPARATOR},  # vLLM
        {
            "text": f" 1 + 2 = 3 {dial.SEPARATOR} 3",
            "finish_reason": "stop",
        },  # a server that keeps the text after the string
        {"text": " 1 + 2 = 3", "finish_reason": "stop"},  # llama.cpp, which does not report what ended the text
        {"text": " 1 + 2 = 3", "finish_reason": "stop", "stop_reason": dial.SEPARATOR, "token_ids": [*ids, 4, 5]},
        {"text": " 1 + 2 = 3", "finish_reason": "length", "stop_reason": None},
    ]
    answers = iter({"choices": [choice], "usage": {"completion_tokens": 7}} for choice in choices)
    with FaultyServer(lambda body, attempt: next(answers)) as server:
        sampler = EndpointSampler("pseudo", server.url, tokenizer, max_concurrency=1)
        completions = [completion for (completion,) in sampler.sample(PROMPTS[:5], 1, seed=0, until=STOP)]
        assert [body["stop"] for body in server.bodies] == [[dial.SEPARATOR]] * 5
    assert [completion.text.rstrip() for completion in completions] == [" 1 + 2 = 3"] * 5
    assert [completion.finished for completion in completions] == [True] * 4 + [False]
    assert completions[3].token_ids == tuple(ids) and completions[3].num_tokens == len(ids) == 5
