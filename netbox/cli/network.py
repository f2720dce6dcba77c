"""``netbox network``: make, list and remove networks; connect and disconnect sandboxes."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from netbox.cli import options, output
from netbox.engine import Engine, Network
from netbox.errors import UsageError
from netbox.parse import parse_filters

FILTERS = ("name", "driver", "label", "type", "dangling")
_CREATE_EPILOG = """\b
Examples:
  netbox network create front
  netbox network create --subnet 10.20.30.0/24 --gateway 10.20.30.254 --ip-range 10.20.30.128/25 back
  netbox network create --ipv6 both
  netbox network create --subnet 10.20.31.0/24 --subnet fd00:31::/64 --gateway fd00:31::fe mixed
  netbox network create --internal --label stage=test -o mtu=1400 inner
  netbox network create --driver macvlan -o parent=eth0 --subnet 192.168.1.0/24 --ip-range 192.168.1.192/27 lan
  netbox network create --driver macvlan -o parent=eth0 --subnet 192.168.2.0/24 --subnet 2001:db8:2::/64 --gateway fe80::1 lan6
"""
_CONNECT_EPILOG = """\b
Examples:
  netbox network connect back web
  netbox network connect --ip 10.20.30.5 --alias db back web
  netbox network connect --ip6 fd00:31::5 mixed web

The default route goes by the network with the highest gw-priority, the first name in order between equals; an internal network has none.
"""


@click.group()
def command() -> None:
    """Manage networks: a bridge with a subnet of its own for those who are on it, or a place on the LAN (--driver macvlan).

    Networks are isolated from one another. A network's bridge comes with its first running sandbox and goes with the last one.
    """


@command.command(epilog=_CREATE_EPILOG)
@click.option(
    "-d",
    "--driver",
    metavar="DRIVER",
    default=None,
    help="bridge (default), or macvlan: each sandbox is a machine of its own on the LAN of a link.",
)
@click.option(
    "--subnet",
    multiple=True,
    metavar="SUBNET",
    help="Subnet such as 10.20.30.0/24 (default: a free /24), or fd00:1::/64; with macvlan that of the LAN.",
)
@click.option(
    "--gateway",
    multiple=True,
    metavar="ADDRESS",
    help="Address of the host on it (default: the first of the subnet); with macvlan the LAN's router.",
)
@click.option("--ipv6", is_flag=True, help="IPv6 as well (default subnet: a /64 of the host's own unique local addresses).")
@click.option(
    "--ip-range", multiple=True, metavar="RANGE", help="Part of the subnet from which addresses are given out; one for each family."
)
@click.option("--aux-address", "aux_addresses", multiple=True, metavar="NAME=IP", help="Address that is never given out; repeatable.")
@click.option("--internal", is_flag=True, help="No way out and none in.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label; repeatable.")
@click.option(
    "-o",
    "--opt",
    "driver_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="mtu=BYTES (default: that of the host's way out); with macvlan parent=LINK, macvlan_mode=bridge|private|vepa|passthru.",
)
@click.argument("name")
def create(
    driver: str | None,
    subnet: tuple[str, ...],
    gateway: tuple[str, ...],
    ipv6: bool,
    ip_range: tuple[str, ...],
    aux_addresses: tuple[str, ...],
    internal: bool,
    labels: tuple[str, ...],
    driver_options: tuple[str, ...],
    name: str,
) -> None:
    """Make a network, and print its name."""
    with Engine(warm=False) as engine:
        network = engine.networks.create(
            name,
            subnet=subnet,
            gateway=gateway,
            ip_range=ip_range,
            aux_addresses=aux_addresses,
            internal=internal,
            ipv6=ipv6,
            labels=labels,
            options=driver_options,
            driver=driver,
        )
    output.echo(network.name)


@command.command("ls")
@options.format_option
@options.quiet_option
@options.filter_option
def list_networks(output_format: str, quiet: bool, filters: tuple[str, ...]) -> None:
    """List networks.

    Filters: name (a part of it), driver, label, type (builtin or custom), dangling (true: no sandbox is on it). -q prints names.
    """
    wanted = _filters(filters)
    with Engine(warm=False) as engine:
        found = engine.networks.list(wanted)
    columns = [
        ("NAME", lambda item: item.name),
        ("DRIVER", lambda item: item.driver),
        ("SUBNET", lambda item: ",".join(filter(None, (item.subnet, item.subnet6))) or "-"),
        ("GATEWAY", lambda item: ",".join(filter(None, (item.gateway, item.gateway6))) or "-"),
        ("INTERNAL", lambda item: "yes" if item.internal else "no"),
        ("STATE", lambda item: "up" if item.standing else "-"),
        ("SANDBOXES", lambda item: output.shortened(",".join(item.users), 40) or "-"),
        ("CREATED", _created),
    ]
    output.listing(found, columns, Network.to_json, output_format=output_format, quiet=(lambda item: item.name) if quiet else None)


def _created(network: Network) -> str:
    return "-" if network.created_at is None else f"{output.human_duration(time.time() - network.created_at)} ago"


def _filters(filters: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    wanted = parse_filters(filters, FILTERS)
    for key, allowed in (("type", ("builtin", "custom")), ("dangling", ("true", "false"))):
        for value in (value for name, value in wanted if name == key and value not in allowed):
            raise UsageError(f"filter {key} {value!r}: no such value", "use one of " + ", ".join(allowed))
    return wanted


@command.command()
@click.argument("names", metavar="NETWORK...", nargs=-1, required=True, shell_complete=options.complete_networks)
def inspect(names: tuple[str, ...]) -> int:
    """Print everything about networks as JSON: one array."""
    documents: list[dict[str, Any]] = []
    with Engine(warm=False) as engine:
        code = options.for_each_name(names, lambda name: documents.append(engine.networks.get(name).to_json()), echo=False)
    output.echo_json(documents)
    return code


@command.command("rm")
@click.argument("names", metavar="NETWORK...", nargs=-1, required=True, shell_complete=options.complete_networks)
def remove(names: tuple[str, ...]) -> int:
    """Remove networks that no sandbox is on."""
    with Engine(warm=False) as engine:
        return options.for_each_name(names, engine.networks.remove)


@command.command()
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.option("--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Only what matches; repeatable.")
def prune(force: bool, filters: tuple[str, ...]) -> int:
    """Remove every network that no sandbox is on.

    Filters as those of 'netbox network ls'.
    """
    wanted = _filters(filters)
    if not force:
        if not sys.stdin.isatty():
            raise UsageError("the standard input is no terminal to ask on", "give -f to remove without asking")
        if not click.confirm("This removes every network that no sandbox is on. Go on?"):
            return 1
    with Engine(warm=False) as engine:
        for name in engine.networks.prune(wanted):
            output.echo(name)
    return 0


@command.command(epilog=_CONNECT_EPILOG)
@click.option("--alias", "aliases", multiple=True, metavar="NAME", help="Further name of the sandbox on the network; repeatable.")
@click.option("--ip", metavar="ADDRESS", help="IPv4 address, kept while the sandbox is stopped.")
@click.option("--ip6", metavar="ADDRESS", help="IPv6 address, kept as well.")
@click.option("--mac-address", metavar="MAC", help="MAC address such as 02:42:ac:11:00:02.")
@click.option("--gw-priority", metavar="NUMBER", default="0", help="The network with the highest has the default route (default 0).")
@click.argument("network", shell_complete=options.complete_networks)
@options.sandbox_argument()
def connect(
    aliases: tuple[str, ...], ip: str | None, ip6: str | None, mac_address: str | None, gw_priority: str, network: str, name: str
) -> None:
    """Put a sandbox on a further network, at once when it runs."""
    with Engine(warm=False) as engine:
        engine.get(name).connect(network, ip=ip, ip6=ip6, mac_address=mac_address, aliases=aliases, gw_priority=gw_priority)


@command.command(epilog="\b\nExample:\n  netbox network disconnect back web")
@click.argument("network", shell_complete=options.complete_networks)
@options.sandbox_argument()
def disconnect(network: str, name: str) -> None:
    """Take a sandbox off a network, at once when it runs."""
    with Engine(warm=False) as engine:
        engine.get(name).disconnect(network)
