"""Checks rules for all files: imports between folders, lengths, lazy imports, places of tests, no code from data."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "erprm_trl"
MODULES = sorted(PACKAGE.rglob("*.py"))

# The folders that each folder may import. A subfolder in this table has its own rule.
BASE = {"io", "functional", "steps", "conversations", "reasoning"}
CONTRACT = {"reward_model", *BASE}
POLICY = {"policy", "reward_model.scoring", "training", "rollouts", "_trl", *CONTRACT}
MAY_IMPORT = {
    "io": set(),
    "functional": set(),
    "memory": set(),
    "reasoning": set(),
    "steps": {"reasoning"},
    "conversations": {"steps", "reasoning"},
    "_trl": set(),
    "training": {"io", "functional"},
    "rollouts": {"_trl", *BASE},
    "reward_model": BASE,
    "reward_model.trainer": {"training", "rollouts", "_trl", *CONTRACT},
    # Scorers without a reward model sample and grade texts, and read reference answers.
    "reward_model.scoring": {"_trl", "rollouts", *CONTRACT},
    "selection": {"reward_model.scoring", "rollouts", *BASE},
    "policy": POLICY,
    "policy.online": POLICY,
    # RAFT continues the training of its reward model between rounds.
    "policy.raft": {"reward_model.trainer", *POLICY},
}
# These may import anything, and no other folder imports them.
ON_TOP = {"report", "dial", "scripts", "cli", "__main__"}
EVERYWHERE = {"_lazy", "_moved"}  # every package needs these to export its names
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 450, 60


def module_name(path):
    """`rollouts.collect` for erprm_trl/rollouts/collect.py, `rollouts` for its `__init__`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


PATHS = {module_name(path): path for path in MODULES}


class Import(NamedTuple):
    module: str  # relative to erprm_trl, "" for erprm_trl itself
    line: int
    in_function: bool
    relative: bool


def own_imports(path, *, source=None):
    """The imports of this package in a module, except imports for type checkers only."""
    package = list(path.relative_to(PACKAGE).parts[:-1])

    def imported(node, in_function):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            children = node.orelse
        else:
            children = ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            if node.level:
                base = [*package[: len(package) - node.level + 1], *base]
            elif base[0] == "erprm_trl":
                base = base[1:]
            else:
                base = None
            if base is not None:
                for alias in node.names:
                    whole = ".".join([*base, alias.name])
                    module = whole if whole in PATHS else ".".join(base)
                    yield Import(module, node.lineno, in_function, bool(node.level))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "erprm_trl":
                    yield Import(alias.name.partition(".")[2], node.lineno, in_function, False)
        for child in children:
            yield from imported(child, in_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))

    return list(imported(ast.parse(source or path.read_text(encoding="utf-8")), False))


def folder(module):
    """The key of [`MAY_IMPORT`] that applies to a module."""
    parts = module.split(".")
    return ".".join(parts[:2]) if ".".join(parts[:2]) in MAY_IMPORT else parts[0]


def forbidden(path, *, source=None):
    """The imports of a module that the rule of its folder does not allow."""
    own = folder(module_name(path))
    if own in ON_TOP or own == "":
        return []
    allowed = MAY_IMPORT.get(own, set()) | EVERYWHERE | {own}
    return [
        f"line {entry.line}: {entry.module}"
        for entry in own_imports(path, source=source)
        if folder(entry.module) not in allowed
    ]


each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))


def test_every_folder_has_a_rule():
    folders = {folder(module) for module in PATHS} - ON_TOP - EVERYWHERE - {""}
    assert folders <= set(MAY_IMPORT), f"say in MAY_IMPORT what {folders - set(MAY_IMPORT)} may import"


@each_module
def test_a_module_only_imports_what_its_folder_may_import(path):
    assert not forbidden(path)


