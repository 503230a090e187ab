"""Packets that a peer has left in a ring: kick it again until it takes them.

Owns when a transmit queue is looked at after a send, and when its peer is kicked again. Knows nothing of rings.

A peer may take only so many packets for one kick and then not look again (VPP in interrupt and adaptive mode: 256).
What is left waits for the next kick, and a sender that has nothing more to send would never give it. So the control
thread looks at the ring a moment after a send that may have left something, from the runtime's timer, and kicks while
packets stay. A peer that keeps up costs a sender no system call: a lone packet is covered by its own kick, and while a
busy queue is watched its sends only read a flag.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from memifrt.poll.schedule import Schedule

#: Seconds from a send to the first look, and from a kick that has helped to the next one.
FIRST_PAUSE = 0.001
#: Seconds between two looks while packets go on being sent: each send kicks by itself.
BUSY_PAUSE = 0.008
#: Seconds between two kicks of a peer that does not react. The pause doubles up to this.
LONGEST_PAUSE = 1.0
#: A zero-copy slave offers used buffers again in batches of this many (VPP, DPDK), so fewer say nothing about packets.
BATCH = 32
#: Kicks that such a slave must have noticed, without a change, before what it has not offered again counts as taken.
_NOTICED_KICKS = 8


@dataclass(frozen=True, slots=True)
class Glance:
    """A transmit ring at one moment.

    :ivar sent: our index, which each send moves; ``taken`` is the peer's.
    :ivar left: buffers that the peer has not given back.
    :ivar is_certain: whether ``left`` are packets, and not just buffers that the peer keeps.
    :ivar masked: the peer asks for no interrupts.
    :ivar noticed: the peer has read our last kick.
    """

    sent: int
    taken: int
    left: int
    is_certain: bool
    masked: bool
    noticed: bool


class WatchedQueue(Protocol):
    """A transmit queue, as far as this module uses it. The methods are called on the control thread."""

    def glance(self) -> Glance | None:
        """Look at the ring; None without a connection."""

    def kick_again(self) -> None:
        """Kick the peer, and count it."""

    def stop_watching(self) -> None:
        """Watch again from the next send on. A send that sees the flag before this call goes unwatched."""


class LeftoverWatch:
    """The queues of one runtime that are looked at."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def begin(self, queue: WatchedQueue) -> None:
        """Look at a queue from now on until its peer has taken everything. May be called from any thread."""
        self._schedule.post(FIRST_PAUSE, lambda: self._look(_Watch(queue)))

    def _look(self, watch: _Watch) -> None:
        pause = watch.look()
        if pause:
            self._schedule.after(pause, lambda: self._look(watch))


class _Watch:
    """One queue, from a send that may have left something until nothing is left."""

    def __init__(self, queue: WatchedQueue) -> None:
        self._queue = queue
        self._last: Glance | None = None
        self._pause = FIRST_PAUSE
        self._kicks_in_vain = 0

    def look(self) -> float:
        """Look once, and kick if packets stay; seconds until the next look, 0 for none."""
        now = self._queue.glance()
        if now is None:
            return 0.0
        last, self._last = self._last, now
        if last is None:
            if now.left:
                return self._pause
        elif now.sent != last.sent:
            self._pause = min(2 * self._pause, BUSY_PAUSE)
            return self._pause
        elif now.left and self._goes_on(now, now.taken != last.taken):
            return self._pause
        self._queue.stop_watching()
        # A send in between saw that the queue was watched.
        again = self._queue.glance()
        return FIRST_PAUSE if again is not None and again.sent != now.sent else 0.0

    def _goes_on(self, now: Glance, moved: bool) -> bool:
        """Nothing was sent since the last look, and packets are there."""
        if moved:
            self._pause, self._kicks_in_vain = FIRST_PAUSE, 0
        else:
            if now.masked and self._pause >= LONGEST_PAUSE:
                return False  # a peer that polls and takes nothing needs no kick
            if not now.is_certain and self._kicks_in_vain >= _NOTICED_KICKS:
                return False
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self._kicks_in_vain += now.noticed and not now.masked
        if not now.masked:
            self._queue.kick_again()
        return True
