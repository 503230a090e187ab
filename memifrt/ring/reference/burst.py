"""A burst: buffers of one ring, as checked copies of their descriptors.

The twin of ``_native_burst.pxi``. It owns the views that a burst hands out and how they end. It never reads or writes a
descriptor in shared memory; the part of its ring that it needs is :class:`BurstRing`.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from memifrt.errors import ConfigError
from memifrt.renamed import warn_renamed
from memifrt.ring.protocol import SlaveBuffers
from memifrt.ring.reference.descriptor import DROPPED, NEXT, Entry, Regions, clean
from memifrt.system.not_copied import NotCopied
from memifrt.types import BufferFlag

if TYPE_CHECKING:
    from typing_extensions import Self

    from memifrt.types import ReadableBuffer


class BurstRing(Protocol):
    """The part of its ring that a burst needs."""

    mask: int
    regions: Regions
    buffers: SlaveBuffers | None

    @property
    def is_tx(self) -> bool:
        """Whether this is a ring to send on."""
        raise NotImplementedError

    def buffer_bounds(self, index: int, entry: Entry) -> tuple[int, int]:
        """Return the start and the end of the memory inside which the data of a buffer may move."""
        raise NotImplementedError

    def burst_ended(self) -> None:
        """Take back the buffers of bursts that have ended."""
        raise NotImplementedError

    def ended_error(self, kind: type[ValueError]) -> Exception:
        """Return the error for a use of a burst that has ended."""
        raise NotImplementedError


class RingBurst(NotCopied):
    """A run of buffers of one ring, as copied descriptors. A view is made when it is first asked for."""

    __slots__ = (
        "_exporters",
        "_views",
        "_wholes",
        "changed",
        "ended",
        "entries",
        "first",
        "posted_lengths",
        "ring",
        "sent",
    )

    def __init__(
        self, ring: BurstRing, first: int, entries: list[Entry], posted_lengths: list[int] | None = None
    ) -> None:
        self.ring = ring
        #: The ring's index of the first buffer.
        self.first = first
        self.entries = entries
        #: On a master's transmit ring: the lengths that the peer posted, which are the room in each buffer.
        self.posted_lengths = posted_lengths
        #: Buffers from the front that have been sent.
        self.sent = 0
        #: Whether the burst is over: its buffers can no longer be used.
        self.ended = False
        #: Whether a buffer has been trimmed or swapped since it was received: it cannot be put back then.
        self.changed = False
        self._views: dict[int, memoryview] = {}
        #: For each region in use: our view of the whole region, and its exporter, which outlives our views if a derived
        #: view is still held.
        self._wholes: dict[int, memoryview] = {}
        self._exporters: list[weakref.ref[ctypes.Array[ctypes.c_char]]] = []

    def __len__(self) -> int:
        return len(self.entries) - self.sent

    def __getitem__(self, index: int) -> memoryview:
        position = self.position(index)
        return self._views.get(position) or self.view(position)

    def __iter__(self) -> Iterator[memoryview]:
        yield from map(self.view_if_left, range(self.sent, len(self.entries)))

    def packets(self) -> Iterator[Packet]:
        for start, stop in self.packet_bounds():
            for position in range(start, stop):
                self.check_left(position)
            yield Packet(self, start, stop)

    def length(self, index: int) -> int:
        return self.entries[self.position(index)][2]

    def flags(self, index: int) -> BufferFlag:
        return BufferFlag(self.entries[self.position(index)][0] & NEXT)

    def slot(self, index: int) -> int:
        return (self.first + self.position(index)) & self.ring.mask

    def pack_into(self, target: ReadableBuffer, stamp: bytes, limit: int, first: int = 0) -> tuple[int, int]:
        into = memoryview(target)
        if into.readonly or not into.c_contiguous:
            raise ConfigError("the target cannot be written in place")
        into = into.cast("B")
        if self.ended:
            raise self.ring.ended_error(ValueError)
        used, before = 0, self.sent
        for start, stop in self.packet_bounds():
            if start - before < first:
                continue
            data = self.joined(start, stop)
            copied = data[:limit]
            record = b"".join((stamp, len(copied).to_bytes(4, "little"), len(data).to_bytes(4, "little"), copied))
            if used + len(record) > len(into):
                return start - before, used
            into[used : used + len(record)] = record
            used += len(record)
        return len(self), used

    @property
    def done(self) -> int:
        warn_renamed("burst.done", "0: len(burst) and indices count the buffers that are left, burst.sent the others")
        return 0

    def set_length(self, index: int, length: int) -> None:
        self.trim(index, 0, length)

    def advance(self, index: int, count: int) -> None:
        self.trim(index, count, self.length(index) - count)

    def set_flags(self, index: int, flags: int) -> None:
        position = self.position(index)
        present, region, length, offset, metadata = self.entries[position]
        if flags == present & NEXT:
            return
        if not self.ring.is_tx:
            raise ConfigError(
                "only the flags of an allocated buffer can be set: those of a received one are the peer's"
            )
        if flags not in (0, NEXT):
            raise ConfigError(f"the flags are {flags!r}; they must be {NEXT} (the packet goes on) or 0")
        self.entries[position] = (int(flags), region, length, offset, metadata)

    def drop(self, index: int) -> None:
        self.drop_at(self.position(index))

    def drop_at(self, position: int) -> None:
        """Leave out the packet that the buffer at a position belongs to."""
        self.check_left(position)
        if self.ring.is_tx:
            raise ConfigError("only a received packet can be dropped: an allocated one is not transmitted, or rewound")
        flags, region, length, offset, metadata = self.entries[position]
        self.entries[position] = (flags | DROPPED, region, length, offset, metadata)

    def close(self) -> None:
        if self.ended:
            return
        held = self.release_all()
        self.ended = True
        self.ring.burst_ended()
        if held:
            raise still_exported()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except BufferError:
            if error is None:  # otherwise the frames of that error hold the view: the user must see that error
                raise

    def __repr__(self) -> str:
        return f"<burst of {len(self)} buffers{', ended' * self.ended}>"

    def view(self, position: int) -> memoryview:
        """Return the view of a buffer, a new one if there is none yet."""
        view = self._views.get(position)
        if view is None:
            _, region, length, offset, _ = self.entries[position]
            whole = self._wholes.get(region) or self.whole(region)
            view = self._views[position] = whole[offset : offset + length]
        return view

    def view_if_left(self, position: int) -> memoryview:
        """Return the view of a buffer, if it may still be used."""
        self.check_left(position)
        return self.view(position)

    def whole(self, region: int) -> memoryview:
        """Return a new view of a whole region. The burst makes its views of single buffers from it.

        A slice or a cast of a view does not keep the view from being released. It does keep the exporter of the memory
        alive. Each burst has an exporter of its own for a region, so an exporter that outlives our views shows that
        somebody still holds a derived view.
        """
        exporter = self.ring.regions.export(region)
        self._exporters.append(weakref.ref(exporter))
        whole = self._wholes[region] = memoryview(exporter).cast("B")
        return whole

    def position(self, index: int) -> int:
        """Return the position of a buffer in ``entries``.

        Indices start at the first buffer that is not sent. Negative ones count from the end.
        """
        if self.ended:
            raise self.ring.ended_error(ValueError)
        wanted = index + len(self) if index < 0 else index
        if not 0 <= wanted < len(self):
            raise IndexError(f"buffer {index} of a burst of {len(self)}{f', after {self.sent} sent' * bool(self.sent)}")
        return self.sent + wanted

    def check_left(self, position: int) -> None:
        """Check that the buffer at a position may still be used."""
        if self.ended:
            raise self.ring.ended_error(ValueError)
        if position < self.sent:
            raise ValueError("this buffer has been sent: it belongs to the peer")
        if position >= len(self.entries):
            raise IndexError("this buffer has been given back")

    def packet_bounds(self, *, unfinished: bool = True) -> Iterator[tuple[int, int]]:
        """Yield start and stop of each packet that is not sent yet.

        :param unfinished: whether to yield a last packet that the burst cuts off (``split``).
        """
        start = self.sent
        for index in range(start, len(self.entries)):
            if not self.entries[index][0] & NEXT:
                yield start, index + 1
                start = index + 1
        if start < len(self.entries) and unfinished:
            yield start, len(self.entries)

    def joined(self, start: int, stop: int) -> bytes | memoryview:
        """Return the data of the packet in these buffers."""
        at = self.ring.regions.at
        if stop == start + 1:
            return at(self.entries[start])
        return b"".join([at(entry) for entry in self.entries[start:stop]])

    def trim(self, index: int, count: int, length: int) -> None:
        """Move the start of a buffer's data by ``count`` bytes, and make the data ``length`` bytes long."""
        position = self.position(index)
        entry = self.entries[position]
        flags, region, present, offset, metadata = entry
        start, stop = self.ring.buffer_bounds(self.first + position, entry)
        if self.posted_lengths is not None:
            stop = offset + self.posted_lengths[position]
        if not (start <= offset + count and 0 < length <= stop - offset - count):
            raise ConfigError(
                f"buffer {index} has {present} bytes of data, room for {offset - start} before and "
                f"{stop - offset - present} behind them: they cannot start {count} bytes further and be {length} long"
            )
        if count and self.ring.is_tx and self.ring.buffers is None:
            raise ConfigError("a master sends from the start of a buffer: only a slave moves data inside it")
        self.release_view(position)
        self.changed = True
        self.entries[position] = (flags, region, length, offset + count, metadata)

    def replace_entry(self, position: int, entry: Entry) -> None:
        """Take over a buffer that comes from another slot."""
        self.entries[position] = clean(entry) if self.ring.is_tx else entry

    def release_view(self, position: int) -> None:
        """End the view of one buffer.

        :raises BufferError: something still uses it.
        """
        view = self._views.get(position)
        if view is not None:
            view.release()
            del self._views[position]

    def release_views(self, stop: int) -> bool:
        """End the views of the buffers before ``stop``, as far as possible; return whether one is still in use."""
        held = False
        for position in [position for position in self._views if position < stop]:
            try:
                self.release_view(position)
            except BufferError:  # close() tries this one again
                held = True
        return held

    def release_all(self) -> bool:
        """End all views; return whether something that was made of one is still held."""
        held = self.release_views(len(self.entries))
        for region in list(self._wholes):
            self._wholes.pop(region).release()
        return held or any(exporter() is not None for exporter in self._exporters)

    def mark_sent(self, sent: int) -> None:
        """Count the buffers before ``sent`` as sent, and end their views."""
        self.sent = sent
        self.release_views(sent)


