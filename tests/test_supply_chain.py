"""Tests that no file of a model folder or a checkpoint runs code, unless the caller sets `trust_remote_code`."""

import json
import pickle
import sys

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from step_fakes import (
    DIAL_FORMAT,
    FakeScorer,
    by_text,
    questions,
    save_tiny,
    settings,
    tiny_llama,
    word_level,
)
from transformers import dynamic_module_utils

from erprm_trl import (
    ERPRMConfig,
    ERPRMTrainer,
    PRMFormat,
    RAFTConfig,
    RAFTTrainer,
    StepScorer,
    TransformersSampler,
    dial,
)
from erprm_trl.policy.online.step_config import StepGRPOConfig, StepPPOConfig
from erprm_trl.policy.online.step_grpo_trainer import StepGRPOTrainer
from erprm_trl.policy.online.step_ppo_trainer import StepPPOTrainer


ROWS = [{"prompt": "Tom dial 7 . right 15 . ?", "completions": ["7 + 15 = 2", "answer 2"], "labels": [0.9, 1.0]}] * 4


class Trap:
    """An object that creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "code-ran"


def set_trap(path, marker, as_saved):
    """Writes a file that creates the marker when it is unpickled, in torch's format (a zip) or as a plain pickle."""
    path.unlink(missing_ok=True)
    content = {"model.norm.weight": Trap(marker), "step": 1}
    if as_saved:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))


def cpu(folder, **options):
    return {key: value for key, value in settings(folder, **options).items() if key != "num_generations"}


def train_erprm(model, folder, **options):
    formatted = {
        name: getattr(DIAL_FORMAT, name) for name in ("separator", "good_token", "bad_token", "prompt_template")
    }
    options = {key: value for key, value in cpu(folder, **options).items() if key != "max_completion_length"}
    return ERPRMTrainer(str(model), ERPRMConfig(**options, **formatted), train_dataset=Dataset.from_list(ROWS))


def train_policy(trainer_class, config_class, model, folder, **options):
    args = config_class(**settings(folder, **options))
    tokenizer = word_level()
    return trainer_class(str(model), [FakeScorer(by_text)], args, questions(4), processing_class=tokenizer)


def train_raft(model, folder):
    args, scorer = RAFTConfig(**cpu(folder)), FakeScorer(by_text, weights=tiny_llama(8))
    data = Dataset.from_list(dial.make_questions(4, seed=0))
    return RAFTTrainer(str(model), scorer, args, data, processing_class=word_level())


# All ways to load a model from a folder: as a policy, as a reward model, and for training.
LOADERS = {
    "scorer": lambda model, folder: StepScorer.from_pretrained(model),
    "scorer, token head": lambda model, folder: StepScorer.from_pretrained(
        model, prm_format=PRMFormat(separator=dial.SEPARATOR, head="token")
    ),
    "scorer, MLP head": lambda model, folder: StepScorer.from_pretrained(
        model, prm_format=PRMFormat(separator=dial.SEPARATOR, head="token_mlp", num_labels=2)
    ),
    "sampler": lambda model, folder: TransformersSampler.from_pretrained(str(model)),
    "ERPRMTrainer": train_erprm,
    "StepGRPOTrainer": lambda model, folder: train_policy(StepGRPOTrainer, StepGRPOConfig, model, folder),
    "RAFTTrainer": train_raft,
}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_tiny(folder, word_level())
    DIAL_FORMAT.save(folder)
    return folder


def copied(folder, to):
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_the_trap_works(marker, tmp_path):
    for as_saved in (True, False):
        set_trap(tmp_path / "trap", marker, as_saved)
        assert not marker.exists()
        with (tmp_path / "trap").open("rb") as file:
            torch.load(file, weights_only=False) if as_saved else pickle.load(file)
        assert marker.exists()
        marker.unlink()


@pytest.mark.parametrize("as_saved", [True, False], ids=["zip", "pickle"])
@pytest.mark.parametrize("loader", LOADERS)
def test_pickled_weights_run_no_code(loader, as_saved, model_path, marker, tmp_path):
    model = copied(model_path, tmp_path / "model")
    (model / "model.safetensors").unlink()
    set_trap(model / "pytorch_model.bin", marker, as_saved)
    with pytest.raises((pickle.UnpicklingError, OSError, ValueError), match="(?i)weights.only|pickle|unsupported"):
        LOADERS[loader](model, tmp_path / "run")
    assert not marker.exists()


@pytest.mark.parametrize("loader", ["scorer", "sampler"])
def test_pickled_adapters_run_no_code(loader, model_path, marker, tmp_path):
    adapter = copied(model_path, tmp_path / "adapter")
    for name in ("config.json", "model.safetensors"):
        (adapter / name).unlink()
    set_trap(adapter / "adapter_model.bin", marker, True)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    config.base_model_name_or_path = str(model_path)
    config.save_pretrained(adapter)
    with pytest.raises((pickle.UnpicklingError, OSError), match="(?i)weights.only|pickle"):
        LOADERS[loader](adapter, tmp_path / "run")
    assert not marker.exists()


