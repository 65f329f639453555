"""Prints every measured table of the README and of `docs/` again, each by its command: `make bench`.

    python tests/benchmarks/bench.py --list
    python tests/benchmarks/bench.py --only fork_cache scoring_server

The output of each command is kept in `outputs/bench/tables/NAME.txt` with the commit, the date and the seconds.
Finished commands are skipped, so an interrupted run is continued by the same command. The shortest commands run first.
A command that fails does not stop the others, and the exit status is then 1.
"""

import argparse
import datetime
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from gpu_stages.records import commit_of


ROOT = Path(__file__).parents[2]
TABLES = Path("outputs/bench/tables")
VLLM = ".venv-vllm/bin/python"
HERE = "tests/benchmarks/"


class Table(NamedTuple):
    """
    A command and the numbers that it prints.

    Args:
        name (`str`):
            Name of the output file.
        command (`str`):
            The script with its options, as the pages quote it. `POLICY`, `FOLDER` and the files of GSM8K are replaced
            by the arguments `--model`, `--cases` and `--data`.
        minutes (`int`):
            Estimate of the time on two quiet cores. `--list` shows the measured time of finished commands.
        places (`dict[str, tuple[str, ...]]`):
            The pages that show the numbers, and the beginnings of the headers of their tables there. Without a header,
            the numbers are in the text.
        needs (`str`, *optional*):
            `"gpu"`, `"vllm"`, and paths that another command or the user writes, separated by spaces.
        folders (`tuple[str, ...]`, *optional*):
            Folders and files in which the script keeps finished parts. `--again` moves them away.
    """

    name: str
    command: str
    minutes: int
    places: dict[str, tuple[str, ...]]
    needs: str = ""
    folders: tuple[str, ...] = ()


def kept(name: str) -> tuple[str]:
    """The folder in which a benchmark keeps its parts."""
    return (f"outputs/bench/{name}",)


GSM8K = "gsm8k_experiment.py --scale cpu --policy POLICY --output outputs/gsm8k"
RIVAL, BOTH = "../trl-1.12-venv/bin/python", "'TRL 1.12 PRMTrainer' ERPRMTrainer"
BENCHES = (
    Table("startup", "startup.py", 2, {"docs/reliability.md": ()}),
    Table("padding", "padding.py", 1, {"docs/scaling.md": ("| share of padding |",)}),
    Table("synchronisations", "synchronisations.py", 2, {"docs/scaling.md": ("| accumulated batches |",)}),
    Table("fork_cache", "fork_cache.py", 3, {"docs/benchmarks.md": ()}),
    Table(
        "scoring_server", "scoring_server.py --turns 15", 1, {"docs/benchmarks.md": (), "docs/scoring.md": ()}
    ),
    Table("collection_overlap", "collection_overlap.py", 1, {"docs/labels.md": ()}),
    Table("memory_vs_vocabulary", "memory_vs_vocabulary.py", 3, {"docs/benchmarks.md": ("| vocabulary |",)}),
    Table("exact_search", "guided_decoding.py exact", 3, {"docs/results.md": (), "docs/evaluation.md": ()}),
    Table("quickstart", "recipes/quickstart.py --config recipes/dial/quickstart.yaml", 5, {"docs/results.md": ()}),
    Table(
        "sampling_dtype", "sampling_dtype.py --model POLICY --questions gsm8k_test.jsonl --batch_sizes 8", 5,
        {"docs/labels.md": ()},
    ),
    Table("scaling", "scaling.py", 3, {"docs/reliability.md": ()}),
    Table(
        "summary", "summary.py", 20,
        {"README.md": ("| `python tests/benchmarks/summary.py`",), "docs/benchmarks.md": ("| ours | against |",)},
    ),
    Table(
        "adaptive_collection", "adaptive_collection.py", 20,
        {"docs/results.md": ("| rollouts per prefix |",), "docs/labels.md": ("| rollouts per prefix |",)},
        folders=kept("adaptive_collection"),
    ),
    Table(
        "adaptive_training", "adaptive_training.py", 20, {"docs/results.md": (), "docs/labels.md": ()},
        folders=kept("adaptive_training"),
    ),
    Table(
        "hostile_answers", "hostile_answers.py", 34, {"docs/reliability.md": ()},
    ),
    Table(
        "monte_carlo_scorer",
        "monte_carlo_scorer.py --seeds 0 1 2 --num_questions 10 --ks 1 4 16 64 --threshold 1e-3 --no_reward_models",
        2, {"docs/scoring.md": ("| K | error |",)}, folders=kept("monte_carlo_scorer"),
    ),
    Table(
        "read_at_eta", "read_at_eta.py --seeds 0 1 2", 8, {"docs/scoring.md": ("| best of 16 by |",)},
        folders=kept("read_at_eta"),
    ),
    *(
        Table(
            name, f"training_speed.py --rival {RIVAL} {arguments}", minutes,
            {"docs/benchmarks.md": ("| against | batch |",)}, needs=RIVAL,
        )
        for name, arguments, minutes in (
            ("rival_trainer", f"--batch_size 32 --only {BOTH}", 17),
            ("rival_trainer_25", f"--batch_size 32 --batches 25 --only {BOTH} 'ERPRMTrainer, packing'", 13),
            ("rival_trainer_16", f"--rounds 1 --only {BOTH} 'ERPRMTrainer, packing'", 5),
            ("padded_trainer", "--batches 10 --rounds 1 --only 'padded script' ERPRMTrainer", 3),
        )
    ),
    Table(
        "training_order",
        "training_order.py --seeds 0 1 2 --max_steps 100 --rollouts_of outputs/bench/implicit_models", 25,
        {"docs/scaling.md": ()}, needs="outputs/bench/implicit_models", folders=kept("training_order"),
    ),
    Table(
        "eta_comparison", "eta_comparison.py", 25, {"docs/results.md": ("| best of 16 by |",)},
        folders=kept("eta_comparison"),
    ),
    Table(
        "guided_search", "guided_decoding.py compare", 30,
        {"docs/results.md": ("| search |",), "docs/evaluation.md": ()}, folders=kept("guided_decoding"),
    ),
    Table(
        "preference_pairs", "preference_pairs.py --seeds 0 --questions 100 --test_questions 100", 1,
        {"docs/policies_measured.md": ("| trained on |",)},
        folders=("outputs/bench/preference_pairs", "outputs/bench/preference_pairs.json"),
    ),
    Table(
        "refresh_reward_model", "refresh_reward_model.py --seeds 11 12 13", 40,
        {"docs/policies_measured.md": ("| | frozen |",)}, folders=kept("refresh_reward_model"),
    ),
    Table(
        "implicit_models", "implicit_models.py", 60, {"docs/reward_models.md": ("| reward model | sampled tokens |",)},
        folders=kept("implicit_models"),
    ),
    Table(
        "agents_on_dial", "agents_on_dial.py --seeds 0 1 2 3 4 --runs 'outcome only' 'difference, last' sum", 60,
        {"docs/agents.md": ("| 40 updates of 64 conversations |",)},
        folders=("outputs/bench/agents_on_dial_2", "outputs/bench/agents_on_dial_2.json"),
    ),
    Table(
        "policy_learning", "policy_learning.py --seeds 0 1 2", 30,
        {"docs/policies_measured.md": ("| step scores alone, 3 seeds |",)}, folders=kept("policy_learning"),
    ),
    Table(
        "label_noise_weak", "label_noise.py --completers weak", 120, {"docs/labels.md": ("| labels | kept |",)},
        folders=kept("label_noise"),
    ),
    Table(
        "label_noise_right",
        "label_noise.py --completers right --remedies plain label_correct_solutions=ones relative",
        60, {"docs/labels.md": ("| completer |",)},
    ),
    Table(
        "label_noise_strong",
        "label_noise.py --completers strong --remedies plain label_correct_solutions=ones relative agree_with=base "
        "error_tolerance=1",
        60, {"docs/labels.md": ("| completer |",)},
    ),
    Table(
        "credit_implicit",
        "credit_study.py --settings steps --seeds 90210 101 102 --methods 'implicit frozen, sum, gamma 0, group' "
        "'implicit before_scoring, sum, gamma 0, group'",
        15, {"docs/policies.md": ()},
    ),
    Table(
        "credit_without_reward_model",
        "credit_study.py --settings sparse --seeds 101 102 103 --methods 'answers only' 'log_ratio, eta 50' "
        "'monte_carlo, K 2, 32 completions'",
        10, {"docs/policies.md": ()}, folders=kept("credit_study"),
    ),
    Table(
        "credit_study", "credit_study.py", 3000, {"docs/policies_measured.md": ("| credit, gamma, scale",)},
        folders=kept("credit_study"),
    ),
    Table(
        "credit_guard", "credit_study.py --seeds --guard", 1, {"docs/policies_measured.md": ("| runs | guard |",)},
        needs="outputs/bench/credit_study",
    ),
    Table("million_questions", "million_questions.py", 5, {"docs/reliability.md": (), "docs/labels.md": ()},
          folders=kept("million_questions")),
    Table(
        "kills_given", "kills.py --stages given --kills 6 --given_solutions 5000", 10, {"docs/labels.md": ()}
    ),
    Table("kills", "kills.py --kills 250 --seed 1", 35, {"docs/reliability.md": ()}),
    Table(
        "soak", "soak.py --minutes 115", 116, {"docs/reliability.md": ("| what the process holds |",)},
        folders=kept("soak"),
    ),
    Table(
        "grading_cases", "grading_cases.py --cases FOLDER --data FOLDER", 10,
        {"docs/grading.md": ("| set | graded pairs |",)},
    ),
    Table(
        "gsm8k_experiment",
        f"{GSM8K} --train_data gsm8k_train.jsonl --test_data gsm8k_test.jsonl --separator '<|fim_pad|>' --threads 2",
        200, {"docs/gsm8k_experiment.md": ("| labels | best of 8",), "README.md": ("| labels | eta = 0 |",)},
        folders=("outputs/gsm8k",),
    ),
    Table(
        "injected_errors",
        "injected_errors.py --model HuggingFaceTB/SmolLM2-135M-Instruct --train_data gsm8k_train.jsonl "
        "--test_data gsm8k_test.jsonl --seeds 0 1", 160,
        {"docs/gsm8k_experiment.md": ("| seed | training solutions |",)}, folders=kept("injected_errors"),
    ),
    Table(
        "read_at_eta_gsm8k", "read_at_eta.py --experiment outputs/gsm8k-cpu --seeds 0 1", 5,
        {"docs/scoring.md": ("| trained at 0,",)}, needs="outputs/gsm8k-cpu",
    ),
    Table(
        "vllm_scoring", "vllm_scoring.py --solutions 400 --turns 15", 10, {"docs/scoring.md": ()}, needs="vllm"
    ),
    Table(
        "vllm_scoring_gsm8k",
        "vllm_scoring.py --reward_model outputs/gsm8k-cpu/erprm-eta-2-seed-0 --dtype bfloat16 --solutions_file "
        "outputs/gsm8k-cpu/samples/rollouts-00000.jsonl --solutions 8 --turns 2 --max_model_len 1024",
        5, {"docs/scoring.md": ()}, needs="vllm outputs/gsm8k-cpu",
    ),
    Table(
        "training_speed_gpu", "training_speed.py --model 1b --dtype bf16 --batch_size 64", 5,
        {"docs/benchmarks.md": ("| variant | tokens per second | MFU |",)}, needs="gpu",
    ),
    Table(
        "training_speed_gpu_32", "training_speed.py --model 1b --dtype bf16 --batch_size 32", 5,
        {"docs/benchmarks.md": ("| variant | tokens per second | memory",)}, needs="gpu",
    ),
)  # fmt: skip
# Commands on the pages that are another way to write one above.
SAME = {f"{GSM8K} --separator '<|fim_pad|>'": "gsm8k_experiment"}


