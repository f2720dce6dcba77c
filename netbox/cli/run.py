"""``netbox run`` and ``netbox create``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from netbox.cli import notice, options, output, terminal
from netbox.cli.state import State
from netbox.errors import NetboxError, UsageError, host_error
from netbox.parse.text import quote

if TYPE_CHECKING:
    from netbox.engine import Sandbox
    from netbox.spec import SandboxSpec

_CONTEXT = {"ignore_unknown_options": False, "allow_interspersed_args": False}
_EPILOG = """\b
Examples:
  netbox run -d --name web -p 8080:80 host python3 -m http.server 80
  netbox run --rm -it --network none busybox sh
  netbox run -d --name api --network front --network name=back,ip=10.20.30.5 busybox httpd -f
  netbox run --rm --network container:web busybox wget -qO- http://127.0.0.1/
  netbox run --rm -m 64m --cpus 0.5 -v ./data:/data:ro busybox ls /data
  netbox run --rm --rootfs ./alpine -- /bin/sh -c 'cat /etc/os-release'
  netbox run --dry-run -p 8080:80 busybox httpd -f

Options after IMAGE belong to the command. Exit code: the command's own, 128 + n after signal n,
126 when it cannot be executed, 127 when it is not there, 125 when netbox failed.
"""
_CREATE_EPILOG = """\b
Examples:
  netbox create --name web -p 8080:80 busybox httpd -f
  netbox start web
