"""A machine beside this one, made for the occasion: a temporary network namespace behind a veth pair, as a neighbour on a LAN.

Packets from there come in as those of another machine do: through PREROUTING, INPUT and FORWARD. Its addresses are of the ranges that are
set aside for documentation and tests (RFC 5737, RFC 2544, RFC 3849), in a block that overlaps no route, address or network of this host.
The namespace has no name: it lives as long as a process has it open, and takes the veth pair, the host's address and its route along. So
nothing stays, also when everybody is killed, and nothing need be journaled.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import itertools
import os
import socket
import struct
import time
from collections.abc import Iterable

from netbox.errors import Conflict, host_error
from netbox.kernel import namespaces, rtnetlink, syscalls
from netbox.kernel.namespaces import inside_netns
from netbox.kernel.rtnetlink import Request, RouteSocket

_RANGES = ("203.0.113.0/24", "198.51.100.0/24", "192.0.2.0/24", "198.18.0.0/16")
_PREFIX = 28
_IPV6 = "2001:db8:6c61:"  # "la": below the prefix of documentation
_IPV6_PREFIX = 64
_LINK = "lan0"
_IFA_FLAGS, _IFA_F_NODAD = 8, 0x02
_IFF_RUNNING = 0x40
_RT_TABLE_MAIN = 254
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_LINK_MESSAGE = struct.Struct("=BxHiII")
_PATIENCE = 2.0  # seconds for the veth pair to have a carrier: a moment


class Neighbour:
    """The neighbour. ``address`` is its own, ``host_address`` that of this machine on the LAN; ``…6`` the same of IPv6, ``None`` without.
    ``network`` is the LAN's subnet, of which the rest is free, and ``upper_half`` the half of it without the two.

    ``fd`` is its network namespace; ``host_link`` the host's end of the veth pair.
    """

    def __init__(self, directory: str, taken: Iterable[str] = ()) -> None:
        """Makes it. ``directory`` is where the lock is; ``taken`` are subnets to keep clear of.

        Raises:
            Conflict: every block of the test ranges is taken.
            HostError: the kernel refuses.
        """
        self.host_link = f"nblan{os.urandom(4).hex()}"
        self.fd = -1
        self._socket = rtnetlink.open_socket()
        self._home = RouteSocket(self._socket)
        try:
            self.fd = _new_namespace()
            os.makedirs(directory, mode=0o700, exist_ok=True)
            # Two that are made at the same time must not choose the same block.
            lock = os.open(f"{directory}/lan.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._build(self._free_block(taken))
            finally:
                os.close(lock)
        except OSError as error:
            self.close()
            raise host_error("make", "a simulated neighbour", error) from error
        except BaseException:
            self.close()
            raise

    def _free_block(self, taken: Iterable[str]) -> ipaddress.IPv4Network:
        used = [ipaddress.ip_network(str(item), strict=False) for item in (*self._home.routes(), *self._home.addresses())]
        used = [item for item in [*used, *(ipaddress.ip_network(item) for item in taken)] if item.prefixlen and item.version == 4]
        for text in _RANGES:
            for block in ipaddress.IPv4Network(text).subnets(new_prefix=_PREFIX):
                if not any(block.overlaps(item) for item in used if isinstance(item, ipaddress.IPv4Network)):
                    return block
        raise Conflict(
            "there is no room for a simulated neighbour: this host uses all addresses for documentation and tests",
            "free one of 203.0.113.0/24",
        )

    def _build(self, block: ipaddress.IPv4Network) -> None:
        host, own = itertools.islice(block.hosts(), 2)
        self.address, self.host_address, self.network = str(own), str(host), str(block)
        self.upper_half = str(list(block.subnets())[1])
        prefix6 = f"{_IPV6}{int(block.network_address) & 0xFFFF:x}"
        self.address6: str | None = f"{prefix6}::2"
        self.host_address6: str | None = f"{prefix6}::1"
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with inside_netns(self.fd), RouteSocket() as there:
                there.request(_veth(_LINK, self.host_link, home))
                self._configure_neighbour(there)
        finally:
            os.close(home)
        link = self._home.link(self.host_link)
        assert link is not None  # it was made a moment ago, and nobody else knows its name
        self._home.request(_address(link.index, self.host_address, _PREFIX), rtnetlink.set_up(link.index))
        try:
            self._home.request(_address(link.index, self.host_address6, _IPV6_PREFIX))
            with inside_netns(self.fd), RouteSocket() as there:
                own_link = there.link(_LINK)
                assert own_link is not None
                there.request(_address(own_link.index, self.address6, _IPV6_PREFIX), _default_route(own_link.index, self.host_address6))
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EACCES, errno.EPERM, errno.EINVAL):
                raise
            self.address6 = self.host_address6 = None  # a host without IPv6
        self._wait_for_carrier()

    def _configure_neighbour(self, there: RouteSocket) -> None:
        link = there.link(_LINK)
        assert link is not None
        there.request(rtnetlink.set_up(rtnetlink.LOOPBACK_INDEX), _address(link.index, self.address, _PREFIX), rtnetlink.set_up(link.index))
        there.request(_default_route(link.index, self.host_address))

    def _wait_for_carrier(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            link = self._home.link(self.host_link)
            if link is not None and link.flags & _IFF_RUNNING:
                return
            time.sleep(0.001)

    def close(self) -> None:
        """Takes it down. The link goes first: a namespace goes a moment after its last user."""
        try:
            self._home.request(rtnetlink.delete_link(self.host_link))
        except OSError:
            pass  # it dies with the namespace
        finally:
            self._socket.close()
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1


def _new_namespace() -> int:
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.unshare(namespaces.CLONE_NEWNET)
        try:
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            syscalls.setns(home, namespaces.CLONE_NEWNET)
    finally:
        os.close(home)


def _veth(name: str, peer: str, peer_namespace: int) -> Request:
    peer_part = _LINK_MESSAGE.pack(0, 0, 0, 0, 0) + rtnetlink.text(rtnetlink.IFLA_IFNAME, peer)
    peer_part += rtnetlink.number(rtnetlink.IFLA_NET_NS_FD, peer_namespace)
    data = rtnetlink.attribute(rtnetlink.VETH_INFO_PEER, peer_part)
    info = rtnetlink.text(rtnetlink.IFLA_INFO_KIND, "veth") + rtnetlink.attribute(rtnetlink.IFLA_INFO_DATA, data)
    body = _LINK_MESSAGE.pack(0, 0, 0, 0, 0) + rtnetlink.text(rtnetlink.IFLA_IFNAME, name)
    flags = rtnetlink.NLM_F_CREATE | rtnetlink.NLM_F_EXCL
    return Request(rtnetlink.RTM_NEWLINK, flags, body + rtnetlink.attribute(rtnetlink.IFLA_LINKINFO, info), f"the veth pair {peer}")


def _address(index: int, address: str, prefix_length: int) -> Request:
    """An address that is usable at once: nobody else is on that link to be asked whether it is a duplicate."""
    value = ipaddress.ip_address(address)
    family = socket.AF_INET if value.version == 4 else socket.AF_INET6
    body = _ADDRESS.pack(family, prefix_length, 0, rtnetlink.RT_SCOPE_UNIVERSE, index)
    body += rtnetlink.attribute(rtnetlink.IFA_LOCAL, value.packed) + rtnetlink.attribute(rtnetlink.IFA_ADDRESS, value.packed)
    body += rtnetlink.number(_IFA_FLAGS, _IFA_F_NODAD) if value.version == 6 else b""
    flags = rtnetlink.NLM_F_CREATE | rtnetlink.NLM_F_EXCL
    return Request(rtnetlink.RTM_NEWADDR, flags, body, f"the address {address}/{prefix_length}")


def _default_route(index: int, gateway: str) -> Request:
    value = ipaddress.ip_address(gateway)
    family = socket.AF_INET if value.version == 4 else socket.AF_INET6
    body = _ROUTE.pack(family, 0, 0, 0, _RT_TABLE_MAIN, rtnetlink.RTPROT_BOOT, rtnetlink.RT_SCOPE_UNIVERSE, rtnetlink.RTN_UNICAST, 0)
    body += rtnetlink.attribute(rtnetlink.RTA_GATEWAY, value.packed) + rtnetlink.number(rtnetlink.RTA_OIF, index)
    return Request(rtnetlink.RTM_NEWROUTE, rtnetlink.NLM_F_CREATE | rtnetlink.NLM_F_EXCL, body, f"the default route by {gateway}")
