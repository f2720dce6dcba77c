"""What the kernel says about new chains."""

from __future__ import annotations

import struct

import pytest

from netbox.kernel import nftables_events


def attribute(number: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), number) + value + bytes(-len(value) % 4)


def message(kind: int, *attributes: bytes) -> bytes:
    body = struct.pack("=BBH", 2, 0, 0) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


TABLE, HANDLE = attribute(1, b"filter\0"), attribute(2, bytes(8))
NEW_CHAIN, NEW_RULE, DELETED_CHAIN = 0x0A03, 0x0A06, 0x0A05


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"", []),
        (message(NEW_CHAIN, TABLE, HANDLE, attribute(3, b"DOCKER-USER\0")), ["DOCKER-USER"]),
        (message(NEW_RULE, TABLE, attribute(3, b"DOCKER-USER\0")), []),
        (message(DELETED_CHAIN, TABLE, attribute(3, b"DOCKER-USER\0")), []),
        (
            message(0x0A00, TABLE) + message(NEW_CHAIN, TABLE, attribute(3, b"a\0")) + message(NEW_CHAIN, attribute(3, b"b\0"), TABLE),
            ["a", "b"],
        ),
        (message(NEW_CHAIN, TABLE, attribute(3, b"cut off\0"))[:18], []),
        (bytes(64), []),
    ],
)
def test_names_of_new_chains(data: bytes, names: list[str]) -> None:
    assert nftables_events.chains(data) == names
