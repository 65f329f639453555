"""Runs a few updates of every trainer, in the test's own process or in launched processes, and records the results.

In a run of two processes, each process gets half the rows, mostly in two batches per update, with gradient
checkpointing. The result must equal that of one process with the same global batches.
"""

import dataclasses
import gc
import json
import os
import traceback
import zlib
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from fake_engines import FakeOfflineEngine
from forked_launch import launch_with_accelerate
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    TrainerCallback,
    set_seed,
)
from trl import GRPOTrainer

from erprm_trl import (
    ERPRMConfig,
    ERPRMTrainer,
    MonteCarloScorer,
    RAFTConfig,
    RAFTTrainer,
    StepGRPOConfig,
    StepGRPOTrainer,
    StepPPOConfig,
    StepPPOTrainer,
    StepScorer,
    dial,
)
from erprm_trl.dial.experiments.chain import FORMAT
from erprm_trl.policy.raft import policy_sampler


CONFIGS = Path(__file__).parents[2] / "accelerate_configs"
NAMES = ("erprm_lm", "erprm_token", "erprm_implicit", "raft", "step_grpo", "step_ppo")
OUTCOME = "step_grpo_outcome"  # TRL computes the advantages from three rewards
NAMES_OF_UPDATES = ("step_grpo_updates", "step_ppo_updates")  # also update an implicit reward model
REWARDS_FREE = ("log_ratio", "monte_carlo")  # have no reward model
POLICIES = ("step_grpo", "step_ppo", OUTCOME, *NAMES_OF_UPDATES)
# Adam would amplify differences in the last bits of small gradients, so its epsilon is large.
UPDATED = {"reward_model_learning_rate": 0.02, "adam_epsilon": 0.1, "outcome_weight": 0.0}
UPDATES, RESUMED_AT, GROUP = 4, 3, 4
# TRL refuses it for adapters, which have no separate reference model.
SYNC = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.5}
# Metrics that must be gathered from all processes
METRICS = "num_tokens value/loss value/explained_variance kl steps/accuracy steps/per_answer reward".split()
METRICS += ["reward_model/loss", "reward_model/accuracy", "reward_model/grad_norm", "reward_model/unused_share"]
# Two updates per epoch. The run is resumed in the second epoch.
QUESTIONS = dial.make_questions(6, seed=5, min_moves=1, max_moves=2)
# Solutions of one to four steps, so that the two processes have different numbers of labels in a batch.
ROWS = [
    {
        "prompt": f"Tom dial {index} . right 15 . ?",
        "completions": [f"{index} + 15 = {step}" for step in range(1 + index % 4)],
        "labels": [((index + step) % 5) / 4 for step in range(1 + index % 4)],
    }
    for index in range(16)
]


def save_models(folder):
    """Saves reward models for the policies (one of them an adapter) and a first model with a token head, with the same
    weights for every run."""
    tokenizer = AutoTokenizer.from_pretrained(dial.BASE_PATH)
    set_seed(0)
    for name, model in (
        ("reward_model", AutoModelForCausalLM.from_pretrained(dial.BASE_PATH)),
        ("token_head", AutoModelForTokenClassification.from_pretrained(dial.BASE_PATH, num_labels=1)),
    ):
        model.save_pretrained(Path(folder, name))
        tokenizer.save_pretrained(Path(folder, name))
    adapter = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(dial.BASE_PATH), adapter)
    adapted.save_pretrained(Path(folder, "reward_adapter"))
    tokenizer.save_pretrained(Path(folder, "reward_adapter"))
    FORMAT.save(Path(folder, "reward_model"))
    FORMAT.save(Path(folder, "reward_adapter"))
    # An implicit reward model that differs from its reference model, and its adapter
    implicit = dataclasses.replace(
        FORMAT, head="implicit", beta=0.5, prompt_template="{question}", reference_model=dial.BASE_PATH
    )
    for name, model in (
        ("implicit", AutoModelForCausalLM.from_pretrained(dial.BASE_PATH)),
        ("implicit_adapter", adapted),
    ):
        if name == "implicit":
            with torch.no_grad():
                for weight in model.parameters():
                    weight.add_(0.02 * torch.randn_like(weight))
        model.save_pretrained(Path(folder, name))
        tokenizer.save_pretrained(Path(folder, name))
        implicit.save(Path(folder, name))


