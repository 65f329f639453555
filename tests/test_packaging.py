"""What a wheel holds: setup.cfg names every data file of the package, and every pattern matches one."""

import configparser
from pathlib import Path


ROOT = Path(__file__).parents[1]


def test_data_files_travel_in_the_wheel():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    named = set()
    for package, patterns in setup["options.package_data"].items():
        folder = ROOT.joinpath(*package.split("."))
        for pattern in patterns.split():
            matches = {path for path in folder.glob(pattern) if path.is_file()}
            assert matches, f"{package}: no file matches {pattern}"
            named |= matches
    data = {
        path
        for path in (ROOT / "erprm_trl").rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert data == named


def test_every_folder_of_the_package_is_a_package():
    folders = {path.parent for path in (ROOT / "erprm_trl").rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]
