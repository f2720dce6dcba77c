"""``ps inspect port show``."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from netbox.cli import options, output
from netbox.errors import NotFound, UsageError, WrongState

if TYPE_CHECKING:
    from netbox.engine import Sandbox
    from netbox.engine.observing import Stats

FILTERS = ("name", "id", "state", "status", "exited", "label", "image", "ancestor", "network")
STATES = ("created", "starting", "running", "paused", "exited")
ACTIVE = ("running", "paused")
_COMMAND_WIDTH = 30


class Row(NamedTuple):
    """What a listing shows of a sandbox: one look, so that the columns agree with each other."""

    sandbox: Sandbox
    state: str
    now: float


def status_text(sandbox: Sandbox, state: str, now: float) -> str:
    """``Up 5 minutes``, ``Up 2 hours (paused)``, ``Exited (1) 3 days ago``, ``Created``."""
    if state in ACTIVE:
        lifetime = output.human_duration(now - (sandbox.started_at or now))
        return f"Up {lifetime}" + (" (paused)" if state == "paused" else "")
    if state == "exited":
        since = output.human_duration(now - (sandbox.finished_at or now))
        return f"Exited ({'?' if sandbox.exit_code is None else sandbox.exit_code}) {since} ago"
    return state.capitalize()


def network_text(sandbox: Sandbox) -> str:
    """``front,back``: the networks, the one with the default route first; or the mode."""
    return ",".join(sandbox.networks) or sandbox.spec.network.title


def _document(row: Row) -> dict[str, Any]:
    sandbox = row.sandbox
    return {
        "id": sandbox.id,
        "name": sandbox.name,
        "image": sandbox.image,
        "command": list(sandbox.command),
        "state": row.state,
        "status": status_text(sandbox, row.state, row.now),
        "exit_code": sandbox.exit_code,
        "pid": sandbox.pid,
        "created_at": sandbox.created_at,
        "started_at": sandbox.started_at,
        "finished_at": sandbox.finished_at,
        "network": network_text(sandbox),
        "networks": sandbox.networks,
        "ip_address": sandbox.ip_address,
        "networks6": sandbox.networks6,
        "ip6_address": sandbox.ip6_address,
        "ports": [output.port_document(its) for port in sandbox.ports for its in port.by_family],
        "labels": dict(sandbox.spec.labels),
    }


@click.command(
    epilog="""\b
Examples:
  netbox ps
  netbox ps -a --filter status=exited
  netbox ps -q --filter label=role=web
  netbox ps --format json | jq '.[].ip_address'

Filters: name (a part of it), id, state (or status), label, image, network. Different keys must all match,
values of one key are alternatives. Addresses are those of IPv4; --no-trunc and --format json have those of IPv6 too.
"""
)
@click.option("-a", "--all", "show_all", is_flag=True, help="Also those that do not run.")
@click.option("-n", "--last", metavar="NUMBER", help="The last NUMBER made, in any state.")
@click.option("-l", "--latest", is_flag=True, help="The last one made, in any state.")
@options.filter_option
@options.quiet_option
@options.no_trunc_option
@options.format_option
def ps(show_all: bool, last: str | None, latest: bool, filters: tuple[str, ...], quiet: bool, no_trunc: bool, output_format: str) -> None:
    """List running sandboxes, the newest first."""
    from netbox.engine import Engine
    from netbox.parse import parse_filters
    from netbox.parse.text import parse_integer, quote

    wanted = parse_filters(filters, FILTERS)
    for state in (value for key, value in wanted if key in ("state", "status") and value not in STATES):
        raise UsageError(f"filter status {quote(state)}: no such state", "use one of " + ", ".join(STATES))
    count = 1 if latest else None if last is None else parse_integer(last, "last", 1, 1_000_000)
    now = time.time()
    with Engine(warm=False) as engine:
        found = engine.list(all=show_all or count is not None, filters=wanted)
        rows = [Row(sandbox, sandbox.state, now) for sandbox in found[:count]]
        columns = [
            ("ID", lambda row: row.sandbox.id if no_trunc else row.sandbox.short_id),
            ("NAME", lambda row: row.sandbox.name),
            ("IMAGE", lambda row: row.sandbox.image),
            ("COMMAND", lambda row: _command_text(row.sandbox, no_trunc)),
            ("CREATED", lambda row: f"{output.human_duration(row.now - row.sandbox.created_at)} ago"),
            ("STATUS", lambda row: status_text(row.sandbox, row.state, row.now)),
            ("NETWORK", lambda row: network_text(row.sandbox)),
            ("ADDRESS", lambda row: _addresses(row.sandbox, no_trunc)),
            ("PORTS", lambda row: output.ports_text(row.sandbox.ports) if row.state in ACTIVE else ""),
        ]
        identity = (lambda row: row.sandbox.id if no_trunc else row.sandbox.short_id) if quiet else None
        output.listing(rows, columns, _document, output_format=output_format, quiet=identity)


def _addresses(sandbox: Sandbox, whole: bool) -> str:
    """Those of IPv4, for they are short; all of them in a listing that is ``whole``."""
    return ",".join(filter(None, (*sandbox.networks.values(), *(sandbox.networks6.values() if whole else ()))))


def _command_text(sandbox: Sandbox, whole: bool) -> str:
    text = shlex.join(sandbox.command)
    return text if whole else output.shortened(text, _COMMAND_WIDTH)


@click.command(
    epilog="""\b
