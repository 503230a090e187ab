"""Check what comes back: loss, duplication, reordering, corruption and latency by lane.

Owns the rules of counting:

- A packet with our mark is *received*.
- It is *corrupted* if something behind its headers has changed, and *whole* otherwise.
- A corrupted packet has the sequence number of its mark if the check value proves it: the damage is then in the time,
  or in bytes that are the same in all packets of its size. Otherwise, if one flipped bit explains the wrong check
  value, or packets of its size differ, it has the most likely number. That is the number of the mark, or one that a
  flipped bit has made into it: the one nearest to the expected number. If none is near, nobody can tell which packet
  it was, and it is *unidentified*.
- A packet is *duplicated* if one with the same number has come before, whole or corrupted.
- Otherwise it has *arrived*, and is *reordered* if one with a larger number has come before (RFC 4737).
- *Lost* are the sent packets that have not arrived. So each sent packet either has arrived or is lost, and a copy never
  takes the place of another packet.
- *Intact* are the numbers that came whole at least once, before or after corrupted copies.

Packets without our mark, with another run's, or on another interface than they were sent to are *foreign*.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from memifrt.queue import RxQueue
from memifrt.traffic import signature
from memifrt.traffic.arrays import Array
from memifrt.traffic.checksums import words
from memifrt.traffic.fields import Field
from memifrt.traffic.latency import LatencyRecorder
from memifrt.traffic.prepare import Template

if TYPE_CHECKING:
    from memifrt._packets import LaneState

try:
    from memifrt._packets import check_marks
except ImportError:  # it is not compiled
    check_marks = None  # type: ignore[assignment]

#: The most packets to take in one call.
_AT_ONCE = 512
#: The packets to check together, and the bytes that they may take.
_ROWS, _LEAST_ROWS, _BLOCK_BYTES = 2048, 256, 2 << 20
#: The most bytes that a device may add to a packet, such as tags or a tunnel's headers.
_ROOM = 64
#: How many numbers back a packet may be late and still be told from a duplicate. A power of two.
WINDOW = 1 << 16
_WINDOW_MASK = WINDOW - 1
#: How far from the expected number a guess may be.
_NEAR = WINDOW // 2
#: How many numbers a guess may skip and still say which one is expected next.
_FEW = 64
#: Up to this many bytes, columns are faster than sums over rows.
_FEW_COLUMNS = 64
_U32, _U64 = np.uint32, np.uint64
#: The mark of the number of a packet that came corrupted only. No number at this place is the same: the place is the
#: lowest bits of the number. Neither is what stands there at the beginning.
_DAMAGED = _U32(2)
_RIGHT_SUM = _U32(0xFFFF)


@dataclass(slots=True)
class Tally:
    """What came back of one lane."""

    received: int = 0
    received_bytes: int = 0
    duplicated: int = 0
    reordered: int = 0
    corrupted: int = 0
    #: Corrupted packets without a number that can be told.
    unidentified: int = 0
    #: Whole packets with a number that had come whole before.
    repeated: int = 0

    @property
    def arrived(self) -> int:
        """The sent packets that came, whole or corrupted, each counted once."""
        return self.received - self.duplicated - self.unidentified

    @property
    def intact(self) -> int:
        """The sent packets that came whole, each counted once."""
        return self.received - self.corrupted - self.repeated


class Sequence64:
    """Tells lost, duplicated and reordered packets of one lane from those in order.

    The window has, at the place of each number, the number itself if it came whole, and the number with its second bit
    changed (:data:`_DAMAGED`) if it came corrupted only.
    """

    def __init__(self) -> None:
        #: The number after the largest one that has come, not cut to 32 bits.
        self._next = 0
        #: The number to expect, also behind corrupted packets with numbers that are not proven.
        self._expected = 0
        #: The number after the largest one that was guessed: it may be larger than the next one.
        self._guessed = 0
        self._seen: Array | None = None

    def take_unproven(self, claim: int, total: int, *, varying: bool) -> tuple[int, int] | None:
        """Take a corrupted packet by its most likely number. Nothing else depends on it, since it may be wrong.

        :param claim: the number in its mark.
        :param total: the sum of words that would be 0xffff if it were right.
        :param varying: whether the damage may be in bytes that differ from packet to packet.
        :returns: 1 if it is duplicated, and 1 if it is reordered, 0 otherwise; None if nobody can tell its number.
        """
        if self._seen is None:
            self._seen = _nothing_seen()
        candidates = self._candidates(claim, total, varying=varying)
        likely = min(candidates, key=lambda full: abs(full - self._expected), default=-1)
        if likely < 0 or abs(likely - self._expected) >= _NEAR:
            return None
        if 0 <= likely - self._expected < _FEW:
            self._expected = likely + 1
        number, place = likely & 0xFFFFFFFF, likely & _WINDOW_MASK
        if int(self._seen[place]) in (number, number ^ int(_DAMAGED)):
            return 1, 0
        self._seen[place] = number ^ int(_DAMAGED)
        self._guessed = max(self._guessed, likely + 1)
        return 0, int(likely < self._next - 1)

    def _candidates(self, claim: int, total: int, *, varying: bool) -> Iterator[int]:
        flipped = [bit for bit in range(16) if total in (1 << bit, 0xFFFF - (1 << bit))]
        if varying or flipped:
            yield self._full(claim)
        for bit in flipped:
            became = total == 1 << bit  # the value of the bit now: the sum has become larger if it was set
            for place in (bit, bit + 16):
                if (claim >> place & 1) == became:
                    yield self._full(claim ^ 1 << place)

    def _full(self, number: int) -> int:
        """Return the number next to the expected one that has these 32 bits."""
        return self._next + ((number - self._next + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)

    def take(self, numbers: Array, whole: Array | None = None) -> tuple[int, int, int]:
        """Take the numbers of packets in the order in which they came, each of 32 bits.

        :param whole: whether each packet is whole; None: all are.
        :returns: how many are duplicated, how many are reordered, and how many are whole and came whole before.
        """
        if self._seen is None:
            self._seen = _nothing_seen()
        count = len(numbers)
        start = self._next & 0xFFFFFFFF
        ahead = self._guessed > self._next
        if (
            not ahead
            and int(numbers[0]) == start
            and int(numbers[-1]) == (start + count - 1) & 0xFFFFFFFF
            and count < WINDOW
        ):
            place = start & _WINDOW_MASK
            if place + count <= WINDOW and start + count < 1 << 32:
                expected = np.arange(start, start + count, dtype=np.uint32)
                if np.array_equal(numbers, expected):
                    self._seen[place : place + count] = _marked_whole(expected, whole)
                    self._expected = self._next = self._next + count
                    return 0, 0, 0
        return self._take_unordered(numbers, np.ones(count, np.bool_) if whole is None else whole, self._seen)

    def _take_unordered(self, numbers: Array, whole: Array, seen: Array) -> tuple[int, int, int]:
        # The full number next to the expected one that has these 32 bits.
        distance = (numbers.astype(np.int64) - (self._next & 0xFFFFFFFF) + (1 << 31)) % (1 << 32) - (1 << 31)
        full = distance + self._next
        first = _first_of_each(full)
        places = full & _WINDOW_MASK
        before = seen[places]
        fresh = first & (before != numbers) & (before != numbers ^ _DAMAGED)
        largest = np.maximum.accumulate(np.concatenate(([self._next - 1], full[:-1])))
        reordered = int(np.count_nonzero(fresh & (full < largest)))
        rows = np.flatnonzero(whole)
        intact = _first_of_each(full[rows]) & (before[rows] != numbers[rows])
        seen[places[fresh]] = _marked_whole(numbers, whole)[fresh]
        seen[places[rows[intact]]] = numbers[rows[intact]]
        self._expected = self._next = max(self._next, int(full.max()) + 1)
        duplicated = len(full) - int(np.count_nonzero(fresh))
        return duplicated, reordered, len(rows) - int(np.count_nonzero(intact))


def _first_of_each(numbers: Array) -> Array:
    """Return for each number whether it is the first of those that are the same."""
    first: Array = np.zeros(len(numbers), np.bool_)
    first[np.unique(numbers, return_index=True)[1]] = True
    return first


def _marked_whole(numbers: Array, whole: Array | None) -> Array:
    """Return what the window has for numbers that came whole or corrupted."""
    if whole is None:
        return numbers
    marked: Array = np.where(whole, numbers, numbers ^ _DAMAGED)
    return marked


def _nothing_seen() -> Array:
    """Return for each place what no packet can have there: its own number is congruent to the place."""
    return np.arange(1, WINDOW + 1, dtype=np.uint32)


class LaneCheck:
    """Checks the packets of one lane.

    :param templates: the packets of its stream at their full sizes.
    :param varying: the fields that vary.
    """

    def __init__(self, templates: Sequence[Template], varying: Sequence[Field]) -> None:
        self.tally: Tally | LaneState = Tally()
        self.recorder: LatencyRecorder | None = None
        self._sequence = Sequence64()
        self._state: LaneState | None = None
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
        self._state = None

    def state(self) -> LaneState:
        """Return what checks and counts the packets of the lane in compiled code: its counts become the tally."""
        if self._state is None:
            from memifrt._packets import LaneState

            bodies = [(size, *self._bodies[size].numbers()) for size in sorted(self._bodies)]
            self.recorder = LatencyRecorder()
            self._state = LaneState(np.array(bodies, np.uint64), _nothing_seen(), self.recorder.counts)
            self.tally = self._state
        return self._state

    def _body(self, size: int) -> _Body:
        """Return what is behind the headers of packets of this size.

        A device may add or remove a tag, so it is that of the nearest size that the stream has.
        """
        found = self._bodies.get(size)
        return self._bodies[int(self._sizes[np.abs(self._sizes - size).argmin()])] if found is None else found

    def judge(self, batch: _Batch, key: int) -> _Batch:
        """Return a batch of this lane with what is known of each packet.

        That is: the sum of words, which is 0xffff if it proves the number; whether the packet is whole; and whether
        packets of its size differ.
        """
        body = self._body(batch.size)
        length = min(body.length, batch.size - signature.SIZE)
        rest: Array | int = (key & 0xFFFF) + (key >> 16)
        if body.word_sum is None:
            rest = _word_sums(batch.body(length)) + _U32(rest)
        else:
            rest += body.word_sum
        total = signature.sums(batch.sequence, batch.check, rest)
        whole = (total == _RIGHT_SUM) & signature.has_right_time(batch.times)
        if body.word_sum is not None and length:
            whole &= _long_sums(batch.body(length)) == _U64(body.long_sum)
        varying = np.full(batch.count, body.word_sum is None)
        return replace(batch, total=total, whole=whole, varying=varying)

    def count(self, packets: int, size: int, corrupted: int) -> None:
        """Count packets that have ``size`` bytes together; ``corrupted`` is how many of them are damaged."""
        assert isinstance(self.tally, Tally)
        self.tally.received += packets
        self.tally.received_bytes += size
        self.tally.corrupted += corrupted

    def take(self, batch: _Batch) -> None:
        """Take the marks of packets, in the order in which they came."""
        if self.recorder is None:
            self.recorder = LatencyRecorder()
        whole = batch.whole
        if whole is None or batch.total is None:
            self._take_proven(batch.sequence, None)
            self.recorder.record(signature.latency(batch.times, batch.now))
            return
        start = 0
        for row in np.flatnonzero(batch.total != _RIGHT_SUM).tolist():
            self._take_proven(batch.sequence[start:row], whole[start:row])
            varying = batch.varying is None or bool(batch.varying[row])
            self._take_unproven(int(batch.sequence[row]), int(batch.total[row]), varying=varying)
            start = row + 1
        self._take_proven(batch.sequence[start:], whole[start:])
        self.recorder.record(signature.latency(batch.times[whole], batch.now[whole]))

    def _take_proven(self, numbers: Array, whole: Array | None) -> None:
        if not len(numbers):
            return
        duplicated, reordered, repeated = self._sequence.take(numbers, whole)
        assert isinstance(self.tally, Tally)
        self.tally.duplicated += duplicated
        self.tally.reordered += reordered
        self.tally.repeated += repeated

    def _take_unproven(self, claim: int, total: int, *, varying: bool) -> None:
        assert isinstance(self.tally, Tally)
        found = self._sequence.take_unproven(claim, total, varying=varying)
        if found is None:
            self.tally.unidentified += 1
            return
        self.tally.duplicated += found[0]
        self.tally.reordered += found[1]


@dataclass(frozen=True, slots=True)
class _Body:
    """The bytes behind the headers of packets of one size, without the mark.

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
        row = np.frombuffer(data, np.uint8).reshape(1, -1)
        return cls(len(data), words(data), int(_long_sums(row)[0]) if data else 0)

    def numbers(self) -> tuple[int, int, int]:
        """Return the numbers that compiled code takes, of 64 bits without a sign."""
        return self.length, (1 << 64) - 1 if self.word_sum is None else self.word_sum, self.long_sum

    def joined(self, other: _Body) -> _Body:
        """Return the body of packets that have either this or the other one."""
        if self == other:
            return self
        return _Body(self.length, None, 0)


