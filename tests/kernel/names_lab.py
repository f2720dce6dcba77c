"""Networks wired by hand, with the name service on them."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from netbox.kernel import rtnetlink
from netbox.kernel.namespaces import inside_netns
from netbox.kernel.rtnetlink import RouteSocket
from netbox.network.nameservice import files, hooks
from netbox.network.nameservice.zone import Member, Served
from netbox.settings import Settings
from netbox.state.journal import NETWORK
from netbox.state.store import Store
from tests.support import dns, linux
from tests.support.waiting import wait_until

_IFF_RUNNING = 0x40  # the bridge drops what the host sends until then, <linux/if.h>


class FakeMembers:
    """What the state database will say."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Member]] = {}

    def network_members(self, network: str) -> Sequence[Member]:
        return list(self.rows.get(network, ()))


class Bench:
    """Networks ``netN`` with the gateway ``10.77.N.1`` on the bridge ``br-N``, and clients on them."""

    def __init__(self) -> None:
        self.settings = Settings.from_environment()
        self.store = Store(self.settings)
        self.members = FakeMembers()
        self._bridges: list[str] = []
        self._namespaces: list[int] = []
        self._resolvers: list[dns.Resolver] = []

    def network(self, number: int, internal: bool = False, gateways: tuple[str, ...] = ()) -> Served:
        """A network that is served."""
        served = self.bridge(number, internal, gateways)
        hooks.network_up(self.settings, served, self.members, self.store.journal(f"network:{served.name}", NETWORK))
        return served

    def bridge(self, number: int, internal: bool = False, gateways: tuple[str, ...] = ()) -> Served:
        """A network that is not served yet."""
        name, gateway = f"br-{number}", f"10.77.{number}.1"
        with RouteSocket() as netlink:
            netlink.request(rtnetlink.add_bridge(name, f"02:6e:0a:4d:{number:02x}:01", 1500))
            link = netlink.link(name)
            assert link is not None
            netlink.request(rtnetlink.add_address(link.index, gateway, 24), rtnetlink.set_up(link.index))
        self._bridges.append(name)
        return Served(f"net{number}", name, (gateway, *gateways), (f"10.77.{number}.0/24",), internal)

    def client(self, number: int, host: int) -> int:
        """A namespace with the address ``10.77.number.host``."""
        fd = linux.new_network_namespace()
        self._namespaces.append(fd)
        mac = f"02:6e:0a:4d:{number:02x}:{host:02x}"
        with RouteSocket() as netlink:
            bridge = netlink.link(f"br-{number}")
            assert bridge is not None
            netlink.request(rtnetlink.add_veth(f"v{number}-{host}", "eth0", netns_fd=fd, mtu=1500, peer_mac=mac, master=bridge.index))
            with inside_netns(fd):
                inside = RouteSocket()
            with inside:
                link = inside.link("eth0")
                assert link is not None
                inside.request(
                    rtnetlink.set_up(rtnetlink.LOOPBACK_INDEX),
                    rtnetlink.add_address(link.index, f"10.77.{number}.{host}", 24),
                    rtnetlink.set_up(link.index),
                    rtnetlink.add_default_route(link.index, f"10.77.{number}.1"),
                )
            self._await_port(netlink, f"v{number}-{host}", f"br-{number}")
        return fd

    @staticmethod
    def _await_port(netlink: RouteSocket, name: str, bridge: str) -> None:
        def forwards() -> bool:
            link, master = netlink.link(name), netlink.link(bridge)
            if link is None or master is None:
                return False
            return link.port_state == rtnetlink.BR_STATE_FORWARDING and bool(master.flags & _IFF_RUNNING)

        wait_until(forwards, f"{name} forwards")

    def member(self, number: int, host: int, name: str, *aliases: str, sandbox: str | None = None, resolvers: tuple[str, ...] = ()) -> None:
        """A sandbox joins a network, in the records only."""
        row = Member(sandbox or f"{number:02x}{host:04x}" * 10 + "0000", name, aliases, (f"10.77.{number}.{host}",), resolvers)
        self.members.rows.setdefault(f"net{number}", []).append(row)
        self.changed(number)

    def leave(self, number: int, name: str) -> None:
        """A sandbox leaves a network."""
        rows = self.members.rows[f"net{number}"]
        self.members.rows[f"net{number}"] = [row for row in rows if row.name != name]
        self.changed(number)

    def changed(self, number: int) -> None:
        hooks.zone_changed(self.settings, f"net{number}", self.members)

    def resolver(self, address: str, behave: Callable[[str, bool, bytes], bytes | None]) -> dns.Resolver:
        """A resolver on the host."""
        made = dns.Resolver(address, behave)
        self._resolvers.append(made)
        return made

    def use(self, *addresses: str) -> None:
        """The host's resolv.conf names these resolvers."""
        Path("/etc/resolv.conf").write_text("".join(f"nameserver {address}\n" for address in addresses))

    @contextlib.contextmanager
    def inside(self, fd: int) -> Iterator[None]:
        with linux.network_namespace(fd):
            yield

    def execute(self, fd: int, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        with linux.network_namespace(fd):
            return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False, **options)

    def processes(self) -> list[int]:
        """Server and standby: those of this private host, which has its own mounts."""
        mine = os.readlink("/proc/self/ns/mnt")
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                    if Path(f"/proc/{name}/comm").read_text() == "netbox-names\n" and os.readlink(f"/proc/{name}/ns/mnt") == mine:
                        found.append(int(name))
        return sorted(found)

    def server(self) -> int:
        """The one that answers: it is told to synchronize and says who it is."""
        report = hooks._tell(self.settings)
        assert report is not None
        return int(report["pid"])

    def close(self) -> None:
        for resolver in self._resolvers:
            resolver.close()
        for name in files.networks(self.settings.run):
            hooks.network_down(self.settings, name)
        for owner, scope in self.store.journal_owners():
            journal = self.store.journal(owner, scope)
            journal.forget(journal.rows())
        self.store.close()
        for fd in self._namespaces:
            os.close(fd)
        with RouteSocket() as netlink:
            for name in self._bridges:
                netlink.request(rtnetlink.delete_link(name))
