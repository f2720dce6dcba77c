"""Plain probes, and what name servers are asked by TCP: where that is wanted, and where an answer by UDP was cut off (RFC 7766, 5).

A SYN comes first, as for any port: it tells what is in the way of a connection. Behind an open port the kernel of the source connects, as
it does for any program of that namespace. A part of the worker process.
"""

from __future__ import annotations

import dataclasses
import os
import random
import select
import socket
import time
from collections.abc import Sequence

from netbox.packet.probing import classify, packets, values
from netbox.packet.probing.exchange import Exchange, Order
from netbox.packet.probing.packets import Reply
from netbox.packet.probing.values import ProbeAnswer

_LONGEST = 1 << 16
_TOO_LONG = "too long for a datagram"


def ask(exchange: Exchange, orders: Sequence[Order]) -> list[ProbeAnswer]:
    """The answers to the orders, in their order. A packet that somebody follows (it has an id of his) is sent alone."""
    answers = exchange.run([_syn(order) if order.request.over_tcp else order for order in orders])
    cut = [number for number, answer in enumerate(answers) if answer.truncated and orders[number].request.ip_id is None]
    again = dict(zip(cut, exchange.run([_syn(orders[number], 0.0) for number in cut]), strict=True))
    for number, order in enumerate(orders):
        if order.request.over_tcp:
            answers[number] = _by_tcp(exchange, order, answers[number])
        elif number in again:
            answers[number] = _instead(answers[number], _by_tcp(exchange, order, again[number]))
    return answers


def _syn(order: Order, start: float | None = None) -> Order:
    """A SYN to the name server of an order."""
    request = dataclasses.replace(order.request, protocol=values.TCP)
    return dataclasses.replace(order, request=request, start=order.start if start is None else start)


def _instead(cut: ProbeAnswer, whole: ProbeAnswer) -> ProbeAnswer:
    """The answer by TCP in place of one by UDP that is to be ignored (RFC 2181, 9)."""
    if whole.state in (values.ANSWERED, values.NO_SUCH_NAME):
        return dataclasses.replace(whole, answer=f"{whole.answer} (by TCP: {_TOO_LONG})", truncated=True, ip_id=cut.ip_id)
    words = f"{_TOO_LONG} (TC), and by TCP {whole.state}: {whole.answer}"
    return dataclasses.replace(cut, state=values.FAILED, answer=words, records=())


def _by_tcp(exchange: Exchange, order: Order, syn: ProbeAnswer) -> ProbeAnswer:
    """What the name server says by a connection, if the SYN found its port open."""
    if syn.state != values.OPEN:
        return syn
    question = classify.Question(order.sequence, values.DNS, order.address, order.request.port, syn.ip_id, order.reached_by)
    request, identity = order.request, random.getrandbits(16)
    message = packets.query(request.name or "", request.record, identity)
    try:
        with order.station.connection(order.address, request.port or values.DNS_PORT, request.source, request.ttl) as sock:
            data, seconds = _exchanged(exchange, sock, message, time.monotonic() + request.timeout)
    except TimeoutError:
        return dataclasses.replace(syn, state=values.NO_ANSWER, answer="connected, and nothing came back", rtt=None)
    except OSError as error:
        return dataclasses.replace(syn, state=values.FAILED, answer=f"connected, and then: {error.strerror or error}", rtt=None)
    reply = packets.with_dns(Reply((), "message", order.address, syn.ttl, payload=data), identity)
    return dataclasses.replace(classify.answered(question, reply, seconds), arrived=syn.arrived, listening=syn.listening)


def _exchanged(exchange: Exchange, sock: socket.socket, message: bytes, until: float) -> tuple[bytes, float]:
    """The answer to a message and how many seconds it took, by a connection that is being made; each has its length in front (RFC 7766, 8).

    Raises TimeoutError, other OSErrors when the connection breaks.
    """

    def wait(event: int) -> None:
        if not exchange.ready(sock, event, until):
            raise TimeoutError

    wait(select.POLLOUT)
    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number:
        raise OSError(number, os.strerror(number))
    start = time.monotonic()
    sock.send(len(message).to_bytes(2, "big") + message)
    data = b""
    while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
        wait(select.POLLIN)
        piece = sock.recv(_LONGEST)
        if not piece:
            raise ConnectionError("it was closed without an answer")
        data += piece
    return data[2 : 2 + int.from_bytes(data[:2], "big")], time.monotonic() - start
