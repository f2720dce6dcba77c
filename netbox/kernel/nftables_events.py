"""Hearing from the kernel that somebody has made a chain in nf_tables: the group of nfnetlink that ``nft monitor`` listens to.

Standard library alone, for a process that stays small.
"""

from __future__ import annotations

import errno
import socket
import struct

_NETLINK_NETFILTER = 12  # <linux/netlink.h>
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1
_NFNLGRP_NFTABLES = 7  # <linux/netfilter/nfnetlink.h>
_NEW_CHAIN = 10 << 8 | 3  # NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWCHAIN
_NFTA_CHAIN_NAME = 3  # <linux/netfilter/nf_tables.h>
_HEADERS = 16 + 4  # struct nlmsghdr, struct nfgenmsg
_BUFFER = 1 << 16  # bytes; the kernel fills a page at a time


def subscribe() -> socket.socket:
    """A socket that gets a message for every change of the rules in the calling thread's network namespace, from now on.

    Raises OSError: this kernel has no nf_tables, or the caller no CAP_NET_ADMIN.
    """
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    try:
        sock.bind((0, 0))
        sock.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
    except OSError:
        sock.close()
        raise
    return sock


def was_made(sock: socket.socket, chain: str) -> bool:
    """Whether a chain of this name was made since the last look, or may have been, because messages were lost."""
    found = False
    while True:
        try:
            data = sock.recv(_BUFFER)
        except BlockingIOError:
            return found
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # netlink(7): more came than there was room for
                raise
            found = True
            continue
        found = found or chain in chains(data)


def chains(data: bytes) -> list[str]:
    """The names of the chains that a datagram says are new. Pure."""
    found = []
    for kind, body in _parts(data, "IH", 16):
        if kind == _NEW_CHAIN:
            attributes = _parts(body[_HEADERS - 16 :], "HH", 4)
            found += [value.rstrip(b"\0").decode(errors="replace") for number, value in attributes if number == _NFTA_CHAIN_NAME]
    return found


def _parts(data: bytes, layout: str, header: int) -> list[tuple[int, bytes]]:
    """(type, what follows the header) of messages or attributes: each begins with its length and its type, and is padded to 4 bytes."""
    found = []
    offset = 0
    while offset + header <= len(data):
        length, kind = struct.unpack_from(f"={layout}", data, offset)
        if length < header:
            break
        found.append((kind, data[offset + header : offset + length]))
        offset += (length + 3) & ~3
    return found
