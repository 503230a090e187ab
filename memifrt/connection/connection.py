"""One peer on one control channel, from accept or connect to the end.

Owns the channel, the regions, the eventfds and the queues of one connection, and drives one conversation: it does
what the handshake asks for and feeds it what the peer says. Knows of its interface only whom to tell.
"""

from __future__ import annotations

import contextlib
import logging
import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memifrt.control import handshake
from memifrt.control.channel import Channel, ChannelClosed
from memifrt.control.handshake import Action, Conversation, MasterTerms, Received, Result, RingFd, SharedMemory
from memifrt.control.wire import AddRing, Message
from memifrt.errors import Disconnected, ErrorCode, MemifError, ProtocolError, RingViolation
from memifrt.memory.layout import RingLayout, plan, ring_bytes
from memifrt.memory.region import ExternalRegion, Region
from memifrt.options import RegionAllocator
from memifrt.poll.hook import FdRegistry
from memifrt.poll.schedule import Schedule, TimerHandle
from memifrt.queue import RxQueue, TxQueue
from memifrt.rekick import LeftoverWatch
from memifrt.ring import RingMemory, RxRing, SlaveBuffers, TxRing, implementation
from memifrt.system.fds import EventFd
from memifrt.system.original_functions import Lock
from memifrt.system.received_fds import ReceivedFd, SharedEventFd, is_eventfd, is_trusted
from memifrt.types import Direction, FdEvent, Mode, Role, RxMode

if TYPE_CHECKING:
    from memifrt.interface import Interface
    from memifrt.sockets import Socket

logger = logging.getLogger("memifrt")

