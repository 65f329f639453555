"""Every argument and dataset that TRL's `GRPOTrainer` accepts: the step trainers accept it, or refuse it by name."""

import inspect
import math
from dataclasses import fields

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from step_fakes import FakeScorer, by_text, questions, save_tiny, settings, tiny_llama, word_level
from transformers import TrainingArguments
from trl import GRPOConfig, GRPOTrainer

from erprm_trl.policy.online.step_config import StepGRPOConfig, StepPPOConfig
from erprm_trl.policy.online.step_grpo_trainer import StepGRPOTrainer
from erprm_trl.policy.online.step_ppo_trainer import StepPPOTrainer


# A value that is not the default, for each field that GRPOConfig adds to TrainingArguments, or whose default differs.
VALUES = {
    "learning_rate": 1e-3,
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_steps": 3,
    "remove_unused_columns": True,
    "model_init_kwargs": {"attn_implementation": "eager"},
    "trust_remote_code": True,
    "router_aux_loss_coef": 0.0,
    "disable_dropout": True,
    "cast_lm_head_to_fp32": True,
    "num_generations": 4,
    "num_generations_eval": 4,
    "max_completion_length": 6,
    "ds3_gather_for_generation": False,
    "shuffle_dataset": False,
    "pad_to_multiple_of": 8,
    "generation_batch_size": 8,
    "steps_per_generation": 2,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.01,
    "generation_kwargs": {"num_beams": 1},
    "chat_template_kwargs": {"enable_thinking": False},
    "repetition_penalty": 1.1,
    "cache_implementation": "dynamic",
    "beta": 0.1,
    "num_iterations": 2,
    "epsilon": 0.1,
    "delta": 1.5,
    "epsilon_high": 0.3,
    "sapo_temperature_neg": 1.1,
    "sapo_temperature_pos": 1.2,
    "vespo_k_pos": 2.5,
    "vespo_lambda_pos": 3.5,
    "vespo_k_neg": 3.5,
    "vespo_lambda_neg": 2.5,
    "importance_sampling_level": "sequence",
    "reward_weights": [2.0],
    "multi_objective_aggregation": "normalize_then_sum",
    "scale_rewards": "batch",
    "loss_type": "vespo",
    "mask_truncated_completions": True,
    "sync_ref_model": True,
    "ref_model_mixup_alpha": 0.5,
    "ref_model_sync_steps": 1,
    "top_entropy_quantile": 0.5,
    "entropy_coef": 0.01,
    "use_adaptive_entropy": True,
    "entropy_coef_min": 0.01,
    "entropy_coef_max": 0.5,
    "entropy_coef_delta": 0.01,
    "entropy_target": 0.3,
    "max_tool_calling_iterations": 2,
    "off_policy_mask_threshold": 0.1,
    "use_bias_correction_kl": False,
    "log_completions": True,
    "log_multimodal": False,
    "num_completions_to_print": 1,
    "log_unique_prompts": True,
    "log_completions_hub_repo": "owner/completions",
    "use_transformers_continuous_batching": True,
    "transformers_continuous_batching_config": {"max_memory_percent": 0.4},
    "use_transformers_paged": True,
    "use_vllm": True,
    "vllm_mode": "server",
    "vllm_model_impl": "transformers",
    "vllm_enable_sleep_mode": True,
    "vllm_structured_outputs_regex": "a",
    "vllm_server_base_url": "http://localhost:8000",
    "vllm_server_host": "localhost",
    "vllm_server_port": 8001,
    "vllm_server_timeout": 10.0,
    "vllm_group_port": 51217,
    "vllm_gpu_memory_utilization": 0.2,
    "vllm_max_model_length": 64,
    "vllm_tensor_parallel_size": 2,
    "vllm_importance_sampling_correction": False,
    "vllm_importance_sampling_mode": "token_truncate",
    "vllm_importance_sampling_clip_max": 2.0,
    "vllm_importance_sampling_clip_min": 0.5,
    "vllm_importance_sampling_cap": 2.0,
}
LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
# Options that act on a training on the CPU, with the other options that they need.
TRAINED = {
    **{f"loss_type={loss}": {"loss_type": loss, "num_iterations": 2} for loss in LOSSES},
    **{
        name: {name: VALUES[name]}
        for name in (
            "model_init_kwargs disable_dropout cast_lm_head_to_fp32 num_generations_eval shuffle_dataset top_k "
            "generation_kwargs repetition_penalty cache_implementation delta epsilon_high importance_sampling_level "
            "scale_rewards mask_truncated_completions top_entropy_quantile entropy_coef use_adaptive_entropy "
            "generation_batch_size steps_per_generation log_unique_prompts multi_objective_aggregation "
            "off_policy_mask_threshold pad_to_multiple_of"
        ).split()
    },
    "beta": {"beta": 0.1, "use_bias_correction_kl": False},
    "sync_ref_model": {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1},
}
# What the configurations refuse. With credit="outcome", StepGRPOConfig takes these options.
REFUSED = {
    "loss_type": "loss_type: got 'vespo' with advantages per step",
    "off_policy_mask_threshold": "off_policy_mask_threshold: got 0.1 with advantages per step",
    "multi_objective_aggregation": "multi_objective_aggregation: got 'normalize_then_sum' with advantages per step",
}


