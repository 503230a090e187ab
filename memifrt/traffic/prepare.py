"""Prepare packets in bulk: a matrix with a row for each packet. Fields are rewritten in place.

A :class:`Lane` is what a stream sends on one queue in one direction. Owns the rows, and how far they are sent. If the
fields repeat soon, all rows are made once; otherwise the rows are made anew with vector operations after the last one
is sent. Knows nothing of rates.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from memifrt.errors import ConfigError
from memifrt.queue import TxQueue
from memifrt.traffic import signature
from memifrt.traffic.arrays import Array, Rows
from memifrt.traffic.checksums import fold, fold_words, words, words_of
from memifrt.traffic.fields import (
    Field,
    FieldValues,
    JoinedValues,
    Place,
    Values,
    joined_place,
    joint_period,
    period,
)
from memifrt.traffic.layout import FCS, Checksum, Layout, checksum_value, layout_of, sum_of
from memifrt.types import Mode

try:
    from memifrt._packets import write_fields, write_marks
except ImportError:  # they are not compiled
    write_fields = write_marks = None  # type: ignore[assignment]

#: The rows of a block that is rewritten at once: enough that a call of NumPy costs little for each packet, and so few
#: that they stay in the core's cache.
_ROWS = 4096
_LEAST_ROWS = 256
_BLOCK_BYTES = 2 << 20
#: The most bytes and rows of a block that is made once.
_KEPT_BYTES, _KEPT_ROWS = 4 << 20, 1 << 16
#: The most bytes of all rows of one lane.
_MOST_BYTES = 1 << 28
#: The most bytes of all lanes, without the rows by which each of them goes beyond its packets.
_MOST_BYTES_OF_ALL = 1 << 30
#: With more queues than this, each lane has fewer rows.
_FEW_QUEUES = 8
_U32, _LOW_16 = np.uint32, np.uint32(0xFFFF)


@dataclass(frozen=True, slots=True)
class Template:
    """A packet of a stream at its full size.

    :ivar covered: the offset of the first byte that the mark's check value covers; the size if there is no mark.
    """

    data: bytes
    layout: Layout
    covered: int

    @classmethod
    def of(cls, data: bytes, mode: Mode) -> Template:
        return cls(data, layout_of(data, mode), len(data))


def marked(templates: Sequence[Template], *, fcs: bool) -> list[Template]:
    """Return templates of packets that will have a mark. Bytes under the mark's check value count 0 in their checksums.

    :param fcs: whether sizes in messages count the FCS.
    :raises ConfigError: a packet has no room for the mark.
    """
    # The same offset for all, so that a receiver finds it whatever packet it is.
    covered = max(_behind_headers(template) for template in templates)
    made = []
    for template in templates:
        size = len(template.data)
        if size - covered < signature.SIZE:
            least = covered + signature.SIZE + (FCS if fcs else 0)
            raise ConfigError(
                f"a packet of {size} bytes has {max(size - covered, 0)} behind the headers, and the mark of a checked "
                f"packet needs {signature.SIZE}; give it a size of at least {least}"
            )
        data = bytearray(template.data)
        checksums = tuple(_without(checksum, covered) for checksum in template.layout.checksums)
        for checksum in checksums:
            data[checksum.at : checksum.at + 2] = b"\0\0"
            value = checksum_value(checksum, sum_of(checksum, data))
            data[checksum.at : checksum.at + 2] = value.to_bytes(2, "big")
        made.append(Template(bytes(data), replace(template.layout, checksums=checksums), covered))
    return made


def _behind_headers(template: Template) -> int:
    """Return the offset of the bytes that the mark may change: behind the headers, and in padding if there is some."""
    layout = template.layout
    return layout.end if layout.end < len(template.data) else layout.payload


def _without(checksum: Checksum, covered: int) -> Checksum:
    covers = tuple((start, min(end, covered)) for start, end in checksum.covers if start < covered)
    return replace(checksum, covers=covers)


class Lane:
    """What a stream sends on one queue.

    :param templates: the packets that the rows are made from, one after the other, again and again.
    :param number: the number of the lane in the marks; None: the packets are not marked.
    :param start: the number of the lane's first packet in its stream, and ``stride`` the distance to the next one.
    :raises ConfigError: no packet has a field, or the packets are too large to prepare.
    """

    def __init__(
        self,
        templates: Sequence[Template],
        fields: Sequence[Field],
        *,
        number: int | None = None,
        start: int = 0,
        stride: int = 1,
    ) -> None:
        self.number = number
        self._templates = templates
        width = max(len(template.data) for template in templates)
        placed = places_of(templates, fields, mark=number is not None)
        periods = [period(field, stride) for field in fields]
        self._rewrites = True
        self.rows = self._count_rows(width, joint_period(periods), number is not None, -(-stride // _FEW_QUEUES))
        picks = np.arange(self.rows) % len(templates)
        patterns = np.zeros((len(templates), width), np.uint8)
        for index, template in enumerate(templates):
            patterns[index, : len(template.data)] = np.frombuffer(template.data, np.uint8)
        #: As any object: on old versions of Python, the type of an array does not say that it is a buffer.
        self._matrix: Any = patterns[picks]
        sizes = np.array([len(template.data) for template in templates])
        #: The bytes of each row.
        self.lengths: Any = sizes[picks].astype(np.uint32)
        self.width = width
        #: The mean bytes of a packet.
        self.mean_size = float(sizes.mean())
        self._values = [
            Values(field, next(place for place in places if place is not None), self.rows, start=start, stride=stride)
            for field, places in zip(fields, placed, strict=True)
        ]
        self._writers = _writers(self._matrix, picks, templates, placed, self._values)
        self._marks: _Marks | None = None
        if number is not None:
            kind = _ArrayMarks if write_marks is None else _CompiledMarks
            self._marks = kind(self._matrix, self.lengths, picks, templates, placed, self._values)
        #: The row to send next, and the packets and bytes sent since the last reset.
        self._next = 0
        self.sent = self.sent_bytes = 0
        self._write()

    def _count_rows(self, width: int, repeat: int, marked: bool, shares: int) -> int:
        """Return the number of rows.

        :param shares: how many times smaller the rows of this lane should be than those of the only one.
        """
        pattern = len(self._templates)
        least = -(-_LEAST_ROWS // pattern) * pattern
        if repeat and not marked:
            whole = math.lcm(pattern, repeat)
            whole *= -(-_LEAST_ROWS // whole)
            if whole <= max(_KEPT_ROWS, least) and whole * width <= max(_KEPT_BYTES // shares, pattern * width):
                self._rewrites = False
                return whole
        mean = sum(len(template.data) for template in self._templates) // pattern
        return max(least, min(_ROWS, _BLOCK_BYTES // mean) // shares // pattern * pattern)

    def begin(self, run: int) -> None:
        """Count from 0 again, in a run with this number."""
        self.sent = self.sent_bytes = 0
        if self._marks is not None and self.number is not None:
            # The rows before the next one have been sent. The sequence begins with the next row.
            self._marks.begin(run, self.number, self._next)

    def send(self, queue: TxQueue, limit: int, now: int) -> int:
        """Send the next packets, at most ``limit``.

        :param now: the time for the marks, in nanoseconds.
        :returns: the number of packets sent: fewer if the ring is full, or at the end of the prepared rows.
        :raises Disconnected: the interface has no peer.
        """
        first = self._next
        last = min(first + limit, self.rows)
        if self._marks is not None:
            self._marks.stamp(first, last, now)
        count = queue.send_from(self._matrix[first:last], self.lengths[first:last])
        if not count:
            return 0
        self.sent += count
        if len(self._templates) == 1:
            self.sent_bytes += count * self.width
        else:
            self.sent_bytes += int(self.lengths[first : first + count].sum())
        self._next = first + count
        if self._next == self.rows:
            self._next = 0
            self._renew()
        return count

    def packets(self, count: int, now: int = 0) -> list[bytes]:
        """Return the next packets, and count them as sent."""
        made: list[bytes] = []
        while len(made) < count:
            first, last = self._next, min(self._next + count - len(made), self.rows)
            if self._marks is not None:
                self._marks.stamp(first, last, now)
            made += [bytes(self._matrix[row, : self.lengths[row]]) for row in range(first, last)]
            self.sent += last - first
            self.sent_bytes += int(self.lengths[first:last].sum())
            self._next = last % self.rows
            if not self._next:
                self._renew()
        return made

    def _renew(self) -> None:
        if self._rewrites:
            if self._writers:
                for values in self._values:
                    values.advance()
                self._write()
            if self._marks is not None:
                self._marks.advance()

    def _write(self) -> None:
        for writer in self._writers:
            writer.write()


def check_room(pattern: int, width: int) -> None:
    """Check that packets are not too large to prepare.

    :param pattern: how many packets there are before they repeat.
    :param width: the bytes of the longest one.
    :raises ConfigError: they are too large.
    """
    if pattern * width > _MOST_BYTES:
        raise ConfigError(
            f"{pattern} packets of up to {width} bytes need more than {_MOST_BYTES >> 20} MiB; use fewer packets"
        )


def check_all_room(size: int) -> None:
    """Check that the packets of all streams, queues and directions are not too large to prepare.

    :param size: their bytes, each lane's packets before they repeat counted with the length of the longest one.
    :raises ConfigError: they are too large.
    """
    if size > _MOST_BYTES_OF_ALL:
        raise ConfigError(
            f"the packets of all streams and queues need {size >> 20} MiB, more than {_MOST_BYTES_OF_ALL >> 20} MiB; "
            "use fewer packets, streams or queues"
        )


def places_of(templates: Sequence[Template], fields: Sequence[Field], *, mark: bool) -> list[list[Place | None]]:
    """Return the place of each field in each template.

    :param mark: whether the packets get a mark.
    :raises ConfigError: no template has a field, two fields overlap, or a field is where the mark is.
    """
    placed = [[field.place(template.layout, template.data) for template in templates] for field in fields]
    for field, places in zip(fields, placed, strict=True):
        if not any(places):
            raise ConfigError(f"field {field.name}: the packet has no such bytes; it must have the header or be longer")
        for template, place in zip(templates, places, strict=True):
            size = len(template.data)
            if mark and place is not None and place.at + place.width > size - signature.SIZE:
                raise ConfigError(
                    f"field {field.name}: it is in the last {signature.SIZE} of {size} bytes, which carry the mark of "
                    "a checked packet: use a larger size, or do not check what comes back"
                )
    for index in range(len(templates)):
        own = [
            (place, field.name)
            for field, places in zip(fields, placed, strict=True)
            if (place := places[index]) is not None
        ]
        if any(itertools.starmap(_share_bytes, itertools.pairwise(sorted(own, key=lambda each: each[0].span)))):
            _check_bits(own)
    return placed


def _share_bytes(one: tuple[Place, str], other: tuple[Place, str]) -> bool:
    """Return whether two fields share a byte. ``other`` does not begin before ``one``."""
    return other[0].span[0] < one[0].span[1]


def _check_bits(own: Sequence[tuple[Place, str]]) -> None:
    """Check that no bit belongs to two fields.

    :raises ConfigError: one does.
    """
    for (one, name), (other, other_name) in itertools.combinations(own, 2):
        if one.shares_bits(other):
            raise ConfigError(f"the fields {name} and {other_name} vary the same bits; leave one of them out")


# --- writing fields -------------------------------------------------------------------------------------------------


def _writers(
    matrix: Array,
    picks: Array,
    templates: Sequence[Template],
    placed: Sequence[Sequence[Place | None]],
    values: Sequence[Values],
) -> list[_Writer]:
    """Return a writer for each group of rows with the fields and the checksums at the same places."""
    if not values:
        return []
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, template in enumerate(templates):
        own_places = tuple(places[index] for places in placed)
        checksums = tuple(
            (each.at, tuple(terms_of(place, each) for place in own_places if place is not None))
            for each in template.layout.checksums
        )
        groups.setdefault((own_places, checksums), []).append(index)
    writers = []
    for indices in groups.values():
        rows: Rows = slice(None) if len(groups) == 1 else np.flatnonzero(np.isin(picks, indices))
        own = [
            (places[indices[0]], each)
            for places, each in zip(placed, values, strict=True)
            if places[indices[0]] is not None
        ]
        if own:
            writers.append(_Writer(matrix, rows, picks, templates, indices[0], own))
    return writers


def _joined(fields: Sequence[tuple[Place | None, Values]]) -> Iterator[tuple[Place, FieldValues]]:
    """Return fields, those that share bytes as one."""
    group: list[tuple[Place, Values]] = []
    present = [(place, values) for place, values in fields if place is not None]
    for place, values in sorted(present, key=lambda each: each[0].span):
        if group and place.span[0] >= max(each.span[1] for each, _ in group):
            yield _one_of(group)
            group = []
        group.append((place, values))
    if group:
        yield _one_of(group)


def _one_of(group: Sequence[tuple[Place, Values]]) -> tuple[Place, FieldValues]:
    return group[0] if len(group) == 1 else (joined_place([place for place, _ in group]), JoinedValues(group))


class _Writer:
    """Writes the values of fields and the checksums that cover them into some rows."""

    def __init__(
        self,
        matrix: Array,
        rows: Rows,
        picks: Array,
        templates: Sequence[Template],
        index: int,
        fields: Sequence[tuple[Place | None, Values]],
    ) -> None:
        self._matrix = matrix
        self._rows = rows
        count = len(picks[rows])
        self._fields = []
        for place, values in _joined(fields):
            if place.prefix:
                start = place.at - len(place.prefix)
                matrix[rows, start : place.at] = np.frombuffer(place.prefix, np.uint8)
            self._fields.append(_Column(matrix, rows, place, values, count))
        self._sums = []
        for number, checksum in enumerate(templates[index].layout.checksums):
            if any(column.overlaps(checksum.at, checksum.at + 2) for column in self._fields):
                continue  # the caller varies the checksum itself
            terms = [(column, term) for column in self._fields for term in column.terms(checksum)]
            if terms:
                constants = np.array(
                    [
                        self._constant(template, number) if number < len(template.layout.checksums) else 0
                        for template in templates
                    ],
                    np.uint32,
                )
                self._sums.append(_Sum(matrix, rows, checksum, constants[picks[rows]], terms))
        #: Whether compiled code writes the rows: it writes all of them, or none.
        self._compiled = write_fields is not None and isinstance(rows, slice)
        self._compiled_sums = [each.compiled(self._fields) for each in self._sums]

    def _constant(self, template: Template, number: int) -> int:
        """Return the sum of the words of a template that do not change."""
        checksum = template.layout.checksums[number]
        blank = bytearray(template.data)
        blank[checksum.at : checksum.at + 2] = b"\0\0"
        for column in self._fields:
            column.blank(blank)
        return fold(sum_of(checksum, blank))

    def write(self) -> None:
        if self._compiled and write_fields(
            self._matrix, [column.compiled() for column in self._fields], self._compiled_sums
        ):
            return
        for column in self._fields:
            column.take()
            column.write()
        for each in self._sums:
            each.write()


@dataclass(frozen=True, slots=True)
class _Term:
    """A part of a field's value that a checksum adds: shift to the right, mask, then shift to the left."""

    right: int
    mask: int
    left: int


