"""Loads the reference model of an implicit process reward model, for training and scoring."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from ..io.file_checks import check_model_folder
from ..io.loaded_weights import refuse_random_lm_head
from ..io.paths import local_path
from .prm_format import FORMAT_FILE, PRMFormat


@contextmanager
def unpartitioned() -> Iterator[None]:
    """Loads models unpartitioned inside this context. While ZeRO-3 trains a model in this process, transformers
    partitions every model that it loads, and a model for scoring has no DeepSpeed engine to gather the weights."""
    from transformers.integrations import deepspeed

    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config


def load_reference_model(prm_format: PRMFormat, kwargs: dict[str, Any]) -> PreTrainedModel | None:
    """
    Loads the format's reference model, or returns `None` if the head needs none.

    Args:
        prm_format ([`PRMFormat`]):
            Format of the reward model.
        kwargs (`dict`):
            Keyword arguments of `from_pretrained`. The revision is that of the reward model, and is not used.

    Raises:
        `ValueError`: if the head needs a reference model and the format has none, a file of the model is damaged, or
            the model has no language-model head.
        `OSError`: if there is no model at the path or id that the format records.
    """
    if prm_format.head != "implicit":
        return None
    if prm_format.reference_model is None:
        raise ValueError(
            "PRMFormat.reference_model: got None with head='implicit', expected the folder or Hub id of the model "
            "that the reward model was trained against. Set it in the prm_format that you pass."
        )
    reference = local_path(prm_format.reference_model)
    try:
        check_model_folder(reference)
    except OSError as error:
        raise type(error)(
            f"{error} It is the reference model of an implicit process reward model. If it has moved, write its new "
            f"place into reference_model of the reward model's {FORMAT_FILE}."
        ) from error
    options = {**kwargs, "revision": None, "output_loading_info": True}
    model, info = AutoModelForCausalLM.from_pretrained(reference, **options)
    refuse_random_lm_head(reference, model, info["missing_keys"], "Set reference_model to a language model.")
    return model
