"""``version info completion``."""

from __future__ import annotations

import platform

import click

from netbox import __version__
from netbox.cli import options, output

_SCRIPTS = {"bash": "BashComplete", "zsh": "ZshComplete", "fish": "FishComplete"}


@click.command(epilog="\b\nExamples:\n  netbox version\n  netbox version --format json")
@options.json_option
def version(output_format: str) -> None:
    """Print the versions of netbox, Python and the kernel."""
    versions = {"netbox": __version__, "python": platform.python_version(), "kernel": platform.release(), "machine": platform.machine()}
    if output_format == "json":
        output.echo_json(versions)
    else:
        output.echo("\n".join(f"{name.ljust(8)} {value}" for name, value in versions.items()))


@click.command(epilog="\b\nExamples:\n  netbox info\n  netbox info --format json")
@options.json_option
def info(output_format: str) -> None:
    """Describe this installation: versions, directories, sandboxes by state, images, the machine."""
    from netbox.engine import Engine

    with Engine(warm=False) as engine:
        facts = engine.info()
    if output_format == "json":
        output.echo_json(facts)
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        output.echo(f"{name.replace('_', ' ').ljust(width)}  {_fact_text(value)}")


def _fact_text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count} {name}" for name, count in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return output.human_size(value) if isinstance(value, int) and value > 1 << 20 else str(value)


@click.command(
    epilog="""\b
Examples:
  netbox completion bash > /etc/bash_completion.d/netbox
  netbox completion zsh > "${fpath[1]}/_netbox"
  netbox completion fish > ~/.config/fish/completions/netbox.fish
"""
)
@click.argument("shell", type=click.Choice(list(_SCRIPTS)))
def completion(shell: str) -> None:
    """Print the completion script for a shell: commands, options, names of sandboxes and images."""
    from click import shell_completion

    from netbox.cli.table import cli

    kind: type[shell_completion.ShellComplete] = getattr(shell_completion, _SCRIPTS[shell])
    completer = kind(cli, {}, "netbox", "_NETBOX_COMPLETE")
    # Not source(): for bash it asks the installed shell for its version, which need not be the one that will read the script.
    output.echo(completer.source_template % completer.source_vars())
