"""The data plane in Python, to be read: what every faster implementation has to do, byte for byte.

Nothing in shared memory is trusted. The peer can write to all of it at any moment, so a descriptor is copied once,
the copy is checked, and only the copy is used; what we need to remember (which buffer sits in which slot, how far we
are) is kept in memory of our own.

Order of memory operations. A producer writes buffers and descriptors first and the index last; a consumer reads the
index first and descriptors after it. CPython neither reorders nor merges the accesses below, each of which is one
aligned load or store of 16 bits for an index, and x86-64 keeps stores in order and loads in order. The one reordering
that it does allow, a store of an index passing a later load of the flags, is the receiver's to handle: who unmasks
interrupts looks at the ring again afterwards (see ``RxQueue.set_mode``).
"""

from __future__ import annotations

import ctypes
import functools
import operator
import struct
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from memifrt.errors import ConfigError, ErrorCode, ForkedError, RingViolation, not_a_packet
from memifrt.memory.layout import DESCRIPTOR_SIZE, RING_HEADER_SIZE, ring_bytes
from memifrt.ring.protocol import Burst, RingMemory, RxRing, SlaveBuffers
from memifrt.types import (
    COOKIE,
    MAX_LOG2_RING_SIZE,
    MAX_PACKET_SIZE,
    MAX_RECEIVED_BUFFER,
    BufferFlag,
    QueueCounters,
)

if TYPE_CHECKING:
    from typing_extensions import Self

    from memifrt.types import ReadableBuffer

# flags, region, length, offset, metadata (docs/protocol.md, Shared memory)
_DESCRIPTOR = struct.Struct("<HHIII")
_COOKIE = struct.Struct("<I")
_FLAGS_FIELD = struct.Struct("<H")
_NEXT = int(BufferFlag.NEXT)
# Ours alone, in our copies: the packet is left out of what forward sends. A peer's flags are cut down to NEXT.
_DROPPED = 0x8000
_U16 = 0xFFFF
# The header as u16: cookie at bytes 0 to 3, flags at 4, head at 6, tail at 64.
_FLAGS, _HEAD, _TAIL = 2, 3, 32
_MASK_INT = 1

#: A copied descriptor: flags, region, length, offset, metadata.
Entry = tuple[int, int, int, int, int]


class _Ring:
    """A ring in shared memory and what we count on it."""

    __slots__ = (
        "_areas",
        "_bad",
        "_bytes",
        "_descriptors",
        "_full",
        "_header",
        "_mask",
        "_name",
        "_open",
        "_owner",
        "_packets",
        "_regions",
        "size",
    )

    def __init__(self, memory: RingMemory) -> None:
        self._name = memory.name
        self._regions = tuple(memory.regions)
        #: What makes a view of a whole region of which one can tell whether it is still in use: see ``_Burst._whole``.
        self._areas = tuple(_area_type(len(region)) for region in self._regions)
        if not 0 <= memory.log2_size <= MAX_LOG2_RING_SIZE or not 0 <= memory.region < len(self._regions):
            raise ConfigError(f"{self._name}: there is no ring of 2^{memory.log2_size} in region {memory.region}")
        self.size = 1 << memory.log2_size
        self._mask = self.size - 1
        room = len(self._regions[memory.region]) - ring_bytes(memory.log2_size)
        if memory.offset % 4 or not 0 <= memory.offset <= room:
            raise ConfigError(f"{self._name}: the ring at {memory.offset} lies outside its region, or is not aligned")
        area = self._regions[memory.region][memory.offset :]
        self._header = area[:RING_HEADER_SIZE].cast("H")
        self._descriptors = area[RING_HEADER_SIZE : RING_HEADER_SIZE + self.size * DESCRIPTOR_SIZE]
        self._packets = self._bytes = self._full = self._bad = 0
        #: Bursts that hold buffers, oldest first.
        self._open: deque[_Burst] = deque()
        #: In a forked child: the process to which the ring belongs.
        self._owner: int | None = None

    @property
    def head(self) -> int:
        return self._header[_HEAD]

    @property
    def tail(self) -> int:
        return self._header[_TAIL]

    @property
    def flags(self) -> int:
        return self._header[_FLAGS]

    @property
    def capacity(self) -> int:
        return 0

    @property
    def counters(self) -> QueueCounters:
        return QueueCounters(self._packets, self._bytes, 0, self._full, self._bad)

    def set_mask(self, masked: bool) -> None:
        self._header[_FLAGS] = _MASK_INT if masked else 0

    def abandon(self, pid: int) -> None:
        self._owner = pid
        for burst in self._open:
            burst._release_all()
            burst._ended = True
        self._open.clear()

    def _ended(self, kind: type[ValueError]) -> Exception:
        """Why a burst cannot be used any more."""
        if self._owner is not None:
            return ForkedError(self._owner, "burst")
        return kind("the burst has ended: its buffers belong to the peer")

    def _reset(self) -> None:
        self._header[_HEAD] = self._header[_TAIL] = self._header[_FLAGS] = 0

    def _read(self, index: int, count: int) -> Iterator[Entry]:
        """A copy of ``count`` descriptors from ``index`` on. From here on shared memory is not looked at again."""
        start = (index & self._mask) * DESCRIPTOR_SIZE
        stop = start + count * DESCRIPTOR_SIZE
        limit = len(self._descriptors)
        data = bytes(self._descriptors[start:stop])
        if stop > limit:
            data += bytes(self._descriptors[: stop - limit])
        return _DESCRIPTOR.iter_unpack(data)

    def _write(self, index: int, entries: Iterable[Entry]) -> None:
        data = b"".join([_DESCRIPTOR.pack(*entry) for entry in entries])
        start = (index & self._mask) * DESCRIPTOR_SIZE
        fits = min(len(data), len(self._descriptors) - start)
        self._descriptors[start : start + fits] = data[:fits]
        self._descriptors[: len(data) - fits] = data[fits:]

    def _view(self, entry: Entry) -> memoryview:
        _, region, length, offset, _ = entry
        return self._regions[region][offset : offset + length]

    def _room_around(self, index: int, entry: Entry) -> tuple[int, int]:
        """Where the memory begins and ends that the data of a taken buffer may be moved in: a master's does not."""
        return entry[3], entry[3] + entry[2]

    def _count(self, entries: list[Entry]) -> None:
        self._packets += sum(not entry[0] & _NEXT for entry in entries)
        self._bytes += sum(entry[2] for entry in entries)

    def _violation(self, what: str) -> RingViolation:
        self._bad += 1
        return RingViolation(f"{self._name}: {what}", sending=isinstance(self, _TxRing))

    def _outside(self, index: int, entry: Entry, where: str) -> RingViolation:
        _, region, length, offset, _ = entry
        return self._violation(
            f"descriptor {index & self._mask} points outside {where} "
            f"(region {region}, offset {offset}, length {length})"
        )

    def _check_bounds(self, index: int, entry: Entry) -> None:
        _, region, length, offset, _ = entry
        if region >= len(self._regions):
            raise self._outside(index, entry, f"the {len(self._regions)} region(s)")
        if offset + length > len(self._regions[region]):
            raise self._outside(index, entry, f"region {region} of {len(self._regions[region])} bytes")

    def _burst_ended(self, burst: _Burst) -> None:
        raise NotImplementedError


class _Burst:
    """A run of buffers of one ring, as copied descriptors; views are made when they are touched."""

    __slots__ = ("_areas", "_changed", "_done", "_ended", "_entries", "_first", "_ring", "_room", "_views", "_wholes")

    def __init__(self, ring: _Ring, first: int, entries: list[Entry], room: list[int] | None = None) -> None:
        self._ring = ring
        #: What a master may fill of each buffer, as the peer had posted it; None where the ring itself knows.
        self._room = room
        #: For each region that was viewed: our view of all of it, and what tells whether others are left.
        self._wholes: dict[int, memoryview] = {}
        self._areas: list[weakref.ref[ctypes.Array[ctypes.c_char]]] = []
        self._first = first
        self._entries = entries
        self._views: dict[int, memoryview] = {}
        self._done = 0
        self._ended = False
        #: Whether a buffer is no longer as it was received: it cannot be put back.
        self._changed = False

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> memoryview:
        position = self._position(index)
        view = self._views.get(position)
        if view is None:
            _, region, length, offset, _ = self._entries[position]
            whole = self._wholes.get(region) or self._whole(region)
            view = self._views[position] = whole[offset : offset + length]
        return view

    def _whole(self, region: int) -> memoryview:
        """A view of a whole region that is this burst's alone, to make all others of.

        Slices and casts of a view do not keep it from being released. But they keep the object alive that exports the
        memory, and for each burst that is one of its own: if it outlives our views, somebody holds a derived one.
        """
        area = self._ring._areas[region].from_buffer(self._ring._regions[region])
        self._areas.append(weakref.ref(area))
        whole = self._wholes[region] = memoryview(area).cast("B")
        return whole

    def __iter__(self) -> Iterator[memoryview]:
        for index in range(self._done, len(self._entries)):
            yield self[index]

    def packets(self) -> Iterator[tuple[memoryview, ...]]:
        for start, stop in self._packet_bounds():
            yield tuple(self[index] for index in range(start, stop))

    def length(self, index: int) -> int:
        return self._entries[self._position(index)][2]

    def flags(self, index: int) -> BufferFlag:
        return BufferFlag(self._entries[self._position(index)][0] & _NEXT)

    def slot(self, index: int) -> int:
        return (self._first + self._position(index)) & self._ring._mask

    def pack_into(self, target: ReadableBuffer, stamp: bytes, limit: int, first: int = 0) -> tuple[int, int]:
        into = memoryview(target)
        if into.readonly or not into.c_contiguous:
            raise ConfigError("the target cannot be written in place")
        into = into.cast("B")
        if self._ended:
            raise self._ring._ended(ValueError)
        used = 0
        for start, stop in self._packet_bounds():
            if start < first:
                continue
            data = self._joined(start, stop)
            copied = data[:limit]
            record = b"".join((stamp, len(copied).to_bytes(4, "little"), len(data).to_bytes(4, "little"), copied))
            if used + len(record) > len(into):
                return start, used
            into[used : used + len(record)] = record
            used += len(record)
        return len(self._entries), used

    @property
    def done(self) -> int:
        return self._done

    def set_length(self, index: int, length: int) -> None:
        self._trim(index, 0, length)

    def advance(self, index: int, count: int) -> None:
        self._trim(index, count, self.length(index) - count)

    def set_flags(self, index: int, flags: int) -> None:
        position = self._position(index)
        present, region, length, offset, metadata = self._entries[position]
        if flags == present & _NEXT:
            return
        if not isinstance(self._ring, _TxRing):
            raise ConfigError(
                "only the flags of an allocated buffer can be set: those of a received one are the peer's"
            )
        if flags not in (0, _NEXT):
            raise ConfigError(f"the flags are {flags!r}; they must be {_NEXT} (the packet goes on) or 0")
        self._entries[position] = (int(flags), region, length, offset, metadata)

    def drop(self, index: int) -> None:
        position = self._position(index)
        if not isinstance(self._ring, _RxRing):
            raise ConfigError("only a received packet can be dropped: an allocated one is not transmitted, or rewound")
        flags, region, length, offset, metadata = self._entries[position]
        self._entries[position] = (flags | _DROPPED, region, length, offset, metadata)

    def close(self) -> None:
        if self._ended:
            return
        held = self._release_all()
        self._ended = True
        self._ring._burst_ended(self)
        if held:
            raise _still_exported()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except BufferError:
            if error is None:  # else the frames of that error hold the view: what went wrong first is to be seen
                raise

    def __repr__(self) -> str:
        return f"<burst of {len(self._entries)} buffers{', ended' * self._ended}>"

    def _position(self, index: int) -> int:
        position = index + len(self._entries) if index < 0 else index
        if not 0 <= position < len(self._entries):
            raise IndexError(f"buffer {index} of a burst of {len(self._entries)}")
        if self._ended:
            raise self._ring._ended(ValueError)
        if position < self._done:
            raise ValueError(f"buffer {index} has been sent: it belongs to the peer")
        return position

    def _packet_bounds(self, *, unfinished: bool = True) -> Iterator[tuple[int, int]]:
        """Start and stop of each packet that is not sent yet; the last one may be cut off (``split``)."""
        start = self._done
        for index in range(start, len(self._entries)):
            if not self._entries[index][0] & _NEXT:
                yield start, index + 1
                start = index + 1
        if start < len(self._entries) and unfinished:
            yield start, len(self._entries)

    def _is_dropped(self, start: int, stop: int) -> bool:
        return any(entry[0] & _DROPPED for entry in self._entries[start:stop])

    def _joined(self, start: int, stop: int) -> bytes | memoryview:
        """The data of one packet."""
        views = [self._ring._view(entry) for entry in self._entries[start:stop]]
        return views[0] if len(views) == 1 else b"".join(views)

    def _trim(self, index: int, count: int, length: int) -> None:
        position = self._position(index)
        entry = self._entries[position]
        flags, region, present, offset, metadata = entry
        start, stop = self._ring._room_around(self._first + position, entry)
        if self._room is not None:
            stop = offset + self._room[position]
        if not (start <= offset + count and 0 < length <= stop - offset - count):
            raise ConfigError(
                f"buffer {index} has {present} bytes of data, room for {offset - start} before and "
                f"{stop - offset - present} behind them: they cannot start {count} bytes further and be {length} long"
            )
        if count and isinstance(self._ring, MasterTxRing):
            raise ConfigError("a master sends from the start of a buffer: only a slave moves data inside it")
        self._drop_view(position)
        self._changed = True
        self._entries[position] = (flags, region, length, offset + count, metadata)

    def _arrive(self, position: int, entry: Entry) -> None:
        """A buffer that comes from another slot. What is allocated is to be sent: nothing of the peer's but where the
        data is."""
        self._entries[position] = _clean(entry) if isinstance(self._ring, _TxRing) else entry

    def _drop_view(self, position: int) -> None:
        view = self._views.get(position)
        if view is not None:
            view.release()
            del self._views[position]

    def _release_views(self, stop: int) -> bool:
        """End the views of the first buffers; whether one could not be ended. ``close`` tries that one again."""
        held = False
        for position in [position for position in self._views if position < stop]:
            try:
                self._drop_view(position)
            except BufferError:
                held = True
        return held

    def _release_all(self) -> bool:
        """End all views; whether something that was made of one is still held."""
        held = self._release_views(len(self._entries))
        for region in list(self._wholes):
            self._wholes.pop(region).release()
        return held or any(area() is not None for area in self._areas)

    def _sent(self, done: int) -> None:
        self._done = done
        self._release_views(done)


