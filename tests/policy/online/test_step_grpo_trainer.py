"""Step GRPO: advantages worked by hand, agreement with TRL's trainer, and canaries for changes in TRL."""

import dataclasses
import math

import pytest
import torch
from datasets import Dataset
from step_fakes import (
    DIAL_FORMAT,
    FakeScorer,
    by_last_number,
    by_text,
    encode,
    generate_fixed,
    questions,
    save_tiny,
    settings,
    tiny_llama,
    word_level,
)
from trl import GRPOConfig, GRPOTrainer

from erprm_trl import dial
from erprm_trl.functional import step_rewards
from erprm_trl.policy.answer_reward import AnswerReward
from erprm_trl.policy.online import step_trainer
from erprm_trl.policy.online.step_config import StepGRPOConfig, StepPPOConfig
from erprm_trl.policy.online.step_grpo_trainer import StepGRPOTrainer
from erprm_trl.policy.reward_function import StepRewardFunction


# The running example, a group of two. A = "4 ки | 8 </s>": steps of two tokens, scores 0.4 and 0.8.
# B = "2 </s>": one step, score 0.2, two tokens and two of padding.
A, B = "4 ки 8 </s>", "2 </s>"
# The advantage of a step is the sum of the rewards from it on, which are only centred. There is no KL.
PLAIN = {"scale_rewards": "none", "aggregation": "last", "gamma": 1.0}


def make_trainer(folder, *, scorer=None, dataset=None, funcs=(), tokenizer=None, model=None, **others):
    tokenizer = tokenizer or word_level()
    beta = {} if "eta" in others else {"beta": 0.0}
    return StepGRPOTrainer(
        model or tiny_llama(len(tokenizer)),
        [scorer or FakeScorer(by_last_number), *funcs],
        args=StepGRPOConfig(**settings(folder, **{**PLAIN, **beta, **others})),
        train_dataset=dataset if dataset is not None else questions(4),
        processing_class=tokenizer,
    )


def rollout(trainer, texts, **columns):
    """TRL's batch for fixed completions, two per question."""
    generate_fixed(trainer, encode(trainer.processing_class, *texts))
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    rows = [{"prompt": f"Tom dial {index // 2}"} for index in range(len(texts))]
    for name, values in columns.items():
        rows = [{**row, name: value} for row, value in zip(rows, values, strict=True)]
    return trainer._generate_and_score_completions(rows)


def watch_steps(trainer):
    """Keeps the steps from which the trainer computes its advantages."""
    seen, set_advantages = [], trainer._set_advantages

    def watching(output, steps):
        seen.append(steps)
        set_advantages(output, steps)

    trainer._set_advantages = watching
    return seen


def of_tokens(batch):
    """The advantages of the tokens. With the credit outcome, TRL's batch has one advantage per completion."""
    advantages, mask = batch["advantages"], batch["completion_mask"]
    return advantages if advantages.dim() == 2 else advantages[:, None] * mask


def check(advantages, expected):
    torch.testing.assert_close(advantages, torch.tensor(expected), atol=2e-6, rtol=0)


def outcome_reward(completions, **columns):
    """1 for the first completion of each pair, 0 for the second."""
    return [float(index % 2 == 0) for index in range(len(completions))]


# A group's mean is over its steps, an advantage is the sum from its step on, and scale "none" divides nothing.
BY_HAND = {
    # v_0 = (0.8 + 0.2) / 2 = 0.5. The rewards are -0.1, 0.4 for A and -0.3 for B, with mean 0. A: 0.3, 0.4.
    "difference": [[0.3, 0.3, 0.4, 0.4], [-0.3, -0.3, 0, 0]],
    # The mean of 0.4, 0.8, 0.2 is 7/15. Centred: -1/15, 1/3 for A and -4/15 for B. A: 4/15, 1/3.
    "sum": [[4 / 15, 4 / 15, 1 / 3, 1 / 3], [-4 / 15, -4 / 15, 0, 0]],
    # Solution scores 0.8 and 0.2 with mean 0.5.
    "outcome": [[0.3, 0.3, 0.3, 0.3], [-0.3, -0.3, 0, 0]],
}


