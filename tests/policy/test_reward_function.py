"""Step scores as a reward function of TRL's unchanged `GRPOTrainer`."""

import asyncio
import dataclasses
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from accelerate import PartialState
from datasets import Dataset
from step_fakes import (
    DIAL_FORMAT,
    FakeScorer,
    by_last_number,
    by_text,
    byte_level_bpe,
    encode,
    generate_fixed,
    save_tiny,
    settings,
    tiny_llama,
    word_level,
)
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.a2po import A2POConfig, A2POTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

from erprm_trl import StepScorer, dial
from erprm_trl.functional import aggregate
from erprm_trl.policy.completions import completion_text
from erprm_trl.policy.reward_function import StepRewardFunction
from erprm_trl.policy.scored_batch import Handoff, ScoredBatch, ScoredCompletion


CHAT = "{% for message in messages %}check {{ message['content'] }}{% endfor %}"
COMPLETIONS = ["4 ки 8 ки 2 </s>", "7 </s>", "</s>", "3 ки 3 ки 9"]


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    """A saved reward model with a context of 24 tokens."""
    folder = tmp_path_factory.mktemp("reward") / "model"
    save_tiny(folder, word_level(), max_position_embeddings=24)
    DIAL_FORMAT.save(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("completions", "columns", "warnings"),
    [
        (["4 + 4 = 8\nSo 8."] * 16, {}, 1),
        (["4 + 4 = 8\nSo 8."] * 15, {}, 0),
        (["4 + 4 = 8\nSo 8."] * 15 + ["4 ки 8"], {}, 0),
        (["4 + 4 = 8\nSo 8."] * 16, {"tool_mask": [[]] * 16}, 0),  # steps are turns
    ],
    ids=["one step each", "too few", "one with two steps", "turns"],
)
def test_a_warning_if_no_completion_has_two_steps(completions, columns, warnings, caplog):
    reward = StepRewardFunction(FakeScorer(lambda text: 0.5))
    for part in (completions[:8], completions[8:]):
        reward(["What is 4 + 4?"] * len(part), part, **{name: column[: len(part)] for name, column in columns.items()})
    records = [record.message for record in caplog.records if "two steps" in record.message]
    assert len(records) == warnings
    for message in records:
        assert message.startswith("splitter='ки': none of the first 16 completions has two steps")
        assert "One begins with '4 + 4 = 8" in message and "splitter='newline' would give 2.0 steps" in message


