"""The images of this machine.

    images/.lock                 see ``locks.StoreLock``
    images/names/NAME.json       the record of an image, with the ids of its layers; replaced by rename
    images/layers/ID/            a root file system, complete from the moment it has its name, never changed afterwards
    images/.incoming-RANDOM/     what is being made or deleted, see ``locks.Workspace``

An import makes a new layer and then lets the name point to it. Sandboxes keep the layers they started with; a layer goes when neither a
name nor a sandbox holds it.
"""

from __future__ import annotations

import builtins
import os
import stat
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, BinaryIO

from netbox.errors import NoPermission, NotFound, UsageError, host_error
from netbox.image import busybox, host
from netbox.image.locks import StoreLock, Workspace, one_maker
from netbox.image.model import Image, Progress, Record
from netbox.names import valid_name

if TYPE_CHECKING:
    from netbox.image.tree import Tree
    from netbox.settings import Settings

__all__ = ["Image", "ImageStore", "Progress"]

_RESOLVE_IN_ROOT = 0x10  # <linux/openat2.h>: ".." and absolute links stay inside, as after chroot(2)


class ImageStore:
    """Images by name. Making one costs nothing and opens nothing; several processes and threads may use one store at once."""

    def __init__(self, settings: Settings) -> None:
        self._directory = settings.images
        self._layers = f"{settings.images}/layers"
        self._names = f"{settings.images}/names"
        self._lock = StoreLock(settings.images)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While held, no layer disappears: from ``get`` until the sandbox that uses the layers is recorded."""
        with _errors("lock", self._directory), self._lock.shared():
            yield

    @contextmanager
    def changing(self) -> Iterator[None]:
        """While held, nobody is inside ``reading``: from the list of layers in use until ``remove`` or ``gc`` is done."""
        with _errors("lock", self._directory), self._lock.exclusive():
            yield

    def list(self) -> list[Image]:
        """All images, ``host`` first, then by name. Raises StateError for a damaged record."""
        records = (self._record(name) for name in self._record_names())
        return [host.image(), *(record.image for record in records if record is not None)]

    def get(self, reference: str) -> Image:
        """The image of that name, else the one whose id begins so. ``busybox`` is made on first use.

        Raises NotFound, naming the images there are, UsageError for an ambiguous id, StateError for a damaged record, and for busybox
        Unsupported and HostError.
        """
        if reference == host.NAME:
            return host.image()
        record = self._record(reference) if valid_name(reference) else None
        if reference == busybox.NAME:
            return self._busybox(record)
        return record.image if record is not None else self._by_id(reference)

    def preview(self, reference: str) -> Image:
        """As ``get``, but makes nothing: a ``busybox`` that ``get`` would make has a layer of that name. Raises what ``get`` raises."""
        record = self._record(busybox.NAME) if reference == busybox.NAME else None
        if reference != busybox.NAME or (record is not None and _is_current(record)):
            return self.get(reference)
        with _errors("make", "the image 'busybox'"):
            source = busybox.find_static().path
        return Image(busybox.NAME, "", 0.0, 0, source, (f"{self._layers}/{busybox.NAME}",), busybox.COMMAND)

    def find(self, reference: str) -> Image:
        """As ``get``, but makes nothing: ``busybox`` is not found before its first use. Raises NotFound, UsageError, StateError."""
        if reference == host.NAME:
            return host.image()
        record = self._record(reference) if valid_name(reference) else None
        return record.image if record is not None else self._by_id(reference)

    def import_path(self, name: str, path: str, progress: Progress | None = None) -> Image:
        """Makes an image from a tar archive, compressed or not, or from a directory. An image of that name is replaced when all went well.

        Raises UsageError for a bad name, path or archive, Unsupported, NoPermission, and HostError, such as for a full disk. Nothing is
        left then.
        """
        _check_import(name)
        if os.path.isdir(path):
            from netbox.image import directory

            return self._import(name, os.path.abspath(path), lambda tree: directory.copy(path, tree, self._directory, progress))
        try:
            with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC), "rb", buffering=0) as stream:
                status = os.fstat(stream.fileno())
                if not (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
                    raise UsageError(f"cannot import '{path}': it is neither a file nor a directory", "give a tar archive or a directory")
                total = status.st_size if stat.S_ISREG(status.st_mode) else None
                return self._import_archive(name, stream, os.path.abspath(path), total, progress)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise UsageError(f"cannot import '{path}': there is no such file or directory", "check the path") from error
            raise host_error("read", f"'{path}'", error) from error

    def import_stream(self, name: str, stream: BinaryIO, progress: Progress | None = None, source: str = "stdin") -> Image:
        """The same from an open binary stream, such as the standard input; it is read to its end."""
        _check_import(name)
        try:
            return self._import_archive(name, stream, source, None, progress)
        except OSError as error:
            raise host_error("read", source, error) from error

    def remove(self, name: str, in_use: Collection[str] = ()) -> Image:
        """Takes an image's name away, and its layers unless another image or ``in_use``, a set of layer directories, holds them.

        Raises NotFound, UsageError for ``host``, HostError. The caller refuses while sandboxes use the image, inside ``changing``.
        """
        if name == host.NAME:
            raise UsageError("the image 'host' is this machine's own root and cannot be removed", "it takes no space of its own")
        with ExitStack() as doomed, self.changing():
            image = self.find(name)
            with _errors("remove", f"image '{image.name}'"):
                os.unlink(self._record_path(image.name))
                self._take_away({_last(layer) for layer in image.layers}, in_use, doomed)
        return image

    def gc(self, in_use: Collection[str]) -> builtins.list[str]:
        """Deletes the layers that neither an image nor ``in_use`` holds, and half-made ones whose importer died. A line for each.

        Raises StateError for a damaged record, since the layers it holds are not known, and HostError.
        """
        if not os.path.isdir(self._directory):
            return []
        removed = []
        with _errors("clean up", self._directory), ExitStack() as doomed, self._lock.exclusive():
            for workspace in Workspace.abandoned(self._directory):
                doomed.enter_context(workspace)
                removed.append(f"half-made image {workspace.path}")
            removed += [f"image layer {layer}" for layer in self._take_away(_names_in(self._layers), in_use, doomed)]
        return removed

    def _take_away(self, layers: Collection[str], in_use: Collection[str], doomed: ExitStack) -> builtins.list[str]:
        """Moves those layers that nobody holds into a workspace, which ``doomed`` deletes after the lock is free: that may take long."""
        held = {_last(layer) for layer in in_use}
        for name in self._record_names():
            record = self._record(name)
            held.update(_last(layer) for layer in (record.image.layers if record is not None else ()))
        unused = sorted(set(layers) - held)
        if unused:
            workspace = doomed.enter_context(Workspace.create(self._directory))
            for layer in unused:
                os.rename(f"{self._layers}/{layer}", f"{workspace.path}/{layer}")
        return [f"{self._layers}/{layer}" for layer in unused]

    def _import_archive(self, name: str, stream: BinaryIO, source: str, total: int | None, progress: Progress | None) -> Image:
        from netbox.image import archive
        from netbox.image.streams import Archive

        return self._import(name, source, lambda tree: archive.extract(Archive(stream, total, progress), tree))

    def _import(self, name: str, source: str, fill: Callable[[Tree], object]) -> Image:
        from netbox.image.tarformat import BadArchive
        from netbox.image.tree import Tree

        with _errors("import", f"'{source}'"), self._workspace() as workspace:
            root = f"{workspace.path}/root"
            os.mkdir(root, 0o700)
            try:
                with Tree(root) as tree:
                    fill(tree)
                    command = _default_command(tree.root)
                    tree.sync()
            except BadArchive as error:
                raise UsageError(f"cannot import '{source}': {error}", error.hint) from error
            return self._publish(workspace, Record(self._image(name, tree.size, source, command)))

    @contextmanager
    def _workspace(self) -> Iterator[Workspace]:
        with self._lock.shared():
            workspace = Workspace.create(self._directory)
        with workspace:
            yield workspace

    def _image(self, name: str, size: int, source: str, command: tuple[str, ...]) -> Image:
        layer = os.urandom(8).hex()
        return Image(name, layer, time.time(), size, source, (f"{self._layers}/{layer}",), command)

    def _publish(self, workspace: Workspace, record: Record) -> Image:
        """The layer gets its place, then the name points to it. Killed between the two, the layer belongs to nobody and ``gc`` takes it."""
        with open(f"{workspace.path}/record", "xb") as file:
            file.write(record.dump())
            file.flush()
            os.fsync(file.fileno())
        with self._lock.shared():
            for directory in (self._layers, self._names):
                os.makedirs(directory, 0o700, exist_ok=True)
            os.rename(f"{workspace.path}/root", record.image.layers[0])
            os.rename(file.name, self._record_path(record.image.name))
        return record.image

    def _busybox(self, record: Record | None) -> Image:
        if record is not None and _is_current(record):
            return record.image
        with _errors("make", "the image 'busybox'"), self._lock.shared(), one_maker(self._directory, busybox.NAME):
            record = self._record(busybox.NAME)
            if record is not None and _is_current(record):
                return record.image
            with self._workspace() as workspace:
                binary = busybox.find_static()
                size = busybox.build(binary, f"{workspace.path}/root")
                image = self._image(busybox.NAME, size, binary.path, busybox.COMMAND)
                return self._publish(workspace, Record(image, binary.mark()))

    def _by_id(self, reference: str) -> Image:
        images = self.list()
        found = [image for image in images if reference and not image.host and image.id.startswith(reference)]
        if len(found) > 1:
            raise UsageError(
                f"image id '{reference}' is ambiguous: {', '.join(image.name for image in found)}", "give more digits, or the name"
            )
        if not found and reference == busybox.NAME:
            raise NotFound("the image 'busybox' is not there yet", "it is made on first use: netbox run --rm busybox true")
        if not found:
            names = sorted({image.name for image in images} | {busybox.NAME})
            raise NotFound(f"no image '{reference}'", f"the images are {', '.join(names)}; 'netbox image import NAME FILE' makes another")
        return found[0]

    def _record_path(self, name: str) -> str:
        return f"{self._names}/{name}.json"

    def _record_names(self) -> builtins.list[str]:
        return sorted(name.removesuffix(".json") for name in _names_in(self._names) if name.endswith(".json"))

    def _record(self, name: str) -> Record | None:
        path = self._record_path(name)
        try:
            with open(path, "rb", buffering=0) as file:
                return Record.load(file.read(), path, self._layers)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise host_error("read", f"the image record {path}", error) from error


def _check_import(name: str) -> None:
    from netbox.parse import parse_name

    parse_name(name, "image")
    if name == host.NAME:
        raise UsageError("the name 'host' stands for this machine's own root", "choose another name")
    if os.geteuid() != 0:
        raise NoPermission("importing an image needs root: files keep their owners", "run it as root (sudo)")


def _default_command(root: int) -> tuple[str, ...]:
    """The shell, if the image has one. Links are followed as they will be in a sandbox: inside the image."""
    from netbox.kernel.syscalls import openat2

    try:
        os.close(openat2(root, "bin/sh", os.O_PATH, 0, _RESOLVE_IN_ROOT))
    except OSError:
        return ()
    return ("/bin/sh",)


def _is_current(record: Record) -> bool:
    """Whether the image ``busybox`` was made from the host's program as it is now; one that was imported stays as it is."""
    if record.made_from is None:
        return True
    found = busybox.find()
    return (found is None or record.made_from == found.mark()) and busybox.intact(record)


def _names_in(directory: str) -> builtins.list[str]:
    with _errors("read", directory):
        try:
            return os.listdir(directory)
        except (FileNotFoundError, NotADirectoryError):
            return []


def _last(path: str) -> str:
    return path.rpartition("/")[2]


@contextmanager
def _errors(operation: str, subject: str) -> Iterator[None]:
    """An ``OSError`` inside becomes a ``HostError`` about the subject."""
    try:
        yield
    except OSError as error:
        raise host_error(operation, subject, error) from error