def words_of(table: Table, options: argparse.Namespace) -> list[str] | str:
    """The command with its interpreter, or why it cannot run here."""
    words, values, needs = shlex.split(table.command), {}, table.needs.split()
    if "gpu" in needs and not has_gpu():
        return "needs a GPU"
    if "vllm" in needs and not (ROOT / VLLM).exists():
        return "needs vLLM: make test-vllm installs it"
    for path in needs:
        if path not in ("gpu", "vllm") and not Path(path).exists():
            return f"needs {path}"
    if "POLICY" in words:
        values["POLICY"] = options.model
    for name in ("gsm8k_train.jsonl", "gsm8k_test.jsonl"):
        if name in words:
            values[name] = options.data and options.data / name
    for option in ("--cases", "--data"):
        if option in words:
            values[option] = getattr(options, option[2:])
    for name, value in values.items():
        if value is None:
            return f"needs {name if name.startswith('--') else '--model' if name == 'POLICY' else '--data'}"
        words[words.index(name) + name.startswith("--")] = str(value)
    script = words[0] if "/" in words[0] else HERE + words[0]
    return [VLLM if "vllm" in needs else sys.executable, script, *words[1:]]


def has_gpu() -> bool:
    """Whether torch sees a GPU."""
    if not find_spec("torch"):
        return False
    import torch

    return torch.cuda.is_available()


