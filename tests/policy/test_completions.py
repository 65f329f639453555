"""Steps of completions with thinking and an answer, in one text or in separate fields of a message."""

import dataclasses

import pytest
from step_fakes import DIAL_FORMAT, FakeScorer, by_text, byte_level_bpe

from erprm_trl.conversations import question_text
from erprm_trl.policy.completions import completion_steps, completion_text, opens_thinking
from erprm_trl.policy.reward_function import StepRewardFunction


THINKING, ANSWER = ["Let us see. 48/2 = 24.", "48+24 = 72"], ["48/2 = 24 in May", "48+24 = 72"]
TEXT = "<think>\n{}\n{}\n</think>\n\n{}\n{}".format(*THINKING, *ANSWER)
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt and enable_thinking is not defined %}<think>\n{% endif %}"
)


def prm_format(steps_of):
    return dataclasses.replace(DIAL_FORMAT, splitter="newline", steps_of=steps_of)


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = byte_level_bpe()
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def parts(tokenizer, ids, ends):
    """The text of the tokens that belong to each step."""
    starts = [0, *(end + 1 for end in ends[:-1])]
    return [tokenizer.decode(ids[start : end + 1]) for start, end in zip(starts, ends, strict=True)]


STEPS = {
    "both": [*THINKING, *ANSWER],
    "thinking": [*THINKING, "\n".join(ANSWER)],
    "answer": ANSWER,
}


@pytest.mark.parametrize("steps_of", STEPS)
def test_a_step_in_both_thinking_and_answer_has_the_tokens_of_the_scored_part(tokenizer, steps_of):
    ids = tokenizer.encode(TEXT + "<|endoftext|>")
    steps, ends = completion_steps(TEXT, prm_format(steps_of), tokenizer=tokenizer, token_ids=ids)
    assert steps == STEPS[steps_of]
    assert ends[-1] == len(ids) - 1 and len(ends) == len(steps)
    owned = parts(tokenizer, ids, ends)
    assert "".join(owned) == TEXT + "<|endoftext|>"
    for step, text in zip(steps, owned, strict=True):
        assert text.replace("<|endoftext|>", "").replace("</think>", "").strip().endswith(step)
    if steps_of == "answer":  # the tokens of the thinking belong to the answer's first step
        assert owned[0].count("48+24 = 72") == 1 and owned[1].strip().startswith("48+24 = 72")
    assert completion_steps(TEXT, prm_format(steps_of)) == (STEPS[steps_of], [])


@pytest.mark.parametrize("steps_of", STEPS)
@pytest.mark.parametrize("field", ["reasoning_content", "thinking"])
def test_thinking_in_a_separate_field_is_read_as_in_the_text(tokenizer, steps_of, field):
    message = {"role": "assistant", field: "\n".join(THINKING), "content": "\n".join(ANSWER)}
    ids = tokenizer.encode(TEXT)
    expected = completion_steps(TEXT, prm_format(steps_of), tokenizer=tokenizer, token_ids=ids)
    for is_thinking in (False, True):
        options = {"is_thinking": is_thinking, "tokenizer": tokenizer, "token_ids": ids}
        assert completion_steps([message], prm_format(steps_of), **options) == expected
        assert completion_steps([message], prm_format(steps_of), is_thinking=is_thinking) == (STEPS[steps_of], [])
    assert completion_text([message]) == "\n".join(ANSWER)  # the graded text


@pytest.mark.parametrize("steps_of", STEPS)
def test_thinking_that_the_prompt_opens_is_recognised(tokenizer, steps_of):
    # Truncated thinking has no answer. Without the prompt's `<think>`, it would look like an answer.
    unclosed = "\n".join(THINKING)
    ids = tokenizer.encode(unclosed)
    options = {"tokenizer": tokenizer, "token_ids": ids}
    steps, ends = completion_steps(unclosed, prm_format(steps_of), is_thinking=True, **options)
    assert steps == ([] if steps_of == "answer" else THINKING)
    assert (ends and parts(tokenizer, ids, ends)) == (
        None if steps_of == "answer" else [f"{THINKING[0]}\n", THINKING[1]]
    )
    assert completion_steps(unclosed, prm_format(steps_of), **options)[0] == THINKING
    parsed = [{"role": "assistant", "reasoning_content": unclosed, "content": ""}]
    assert completion_steps(parsed, prm_format(steps_of), is_thinking=True, **options) == (steps, ends)
    # Closed thinking is recognised without the prompt.
    closed = TEXT.removeprefix("<think>\n")
    assert completion_steps(closed, prm_format(steps_of), is_thinking=True)[0] == STEPS[steps_of]


def test_prompts_that_open_thinking_are_recognised(tokenizer):
    chat = [{"role": "user", "content": "7 + 1?"}]
    assert opens_thinking("7 + 1?<think>\n") and not opens_thinking("7 + 1?")
    assert not opens_thinking(chat)  # unknown without a tokenizer
    assert opens_thinking(chat, tokenizer)
    assert not opens_thinking(chat, tokenizer, {"enable_thinking": False})
    assert not opens_thinking(chat, byte_level_bpe())


@pytest.mark.parametrize("conversational", [False, True])
def test_a_reward_function_knows_that_the_prompt_opens_thinking(tokenizer, conversational):
    prompt = [{"role": "user", "content": "7 + 1?"}] if conversational else "7 + 1?<think>\n"
    completions = ["\n".join(THINKING), TEXT.removeprefix("<think>\n")]
    ids = [tokenizer.encode(completion) for completion in completions]
    if conversational:
        completions = [[{"role": "assistant", "content": completion}] for completion in completions]
    reward = StepRewardFunction(FakeScorer(by_text, prm_format("answer")), processing_class=tokenizer)
    scored = reward.score_batch([prompt] * 2, completions, ids).completions
    assert [completion.steps for completion in scored] == [[], ANSWER]
    assert scored[0].reward is None and scored[1].scores == [by_text(step) for step in ANSWER]
    reward.chat_template_kwargs = {"enable_thinking": False}
    scored = reward.score_batch([prompt] * 2, completions, ids).completions
    assert scored[0].steps == (THINKING if conversational else [])


def test_questions_are_read_from_prompts():
    assert question_text("q") == "q" and question_text([{"role": "system", "content": "s"}]) == ""
