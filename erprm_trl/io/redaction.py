"""What leaves the machine in a configuration: no secret, no absolute path."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


# Names of secrets; `good_token` and `eos_token` are none.
SECRET_NAME = re.compile(
    r"(^|_)(api_?keys?|access_keys?|secrets?|secret_keys?|passwords?|passwd|credentials?|authorization|"
    r"(hub|auth|api|access|bearer|hf|write)_tokens?)$|^(token|key|cookie)$",
    re.IGNORECASE,
)
# What providers' tokens look like, wherever they stand.
SECRET_TEXT = re.compile(r"\b(hf_|sk-|ghp_|github_pat_|glpat-|xox[bp]-)[A-Za-z0-9_-]{8,}|\bBearer\s+\S+")
MASK = "<redacted>"


def redacted(value: Any) -> Any:
    """
    A configuration that may be shown: secrets masked, absolute paths made relative to the working directory, or cut
    down to their last part where they lie outside it.

    Args:
        value (`Any`):
            What JSON holds: mappings, lists, strings, numbers. Other things are returned as they are.

    Returns:
        `Any`: a copy; mappings become `dict`, tuples and sets `list`.
    """
    if isinstance(value, Mapping):
        return {
            name: MASK if item and SECRET_NAME.search(str(name).replace("-", "_")) else redacted(item)
            for name, item in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [redacted(item) for item in value]
    if isinstance(value, Path):
        return _relative(str(value))
    return SECRET_TEXT.sub(MASK, without_login(_relative(value))) if isinstance(value, str) else value


def _relative(text: str) -> str:
    # One part below the root may be a command ("/think {question}"), not a path.
    path = os.path.expanduser(text.removeprefix("file://"))
    if not os.path.isabs(path) or "\n" in path or (len(Path(path).parts) < 3 and not os.path.exists(path)):
        return text
    relative = os.path.relpath(path)
    return os.path.basename(os.path.normpath(path)) if relative.startswith(os.pardir) else relative


def without_login(text: str) -> str:
    """A text; if it is a URL, without the `user:password@` in it."""
    if "://" not in text or "@" not in text:
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        return text
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else text