# --- receiving ------------------------------------------------------------------------------------------------------


class _RxRing(_Ring):
    """What both receiving sides do. ``_last`` is the index of the next buffer to take."""

    __slots__ = ("_headroom", "_last", "more")

    def __init__(self, memory: RingMemory) -> None:
        super().__init__(memory)
        self._last = 0
        self._headroom = 0
        self.more = False

    def set_headroom(self, headroom: int) -> None:
        self._check_headroom(headroom)
        self._headroom = headroom

    def pending(self) -> int:
        return self._available()

    def burst(self, limit: int, split: bool = False) -> _Burst:
        if limit < 1:
            raise ConfigError(f"a burst of {limit} buffers; it must be at least 1")
        available = self._available()
        entries = self._take(available, limit, split)
        # No entries although some are available: an unfinished chain, for which the peer will kick again.
        self.more = available > limit and bool(entries) and available > len(entries)
        burst = _Burst(self, self._last, entries)
        self._last = (self._last + len(entries)) & _U16
        if entries:
            self._open.append(burst)
            self._count(entries)
        return burst

    def recv(self, limit: int) -> list[bytes]:
        with self.burst(limit) as burst:
            return [bytes(burst._joined(start, stop)) for start, stop in burst._packet_bounds()]

    def recv_into(self, matrix: ReadableBuffer, lengths: ReadableBuffer) -> int:
        rows, sizes = _matrix(matrix, writable=True), _lengths(lengths, writable=True)
        longest = (1 << (8 * sizes.itemsize - sizes.format[-1].islower())) - 1
        limit = min(len(rows), len(sizes))
        if not limit:
            return 0
        with self.burst(limit) as burst:
            number = 0
            for number, (start, stop) in enumerate(burst._packet_bounds(), 1):
                data = burst._joined(start, stop)
                row = rows[number - 1]
                fits = min(len(data), len(row))
                row[:fits] = data[:fits]
                sizes[number - 1] = min(len(data), longest)
        return number

    def untake(self, burst: Burst) -> None:
        own = _own(burst)
        if own._ended or not self._open or self._open[-1] is not own:
            raise ConfigError("only the newest burst can be put back")
        if own._changed:
            raise ConfigError("buffers of this burst have been trimmed or swapped: it cannot be put back")
        if own._release_all():
            raise _still_exported()
        put_back = own._entries[own._done :]
        self._packets -= sum(not entry[0] & _NEXT for entry in put_back)
        self._bytes -= sum(entry[2] for entry in put_back)
        del own._entries[own._done :]
        self._last = (own._first + len(own)) & _U16
        if not own._entries:  # it holds nothing for which later bursts would have to wait
            own._ended = True
            self._open.pop()
        self.more = True

    def refill(self, count: int | None = None, headroom: int = 0) -> int:
        self._check_headroom(headroom)
        refillable = self._refillable()
        count = refillable if count is None else min(count, refillable)
        if count < 0:
            raise ConfigError(f"refill of {count} buffers; it must be at least 0")
        if count:
            self._give_back(count, headroom)
            held = self._end_returned_bursts()
            self._give_back_ended()
            if held:
                raise _still_exported()
        return count

    def _check_headroom(self, headroom: int) -> None:
        if headroom < 0 or 0 < self.capacity <= headroom:
            raise ConfigError(f"headroom is {headroom} bytes; it must be less than the buffer's {self.capacity}")

    def _take(self, available: int, limit: int, split: bool) -> list[Entry]:
        """The checked descriptors to hand out: whole packets, at most ``limit`` buffers if the first one allows."""
        entries = self._snapshot(self._last, min(available, limit))
        if split or not entries:
            return entries
        self._check_packets(entries)
        whole = len(entries)
        while whole and entries[whole - 1][0] & _NEXT:
            whole -= 1
        if not whole:
            # The first packet alone is longer than the limit, or the peer has not finished it yet.
            entries += self._snapshot(self._last + len(entries), available - len(entries))
            self._check_packets(entries)
            ends = (index + 1 for index, entry in enumerate(entries) if not entry[0] & _NEXT)
            whole = next(ends, 0)
            if not whole and available == self.size:
                raise self._violation(f"a chain of {available} descriptors fills the ring and has no end")
        return entries[:whole]

    def _check_packets(self, entries: list[Entry]) -> None:
        """No chain is longer than what a packet may have: its buffers may all be the same memory."""
        if len(entries) <= MAX_PACKET_SIZE // MAX_RECEIVED_BUFFER:
            return
        size = 0
        for position, (flags, _, length, _, _) in enumerate(entries):
            size += length
            if size > MAX_PACKET_SIZE:
                slot = (self._last + position) & self._mask
                raise self._violation(
                    f"the packet that goes on in descriptor {slot} has {size} bytes or more; "
                    f"a packet has at most {MAX_PACKET_SIZE}"
                )
            if not flags & _NEXT:
                size = 0

    def _burst_ended(self, burst: _Burst) -> None:
        self._give_back_ended()

    def _give_back_ended(self) -> None:
        # Buffers go back in the order in which they came: a burst that ends before an older one waits for it.
        while self._open and self._open[0]._ended:
            oldest = self._open.popleft()
            missing = (oldest._first + len(oldest) - self._boundary()) & _U16
            if missing <= self.size:  # else a refill has given them back already
                self._give_back(missing, self._headroom)

    def _end_returned_bursts(self) -> bool:
        """After a refill by count: what went back to the peer is not to be looked at any more. Whether something that
        was made of a view of a burst that has ended is still held."""
        boundary, held = self._boundary(), False
        for burst in list(self._open):
            returned = (boundary - burst._first) & _U16
            if not 0 < returned <= self.size:
                break
            burst._sent(max(burst._done, min(returned, len(burst))))
            if returned >= len(burst):
                held = burst._release_all() or held
                burst._ended = True
                self._open.popleft()
        return held

    def _available(self) -> int:
        """Buffers that the peer has published and we have not taken."""
        raise NotImplementedError

    def _snapshot(self, index: int, count: int) -> list[Entry]:
        """Copied and checked descriptors."""
        raise NotImplementedError

    def _refillable(self) -> int:
        raise NotImplementedError

    def _boundary(self) -> int:
        """The index up to which taken buffers have been given back."""
        raise NotImplementedError

    def _give_back(self, count: int, headroom: int) -> None:
        raise NotImplementedError


