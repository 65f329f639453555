"""The command `erprm`: one command per stage, see `erprm --help`.

Exit codes: 0 for success, 1 for a failure, 2 for arguments that cannot be used, 3 if the guard stopped the training of
a policy, 130 after Ctrl-C. Other signals give 128 plus the signal's number.
"""

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .io.paths import local_path
from .scripts.console import quiet
from .scripts.launcher import end_process
from .scripts.outcome import STOPPED_BY_GUARD, StoppedByGuard, UsageError


FAILED, WRONG_USAGE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141


class Command(NamedTuple):
    """
    A command.

    Attributes:
        summary (`str`):
            Line of `erprm --help`.
        module (`str`):
            Module of `erprm_trl.scripts` with the stage's `main`.
        stage (`str`, *optional*):
            Name of the stage's YAML file in the folders of the recipes.
        several_processes (`bool`):
            Whether accelerate may launch it.
        is_server (`bool`):
            Whether its log is its output.
        is_offline (`bool`):
            Whether it needs nothing from the Hub.
    """

    summary: str
    module: str
    stage: str | None = None
    several_processes: bool = False
    is_server: bool = False
    is_offline: bool = False


COMMANDS = {
    "collect": Command("Sample solutions, and grade continuations of their steps.", "collect", "collect", True),
    "train": Command("Train a process reward model on rollouts or labelled steps.", "train", "train_erprm", True),
    "inspect-labels": Command("Show the noise of labels that is visible without the truth.", "inspect_labels"),
    "score": Command("Score the steps of the solutions in a file or dataset.", "score"),
    "best-of-n": Command("Compare reward models at choosing among sampled solutions.", "best_of_n", "best_of_n"),
    "processbench": Command("Test whether low scores show where solutions go wrong.", "processbench", "processbench"),
    "calibrate": Command("Compare step scores with the success of continuations.", "calibrate", "calibration"),
    "search": Command("Write solutions step by step, guided by a reward model.", "search", "guided_search"),
    "raft": Command("Train a policy in rounds of sampling and selection.", "raft", "train_raft", True),
    "grpo": Command("Train a policy with GRPO on step scores.", "grpo", "train_step_grpo", True),
    "ppo": Command("Train a policy with PPO on step scores.", "ppo", "train_step_ppo", True),
    "pairs": Command("Make preference pairs from solutions or their steps.", "pairs", "pairs"),
    "dpo": Command("Train a policy with DPO on preference pairs.", "dpo", "train_dpo", True),
    "export": Command("Export a reward model for engines such as vLLM.", "export"),
    "serve": Command("Serve a reward model over HTTP.", "serve", "serve_scorer", is_server=True),
    "report": Command("Write a page about a run: solutions with step scores, and curves.", "report"),
    "memory": Command("Estimate the memory that a training takes on each GPU.", "memory"),
    "quickstart": Command("Run all stages on the embedded task.", "quickstart", "quickstart", is_offline=True),
    "env": Command("Print versions and devices, for bug reports.", "env"),
}
_SAME = "The same command resumes where it stopped."
_CHECKPOINT = "If a checkpoint was saved, add --resume true to resume from it."
# Advice in the message of an interrupted command.
RESUMING = {
    **dict.fromkeys(("collect", "score", "processbench", "raft"), _SAME),
    **dict.fromkeys(("train", "grpo", "ppo", "dpo"), _CHECKPOINT),
}


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs a command.

    Args:
        argv (`Sequence[str]`, *optional*):
            Command and arguments. Defaults to the arguments of this process.

    Returns:
        `int`: the exit code.
    """
    try:
        code = dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:  # erprm train --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = BROKEN_PIPE
    end_process(code)
    return code


def dispatch(argv: list[str]) -> int:
    """Runs a command and turns its errors into messages and exit codes."""
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name == "--version":
        print(importlib.import_module("erprm_trl").__version__)
        return 0
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean erprm {close[0]}?" if close else "See erprm --help."
        return _fail("erprm", f"Unknown command {name!r}. {hint}", WRONG_USAGE)
    debug = "--debug" in argv
    try:
        return run(name, argv[1:])
    except UsageError as error:
        return _fail(f"erprm {name}", error, WRONG_USAGE, debug)
    except StoppedByGuard as error:
        return _fail(f"erprm {name}", error, STOPPED_BY_GUARD, debug)
    except KeyboardInterrupt:
        advice = RESUMING.get(name, "")
        return _fail(f"erprm {name}", f"Interrupted. {advice}".rstrip(), INTERRUPTED, debug)
    except SystemExit as stop:  # after --help
        return stop.code or 0
    except Exception as error:
        return _fail(f"erprm {name}", error, FAILED, debug)


def usage() -> str:
    """The text of `erprm --help`."""
    lines = [f"  {name:<16}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: erprm COMMAND [--config FILE.yaml | --recipe NAME] [--FIELD VALUE ...]",
            "",
            "Process reward models for TRL: rollouts, training, scores, and policies that learn from them.",
            "",
            "commands:",
            *lines,
            "",
            "erprm COMMAND --help lists the options of a command. erprm quickstart shows all stages in a few minutes.",
            "Exit codes: 0 success, 1 failure, 2 wrong arguments, 3 stopped by the guard of a policy, 130 Ctrl-C.",
        ]
    )


def run(name: str, argv: Sequence[str]) -> int:
    """Parses a command's arguments and runs its `main`, in this process or in new processes of accelerate."""
    command = COMMANDS[name]
    if command.is_offline:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported
    parsing = importlib.import_module("erprm_trl.scripts.parser")
    launcher = importlib.import_module("erprm_trl.scripts.launcher")
    options, argv = parsing.split_options(argv)
    with quiet(verbose=options.verbose or command.is_server) as console:
        stage = importlib.import_module(f"erprm_trl.scripts.{command.module}")
        parser = parsing.StageParser(
            name, stage.main, command.stage, command.several_processes, help_only=bool({"-h", "--help"} & set(argv))
        )
        if launcher.is_on_cpu() or launcher.lacks_accelerator():
            parser.set_defaults_with_config(use_cpu=True)
        config, others = parser.set_config(options)
        unknown = parser.unknown_words(argv)
        launch_options = _launch_options(parser, options, unknown, others, config, command.several_processes)
        on_command_line = unknown or options.accelerate_config or options.num_processes
        if not launch_options or (launcher.is_launched() and not on_command_line):
            arguments = parser.read(without(argv, unknown))
            output_dir = next((value.output_dir for value in arguments if getattr(value, "output_dir", None)), None)
            if output_dir is not None:
                console.write_to(Path(local_path(output_dir), f"_{name}.log"))
            stage.main(*arguments)
            return 0
    flags = ["--config", config] if config else []
    flags += [f"--{flag}" for flag in ("verbose", "debug") if getattr(options, flag)]
    return launcher.launch(launch_options, [name, *without(argv, unknown), *flags])


