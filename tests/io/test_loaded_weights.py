"""A model whose checkpoint has no language-model head is refused wherever one is loaded. It would score and sample
with random weights, which differ from load to load."""

import dataclasses

import pytest
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification
from zoo import byte_level_bpe, save_tiny

from erprm_trl import ERPRMConfig, ERPRMTrainer, PRMFormat, TransformersSampler
from erprm_trl.reward_model.reference_model import load_reference_model


ROWS = Dataset.from_list([{"prompt": "2 + 3?", "completions": ["2 + 3 = 5", "So 6."], "labels": [1.0, 0.0]}])


@pytest.fixture(scope="module", params=[AutoModelForSequenceClassification, AutoModelForTokenClassification])
def headless(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    base = save_tiny(folder / "base", byte_level_bpe())
    request.param.from_pretrained(base, num_labels=1).save_pretrained(folder / "classifier")
    byte_level_bpe().save_pretrained(folder / "classifier")
    return str(folder / "classifier")


@pytest.mark.parametrize("peft_config", [None, LoraConfig(target_modules="all-linear")])
def test_a_training_of_a_language_model_head(headless, peft_config, tmp_path):
    args = ERPRMConfig(str(tmp_path), head="lm", use_cpu=True, bf16=False, report_to="none")
    message = "classifier: got a checkpoint without lm_head.weight, .* set head='token' to train a new head"
    with pytest.raises(ValueError, match=message):
        ERPRMTrainer(headless, args, train_dataset=ROWS, peft_config=peft_config)
    args = dataclasses.replace(args, head="token")
    ERPRMTrainer(headless, args, train_dataset=ROWS, peft_config=peft_config)


def test_a_policy(headless):
    with pytest.raises(ValueError, match="classifier: got a checkpoint without lm_head.weight"):
        TransformersSampler.from_pretrained(headless)


def test_a_reference_model(headless):
    prm_format = PRMFormat(head="implicit", reference_model=headless)
    with pytest.raises(ValueError, match="without lm_head.weight.*Set reference_model to a language model"):
        load_reference_model(prm_format, {"dtype": "auto", "device_map": None, "trust_remote_code": False})


def test_tied_weights_are_not_missing(tmp_path):
    path = save_tiny(tmp_path / "tied", byte_level_bpe(), tie_word_embeddings=True)
    assert TransformersSampler.from_pretrained(path, max_new_tokens=1)
