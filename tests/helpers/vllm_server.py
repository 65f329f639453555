"""Starts vLLM's own server in a process, for tests of its clients."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx
import pytest


# The command `vllm serve` looks up a package name that the CPU build does not have.
COMMAND = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]


@contextmanager
def vllm_server(log, *options):
    """The address of a running server with these options. `log` is the file for its output."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = ["--host", "127.0.0.1", "--port", str(port)]
    with open(log, "wb") as output:
        server = subprocess.Popen(
            [*COMMAND, *options, *address], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # also kills its engine
        server.wait()


def _wait_until_healthy(url, server, log, seconds=900):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(url, timeout=5).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    pytest.fail(f"The server does not answer: {log.read_text()[-3000:]}")
