"""Step trainers with tools, environments and a `rollout_func`: a step is an assistant turn, and only the tokens that
the policy wrote have advantages, values and a loss."""

import inspect
import json
import re

import pytest
import torch
from datasets import Dataset
from forked_launch import launch_forked
from safetensors.torch import load_file
from step_fakes import FakeScorer, by_text, settings, tiny_llama
from tool_policies import (
    ADD_2_2,
    RESULT_4,
    add,
    chat_tokenizer,
    chats,
    follow_scripts,
    make_model,
    train_with_tools,
    trainer_with_tools,
)
from trl import GRPOTrainer

from erprm_trl import PRMFormat, StepGRPOConfig, StepGRPOTrainer, StepPPOConfig, StepPPOTrainer, StepRewardFunction
from erprm_trl.functional import generalized_advantages
from erprm_trl.policy.online.tool_tokens import loss_mask, with_tool_masks


GRPO, PPO = (StepGRPOTrainer, StepGRPOConfig), (StepPPOTrainer, StepPPOConfig)
both_trainers = pytest.mark.parametrize("classes", [GRPO, PPO], ids=["grpo", "ppo"])
# The running example, a group of two. A has two turns with scores 0.4 and 0.8, and B has one with score 0.2.
A, B = [f"I add. {ADD_2_2}", "So 8"], ["So 2"]
STEPS_A = [f"I add.\n{ADD_2_2}", f"{RESULT_4}\nSo 8"]
OUTCOME = {  # StepGRPO's advantages with scale "none" and aggregation "last", as for lines of text
    "difference": ([0.3, 0.4], [-0.3]),
    "sum": ([4 / 15, 1 / 3], [-4 / 15]),
    "outcome": ([0.3, 0.3], [-0.3]),
}


def last_digit(step):
    """0.4 for a step that ends with a tool call, otherwise its last digit divided by 10."""
    return 0.4 if step.endswith("</tool_call>") else int(re.findall(r"\d", step)[-1]) / 10


# The advantage of a step is the sum of the rewards from it on. There is no KL.
PLAIN = {"aggregation": "last", "gamma": 1.0, "beta": 0.0, "max_completion_length": 300}


def make_trainer(folder, classes=GRPO, scorer=None, dataset=None, funcs=(), model=None, **others):
    trainer_class, config_class = classes
    tokenizer = chat_tokenizer()
    more = {name: others.pop(name) for name in ("tools", "rollout_func", "environment_factory") if name in others} or {
        "tools": [add]
    }
    if trainer_class is StepPPOTrainer:
        others = {"gae_lambda": 1.0, "whiten_advantages": False, **others}
    else:
        others = {"scale_rewards": "none", **others}
    return trainer_class(
        model or tiny_llama(len(tokenizer), max_position_embeddings=2048),
        [scorer or FakeScorer(last_digit, PRMFormat()), *funcs],
        config_class(**settings(folder, **{**PLAIN, **others})),
        chats(4) if dataset is None else dataset,
        processing_class=tokenizer,
        **more,
    )


def rollout(trainer, *scripts, rows=None, **columns):
    """TRL's batch for scripted completions, one per script unless rows are passed."""
    follow_scripts(trainer, *scripts)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    prompt = [{"role": "user", "content": "What is 2 + 2?"}]
    rows = rows or [{"prompt": prompt} for _ in scripts]
    for name, values in columns.items():
        rows = [{**row, name: value} for row, value in zip(rows, values, strict=True)]
    return trainer._generate_and_score_completions(rows)


def runs(values, mask):
    """The values at the runs of a mask, one list per run."""
    split, before = [], 0
    for value, here in zip(values.tolist(), mask.tolist(), strict=True):
        if here and not before:
            split.append([])
        if here:
            split[-1].append(value)
        before = here
    return split


def read_steps(trainer):
    """The steps that the reward model has read in its last call."""
    return trainer.step_reward.scorer.backend.calls[-1][1]


@both_trainers
def test_the_constructor_has_every_parameter_of_trls(classes):
    theirs = list(inspect.signature(GRPOTrainer).parameters)
    ours = inspect.signature(classes[0]).parameters
    assert list(ours)[: len(theirs)] == theirs  # with the same positions
    assert all(ours[name].default is None for name in ("reward_funcs", "tools", "rollout_func", "environment_factory"))


