"""What is promised of networks that netbox does not make: the LAN of a link of the host, and a namespace of somebody else.

Both are played by the simulated neighbour: its link is the parent of a macvlan network, its namespace the one that is joined.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from netbox.packet import places
from netbox.packet.places import HOST, Place
from netbox.packet.probing import values
from netbox.packet.probing.values import ProbeRequest
from netbox.packet.verifying.checks import Check, Prober, expect, kept_out, same_namespace, seen
from netbox.packet.verifying.stage import Stage

_PORT, _CLOSED_PORT = 80, 81
_SILENCE = 0.5  # seconds: packets inside one machine take less than a millisecond


def macvlan(stage: Stage) -> list[Check]:
    """Sandboxes as machines of their own on a LAN."""
    lan, host = stage.lan(), Place(HOST, HOST, HOST)
    assert lan.neighbour is not None
    network = stage.network(
        "lan",
        driver="macvlan",
        subnet=lan.neighbour.network,
        gateway=lan.neighbour.address,
        ip_range=lan.neighbour.upper_half,
        options=[f"parent={lan.neighbour.host_link}"],
    )
    one, other = stage.sandbox("machine", network=network), stage.sandbox("another", network=network)
    stage.serve(one, _PORT)
    server = stage.serve(lan, _PORT)
    address, own = (str(stage.engine.get(place.title).ip_address) for place in (one, other))
    make = Prober(stage)
    make.add("ARP: another machine on the LAN finds it", lan, address, ProbeRequest(values.ARP))
    make.add("TCP: it is reached from there without publishing", lan, f"{address}:{_PORT}", ProbeRequest(values.TCP))
    make.add("TCP: another port of it is closed", lan, f"{address}:{_CLOSED_PORT}", ProbeRequest(values.TCP), expect(values.CLOSED))
    make.add("TCP: another sandbox on the LAN reaches it", other, f"{one.title}:{_PORT}", ProbeRequest(values.TCP))
    make.add("UDP: its own address is what another machine sees", other, places.LAN, ProbeRequest(values.UDP, _PORT), seen(server, own))
    make.add("isolation: the host and its own LAN are apart", host, address, ProbeRequest(values.ICMP, timeout=_SILENCE), kept_out)
    return make.checks


def namespace(stage: Stage) -> list[Check]:
    """A namespace that somebody else made, joined."""
    lan, host = stage.lan(), Place(HOST, HOST, HOST)
    assert lan.neighbour is not None
    inside = stage.sandbox("joined", network=f"ns:/proc/{os.getpid()}/fd/{lan.neighbour.fd}")
    server, on_host = stage.serve(inside, _PORT), stage.serve(host, 0)
    own = lan.neighbour.address
    make = Prober(stage)
    make.add_fact("the sandbox is in the namespace that it joined", lambda: same_namespace(inside, lan))
    make.add("TCP: it listens at the namespace's address", host, f"{own}:{server.port}", ProbeRequest(values.TCP))
    way = f"{lan.neighbour.host_address}:{on_host.port}"
    make.add("UDP: that address is what others see", inside, way, ProbeRequest(values.UDP), seen(on_host, own))
    return make.checks


MODES: dict[str, Callable[[Stage], list[Check]]] = {"macvlan": macvlan, "ns": namespace}
