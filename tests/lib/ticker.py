"""How late something is that wants to run every 5 ms, told apart from how busy the machine is.

A thread that the kernel does not run is late whatever it does. So what counts is the time between two beats without
what the thread has waited for a CPU, as the kernel tells.
"""

from __future__ import annotations

import time

#: Seconds: a ticker's period, and by how much no beat may be late.
BEAT, LATE = 0.005, 0.05
#: Runs of which one must be clean: a neighbour on the same host can hold us up in ways that our kernel does not see.
ATTEMPTS = 4


def waited_for_cpu() -> float:
    """Seconds that this thread was ready to run and did not."""
    with open("/proc/thread-self/schedstat") as file:
        return int(file.read().split()[1]) / 1e9


def hold_up() -> None:
    """Keep this thread busy for longer than a beat may be late. It does not sleep: work is surely no wait for a CPU."""
    end = time.thread_time() + 3 * LATE
    while time.thread_time() < end:
        pass


class Beats:
    """What a ticker notes after each of its beats."""

    def __init__(self) -> None:
        self.count = 0
        #: Seconds: the latest beat; and the longest that the machine kept us waiting between two.
        self.worst = 0.0
        self.stalled = 0.0
        #: When the last one was.
        self.last = time.monotonic()
        self._waited = waited_for_cpu()

    def beat(self) -> None:
        now, waited = time.monotonic(), waited_for_cpu()
        stalled = waited - self._waited
        self.worst = max(self.worst, now - self.last - BEAT - stalled)
        self.stalled = max(self.stalled, stalled)
        self.last, self._waited = now, waited
        self.count += 1
