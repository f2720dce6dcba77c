"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from netbox.engine import Engine
from tests.support.host import PrivateHost


@pytest.fixture
def engine(private_host: PrivateHost) -> Iterator[Engine]:
    """The Python API, for looking at what the command line did."""
    with Engine() as engine:
        yield engine
