"""Kick a peer again until it has taken the packets that it left in a ring.

Owns when a transmit queue is checked after a send, and when its peer is kicked again. Knows nothing of rings.

A peer may take a limited number of packets for one kick and then not look again (VPP in interrupt and adaptive mode:
256). The rest waits for the next kick, which never comes if the sender has nothing more to send. So the runtime's timer
checks the ring shortly after a send that may have left packets, and kicks while packets remain. A peer that keeps up
costs the sender no system call: a single packet has its own kick, and a send to a watched queue only reads a flag.
"""

from __future__ import annotations

from typing import Protocol

from memifrt.poll.schedule import Schedule
from memifrt.ring.protocol import Glance

#: Seconds from a send to the first check, and from a kick that helped to the next check.
FIRST_PAUSE = 0.001
#: Longest time in seconds between two checks while the application goes on sending: each send kicks by itself.
BUSY_PAUSE = 0.008
#: Longest time in seconds between two kicks of a peer that does not react. The pause doubles up to this.
LONGEST_PAUSE = 1.0
#: Kicks that such a slave must have read, with no change of the ring, before its buffers in flight count as used.
_NOTICED_KICKS = 8


class WatchedQueue(Protocol):
    """The methods of a transmit queue that this module calls, on the control thread."""

    def glance(self) -> Glance | None:
        """Return the state of the ring; None without a connection."""

    def kick_again(self) -> None:
        """Kick the peer, and count the kick."""

    def stop_watching(self) -> None:
        """Note that the watch has ended. Only sends after this call start a new watch."""


class LeftoverWatch:
    """Checks the transmit queues of one runtime for packets that peers have left."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def begin(self, queue: WatchedQueue) -> None:
        """Check a queue from now on, until its peer has taken everything. May be called from any thread."""
        self._schedule.post(FIRST_PAUSE, lambda: self._look(_Watch(queue)))

    def _look(self, watch: _Watch) -> None:
        pause = watch.look()
        if pause:
            self._schedule.after(pause, lambda: self._look(watch))


class _Watch:
    """The watch of one queue, from a send that may have left packets until none is left."""

    def __init__(self, queue: WatchedQueue) -> None:
        self._queue = queue
        self._last: Glance | None = None
        self._pause = FIRST_PAUSE
        self._kicks_in_vain = 0

    def look(self) -> float:
        """Check the queue once, and kick if packets remain.

        :returns: seconds until the next check; 0 for no more checks.
        """
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
        elif now.left and self._kick_if_useful(now, now.taken != last.taken):
            return self._pause
        self._queue.stop_watching()
        # A send before that line saw a watched queue and started no watch of its own: go on for it.
        again = self._queue.glance()
        return FIRST_PAUSE if again is not None and again.sent != now.sent else 0.0

    def _kick_if_useful(self, now: Glance, moved: bool) -> bool:
        """Kick the peer if that can help. Called when nothing was sent since the last check and buffers are left.

        :param moved: whether the peer has taken packets since the last check.
        :returns: whether to go on checking.
        """
        if moved:
            self._pause, self._kicks_in_vain = FIRST_PAUSE, 0
        else:
            if now.masked and self._pause >= LONGEST_PAUSE:
                return False  # a kick does not help: the peer polls, and takes nothing
            if not now.is_certain and self._kicks_in_vain >= _NOTICED_KICKS:
                return False
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self._kicks_in_vain += now.noticed and not now.masked
        if not now.masked:
            self._queue.kick_again()
        return True
