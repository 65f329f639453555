"""A pytest plugin that runs TRL's own tests offline, and against the trainers of this package. `README.md` has the
commands.

It creates tiny models in a temporary Hub cache, replaces `load_dataset` for TRL's test data, and replaces TRL's
classes by the classes of this package before the test modules import them.
"""

import os
import shutil
import sys
import tempfile
import types
import zlib
from dataclasses import dataclass
from pathlib import Path


CACHE = Path(tempfile.mkdtemp(prefix="stand_ins_"))
# These variables must be set before huggingface_hub is imported.
os.environ |= {"HF_HUB_CACHE": str(CACHE), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}

import datasets
import torch
import trl
import trl.experimental.online_dpo
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

from erprm_trl import (
    ERPRMConfig,
    ERPRMTrainer,
    PRMFormat,
    StepGRPOConfig,
    StepGRPOTrainer,
    StepPPOConfig,
    StepPPOTrainer,
    StepRewardFunction,
)


load_from_elsewhere, check_arguments = datasets.load_dataset, TrainingArguments.__post_init__
STEP_TRAINERS = {
    "StepGRPOTrainer": (StepGRPOTrainer, StepGRPOConfig),
    "StepPPOTrainer": (StepPPOTrainer, StepPPOConfig),
}
OWNER = "trl-internal-testing"
NUM_ROWS = int(os.environ.get("STAND_INS_ROWS", "17"))  # as many rows as TRL's data; with 5, a run takes a third
DENSE = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
# Architecture and head of TRL's tiny text models, by name.
MODELS = {
    "tiny-Qwen2ForCausalLM-2.5": ("qwen2", {}),
    "tiny-Qwen3ForCausalLM": ("qwen3", {}),
    "tiny-LlamaForCausalLM-3.2": ("llama", {}),
    "tiny-Gemma2ForCausalLM": ("gemma2", {"tie_word_embeddings": True}),
    "tiny-Cohere2ForCausalLM": ("cohere2", {"tie_word_embeddings": True}),
    "tiny-Qwen3MoeForCausalLM": ("qwen3_moe", EXPERTS),
    "tiny-GptOssForCausalLM": ("gpt_oss", EXPERTS),
    "tiny-Qwen2ForSequenceClassification-2.5": ("qwen2", {}),
    "tiny-Qwen3ForSequenceClassification": ("qwen3", {}),
    "tiny-LlamaForSequenceClassification-3.2": ("llama", {}),
}

# Qwen's ids, which TRL's tests use: 198 is a line feed, 151643 ends a text, 151645 ends a turn.
SPECIAL = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<|finetune_right_pad_id|>": 151646}
# Words of the tool calls that TRL's tests let a policy write, with Qwen's ids. "Ġ" is a space, and "Ċ" a line feed.
TOOL_CALLS = {"<tool_call>": 151657, "</tool_call>": 151658}
WORDS = {
    **{330: 'Ġ"', 497: '",', 606: "name", 788: '":', 4913: '{"', 5212: 'Ġ{"', 11248: "}}Ċ", 16370: "arguments"},
    **{7692: "async", 22785: "_tool", 64648: "multiply", 93054: "_multiply"},
    **{894: "Ġany", 944: "'t", 1414: "Ġknow", 1513: "Ġdon", 5392: "Ġtool", 17453: "Done"},
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer():
    """A tokenizer with bytes in GPT-2's order, and artificial words. A third of the words end with a line feed, so
    that a random policy writes several steps."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(256 - len(printable))]
    vocabulary = {character: index for index, character in enumerate(characters)}
    taken = {*SPECIAL.values(), *TOOL_CALLS.values()}
    for index in sorted({*range(256, max(taken))} - taken):
        vocabulary[WORDS.get(index, f"Ġw{index}" + ("Ċ" if index % 3 == 0 else ""))] = index
    tokenizer = Tokenizer(models.BPE(vocab={**vocabulary, **SPECIAL, **TOOL_CALLS}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|finetune_right_pad_id|>"],
        chat_template=CHAT_TEMPLATE,
    )


def build_models():
    """Creates random models in the layout of a Hub cache."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(CACHE / "tokenizer")
    for name, (architecture, settings) in MODELS.items():
        config = AutoConfig.for_model(architecture)
        config.update({"hidden_size": 8, "intermediate_size": 32, "vocab_size": len(tokenizer), **DENSE, **settings})
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: config.num_hidden_layers]
        config.update({"bos_token_id": None, "eos_token_id": 151645, "pad_token_id": 151643})
        auto_class = AutoModelForCausalLM
        if "SequenceClassification" in name:
            auto_class, config.num_labels = AutoModelForSequenceClassification, 1
        torch.manual_seed(0)
        folder = CACHE / f"models--{OWNER}--{name}"
        snapshot = folder / "snapshots" / ("0" * 40)
        auto_class.from_config(config).save_pretrained(snapshot)
        shutil.copytree(CACHE / "tokenizer", snapshot, dirs_exist_ok=True)
        if architecture == "qwen3_moe":  # the policy of the tests with tools
            template = Path(trl.__file__).with_name("chat_templates") / "qwen3.jinja"
            (snapshot / "chat_template.jinja").write_text(template.read_text())
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0" * 40)


def texts(index):
    """The question, the right answer and the wrong answer of a row."""
    left, right = index + 2, 3 * index + 1
    return f"What is {left} plus {right}?", f" It is {left + right}.", f" It is {left - right}."


