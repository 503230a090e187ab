"""One peer on one control channel, from accept or connect to the end.

Owns the channel, the shared memory and the queues of one connection. Drives the conversation: it performs each action
of the handshake and passes on the peer's messages. Knows its interface and its socket only by two Protocols.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from memifrt.connection.context import RuntimeContext
from memifrt.connection.counters import CounterTotals
from memifrt.connection.shared_memory import AcceptedMemory, ConnectionMemory, CreatedMemory, RxRingEnd, TxRingEnd
from memifrt.control import handshake
from memifrt.control.channel import Channel, ChannelClosed
from memifrt.control.handshake import Action, Conversation, MasterTerms, Received, Result, RingFd, SharedMemory
from memifrt.control.wire import AddRing, Message
from memifrt.errors import Disconnected, ErrorCode, MemifError, ProtocolError, RingViolation
from memifrt.memory.layout import plan
from memifrt.memory.region import ExternalRegion, Region
from memifrt.options import InterfaceConfig
from memifrt.poll.schedule import TimerHandle
from memifrt.queue import RxQueue, TxQueue, make_rx_queue, make_tx_queue
from memifrt.ring import RxRing
from memifrt.system.original_functions import Lock
from memifrt.system.received_fds import ReceivedFd, is_trusted
from memifrt.types import Direction, FdEvent, Mode, Role, RxMode

logger = logging.getLogger("memifrt")

#: Messages handled for one event of the channel. The limit keeps a peer that floods its channel from starving others.
#: The rest waits in the socket, which stays readable.
_MESSAGES_PER_EVENT = 16


class ConnectionOwner(Protocol):
    """The part of its interface that a connection needs."""

    @property
    def config(self) -> InterfaceConfig: ...

    @property
    def connection(self) -> Connection | None:
        """The present connection of the interface."""

    @property
    def announced(self) -> bool:
        """Whether :meth:`connection_established` was called for the present connection."""

    @property
    def wants_interrupts(self) -> bool:
        """Whether the application wants a callback for each interrupt."""

    @property
    def rx_totals(self) -> CounterTotals: ...

    @property
    def tx_totals(self) -> CounterTotals: ...

    @property
    def reports_before_unregister(self) -> bool:
        """Whether ``on_disconnect`` is called before the hook gets DEL for the fds, as in libmemif."""

    def connection_bound(self, connection: Connection) -> None:
        """Make this the interface's connection: its peer has asked for this interface."""

    def connection_established(self) -> None:
        """Announce the present connection to the application: its queues can be used."""

    def queue_interrupted(self, qid: int) -> None:
        """Tell the application that a receive queue has packets."""

    def connection_ending(self) -> None:
        """Let the application take what the peer sent before it left: the queues can still be used."""

    def connection_ended(self, connection: Connection, reason: Disconnected) -> None:
        """Forget the connection, and tell the application why it ended."""


class ConnectionOrigin(Protocol):
    """The part of a socket that a master's connection needs; its peer was accepted on it."""

    @property
    def external_region(self) -> ExternalRegion | None:
        """The application's own memory, if it has registered any."""

    def master(self, interface_id: int) -> ConnectionOwner | None:
        """Return the master interface with this id."""

    def has_slave(self, interface_id: int) -> bool:
        """Return whether a slave interface has this id."""

    def claimed(self, connection: MasterConnection) -> None:
        """Stop counting the connection as half-open: its peer has named an interface."""

    def ended_unclaimed(self, connection: MasterConnection, reason: Disconnected) -> None:
        """Log the end of a half-open connection."""

    def forget(self, connection: MasterConnection) -> None:
        """Forget the connection after its end."""


