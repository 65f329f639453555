"""The dial as an environment: its tool by hand, what TRL needs of its templates, and the text for reward models."""

import pytest
from transformers import AutoTokenizer
from trl import supports_tool_calling

from erprm_trl import dial
from erprm_trl._trl import is_chat_template_prefix_preserving, parse_response
from erprm_trl.dial.environment import (
    ERROR,
    TOOL_WORDS,
    DialByHand,
    DialEnvironment,
    build_agent_tokenizer,
    render_by_hand,
    render_message,
)
from erprm_trl.dial.tokenizer import WORDS
from erprm_trl.rollouts import conversation_steps


QUESTION = "Tom dial 7 . right 15 . times 3 . ?"


def call(position, operator, amount):
    arguments = {"amount": amount, "operator": operator, "position": position}  # in the order of a saved template
    return {"type": "function", "function": {"name": "turn", "arguments": arguments}}


CONVERSATION = [
    {"role": "assistant", "content": "", "tool_calls": [call(7, "+", 15)]},
    {"role": "tool", "name": "turn", "content": "2"},
    {"role": "assistant", "content": "", "tool_calls": [call(2, "*", 3)]},
    {"role": "tool", "name": "turn", "content": "6"},
    {"role": "assistant", "content": "answer 6"},
]


def test_an_episode_by_hand():
    environment = DialEnvironment()
    assert environment.reset(question=QUESTION, answer="6", prompt=[]) is None
    assert (environment.position, environment.get_reward()) == (7, 0.0)
    # 7 + 15 = 22 = 2; 2 * 3 = 6 (mod 20)
    assert environment.turn(7, "+", 15) == "2" and environment.get_reward() == 0.0
    assert environment.turn(2, "*", 3) == "6" and environment.get_reward() == 1.0
    assert environment.turn(6, "-", 9) == "17" and environment.get_reward() == 0.0
    environment.reset(QUESTION)
    assert environment.position == 7


@pytest.mark.parametrize(
    "arguments", [(20, "+", 1), (-1, "+", 1), (3, "/", 1), (3, "+", 0), (3, "+", 20), ("x", "+", 1), (3, "+", None)]
)
def test_calls_that_are_no_moves_change_nothing(arguments):
    environment = DialEnvironment()
    environment.reset(QUESTION)
    assert environment.turn(*arguments) == ERROR and environment.position == 7


def test_an_episode_by_hand_without_a_calculator():
    environment = DialByHand()
    environment.reset(QUESTION)
    assert environment.turn(7, "+", 15, 3) == "3" and environment.position == 3  # 7 + 15 is 2
    for arguments in [(20, "+", 1, 1), (3, "/", 1, 1), (3, "*", 2, 20), (3, "*", 2, -1), (3, "*", 2, None)]:
        assert environment.turn(*arguments) == ERROR and environment.position == 3
    assert environment.turn("3", "*", "2", "6") == "6" and environment.get_reward() == 1.0


def test_the_words_of_the_shipped_policy_keep_their_ids():
    shipped, agent = AutoTokenizer.from_pretrained(dial.BASE_PATH), build_agent_tokenizer()
    vocabulary = agent.get_vocab()
    assert {word: index for word, index in vocabulary.items() if word in WORDS} == shipped.get_vocab()
    assert sorted(vocabulary, key=vocabulary.get)[len(WORDS) :] == list(TOOL_WORDS)


def test_the_chat_template_writes_the_conversation_that_is_parsed(tmp_path):
    build_agent_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert supports_tool_calling(tokenizer) and is_chat_template_prefix_preserving(tokenizer)
    messages = [{"role": "user", "content": QUESTION}]
    text = tokenizer.apply_chat_template(messages + CONVERSATION, tokenize=False)
    turns = "<assistant> 7 + 15 </s> <tool> 2 <assistant> 2 * 3 </s> <tool> 6 <assistant> answer 6 </s>"
    assert text.split() == f"<user> {QUESTION} {turns}".split()
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
    tools = [DialEnvironment().turn]
    prompt = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=False)
    for turn in CONVERSATION[::2]:
        whole = tokenizer.apply_chat_template([*messages, turn], return_dict=False)
        assert whole[: len(prompt)] == prompt
        parsed = parse_response(tokenizer, whole[len(prompt) :], prefix=prompt, tools=tools)
        assert parsed == turn


def test_calls_with_a_result_are_written_and_parsed():
    tokenizer, tools = build_agent_tokenizer(by_hand=True), [DialByHand().turn]
    called = call(7, "+", 15)
    called["function"]["arguments"]["result"] = 2
    turn = {"role": "assistant", "content": "", "tool_calls": [called]}
    messages = [{"role": "user", "content": QUESTION}, turn, {"role": "tool", "name": "turn", "content": "2"}]
    text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    assert text.split() == f"<user> {QUESTION} <assistant> 7 + 15 = 2 </s> <tool> 2".split()
    prefix = tokenizer("<user> ? <assistant>")["input_ids"]
    for written in ("7 + 15 = 2 </s>", "7 + 15 = 2 ки </s>"):
        assert parse_response(tokenizer, tokenizer(written)["input_ids"], prefix=prefix, tools=tools) == turn
    without = parse_response(tokenizer, tokenizer("7 + 15 </s>")["input_ids"], prefix=prefix, tools=tools)
    assert without["content"] == "7 + 15" and not without.get("tool_calls")
    messages = [*messages[1:], {"role": "assistant", "content": "answer 2 ки"}]
    assert conversation_steps(messages, render=render_by_hand) == ["7 + 15 = 2", "answer 2"]


@pytest.mark.parametrize(
    ("text", "content", "num_calls"),
    [
        ("7 + </s>", "7 +", 0),
        ("+ 15 </s>", "+ 15", 0),
        ("</s>", "", 0),
        ("7 + 15", "", 1),
        ("answer </s>", "answer", 0),
    ],
)
def test_malformed_turns_are_read_as_text(text, content, num_calls):
    tokenizer = build_agent_tokenizer()
    prefix = tokenizer("<user> ? <assistant>")["input_ids"]
    turn = parse_response(tokenizer, tokenizer(text)["input_ids"], prefix=prefix, tools=[DialEnvironment().turn])
    assert (turn["content"], len(turn.get("tool_calls", []))) == (content, num_calls)


def test_a_reward_model_reads_equations():
    assert conversation_steps(CONVERSATION, render=render_message) == ["7 + 15", "= 2\n2 * 3", "= 6\nanswer 6"]
    shipped = AutoTokenizer.from_pretrained(dial.BASE_PATH)
    assert shipped.unk_token_id not in shipped("= 2\n2 * 3")["input_ids"]
    assert render_message({"role": "assistant", "content": "", "tool_calls": [call(7, "+", 15), call(2, "*", 3)]}) == (
        "7 + 15 2 * 3"
    )
