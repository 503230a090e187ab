"""``Burst.pack_into``: records of whole packets from where they lie, the same from both implementations."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from memifrt import ConfigError
from memifrt.ring import RingImplementation
from tests.lib.rings import IMPLEMENTATIONS, Ends, Lane, name_of

STAMP = b"stamp"
PACKETS = [b"a", b"b" * 64, b"c" * 150, b"d" * 17]  # 6 buffers of 64 bytes


@pytest.fixture(params=IMPLEMENTATIONS, ids=name_of)
def implementation(request: pytest.FixtureRequest) -> RingImplementation:
    chosen: RingImplementation = request.param
    return chosen


@pytest.fixture(params=["slave", "master"])
def lane(request: pytest.FixtureRequest, implementation: RingImplementation) -> Lane:
    return Ends(implementation).lane(request.param)


def record(packet: bytes, limit: int = 1000) -> bytes:
    kept = packet[:limit]
    return STAMP + len(kept).to_bytes(4, "little") + len(packet).to_bytes(4, "little") + kept


def records(packets: Sequence[bytes], limit: int = 1000) -> bytes:
    return b"".join(record(packet, limit) for packet in packets)


@pytest.mark.parametrize("limit", [1000, 65, 64, 1, 0])
def test_packets_lie_one_behind_the_other(lane: Lane, limit: int) -> None:
    lane.tx.send(PACKETS)
    target = bytearray(1000)
    with lane.rx.burst(8) as burst:
        assert burst.pack_into(target, STAMP, limit) == (6, len(records(PACKETS, limit)))
        assert bytes(burst[0]) == b"a"  # they are still there
    assert target.startswith(records(PACKETS, limit))
    assert not any(target[len(records(PACKETS, limit)) :])


@pytest.mark.parametrize(("whole", "at"), [(0, 0), (1, 1), (2, 2), (3, 5)])
@pytest.mark.parametrize("short", [1, 10])
def test_what_has_no_room_is_packed_by_a_later_call(lane: Lane, whole: int, at: int, short: int) -> None:
    lane.tx.send(PACKETS)
    size = len(records(PACKETS[:whole]))
    first, second = bytearray(len(records(PACKETS[: whole + 1])) - short), bytearray(1000)
    with lane.rx.burst(8) as burst:
        assert burst.pack_into(first, STAMP, 1000) == (at, size)
        used = burst.pack_into(second, STAMP, 1000, at)[1]
    assert first[:size] + second[:used] == records(PACKETS)
    assert not any(first[size:])


def test_packets_that_have_been_sent_are_skipped(implementation: RingImplementation) -> None:
    here, there = Ends(implementation), Ends(implementation, log2_size=1)
    here.lane("slave").tx.send(PACKETS)
    target = bytearray(1000)
    with here.lane("slave").rx.burst(8) as burst:
        there.lane("slave").tx.forward(burst)
        assert burst.sent == 2
        assert burst.pack_into(target, STAMP, 1000) == (4, len(records(PACKETS[2:])))
    assert target.startswith(records(PACKETS[2:]))


def test_an_empty_burst_packs_nothing(lane: Lane) -> None:
    with lane.rx.burst(8) as burst:
        assert burst.pack_into(bytearray(), STAMP, 1000) == (0, 0)


def test_a_burst_that_has_ended_packs_nothing_any_more(lane: Lane) -> None:
    lane.tx.send(PACKETS)
    with lane.rx.burst(8) as burst:
        pass
    with pytest.raises(ValueError, match="has ended"):
        burst.pack_into(bytearray(1000), STAMP, 1000)


def test_a_target_that_cannot_be_written_is_refused(lane: Lane) -> None:
    lane.tx.send(PACKETS)
    with lane.rx.burst(8) as burst:
        for target in (bytes(1000), memoryview(bytearray(1000))[::2]):
            with pytest.raises(ConfigError, match="the target cannot be written in place"):
                burst.pack_into(target, STAMP, 1000)
