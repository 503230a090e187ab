"""Packets from port to port, both ways, for as long as it takes.

Owns when to look, how much to take at once, and what waits for room. A direction leaves in its source what its target
has no room for: who sends too fast feels it there.
"""

from __future__ import annotations

import contextlib
import functools
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memifrt.errors import Disconnected, PollCancelled
from memifrt.ports.drain import INTERVAL, Drain
from memifrt.ports.port import MemifPort, Port
from memifrt.ring import Burst
from memifrt.runtime import Runtime

#: Packets (buffers of a memif) at once, and how often in a row while they keep coming.
_BURST, _TURNS = 256, 16
#: Where a burst has to be made and recorded in Python, more at once spares more.
_LONG_BURST = 512
#: Time until we look for room again, for nothing interrupts when a peer makes some: seconds while more packets wait in
#: the source, and milliseconds while none do.
_BACKOFF, _ROOM_MILLISECONDS = 0.0001, 1

#: Seconds for which the peers may go on taking what was sent to them before the end.
_DRAIN_LIMIT = 3.0

#: Told of packets before they go on; or of a burst of them, where they lie.
Record = Callable[[Sequence[bytes]], None]
RecordBurst = Callable[[Burst], None]


@dataclass(frozen=True, slots=True)
class Report:
    """What went one way. ``dropped`` were received, and neither sent nor are they waiting."""

    source: str
    target: str
    packets: int
    bytes: int
    dropped: int
    reasons: dict[str, int]
    #: Buffers in the target's ring that its peer had not taken at the end, and packets that waited for room there.
    left: int = 0
    waiting: int = 0

    def line(self) -> str:
        """For people."""
        text = f"{self.source} -> {self.target}: {self.packets} packets, {self.bytes} bytes, {self.dropped} dropped"
        if self.reasons:
            text += " (" + ", ".join(f"{count} {reason}" for reason, count in self.reasons.items()) + ")"
        if self.left:
            text += f", {self.left} not taken by the peer"
        if self.waiting:
            text += f", {self.waiting} still waiting for room"
        return text


class Direction:
    """One way through a bridge.

    :ivar blocked: the last step left packets behind for want of room.
    """

    def __init__(self, source: Port, target: Port) -> None:
        self.source = source
        self.target = target
        self.blocked = False
        self.left = 0
        self._without_peer = 0

    def step(self) -> bool:
        """Move what is there; whether anything was."""
        self.blocked = False
        moved = False
        with contextlib.suppress(Disconnected):  # the next event of the control channel tells
            for qid in range(self.source.queues):
                for _ in range(_TURNS):
                    count = self._turn(qid) if self.target.can_send else self._discard(qid)
                    moved = moved or count > 0
                    if count < _BURST // 2:  # little: more would have to come first
                        break
        return moved

    def _turn(self, qid: int) -> int:
        """Move one burst; how many packets, or buffers."""
        raise NotImplementedError

    def _discard(self, qid: int) -> int:
        """There is nobody to send to. What piles up in the source would be stale when somebody comes."""
        count = self.source.discard(_BURST, qid=qid)
        self._without_peer += count
        return count

    @property
    def _waiting(self) -> int:
        return 0

    def close(self) -> None:
        """Let go of what waits."""

    def report(self) -> Report:
        self.source.count_losses()
        sent = self.target.sent
        reasons = {**self.source.unusable, **self.target.refused}
        if self._without_peer:
            reasons["without a peer"] = self._without_peer
        received = self.source.received.packets + sum(self.source.unusable.values())
        waiting = self._waiting
        dropped = max(received - sent.packets - waiting, 0)
        return Report(
            self.source.name, self.target.name, sent.packets, sent.bytes, dropped, reasons, self.left, waiting
        )


class Forward(Direction):
    """From memif to memif, in one pass over the ring."""

    source: MemifPort
    target: MemifPort

    def _turn(self, qid: int) -> int:
        rx = self.source.rx(qid)
        sent = self.target.tx(qid).forward(rx, _BURST)
        if not sent and rx.pending():
            self.blocked = True
        return sent