def _reward_model(folder, peft_config):
    """The path of the reward model, so that with ZeRO-3 it is loaded next to a policy with partitioned weights."""
    return str(Path(folder, "reward_model" if peft_config is None else "reward_adapter"))


def single_runs(make_folder):
    """A function that runs a trainer in this process, and returns its folder and its record. Equal runs are cached.
    `make_folder` makes a folder with a name."""
    done = {}

    def run_alone(name, **options):
        # One process needs no parts of a batch, and shards nothing.
        options = {key: value for key, value in options.items() if key not in ("accumulation", "sharded")}
        key = name, json.dumps(options, sort_keys=True)
        if key not in done:
            folder = make_folder("single")
            save_models(folder)
            run(name, folder, **options)
            done[key] = folder / name, json.loads((folder / name / "facts.json").read_text())
        return done[key]

    return run_alone


def launch(folder, config, names=NAMES, **options):
    """Runs trainers in two processes with an accelerate configuration, and returns their records."""
    launch_with_accelerate(config, run_all, folder, names, options)
    return {name: json.loads(Path(folder, name, "facts.json").read_text()) for name in names}


def run_all(folder, names, options):
    """Runs every trainer in this process group. A failing trainer records its traceback, and the others continue."""
    for name in names:
        try:
            run(name, folder, **options)
        except Exception:
            Path(folder, name).mkdir(exist_ok=True)
            Path(folder, name, "facts.json").write_text(json.dumps({"error": traceback.format_exc()}))
        _restart_accelerate()


def run(name, folder, *, lora=False, sharded=False, optim="sgd", accumulation=2, raft=None):
    """Runs the updates, and the last ones again from the checkpoint. RAFT runs two rounds in two trainers.
    `raft` has more of its options."""
    out = Path(folder, name)
    peft_config = None
    if lora:
        task = "TOKEN_CLS" if name == "erprm_token" else "CAUSAL_LM"
        peft_config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type=task)

    def make(seed, **more):
        set_seed(seed)
        make_trainer = {
            "raft": partial(_raft, raft or {}),
            **dict.fromkeys((*POLICIES, *REWARDS_FREE), _step_policy),
        }.get(name, _erprm)
        trainer = make_trainer(name, folder, {**_common(out, optim, accumulation), **more}, peft_config, sharded)
        trainer.add_callback(_Watcher(trainer))
        return trainer

    losses = []
    if name == "raft":
        first = make(0, num_rounds=1)
        first.train()
        losses += _losses(first)
        del first
        _restart_accelerate()
    trainer = make(0, **({"num_rounds": 2} if name == "raft" else {}))
    trainer.train()
    trainer.save_model(str(out / "model"))
    watcher = next(each for each in trainer.callback_handler.callbacks if isinstance(each, _Watcher))
    facts = {
        "world": trainer.accelerator.num_processes,
        "type": trainer.accelerator.distributed_type.value,
        "wrapper": watcher.wrapper,
        "split": watcher.split,
        "losses": losses + _losses(trainer),
        "metrics": [
            {key: float(log[key]) for key in METRICS if key in log}
            for log in trainer.state.log_history
            if "loss" in log
        ],
        "scorer": _scorer_of(trainer),
        "saved_against_live": _saved_against_live(trainer, out / "model"),
    }
    if name.startswith("erprm"):
        metrics = trainer.evaluate()
        facts["eval"] = {key: metrics[key] for key in ("eval_loss", "eval_brier", "eval_auc")}
    if name != "raft":
        trainer.accelerator.wait_for_everyone()
        del trainer, watcher
        _restart_accelerate()
        trainer = make(1)  # the checkpoint must hold everything that a resumed run needs
        trainer.train(resume_from_checkpoint=str(out / f"checkpoint-{RESUMED_AT}"))
        facts["resumed_losses"] = _losses(trainer)[RESUMED_AT:]
        trainer.save_model(str(out / "resumed"))
    if trainer.is_world_process_zero():
        (out / "facts.json").write_text(json.dumps(facts))
    trainer.accelerator.wait_for_everyone()


def _losses(trainer):
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def weights(folder, kind="model"):
    """The saved weights of a run."""
    return load_file(next(Path(folder, kind).glob("*model.safetensors")))


def _restart_accelerate():
    """Resets accelerate, because each trainer fills in DeepSpeed's "auto" values for itself."""
    from accelerate.state import AcceleratorState, GradientState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    gc.collect()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    unset_hf_deepspeed_config()


