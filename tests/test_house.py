"""The layering of the folders, lazy imports, and no code from data."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "erprm_trl"
STAGES = ["functional", "tracking", "rollouts", "reward_model", "selection", "policy", "report", "dial"]
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported_stages(path):
    """Stages that a module imports from, by absolute or relative imports."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            names = [".".join([*base, *([node.module] if node.module else [])])]
        for name in names:
            parts = name.split(".")
            if parts[0] == "erprm_trl" and len(parts) > 1 and parts[1] in STAGES:
                yield parts[1]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_from_earlier_stages_only(path):
    stage = path.relative_to(PACKAGE).parts[0]
    if stage in STAGES:
        for other in imported_stages(path):
            assert STAGES.index(other) <= STAGES.index(stage), f"{stage} imports from the later stage {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_trl_internals_are_imported_in_one_file(path):
    source = path.read_text(encoding="utf-8")
    assert path.name == "_trl.py" or not re.search(r"from trl\.|from trl import .*\b_", source)


@pytest.mark.parametrize("path", sorted((PACKAGE / "functional").glob("*.py")), ids=lambda path: path.name)
def test_functional_imports_torch_only(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        roots = []
        if isinstance(node, ast.Import):
            roots = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            roots = [node.module.split(".")[0]]
        assert set(roots) <= {"torch", "math", "collections"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_public_things_have_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "no module docstring"
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


UNPICKLING = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
RUNS_TEXT = {"eval", "exec", "compile", "__import__", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system"}
SAID = {"trust_remote_code": True, "allow_pickle": True, "weights_only": False, "shell": True}


def code_from_data(source):
    """Where a module could run what it reads: unpickling, evaluating, loading YAML objects or a repository's code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None) or ""
            names = {f"{module}.{alias.name}".strip(".") for alias in node.names} - {"pickle.UnpicklingError"}
            if any(name.split(".")[0] in UNPICKLING or name == "torch.load" for name in names):
                yield node.lineno
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            said = {one.arg: one.value.value for one in node.keywords if isinstance(one.value, ast.Constant)}
            if name in RUNS_TEXT or any(said.get(key, not value) is value for key, value in SAID.items()):
                yield node.lineno
            if name == "torch.load" and said.get("weights_only") is not True:
                yield node.lineno
        elif isinstance(node, ast.Dict):  # settings that are passed on
            for key, value in zip(node.keys, node.values, strict=True):
                pair = [one.value if isinstance(one, ast.Constant) else None for one in (key, value)]
                if pair[0] in SAID and pair[1] is SAID[pair[0]]:
                    yield node.lineno
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Constant):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(
                SAID.get(ast.unparse(target)) is node.value.value for target in targets if node.value.value is not None
            ):
                yield node.lineno


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch.load",
        "from torch import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "eval(text)",
        "exec(text)",
        "yaml.load(file, Loader)",
        "f(trust_remote_code=True)",
        "{'trust_remote_code': True}",
        "trust_remote_code: bool = True",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_code_from_data_is_found(source):
    assert list(code_from_data(source))


def test_nothing_runs_code_from_data():
    allowed = "torch.load(path, weights_only=True)\nmodel.eval()\nre.compile(x)\nf(trust_remote_code=given)"
    assert not list(code_from_data("from pickle import UnpicklingError"))
    assert not list(code_from_data(allowed))
    files = [*MODULES, *(ROOT / "recipes").rglob("*.py"), *(ROOT / "tests" / "benchmarks").glob("*.py")]
    found = {str(file.relative_to(ROOT)): list(code_from_data(file.read_text(encoding="utf-8"))) for file in files}
    assert len(files) > 100 and not {name: lines for name, lines in found.items() if lines}


@pytest.mark.slow("starts a process")
def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, erprm_trl, erprm_trl.rollouts, erprm_trl.reward_model, erprm_trl.selection, erprm_trl.policy\n"
        "import erprm_trl.dial, erprm_trl.training.tracking\n"
        "print(sorted({'torch', 'transformers', 'trl', 'datasets', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.slow("starts a process that imports every recipe")
def test_recipes_answer_help_without_what_they_run():
    """Those with a configuration of `transformers` import its module, which imports torch; no trainer, no data."""
    code = """
import runpy, sys
from pathlib import Path
heavy = {"torch", "datasets", "peft", "matplotlib", "uvicorn", "wandb", "pandas"}
for path in sorted(Path(sys.argv[1]).glob("*.py")):
    if not path.name.startswith("train_"):
        runpy.run_path(str(path))
        assert not heavy & set(sys.modules), (path.name, heavy & set(sys.modules))
from erprm_trl import ERPRMConfig, RAFTConfig, StepGRPOConfig, StepPPOConfig
print(sorted({"datasets", "wandb", "pandas", "trl.trainer.base_trainer", "transformers.trainer"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code, ROOT / "recipes"], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr[-500:]


def test_everything_offered_can_be_imported():
    import importlib.util

    import erprm_trl
    from erprm_trl import dial, policy, report, reward_model, rollouts, selection
    from erprm_trl.training import tracking

    for package in (erprm_trl, tracking, rollouts, reward_model, selection, policy, report, dial):
        for name in package.__all__:
            assert getattr(package, name) is not None
            # Imported by its own name, a module would take the place of what is offered.
            assert importlib.util.find_spec(f"{package.__name__}.{name}") is None, f"{name} is a module's name too"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = erprm_trl.nothing


def test_the_dependency_ranges_hold_the_tested_versions():
    import configparser

    from packaging.requirements import Requirement

    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    ranges = [Requirement(line) for line in setup["options"]["install_requires"].split("\n") if line]
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().lower().split())
    extras = dict(setup["options.extras_require"])
    del extras["vllm"]  # in a venv of its own, with its version in the Makefile
    ranges += [Requirement(line) for lines in extras.values() for line in lines.split("\n") if line]
    for requirement in ranges:
        assert requirement.specifier.contains(tested[requirement.name]), requirement
    assert tested["torch"] == "2.13.0"