def own_fields():
    inherited = {field.name: field.default for field in fields(TrainingArguments)}
    return [
        field.name
        for field in fields(GRPOConfig)
        if field.name not in inherited or field.default != inherited[field.name]
    ]


def test_every_field_of_trl_has_a_value():
    assert sorted(own_fields()) == sorted(VALUES)


def read(config_class, folder, **options):
    """A configuration, or the error of its arguments."""
    try:
        return config_class(**settings(folder, **options))
    except (ValueError, TypeError) as error:
        return error


@pytest.mark.parametrize("name", VALUES)
def test_a_field_is_accepted_or_refused_by_name(tmp_path, name):
    options = {name: VALUES[name]}
    of_trl = read(GRPOConfig, tmp_path, **options)
    for config_class in (StepGRPOConfig, StepPPOConfig):
        ours = read(config_class, tmp_path, **options)
        if isinstance(of_trl, Exception):
            assert str(ours) == str(of_trl)
        elif name in REFUSED:
            assert REFUSED[name] in str(ours)
            assert read(StepPPOConfig, tmp_path, credit="outcome", **options).args == (
                str(ours).replace("credit='difference'", "credit='outcome'"),
            )
            by_trl = read(StepGRPOConfig, tmp_path, credit="outcome", **options)
            assert getattr(by_trl, name) == VALUES[name]
        else:
            assert getattr(ours, name) == getattr(of_trl, name)


def test_defaults_are_trls():
    ours = {field.name: field.default for field in fields(StepGRPOConfig)}
    differing = {field.name for field in fields(GRPOConfig) if field.default != ours[field.name]}
    # beta is 1 / eta, or depends on the outcomes. A loss that is not finite ends the training, and is not left out of
    # the log. Rewards are scaled over the batch, because groups of equally good solutions enlarge errors of scores.
    assert differing == {"beta", "logging_nan_inf_filter", "scale_rewards"}


@pytest.mark.parametrize("trainer_class", [StepGRPOTrainer, StepPPOTrainer])
def test_constructors_take_trls_arguments_in_the_same_order(trainer_class):
    ours, theirs = ([*inspect.signature(each.__init__).parameters] for each in (trainer_class, GRPOTrainer))
    assert ours == theirs


