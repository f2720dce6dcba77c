"""The monitor: the one process that netbox keeps beside a sandbox.

It clones init, takes part in the handshake (drawn in ``protocol``), then keeps log, attachments and liveness lock, records how the sandbox
ended, and hands over to the clean-up process. Single-threaded, and it stays small: what it imports, every running sandbox pays for.
"""

from __future__ import annotations

import _socket
import os
import select
import time

from netbox.kernel import namespaces, syscalls
from netbox.runtime import init, protocol, status_file
from netbox.runtime.attachments import CONTROL_SOCKET, Client
from netbox.runtime.failure import Failure, stage
from netbox.runtime.init import IGNORED_SIGNALS
from netbox.runtime.logs import LogWriter
from netbox.runtime.reservations import Reservations
from netbox.runtime.resources import open_cgroups, read_program
from netbox.runtime.session import Session
from netbox.runtime.trees import open_trees

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SIGKILL = 9
_CLD_EXITED = 1
_ENOENT = 2
_KILLED_EARLY = "the sandbox's first process was killed while it started"
_SETTLING_TIME = 0.1  # seconds for whoever waited for the end: to settle costs it two milliseconds, a clean-up process a hundred
_SETTLING_LOOKS = 5


def main(channel_fd: int = protocol.CHANNEL_FD) -> None:
    """Runs one sandbox for the engine at the other end of ``channel_fd``; returns when nothing is left to do."""
    detach(channel_fd)
    channel = _socket.socket(fileno=channel_fd)
    reserved: list[int] = []
    while True:
        message = protocol.receive_message(channel)
        if message is None:  # the engine had no use for a monitor after all
            return
        name, values, fds = message
        if name != protocol.RESERVED:
            break
        reserved += fds
    if name != protocol.START:
        raise protocol.ProtocolError(f"{name!r} before {protocol.START!r}")
    lock, *ports = fds
    netns = ports.pop() if values["netns"] else None
    Monitor(channel, values["config"], lock, reserved + ports, netns).run()


def detach(channel_fd: int) -> None:
    """Leaves everything of the caller behind.

    Session, terminal, directory, descriptors, and an OOM protection that the sandbox must not inherit.
    """
    os.setsid()
    os.chdir("/")
    os.umask(0o022)
    syscalls.close_all_except([channel_fd])
    os.set_inheritable(channel_fd, False)
    syscalls.reset_signals()
    syscalls.ignore_signals(IGNORED_SIGNALS)
    fd = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
    if os.read(fd, 16).startswith(b"-"):
        os.write(fd, b"0")
    os.close(fd)


