"""Preparing a model for training: adapters whose training continues, heads that are kept, and models that are refused
because nothing or the wrong weights would be trained."""

import json
import shutil

import pytest
import torch
from datasets import Dataset
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    PreTrainedTokenizerFast,
)
from zoo import byte_level_bpe, save_tiny, tiny_llama, word_level

from erprm_trl import ERPRMConfig, ERPRMTrainer, PRMFormat, StepScorer


FORMAT = {"separator": "ки", "good_token": "✓", "bad_token": "✗", "prompt_template": "check {question}"}
DATA = Dataset.from_list(
    [
        {"prompt": "Tom dial 7 . right 15 . ?", "completions": ["7 + 15 = 2", "answer 2"], "labels": [0.9, 1.0]},
        {"prompt": "Tom dial 7 . right 15 . ?", "completions": ["7 + 15 = 3", "answer 3"], "labels": [0.2, 0.0]},
    ]
)
ADAPTERS = {
    "LoRA": LoraConfig(r=4, target_modules="all-linear"),
    "IA3": IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "prefix": PrefixTuningConfig(num_virtual_tokens=3),
}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"), word_level())


def config(folder, **options):
    settings = {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
    }
    settings |= {"logging_steps": 1, "save_strategy": "no", "use_cpu": True, "bf16": False, "report_to": "none"}
    return ERPRMConfig(str(folder), **{**settings, "disable_tqdm": True, **options})


def train(model, folder, data=DATA, processing_class=None, peft_config=None, **options):
    """Trains, saves the model, and returns the trainer."""
    trainer = ERPRMTrainer(
        model,
        config(folder, **options),
        train_dataset=data,
        processing_class=processing_class,
        peft_config=peft_config,
    )
    trainer.train()
    trainer.save_model()
    assert all(log["grad_norm"] > 0 for log in trainer.state.log_history if "grad_norm" in log)
    return trainer


def scores(scorer, data=DATA):
    return torch.tensor(sum(scorer.score(data["prompt"][:], data["completions"][:]), []))


def scores_of(trainer, data=DATA):
    return scores(StepScorer(trainer.model, trainer.processing_class, trainer.prm_format), data)


# Adapters


@pytest.mark.parametrize("is_path", [True, False], ids=["path", "model"])
def test_a_new_adapter_starts_from_the_seed(is_path, model_path, tmp_path):
    adapters = []
    for global_seed in range(2):
        model = model_path if is_path else AutoModelForCausalLM.from_pretrained(model_path)
        torch.manual_seed(global_seed)  # the state of the global generator must not matter
        trainer = ERPRMTrainer(
            model,
            config(tmp_path, **FORMAT),
            train_dataset=DATA,
            processing_class=word_level(),
            peft_config=ADAPTERS["LoRA"],
        )
        adapters.append({name: weight for name, weight in trainer.model.named_parameters() if "lora_A" in name})
    assert adapters[0]
    for name, weight in adapters[0].items():
        torch.testing.assert_close(weight, adapters[1][name], atol=0, rtol=0)


@pytest.mark.parametrize("head", ["lm", "token"])
@pytest.mark.parametrize("kind", ["LoRA", "IA3"])
def test_training_of_a_saved_adapter_continues(kind, head, model_path, tmp_path):
    first = train(model_path, tmp_path / "first", peft_config=ADAPTERS[kind], head=head, **FORMAT)
    again = ERPRMTrainer(tmp_path / "first", config(tmp_path / "again"), train_dataset=DATA)
    assert again.prm_format == first.prm_format
    torch.testing.assert_close(scores_of(again), scores_of(first), atol=1e-6, rtol=0)  # the saved weights
    before = {name: weight.clone() for name, weight in again.model.named_parameters()}
    again.train()
    again.save_model()
    changed = {name for name, weight in again.model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed and all("lora_" in name or "ia3_" in name or "modules_to_save" in name for name in changed)
    assert any("modules_to_save" in name for name in changed) == (head == "token")
    loaded = scores(StepScorer.from_pretrained(tmp_path / "again"))
    torch.testing.assert_close(loaded, scores_of(again), atol=1e-6, rtol=0)
    assert not torch.allclose(loaded, scores_of(first), atol=1e-4)


@pytest.mark.parametrize("head", ["lm", "token"])
def test_prefix_tuning_is_trained_and_scored_at_the_right_positions(head, model_path, tmp_path):
    new = ADAPTERS["prefix"]
    with pytest.raises(ValueError, match="PREFIX_TUNING with gradient_checkpointing=True.*=False"):
        ERPRMTrainer(model_path, config(tmp_path, head=head, **FORMAT), train_dataset=DATA, peft_config=new)
    trainer = train(model_path, tmp_path, peft_config=new, head=head, gradient_checkpointing=False, **FORMAT)
    loaded = StepScorer.from_pretrained(tmp_path)
    torch.testing.assert_close(scores(loaded), scores_of(trainer), atol=1e-6, rtol=0)
    # A plain forward pass, read at the separators of the text.
    ids = torch.tensor([trainer.processing_class.encode("check Tom dial 7 . right 15 . ? 7 + 15 = 2 ки answer 2 ки")])
    at = (ids[0] == trainer.processing_class.convert_tokens_to_ids("ки")).nonzero()[:, 0]
    logits = trainer.model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, at].detach()
    good, bad = trainer.processing_class.convert_tokens_to_ids(["✓", "✗"])
    odds = logits[:, good] - logits[:, bad] if head == "lm" else logits[:, 0]
    torch.testing.assert_close(scores(loaded)[:2], odds.sigmoid(), atol=1e-6, rtol=0)
    again = train(tmp_path, tmp_path / "again", gradient_checkpointing=False)
    assert not torch.allclose(scores_of(again), scores(loaded), atol=1e-4)


