"""Reads a `.wandb` file: protobuf records in LevelDB's log format."""

import json
import struct
from pathlib import Path
from typing import NamedTuple

from wandb.proto import wandb_internal_pb2


BLOCK = 32768  # records are cut into pieces at the ends of blocks, each with a header of 7 bytes


def records(path):
    """All records of a finished run."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, parts = 7, []
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts.append(data[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            yield record
            parts = []


class Run(NamedTuple):
    """The content of a run's file: rows of the history, with nested keys as `a.b`, and artifacts' files by name."""

    history: list
    config: dict
    artifacts: dict
    files: Path

    @property
    def keys(self):
        """All keys of the history."""
        return {key for row in self.history for key in row}


def read_runs(folder):
    """The runs in a folder, by their names."""
    runs = {}
    for path in folder.glob("wandb/offline-run-*/*.wandb"):
        history, config, artifacts, name = [], {}, {}, None
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                history.append(as_dict(record.history.item))
            elif kind == "config":
                config |= as_dict(record.config.update)
            elif kind == "run":
                name = record.run.display_name
                config |= as_dict(record.run.config.update)
            artifact = record.request.log_artifact.artifact if kind == "request" else record.artifact
            if artifact.name:
                artifacts[artifact.name] = {entry.path for entry in artifact.manifest.contents}
        runs[name] = Run(history, config, artifacts, path.parent / "files")
    return runs


def as_dict(items):
    """The keys and values of a history row or a configuration change."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
