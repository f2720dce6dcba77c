"""The layers: imports run downward only, heavy libraries have one door each, the start path stays light.

Every import statement counts, also one inside a function; what stands under ``if TYPE_CHECKING`` never runs, and does not count for the
light path.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGE = CHECKOUT / "netbox"

# From the bottom up. A module imports its own layer and those before it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("netbox.errors", "netbox.names", "netbox.settings", "netbox.spec", "netbox.parse", "netbox.policies"),
    ("netbox.kernel",),
    ("netbox.state",),
    ("netbox.runtime",),
    ("netbox.network",),
    ("netbox.image",),
    ("netbox.policy",),
    ("netbox.engine",),
    ("netbox.packet",),
    ("netbox.api", "netbox.cli", "netbox.pytest_plugin", "netbox.testing"),
)

# Libraries that cost much or are awkward, and the one place that may import them.
DOORS = {
    "iptc": "netbox.kernel.iptables",
    "pyroute2": "netbox.kernel.netlink",
    "scapy": "netbox.packet",
    "sqlite3": "netbox.state",
    "pyseccomp": "netbox.kernel",
    "zstandard": "netbox.image",
    "rich": "netbox.cli",
    "click": "netbox.cli",
    "pytest": "netbox.pytest_plugin",
}

# Downward, and still forbidden: kernel takes primitive arguments.
FORBIDDEN = {"netbox.kernel": ("netbox.spec", "netbox.settings")}

# The processes around and inside a sandbox, and what they may load before the command runs.
START_PATH = ("netbox.runtime.execute_helper", "netbox.runtime.init", "netbox.runtime.monitor", "netbox.runtime.spawner")
LIGHT = {
    *(
        "__future__",
        "_thread",
        "array",
        "binascii",
        "ctypes",
        "errno",
        "fcntl",
        "gc",
        "grp",
        "json",
        "marshal",
        "os",
        "posix",
        "pwd",
        "resource",
        "select",
    ),
    *("signal", "_signal", "socket", "_socket", "stat", "struct", "sys", "termios", "time", "tty", "zlib"),
}


class Import(NamedTuple):
    module: str
    line: int
    typing_only: bool
    at_import: bool


class Source(NamedTuple):
    name: str
    path: Path
    imports: tuple[Import, ...]


def _statements(node: ast.AST, typing_only: bool, at_import: bool) -> Iterator[tuple[ast.stmt, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, typing_only, at_import
        elif isinstance(child, ast.If) and isinstance(child.test, ast.Name | ast.Attribute) and "TYPE_CHECKING" in ast.unparse(child.test):
            for part in child.body:
                yield from _statements(ast.Module([part], []), True, at_import)
            for part in child.orelse:
                yield from _statements(ast.Module([part], []), typing_only, at_import)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _statements(child, typing_only, at_import and not inside)


def _is_module(name: str) -> bool:
    path = CHECKOUT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def parse(name: str, text: str, is_package: bool = False) -> tuple[Import, ...]:
    """The imports of a module's text, relative ones made absolute, ``from a import b`` as ``a.b`` where that is a module."""
    found = []
    for node, typing_only, at_import in _statements(ast.parse(text), False, True):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert isinstance(node, ast.ImportFrom)
            base = node.module or ""
            if node.level:
                parents = name.split(".")[: None if is_package and node.level == 1 else -(node.level - is_package)]
                base = ".".join([*parents, *filter(None, [base])])
            full = [f"{base}.{alias.name}" for alias in node.names]
            names = sorted({one if one.startswith("netbox.") and _is_module(one) else base for one in full})
        found += [Import(module, node.lineno, typing_only, at_import) for module in names]
    return tuple(found)


