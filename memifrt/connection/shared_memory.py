"""The shared memory of one connection: its regions, its rings and their eventfds.

Owns all of them until the connection ends. A slave creates them. A master checks and maps those that its peer sends.
Knows nothing of messages, queues or the application.
"""

from __future__ import annotations

import os
from array import array
from typing import TYPE_CHECKING

from memifrt.control.handshake import AcceptRing, RegionFd, RingFd
from memifrt.errors import ErrorCode, MemifError, ProtocolError
from memifrt.memory.layout import Layout, RingLayout, ring_bytes
from memifrt.memory.region import ExternalRegion, Region
from memifrt.options import RegionAllocator
from memifrt.ring import RingMemory, RxRing, SlaveBuffers, TxRing, implementation
from memifrt.system.fds import EventFd
from memifrt.system.received_fds import ReceivedFd, SharedEventFd, is_eventfd
from memifrt.types import Direction

if TYPE_CHECKING:
    from memifrt.memory.sigbus import HangUp

#: A ring must be aligned: loads of an index that crosses an alignment boundary are not atomic.
_RING_ALIGNMENT = 4

#: The place of a ring, the ring, and its eventfd.
RxRingEnd = tuple[RingLayout, RxRing, EventFd]
TxRingEnd = tuple[RingLayout, TxRing, EventFd]


class ConnectionMemory:
    """The part that the memory of both roles shares.

    A ``hang_up`` argument is the channel to shut down when the file of a region was truncated
    (:class:`memifrt.memory.region.Region`).
    """

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self.rx_rings: list[RxRingEnd] = []
        self.tx_rings: list[TxRingEnd] = []
        self._events: dict[RingFd, EventFd] = {}

    def fileno_of(self, what: RegionFd | RingFd) -> int:
        """Return the fd of a region's file or of a ring's eventfd."""
        return self.regions[what.index].fileno() if isinstance(what, RegionFd) else self._events[what].fileno()

    def close(self) -> None:
        """Close every fd and release the regions. A mapping stays as long as a view into it is held.

        :raises Exception: the first exception of an external region's ``delete`` callback, after all is released.
        """
        for event in self._events.values():
            event.close()
        self.rx_rings.clear()
        self.tx_rings.clear()
        failure: Exception | None = None
        for region in self.regions:
            try:
                region.close()
            except Exception as error:
                failure = failure or error
        self.regions.clear()
        if failure is not None:
            raise failure

    def abandon(self) -> None:
        """Cut a forked child off from the parent's eventfds and memory."""
        for event in self._events.values():
            event.abandon()
        for region in self.regions:
            region.abandon()

    def _ring_memory(self, ring: RingLayout | AcceptRing, log2_ring_size: int, name: str) -> RingMemory:
        memories = tuple(region.memory for region in self.regions)
        return RingMemory(memories, ring.region, ring.offset, log2_ring_size, name)


class CreatedMemory(ConnectionMemory):
    """The memory of a slave's connection.

    :param external: the application's own memory for the buffers, if it has registered any.
    """

    def __init__(self, allocator: RegionAllocator, external: ExternalRegion | None) -> None:
        super().__init__()
        self._allocator = allocator
        self._external = external

    @property
    def has_separate_buffers(self) -> bool:
        """Whether the buffers lie in a region of their own, apart from the rings."""
        return self._external is not None

    def create_regions(self, layout: Layout, hang_up: HangUp) -> None:
        """Create every region, with the application's allocator or external region.

        :raises MemifError: a region cannot be created; the earlier ones stay until :meth:`close`.
        """
        for index, size in enumerate(layout.region_sizes):
            if index > 0 and self._external is not None:
                self.regions.append(Region.create_external(index, size, self._external, hang_up))
            else:
                self.regions.append(Region.create(index, size, self._allocator, hang_up))

    def create_rings(self, layout: Layout, log2_ring_size: int, buffer_size: int, uid: int) -> None:
        """Create every ring in the regions, each with an eventfd.

        :param buffer_size: in bytes.
        :param uid: the user of the peer, which shares the eventfds.
        :raises MemifError: the application's buffer offsets do not fit, or the system refuses an eventfd.
        """
        buffer_region = self.regions[layout.buffer_region]
        for ring in layout.rings:
            offsets = _buffer_offsets(ring, log2_ring_size, layout.stride, self._external)
            _check_offsets(offsets, buffer_size, len(buffer_region.memory))
            buffers = SlaveBuffers(layout.buffer_region, buffer_size, offsets)
            sends = ring.direction is Direction.S2M
            name = f"{'tx' if sends else 'rx'} ring {ring.index}"
            memory = self._ring_memory(ring, log2_ring_size, name)
            event = SharedEventFd.create(f"eventfd of {name}")
            event.uid = uid
            self._events[RingFd(ring.direction, ring.index)] = event
            if sends:
                self.tx_rings.append((ring, implementation.slave_tx(memory, buffers), event))
            else:
                self.rx_rings.append((ring, implementation.slave_rx(memory, buffers), event))


