"""Tests the progress bar of collections, and the progress that samplers report."""

import io
from types import SimpleNamespace

import pytest
from fake_sampler import FakeSampler
from faulty_server import FaultyServer

from erprm_trl import EndpointSampler, TransformersSampler, dial
from erprm_trl.io import progress_bars
from erprm_trl.rollouts import CollectionSettings, Prompt, Question, collect_rollouts, progress
from erprm_trl.rollouts.progress import CollectionProgress
from erprm_trl.rollouts.sampling.vllm_sampler import _progress_bar


PROMPTS = [Prompt(row["question"]) for row in dial.make_questions(4, seed=0)]
QUESTIONS = [Question(f"q{index}?", "1") for index in range(4)]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(text):
    """The states of the bar, one after the other."""
    return [line.strip() for line in text.replace("\n", "\r").split("\r") if line.strip()]


def test_the_bar_advances_within_a_chunk(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(progress_bars, "TERMINAL_INTERVAL", 0)
    clock = iter(range(0, 1000))  # a call reads the clock twice when it begins, and at each update
    # Only for this module, because other threads read the clock too.
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    settings = CollectionSettings(num_questions=8, num_solutions=2, chunk_size=4, num_continuations=3)
    with CollectionProgress(settings, 0) as bar:
        bar.begin_chunk(4, 8)
        bar.begin_call("solutions", 8)
        # 5 steps per solution are expected: 8 solutions of 8 * (1 + 4 * 3) = 104 texts
        bar.update(4, 100)
        assert "solutions 4/8, 50 tokens/s" in shown(terminal.getvalue())[-1]
        assert bar._bar.n == pytest.approx(4 * 4 / 104, abs=0.05)
        bar.update(4, 20)
        bar.end_call()
        bar.begin_continuations(10, 30)
        bar.begin_call("continuations", 30)
        bar.update(11, 10)
        # 19 of 38 texts: half of the chunk, 2 of 8 questions
        assert bar._bar.n == 2.0 and "continuations 11/30, 5 tokens/s" in shown(terminal.getvalue())[-1]
        bar.update(19, 0)
        bar.end_call()
        bar.end_chunk(rollouts=38)
        assert bar._bar.n == 4.0 and "rollouts=38" in shown(terminal.getvalue())[-1]
        # 10 prefixes of 8 solutions were seen: 8 * (1 + 10 / 8 * 3) = 38 texts are expected now
        bar.begin_chunk(4, 8)
        bar.begin_call("solutions", 8)
        bar.update(8, 0)
        assert bar._bar.n == pytest.approx(4 + 4 * 8 / 38, abs=0.05)
        bar.end_call()
        bar.begin_continuations(1000, 3000)  # more than expected, so the bar does not move
        before = bar._bar.n
        bar.begin_call("continuations", 3000)
        bar.update(1, 1)
        assert bar._bar.n == before
    assert any("<" in line for line in shown(terminal.getvalue()))  # the time left


def test_the_bar_advances_before_the_first_text_has_ended(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    settings = CollectionSettings(num_questions=2, num_solutions=2, chunk_size=2, sampler={"max_new_tokens": 100})
    with CollectionProgress(settings, 0) as bar:
        bar.begin_chunk(2, 4)
        bar.begin_call("solutions", 4)
        bar.update(0, 100)
        assert bar._bar.n == 0.5  # 100 of at most 400 tokens, 2 questions
        bar.update(3, 20)
        assert bar._bar.n == 1.5  # 3 of 4 texts
        bar.update(0, 1000)
        assert bar._bar.n == 2.0


def test_the_bar_adds_up_the_chunks_in_progress(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    settings = CollectionSettings(num_questions=8, num_solutions=2, chunk_size=4, num_continuations=1)
    with CollectionProgress(settings, 0) as bar:
        bar.begin_chunk(4, 8, chunk=0)
        bar.begin_call("solutions", 8, chunk=0)
        bar.update(8, 80)
        bar.end_call()
        bar.begin_continuations(8, 8, chunk=0)
        assert bar._bar.n == pytest.approx(4 * 8 / 40, abs=0.01)  # 5 steps per solution were expected
        # The first chunk is being graded.
        bar.begin_chunk(4, 8, chunk=1)
        bar.begin_call("solutions", 8, chunk=1)
        # One prefix per solution was seen: 8 * (1 + 1) texts are expected.
        bar.update(4, 20)
        assert bar._bar.n == pytest.approx(4 * 8 / 40 + 4 * 4 / 16, abs=0.01)
        bar.end_call()
        bar.begin_call("continuations", 8, chunk=0)
        bar.update(8, 40)
        bar.end_call()
        assert bar._bar.n == pytest.approx(4 + 4 * 4 / 16, abs=0.01)
        bar.end_chunk(0, rollouts=16)
        assert bar._bar.n == pytest.approx(4 + 4 * 4 / 16, abs=0.01) and bar.num_tokens == 140
        bar.end_chunk(1, rollouts=32)
        assert bar._bar.n == 8.0


def test_a_log_file_gets_at_most_one_line_per_minute(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    settings = CollectionSettings(num_questions=40, num_solutions=1, chunk_size=1)
    with CollectionProgress(settings, 0) as bar:
        for _ in range(40):
            bar.begin_chunk(1, 1)
            bar.begin_call("solutions", 1)
            bar.update(1, 5)
            bar.end_call()
            bar.end_chunk(rollouts=1)
    assert len(shown(log.getvalue())) <= 2 and "40/40" in shown(log.getvalue())[-1]
    quiet = io.StringIO()
    monkeypatch.setattr("sys.stderr", quiet)
    with CollectionProgress(settings, 0, show=False) as bar:
        bar.begin_chunk(1, 1)
        bar.begin_call("solutions", 1)
        bar.update(1, 5)
    assert quiet.getvalue() == ""


def test_samplers_report_all_texts_and_tokens(dial_policy):
    reports = []

    def report(*numbers):
        reports.append(numbers)

    def expected(completions):
        flat = [completion for samples in completions for completion in samples]
        return len(flat), sum(completion.num_tokens for completion in flat)

    sampler = TransformersSampler(*dial_policy, max_new_tokens=48, batch_size=8)
    completions = sampler.sample(PROMPTS, 4, 0, progress=report)
    assert tuple(map(sum, zip(*reports, strict=True))) == expected(completions)
    assert len(reports) > 2  # more than one update per batch
    assert completions == sampler.sample(PROMPTS, 4, 0)
    reports.clear()
    with FaultyServer() as server:
        endpoint = EndpointSampler("pseudo", server.url, dial.build_tokenizer())
        assert tuple(map(sum, zip(*reports, strict=True))) == ()
        completions = endpoint.sample(PROMPTS, 2, 0, progress=report)
    assert tuple(map(sum, zip(*reports, strict=True))) == expected(completions) and len(reports) == 8


def test_bars_for_vllm_are_hidden_and_report_progress(capsys):
    """Uses the bars in the same way as vLLM."""
    reports = []
    make = _progress_bar(lambda *numbers: reports.append(numbers))
    assert list(make(["a", "b"], desc="Adding requests")) == ["a", "b"] and reports == []
    bar = make(total=6, desc="Processed prompts", dynamic_ncols=True, postfix="est. speed input: 0.00 toks/s")
    for _ in range(2):
        assert bar.format_dict["elapsed"] >= 0
        bar.postfix = "est. speed input: 3.00 toks/s"
        bar.update(3)
    assert bar.n == 6
    bar.refresh()
    bar.close()
    assert reports == [(3, 0), (3, 0)]
    assert capsys.readouterr() == ("", "")


def test_samplers_without_progress_advance_the_bar_per_call(monkeypatch, tmp_path):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(progress_bars, "TERMINAL_INTERVAL", 0)
    settings = {"num_solutions": 1, "num_continuations": 1, "grading": "exact", "chunk_size": 2}
    collect_rollouts(QUESTIONS, FakeSampler(), tmp_path, **settings)
    lines = [line for line in shown(terminal.getvalue()) if "Collecting" in line]
    assert any("2/4" in line for line in lines) and "4/4" in lines[-1] and "rollouts=" in lines[-1]


def test_a_warning_if_solutions_have_a_single_step(tmp_path, caplog):
    settings = {"num_solutions": 2, "num_continuations": 0, "grading": None, "show_progress": False, "chunk_size": 1}
    collect_rollouts(QUESTIONS, FakeSampler(), tmp_path / "lines", splitter="newline", **settings)
    assert "two steps" not in caplog.text
    collect_rollouts(QUESTIONS, FakeSampler(), tmp_path / "marks", splitter="|", **settings)
    (record,) = [record for record in caplog.records if "two steps" in record.message]  # once, and not once per chunk
    assert record.message.startswith("splitter='|': none of 2 solutions has two steps, so a reward model scores each")
    assert "One begins with 'line" in record.message and "splitter='newline' would give" in record.message
    caplog.clear()
    labelled = {**settings, "num_continuations": 1, "grading": "exact"}
    collect_rollouts(QUESTIONS, FakeSampler(), tmp_path / "labelled", splitter="|", **labelled)
    assert "has two steps, so there are no labels for steps within a solution" in caplog.text
