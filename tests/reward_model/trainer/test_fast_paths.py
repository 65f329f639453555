"""The options for speed that a training logs as off."""

import logging

from datasets import Dataset
from step_fakes import DIAL_FORMAT, word_level
from zoo import tiny_llama

from erprm_trl import ERPRMConfig, ERPRMTrainer
from erprm_trl.reward_model.trainer.fast_paths import missing_fast_paths


def config(folder, **options):
    options = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, **options}
    return ERPRMConfig(str(folder), **options)


def names(model, args, on_gpu):
    return [text.partition("=")[0] for text in missing_fast_paths(model, args, on_gpu)]


def test_only_options_that_are_off_are_listed(tmp_path):
    model = tiny_llama(20)
    model.config._attn_implementation = "sdpa"
    args = config(tmp_path)
    args.dataloader_pin_memory = True
    assert names(model, args, on_gpu=False) == []
    assert names(model, args, on_gpu=True) == [
        "bf16", "use_liger_kernel", "torch_compile", "gradient_checkpointing", "dataloader_num_workers",
    ]  # fmt: skip
    args.gradient_checkpointing, args.torch_compile, args.dataloader_num_workers, args.fp16 = False, True, 2, True
    assert names(model, args, on_gpu=True) == ["use_liger_kernel"]
    args.torch_compile, args.use_liger_kernel = False, True
    assert names(model, args, on_gpu=True) == []
    model.config._attn_implementation = "eager"
    args.train_sampling_strategy, args.optim, args.dataloader_pin_memory = "random", "adamw_torch", False
    slow = ["attn_implementation", "train_sampling_strategy", "optim"]
    assert names(model, args, on_gpu=False) == slow
    assert names(model, args, on_gpu=True) == [*slow, "dataloader_pin_memory"]
    args.packing = True
    assert "train_sampling_strategy" not in names(model, args, on_gpu=False)


def test_a_training_logs_them_once(tmp_path, caplog):
    form = {name: getattr(DIAL_FORMAT, name) for name in ("separator", "good_token", "bad_token", "prompt_template")}
    data = Dataset.from_list([{"prompt": "Ann dial 1 . left 2 . ?", "completions": ["answer 3"], "labels": [0.0]}] * 4)
    tokenizer = word_level()
    args = config(tmp_path, max_steps=3, save_strategy="no", train_sampling_strategy="random", **form)
    trainer = ERPRMTrainer(tiny_llama(len(tokenizer)), args, train_dataset=data, processing_class=tokenizer)
    with caplog.at_level(logging.INFO, "erprm_trl"):
        trainer.train()
    lines = [record.message for record in caplog.records if record.message.startswith("Options for speed")]
    assert len(lines) == 1 and "train_sampling_strategy='random' without packing" in lines[0]
