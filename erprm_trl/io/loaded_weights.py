"""Checks loaded models for parts that their checkpoint lacks, which transformers initialises at random."""

from collections.abc import Iterable
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import PreTrainedModel


def refuse_random_lm_head(path_or_id: str, model: "PreTrainedModel", missing_keys: Iterable[str], remedy: str) -> None:
    """
    Refuses a causal language model whose checkpoint has no language-model head, such as a classifier or an embedding
    model. transformers loads it with a random head, which differs from load to load.

    Args:
        path_or_id (`str`):
            Folder or Hub id of the model, for the error.
        model ([`~transformers.PreTrainedModel`]):
            The loaded model.
        missing_keys (`Iterable[str]`):
            `missing_keys` of `from_pretrained(..., output_loading_info=True)`.
        remedy (`str`):
            Last sentences of the error, which say what to do.

    Raises:
        `ValueError`: if the checkpoint lacks the head.
    """
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if module is head] if head is not None else []
    missing = sorted(key for key in missing_keys if key.rpartition(".")[0] in names)
    if missing:
        raise ValueError(
            f"{path_or_id}: got a checkpoint without {', '.join(missing)}, expected a causal language model with its "
            f"head. {remedy}"
        )
