"""Tests the contents of the wheel: setup.cfg names every data file of the package, every pattern matches a file, and
the recipes and the configurations of accelerate are inside the package."""

import configparser
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
OUTSIDE = {"erprm_trl.recipes": "recipes", "erprm_trl.accelerate_configs": "accelerate_configs"}


def read_setup():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return setup


def lines_of(text):
    return dict(map(str.strip, line.split("=")) for line in text.strip().splitlines() if "=" in line)


def folder_of(package):
    return ROOT.joinpath(OUTSIDE[package]) if package in OUTSIDE else ROOT.joinpath(*package.split("."))


def test_the_wheel_contains_all_data_files():
    assert lines_of(read_setup()["options"]["package_dir"]) == OUTSIDE
    named = set()
    for package, patterns in read_setup()["options.package_data"].items():
        for pattern in patterns.replace(",", " ").split():
            matches = {path for path in folder_of(package).glob(pattern) if path.is_file()}
            assert matches, f"{package}: no file matches {pattern}"
            named |= matches
    data = {
        path
        for path in (ROOT / "erprm_trl").rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    data |= {path for folder in OUTSIDE.values() for path in (ROOT / folder).rglob("*.yaml")}
    assert data == named


def test_every_folder_of_the_package_is_a_package():
    folders = {path.parent for path in (ROOT / "erprm_trl").rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]
    assert set(runpy.run_path(str(ROOT / "setup.py"))["DATA"]) == set(OUTSIDE)


def test_the_command_is_installed():
    assert lines_of(read_setup()["options.entry_points"]["console_scripts"]) == {"erprm": "erprm_trl.cli:main"}
    from erprm_trl.cli import main

    assert callable(main)


@pytest.mark.slow("builds a wheel and runs what is in it")
def test_the_command_works_from_a_wheel(tmp_path):
    """Built from a copy, because setuptools writes into the folder that it builds."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    ).stdout.splitlines()
    if not files:
        pytest.skip("not in a git checkout")
    for name in files:
        if not name.startswith(("tests/", "docs/")) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    build = [sys.executable, "-m", "pip", "wheel", ".", *options, "--wheel-dir", str(tmp_path)]
    result = subprocess.run(build, cwd=source, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    shipped = {path.relative_to(site / "erprm_trl").as_posix() for path in (site / "erprm_trl").rglob("*.yaml")}
    data = [path for name in OUTSIDE.values() for path in (ROOT / name).rglob("*.yaml")]
    assert shipped == {path.relative_to(ROOT).as_posix() for path in data}
    code = (
        "import erprm_trl\n"
        "from erprm_trl.scripts.recipes import find_accelerate_config, find_recipe, read_config\n"
        "from pathlib import Path\n"
        f"site = Path({str(site)!r})\n"
        "assert Path(erprm_trl.__file__).is_relative_to(site)\n"
        "assert find_accelerate_config('zero2').is_relative_to(site)\n"
        "recipe = find_recipe('dial', 'collect')\n"
        "assert recipe.is_relative_to(site)\n"
        "assert Path(read_config(recipe)['model_name_or_path'], 'model.safetensors').is_relative_to(site)\n"
    )
    environment = {"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin"}
    result = subprocess.run([sys.executable, "-c", code], cwd=empty, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    command = [sys.executable, "-m", "erprm_trl", "memory", "--sizes", *"10 8 2 2 2 4 16".split()]
    result = subprocess.run(command, cwd=empty, capture_output=True, text=True, env=environment)
    assert result.returncode == 0 and "total" in result.stdout, result.stderr[-2000:]
