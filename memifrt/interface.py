"""An interface with its state, queues and callbacks: the object that applications hold.

Owns everything that outlives a connection: the configuration, the callbacks, the counters and the last error. Methods
for the runtime, the socket, the connection and the reconnect timer are in a section of their own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from memifrt.connection.changes import ChangeLog, StateChange
from memifrt.connection.connection import Connection, SlaveConnection
from memifrt.connection.context import RuntimeContext
from memifrt.connection.counters import CounterTotals
from memifrt.control import address
from memifrt.control.address import Address
from memifrt.control.channel import Channel, Credentials
from memifrt.errors import Disconnected, ErrorCode, ForkedError, MemifError, MemifOSError, NoQueueYet, ProtocolError
from memifrt.memory.region import ExternalRegion
from memifrt.options import InterfaceConfig
from memifrt.queue import RxQueue, TxQueue
from memifrt.renamed import warn_renamed
from memifrt.ring import RxRing, TxRing
from memifrt.system.not_copied import NotCopied
from memifrt.types import Counters, Mode, QueueCounters, Role, State, peer_names

if TYPE_CHECKING:
    from typing_extensions import Self


logger = logging.getLogger("memifrt")

OnConnect = Callable[["Interface"], object]
OnDisconnect = Callable[["Interface", Disconnected], object]
OnInterrupt = Callable[["Interface", int], object]


@dataclass(frozen=True, slots=True)
class RegionDetails:
    """One shared memory region. ``address`` is the address of its mapping in this process, ``size`` is in bytes."""

    index: int
    address: int
    size: int
    fd: int
    is_external: bool


@dataclass(frozen=True, slots=True)
class QueueDetails:
    """One queue. ``buffer_size`` is in bytes, and 0 for a master, which learns it from each descriptor."""

    qid: int
    region: int
    ring_size: int
    flags: int
    head: int
    tail: int
    buffer_size: int
    counters: QueueCounters


@dataclass(frozen=True, slots=True)
class Details:
    """The details of an interface at one moment. The secret is included, but is not part of the repr."""

    name: str
    app_name: str
    remote_name: str
    remote_app_name: str
    id: int
    secret: bytes = field(repr=False)
    role: Role
    mode: Mode
    socket_path: str
    state: State
    error: str
    peer: Credentials | None
    regions: tuple[RegionDetails, ...]
    rx_queues: tuple[QueueDetails, ...]
    tx_queues: tuple[QueueDetails, ...]

    @property
    def link_up(self) -> bool:
        """Whether the interface was connected."""
        return self.state is State.CONNECTED


class InterfaceSocket(Protocol):
    """The control socket of an interface: a :class:`memifrt.Socket`."""

    @property
    def path(self) -> str:
        """The path, or ``@name``."""

    @property
    def address(self) -> Address: ...

    @property
    def implicit(self) -> bool:
        """Whether the socket was created for an interface, and is deleted with its last interface."""

    @property
    def interfaces(self) -> tuple[Interface, ...]: ...

    @property
    def external_region(self) -> ExternalRegion | None: ...

    @property
    def listener_fd(self) -> int:
        """The listener's fd, or -1 while the socket does not listen."""

    def set_listener_fd(self, fd: int) -> None:
        """Accept peers on an existing listener."""

    def register_external_region(self, region: ExternalRegion) -> None:
        """Place the buffers of this socket's interfaces in the application's own memory."""

    def delete(self) -> None:
        """Stop listening and remove the socket from its runtime."""

    def remove(self, interface: Interface) -> None:
        """Forget an interface that is deleted."""


class InterfaceOwner(Protocol):
    """What an interface needs of its runtime."""

    def forget(self, interface: Interface) -> None:
        """Forget an interface that is deleted."""


