"""Packs folders and the weights of a language model into parts of a limited size, and puts them together again on a
machine without a network.

The parts are a compressed tar archive that is cut into pieces. `parts.json` has the length and the SHA-256 of each
part. Weights are rounded to a few bits within blocks of 32, or kept in bfloat16. This file is also copied next to the
parts as `unpack.py`. It needs only torch, numpy and safetensors:

    python unpack.py PARTS TARGET
"""

import argparse
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np


INDEX = "parts.json"
UNPACKER = "unpack.py"
BLOCK = 32  # weights with a common scale
WEIGHTS = ".weights/"  # folder of the coded tensors in the archive, one .npz file per tensor
FORMAT = 1


class Parts(io.RawIOBase):
    """
    A file that is written as parts of a limited size. The last part is complete after `close`.

    Args:
        folder (`Path`):
            Folder of the parts.
        limit (`int`):
            Maximum size of a part, in bytes.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit, self.parts = folder, limit, []
        self._file, self._room, self._hash = None, 0, None

    def writable(self) -> bool:
        """Whether the file can be written."""
        return True

    def write(self, data) -> int:
        """Writes the data, into further parts if it does not fit into the current one."""
        view = memoryview(data)
        while len(view):
            if not self._room:
                self._begin()
            piece, view = view[: self._room], view[self._room :]
            self._file.write(piece)
            self._hash.update(piece)
            self._room -= len(piece)
        return len(data)

    def _begin(self) -> None:
        self._end()
        self._name = f"part-{len(self.parts):02d}"
        self._file, self._room, self._hash = open(self.folder / self._name, "wb"), self.limit, hashlib.sha256()

    def _end(self) -> None:
        if self._file is not None:
            self._file.close()
            size = self.limit - self._room
            self.parts.append({"name": self._name, "bytes": size, "sha256": self._hash.hexdigest()})
            self._file = None

    def close(self) -> None:
        """Ends the last part."""
        self._end()
        super().close()


class Joined(io.RawIOBase):
    """A file that is read from its parts, one after the other."""

    def __init__(self, paths: list[Path]):
        self._paths, self._file = iter(paths), None

    def readable(self) -> bool:
        """Whether the file can be read."""
        return True

    def readinto(self, buffer) -> int:
        """Reads the next bytes into a buffer."""
        while True:
            if self._file is None:
                path = next(self._paths, None)
                if path is None:
                    return 0
                self._file = open(path, "rb")
            if count := self._file.readinto(buffer):
                return count
            self._file.close()
            self._file = None


def quantise(blocks: np.ndarray, bits: int) -> dict[str, np.ndarray]:
    """Codes of `bits` bits, and the step and the lowest value of each block, of float32 blocks (N, 32)."""
    low = blocks.min(1, keepdims=True)
    step = np.maximum(blocks.max(1, keepdims=True) - low, 1e-12) / (2**bits - 1)
    codes = np.clip(np.rint((blocks - low) / step), 0, 2**bits - 1).astype(np.uint8)
    packed = np.packbits(np.unpackbits(codes.reshape(-1, 1), axis=1)[:, 8 - bits :].reshape(-1))
    return {"codes": packed, "step": step[:, 0].astype(np.float32), "low": low[:, 0].astype(np.float32)}


def restore(coded: dict[str, np.ndarray], bits: int) -> np.ndarray:
    """The blocks (N, 32) of `quantise`."""
    step, low = coded["step"], coded["low"]
    columns = np.unpackbits(coded["codes"])[: len(step) * BLOCK * bits].reshape(-1, bits)
    empty = np.zeros((len(columns), 8 - bits), np.uint8)
    codes = np.packbits(np.concatenate([empty, columns], axis=1), axis=1)[:, 0].reshape(-1, BLOCK)
    return codes * step[:, None] + low[:, None]


def coded_weights(folder: Path, bits: int) -> Iterator[tuple[str, bytes]]:
    """Name and .npz file of each tensor of a model. With 16 bits, or if blocks do not fit, the values are bfloat16."""
    import torch
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder}: got a folder without .safetensors files, expected a model. Check --model.")
    for path in files:
        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                tensor = tensors.get_tensor(name)
                arrays: dict[str, np.ndarray]
                if bits < 16 and tensor.ndim == 2 and tensor.numel() % BLOCK == 0:
                    arrays = quantise(tensor.float().numpy().reshape(-1, BLOCK), bits) | {"bits": np.array(bits)}
                else:
                    arrays = {"raw": tensor.to(torch.bfloat16).contiguous().view(torch.int16).numpy()}
                file = io.BytesIO()
                np.savez(file, shape=np.array(tensor.shape, np.int64), **arrays)
                yield name, file.getvalue()


def restored_tensor(file: bytes):
    """The bfloat16 tensor of an .npz file of `coded_weights`."""
    import torch

    with np.load(io.BytesIO(file)) as arrays:
        shape = tuple(arrays["shape"].tolist())
        if "raw" in arrays:
            return torch.from_numpy(arrays["raw"]).view(torch.bfloat16).reshape(shape)
        blocks = restore({name: arrays[name] for name in ("codes", "step", "low")}, int(arrays["bits"]))
        return torch.from_numpy(blocks.astype(np.float32).reshape(shape)).to(torch.bfloat16)


def pack(folders: dict[str, list[tuple[Path, str]]], output: Path, model: Path | None, bits: int, limit: int) -> dict:
    """
    Writes the parts, `parts.json` and `unpack.py` into a folder.

    Args:
        folders (`dict[str, list[tuple[Path, str]]]`):
            Files to pack by the folder that they are unpacked to: path, and name in this folder.
        output (`Path`):
            Folder of the parts. Old parts in it are deleted.
        model (`Path`, *optional*):
            Folder of a language model. It is unpacked to `model`.
        bits (`int`):
            Bits per weight: 4 to 8, or 16 for bfloat16.
        limit (`int`):
            Maximum size of a part, in bytes.

    Returns:
        `dict`: the contents of `parts.json`.
    """
    output.mkdir(parents=True, exist_ok=True)
    for old in output.glob("part-*"):
        old.unlink()
    parts = Parts(output, limit)
    with (
        gzip.GzipFile(fileobj=parts, mode="wb", compresslevel=3, filename="", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", dereference=True) as archive,
    ):
        for folder, files in folders.items():
            for path, name in files:
                archive.add(path, f"{folder}/{name}", recursive=False)
        if model is not None:
            for path in sorted(model.iterdir()):
                if path.is_file() and ".safetensors" not in path.name:
                    archive.add(path, f"model/{path.name}")
            for name, file in coded_weights(model, bits):
                entry = tarfile.TarInfo(f"{WEIGHTS}{name}.npz")
                entry.size = len(file)
                archive.addfile(entry, io.BytesIO(file))
    parts.close()
    index = {"format": FORMAT, "parts": parts.parts, "weight_bits": bits if model is not None else None}
    (output / INDEX).write_text(json.dumps(index, indent=2))
    shutil.copyfile(__file__, output / UNPACKER)
    return index


def check_parts(folder: Path) -> list[Path]:
    """The parts of a folder in their order. Raises an error if one is missing or damaged."""
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the file is missing. Copy {INDEX} into the folder of the parts.")
    index = json.loads(path.read_text())
    if index["format"] != FORMAT:
        raise ValueError(f"{path}: got format {index['format']}, expected {FORMAT}. Use the {UNPACKER} of the parts.")
    missing = [part["name"] for part in index["parts"] if not (folder / part["name"]).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: got {len(index['parts']) - len(missing)} of {len(index['parts'])} parts, expected all. Copy "
            f"{', '.join(missing)} again."
        )
    for part in index["parts"]:
        data = (folder / part["name"]).read_bytes()
        if len(data) != part["bytes"] or hashlib.sha256(data).hexdigest() != part["sha256"]:
            raise ValueError(
                f"{folder / part['name']}: got {len(data)} bytes that do not have the recorded SHA-256, expected "
                f"{part['bytes']} bytes. The part is damaged. Copy it again."
            )
    return [folder / part["name"] for part in index["parts"]]


def unpack(folder: Path, target: Path) -> None:
    """Checks the parts of a folder and puts the files together in another folder. Wheels are installed to `site`."""
    paths = check_parts(folder)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        with tarfile.open(fileobj=io.BufferedReader(Joined(paths), 2**20), mode="r|gz") as archive:
            archive.extractall(scratch, filter="data")
        weights = sorted(Path(scratch, WEIGHTS).glob("*.npz"))
        if weights:
            from safetensors.torch import save_file

            tensors = {path.name.removesuffix(".npz"): restored_tensor(path.read_bytes()) for path in weights}
            save_file(tensors, Path(scratch, "model", "model.safetensors"), metadata={"format": "pt"})
            shutil.rmtree(Path(scratch, WEIGHTS))
        for part in sorted(Path(scratch).iterdir()):
            shutil.rmtree(target / part.name, ignore_errors=True)
            part.rename(target / part.name)
            print(target / part.name)
    install_wheels(target)


def install_wheels(target: Path) -> None:
    """Installs the wheels in `wheels` to `site`, without a network and without their dependencies."""
    wheels = sorted(map(str, (target / "wheels").glob("*.whl")))
    if wheels:
        options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", target / "site"]
        if subprocess.run([sys.executable, "-m", "pip", "install", *options, *wheels]).returncode:
            python = f"{sys.version_info.major}.{sys.version_info.minor}"
            raise RuntimeError(
                f"{target / 'wheels'}: pip could not install the wheels, expected wheels for Python {python}. All "
                "other files are in place. Download the wheels for this version, and pack again."
            )
        print(target / "site")


def files_under(folder: Path) -> list[tuple[Path, str]]:
    """All files of a folder with their names in it."""
    return [(path, str(path.relative_to(folder))) for path in sorted(folder.rglob("*")) if path.is_file()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Checks the parts and puts the files together in TARGET.")
    parser.add_argument("parts", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    unpack(options.parts, options.target)