@pytest.mark.parametrize("credit", BY_HAND)
def test_advantages_worked_by_hand(tmp_path, credit):
    output = rollout(make_trainer(tmp_path, credit=credit), [A, B])
    check(of_tokens(output), BY_HAND[credit])
    assert output["completion_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_gamma_discounts_the_rewards_of_later_steps(tmp_path, gamma):
    # Rewards -0.1 and 0.4 for A, -0.3 for B, mean 0. The advantage of A's first step is -0.1 + 0.4 gamma.
    output = rollout(make_trainer(tmp_path, gamma=gamma), [A, B])
    check(output["advantages"], [[-0.1 + 0.4 * gamma] * 2 + [0.4] * 2, [-0.3, -0.3, 0, 0]])


def test_advantages_of_min_form_worked_by_hand(tmp_path):
    # Softmax of -4, -8: 1 / (1 + e^-4) and the rest. A's rewards are 0.4 and 0.8 times these, and B's is 0.2.
    first = 1 / (1 + math.exp(-4))
    paid = [0.4 * first, 0.8 * (1 - first), 0.2]
    mean = sum(paid) / 3
    rest = [value - mean for value in paid]
    expected = [[rest[0] + rest[1]] * 2 + [rest[1]] * 2, [rest[2]] * 2 + [0, 0]]
    output = rollout(make_trainer(tmp_path, credit="min_form", score_temperature=0.1), [A, B])
    check(output["advantages"], expected)


def test_the_reward_models_own_aggregation_is_the_default(tmp_path):
    # "min": A's prefixes have values 0.4, 0.4, and v_0 = (0.4 + 0.2) / 2 = 0.3. Rewards: 0.1, 0 and for B -0.1.
    check(
        rollout(make_trainer(tmp_path, aggregation=None), [A, B])["advantages"],
        [[0.1, 0.1, 0, 0], [-0.1, -0.1, 0, 0]],
    )
    reward = StepRewardFunction(FakeScorer(by_last_number), aggregation="product")
    # 0.4, 0.32; v_0 = 0.26; 0.14, -0.08 and -0.06.
    check(
        rollout(make_trainer(tmp_path, scorer=reward, aggregation=None), [A, B])["advantages"],
        [[0.06, 0.06, -0.08, -0.08], [-0.06, -0.06, 0, 0]],
    )


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_scaled_advantages_worked_by_hand(tmp_path, scale):
    # First group as above: -0.1, 0.4, -0.3 with standard deviation sqrt((0.01 + 0.16 + 0.09) / 2).
    # Second group "6 </s>", "6 ки 6": v_0 = 0.6 and all rewards are 0. The batch's standard deviation is over
    # six rewards with mean 0 and a sum of squares of 0.26, so it is sqrt(0.26 / 5).
    std = {"group": math.sqrt(0.26 / 2), "batch": math.sqrt(0.26 / 5)}[scale] + 1e-4
    output = rollout(make_trainer(tmp_path, scale_rewards=scale), [A, B, "6 </s>", "6 ки 6"])
    check(
        output["advantages"],
        [[0.3 / std] * 2 + [0.4 / std] * 2, [-0.3 / std] * 2 + [0, 0], [0] * 4, [0] * 4],
    )


@pytest.mark.parametrize("credit", BY_HAND)
def test_the_outcome_is_added_to_every_token(tmp_path, credit):
    # Outcomes 1 and 0 with mean 0.5 and weight 0.5: 0.25 more for A, 0.25 less for B.
    trainer = make_trainer(tmp_path, credit=credit, funcs=[outcome_reward], outcome_weight=0.5)
    (a, b) = BY_HAND[credit]
    expected = [[value + 0.25 for value in a], [b[0] - 0.25, b[1] - 0.25, 0, 0]]
    check(of_tokens(rollout(trainer, [A, B])), expected)


def second_is_right(completions, **columns):
    """0 for the first completion of each pair, 1 for the second."""
    return [float(index % 2) for index in range(len(completions))]


def test_step_rewards_of_wrong_solutions_are_centered(tmp_path):
    # A is wrong, so its rewards 0.4 and 0.8 become -0.2 and 0.2. B keeps 0.2. Minus their mean 1/15: -4/15, 2/15 and
    # 2/15. A's sums are -2/15 and 2/15. The outcomes add -0.5 to A and 0.5 to B.
    trainer = make_trainer(tmp_path, credit="sum", center="outcome", funcs=[second_is_right])
    a, b = -2 / 15 - 0.5, 2 / 15 - 0.5
    check(rollout(trainer, [A, B])["advantages"], [[a, a, b, b], [2 / 15 + 0.5, 2 / 15 + 0.5, 0, 0]])
    # With the credit outcome, A's score 0.8 becomes 0, and B's stays 0.2: -0.1 and 0.1.
    trainer = make_trainer(tmp_path, credit="outcome", center="outcome", funcs=[second_is_right])
    check(rollout(trainer, [A, B])["advantages"], [-0.6, 0.6])


def test_the_graded_answer_decides_which_solutions_are_centered(tmp_path):
    # "8" is right for A. Another reward function prefers B, but B's answer is wrong, so B's 0.2 becomes 0.
    # Rewards 0.4, 0.8 and 0 with mean 0.4: 0, 0.4 and -0.4. A's sums are 0.4 and 0.4.
    answer = AnswerReward("answer", "exact", r"(\d+)$")
    trainer = make_trainer(
        tmp_path,
        credit="sum",
        center="outcome",
        funcs=[answer, second_is_right],
        outcome_weight=0.0,
        dataset=questions(4).add_column("answer", ["8"] * 4),
    )
    output = rollout(trainer, [A, B], answer=["8", "8"])
    check(output["advantages"], [[0.4] * 4, [-0.4, -0.4, 0, 0]])


def test_centering_needs_an_outcome(tmp_path):
    with pytest.raises(ValueError, match="got center='outcome' without an outcome, expected a column 'answer'"):
        make_trainer(tmp_path, center="outcome")


def test_reward_weights_apply_to_all_reward_functions(tmp_path):
    # 2 * (1, 0) + 3 * (0.1, 0.1), and None does not count. Centred: +-1, plus 9 times the steps' advantages.
    def constant(completions, **columns):
        return [0.1] * len(completions)

    def silent(completions, **columns):
        return [None] * len(completions)

    trainer = make_trainer(tmp_path, funcs=[outcome_reward, constant, silent], reward_weights=[9.0, 2.0, 3.0, 5.0])
    assert trainer.outcome_weight == 1.0
    a, b = BY_HAND["difference"]
    seen = watch_steps(trainer)
    expected = [[9 * value + 1 for value in a], [9 * b[0] - 1, 9 * b[1] - 1, 0, 0]]
    check(rollout(trainer, [A, B])["advantages"], expected)
    (steps,) = seen
    torch.testing.assert_close(steps.outcomes, torch.tensor([2.3, 0.3]))


@pytest.mark.parametrize("credit", ["difference", "outcome"])
def test_step_rewards_are_computed_once_for_each_batch_of_generations(tmp_path, credit, monkeypatch):
    trainer, calls = make_trainer(tmp_path, credit=credit), []

    def counting(*args, **kwargs):
        calls.append(step_rewards(*args, **kwargs))
        return calls[-1]

    monkeypatch.setattr(step_trainer, "step_rewards", counting)
    rollout(trainer, [A, B])
    assert len(calls) == 1
    # Starting from 0, A has 0.8 at its end and B 0.2, on average 0.5.
    assert trainer._metrics["train"]["reward_parts/step"] == [pytest.approx(0.5)]


def test_two_trainers_may_share_a_reward_function(tmp_path):
    reward = StepRewardFunction(FakeScorer(by_last_number))
    first, second = (make_trainer(tmp_path, scorer=reward) for _ in range(2))
    for trainer in (first, second, first):
        reward(["q"] * 3, ["4", "8", "2"])  # a call outside the trainer has no effect
        check(rollout(trainer, [A, B])["advantages"], BY_HAND["difference"])


def test_a_replaced_reward_function_is_an_error(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.reward_funcs = [lambda prompts, **columns: [0.5] * len(prompts)]
    with pytest.raises(RuntimeError, match="got no batch, expected a batch of 2 completions"):
        rollout(trainer, [A, B])


def test_the_error_for_a_wrong_number_of_weights_counts_the_callers_functions(tmp_path):
    with pytest.raises(ValueError, match="reward_weights: got 3 weights, expected 1, one per .*more for the graded"):
        data = questions(4).add_column("answer", ["4"] * 4)
        make_trainer(tmp_path, dataset=data, reward_weights=[1.0, 2.0, 3.0])


def test_the_step_reward_may_have_any_place_in_the_list(tmp_path):
    tokenizer = word_level()
    trainer = StepGRPOTrainer(
        tiny_llama(len(tokenizer)),
        [outcome_reward, FakeScorer(by_last_number)],
        args=StepGRPOConfig(**settings(tmp_path, **PLAIN, reward_weights=[0.5, 9.0])),
        train_dataset=questions(4),
        processing_class=tokenizer,
    )
    a, b = BY_HAND["difference"]
    expected = [[9 * value + 0.25 for value in a], [9 * b[0] - 0.25, 9 * b[1] - 0.25, 0, 0]]
    check(rollout(trainer, [A, B])["advantages"], expected)
    # Step rewards before normalisation, from 0: 9 * 0.8 and 9 * 0.2, on average 4.5
    assert trainer._metrics["train"]["reward_parts/step"] == [pytest.approx(4.5)]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_the_weight_of_the_reward_model_multiplies_normalised_step_rewards(tmp_path, scale):
    def advantages(weights):
        return rollout(
            make_trainer(tmp_path, funcs=[outcome_reward], reward_weights=weights, scale_rewards=scale), [A, B]
        )["advantages"]

    steps, outcome = advantages([1.0, 0.0]), advantages([0.0, 1.0])
    assert steps.abs().max() > 0 and outcome.abs().max() > 0
    torch.testing.assert_close(advantages([2.0, 1.0]), 2 * steps + outcome)
    torch.testing.assert_close(advantages(None), steps + outcome)


def test_padding_does_not_affect_advantages(tmp_path):
    # The pad id 0 is also sampled inside A, where it counts as a token of its step. B's padding does not count.
    trainer = make_trainer(tmp_path)
    seen = watch_steps(trainer)
    with_pad = rollout(trainer, ["4 <pad> ки 8 </s>", "2 <pad> </s>"])
    check(with_pad["advantages"], [[0.3, 0.3, 0.3, 0.4, 0.4], [-0.3, -0.3, -0.3, 0, 0]])
    assert with_pad["completion_mask"].sum(-1).tolist() == [5, 3]
    # Values under the mask of the scores, and after a row's last step, are never read.
    (steps,) = seen
    garbage = steps.scores.masked_fill(~steps.mask, 1e9)
    ends = steps.token_ends.masked_fill(~steps.mask[steps.local], 1)
    again = {"completion_mask": with_pad["completion_mask"]}
    trainer._set_advantages(again, dataclasses.replace(steps, scores=garbage, token_ends=ends))
    torch.testing.assert_close(again["advantages"], with_pad["advantages"])


def test_wider_batches_do_not_change_advantages(tmp_path):
    # A second group makes the batch wider in steps and in tokens.
    wide = rollout(make_trainer(tmp_path), [A, B, "1 ки 1 ки 1 ки 1 ки 1 </s>", "1 </s>"])
    check(wide["advantages"][:2, :4], BY_HAND["difference"])
    assert wide["advantages"][:2, 4:].abs().max() == 0


def test_end_token_that_is_also_the_padding(tmp_path):
    tokenizer = word_level()
    tokenizer.pad_token = tokenizer.eos_token
    output = rollout(make_trainer(tmp_path, tokenizer=tokenizer), [A, B])
    assert output["completion_ids"][1].tolist()[1:] == [2, 2, 2]
    check(output["advantages"], BY_HAND["difference"])


def test_truncated_completions_and_completions_without_separators_are_scored(tmp_path):
    # "5 + 3" is one step of 0.3. "4 ки 8 ки" ends with its separator, without an end token: steps 0.4, 0.8.
    # v_0 = 0.55: rewards -0.25 and -0.15, 0.4 with mean 0. The second row has 0.25, 0.4.
    output = rollout(make_trainer(tmp_path), ["5 + 3 </s>", "4 ки 8 ки"])
    check(output["advantages"], [[-0.25] * 4, [0.25, 0.25, 0.4, 0.4]])


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
@pytest.mark.parametrize("credit", ["difference", "min_form", "sum", "outcome"])
def test_unscorable_completions_have_no_advantage(tmp_path, credit, scale):
    # The whole first group and one completion of the second group, whose other completion has no comparison.
    trainer = make_trainer(tmp_path, credit=credit, scale_rewards=scale)
    output = rollout(trainer, ["</s>", "ки </s>", "</s>", "7 </s>"])
    check(of_tokens(output), [[0.0, 0.0]] * 4)
    loss = trainer._compute_loss(trainer.model, output)
    loss.backward()
    assert loss.item() == 0
    assert all(weight.grad is None or weight.grad.abs().max() == 0 for weight in trainer.model.parameters())


def test_an_unscorable_row_is_not_in_its_groups_mean(tmp_path):
    # A group of A, B, an empty text and "2": v_0 = (0.8 + 0.2 + 0.2) / 3 = 0.4. Rewards: A 0, 0.4, B and "2" -0.2.
    trainer = make_trainer(tmp_path, num_generations=4)
    output = rollout(trainer, [A, B, "</s>", B])
    check(output["advantages"], [[0.4] * 4, [-0.2, -0.2, 0, 0], [0] * 4, [-0.2, -0.2, 0, 0]])


def test_unscorable_completions_keep_the_outcomes_advantage(tmp_path):
    trainer = make_trainer(tmp_path, funcs=[outcome_reward])
    check(rollout(trainer, ["</s>", "</s>"])["advantages"], [[0.5], [-0.5]])


def test_only_some_rows_may_have_answers(tmp_path):
    rows = dial.make_questions(4, seed=5)
    dataset = Dataset.from_dict({"prompt": [row["question"] for row in rows], "answer": ["4", None, "4", None]})
    trainer = make_trainer(
        tmp_path, dataset=dataset, grading="exact", answer_pattern=r"(\d+)$", credit="outcome", outcome_weight=1.0
    )
    assert isinstance(trainer.answer_reward, AnswerReward)
    # First group: scores 0.4 and 0.2, right and wrong. Second group without an answer: 0.9 and 0.1.
    output = rollout(trainer, ["4 </s>", "2 </s>", "9 </s>", "1 </s>"], answer=["4", "4", None, None])
    check(output["advantages"], [0.6, -0.6, 0.4, -0.4])
    metrics = trainer._metrics["train"]
    assert metrics["steps/accuracy"] == [0.5]
    assert metrics["steps/agreement"] == [1.0]  # the only graded pair is in the right order


def test_agreement_uses_only_rows_with_a_score_and_an_answer(tmp_path):
    answered = questions(4, answer=["4"] * 4)
    options = {"grading": "exact", "answer_pattern": r"(\d+)$", "outcome_weight": 1.0, "num_generations": 4}
    trainer = make_trainer(tmp_path, dataset=answered, **options)
    # Right with 0.4, wrong with 0.2 and 0.9. The second has no step and no score. One of two pairs is in order.
    rollout(trainer, ["4 </s>", "</s>", "2 </s>", "9 </s>"], answer=["4"] * 4)
    assert trainer._metrics["train"]["steps/accuracy"] == [0.25]
    assert trainer._metrics["train"]["steps/agreement"] == [0.5]


def test_a_row_without_an_outcome_is_not_in_its_groups_mean(tmp_path):
    def sometimes(completions, **columns):
        return [1.0, None, 0.0, 0.5]

    # All steps have the same score: v_0 = 0.5, rewards 0. Outcomes 1, 0, 0.5 have the mean 0.5.
    trainer = make_trainer(tmp_path, num_generations=4, funcs=[sometimes])
    check(rollout(trainer, ["5 </s>"] * 4)["advantages"], [[0.5] * 2, [0.0] * 2, [-0.5] * 2, [0.0] * 2])


def test_the_outcome_weight_defaults_to_one_if_there_is_an_outcome(tmp_path):
    answered = questions(4, answer=["4"] * 4)
    assert make_trainer(tmp_path).outcome_weight == 0.0
    assert make_trainer(tmp_path, funcs=[outcome_reward]).outcome_weight == 1.0
    trainer = make_trainer(tmp_path, dataset=answered, reward_weights=[2.0])
    assert trainer.outcome_weight == 1.0 and trainer.reward_weights.tolist() == [2.0, 1.0]
    assert make_trainer(tmp_path, dataset=answered, outcome_weight=0.0).outcome_weight == 0.0
    trainer = make_trainer(tmp_path, dataset=answered, funcs=[AnswerReward(grading="exact")])
    assert len(trainer.reward_funcs) == 2  # answers are not graded twice


def test_an_outcome_weight_of_zero_grades_and_logs_without_training(tmp_path):
    trainer = make_trainer(
        tmp_path, dataset=questions(4, answer=["4"] * 4), outcome_weight=0.0, grading="exact", answer_pattern=r"(\d+)$"
    )
    output = rollout(trainer, [A, B], answer=["8", "8"])
    check(output["advantages"], BY_HAND["difference"])
    assert trainer._metrics["train"]["rewards/answer_reward/mean"] == [0.5]


def test_a_missing_column_is_an_error_with_fixes_that_work(tmp_path):
    data = questions(4, solution=["4"] * 4)
    message = r"StepGRPOTrainer: got answer_column='final', expected one of .* train_dataset \(prompt, solution\)"
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, dataset=data, answer_column="final")
    assert make_trainer(tmp_path, dataset=data, answer_column="solution").answer_reward is not None
    assert make_trainer(tmp_path, dataset=data).answer_reward is None
    with pytest.raises(ValueError, match=r"got question_column='problem', .* train_dataset \(prompt, solution\)"):
        make_trainer(tmp_path, dataset=data, question_column="problem")
    make_trainer(tmp_path, dataset=questions(4, problem=["q"] * 4), question_column="problem")
    with pytest.raises(ValueError, match="got answer_column='answer', expected one of the columns of train_dataset"):
        make_trainer(tmp_path, dataset=data, funcs=[AnswerReward()])
    make_trainer(tmp_path, dataset=data, funcs=[AnswerReward("solution")])


@pytest.mark.parametrize("evaluation", ["dataset", "datasets"])
def test_an_evaluation_needs_the_columns_of_the_training(tmp_path, evaluation):
    data = questions(4, problem=["q"] * 4, answer=["4"] * 4)

    def with_evaluation(other):
        return StepGRPOTrainer(
            tiny_llama(len(word_level())),
            FakeScorer(by_text),
            StepGRPOConfig(**settings(tmp_path, question_column="problem")),
            data,
            {"easy": data, "hard": other} if evaluation == "datasets" else other,
            processing_class=word_level(),
        )

    name = "hard" if evaluation == "datasets" else "eval_dataset"
    for column, argument in (("problem", "question_column"), ("answer", "answer_column")):
        with pytest.raises(ValueError, match=f"got {argument}='{column}', expected one of the columns of {name}"):
            with_evaluation(data.remove_columns([column]))
    assert with_evaluation(data).answer_reward is not None


def test_an_outcome_weight_without_an_outcome_is_an_error_with_fixes_that_work(tmp_path, caplog):
    data = questions(4, solution=["4"] * 4)
    with pytest.raises(
        ValueError, match="got outcome_weight=0.5 without an outcome, expected a column 'answer' .* prompt, solution"
    ):
        make_trainer(tmp_path, dataset=data, outcome_weight=0.5)
    trainer = make_trainer(tmp_path, dataset=data, outcome_weight=0.5, answer_column="solution")
    assert trainer.outcome_weight == 0.5 and trainer.answer_reward.answer_column == "solution"
    assert make_trainer(tmp_path, dataset=data, outcome_weight=0.5, funcs=[outcome_reward]).outcome_weight == 0.5
    assert "is not used" not in caplog.text
    assert make_trainer(tmp_path, dataset=data, outcome_weight=0.0).outcome_weight == 0.0
    assert "StepGRPOTrainer: the column 'solution' of the training dataset is not used. Set answer_col" in caplog.text


def test_an_unscorable_reward_is_refused(tmp_path):
    with pytest.raises(ValueError, match="StepGRPOTrainer: got a StepRewardFunction with unscorable_reward=0.0"):
        make_trainer(tmp_path, scorer=StepRewardFunction(FakeScorer(by_text), unscorable_reward=0.0))


def test_step_metrics_have_no_prefix_with_another_name_of_the_reward_function(tmp_path):
    # The guard and the tables of solutions read these names.
    trainer = make_trainer(tmp_path, scorer=StepRewardFunction(FakeScorer(by_last_number), name="prm"))
    rollout(trainer, [A, B])
    metrics = trainer._metrics["train"]
    assert metrics["steps/per_answer"] == [1.5] and metrics["rewards/prm/mean"] == [pytest.approx(0.3)]
    assert list(trainer._logs["extra"]["step_scores"]) == [[0.4, 0.8], [0.2]]


@pytest.mark.parametrize("answers", [False, True])
def test_columns_of_a_streaming_dataset_are_read_from_its_rows(tmp_path, answers):
    data = questions(4, answer=["8"] * 4).to_iterable_dataset()
    data = data.map(lambda row: {"other": 1}, remove_columns=[] if answers else ["answer"])
    assert data.column_names is None
    options = {"grading": "exact", "answer_pattern": r"(\d+)$", "max_steps": 2}
    trainer = make_trainer(tmp_path, dataset=data, **options)
    assert trainer.outcome_weight == float(answers)
    generate_fixed(trainer, encode(trainer.processing_class, A, B, A, B))
    trainer.train()
    assert trainer.state.log_history[0].get("steps/accuracy") == (0.5 if answers else None)


THINKING_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if not quick %}<think>{% endif %}"


