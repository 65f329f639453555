"""Kills real runs of five recipes at random moments, resumes them, and compares them with an uninterrupted run.

    python tests/benchmarks/kills.py --kills 250
    python tests/benchmarks/kills.py --kills 10 --stages given --given_solutions 5000

One process imports everything and forks each run, so that a resumed run needs no imports. A run is killed (SIGKILL)
after a random share of its processor time, when a file of its folder changes, or at the start of a file operation.
After each kill, all finished files must be unchanged and present once. At the end, the results must equal the results
of the uninterrupted run.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import zipfile
from collections import Counter
from pathlib import Path

import tqdm.auto


ROOT = Path(__file__).parents[2]
os.environ.update(
    HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false"
)
WAYS = ("processor time", "file changed", "file operation")
QUESTIONS = '{{"num_questions": {}, "seed": {}}}'
SAVING = ["--save_strategy", "steps", "--save_steps", "2", "--logging_steps", "1", "--use_cpu", "true"]


def arguments_of(stage: str, work: Path, num_given: int = 16) -> tuple[str, list[str]]:
    """The recipe of a stage, and its arguments except the output folder. `num_given` is the number of given
    solutions."""
    model = ["--reward_model", str(work / "reward-model")]
    return {
        "collection": (
            "collect_rollouts",
            ["--config", "recipes/dial/collect.yaml", "--dataset_kwargs", QUESTIONS.format(8, 1)]
            + ["--num_continuations", "2", "--chunk_size", "1", "--max_new_tokens", "24"],
        ),
        "given": (
            "collect_rollouts",
            ["--config", "recipes/dial/collect_given.yaml", "--num_continuations", "1", "--max_new_tokens", "24"]
            + ["--dataset_kwargs", f'{{"num_solutions": {num_given}, "seed": 1}}']
            + ["--chunk_size", str(max(1, num_given // 200))],
        ),
        "erprm": (
            "train_erprm",
            ["--config", "recipes/dial/train_erprm.yaml", "--rollouts", str(work / "straight" / "collection")]
            + ["--max_steps", "8", "--per_device_train_batch_size", "4", "--resume", "true", *SAVING],
        ),
        "raft": (
            "train_raft",
            ["--config", "recipes/dial/train_raft.yaml", *model, "--train_questions_kwargs", QUESTIONS.format(16, 3)]
            + ["--eval_questions_kwargs", "null", "--num_rounds", "2", "--questions_per_round", "8"]
            + ["--num_generations", "4", "--chunk_size", "4", "--per_device_train_batch_size", "4", *SAVING],
        ),
        "ppo": (
            "train_step_ppo",
            ["--config", "recipes/dial/train_step_ppo.yaml", *model, "--max_steps", "6", "--num_generations", "4"]
            + ["--train_questions_kwargs", QUESTIONS.format(64, 3), "--per_device_train_batch_size", "16"]
            + ["--max_completion_length", "32", "--guard", "false", "--resume", "true", *SAVING],
        ),
    }[stage]


STAGES = ("collection", "given", "erprm", "raft", "ppo")


def preload() -> dict:
    """Imports everything that the runs need without starting a thread, and returns the recipes by name."""
    import torch
    import transformers.models.llama.modeling_llama
    import transformers.trainer  # noqa: F401
    from transformers import AutoModelForCausalLM
    from trl import GRPOTrainer, SFTTrainer  # noqa: F401

    import erprm_trl.policy.online.step_ppo_trainer  # noqa: F401

    torch.set_num_threads(1)
    AutoModelForCausalLM.from_pretrained("erprm_trl/dial/base")  # transformers prepares some state at the first load
    recipes = {}
    for name in ("collect_rollouts", "train_erprm", "train_raft", "train_step_ppo"):
        spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
        recipes[name] = importlib.util.module_from_spec(spec)
        sys.modules[name] = recipes[name]
        spec.loader.exec_module(recipes[name])
    return recipes


def parse(module, arguments: list[str]) -> tuple:
    """Parses the arguments like the recipe's last line."""
    from trl import ModelConfig, TrlParser

    from erprm_trl import ERPRMConfig, RAFTConfig, StepPPOConfig
    from erprm_trl.policy import PromptArguments
    from erprm_trl.rollouts import CollectConfig

    classes = {
        "collect_rollouts": lambda: (CollectConfig,),
        "train_erprm": lambda: (module.DataArguments, ERPRMConfig, ModelConfig),
        "train_raft": lambda: (module.DataArguments, RAFTConfig, ModelConfig),
        "train_step_ppo": lambda: (PromptArguments, module.RewardArguments, StepPPOConfig, ModelConfig),
    }[module.__name__]()
    return TrlParser(classes).parse_args_and_config(arguments)


