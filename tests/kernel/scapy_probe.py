"""Sends packets with scapy from the network namespace that it is started in. Requests come as JSON on stdin, answers go to stdout.

{"kind": "arp", "address": A, "interface": I}                    -> MAC that answers, or null
{"kind": "ping", "address": A}                                   -> address that the echo reply comes from, or null
{"kind": "tcp", "address": A, "port": P}                         -> flags of the answer to a SYN ("SA", "RA"), or null
{"kind": "udp", "address": A, "port": P}                         -> payload of the answer, "unreachable", or null
{"kind": "sctp", "address": A, "port": P, "retries": N}          -> [initiate tag of the INIT ACK, is its checksum right], or null
{"kind": "frame", "interface": I, "mac": M, "source": S, "address": A, "port": P, "protocol": "tcp"}
                              (or "udp", "icmp")                 -> null, nothing is awaited; "source_port": P, "payload": TEXT and
                                                                     "route": [A, …] (loose source route) may be given
{"kind": "frames", "frames": [FRAME, …]}                         -> null; all of one interface, sent quickly
{"kind": "frame6", "interface": I, "mac": M, "source": S, "address": A, "port": P}
                                        a datagram over IPv6     -> null, nothing is awaited
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from typing import Any

logging.getLogger("scapy").setLevel(logging.ERROR)

from scapy.arch import get_if_hwaddr  # noqa: E402
from scapy.config import conf  # noqa: E402
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_LSRR  # noqa: E402
from scapy.layers.l2 import ARP, Ether, getmacbyip  # noqa: E402
from scapy.layers.sctp import SCTP, SCTPChunkInit, SCTPChunkInitAck  # noqa: E402
from scapy.packet import Packet, Raw  # noqa: E402
from scapy.sendrecv import sendp, sr1, srp1  # noqa: E402

TIMEOUT = 20.0  # seconds for an answer; "timeout": SECONDS in a request is for one that nobody answers
SCTP_TIMEOUT = 1.5  # seconds between two attempts
conf.verb = 0


def arp(request: dict[str, Any]) -> str | None:
    query = Ether(dst="ff:ff:ff:ff:ff:ff") / ARP(pdst=request["address"])
    answer = srp1(query, iface=request["interface"], timeout=request.get("timeout", TIMEOUT))
    return str(answer[ARP].hwsrc) if answer is not None else None


def learn(request: dict[str, Any]) -> None:
    """Asks for the MAC of the next hop until it comes: scapy itself gives up after two seconds and sends to all."""
    deadline = time.monotonic() + TIMEOUT
    while getmacbyip(request["address"]) is None and time.monotonic() < deadline:
        pass


def ping(request: dict[str, Any]) -> str | None:
    learn(request)
    answer = sr1(IP(dst=request["address"]) / ICMP(id=random.randrange(1 << 16)), timeout=request.get("timeout", TIMEOUT))
    return str(answer[IP].src) if answer is not None and answer[ICMP].type == 0 else None


def tcp(request: dict[str, Any]) -> str | None:
    learn(request)
    syn = IP(dst=request["address"]) / TCP(sport=random.randrange(20000, 30000), dport=request["port"], flags="S")
    answer = sr1(syn, timeout=request.get("timeout", TIMEOUT))
    return str(answer[TCP].flags) if answer is not None and TCP in answer else None


def udp(request: dict[str, Any]) -> str | None:
    learn(request)
    datagram = IP(dst=request["address"]) / UDP(sport=random.randrange(20000, 30000), dport=request["port"]) / Raw(b"?")
    answer = sr1(datagram, timeout=request.get("timeout", TIMEOUT))
    if answer is None:
        return None
    return "unreachable" if ICMP in answer else bytes(answer[UDP].payload).decode()


def sctp(request: dict[str, Any]) -> list[int | bool] | None:
    learn(request)
    header = SCTP(sport=random.randrange(20000, 30000), dport=request["port"], tag=0)
    init = header / SCTPChunkInit(init_tag=random.randrange(1, 1 << 32), a_rwnd=65536, n_out_streams=1, n_in_streams=1, init_tsn=1)
    answer = sr1(IP(dst=request["address"]) / init, timeout=SCTP_TIMEOUT, retry=request.get("retries", 0))
    if answer is None or SCTPChunkInitAck not in answer:
        return None
    got = answer[SCTP].chksum
    del answer[SCTP].chksum
    return [answer[SCTPChunkInitAck].init_tag, got == SCTP(bytes(answer[SCTP])).chksum]


def frame(request: dict[str, Any]) -> None:
    sendp(forged(request), iface=request["interface"])


def frames(request: dict[str, Any]) -> None:
    sendp([forged(item) for item in request["frames"]], iface=request["frames"][0]["interface"])


def forged(request: dict[str, Any]) -> Packet:
    source_port = request.get("source_port", 4000)
    options = [IPOption_LSRR(routers=request["route"])] if "route" in request else []
    layer = {
        "tcp": TCP(sport=source_port, dport=request.get("port", 0), flags="S"),
        "udp": UDP(sport=source_port, dport=request.get("port", 0)) / Raw(request.get("payload", "forged").encode()),
        "icmp": ICMP(),
    }
    own = get_if_hwaddr(request["interface"])  # scapy would take that of the route, which is lo for 127.0.0.1
    return (
        Ether(src=own, dst=request["mac"]) / IP(src=request["source"], dst=request["address"], options=options) / layer[request["protocol"]]
    )


def frame6(request: dict[str, Any]) -> None:
    from scapy.layers.inet6 import IPv6  # few ask for it, and it takes a while

    own = get_if_hwaddr(request["interface"])
    datagram = UDP(sport=4000, dport=request["port"]) / Raw(b"forged")
    sendp(Ether(src=own, dst=request["mac"]) / IPv6(src=request["source"], dst=request["address"]) / datagram, iface=request["interface"])


KINDS = {"arp": arp, "ping": ping, "tcp": tcp, "udp": udp, "sctp": sctp, "frame": frame, "frames": frames, "frame6": frame6}

if __name__ == "__main__":
    json.dump([KINDS[request["kind"]](request) for request in json.load(sys.stdin)], sys.stdout)
