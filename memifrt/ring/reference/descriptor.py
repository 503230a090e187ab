"""The layout of a ring in shared memory, and the regions that descriptors point into.

The twin of ``memif_ring.h`` and ``_native_descriptor.pxi``. It owns the layout (docs/protocol.md, Shared memory) and
the rule that a descriptor must lie inside its region. It knows nothing of rings and bursts.
"""

from __future__ import annotations

import ctypes
import functools
import operator
import struct
from collections.abc import Iterable

from memifrt.types import BufferFlag

#: A copied descriptor: flags, region, length, offset, metadata.
Entry = tuple[int, int, int, int, int]

#: The fields of :data:`Entry` as they lie in shared memory.
DESCRIPTOR = struct.Struct("<HHIII")
#: The cookie, at the start of the ring's header.
COOKIE_FIELD = struct.Struct("<I")
#: The flags, at the start of a descriptor.
FLAGS_FIELD = struct.Struct("<H")
#: Positions in the header as an array of u16: flags at byte 4, head at byte 6, tail at byte 64.
FLAGS, HEAD, TAIL = 2, 3, 32
#: The header flag by which the receiver asks for no interrupts.
MASK_INT = 1
#: The descriptor flag: the packet continues in the next buffer.
NEXT = int(BufferFlag.NEXT)
#: A flag that exists only in our copies: ``forward`` leaves this packet out. A peer cannot set it, because a copy keeps
#: no flag of the peer's but ``NEXT``.
DROPPED = 0x8000
#: Indices are free-running numbers of 16 bits.
U16 = 0xFFFF


class Regions:
    """The regions of a connection, as views of their whole memory."""

    __slots__ = ("_types", "count", "views")

    def __init__(self, views: Iterable[memoryview]) -> None:
        self.views = tuple(views)
        self.count = len(self.views)
        self._types = tuple(_array_type(len(view)) for view in self.views)

    def is_same(self, other: Regions) -> bool:
        """Return whether both hold the same memory."""
        if self.count != other.count:
            return False
        return all(map(operator.is_, self.views, other.views))  # == would compare the memory's content

    def holds(self, entry: Entry) -> bool:
        """Return whether a copied descriptor lies inside its region."""
        return entry[1] < self.count and entry[3] + entry[2] <= len(self.views[entry[1]])

    def at(self, entry: Entry) -> memoryview:
        """Return the data of a descriptor that has been checked."""
        _, region, length, offset, _ = entry
        return self.views[region][offset : offset + length]

    def export(self, region: int) -> ctypes.Array[ctypes.c_char]:
        """Return a new object that exports the memory of a whole region (see :meth:`.burst.RingBurst.whole`)."""
        return self._types[region].from_buffer(self.views[region])


@functools.cache
def _array_type(size: int) -> type[ctypes.Array[ctypes.c_char]]:
    return ctypes.c_char * size


def only_next(entry: Entry) -> Entry:
    """Return a copied descriptor with no flag but ``NEXT``."""
    flags, region, length, offset, metadata = entry
    return flags & NEXT, region, length, offset, metadata


def clean(entry: Entry) -> Entry:
    """Return a received descriptor as we send it: without our flags and without the metadata of the peer."""
    flags, region, length, offset, _ = entry
    return flags & NEXT, region, length, offset, 0
