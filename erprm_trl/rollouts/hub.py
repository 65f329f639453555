"""Uploads a rollout folder to the Hub as a dataset, and downloads it again.

Files are uploaded without secrets and without paths of this machine, together with a dataset card, so that
`datasets.load_dataset` reads the rows too.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..io.counts import counted
from ..io.redaction import redacted
from .records import CollectionSettings, RolloutRow
from .shards import MANIFEST, SHARD, write_manifest


SHARD_BYTES = 256 * 2**20  # an interrupted upload repeats one file at most
_SHARDS = "rollouts-*.jsonl"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# Types of the columns. A column with other values, such as the settings of the sampler, is read as JSON.
_TYPES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("chunk", "question_index", "solution_index", "num_tokens"), {"dtype": "int64"}),
    **dict.fromkeys(("question", "answer", "prediction", "unusable"), {"dtype": "string"}),
    **dict.fromkeys(("finished", "correct"), {"dtype": "bool"}),
    "question_generated": {"dtype": "int64"},
    "outcome_reward": {"dtype": "float64"},
    "steps": {"list": "string"},
    "question_rewards": {"list": "float64"},
    "prefix_rewards": {"list": {"list": "float64"}},
    "token_ids": {"list": "int64"},
    "prefix_generated": {"list": "int64"},
}
_CARD = """---
{data}
---

# {name}

Solutions to {questions}, split into steps, with graded continuations of their prefixes. They were
collected with [erprm_trl]({url}), which trains process reward models.

```python
from erprm_trl import ERPRMTrainer, RolloutDataset

rollouts = RolloutDataset("{repo_id}")
labels = rollouts.labels(eta=2.0)
trainer = ERPRMTrainer("MODEL", train_dataset="{repo_id}")
```

A row is a solution with the raw rewards of its continuations, from which step labels are computed for any `eta`.
Without erprm_trl, `datasets.load_dataset("{repo_id}")` reads the rows.

## Summary

{summary}

## Settings

{settings}

`{manifest}` has all settings. Paths of the machine on which the rollouts were collected are shortened, and secrets are
left out.
"""
_URL = "https://github.com/erprm-trl/erprm_trl"


def is_hub_id(path: str) -> bool:
    """Whether a path that does not exist may be the id of a dataset on the Hub."""
    return bool(_HUB_ID.fullmatch(path)) and not Path(path).exists()


def upload_rollouts(
    rows: Iterable[RolloutRow],
    manifest: Mapping[str, Any],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
):
    """
    Uploads rollouts, see [`RolloutDataset.push_to_hub`].

    Args:
        rows (`Iterable[RolloutRow]`):
            Rows in the order of the questions.
        manifest (`Mapping[str, Any]`):
            Manifest of the folder.
        repo_id, private, token, revision, commit_message:
            See [`RolloutDataset.push_to_hub`].

    Returns:
        `huggingface_hub.CommitInfo`: the last commit.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(repo_id, branch=revision, repo_type="dataset", exist_ok=True)
    with staged_rollouts(rows, manifest, repo_id) as folder:
        # Without the shards of an earlier upload, which may have been more, rows would be mixed.
        return api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=folder,
            revision=revision,
            delete_patterns=[_SHARDS],
            commit_message=commit_message or "Upload rollouts",
        )


def download_rollouts(repo_id: str, *, revision: str | None = None, token: str | bool | None = None) -> Path:
    """
    Downloads the rollouts of a dataset on the Hub into the cache.

    Args:
        repo_id, revision, token:
            See [`RolloutDataset.from_hub`].

    Returns:
        `Path`: the folder.

    Raises:
        `FileNotFoundError`: if the dataset does not exist, or cannot be reached and is not in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = snapshot_download(
            repo_id, repo_type="dataset", revision=revision, token=token, allow_patterns=[MANIFEST, _SHARDS]
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{repo_id}: got no such folder, so this is not a rollout folder, and no dataset of this name on the Hub "
            f"({str(error).strip().splitlines()[0]}), expected a folder that collect_rollouts wrote, or a dataset "
            "that RolloutDataset.push_to_hub uploaded. Correct the path, log in with `hf auth login` if the dataset "
            "is private, or collect rollouts first, e.g. with erprm collect."
        ) from error
    return Path(folder)


@contextmanager
def staged_rollouts(rows: Iterable[RolloutRow], manifest: Mapping[str, Any], repo_id: str) -> Iterator[Path]:
    """
    Writes the files of an upload into a temporary folder: shards, manifest and dataset card. The same rollouts always
    give the same bytes, so that an interrupted upload skips the files that it has sent.

    Args:
        rows, manifest, repo_id:
            See [`upload_rollouts`].

    Yields:
        `Path`: the folder.
    """
    manifest = redacted(manifest)
    with TemporaryDirectory() as name:
        folder = Path(name)
        columns, num_rows = _write_shards(rows, folder)
        write_manifest(folder, manifest)
        (folder / "README.md").write_text(_card(repo_id, manifest, columns, num_rows), encoding="utf-8")
        yield folder


def _write_shards(rows: Iterable[RolloutRow], folder: Path) -> tuple[list[str], int]:
    """Writes the rows, and returns their columns and their number. A chunk stays in one shard."""
    columns: dict[str, None] = {}
    num_rows, shard, file, chunk = 0, -1, None, None
    try:
        for row in rows:
            if file is None or (row.chunk != chunk and file.tell() >= SHARD_BYTES):
                if file is not None:
                    file.close()
                shard += 1
                file = open(folder / SHARD.format(rank=shard), "w", encoding="ascii")
            chunk = row.chunk
            values = {name: value if name in _TYPES else redacted(value) for name, value in row.to_json().items()}
            file.write(json.dumps(values) + "\n")
            columns.update(dict.fromkeys(values))
            num_rows += 1
    finally:
        if file is not None:
            file.close()
    return list(columns), num_rows


def _card(repo_id: str, manifest: Mapping[str, Any], columns: Iterable[str], num_rows: int) -> str:
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        pretty_name=repo_id.split("/")[-1],
        tags=["erprm_trl", "process-reward-model"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": _SHARDS}]}],
        dataset_info={"features": [{"name": name, **_TYPES.get(name, {"dtype": "json"})} for name in columns]},
    )
    settings = CollectionSettings.from_json(manifest["config"])
    summary = {"solutions": num_rows, **manifest.get("summary", {})}
    if num_rows < sum(settings.chunk_sizes):
        summary["incomplete"] = f"{num_rows} of {sum(settings.chunk_sizes)} solutions were collected"
    policies = {"sampler": settings.sampler, "completer": settings.completer or {}}
    sampling = {f"{policy}: {name}": value for policy, values in policies.items() for name, value in values.items()}
    names = ("num_solutions", "num_continuations", "splitter", "grading", "seed", "allocation")
    return _CARD.format(
        data=data.to_yaml().strip(),
        name=repo_id.split("/")[-1],
        repo_id=repo_id,
        url=_URL,
        manifest=MANIFEST,
        questions=counted(settings.num_questions, "question"),
        summary=_table(summary),
        settings=_table({**{name: getattr(settings, name) for name in names}, **sampling}),
    )


def _table(values: Mapping[str, Any]) -> str:
    lines = [f"| {name} | {_cell(value)} |" for name, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    code = repr(text)[1:-1] if "\n" in text else text
    return "`" + code.replace("`", "'").replace("|", "\\|") + "`"
