"""Step scores from continuations of the policy that is trained: exact values, tokens, limits, costs, and errors."""

import math
import random
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from step_fakes import encode, questions, settings, tiny_llama, word_level
from tabular_policy import TABLE, reward, value
from trl import GRPOConfig, GRPOTrainer

from erprm_trl import MonteCarloScorer, StepScorer, TransformersSampler, dial, load_questions
from erprm_trl.policy.answer_reward import AnswerReward
from erprm_trl.policy.online.policy_continuations import PolicyContinuations
from erprm_trl.policy.online.step_config import StepGRPOConfig, StepPPOConfig
from erprm_trl.policy.online.step_grpo_trainer import StepGRPOTrainer
from erprm_trl.policy.online.step_ppo_trainer import StepPPOTrainer
from erprm_trl.policy.reward_function import StepRewardFunction
from erprm_trl.reward_model.scoring.trained_policy import OwnPrefix


# The steps of the tabular policy in the words of the dial tokenizer
WORDS = {"a\n": "1 ки", "b\n": "2 ки", "c\n": "3 ки", "end x": "answer 5", "end y": "answer 6"}
STEPS = {word.removesuffix(" ки"): step for step, word in WORDS.items()}


# The reward of a text of the tabular policy. A lambda is called in this process.
grading = lambda text, answer: reward(tuple(STEPS[step.strip()] for step in text.split("ки")))  # noqa: E731


def write(text):
    """Continues a text of the tabular policy to its end."""
    rng, steps = write.rng, []
    while not steps or not steps[-1].startswith("end"):
        row = TABLE[text.count("ки") + len(steps)]
        steps += rng.choices(list(row), list(row.values()))
    return " ".join(WORDS[step] for step in steps) + " </s>"


def make_trainer(folder, scorer, *, kind="grpo", dataset=None, funcs=(), tokenizer=None, model=None, **others):
    tokenizer = tokenizer or word_level()
    trainer_class, config_class = {
        "grpo": (StepGRPOTrainer, StepGRPOConfig),
        "ppo": (StepPPOTrainer, StepPPOConfig),
    }[kind]
    return trainer_class(
        model or tiny_llama(len(tokenizer)),
        [scorer, *funcs],
        config_class(**settings(folder, **{"grading": "exact", "answer_pattern": r"answer (\d+)", **others})),
        dataset if dataset is not None else questions(4, answer=["5"] * 4),
        processing_class=tokenizer,
    )


