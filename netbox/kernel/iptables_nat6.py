"""The targets DNAT and MASQUERADE of ip6tables as bytes. Pure.

python-iptables cannot load them: since iptables 1.8.9 all address translation of both families is one library, which registers itself for
the family at hand when it is opened, and that has been IPv4. Source: ``<linux/netfilter/x_tables.h>``, ``<linux/netfilter/nf_nat.h>``.
"""

from __future__ import annotations

import re
import socket
import struct

from netbox.kernel.iptables_entry import Entry

TARGETS = ("DNAT", "MASQUERADE")
_MAP_ADDRESSES, _PROTO_SPECIFIED, _PROTO_OFFSET = 1, 2, 32  # NF_NAT_RANGE_*
_HEADER = struct.Struct("=H29sB")  # struct xt_entry_target
_RANGE = struct.Struct("=I16s16s2s2s")  # struct nf_nat_range
_BASE = struct.Struct("=2s6x")  # what struct nf_nat_range2 adds, aligned


def target(entry: Entry) -> bytes:
    """The target of a validated entry: revision 0 of MASQUERADE, revision 2 of DNAT."""
    if entry.target == "MASQUERADE":
        data = _RANGE.pack(0, bytes(16), bytes(16), bytes(2), bytes(2))
    else:
        data = _destination(entry.to_destination)
    return _HEADER.pack(_HEADER.size + len(data), entry.target.encode(), 2 if entry.target == "DNAT" else 0) + data


def _destination(text: str) -> bytes:
    """``[fd00::1]``, ``[fd00::1]:80`` or ``[fd00::1]:80-90/8080``: see ``Entry.to_destination``."""
    found = re.fullmatch(r"\[(.+)\](?::(\d+)(?:-(\d+)(?:/(\d+))?)?)?", text)
    if found is None:
        raise ValueError(f"bad destination: {text}")
    address = socket.inet_pton(socket.AF_INET6, found[1])
    flags = _MAP_ADDRESSES | (_PROTO_SPECIFIED if found[2] else 0) | (_PROTO_OFFSET if found[4] else 0)
    first, last, base = (struct.pack("!H", int(number or 0)) for number in (found[2], found[3] or found[2], found[4]))
    return _RANGE.pack(flags, address, address, first, last) + _BASE.pack(base)
