"""Counters of an interface: added up by queue number over its connections."""

from __future__ import annotations

from dataclasses import dataclass, field

from memifrt.connection.counters import CounterTotals
from memifrt.types import QueueCounters


@dataclass
class Queue:
    qid: int
    counters: QueueCounters = field(default_factory=QueueCounters)


def counted(packets: int) -> QueueCounters:
    return QueueCounters(packets=packets)


def test_a_queue_that_never_was_counts_nothing() -> None:
    assert CounterTotals().before(0) == QueueCounters()
    assert CounterTotals().total([]) == QueueCounters()


def test_a_queue_goes_on_from_its_number_s_earlier_connections() -> None:
    totals = CounterTotals()
    totals.keep([Queue(0, counted(3)), Queue(1, counted(5))])
    assert totals.before(1) == counted(5)
    assert totals.before(2) == QueueCounters()
    totals.keep([Queue(1, counted(9))])
    assert [totals.before(qid) for qid in (0, 1)] == [counted(3), counted(9)]


def test_the_total_includes_queues_that_the_present_peer_does_not_have() -> None:
    totals = CounterTotals()
    totals.keep([Queue(0, counted(3)), Queue(1, counted(5))])
    assert totals.total([Queue(0, counted(4))]) == counted(9)
    assert totals.total([]) == counted(8)