def train(trainer_class, config_class, folder, dataset=None, eval_dataset=None, **options):
    tokenizer = word_level()
    save_tiny(folder / "policy", tokenizer)  # the reference model is read from its folder
    options = {"max_steps": 2, "per_device_train_batch_size": 4, **options}
    trainer = trainer_class(
        str(folder / "policy"),
        FakeScorer(by_text),
        args=config_class(**settings(folder / "run", **options)),
        train_dataset=questions(4) if dataset is None else dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


@pytest.mark.slow("trains with every option")
@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize(
    ("trainer_class", "config_class"), [(StepGRPOTrainer, StepGRPOConfig), (StepPPOTrainer, StepPPOConfig)]
)
def test_a_step_trainer_trains_with_the_option(tmp_path, trainer_class, config_class, name):
    options = TRAINED[name]
    refused = [message for field, message in REFUSED.items() if options.get(field) == VALUES[field]]
    if refused:
        with pytest.raises(ValueError, match=refused[0]):
            train(trainer_class, config_class, tmp_path, **options)
        return
    trainer = train(trainer_class, config_class, tmp_path, **options)
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    initial = tiny_llama(len(word_level())).state_dict()
    trained = {name: weight for name, weight in trainer.model.state_dict().items() if name in initial}
    assert trained.keys() == initial.keys()
    assert all(weight.isfinite().all() for weight in trained.values())
    assert any(not torch.equal(weight, initial[name]) for name, weight in trained.items())


def streamed(rows):
    return IterableDataset.from_generator(lambda: iter(rows))


ROWS = [{"prompt": f"Tom dial {index}", "topic": "dial"} for index in range(4)]
DATASETS = {
    "texts": Dataset.from_list(ROWS),
    "streamed": streamed(ROWS),
    "streamed, columns unknown": streamed(ROWS).map(lambda row: row),
    "prompts with completions": Dataset.from_list([{**row, "completion": "4"} for row in ROWS]),
}


@pytest.mark.parametrize("name", DATASETS)
def test_forms_of_a_training_dataset(tmp_path, name):
    trainer = train(StepGRPOTrainer, StepGRPOConfig, tmp_path, DATASETS[name], max_steps=1)
    assert math.isfinite(trainer.state.log_history[0]["loss"])


@pytest.mark.parametrize("form", ["dataset", "streamed", "dict", "DatasetDict", "dict of streams"])
def test_forms_of_an_evaluation_dataset(tmp_path, form):
    whole = Dataset.from_list(ROWS)
    evaluations = {
        "dataset": whole,
        "streamed": streamed(ROWS),
        "dict": {"near": whole, "far": whole},
        "DatasetDict": DatasetDict(near=whole, far=whole),
        "dict of streams": {"near": streamed(ROWS), "far": streamed(ROWS)},
    }[form]
    options = {"max_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4}
    trainer = train(StepGRPOTrainer, StepGRPOConfig, tmp_path, whole, evaluations, **options)
    expected = {"eval_loss"} if form in ("dataset", "streamed") else {"eval_near_loss", "eval_far_loss"}
    assert expected <= {key for log in trainer.state.log_history for key in log}


@pytest.mark.parametrize("content", ["text", "blocks"])
def test_conversations_as_prompts(tmp_path, content):
    # TRL's chat format also has a list of content blocks per message.
    def message(text):
        return {"role": "user", "content": text if content == "text" else [{"type": "text", "text": text}]}

    tokenizer = word_level()
    block = "message['content']" if content == "text" else "message['content'][0]['text']"
    tokenizer.chat_template = "{% for message in messages %}{{ " + block + " }} {% endfor %}"
    scorer = FakeScorer(by_text)
    trainer = StepGRPOTrainer(
        tiny_llama(len(tokenizer)),
        scorer,
        args=StepGRPOConfig(**settings(tmp_path, max_steps=1, beta=0.0)),
        train_dataset=Dataset.from_list([{"prompt": [message(f"Tom dial {index}")]} for index in range(4)]),
        processing_class=tokenizer,
    )
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["loss"])
    assert {question for asked, _ in scorer.calls for question in asked} <= {f"Tom dial {index}" for index in range(4)}


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (None, "`train_dataset` is required"),
        (ROWS, "`train_dataset` must be a `Dataset` or `IterableDataset`, got `list`"),
        (DatasetDict(train=Dataset.from_list(ROWS)), "`train_dataset` must be a `Dataset` or `IterableDataset`"),
    ],
)
def test_other_training_datasets_are_refused_as_by_trl(tmp_path, dataset, message):
    tokenizer = word_level()
    with pytest.raises((TypeError, ValueError), match=message):
        StepGRPOTrainer(
            tiny_llama(len(tokenizer)),
            FakeScorer(by_text),
            args=StepGRPOConfig(**settings(tmp_path)),
            train_dataset=dataset,
            processing_class=tokenizer,
        )


@pytest.mark.parametrize("column", ["answer", "question"])
def test_columns_of_the_rewards_are_not_removed(tmp_path, column):
    dataset = questions(4, **{column: ["4"] * 4})
    with pytest.raises(ValueError, match=f"got remove_unused_columns=True with the column '{column}', expected False"):
        train(StepGRPOTrainer, StepGRPOConfig, tmp_path, dataset, remove_unused_columns=True)
    train(StepGRPOTrainer, StepGRPOConfig, tmp_path, questions(4), remove_unused_columns=True, max_steps=1)
