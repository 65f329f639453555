"""The stages as programs: one module per command of `erprm`, each with the dataclasses of its arguments and `main`."""
