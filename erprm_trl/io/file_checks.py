"""Tells files of models and checkpoints that were cut off or overwritten from whole ones, without reading a tensor.

Garbage of the right length inside a tensor is not found: no reader of these formats compares checksums.
"""

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path

from .paths import local_path


# What a loader reads; a run's logs, which may lie beside it, are not among it.
LOADED = ("*.safetensors", "*.index.json", "config.json", "adapter_config.json", "prm_format.json", "tokenizer*.json")


def damaged_file(paths: Iterable[Path]) -> str | None:
    """The first of the files that is damaged, and how, or `None`: JSON, safetensors, and what torch saved (`.pt`,
    `.pth`)."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(paths):
        try:
            if path.suffix == ".json":
                json.loads(path.read_bytes())
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
            elif path.suffix in (".pt", ".pth") and not zipfile.is_zipfile(path):
                return f"{path.name} is damaged (cut off, or nothing that torch saved)"
        except (ValueError, SafetensorError) as error:
            return f"{path.name} is damaged ({error})"
    return None


def check_model_folder(path_or_id: str | Path) -> None:
    """
    Looks at a model's files before others read them: their errors name none.

    Raises:
        `ValueError`: if it is a folder and a file in it is damaged.
    """
    folder = Path(local_path(path_or_id))
    if not folder.is_dir():
        return
    damage = damaged_file(path for pattern in LOADED for path in folder.glob(pattern))
    if damage is not None:
        raise ValueError(
            f"{folder}: {damage}, expected a saved model. Resume the training that saved it (it saves it again), or "
            "copy the folder again."
        )
