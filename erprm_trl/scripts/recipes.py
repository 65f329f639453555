"""Finds the YAML files that the package ships: recipes by name, and configurations of accelerate."""

import difflib
from pathlib import Path
from typing import Any

from ..io.paths import PACKAGE, local_path, path_in_package
from .outcome import UsageError


def shipped_folder(name: str) -> Path:
    """`recipes` or `accelerate_configs`: inside an installed package, or next to it in a checkout."""
    installed, checkout = PACKAGE / name, PACKAGE.parent / name
    if not installed.is_dir() and not checkout.is_dir():
        raise UsageError(f"Folder {name!r}: found neither {installed} nor {checkout}. Install the package again.")
    return installed if installed.is_dir() else checkout


def find_recipe(name: str, stage: str | None) -> Path:
    """
    The YAML file of a recipe.

    Args:
        name (`str`):
            Folder of the recipe, for the stage's own file, or `"FOLDER/FILE"` for another file of the folder, such as
            `"dial/collect_test"`.
        stage (`str`, *optional*):
            Name of the stage's file in each folder, without `.yaml`. `None` for a command without recipes.

    Raises:
        [`UsageError`]: if there is no such file. The error lists the existing files.
    """
    if stage is None:
        raise UsageError(f"--recipe: got {name!r}, but there are no recipes for this command. Use --config FILE.yaml.")
    root = shipped_folder("recipes")
    folder, _, file = name.partition("/")
    path = root / folder / f"{(file or stage).removesuffix('.yaml')}.yaml"
    if path.is_file() and path.parent.parent == root:
        return path
    if not (root / folder).is_dir() or not folder or folder.startswith("."):
        kept = [path.parent.name for path in sorted(root.glob(f"*/{stage}.yaml"))]
    else:
        kept = [f"{folder}/{path.stem}" for path in sorted((root / folder).glob("*.yaml"))]
    close = difflib.get_close_matches(name, kept, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise UsageError(f"--recipe: got {name!r}, expected one of {', '.join(dict.fromkeys(kept))}.{hint}")


def find_accelerate_config(name: str) -> Path:
    """
    A configuration of accelerate.

    Args:
        name (`str`):
            A file, or the name of a shipped configuration, such as `"zero2"`.

    Raises:
        [`UsageError`]: if there is neither. The error lists the shipped names.
    """
    path = Path(local_path(name))
    if path.is_file():
        return path
    shipped = {path.stem: path for path in sorted(shipped_folder("accelerate_configs").glob("*.yaml"))}
    if name not in shipped:
        raise UsageError(f"--accelerate_config: got {name!r}, expected a file, or one of {', '.join(shipped)}.")
    return shipped[name]


def read_config(path: str | Path) -> dict[str, Any]:
    """
    The fields of a YAML file.

    A value such as `erprm_trl/dial/base`, which does not exist in the working directory, is taken from the installed
    package.

    Raises:
        [`UsageError`]: if there is no such file, or if it holds no mapping.
    """
    import yaml

    try:
        text = Path(local_path(path)).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--config: {path} cannot be read ({error.strerror}). Give an existing YAML file.") from error
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--config: {path} is not YAML ({error}).") from error
    if not isinstance(config, dict):
        raise UsageError(f"--config: {path} holds {type(config).__name__}, expected a mapping of fields to values.")
    return {field: path_in_package(value) if isinstance(value, str) else value for field, value in config.items()}
