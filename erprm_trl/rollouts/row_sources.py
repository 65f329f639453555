"""Reads the rows of a dataset from a file, a folder, the Hub, a function, or a `datasets` object."""

import csv
import gzip
import hashlib
import json
import logging
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import TextIOWrapper
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

from ..io.config_values import import_function
from ..io.paths import local_path


logger = logging.getLogger(__name__)

FILES = (".jsonl", ".json", ".csv", ".tsv", ".jsonl.gz", ".json.gz", ".csv.gz", ".tsv.gz", ".parquet")
MOST_NESTED = 60  # levels of lists and objects in a row of JSON; Arrow reads 64
_ONE_BLOCK = 2**30  # bytes; the default of `datasets` is 10 MB
_BLANK = b"\xef\xbb\xbf \t\r\n"  # includes the byte order mark


def read_rows(
    source: str | PathLike | Iterable[Mapping[str, Any]],
    config_name: str | None,
    split: str,
    dataset_kwargs: dict[str, Any],
) -> Iterable[Mapping[str, Any]]:
    """
    Reads the rows of a dataset.

    Args:
        source (`str`, `PathLike` or iterable of mappings):
            A file, a folder, a function as `"package.module:function"`, a dataset id on the Hub, or the rows.
        config_name (`str`, *optional*):
            Configuration of a Hub dataset.
        split (`str`):
            Split of a Hub dataset, of a folder with several splits, or of a `DatasetDict`.
        dataset_kwargs (`dict[str, Any]`):
            Keyword arguments of `datasets.load_dataset` or of the function.

    Returns:
        Iterable of mappings: a `datasets.Dataset`, an `IterableDataset`, or the rows unchanged.

    Raises:
        `ValueError`: if the file, folder, split or function does not exist, or a file does not contain a table.
    """
    if not isinstance(source, (str, PathLike)):
        return _one_split(source, split, "the given rows")
    path = local_path(source)
    if path.endswith(FILES) or Path(path).is_file():
        if not (Path(path).is_file() and path.endswith(FILES)):
            problem = "a file of another kind" if Path(path).is_file() else "no file"
            raise ValueError(
                f"Dataset: got {problem} at {path!r}, expected one of the kinds {', '.join(FILES)}. Pass the path of "
                "an existing file."
            )
        return read_table(path)
    if Path(path).is_dir():
        return _one_split(_read_folder(path, config_name, split, dataset_kwargs), split, path)
    if isinstance(source, PathLike) or path.startswith(("/", "./", "../", "~")):
        raise ValueError(
            f"Dataset: got no file or folder at {path!r}, expected an existing one. Pass its path, or a dataset id on "
            "the Hub."
        )
    if ":" in path:
        return _one_split(import_function(path)(**dataset_kwargs), split, path)
    from datasets import load_dataset

    return _one_split(load_dataset(path, config_name, split=split, **dataset_kwargs), split, path)


def open_rows(
    what: str,
    source: str | PathLike | Iterable[Mapping[str, Any]],
    config_name: str | None,
    split: str,
    dataset_kwargs: dict[str, Any],
    max_rows: int | None,
) -> tuple[Sequence[Mapping[str, Any]], str]:
    """
    Reads the rows of a dataset as a sequence of at least one row, whose first row is a mapping.

    Args:
        what (`str`):
            Name of the rows, for errors, e.g. `"Questions"`.
        source, config_name, split, dataset_kwargs:
            See [`read_rows`].
        max_rows (`int`, *optional*):
            Maximum number of rows. From a stream, no more rows than this are read.

    Returns:
        `tuple[Sequence[Mapping[str, Any]], str]`: a list, or a `datasets.Dataset`, which stays on disk, and the name
        of the source.

    Raises:
        `ValueError`: if there are no rows, or the first row is not a mapping.
    """
    rows = read_rows(source, config_name, split, dataset_kwargs)
    is_table = hasattr(rows, "select_columns") and hasattr(rows, "__len__")  # a `datasets.Dataset`, kept on disk
    if hasattr(rows, "with_format"):
        rows = rows.with_format(None)
    rows = rows.select(range(len(rows))[:max_rows]) if is_table else list(islice(rows, max_rows))
    name = str(source) if isinstance(source, (str, PathLike)) else "the given rows"
    if not len(rows):
        raise ValueError(f"{what}: got no rows from {name}, expected at least one. Check the file and `split`.")
    if not isinstance(rows[0], Mapping):
        raise ValueError(
            f"{what}: got {str(rows[0])[:80]!r} as the first row of {name}, expected a mapping of columns to "
            "values. Pass rows such as {'question': ..., 'answer': ...}."
        )
    return rows, name


