"""``netbox image``: list, inspect, import and remove images."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import click

from netbox.cli import options, output
from netbox.cli.progress import ProgressLine
from netbox.engine import Engine
from netbox.errors import UsageError
from netbox.image.model import Image
from netbox.parse import parse_filters

_SOURCE_WIDTH = 40


@click.group()
def command() -> None:
    """Manage images: named root file systems that sandboxes start from.

    `host` is this machine's own root, copy-on-write. `busybox` is made on first use from Debian's busybox-static. Others are imported.
    """


@command.command("ls")
@options.format_option
@options.quiet_option
@options.no_trunc_option
@options.filter_option
def list_images(output_format: str, quiet: bool, no_trunc: bool, filters: tuple[str, ...]) -> None:
    """List images.

    Filter: reference=PATTERN (a name, with * and ?).
    """
    patterns = [value for _, value in parse_filters(filters, ("reference",))]
    with Engine(warm=False) as engine:
        images = [image for image in engine.images.list() if not patterns or any(fnmatchcase(image.name, pattern) for pattern in patterns)]

    def identity(image: Image) -> str:
        return image.id if no_trunc else image.short_id

    def source(image: Image) -> str:
        return image.source if no_trunc else output.shortened(image.source, _SOURCE_WIDTH)

    def created(image: Image) -> str:
        return "-" if image.host else f"{output.human_duration(time.time() - image.created_at)} ago"

    def size(image: Image) -> str:
        return "-" if image.host else output.human_size(image.size)

    columns = [("NAME", lambda image: image.name), ("ID", identity), ("CREATED", created), ("SIZE", size), ("SOURCE", source)]
    output.listing(images, columns, Image.to_json, output_format=output_format, quiet=identity if quiet else None)


@command.command()
@click.argument("names", metavar="IMAGE...", nargs=-1, required=True, shell_complete=options.complete_images)
def inspect(names: tuple[str, ...]) -> int:
    """Print everything about images as JSON: one array."""
    documents: list[dict[str, Any]] = []
    with Engine(warm=False) as engine:
        code = options.for_each_name(names, lambda name: documents.append(engine.images.find(name).to_json()), echo=False)
    output.echo_json(documents)
    return code


@command.command("import")
@click.argument("name")
@click.argument("source", metavar="FILE|DIR|-", type=click.Path(allow_dash=True))
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
def import_image(name: str, source: str, quiet: bool) -> None:
    """Make an image from a tar archive, a directory or the standard input (-).

    The archive may be compressed by gzip, xz, bzip2 or zstd, whatever its name. It holds a root file system, as docker export writes it:

    \b
      docker export CONTAINER | netbox image import NAME -

    An image of the same name is replaced; sandboxes that use it keep what they have. An archive with an entry that would leave the image is
    refused as a whole.
    """
    with Engine(warm=False) as engine:
        replaces = any(image.name == name for image in engine.images.list())
        with ProgressLine(quiet) as line:
            progress = _import_progress(line, name)
            if source == "-":
                if sys.stdin.isatty():
                    raise UsageError(
                        "the standard input is a terminal, not an archive", "use a pipe or a file: netbox image import NAME - < FILE"
                    )
                image = engine.images.import_stream(name, sys.stdin.buffer, progress)
            else:
                image = engine.images.import_path(name, source, progress)
        output.echo(image.id)
        if replaces:
            engine.gc()


@command.command("rm")
@click.argument("names", metavar="IMAGE...", nargs=-1, required=True, shell_complete=options.complete_images)
@click.option("-f", "--force", is_flag=True, help="Also an image that sandboxes use: its files go when the last of them does.")
def remove(names: Sequence[str], force: bool) -> int:
    """Remove images."""
    with Engine(warm=False) as engine:
        return options.for_each_name(names, lambda name: engine.remove_image(name, force=force).name)


def _import_progress(line: ProgressLine, name: str) -> Callable[[int, int | None], None]:
    def show(done: int, total: int | None) -> None:
        text = f"importing {name}: {output.human_size(done)}"
        if total:
            text += f" of {output.human_size(total)} ({min(100, 100 * done // total)}%)"
        line.show(text)

    return show
