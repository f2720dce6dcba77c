"""What happens to sandboxes, written down and read back: create, start, die, stop, kill, pause, rename, destroy, …"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from netbox.state.rows import Event, SandboxRow

if TYPE_CHECKING:
    from netbox.engine.context import Context

POLL_INTERVAL = 0.1  # seconds

Filters = Sequence[tuple[str, str]]


def record(context: Context, row: SandboxRow, action: str, **attributes: Any) -> None:
    """Writes an event down, with the sandbox's labels."""
    labels = dict(row.spec["labels"])
    context.store.add_event(action, row.id, row.name, **attributes, **({"labels": labels} if labels else {}))


def read(
    context: Context,
    since: float | None,
    until: float | None,
    follow: bool,
    filters: Filters,
    stop: Callable[[], bool] | None,
) -> Iterator[Event]:
    """What happened and, with ``follow``, what happens: only new events without ``since``. Times are seconds since the epoch."""
    store = context.store
    past = store.events()
    last = past[-1].seq if past else 0
    if since is not None or not follow:
        yield from (event for event in past if _wanted(event, since, until, filters))
    while follow and not (stop is not None and stop()):
        over = until is not None and time.time() > until  # asked first: what happened until then is read below
        for event in store.events(after=last):
            last = event.seq
            if _wanted(event, since, until, filters):
                yield event
        if over:
            return
        time.sleep(POLL_INTERVAL)


def _wanted(event: Event, since: float | None, until: float | None, filters: Filters) -> bool:
    if (since is not None and event.time < since) or (until is not None and event.time > until):
        return False
    return all(any(_has(event, key, value) for other, value in filters if other == key) for key in {key for key, _ in filters})


def _has(event: Event, key: str, value: str) -> bool:
    if key == "event":
        return event.action == value
    if key in ("sandbox", "container"):
        return bool(value) and (event.name == value or event.sandbox_id.startswith(value))
    if key == "label":
        name, separator, wanted = value.partition("=")
        labels = event.attributes.get("labels", {})
        return name in labels and (not separator or labels[name] == wanted)
    return False
