from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox import names
from netbox.errors import UsageError
from netbox.parse.names import (
    check_command,
    parse_capabilities,
    parse_filters,
    parse_log_options,
    parse_name,
    parse_security_options,
    parse_storage_options,
    parse_user,
    parse_working_dir,
)
from netbox.parse.text import each, parse_boolean, parse_integer, quote
from netbox.spec import PortSpec


def one_line(error: UsageError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 500


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a/b", "'/' is not allowed in it"),
        ("", "it is empty"),
        ("x" * 300, "300 characters, 64 are allowed"),
        ("-a", "it cannot start with '-'"),
        (".a", "it cannot start with '.'"),
        ("a b", "' ' is not allowed"),
        ("a\nb", r"'\n' is not allowed"),
        ("ä", "'ä' is not allowed"),
        ("a\0", "NUL"),
    ],
)
def test_bad_names(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_name(text)
    assert reason in str(caught.value)
    one_line(caught.value)


@given(st.text(max_size=80))
def test_a_name_is_valid_or_a_usage_error(text: str) -> None:
    if names.valid_name(text):
        assert parse_name(text) == text
    else:
        with pytest.raises(UsageError) as caught:
            parse_name(text)
        one_line(caught.value)


@pytest.mark.parametrize("text", ["0", "1000:1000", "root", "www-data:www-data", "4294967294", "a.b", "svc$", "1000:users"])
def test_users(text: str) -> None:
    assert parse_user(text) == text


@pytest.mark.parametrize("text", ["", ":", "1:", ":1", "1:2:3", "-1", "4294967295", "9" * 50, "a b", "a/b", "root\n"])
def test_bad_users(text: str) -> None:
    with pytest.raises(UsageError, match="^user ") as caught:
        parse_user(text)
    one_line(caught.value)


def test_working_dir() -> None:
    assert parse_working_dir("//a/./b/") == "/a/b"
    assert parse_working_dir("/") == "/"
    with pytest.raises(UsageError, match="not an absolute path"):
        parse_working_dir("a")


def test_capabilities() -> None:
    assert parse_capabilities(["cap_net_admin", "SYS_TIME", "CAP_SYS_TIME", "all"], "cap-add") == ("NET_ADMIN", "SYS_TIME", "ALL")
    assert parse_capabilities("NET_ADMIN", "cap-add") == ("NET_ADMIN",)
    for text in ("", "NET ADMIN", "5", "CAP_"):
        with pytest.raises(UsageError, match="^cap-add "):
            parse_capabilities([text], "cap-add")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (None, None)),
        (["no-new-privileges"], (True, None)),
        (["no-new-privileges=false"], (False, None)),
        (["no-new-privileges:true"], (True, None)),
        (["seccomp=unconfined"], (None, "unconfined")),
        (["seccomp=/a=b.json", "no-new-privileges=0"], (False, "/a=b.json")),
    ],
)
def test_security_options(values: list[str], expected: tuple[bool | None, str | None]) -> None:
    assert parse_security_options(values) == expected


@pytest.mark.parametrize("text", ["", "seccomp", "seccomp=", "no-new-privileges=maybe", "apparmor=x", "label=disable", "foo=bar"])
def test_bad_security_options(text: str) -> None:
    with pytest.raises(UsageError, match="^security-opt "):
        parse_security_options([text])


def test_log_options() -> None:
    assert parse_log_options(["max-size=10m", "max-file=5"]) == (10 << 20, 5)
    assert parse_log_options(None) == (None, None)
    for text in ("max-size=", "max-size=1k", "max-size=x", "max-file=0", "max-file", "driver=json", "=1"):
        with pytest.raises(UsageError, match="^log"):
            parse_log_options([text])


def test_storage_options() -> None:
    assert parse_storage_options(["size=1g"]) == 1 << 30
    assert parse_storage_options(()) is None
    for text in ("size=", "size", "size=1k", "inodes=5"):
        with pytest.raises(UsageError, match="^storage-opt"):
            parse_storage_options([text])


def test_filters() -> None:
    assert parse_filters(["name=a", "label=x=y"], ("name", "label")) == (("name", "a"), ("label", "x=y"))
    for text in ("other=1", "name", "name=", "=x"):
        with pytest.raises(UsageError, match="^filter "):
            parse_filters([text], ("name",))


def test_commands() -> None:
    assert check_command(["sh", "-c", ""]) == ("sh", "-c", "")
    assert check_command([]) == ()
    for values in ("sh -c x", [""], ["a\0"], [5]):
        with pytest.raises(UsageError):
            check_command(values)  # type: ignore[arg-type]


def test_whole_numbers() -> None:
    assert parse_integer(" 7 ", "x", 1, 9) == 7
    assert parse_integer("-7", "x", -9, 9) == -7
    for value in ("", "-", "--1", "1.0", "1_0", "٣", "9" * 5000, 10, 0, None, True, "0x5"):
        with pytest.raises(UsageError, match="^x ") as caught:
            parse_integer(value, "x", 1, 9)  # type: ignore[arg-type]
        one_line(caught.value)


def test_booleans() -> None:
    assert parse_boolean("TRUE", "x") is parse_boolean("1", "x") is parse_boolean(True, "x") is True
    assert parse_boolean("false", "x") is parse_boolean("0", "x") is False
    for value in ("", "yes", None):
        with pytest.raises(UsageError):
            parse_boolean(value, "x")  # type: ignore[arg-type]


def test_one_value_stands_for_a_list() -> None:
    assert each("abc") == ["abc"]
    assert each(80) == [80]  # type: ignore[arg-type]
    assert each(PortSpec(80)) == [PortSpec(80)]
    assert each(("a", "b")) == ["a", "b"]
    assert each(None) == []


@given(st.text())
def test_a_quote_is_one_short_printable_line(text: str) -> None:
    assert quote(text).isprintable()
    assert len(quote(text)) < 700
