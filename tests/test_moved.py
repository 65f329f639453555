"""Tests that old import paths still work, give the same objects, and warn with the new path."""

import importlib
import inspect
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import erprm_trl
from erprm_trl import _moved


PACKAGE = Path(erprm_trl.__file__).parent


@pytest.fixture
def fresh(monkeypatch):
    """Removes old modules from `sys.modules`, so that they are imported again and warn again."""
    for name in list(sys.modules):
        if name.removeprefix("erprm_trl.") in _moved.MODULES:
            monkeypatch.delitem(sys.modules, name)


def own_names(module):
    """Public classes and functions that a module defines, or the names that a package exports."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


@pytest.mark.parametrize("old", _moved.MODULES)
def test_an_old_path_imports_warns_and_gives_the_same_objects(old, fresh):
    homes = [f"erprm_trl.{home}" for home in _moved.MODULES[old]]
    with pytest.warns(FutureWarning) as caught:
        module = importlib.import_module(f"erprm_trl.{old}")
    messages = [str(warning.message) for warning in caught if f"erprm_trl.{old} " in str(warning.message)]
    assert len(messages) == 1 and all(home in messages[0] for home in homes)
    names = {name: home for home in reversed(homes) for name in own_names(importlib.import_module(home))}
    assert names
    for name, home in names.items():
        assert getattr(module, name) is getattr(importlib.import_module(home), name)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


@pytest.mark.parametrize(
    ("old", "former", "current"),
    [
        ("reward_model.finite_training", "FiniteTraining", "training.nonfinite.StopOnNonFinite"),
        ("reward_model.whole_checkpoints", "WholeCheckpoints", "training.checkpoints.CrashSafeCheckpoints"),
        ("policy.live_policy", "LivePolicy", "policy.raft.policy_sampler.PolicySampler"),
        ("rollouts.lazy_sequence", "LazySequence", "io.on_disk_sequence.OnDiskSequence"),
    ],
)
def test_a_renamed_class_has_its_old_name_at_its_old_path(old, former, current):
    assert _moved.RENAMED[former] == current.rpartition(".")[2]
    module, _, name = current.rpartition(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        old_module = importlib.import_module(f"erprm_trl.{old}")
    assert getattr(old_module, former) is getattr(importlib.import_module(f"erprm_trl.{module}"), name)


def test_a_module_in_a_folder_that_moved(fresh):
    with pytest.warns(FutureWarning, match="training.tracking.trackers"):
        import erprm_trl.tracking.trackers
    from erprm_trl.training.tracking import trackers

    assert erprm_trl.tracking.trackers.Trackers is trackers.Trackers


@pytest.mark.parametrize("package", _moved.NAMES)
def test_a_package_still_exports_names_that_moved_to_another_package(package):
    for name, home in _moved.NAMES[package].items():
        exported = getattr(importlib.import_module(f"erprm_trl.{package}"), name)
        assert exported is getattr(importlib.import_module(f"erprm_trl.{home}"), name)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = importlib.import_module(f"erprm_trl.{package}").no_such_name


def test_no_old_path_exists_and_every_new_path_exists():
    for old, homes in _moved.MODULES.items():
        for home in homes:
            assert inspect.ismodule(importlib.import_module(f"erprm_trl.{home}"))
        path = PACKAGE.joinpath(*old.split("."))
        assert not path.with_suffix(".py").exists() and not (path / "__init__.py").exists(), f"{old} is there again"


@pytest.mark.slow("starts a process that imports every module")
def test_the_package_itself_imports_no_old_path():
    modules = [
        ".".join(["erprm_trl", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
        for path in sorted(PACKAGE.rglob("*.py"))
    ]
    # Only warnings of this package are errors, because other packages may warn too.
    code = f"""
import importlib, warnings
warnings.filterwarnings("error", message=r"erprm_trl\\..* moved to", category=FutureWarning)
for name in {modules}:
    importlib.import_module(name)
print("all")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "all", result.stderr[-2000:]