@pytest.mark.parametrize("head", ["lm", "token"])
@pytest.mark.parametrize("new", [PromptTuningConfig(num_virtual_tokens=3), PromptEncoderConfig(num_virtual_tokens=3)])
def test_virtual_tokens_before_the_text_are_refused(new, head, model_path, tmp_path):
    with pytest.raises(ValueError, match=r"ERPRMTrainer: got an adapter of PEFT's type P\w+, which inserts 3 virtual"):
        ERPRMTrainer(model_path, config(tmp_path, head=head, **FORMAT), train_dataset=DATA, peft_config=new)


def test_a_model_with_a_trainable_adapter_is_trained(model_path, tmp_path):
    train(model_path, tmp_path / "first", peft_config=ADAPTERS["LoRA"], **FORMAT)
    options = {"train_dataset": DATA, "processing_class": word_level()}

    def load(**how):
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_path), tmp_path / "first", **how)

    for frozen in (load(), AutoModelForCausalLM.from_pretrained(tmp_path / "first")):
        if any(weight.requires_grad for weight in frozen.parameters()):
            continue  # transformers 5.3 loads adapters to be trained
        with pytest.raises(ValueError, match=r"every weight of the given \w+ is frozen .*is_trainable=True"):
            ERPRMTrainer(frozen, config(tmp_path, **FORMAT), **options)
    train(load(is_trainable=True), tmp_path / "next", processing_class=word_level(), **FORMAT)
    with pytest.raises(ValueError, match="every weight .* is frozen.*requires_grad"):
        ERPRMTrainer(tiny_llama(46).requires_grad_(False), config(tmp_path, **FORMAT), **options)


def test_an_adapter_together_with_peft_config_is_refused(model_path, tmp_path):
    new = ADAPTERS["LoRA"]
    trainer = train(model_path, tmp_path / "first", peft_config=new, **FORMAT)
    both = {"train_dataset": DATA, "peft_config": new}
    with pytest.raises(ValueError, match="got the adapter .*first' together with `peft_config`"):
        ERPRMTrainer(str(tmp_path / "first"), config(tmp_path), **both)
    with pytest.raises(ValueError, match="got a PeftModelForCausalLM with an adapter together with `peft_config`"):
        ERPRMTrainer(trainer.model, config(tmp_path, **FORMAT), processing_class=word_level(), **both)
    # The fixes that the message proposes: the base model, or the merged adapter.
    ERPRMTrainer(model_path, config(tmp_path, **FORMAT), **both)
    merged = trainer.model.merge_and_unload()
    ERPRMTrainer(merged, config(tmp_path, **FORMAT), processing_class=word_level(), **both)
    assert new.task_type is None  # the configuration is not changed


def test_an_adapter_with_a_moved_base_model_is_an_error_that_names_both(tmp_path):
    base = save_tiny(tmp_path / "base", word_level())
    train(base, tmp_path / "adapter", peft_config=ADAPTERS["LoRA"], **FORMAT)
    shutil.move(base, tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"adapter: .*base_model_name_or_path='.*base'.*has moved"):
        ERPRMTrainer(str(tmp_path / "adapter"), config(tmp_path), train_dataset=DATA)
    file = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "elsewhere")}
    file.write_text(json.dumps(settings))
    train(str(tmp_path / "adapter"), tmp_path / "next")


