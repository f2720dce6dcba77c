"""What an image is: the value that the store hands out, and its record on disk. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from netbox.errors import StateError

FORMAT = 1
SHORT_ID_LENGTH = 12

Progress = Callable[[int, int | None], None]
"""Called with the bytes done and the bytes in all, ``None`` where the end is not known."""


class Image(NamedTuple):
    """A named root file system.

    ``id`` is new with every import. ``created_at`` is in epoch seconds, ``size`` counts the bytes of regular files, a hard-linked one
    once; both are 0 for ``host``. ``layers`` are directories, top first, in the order of overlayfs' ``lowerdir``. ``command`` may be
    empty: then ``run`` must name one. An empty ``working_dir`` means ``/``, an empty ``user`` root.
    """

    name: str
    id: str
    created_at: float
    size: int
    source: str
    layers: tuple[str, ...]
    command: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    working_dir: str = ""
    user: str = ""
    host: bool = False

    @property
    def short_id(self) -> str:
        """The first 12 digits of the id, which listings show."""
        return self.id[:SHORT_ID_LENGTH]

    def to_json(self) -> dict[str, Any]:
        """The image as plain JSON values, for ``image inspect`` and ``--format json``."""
        values = self._asdict()
        values["environment"] = [f"{key}={value}" for key, value in self.environment]
        values["layers"], values["command"] = list(self.layers), list(self.command)
        return values


class Record(NamedTuple):
    """An image as it stands on disk: layers by id, and for a generated image the marks of what it was made from."""

    image: Image
    made_from: dict[str, int | str] | None = None

    def dump(self) -> bytes:
        """The text of the record's file."""
        values = self.image._asdict()
        del values["host"]
        values["layers"] = [layer.rpartition("/")[2] for layer in self.image.layers]
        return json.dumps({"format": FORMAT, **values, "made_from": self.made_from}).encode()

    @classmethod
    def load(cls, text: bytes, path: str, layers_directory: str) -> Record:
        """Reverses ``dump``. Raises StateError when the file at ``path`` is damaged or was written by a newer version."""
        try:
            values = json.loads(text)
            if values["format"] > FORMAT:
                raise StateError(
                    f"image record {path} was written by a newer netbox", "use that version, or remove the file and import the image again"
                )
            image = Image(
                name=values["name"],
                id=values["id"],
                created_at=values["created_at"],
                size=values["size"],
                source=values["source"],
                layers=tuple(f"{layers_directory}/{layer}" for layer in values["layers"]),
                command=tuple(values["command"]),
                environment=tuple((key, value) for key, value in values["environment"]),
                working_dir=values["working_dir"],
                user=values["user"],
            )
            return cls(image, values["made_from"])
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(f"image record {path} is damaged ({error})", "remove the file and import the image again") from error
