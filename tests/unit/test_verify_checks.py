"""How long the packets of a verification are waited for."""

from __future__ import annotations

from typing import Any

import pytest

from netbox.packet import places
from netbox.packet.places import HOST, Place, Target
from netbox.packet.probing import values
from netbox.packet.probing.values import ProbeRequest
from netbox.packet.verifying.checks import Judge, Prober, expect, kept_out, reached


@pytest.mark.parametrize(("judge", "timeout"), [(reached, 10.0), (expect(values.CLOSED), 10.0), (kept_out, 0.5)])
def test_a_busy_machine_breaks_no_promise(monkeypatch: pytest.MonkeyPatch, judge: Judge, timeout: float) -> None:
    """Who answers may have to wait for a processor; it costs nothing when he need not."""
    monkeypatch.setattr(places, "target", lambda *_, **__: Target("web", "10.0.0.2", 80, values.TCP))
    stage: Any = type("Stage", (), {"engine": None})
    make = Prober(stage)
    make.add("TCP", Place(HOST, HOST, HOST), "web", ProbeRequest(values.TCP, 80, timeout=0.5 if judge is kept_out else 1.0), judge)
    (check,) = make.checks
    assert check.probe is not None
    assert check.probe[2].timeout == timeout