"""

_NETWORK = options.combined(
    click.option("-p", "--publish", "ports", multiple=True, metavar="[[IP:]HOST:]PORT", help="Publish a port or range, [/tcp|udp|sctp]."),
    click.option("-P", "--publish-all", is_flag=True, help="Publish every exposed port on a free host port."),
    click.option("--expose", multiple=True, metavar="[NAME=]PORT", help="A port or range on which the sandbox serves; repeatable."),
    click.option(
        "--network",
        "--net",
        "network",
        multiple=True,
        metavar="NETWORK",
        shell_complete=options.complete_networks,
        help="bridge (default), host, none, container:NAME, ns:PATH or a network's name; repeatable; name=N,ip=…,ip6=…,alias=…,….",
    ),
    click.option("--network-alias", "network_aliases", multiple=True, metavar="NAME", help="Further name on the first network."),
    click.option("--ip", metavar="ADDRESS", help="IPv4 address on the first network, kept while the sandbox is stopped."),
    click.option("--ip6", metavar="ADDRESS", help="IPv6 address on the first network, kept as well."),
    click.option("--mac-address", metavar="MAC", help="MAC address such as 02:42:ac:11:00:02."),
    click.option("--dns", multiple=True, metavar="ADDRESS", help="Name server."),
    click.option("--dns-search", multiple=True, metavar="DOMAIN", help="Search domain, or . for none."),
    click.option("--dns-option", "dns_options", multiple=True, metavar="OPTION", help="Option for resolv.conf, such as ndots:2."),
    click.option("--add-host", "extra_hosts", multiple=True, metavar="NAME:IP", help="Entry for /etc/hosts; IP may be host-gateway."),
    click.option("--net-rate-in", metavar="RATE", help="Most that comes in, such as 10mbit (tc's units)."),
    click.option("--net-rate-out", metavar="RATE", help="Most that goes out."),
    click.option("-h", "--hostname", metavar="NAME", help="Host name (default: the short id)."),
)
_FILES = options.combined(
    click.option("-v", "--volume", "volumes", multiple=True, metavar="SRC:DST[:ro]", help="Bind mount; a missing source is made."),
    click.option("--mount", "mounts", multiple=True, metavar="KEY=VALUE,...", help="type=bind|tmpfs,source=…,target=…[,readonly]."),
    click.option("--tmpfs", multiple=True, metavar="DST[:size=64m]", help="Mount a tmpfs."),
    click.option("--read-only", is_flag=True, help="Mount the root file system read-only."),
    click.option("--rootfs", metavar="DIR", type=click.Path(), help="Use a directory as root; the first argument is the command then."),
    click.option("--storage-opt", multiple=True, metavar="size=SIZE", help="Size limit of what is written over the image 'host'."),
    click.option("--shm-size", metavar="SIZE", help="Size of /dev/shm (default 64m)."),
    click.option("--device", "devices", multiple=True, metavar="DEV[:DEV][:rwm]", help="Give a device node of this machine."),
    click.option("--device-cgroup-rule", "device_rules", multiple=True, metavar="RULE", help="Allow devices, such as 'c 1:3 rwm'."),
)
_SECURITY = options.combined(
    click.option("--cap-add", multiple=True, metavar="CAP", help="Add a capability, or ALL."),
    click.option("--cap-drop", multiple=True, metavar="CAP", help="Drop a capability, or ALL."),
    click.option("--security-opt", multiple=True, metavar="OPT", help="no-new-privileges[=false], seccomp=FILE|unconfined."),
    click.option("--privileged", is_flag=True, help="All capabilities and devices, no seccomp filter."),
    click.option("--userns", metavar="MODE", help="auto: root inside is nobody outside; host (default)."),
)
_PROCESS = options.combined(
    click.option("-u", "--user", metavar="USER[:GROUP]", help="User, by name or number."),
    click.option("-w", "--workdir", "working_dir", metavar="DIR", help="Working directory inside."),
    click.option("-e", "--env", "environment", multiple=True, metavar="NAME[=VALUE]", help="Environment variable; repeatable."),
    click.option("--env-file", "env_files", multiple=True, metavar="FILE", type=click.Path(), help="File of NAME=VALUE lines."),
    click.option("--ulimit", "ulimits", multiple=True, metavar="NAME=SOFT[:HARD]", help="Resource limit, such as nofile=1024:2048."),
    click.option("--sysctl", "sysctls", multiple=True, metavar="NAME=VALUE", help="Namespaced kernel parameter."),
    click.option("--init", is_flag=True, help="A small reaper is pid 1, the command its child."),
    click.option("--stop-signal", metavar="SIGNAL", help="What 'stop' sends (default TERM)."),
    click.option("--stop-timeout", metavar="SECONDS", help="When 'stop' kills (default 10)."),
    click.option("--time-namespace", is_flag=True, help="A time namespace of its own."),
)
_IDENTITY = options.combined(
    click.option("--name", metavar="NAME", help="Name of the sandbox."),
    click.option("-l", "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label; repeatable."),
    click.option("-i", "--interactive", "open_stdin", is_flag=True, help="Pass stdin on to the command."),
    click.option("-t", "--tty", is_flag=True, help="Give it a terminal."),
    click.option("--rm", "remove", is_flag=True, help="Remove the sandbox when it ends."),
    click.option("--cidfile", metavar="FILE", type=click.Path(), help="Write the id to a file that must not exist."),
    click.option("--log-opt", multiple=True, metavar="KEY=VALUE", help="max-size=10m, max-file=3."),
)
_REQUEST = options.combined(_IDENTITY, _NETWORK, options.RESOURCE_OPTIONS, _FILES, _SECURITY, _PROCESS)
_ARGUMENTS = options.combined(
    click.argument("image", required=False, default="", shell_complete=options.complete_images),
    click.argument("command", nargs=-1, type=click.UNPROCESSED),
)


def build_request(image: str, command: Sequence[str], values: dict[str, Any]) -> SandboxSpec:
    """The request out of the values of ``_REQUEST``'s options. Raises ``UsageError``."""
    from netbox.parse import build_spec
    from netbox.parse.names import parse_log_options, parse_storage_options

    given = {key: value for key, value in values.items() if value not in (None, (), False)}
    if "rootfs" in given and image:
        image, command = "", (image, *command)
    elif not image and "rootfs" not in given:
        raise UsageError("no image is given", "name one such as busybox or host, or give --rootfs DIR and a command")
    log_size, log_files = parse_log_options(given.pop("log_opt", ()))
    storage_size = parse_storage_options(given.pop("storage_opt", ()))
    return build_spec(image, command, log_max_size=log_size, log_max_files=log_files, storage_size=storage_size, **given)


