"""The common parts of all four rings: the header, descriptors, counters, and a slave's record of its buffers.

The twin of ``_native_ring.pxi``. Read docs/memory-order.md before you change the order of two accesses of shared
memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import ClassVar

from memifrt.errors import ConfigError, ErrorCode, ForkedError, RingViolation
from memifrt.memory.layout import DESCRIPTOR_SIZE, RING_HEADER_SIZE, ring_bytes
from memifrt.ring.protocol import Burst, RingMemory, SlaveBuffers
from memifrt.ring.reference.burst import BurstRing, RingBurst, own_burst
from memifrt.ring.reference.descriptor import (
    COOKIE_FIELD,
    DESCRIPTOR,
    FLAGS,
    HEAD,
    MASK_INT,
    NEXT,
    TAIL,
    Entry,
    Regions,
)
from memifrt.types import COOKIE, MAX_LOG2_RING_SIZE, QueueCounters


class RingBase:
    """A ring in shared memory, and what we count on it."""

    __slots__ = (
        "__weakref__",
        "_descriptors",
        "_header",
        "_name",
        "_owner",
        "bad_descriptors",
        "buffers",
        "mask",
        "octets",
        "open",
        "packets",
        "regions",
        "ring_full",
        "size",
    )

    #: Whether this is a ring to send on.
    is_tx: ClassVar[bool]

    def __init__(self, memory: RingMemory) -> None:
        self._name = memory.name
        self.regions = Regions(memory.regions)
        if not 0 <= memory.log2_size <= MAX_LOG2_RING_SIZE or not 0 <= memory.region < self.regions.count:
            raise ConfigError(f"{self._name}: there is no ring of 2^{memory.log2_size} in region {memory.region}")
        self.size = 1 << memory.log2_size
        self.mask = self.size - 1
        region = self.regions.views[memory.region]
        room = len(region) - ring_bytes(memory.log2_size)
        if memory.offset % 4 or not 0 <= memory.offset <= room:
            raise ConfigError(f"{self._name}: the ring at {memory.offset} lies outside its region, or is not aligned")
        area = region[memory.offset :]
        self._header = area[:RING_HEADER_SIZE].cast("H")
        self._descriptors = area[RING_HEADER_SIZE : RING_HEADER_SIZE + self.size * DESCRIPTOR_SIZE]
        self.packets = self.octets = self.ring_full = self.bad_descriptors = 0
        #: Bursts that hold buffers, oldest first.
        self.open: deque[RingBurst] = deque()
        #: In a forked child: the id of the process to which the ring belongs.
        self._owner: int | None = None
        #: A slave's own buffers; None for a master.
        self.buffers: SlaveBuffers | None = None

    @property
    def head(self) -> int:
        return self._header[HEAD]

    @property
    def tail(self) -> int:
        return self._header[TAIL]

    @property
    def flags(self) -> int:
        return self._header[FLAGS]  # no fence: memory-order.md, F2

    @property
    def capacity(self) -> int:
        return 0 if self.buffers is None else self.buffers.size

    @property
    def counters(self) -> QueueCounters:
        return QueueCounters(self.packets, self.octets, 0, self.ring_full, self.bad_descriptors)

    def set_mask(self, masked: bool) -> None:
        self._header[FLAGS] = MASK_INT if masked else 0  # no fence: memory-order.md, F1

    @property
    def is_held(self) -> bool:
        return bool(self.open)

    def abandon(self, pid: int) -> None:
        self._owner = pid
        for burst in self.open:
            burst.release_all()
            burst.ended = True
        self.open.clear()

    def ended_error(self, kind: type[ValueError]) -> Exception:
        """Return the error for a use of a burst that has ended."""
        if self._owner is not None:
            return ForkedError(self._owner, "burst")
        return kind("the burst has ended: its buffers belong to the peer")

    def take_buffers(self, buffers: SlaveBuffers) -> None:
        """Become a slave's ring: check the slave's own buffers, and make the header."""
        check_buffers(buffers, self.regions, self.size)
        self.buffers = buffers
        COOKIE_FIELD.pack_into(self._header.cast("B"), 0, COOKIE)
        self.reset()

    def reset(self) -> None:
        """Set both indices and the flags to 0, whatever the peer's memory has in them."""
        self._header[FLAGS] = self._header[HEAD] = self._header[TAIL] = 0  # memory-order.md, R5

    def read(self, index: int, count: int) -> Iterator[Entry]:
        """Copy ``count`` descriptors from ``index`` on. The caller checks and uses only this copy."""
        start = (index & self.mask) * DESCRIPTOR_SIZE
        stop = start + count * DESCRIPTOR_SIZE
        limit = len(self._descriptors)
        data = bytes(self._descriptors[start:stop])  # memory-order.md, B1
        if stop > limit:
            data += bytes(self._descriptors[: stop - limit])
        return DESCRIPTOR.iter_unpack(data)

    def write(self, entries: Iterable[Entry], index: int) -> None:
        """Write descriptors into the slots from ``index`` on."""
        data = b"".join([DESCRIPTOR.pack(*entry) for entry in entries])
        start = (index & self.mask) * DESCRIPTOR_SIZE
        fits = min(len(data), len(self._descriptors) - start)
        self._descriptors[start : start + fits] = data[:fits]
        self._descriptors[: len(data) - fits] = data[fits:]

    def buffer_bounds(self, index: int, entry: Entry) -> tuple[int, int]:
        """Return the start and the end of the memory inside which the data of a buffer may move.

        That is the whole buffer on a slave, and only the present data on a master.
        """
        if self.buffers is None:
            return entry[3], entry[3] + entry[2]
        start = self.buffers.offsets[index & self.mask]
        return start, start + self.buffers.size

    def tally(self, entries: list[Entry]) -> None:
        """Count packets and bytes of received or sent descriptors."""
        self.packets += sum(not entry[0] & NEXT for entry in entries)
        self.octets += sum(entry[2] for entry in entries)

    def violation(self, what: str) -> RingViolation:
        """Count a violation, and return the error that reports it."""
        self.bad_descriptors += 1
        return RingViolation(f"{self._name}: {what}", sending=self.is_tx)

    def outside(self, index: int, entry: Entry, where: str) -> RingViolation:
        """Return the error for a descriptor that points outside ``where``."""
        _, region, length, offset, _ = entry
        return self.violation(
            f"descriptor {index & self.mask} points outside {where} (region {region}, offset {offset}, length {length})"
        )

    def out_of_bounds(self, index: int, entry: Entry) -> RingViolation:
        """Return the error for a descriptor that does not lie inside its region."""
        region = entry[1]
        if region >= self.regions.count:
            return self.outside(index, entry, f"the {self.regions.count} region(s)")
        return self.outside(index, entry, f"region {region} of {len(self.regions.views[region])} bytes")

    def burst_ended(self) -> None:
        """Take back the buffers of bursts that have ended, as far as the order of the ring allows."""
        raise NotImplementedError


