"""The table of commands, and the click group that imports a command's module only when it is chosen."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import click

from netbox import __version__
from netbox.cli.state import State


class Entry(NamedTuple):
    """Where a command is defined, and the line about it in ``netbox --help``."""

    module: str
    attribute: str
    help: str


SECTIONS: dict[str, dict[str, Entry]] = {
    "Sandboxes": {
        "run": Entry("run", "run", "Make a sandbox, start it and wait for its end (-d: do not wait)"),
        "create": Entry("run", "create", "Make a sandbox without starting it"),
        "start": Entry("lifecycle", "start", "Start sandboxes"),
        "stop": Entry("lifecycle", "stop", "Stop sandboxes: signal, then kill after a timeout"),
        "kill": Entry("lifecycle", "kill", "Send a signal to sandboxes"),
        "restart": Entry("lifecycle", "restart", "Stop sandboxes and start them again"),
        "pause": Entry("lifecycle", "pause", "Freeze every process of sandboxes"),
        "unpause": Entry("lifecycle", "unpause", "Let frozen sandboxes go on"),
        "wait": Entry("lifecycle", "wait", "Wait for the end of sandboxes and print their exit codes"),
        "rename": Entry("lifecycle", "rename", "Give a sandbox another name"),
        "update": Entry("update", "update", "Change the limits of sandboxes"),
        "publish": Entry("publish", "publish", "Publish ports of a sandbox, also while it runs"),
        "unpublish": Entry("publish", "unpublish", "Take published ports back"),
        "impair": Entry("impair", "impair", "Make the link of a running sandbox worse: slower, lossy, late"),
        "rm": Entry("lifecycle", "rm", "Remove sandboxes"),
    },
    "Inside": {
        "exec": Entry("exec", "exec_", "Run a command in a running sandbox"),
        "attach": Entry("exec", "attach", "Connect this terminal to a running sandbox"),
        "logs": Entry("logs", "logs", "Print what a sandbox wrote"),
        "top": Entry("stats", "top", "List the processes of a sandbox"),
    },
    "Look": {
        "ps": Entry("listing", "ps", "List sandboxes"),
        "show": Entry("listing", "show", "Show one sandbox on a card"),
        "inspect": Entry("listing", "inspect", "Print everything about sandboxes as JSON"),
        "port": Entry("listing", "port", "List the published ports of a sandbox"),
        "exposure": Entry("exposure", "exposure", "Show who can reach what, and by which rule"),
        "stats": Entry("stats", "stats", "Show what sandboxes use, live"),
        "events": Entry("events", "events", "Print what happens to sandboxes"),
        "topology": Entry("topology", "topology", "Draw the networks and who is on them"),
    },
    "Packets": {
        "why": Entry("why", "command", "Say why one sandbox reaches another or not, and what mends it"),
        "matrix": Entry("matrix", "matrix", "Show who reaches whom, with packets"),
        "probe": Entry("probe", "probe", "Send packets from one place to another and say what comes back"),
        "trace": Entry("trace", "trace", "Follow a packet, rule by rule, to a socket or to its drop"),
        "drops": Entry("drops", "drops", "Print every packet that the kernel drops for sandboxes, and why"),
        "capture": Entry("capture", "capture", "Record or print the packets of sandboxes"),
        "extcap": Entry("extcap", "extcap", "Offer sandboxes as interfaces to Wireshark and tshark"),
    },
    "Networks, images, system": {
        "network": Entry("network", "command", "Manage networks, connect and disconnect sandboxes"),
        "image": Entry("image", "command", "Manage images"),
        "check": Entry("check", "command", "Check what this machine offers and what is missing"),
        "verify": Entry("verify", "verify", "Prove with packets that networks work on this machine"),
        "repair": Entry("repair", "repair", "Put firewall rules back that others changed"),
        "gc": Entry("gc", "gc", "Collect what killed processes left behind"),
        "info": Entry("system", "info", "Describe this installation and this machine"),
        "version": Entry("system", "version", "Print the version"),
        "completion": Entry("system", "completion", "Print the completion script for a shell"),
    },
}
COMMANDS: dict[str, Entry] = {name: entry for section in SECTIONS.values() for name, entry in section.items()}
HIDDEN = {"ls": "ps"}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every name, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or ``None``."""
        entry = COMMANDS.get(HIDDEN.get(cmd_name, cmd_name))
        if entry is None:
            return None
        module = importlib.import_module(f"netbox.cli.{entry.module}")
        command: click.Command = getattr(module, entry.attribute)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with the name that was probably meant."""
        name = args[0]
        if name in COMMANDS or name in HIDDEN or name.startswith("-"):
            return super().resolve_command(ctx, args)
        from difflib import get_close_matches

        close = get_close_matches(name, COMMANDS, n=1)
        guess = f". Did you mean '{close[0]}'?" if close else ""
        raise click.UsageError(f"no such command {name[:60]!r}{guess}", ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The sections of the table; imports nothing."""
        width = max(map(len, COMMANDS))
        for title, entries in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), entry.help) for name, entry in entries.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Command names out of the table, then the group's own options."""
        from click.shell_completion import CompletionItem

        names: list[Any] = [CompletionItem(name, help=entry.help) for name, entry in COMMANDS.items() if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"netbox {__version__}")
        context.exit()


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  netbox run -d --name web -p 8080:80 host python3 -m http.server 80
  netbox run --rm -it --network none busybox sh
  netbox logs -f web

Each command explains itself: netbox COMMAND --help.""",
)
@click.option("--debug", is_flag=True, help="Show tracebacks of errors (also NETBOX_DEBUG=1).")
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Print the version and exit.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Run processes in networks of their own.

    A sandbox is a process with its own namespaces, limits, root file system and network.
    """
    state = context.ensure_object(State)
    state.debug = state.debug or debug
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
