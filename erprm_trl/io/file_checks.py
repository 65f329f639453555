"""Finds damaged files of models and checkpoints, such as truncated or overwritten files, without reading tensors.

Wrong bytes inside a tensor are not found, because these file formats have no checksums.
"""

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path

from .paths import local_path


# The files that a loader reads. Logs of a training run may be in the same folder, and are not checked.
LOADED = ("*.safetensors", "*.index.json", "config.json", "adapter_config.json", "prm_format.json", "tokenizer*.json")


def damaged_file(paths: Iterable[Path]) -> str | None:
    """
    Finds the first damaged file.

    Args:
        paths (`Iterable[Path]`):
            Files to check. JSON, safetensors and torch files (`.pt`, `.pth`) are checked, others are ignored.

    Returns:
        `str` or `None`: the name of the first damaged file and a description of the damage, or `None` if there is
        none.
    """
    from safetensors import SafetensorError, safe_open

    for path in sorted(paths):
        try:
            if path.suffix == ".json":
                json.loads(path.read_bytes())
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
            elif path.suffix in (".pt", ".pth") and not zipfile.is_zipfile(path):
                return f"{path.name} is damaged (truncated, or not a file that torch saved)"
        except (ValueError, SafetensorError) as error:
            return f"{path.name} is damaged ({error})"
    return None


def check_model_folder(path_or_id: str | Path, revision: str | None = None) -> None:
    """
    Checks the files of a model before they are loaded, because the errors of the loaders do not name the file, or the
    model.

    Args:
        path_or_id (`str` or `Path`):
            Folder or Hub id of the model or adapter. Of a Hub id, only the configuration is read.
        revision (`str`, *optional*):
            Revision on the Hub.

    Raises:
        `ValueError`: if a file in the folder is damaged.
        `OSError`: if there is no such folder, and the Hub id cannot be read and was not downloaded before.
    """
    folder = Path(local_path(path_or_id))
    if not folder.is_dir():
        _check_hub_id(local_path(path_or_id), revision)
        return
    damage = damaged_file(path for pattern in LOADED for path in folder.glob(pattern))
    if damage is not None:
        raise ValueError(
            f"{folder}: {damage}, expected a saved model. Resume the training that saved it, which saves it again, or "
            "copy the folder again."
        )


def _check_hub_id(name: str, revision: str | None) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id
    from transformers.utils import cached_file

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise OSError(
            f"{name}: got no folder, expected a folder of a saved model, or a Hub id such as Qwen/Qwen2.5-Math-1.5B."
        ) from error
    reasons = []
    for file in ("config.json", "adapter_config.json"):
        try:
            cached_file(name, file, revision=revision)
            return
        except OSError as error:
            reasons.append(error)
    reason = " ".join(str(reasons[0]).splitlines()[0].split()).rstrip(".")
    raise OSError(
        f"{name}: got no folder, and no model of this name on the Hub or in its local cache ({reason}), expected a "
        "folder of a saved model, or a Hub id. Check the spelling and the network, and set HF_TOKEN for a private or "
        "gated model."
    ) from reasons[0]