def test_a_new_head_that_is_frozen_is_refused(model_path, tmp_path):
    """A frozen new head would stay random, and would not be saved."""
    base = AutoModelForTokenClassification.from_pretrained(model_path, num_labels=1)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    options = {"train_dataset": DATA, "processing_class": word_level()}
    with pytest.raises(ValueError, match=r"every weight of the new token classification head is frozen.*modules_to_s"):
        ERPRMTrainer(adapted, config(tmp_path, **FORMAT), **options)
    base = AutoModelForTokenClassification.from_pretrained(model_path, num_labels=1)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["score"]))
    ERPRMTrainer(adapted, config(tmp_path, **FORMAT), **options)
    # A trained head may be frozen.
    train(model_path, tmp_path / "trained", head="token", **FORMAT)
    trained = AutoModelForTokenClassification.from_pretrained(tmp_path / "trained")
    ERPRMTrainer(get_peft_model(trained, LoraConfig(target_modules=["q_proj"])), config(tmp_path, **FORMAT), **options)


def test_new_tokens_whose_embeddings_are_frozen_are_refused(tmp_path):
    path = save_tiny(tmp_path / "model", byte_level_bpe())
    tokens = {"separator": "<|step|>", "good_token": "<|good|>", "bad_token": "<|bad|>", "add_missing_tokens": True}
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(path), LoraConfig(target_modules=["q_proj"]))
    data = {"train_dataset": DATA}
    with pytest.raises(ValueError, match=r"embeddings of the new tokens \['<\|step\|>', .* is frozen"):
        ERPRMTrainer(adapted, config(tmp_path, **tokens), processing_class=byte_level_bpe(), **data)
    with pytest.raises(ValueError, match=r"IA3Config and new tokens .*Use a LoraConfig"):
        ERPRMTrainer(path, config(tmp_path, **tokens), peft_config=ADAPTERS["IA3"], **data)
    # The training of an adapter with trained embeddings continues.
    first = train(path, tmp_path / "first", peft_config=LoraConfig(target_modules=["q_proj"]), **tokens)
    again = train(tmp_path / "first", tmp_path / "again")
    assert len(again.processing_class) == len(first.processing_class) == len(byte_level_bpe()) + 3


def test_an_embedding_that_is_trained_as_a_whole_includes_its_new_tokens(tmp_path):
    path = save_tiny(tmp_path / "model", byte_level_bpe())
    tokens = {"separator": "<|step|>", "add_missing_tokens": True}
    modules = ["embed_tokens", "lm_head"]
    adapter = LoraConfig(target_modules=["q_proj"], modules_to_save=modules)
    trainer = train(path, tmp_path / "out", peft_config=adapter, **tokens)
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert all(any(f"{module}.modules_to_save" in name for name in trained) for module in modules)
    assert trainer.model.peft_config["default"].trainable_token_indices is None
    card = tmp_path / "out" / "README.md"
    assert "base_model: model" in card.read_text() and path not in card.read_text()
    trainer.create_model_card()
    assert "# out" in card.read_text() and "None" not in card.read_text() and path not in card.read_text()
    tied = save_tiny(tmp_path / "tied", byte_level_bpe(), tie_word_embeddings=True)
    train(tied, tmp_path / "both", peft_config=adapter, **tokens)
    adapter.modules_to_save = ["lm_head"]
    with pytest.raises(ValueError, match=r"\['lm_head'\], .* shares its weights with embed_tokens.*Remove 'lm_head'"):
        train(tied, tmp_path / "one", peft_config=adapter, **tokens)


# Heads


def trl_prm(folder):
    """A model as TRL's PRMTrainer saves it: two classes and no `prm_format.json`."""
    tokenizer = byte_level_bpe()
    model = AutoModelForTokenClassification.from_pretrained(save_tiny(folder / "base", tokenizer))
    assert model.config.num_labels == 2  # transformers' default
    model.save_pretrained(folder / "prm")
    tokenizer.save_pretrained(folder / "prm")
    return folder / "prm"


@pytest.mark.parametrize("lora", [False, True])
def test_a_model_of_trls_prmtrainer_is_scored_and_trained(lora, tmp_path):
    path = trl_prm(tmp_path)
    preset = PRMFormat.preset("trl-prm")
    before = scores(StepScorer.from_pretrained(path, prm_format=preset))
    new = {"peft_config": ADAPTERS["LoRA"]} if lora else {}
    trainer = ERPRMTrainer(path, config(tmp_path / "out", format_preset="trl-prm"), train_dataset=DATA, **new)
    torch.testing.assert_close(scores_of(trainer), before, atol=1e-6, rtol=0)
    trained = train(path, tmp_path / "next", format_preset="trl-prm", max_steps=20, learning_rate=0.02, **new)
    assert trained.prm_format == preset
    labels = torch.tensor(sum(DATA["labels"][:], []))
    after = scores(StepScorer.from_pretrained(tmp_path / "next"))
    assert (after - labels).abs().mean() < (before - labels).abs().mean() - 0.1


