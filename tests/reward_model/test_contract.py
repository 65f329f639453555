"""The reward model's modules: no import cycles, no checks of a scorer's class, and the import paths of version 0.1."""

import ast
import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import erprm_trl
from erprm_trl import PRMFormat, StepScorer
from erprm_trl.reward_model import scoring


PACKAGE = Path(erprm_trl.__file__).parent
REWARD_MODEL = PACKAGE / "reward_model"
SCORER_CLASSES = {
    *("RemoteStepScorer", "ShardedStepScorer"),
    *("RemoteBackend", "ShardedBackend", "LocalBackend", "ImplicitBackend"),
}


def imports(path, type_checking=True):
    """Modules of this package that a file imports anywhere, by their names after `erprm_trl.`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = path.relative_to(PACKAGE.parent).parts[:-1]
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not type_checking:
            skipped |= set(ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in skipped:
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            for name in [module, *(f"{module}.{alias.name}" for alias in node.names)]:
                if name.startswith("erprm_trl."):
                    yield name.removeprefix("erprm_trl.")


def checks_of_class(source):
    """Lines that check a scorer's class or access its model."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
            asked = {getattr(part, "id", getattr(part, "attr", None)) for part in ast.walk(node.args[1])}
            if node.func.id in ("isinstance", "issubclass") and asked & SCORER_CLASSES:
                yield node.lineno
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else None
            if node.func.id in ("getattr", "hasattr") and name == "model" and "scorer" in ast.unparse(node.args[0]):
                yield node.lineno
        elif isinstance(node, ast.Attribute) and node.attr == "model":
            if ast.unparse(node.value).rpartition(".")[2] in ("scorer", "_scorer", "reward_model"):
                yield node.lineno


@pytest.mark.parametrize(
    "source",
    [
        "isinstance(x, RemoteStepScorer)",
        "isinstance(x, (str, remote.RemoteBackend))",
        "issubclass(type(x), ShardedStepScorer)",
        'getattr(scorer, "model", None)',
        'hasattr(self.scorer, "model")',
        "self.scorer.model.parameters()",
        "reward_model.model",
    ],
)
def test_checks_of_a_scorers_class_are_found(source):
    assert list(checks_of_class(source))


def test_no_caller_checks_a_scorers_class():
    assert not list(checks_of_class("isinstance(x, StepScorer)\nscorer.weights\nself.model\ngetattr(x, 'model')"))
    files = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "recipes").glob("*.py")]
    asking = {str(path): list(checks_of_class(path.read_text(encoding="utf-8"))) for path in files}
    assert len(files) > 90 and not {path: lines for path, lines in asking.items() if lines}


def test_training_and_scoring_do_not_import_each_other():
    for path in (REWARD_MODEL / "trainer").glob("*.py"):
        assert not [name for name in imports(path) if name.startswith("reward_model.scoring")], path
    for path in (REWARD_MODEL / "scoring").glob("*.py"):
        assert not [name for name in imports(path) if name.startswith("reward_model.trainer")], path
    for path in REWARD_MODEL.glob("*.py"):
        rooms = ("reward_model.scoring", "reward_model.trainer")
        assert path.name == "__init__.py" or not [name for name in imports(path) if name.startswith(rooms)], path
    assert not [name for name in imports(REWARD_MODEL / "prm_format.py") if "http" in name]
    assert not list(imports(REWARD_MODEL / "presets.py"))


def test_reward_model_files_have_no_import_cycle():
    graph = {}
    for path in REWARD_MODEL.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = set(imports(path, type_checking=False))
    graph = {name: {other for other in others if other in graph} - {name} for name, others in graph.items()}
    assert len(graph) > 20 and "reward_model.prm_format" in graph["reward_model.scoring.loading"]
    while leaves := {name for name, others in graph.items() if not others}:
        graph = {name: others - leaves for name, others in graph.items() if name not in leaves}
    assert not graph


def test_no_relative_import_is_inside_a_function():
    for path in REWARD_MODEL.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                inside = [node for node in ast.walk(function) if isinstance(node, ast.ImportFrom) and node.level]
                assert not inside, (path, function.name)


# Import paths of 0.1

