"""The kernel's table of connections: deletes entries of published UDP and SCTP ports, over a raw nfnetlink socket.

Sources: ``<linux/netfilter/nfnetlink.h>``, ``<linux/netfilter/nfnetlink_conntrack.h>``, net/netfilter/nf_conntrack_netlink.c.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

from netbox.errors import host_error
from netbox.kernel import rtnetlink
from netbox.kernel.rtnetlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, attribute, parse_attributes

NETLINK_NETFILTER = 12
_CT_GET = 1 << 8 | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_CT_DELETE = 1 << 8 | 2
_NESTED = 0x8000
CTA_TUPLE_ORIG, CTA_STATUS, CTA_ID, CTA_FILTER = 1, 3, 12, 25
_IPS_DST_NAT = 1 << 5  # <linux/netfilter/nf_conntrack_common.h>
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
CTA_IP_V4_DST, CTA_IP_V6_DST = 2, 4
CTA_PROTO_NUM, CTA_PROTO_DST_PORT = 1, 3
CTA_FILTER_ORIG_FLAGS, CTA_FILTER_REPLY_FLAGS = 1, 2
_BY_PROTOCOL, _BY_DESTINATION_PORT = 1 << 3, 1 << 5  # CTA_FILTER_F_CTA_PROTO_NUM and …_DST_PORT, net/netfilter/nf_internals.h

PROTOCOLS = {"udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}
_HEADER = struct.Struct("=IHHII")
_FAMILY = struct.Struct("=BBH")  # struct nfgenmsg
_RECEIVE_BUFFER = 1 << 18


def flush(protocol: str, address: str, first_port: int, count: int, keep_translated: bool = False) -> int:
    """Deletes the entries of packets that were sent to one of ``count`` ports of ``address`` (0.0.0.0 or ``::``: any of the family),
    whatever they were translated to; with ``keep_translated`` only those that were not.

    ``protocol`` is one of ``PROTOCOLS``: a client of those goes on with the same ports, where one of TCP connects anew.

    Returns how many there were. A kernel without connection tracking has none.

    Raises:
        HostError: the kernel refuses.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as netlink:
            found = list(_entries(netlink, PROTOCOLS[protocol], address, first_port, count, keep_translated))
            for entry in found:
                _delete(netlink, entry)
    except OSError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL) and not os.path.exists("/proc/sys/net/netfilter"):
            return 0
        raise host_error("flush", f"connections of port {first_port}/{protocol}", error) from error
    return len(found)


def _entries(netlink: socket.socket, number: int, address: str, first_port: int, count: int, keep_translated: bool) -> Iterator[bytes]:
    """The bodies of delete requests for the entries that match. The kernel sorts out most of the table (since 5.8; an older one gives all
    of it).
    """
    family, packed = rtnetlink.packed(address)
    wanted = packed if any(packed) else None
    head, kind = _FAMILY.pack(family, 0, 0), CTA_IP_V6_DST if family == socket.AF_INET6 else CTA_IP_V4_DST
    for body in dump(netlink, head + _filter(number, first_port if count == 1 else None)):
        attributes = parse_attributes(body[len(head) :])
        original = attributes.get(CTA_TUPLE_ORIG, b"")
        tuple_ = parse_attributes(original)
        protocol = parse_attributes(tuple_.get(CTA_TUPLE_PROTO, b""))
        if protocol.get(CTA_PROTO_NUM) != bytes([number]):
            continue
        if keep_translated and int.from_bytes(attributes.get(CTA_STATUS, b""), "big") & _IPS_DST_NAT:
            continue
        port = int.from_bytes(protocol.get(CTA_PROTO_DST_PORT, b""), "big")
        destination = parse_attributes(tuple_.get(CTA_TUPLE_IP, b"")).get(kind)
        if first_port <= port < first_port + count and wanted in (None, destination):
            yield head + attribute(CTA_TUPLE_ORIG | _NESTED, original) + attribute(CTA_ID, attributes.get(CTA_ID, bytes(4)))


def _filter(number: int, port: int | None) -> bytes:
    protocol = attribute(CTA_PROTO_NUM, bytes([number]))
    flags = _BY_PROTOCOL
    if port is not None:
        protocol += attribute(CTA_PROTO_DST_PORT, struct.pack("!H", port))
        flags |= _BY_DESTINATION_PORT
    chosen = attribute(CTA_FILTER_ORIG_FLAGS, struct.pack("=I", flags)) + attribute(CTA_FILTER_REPLY_FLAGS, struct.pack("=I", 0))
    return attribute(CTA_TUPLE_ORIG | _NESTED, attribute(CTA_TUPLE_PROTO | _NESTED, protocol)) + attribute(CTA_FILTER | _NESTED, chosen)


def dump(netlink: socket.socket, body: bytes) -> Iterator[bytes]:
    """The entries that a request asks for. ``body`` and what is given are each a struct nfgenmsg and attributes. Raises ``OSError``."""
    netlink.send(_message(_CT_GET, NLM_F_DUMP, body))
    while True:
        for kind, payload in _messages(netlink.recv(_RECEIVE_BUFFER)):
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                code = -struct.unpack_from("=i", payload)[0]
                raise OSError(code, os.strerror(code), "connection table")
            yield payload


def _delete(netlink: socket.socket, body: bytes) -> None:
    netlink.send(_message(_CT_DELETE, NLM_F_ACK, body))
    for kind, payload in _messages(netlink.recv(_RECEIVE_BUFFER)):
        code = -struct.unpack_from("=i", payload)[0] if kind == NLMSG_ERROR else 0
        if code not in (0, errno.ENOENT):  # it may have expired
            raise OSError(code, os.strerror(code), "connection table")


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags | NLM_F_REQUEST, 1, 0) + body


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3
