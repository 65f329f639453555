"""A collection that real processes share, each started by torchrun with a thread of its own."""

import os
import subprocess
import sys
from pathlib import Path


SCRIPT = """
import sys
from importlib import import_module
from accelerate import PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer
from erprm_trl import dial
policy = AutoModelForCausalLM.from_pretrained(dial.BASE_PATH), AutoTokenizer.from_pretrained(dial.BASE_PATH)
getattr(import_module(sys.argv[1]), sys.argv[2])(sys.argv[3], policy)
print(f"world {PartialState().num_processes}\\n", end="", flush=True)
PartialState().destroy_process_group()
"""


def collect_in_processes(collect, folder, num_processes):
    """Calls `collect(folder, dial_policy)`, a function of a test module here, in each process; all take part."""
    script = folder.parent / "run.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    module = Path(collect.__code__.co_filename)
    result = subprocess.run(
        [*command, script, module.stem, collect.__name__, folder],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{module.parent}{os.pathsep}{os.environ['PYTHONPATH']}"},
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count(f"world {num_processes}") == num_processes  # not silently alone
    assert len(list(folder.glob("rollouts-*.jsonl"))) == num_processes
