"""Reads dataclasses from the source of their modules, without importing the modules.

The configurations of trainers derive from `transformers.TrainingArguments`, whose module imports torch, which takes
seconds. A help text only needs the names, types, defaults and descriptions of the fields. This module evaluates these
expressions itself and runs no code of the modules. It raises [`Unreadable`] for an expression that it does not know.
"""

import ast
import dataclasses
import importlib
import importlib.util
import operator
import sys
from contextlib import suppress
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any


READABLE = ("erprm_trl", "transformers", "trl")
# Conditions of class bodies, which hold with every version of torch that this package runs with.
KNOWN = {"is_torch_available": lambda: True, "is_torch_greater_or_equal_than_2_8": True}
BUILTINS = {cls.__name__: cls for cls in (bool, dict, float, int, list, object, set, str, tuple, type)}
FUNCTIONS = {dataclasses.field, dict, list, set, sorted, tuple, KNOWN["is_torch_available"]}
OPERATORS = {ast.Add: operator.add, ast.BitOr: operator.or_, ast.Mult: operator.mul, ast.USub: operator.neg}


class Unreadable(Exception):
    """A class that cannot be read from source. Its module must be imported instead."""


def read_class(path: str) -> type:
    """
    Reads a dataclass with its base classes. The result describes the fields and must not be instantiated.

    Args:
        path (`str`):
            Name with the module, such as `"trl.ModelConfig"`. Lazily exported names are found by their imports for
            type checkers.

    Raises:
        [`Unreadable`]: if the class, a base class or a field uses an expression that this module does not know.
    """
    module, _, name = path.rpartition(".")
    try:
        return _source(module)[name]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Unreadable(f"{path}: {error}") from error


class _Returns:
    """A function without arguments that only returns a value."""

    def __init__(self, value: Any):
        self._value = value

    def __call__(self) -> Any:
        return self._value


