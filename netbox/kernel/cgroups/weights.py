"""Whether anything on this host shares block I/O by weight.

The kernel takes a weight in any case, and only the BFQ scheduler, the old CFQ, or the I/O cost model of version 2 heeds it.
https://docs.kernel.org/block/bfq-iosched.html
"""

from __future__ import annotations

import os

from netbox.errors import Unsupported

from .files import read_optional


def scheduled_by(sys_block: str, schedulers: tuple[str, ...]) -> list[str]:
    """The block devices whose chosen scheduler (in brackets in ``queue/scheduler``) is one of ``schedulers``."""
    try:
        devices = sorted(os.listdir(sys_block))
    except OSError:
        return []
    found = []
    for device in devices:
        text = read_optional(f"{sys_block}/{device}/queue/scheduler") or ""
        if any(f"[{scheduler}]" in text for scheduler in schedulers):
            found.append(device)
    return found


def check_weight(sys_block: str, schedulers: tuple[str, ...], cost_model: str = "") -> None:
    """Raises ``Unsupported`` when a weight would be taken and ignored; ``cost_model`` is the text of v2's ``io.cost.qos``."""
    if "enable=1" in cost_model or scheduled_by(sys_block, schedulers):
        return
    raise Unsupported(
        "--blkio-weight cannot be enforced: no disk of this host has a scheduler that knows weights",
        f"choose one: echo bfq > {sys_block}/DISK/queue/scheduler",
    )
