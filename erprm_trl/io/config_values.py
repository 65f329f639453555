"""Converts values of configuration files and command lines.

A mapping is a mapping in YAML, and JSON text on the command line. A function is given by its import path,
`"package.module:function"`. A model may be given by the address of a server.
"""

import importlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any


def read_json_fields(config: Any, *names: str) -> None:
    """
    Parses the JSON text in fields of a configuration, in place. Values that are not strings do not change.

    Args:
        config (`Any`):
            Configuration, which is changed in place.
        *names (`str`):
            Names of the fields to parse.

    Raises:
        `ValueError`: if a string is not JSON.
    """
    for name in names:
        value = getattr(config, name)
        if isinstance(value, str):
            try:
                setattr(config, name, json.loads(value))
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{name}: got {value!r}, expected a JSON object ({error}). Write a mapping in YAML, or JSON such "
                    "as '{\"key\": 1}' on the command line."
                ) from error


def is_url(path_or_id: Any) -> bool:
    """Whether a model is given by the address of a server."""
    return isinstance(path_or_id, str) and path_or_id.startswith(("http://", "https://"))


def refuse_escapes(name: str, text: str) -> None:
    """
    Raises an error if a text consists of escape sequences only, such as a backslash and an `n`. A shell passes this
    text for `--separator '\\n'`, where the user meant a line feed.

    Args:
        name (`str`):
            Name of the argument, for errors.
        text (`str`):
            Value of the argument.

    Raises:
        `ValueError`: if the text consists of escape sequences only.
    """
    if re.fullmatch(r"(?:\\[nrt])+", text):
        meant = text.replace("\\n", "\n").replace("\\r", "\r").replace("\\t", "\t")
        raise ValueError(
            f"{name}: got the {len(text)} characters {text!r}, expected {meant!r}. Write $'{text}' in a shell, and "
            f'"{text}" with double quotes in YAML.'
        )


def import_function(path: str) -> Callable:
    """
    Imports a function from a path of the form `"package.module:function"`.

    Args:
        path (`str`):
            Import path of a function or class.

    Returns:
        `Callable`: the function or class.

    Raises:
        `ValueError`: if the path has another form, or cannot be imported, or is not callable.
    """
    module_name, _, function_name = path.partition(":")
    if not module_name or not function_name:
        raise ValueError(f"Function: got {path!r}, expected 'package.module:function'. Write e.g. 'my_rewards:grade'.")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"Function {path!r} cannot be imported: {error}. Check the spelling and PYTHONPATH."
        ) from error
    if not callable(function):
        raise ValueError(f"Function: {path!r} is a {type(function).__name__}, expected something that can be called.")
    return function


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """
    Describes the differences between two settings, one text per value.

    Args:
        old, new (`Mapping[str, Any]`):
            The settings. Mappings inside them are compared value by value. A missing value counts as `None`.

    Returns:
        `list[str]`: the differences.

    Example:

    ```python
    >>> differences({"seed": 0, "sampler": {"top_p": 1.0}}, {"seed": 0, "sampler": {"top_p": 0.9}})
    ['sampler.top_p was 1.0 and is now 0.9']
    ```
    """
    before, after = _flatten(old), _flatten(new)
    return [
        f"{name} was {before.get(name)!r} and is now {after.get(name)!r}"
        for name in before | after
        if before.get(name) != after.get(name)
    ]


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        flat.update(_flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat
