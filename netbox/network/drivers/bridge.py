"""The driver ``bridge``: a veth pair between the sandbox and a bridge of the host, an address, a default route.

Two datagrams to the kernel build it: one from the host's side (pair, port of the bridge, neighbour entry), one from inside the namespace
(loopback, address, link, route), through a socket that was opened there. A third has the kernel announce the address by
ARP (RFC 5227), so that whoever remembers another MAC for it learns the new one.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

from netbox.errors import HostError, host_error
from netbox.kernel import rtnetlink, sysctl
from netbox.kernel.namespaces import inside_netns
from netbox.kernel.rtnetlink import Link, RouteSocket
from netbox.network import ipam
from netbox.network.plan import Endpoint, Traffic
from netbox.state.journal import JournalRow, Recorder

# Seconds. The kernel needs well below a millisecond, but its work waits in a queue, behind others that hold the lock of all links.
ADDRESS_TIMEOUT = 5.0
FORWARDING_TIMEOUT = 5.0


def connect(endpoint: Endpoint, netns_fd: int, recorder: Recorder, is_default: bool) -> None:
    """See ``Driver.connect``."""
    recorder.record("veth", name=endpoint.host_interface)
    try:
        with RouteSocket() as host:
            bridge = _connect(host, endpoint, netns_fd)
            with inside_netns(netns_fd):
                inside = RouteSocket()
                for name, value in endpoint_sysctls(endpoint.interface, bool(endpoint.address6)):
                    sysctl.write(name, value)
            with inside:
                index = _configure(inside, endpoint, is_default)
                _await(host, endpoint.host_interface, lambda link: link.port_state == rtnetlink.BR_STATE_FORWARDING)
                _await(host, endpoint.bridge, lambda link: link.is_running)
                _await(inside, endpoint.interface, lambda link: link.is_running)
                if endpoint.address6:
                    await_address(inside, index, endpoint.address6)
                    await_address(host, bridge.index, endpoint.gateway6)
                # The first announces (see endpoint_sysctls), and forgets all neighbours.
                neighbours = (rtnetlink.set_neighbour(index, gateway, bridge.mac) for gateway in _gateways(endpoint))
                inside.request(rtnetlink.set_mac(index, endpoint.mac_address), *neighbours)
    except OSError as error:
        raise host_error("connect the sandbox to", f"{endpoint.bridge} ({error.filename or endpoint.host_interface})", error) from error


def _connect(host: RouteSocket, endpoint: Endpoint, netns_fd: int) -> Link:
    """Makes the pair and returns the bridge."""
    bridge = host.link(endpoint.bridge)
    if bridge is None:
        raise HostError(f"the bridge {endpoint.bridge} is gone", "another program removed it; stop the sandboxes on it and start again")
    pair = rtnetlink.add_veth(
        endpoint.host_interface,
        endpoint.interface,
        netns_fd=netns_fd,
        mtu=endpoint.mtu,
        peer_mac=endpoint.mac_address,
        master=bridge.index,
    )
    rest = (
        rtnetlink.configure_port(endpoint.host_interface),
        *(rtnetlink.set_neighbour(bridge.index, address, endpoint.mac_address) for address in endpoint.addresses),
    )
    try:
        host.request(pair, *rest)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
        # The name comes from the sandbox's id: this is the pair of its last run, whose namespace somebody still keeps.
        host.request(rtnetlink.delete_link(endpoint.host_interface))
        host.request(pair, *rest)
    return bridge


def _configure(inside: RouteSocket, endpoint: Endpoint, is_default: bool) -> int:
    link = inside.link(endpoint.interface)
    if link is None:
        raise HostError(f"the interface {endpoint.interface} of the sandbox is gone")
    requests = [
        rtnetlink.set_up(rtnetlink.LOOPBACK_INDEX),
        rtnetlink.add_address(link.index, endpoint.address, endpoint.prefix_length),
        *([rtnetlink.add_address(link.index, endpoint.address6, endpoint.prefix_length6)] if endpoint.address6 else []),
        rtnetlink.set_up(link.index),
    ]
    if is_default:
        requests.append(rtnetlink.add_default_route(link.index, endpoint.gateway))
    inside.request(*requests)
    return link.index


def _gateways(endpoint: Endpoint) -> tuple[str, ...]:
    return tuple(filter(None, (endpoint.gateway, endpoint.gateway6)))


def endpoint_sysctls(interface: str, ipv6: bool = False) -> list[tuple[str, str]]:
    """The sysctls of a sandbox's interface, inside its namespace.

    ``arp_notify`` makes the kernel announce the address whenever the MAC is set, which costs nothing. An AF_PACKET socket of our own
    would do the same, but closing one waits more than 10 ms for RCU. No IPv6 on a network that has none: no address of its own, no
    duplicate address detection, no router advertisement of a neighbour. Where there is IPv6, the link-local address is used at once,
    and ``ndisc_notify`` announces by neighbour advertisement (RFC 4861) when ``arp_notify`` does by ARP.
    """
    values = [(f"net.ipv4.conf.{interface}.arp_notify", "1")]
    if ipv6:
        keys = {"accept_ra": "0", "accept_dad": "0", "ndisc_notify": "1", "disable_ipv6": "0"}
        values += [(f"net.ipv6.conf.{interface}.{key}", value) for key, value in keys.items()]
    elif os.path.exists("/proc/sys/net/ipv6"):
        values.append((f"net.ipv6.conf.{interface}.disable_ipv6", "1"))
    return values


def _await(netlink: RouteSocket, name: str, is_ready: Callable[[Link], bool]) -> None:
    """Waits until a link works: the kernel learns of carriers in a work queue, and a frame that is sent before that is lost. The port has
    to forward, and the bridge and the sandbox's end have to send.
    """
    deadline = time.monotonic() + FORWARDING_TIMEOUT
    while True:
        link = netlink.link(name)
        if link is None or is_ready(link) or time.monotonic() > deadline:
            return
        time.sleep(0.0002)


def await_address(netlink: RouteSocket, index: int, address: str) -> None:
    """Waits until an IPv6 address can be used: before, what is sent to it or from it is lost."""
    deadline = time.monotonic() + ADDRESS_TIMEOUT
    while not netlink.is_usable(index, address) and time.monotonic() < deadline:
        time.sleep(0.0002)


def is_row_of(endpoint: Endpoint, row: JournalRow) -> bool:
    """See ``Driver.is_row_of``."""
    return row.kind == "veth" and row.args["name"] == endpoint.host_interface


def traffic(endpoint: Endpoint, pid: int) -> Traffic:
    """See ``Driver.traffic``."""
    try:
        with RouteSocket() as netlink:
            link = netlink.link(endpoint.host_interface)
    except OSError as error:
        raise host_error("ask the kernel for", endpoint.host_interface, error) from error
    if link is None:
        raise HostError(f"the interface {endpoint.host_interface} is gone", "the sandbox has just ended")
    # struct rtnl_link_stats64 of the host's end: what it sends is what the sandbox receives.
    rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors, rx_dropped, tx_dropped = link.traffic
    return Traffic(tx_bytes, tx_packets, tx_errors, tx_dropped, rx_bytes, rx_packets, rx_errors, rx_dropped)


def describe(endpoint: Endpoint, netns: str, is_default: bool) -> list[str]:
    """See ``Driver.describe``."""
    name, inner, mac = endpoint.host_interface, endpoint.interface, endpoint.mac_address
    values = " ".join(f"{key}={value}" for key, value in endpoint_sysctls(inner, bool(endpoint.address6)))
    router = ipam.mac_for(endpoint.gateway)
    commands = [
        f"ip link add {name} mtu {endpoint.mtu} master {endpoint.bridge} type veth"
        f" peer name {inner} mtu {endpoint.mtu} address {mac} netns {netns}",
        f"ip link set {name} type bridge_slave hairpin on",
        f"ip link set {name} addrgenmode none up",
        *(f"ip neighbour replace {address} lladdr {mac} dev {endpoint.bridge} nud stale" for address in endpoint.addresses),
        f"ip netns exec {netns} sysctl -qw {values}",
        f"ip -n {netns} address add {endpoint.address}/{endpoint.prefix_length} broadcast + dev {inner}",
        *([f"ip -n {netns} address add {endpoint.address6}/{endpoint.prefix_length6} nodad dev {inner}"] if endpoint.address6 else []),
        f"ip -n {netns} link set {inner} up",
    ]
    if is_default:
        commands.append(f"ip -n {netns} route add default via {endpoint.gateway} dev {inner}")
    return [
        *commands,
        f"ip -n {netns} link set {inner} address {mac}",  # announces, see endpoint_sysctls
        *(f"ip -n {netns} neighbour replace {gateway} lladdr {router} dev {inner} nud stale" for gateway in _gateways(endpoint)),
    ]
