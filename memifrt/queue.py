"""What users send and receive with: one ring, its eventfd, and the peer behind them.

Owns when the eventfd is read and written, and turns what the peer did to a ring into the end of the connection. Knows
nothing of descriptors, messages or loops.

A queue belongs to one thread at a time; different queues may be used in different threads.
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

#: Buffers in a burst when the caller names no number (VPP's and DPDK's habit: a vector of 256).
DEFAULT_BURST = 256
_MASK_INT = 1


def check_packets(packets: Iterable[ReadableBuffer]) -> Iterable[ReadableBuffer]:
    """Return ``packets``, unless it is one packet, or nothing to iterate over.

    :raises PacketTypeError: it is.
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
    """A ring and its eventfd. After the disconnect every operation raises :class:`Disconnected`."""

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
        #: In a forked child: the process to which the queue belongs.
        self._owner: int | None = None
        self._earlier = earlier
        self._interrupts = 0
        # Beside what the connection does: somebody may hold a queue of an earlier connection, or a burst of its ring.
        pid = os.getpid()
        call_after_fork(self, functools.partial(_abandon, pid=pid))
        call_after_fork(ring, functools.partial(_abandon, pid=pid))

    @property
    def connected(self) -> bool:
        return self._ring is not None

    @property
    def counters(self) -> QueueCounters:
        """What this queue did since its interface was created, over all connections.

        :raises ForkedError: in a forked child, to which the queue does not belong.
        """
        ring = self._ring
        if ring is None and self._owner is not None:
            raise self._disconnected()
        now = self._earlier if ring is None else self._earlier + ring.counters
        return now + QueueCounters(interrupts=self._interrupts)

    def fileno(self) -> int:
        """The queue's eventfd, for an application that polls it itself. It stays open until ``on_disconnect`` has
        returned.

        :raises Disconnected: the connection is gone.
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
        """A new exception each time: several threads may raise it."""
        if self._owner is not None:
            return ForkedError(self._owner, "queue")
        reason = self._reason
        if reason is None:
            return Disconnected(f"queue {self.qid} is not connected")
        error = Disconnected(reason.message, established=reason.established)
        error.__cause__ = reason.__cause__
        return error

    def _fail(self, violation: RingViolation) -> MemifError:
        violated = self._violated  # once: another thread may take it away
        if violated is not None:
            violated(violation)
        # Not the exception that is kept as the reason: its frames would keep the peer's memory with it.
        return self._disconnected()

    def disconnect(self, reason: Disconnected) -> None:
        """Let every operation raise from now on. Called by the connection when it ends."""
        ring = self._ring
        if ring is not None:
            self._earlier += ring.counters
            self._reason = reason
            self._ring = None
            self._violated = None

    def abandon(self, pid: int) -> None:
        """In a forked child: end the queue and its bursts, and tell nobody. ``pid`` is the parent's."""
        ring, self._ring = self._ring, None
        self._owner = pid
        self._violated = None
        if ring is not None:
            ring.abandon(pid)


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
        #: The last packets taken left others behind, and the eventfd readable. Always False in polling mode.
        self.more = False
        self._check_caller = check_caller
        #: Adaptive mode has masked the peer's interrupts.
        self._masked = False
        #: :meth:`drain` has read the eventfd since packets were last taken.
        self.drained = False
        #: Called when the mode changes, to wake callers that wait for an interrupt: a queue that polls gets none.
        self.on_mode_change: Callable[[], object] | None = None

    def disconnect(self, reason: Disconnected) -> None:
        """Let every operation raise from now on, and wake callers that wait for the eventfd."""
        was_connected = self.connected
        super().disconnect(reason)
        if was_connected:
            self._event.notify()

    @property
    def rx_mode(self) -> RxMode:
        """How this queue learns of packets."""
        return self._mode

    @property
    def mode(self) -> RxMode:
        """Return :attr:`rx_mode`, of which this is the old name."""
        warn_renamed("RxQueue.mode", "RxQueue.rx_mode")
        return self._mode

    def set_mode(self, mode: RxMode | RxModeName) -> None:
        """Call :meth:`set_rx_mode`, of which this is the old name."""
        warn_renamed("RxQueue.set_mode()", "RxQueue.set_rx_mode()")
        self.set_rx_mode(mode)

    def set_rx_mode(self, rx_mode: RxMode | RxModeName) -> None:
        """Choose between interrupts and polling: tells the peer whether to kick. Belongs to the control thread.

        :param rx_mode: ``"interrupt"``, ``"polling"`` or ``"adaptive"``, as for ``create_interface``.
        :raises ConfigError: it is none of them; or the runtime's fds are in a loop that runs in another thread.
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
        """Make the eventfd unreadable without taking a packet; whether it was readable. For who is told of kicks and
        remembers to look at the ring: until the next kick, nothing but :meth:`pending` or taking packets tells of those
        that wait."""
        if self._owner is not None:
            raise self._disconnected()
        drained = self._event.drain()
        self._interrupts += drained
        self.drained = True
        if self._ring is None:
            self._event.notify()  # what was read may be the disconnect's: who waits must not miss it
        return drained

    def pending(self) -> int:
        """Buffers that wait in the ring.

        :raises Disconnected: there is no peer (any more).
        """
        ring = self._ring or self._live()
        try:
            return ring.pending()
        except RingViolation as error:
            raise self._fail(error) from error

    def burst(self, limit: int = DEFAULT_BURST, *, split: bool = False) -> Burst:
        """Take up to ``limit`` buffers as memoryviews into shared memory; to be used as ``with queue.burst() as
        burst``: leaving the block gives the buffers back to the peer and ends their views.

        Only whole packets are taken (unless ``split``): one of more than ``limit`` buffers is taken whole.

        :raises Disconnected: there is no peer (any more).
        """
        ring = self._ring or self._live()
        return self._receive(ring, limit, ring.burst, limit, split)

    def recv(self, limit: int = DEFAULT_BURST) -> list[bytes]:
        """Take the packets of up to ``limit`` buffers, copied, each chain joined into one ``bytes``.

        A buffer has at most 64 KiB, and a packet at most 16 MiB: a peer that claims more is disconnected.

        :raises Disconnected: there is no peer (any more).
        """
        ring = self._ring or self._live()
        return self._receive(ring, limit, ring.recv, limit)

    def recv_into(self, matrix: ReadableBuffer, lengths: ReadableBuffer) -> int:
        """Copy packets into the rows of ``matrix``, a writable 2-D buffer of bytes (a NumPy array of uint8, or any
        other), one row for each; the number of packets. Their lengths go into ``lengths``, a writable 1-D buffer of
        whole numbers of 2, 4 or 8 bytes.

        Takes at most as many buffers as there are rows. A packet longer than a row is cut; its length is not.

        :raises ConfigError: a buffer has not this shape.
        :raises Disconnected: there is no peer (any more).
        """
        ring, sizes = self._live(), memoryview(lengths)
        return self._receive(ring, sizes.nbytes // sizes.itemsize, ring.recv_into, matrix, lengths)

    def refill(self, count: int | None = None, headroom: int = 0) -> int:
        """Give up to ``count`` (None: all) taken buffers back, oldest first; the number given.

        Bursts that end by their block need no refill. A slave posts the buffers with ``headroom`` bytes free in
        front of the data.

        :raises Disconnected: there is no peer (any more).
        """
        return self._live().refill(count, headroom)

    def _receive(self, ring: RxRing, limit: int, take: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Take packets from our ring, with the eventfd read in the order that loses no wake-up.

        First the eventfd is read, then the index (docs/memory-order.md, The eventfd and the index). If packets stay
        behind, the fd is left readable.
        """
        try:
            if self.polling:
                return take(*args, **kwargs)
            if self.drained:  # before the index is read, as it must be: a kick since then is a spurious wake-up later
                self.drained = False
            elif not (self.more and ring.pending() > limit):
                self._interrupts += self._event.drain()
                if self._ring is None:
                    self._event.notify()  # what was read may be the disconnect's: who waits must not miss it
            try:
                taken = take(*args, **kwargs)
            except BaseException:
                self._event.notify()  # what was not taken is still to be found: its kick has been read
                raise
            self.more = ring.more
            if self.more:
                self._stay_readable(ring)
            elif self._masked:
                self._unmask(ring)
        except BaseException as error:
            if isinstance(error, RingViolation) and not error.sending:
                raise self._fail(error) from error
            # A bad argument, or a relay's other ring, whose queue knows its own connection: nothing was taken, and the
            # eventfd that told of it may have been read.
            if not self.polling:
                self._event.notify()
            raise
        return taken

    def _stay_readable(self, ring: RxRing) -> None:
        self._event.notify()  # even if we left it so before: an application may read it too
        if self._mode is RxMode.ADAPTIVE and not self._masked:
            ring.set_mask(True)  # we come back without being told
            self._masked = True

    def _unmask(self, ring: RxRing) -> None:
        """Ask for interrupts again, in adaptive mode, when the ring has been drained.

        The peer has not kicked for packets that came while the mask was set: look again (docs/memory-order.md, The kick
        and the mask).
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
        """:param watch: called when a send may have left packets that need another kick, on the sender's thread."""
        super().__init__(qid, ring, event, earlier, violated)
        self._chained = chained
        self._watch = watch
        self._watched = False
        self._repeated_kicks = 0

    @property
    def counters(self) -> QueueCounters:
        return super().counters + QueueCounters(repeated_kicks=self._repeated_kicks)

    def free(self) -> int:
        """Buffers that could be allocated now.

        :raises Disconnected: there is no peer (any more).
        """
        ring = self._live()
        try:
            return ring.free()
        except RingViolation as error:
            raise self._fail(error) from error

    def in_flight(self) -> int:
        """Buffers that the peer has not given back: at most so many of what was sent are still to be taken. A zero-copy
        slave gives them back 32 at a time, and one that has just connected may not have offered any yet.

        :raises Disconnected: there is no peer (any more).
        """
        return self._live().in_flight

    def send(self, packets: Iterable[ReadableBuffer]) -> int:
        """Copy packets to the peer; the number taken: fewer than given if the ring is full.

        A packet longer than a buffer is sent as a chain, unless the interface was created with ``chained_tx=False``.
        Of an iterator one packet more than the number returned may have been consumed.

        :raises ConfigError: a packet is empty or too long; nothing was sent.
        :raises PacketTypeError: ``packets`` is one packet instead of several, or one of them is no buffer of bytes;
            nothing was sent. It is a ConfigError and a TypeError.
        :raises Disconnected: there is no peer (any more).
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
        """Copy packets from the rows of a 2-D buffer of bytes, row ``i`` up to ``lengths[i]``, to the peer; the
        number taken: fewer than there are if the ring is full. The buffers' shapes are those of
        :meth:`RxQueue.recv_into`.

        :raises ConfigError: a buffer has not this shape; a length is 0 or larger than a row; nothing was sent.
        :raises Disconnected: there is no peer (any more).
        """
        ring = self._live()
        try:
            sent = ring.send_from(matrix, lengths, chain=self._chained)
        except RingViolation as error:
            raise self._fail(error) from error
        return self._kicked(ring, sent)

    def forward(self, source: Burst | RxQueue, limit: int = DEFAULT_BURST) -> int:
        """Send the packets of a received burst that are not sent yet, or of up to ``limit`` buffers straight from a
        receive queue; the number of buffers sent.

        Between the queues of one slave this swaps buffers, without a copy; elsewhere it copies. Chains stay chains.
        What does not fit stays in the burst, where a second call goes on with it, or in the queue, which then stays
        readable.

        :raises Disconnected: there is no peer (any more).
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
        """Room for up to ``count`` packets of ``size`` bytes (None: a whole buffer each), to be filled in place and
        sent with :meth:`transmit`; fewer if the ring is full. A size above the buffer's gives chains.

        Closing the burst gives back what was not transmitted.

        :raises ConfigError: a packet of ``size`` does not fit into the whole ring, or into a buffer and chains are
            switched off.
        :raises Disconnected: there is no peer (any more).
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
        """Swap buffers of a received burst into this ring, ready for :meth:`transmit`; slaves only.

        :raises ConfigError: for a master, or a burst of another interface.
        :raises Disconnected: there is no peer (any more).
        """
        ring = self._live()
        try:
            return ring.enqueue(burst, first, len(burst) - first if count is None else count)
        except RingViolation as error:
            raise self._fail(error) from error

    def transmit(self, burst: Burst, count: int | None = None) -> int:
        """Send the next ``count`` (None: all) buffers of an allocated burst; the number sent.

        :raises ConfigError: the burst is not the oldest allocated one.
        :raises Disconnected: there is no peer (any more).
        """
        ring = self._live()
        return self._kicked(ring, ring.transmit(burst, count))

    def rewind(self, burst: Burst, index: int) -> None:
        """The next allocation starts at this buffer of an allocated burst again.

        :raises ConfigError: the buffer is not one that is allocated and not sent.
        :raises Disconnected: there is no peer (any more).
        """
        self._live().rewind(burst, index)

    def _kicked(self, ring: TxRing, sent: int) -> int:
        """One kick for what was published, unless the peer has masked its interrupts."""
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
        # Any peer takes one packet for a kick. What was sent without one is at risk if the peer just stops polling.
        if not self._watched and ring.in_flight > (not masked):
            self._watched = True
            self._watch(self)
        return sent

    # --- what the runtime's timer asks of it, on the control thread --------------------------------------------

    def glance(self) -> Glance | None:
        """Look at the ring; None without a connection."""
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
        """Kick the peer, and count it in ``counters.repeated_kicks``."""
        self._event.notify()
        self._repeated_kicks += 1

    def stop_watching(self) -> None:
        """Have the next send that leaves packets watched again."""
        self._watched = False
