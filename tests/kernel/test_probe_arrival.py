"""What is seen of probes where they arrive, among packets of others with the same IP id."""

from __future__ import annotations

import os
import socket

import pytest

from netbox.packet.diagnosis.packets import Crafted, build
from netbox.packet.probing.station import Watch
from tests.support.waiting import wait_until

NUMBER = 2000


@pytest.mark.usefixtures("private_host")
def test_only_what_has_arrived_is_seen() -> None:
    ours, translated = (build(Crafted("icmp", "127.0.0.1", "127.0.0.2", identifier, 0, NUMBER)) for identifier in (1, 2))
    missing = ours[:26] + b"\0\2" + ours[28:]  # the next in its sequence
    tcp, udp = (build(Crafted(protocol, "127.0.0.1", "127.0.0.2", 40000, 9, NUMBER)) for protocol in ("tcp", "udp"))
    netns = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    watch = Watch(netns, NUMBER, 10)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        sock.sendto(udp, ("127.0.0.2", 0))
        wait_until(lambda: watch.has_seen(udp), "the datagram", timeout=30)
        assert not any(map(watch.has_seen, (ours, missing, tcp)))
        sock.sendto(translated, ("127.0.0.2", 0))
        wait_until(lambda: watch.has_seen(ours), "the echo with another identifier, as NAT gives", timeout=30)
    assert not any(map(watch.has_seen, (missing, tcp)))
    for sock in watch._sockets:
        sock.close()
    os.close(netns)
