"""All private or internal names of TRL, transformers and torch that this package depends on.

Internal names are imported from this module only. Private methods that the package overrides or calls, and private
attributes that it reads or writes, are listed here. After an upgrade of TRL or transformers, first run `pytest -k
seams`, which compares these lists with the installed versions and with this package. This module does not import
torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from trl.trainer.base_config import _BaseConfig as BaseConfig


if TYPE_CHECKING:
    from trl.chat_template_utils import is_chat_template_prefix_preserving, parse_response
    from trl.models.utils import prepare_deepspeed, unwrap_model_for_generation
    from trl.trainer.base_trainer import _BaseTrainer as BaseTrainer
    from trl.trainer.utils import (
        FusedCausalLMOutput,
        create_model_from_path,
        disable_dropout_in_model,
        get_config_model_id,
    )

__all__ = [
    "SEAMS",
    "SEAM_ATTRIBUTES",
    "BaseConfig",
    "BaseTrainer",
    "FusedCausalLMOutput",
    "Seam",
    "SeamAttribute",
    "create_model_from_path",
    "disable_dropout_in_model",
    "get_config_model_id",
    "is_chat_template_prefix_preserving",
    "parse_response",
    "prepare_deepspeed",
    "unwrap_model_for_generation",
]


class Seam(NamedTuple):
    """
    A method or function that this package overrides or calls.

    Attributes:
        path (`str`):
            Dotted path of the method, including the class that defines it, or of the function.
        parameters (`str`):
            Names of its parameters in order, without `self`. `...` stands for any parameters that this package does
            not use by name.
        files (`str`):
            Files of this package that override or call it.
    """

    path: str
    parameters: str
    files: str


class SeamAttribute(NamedTuple):
    """
    An attribute, class or variable that this package reads, writes or overrides.

    Attributes:
        path (`str`):
            Dotted path, including the module, or the class that defines it or whose instances have it.
        files (`str`):
            Files of this package that use it.
    """

    path: str
    files: str


_CHECKPOINTS = "training/checkpoints.py"
_ERPRM = "reward_model/trainer/erprm_trainer.py"
_ERPRM_CONFIG = "reward_model/trainer/erprm_config.py"
_STEP, _STEP_GRPO = "policy/online/step_trainer.py", "policy/online/step_grpo_trainer.py"
_ROLLOUT = "policy/online/rollout_log_probs.py"
_LOG_RATIO, _CONTINUATIONS = "policy/online/log_ratio.py", "policy/online/policy_continuations.py"
_STEP_PPO, _STEP_DPO = "policy/online/step_ppo_trainer.py", "policy/step_dpo_trainer.py"
_RAFT, _RAFT_CONFIG, _POLICY_SAMPLER = (
    f"policy/raft/{name}.py" for name in ("raft_trainer", "raft_config", "policy_sampler")
)

SEAMS = (
    # Private methods that are overridden. Their `def` lines have the comment "seam".
    Seam("transformers.Trainer._get_grad_norm", "model grad_norm", "training/nonfinite.py"),
    Seam("transformers.Trainer._get_train_sampler", "train_dataset", _CHECKPOINTS),
    Seam("trl.GRPOTrainer._get_train_sampler", "dataset", _CHECKPOINTS),
    Seam("transformers.Trainer._run_epoch", "... epoch ...", _CHECKPOINTS),  # all parameters are passed by keyword
    Seam("transformers.Trainer._save_checkpoint", "model trial", f"{_CHECKPOINTS} {_ERPRM}"),
    Seam("trl.GRPOTrainer._save_checkpoint", "model trial", _CHECKPOINTS),
    Seam("trl.SFTTrainer._save_checkpoint", "model trial", _CHECKPOINTS),
    Seam("trl.DPOTrainer._save_checkpoint", "model trial", _CHECKPOINTS),
    Seam(
        "transformers.Trainer._load_from_checkpoint",
        "resume_from_checkpoint model",
        f"{_CHECKPOINTS} {_STEP_PPO} {_POLICY_SAMPLER}",
    ),
    Seam("transformers.Trainer._load_optimizer_and_scheduler", "checkpoint", f"{_CHECKPOINTS} {_STEP}"),
    Seam("trl.GRPOTrainer._load_optimizer_and_scheduler", "checkpoint", f"{_CHECKPOINTS} {_STEP}"),
    Seam("transformers.Trainer._load_rng_state", "checkpoint", _CHECKPOINTS),
    Seam("transformers.Trainer._get_output_dir", "trial", f"{_CHECKPOINTS} {_RAFT}"),
    Seam("transformers.Trainer._set_signature_columns_if_needed", "", _ERPRM),
    Seam("transformers.Trainer._get_eval_sampler", "eval_dataset", _ERPRM),
    Seam(
        "trl.SFTTrainer._prepare_dataset",
        "dataset processing_class args packing formatting_func dataset_name",
        _RAFT,
    ),
    Seam("trl.GRPOTrainer._generate", "prompts", _STEP),
    Seam(
        "trl.GRPOTrainer._calculate_rewards", "inputs prompts completions completion_ids_list", f"{_STEP} {_STEP_GRPO}"
    ),
    Seam("trl.GRPOTrainer._generate_and_score_completions", "inputs", f"{_STEP} {_STEP_PPO}"),
    Seam("trl.GRPOTrainer._compute_loss", "model inputs", f"{_STEP} {_STEP_GRPO} {_STEP_PPO}"),
    Seam(
        "trl.GRPOTrainer._get_per_token_logps_and_entropies",
        "model input_ids attention_mask logits_to_keep batch_size ...",
        f"{_STEP_PPO} {_ROLLOUT}",
    ),
    Seam("trl.scripts._hf_argparser.HfArgumentParser._add_dataclass_arguments", "dtype", "scripts/parser.py"),
    # Private methods, and private parameters of public functions, that are only called
    Seam("trl.scripts._hf_argparser.HfArgumentParser._parse_dataclass_field", "parser field", "scripts/parser.py"),
    Seam("trl.GRPOTrainer._log_metric", "name value", _LOG_RATIO),
    Seam("trl.GRPOTrainer._tokenize_prompts", "prompts", _CONTINUATIONS),
    Seam(
        "trl.GRPOTrainer._generate_single_turn",
        "prompt_ids images multimodal_fields num_generations ...",
        _CONTINUATIONS,
    ),
    Seam("transformers.Trainer._save", "output_dir ...", _POLICY_SAMPLER),
    Seam("transformers.PreTrainedModel._can_set_attn_implementation", "", "rollouts/sampling/kv_cache.py"),
    Seam(
        "transformers.Trainer.save_model",
        "output_dir _internal_call",
        f"{_CHECKPOINTS} {_ERPRM} {_STEP} {_STEP_PPO} {_RAFT}",
    ),
    Seam(
        "transformers.utils.hub.cached_files",  # `cached_file` passes the private parameter on to it
        "... revision ... _raise_exceptions_for_missing_entries ...",
        "reward_model/prm_format.py reward_model/scoring/vllm.py io/adapters.py io/tokenizers.py",
    ),
    Seam("transformers.masking_utils.find_packed_sequence_indices", "position_ids", "reward_model/attention.py"),
    Seam("transformers.masking_utils._ignore_causal_mask_sdpa", "padding_mask ...", "reward_model/attention.py"),
    # Public methods whose parameters or order of calls in training matter
    Seam("transformers.TrainerState.save_to_json", "json_path", _CHECKPOINTS),
    Seam("transformers.Trainer.get_batch_samples", "epoch_iterator num_batches device", _ERPRM),
    Seam("transformers.Trainer.compute_loss", "model inputs return_outputs num_items_in_batch", _ERPRM),
    Seam("trl.GRPOTrainer.compute_loss", "model inputs return_outputs num_items_in_batch", _STEP),
    Seam("trl.SFTTrainer.compute_loss", "model inputs return_outputs num_items_in_batch", _RAFT),
    Seam("trl.DPOTrainer.compute_loss", "model inputs return_outputs num_items_in_batch", _STEP_DPO),
    # Functions of TRL's internal modules that are imported here
    Seam("trl.models.utils.prepare_deepspeed", "model accelerator", "_trl.py"),
    Seam(
        "trl.models.utils.unwrap_model_for_generation",
        "model accelerator ... gradient_checkpointing_kwargs ...",
        "_trl.py",
    ),
    Seam("trl.chat_template_utils.is_chat_template_prefix_preserving", "processing_class", "_trl.py"),
    Seam("trl.chat_template_utils.parse_response", "tokenizer ids prefix tools", "_trl.py"),
    Seam("trl.trainer.utils.create_model_from_path", "model_id architecture ...", "_trl.py"),
    Seam("trl.trainer.utils.disable_dropout_in_model", "model", "_trl.py"),
    Seam("trl.trainer.utils.get_config_model_id", "config", "_trl.py"),
)

SEAM_ATTRIBUTES = (
    # Attributes of trainers
    SeamAttribute("trl.GRPOTrainer._metrics", _STEP),
    SeamAttribute("trl.GRPOTrainer._logs", "policy/online/generation_log.py policy/online/tracking.py"),
    SeamAttribute("trl.GRPOTrainer._pending_extra_logs", "policy/online/reward_model_updates.py"),
    SeamAttribute("trl.GRPOTrainer._step", _STEP),
    SeamAttribute("trl.GRPOTrainer._buffered_inputs", _STEP),
    SeamAttribute("trl.GRPOTrainer._last_world_entropy", _STEP),
    SeamAttribute("trl.GRPOTrainer._tokenizer", f"{_STEP} {_CONTINUATIONS}"),
    SeamAttribute("trl.SFTTrainer._tokenizer", _RAFT),
    SeamAttribute("trl.SFTTrainer._is_vlm", _RAFT),
    SeamAttribute("transformers.Trainer._signature_columns", _ERPRM),
    # Attributes of classes
    SeamAttribute(
        "trl.trainer.base_trainer._BaseTrainer._tag_names", f"{_ERPRM} {_STEP_GRPO} {_STEP_PPO} {_RAFT} {_STEP_DPO}"
    ),
    SeamAttribute("trl.trainer.base_trainer._BaseTrainer._name", f"{_ERPRM} {_STEP_GRPO} {_STEP_PPO} {_RAFT}"),
    SeamAttribute("trl.trainer.base_trainer._BaseTrainer._paper", f"{_ERPRM} {_RAFT}"),
    SeamAttribute("transformers.TrainingArguments._VALID_DICT_FIELDS", f"{_ERPRM_CONFIG} {_RAFT_CONFIG}"),
    SeamAttribute("trl.trainer.base_trainer._BaseTrainer.loss_is_scaled_for_ga", _ERPRM),
    # Attributes of models and their configurations
    SeamAttribute("transformers.PreTrainedModel._keys_to_ignore_on_save", "policy/online/value_head.py"),
    SeamAttribute("torch.nn.Module._modules", "policy/online/value_head.py"),
    SeamAttribute(
        "transformers.PreTrainedConfig._attn_implementation",
        "rollouts/sampling/kv_cache.py reward_model/attention.py reward_model/trainer/fast_paths.py",
    ),
    SeamAttribute(
        "transformers.PreTrainedConfig._name_or_path",
        "rollouts/sampling/transformers_sampler.py training/tracking/training_tracker.py",
    ),
    # Names in modules
    SeamAttribute(
        "transformers.integrations.deepspeed._hf_deepspeed_config_weak_ref", "reward_model/reference_model.py"
    ),
    SeamAttribute("trl.trainer.base_config._BaseConfig", "_trl.py"),
    SeamAttribute("trl.trainer.base_trainer._BaseTrainer", "_trl.py"),
    SeamAttribute("trl.trainer.utils.FusedCausalLMOutput", "_trl.py"),
)


def __getattr__(name: str):
    if name == "BaseTrainer":
        return import_module("trl.trainer.base_trainer")._BaseTrainer
    if name in ("prepare_deepspeed", "unwrap_model_for_generation"):
        return getattr(import_module("trl.models.utils"), name)
    if name in ("is_chat_template_prefix_preserving", "parse_response"):
        return getattr(import_module("trl.chat_template_utils"), name)
    if name in __all__:
        return getattr(import_module("trl.trainer.utils"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
