"""What pyproject.toml promises is there."""

from __future__ import annotations

import importlib
import os
import tomllib
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


def test_the_command_is_netbox() -> None:
    assert PROJECT["scripts"] == {"netbox": "netbox.cli.main:main"}
    assert PROJECT["entry-points"]["pytest11"] == {"netbox": "netbox.pytest_plugin"}


@pytest.mark.parametrize("target", [*PROJECT["scripts"].values(), *PROJECT["entry-points"]["pytest11"].values()])
def test_entry_points_lead_somewhere(target: str) -> None:
    module, _, name = target.partition(":")
    found = importlib.import_module(module)
    assert not name or callable(getattr(found, name))


def test_files_that_the_package_names_exist() -> None:
    for name in (PROJECT["readme"], *PROJECT["license-files"], "CHANGELOG.md", "netbox/py.typed", "policies/seccomp/default.json"):
        assert (CHECKOUT / name).is_file(), name


@pytest.mark.parametrize("name", ["scripts/quickstart", "scripts/test", "scripts/test-vm", "scripts/check", ".ci/run"])
def test_scripts_can_be_executed(name: str) -> None:
    assert os.access(CHECKOUT / name, os.X_OK)
    assert (CHECKOUT / name).read_text().startswith("#!")


def test_ci_runs_the_tests_and_nothing_else() -> None:
    lines = (CHECKOUT / ".ci" / "run").read_text().splitlines()
    assert lines == ["#!/bin/sh", 'exec "$(dirname "$0")/../scripts/test"']
