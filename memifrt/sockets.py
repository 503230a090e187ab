"""A control socket: the path that interfaces share, and the listener on it.

Owns the listener and the peers that have not said yet whose they are. Both roles, and any number of interfaces, may
live on one path.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from memifrt.connection import Connection, MasterConnection, Surroundings
from memifrt.control.address import Address, Listener
from memifrt.control.channel import Channel
from memifrt.errors import ConfigError, Disconnected, MemifOSError
from memifrt.memory.region import ExternalRegion
from memifrt.types import FdEvent, Role

if TYPE_CHECKING:
    from memifrt.interface import Interface
    from memifrt.runtime import Runtime

logger = logging.getLogger("memifrt")

#: Connections accepted for one readiness of the listener.
_ACCEPTS_PER_EVENT = 64


class Socket:
    """One control socket. Made by :meth:`memifrt.Runtime.create_socket`, or by ``create_interface`` as needed."""

    def __init__(self, runtime: Runtime, around: Surroundings, address: Address, *, implicit: bool) -> None:
        self._runtime = runtime
        self._around = around
        self.address = address
        #: Made for an interface, and deleted with the last one.
        self.implicit = implicit
        self.external_region: ExternalRegion | None = None
        self._interfaces: dict[tuple[Role, int], Interface] = {}
        self._listener: Listener | None = None
        self._accepted: set[Connection] = set()

    @property
    def path(self) -> str:
        """The path, or ``@name``."""
        return self.address.path

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        return tuple(self._interfaces.values())

    @property
    def listener_fd(self) -> int:
        """The listener's fd, -1 while this socket does not listen."""
        return -1 if self._listener is None else self._listener.fileno()

    def set_listener_fd(self, fd: int) -> None:
        """Accept peers on a listener that somebody else made (socket activation). Takes the fd.

        :raises ConfigError: ``FILE_NOT_SOCK`` if it is not a listening ``AF_UNIX`` ``SOCK_SEQPACKET`` socket, or this
            socket listens already; the fd then stays the caller's.
        """
        self._runtime._socket_for(self)  # else nobody would close the listener
        if self._listener is not None:
            raise ConfigError(f"{self} listens already, on fd {self._listener.fileno()}")
        if fd in self._around.registry:
            raise ConfigError(f"fd {fd} is in use by this runtime already: it cannot be the listener of {self}")
        self._listen(Listener.adopt(fd, self.address))

    def register_external_region(self, region: ExternalRegion) -> None:
        """Let the buffers of this socket's interfaces live in the application's own shared memory.

        :raises ConfigError: an interface on this socket is connected already.
        """
        if any(interface.connection is not None for interface in self.interfaces):
            raise ConfigError(f"an interface on {self} has a connection: external regions come before it")
        self.external_region = region

    def delete(self) -> None:
        """Forget the socket.

        :raises ConfigError: interfaces still use it.
        """
        if self._runtime._inherited:
            return
        if self._interfaces:
            raise ConfigError(f"{self} is in use by {len(self._interfaces)} interface(s): delete them first")
        try:
            self._stop_listening()
        finally:
            self._runtime._forget_socket(self)

    def __str__(self) -> str:
        return f"socket {self.path}"

    def __repr__(self) -> str:
        return f"<{self}, {len(self._interfaces)} interface(s)>"

    # --- interfaces ---------------------------------------------------------------------------------------------

    def _master(self, interface_id: int) -> Interface | None:
        return self._interfaces.get((Role.MASTER, interface_id))

    def _slave(self, interface_id: int) -> Interface | None:
        return self._interfaces.get((Role.SLAVE, interface_id))

    def _add(self, interface: Interface) -> None:
        """:raises MemifError: a master cannot listen; the interface is then not added."""
        if interface.role is Role.MASTER and self._listener is None:
            self._listen(Listener.bind(self.address))
        self._interfaces[interface.role, interface.id] = interface

    def _remove(self, interface: Interface) -> None:
        if self._interfaces.get((interface.role, interface.id)) is not interface:
            return
        del self._interfaces[interface.role, interface.id]
        try:
            if self.implicit and not any(role is Role.MASTER for role, _ in self._interfaces):
                self._stop_listening()
        finally:
            if self.implicit and not self._interfaces:
                self._runtime._forget_socket(self)

    # --- the listener -------------------------------------------------------------------------------------------

    def _listen(self, listener: Listener) -> None:
        try:
            self._around.registry.add(listener.fileno(), FdEvent.READ, self._on_listener)
        except BaseException:
            listener.close()
            raise
        self._listener = listener

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is None:
            return
        reason = Disconnected("the listener was closed")
        with contextlib.ExitStack() as steps:  # a hook that raises at one of them does not keep the others
            steps.callback(listener.close)
            steps.callback(self._around.registry.remove, listener.fileno())
            for connection in self._accepted:
                if connection.interface is None:
                    steps.callback(connection.close, reason)

    def _on_listener(self, events: FdEvent) -> None:
        for _ in range(_ACCEPTS_PER_EVENT):
            if self._listener is None:
                return
            try:
                sock = self._listener.accept()
            except MemifOSError as error:
                logger.warning("%s: %s", self, error)
                return
            if sock is None:
                return
            try:
                connection = MasterConnection(self._around, Channel(sock), self)
            except BaseException:
                sock.close()
                raise
            self._accepted.add(connection)
            connection.start()

    def _forget(self, connection: Connection) -> None:
        self._accepted.discard(connection)
