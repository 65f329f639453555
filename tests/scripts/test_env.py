"""Versions and devices for a bug report, and nothing that should not be in one."""

import os
import platform
import socket

import torch

from erprm_trl.scripts import env


def test_versions_and_devices_without_secrets(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    env.main()
    out = capsys.readouterr().out
    values = {line[:18].strip(): line[18:] for line in out.splitlines()}
    assert values["python"] == platform.python_version() and values["torch"] == torch.__version__
    assert {"platform", "erprm_trl", "trl", "transformers", "accelerate", "devices"} <= set(values)
    if not torch.accelerator.is_available():
        assert values["devices"] == "cpu"
    for secret in ("hf_abc", os.path.expanduser("~"), os.getcwd(), socket.gethostname()):
        assert secret not in out
    assert env.installed_version("no-such-package") == "not installed"


def test_names_of_devices(capsys, monkeypatch):
    class Accelerator:
        is_available = staticmethod(lambda: True)
        current_accelerator = staticmethod(lambda: torch.device("cuda"))
        device_count = staticmethod(lambda: 2)

    monkeypatch.setattr(torch, "accelerator", Accelerator)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    env.main()
    assert "devices           cuda: GPU 0, GPU 1\n" in capsys.readouterr().out
