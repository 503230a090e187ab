"""Keep checksums right while fields change: sums of 16-bit words in NumPy (RFC 1071, RFC 1624).

The sum of the words that do not change is computed once. For each packet only the words that change are added, so the
cost does not depend on the size of the packet. Knows nothing of fields or streams: it takes numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from memifrt.traffic.arrays import Array

_U32, _U64 = np.uint32, np.uint64
_SIXTEEN, _LOW_16 = _U32(16), _U32(0xFFFF)
_FOLD = _U32(0x10001)


def fold_words(total: Array, scratch: Array) -> None:
    """Reduce sums of 32 bits in place to the 16 bits of their one's complement sum. Only 0 becomes 0.

    The product has the sum of both halves in its upper half. Adding the upper half of the sum to the lower one carries
    into the upper half exactly if that has overflowed, which is the carry that goes around.
    """
    np.right_shift(total, _SIXTEEN, out=scratch)
    np.multiply(total, _FOLD, out=total)
    np.add(total, scratch, out=total)
    np.right_shift(total, _SIXTEEN, out=total)


def words_of(values: Array, out: Array, scratch: Array) -> None:
    """Set ``out``, of 32 bits, to the sums of the 16-bit words of numbers, below 2**18."""
    if values.dtype.itemsize == 8:
        wide = np.right_shift(values, _U64(32))
        wide += values & _U64(0xFFFFFFFF)
        np.add(wide >> _U64(16), wide & _U64(0xFFFF), out=out, casting="unsafe")
        return
    np.right_shift(values, _SIXTEEN, out=out)
    np.bitwise_and(values, _LOW_16, out=scratch)
    np.add(out, scratch, out=out)


def fold(number: int) -> int:
    """Return the one's complement sum of the 16-bit words of a number. Only 0 becomes 0."""
    while number >> 16:
        number = (number & 0xFFFF) + (number >> 16)
    return number


def words(data: bytes) -> int:
    """Return the sum of the little-endian 16-bit words of ``data``, aligned to its end, folded."""
    aligned = bytes(len(data) % 2) + data
    return fold(int(np.frombuffer(aligned, "<u2").sum(dtype=np.uint64)))