def generate_with(trainer, completions, continuation):
    """Replaces the generation: first by these completions, later by continuations of a text. Returns the calls."""
    tokenizer, calls = trainer.processing_class, []

    def generate(prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        calls.append(
            SimpleNamespace(ids=prompt_ids, num=num_generations, most=trainer.generation_config.max_new_tokens)
        )
        if len(calls) == 1:
            return encode(tokenizer, *completions), None
        texts = [tokenizer.decode(ids) for ids in prompt_ids]
        return encode(tokenizer, *(continuation(text) for text in texts)), None

    trainer._generate_single_turn = generate
    return calls


def rollout(trainer, rows):
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer._generate_and_score_completions(rows)


def test_steps_are_continued_from_the_policys_own_tokens(tmp_path):
    trainer = make_trainer(tmp_path, MonteCarloScorer("policy", num_continuations=3, splitter="ки"))
    answers = iter(["5 </s>", "6 </s>", "5 </s>"] + ["6 </s>"] * 3 + ["5 </s>"] * 3)
    calls = generate_with(
        trainer,
        ["1 ки 2 ки answer 5 </s>", "1 ки answer 6 </s>", "2 ки answer 5", "answer 5 </s>"],
        lambda text: f"answer {next(answers)}",
    )
    prompts = ["Tom dial 0", "Tom dial 0", "Tom dial 1", "Tom dial 1"]
    output = rollout(trainer, [{"prompt": prompt, "answer": "5"} for prompt in prompts])
    # The longest prefix comes first. The prefix "1 ки" of the first two completions is continued once, and the budget
    # of four sequences at once suffices for one prefix.
    tokenizer = trainer.processing_class
    texts = [tokenizer.decode(call.ids[0]) for call in calls[1:]]
    assert texts == ["Tom dial 0 1 ки 2 ки", "Tom dial 0 1 ки", "Tom dial 1 2 ки"]
    assert all(len(call.ids) == call.num == 3 and call.ids[0] == call.ids[2] for call in calls[1:])
    assert [call.most for call in calls[1:]] == [8, 10, 10]  # of 12 tokens, less the prefix's
    assert trainer.generation_config.max_new_tokens == 12
    scores = list(trainer._logs["extra"]["step_scores"])
    assert scores == [[0.0, 0.6667, 1.0], [0.0, 0.0], [1.0, 1.0], [1.0]]
    metrics = trainer.metrics_of_mode
    seconds = metrics.pop("monte_carlo/seconds")
    assert len(seconds) == 1 and 0 < seconds[0] < 60
    assert {name: values for name, values in metrics.items() if name.startswith("monte_carlo")} == {
        "monte_carlo/prefixes": [3.0],
        "monte_carlo/continuations": [9.0],
        "monte_carlo/tokens": [27.0],
        "monte_carlo/per_prefix": [3.0],
        "monte_carlo/unfinished_share": [0.0],
    }
    assert trainer.outcome_weight == 0.0 and trainer.aggregation == "last"
    assert output["advantages"].shape == (4, 7)


@pytest.mark.parametrize("eta", [0.5, 3.0])
def test_advantages_agree_with_exact_values_as_k_grows(tmp_path, eta):
    """The tabular policy's values by enumeration. The question's value is the mean of the group's rewards."""
    solutions = [("a\n", "c\n", "end y"), ("b\n", "a\n", "end x"), ("a\n", "end x"), ("b\n", "end y")]
    completions = [" ".join(WORDS[step] for step in steps) + " </s>" for steps in solutions]
    start = sum(reward(steps) for steps in solutions) / 4
    exact = []
    for steps in solutions:
        names = [step.strip() for step in steps]
        values = [start, *(value(tuple(names[: n + 1]), eta) for n in range(len(steps)))]
        exact.append([after - before for before, after in zip(values, values[1:], strict=False)])
    errors = {}
    for count in (8, 1000):
        write.rng = random.Random(count)
        trainer = make_trainer(
            tmp_path,
            MonteCarloScorer("policy", grading, count, eta, splitter="ки"),
            funcs=[AnswerReward("answer", grading)],
            credit="difference",
            gamma=0.0,
            scale_rewards="none",
            num_generations=4,
            outcome_weight=0.0,
        )
        generate_with(trainer, completions, write)
        output = rollout(trainer, [{"prompt": "Tom dial 0", "answer": "x"}] * 4)
        # A step "1 ки" has two tokens, and the end "answer 5 </s>" three.
        places = [[0, 2, 4], [0, 2, 4], [0, 2], [0, 2]]
        errors[count] = max(
            abs(output["advantages"][row, place].item() - expected)
            for row, own in enumerate(places)
            for place, expected in zip(own, exact[row], strict=True)
        )
    assert errors[1000] < 0.05 and errors[1000] < errors[8]


def test_the_scores_are_read_at_the_eta_of_the_configuration(tmp_path):
    completions = ["1 ки answer 5 </s>", "2 ки answer 6 </s>"] * 2
    scores = {}
    for name, scorer, others in (
        ("scorer", MonteCarloScorer("policy", num_continuations=4, eta=2.0, splitter="ки"), {}),
        ("config", MonteCarloScorer("policy", num_continuations=4, splitter="ки"), {"eta": 2.0, "beta": 0.0}),
    ):
        trainer = make_trainer(tmp_path, scorer, **others)
        answers = iter([5, 6, 6, 6] * 2)
        generate_with(trainer, completions, lambda text, answers=answers: f"answer {next(answers)} </s>")
        rollout(trainer, [{"prompt": "Tom dial 0", "answer": "5"}] * 4)
        scores[name] = list(trainer._logs["extra"]["step_scores"])
    quarter = round(math.log((math.exp(2) + 3) / 4) / 2, 4)
    assert scores["scorer"] == scores["config"] == [[quarter, 1.0], [quarter, 0.0]] * 2


def test_a_budget_reduces_the_continuations_of_all_prefixes(tmp_path):
    trainer = make_trainer(
        tmp_path, MonteCarloScorer("policy", num_continuations=8, splitter="ки", max_continuations=7)
    )
    calls = generate_with(trainer, ["1 ки 2 ки answer 5 </s>", "2 ки answer 5 </s>"], lambda text: "answer 5 </s>")
    rollout(trainer, [{"prompt": "Tom dial 0", "answer": "5"}] * 2)
    assert {call.num for call in calls[1:]} == {2}  # three prefixes
    assert trainer.metrics_of_mode["monte_carlo/per_prefix"] == [2.0]
    assert trainer.step_reward.scorer.backend.costs["reduced_prefixes"] == 3


def test_continuations_are_cut_at_the_limit_of_completions(tmp_path):
    trainer = make_trainer(tmp_path, MonteCarloScorer("policy", num_continuations=2, splitter="ки"))
    generate_with(
        trainer, ["1 ки 2 ки answer 6 </s>", "2 ки answer 6 </s>"], lambda text: "3 ки " * 5 + "answer 5 </s>"
    )
    rollout(trainer, [{"prompt": "Tom dial 0", "answer": "5"}] * 2)
    # 13 tokens after 2 or 4 do not fit into 12, so no continuation has an answer.
    assert list(trainer._logs["extra"]["step_scores"]) == [[0.0, 0.0, 0.0], [0.0, 0.0]]
    costs = trainer.step_reward.scorer.backend.costs
    assert costs["tokens"] == 6 * 13 and costs["unfinished"] == 6


def test_a_completion_without_an_answer_or_without_steps_has_no_scores(tmp_path):
    data = questions(4, answer=["5", None, "5", "5"])
    trainer = make_trainer(tmp_path, MonteCarloScorer("policy", num_continuations=2, splitter="ки"), dataset=data)
    generate_with(
        trainer, ["1 ки answer 5 </s>", "1 ки answer 5 </s>", "ки </s>", "</s>"], lambda text: "answer 5 </s>"
    )
    output = rollout(trainer, [{"prompt": "Tom dial 0", "answer": answer} for answer in (None, None, "5", "5")])
    assert list(trainer._logs["extra"]["step_scores"]) == [[], [], [], []]
    assert trainer.metrics_of_mode["monte_carlo/continuations"] == [0.0]
    assert not output["advantages"].any()


def test_continuations_come_from_the_current_weights(tmp_path):
    trainer = make_trainer(tmp_path, MonteCarloScorer("policy", num_continuations=2, splitter="ки"), temperature=1e-4)
    policy, tokenizer = PolicyContinuations(trainer), trainer.processing_class
    prompt, start = encode(tokenizer, "Tom dial 0", "1 ки")

    def continued():
        ((first, second),) = policy.continue_prefixes([OwnPrefix(tuple(prompt), tuple(start))], 2)
        assert first == second  # greedy
        return first.text

    def expected():
        ids = [*prompt, *start]
        while len(ids) < len(prompt) + 12 and ids[-1] != tokenizer.eos_token_id:
            ids.append(int(trainer.model(torch.tensor([ids])).logits[0, -1].argmax()))
        return tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)

    texts = []
    for _ in range(3):
        texts.append(continued())
        assert texts[-1] == expected() and texts[-1].startswith("1 ки")
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    assert len(set(texts)) > 1