class MasterRxRing(_RxRing):
    """S2M, read by the master: it takes up to head and gives back by advancing tail. Region and offset stay untouched:
    slaves do not write them again (docs/protocol.md, rule 5). The flag NEXT is cleared: DPDK's client never
    does, and its next packet in that slot would seem to go on."""

    __slots__ = ("_chained", "_returned")

    def __init__(self, memory: RingMemory) -> None:
        super().__init__(memory)
        self._returned = 0
        self._chained = False
        self._reset()

    def _available(self) -> int:
        head = self._header[_HEAD]  # acquire: descriptors are read after this
        if (head - self._returned) & _U16 > self.size:
            raise self._violation(f"head {head} is more than {self.size} descriptors ahead of tail {self._returned}")
        available = (head - self._last) & _U16
        if available > self.size:
            raise self._violation(f"head {head} went back behind {self._last}, which it had reached before")
        return available

    def _snapshot(self, index: int, count: int) -> list[Entry]:
        entries = [_only_next(entry) for entry in self._read(index, count)]
        for position, entry in enumerate(entries):
            self._check_bounds(index + position, entry)
            self._check_length(index + position, entry)
        self._chained = self._chained or any(entry[0] for entry in entries)
        return entries

    def _check_length(self, index: int, entry: Entry) -> None:
        if entry[2] > MAX_RECEIVED_BUFFER:
            raise self._violation(
                f"descriptor {index & self._mask} has {entry[2]} bytes; a buffer has at most {MAX_RECEIVED_BUFFER}"
            )

    def _refillable(self) -> int:
        return (self._last - self._returned) & _U16

    def _boundary(self) -> int:
        return self._returned

    def _give_back(self, count: int, headroom: int) -> None:
        if self._chained:
            for index in range(self._returned, self._returned + count):
                _FLAGS_FIELD.pack_into(self._descriptors, (index & self._mask) * DESCRIPTOR_SIZE, 0)
        self._returned = (self._returned + count) & _U16
        self._chained = self._chained and self._returned != self._last
        self._header[_TAIL] = self._returned  # release: we have read all that we wanted


