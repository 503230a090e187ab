"""Forward packets between two ports, in both directions.

Owns when to look for packets, how many to take at once, and the packets that wait for room. If the target of a
direction is full, packets stay in the source, so that a fast sender gets back-pressure.
"""

from __future__ import annotations

import contextlib
import functools
import math
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from memifrt.errors import Disconnected, PollCancelled
from memifrt.ports import forward_threads
from memifrt.ports.drain import INTERVAL, PATIENCE, Drain
from memifrt.ports.forward_threads import ForwardThreads
from memifrt.ports.port import MemifPort, Port
from memifrt.ring import Burst
from memifrt.runtime import Runtime
from memifrt.system.original_functions import let_greenlets_run
from memifrt.system.timerfd import TimerFd

#: Packets (buffers of a memif) in one burst, and bursts in a row from one queue while packets keep coming.
BURST, _TURNS = 256, 16
#: Packets in a burst that is recorded in Python. It is larger because each burst costs more there.
_LONG_BURST = 512
#: Time until we look for room again, because no event says that a peer made room: in seconds while more packets wait in
#: the source, and in milliseconds while none do.
_BACKOFF, _ROOM_MILLISECONDS = 0.0001, 1

#: The most seconds to let the peers take packets before the end.
_DRAIN_LIMIT = 3.0

#: Called with packets, or with a burst, before they are forwarded.
Record = Callable[[Sequence[bytes]], None]
RecordBurst = Callable[[Burst], None]


@dataclass(frozen=True, slots=True)
class Report:
    """The totals of one direction. ``dropped`` packets were received and are neither sent nor waiting."""

    source: str
    target: str
    packets: int
    bytes: int
    dropped: int
    reasons: dict[str, int]
    #: Buffers in the target's ring that its peer had not taken at the end, and packets that still waited for room.
    left: int = 0
    waiting: int = 0
    #: Packets that an impairment changed and did not drop, by kind of change, and the packets that it still delays.
    impaired: dict[str, int] = field(default_factory=dict)
    delayed: int = 0

    def line(self) -> str:
        """Return the report as one line of text."""
        text = f"{self.source} -> {self.target}: {self.packets} packets, {self.bytes} bytes, {self.dropped} dropped"
        if self.reasons:
            text += " (" + ", ".join(f"{count} {reason}" for reason, count in self.reasons.items()) + ")"
        if self.impaired:
            text += ", " + ", ".join(f"{count} {what}" for what, count in self.impaired.items())
        if self.delayed:
            text += f", {self.delayed} still delayed"
        if self.left:
            text += f", {self.left} not taken by the peer"
        if self.waiting:
            text += f", {self.waiting} still waiting for room"
        return text


class Direction:
    """One direction of a bridge.

    :ivar blocked: whether the last step left packets behind because the target was full.
    """

    def __init__(self, source: Port, target: Port) -> None:
        self.source = source
        self.target = target
        self.blocked = False
        self.left = 0
        self._without_peer = 0

    def step(self) -> bool:
        """Forward the packets that are there; return whether there were any."""
        self.blocked = False
        moved = False
        with contextlib.suppress(Disconnected):  # the next event of the control channel reports it
            for qid in range(self.source.queues):
                for _ in range(_TURNS):
                    count = self._turn(qid) if self.target.can_send else self._discard(qid)
                    moved = moved or count > 0
                    if count < BURST // 2:  # the queue is almost empty
                        break
        return moved

    def _turn(self, qid: int) -> int:
        """Forward one burst; return how many packets or buffers it had."""
        raise NotImplementedError

    def _discard(self, qid: int) -> int:
        """Drop packets while the target has no peer: they would be stale by the time it has one."""
        count = self.source.discard(BURST, qid=qid)
        self._without_peer += count
        return count

    def deliver(self) -> bool:
        """Send delayed packets that are due, and take no others; return whether any were sent."""
        return False

    def wake_at(self) -> float:
        """Return when to call :meth:`step` even if no packets come, in seconds of ``time.monotonic()``."""
        return math.inf

    def link_changed(self, up: bool) -> None:
        """Note that the target got a peer, or lost it."""
        self.source.link_changed(up)

    @property
    def _waiting(self) -> int:
        return 0

    @property
    def _added(self) -> int:
        """The number of packets that were not received but added, less those that are not sent yet."""
        return 0

    def close(self) -> None:
        """Release the packets that wait for room."""

    def report(self) -> Report:
        self.source.count_losses()
        sent = self.target.sent
        reasons = {**self.source.unusable, **self.target.refused}
        if self._without_peer:
            reasons["without a peer"] = self._without_peer
        received = self.source.received.packets + sum(self.source.unusable.values())
        waiting = self._waiting
        dropped = max(received + self._added - sent.packets - waiting, 0)
        return Report(
            self.source.name, self.target.name, sent.packets, sent.bytes, dropped, reasons, self.left, waiting
        )


