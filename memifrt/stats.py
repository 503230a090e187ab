"""The stats socket: what the interfaces of a runtime do, as JSON for whoever may open a file.

Owns the snapshot, its schema, and those who ask for it. Knows nothing of how a snapshot is shown.

A client connects (``AF_UNIX``, ``SOCK_STREAM``) and gets a snapshot: one line of JSON, in ASCII. Each newline that it
sends asks for another; after the end of what it sends, the server hangs up, so that ``socat - UNIX-CONNECT:PATH
</dev/null | jq`` shows one. The socket file has mode 0600. Nothing that a client does or leaves undone makes the
runtime wait or grow: of those beyond :data:`MAX_CLIENTS`, the one that has been silent longest is hung up on.

The schema is that of :class:`Snapshot`. Readers ignore names that they do not know; a name keeps its meaning for as
long as ``version`` stays. Times are Unix times in seconds. The secret of an interface is in none of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict

from memifrt import unpatched
from memifrt.control.access import FilePermissions
from memifrt.control.address import Address, Listener
from memifrt.fds import own_socket
from memifrt.poll.acceptor import Acceptor, ListeningSocket
from memifrt.poll.hook import FdRegistry
from memifrt.poll.timer import Schedule
from memifrt.queue import RxQueue, TxQueue
from memifrt.ring import RxRing, TxRing, __impl__
from memifrt.types import Direction, FdEvent, Role

if TYPE_CHECKING:
    from memifrt.interface import Interface
    from memifrt.runtime import Runtime

SCHEMA = "memifrt-stats"
VERSION = 1
#: Clients of one server at a time.
MAX_CLIENTS = 16
#: Of the socket file: only its owner, and root, may ask.
_FILE_MODE = 0o600
_MASK_INT = 1


# --- the schema -----------------------------------------------------------------------------------------------------


class PeerStats(TypedDict):
    """Who is at the other end: its names, and its credentials as the kernel saw them at connect."""

    app_name: str
    name: str
    pid: int
    uid: int
    gid: int


class QueueStats(TypedDict):
    """One queue of the present connection, or of the last.

    ``direction`` is ours: ``rx`` or ``tx``; ``ring`` is the protocol's: ``s2m`` or ``m2s``. ``head``, ``tail``,
    ``used`` and ``masked`` are null without a connection. ``used`` are the slots that the sender cannot fill now:
    filled and not given back yet (s2m), or not offered to it (m2s). ``masked``: the receiver asks for no interrupts.
    ``rx_mode`` is null for a transmit queue. The counters are those of :class:`~memifrt.QueueCounters`: they go on over
    reconnects.
    """

    qid: int
    direction: str
    ring: str
    ring_size: int
    used: int | None
    head: int | None
    tail: int | None
    masked: bool | None
    rx_mode: str | None
    packets: int
    bytes: int
    interrupts: int
    ring_full: int
    bad_descriptors: int


class InterfaceStats(TypedDict):
    """One interface.

    ``state`` is ``disconnected``, ``connecting`` or ``connected``. ``connected_since`` is null unless it is connected,
    ``peer`` unless it is connected or connecting. ``error`` says why the last connection, or attempt, ended; it is
    empty while all is well. ``connects``, ``disconnects`` and ``violations`` are those of :class:`~memifrt.Interface`.
    """

    id: int
    name: str
    role: str
    mode: str
    socket: str
    state: str
    peer: PeerStats | None
    connected_since: float | None
    error: str
    connects: int
    disconnects: int
    violations: int
    queues: list[QueueStats]


class Snapshot(TypedDict):
    """A runtime at one moment. ``name`` is its ``app_name``, ``rings`` the ring implementation (``native`` or
    ``python``), ``started`` when it was made; ``monotonic`` is the system's monotonic clock, in seconds, for rates."""

    schema: str
    version: int
    name: str
    pid: int
    rings: str
    started: float
    time: float
    monotonic: float
    interfaces: list[InterfaceStats]


