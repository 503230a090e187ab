"""The frame sizes of a throughput measurement: one length, or a mix of lengths such as IMIX."""

from __future__ import annotations

import re
from dataclasses import dataclass

from memifrt.errors import ConfigError

#: The shortest and the longest frame in bytes, with the 4 bytes of the frame check sequence, as RFC 2544 counts them.
#: A memif does not carry that sequence: a frame of 64 bytes is a packet of 60 bytes.
SHORTEST, LONGEST = 64, 16384
FCS = 4


@dataclass(frozen=True, slots=True)
class FrameSize:
    """A frame size.

    :ivar name: as people type it: ``64``, ``imix``.
    :ivar mix: pairs of a length in bytes and how many frames of a round have it.
    """

    name: str
    mix: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if not self.mix:
            raise ConfigError(f"the frame size {self.name!r} has no lengths")
        for length, count in self.mix:
            if not SHORTEST <= length <= LONGEST:
                raise ConfigError(f"{length} bytes is not a frame size from {SHORTEST} to {LONGEST}")
            if count < 1:
                raise ConfigError(f"the frame size {self.name!r} has {count} frames of {length} bytes; 1 is the least")

    @classmethod
    def of(cls, length: int) -> FrameSize:
        """Return the size of frames that all have one length in bytes."""
        return cls(str(length), ((length, 1),))

    @property
    def mean(self) -> float:
        """The mean length in bytes."""
        return sum(length * count for length, count in self.mix) / sum(count for _, count in self.mix)

    @property
    def longest(self) -> int:
        """The length of the longest frame in bytes."""
        return max(length for length, _ in self.mix)

    def __str__(self) -> str:
        return "IMIX" if self.name == "imix" else f"{self.name} bytes"


#: IMIX as FD.io CSIT has it: 28 frames of 64 bytes, 16 of 570 and 4 of 1518, a mean of 354 bytes.
IMIX = FrameSize("imix", ((64, 28), (570, 16), (1518, 4)))
#: The sizes that CSIT measures.
DEFAULT_SIZES = (*(FrameSize.of(length) for length in (64, 512, 1518, 9000)), IMIX)


def parse_sizes(text: str) -> tuple[FrameSize, ...]:
    """Parse a list of frame sizes like ``64,1518,imix``.

    :raises ConfigError: it is not such a list, or a size is given twice.
    """
    sizes: list[FrameSize] = []
    for part in text.split(","):
        size = _parse_size(part.strip().lower())
        if size in sizes:
            raise ConfigError(f"the frame size {size.name} is given twice")
        sizes.append(size)
    return tuple(sizes)


def _parse_size(text: str) -> FrameSize:
    if text == IMIX.name:
        return IMIX
    if not re.fullmatch(r"[0-9]{1,9}", text) or not SHORTEST <= int(text) <= LONGEST:
        raise ConfigError(f"{text!r} is not a frame size from {SHORTEST} to {LONGEST} bytes, or imix")
    return FrameSize.of(int(text))
