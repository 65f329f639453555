"""A day on a GPU in a quarter of an hour: the measurements that need one, on a machine without a network.

    python tests/benchmarks/gpu_day.py pack --model FOLDER --data FOLDER --output PARTS    # here
    python PARTS/unpack.py PARTS TARGET                                                    # on the GPU machine
    python tests/benchmarks/gpu_day.py --stage all --model TARGET/model --data TARGET/data --output OUTPUT
    python tests/benchmarks/gpu_day.py --report OUTPUT

Each stage is a process that is stopped at its time limit. Records are appended to `OUTPUT/results.jsonl` as they are
measured, so a stopped stage keeps them. `--rehearse` runs the same code with tiny sizes on a CPU.
"""

import argparse
import importlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gpu_stages import carry, tables
from gpu_stages.records import COMMIT_FILE, ROOT, Stage, commit_of, environment, read_records, write_record


# Stage: module and seconds, in the order of their value. The first three take 10 minutes, the others 2.5.
STAGES = {
    "experiment": ("experiment", 260),
    "training": ("training", 160),
    "policy": ("policy", 170),
    "scoring": ("throughput", 80),
    "sharding": ("sharding", 70),
}
KILL_AFTER = 5.0  # seconds between the two signals to a stage that does not end
NOT_PACKED = ("docs/images/", "docs/notebooks/")


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line and packs, unpacks, reports, or runs stages."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["pack"]:
        return pack(argv[1:])
    if argv[:1] == ["unpack"]:
        parser = argparse.ArgumentParser(prog="gpu_day.py unpack")
        parser.add_argument("--parts", type=Path, required=True, help="Folder of the parts.")
        parser.add_argument("--target", type=Path, required=True, help="Folder to put the files together in.")
        options = parser.parse_args(argv[1:])
        carry.unpack(options.parts, options.target)
        return 0
    options = run_parser().parse_args(argv)
    if options.report is not None:
        print(tables.report(read_records(options.report)), end="")
        return 0
    if options.output is None or (options.model is None or options.data is None) and not options.rehearse:
        run_parser().error("--output is required, and without --rehearse also --model and --data")
    if options.inside:
        return run_stage(options)
    return run_all(options)


def run_parser() -> argparse.ArgumentParser:
    """The arguments of a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=[*STAGES, "all"], nargs="+", default=["all"], help="Stages, in this order.")
    parser.add_argument("--output", type=Path, help="Folder of the records and logs.")
    parser.add_argument("--work", type=Path, help="Folder of large files. Defaults to the folder work in --output.")
    parser.add_argument("--model", type=Path, help="Folder of the language model.")
    parser.add_argument("--data", type=Path, help="Folder with gsm8k_train.jsonl and gsm8k_test.jsonl.")
    parser.add_argument("--separator", default="<|step|>", help="Text after each step. It is added if it is no token.")
    parser.add_argument("--budget_s", type=float, default=780, help="Seconds for all stages together.")
    parser.add_argument("--limit_s", type=float, help="Seconds per stage, instead of each stage's own limit.")
    parser.add_argument("--commit", help="Commit of the source. Defaults to git's, or to the packed one.")
    parser.add_argument("--rehearse", action="store_true", help="Tiny sizes and models, on the CPU.")
    parser.add_argument("--report", type=Path, help="Print the tables of this folder of records.")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser


def run_all(options: argparse.Namespace) -> int:
    """Runs the stages one after the other, within the budget. Returns 1 if a stage failed."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    options.output.mkdir(parents=True, exist_ok=True)
    work = options.work or options.output / "work"
    names = list(STAGES) if "all" in options.stage else options.stage
    end = time.monotonic() + options.budget_s
    failed = False
    for name in names:
        limit = min(options.limit_s or STAGES[name][1], end - time.monotonic() - KILL_AFTER)
        if limit <= 0:
            write_end(options.output, name, 0, 0, "not begun: the budget was used up")
            continue
        command = [sys.executable, __file__, "--inside", "--stage", name, "--limit_s", str(limit)]
        for option in ("output", "model", "data", "commit", "separator"):
            if getattr(options, option) is not None:
                command += [f"--{option}", str(getattr(options, option))]
        command += ["--work", str(work), *(["--rehearse"] if options.rehearse else [])]
        started = time.monotonic()
        ended = run_limited(command, options.output / f"{name}.log", limit, options.rehearse)
        write_end(options.output, name, limit, time.monotonic() - started, ended)
        failed |= ended.startswith("failed")
    page = tables.report(read_records(options.output))
    (options.output / "report.md").write_text(page, encoding="utf-8")
    print(page, end="")
    return int(failed)


def write_end(output: Path, stage: str, limit: float, seconds: float, ended: str) -> None:
    """Records how a stage ended."""
    write_record(output, {"stage": stage, "kind": "end", "limit": limit, "seconds": seconds, "ended": ended})