@pytest.mark.parametrize("conversational", [False, True])
def test_trls_own_trainer_makes_two_updates(tmp_path, reward_model, conversational):
    tokenizer = word_level()
    tokenizer.chat_template = CHAT
    rows = [row["question"] for row in dial.make_questions(4, seed=1, max_moves=3)]
    prompts = [[{"role": "user", "content": text}] for text in rows] if conversational else rows
    reward = StepRewardFunction(reward_model)
    seen = []

    def watch(prompts, completions, completion_ids, **columns):
        seen.append((prompts, completions, completion_ids))
        return [0.0] * len(prompts)

    trainer = GRPOTrainer(
        tiny_llama(len(tokenizer)),
        [reward, watch],
        args=GRPOConfig(**settings(tmp_path)),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    generate_fixed(trainer, encode(tokenizer, *COMPLETIONS))
    trainer.train()
    assert trainer.state.global_step == 2
    assert any(not weight.equal(before[name]) for name, weight in trainer.model.named_parameters())

    log = trainer.state.log_history[0]
    # The four completions have 3, 1, 0 and 3 steps, and 6, 2, 1 and 5 tokens. The third has no tokens of a step.
    assert log["steps/per_answer"] == 7 / 4
    assert log["steps/tokens_per_step"] == pytest.approx(13 / 7)
    assert "steps/unfinished_share" not in log  # TRL's trainer does not pass its tokenizer
    assert log["steps/repeated_share"] == pytest.approx(1 / 7)  # the second "3"
    assert log["steps/unscorable_share"] == 1 / 4
    assert log["rewards/step_reward/mean"] > 0 and "steps/mean_score" in log

    scorer = StepScorer.from_pretrained(reward_model)
    prompts, completions, completion_ids = seen[0]
    batch = reward.score_batch(prompts, completions, completion_ids)
    assert batch.rewards == [completion.reward for completion in batch.completions]
    rewards = [value for value in batch.rewards if value is not None]
    assert log["rewards/step_reward/mean"] == pytest.approx(sum(rewards) / len(rewards), abs=1e-6)
    asked = [prompt[0]["content"] if conversational else prompt for prompt in prompts]
    for question, completion, scored in zip(asked, completions, batch.completions, strict=True):
        assert question in rows
        text = completion[0]["content"] if conversational else completion
        assert scored.scores == pytest.approx(scorer.score_texts([question], [text])[0], abs=1e-6)


def test_step_scores_are_a_column_of_the_logged_completions(tmp_path):
    tokenizer = word_level()
    trainer = GRPOTrainer(
        tiny_llama(len(tokenizer)),
        StepRewardFunction(FakeScorer(by_last_number)),
        args=GRPOConfig(**settings(tmp_path, max_steps=1, log_completions=True)),
        train_dataset=Dataset.from_dict({"prompt": ["Tom dial 3", "Tom dial 4"]}),
        processing_class=tokenizer,
    )
    generate_fixed(trainer, encode(tokenizer, *COMPLETIONS))
    trainer.train()
    (file,) = (tmp_path / "completions").glob("*.parquet")
    table = Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))
    assert table["step_scores"] == [[0.4, 0.8, 0.2], [0.7], [], [0.3, 0.3, 0.9]]


def test_rewards_are_the_aggregated_scores_of_the_scorer(reward_model):
    scorer = StepScorer.from_pretrained(reward_model)
    completions = ["4 ки 8 ки 2", "7", "3 ки 3 ки 9"]
    direct = scorer.score_texts(["Tom dial 7"] * 3, completions)
    for aggregation in (None, "min", "last", "product", "mean"):
        reward = StepRewardFunction(reward_model, aggregation=aggregation)
        expected = aggregate(direct, aggregation or "min").tolist()
        assert reward(["Tom dial 7"] * 3, completions) == pytest.approx(expected, abs=1e-6)
        scored = reward.score_batch(["Tom dial 7"] * 3, completions).completions
        assert [completion.scores for completion in scored] == [pytest.approx(values, abs=1e-6) for values in direct]
        assert [completion.reward for completion in scored] == pytest.approx(expected, abs=1e-6)
        assert all(completion.token_ends == [] for completion in scored)  # without the policy's tokens


def test_a_path_is_loaded_at_the_first_call_and_a_scorer_is_used_directly(reward_model):
    scorer = StepScorer.from_backend(FakeScorer(by_text))
    assert StepRewardFunction(scorer).scorer is scorer
    assert StepRewardFunction(scorer.backend).scorer.backend is scorer.backend
    reward = StepRewardFunction(Path(reward_model), scorer_kwargs={"batch_size": 3})
    assert reward._scorer == reward_model
    assert reward.scorer.batch_size == 3 and reward.scorer is reward.scorer


def test_a_path_without_a_reward_model_is_an_error_in_the_constructor(tmp_path):
    with pytest.raises(FileNotFoundError, match="prm_format.json"):
        StepRewardFunction(tmp_path)
    with pytest.raises(ValueError, match="got 'median'"):
        StepRewardFunction(FakeScorer(by_text), aggregation="median")


def test_unscorable_completions_have_the_reward_none(reward_model):
    # "check Tom" and 12 steps of two tokens each are at least 26 tokens, more than the context of 24.
    reward = StepRewardFunction(reward_model)
    long = " ки ".join(["1"] * 12)
    asked = (["Tom"] * 4, ["4 ки 8", long, "", "ки ки"])
    rewards = reward(*asked)
    assert rewards[0] is not None and rewards[1:] == [None, None, None]
    scored = reward.score_batch(*asked).completions
    assert [completion.reward for completion in scored] == rewards
    assert [len(completion.scores) for completion in scored] == [2, 0, 0, 0]
    assert [completion.steps for completion in scored] == [["4", "8"], ["1"] * 12, [], []]


