"""What a subject is asked to do in a round, and what is measured meanwhile. Times are milliseconds."""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

from tests.bench import networks, processes
from tests.bench.measure import Figure, Sample, Task
from tests.bench.processes import Failed
from tests.bench.subjects import Subject

PORT = 18080
IDLE = 3
SERIES = 50
_TRUE = ("true",)
# Pid 1 gets no default action for a signal, so what shall end on TERM must say so: podman's "rm -f" waits ten seconds otherwise.
_SLEEP = ("sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait")
_SERVICE = ("sh", "-c", "trap 'exit 0' TERM; httpd -f -p 80 -h /etc & wait")
_REQUEST = b"GET /passwd HTTP/1.0\r\n\r\n"

FIGURES = (
    Figure("run-p", f"run --rm -p {PORT}:80 busybox true"),
    Figure("run-bridge", "run --rm busybox true"),
    Figure("run-host", "run --rm --network host busybox true"),
    Figure("run-none", "run --rm --network none busybox true"),
    Figure("run-container", "run --rm --network container:… busybox true"),
    Figure("floor-exit", "start to exit known"),
    Figure("detach", f"run -d -p {PORT}:80 returns"),
    Figure("http", "run -d -p to the first HTTP answer"),
    Figure("exec", "exec true"),
    Figure("stop", "stop (TERM is handled)"),
    Figure("rm", "rm -f of a running one"),
    Figure("series-start", f"run -d, one of {SERIES} in a row"),
    Figure("series-remove", f"rm -f, one of {SERIES} in a row"),
    Figure("weight", "idle sandbox with a port, PSS", "MiB"),
    Figure("firewall-0", "publish and unpublish a port, no others published"),
    Figure("firewall-1000", "publish and unpublish a port, 1,000 published"),
    Figure("packet-0", "first packet of a connection, no others published", "µs"),
    Figure("packet-1000", "first packet of a connection, 1,000 published", "µs"),
    *networks.FIGURES,
    Figure("stream-local", "through a published port, by 127.0.0.1", "Gbit/s"),
    Figure("stream-host", "through a published port, by the host's address", "Gbit/s"),
    Figure("requests-local", "requests a second, by 127.0.0.1", "thousand"),
    Figure("requests-host", "requests a second, by the host's address", "thousand"),
    Figure("connections-local", "connections a second, by 127.0.0.1", "thousand"),
    Figure("connections-host", "connections a second, by the host's address", "thousand"),
)


def command_tasks(subject: Subject) -> list[Task]:
    """Everything that is done through a command line."""
    return [
        _run_task(subject, "run-p", "-p", f"{PORT}:80"),
        _run_task(subject, "run-bridge"),
        _run_task(subject, "run-host", "--network", "host"),
        _run_task(subject, "run-none", "--network", "none"),
        Task(subject.name, ("run-container",), lambda: _in_container(subject)),
        Task(subject.name, ("http", "detach", "exec", "stop"), lambda: _service(subject)),
        Task(subject.name, ("rm",), lambda: _removal(subject)),
        Task(subject.name, ("weight",), lambda: _weight(subject), rounds=3),
        Task(subject.name, ("series-start", "series-remove"), lambda: _series(subject), rounds=1),
    ]


def _run_task(subject: Subject, figure: str, *options: str) -> Task:
    def once() -> Iterator[Sample]:
        yield figure, subject.timed(*subject.run("--rm", *options, command=_TRUE)) * 1e3

    return Task(subject.name, (figure,), once)


_numbers = itertools.count()


@contextlib.contextmanager
def _sandbox(subject: Subject, *options: str, command: tuple[str, ...] = _SLEEP) -> Iterator[str]:
    """A running sandbox, removed at the end whatever happens."""
    name = f"bench-{next(_numbers)}"
    try:
        subject(*subject.run("-d", "--name", name, *options, command=command))
        yield name
    finally:
        with contextlib.suppress(Failed):  # the caller may have removed it
            subject("rm", "-f", name)


def _in_container(subject: Subject) -> Iterator[Sample]:
    with _sandbox(subject) as name:
        yield "run-container", subject.timed(*subject.run("--rm", "--network", f"container:{name}", command=_TRUE)) * 1e3


def _service(subject: Subject) -> Iterator[Sample]:
    """A web server from its start to its end. The client asks from the first moment on, as someone would who waits for the port."""
    name = f"bench-{next(_numbers)}"
    argv = subject.argv(*subject.run("-d", "--name", name, "-p", f"{PORT}:80", command=_SERVICE))
    null = subprocess.DEVNULL
    begun = time.perf_counter()
    try:
        with subprocess.Popen(argv, env=subject.env, stdin=null, stdout=null, stderr=subprocess.PIPE) as starting:
            returns: list[float] = []
            watch = threading.Thread(target=lambda: returns.append(_end(starting)))
            watch.start()
            answered = _first_answer(starting, begun)
            watch.join(processes.TIMEOUT)
            if starting.returncode or answered is None or not returns:
                errors = starting.stderr.read().decode(errors="replace") if starting.stderr else ""
                raise Failed(f"{' '.join(argv)}: {errors.strip() or 'no HTTP answer within 20 s'}")
        yield "http", (answered - begun) * 1e3
        yield "detach", (returns[0] - begun) * 1e3
        yield "exec", subject.timed("exec", name, *_TRUE) * 1e3
        yield "stop", subject.timed("stop", name) * 1e3
    finally:
        with contextlib.suppress(Failed):
            subject("rm", "-f", name)


def _end(process: subprocess.Popen[bytes]) -> float:
    process.wait()
    return time.perf_counter()


def _first_answer(starting: subprocess.Popen[bytes], begun: float) -> float | None:
    """When the first answer came; ``None`` when the command failed or nothing answers."""
    while time.perf_counter() - begun < 20 and not starting.returncode:
        try:
            with socket.create_connection(("127.0.0.1", PORT), timeout=5) as connection:
                connection.sendall(_REQUEST)
                if connection.recv(64).startswith(b"HTTP/1."):
                    return time.perf_counter()
        except OSError:
            pass
        time.sleep(0.001)
    starting.kill()
    return None


def _removal(subject: Subject) -> Iterator[Sample]:
    with _sandbox(subject) as name:
        yield "rm", subject.timed("rm", "-f", name) * 1e3


def _weight(subject: Subject) -> Iterator[Sample]:
    """What the processes that watch over idle sandboxes weigh, without the sandboxes' own and without daemons that run once."""
    before = processes.pids()
    with contextlib.ExitStack() as stack:
        for index in range(IDLE):
            stack.enter_context(_sandbox(subject, "-p", f"{PORT + index}:80"))
        time.sleep(0.5)
        outside = [pid for pid in processes.pids() - before if not processes.is_inside(pid)]
        watchers = [pid for pid in outside if processes.executable(pid) not in subject.daemons]
        yield "weight", sum(map(processes.weight, watchers)) / IDLE / 1024 / 1024


def _series(subject: Subject) -> Iterator[Sample]:
    """Many at once: the time of one must not grow with those that run. Yields each one's, so the 95th percentile shows the growth."""
    names = [f"bench-series-{number}" for number in range(SERIES)]
    try:
        for name in names:
            yield "series-start", subject.timed(*subject.run("-d", "--name", name, command=_SLEEP)) * 1e3
        for name in list(names):
            yield "series-remove", subject.timed("rm", "-f", name) * 1e3
            names.remove(name)
    finally:
        for name in names:
            with contextlib.suppress(Failed):
                subject("rm", "-f", name)
