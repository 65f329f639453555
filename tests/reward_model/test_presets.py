"""Presets give the same scores as a slow reference implementation of each public model's format."""

import dataclasses
import json

import pytest
import torch
from datasets import Dataset
from public_models import FAMILIES, QWEN_SYSTEM, TRLPRM, Eurus, MathShepherd, QwenPRM, RLHFlow, Skywork
from zoo import STEPS, save_tiny, sentencepiece_style

from erprm_trl import ERPRMConfig, ERPRMTrainer, PRMFormat, StepScorer
from erprm_trl.reward_model import encode_solution
from erprm_trl.reward_model.presets import MODELS, PRESETS, preset_of


QUESTION = "How many clips did Natalia sell?"
SOLUTIONS = {
    "plain": STEPS,
    "one step": ["2 + 3 = 5."],
    "headed": ["Step 1: 2 + 3 = 5.", "Step 2: 5 - 1 = 4.", "Step 3: the answer is 4."],
    "separators inside": [
        "a ки b ки", "ки", "x<extra_0>y", "one\n\ntwo\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "+<|eot_id|>", "last",
    ],
    "empty steps": ["", "2 + 3 = 5", "", "", "4."],
    "unicode": ["½ davon ist … 1,5 €", "日本語 🙂‍↔️ e\u0301", "яблоки и киты", "\u00a0x\u200b"],
    "very long": [*[f"{value} + {value} = {2 * value}." for value in range(60)], "7 " * 700, "end."],
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def without_expected_ids():
    """Drops `expected_ids`, because the tiny models' tokenizers have other ids than the public models'."""
    with pytest.MonkeyPatch.context() as patch:
        for name, fields in PRESETS.items():
            patch.setitem(PRESETS, name, fields | {"expected_ids": None})
        yield


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.__name__)
def family(request, tmp_path_factory):
    torch.manual_seed(0)
    return request.param(tmp_path_factory.mktemp("public") / "model")


@pytest.fixture(scope="module")
def scorer(family):
    return StepScorer.from_pretrained(family.path, prm_format=family.prm_format)


@pytest.mark.slow("scores long texts with every preset")
@torch.no_grad()
@pytest.mark.parametrize("name", SOLUTIONS)
def test_scores_equal_the_reference_implementation(family, scorer, name):
    expected = family.score(QUESTION, SOLUTIONS[name])
    assert scorer.score([QUESTION], [SOLUTIONS[name]])[0] == pytest.approx(expected, abs=2e-5)
    assert name == "one step" or max(expected) - min(expected) > 1e-3  # so that a shifted position changes the scores


@pytest.mark.slow("scores long texts with every preset")
@pytest.mark.parametrize("batch_size", [2, 64])
def test_batch_size_order_and_padding_do_not_change_scores(family, scorer, batch_size):
    solutions = [*SOLUTIONS.values(), []]
    questions = [QUESTION, "", "½?", "A longer question " * 5, QUESTION, "ки", "x<extra_0>", "no steps"]
    alone = [scorer.score([question], [steps])[0] for question, steps in zip(questions, solutions, strict=True)]
    together = StepScorer(
        scorer.model,
        scorer.tokenizer,
        scorer.prm_format,
        batch_size=batch_size,
        reference_model=scorer.reference_model,
    )
    for left, right in zip(together.score(questions[::-1], solutions[::-1])[::-1], alone, strict=True):
        assert left == pytest.approx(right, abs=2e-5)


@pytest.mark.parametrize("name", ["headed", "separators inside", "unicode"])
def test_whole_steps_are_dropped_from_a_solution_that_is_too_long(family, name):
    steps = SOLUTIONS[name]
    full = encode_solution(family.tokenizer, family.prm_format, QUESTION, steps)
    for kept in range(len(steps) + 1):
        limit = full.step_positions[kept - 1] + 1 if kept else full.step_positions[0]
        cut = encode_solution(family.tokenizer, family.prm_format, QUESTION, steps, max_length=limit)
        assert len(cut.step_positions) == kept == len(steps) - cut.num_dropped_steps
        alone = encode_solution(family.tokenizer, family.prm_format, QUESTION, steps[:kept])
        assert (cut.input_ids, cut.step_positions) == (alone.input_ids, alone.step_positions)


