"""Loads tokenizers, with an error that names the missing package."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .adapters import adapter_config, base_of_adapter
from .paths import local_path


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(path_or_id: str | Path, **options: Any) -> "PreTrainedTokenizerBase":
    """
    Loads the tokenizer of a model or an adapter with `AutoTokenizer`. If an adapter was saved without a tokenizer, the
    tokenizer of its base model is loaded.

    Args:
        path_or_id (`str` or `Path`):
            Folder or Hub id of the model or adapter.
        **options:
            Options of `AutoTokenizer.from_pretrained`, e.g. `revision` and `trust_remote_code`.

    Returns:
        `PreTrainedTokenizerBase`: the tokenizer.

    Raises:
        `ImportError`: if there is only a SentencePiece model, and the package `sentencepiece` is not installed.
    """
    from transformers import AutoTokenizer

    path_or_id, revision = tokenizer_source(path_or_id, options.pop("revision", None))
    if revision is not None:
        options["revision"] = revision
    try:
        return AutoTokenizer.from_pretrained(path_or_id, **options)
    except Exception as error:  # without sentencepiece, transformers tries other readers and names other packages
        if find_spec("sentencepiece") is None and _is_sentencepiece_alone(path_or_id, revision):
            raise ImportError(
                f"Tokenizer of {path_or_id}: got a SentencePiece model (tokenizer.model) without a tokenizer.json, "
                "expected the package sentencepiece, which reads it. Install it: pip install sentencepiece protobuf."
            ) from error
        raise


def tokenizer_source(path_or_id: str | Path, revision: str | None = None) -> tuple[str, str | None]:
    """Folder or Hub id of a model's tokenizer, and its revision. For an adapter that was saved without a tokenizer,
    this is its base model."""
    from transformers.utils import cached_file

    name = local_path(path_or_id)
    config = adapter_config(name, revision)
    if config is None or cached_file(
        name, "tokenizer_config.json", revision=revision, _raise_exceptions_for_missing_entries=False
    ):
        return name, revision
    return base_of_adapter(name, config), config.get("revision")


def _is_sentencepiece_alone(path_or_id: str, revision: str | None) -> bool:
    from transformers.utils import cached_file

    def has(name: str) -> bool:
        file = cached_file(path_or_id, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        return file is not None

    return has("tokenizer.model") and not has("tokenizer.json")