class SlaveRxRing(_RxRing):
    """M2S, read by the slave: it posts empty buffers by advancing head and takes up to tail."""

    __slots__ = ("_buffers", "_posted")

    def __init__(self, memory: RingMemory, buffers: SlaveBuffers) -> None:
        super().__init__(memory)
        _check_buffers(buffers, self)
        self._buffers = buffers
        self._posted = 0
        _COOKIE.pack_into(self._header.cast("B"), 0, COOKIE)
        self._reset()

    def _room_around(self, index: int, entry: Entry) -> tuple[int, int]:
        return _buffer_bounds(self._buffers, index & self._mask)

    @property
    def capacity(self) -> int:
        return self._buffers.size

    def _available(self) -> int:
        tail = self._header[_TAIL]  # acquire: descriptors are read after this
        available = (tail - self._last) & _U16
        if available > (self._posted - self._last) & _U16:
            raise self._violation(f"tail {tail} is not between {self._last} and head {self._posted}")
        return available

    def _snapshot(self, index: int, count: int) -> list[Entry]:
        """A descriptor must stay inside the buffer that we posted in its slot: the peer may move the data's start
        but not hand us another buffer, which would then be in two slots at once."""
        region, size, offsets = self._buffers.region, self._buffers.size, self._buffers.offsets
        entries = [_only_next(entry) for entry in self._read(index, count)]
        for position, entry in enumerate(entries):
            start = offsets[(index + position) & self._mask]
            _, got_region, length, offset, _ = entry
            if got_region != region or offset < start or offset + length > start + size:
                self._check_bounds(index + position, entry)  # says it more plainly where it can
                raise self._outside(index + position, entry, f"its buffer of {size} bytes at {start}")
        return entries

    def _refillable(self) -> int:
        return self.size - ((self._posted - self._last) & _U16)

    def _boundary(self) -> int:
        return (self._posted - self.size) & _U16

    def _give_back(self, count: int, headroom: int) -> None:
        region, size, offsets = self._buffers.region, self._buffers.size, self._buffers.offsets
        first = self._posted
        # Most masters use the posted length as the room that they have: it is restored each time.
        self._write(
            first,
            [
                (0, region, size - headroom, offsets[index & self._mask] + headroom, 0)
                for index in range(first, first + count)
            ],
        )
        self._posted = (first + count) & _U16
        self._header[_HEAD] = self._posted  # release: the descriptors are written


# --- sending --------------------------------------------------------------------------------------------------------


