"""The heads of reward models, for training and scoring: the model class of each head, the MLP head that transformers
does not have, and the checks that a model fits its head.
"""

from torch import nn
from transformers import (
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


# Heads that can be trained. The other heads of `PRMFormat` are for scoring public models.
AUTO_MODELS = {
    "lm": AutoModelForCausalLM,
    "token": AutoModelForTokenClassification,
    "implicit": AutoModelForCausalLM,
}
# Earlier versions of TRL saved a linear head of one logit under this name.
VALUE_HEAD_NAMES = {r"^v_head\.summary\.": "score."}


def check_architecture(path_or_id: str, config: PreTrainedConfig, head: str) -> None:
    """
    Checks that transformers has a token classification model of the architecture, if the head needs one.

    Args:
        path_or_id (`str`):
            Folder or Hub id of the model, for the error message.
        config ([`~transformers.PreTrainedConfig`]):
            Configuration of the model.
        head (`str`):
            Head of the format.

    Raises:
        `ValueError`: if the head needs token classification and transformers has no such class.
    """
    remote = "AutoModelForTokenClassification" in (getattr(config, "auto_map", None) or {})
    if head in ("token", "token_mlp") and type(config) not in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING and not remote:
        raise ValueError(
            f"{path_or_id}: got the architecture {config.model_type!r}, for which transformers has no token "
            f"classification model, expected one that has it for head={head!r}. Use head='lm', which works with every "
            "causal language model."
        )


def fit_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Adds rows to the embeddings if the tokenizer has more tokens."""
    embeddings = model.get_input_embeddings()
    # PEFT wraps embeddings with trained rows in another module.
    if len(tokenizer) > getattr(embeddings, "original_module", embeddings).num_embeddings:
        model.resize_token_embeddings(len(tokenizer))


def refuse_virtual_tokens(model: nn.Module, subject: str) -> None:
    """
    Refuses adapters that insert virtual tokens before the text. Virtual tokens shift the logits, so scores would be
    read at the wrong positions. Prefix tuning is accepted, because it adds keys and values instead of tokens.

    Args:
        model (`torch.nn.Module`):
            The model, with or without adapters.
        subject (`str`):
            Name of the caller, for the error message.

    Raises:
        `ValueError`: for prompt tuning, p-tuning and similar adapters.
    """
    for config in getattr(model, "peft_config", {}).values():
        kind = getattr(config.peft_type, "value", config.peft_type)
        if config.is_prompt_learning and kind != "PREFIX_TUNING":
            raise ValueError(
                f"{subject}: got an adapter of PEFT's type {kind}, which inserts {config.num_virtual_tokens} virtual "
                "tokens before the text, expected an adapter that does not shift token positions. Train the reward "
                "model with LoRA, IA3 or prefix tuning."
            )


def token_classifier_with_mlp(config: AutoConfig) -> type[PreTrainedModel]:
    """
    The class of a token classification model of this architecture, with two linear layers and a ReLU between them as
    its head.
    """
    base = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING[type(config)]

    class TokenClassificationWithMLP(base):
        def __init__(self, config):
            super().__init__(config)
            size = config.get_text_config().hidden_size
            self.score = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, config.num_labels))

    return TokenClassificationWithMLP
