"""Records of a GPU day: JSON lines that are on disk as soon as they are written, and what the machine is.

A stage that is stopped at its time limit keeps all records that it has written.
"""

import json
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


PACKAGES = (
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "liger_kernel", "flash_attn",
    "deepspeed", "vllm",
)  # fmt: skip
ROOT = Path(__file__).parents[3]
COMMIT_FILE = ROOT / "COMMIT"


@dataclass
class Stage:
    """
    What a stage needs.

    Args:
        name (`str`):
            Name of the stage.
        output (`Path`):
            Folder of the records.
        work (`Path`):
            Folder of models, rollouts and other large files.
        model (`Path`):
            Folder of the real model, or of a tiny one.
        train_data, test_data (`Path`):
            Files of training and test questions.
        rehearse (`bool`):
            Whether to use tiny sizes.
        limit (`float`):
            Seconds until the stage is stopped.
        separator (`str`):
            Text after each step in the reward models.
    """

    name: str
    output: Path
    work: Path
    model: Path
    train_data: Path
    test_data: Path
    rehearse: bool
    limit: float
    separator: str = "<|step|>"

    def __post_init__(self):
        self.started = time.monotonic()

    @property
    def seconds_left(self) -> float:
        """Seconds until the stage is stopped."""
        return self.started + self.limit - time.monotonic()

    def record(self, kind: str, **values: Any) -> None:
        """Appends a record and writes it to the disk."""
        write_record(self.output, {"stage": self.name, "kind": kind, **values})


def write_record(output: Path, record: dict[str, Any]) -> None:
    """Appends a record to `results.jsonl` and writes it to the disk."""
    line = json.dumps({**record, "time": round(time.time(), 1)})
    with open(output / "results.jsonl", "a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
    print(line, flush=True)


def read_records(output: Path) -> list[dict[str, Any]]:
    """All records of a folder. A last line that was cut off is left out."""
    path = output / "results.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the file is missing. Run stages with --output {output} first.")
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{path}: left out a line that is not complete: {line[:60]}")
    return records


def commit_of(root: Path = ROOT) -> str:
    """The commit of the source, from git or from the file `COMMIT` that packing writes, or "unknown"."""
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode == 0:
            return result.stdout.strip()
    file = root / COMMIT_FILE.name
    return file.read_text().strip() if file.is_file() else "unknown"


def installed(package: str) -> str:
    """The version of a package, or "not installed"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def environment() -> dict[str, Any]:
    """The device, its driver, and the versions of the packages."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        device = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    else:
        device = f"CPU, {torch.get_num_threads()} threads"
    return {
        "device": device,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {package: installed(package) for package in PACKAGES},
    }