def rows(config, size, start):
    """The rows of a configuration such as `conversational_prompt_only`, with TRL's columns."""
    style, _, kind = config.partition("_")
    questions, right, wrong = zip(*map(texts, range(start, start + size)), strict=True)
    whole = [question + answer for question, answer in zip(questions, right, strict=True)]
    steps = [[" First, I add.", answer] for answer in right]
    if style == "conversational":
        whole = [
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            for question, answer in zip(questions, right, strict=True)
        ]
        questions = [[{"role": "user", "content": question}] for question in questions]
        right, wrong = ([[{"role": "assistant", "content": text}] for text in side] for side in (right, wrong))
    columns = {
        "language_modeling": {"messages" if style == "conversational" else "text": whole},
        "prompt_only": {"prompt": questions},
        "prompt_completion": {"prompt": questions, "completion": right},
        "preference": {"prompt": questions, "chosen": right, "rejected": wrong},
        "unpaired_preference": {
            "prompt": questions,
            "completion": right,
            "label": [index % 2 == 0 for index in range(size)],
        },
        "stepwise_supervision": {
            "prompt": questions,
            "completions": steps,
            "labels": [[True, index % 2 == 0] for index in range(size)],
        },
    }
    return Dataset.from_dict({name: list(values) for name, values in columns[kind].items()})


def load_dataset(path, name=None, *args, split=None, **options):
    """Replaces `datasets.load_dataset`."""
    if path != f"{OWNER}/zen":
        return load_from_elsewhere(path, name, *args, split=split, **options)
    both = DatasetDict(train=rows(name, NUM_ROWS, 0), test=rows(name, 2, NUM_ROWS))
    if split is None:
        return both
    part, _, end = split.partition("[:")  # such as "train[:2]"
    return both[part].take(int(end.rstrip("]"))) if end else both[part]


class ByText:
    """A scoring backend whose step scores depend only on the text of the step."""

    prm_format, model_name, context_length, weights = PRMFormat(separator="\n"), "by text", None, None

    def score(self, questions, steps, skip_too_long):
        return [[zlib.crc32(step.encode()) % 1000 / 1000 for step in solution] for solution in steps]


def as_list(value):
    return list(value) if isinstance(value, list) else [value]


def as_grpo(trainer_class):
    """A step trainer with TRL's arguments. The rewards of a test are the outcome rewards, and a step reward is
    added."""

    class AsGRPO(trainer_class):
        def __init__(self, model, reward_funcs=None, args=None, *rest, reward_processing_classes=None, **options):
            functions = as_list(reward_funcs)
            classes = reward_processing_classes
            if classes is not None and len(as_list(classes)) == len(functions):
                classes = [*as_list(classes), None]
            if args is not None and args.reward_weights is not None:
                args.reward_weights = [*args.reward_weights, 1.0]
            functions.append(StepRewardFunction(ByText()))
            super().__init__(model, functions, args, *rest, reward_processing_classes=classes, **options)

    return AsGRPO


def with_credit(config_class, default_credit):
    """A configuration with another default of `credit`. Checkpoints hold it by its name in this module."""
    global WithCredit

    @dataclass
    class WithCredit(config_class):
        credit: str = default_credit

    WithCredit.__qualname__ = "WithCredit"
    return WithCredit


def with_step_rewards(trainer_class):
    """A trainer of TRL in which each reward model of a test is replaced by a `StepRewardFunction`."""

    class WithStepRewards(trainer_class):
        def __init__(self, model, *positional, reward_funcs=None, **options):
            functions = [
                StepRewardFunction(ByText(), name=f"step_reward_{index}")
                if isinstance(function, (str, PreTrainedModel))
                else function
                for index, function in enumerate(as_list(reward_funcs))
            ]
            super().__init__(model, *positional, reward_funcs=functions, **options)

    return WithStepRewards


def add_prm_trainer():
    """Adds TRL 1.12's module `trl.experimental.prm`, with the trainer of this package."""
    package = types.ModuleType("trl.experimental.prm")
    package.PRMConfig, package.PRMTrainer = ERPRMConfig, ERPRMTrainer
    module = types.ModuleType("trl.experimental.prm.prm_trainer")
    module.PRMTrainer, module.compute_accuracy = ERPRMTrainer, None  # tests of TRL's own `compute_accuracy` fail
    sys.modules |= {package.__name__: package, module.__name__: module}


def train_on_cpu(self):
    """Replaces `TrainingArguments.__post_init__`. Without an accelerator, TRL's default `bf16` needs `use_cpu`."""
    self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
    check_arguments(self)


def pytest_configure(config):
    """Installs the replacements."""
    build_models()
    TrainingArguments.__post_init__ = train_on_cpu
    datasets.load_dataset = load_dataset
    trainer_class, config_class = STEP_TRAINERS[os.environ.get("STAND_INS_TRAINER", "StepGRPOTrainer")]
    trl.GRPOConfig = with_credit(config_class, os.environ.get("STAND_INS_CREDIT", "difference"))
    trl.GRPOTrainer = as_grpo(trainer_class)
    trl.RLOOTrainer = with_step_rewards(trl.RLOOTrainer)
    online_dpo = trl.experimental.online_dpo
    online_dpo.OnlineDPOTrainer = with_step_rewards(online_dpo.OnlineDPOTrainer)
    add_prm_trainer()


def pytest_unconfigure(config):
    """Removes the models."""
    shutil.rmtree(CACHE)