# --- a slave's record of its buffers ---------------------------------------------------------------------------------


def check_buffers(buffers: SlaveBuffers, regions: Regions, slots: int) -> None:
    """Check a slave's buffers, once: afterwards they are only swapped between slots.

    :raises ConfigError: a slot has no buffer, or a buffer lies outside its region.
    """
    if len(buffers.offsets) != slots or buffers.region >= regions.count or not buffers.size:
        raise ConfigError(f"{slots} slots need {slots} offsets of buffers in a region that exists")
    for slot, offset in enumerate(buffers.offsets):
        if offset + buffers.size > len(regions.views[buffers.region]):
            raise ConfigError(f"the buffer of slot {slot} lies outside its region")


def slave_buffers(ring: BurstRing) -> SlaveBuffers:
    """Return the buffers of a ring that is a slave's."""
    assert ring.buffers is not None
    return ring.buffers


def are_siblings(a: BurstRing, b: BurstRing) -> bool:
    """Return whether both are rings of one slave, and a buffer of one fits into a slot of the other."""
    if a.buffers is None or b.buffers is None or not a.regions.is_same(b.regions):
        return False
    return a.buffers.region == b.buffers.region and a.buffers.size == b.buffers.size


def swap(a: SlaveBuffers, slot_a: int, b: SlaveBuffers, slot_b: int) -> None:
    """Swap, in the slave's own record, the buffers of two slots."""
    a.offsets[slot_a], b.offsets[slot_b] = b.offsets[slot_b], a.offsets[slot_a]


def exchange(burst_a: Burst, index_a: int, burst_b: Burst, index_b: int) -> None:
    """Swap two buffers of one slave's rings, received or allocated, between their slots.

    :raises ConfigError: the rings are not of one slave.
    """
    a, b = own_burst(burst_a), own_burst(burst_b)
    if not are_siblings(a.ring, b.ring):
        raise ConfigError("buffers can be exchanged only between the rings of one slave")
    at_a, at_b = a.position(index_a), b.position(index_b)
    entry = a.entries[at_a]
    a.release_view(at_a)
    b.release_view(at_b)
    swap(
        slave_buffers(a.ring),
        (a.first + at_a) & a.ring.mask,
        slave_buffers(b.ring),
        (b.first + at_b) & b.ring.mask,
    )
    a.changed = b.changed = True
    a.replace_entry(at_a, b.entries[at_b])
    b.replace_entry(at_b, entry)


def check_cookie(memory: RingMemory) -> None:
    """Check that there is a ring.

    :raises RingViolation: with the code ``COOKIE``, if there is none.
    """
    (cookie,) = COOKIE_FIELD.unpack_from(memory.regions[memory.region], memory.offset)
    if cookie != COOKIE:
        raise RingViolation(f"{memory.name}: the header's cookie is {cookie:#x}, not {COOKIE:#x}", ErrorCode.COOKIE)