class _Watcher(TrainerCallback):
    """Records the wrapper of the model during the training, and whether its weights are partitioned."""

    def __init__(self, trainer):
        self.trainer, self.wrapper, self.split = trainer, None, None

    def on_step_end(self, args, state, control, **kwargs):
        self.wrapper = type(self.trainer.model_wrapped).__name__
        self.split = any(hasattr(parameter, "ds_id") for parameter in self.trainer.model.parameters())


def _common(out, optim, accumulation):
    return {
        "output_dir": str(out),
        "max_steps": UPDATES,
        "gradient_accumulation_steps": 1 if _alone() else accumulation,
        "gradient_checkpointing": not _alone(),
        "learning_rate": 1e-2 if optim == "sgd" else 1e-4,
        "optim": optim,  # Adam amplifies differences in the last bits of small gradients
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": RESUMED_AT,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "report_to": "none",
    }


def _batch(common, rows):
    """All rows of an update at once, or half of them in parts for each of two processes."""
    return {"per_device_train_batch_size": rows if _alone() else rows // 2 // common["gradient_accumulation_steps"]}


def _alone():
    return int(os.environ.get("WORLD_SIZE", 1)) == 1


def _erprm(name, folder, common, peft_config, sharded):
    head = name.removeprefix("erprm_")
    # 8 rows of at most 59 tokens, and 4 of them per update
    packing = {"packing": True, "packing_strategy": "bfd", "max_length": 59} if head == "token" else {}
    arguments = ERPRMConfig(
        **common,
        **_batch(common, 4 if packing else 8),
        **packing,
        train_sampling_strategy="sequential",
        per_device_eval_batch_size=3,  # the last evaluation batch is uneven, and is filled with copies
        head=head,
        beta=1.0 if head == "implicit" else None,
        separator=FORMAT.separator,
        good_token=FORMAT.good_token,
        bad_token=FORMAT.bad_token,
        prompt_template=FORMAT.prompt_template,
    )
    base = str(Path(folder, "token_head")) if head == "token" else dial.BASE_PATH
    data = Dataset.from_list(ROWS)
    return ERPRMTrainer(base, arguments, train_dataset=data, eval_dataset=data, peft_config=peft_config)


def _raft(options, name, folder, common, peft_config, sharded):
    if "vllm_kwargs" not in options:  # these are for a real engine
        policy_sampler.VLLMSampler = FakeOfflineEngine
    arguments = RAFTConfig(
        **{**common, "max_steps": UPDATES // 2, "save_strategy": "no"},
        **_batch(common, 4),
        num_generations=4,
        max_completion_length=64,
        generation_batch_size=5,  # processes have different numbers of forward passes
        chunk_size=3,
        drop_uniform=False,
        grading="exact",
        answer_pattern=dial.ANSWER_PATTERN,
        shard_reward_model=sharded,
        **options,
    )
    return RAFTTrainer(
        dial.BASE_PATH,
        _reward_model(folder, peft_config),
        arguments,
        train_dataset=Dataset.from_list(dial.make_questions(8, seed=1)),
        eval_dataset=Dataset.from_list(dial.make_questions(3, seed=2)),
        peft_config=peft_config,
    )


def _step_policy(name, folder, common, peft_config, sharded):
    sync = {} if peft_config else SYNC
    log_ratio = {"credit": "log_ratio", "splitter": dial.SEPARATOR, "reward_weights": [2.0], **sync}
    trainer_class, config_class, more = {
        "step_grpo": (StepGRPOTrainer, StepGRPOConfig, {"reward_weights": [0.5, 2.0]}),
        "step_ppo": (StepPPOTrainer, StepPPOConfig, {"vf_coef": 0.5, **sync}),
        OUTCOME: (StepGRPOTrainer, StepGRPOConfig, {"credit": "outcome", "reward_weights": [0.5, 0.3, 2.0]}),
        "log_ratio": (StepGRPOTrainer, StepGRPOConfig, log_ratio),
        "monte_carlo": (StepGRPOTrainer, StepGRPOConfig, {"gamma": 0.0}),
        "step_grpo_updates": (StepGRPOTrainer, StepGRPOConfig, {**UPDATED, "update_reward_model": "before_scoring"}),
        "step_ppo_updates": (StepPPOTrainer, StepPPOConfig, {**UPDATED, "update_reward_model": "after_scoring"}),
    }[name]
    arguments = config_class(
        **common,
        **_batch(common, 12),
        num_generations=GROUP,
        max_completion_length=48,
        beta=0.1,
        grading="exact",
        answer_pattern=dial.ANSWER_PATTERN,
        shard_reward_model=sharded,
        **more,
    )
    rows = [{"prompt": row["question"], "answer": row["answer"]} for row in QUESTIONS]
    reward_model = _reward_model(folder, peft_config)
    if name == "log_ratio":
        reward_model = None
    elif name == "monte_carlo":
        reward_model = MonteCarloScorer("policy", num_continuations=3, splitter=dial.SEPARATOR)
    if name in NAMES_OF_UPDATES:
        rows[1]["answer"] = None  # a process then has fewer graded solutions than the other
        reward_model = str(Path(folder, "implicit" if peft_config is None else "implicit_adapter"))
    if name == OUTCOME:
        reward_model = [reward_model, _shortness]
    data = Dataset.from_list(rows)
    trainer = trainer_class(dial.BASE_PATH, reward_model, arguments, data, peft_config=peft_config)

    def write(prompt_ids, images, multimodal_fields, num_generations, *_):
        if trainer.state.global_step == 0:
            # The real generation runs once, to test its gathering of weights.
            GRPOTrainer._generate_single_turn(trainer, prompt_ids[:1], images, multimodal_fields, 1)
        tokenizer, first = trainer.processing_class, trainer.accelerator.process_index * len(prompt_ids)
        prompts = tokenizer.batch_decode(prompt_ids, skip_special_tokens=True)
        if dial.SEPARATOR in prompts[0]:
            return [_continued(tokenizer, text, row % 3) for row, text in enumerate(prompts)], None
        return [_written(tokenizer, text, (first + row) % GROUP) for row, text in enumerate(prompts)], None

    trainer._generate_single_turn = write
    return trainer


def _shortness(completion_ids, **columns):
    return [1 - len(ids) / 48 for ids in completion_ids]


def _written(tokenizer, prompt, index):
    """The completion that replaces a sample: right, truncated, repeated or wrong, by its index in the group."""
    asked = dial.DialQuestion.parse(prompt)
    steps, position = [], asked.start
    for operator, amount in asked.moves:
        after = {"+": position + amount, "-": position - amount, "*": position * amount}[operator] % 20
        after = (after + (index == 3)) % 20
        steps.append(f"{position} {operator} {amount} = {after}")
        position = after
    steps = {0: [*steps, f"answer {position}"], 1: steps, 2: [*steps, *steps], 3: [*steps, f"answer {position}"]}[
        index
    ]
    ids = tokenizer(" ".join(f"{step} ки" for step in steps))["input_ids"]
    return ids if index == 2 else [*ids, tokenizer.eos_token_id]


def _continued(tokenizer, text, index):
    """The continuation that replaces a sample: a right or a wrong answer, by a hash of the text and the index."""
    position = int(dial.DialQuestion.parse(text.partition("?")[0] + "?").answer)
    wrong = zlib.crc32(f"{text}/{index}".encode()) % 3 > 0
    return [*tokenizer(f"answer {(position + wrong) % 20}")["input_ids"], tokenizer.eos_token_id]


def _saved_against_live(trainer, folder):
    """Largest difference between a saved file and the engine's weights, and the number of compared weights."""
    live = {}
    for name, parameter in trainer.accelerator.unwrap_model(trainer.model).named_parameters():
        if hasattr(parameter, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter]):
                value = parameter.detach().clone()
        else:
            value = parameter.detach().clone()
        live[name.replace(".modules_to_save.default", "").replace(".default", "")] = value
    if not trainer.is_world_process_zero():
        return None
    saved = load_file(next(Path(folder).glob("*model.safetensors")))
    compared = [float((live[name] - value).abs().max()) for name, value in saved.items() if name in live]
    return {"compared": len(compared), "of": len(saved), "largest": max(compared)}


def _scorer_of(trainer):
    scorer = getattr(trainer, "scorer", None) or getattr(getattr(trainer, "step_reward", None), "scorer", None)
    if scorer is None or scorer.weights is None:
        return None
    assert isinstance(scorer, StepScorer)
    held = sum(
        (parameter.ds_tensor if hasattr(parameter, "ds_tensor") else parameter).numel()
        for parameter in scorer.weights.parameters()
    )
    return {"backend": type(scorer.backend).__name__, "held": held}
