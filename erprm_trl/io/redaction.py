"""Removes secrets and absolute paths from configurations before they are published, e.g. to a tracker."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


# Names of settings that hold secrets. `good_token` and `eos_token` do not match.
SECRET_NAME = re.compile(
    r"(^|_)(api_?keys?|access_keys?|secrets?|secret_keys?|passwords?|passwd|credentials?|authorization|"
    r"(hub|auth|api|access|bearer|hf|write)_tokens?)$|^(token|key|cookie)$",
    re.IGNORECASE,
)
# The form of access tokens of common providers, anywhere in a text.
SECRET_TEXT = re.compile(r"\b(hf_|sk-|ghp_|github_pat_|glpat-|xox[bp]-)[A-Za-z0-9_-]{8,}|\bBearer\s+\S+")
MASK = "<redacted>"


def redacted(value: Any) -> Any:
    """
    Masks the secrets in a configuration and shortens its absolute paths. Paths inside the working directory become
    relative to it. Of other absolute paths, only the last part is kept.

    Args:
        value (`Any`):
            Configuration, made of mappings, lists, strings and numbers. Values of other types do not change.

    Returns:
        `Any`: a redacted copy. Mappings become `dict`, tuples and sets become `list`.
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
    # A text with one part below the root may be a command ("/think {question}") instead of a path.
    path = os.path.expanduser(text.removeprefix("file://"))
    if not os.path.isabs(path) or "\n" in path or (len(Path(path).parts) < 3 and not os.path.exists(path)):
        return text
    relative = os.path.relpath(path)
    return os.path.basename(os.path.normpath(path)) if relative.startswith(os.pardir) else relative


def without_login(text: str) -> str:
    """Removes `user:password@` from a URL. Other texts do not change."""
    if "://" not in text or "@" not in text:
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        return text
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else text