class Forward(Direction):
    """Forwards from memif to memif, in one pass over the ring."""

    source: MemifPort
    target: MemifPort

    def _turn(self, qid: int) -> int:
        rx = self.source.rx(qid)
        sent = self.target.tx(qid).forward(rx, BURST)
        if not sent and rx.pending():
            self.blocked = True
        return sent


class Watch(Forward):
    """Forwards from memif to memif, and records each burst in the source's memory before that."""

    def __init__(self, source: MemifPort, target: MemifPort, record: RecordBurst) -> None:
        super().__init__(source, target)
        self._record = record
        #: By queue: a burst that is recorded, but that the target has not taken completely.
        self._held: dict[int, Burst] = {}

    def _turn(self, qid: int) -> int:
        tx = self.target.tx(qid)
        burst = self._held.get(qid)
        if burst is None:
            room = tx.free()
            burst = self._take(qid, min(room, _LONG_BURST)) if room > 0 else None
            if burst is None:
                self.blocked = room <= 0 and self.source.rx(qid).pending() > 0
                return 0
        sent = tx.forward(burst)
        if len(burst):
            self.blocked = True
        else:
            del self._held[qid]
            burst.close()
        return sent

    def _discard(self, qid: int) -> int:
        burst = self._held.get(qid) or self._take(qid, BURST)
        if burst is None:
            return 0
        del self._held[qid]
        count = sum(1 for _ in burst.packets())
        burst.close()
        self._without_peer += count
        return count

    def _take(self, qid: int, limit: int) -> Burst | None:
        burst = self.source.rx(qid).burst(limit)
        if not len(burst):
            burst.close()
            return None
        self._held[qid] = burst
        self._record(burst)
        return burst

    @property
    def _waiting(self) -> int:
        return sum(1 for burst in self._held.values() for _ in burst.packets())

    def close(self) -> None:
        for burst in self._held.values():
            burst.close()
        self._held.clear()


class Carry(Direction):
    """Forwards between any two ports, as ``bytes``. Packets are recorded before they are sent."""

    def __init__(self, source: Port, target: Port, record: Record | None = None) -> None:
        super().__init__(source, target)
        self._record = record
        #: By source queue: packets that the target did not take.
        self._left: dict[int, Sequence[bytes]] = {}

    def _turn(self, qid: int) -> int:
        target = self.target
        left = self._left.pop(qid, None)
        if left is not None:
            sent = self._send(qid, left)
            if qid in self._left:
                return sent
        room = target.room(qid)
        if room <= 0:
            self.blocked = True
            return 0
        packets = self.source.recv(min(room, BURST), qid=qid)
        if not packets:
            return 0
        if self._record is not None:
            self._record(packets)
        return self._send(qid, packets)

    def _send(self, qid: int, packets: Sequence[bytes]) -> int:
        taken = self.target.send(packets, qid=qid)
        if taken < len(packets):
            self._left[qid] = packets[taken:]
            self.blocked = True
        return taken

    def _discard(self, qid: int) -> int:
        self._left.pop(qid, None)
        if self._record is None:
            return super()._discard(qid)
        packets = self.source.recv(BURST, qid=qid)
        self._record(packets)
        self._without_peer += len(packets)
        return len(packets)

    @property
    def _waiting(self) -> int:
        return sum(map(len, self._left.values()))


def direction(source: Port, target: Port) -> Direction:
    """Return the fastest direction between two ports."""
    if isinstance(source, MemifPort) and isinstance(target, MemifPort):
        return Forward(source, target)
    return Carry(source, target)


