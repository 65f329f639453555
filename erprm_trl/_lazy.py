"""Lazy exports: a module of a package is imported when one of its names is first used (PEP 562).

`import erprm_trl` and the `--help` of a command stay fast, because they do not import torch."""

import importlib
import sys


def lazy_exports(package: str, names_by_module: dict[str, list[str]]):
    """
    Makes `__getattr__`, `__dir__` and `__all__` for a package.

    Args:
        package (`str`):
            `__name__` of the package.
        names_by_module (`dict[str, list[str]]`):
            Names to export, by the module that defines them. Modules are relative to the package (`"collect"`), or
            have leading dots if they are elsewhere (`"..steps"`).

    Returns:
        `tuple`: `__getattr__`, `__dir__` and `__all__`.
    """
    module_of = {name: module for module, names in names_by_module.items() for name in names}

    def __getattr__(name: str):
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = module_of[name]
        imported = importlib.import_module(module if module.startswith(".") else f".{module}", package)
        value = getattr(imported, name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted(module_of)

    return __getattr__, __dir__, sorted(module_of)
