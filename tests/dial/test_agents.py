"""Agents on dial: their corpus by hand, and one small run of every stage."""

import random

import pytest

from erprm_trl.dial.environment import DialEnvironment, build_agent_tokenizer
from erprm_trl.dial.experiments import agents
from erprm_trl.dial.task import DialQuestion


QUESTION = DialQuestion("Tom", 7, (("+", 15), ("*", 3)))


def test_a_conversation_of_the_corpus_by_hand():
    tokenizer = build_agent_tokenizer()
    row = agents.tokenized_conversation(tokenizer, random.Random(0), QUESTION, slip=0.0)
    turns = "<assistant> 7 + 15 </s> <tool> 2 <assistant> 2 * 3 </s> <tool> 6 <assistant> answer 6 </s>"
    assert tokenizer.decode(row["input_ids"]) == f"<user> {QUESTION.text} {turns}"
    own = [token for token in row["labels"] if token != -100]
    assert tokenizer.decode(own) == "7 + 15 </s> 2 * 3 </s> answer 6 </s>"


def test_mistakes_are_calls_whose_results_are_read():
    tokenizer = build_agent_tokenizer()
    row = agents.tokenized_conversation(tokenizer, random.Random(1), QUESTION, slip=1.0)
    environment = DialEnvironment()
    environment.reset(QUESTION.text)
    position = 7
    turns = tokenizer.decode(row["input_ids"]).split("<assistant> ")[1:]
    for turn, move in zip(turns, QUESTION.moves, strict=False):
        call, result = turn.split(" </s> <tool> ")
        place, operator, amount = call.split()
        assert (int(place), operator, int(amount)) != (position, *move)
        position = int(environment.turn(place, operator, amount))
        assert int(result) == position
    assert turns[-1] == f"answer {position} </s>"


@pytest.mark.slow("trains an agent, a reward model and the agent again")
def test_every_stage_runs(tmp_path):
    policy = agents.make_agent_policy(tmp_path / "agent", steps=2)
    labels = agents.collect_turn_labels(policy, tmp_path / "rollouts", questions=2, num_continuations=1)
    model = agents.train_turn_model(labels, tmp_path / "erprm", max_steps=1)
    for reward_model in (None, model):
        trainer = agents.train_agent(policy, tmp_path / "run", reward_model, updates=1)
        assert "rewards/DialEnvironment/mean" in trainer.state.log_history[0]