class Connection(ABC):
    """The part that both roles share. The subclasses create or accept the memory."""

    def __init__(
        self, context: RuntimeContext, channel: Channel, memory: ConnectionMemory, conversation: Conversation
    ) -> None:
        self._context = context
        self._channel = channel
        self._memory = memory
        self._conversation = conversation
        self._registry = context.registry
        #: The interface that the conversation is about. A master learns it from the peer's INIT.
        self.owner: ConnectionOwner | None = None
        self.peer_name = ""
        self.peer_if_name = ""
        self.credentials = channel.credentials
        self.established = False
        self.closed = False
        self.rx_queues: tuple[RxQueue, ...] = ()
        self.tx_queues: tuple[TxQueue, ...] = ()
        #: The fd that came with the message in progress, until an action takes it.
        self._incoming_fd: ReceivedFd | None = None
        #: How the peer broke a ring, or lost a region; the reason for the end, whatever happens afterwards.
        self._violation: RingViolation | None = None
        #: The message that the conversation waits for.
        self._awaits = handshake.Receive()
        self._deadline: TimerHandle | None = None
        self._deadline_extended = False
        #: Messages received so far.
        self._received = 0
        # A queue's thread may report a violation while the control thread ends the connection.
        self._ending = Lock()

    # --- the conversation ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Watch the channel and send the first message, if this side has one.

        :raises MemifError: the hook or the first send failed; the connection is closed.
        """
        try:
            self._registry.add(self._channel.fileno(), FdEvent.READ, self._on_channel)
            self._set_deadline()
            self._advance(None)
        except BaseException as failure:
            self.close(_as_error(failure))
            raise

    def _set_deadline(self) -> None:
        if self._context.handshake_timeout and not self.closed:
            self._deadline = self._context.schedule.after(self._context.handshake_timeout, self._on_deadline)

    def _on_deadline(self) -> None:
        """End a handshake that takes too long.

        Unread messages mean that this process was slow: handle them and extend the deadline, once.
        """
        self._deadline = None
        received = self._received
        if not self._deadline_extended:
            self._deadline_extended = True
            self._on_channel(FdEvent.READ)
            if self.closed or self.established:
                return
            if self._received > received:
                self._set_deadline()
                return
        self.close(Disconnected(f"no {self._awaits.awaited} within {self._context.handshake_timeout:g} s"))

    def _on_channel(self, events: FdEvent) -> None:
        if self.closed:  # the fd is still registered while on_disconnect runs, which may pass events
            return
        try:
            error, tell_peer = self._pump(events)
        except BaseException as failure:  # the application's allocator or external region failed
            self.close(_as_error(failure))
            raise
        if error is not None:
            if error.code is not ErrorCode.CB_FDUPDATE:
                _forget_frames(error)
            try:
                if isinstance(error, Disconnected) and self._violation is None:
                    self._hand_over_what_came_before()
            finally:
                self.close(error, tell_peer=tell_peer)
            if error.code is ErrorCode.CB_FDUPDATE:
                raise error  # the application's hook failed, so the application must learn of it
        elif self._is_unannounced():
            assert self.owner is not None
            self.owner.connection_established()

    def _pump(self, events: FdEvent) -> tuple[MemifError | None, bool]:
        """Send and receive without blocking, and handle the received messages.

        :returns: the error that ends the connection, or None; and whether to tell the peer.
        """
        try:
            loss = self._loss()
            if loss is not None:
                raise loss
            if events & FdEvent.WRITE:
                self._flush()
            if events & (FdEvent.READ | FdEvent.ERROR):
                self._read()
        except ChannelClosed:
            ended: MemifError = Disconnected(f"peer closed the connection without a reason{self._awaits.interrupted}")
        except MemifError as error:
            ended = error
        else:
            return None, False
        if self._violation is not None:  # it came first, so it is the reason; the peer has been told
            return self._violation, False
        ended = self._loss() or ended
        return ended, not isinstance(ended, Disconnected)

    def _read(self) -> None:
        for _ in range(_MESSAGES_PER_EVENT):
            received = self._channel.receive()
            if received is None:
                return
            message, self._incoming_fd = received
            self._received += 1
            logger.debug("%s: received %r", self, message)
            try:
                self._advance(Received(message, self._incoming_fd is not None))
            finally:
                self._drop_incoming_fd()
            if self.closed or self._is_unannounced():
                return  # on_connect must run first; the next messages wait in the socket

    def _is_unannounced(self) -> bool:
        """Return whether the connection is established, but ``on_connect`` has not been called yet."""
        owner = self.owner
        return self.established and not self.closed and owner is not None and not owner.announced

    def _advance(self, result: Result) -> None:
        """Perform the conversation's actions until it waits for a message from the peer."""
        while not self.closed:
            action = self._conversation.send(result)
            match action:
                case handshake.Receive():
                    self._awaits = action
                    return
                case handshake.Send(message, attach):
                    self._send(message, attach)
                    result = None
                case handshake.Established(peer_name, peer_if_name):
                    self.peer_name, self.peer_if_name = peer_name, peer_if_name
                    self._establish()
                    result = None
                case _:
                    result = self._perform(action)
        # The application's hook, allocator or external region has closed the connection during an action. Release the
        # objects that the action has created since.
        self._release()

    @abstractmethod
    def _perform(self, action: Action) -> Result:
        """Perform an action that only this role has, and return its result."""

    def _send(self, message: Message, attach: handshake.RegionFd | RingFd | None) -> None:
        fd = -1 if attach is None else self._memory.fileno_of(attach)
        logger.debug("%s: sending %r", self, message)
        with contextlib.suppress(ChannelClosed):  # the next read finds the end, and perhaps the peer's reason
            self._channel.send(message, fd)
        self._watch_channel()

    def _flush(self) -> None:
        with contextlib.suppress(ChannelClosed):  # as in _send
            self._channel.flush()
        self._watch_channel()

    def _watch_channel(self) -> None:
        write = FdEvent.WRITE if self._channel.wants_write else FdEvent(0)
        self._registry.modify(self._channel.fileno(), FdEvent.READ | write)

    def _take_incoming_fd(self) -> ReceivedFd:
        fd, self._incoming_fd = self._incoming_fd, None
        assert fd is not None  # the conversation has checked Received.has_fd
        return fd

    def _drop_incoming_fd(self) -> None:
        if self._incoming_fd is not None:
            self._incoming_fd.close()
            self._incoming_fd = None

    @property
    def regions(self) -> Sequence[Region]:
        """The regions that exist so far."""
        return self._memory.regions

    def rx(self) -> Iterator[tuple[RxQueue, RxRingEnd]]:
        """Yield each receive queue with its ring and eventfd; none before the connection is established."""
        return zip(self.rx_queues, self._memory.rx_rings if self.established else (), strict=True)

    def tx(self) -> Iterator[tuple[TxQueue, TxRingEnd]]:
        """Yield each transmit queue with its ring and eventfd; none before the connection is established."""
        return zip(self.tx_queues, self._memory.tx_rings if self.established else (), strict=True)

    # --- connected ----------------------------------------------------------------------------------------------

    def _establish(self) -> None:
        """Create a queue for each ring after the handshake, and start receiving."""
        owner = self.owner
        assert owner is not None
        config = owner.config
        self.rx_queues = tuple(
            make_rx_queue(
                ring.index,
                rx,
                event,
                owner.rx_totals.before(ring.index),
                self._violated,
                config.rx_mode,
                self._rx_mode_changed,
                self._registry.check_caller,
            )
            for ring, rx, event in self._memory.rx_rings
        )
        self.tx_queues = tuple(
            make_tx_queue(
                ring.index,
                tx,
                event,
                owner.tx_totals.before(ring.index),
                self._violated,
                config.chained_tx,
                self._context.leftovers.begin,
            )
            for ring, tx, event in self._memory.tx_rings
        )
        self.established = True
        self._context.schedule.cancel(self._deadline)
        for queue, (_, rx_ring, _) in list(self.rx()):
            if self.closed:  # the hook has closed the connection when the previous queue was registered
                return
            self._start_receiving(queue, rx_ring)

    def _start_receiving(self, queue: RxQueue, ring: RxRing) -> None:
        assert self.owner is not None
        config = self.owner.config
        # Write the flag at every connect. Peers do not reset it, and some preset it (docs/protocol.md, rule 6).
        ring.set_mask(config.rx_mode is RxMode.POLLING)
        ring.set_headroom(config.rx_headroom)
        if config.auto_refill and config.role is Role.SLAVE:
            ring.refill(None, config.rx_headroom)
        self._rx_mode_changed(queue)

    def _rx_mode_changed(self, queue: RxQueue) -> None:
        """Watch the queue's eventfd if the queue takes interrupts and the application wants callbacks."""
        owner, fd = self.owner, queue.fileno()
        wanted = owner is not None and owner.wants_interrupts and queue.rx_mode is not RxMode.POLLING
        if wanted and fd not in self._registry:
            self._registry.add(fd, FdEvent.READ, functools.partial(self._on_interrupt, queue))
        elif not wanted:
            self._registry.remove(fd)

    def watch_queues(self) -> None:
        """Watch or unwatch every queue. Called when ``on_interrupt`` changes."""
        for queue in self.rx_queues:
            self._rx_mode_changed(queue)

    def _on_interrupt(self, queue: RxQueue, events: FdEvent = FdEvent.READ) -> None:
        if self.owner is None or not queue.connected:
            return
        try:
            self.owner.queue_interrupted(queue.qid)
        except Disconnected as error:
            # A peer broke a ring while the callback used it: this peer, or the peer of an interface to which the
            # callback forwards packets. The next event of that peer's channel ends its connection and calls
            # on_disconnect, so an application need not guard each burst against this error.
            if not isinstance(error.__cause__, RingViolation):
                raise

    def _hand_over_what_came_before(self) -> None:
        """Call ``on_interrupt`` for kicks that the peer sent before it left, and let the owner take what remains.

        The kick and the disconnect may be ready in the same round, in either order. Without a disconnect the loop would
        call the callback until it has read the eventfd, so this does the same. It stops earlier if a call has taken no
        packets, so that it always ends.
        """
        for queue in self.rx_queues:
            left = queue.ring_size + 1
            while queue.connected and queue.fileno() in self._registry and queue.is_readable():
                try:
                    waiting = queue.pending()
                except Disconnected:  # the peer broke the ring, too
                    break
                if not 0 < waiting < left:
                    break
                left = waiting
                self._on_interrupt(queue)
        if self.owner is not None and self.owner.announced and not self.closed:
            self.owner.connection_ending()

    def _violated(self, violation: RingViolation) -> Disconnected:
        """Disconnect the queues after the peer broke a ring, tell the peer why, and shut the channel down.

        Called on the queue's thread. The channel then wakes the control thread, which closes the connection.
        """
        violation = self._violation or self._loss() or violation
        error = Disconnected(violation.message, established=True)
        error.__cause__ = violation
        with self._ending:  # do not log under this lock: a log handler may wait for a thread that needs it
            if self._violation is None and not self.closed:
                self._violation = violation
                self._channel.say_goodbye(violation.message)
                self._channel.shut_down()
        logger.debug("%s: the peer broke a ring: %s", self, violation)
        self._disconnect_queues(error)
        return error

    def _loss(self) -> RingViolation | None:
        """Return the violation of a peer that has truncated the file of a region; None if no page was missed.

        The thread that misses a page runs a signal handler, which can only shut down the reading side of the channel.
        The control thread wakes up and calls this. A queue's thread calls it when it finds the ring broken, because a
        lost region reads as zeros.
        """
        for region in tuple(self.regions):
            if region.lost:
                return RingViolation(
                    f"region {region.index} is gone: its file was truncated while in use, or its file system is full",
                    ErrorCode.NO_SHMFD,
                )
        return None

    # --- the end ------------------------------------------------------------------------------------------------

    def close(self, error: MemifError, *, tell_peer: bool = True) -> None:
        """End the connection: disconnect the queues, tell the peer, the hook and the application, release everything.

        :param error: the reason.
        :param tell_peer: whether to send a DISCONNECT with the reason now.
        :raises BaseException: the hook or ``on_disconnect`` raised it. Everything is released.
        """
        if self.closed:
            return
        with self._ending:
            self.closed = True
        announced = self.established and self.owner is not None and self.owner.announced
        reason = Disconnected(error.message, error.code, established=announced)
        reason.__cause__ = error.__cause__ if isinstance(error, Disconnected) else error
        if isinstance(error, ProtocolError):  # the interface keeps the error, and its frames hold the peer's memory
            error.__traceback__ = None
        steps: list[Callable[[], object]] = [self._unregister, lambda: self._report(reason)]
        if self.owner is not None and self.owner.reports_before_unregister:
            steps.reverse()
        with contextlib.ExitStack() as stack:  # every step runs, whatever another one raises, also KeyboardInterrupt
            stack.callback(self._release)
            stack.callback(self._end_what_is_left, reason)
            stack.callback(steps[1])
            stack.callback(steps[0])
            self._context.schedule.cancel(self._deadline)
            self._disconnect_queues(reason)
            if tell_peer:
                self._say_goodbye(reason)

    def abandon(self) -> None:
        """End the connection in a forked child, and leave alone what the child shares with its parent.

        The queues and their rings end by themselves.
        """
        self.closed = True
        self._ending = Lock()  # a thread that the child does not have may hold it
        self._memory.abandon()

    def _say_goodbye(self, reason: MemifError) -> None:
        logger.debug("%s: sending a disconnect: %s", self, reason)
        self._channel.say_goodbye(reason.message)

    def _disconnect_queues(self, reason: Disconnected) -> None:
        with self._ending:  # if two threads disconnected a queue at once, its packets would be counted twice
            for rx_queue in self.rx_queues:
                rx_queue.disconnect(reason)
            for tx_queue in self.tx_queues:
                tx_queue.disconnect(reason)

    def _unregister(self) -> None:
        """Unregister every fd while it is still open. If the hook raises, the other fds are unregistered all the
        same."""
        fds = [queue.fileno() for queue in self.rx_queues] + [self._channel.fileno()]
        failure: BaseException | None = None
        for fd in fds:
            try:
                self._registry.remove(fd)
            except BaseException as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _report(self, reason: Disconnected) -> None:
        if self.owner is not None:
            self.owner.connection_ended(self, reason)

    def _end_what_is_left(self, reason: Disconnected) -> None:
        """Do what :meth:`_unregister` and :meth:`_report` have not done because of a KeyboardInterrupt.

        Otherwise the registry would keep the number of a closed fd, and the interface a connection that never ends.
        """
        try:
            self._unregister()
        finally:
            if self.owner is not None and self.owner.connection is self:
                self._report(reason)

    def _release(self) -> None:
        self._conversation.close()
        self._drop_incoming_fd()
        with self._ending:
            # The reason is sent only if close() has sent none, because the peer ended the connection first.
            self._channel.close("answer to a disconnect")
        self._memory.close()

    def __str__(self) -> str:
        return f"{self.owner} ({self.credentials.process})"


