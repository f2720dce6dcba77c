"""The legacy iptables tables, through python-iptables: the only importer of ``iptc``.

``editing("nat")`` opens one table: what is done inside the block becomes ONE commit, under the lock of the ``iptables`` command; ``edit``
does the same with a function, anew when somebody who does not take the lock has interfered.

What python-iptables 1.2.0 does to a program, and how this module stays clear of it:

- Its import starts 27 child processes (``gcc``, ``ld``, ``ldconfig``, ``modprobe``) that look for libraries. While it is imported, a
  stand-in for its module ``iptc.util`` opens the libraries by their sonames and ``XTABLES_LIBDIR`` is set; both are put back afterwards.
- ``autocommit=True`` swallows the kernel's errors: it is off, and ``commit`` is called.
- ``Table`` objects are cached per process and hold a socket of the namespace where they were opened: every edit opens a fresh handle in
  the calling thread's namespace and closes it at the end, so that no namespace is kept alive.
- It never takes ``/run/xtables.lock``: ``editing`` does, with a bounded wait.
- It is not safe for threads: one lock of this module is held around every use.
- A wrong parameter jumps out of C over Python's frames (``longjmp``): ``validate`` looks at every value before iptc sees it.
- ``Rule.final_check`` and every read of a parameter redirect file descriptor 1 of the whole process into a pipe: other threads' output
  would vanish. Neither is called: an extension's own check is called directly, right after its parameters (which it shares with all rules
  of the process) were set, and installed rules are read from the kernel's structures, which is also a hundred times faster.
- A rule with a jump to a chain opens all five tables to see whether the chain is there, and so creates them in the kernel: ``tables`` is
  overridden.
- ``udata`` of an extension is freed too early: none of the extensions used here has any (``_refuse_udata`` makes sure).
- The interface of an IPv6 rule gets a mask of 0x01 bytes, with which "netbox0" is also every name whose letters are odd and even where its
  own are: the mask is put right afterwards.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

from netbox.errors import FirewallError, NoPermission, Unsupported, host_error
from netbox.kernel import flock, iptables_nat6
from netbox.kernel.iptables_entry import Entry, matches, validate

LOCK_FILE = "/run/xtables.lock"  # XT_LOCK_NAME of iptables
LOCK_TIMEOUT = 10.0  # seconds
_PACKAGE_HINT = "install it: apt install iptables"
_LIBRARIES = {
    "ip4tc": ("libip4tc.so.2", "libip4tc.so.0"),
    "ip6tc": ("libip6tc.so.2", "libip6tc.so.0"),
    "xtables": ("libxtables.so.12", "libxtables.so.11", "libxtables.so.10"),
}

_TABLES = ("filter", "nat", "raw", "mangle")
_EXTENSION_HEADER = 32  # bytes: struct xt_entry_match without its data
_SCRATCH = "NETBOX-COMPARE"  # never committed
_ATTEMPTS = 20
_thread_lock = threading.RLock()
_iptc: Any = None


class Installed(NamedTuple):
    """A rule as the kernel has it: its place (``number`` counts from 1), the chain or verdict that it goes to, and its comment."""

    table: str
    chain: str
    number: int
    target: str
    comment: str


class Content(NamedTuple):
    """What a rule says, without counters and place: equal for two rules that match and do the same."""

    target: str
    comment: str
    body: bytes


class TableEditor:
    """One table, as it is in the calling thread's network namespace. Changes are kept until the end of the ``editing`` block."""

    def __init__(self, iptc: Any, name: str, table: Any, ipv6: bool = False) -> None:
        self._iptc = iptc
        self._table = table
        self.name = name
        self.ipv6 = ipv6
        self.changed = False

    def chains(self) -> list[str]:
        """The names of all chains."""
        return [chain.name for chain in self._table.chains]

    def has_chain(self, chain: str) -> bool:
        """Whether the chain is there."""
        return bool(self._table.is_chain(chain))

    def create_chain(self, chain: str) -> None:
        """A new, empty chain."""
        self._table.create_chain(chain)
        self.changed = True

    def delete_chain(self, chain: str) -> None:
        """Empties a chain and deletes it; nothing may jump to it any more."""
        self._table.flush_entries(chain)
        self._table.delete_chain(chain)
        self.changed = True

    def append(self, entry: Entry) -> None:
        """Adds a rule at the end of its chain."""
        self._table.append_entry(entry.chain, self._blob(entry))
        self.changed = True

    def insert(self, entry: Entry, position: int = 0) -> None:
        """Adds a rule at a place in its chain, 0 is the first."""
        self._table.insert_entry(entry.chain, self._blob(entry), position)
        self.changed = True

    def delete(self, chain: str, number: int) -> None:
        """Deletes the ``number``-th rule of a chain, counted from 1. Delete the last ones first: the others move up."""
        library = self._iptc.ip6tc.ip6tc if self.ipv6 else self._iptc.ip4tc.iptc
        # Table wraps deletion by value only, which would have to rebuild the rule byte by byte.
        if library.iptc_delete_num_entry(chain.encode(), number - 1, self._table._handle) != 1:
            raise self._iptc.IPTCError(f"can't delete rule {number} of {chain}: {self._table.strerror()}")
        self.changed = True

    def rules(self, chain: str) -> list[Installed]:
        """The rules of a chain, in order."""
        found: list[Installed] = []
        raw = self._table.first_rule(chain)
        while raw:
            found.append(Installed(self.name, chain, len(found) + 1, (self._table.get_target(raw) or b"").decode(), _comment(raw)))
            raw = self._table.next_rule(raw)
        return found

    def contents(self, chain: str) -> list[Content]:
        """What the rules of a chain say, in order."""
        found: list[Content] = []
        raw = self._table.first_rule(chain)
        while raw:
            target = (self._table.get_target(raw) or b"").decode()
            found.append(_content(raw, target, self.has_chain(target)))
            raw = self._table.next_rule(raw)
        return found

    def rendered(self, entry: Entry) -> Content:
        """What ``entry`` would say if it stood in its chain. Changes nothing."""
        was_changed = self.changed
        if not self.has_chain(_SCRATCH):
            self._table.create_chain(_SCRATCH)
        self._table.append_entry(_SCRATCH, self._blob(entry))
        content = self.contents(_SCRATCH)[0]
        self._table.flush_entries(_SCRATCH)
        self._table.delete_chain(_SCRATCH)
        self.changed = was_changed
        return content

    def _blob(self, entry: Entry) -> Any:
        validate(entry)
        if entry.ipv6 != self.ipv6:
            raise ValueError(f"a rule of the other family: {entry}")
        rule = _rule_class(self._iptc, self.ipv6)(self._table)
        for attribute, value in (
            ("src", entry.source),
            ("dst", entry.destination),
            ("in_interface", entry.in_interface),
            ("out_interface", entry.out_interface),
            ("protocol", entry.protocol),
        ):
            if value:
                setattr(rule, attribute, value)
        if self.ipv6:
            rule.entry.ipv6.iniface_mask = _interface_mask(entry.in_interface)
            rule.entry.ipv6.outiface_mask = _interface_mask(entry.out_interface)
        for name, parameters in matches(entry):
            match = rule.create_match(name)
            _refuse_udata(match)
            for parameter, value in parameters:
                match.set_parameter(parameter, value)
            match._final_check()
        by_hand = self.ipv6 and entry.target in iptables_nat6.TARGETS
        target = rule.create_target("ACCEPT" if by_hand else entry.target)
        _refuse_udata(target)
        if by_hand:
            return _with_target(rule.rule, rule.entry, iptables_nat6.target(entry))
        if entry.to_destination:
            target.set_parameter("to-destination", entry.to_destination)
        target._final_check()  # fills in what MASQUERADE needs
        return rule.rule


