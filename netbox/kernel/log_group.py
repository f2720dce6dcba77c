"""NFLOG group 0 of a network namespace, where the legacy tables report, shared by all of our processes that trace there.

The kernel gives a group to one socket. So ours have all the same: the first to come binds it, reads it, and hands it and every message on
to the others; the socket stays open as long as one of them has it. When the reader ends, however it does, another one goes on, and finds in
the socket what was not read yet; the rest joins it as soon as they look again. The reader is who listens on a Unix address named after the
namespace, in the abstract name space (unix(7)): nothing stays of it. A message leaves the socket when everybody has it; whose reader was
killed in between meets it again, and knows it by the number that the kernel gave it. Who joins the next reader says which was the last
that he had, and gets what has been read since. Source: <linux/netfilter/nfnetlink_log.h>
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
import time
from collections import deque

from netbox.kernel.namespaces import inside_netns
from netbox.kernel.netfilter_socket import attribute, messages, open_socket

COPY_LENGTH = 128  # bytes of each packet
_CONFIG = 4 << 8 | 1  # NFNL_SUBSYS_ULOG, NFULNL_MSG_CONFIG
_BUFFER = 4 << 20
_WAITING_MAX = 1 << 14  # messages: more than the buffer holds
_SO_SNDBUFFORCE = 32
_PATIENCE = 0.5  # seconds that one reader may take to follow another
_LONG_PATIENCE = 5.0  # where who bound the socket has ended: somebody else has it, who must be one of ours
_ANSWER = 1.0  # seconds
_SHORTEST_MESSAGE = 16  # bytes, struct nlmsghdr: what is shorter is a question, or its answer
_NUMBER = 12  # NFULA_SEQ, of the messages in their order
_HELLO = struct.Struct("=q")  # the number of the last message that somebody has
_NEWCOMER = -2  # instead: he wants what comes from now on
_KEPT = 4096  # messages, for those who have not found the next reader yet


class LogGroup:
    """Its messages from now on, until it is closed; as long as it is open, the descriptor has to be, too. Not for several threads.
    ``is_waiting`` says that the process that reads for all was stopped: what was logged meanwhile comes when it goes on.

    Raises:
        OSError: EBUSY where another program reads the group (see ``holder``), EOPNOTSUPP and EINVAL where the kernel has none.
    """

    def __init__(self, netns_fd: int) -> None:
        status = os.fstat(netns_fd)
        self._address = f"\0netbox-nflog-{status.st_dev:x}-{status.st_ino:x}"
        self._netns = netns_fd
        self._log: socket.socket | None = None
        self._reader: socket.socket | None = None  # the connection to it; none where it is this process
        self._listener: socket.socket | None = None
        self._strangers: dict[int, socket.socket] = {}  # those that have not said yet what they have
        self._members: dict[int, socket.socket] = {}
        self._messages: deque[bytes] = deque()
        self._history: deque[tuple[int, bytes]] = deque(maxlen=_KEPT)
        self._number = _NEWCOMER
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._asked = 0
        self.is_waiting = False
        self._fresh, self._end = (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2))
        try:
            self._join()
        except BaseException:
            self.close()
            raise

    def filenos(self) -> list[int]:
        """What to poll: readable when there may be messages."""
        return [self._reader.fileno()] if self._reader else [self._fresh]

    def read(self) -> list[bytes]:
        """Every message of what was logged until now."""
        if self._reader is not None and not self._ask(self._reader):
            self._reader.close()
            self._reader = None
        if self._reader is None and self._listener is None:
            try:
                self._join()
            except OSError:
                pass  # it reads alone this time
        if self._reader is None:
            self._take()
        with self._lock:
            found = list(self._messages)
            self._messages.clear()
        try:
            os.eventfd_read(self._fresh)
        except BlockingIOError:
            pass
        return found

    def close(self) -> None:
        """Leaves the group to the others."""
        if self._thread is not None:
            os.eventfd_write(self._end, 1)
            self._thread.join()
        for sock in (self._reader, self._listener, *self._strangers.values(), *self._members.values(), self._log):
            if sock is not None:
                sock.close()
        for descriptor in (self._fresh, self._end):
            os.close(descriptor)

    # -- who reads -------------------------------------------------------------------------------------------------------------------

    def _join(self) -> None:
        """Finds the reader, or becomes it. Between two readers there is a moment without."""
        deadline = time.monotonic() + _PATIENCE
        while not self._follow():
            try:
                if self._lead():
                    return
                refused = OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EBUSY):
                    raise
                refused = error
            late = time.monotonic() - deadline
            if late > 0 and (late > _LONG_PATIENCE or holder(self._netns)):
                raise refused
            time.sleep(0.01)

    def _follow(self) -> bool:
        """Connects to the reader, which says that it has heard, and gives its socket."""
        connection = _unix_socket()
        try:
            connection.connect(self._address)
            if not _is_ours(connection):
                raise PermissionError(errno.EBUSY, "somebody else has the address")
            connection.send(_HELLO.pack(self._number))
            greeting, descriptors, _, _ = socket.recv_fds(connection, 16, 1, socket.MSG_CMSG_CLOEXEC)
            if not greeting or not descriptors:
                raise ConnectionResetError
        except (ConnectionError, PermissionError, BlockingIOError, TimeoutError):
            connection.close()
            return False
        given = socket.socket(fileno=descriptors[0])
        if self._log is None:
            self._log = given
        else:
            given.close()
        if self._number == _NEWCOMER:
            (self._number,) = _HELLO.unpack(greeting)
        self._reader = connection
        return True

    def _lead(self) -> bool:
        """Takes the address and, where no reader before has given it, the group. Raises ``OSError``: another program has it."""
        listener = _unix_socket()
        try:
            listener.bind(self._address)
            if self._log is None:
                self._log, self._number = _bound(self._netns), -1
            listener.listen(64)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE:
                return False
            raise
        self._listener = listener
        self._thread = threading.Thread(target=self._serve, name="netbox-nflog", daemon=True)
        self._thread.start()
        return True

    def _ask(self, reader: socket.socket) -> bool:
        """Takes what the reader has sent, all that was logged before the question; whether it is still there."""
        self._asked += 1
        question = struct.pack("=Q", self._asked)
        reader.settimeout(0.0 if self.is_waiting else _ANSWER)  # it is waited for but once
        try:
            reader.send(question)
        except (TimeoutError, BlockingIOError):
            self.is_waiting = True  # it was stopped; it answers when it goes on
            return True
        except ConnectionError:
            pass  # it has ended; what it sent before is still to be read
        while True:
            try:
                message = reader.recv(1 << 17)
            except (TimeoutError, BlockingIOError):
                self.is_waiting = True
                return True
            except ConnectionError:
                continue  # said once, before what it sent and the end
            if len(message) >= _SHORTEST_MESSAGE:
                self._keep(message)
                continue
            self.is_waiting = False
            if message in (b"", question):
                return bool(message)
            reader.settimeout(_ANSWER)  # it answers again, to an older question

    # -- reading for all -------------------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """The reader's thread: for the others it reads while this process has other things to do."""
        assert self._listener is not None
        assert self._log is not None
        poll = select.poll()
        for descriptor in (self._end, self._listener.fileno(), self._log.fileno()):
            poll.register(descriptor, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self._end:
                    return
                if descriptor == self._listener.fileno():
                    self._welcome(poll)
                elif descriptor in self._members:
                    self._answer(poll, descriptor)
                elif descriptor in self._strangers:
                    self._greet(poll, descriptor)
                else:
                    self._take()
                    os.eventfd_write(self._fresh, 1)

    def _welcome(self, poll: select.poll) -> None:
        assert self._listener is not None
        assert self._log is not None
        member, _ = self._listener.accept()
        try:
            if not _is_ours(member):
                raise PermissionError
            member.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
            member.setblocking(False)
        except OSError:
            member.close()
            return
        self._strangers[member.fileno()] = member
        poll.register(member.fileno(), select.POLLIN)

    def _greet(self, poll: select.poll, descriptor: int) -> None:
        """Makes a member of who says what he has, and gives him what has been read since."""
        assert self._log is not None
        member = self._strangers.pop(descriptor)
        try:
            (number,) = _HELLO.unpack(member.recv(16))
            with self._lock:
                socket.send_fds(member, [_HELLO.pack(self._number)], [self._log.fileno()])
                for _, message in [item for item in self._history if number != _NEWCOMER and is_later(item[0], number)]:
                    member.send(message)
                self._members[descriptor] = member
        except (OSError, struct.error):
            poll.unregister(descriptor)
            member.close()

    def _answer(self, poll: select.poll, descriptor: int) -> None:
        member = self._members[descriptor]
        try:
            question = member.recv(16)
            if question:
                self._take()
                member.send(question)
                return
        except BlockingIOError:
            return  # it has much to read; it asks again
        except OSError:
            pass
        poll.unregister(descriptor)
        with self._lock:
            del self._members[descriptor]
        member.close()

    def _take(self) -> None:
        """Reads what there is, for this process and for the others. Who does not keep up loses some.

        What comes meanwhile may come faster than it is read: the next call has the rest.
        """
        with self._lock:
            for _ in range(_WAITING_MAX):
                message = self._peek()
                if not message:
                    break
                self._keep(message)
                for member in self._members.values():
                    try:
                        member.send(message)
                    except OSError:
                        pass
                self._drop()

    def _peek(self) -> bytes:
        """The next message in the socket, which stays there; none: empty."""
        assert self._log is not None
        while True:
            try:
                return self._log.recv(1 << 17, socket.MSG_PEEK)
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # some were lost; those that are there can still be read
                    return b""

    def _drop(self) -> None:
        """Takes the next message out of the socket."""
        assert self._log is not None
        try:
            self._log.recv(1)
        except OSError:
            pass

    def _keep(self, message: bytes) -> None:
        number = _number_of(message)
        if is_later(number, self._number):
            self._messages.append(message)
            self._history.append((number, message))
            self._number = number


def is_later(number: int, other: int) -> bool:
    """Whether a message comes after another one: numbers have 32 bits and begin anew (as in RFC 1982). Pure."""
    return 0 < (number - other) % (1 << 32) < 1 << 31


def _number_of(message: bytes) -> int:
    """That of its last packet; packets are numbered from 0."""
    numbers = [int.from_bytes(fields[_NUMBER], "big") for _, _, fields in messages(message) if _NUMBER in fields]
    return numbers[-1] if numbers else -1


def holder(netns_fd: int) -> str:
    """Which program reads group 0 in a namespace, such as ``ulogd (pid 123)``; empty where it cannot be told."""
    try:
        with inside_netns(netns_fd), open("/proc/thread-self/net/netfilter/nfnetlink_log", encoding="ascii") as file:
            rows = [line.split() for line in file]
        port = next(int(row[1]) for row in rows if row[0] == "0")
        with open(f"/proc/{port}/comm", encoding="utf-8", errors="replace") as file:
            return f"{file.read().strip()} (pid {port})"  # the number of a process's first netlink socket
    except (OSError, StopIteration, ValueError, IndexError):
        return ""


def _unix_socket() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(_ANSWER)
    return sock


def _is_ours(connection: socket.socket) -> bool:
    """Whether the other end is root on this machine, and not inside of a container that shares its network."""
    pid, uid, _ = struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        return uid == 0 and os.path.samestat(os.stat(f"/proc/{pid}/ns/pid"), os.stat("/proc/self/ns/pid"))
    except OSError:
        return False


def load_module() -> None:
    """Has the kernel load the module behind the groups: its sysctl takes the module's name only then. One that it lacks is no error."""
    try:
        with open_socket() as log:
            _configure(log, b"")
    except OSError:
        pass


def _bound(netns_fd: int) -> socket.socket:
    """A socket that has the group. Raises ``OSError``; EPERM and EBUSY: somebody else reads it."""
    with inside_netns(netns_fd):
        log = open_socket(buffer=_BUFFER)
    try:
        _configure(log, attribute(1, struct.pack("=B", 1)))  # NFULA_CFG_CMD: NFULNL_CFG_CMD_BIND
        _configure(log, attribute(2, struct.pack(">IB", COPY_LENGTH, 2) + b"\0"))  # NFULA_CFG_MODE: NFULNL_COPY_PACKET
        _configure(log, attribute(6, struct.pack(">H", 1)))  # NFULA_CFG_FLAGS: NFULNL_CFG_F_SEQ
    except BaseException:
        log.close()
        raise
    log.setblocking(False)
    return log


def _configure(log: socket.socket, attribute_: bytes) -> None:
    body = struct.pack(">BBH", 0, 0, 0) + attribute_
    log.send(struct.pack("=IHHII", 16 + len(body), _CONFIG, 1 | 4, 1, 0) + body)  # NLM_F_REQUEST | NLM_F_ACK
    number = -struct.unpack_from("=i", log.recv(4096), 16)[0]
    if number:
        raise OSError(number, os.strerror(number))
