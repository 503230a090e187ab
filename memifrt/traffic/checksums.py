"""Keep checksums right while fields change: sums of 16-bit words in NumPy (RFC 1071, RFC 1624).

The sum of the words that do not change is computed once. For each packet only the words that change are added, so the
cost does not depend on the size of the packet. Knows nothing of fields or streams: it takes numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from memifrt.traffic.arrays import Array

_U64 = np.uint64
_SIXTEEN, _THIRTY_TWO = _U64(16), _U64(32)
_LOW_16, _LOW_32 = _U64(0xFFFF), _U64(0xFFFFFFFF)


def fold_to_33_bits(total: Array, scratch: Array) -> None:
    """Reduce numbers of 64 bits in place, without changing their sum of 16-bit words modulo 65535."""
    np.right_shift(total, _THIRTY_TWO, out=scratch)
    np.bitwise_and(total, _LOW_32, out=total)
    np.add(total, scratch, out=total)


def fold_to_16_bits(total: Array, scratch: Array) -> None:
    """Reduce sums below 2**48 in place to the 16 bits of their one's complement sum. Only 0 becomes 0."""
    for _ in range(3):
        np.right_shift(total, _SIXTEEN, out=scratch)
        np.bitwise_and(total, _LOW_16, out=total)
        np.add(total, scratch, out=total)


def fold(number: int) -> int:
    """Return the one's complement sum of the 16-bit words of a number. Only 0 becomes 0."""
    while number >> 16:
        number = (number & 0xFFFF) + (number >> 16)
    return number


def swapped(number: int) -> int:
    """Return a folded sum of little-endian words as the sum of big-endian words, or the other way round."""
    return (number & 0xFF) << 8 | number >> 8


def words(data: bytes) -> int:
    """Return the sum of the little-endian 16-bit words of ``data``, aligned to its end, folded."""
    aligned = bytes(len(data) % 2) + data
    return fold(int(np.frombuffer(aligned, "<u2").sum(dtype=np.uint64)))