class _Column:
    """The bytes of one field in some rows."""

    def __init__(self, matrix: Array, rows: Rows, place: Place, values: FieldValues, count: int) -> None:
        self._place = place
        self._values = values
        self._rows = rows
        self._kind = values.now.dtype.type
        self.now: Array = np.zeros(count, self._kind)
        parts = []
        at, left = place.at, place.width
        while left:
            width = next(width for width in (8, 4, 2, 1) if width <= left)
            left -= width
            parts.append((matrix[:, at : at + width].view(f">u{width}")[:, 0], 8 * left))
            at += width
        self._parts = parts
        self._plain = not place.shift and not place.fixed
        self._all = isinstance(rows, slice)
        self._words: Array = np.zeros(count, _U32)
        self._scratch: Array = np.zeros(count, _U32)
        self._fresh = False

    def take(self) -> None:
        """Take the present values."""
        place, now = self._place, self.now
        source = self._values.now if self._all else self._values.now[self._rows]
        if self._plain:
            self.now = source
        else:
            np.left_shift(source, self._kind(place.shift), out=now)
            np.bitwise_or(now, self._kind(place.fixed), out=now)
        self._fresh = False

    def compiled(self) -> tuple[Array, int, int, int, int]:
        """Return the present values and their place, as ``write_fields`` takes them."""
        place = self._place
        return self._values.now, place.at, place.width, place.shift, place.fixed

    def write(self) -> None:
        """Write the values into the rows."""
        for target, shift in self._parts:
            value = np.right_shift(self.now, self._kind(shift)) if shift else self.now
            if self._all:
                np.copyto(target, value, casting="unsafe")
            else:
                target[self._rows] = value

    def words(self, term: _Term) -> Array:
        """Return the sums of the words that a term adds, of 32 bits."""
        if term.right or term.mask < (1 << 8 * self._place.width) - 1:
            part = (self.now >> self._kind(term.right)) & self._kind(term.mask)
            found = np.zeros_like(self._words)
            words_of(part, found, self._scratch)
        elif self._place.width <= 2:
            found = self.now
        else:
            if not self._fresh:
                words_of(self.now, self._words, self._scratch)
                self._fresh = True
            found = self._words
        return found << _U32(term.left) if term.left else found

    def overlaps(self, start: int, end: int) -> bool:
        return self._place.at < end and start < self._place.at + self._place.width

    def blank(self, data: bytearray) -> None:
        """Set a template's bytes of the field to what they are without the changing part."""
        place = self._place
        if place.prefix:
            data[place.at - len(place.prefix) : place.at] = place.prefix
        data[place.at : place.at + place.width] = bytes(place.width)

    def terms(self, checksum: Checksum) -> tuple[_Term, ...]:
        """Return what a checksum adds for this field."""
        return terms_of(self._place, checksum)

    def terms_in(self, start: int, end: int, origin: int) -> tuple[_Term, ...]:
        """Return what a sum of the words from ``start`` to ``end``, aligned to ``origin``, adds for this field."""
        return _terms_in(self._place, start, end, origin)


