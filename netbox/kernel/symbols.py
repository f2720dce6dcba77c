"""The kernel's functions by address (/proc/kallsyms, proc_kallsyms(5)).

Reading the file takes a tenth of a second and more, and few addresses are ever asked for: answers are kept in a file named after the boot.
"""

from __future__ import annotations

import bisect
import json
import os
import threading

_PATH = "/proc/kallsyms"
_BOOT = "/proc/sys/kernel/random/boot_id"


class Symbols:
    """Names of functions, looked up once. ``cache`` is a directory; one that cannot be written to is done without."""

    def __init__(self, cache: str | None = None) -> None:
        self._file = f"{cache}/symbols-{_boot()}.json" if cache else None
        self._known: dict[int, str] = self._load()
        self._table: tuple[list[int], list[str]] | None = None

    def name(self, address: int) -> str:
        """``nf_hook_slow`` for an address inside it; the address in hexadecimal where the kernel does not tell (kptr_restrict)."""
        if not address:
            return ""
        if address not in self._known:
            self._known[address], lasting = self._look_up(address)
            if lasting:
                self._save()
        return self._known[address]

    def _look_up(self, address: int) -> tuple[str, bool]:
        """The name, and whether it is good until the next boot: modules come and go."""
        if self._table is None:
            self._table = _read()
        starts, names = self._table
        place = bisect.bisect_right(starts, address) - 1
        if place < 0:
            return hex(address), False
        name, _, module = names[place].partition("\t")
        return name, not module

    def _load(self) -> dict[int, str]:
        try:
            with open(self._file or "", encoding="utf-8") as file:
                return {int(address, 16): str(name) for address, name in json.load(file).items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def _save(self) -> None:
        if self._file is None:
            return
        temporary = f"{self._file}.{threading.get_native_id()}"  # two threads may write it at once
        try:
            os.makedirs(os.path.dirname(self._file), mode=0o700, exist_ok=True)
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump({hex(address): name for address, name in self._known.items()}, file)
            os.replace(temporary, self._file)
        except OSError:
            self._file = None


def _read() -> tuple[list[int], list[str]]:
    rows = []
    try:
        with open(_PATH, encoding="ascii", errors="replace") as file:
            for line in file:
                address, kind, name = line.rstrip("\n").split(" ", 2)
                if kind in "tTwW":
                    rows.append((int(address, 16), name))
    except (OSError, ValueError):
        return [], []
    rows.sort(key=lambda row: row[0])
    if not rows or not rows[-1][0]:
        return [], []  # the addresses are hidden
    return [address for address, _ in rows], [name for _, name in rows]


def _boot() -> str:
    try:
        with open(_BOOT, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "unknown"
