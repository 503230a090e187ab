"""Latencies of many packets, in the buckets of an HdrHistogram with three significant digits.

Owns the buckets. hdrhistogram takes one value at a time and walks through its buckets for each percentile. Here many
values at a time are counted with NumPy, and a percentile is a search, so that a live view takes little time.
:attr:`Latency.histogram` makes an HdrHistogram with the same counts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from memifrt.traffic.arrays import Array

#: The longest latency that is told from longer ones, in nanoseconds: more than a mark can say.
LONGEST = (1 << 37) - 1
_DIGITS = 3
#: An HdrHistogram with three digits has 2**11 buckets for the smallest values, and half as many for each power of two.
_BITS = 11
_HALF = 1 << (_BITS - 1)
_BUCKETS = (LONGEST.bit_length() - _BITS + 2) * _HALF
_BUFFER = 1 << 15
#: The bits of a float of 64 bits behind its point, and what its exponent is less for the values of the first bucket.
_MANTISSA, _EXPONENT_OF_FIRST = 52, 1023 + _BITS - 2
_MICROSECOND = 1000


class LatencyRecorder:
    """Collects latencies in nanoseconds."""

    def __init__(self) -> None:
        self._buffer: Array = np.empty(_BUFFER, np.uint64)
        self._used = 0
        #: How many latencies are in each bucket. Compiled code counts here, without :meth:`record`.
        self.counts: Array = np.zeros(_BUCKETS, np.int64)

    def record(self, values: Array) -> None:
        """Record latencies."""
        if len(values) > _BUFFER - self._used:
            self._flush()
        if len(values) > _BUFFER:
            for start in range(0, len(values), _BUFFER):
                self.record(values[start : start + _BUFFER])
            return
        self._buffer[self._used : self._used + len(values)] = values
        self._used += len(values)

    def _flush(self) -> None:
        values = np.minimum(self._buffer[: self._used], np.uint64(LONGEST))
        self._used = 0
        # The exponent of a float and the first bits behind its point are the number of the bucket. Each of the smallest
        # values has a bucket of its own.
        index = values.astype(np.float64).view(np.int64)
        np.right_shift(index, _MANTISSA - _BITS + 1, out=index)
        np.subtract(index, _EXPONENT_OF_FIRST * _HALF, out=index)
        np.maximum(index, np.minimum(values, np.uint64(_HALF)).view(np.int64), out=index)
        counted = np.bincount(index)  # as long as the longest latency needs
        self.counts[: len(counted)] += counted

    def latency(self) -> Latency | None:
        """Return what was recorded; None if nothing was."""
        if self._used:
            self._flush()
        return Latency(self.counts.copy()) if self.counts.any() else None


@dataclass(frozen=True, eq=False)
class Latency:
    """The latencies of a stream, in microseconds.

    :ivar counts: how many packets are in each bucket.
    """

    counts: Array

    @functools.cached_property
    def _sums(self) -> Array:
        sums: Array = np.cumsum(self.counts)
        return sums

    @functools.cached_property
    def histogram(self) -> Any:
        """An ``HdrHistogram`` of nanoseconds with the same counts, to merge or encode with that library."""
        from hdrh.histogram import HdrHistogram

        histogram = HdrHistogram(1, LONGEST, _DIGITS)
        for index in np.flatnonzero(self.counts).tolist():
            histogram.record_value(_lowest(index), int(self.counts[index]))
        return histogram

    def percentile(self, percent: float) -> float:
        """Return the latency that so many per cent of the packets do not exceed, as an HdrHistogram has it."""
        wanted = max(int(percent / 100 * self.count + 0.5), 1)
        return _highest(int(np.searchsorted(self._sums, wanted))) / _MICROSECOND

    @property
    def count(self) -> int:
        """The number of packets."""
        return int(self._sums[-1])

    @property
    def p50(self) -> float:
        """The median."""
        return self.percentile(50)

    @property
    def p90(self) -> float:
        """The latency that 90 % of the packets do not exceed."""
        return self.percentile(90)

    @property
    def p99(self) -> float:
        """The latency that 99 % of the packets do not exceed."""
        return self.percentile(99)

    @property
    def p999(self) -> float:
        """The latency that 99.9 % of the packets do not exceed."""
        return self.percentile(99.9)

    @property
    def min(self) -> float:
        """The shortest."""
        return _lowest(int(np.searchsorted(self._sums, 1))) / _MICROSECOND

    @property
    def mean(self) -> float:
        """The mean."""
        used = np.flatnonzero(self.counts)
        middles = [(_lowest(index) + _highest(index)) / 2 for index in used.tolist()]
        return float(np.dot(middles, self.counts[used])) / self.count / _MICROSECOND

    @property
    def max(self) -> float:
        """The longest."""
        return self.percentile(100)

    def as_dict(self) -> dict[str, float]:
        """Return the figures for JSON, in microseconds."""
        names = ("min", "mean", "p50", "p90", "p99", "p999", "max")
        return {name: round(float(getattr(self, name)), 3) for name in names}


def _shift(index: int) -> int:
    return max(index // _HALF - 1, 0)


def _lowest(index: int) -> int:
    """Return the smallest value of a bucket."""
    return (index - _shift(index) * _HALF) << _shift(index)


def _highest(index: int) -> int:
    """Return the largest value of a bucket."""
    return _lowest(index) + (1 << _shift(index)) - 1


def merged(latencies: Iterable[Latency | None]) -> Latency | None:
    """Return several latencies as one; None if there are none."""
    found = [each.counts for each in latencies if each is not None]
    return Latency(sum(found[1:], found[0])) if found else None