def as_dataset(rows: Any, name: str):
    """
    Makes a dataset of rows that are not one. In a column of texts and numbers, the numbers become texts, and a warning
    names the column.

    Args:
        rows (`Any`):
            Rows from [`read_rows`].
        name (`str`):
            Source of the rows, for errors.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: the rows.

    Raises:
        `ValueError`: if the values of a column do not fit together.
    """
    from datasets import Dataset, IterableDataset
    from pyarrow import ArrowInvalid, ArrowTypeError

    if isinstance(rows, (Dataset, IterableDataset)):
        return rows
    rows = list(rows)
    columns = dict.fromkeys(column for row in rows for column in row)
    kinds = {column: {type(row.get(column)) for row in rows} - {type(None)} for column in columns}
    mixed = [column for column, found in kinds.items() if str in found and found & {int, float, bool}]
    if mixed:
        logger.warning("%s: the columns %s hold texts and numbers. The numbers are read as texts.", name, mixed)
        for place, row in enumerate(rows):
            numbers = {column: str(row[column]) for column in mixed if isinstance(row.get(column), (int, float))}
            rows[place] = row | numbers
    try:
        return Dataset.from_list(rows)
    except (ArrowInvalid, ArrowTypeError) as error:
        raise ValueError(
            f"{name}: a column holds values of several kinds ({error}), expected one kind per column. Write all "
            "values of the column as numbers, or all as texts."
        ) from error


