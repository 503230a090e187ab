"""A slave end and a master end over the same plain memory, and a look at that memory as the other process has it.

Owns the list of ring implementations that the tests run on. Everything here goes through the rings' Protocol and the
layout of the shared memory, never through an implementation's inside.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

from memifrt.memory.layout import DESCRIPTOR_SIZE, RING_HEADER_SIZE, ring_bytes
from memifrt.ring import RingImplementation, RingMemory, RxRing, SlaveBuffers, TxRing, load

#: Every test of the data plane runs on each of these.
IMPLEMENTATIONS: list[RingImplementation] = [load("python"), load("native")]

NEXT = 1
U16 = 0xFFFF

#: Bytes that nobody may write: before, between and behind rings and buffers, inside a region and around it.
_CANARY = 0xA5
_GAP = 64


def name_of(implementation: object) -> str:
    """The id of an implementation in the names of tests."""
    return str(getattr(implementation, "__name__", implementation)).rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A descriptor as it lies in shared memory."""

    flags: int
    region: int
    length: int
    offset: int
    metadata: int = 0


class RawRing:
    """A ring's bytes, to be read and written at will: what the other process can do."""

    _DESCRIPTOR = struct.Struct("<HHIII")

    def __init__(self, area: memoryview) -> None:
        self._area = area
        self.size = (len(area) - RING_HEADER_SIZE) // DESCRIPTOR_SIZE

    def _get(self, offset: int) -> int:
        return int.from_bytes(self._area[offset : offset + 2], "little")

    def _set(self, offset: int, value: int) -> None:
        self._area[offset : offset + 2] = value.to_bytes(2, "little")

    @property
    def cookie(self) -> int:
        return int.from_bytes(self._area[:4], "little")

    @cookie.setter
    def cookie(self, value: int) -> None:
        self._area[:4] = value.to_bytes(4, "little")

    @property
    def flags(self) -> int:
        return self._get(4)

    @flags.setter
    def flags(self, value: int) -> None:
        self._set(4, value)

    @property
    def head(self) -> int:
        return self._get(6)

    @head.setter
    def head(self, value: int) -> None:
        self._set(6, value)

    @property
    def tail(self) -> int:
        return self._get(64)

    @tail.setter
    def tail(self, value: int) -> None:
        self._set(64, value)

    def __getitem__(self, slot: int) -> Descriptor:
        return Descriptor(*self._DESCRIPTOR.unpack_from(self._area, self._start(slot)))

    def __setitem__(self, slot: int, descriptor: Descriptor) -> None:
        self._DESCRIPTOR.pack_into(
            self._area,
            self._start(slot),
            descriptor.flags,
            descriptor.region,
            descriptor.length,
            descriptor.offset,
            descriptor.metadata,
        )

    def change(self, slot: int, **fields: int) -> None:
        """Write some fields of a descriptor anew."""
        self[slot] = replace(self[slot], **fields)

    def descriptors(self) -> list[Descriptor]:
        return [self[slot] for slot in range(self.size)]

    def _start(self, slot: int) -> int:
        return RING_HEADER_SIZE + slot % self.size * DESCRIPTOR_SIZE


@dataclass(frozen=True)
class Lane:
    """One direction: who sends, who receives, and the memory between them."""

    tx: TxRing
    rx: RxRing
    raw: RawRing
    #: Where the ring lies in region 0.
    offset: int
    #: The slave's record of which buffer sits in which slot.
    offsets: array[int]

    def post(self) -> None:
        """Let the receiver have posted its buffers, if it is the one who does."""
        if self.rx.capacity:
            self.rx.refill()


