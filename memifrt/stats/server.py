"""The stats socket: serves snapshots of a runtime as JSON to every process that may open the socket file.

Owns the clients of such a socket and the limit on their number. Knows nothing of how a snapshot is made or shown.

A client connects (``AF_UNIX``, ``SOCK_STREAM``) and gets a snapshot: one line of JSON, in ASCII. Each newline that it
sends asks for another. The server closes the connection after the client has closed its sending side, so that
``socat - UNIX-CONNECT:PATH </dev/null | jq`` shows one snapshot. The socket file has mode 0600. A client cannot make
the runtime wait or grow: when :data:`MAX_CLIENTS` is reached, the server disconnects the client that has been silent
longest.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable

from memifrt.control.address import Address, Listener
from memifrt.control.permissions import FilePermissions
from memifrt.poll.acceptor import Acceptor, ListeningSocket
from memifrt.poll.hook import FdRegistry
from memifrt.poll.schedule import Schedule, TimerHandle
from memifrt.stats.snapshot import SnapshotSource, snapshot
from memifrt.system import original_functions
from memifrt.system.fds import own_socket
from memifrt.system.received_fds import UNKNOWN_USER, close_channel, receive_without_fds
from memifrt.types import FdEvent

#: The most clients of one server at a time.
MAX_CLIENTS = 16
#: The mode of the socket file: only its owner and root may connect.
_FILE_MODE = 0o600


class Client(ABC):
    """One connection to a server. It writes while an answer is due, and reads otherwise.

    So a client that does not take its answer cannot send further requests.
    """

    #: Bytes to read at a time. For the stats socket this also limits the number of pending answers.
    request_bytes = 64
    #: Seconds after which the server closes the connection, once this is set.
    time_limit: float | None = None

    def __init__(self, sock: original_functions.socket) -> None:
        sock.setblocking(False)
        self._socket = own_socket(sock)
        self._output = memoryview(b"")

    @property
    @abstractmethod
    def _due(self) -> bool:
        """Return whether the client waits for an answer."""

    @property
    def _finished(self) -> bool:
        """Return whether to close the connection once everything is sent."""
        return False

    @abstractmethod
    def _take(self, data: bytes) -> None:
        """Take what the client sent."""

    @abstractmethod
    def _answer(self) -> bytes:
        """Return the next answer that is due."""

    @property
    def wants_write(self) -> bool:
        return bool(self._output) or self._due

    def advance(self) -> bool:
        """Receive once if no answer is due, then send once if one is, without waiting.

        A call sends at most one answer, or the part of it that the socket accepts. The next call sends the rest.

        :returns: whether the connection stays open.
        :raises OSError: the connection is broken.
        """
        with contextlib.suppress(BlockingIOError):
            if not self.wants_write:
                data = self._receive()
                if not data:
                    return False
                self._take(data)
            if not self._output and self._due:
                self._output = memoryview(self._answer())
            if self._output:
                self._output = self._output[self._socket.send(self._output, socket.MSG_NOSIGNAL) :]
        return self.wants_write or not self._finished

    def _receive(self) -> bytes:
        """Read once.

        :raises OSError: the connection is broken.
        """
        return self._socket.recv(self.request_bytes)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()


class Server:
    """A listening socket and its clients. Their fds go through the hook, in the runtime's loop.

    The server takes ownership of the listener.

    :raises MemifError: ``CB_FDUPDATE`` if the hook raises; the socket is then closed.
    """

    def __init__(
        self,
        registry: FdRegistry,
        schedule: Schedule,
        listener: ListeningSocket,
        client: Callable[[original_functions.socket], Client],
    ) -> None:
        self._registry = registry
        self._schedule = schedule
        self._make_client = client
        self._clients: OrderedDict[int, Client] = OrderedDict()  # the client that has been silent longest comes first
        self._deadlines: dict[Client, TimerHandle] = {}
        self._acceptor = Acceptor(registry, schedule, listener, self._welcome, "statistics")

    def close(self) -> None:
        """Close every connection and stop listening. Closing twice is harmless."""
        with contextlib.ExitStack() as steps:  # if the hook raises for one, the others are still closed
            steps.callback(self._acceptor.close)
            for client in self._clients.values():
                steps.callback(self._hang_up, client)
            self._clients = OrderedDict()

    def _welcome(self, sock: original_functions.socket) -> None:
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

    def advance(self, client: Client) -> None:
        """Send what has become due for a client, as far as its socket accepts it."""
        if self._clients.get(client.fileno()) is client:
            self._on_client(client)

    def disconnect(self, client: Client) -> None:
        """Close the connection of a client. This is harmless if it is closed already."""
        if self._clients.get(client.fileno()) is client:
            self._drop(client)

    def _on_client(self, client: Client) -> None:
        fd = client.fileno()
        self._clients.move_to_end(fd)
        try:
            goes_on = client.advance()
        except OSError:
            goes_on = False
        except BaseException:  # otherwise the client would wait for an answer that never comes
            self._drop(client)
            raise
        if not goes_on:
            self._drop(client)
            return
        try:
            self._registry.modify(fd, FdEvent.WRITE if client.wants_write else FdEvent.READ)
        except BaseException:  # the hook failed: no further event would reach this client
            self._drop(client)
            raise
        if client.time_limit is not None and client not in self._deadlines:
            self._deadlines[client] = self._schedule.after(client.time_limit, lambda: self.disconnect(client))

    def _drop(self, client: Client) -> None:
        del self._clients[client.fileno()]
        self._hang_up(client)

    def _hang_up(self, client: Client) -> None:
        self._schedule.cancel(self._deadlines.pop(client, None))
        try:
            self._registry.remove(client.fileno())
        finally:
            client.close()


class _JsonClient(Client):
    """Sends a snapshot at once, and another for each newline that it receives."""

    def __init__(self, sock: original_functions.socket, runtime: SnapshotSource) -> None:
        super().__init__(sock)
        self._runtime = runtime
        self._owed = 1

    @property
    def _due(self) -> bool:
        return self._owed > 0

    def _receive(self) -> bytes:
        return receive_without_fds(self._socket, self.request_bytes)

    def close(self) -> None:
        close_channel(self._socket, UNKNOWN_USER)

    def _take(self, data: bytes) -> None:
        self._owed += data.count(b"\n")

    def _answer(self) -> bytes:
        self._owed -= 1
        return json.dumps(snapshot(self._runtime), separators=(",", ":")).encode() + b"\n"


def serve(runtime: SnapshotSource, registry: FdRegistry, schedule: Schedule, path: str | os.PathLike[str]) -> Server:
    """Open the stats socket of a runtime. Replace a stale socket file.

    :raises ConfigError: the path is too long or not valid.
    :raises MemifOSError: EADDRINUSE if a process listens there; ``FILE_NOT_SOCK`` if a file of another kind is there;
        ``NO_FILE`` if its directory is missing; ``ACCES`` if permissions forbid it.
    """
    listener = Listener.bind(Address.parse(path), socket.SOCK_STREAM, permissions=FilePermissions(_FILE_MODE))
    return Server(registry, schedule, listener, lambda sock: _JsonClient(sock, runtime))
