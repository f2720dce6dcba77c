"""Ids and the names made of them: what chance may give, and what is not taken."""

from __future__ import annotations

import pytest

from netbox import names


def test_an_id_that_could_be_read_as_an_address_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([b"\x01\x23\x45\x67\x01\x23" + bytes(26), b"\x99" * 6 + b"\xff" * 26, b"\x01\x23\x45\x67\x01\x2f" + bytes(26)])
    monkeypatch.setattr("netbox.names.os.urandom", lambda size: next(drawn))
    assert names.new_id() == "01234567012f" + "0" * 52
    assert not list(drawn)
