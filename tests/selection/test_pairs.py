"""`preference_pairs` on hand-made collections: rows, counts, and what is refused."""

import json
import logging

import pytest
from doc_pages import CHAT_TEMPLATE
from pair_folders import solution, write_collection
from public_models import byte_tokenizer

from erprm_trl import RolloutDataset, StepScorer, preference_pairs
from erprm_trl.reward_model import PRMFormat
from erprm_trl.selection import find_pairs


QUESTIONS = [
    [
        solution(["A\n", "B\n", "x"], 1.0, [1, 1, 0, 1], [1, 1, 1, 1]),
        solution(["A\n", "C\n", "y"], 0.0, [1, 0, 0, 1], [0, 0, 0, 0]),
        solution(["A\n", "cut o"], 0.0, [1, 0, 1, 1], finished=False),
    ],
    [solution([f"{text}\n", "w"], 1.0, [1, 1, 1, 1]) for text in ("D", "E", "F")],
]
UNGRADED = [[solution(["A\n", "B"], None), solution(["A\n", "C"], None)]]


class FixedScores:
    """A backend whose score of a step is looked up in a table."""

    prm_format = PRMFormat(separator="\n", good_token="+", bad_token="-", aggregation="min")
    model_name, context_length, weights = "fixed", None, None

    def __init__(self, **scores):
        self.scores = scores

    def score(self, questions, steps, skip_too_long=False):
        return [[self.scores.get(step, 0.5) for step in solution] for solution in steps]


@pytest.fixture
def folder(tmp_path):
    return write_collection(tmp_path / "rollouts", QUESTIONS)


def test_pairs_of_solutions_in_trls_form(folder):
    for source in (folder, str(folder), RolloutDataset(folder)):
        (row,) = preference_pairs(source)
        assert row == {
            "prompt": "question 0",
            "chosen": "A\nB\nx",
            "rejected": "A\nC\ny",
            "score_chosen": 1.0,
            "score_rejected": 0.0,
        }


def test_solutions_with_a_step_without_content_are_in_no_pair_of_steps(tmp_path, caplog):
    """Such a solution, which someone else wrote, has steps but no continuations."""
    empty = solution(["A\n", " \n", "z"], 0.0, unusable="a step without content")
    folder = write_collection(tmp_path / "given", [[*QUESTIONS[0][:2], empty]])
    expected = preference_pairs(write_collection(tmp_path / "rollouts", [QUESTIONS[0][:2]]), "step")
    assert preference_pairs(folder, "step").to_list() == expected.to_list()
    assert "1 solutions have a step without content, so they are in no pair of steps" in caplog.text
    scores = FixedScores(B=0.9, C=0.8)
    scored = {(row["chosen"], row["rejected"]) for row in preference_pairs(folder, "step", score=scores)}
    assert scored == {("B\nx", "C\ny")}


def test_questions_without_a_pair_are_counted_and_logged(folder, caplog):
    with caplog.at_level(logging.INFO, logger="erprm_trl"):
        _, counts = find_pairs(folder)
    assert (counts.questions, counts.questions_with_pairs, counts.pairs) == (2, 1, 1)
    assert counts.without_pair == {"all_equal": 1} and counts.left_out == {"unfinished": 1}
    text = "1 pair from 1 of 2 questions; questions without a pair: all_equal 1; left out: unfinished 1"
    assert str(counts) == text and text in caplog.text


def test_pairs_of_steps_share_the_prefix_in_their_prompt(folder):
    pairs, counts = find_pairs(folder, "step", num_std=1.0)
    (row,) = pairs
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("question 0A\n", "B\nx", "C\ny")
    assert 0.7 < row["score_chosen"] < 1.0 and 0.0 < row["score_rejected"] < 0.3  # shrunk towards the prior
    assert (counts.branching_prefixes, counts.branching_after_a_step) == (2, 1)
    assert counts.without_pair == {"below_margin": 1}
    (row,) = preference_pairs(folder, "step", num_std=0.0, completion="step")
    assert (row["chosen"], row["rejected"], row["score_chosen"]) == ("B\n", "C\n", 1.0)
    assert row["chosen_ends"] is row["rejected_ends"] is False


def test_questions_without_branches_are_counted(tmp_path):
    same = [solution(["A\n", "B"], 1.0, [1, 1]), solution(["A\n", "B"], 1.0, [1, 1])]
    differ = [solution(["A\n", "B"], 1.0, [1, 1]), solution(["C\n", "D"], 0.0, [0, 0])]
    _, counts = find_pairs(write_collection(tmp_path / "a", [same, differ]), "step", num_std=0.0)
    assert counts.without_pair == {"no_branch": 1} and counts.branching_after_a_step == 0


