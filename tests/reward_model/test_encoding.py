"""Alignment: every labelled position decodes to the separator with every tokenizer, and training and scoring use the
same ids."""

import dataclasses

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import ODD, STEPS, ZOO, save_tiny, silent_bpe

from erprm_trl import ERPRMConfig, ERPRMTrainer, PRMFormat, StepScorer
from erprm_trl.reward_model import encode_solution, encode_solutions


DIAL_STEPS = ["7 + 15 = 2", "2 * 3 = 6", "answer 6"]
QUESTIONS = {"WordLevel": "Tom dial 7 . right 15 . times 3 . ?"}


@pytest.fixture(params=list(ZOO))
def case(request):
    """Name, tokenizer, format, question and steps."""
    build, prm_format = ZOO[request.param]
    steps = DIAL_STEPS if request.param == "WordLevel" else STEPS
    return request.param, build(), prm_format, QUESTIONS.get(request.param, "How many clips?"), steps


def test_every_labelled_position_is_the_separator_after_its_step(case):
    _, tokenizer, prm_format, question, steps = case
    encoded = encode_solution(tokenizer, prm_format, question, steps)
    separator = prm_format.token_ids(tokenizer).separator
    assert len(encoded.step_positions) == len(steps)
    assert [encoded.input_ids[position] for position in encoded.step_positions] == [separator] * len(steps)
    start = encoded.step_positions[0] - len(tokenizer.encode(steps[0], add_special_tokens=False))
    for position, step in zip(encoded.step_positions, steps, strict=True):
        assert tokenizer.decode(encoded.input_ids[start:position]).strip() == step
        start = position + 1
    assert start == len(encoded.input_ids)  # nothing follows the last separator, in particular no EOS


def test_between_steps_text_is_encoded_only_between_steps(case):
    _, tokenizer, prm_format, question, steps = case
    spaced = dataclasses.replace(prm_format, between_steps=steps[-1])
    between = tokenizer.encode(steps[-1], add_special_tokens=False)
    pieces = [tokenizer.encode(step, add_special_tokens=False) for step in steps]
    separator = [prm_format.token_ids(tokenizer).separator]
    encoded = encode_solution(tokenizer, spaced, question, steps)
    expected = pieces[0] + separator + sum((between + piece + separator for piece in pieces[1:]), [])
    assert encoded.input_ids[encoded.prompt_length :] == expected
    assert [encoded.input_ids[position] for position in encoded.step_positions] == separator * len(steps)


@pytest.mark.parametrize("tokenization", ["pieces", "text"])
def test_a_separator_that_is_a_part_of_another_token_is_inside(tokenization):
    tokenizer = ZOO["byte-level BPE"][0]()
    tokenizer.add_tokens([".\n"])  # as many tokenizers have
    assert tokenizer.tokenize("It is 3.\nThen 4.").count("\n") == 0
    prm_format = PRMFormat(separator="\n", head="token", tokenization=tokenization)
    assert encode_solution(tokenizer, prm_format, "q", ["fine", "It is 3.\nThen 4."]).separator_inside == 1
    assert encode_solution(tokenizer, prm_format, "q", ["fine", "It is 3."]).separator_inside is None


def test_an_empty_separator_is_never_inside_a_step():
    tokenizer = ZOO["byte-level BPE"][0]()
    implicit = PRMFormat(separator="", head="implicit", between_steps="\n")
    encoded = encode_solution(tokenizer, implicit, "How many clips?", STEPS)
    assert encoded.separator_inside is None and len(encoded.step_positions) == len(STEPS)


def test_the_prompt_keeps_bos_and_loses_eos(case):
    name, tokenizer, prm_format, question, steps = case
    encoded = encode_solution(tokenizer, prm_format, question, steps)
    assert (encoded.input_ids[0] == tokenizer.bos_token_id) == ("BOS" in name)
    assert tokenizer.eos_token_id not in encoded.input_ids


def test_encoding_one_by_one_equals_encoding_together(case):
    _, tokenizer, prm_format, question, steps = case
    solutions = [steps, steps[:1], [], steps[1:]]
    together = encode_solutions(tokenizer, prm_format, [question] * 4, solutions)
    assert together == [encode_solution(tokenizer, prm_format, question, solution) for solution in solutions]