class _Source:
    """The names that a module defines or imports at its top level. Each is evaluated when it is first used."""

    def __init__(self, name: str, path: Path):
        self.name = name
        self.package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        self._statements: dict[str, ast.stmt] = {}
        self._values: dict[str, Any] = {}
        self._collect(ast.parse(path.read_text(encoding="utf-8")).body)

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            self._values[name] = self._evaluate(name)
        return self._values[name]

    def _collect(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            if isinstance(statement, ast.If):  # such as imports for type checkers
                self._collect(statement.body)
            names = []
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                names = [alias.asname or alias.name for alias in statement.names]
            elif isinstance(statement, (ast.ClassDef, ast.FunctionDef)):
                names = [statement.name]
            elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                names = [statement.targets[0].id]
            for name in names:
                self._statements.setdefault(name, statement)

    def _evaluate(self, name: str) -> Any:
        statement = self._statements.get(name)
        if isinstance(statement, ast.ImportFrom):
            original = next(alias.name for alias in statement.names if name in (alias.asname, alias.name))
            return self._imported(statement, original)
        if isinstance(statement, ast.Import) and name in sys.stdlib_module_names:
            return importlib.import_module(name)
        if isinstance(statement, ast.ClassDef):
            return self._class(statement)
        if isinstance(statement, ast.Assign):
            return self._value(statement.value, {})
        if isinstance(statement, ast.FunctionDef) and isinstance(statement.body[0], ast.Return):
            return _Returns(self._value(statement.body[0].value, {}))
        if statement is None and self.name == self.package:
            return _source(f"{self.name}.{name}")
        raise Unreadable(f"{self.name}.{name}")

    def _imported(self, statement: ast.ImportFrom, name: str) -> Any:
        module = statement.module or ""
        if statement.level:
            parents = self.package.split(".")
            module = ".".join([*parents[: len(parents) - statement.level + 1], *filter(None, [module])])
        top = module.partition(".")[0]
        if top in READABLE:
            return _source(f"{module}.{name}") if module == self.name else _source(module)[name]
        if top in sys.stdlib_module_names:
            return getattr(importlib.import_module(module), name)
        raise Unreadable(f"{module}.{name}")

    def _class(self, node: ast.ClassDef) -> type:
        bases = tuple(self._value(base, {}) for base in node.bases)
        if any(issubclass(base, Enum) for base in bases):
            members = [item for item in node.body if isinstance(item, ast.Assign)]
            return Enum(node.name, {item.targets[0].id: self._value(item.value, {}) for item in members})
        if "dataclass" not in "".join(map(ast.unparse, node.decorator_list)):
            raise Unreadable(f"{self.name}.{node.name}")
        fields = list(self._fields(node.body, {}))
        # Keyword-only, because the order of the fields does not matter for a description.
        cls = dataclasses.make_dataclass(
            node.name, fields, bases=bases, namespace={"__doc__": ast.get_docstring(node)}, kw_only=True
        )
        cls.__module__ = self.name
        return cls

    def _fields(self, body: list[ast.stmt], local: dict[str, Any]):
        """Yields the name, type and value of each field. `local` collects the variables of the class body."""
        for statement in body:
            if isinstance(statement, ast.AnnAssign):
                kind = self._type(statement.annotation)
                value = () if statement.value is None else (self._value(statement.value, local),)
                yield (statement.target.id, kind, *value)
            elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                with suppress(Unreadable, AttributeError):  # an error later, if a field uses the variable
                    local[statement.targets[0].id] = self._value(statement.value, local)
            elif isinstance(statement, ast.If):
                yield from self._fields(
                    statement.body if self._value(statement.test, local) else statement.orelse, local
                )

    def _type(self, node: ast.expr) -> Any:
        """An annotation. A class that cannot be read is replaced by an empty class of its name."""
        unread = {}
        for name in {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}:
            try:
                self._value(ast.Name(name), {})
            except Unreadable:
                unread[name] = type(name, (), {})
        return self._value(node, unread)

    def _value(self, node: ast.expr, local: dict[str, Any]) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            known = next((names for names in (local, KNOWN, BUILTINS) if node.id in names), self)
            return known[node.id]
        if isinstance(node, ast.Attribute):
            owner = self._value(node.value, local)
            return owner[node.attr] if isinstance(owner, _Source) else getattr(owner, node.attr)
        if isinstance(node, ast.Subscript):
            return self._value(node.value, local)[self._value(node.slice, local)]
        if isinstance(node, (ast.BinOp, ast.UnaryOp)) and type(node.op) in OPERATORS:
            operands = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.operand,)
            return OPERATORS[type(node.op)](*(self._value(operand, local) for operand in operands))
        if isinstance(node, (ast.List, ast.Tuple)):
            values = []
            for item in node.elts:
                if isinstance(item, ast.Starred):
                    values += self._value(item.value, local)
                else:
                    values.append(self._value(item, local))
            return values if isinstance(node, ast.List) else tuple(values)
        if isinstance(node, ast.Dict) and None not in node.keys:
            pairs = zip(node.keys, node.values, strict=True)
            return {self._value(key, local): self._value(value, local) for key, value in pairs}
        if isinstance(node, ast.Lambda) and not node.args.args:
            return lambda: self._value(node.body, local)
        if isinstance(node, ast.Call):
            function = self._value(node.func, local)
            is_method = isinstance(getattr(function, "__self__", None), dict)
            if is_method or isinstance(function, _Returns) or function in FUNCTIONS:
                options: dict[str, Any] = {}
                for option in node.keywords:
                    value = self._value(option.value, local)
                    options |= value if option.arg is None else {option.arg: value}
                return function(*(self._value(item, local) for item in node.args), **options)
        raise Unreadable(f"{self.name}: {ast.unparse(node)}")


@cache
def _source(module: str) -> _Source:
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)  # does not import a top-level module
    if spec is None or not spec.submodule_search_locations:
        raise Unreadable(module)
    path = Path(next(iter(spec.submodule_search_locations)), *rest)
    files = [file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()]
    if not files:
        raise Unreadable(module)
    return _Source(module, files[0])
