"""The driver ``bridge``: a veth pair between the sandbox and a bridge of the host, an address, a default route.

Two datagrams to the kernel build it: one from the host's side (pair, port of the bridge, neighbour entry), one from inside the namespace
(loopback, address, link, route), through a socket that was opened there. A third has the kernel announce the address by
ARP (RFC 5227), so that whoever remembers another MAC for it learns the new one.
"""

from __future__ import annotations

import errno
import os
import time

from netbox.errors import HostError, host_error
from netbox.kernel import rtnetlink, sysctl
from netbox.kernel.namespaces import inside_netns
from netbox.kernel.rtnetlink import RouteSocket
from netbox.network import ipam
from netbox.network.plan import Endpoint, Traffic
from netbox.state.journal import JournalRow, Recorder

FORWARDING_TIMEOUT = 0.2  # seconds; the kernel's own work takes well below a millisecond


def connect(endpoint: Endpoint, netns_fd: int, recorder: Recorder, is_default: bool) -> None:
    """See ``Driver.connect``."""
    recorder.record("veth", name=endpoint.host_interface)
    try:
        with RouteSocket() as host:
            gateway_mac = _connect(host, endpoint, netns_fd)
            with inside_netns(netns_fd):
                inside = RouteSocket()
                for name, value in endpoint_sysctls(endpoint.interface):
                    sysctl.write(name, value)
            with inside:
                index = _configure(inside, endpoint, is_default)
                _await_forwarding(host, endpoint.host_interface)
                # The first announces (see endpoint_sysctls), and forgets all neighbours.
                inside.request(
                    rtnetlink.set_mac(index, endpoint.mac_address), rtnetlink.set_neighbour(index, endpoint.gateway, gateway_mac)
                )
    except OSError as error:
        raise host_error("connect the sandbox to", f"{endpoint.bridge} ({error.filename or endpoint.host_interface})", error) from error


def _connect(host: RouteSocket, endpoint: Endpoint, netns_fd: int) -> str:
    """Makes the pair and returns the MAC of the bridge."""
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
        rtnetlink.set_neighbour(bridge.index, endpoint.address, endpoint.mac_address),
    )
    try:
        host.request(pair, *rest)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
        # The name comes from the sandbox's id: this is the pair of its last run, whose namespace somebody still keeps.
        host.request(rtnetlink.delete_link(endpoint.host_interface))
        host.request(pair, *rest)
    return bridge.mac


def _configure(inside: RouteSocket, endpoint: Endpoint, is_default: bool) -> int:
    link = inside.link(endpoint.interface)
    if link is None:
        raise HostError(f"the interface {endpoint.interface} of the sandbox is gone")
    requests = [
        rtnetlink.set_up(rtnetlink.LOOPBACK_INDEX),
        rtnetlink.add_address(link.index, endpoint.address, endpoint.prefix_length),
        rtnetlink.set_up(link.index),
    ]
    if is_default:
        requests.append(rtnetlink.add_default_route(link.index, endpoint.gateway))
    inside.request(*requests)
    return link.index


def endpoint_sysctls(interface: str) -> list[tuple[str, str]]:
    """The sysctls of a sandbox's interface, inside its namespace.

    ``arp_notify`` makes the kernel announce the address whenever the MAC is set, which costs nothing. An AF_PACKET socket of our own
    would do the same, but closing one waits more than 10 ms for RCU. No IPv6 on a network that has none: no address of its own, no
    duplicate address detection, no router advertisement of a neighbour.
    """
    values = [(f"net.ipv4.conf.{interface}.arp_notify", "1")]
    if os.path.exists("/proc/sys/net/ipv6"):
        values.append((f"net.ipv6.conf.{interface}.disable_ipv6", "1"))
    return values


def _await_forwarding(host: RouteSocket, name: str) -> None:
    """Waits until the bridge forwards for the port: the kernel learns of the carrier in a work queue, and a frame before that is lost."""
    deadline = time.monotonic() + FORWARDING_TIMEOUT
    while True:
        link = host.link(name)
        if link is None or link.port_state == rtnetlink.BR_STATE_FORWARDING or time.monotonic() > deadline:
            return
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
    values = " ".join(f"{key}={value}" for key, value in endpoint_sysctls(inner))
    commands = [
        f"ip link add {name} mtu {endpoint.mtu} master {endpoint.bridge} type veth"
        f" peer name {inner} mtu {endpoint.mtu} address {mac} netns {netns}",
        f"ip link set {name} type bridge_slave hairpin on",
        f"ip link set {name} addrgenmode none up",
        f"ip neighbour replace {endpoint.address} lladdr {mac} dev {endpoint.bridge} nud stale",
        f"ip netns exec {netns} sysctl -qw {values}",
        f"ip -n {netns} address add {endpoint.address}/{endpoint.prefix_length} broadcast + dev {inner}",
        f"ip -n {netns} link set {inner} up",
    ]
    if is_default:
        commands.append(f"ip -n {netns} route add default via {endpoint.gateway} dev {inner}")
    return [
        *commands,
        f"ip -n {netns} link set {inner} address {mac}",  # announces, see endpoint_sysctls
        f"ip -n {netns} neighbour replace {endpoint.gateway} lladdr {ipam.mac_for(endpoint.gateway)} dev {inner} nud stale",
    ]