def die_at_operation(folder: Path, operation: int) -> None:
    """Kills this process before its `number`-th file operation in the folder: opening a file for writing, or renaming,
    creating or removing one."""
    left = operation

    def hook(event, arguments):
        nonlocal left
        writes = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")
        if event == "open":
            writes = arguments[2] & (os.O_WRONLY | os.O_RDWR) != 0
        if writes and str(arguments[0]).startswith(str(folder)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def start(
    recipes: dict, stage: str, work: Path, folder: Path, operation: int | None = None, num_given: int = 16
) -> int:
    """Forks a run and returns its process id. The run exits with 0 if the recipe succeeds."""
    name, arguments = arguments_of(stage, work, num_given)
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    os.setsid()
    with open(work / f"{stage}.log", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    code = 1
    try:
        for bar in (tqdm.std.tqdm, tqdm.auto.tqdm):  # a run killed with their shared lock blocks all
            bar.set_lock(threading.RLock())
        if operation is not None:
            die_at_operation(folder, operation)
        recipes[name].main(*parse(recipes[name], [*arguments, "--output_dir", str(folder)]))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def processor_time(process: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and modification time of each path of a folder. Paths that disappear meanwhile are skipped."""
    sizes = {}
    for root, folders, names in os.walk(folder):
        for name in (*folders, *names):
            try:
                status = os.stat(os.path.join(root, name))
            except FileNotFoundError:
                continue
            sizes[os.path.join(root, name)] = (status.st_size, status.st_mtime_ns)
    return sizes


def wait(child: int, folder: Path, seconds: float | None = None, changes: int | None = None) -> int:
    """Waits for a run, or kills it after some processor time or folder changes. Returns its status."""
    seen, before = 0, files_of(folder)
    while seconds is not None or changes is not None:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if changes is not None:
            now = files_of(folder)
            seen, before = seen + (now != before), now
        if (seconds is not None and processor_time(child) >= seconds) or (changes is not None and seen >= changes):
            os.killpg(child, signal.SIGKILL)
            break
        time.sleep(0.01 if changes is None else 0.002)
    return os.waitpid(child, 0)[1]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def given_chunk_sizes(folder: Path) -> list[int]:
    """Number of given solutions in each chunk, from the manifest."""
    manifest = folder / "manifest.json"
    if not manifest.exists():
        return []
    return [int(size) for size in json.loads(manifest.read_text())["config"]["rows_per_chunk"].split()]


def finished_chunks(shard: Path, rows_in_chunk: int | list[int], problems: list[str]) -> dict[str, str]:
    """The complete chunks of a shard by their number, read without the library. All chunks have `rows_in_chunk` rows,
    or it is a list with one number per chunk."""
    chunks: dict[int, list[bytes]] = {}
    for line in shard.read_bytes().splitlines(keepends=True) if shard.exists() else ():
        if line.endswith(b"\n"):
            chunks.setdefault(json.loads(line)["chunk"], []).append(line)
    sizes = {chunk: rows_in_chunk if isinstance(rows_in_chunk, int) else rows_in_chunk[chunk] for chunk in chunks}
    for chunk, lines in chunks.items():
        if len(lines) > sizes[chunk] or len(set(lines)) < len(lines):
            problems.append(f"{shard}: chunk {chunk} is duplicated")
    return {
        f"chunk {chunk}": hashlib.sha256(b"".join(lines)).hexdigest()
        for chunk, lines in chunks.items()
        if len(lines) == sizes[chunk]
    }


def read_whole(file: Path) -> None:
    """Reads a safetensors file or a file of `torch.save` (a zip file with checksums) completely."""
    from safetensors.torch import load_file

    if file.suffix == ".safetensors":
        load_file(file)
    elif zipfile.ZipFile(file).testzip() is not None:
        raise ValueError("a checksum differs")


def finished_checkpoints(folder: Path, problems: list[str], unfinished: Counter) -> dict[str, list]:
    """The checkpoints that can be read completely: digests of their files, and their logs."""
    checkpoints = {}
    for path in sorted(folder.glob("checkpoint-*")):
        try:
            state = json.loads((path / "trainer_state.json").read_text())
        except (FileNotFoundError, ValueError):
            unfinished["checkpoint"] += 1
            continue
        files = {}
        try:
            for file in sorted((*path.glob("*.safetensors"), *path.glob("*.pt"), *path.glob("*.pth"))):
                read_whole(file)
                files[file.name] = digest(file)
        except Exception as error:
            problems.append(f"{path} has a trainer state, but {file.name} cannot be read: {error}")
        losses = [(entry["step"], entry["loss"]) for entry in state["log_history"] if "loss" in entry]
        check_steps(path, [step for step, _ in losses][-state["global_step"] :], problems)
        checkpoints[path.name] = [files, losses]
    return checkpoints


def check_steps(path: Path, steps: list[int], problems: list[str]) -> None:
    """Checks that each step was logged once."""
    if steps != list(range(steps[0], steps[0] + len(steps))):
        problems.append(f"{path}: logged steps {steps}")


def finished(stage: str, folder: Path, problems: list[str], unfinished: Counter) -> dict:
    """Everything that is finished in a run's folder, by name."""
    unfinished["temporary file"] += len(list(folder.rglob("*.tmp")))
    shards = [*folder.rglob("rollouts-*.jsonl")]
    unfinished["chunk"] += sum(shard.stat().st_size > 0 and shard.read_bytes()[-1:] != b"\n" for shard in shards)
    if stage == "collection":
        return finished_chunks(folder / "rollouts-00000.jsonl", 2, problems)
    if stage == "given":
        return finished_chunks(folder / "rollouts-00000.jsonl", given_chunk_sizes(folder), problems)
    if stage != "raft":
        return finished_checkpoints(folder, problems, unfinished)
    entries = {}
    for path in sorted(folder.glob("round-*")):
        parts = finished_checkpoints(path, problems, unfinished)
        parts |= finished_chunks(path / "samples" / "rollouts-00000.jsonl", 16, problems)
        manifest = json.loads((path / "manifest.json").read_text()) if (path / "manifest.json").exists() else {}
        files = ["scores.jsonl", "picks.jsonl"] * ("metrics" in manifest)
        files += ["policy/model.safetensors"] * ("training" in manifest)
        parts |= {name: digest(path / name) for name in files}
        entries |= {f"{path.name}: {name}": value for name, value in parts.items()}
    return entries


def result_of(stage: str, folder: Path, problems: list[str]) -> dict:
    """The final result: rows, or weights and losses."""
    if stage in ("collection", "given"):
        return {"shards": [digest(path) for path in sorted(folder.glob("rollouts-*.jsonl"))]}
    state = json.loads((folder / "trainer_state.json").read_text())
    losses = [(entry["step"], entry["loss"]) for entry in state["log_history"] if "loss" in entry]
    if stage != "raft":  # RAFT's log begins with the round in which it was resumed
        check_steps(folder, [step for step, _ in losses], problems)
    weights = {path.name: digest(path) for path in folder.glob("*.safetensors")}
    return {"weights": weights, "losses": losses if stage != "raft" else None}


def compare(before: dict, now: dict, straight: dict, problems: list[str]) -> int:
    """Checks that nothing finished is missing or changed, and that everything equals the uninterrupted run. Returns
    the number of checks."""
    for name, value in before.items():
        if now.get(name) != value:
            problems.append(f"{name} was finished and is {'missing' if name not in now else 'changed'}")
    for name, value in now.items():
        if straight.get(name) != value:
            problems.append(f"{name} differs from the uninterrupted run's")
    return len(before) + len(now)


def campaign(recipes: dict, stage: str, work: Path, kills: int, chance: random.Random, num_given: int = 16) -> dict:
    """Kills a stage's runs `kills` times. Each run is resumed until its end, and then a new run begins."""
    problems: list[str] = []
    unfinished: Counter = Counter()
    straight = work / "straight" / stage
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    status = wait(start(recipes, stage, work, straight, num_given=num_given), straight)
    if status:
        raise RuntimeError(f"{stage}: the uninterrupted run failed, see {work / stage}.log")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    expected, result = finished(stage, straight, problems, Counter()), result_of(stage, straight, problems)
    changes = max(4, 2 * len(files_of(straight)))
    ways: Counter = Counter()
    runs, checks, run_index, folder, before = 0, 0, 0, work / "killed" / f"{stage}-0", {}
    going = True
    while going:
        way = WAYS[run_index % len(WAYS)] if sum(ways.values()) < kills else None
        run_index += 1
        at = {
            "processor time": {"seconds": chance.uniform(0.02, seconds)},
            "file changed": {"changes": chance.randint(1, changes)},
        }.get(way, {})
        operation = chance.randint(1, changes) if way == "file operation" else None
        status = wait(start(recipes, stage, work, folder, operation, num_given), folder, **at)
        now = finished(stage, folder, problems, unfinished)
        checks += compare(before, now, expected, problems)
        before = now
        if os.WIFSIGNALED(status):
            ways[way] += 1
            continue
        if status:
            problems.append(f"{folder}: a resumed run failed, see {work / stage}.log")
        elif result_of(stage, folder, problems) != result:
            problems.append(f"{folder}: the result differs from the uninterrupted run's")
        else:
            shutil.rmtree(folder)
        runs, before, going = runs + 1, {}, sum(ways.values()) < kills
        folder = work / "killed" / f"{stage}-{runs}"
    return {
        "kills": sum(ways.values()),
        "ways": dict(ways),
        "runs_to_the_end": runs,
        "half_written": {name: count for name, count in unfinished.items() if count},
        "finished_things_checked": checks,
        "seconds_of_the_straight_run": round(seconds, 2),
        "problems": problems,
    }


def main() -> None:
    """Runs the campaigns, prints a table and writes a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="Number of kills over all stages.")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--given_solutions", type=int, default=16, help="Number of solutions in the stage given.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/kills.json"))
    options = parser.parse_args()
    os.chdir(ROOT)
    recipes = preload()
    started = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="kills-"))
    print(f"runs and logs: {work}", flush=True)
    (work / "straight").mkdir()
    (work / "killed").mkdir()
    shutil.copytree(ROOT / "erprm_trl" / "dial" / "base", work / "reward-model")
    from erprm_trl.dial.experiments.chain import FORMAT

    FORMAT.save(work / "reward-model")
    if "collection" not in options.stages and "erprm" in options.stages:  # which trains on these rollouts
        wait(start(recipes, "collection", work, work / "straight" / "collection"), work / "straight" / "collection")
    results = {}
    print(f"{'stage':<12}{'kills':>6}{'runs':>6}{'checked':>9}{'problems':>10}  by way; half-written")
    for index, stage in enumerate(options.stages):
        share = options.kills // len(options.stages) + (index < options.kills % len(options.stages))
        chance = random.Random(f"{options.seed}/{stage}")
        outcome = campaign(recipes, stage, work, share, chance, options.given_solutions)
        results[stage] = outcome
        print(
            f"{stage:<12}{outcome['kills']:>6}{outcome['runs_to_the_end']:>6}{outcome['finished_things_checked']:>9}"
            f"{len(outcome['problems']):>10}  {outcome['ways']}; {outcome['half_written']}",
            flush=True,
        )
        for problem in outcome["problems"][:5]:
            print(f"    {problem}")
    summary = {"seed": options.seed, "seconds": round(time.monotonic() - started), "stages": results}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(summary, indent=2) + "\n")
    kills = sum(result["kills"] for result in results.values())
    problems = sum(len(result["problems"]) for result in results.values())
    print(f"{kills} kills, {problems} problems, {summary['seconds']} s; {options.output}")
    if not problems:
        shutil.rmtree(work)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
