"""What training and scoring both know about the heads of reward models: which model class has which head, the MLP head
that transformers lacks, and the old name of a value head.
"""

from torch import nn
from transformers import (
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)


# Heads that can be trained. The others of `prm_format.HEADS` are for scoring public models.
AUTO_MODELS = {"lm": AutoModelForCausalLM, "token": AutoModelForTokenClassification}
# A value head as TRL once saved it is a linear head of one logit under another name.
VALUE_HEAD_NAMES = {r"^v_head\.summary\.": "score."}


def check_architecture(path_or_id: str, config: PreTrainedConfig, head: str) -> None:
    """
    Checks that transformers has a model of the architecture with a token classification head, if that is the head.

    Args:
        path_or_id (`str`):
            Folder or Hub id of the model, named in the error.
        config ([`~transformers.PreTrainedConfig`]):
            Its configuration.
        head (`str`):
            Head of the format.

    Raises:
        `ValueError`: if there is no such class.
    """
    remote = "AutoModelForTokenClassification" in (getattr(config, "auto_map", None) or {})
    if head in ("token", "token_mlp") and type(config) not in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING and not remote:
        raise ValueError(
            f"{path_or_id}: got an architecture ({config.model_type}) that transformers has no token classification "
            f"for, expected one with it for head={head!r}. Use head='lm', which every causal language model has."
        )


def refuse_virtual_tokens(model: nn.Module, subject: str) -> None:
    """
    Refuses adapters that put virtual tokens before the text. The model's answers are then later than its input ids
    say, so that a score would be read too early. Prefix tuning adds keys and values instead, and is right.

    Args:
        model (`torch.nn.Module`):
            The model; one without adapters passes.
        subject (`str`):
            What needs the positions, for the error.

    Raises:
        `ValueError`: for prompt tuning, p-tuning and their like.
    """
    for config in getattr(model, "peft_config", {}).values():
        kind = getattr(config.peft_type, "value", config.peft_type)
        if config.is_prompt_learning and kind != "PREFIX_TUNING":
            raise ValueError(
                f"{subject}: got an adapter of PEFT's type {kind}, which puts {config.num_virtual_tokens} virtual "
                "tokens before the text, expected one that leaves the positions of tokens as they are. Train the "
                "reward model with LoRA, IA3 or prefix tuning."
            )


def token_classifier_with_mlp(config: AutoConfig) -> type[PreTrainedModel]:
    """
    The class of a token classification model whose head is two linear layers with a ReLU between them, for the
    architecture of a configuration.
    """
    base = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING[type(config)]

    class TokenClassificationWithMLP(base):
        def __init__(self, config):
            super().__init__(config)
            size = config.get_text_config().hidden_size
            self.score = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, config.num_labels))

    return TokenClassificationWithMLP