class Packet:
    """A whole packet of a burst: where it starts and stops. The views are the burst's."""

    __slots__ = ("_burst", "_start", "_stop")

    def __init__(self, burst: RingBurst, start: int, stop: int) -> None:
        self._burst = burst
        self._start = start
        self._stop = stop

    @property
    def views(self) -> tuple[memoryview, ...]:
        return tuple(map(self._burst.view_if_left, range(self._start, self._stop)))

    def __buffer__(self, flags: int, /) -> memoryview:
        """Return the view of the packet's only buffer. Python calls this from 3.12 on."""
        self._burst.check_left(self._start)
        if self._stop != self._start + 1:
            raise in_several(self._stop - self._start)
        return self._burst.view(self._start)

    def __bytes__(self) -> bytes:
        self._burst.check_left(self._start)
        return bytes(self._burst.joined(self._start, self._stop))

    def __len__(self) -> int:
        self._burst.check_left(self._start)
        return sum(entry[2] for entry in self._burst.entries[self._start : self._stop])

    def drop(self) -> None:
        self._burst.drop_at(self._start)

    def __iter__(self) -> Iterator[memoryview]:
        warn_renamed("iterating over a packet", "iterating over packet.views")
        return iter(self.views)

    def __getitem__(self, index: int) -> memoryview:
        warn_renamed("packet[i]", "packet.views[i]")
        return self.views[index]

    def __repr__(self) -> str:
        return f"<packet in {self._stop - self._start} buffers>"


def in_several(buffers: int) -> BufferError:
    return BufferError(f"the packet lies in {buffers} buffers: take packet.views, or bytes(packet) for a copy")


def is_dropped(entries: list[Entry], start: int, stop: int) -> bool:
    """Return whether the packet in these buffers has been dropped."""
    return any(entry[0] & DROPPED for entry in entries[start:stop])


def own_burst(burst: object) -> RingBurst:
    """Return ``burst`` if this implementation made it.

    :raises ConfigError: it did not.
    """
    if not isinstance(burst, RingBurst):
        raise ConfigError(f"{burst!r} is not a burst of this ring implementation")
    return burst


def received_burst(burst: object) -> RingBurst:
    """Return ``burst`` if it was received and has not ended.

    :raises ConfigError: it was not, or has ended.
    """
    own = own_burst(burst)
    if own.ring.is_tx:
        raise ConfigError("only a received burst can be forwarded: transmit an allocated one")
    if own.ended:
        raise own.ring.ended_error(ConfigError)
    return own


def still_exported() -> BufferError:
    return BufferError(
        "a view of this burst is still exported and its buffer goes back to the peer: copy what must outlive "
        "the burst, and drop the rest (slices, casts, NumPy arrays) before it ends"
    )