def terms_of(place: Place, checksum: Checksum) -> tuple[_Term, ...]:
    """Return what a checksum adds for a field."""
    return tuple(term for start, end in checksum.covers for term in _terms_in(place, start, end, start))


def _terms_in(place: Place, start: int, end: int, origin: int) -> tuple[_Term, ...]:
    first, last = place.at, place.at + place.width
    begin, stop = max(start, first), min(end, last)
    if begin >= stop:
        return ()
    return (_Term(8 * (last - stop), (1 << 8 * (stop - begin)) - 1, 8 * ((stop - origin) % 2)),)


class _Sum:
    """One checksum in some rows."""

    def __init__(
        self,
        matrix: Array,
        rows: Rows,
        checksum: Checksum,
        constants: Array,
        terms: Sequence[tuple[_Column, _Term]],
    ) -> None:
        self._at = checksum.at
        self._never_zero = checksum.never_zero
        self._constants = constants[0] if (constants == constants[0]).all() else constants
        self._terms = terms
        self._total: Array = np.zeros(constants.size, _U32)
        self._scratch: Array = np.zeros(constants.size, _U32)
        self._target = matrix[:, checksum.at : checksum.at + 2].view(">u2")[:, 0]
        self._rows = rows
        self._all = isinstance(rows, slice)

    def compiled(self, columns: Sequence[_Column]) -> tuple[int, Array | int, bool, list[tuple[int, int, int, int]]]:
        """Return what ``write_fields`` takes.

        :param columns: the fields, in the order in which it gets them.
        """
        constants = self._constants if isinstance(self._constants, np.ndarray) else int(self._constants)
        terms = [(columns.index(column), term.right, term.mask, term.left) for column, term in self._terms]
        return self._at, constants, self._never_zero, terms

    def write(self) -> None:
        total, scratch = self._total, self._scratch
        _add(self._constants, self._terms, total)
        fold_words(total, scratch)
        if self._never_zero:
            # 0xffff becomes 0, and its complement is sent; anything less becomes huge, and is not the smaller one.
            np.subtract(total, _LOW_16, out=scratch)
            np.minimum(total, scratch, out=total)
        np.bitwise_xor(total, _LOW_16, out=total)
        if self._all:
            np.copyto(self._target, total, casting="unsafe")
        else:
            self._target[self._rows] = total


