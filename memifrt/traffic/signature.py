"""The mark of a checked packet: its last 18 bytes.

Owns the layout of the mark and what its check value covers. All numbers are little-endian:

==========  =====================================================================
bytes       content
==========  =====================================================================
0 and 1     the number of the run, so that late packets of another run are known
2 and 3     the lane: a stream, a direction and a queue
4 to 7      the sequence number within the lane
8 to 11     ``CLOCK_MONOTONIC`` in units of 16 ns when the packet was sent
12 to 15    the same with all bits inverted
16 and 17   the check value
==========  =====================================================================

The check value makes the one's complement sum of everything behind the headers 0. So the mark does not change the
checksum of UDP or TCP, and a device that rewrites addresses or ports leaves it right. The time and its inverse are 0
together, so a packet gets its time at the last moment without any sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from memifrt.traffic.checksums import fold_words

if TYPE_CHECKING:
    from memifrt.traffic.arrays import Array

#: The bytes of the mark, and where its numbers begin.
SIZE = 18
SEQUENCE, TIME, CHECK = 4, 8, 16
#: The lanes that the mark can name.
MAX_LANES = 1 << 16
#: The binary logarithm of the unit of time. 32 bits of 16 ns are 68 seconds: the longest latency that is known.
_UNIT = 4
_U32, _U64 = np.uint32, np.uint64
_SIXTEEN = _U32(16)
_LOW_16, _LOW_32 = _U32(0xFFFF), _U64(0xFFFFFFFF)


def key(run: int, lane: int) -> int:
    """Return the first 4 bytes as a number: they name the run and the lane."""
    return lane << 16 | run


def stamp(now: int) -> int:
    """Return the 8 bytes for a time in nanoseconds as a number."""
    time = now >> _UNIT & 0xFFFFFFFF
    return time | (time ^ 0xFFFFFFFF) << 32


def check_values(sequence: Array, rest: Array | int, total: Array, scratch: Array) -> None:
    """Set ``total`` to the check values of packets.

    :param sequence: the sequence numbers, of 32 bits.
    :param rest: the sum of the words of run, lane, and everything else behind the headers, below 2**30.
    """
    np.right_shift(sequence, _SIXTEEN, out=total)
    np.bitwise_and(sequence, _LOW_16, out=scratch)
    np.add(total, scratch, out=total)
    np.add(total, rest if isinstance(rest, np.ndarray) else _U32(rest), out=total)
    fold_words(total, scratch)
    np.bitwise_xor(total, _LOW_16, out=total)


def sums(sequence: Array, check: Array, rest: Array | int) -> Array:
    """Return for each packet the sum of words that is 0xffff if the check value is right.

    :param rest: as :func:`check_values` has it.
    """
    total: Array = np.right_shift(sequence, _SIXTEEN)
    scratch: Array = np.bitwise_and(sequence, _LOW_16)
    np.add(total, scratch, out=total)
    np.add(total, check, out=total)
    np.add(total, rest if isinstance(rest, np.ndarray) else _U32(rest), out=total)
    fold_words(total, scratch)
    return total


def has_right_time(times: Array) -> Array:
    """Return for each packet whether the two numbers of its time, in one of 64 bits, are each other's inverse."""
    halves = times.view(_U32)
    right: Array = (halves[::2] ^ halves[1::2]) == _U32(0xFFFFFFFF)
    return right


def latency(times: Array, now: Array) -> Array:
    """Return how many nanoseconds packets were under way, as a multiple of 16.

    :param now: when each one came, in nanoseconds, of 64 bits.
    """
    passed: Array = np.right_shift(now, _U64(_UNIT))
    np.subtract(passed, times, out=passed)
    np.bitwise_and(passed, _LOW_32, out=passed)
    np.left_shift(passed, _U64(_UNIT), out=passed)
    return passed
