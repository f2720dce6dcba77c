"""One line on stderr about ports that everybody can reach, though nobody said so."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from netbox.cli import options, output
from netbox.parse.ports import format_port, on_all_addresses

if TYPE_CHECKING:
    from netbox.spec import PortSpec

VARIABLE = "NETBOX_NOTICES"


def about_public_ports(given: Sequence[str], published: Sequence[PortSpec], running: bool = True) -> None:
    """Says which of the ports are on all addresses of the host, if any are. Who writes 0.0.0.0 knows it; ``NETBOX_NOTICES=0`` silences it.

    ``published`` are the ports of the texts ``given``, in order, and after them those of ``-P``.
    """
    if os.environ.get(VARIABLE) == "0":
        return
    implied = [index >= len(given) or on_all_addresses(given[index]) for index in range(len(published))]
    text = sentence([port for port, is_implied in zip(published, implied, strict=True) if is_implied], running)
    if text:
        sys.stdout.flush()
        print(output.style(f"{options.label()}: {text}", "yellow", sys.stderr), file=sys.stderr)


def sentence(ports: Sequence[PortSpec], running: bool) -> str:
    """The notice; nothing without ports."""
    if not ports:
        return ""
    named = ", ".join(_name(port) for port in ports)
    several = len(ports) > 1 or max(ports[0].length, 1) > 1
    verb = "are" if several else "is"
    example = format_port(ports[0]._replace(host_ip="127.0.0.1"))
    return (
        f"port{'s' if several else ''} {named} {verb if running else 'will be'} published on all addresses of this host, also to the LAN; "
        f"for this host only: -p {example}"
    )


def _name(port: PortSpec) -> str:
    protocol = "" if port.protocol == "tcp" else f"/{port.protocol}"
    if port.is_settled:
        return f"{output.port_range(port.host_port, port.length)}{protocol}"
    return f"{output.port_range(port.port, port.length)}{protocol} (on a free host port)"
