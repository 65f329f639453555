"""Files, HTTP requests and configuration values, for every stage. Imports no other part of the package."""

from typing import TYPE_CHECKING

from .._lazy import lazy_exports


if TYPE_CHECKING:
    from .adapters import adapter_config, base_of_adapter
    from .atomic_files import make_folder, replace_file
    from .config_values import import_function, is_url, read_json_fields
    from .file_checks import check_model_folder, damaged_file
    from .http_client import EndpointClient, EndpointError, Service
    from .on_disk_sequence import OnDiskSequence
    from .paths import local_path, local_paths
    from .progress_bars import progress_bar
    from .redaction import redacted, without_login
    from .text_lists import check_text_lists, check_texts, refuse_text
    from .tokenizers import load_tokenizer

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "adapters": ["adapter_config", "base_of_adapter"],
        "atomic_files": ["make_folder", "replace_file"],
        "config_values": ["import_function", "is_url", "read_json_fields"],
        "file_checks": ["check_model_folder", "damaged_file"],
        "http_client": ["EndpointClient", "EndpointError", "Service"],
        "on_disk_sequence": ["OnDiskSequence"],
        "paths": ["local_path", "local_paths"],
        "progress_bars": ["progress_bar"],
        "redaction": ["redacted", "without_login"],
        "text_lists": ["check_text_lists", "check_texts", "refuse_text"],
        "tokenizers": ["load_tokenizer"],
    },
)
