"""Collections of conversations: rows by hand, refused environments, crashes, processes, and training on the labels."""

import json
import math

import pytest
from launched_collection import collect_in_processes
from scripted_agent import DialAgent, careless

from erprm_trl import ERPRMConfig, ERPRMTrainer, RolloutDataset, collect_rollouts, dial, load_questions
from erprm_trl.dial.environment import DialEnvironment, render_message
from erprm_trl.policy.turns import turn_steps
from erprm_trl.reward_model import PRMFormat
from erprm_trl.rollouts import CollectConfig, Question
from erprm_trl.steps import clean_steps


QUESTION = Question("Tom dial 7 . right 15 . times 3 . ?", "6")
SETTINGS = {
    "environment_factory": DialEnvironment,
    "grading": "environment",
    "render_message": render_message,
    "num_continuations": 3,
    "chunk_size": 2,
    "show_progress": False,
}


def collect(folder, questions=None, sampler=None, **settings):
    questions = questions or load_questions(dial.make_questions(5, 3, 2, 4))
    return collect_rollouts(questions, sampler or DialAgent(careless), folder, **{**SETTINGS, **settings})


def test_rows_by_hand(tmp_path):
    # The first solution turns by 16 instead of 15 and ends at 3 * 3 = 9. Everybody else is right from there on.
    made = []

    def first_call_is_wrong(move, position, rng):
        made.append(move)
        return (position, move[0], move[1] + (len(made) == 1))

    settings = {"num_solutions": 2, "include_question": True}
    wrong, right = collect(tmp_path, [QUESTION], DialAgent(first_call_is_wrong), **settings)
    assert wrong.steps == ["7 + 16\n", "= 3\n3 * 3\n", "= 9\nanswer 9"]
    assert (wrong.outcome_reward, wrong.prediction, wrong.num_tokens, wrong.finished) == (0.0, "9", 11, True)
    assert wrong.prefix_rewards == [[0.0] * 3, [0.0] * 3] and wrong.question_rewards == [1.0] * 3
    assert right.steps == ["7 + 15\n", "= 2\n2 * 3\n", "= 6\nanswer 6"]
    assert (right.outcome_reward, right.prefix_rewards) == (1.0, [[1.0] * 3, [1.0] * 3])
    assert right.question_rewards == wrong.question_rewards and right.token_ids is None
    assert [message["role"] for message in right.messages] == ["assistant", "tool"] * 2 + ["assistant"]
    labels = RolloutDataset(tmp_path).labels(eta=0.0)
    assert labels["completions"][0] == ["7 + 16", "= 3\n3 * 3", "= 9\nanswer 9"]
    assert labels["labels"] == [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    summary = RolloutDataset(tmp_path).manifest["summary"]
    assert (summary["rollouts"], summary["mean_outcome_reward"]) == (2 + 4 * 3, 0.5)


def test_rewards_agree_with_the_exact_value(tmp_path):
    """A call is wrong with probability 1/3, and no wrong amount of these questions leads to the right position."""
    question = Question("Tom dial 0 . right 1 . right 1 . right 1 . ?", "3")
    settings = {"num_solutions": 1, "num_continuations": 100, "include_question": True}
    seeds = range(2)
    rows = [collect(tmp_path / str(seed), [question], seed=seed, **settings).rows[0] for seed in seeds]
    for row in rows:
        right = [message["tool_calls"][0]["function"]["arguments"]["amount"] == 1 for message in row.messages[:-1:2]]
        rewards = [row.question_rewards, *row.prefix_rewards]
        for num_turns, rewards_K in enumerate(rewards):
            exact = (2 / 3) ** (3 - num_turns) * all(right[:num_turns])
            deviation = math.sqrt(exact * (1 - exact) / 100)
            assert abs(sum(rewards_K) / 100 - exact) <= 4 * deviation


class Forgetful(DialEnvironment):
    """Turns by one more position in every second episode."""

    episodes = 0

    def reset(self, question, **columns):
        super().reset(question)
        Forgetful.episodes += 1
        self.extra = Forgetful.episodes % 2

    def turn(self, position: int, operator: str, amount: int) -> str:
        """
        Makes one move.

        Args:
            position: Position.
            operator: Operator.
            amount: Amount.
        """
        return super().turn(position, operator, amount % 18 + self.extra)


class Unrewarding(DialEnvironment):
    def get_reward(self):
        return math.nan


class WithoutReward:
    def reset(self, **columns):
        pass

    turn = DialEnvironment.turn


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"environment_factory": Forgetful}, "question 0, turn 1: got the result '.*' .* expected '.*' as before"),
        ({"environment_factory": Unrewarding}, "question 0: got the reward nan from Unrewarding.get_reward"),
        ({"environment_factory": WithoutReward}, "an environment without get_reward"),
        ({"environment_factory": None, "render_message": None}, "grading: got 'environment' with no environment"),
        ({"environment_factory": None, "grading": "exact"}, "render_message: got .* without tools"),
        ({"splitter": "newline", "allocation": "adaptive"}, "allocation: got 'adaptive' with tools"),
        ({"splitter": "blank_line"}, "splitter: got 'blank_line' with tools"),
        ({"store_token_ids": True}, "store_token_ids: got True with tools"),
        ({"stop": "x"}, "stop: got 'x' with tools"),
    ],
)
def test_what_cannot_be_labelled_is_refused(tmp_path, settings, message):
    Forgetful.episodes = 0
    with pytest.raises(ValueError, match=message):
        collect(tmp_path, **{"num_solutions": 1, **settings})
    assert not list(tmp_path.glob("*.jsonl")) or (tmp_path / "rollouts-00000.jsonl").read_text() == ""


def test_turns_are_no_steps_of_texts(tmp_path):
    with pytest.raises(ValueError, match="splitter: got 'turns' without tools"):
        collect_rollouts([QUESTION], DialAgent(), tmp_path, splitter="turns")


def test_answers_are_graded_and_other_settings_are_refused(tmp_path):
    data = collect(tmp_path, grading="exact", answer_pattern=dial.ANSWER_PATTERN)
    for row in data:
        assert row.outcome_reward == float(row.prediction == row.answer)
        assert row.steps[-1].endswith(f"answer {row.prediction}")
    assert {row.outcome_reward for row in data} == {0.0, 1.0}
    assert data.rows == collect(tmp_path / "rewards").rows  # the dial's own reward is the same
    with pytest.raises(ValueError, match="agent.max_tool_calling_iterations"):
        collect(tmp_path, grading="exact", answer_pattern=dial.ANSWER_PATTERN, max_tool_calling_iterations=3)


def test_a_resumed_collection_has_the_same_rows(tmp_path):
    collect(tmp_path / "whole")
    whole = (tmp_path / "whole" / "rollouts-00000.jsonl").read_bytes()
    shard = tmp_path / "cut" / "rollouts-00000.jsonl"
    shard.parent.mkdir()
    (tmp_path / "cut" / "manifest.json").write_bytes((tmp_path / "whole" / "manifest.json").read_bytes())
    for share in (0.1, 0.5, 0.9):
        shard.write_bytes(whole[: int(share * len(whole))])
        collect(tmp_path / "cut")
        assert shard.read_bytes() == whole


@pytest.mark.slow("starts two processes")
def test_two_processes_write_the_same_rows_as_one(tmp_path):
    collect_in_processes(collect, tmp_path / "many", 2)
    assert RolloutDataset(tmp_path / "many").rows == collect(tmp_path / "one").rows


def test_a_turn_without_content_has_no_labels(tmp_path):
    data = collect(tmp_path, [QUESTION], render_message=lambda message: "")
    assert {row.unusable for row in data} == {"a turn without content"}
    assert [row.prefix_rewards for row in data] == [[], []]


def test_the_command_imports_tools_by_name(tmp_path, monkeypatch):
    sampler = DialAgent(careless)
    monkeypatch.setattr(CollectConfig, "_sampler", lambda self: sampler)
    config = CollectConfig(
        model_name_or_path="agent",
        dataset_name="erprm_trl.dial:make_questions",
        dataset_kwargs=json.dumps({"num_questions": 3, "seed": 3}),
        output_dir=str(tmp_path),
        environment_factory="erprm_trl.dial.environment:DialEnvironment",
        render_message="erprm_trl.dial.environment:render_message",
        grading="environment",
        num_continuations=2,
    )
    data = config.run()
    assert data.settings.agent == {
        "tools": [],
        "environment_factory": "erprm_trl.dial.environment:DialEnvironment",
        "max_tool_calling_iterations": None,
        "render_message": "erprm_trl.dial.environment:render_message",
    }
    assert data.settings.splitter == "turns" and len(data) == 6


def test_a_reward_model_trains_on_the_turns_that_it_scores_later(tmp_path, dial_policy):
    data = collect(tmp_path / "rollouts")
    prm_format = PRMFormat(splitter="turns")
    for row in data:
        steps, _ = turn_steps(row.messages, prm_format, render=render_message)
        assert clean_steps(row.steps, data.settings.splitter) == steps
    args = ERPRMConfig(
        str(tmp_path / "erprm"),
        separator=dial.SEPARATOR,
        good_token=dial.GOOD_MARK,
        bad_token=dial.BAD_MARK,
        max_steps=1,
        per_device_train_batch_size=4,
        report_to="none",
        save_strategy="no",
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
    )
    trainer = ERPRMTrainer(dial.BASE_PATH, args, train_dataset=data)
    assert trainer.prm_format.splitter == "turns"
    trainer.train()
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])
