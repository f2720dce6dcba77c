"""Why a start failed: one value that crosses the handshake, and the only exception that the sandbox's side raises on purpose."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any


class Failure(Exception):
    """``stage`` is what was being done, ``path`` the object, ``number`` the errno or 0, ``message`` a sentence for people or empty."""

    def __init__(self, stage: str, number: int = 0, path: str = "", message: str = "") -> None:
        super().__init__(stage, number, path, message)
        self.stage = stage
        self.number = number
        self.path = path
        self.message = message

    @classmethod
    def of(cls, stage: str, error: OSError, path: str = "") -> Failure:
        """The failure that an ``OSError`` stands for."""
        subject = path or error.filename or ""
        return cls(
            stage,
            error.errno or 0,
            os.fsdecode(subject) if isinstance(subject, str | bytes) else str(subject),
            error.strerror or str(error),
        )

    def to_message(self) -> dict[str, Any]:
        """The values of a FAILED message."""
        return {"stage": self.stage, "errno": self.number, "path": self.path, "message": self.message}

    @classmethod
    def from_message(cls, values: dict[str, Any]) -> Failure:
        """Reverses ``to_message``."""
        return cls(values["stage"], values["errno"], values["path"], values["message"])


class stage:
    """``with stage("mount", path):`` turns an ``OSError`` into the ``Failure`` of that stage."""

    def __init__(self, name: str, path: str = "") -> None:
        self._name = name
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, OSError):
            raise Failure.of(self._name, error, self._path) from error
