"""Every method of the rings' Protocol, for slave and master, sending and receiving, on every implementation."""

from __future__ import annotations

import itertools
import pickle
import struct
import sys
from array import array
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from memifrt import ConfigError, ErrorCode
from memifrt.errors import RingViolation
from memifrt.ring import Burst, RingImplementation, RingMemory, load
from memifrt.types import COOKIE, BufferFlag, QueueCounters
from tests.lib.rings import IMPLEMENTATIONS, NEXT, Ends, Lane, fill, name_of, pass_packets

if TYPE_CHECKING:
    from memifrt.types import ReadableBuffer

MakeEnds = Callable[..., Ends]


@pytest.fixture(scope="session", params=IMPLEMENTATIONS, ids=name_of)
def implementation(request: pytest.FixtureRequest) -> RingImplementation:
    chosen: RingImplementation = request.param
    return chosen


@pytest.fixture
def make_ends(implementation: RingImplementation) -> Iterator[MakeEnds]:
    """``make_ends(**options)``: connected ends, whose canaries and buffers are checked afterwards."""
    made = []

    def make(**options: Any) -> Ends:
        made.append(Ends(implementation, **options))
        return made[-1]

    yield make
    for ends in made:
        ends.check_canaries()
        ends.check_each_buffer_is_in_one_slot()


@pytest.fixture
def ends(make_ends: MakeEnds) -> Ends:
    """Rings of 8 buffers of 64 bytes, one each way, the slave's buffers posted."""
    return make_ends()


@pytest.fixture(params=["slave", "master"])
def sender(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def lane(ends: Ends, sender: str) -> Lane:
    return ends.lane(sender)


def held(view: memoryview) -> pickle.PickleBuffer:
    """Something that exports a view, so that it cannot be released."""
    return pickle.PickleBuffer(view)


def contents(burst: Burst) -> list[bytes]:
    return [bytes(packet) for packet in burst.packets()]


# --- a ring as it is made -------------------------------------------------------------------------------------------


def test_slave_writes_cookie_and_clears_indices(ends: Ends) -> None:
    for lane in ends.lanes:
        assert lane.raw.cookie == COOKIE
        assert (lane.raw.flags, lane.raw.tail) == (0, 0)
    assert (ends.s2m.raw.head, ends.m2s.raw.head) == (0, 8)


def test_master_starts_from_zero_whatever_it_finds(ends: Ends, implementation: RingImplementation) -> None:
    for make, lane in ((implementation.master_rx, ends.s2m), (implementation.master_tx, ends.m2s)):
        lane.raw.head, lane.raw.tail, lane.raw.flags = 7, 5, 1
        ring = make(RingMemory(ends.map(), 0, lane.offset, 3, "ring"))
        assert (ring.head, ring.tail, ring.flags) == (0, 0, 0)
        assert (lane.raw.head, lane.raw.tail, lane.raw.flags) == (0, 0, 0)


def test_master_does_not_write_the_cookie(ends: Ends, implementation: RingImplementation) -> None:
    ends.s2m.raw.cookie = 0
    implementation.master_rx(RingMemory(ends.map(), 0, ends.s2m.offset, 3, "ring"))
    assert ends.s2m.raw.cookie == 0


def test_check_cookie_accepts_a_ring_and_names_what_is_none(ends: Ends, implementation: RingImplementation) -> None:
    memory = RingMemory(ends.map(), 0, ends.s2m.offset, 3, "rx ring 7")
    implementation.check_cookie(memory)
    ends.s2m.raw.cookie = 0xDEAD
    with pytest.raises(RingViolation, match=r"rx ring 7.*0xdead") as caught:
        implementation.check_cookie(memory)
    assert caught.value.code is ErrorCode.COOKIE


@pytest.mark.parametrize("log2_size", [0, 1, 5, 14])
def test_size_head_tail_and_capacity(make_ends: MakeEnds, log2_size: int) -> None:
    ends = make_ends(log2_size=log2_size, buffer_size=16)
    size = 1 << log2_size
    for lane in ends.lanes:
        assert lane.tx.size == lane.rx.size == size
        assert lane.tx.free() == size
        assert lane.rx.pending() == 0
        assert (lane.tx.head, lane.tx.tail) == (lane.rx.head, lane.rx.tail) == (lane.raw.head, lane.raw.tail)
    assert (ends.s2m.tx.capacity, ends.m2s.rx.capacity) == (16, 16)
    assert (ends.s2m.rx.capacity, ends.m2s.tx.capacity) == (0, 0)


def test_set_mask_is_seen_by_the_sender(lane: Lane) -> None:
    assert lane.tx.flags == 0
    lane.rx.set_mask(True)
    assert lane.raw.flags == lane.tx.flags == lane.rx.flags == 1
    lane.rx.set_mask(False)
    assert lane.raw.flags == lane.tx.flags == 0


def test_unmasking_clears_what_the_peer_had_preset(lane: Lane) -> None:
    lane.raw.flags = 1
    lane.rx.set_mask(False)
    assert lane.raw.flags == 0


def test_ring_beginning_anywhere_in_its_region(make_ends: MakeEnds, sender: str) -> None:
    ends = make_ends(rings=3)
    for number, lane in enumerate(ends.all_s2m if sender == "slave" else ends.all_m2s):
        packet = bytes([number + 1]) * 9
        assert lane.tx.send([packet]) == 1
        assert lane.rx.recv(8) == [packet]


# --- send and recv --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separate", [False, True])
def test_packets_arrive_whole_and_in_order(make_ends: MakeEnds, sender: str, separate: bool) -> None:
    lane = make_ends(separate=separate).lane(sender)
    packets = [bytes([size]) * size for size in (1, 63, 64, 2, 33)]
    assert lane.tx.send(packets) == 5
    assert lane.rx.pending() == 5
    assert lane.rx.recv(256) == packets
    assert lane.rx.recv(256) == []


@pytest.mark.parametrize(
    "packet",
    [
        b"abcdef",
        bytearray(b"abcdef"),
        memoryview(b"abcdef"),
        memoryview(bytearray(b"xabcdefx"))[1:-1],
        array("H", [0x6261, 0x6463, 0x6665]),
        memoryview(b"abcdef").cast("B", (2, 3)),
    ],
    ids=["bytes", "bytearray", "memoryview", "slice", "array", "two-dimensional"],
)
def test_send_takes_anything_with_the_buffer_protocol(lane: Lane, packet: ReadableBuffer) -> None:
    assert lane.tx.send([packet]) == 1
    assert lane.rx.recv(1) == [b"abcdef"]


@pytest.mark.parametrize("kind", [list, tuple, iter, lambda packets: (packet for packet in packets)])
def test_send_takes_any_iterable(lane: Lane, kind: Callable[[list[bytes]], list[bytes]]) -> None:
    packets = fill(3, 5)
    assert lane.tx.send(kind(packets)) == 3
    assert lane.rx.recv(8) == packets


def test_send_of_nothing_is_nothing(lane: Lane) -> None:
    assert lane.tx.send([]) == 0
    assert lane.rx.pending() == 0
    assert lane.tx.counters == QueueCounters()


def test_send_stops_at_a_full_ring_and_counts_it(lane: Lane) -> None:
    packets = fill(11, 20)
    assert lane.tx.send(packets) == 8
    assert lane.tx.free() == 0
    assert lane.tx.send(packets[8:]) == 0
    assert lane.tx.counters.ring_full == 2
    assert lane.rx.recv(256) == packets[:8]
    assert lane.tx.send(packets[8:]) == 3
    assert lane.rx.recv(256) == packets[8:]
    assert lane.tx.counters.ring_full == 2


def test_send_of_an_endless_generator_ends_with_the_ring(lane: Lane) -> None:
    assert lane.tx.send(b"%d" % number for number in itertools.count()) == 8
    assert lane.rx.recv(256) == [b"%d" % number for number in range(8)]


@pytest.mark.parametrize(
    "empty", [b"", bytearray(), memoryview(b""), array("I")], ids=lambda empty: type(empty).__name__
)
def test_empty_packet_is_refused_and_nothing_sent(lane: Lane, empty: ReadableBuffer) -> None:
    with pytest.raises(ConfigError, match="packet 1 is empty"):
        lane.tx.send([b"good", empty, b"good"])
    assert (lane.tx.free(), lane.rx.pending()) == (8, 0)
    assert lane.tx.send([b"later"]) == 1
    assert lane.rx.recv(8) == [b"later"]


def test_packet_longer_than_the_ring_is_refused_and_nothing_sent(lane: Lane) -> None:
    with pytest.raises(ConfigError, match="513 bytes"):
        lane.tx.send([bytes(513)])
    assert (lane.tx.free(), lane.rx.pending()) == (8, 0)
    assert lane.tx.send([bytes(512)]) == 1
    assert lane.rx.recv(8) == [bytes(512)]


def test_long_packet_without_chains_is_refused_and_nothing_sent(lane: Lane) -> None:
    with pytest.raises(ConfigError, match=r"packet 1 has 65 bytes.*64.*chains"):
        lane.tx.send([bytes(64), bytes(65)], chain=False)
    assert (lane.tx.free(), lane.rx.pending()) == (8, 0)
    assert lane.tx.send([bytes(64)], chain=False) == 1
    assert lane.rx.recv(8) == [bytes(64)]


def test_generator_that_raises_sends_nothing(lane: Lane) -> None:
    def packets() -> Iterator[bytes]:
        yield b"first"
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        lane.tx.send(packets())
    assert (lane.tx.free(), lane.rx.pending()) == (8, 0)


def test_send_is_refused_while_buffers_are_allocated(lane: Lane) -> None:
    burst = lane.tx.alloc(1)
    with pytest.raises(ConfigError, match="transmitted or given back"):
        lane.tx.send([b"packet"])
    burst.close()
    assert lane.tx.send([b"packet"]) == 1


def test_sent_descriptors_say_what_the_packets_are(ends: Ends, lane: Lane, sender: str) -> None:
    posted = lane.raw.descriptors()
    offsets = list(lane.offsets)
    assert lane.tx.send([bytes(10), bytes(100)]) == 2
    sent = lane.raw.descriptors()
    assert [(d.flags, d.length) for d in sent[:3]] == [(0, 10), (NEXT, 64), (0, 36)]
    assert [d.offset for d in sent[:3]] == offsets[:3]
    assert {d.region for d in sent[:3]} == {ends.buffer_region}
    assert sent[3:] == posted[3:]
    assert (lane.raw.head, lane.raw.tail) == ((3, 0) if sender == "slave" else (8, 3))


@pytest.mark.parametrize("limit", [0, -1])
def test_receiving_less_than_one_buffer_is_refused(lane: Lane, limit: int) -> None:
    with pytest.raises(ConfigError, match=str(limit)):
        lane.rx.burst(limit)
    with pytest.raises(ConfigError, match=str(limit)):
        lane.rx.recv(limit)


def test_recv_gives_buffers_back_at_once(lane: Lane) -> None:
    lane.tx.send(fill(8, 4))
    assert lane.rx.recv(3) == fill(8, 4)[:3]
    assert lane.tx.free() == 3


def test_more_tells_whether_the_limit_left_packets_behind(lane: Lane) -> None:
    assert not lane.rx.more
    lane.tx.send(fill(5, 4))
    for limit, more in ((3, True), (1, True), (1, False), (1, False)):
        lane.rx.recv(limit)
        assert lane.rx.more is more
    lane.tx.send(fill(5, 4))
    lane.rx.recv(5)
    assert not lane.rx.more


def test_received_bytes_do_not_change_when_the_buffer_is_used_again(lane: Lane) -> None:
    lane.tx.send(fill(8, 30))
    received = lane.rx.recv(8)
    lane.tx.send(fill(8, 30, seed=100))
    assert received == fill(8, 30)


def test_counters_of_both_ends(lane: Lane) -> None:
    lane.tx.send([bytes(10), bytes(100)])
    assert lane.tx.counters == QueueCounters(packets=2, bytes=110)
    assert lane.rx.counters == QueueCounters()
    lane.rx.recv(8)
    assert lane.rx.counters == QueueCounters(packets=2, bytes=110)


# --- sizes and wrap -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log2_size", "buffer_size"), [(0, 1), (0, 65535), (1, 7), (2, 65535), (6, 1), (10, 2048), (14, 3)]
)
def test_full_rings_of_every_size_pass(make_ends: MakeEnds, sender: str, log2_size: int, buffer_size: int) -> None:
    lane = make_ends(log2_size=log2_size, buffer_size=buffer_size).lane(sender)
    size = 1 << log2_size
    for seed in (1, 2):
        packets = fill(size + 1, buffer_size, seed)
        assert lane.tx.send(packets) == size
        assert lane.rx.recv(size) == packets[:-1]


