"""``netbox exec`` and ``netbox attach``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from netbox.cli import options, output, terminal
from netbox.errors import HostError, NetboxError
from netbox.parse import parse_user, parse_working_dir

if TYPE_CHECKING:
    from netbox.cli.state import State


@click.command(
    name="exec",
    context_settings={"allow_interspersed_args": False},
    epilog="""\b
Examples:
  netbox exec -it web sh
  netbox exec web ip addr
  echo data | netbox exec -i web tee /tmp/file
  netbox exec -d -u 1000 -e MODE=fast web /usr/local/bin/job

Exit code: the command's own; 126 when it cannot be executed, 127 when it is not there, 0 after the detach keys.
""",
)
@click.option("-i", "--interactive", is_flag=True, help="Pass stdin on to the command.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait for it.")
@click.option("-u", "--user", metavar="USER[:GROUP]", help="User, by name or number.")
@click.option("-w", "--workdir", "working_dir", metavar="DIR", help="Working directory inside.")
@click.option("-e", "--env", "environment", multiple=True, metavar="NAME[=VALUE]", help="Environment variable; repeatable.")
@click.option("--env-file", "env_files", multiple=True, metavar="FILE", help="File of NAME=VALUE lines.")
@click.option("--privileged", is_flag=True, help="All capabilities.")
@options.detach_keys_option
@options.sandbox_argument(running=True)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def exec_(
    state: State | None,
    interactive: bool,
    tty: bool,
    detach: bool,
    user: str | None,
    working_dir: str | None,
    environment: tuple[str, ...],
    env_files: tuple[str, ...],
    privileged: bool,
    detach_keys: str | None,
    name: str,
    command: tuple[str, ...],
) -> int:
    """Run COMMAND in a running sandbox. It ends when this command is interrupted, unless -d is given or the detach keys are typed."""
    from netbox.engine import Engine

    keys = terminal.parse_detach_keys(detach_keys or terminal.DEFAULT_DETACH_KEYS)
    variables = _variables(environment, env_files)
    user = None if user is None else parse_user(user)
    working_dir = None if working_dir is None else parse_working_dir(working_dir)
    if interactive and tty and not detach:
        terminal.require_terminal()
    with Engine(warm=False, prespawned=state.take_helper() if state is not None else None) as engine:
        attachment = engine.get(name).open_exec(
            *command,
            user=user,
            working_dir=working_dir,
            environment=variables,
            tty=tty,
            stdin=interactive and not detach,
            detach=detach,
            privileged=privileged,
            console_size=terminal.console_size() if tty else None,
        )
        if attachment is None:
            return 0
        with attachment:
            outcome = terminal.Session(attachment, tty=tty, stdin=interactive, detach_keys=keys).run()
    if outcome.detached:
        print(file=sys.stderr)
        output.report(options.label(), f"the command runs on; 'netbox top {name}' shows it")
        return 0
    if outcome.signal is not None:
        return 128 + outcome.signal
    if outcome.exit_code is None:
        raise HostError(f"lost the command in {name}: the process that watched it is gone", f"'netbox ps -a' tells whether {name} runs")
    return outcome.exit_code


def _variables(environment: tuple[str, ...], env_files: tuple[str, ...]) -> list[str]:
    import os

    from netbox.parse.environment import parse_environment, read_env_files

    found = dict(parse_environment(read_env_files(env_files), os.environ)) | dict(parse_environment(environment, os.environ))
    return [f"{key}={value}" for key, value in found.items()]


@click.command(
    epilog="""\b
Examples:
  netbox attach shell                      # ctrl-p ctrl-q leaves it running
  netbox attach --no-stdin web

Exit code: that of the sandbox; 0 after the detach keys.
"""
)
@click.option("--no-stdin", is_flag=True, help="Do not pass stdin on.")
@options.detach_keys_option
@options.sig_proxy_option
@options.sandbox_argument(running=True)
def attach(no_stdin: bool, detach_keys: str | None, sig_proxy: bool, name: str) -> int:
    """Join stdin, stdout and stderr with those of a running sandbox."""
    from netbox.cli.run import proxy_to, say_detached
    from netbox.engine import Engine

    keys = terminal.parse_detach_keys(detach_keys or terminal.DEFAULT_DETACH_KEYS)
    with Engine(warm=False) as engine:
        sandbox = engine.get(name)
        spec = sandbox.spec
        stdin = spec.open_stdin and not no_stdin
        if stdin and spec.tty:
            terminal.require_terminal()
        with sandbox.attach() as attachment:
            session = terminal.Session(
                attachment, tty=spec.tty, stdin=stdin, detach_keys=keys, proxy=proxy_to(sandbox) if sig_proxy else None
            )
            outcome = session.run()
        if outcome.detached:
            say_detached(sandbox)
            return 0
        if outcome.signal is not None:
            return 128 + outcome.signal
        if outcome.exit_code is not None:
            return outcome.exit_code
        try:
            return sandbox.wait()
        except NetboxError as error:
            output.report(options.label(), str(error))
            return error.exit_code