def test_a_step_without_its_own_token_makes_the_completion_unscorable():
    # Split after each "m", the token "times" contains the whole step "tim" and the start of the next step.
    tokenizer = word_level()
    scorer = FakeScorer(lambda step: 0.5, dataclasses.replace(DIAL_FORMAT, splitter="m"))
    reward = StepRewardFunction(scorer, processing_class=tokenizer)
    ids = encode(tokenizer, "Tom 4 </s>", "times times </s>", "</s>", "times")
    asked = (["q0", "q1", "q2", "q3"], ["Tom 4", "times times", "", "times"], ids)
    assert reward(*asked) == [0.5, 0.5, None, None]
    # "Tom" | "4": each step has a token. "tim" | "es tim" | "es": no token begins in the last step.
    scored = reward.score_batch(*asked).completions
    assert scored[0] == ScoredCompletion([0.5, 0.5], [0, 2], ["To", "4"], 0.5)
    assert scored[2:] == [ScoredCompletion([], [], [], None), ScoredCompletion([], [], ["ti", "es"], None)]
    assert scorer.calls[0][1][2:] == [[], []]  # completions that cannot be aligned are not scored


def test_scoring_a_batch_has_no_side_effects():
    tokenizer = word_level()
    reward = StepRewardFunction(FakeScorer(by_last_number), processing_class=tokenizer, eos_token_ids=[2])
    reward.handoff = Handoff()
    texts = ["4 ки 8", "3 ки 3 ки 9", ""]
    asked = (["q"] * 3, texts, encode(tokenizer, *texts))
    before, slot = dict(vars(reward)), dict(vars(reward.handoff))
    first, second = reward.score_batch(*asked, question=["a", "b", "c"]), reward.score_batch(*asked)
    assert isinstance(first, ScoredBatch) and first == second and len(first) == 3
    assert vars(reward) == before and vars(reward.handoff) == slot
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.metrics = {}


def test_a_batch_is_taken_once_and_its_length_is_checked():
    reward = StepRewardFunction(FakeScorer(by_last_number))
    reward.handoff = Handoff()
    with pytest.raises(RuntimeError, match="got no batch, expected a batch of 2 completions"):
        reward.handoff.take(2)
    reward(["q"] * 3, ["4", "8", ""])
    with pytest.raises(RuntimeError, match="got a batch of 3 completions, expected 2"):
        reward.handoff.take(2)
    reward(["q"] * 3, ["4", "8", ""])
    reward(["q"] * 2, ["4", "8"])  # replaces the batch that was not taken
    assert reward.handoff.take(2).rewards == [pytest.approx(0.4), pytest.approx(0.8)]
    with pytest.raises(RuntimeError, match="got no batch"):
        reward.handoff.take(2)


def test_metrics_worked_by_hand():
    tokenizer = word_level()
    metrics, extras = {}, {}
    reward = StepRewardFunction(FakeScorer(by_last_number, max_steps=3), processing_class=tokenizer)
    texts = ["4 ки 8 </s>", "3 ки 3 ки 9", "1 ки 1 ки 1 ки 1 </s>", "</s>"]
    rewards = reward(
        ["q"] * 4,
        [text.removesuffix("</s>").strip() for text in texts],
        completion_ids=encode(tokenizer, *texts),
        log_metric=metrics.__setitem__,
        log_extra=extras.__setitem__,
    )
    assert rewards == [pytest.approx(0.4), pytest.approx(0.3), None, None]
    # 2 + 3 + 4 + 0 steps and 4 + 5 + 8 + 1 tokens. 1 and 3 steps repeat. The third is too long, the second unfinished.
    assert metrics == {
        "steps/per_answer": 9 / 4,
        "steps/repeated_share": pytest.approx(4 / 9),
        "steps/unscorable_share": 2 / 4,
        "steps/mean_score": pytest.approx((0.4 + 0.8 + 0.3 + 0.3 + 0.9) / 5),
        "steps/tokens_per_step": 17 / 9,
        "steps/unfinished_share": 1 / 4,
    }
    assert extras == {"step_scores": [[0.4, 0.8], [0.3, 0.3, 0.9], [], []]}


def test_every_end_token_ends_a_completion():
    tokenizer, metrics = word_level(), {}
    reward = StepRewardFunction(FakeScorer(by_last_number), processing_class=tokenizer, eos_token_ids=[2, 3])
    ids = encode(tokenizer, "4 ки", "4 </s>", "4")
    reward(["q"] * 3, ["4 ки", "4", "4"], completion_ids=ids, log_metric=metrics.__setitem__)
    assert metrics["steps/unfinished_share"] == pytest.approx(1 / 3)


def test_the_question_is_read_from_its_column_or_from_the_prompt():
    scorer = FakeScorer(by_last_number)
    reward = StepRewardFunction(scorer)
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
    chat += [{"role": "assistant", "content": "b"}, {"role": "user", "content": [{"type": "text", "text": "c"}]}]
    answer = [{"role": "assistant", "content": "4"}]
    reward([chat, chat], [answer, answer], question=["bare", "other"])
    reward([chat, chat[:2]], [answer, answer])
    reward(["template"], ["4"])
    StepRewardFunction(scorer, question_column="problem")(["template"], ["4"], problem=["p"], question=["q"])
    assert [questions for questions, _ in scorer.calls] == [["bare", "other"], ["c", "a"], ["template"], ["p"]]


def test_strings_instead_of_lists_and_different_lengths_are_errors():
    reward = StepRewardFunction(FakeScorer(by_last_number))
    with pytest.raises(TypeError, match="prompts: got the str 'abc', expected a list of texts or conversations"):
        reward("abc", ["4"])
    with pytest.raises(TypeError, match="completions: got the str 'def'"):
        reward(["abc"], "def")
    with pytest.raises(ValueError, match="step_reward: got 1 prompts and 2 completions, expected one prompt per"):
        reward(["abc"], ["4", "5"])
    assert reward([], []) == []


def test_a_missing_question_column_is_an_error():
    reward = StepRewardFunction(FakeScorer(by_last_number), question_column="problem")
    with pytest.raises(ValueError, match="question_column of step_reward: got 'problem', expected one of .*query"):
        reward(["template"], ["4"], query=["q"])
    # the two fixes that the message proposes
    assert StepRewardFunction(FakeScorer(by_last_number), question_column="query")(["t"], ["4"], query=["q"])
    assert StepRewardFunction(FakeScorer(by_last_number))(["template"], ["4"], query=["q"])


def test_steps_of_the_last_message_of_a_conversation():
    scorer, ends = FakeScorer(by_last_number), [2]
    tokenizer, metrics = word_level(), {}
    call = {"role": "assistant", "content": "4 ки 8", "tool_calls": [{"function": {"name": "dial"}}]}
    tool = {"role": "tool", "name": "dial", "content": "9 ки 9"}
    reward = StepRewardFunction(scorer, steps_of="both", processing_class=tokenizer, eos_token_ids=ends)
    ids = encode(tokenizer, "4 ки 8 ? 9 ки 9 ?", "4 ки 8 ? 9 ки 9 ? 4 ки 8 </s>", "4 ки 8 </s>")
    completions = [[call, tool], [call, tool, {"role": "assistant", "content": "4 ки 8"}], [{"content": "4 ки 8"}]]
    assert reward(["q"] * 3, completions, ids, log_metric=metrics.__setitem__) == [
        None,
        pytest.approx(0.4),
        pytest.approx(0.4),
    ]
    assert metrics["steps/unscorable_share"] == pytest.approx(1 / 3)
    scored = reward.score_batch(["q"] * 3, completions, ids).completions
    assert scored[0] == ScoredCompletion([], [], [], None)
    # The step ends are in the last message's own tokens, although the first message has the same text.
    assert scored[1].token_ends == [9, 11] and scored[2].token_ends == [1, 3]
    # Its graded answer is empty.
    assert [completion_text(completion) for completion in completions] == ["", "4 ки 8", "4 ки 8"]


TRAINERS = {
    "grpo": (GRPOTrainer, GRPOConfig, {"num_generations": 2, "max_completion_length": 4}),
    "rloo": (RLOOTrainer, RLOOConfig, {"num_generations": 2, "max_completion_length": 4}),
    "a2po": (A2POTrainer, A2POConfig, {"num_value_samples": 2, "max_completion_length": 4}),
    "online dpo": (OnlineDPOTrainer, OnlineDPOConfig, {"max_new_tokens": 4, "max_length": 20}),
    "sdpo": (SDPOTrainer, SDPOConfig, {"num_generations": 2, "max_completion_length": 4}),
}
MEAN_REWARD = {"online dpo": "objective/scores", "sdpo": "self_distillation/reward_mean"}


@pytest.mark.parametrize("unscorable_reward", [None, 0.25])
@pytest.mark.parametrize("kind", TRAINERS)
def test_trls_trainers_handle_unscorable_completions_as_documented(tmp_path, kind, unscorable_reward):
    trainer_class, config_class, options = TRAINERS[kind]
    shared = settings(tmp_path / "run", max_steps=1)
    for name in ("num_generations", "max_completion_length"):
        del shared[name]
    tokenizer = word_level()
    tokenizer.chat_template = CHAT
    trainer = trainer_class(
        save_tiny(tmp_path / "policy", tokenizer),
        # Every completion is too long.
        reward_funcs=StepRewardFunction(FakeScorer(by_text, max_steps=0), unscorable_reward=unscorable_reward),
        args=config_class(**shared, **options),
        train_dataset=Dataset.from_dict({"prompt": ["Tom dial 3", "Tom dial 4"]}),
        processing_class=tokenizer,
    )
    if kind == "a2po" and unscorable_reward is None:
        with pytest.raises(TypeError):
            trainer.train()
        return
    trainer.train()
    nothing = {"grpo": None, "rloo": None}.get(kind, 0.0)
    expected = nothing if unscorable_reward is None else unscorable_reward
    assert trainer.state.log_history[0][MEAN_REWARD.get(kind, "reward")] == expected


def test_an_unscorable_reward_must_be_finite():
    with pytest.raises(ValueError, match="unscorable_reward: got nan, expected a finite number"):
        StepRewardFunction(FakeScorer(by_text), unscorable_reward=float("nan"))
    with pytest.raises(ValueError, match="unscorable_reward: got '0', expected a finite number"):
        StepRewardFunction(FakeScorer(by_text), unscorable_reward="0")


def test_two_reward_models_are_logged_by_their_names(tmp_path):
    tokenizer = word_level()
    funcs = [
        StepRewardFunction(FakeScorer(lambda step: 0.3), name="careful"),
        StepRewardFunction(FakeScorer(by_last_number)),
    ]
    trainer = GRPOTrainer(
        tiny_llama(len(tokenizer)),
        funcs,
        args=GRPOConfig(**settings(tmp_path, max_steps=1, log_completions=True)),
        train_dataset=Dataset.from_dict({"prompt": ["Tom dial 3", "Tom dial 4"]}),
        processing_class=tokenizer,
    )
    generate_fixed(trainer, encode(tokenizer, *COMPLETIONS))
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["rewards/careful/mean"] == log["careful/steps/mean_score"] == pytest.approx(0.3)
    assert log["steps/mean_score"] == pytest.approx((0.4 + 0.8 + 0.2 + 0.7 + 0.3 + 0.3 + 0.9) / 7)
    assert log["rewards/step_reward/mean"] == pytest.approx((0.2 + 0.7 + 0.3) / 3)
    (file,) = (tmp_path / "completions").glob("*.parquet")
    table = Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))
    assert table["careful/step_scores"] == [[0.3] * 3, [0.3], [], [0.3] * 3]
    assert table["step_scores"] == [[0.4, 0.8, 0.2], [0.7], [], [0.3, 0.3, 0.9]]


