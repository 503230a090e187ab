"""Latencies of many packets: collected in NumPy, summed up in an HdrHistogram.

Owns the buckets. hdrhistogram takes one value at a time, so values are put into its buckets here, many at a time, and
each bucket is recorded once at the end. The buckets are those of an HdrHistogram with three significant digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from memifrt.traffic.arrays import Array

#: The longest latency that is told from longer ones: an hour, in nanoseconds.
LONGEST = 3_600_000_000_000
_DIGITS = 3
#: An HdrHistogram with three digits has 2**11 buckets for the smallest values, and half as many for each power of two.
_BITS = 11
_HALF = 1 << (_BITS - 1)
_BUCKETS = (LONGEST.bit_length() - _BITS + 2) * _HALF
_BUFFER = 1 << 15
_MICROSECOND = 1000


class LatencyRecorder:
    """Collects latencies in nanoseconds."""

    def __init__(self) -> None:
        self._buffer: Array = np.zeros(_BUFFER, np.uint64)
        self._used = 0
        self._counts = np.zeros(_BUCKETS, np.int64)

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
        # The exponent of a float is the number of bits of a whole number.
        bits = np.frexp(values.astype(np.float64))[1]
        shift = np.maximum(bits - _BITS, 0)
        index = (shift + 1) * _HALF + (values >> shift.astype(np.uint64)).astype(np.int64) - _HALF
        self._counts += np.bincount(index, minlength=_BUCKETS)

    def latency(self) -> Latency | None:
        """Return what was recorded; None if nothing was."""
        from hdrh.histogram import HdrHistogram

        self._flush()
        used = np.flatnonzero(self._counts)
        if not used.size:
            return None
        histogram = HdrHistogram(1, LONGEST, _DIGITS)
        for index in used.tolist():
            shift = max(index // _HALF - 1, 0)
            histogram.record_value((index - shift * _HALF) << shift, int(self._counts[index]))
        return Latency(histogram)


@dataclass(frozen=True)
class Latency:
    """The latencies of a stream, in microseconds.

    :ivar histogram: an ``HdrHistogram`` of nanoseconds, with three significant digits.
    """

    histogram: Any

    def percentile(self, percent: float) -> float:
        """Return the latency that so many per cent of the packets do not exceed, in microseconds."""
        return float(self.histogram.get_value_at_percentile(percent)) / _MICROSECOND

    @property
    def count(self) -> int:
        """The number of packets."""
        return int(self.histogram.get_total_count())

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
        return float(self.histogram.get_min_value()) / _MICROSECOND

    @property
    def mean(self) -> float:
        """The mean."""
        return float(self.histogram.get_mean_value()) / _MICROSECOND

    @property
    def max(self) -> float:
        """The longest."""
        return float(self.histogram.get_max_value()) / _MICROSECOND

    def as_dict(self) -> dict[str, float]:
        """Return the figures for JSON, in microseconds."""
        names = ("min", "mean", "p50", "p90", "p99", "p999", "max")
        return {name: round(float(getattr(self, name)), 3) for name in names}


def merged(latencies: Iterable[Latency | None]) -> Latency | None:
    """Return several latencies as one; None if there are none."""
    from hdrh.histogram import HdrHistogram

    found = [each for each in latencies if each is not None]
    if not found:
        return None
    whole = HdrHistogram(1, LONGEST, _DIGITS)
    for each in found:
        whole.add(each.histogram)
    return Latency(whole)