def snapshot(runtime: Runtime) -> Snapshot:
    """The runtime at this moment. Looks, and touches nothing: no ring is taken from, no connection ended."""
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "name": runtime.app_name,
        "pid": os.getpid(),
        "rings": __impl__,
        "started": runtime.started,
        "time": time.time(),
        "monotonic": time.monotonic(),
        "interfaces": [_interface(interface) for interface in runtime.interfaces],
    }


def _interface(interface: Interface) -> InterfaceStats:
    return {
        "id": interface.id,
        "name": interface.name,
        "role": interface.role.name.lower(),
        "mode": interface.mode.name.lower(),
        "socket": interface.socket.path,
        "state": interface.state.value,
        "peer": _peer(interface),
        "connected_since": interface.connected_since,
        "error": interface.last_error.message if interface.last_error else "",
        "connects": interface.connects,
        "disconnects": interface.disconnects,
        "violations": interface.violations,
        "queues": _queues(interface),
    }


def _peer(interface: Interface) -> PeerStats | None:
    connection = interface.connection
    if connection is None:
        return None
    who = connection.credentials
    return {
        "app_name": connection.peer_name,
        "name": connection.peer_if_name,
        "pid": who.pid,
        "uid": who.uid,
        "gid": who.gid,
    }


def _queues(interface: Interface) -> list[QueueStats]:
    connection = interface.connection
    if connection is None or not connection.established:
        receive = [_queue(interface, queue, None) for queue in interface.rx_queues]
        return receive + [_queue(interface, queue, None) for queue in interface.tx_queues]
    receive = [_queue(interface, queue, ring) for queue, (_, ring, _) in connection.rx()]
    return receive + [_queue(interface, queue, ring) for queue, (_, ring, _) in connection.tx()]


def _queue(interface: Interface, queue: RxQueue | TxQueue, ring: RxRing | TxRing | None) -> QueueStats:
    receives = isinstance(queue, RxQueue)
    direction = Direction.M2S if receives == (interface.role is Role.SLAVE) else Direction.S2M
    head, tail = (None, None) if ring is None else (ring.head, ring.tail)
    counters = queue.counters
    return {
        "qid": queue.qid,
        "direction": "rx" if receives else "tx",
        "ring": direction.value,
        "ring_size": queue.ring_size,
        "used": None if head is None or tail is None else _used(direction, head, tail, queue.ring_size),
        "head": head,
        "tail": tail,
        "masked": None if ring is None else bool(ring.flags & _MASK_INT),
        "rx_mode": queue.mode.name.lower() if isinstance(queue, RxQueue) else None,
        "packets": counters.packets,
        "bytes": counters.bytes,
        "interrupts": counters.interrupts,
        "ring_full": counters.ring_full,
        "bad_descriptors": counters.bad_descriptors,
    }


def _used(direction: Direction, head: int, tail: int, size: int) -> int:
    """From the two indices alone (docs/protocol.md: who advances which). One of them is the peer's, who may
    write anything there."""
    ahead = min((head - tail) & 0xFFFF, size)
    return ahead if direction is Direction.S2M else size - ahead


# --- those who ask --------------------------------------------------------------------------------------------------


class Client(ABC):
    """One connection. It reads while no answer is due, and writes while one is: who does not take the first answer is
    not asked for its next wish."""

    #: Taken at a time, and so for the stats socket the answers that may be due.
    request_bytes = 64

    def __init__(self, sock: unpatched.socket) -> None:
        sock.setblocking(False)
        self._socket = own_socket(sock)
        self._output = memoryview(b"")

    @property
    @abstractmethod
    def _due(self) -> bool:
        """Whether it has asked for something that it did not get."""

    @property
    def _finished(self) -> bool:
        """Whether the conversation is over once everything is sent."""
        return False

    @abstractmethod
    def _take(self, data: bytes) -> None:
        """What it says."""

    @abstractmethod
    def _answer(self) -> bytes:
        """The next answer that is due."""

    @property
    def wants_write(self) -> bool:
        return bool(self._output) or self._due

    def advance(self) -> bool:
        """Read and write once, as far as it goes without waiting, one answer at most; whether the conversation goes on.

        :raises OSError: the connection is broken.
        """
        with contextlib.suppress(BlockingIOError):
            if not self.wants_write:
                data = self._socket.recv(self.request_bytes)
                if not data:
                    return False
                self._take(data)
            if not self._output and self._due:
                self._output = memoryview(self._answer())
            if self._output:
                self._output = self._output[self._socket.send(self._output, socket.MSG_NOSIGNAL) :]
        return self.wants_write or not self._finished

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()