class Monitor:
    """One sandbox, from START to its end.

    ``lock`` is the liveness lock, ``ports`` are the sockets that reserve ports, ``netns`` is a namespace to join.
    """

    def __init__(self, channel: _socket.socket, config: dict[str, Any], lock: int, ports: list[int], netns: int | None) -> None:
        self._channel = channel
        self._config = config
        self._netns = netns
        self._lock = lock
        self._reservations = Reservations(ports)
        self._handshake = protocol.Handshake()
        self._handshake.advance(protocol.START)
        self._pid = 0
        self._pidfd = -1
        self._sync: _socket.socket
        self._session: Session
        self._status: dict[str, object] = {"monitor_pid": os.getpid()}
        self._log: LogWriter | None = None

    def run(self) -> None:
        """Everything; ends by exec of the clean-up process where one is due."""
        try:
            self._start()
        except Failure as failure:
            self._fail(failure)
            return
        except OSError as error:  # EPIPE: the engine died
            self._fail(Failure.of("monitor", error))
            return
        self._session.run()
        self._finish()

    def _start(self) -> None:
        config = self._config
        with stage("status", config["run_dir"]):
            status_file.remove_status(config["run_dir"])  # an earlier run's
        for directory in config["create_directories"]:
            with stage("mkdir", directory):
                _make_directory(directory, config)
        self._clone()
        self._announce()
        if config["userns"]:
            self._map_user_namespace(config["userns"])
        self._prepare_session()
        self._shake_hands()
        self._status |= {"state": status_file.RUNNING, "pid": self._pid, "started_at": time.time()}
        status_file.write_status(config["run_dir"], self._status)
        self._advance(protocol.STARTED)
        if config["attach"]:
            self._session.attachments.add(Client(self._channel, foreground=True, claims=bool(config.get("claim"))))
        else:
            self._channel.close()

    def _clone(self) -> None:
        config = self._config
        program = read_program(config["seccomp"])
        cgroup_fds, cgroup = open_cgroups(config["cgroup"])
        self._sync, inner = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        flags = 0
        for kind in config["namespaces"]:
            if kind not in ("cgroup", "time"):  # entered by init once it is in its cgroup; entered by the children of who unshares it
                flags |= namespaces.KINDS[kind]
        with stage("clone"), _ForChildren(self._netns, "time" in config["namespaces"]):
            pid, pidfd = syscalls.clone3(flags, cgroup)
            if pid == 0:
                init.run(config, inner, cgroup_fds, program)
        self._pid, self._pidfd = pid, pidfd
        inner.close()
        for fd in cgroup_fds + [fd for fd in (cgroup, self._netns) if fd is not None]:
            os.close(fd)

    def _announce(self) -> None:
        try:
            netns = os.open(f"/proc/{self._pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # init was quicker: it has failed, and a dead process has no namespaces
            raise self._last_word() from None
        self._advance(protocol.NAMESPACES_READY, {"pid": self._pid}, [self._pidfd, netns])
        os.close(netns)

    def _advance(self, name: str, values: dict[str, Any] | None = None, fds: list[int] | None = None) -> None:
        self._handshake.advance(name)
        try:
            protocol.send_message(self._channel, name, values, fds or [])
        except OSError:
            if name != protocol.STARTED:  # from GO on the sandbox is on record and runs without the engine that started it
                raise

    def _map_user_namespace(self, userns: dict[str, int]) -> None:
        with stage("user namespace"):
            for name in ("uid_map", "gid_map"):
                fd = os.open(f"/proc/{self._pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
                os.write(fd, b"0 %d %d" % (userns["base"], userns["size"]))
                os.close(fd)
            namespace = os.open(f"/proc/{self._pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        trees = open_trees(self._config, namespace)
        values, fds = trees.pack()
        try:
            protocol.send_message(self._sync, protocol.MAPPED, values, fds)
        except OSError:
            pass  # init has failed, and its own report comes next
        for fd in [*fds, namespace]:
            os.close(fd)

    def _prepare_session(self) -> None:
        config = self._config
        self._status["pid_start"] = status_file.start_time(self._pid)
        log = config["log"]
        with stage("log", log["directory"] if log else ""):
            self._log = LogWriter(log["directory"], log["max_size"], log["max_files"]) if log else None
        self._session = Session(self._pidfd, self._log)
        with stage("control socket", config["run_dir"]):
            self._session.attachments.listen(config["run_dir"], self._reservations)

    def _shake_hands(self) -> None:
        """From NETWORK_READY to the exec. Init and engine work at the same time, so READY waits for whichever is later."""
        poller = select.poll()
        poller.register(self._sync.fileno(), select.POLLIN)
        poller.register(self._channel.fileno(), select.POLLIN)
        ready = False
        while True:
            for fd, _ in poller.poll():
                if fd == self._channel.fileno():
                    if self._hear_engine():
                        # It has nothing more to say before STARTED, and may well hang up now.
                        poller.unregister(fd)
                    continue
                word = self._hear_init()
                if word == protocol.STARTED:
                    return
                ready = ready or word == protocol.READY
            if ready and self._handshake.reached(protocol.NETWORK_READY):
                self._advance(protocol.READY)

    def _hear_engine(self) -> bool:
        """Takes one message of the engine; returns whether it was GO."""
        message = protocol.receive_message(self._channel)
        if message is None:
            raise Failure("monitor", message="the engine went away")
        self._handshake.advance(message[0])
        try:
            self._sync.send(b"\0", _socket.MSG_NOSIGNAL)
        except OSError:
            pass  # init has failed, and its own report comes next
        return message[0] == protocol.GO

    def _hear_init(self) -> str:
        message = protocol.receive_message(self._sync)
        if message is None:
            if self._handshake.reached(protocol.GO):
                return protocol.STARTED
            raise Failure("init", message=_KILLED_EARLY)
        name, values, fds = message
        if name == protocol.FAILED:
            raise Failure.from_message(values)
        if name == protocol.STDIO:
            self._session.take_stdio(fds, self._config["tty"])
        return name

    def _last_word(self) -> Failure:
        """Why init, which is dead already, has failed."""
        while (message := protocol.receive_message(self._sync)) is not None:
            name, values, fds = message
            for fd in fds:
                os.close(fd)
            if name == protocol.FAILED:
                return Failure.from_message(values)
        return Failure("init", message=_KILLED_EARLY)

    def _fail(self, failure: Failure) -> None:
        """Nothing of the sandbox survives a failed start; the engine hears the reason first."""
        try:
            self._advance(protocol.FAILED, failure.to_message())
        except OSError:
            pass
        if self._pidfd >= 0:
            try:
                syscalls.pidfd_send_signal(self._pidfd, _SIGKILL)
            except ProcessLookupError:
                pass
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        code = (127 if failure.number == _ENOENT else 126) if failure.stage == "exec" else None
        self._status |= {"state": status_file.ABORTED, "exit_code": code, "finished_at": time.time()}
        self._write_status()
        self._release()

    def _finish(self) -> None:
        """The order matters: who sees the sandbox gone (the process reaped, the lock free) finds its status complete."""
        result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT)
        assert result is not None
        finished = time.time()
        signal = None if result.si_code == _CLD_EXITED else result.si_status
        code = result.si_status if signal is None else 128 + signal
        self._session.drain()
        self._status |= {"state": status_file.EXITED, "exit_code": code, "signal": signal, "finished_at": finished}
        self._write_status()
        if self._log:
            self._log.close()
        self._session.attachments.send(protocol.EXIT, protocol.exit_payload(code))
        os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        claimed = self._session.attachments.finish()
        self._release()
        self._session.attachments.close()
        self._hand_over(claimed)

    def _write_status(self) -> None:
        try:
            status_file.write_status(self._config["run_dir"], self._status)
        except OSError:
            pass  # the disk is full or the directory was removed: the sandbox counts as dead without a status

    def _release(self) -> None:
        """Lets go of the lock and the port reservations, before anybody reads the end of file that says that all is over."""
        try:
            os.unlink(f"{self._config['run_dir']}/{CONTROL_SOCKET}")
        except OSError:
            pass
        self._reservations.close()
        os.close(self._lock)

    def _hand_over(self, claimed: bool) -> None:
        """Becomes the clean-up process, unless a client does its work, or somebody who waited for the end.

        Who settles takes the status away.
        """
        collect = self._config["collect"]
        if collect and not claimed:
            syscalls.close_range(3)
            syscalls.reset_signals()
            for _ in range(_SETTLING_LOOKS):
                time.sleep(_SETTLING_TIME / _SETTLING_LOOKS)
                if not status_file.has_status(self._config["run_dir"]):
                    return
            os.execve(collect[0], collect, self._config.get("collect_env") or {})


def _make_directory(path: str, config: dict[str, Any]) -> None:
    """The source of a bind may be a file that is there. One that is made belongs to the sandbox's root; storage is mapped on its mount."""
    if os.path.exists(path):
        return
    os.makedirs(path, 0o755, exist_ok=True)
    if config["userns"] and path != os.path.dirname(config["rootfs"]["upper"] or ""):
        os.chown(path, config["userns"]["base"], config["userns"]["base"])


class _ForChildren:
    """The network and time namespaces that the next child is to be born in; the monitor itself goes back to its own."""

    def __init__(self, netns: int | None, new_time: bool) -> None:
        self._netns = netns
        self._new_time = new_time
        self._home_netns = -1
        self._home_time = -1

    def __enter__(self) -> None:
        if self._netns is not None:
            self._home_netns = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            syscalls.setns(self._netns, namespaces.CLONE_NEWNET)
        if self._new_time:
            self._home_time = os.open("/proc/self/ns/time", os.O_RDONLY | os.O_CLOEXEC)
            syscalls.unshare(namespaces.CLONE_NEWTIME)
            offsets = ""
            for name, clock in (("monotonic", time.CLOCK_MONOTONIC), ("boottime", 7)):
                seconds, nanoseconds = divmod(-time.clock_gettime_ns(clock), 1_000_000_000)
                offsets += f"{name} {seconds} {nanoseconds}\n"
            fd = os.open("/proc/self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC)
            os.write(fd, offsets.encode())
            os.close(fd)

    def __exit__(self, *_: object) -> None:
        for home, kind in ((self._home_netns, namespaces.CLONE_NEWNET), (self._home_time, namespaces.CLONE_NEWTIME)):
            if home >= 0:
                syscalls.setns(home, kind)
                os.close(home)
