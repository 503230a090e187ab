"""Random operations on a slave end and a master end, against a model in plain Python of what must arrive where.

The model knows buffers, not memory: for each lane the rooms that the sender may fill, the buffers on their way, and
the bursts that are held on either side.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from memifrt import ConfigError
from memifrt.ring import Burst, RingImplementation
from tests.lib.exploring import machine_settings
from tests.lib.rings import IMPLEMENTATIONS, NEXT, Ends, Lane, name_of, pass_packets


@pytest.fixture(scope="session", params=IMPLEMENTATIONS, ids=name_of)
def implementation(request: pytest.FixtureRequest) -> RingImplementation:
    chosen: RingImplementation = request.param
    return chosen


@dataclass
class Buffer:
    """A buffer's data, and whether its packet goes on in the next one."""

    data: bytes
    goes_on: bool = False


@dataclass
class Held:
    """A burst that was received (by ``recv``: None) or allocated; its first ``done`` buffers are gone."""

    burst: Burst | None
    buffers: list[Buffer]
    done: int = 0
    closed: bool = False

    @property
    def left(self) -> list[Buffer]:
        return self.buffers[self.done :]

    @property
    def cuts_a_packet(self) -> bool:
        """Whether a packet has been sent in part."""
        return self.done > 0 and self.buffers[self.done - 1].goes_on


@dataclass
class Model:
    """What one lane holds."""

    lane: Lane
    size: int
    room: int
    #: Rooms that the sender may fill, in the order of their slots.
    rooms: deque[int] = field(default_factory=deque)
    #: Published and not yet taken.
    waiting: deque[Buffer] = field(default_factory=deque)
    #: Received and not given back, oldest first.
    received: list[Held] = field(default_factory=list)
    #: How many buffers of the oldest of them a refill has given back already.
    returned: int = 0
    #: Allocated, oldest first, with the rooms that they took.
    allocated: list[Held] = field(default_factory=list)
    taken_rooms: deque[int] = field(default_factory=deque)
    headroom: int = 0
    packets_sent: int = 0
    packets_received: int = 0

    def split(self, packet: bytes, rooms: list[int]) -> list[Buffer] | None:
        """The buffers that a packet takes, None if the rooms do not suffice."""
        buffers = []
        for room in rooms:
            buffers.append(Buffer(packet[:room], goes_on=len(packet) > room))
            packet = packet[room:]
            if not packet:
                return buffers
        return None

    def sent(self, packets: list[bytes]) -> list[list[Buffer]]:
        """The buffers of each of the packets that fit, from the first on."""
        rooms = list(self.rooms)
        chains = []
        for packet in packets:
            chain = self.split(packet, rooms)
            if chain is None:
                break
            del rooms[: len(chain)]
            chains.append(chain)
        return chains

    def is_hopeless(self, packets: list[bytes], chains: list[list[Buffer]]) -> bool:
        """Whether the first packet that did not fit behind these chains never will."""
        if len(chains) == len(packets):
            return False
        used = sum(len(chain) for chain in chains)
        longest = self.lane.tx.capacity * self.size
        return len(self.rooms) - used == self.size or 0 < longest < len(packets[len(chains)])

    def publish(self, buffers: list[Buffer]) -> None:
        self.waiting += buffers
        self.packets_sent += sum(not buffer.goes_on for buffer in buffers)

    def take(self, limit: int) -> list[Buffer]:
        """The buffers of a burst: whole packets within the limit, or one longer packet."""
        ends = [index + 1 for index, buffer in enumerate(self.waiting) if not buffer.goes_on]
        within = [end for end in ends if end <= limit]
        count = within[-1] if within else ends[0] if ends else 0
        taken = [self.waiting.popleft() for _ in range(count)]
        self.packets_received += sum(not buffer.goes_on for buffer in taken)
        return taken

    def give_back(self, count: int, headroom: int) -> None:
        self.rooms.extend([self.room - headroom] * count)
        self.returned += count

    def refillable(self) -> int:
        return sum(len(held.buffers) for held in self.received) - self.returned

    def drop_closed(self) -> None:
        """Give back what closed bursts hold, oldest first."""
        while self.received and self.received[0].closed:
            held = self.received.pop(0)
            self.give_back(len(held.buffers) - self.returned, self.headroom)
            self.returned -= len(held.buffers)

    def refilled(self, count: int, headroom: int) -> None:
        """Give back by count: the buffers that went are no longer to be looked at."""
        self.give_back(count, headroom)
        for held in list(self.received):
            held.done = max(held.done, min(self.returned, len(held.buffers)))
            if self.returned < len(held.buffers):
                break
            self.returned -= len(held.buffers)
            self.received.pop(0)
        self.drop_closed()

    def open_burst(self, which: int) -> Held | None:
        """One of the received bursts that are open."""
        held = [held for held in self.received if not held.closed]
        return held[which % len(held)] if held else None

    def roll_back(self, count: int) -> None:
        """The newest allocated buffers are free again."""
        for _ in range(count):
            self.rooms.appendleft(self.taken_rooms.pop())

    def drop_given_up(self) -> None:
        while self.allocated and self.allocated[-1].closed:
            self.roll_back(len(self.allocated.pop().left))


