"""Scores do not depend on the other solutions in the batch, and errors name the solution."""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from synchronisation_counts import Synchronisations
from transformers import AutoModelForCausalLM
from zoo import byte_level_bpe, save_tiny, tiny_llama, word_level

from erprm_trl import PRMFormat, StepScorer
from erprm_trl.reward_model.scoring import local
from erprm_trl.rollouts import clean_steps, split_steps


FORMAT = PRMFormat(separator="ки", good_token="✓", bad_token="✗", prompt_template="check {question}", splitter="ки")
QUESTIONS = [f"Tom dial {index} . right 15 . ?" for index in range(9)]
STEPS = [[f"{index} + 15 = 3"] * (1 + index % 4) for index in range(9)]


@pytest.fixture(scope="module")
def scorer():
    return StepScorer(tiny_llama(46), word_level(), FORMAT)


def test_lines_that_are_one_step_are_a_warning(scorer, caplog, monkeypatch):
    monkeypatch.setattr("erprm_trl.reward_model.scoring.scorer._HAS_WARNED", set())
    assert len(scorer.score_texts(QUESTIONS[:2], ["7 + 15 = 2\n2 + 1 = 3ки 1", "1"])[0]) == 2 and not caplog.text
    for _ in range(2):
        assert len(scorer.score_texts(QUESTIONS[:2], ["7 + 15 = 2\n2 + 1 = 3", "1"])[0]) == 1
    assert (
        caplog.text.count("1 of 2 texts have several lines, but one step, as the reward model's splitter is 'ки'") == 1
    )


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_batch_size_and_order_do_not_change_scores(scorer, batch_size):
    alone = [scorer.score([question], [steps])[0] for question, steps in zip(QUESTIONS, STEPS, strict=True)]
    together = StepScorer(scorer.model, scorer.tokenizer, FORMAT, batch_size=batch_size)
    for left, right in zip(together.score(QUESTIONS, STEPS), alone, strict=True):
        assert left == pytest.approx(right, abs=1e-6)
    backwards = together.score(QUESTIONS[::-1], STEPS[::-1])[::-1]
    for left, right in zip(backwards, alone, strict=True):
        assert left == pytest.approx(right, abs=1e-6)


def test_two_threads_at_once_get_the_right_scores(scorer):
    # Two scorers share a model, whose head's forward is replaced during a call.
    scorers = [StepScorer(scorer.model, scorer.tokenizer, FORMAT, batch_size=size) for size in (1, 2)]
    asked = [(QUESTIONS[::-1], STEPS[::-1]), (QUESTIONS, STEPS)]
    expected = [other.score(*arguments) for other, arguments in zip(scorers, asked, strict=True)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as threads:
            jobs = [threads.submit(scorers[index % 2].score, *asked[index % 2]) for index in range(20)]
            for index, job in enumerate(jobs):
                assert job.result() == expected[index % 2]
    finally:
        sys.setswitchinterval(interval)


def test_raw_text_is_split_by_the_formats_splitter(scorer):
    text = " 7 + 15 = 2 ки answer 2 ки"
    assert scorer.split(text) == ["7 + 15 = 2", "answer 2"]
    assert scorer.score_texts(QUESTIONS[:1], [text]) == scorer.score(QUESTIONS[:1], [["7 + 15 = 2", "answer 2"]])


def test_a_warning_for_a_step_with_the_separator_inside(scorer, caplog, monkeypatch):
    monkeypatch.setattr(local, "_HAS_WARNED", set())
    separator = scorer.prm_format.separator
    for steps in (["2", "4"], ["2", f"4{separator}"], [f"2{separator}4"]):
        scorer.score(["q"], [steps])
    records = [record.message for record in caplog.records if "separator" in record.message]
    assert len(records) == 1  # and not once per call
    assert records[0].startswith("steps: step 1 of solution 0 contains the reward model's separator")


def test_no_warning_for_a_separator_that_the_formats_splitter_leaves_in_steps(caplog, monkeypatch):
    monkeypatch.setattr(local, "_HAS_WARNED", set())
    for preset, text in (("skywork-o1-prm", "a = 1.\n\nb"), ("pure-prm", "a\nb\n\nc")):
        prm_format = replace(PRMFormat.preset(preset), expected_ids=None)
        steps = clean_steps(split_steps(text, prm_format.splitter), prm_format.splitter)
        assert any(prm_format.separator in step for step in steps)
        local.encode_for_scoring(byte_level_bpe(), prm_format, ["q"], [steps])
    assert "separator" not in caplog.text


def test_later_steps_do_not_change_earlier_scores(scorer):
    full = scorer.score(QUESTIONS[:1], [["7 + 15 = 2", "2 * 3 = 6", "answer 6"]])[0]
    assert scorer.score(QUESTIONS[:1], [["7 + 15 = 2"]])[0] == pytest.approx(full[:1], abs=1e-6)


def test_solution_scores_are_aggregated(scorer):
    steps = scorer.score(QUESTIONS, STEPS)
    assert scorer.score_solutions(QUESTIONS, STEPS) == pytest.approx([min(scores) for scores in steps])


def test_solutions_without_steps_and_no_solutions_are_accepted(scorer):
    assert scorer.score(QUESTIONS[:2], [[], ["answer 2"]])[0] == []
    assert scorer.score([], []) == []


def test_invalid_arguments_are_errors(scorer, tmp_path):
    with pytest.raises(ValueError, match="got 2 questions for 1 solutions, expected one question per solution"):
        scorer.score(QUESTIONS[:2], [["answer 2"]])
    with pytest.raises(ValueError, match="Solution 1 has .* tokens, expected at most the model's context of 256"):
        scorer.score(QUESTIONS[:2], [["answer 2"], ["7 " * 300]])
    path = save_tiny(tmp_path, word_level())
    with pytest.raises(FileNotFoundError, match="PRMFormat.*save"):
        StepScorer.from_pretrained(path)
    assert len(StepScorer.from_pretrained(path, prm_format=FORMAT).score(QUESTIONS, STEPS)) == 9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda scorer: scorer.score("Tom ?", [["a"]] * 5), r"^questions: got the str 'Tom \?', expected a list of"),
        (lambda scorer: scorer.score(QUESTIONS[:1], ["answer 2"]), r"^steps\[0\]: got the str 'answer 2'"),
        (lambda scorer: scorer.score(QUESTIONS[:2], [["answer 2"], "x"]), r"^steps\[1\]: got the str 'x'"),
        (lambda scorer: scorer.score(QUESTIONS[:1], [[["answer 2"]]]), r"^steps\[0\]\[0\]: got list"),
        (lambda scorer: scorer.score([None], [["answer 2"]]), r"^questions\[0\]: got NoneType"),
        (lambda scorer: scorer.score_texts(["Q"] * 4, "text"), r"^completions: got the str 'text'"),
        (lambda scorer: scorer.score_texts("text", ["a"] * 4), r"^questions: got the str 'text'"),
        (lambda scorer: scorer.score_solutions(QUESTIONS[:1], ["answer 2"]), r"^steps\[0\]: got the str"),
    ],
)
def test_a_string_instead_of_a_list_is_an_error(scorer, call, message):
    with pytest.raises(TypeError, match=message):
        call(scorer)