@pytest.mark.parametrize("credit", OUTCOME)
def test_each_turn_has_one_advantage_and_the_tools_tokens_none(tmp_path, credit):
    trainer = make_trainer(tmp_path, credit=credit)
    batch = rollout(trainer, A, B)
    assert read_steps(trainer) == [STEPS_A, B]
    advantages = batch["advantages"]
    if credit == "outcome":  # one advantage per completion
        advantages = advantages[:, None] * loss_mask(batch)
    assert batch["tool_mask"][0].min() == 0 and torch.equal(loss_mask(batch) > 0, advantages != 0)
    for row, expected in enumerate(OUTCOME[credit]):
        turns = runs(advantages[row], loss_mask(batch)[row])
        assert len(turns) == len(expected)
        for turn, advantage in zip(turns, expected, strict=True):
            assert turn == pytest.approx([advantage] * len(turn), abs=2e-6)
    # The turns' own tokens, with the end of each turn, are exactly the text that the policy wrote.
    own = [ids for ids, kept in zip(batch["completion_ids"][0], loss_mask(batch)[0], strict=True) if kept]
    assert trainer._tokenizer.decode(torch.stack(own)) == "<|im_end|>".join([*A, ""])
    metrics = trainer._metrics["train"]
    assert metrics["steps/per_answer"] == [1.5] and metrics["steps/unscorable_share"] == [0.0]
    assert metrics["steps/tokens_per_step"] == [pytest.approx(loss_mask(batch).sum().item() / 3)]
    logged = list(trainer._logs["advantages"])
    assert logged == pytest.approx([sum(sum(runs(a, m), [])) / m.sum().item() for a, m in
                                    zip(advantages, loss_mask(batch), strict=True)], abs=1e-6)  # fmt: skip


@pytest.fixture(scope="module")
def policy_path(tmp_path_factory):
    """A saved policy, which the trainers can also load as the reference model."""
    return make_model(tmp_path_factory.mktemp("policy"))


@both_trainers
def test_the_loss_does_not_read_the_tools_tokens(tmp_path, classes, policy_path):
    trainer = make_trainer(tmp_path, classes, model=policy_path, beta=0.1)
    batch = rollout(trainer, A, B)
    loss = trainer._compute_loss(trainer.model, batch)
    tools = (batch["completion_mask"] == 1) & (batch["tool_mask"] == 0)
    assert tools.sum() > 10
    changed = dict(batch)
    for name in {"advantages", "old_values", "returns", "ref_per_token_logps"} & set(batch):
        changed[name] = torch.where(tools, 7.0, batch[name])
    torch.testing.assert_close(trainer._compute_loss(trainer.model, changed), loss)
    for values in trainer._metrics["train"].values():  # the metrics of the loss, of which there are two values
        assert len(values) != 2 or values[0] == pytest.approx(values[1])
    trainer._metrics["train"]["kl"].append(0.5)
    per_completion = loss_mask(batch).sum().item() / 2
    assert trainer._tracking.loss_kl(batch) == pytest.approx(-0.1 * 0.5 * per_completion)


@pytest.mark.parametrize("num_iterations", [1, 2])
def test_ppos_recursion_skips_the_tools_tokens(tmp_path, policy_path, num_iterations):
    more = {"model": policy_path, "beta": 0.1, "num_iterations": num_iterations}
    trainer = make_trainer(tmp_path, PPO, gamma=0.9, gae_lambda=0.8, **more)
    with torch.no_grad():
        trainer.value_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    for parameter in trainer.ref_model.parameters():  # a reference model with other probabilities
        parameter.data.mul_(1.5)
    batch = rollout(trainer, A, B)
    logps, _ = trainer._rollout_forward(batch) if num_iterations == 1 else (batch["old_per_token_logps"], None)
    mask = loss_mask(batch).bool()
    penalty = 0.1 * (logps - batch["ref_per_token_logps"])
    assert penalty[mask].abs().max() > 0.01
    for row, scores in enumerate(([0.4, 0.8], [0.2])):
        values = batch["old_values"][row][mask[row]]
        assert values.std() > 0.1
        # The same completion without the tool's tokens: the reward of a turn is at its last token.
        rewards, before = [], 0.0
        for turn, score in zip(runs(batch["old_values"][row], mask[row]), scores, strict=True):
            rewards += [0.0] * (len(turn) - 1) + [score - before]
            before = score
        rewards = torch.tensor([rewards]) - penalty[row][mask[row]]
        advantages = generalized_advantages(rewards, values[None], torch.ones_like(rewards).bool(), 0.9, 0.8)
        torch.testing.assert_close(batch["advantages"][row][mask[row]], advantages[0])
        torch.testing.assert_close(batch["returns"][row][mask[row]], advantages[0] + values)
    assert not batch["advantages"][~mask].any() and not batch["old_values"][~mask].any()
    metrics = trainer._metrics["train"]
    assert metrics["value/mean"] == [pytest.approx(batch["old_values"][mask].mean().item())]
    assert metrics["reward_parts/kl"] == [pytest.approx(-penalty[mask].sum().item() / 2, rel=1e-4)]


