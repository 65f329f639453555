"""Loading reward models: models of TRL's trainer, adapters and their base models, and missing heads."""

import json
import shutil

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from public_models import TRLPRM, TRLPRMWithBOS, TRLPRMWithSpaceBeforeText
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
)
from zoo import STEPS, byte_level_bpe, save_tiny, sentencepiece_style, tiny_llama

from erprm_trl import PRMFormat, StepScorer
from erprm_trl.reward_model import encode_solution


FORMAT = PRMFormat(separator="\n")
QUESTION = "How many clips?"


@pytest.mark.parametrize("family", [TRLPRM, TRLPRMWithBOS, TRLPRMWithSpaceBeforeText])
def test_a_model_of_trls_trainer_scores_with_its_preset(family, tmp_path):
    torch.manual_seed(0)
    saved = family(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=r'PRMFormat\.preset\("trl-prm"\) for a model of TRL.s PRMTrainer'):
        StepScorer.from_pretrained(saved.path)
    scorer = StepScorer.from_pretrained(saved.path, prm_format="trl-prm")
    assert scorer.score([QUESTION], [STEPS])[0] == pytest.approx(saved.score(QUESTION, STEPS), abs=1e-5)


def save_adapter(folder, config):
    base = AutoModelForCausalLM.from_pretrained(save_tiny(folder / "base", byte_level_bpe()))
    torch.manual_seed(0)
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "base" not in name.split(".")[-1]:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder / "adapter")
    byte_level_bpe().save_pretrained(folder / "adapter")
    FORMAT.save(folder / "adapter")
    return folder / "adapter", model


def test_an_adapter_with_a_moved_base_model_is_an_error_with_a_fix(tmp_path):
    adapter, _ = save_adapter(tmp_path, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    before = StepScorer.from_pretrained(adapter).score([QUESTION], [STEPS])
    shutil.move(tmp_path / "base", tmp_path / "moved")
    with pytest.raises(FileNotFoundError) as failure:
        StepScorer.from_pretrained(adapter)
    message = str(failure.value)
    assert str(adapter) in message and f"base_model_name_or_path={str(tmp_path / 'base')!r}" in message
    assert "write its new place into base_model_name_or_path of" in message
    file = adapter / "adapter_config.json"  # the fix that the message proposes
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "moved")}))
    assert StepScorer.from_pretrained(adapter).score([QUESTION], [STEPS]) == before


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=16),
    ],
    ids=["prompt tuning", "p-tuning"],
)
def test_adapters_that_shift_positions_are_refused(config, tmp_path):
    adapter, model = save_adapter(tmp_path, config)
    expected = "Scoring: got an adapter of PEFT's type P_?(ROMPT_)?TUNING, which inserts 3 virtual tokens.*LoRA, IA3"
    with pytest.raises(ValueError, match=expected):
        StepScorer.from_pretrained(adapter)
    with pytest.raises(ValueError, match=expected):
        StepScorer(model, byte_level_bpe(), FORMAT)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"),
        IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ],
    ids=["LoRA", "IA3", "prefix tuning"],
)
@torch.no_grad()
def test_other_adapters_are_scored_at_the_separators(config, tmp_path):
    adapter, model = save_adapter(tmp_path, config)
    scorer = StepScorer.from_pretrained(adapter)
    assert isinstance(scorer.model, PeftModel)
    encoded = encode_solution(byte_level_bpe(), FORMAT, QUESTION, STEPS)
    logits = model.eval()(input_ids=torch.tensor([encoded.input_ids])).logits[0, encoded.step_positions]
    expected = logits[:, [scorer.token_ids.good, scorer.token_ids.bad]].softmax(-1)[:, 0].tolist()
    assert scorer.score([QUESTION], [STEPS])[0] == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 5e-4  # so that scores at other positions would differ