@pytest.mark.parametrize("log2_size", [0, 4, 14])
def test_indices_wrap_at_65536(make_ends: MakeEnds, sender: str, log2_size: int) -> None:
    lane = make_ends(log2_size=log2_size, buffer_size=4).lane(sender)
    size = lane.raw.size
    pass_packets(lane, 65536 - size // 2 - 1)
    before = lane.raw.tail
    packets = [b"%04d" % (number % 10000) for number in range(size + 3)]
    sent = lane.tx.send(packets)
    assert sent == size
    with lane.rx.burst(size) as burst:
        assert contents(burst) == packets[:size]
        assert [burst.slot(index) for index in range(size)] == [(before + index) % size for index in range(size)]
        assert lane.tx.free() == 0
    assert lane.tx.free() == size
    pass_packets(lane, 2 * size + 1)
    assert lane.raw.tail == (before + 3 * size + 1) & 0xFFFF
    assert lane.raw.tail < before


def test_chain_across_the_wrap_of_index_and_slots(make_ends: MakeEnds, sender: str) -> None:
    lane = make_ends(buffer_size=4).lane(sender)
    pass_packets(lane, 65533)
    packet = bytes(range(1, 30))
    assert lane.tx.send([packet]) == 1
    with lane.rx.burst(1) as burst:
        assert [burst.slot(index) for index in range(8)] == [5, 6, 7, 0, 1, 2, 3, 4]
        assert contents(burst) == [packet]


def test_bursts_open_across_the_wrap_come_back_in_order(make_ends: MakeEnds, sender: str) -> None:
    lane = make_ends(buffer_size=4).lane(sender)
    pass_packets(lane, 65532)
    lane.tx.send(fill(8, 4))
    first, second = lane.rx.burst(3), lane.rx.burst(5)
    second.close()
    assert lane.tx.free() == 0
    assert lane.rx.refill(2) == 2
    assert lane.tx.free() == 2
    assert (first.sent, len(first)) == (2, 1)
    assert bytes(first[0]) == fill(8, 4)[2]
    first.close()
    assert lane.tx.free() == 8


# --- bursts ---------------------------------------------------------------------------------------------------------


def test_burst_gives_writable_views_in_order(lane: Lane) -> None:
    packets = fill(4, 12)
    lane.tx.send(packets)
    with lane.rx.burst(3) as burst:
        assert len(burst) == 3
        assert [bytes(view) for view in burst] == packets[:3]
        assert [bytes(burst[index]) for index in (0, -1)] == [packets[0], packets[2]]
        assert [burst.length(index) for index in range(3)] == [12] * 3
        assert [burst.flags(index) for index in range(3)] == [BufferFlag(0)] * 3
        assert [burst.slot(index) for index in range(3)] == [0, 1, 2]
        assert burst.sent == 0
        burst[1][:2] = b"!!"
        assert bytes(burst[1]) == b"!!" + packets[1][2:]
        with pytest.raises(IndexError):
            burst[3]
        with pytest.raises(IndexError):
            burst[-4]
    assert lane.rx.pending() == 1


def test_writing_through_a_view_changes_the_shared_buffer(ends: Ends, lane: Lane) -> None:
    lane.tx.send([bytes(6)])
    with lane.rx.burst(1) as burst:
        burst[0][:] = b"reused"
        start = lane.offsets[burst.slot(0)]
        assert bytes(ends.map()[0][start : start + 6]) == b"reused"


def test_burst_of_an_empty_ring_is_empty(lane: Lane) -> None:
    with lane.rx.burst(4) as burst:
        assert len(burst) == 0
        assert list(burst) == []
        assert list(burst.packets()) == []
    assert lane.tx.free() == 8


def test_buffers_stay_ours_while_the_burst_is_open(lane: Lane) -> None:
    lane.tx.send(fill(8, 4))
    burst = lane.rx.burst(8)
    assert (lane.tx.free(), lane.rx.pending()) == (0, 0)
    assert lane.tx.send([b"no room"]) == 0
    burst.close()
    assert lane.tx.free() == 8


def test_views_end_with_the_burst(lane: Lane) -> None:
    lane.tx.send(fill(2, 4))
    with lane.rx.burst(2) as burst:
        view = burst[0]
        (packet,) = next(burst.packets()).views
    for touch in (
        lambda: view[0],
        lambda: packet[0],
        lambda: bytes(view),
        lambda: burst[0],
        lambda: burst[1],
        lambda: list(burst),
        lambda: list(burst.packets()),
        lambda: burst.length(0),
        lambda: burst.flags(0),
        lambda: burst.slot(0),
        lambda: burst.set_length(0, 1),
        lambda: burst.advance(0, 1),
    ):
        with pytest.raises(ValueError):
            touch()


def test_closing_twice_gives_back_once(lane: Lane) -> None:
    lane.tx.send(fill(8, 4))
    burst = lane.rx.burst(2)
    lane.rx.burst(2)
    burst.close()
    burst.close()
    assert lane.tx.free() == 2


def test_exception_in_the_block_still_gives_buffers_back(lane: Lane) -> None:
    lane.tx.send(fill(8, 4))
    with pytest.raises(KeyError), lane.rx.burst(5):
        raise KeyError
    assert lane.tx.free() == 5


def test_exported_view_is_reported_when_the_burst_ends(lane: Lane) -> None:
    lane.tx.send(fill(2, 4))
    burst = lane.rx.burst(2)
    exported = held(burst[1])
    with pytest.raises(BufferError, match="still exported"):
        burst.close()
    assert lane.tx.free() == 8, "the buffers are the peer's all the same"
    exported.release()
    burst.close()


def test_exported_view_of_a_forwarded_buffer_is_reported(ends: Ends) -> None:
    for role, source in (("slave", ends.m2s), ("master", ends.s2m)):
        rx, tx = ends.crossing(role)
        source.tx.send([b"packet"])
        burst = rx.burst(1)
        exported = held(burst[0])
        assert tx.forward(burst) == 1
        with pytest.raises(BufferError):
            burst.close()
        exported.release()


def test_trimming_an_exported_view_changes_nothing(lane: Lane) -> None:
    lane.tx.send([b"packet"])
    burst = lane.rx.burst(1)
    exported = held(burst[0])
    with pytest.raises(BufferError):
        burst.set_length(0, 2)
    assert burst.length(0) == 6
    with pytest.raises(BufferError):
        burst.close()
    exported.release()


def test_bursts_released_out_of_order_give_buffers_back_in_order(lane: Lane) -> None:
    lane.tx.send(fill(8, 4))
    bursts = [lane.rx.burst(2) for _ in range(4)]
    free = []
    for index in (2, 1, 0, 3):
        bursts[index].close()
        free.append(lane.tx.free())
    assert free == [0, 0, 6, 8]


def test_older_burst_keeps_its_data_while_a_newer_one_is_closed(lane: Lane) -> None:
    packets = fill(8, 4)
    lane.tx.send(packets)
    older, newer = lane.rx.burst(4), lane.rx.burst(4)
    newer.close()
    lane.tx.send(fill(8, 4, seed=99))
    assert contents(older) == packets[:4]
    older.close()
    assert lane.tx.send(fill(8, 4, seed=99)) == 8


def test_set_length_and_advance_trim_a_received_buffer(lane: Lane) -> None:
    lane.tx.send([b"0123456789"])
    with lane.rx.burst(1) as burst:
        whole = burst[0]
        burst.set_length(0, 8)
        with pytest.raises(ValueError):
            whole[0]
        assert bytes(burst[0]) == b"01234567"
        burst.advance(0, 3)
        assert bytes(burst[0]) == b"34567"
        assert burst.length(0) == 5


@pytest.mark.parametrize("length", [0, -1, 65])
def test_length_outside_the_buffer_is_refused(lane: Lane, length: int) -> None:
    lane.tx.send([b"0123456789"])
    with lane.rx.burst(1) as burst:
        with pytest.raises(ConfigError, match="10 bytes"):
            burst.set_length(0, length)
        assert bytes(burst[0]) == b"0123456789"


def test_slave_lengthens_data_up_to_the_end_of_its_buffer_and_a_master_does_not(ends: Ends) -> None:
    for lane in ends.lanes:
        lane.tx.send([b"0123456789"])
    with ends.m2s.rx.burst(1) as burst:
        burst.set_length(0, 64)
        burst[0][:] = b"x" * 64
        assert ends.s2m.tx.forward(burst) == 1
    assert ends.s2m.rx.recv(1) == [b"0123456789"]
    assert ends.s2m.rx.recv(1) == [b"x" * 64]
    ends.s2m.tx.send([b"0123456789"])
    with ends.s2m.rx.burst(1) as burst, pytest.raises(ConfigError, match="10 bytes"):
        burst.set_length(0, 11)


def test_allocated_buffer_may_be_lengthened_to_its_room(lane: Lane) -> None:
    """Programs allocate for a small packet and send what came in."""
    burst = lane.tx.alloc(2, 5)
    for index, length in ((0, 64), (1, 20), (1, 64)):
        burst.set_length(index, length)
        assert len(burst[index]) == burst.length(index) == length
    with pytest.raises(ConfigError, match="room for 0 before and 0 behind"):
        burst.set_length(0, 65)
    burst[0][:], burst[1][:] = b"a" * 64, b"b" * 64
    assert lane.tx.transmit(burst) == 2
    assert lane.rx.recv(2) == [b"a" * 64, b"b" * 64]


def test_room_of_an_allocated_buffer_is_what_the_peer_had_posted(ends: Ends) -> None:
    """Neither what it writes afterwards, nor the neighbour's, nor a longer room behind the wrap."""
    lane = ends.m2s
    pass_packets(lane, 6)
    lane.raw.change(6, length=40)
    lane.raw.change(7, length=50)
    burst = lane.tx.alloc(4, 30)
    for slot in (6, 7):
        lane.raw.change(slot, length=64)
    assert [burst.length(index) for index in range(4)] == [30] * 4
    for index, room in enumerate((40, 50, 64, 64)):
        with pytest.raises(ConfigError):
            burst.set_length(index, room + 1)
        burst.set_length(index, room)
        burst[index][:] = bytes(room)
    assert lane.tx.transmit(burst) == 4
    ends.check_canaries()
    assert list(map(len, lane.rx.recv(4))) == [40, 50, 64, 64]


def test_chains_of_an_allocation_know_the_room_of_each_buffer(lane: Lane) -> None:
    burst = lane.tx.alloc(3, 70)
    assert [burst.length(index) for index in range(6)] == [64, 6] * 3
    for index in (1, 3, 5):
        burst.set_length(index, 64)
    lane.tx.transmit(burst)
    assert list(map(len, lane.rx.recv(8))) == [128] * 3


def test_flags_of_allocated_buffers_make_a_chain(lane: Lane) -> None:
    bursts = [lane.tx.alloc(1, 3) for _ in range(3)]
    for burst, data, flags in zip(bursts, (b"one", b"two", b"end"), (NEXT, NEXT, 0), strict=True):
        burst[0][:] = data
        burst.set_flags(0, flags)
        assert burst.flags(0) == flags
        lane.tx.transmit(burst)
    assert lane.rx.recv(3) == [b"onetwoend"]
    assert lane.tx.counters.packets == lane.rx.counters.packets == 1


def test_flags_that_do_not_exist_and_those_of_received_buffers_are_refused(lane: Lane) -> None:
    lane.tx.send([b"packet"])
    with lane.rx.burst(1) as received:
        received.set_flags(0, 0)
        with pytest.raises(ConfigError, match="allocated"):
            received.set_flags(0, NEXT)
    with lane.tx.alloc(1, 4) as allocated:
        for flags in (2, -1, 0x8000, NEXT | 2, 1 << 70):
            with pytest.raises(ConfigError, match="flags"):
                allocated.set_flags(0, flags)
        with pytest.raises(IndexError):
            allocated.set_flags(1, NEXT)


def test_slave_prepends_a_header_into_the_headroom(ends: Ends) -> None:
    ends.m2s.rx.set_headroom(8)
    for round_trip in range(2 * ends.size):  # the first round's buffers were posted without headroom
        assert ends.m2s.tx.send([b"payload"]) == 1
        with ends.m2s.rx.burst(1) as burst:
            if round_trip < ends.size:
                with pytest.raises(ConfigError, match="room for 0 before"):
                    burst.advance(0, -1)
                continue
            with pytest.raises(ConfigError, match="room for 8 before"):
                burst.advance(0, -9)
            burst.advance(0, -8)
            burst[0][:8] = b"header: "
            assert bytes(burst[0]) == b"header: payload"
            assert ends.s2m.tx.forward(burst) == 1
        assert ends.s2m.rx.recv(1) == [b"header: payload"]
    ends.check_each_buffer_is_in_one_slot()
    ends.check_canaries()


@pytest.mark.parametrize("role", ["slave", "master"])
def test_dropped_packets_are_left_out_of_what_is_forwarded(ends: Ends, role: str) -> None:
    rx, tx = ends.crossing(role)
    there, back = (ends.m2s, ends.s2m) if role == "slave" else (ends.s2m, ends.m2s)
    there.tx.send([b"one", b"2" * 100, b"three", b"four"])
    with rx.burst(8) as burst:
        burst.drop(2)  # the second half of the chain stands for all of it
        burst.drop(4)
        assert tx.forward(burst) == 2
        assert (burst.sent, len(burst)) == (5, 0)
    assert back.rx.recv(8) == [b"one", b"three"]
    ends.check_each_buffer_is_in_one_slot()


@pytest.mark.parametrize("role", ["slave", "master"])
def test_the_cut_off_end_of_a_split_burst_is_not_forwarded(ends: Ends, role: str) -> None:
    rx, tx = ends.crossing(role)
    there, back = (ends.m2s, ends.s2m) if role == "slave" else (ends.s2m, ends.m2s)
    there.tx.send([b"one", b"2" * 100])
    with rx.burst(2, split=True) as burst:
        assert tx.forward(burst) == 1
        assert (burst.sent, len(burst)) == (1, 1)
    assert back.rx.recv(8) == [b"one"]


@pytest.mark.parametrize("count", [-1, 10, 11])
def test_advance_outside_the_buffer_is_refused(lane: Lane, count: int) -> None:
    lane.tx.send([b"0123456789"])
    with lane.rx.burst(1) as burst:
        with pytest.raises(ConfigError, match="10 bytes"):
            burst.advance(0, count)
        assert bytes(burst[0]) == b"0123456789"


# --- chains ---------------------------------------------------------------------------------------------------------


def test_long_packet_goes_as_a_chain_and_is_joined(lane: Lane) -> None:
    packets = [bytes(range(150)), b"short", bytes(range(64)), bytes(range(65))]
    assert lane.tx.send(packets) == 4
    with lane.rx.burst(256) as burst:
        assert [burst.length(index) for index in range(len(burst))] == [64, 64, 22, 5, 64, 64, 1]
        assert [int(burst.flags(index)) for index in range(len(burst))] == [1, 1, 0, 0, 0, 1, 0]
        assert [len(packet.views) for packet in burst.packets()] == [3, 1, 1, 2]
        assert contents(burst) == packets
    assert lane.tx.send(packets) == 4
    assert lane.rx.recv(256) == packets
    assert lane.rx.counters.packets == 8


@pytest.mark.parametrize("role", ["master", "slave"])
def test_packets_of_a_burst_are_whole_and_can_be_dropped(ends: Ends, role: str) -> None:
    rx, tx = ends.crossing(role)
    there, back = (ends.m2s, ends.s2m) if role == "slave" else (ends.s2m, ends.m2s)
    packets = [bytes(range(150)), b"short", bytes(range(65))]
    assert there.tx.send(packets) == 3
    with rx.burst(256) as burst:
        found = list(burst.packets())
        assert [bytes(packet) for packet in found] == packets
        assert [len(packet) for packet in found] == [150, 5, 65]
        assert [[len(view) for view in packet.views] for packet in found] == [[64, 64, 22], [5], [64, 1]]
        found[0].views[2][0] = 0
        assert burst[2][0] == 0, "the views are the burst's own"
        found[0].drop()
        found[2].drop()
        tx.forward(burst)
        assert back.rx.recv(256) == [b"short"]
        assert list(burst.packets()) == []
        with pytest.raises(ValueError, match="has been sent"):
            found[1].drop()
    with pytest.raises(ValueError, match="has ended"):
        bytes(found[1])


def test_a_packet_asks_its_burst_each_time(lane: Lane) -> None:
    assert lane.tx.send([bytes(range(150)), b"short"]) == 2
    with lane.rx.burst(256) as burst:
        long, short = burst.packets()
        burst.set_length(3, 4)
        assert (len(short), bytes(short)) == (4, b"shor")
        assert short.views[0] is burst[3]
        assert repr(long) == "<packet in 3 buffers>"
    for use in (len, bytes, lambda packet: packet.views):
        with pytest.raises(ValueError, match="has ended"):
            use(long)


#: Python code can give memory of its own from Python 3.12 on (PEP 688); compiled code always could.
GIVING = IMPLEMENTATIONS if sys.version_info >= (3, 12) else [load("native")]


@pytest.fixture(params=GIVING, ids=name_of)
def giving(request: pytest.FixtureRequest) -> Ends:
    """Ends whose packets give their memory."""
    return Ends(request.param)


def test_a_packet_in_one_buffer_gives_its_memory(giving: Ends) -> None:
    assert giving.s2m.tx.send([bytes(range(60))]) == 1
    with giving.s2m.rx.burst(256) as burst:
        (packet,) = burst.packets()
        assert struct.unpack_from(">H", packet, 12) == (0x0C0D,)
        struct.pack_into(">H", packet, 12, 0xABCD)
        assert bytes(burst[0][12:14]) == b"\xab\xcd"
        with memoryview(packet) as view:
            assert (view.nbytes, view.format, view.readonly) == (60, "B", False)
    with pytest.raises(ValueError, match="has ended"):
        memoryview(packet)


def test_memory_of_a_packet_that_outlives_the_burst_is_reported(giving: Ends) -> None:
    assert giving.s2m.tx.send([bytes(60)]) == 1
    burst = giving.s2m.rx.burst(256)
    view = memoryview(next(burst.packets()))
    part = view[:10]
    with pytest.raises(BufferError, match="still exported"):
        burst.close()
    del view, part


def test_a_packet_in_several_buffers_gives_none(giving: Ends) -> None:
    assert giving.s2m.tx.send([bytes(range(150))]) == 1
    with giving.s2m.rx.burst(256) as burst:
        (packet,) = burst.packets()
        with pytest.raises(BufferError, match=r"lies in 3 buffers: take packet\.views, or bytes\(packet\)"):
            memoryview(packet)
        assert bytes(packet) == bytes(range(150))


def test_a_packet_that_no_burst_has_made_has_nothing() -> None:
    """Python code can make one of the compiled ones."""
    ends = Ends(load("native"))
    ends.s2m.tx.send([b"x"])
    with ends.s2m.rx.burst(8) as burst:
        packets = burst.packets()
        bare: Any = type(next(packets))()
    for use in (len, bytes, memoryview, lambda packet: packet.views, lambda packet: packet.drop()):
        with pytest.raises(ValueError, match="no burst has made it"):
            use(bare)
    assert list(type(packets)()) == []


def test_a_sent_packet_gives_none(giving: Ends) -> None:
    assert giving.s2m.tx.send([b"one", b"two"]) == 2
    with giving.s2m.rx.burst(256) as burst:
        one, _ = burst.packets()
        assert giving.m2s.tx.forward(burst) == 2
        with pytest.raises(ValueError, match="has been sent"):
            memoryview(one)


def test_a_packet_is_still_a_sequence_of_views_and_says_that_this_is_deprecated(lane: Lane) -> None:
    assert lane.tx.send([bytes(range(150))]) == 1
    with lane.rx.burst(256) as burst:
        (packet,) = burst.packets()
        with pytest.warns(DeprecationWarning, match=r"packet\.views") as iterated:
            assert [len(view) for view in packet] == [64, 64, 22]
        with pytest.warns(DeprecationWarning, match=r"packet\.views\[i\]") as indexed:
            assert len(packet[2]) == 22
        assert {warning.filename for warning in (*iterated, *indexed)} == {__file__}


def test_chain_that_does_not_fit_is_not_begun(lane: Lane) -> None:
    assert lane.tx.send([bytes(64)] * 6) == 6
    assert lane.tx.send([bytes(129)]) == 0
    assert (lane.tx.free(), lane.rx.pending()) == (2, 6)
    assert lane.tx.send([b"fits"]) == 1


def test_burst_takes_whole_packets_only(lane: Lane) -> None:
    lane.tx.send([b"one", bytes(100), b"two"])
    with lane.rx.burst(2) as burst:
        assert contents(burst) == [b"one"]
        assert lane.rx.more
    with lane.rx.burst(3) as burst:
        assert contents(burst) == [bytes(100), b"two"]
        assert not lane.rx.more


def test_chain_longer_than_the_limit_is_taken_whole(lane: Lane) -> None:
    packet = bytes(range(200))
    lane.tx.send([packet, b"next"])
    with lane.rx.burst(1) as burst:
        assert len(burst) == 4
        assert contents(burst) == [packet]
        assert lane.rx.more
    assert lane.rx.recv(1) == [b"next"]
    lane.tx.send([packet])
    assert lane.rx.recv(2) == [packet]
    assert not lane.rx.more


def test_chain_of_the_whole_ring_passes(lane: Lane) -> None:
    packet = fill(1, 512)[0]
    for _ in range(3):
        assert lane.tx.send([packet]) == 1
        assert lane.rx.recv(1) == [packet]


def test_unfinished_chain_waits_for_its_end(lane: Lane) -> None:
    burst = lane.tx.alloc(1, 150)
    for view, content in zip(burst, (b"a" * 64, b"b" * 64, b"c" * 22), strict=True):
        view[:] = content
    for published in (1, 2):
        assert lane.tx.transmit(burst, 1) == 1
        assert lane.rx.pending() == published
        assert lane.rx.recv(256) == []
        assert not lane.rx.more, "the peer kicks when it goes on"
    assert lane.tx.transmit(burst) == 1
    assert lane.rx.recv(256) == [b"a" * 64 + b"b" * 64 + b"c" * 22]


def test_packets_before_an_unfinished_chain_are_taken(lane: Lane) -> None:
    lane.tx.send([b"whole"])
    burst = lane.tx.alloc(1, 100)
    lane.tx.transmit(burst, 1)
    assert lane.rx.recv(256) == [b"whole"]
    assert lane.rx.pending() == 1
    lane.tx.transmit(burst)
    assert len(lane.rx.recv(256)[0]) == 100


def test_split_hands_out_parts_of_a_chain(lane: Lane) -> None:
    packet = bytes(range(150))
    lane.tx.send([packet])
    parts = []
    for size, more in ((2, True), (1, False)):
        with lane.rx.burst(2, split=True) as burst:
            assert len(burst) == size
            assert lane.rx.more is more
            parts += contents(burst)
    assert [len(part) for part in parts] == [128, 22]
    assert b"".join(parts) == packet


def test_split_hands_out_an_unfinished_chain(lane: Lane) -> None:
    burst = lane.tx.alloc(1, 100)
    lane.tx.transmit(burst, 1)
    with lane.rx.burst(256, split=True) as received:
        assert [int(received.flags(index)) for index in range(len(received))] == [NEXT]
    lane.tx.transmit(burst)
    with lane.rx.burst(256, split=True) as received:
        assert received.length(0) == 36


def test_chain_that_fills_the_ring_without_an_end_is_a_violation(lane: Lane) -> None:
    lane.tx.send([bytes(512)])
    lane.raw.change(7, flags=NEXT)
    with pytest.raises(RingViolation, match=r"rx ring 0.*8 descriptors.*no end"):
        lane.rx.burst(256)
    with pytest.raises(RingViolation):
        lane.rx.recv(1)
    assert lane.rx.counters.bad_descriptors == 2


# --- refill ---------------------------------------------------------------------------------------------------------


def test_master_gets_no_buffers_before_the_slave_posts_them(make_ends: MakeEnds) -> None:
    lane = make_ends(posted=False).m2s
    assert lane.tx.free() == 0
    assert lane.tx.send([b"early"]) == 0
    assert lane.rx.refill(3) == 3
    assert lane.tx.free() == 3
    assert lane.tx.send(fill(4, 4)) == 3
    assert lane.rx.refill() == 5
    assert lane.rx.refill() == 0
    assert lane.rx.recv(8) == fill(4, 4)[:3]


def test_refill_gives_back_by_count_and_ends_views(lane: Lane) -> None:
    packets = fill(6, 4)
    lane.tx.send(packets)
    first, second = lane.rx.burst(3), lane.rx.burst(3)
    views = list(first) + list(second)
    assert lane.rx.refill(4) == 4
    assert lane.tx.free() == 6
    for view in views[:4]:
        with pytest.raises(ValueError):
            view[0]
    with pytest.raises(ValueError):
        first[0]
    assert [bytes(view) for view in views[4:]] == packets[4:]
    assert [bytes(view) for view in second] == packets[4:]
    assert lane.rx.refill(100) == 2
    assert lane.rx.refill() == 0
    assert lane.tx.free() == 8
    first.close()
    second.close()
    assert lane.tx.free() == 8


def test_closing_after_a_partial_refill_gives_back_the_rest(lane: Lane) -> None:
    lane.tx.send(fill(8, 4))
    burst = lane.rx.burst(5)
    assert lane.rx.refill(2) == 2
    burst.close()
    assert lane.tx.free() == 5


def test_burst_that_waited_for_an_older_one_goes_back_when_a_refill_returns_that_one(lane: Lane) -> None:
    lane.tx.send(fill(8, 4))
    lane.rx.burst(3)
    lane.rx.burst(5).close()
    assert lane.tx.free() == 0
    assert lane.rx.refill(3) == 3
    assert lane.tx.free() == 8


def test_refill_of_a_negative_count_is_refused(lane: Lane) -> None:
    with pytest.raises(ConfigError, match="-1"):
        lane.rx.refill(-1)


def test_slave_restores_length_on_refill_and_the_master_leaves_descriptors(ends: Ends) -> None:
    for lane in ends.lanes:
        lane.tx.send([b"short"] * 3)
        sent = lane.raw.descriptors()
        lane.rx.recv(8)
        now = lane.raw.descriptors()
        if lane is ends.m2s:
            assert [(d.flags, d.length, d.offset) for d in now] == [(0, 64, offset) for offset in lane.offsets]
        else:
            assert now == sent


def test_slave_posts_with_headroom(ends: Ends) -> None:
    lane = ends.m2s
    lane.tx.send(fill(4, 4))
    lane.rx.burst(4)
    assert lane.rx.refill(3, headroom=10) == 3
    assert [(d.length, d.offset) for d in lane.raw.descriptors()[:3]] == [
        (54, offset + 10) for offset in lane.offsets[:3]
    ]
    pass_packets(lane, 4)
    packet = bytes(range(100))
    assert lane.tx.send([packet]) == 1
    with lane.rx.burst(8) as burst:
        assert [burst.length(index) for index in range(2)] == [54, 46]
        assert contents(burst) == [packet]


def test_headroom_of_closing_bursts(ends: Ends) -> None:
    lane = ends.m2s
    lane.rx.set_headroom(16)
    pass_packets(lane, 8)
    assert {d.length for d in lane.raw.descriptors()} == {48}
    assert [d.offset for d in lane.raw.descriptors()] == [offset + 16 for offset in lane.offsets]
    pass_packets(lane, 8)
    assert {d.length for d in lane.raw.descriptors()} == {48}, "headroom does not add up"


@pytest.mark.parametrize("headroom", [-1, 64, 1000])
def test_headroom_that_leaves_no_room_is_refused(ends: Ends, headroom: int) -> None:
    lane = ends.m2s
    lane.tx.send([b"packet"])
    lane.rx.burst(1)
    with pytest.raises(ConfigError, match=str(headroom)):
        lane.rx.refill(None, headroom)
    with pytest.raises(ConfigError, match=f"headroom is {headroom}"):
        lane.rx.set_headroom(headroom)
    assert lane.rx.refill(None, 63) == 1


def test_headroom_means_nothing_to_a_master(ends: Ends) -> None:
    lane = ends.s2m
    lane.tx.send([b"packet"])
    lane.rx.burst(1)
    before = lane.raw.descriptors()
    assert lane.rx.refill(None, headroom=32) == 1
    assert lane.raw.descriptors() == before


# --- alloc, transmit, rewind ----------------------------------------------------------------------------------------


def test_allocated_buffers_are_filled_in_place_and_published_by_transmit(lane: Lane) -> None:
    burst = lane.tx.alloc(3, 10)
    assert len(burst) == 3
    assert (lane.tx.free(), lane.rx.pending()) == (5, 0)
    for number, view in enumerate(burst):
        assert len(view) == 10
        view[:] = bytes([number]) * 10
    view = burst[2]
    assert lane.tx.transmit(burst) == 3
    with pytest.raises(ValueError):
        view[0]
    assert lane.rx.recv(8) == [bytes([number]) * 10 for number in range(3)]
    assert lane.tx.counters == QueueCounters(packets=3, bytes=30)


def test_alloc_without_a_size_gives_whole_buffers(lane: Lane) -> None:
    with lane.tx.alloc(2) as burst:
        assert [burst.length(index) for index in range(2)] == [64, 64]


def test_master_learns_the_room_from_each_posted_descriptor(make_ends: MakeEnds) -> None:
    lane = make_ends(posted=False).m2s
    lane.rx.refill(2, headroom=4)
    lane.rx.refill(2, headroom=60)
    with lane.tx.alloc(8) as burst:
        assert [burst.length(index) for index in range(4)] == [60, 60, 4, 4]
    with lane.tx.alloc(1, 125) as burst:
        assert [burst.length(index) for index in range(4)] == [60, 60, 4, 1]
    assert len(lane.tx.alloc(1, 129)) == 0
    packets = [bytes(60), bytes(range(62)), b"last"]
    assert lane.tx.send(packets) == 3
    assert lane.rx.recv(8) == packets


def test_alloc_gives_fewer_when_the_ring_is_full(lane: Lane) -> None:
    burst = lane.tx.alloc(20, 10)
    assert len(burst) == 8
    assert lane.tx.counters.ring_full == 1
    none = lane.tx.alloc(1)
    assert len(none) == 0
    assert lane.tx.transmit(none) == 0
    none.close()
    assert lane.tx.transmit(burst) == 8


def test_alloc_of_long_packets_gives_whole_chains(lane: Lane) -> None:
    burst = lane.tx.alloc(3, 150)
    assert [burst.length(index) for index in range(len(burst))] == [64, 64, 22] * 2
    assert [int(burst.flags(index)) for index in range(len(burst))] == [1, 1, 0] * 2
    assert [len(packet.views) for packet in burst.packets()] == [3, 3]
    assert lane.tx.free() == 2
    for view in burst:
        view[:] = b"x" * len(view)
    lane.tx.transmit(burst)
    assert lane.rx.recv(8) == [b"x" * 150] * 2


@pytest.mark.parametrize(("count", "size"), [(0, 1), (-1, 1), (1, 0), (1, -5)])
def test_alloc_of_nothing_is_refused(lane: Lane, count: int, size: int) -> None:
    with pytest.raises(ConfigError):
        lane.tx.alloc(count, size)


def test_alloc_of_more_than_the_ring_is_refused(lane: Lane) -> None:
    with pytest.raises(ConfigError, match="513"):
        lane.tx.alloc(1, 513)
    assert len(lane.tx.alloc(1, 512)) == 8


def test_transmit_in_parts(lane: Lane) -> None:
    burst = lane.tx.alloc(5, 1)
    for number, view in enumerate(burst):
        view[0] = number
    assert lane.tx.transmit(burst, 2) == 2
    assert (burst.sent, len(burst)) == (2, 3)
    assert burst[0][0] == 2
    assert lane.tx.transmit(burst, 0) == 0
    assert lane.tx.transmit(burst, 1) == 1
    assert lane.tx.transmit(burst, 100) == 2
    assert lane.rx.recv(8) == [bytes([number]) for number in range(5)]


def test_transmitted_burst_cannot_be_transmitted_again(lane: Lane) -> None:
    burst = lane.tx.alloc(1, 1)
    lane.tx.transmit(burst)
    with pytest.raises(ConfigError):
        lane.tx.transmit(burst)
    burst.close()
    assert (lane.tx.free(), lane.rx.pending()) == (7, 1)


def test_bursts_are_transmitted_in_order_of_allocation(lane: Lane) -> None:
    older, newer = lane.tx.alloc(1, 1), lane.tx.alloc(1, 1)
    older[0][0], newer[0][0] = 1, 2
    with pytest.raises(ConfigError, match="oldest"):
        lane.tx.transmit(newer)
    lane.tx.transmit(older)
    lane.tx.transmit(newer)
    assert lane.rx.recv(8) == [b"\1", b"\2"]


def test_shortened_buffer_is_sent_shorter(lane: Lane) -> None:
    burst = lane.tx.alloc(1)
    burst[0][:6] = b"packet"
    burst.set_length(0, 6)
    lane.tx.transmit(burst)
    assert lane.rx.recv(1) == [b"packet"]
    assert len(lane.tx.alloc(7)) == 7
    with pytest.raises(ConfigError):
        lane.tx.alloc(7, 0)


def test_slave_moves_the_start_of_a_buffer_and_a_master_may_not(ends: Ends) -> None:
    burst = ends.s2m.tx.alloc(1)
    burst[0][:] = bytes(range(64))
    burst.advance(0, 60)
    ends.s2m.tx.transmit(burst)
    assert ends.s2m.raw[0].offset == ends.s2m.offsets[0] + 60
    assert ends.s2m.rx.recv(1) == [bytes(range(60, 64))]
    burst = ends.m2s.tx.alloc(1)
    with pytest.raises(ConfigError, match="master"):
        burst.advance(0, 1)
    burst.close()


def test_moved_start_is_forgotten_when_the_slot_is_used_again(ends: Ends) -> None:
    lane = ends.s2m
    for _ in range(3):
        burst = lane.tx.alloc(8)
        assert [len(view) for view in burst] == [64] * 8
        for index in range(8):
            burst.advance(index, 10)
        lane.tx.transmit(burst)
        assert [len(packet) for packet in lane.rx.recv(8)] == [54] * 8


def test_closing_an_allocation_gives_its_slots_back(lane: Lane) -> None:
    with lane.tx.alloc(3):
        assert lane.tx.free() == 5
    assert lane.tx.free() == 8
    burst = lane.tx.alloc(4, 1)
    burst[0][0] = 7
    lane.tx.transmit(burst, 1)
    burst.close()
    assert lane.tx.free() == 7
    assert lane.tx.send([b"next"]) == 1
    assert lane.rx.recv(8) == [b"\7", b"next"]


def test_allocations_closed_newest_first(lane: Lane) -> None:
    older, newer = lane.tx.alloc(2), lane.tx.alloc(3)
    newer.close()
    assert lane.tx.free() == 6
    again = lane.tx.alloc(1, 4)
    again[0][:] = b"next"
    older[0][:], older[1][:] = b"a" * 64, b"b" * 64
    assert lane.tx.transmit(older) == 2
    assert lane.tx.transmit(again) == 1
    assert lane.rx.recv(8) == [b"a" * 64, b"b" * 64, b"next"]


def test_allocations_closed_oldest_first(lane: Lane) -> None:
    older, newer = lane.tx.alloc(2), lane.tx.alloc(3)
    older.close()
    assert lane.tx.free() == 3, "they wait for the newer burst"
    with pytest.raises(ConfigError):
        lane.tx.transmit(newer)
    newer.close()
    assert lane.tx.free() == 8
    assert lane.tx.send([b"next"]) == 1
    assert lane.rx.recv(8) == [b"next"]


def test_rewind_gives_back_from_a_buffer_on(lane: Lane) -> None:
    burst = lane.tx.alloc(5, 1)
    views = list(burst)
    lane.tx.rewind(burst, 2)
    assert (len(burst), lane.tx.free()) == (2, 6)
    with pytest.raises(ValueError):
        views[3][0]
    burst[0][0], burst[1][0] = 1, 2
    lane.tx.transmit(burst)
    assert lane.rx.recv(8) == [b"\1", b"\2"]


def test_rewind_gives_back_newer_allocations_too(lane: Lane) -> None:
    older, newer = lane.tx.alloc(2, 1), lane.tx.alloc(2, 1)
    view = newer[0]
    lane.tx.rewind(older, 1)
    assert lane.tx.free() == 7
    for touch in (lambda: view[0], lambda: newer[0]):
        with pytest.raises(ValueError):
            touch()
    newer.close()
    assert lane.tx.free() == 7
    lane.tx.rewind(older, 0)
    assert lane.tx.free() == 8
    assert lane.tx.send([b"next"]) == 1


def test_rewind_after_a_part_was_sent_leaves_nothing_open(lane: Lane) -> None:
    burst = lane.tx.alloc(4, 1)
    burst[0][0], burst[1][0] = 1, 2
    lane.tx.transmit(burst, 2)
    lane.tx.rewind(burst, 0)
    assert lane.tx.free() == 6
    again = lane.tx.alloc(1, 1)
    again[0][0] = 3
    assert lane.tx.transmit(again) == 1
    assert lane.rx.recv(8) == [b"\1", b"\2", b"\3"]


def test_rewind_gives_back_an_older_allocation_that_was_given_up(lane: Lane) -> None:
    older, newer = lane.tx.alloc(1), lane.tx.alloc(1)
    older.close()
    lane.tx.rewind(newer, 0)
    assert lane.tx.free() == 8
    assert lane.tx.send([b"next"]) == 1


def test_rewind_to_what_is_not_allocated_is_refused(lane: Lane) -> None:
    burst = lane.tx.alloc(4, 1)
    lane.tx.transmit(burst, 2)
    for index in (2, 4, -3, -5):
        with pytest.raises(ConfigError):
            lane.tx.rewind(burst, index)
    lane.tx.transmit(burst)
    with pytest.raises(ConfigError):
        lane.tx.rewind(burst, 3)
    closed = lane.tx.alloc(1)
    closed.close()
    with pytest.raises(ConfigError):
        lane.tx.rewind(closed, 0)


def test_burst_of_another_ring_is_refused(make_ends: MakeEnds, sender: str) -> None:
    ends = make_ends(rings=2)
    one, other = ends.all_s2m if sender == "slave" else ends.all_m2s
    burst = one.tx.alloc(1)
    with pytest.raises(ConfigError):
        other.tx.transmit(burst)
    with pytest.raises(ConfigError):
        other.tx.rewind(burst, 0)
    one.tx.transmit(burst)
    with one.rx.burst(1) as received, pytest.raises(ConfigError):
        one.tx.transmit(received)


# --- the limit of recv ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [False, True], ids=["", "a burst is held"])
def test_the_limit_of_recv_counts_packets_however_many_buffers_they_have(lane: Lane, held: bool) -> None:
    lane.tx.send([b"held"] * held)
    burst = lane.rx.burst(1)
    packets = [b"a" * 100, b"b", b"c" * 100, b"d"]
    assert lane.tx.send(packets) == 4
    assert lane.rx.recv(3) == packets[:3]
    assert lane.rx.recv(3) == packets[3:]
    burst.close()
    assert lane.tx.free() == lane.tx.size


@pytest.mark.parametrize("held", [False, True], ids=["", "a burst is held"])
def test_recv_into_fills_as_many_rows_as_there_are_packets(lane: Lane, held: bool) -> None:
    lane.tx.send([b"held"] * held)
    burst = lane.rx.burst(1)
    lane.tx.send([b"a" * 100, b"b", b"c" * 100, b"d"])
    matrix, lengths = bytearray(3 * 4), array("I", [0] * 3)
    assert lane.rx.recv_into(memoryview(matrix).cast("B", (3, 4)), lengths) == 3
    assert (bytes(matrix), list(lengths)) == (b"aaaab\0\0\0cccc", [100, 1, 100])
    burst.close()
    assert lane.rx.recv(8) == [b"d"]


# --- what is left of a burst ----------------------------------------------------------------------------------------


def check_left(burst: Burst, left: list[bytes]) -> None:
    """Length, indices, iteration and packets all speak of the same buffers."""
    assert len(burst) == len(left)
    assert [bytes(view) for view in burst] == left
    assert [bytes(burst[index]) for index in range(len(burst))] == left
    assert [bytes(burst[index]) for index in range(-len(burst), 0)] == left
    assert [burst.length(index) for index in range(len(burst))] == [len(data) for data in left]
    assert b"".join(bytes(packet) for packet in burst.packets()) == b"".join(left)
    for index in (len(burst), -len(burst) - 1):
        with pytest.raises(IndexError, match=f"of a burst of {len(left)}"):
            burst[index]


@pytest.mark.parametrize("role", ["slave", "master"])
def test_after_a_partial_forward_everything_speaks_of_what_is_left(ends: Ends, role: str) -> None:
    rx, tx = ends.crossing(role)
    there, back = (ends.m2s, ends.s2m) if role == "slave" else (ends.s2m, ends.m2s)
    packets = [bytes([number]) * 8 for number in range(6)]
    assert back.tx.send([b"in the way"] * 4) == 4  # room for four is left
    there.tx.send(packets)
    with rx.burst(8) as burst:
        check_left(burst, packets)
        found = list(burst.packets())
        held = burst[5]
        slots = [burst.slot(index) for index in range(6)]
        assert tx.forward(burst) == 4
        check_left(burst, packets[4:])
        assert [burst.slot(index) for index in range(2)] == slots[4:]
        assert bytes(held) == packets[5], "a view stays the view of its buffer"
        with pytest.raises(ValueError, match="has been sent"):
            found[3].drop()
        found[4].drop()
        burst.set_length(1, 3)
        back.rx.recv(8)
        assert tx.forward(burst) == 1
        check_left(burst, [])
    assert back.rx.recv(8) == [packets[5][:3]]
    ends.check_each_buffer_is_in_one_slot()


def test_after_a_partial_transmit_everything_speaks_of_what_is_left(lane: Lane) -> None:
    with lane.tx.alloc(4, 1) as burst:
        for number, view in enumerate(burst):
            view[0] = number
            lane.tx.transmit(burst, 1 if number < 2 else 0)
        check_left(burst, [b"\2", b"\3"])
        lane.tx.rewind(burst, 1)
        check_left(burst, [b"\2"])
    assert lane.rx.recv(8) == [b"\0", b"\1"]


def test_buffers_are_enqueued_from_what_is_left(ends: Ends) -> None:
    rx, tx = ends.crossing("slave")
    assert ends.s2m.tx.send([b"in the way"] * 6) == 6
    ends.m2s.tx.send([b"zero", b"one", b"two", b"three"])
    with rx.burst(8) as burst:
        assert tx.forward(burst) == 2
        ends.s2m.rx.recv(8)
        for first, count in ((3, 0), (-1, 1), (0, -1)):
            with pytest.raises(ConfigError, match=f"{count} buffers from {first} on, of a burst of 2"):
                tx.enqueue(burst, first, count)
        assert tx.transmit(tx.enqueue(burst, 1, 5)) == 1
    assert ends.s2m.rx.recv(8) == [b"three"]
    ends.check_each_buffer_is_in_one_slot()


def test_an_old_loop_over_what_is_left_warns_and_works(lane: Lane) -> None:
    burst = lane.tx.alloc(5, 1)
    lane.tx.transmit(burst, 2)
    with pytest.warns(DeprecationWarning, match=r"burst\.done is now 0: len\(burst\)"):
        assert len(burst) - burst.done == 3
    with pytest.warns(DeprecationWarning, match="burst.sent"):
        assert [index for index in range(burst.done, len(burst)) if burst[index]] == [0, 1, 2]


# --- forward --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["slave", "master"])
def test_forwarded_packets_go_back_whole(ends: Ends, role: str) -> None:
    rx, tx = ends.crossing(role)
    there, back = (ends.m2s, ends.s2m) if role == "slave" else (ends.s2m, ends.m2s)
    packets = [b"one", bytes(range(150)), b"two", bytes(64)]
    there.tx.send(packets)
    with rx.burst(256) as burst:
        view = burst[0]
        assert tx.forward(burst) == 6
        assert (burst.sent, len(burst)) == (6, 0)
        with pytest.raises(ValueError):
            view[0]
        with pytest.raises(IndexError, match="after 6 sent"):
            burst[0]
        assert tx.forward(burst) == 0
    assert back.rx.recv(256) == packets
    assert there.tx.free() == back.tx.free() == 8
    assert tx.counters.packets == rx.counters.packets == 4
    assert tx.counters.bytes == sum(map(len, packets))


@pytest.mark.parametrize("role", ["slave", "master"])
def test_forward_sends_what_the_application_wrote_and_trimmed(ends: Ends, role: str) -> None:
    rx, tx = ends.crossing(role)
    there, back = (ends.m2s, ends.s2m) if role == "slave" else (ends.s2m, ends.m2s)
    there.tx.send([b"header:question"])
    with rx.burst(1) as burst:
        burst.advance(0, 7)
        burst[0][:6] = b"answer"
        burst.set_length(0, 6)
        tx.forward(burst)
    assert back.rx.recv(1) == [b"answer"]


@pytest.mark.parametrize("role", ["slave", "master"])
def test_forward_stops_at_a_whole_packet_when_the_ring_is_full_and_goes_on_later(ends: Ends, role: str) -> None:
    rx, tx = ends.crossing(role)
    there, back = (ends.m2s, ends.s2m) if role == "slave" else (ends.s2m, ends.m2s)
    assert tx.send([b"before"] * 5) == 5
    packets = [b"one", bytes(range(150)), b"two"]
    there.tx.send(packets)
    with rx.burst(256) as burst:
        assert tx.forward(burst) == 1
        assert tx.counters.ring_full == 1
        assert [bytes(view) for view in burst] == [packets[1][:64], packets[1][64:128], packets[1][128:], packets[2]]
        assert contents(burst) == packets[1:]
        assert tx.forward(burst) == 0
        assert back.rx.recv(256) == [b"before"] * 5 + packets[:1]
        assert tx.forward(burst) == 4
    assert back.rx.recv(256) == packets[1:]


@pytest.mark.parametrize("role", ["slave", "master"])
def test_packets_not_forwarded_are_dropped_with_the_burst(ends: Ends, role: str) -> None:
    rx, tx = ends.crossing(role)
    there, back = (ends.m2s, ends.s2m) if role == "slave" else (ends.s2m, ends.m2s)
    tx.send([b"before"] * 7)
    there.tx.send([b"one", b"two", b"three"])
    with rx.burst(3) as burst:
        assert tx.forward(burst) == 1
    assert there.tx.free() == 8
    assert back.rx.recv(256) == [b"before"] * 7 + [b"one"]


def test_slave_forwards_by_swapping_buffers(ends: Ends) -> None:
    received, spare = list(ends.m2s.offsets), list(ends.s2m.offsets)
    ends.m2s.tx.send([b"packet"] * 3)
    with ends.m2s.rx.burst(3) as burst:
        ends.s2m.tx.forward(burst)
        assert [ends.s2m.raw[slot].offset for slot in range(3)] == received[:3]
    assert list(ends.s2m.offsets) == received[:3] + spare[3:]
    assert list(ends.m2s.offsets) == spare[:3] + received[3:]
    assert [d.offset for d in ends.m2s.raw.descriptors()] == list(ends.m2s.offsets), "the swapped buffers are posted"
    assert {d.length for d in ends.m2s.raw.descriptors()} == {64}


def test_master_forwards_by_copying_and_never_moves_region_or_offset(ends: Ends) -> None:
    def places() -> list[list[tuple[int, int]]]:
        return [[(d.region, d.offset) for d in lane.raw.descriptors()] for lane in ends.lanes]

    pass_packets(ends.s2m, 8)
    before = places()
    for size in (3, 64, 65, 200):
        ends.s2m.tx.send([bytes(size), b"x"])
        with ends.s2m.rx.burst(256) as burst:
            ends.m2s.tx.forward(burst)
        with ends.m2s.tx.alloc(2, 70) as allocated:
            ends.m2s.tx.transmit(allocated, 2)
        ends.m2s.rx.recv(256)
        assert places() == before


def test_forward_clears_what_the_peer_left_in_a_descriptor(ends: Ends) -> None:
    ends.m2s.tx.send([b"packet"])
    ends.m2s.raw.change(0, flags=0xFFFE, metadata=0x12345678)
    with ends.m2s.rx.burst(1) as burst:
        assert burst.flags(0) == BufferFlag(0)
        ends.s2m.tx.forward(burst)
    assert (ends.s2m.raw[0].flags, ends.s2m.raw[0].metadata) == (0, 0)
    assert ends.s2m.rx.recv(1) == [b"packet"]


@pytest.mark.parametrize("role", ["slave", "master"])
def test_forward_between_two_connections_copies(make_ends: MakeEnds, role: str) -> None:
    one, other = make_ends(), make_ends(buffer_size=50)
    rx = one.crossing(role)[0]
    packets = [b"short", bytes(range(150))]
    (one.m2s if role == "slave" else one.s2m).tx.send(packets)
    offsets = [list(lane.offsets) for lane in one.lanes + other.lanes]
    for sink in (other.s2m, other.m2s):
        with rx.burst(256) as burst:
            assert sink.tx.forward(burst) == 4
        assert sink.rx.recv(256) == packets
        (one.m2s if role == "slave" else one.s2m).tx.send(packets)
    assert [list(lane.offsets) for lane in one.lanes + other.lanes] == offsets
    rx.recv(256)


def test_forward_is_refused_while_buffers_are_allocated(ends: Ends) -> None:
    for role, there in (("slave", ends.m2s), ("master", ends.s2m)):
        rx, tx = ends.crossing(role)
        there.tx.send([b"packet"])
        with rx.burst(1) as burst, tx.alloc(1):
            with pytest.raises(ConfigError, match="transmitted or given back"):
                tx.forward(burst)
            assert bytes(burst[0]) == b"packet"


@pytest.mark.parametrize("role", ["slave", "master"])
def test_burst_that_has_ended_is_not_forwarded(ends: Ends, role: str) -> None:
    rx, tx = ends.crossing(role)
    there, back = (ends.m2s, ends.s2m) if role == "slave" else (ends.s2m, ends.m2s)
    there.tx.send(fill(3, 4))
    with rx.burst(3) as burst:
        pass
    with pytest.raises(ValueError):
        tx.forward(burst)
    assert back.rx.pending() == 0
    assert ends.m2s.raw[0].offset == ends.m2s.offsets[0], "what is posted is what the slave has on record"


@pytest.mark.parametrize("role", ["slave", "master"])
def test_allocated_burst_is_not_forwarded(make_ends: MakeEnds, role: str) -> None:
    ends = make_ends(rings=2)
    one, other = ends.all_s2m if role == "slave" else ends.all_m2s
    with one.tx.alloc(2, 4) as burst, pytest.raises(ConfigError):
        other.tx.forward(burst)
    assert (one.tx.free(), other.rx.pending()) == (8, 0)


@pytest.mark.parametrize("role", ["slave", "master"])
def test_buffers_given_back_by_refill_are_not_forwarded(ends: Ends, role: str) -> None:
    rx, tx = ends.crossing(role)
    there, back = (ends.m2s, ends.s2m) if role == "slave" else (ends.s2m, ends.m2s)
    packets = fill(4, 4)
    there.tx.send(packets)
    with rx.burst(4) as burst:
        rx.refill(3)
        assert tx.forward(burst) == 1
    assert back.rx.recv(8) == packets[3:]


# --- enqueue and exchange -------------------------------------------------------------------------------------------


def test_enqueue_swaps_received_buffers_into_the_transmit_ring(ends: Ends) -> None:
    packets = fill(4, 6)
    ends.m2s.tx.send(packets)
    received, spare = list(ends.m2s.offsets), list(ends.s2m.offsets)
    with ends.m2s.rx.burst(4) as burst:
        view = burst[1]
        queued = ends.s2m.tx.enqueue(burst, 1, 2)
        with pytest.raises(ValueError):
            view[0]
        assert [bytes(view) for view in queued] == packets[1:3]
        assert ends.s2m.tx.free() == 6
        assert bytes(burst[0]) == packets[0]
        assert [burst.length(index) for index in range(4)] == [6, 64, 64, 6]
        assert ends.s2m.tx.transmit(queued) == 2
    assert list(ends.s2m.offsets[:2]) == received[1:3]
    assert list(ends.m2s.offsets) == [received[0], spare[0], spare[1], *received[3:]]
    assert ends.s2m.rx.recv(8) == packets[1:3]


def test_enqueued_buffers_can_be_given_up(ends: Ends) -> None:
    ends.m2s.tx.send(fill(2, 6))
    with ends.m2s.rx.burst(2) as burst:
        ends.s2m.tx.enqueue(burst, 0, 2).close()
        assert ends.s2m.tx.free() == 8
    assert ends.s2m.tx.send(fill(8, 64)) == 8
    assert ends.s2m.rx.recv(8) == fill(8, 64)


def test_enqueue_keeps_chains(ends: Ends) -> None:
    packet = bytes(range(150))
    ends.m2s.tx.send([packet])
    with ends.m2s.rx.burst(1) as burst:
        ends.s2m.tx.transmit(ends.s2m.tx.enqueue(burst, 0, 3))
    assert ends.s2m.rx.recv(1) == [packet]


def test_enqueue_takes_fewer_when_the_ring_is_full(ends: Ends) -> None:
    ends.s2m.tx.send([b"x"] * 6)
    ends.m2s.tx.send(fill(4, 6))
    with ends.m2s.rx.burst(4) as burst:
        queued = ends.s2m.tx.enqueue(burst, 0, 4)
        assert len(queued) == 2
        assert len(ends.s2m.tx.enqueue(burst, 2, 2)) == 0
        assert [bytes(view) for view in itertools.islice(burst, 2, 4)] == fill(4, 6)[2:]
        ends.s2m.tx.transmit(queued)


@pytest.mark.parametrize(("first", "count"), [(5, 1), (4, 5), (-1, 1), (0, -1), (0, -3)])
def test_enqueue_outside_the_burst_does_no_harm(ends: Ends, first: int, count: int) -> None:
    ends.m2s.tx.send(fill(4, 6))
    with ends.m2s.rx.burst(4) as burst:
        try:
            queued = ends.s2m.tx.enqueue(burst, first, count)
        except (ConfigError, IndexError):
            pass
        else:
            assert len(queued) == 0
        assert ends.s2m.tx.free() == 8
    assert ends.s2m.tx.send(fill(8, 6)) == 8
    assert ends.s2m.rx.recv(8) == fill(8, 6)


def test_enqueue_of_an_exported_view_moves_nothing(ends: Ends) -> None:
    packets = fill(3, 6)
    ends.m2s.tx.send(packets)
    offsets = [list(lane.offsets) for lane in ends.lanes]
    with ends.m2s.rx.burst(3) as burst:
        exported = held(burst[2])
        with pytest.raises(BufferError):
            ends.s2m.tx.enqueue(burst, 0, 3)
        assert [list(lane.offsets) for lane in ends.lanes] == offsets
        assert (ends.s2m.tx.free(), contents(burst)[:2]) == (8, packets[:2])
        exported.release()


def test_enqueue_is_for_the_rings_of_one_slave(make_ends: MakeEnds) -> None:
    one, other = make_ends(), make_ends()
    one.m2s.tx.send([b"packet"])
    one.s2m.tx.send([b"packet"])
    with one.m2s.rx.burst(1) as burst, pytest.raises(ConfigError):
        other.s2m.tx.enqueue(burst, 0, 1)
    with one.s2m.rx.burst(1) as burst, pytest.raises(ConfigError):
        one.m2s.tx.enqueue(burst, 0, 1)
    with one.s2m.rx.burst(1) as burst, pytest.raises(ConfigError):
        one.s2m.tx.enqueue(burst, 0, 1)


def test_exchange_swaps_two_received_buffers(make_ends: MakeEnds, implementation: RingImplementation) -> None:
    ends = make_ends(rings=2)
    one, other = ends.all_m2s
    one.tx.send([b"one", b"two"])
    other.tx.send([b"three"])
    offsets = one.offsets[1], other.offsets[0]
    with one.rx.burst(2) as burst_a, other.rx.burst(1) as burst_b:
        view = burst_a[1]
        implementation.exchange(burst_a, 1, burst_b, 0)
        with pytest.raises(ValueError):
            view[0]
        assert [bytes(view) for view in burst_a] == [b"one", b"three"]
        assert [bytes(view) for view in burst_b] == [b"two"]
        assert (other.offsets[0], one.offsets[1]) == offsets
        implementation.exchange(burst_a, 0, burst_a, 1)
        assert [bytes(view) for view in burst_a] == [b"three", b"one"]
        implementation.exchange(burst_a, 0, burst_a, 0)
        assert bytes(burst_a[0]) == b"three"
    for lane in (one, other):
        assert [d.offset for d in lane.raw.descriptors()] == list(lane.offsets)
        pass_packets(lane, 9)


def test_exchange_of_a_received_and_an_allocated_buffer_sends_it(
    ends: Ends, implementation: RingImplementation
) -> None:
    ends.m2s.tx.send([b"packet"])
    with ends.m2s.rx.burst(1) as received, ends.s2m.tx.alloc(2, 9) as allocated:
        allocated[1][:] = b"of my own"
        implementation.exchange(received, 0, allocated, 0)
        assert received.length(0) == 9
        assert bytes(allocated[0]) == b"packet"
        assert ends.s2m.tx.transmit(allocated) == 2
    assert ends.s2m.rx.recv(8) == [b"packet", b"of my own"]


def test_exchange_is_for_the_rings_of_one_slave(make_ends: MakeEnds, implementation: RingImplementation) -> None:
    one, other = make_ends(), make_ends()
    for lane in (one.m2s, one.s2m, other.m2s):
        lane.tx.send([b"packet"])
    with one.m2s.rx.burst(1) as mine, other.m2s.rx.burst(1) as foreign, one.s2m.rx.burst(1) as master:
        for burst_a, burst_b in ((mine, foreign), (mine, master), (master, mine), (master, master)):
            with pytest.raises(ConfigError, match="one slave"):
                implementation.exchange(burst_a, 0, burst_b, 0)
        assert {bytes(burst[0]) for burst in (mine, foreign, master)} == {b"packet"}


@pytest.mark.parametrize("step", [1, 3, 7])
def test_every_buffer_is_in_one_slot_after_many_forwards(make_ends: MakeEnds, step: int) -> None:
    ends = make_ends(rings=2)
    sizes = itertools.cycle([1, 64, 65, 30, 200])
    for turn in range(200):
        source = ends.all_m2s[turn % 2]
        sink = ends.all_s2m[turn // 2 % 2]
        packets = [bytes([turn & 0xFF]) * next(sizes) for _ in range(2)]
        sent = source.tx.send(packets)
        received = []
        while burst := source.rx.burst(step):
            with burst:
                while len(burst):
                    sink.tx.forward(burst)
                    received += sink.rx.recv(step)
        received += sink.rx.recv(8)
        assert received == packets[:sent]
    ends.check_each_buffer_is_in_one_slot()
    assert [list(lane.offsets) for lane in ends.lanes] != [sorted(lane.offsets) for lane in ends.lanes]


# --- vectors, relay, untake -----------------------------------------------------------------------------------------


def matrix(rows: int, width: int) -> tuple[bytearray, memoryview]:
    store = bytearray(rows * width)
    return store, memoryview(store).cast("B", (rows, width))


@pytest.mark.parametrize("kind", ["H", "I", "Q", "h", "i", "q"])
def test_vectors_there_and_back(lane: Lane, kind: str) -> None:
    store, rows = matrix(3, 100)
    packets = fill(1, 100) + fill(1, 7, seed=50) + fill(1, 64, seed=90)
    for number, packet in enumerate(packets):
        store[number * 100 : number * 100 + len(packet)] = packet
    assert lane.tx.send_from(rows, array(kind, map(len, packets))) == 3
    received, into = matrix(8, 120)
    lengths = array(kind, [99] * 8)
    assert lane.rx.recv_into(into, lengths) == 3
    assert list(lengths) == [100, 7, 64] + [99] * 5
    assert [bytes(received[number * 120 :][: lengths[number]]) for number in range(3)] == packets
    assert lane.tx.free() == 8
    assert lane.rx.recv_into(into, lengths) == 0


def test_recv_into_takes_as_many_buffers_as_there_are_rows(lane: Lane) -> None:
    lane.tx.send(fill(5, 4))
    _, into = matrix(8, 4)
    assert lane.rx.recv_into(into, array("I", [0] * 2)) == 2
    assert lane.rx.more
    assert lane.rx.recv_into(into, array("I")) == 0
    assert lane.rx.pending() == 3


@pytest.mark.parametrize("sender", ["slave", "master"])
@pytest.mark.parametrize("count", [31, 33])  # 62 and 66 KiB: the larger one is copied without the GIL
def test_large_copies_are_like_small_ones(make_ends: MakeEnds, sender: str, count: int) -> None:
    ends = make_ends(log2_size=8, buffer_size=1024)
    lane = ends.s2m if sender == "slave" else ends.m2s
    rows, into = matrix(count, 2048)
    rows[:] = bytes(number % 251 for number in range(count * 2048))
    packets = [bytes(rows[number * 2048 : (number + 1) * 2048]) for number in range(count)]
    lengths = array("I", [2048] * count)
    assert lane.tx.send_from(into, lengths) == count
    with lane.rx.burst(1024) as burst:
        target = bytearray(count * 2100)
        _, size = burst.pack_into(target, b"", 65536)
        packed, at = [], 0
        while at < size:
            length = int.from_bytes(target[at : at + 4], "little")
            packed.append(bytes(target[at + 8 : at + 8 + length]))
            at += 8 + length
        assert packed == packets
    assert lane.tx.send_from(into, lengths) == count
    _, taken = matrix(count, 2048)
    sizes = array("I", [0] * count)
    assert lane.rx.recv_into(taken, sizes) == count
    assert bytes(taken) == b"".join(packets)
    assert sizes == lengths
    lengths[count - 1] = 0
    with pytest.raises(ConfigError, match=f"packet {count - 1} is empty"):
        lane.tx.send_from(into, lengths)
    assert lane.tx.send([b"and on"]) == 1  # nothing was sent, and the ring can be used
    assert lane.rx.recv(8) == [b"and on"]


def test_recv_into_cuts_a_packet_longer_than_a_row_and_tells_its_length(lane: Lane) -> None:
    packets = [bytes(range(1, 101)), b"next"]
    lane.tx.send(packets)
    received, into = matrix(3, 10)
    lengths = array("I", [0] * 3)
    assert lane.rx.recv_into(into, lengths) == 2
    assert list(lengths[:2]) == [100, 4]
    assert bytes(received) == packets[0][:10] + b"next".ljust(20, b"\0")


@pytest.mark.parametrize("length", [0, 11, -1, -5])
def test_send_from_refuses_a_length_that_no_row_has_and_sends_nothing(lane: Lane, length: int) -> None:
    _, rows = matrix(2, 10)
    with pytest.raises(ConfigError, match="packet 1"):
        lane.tx.send_from(rows, array("i", [4, length]))
    assert (lane.tx.free(), lane.rx.pending()) == (8, 0)


def test_vectors_of_the_wrong_shape_are_refused(lane: Lane) -> None:
    _, rows = matrix(2, 10)
    for wrong in (bytearray(20), memoryview(array("H", range(20))).cast("B").cast("H", (2, 10))):
        with pytest.raises(ConfigError, match="matrix"):
            lane.tx.send_from(wrong, array("I", [1, 1]))
        with pytest.raises(ConfigError, match="matrix"):
            lane.rx.recv_into(wrong, array("I", [1, 1]))
    for wrong_lengths in (array("d", [1.0, 1.0]), bytearray(2), rows):
        with pytest.raises(ConfigError, match="lengths"):
            lane.tx.send_from(rows, wrong_lengths)
        with pytest.raises(ConfigError, match="lengths"):
            lane.rx.recv_into(rows, wrong_lengths)
    assert lane.rx.pending() == 0


def test_send_from_without_chains_refuses_a_long_row(lane: Lane) -> None:
    _, rows = matrix(1, 65)
    with pytest.raises(ConfigError, match="chains"):
        lane.tx.send_from(rows, array("I", [65]), chain=False)
    assert lane.tx.send_from(rows, array("I", [65])) == 1


@pytest.mark.parametrize("role", ["slave", "master"])
def test_relay_receives_and_forwards_what_fits(ends: Ends, role: str) -> None:
    rx, tx = ends.crossing(role)
    there, back = (ends.m2s, ends.s2m) if role == "slave" else (ends.s2m, ends.m2s)
    packets = [b"one", bytes(range(150)), b"two", b"three"]
    there.tx.send(packets)
    assert tx.send([b"before"] * 6) == 6
    assert tx.relay(rx, 256) == 1
    assert (rx.pending(), there.tx.free()) == (5, 3)
    assert back.rx.recv(256) == [b"before"] * 6 + packets[:1]
    assert tx.relay(rx, 4) == 4
    assert tx.relay(rx, 256) == 1
    assert tx.relay(rx, 256) == 0
    assert back.rx.recv(256) == packets[1:]
    assert rx.counters == QueueCounters(packets=4, bytes=161)
    assert there.tx.free() == back.tx.free() == 8


def test_untaken_buffers_are_received_again(lane: Lane) -> None:
    packets = fill(4, 9)
    lane.tx.send(packets)
    with lane.rx.burst(3) as burst:
        view = burst[0]
        lane.rx.untake(burst)
        with pytest.raises(ValueError):
            view[0]
        assert len(burst) == 0
    assert (lane.rx.pending(), lane.tx.free()) == (4, 4)
    assert lane.rx.counters == QueueCounters()
    assert lane.rx.recv(8) == packets
    assert lane.rx.counters == QueueCounters(packets=4, bytes=36)


def test_burst_taken_after_an_untaken_one_goes_back_by_itself(lane: Lane) -> None:
    lane.tx.send(fill(4, 9))
    untaken = lane.rx.burst(3)
    lane.rx.untake(untaken)
    with lane.rx.burst(4):
        pass
    assert lane.tx.free() == 8
    untaken.close()
    assert lane.tx.free() == 8


def test_only_the_newest_open_burst_is_untaken(lane: Lane) -> None:
    lane.tx.send(fill(4, 9))
    older, newer = lane.rx.burst(2), lane.rx.burst(2)
    with pytest.raises(ConfigError, match="newest"):
        lane.rx.untake(older)
    newer.close()
    with pytest.raises(ConfigError):
        lane.rx.untake(newer)
    allocated = lane.tx.alloc(1)
    with pytest.raises(ConfigError):
        lane.rx.untake(allocated)


@pytest.mark.parametrize("role", ["slave", "master"])
def test_relay_of_nothing_does_not_look_at_the_transmit_ring_while_bursts_are_held(ends: Ends, role: str) -> None:
    rx, tx = ends.crossing(role)
    lane, back = (ends.m2s, ends.s2m) if role == "slave" else (ends.s2m, ends.m2s)
    lane.tx.send([b"held"])
    with rx.burst(1):
        setattr(back.raw, "tail" if role == "slave" else "head", 0x7FFF)  # what it says is impossible
        assert tx.relay(rx, 8) == 0
        with pytest.raises(RingViolation):
            tx.free()


@pytest.mark.parametrize("role", ["slave", "master"])
def test_relay_refuses_before_it_looks_at_a_packet_while_allocated_buffers_are_open(ends: Ends, role: str) -> None:
    rx, tx = ends.crossing(role)
    lane = ends.m2s if role == "slave" else ends.s2m
    lane.tx.send([b"broken"])
    lane.raw.change(0, region=77)
    tx.alloc(1)
    with pytest.raises(ConfigError, match="must be transmitted or given back first"):
        tx.relay(rx, 8)
    assert rx.more
