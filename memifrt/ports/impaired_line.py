"""Packets on their way through an impairment: which of them are lost or changed, and when each one leaves.

Owns the random decisions and the delayed packets of one direction. Every time is a parameter, in nanoseconds, so the
line has no clock and no ports. The steps and their order are those of Linux's netem: duplicate, lose, corrupt, reorder
or delay.
"""

from __future__ import annotations

import heapq
import itertools
import operator
import random
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import overload

from memifrt.ports.impairment import GilbertElliott, Impairment, Settings

_SECOND = 1_000_000_000
#: Packets are kept by the time at which they leave, in slots of 2 ** 17 ns, 131 us.
_SLOT_BITS = 17
#: The bytes that a delayed packet takes besides its own: objects of Python.
OVERHEAD = 128
#: The number of values in a table of a distribution.
_TABLE = 4096
#: The longest delay of the Pareto distribution in multiples of the jitter: netem's table ends there.
_PARETO_END = 4.0

_Stage = Callable[[Sequence[bytes]], Sequence[bytes]]


class Line:
    """One direction through an :class:`Impairment`: :meth:`put` packets in, and :meth:`take` those that are due.

    :param stream: the number of the direction, so that two with the same seed decide differently.
    """

    def __init__(self, impairment: Impairment, stream: int = 0) -> None:
        self.impairment = impairment
        self._counters = impairment.counters
        self._stream = stream
        self._timelines: dict[int, _Timeline] = {}
        self._packets = self._bytes = 0
        #: The state of Gilbert and Elliott's model.
        self._bad = False
        #: When the link has sent all packets that it has, and when it will have sent each one.
        self._free_at = 0.0
        self._departures: deque[float] = deque()
        #: Packets since the last one that was reordered, and the last random number for it.
        self._since_reordered = 0
        self._last_draw = 0.0
        self._adopt(impairment.settings, None)

    def _adopt(self, settings: Settings, before: Settings | None) -> None:
        """Prepare for new settings."""
        self._settings = settings
        if before is None or before.seed != settings.seed:
            # Each step has a generator of its own: what it decides then does not depend on the bursts of the ring.
            self._generators = {
                name: random.Random(f"{settings.seed}:{self._stream}:{name}")
                for name in ("duplicate", "loss", "corrupt", "reorder", "jitter")
            }
            self._last_draw = self._generators["reorder"].random()
        self._delay = round(settings.delay * _SECOND)
        #: The delays to draw from, all equally likely; None if there is no jitter.
        self._delays = _delays(settings) if settings.jitter else None
        self._stages: list[_Stage] = []
        if settings.duplicate:
            self._stages.append(self._duplicate)
        if isinstance(settings.loss, GilbertElliott):
            self._stages.append(self._lose_in_bursts)
        elif settings.loss:
            self._stages.append(self._lose)
        if settings.corrupt:
            self._stages.append(self._corrupt)

    # --- packets in and out ------------------------------------------------------------------------------------------

    def put(self, packets: Sequence[bytes], now: int, qid: int = 0) -> None:
        """Decide about packets that come now, and keep those that are not dropped.

        :param qid: the number of the queue. Packets of one queue keep their order, unless an impairment changes it.
        """
        settings = self.impairment.settings
        if settings is not self._settings:
            self._adopt(settings, self._settings)
        matches = settings.matches
        if matches is None:
            self._impair(packets, now, qid)
            return
        for is_match, run in itertools.groupby(packets, matches):
            if is_match:
                self._impair([*run], now, qid)
            else:
                self._let_go([*run], now, qid)

    def take(self, now: int, qid: int = 0) -> list[bytes]:
        """Return the packets of a queue that are due, in the order in which they leave."""
        timeline = self._timelines.get(qid)
        if timeline is None:
            return []
        packets = timeline.take(now)
        if packets:
            self._packets -= len(packets)
            self._bytes -= _size(packets)
        return packets

    def due(self) -> int | None:
        """Return when the next packet leaves; None if there is none."""
        return min((timeline.due() for timeline in self._timelines.values() if timeline), default=None)

    @property
    def qids(self) -> list[int]:
        """The numbers of the queues that have packets here."""
        return [qid for qid, timeline in self._timelines.items() if timeline]

    def __len__(self) -> int:
        return self._packets

    def discard(self) -> int:
        """Drop all packets; return how many."""
        count = self._packets
        self._timelines.clear()
        self._departures.clear()
        self._packets = self._bytes = 0
        self._free_at = 0.0
        return count

    # --- what happens to them ----------------------------------------------------------------------------------------

    def _impair(self, packets: Sequence[bytes], now: int, qid: int) -> None:
        for stage in self._stages:
            packets = stage(packets)
        settings = self._settings
        if settings.reorder.probability:
            packets = self._reorder(packets, now, qid)
        if settings.rate:
            packets, departures = self._shape(packets, now, settings)
            packets = self._what_fits(packets)
            self._counters.delayed += len(packets)
            if self._delays is None:
                delay = self._delay
                self._timeline(qid).add_run([each + delay for each in departures[: len(packets)]], packets)
            else:
                self._timeline(qid).add_each([*map(int.__add__, departures, self._draw_delays(packets))], packets)
        elif self._delays is not None:
            packets = self._what_fits(packets)
            dues = [now + delay for delay in self._draw_delays(packets)]
            self._counters.delayed += len(dues) - dues.count(now)
            self._timeline(qid).add_each(dues, packets)
        elif self._delay:
            packets = self._what_fits(packets)
            self._counters.delayed += len(packets)
            if packets:
                self._timeline(qid).add(now + self._delay, packets)
        else:
            self._let_go(packets, now, qid)

    def _duplicate(self, packets: Sequence[bytes]) -> Sequence[bytes]:
        draw, share = self._generators["duplicate"].random, self._settings.duplicate
        found: list[bytes] = []
        for packet in packets:
            found.append(packet)
            if draw() < share:
                found.append(packet)
        self._counters.duplicated += len(found) - len(packets)
        return found

    def _lose(self, packets: Sequence[bytes]) -> Sequence[bytes]:
        draw, share = self._generators["loss"].random, self._settings.loss
        assert isinstance(share, float)
        kept = [packet for packet in packets if draw() >= share]
        self._counters.lost += len(packets) - len(kept)
        return kept

    def _lose_in_bursts(self, packets: Sequence[bytes]) -> Sequence[bytes]:
        """Lose packets as :class:`GilbertElliott` has it: judge each packet in the present state, then change that."""
        model = self._settings.loss
        assert isinstance(model, GilbertElliott)
        draw, p, r, in_bad, in_good = self._generators["loss"].random, model.p, model.back, model.bad, model.good
        bad = self._bad
        kept = []
        for packet in packets:
            if bad:
                if draw() >= in_bad:
                    kept.append(packet)
                bad = draw() >= r
            else:
                if draw() >= in_good:
                    kept.append(packet)
                bad = draw() < p
        self._bad = bad
        self._counters.lost += len(packets) - len(kept)
        return kept

    def _corrupt(self, packets: Sequence[bytes]) -> Sequence[bytes]:
        generator, share = self._generators["corrupt"], self._settings.corrupt
        draw = generator.random
        found = [*packets]
        for number, packet in enumerate(packets):
            if draw() < share and packet:
                bit = generator.randrange(len(packet) * 8)
                changed = bytearray(packet)
                changed[bit >> 3] ^= 1 << (bit & 7)
                found[number] = bytes(changed)
                self._counters.corrupted += 1
        return found

    def _reorder(self, packets: Sequence[bytes], now: int, qid: int) -> Sequence[bytes]:
        """Let some packets leave at once; return the others, which are delayed."""
        settings = self._settings.reorder
        draw, probability, correlation = self._generators["reorder"].random, settings.probability, settings.correlation
        ahead, delayed = [], []
        for packet in packets:
            if self._since_reordered >= settings.gap - 1:
                self._last_draw = draw() * (1 - correlation) + self._last_draw * correlation
                if self._last_draw < probability:
                    self._since_reordered = 0
                    ahead.append(packet)
                    continue
            self._since_reordered += 1
            delayed.append(packet)
        self._counters.reordered += len(ahead)
        self._let_go(ahead, now, qid)
        return delayed

    def _shape(self, packets: Sequence[bytes], now: int, settings: Settings) -> tuple[Sequence[bytes], list[int]]:
        """Send packets one after the other at the rate; drop those that find the queue full.

        :returns: the others, and when each of them has been sent.
        """
        departures, a_byte = self._departures, 8 * _SECOND / settings.rate
        while departures and departures[0] <= now:
            departures.popleft()
        kept = packets[: max(settings.queue - len(departures), 0)]
        self._counters.queue_full += len(packets) - len(kept)
        times = map(operator.mul, map(len, kept), itertools.repeat(a_byte))
        _, *sent = itertools.accumulate(times, initial=max(self._free_at, now))
        if sent:
            self._free_at = sent[-1]
            departures.extend(sent)
        return kept, [*map(int, sent)]

    def _draw_delays(self, packets: Sequence[bytes]) -> list[int]:
        """Return a random delay for each packet."""
        assert self._delays is not None
        return self._generators["jitter"].choices(self._delays, k=len(packets))

    # --- delayed packets ---------------------------------------------------------------------------------------------

    def _let_go(self, packets: Sequence[bytes], now: int, qid: int) -> None:
        """Let packets leave now, after those that should have left before."""
        if packets:
            self._packets += len(packets)
            self._bytes += _size(packets)
            self._timeline(qid).add(now, packets)

    def _what_fits(self, packets: Sequence[bytes]) -> Sequence[bytes]:
        """Take memory for packets; return those that it has room for, and count the others."""
        room = self._settings.memory - self._bytes
        size = _size(packets)
        if size > room:
            sums = itertools.accumulate(len(packet) + OVERHEAD for packet in packets)
            fits = sum(1 for _ in itertools.takewhile(room.__ge__, sums))
            self._counters.memory_full += len(packets) - fits
            packets = packets[:fits]
            size = _size(packets)
        self._packets += len(packets)
        self._bytes += size
        return packets

    def _timeline(self, qid: int) -> _Timeline:
        timeline = self._timelines.get(qid)
        if timeline is None:
            timeline = self._timelines[qid] = _Timeline()
        return timeline