class _TxRing(_Ring):
    """What both sending sides do. ``_published`` is what the peer sees, ``_next`` where the next allocation starts."""

    __slots__ = ("_ever", "_next", "_published", "_sending")

    def __init__(self, memory: RingMemory) -> None:
        super().__init__(memory)
        self._published = self._next = 0
        #: Buffers published in all.
        self._ever = 0
        #: Python code is being asked for packets to send: it must not use the ring that they are staged for.
        self._sending = False

    @property
    def in_flight(self) -> int:
        raise NotImplementedError

    def free(self) -> int:
        raise NotImplementedError

    def alloc(self, count: int, size: int | None = None) -> _Burst:
        if count < 1 or (size is not None and size < 1):
            raise ConfigError(f"room for {count} packets of {size} bytes; both must be at least 1")
        _check_size("a packet", size or 0)
        self._require_not_sending()
        entries: list[Entry] = []
        free = self.free()
        posted: list[int] = []
        rooms = _noted(self._rooms(free), posted)
        for _ in range(count):
            chain = self._reserve(rooms, size)
            if chain is None:
                self._check_can_ever_fit(size, free - len(entries))
                self._full += 1
                break
            entries += chain
        burst = _Burst(self, self._next, entries, None if self.capacity else posted)
        self._next = (self._next + len(entries)) & _U16
        if entries:
            self._open.append(burst)
        return burst

    def transmit(self, burst: Burst, count: int | None = None) -> int:
        own = _own(burst)
        if not own._ended and own._ring is self and not len(own):
            return 0
        if own._ended or not self._open or self._open[0] is not own:
            raise ConfigError("this burst is not the oldest allocated one that is not sent yet")
        stop = len(own) if count is None else min(own._done + max(count, 0), len(own))
        if stop == len(own) and own._release_all():
            raise _still_exported()
        entries = own._entries[own._done : stop]
        self._publish(entries)
        own._sent(stop)
        if stop == len(own):
            own._ended = True
            self._open.popleft()
        return len(entries)

    def send(self, packets: Iterable[ReadableBuffer], *, chain: bool = True) -> int:
        self._require_nothing_open()
        self._sending = True
        try:
            staged, sent = self._stage(packets, chain)
        finally:
            self._sending = False
        self._publish_staged(staged)
        return sent

    def _stage(self, packets: Iterable[ReadableBuffer], chain: bool) -> tuple[list[Entry], int]:
        """Packets copied into free buffers, not yet published; how many there was room for."""
        free = self.free()
        rooms = self._rooms(free)
        staged: list[Entry] = []
        sent = 0
        for packet in packets:
            data = packet if type(packet) is bytes else _flat(packet, sent)
            size = len(data)
            if not size:
                raise ConfigError(f"packet {sent} is empty")
            _check_size(f"packet {sent}", size)
            reserved = self._reserve(rooms, size)
            if reserved is None:
                self._check_can_ever_fit(size, free - len(staged))
                self._full += 1
                break
            if len(reserved) > 1 and not chain:
                raise ConfigError(
                    f"packet {sent} has {size} bytes, a buffer {reserved[0][2]}, and chains are switched off"
                )
            self._fill(reserved, data)
            staged += reserved
            sent += 1
        return staged, sent

    def send_from(self, matrix: ReadableBuffer, lengths: ReadableBuffer, *, chain: bool = True) -> int:
        rows, sizes = _matrix(matrix, writable=False), _lengths(lengths, writable=False)
        return self.send((_row(rows, sizes, i) for i in range(min(len(rows), len(sizes)))), chain=chain)

    def forward(self, burst: Burst) -> int:
        own = _received(burst)
        self._require_nothing_open()
        free = self.free()
        rooms = self._rooms(free)
        staged: list[Entry] = []
        sent, done = 0, own._done
        for start, stop in own._packet_bounds(unfinished=False):
            if not own._is_dropped(start, stop):
                data = own._joined(start, stop)
                reserved = self._reserve(rooms, len(data))
                if reserved is None:
                    self._full += 1
                    if staged or free < self.size:
                        break
                    rooms = self._rooms(free)  # no room will ever be larger: this packet is dropped
                else:
                    self._fill(reserved, data)
                    staged += reserved
                    sent += stop - start
            done = stop
        self._publish_staged(staged)
        own._sent(done)
        return sent

    def relay(self, source: RxRing, limit: int) -> int:
        if not isinstance(source, _RxRing):
            raise ConfigError(f"{source!r} is not a receive ring of this implementation")
        with source.burst(limit) as burst:
            try:
                return self.forward(burst)
            finally:
                if burst.done < len(burst):
                    source.untake(burst)

    def _fill(self, entries: list[Entry], data: bytes | memoryview) -> None:
        start = 0
        for entry in entries:
            self._view(entry)[:] = data[start : start + entry[2]]
            start += entry[2]

    def _publish_staged(self, entries: list[Entry]) -> None:
        self._next = (self._next + len(entries)) & _U16
        self._publish(entries)

    def enqueue(self, burst: Burst, first: int, count: int) -> _Burst:
        raise ConfigError("a master cannot swap buffers: only the rings of one slave can")

    def rewind(self, burst: Burst, index: int) -> None:
        own = _own(burst)
        position = index + len(own) if index < 0 else index
        if own not in self._open or own._ended or not own._done <= position < len(own):
            raise ConfigError("this buffer is not allocated on this queue, or it is sent already")
        newer = list(self._open)[self._open.index(own) :]
        held = [burst._release_all() for burst in newer]
        if any(held):
            raise _still_exported()
        while self._open[-1] is not own:
            self._open.pop()._ended = True
        del own._entries[position:]
        self._next = (own._first + position) & _U16
        if position == own._done:
            own._ended = True
            self._burst_ended(own)

    def _burst_ended(self, burst: _Burst) -> None:
        # Roll back from the newest: a burst that is given up while a newer one is open waits for that one.
        while self._open and self._open[-1]._ended:
            newest = self._open.pop()
            self._next = (newest._first + newest._done) & _U16

    def _require_nothing_open(self) -> None:
        if self._open:
            raise ConfigError("buffers allocated earlier must be transmitted or given back first")
        self._require_not_sending()

    def _require_not_sending(self) -> None:
        if self._sending:
            raise ConfigError("the packets of a send that has not ended come from code that uses the ring itself")

    def _reserve(self, rooms: Iterator[Entry], size: int | None) -> list[Entry] | None:
        """Descriptors for one packet of ``size`` bytes from the next rooms, None if they do not suffice."""
        chain: list[Entry] = []
        left = size
        for flags, region, room, offset, metadata in rooms:
            if left is None:
                return [(flags, region, room, offset, metadata)]
            length = min(left, room)
            left -= length
            chain.append((_NEXT if left else 0, region, length, offset, metadata))
            if not left:
                return chain
        return None

    def _check_can_ever_fit(self, size: int | None, free: int) -> None:
        """Waiting for room would be for ever: for what a whole free ring did not take, and for what is longer than
        all of a slave's own buffers."""
        if free == self.size or (size or 0) > (self.capacity or (size or 0)) * self.size:
            raise ConfigError(f"a packet of {size} bytes is longer than all {self.size} buffers of the ring together")

    def _publish(self, entries: list[Entry]) -> None:
        if entries:
            self._write(self._published, entries)
            self._published = (self._published + len(entries)) & _U16
            self._ever += len(entries)
            self._publish_index(self._published)
            self._count(entries)

    def _rooms(self, free: int) -> Iterator[Entry]:
        """The ``free`` buffers from ``_next`` on, as descriptors of their whole room."""
        raise NotImplementedError

    def _publish_index(self, index: int) -> None:
        raise NotImplementedError


