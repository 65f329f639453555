"""Prints versions and devices, to paste into a bug report. It prints no paths, no names of hosts and no tokens."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version


PACKAGES = (
    "erprm_trl trl transformers torch accelerate datasets peft huggingface_hub tokenizers numpy math-verify "
    "deepspeed vllm bitsandbytes liger_kernel wandb trackio starlette uvicorn"
).split()


def main() -> None:
    """Prints one line per package, and the devices."""
    import torch

    lines = {"platform": platform.platform(), "python": platform.python_version()}
    lines |= {name: installed_version(name) for name in PACKAGES}
    lines["torch"] = torch.__version__  # names the CUDA version, which the metadata of the package may not
    devices = "cpu"
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator().type
        names = [_device_name(torch, kind, index) for index in range(torch.accelerator.device_count())]
        devices = f"{kind}: {', '.join(names)}"
    lines |= {"devices": devices, "cpu cores": str(os.cpu_count())}
    for name, value in lines.items():
        print(f"{name:<18}{value}")


def installed_version(package: str) -> str:
    """Version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _device_name(torch, kind: str, index: int) -> str:
    module = getattr(torch, kind)
    return module.get_device_name(index) if hasattr(module, "get_device_name") else str(index)
