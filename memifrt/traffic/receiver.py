"""Check what comes back: loss, duplication, reordering, corruption and latency by lane.

Owns the rules of counting:

- A packet with our mark is *received*.
- It is *corrupted* if its check value is wrong. Its sequence number is then not used.
- It is *duplicated* if a packet with its number has come before.
- It is *reordered* if a packet with a larger number has come before (RFC 4737).
- *Lost* are the packets that were sent and did not come.

Packets without our mark, with another run's, or on another interface than they were sent to are *foreign*.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from memifrt.queue import RxQueue
from memifrt.traffic import signature
from memifrt.traffic.arrays import Array
from memifrt.traffic.checksums import words
from memifrt.traffic.fields import Field
from memifrt.traffic.latency import LatencyRecorder
from memifrt.traffic.prepare import Template

#: The most packets to take in one call.
_ROWS = 512
#: What a device may add to a packet, such as tags or a tunnel's headers, in bytes.
_ROOM = 64
#: How many numbers back a packet may be late and still be told from a duplicate. A power of two.
WINDOW = 1 << 18
_WINDOW_MASK = WINDOW - 1
#: Up to this many bytes, columns are faster than sums over rows.
_FEW_COLUMNS = 64
_U64 = np.uint64
_LOW_16, _LOW_32 = _U64(0xFFFF), _U64(0xFFFFFFFF)


@dataclass(slots=True)
class Tally:
    """What came back of one lane."""

    received: int = 0
    received_bytes: int = 0
    duplicated: int = 0
    reordered: int = 0
    corrupted: int = 0

    @property
    def arrived(self) -> int:
        """The packets that came, each counted once."""
        return self.received - self.duplicated


class Sequence64:
    """Tells lost, duplicated and reordered packets of one lane from those in order."""

    def __init__(self) -> None:
        #: The number after the largest one that has come, not cut to 32 bits.
        self._next = 0
        self._seen: Array | None = None

    def take(self, numbers: Array) -> tuple[int, int]:
        """Take the numbers of packets in the order in which they came, each of 32 bits.

        :returns: how many are duplicated, and how many are reordered.
        """
        if self._seen is None:
            # What no packet can have at this place: its own number is congruent to the place.
            self._seen = np.arange(1, WINDOW + 1, dtype=np.uint32)
        count = len(numbers)
        start = self._next & 0xFFFFFFFF
        if int(numbers[0]) == start and int(numbers[-1]) == (start + count - 1) & 0xFFFFFFFF and count < WINDOW:
            place = start & _WINDOW_MASK
            if place + count <= WINDOW and start + count < 1 << 32:
                expected = np.arange(start, start + count, dtype=np.uint32)
                if np.array_equal(numbers, expected):
                    self._seen[place : place + count] = expected
                    self._next += count
                    return 0, 0
        return self._take_unordered(numbers, self._seen)

    def _take_unordered(self, numbers: Array, seen: Array) -> tuple[int, int]:
        # The whole number next to the expected one that has these 32 bits.
        distance = (numbers.astype(np.int64) - (self._next & 0xFFFFFFFF) + (1 << 31)) % (1 << 32) - (1 << 31)
        whole = distance + self._next
        first = np.zeros(len(whole), np.bool_)
        first[np.unique(whole, return_index=True)[1]] = True
        places = whole & _WINDOW_MASK
        known = (seen[places] == numbers) & first
        fresh = first & ~known
        before = np.maximum.accumulate(np.concatenate(([self._next - 1], whole[:-1])))
        reordered = int(np.count_nonzero(fresh & (whole < before)))
        seen[places[fresh]] = numbers[fresh]
        self._next = max(self._next, int(whole.max()) + 1)
        return len(whole) - int(np.count_nonzero(fresh)), reordered


class LaneCheck:
    """Checks the packets of one lane.

    :param templates: the packets of its stream at their full sizes.
    :param varying: the fields that vary.
    """

    def __init__(self, templates: Sequence[Template], varying: Sequence[Field]) -> None:
        self.tally = Tally()
        self.recorder: LatencyRecorder | None = None
        self._sequence = Sequence64()
        #: For each size, the bytes behind the headers, their sum as words, and their sum as numbers of 64 bits; None if
        #: packets of this size differ.
        self._bodies: dict[int, _Body] = {}
        for template in templates:
            size = len(template.data)
            places = [field.place(template.layout, template.data) for field in varying]
            inside = any(place and place.at + place.width > template.covered for place in places)
            body = _Body.of(template, constant=not inside)
            known = self._bodies.get(size)
            self._bodies[size] = body if known is None else known.joined(body)
        self._sizes = np.array(sorted(self._bodies))

    def begin(self) -> None:
        """Forget what has come."""
        self.tally = Tally()
        self.recorder = None
        self._sequence = Sequence64()

    def body(self, size: int) -> _Body:
        """Return what is behind the headers of packets of this size.

        A device may add or remove a tag, so it is that of the nearest size that the stream has.
        """
        found = self._bodies.get(size)
        return self._bodies[int(self._sizes[np.abs(self._sizes - size).argmin()])] if found is None else found

    def take(self, first: Array, second: Array, now: int) -> None:
        """Take marks whose check values are right, in the order in which they came.

        :param now: the time of their receipt, in nanoseconds.
        """
        duplicated, reordered = self._sequence.take((first >> _U64(32)).astype(np.uint32))
        self.tally.duplicated += duplicated
        self.tally.reordered += reordered
        if self.recorder is None:
            self.recorder = LatencyRecorder()
        self.recorder.record(signature.latency(second, now))


@dataclass(frozen=True, slots=True)
class _Body:
    """What is behind the headers of packets of one size, without the mark.

    :ivar length: its bytes.
    :ivar word_sum: the sum of its words; None if packets differ.
    :ivar long_sum: the sum of its bytes as :func:`_long_sums` forms it.
    """

    length: int
    word_sum: int | None
    long_sum: int

    @classmethod
    def of(cls, template: Template, *, constant: bool) -> _Body:
        data = template.data[template.covered : len(template.data) - signature.SIZE]
        if not constant:
            return cls(len(data), None, 0)
        row = np.frombuffer(data + bytes(signature.SIZE), np.uint8).reshape(1, -1)
        return cls(len(data), words(data), int(_long_sums(row, len(data), row.shape[1])[0]) if data else 0)

    def joined(self, other: _Body) -> _Body:
        """Return the body of packets that have either this or the other one."""
        if self == other:
            return self
        return _Body(self.length, None, 0)


def _long_sums(rows: Array, length: int, size: int) -> Array:
    """Return for each row the sum, modulo 2**64, of the ``length`` bytes before the mark."""
    end = size - signature.SIZE
    at = end - length
    total: Array
    wide = length // 8
    if length > _FEW_COLUMNS:
        total = rows[:, end - 8 * wide : end].view("<u8").sum(axis=1, dtype=np.uint64)
    else:
        total = np.zeros(len(rows), np.uint64)
        for index in range(wide):
            start = end - 8 * (index + 1)
            np.add(total, rows[:, start : start + 8].view("<u8")[:, 0], out=total)
    left = length - 8 * wide
    for width in (4, 2, 1):
        if left >= width:
            np.add(total, rows[:, at : at + width].view(f"<u{width}")[:, 0], out=total, casting="unsafe")
            at += width
            left -= width
    return total


def _word_sums(rows: Array, length: int, size: int) -> Array:
    """Return for each row the sum of the words of the ``length`` bytes before the mark, aligned to their end."""
    end = size - signature.SIZE
    at = end - length
    odd = length % 2
    total: Array = rows[:, at + odd : end].view("<u2").sum(axis=1, dtype=np.uint64)
    if odd:
        total += rows[:, at].astype(np.uint64) << _U64(8)
    return total


class Receiver:
    """Takes packets from the queues of one interface and checks them.

    :param width: the size of the longest packet that was sent, in bytes.
    :param lanes: the lanes whose packets come on this interface, by number.
    """

    def __init__(self, width: int, lanes: Mapping[int, LaneCheck]) -> None:
        #: As any object: on old versions of Python, the type of an array does not say that it is a buffer.
        self._matrix: Any = np.zeros((_ROWS, width + _ROOM), np.uint8)
        self._lengths: Any = np.zeros(_ROWS, np.uint32)
        self._first: Array = np.zeros(_ROWS, np.uint64)
        self._second: Array = np.zeros(_ROWS, np.uint64)
        self.lanes = lanes
        self._run = 0
        #: Packets that are none of ours.
        self.foreign = 0

    def begin(self, run: int) -> None:
        """Forget what has come, and take the packets of this run only."""
        self._run = run
        self.foreign = 0
        for lane in self.lanes.values():
            lane.begin()

    def poll(self, queue: RxQueue) -> int:
        """Take packets that wait in a queue; return how many.

        :raises Disconnected: the interface has no peer.
        """
        count = queue.recv_into(self._matrix, self._lengths)
        if count:
            self._check(count, time.monotonic_ns())
        return count

    def _check(self, count: int, now: int) -> None:
        lengths = self._lengths[:count]
        size = int(lengths[0])
        if (lengths == size).all():
            whole = self._check_size(slice(0, count), size, count)
            first, second = self._first[:count], self._second[:count]
            if whole is None:  # one lane, and nothing wrong: the usual case
                self._lane(int(first[0])).take(first, second, now)
                return
        else:
            whole = np.zeros(count, np.bool_)
            for size in np.unique(lengths).tolist():
                rows = np.flatnonzero(lengths == size)
                good = self._check_size(rows, size, len(rows))
                whole[rows] = True if good is None else good
            first, second = self._first[:count], self._second[:count]
        if not whole.any():
            return
        first, second = first[whole], second[whole]
        keys = first & _LOW_32
        for key in np.unique(keys).tolist():
            rows = keys == key
            self._lane(key).take(first[rows], second[rows], now)

    def _lane(self, word: int) -> LaneCheck:
        return self.lanes[(word & 0xFFFFFFFF) >> 16]

    def _check_size(self, rows: slice | Array, size: int, count: int) -> Array | None:
        """Read the marks of rows with packets of one size, and check and count them.

        :returns: whether each one is ours and whole; None if all are, and of one lane.
        """
        if not signature.SIZE <= size <= self._matrix.shape[1]:
            self.foreign += count
            return np.zeros(count, np.bool_)
        data = self._matrix[rows]
        marks = data[:, size - signature.SIZE : size].view("<u8")
        first, second = marks[:, 0].copy(), marks[:, 1].copy()
        self._first[rows], self._second[rows] = first, second
        keys = first.astype(np.uint32)
        key = int(keys[0])
        if (keys == key).all():
            lane = self._ours(key)
            if lane is None:
                self.foreign += count
                return np.zeros(count, np.bool_)
            good = self._check_lane(lane, data, first, second, size)
            return None if good.all() else good
        result = np.zeros(count, np.bool_)
        for key in np.unique(keys).tolist():
            own = np.flatnonzero(keys == key)
            lane = self._ours(key)
            if lane is None:
                self.foreign += len(own)
                continue
            result[own] = self._check_lane(lane, data[own], first[own], second[own], size)
        return result

    def _ours(self, key: int) -> LaneCheck | None:
        return self.lanes.get(key >> 16) if key & 0xFFFF == self._run else None

    def _check_lane(self, lane: LaneCheck, data: Array, first: Array, second: Array, size: int) -> Array:
        """Count packets of one lane and size, and return whether each one is whole."""
        tally = lane.tally
        tally.received += len(first)
        tally.received_bytes += len(first) * size
        body = lane.body(size)
        length = min(body.length, size - signature.SIZE)
        if body.word_sum is None:
            good = signature.is_whole(first, second, _word_sums(data, length, size))
        else:
            good = signature.is_whole(first, second, body.word_sum)
            if length:
                good &= _long_sums(data, length, size) == _U64(body.long_sum)
        tally.corrupted += len(first) - int(np.count_nonzero(good))
        return good