class Ends:
    """A slave and a master, connected: ``s2m`` and ``m2s`` are their lanes.

    Rings lie in region 0, buffers in region 0 too or (``separate``) in region 1. Each end has memoryviews of its own,
    as two processes have. With ``posted=False`` the slave has not given its receive buffers to the master yet.
    """

    def __init__(
        self,
        implementation: RingImplementation,
        *,
        log2_size: int = 3,
        buffer_size: int = 64,
        rings: int = 1,
        separate: bool = False,
        posted: bool = True,
    ) -> None:
        self.implementation = implementation
        self.size = 1 << log2_size
        self.buffer_size = buffer_size
        self.buffer_region = int(separate)
        step = ring_bytes(log2_size) + _GAP
        stride = buffer_size + _GAP
        ring_offsets = [_GAP + position * step for position in range(2 * rings)]
        rings_end = _GAP + 2 * rings * step
        first_buffer = _GAP if separate else rings_end
        buffer_offsets = [first_buffer + position * stride for position in range(2 * rings * self.size)]
        buffers_end = buffer_offsets[-1] + stride
        sizes = [rings_end, buffers_end] if separate else [buffers_end]
        self._stores = [bytearray([_CANARY]) * (size + 2 * _GAP) for size in sizes]
        self._ours = [
            *((0, offset, ring_bytes(log2_size)) for offset in ring_offsets),
            *((self.buffer_region, offset, buffer_size) for offset in buffer_offsets),
        ]
        self._slave_regions, self._master_regions = self.map(), self.map()
        for offset in ring_offsets:
            self._slave_regions[0][offset : offset + ring_bytes(log2_size)] = bytes(ring_bytes(log2_size))
        lanes = [
            self._lane(
                sends=position < rings,
                qid=position % rings,
                ring_offset=ring_offsets[position],
                log2_size=log2_size,
                offsets=array("I", buffer_offsets[position * self.size : (position + 1) * self.size]),
            )
            for position in range(2 * rings)
        ]
        self.all_s2m, self.all_m2s = lanes[:rings], lanes[rings:]
        self.s2m, self.m2s = self.all_s2m[0], self.all_m2s[0]
        if posted:
            for lane in self.all_m2s:
                lane.post()

    def map(self) -> tuple[memoryview, ...]:
        """The regions, as one more process would map them."""
        return tuple(memoryview(store)[_GAP:-_GAP] for store in self._stores)

    def _lane(self, *, sends: bool, qid: int, ring_offset: int, log2_size: int, offsets: array[int]) -> Lane:
        def memory(regions: Sequence[memoryview], name: str) -> RingMemory:
            return RingMemory(regions, 0, ring_offset, log2_size, f"{name} ring {qid}")

        buffers = SlaveBuffers(self.buffer_region, self.buffer_size, offsets)
        tx: TxRing
        rx: RxRing
        if sends:
            tx = self.implementation.slave_tx(memory(self._slave_regions, "tx"), buffers)
            rx = self.implementation.master_rx(memory(self._master_regions, "rx"))
        else:
            rx = self.implementation.slave_rx(memory(self._slave_regions, "rx"), buffers)
            tx = self.implementation.master_tx(memory(self._master_regions, "tx"))
        raw = RawRing(self.map()[0][ring_offset : ring_offset + ring_bytes(log2_size)])
        return Lane(tx, rx, raw, ring_offset, offsets)

    @property
    def lanes(self) -> list[Lane]:
        return [*self.all_s2m, *self.all_m2s]

    def lane(self, sender: str) -> Lane:
        """The first lane on which ``slave`` or ``master`` sends."""
        return self.s2m if sender == "slave" else self.m2s

    def crossing(self, role: str) -> tuple[RxRing, TxRing]:
        """The two rings on which one side forwards: from where it receives to where it sends."""
        return (self.m2s.rx, self.s2m.tx) if role == "slave" else (self.s2m.rx, self.m2s.tx)

    def buffers(self) -> list[int]:
        """The offset of the buffer in every slot of every ring, by the slave's record."""
        return sorted(offset for lane in self.lanes for offset in lane.offsets)

    def check_each_buffer_is_in_one_slot(self) -> None:
        buffers = self.buffers()
        assert buffers == sorted(offset for _, offset, _ in self._ours[len(self.lanes) :])

    def check_margins(self) -> None:
        """Nobody wrote outside the regions."""
        for store in self._stores:
            assert set(store[:_GAP]) | set(store[-_GAP:]) == {_CANARY}, "written outside a region"

    def check_canaries(self) -> None:
        """Nobody wrote outside the rings and buffers."""
        self.check_margins()
        rest = [bytearray(store) for store in self._stores]
        for region, offset, size in self._ours:
            rest[region][_GAP + offset : _GAP + offset + size] = bytes([_CANARY]) * size
        for region, store in enumerate(rest):
            assert store.count(_CANARY) == len(store), f"written between the rings and buffers of region {region}"


def fill(count: int, size: int, seed: int = 0) -> list[bytes]:
    """Packets that differ from each other (where their size allows) in every byte's value."""
    return [bytes((seed + number + position) & 0xFF for position in range(size)) for number in range(count)]


def pass_packets(lane: Lane, count: int) -> None:
    """Push packets of one byte through a lane, a ring at a time: moves its indices on."""
    while count:
        batch = min(count, lane.raw.size)
        assert lane.tx.send([b"."] * batch) == batch
        assert lane.rx.recv(batch) == [b"."] * batch
        count -= batch
