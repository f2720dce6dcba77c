"""Choosing packets by a filter of libpcap's language (pcap-filter(7)), on bytes that begin with the network header."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from netbox.kernel.packet_filter import LINKTYPE_RAW, compile_filter

_LENGTH = 65535


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))