def test_an_architecture_without_the_head_is_an_error_that_names_the_other_head(tmp_path):
    tokenizer = byte_level_bpe()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3TextConfig(vocab_size=len(tokenizer), num_key_value_heads=1, head_dim=8, **sizes)
    Gemma3ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for prm_format in ("trl-prm", PRMFormat(separator="\n", head="token_mlp", num_labels=2)):
        with pytest.raises(ValueError, match=r"gemma3_text'.*no token classification.*Use head='lm'"):
            StepScorer.from_pretrained(tmp_path, prm_format=prm_format)
    assert len(StepScorer.from_pretrained(tmp_path, prm_format=FORMAT).score([QUESTION], [STEPS])[0]) == len(STEPS)
    base = AutoModelForCausalLM.from_pretrained(tmp_path)
    adapter = tmp_path / "adapter"
    get_peft_model(base, LoraConfig(task_type="TOKEN_CLS", target_modules=["q_proj"])).save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)
    with pytest.raises(ValueError, match=r"gemma3_text'.*no token classification.*Use head='lm'"):
        StepScorer.from_pretrained(adapter, prm_format="trl-prm")


def test_a_tokenizer_without_padding_and_end_tokens_can_score():
    with_end = byte_level_bpe()
    without = PreTrainedTokenizerFast(tokenizer_object=with_end.backend_tokenizer)
    assert without.pad_token is None and without.eos_token is None
    model = tiny_llama(len(with_end))
    solutions = [STEPS, STEPS[:1], STEPS[1:]]
    expected = StepScorer(model, with_end, FORMAT).score([QUESTION] * 3, solutions)
    for scores, those in zip(
        StepScorer(model, without, FORMAT).score([QUESTION] * 3, solutions), expected, strict=True
    ):
        assert scores == pytest.approx(those, abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("head", ["lm", "token"])
def test_scores_are_read_at_the_last_id_of_a_long_separator(head):
    """In Mistral's and Llama 2's tokenizers, a newline alone is encoded as SentencePiece's mark and the newline."""
    tokenizer = sentencepiece_style(bos=True)
    separator = tokenizer.encode("\n", add_special_tokens=False)
    assert len(separator) == 2
    model = tiny_llama(len(tokenizer), head).eval()
    prm_format = PRMFormat(separator="\n", head=head)
    ids, ends = tokenizer.encode(f"{QUESTION}\n"), []
    for step in STEPS:
        ids += [*tokenizer.encode(step, add_special_tokens=False), *separator]
        ends.append(len(ids) - 1)
    encoded = encode_solution(tokenizer, prm_format, QUESTION, STEPS)
    assert (encoded.input_ids, encoded.step_positions) == (ids, ends)
    logits = model(torch.tensor([ids])).logits[0, ends]
    tokens = tokenizer.convert_tokens_to_ids(["▁+", "▁-"])
    expected = logits[:, tokens].softmax(-1)[:, 0] if head == "lm" else logits[:, 0].sigmoid()
    scorer = StepScorer(model, tokenizer, prm_format)
    assert scorer.score([QUESTION] * 2, [STEPS[:1], STEPS])[1] == pytest.approx(expected.tolist(), abs=1e-6)
    inside = encode_solution(tokenizer, prm_format, QUESTION, ["fine", "one\ntwo"])
    assert inside.separator_inside == 1 and encoded.separator_inside is None


def save_trl_adapter(folder, task_type):
    """An adapter on a trained model of TRL's trainer, and its scores by a plain forward pass."""
    saved = TRLPRM(folder / "trl-prm")
    base = AutoModelForTokenClassification.from_pretrained(saved.path)
    model = get_peft_model(base, LoraConfig(task_type=task_type, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(folder / "adapter")
    AutoTokenizer.from_pretrained(saved.path).save_pretrained(folder / "adapter")
    saved.model = model
    return folder / "adapter", saved.score(QUESTION, STEPS)


@pytest.mark.parametrize("task_type", [None, "TOKEN_CLS"])
def test_an_adapter_on_a_trained_head_is_loaded_with_or_without_a_task_type(task_type, tmp_path):
    adapter, expected = save_trl_adapter(tmp_path, task_type)
    scorer = StepScorer.from_pretrained(adapter, prm_format="trl-prm")
    assert scorer.score([QUESTION], [STEPS])[0] == pytest.approx(expected, abs=1e-5)


def test_an_adapter_whose_base_model_lacks_the_head_is_refused(tmp_path):
    """Otherwise the head is random, and differs from load to load."""
    adapter, _ = save_adapter(tmp_path, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    classifier.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"base: got a checkpoint without lm_head.weight \(and with score.weight\)"):
        StepScorer.from_pretrained(adapter)
