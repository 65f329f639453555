"""What a folder or Hub repository says about the PEFT adapter in it: its configuration, and the base model that it
needs."""

import json
from pathlib import Path
from typing import Any

from .file_checks import check_model_folder
from .paths import local_path


def adapter_config(path_or_id: str | Path, revision: str | None = None) -> dict[str, Any] | None:
    """PEFT's configuration of an adapter, `None` where the folder or Hub id holds a whole model."""
    from peft.utils import CONFIG_NAME
    from transformers.utils import cached_file

    path_or_id = local_path(path_or_id)
    file = cached_file(path_or_id, CONFIG_NAME, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))


def base_of_adapter(path_or_id: str, config: dict[str, Any]) -> str:
    """
    The folder or Hub id of an adapter's base model.

    Args:
        path_or_id (`str`):
            Folder or Hub id of the adapter, named in errors.
        config (`dict[str, Any]`):
            Its [`adapter_config`].

    Raises:
        `FileNotFoundError`: if the adapter names no base model, or the base model is not at the place that it names.
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
        f"{path_or_id}: the adapter's configuration gives base_model_name_or_path={base!r}, expected the folder or "
        f"Hub id of the model that the adapter was trained on ({reason}). If that model has moved, write its new "
        f"place into base_model_name_or_path of {Path(path_or_id, 'adapter_config.json')}, or load both yourself with "
        f"peft.PeftModel.from_pretrained(base_model, {str(path_or_id)!r}, is_trainable=True) and pass the result."
    )