class _Slot:
    """Packets that leave in one slot of time, and when: two lists, because Python's garbage collector ignores them."""

    __slots__ = ("dues", "in_order", "packets")

    def __init__(self) -> None:
        self.dues: list[int] = []
        self.packets: list[bytes] = []
        self.in_order = True

    def sorted_packets(self) -> list[bytes]:
        # Sorting is stable: packets with the same time keep their order.
        return [self.packets[number] for number in sorted(range(len(self.dues)), key=self.dues.__getitem__)]

    def sort(self) -> None:
        if not self.in_order:
            self.packets = self.sorted_packets()
            self.dues.sort()
            self.in_order = True

    def due(self) -> int:
        return self.dues[0] if self.in_order else min(self.dues)

    def latest(self) -> int:
        return self.dues[-1] if self.in_order else max(self.dues)


class _Timeline:
    """Packets by the time at which they leave. Packets with the same time keep their order."""

    def __init__(self) -> None:
        self._slots: dict[int, _Slot] = {}
        self._numbers: list[int] = []  # of the slots, a heap

    def __bool__(self) -> bool:
        return bool(self._numbers)

    def add(self, due: int, packets: Sequence[bytes]) -> None:
        """Add packets that leave together."""
        self._extend(self._slot(due >> _SLOT_BITS), [due] * len(packets), packets)

    def add_run(self, dues: Sequence[int], packets: Sequence[bytes]) -> None:
        """Add packets that leave one after the other: their times only grow."""
        start = 0
        while start < len(packets):
            number = dues[start] >> _SLOT_BITS
            end = bisect_left(dues, (number + 1) << _SLOT_BITS, start)
            self._extend(self._slot(number), dues[start:end], packets[start:end])
            start = end

    def add_each(self, dues: Sequence[int], packets: Sequence[bytes]) -> None:
        """Add packets, each with its own time."""
        slots = self._slots
        for due, packet in zip(dues, packets, strict=True):
            number = due >> _SLOT_BITS
            slot = slots.get(number)
            if slot is None:
                slot = self._slot(number)
            slot.in_order = False
            slot.dues.append(due)
            slot.packets.append(packet)

    def _extend(self, slot: _Slot, dues: Sequence[int], packets: Sequence[bytes]) -> None:
        if slot.dues and dues[0] < slot.dues[-1]:
            slot.in_order = False
        slot.dues += dues
        slot.packets += packets

    def _slot(self, number: int) -> _Slot:
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = _Slot()
            heapq.heappush(self._numbers, number)
        return slot

    def due(self) -> int:
        return self._slots[self._numbers[0]].due()

    def take(self, now: int) -> list[bytes]:
        found: list[bytes] = []
        last = now >> _SLOT_BITS
        while self._numbers and self._numbers[0] <= last:
            number = self._numbers[0]
            slot = self._slots[number]
            if number == last and slot.latest() > now:
                slot.sort()
                count = bisect_right(slot.dues, now)
                found += slot.packets[:count]
                del slot.dues[:count], slot.packets[:count]
                break
            found += slot.packets if slot.in_order else slot.sorted_packets()
            del self._slots[number]
            heapq.heappop(self._numbers)
        return found


