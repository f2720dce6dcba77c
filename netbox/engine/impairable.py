"""The verbs on a sandbox's link: make it worse, and lift that again. A part of ``Sandbox``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from netbox.engine import impairing

if TYPE_CHECKING:
    from netbox.engine.context import Context
    from netbox.network.shaping import Impairment
    from netbox.state.rows import SandboxRow


class Impairable:
    """What ``Sandbox`` inherits."""

    if TYPE_CHECKING:
        _context: Context
        _row: SandboxRow

        def refresh(self) -> object:
            """Reads the record again."""

        def _event(self, action: str, **attributes: Any) -> None: ...

    def impair(
        self,
        to: str | None = None,
        *,
        rate: str | int | None = None,
        loss: str | float | None = None,
        corrupt: str | float | None = None,
        delay: str | float | None = None,
        jitter: str | float | None = None,
        direction: Literal["in", "out", "both"] = "both",
        duration: str | float | None = None,
    ) -> None:
        """Makes its link worse, at once: all of it, or what goes ``to`` and comes from a peer (a sandbox on the same network, an address, a
        subnet). The same peer and direction again replaces what was in force.

        Text is as on the command line: ``rate="10mbit"``, ``loss="1%"``, ``delay="100ms"``, ``duration="30s"``. As numbers a rate is bits
        a second, loss and corruption are percent, times are seconds. ``in`` is what comes to the sandbox.

        Raises:
            UsageError: nothing to do, or the sandbox has no link of its own.
            WrongState: it does not run.
            Unsupported: this kernel lacks what it takes; the message names its option.
            Conflict: two peers overlap.
        """
        asked = {"rate": rate, "loss": loss, "corrupt": corrupt, "delay": delay, "jitter": jitter}
        wanted = impairing.request(asked, to, direction, duration)
        self.refresh()
        row = self._row
        impairing.impair(self._context, row, impairing.addressed(self._context, row, wanted))
        self._event("impair", direction=direction, **({"to": to} if to else {}), **wanted[0].effects)

    def lift_impairments(self, to: str | None = None) -> int:
        """Takes away what ``impair`` did, or only what it did to one peer. Returns how many were lifted; each direction counts.

        Raises:
            WrongState: it does not run.
            NotFound: nothing is in force for that peer.
        """
        self.refresh()
        count = impairing.lift(self._context, self._row, to)
        if count:
            self._event("lift", **({"to": to} if to else {}))
        return count

    @property
    def impairments(self) -> tuple[Impairment, ...]:
        """What ``impair`` has put in force, one for each direction."""
        self.refresh()
        return tuple(impairing.in_force(self._context, self._row))
