"""Lazy exports: a package names what it offers, and a module is imported when one of its names is first used.

`import erprm_trl` and the `--help` of a command stay fast, because neither imports torch (PEP 562)."""

import importlib
import sys


def lazy_exports(package: str, names_by_module: dict[str, list[str]]):
    """
    `__getattr__`, `__dir__` and `__all__` of a package.

    Args:
        package (`str`):
            The package's `__name__`.
        names_by_module (`dict[str, list[str]]`):
            Names to export, by the module that defines them: relative to the package (`"collect"`), or with leading
            dots for a module elsewhere (`"..steps"`).
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
