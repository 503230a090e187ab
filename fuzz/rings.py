"""Ring memory that changes under its user: every operation of one side, while the peer writes what it likes.

Owns the peer and what must hold after each operation. The compiled rings do everything that the reference does beside
them: what the reference covers leads the fuzzer, and both must say the same at each step.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import ClassVar

from fuzz.script import Script
from memifrt import ConfigError
from memifrt.errors import RingViolation
from memifrt.ring import Burst, RingImplementation, load
from memifrt.types import Role
from tests.lib.rings import NEXT, Descriptor, Ends, RawRing, pass_packets

_FIELDS = (("flags", 2), ("region", 2), ("length", 4), ("offset", 4), ("metadata", 4))
#: Bursts that are kept, to be used out of order and after their end.
_KEPT = 4
#: What a user's own mistake may raise: an ended burst, a buffer that is none.
_MISTAKES = (ConfigError, ValueError, IndexError)


class Victim:
    """One side's rings of one implementation, and the peer's hand on their memory."""

    def __init__(self, implementation: RingImplementation, role: Role, script: Script) -> None:
        self.implementation = implementation
        self.script = script
        self.ends = Ends(
            implementation,
            log2_size=script.pick((3, 0, 1, 2, 4, 5)),
            buffer_size=script.pick((64, 1, 7, 40, 100)),
            separate=bool(script.below(2)),
        )
        for lane in self.ends.lanes:
            pass_packets(lane, script.pick((0, 3, self.ends.size)))
        for lane in self.ends.lanes:  # the peer is ahead: there is something to receive
            lane.tx.send([b"packet"[: self.ends.buffer_size]] * (self.ends.size // 2))
        self.is_slave = role is Role.SLAVE
        self.rx, self.tx = self.ends.crossing("slave" if self.is_slave else "master")
        self.bursts: list[Burst] = []

    def step(self) -> object:
        """One operation, or one thing that the peer does; what came of it."""
        act = self.script.pick(_STEPS)
        try:
            return act(self)
        except RingViolation as error:
            return f"{error.code} {error.message}"
        except _MISTAKES as error:
            return type(error).__name__

    def check(self) -> None:
        """:raises AssertionError: something outside the regions was written, or a buffer is lost."""
        self.ends.check_margins()
        self.ends.check_each_buffer_is_in_one_slot()

    def finish(self) -> list[bytes]:
        """The memory at the end.

        :raises AssertionError: a slave has written between its rings and buffers. (A master writes wherever the peer's
            descriptors say, inside the regions.)
        """
        if self.is_slave:
            self.ends.check_canaries()
        return [bytes(region) for region in self.ends.map()]

    # --- the peer -----------------------------------------------------------------------------------------------

    def _raw(self) -> RawRing:
        return self.script.pick(self.ends.lanes).raw

    def _poke_index(self) -> None:
        raw = self._raw()
        name = self.script.pick(("head", "tail"))
        choice = self.script.byte()
        setattr(raw, name, (getattr(raw, name) + choice - 8) & 0xFFFF if choice < 64 else self.script.edge(2))

    def _poke_header(self) -> None:
        raw = self._raw()
        raw.flags = self.script.edge(2)
        if self.script.rarely():
            raw.cookie = self.script.edge(4)

    def _poke_descriptor(self) -> None:
        raw = self._raw()
        slot = self.script.below(raw.size)
        for _ in range(1 + self.script.below(3)):
            name, size = self.script.pick(_FIELDS)
            raw.change(slot, **{name: self.script.edge(size)})

    def _chain(self) -> None:
        raw = self._raw()
        flags = self.script.pick((NEXT, 0, 0xFFFF))
        for slot in range(raw.size):
            raw.change(slot, flags=flags)

    def _mend(self) -> None:
        """Become a plausible peer again: a ring that stays broken is never used."""
        for lane in self.ends.lanes:
            lane.raw.head, lane.raw.tail = lane.tx.head, lane.rx.tail
            for slot, offset in enumerate(lane.offsets):
                lane.raw[slot] = Descriptor(0, self.ends.buffer_region, self.ends.buffer_size, offset)

    def _give(self) -> None:
        """The peer has sent a few packets, for all that the indices say."""
        receives = self.ends.m2s if self.is_slave else self.ends.s2m
        index = "tail" if self.is_slave else "head"
        setattr(receives.raw, index, (getattr(receives.raw, index) + 1 + self.script.below(4)) & 0xFFFF)

    def _take(self) -> None:
        """The peer has taken what was sent, and posted buffers."""
        sends = self.ends.s2m if self.is_slave else self.ends.m2s
        if self.is_slave:
            sends.raw.tail = sends.raw.head
        else:
            sends.raw.head = (sends.raw.tail + self.ends.size) & 0xFFFF

    # --- the side under attack ----------------------------------------------------------------------------------

    def _keep(self, burst: Burst) -> list[tuple[int, int, bytes]]:
        self.bursts.append(burst)
        del self.bursts[:-_KEPT]
        assert len(burst) <= self.ends.size
        return [(burst.slot(index), burst.length(index), bytes(view)) for index, view in enumerate(burst)]

    def _burst_of(self) -> Burst:
        if not self.bursts:
            raise IndexError
        return self.bursts[-1 - self.script.below(len(self.bursts))]

    def _pending(self) -> tuple[int, int]:
        return self.rx.pending(), self.tx.free()

    def _recv(self) -> list[bytes]:
        packets = self.rx.recv(1 + self.script.below(20))
        assert len(packets) <= self.ends.size
        return packets

    def _recv_into(self) -> tuple[int, bytes, bytes]:
        rows, width = 1 + self.script.below(6), self.script.pick((80, 1, 8, 64))
        matrix, lengths = bytearray(rows * width), array("I", [0] * rows)
        count = self.rx.recv_into(memoryview(matrix).cast("B", (rows, width)), lengths)
        return count, bytes(matrix), lengths.tobytes()

    def _receive_burst(self) -> object:
        return self._keep(self.rx.burst(1 + self.script.below(20), split=self.script.rarely()))

    def _write_and_trim(self) -> list[int]:
        burst = self._burst_of()
        lengths = []
        for index in range(len(burst)):
            burst[index][:] = b"\x5a" * burst.length(index)
            if self.script.rarely():
                burst.set_length(index, self.script.edge(2))
            if self.script.rarely():
                burst.advance(index, self.script.byte() - 128)
            lengths.append(len(burst[index]))
        return lengths

    def _packets_of(self) -> list[int]:
        return [len(packet) for packet in self._burst_of().packets()]

    def _close(self) -> None:
        self._burst_of().close()

    def _drop(self) -> None:
        self._burst_of().drop(self.script.below(8))

    def _untake(self) -> None:
        self.rx.untake(self._burst_of())

    def _refill(self) -> int:
        count = self.script.byte()
        return self.rx.refill(None if count < 64 else count & 15, headroom=self.script.pick((0, 0, 1, 20)))

    def _forward(self) -> int:
        return self.tx.forward(self._burst_of())

    def _relay(self) -> int:
        return self.tx.relay(self.rx, 1 + self.script.below(20))

    def _send(self) -> int:
        return self.tx.send(self._some_packets(), chain=not self.script.rarely())

    def _send_while_the_peer_writes(self) -> int:
        """The packets come from code in which the memory changes: in the middle of the call."""
        return self.tx.send(self._packets_between_writes())

    def _packets_between_writes(self) -> Iterator[bytes]:
        for packet in self._some_packets():
            self.script.pick(_WRITES)(self)
            yield packet

    def _some_packets(self) -> list[bytes]:
        return [bytes((self.script.byte() + 6) % 120) for _ in range(1 + self.script.below(12))]

    def _send_from(self) -> int:
        rows, width = 1 + self.script.below(6), self.script.pick((80, 1, 8, 64))
        lengths = array("I", [1 + self.script.below(width) for _ in range(rows)])
        return self.tx.send_from(memoryview(bytes(rows * width)).cast("B", (rows, width)), lengths)

    def _alloc(self) -> object:
        size = self.script.byte()
        return self._keep(self.tx.alloc(1 + self.script.below(12), size or None))

    def _transmit(self) -> int:
        count = self.script.byte()
        return self.tx.transmit(self._burst_of(), None if count < 64 else count & 7)

    def _rewind(self) -> None:
        self.tx.rewind(self._burst_of(), self.script.below(10) - 1)

    def _enqueue(self) -> object:
        return self._keep(self.tx.enqueue(self._burst_of(), self.script.below(6), self.script.below(10)))

    def _exchange(self) -> None:
        self.implementation.exchange(
            self._burst_of(), self.script.below(6), self._burst_of(), self.script.below(6)
        )  # fmt: skip


_WRITES: tuple[Callable[[Victim], object], ...] = (
    Victim._give,
    Victim._take,
    Victim._poke_index,
    Victim._poke_header,
    Victim._poke_descriptor,
    Victim._poke_descriptor,
    Victim._chain,
    Victim._mend,
)
_STEPS: tuple[Callable[[Victim], object], ...] = (
    *_WRITES,
    Victim._pending,
    Victim._recv,
    Victim._recv_into,
    Victim._receive_burst,
    Victim._receive_burst,
    Victim._write_and_trim,
    Victim._packets_of,
    Victim._close,
    Victim._drop,
    Victim._untake,
    Victim._refill,
    Victim._forward,
    Victim._relay,
    Victim._send,
    Victim._send_while_the_peer_writes,
    Victim._send_from,
    Victim._alloc,
    Victim._transmit,
    Victim._rewind,
    Victim._enqueue,
    Victim._exchange,
)


class RingTarget:
    """One side's rings under one input each."""

    names: ClassVar[tuple[str, ...]] = ("python", "native")

    def __init__(self, role: Role, name: str) -> None:
        self.role = role
        self.inputs = 0
        self.steps = 0
        self.violations = 0
        self._implementations = [load("python")] if name == "python" else [load("python"), load("native")]

    def __call__(self, data: bytes) -> None:
        """Use a ring as the input says.

        :raises AssertionError: something was written outside, or the implementations differ.
        """
        victims = [Victim(implementation, self.role, Script(data)) for implementation in self._implementations]
        script = victims[0].script
        while not script.over:
            results = [victim.step() for victim in victims]
            assert all(result == results[0] for result in results), f"the implementations differ: {results}"
            self.steps += 1
            self.violations += isinstance(results[0], str) and " ring 0" in results[0]
            for victim in victims:
                victim.check()
        memories = [victim.finish() for victim in victims]
        assert all(memory == memories[0] for memory in memories), "the implementations wrote different bytes"
        self.inputs += 1

    def check(self) -> None:
        """Nothing that outlives an input."""

    def close(self) -> None:
        """Nothing to give back."""