class IdFile:
    """The file of ``--cidfile``: made before the sandbox, so that a bad path is seen first; gone again after a failure."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._fd = -1
        if path is None:
            return
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            raise UsageError(f"cidfile {quote(path)}: it exists", "remove it, or name another file") from None
        except OSError as error:
            raise host_error("write", f"cidfile {quote(path)}", error) from error

    def write(self, sandbox_id: str) -> None:
        """Writes the id."""
        if self._fd >= 0:
            os.write(self._fd, sandbox_id.encode())
            os.close(self._fd)
            self._fd = -1

    def discard(self) -> None:
        """Removes the file unless the id was written."""
        if self._fd >= 0 and self._path is not None:
            os.close(self._fd)
            self._fd = -1
            os.unlink(self._path)


@click.command(context_settings=_CONTEXT, epilog=_EPILOG, short_help="Make a sandbox, start it and wait for its end.")
@click.option("-d", "--detach", is_flag=True, help="Print the id and do not wait.")
@click.option("-a", "--attach", multiple=True, type=click.Choice(["stdin", "stdout", "stderr"]), help="Join only this stream; repeatable.")
@_REQUEST
@options.detach_keys_option
@options.sig_proxy_option
@click.option("--dry-run", is_flag=True, help="Print the plan as commands, and change nothing.")
@_ARGUMENTS
@click.pass_obj
def run(
    state: State | None,
    /,
    image: str,
    command: tuple[str, ...],
    detach: bool,
    attach: tuple[str, ...],
    detach_keys: str | None,
    sig_proxy: bool,
    dry_run: bool,
    cidfile: str | None,
    **values: Any,
) -> int:
    """Make a sandbox from IMAGE, run COMMAND in it and wait for its end.

    IMAGE is the name of an image ('netbox image ls'): 'busybox' is made on first use, 'host' is this machine's own root,
    copy-on-write. Without COMMAND the image's default runs.
    """
    spec = build_request(image, command, values)
    keys = terminal.parse_detach_keys(detach_keys or terminal.DEFAULT_DETACH_KEYS)
    if detach and attach:
        raise UsageError("-d and -a contradict each other", "leave one of them out")
    if "stdin" in attach and not spec.open_stdin:
        raise UsageError("-a stdin needs -i", "give -i too")
    if dry_run:
        return _print_plan(spec)
    if spec.open_stdin and spec.tty and not detach:
        terminal.require_terminal()
    id_file = IdFile(cidfile)
    try:
        return _start(state or State(), spec, id_file, detach, _Attachment(attach, keys, sig_proxy, values["ports"]))
    finally:
        id_file.discard()


class _Attachment:
    """What the options of ``run`` say about the streams, and about published ports."""

    def __init__(self, streams: Sequence[str], keys: bytes, sig_proxy: bool, ports: Sequence[str]) -> None:
        numbers = {"stdout": terminal.STDOUT, "stderr": terminal.STDERR}
        self.stdin = not streams or "stdin" in streams
        self.outputs = [number for name, number in numbers.items() if not streams or name in streams]
        self.keys = keys
        self.sig_proxy = sig_proxy
        self.ports = ports


def _start(state: State, spec: SandboxSpec, id_file: IdFile, detach: bool, wanted: _Attachment) -> int:
    from netbox.engine import Engine

    with Engine(warm=False, prespawned=state.take_helper()) as engine:
        sandbox = engine.prepare_run(spec)
        id_file.write(sandbox.id)
        size = terminal.console_size() if spec.tty else None
        attachment = sandbox.start(attach=not detach, console_size=size)
        if attachment is None:
            notice.about_public_ports(wanted.ports, sandbox.ports)
            output.echo(sandbox.id)
            return 0
        try:
            with attachment:  # until the end is settled: it says that we do that
                notice.about_public_ports(wanted.ports, sandbox.ports)
                return finish(sandbox, _foreground(attachment, sandbox, spec, wanted))
        except (OSError, KeyboardInterrupt):
            # The output goes nowhere any more, as in 'netbox run … | head': the sandbox ends as a plain command in the pipe would. By now
            # nobody is attached: the monitor would wait for us to take the rest.
            send(sandbox, signal.SIGKILL)
            sandbox.wait()
            raise


def _foreground(attachment: terminal.Stream, sandbox: Sandbox, spec: SandboxSpec, wanted: _Attachment) -> terminal.Outcome:
    session = terminal.Session(
        attachment,
        tty=spec.tty,
        stdin=spec.open_stdin and wanted.stdin,
        detach_keys=wanted.keys,
        proxy=proxy_to(sandbox) if wanted.sig_proxy else None,
        streams=wanted.outputs,
    )
    return session.run()


def finish(sandbox: Sandbox, outcome: terminal.Outcome) -> int:
    """The exit code for an outcome; after the end of the sandbox everything is settled."""
    if outcome.detached:
        say_detached(sandbox)
        return 0
    if outcome.signal is not None:
        return 128 + outcome.signal
    if outcome.exit_code is None:
        return sandbox.wait()
    sandbox.settle()
    return outcome.exit_code


def say_detached(sandbox: Sandbox) -> None:
    """Where the sandbox is now. The line break ends the sandbox's own last line."""
    print(file=sys.stderr)
    output.report(options.label(), f"{sandbox.name} runs on; 'netbox attach {sandbox.name}' comes back to it")


