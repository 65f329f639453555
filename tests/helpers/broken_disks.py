"""Simulates full and read-only disks, for tests that no finished file is lost."""

import ctypes
import os
import subprocess
import sys
import traceback
from contextlib import contextmanager

import pytest


CLONE_NEWNS = 0x20000


@contextmanager
def no_file_above(size):
    """Simulates a full disk: no file of this process can grow beyond `size` bytes."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def on_a_mount(folder, mount, function):
    """Runs a function in a forked child with `mount` on the folder. Skips the test if mounting is forbidden."""
    if not hasattr(os, "fork") or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            forbidden = ctypes.CDLL(None).unshare(CLONE_NEWNS) != 0
            for command in (["mount", "--make-rprivate", "/"], ["mount", *mount, str(folder)]):
                forbidden = forbidden or subprocess.run(command, capture_output=True).returncode != 0
            code = 2 if forbidden else 1
            if not forbidden:
                function()
                code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 2:
        pytest.skip("mounting is forbidden here")
    assert code == 0
