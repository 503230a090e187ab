"""When each packet of a replay is due: at the captured times, at a rate, or at once.

Owns the clocks of a replay. Sends and waits for nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from memifrt.capture.pcap import Packet
from memifrt.errors import ConfigError

_SECOND = 1_000_000_000
#: A capture without dates starts at time 0. It is recognized by a next time within this many nanoseconds.
_DAY = 86400 * _SECOND

Clock = Callable[[Packet], int]


def _nothing() -> None:
    """Do nothing: the default callback."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast to send. If all values are 0, as fast as the peer takes packets.

    :ivar speed: a multiple of the speed of the capture.
    :ivar pps: packets a second.
    :ivar mbps: megabits a second, counted without any framing.
    :ivar max_gap: the most seconds between two packets of the capture; 0 for no limit.
    """

    speed: float = 0.0
    pps: float = 0.0
    mbps: float = 0.0
    max_gap: float = 0.0

    def __post_init__(self) -> None:
        if self.max_gap and not self.speed:
            raise ConfigError(
                "--max-gap and --maxsleep limit the gaps of captured times; --pps, --mbps, --topspeed and --oneatatime "
                "do not use them"
            )

    def clock(self, on_shortened: Callable[[], object] = _nothing) -> Clock | None:
        """Return a function that says when a packet is due, in nanoseconds after the first one.

        Call it for each packet in order. Return None if all packets are due at once.

        :param on_shortened: called for each gap that ``max_gap`` shortens.
        """
        if self.speed:
            return _captured_times(self.speed, int(self.max_gap * _SECOND), on_shortened)
        if self.pps:
            period = _SECOND / self.pps
            numbers = itertools.count()
            return lambda packet: int(next(numbers) * period)
        if self.mbps:
            return _bit_times(self.mbps)
        return None


def _captured_times(speed: float, max_gap: int, on_shortened: Callable[[], object]) -> Clock:
    #: A captured time, and when a packet with that time is due. None until a packet has a time.
    origin: int | None = None
    start = 0
    #: The latest captured time, and when the previous packet was due.
    latest = last = 0
    starts_at_zero = False

    def due(packet: Packet) -> int:
        """Return when a packet is due. Without a time, or with an earlier one, it is due with the previous packet."""
        nonlocal origin, start, latest, last, starts_at_zero
        captured = packet.time
        if not captured:  # programs write 0 if they do not know the time
            starts_at_zero = starts_at_zero or (captured == 0 and origin is None)
            return last
        if origin is None:
            origin = latest = 0 if starts_at_zero and captured <= _DAY else captured
        if captured < latest - _SECOND:  # too much for reordered packets: the clock was set back
            origin, start, latest = captured, last, captured
        when = start + int((captured - origin) / speed)
        if max_gap and when - last > max_gap:
            on_shortened()
            origin, start = captured, last + max_gap
            when = start
        latest, last = max(latest, captured), max(last, when)
        return last

    return due


def _bit_times(mbps: float) -> Clock:
    bits = 0

    def due(packet: Packet) -> int:
        nonlocal bits
        before = bits
        bits += 8 * len(packet.data)
        return int(before * 1000 / mbps)

    return due
