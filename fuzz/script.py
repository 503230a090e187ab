"""A fuzzer's bytes as a series of decisions.

Behind the end of the bytes every decision is 0, which every target makes the ordinary one: no bytes at all are a peer
that does everything right, and each byte that is added makes it do one thing otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")

#: Numbers at the edges of fields and of what they may hold.
EDGES = (
    0, 1, 2, 3, 4, 7, 8, 14, 15, 16, 31, 63, 64, 127, 128, 129, 255, 256, 257, 4095, 4096, 4097, 0x7FFF, 0x8000, 0xFFFE,
    0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFF00, 0xFFFFFFFE, 0xFFFFFFFF, 0x100000000, 0x7FFFFFFFFFFFFFFF,
    0xFFFFFFFFFFFFFFFF,
)  # fmt: skip


class Script:
    """Decisions, in order."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def over(self) -> bool:
        """Whether every decision from here on is 0."""
        return self._at >= len(self._data)

    def byte(self) -> int:
        at = self._at
        if at >= len(self._data):
            return 0
        self._at = at + 1
        return self._data[at]

    def number(self, size: int) -> int:
        """A whole number of ``size`` bytes."""
        return int.from_bytes(self.take(size), "little")

    def edge(self, size: int) -> int:
        """A number at an edge, or any other, that fits into ``size`` bytes."""
        choice = self.byte()
        value = EDGES[choice] if choice < len(EDGES) else self.number(size)
        return value & ((1 << 8 * size) - 1)

    def below(self, limit: int) -> int:
        return self.byte() % limit

    def rarely(self) -> bool:
        """True for one byte in eight."""
        return self.byte() >= 224

    def pick(self, values: Sequence[_T]) -> _T:
        return values[self.byte() % len(values)]

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes, or what is left of them."""
        data = self._data[self._at : self._at + size]
        self._at += size
        return data
