"""What one run of the command line carries along: the process made ahead, and whether tracebacks are wanted."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netbox.runtime.helper import Helper


class State:
    """The object of every click context."""

    def __init__(self, helper: Helper | None = None) -> None:
        self._helper = helper
        self.debug = os.environ.get("NETBOX_DEBUG", "") not in ("", "0")

    def take_helper(self) -> Helper | None:
        """The process that was started ahead, once: whoever takes it ends it."""
        helper, self._helper = self._helper, None
        return helper

    def close(self) -> None:
        """Ends one that nobody took: the end of its channel tells it to go."""
        helper = self.take_helper()
        if helper is not None:
            helper.end()

    def print_traceback(self, arguments: Sequence[str]) -> None:
        """The traceback of the exception being handled, if ``--debug`` or ``NETBOX_DEBUG=1`` asks for it."""
        if self.debug or arguments[:1] == ["--debug"]:
            import traceback

            traceback.print_exc(file=sys.stderr)
