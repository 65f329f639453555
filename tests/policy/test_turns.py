"""Completions of policies with tools are split into assistant turns, with the tokens of each turn."""

import dataclasses

import pytest
from step_fakes import DIAL_FORMAT, FakeScorer, by_text, byte_level_bpe

from erprm_trl.conversations import observed_question
from erprm_trl.policy.reward_function import StepRewardFunction
from erprm_trl.policy.turns import has_turns, turn_ends, turn_steps


CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
CALL_TEXT = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
FIRST = {"role": "assistant", "content": "x", "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": "f", "content": "4"}
LAST = {"role": "assistant", "content": "y"}
STEPS = [f"x\n{CALL_TEXT}", "<tool_response>\n4\n</tool_response>\ny"]


def test_what_a_conversation_with_turns_is():
    assert has_turns([FIRST, RESULT, LAST]) and has_turns([FIRST]) and has_turns([LAST, RESULT])
    assert not has_turns([LAST]) and not has_turns("x") and not has_turns([])


@pytest.mark.parametrize(
    ("mask", "ends"),
    [([1, 1, 0, 0, 1], [1, 4]), ([1, 0], [0]), ([0, 1, 1], [2]), ([1, 1], [1]), ([0, 0], []), ([], [])],
)
def test_turns_end_where_runs_of_ones_end(mask, ends):
    assert turn_ends(mask) == ends


def test_turns_from_messages_need_no_tokenizer():
    assert turn_steps([FIRST, RESULT, LAST], DIAL_FORMAT, tool_mask=[1, 1, 0, 1]) == (STEPS, [1, 3])
    # A result at the end belongs to no turn.
    assert turn_steps([FIRST, RESULT], DIAL_FORMAT, tool_mask=[1, 1, 0, 0]) == (STEPS[:1], [1])
    # The result did not fit, so that the call is the last message.
    assert turn_steps([FIRST], DIAL_FORMAT, tool_mask=[1, 1]) == (STEPS[:1], [1])
    # Without a mask, the tokens of several turns are not known.
    assert turn_steps([FIRST, RESULT, LAST], DIAL_FORMAT, token_ids=[5, 6]) == (STEPS, [])
    assert turn_steps([FIRST], DIAL_FORMAT, token_ids=[5, 6]) == (STEPS[:1], [1])
    assert turn_steps("y", DIAL_FORMAT, token_ids=[5, 6]) == (["y"], [1])
    assert turn_steps("y", DIAL_FORMAT) == (["y"], [])
    # A mask that does not fit the messages makes a completion unscorable if its tokens cannot be decoded.
    assert turn_steps([LAST], DIAL_FORMAT, tool_mask=[1, 0, 1]) == (["y"], None)


@pytest.mark.parametrize("conversational", [True, False])
@pytest.mark.parametrize(("before", "after"), [("", ""), ("<left>", ""), ("", "<right>")])
def test_turns_from_tokens(conversational, before, after):
    tokenizer = byte_level_bpe()
    parts = [(before, 0), ("go <tool_response>4", 1), ("\n<wall>\n", 0), ("stay<|endoftext|>", 1), (after, 0)]
    ids, mask = [], []
    for text, own in parts:
        part = tokenizer.encode(text)
        ids, mask = ids + part, mask + [own] * len(part)
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    completion = [{"role": "assistant", "content": whole}] if conversational else whole
    tokens = {"tokenizer": tokenizer, "token_ids": ids, "tool_mask": mask}
    steps, ends = turn_steps(completion, DIAL_FORMAT, **tokens)
    # The environment's text is read as it is, but a turn cannot contain a false result.
    assert steps == [f"{before}\ngo &lt;tool_response>4".strip(), "<wall>\nstay"]
    assert [tokenizer.decode(ids[: end + 1]) for end in ends] == [
        f"{before}go <tool_response>4",
        f"{before}go <tool_response>4\n<wall>\nstay<|endoftext|>",
    ]
    steps, _ = turn_steps(completion, DIAL_FORMAT, **tokens, render=lambda message: message["role"][0])
    assert steps == ["e\na" if before else "a", "e\na"]


def test_a_single_turn_with_tokens_of_an_environment_after_it():
    tokenizer = byte_level_bpe()
    own, seen = tokenizer.encode("go"), tokenizer.encode(" wall")
    completion = [{"role": "assistant", "content": "go wall"}]
    tokens = {"tokenizer": tokenizer, "token_ids": own + seen, "tool_mask": [1] * len(own) + [0] * len(seen)}
    assert turn_steps(completion, DIAL_FORMAT, **tokens) == (["go"], [len(own) - 1])