def test_training_and_scoring_encodings_are_identical(case, tmp_path, monkeypatch):
    _, tokenizer, prm_format, question, steps = case
    path = save_tiny(tmp_path / "model", tokenizer)
    prm_format.save(path)
    data = Dataset.from_list([{"prompt": question, "completions": steps, "labels": [1.0, 0.5, 0.0]}])
    arguments = ERPRMConfig(str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none")
    trainer = ERPRMTrainer(path, arguments, train_dataset=data)
    trained = next(iter(trainer.get_train_dataloader()))
    seen = {}
    scorer = StepScorer.from_pretrained(path)
    monkeypatch.setattr(
        "erprm_trl.reward_model.scoring.local.step_logits",
        lambda *batch, unwrapped, step_index: seen.update(batch=batch) or torch.zeros(3, 2),
    )
    scorer.score([question], [steps])
    for index, key in enumerate(("input_ids", "attention_mask", "step_positions", "step_mask"), start=3):
        assert torch.equal(trained[key], seen["batch"][index]), key


def test_truncation_drops_whole_steps_from_the_end(case):
    _, tokenizer, prm_format, question, steps = case
    full = encode_solution(tokenizer, prm_format, question, steps)
    for kept in range(3, -1, -1):
        limit = full.step_positions[kept - 1] + 1 if kept else full.step_positions[0]
        cut = encode_solution(tokenizer, prm_format, question, steps, max_length=limit)
        assert cut.step_positions == full.step_positions[:kept]
        assert cut.num_dropped_steps == 3 - kept
        if kept:
            assert cut.input_ids == full.input_ids[:limit]


def test_a_short_step_after_a_long_one_is_not_kept_alone():
    build, prm_format = ZOO["WordLevel"]
    cut = encode_solution(
        build(), prm_format, "Tom dial 7 . ?", ["7 + 15 = 2", "2 * 3 = 6 " * 20, "answer 6"], max_length=20
    )
    assert (len(cut.step_positions), cut.num_dropped_steps) == (1, 2)


def test_a_separator_inside_a_step_is_reported(case):
    _, tokenizer, prm_format, question, steps = case
    inside = [steps[0], f"{steps[1]} {prm_format.separator} {steps[1]}"]
    assert encode_solution(tokenizer, prm_format, question, inside).separator_inside == 1
    assert encode_solution(tokenizer, prm_format, question, steps).separator_inside is None


def test_bos_is_kept_with_a_tokenizer_that_skips_unknown_letters():
    prm_format = PRMFormat(separator="<STEP>", head="token")
    encoded = encode_solution(silent_bpe(), prm_format, "Tom ?", ["7", "é"])
    tokens = silent_bpe().convert_ids_to_tokens(encoded.input_ids)
    assert tokens == ["<s>", "7", "<STEP>", "<STEP>"] and encoded.step_positions == [2, 3]


PIECES = [
    "7 + 15",
    *" \n\té½ßİﬁⅧ한A.",
    "\n\n",
    "e\u0301",
    "\u202eab",
    "😀",
    "\x00",
    "\u200b",
    "\u00a0",
    "\u2028",
    "\ufffd",
]
ODD_TEXTS = st.lists(st.sampled_from([*PIECES, "##", "Ġ", "▁", "</s>", "<s>", "[SEP]"]), max_size=6).map("".join)


@pytest.mark.parametrize("name", ODD)
def test_any_text_is_aligned_with_any_tokenizer(name):
    build, separator = ODD[name]
    tokenizer = build()
    formats = [
        PRMFormat(separator=separator, head="token", tokenization=tokenization, between_steps=between)
        for tokenization in ("pieces", "text")
        for between in ("", "\n\n")
    ]
    separator_id = formats[0].token_ids(tokenizer).separator

    @settings(max_examples=settings().max_examples // 4, deadline=None)
    @given(st.sampled_from(formats), ODD_TEXTS, st.lists(ODD_TEXTS.map(lambda text: f"1{text}1"), max_size=4))
    def check(prm_format, question, steps):
        encoded = encode_solution(tokenizer, prm_format, question, steps)
        positions, ids = encoded.step_positions, encoded.input_ids
        assert len(positions) == len(steps) and positions == sorted(set(positions))
        if not any(separator in step for step in steps):
            assert [ids[position] for position in positions] == [separator_id] * len(steps)
            assert encoded.separator_inside is None
        if steps:  # each step's text is between the previous separator and its own
            assert positions[-1] == len(ids) - 1 and positions[0] >= encoded.prompt_length
        for end in {0, 3, len(ids) - 1}:
            cut = encode_solution(tokenizer, prm_format, question, steps, max_length=end)
            assert len(cut.step_positions) + cut.num_dropped_steps == len(steps)
            assert not cut.step_positions or len(cut.input_ids) <= end

    check()