def proxy_to(sandbox: Sandbox) -> terminal.Proxy:
    """Passes signals on to the sandbox."""
    label = options.label()
    return terminal.Proxy(lambda number: send(sandbox, number), lambda message: output.report(label, message))


def send(sandbox: Sandbox, number: int) -> None:
    """Sends a signal; that the sandbox has ended meanwhile is no error."""
    try:
        sandbox.kill(number)
    except NetboxError:
        pass


def _print_plan(spec: SandboxSpec) -> int:
    from netbox.engine import Engine

    with Engine(warm=False) as engine:
        sections = engine.plan(spec)
    output.echo("\n\n".join(plan_text(section.title, section.commands) for section in sections))
    return 0


def plan_text(title: str, commands: Sequence[str]) -> str:
    """A section of the plan: the title as a comment, then the commands with their comments aligned where they are short enough."""
    split = [line.rpartition("  # ") if "  # " in line else (line, "", "") for line in commands]
    width = max((len(command) for command, comment, _ in split if comment and len(command) <= 80), default=0)
    lines = [f"{command.rstrip().ljust(width)}  # {text}" if comment else text or command for command, comment, text in split]
    return "\n".join([output.style(f"# {title}", "bold"), *lines])


@click.command(context_settings=_CONTEXT, epilog=_CREATE_EPILOG, short_help="Make a sandbox without starting it.")
@_REQUEST
@_ARGUMENTS
def create(image: str, command: tuple[str, ...], cidfile: str | None, **values: Any) -> int:
    """Make a sandbox from IMAGE without starting it, and print its id.

    Takes the options of 'netbox run'.
    """
    from netbox.engine import Engine

    spec = build_request(image, command, values)
    id_file = IdFile(cidfile)
    try:
        with Engine(warm=False) as engine:
            sandbox = engine.create(spec)
            id_file.write(sandbox.id)
    finally:
        id_file.discard()
    output.echo(sandbox.id)
    notice.about_public_ports(values["ports"], spec.network.ports, running=False)
    return 0