@pytest.mark.parametrize(
    ("file", "source", "is_allowed"),
    [
        ("io/redaction.py", "from ..steps import clean_steps", False),
        ("functional/masked.py", "from ..io.redaction import redacted", False),
        ("training/nonfinite.py", "from ..rollouts import collect", False),
        ("rollouts/collect.py", "from ..reward_model import PRMFormat", False),
        ("rollouts/collect.py", "from erprm_trl.selection import best_of_n", False),
        ("rollouts/collect.py", "import erprm_trl.selection.voting", False),
        ("rollouts/collect.py", "def f():\n    from ..policy import guards", False),
        ("rollouts/collect.py", "if TYPE_CHECKING:\n    from ..policy import guards", True),
        ("reward_model/encoding.py", "from .scoring.scorer import StepScorer", False),
        ("reward_model/trainer/metrics.py", "from ..scoring.scorer import StepScorer", False),
        ("reward_model/scoring/scorer.py", "from ..trainer.metrics import StepRecords", False),
        ("reward_model/scoring/monte_carlo.py", "from ...rollouts.sampling.base import Sampler", True),
        ("reward_model/trainer/metrics.py", "from ...rollouts.dataset import RolloutDataset", True),
        ("selection/voting.py", "from ..reward_model.scoring.scorer import StepScorer", True),
        ("selection/voting.py", "from ..policy import guards", False),
        ("policy/online/tracking.py", "from ..raft.rounds import choose", False),
        ("policy/raft/rounds.py", "from ..online.step_config import StepGRPOConfig", False),
        ("policy/raft/rounds.py", "from .. import guards", True),
        ("policy/raft/rounds.py", "from ...reward_model.trainer import ERPRMTrainer", True),
        ("policy/online/tracking.py", "from ...reward_model.trainer import ERPRMTrainer", False),
        ("policy/guards.py", "from ..report.page import write_report", False),
        ("report/page.py", "from ..policy import guards", True),
        ("selection/voting.py", "from ..scripts import console", False),
        ("policy/guards.py", "from ..scripts.console import stage", False),
        ("io/paths.py", "from .. import cli", False),
        ("dial/experiments/chain.py", "from ...scripts import console", True),
        ("scripts/train.py", "from ..report import write_report", True),
    ],
)
def test_the_rule_finds_imports(file, source, is_allowed):
    assert (not forbidden(PACKAGE / file, source=source)) == is_allowed


def test_scorers_use_only_the_sampling_the_grading_and_the_questions_of_rollouts():
    imported = {
        entry.module
        for path in (PACKAGE / "reward_model" / "scoring").glob("*.py")
        for entry in own_imports(path)
        if folder(entry.module) == "rollouts"
    }
    allowed = ("rollouts.sampling.", "rollouts.grading.", "rollouts.questions")
    assert imported and [module for module in imported if not module.startswith(allowed)] == []


def circles(graph):
    """The modules that import themselves, directly or through other modules."""
    reach = {module: set(others) for module, others in graph.items()}
    changed = True
    while changed:
        changed = False
        for others in reach.values():
            more = set().union(*(reach.get(other, set()) for other in others)) - others
            if more:
                others |= more
                changed = True
    return sorted(module for module, others in reach.items() if module in others)


def test_no_circle_between_files():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["b", "c"]
    graph = {
        module: {entry.module for entry in own_imports(path) if entry.module in PATHS}
        for module, path in PATHS.items()
    }
    assert not circles(graph)


@each_module
def test_no_relative_import_is_inside_a_function(path):
    """Third-party imports may be inside functions. Imports of this package need not be, because packages export their
    names lazily."""
    lines = [
        f"line {entry.line}: {entry.module}" for entry in own_imports(path) if entry.in_function and entry.relative
    ]
    assert not lines


@each_module
def test_a_module_docstring_names_no_sibling_file(path):
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert not re.findall(r"[\w/]+\.py\b", docstring), "names a sibling file"


@each_module
def test_modules_and_functions_have_a_readable_length(path):
    """Docstrings do not count for the length of a function. Constructors, which assign their arguments, may be
    longer."""
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MOST_LINES
    assert path.name in ("__init__.py", "__main__.py") or len(source.splitlines()) >= 15
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name != "__init__":
            docstring = node.body[0] if ast.get_docstring(node) is not None else None
            length = node.end_lineno - node.lineno + 1
            length -= docstring.end_lineno - docstring.lineno + 1 if docstring else 0
            assert length <= MOST_LINES_OF_A_FUNCTION, f"{node.name} has {length} lines"


def modules_tested_elsewhere():
    """The modules whose tests are in another file, and these files, from the table in tests/README.md."""
    text = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (`[^|]*`) \| (`[^|]*`)[^|]* \|$", text, re.MULTILINE)
    return {
        name: re.findall(r"`([^`]+)`", places) for names, places in table for name in re.findall(r"`([^`]+)`", names)
    }


