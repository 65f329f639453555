"""Tests that a collection by three processes, killed at random moments and resumed by two, has the same rows as an
uninterrupted collection."""

import os
import random
import signal

import pytest
from forked_launch import launch_forked

from erprm_trl import TransformersSampler, collect_rollouts, dial, load_questions
from erprm_trl.rollouts import collect


pytestmark = pytest.mark.slow("starts processes and kills them")


CHUNKS = 9


def run(folder):
    """Collects nine chunks of two questions."""
    sampler = TransformersSampler.from_pretrained(dial.BASE_PATH, batch_size=32, max_new_tokens=48)
    questions = load_questions(
        "erprm_trl.dial:make_questions", dataset_kwargs={"num_questions": 2 * CHUNKS, "seed": 3}
    )
    settings = {"splitter": dial.SEPARATOR, "grading": "exact", "answer_pattern": dial.ANSWER_PATTERN}
    return collect_rollouts(
        questions, sampler, folder, num_continuations=2, chunk_size=2, show_progress=False, **settings
    )


def collect_and_die(folder, deaths):
    """Collects rollouts. Process r dies while it writes its `deaths[r]`-th chunk, with a part of the bytes on disk."""
    rank = int(os.environ["RANK"])
    left = deaths[rank] if rank < len(deaths) else -1
    append_rows = collect.append_rows

    def append_and_die(file, rows):
        nonlocal left
        left -= 1
        if left == 0:
            before = file.tell()
            append_rows(file, rows)
            os.truncate(file.fileno(), random.Random(rank).randint(before, file.tell() - 1))
            print(f"killed {deaths}\n", end="", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        append_rows(file, rows)

    collect.append_rows = append_and_die
    run(folder)


def test_killed_processes_lose_and_repeat_no_rows(tmp_path):
    generator = random.Random(0)
    single_death = [0, 0, 0]
    single_death[generator.randrange(3)] = generator.randint(1, 2)
    folder = tmp_path / "killed"
    launches = [(3, single_death), (3, [1, 1, 1]), (2, [])]
    (first, second, last), printed = launch_forked(
        collect_and_die, [(processes, [str(folder), deaths]) for processes, deaths in launches]
    )
    assert first and second and last is None, (first, second, last)
    assert printed.count(f"killed {single_death}") == 1
    assert printed.count("killed [1, 1, 1]") >= 1  # the launcher stops the remaining processes
    assert printed.count("world 2") == 2
    whole, alone = collect.RolloutDataset(folder), run(tmp_path / "alone")
    assert whole.rows == alone.rows
    lines = [line for path in folder.glob("rollouts-*.jsonl") for line in path.read_text().splitlines()]
    assert sorted(lines) == sorted((tmp_path / "alone" / "rollouts-00000.jsonl").read_text().splitlines())
    assert len(list(folder.glob("rollouts-*.jsonl"))) == 3  # the chunks of the third process were also resumed