@pytest.mark.slow("samples from the dial policy")
def test_the_policys_values_agree_with_those_of_a_sampler(tmp_path, dial_policy):
    """The continuations of TRL's generation have the distribution of the sampler of this package."""
    (row,) = dial.make_questions(1, seed=4, min_moves=3, max_moves=3)
    asked, start = row["question"], dial.DialQuestion.parse(row["question"])
    (operator, amount), position = start.moves[0], start.start
    right = {"+": position + amount, "-": position - amount, "*": position * amount}[operator] % 20
    steps = [f"{position} {operator} {amount} = {(right + wrong) % 20}" for wrong in (0, 1)]
    count, most = 128, 40
    trainer = make_trainer(
        tmp_path,
        MonteCarloScorer("policy", num_continuations=count, splitter=dial.SEPARATOR),
        dataset=Dataset.from_list([{"prompt": asked, "answer": row["answer"]}] * 2),
        tokenizer=dial_policy[1],
        model=dial.BASE_PATH,
        per_device_train_batch_size=2 * count,
        max_completion_length=most,
        answer_pattern=dial.ANSWER_PATTERN,
    )
    trainer.model.train()
    texts = [f"{step} ки answer 3" for step in steps]
    ids = encode(trainer.processing_class, *texts)
    ends = [[len(tokens) - 3, len(tokens) - 1] for tokens in ids]
    scores = trainer._continuations.score([asked] * 2, texts, ids, ends, {"answer": [row["answer"]] * 2})
    grade = {"answers": load_questions([row]), "answer_pattern": dial.ANSWER_PATTERN}
    sampler = TransformersSampler(*dial_policy, max_new_tokens=most)
    scorer = MonteCarloScorer(sampler, "exact", count, splitter=dial.SEPARATOR, **grade)
    expected = scorer.score([asked] * 2, [[step, "answer 3"] for step in steps])
    # Three standard deviations of the difference of two means of 128 are at most 0.19.
    assert [score for score, _ in scores] == pytest.approx([score for score, _ in expected], abs=0.19)
    assert scores[0][0] > 0.4 > scores[1][0]


@pytest.mark.slow("trains several policies")
@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_a_resumed_run_equals_the_uninterrupted_run(tmp_path, kind):
    """The run is resumed in the middle of a generation, and at its end."""

    def train(folder, **resume):
        trainer = make_trainer(
            folder,
            MonteCarloScorer("policy", lambda text, answer: len(text) % 7 / 6, 2, splitter=" "),
            kind=kind,
            per_device_train_batch_size=2,
            steps_per_generation=2,
            max_steps=6,
            save_strategy="steps",
            save_steps=1,
        )
        trainer.train(**resume)
        return trainer

    straight = train(tmp_path / "straight")
    assert len({log["monte_carlo/tokens"] for log in straight.state.log_history if "monte_carlo/tokens" in log}) > 1
    for update in (3, 4):
        torch.manual_seed(update)
        resumed = train(
            tmp_path / f"resumed-{update}", resume_from_checkpoint=tmp_path / f"straight/checkpoint-{update}"
        )
        for name, weight in resumed.model.state_dict().items():
            assert torch.equal(weight, straight.model.state_dict()[name])