def _launch_options(
    parser, options, unknown: list[str], others: list[str], config: str | None, several_processes: bool
) -> list[str]:
    """Options for accelerate; words that neither the stage nor accelerate knows are errors."""
    launcher = importlib.import_module("erprm_trl.scripts.launcher")
    if not several_processes:
        if options.accelerate_config or options.num_processes:
            parser.error("The command runs in one process, expected no --accelerate_config and no --num_processes")
        parser.refuse_unknown(unknown, others, config)
    launch_options = launcher.launch_options(options.accelerate_config, options.num_processes, others, unknown)
    if launch_options:
        foreign = launcher.not_of_accelerate(launch_options)
        ours = [word for word in foreign if word in unknown]
        parser.refuse_unknown(ours, [word for word in foreign if word in others], config)
    return launch_options


def without(words: Sequence[str], removed: Sequence[str]) -> list[str]:
    """Removes words from a command line. They must be in the order of the command line."""
    left, kept = list(removed), []
    for word in words:
        if left and word == left[0]:
            left.pop(0)
        else:
            kept.append(word)
    return kept


def _fail(subject: str, error: BaseException | str, code: int, debug: bool = False) -> int:
    if debug:
        traceback.print_exc()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        subject += f" (process {os.environ.get('RANK')})"
    print(f"{subject}: {_message(error)}", file=sys.stderr, flush=True)
    return code


def _message(error: BaseException | str) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}."
    if isinstance(error, (str, ValueError, TypeError, OSError, ImportError, StoppedByGuard)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error} (--debug shows the traceback)"
