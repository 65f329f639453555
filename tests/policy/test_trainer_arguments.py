"""Arguments of the policy trainers: adapters whose training continues, frozen weights, paths and columns."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from step_fakes import FakeScorer, by_text, questions, save_tiny, settings, tiny_llama, word_level
from transformers import AutoModelForCausalLM, TrainingArguments
from trl import GRPOConfig, SFTConfig

from erprm_trl import RAFTConfig, RAFTTrainer, StepGRPOConfig, StepGRPOTrainer, StepPPOConfig, StepPPOTrainer
from erprm_trl.io.tokenizers import tokenizer_source
from erprm_trl.policy.trainer_arguments import check_columns, columns_of


TRAINERS = {
    "grpo": (StepGRPOTrainer, StepGRPOConfig),
    "ppo": (StepPPOTrainer, StepPPOConfig),
    "raft": (RAFTTrainer, RAFTConfig),
}


@pytest.fixture
def folders(tmp_path):
    """Folders of a base model and of its adapter, whose weights differ from a new adapter's."""
    base = save_tiny(tmp_path / "base", word_level())
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(weight, 0.25)
    model.save_pretrained(tmp_path / "adapter")
    word_level().save_pretrained(tmp_path / "adapter")
    return Path(base), tmp_path / "adapter"


def make_trainer(kind, folder, model, *, peft_config=None, args=None, tokenizer=None, **others):
    trainer_class, config_class = TRAINERS[kind]
    options = settings(folder, **{"max_steps": 1, "beta": 0.1, **others})
    if kind == "raft":
        options = {name: value for name, value in options.items() if name != "beta"}
    return trainer_class(
        model,
        FakeScorer(by_text),
        args or config_class(**options),
        questions(4),
        processing_class=tokenizer,
        peft_config=peft_config,
    )


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("form", ["folder", "Path", "PeftModel"])
def test_training_of_a_saved_adapter_continues(tmp_path, folders, kind, form):
    base, adapter = folders
    model = {"folder": str(adapter), "Path": adapter}.get(form)
    if form == "PeftModel":
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter, is_trainable=True)
    trainer = make_trainer(kind, tmp_path / "run", model)
    trainable = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert {name for name in trainable if "lora_" not in name} == (
        {f"base_model.model.value_head.{name}" for name in ("weight", "bias")} if kind == "ppo" else set()
    )
    grown = [weight for name, weight in trainable.items() if "lora_B" in name]
    assert len(grown) == 4 and all((weight == 0.25).all() for weight in grown)
    if kind != "raft":  # RAFT's rounds have other tests
        trainer.train()
        assert trainer.state.log_history[0]["grad_norm"] > 0
        trainer.save_model()
        saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
        before = load_file(adapter / "adapter_model.safetensors")
        assert saved.keys() == before.keys() and not all(torch.equal(saved[name], before[name]) for name in saved)


@pytest.mark.parametrize("kind", TRAINERS)
def test_an_adapter_together_with_peft_config_is_refused(tmp_path, folders, kind):
    base, adapter = folders
    new = LoraConfig(r=2, target_modules="all-linear")
    name = TRAINERS[kind][0].__name__
    with pytest.raises(ValueError, match=f"{name}: got the adapter '.*adapter' together with `peft_config`"):
        make_trainer(kind, tmp_path / "run", str(adapter), peft_config=new)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter, is_trainable=True)
    with pytest.raises(
        ValueError, match=f"(?s){name}: got a PeftModel.* together with `peft_config`.*merge_and_unload"
    ):
        make_trainer(kind, tmp_path / "run", loaded, peft_config=new)
    # the last fix that the message proposes
    trainer = make_trainer(
        kind, tmp_path / "run", loaded.merge_and_unload(), peft_config=new, tokenizer=word_level(), beta=0.0
    )
    assert any(weight.requires_grad for weight in trainer.model.parameters())


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("form", ["PeftModel", "transformers", "whole model"])
def test_frozen_weights_are_refused(tmp_path, folders, kind, form):
    base, adapter = folders
    if form == "PeftModel":
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    elif form == "transformers":
        model = AutoModelForCausalLM.from_pretrained(adapter)
        if any(parameter.requires_grad for parameter in model.parameters()):
            pytest.skip("older versions of transformers load adapters for training")
    else:
        model = AutoModelForCausalLM.from_pretrained(base).requires_grad_(False)
    # Only the critic of step PPO would be trained. Older versions of transformers refuse a loaded adapter earlier.
    frozen = f"{TRAINERS[kind][0].__name__}: (every weight of the given .* is frozen|got .* with a loaded adapter)"
    with pytest.raises(ValueError, match=frozen):
        make_trainer(kind, tmp_path / "run", model)


def test_raft_refuses_a_model_whose_adapter_cannot_be_loaded_again(tmp_path, folders):
    base, adapter = folders
    model = AutoModelForCausalLM.from_pretrained(base)
    model.load_adapter(str(adapter), is_trainable=True)
    with pytest.raises(ValueError, match="got a LlamaForCausalLM with a loaded adapter, .* PeftModel"):
        make_trainer("raft", tmp_path / "run", model)
    # the fixes are tested above


