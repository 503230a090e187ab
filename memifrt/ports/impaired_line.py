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
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache

from memifrt.ports.impairment import GilbertElliott, Impairment, Settings

_SECOND = 1_000_000_000
#: Packets are kept by the time at which they leave, in slots of 2 ** 17 ns, 131 us.
_SLOT_BITS = 17
#: What a delayed packet takes besides its bytes: objects of Python.
OVERHEAD = 128
#: The number of values in a table of a distribution.
_TABLE = 4096
#: The longest delay of the Pareto distribution in multiples of the jitter: netem's table ends there.
_PARETO_END = 4.0

_DUE = operator.itemgetter(0)
_Stage = Callable[[Sequence[bytes]], Sequence[bytes]]


class Line:
    """One direction through an :class:`Impairment`: :meth:`put` packets in, and :meth:`take` those whose time has come.

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
            self._generator = random.Random(f"{settings.seed}:{self._stream}")
            self._random = self._generator.random
            self._last_draw = self._random()
        self._delay = round(settings.delay * _SECOND)
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
                self._hold([*run], now, now, qid)

    def take(self, now: int, qid: int = 0) -> list[bytes]:
        """Return the packets of a queue whose time has come, in the order in which they leave."""
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
            packets, starts = self._shape(packets, now, settings)
            if settings.jitter:
                delays = self._delays(len(packets))
                self._hold_each(packets, [*map(operator.add, starts, delays)], now, qid)
            else:
                self._hold_each(packets, [start + self._delay for start in starts], now, qid)
        elif settings.jitter:
            self._hold_each(packets, [now + delay for delay in self._delays(len(packets))], now, qid)
        else:
            self._hold(packets, now + self._delay, now, qid)

    def _duplicate(self, packets: Sequence[bytes]) -> Sequence[bytes]:
        draw, share = self._random, self._settings.duplicate
        found: list[bytes] = []
        for packet in packets:
            found.append(packet)
            if draw() < share:
                found.append(packet)
        self._counters.duplicated += len(found) - len(packets)
        return found

    def _lose(self, packets: Sequence[bytes]) -> Sequence[bytes]:
        draw, share = self._random, self._settings.loss
        assert isinstance(share, float)
        kept = [packet for packet in packets if draw() >= share]
        self._counters.lost += len(packets) - len(kept)
        return kept

    def _lose_in_bursts(self, packets: Sequence[bytes]) -> Sequence[bytes]:
        """Lose packets as :class:`GilbertElliott` has it: judge each packet in the present state, then change that."""
        model = self._settings.loss
        assert isinstance(model, GilbertElliott)
        draw, p, r, in_bad, in_good = self._random, model.p, model.back, model.bad, model.good
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
        draw, share = self._random, self._settings.corrupt
        found = [*packets]
        for number, packet in enumerate(packets):
            if draw() < share and packet:
                bit = self._generator.randrange(len(packet) * 8)
                changed = bytearray(packet)
                changed[bit >> 3] ^= 1 << (bit & 7)
                found[number] = bytes(changed)
                self._counters.corrupted += 1
        return found

    def _reorder(self, packets: Sequence[bytes], now: int, qid: int) -> Sequence[bytes]:
        """Let some packets leave at once; return the others, which are delayed."""
        settings = self._settings.reorder
        draw, probability, correlation = self._random, settings.probability, settings.correlation
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
        self._hold(ahead, now, now, qid)
        return delayed

    def _shape(self, packets: Sequence[bytes], now: int, settings: Settings) -> tuple[list[bytes], list[int]]:
        """Send packets one after the other at the rate; drop those that find the queue full.

        :returns: the others, and when each of them has been sent.
        """
        departures, limit, a_byte = self._departures, settings.queue, 8 * _SECOND / settings.rate
        while departures and departures[0] <= now:
            departures.popleft()
        free_at = max(self._free_at, now)
        kept, starts = [], []
        for packet in packets:
            if len(departures) >= limit:
                continue
            free_at += len(packet) * a_byte
            departures.append(free_at)
            kept.append(packet)
            starts.append(round(free_at))
        self._free_at = free_at
        self._counters.queue_full += len(packets) - len(kept)
        return kept, starts

    def _delays(self, count: int) -> list[int]:
        """Return so many random delays, none of them below 0."""
        settings = self._settings
        delay, jitter = settings.delay * _SECOND, settings.jitter * _SECOND
        if settings.distribution == "uniform":
            draw, low, width = self._random, delay - jitter, 2 * jitter
            found = [int(low + width * draw()) for _ in range(count)]
        else:
            values = self._generator.choices(_table(settings.distribution), k=count)
            found = [int(delay + jitter * value) for value in values]
        return [each if each > 0 else 0 for each in found] if found and min(found) < 0 else found

    # --- delayed packets ---------------------------------------------------------------------------------------------

    def _hold(self, packets: Sequence[bytes], due: int, now: int, qid: int) -> None:
        """Keep packets that leave together."""
        if not packets:
            return
        if due > now:
            packets = self._what_fits(packets)
            self._counters.delayed += len(packets)
            if not packets:
                return
        self._packets += len(packets)
        self._bytes += _size(packets)
        self._timeline(qid).add(due, packets)

    def _hold_each(self, packets: Sequence[bytes], dues: Sequence[int], now: int, qid: int) -> None:
        """Keep packets, each with its own time."""
        packets = self._what_fits(packets)
        self._packets += len(packets)
        self._bytes += _size(packets)
        self._counters.delayed += sum(due > now for due in dues[: len(packets)])
        self._timeline(qid).add_each(dues, packets)

    def _what_fits(self, packets: Sequence[bytes]) -> Sequence[bytes]:
        """Return the first packets that the memory has room for, and count the others."""
        room = self._settings.memory - self._bytes
        if _size(packets) <= room:
            return packets
        sums = itertools.accumulate(len(packet) + OVERHEAD for packet in packets)
        fits = sum(1 for _ in itertools.takewhile(room.__ge__, sums))
        self._counters.memory_full += len(packets) - fits
        return packets[:fits]

    def _timeline(self, qid: int) -> _Timeline:
        timeline = self._timelines.get(qid)
        if timeline is None:
            timeline = self._timelines[qid] = _Timeline()
        return timeline


class _Timeline:
    """Packets by the time at which they leave. Packets with the same time keep their order."""

    def __init__(self) -> None:
        #: By the number of its slot: times, each with the packet or the packets that leave then.
        self._slots: dict[int, list[tuple[int, bytes | Sequence[bytes]]]] = {}
        self._numbers: list[int] = []  # of the slots, a heap

    def __bool__(self) -> bool:
        return bool(self._numbers)

    def add(self, due: int, packets: Sequence[bytes]) -> None:
        self._slot(due >> _SLOT_BITS).append((due, packets))

    def add_each(self, dues: Sequence[int], packets: Sequence[bytes]) -> None:
        slots = self._slots
        for entry in zip(dues, packets):  # noqa: B905 - there may be fewer packets than times
            number = entry[0] >> _SLOT_BITS
            slot = slots.get(number)
            if slot is None:
                slot = self._slot(number)
            slot.append(entry)

    def _slot(self, number: int) -> list[tuple[int, bytes | Sequence[bytes]]]:
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = []
            heapq.heappush(self._numbers, number)
        return slot

    def due(self) -> int:
        return min(self._slots[self._numbers[0]], key=_DUE)[0]

    def take(self, now: int) -> list[bytes]:
        found: list[bytes] = []
        last = now >> _SLOT_BITS
        while self._numbers and self._numbers[0] <= last:
            number = self._numbers[0]
            slot = self._slots[number]
            slot.sort(key=_DUE)
            if number == last:
                count = bisect_right(slot, now, key=_DUE)
                leaving, staying = slot[:count], slot[count:]
            else:
                leaving, staying = slot, []
            for _, packets in leaving:
                if isinstance(packets, bytes):
                    found.append(packets)
                else:
                    found += packets
            if staying:
                self._slots[number] = staying
                break
            del self._slots[number]
            heapq.heappop(self._numbers)
        return found


def _size(packets: Sequence[bytes]) -> int:
    return sum(map(len, packets)) + OVERHEAD * len(packets)


@lru_cache
def _table(distribution: str) -> Sequence[float]:
    """Return equally likely values of a distribution, in multiples of the jitter from the delay."""
    shares = [(number + 0.5) / _TABLE for number in range(_TABLE)]
    if distribution == "normal":
        from statistics import NormalDist  # imports much, and few need it

        return [*map(NormalDist().inv_cdf, shares)]
    # netem's table: Pareto's distribution with shape 3, less its mean of 1.5, times 4/3, and cut at 4.
    return [min((share ** (-1 / 3) - 1.5) * 4 / 3, _PARETO_END) for share in shares]
