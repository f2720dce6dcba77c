"""The driver ``macvlan``: a link with a MAC of its own on a link of the host, made straight into the sandbox's namespace. No bridge, no
NAT: the sandbox is one more machine on the LAN.

The kernel delivers nothing between the parent's own addresses and the links on it, so this host is out of reach, and out of its reach they
are (ip-link(8), ``drivers/net/macvlan.c``).
"""

from __future__ import annotations

import errno
import os

from netbox.errors import Conflict, HostError, NetboxError, Unsupported, host_error
from netbox.kernel import rtnetlink, sublinks, sysctl
from netbox.kernel.namespaces import inside_netns
from netbox.kernel.rtnetlink import RouteSocket
from netbox.network.drivers.bridge import await_address, endpoint_sysctls
from netbox.network.plan import Endpoint, Traffic
from netbox.state.journal import JournalRow, Recorder

PASSTHRU = "passthru"


def connect(endpoint: Endpoint, netns_fd: int, recorder: Recorder, is_default: bool) -> None:
    """See ``Driver.connect``.

    The journal has the number by which this namespace knows the sandbox's: a link in a namespace that lives on, as another sandbox shares
    it or a connection waits for its peer's last acknowledgement, can still be removed, and answers for its address no more.
    """
    try:
        with RouteSocket() as host:
            parent = host.link(endpoint.parent)
            if parent is None:
                raise HostError(f"the parent {endpoint.parent} is gone", "another program removed it")
            netnsid = sublinks.namespace_id(host, netns_fd)
            recorder.record("macvlan", interface=endpoint.interface, mac_address=endpoint.mac_address, netnsid=netnsid)
            request = sublinks.add_macvlan(
                _first_name(endpoint.mac_address),
                parent=parent.index,
                netns_fd=netns_fd,
                mtu=endpoint.mtu,
                mac=endpoint.mac_address,
                mode=endpoint.mode,
            )
            host.request(request)
        with inside_netns(netns_fd):
            inside = RouteSocket()
            with inside:
                _configure(inside, endpoint, is_default)
    except OSError as error:
        raise _explained(endpoint, error) from error


def _configure(inside: RouteSocket, endpoint: Endpoint, is_default: bool) -> None:
    """The calling thread is in the sandbox's namespace."""
    link = inside.link(_first_name(endpoint.mac_address))
    if link is None:
        raise HostError(f"the interface {endpoint.interface} of the sandbox is gone")
    inside.request(sublinks.rename(link.index, endpoint.interface))
    for name, value in endpoint_sysctls(endpoint.interface, bool(endpoint.address6)):
        sysctl.write(name, value)
    requests = [
        rtnetlink.set_up(rtnetlink.LOOPBACK_INDEX),
        rtnetlink.add_address(link.index, endpoint.address, endpoint.prefix_length),
        *([rtnetlink.add_address(link.index, endpoint.address6, endpoint.prefix_length6)] if endpoint.address6 else []),
        rtnetlink.set_up(link.index),
    ]
    if is_default:
        requests.append(rtnetlink.add_default_route(link.index, endpoint.gateway))
    inside.request(*requests)
    if endpoint.address6:
        await_address(inside, link.index, endpoint.address6)
    inside.request(rtnetlink.set_mac(link.index, endpoint.mac_address))  # announces, see endpoint_sysctls


def _first_name(mac: str) -> str:
    """The name of the link until it has its own: a kernel before 6.14 takes no name that a link of the host has."""
    return f"nb{mac.replace(':', '')}"


def remove(interface: str, mac_address: str, netnsid: int) -> None:
    """Removes the link of a journal row, if it is still there. Numbers of namespaces are used again, hence the look at the MAC, which is
    nobody else's while the lease stands.

    Raises:
        HostError: the kernel refuses.
    """
    try:
        with RouteSocket() as host:
            for name in (_first_name(mac_address), interface):
                link = host.link(name, netnsid)
                if link is not None and (link.kind, link.mac) == ("macvlan", mac_address):
                    host.request(rtnetlink.delete_link(name, netnsid))
    except OSError as error:
        raise host_error("delete", f"the link {interface} of the sandbox", error) from error


def is_row_of(endpoint: Endpoint, row: JournalRow) -> bool:
    """See ``Driver.is_row_of``."""
    wanted = (endpoint.interface, endpoint.mac_address)
    return row.kind == "macvlan" and (row.args["interface"], row.args["mac_address"]) == wanted


def traffic(endpoint: Endpoint, pid: int) -> Traffic:
    """See ``Driver.traffic``: the counters of the link itself, as no end of it is outside."""
    try:
        netns_fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with inside_netns(netns_fd):
                inside = RouteSocket()
        finally:
            os.close(netns_fd)
        with inside:
            link = inside.link(endpoint.interface)
    except OSError as error:
        raise host_error("ask the kernel for", f"{endpoint.interface} of the sandbox", error) from error
    if link is None:
        raise HostError(f"the interface {endpoint.interface} of the sandbox is gone", "it has just ended")
    rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors, rx_dropped, tx_dropped = link.traffic
    return Traffic(rx_bytes, rx_packets, rx_errors, rx_dropped, tx_bytes, tx_packets, tx_errors, tx_dropped)


def describe(endpoint: Endpoint, netns: str, is_default: bool) -> list[str]:
    """See ``Driver.describe``."""
    first, inner, mac = _first_name(endpoint.mac_address), endpoint.interface, endpoint.mac_address
    values = " ".join(f"{key}={value}" for key, value in endpoint_sysctls(inner, bool(endpoint.address6)))
    commands = [
        f"ip link add link {endpoint.parent} name {first} mtu {endpoint.mtu} address {mac} netns {netns} type macvlan mode {endpoint.mode}",
        f"ip -n {netns} link set {first} name {inner}",
        f"ip netns exec {netns} sysctl -qw {values}",
        f"ip -n {netns} address add {endpoint.address}/{endpoint.prefix_length} broadcast + dev {inner}",
        *([f"ip -n {netns} address add {endpoint.address6}/{endpoint.prefix_length6} nodad dev {inner}"] if endpoint.address6 else []),
        f"ip -n {netns} link set {inner} up",
    ]
    if is_default:
        commands.append(f"ip -n {netns} route add default via {endpoint.gateway} dev {inner}")
    return [*commands, f"ip -n {netns} link set {inner} address {mac}"]


def _explained(endpoint: Endpoint, error: OSError) -> NetboxError:
    """What the errors of ``macvlan_common_newlink`` and ``macvlan_open`` mean."""
    parent, number = endpoint.parent, error.errno
    if number == errno.EOPNOTSUPP:
        return Unsupported("this kernel has no macvlan (CONFIG_MACVLAN)", "modprobe macvlan, or use a kernel that has it")
    if number == errno.EBUSY:
        return Conflict(
            f"cannot put a macvlan link on {parent}: it is a part of a bridge, a bond or another link",
            f"make the network on that one ('ip link show {parent}' names its master)",
        )
    if number == errno.EINVAL:
        return Conflict(
            f"cannot put a macvlan link on {parent}: another one is there, and macvlan_mode={PASSTHRU} shares it with nobody",
            "end the sandbox that has it, or use another parent",
        )
    if number == errno.EADDRINUSE:
        return Conflict(f"the MAC {endpoint.mac_address} is taken by another link on {parent}", "choose another one")
    return host_error("connect the sandbox to", f"{parent} ({error.filename or endpoint.interface})", error)