def _long_sums(rows: Array) -> Array:
    """Return for each row the sum, modulo 2**64, of its bytes as numbers of 8, and of the bytes before them."""
    length = rows.shape[1]
    wide = length // 8
    start = length - 8 * wide
    total: Array
    if length > _FEW_COLUMNS:
        total = rows[:, start:].view("<u8").sum(axis=1, dtype=np.uint64)
    else:
        total = np.zeros(len(rows), np.uint64)
        for at in range(start, length, 8):
            np.add(total, rows[:, at : at + 8].view("<u8")[:, 0], out=total)
    at = 0
    for width in (4, 2, 1):
        if start - at >= width:
            np.add(total, rows[:, at : at + width].view(f"<u{width}")[:, 0], out=total, casting="unsafe")
            at += width
    return total


def _word_sums(rows: Array) -> Array:
    """Return for each row the sum of its words, aligned to its end."""
    odd = rows.shape[1] % 2
    total: Array = rows[:, odd:].view("<u2").sum(axis=1, dtype=np.uint32)
    if odd:
        total += rows[:, 0].astype(np.uint32) << _U32(8)
    return total


class Receiver:
    """Takes packets from the queues of one interface and checks them.

    Packets are copied and get their time at once. They are checked when there are many, or when :meth:`finish` is
    called: the time of the calls of NumPy is then small for each packet.

    :param width: the size of the longest packet that was sent, in bytes.
    :param lanes: the lanes with packets that come on this interface, by number.
    """

    def __init__(self, width: int, lanes: Mapping[int, LaneCheck]) -> None:
        row = width + _ROOM
        self._many = max(_LEAST_ROWS, min(_ROWS, _BLOCK_BYTES // row))
        #: As any object: on old versions of Python, the type of an array does not say that it is a buffer.
        self._matrix: Any = np.zeros((self._many + _AT_ONCE, row), np.uint8)
        self._lengths: Any = np.zeros(len(self._matrix), np.uint32)
        self._now: Array = np.zeros(len(self._matrix), np.uint64)
        self._used = 0
        self.lanes = lanes
        self._run = 0
        #: Packets that are none of ours.
        self.foreign = 0

    def begin(self, run: int) -> None:
        """Forget what has come, and take the packets of this run only."""
        self._run = run
        self._used = 0
        self.foreign = 0
        for lane in self.lanes.values():
            lane.begin()

    def poll(self, queue: RxQueue) -> int:
        """Take packets that wait in a queue; return how many.

        :raises Disconnected: the interface has no peer.
        """
        start = self._used
        end = start + _AT_ONCE
        count = queue.recv_into(self._matrix[start:end], self._lengths[start:end])
        if count:
            self._now[start : start + count] = time.monotonic_ns()
            self._used = start + count
            if self._used >= self._many:
                self.finish()
        return count

    def finish(self) -> None:
        """Check the packets that were taken."""
        count, self._used = self._used, 0
        if not count:
            return
        lengths = self._lengths[:count]
        size = int(lengths[0])
        if (lengths == size).all():
            self._check(_Batch.of(self._matrix[:count], size, self._now[:count]))
            return
        sizes: list[int] = np.unique(lengths).tolist()
        groups = [(each, np.flatnonzero(lengths == each)) for each in sizes]
        self._check(*(_Batch.of(self._matrix, each, self._now[rows], rows) for each, rows in groups))

    def _check(self, *batches: _Batch) -> None:
        """Check batches of packets of one size each, and give each lane its marks in the order in which they came."""
        judged: dict[int, list[_Batch]] = {}
        for batch in batches:
            if not batch.has_marks:
                self.foreign += batch.count
                continue
            for key, own in batch.by_key():
                lane = self.lanes.get(key >> 16) if key & 0xFFFF == self._run else None
                if lane is None:
                    self.foreign += own.count
                    continue
                found = lane.judge(own, key)
                assert found.whole is not None
                wrong = own.count - int(np.count_nonzero(found.whole))
                lane.count(own.count, own.count * own.size, wrong)
                judged.setdefault(key >> 16, []).append(found if wrong else own)
        for number, parts in judged.items():
            self.lanes[number].take(_joined(parts))


class CompiledReceiver(Receiver):
    """Checks packets in compiled code, as soon as they are taken: one pass over them while the cache has them."""

    def poll(self, queue: RxQueue) -> int:
        count = queue.recv_into(self._matrix[:_AT_ONCE], self._lengths[:_AT_ONCE])
        if count:
            self.foreign += check_marks(self._matrix, self._lengths, count, self._run, time.monotonic_ns(), self.lanes)
        return count

    def finish(self) -> None:
        pass


def make_receiver(width: int, lanes: Mapping[int, LaneCheck]) -> Receiver:
    """Return a compiled receiver, or the readable one if nothing is compiled here."""
    return Receiver(width, lanes) if check_marks is None else CompiledReceiver(width, lanes)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Packets of one size, and their marks.

    :ivar data: rows of packets; these are some of them.
    :ivar rows: which rows these are; None: all.
    :ivar now: when each packet came.
    :ivar total: what :meth:`LaneCheck.judge` says of each packet, as ``whole`` and ``varying`` are; all of them are
        None if all packets are whole.
    """

    data: Array
    size: int
    rows: Array | None
    now: Array
    key: Array
    sequence: Array
    times: Array
    check: Array
    total: Array | None = None
    whole: Array | None = None
    varying: Array | None = None

    @classmethod
    def of(cls, data: Array, size: int, now: Array, rows: Array | None = None) -> _Batch:
        """Return the packets in some rows."""
        start = size - signature.SIZE
        if start < 0 or size > data.shape[1]:
            nothing = np.zeros(0, np.uint32)
            return cls(data, size, rows, now, nothing, nothing, nothing, nothing)

        def column(offset: int, width: int) -> Array:
            found: Array = data[:, start + offset : start + offset + width].view(f"<u{width}")[:, 0]
            return found.copy() if rows is None else found[rows]

        times = column(signature.TIME, 8)
        return cls(
            data, size, rows, now, column(0, 4), column(signature.SEQUENCE, 4), times, column(signature.CHECK, 2)
        )

    @property
    def count(self) -> int:
        return len(self.now)

    @property
    def has_marks(self) -> bool:
        """Whether the packets are long enough for a mark, and not too long to have been copied whole."""
        return len(self.key) > 0

    def body(self, length: int) -> Array:
        """Return the ``length`` bytes before the mark of each packet."""
        end = self.size - signature.SIZE
        found: Array = (
            self.data[:, end - length : end] if self.rows is None else self.data[self.rows, end - length : end]
        )
        return found

    def by_key(self) -> list[tuple[int, _Batch]]:
        """Return each key that the marks have, with the packets that have it."""
        first = int(self.key[0])
        if (self.key == first).all():
            return [(first, self)]
        return [(key, self.chosen(self.key == key)) for key in np.unique(self.key).tolist()]

    def chosen(self, those: Array) -> _Batch:
        """Return some of the packets."""
        rows = np.flatnonzero(those) if self.rows is None else self.rows[those]
        parts = (part[those] for part in (self.now, self.key, self.sequence, self.times, self.check))
        return _Batch(self.data, self.size, rows, *parts)


def _joined(parts: Sequence[_Batch]) -> _Batch:
    """Return packets of several sizes in the order in which they came."""
    first = parts[0]
    if len(parts) == 1:
        return first
    rows = np.concatenate([part.rows for part in parts if part.rows is not None])
    ranks = np.argsort(rows, kind="stable")
    names = ("now", "key", "sequence", "times", "check")
    joined = (np.concatenate([getattr(part, name) for part in parts])[ranks] for name in names)
    made = _Batch(first.data, first.size, rows[ranks], *joined)
    if all(part.whole is None for part in parts):
        return made
    totals = [np.full(part.count, _RIGHT_SUM) if part.total is None else part.total for part in parts]
    wholes = [np.ones(part.count, np.bool_) if part.whole is None else part.whole for part in parts]
    varying = [np.zeros(part.count, np.bool_) if part.varying is None else part.varying for part in parts]
    total, whole, vary = (np.concatenate(each)[ranks] for each in (totals, wholes, varying))
    return replace(made, total=total, whole=whole, varying=vary)