def _refuse_udata(extension: Any) -> None:
    if getattr(extension._module, "udata_size", 0):
        raise Unsupported(f"the xtables extension {extension.name} keeps private data, which python-iptables frees too early")


def _with_target(blob: Any, head: Any, target: bytes) -> Any:
    """A rule with another target."""
    head.next_offset = head.target_offset + len(target)
    data = bytes(head) + bytes(blob)[ctypes.sizeof(head) : head.target_offset] + target
    return (ctypes.c_ubyte * len(data)).from_buffer_copy(data)


def _interface_mask(interface: str) -> bytes:
    """Which bytes of an interface's name count: all with the NUL, those before a ``+`` only, none without a name."""
    name = interface.removeprefix("!")
    length = len(name) - 1 if name.endswith("+") else len(name) + 1
    return b"\xff" * length if name else b""


_rule_classes: dict[Any, Any] = {}


def _rule_class(iptc: Any, ipv6: bool) -> Any:
    if (iptc, ipv6) not in _rule_classes:
        base = iptc.Rule6 if ipv6 else iptc.Rule

        class OwnRule(base):  # type: ignore[misc, valid-type]
            """A rule that looks for a jump's chain in its own table only."""

            def __init__(self, table: Any) -> None:
                self.own_table = table
                super().__init__()

            @property
            def tables(self) -> list[Any]:
                return [self.own_table]

        _rule_classes[iptc, ipv6] = OwnRule
    return _rule_classes[iptc, ipv6]