@pytest.mark.slow("trains two policies")
@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_two_updates_and_an_evaluation_log_everything(tmp_path, kind):
    trainer = make_trainer(
        tmp_path,
        MonteCarloScorer("policy", num_continuations=2, splitter="ки"),
        kind=kind,
        log_completions=True,
        num_generations_eval=2,
        **({"critic": "erprm", "credit": "difference"} if kind == "ppo" else {}),
    )
    trainer.train()
    names = ("prefixes", "continuations", "tokens", "seconds", "per_prefix", "unfinished_share")
    for log in trainer.state.log_history[:2]:
        assert {f"monte_carlo/{name}" for name in names} <= set(log)
    metrics = trainer.evaluate(questions(2, answer=["5"] * 2))
    assert {f"eval_monte_carlo/{name}" for name in names} <= set(metrics)


def test_the_answers_count_in_the_step_scores_once(tmp_path):
    def weight(funcs=(), **others):
        return make_trainer(tmp_path, MonteCarloScorer("policy"), funcs=funcs, **others).outcome_weight

    def brevity(completions, **columns):
        return [0.0] * len(completions)

    assert (weight(), weight([brevity]), weight(outcome_weight=0.5)) == (0.0, 1.0, 0.5)


def test_a_scorer_file_may_name_the_policy(tmp_path):
    file = tmp_path / "continuations.yaml"
    file.write_text("scorer: monte_carlo\nsampler: policy\nnum_continuations: 2\nsplitter: ки\n")
    trainer = make_trainer(tmp_path, str(file))
    assert trainer.step_reward.samples_policy and trainer.aggregation == "last"
    assert trainer.step_reward.scorer.backend.num_continuations == 2
    file.write_text("scorer: judge\nsampler: policy\n")
    with pytest.raises(ValueError, match="sampler: got 'policy'"):
        StepRewardFunction(str(file))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answers": {"q": "5"}}, "answers: got .* with the sampler 'policy'"),
        ({"stop": "Q:"}, "stop: got 'Q:' with the sampler 'policy'"),
        ({"last_step": "continuations"}, "last_step: got 'continuations' with the sampler 'policy'"),
        ({"seed": 3}, "seed: got 3 with the sampler 'policy'.*Do not set it"),
        ({"max_cached": 0}, "max_cached: got 0"),
        ({"answer_pattern": "x(.)"}, "answer_pattern, reasoning: got a value without grading"),
    ],
)
def test_arguments_that_the_trainer_decides_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MonteCarloScorer("policy", **options)
    with pytest.raises(ValueError, match="sampler: got 'model', expected a sampler, or 'policy'"):
        MonteCarloScorer("model", answers={"q": "5"})
    with pytest.raises(ValueError, match="answers: got None, expected the reference answers"):
        MonteCarloScorer(SimpleNamespace(settings={}))


def test_only_step_trainers_have_the_policy(tmp_path):
    scorer = StepScorer.of(MonteCarloScorer("policy"))
    assert scorer.model_name == "MonteCarloScorer(policy, K=8, eta=0)" and scorer.context_length is None
    with pytest.raises(ValueError, match="got no policy to sample from, expected to be in reward_funcs of StepGRPO"):
        scorer.score(["q"], [["a", "b"]])
    args = GRPOConfig(**settings(tmp_path))
    function = StepRewardFunction(MonteCarloScorer("policy", splitter="ки"))
    trainer = GRPOTrainer(tiny_llama(len(word_level())), [function], args, questions(4), processing_class=word_level())
    with pytest.raises(ValueError, match="got no policy to sample from"):
        trainer.train()


def test_trainers_that_cannot_continue_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"got MonteCarloScorer\('policy'\) without answers, expected the column"):
        make_trainer(tmp_path, MonteCarloScorer("policy"), dataset=questions(4))
    trainer = make_trainer(tmp_path, MonteCarloScorer("policy"))
    trainer.tools = [print]
    with pytest.raises(ValueError, match="together with tools, expected completions that the policy writes alone"):
        PolicyContinuations(trainer)
    with pytest.raises(ValueError, match="with a grading function and eta=2.0.*beta instead of eta"):
        make_trainer(
            tmp_path,
            StepRewardFunction(MonteCarloScorer("policy"), eta=2.0),
            funcs=[AnswerReward("answer", grading)],
        )
