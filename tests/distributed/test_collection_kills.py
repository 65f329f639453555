"""A collection of three processes, killed at random moments and continued by two, has the rows of one that was left
alone."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from erprm_trl import TransformersSampler, collect_rollouts, dial, load_questions
from erprm_trl.rollouts import collect


pytestmark = pytest.mark.slow("starts processes and kills them")


SCRIPT = """
import sys
from accelerate import PartialState
from test_collection_kills import collect_and_die
collect_and_die(sys.argv[1], [int(number) for number in sys.argv[2].split(",") if number])
PartialState().destroy_process_group()
"""
CHUNKS = 9


def run(folder):
    """Nine chunks of two questions."""
    sampler = TransformersSampler.from_pretrained(dial.BASE_PATH, batch_size=32, max_new_tokens=48)
    questions = load_questions(
        "erprm_trl.dial:make_questions", dataset_kwargs={"num_questions": 2 * CHUNKS, "seed": 3}
    )
    settings = {"splitter": dial.SEPARATOR, "grading": "exact", "answer_pattern": dial.ANSWER_PATTERN}
    return collect_rollouts(
        questions, sampler, folder, num_continuations=2, chunk_size=2, show_progress=False, **settings
    )


def collect_and_die(folder, deaths):
    """Collects; process r dies while it writes its `deaths[r]`-th chunk, with some of the bytes on disk."""
    rank = int(os.environ["RANK"])
    left = deaths[rank] if rank < len(deaths) else -1
    append_rows = collect.append_rows

    def append_some(file, rows):
        nonlocal left
        left -= 1
        if left == 0:
            before = file.tell()
            append_rows(file, rows)
            os.truncate(file.fileno(), random.Random(rank).randint(before, file.tell() - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        append_rows(file, rows)

    collect.append_rows = append_some
    run(folder)


def launch(folder, script, processes, deaths=()):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += [str(script), str(folder), ",".join(map(str, deaths))]
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ["PYTHONPATH"]])
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": paths}
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_processes_lose_and_double_nothing(tmp_path, seed):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    chance = random.Random(seed)
    one_dies = [0, 0, 0]
    one_dies[chance.randrange(3)] = chance.randint(1, 2)
    folder = tmp_path / "killed"
    for processes, deaths in ((3, one_dies), (3, [1, 1, 1])):
        done = launch(folder, script, processes, deaths)
        assert done.returncode != 0 and "SIGKILL" in done.stderr, done.stderr[-3000:]
    done = launch(folder, script, 2)
    assert done.returncode == 0, done.stderr[-3000:]
    whole, alone = collect.RolloutDataset(folder), run(tmp_path / "alone")
    assert whole.rows == alone.rows
    lines = [line for path in folder.glob("rollouts-*.jsonl") for line in path.read_text().splitlines()]
    assert sorted(lines) == sorted((tmp_path / "alone" / "rollouts-00000.jsonl").read_text().splitlines())
    assert len(list(folder.glob("rollouts-*.jsonl"))) == 3  # also the third process's part was continued
