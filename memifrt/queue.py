"""Receive and transmit queues: a ring with its eventfd, with which applications send and receive.

Owns the order in which the eventfd and the ring are read and written, and ends the connection if the peer has broken
the ring. Knows nothing of descriptors, messages or loops.

Only one thread may use a queue at a time. Different threads may use different queues.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from memifrt.errors import (
    ConfigError,
    Disconnected,
    ErrorCode,
    ForkedError,
    MemifError,
    PacketTypeError,
    RingViolation,
    os_error,
)
from memifrt.options import RxModeName, parse_rx_mode
from memifrt.rekick import BATCH, Glance
from memifrt.renamed import warn_renamed
from memifrt.ring import Burst, RxRing, TxRing
from memifrt.system.fds import EventFd
from memifrt.system.forks import call_after_fork
from memifrt.types import QueueCounters, RxMode

if TYPE_CHECKING:
    from memifrt.types import ReadableBuffer

_R = TypeVar("_R", RxRing, TxRing)
_T = TypeVar("_T")
_P = ParamSpec("_P")

#: Default limit of a burst in buffers. VPP and DPDK, too, use vectors of 256.
DEFAULT_BURST = 256
_MASK_INT = 1


def check_packets(packets: Iterable[ReadableBuffer]) -> Iterable[ReadableBuffer]:
    """Return ``packets``.

    :raises PacketTypeError: it is a single packet, or is not iterable.
    """
    given: object = packets
    if isinstance(given, bytes | bytearray | memoryview):
        raise PacketTypeError(
            f"send() takes a list of packets, not one packet ({type(given).__name__}): send([packet])"
        )
    if isinstance(given, str) or not (hasattr(given, "__iter__") or hasattr(given, "__getitem__")):
        raise PacketTypeError(f"send() takes a list of packets, each of them bytes; this is {given!r}")
    return packets


def _abandon(thing: _Queue[Any] | RxRing | TxRing, pid: int) -> None:
    thing.abandon(pid)


class _Queue(Generic[_R]):
    """A ring and its eventfd. After a disconnect every operation raises :class:`Disconnected`."""

    def __init__(
        self,
        qid: int,
        ring: _R,
        event: EventFd,
        earlier: QueueCounters,
        violated: Callable[[RingViolation], Disconnected],
    ) -> None:
        self.qid = qid
        #: Number of slots of the ring.
        self.ring_size = ring.size
        self._ring: _R | None = ring
        self._event = event
        self._violated: Callable[[RingViolation], Disconnected] | None = violated
        self._reason: Disconnected | None = None
        #: In a forked child: the id of the parent, which owns the queue.
        self._owner: int | None = None
        self._earlier = earlier
        self._interrupts = 0
        # Each by itself: the application may hold a queue of an earlier connection, or a burst of its ring.
        pid = os.getpid()
        call_after_fork(self, functools.partial(_abandon, pid=pid))
        call_after_fork(ring, functools.partial(_abandon, pid=pid))

    @property
    def connected(self) -> bool:
        """Whether the connection of this queue exists. Once False, it stays False."""
        return self._ring is not None

    @property
    def counters(self) -> QueueCounters:
        """The counters of this queue since its interface was created, over all connections.

        :raises ForkedError: in a forked child, which does not own the queue.
        """
        ring = self._ring
        if ring is None and self._owner is not None:
            raise self._disconnected()
        now = self._earlier if ring is None else self._earlier + ring.counters
        return now + QueueCounters(interrupts=self._interrupts)

    def fileno(self) -> int:
        """Return the queue's eventfd, for an application that polls it. It stays open until ``on_disconnect`` returns.

        :raises Disconnected: the connection has ended.
        """
        fd = self._event.fileno()
        if fd < 0 or self._owner is not None:
            raise self._disconnected()
        return fd

    def _live(self) -> _R:
        ring = self._ring
        if ring is None:
            raise self._disconnected()
        return ring

    def _disconnected(self) -> MemifError:
        """Return a new exception. Several threads may raise it, so they must not share one."""
        if self._owner is not None:
            return ForkedError(self._owner, "queue")
        reason = self._reason
        if reason is None:
            return Disconnected(f"queue {self.qid} is not connected")
        error = Disconnected(reason.message, established=reason.established)
        error.__cause__ = reason.__cause__
        return error

    def _fail(self, violation: RingViolation) -> MemifError:
        """End the connection because the peer broke the ring. Return the exception to raise."""
        violated = self._violated  # read once: another thread may set it to None
        if violated is not None:
            violated(violation)
        # A new exception: the frames of the one that is kept as the reason would keep the peer's memory mapped.
        return self._disconnected()

    def disconnect(self, reason: Disconnected) -> None:
        """Make every operation raise from now on. Called by the connection when it ends."""
        ring = self._ring
        if ring is not None:
            self._earlier += ring.counters
            self._reason = reason
            self._ring = None
            self._violated = None

    def abandon(self, pid: int) -> None:
        """End the queue in a forked child, without telling the peer. ``pid`` is the parent's."""
        self._ring = None
        self._owner = pid
        self._violated = None


