"""Exports to token classification models: the same scores for every architecture and adapter, and clear refusals."""

import dataclasses

import pytest
import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, get_peft_model
from public_models import Eurus
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    CohereConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from zoo import STEPS, byte_level_bpe

from erprm_trl import PRMFormat, StepScorer
from erprm_trl.cli import main
from erprm_trl.reward_model.scoring import export_reward_model


TOKENIZER = byte_level_bpe()
FORMAT = PRMFormat(separator="\n", prompt_template="Question: {question}\n", aggregation="mean")
QUESTIONS = ["How many clips?", "Käse?", "How many clips?"]
SOLUTIONS = [STEPS, STEPS[1:], STEPS[:1]]
SIZES = {"vocab_size": len(TOKENIZER), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "initializer_range": 0.3}
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "tied llama": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
    "mistral": MistralConfig(**SMALL),
    "gemma": GemmaConfig(**SMALL, head_dim=8),
    "phi with a bias": PhiConfig(**SMALL),
    "gpt2": GPT2Config(vocab_size=len(TOKENIZER), n_embd=32, n_layer=2, n_head=4, initializer_range=0.3),
}


def random_model(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    if model.get_output_embeddings().bias is not None:
        nn.init.normal_(model.get_output_embeddings().bias, std=0.1)
    return model


def tokenizer_of(config, folder):
    """The tokenizer as AutoTokenizer reads it next to a model of this architecture."""
    config.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def assert_same_scores(folder, scorer, tolerance=1e-6):
    exported = StepScorer.from_pretrained(folder)
    expected = scorer.score(QUESTIONS, SOLUTIONS)
    for scores, those in zip(exported.score(QUESTIONS, SOLUTIONS), expected, strict=True):
        assert scores == pytest.approx(those, abs=tolerance)
    values = sum(expected, [])
    assert max(values) - min(values) > 0.01  # so that another head would differ
    return exported


@pytest.mark.parametrize("name", CONFIGS)
def test_exported_scores_are_the_same(name, tmp_path):
    tokenizer = tokenizer_of(CONFIGS[name], tmp_path / "tokenizer")
    scorer = StepScorer(random_model(CONFIGS[name]), tokenizer, FORMAT)
    before = scorer.score(QUESTIONS, SOLUTIONS)
    scorer.export_token_classifier(tmp_path)
    exported = assert_same_scores(tmp_path, scorer)
    assert scorer.score(QUESTIONS, SOLUTIONS) == before
    assert exported.prm_format == dataclasses.replace(FORMAT, head="token", num_labels=2)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.id2label == {0: "bad", 1: "good"} and config.architectures[0].endswith("ForTokenClassification")


def test_the_head_has_the_rows_of_the_bad_and_the_good_token(tmp_path):
    model = random_model(CONFIGS["phi with a bias"])
    StepScorer(model, TOKENIZER, FORMAT).export_token_classifier(tmp_path)
    bad, good = TOKENIZER.convert_tokens_to_ids("-"), TOKENIZER.convert_tokens_to_ids("+")
    head = AutoModelForTokenClassification.from_pretrained(tmp_path).score
    assert torch.equal(head.weight[0], model.lm_head.weight[bad])
    assert torch.equal(head.weight[1], model.lm_head.weight[good])
    assert head.bias.tolist() == [model.lm_head.bias[bad].item(), model.lm_head.bias[good].item()]


ADAPTERS = {
    "LoRA": LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"]),
    "LoRA on the head": LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "lm_head"]),
    "DoRA": LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], use_dora=True),
    "new tokens": LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [5, 12, 14]}
    ),
    "saved head": LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "IA3": IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]),
}