def test_every_module_with_code_has_tests_at_the_mirrored_place_or_a_line_in_the_table():
    elsewhere = modules_tested_elsewhere()
    assert len(elsewhere) > 10
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.name == "__init__.py" or not any(
            isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in tree.body
        ):
            continue
        name = path.relative_to(PACKAGE)
        mirrored = ROOT / "tests" / name.parent / f"test_{name.stem.lstrip('_')}.py"
        assert mirrored.is_file() or str(name) in elsewhere, (
            f"{name}: expected {mirrored}, or a line in tests/README.md"
        )
    for name, places in elsewhere.items():
        assert (PACKAGE / name).is_file(), f"tests/README.md names {name}, which does not exist"
        for place in places:
            assert (ROOT / "tests" / place).is_file(), f"tests/README.md names {place}, which does not exist"


def test_a_test_without_a_marker_starts_no_process():
    with pytest.raises(pytest.fail.Exception, match="Mark it"):
        subprocess.run([sys.executable, "-c", ""], check=True)
    with pytest.raises(pytest.fail.Exception, match="Mark it"):
        subprocess.Popen("torchrun --nproc_per_node=2 train.py", shell=True)


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
UNSAFE = {"trust_remote_code": True, "allow_pickle": True, "weights_only": False, "shell": True}


def code_from_data(source):
    """Lines at which a module could run data as code: unpickling, evaluating, loading YAML objects or remote code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None) or ""
            names = {f"{module}.{alias.name}".strip(".") for alias in node.names} - {"pickle.UnpicklingError"}
            if any(name.split(".")[0] in UNPICKLING or name == "torch.load" for name in names):
                yield node.lineno
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            options = {
                option.arg: option.value.value for option in node.keywords if isinstance(option.value, ast.Constant)
            }
            if name in RUNS_TEXT or any(options.get(key, not value) is value for key, value in UNSAFE.items()):
                yield node.lineno
            if name == "torch.load" and options.get("weights_only") is not True:
                yield node.lineno
        elif isinstance(node, ast.Dict):  # options that are passed on
            for key, value in zip(node.keys, node.values, strict=True):
                pair = [item.value if isinstance(item, ast.Constant) else None for item in (key, value)]
                if pair[0] in UNSAFE and pair[1] is UNSAFE[pair[0]]:
                    yield node.lineno
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Constant):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(
                UNSAFE.get(ast.unparse(target)) is node.value.value
                for target in targets
                if node.value.value is not None
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
    allowed = "torch.load(path, weights_only=True)\nmodel.eval()\nre.compile(x)\nf(trust_remote_code=value)"
    assert not list(code_from_data("from pickle import UnpicklingError"))
    assert not list(code_from_data(allowed))
    files = [*MODULES, *(ROOT / "recipes").rglob("*.py"), *(ROOT / "tests" / "benchmarks").rglob("*.py")]
    unsafe = {str(file.relative_to(ROOT)): list(code_from_data(file.read_text(encoding="utf-8"))) for file in files}
    assert len(files) > 100 and not {name: lines for name, lines in unsafe.items() if lines}


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
    code = """
import runpy, sys
from pathlib import Path
heavy = {"torch", "transformers", "datasets", "peft", "matplotlib", "uvicorn", "wandb", "pandas"}
for path in sorted(Path(sys.argv[1]).glob("*.py")):
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
            # A module with the same name would replace the exported object when it is imported.
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


def test_every_mutant_is_a_text_that_stands_once_in_its_module():
    """Finds mutants that no longer apply, because running `benchmarks/mutants.py` takes hours."""
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "tests" / "benchmarks" / "mutants.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    for module, (tests, pairs) in benchmark.MUTANTS.items():
        source = (PACKAGE / module).read_text(encoding="utf-8")
        assert [text for text, _ in pairs if source.count(text) != 1] == [], module
        assert all((ROOT / test).is_file() for test in tests), module


PATH_IN_TEXT = re.compile(r"`((?:tests|recipes|accelerate_configs|erprm_trl)/[\w./-]*[\w/])`")


@pytest.mark.parametrize("name", ["README.md", "recipes/README.md"])
def test_paths_that_the_pages_name_exist(name):
    named = PATH_IN_TEXT.findall((ROOT / name).read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []
