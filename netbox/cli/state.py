"""What one run of the command line carries along: the monitor made ahead, and whether tracebacks are wanted."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netbox.runtime.launcher import Launcher


class State:
    """The object of every click context."""

    def __init__(self, launcher: Launcher | None = None) -> None:
        self._launcher = launcher
        self.debug = os.environ.get("NETBOX_DEBUG", "") not in ("", "0")

    def take_launcher(self) -> Launcher | None:
        """The monitor that was started ahead, once: whoever takes it closes it."""
        launcher, self._launcher = self._launcher, None
        return launcher

    def close(self) -> None:
        """Ends a monitor that nobody took: the end of its channel tells it to go."""
        launcher = self.take_launcher()
        if launcher is not None:
            launcher.close()

    def print_traceback(self, arguments: Sequence[str]) -> None:
        """The traceback of the exception being handled, if ``--debug`` or ``NETBOX_DEBUG=1`` asks for it."""
        if self.debug or arguments[:1] == ["--debug"]:
            import traceback

            traceback.print_exc(file=sys.stderr)
