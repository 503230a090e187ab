"""The numbers of the wire and of libmemif, and counters."""

from __future__ import annotations

from memifrt.types import BufferFlag, FdEvent, Mode, QueueCounters, Role, RxMode


def test_the_numbers_are_libmemif_s() -> None:
    assert {event.name: int(event) for event in FdEvent} == {"READ": 1, "WRITE": 2, "ERROR": 4, "DEL": 8, "MOD": 16}
    assert [int(role) for role in (Role.MASTER, Role.SLAVE)] == [0, 1]
    assert [int(mode) for mode in (Mode.ETHERNET, Mode.IP, Mode.PUNT_INJECT)] == [0, 1, 2]
    assert [int(mode) for mode in (RxMode.INTERRUPT, RxMode.POLLING)] == [0, 1]
    assert int(BufferFlag.NEXT) == 1


def test_counters_add_up_field_by_field() -> None:
    assert QueueCounters(1, 2, 3, 4, 5) + QueueCounters(10, 20, 30, 40, 50) == QueueCounters(11, 22, 33, 44, 55)
