"""The queues in Python, to read. The compiled ones (``ring/_native_queue.pxi``) do the same with the same names.

They own the order in which the eventfd and the ring are read and written, and end the connection if the peer has broken
the ring. They know nothing of descriptors, messages or loops.
"""

from __future__ import annotations

import functools
import os
import select
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

from memifrt.errors import (
    ConfigError,
    Disconnected,
    ErrorCode,
    ForkedError,
    MemifError,
    RingViolation,
    check_packets,
    os_error,
)
from memifrt.options import RxModeName, Stop, check_limit, parse_budget, parse_rx_mode, parse_stop
from memifrt.queue import contract
from memifrt.renamed import warn_renamed
from memifrt.ring.protocol import BATCH, Burst, Glance, RxRing, TxRing
from memifrt.system.fds import EventFd
from memifrt.system.forks import call_after_fork
from memifrt.system.original_functions import poll
from memifrt.types import DEFAULT_BURST, QueueCounters, RxMode

if TYPE_CHECKING:
    from memifrt.types import ReadableBuffer

_R = TypeVar("_R", RxRing, TxRing)
_T = TypeVar("_T")
_P = ParamSpec("_P")

_MASK_INT = 1
#: Milliseconds after which ``forward_from`` looks at what may end it.
_LONGEST_SLEEP = 10


def _abandon(thing: _Queue[Any] | RxRing | TxRing, pid: int) -> None:
    thing.abandon(pid)


class _Queue(contract.Queue, Generic[_R]):
    """See :class:`memifrt.queue.contract.Queue`."""

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
        #: Whether ``forward_from`` runs, and no other call may use the queue.
        self.looping = False
        # Each by itself: the application may hold a queue of an earlier connection, or a burst of its ring.
        pid = os.getpid()
        call_after_fork(self, functools.partial(_abandon, pid=pid))
        call_after_fork(ring, functools.partial(_abandon, pid=pid))

    @property
    def connected(self) -> bool:
        return self._ring is not None

    @property
    def counters(self) -> QueueCounters:
        ring = self._ring
        if ring is None and self._owner is not None:
            raise self._disconnected()
        now = self._earlier if ring is None else self._earlier + ring.counters
        return now + QueueCounters(interrupts=self._interrupts)

    def fileno(self) -> int:
        fd = self._event.fileno()
        if fd < 0 or self._owner is not None:
            raise self._disconnected()
        return fd

    def live(self) -> _R:
        if self.looping:
            raise ConfigError(f"queue {self.qid} is in use: forward_from() runs in another thread, or called this one")
        return self.connected_ring()

    def connected_ring(self) -> _R:
        """Return the ring, also to ``forward_from``."""
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
        ring = self._ring
        if ring is not None:
            self._earlier += ring.counters
            self._reason = reason
            self._ring = None
            self._violated = None

    def abandon(self, pid: int) -> None:
        self._ring = None
        self.looping = False
        self._owner = pid
        self._violated = None