def _size(packets: Sequence[bytes]) -> int:
    return sum(map(len, packets)) + OVERHEAD * len(packets)


def _delays(settings: Settings) -> Sequence[int]:
    """Return equally likely delays in nanoseconds. None is below 0."""
    delay, jitter = settings.delay * _SECOND, settings.jitter * _SECOND
    if settings.distribution == "uniform":
        values = range(round(delay - jitter), round(delay + jitter) + 1)
        return values if values[0] >= 0 else _NotBelowZero(values)
    return [max(round(delay + jitter * value), 0) for value in _table(settings.distribution)]


class _NotBelowZero(Sequence[int]):
    """A range of delays, with 0 instead of those below 0."""

    def __init__(self, values: range) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, number: int) -> int: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[int]: ...

    def __getitem__(self, number: int | slice) -> int | Sequence[int]:
        assert isinstance(number, int)
        return max(self._values[number], 0)


@lru_cache
def _table(distribution: str) -> Sequence[float]:
    """Return equally likely values of a distribution, in multiples of the jitter from the delay."""
    shares = [(number + 0.5) / _TABLE for number in range(_TABLE)]
    if distribution == "normal":
        from statistics import NormalDist  # imports much, and few need it

        return [*map(NormalDist().inv_cdf, shares)]
    # netem's table: Pareto's distribution with shape 3, less its mean of 1.5, times 4/3, and cut at 4.
    return [min((share ** (-1 / 3) - 1.5) * 4 / 3, _PARETO_END) for share in shares]