@pytest.mark.parametrize(
    ("options", "reasoning"),
    [
        ({}, True),
        ({"chat_template_kwargs": {"quick": True}}, None),
        ({"reasoning": False}, False),
        ({"conversational": False}, None),
    ],
    ids=str,
)
def test_an_answer_inside_thinking_that_the_template_opens_is_wrong(tmp_path, options, reasoning):
    tokenizer = word_level()
    tokenizer.chat_template = THINKING_TEMPLATE
    prompt = [{"role": "user", "content": "Tom dial 3"}] if options.pop("conversational", True) else "Tom dial 3"
    data = Dataset.from_dict({"prompt": [prompt] * 4, "answer": ["8"] * 4})
    grading = {"grading": "exact", "answer_pattern": r"(\d+)$"}
    trainer = make_trainer(tmp_path, dataset=data, tokenizer=tokenizer, **grading, **options)
    assert trainer.answer_reward.grader.reasoning is reasoning
    assert trainer.answer_reward([prompt], ["4 ки 8"], answer=["8"]) == [0.0 if reasoning else 1.0]


def test_the_logged_advantage_is_the_mean_of_the_trained_advantages(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1, log_completions=True, credit="sum")
    generate_fixed(trainer, encode(trainer.processing_class, A, B, A, B))
    trainer.train()
    (file,) = (tmp_path / "completions").glob("*.parquet")
    table = Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))
    # A's four tokens have 4/15, 4/15, 1/3, 1/3, and B's two have -4/15. GRPO's own would be 0.3 and -0.3.
    assert table["advantage"] == [pytest.approx(value) for value in (3 / 10, -4 / 15) * 2]


