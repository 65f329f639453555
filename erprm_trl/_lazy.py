"""Lazy exports: a package names what it offers, and a module is imported when something of it is first used."""

import importlib
import sys


def lazy_exports(package: str, names_by_module: dict[str, list[str]]):
    """`__getattr__`, `__dir__` and `__all__` for a package whose modules are imported on first use (PEP 562)."""
    module_of = {name: module for module, names in names_by_module.items() for name in names}

    def __getattr__(name: str):
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted(module_of)

    return __getattr__, __dir__, sorted(module_of)