def test_the_tokenizer_is_from_the_adapter_or_else_from_the_base_model(tmp_path, folders):
    base, adapter = folders
    assert tokenizer_source(base) == (str(base), None) and tokenizer_source(adapter) == (str(adapter), None)
    tokenizer = word_level()
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(adapter)
    trainer = make_trainer("grpo", tmp_path / "run", str(adapter))
    assert trainer.processing_class.chat_template == "{{ messages }}"
    for file in adapter.glob("*token*"):
        file.unlink()
    for file in adapter.glob("*.jinja"):
        file.unlink()
    assert tokenizer_source(adapter) == (str(base), None)
    trainer = make_trainer("grpo", tmp_path / "run", str(adapter))
    assert trainer.processing_class.chat_template is None


@pytest.mark.parametrize("kind", TRAINERS)
def test_paths_may_have_a_tilde_and_be_path_objects(tmp_path, folders, kind, monkeypatch):
    base, adapter = folders
    monkeypatch.setenv("HOME", str(tmp_path))
    for model in ("~/base", Path("~/base"), "~/adapter"):
        trainer = make_trainer(kind, Path("~/run"), model)
        assert trainer.args.output_dir == str(tmp_path / "run")


# Configurations whose settings all exist in the trainer's configuration.
TAKEN = {
    "grpo": (TrainingArguments, GRPOConfig),
    "ppo": (TrainingArguments, GRPOConfig),
    "raft": (TrainingArguments, SFTConfig),
}


@pytest.mark.parametrize(
    "config_class", [TrainingArguments, SFTConfig, RAFTConfig, GRPOConfig, StepGRPOConfig, StepPPOConfig]
)
@pytest.mark.parametrize("kind", TRAINERS)
def test_the_configuration_of_another_trainer_is_converted_or_refused(tmp_path, kind, config_class):
    trainer_class, own = TRAINERS[kind]
    args = config_class(str(tmp_path / "run"), use_cpu=True, bf16=False, learning_rate=0.25, max_steps=1, save_steps=7)
    if config_class not in (own, *TAKEN[kind]):
        message = rf"{trainer_class.__name__}: got args of type {config_class.__name__}\b.* Pass {own.__name__}\("
        with pytest.raises(TypeError, match=message):
            make_trainer(kind, tmp_path / "run", tiny_llama(46), args=args, tokenizer=word_level())
        return
    trainer = make_trainer(kind, tmp_path / "run", tiny_llama(46), args=args, tokenizer=word_level())
    assert isinstance(trainer.args, own) and trainer.args.output_dir == str(tmp_path / "run")
    assert (trainer.args.learning_rate, trainer.args.save_steps) == (0.25, 7)
    if kind != "raft":
        assert trainer.args.steps_per_generation == trainer.args.generation_batch_size // 8


def test_columns_of_a_streaming_dataset_are_read_from_its_first_row():
    rows = Dataset.from_dict({"prompt": ["a", "b"], "solution": ["1", "2"]})
    streaming = rows.to_iterable_dataset().map(lambda row: {"answer": row["solution"]})
    assert streaming.column_names is None
    assert columns_of(rows) == ["prompt", "solution"]
    assert columns_of(streaming) == ["prompt", "solution", "answer"]
    assert columns_of(streaming.filter(lambda row: False)) == []
    assert columns_of(None) == []


@pytest.mark.slow("trains several times")
@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_the_training_of_a_saved_adapter_resumes(tmp_path, folders, kind):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    straight = make_trainer(kind, tmp_path / "run", str(folders[1]), **options)
    straight.train()
    resumed = make_trainer(kind, tmp_path / "resumed", str(folders[1]), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for (name, weight), (other, expected) in zip(
        resumed.model.named_parameters(), straight.model.named_parameters(), strict=True
    ):
        assert name == other and torch.equal(weight, expected), name
    # The reference is the saved adapter, and the KL to it is no longer 0.
    reference = [weight for name, weight in resumed.model.named_parameters() if "lora_B.ref" in name]
    assert len(reference) == 4 and all((weight == 0.25).all() for weight in reference)
    assert [log["kl"] for log in resumed.state.log_history if "kl" in log][-1] > 0


@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
def test_a_dataset_without_prompts_is_refused(name):
    questions, prompts = Dataset.from_list([{"question": "q"}]), Dataset.from_list([{"prompt": "q"}])
    datasets = {"train_dataset": prompts, "eval_dataset": None, name: questions}
    message = f"Trainer: got {name} with the columns question, expected 'prompt'.*prompt_dataset"
    with pytest.raises(ValueError, match=message):
        check_columns("Trainer", {}, *datasets.values(), needs_prompt=True)
    check_columns("Trainer", {}, *datasets.values(), needs_prompt=False)  # an environment may own the prompts