def _add(constants: Array, terms: Sequence[tuple[_Column, _Term]], total: Array) -> None:
    """Set ``total`` to the sums of constants and the words of fields."""
    start = constants
    for column, term in terms:
        np.add(start, column.words(term), out=total)
        start = total


# --- marks ----------------------------------------------------------------------------------------------------------


class _Marks(ABC):
    """Writes the marks of :mod:`memifrt.traffic.signature` into all rows."""

    def __init__(
        self,
        matrix: Array,
        picks: Array,
        templates: Sequence[Template],
        placed: Sequence[Sequence[Place | None]],
        values: Sequence[Values],
    ) -> None:
        self._count = len(picks)
        #: The sum of the words of the run and the lane.
        self._key_words = 0
        #: The bytes behind the headers, without fields and mark, as a sum of little-endian words.
        rest = np.zeros(len(templates), _U32)
        for index, template in enumerate(templates):
            rest[index] = constant_rest(template, [places[index] for places in placed])
        self._rest: Array | int = int(rest[0]) if (rest == rest[0]).all() else rest[picks]
        self._varying = [
            varying
            for index, template in enumerate(templates)
            for number, each in enumerate(values)
            if (varying := _varying(matrix, picks, template, index, placed[number][index], each)) is not None
        ]

    @abstractmethod
    def begin(self, run: int, lane: int, row: int) -> None:
        """Start the numbers of the packets at 0 again, from ``row`` on."""

    @abstractmethod
    def advance(self) -> None:
        """Go on to the next packets."""

    @abstractmethod
    def stamp(self, first: int, last: int, now: int) -> None:
        """Set the time of the rows from ``first`` to ``last``, in nanoseconds. They are complete now."""

    def _sums(self) -> Array | int:
        """Return the sums of the words behind the headers and of the key, without the rest of the mark."""
        rest = self._rest + self._key_words
        if not self._varying:
            return rest
        total = np.zeros(self._count, _U32)
        total += rest if isinstance(rest, np.ndarray) else _U32(rest)
        for rows, column, terms in self._varying:
            column.take()
            added = np.zeros(len(column.now), _U32)
            _add(_U32(0), terms, added)
            fold_words(added, np.zeros_like(added))
            # The sum is of big-endian words: exchanged, it is that of little-endian ones.
            total[rows] += (added & _U32(0xFF)) << _U32(8) | added >> _U32(8)
        return total