class SlaveTxRing(_TxRing):
    """S2M, written by the slave: it fills its own buffers and advances head."""

    __slots__ = ("_buffers",)

    def __init__(self, memory: RingMemory, buffers: SlaveBuffers) -> None:
        super().__init__(memory)
        _check_buffers(buffers, self)
        self._buffers = buffers
        _COOKIE.pack_into(self._header.cast("B"), 0, COOKIE)
        self._reset()

    def _room_around(self, index: int, entry: Entry) -> tuple[int, int]:
        return _buffer_bounds(self._buffers, index & self._mask)

    @property
    def capacity(self) -> int:
        return self._buffers.size

    @property
    def in_flight(self) -> int:
        in_flight = (self._published - self._header[_TAIL]) & _U16
        return in_flight if in_flight <= self.size else 0  # a violation, which the next send reports

    def free(self) -> int:
        tail = self._header[_TAIL]  # acquire: buffers are written after this
        in_flight = (self._published - tail) & _U16
        if in_flight > self.size:
            raise self._violation(f"tail {tail} is more than {self.size} away from head {self._published}")
        free = self.size - in_flight - ((self._next - self._published) & _U16)
        if free < 0:
            raise self._violation(f"tail {tail} went back: buffers that it had returned are allocated")
        return free

    def forward(self, burst: Burst) -> int:
        own = _received(burst)
        if not _are_siblings(own._ring, self):
            return super().forward(own)
        self._require_nothing_open()
        room, done = self.free(), own._done
        positions: list[int] = []
        for start, stop in own._packet_bounds(unfinished=False):
            if not own._is_dropped(start, stop):
                if len(positions) + stop - start > room:
                    self._full += 1
                    break
                positions += range(start, stop)
            done = stop
        own._release_views(done)  # before the swap: these buffers are about to be the peer's
        for number, position in enumerate(positions):
            _exchange_buffers(own._ring, own._first + position, self, self._published + number)
        self._publish_staged([_clean(own._entries[position]) for position in positions])
        own._done = done
        return len(positions)

    def enqueue(self, burst: Burst, first: int, count: int) -> _Burst:
        own = _received(burst)
        if not _are_siblings(own._ring, self):
            raise ConfigError("the burst was not received on a ring of the same slave")
        if count < 0 or not own._done <= first <= len(own):
            raise ConfigError(f"{count} buffers from {first} on, of a burst of {len(own)} with {own._done} sent")
        self._require_not_sending()
        wanted = min(count, len(own) - first)
        count = min(wanted, self.free())
        self._full += count < wanted
        entries = [_clean(entry) for entry in own._entries[first : first + count]]
        for position in range(count):  # before the first swap: a view that cannot be ended stops it all
            own._drop_view(first + position)
        own._changed = own._changed or count > 0
        for position in range(count):
            _exchange_buffers(own._ring, own._first + first + position, self, self._next + position)
            slot = (own._first + first + position) & own._ring._mask
            free_buffer = _slave_buffers(own._ring).offsets[slot]
            own._entries[first + position] = (0, self._buffers.region, self._buffers.size, free_buffer, 0)
        swapped = _Burst(self, self._next, entries)
        self._next = (self._next + count) & _U16
        if entries:
            self._open.append(swapped)
        return swapped

    def _rooms(self, free: int) -> Iterator[Entry]:
        region, size, offsets = self._buffers.region, self._buffers.size, self._buffers.offsets
        for index in range(self._next, self._next + free):
            yield 0, region, size, offsets[index & self._mask], 0

    def _publish_index(self, index: int) -> None:
        self._header[_HEAD] = index  # release: data and descriptors are written


class MasterTxRing(_TxRing):
    """M2S, written by the master: it takes the buffers that the slave posted, fills them and advances tail.

    The room in a buffer is the posted ``length``; region and offset go back as they came.
    """

    __slots__ = ()

    #: Posted descriptors that are copied at a time: a short burst need not copy a long ring.
    _CHUNK = 64

    def __init__(self, memory: RingMemory) -> None:
        super().__init__(memory)
        self._reset()

    @property
    def in_flight(self) -> int:
        posted = (self._header[_HEAD] - self._published) & _U16
        return min(max(self.size - posted, 0), self._ever)  # what was never posted is nothing that was sent

    def free(self) -> int:
        head = self._header[_HEAD]  # acquire: posted descriptors are read after this
        if (head - self._published) & _U16 > self.size:
            raise self._violation(f"head {head} is more than {self.size} descriptors ahead of tail {self._published}")
        free = (head - self._next) & _U16
        if free > self.size:
            raise self._violation(f"head {head} went back behind {self._next}, which it had reached before")
        return free

    def _rooms(self, free: int) -> Iterator[Entry]:
        index = self._next
        while free:
            count = min(free, self._CHUNK)
            for position, entry in enumerate(list(self._read(index, count))):
                self._check_bounds(index + position, entry)
                _, region, room, offset, metadata = entry
                if not room:
                    raise self._violation(f"posted descriptor {(index + position) & self._mask} has no room")
                yield 0, region, room, offset, metadata
            index += count
            free -= count

    def _publish_index(self, index: int) -> None:
        self._header[_TAIL] = index  # release: data, lengths and flags are written


# --- what a module exports ------------------------------------------------------------------------------------------


def slave_rx(memory: RingMemory, buffers: SlaveBuffers) -> SlaveRxRing:
    return SlaveRxRing(memory, buffers)


def slave_tx(memory: RingMemory, buffers: SlaveBuffers) -> SlaveTxRing:
    return SlaveTxRing(memory, buffers)


def master_rx(memory: RingMemory) -> MasterRxRing:
    return MasterRxRing(memory)


def master_tx(memory: RingMemory) -> MasterTxRing:
    return MasterTxRing(memory)


def check_cookie(memory: RingMemory) -> None:
    """:raises RingViolation: ``COOKIE`` if there is no ring."""
    (cookie,) = _COOKIE.unpack_from(memory.regions[memory.region], memory.offset)
    if cookie != COOKIE:
        raise RingViolation(f"{memory.name}: the header's cookie is {cookie:#x}, not {COOKIE:#x}", ErrorCode.COOKIE)


def exchange(burst_a: Burst, index_a: int, burst_b: Burst, index_b: int) -> None:
    """Swap two buffers of one slave's rings, received or allocated, between their slots.

    :raises ConfigError: the rings are not of one slave.
    """
    a, b = _own(burst_a), _own(burst_b)
    if not _are_siblings(a._ring, b._ring):
        raise ConfigError("buffers can be exchanged only between the rings of one slave")
    at_a, at_b = a._position(index_a), b._position(index_b)
    a._drop_view(at_a)
    b._drop_view(at_b)
    _exchange_buffers(a._ring, a._first + at_a, b._ring, b._first + at_b)
    a._changed = b._changed = True
    entry = a._entries[at_a]
    a._arrive(at_a, b._entries[at_b])
    b._arrive(at_b, entry)