class Interface(NotCopied):
    """One memif interface, created by :meth:`memifrt.Runtime.create_interface`.

    It is a context manager that deletes the interface at the end of the block. Callbacks run on the thread that polls.
    They may call any method:

    - ``on_connect(interface)``: a peer is connected.
    - ``on_disconnect(interface, reason)``: a conversation with a peer has ended. ``reason`` is a
      :class:`~memifrt.Disconnected`; ``reason.established`` tells whether ``on_connect`` had been called. The queues'
      eventfds stay open until the callback returns.
    - ``on_interrupt(interface, qid)``: receive queue ``qid`` has packets.
    """

    def __init__(
        self,
        owner: InterfaceOwner,
        runtime_context: RuntimeContext,
        socket: InterfaceSocket,
        config: InterfaceConfig,
        on_connect: OnConnect | None,
        on_disconnect: OnDisconnect | None,
        on_interrupt: OnInterrupt | None,
        context: object,
    ) -> None:
        #: The runtime.
        self.owner = owner
        self._runtime_context = runtime_context
        self.socket = socket
        self.config = config
        self.on_connect = on_connect
        self.on_disconnect = on_disconnect
        self._on_interrupt = on_interrupt
        #: The application's own object.
        self.context = context
        self.connection: Connection | None = None
        #: The connection for which on_disconnect is running. Its fds and memory still exist.
        self.ending: Connection | None = None
        #: Whether on_disconnect is called before the hook gets DEL for the fds, as libmemif does it.
        self.reports_before_unregister = False
        #: Why the last connection or attempt to connect ended.
        self.last_error: MemifError | None = None
        self._changes = ChangeLog()
        #: The last logged reason why a slave is not connected. Empty after the interface has connected.
        self._logged_reason = ""
        #: How many connections were established.
        self.connects = 0
        #: How many conversations with a peer ended.
        self.disconnects = 0
        #: How many of them ended because the peer broke the protocol or a ring.
        self.violations = 0
        #: When the present connection was established, in Unix time (seconds).
        self.connected_since: float | None = None
        self.deleted = False
        #: In a forked child: the process to which this interface belongs.
        self._parent: int | None = None
        #: Called when the interface is deleted, connected or not, to wake callers that wait on it.
        self.on_delete: Callable[[], object] | None = None
        #: Called when the peer ends the connection, while the queues can still be used: the last moment to take packets
        #: that the peer sent before. Not part of the public interface.
        self.on_ending: Callable[[Interface], object] | None = None
        #: Whether on_connect has been called for the present connection.
        self.announced = False
        self._rx_queues: tuple[RxQueue, ...] = _NoQueues(f"{self}: there are no receive queues yet")
        self._tx_queues: tuple[TxQueue, ...] = _NoQueues(f"{self}: there are no transmit queues yet")
        self.rx_totals = CounterTotals()
        self.tx_totals = CounterTotals()

    # --- state --------------------------------------------------------------------------------------------------

    @property
    def on_interrupt(self) -> OnInterrupt | None:
        """The callback for packets. It may be set at any time; without one the queues' eventfds are not watched."""
        return self._on_interrupt

    @on_interrupt.setter
    def on_interrupt(self, callback: OnInterrupt | None) -> None:
        self._check_caller()
        self._on_interrupt = callback
        if self.connection is not None:
            self.connection.watch_queues()

    @property
    def wants_interrupts(self) -> bool:
        """Whether there is an ``on_interrupt`` callback. Read by the connection."""
        return self._on_interrupt is not None

    @property
    def id(self) -> int:
        """The number that the peer asks for. It is unique for each role on a socket."""
        return self.config.id

    @property
    def name(self) -> str:
        """The name that the peer sees."""
        return self.config.name

    @property
    def role(self) -> Role:
        """Master or slave."""
        return self.config.role

    @property
    def mode(self) -> Mode:
        """What each packet contains."""
        return self.config.mode

    @property
    def state(self) -> State:
        """Disconnected, connecting (the handshake is in progress) or connected."""
        if self.connection is None:
            return State.DISCONNECTED
        return State.CONNECTED if self.connection.established else State.CONNECTING

    @property
    def state_name(self) -> str:
        """The state in words, for people: an interface that never had a peer is ``not connected yet``."""
        if self.state is State.DISCONNECTED and not self.connects:
            return "not connected yet"
        return self.state.value

    @property
    def changes(self) -> tuple[StateChange, ...]:
        """The last changes of :attr:`state` and why they happened, the oldest first; at most 16.

        A failed attempt to connect is one, too. Changes that a retrying slave repeats are counted as one.
        """
        return tuple(self._changes)

    @property
    def connected(self) -> bool:
        """Whether there is a peer and ``on_connect`` has been called for it."""
        return self.announced and self.state is State.CONNECTED

    @property
    def counters(self) -> Counters:
        """The sums of the counters of all queues since the interface was created, over all connections.

        Queues of earlier connections count even if the present connection has fewer queues.

        :raises ForkedError: in a forked child, which does not own the interface.
        """
        self.check_not_forked()
        return Counters(self.rx_totals.total(self._rx_queues), self.tx_totals.total(self._tx_queues))

    @property
    def rx_queues(self) -> tuple[RxQueue, ...]:
        """The receive queues of the present or the last connection.

        After a disconnect every operation on them raises :class:`~memifrt.Disconnected`. Before the first connection
        the tuple is empty, and an index raises :class:`~memifrt.errors.NoQueueYet`, which is an IndexError.
        """
        return self._rx_queues

    @property
    def tx_queues(self) -> tuple[TxQueue, ...]:
        """The transmit queues; see :attr:`rx_queues`."""
        return self._tx_queues

    def details(self) -> Details:
        """Return the details of the interface at this moment, as libmemif's ``memif_get_details`` does.

        In ``on_disconnect`` the peer, the regions and the queues are those of the connection that ends.

        :raises ForkedError: in a forked child, which does not own the interface.
        """
        self.check_not_forked()
        connection = self.connection or self.ending
        return Details(
            name=self.name,
            app_name=self._runtime_context.app_name,
            remote_name=connection.peer_if_name if connection else "",
            remote_app_name=connection.peer_name if connection else "",
            id=self.id,
            secret=self.config.secret,
            role=self.role,
            mode=self.mode,
            socket_path=self.socket.path,
            state=self.state,
            error=self.last_error.message if self.last_error else "",
            peer=connection.credentials if connection else None,
            regions=tuple(
                RegionDetails(region.index, region.address, region.size, region.fileno(), region.is_external)
                for region in (connection.regions if connection else ())
            ),
            rx_queues=tuple(
                _queue_details(queue, layout.region, ring)
                for queue, (layout, ring, _) in (connection.rx() if connection else ())
            ),
            tx_queues=tuple(
                _queue_details(queue, layout.region, ring)
                for queue, (layout, ring, _) in (connection.tx() if connection else ())
            ),
        )

    # --- actions ------------------------------------------------------------------------------------------------

    def request_connection(self) -> None:
        """Connect a slave now, without waiting for the timer. Do nothing for a master, which listens already.

        :raises MemifError: ``ALRCONN``: the interface is connected or connecting; ``NOCONN``: it is deleted.
        :raises MemifOSError: the attempt failed, for example because nobody listens. The timer goes on trying.
        :raises ConfigError: the runtime's fds are in a loop that runs in another thread. Nothing has happened.
        """
        self._check_alive()
        if self.connection is not None:
            raise MemifError(ErrorCode.ALRCONN, f"{self} is {self.state.value} already")
        if self.role is Role.SLAVE:
            self.connect()

    def disconnect(self, reason: str = "disconnected by the application") -> None:
        """End the present connection, if there is one. A slave then connects again with the timer.

        :param reason: text for the peer and for ``on_disconnect``.
        :raises ConfigError: the runtime's fds are in a loop that runs in another thread. Nothing has happened.
        """
        self._check_caller()
        if self.connection is not None:
            self.connection.close(Disconnected(reason))

    def delete(self) -> None:
        """Disconnect, which calls ``on_disconnect``, and remove the interface. A second call does nothing.

        :raises ConfigError: the runtime's fds are in a loop that runs in another thread. Nothing has happened.
        """
        if self.deleted:
            return
        self._check_caller()
        self.deleted = True
        try:
            self.disconnect("interface deleted")
        finally:
            self.owner.forget(self)
            if self.on_delete is not None:
                self.on_delete()

    def close(self) -> None:
        """Delete the interface, as :meth:`delete` does. A second call does nothing.

        Every object that holds an interface has this method; ``delete`` is libmemif's name.
        """
        self.delete()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __str__(self) -> str:
        return f"memif {self.id} ({self.role.name.lower()}) on {self.socket.path}"

    def __repr__(self) -> str:
        state = "deleted" if self.deleted else self.state_name
        return f"<{self}, {state if self._parent is None else f'belongs to process {self._parent}'}>"

    # --- called by the runtime, the connection and the reconnect timer ------------------------------------------

    def connect(self) -> None:
        """Try once to connect a slave. Applications call :meth:`request_connection`, which checks the state first.

        :raises MemifOSError: the attempt failed; :attr:`last_error` keeps the error.
        """
        try:
            sock = address.connect(self.socket.address)
        except MemifOSError as error:
            self.last_error = error
            self._changes.record(State.DISCONNECTED, error.message)
            self._log_retry(error)
            raise
        channel = Channel(sock)
        try:
            self.connection_bound(SlaveConnection(self._runtime_context, channel, self, self.socket.external_region))
        except BaseException:
            channel.close()
            raise
        assert self.connection is not None
        self.connection.start()

    def connection_bound(self, connection: Connection) -> None:
        """Take a connection that a slave has made or a master has accepted. Called by the creator of the connection."""
        self.connection = connection
        self.announced = False
        self._changes.record(State.CONNECTING)
        logger.debug("%s: connecting", connection)
        self._runtime_context.reconnector.update(self)

    def connection_established(self) -> None:
        """Announce the present connection: take its queues and call ``on_connect``. Called by the connection."""
        connection = self.connection
        assert connection is not None
        self.announced = True
        self.last_error = None
        self._logged_reason = ""
        self.connects += 1
        self.connected_since = time.time()
        self._rx_queues, self._tx_queues = connection.rx_queues, connection.tx_queues
        names = peer_names(connection.peer_if_name, connection.peer_name)
        self._changes.record(State.CONNECTED, names)
        logger.info("%s: connected to %s", self, names)
        if self.on_connect is not None:
            self.on_connect(self)

    def connection_ending(self) -> None:
        """Let the holder of the interface take the packets that the peer sent before it left."""
        if self.on_ending is not None:
            self.on_ending(self)

    def connection_ended(self, connection: Connection, reason: Disconnected) -> None:
        """Forget the connection and call ``on_disconnect``. Called by the connection at its end."""
        self.rx_totals.keep(connection.rx_queues)
        self.tx_totals.keep(connection.tx_queues)
        self.connection = None
        self.last_error = reason
        self._changes.record(State.DISCONNECTED, reason.message)
        self.disconnects += 1
        self.violations += isinstance(reason.__cause__, ProtocolError)
        self.connected_since = None
        if self.role is Role.SLAVE and not reason.established and not self.deleted:
            self._log_retry(reason)
        else:
            # As text: a log handler that keeps the record must not keep the traceback. Its frames hold shared memory.
            what = "disconnected" if reason.established else "the peer did not connect"
            logger.info("%s: %s: %s", str(self), what, str(reason))
        self._runtime_context.reconnector.update(self)
        if self.on_disconnect is not None:
            before, self.ending = self.ending, connection
            try:
                self.on_disconnect(self, reason)
            finally:
                self.ending = before

    def queue_interrupted(self, qid: int) -> None:
        """Call ``on_interrupt``, if there is one. Called by the connection."""
        if self._on_interrupt is not None:
            self._on_interrupt(self, qid)

    def _log_retry(self, reason: MemifError) -> None:
        """Log why a slave is not connected: once for each new reason, not at every attempt."""
        if reason.message == self._logged_reason:
            return
        self._logged_reason = reason.message
        interval = self._runtime_context.reconnector.interval
        what_next = f"retrying every {interval:g} s" if interval else "not retrying: reconnect_interval is 0"
        logger.warning("%s: %s; %s", str(self), str(reason), what_next)

    def total_counters(self) -> Counters:
        """Return :attr:`counters`. This is the old name."""
        warn_renamed("Interface.total_counters()", "Interface.counters")
        return self.counters

    def _check_alive(self) -> None:
        if self.deleted:
            self.check_not_forked()
            raise MemifError(ErrorCode.NOCONN, f"{self} is deleted")
        self._check_caller()

    def _check_caller(self) -> None:
        """Check that this thread may make control calls.

        :raises ConfigError: the runtime's fds are in a loop that runs in another thread.
        :raises ForkedError: this is a forked child, which does not own the interface.
        """
        self.check_not_forked()
        self._runtime_context.registry.check_caller()

    def check_not_forked(self) -> None:
        """Check that this process owns the interface.

        :raises ForkedError: this is a forked child, which does not own the interface.
        """
        if self._parent is not None:
            raise ForkedError(self._parent, "interface")

    def abandon(self, pid: int) -> None:
        """End the interface in a forked child. Later calls raise :class:`ForkedError` with the parent's ``pid``."""
        self._parent = pid
        self.deleted = True
        self.announced = False
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abandon()
        if self.on_delete is not None:
            self.on_delete()

    @property
    def wants_connection(self) -> bool:
        """Whether this is a slave that has no connection and is not deleted. Read by the reconnect timer."""
        return self.role is Role.SLAVE and self.connection is None and not self.deleted


class _NoQueues(tuple[Any, ...]):
    """The empty tuple of queues of an interface that has never been connected. An index raises and says why."""

    message: str

    def __new__(cls, message: str) -> Self:
        self = super().__new__(cls)
        self.message = message
        return self

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return super().__getitem__(index)
        raise NoQueueYet(f"{self.message}: the interface is not connected yet; wait for on_connect")


def _queue_details(queue: RxQueue | TxQueue, region: int, ring: RxRing | TxRing) -> QueueDetails:
    return QueueDetails(queue.qid, region, ring.size, ring.flags, ring.head, ring.tail, ring.capacity, queue.counters)