def _content(raw: Any, target: str, is_jump: bool) -> Content:
    """Leaves out what differs between equal rules: nfcache, comefrom and counters of struct ipt_entry, what stands in memory behind the end
    of an extension's name (struct xt_entry_match, struct xt_entry_target), and the number that stands for a verdict or a jump.
    """
    data = ctypes.string_at(ctypes.addressof(raw), raw.next_offset)
    parts = [data[: type(raw).nfcache.offset]]  # struct ipt_ip or ip6t_ip6
    offset = ctypes.sizeof(type(raw))
    while offset + _EXTENSION_HEADER <= raw.target_offset:
        size = int.from_bytes(data[offset : offset + 2], sys.byteorder)
        if size < _EXTENSION_HEADER:
            break
        parts.append(_extension(data[offset : offset + size]))
        offset += size
    if data[raw.target_offset + 2] and not is_jump:
        parts.append(_extension(data[raw.target_offset :]))
    return Content(target, _comment(raw), b"|".join(parts))


def _extension(data: bytes) -> bytes:
    """Name, revision and private data."""
    return data[2:31].split(b"\0", 1)[0] + b"\0" + data[31:]


def _comment(raw: Any) -> str:
    """The comment of a rule in the kernel's layout: struct ipt_entry, then matches, each a struct xt_entry_match
    (<linux/netfilter/x_tables.h>).
    """
    data = ctypes.string_at(ctypes.addressof(raw), raw.target_offset)
    offset = ctypes.sizeof(type(raw))
    while offset + 32 <= len(data):
        size = int.from_bytes(data[offset : offset + 2], sys.byteorder)
        if data[offset + 2 : offset + 10] == b"comment\0":
            return data[offset + 32 : offset + size].split(b"\0", 1)[0].decode(errors="replace")
        if size == 0:
            break
        offset += size
    return ""


def loaded_tables(ipv6: bool = False) -> set[str]:
    """The legacy tables that somebody has used in the calling thread's network namespace; opening any other one creates it."""
    try:
        with open(f"/proc/thread-self/net/{'ip6' if ipv6 else 'ip'}_tables_names", encoding="ascii") as file:
            return set(file.read().split())
    except OSError:
        return set()


@contextmanager
def editing(name: str, ipv6: bool = False) -> Iterator[TableEditor]:
    """Opens a table of the calling thread's network namespace and commits, at the end of the block, what was changed in it; that of
    IPv6 with ``ipv6``.

    Raises:
        Unsupported: the iptables package, python-iptables or the kernel's legacy tables are missing.
        NoPermission: not root.
        FirewallError: the lock stayed taken, or the kernel refused a change (then nothing of the block was done).
    """
    if name not in _TABLES:
        raise ValueError(f"no such table: {name}")
    with _thread_lock, _xtables_lock():
        iptc = load()
        table = _open_table(iptc, name, ipv6)
        try:
            editor = TableEditor(iptc, name, table, ipv6)
            yield editor
            if editor.changed:
                table.commit()
        except (iptc.IPTCError, iptc.XTablesError) as error:
            number = errno.EAGAIN if os.strerror(errno.EAGAIN) in str(error) else 0
            raise FirewallError(f"the firewall refused a change of the table {name}: {_reason(error)}", None, number) from error
        finally:
            table.close()