# The files of a checkpoint in addition to the weights, and the weights as a pickle.
FILES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin", "training_args.bin"]


@pytest.fixture(scope="module")
def checkpoints(model_path, tmp_path_factory):
    """One checkpoint per trainer that can resume, with the files above."""
    folder, saving = (
        tmp_path_factory.mktemp("checkpoints"),
        {"save_strategy": "steps", "save_steps": 1, "max_steps": 1},
    )
    for name in ("erprm", "ppo"):
        resumable(name, model_path, folder / name, **saving).train()
    return {name: folder / name / "checkpoint-1" for name in ("erprm", "ppo")}


def resumable(name, model, folder, **options):
    if name == "erprm":
        return train_erprm(model, folder, **options)
    return train_policy(StepPPOTrainer, StepPPOConfig, model, folder, **options)


@pytest.mark.slow("trains many times")
@pytest.mark.parametrize(
    ("trainer", "file"),
    [*(("erprm", file) for file in FILES), ("ppo", "optimizer.pt"), ("ppo", "value_head.safetensors")],
)
def test_a_resumed_checkpoint_runs_no_code(trainer, file, checkpoints, model_path, marker, tmp_path):
    checkpoint = copied(checkpoints[trainer], tmp_path / "checkpoint-1")
    assert (checkpoint / file).exists() or file == "pytorch_model.bin"
    if file == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    set_trap(checkpoint / file, marker, True)
    resumed = resumable(trainer, model_path, tmp_path / "run", max_steps=2)
    if file == "training_args.bin":
        resumed.train(resume_from_checkpoint=str(checkpoint))  # this file is not read
    else:
        with pytest.raises(ValueError, match="(?i)weights.only|pickle|header"):
            resumed.train(resume_from_checkpoint=str(checkpoint))
    assert not marker.exists()


CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class OwnConfig(LlamaConfig):
    model_type = {model_type!r}
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


def with_code(model_path, folder, marker, model_type):
    """A model folder with Python code that its configuration names."""
    model = copied(model_path, folder)
    (model / "own.py").write_text(CODE.format(marker=str(marker), model_type=model_type))
    for file, auto in (
        ("config.json", {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}),
        ("tokenizer_config.json", {"AutoTokenizer": [None, "own.OwnTokenizer"]}),
    ):
        fields = json.loads((model / file).read_text())
        own = {"model_type": model_type} if file == "config.json" else {"tokenizer_class": "OwnTokenizer"}
        (model / file).write_text(json.dumps({**fields, **own, "auto_map": auto}))
    return model


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("model_type", ["llama", "unheard-of"])
def test_code_of_a_repository_is_not_run(model_type, loader, model_path, marker, tmp_path, monkeypatch):
    prompts = []
    monkeypatch.setattr("builtins.input", lambda *_: prompts.append(1) or "y")  # the user is not asked either
    model = with_code(model_path, tmp_path / "model", marker, model_type)
    try:
        LOADERS[loader](model, tmp_path / "run")
    except (ValueError, OSError) as error:
        assert "trust_remote_code" in str(error) or "lacks" in str(error) or "num_labels" in str(error)
    assert not marker.exists() and not prompts


TRUSTING = {
    "scorer": lambda model, folder: StepScorer.from_pretrained(model, trust_remote_code=True),
    "sampler": lambda model, folder: TransformersSampler.from_pretrained(
        str(model), model_init_kwargs={"trust_remote_code": True}
    ),
    "ERPRMTrainer": lambda model, folder: train_erprm(model, folder, trust_remote_code=True),
}


@pytest.mark.parametrize("loader", TRUSTING)
def test_code_of_a_repository_is_run_with_trust_remote_code(loader, model_path, marker, tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    model = with_code(model_path, tmp_path / "model", marker, "unheard-of")
    TRUSTING[loader](model, tmp_path / "run")
    assert marker.exists()


def test_the_code_of_an_adapters_base_model_is_not_run(model_path, marker, tmp_path):
    base = with_code(model_path, tmp_path / "base", marker, "unheard-of")
    adapter = copied(model_path, tmp_path / "adapter")
    for name in ("config.json", "model.safetensors"):
        (adapter / name).unlink()
    plain = StepScorer.from_pretrained(model_path).model
    wrapped = get_peft_model(plain, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    wrapped.save_pretrained(adapter)
    for loader in ("scorer", "sampler"):
        with pytest.raises(ValueError, match="trust_remote_code"):
            LOADERS[loader](adapter, tmp_path / "run")
    assert not marker.exists()
