"""Options that several commands share, and what turns them into requests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from netbox.cli import output
from netbox.errors import NetboxError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from netbox.engine import Engine, Sandbox

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]


def combined(*decorators: Decorator) -> Decorator:
    """One decorator out of several, the first outermost."""

    def apply(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def complete_sandboxes(running: bool | None = None) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Completes names of sandboxes (ids once a digit or letter of one was typed that no name has); ``running`` picks by state."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from netbox.engine import Engine

        try:
            with Engine(warm=False) as engine:
                found = [box for box in engine.list(all=True) if running is None or (box.state in ("running", "paused")) is running]
        except NetboxError:
            return []
        names = [CompletionItem(box.name, help=f"{box.image} {box.state}") for box in found if box.name.startswith(incomplete)]
        return names or [CompletionItem(box.short_id, help=box.name) for box in found if box.short_id.startswith(incomplete)]

    return complete


def complete_images(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes names of images."""
    from click.shell_completion import CompletionItem

    from netbox.engine import Engine

    try:
        with Engine(warm=False) as engine:
            names = {image.name for image in engine.images.list()} | {"busybox", "host"}
    except NetboxError:
        return []
    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


def complete_networks(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes names of networks."""
    from click.shell_completion import CompletionItem

    from netbox.engine import Engine

    try:
        with Engine(warm=False) as engine:
            found = engine.networks.list()
    except NetboxError:
        return []
    return [CompletionItem(item.name, help=item.subnet) for item in found if item.name.startswith(incomplete)]


def sandbox_argument(running: bool | None = None) -> Decorator:
    """One sandbox: name, id or unambiguous prefix of an id."""
    return click.argument("name", metavar="SANDBOX", shell_complete=complete_sandboxes(running))


def sandboxes_argument(running: bool | None = None, required: bool = True) -> Decorator:
    """Several sandboxes."""
    metavar = "SANDBOX..." if required else "[SANDBOX...]"
    return click.argument("names", metavar=metavar, nargs=-1, required=required, shell_complete=complete_sandboxes(running))


format_option = click.option(
    "--format", "output_format", type=click.Choice(["table", "json"]), default="table", help="Table for people, JSON for programs."
)
json_option = click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text", help="Text or JSON.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
no_trunc_option = click.option("--no-trunc", is_flag=True, help="Do not shorten ids and commands.")
filter_option = click.option("-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Only what matches; repeatable.")
detach_keys_option = click.option(
    "--detach-keys", metavar="KEYS", default=None, help="Keys that leave a sandbox running (default ctrl-p,ctrl-q)."
)
sig_proxy_option = click.option(
    "--sig-proxy",
    type=bool,
    default=True,
    metavar="true|false",
    help="Pass signals on to the sandbox (default true); the third ctrl-c kills it.",
)


def tracer_option(*names: str) -> Decorator:
    """How the kernel is asked about packets; by default the best that this host allows."""
    return click.option("--tracer", type=click.Choice(names), help="How to see packets (default: the best that works here).")


def label() -> str:
    """``netbox stop``: the command that runs, for messages."""
    context = click.get_current_context(silent=True)
    return context.command_path if context is not None else "netbox"


def for_each(engine: Engine, names: Sequence[str], action: Callable[[Sandbox], object], echo: bool = True) -> int:
    """Does something to every named sandbox, see ``for_each_name``."""
    return for_each_name(names, lambda name: action(engine.get(name)), echo)


def for_each_name(names: Sequence[str], action: Callable[[str], object], echo: bool = True) -> int:
    """Does something for every name, and prints what it gives, or else the name. An error is a line on stderr; the others go on.

    Returns the exit code: 0, or that of the last error.
    """
    code = 0
    for name in names:
        try:
            result = action(name)
        except NetboxError as error:
            output.report(label(), str(error))
            code = error.exit_code
        else:
            if echo:
                output.echo(name if result is None else str(result))
            sys.stdout.flush()
    return code


RESOURCE_OPTIONS = combined(
    click.option("-m", "--memory", metavar="SIZE", help="Most memory, such as 256m."),
    click.option("--memory-swap", metavar="SIZE", help="Most memory plus swap; -1 is unlimited swap."),
    click.option("--cpus", metavar="NUMBER", help="Most processors, such as 1.5."),
    click.option("-c", "--cpu-shares", metavar="WEIGHT", help="Share of processors against others, 2 to 262144 (default 1024)."),
    click.option("--cpuset-cpus", metavar="LIST", help="Processors that may be used, such as 0-1,3."),
    click.option("--pids-limit", metavar="NUMBER", help="Most processes and threads; -1 is unlimited."),
    click.option("--blkio-weight", metavar="WEIGHT", help="Share of block I/O against others, 10 to 1000."),
)
