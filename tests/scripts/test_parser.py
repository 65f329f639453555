"""The command lines of the stages: groups of the help, YAML below options, and words that nothing reads."""

import dataclasses
import os
import re
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from trl import ModelConfig

from erprm_trl import ERPRMConfig
from erprm_trl.io.paths import PACKAGE
from erprm_trl.scripts.console import quiet
from erprm_trl.scripts.outcome import UsageError
from erprm_trl.scripts.parser import StageParser, split_options


@dataclass
class Base:
    seed: int = field(default=0, metadata={"help": "Seed."})
    learning_rate: float = field(default=1.0, metadata={"help": "Learning rate."})


@dataclass
class SmallArguments(Base):
    """A few fields. See [`~erprm_trl.StepScorer`].

    More text.
    """

    name: str = field(metadata={"help": "Name."}, kw_only=True)
    learning_rate: float = field(default=0.5, metadata={"help": "Learning rate."})
    is_fast: bool = field(default=True, metadata={"help": "Be fast."})

    def __post_init__(self):
        if self.seed < 0:
            raise ValueError(f"seed: got {self.seed}, expected 0 or more.")


def main(arguments: SmallArguments) -> None:
    """Does nothing."""


@pytest.fixture
def parser():
    return StageParser("small", main, "collect")


def groups(text):
    """Options by the title of their group."""
    parts = re.split(r"^([^\s-][^\n]*):$", text, flags=re.MULTILINE)
    titles_and_texts = zip(parts[1::2], parts[2::2], strict=True)
    return {title: re.findall(r"^  (--\w+)", part, re.MULTILINE) for title, part in titles_and_texts}


def test_help_groups_the_fields_by_the_class_that_declares_them(parser):
    text = parser.format_help()
    assert groups(text) == {
        "options of every command": ["--config", "--recipe", "--verbose", "--debug"],
        "options": [],
        "small arguments": ["--learning_rate", "--name", "--is_fast"],
        "Base": ["--seed"],
    }
    assert "A few fields. See StepScorer.\n" in text and "More text" not in text
    assert "Name. (required)" in text and "(default: 0.5)" in text
    assert "no_is_fast" not in text and "is-fast" not in text
    assert text.startswith(
        "usage: erprm small [--config FILE.yaml | --recipe NAME] [--FIELD VALUE ...]\n\nThe command"
    )


def train(training: ERPRMConfig, model: ModelConfig) -> None:
    """Does nothing."""


def test_fields_of_the_package_come_before_those_of_transformers():
    listed = groups(StageParser("train", train).format_help())
    order = list(listed)
    assert (
        order.index("ERPRMConfig") < order.index("TrainingArguments (transformers)") < order.index("ModelConfig (trl)")
    )
    assert {"--eta", "--learning_rate"} <= set(listed["ERPRMConfig"])
    assert "--max_steps" in listed["TrainingArguments (transformers)"]
    shown = [option for options in listed.values() for option in options]
    assert {option for option in shown if shown.count(option) > 1} == {"--debug"}
    assert set(shown) >= {f"--{field.name}" for field in dataclasses.fields(ERPRMConfig) if field.init}


def test_options_override_the_yaml_file(parser, tmp_path, monkeypatch):
    monkeypatch.delenv("A_VARIABLE", raising=False)
    config = tmp_path / "small.yaml"
    config.write_text("name: from yaml\nseed: 3\nis_fast: false\nenv:\n  A_VARIABLE: 7\n")
    options, argv = split_options(["--seed", "4", f"--config={config}"])
    assert parser.set_config(options) == (str(config), [])
    (arguments,) = parser.read(argv)
    assert arguments == SmallArguments(name="from yaml", seed=4, is_fast=False)
    assert os.environ.pop("A_VARIABLE") == "7"


def test_fields_of_the_yaml_that_no_dataclass_has_become_options(parser, tmp_path):
    config = tmp_path / "small.yaml"
    config.write_text("name: a\nnum_processes: 2\nuse_fsdp: true\nmulti_gpu: false\n")
    options, _ = split_options(["--config", str(config)])
    assert parser.set_config(options) == (str(config), ["--num_processes", "2", "--use_fsdp"])


@pytest.mark.parametrize(
    ("argv", "debug", "rest"),
    [
        (["--debug"], True, []),
        (["--debug", "--seed", "1"], True, ["--seed", "1"]),
        (["--debug", "underflow_overflow"], False, ["--debug", "underflow_overflow"]),  # of TrainingArguments
        (["--seed", "1", "--verbose", "--debug"], True, ["--seed", "1"]),
    ],
    ids=str,
)
def test_debug_without_a_value_is_an_option_of_the_command(argv, debug, rest):
    options, left = split_options(argv)
    assert (options.debug, left) == (debug, rest)