def _sources() -> list[Source]:
    sources = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(CHECKOUT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        sources.append(Source(name, path, parse(name, path.read_text(), is_package)))
    return sources


SOURCES = _sources()
BY_NAME = {source.name: source for source in SOURCES}


def _within(module: str, parent: str) -> bool:
    return module == parent or module.startswith(parent + ".")


def _layer(module: str) -> int | None:
    return next((number for number, layer in enumerate(LAYERS) for name in layer if _within(module, name)), None)


def test_every_module_has_a_layer() -> None:
    assert len(SOURCES) > 5
    assert [source.name for source in SOURCES if _layer(source.name) is None and source.name != "netbox"] == []


def test_imports_run_downward() -> None:
    wrong = []
    for source in SOURCES:
        own = _layer(source.name)
        for found in source.imports:
            layer = _layer(found.module)
            where = f"{source.path.relative_to(CHECKOUT)}:{found.line}: {source.name}"
            if own is not None and layer is not None and layer > own:
                wrong.append(f"{where} imports {found.module}, which stands above it")
            wrong += [
                f"{where} must not know {found.module}"
                for upper, lower in FORBIDDEN.items()
                for name in lower
                if _within(source.name, upper) and _within(found.module, name)
            ]
    assert wrong == [], "\n" + "\n".join(wrong)


def test_heavy_libraries_have_one_door() -> None:
    wrong = [
        f"{source.path.relative_to(CHECKOUT)}:{found.line}: only {DOORS[library]} may import {library}"
        for source in SOURCES
        for found in source.imports
        for library in DOORS
        if _within(found.module, library) and not _within(source.name, DOORS[library])
    ]
    assert wrong == [], "\n" + "\n".join(wrong)


def _start_path() -> set[str]:
    """The modules of netbox that are loaded with the processes around and inside a sandbox."""
    waiting = list(START_PATH)
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name and name in BY_NAME and name not in seen:
            seen.add(name)
            waiting += [found.module for found in BY_NAME[name].imports if found.at_import and not found.typing_only]
            waiting.append(name.rpartition(".")[0])
    return seen


def test_the_start_path_is_light() -> None:
    assert set(START_PATH) <= BY_NAME.keys()
    wrong = [
        f"{BY_NAME[name].path.relative_to(CHECKOUT)}:{found.line}: {name} is on the start path and imports {found.module}"
        for name in sorted(_start_path())
        for found in BY_NAME[name].imports
        if found.at_import
        and not found.typing_only
        and not found.module.startswith("netbox")
        and found.module.partition(".")[0] not in LIGHT
    ]
    assert wrong == [], "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("netbox.kernel.a", "def f():\n    import iptc", Import("iptc", 2, False, False)),
        ("netbox.kernel.a", "class A:\n    import iptc", Import("iptc", 2, False, True)),
        ("netbox.kernel.a", "if TYPE_CHECKING:\n    from typing import Any", Import("typing", 2, True, True)),
        ("netbox.kernel.a", "if TYPE_CHECKING:\n    pass\nelse:\n    import re", Import("re", 4, False, True)),
        ("netbox.kernel.a", "from .. import errors", Import("netbox.errors", 1, False, True)),
        ("netbox.kernel.a", "from ..errors import UsageError", Import("netbox.errors", 1, False, True)),
        ("netbox.cli.x", "try:\n    import rich.table\nexcept ImportError:\n    pass", Import("rich.table", 2, False, True)),
    ],
)
def test_the_reader_of_imports_sees_them(name: str, text: str, expected: Import) -> None:
    assert parse(name, text) == (expected,)


def test_modules_are_of_a_readable_size() -> None:
    lengths = {str(path.relative_to(CHECKOUT)): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {path: length for path, length in lengths.items() if length > 450} == {}


def test_every_package_is_found_by_the_build() -> None:
    """setuptools takes only directories with an __init__.py, so that one without it would be missing from the wheel."""
    settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["packages"]["find"]["include"] == ["netbox", "netbox.*"]
    directories = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [str(directory.relative_to(CHECKOUT)) for directory in sorted(directories) if not (directory / "__init__.py").is_file()] == []