class Server:
    """A listening socket and its clients, in the runtime's own loop: every fd goes through the hook. Takes the socket.

    :raises MemifError: ``CB_FDUPDATE`` if the hook raises; the socket is then closed.
    """

    def __init__(
        self,
        registry: FdRegistry,
        schedule: Schedule,
        listener: ListeningSocket,
        client: Callable[[unpatched.socket], Client],
    ) -> None:
        self._registry = registry
        self._make_client = client
        self._clients: OrderedDict[int, Client] = OrderedDict()  # who has been silent longest comes first
        self._acceptor = Acceptor(registry, schedule, listener, self._welcome, "statistics")

    def close(self) -> None:
        """Hang up on everybody and stop listening. Closing twice is harmless."""
        with contextlib.ExitStack() as steps:  # a hook that raises at one of them does not keep the others
            steps.callback(self._acceptor.close)
            for client in self._clients.values():
                steps.callback(self._hang_up, client)
            self._clients = OrderedDict()

    def _welcome(self, sock: unpatched.socket) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            self._drop(next(iter(self._clients.values())))
        client = self._make_client(sock)
        fd = client.fileno()
        try:
            self._registry.add(fd, FdEvent.READ, lambda events: self._on_client(client))
        except BaseException:
            client.close()
            raise
        self._clients[fd] = client
        self._on_client(client)

    def _on_client(self, client: Client) -> None:
        fd = client.fileno()
        self._clients.move_to_end(fd)
        try:
            goes_on = client.advance()
        except OSError:
            goes_on = False
        if not goes_on:
            self._drop(client)
            return
        try:
            self._registry.modify(fd, FdEvent.WRITE if client.wants_write else FdEvent.READ)
        except BaseException:  # the application's hook: nobody would call for this client any more
            self._drop(client)
            raise

    def _drop(self, client: Client) -> None:
        del self._clients[client.fileno()]
        self._hang_up(client)

    def _hang_up(self, client: Client) -> None:
        try:
            self._registry.remove(client.fileno())
        finally:
            client.close()


class _JsonClient(Client):
    """A snapshot at once, and one for each newline."""

    def __init__(self, sock: unpatched.socket, runtime: Runtime) -> None:
        super().__init__(sock)
        self._runtime = runtime
        self._owed = 1

    @property
    def _due(self) -> bool:
        return self._owed > 0

    def _take(self, data: bytes) -> None:
        self._owed += data.count(b"\n")

    def _answer(self) -> bytes:
        self._owed -= 1
        return json.dumps(snapshot(self._runtime), separators=(",", ":")).encode() + b"\n"


def serve(runtime: Runtime, registry: FdRegistry, schedule: Schedule, path: str | os.PathLike[str]) -> Server:
    """Open the stats socket of a runtime. A socket file that nobody listens on is replaced.

    :raises ConfigError: the path is too long, or none.
    :raises MemifOSError: EADDRINUSE if somebody listens there; ``FILE_NOT_SOCK`` if a file of another kind is there;
        ``NO_FILE`` if its directory is missing; ``ACCES``.
    """
    listener = Listener.bind(Address.parse(path), socket.SOCK_STREAM, permissions=FilePermissions(_FILE_MODE))
    return Server(registry, schedule, listener, lambda sock: _JsonClient(sock, runtime))
