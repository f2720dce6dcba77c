"""Reading every packet of an interface, or of a whole network namespace, through a ring of memory that the kernel fills.

AF_PACKET with TPACKET_V3 (packet(7), Documentation/networking/packet_mmap.rst): the kernel hands over a block of packets when it is full or
has waited for ``DELAY_MS``. No interface is put into promiscuous mode, and everything is gone with the process.
"""

from __future__ import annotations

import ctypes
import mmap
import socket
import struct
from collections.abc import Mapping
from typing import TypeVar

from netbox.kernel.packet_filter import INSTRUCTION

BLOCK_SIZE = 1 << 18  # a packet is smaller: segmentation offload makes 64 KiB at most
DELAY_MS = 20
HOST, BROADCAST, MULTICAST, OTHER_HOST, OUTGOING = range(5)  # <linux/if_packet.h>
ARPHRD_ETHER, ARPHRD_LOOPBACK, ARPHRD_NONE = 1, 772, 0xFFFE  # <linux/if_arp.h>

_ETH_P_ALL = 0x0003
_SOL_PACKET = 263
_PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_VERSION = 5, 6, 10
_TPACKET_V3 = 2
_SO_ATTACH_FILTER = 26
_TP_STATUS_KERNEL, _TP_STATUS_USER = 0, 1
_TP_STATUS_VLAN_VALID, _TP_STATUS_VLAN_TPID_VALID = 1 << 4, 1 << 6
_ETH_P_8021Q = 0x8100
_FRAME_SIZE = 2048  # TPACKET_V3 packs packets closely; the kernel only checks that frames fill a block

_REQUEST = struct.Struct("=7I")  # struct tpacket_req3
_BLOCK = struct.Struct("=8x3I")  # of struct tpacket_block_desc: status, packets, offset of the first
_STATUS = struct.Struct("=I")
_STATUS_OFFSET, _COUNT_OFFSET = 8, 12
# Of struct tpacket3_hdr: next, seconds, nanoseconds, bytes that are there, length, status, where they begin; then ``place``: sll_ifindex,
# sll_hatype, sll_pkttype and sll_halen of the struct sockaddr_ll behind it.
_PACKET = struct.Struct("=6IH26xQ")
_PLACE, _PLACE_PARTS = struct.Struct("=Q"), struct.Struct("=iHBB")
_TAG_OFFSET, _TAG_PARTS = 32, struct.Struct("=IH")  # hv1.tp_vlan_tci, hv1.tp_vlan_tpid
_COUNTERS = struct.Struct("=3I")
_TAG = struct.Struct("!2H")
_NOTHING = INSTRUCTION.pack(0x06, 0, 0, 0)  # a filter that lets nothing pass: BPF_RET
_MAC_ADDRESSES = 12  # bytes before a VLAN tag


Way = TypeVar("Way")
# (time, way, data, length). ``time`` is in nanoseconds since the epoch, ``way`` what the caller has for its place, ``length`` that on the
# wire in bytes. A bare tuple: a named one takes as long to make as all the rest.
Packet = tuple[int, Way, bytes, int]


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


