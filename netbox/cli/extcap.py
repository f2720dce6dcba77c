"""``netbox extcap``: what Wireshark and tshark call to list and record sandboxes (doc/extcap.adoc of Wireshark, extcap(4))."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING

import click

from netbox import __version__
from netbox.cli import output
from netbox.errors import NetboxError, UsageError, host_error

if TYPE_CHECKING:
    from netbox.packet.capturing.values import Selection

WRAPPER = "netbox"
SYSTEM_DIRECTORIES = tuple(
    f"{prefix}/wireshark/extcap" for prefix in ("/usr/lib/{}", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib/{}")
)
_ALL, _SANDBOX, _NETWORK = "netbox-all", "netbox-sandbox-", "netbox-network-"
_MARK = "# Made by 'netbox extcap --install'."


@click.command(
    epilog="""\b
Examples:
  sudo netbox extcap --install        # for every user of this machine
  sudo wireshark                      # sandboxes and networks are among the interfaces
  sudo tshark -i netbox-sandbox-web
  sudo tshark -i netbox-all -f 'udp port 53'

Options that start with --extcap are Wireshark's own."""
)
@click.option("--install", is_flag=True, help="Put a script that calls this command where Wireshark looks.")
@click.option("--uninstall", is_flag=True, help="Take it away again.")
@click.option("--directory", metavar="PATH", help="Wireshark's extcap directory, if it is not found by itself (tshark -G folders).")
@click.option("--extcap-interfaces", "list_interfaces", is_flag=True, hidden=True, help="List the interfaces.")
@click.option("--extcap-dlts", "list_dlts", is_flag=True, hidden=True, help="List the link types of an interface.")
@click.option("--extcap-config", "list_config", is_flag=True, hidden=True, help="List the options of an interface.")
@click.option("--capture", "record", is_flag=True, hidden=True, help="Record.")
@click.option("--extcap-interface", "interface", hidden=True, help="The interface.")
@click.option("--extcap-capture-filter", "filter_", hidden=True, help="A capture filter; checked without --capture.")
@click.option("--fifo", hidden=True, help="Where to write to.")
@click.option("--loopback", is_flag=True, hidden=True, help="Record lo too.")
@click.option("--verdicts", is_flag=True, hidden=True, help="Name firewall rules.")
@click.option("--extcap-version", "version", hidden=True, help="The version of Wireshark.", expose_value=False)
def extcap(
    install: bool,
    uninstall: bool,
    directory: str | None,
    list_interfaces: bool,
    list_dlts: bool,
    list_config: bool,
    record: bool,
    interface: str | None,
    filter_: str | None,
    fifo: str | None,
    loopback: bool,
    verdicts: bool,
) -> None:
    """Offer sandboxes and networks to Wireshark and tshark as interfaces to capture on.

    --install puts a small script into Wireshark's extcap directory; Wireshark calls it by itself then. It has to run as root to record.
    """
    if install or uninstall:
        path = f"{directory or _directory()}/{WRAPPER}"
        _install(path) if install else _uninstall(path)
    elif list_interfaces:
        _print_interfaces()
    elif list_dlts and interface:
        output.echo("dlt {number=1}{name=EN10MB}{display=Ethernet}")
    elif list_config and interface:
        output.echo(
            "arg {number=0}{call=--loopback}{display=Record lo too}{type=boolflag}{default=false}"
            "{tooltip=What processes of a sandbox send to each other over 127.0.0.1}"
        )
        output.echo(
            "arg {number=1}{call=--verdicts}{display=Name firewall rules}{type=boolflag}{default=false}"
            "{tooltip=Packet comments say which rules a packet met, and whose they are}"
        )
    elif record and interface and fifo:
        _record(interface, fifo, filter_ or "", loopback, verdicts)
    elif interface and filter_ is not None:
        _print_verdict(filter_)
    else:
        raise UsageError("nothing to do", "--install makes Wireshark and tshark list sandboxes")