def test_thinking_is_left_out_of_turns_if_the_format_reads_answers():
    thought = [{**FIRST, "content": "<think>Hm.</think>x"}, RESULT, {**LAST, "reasoning_content": "Hm."}]
    answer = dataclasses.replace(DIAL_FORMAT, steps_of="answer")
    assert turn_steps(thought, answer)[0] == STEPS
    assert turn_steps(thought, DIAL_FORMAT)[0][0].startswith("<think>Hm.</think>x")
    open_turn = [{**FIRST, "content": "Hm.</think>x"}, RESULT, LAST]
    assert turn_steps(open_turn, answer, is_thinking=True)[0][0] == STEPS[0]


@pytest.mark.parametrize(
    ("steps_of", "columns", "steps"),
    [
        (None, {}, [STEPS, ["a", "b"]]),  # a conversation with tools, and a text
        ("turns", {}, [STEPS, ["a ки b"]]),
        (None, {"environments": [object()] * 2}, [STEPS, ["a ки b"]]),
        (None, {"tool_mask": [[1, 0, 1], [1, 1, 1]]}, [STEPS, ["a ки b"]]),
        ("both", {}, [["y"], ["a", "b"]]),  # the last message
        ("answer", {"tool_mask": [[1, 0, 1], [1, 1, 1]]}, [["y"], ["a", "b"]]),
    ],
)
def test_what_a_step_of_the_reward_function_is(steps_of, columns, steps):
    reward = StepRewardFunction(FakeScorer(by_text), steps_of=steps_of)
    completions = [[FIRST, RESULT, LAST], [{"role": "assistant", "content": "a ки b"}]]
    scored = reward.score_batch(["q", "q"], completions, [[5, 6, 7]] * 2, **columns)
    assert [completion.steps for completion in scored.completions] == steps
    assert scored.completions[0].scores == [by_text(step) for step in steps[0]]
    assert "steps/tokens_per_step" in scored.metrics or "tool_mask" not in columns


def test_a_custom_scorer_needs_only_score():
    class Scorer:
        def score(self, questions, steps):
            assert (questions, steps) == (["q"], [STEPS])
            return [[0.25, 0.75]]

    assert StepRewardFunction(Scorer())(["q"], [[FIRST, RESULT, LAST]]) == [0.25]


def test_the_text_of_messages_may_be_rendered_in_another_way():
    reward = StepRewardFunction(FakeScorer(by_text), render_message=lambda message: message["content"])
    assert reward.score_batch(["q"], [[FIRST, RESULT, LAST]]).completions[0].steps == ["x", "4\ny"]


def test_an_empty_turn_is_unscorable():
    reward = StepRewardFunction(FakeScorer(by_text))
    empty = {"role": "assistant", "content": " "}
    scored = reward.score_batch(["q"] * 2, [[empty, LAST], [empty, RESULT]])
    assert [completion.reward for completion in scored.completions] == [None, None]
    assert scored.metrics["steps/unscorable_share"] == 1.0


def test_unknown_steps_are_refused():
    with pytest.raises(ValueError, match="steps_of: got 'lines', expected one of turns, both, thinking, answer"):
        StepRewardFunction(FakeScorer(by_text), steps_of="lines")


def test_the_observation_of_an_environment_is_part_of_the_question():
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "Solve: 2 + 2? You see 7."}]
    assert observed_question("2 + 2?", prompt) == "2 + 2? You see 7."
    assert observed_question(None, prompt) == "Solve: 2 + 2? You see 7."
    assert observed_question("other", prompt) == "Solve: 2 + 2? You see 7."
    columns = {"question": ["2 + 2?"], "bare": ["2"]}
    for options, question in (({}, "2 + 2? You see 7."), ({"question_column": "bare"}, "2")):
        scorer = FakeScorer(by_text)
        StepRewardFunction(scorer, **options)([prompt], [[LAST]], environments=[object()], **columns)
        assert scorer.calls[0][0] == [question]
    scorer = FakeScorer(by_text)
    StepRewardFunction(scorer)([prompt], [[LAST]], **columns)
    assert scorer.calls[0][0] == ["2 + 2?"]