def test_ppo_whitens_and_rewards_the_policys_tokens_alone(tmp_path):
    trainer = make_trainer(tmp_path, PPO, whiten_advantages=True, funcs=[lambda prompts, **_: [1.0] * len(prompts)])
    # The last token of the first completion is a tool's: the budget ends with the tool's result.
    trainer.max_completion_length = _length_until_result(trainer)
    batch = rollout(trainer, A, B)
    mask = loss_mask(batch).bool()
    assert batch["tool_mask"][0, -1] == 0
    own = batch["advantages"][mask]
    assert own.mean().abs() < 1e-5 and own.std() == pytest.approx(1.0, abs=1e-4)
    assert not batch["advantages"][~mask].any()
    # The outcome is at the last own token: with lambda = 1, all tokens of the first completion have the same return.
    assert batch["returns"][0][mask[0]].unique().tolist() == [pytest.approx(1.4)]


def _length_until_result(trainer):
    """Length of the completion A up to the end of the tool's result."""
    tokenizer = trainer._tokenizer
    suffix = trainer._get_tool_suffix_ids([{"role": "tool", "name": "add", "content": "4"}])
    return len(tokenizer.encode(A[0] + "<|im_end|>", add_special_tokens=False)) + len(suffix)


def test_wider_batches_do_not_change_advantages(tmp_path):
    narrow = rollout(make_trainer(tmp_path), A, B)
    wide = rollout(make_trainer(tmp_path), A, B, [ADD_2_2, "word " * 60 + "3"], ["Seven 7"])
    length = narrow["advantages"].shape[1]
    assert wide["advantages"].shape[1] > length
    torch.testing.assert_close(wide["advantages"][:2, :length], narrow["advantages"])
    assert not wide["advantages"][:2, length:].any()


MALFORMED = '<tool_call>\n{"name": "add", "arguments"\n</tool_call>'
TWO_CALLS = f"{ADD_2_2}\n{ADD_2_2.replace('2}', '5}')}"
UNKNOWN = ADD_2_2.replace("add", "subtract")


@pytest.mark.parametrize(
    ("script", "steps"),
    [
        ([TWO_CALLS, "So 8"], [TWO_CALLS, f"{RESULT_4}\n{RESULT_4.replace('4', '7')}\nSo 8"]),
        ([ADD_2_2, ADD_2_2, "So 8"], [ADD_2_2, f"{RESULT_4}\n{ADD_2_2}", f"{RESULT_4}\nSo 8"]),
        ([MALFORMED], [MALFORMED]),
        ([UNKNOWN, "7"], [UNKNOWN, "<tool_response>\n{'error': 'Tool subtract not found.'}\n</tool_response>\n7"]),
        (["I add. 4..."], ["I add. 4"]),
        (["I add. 4 <tool_call>\n{..."], ["I add. 4 <tool_call>\n{"]),
        ([ADD_2_2, "So..."], [ADD_2_2, f"{RESULT_4}\nSo"]),
        ([ADD_2_2, ""], [ADD_2_2, RESULT_4]),
    ],
    ids=["parallel", "two calls", "malformed", "unknown", "truncated", "truncated call", "truncated turn", "empty"],
)
def test_every_turn_is_a_step_with_its_own_tokens(tmp_path, script, steps):
    trainer = make_trainer(tmp_path, scorer=FakeScorer(by_text, PRMFormat()), credit="sum", gamma=0.0)
    batch = rollout(trainer, script, B)
    assert read_steps(trainer) == [steps, B]
    turns = runs(batch["advantages"][0], loss_mask(batch)[0])
    mean = sum(map(by_text, [*steps, *B])) / (len(steps) + 1)
    assert len(turns) == len(steps)
    for step, turn in zip(steps, turns, strict=True):
        assert turn == pytest.approx([by_text(step) - mean] * len(turn), abs=1e-6)


