"""Verdicts of a judge: first errors from scores, the file that keeps them, crashes, and identities."""

import json
from types import SimpleNamespace

import pytest

from erprm_trl.rollouts.judge_verdicts import JudgeVerdicts, judge_identity, judge_name
from erprm_trl.rollouts.records import RolloutRow


class Judge:
    """A judge with scores written by hand, by question."""

    model_name = "judge"

    def __init__(self, **scores):
        self.scores, self.asked = scores, []

    def score(self, questions, steps):
        self.asked += questions
        return [self.scores[question] for question in questions]


class SkippingJudge(Judge):
    """A judge that can skip solutions that are too long."""

    def score(self, questions, steps, *, skip_too_long=False):
        assert skip_too_long
        return super().score(questions, steps)


def row(question, num_steps=3):
    steps = [f"step {step}\n" for step in range(num_steps)]
    return RolloutRow(chunk=0, question_index=0, solution_index=0, question=question, steps=steps)


SCORES = {
    "sound": [0.9, 0.6, 0.51],
    "second": [0.9, 0.2, 0.0],
    "undecided": [0.9, 0.5, 0.0],
    "late tie": [0.9, 0.4, 0.5],
    "unread": [],
}


def test_first_errors_from_scores(tmp_path):
    verdicts = JudgeVerdicts(SkippingJudge(**SCORES), tmp_path, "newline")
    assert verdicts.first_errors([row(question) for question in SCORES]) == [-1, 1, None, 1, None]


def test_each_solution_is_judged_once(tmp_path):
    judge = Judge(**SCORES)
    first = JudgeVerdicts(judge, tmp_path, "newline").first_errors([row("second"), row("sound"), row("second")])
    assert first == [1, -1, 1] and judge.asked == ["second", "sound"]
    changed = Judge(sound=[0.1, 0.1, 0.1], unread=[])  # a judge with the same name that is not deterministic
    again = JudgeVerdicts(changed, tmp_path, "newline").first_errors([row("unread"), row("sound"), row("second")])
    assert again == [None, -1, 1] and changed.asked == ["unread"]
    other = Judge(second=[0.1, 0.1])
    assert JudgeVerdicts(other, tmp_path, "newline").first_errors([row("second", 2)]) == [0]  # other steps


def test_processes_that_share_the_file_see_each_others_verdicts(tmp_path):
    judges = Judge(**SCORES), Judge(**SCORES)
    one, other = (JudgeVerdicts(judge, tmp_path, "newline") for judge in judges)
    assert one.first_errors([row("second")]) == [1] and other.first_errors([row("second"), row("sound")]) == [1, -1]
    assert one.first_errors([row("sound"), row("second"), row("late tie")]) == [-1, 1, 1]
    assert [judge.asked for judge in judges] == [["second", "late tie"], ["sound"]]
    assert len(one.path.read_text().splitlines()) == 3


def test_a_line_that_a_crash_has_cut_is_judged_again(tmp_path):
    verdicts = JudgeVerdicts(Judge(**SCORES), tmp_path, "newline")
    verdicts.first_errors([row("second"), row("sound")])
    text = verdicts.path.read_text()
    verdicts.path.write_text(text[:-10])
    judge = Judge(**SCORES)
    resumed = JudgeVerdicts(judge, tmp_path, "newline")
    assert resumed.first_errors([row("second"), row("sound")]) == [1, -1] and judge.asked == ["sound"]
    lines = resumed.path.read_text().splitlines()
    assert len(lines) == 3 and json.loads(lines[-1])["first_error"] == -1
    assert JudgeVerdicts(Judge(), tmp_path, "newline").first_errors([row("sound")]) == [-1]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([[0.5]], "got the scores .* for a solution of 3 steps"),
        ([[0.5, 0.5, float("nan")]], "expected one in"),
        ([[0.5, 0.5, 1.5]], "expected one in"),
        ([], "got 0 lists of scores for 1 solutions"),
    ],
)
def test_wrong_scores_are_errors_and_are_not_kept(tmp_path, scores, message):
    judge = Judge()
    judge.score = lambda questions, steps: scores
    with pytest.raises(ValueError, match=message):
        JudgeVerdicts(judge, tmp_path, "newline").first_errors([row("q")])
    assert not list(tmp_path.glob("*.jsonl"))


def test_the_identity_of_a_judge(tmp_path):
    class Nameless:
        def score(self, questions, steps):
            return []

    with pytest.raises(ValueError, match="agree_with: got a Nameless without `model_name`"):
        judge_identity(Nameless())
    judge = Judge()
    assert judge_identity(judge) == judge_identity(Judge())
    judge.prm_format = "another format"
    assert judge_identity(judge) != judge_identity(Judge())
    judge.model_name = "http://user:secret@host:8000"
    assert "secret" not in judge_identity(judge) and judge_name(judge) == "http://host:8000"
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"old")
    judge.model_name = str(model)
    before = judge_identity(judge)
    (model / "model.safetensors").write_bytes(b"other")
    assert judge_identity(judge) != before and judge_name(judge) == "model"
    # A scorer that samples from a model in a folder. A StepScorer has it as its backend.
    judge.model_name, judge.sampler = "JudgeScorer(model)", SimpleNamespace(settings={"model": str(model)})
    scorer = SimpleNamespace(model_name=judge.model_name, backend=judge)
    before = judge_identity(judge), judge_identity(scorer)
    (model / "model.safetensors").write_bytes(b"a third time")
    assert judge_identity(judge) != before[0] and judge_identity(scorer) != before[1]
