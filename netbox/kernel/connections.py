"""The kernel's table of connections, read over a raw nfnetlink socket. Nothing is changed; ``conntrack`` deletes.

Sources: ``<linux/netfilter/nfnetlink.h>``, ``<linux/netfilter/nfnetlink_conntrack.h>``.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import NamedTuple

from netbox.kernel.conntrack import dump
from netbox.kernel.rtnetlink import parse_attributes

NETLINK_NETFILTER = 12
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_PROTOINFO, CTA_TIMEOUT = 1, 2, 4, 7
CTA_PROTOINFO_TCP = CTA_PROTOINFO_TCP_STATE = 1
TCP_STATES = ("none", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE", "SYN_SENT2")
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
CTA_IP_V4_SRC, CTA_IP_V4_DST, CTA_IP_V6_SRC, CTA_IP_V6_DST = 1, 2, 3, 4
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT = 1, 2, 3

_GENERIC = 4  # bytes: struct nfgenmsg


class Tuple(NamedTuple):
    """One direction of a connection."""

    source: str
    source_port: int
    destination: str
    port: int


class Connection(NamedTuple):
    """An entry of the table: what the first packet looked like, what an answer looks like, and the seconds that it lives on without a
    packet. An answer that does not come from where the first packet went says that the destination was translated. ``state`` is one of
    ``TCP_STATES``, empty for other protocols.
    """

    protocol: int
    original: Tuple
    reply: Tuple
    timeout: int
    state: str = ""


def connections(protocol: int, family: int = socket.AF_INET) -> list[Connection]:
    """The entries of a protocol (``IPPROTO_UDP``, …) in the calling thread's network namespace. A kernel without connection tracking has
    none.

    Raises:
        OSError: the kernel refuses.
    """
    found = []
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as netlink:
            for body in dump(netlink, struct.pack("=BBH", family, 0, 0)):
                attributes = parse_attributes(body[_GENERIC:])
                number, original = _tuple(attributes.get(CTA_TUPLE_ORIG, b""))
                if number == protocol:
                    reply = _tuple(attributes.get(CTA_TUPLE_REPLY, b""))[1]
                    timeout = int.from_bytes(attributes.get(CTA_TIMEOUT, b""), "big")
                    found.append(Connection(number, original, reply, timeout, _state(attributes.get(CTA_PROTOINFO, b""))))
    except OSError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL):
            return []
        raise
    return found


def _state(data: bytes) -> str:
    value = parse_attributes(parse_attributes(data).get(CTA_PROTOINFO_TCP, b"")).get(CTA_PROTOINFO_TCP_STATE, b"")
    return TCP_STATES[value[0]] if value and value[0] < len(TCP_STATES) else ""


def _tuple(data: bytes) -> tuple[int, Tuple]:
    values = parse_attributes(data)
    ends, ports = parse_attributes(values.get(CTA_TUPLE_IP, b"")), parse_attributes(values.get(CTA_TUPLE_PROTO, b""))
    source = ends.get(CTA_IP_V4_SRC) or ends.get(CTA_IP_V6_SRC, bytes(4))
    destination = ends.get(CTA_IP_V4_DST) or ends.get(CTA_IP_V6_DST, bytes(4))
    return int.from_bytes(ports.get(CTA_PROTO_NUM, b""), "big"), Tuple(
        _address(source),
        int.from_bytes(ports.get(CTA_PROTO_SRC_PORT, b""), "big"),
        _address(destination),
        int.from_bytes(ports.get(CTA_PROTO_DST_PORT, b""), "big"),
    )


def _address(value: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(value) == 4 else socket.AF_INET6, value)
