"""Names the packages. Everything else is in setup.cfg."""

from setuptools import find_packages, setup


# Folders that are next to erprm_trl/ in the repository, and inside it once installed.
DATA = ["erprm_trl.recipes", "erprm_trl.accelerate_configs"]

if __name__ == "__main__":
    setup(packages=[*find_packages(include=["erprm_trl*"]), *DATA])
