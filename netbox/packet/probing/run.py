"""The worker process as its users see it: started early, asked once, gone."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

from netbox.errors import HostError, Unsupported, UsageError, host_error
from netbox.packet.places import Place, Target
from netbox.packet.probing import values
from netbox.packet.probing.process import CHANNEL_FD, receive, send
from netbox.packet.probing.values import Hop, PathMtu, ProbeAnswer, ProbeReport, ProbeRequest, SizeStep

_CODE = "import sys; sys.path[:0] = {path!r}; from netbox.packet.probing.process import main; main()"
# scapy keeps tables below the home directory, and reads settings there.
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", **dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"), "/dev/null")}  # fmt: skip # noqa: E501
_FIRST_FREE = 10
_PARALLEL_FROM = 200  # packets: fewer are not worth a second process that loads scapy


class Job(NamedTuple):
    """A probe whose places are known."""

    source: Place
    target: Target
    request: ProbeRequest


class Worker:
    """A worker process. Its start takes 0.2 s; make it early, and ask it when the places are known."""

    def __init__(self) -> None:
        """Raises HostError when it cannot be started."""
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._pid = _start(theirs)
        except BaseException:
            self._channel.close()
            raise
        finally:
            theirs.close()

    def ask(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """The results of the jobs, in their order. Only once.

        Raises:
            WrongState: a sandbox has ended.
            Unsupported: scapy is missing.
            HostError: the process failed.
        """
        with _Namespaces() as namespaces:
            batch = [_item(job, namespaces) for job in jobs]
            try:
                send(self._channel, batch, namespaces.descriptors)
            except OSError as error:
                raise HostError(f"the process that probes has died: {error}", "run it again; --debug shows more") from error
        return self._result()

    def _result(self) -> list[dict[str, Any]]:
        try:
            answer, _ = receive(self._channel)
        except (EOFError, OSError) as error:
            raise HostError("the process that probes has died", "run it again; --debug shows more") from error
        if "missing" in answer:
            raise Unsupported(f"scapy cannot be used: {answer['missing']}", "install it: pip install scapy")
        if "failure" in answer:
            raise HostError(f"the process that probes failed: {answer['failure']}", "this is a bug; run again with --debug")
        results: list[dict[str, Any]] = answer["results"]
        return results

    def close(self) -> None:
        """Ends the process, if it has not ended."""
        self._channel.close()
        if self._pid:
            pid, self._pid = self._pid, 0
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ChildProcessError, ProcessLookupError):
                pass  # the caller's own wait() was faster

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Namespaces:
    """The namespaces of a batch, each open once."""

    def __init__(self) -> None:
        self.descriptors: list[int] = []
        self._known: dict[tuple[str, str | None, int], int] = {}

    def index(self, place: Place) -> int:
        key = (place.kind, place.sandbox_id, id(place.neighbour))
        if key not in self._known:
            self._known[key] = len(self.descriptors)
            self.descriptors.append(place.open())
        return self._known[key]

    def __enter__(self) -> _Namespaces:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


def _start(channel: socket.socket) -> int:
    """By posix_spawn, never by fork: the caller may have threads."""
    import fcntl

    path = [os.path.abspath(entry) for entry in sys.path]
    executable: str = getattr(sys, "_base_executable", sys.executable)
    argv = [executable, "-I", "-S", "-c", _CODE.format(path=path)]
    environment = {**_ENVIRONMENT, **({"NETBOX_DEBUG": "1"} if os.environ.get("NETBOX_DEBUG") else {})}
    lifted = fcntl.fcntl(channel.fileno(), fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)  # not one of those that are replaced
    actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1)]
    try:
        return os.posix_spawn(executable, argv, environment, file_actions=[*actions, (os.POSIX_SPAWN_DUP2, lifted, CHANNEL_FD)])
    except OSError as error:
        raise host_error("start", "the process that probes", error) from error
    finally:
        os.close(lifted)


def _item(job: Job, namespaces: _Namespaces) -> dict[str, Any]:
    target = job.target
    return {
        "source": namespaces.index(job.source),
        "target": namespaces.index(target.place) if target.place is not None else None,
        "request": job.request.to_json(),
        "address": target.address,
        "inner": target.inner,
        "reached_by": target.place.title if target.place is not None else "",
    }


def check(request: ProbeRequest) -> None:
    """Raises UsageError for a request that makes no sense, whatever its target is."""
    name = request.protocol
    if name in (values.TCP, values.UDP, values.SCTP) and request.port is None:
        raise UsageError(f"a {name} probe needs a port", f"write it behind the target (db:80) or as --{name} 80")
    if name == values.DNS and not request.name:
        raise UsageError("a DNS probe needs a name to ask for", "--dns NAME")
    if request.over_tcp and name != values.DNS:
        raise UsageError(f"only DNS queries go by TCP, not {name}", "leave it out")
    if request.over_tcp and (request.traceroute or request.size is not None):
        option = "--traceroute" if request.traceroute else "--size"
        raise UsageError(f"{option} does not go with a DNS query by TCP, which is no single packet", "leave --tcp or --dns out")
    if request.traceroute and request.pmtu:
        raise UsageError("--traceroute and --pmtu exclude each other", "ask one after the other")
    if request.pmtu and name not in (values.ICMP, values.TCP, values.UDP):
        raise UsageError(f"--pmtu works with ICMP echo, TCP and UDP, not with {name}", f"leave --{name} out")
    if request.traceroute and name in (values.ARP, values.ND):
        raise UsageError(f"--traceroute does not work with {name}, which never leaves the link", f"leave --{name} out")
    for what, value, least, most in (
        ("port", request.port, 1, 65535),
        ("ttl", request.ttl, 1, 255),
        ("size", request.size, 0, 65000),
        ("count", request.count, 1, 10000),
    ):
        if value is not None and not least <= value <= most:
            raise UsageError(f"{what} {value} is out of range", f"{least} to {most}")
    if request.timeout <= 0 or request.interval < 0:
        raise UsageError("a timeout must be longer than 0 s", "write seconds, such as 0.5")


def run_probe(source: Place, target: Target, request: ProbeRequest, worker: Worker | None = None) -> ProbeReport:
    """One probe between places that are known already. ``worker`` is used up.

    Raises:
        UsageError: the request makes no sense.
        WrongState: a sandbox has ended.
        Unsupported, HostError: as ``Worker.ask``.
    """
    return run_probes([(source, target, request)], worker)[0]


def run_probes(items: Sequence[tuple[Place, Target, ProbeRequest]], worker: Worker | None = None) -> list[ProbeReport]:
    """Many probes at once, in the order of the items: one process for all sources, one for each processor when there is much to send.

    Raises:
        as ``run_probe``.
    """
    jobs = [Job(source, target, checked(source, target, request)) for source, target, request in items]
    if not jobs:
        return []
    results = _results(jobs, worker)
    return [_report(job, result) for job, result in zip(jobs, results, strict=True)]


def checked(source: Place, target: Target, request: ProbeRequest) -> ProbeRequest:
    """The request with what the target says filled in. Raises UsageError when the two do not fit."""
    if request.port is None and request.protocol in values.WITH_PORT:
        port = target.port or (values.DNS_PORT if request.protocol == values.DNS else None)
        request = dataclasses.replace(request, port=port)
    check(request)
    if request.protocol == values.ARP and target.is_ipv6:
        raise UsageError(f"ARP does not ask for IPv6 addresses such as {target.address}", "use --nd")
    if request.protocol == values.ND and not target.is_ipv6:
        raise UsageError(f"neighbour discovery does not ask for IPv4 addresses such as {target.address}", "use --arp")
    if request.source is not None and (":" in request.source) != target.is_ipv6:
        raise UsageError(f"{request.source} and {target.address} are of different IP versions", "choose a source of the target's version")
    return request


def _results(jobs: list[Job], worker: Worker | None) -> list[dict[str, Any]]:
    parts = _parts(jobs)
    workers = [worker if worker is not None and not number else Worker() for number in range(len(parts))]
    try:
        if len(parts) == 1:
            return workers[0].ask(parts[0])
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(len(parts)) as pool:
            asked = list(pool.map(lambda pair: pair[0].ask(pair[1]), zip(workers, parts, strict=True)))
        found = {id(job): result for part, results in zip(parts, asked, strict=True) for job, result in zip(part, results, strict=True)}
        return [found[id(job)] for job in jobs]
    finally:
        for one in workers:
            one.close()


def _parts(jobs: list[Job]) -> list[list[Job]]:
    """The jobs of each process. Those of one source stay together: they share its sockets."""
    sources = list(dict.fromkeys((job.source.kind, job.source.sandbox_id) for job in jobs))
    packets = sum(job.request.count for job in jobs)
    count = min(os.cpu_count() or 1, len(sources)) if packets >= _PARALLEL_FROM else 1
    groups = [set(sources[number::count]) for number in range(count)]
    return [[job for job in jobs if (job.source.kind, job.source.sandbox_id) in group] for group in groups]


def _report(job: Job, result: dict[str, Any]) -> ProbeReport:
    return ProbeReport(
        job.request,
        job.source,
        job.target,
        tuple(ProbeAnswer.from_json(answer) for answer in result.get("answers", ())),
        tuple(Hop(number, tuple(map(ProbeAnswer.from_json, hop))) for number, hop in enumerate(result.get("hops", ()), 1)),
        _path_mtu(result["path_mtu"]) if "path_mtu" in result else None,
        (),
    )


def _path_mtu(data: dict[str, Any]) -> PathMtu:
    steps = tuple(SizeStep(step["size"], step["passed"], ProbeAnswer.from_json(step["answer"])) for step in data["steps"])
    return PathMtu(**{**data, "steps": steps})
