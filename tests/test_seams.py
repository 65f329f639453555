"""Tests that all private names of TRL and transformers that this package depends on are listed, marked, and exist."""

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import erprm_trl
from erprm_trl._trl import SEAM_ATTRIBUTES, SEAMS, BaseConfig, BaseTrainer


PACKAGE = Path(erprm_trl.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
FOREIGN = ("trl", "transformers", "accelerate", "torch.nn")
# Foreign classes whose instances are used by classes of this package that do not inherit from them.
MET = (
    "transformers.Trainer",
    "trl.GRPOTrainer",
    "trl.SFTTrainer",
    "transformers.PreTrainedModel",
    "transformers.PreTrainedConfig",
    "transformers.PreTrainedTokenizerBase",
    "transformers.TrainingArguments",
    "transformers.TrainerState",
    "transformers.TrainerControl",
    "accelerate.Accelerator",
)
MARK = "# seam"


# What is installed


@cache
def resolve(path):
    """The object at a dotted path."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            value = getattr(value, name)
        return value
    raise ModuleNotFoundError(path)


def is_foreign(module):
    return any(module == name or module.startswith(f"{name}.") for name in FOREIGN)


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


@cache
def data_of_instances(cls):
    """Names that a class assigns or annotates on `self`, or annotates in its body."""
    names = set(inspect.get_annotations(cls))
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):  # a class that was made at run time has no source
        return names
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return names


@cache
def owners(cls, name):
    """Foreign classes that define a name, among a class and its bases."""
    bases = [base for base in cls.__mro__ if is_foreign(base.__module__)]
    return [base for base in bases if name in vars(base) or name in data_of_instances(base)]


def lacks(path):
    """Describes why an attribute does not exist, or returns `None` if it exists."""
    owner, _, name = path.rpartition(".")
    try:
        owner = resolve(owner)
    except (ImportError, AttributeError) as error:
        return f"{error}"
    exists = hasattr(owner, name) or inspect.isclass(owner) and bool(owners(owner, name))
    return None if exists else f"{path} is no longer there"


def changed(seam):
    """Describes how a method or function has changed, or returns `None` if it has not."""
    if problem := lacks(seam.path):
        return problem
    owner, _, name = seam.path.rpartition(".")
    owner, function = resolve(owner), resolve(seam.path)
    if inspect.isclass(owner) and name not in vars(owner):
        return f"{seam.path} is now inherited from another class"
    names = [parameter for parameter in inspect.signature(function).parameters if parameter != "self"]
    pattern = "".join(r"(\w+ )*" if part == "..." else f"{part} " for part in seam.parameters.split())
    if re.fullmatch(pattern, "".join(f"{parameter} " for parameter in names)):
        return None
    return f"{seam.path}: got the parameters ({', '.join(names)}), expected ({', '.join(seam.parameters.split())})"


def advice(seam):
    return f"This package uses it in {seam.files.replace(' ', ', ')}. Adapt these files first, and then _trl.py."


@pytest.mark.parametrize("seam", SEAMS, ids=lambda seam: seam.path)
def test_canary_the_method_exists_with_its_parameters(seam):
    problem = changed(seam)
    assert problem is None, f"{problem}. {advice(seam)}"


@pytest.mark.parametrize("seam", SEAM_ATTRIBUTES, ids=lambda seam: seam.path)
def test_canary_the_attribute_exists(seam):
    problem = lacks(seam.path)
    assert problem is None, f"{problem}. {advice(seam)}"


def test_canary_base_classes():
    from transformers import Trainer

    assert issubclass(BaseTrainer, Trainer)
    assert "model_init_kwargs" not in BaseConfig._VALID_DICT_FIELDS  # ERPRMConfig adds it


def test_canaries_describe_the_change():
    seam = SEAMS[0]._replace(path="transformers.Trainer._save_checkpoint", parameters="model trial", files="a.py b.py")
    assert changed(seam) is None and changed(seam._replace(parameters="model ...")) is None
    assert "got the parameters (model, trial), expected (trial, model)" in changed(
        seam._replace(parameters="trial model")
    )
    assert changed(seam._replace(parameters="model")) and changed(seam._replace(parameters="model trial metrics"))
    assert "_save_all is no longer there" in changed(seam._replace(path="transformers.Trainer._save_all"))
    assert "inherited" in changed(seam._replace(path="trl.trainer.base_trainer._BaseTrainer._save_checkpoint"))
    assert "no_such_name" in lacks("transformers.no_such_name._x") and lacks("trl.GRPOTrainer._metrics") is None
    assert lacks("trl.GRPOTrainer._no_such_data") == "trl.GRPOTrainer._no_such_data is no longer there"
    assert "uses it in a.py, b.py" in advice(seam)


# Private names that this package uses


class Use(NamedTuple):
    """A use of a private foreign name in a module. `owners` are the foreign classes or modules that define the
    name."""

    line: int
    name: str
    owners: list
    call: bool  # whether it is an override or a call of a method, which must be marked


@cache
def our_classes():
    """All classes of this package by module and name, and the foreign classes with which each is combined."""
    modules = [
        importlib.import_module(info.name)
        for info in pkgutil.walk_packages(erprm_trl.__path__, "erprm_trl.")
        if not info.name.endswith("__main__")
    ]
    classes = {
        (module.__name__, value.__name__): value
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == module.__name__
    }
    mixed = {cls: set() for cls in classes.values()}
    for cls in mixed:
        for base in cls.__mro__:
            if base in mixed:  # a mixin is combined with the bases of all classes that use it
                mixed[base] |= {other for other in cls.__mro__ if is_foreign(other.__module__)}
    return classes, mixed


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def foreign_aliases(tree):
    """Local names of a module's imports from foreign modules, with their dotted paths."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and is_foreign(node.module):
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            aliases |= {alias.asname or alias.name: alias.name for alias in node.names if is_foreign(alias.name)}
    return aliases


@cache
def uses(path, source):
    """All uses of private foreign names in a module: overrides, calls, attributes, imports, and private parameters."""
    tree = ast.parse(source)
    classes, mixed = our_classes()
    aliases = foreign_aliases(tree)
    met = [resolve(name) for name in MET]
    results = []

    def defined_in(bases, name):
        return list(dict.fromkeys(owner for base in bases for owner in owners(base, name)))

    def of_receiver(receiver, cls, name):
        if receiver in ("self", "cls") and cls is not None:
            return defined_in(mixed.get(cls, ()), name)
        if receiver.startswith("import_module("):
            return [resolve(ast.literal_eval(receiver.removeprefix("import_module").strip()))]
        if receiver in aliases and not inspect.isclass(resolve(aliases[receiver])):
            return [resolve(aliases[receiver])]
        return defined_in(met, name)

    def visit(node, cls=None, function=None):
        if isinstance(node, ast.ClassDef):
            cls = classes.get((module_name(path), node.name))
            for statement in node.body:
                targets = getattr(statement, "targets", [getattr(statement, "target", None)])
                for target in targets:
                    if isinstance(target, ast.Name) and is_private(target.id):
                        owned = defined_in(mixed.get(cls, ()), target.id)
                        results.append(Use(target.lineno, target.id, owned, False))
        elif isinstance(node, ast.FunctionDef):
            if function is None and cls is not None and is_private(node.name):
                results.append(Use(node.lineno, node.name, defined_in(mixed.get(cls, ()), node.name), True))
            function = function or node.name
        elif isinstance(node, ast.ImportFrom) and not node.level and is_foreign(node.module):
            for alias in node.names:
                if is_private(alias.name):
                    results.append(Use(node.lineno, alias.name, [resolve(node.module)], False))
        elif isinstance(node, ast.Call):
            names = [keyword.arg for keyword in node.keywords if keyword.arg and is_private(keyword.arg)]
            results.extend(Use(node.lineno, name, [inspect.Parameter], False) for name in names)
            if ast.unparse(node.func) in ("getattr", "hasattr", "setattr") and isinstance(node.args[1], ast.Constant):
                name = node.args[1].value
                if is_private(name):
                    owned = of_receiver(ast.unparse(node.args[0]), cls, name)
                    results.append(Use(node.lineno, name, owned, False))
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            receiver = ast.unparse(node.value)
            if not (receiver == "super()" and node.attr == function):
                owned = of_receiver(receiver, cls, node.attr)
                method = any(callable(getattr(owner, node.attr, None)) for owner in owned if inspect.isclass(owner))
                results.append(Use(node.lineno, node.attr, owned, method))
        for child in ast.iter_child_nodes(node):
            visit(child, cls, function)

    visit(tree)
    return [use for use in results if use.owners]


def problems(path, seams=SEAMS, attributes=SEAM_ATTRIBUTES, source=None):
    """Private foreign names of a module that are in no table, or are methods without the mark."""
    text = path.read_text(encoding="utf-8") if source is None else source
    file, lines = path.relative_to(PACKAGE).as_posix(), text.splitlines()
    here = [seam for seam in (*seams, *attributes) if file in seam.files.split()]
    listed = {tuple(seam.path.rsplit(".", 1)) for seam in here}
    methods = {(resolve(owner), name) for owner, name in listed}
    parameters = {name for seam in here if isinstance(seam, type(SEAMS[0])) for name in seam.parameters.split()}
    for use in uses(path, text):
        where = f"{file}:{use.line}: {use.name}"
        if use.owners == [inspect.Parameter]:
            if use.name not in parameters:
                yield f"{where}, a private parameter, is not in SEAMS with this file"
            continue
        names = ", ".join(getattr(owner, "__name__", str(owner)) for owner in use.owners)
        in_tables = [(owner, use.name) in methods for owner in use.owners]
        # Several parents may define a method, and the parameters of all of them matter.
        if not (all(in_tables) if use.call else any(in_tables)):
            yield f"{where} of {names} is not in SEAMS or SEAM_ATTRIBUTES with this file"
        if use.call and MARK not in lines[use.line - 1]:
            yield f"{where} of {names} has no comment {MARK!r}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_private_names_are_listed_and_marked(path):
    assert not list(problems(path))


def test_the_tables_list_only_files_that_use_the_name():
    used = {
        path.relative_to(PACKAGE).as_posix(): {use.name for use in uses(path, path.read_text(encoding="utf-8"))}
        for path in MODULES
    }
    for seam in (*SEAMS, *SEAM_ATTRIBUTES):
        if lacks(seam.path):  # a canary reports it
            continue
        name = seam.path.rpartition(".")[2]
        private = [part for part in (name, *getattr(seam, "parameters", "").split()) if is_private(part)]
        for file in seam.files.split():
            assert file in used, f"{seam.path}: there is no {file}"
            assert not private or used[file] & set(private), f"{seam.path}: {file} does not use it"
    paths = [seam.path for seam in (*SEAMS, *SEAM_ATTRIBUTES)]
    assert len(paths) == len(set(paths))


PRIVATE_SEAMS = [seam for seam in (*SEAMS, *SEAM_ATTRIBUTES) if is_private(seam.path.rpartition(".")[2])]


@pytest.mark.parametrize("seam", PRIVATE_SEAMS, ids=lambda seam: seam.path)
def test_a_missing_entry_is_found(seam):
    if lacks(seam.path):
        pytest.skip("it no longer exists, and a canary reports it")
    without = [[entry for entry in table if entry is not seam] for table in (SEAMS, SEAM_ATTRIBUTES)]
    name = seam.path.rpartition(".")[2]
    for file in seam.files.split():
        assert any(name in problem for problem in problems(PACKAGE / file, *without)), file


def test_every_missing_mark_is_found():
    marked = 0
    for path in MODULES:
        source = path.read_text(encoding="utf-8")
        lines = [index for index, line in enumerate(source.splitlines()) if line.endswith(MARK)]
        for index in lines:
            text = source.splitlines()
            text[index] = text[index].removesuffix(MARK)
            reported = list(problems(path, source="\n".join(text)))
            assert reported and all(f":{index + 1}: " in problem and MARK in problem for problem in reported), path
        marked += len(lines)
    assert marked > 20


def test_new_overrides_calls_and_attributes_are_found():
    path = PACKAGE / "policy/online/step_trainer.py"
    source = path.read_text(encoding="utf-8")
    start = source.index("    def compute_loss(")
    for text, name in {
        "    def _prepare_inputs(self, inputs):  # seam\n        return inputs\n\n": "_prepare_inputs",
        "    _name = 'ours'\n\n": "_name",
        "    def sample(self):\n        return self._tokenize_prompts(self._textual_inputs)\n\n": "_tokenize_prompts",
        "    def sample(self):\n        self._pending_metrics = {}\n\n": "_pending_metrics",
        "    def sample(self):\n        return getattr(self.model, '_no_split_modules')\n\n": "_no_split_modules",
        "    def sample(self, trainer):\n        return trainer._train_batch_size\n\n": "_train_batch_size",
        "    def sample(self):\n        from trl.trainer.utils import _private\n\n": "_private",
        "    def sample(self):\n        self.log(_quiet=True)\n\n": "_quiet",
    }.items():
        reported = list(problems(path, source=source[:start] + text + source[start:]))
        assert any(f": {name}" in problem and "is not in SEAMS" in problem for problem in reported), (name, reported)
    assert torch.nn.Module in owners(resolve("transformers.PreTrainedModel"), "_modules")