def test_tools_may_be_asynchronous(tmp_path):
    async def add(a: int, b: int) -> int:
        """
        Adds two numbers.

        Args:
            a: The first number.
            b: The second number.
        """
        return a + b

    trainer = make_trainer(tmp_path, tools=[add])
    rollout(trainer, A, B)
    assert read_steps(trainer) == [STEPS_A, B]


def test_an_empty_completion_is_unscorable_and_counted(tmp_path):
    trainer = make_trainer(tmp_path)
    batch = rollout(trainer, [""], B)
    assert not batch["advantages"].any()
    assert trainer._metrics["train"]["steps/unscorable_share"] == [0.5]


@pytest.mark.parametrize("limit", ["iterations", "length", "result", "last turn"])
def test_a_conversation_that_stops_after_a_call_keeps_its_turn(tmp_path, limit):
    trainer = make_trainer(tmp_path, **({"max_tool_calling_iterations": 1} if limit == "iterations" else {}))
    script, steps = A, STEPS_A[:1]
    if limit == "iterations":
        script, steps = [*A[:1], ADD_2_2, "So 8"], [STEPS_A[0], f"{RESULT_4}\n{ADD_2_2}"]
    elif limit == "length":  # the result does not fit, so that TRL leaves it out
        trainer.max_completion_length = _length_until_result(trainer) - 1
    elif limit == "result":  # only the result fits, so that the last message is the tool's
        trainer.max_completion_length = _length_until_result(trainer)
    else:  # one token of the last turn fits
        trainer.max_completion_length = _length_until_result(trainer) + 1
        steps = [STEPS_A[0], f"{RESULT_4}\nS"]
        trainer.step_reward.scorer.backend.function = by_text
    batch = rollout(trainer, script, B)
    assert read_steps(trainer) == [steps, B]
    assert len(runs(batch["advantages"][0], loss_mask(batch)[0])) == len(steps)
    assert trainer._metrics["train"]["steps/unscorable_share"] == [0.0]


def test_truncated_completions_may_be_masked(tmp_path):
    for classes in (GRPO, PPO):
        trainer = make_trainer(tmp_path, classes, mask_truncated_completions=True)
        batch = rollout(trainer, [A[0], "So 8..."], B)
        assert not batch["advantages"][0].any() and batch["advantages"][1].any()
        assert torch.isfinite(trainer._compute_loss(trainer.model, batch))


def two_turns(env_mask=True, tail=False):
    """A `rollout_func` without tools: the first completion of each prompt has a message of an environment inside."""

    def rollout_func(prompts, trainer):
        encode = trainer._tokenizer.encode
        first, seen, second = encode("left 4<|im_end|>"), encode("\n<wall>\n"), encode("right 8<|im_end|>")
        whole = [first + seen + second + seen * tail, encode("stay 2<|im_end|>")]
        masks = [[1] * len(first) + [0] * len(seen) + [1] * len(second) + [0] * len(seen) * tail, [1] * len(whole[1])]
        output = {
            "prompt_ids": [encode("go")] * len(prompts),
            "completion_ids": whole,
            "logprobs": None,
            "speed": [1, 2],
        }
        return {**output, "env_mask": masks} if env_mask else output

    return rollout_func


@both_trainers
@pytest.mark.parametrize("conversational", [True, False])
@pytest.mark.parametrize("tail", [False, True])
def test_the_env_mask_of_a_rollout_func_separates_turns(tmp_path, classes, conversational, tail):
    trainer = make_trainer(tmp_path, classes, rollout_func=two_turns(tail=tail))
    prompt = [{"role": "user", "content": "go"}] if conversational else "go"
    batch = rollout(trainer, rows=[{"prompt": prompt}] * 2)
    assert read_steps(trainer) == [["left 4", "<wall>\nright 8"], ["stay 2"]]
    expected = OUTCOME["difference"] if classes is GRPO else ([0.8, 0.4], [0.2])
    for row, advantages in enumerate(expected):
        turns = runs(batch["advantages"][row], loss_mask(batch)[row])
        assert [turn[0] for turn in turns] == pytest.approx(advantages, abs=1e-6)
        assert all(len(set(turn)) == 1 for turn in turns)
    assert not batch["advantages"][loss_mask(batch) == 0].any()


