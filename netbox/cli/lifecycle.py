"""``start stop kill restart pause unpause wait rename rm``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from netbox.cli import options, output, terminal
from netbox.cli.state import State
from netbox.errors import UsageError

if TYPE_CHECKING:
    from netbox.engine import Engine

_TIMEOUT = click.option("-t", "--time", "timeout", metavar="SECONDS", help="Wait so long before killing (default: its --stop-timeout).")


@click.command(
    epilog="""\b
Examples:
  netbox start web db
  netbox start -a web        # and show what it writes, until it ends
  netbox start -ai shell     # with stdin too
"""
)
@click.option("-a", "--attach", is_flag=True, help="Show its output and wait for its end; exit with its code.")
@click.option("-i", "--interactive", is_flag=True, help="Pass stdin on too (implies -a).")
@options.detach_keys_option
@options.sig_proxy_option
@options.sandboxes_argument(running=False)
@click.pass_obj
def start(state: State | None, attach: bool, interactive: bool, detach_keys: str | None, sig_proxy: bool, names: tuple[str, ...]) -> int:
    """Start sandboxes that were created or have ended."""
    from netbox.engine import Engine

    helper = state.take_helper() if state is not None else None
    keys = terminal.parse_detach_keys(detach_keys or terminal.DEFAULT_DETACH_KEYS)
    with Engine(warm=False, prespawned=helper) as engine:
        if attach or interactive:
            if len(names) > 1:
                raise UsageError("-a takes one sandbox", "start the others without -a")
            return _start_attached(engine, names[0], interactive, keys, sig_proxy)
        return options.for_each(engine, names, lambda sandbox: sandbox.start())


def _start_attached(engine: Engine, name: str, interactive: bool, keys: bytes, sig_proxy: bool) -> int:
    from netbox.cli.run import finish, proxy_to

    sandbox = engine.get(name)
    spec = sandbox.spec
    if interactive and not spec.open_stdin:
        raise UsageError(f"{sandbox.name} was made without -i: its stdin is closed", "leave -i out, or make it again with -i")
    if interactive and spec.tty:
        terminal.require_terminal()
    size = terminal.console_size() if spec.tty else None
    attachment = sandbox.start(attach=True, console_size=size)
    assert attachment is not None  # asked for
    with attachment:
        session = terminal.Session(
            attachment, tty=spec.tty, stdin=interactive, detach_keys=keys, proxy=proxy_to(sandbox) if sig_proxy else None
        )
        return finish(sandbox, session.run())


@click.command(
    epilog="""\b
Examples:
  netbox stop web
  netbox stop -t 0 web db    # kill at once
"""
)
@_TIMEOUT
@options.sandboxes_argument(running=True)
def stop(timeout: str | None, names: tuple[str, ...]) -> int:
    """Stop sandboxes: send the stop signal, and SIGKILL after the timeout."""
    from netbox.engine import Engine

    seconds = _seconds(timeout)
    with Engine(warm=False) as engine:
        return options.for_each(engine, names, lambda sandbox: sandbox.stop(seconds))


@click.command(
    epilog="""\b
Examples:
  netbox kill web
  netbox kill -s HUP web
"""
)
@click.option("-s", "--signal", "signal_name", metavar="SIGNAL", default="KILL", help="Name or number (default KILL).")
@options.sandboxes_argument(running=True)
def kill(signal_name: str, names: tuple[str, ...]) -> int:
    """Send a signal to the first process of sandboxes."""
    from netbox.engine import Engine
    from netbox.parse import parse_signal

    number = parse_signal(signal_name)
    with Engine(warm=False) as engine:
        return options.for_each(engine, names, lambda sandbox: sandbox.kill(number))


@click.command(
    epilog="""\b
Examples:
  netbox restart web
  netbox restart -t 2 web db
"""
)
@_TIMEOUT
@options.sandboxes_argument()
def restart(timeout: str | None, names: tuple[str, ...]) -> int:
    """Stop sandboxes if they run, and start them."""
    from netbox.engine import Engine

    seconds = _seconds(timeout)
    with Engine(warm=False) as engine:
        return options.for_each(engine, names, lambda sandbox: sandbox.restart(seconds))


@click.command(epilog="\b\nExample:\n  netbox pause web")
@options.sandboxes_argument(running=True)
def pause(names: tuple[str, ...]) -> int:
    """Freeze every process of sandboxes, until 'unpause'."""
    from netbox.engine import Engine

    with Engine(warm=False) as engine:
        return options.for_each(engine, names, lambda sandbox: sandbox.pause())


@click.command(epilog="\b\nExample:\n  netbox unpause web")
@options.sandboxes_argument(running=True)
def unpause(names: tuple[str, ...]) -> int:
    """Let the processes of paused sandboxes go on."""
    from netbox.engine import Engine

    with Engine(warm=False) as engine:
        return options.for_each(engine, names, lambda sandbox: sandbox.unpause())


@click.command(
    epilog="""\b
Example:
  code=$(netbox wait job)
"""
)
@options.sandboxes_argument()
def wait(names: tuple[str, ...]) -> int:
    """Wait until sandboxes have ended, and print their exit codes."""
    from netbox.engine import Engine

    with Engine(warm=False) as engine:
        return options.for_each(engine, names, lambda sandbox: sandbox.wait())


@click.command(epilog="\b\nExample:\n  netbox rename calm-otter-3f12 web")
@options.sandbox_argument()
@click.argument("new_name", metavar="NEW-NAME")
def rename(name: str, new_name: str) -> None:
    """Give a sandbox another name."""
    from netbox.engine import Engine
    from netbox.parse import parse_name

    wanted = parse_name(new_name)
    with Engine(warm=False) as engine:
        engine.get(name).rename(wanted)
    output.echo(wanted)


@click.command(
    epilog="""\b
Examples:
  netbox rm web
  netbox rm -f web db                 # also while they run
  netbox rm $(netbox ps -aq --filter status=exited)
"""
)
@click.option("-f", "--force", is_flag=True, help="Kill it first if it runs.")
@options.sandboxes_argument()
def rm(force: bool, names: tuple[str, ...]) -> int:
    """Remove sandboxes, with their files and logs."""
    from netbox.engine import Engine

    with Engine(warm=False) as engine:
        return options.for_each(engine, names, lambda sandbox: sandbox.remove(force=force))


def _seconds(text: str | None) -> int | None:
    from netbox.parse import parse_stop_timeout

    return None if text is None else parse_stop_timeout(text)