@torch.no_grad()
def test_math_shepherd_scores_as_published(tmp_path):
    """The published way: encode the whole text, and read the scores at every id of the separator."""
    family = MathShepherd(tmp_path / "model")
    question, steps = "Janet's ducks lay 16 eggs. How many?", SOLUTIONS["headed"]
    ids = torch.tensor([family.tokenizer.encode(f"{question} " + " ки\n".join(steps) + " ки")])
    candidates = family.tokenizer.encode("+ -")[1:]
    scores = family.model(ids).logits[:, :, candidates].softmax(-1)[:, :, 0]
    expected = scores[ids == family.tokenizer.encode("ки")[-1]].tolist()
    scorer = StepScorer.from_pretrained(family.path, prm_format=PRMFormat.preset("math-shepherd"))
    assert scorer.score([question], [steps])[0] == pytest.approx(expected, abs=1e-5)
    encoded = encode_solution(family.tokenizer, family.prm_format, question, steps)
    assert encoded.input_ids == ids[0].tolist()


def test_prompts_and_prompt_lengths_of_the_presets(tmp_path):
    for family, prompt in [
        (RLHFlow(tmp_path / "rlhflow"), "26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhy? "),
        (QwenPRM(tmp_path / "qwen"), f"{QWEN_SYSTEM}<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assist"),
        (Skywork(tmp_path / "skywork"), "<|im_start|>Why?\n"),
    ]:
        encoded = encode_solution(family.tokenizer, family.prm_format, "Why?", ["First.", "Second."])
        text = family.tokenizer.decode(encoded.input_ids)
        assert prompt in text and text.count(family.tokenizer.bos_token or "nothing") <= 1 + (prompt[:5] == "<|im_")
        assert family.tokenizer.decode(encoded.input_ids[encoded.prompt_length :]).lstrip().startswith("First.")


def test_a_separator_inside_a_step_is_reported(family):
    separator = family.prm_format.separator
    if separator:
        for first in (f"a{separator} b", f"a{separator}"):
            encoded = encode_solution(family.tokenizer, family.prm_format, QUESTION, ["fine", first, "last"])
            assert encoded.separator_inside == 1
    assert encode_solution(family.tokenizer, family.prm_format, QUESTION, ["a", "b."]).separator_inside is None


TRAINED = {"math-shepherd": MathShepherd, "rlhflow": RLHFlow, "skywork-o1-prm": Skywork, "trl-prm": TRLPRM}
DATA = [{"prompt": QUESTION, "completions": STEPS, "labels": [1.0, 0.6, 0.0]}] * 2


def train(family, preset, folder, steps):
    arguments = ERPRMConfig(
        str(folder), format_preset=preset, max_steps=steps, use_cpu=True, bf16=False, report_to="none",
        learning_rate=0.02, gradient_checkpointing=False, save_strategy="no", weight_decay=0.0,
    )  # fmt: skip
    trainer = ERPRMTrainer(family.path, arguments, train_dataset=Dataset.from_list(DATA))
    return trainer


