"""A release: one home for the version, metadata, tested bounds of requirements, and the pages for contributors and for
coding assistants."""

import ast
import configparser
import importlib
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import erprm_trl


ROOT = Path(__file__).parents[1]
SKILL = ROOT / "erprm_trl" / ".agents" / "skills" / "erprm-trl" / "SKILL.md"


@pytest.fixture(scope="module")
def setup():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def lines(text):
    """The values of a list in setup.cfg."""
    return [line for line in text.split("\n") if line]


# One home for the version: erprm_trl.__version__


def test_the_version_has_one_home(setup):
    assert setup["metadata"]["version"] == "attr: erprm_trl.__version__"
    assert "version" not in tomllib.loads((ROOT / "pyproject.toml").read_text()).get("project", {})
    tree = ast.parse((ROOT / "erprm_trl" / "__init__.py").read_text(encoding="utf-8"))
    values = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    assert values == [erprm_trl.__version__]  # a literal: setuptools reads it without importing the package


def test_the_citation_has_the_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(citation)
    assert citation["version"] == erprm_trl.__version__
    paper = citation["references"][0]
    assert paper["url"].endswith("2412.11006") and len(paper["authors"]) == 9
    assert f"## [{citation['version']}] - {citation['date-released']}" in changelog()


def changelog():
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_changelog_describes_the_version():
    text = changelog()
    versions = re.findall(r"^## \[(\d[^\]]*)\] - \d{4}-\d{2}-\d{2}$", text, re.MULTILINE)
    assert versions[0] == erprm_trl.__version__
    assert versions == sorted(versions, key=Version, reverse=True)
    sections = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert sections <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert all(f"\n[{version}]: http" in text for version in [*versions, "Unreleased"])


def test_the_metadata_names_what_is_tested(setup):
    metadata = setup["metadata"]
    classifiers = lines(metadata["classifiers"])
    assert {"Typing :: Typed", "Operating System :: POSIX :: Linux"} <= set(classifiers)
    assert "py.typed" in setup["options.package_data"]["erprm_trl"] and (ROOT / "erprm_trl" / "py.typed").is_file()
    minor = [int(line.rpartition(".")[2]) for line in classifiers if re.fullmatch(r"Programming .* 3\.\d+", line)]
    assert minor == [11, 12, 13] and setup["options"]["python_requires"] == f">=3.{minor[0]}"
    urls = dict(re.split(r"\s*=\s*", line, maxsplit=1) for line in lines(metadata["project_urls"]))
    assert {"Source", "Documentation", "Changelog", "Issues"} <= set(urls)
    assert all(url.startswith("https://") for url in urls.values())


# Bounds of the requirements


def test_the_oldest_versions_that_are_tested_are_the_lower_bounds(setup):
    """`make test-oldest` installs constraints-oldest.txt."""
    extras = setup["options.extras_require"]
    requirements = [
        Requirement(line)
        for text in (setup["options"]["install_requires"], *(extras[name] for name in ("deepspeed", "wandb", "serve")))
        for line in lines(text)
    ]
    bounds = {
        requirement.name.lower(): bound.version
        for requirement in requirements
        for bound in requirement.specifier
        if bound.operator == ">="
    }
    tested = dict(line.split("==") for line in (ROOT / "constraints-oldest.txt").read_text().lower().split())
    assert {name: Version(version) for name, version in bounds.items()} == {
        name: Version(version) for name, version in tested.items()
    }
    assert all(requirement.specifier for requirement in requirements if requirement.name != "ninja")


# The page for coding assistants


def test_the_skill_has_the_fields_by_which_assistants_find_it():
    _, front, body = SKILL.read_text(encoding="utf-8").split("---\n", 2)
    fields = yaml.safe_load(front)
    assert fields["name"] == SKILL.parent.name == "erprm-trl" and fields["license"] == "Apache-2.0"
    assert 50 < len(fields["description"]) <= 1024  # longer ones are cut off
    assert len(body.splitlines()) < 500


def test_the_skills_code_imports_and_names_what_there_is():
    """`tests/docs` runs its blocks."""
    blocks = re.findall(r"^```python\n(.*?)^```$", SKILL.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), block
    names = set(re.findall(r"`(\w+)`", SKILL.read_text(encoding="utf-8").partition("## Train")[0]))
    offered = {
        name for name in names if name[0].isupper() and name not in ("TrainingArguments", "PRMTrainer", "DPOTrainer")
    }
    assert len(offered) > 8 and offered <= set(erprm_trl.__all__)


def test_paths_and_targets_that_the_contributors_page_names_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:tests|recipes|docs|erprm_trl)/[\w./-]*[\w/])`", text)
    paths += re.findall(r"\]\(((?!http)[^)#]+)\)", text)
    assert len(paths) > 20 and [path for path in paths if not (ROOT / path).exists()] == []
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = [name for line in re.findall(r"\bmake ((?:[a-z][\w-]* ?)+)", text) for name in line.split()]
    assert len(named) > 8 and [name for name in named if name not in targets] == []
