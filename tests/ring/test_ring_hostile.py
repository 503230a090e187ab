"""A peer that writes what it likes into shared memory, when it likes: nothing but a RingViolation comes of it."""

from __future__ import annotations

import random
import sys
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from memifrt import ConfigError
from memifrt.errors import RingViolation
from memifrt.ring import Burst, RingImplementation, RxRing, TxRing
from tests.lib.exploring import machine_settings
from tests.lib.rings import IMPLEMENTATIONS, NEXT, U16, Descriptor, Ends, Lane, RawRing, name_of, pass_packets
from tests.lib.threads import Thread

U32 = 0xFFFFFFFF


@pytest.fixture(scope="session", params=IMPLEMENTATIONS, ids=name_of)
def implementation(request: pytest.FixtureRequest) -> RingImplementation:
    chosen: RingImplementation = request.param
    return chosen


@pytest.fixture(params=[False, True], ids=["one region", "two regions"])
def ends(request: pytest.FixtureRequest, implementation: RingImplementation) -> Iterator[Ends]:
    """Rings of 8 buffers of 64 bytes, whose canaries and buffers are checked afterwards."""
    made = Ends(implementation, separate=request.param)
    yield made
    made.check_canaries()
    made.check_each_buffer_is_in_one_slot()


def violation(call: Callable[[], object], *words: str) -> None:
    """The call is refused for what the peer did, with all these words."""
    with pytest.raises(RingViolation) as caught:
        call()
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message


# --- what a message says --------------------------------------------------------------------------------------------


def outside(size: int) -> list[tuple[int, int]]:
    """Offsets and lengths that reach beyond a region of ``size`` bytes."""
    return [
        (size, 1),
        (size - 1, 2),
        (0, size + 1),
        (size + 1, 0),
        (U32, 1),
        (U32, 0),
        (U32, U32),
        (0, U32),
        (1, U32),
        (U32 - 9, 20),
        (0x80000000, 0x80000000),
    ]


@pytest.mark.parametrize("region", [2, 255, 256, U16])
def test_received_descriptor_with_an_unknown_region(ends: Ends, region: int) -> None:
    for lane in ends.lanes:
        pass_packets(lane, 3)
        lane.tx.send([b"one", b"two"])
        lane.raw.change(4, region=region)
        for call in (partial(lane.rx.burst, 8), partial(lane.rx.recv, 8)):
            violation(call, "rx ring 0", "descriptor 4 ", f"region {region}")
        assert lane.rx.counters.bad_descriptors == 2


def test_received_descriptor_beyond_its_region(ends: Ends) -> None:
    size = len(ends.map()[ends.buffer_region])
    for lane in ends.lanes:
        lane.tx.send([b"one", b"two"])
        for offset, length in outside(size):
            lane.raw.change(1, offset=offset, length=length)
            violation(
                partial(lane.rx.burst, 8), "rx ring 0", "descriptor 1 ", f"{size} bytes", f"{offset}", f"{length}"
            )


def test_descriptor_up_to_the_end_of_its_region_is_inside(ends: Ends) -> None:
    memory = ends.map()[ends.buffer_region]
    for slot, (offset, length) in enumerate(((len(memory) - 5, 5), (len(memory), 0), (0, len(memory)))):
        ends.s2m.tx.send([b"packet"])
        ends.s2m.raw.change(slot, offset=offset, length=length)
        with ends.s2m.rx.burst(1) as burst:
            assert bytes(burst[0]) == bytes(memory[offset : offset + length])


def test_bad_descriptor_in_the_middle_of_a_chain(ends: Ends) -> None:
    for lane in ends.lanes:
        lane.tx.send([bytes(200)])
        lane.raw.change(2, offset=U32)
        violation(partial(lane.rx.burst, 1), "rx ring 0", "descriptor 2 ")
        violation(partial(lane.rx.recv, 256), "rx ring 0", "descriptor 2 ")


def test_slave_accepts_data_moved_inside_its_buffer_alone(ends: Ends) -> None:
    lane = ends.m2s
    start = lane.offsets[0]
    lane.tx.send([b"0123456789"])
    for offset, length in (
        (start - 1, 10),
        (start + 1, 64),
        (start + 64, 1),
        (lane.offsets[1], 10),
        (ends.s2m.offsets[0], 10),
        (0, 10),
    ):
        lane.raw.change(0, offset=offset, length=length)
        violation(partial(lane.rx.burst, 1), "rx ring 0", "descriptor 0 ", f"{offset}", f"{length}")
    lane.raw.change(0, offset=start + 4, length=6)
    assert lane.rx.recv(1) == [b"456789"]
    assert lane.raw[0].offset == start, "what is posted is the whole buffer again"
    assert lane.raw[0].length == 64


def test_slave_refuses_its_buffers_offset_in_another_region(implementation: RingImplementation) -> None:
    ends = Ends(implementation, separate=True)
    ends.m2s.tx.send([b"packet"])
    ends.m2s.raw.change(0, region=0, offset=0)
    violation(partial(ends.m2s.rx.burst, 1), "rx ring 0", "descriptor 0 ", "region 0")


def test_head_of_a_received_ring_too_far_ahead(ends: Ends) -> None:
    lane = ends.s2m
    pass_packets(lane, 5)
    for ahead in (9, 100, 0x8000, U16):
        lane.raw.head = (5 + ahead) & U16
        for call in (lane.rx.pending, partial(lane.rx.burst, 1), partial(lane.rx.recv, 1)):
            violation(call, "rx ring 0", f"head {lane.raw.head}")
    lane.raw.head = 5 + 8
    assert lane.rx.pending() == 8


def test_head_of_a_received_ring_over_buffers_that_are_still_held(ends: Ends) -> None:
    lane = ends.s2m
    lane.tx.send([b"packet"] * 6)
    burst = lane.rx.burst(4)
    lane.raw.head = 10
    violation(lane.rx.pending, "rx ring 0", "head 10")
    burst.close()
    assert lane.rx.pending() == 6


def test_head_of_a_received_ring_going_back(ends: Ends) -> None:
    lane = ends.s2m
    lane.tx.send([b"packet"] * 6)
    burst = lane.rx.burst(4)
    lane.raw.head = 2
    violation(lane.rx.pending, "rx ring 0", "head 2", "back")
    burst.close()
    violation(lane.rx.pending, "rx ring 0", "head 2")


def test_head_of_a_transmit_ring_too_far_ahead_or_going_back(ends: Ends) -> None:
    lane = ends.m2s
    pass_packets(lane, 5)
    for head in (14, 1000, 4, U16):
        lane.raw.head = head
        for call in (lane.tx.free, partial(lane.tx.alloc, 1), partial(lane.tx.send, [b"x"])):
            violation(call, "tx ring 0", f"head {head}")
    lane.raw.head = 13
    with lane.tx.alloc(4):
        lane.raw.head = 7
        violation(lane.tx.free, "tx ring 0", "head 7", "back")
        lane.raw.head = 14
        violation(lane.tx.free, "tx ring 0", "head 14")


def test_tail_of_a_received_ring_beyond_what_is_posted(ends: Ends) -> None:
    lane = ends.m2s
    pass_packets(lane, 5)
    for tail in (14, 1000, 4, 0, U16):
        lane.raw.tail = tail
        for call in (lane.rx.pending, partial(lane.rx.burst, 1), partial(lane.rx.recv, 1)):
            violation(call, "rx ring 0", f"tail {tail}")


def test_tail_beyond_head_while_few_buffers_are_posted(implementation: RingImplementation) -> None:
    lane = Ends(implementation, posted=False).m2s
    lane.rx.refill(3)
    lane.raw.tail = 4
    violation(lane.rx.pending, "rx ring 0", "tail 4", "head 3")


def test_tail_of_a_transmit_ring_that_is_neither_sent_nor_in_flight(ends: Ends) -> None:
    lane = ends.s2m
    pass_packets(lane, 20)
    for tail in (21, 11, 1000, U16):
        lane.raw.tail = tail
        for call in (lane.tx.free, partial(lane.tx.alloc, 1), partial(lane.tx.send, [b"x"])):
            violation(call, "tx ring 0", f"tail {tail}")


def test_tail_going_back_over_allocated_buffers(ends: Ends) -> None:
    lane = ends.s2m
    pass_packets(lane, 20)
    lane.tx.alloc(8)
    lane.raw.tail = 12
    for call in (lane.tx.free, partial(lane.tx.alloc, 1)):
        violation(call, "tx ring 0", "tail 12", "back")
    pass_packets(ends.m2s, 3)
    ends.m2s.tx.send([b"packet"] * 6)
    with ends.m2s.rx.burst(6) as burst:
        violation(partial(lane.tx.enqueue, burst, 0, 6), "tx ring 0", "tail 12")


def test_posted_descriptor_outside_its_region(ends: Ends) -> None:
    lane = ends.m2s
    good = lane.raw[1]
    for offset, length in outside(len(ends.map()[ends.buffer_region])):
        lane.raw.change(1, offset=offset, length=length)
        violation(partial(lane.tx.alloc, 8), "tx ring 0", "descriptor 1 ", f"region {ends.buffer_region}", f"{offset}")
        violation(partial(lane.tx.send, [b"one", b"two"]), "tx ring 0", "descriptor 1 ")
    lane.raw.change(1, region=77)
    violation(partial(lane.tx.send, [b"one", b"two"]), "tx ring 0", "descriptor 1 ", "region 77")
    lane.raw[1] = good
    assert lane.tx.send([b"one", b"two"]) == 2


@pytest.mark.parametrize("into", [False, True], ids=["recv", "recv_into"])
def test_packets_before_a_violation_are_returned_and_the_next_call_tells(ends: Ends, into: bool) -> None:
    """A call that wants more packets than the first buffers hold looks again, after it has given those back."""
    for lane, ring in ((ends.s2m, "rx ring 0"), (ends.m2s, "rx ring 0")):
        lane.tx.send([b"x" * 100, b"y" * 100, b"z" * 100])  # two buffers each
        lane.raw.change(5, offset=U32)
        lengths = array("I", [0] * 4)

        def call(lane: Lane = lane, lengths: array[int] = lengths) -> int:
            matrix = memoryview(bytearray(4 * 100)).cast("B", (4, 100))
            return lane.rx.recv_into(matrix, lengths) if into else len(lane.rx.recv(4))

        assert call() == 2
        assert lane.rx.more
        assert lane.rx.counters.bad_descriptors == 0
        violation(call, ring, "descriptor 5 points outside")
        assert lane.rx.counters.bad_descriptors == 1
        assert lane.rx.counters.packets == 2


def test_posted_descriptor_without_room(ends: Ends) -> None:
    lane = ends.m2s
    lane.raw.change(2, length=0)
    violation(partial(lane.tx.send, [b"packet"] * 3), "tx ring 0", "descriptor 2 ", "no room")
    assert lane.rx.pending() == 0, "nothing of it is sent"
    violation(partial(lane.tx.alloc, 3), "tx ring 0", "descriptor 2 ", "no room")
    assert lane.tx.counters.bad_descriptors == 2


@pytest.mark.parametrize("role", ["slave", "master"])
def test_empty_packet_of_the_peer_is_received_and_forwarded(ends: Ends, role: str) -> None:
    rx, tx = ends.crossing(role)
    there, back = (ends.m2s, ends.s2m) if role == "slave" else (ends.s2m, ends.m2s)
    there.tx.send([b"first", b"second"])
    there.raw.change(0, length=0)
    with rx.burst(2) as burst:
        assert [len(view) for view in burst] == [0, 6]
        assert tx.forward(burst) == 2
    assert back.rx.recv(2)[-1] == b"second"


def test_descriptor_is_read_once(ends: Ends) -> None:
    """What the peer writes after the burst was taken changes neither place nor length of a view."""
    for lane in ends.lanes:
        lane.tx.send([b"packet", b"second"])
        with lane.rx.burst(2) as burst:
            for slot in range(2):
                lane.raw[slot] = Descriptor(NEXT, U16, U32, U32, U32)
            assert [bytes(view) for view in burst] == [b"packet", b"second"]
            assert [burst.length(0), burst.flags(0)] == [6, 0]


def test_allocated_place_is_not_read_again(ends: Ends) -> None:
    lane = ends.m2s
    burst = lane.tx.alloc(1, 4)
    for slot in range(8):
        lane.raw[slot] = Descriptor(NEXT, U16, U32, U32, U32)
    burst[0][:] = b"data"
    lane.tx.transmit(burst)
    assert lane.raw[0] == Descriptor(0, ends.buffer_region, 4, lane.offsets[0])
    assert lane.rx.recv(1) == [b"data"]


def test_peer_that_overwrites_the_slaves_descriptors_changes_nothing_in_its_record(ends: Ends) -> None:
    for slot in range(8):
        ends.m2s.raw[slot] = Descriptor(NEXT, U16, U32, U32, U32)
        ends.s2m.raw[slot] = Descriptor(NEXT, U16, U32, U32, U32)
    assert ends.s2m.tx.send([b"packet"]) == 1
    assert ends.s2m.rx.recv(1) == [b"packet"]
    ends.m2s.raw.tail = 8
    violation(partial(ends.m2s.rx.burst, 8), "rx ring 0", "descriptor 0 ")


def test_ring_goes_on_once_the_peer_has_mended_its_descriptor(ends: Ends) -> None:
    for lane in ends.lanes:
        lane.tx.send([b"packet"])
        good = lane.raw[0]
        lane.raw.change(0, region=9)
        violation(partial(lane.rx.burst, 1), "descriptor 0")
        lane.raw[0] = good
        assert lane.rx.recv(1) == [b"packet"]


# --- random mutations between operations ----------------------------------------------------------------------------


@dataclass
class Side:
    """One role under attack: what it receives and sends on, and the bursts that it holds."""

    rx: RxRing
    tx: TxRing
    received: list[Burst] = field(default_factory=list)
    allocated: list[Burst] = field(default_factory=list)


def some(bursts: list[Burst], which: int) -> list[Burst]:
    """One of the bursts, if there is any. A refill may have ended it."""
    return [bursts[which % len(bursts)]] if bursts else []


def has_ended(burst: Burst) -> bool:
    return "ended" in repr(burst)


def check_ended(burst: Burst) -> None:
    """Every use of a burst that has ended is refused, and closing it again is harmless."""
    uses: list[Callable[[], object]] = [
        lambda: burst.pack_into(bytearray(100), b"stamp", 1),
        *(partial(use, 0) for use in (burst.__getitem__, burst.length, burst.flags, burst.slot, burst.drop)),
        lambda: burst.set_length(0, 1),
        lambda: burst.advance(0, 0),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="has ended"):
            use()
    assert list(burst) == []
    assert list(burst.packets()) == []
    burst.close()


ROLES = st.integers(0, 1)
INDEX = st.one_of(st.integers(-3, 3), st.integers(-40, 40), st.integers(0, U16))
ANY_U16 = st.one_of(st.sampled_from([0, 1, 2, 3, 255, 256, 0x7FFF, 0x8000, U16]), st.integers(0, U16))
ANY_U32 = st.one_of(
    st.integers(0, 300),
    st.integers(0, 3000),
    st.sampled_from([0x7FFFFFFF, 0x80000000, U32 - 64, U32 - 1, U32]),
    st.integers(0, U32),
)


class HostileMachine(RuleBasedStateMachine):
    """The victims use their rings while the memory of both rings changes under them."""

    implementation: RingImplementation
    victims: tuple[str, ...] = ("slave", "master")

    @initialize(log2_size=st.integers(0, 4), buffer_size=st.integers(1, 40), separate=st.booleans())
    def connect(self, log2_size: int, buffer_size: int, separate: bool) -> None:
        self.ends = Ends(self.implementation, log2_size=log2_size, buffer_size=buffer_size, separate=separate)
        #: Indices as they were before they were moved.
        self.before: dict[tuple[int, str], int] = {}
        self.sides = {role: Side(*self.ends.crossing(role)) for role in self.victims}

    # --- the peer

    @rule(which=st.integers(0, 1), index=st.sampled_from(["head", "tail"]), by=INDEX)
    def move_index(self, which: int, index: str, by: int) -> None:
        raw = self._raw(which)
        self.before.setdefault((which, index), getattr(raw, index))
        setattr(raw, index, (getattr(raw, index) + by) & U16)

    @rule(which=st.integers(0, 1), flags=ANY_U16, cookie=ANY_U32)
    def rewrite_header(self, which: int, flags: int, cookie: int) -> None:
        self._raw(which).flags = flags
        self._raw(which).cookie = cookie

    @rule(
        which=st.integers(0, 1),
        slot=st.integers(0, 15),
        fields=st.fixed_dictionaries(
            {},
            optional={"flags": ANY_U16, "region": ANY_U16, "length": ANY_U32, "offset": ANY_U32, "metadata": ANY_U32},
        ),
    )
    def rewrite_descriptor(self, which: int, slot: int, fields: dict[str, int]) -> None:
        self._raw(which).change(slot, **fields)

    @rule(which=st.integers(0, 1), flags=st.sampled_from([0, NEXT]))
    def rewrite_every_flag(self, which: int, flags: int) -> None:
        raw = self._raw(which)
        for slot in range(raw.size):
            raw.change(slot, flags=flags)

    @rule(which=st.integers(0, 1), slot=st.integers(0, 15), other=st.integers(0, 15))
    def copy_descriptor(self, which: int, slot: int, other: int) -> None:
        self._raw(which)[slot] = self._raw(1 - which)[other]

    @rule()
    def mend(self) -> None:
        """Become a plausible peer again: a ring that stays broken is never used."""
        for (which, index), value in self.before.items():
            setattr(self._raw(which), index, value)
        self.before.clear()
        for lane in self.ends.lanes:
            for slot, offset in enumerate(lane.offsets):
                lane.raw[slot] = Descriptor(0, self.ends.buffer_region, self.ends.buffer_size, offset)

    def _raw(self, which: int) -> RawRing:
        return self.ends.lanes[which].raw

    # --- the sides under attack

    @rule(role=ROLES, limit=st.integers(1, 20))
    def recv(self, role: int, limit: int) -> None:
        with suppress(RingViolation):
            packets = self._side(role).rx.recv(limit)
            assert len(packets) <= self.ends.size

    @rule(role=ROLES, rows=st.integers(1, 20), width=st.integers(1, 90))
    def recv_into(self, role: int, rows: int, width: int) -> None:
        matrix, lengths = bytearray(rows * width + 1), array("I", bytes(4 * rows))
        with suppress(RingViolation):
            view = memoryview(matrix)[:-1].cast("B", (rows, width))
            assert self._side(role).rx.recv_into(view, lengths) <= min(rows, self.ends.size)
        assert matrix[-1] == 0

    @rule(role=ROLES, limit=st.integers(1, 20))
    def relay(self, role: int, limit: int) -> None:
        side = self._side(role)
        with suppress(RingViolation, ConfigError):
            assert 0 <= side.tx.relay(side.rx, limit) <= self.ends.size

    @rule(role=ROLES, limit=st.integers(1, 20), split=st.booleans())
    def burst(self, role: int, limit: int, split: bool) -> None:
        with suppress(RingViolation):
            burst = self._side(role).rx.burst(limit, split=split)
            assert len(burst) <= self.ends.size
            assert sum(len(packet.views) for packet in burst.packets()) == len(burst)
            self._side(role).received.append(burst)

    @rule(role=ROLES, which=st.integers(0, 5), limit=st.integers(1, 20))
    def write_and_trim(self, role: int, which: int, limit: int) -> None:
        for burst in some(self._side(role).received, which):
            for index in range(min(len(burst), limit)):
                burst[index][:] = b"\x5a" * burst.length(index)
                with suppress(ConfigError):
                    burst.set_length(index, max(burst.length(index) // 2, 1))
                with suppress(ConfigError):
                    burst.advance(index, burst.length(index) // 2)
                assert len(burst[index]) == burst.length(index)

    @rule(role=ROLES, which=st.integers(0, 5), index=st.integers(0, 20))
    def drop(self, role: int, which: int, index: int) -> None:
        for burst in some(self._side(role).received, which):
            if index < len(burst):
                burst.drop(index)

    @rule(role=ROLES, which=st.integers(-1, 5), room=st.integers(0, 200), limit=st.integers(0, 90))
    def pack_into(self, role: int, which: int, room: int, limit: int) -> None:
        for burst in some(self._side(role).received, which):
            if has_ended(burst):
                check_ended(burst)
                continue
            target = bytearray(room + 1)
            _, filled = burst.pack_into(memoryview(target)[:-1], b"stamp", limit)
            assert filled <= room
            assert target[-1] == 0

    @rule(role=ROLES)
    def untake(self, role: int) -> None:
        """What was received is put back, and looked at anew."""
        for burst in some(self._side(role).received, -1):
            with suppress(ConfigError):
                self._side(role).rx.untake(burst)
                self._side(role).received.remove(burst)
                burst.close()

    @rule(role=ROLES, headroom=st.integers(0, 40))
    def set_headroom(self, role: int, headroom: int) -> None:
        with suppress(ConfigError):
            self._side(role).rx.set_headroom(headroom)

    @rule(role=ROLES, which=st.integers(0, 5))
    def close(self, role: int, which: int) -> None:
        for burst in some(self._side(role).received, which):
            burst.close()
            self._side(role).received.remove(burst)

    @rule(role=ROLES, count=st.one_of(st.none(), st.integers(0, 20)))
    def refill(self, role: int, count: int | None) -> None:
        rx = self._side(role).rx
        with suppress(RingViolation):
            given = rx.refill(count, headroom=0)
            assert 0 <= given <= self.ends.size
            assert rx.refill(0) == 0
        if count is None:
            self._side(role).received.clear()

    @rule(role=ROLES, which=st.integers(0, 5))
    def forward(self, role: int, which: int) -> None:
        for burst in some(self._side(role).received, which):
            with suppress(RingViolation, ConfigError):
                left = len(burst)
                assert 0 <= self._side(role).tx.forward(burst) <= left

    @rule(role=ROLES, sizes=st.lists(st.integers(1, 90), max_size=20))
    def send(self, role: int, sizes: list[int]) -> None:
        with suppress(RingViolation, ConfigError):
            assert self._side(role).tx.send([bytes(size) for size in sizes]) <= len(sizes)

    @rule(role=ROLES, lengths=st.lists(st.integers(1, 90), min_size=1, max_size=20))
    def send_from(self, role: int, lengths: list[int]) -> None:
        matrix = memoryview(bytes(90 * len(lengths))).cast("B", (len(lengths), 90))
        with suppress(RingViolation, ConfigError):
            assert self._side(role).tx.send_from(matrix, array("H", lengths)) <= len(lengths)

    @rule(role=ROLES, count=st.integers(1, 20), size=st.one_of(st.none(), st.integers(1, 90)))
    def alloc(self, role: int, count: int, size: int | None) -> None:
        with suppress(RingViolation, ConfigError):
            burst = self._side(role).tx.alloc(count, size)
            assert len(burst) <= self.ends.size
            for view in burst:
                assert len(view) > 0
                view[:] = b"\xa6" * len(view)
            self._side(role).allocated.append(burst)

    @rule(role=ROLES, which=st.integers(0, 5), count=st.one_of(st.none(), st.integers(0, 5)))
    def transmit(self, role: int, which: int, count: int | None) -> None:
        for burst in some(self._side(role).allocated, which):
            with suppress(ConfigError):
                left = len(burst)
                assert self._side(role).tx.transmit(burst, count) <= left

    @rule(role=ROLES, which=st.integers(0, 5), index=st.integers(0, 10))
    def rewind(self, role: int, which: int, index: int) -> None:
        for burst in some(self._side(role).allocated, which):
            with suppress(ConfigError):
                self._side(role).tx.rewind(burst, index)

    @rule(role=ROLES, which=st.integers(0, 5))
    def give_up(self, role: int, which: int) -> None:
        for burst in some(self._side(role).allocated, which):
            burst.close()
            self._side(role).allocated.remove(burst)

    @rule(role=ROLES, which=st.integers(0, 5), first=st.integers(0, 8), count=st.integers(0, 20))
    def enqueue(self, role: int, which: int, first: int, count: int) -> None:
        for burst in some(self._side(role).received, which):
            with suppress(RingViolation, ConfigError):
                self._side(role).allocated.append(self._side(role).tx.enqueue(burst, first, count))

    @rule(role=ROLES, which=st.integers(0, 5), index=st.integers(0, 5), other=st.integers(0, 5))
    def exchange(self, role: int, which: int, index: int, other: int) -> None:
        for burst in some(self._side(role).received, which):
            for target in some(self._side(role).allocated, which):
                # A burst that has ended, or a buffer that is gone, is the caller's mistake.
                with suppress(ConfigError, ValueError, IndexError):
                    self.implementation.exchange(burst, index, target, other)

    def _side(self, role: int) -> Side:
        return self.sides[self.victims[role % len(self.victims)]]

    # --- what holds at any time

    @invariant()
    def nothing_is_written_outside(self) -> None:
        self.ends.check_margins()

    @invariant()
    def slave_knows_its_buffers(self) -> None:
        self.ends.check_each_buffer_is_in_one_slot()

    @invariant()
    def counts_are_possible(self) -> None:
        for side in self.sides.values():
            with suppress(RingViolation):
                assert 0 <= side.rx.pending() <= self.ends.size
            with suppress(RingViolation):
                assert 0 <= side.tx.free() <= self.ends.size


class HostileMasterMachine(HostileMachine):
    """The slave alone is under attack: it never writes outside its own rings and buffers."""

    victims = ("slave",)

    @invariant()
    def nothing_is_written_between(self) -> None:
        self.ends.check_canaries()


class HostileSlaveMachine(HostileMachine):
    """The master alone is under attack."""

    victims = ("master",)


@pytest.mark.stateful
@pytest.mark.parametrize("machine", [HostileMachine, HostileMasterMachine, HostileSlaveMachine])
def test_random_writes_of_the_peer(implementation: RingImplementation, machine: type[HostileMachine]) -> None:
    bound = type(machine.__name__, (machine,), {"implementation": implementation})
    run_state_machine_as_test(
        bound,
        settings=machine_settings(100, 60),
    )


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("role", [0, 1])
def test_machine_knows_that_a_refill_ends_bursts(implementation: RingImplementation, role: int, separate: bool) -> None:
    """Hypothesis found these steps: the machine took the refusal of a burst that had ended for a fault."""
    machine = type("Bound", (HostileMachine,), {"implementation": implementation})()
    machine.connect(log2_size=0, buffer_size=1, separate=separate)
    machine.send_from(role=1 - role, lengths=[1])
    machine.burst(role=role, limit=1, split=False)
    machine.refill(role=role, count=1)
    (burst,) = machine.sides[machine.victims[role]].received
    assert has_ended(burst)
    machine.pack_into(role=role, which=-1, room=0, limit=0)
    machine.write_and_trim(role=role, which=0, limit=1)
    machine.drop(role=role, which=0, index=0)
    machine.forward(role=role, which=0)
    machine.untake(role=role)
    machine.enqueue(role=role, which=0, first=0, count=1)
    machine.alloc(role=role, count=1, size=1)
    machine.exchange(role=role, which=0, index=0, other=0)
    machine.close(role=role, which=0)
    machine.teardown()


# --- at the same time -----------------------------------------------------------------------------------------------


def _rewrite(ends: Ends, turns: int, seed: int, stop: threading.Event) -> None:
    """Write numbers, plausible and not, into both rings."""
    numbers = random.Random(seed)
    region = len(ends.map()[0])
    for _ in range(turns):
        if stop.is_set():
            break
        lane = numbers.choice(ends.lanes)
        kind = numbers.randrange(8)
        if kind == 0:
            lane.raw.head = (lane.raw.head + numbers.randrange(-2, 5)) & U16
        elif kind == 1:
            lane.raw.tail = (lane.raw.tail + numbers.randrange(-2, 5)) & U16
        else:
            lane.raw[numbers.randrange(lane.raw.size)] = Descriptor(
                numbers.randrange(2),
                numbers.choice([0, 0, 0, 1, U16]),
                numbers.choice([0, 1, 20, 64, region, U32]),
                numbers.choice([*ends.m2s.offsets, *ends.s2m.offsets, region - 1, U32]),
            )


@pytest.mark.parametrize("role", ["slave", "master"])
def test_receiving_and_forwarding_while_another_thread_rewrites_the_memory(
    implementation: RingImplementation, role: str
) -> None:
    ends = Ends(implementation)
    rx, tx = ends.crossing(role)
    stop = threading.Event()
    attacker = Thread(target=_rewrite, args=(ends, 20_000, 1, stop))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    attacker.start()
    try:
        while attacker.is_alive():
            with suppress(RingViolation), rx.burst(8) as burst:
                for packet in burst.packets():
                    for view in packet.views:
                        view[:] = bytes(len(view))
                tx.forward(burst)
            with suppress(RingViolation):
                rx.recv(3)
            with suppress(RingViolation):
                tx.send([bytes(30), bytes(100)])
    finally:
        stop.set()
        attacker.join()
        sys.setswitchinterval(interval)
    ends.check_margins()
    ends.check_each_buffer_is_in_one_slot()
    if role == "slave":
        ends.check_canaries()
