"""The help of a command, read from the source of its dataclasses, is the help of the imported dataclasses."""

import dataclasses
import importlib
import inspect
import sys
from enum import Enum

import pytest

from erprm_trl.cli import COMMANDS
from erprm_trl.scripts import parser, source_fields
from erprm_trl.scripts.source_fields import Unreadable, read_class


SOURCE = '''
import math
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

from unknown_package import Unknown

if TYPE_CHECKING:
    from .other import Base as Root

NAMES = ("a", "b")
LEVELS = {"low": 1, "high": math.pi}


def levels():
    return LEVELS


class Size(Enum):
    SMALL = "small"
    LARGE = "large"


@dataclass
class Good(Root):
    """A class."""

    rate = 0.5
    if levels():
        from .other import nothing

        rate = -1.5
    size: Size | str = field(default="small", metadata={"help": "Size."})
    rates: list[float] = field(default_factory=lambda: [1.0, 2.0])
    name: Literal["a", "b"] = field(default="a", metadata={"choices": list(NAMES) + ["c"]})
    level: str = field(default="low", metadata={"choices": dict(**levels().copy(), other=3).keys()})
    model: Unknown | None = None
    low: float = rate
    made: int = field(init=False)

    def __post_init__(self):
        raise RuntimeError("code of the class runs")


@dataclass
class Computed:
    value: float = math.sqrt(2)


class Plain:
    value: int = 1


@dataclass
class Derived(Plain):
    other: int = 2
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "described_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('the package is imported')\nfrom .config import Good\n")
    (folder / "config.py").write_text(SOURCE)
    (folder / "other.py").write_text(
        "import dataclasses\n\n\n@dataclasses.dataclass\nclass Base:\n    seed: int\n    verbose: bool = False\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(source_fields, "READABLE", ("described_package",))
    source_fields._source.cache_clear()
    yield "described_package"
    source_fields._source.cache_clear()


def test_fields_are_read_without_running_the_module(package):
    good = read_class(f"{package}.Good")
    fields = {field.name: field for field in dataclasses.fields(good)}
    assert list(fields) == ["seed", "verbose", "size", "rates", "name", "level", "model", "low", "made"]
    assert (good.__name__, good.__module__, good.__doc__) == ("Good", f"{package}.config", "A class.")
    assert good.__mro__[1].__module__ == f"{package}.other"
    assert fields["seed"].type is int and fields["seed"].default is dataclasses.MISSING
    kind, text = fields["size"].type.__args__
    assert issubclass(kind, Enum) and [item.value for item in kind] == ["small", "large"] and text is str
    assert fields["size"].metadata == {"help": "Size."}
    assert fields["rates"].default_factory() == [1.0, 2.0] and fields["rates"].type == list[float]
    assert fields["name"].metadata["choices"] == ["a", "b", "c"]
    assert list(fields["level"].metadata["choices"]) == ["low", "high", "other"]
    assert fields["model"].type.__args__[0].__name__ == "Unknown" and fields["model"].default is None
    assert fields["low"].default == -1.5 and not fields["made"].init
    assert package not in sys.modules


@pytest.mark.parametrize("name", ["Computed", "Plain", "Derived", "Missing"])
def test_what_cannot_be_read_is_an_error(package, name):
    with pytest.raises(Unreadable, match="described_package"):
        read_class(f"{package}.config.{name}")
    with pytest.raises(Unreadable):
        read_class(f"{package}.missing.{name}")
    with pytest.raises(Unreadable):
        read_class(f"missing_package.{name}")


@pytest.mark.parametrize("command", ["train", "raft", "grpo", "ppo", "dpo"])
def test_the_help_from_source_is_the_help_of_the_imported_classes(command, monkeypatch):
    entry = COMMANDS[command]
    main = importlib.import_module(f"erprm_trl.scripts.{entry.module}").main
    assert any(isinstance(parameter.annotation, str) for parameter in inspect.signature(main).parameters.values())
    imported = parser.StageParser(command, main, entry.stage, entry.several_processes).format_help()
    with monkeypatch.context() as patch:
        patch.setattr(parser, "_imported", None)
        read = parser.StageParser(command, main, entry.stage, entry.several_processes, help_only=True).format_help()
    assert read == imported and "TrainingArguments (transformers)" in read


def test_classes_that_cannot_be_read_are_imported(monkeypatch):
    main = importlib.import_module("erprm_trl.scripts.dpo").main
    expected = parser.StageParser("dpo", main).format_help()

    def unreadable(name):
        raise Unreadable(name)

    monkeypatch.setattr(parser, "read_class", unreadable)
    assert parser.StageParser("dpo", main, help_only=True).format_help() == expected