Examples:
  netbox inspect web
  netbox inspect --field state web
  netbox inspect --field spec.network.ports web
  netbox inspect --format json web db

A FIELD is a path of keys and list positions joined by dots. Text is printed bare, anything else as JSON, one line for each sandbox.
"""
)
@click.option("--field", metavar="FIELD", help="Print one field only.")
@click.option(
    "-f", "--format", "output_format", type=click.Choice(["pretty", "json"]), default="pretty", help="Indented (default), or on one line."
)
@options.sandboxes_argument()
def inspect(field: str | None, output_format: str, names: tuple[str, ...]) -> int:
    """Print everything known about sandboxes, as one JSON array."""
    from netbox.engine import Engine

    documents: list[dict[str, Any]] = []
    with Engine(warm=False) as engine:
        code = options.for_each(engine, names, lambda sandbox: documents.append(sandbox.inspect()), echo=False)
    if field is None:
        output.echo_json(documents, compact=output_format == "json")
    else:
        for document in documents:
            _print_field(field_of(document, field))
    return code


def field_of(document: object, path: str) -> object:
    """The value at a dotted path of keys and list positions. Raises ``UsageError`` naming what there is instead."""
    value = document
    walked = ""
    for key in path.split("."):
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isascii() and key.isdigit() and int(key[:9]) < len(value):
            value = value[int(key[:9])]
        else:
            place = f"in {walked}" if walked else "at the top"
            raise UsageError(f"field {path[:100]!r}: no {key[:60]!r} {place}", f"there is {_keys(value)}")
        walked = f"{walked}.{key}" if walked else key
    return value


def _keys(value: object) -> str:
    if isinstance(value, dict):
        return output.shortened(", ".join(map(str, value)), 200) or "nothing"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "a plain value"


def _print_field(value: object) -> None:
    if isinstance(value, str):
        output.echo(value)
    else:
        output.echo_json(value, compact=True)


@click.command(
    epilog="""\b
Examples:
  netbox port web
  netbox port web 80
  netbox port web 53/udp
