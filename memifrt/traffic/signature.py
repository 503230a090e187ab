"""The mark of a checked packet: its last 16 bytes.

Owns the layout of the mark and what its check value covers. All numbers are little-endian:

==========  =====================================================================
bytes       content
==========  =====================================================================
0 and 1     the number of the run, so that late packets of another run are known
2 and 3     the lane: a stream, a direction and a queue
4 to 7      the sequence number within the lane
8 and 9     the check value
10 to 15    ``CLOCK_MONOTONIC`` in nanoseconds when the packet was sent, 48 bits
==========  =====================================================================

The check value makes the one's complement sum of everything behind the headers 0. So the mark does not change the
checksum of UDP or TCP, and a device that rewrites addresses or ports leaves it right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from memifrt.traffic.checksums import fold, fold_to_16_bits

if TYPE_CHECKING:
    from memifrt.traffic.arrays import Array

#: The bytes of the mark.
SIZE = 16
#: The lanes that the mark can name.
MAX_LANES = 1 << 16
_U64 = np.uint64
_TIME_MASK = (1 << 48) - 1
_TIME_SHIFT, _SEQUENCE_SHIFT = _U64(16), _U64(32)
_LOW_16, _LOW_32 = _U64(0xFFFF), _U64(0xFFFFFFFF)


def first_word(run: int, lane: int, sequence: int) -> int:
    """Return the first 8 bytes of a mark as a number."""
    return (sequence & 0xFFFFFFFF) << 32 | lane << 16 | run


def key(run: int, lane: int) -> int:
    """Return the part of the first word that names the lane."""
    return lane << 16 | run


def missing_sum(first_words: Array, rest: Array | int, scratch: Array) -> Array:
    """Return the check values that packets would have at time 0.

    :param rest: the sum of the words of everything else behind the headers, below 2**46.
    """
    total: Array = np.bitwise_and(first_words, _LOW_32)
    np.right_shift(first_words, _SEQUENCE_SHIFT, out=scratch)
    np.add(total, scratch, out=total)
    np.add(total, rest if isinstance(rest, np.ndarray) else _U64(rest), out=total)
    fold_to_16_bits(total, scratch)
    np.subtract(_LOW_16, total, out=total)
    return total


def stamp(missing: Array, now: int, out: Array, scratch: Array) -> None:
    """Set the second words of marks.

    :param missing: what :func:`missing_sum` returned for these packets.
    :param now: the time in nanoseconds.
    """
    time = now & _TIME_MASK
    # The check value is what is missing, less the sum of the time: that is plus its complement.
    np.add(missing, _U64(0xFFFF - fold(time)), out=out)
    np.right_shift(out, _TIME_SHIFT, out=scratch)
    np.add(out, scratch, out=out)
    np.bitwise_and(out, _LOW_16, out=out)
    np.bitwise_or(out, _U64(time << 16), out=out)


def is_whole(first: Array, second: Array, rest: Array | int) -> Array:
    """Return for each packet whether its check value is right.

    :param rest: the sum of the words of everything else behind the headers, below 2**46.
    """
    total = np.bitwise_and(first, _LOW_32)
    scratch = np.right_shift(first, _SEQUENCE_SHIFT)
    np.add(total, scratch, out=total)
    np.bitwise_and(second, _LOW_32, out=scratch)
    np.add(total, scratch, out=total)
    np.right_shift(second, _SEQUENCE_SHIFT, out=scratch)
    np.add(total, scratch, out=total)
    np.add(total, rest if isinstance(rest, np.ndarray) else _U64(rest), out=total)
    fold_to_16_bits(total, scratch)
    result: Array = total == _LOW_16
    return result


def latency(second: Array, now: int) -> Array:
    """Return how many nanoseconds ago packets were sent."""
    sent: Array = np.right_shift(second, _TIME_SHIFT)
    np.subtract(_U64(now & _TIME_MASK), sent, out=sent)
    np.bitwise_and(sent, _U64(_TIME_MASK), out=sent)
    return sent