LANES = st.sampled_from(["s2m", "m2s"])
SIZES = st.one_of(st.integers(1, 12), st.integers(1, 80))


class RingMachine(RuleBasedStateMachine):
    """Both lanes of one connection. ``warm`` packets went through each before, so that indices wrap soon."""

    implementation: RingImplementation
    warm_up: tuple[int, ...] = (0,)
    log2_sizes: tuple[int, ...] = (0, 1, 2, 3, 4)

    def __init__(self) -> None:
        super().__init__()
        self.numbers = iter(range(1, 1 << 30))

    @initialize(buffer_size=st.integers(1, 20), separate=st.booleans(), data=st.data())
    def connect(self, buffer_size: int, separate: bool, data: st.DataObject) -> None:
        log2_size = data.draw(st.sampled_from(self.log2_sizes))
        self.ends = Ends(self.implementation, log2_size=log2_size, buffer_size=buffer_size, separate=separate)
        self.models: dict[str, Model] = {}
        warm = data.draw(st.sampled_from(self.warm_up))
        for name, lane in (("s2m", self.ends.s2m), ("m2s", self.ends.m2s)):
            pass_packets(lane, warm)
            model = self.models[name] = Model(lane, self.ends.size, buffer_size)
            model.rooms.extend([buffer_size] * self.ends.size)
            model.packets_sent = model.packets_received = warm

    def packet(self, size: int) -> bytes:
        return random.Random(next(self.numbers)).randbytes(size)

    def other(self, name: str) -> str:
        return "m2s" if name == "s2m" else "s2m"

    def sender(self, name: str) -> Model:
        """The lane, or the other one if nothing is allocated on it."""
        return self.models[name if self.models[name].allocated else self.other(name)]

    def receiver(self, name: str) -> str:
        """The lane, or the other one if no burst is held on it."""
        return name if self.models[name].received else self.other(name)

    # --- sending

    @rule(name=LANES, sizes=st.lists(SIZES, max_size=20))
    def send(self, name: str, sizes: list[int]) -> None:
        model = self.models[name]
        packets = [self.packet(size) for size in sizes]
        if model.allocated:
            with pytest.raises(ConfigError):
                model.lane.tx.send(packets)
            return
        chains = model.sent(packets)
        if model.is_hopeless(packets, chains):
            with pytest.raises(ConfigError):
                model.lane.tx.send(packets)
            return
        assert model.lane.tx.send(packets) == len(chains)
        for chain in chains:
            for _ in chain:
                model.rooms.popleft()
            model.publish(chain)

    @rule(name=LANES, count=st.integers(1, 20), size=SIZES)
    def allocate(self, name: str, count: int, size: int) -> None:
        model = self.models[name]
        packets = [self.packet(size) for _ in range(count)]
        chains = model.sent(packets)
        if model.is_hopeless(packets, chains):
            with pytest.raises(ConfigError):
                model.lane.tx.alloc(count, size)
            return
        buffers = [buffer for chain in chains for buffer in chain]
        burst = model.lane.tx.alloc(count, size)
        assert [burst.length(index) for index in range(len(burst))] == [len(buffer.data) for buffer in buffers]
        assert [burst.flags(index) == NEXT for index in range(len(burst))] == [buffer.goes_on for buffer in buffers]
        for view, buffer in zip(burst, buffers, strict=True):
            view[:] = buffer.data
        for _ in buffers:
            model.taken_rooms.append(model.rooms.popleft())
        if buffers:
            model.allocated.append(Held(burst, buffers))

    @precondition(lambda self: any(model.allocated for model in self.models.values()))
    @rule(name=LANES, count=st.one_of(st.none(), st.integers(0, 8)))
    def transmit(self, name: str, count: int | None) -> None:
        model = self.sender(name)
        held = model.allocated[0]
        assert held.burst is not None
        if held.closed:
            with pytest.raises(ConfigError):
                model.lane.tx.transmit(held.burst, count)
            return
        buffers = held.left[:count]
        assert model.lane.tx.transmit(held.burst, count) == len(buffers)
        for _ in buffers:
            model.taken_rooms.popleft()
        model.publish(buffers)
        held.done += len(buffers)
        assert held.burst.sent == held.done
        if not held.left:
            model.allocated.pop(0)

    @precondition(lambda self: any(model.allocated for model in self.models.values()))
    @rule(name=LANES, which=st.integers(0, 5))
    def give_up(self, name: str, which: int) -> None:
        model = self.sender(name)
        held = model.allocated[which % len(model.allocated)]
        if held.cuts_a_packet:
            return
        assert held.burst is not None
        held.burst.close()
        held.closed = True
        model.drop_given_up()

    @precondition(lambda self: any(model.allocated for model in self.models.values()))
    @rule(name=LANES, which=st.integers(0, 5), index=st.integers(0, 20))
    def rewind(self, name: str, which: int, index: int) -> None:
        model = self.sender(name)
        at = which % len(model.allocated)
        held = model.allocated[at]
        assert held.burst is not None
        if held.closed or index >= len(held.left):
            with pytest.raises(ConfigError):
                model.lane.tx.rewind(held.burst, index)
            return
        # A packet is never cut: its first buffers alone would wait for the rest for ever.
        while index and held.left[index - 1].goes_on:
            index -= 1
        if not index and held.cuts_a_packet:
            return
        model.lane.tx.rewind(held.burst, index)
        for later in model.allocated[at + 1 :]:
            model.roll_back(len(later.left))
        model.roll_back(len(held.left) - index)
        del model.allocated[at + 1 :], held.buffers[held.done + index :]
        if not held.left:
            model.allocated.pop()
            model.drop_given_up()

    # --- receiving

    @rule(name=LANES, limit=st.integers(1, 20))
    def recv(self, name: str, limit: int) -> None:
        model = self.models[name]
        buffers: list[Buffer] = []
        more = True
        while more and len(_packets(buffers)) < limit:
            rest = limit - len(_packets(buffers))
            behind = len(model.waiting) > rest
            taken = model.take(rest)
            more = behind and bool(taken) and bool(model.waiting)
            buffers += taken
        assert model.lane.rx.recv(limit) == _joined(buffers)
        assert model.lane.rx.more == more
        if buffers:
            model.received.append(Held(None, buffers, closed=True))
            model.drop_closed()

    @rule(name=LANES, limit=st.integers(1, 20))
    def take(self, name: str, limit: int) -> None:
        model = self.models[name]
        behind = len(model.waiting) > limit
        buffers = model.take(limit)
        burst = model.lane.rx.burst(limit)
        assert model.lane.rx.more == (behind and bool(buffers) and bool(model.waiting))
        assert [bytes(view) for view in burst] == [buffer.data for buffer in buffers]
        assert [bytes(packet) for packet in burst.packets()] == _joined(buffers)
        if buffers:
            model.received.append(Held(burst, buffers))

    @precondition(lambda self: any(model.received for model in self.models.values()))
    @rule(name=LANES, which=st.integers(0, 5))
    def close(self, name: str, which: int) -> None:
        model = self.models[self.receiver(name)]
        held = model.open_burst(which)
        if held is None:
            return
        assert held.burst is not None
        assert [bytes(view) for view in held.burst] == [buffer.data for buffer in held.left]
        held.burst.close()
        held.closed = True
        model.drop_closed()

    @rule(name=LANES, count=st.one_of(st.none(), st.integers(0, 20)), headroom=st.integers(0, 19))
    def refill(self, name: str, count: int | None, headroom: int) -> None:
        model = self.models[name]
        headroom = self.possible_headroom(name, headroom)
        expected = model.refillable() if count is None else min(count, model.refillable())
        assert model.lane.rx.refill(count, headroom) == expected
        model.refilled(expected, headroom)

    @rule(name=LANES, headroom=st.integers(0, 19))
    def set_headroom(self, name: str, headroom: int) -> None:
        model = self.models[name]
        model.headroom = self.possible_headroom(name, headroom)
        model.lane.rx.set_headroom(model.headroom)

    def possible_headroom(self, name: str, headroom: int) -> int:
        """Headroom is a slave's, and leaves at least a byte."""
        return min(headroom, self.ends.buffer_size - 1) if name == "m2s" else 0

    @precondition(lambda self: any(model.received for model in self.models.values()))
    @rule(name=LANES, which=st.integers(0, 5))
    def forward(self, name: str, which: int) -> None:
        """From this lane to the other one: the slave swaps what came on m2s, the master copies what came on s2m."""
        name = self.receiver(name)
        model, target = self.models[name], self.models[self.other(name)]
        held = model.open_burst(which)
        if held is None:
            return
        assert held.burst is not None
        if target.allocated:
            with pytest.raises(ConfigError):
                target.lane.tx.forward(held.burst)
            return
        sent, done = 0, 0
        for packet in _packets(held.left):
            if packet[-1].goes_on:  # cut off by the burst's end
                break
            chain = packet if name == "m2s" else target.split(b"".join(b.data for b in packet), list(target.rooms))
            if chain is None or len(chain) > len(target.rooms):
                if sent or len(target.rooms) < target.size:
                    break
                done += len(packet)  # no ring of this size ever has room for it
                continue
            for _ in chain:
                target.rooms.popleft()
            target.publish(chain)
            sent += len(packet)
            done += len(packet)
        assert target.lane.tx.forward(held.burst) == sent
        held.done += done
        assert (held.burst.sent, len(held.burst)) == (held.done, len(held.left))

    # --- what holds at any time

    @invariant()
    def counts_agree(self) -> None:
        for model in self.models.values():
            in_flight = len(model.waiting) + model.refillable() + len(model.taken_rooms)
            assert len(model.rooms) + in_flight == model.size
            assert model.lane.tx.free() == len(model.rooms)
            assert model.lane.rx.pending() == len(model.waiting)
            assert model.lane.tx.counters.packets == model.packets_sent
            assert model.lane.rx.counters.packets == model.packets_received
            assert model.lane.tx.counters.bad_descriptors == model.lane.rx.counters.bad_descriptors == 0

    @invariant()
    def memory_is_in_order(self) -> None:
        self.ends.check_canaries()
        self.ends.check_each_buffer_is_in_one_slot()

    def teardown(self) -> None:
        """All that the rings accepted arrives, and the buffers that were received come back."""
        for model in getattr(self, "models", {}).values():
            while model.allocated and not model.allocated[0].closed:
                held = model.allocated.pop(0)
                assert held.burst is not None
                model.lane.tx.transmit(held.burst)
                model.publish(held.left)
            assert model.lane.rx.recv(model.size) == _joined(model.take(model.size))
            assert not model.waiting
            model.lane.rx.refill()
            assert model.lane.tx.free() == model.size - sum(len(held.left) for held in model.allocated)


def _packets(buffers: list[Buffer]) -> list[list[Buffer]]:
    packets: list[list[Buffer]] = [[]]
    for buffer in buffers:
        packets[-1].append(buffer)
        if not buffer.goes_on:
            packets.append([])
    return packets[:-1] if not packets[-1] else packets


def _joined(buffers: list[Buffer]) -> list[bytes]:
    return [b"".join(buffer.data for buffer in packet) for packet in _packets(buffers)]


class WrappingRingMachine(RingMachine):
    """The same, with indices about to wrap, on either side or both."""

    warm_up = (65520, 65535, 65536)
    log2_sizes = (2, 3, 4)


def _run(machine: type[RingMachine], implementation: RingImplementation, examples: int) -> None:
    bound = type(machine.__name__, (machine,), {"implementation": implementation})
    run_state_machine_as_test(
        bound,
        settings=machine_settings(examples, 50),
    )


@pytest.mark.stateful
def test_rings_behave_like_the_model(implementation: RingImplementation) -> None:
    _run(RingMachine, implementation, 200)


@pytest.mark.stateful
def test_rings_behave_like_the_model_where_indices_wrap(implementation: RingImplementation) -> None:
    _run(WrappingRingMachine, implementation, 8)
