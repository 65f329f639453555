"""Agents on dial: their corpus by hand, the measure of a reward model by hand, and one small run of every stage."""

import random
from types import SimpleNamespace

import pytest

from erprm_trl.dial.environment import DialByHand, DialEnvironment, build_agent_tokenizer
from erprm_trl.dial.experiments import agents
from erprm_trl.dial.task import DialQuestion


QUESTION = DialQuestion("Tom", 7, (("+", 15), ("*", 3)))


def test_a_conversation_of_the_corpus_by_hand():
    tokenizer = build_agent_tokenizer(by_hand=True)
    row = agents.tokenized_conversation(tokenizer, random.Random(0), QUESTION, slip=0.0)
    turns = "<assistant> 7 + 15 = 2 </s> <tool> 2 <assistant> 2 * 3 = 6 </s> <tool> 6 <assistant> answer 6 </s>"
    assert tokenizer.decode(row["input_ids"]) == f"<user> {QUESTION.text} {turns}"
    own = [token for token in row["labels"] if token != -100]
    assert tokenizer.decode(own) == "7 + 15 = 2 </s> 2 * 3 = 6 </s> answer 6 </s>"


def test_mistakes_are_moves_to_wrong_positions():
    tokenizer = build_agent_tokenizer(by_hand=True)
    row = agents.tokenized_conversation(tokenizer, random.Random(1), QUESTION, slip=1.0)
    environment = DialByHand()
    environment.reset(QUESTION.text)
    *turns, last = tokenizer.decode(row["input_ids"]).split("<assistant> ")[1:]
    for turn, move in zip(turns, QUESTION.moves, strict=True):
        place, operator, amount, equals, result, *end = turn.split()
        assert (int(place), operator, int(amount), equals) == (environment.position, *move, "=")
        right = int(DialEnvironment().turn(place, operator, amount))
        assert int(result) != right
        assert environment.turn(place, operator, amount, result) == result and end == ["</s>", "<tool>", result]
    assert last == f"answer {environment.position} </s>"


def test_the_measure_of_a_reward_model_by_hand():
    right, wrong, later = ["7 + 15 = 2", "2 * 3 = 6", "answer 6"], ["7 + 15 = 3"], ["7 + 15 = 2", "2 * 3 = 7"]
    wrong, later = [*wrong, "3 * 3 = 9", "answer 9"], [*later, "answer 7"]
    scores = {right[0]: 0.5, wrong[0]: 0.4, right[1]: 0.8, wrong[1]: 0.3, later[1]: 0.2}
    scores |= {right[2]: 0.1, wrong[2]: 0.3, later[2]: 0.2}
    rows = [
        SimpleNamespace(question=QUESTION.text, question_index=0, steps=steps, is_usable=True)
        for steps in (right, wrong, later)
    ]
    scorer = SimpleNamespace(score=lambda questions, steps: [[scores[step] for step in turns] for turns in steps])
    # Pairs that are right: 2 of 2 after the first turn (`right` and `later` against `wrong`), 2 of 2, and 0 of 2.
    assert agents.turn_auc(scorer, rows) == pytest.approx(4 / 6)


@pytest.mark.slow("trains an agent, a reward model and the agent again")
def test_every_stage_runs(tmp_path):
    policy = agents.make_agent_policy(tmp_path / "agent", steps=2)
    labels = agents.collect_conversations(policy, tmp_path / "rollouts", questions=2, num_continuations=1)
    model = agents.train_turn_model(labels, tmp_path / "erprm", max_steps=1)
    for reward_model in (None, model):
        trainer = agents.train_agent(policy, tmp_path / "run", reward_model, updates=1)
        assert "rewards/DialByHand/mean" in trainer.state.log_history[0]