#: Messages handled for one readiness of the channel: a peer that floods it does not starve the others.
_MESSAGES_PER_EVENT = 16
#: u32 fields of a ring must not straddle an alignment boundary, or the loads of an index are not atomic.
_RING_ALIGNMENT = 4


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a connection gets from its runtime."""

    registry: FdRegistry
    schedule: Schedule
    leftovers: LeftoverWatch
    app_name: str
    allocator: RegionAllocator
    accept_unsealed: bool
    #: Seconds from connect to the end of the handshake; 0 for no limit.
    handshake_timeout: float
    #: Peers of one listener that have not said yet whose they are.
    max_half_open: int


class Connection(ABC):
    """What both sides do. The subclasses know how memory comes to be."""

    def __init__(self, around: Surroundings, channel: Channel, socket: Socket, conversation: Conversation) -> None:
        self._around = around
        self._channel = channel
        self._socket = socket
        self._conversation = conversation
        self._registry = around.registry
        self.interface: Interface | None = None
        self.peer_name = ""
        self.peer_if_name = ""
        self.credentials = channel.credentials
        self.established = False
        self.closed = False
        self.regions: list[Region] = []
        self.rx_rings: list[tuple[RingLayout, RxRing, EventFd]] = []
        self.tx_rings: list[tuple[RingLayout, TxRing, EventFd]] = []
        self.rx_queues: tuple[RxQueue, ...] = ()
        self.tx_queues: tuple[TxQueue, ...] = ()
        self._events: dict[RingFd, EventFd] = {}
        self._incoming_fd: ReceivedFd | None = None
        self._violation: RingViolation | None = None
        #: What the conversation waits for.
        self._awaits = handshake.Receive()
        self._deadline: TimerHandle | None = None
        self._overtime = False
        self._heard = 0
        # A queue's thread may report a violation while the control thread ends the connection.
        self._ending = Lock()

    # --- the conversation ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Watch the channel and say what is to be said first.

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
        if self._around.handshake_timeout and not self.closed:
            self._deadline = self._around.schedule.after(self._around.handshake_timeout, self._on_deadline)

    def _on_deadline(self) -> None:
        """The handshake takes too long. What waits unread is our delay, not the peer's: for that it gets the time once
        more, and only once."""
        self._deadline = None
        heard = self._heard
        if not self._overtime:
            self._overtime = True
            self._on_channel(FdEvent.READ)
            if self.closed or self.established:
                return
            if self._heard > heard:
                self._set_deadline()
                return
        self.close(Disconnected(f"no {self._awaits.awaited} within {self._around.handshake_timeout:g} s"))

    def _on_channel(self, events: FdEvent) -> None:
        if self.closed:  # on_disconnect hands over events while the fd is still registered
            return
        try:
            error, tell_peer = self._pump(events)
        except BaseException as failure:  # the application's allocator or external region: nothing goes on from here
            self.close(_as_error(failure))
            raise
        if error is not None:
            if error.code is not ErrorCode.CB_FDUPDATE:
                _forget_frames(error)
            self.close(error, tell_peer=tell_peer)
            if error.code is ErrorCode.CB_FDUPDATE:
                raise error  # the application's hook failed: that is the application's to know
        elif self._is_unannounced():
            assert self.interface is not None
            self.interface._established()

    def _pump(self, events: FdEvent) -> tuple[MemifError | None, bool]:
        """Send and receive what can be; the error that ends the connection, and whether the peer is to be told."""
        try:
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
        if self._violation is not None:  # the peer is told already, and this is why, whatever else it had sent
            return self._violation, False
        return ended, not isinstance(ended, Disconnected)

    def _read(self) -> None:
        for _ in range(_MESSAGES_PER_EVENT):
            received = self._channel.receive()
            if received is None:
                return
            message, self._incoming_fd = received
            self._heard += 1
            logger.debug("%s: received %r", self, message)
            try:
                self._advance(Received(message, self._incoming_fd is not None))
            finally:
                self._drop_incoming_fd()
            if self.closed or self._is_unannounced():
                return  # on_connect comes first; what else has come stays in the socket

    def _is_unannounced(self) -> bool:
        """Whether on_connect is still to be called."""
        interface = self.interface
        return self.established and not self.closed and interface is not None and not interface.announced

    def _advance(self, result: Result) -> None:
        """Let the conversation go on until it waits for the peer."""
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
        self._release()  # ended by the application's hook, allocator or external region: what came since goes too

    @abstractmethod
    def _perform(self, action: Action) -> Result:
        """Do what only one of the sides is asked for."""

    def _send(self, message: Message, attach: handshake.RegionFd | RingFd | None) -> None:
        match attach:
            case handshake.RegionFd(index):
                fd = self.regions[index].fileno()
            case RingFd():
                fd = self._events[attach].fileno()
            case None:
                fd = -1
        logger.debug("%s: sending %r", self, message)
        with contextlib.suppress(ChannelClosed):  # the reader finds out, and the reason that the peer may have left
            self._channel.send(message, fd)
        self._watch_channel()

    def _flush(self) -> None:
        with contextlib.suppress(ChannelClosed):  # as above
            self._channel.flush()
        self._watch_channel()

    def _watch_channel(self) -> None:
        write = FdEvent.WRITE if self._channel.wants_write else FdEvent(0)
        self._registry.modify(self._channel.fileno(), FdEvent.READ | write)

    def _take_incoming_fd(self) -> ReceivedFd:
        fd, self._incoming_fd = self._incoming_fd, None
        assert fd is not None  # the handshake has checked
        return fd

    def _drop_incoming_fd(self) -> None:
        if self._incoming_fd is not None:
            self._incoming_fd.close()
            self._incoming_fd = None

    def rx(self) -> Iterator[tuple[RxQueue, tuple[RingLayout, RxRing, EventFd]]]:
        """Each receive queue and what is under it; none before the connection is established."""
        return zip(self.rx_queues, self.rx_rings if self.established else (), strict=True)

    def tx(self) -> Iterator[tuple[TxQueue, tuple[RingLayout, TxRing, EventFd]]]:
        """Each transmit queue and what is under it; none before the connection is established."""
        return zip(self.tx_queues, self.tx_rings if self.established else (), strict=True)

    # --- connected ----------------------------------------------------------------------------------------------

    def _establish(self) -> None:
        """Both sides agree: make queues of the rings."""
        interface = self.interface
        assert interface is not None
        earlier, config = interface._earlier, interface.config
        self.rx_queues = tuple(
            RxQueue(ring.index, rx, event, earlier(ring), self._violated, config.rx_mode, self._rx_mode_changed)
            for ring, rx, event in self.rx_rings
        )
        self.tx_queues = tuple(
            TxQueue(
                ring.index, tx, event, earlier(ring), self._violated, config.chained_tx, self._around.leftovers.begin
            )
            for ring, tx, event in self.tx_rings
        )
        self.established = True
        self._around.schedule.cancel(self._deadline)
        for queue, (_, rx_ring, _) in list(self.rx()):
            if self.closed:  # by the hook that was told of the queue before
                return
            self._start_receiving(queue, rx_ring)

    def _start_receiving(self, queue: RxQueue, ring: RxRing) -> None:
        assert self.interface is not None
        config = self.interface.config
        # Written at every connect: peers leave the flag as they find it, and some preset it (docs/protocol.md, rule 6).
        ring.set_mask(config.rx_mode is RxMode.POLLING)
        ring.set_headroom(config.rx_headroom)
        if config.auto_refill and config.role is Role.SLAVE:
            ring.refill(None, config.rx_headroom)
        self._rx_mode_changed(queue)

    def _rx_mode_changed(self, queue: RxQueue) -> None:
        """Watch the eventfds of queues that want interrupts, where somebody is to be told."""
        interface, fd = self.interface, queue.fileno()
        wanted = interface is not None and interface.on_interrupt is not None and queue.mode is not RxMode.POLLING
        if wanted and fd not in self._registry:
            self._registry.add(fd, FdEvent.READ, lambda events: self._on_interrupt(queue))
        elif not wanted:
            self._registry.remove(fd)

    def watch_queues(self) -> None:
        """``on_interrupt`` has come or gone."""
        for queue in self.rx_queues:
            self._rx_mode_changed(queue)

    def _on_interrupt(self, queue: RxQueue) -> None:
        interface = self.interface
        if interface is None or interface.on_interrupt is None or not queue.connected:
            return
        try:
            interface.on_interrupt(interface, queue.qid)
        except Disconnected as error:
            # A peer broke a ring under the callback, this one's or that of another interface to which packets are
            # forwarded. Its connection ends with the next event of its channel, and on_disconnect tells; an
            # application need not guard each burst against it.
            if not isinstance(error.__cause__, RingViolation):
                raise

    def _violated(self, violation: RingViolation) -> Disconnected:
        """The peer broke a ring. Called from the queue's thread: it says goodbye and hangs up, which wakes the
        control thread to clear up."""
        violation = self._violation or violation
        error = Disconnected(violation.message, established=True)
        error.__cause__ = violation
        with self._ending:  # no logging in here: a handler may wait, and let somebody else come to this lock
            if self._violation is None and not self.closed:
                self._violation = violation
                self._channel.say_goodbye(violation.message)
                self._channel.shut_down()
        logger.debug("%s: the peer broke a ring: %s", self, violation)
        self._disconnect_queues(error)
        return error

    def _region_lost(self, index: int) -> None:
        """Somebody has truncated the file of a region. Called in the middle of whatever touched that memory, which now
        reads zeros: no lock, no log, nothing but what hangs up and wakes the control thread."""
        if self._violation is None and not self.closed:
            self._violation = RingViolation(
                f"region {index} is gone: its file was truncated while it was in use", ErrorCode.NO_SHMFD
            )
            self._channel.say_goodbye(self._violation.message)
            self._channel.shut_down()

    # --- the end ------------------------------------------------------------------------------------------------

    def close(self, error: MemifError, *, tell_peer: bool = True) -> None:
        """End the connection: queues first, then the peer, the hook, the application; then everything is released.

        :raises BaseException: what the hook or ``on_disconnect`` raised, after everything is released.
        """
        if self.closed:
            return
        with self._ending:
            self.closed = True
        self._around.schedule.cancel(self._deadline)
        announced = self.established and self.interface is not None and self.interface.announced
        reason = Disconnected(error.message, error.code, established=announced)
        reason.__cause__ = error.__cause__ if isinstance(error, Disconnected) else error
        if isinstance(error, ProtocolError):  # the reason is kept, and these frames had the peer's memory at hand
            error.__traceback__ = None
        self._disconnect_queues(reason)
        if tell_peer:
            self._say_goodbye(reason)
        steps: list[Callable[[], object]] = [self._unregister, lambda: self._report(reason)]
        if self.interface is not None and self.interface.reports_before_unregister:
            steps.reverse()
        try:
            try:
                steps[0]()
            finally:
                steps[1]()
        finally:
            self._release()

    def abandon(self, pid: int) -> None:
        """In a forked child: end the queues, and touch nothing that the parent ``pid`` has as well."""
        self.closed = True
        self._ending = Lock()  # a thread that the child does not have may hold it
        for rx_queue in self.rx_queues:
            rx_queue.abandon(pid)
        for tx_queue in self.tx_queues:
            tx_queue.abandon(pid)
        for event in self._events.values():
            event.abandon()
        for region in self.regions:
            region.abandon()

    def _say_goodbye(self, reason: MemifError) -> None:
        logger.debug("%s: sending a disconnect: %s", self, reason)
        self._channel.say_goodbye(reason.message)

    def _disconnect_queues(self, reason: Disconnected) -> None:
        with self._ending:  # a queue whose end two threads see at once would count its packets twice
            for rx_queue in self.rx_queues:
                rx_queue._disconnect(reason)
            for tx_queue in self.tx_queues:
                tx_queue._disconnect(reason)

    def _unregister(self) -> None:
        """Unregister, then close. A hook that raises does not keep the others registered."""
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
        if self.interface is not None:
            self.interface._ended(self, reason)
        else:
            self._socket._ended_unclaimed(self, reason)

    def _release(self) -> None:
        self._conversation.close()
        self._drop_incoming_fd()
        with self._ending:
            self._channel.close("answer to a disconnect")  # the peer's own: of our closes it has been told
        for event in self._events.values():
            event.close()
        self.rx_rings.clear()
        self.tx_rings.clear()
        self._socket._forget(self)
        failure: Exception | None = None
        for region in self.regions:
            try:
                region.close()
            except Exception as error:  # an external region's delete callback
                failure = failure or error
        self.regions.clear()
        if failure is not None:
            raise failure

    def __str__(self) -> str:
        peer = f"peer pid {self.credentials.pid}"
        return f"{self.interface or self._socket} ({peer})"


class SlaveConnection(Connection):
    """We connect, and create the memory."""

    def __init__(self, around: Surroundings, channel: Channel, socket: Socket, interface: Interface) -> None:
        config = interface.config
        offer = handshake.SlaveOffer(
            around.app_name,
            config.name,
            config.id,
            config.mode,
            config.secret,
            config.num_s2m_rings,
            config.num_m2s_rings,
            config.log2_ring_size,
        )
        super().__init__(around, channel, socket, handshake.slave(offer))
        self.interface = interface

    def _perform(self, action: Action) -> Result:
        assert isinstance(action, handshake.CreateMemory)
        assert self.interface is not None
        external = self._socket.external_region
        buffer_size = self.interface.config.buffer_size
        layout = plan(
            action.num_s2m_rings,
            action.num_m2s_rings,
            action.log2_ring_size,
            buffer_size,
            separate_buffers=external is not None,
        )
        for index, size in enumerate(layout.region_sizes):
            if index > 0 and external is not None:
                self.regions.append(Region.create_external(index, size, external, self._region_lost))
            else:
                self.regions.append(Region.create(index, size, self._around.allocator, self._region_lost))
        if self.closed:  # by the application's allocator or external region
            return None
        memories = tuple(region.memory for region in self.regions)
        for ring in layout.rings:
            offsets = _buffer_offsets(ring, action.log2_ring_size, layout.stride, external)
            _check_offsets(offsets, buffer_size, len(memories[layout.buffer_region]))
            buffers = SlaveBuffers(layout.buffer_region, buffer_size, offsets)
            sends = ring.direction is Direction.S2M
            name = f"{'tx' if sends else 'rx'} ring {ring.index}"
            memory = RingMemory(memories, ring.region, ring.offset, action.log2_ring_size, name)
            event = SharedEventFd.create(f"eventfd of {name}")
            event.uid = self.credentials.uid
            self._events[RingFd(ring.direction, ring.index)] = event
            if sends:
                self.tx_rings.append((ring, implementation.slave_tx(memory, buffers), event))
            else:
                self.rx_rings.append((ring, implementation.slave_rx(memory, buffers), event))
        return SharedMemory(
            layout.region_sizes,
            [
                AddRing(ring.direction is Direction.S2M, ring.index, ring.region, ring.offset, action.log2_ring_size)
                for ring in layout.rings
            ],
        )


class MasterConnection(Connection):
    """The peer connects, and sends its memory. It is nobody's until its INIT is accepted."""

    def __init__(self, around: Surroundings, channel: Channel, socket: Socket) -> None:
        super().__init__(around, channel, socket, handshake.master(around.app_name))
        self._layouts: list[tuple[RingLayout, int]] = []

    def _perform(self, action: Action) -> Result:
        match action:
            case handshake.Claim(interface_id):
                return self._claim(interface_id)
            case handshake.Bind(interface_id, peer_name):
                self.peer_name = peer_name
                self.interface = self._socket._master(interface_id)
                assert self.interface is not None
                self._socket._claimed(self)
                self.interface._bound(self)
            case handshake.AcceptRegion(index, size):
                trusted = self._around.accept_unsealed or is_trusted(self.credentials.uid)
                region = Region.accept(
                    index,
                    size,
                    self._take_incoming_fd(),
                    trusted=trusted,
                    external=self._socket.external_region,
                    on_loss=self._region_lost,
                )
                self.regions.append(region)
            case handshake.AcceptRing():
                self._accept_ring(action)
            case handshake.Prepare():
                self._make_rings()
        return None

    def _claim(self, interface_id: int) -> MasterTerms | None:
        interface = self._socket._master(interface_id)
        if interface is None:
            if self._socket._slave(interface_id) is None:
                return None
            return MasterTerms(Mode.ETHERNET, b"", "", is_slave=True)
        config = interface.config
        return MasterTerms(config.mode, config.secret, config.name, connected=interface.connection is not None)

    def _accept_ring(self, ring: handshake.AcceptRing) -> None:
        name = f"{ring.direction.value} ring {ring.index}"
        region, size = self.regions[ring.region], ring_bytes(ring.log2_ring_size)
        if ring.offset + size > region.size:
            raise ProtocolError(
                ErrorCode.INVAL_ARG,
                f"{name} of {size} bytes at offset {ring.offset} lies outside region {ring.region} "
                f"of {region.size} bytes",
            )
        if ring.offset % _RING_ALIGNMENT:
            raise ProtocolError(
                ErrorCode.INVAL_ARG,
                f"{name} lies at offset {ring.offset}, which is not a multiple of {_RING_ALIGNMENT}",
            )
        implementation.check_cookie(RingMemory((region.memory,), 0, ring.offset, ring.log2_ring_size, name))
        key = RingFd(ring.direction, ring.index)
        self._events[key] = _accept_eventfd(self._take_incoming_fd(), name)
        self._layouts.append((RingLayout(ring.direction, ring.index, ring.region, ring.offset, 0), ring.log2_ring_size))

    def _make_rings(self) -> None:
        memories = tuple(region.memory for region in self.regions)
        for layout, log2_size in self._layouts:
            receives = layout.direction is Direction.S2M
            name = f"{'rx' if receives else 'tx'} ring {layout.index}"
            memory = RingMemory(memories, layout.region, layout.offset, log2_size, name)
            event = self._events[RingFd(layout.direction, layout.index)]
            if receives:
                self.rx_rings.append((layout, implementation.master_rx(memory), event))
            else:
                self.tx_rings.append((layout, implementation.master_tx(memory), event))