class AcceptedMemory(ConnectionMemory):
    """The memory of a master's connection, which its peer sends piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        #: The rings that the peer has described, with the logarithm of their size.
        self._layouts: list[tuple[RingLayout, int]] = []

    def accept_region(
        self, index: int, size: int, fd: ReceivedFd, *, trusted: bool, external: ExternalRegion | None, hang_up: HangUp
    ) -> None:
        """Check and map a region, and own its fd.

        :param trusted: whether to accept a file that the peer can truncate.
        :raises ProtocolError: the file is not acceptable; see :meth:`memifrt.memory.region.Region.accept`.
        """
        region = Region.accept(index, size, fd, trusted=trusted, external=external, hang_up=hang_up)
        self.regions.append(region)

    def check_ring(self, ring: AcceptRing) -> None:
        """Check that a ring lies in its region and starts with the cookie.

        :raises ProtocolError: the ring fails the check.
        """
        name = f"{ring.direction.value} ring {ring.index}"
        region, size = self.regions[ring.region], ring_bytes(ring.log2_ring_size)
        if ring.offset + size > region.size:
            raise ProtocolError(
                ErrorCode.INVAL_ARG,
                f"{name} of {size} bytes at offset {ring.offset} lies outside region {ring.region} "
                f"of {region.size} bytes",
            )
        if ring.offset % _RING_ALIGNMENT:
            raise ProtocolError(
                ErrorCode.INVAL_ARG,
                f"{name} lies at offset {ring.offset}, which is not a multiple of {_RING_ALIGNMENT}",
            )
        implementation.check_cookie(self._ring_memory(ring, ring.log2_ring_size, name))

    def accept_ring(self, ring: AcceptRing, fd: ReceivedFd) -> None:
        """Keep a ring that :meth:`check_ring` has accepted, and own its eventfd.

        :raises ProtocolError: ``NO_INTFD`` if the fd is not an eventfd.
        """
        name = f"{ring.direction.value} ring {ring.index}"
        self._events[RingFd(ring.direction, ring.index)] = _accept_eventfd(fd, name)
        self._layouts.append((RingLayout(ring.direction, ring.index, ring.region, ring.offset, 0), ring.log2_ring_size))

    def make_rings(self) -> None:
        """Create the rings after the peer has described all of them. This resets their indices."""
        for layout, log2_ring_size in self._layouts:
            receives = layout.direction is Direction.S2M
            name = f"{'rx' if receives else 'tx'} ring {layout.index}"
            memory = self._ring_memory(layout, log2_ring_size, name)
            event = self._events[RingFd(layout.direction, layout.index)]
            if receives:
                self.rx_rings.append((layout, implementation.master_rx(memory), event))
            else:
                self.tx_rings.append((layout, implementation.master_tx(memory), event))


def _buffer_offsets(ring: RingLayout, log2_size: int, stride: int, external: ExternalRegion | None) -> array[int]:
    """Return the offset of each slot's buffer, in ring order (docs/protocol.md, Shared memory)."""
    if external is not None and external.next_buffer_offset is not None:
        return array("I", [external.next_buffer_offset() for _ in range(1 << log2_size)])
    return array("I", range(ring.first_buffer, ring.first_buffer + (stride << log2_size), stride))


def _check_offsets(offsets: array[int], buffer_size: int, region_size: int) -> None:
    """Check that every buffer fits into its region. Our own offsets always fit, the application's may not.

    :raises MemifError: a buffer does not fit.
    """
    highest = max(offsets)
    if highest + buffer_size > region_size:
        raise MemifError(
            ErrorCode.INVAL_ARG,
            f"next_buffer_offset() gave {highest}: a buffer of {buffer_size} bytes there does not fit into "
            f"the external region of {region_size} bytes",
        )


def _accept_eventfd(fd: ReceivedFd, name: str) -> EventFd:
    """Own the peer's eventfd. Refuse any other file: a write to it could block this process forever.

    :raises ProtocolError: ``NO_INTFD`` if the fd is not an eventfd; it is closed.
    """
    if not is_eventfd(fd.fileno()):
        fd.close()
        raise ProtocolError(ErrorCode.NO_INTFD, f"{name} came with an fd that is not an eventfd")
    os.set_blocking(fd.fileno(), False)
    return SharedEventFd(fd.detach(), f"eventfd of {name}", fd.uid)
