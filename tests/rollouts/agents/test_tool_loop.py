"""Conversations have the tokens of TRL's trainer, end at the same limits, and are replayed exactly."""

import random

import pytest
import torch
import zoo
from datasets import Dataset
from scripted_agent import DialAgent, careless
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from erprm_trl import dial
from erprm_trl.dial.environment import DialEnvironment, render_message
from erprm_trl.dial.experiments.policies import CPU_QUIET
from erprm_trl.rollouts import Completion, PromptFormat, Question
from erprm_trl.rollouts.agents import Agent, ToolLoop


QUESTION = Question("Tom dial 7 . right 15 . times 3 . ?", "6")


def run(sampler, questions=(QUESTION,), agent=None, seed=0):
    loop = ToolLoop(agent or Agent(environment_factory=DialEnvironment, render_message=render_message), sampler)
    conversations = loop.begin(questions, [f"question {index}" for index in range(len(questions))])
    updates = []
    loop.run(conversations, seed, lambda *numbers: updates.append(numbers))
    return loop, conversations, updates


def test_a_conversation_by_hand():
    sampler = DialAgent()
    loop, (conversation,), updates = run(sampler)
    decode = sampler.tokenizer.decode
    assert decode(conversation.prompt_ids) == f"<user> {QUESTION.question} <assistant>"
    assert decode(conversation.token_ids) == (
        "7 + 15 </s> <tool> 2 <assistant> 2 * 3 </s> <tool> 6 <assistant> answer 6 </s>"
    )
    assert conversation.starts == [0, 7, 14] and conversation.num_tokens == 4 + 4 + 3
    assert loop.steps(conversation) == ["7 + 15", "= 2\n2 * 3", "= 6\nanswer 6"]
    assert (conversation.text, conversation.finished, conversation.is_open) == ("answer 6", True, False)
    assert conversation.environment.get_reward() == 1.0
    assert updates == [(0, 4), (0, 4), (1, 3)]
    assert [len(prompts) for prompts in sampler.calls] == [1, 1, 1]


@pytest.mark.parametrize(
    ("limit", "iterations", "tokens", "turns", "finished"),
    [
        (17, None, 17, 3, True),
        (16, None, 16, 3, False),  # the last turn is cut
        (14, None, 14, 2, False),  # the results fit, and then nothing
        (13, None, 11, 2, False),  # the results do not fit
        (3, None, 3, 1, False),
        (60, 1, 11, 2, False),
        (60, 0, 4, 1, False),
        (60, 2, 17, 3, True),
    ],
)
def test_limits_end_a_conversation(limit, iterations, tokens, turns, finished):
    agent = Agent(environment_factory=DialEnvironment, max_tool_calling_iterations=iterations)
    _, (conversation,), _ = run(DialAgent(max_new_tokens=limit), agent=agent)
    assert (len(conversation.token_ids), len(conversation.turns), conversation.finished) == (tokens, turns, finished)


class Counting(DialEnvironment):
    """Answers with the number of calls of all environments, which a replay does not repeat."""

    calls = 0

    def turn(self, position: int, operator: str, amount: int) -> str:
        """
        Makes one move.

        Args:
            position: Position.
            operator: Operator.
            amount: Amount.
        """
        Counting.calls += 1
        return str(Counting.calls)


class Announcing(DialEnvironment):
    """Appends a text to the question, another one each time if `changes`."""

    changes, resets = False, 0

    def reset(self, question, **columns):
        super().reset(question)
        Announcing.resets += 1
        return f" check {Announcing.resets if self.changes else ''}"


def test_a_replay_restores_the_environment_and_the_tokens():
    questions = [Question(**row) for row in dial.make_questions(6, 1, 3, 5)]
    loop, conversations, _ = run(DialAgent(careless), questions)
    for conversation in conversations:
        states = []
        for num_turns in range(len(conversation.turns)):
            (replay,) = loop.replay([(conversation, num_turns)])
            assert replay.messages == conversation.messages[: 2 * num_turns]  # a turn and a result each
            assert replay.token_ids == conversation.token_ids[: 7 * num_turns]
            assert replay.prompt_ids == conversation.prompt_ids and replay.is_open
            states.append(replay.environment.position)
        results = [int(message["content"]) for message in conversation.messages if message["role"] == "tool"]
        assert states == [int(conversation.question.question.split()[2]), *results]


def test_a_replayed_conversation_continues_as_before():
    loop, (conversation,), _ = run(DialAgent())
    replays = loop.replay([(conversation, num_turns) for num_turns in (0, 1, 2)])
    loop.run(replays, 5, lambda *numbers: None)
    for replay in replays:
        assert replay.token_ids == conversation.token_ids and replay.messages == conversation.messages
        assert replay.starts == conversation.starts and replay.finished
    assert len({id(replay.environment) for replay in replays}) == 3


def test_an_environment_with_other_results_is_refused():
    Counting.calls = 0
    loop, (conversation,), _ = run(DialAgent(), agent=Agent(environment_factory=Counting))
    loop.replay([(conversation, 0)])
    with pytest.raises(
        ValueError, match="question 0, turn 1: got the result '3' .* expected '1' as before.*after reset"
    ):
        loop.replay([(conversation, 1)])