def header(path: Path) -> dict | None:
    """What a file of a finished table says about its run, `None` without the file."""
    if not path.is_file():
        return None
    with open(path, encoding="utf-8") as file:
        return json.loads(file.readline().removeprefix("# "))


def show(tables: Sequence[Table], options: argparse.Namespace) -> None:
    """Prints which tables are finished, and which cannot run here."""
    commit = commit_of()
    for table in tables:
        done = header(TABLES / f"{table.name}.txt")
        if done:
            older = "" if done["commit"] == commit else ", another commit than now"
            state = f"done in {done['seconds'] / 60:.1f} min on {done['date'][:10]} at {done['commit']}{older}"
        else:
            words = words_of(table, options)
            state = words if isinstance(words, str) else f"to do, about {table.minutes} min"
            failed = (TABLES / f"{table.name}.failed.txt").exists()
            state = f"failed, see {TABLES / table.name}.failed.txt" if failed and not isinstance(words, str) else state
        print(f"{table.name:<24}{state}\n{'':<24}{table.command}  ({', '.join(table.places)})")


def run(table: Table, words: list[str]) -> int:
    """Runs a command and keeps what it prints, and its logs if it fails. Returns its exit status."""
    TABLES.mkdir(parents=True, exist_ok=True)
    started, commit = time.monotonic(), commit_of()
    lines, log = [], TABLES / f"{table.name}.failed.txt"  # deleted once the command has succeeded
    log.write_text(f"python {shlex.join(words[1:])}\n\n", encoding="utf-8")
    with open(log, "a", encoding="utf-8") as file:
        environment = {"HF_HUB_OFFLINE": "1", **os.environ, "PYTHONUNBUFFERED": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
        with subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=file, text=True, errors="replace", env=environment
        ) as process:
            try:
                for line in process.stdout:
                    print(line, end="", flush=True)
                    file.write(line)
                    file.flush()
                    lines.append(line)
            except BaseException:  # also when this program is ended
                process.terminate()
                raise
    if process.returncode == 0:
        about = {"command": shlex.join(words[1:]), "commit": commit, "seconds": round(time.monotonic() - started, 1)}
        about["date"] = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        unfinished = TABLES / f"{table.name}.part"
        unfinished.write_text(f"# {json.dumps(about)}\n" + "".join(lines), encoding="utf-8")
        unfinished.replace(TABLES / f"{table.name}.txt")
        log.unlink()
    return process.returncode


def move_away(table: Table) -> None:
    """Renames the folders in which a script keeps finished parts, so that it computes them again."""
    for name in table.folders:
        folder = Path(name)
        if folder.exists():
            folder.rename(f"{folder}-{datetime.datetime.now():%Y%m%d-%H%M%S}")


def main(argv: Sequence[str] | None = None) -> int:
    """Lists or runs the tables."""
    names = [table.name for table in BENCHES]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="Show which tables are finished, and run nothing.")
    parser.add_argument("--only", nargs="+", choices=names, help="Tables to print.")
    parser.add_argument("--again", action="store_true", help="Also run finished ones, from their beginning.")
    parser.add_argument("--max_minutes", type=float, help="Leave out commands that are estimated to take longer.")
    parser.add_argument("--model", type=Path, help="Language model of gsm8k_experiment.py.")
    parser.add_argument("--data", type=Path, help="Folder with gsm8k_train.jsonl, gsm8k_test.jsonl, math500.jsonl.")
    parser.add_argument("--cases", type=Path, help="Folder of grading_cases.py.")
    options = parser.parse_args(argv)
    limit = float("inf") if options.max_minutes is None else options.max_minutes
    chosen = [table for table in BENCHES if table.name in (options.only or names) and table.minutes <= limit]
    if options.list:
        show(chosen, options)
        return 0
    states = {}
    for table in sorted(chosen, key=lambda table: table.minutes):
        if header(TABLES / f"{table.name}.txt") and not options.again:
            states[table.name] = "was done"
            continue
        words = words_of(table, options)
        if isinstance(words, str):
            states[table.name] = f"skipped: {words}"
            continue
        if options.again:
            move_away(table)
        print(f"\n== {table.name}: python {shlex.join(words[1:])}", flush=True)
        status = run(table, words)
        states[table.name] = "done" if status == 0 else f"failed with exit status {status}"
    print(f"\n{TABLES}:")
    for name, state in states.items():
        print(f"{name:<24}{state}")
    return int(any(state.startswith("failed") for state in states.values()))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
