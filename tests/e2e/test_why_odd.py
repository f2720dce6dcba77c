"""``why`` where things are unusual: filters of links and bridges, shared and foreign namespaces, aliases, kernels without SCTP."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from netbox.engine import Engine
from netbox.errors import UsageError
from netbox.packet import why
from tests.e2e.why_lab import IMPATIENCE, WhyLab
from tests.support import linux
from tests.support.host import PrivateHost


@pytest.fixture
def lab(engine: Engine) -> Iterator[WhyLab]:
    made = WhyLab(engine)
    try:
        for name in ("front", "back"):
            made.network(name)
        made.box("web", network_aliases=["database"])
        made.box("peer")
        yield made
    finally:
        made.close()


def test_filters_of_links_and_bridges(lab: WhyLab) -> None:
    lab.serve("web", 80)
    port = lab.endpoint("peer")["host_interface"]
    on_link = f'device "{port}"'
    for family, hook, device in (("netdev", "ingress", on_link), ("inet", "ingress", on_link), ("bridge", "forward", "")):
        base = f"type filter hook {hook} {device} priority 0"
        subprocess.run(["nft", f"table {family} odd {{ chain c {{ {base}; tcp dport 80 drop; }}; }}"], check=True, timeout=60)
        answer = lab.fails("peer", "web:80", "foreign-rule")
        assert answer.sentence.endswith(f"drops it on the host: {family} odd c rule 1 (nf_tables)")
        subprocess.run(["nft", "delete", "table", family, "odd"], check=True, timeout=60)
    assert lab.reaches("peer", f"[::ffff:{lab.address('web')}]:80").sentence == f"peer reaches {lab.address('web')}:80 over network front"


def test_names_and_namespaces_that_several_share(lab: WhyLab) -> None:
    lab.serve("web", 80)
    lab.boxes["guest"] = lab.engine.run("busybox", "sleep", "1000", name="guest", network="container:web")
    assert lab.reaches("guest", "web:80").sentence == "guest reaches web:80 inside guest"
    for name in ("guest", "web"):
        answer = lab.fails("peer", f"{name}:81", "not-listening")
        assert answer.observation.dropped_at == f"in {name} at eth0"
    answer = lab.fails("peer", "web:53/udp", "not-listening", size=4000)
    assert answer.observation.large == "unreachable"
    answer = lab.fails("peer", "web:9", "not-listening", protocol="sctp")
    assert answer.observation.outcome in ("refused", "unreachable")
    lab.box("db", "back")
    answer = lab.fails("db", "database:80", "name-unknown")
    assert answer.sentence.endswith("database is an alias of web on network front, and db is not on it")
    assert answer.command == "netbox network connect front db"
    with pytest.raises(UsageError, match="a broadcast address"):
        why(lab.engine, "peer", "255.255.255.255", timeout=IMPATIENCE)


@pytest.fixture
def foreign(private_host: PrivateHost, engine: Engine) -> Iterator[WhyLab]:
    """nsb, in a namespace that somebody else made: 192.168.77.2 on v1; the host has 192.168.77.1 on v0. web is on network front."""
    made = WhyLab(engine)
    made.ip("", "netns add lab")
    try:
        made.ip("", "link add v0 type veth peer name v1 netns lab")
        made.ip("", "addr add 192.168.77.1/24 dev v0")
        made.ip("", "link set v0 up")
        made.network("front")
        made.box("web")
        made.boxes["nsb"] = engine.run("busybox", "sleep", "1000", name="nsb", network="ns:/run/netns/lab")
        for line in ("addr add 192.168.77.2/24 dev v1", "link set v1 up", "route add default via 192.168.77.1"):
            made.ip("nsb", line)
        yield made
    finally:
        made.close()
        made.ip("", "netns del lab")
        subprocess.run(["ip", "link", "del", "v0"], check=False, timeout=60)  # it goes with the namespace, a moment later
        linux.umount("/run/netns")
        os.rmdir("/run/netns")


def test_a_namespace_of_somebody_else(foreign: WhyLab) -> None:
    foreign.serve("web", 80)
    foreign.reaches("host", "nsb")
    answer = foreign.fails("nsb", "web:80", "own-rule")
    assert "nsb is on no network of netbox, and web is asked past its published ports" in answer.sentence
    foreign.ip("nsb", "link set v1 down")
    for source, target in (("nsb", "host"), ("host", "nsb:80")):
        answer = foreign.fails(source, target, "link-down")
        assert answer.command == f"nsenter -t {foreign.boxes['nsb'].pid} -n ip link set v1 up"
