"""Everything is in pyproject.toml but one step: policies/ becomes the data directory netbox/_policies of a wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithPolicies(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # a checkout is read in place
            shutil.copytree("policies", Path(self.build_lib, "netbox", "_policies"), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithPolicies})