class _CompiledMarks(_Marks):
    """Writes whole marks in compiled code, just before their packets are sent."""

    def __init__(self, matrix: Array, lengths: Array, picks: Array, *rest: Any) -> None:
        super().__init__(matrix, picks, *rest)
        self._matrix, self._lengths = matrix, lengths
        self._key = self._sequence = 0
        self._now: Array | int = 0

    def begin(self, run: int, lane: int, row: int) -> None:
        self._key_words, self._key = run + lane, signature.key(run, lane)
        self._sequence = -row & 0xFFFFFFFF
        self._now = self._sums()

    def advance(self) -> None:
        self._sequence = (self._sequence + self._count) & 0xFFFFFFFF
        if self._varying:
            self._now = self._sums()

    def stamp(self, first: int, last: int, now: int) -> None:
        time = signature.stamp(now)
        write_marks(self._matrix, self._lengths, first, last, self._key, self._sequence, self._now, time)


class _ArrayMarks(_Marks):
    """Writes marks with NumPy: their times just before they are sent, the rest into all rows at once."""

    def __init__(self, matrix: Array, lengths: Array, picks: Array, *rest: Any) -> None:
        super().__init__(matrix, picks, *rest)
        self._sequence: Array = np.zeros(self._count, _U32)
        self._check: Array = np.zeros(self._count, _U32)
        self._scratch: Array = np.zeros(self._count, _U32)
        self._places = [
            _MarkPlace(matrix, size, slice(None) if (lengths == size).all() else np.flatnonzero(lengths == size))
            for size in np.unique(lengths).tolist()
        ]

    def begin(self, run: int, lane: int, row: int) -> None:
        self._sequence[:] = (np.arange(self._count, dtype=np.int64) - row) & 0xFFFFFFFF
        self._key_words = run + lane
        for place in self._places:
            place.set_key(signature.key(run, lane))
        self._write()

    def advance(self) -> None:
        np.add(self._sequence, _U32(self._count), out=self._sequence)
        self._write()

    def _write(self) -> None:
        signature.check_values(self._sequence, self._sums(), self._check, self._scratch)
        for place in self._places:
            place.write(self._sequence, self._check)

    def stamp(self, first: int, last: int, now: int) -> None:
        time = np.uint64(signature.stamp(now))
        for place in self._places:
            place.stamp(first, last, time)


