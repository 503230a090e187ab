"""Devices that exist only as arithmetic, for the search."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from memifrt.throughput import FrameSize, Latency, TrialResult
from memifrt.throughput.trial import PERCENTILES

#: What a generator without a device reaches.
UNBOUNDED = 40e6


#: 100 latencies from 5 microseconds on.
LATENCY = Latency(
    count=100,
    minimum=5000,
    mean=5050.0,
    maximum=5100,
    percentiles=tuple((percentile, 5000 + round(percentile)) for percentile in PERCENTILES),
)


@dataclass
class Device:
    """Frames that come back of those that were offered, by rate and duration.

    :ivar forward: rate, duration, size -> the rate that comes back.
    """

    forward: Callable[[float, float, FrameSize], float]
    late_above: float = math.inf
    trials: list[TrialResult] = field(default_factory=list)

    def measure(self, rate: float, duration: float, size: FrameSize, *, latency: bool = False) -> TrialResult:
        back = self.forward(rate, duration, size)
        rate = min(rate, UNBOUNDED)
        offered = round(rate * duration)
        received = min(round(back * duration), offered)
        result = TrialResult(
            size=size,
            rate=rate,
            duration=duration,
            offered=offered,
            sent=offered,
            received=received,
            late=rate > self.late_above,
            latency=LATENCY if latency else None,
        )
        self.trials.append(result)
        return result


def hard_limit(capacity: float) -> Device:
    """It forwards so many frames a second, and loses the rest."""
    return Device(lambda rate, duration, size: min(rate, capacity))


def by_length(bits: float) -> Device:
    """It forwards so many bits a second."""
    return Device(lambda rate, duration, size: min(rate, bits / 8 / size.mean))


def lossy(share: float) -> Device:
    """It always loses this share."""
    return Device(lambda rate, duration, size: min(rate, UNBOUNDED) * (1 - share))


def unsteady(capacity: float, spread: float, seed: int) -> Device:
    """Its capacity differs from trial to trial."""
    chance = random.Random(seed)
    return Device(lambda rate, duration, size: min(rate, capacity * chance.uniform(1 - spread, 1 + spread)))