def by_length(completions, **columns):
    """A reward between 0 and 1, and none for some completions."""
    return [None if len(text) % 7 == 0 else len(text) % 5 / 5 for text in completions]


WITH_OTHERS = {"funcs": [by_length], "reward_weights": [0.5, 2.0]}


@pytest.mark.slow("also trains with TRL's trainer")
@pytest.mark.parametrize(
    "options",
    [
        {"scale_rewards": "group"},
        {"scale_rewards": "batch"},
        {"scale_rewards": "none"},
        WITH_OTHERS,
        {**WITH_OTHERS, "scale_rewards": "batch", "reward_weights": None},
        {**WITH_OTHERS, "multi_objective_aggregation": "normalize_then_sum"},
        {**WITH_OTHERS, "loss_type": "vespo", "num_iterations": 2},
        {**WITH_OTHERS, "off_policy_mask_threshold": 1e-4, "num_iterations": 2},
        {**WITH_OTHERS, "mask_truncated_completions": True, "beta": 0.1},
    ],
    ids=lambda options: ",".join(f"{name}={value}" for name, value in options.items() if name != "funcs"),
)
def test_the_credit_outcome_equals_trls_own_grpo_bit_for_bit(tmp_path, options):
    options = {"scale_rewards": "group", "beta": 0.0, **options}  # our defaults differ
    funcs = options.pop("funcs", [])
    sizes = {"per_device_train_batch_size": 8, "num_generations": 4, "max_steps": 4, "beta": 0.0}

    def run(trainer_class, config_class, **others):
        tokenizer = word_level()
        save_tiny(tmp_path / "policy", tokenizer)  # the reference model is read from its folder
        trainer = trainer_class(
            str(tmp_path / "policy"),
            [StepRewardFunction(FakeScorer(by_text)), *funcs],
            args=config_class(**settings(tmp_path, **{**sizes, "scale_rewards": "group", **options, **others})),
            train_dataset=questions(8),  # one epoch, because our order of later epochs differs
            processing_class=tokenizer,
        )
        initial = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
        trainer.train()
        return trainer.state.log_history[:4], initial, trainer.model.state_dict()

    ours, initial, our_weights = run(StepGRPOTrainer, StepGRPOConfig, credit="outcome")
    theirs, _, their_weights = run(GRPOTrainer, GRPOConfig)
    # Metrics of steps are means over tensors here, and over Python numbers in TRL.
    timing = {"step_time", "reward_parts/step", "reward_parts/outcome", "reward_parts/kl"}
    for our_log, their_log in zip(ours, theirs, strict=True):
        shared = {key for key in their_log if key not in timing and not key.startswith("steps/")}
        assert {"loss", "grad_norm", "entropy"} <= shared <= our_log.keys()
        assert {key: our_log[key] for key in shared} == {key: their_log[key] for key in shared}
    # With two iterations, every second log is of a batch that was generated before.
    spreads = [log["reward_std"] for log in theirs if "reward_std" in log]
    assert len({log["grad_norm"] for log in ours}) == 4 and min(spreads) > 0.1 and len(spreads) >= 2
    assert all(torch.equal(weight, their_weights[name]) for name, weight in our_weights.items())
    assert max((weight - initial[name]).abs().max() for name, weight in our_weights.items()) > 1e-3


def test_the_outcome_weight_multiplies_the_other_weights_of_the_credit_outcome(tmp_path):
    # Rewards 2 * 0.8 + 0.5 * 3 * 1 = 3.1 and 2 * 0.2 = 0.4, with mean 1.75
    options = {"credit": "outcome", "funcs": [outcome_reward], "reward_weights": [2.0, 3.0], "outcome_weight": 0.5}
    trainer = make_trainer(tmp_path, **options)
    check(rollout(trainer, [A, B])["advantages"], [1.35, -1.35])
    assert trainer._metrics["train"]["reward"] == [pytest.approx(1.75)]
    assert trainer._metrics["train"]["reward_parts/step"] == [pytest.approx(1.0)]
    assert trainer._metrics["train"]["reward_parts/outcome"] == [pytest.approx(0.75)]


def test_the_aggregation_of_the_configuration_counts_with_the_credit_outcome(tmp_path):
    # The minimum of A is 0.4, although the reward function takes the last score, 0.8. "</s>" has no score.
    reward = StepRewardFunction(FakeScorer(by_last_number), aggregation="last")
    trainer = make_trainer(tmp_path, scorer=reward, credit="outcome", aggregation="min", num_generations=4)
    check(rollout(trainer, [A, B, "</s>", B])["advantages"], [0.4 - 0.8 / 3, 0.2 - 0.8 / 3, 0.0, 0.2 - 0.8 / 3])