OLD_PATHS = [
    ("reward_model.remote_scoring", "RemoteStepScorer", "reward_model.scoring.renamed"),
    ("reward_model.remote_scoring", "SCORING", "reward_model.scoring.remote"),
    ("reward_model.remote_scoring", "refuse_loading", "reward_model.scoring.remote"),
    ("reward_model.sharded_scoring", "ShardedStepScorer", "reward_model.scoring.renamed"),
    ("reward_model.sharded_scoring", "check_sharding", "reward_model.scoring.sharded"),
    ("reward_model.scoring", "StepScorer", "reward_model.scoring.scorer"),
    ("reward_model.scoring", "solution_scores", "reward_model.scoring.scorer"),
    ("reward_model.scoring_server", "scoring_app", "reward_model.scoring.server"),
    ("reward_model.scoring_connections", "UVICORN", "reward_model.scoring.server"),
    ("reward_model.implicit_scores", "implicit_log_odds", "reward_model.scoring.implicit"),
    ("reward_model.model_loading", "load_reward_model", "reward_model.scoring.loading"),
    ("reward_model.model_loading", "load_reference_model", "reward_model.scoring.loading"),
    ("reward_model.model_loading", "unpartitioned", "reward_model.scoring.loading"),
    ("reward_model.model_loading", "adapter_config", "io.adapters"),
    ("reward_model.model_setup", "AUTO_MODELS", "reward_model.heads"),
    ("reward_model.model_setup", "VALUE_HEAD_NAMES", "reward_model.heads"),
    ("reward_model.model_setup", "prepare_model", "reward_model.trainer.model_setup"),
    ("reward_model.format_presets", "PRESETS", "reward_model.presets"),
    ("reward_model.format_presets", "MODELS", "reward_model.presets"),
    ("reward_model.format_presets", "preset_of", "reward_model.presets"),
    ("rollouts.endpoint_client", "is_url", "io.config_values"),
    ("rollouts.endpoint_client", "EndpointClient", "io.http_client"),
]


@pytest.mark.parametrize(("old", "name", "home"), OLD_PATHS)
def test_names_are_found_at_their_old_paths(old, name, home):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        module = importlib.import_module(f"erprm_trl.{old}")
    assert getattr(module, name) is getattr(importlib.import_module(f"erprm_trl.{home}"), name)


def test_the_old_scorer_classes_build_scorers_over_backends(monkeypatch):
    from accelerate import Accelerator
    from serving import HeldScorer, serving
    from step_fakes import DIAL_FORMAT
    from zoo import tiny_llama, word_level

    from erprm_trl.reward_model import RemoteStepScorer
    from erprm_trl.reward_model.scoring import sharded
    from erprm_trl.reward_model.scoring.renamed import ShardedStepScorer
    from erprm_trl.reward_model.scoring.server import scoring_app

    with serving(scoring_app(HeldScorer())) as url:
        remote = RemoteStepScorer(url, max_concurrency=3, request_timeout=60.0, retry_wait=0.5)
        assert isinstance(remote, StepScorer) and isinstance(remote.backend, scoring.RemoteBackend)
        client = remote.backend.client
        assert (client.max_concurrency, client.request_timeout, client.retry_wait) == (3, 60.0, 0.5)
        assert len(remote.score(["q"], [["a", "b"]])[0]) == 2
        with pytest.raises(TypeError, match="batch_size"):
            RemoteStepScorer(url, batch_size=3)
    monkeypatch.setattr(sharded, "prepare_deepspeed", lambda model, accelerator: model)
    parts = (tiny_llama(46), word_level(), DIAL_FORMAT)
    split = ShardedStepScorer(*parts, Accelerator(cpu=True), batch_size=2, max_batch_tokens=99)
    assert isinstance(split, StepScorer) and isinstance(split.backend, scoring.ShardedBackend)
    assert (split.batch_size, split.max_batch_tokens) == (2, 99)
    asked = (["Tom ?"], [["answer 2"]])
    assert split.score(*asked) == StepScorer(*parts).score(*asked)


def test_presets_are_plain_dictionaries():
    from erprm_trl.reward_model.presets import PRESETS

    assert all(type(fields) is dict for fields in PRESETS.values())
    assert PRMFormat.preset("trl-prm") == PRMFormat(
        separator="\n", prompt_template="{bos_token}{question}", head="token", num_labels=2
    )


# Packages that only the scoring server needs


@pytest.mark.slow("starts a process without the package")
@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_only_the_server_needs_starlette_and_uvicorn(package):
    code = f"""
import sys
sys.modules[{package!r}] = None
from erprm_trl import reward_model
from erprm_trl.reward_model import scoring
for package in (reward_model, scoring):
    assert all(getattr(package, name) for name in package.__all__)
try:
    import erprm_trl.reward_model.scoring.server
except ImportError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == f"A scoring server needs {package}: pip install 'erprm_trl[serve]'.", result.stderr