def test_a_rollout_func_without_env_mask_has_steps_of_text(tmp_path):
    scorer = FakeScorer(by_text, PRMFormat())
    trainer = make_trainer(tmp_path, scorer=scorer, rollout_func=two_turns(env_mask=False))
    assert "tool_mask" not in rollout(trainer, rows=[{"prompt": "go"}] * 2)
    assert read_steps(trainer) == [["left 4", "<wall>", "right 8"], ["stay 2"]]


def test_the_env_mask_must_fit_the_completions(tmp_path):
    rows, ids = [{"prompt": "go"}], [[1, 2, 3]]
    assert with_tool_masks("Trainer", rows, ids, None) is rows
    assert with_tool_masks("Trainer", rows, ids, [torch.tensor([True, False, True])]) == [
        {"prompt": "go", "tool_mask": [1, 0, 1]}
    ]
    with pytest.raises(ValueError, match=r"env_mask\[0\] for Trainer: got 2 values for a completion of 3 tokens"):
        with_tool_masks("Trainer", rows, ids, [[1, 0]])
    with pytest.raises(ValueError, match="got 2 masks for 1 completions"):
        with_tool_masks("Trainer", rows, ids, [[1, 0, 1]] * 2)


class Counter:
    """An environment with its own reward: whether the counter is at 3."""

    def reset(self, start=0, **_):
        self.count = start
        return f" The counter is at {start}."

    def increase(self, by: int) -> int:
        """
        Increases the counter.

        Args:
            by: The increase.
        """
        self.count += by
        return self.count

    def get_reward(self):
        return float(self.count == 3)


INCREASE = '<tool_call>\n{"name": "increase", "arguments": {"by": 2}}\n</tool_call>'


@both_trainers
def test_an_environment_gives_the_outcome(tmp_path, classes):
    trainer = make_trainer(tmp_path, classes, environment_factory=Counter)
    assert trainer.outcome_weight == 1.0
    batch = rollout(trainer, [INCREASE, "Done 8"], B, start=[1, 1])
    questions, steps = trainer.step_reward.scorer.backend.calls[-1]
    assert questions == ["What is 2 + 2? The counter is at 1."] * 2
    assert steps[0] == [INCREASE, "<tool_response>\n3\n</tool_response>\nDone 8"]
    assert trainer._metrics["train"]["reward_parts/outcome"] == [0.5]
    turns = runs(batch["advantages"][0], loss_mask(batch)[0])
    # The outcomes 1 and 0 are centred to 0.5 and -0.5 in GRPO, and in PPO the reward of the last token.
    expected = [0.8, 0.9] if classes is GRPO else [1.8, 1.4]
    assert [turn[0] for turn in turns] == pytest.approx(expected, abs=1e-6)


def test_the_question_with_an_environment_begins_with_the_bare_question(tmp_path):
    trainer = make_trainer(tmp_path, environment_factory=Counter)
    prompt = [{"role": "user", "content": "Answer briefly. What is 2 + 2?"}]
    rollout(trainer, B, B, rows=[{"prompt": prompt, "question": "What is 2 + 2?", "start": 1}] * 2)
    assert trainer.step_reward.scorer.backend.calls[-1][0] == ["What is 2 + 2? The counter is at 1."]
    trainer.step_reward.question_column = "bare"
    rollout(trainer, B, B, rows=[{"prompt": prompt, "bare": "2 + 2?", "start": 1}] * 2)
    assert trainer.step_reward.scorer.backend.calls[-1][0] == ["2 + 2?"]


def test_an_environment_without_a_reward_is_no_outcome(tmp_path):
    class Silent(Counter):
        get_reward = None

    trainer = make_trainer(tmp_path, environment_factory=Silent)
    assert trainer.outcome_weight == 0.0
    with pytest.raises(ValueError, match="outcome_weight=1.0 without an outcome"):
        make_trainer(tmp_path, environment_factory=Silent, outcome_weight=1.0)


def test_an_environment_may_own_the_prompts(tmp_path):
    trainer_class, config_class = GRPO
    tokenizer = chat_tokenizer()
    trainer = trainer_class(
        tiny_llama(len(tokenizer), max_position_embeddings=2048),
        FakeScorer(last_digit, PRMFormat()),
        config_class(**settings(tmp_path, max_completion_length=300)),
        processing_class=tokenizer,
        environment_factory=Counter,
    )
    follow_scripts(trainer, [INCREASE, "Done 8"], B)
    trainer.train()
    assert trainer.state.log_history[0]["steps/per_answer"] == 1.5
    assert trainer.step_reward.scorer.backend.calls[-1][0] == [" The counter is at 0."] * 2


def test_several_environments_need_no_prompts(tmp_path):
    data = Dataset.from_dict({"environment": ["a", "b"] * 2, "start": [1, 0] * 2})
    trainer = make_trainer(tmp_path, environment_factory={"a": Counter, "b": Counter}, dataset=data)
    follow_scripts(trainer, [INCREASE, "Done 8"], B)
    trainer.train()
    assert trainer.state.log_history[0]["rewards/Counter/mean"] in (0.0, 0.25, 0.5)


@both_trainers
def test_training_with_tools_logs_everything(tmp_path, classes):
    data = chats(4, answer=["8", "2", "8", "7"])
    trainer = make_trainer(tmp_path, classes, dataset=data)
    follow_scripts(trainer, A, B)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["steps/accuracy"] in (0.0, 0.25, 0.5) and logged["tools/call_frequency"] == 0.5
    assert logged["steps/per_answer"] == 1.5
    assert all(value is not None for value in logged.values())


def test_turns_in_trls_own_trainer(tmp_path):
    from trl import GRPOConfig

    tokenizer, scorer = chat_tokenizer(), FakeScorer(last_digit, PRMFormat())
    trainer = GRPOTrainer(
        tiny_llama(len(tokenizer), max_position_embeddings=2048),
        StepRewardFunction(scorer, steps_of="turns"),
        GRPOConfig(**settings(tmp_path, max_completion_length=300)),
        chats(4),
        processing_class=tokenizer,
        tools=[add],
    )
    follow_scripts(trainer, A, B)
    trainer.train()
    assert scorer.calls[-1][1] == [STEPS_A, B] * 2
    logged = trainer.state.log_history[0]
    assert logged["rewards/step_reward/mean"] == pytest.approx(0.3)  # min of 0.4 and 0.8, and 0.2
    assert "steps/tokens_per_step" not in logged  # not known without the mask of the tools' tokens


@pytest.mark.slow("starts two processes")
@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_two_processes_give_the_same_results_as_one(tmp_path, policy_path, name):
    # The four completions of a question are on both processes.
    folders = [str(tmp_path / "two"), str(tmp_path / "one")]
    errors, printed = launch_forked(
        train_with_tools, [(2, [name, policy_path, folders[0], 2]), (1, [name, policy_path, folders[1], 4])]
    )
    assert errors == [None, None], errors
    assert printed.count("world 2") == 2 and printed.count("world 1") == 1
    two, one = (json.loads((tmp_path / folder / "logs.json").read_text()) for folder in ("two", "one"))
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys() and first["steps/per_answer"] == 2.0  # 2, 1, 3 and 2 turns
        for metric, value in first.items():
            assert second[metric] == pytest.approx(value, abs=1e-4, rel=1e-4), metric
    weights = [load_file(tmp_path / folder / "model.safetensors") for folder in ("two", "one")]
    start = load_file(f"{policy_path}/model.safetensors")
    assert any((weights[1][key] - start[key]).abs().max() > 1e-3 for key in start)
    for key, weight in weights[1].items():
        torch.testing.assert_close(weights[0][key], weight, atol=1e-4, rtol=1e-4)


@pytest.mark.slow("trains several times")
@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_a_run_resumed_in_the_middle_of_a_generation_equals_the_uninterrupted_run(tmp_path, policy_path, name):
    options = {"environment": False, "max_steps": 3, "steps_per_generation": 2, "per_device_train_batch_size": 4}
    saving = {"save_strategy": "steps", "save_steps": 1}
    straight = trainer_with_tools(name, policy_path, tmp_path / "run", **options, **saving)
    straight.train()
    resumed = trainer_with_tools(name, policy_path, tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    for key, weight in resumed.model.state_dict().items():
        assert torch.equal(weight, straight.model.state_dict()[key]), key
    for log, expected in zip(resumed.state.log_history[1:3], straight.state.log_history[1:3], strict=True):
        assert log["loss"] == expected["loss"] and log["entropy"] == expected["entropy"]