def test_canary_trls_loss_takes_one_advantage_per_token(tmp_path):
    """If this fails, TRL no longer multiplies each token's ratio by its own advantage. See
    `StepTrainer._generate_and_score_completions`."""
    trainer = make_trainer(tmp_path)
    batch = rollout(trainer, [A, B])
    torch.manual_seed(0)
    batch["advantages"] = torch.randn(2, 4) * batch["completion_mask"]
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in trainer.model.named_parameters()}
    # At ratio 1, the DAPO loss is -sum(A) over the 6 tokens, and its gradient is the gradient of -sum(A log p) / 6.
    assert trainer.loss_type == "dapo"
    assert loss.item() == pytest.approx(-batch["advantages"].sum().item() / 6, abs=1e-6)

    reference = tiny_llama(len(trainer.processing_class))
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    logps = reference(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    logps = logps.gather(-1, ids[:, 1:, None]).squeeze(-1)[:, -4:]
    (-(batch["advantages"] * logps).sum() / 6).backward()
    for name, weight in reference.named_parameters():
        torch.testing.assert_close(gradients[name], weight.grad, atol=1e-6, rtol=1e-4)


def test_the_configurations_have_the_fields_of_trl_that_the_trainers_read():
    for config in (StepGRPOConfig, StepPPOConfig):
        assert {"steps_per_generation", "scale_rewards", "num_iterations"} <= {*config.__dataclass_fields__}


def test_canary_arguments_of_calculate_rewards(tmp_path, monkeypatch):
    """If this fails, TRL calls `_calculate_rewards` with other arguments. See `StepTrainer._calculate_rewards`."""
    trainer = make_trainer(tmp_path, funcs=[outcome_reward])
    calculate, seen = trainer._calculate_rewards, []

    def watched(inputs, prompts, completions, completion_ids_list):
        rewards = calculate(inputs, prompts, completions, completion_ids_list)
        seen.append((inputs, prompts, completions, completion_ids_list, rewards))
        return rewards

    monkeypatch.setattr(trainer, "_calculate_rewards", watched)
    rollout(trainer, [A, B], question=["one", "one"])
    ((inputs, prompts, completions, completion_ids_list, rewards),) = seen
    assert inputs == [{"prompt": "Tom dial 0", "question": "one"}] * 2
    assert prompts == ["Tom dial 0"] * 2
    assert completions == ["4 ки 8", "2"]
    assert completion_ids_list == encode(trainer.processing_class, A, B)  # end tokens kept, not padded
    torch.testing.assert_close(rewards, torch.tensor([[0.8, 1.0], [0.2, 0.0]]))  # (N, F)


@pytest.mark.slow("trains several times")
@pytest.mark.parametrize(
    "others",
    [
        {"gradient_accumulation_steps": 2},
        {"num_iterations": 2},
        {"steps_per_generation": 2},
        {"gradient_accumulation_steps": 2, "num_iterations": 2},
    ],
)
def test_rows_keep_their_advantages_through_shuffling_and_splitting(tmp_path, others):
    # Eight or four completions per generation. All steps have different scores.
    texts = ["1 ки 9", "3 </s>", "5 ки 2 ки 6", "8 ки 4 </s>", "7 ки 3", "2 </s>", "6 </s>", "9 ки 1 ки 5"]
    trainer = make_trainer(tmp_path, credit="sum", max_steps=4, **others)
    generate_fixed(trainer, encode(trainer.processing_class, *texts))
    rows, super_loss = [], trainer._compute_loss

    def compute_loss(model, inputs):
        rows.extend(zip(inputs["prompt_ids"], inputs["completion_ids"], inputs["advantages"], strict=True))
        return super_loss(model, inputs)

    trainer._compute_loss = compute_loss
    trainer.train()
    assert all(math.isfinite(log["grad_norm"]) for log in trainer.state.log_history[:-1])
    num_rows = 4 * 4 * others.get("gradient_accumulation_steps", 1)  # micro-batches of four, four updates
    assert len(rows) == num_rows
    # A step's advantage is the sum of its own and later scores, each minus the group's mean. It is recomputed here
    # from the row's tokens, with one mean for each pair of neighbours in the list.
    means = {}
    for first, second in zip(texts[::2], texts[1::2], strict=True):
        scores = [by_last_number(step) for text in (first, second) for step in text.replace("</s>", "").split("ки")]
        means[first] = means[second] = sum(scores) / len(scores)
    met = set()
    for _, ids, advantages in rows:
        text = trainer.processing_class.decode(ids[ids != 0])
        expected, paid = [], 0.0
        for word in reversed(text.split()):
            paid += by_last_number(word) - means[text] if word.isdigit() else 0.0
            expected.append(paid)
        # A separator belongs to the step before it, and the end token to the last step.
        tokens = text.split()
        expected = expected[::-1]
        for index, word in enumerate(tokens):
            if not word.isdigit():
                expected[index] = expected[index - 1]
        padding = [0.0] * (len(advantages) - len(tokens))
        check(advantages, expected + padding)
        met.add(text)
    assert len(met) == 4 * trainer.args.steps_per_generation


@pytest.mark.slow("trains twice")
def test_the_same_seed_gives_the_same_weights_bitwise(tmp_path):
    def run(name, seed):
        trainer = make_trainer(tmp_path / name, scorer=FakeScorer(by_text), seed=seed, shuffle_dataset=True)
        trainer.train()
        return torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])

    first = run("first", 3)
    torch.rand(7)  # the global random state must not matter
    assert torch.equal(run("again", 3), first)
    assert not torch.equal(run("other", 4), first)


