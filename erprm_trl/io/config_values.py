"""Values of configuration files and command lines that stand for something else.

A mapping arrives from YAML as such, and from the command line as JSON. A function is named by its import path,
`"package.module:function"`. The name of a model may be the address of a server.
"""

import importlib
import json
import re
from collections.abc import Callable
from typing import Any


def read_json_fields(config: Any, *names: str) -> None:
    """
    Parses fields of a configuration that hold JSON text, in place. Other values stay as they are.

    Args:
        config (`Any`):
            Configuration, changed in place.
        *names (`str`):
            Names of the fields.

    Raises:
        `ValueError`: if a string is not JSON.
    """
    for name in names:
        value = getattr(config, name)
        if isinstance(value, str):
            try:
                setattr(config, name, json.loads(value))
            except json.JSONDecodeError as error:
                raise ValueError(f"{name}: got {value!r}, expected a JSON object ({error}).") from error


def is_url(path_or_id: Any) -> bool:
    """Whether the name of a model is the address of a server."""
    return isinstance(path_or_id, str) and path_or_id.startswith(("http://", "https://"))


def refuse_escapes(name: str, text: str) -> None:
    """
    Refuses a text of escape sequences, such as a backslash and an `n`: what `--separator '\\n'` in a shell gives.

    Raises:
        `ValueError`: if the text is nothing but such sequences. The error names `name`.
    """
    if re.fullmatch(r"(?:\\[nrt])+", text):
        meant = text.replace("\\n", "\n").replace("\\r", "\r").replace("\\t", "\t")
        raise ValueError(
            f"{name}: got the {len(text)} characters {text!r}, expected {meant!r}. Write $'{text}' in a shell, and "
            f'"{text}" with double quotes in YAML.'
        )


def import_function(path: str) -> Callable:
    """
    Imports the function that `"package.module:function"` names.

    Args:
        path (`str`):
            Import path of a function or class.

    Raises:
        `ValueError`: if the path has another form, or names nothing that can be imported and called.
    """
    module_name, _, function_name = path.partition(":")
    if not module_name or not function_name:
        raise ValueError(f"Function: got {path!r}, expected 'package.module:function'.")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"Function {path!r} cannot be imported: {error}. Check the spelling and PYTHONPATH."
        ) from error
    if not callable(function):
        raise ValueError(f"Function: {path!r} is a {type(function).__name__}, expected something that can be called.")
    return function