"""
)
@options.format_option
@options.sandbox_argument()
@click.argument("inside", metavar="[PORT[/PROTOCOL]]", required=False)
def port(output_format: str, name: str, inside: str | None) -> None:
    """List the published ports of a sandbox, or where PORT is reached on the host."""
    from netbox.engine import Engine

    with Engine(warm=False) as engine:
        sandbox = engine.get(name)
        ports = output.merged_ports(sandbox.ports)
    if inside is not None:
        ports = _matching(ports, inside, sandbox.name)
    if output_format == "json":
        output.echo_json([output.port_document(item) for item in ports])
        return
    for item in ports:
        if inside is not None:
            output.echo(output.host_side(item))
        else:
            output.echo(output.port_line(item))


def _matching(ports: list[Any], inside: str, name: str) -> list[Any]:
    """The single host ports of one port inside. Raises ``NotFound``."""
    from netbox.parse import parse_port

    wanted = parse_port(inside)
    if wanted.host_port or wanted.length != 1 or ":" in inside:
        raise UsageError(f"port {inside[:60]!r}: not one port of the sandbox", "write PORT or PORT/udp")
    found = [
        item._replace(port=wanted.port, host_port=item.host_port + wanted.port - item.port if item.host_port else 0, length=1)
        for item in ports
        if item.protocol == wanted.protocol and item.port <= wanted.port < item.port + item.length
    ]
    if not found:
        raise NotFound(f"{name} publishes no port {wanted.port}/{wanted.protocol}", f"'netbox port {name}' lists what it publishes")
    return found


@click.command(epilog="\b\nExamples:\n  netbox show web\n  netbox show --format json web")
@click.option(
    "--format", "output_format", type=click.Choice(["card", "json"]), default="card", help="A card for people, JSON for programs."
)
@options.sandbox_argument()
def show(output_format: str, name: str) -> None:
    """Show one sandbox on a card: state, address, what it uses, what it publishes."""
    from netbox.engine import Engine

    with Engine(warm=False) as engine:
        sandbox = engine.get(name)
        row = Row(sandbox, sandbox.state, time.time())
        usage = _usage(sandbox, row.state)
        document = sandbox.inspect()
    if output_format == "json":
        used = {key: getattr(usage, key) for key in _STATS_FIELDS} if usage is not None else None
        output.echo_json({**_document(row), "link": _link(document), "impairments": document.get("impairments") or [], "stats": used})
    else:
        rows = _card_rows(row, usage, _link(document)) + _shaping_rows(sandbox, document.get("impairments") or [])
        output.echo(output.card(f"{sandbox.name} · {sandbox.short_id}", rows))


_STATS_FIELDS = (
    "cpu_percent cpu_ns memory memory_limit pids pids_limit block_read block_written rx_bytes rx_packets tx_bytes tx_packets".split()
)
_SAMPLE_SECONDS = 0.2


def _usage(sandbox: Sandbox, state: str) -> Stats | None:
    """Two measurements a moment apart, so that the load is that of now; ``None`` when it does not run."""
    if state not in ACTIVE:
        return None
    try:
        first = sandbox.stats()
        time.sleep(_SAMPLE_SECONDS)
        return sandbox.stats(first)
    except (WrongState, NotFound):
        return None  # it ended while we looked


def _link(document: dict[str, Any]) -> str | None:
    """The host's ends of the sandbox's links, or what they are on."""
    endpoints = (document.get("network") or {}).get("endpoints") or []
    return ", ".join(str(item["host_interface"] or f"macvlan on {item['parent']}") for item in endpoints) or None


def _card_rows(row: Row, usage: Stats | None, link: str | None) -> list[tuple[str, str]]:
    sandbox = row.sandbox
    rows = [
        ("state", f"{row.state} · {status_text(sandbox, row.state, row.now)}"),
        ("image", sandbox.image),
        ("command", output.shortened(shlex.join(sandbox.command), 60)),
        ("pid", str(sandbox.pid) if usage is not None else "-"),
        ("network", network_text(sandbox)),
        *(("address" if index == 0 else "", text) for index, text in enumerate(_address_texts(sandbox))),
        ("link", link or "-" if usage is not None else "-"),
    ]
    rows += [("published" if index == 0 else "", output.port_text(item)) for index, item in enumerate(output.merged_ports(sandbox.ports))]
    if usage is not None:
        rows += [
            ("CPU use", f"{usage.cpu_percent:.1f} %, {usage.cpu_ns / 1e9:.2f} s in all"),
            ("memory", memory_text(usage)),
            ("block I/O", f"{output.human_size(usage.block_read)} read, {output.human_size(usage.block_written)} written"),
            ("bytes in", f"{output.human_size(usage.rx_bytes)}, {usage.rx_packets} packets"),
            ("bytes out", f"{output.human_size(usage.tx_bytes)}, {usage.tx_packets} packets"),
            ("processes", str(usage.pids) if usage.pids_limit is None else f"{usage.pids} of {usage.pids_limit}"),
        ]
    elif sandbox.error:
        rows.append(("error", output.shortened(sandbox.error, 100)))
    return rows


def _address_texts(sandbox: Sandbox) -> list[str]:
    """The addresses, those of IPv6 apart; with several networks each with its network's name."""
    found = [{name: address for name, address in family.items() if address} for family in (sandbox.networks, sandbox.networks6)]
    named = len(found[0]) > 1
    return [", ".join(f"{address} ({name})" if named else address for name, address in its.items()) for its in found if its] or ["-"]


def _shaping_rows(sandbox: Sandbox, impairments: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The link's own rates, and what impairs it now."""
    network = sandbox.spec.network
    if not impairments and not network.rate_in and not network.rate_out:
        return []
    from netbox.network.shaping import Impairment
    from netbox.parse.shaping import format_rate

    rates = [("in", network.rate_in), ("out", network.rate_out)]
    rows = [("rates", ", ".join(f"{format_rate(rate)} {way}" for way, rate in rates if rate))] if any(rate for _, rate in rates) else []
    for index, values in enumerate(impairments):
        item = Impairment.from_json({**{key: value for key, value in values.items() if key != "seconds_left"}, "until": None})
        rows.append(
            (
                "impaired" if index == 0 else "",
                f"{item.direction}, {item.to or 'everybody'}: {output.effects(item, values['seconds_left'])}",
            )
        )
    return rows


def memory_text(usage: Stats) -> str:
    """``12MiB of 64MiB (18.8 %)``; without a limit only what is in use."""
    used = output.human_size(usage.memory)
    if usage.memory_limit is None:
        return f"{used}, no limit"
    return f"{used} of {output.human_size(usage.memory_limit)} ({usage.memory_percent:.1f} %)"