def test_num_iterations_clips_with_an_advantage_per_token(tmp_path):
    # In the second pass over a batch, the policy differs from the one that sampled, so ratios and losses differ.
    trainer = make_trainer(tmp_path, num_iterations=2, max_steps=2, learning_rate=0.1)
    generate_fixed(trainer, encode(trainer.processing_class, A, B, "6 </s>", "1 ки 7"))
    trainer.train()
    first, second = trainer.state.log_history[:2]
    assert first["clip_ratio/region_mean"] == 0 < second["clip_ratio/region_mean"]


def test_defaults_of_credit(tmp_path):
    # The study of credits chose them: see docs/policies_measured.md.
    defaults = StepGRPOConfig(**settings(tmp_path))
    assert (defaults.credit, defaults.gamma, defaults.scale_rewards) == ("difference", 0.0, "batch")
    assert StepGRPOConfig(**settings(tmp_path, credit="min_form")).gamma == 1.0  # min_form is a sum over steps
    assert StepPPOConfig(**settings(tmp_path)).gamma == 1.0  # per token
    assert StepPPOConfig(**settings(tmp_path, gamma=0.5)).gamma == 0.5


def test_beta_defaults_to_a_tenth_on_step_scores_alone(tmp_path, caplog):
    tokenizer = word_level()
    path = save_tiny(tmp_path / "policy", tokenizer)

    def beta(funcs=(), args=None, model=path, **others):
        args = args or StepGRPOConfig(**settings(tmp_path, **others))
        reward = [FakeScorer(by_last_number), *funcs]
        trainer = StepGRPOTrainer(model, reward, args, questions(4), processing_class=tokenizer)
        assert (trainer.ref_model is None) == (trainer.beta == 0.0)
        return trainer.beta

    assert beta() == 0.1
    assert "learns from step scores alone. Therefore `beta` is 0.1, and a reference model is loaded" in caplog.text
    assert beta([outcome_reward]) == 0.0
    assert beta([outcome_reward], outcome_weight=0.0) == 0.1  # graded, but not trained on
    assert beta(beta=0.0) == 0.0
    assert beta(eta=4.0) == 0.25
    # The default is chosen again if a configuration is used again.
    args = StepGRPOConfig(**settings(tmp_path))
    assert [beta(args=args), beta([outcome_reward], args)] == [0.1, 0.0]
    # A GRPOConfig has TRL's default, which counts as not set.
    assert [beta(args=GRPOConfig(**settings(tmp_path, **given))) for given in ({}, {"beta": 0.02})] == [0.1, 0.02]
    with pytest.raises(TypeError, match="got args of type StepPPOConfig, expected StepGRPOConfig"):
        beta(args=StepPPOConfig(**settings(tmp_path)))
    # TRL loads the reference by the name of the model.
    assert beta(model=tiny_llama(len(tokenizer))) == 0.0
    assert "TRL cannot load a reference for a model without a name" in caplog.text