class Watch(Forward):
    """From memif to memif; a burst is recorded where it lies in the source's memory before it goes on."""

    def __init__(self, source: MemifPort, target: MemifPort, record: RecordBurst) -> None:
        super().__init__(source, target)
        self._record = record
        #: Bursts that have been recorded, and that the target did not take whole, by their queue.
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
        if burst.done < len(burst):
            self.blocked = True
        else:
            del self._held[qid]
            burst.close()
        return sent

    def _discard(self, qid: int) -> int:
        burst = self._held.get(qid) or self._take(qid, _BURST)
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
    """From any port to any other, as ``bytes``; what is ``record``ed goes on afterwards."""

    def __init__(self, source: Port, target: Port, record: Record | None = None) -> None:
        super().__init__(source, target)
        self._record = record
        #: What the target did not take, by the queue that it came from.
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
        packets = self.source.recv(min(room, _BURST), qid=qid)
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
        packets = self.source.recv(_BURST, qid=qid)
        self._record(packets)
        self._without_peer += len(packets)
        return len(packets)

    @property
    def _waiting(self) -> int:
        return sum(map(len, self._left.values()))


def direction(source: Port, target: Port) -> Direction:
    """The shortest way between two ports."""
    if isinstance(source, MemifPort) and isinstance(target, MemifPort):
        return Forward(source, target)
    return Carry(source, target)


class Pump:
    """Directions, and the loop that keeps them going until the runtime's poll is cancelled.

    :param polling: look at every source all the time, instead of when it tells of packets.
    :param on_idle: called when nothing is left to be done for now.
    """

    def __init__(
        self,
        runtime: Runtime,
        directions: Sequence[Direction],
        *,
        polling: bool = False,
        on_idle: Callable[[], object] | None = None,
    ) -> None:
        self._directions = directions
        self._runtime = runtime
        self._polling = polling
        self._on_idle = on_idle
        self._moved = False
        for way in directions:
            way.source.on_packets = functools.partial(self._step, way)
            way.target.on_link = way.source.link_changed
            way.source.link_changed(way.target.can_send)

    def _step(self, way: Direction) -> None:
        """There may be packets for this direction."""
        self._moved = way.step() or self._moved

    def run(self) -> None:
        """Move packets until the poll is cancelled.

        :raises MemifError: a port is gone.
        """
        with contextlib.suppress(PollCancelled):
            if self._polling:
                self._run_polling()
            else:
                self._run_waiting()
        self._drain()

    def _drain(self) -> None:
        """Let the peers take what has been sent to them, for a while; a second cancel ends this."""
        targets = {way: way.target.interface for way in self._directions if isinstance(way.target, MemifPort)}
        for interface in targets.values():
            interface.on_interrupt = None  # nothing new is moved
        drain = Drain(list(targets.values()), _DRAIN_LIMIT)
        with contextlib.suppress(PollCancelled):
            while drain.goes_on():
                self._runtime.poll_event(0)
                time.sleep(INTERVAL)
        for way, interface in targets.items():
            way.left = drain.left(interface)

    def close(self) -> None:
        """Let go of what waits: before the runtime is closed, after the last report."""
        for way in self._directions:
            way.close()

    def _run_waiting(self) -> None:
        control = self._runtime.fileno()
        ways = {way.source.fileno(): way for way in self._directions if way.source.fileno() >= 0}
        poll = select.poll()
        for fd in (control, *ways):
            poll.register(fd, select.POLLIN)
        while True:
            self._moved = False
            stuck = [way for way in self._directions if way.blocked]
            ready = poll.poll(_ROOM_MILLISECONDS if stuck else 0 if self._on_idle else None)
            if not ready and self._on_idle:
                self._on_idle()
                if not stuck:
                    ready = poll.poll()
            for way in stuck:  # its source may have nothing more to tell of
                self._step(way)
            for fd, _ in ready:
                if fd == control:
                    self._runtime.poll_event(0)  # its callbacks step
                else:
                    self._step(ways[fd])
            self._back_off()

    def _run_polling(self) -> None:
        while True:
            self._moved = False
            for way in self._directions:
                self._step(way)
            self._runtime.poll_event(0)
            if not self._moved and self._on_idle:
                self._on_idle()
            self._back_off()

    def _back_off(self) -> None:
        """What waits for room keeps its source readable: to look again at once would only burn the core."""
        if not self._moved and any(way.blocked for way in self._directions):
            time.sleep(_BACKOFF)