def test_an_observation_is_part_of_the_question_and_must_be_the_same_again():
    Announcing.changes, Announcing.resets = False, 0
    sampler = DialAgent()
    loop, (conversation,), _ = run(sampler, agent=Agent(environment_factory=Announcing))
    assert sampler.tokenizer.decode(conversation.prompt_ids) == f"<user> {QUESTION.question} check <assistant>"
    loop.replay([(conversation, 1)])
    Announcing.changes = True
    with pytest.raises(ValueError, match=r"question 0, reset: got the result '.* check 3' .* expected '.* check '"):
        loop.replay([(conversation, 0)])


def test_an_environment_gets_the_columns_of_a_question():
    seen = []

    class Recording(DialEnvironment):
        def reset(self, **columns):
            seen.append(columns)
            super().reset(columns["question"])

    question = QUESTION._replace(columns={"level": 3, "environment": "dial"})
    run(DialAgent(), [question], Agent(environment_factory={"dial": Recording}))
    prompt = [{"role": "user", "content": QUESTION.question}]
    assert seen == [{"prompt": prompt, "question": QUESTION.question, "answer": "6", "level": 3}]


def test_samplers_that_cannot_call_tools_are_refused():
    agent = Agent(environment_factory=DialEnvironment)
    with pytest.raises(ValueError, match="without a chat template, expected one that shows tool calls"):
        ToolLoop(agent, object())
    for template, message in {
        "{{ messages[0].content }}": "chat template that does not show tool calls",
        "{{ messages | length }} {{ messages }}": "writes a turn differently once another message follows",
    }.items():
        sampler = DialAgent()
        sampler.tokenizer.chat_template = template
        with pytest.raises(ValueError, match=message):
            ToolLoop(agent, sampler)
    sampler = DialAgent()
    sampler.prompt_format = PromptFormat(zoo.byte_level_bpe())
    with pytest.raises(ValueError, match="without a chat template"):
        ToolLoop(agent, sampler)
    sampler = DialAgent()
    sampler.sample = lambda prompts, *_: [[Completion("7 + 15", True, 4)] for _ in prompts]
    with pytest.raises(ValueError, match="a turn without token ids"):
        run(sampler)
    with pytest.raises(ValueError, match="question 0: got the text 'x' as prompt, expected messages"):
        run(DialAgent(), [Question("x", "1", "x")])


def trainers_conversations(tmp_path, sampler, turn, rows, limit, iterations):
    """Messages, tokens and masks of TRL's trainer, whose policy writes `turn(ids)` after the tokens `ids`."""
    prompts = [{"prompt": [{"role": "user", "content": row["question"]}], **row} for row in rows]
    model = AutoModelForCausalLM.from_pretrained(dial.BASE_PATH)
    model.resize_token_embeddings(len(sampler.tokenizer), mean_resizing=False)
    args = GRPOConfig(
        str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=len(rows),
        num_generations=2,
        max_completion_length=limit,
        max_tool_calling_iterations=iterations,
        **CPU_QUIET,
    )
    trainer = GRPOTrainer(
        model,
        None,
        args,
        Dataset.from_list(prompts),
        processing_class=sampler.tokenizer,
        environment_factory=DialEnvironment,
    )
    trainer._generate_single_turn = lambda prompt_ids, *rest, **options: ([turn(ids) for ids in prompt_ids], None)
    made = {}
    trainer._calculate_rewards = lambda inputs, prompts, completions, completion_ids: (
        made.update(messages=completions, token_ids=completion_ids) or torch.zeros(len(prompts), 1)
    )
    output = trainer._generate_and_score_completions(prompts)
    return made["messages"], made["token_ids"], output["tool_mask"].tolist()


@pytest.mark.slow("makes TRL's trainer")
@pytest.mark.parametrize(("limit", "iterations"), [(60, None), (24, None), (25, None), (28, None), (60, 2), (60, 0)])
def test_conversations_are_those_of_the_trainer(tmp_path, limit, iterations):
    """With the same turns, TRL's trainer makes the same messages, tokens and masks."""
    sampler = DialAgent(careless)

    def turn(ids):
        text = sampler.tokenizer.decode(ids)
        return sampler.tokenizer(sampler.turn(text, random.Random(text)))["input_ids"]

    def sample(prompts, num_samples, seed):
        turns = map(turn, map(sampler.prompt_format.encode, prompts))
        return [[Completion("", True, len(ids), tuple(ids))] for ids in turns]

    sampler.sample, sampler.settings["max_new_tokens"] = sample, limit
    rows = dial.make_questions(8, 2, 3, 5)
    agent = Agent(environment_factory=DialEnvironment, max_tool_calling_iterations=iterations)
    _, conversations, _ = run(sampler, [Question(**row) for row in rows], agent)
    messages, token_ids, masks = trainers_conversations(tmp_path, sampler, turn, rows, limit, iterations)
    assert [conversation.messages for conversation in conversations] == messages
    assert [conversation.token_ids for conversation in conversations] == token_ids
    for conversation, padded in zip(conversations, masks, strict=True):
        mask = padded[: len(conversation.token_ids)]
        assert conversation.num_tokens == sum(mask)
        starts = [index for index in range(len(mask)) if mask[index] and (index == 0 or not mask[index - 1])]
        assert conversation.starts == starts