class SlaveConnection(Connection):
    """A connection that a slave makes. The slave creates the memory."""

    _memory: CreatedMemory

    def __init__(
        self, context: RuntimeContext, channel: Channel, owner: ConnectionOwner, external: ExternalRegion | None
    ) -> None:
        config = owner.config
        offer = handshake.SlaveOffer(
            context.app_name,
            config.name,
            config.id,
            config.mode,
            config.secret,
            config.num_s2m_rings,
            config.num_m2s_rings,
            config.log2_ring_size,
        )
        super().__init__(context, channel, CreatedMemory(context.allocator, external), handshake.slave(offer))
        self.owner = owner

    def _perform(self, action: Action) -> Result:
        assert isinstance(action, handshake.CreateMemory)
        assert self.owner is not None
        buffer_size = self.owner.config.buffer_size
        layout = plan(
            action.num_s2m_rings,
            action.num_m2s_rings,
            action.log2_ring_size,
            buffer_size,
            separate_buffers=self._memory.has_separate_buffers,
        )
        self._memory.create_regions(layout, self._channel.hang_up)
        if self.closed:  # by the application's allocator or external region
            return None
        self._memory.create_rings(layout, action.log2_ring_size, buffer_size, self.credentials.uid)
        return SharedMemory(
            layout.region_sizes,
            [
                AddRing(ring.direction is Direction.S2M, ring.index, ring.region, ring.offset, action.log2_ring_size)
                for ring in layout.rings
            ],
        )