def test_a_reward_model_compares_solutions_and_steps(tmp_path):
    folder = write_collection(tmp_path / "samples", UNGRADED)
    backend = FixedScores(B=0.1, C=0.7)
    for score in (backend, StepScorer.from_backend(backend), [[[0.5, 0.1], [0.5, 0.7]]]):
        (row,) = preference_pairs(folder, score=score)
        assert (row["chosen"], row["score_chosen"], row["score_rejected"]) == ("A\nC", 0.5, pytest.approx(0.1))
        (row,) = preference_pairs(folder, score=score, aggregation="last")
        assert row["score_chosen"] == pytest.approx(0.7)
        (row,) = preference_pairs(folder, "step", score=score)
        assert (row["prompt"], row["chosen"], row["score_chosen"]) == ("question 0A\n", "C", pytest.approx(0.7))


def test_a_path_of_a_reward_model_is_loaded(tmp_path, monkeypatch):
    folder, scorer = (
        write_collection(tmp_path / "samples", UNGRADED),
        StepScorer.from_backend(FixedScores(B=0.1, C=0.7)),
    )
    monkeypatch.setattr(StepScorer, "from_pretrained", {"outputs/erprm": scorer}.__getitem__)
    assert preference_pairs(folder, score="outputs/erprm")[0] == preference_pairs(folder, score=scorer)[0]


def test_rewards_may_decide_before_scores(folder):
    backend = FixedScores(B=0.1, C=0.9)
    (row,) = preference_pairs(folder, score=backend, rank_by="reward")
    assert row["chosen"] == "A\nB\nx" and row["score_chosen"] == 1.0
    row = preference_pairs(folder, score=backend)[0]
    assert row["chosen"] == "A\nC\ny" and row["score_chosen"] == pytest.approx(0.5)


def test_the_chat_template_of_the_collection_decides_the_form(tmp_path):
    tokenizer = byte_tokenizer(["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(tmp_path / "policy")
    sampler = {"model": str(tmp_path / "policy"), "use_chat_template": True}
    folder = write_collection(tmp_path / "rollouts", QUESTIONS, sampler)
    (row,) = preference_pairs(folder)
    assert row["prompt"] == [{"role": "user", "content": "question 0"}]
    opening = "<|im_start|>user\nquestion 0<|im_end|>\n<|im_start|>assistant\n"
    for options in ({"conversational": False}, {"conversational": False, "tokenizer": tokenizer}):
        (row,) = preference_pairs(folder, **options)
        assert (row["prompt"], row["chosen"]) == (opening, "A\nB\nx<|im_end|>")
    (row,) = preference_pairs(folder, "step")
    assert row["prompt"] == f"{opening}A\n"
    # templates drop the thinking of a message
    thinking = [[solution(["<think>A</think>\n", "x"], 1.0, [1]), solution(["<think>B</think>\n", "y"], 0.0, [0])]]
    (row,) = preference_pairs(write_collection(tmp_path / "thinking", thinking, sampler))
    assert row["chosen"] == "<think>A</think>\nx<|im_end|>"
    with pytest.raises(ValueError, match="conversational: got True with level='step'"):
        preference_pairs(folder, "step", conversational=True)


def test_the_rows_survive_a_file(folder, tmp_path):
    from datasets import load_dataset

    pairs = preference_pairs(folder)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    assert load_dataset(str(tmp_path), data_files="pairs.jsonl", split="train").to_list() == pairs.to_list()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "token"}, "level: got 'token', expected 'solution' or 'step'"),
        ({"completion": "all"}, "completion: got 'all', expected 'rest' or 'step'"),
        ({"rank_by": "length"}, "rank_by: got 'length', expected 'reward' or 'score'"),
        ({"rank_by": "score"}, "rank_by: got 'score' without score"),
        ({"score": [[[0.5]]]}, "score: got step scores of 1 solutions to 1 questions, expected scores of 6"),
        ({"score": [[[0.5]] * 3] * 2}, "score: got 1 scores for the 3 steps of question 0, solution 0"),
        ({"min_margin": 2.0}, r"got no preference pair \(0 pairs from 0 of 2 questions.*lower min_margin"),
    ],
)
def test_what_is_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        preference_pairs(folder, **options)


def test_solutions_without_rewards_or_continuations_are_refused(tmp_path):
    folder = write_collection(tmp_path / "samples", UNGRADED)
    with pytest.raises(ValueError, match=r"question 0, solution 0 has no reward.*pass a reward model"):
        preference_pairs(folder)
    folder = write_collection(tmp_path / "graded", [[solution(["A\n", "B"], 1.0), solution(["A\n", "C"], 0.0)]])
    with pytest.raises(ValueError, match=r"has 2 steps and rewards for 0 prefixes.*num_continuations >= 1"):
        preference_pairs(folder, "step")
    assert len(preference_pairs(folder)) == 1