class Pump:
    """Runs directions in a loop until the runtime's poll is cancelled.

    Between two memifs, threads forward the packets while both ends have a peer (see :class:`ForwardThreads`).

    :param polling: whether to look at every source all the time, instead of waiting for its events.
    :param on_idle: called when there is nothing to do for now.
    :param patient: whether to let the peers take what was sent, and to deliver delayed packets, before the end.
    """

    def __init__(
        self,
        runtime: Runtime,
        directions: Sequence[Direction],
        *,
        polling: bool = False,
        on_idle: Callable[[], object] | None = None,
        patient: bool = True,
    ) -> None:
        self._directions = directions
        self._runtime = runtime
        self._polling = polling
        self._on_idle = on_idle
        self._patient = patient
        self._moved = False
        self._threads: ForwardThreads | None = None
        #: Whether an end got its peer or lost it since the threads were last started or stopped.
        self._link_changed = True
        for way in directions:
            way.source.on_packets = functools.partial(self._step, way)
            way.target.on_link = functools.partial(self._on_link, way)
            way.link_changed(way.target.can_send)

    def _on_link(self, way: Direction, up: bool) -> None:
        self._link_changed = True
        way.link_changed(up)

    def _step(self, way: Direction) -> None:
        """Step a direction that may have packets, unless a thread does it."""
        if self._threads is not None and self._threads.running:
            return
        self._moved = way.step() or self._moved

    def run(self) -> None:
        """Forward packets until the poll is cancelled, then let the peers take what was sent.

        :raises MemifError: a port is gone.
        """
        plain = [way for way in self._directions if type(way) is Forward]
        with contextlib.ExitStack() as stack:
            if len(plain) == len(self._directions) and forward_threads.are_useful():
                self._threads = ForwardThreads([(way.source, way.target) for way in plain])
                stack.callback(self._threads.close)
            self._timer = stack.enter_context(contextlib.closing(TimerFd()))
            with contextlib.suppress(PollCancelled):
                self._run_until_cancelled()
        if self._patient:
            self._finish()

    def _run_until_cancelled(self) -> None:
        """Let threads forward while they can; else do it here."""
        while True:
            self._link_changed = False
            threads = self._threads
            if threads is not None and threads.can_run:
                for way in self._directions:
                    way.blocked = False
                threads.start()
                self._watch_threads(threads)
                threads.stop()
            elif self._polling:
                self._run_polling()
            else:
                self._run_waiting()

    def _watch_threads(self, threads: ForwardThreads) -> None:
        """Handle the runtime's events beside the threads, until an end loses its peer."""
        poll = select.poll()
        for fd in (self._runtime.fileno(), threads.fileno()):
            poll.register(fd, select.POLLIN)
        while not self._link_changed:
            poll.poll()
            threads.check()
            self._runtime.poll_event(0)

    def _finish(self) -> None:
        """Deliver delayed packets, and give the peers time to take what was sent. A second cancel ends the wait."""
        targets = {way: way.target.interface for way in self._directions if isinstance(way.target, MemifPort)}
        for interface in targets.values():
            interface.on_interrupt = None  # forward nothing more
        end = time.monotonic() + _DRAIN_LIMIT
        drain = Drain(list(targets.values()), _DRAIN_LIMIT)
        with contextlib.suppress(PollCancelled):
            self._deliver_until(end)
            while drain.goes_on():
                self._runtime.poll_event(0)
                time.sleep(INTERVAL)
        for way, interface in targets.items():
            way.left = drain.left(interface)

    def _deliver_until(self, end: float) -> None:
        """Deliver delayed packets until none of them leaves before ``end``, or no peer makes room."""
        for way in self._directions:
            way.blocked = False
        moved_at = time.monotonic()
        while (now := time.monotonic()) < end:
            for way in self._directions:
                if way.deliver():
                    moved_at = now
            waits_for_room = any(way.blocked for way in self._directions) and now < moved_at + PATIENCE
            if not waits_for_room and all(way.wake_at() >= end for way in self._directions):
                return
            self._runtime.poll_event(0)
            time.sleep(INTERVAL)

    def close(self) -> None:
        """Release the packets that wait for room. Call it after the last report, and before the runtime is closed."""
        for way in self._directions:
            way.close()

    def _run_waiting(self) -> None:
        control = self._runtime.fileno()
        ways = {way.source.fileno(): way for way in self._directions if way.source.fileno() >= 0}
        poll = select.poll()
        timer = self._timer
        for fd in (control, timer.fileno(), *ways):
            poll.register(fd, select.POLLIN)
        while not self._can_change():
            self._moved = False
            wake_at = min(way.wake_at() for way in self._directions)
            if wake_at < math.inf:
                timer.arm(wake_at)
            else:
                timer.disarm()
            stuck = [way for way in self._directions if way.blocked]
            ready = poll.poll(_ROOM_MILLISECONDS if stuck else 0 if self._on_idle else None)
            if not ready and self._on_idle:
                self._on_idle()
                if not stuck:
                    ready = poll.poll()
            for way in stuck:  # no further event of the source may come
                self._step(way)
            for fd, _ in ready:
                if fd == control:
                    self._runtime.poll_event(0)  # its callbacks call _step
                elif fd == timer.fileno():
                    timer.drain()
                    for way in self._directions:
                        if way.wake_at() <= time.monotonic():
                            self._step(way)
                else:
                    self._step(ways[fd])
            self._back_off()

    def _run_polling(self) -> None:
        while not self._can_change():
            self._moved = False
            for way in self._directions:
                self._step(way)
            self._runtime.poll_event(0)
            let_greenlets_run()
            if not self._moved and self._on_idle:
                self._on_idle()
            self._back_off()

    def _back_off(self) -> None:
        """Sleep if nothing moves: packets that wait for room keep their source readable, and the loop would spin."""
        if not self._moved and any(way.blocked for way in self._directions):
            time.sleep(_BACKOFF)

    def _can_change(self) -> bool:
        """Return whether threads can take over, because both ends have a peer now."""
        if not self._link_changed:
            return False
        self._link_changed = False
        return self._threads is not None and self._threads.can_run
