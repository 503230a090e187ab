"""Rates: packets a second, bits a second of layer 1 or 2, a share of a link's speed, or as fast as it goes.

Owns the text of a rate and of a time, and when the packets of a stream are due. Knows only the size of packets.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from memifrt.errors import ConfigError
from memifrt.traffic.layout import FCS
from memifrt.types import Mode

Unit = Literal["pps", "bps", "bps-l1", "percent", "max"]
#: The bytes that an Ethernet frame takes on a wire besides itself: preamble, start of frame, and gap.
LAYER_1 = 20
_MAC_HEADER = 14
_SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_UNITS: dict[str, Unit] = {
    "": "pps",
    "pps": "pps",
    "bps": "bps",
    "bit/s": "bps",
    "bit": "bps",
    "bpsl2": "bps",
    "bpsl1": "bps-l1",
    "%": "percent",
}
_KNOWN: tuple[Unit, ...] = ("pps", "bps", "bps-l1", "percent", "max")
_RATE = re.compile(r"([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([kmgt]?)(pps|bit/s|bit|bpsl1|bpsl2|bps|%|)", re.IGNORECASE)
_LEAST, _MOST = 1e-3, 1e15
#: The fastest link in bits a second.
MAX_SPEED = _MOST
#: Whole numbers above it may not fit into a float. NaN is not larger than it.
_TOO_MUCH = 10**30
_TIME = re.compile(r"([0-9]*\.?[0-9]+)\s*(ns|us|ms|s|m|h|)")
_TIMES = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate.

    :param value: the number; no matter for the unit ``"max"``.
    :param unit: ``"pps"`` packets a second; ``"bps"`` bits a second of layer 2, with the 4 bytes of the
        FCS; ``"bps-l1"`` the same with the 20 bytes of preamble and gap; ``"percent"`` of a link's speed, of layer 1;
        ``"max"`` as fast as the peer takes packets.
    """

    value: float = 0.0
    unit: Unit = "max"

    def __post_init__(self) -> None:
        if self.unit not in _KNOWN:
            raise ConfigError(f"the unit of a rate is {self.unit!r}; it must be one of {', '.join(_KNOWN)}")
        if self.unit != "max" and not _LEAST <= self.value <= _MOST:
            raise ConfigError(f"the rate {self.value!r} must be from {_LEAST:g} to {_MOST:g} {self.unit}")

    @classmethod
    def of(cls, given: Rate | str | int | float) -> Rate:
        """Return a rate that is given as one, as text, or as a number of packets a second.

        :raises ConfigError: it is none of these.
        """
        if isinstance(given, Rate):
            return given
        if isinstance(given, int | float) and not isinstance(given, bool):
            return cls() if given == math.inf else cls(float(min(given, _TOO_MUCH)), "pps")
        if isinstance(given, str):
            return parse_rate(given)
        raise ConfigError(f"the rate {given!r} must be a number of packets a second, or text like 1Mpps, 10Gbps or max")

    def pps(self, size: float, mode: Mode, link_speed: float | None) -> float:
        """Return the packets a second for packets of this mean size in a buffer; infinity for ``max``.

        :param link_speed: the speed that per cent are of, in bits a second.
        :raises ConfigError: the rate is in per cent, and there is no speed.
        """
        if self.unit == "max":
            return math.inf
        if self.unit == "pps":
            return self.value
        frame = size + FCS if mode is not Mode.IP else size
        wire = size + FCS + LAYER_1 + (_MAC_HEADER if mode is Mode.IP else 0)
        if self.unit == "bps":
            return self.value / (8 * frame)
        if self.unit == "bps-l1":
            return self.value / (8 * wire)
        if link_speed is None:
            raise ConfigError(f"the rate {self} needs the speed of a link, like 10Gbps")
        return self.value / 100 * link_speed / (8 * wire)

    def __str__(self) -> str:
        if self.unit == "max":
            return "max"
        if self.unit == "percent":
            return f"{self.value:g}%"
        return f"{self.value:g} {'bps of layer 1' if self.unit == 'bps-l1' else self.unit}"


def parse_rate(text: str) -> Rate:
    """Parse a rate: ``max``, ``250000``, ``1.5Mpps``, ``10Gbps``, ``10Gbpsl1``, ``50%``.

    :raises ConfigError: the text is not a rate.
    """
    if text.strip().lower() == "max":
        return Rate()
    match = _RATE.fullmatch(text.strip())
    unit = _UNITS[match[3].lower()] if match else "pps"
    if not match or (unit == "percent" and match[2]):
        raise ConfigError(f"the rate {text!r} must be like 1.5Mpps, 10Gbps (layer 2), 10Gbpsl1 (layer 1), 50% or max")
    value = float(match[1]) * _SUFFIXES[match[2].lower()]
    if not _LEAST <= value <= _MOST:
        raise ConfigError(f"the rate {text!r} must be from {_LEAST:g} to {_MOST:g}")
    return Rate(value, unit)


def parse_speed(text: str) -> float:
    """Parse the speed of a link, like ``10Gbps``, in bits a second.

    :raises ConfigError: the text is not a speed.
    """
    match = _RATE.fullmatch(text.strip())
    if not match or match[3].lower() not in ("bps", "bit", "bit/s", ""):
        raise ConfigError(f"the speed {text!r} must be like 10Gbps")
    speed = float(match[1]) * _SUFFIXES[match[2].lower()]
    if not 1 <= speed <= _MOST:
        raise ConfigError(f"the speed {text!r} must be from 1 bps to {_MOST / 1e12:g} Tbps")
    return speed


def parse_time(text: str) -> float:
    """Parse a time like ``10``, ``10s``, ``500ms`` or ``1m``, in seconds.

    :raises ConfigError: the text is not a time.
    """
    match = _TIME.fullmatch(text.strip())
    seconds = float(match[1]) * _TIMES[match[2]] if match else 0.0
    if not 1e-3 <= seconds <= 1e7:
        raise ConfigError(f"the time {text!r} must be from 1ms to 1e7 seconds, like 10, 500ms or 1m")
    return seconds


class Pacer:
    """Says how many packets of a stream are due.

    :param pps: packets a second; infinity: always all of them.
    :param burst: packets that are due at once.
    :param count: the number of packets in all; None: no limit.
    """

    def __init__(self, pps: float, burst: int = 1, count: int | None = None) -> None:
        self._per_ns = pps / 1e9
        self._burst = burst
        self._count = count
        self.is_max = pps == math.inf

    def due(self, elapsed: int) -> int:
        """Return how many packets are due in the first ``elapsed`` nanoseconds. The first burst is due at once."""
        bursts = int(elapsed * self._per_ns / self._burst) + 1
        number = bursts * self._burst
        return number if self._count is None else min(number, self._count)

    def next_due(self, sent: int) -> float:
        """Return the nanosecond at which the packet behind the first ``sent`` ones is due; infinity: never."""
        if self._count is not None and sent >= self._count:
            return math.inf
        return sent // self._burst * self._burst / self._per_ns
