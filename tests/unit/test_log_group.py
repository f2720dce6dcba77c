"""The numbers of logged packets."""

from __future__ import annotations

import pytest

from netbox.kernel.log_group import is_later


@pytest.mark.parametrize(
    ("number", "other", "later"),
    [
        (0, -1, True),
        (1, 0, True),
        (0, 0, False),
        (0, 1, False),
        (-1, 5, False),
        (-1, -1, False),
        (0, 0xFFFFFFFF, True),
        (0xFFFFFFFF, 3, False),
    ],
)
def test_which_one_is_later(number: int, other: int, later: bool) -> None:
    assert is_later(number, other) == later
