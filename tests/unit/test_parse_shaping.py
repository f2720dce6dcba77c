"""Rates, shares, delays and peers in tc's words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.errors import UsageError
from netbox.parse import build_spec
from netbox.parse.shaping import (
    DELAY_MAX,
    RATE_MAX,
    RATE_MIN,
    format_delay,
    format_rate,
    format_share,
    parse_delay,
    parse_direction,
    parse_peer_address,
    parse_rate,
    parse_share,
    parse_until,
)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10mbit", 1_250_000),
        ("10Mbit", 1_250_000),
        ("1gbit", 125_000_000),
        ("500kbit", 62_500),
        ("1.5mbit", 187_500),
        ("1mbps", 1_000_000),
        ("250kbps", 250_000),
        ("8000bit", 1000),
        ("8000", 1000),
        ("125bps", 125),
        ("1kibit", 128),
        ("1mibps", 1 << 20),
        (" 1 tbit ", 125_000_000_000),
        (8000, 1000),
    ],
)
def test_rates(text: str | int, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "x", "10", "-1mbit", "1mb", "10 m bit", "1e6", "0", "1.1tbit", "1mbit/s", "\uff11mbit", 10])
def test_what_is_no_rate(text: str | int) -> None:
    with pytest.raises(UsageError, match=r"^net-rate-in .*; write bits a second such as 10mbit") as caught:
        parse_rate(text, "net-rate-in")
    assert "\n" not in str(caught.value)


@given(st.integers(RATE_MIN, RATE_MAX))
def test_a_rate_is_read_back(rate: int) -> None:
    assert parse_rate(format_rate(rate)) == rate


@given(st.integers(1, DELAY_MAX))
def test_a_delay_is_read_back(delay: int) -> None:
    assert parse_delay(format_delay(delay), "delay") == delay


@given(st.floats(0.000001, 100))
def test_a_share_is_read_back(share: float) -> None:
    assert parse_share(format_share(share), "loss") == pytest.approx(share, abs=1e-9)


@given(st.text(max_size=12))
def test_any_text_is_a_value_or_a_usage_error(text: str) -> None:
    for parse in (parse_rate, lambda value: parse_share(value, "loss"), lambda value: parse_delay(value, "delay"), parse_peer_address):
        try:
            parse(text)
        except UsageError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either way is right


@pytest.mark.parametrize(
    ("value", "delay"),
    [("100ms", 100_000_000), ("1.5s", 1_500_000_000), ("250us", 250_000), ("100", 100_000), ("64ns", 64), ("1sec", 10**9), (0.1, 10**8)],
)
def test_delays(value: str | float, delay: int) -> None:
    assert parse_delay(value, "delay") == delay


@pytest.mark.parametrize("value", ["", "0ms", "5m", "ms", "-1ms", "241s", 241.0, 0])
def test_what_is_no_delay(value: str | float) -> None:
    with pytest.raises(UsageError, match="^delay .*write a time such as 100ms"):
        parse_delay(value, "delay")


@pytest.mark.parametrize(("value", "share"), [("1%", 1.0), ("0.5 %", 0.5), ("100", 100.0), (2.5, 2.5), (7, 7.0)])
def test_shares(value: str | float, share: float) -> None:
    assert parse_share(value, "loss") == share


@pytest.mark.parametrize("value", ["", "0%", "101%", "-1%", "%", "nan", float("nan"), "1%%"])
def test_what_is_no_share(value: str | float) -> None:
    with pytest.raises(UsageError, match="^loss .*write a percentage"):
        parse_share(value, "loss")


def test_peers() -> None:
    assert parse_peer_address("10.0.0.5") == "10.0.0.5/32"
    assert parse_peer_address("10.0.0.0/8") == "10.0.0.0/8"
    assert parse_peer_address("web") is None
    assert parse_peer_address("3f21") is None  # the beginning of an id


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.256", "1.2.3.4/33", "0.0.0.0/0", "fd00::1/64", "10.0.0.0/"])
def test_what_is_no_peer(text: str) -> None:
    with pytest.raises(UsageError, match=r"^to .*; (leave --to out|write the name of a sandbox)"):
        parse_peer_address(text)


def test_directions_and_durations() -> None:
    assert (parse_direction("both"), parse_direction("in")) == (("in", "out"), ("in",))
    assert parse_until("1m30s") == 90
    for call in (lambda: parse_direction("up"), lambda: parse_until("1ms"), lambda: parse_until("soon")):
        with pytest.raises(UsageError):
            call()


def test_a_request_with_rates() -> None:
    network = build_spec("busybox", net_rate_in="10mbit", net_rate_out=8_000_000).network
    assert (network.rate_in, network.rate_out) == (1_250_000, 1_000_000)


@pytest.mark.parametrize("mode", ["host", "none", "container:web", "ns:/run/netns/x"])
def test_rates_need_a_link(mode: str) -> None:
    with pytest.raises(UsageError, match="^net-rate-out cannot be used with network"):
        build_spec("busybox", network=mode, net_rate_out="1mbit")