class PacketRing:
    """One ring, in the calling thread's network namespace. ``ifindex`` 0 hears every interface, also one that appears later.

    ``program`` is a filter of ``packet_filter``; it is in force before the first packet is. Not for several threads at once.

    Raises:
        OSError: the kernel refuses; EPERM without CAP_NET_RAW, ENODEV for an interface that is gone.
    """

    def __init__(self, ifindex: int, program: bytes, size: int) -> None:
        # Protocol 0: it hears nothing until it is bound, that is, until the ring and the filter stand.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._map: mmap.mmap | None = None
        try:
            blocks = max(2, size // BLOCK_SIZE)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
            frames = blocks * (BLOCK_SIZE // _FRAME_SIZE)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_RX_RING, _REQUEST.pack(BLOCK_SIZE, blocks, _FRAME_SIZE, frames, DELAY_MS, 0, 0))
            self._attach(program)
            self._map = mmap.mmap(self._socket.fileno(), blocks * BLOCK_SIZE)
            self._bind(ifindex)
        except BaseException:
            self.close()
            raise
        self._blocks = blocks
        self._next = 0
        self._received = self._dropped = 0

    def _attach(self, program: bytes) -> None:
        buffer = ctypes.create_string_buffer(program, len(program))
        value = _Filter(len(program) // INSTRUCTION.size, ctypes.cast(buffer, ctypes.c_void_p))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, bytes(value))

    def _bind(self, ifindex: int) -> None:
        # socket.bind takes a name only, and looks it up in the wrong namespace: struct sockaddr_ll through libc.
        address = struct.pack("=HHiHBB8s", socket.AF_PACKET, socket.htons(_ETH_P_ALL), ifindex, 0, 0, 0, b"")
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.bind(self._socket.fileno(), address, len(address)) != 0:
            number = ctypes.get_errno()
            raise OSError(number, "cannot listen on the interface")

    def fileno(self) -> int:
        """The socket, for poll: readable when a block is ready."""
        return self._socket.fileno()

    def read(self, ways: Mapping[int, Way | None], found: list[Packet[Way]], most: int = 8) -> None:
        """Appends the packets of the next ready blocks, ``most`` of them, to ``found``. The blocks go back to the kernel.

        ``ways`` has something for each place (see ``place_parts``), ``None`` for one whose packets are left out.
        """
        assert self._map is not None
        for _ in range(most):
            base = self._next * BLOCK_SIZE
            status, count, offset = _BLOCK.unpack_from(self._map, base)
            if not status & _TP_STATUS_USER:
                break
            _read_block(self._map, base + offset, count, ways, found)
            _STATUS.pack_into(self._map, base + _COUNT_OFFSET, 0)  # until the kernel begins it anew, see ``read_rest``
            _STATUS.pack_into(self._map, base + _STATUS_OFFSET, _TP_STATUS_KERNEL)
            self._next = (self._next + 1) % self._blocks

    def stop(self) -> None:
        """Lets no more packets in; those that are there can still be read."""
        self._attach(_NOTHING)

    def read_rest(self, ways: Mapping[int, Way | None], found: list[Packet[Way]]) -> None:
        """Appends all packets, also those of the block that the kernel is still filling: when it hands that over is up to a timer of its
        own, which a busy machine delays. To be called once, after ``stop``, and a moment after the last packet.
        """
        assert self._map is not None
        self.read(ways, found, self._blocks)
        base = self._next * BLOCK_SIZE
        _, count, offset = _BLOCK.unpack_from(self._map, base)
        _read_block(self._map, base + offset, count, ways, found)

    def counters(self) -> tuple[int, int]:
        """How many packets passed the filter since the beginning, and how many of them were lost because the ring was full."""
        packets, drops, _ = _COUNTERS.unpack(self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _COUNTERS.size))
        self._received += packets  # drops included; reading resets the kernel's
        self._dropped += drops
        return self._received, self._dropped

    def take_error(self) -> bool:
        """Whether the device has gone, or down, since the last time: it may come up again."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

    def close(self) -> None:
        """Lets go of the ring, and with it of the network namespace."""
        if self._map is not None:
            self._map.close()
            self._map = None
        self._socket.close()


def place_parts(place: int) -> tuple[int, int, int]:
    """Where a packet was seen: the interface's index, its hardware type (an ARPHRD), one of HOST … OUTGOING."""
    ifindex, hardware, kind, _ = _PLACE_PARTS.unpack(_PLACE.pack(place))
    return ifindex, hardware, kind


def _read_block(memory: mmap.mmap, offset: int, count: int, ways: Mapping[int, Way | None], found: list[Packet[Way]]) -> None:
    unpack, append = _PACKET.unpack_from, found.append
    for _ in range(count):
        following, seconds, nanoseconds, captured, length, status, start, place = unpack(memory, offset)
        way = ways[place]
        if way is not None:
            begin = offset + start
            data = memory[begin : begin + captured]
            if status & _TP_STATUS_VLAN_VALID:
                tci, tpid = _TAG_PARTS.unpack_from(memory, offset + _TAG_OFFSET)
                data, length = _tagged(data, tci, tpid if status & _TP_STATUS_VLAN_TPID_VALID else _ETH_P_8021Q), length + 4
            append((seconds * 1_000_000_000 + nanoseconds, way, data, length))
        offset += following


def _tagged(data: bytes, tci: int, tpid: int) -> bytes:
    """The frame as it was on the wire: the kernel keeps its VLAN tag (IEEE 802.1Q) beside it."""
    return data[:_MAC_ADDRESSES] + _TAG.pack(tpid, tci) + data[_MAC_ADDRESSES:]