def test_a_string_instead_of_a_list_is_an_error_with_every_backend():
    class Lengths:
        prm_format, model_name, context_length, weights = FORMAT, "length", None, None

        def __init__(self):
            self.told = 0

        def score(self, questions, steps, skip_too_long):
            return [[1.0] * len(solution) for solution in steps]

        def give_up(self):
            self.told += 1

    backend = Lengths()
    scorer = StepScorer.from_backend(backend)
    for call in (lambda: scorer.score(["q"], ["ab"]), lambda: scorer.score_texts(["q", "q"], "ab")):
        with pytest.raises(TypeError, match="got the str 'ab'"):
            call()
    assert backend.told == 2  # the other processes do not wait for this process


def test_offloaded_weights_give_the_same_scores(scorer, tmp_path):
    """Accelerate offloads the weights to disk and loads them layer by layer. The scores are the same."""
    path = save_tiny(tmp_path / "model", word_level())
    FORMAT.save(path)
    expected = StepScorer.from_pretrained(path).score(QUESTIONS, STEPS)
    from accelerate import cpu_offload

    hooked = StepScorer.from_pretrained(path)
    cpu_offload(hooked.model, execution_device="cpu")
    for left, right in zip(hooked.score(QUESTIONS, STEPS), expected, strict=True):
        assert left == pytest.approx(right, abs=1e-6)


@pytest.mark.parametrize("max_batch_tokens", [1, 30, 64, 10_000])
def test_max_batch_tokens_limits_batches_and_does_not_change_scores(scorer, max_batch_tokens, monkeypatch):
    bounded = StepScorer(scorer.model, scorer.tokenizer, FORMAT, batch_size=4, max_batch_tokens=max_batch_tokens)
    shapes = []
    inner = bounded.backend._collate

    def collate(examples):
        batch = inner(examples)
        shapes.append(batch["input_ids"].shape)
        return batch

    monkeypatch.setattr(bounded.backend, "_collate", collate)
    for left, right in zip(bounded.score(QUESTIONS, STEPS), scorer.score(QUESTIONS, STEPS), strict=True):
        assert left == pytest.approx(right, abs=1e-6)
    assert sum(shape[0] for shape in shapes) == 9
    assert all(rows <= 4 and (rows * length <= max_batch_tokens or rows == 1) for rows, length in shapes)
    assert max(rows for rows, _ in shapes) == {1: 1, 30: 2, 64: 3, 10_000: 4}[max_batch_tokens]


def test_the_scores_of_all_batches_are_read_together(scorer):
    bounded = StepScorer(scorer.model, scorer.tokenizer, FORMAT, max_batch_tokens=30)
    with Synchronisations() as counts:
        bounded.score(QUESTIONS, STEPS)
    assert counts.kinds == {"tolist": 1}, counts.sites


def test_duplicate_solutions_are_scored_once(scorer, monkeypatch):
    rows = []
    inner = scorer.backend._collate
    monkeypatch.setattr(scorer.backend, "_collate", lambda examples: rows.append(len(examples)) or inner(examples))
    scores = scorer.score([*QUESTIONS, *QUESTIONS[:4]], [*STEPS, *STEPS[:2], STEPS[7], STEPS[3]])
    assert sum(rows) == 10  # the last but one solution is not a duplicate
    assert scores[9:11] + scores[12:] == [*scores[:2], scores[3]]
    scores[0].append(0.5)  # duplicates do not share a list
    assert len(scores[9]) == len(STEPS[0])


def test_loading_does_not_change_the_random_state(tmp_path):
    # A resumed policy loads its reward model at another time than the uninterrupted run, but must sample the same.
    save_tiny(tmp_path / "base", word_level())
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    get_peft_model(base, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    word_level().save_pretrained(tmp_path)
    FORMAT.save(tmp_path)
    state = torch.get_rng_state()
    assert isinstance(StepScorer.from_pretrained(tmp_path).model, PeftModel)
    assert torch.equal(torch.get_rng_state(), state)
