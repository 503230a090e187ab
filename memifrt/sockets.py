"""A control socket: the path that interfaces share, and the listener on it.

Owns the listener and the half-open connections (their peers have not named an interface yet). Any number of interfaces
of both roles may share one path.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Protocol

from memifrt.connection.connection import MasterConnection
from memifrt.connection.context import RuntimeContext
from memifrt.control import farewell
from memifrt.control.address import BACKLOG, Address, Listener
from memifrt.control.channel import Channel
from memifrt.control.peer_policy import PeerPolicy, oldest_of_busiest
from memifrt.control.permissions import FilePermissions
from memifrt.errors import ConfigError, Disconnected
from memifrt.interface import Interface
from memifrt.memory.region import ExternalRegion
from memifrt.poll.acceptor import Acceptor
from memifrt.system import original_functions
from memifrt.system.not_copied import NotCopied
from memifrt.system.received_fds import UNKNOWN_USER, close_channel
from memifrt.types import Role

logger = logging.getLogger("memifrt")

#: Seconds between two warnings about peers that were refused or named no interface, so that many peers cannot fill the
#: log.
_WARNING_INTERVAL = 1.0


class SocketOwner(Protocol):
    """What a socket needs of its runtime."""

    @property
    def inherited(self) -> bool:
        """Whether this process is a forked child, which does not own the runtime."""

    def check_not_forked(self) -> None:
        """Check that this process owns the runtime.

        :raises ForkedError: this process is a forked child, which does not own the runtime.
        """

    def check_socket(self, socket: Socket) -> None:
        """Check that a socket can be used.

        :raises MemifError: the runtime is closed, or the socket is deleted or another runtime's.
        """

    def forget_socket(self, socket: Socket) -> None:
        """Forget a socket that is deleted."""


class Socket(NotCopied):
    """One control socket, created by :meth:`memifrt.Runtime.create_socket`, or by ``create_interface`` if needed."""

    def __init__(
        self,
        owner: SocketOwner,
        context: RuntimeContext,
        address: Address,
        permissions: FilePermissions,
        policy: PeerPolicy,
        *,
        implicit: bool,
    ) -> None:
        #: The runtime.
        self.owner = owner
        self._context = context
        self.address = address
        self._permissions = permissions
        self._policy = policy
        #: Created for an interface, and deleted with its last interface.
        self.implicit = implicit
        self.external_region: ExternalRegion | None = None
        self._interfaces: dict[tuple[Role, int], Interface] = {}
        self._acceptor: Acceptor | None = None
        #: Half-open connections: the peers have not named an interface yet. The oldest is first.
        self._half_open: dict[MasterConnection, None] = {}
        self._warn = RateLimitedWarning()
        #: Whether other processes may hold the listener, too, and go on accepting (socket activation).
        self._listener_is_shared = False
        farewell.remember(self)

    @property
    def path(self) -> str:
        """The path, or ``@name``."""
        return str(self.address)

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        """The interfaces on this socket, in the order of their creation."""
        return tuple(self._interfaces.values())

    @property
    def listener_fd(self) -> int:
        """The listener's fd, or -1 while this socket does not listen."""
        return -1 if self._acceptor is None else self._acceptor.fileno()

    def set_listener_fd(self, fd: int) -> None:
        """Accept peers on an existing listener (socket activation). The socket then owns the fd.

        :raises ConfigError: ``FILE_NOT_SOCK`` if ``fd`` is not a listening ``AF_UNIX`` ``SOCK_SEQPACKET`` socket; or
            this socket listens already; or it was created with ``mode``, ``owner`` or ``group``, which are for a file
            of its own. The caller still owns the fd.
        :raises MemifOSError: ``fd`` is not an open fd, or not a socket. The caller still owns it.
        """
        self.owner.check_socket(self)  # a runtime does not close the listener of a socket that it has forgotten
        self._context.registry.check_caller()
        if self._permissions:
            raise ConfigError(
                f"{self} was created with a mode, an owner or a group; they do not apply to an existing listener"
            )
        if self._acceptor is not None:
            raise ConfigError(f"{self} listens already, on fd {self.listener_fd}")
        if fd in self._context.registry:
            raise ConfigError(f"fd {fd} is in use by this runtime already: it cannot be the listener of {self}")
        self._listen(Listener.adopt(fd, self.address))
        self._listener_is_shared = True

    def register_external_region(self, region: ExternalRegion) -> None:
        """Place the buffers of this socket's interfaces in the application's own shared memory.

        :param region: the functions that make, map and delete the memory.
        :raises ConfigError: an interface on this socket has a connection.
        """
        self.owner.check_not_forked()
        if any(interface.connection is not None for interface in self.interfaces):
            raise ConfigError(f"an interface on {self} has a connection; register external regions before the first")
        self.external_region = region

    def delete(self) -> None:
        """Stop listening and remove the socket from its runtime.

        :raises ConfigError: interfaces still use it; or the runtime's fds are in a loop that runs in another thread.
        """
        if self.owner.inherited:
            return
        self._context.registry.check_caller()
        if self._interfaces:
            raise ConfigError(f"{self} is in use by {len(self._interfaces)} interface(s): delete them first")
        try:
            self._stop_listening()
        finally:
            self.owner.forget_socket(self)

    def __str__(self) -> str:
        return f"socket {self.path}"

    def __repr__(self) -> str:
        return f"<{self}, {len(self._interfaces)} interface(s)>"

    # --- interfaces ---------------------------------------------------------------------------------------------

    # The public names below are for the runtime and the connections, not for applications.

    def master(self, interface_id: int) -> Interface | None:
        """Return the master interface with this id."""
        return self._interfaces.get((Role.MASTER, interface_id))

    def has_slave(self, interface_id: int) -> bool:
        """Return whether a slave interface has this id."""
        return (Role.SLAVE, interface_id) in self._interfaces

    def add(self, interface: Interface) -> None:
        """Add a new interface, and listen if it is the first master.

        :raises MemifError: the socket cannot listen; the interface is then not added.
        """
        if interface.role is Role.MASTER and self._acceptor is None:
            self._listen(Listener.bind(self.address, permissions=self._permissions))
        self._interfaces[interface.role, interface.id] = interface

    def remove(self, interface: Interface) -> None:
        """Remove an interface. An implicit socket stops listening after its last master and ends with the last one."""
        if self._interfaces.get((interface.role, interface.id)) is not interface:
            return
        del self._interfaces[interface.role, interface.id]
        try:
            listens = self._acceptor is not None  # first: with thousands of slaves the search below takes long
            if self.implicit and listens and not any(role is Role.MASTER for role, _ in self._interfaces):
                self._stop_listening()
        finally:
            if self.implicit and not self._interfaces:
                self.owner.forget_socket(self)

    # --- the listener -------------------------------------------------------------------------------------------

    def _listen(self, listener: Listener) -> None:
        self._acceptor = Acceptor(self._context.registry, self._context.schedule, listener, self._welcome, self)

    def _stop_listening(self) -> None:
        acceptor, self._acceptor = self._acceptor, None
        if acceptor is None:
            return
        reason = Disconnected("the listener was closed")
        with contextlib.ExitStack() as steps:  # every step runs, even if the hook raises in another
            steps.callback(acceptor.close)
            steps.callback(self._dismiss_waiting, acceptor, reason.message)
            for connection in self._half_open:
                steps.callback(connection.close, reason)

    def _dismiss_waiting(self, acceptor: Acceptor, reason: str) -> None:
        """Accept the peers in the backlog, tell each of them the reason, and close the connection."""
        if not self._listener_is_shared:
            acceptor.take_waiting(lambda sock: Channel(sock).close(reason), BACKLOG)

    def say_farewell(self) -> None:
        """Tell the peers in the backlog that the process ends. Each accepted peer is told by its channel."""
        if self._acceptor is not None and not self.owner.inherited:
            self._dismiss_waiting(self._acceptor, "the process ends")

    def _welcome(self, sock: original_functions.socket) -> None:
        try:
            channel = Channel(sock)
        except BaseException:
            close_channel(sock, UNKNOWN_USER)
            raise
        if self._admit(channel):
            self._greet(channel)

    def _admit(self, channel: Channel) -> bool:
        """Return whether the policy admits the peer. If not, tell the peer and close its channel."""
        peer = channel.credentials
        reason = f"refused: uid {peer.uid}, gid {peer.gid} may not connect here"
        admitted = False
        try:
            admitted = self._policy.admits(peer)
        finally:
            if not admitted or self._acceptor is None:  # accept_peer may have closed the runtime
                admitted = False
                channel.say_goodbye(reason)
                channel.close()
                self._warn(f"{self} ({peer.process}): {reason}")
        return admitted

    def _greet(self, channel: Channel) -> None:
        connection = MasterConnection(self._context, channel, self)
        self._half_open[connection] = None
        limit = self._context.max_half_open
        try:
            if len(self._half_open) > limit:
                # Evict from the busiest process first, so that a flood cannot push out other peers.
                oldest_of_busiest(self._half_open).close(
                    Disconnected(f"more than {limit} peers have not said which interface they want")
                )
        finally:
            if not connection.closed:
                connection.start()

    def abandon(self) -> None:
        """End the half-open connections in a forked child: they belong to the parent."""
        for connection in list(self._half_open):
            connection.abandon()

    # --- called by the connections ------------------------------------------------------------------------------

    def claimed(self, connection: MasterConnection) -> None:
        """Stop counting a connection as half-open: its peer has named an interface."""
        self._half_open.pop(connection, None)

    def ended_unclaimed(self, connection: MasterConnection, reason: Disconnected) -> None:
        """Log the end of a half-open connection."""
        self._warn(f"{connection}: {reason}")

    def forget(self, connection: MasterConnection) -> None:
        """Forget a connection that has ended."""
        self._half_open.pop(connection, None)


class RateLimitedWarning:
    """Logs at most one warning in each :data:`_WARNING_INTERVAL`. The next one tells how many were suppressed."""

    def __init__(self) -> None:
        #: When the next warning may be logged, by ``time.monotonic()``.
        self.due = 0.0
        #: Warnings suppressed since the last one.
        self.suppressed = 0

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if now < self.due:
            self.suppressed += 1
            logger.debug("%s", text)
            return
        more = f" (and {self.suppressed} more like it)" if self.suppressed else ""
        self.due, self.suppressed = now + _WARNING_INTERVAL, 0
        logger.warning("%s%s", text, more)