def with_adapter(base, config):
    torch.manual_seed(1)
    model = get_peft_model(base, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_are_merged_and_the_scorer_keeps_its_own(name, tied, tmp_path):
    config = ADAPTERS[name]
    model = with_adapter(random_model(CONFIGS["tied llama" if tied else "llama"]), config)
    scorer = StepScorer(model, TOKENIZER, FORMAT)
    before = scorer.score(QUESTIONS, SOLUTIONS)
    scorer.export_token_classifier(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    assert_same_scores(tmp_path, scorer, tolerance=1e-5)  # the sum of two weights is rounded
    assert scorer.score(QUESTIONS, SOLUTIONS) == before and scorer.model is model


def test_a_folder_with_an_adapter_is_exported(tmp_path):
    random_model(CONFIGS["qwen2"]).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with_adapter(base, ADAPTERS["LoRA"]).save_pretrained(tmp_path / "adapter")
    tokenizer_of(CONFIGS["qwen2"], tmp_path / "tokenizer").save_pretrained(tmp_path / "adapter")
    FORMAT.save(tmp_path / "adapter")
    exported = export_reward_model(tmp_path / "adapter", tmp_path / "exported")
    assert exported == PRMFormat.load(tmp_path / "exported")
    assert_same_scores(tmp_path / "exported", StepScorer.from_pretrained(tmp_path / "adapter"), tolerance=1e-5)


def test_an_adapter_of_a_token_classifier_is_merged(tmp_path):
    torch.manual_seed(0)
    base = AutoModelForTokenClassification.from_config(LlamaConfig(**SMALL, num_labels=1))
    adapter = LoraConfig(task_type="TOKEN_CLS", target_modules=["q_proj"], modules_to_save=["score"])
    prm_format = dataclasses.replace(FORMAT, head="token", num_labels=1)
    scorer = StepScorer(with_adapter(base, adapter), TOKENIZER, prm_format)
    scorer.export_token_classifier(tmp_path)
    assert assert_same_scores(tmp_path, scorer, tolerance=1e-5).prm_format == prm_format


def test_half_precision_keeps_its_dtype(tmp_path):
    scorer = StepScorer(random_model(CONFIGS["llama"]).bfloat16(), TOKENIZER, FORMAT)
    scorer.export_token_classifier(tmp_path)
    model = StepScorer.from_pretrained(tmp_path).model
    assert model.dtype == model.score.weight.dtype == torch.bfloat16


SOFT_CAP = Gemma2Config(**SMALL, head_dim=8)
SCALED = {**SMALL, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
DECODER = BertConfig(**SIZES, intermediate_size=48, is_decoder=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SOFT_CAP, "'gemma2', which changes its logits after the head .a soft cap"),
        (CohereConfig(**SCALED, logit_scale=0.5), "'cohere', for which transformers has no token classification"),
        (GraniteConfig(**SCALED, logits_scaling=8.0), "'granite', for which transformers has no token classification"),
        (DECODER, "'bert', whose language-model head is more than one linear layer"),
    ],
    ids=["soft cap", "cohere", "granite", "bert"],
)
def test_architectures_with_other_heads_are_refused(config, message, tmp_path):
    scorer = StepScorer(random_model(config), TOKENIZER, FORMAT)
    with pytest.raises(ValueError, match=message + ".*Score with the model itself"):
        scorer.export_token_classifier(tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_a_scale_of_the_logits_goes_into_the_head(tmp_path, monkeypatch):
    model = random_model(CONFIGS["llama"])
    forward = type(model).forward

    def scaled(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits / 8
        return output

    monkeypatch.setattr(type(model), "forward", scaled)
    scorer = StepScorer(model, TOKENIZER, FORMAT)
    scorer.export_token_classifier(tmp_path)
    for scores, those in zip(
        StepScorer.from_pretrained(tmp_path).score(QUESTIONS, SOLUTIONS),
        scorer.score(QUESTIONS, SOLUTIONS),
        strict=True,
    ):
        assert scores == pytest.approx(those, abs=1e-6)


@pytest.mark.skipif(
    not hasattr(PreTrainedModel, "activation_checkpointing_enable"),
    reason="older versions of transformers load the tokenizer in its own class",
)
def test_a_tokenizer_that_would_be_loaded_in_another_class_is_refused(tmp_path):
    other_class = StepScorer(random_model(CONFIGS["qwen2"]), TOKENIZER, FORMAT)
    with pytest.raises(ValueError, match="AutoTokenizer reads the saved tokenizer as Qwen2Tokenizer, which encodes"):
        other_class.export_token_classifier(tmp_path / "other class")


def test_what_cannot_be_exported_is_refused(tmp_path):
    eurus = Eurus(tmp_path / "eurus")
    implicit = StepScorer(eurus.models[0], eurus.tokenizer, eurus.prm_format, reference_model=eurus.models[1])
    with pytest.raises(ValueError, match="got head='implicit', expected 'lm'"):
        implicit.export_token_classifier(tmp_path / "exported")
    scorer = StepScorer(random_model(CONFIGS["llama"]), TOKENIZER, FORMAT)
    scorer.export_token_classifier(tmp_path / "exported")
    with pytest.raises(ValueError, match="got a folder with a model, expected a new folder"):
        scorer.export_token_classifier(tmp_path / "exported")
    prefix = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    prefixed = StepScorer(get_peft_model(random_model(CONFIGS["llama"]), prefix), TOKENIZER, FORMAT)
    with pytest.raises(ValueError, match="PREFIX_TUNING.*expected an adapter that can be merged"):
        prefixed.export_token_classifier(tmp_path / "prefixed")


def test_a_scorer_without_a_model_in_this_process_cannot_export(tmp_path):
    class Remote:
        prm_format, model_name, context_length, weights = FORMAT, "remote", None, None

        def score(self, questions, steps, skip_too_long):
            return [[0.5] * len(solution) for solution in steps]

    with pytest.raises(ValueError, match="Remote.*expected a model in this process.*erprm export"):
        StepScorer.from_backend(Remote()).export_token_classifier(tmp_path)


def test_the_command_exports_a_folder(tmp_path, capsys):
    random_model(CONFIGS["llama"]).save_pretrained(tmp_path / "erprm")
    TOKENIZER.save_pretrained(tmp_path / "erprm")
    words = ["export", "--reward_model", str(tmp_path / "erprm"), "--output_dir", str(tmp_path / "exported")]
    assert main(words) == 1
    assert "got no prm_format.json, expected the file that ERPRMTrainer saves" in capsys.readouterr().err
    FORMAT.save(tmp_path / "erprm")
    assert main(words) == 0
    assert f"Serve it: vllm serve {tmp_path / 'exported'} --runner pooling" in capsys.readouterr().out
    assert_same_scores(tmp_path / "exported", StepScorer.from_pretrained(tmp_path / "erprm"))
    assert main(words) == 1
    assert "got a folder with a model, expected a new folder" in capsys.readouterr().err
