from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.errors import UsageError
from netbox.parse.environment import parse_env_text, parse_environment, parse_labels, read_env_files


def one_line(error: UsageError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 500


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["A=b"], (("A", "b"),)),
        ("A=b", (("A", "b"),)),
        (["A="], (("A", ""),)),
        (["A=b=c"], (("A", "b=c"),)),
        (["HOME"], (("HOME", "/root"),)),
        (["NOT_THERE"], ()),
        (["A=1", "A=2"], (("A", "2"),)),
        ({"A": "b", "C": "d"}, (("A", "b"), ("C", "d"))),
        ([("A", "x=y")], (("A", "x=y"),)),
        (None, ()),
        (["A=\udcff"], (("A", "\udcff"),)),
    ],
)
def test_variables(values: list[str], expected: tuple[tuple[str, str], ...]) -> None:
    assert parse_environment(values, {"HOME": "/root"}) == expected


@pytest.mark.parametrize("values", [["=b"], [""], ["A=\0"], {"": "x"}, {"A=B": "x"}, [5], {"A": 5}])
def test_bad_variables(values: list[str]) -> None:
    with pytest.raises(UsageError, match="^environment"):
        parse_environment(values, {})


def test_env_file() -> None:
    text = "\ufeff# comment\nA=1\r\n\n  B=two words  \nC='quoted'\nHOME\n#X=1\n"
    assert parse_env_text(text, "f") == ["A=1", "B=two words  ", "C='quoted'", "HOME"]


@pytest.mark.parametrize(("text", "reason"), [("A=1\n=b", "line 2: no variable name"), ("A B=1", "line 1: white space"), ("A\0=1", "NUL")])
def test_bad_env_file(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_env_text(text, "my.env")
    assert reason in str(caught.value)
    assert "my.env" in str(caught.value)


def test_env_files_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("A=1\nB=1\n")
    (tmp_path / "b").write_text("B=2\n")
    assert read_env_files([str(tmp_path / "a"), str(tmp_path / "b")]) == ["A=1", "B=1", "B=2"]


def test_env_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"A=\xff\n")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_env_files([str(tmp_path / "latin")])
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_env_files([str(tmp_path / "none")])
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_env_files(str(tmp_path))
    with pytest.raises(UsageError, match="cannot be read"):
        read_env_files(["a\0b"])


def test_labels() -> None:
    assert parse_labels(["role=web", "debug", "role=db"]) == (("role", "db"), ("debug", ""))
    assert parse_labels({"a": "b"}) == (("a", "b"),)
    with pytest.raises(UsageError, match="the part before '=' is empty"):
        parse_labels(["=x"])


plain = st.text(alphabet=st.characters(exclude_characters="\0", codec="utf-8"))


@given(st.dictionaries(plain.filter(lambda key: key and "=" not in key), plain))
def test_round_trip(variables: dict[str, str]) -> None:
    entries = [f"{key}={value}" for key, value in variables.items()]
    assert dict(parse_environment(entries, {})) == variables
    assert dict(parse_labels(entries)) == variables


@given(st.text())
def test_random_env_files(text: str) -> None:
    try:
        entries = parse_env_text(text, "file")
    except UsageError as error:
        one_line(error)
    else:
        parse_environment(entries, {})
