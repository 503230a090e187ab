"""Storm control: the most packets of a kind that a port may flood in a second."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FloodLimits:
    """Packets a second that each port may send to all other ports, by kind; 0 means no limit.

    :ivar unknown: packets to a unicast address that the switch does not know.
    """

    broadcast: int = 0
    multicast: int = 0
    unknown: int = 0


class TokenBucket:
    """Grants ``rate`` packets a second, and at most as many at once after a pause."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._tokens = float(rate)
        self._filled: float | None = None

    def take(self, count: int, now: float) -> int:
        """Return how many of ``count`` packets may pass at this time."""
        if self._filled is not None:
            self._tokens = min(self._tokens + (now - self._filled) * self._rate, float(self._rate))
        self._filled = now
        granted = min(count, int(self._tokens))
        self._tokens -= granted
        return granted
