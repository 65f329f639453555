"""A collection of three processes, killed at random moments and continued by two, has the rows of one that was left
alone."""

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
            print(f"killed {deaths}\n", end="", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        append_rows(file, rows)

    collect.append_rows = append_some
    run(folder)


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_processes_lose_and_double_nothing(tmp_path, seed):
    chance = random.Random(seed)
    one_dies = [0, 0, 0]
    one_dies[chance.randrange(3)] = chance.randint(1, 2)
    folder = tmp_path / "killed"
    launches = [(3, one_dies), (3, [1, 1, 1]), (2, [])]
    (first, second, last), printed = launch_forked(
        collect_and_die, [(processes, [str(folder), deaths]) for processes, deaths in launches]
    )
    assert first and second and last is None, (first, second, last)
    assert printed.count(f"killed {one_dies}") == 1
    assert printed.count("killed [1, 1, 1]") >= 1  # the launcher stops those that are left
    assert printed.count("world 2") == 2
    whole, alone = collect.RolloutDataset(folder), run(tmp_path / "alone")
    assert whole.rows == alone.rows
    lines = [line for path in folder.glob("rollouts-*.jsonl") for line in path.read_text().splitlines()]
    assert sorted(lines) == sorted((tmp_path / "alone" / "rollouts-00000.jsonl").read_text().splitlines())
    assert len(list(folder.glob("rollouts-*.jsonl"))) == 3  # also the third process's part was continued