class MasterConnection(Connection):
    """A connection that a master accepts. It has no owner until the master has accepted the peer's INIT."""

    _memory: AcceptedMemory

    def __init__(self, context: RuntimeContext, channel: Channel, origin: ConnectionOrigin) -> None:
        super().__init__(context, channel, AcceptedMemory(), handshake.master(context.app_name))
        self._origin = origin

    def _perform(self, action: Action) -> Result:
        match action:
            case handshake.Claim(interface_id):
                return self._claim(interface_id)
            case handshake.Bind(interface_id, peer_name):
                self.peer_name = peer_name
                self.owner = self._origin.master(interface_id)
                assert self.owner is not None
                self._origin.claimed(self)
                self.owner.connection_bound(self)
            case handshake.AcceptRegion(index, size):
                trusted = self._context.accept_unsealed or is_trusted(self.credentials.uid)
                external = self._origin.external_region
                self._memory.accept_region(
                    index,
                    size,
                    self._take_incoming_fd(),
                    trusted=trusted,
                    external=external,
                    hang_up=self._channel.hang_up,
                )
            case handshake.AcceptRing():
                self._memory.check_ring(action)
                self._memory.accept_ring(action, self._take_incoming_fd())
            case handshake.Prepare():
                self._memory.make_rings()
        return None

    def _claim(self, interface_id: int) -> MasterTerms | None:
        owner = self._origin.master(interface_id)
        if owner is None:
            if not self._origin.has_slave(interface_id):
                return None
            return MasterTerms(Mode.ETHERNET, b"", "", is_slave=True)
        config = owner.config
        return MasterTerms(config.mode, config.secret, config.name, connected=owner.connection is not None)

    def _report(self, reason: Disconnected) -> None:
        if self.owner is None:
            self._origin.ended_unclaimed(self, reason)
        else:
            super()._report(reason)

    def _release(self) -> None:
        self._origin.forget(self)
        super()._release()

    def __str__(self) -> str:
        return f"{self.owner or self._origin} ({self.credentials.process})"


def _as_error(failure: BaseException) -> MemifError:
    """Return an error that can be sent to the peer as the reason: ``failure``, or one that quotes it."""
    if isinstance(failure, MemifError):
        return failure
    error = MemifError(ErrorCode.SYSCALL, f"{type(failure).__name__}: {failure}")
    error.__cause__ = failure
    return error


def _forget_frames(error: BaseException) -> None:
    """Drop the tracebacks of an error that is kept instead of raised. Their frames would keep regions mapped."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
