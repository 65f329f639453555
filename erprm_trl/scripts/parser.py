"""The command line of a stage: the fields of its dataclasses in titled groups, over the values of a YAML file."""

import argparse
import dataclasses
import difflib
import functools
import inspect
import logging
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, get_type_hints

from trl import TrlParser

from ..io.paths import path_in_package
from .console import stage
from .outcome import UsageError
from .recipes import find_recipe, read_config
from .source_fields import Unreadable, read_class


FOREIGN = ("transformers", "trl")
NO_DATA = (None, "", "null", "{}", [], {})  # of an option that names data, e.g. to undo a value of the YAML file

logger = logging.getLogger(__name__)


class Options(NamedTuple):
    """Options that every command has."""

    config: str | None
    recipe: str | None
    verbose: bool
    debug: bool
    accelerate_config: str | None
    num_processes: str | None


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows each option in one spelling, with its default or that it is required."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        flags = ", ".join(flag for flag in action.option_strings if "-" not in flag.lstrip("-"))
        return flags if action.nargs == 0 else f"{flags} {self._format_args(action, 'VALUE')}"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.required:
            return f"{action.help} (required)"
        return action.help if action.default is None else super()._get_help_string(action)


class StageParser(TrlParser):
    """
    Parser of a stage's arguments.

    If the command line or the YAML file names evaluation data (a field in the `EVALUATION_DATA` of a dataclass) and no
    `eval_strategy`, the data is evaluated after each epoch, or every `eval_steps` if those are set. Without a
    strategy, transformers would never evaluate it.

    Args:
        name (`str`):
            Name of the command.
        main (`Callable`):
            The stage's function. Each of its parameters is annotated with a dataclass, or with the name of a dataclass
            whose module imports torch, such as `"trl.ModelConfig"`.
        stage (`str`, *optional*):
            Name of the stage's YAML file in the folders of the recipes.
        several_processes (`bool`, *optional*, defaults to `False`):
            Whether accelerate may launch the stage.
        help_only (`bool`, *optional*, defaults to `False`):
            Whether only the help is needed. Named dataclasses are then read from source where possible, without the
            seconds that importing torch takes.
    """

    def __init__(
        self,
        name: str,
        main: Callable,
        stage: str | None = None,
        several_processes: bool = False,
        help_only: bool = False,
    ):
        self.stage = stage
        common = _common_parser(several_processes)
        summary = (inspect.getmodule(main).__doc__ or "").split("\n\n")[0]
        classes = _dataclasses(main, help_only)
        super().__init__(
            classes,
            prog=f"erprm {name}",
            usage=f"erprm {name} [--config FILE.yaml | --recipe NAME] [--FIELD VALUE ...]",
            description=f"{summary}\n\n{common.format_help().strip()}",
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        self.evaluation_data = [name for cls in classes for name in getattr(cls, "EVALUATION_DATA", ())]
        if self.evaluation_data:
            action = next(action for action in self._actions if action.dest == "eval_strategy")
            action.default = None
            action.help += " Defaults to epoch if evaluation data is named (steps with eval_steps), else to no."

    def _add_dataclass_arguments(self, dtype) -> None:  # seam
        """Adds one group per class that declares fields of `dtype`: `dtype` first, then its base classes."""
        hints = get_type_hints(dtype)
        groups: dict[type, list[dataclasses.Field]] = {cls: [] for cls in dtype.__mro__}
        for field in filter(lambda field: field.init, dataclasses.fields(dtype)):
            owner = next(cls for cls in groups if field.name in inspect.get_annotations(cls))
            groups[owner].append(field)
        for cls, fields in groups.items():
            if fields:
                group = self.add_argument_group(_title(cls), _first_sentence(cls) if cls is dtype else None)
                for field in fields:
                    field.type = hints[field.name]
                    self._parse_dataclass_field(group, field)  # seam
        for action in self._actions:
            if action.option_strings[0].startswith("--no_"):  # the same as `--FIELD false`
                action.help = argparse.SUPPRESS

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing the usage and ending the process."""
        message = re.sub(r"/--[\w-]+", "", message)  # the second spelling of an option
        raise UsageError(f"{message}. See {self.prog} --help.")

    def unknown_words(self, argv: Sequence[str]) -> list[str]:
        """Words of a command line that are no fields of the dataclasses. Missing fields are no errors yet."""
        required = [action for action in self._actions if action.required]
        for action in required:
            action.required = False
        _, unknown = self.parse_known_args(argv)
        for action in required:
            action.required = True
        return unknown

    def set_config(self, options: Options) -> tuple[str | None, list[str]]:
        """
        Takes defaults from the YAML file of `--config` or `--recipe`.

        Returns:
            `tuple[str | None, list[str]]`: path of the file, and its keys and values that no dataclass has, as a
            command line.
        """
        if options.config is not None and options.recipe is not None:
            raise UsageError("Got --config and --recipe, expected one of them.")
        path = options.config if options.recipe is None else str(find_recipe(options.recipe, self.stage))
        if path is None:
            return None, []
        config = read_config(path)
        environment = config.pop("env", {})
        if not isinstance(environment, dict):
            raise UsageError(f"{path}: env is {environment!r}, expected a mapping of variables to values.")
        os.environ.update({name: str(value) for name, value in environment.items()})
        left = self.set_defaults_with_config(**config)
        flags = zip(left[::2], left[1::2], strict=True)
        return path, [word for flag, value in flags for word in _as_option(flag, value)]

    def read(self, argv: Sequence[str]) -> tuple[Any, ...]:
        """The dataclasses. A value that a dataclass refuses is a [`UsageError`]."""
        try:
            self._evaluate_named_data(argv)
            return self.parse_args_into_dataclasses(argv, look_for_args_file=False)
        except (ValueError, TypeError, ImportError) as error:
            raise UsageError(str(error)) from error

    def _evaluate_named_data(self, argv: Sequence[str]) -> None:
        """Chooses the evaluation strategy if neither the command line nor the YAML file does, and prints it."""
        if not self.evaluation_data or self.get_default("eval_strategy") is not None:
            return
        values = vars(self.parse_known_args(argv)[0])
        strategy = "no"
        if named := [f"--{name}" for name in self.evaluation_data if values[name] not in NO_DATA]:
            strategy = "epoch" if values["eval_steps"] is None else "steps"
            if values["eval_strategy"] is None:
                stage(f"The data of {' and '.join(named)} is evaluated with --eval_strategy {strategy}")
        self.set_defaults(eval_strategy=strategy)

    def refuse_unknown(self, unknown: Sequence[str], others: Sequence[str], config: str | None) -> None:
        """
        Names an option or a field of the YAML file that does not exist, and one that it resembles.

        Args:
            unknown (`Sequence[str]`):
                Words of the command line that nothing reads.
            others (`Sequence[str]`):
                Keys and values of the YAML file that nothing reads.
            config (`str`, *optional*):
                Path of the YAML file.
        """
        known = [option for action in self._actions for option in action.option_strings]
        for place, words in ((f"{config}: ", others), ("", unknown)):
            if words and not words[0].startswith("-"):
                self.error(f"Got {words[0]!r}, expected options such as --config FILE.yaml")
            if words:
                close = _resembling(words[0], known)
                hint = f", expected perhaps {close}" if close else ""
                self.error(f"{place}Unknown option {words[0]!r}{hint}")


def _resembling(word: str, options: Sequence[str]) -> str:
    """The options that a misspelled one may mean: with all its words, or else alike, in whole or at the beginning."""
    options = [option for option in options if "-" not in option.strip("-")]  # each is listed in two spellings
    words = set(word.strip("-").replace("-", "_").split("_"))
    longer = [option for option in options if words <= set(option.strip("-").split("_"))]
    beginnings = {option[: len(word)]: option for option in reversed(options)}
    proposals = (
        sorted(longer, key=lambda option: not option.startswith(word))
        or difflib.get_close_matches(word, options, n=1, cutoff=0.8)
        or [beginnings[close] for close in difflib.get_close_matches(word, beginnings, n=1, cutoff=0.7)]
        or difflib.get_close_matches(word, options, n=1)
    )
    return " or ".join(proposals[:3])


def split_options(argv: Sequence[str]) -> tuple[Options, list[str]]:
    """
    Takes the options that every command has out of a command line.

    `--debug` with a value is left in, because it is a field of `TrainingArguments`.
    """
    flags = {"--verbose": False, "--debug": False}
    rest: list[str] = []
    for index, word in enumerate(argv):
        ends = index + 1 == len(argv) or argv[index + 1].startswith("--")
        if word == "--verbose" or (word == "--debug" and ends):
            flags[word] = True
        else:
            rest.append(word)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for field in ("config", "recipe", "accelerate_config", "num_processes"):
        parser.add_argument(f"--{field}")
    try:
        namespace, rest = parser.parse_known_args(rest)
    except argparse.ArgumentError as error:
        raise UsageError(f"{error}.") from error
    rest = [path_in_package(word) for word in rest]  # as the values of a YAML file
    values = vars(namespace) | {flag.strip("-"): given for flag, given in flags.items()}
    return Options(**values), rest


def _dataclasses(main: Callable, help_only: bool) -> list[type]:
    annotations = [parameter.annotation for parameter in inspect.signature(main).parameters.values()]
    if help_only:
        try:
            return [read_class(name) if isinstance(name, str) else name for name in annotations]
        except Unreadable as error:
            logger.info("The help needs all imports, because %s cannot be read from source.", error)
    return [_imported(name, main) if isinstance(name, str) else name for name in annotations]


def _imported(name: str, main: Callable) -> type:
    package, *attributes = name.split(".")
    return functools.reduce(getattr, attributes, main.__globals__[package])


def _common_parser(several_processes: bool) -> argparse.ArgumentParser:
    """For the help: the words themselves are read by [`split_options`]."""
    parser = argparse.ArgumentParser(add_help=False, usage=argparse.SUPPRESS)
    group = parser.add_argument_group("options of every command")
    group.add_argument("--config", metavar="FILE", help="YAML file with values of any field, which options override.")
    group.add_argument(
        "--recipe", metavar="NAME", help="Name of a shipped recipe, or RECIPE/FILE for another of its files."
    )
    group.add_argument("--verbose", action="store_true", help="Show the logs and warnings of all libraries.")
    group.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    if several_processes:
        group = parser.add_argument_group(
            "several processes", "These options, and all options of `accelerate launch`."
        )
        group.add_argument(
            "--accelerate_config",
            metavar="NAME|FILE",
            help="Name of a shipped configuration, such as zero2, or a file.",
        )
        group.add_argument("--num_processes", metavar="N", help="Number of processes.")
    return parser


def _as_option(flag: str, value: str) -> list[str]:
    if value in ("True", "False"):
        return [flag] if value == "True" else []
    return [flag, value]


def _title(cls: type) -> str:
    package = cls.__module__.partition(".")[0]
    if package in FOREIGN:
        return f"{cls.__name__.strip('_')} ({package})"
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", cls.__name__)
    return words.lower() if words.endswith(" Arguments") else cls.__name__


def _first_sentence(cls: type) -> str:
    paragraph = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    return re.sub(r"\[?`~?([\w.]+)`\]?", lambda match: match[1].rpartition(".")[2], paragraph)