def _print_interfaces() -> None:
    """One line for each; nothing but the version where netbox cannot be used, as Wireshark shows every line."""
    from netbox.engine import Engine

    output.echo(f"extcap {{version={__version__}}}{{display=netbox sandboxes}}")
    if os.geteuid() != 0:
        return
    try:
        with Engine(warm=False) as engine:
            names = [sandbox.name for sandbox in engine.list()]
            networks = [item.name for item in engine.networks.list() if item.driver == "bridge"]
    except NetboxError:
        return
    output.echo(f"interface {{value={_ALL}}}{{display=netbox: every sandbox}}")
    for name in sorted(networks):
        output.echo(f"interface {{value={_NETWORK}{name}}}{{display=netbox: network {name} and its sandboxes}}")
    for name in sorted(names):
        output.echo(f"interface {{value={_SANDBOX}{name}}}{{display=netbox: sandbox {name}}}")


def _print_verdict(expression: str) -> None:
    """Wireshark asks whether a filter is good: silence means yes."""
    from netbox.kernel.packet_filter import check_filter

    try:
        check_filter(expression)
    except NetboxError as error:
        output.echo(str(error))


def _selection(interface: str, loopback: bool) -> Selection:
    from netbox.packet.capturing.values import Selection

    interfaces = ("any",) if loopback else ()
    if interface == _ALL:
        return Selection(all=True, interfaces=interfaces)
    for prefix, key in ((_SANDBOX, "names"), (_NETWORK, "networks")):
        if interface.startswith(prefix):
            return Selection(**{key: (interface.removeprefix(prefix),), "interfaces": interfaces})  # type: ignore[arg-type]
    raise UsageError(f"no such interface: {interface}", "tshark -D lists them")


def _record(interface: str, fifo: str, expression: str, loopback: bool, verdicts: bool) -> None:
    from netbox.cli.capture import ended_by_signals, hurry
    from netbox.engine import Engine
    from netbox.packet.capturing.session import Capture
    from netbox.packet.capturing.sinks import open_output
    from netbox.packet.capturing.values import SNAPSHOT_LENGTH

    with Engine(warm=False) as engine:
        recording = Capture(engine, _selection(interface, loopback), filter=expression, verdicts=verdicts)
        try:
            with ended_by_signals(recording):
                hurry()
                recording.open(open_output(fifo, None, SNAPSHOT_LENGTH, expression))
                recording.run()
        except BrokenPipeError:
            pass  # Wireshark has closed the capture
        finally:
            recording.close()


def _directory() -> str:
    """Where Wireshark looks. It ignores ``WIRESHARK_EXTCAP_DIR`` and the user's own directory when root runs it."""
    for pattern in SYSTEM_DIRECTORIES:
        path = pattern.format(f"{os.uname().machine}-linux-gnu")
        if os.path.isdir(os.path.dirname(path)):
            return path
    raise UsageError(
        "Wireshark's extcap directory was not found", "install tshark or wireshark, or give --directory (tshark -G folders tells)"
    )


def _install(path: str) -> None:
    import netbox

    root = os.path.dirname(os.path.dirname(os.path.abspath(netbox.__file__)))
    code = f"import sys; sys.path.insert(0, {root!r}); from netbox.cli.main import main; main(['extcap', *sys.argv[1:]])"
    text = f'#!/bin/sh\n{_MARK}\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$@"\n'
    _refuse_foreign(path)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, 0o755)
    except OSError as error:
        raise host_error("write", path, error) from error
    output.echo(path)


def _uninstall(path: str) -> None:
    _refuse_foreign(path)
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise host_error("remove", path, error) from error
    output.echo(path)


def _refuse_foreign(path: str) -> None:
    """Raises:
    UsageError: the file there is not ours.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            ours = _MARK in file.read(4096)
    except OSError:
        return
    if not ours:
        raise UsageError(f"{path} was not made by netbox", "move it away first")
