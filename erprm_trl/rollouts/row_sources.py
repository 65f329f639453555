"""Rows of a data set, from a file, a folder, the Hub, a function, or an object of `datasets`."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Mapping
from io import TextIOWrapper
from os import PathLike
from pathlib import Path
from typing import Any

from ..io.config_values import import_function
from ..io.paths import local_path


FILES = (".jsonl", ".json", ".csv", ".tsv", ".jsonl.gz", ".json.gz", ".csv.gz", ".tsv.gz", ".parquet")
_BLANK = b"\xef\xbb\xbf \t\r\n"  # a byte order mark too


def read_rows(
    source: str | PathLike | Iterable[Mapping[str, Any]],
    config_name: str | None,
    split: str,
    dataset_kwargs: dict[str, Any],
) -> Iterable[Mapping[str, Any]]:
    """
    Finds the rows of a data set.

    Args:
        source (`str`, `PathLike` or iterable of mappings):
            A file, a folder, a function as `"package.module:function"`, a dataset id on the Hub, or rows.
        config_name (`str`, *optional*):
            Configuration of a Hub dataset.
        split (`str`):
            Split of a Hub dataset, of a folder with several splits, or of a `DatasetDict`.
        dataset_kwargs (`dict[str, Any]`):
            Keyword arguments for `datasets.load_dataset` or for the function.

    Returns:
        Iterable of mappings: A `datasets.Dataset` or `IterableDataset`, or the rows as they are.

    Raises:
        `ValueError`: if there is no such file, folder, split or function, or a file holds no table.
    """
    if not isinstance(source, (str, PathLike)):
        return _one_split(source, split, "the given rows")
    path = local_path(source)
    if path.endswith(FILES) or Path(path).is_file():
        if not (Path(path).is_file() and path.endswith(FILES)):
            problem = "a file of another kind" if Path(path).is_file() else "no file"
            raise ValueError(f"Dataset: {problem} at {path!r}. Give an existing file: {', '.join(FILES)}.")
        return _read_table(path)
    if Path(path).is_dir():
        return _one_split(_read_folder(path, config_name, split, dataset_kwargs), split, path)
    if isinstance(source, PathLike) or path.startswith(("/", "./", "../", "~")):
        raise ValueError(f"Dataset: no file or folder at {path!r}. Give an existing one, or a dataset id on the Hub.")
    if ":" in path:
        return _one_split(import_function(path)(**dataset_kwargs), split, path)
    from datasets import load_dataset

    return _one_split(load_dataset(path, config_name, split=split, **dataset_kwargs), split, path)


def has_splits(source: str | PathLike) -> bool:
    """Whether a source may have several splits: a file, a folder of one dataset and a function have none."""
    path = local_path(source)
    return not (
        Path(path).is_file() or Path(path, "state.json").is_file() or (":" in path and not Path(path).exists())
    )


def _one_split(rows: Any, split: str, name: str) -> Iterable[Mapping[str, Any]]:
    """The rows of one split of a `DatasetDict`; rows as they are."""
    if not isinstance(rows, Mapping):
        return rows
    if split in rows and not isinstance(rows[split], str):
        return rows[split]
    if all(hasattr(value, "with_format") for value in rows.values()):
        raise ValueError(
            f"Dataset: got the splits {sorted(rows)} of {name}, expected {split!r} among them. Name one of "
            "them with `split`."
        )
    raise ValueError(
        f"Dataset: got a {type(rows).__name__} with {sorted(map(str, rows))} as {name}, expected rows, each a "
        "mapping of columns to values. Make a table of columns with `datasets.Dataset.from_dict`."
    )


def _read_folder(path: str, config_name: str | None, split: str, dataset_kwargs: dict[str, Any]):
    from datasets import load_dataset, load_from_disk

    if Path(path, "dataset_dict.json").is_file() or Path(path, "state.json").is_file():
        return load_from_disk(path)
    try:
        return load_dataset(path, config_name, split=split, **dataset_kwargs)
    except (FileNotFoundError, ValueError) as error:  # no data, no such split, or no such configuration
        raise ValueError(
            f"Dataset: the folder {path} cannot be read ({error}). Expected one written by `save_to_disk`, or files "
            f"of data with the split {split!r}; name another with `split`."
        ) from error


def _read_table(path: str):
    """The rows of a file, on the disk."""
    from datasets import Dataset, Features, Value
    from datasets.exceptions import DatasetGenerationError
    from pyarrow import ArrowInvalid

    name = path.removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            return Dataset.from_parquet(path)
        if name.endswith((".csv", ".tsv")):
            delimiter = "\t" if name.endswith(".tsv") else ","
            columns, number_of_rows = _check_csv(path, delimiter)
            # As text: pandas would round large numbers, and read an answer "None" as missing.
            features = Features({column: Value("string") for column in columns})
            options = {"features": features, "delimiter": delimiter, "keep_default_na": False, "index_col": False}
            return Dataset.from_csv(path, **options) if number_of_rows else []
        return Dataset.from_json(path) if _count_rows(path) else []
    except (DatasetGenerationError, ArrowInvalid) as error:
        raise ValueError(
            f"Dataset: {path} is no table ({error.__cause__ or error}). Expected rows of the same columns, "
            "each named once, in Unicode text."
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"Dataset: {path} cannot be decompressed ({error}). Write it again with gzip.") from error


def _open(path: str):
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")


def _check_csv(path: str, delimiter: str) -> tuple[list[str], int]:
    """Columns and number of rows of a CSV file, read before pandas does: that drops or shifts fields where a row has
    too many of them."""
    columns, number_of_rows = [], 0
    with _open(path) as file, TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            columns = next(reader, [])
            if not columns or len(set(columns)) < len(columns):
                raise ValueError(f"got {columns}, expected the name of each column once")
            for row in reader:
                if row and len(row) != len(columns):
                    raise ValueError(
                        f"{len(row)} fields in {len(columns)} columns: put quotes around text with commas"
                    )
                number_of_rows += bool(row)
        except (csv.Error, ValueError) as error:
            raise ValueError(
                f"Dataset: {path}, line {max(reader.line_num, 1)}: {error}. Expected a table in UTF-8 whose first "
                "line names the columns."
            ) from None
    return columns, number_of_rows


def _count_rows(path: str) -> int:
    """Rows of a file of JSON, read before `datasets` does: that names no line, rounds integers of more than 64 bits
    and ends the process at a line `null`."""
    with _open(path) as file:
        whole = _is_one_value(path, file.read(1024))
        file.seek(0)
        number_of_rows = 0
        for line_number, text in enumerate([file.read()] if whole else file, start=1):
            if not text.strip(_BLANK):
                continue
            try:
                value = json.loads(text.decode("utf-8-sig"), parse_int=_exact_int)
                rows = value if whole and isinstance(value, list) else [value]
                if not all(isinstance(row, dict) for row in rows):
                    raise ValueError("a row that is no JSON object")
            except (ValueError, RecursionError) as error:
                where = path if whole else f"{path}, line {line_number}"
                raise ValueError(
                    f"Dataset: {where}: {error}. Expected JSON objects in UTF-8, one a line or all in one list."
                ) from None
            number_of_rows += len(rows)
    return number_of_rows


def _is_one_value(path: str, start: bytes) -> bool:
    # A list, or one object over several lines.
    first_line = start.lstrip(_BLANK).split(b"\n")[0].strip()
    return first_line.startswith(b"[") or (path.removesuffix(".gz").endswith(".json") and first_line == b"{")


def _exact_int(digits: str) -> int:
    if len(digits) > 18 and not -(2**63) <= int(digits[:21]) < 2**63:
        raise ValueError(f"the integer {digits[:40]} has more than 64 bits and would be rounded: write it in quotes")
    return 0  # nobody reads it