@pytest.mark.parametrize("num_labels", [1, 2])
def test_a_token_classification_model_keeps_its_head(num_labels, model_path, tmp_path, caplog):
    model = AutoModelForTokenClassification.from_pretrained(model_path, num_labels=num_labels)
    trainer = train(model, tmp_path / "out", processing_class=word_level(), **FORMAT)
    assert (trainer.prm_format.head, trainer.prm_format.num_labels) == ("token", num_labels)
    torch.testing.assert_close(scores(StepScorer.from_pretrained(tmp_path / "out")), scores_of(trainer))
    # also if it is loaded by its path
    (tmp_path / "out" / "prm_format.json").unlink()
    again = ERPRMTrainer(tmp_path / "out", config(tmp_path / "next", **FORMAT), train_dataset=DATA)
    assert again.prm_format == trainer.prm_format
    torch.testing.assert_close(scores_of(again), scores_of(trainer), atol=1e-6, rtol=0)
    expected = "without prm_format.json. Its head with num_labels=%d is trained, after the prompt 'check {question}'."
    assert expected % num_labels in caplog.text and "format_preset='trl-prm'" in caplog.text
    # ... or passed as an object
    caplog.clear()
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path / "out")
    ERPRMTrainer(loaded, config(tmp_path / "next", **FORMAT), train_dataset=DATA, processing_class=word_level())
    assert expected % num_labels in caplog.text


def test_arguments_of_prmtrainer_that_are_refused(model_path, tmp_path):
    with pytest.raises(ValueError, match="got no model, expected a model, a folder or a Hub id"):
        ERPRMTrainer(None, config(tmp_path), train_dataset=DATA)
    collator = DataCollatorForTokenClassification(word_level())
    with pytest.raises(ValueError, match="got a DataCollatorForTokenClassification.*Leave it out"):
        ERPRMTrainer(model_path, config(tmp_path, **FORMAT), data_collator=collator, train_dataset=DATA)


def test_a_configured_head_takes_precedence_and_unfit_models_are_errors(model_path, tmp_path):
    two = AutoModelForTokenClassification.from_pretrained(model_path, num_labels=2)
    options = {"train_dataset": DATA, "processing_class": word_level()}
    assert ERPRMTrainer(two, config(tmp_path, head="token", **FORMAT), **options).prm_format.num_labels == 2
    with pytest.raises(ValueError, match="without a language-model head.*do not set `head`"):
        ERPRMTrainer(two, config(tmp_path, head="lm", **FORMAT), **options)
    with pytest.raises(ValueError, match="got a LlamaForCausalLM with num_labels=2, expected a token classification"):
        ERPRMTrainer(tiny_llama(46), config(tmp_path, head="token", **FORMAT), **options)
    many = AutoModelForTokenClassification.from_pretrained(model_path, num_labels=5)
    with pytest.raises(ValueError, match="num_labels: got 5, expected 1"):
        ERPRMTrainer(many, config(tmp_path, **FORMAT), **options)


def test_an_architecture_without_token_classification_is_an_error_that_names_the_other_head(tmp_path):
    tokenizer = word_level()
    architecture = CONFIG_MAPPING["codegen"](vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=4, rotary_dim=4)
    AutoModelForCausalLM.from_config(architecture).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"model: got the architecture 'codegen'.*Use head='lm'"):
        ERPRMTrainer(tmp_path / "model", config(tmp_path, head="token", **FORMAT), train_dataset=DATA)
    train(tmp_path / "model", tmp_path / "out", head="lm", **FORMAT)


# Tokenizers


@pytest.mark.parametrize("packing", [False, True])
def test_a_tokenizer_without_padding_and_end_of_text_is_accepted(packing, tmp_path):
    words = {word: index for index, word in enumerate(["?", "+", "-", "\n", "2", "4", "=", "5"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (None, None)
    path = save_tiny(tmp_path / "model", tokenizer, pad_token_id=None, eos_token_id=None)
    rows = [
        {"prompt": "2 + 2", "completions": ["2 + 2 = 4", "4"], "labels": [1.0, 1.0]},
        {"prompt": "2 + 2", "completions": ["5"], "labels": [0.0]},
    ]
    data = Dataset.from_list(rows)
    trainer = train(path, tmp_path / "out", data, packing=packing, per_device_eval_batch_size=2)
    alone = [scores_of(trainer, Dataset.from_list([row])) for row in rows]
    together = trainer.predict(data).predictions
    padded = torch.tensor(together).softmax(-1)[..., 1]
    torch.testing.assert_close(padded[0], alone[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(padded[1, :1], alone[1], atol=1e-5, rtol=0)