def test_options_take_files_of_the_package_as_yaml_files_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, left = split_options(["--model_name_or_path", "erprm_trl/dial/base", "--output_dir", "erprm_trl/new"])
    assert left == ["--model_name_or_path", str(PACKAGE / "dial" / "base"), "--output_dir", "erprm_trl/new"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config"], "--config: expected one argument"),
        (["--config", "a.yaml", "--recipe", "dial"], "Got --config and --recipe, expected one of them"),
        (["--config", "no.yaml"], "no.yaml cannot be read .No such file or directory.. Give an existing YAML file"),
        ([], "arguments are required: --name. See erprm small --help"),
        (["--name", "a", "--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["--name", "a", "--seed", "-1"], "seed: got -1, expected 0 or more"),
        (["--name", "a", "--sede", "1"], "Unknown option '--sede', expected perhaps --seed"),
        (["--name", "a", "b.yaml"], "Got 'b.yaml', expected options such as --config FILE.yaml"),
        (["--nam", "a"], "Unknown option '--nam', expected perhaps --name"),  # not an abbreviation
        (["--name", "a", "--xyzzy", "1"], "Unknown option '--xyzzy'. See"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_a_usage_error(parser, argv, message):
    with pytest.raises(UsageError, match=message):
        options, argv = split_options(argv)
        config, others = parser.set_config(options)
        parser.refuse_unknown(parser.unknown_words(argv), others, config)
        parser.read(argv)


@pytest.mark.parametrize("text", ["- a", "a: [", "env: 3"])
def test_a_file_that_holds_no_fields_is_named(parser, tmp_path, text):
    config = tmp_path / "bad.yaml"
    config.write_text(text)
    options, _ = split_options(["--config", str(config)])
    with pytest.raises(UsageError, match="bad.yaml"):
        parser.set_config(options)


@dataclass
class Evaluated:
    """Fields of a training with evaluation data."""

    EVALUATION_DATA: ClassVar = ("eval_file", "eval_mixture")
    eval_file: str | None = field(default=None, metadata={"help": "File."})
    eval_mixture: list[str] = field(default_factory=list, metadata={"help": "Files."})
    eval_strategy: str = field(default="no", metadata={"help": "When."})
    eval_steps: int | None = field(default=None, metadata={"help": "Updates."})


def evaluate(arguments: Evaluated) -> None:
    """Does nothing."""


@pytest.mark.parametrize(
    ("yaml", "argv", "strategy", "shown"),
    [
        ("", "", "no", ""),
        ("", "--eval_steps 5", "no", ""),
        ("", "--eval_file a", "epoch", "--eval_file is evaluated with --eval_strategy epoch"),
        ("eval_mixture: [a, b]", "", "epoch", "--eval_mixture is evaluated"),
        ("eval_file: a", "--eval_steps 5", "steps", "--eval_file is evaluated with --eval_strategy steps"),
        ("eval_file: a", "--eval_strategy no", "no", ""),
        ("eval_file: a", "--eval_file null", "no", ""),
        ("eval_file: a\neval_strategy: 'no'", "", "no", ""),
        ("eval_strategy: epoch", "--eval_file a --eval_steps 5", "epoch", ""),
    ],
)
def test_evaluation_data_that_is_named_is_evaluated(tmp_path, capsys, yaml, argv, strategy, shown):
    config = tmp_path / "evaluated.yaml"
    config.write_text(f"{yaml}\nenv: {{}}\n")
    parser = StageParser("evaluated", evaluate)
    options, argv = split_options(["--config", str(config), *argv.split()])
    with quiet(verbose=False):
        parser.set_config(options)
        (arguments,) = parser.read(argv)
    assert arguments.eval_strategy == strategy
    printed = capsys.readouterr().err
    assert shown in printed and bool(printed) == bool(shown)


def test_the_help_says_when_evaluation_data_is_evaluated(parser):
    assert "Defaults to epoch if evaluation data is named" in StageParser("evaluated", evaluate).format_help()


def test_an_unknown_field_of_the_yaml_names_the_file(parser):
    with pytest.raises(UsageError, match="x.yaml: Unknown option '--sead', expected perhaps --seed"):
        parser.refuse_unknown([], ["--sead", "1"], "x.yaml")


@pytest.mark.parametrize(
    ("word", "proposed"),
    [
        ("--learning-rte", "--learning_rate"),
        ("--rate", "--learning_rate"),  # all words of a longer option
        ("--lerning", "--learning_rate"),  # alike at the beginning
    ],
)
def test_a_misspelled_option_proposes_what_it_may_mean(parser, word, proposed):
    with pytest.raises(UsageError, match=f"Unknown option '{word}', expected perhaps {proposed}. See"):
        parser.refuse_unknown([word, "1"], [], None)


def test_options_with_all_words_of_an_unknown_one_are_all_proposed():
    parser = StageParser("trained", train)
    with pytest.raises(UsageError, match="perhaps --per_device_train_batch_size or --per_device_eval_batch_size. See"):
        parser.refuse_unknown(["--per_device_batch_size", "1"], [], None)
