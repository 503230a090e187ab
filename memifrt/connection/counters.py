"""The counters of an interface's queues, summed over its connections.

Owns the counters of queues of ended connections. Knows nothing of rings, peers or roles.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from memifrt.types import QueueCounters


class CountingQueue(Protocol):
    """The attributes of a queue that this module uses."""

    @property
    def qid(self) -> int: ...
    @property
    def counters(self) -> QueueCounters: ...


class CounterTotals:
    """The counters of all queues of an interface in one direction, by queue number.

    A new queue starts with the counters that its number had at the end of the last connection. So the counters of a
    queue are always its total.
    """

    def __init__(self) -> None:
        self._ended: dict[int, QueueCounters] = {}

    def before(self, qid: int) -> QueueCounters:
        """Return the counters of the queue in connections that have ended."""
        return self._ended.get(qid, QueueCounters())

    def keep(self, queues: Iterable[CountingQueue]) -> None:
        """Remember the totals of queues when their connection ends."""
        self._ended.update((queue.qid, queue.counters) for queue in queues)

    def total(self, queues: Iterable[CountingQueue]) -> QueueCounters:
        """Return the sum over all queues.

        :param queues: the queues of the present connection. Those of earlier connections are added.
        """
        counted = {**self._ended, **{queue.qid: queue.counters for queue in queues}}
        return sum(counted.values(), QueueCounters())
