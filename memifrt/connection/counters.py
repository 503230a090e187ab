"""What the queues of an interface counted, added up over its connections.

Owns the counters of queues whose connection has ended. Knows nothing of rings, peers or roles.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from memifrt.types import QueueCounters


class CountingQueue(Protocol):
    """A queue, as far as this module uses it."""

    @property
    def qid(self) -> int: ...
    @property
    def counters(self) -> QueueCounters: ...


class CounterTotals:
    """The counters of all queues in one direction of an interface, by queue number.

    A queue starts with what its number counted in earlier connections, so its own counters are its total.
    """

    def __init__(self) -> None:
        self._ended: dict[int, QueueCounters] = {}

    def before(self, qid: int) -> QueueCounters:
        """Return what the queue counted in connections that have ended."""
        return self._ended.get(qid, QueueCounters())

    def keep(self, queues: Iterable[CountingQueue]) -> None:
        """Remember the totals of queues whose connection ends."""
        self._ended.update((queue.qid, queue.counters) for queue in queues)

    def total(self, queues: Iterable[CountingQueue]) -> QueueCounters:
        """Return the sum over all queues.

        :param queues: those of the present connection. Queues that only earlier connections had are included.
        """
        counted = {**self._ended, **{queue.qid: queue.counters for queue in queues}}
        return sum(counted.values(), QueueCounters())
