"""The process that probes: reads one batch from its channel, answers it, ends. The only one that loads scapy.

It is started before it is known what to ask, so that scapy loads meanwhile: in an empty network namespace of its own, because scapy lists
every link at import, which takes seconds on a host with hundreds. Then it receives the namespaces as file descriptors and opens its sockets
in them. It ends when the channel does: whoever asked was killed.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import signal
import socket
import struct
import sys
import types
from collections.abc import Sequence
from typing import Any

CHANNEL_FD = 3
_HEAD = struct.Struct("!II")  # bytes of JSON, number of descriptors
_GC_THRESHOLD = 50_000  # imports make many objects and no garbage
_AT_ONCE = 200  # descriptors in one message: the kernel passes 253 (SCM_MAX_FD)


def main() -> None:
    """The whole life of the process."""
    from netbox.kernel import namespaces, syscalls

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-c is for whoever asked; its end is ours
    channel = socket.socket(fileno=CHANNEL_FD)
    answer: dict[str, Any]
    try:
        gc.set_threshold(_GC_THRESHOLD)
        syscalls.unshare(namespaces.CLONE_NEWNET)
        _leave_out_vendors()
        try:
            from netbox.packet.probing import packets  # noqa: F401 - loads scapy
        except ImportError as error:
            answer = {"missing": str(error)}
        else:
            batch, descriptors = receive(channel)
            answer = {"results": _answer(batch, descriptors, channel)}
    except EOFError:
        os._exit(0)
    except Exception as error:  # noqa: BLE001 - the top of a process: whoever asked says it in one line
        answer = {"failure": f"{type(error).__name__}: {error}"}
        if os.environ.get("NETBOX_DEBUG"):
            import traceback

            answer["failure"] = traceback.format_exc()
    send(channel, answer)
    sys.stdout.flush()
    os._exit(0)  # tearing scapy down would only cost time


def _leave_out_vendors() -> None:
    """Spares scapy its tables of vendors' names, which no probe needs: a fifth of its loading time. Nothing is kept on disk of it."""
    for name, data in (("manuf", ""), ("bluetoothids", {})):
        module = types.ModuleType(f"scapy.libs.{name}")
        module.DATA = data  # type: ignore[attr-defined]
        sys.modules[module.__name__] = module


def send(channel: socket.socket, document: object, descriptors: Sequence[int] = ()) -> None:
    """Sends a JSON document, and descriptors ahead of it. Raises OSError."""
    data = json.dumps(document).encode()
    channel.sendall(_HEAD.pack(len(data), len(descriptors)))
    for start in range(0, len(descriptors), _AT_ONCE):
        socket.send_fds(channel, [b"+"], list(descriptors[start : start + _AT_ONCE]))
    channel.sendall(data)


def receive(channel: socket.socket) -> tuple[Any, list[int]]:
    """Receives what ``send`` sent. Raises EOFError when the other side is gone, OSError."""
    length, count = _HEAD.unpack(_exactly(channel, _HEAD.size))
    descriptors: list[int] = []
    while len(descriptors) < count:
        mark, some, _, _ = socket.recv_fds(channel, 1, _AT_ONCE)
        if not mark or not some:
            raise EOFError
        descriptors += some
    return json.loads(_exactly(channel, length)), descriptors


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        some = channel.recv(min(size - len(data), 1 << 20))
        if not some:
            raise EOFError
        data += some
    return bytes(data)


def _answer(batch: list[dict[str, Any]], descriptors: list[int], channel: socket.socket) -> list[dict[str, Any]]:
    from netbox.packet.probing import queries
    from netbox.packet.probing.exchange import Exchange, Order
    from netbox.packet.probing.searches import path_mtu, traceroute
    from netbox.packet.probing.station import Station
    from netbox.packet.probing.values import ProbeRequest

    exchange = Exchange(channel, batch[0]["request"]["ip_id"] if batch else None)
    stations: dict[int, Station] = {}
    watches: dict[int, Any] = {}
    orders: list[list[Order]] = []
    for item in batch:
        source, target = item["source"], item["target"]
        if source not in stations:
            stations[source] = Station(descriptors[source])
        if target is not None and target not in watches:
            watches[target] = exchange.watch(descriptors[target])
        request = ProbeRequest(**item["request"])
        first = Order(
            stations[source],
            request,
            item["address"],
            watch=watches.get(target),
            inner=tuple(item["inner"]) if item["inner"] else None,
            reached_by=item["reached_by"],
        )
        count = 1 if request.traceroute or request.pmtu else request.count
        orders.append([dataclasses.replace(first, sequence=number, start=number * request.interval) for number in range(count)])
    plain = [order for group in orders for order in group if not (order.request.traceroute or order.request.pmtu)]
    answers = iter(queries.ask(exchange, plain))
    results: list[dict[str, Any]] = []
    for group in orders:
        first = group[0]
        if first.request.traceroute:
            results.append({"hops": [[dataclasses.asdict(answer) for answer in hop] for hop in traceroute(exchange, first)]})
        elif first.request.pmtu:
            results.append({"path_mtu": path_mtu(exchange, first)})
        else:
            results.append({"answers": [dataclasses.asdict(next(answers)) for _ in group]})
    return results
