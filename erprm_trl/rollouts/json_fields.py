"""Mappings in configurations: from YAML they arrive as such, from the command line as their JSON."""

import json
from typing import Any


def read_json_fields(config: Any, *names: str) -> None:
    """
    Replaces those of a configuration's fields that hold a string by what the string says as JSON.

    Raises:
        `ValueError`: if a string is no JSON.
    """
    for name in names:
        value = getattr(config, name)
        if isinstance(value, str):
            try:
                setattr(config, name, json.loads(value))
            except json.JSONDecodeError as error:
                raise ValueError(f"{name}: got {value!r}, expected a JSON object ({error}).") from error
