"""Deleting a tree. Loads nothing, since every command that may clean up needs it."""

from __future__ import annotations

import os
from contextlib import suppress

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: str) -> None:
    """Deletes a tree without following links; what is gone already, or goes at the same time, is fine. Raises OSError for the rest."""
    parent, _, name = os.path.abspath(path).rpartition("/")
    try:
        fd = os.open(parent or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _remove(fd, name)
    finally:
        os.close(fd)


def _remove(parent: int, name: str) -> None:
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
    except FileNotFoundError:
        return
    try:
        with os.scandir(fd) as entries:
            names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for inner, directory in names:
            if directory:
                _remove(fd, inner)
            else:
                with suppress(FileNotFoundError):
                    os.unlink(inner, dir_fd=fd)
    finally:
        os.close(fd)
    with suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=parent)
