"""A trial: frames of one size, offered at one rate for some time, and what came of them.

Owns the contract between the search and the generator. It knows neither of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from memifrt.throughput.sizes import FrameSize

if TYPE_CHECKING:
    from hdrh.histogram import HdrHistogram

#: The percentiles of a latency that are reported, and drawn in a plot.
PERCENTILES = (0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.99, 100.0)


@dataclass(frozen=True, slots=True)
class Latency:
    """The latencies of a trial in nanoseconds, from the call that sent a frame to the call that received it.

    :ivar count: the number of frames that were measured.
    :ivar percentiles: pairs of a percentile and its latency, in order: see :data:`PERCENTILES`.
    :ivar hdrh: the whole histogram, compressed and in base64, as the HdrHistogram libraries exchange it.
    """

    count: int
    minimum: int
    mean: float
    maximum: int
    percentiles: tuple[tuple[float, int], ...]
    hdrh: str = ""

    @classmethod
    def of(cls, histogram: HdrHistogram) -> Latency | None:
        """Summarize a histogram of nanoseconds; None if it is empty."""
        if not histogram.get_total_count():
            return None
        found = histogram.get_percentile_to_value_dict(PERCENTILES)
        encoded = histogram.encode()
        return cls(
            count=histogram.get_total_count(),
            minimum=histogram.get_min_value(),
            mean=histogram.get_mean_value(),
            maximum=histogram.get_max_value(),
            percentiles=tuple((percentile, found[percentile]) for percentile in PERCENTILES),
            hdrh=encoded.decode() if isinstance(encoded, bytes) else str(encoded),
        )

    def at(self, percentile: float) -> int:
        """Return the latency at one of :data:`PERCENTILES` in nanoseconds."""
        return dict(self.percentiles)[percentile]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """The result of one trial. Frames are counted in both directions if the trial sends in both.

    A memif's ring is no wire: it refuses frames while it is full. A frame that was not sent within ``duration`` counts
    as lost, as it would be on a wire.

    :ivar rate: the frames a second that were asked for.
    :ivar duration: the seconds that were asked for.
    :ivar offered: the number of frames that ``rate`` and ``duration`` ask for.
    :ivar sent: the number of frames that the device took.
    :ivar received: the number of frames that came back, unharmed.
    :ivar late: whether the loss may be the generator's: it was too slow for the rate, or its process was paused.
    :ivar latency: None if it was not measured.
    """

    size: FrameSize
    rate: float
    duration: float
    offered: int
    sent: int
    received: int
    late: bool = False
    latency: Latency | None = None

    @property
    def lost(self) -> int:
        """The number of frames that were offered and did not come back."""
        return max(self.offered - self.received, 0)

    @property
    def loss_ratio(self) -> float:
        """The share of the offered frames that were lost, from 0 to 1."""
        return self.lost / self.offered if self.offered else 0.0


class Trial(Protocol):
    """Anything that can run trials: a generator with a device between its memifs, or a simulation."""

    def measure(self, rate: float, duration: float, size: FrameSize, *, latency: bool = False) -> TrialResult:
        """Offer frames, wait for the last ones to come back, and count.

        :param rate: frames a second; infinity sends as fast as the generator can.
        :param duration: seconds of sending.
        :param latency: whether to measure latencies, which may cost the generator some of its speed.
        :raises PollCancelled: the user has ended the measurement (``KeyboardInterrupt`` does as well).
        """
        ...
