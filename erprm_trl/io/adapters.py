"""Reads the configuration of a saved PEFT adapter, and finds its base model."""

import json
from pathlib import Path
from typing import Any

from .atomic_files import replace_file
from .file_checks import check_model_folder
from .paths import local_path


def adapter_config(path_or_id: str | Path, revision: str | None = None) -> dict[str, Any] | None:
    """
    Reads the PEFT configuration of an adapter.

    Args:
        path_or_id (`str` or `Path`):
            Folder or Hub id of an adapter or a model.
        revision (`str`, *optional*):
            Revision on the Hub.

    Returns:
        `dict[str, Any]` or `None`: the configuration, or `None` if the folder or Hub id contains a full model.
    """
    from peft.utils import CONFIG_NAME
    from transformers.utils import cached_file

    path_or_id = local_path(path_or_id)
    file = cached_file(path_or_id, CONFIG_NAME, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))


def base_of_adapter(path_or_id: str, config: dict[str, Any]) -> str:
    """
    Finds the base model of an adapter.

    Args:
        path_or_id (`str`):
            Folder or Hub id of the adapter, for errors.
        config (`dict[str, Any]`):
            Configuration of the adapter, see [`adapter_config`].

    Returns:
        `str`: folder or Hub id of the base model.

    Raises:
        `FileNotFoundError`: if the configuration names no base model, or the base model does not exist there.
        `ValueError`: if a file of the base model is damaged.
    """
    from transformers.utils import CONFIG_NAME, cached_file

    base, reason = config.get("base_model_name_or_path"), "no name"
    if base and Path(local_path(base)).is_dir():
        check_model_folder(local_path(base))
        return local_path(base)
    try:
        if base and cached_file(base, CONFIG_NAME, revision=config.get("revision")):
            return base
    except OSError as error:
        reason = str(error).splitlines()[0]
    raise FileNotFoundError(
        f"{path_or_id}: the adapter's configuration has base_model_name_or_path={base!r}, expected the folder or "
        f"Hub id of the model that the adapter was trained on ({reason}). If that model has moved, write its new "
        f"place into base_model_name_or_path of {Path(path_or_id, 'adapter_config.json')}, or load both yourself with "
        f"peft.PeftModel.from_pretrained(base_model, {str(path_or_id)!r}, is_trainable=True) and pass the result."
    )


def shorten_base_in_card(folder: Path) -> None:
    """Replaces the base model's absolute path in an adapter's `README.md`, into which PEFT writes it, by its last
    part."""
    card, file = folder / "README.md", folder / "adapter_config.json"
    if card.is_file() and file.is_file():
        base = str(json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path"))
        if Path(base).is_absolute():
            replace_file(card, card.read_text(encoding="utf-8").replace(base, Path(base).name))