def folder_cache(path: str) -> str:
    """
    The cache of `datasets` for the present files of a folder.

    If the README.md of a folder lists its data files, `datasets` finds the cached rows by the folder's last name and
    this list alone. It would return the rows of another folder of this name, or the rows from before the folder was
    written again.

    Args:
        path (`str`):
            A folder with data files.

    Returns:
        `str`: the value of `cache_dir` for `datasets.load_dataset`.
    """
    from datasets import config

    folder = Path(path).resolve()
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    state = [str(folder), *((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)]
    return str(Path(config.HF_DATASETS_CACHE, f"folder-{hashlib.sha256(repr(state).encode()).hexdigest()[:16]}"))


def has_splits(source: str | PathLike) -> bool:
    """Whether a source may have several splits. A file, the folder of a single dataset and a function have none."""
    path = local_path(source)
    return not (
        Path(path).is_file() or Path(path, "state.json").is_file() or (":" in path and not Path(path).exists())
    )


def _one_split(rows: Any, split: str, name: str) -> Iterable[Mapping[str, Any]]:
    """Selects one split of a `DatasetDict`. Other rows are returned unchanged."""
    if not isinstance(rows, Mapping):
        return rows
    if split in rows and not isinstance(rows[split], str):
        return rows[split]
    if all(hasattr(value, "with_format") for value in rows.values()):
        raise ValueError(
            f"Dataset: got the splits {sorted(rows)} of {name}, expected {split!r} among them. Choose one of "
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
        return load_dataset(path, config_name, split=split, **{"cache_dir": folder_cache(path), **dataset_kwargs})
    except (FileNotFoundError, ValueError) as error:  # no data, no such split, or no such configuration
        raise ValueError(
            f"Dataset: the folder {path} cannot be read ({error}), expected a folder that `save_to_disk` wrote, or "
            f"data files with the split {split!r}. Choose another split with `split`."
        ) from error


def read_table(path: str):
    """
    The rows of a file, as a `datasets.Dataset` that stays on disk, or as a list if a dataset would change values.

    Raises:
        `ValueError`: if the file holds no table. The message names the file, and if possible the line.
    """
    from datasets import Dataset, Features, Value
    from datasets.exceptions import DatasetGenerationError
    from pyarrow import ArrowInvalid

    name = path.removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            return Dataset.from_parquet(path)
        if name.endswith((".csv", ".tsv")):
            delimiter = "\t" if name.endswith(".tsv") else ","
            columns, num_rows = _check_csv(path, delimiter)
            # All columns are read as text, because pandas would round large numbers and read "None" as missing.
            features = Features({column: Value("string") for column in columns})
            options = {"features": features, "delimiter": delimiter, "keep_default_na": False, "index_col": False}
            return Dataset.from_csv(path, **options) if num_rows else []
        kinds: dict[str, set[str]] = defaultdict(set)
        return _from_json(path, kinds) if _count_rows(path, kinds) else []
    except (DatasetGenerationError, ArrowInvalid) as error:
        raise ValueError(
            f"Dataset: {path} is not a table ({error.__cause__ or error}), expected rows with the same columns and "
            "distinct column names, in Unicode text. Correct the file."
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"Dataset: {path} cannot be decompressed ({error}), expected a gzip file. Compress it again with gzip."
        ) from error


def _from_json(path: str, kinds: Mapping[str, set[str]]):
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        rows = Dataset.from_json(path)
    except DatasetGenerationError:
        # The types of the columns come from the first block. A column that is empty there, as in PRM800K, gets its
        # type only if all rows are in one block.
        rows = Dataset.from_json(path, chunksize=_ONE_BLOCK)
    changed = any(_changes_values(feature, kinds, name) for name, feature in rows.features.items())
    return list(_json_rows(path)) if changed else rows


def _json_rows(path: str) -> Iterator[dict[str, Any]]:
    """The rows of a JSON file with their values as they are."""
    for _, text in _json_texts(path):
        value = json.loads(text.decode("utf-8-sig"))
        yield from value if isinstance(value, list) else [value]


def _json_texts(path: str) -> Iterator[tuple[int | None, bytes]]:
    """The lines of a JSON file that are not blank, with their numbers, or its whole text without a number."""
    with _open(path) as file:
        whole = _is_one_value(path, file.read(1024))
        file.seek(0)
        for line_number, text in [(None, file.read())] if whole else enumerate(file, start=1):
            if text.strip(_BLANK):
                yield line_number, text


def _changes_values(feature: Any, kinds: Mapping[str, set[str]], place: str) -> bool:
    """Whether `datasets` reads other values than the file has: dates for texts that look like dates, in a column of
    texts and numbers 7 for `"007"` and 0 for `"-"`, and rounded integers in a column with fractions."""
    if isinstance(feature, dict):
        return any(_changes_values(child, kinds, f"{place}.{name}") for name, child in feature.items())
    if hasattr(feature, "feature"):
        return _changes_values(feature.feature, kinds, f"{place}[]")
    found = kinds[place]
    is_date = str(getattr(feature, "dtype", "")).startswith(("timestamp", "date", "time", "duration"))
    is_mixed = "text" in found and len(found) > 1 and "other" not in found
    return is_date or is_mixed or {"large", "fraction"} <= found


def _add_kinds(value: Any, place: str, kinds: dict[str, set[str]]) -> None:
    """Adds the kinds of a value and of the values in it, by their place."""
    if isinstance(value, dict):
        kinds[place].add("other")
        for name, child in value.items():
            _add_kinds(child, f"{place}.{name}", kinds)
    elif isinstance(value, list):
        kinds[place].add("other")
        for child in value:
            _add_kinds(child, f"{place}[]", kinds)
    elif isinstance(value, int) and abs(value) > 2**53:
        kinds[place].add("large")
    elif value is not None:
        kinds[place].add("text" if isinstance(value, str) else "fraction" if isinstance(value, float) else "number")


def _open(path: str):
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")


def _check_csv(path: str, delimiter: str) -> tuple[list[str], int]:
    """Checks a CSV file, and returns its columns and its number of rows. Pandas alone would drop or shift fields of
    rows with too many fields."""
    columns, num_rows = [], 0
    with _open(path) as file, TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            columns = next(reader, [])
            if not columns or len(set(columns)) < len(columns):
                raise ValueError(f"got the columns {columns}, which are not distinct names")
            for row in reader:
                if row and len(row) != len(columns):
                    raise ValueError(
                        f"got {len(row)} fields for {len(columns)} columns (put quotes around text with commas)"
                    )
                num_rows += bool(row)
        except (csv.Error, ValueError) as error:
            raise ValueError(
                f"Dataset: {path}, line {max(reader.line_num, 1)}: {error}, expected a table in UTF-8 with distinct "
                "column names in its first line. Correct the file."
            ) from None
    return columns, num_rows


def _count_rows(path: str, kinds: dict[str, set[str]]) -> int:
    """Checks a JSON file, counts its rows, and collects the kinds of its values by their place. `datasets` alone would
    not name the line of an error, round integers with more than 64 bits, read a single row with half of a surrogate
    pair as several rows, and end the process at a line `null` and at deeply nested lists."""
    num_rows = 0
    for line_number, text in _json_texts(path):
        whole = line_number is None
        try:
            value = json.loads(text.decode("utf-8-sig"), parse_int=_exact_int)
            if text.count(b"[") + text.count(b"{") > MOST_NESTED and _is_nested(value, MOST_NESTED):
                raise ValueError(f"got more than {MOST_NESTED} levels of lists and objects")
            rows = value if whole and isinstance(value, list) else [value]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("got a row that is not a JSON object")
            if b"\\ud" in text.lower():
                json.dumps(value, ensure_ascii=False).encode()  # a UnicodeEncodeError for half of a pair
            for row in rows:
                for name, item in row.items():
                    _add_kinds(item, name, kinds)
        except (ValueError, RecursionError) as error:
            where = path if whole else f"{path}, line {line_number}"
            raise ValueError(
                f"Dataset: {where}: {error}, expected JSON objects in UTF-8, one per line or all in one list. "
                "Correct the file."
            ) from None
        num_rows += len(rows)
    return num_rows


def _is_one_value(path: str, start: bytes) -> bool:
    # Whether the file is one list, or one object over several lines, instead of one object per line.
    first_line = start.lstrip(_BLANK).split(b"\n")[0].strip()
    return first_line.startswith(b"[") or (path.removesuffix(".gz").endswith(".json") and first_line == b"{")


def _is_nested(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested in a value in more than this number of levels."""
    values = [value]
    for _ in range(levels):
        values = [
            child
            for item in values
            if isinstance(item, (list, dict))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return any(isinstance(item, (list, dict)) for item in values)


def _exact_int(digits: str) -> int:
    if len(digits) > 18 and not -(2**63) <= int(digits[:21]) < 2**63:
        raise ValueError(f"got the integer {digits[:40]}, which has more than 64 bits (write it in quotes)")
    return int(digits)
