"""The embedded task: its arithmetic by hand, its checker, its corpus, and its shipped policy."""

import random
import re
from pathlib import Path

import pytest
import torch

from erprm_trl import dial
from erprm_trl.dial.experiments.chain import DialChain
from erprm_trl.dial.pretrain import corpus, write_solution
from erprm_trl.dial.task import DialQuestion, habitual_mistake, random_question
from erprm_trl.rollouts import Prompt, TransformersSampler, extract_answer


QUESTION = "Tom dial 7 . right 15 . times 3 . left 9 . ?"


def test_a_question_by_hand():
    # 7 + 15 = 22 = 2; 2 * 3 = 6; 6 - 9 = -3 = 17 (mod 20)
    question = DialQuestion.parse(QUESTION)
    assert question == DialQuestion("Tom", 7, (("+", 15), ("*", 3), ("-", 9)))
    assert (question.text, question.answer) == (QUESTION, 17)
    with pytest.raises(ValueError, match="Not a dial question"):
        DialQuestion.parse("Tom has 3 apples.")


@pytest.mark.parametrize(
    ("steps", "verdicts"),
    [
        (["7 + 15 = 2", "2 * 3 = 6", "6 - 9 = 17", "answer 17"], [True, True, True, True]),
        (
            ["7 + 15 = 3 ки", " 3 * 3 = 9 ки", "9 - 9 = 0", "answer 0"],
            [False, True, True, True],
        ),  # correct although they follow a wrong step
        (
            ["7 + 15 = 2", "2 * 4 = 8", "8 - 9 = 19", "answer 19"],
            [True, False, True, True],
        ),  # another move than the question's
        (["7 + 15 = 2", "answer 2"], [True, False]),  # moves are left
        (["8 + 15 = 3", "3 * 3 = 9", "9 - 9 = 0", "answer 1"], [False, True, True, False]),
        (["8 + 15 = 2"], [False]),  # the result fits the dial, the equation does not
        (["nonsense", "7 + 15 = 2"], [False, True]),
    ],
)
def test_the_checker(steps, verdicts):
    assert dial.check_steps(QUESTION, steps) == verdicts


def test_questions_are_distinct_and_repeatable():
    rows = dial.make_questions(200, seed=4)
    assert rows == dial.make_questions(200, seed=4) != dial.make_questions(200, seed=5)
    assert len({row["question"] for row in rows}) == 200
    assert all(DialQuestion.parse(row["question"]).answer == int(row["answer"]) for row in rows)
    long = dial.make_questions(20, seed=0, min_moves=10, max_moves=16)
    assert all(10 <= len(DialQuestion.parse(row["question"]).moves) <= 16 for row in long)
    with pytest.raises(ValueError, match="min_moves=5 and max_moves=4"):
        dial.make_questions(1, seed=0, min_moves=5, max_moves=4)


def test_the_corpus_has_the_documented_mistakes_and_marks_all_but_the_habitual_ones():
    rng = random.Random(0)
    counts = {"steps": 0, "wrong": 0, "caught": 0, "habits": 0}
    for _ in range(2000):
        question = random_question(rng)
        text = write_solution(rng, question, marked=True)
        marked = re.findall(f"([^{dial.GOOD_MARK}{dial.BAD_MARK}]+) ([{dial.GOOD_MARK}{dial.BAD_MARK}])", text)
        equations = [step.strip() for step, _ in marked]
        verdicts = [mark == dial.GOOD_MARK for _, mark in marked]
        for equation, verdict, right in zip(
            equations, verdicts, dial.check_steps(question.text, equations), strict=True
        ):
            counts["steps"] += 1
            counts["wrong"] += not right
            counts["caught"] += not right and not verdict
            if not right and verdict:
                left, operator, amount, _, result, _ = equation.split()  # with the separator
                assert habitual_mistake(int(left), operator, int(amount)) == int(result)
                counts["habits"] += 1
            assert right <= verdict  # a right step is never marked wrong
    assert 0.2 < counts["wrong"] / counts["steps"] < 0.32
    assert counts["habits"] > 50


def test_corpus_examples_carry_no_loss_on_the_question():
    tokenizer = dial.build_tokenizer()
    examples = corpus(seed=0, batch_size=2)
    for marked in (False, True):
        example = next(examples)
        text = tokenizer.decode(example["input_ids"])
        assert text.startswith("check ") == marked
        first = next(index for index, label in enumerate(example["labels"]) if label != -100)
        assert tokenizer.decode(example["input_ids"][:first]).endswith("?")
        assert example["labels"][first:] == example["input_ids"][first:]


def test_the_tokenizer_round_trips_texts_and_knows_every_word(dial_policy):
    for tokenizer in (dial.build_tokenizer(), dial_policy[1]):
        text = f"check {QUESTION} 7 + 15 = 2 ки ✓ answer 19 ки ✗"
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id not in ids
        assert len(tokenizer.encode(dial.SEPARATOR)) == 1


def test_the_shipped_base_is_small_has_safe_weights_and_the_expected_accuracy(dial_policy):
    files = {path.name: path.stat().st_size for path in Path(dial.BASE_PATH).iterdir()}
    assert set(files) <= {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert files["model.safetensors"] <= 4 << 20
    rows = dial.make_questions(150, seed=77)
    sampler = TransformersSampler(*dial_policy, max_new_tokens=64, batch_size=300)
    samples = sampler.sample([Prompt(row["question"]) for row in rows], 2, seed=0)
    correct = [
        extract_answer(completion.text, dial.ANSWER_PATTERN) == row["answer"]
        for row, completions in zip(rows, samples, strict=True)
        for completion in completions
    ]
    # At temperature 1. The standard error of 300 samples is below 3 points.
    assert 0.45 < sum(correct) / len(correct) < 0.75


def test_the_shipped_base_finds_random_mistakes_and_overlooks_habitual_ones(dial_policy):
    model, tokenizer = dial_policy
    good, bad = tokenizer.convert_tokens_to_ids([dial.GOOD_MARK, dial.BAD_MARK])

    def p_good(step):
        ids = torch.tensor(
            [tokenizer.encode(f"check Tom dial {step.split()[0]} . times {step.split()[2]} . ? {step} ки")]
        )
        return model(ids).logits[0, -1, [good, bad]].softmax(-1)[0].item()

    assert p_good("7 * 3 = 1") > 0.9
    assert p_good("7 * 3 = 2") < 0.1
    assert habitual_mistake(13, "*", 8) == 6  # 104 = 4 (mod 20), and two more
    assert p_good("13 * 8 = 6") > 0.5


def test_the_reward_model_of_a_chain_is_trained_once(tmp_path, monkeypatch):
    done = []

    def train(self, rollouts, eta):
        done.append((rollouts, eta))
        (tmp_path / f"erprm-eta-{eta:g}").mkdir(exist_ok=True)
        (tmp_path / f"erprm-eta-{eta:g}" / "prm_format.json").touch()

    monkeypatch.setattr(DialChain, "collect", lambda self, *settings: settings)
    monkeypatch.setattr(DialChain, "train", train)
    chain = DialChain(str(tmp_path), train_questions=7, seed=5)
    (tmp_path / "erprm-eta-2").mkdir()  # a training that was killed leaves a folder without a format
    assert [chain.train_once(2.0), chain.train_once(2.0)] == [str(tmp_path / "erprm-eta-2")] * 2
    chain.train_once(0.0, num_questions=3)
    assert done == [(("rollouts", 7, 5, 2, 8), 2.0), (("rollouts", 3, 5, 2, 8), 0.0)]