@pytest.mark.slow("trains every preset")
@pytest.mark.parametrize("preset", TRAINED)
def test_training_continues_from_a_public_model(preset, tmp_path):
    torch.manual_seed(0)
    family = TRAINED[preset](tmp_path / "model")
    before = StepScorer.from_pretrained(family.path, prm_format=PRMFormat.preset(preset)).score([QUESTION], [STEPS])[0]
    trainer = train(family, preset, tmp_path / "out", 40)
    start = StepScorer(trainer.model, trainer.processing_class, trainer.prm_format).score([QUESTION], [STEPS])[0]
    assert start == pytest.approx(before, abs=1e-5)  # the model keeps its trained head
    trainer.train()
    trainer.save_model(tmp_path / "out")
    scorer = StepScorer.from_pretrained(tmp_path / "out")
    # The new labels state no eta, and the eta of the public model's labels does not hold for them.
    assert scorer.prm_format == dataclasses.replace(PRMFormat.preset(preset), eta=None)
    assert scorer.score([QUESTION], [STEPS])[0] == pytest.approx([1.0, 0.6, 0.0], abs=0.1)


def test_formats_that_only_score_cannot_be_trained(tmp_path):
    with pytest.raises(ValueError, match="which can only score.*expected one of lm, token, implicit"):
        train(QwenPRM(tmp_path / "model"), "qwen2.5-math-prm", tmp_path / "out", 1)


def test_a_checkpoint_without_the_head_is_an_error(tmp_path):
    qwen, trl = QwenPRM(tmp_path / "qwen"), TRLPRM(tmp_path / "trl")
    with pytest.raises(ValueError, match=r"without score.bias, score.weight .*with score.0.bias.*qwen2.5-math-prm"):
        StepScorer.from_pretrained(qwen.path, prm_format=PRMFormat.preset("trl-prm"))
    with pytest.raises(ValueError, match=r"without score.0.bias.*with score.bias.*head='token_mlp'"):
        StepScorer.from_pretrained(trl.path, prm_format=PRMFormat.preset("qwen2.5-math-prm"))
    base = save_tiny(tmp_path / "base", qwen.tokenizer)
    with pytest.raises(ValueError, match="without score.bias"):
        StepScorer.from_pretrained(base, prm_format=PRMFormat.preset("skywork-o1-prm"))


@pytest.mark.parametrize(
    ("model", "preset"),
    [
        ("HanningZhang/Llama3.1-Math-PRM", "er-prm"),
        ("RLHFlow/Llama3.1-8B-PRM-Mistral-Data", "rlhflow-mistral"),
        ("RLHFlow/Llama3.1-8B-PRM-Deepseek-Data", "rlhflow"),
        ("jinachris/PURE-PRM-7B", "pure-prm"),
    ],
)
def test_the_preset_of_a_public_model_follows_from_its_name(model, preset):
    assert preset_of(model) == preset


def test_a_tokenizer_with_other_ids_is_refused_before_the_weights_are_loaded(tmp_path, monkeypatch):
    family = MathShepherd(tmp_path / "model")
    monkeypatch.setattr("erprm_trl.reward_model.scoring.loading.load_reward_model", None)
    preset = dataclasses.replace(family.prm_format, expected_ids={"separator": 12902, "good_token": 648})
    with pytest.raises(ValueError, match=r"separator: .*' ки' as .*expected 12902, .*trained with.*model's repo"):
        StepScorer.from_pretrained(family.path, prm_format=preset)


def test_expected_ids_are_kept_unless_a_token_changes():
    ids = {"separator": 1}
    saved = PRMFormat(expected_ids=ids)
    assert ERPRMConfig("out", splitter="step", bf16=False).resolve_format(saved).expected_ids == ids
    assert ERPRMConfig("out", separator="ки", bf16=False).resolve_format(saved).expected_ids is None


def test_skywork_keeps_the_white_space_of_lines(tmp_path):
    """As published, lines keep their leading and trailing white space. A blank line belongs to the line before it."""
    family = Skywork(tmp_path / "model")
    scorer = StepScorer.from_pretrained(family.path, prm_format=family.prm_format)
    text = "So:\n  - 2 + 3 = 5. \n\n\t5 - 1 = 4.\n"
    assert scorer.split(text) == ["So:", "  - 2 + 3 = 5. \n", "\t5 - 1 = 4."]
    encoded = encode_solution(family.tokenizer, family.prm_format, QUESTION, scorer.split(text))
    ids = family.tokenizer.encode(f"{family.bos}{QUESTION}\n")
    ends = []
    for line in text.split("\n")[:-1]:
        ids += [*family.tokenizer.encode(line), *family.tokenizer.encode("\n")]
        ends.append(len(ids) - 1)
    assert encoded.input_ids == ids and encoded.step_positions == [ends[0], ends[2], ends[3]]
    scores = scorer.score_texts([QUESTION], [text])[0]
    assert scorer.score_solutions([QUESTION], [scorer.split(text)]) == pytest.approx([sum(scores) / 3])


def test_an_implicit_model_needs_a_reference_model(tmp_path):
    eurus = Eurus(tmp_path / "eurus")
    nameless = dataclasses.replace(eurus.prm_format, reference_model=None)
    with pytest.raises(ValueError, match="reference_model: got None"):
        StepScorer.from_pretrained(eurus.path, prm_format=nameless)
    with pytest.raises(ValueError, match="without a reference_model"):
        StepScorer(eurus.models[0], eurus.tokenizer, nameless)


def test_offsets_need_a_fast_tokenizer():
    tokenizer = sentencepiece_style()
    type(tokenizer).is_fast, kept = property(lambda self: False), type(tokenizer).is_fast
    try:
        with pytest.raises(ValueError, match="has no character offsets"):
            encode_solution(tokenizer, PRMFormat.preset("math-shepherd"), QUESTION, STEPS)
    finally:
        type(tokenizer).is_fast = kept


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_saved_and_read(name, tmp_path):
    preset = PRMFormat.preset(name)
    preset.save(tmp_path)
    assert PRMFormat.load(tmp_path) == preset
    assert preset.render_prompt("{x}").count("{x}") == 1 and "{bos_token}" not in preset.render_prompt("")


def test_format_files_of_earlier_versions_are_read():
    fields = {
        "separator": "ки", "good_token": "✓", "bad_token": "✗", "head": "token",
        "prompt_template": "check {question}", "splitter": "ки", "aggregation": "last",
    }  # fmt: skip
    assert dataclasses.asdict(PRMFormat.from_json(json.dumps(fields))) == fields | {
        "between_steps": "", "tokenization": "pieces", "num_labels": 1, "reference_model": None, "beta": 0.001,
        "cumulative": True, "steps_of": "both", "expected_ids": None, "eta": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: PRMFormat.preset("qwen"),
            "preset: got 'qwen', expected one of math-shepherd, er-prm, rlhflow-mistral, rlhflow, qwen",
        ),
        (lambda: PRMFormat(tokenization="words"), "tokenization: got 'words', expected one of pieces, text"),
        (lambda: PRMFormat(head="token", num_labels=3), "num_labels: got 3"),
        (lambda: PRMFormat(separator="", head="token"), "separator: got ''"),
        (lambda: ERPRMConfig("out", format_preset="qwen", bf16=False).resolve_format(None), "got 'qwen'"),
    ],
)
def test_invalid_formats_raise_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_fields_override_a_preset():
    config = ERPRMConfig("out", format_preset="math-shepherd", aggregation="last", bf16=False)
    expected = dataclasses.replace(PRMFormat.preset("math-shepherd"), aggregation="last")
    assert config.resolve_format(PRMFormat(separator="x")) == expected


def test_a_public_models_folder_has_the_format_of_its_preset(tmp_path):
    """A folder's name selects the preset, and a `prm_format.json` in the folder takes precedence."""
    folder = tmp_path / "Qwen2.5-Math-PRM-7B"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert PRMFormat.load(folder) == PRMFormat.preset("qwen2.5-math-prm")
    PRMFormat(separator="ки").save(folder)
    assert PRMFormat.load(folder) == PRMFormat(separator="ки")
    assert set(MODELS.values()) == set(PRESETS) - {"trl-prm"}
