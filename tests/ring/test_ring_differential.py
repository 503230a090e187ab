"""The same random operations on the reference and on the compiled rings: same results, same errors, same bytes.

Owns no model of what is right, only that both agree: after each step everything that the Protocol shows and all of the
shared memory is compared.
"""

from __future__ import annotations

import pickle
import random
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from memifrt import ConfigError, MemifError
from memifrt.memory.layout import DESCRIPTOR_SIZE, RING_HEADER_SIZE
from memifrt.ring import Burst, RingImplementation, RingMemory, RxRing, SlaveBuffers, TxRing, load
from tests.lib.rings import IMPLEMENTATIONS, Ends, Lane, RawRing, name_of, pass_packets

#: Rings in each direction.
_RINGS = 2
#: Bursts that are kept to be used again, ended or not.
_KEPT = 6
#: Numbers that no ring has room for, and some that fit into no C type.
_EXTREMES = (-(1 << 70), -(1 << 63), -(1 << 31), -2, -1, 0, 1 << 15, 1 << 31, (1 << 63) - 1, 1 << 64, 1 << 70)


class World:
    """One implementation's ends, and what was taken from them. Both worlds are asked with equal random numbers."""

    def __init__(self, implementation: RingImplementation, *, warm: int, **shape: Any) -> None:
        self.implementation = implementation
        self.ends = Ends(implementation, rings=_RINGS, **shape)
        self.bursts: list[Burst] = []
        #: What keeps views from ending.
        self.exports: list[pickle.PickleBuffer | memoryview] = []
        for lane in self.ends.lanes:
            pass_packets(lane, warm)

    # --- random arguments

    def lane(self, rng: random.Random) -> Lane:
        return rng.choice(self.ends.lanes)

    def tx(self, rng: random.Random) -> TxRing:
        return self.lane(rng).tx

    def rx(self, rng: random.Random) -> RxRing:
        """One with packets, if there is one, more often than not."""
        lanes = [lane for lane in self.ends.lanes if lane.raw.head != lane.raw.tail]
        return rng.choice(lanes if lanes and rng.random() < 0.7 else self.ends.lanes).rx

    def burst(self, rng: random.Random) -> Burst:
        """One with buffers left, if there is one, more often than not."""
        live = [burst for burst in self.bursts if isinstance(attempt(burst.length, -1), int)]
        chosen = live if live and rng.random() < 0.9 else self.bursts
        if (not live and rng.random() < 0.8) or not chosen:
            lane = self.lane(rng)
            if rng.random() < 0.7:
                lane.tx.send([rng.randbytes(self.ends.buffer_size) for _ in range(3)])
                self.keep(lane.rx.burst(8))
            else:
                self.keep(lane.tx.alloc(3))
            chosen = self.bursts[-1:]
        return rng.choice(chosen)

    def index(self, rng: random.Random, burst: Burst) -> int:
        """One of a buffer that is left, more often than not."""
        if rng.random() < 0.1:
            return self.number(rng, 4) - rng.choice((0, 5))
        return rng.randint(0, len(burst)) - rng.choice((0, 0, 1))

    def keep(self, burst: Burst) -> list[Any]:
        self.bursts.append(burst)
        del self.bursts[:-_KEPT]
        return shown(burst)

    def number(self, rng: random.Random, most: int) -> int:
        return rng.choice(_EXTREMES) if rng.random() < 0.03 else rng.randint(0, most)

    def size(self, rng: random.Random) -> int:
        """Bytes of a packet: mostly of one buffer, or of a few."""
        most = self.ends.buffer_size * rng.choice((1, 1, 1, 3, self.ends.size + 1))
        return rng.randint(0 if rng.random() < 0.02 else 1, most)

    def packet(self, rng: random.Random) -> Any:
        data = rng.randbytes(self.size(rng))
        kind = rng.randrange(8)
        if kind == 0:
            return bytearray(data)
        if kind == 1:
            return memoryview(data + b"rest")[: len(data)]
        if kind == 2:
            return array("i", range(rng.randint(1, 4)))
        if kind == 3 and rng.random() < 0.1:
            return memoryview(data * 2)[::2]
        return data

    def packets(self, rng: random.Random) -> Any:
        packets = [self.packet(rng) for _ in range(rng.randint(0, self.ends.size + 2))]
        if rng.random() < 0.05:
            return interrupted(packets)
        return iter(packets) if rng.random() < 0.2 else packets

    def matrix(self, rng: random.Random, data: bytes | None = None) -> memoryview:
        """Rows of a random number and width; sometimes they lie apart, in the reverse order, or are empty."""
        rows = rng.randint(0 if rng.random() < 0.05 else 1, self.ends.size + 2)
        width = max(self.size(rng), 1)
        matrix = memoryview(bytearray(rng.randbytes(2 * rows * width))).cast("B", (2 * rows, width)) if rows else None
        if matrix is None:
            return memoryview(bytearray(width)).cast("B", (1, width))[:0]
        return matrix[:: rng.choice((1, 2, -1, -2))]

    def lengths(self, rng: random.Random, count: int, most: int) -> memoryview:
        kind = rng.choice("hHiIlLqQ")
        least = -2 if kind.islower() and rng.random() < 0.05 else 1 if rng.random() < 0.98 else 0
        step = rng.choice((1, 1, 2, -1))
        return memoryview(array(kind, [rng.randint(least, most) for _ in range(count * abs(step))]))[::step]

    # --- operations: each returns what is to be equal in both worlds

    def send(self, rng: random.Random) -> Any:
        return self.tx(rng).send(self.packets(rng), chain=rng.random() < 0.8)

    def send_from(self, rng: random.Random) -> Any:
        matrix = self.matrix(rng)
        assert matrix.shape is not None
        most = matrix.shape[1] + (rng.random() < 0.05)
        lengths = self.lengths(rng, rng.randint(1, self.ends.size + 2), most)
        return self.tx(rng).send_from(matrix, lengths, chain=rng.random() < 0.8)

    def alloc(self, rng: random.Random) -> Any:
        size = None if rng.random() < 0.3 else self.number(rng, self.size(rng))
        return self.keep(self.tx(rng).alloc(self.number(rng, self.ends.size + 2), size))

    def transmit(self, rng: random.Random) -> Any:
        count = None if rng.random() < 0.5 else self.number(rng, 4)
        burst = self.burst(rng)
        return [attempt(lane.tx.transmit, burst, count) for lane in self.ends.lanes]

    def rewind(self, rng: random.Random) -> Any:
        burst = self.burst(rng)
        index = self.index(rng, burst)
        return [attempt(lane.tx.rewind, burst, index) for lane in self.ends.lanes]

    def take(self, rng: random.Random) -> Any:
        return self.keep(self.rx(rng).burst(self.number(rng, self.ends.size + 1), split=rng.random() < 0.3))

    def recv(self, rng: random.Random) -> Any:
        return self.rx(rng).recv(self.number(rng, self.ends.size + 1))

    def recv_into(self, rng: random.Random) -> Any:
        matrix, lengths = self.matrix(rng), self.lengths(rng, rng.randint(1, self.ends.size + 2), 9)
        if rng.random() < 0.02:
            matrix = matrix.toreadonly()
        return self.rx(rng).recv_into(matrix, lengths), matrix.tobytes(), lengths.tolist()

    def untake(self, rng: random.Random) -> Any:
        burst = self.burst(rng)
        return [attempt(lane.rx.untake, burst) for lane in self.ends.lanes]

    def refill(self, rng: random.Random) -> Any:
        count = None if rng.random() < 0.3 else self.number(rng, self.ends.size)
        return self.rx(rng).refill(count, self.headroom(rng))

    def headroom(self, rng: random.Random) -> int:
        return 0 if rng.random() < 0.5 else self.number(rng, self.ends.buffer_size)

    def set_headroom(self, rng: random.Random) -> Any:
        return self.rx(rng).set_headroom(self.headroom(rng))

    def set_mask(self, rng: random.Random) -> Any:
        return self.rx(rng).set_mask(rng.random() < 0.5)

    def relay(self, rng: random.Random) -> Any:
        return self.tx(rng).relay(self.rx(rng), self.number(rng, self.ends.size + 1))

    def forward(self, rng: random.Random) -> Any:
        return self.tx(rng).forward(self.burst(rng))

    def enqueue(self, rng: random.Random) -> Any:
        burst = self.burst(rng)
        first = self.number(rng, 2) if rng.random() < 0.2 else 0
        return self.keep(self.tx(rng).enqueue(burst, first, self.number(rng, self.ends.size)))

    def exchange(self, rng: random.Random) -> Any:
        a, b = self.burst(rng), self.burst(rng)
        return self.implementation.exchange(a, self.index(rng, a), b, self.index(rng, b))

    def write(self, rng: random.Random) -> Any:
        burst = self.burst(rng)
        view = burst[self.index(rng, burst)]
        view[:] = rng.randbytes(len(view))
        return len(view)

    def read(self, rng: random.Random) -> Any:
        return [tuple(map(bytes, packet.views)) for packet in self.burst(rng).packets()]

    def set_length(self, rng: random.Random) -> Any:
        burst = self.burst(rng)
        return burst.set_length(self.index(rng, burst), self.number(rng, self.ends.buffer_size + 1))

    def set_flags(self, rng: random.Random) -> Any:
        burst = self.burst(rng)
        return burst.set_flags(self.index(rng, burst), self.number(rng, 2))

    def advance(self, rng: random.Random) -> Any:
        burst = self.burst(rng)
        return burst.advance(self.index(rng, burst), self.number(rng, 8) - 4)

    def drop(self, rng: random.Random) -> Any:
        burst = self.burst(rng)
        return burst.drop(self.index(rng, burst))

    def close(self, rng: random.Random) -> Any:
        return self.burst(rng).close()

    def export(self, rng: random.Random) -> Any:
        if self.exports and rng.random() < 0.7:
            return self.exports.pop().release()
        burst = self.burst(rng)
        view = burst[self.index(rng, burst)]
        return self.exports.append(pickle.PickleBuffer(view) if rng.random() < 0.5 else view[: rng.randint(0, 3)])

    def give_up(self, rng: random.Random) -> Any:
        """All bursts that are kept end: the next steps find the rings free."""
        self.release_exports()
        return [attempt(burst.close) for burst in self.bursts]

    def hostile(self, rng: random.Random) -> Any:
        """The peer writes a number where it can, for the length of one operation or for good."""
        raw = self.lane(rng).raw._area
        slot = rng.randrange(self.ends.size)
        descriptor = RING_HEADER_SIZE + slot * DESCRIPTOR_SIZE
        field, size = rng.choice(
            (
                (4, 2),
                (6, 2),
                (64, 2),
                (descriptor, 2),
                (descriptor + 2, 2),
                (descriptor + 4, 4),
                (descriptor + 8, 4),
                (descriptor + 12, 4),
            )
        )
        before = bytes(raw[field : field + size])
        present = int.from_bytes(before, "little")
        value = present + rng.choice((1, 1, 2, -1, -2, self.ends.size, 1 << 15, rng.getrandbits(32)))
        raw[field : field + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        outcome = attempt(getattr(self, rng.choice(_WHILE_HOSTILE)), rng)
        if rng.random() < 0.9:
            raw[field : field + size] = before
        return outcome

    # --- what is to be equal after each step

    def state(self) -> Iterator[tuple[str, Any]]:
        for number, lane in enumerate(self.ends.lanes):
            yield f"ring {number}", (lane.tx.head, lane.tx.tail, lane.tx.flags, lane.rx.head, lane.rx.tail)
            yield f"tx ring {number}", (lane.tx.size, lane.tx.capacity, attempt(lane.tx.free), lane.tx.counters)
            rx = lane.rx
            yield f"rx ring {number}", (rx.size, rx.capacity, attempt(rx.pending), bool(rx.more), rx.counters)
            yield f"buffers of ring {number}", lane.offsets.tolist()
        for number, burst in enumerate(self.bursts):
            yield f"burst {number}", shown(burst)
        for number, memory in enumerate(self.ends.map()):
            yield f"region {number}", bytes(memory)

    def release_exports(self) -> None:
        while self.exports:
            self.exports.pop().release()


def interrupted(packets: list[Any]) -> Iterator[Any]:
    yield from packets
    raise KeyError("no more packets")


def shown(burst: Burst) -> list[Any]:
    """All that a burst tells but for its data: a view that nobody takes is a case of its own."""
    asked = [burst.length, burst.flags, burst.slot]
    return [repr(burst), burst.sent, *(attempt(ask, index) for index in range(-1, len(burst) + 1) for ask in asked)]


def attempt(operation: Callable[..., Any], *arguments: object) -> Any:
    """What it returns, or what it raises."""
    try:
        return operation(*arguments)
    except (ArithmeticError, BufferError, LookupError, TypeError, ValueError, MemifError) as error:
        return type(error), str(error), getattr(error, "code", None), getattr(error, "sending", None)


_WHILE_HOSTILE = ["send", "send_from", "alloc", "take", "recv", "recv_into", "relay", "forward", "refill", "enqueue"]
_WEIGHTS = {
    "send": 6,
    "send_from": 2,
    "alloc": 4,
    "transmit": 4,
    "rewind": 1,
    "take": 6,
    "recv": 2,
    "recv_into": 2,
    "untake": 1,
    "refill": 2,
    "set_headroom": 1,
    "set_mask": 1,
    "relay": 4,
    "forward": 4,
    "enqueue": 3,
    "exchange": 2,
    "write": 2,
    "read": 1,
    "set_length": 2,
    "set_flags": 1,
    "advance": 1,
    "drop": 3,
    "close": 3,
    "export": 1,
    "give_up": 6,
    "hostile": 2,
}


@contextmanager
def _two_worlds(**shape: Any) -> Iterator[tuple[World, World]]:
    worlds = World(load("python"), **shape), World(load("native"), **shape)
    try:
        yield worlds
    finally:
        for world in worlds:
            world.release_exports()


def _compare(steps: list[tuple[str, int]], **shape: Any) -> None:
    with _two_worlds(**shape) as (reference, native):
        for number, (name, seed) in enumerate(steps):
            expected = attempt(getattr(reference, name), random.Random(seed))
            got = attempt(getattr(native, name), random.Random(seed))
            assert got == expected, f"step {number}: {name}"
            for (what, expects), (_, has) in zip(reference.state(), native.state(), strict=True):
                assert has == expects, f"{what}, after step {number}: {name}, which gave {got}"
        for world in (reference, native):
            world.ends.check_margins()
            world.ends.check_each_buffer_is_in_one_slot()


def _steps(rng: random.Random, count: int) -> list[tuple[str, int]]:
    """Operations, each with the seed of its arguments."""
    names = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()), k=count)
    return [(name, rng.getrandbits(32)) for name in names]


@pytest.mark.parametrize("seed", range(200))
def test_both_implementations_do_the_same(seed: int) -> None:
    rng = random.Random(seed)
    _compare(
        _steps(rng, 100),
        warm=0,
        log2_size=rng.randint(0, 4),
        buffer_size=rng.randint(1, 20),
        separate=rng.random() < 0.5,
        posted=rng.random() < 0.8,
    )


@pytest.mark.parametrize("warm", [65520, 65535])
def test_both_implementations_do_the_same_where_indices_wrap(warm: int) -> None:
    rng = random.Random(warm)
    _compare(_steps(rng, 600), warm=warm, log2_size=4, buffer_size=8, separate=False)


# --- misuse: what no caller should do, and random operations do not -------------------------------------------------


@pytest.fixture(params=IMPLEMENTATIONS, ids=name_of)
def ends(request: pytest.FixtureRequest) -> Ends:
    return Ends(request.param)


def test_iterator_of_packets_must_not_use_the_ring_that_it_feeds(ends: Ends) -> None:
    tx = ends.s2m.tx

    def feed(use: Callable[[], object]) -> Iterator[bytes]:
        yield b"first"
        with pytest.raises(ConfigError, match="a send is not finished"):
            use()
        yield b"second"

    burst = ends.m2s.rx.burst(1)
    uses: list[Callable[[], object]] = [
        lambda: tx.send([b"inner"]),
        lambda: tx.send_from(memoryview(b"inner").cast("B", (1, 5)), array("H", [5])),
        lambda: tx.alloc(1),
        lambda: tx.forward(burst),
        lambda: tx.enqueue(burst, 0, 0),
        lambda: tx.relay(ends.m2s.rx, 1),
    ]
    for use in uses:
        assert tx.send(feed(use)) == 2
        assert ends.s2m.rx.recv(8) == [b"first", b"second"]


def test_interrupted_iterator_leaves_the_ring_usable(ends: Ends) -> None:
    with pytest.raises(KeyError):
        ends.s2m.tx.send(interrupted([b"lost"]))
    assert ends.s2m.tx.send([b"sent"]) == 1
    assert ends.s2m.rx.recv(8) == [b"sent"]


@pytest.mark.parametrize("source", [None, 5, "tx"])
def test_relay_takes_from_nothing_but_a_receive_ring(ends: Ends, source: Any) -> None:
    for lane in ends.lanes:
        tx: Any = lane.tx
        with pytest.raises(ConfigError, match="not a receive ring"):
            tx.relay(tx if source == "tx" else source, 1)


def test_huge_counts_transmit_no_more_than_there_is(ends: Ends) -> None:
    for lane in ends.lanes:
        burst = lane.tx.alloc(3, 4)
        assert lane.tx.transmit(burst, 1) == 1
        assert lane.tx.transmit(burst, (1 << 63) - 1) == 2
        assert len(lane.rx.recv(8)) == 3


def test_allocated_packets_cannot_be_dropped(ends: Ends) -> None:
    for lane in ends.lanes:
        burst = lane.tx.alloc(1, 4)
        with pytest.raises(ConfigError, match="only a received packet"):
            burst.drop(0)
        lane.tx.transmit(burst)
        assert [descriptor.flags for descriptor in lane.raw.descriptors()] == [0] * ends.size


def test_dropped_buffer_that_is_exchanged_is_sent_without_the_mark(ends: Ends) -> None:
    ends.m2s.tx.send([b"came"])
    received, allocated = ends.m2s.rx.burst(1), ends.s2m.tx.alloc(1, 4)
    received.drop(0)
    ends.implementation.exchange(received, 0, allocated, 0)
    ends.s2m.tx.transmit(allocated)
    assert ends.s2m.raw[0].flags == 0
    assert ends.s2m.rx.recv(1) == [b"came"]


@pytest.mark.parametrize("change", ["set_length", "advance", "exchange", "enqueue"])
def test_changed_bursts_are_not_put_back(ends: Ends, change: str) -> None:
    """Their descriptors in shared memory say otherwise: the peer would be blamed."""
    ends.m2s.tx.send([b"packet", b"packet"])
    burst = ends.m2s.rx.burst(2)
    if change == "exchange":
        ends.implementation.exchange(burst, 0, ends.s2m.tx.alloc(1, 4), 0)
    elif change == "enqueue":
        ends.s2m.tx.enqueue(burst, 1, 1)
    else:
        getattr(burst, change)(0, 2)
    with pytest.raises(ConfigError, match="cannot be put back"):
        ends.m2s.rx.untake(burst)
    assert len(burst) == 2


@pytest.mark.parametrize("size", [32, 128])
def test_buffers_of_another_size_are_copied_and_never_swapped(ends: Ends, size: int) -> None:
    regions = ends.map()
    room = len(regions[0]) // 2
    make, offsets = ends.implementation, (array("I", [room]), array("I", [room + 256]))
    rx = make.slave_rx(RingMemory(regions, 0, 0, 0, "rx ring"), SlaveBuffers(0, 64, offsets[0]))
    tx = make.slave_tx(RingMemory(regions, 0, 256, 0, "tx ring"), SlaveBuffers(0, size, offsets[1]))
    rx.refill()
    raw = RawRing(regions[0][:144])
    raw.tail = 1
    burst = rx.burst(1)
    with pytest.raises(ConfigError, match="same slave"):
        tx.enqueue(burst, 0, 1)
    with pytest.raises(ConfigError, match="one slave"):
        make.exchange(burst, 0, tx.alloc(1), 0)
    assert (offsets[0].tolist(), offsets[1].tolist()) == ([room], [room + 256])


@pytest.mark.parametrize(
    ("region", "offset", "log2_size"),
    [(0, 2, 0), (0, -4, 0), (0, 1 << 20, 0), (0, (1 << 64) - 4, 0), (0, 0, 15), (0, 0, -1), (1, 0, 0), (-1, 0, 0)],
)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=name_of)
def test_rings_outside_of_memory_are_refused(
    implementation: RingImplementation, region: int, offset: int, log2_size: int
) -> None:
    memory = RingMemory((memoryview(bytearray(4096)),), region, offset, log2_size, "ring")
    buffers = SlaveBuffers(0, 64, array("I", [1024]))
    for make in (
        lambda: implementation.master_rx(memory),
        lambda: implementation.master_tx(memory),
        lambda: implementation.slave_rx(memory, buffers),
        lambda: implementation.slave_tx(memory, buffers),
    ):
        with pytest.raises(ConfigError):
            make()


def test_compiled_objects_that_no_ring_made_are_harmless() -> None:
    ends = Ends(load("native"))
    ends.s2m.tx.send([b"packet"])
    burst: Any = ends.s2m.rx.burst(1)
    stray = type(burst)()
    with stray:
        assert len(stray) == 0
        with pytest.raises(ValueError, match="no ring has made it"):
            stray.pack_into(bytearray(64), b"", 64)
        with pytest.raises(ConfigError):
            load("native").exchange(stray, 0, burst, 0)
    for lane in ends.lanes:
        for refused in (lane.tx.transmit, lane.tx.forward, lane.rx.untake):
            with pytest.raises(ConfigError):
                refused(stray)
    with pytest.raises(BufferError):
        memoryview(burst)
    for ring in (ends.s2m.rx, ends.s2m.tx, ends.m2s.rx, ends.m2s.tx):
        with pytest.raises(TypeError):
            type(ring).__new__(type(ring))
    memory = RingMemory((memoryview(bytearray(4096)),), 0, 0, 0, "ring")
    with pytest.raises(ConfigError, match="lies outside"):
        load("native").slave_rx(memory, SlaveBuffers(0, 64, array("I", [4090])))
    kind: Any = type(ends.s2m.rx)
    bare = kind.__new__(kind, memory)  # no __init__
    assert bare.recv(1) == []
    assert bare.recv_into(memoryview(bytearray(8)).cast("B", (1, 8)), array("I", [0])) == 0
    assert burst[0] == b"packet"