def test_beta_is_one_over_eta(tmp_path):
    assert StepGRPOConfig(**settings(tmp_path, eta=4.0)).beta == 0.25
    assert StepGRPOConfig(**settings(tmp_path, eta=4.0, beta=0.1)).beta == 0.1
    assert StepGRPOConfig(**settings(tmp_path, eta=4.0, beta=0.0)).beta == 0.0
    assert StepGRPOConfig(**settings(tmp_path)).beta == 0.0
    assert StepGRPOConfig(**settings(tmp_path, eta=math.inf)).beta == 0.0
    for eta in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="expected a positive number"):
            StepGRPOConfig(**settings(tmp_path, eta=eta))


def test_the_kl_of_beta_is_in_the_loss(tmp_path):
    save_tiny(tmp_path / "policy", word_level())
    trainer = make_trainer(tmp_path / "run", model=str(tmp_path / "policy"), eta=2.0)
    assert trainer.beta == 0.5 and trainer.ref_model is not None
    batch = rollout(trainer, [A, B])
    batch["advantages"] = torch.zeros_like(batch["advantages"])
    assert trainer._compute_loss(trainer.model, batch).item() == pytest.approx(
        0.0, abs=1e-7
    )  # the policy equals its reference
    batch["ref_per_token_logps"] = batch["ref_per_token_logps"] - 1.0
    # k3 at d = 1: e^-1 - 1 + 1 = e^-1.
    assert trainer._compute_loss(trainer.model, batch).item() == pytest.approx(0.5 * math.exp(-1), abs=1e-5)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"credit": "shapley"}, "credit: got 'shapley', expected one of difference"),
        ({"aggregation": "median"}, "aggregation: got 'median'"),
        ({"center": "group"}, "center: got 'group', expected 'outcome' or None"),
        ({"score_temperature": 0.0}, "score_temperature: got 0.0"),
        ({"outcome_weight": -1.0}, "outcome_weight: got -1.0"),
        ({"outcome_weight": math.inf}, "outcome_weight: got inf"),
    ],
)
def test_invalid_configurations_are_errors(tmp_path, others, message):
    with pytest.raises(ValueError, match=message):
        StepGRPOConfig(**settings(tmp_path, **others))


def test_exactly_one_process_reward_model_is_needed(tmp_path):
    tokenizer = word_level()
    for funcs, count in [
        ([], 0),
        (outcome_reward, 0),
        ([outcome_reward], 0),
        ([FakeScorer(by_text), StepRewardFunction(FakeScorer(by_text))], 2),
    ]:
        with pytest.raises(ValueError, match=f"StepGRPOTrainer: got {count} process reward models"):
            StepGRPOTrainer(
                tiny_llama(len(tokenizer)),
                funcs,
                args=StepGRPOConfig(**settings(tmp_path)),
                train_dataset=questions(4),
                processing_class=tokenizer,
            )


def test_a_reward_model_may_be_a_path(tmp_path):
    tokenizer = word_level()
    save_tiny(tmp_path / "prm", tokenizer)
    DIAL_FORMAT.save(tmp_path / "prm")
    trainer = StepGRPOTrainer(
        tiny_llama(len(tokenizer)),
        str(tmp_path / "prm"),
        args=StepGRPOConfig(**settings(tmp_path / "run", aggregation="mean", question_column="problem")),
        train_dataset=questions(4, problem=["q"] * 4),
        processing_class=tokenizer,
    )
    assert isinstance(trainer.step_reward, StepRewardFunction)
    assert (trainer.step_reward.aggregation, trainer.step_reward.question_column) == ("mean", "problem")
    assert trainer.step_reward.processing_class is tokenizer and trainer.step_reward.eos_token_ids == [2]
    trainer.train()
    assert {"steps/per_answer", "steps/unfinished_share", "loss"} <= set(trainer.state.log_history[0])


def test_evaluation_uses_its_own_group_size(tmp_path):
    trainer = make_trainer(tmp_path, num_generations_eval=4, per_device_eval_batch_size=4)
    generate_fixed(trainer, encode(trainer.processing_class, A, "8 </s>", B, B))
    trainer.model.eval()
    output = trainer._generate_and_score_completions([{"prompt": "Tom dial 3"}] * 4)
    # v_0 = (0.8 + 0.8 + 0.2 + 0.2) / 4 = 0.5. Rewards: A -0.1, 0.4, the others 0.3, -0.3, -0.3. In groups of two,
    # v_0 would be 0.8 and 0.2.
    check(output["advantages"], [[0.3, 0.3, 0.4, 0.4], [0.3, 0.3, 0, 0], *[[-0.3, -0.3, 0, 0]] * 2])


def test_evaluation_logs_metrics(tmp_path):
    trainer = make_trainer(tmp_path, scorer=FakeScorer(by_text), per_device_eval_batch_size=4)
    metrics = trainer.evaluate(eval_dataset=questions(4))
    assert math.isfinite(metrics["eval_loss"])
    assert trainer.state.log_history[-1]["eval_steps/per_answer"] >= 1


def test_truncated_completions_may_be_masked(tmp_path):
    # A has no end token, so TRL masks it. Its scores still count in the group.
    trainer = make_trainer(tmp_path, mask_truncated_completions=True, funcs=[outcome_reward])
    check(rollout(trainer, ["4 ки 8 ки", B])["advantages"], [[0.0] * 4, [-0.3 - 0.5] * 2 + [0, 0]])