def _buffer_offsets(ring: RingLayout, log2_size: int, stride: int, external: ExternalRegion | None) -> array[int]:
    """The offset of each slot's buffer (docs/protocol.md, Shared memory: in ring order)."""
    if external is not None and external.next_buffer_offset is not None:
        return array("I", [external.next_buffer_offset() for _ in range(1 << log2_size)])
    return array("I", range(ring.first_buffer, ring.first_buffer + (stride << log2_size), stride))


def _check_offsets(offsets: array[int], buffer_size: int, region_size: int) -> None:
    """An application's own offsets: ours always fit."""
    highest = max(offsets)
    if highest + buffer_size > region_size:
        raise MemifError(
            ErrorCode.INVAL_ARG,
            f"next_buffer_offset() gave {highest}: a buffer of {buffer_size} bytes there does not fit into "
            f"the external region of {region_size} bytes",
        )


def _as_error(failure: BaseException) -> MemifError:
    """What ends a connection, as a reason that its peer can be told."""
    if isinstance(failure, MemifError):
        return failure
    error = MemifError(ErrorCode.SYSCALL, f"{type(failure).__name__}: {failure}")
    error.__cause__ = failure
    return error


def _forget_frames(error: BaseException) -> None:
    """For a reason that is kept and not raised: the frames that it comes from had regions at hand, which would stay."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__


def _accept_eventfd(fd: ReceivedFd, name: str) -> EventFd:
    """Return the peer's eventfd as ours. Any other file could block us for ever on a write."""
    if not is_eventfd(fd.fileno()):
        fd.close()
        raise ProtocolError(ErrorCode.NO_INTFD, f"{name} came with an fd that is not an eventfd")
    os.set_blocking(fd.fileno(), False)
    return SharedEventFd(fd.detach(), f"eventfd of {name}", fd.uid)