class _MarkPlace:
    """Where the marks of packets of one size are."""

    def __init__(self, matrix: Array, size: int, rows: Rows) -> None:
        start = size - signature.SIZE

        def column(offset: int, width: int) -> Array:
            found: Array = matrix[:, start + offset : start + offset + width].view(f"<u{width}")[:, 0]
            return found

        self._rows = rows
        self._key, self._sequence = column(0, 4), column(signature.SEQUENCE, 4)
        self._time, self._check = column(signature.TIME, 8), column(signature.CHECK, 2)

    def set_key(self, key: int) -> None:
        self._key[self._rows] = key

    def write(self, sequence: Array, check: Array) -> None:
        rows = self._rows
        if isinstance(rows, slice):
            np.copyto(self._sequence, sequence)
            np.copyto(self._check, check, casting="unsafe")
        else:
            self._sequence[rows] = sequence[rows]
            self._check[rows] = check[rows]

    def stamp(self, first: int, last: int, time: np.uint64) -> None:
        rows = self._rows
        if isinstance(rows, slice):
            self._time[first:last] = time
        else:
            low, high = np.searchsorted(rows, (first, last))
            self._time[rows[low:high]] = time


def _varying(
    matrix: Array, picks: Array, template: Template, index: int, place: Place | None, values: Values
) -> tuple[Rows, _Column, list[tuple[_Column, _Term]]] | None:
    """Return the rows of a template, and what a field adds to their sum behind the headers; None for nothing."""
    if place is None or place.at + place.width <= template.covered:
        return None
    size = len(template.data)
    rows: Rows = slice(None) if (picks == index).all() else np.flatnonzero(picks == index)
    column = _Column(matrix, rows, place, values, len(picks[rows]))
    return rows, column, [(column, term) for term in column.terms_in(template.covered, size, size % 2)]


def constant_rest(template: Template, places: Sequence[Place | None]) -> int:
    """Return the sum of the little-endian words behind the headers that never change, without the mark."""
    blank = bytearray(template.data)
    for place in places:
        if place is not None:
            if place.prefix:
                blank[place.at - len(place.prefix) : place.at] = place.prefix
            blank[place.at : place.at + place.width] = bytes(place.width)
    return words(bytes(blank[template.covered : len(blank) - signature.SIZE]))