def _exchange_buffers(ring_a: _Ring, index_a: int, ring_b: _Ring, index_b: int) -> None:
    """Swap, in our own record, the buffers of two slots."""
    a, b = _slave_buffers(ring_a).offsets, _slave_buffers(ring_b).offsets
    slot_a, slot_b = index_a & ring_a._mask, index_b & ring_b._mask
    a[slot_a], b[slot_b] = b[slot_b], a[slot_a]


def _check_buffers(buffers: SlaveBuffers, ring: _Ring) -> None:
    """Once: from here on they are only permuted."""
    if len(buffers.offsets) != ring.size or buffers.region >= len(ring._regions) or not buffers.size:
        raise ConfigError(f"{ring.size} slots need {ring.size} offsets of buffers in a region that exists")
    for slot, offset in enumerate(buffers.offsets):
        if offset + buffers.size > len(ring._regions[buffers.region]):
            raise ConfigError(f"the buffer of slot {slot} lies outside its region")


def _slave_buffers(ring: _Ring) -> SlaveBuffers:
    assert isinstance(ring, SlaveRxRing | SlaveTxRing)
    return ring._buffers


def _buffer_bounds(buffers: SlaveBuffers, slot: int) -> tuple[int, int]:
    start = buffers.offsets[slot]
    return start, start + buffers.size


def _own(burst: Burst) -> _Burst:
    if not isinstance(burst, _Burst):
        raise ConfigError(f"{burst!r} is not a burst of this ring implementation")
    return burst


def _received(burst: Burst) -> _Burst:
    own = _own(burst)
    if not isinstance(own._ring, _RxRing):
        raise ConfigError("only a received burst can be forwarded: transmit an allocated one")
    if own._ended:
        raise own._ring._ended(ConfigError)
    return own


def _are_siblings(a: _Ring, b: _Ring) -> bool:
    """Whether both are rings of one slave, and a buffer of one fits into a slot of the other."""
    if not (isinstance(a, SlaveRxRing | SlaveTxRing) and isinstance(b, SlaveRxRing | SlaveTxRing)):
        return False
    same_buffers = a._buffers.region == b._buffers.region and a._buffers.size == b._buffers.size
    # By identity: memoryviews compare by their content.
    same_memory = len(a._regions) == len(b._regions) and all(map(operator.is_, a._regions, b._regions))
    return same_buffers and same_memory


def _flat(packet: ReadableBuffer, number: int) -> bytes | memoryview:
    """The bytes of one of the caller's packets."""
    try:
        view = memoryview(packet)
    except TypeError as error:
        raise not_a_packet(number, packet) from error
    if not view.c_contiguous:
        raise ConfigError(f"packet {number} is not contiguous")
    return view if view.ndim == 1 and view.format == "B" else view.tobytes()


def _matrix(matrix: ReadableBuffer, *, writable: bool) -> list[memoryview]:
    """The rows of a 2-D buffer of bytes."""
    view = _in_place(matrix, "the matrix", writable)
    if view.ndim != 2 or view.itemsize != 1 or not view[:1].c_contiguous:
        raise ConfigError("the matrix must be a 2-D buffer of bytes with contiguous rows")
    if not view.nbytes:  # memoryview casts nothing that is empty
        return [memoryview(b"")] * len(view)
    # Rows may lie apart from each other, as those of a slice do.
    return [view[index : index + 1].cast("B") for index in range(len(view))]


def _lengths(lengths: ReadableBuffer, *, writable: bool) -> memoryview:
    view = _in_place(lengths, "lengths", writable)
    if view.ndim != 1 or view.format.lstrip("@") not in tuple("hHiIlLqQnN") or view.itemsize not in (2, 4, 8):
        raise ConfigError("lengths must be a 1-D buffer of whole numbers of 2, 4 or 8 bytes")
    return view


def _noted(rooms: Iterator[Entry], sizes: list[int]) -> Iterator[Entry]:
    """The same rooms; the size of each that is taken is appended to ``sizes``."""
    for room in rooms:
        sizes.append(room[2])
        yield room


@functools.cache
def _area_type(size: int) -> type[ctypes.Array[ctypes.c_char]]:
    return ctypes.c_char * size


def _still_exported() -> BufferError:
    return BufferError(
        "a view of this burst is still exported and its buffer goes back to the peer: copy what must outlive "
        "the burst, and drop the rest (slices, casts, NumPy arrays) before it ends"
    )


def _check_size(what: str, size: int) -> None:
    if size > MAX_PACKET_SIZE:
        raise ConfigError(f"{what} of {size} bytes; a packet has at most {MAX_PACKET_SIZE}")


def _in_place(owner: ReadableBuffer, what: str, writable: bool) -> memoryview:
    view = memoryview(owner)
    if writable and view.readonly:
        raise ConfigError(f"{what} cannot be written in place")
    return view


def _row(rows: list[memoryview], lengths: memoryview, index: int) -> memoryview:
    if not 0 <= lengths[index] <= len(rows[index]):
        raise ConfigError(f"packet {index} has {lengths[index]} bytes, a row only {len(rows[index])}")
    return rows[index][: lengths[index]]


def _only_next(entry: Entry) -> Entry:
    flags, region, length, offset, metadata = entry
    return flags & _NEXT, region, length, offset, metadata


def _clean(entry: Entry) -> Entry:
    """A received descriptor as we send it: nothing of the peer's but where the data is."""
    flags, region, length, offset, _ = entry
    return flags & _NEXT, region, length, offset, 0