def edit(name: str, change: Callable[[TableEditor], None], ipv6: bool = False) -> None:
    """Calls ``change`` with a table as ``editing`` opens it. Anew when the kernel refuses with EAGAIN: a program that knows nothing of the
    lock, or has another one (it runs in a container), has changed the table meanwhile.

    Raises what ``editing`` raises.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with editing(name, ipv6) as editor:
                change(editor)
            return
        except FirewallError as error:
            if error.errno != errno.EAGAIN or attempt == _ATTEMPTS:
                raise


def _open_table(iptc: Any, name: str, ipv6: bool) -> Any:
    tables, module = (iptc.Table6, "ip6_tables") if ipv6 else (iptc.Table, "ip_tables")
    cached = tables._cache.get(name)
    try:
        if cached is None:
            return tables(name, autocommit=False)  # opens it
        cached.autocommit = False
        cached.refresh()
    except iptc.IPTCError as error:
        reason = _reason(error)
        if os.geteuid() != 0 or "ermission denied" in reason or "not permitted" in reason:
            raise NoPermission(f"cannot open the firewall table {name}: {reason}", "run it as root (sudo)") from error
        raise Unsupported(
            f"cannot open the firewall table {name}: {reason}", f"a kernel with the legacy {module} is needed: modprobe {module}"
        ) from error
    return cached


def _reason(error: Exception) -> str:
    return str(error).replace("b'", "'").replace('b"', '"').replace("'", "").replace('"', "").rstrip(".")


@contextmanager
def _xtables_lock() -> Iterator[None]:
    """The lock that iptables, iptables-restore and we agree on (flock(2) on XTABLES_LOCKFILE)."""
    path = os.environ.get("XTABLES_LOCKFILE") or LOCK_FILE
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError as error:
        raise NoPermission(f"cannot open {path}: permission denied", "run it as root (sudo)") from error
    except OSError as error:
        raise host_error("open", path, error) from error
    try:
        if not flock.acquire(fd, LOCK_TIMEOUT):
            raise FirewallError(f"another program holds {path} for more than {LOCK_TIMEOUT:g} s", f"find it with: fuser {path}")
        yield
    finally:
        os.close(fd)


# -- the import ----------------------------------------------------------------------------------------------------------------------------


def load() -> Any:
    """Imports python-iptables, without child processes, and returns it.

    Raises:
        Unsupported: it, or the iptables package, is missing.
    """
    global _iptc
    with _thread_lock:
        if _iptc is None:
            _iptc = sys.modules.get("iptc") or _import_iptc()
    return _iptc


def _import_iptc() -> Any:
    try:
        import importlib.util

        specification = importlib.util.find_spec("iptc")
        if specification is None or specification.origin is None:
            raise Unsupported("python-iptables is missing", "install it: pip install python-iptables")
        directory = os.path.dirname(os.path.dirname(specification.origin))
        extensions = extension_directory()
        saved = os.environ.get("XTABLES_LIBDIR")
        os.environ["XTABLES_LIBDIR"] = saved or extensions
        sys.modules["iptc.util"] = _stand_in(directory)
        try:
            import iptc
        finally:
            if saved is None:
                del os.environ["XTABLES_LIBDIR"]
            sys.modules.pop("iptc.util", None)
    except (ImportError, OSError, AttributeError) as error:
        raise Unsupported(f"python-iptables cannot be used: {error}", _PACKAGE_HINT) from error
    return iptc


def _stand_in(directory: str) -> ModuleType:
    """What iptc takes from its module ``util``, without the search: libraries are opened by soname, the dynamic linker knows where they
    are.
    """
    module = ModuleType("iptc.util")

    def find_library(*names: str) -> tuple[Any, int]:
        for name in names:
            if name == "xtwrapper":  # the extension module of python-iptables itself
                from importlib.machinery import EXTENSION_SUFFIXES

                for suffix in EXTENSION_SUFFIXES:
                    path = f"{directory}/libxtwrapper{suffix}"
                    if os.path.exists(path):
                        return ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL), 0
            for soname in _LIBRARIES.get(name, ()):
                try:
                    return ctypes.CDLL(soname, mode=ctypes.RTLD_GLOBAL), int(soname.rpartition(".")[2])
                except OSError:
                    continue
        raise Unsupported(f"the library {names[0]} of the iptables package is missing", _PACKAGE_HINT)

    def load_kernel(name: str, exc_if_failed: bool = False) -> None:
        if os.path.exists("/proc/modules") and not os.path.exists(f"/proc/net/{name}_names"):
            import subprocess

            subprocess.run(["/sbin/modprobe", "-q", name], check=exc_if_failed, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    module.__dict__.update(
        find_library=find_library, find_libc=lambda: ctypes.CDLL("libc.so.6", mode=ctypes.RTLD_GLOBAL), load_kernel=load_kernel
    )
    return module


def extension_directory() -> str:
    """Where the matches and targets of iptables are.

    Raises:
        Unsupported: nowhere.
    """
    multiarch = getattr(sys.implementation, "_multiarch", "")
    for directory in (f"/usr/lib/{multiarch}/xtables", "/usr/lib64/xtables", "/usr/lib/xtables", "/lib/xtables", "/usr/local/lib/xtables"):
        if os.path.exists(f"{directory}/libxt_comment.so"):
            return directory
    raise Unsupported("the extensions of iptables are missing", _PACKAGE_HINT)