def test_several_threads_load_the_model_once(reward_model, monkeypatch):
    loaded, from_pretrained = [], StepScorer.from_pretrained

    def slow(path, **kwargs):
        loaded.append(path)
        time.sleep(0.05)
        return from_pretrained(path, **kwargs)

    monkeypatch.setattr(StepScorer, "from_pretrained", slow)
    reward = StepRewardFunction(reward_model)
    with ThreadPoolExecutor(4) as threads:
        rewards = list(threads.map(lambda text: reward(["Tom dial 7"], [text])[0], ["4 ки 8"] * 4))
    assert loaded == [reward_model] and len(set(rewards)) == 1


def test_a_reward_function_can_be_sent_to_another_process(reward_model):
    # AsyncGRPOTrainer needs this.
    reward = StepRewardFunction(reward_model, name="sent", unscorable_reward=0.0)
    sent = pickle.loads(pickle.dumps(reward))
    asked = (["Tom dial 7"] * 2, ["4 ки 8", ""])
    assert sent.__name__ == "sent" and sent(*asked) == reward(*asked)


def test_trls_asynchronous_trainer_scores_its_groups_with_it(reward_model):
    # AsyncGRPOTrainer runs this loop in a process without a GPU. Only its training needs one.
    from trl.chat_template_utils import qwen3_chat_template
    from trl.experimental.async_grpo.async_rollout_worker import RolloutGroup, TrainingSequence, _AsyncRolloutLoop

    PartialState()  # for TRL's logger
    tokenizer = byte_level_bpe()
    tokenizer.chat_template = qwen3_chat_template
    reward = StepRewardFunction(reward_model, aggregation="min")
    not_used = dict.fromkeys(
        "rollout_buffer model_version_value heartbeat_value failed_event exception_info_queue metrics_queue".split()
    )
    loop = _AsyncRolloutLoop(
        model_name="policy",
        dataset=[],
        reward_funcs=[pickle.loads(pickle.dumps(reward))],
        processing_class=tokenizer,
        eos_token_ids=[0],
        **not_used,
    )
    texts = ["4 ки 8", "2 ки 9", "5", ""]
    sequences = [[TrainingSequence([1, 2, 3], [0, 1, 1], [0.0, -1.0, -1.0], f"{row}")] for row in range(4)]
    group = RolloutGroup(
        prompts=[[{"role": "user", "content": "Tom dial 7"}]] * 4,
        reward_kwargs={"topic": ["dial"] * 4},
        completions=[[{"role": "assistant", "content": text}] for text in texts],
        completions_ids=[[1, 2]] * 4,
        completions_sequences=sequences,
        tool_call_counts=[0] * 4,
        tool_failure_counts=[0] * 4,
        model_version=0,
        group_id=0,
        env_rewards=[None] * 4,
        rollout_rewards=[None] * 4,
    )
    samples = asyncio.run(loop._score_group(group))
    loop._loop.close()
    expected = reward(["Tom dial 7"] * 4, texts)
    assert expected[3] is None and len({*expected[:3]}) == 3
    assert [sample.metrics["rewards/step_reward"] for sample in samples[:3]] == pytest.approx(expected[:3])
    mean = sum(expected[:3]) / 3
    spread = (sum((value - mean) ** 2 for value in expected[:3]) / 3) ** 0.5
    advantages = [(value - mean) / spread for value in expected[:3]]
    assert [sample.advantage for sample in samples] == pytest.approx([*advantages, 0.0], rel=1e-3)
