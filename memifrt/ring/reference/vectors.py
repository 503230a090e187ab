"""Matrices with a row for each packet, and their lengths: the buffers of ``recv_into`` and ``send_from``.

The twin of ``_native_vectors.pxi``. It checks buffers of the caller's (NumPy arrays, without NumPy) and knows nothing
of rings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memifrt.errors import ConfigError, not_a_packet

if TYPE_CHECKING:
    from memifrt.types import ReadableBuffer


def matrix_rows(matrix: ReadableBuffer, *, writable: bool) -> list[memoryview]:
    """Return the rows of a 2-D buffer of bytes.

    :raises ConfigError: ``matrix`` does not have this form, or it must be writable and is not.
    """
    view = in_place(matrix, "the matrix", writable)
    if view.ndim != 2 or view.itemsize != 1 or not view[:1].c_contiguous:
        raise ConfigError("the matrix must be a 2-D buffer of bytes with contiguous rows")
    if not view.nbytes:  # memoryview cannot cast an empty view
        return [memoryview(b"")] * len(view)
    # Rows may lie apart from each other, like those of a slice.
    return [view[index : index + 1].cast("B") for index in range(len(view))]


def check_lengths(lengths: ReadableBuffer, *, writable: bool) -> memoryview:
    """Return a view of a 1-D buffer of whole numbers of 2, 4 or 8 bytes.

    :raises ConfigError: ``lengths`` does not have this form, or it must be writable and is not.
    """
    view = in_place(lengths, "lengths", writable)
    if view.ndim != 1 or view.format.lstrip("@") not in tuple("hHiIlLqQnN") or view.itemsize not in (2, 4, 8):
        raise ConfigError("lengths must be a 1-D buffer of whole numbers of 2, 4 or 8 bytes")
    return view


def longest_length(lengths: memoryview) -> int:
    """Return the largest number that the type of ``lengths`` can hold."""
    return (1 << (8 * lengths.itemsize - lengths.format[-1].islower())) - 1


def row_to_send(rows: list[memoryview], lengths: memoryview, index: int) -> memoryview:
    """Return the first ``lengths[index]`` bytes of a row.

    :raises ConfigError: the row is shorter, or the length negative.
    """
    if not 0 <= lengths[index] <= len(rows[index]):
        raise ConfigError(f"packet {index} has {lengths[index]} bytes, a row only {len(rows[index])}")
    return rows[index][: lengths[index]]


def in_place(owner: ReadableBuffer, what: str, writable: bool) -> memoryview:
    """Return a view of a caller's buffer.

    :raises ConfigError: it must be writable and is not.
    """
    view = memoryview(owner)
    if writable and view.readonly:
        raise ConfigError(f"{what} cannot be written in place")
    return view


def packet_bytes(packet: ReadableBuffer, number: int) -> bytes | memoryview:
    """Return the bytes of one of the caller's packets.

    :raises PacketTypeError: the packet is not a bytes-like object.
    :raises ConfigError: it is not contiguous.
    """
    try:
        view = memoryview(packet)
    except TypeError as error:
        raise not_a_packet(number, packet) from error
    if not view.c_contiguous:
        raise ConfigError(f"packet {number} is not contiguous")
    return view if view.ndim == 1 and view.format == "B" else view.tobytes()