class RxQueue(_Queue[RxRing]):
    """A receive queue."""

    def __init__(
        self,
        qid: int,
        ring: RxRing,
        event: EventFd,
        earlier: QueueCounters,
        violated: Callable[[RingViolation], Disconnected],
        mode: RxMode,
        mode_changed: Callable[[RxQueue], None],
        check_caller: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__(qid, ring, event, earlier, violated)
        self._mode = mode
        #: Whether the mode is polling: an attribute, because every receiving call asks.
        self.polling = mode is RxMode.POLLING
        self._mode_changed = mode_changed
        #: Whether packets remained in the ring when the last ones were taken; then the eventfd was left readable.
        #: Always False in polling mode.
        self.more = False
        self._check_caller = check_caller
        #: Whether adaptive mode has masked the peer's interrupts.
        self._masked = False
        #: Whether :meth:`drain` has read the eventfd since packets were last taken.
        self.drained = False
        #: Called when the mode changes, to wake callers blocked on an interrupt: a queue in polling mode gets none.
        self.on_mode_change: Callable[[], object] | None = None

    def disconnect(self, reason: Disconnected) -> None:
        """Make every operation raise from now on, and wake callers that wait for the eventfd."""
        was_connected = self.connected
        super().disconnect(reason)
        if was_connected:
            self._event.notify()

    @property
    def rx_mode(self) -> RxMode:
        """How the application learns that this queue has packets."""
        return self._mode

    @property
    def mode(self) -> RxMode:
        """Return :attr:`rx_mode`. This is the old name."""
        warn_renamed("RxQueue.mode", "RxQueue.rx_mode")
        return self._mode

    def set_mode(self, mode: RxMode | RxModeName) -> None:
        """Call :meth:`set_rx_mode`. This is the old name."""
        warn_renamed("RxQueue.set_mode()", "RxQueue.set_rx_mode()")
        self.set_rx_mode(mode)

    def set_rx_mode(self, rx_mode: RxMode | RxModeName) -> None:
        """Choose between interrupts and polling, and tell the peer whether to kick. Call it on the control thread.

        :param rx_mode: ``"interrupt"``, ``"polling"`` or ``"adaptive"``, as for ``create_interface``.
        :raises ConfigError: it is none of them, or the runtime's fds are in a loop that runs in another thread.
        :raises Disconnected: there is no peer.
        """
        wanted = parse_rx_mode(rx_mode)
        ring = self._live()
        self._check_caller()
        self._mode = wanted
        self.polling = wanted is RxMode.POLLING
        self._masked = False
        ring.set_mask(wanted is RxMode.POLLING)
        if wanted is not RxMode.POLLING:
            # The peer may have seen the mask when it published: look again (docs/memory-order.md, The kick and the
            # mask).
            self._event.notify()
        self._mode_changed(self)
        if self.on_mode_change is not None:
            self.on_mode_change()

    def drain(self) -> bool:
        """Make the eventfd unreadable without taking a packet.

        The caller must remember to look at the ring: until the next kick, only :meth:`pending` and the receiving calls
        show the packets that wait.

        :returns: whether the eventfd was readable.
        :raises ForkedError: in a forked child, which does not own the queue.
        """
        if self._owner is not None:
            raise self._disconnected()
        drained = self._event.drain()
        self._interrupts += drained
        self.drained = True
        if self._ring is None:
            self._event.notify()  # the kick that was read may be the disconnect's: waiting callers must not miss it
        return drained

    def is_readable(self) -> bool:
        """Return whether the eventfd is readable: a kick has come that nobody has read."""
        return self._event.is_readable()

    def pending(self) -> int:
        """Return the number of buffers that wait in the ring.

        :raises Disconnected: the interface has no peer.
        """
        ring = self._ring or self._live()
        try:
            return ring.pending()
        except RingViolation as error:
            raise self._fail(error) from error

    def burst(self, limit: int = DEFAULT_BURST, *, split: bool = False) -> Burst:
        """Take up to ``limit`` buffers, without a copy, as memoryviews into shared memory.

        Use it as ``with queue.burst() as burst``: the end of the block gives the buffers back to the peer and ends the
        views. Only whole packets are taken; a packet of more than ``limit`` buffers is taken whole.

        :param split: also take a part of a packet, so that ``limit`` is exact.
        :raises Disconnected: the interface has no peer.
        """
        ring = self._ring or self._live()
        return self._receive(ring, limit, ring.burst, limit, split)

    def recv(self, limit: int = DEFAULT_BURST) -> list[bytes]:
        """Take the packets of up to ``limit`` buffers, and return a copy of each.

        The buffers of a chain are joined. A buffer has at most 64 KiB and a packet at most 16 MiB; a peer that claims
        more is disconnected.

        :raises Disconnected: the interface has no peer.
        """
        ring = self._ring or self._live()
        return self._receive(ring, limit, ring.recv, limit)

    def recv_into(self, matrix: ReadableBuffer, lengths: ReadableBuffer) -> int:
        """Copy packets into the rows of a matrix, one packet for each row.

        Takes at most as many buffers as there are rows. A packet longer than a row is cut, but its full length is
        stored.

        :param matrix: a writable 2-D buffer of bytes, such as a NumPy array of uint8.
        :param lengths: a writable 1-D buffer of integers of 2, 4 or 8 bytes, one for each row. It receives the length
            of each packet in bytes.
        :returns: the number of packets.
        :raises ConfigError: a buffer does not have this shape.
        :raises Disconnected: the interface has no peer.
        """
        ring, sizes = self._live(), memoryview(lengths)
        return self._receive(ring, sizes.nbytes // sizes.itemsize, ring.recv_into, matrix, lengths)

    def refill(self, count: int | None = None, headroom: int = 0) -> int:
        """Give taken buffers back to the peer, the oldest first.

        A burst that was used in a ``with`` block has given its buffers back already.

        :param count: at most this many buffers; None: all.
        :param headroom: bytes that a slave leaves free in front of the data.
        :returns: the number of buffers given back.
        :raises Disconnected: the interface has no peer.
        """
        return self._live().refill(count, headroom)

    def _receive(self, ring: RxRing, limit: int, take: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Take packets with ``take``, in the order that loses no wake-up.

        The eventfd is read first, then the ring's index (docs/memory-order.md, The eventfd and the index). If packets
        remain, the eventfd is left readable.
        """
        try:
            if self.polling:
                return take(*args, **kwargs)
            if self.drained:  # drain() has read the eventfd. A kick since then is only a spurious wake-up later.
                self.drained = False
            elif not (self.more and ring.pending() > limit):
                self._interrupts += self._event.drain()
                if self._ring is None:
                    self._event.notify()  # the kick that was read may be the disconnect's: callers must not miss it
            try:
                taken = take(*args, **kwargs)
            except BaseException:
                self._event.notify()  # the packets are still in the ring, but their kick has been read
                raise
            self.more = ring.more
            if self.more:
                self._stay_readable(ring)
            elif self._masked:
                self._unmask(ring)
        except BaseException as error:
            if isinstance(error, RingViolation) and not error.sending:
                raise self._fail(error) from error
            # A bad argument, or a violation on the transmit ring of a relay, which its own queue handles. No packet was
            # taken, but its kick may have been read.
            if not self.polling:
                self._event.notify()
            raise
        return taken

    def _stay_readable(self, ring: RxRing) -> None:
        self._event.notify()  # even if it was left readable before: the application may have read it
        if self._mode is RxMode.ADAPTIVE and not self._masked:
            ring.set_mask(True)  # the readable eventfd brings us back without a kick
            self._masked = True

    def _unmask(self, ring: RxRing) -> None:
        """Ask for interrupts again when the ring is empty, in adaptive mode.

        The peer did not kick for packets that came while the mask was set, so the ring must be read once more
        (docs/memory-order.md, The kick and the mask).
        """
        ring.set_mask(False)
        self._masked = False
        self._event.notify()


class TxQueue(_Queue[TxRing]):
    """A transmit queue."""

    def __init__(
        self,
        qid: int,
        ring: TxRing,
        event: EventFd,
        earlier: QueueCounters,
        violated: Callable[[RingViolation], Disconnected],
        chained: bool,
        watch: Callable[[TxQueue], object],
    ) -> None:
        """Create a queue.

        :param chained: whether a packet longer than a buffer is sent as a chain.
        :param watch: called on the sender's thread when a send may have left packets that need another kick.
        """
        super().__init__(qid, ring, event, earlier, violated)
        self._chained = chained
        self._watch = watch
        self._watched = False
        self._repeated_kicks = 0

    @property
    def counters(self) -> QueueCounters:
        """The counters of this queue since its interface was created, over all connections.

        :raises ForkedError: in a forked child, which does not own the queue.
        """
        return super().counters + QueueCounters(repeated_kicks=self._repeated_kicks)

    def free(self) -> int:
        """Return the number of buffers that could be allocated now.

        :raises Disconnected: the interface has no peer.
        """
        ring = self._live()
        try:
            return ring.free()
        except RingViolation as error:
            raise self._fail(error) from error

    def in_flight(self) -> int:
        """Return the number of buffers that the peer has not given back.

        At most this many sent buffers wait to be received. The number may be too high: a zero-copy slave gives buffers
        back in batches of 32, and a slave that has just connected may not have posted any yet.

        :raises Disconnected: the interface has no peer.
        """
        return self._live().in_flight

    def send(self, packets: Iterable[ReadableBuffer]) -> int:
        """Copy packets to the peer.

        A packet longer than a buffer is sent as a chain, unless the interface was created with ``chained_tx=False``.
        An iterator may have been advanced by one packet more than the number returned.

        :returns: the number of packets sent: fewer than given if the ring is full.
        :raises ConfigError: a packet is empty or too long; nothing was sent.
        :raises PacketTypeError: ``packets`` is a single packet, or one of the packets is not a buffer of bytes; nothing
            was sent. It is a ConfigError and a TypeError.
        :raises Disconnected: the interface has no peer.
        """
        ring = self._live()
        try:
            sent = ring.send(packets, chain=self._chained)
        except RingViolation as error:
            raise self._fail(error) from error
        except TypeError:
            check_packets(packets)
            raise
        if not sent:
            check_packets(packets)
        return self._kicked(ring, sent)

    def send_from(self, matrix: ReadableBuffer, lengths: ReadableBuffer) -> int:
        """Copy packets from the rows of a matrix to the peer.

        The buffers have the shapes that :meth:`RxQueue.recv_into` describes.

        :param lengths: the length in bytes of the packet in each row.
        :returns: the number of packets sent: fewer than there are if the ring is full.
        :raises ConfigError: a buffer does not have this shape, or a length is 0 or larger than a row; nothing was sent.
        :raises Disconnected: the interface has no peer.
        """
        ring = self._live()
        try:
            sent = ring.send_from(matrix, lengths, chain=self._chained)
        except RingViolation as error:
            raise self._fail(error) from error
        return self._kicked(ring, sent)

    def forward(self, source: Burst | RxQueue, limit: int = DEFAULT_BURST) -> int:
        """Send received packets on: the rest of a burst, or up to ``limit`` buffers straight from a receive queue.

        Between the queues of one slave, buffers are swapped without a copy; otherwise packets are copied. Chains stay
        chains. If the ring is full, the other packets stay in the burst, for a second call, or in the receive queue,
        which then stays readable.

        :param source: a received burst, or a receive queue.
        :returns: the number of buffers sent.
        :raises Disconnected: the interface has no peer.
        """
        ring = self._live()
        try:
            if isinstance(source, RxQueue):
                received = source._live()
                sent = source._receive(received, limit, ring.relay, received, limit)
            else:
                sent = ring.forward(source)
        except RingViolation as error:
            raise self._fail(error) from error
        return self._kicked(ring, sent)

    def alloc(self, count: int, size: int | None = None) -> Burst:
        """Allocate buffers to fill in place and send with :meth:`transmit`.

        Closing the burst gives back the buffers that were not transmitted.

        :param count: the number of packets; fewer are allocated if the ring is full.
        :param size: the size of each packet in bytes; None: one whole buffer. A larger size gives chains.
        :raises ConfigError: a packet of ``size`` bytes does not fit into the whole ring, or needs a chain while chains
            are switched off.
        :raises Disconnected: the interface has no peer.
        """
        ring = self._live()
        if size is not None and not self._chained and size > ring.capacity > 0:
            raise ConfigError(
                f"a packet of {size} bytes does not fit into a buffer of {ring.capacity}, and chains are switched off"
            )
        try:
            return ring.alloc(count, size)
        except RingViolation as error:
            raise self._fail(error) from error

    def enqueue(self, burst: Burst, first: int = 0, count: int | None = None) -> Burst:
        """Swap buffers of a received burst into this ring, ready for :meth:`transmit`. Slaves only.

        :param first: index of the first buffer.
        :param count: number of buffers; None: all from ``first`` on.
        :raises ConfigError: the interface is a master, or the burst belongs to another interface.
        :raises Disconnected: the interface has no peer.
        """
        ring = self._live()
        try:
            return ring.enqueue(burst, first, len(burst) - first if count is None else count)
        except RingViolation as error:
            raise self._fail(error) from error

    def transmit(self, burst: Burst, count: int | None = None) -> int:
        """Send the next buffers of an allocated burst.

        :param count: number of buffers; None: all.
        :returns: the number of buffers sent.
        :raises ConfigError: the burst is not the oldest allocated one.
        :raises Disconnected: the interface has no peer.
        """
        ring = self._live()
        return self._kicked(ring, ring.transmit(burst, count))

    def rewind(self, burst: Burst, index: int) -> None:
        """Give back the buffers of an allocated burst from ``index`` on, and those of every burst allocated after it.

        :raises ConfigError: the buffer is not allocated, or it is already sent.
        :raises Disconnected: the interface has no peer.
        """
        self._live().rewind(burst, index)

    def _kicked(self, ring: TxRing, sent: int) -> int:
        """Kick once for the published packets, unless the peer has masked its interrupts. Return ``sent``."""
        if not sent:
            return sent
        masked = ring.flags & _MASK_INT
        if not masked:
            try:
                self._event.notify()
            except OSError as error:
                what = f"tx ring {self.qid}: {sent} packets are published, but the peer could not be interrupted"
                raise os_error(what, error, code=ErrorCode.INT_WRITE) from error
            self._interrupts += 1
        # Every peer takes one packet for a kick. Packets sent without a kick are at risk if the peer stops polling now.
        if not self._watched and ring.in_flight > (not masked):
            self._watched = True
            self._watch(self)
        return sent

    # --- called by the runtime's timer, on the control thread ---------------------------------------------------

    def glance(self) -> Glance | None:
        """Return the state of the ring; None without a connection."""
        ring = self._ring
        if ring is None:
            return None
        left, ours, theirs = ring.in_flight, ring.head, ring.tail
        if not ring.capacity:  # a master's: it moves the tail
            ours, theirs = theirs, ours
        is_certain = ring.capacity > 0 or left >= BATCH
        masked = bool(ring.flags & _MASK_INT)
        return Glance(ours, theirs, left, is_certain, masked, bool(left) and not self._event.is_readable())

    def kick_again(self) -> None:
        """Kick the peer, and count the kick in ``counters.repeated_kicks``."""
        self._event.notify()
        self._repeated_kicks += 1

    def stop_watching(self) -> None:
        """Clear the flag, so that the next send that leaves packets starts a new watch."""
        self._watched = False