def run_limited(command: list[str], log: Path, limit: float, is_rehearsal: bool = False) -> str:
    """Runs a command with its output in a file, and ends it and the processes that it started after its limit. Returns
    how it ended."""
    variables = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    variables |= {"HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1"}
    variables |= {"CUDA_VISIBLE_DEVICES": ""} if is_rehearsal else {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    # `unpack` installs wheels to the folder `site` next to the project.
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT.parent / "site"), os.environ.get("PYTHONPATH", "")])
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | variables, start_new_session=True
        )
        try:
            status = process.wait(limit)
        except BaseException as error:  # also when this program is ended
            end_group(process)
            if isinstance(error, subprocess.TimeoutExpired):
                return "stopped at its limit"
            raise
    return "finished" if status == 0 else f"failed with exit status {status}, see {log.name}: {last_line(log)}"


def end_group(process: subprocess.Popen) -> None:
    """Ends a process and its group, first politely."""
    for end in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, end)
            process.wait(KILL_AFTER)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
    process.wait()


def last_line(log: Path) -> str:
    """The last line of a log that is not empty."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def run_stage(options: argparse.Namespace) -> int:
    """Runs one stage in this process."""
    (name,) = options.stage
    options.work.mkdir(parents=True, exist_ok=True)
    data = options.data
    stage = Stage(
        name=name,
        output=options.output,
        work=options.work,
        model=options.model or tiny_model(options.work),
        train_data=data / "gsm8k_train.jsonl" if data else ROOT / "tests" / "data" / "gsm8k_form.jsonl",
        test_data=data / "gsm8k_test.jsonl" if data else ROOT / "tests" / "data" / "gsm8k_form.jsonl",
        rehearse=options.rehearse,
        limit=options.limit_s,
        separator=options.separator,
    )
    about = environment()
    stage.record("start", environment=about, commit=options.commit or commit_of(), rehearse=options.rehearse)
    importlib.import_module(f"gpu_stages.{STAGES[name][0]}").run(stage)
    return 0


def tiny_model(work: Path) -> Path:
    """A random model that writes lines of digits, for rehearsals."""
    folder = work / "tiny"
    if not (folder / "config.json").exists():
        sys.path.insert(0, str(ROOT / "tests" / "helpers"))
        pages, public_models = map(importlib.import_module, ("doc_pages", "public_models"))
        tokenizer = public_models.byte_tokenizer([])
        model = pages.policy_of_short_lines(tokenizer)
        ends = [tokenizer.eos_token_id, *tokenizer.encode("\n", add_special_tokens=False)]
        model.lm_head.weight.data[ends] -= 1.5 / model.config.hidden_size  # longer lines, and more of them
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def pack(argv: Sequence[str]) -> int:
    """Packs the project, the data, the model and wheels into parts."""
    parser = argparse.ArgumentParser(prog="gpu_day.py pack")
    parser.add_argument("--output", type=Path, required=True, help="Folder of the parts.")
    parser.add_argument("--model", type=Path, help="Folder of the language model.")
    parser.add_argument("--data", type=Path, help="Folder of the data. Only its .jsonl files are packed.")
    parser.add_argument("--wheels", type=Path, help="Folder of wheels that the other machine does not have.")
    parser.add_argument("--part_mib", type=float, default=56, help="Maximum size of a part, in MiB.")
    parser.add_argument(
        "--weight_bits", type=int, choices=[4, 5, 6, 7, 8, 16], default=8,
        help="Bits per weight of the model, with a common scale for 32 weights. 16 is bfloat16.",
    )  # fmt: skip
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    commit, metadata = options.output / COMMIT_FILE.name, options.output / "METADATA"
    commit.write_text(commit_of() + "\n")
    # The project is not installed there, and manifests record its version.
    version = re.search(r'__version__ = "(.+)"', (ROOT / "erprm_trl" / "__init__.py").read_text())[1]
    metadata.write_text(f"Metadata-Version: 2.1\nName: erprm_trl\nVersion: {version}\n")
    own = [(commit, COMMIT_FILE.name), (metadata, f"erprm_trl-{version}.dist-info/METADATA")]
    folders = {"project": [*project_files(), *own]}
    if options.data is not None:
        folders["data"] = [(path, name) for path, name in carry.files_under(options.data) if name.endswith(".jsonl")]
    if options.wheels is not None:
        folders["wheels"] = [(path, name) for path, name in carry.files_under(options.wheels) if name.endswith(".whl")]
    index = carry.pack(folders, options.output, options.model, options.weight_bits, int(options.part_mib * 2**20))
    commit.unlink()
    metadata.unlink()
    total = sum(part["bytes"] for part in index["parts"]) / 2**20
    print(f"{options.output}: {len(index['parts'])} parts, {total:.1f} MiB. Carry them with {carry.INDEX} and "
          f"{carry.UNPACKER}.")  # fmt: skip
    return 0


def project_files() -> list[tuple[Path, str]]:
    """The files of the project that git tracks."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
    names = [name for name in listed.stdout.split("\0") if name and not name.startswith(NOT_PACKED)]
    return [(ROOT / name, name) for name in names if (ROOT / name).is_file()]


if __name__ == "__main__":
    sys.exit(main())