class RxQueue(_Queue[RxRing], contract.RxQueue):
    """See :class:`memifrt.RxQueue`."""

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
        was_connected = self.connected
        super().disconnect(reason)
        if was_connected:
            self._event.notify()

    @property
    def rx_mode(self) -> RxMode:
        return self._mode

    @property
    def mode(self) -> RxMode:
        warn_renamed("RxQueue.mode", "RxQueue.rx_mode")
        return self._mode

    def set_mode(self, mode: RxMode | RxModeName) -> None:
        warn_renamed("RxQueue.set_mode()", "RxQueue.set_rx_mode()")
        self.set_rx_mode(mode)

    def set_rx_mode(self, rx_mode: RxMode | RxModeName) -> None:
        wanted = parse_rx_mode(rx_mode)
        ring = self.live()
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
        if self._owner is not None:
            raise self._disconnected()
        if self.looping:
            self.live()
        drained = self._event.drain()
        self._interrupts += drained
        self.drained = True
        if self._ring is None:
            self._event.notify()  # the kick that was read may be the disconnect's: waiting callers must not miss it
        return drained

    def is_readable(self) -> bool:
        return self._event.is_readable()

    def pending(self) -> int:
        ring = self.live()
        try:
            return ring.pending()
        except RingViolation as error:
            raise self._fail(error) from error

    def burst(self, limit: int = DEFAULT_BURST, *, split: bool = False) -> Burst:
        ring = self.live()
        return self.receive(ring, limit, ring.burst, limit, split)

    def recv(self, limit: int = DEFAULT_BURST) -> list[bytes]:
        ring = self.live()
        return self.receive(ring, limit, ring.recv, limit)

    def recv_into(self, matrix: ReadableBuffer, lengths: ReadableBuffer) -> int:
        ring, sizes = self.live(), memoryview(lengths)
        return self.receive(ring, sizes.nbytes // sizes.itemsize, ring.recv_into, matrix, lengths)

    def refill(self, count: int | None = None, headroom: int = 0) -> int:
        return self.live().refill(count, headroom)

    def receive(self, ring: RxRing, limit: int, take: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
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


class TxQueue(_Queue[TxRing], contract.TxQueue):
    """See :class:`memifrt.TxQueue`."""

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
        return super().counters + QueueCounters(repeated_kicks=self._repeated_kicks)

    def free(self) -> int:
        ring = self.live()
        try:
            return ring.free()
        except RingViolation as error:
            raise self._fail(error) from error

    def in_flight(self) -> int:
        return self.live().in_flight

    def send(self, packets: Iterable[ReadableBuffer]) -> int:
        ring = self.live()
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
        ring = self.live()
        try:
            sent = ring.send_from(matrix, lengths, chain=self._chained)
        except RingViolation as error:
            raise self._fail(error) from error
        return self._kicked(ring, sent)

    def forward(self, source: Burst | contract.RxQueue, limit: int = DEFAULT_BURST) -> int:
        ring = self.live()
        if isinstance(source, RxQueue):
            return self._relay(ring, source, source.live(), limit)
        try:
            sent = ring.forward(cast(Burst, source))  # another implementation's queue is refused there
        except RingViolation as error:
            raise self._fail(error) from error
        return self._kicked(ring, sent)

    def _relay(self, ring: TxRing, source: RxQueue, received: RxRing, limit: int) -> int:
        try:
            sent = source.receive(received, limit, ring.relay, received, limit)
        except RingViolation as error:
            raise self._fail(error) from error
        return self._kicked(ring, sent)

    def forward_from(
        self,
        source: contract.RxQueue,
        *,
        until: Stop | None = None,
        packets: int | None = None,
        timeout: float | None = None,
        limit: int = DEFAULT_BURST,
    ) -> int:
        ring = self.live()
        if not isinstance(source, RxQueue):
            raise ConfigError(f"{source!r} is not a receive queue of this implementation")
        stop_fd, flag = parse_stop(until)
        budget, time_left = parse_budget(packets, timeout)
        check_limit(limit)
        end = time.monotonic() + time_left
        stop, work = poll(), poll()
        if stop_fd >= 0:
            stop.register(stop_fd, select.POLLIN)
            work.register(stop_fd, select.POLLIN)
        work.register(source.fileno(), select.POLLIN)
        # While the arguments were read, another thread may have begun a loop, taken a burst, or ended the connection.
        ring = self.live()
        if source.live().is_held or ring.is_held:
            raise ConfigError("buffers of the queues are held: their bursts must end, or be transmitted, first")
        before = ring.counters.packets
        self.looping = source.looping = True
        try:
            while True:
                sent = ring.counters.packets - before
                over = (flag is not None and flag[0]) or (stop_fd >= 0 and stop.poll(0))
                if over or sent == budget or (timeout is not None and time.monotonic() >= end):
                    return sent
                most = limit if budget < 0 else min(limit, budget - sent)
                received = source.connected_ring()
                if not self._relay(self.connected_ring(), source, received, most) and not source.polling:
                    # Packets that wait for room keep the eventfd readable.
                    (stop if source.more else work).poll(1 if source.more else _LONGEST_SLEEP)
        finally:
            self.looping = source.looping = False

    def alloc(self, count: int, size: int | None = None) -> Burst:
        ring = self.live()
        if size is not None and not self._chained and size > ring.capacity > 0:
            raise ConfigError(
                f"a packet of {size} bytes does not fit into a buffer of {ring.capacity}, and chains are switched off"
            )
        try:
            return ring.alloc(count, size)
        except RingViolation as error:
            raise self._fail(error) from error

    def enqueue(self, burst: Burst, first: int = 0, count: int | None = None) -> Burst:
        ring = self.live()
        try:
            return ring.enqueue(burst, first, len(burst) - first if count is None else count)
        except RingViolation as error:
            raise self._fail(error) from error

    def transmit(self, burst: Burst, count: int | None = None) -> int:
        ring = self.live()
        return self._kicked(ring, ring.transmit(burst, count))

    def rewind(self, burst: Burst, index: int) -> None:
        self.live().rewind(burst, index)

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
        self._event.notify()
        self._repeated_kicks += 1

    def stop_watching(self) -> None:
        self._watched = False
