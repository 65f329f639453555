"""What training and scoring both know about the heads of reward models: which model class has which head, the MLP head
that transformers lacks, and the old name of a value head.
"""

from torch import nn
from transformers import (
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PreTrainedModel,
)


# Heads that can be trained. The others of `prm_format.HEADS` are for scoring public models.
AUTO_MODELS = {"lm": AutoModelForCausalLM, "token": AutoModelForTokenClassification}
# A value head as TRL once saved it is a linear head of one logit under another name.
VALUE_HEAD_NAMES = {r"^v_head\.summary\.": "score."}


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
