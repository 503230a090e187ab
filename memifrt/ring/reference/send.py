"""The two rings to send on: allocate free buffers, fill them, publish their descriptors.

The twin of ``_native_send.pxi``. Read docs/memory-order.md before you change the order of two accesses of shared
memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from memifrt.errors import ConfigError
from memifrt.options import check_limit
from memifrt.ring.protocol import Burst, RingMemory, RxRing, SlaveBuffers
from memifrt.ring.reference.burst import RingBurst, is_dropped, own_burst, received_burst, still_exported
from memifrt.ring.reference.descriptor import HEAD, NEXT, TAIL, U16, Entry, clean
from memifrt.ring.reference.receive import receive_ring
from memifrt.ring.reference.ring import RingBase, are_siblings, slave_buffers, swap
from memifrt.ring.reference.vectors import check_lengths, matrix_rows, packet_bytes, row_to_send
from memifrt.types import MAX_PACKET_SIZE

if TYPE_CHECKING:
    from memifrt.types import ReadableBuffer


class TxRingBase(RingBase):
    """What both sending sides do."""

    __slots__ = ("allocated", "published", "published_total", "sending")

    is_tx = True

    def __init__(self, memory: RingMemory) -> None:
        super().__init__(memory)
        #: The index of the next buffer to publish, and the index of the next buffer to allocate.
        self.published = self.allocated = 0
        #: Buffers published since the ring was made.
        self.published_total = 0
        #: Whether ``send`` asks Python code for packets. That code must not use the ring that they are staged for.
        self.sending = False

    @property
    def in_flight(self) -> int:
        raise NotImplementedError

    def free(self) -> int:
        return self.room()

    def alloc(self, count: int, size: int | None = None) -> RingBurst:
        if count < 1 or (size is not None and size < 1):
            raise ConfigError(f"room for {count} packets of {size} bytes; both must be at least 1")
        if (size or 0) > MAX_PACKET_SIZE:
            raise ConfigError(f"a packet of {size} bytes; a packet has at most {MAX_PACKET_SIZE}")
        self.require_not_sending()
        entries: list[Entry] = []
        room = self.room()
        posted_lengths: list[int] = []
        rooms = _noting_lengths(self.rooms(room), posted_lengths)
        for _ in range(count):
            chain = self.reserve(rooms, size)
            if chain is None:
                self.check_can_ever_fit(size, room - len(entries))
                self.ring_full += 1
                break
            entries += chain
        burst = RingBurst(self, self.allocated, entries, posted_lengths if self.buffers is None else None)
        self.allocated = (self.allocated + len(entries)) & U16
        if entries:
            self.open.append(burst)
        return burst

    def transmit(self, burst: Burst, count: int | None = None) -> int:
        own = own_burst(burst)
        if not own.ended and own.ring is self and not own.entries:
            return 0
        if own.ended or not self.open or self.open[0] is not own:
            raise ConfigError("this burst is not the oldest allocated one that is not sent yet")
        total = len(own.entries)
        stop = total if count is None else min(own.sent + max(count, 0), total)
        if stop == total and own.release_all():
            raise still_exported()
        entries = own.entries[own.sent : stop]
        self.publish(entries)
        own.mark_sent(stop)
        if stop == total:
            own.ended = True
            self.open.popleft()
        return len(entries)

    def send(self, packets: Iterable[ReadableBuffer], *, chain: bool = True) -> int:
        self.require_nothing_open()
        room = self.room()
        rooms = self.rooms(room)
        staged: list[Entry] = []
        sent = 0
        self.sending = True
        try:
            for packet in packets:
                data = packet if type(packet) is bytes else packet_bytes(packet, sent)
                entries = self.put(rooms, room - len(staged), data, chain, sent)
                if entries is None:
                    self.ring_full += 1
                    break
                staged += entries
                sent += 1
        finally:
            self.sending = False
        self.publish_staged(staged)
        return sent

    def send_from(self, matrix: ReadableBuffer, lengths: ReadableBuffer, *, chain: bool = True) -> int:
        rows, sizes = matrix_rows(matrix, writable=False), check_lengths(lengths, writable=False)
        return self.send((row_to_send(rows, sizes, i) for i in range(min(len(rows), len(sizes)))), chain=chain)

    def forward(self, burst: Burst) -> int:
        return self.copy_forward(received_burst(burst))

    def relay(self, source: RxRing, limit: int) -> int:
        ring, limit = receive_ring(source), check_limit(limit)
        if self.open or self.sending:
            ring.more |= ring.available() > 0
            self.require_nothing_open()
        with ring.burst(limit) as burst:
            if not len(burst):
                return 0
            try:
                return self.forward(burst)
            finally:
                if len(burst):
                    ring.untake(burst)

    def enqueue(self, burst: Burst, first: int, count: int) -> RingBurst:
        raise ConfigError("a master cannot swap buffers: only the rings of one slave can")

    def rewind(self, burst: Burst, index: int) -> None:
        own = own_burst(burst)
        position = index + (len(own.entries) if index < 0 else own.sent)
        if own not in self.open or own.ended or not own.sent <= position < len(own.entries):
            raise ConfigError("this buffer is not allocated on this queue, or it is sent already")
        newer = list(self.open)[self.open.index(own) :]
        held = [burst.release_all() for burst in newer]
        if any(held):
            raise still_exported()
        while self.open[-1] is not own:
            self.open.pop().ended = True
        del own.entries[position:]
        self.allocated = (own.first + position) & U16
        if position == own.sent:
            own.ended = True
            self.burst_ended()

    def copy_forward(self, own: RingBurst) -> int:
        """Copy the packets of a received burst that are not sent yet into free buffers, and publish them; return how
        many buffers were sent."""
        self.require_nothing_open()
        room = self.room()
        rooms = self.rooms(room)
        staged: list[Entry] = []
        sent, consumed = 0, own.sent
        for start, stop in own.packet_bounds(unfinished=False):
            if not is_dropped(own.entries, start, stop):
                data = own.joined(start, stop)
                reserved = self.reserve(rooms, len(data))
                if reserved is None:
                    self.ring_full += 1
                    if staged or room < self.size:
                        break
                    rooms = self.rooms(room)  # the whole ring is too small for this packet: it is dropped
                else:
                    self.fill(reserved, data)
                    staged += reserved
                    sent += stop - start
            consumed = stop
        self.publish_staged(staged)
        own.mark_sent(consumed)
        return sent

    def burst_ended(self) -> None:
        """Take back what ended bursts had allocated, from the newest on: a burst that ends while a newer one is open
        waits for that one."""
        while self.open and self.open[-1].ended:
            newest = self.open.pop()
            self.allocated = (newest.first + newest.sent) & U16

    def require_nothing_open(self) -> None:
        """Raise ConfigError if allocated buffers are not sent yet, or a ``send`` is under way."""
        if self.open:
            raise ConfigError("buffers allocated earlier must be transmitted or given back first")
        self.require_not_sending()

    def require_not_sending(self) -> None:
        """Raise ConfigError if a ``send`` on this ring is under way."""
        if self.sending:
            raise ConfigError("a send is not finished: the iterator of its packets must not use the ring")

    def check_can_ever_fit(self, size: int | None, room: int) -> None:
        """Check that waiting for room can help a packet that has just not fitted.

        :param room: the buffers that were free for it.
        :raises ConfigError: the whole ring was free, or the packet is longer than all of a slave's buffers together.
        """
        if room == self.size or (size or 0) > (self.capacity or (size or 0)) * self.size:
            raise ConfigError(f"a packet of {size} bytes is longer than all {self.size} buffers of the ring together")

    def rooms(self, room: int) -> Iterator[Entry]:
        """Yield a checked descriptor for each of the next ``room`` free buffers.

        Its length is all the room in the buffer.
        """
        raise NotImplementedError

    def reserve(self, rooms: Iterator[Entry], size: int | None) -> list[Entry] | None:
        """Return descriptors for one packet of ``size`` bytes (None: one whole buffer); None if the room does not
        suffice."""
        chain: list[Entry] = []
        left = size
        for flags, region, room, offset, metadata in rooms:
            if left is None:
                return [(flags, region, room, offset, metadata)]
            length = min(left, room)
            left -= length
            chain.append((NEXT if left else 0, region, length, offset, metadata))
            if not left:
                return chain
        return None

    def put(
        self, rooms: Iterator[Entry], room: int, data: bytes | memoryview, chain: bool, number: int
    ) -> list[Entry] | None:
        """Copy one of the caller's packets into free buffers; return their descriptors, None if it does not fit."""
        size = len(data)
        if not size:
            raise ConfigError(f"packet {number} is empty")
        if size > MAX_PACKET_SIZE:
            raise ConfigError(f"packet {number} of {size} bytes; a packet has at most {MAX_PACKET_SIZE}")
        reserved = self.reserve(rooms, size)
        if reserved is None:
            self.check_can_ever_fit(size, room)
            return None
        if len(reserved) > 1 and not chain:
            raise ConfigError(
                f"packet {number} has {size} bytes, a buffer {reserved[0][2]}, and chains are switched off"
            )
        self.fill(reserved, data)
        return reserved

    def fill(self, entries: list[Entry], data: bytes | memoryview) -> None:
        """Copy data into reserved buffers."""
        at, start = self.regions.at, 0
        for entry in entries:
            at(entry)[:] = data[start : start + entry[2]]
            start += entry[2]

    def publish_staged(self, entries: list[Entry]) -> None:
        """Allocate and publish descriptors in one step."""
        self.allocated = (self.allocated + len(entries)) & U16
        self.publish(entries)

    def publish(self, entries: list[Entry]) -> None:
        """Write descriptors into the ring, then move the index that shows them to the peer."""
        if entries:
            self.write(entries, self.published)
            self.published = (self.published + len(entries)) & U16
            self.published_total += len(entries)
            self.publish_index(self.published)
            self.tally(entries)

    def room(self) -> int:
        """Return how many buffers could be allocated now."""
        raise NotImplementedError

    def publish_index(self, index: int) -> None:
        """Store our index of the ring, after everything that it publishes."""
        raise NotImplementedError


class SlaveTxRing(TxRingBase):
    """S2M, written by the slave: it fills its own buffers and advances head."""

    __slots__ = ()

    def __init__(self, memory: RingMemory, buffers: SlaveBuffers) -> None:
        super().__init__(memory)
        self.take_buffers(buffers)

    @property
    def in_flight(self) -> int:
        in_flight = (self.published - self._header[TAIL]) & U16  # A5
        return in_flight if in_flight <= self.size else 0  # the next send reports the violation

    def room(self) -> int:
        tail = self._header[TAIL]  # acquire: memory-order.md, A3
        in_flight = (self.published - tail) & U16
        if in_flight > self.size:
            raise self.violation(f"tail {tail} is more than {self.size} away from head {self.published}")
        free = self.size - in_flight - ((self.allocated - self.published) & U16)
        if free < 0:
            raise self.violation(f"tail {tail} went back: buffers that it had returned are allocated")
        return free

    def forward(self, burst: Burst) -> int:
        own = received_burst(burst)
        if not are_siblings(own.ring, self):
            return self.copy_forward(own)
        self.require_nothing_open()
        theirs, ours = slave_buffers(own.ring), slave_buffers(self)
        room, consumed = self.room(), own.sent
        positions: list[int] = []
        for start, stop in own.packet_bounds(unfinished=False):
            if not is_dropped(own.entries, start, stop):
                if len(positions) + stop - start > room:
                    self.ring_full += 1
                    break
                positions += range(start, stop)
            consumed = stop
        own.release_views(consumed)  # before the swap: the peer is about to get these buffers
        for number, position in enumerate(positions):
            swap(theirs, (own.first + position) & own.ring.mask, ours, (self.published + number) & self.mask)
        self.publish_staged([clean(own.entries[position]) for position in positions])
        own.sent = consumed
        return len(positions)

    def enqueue(self, burst: Burst, first: int, count: int) -> RingBurst:
        own = received_burst(burst)
        if not are_siblings(own.ring, self):
            raise ConfigError("the burst was not received on a ring of the same slave")
        if count < 0 or not 0 <= first <= len(own):
            raise ConfigError(f"{count} buffers from {first} on, of a burst of {len(own)}")
        self.require_not_sending()
        theirs, ours = slave_buffers(own.ring), slave_buffers(self)
        wanted = min(count, len(own) - first)
        count = min(wanted, self.room())
        self.ring_full += count < wanted
        begin = own.sent + first
        entries = [clean(entry) for entry in own.entries[begin : begin + count]]
        for position in range(begin, begin + count):  # before the first swap: a view that is in use stops it all
            own.release_view(position)
        own.changed = own.changed or count > 0
        for number in range(count):
            slot = (own.first + begin + number) & own.ring.mask
            swap(theirs, slot, ours, (self.allocated + number) & self.mask)
            own.entries[begin + number] = (0, theirs.region, theirs.size, theirs.offsets[slot], 0)
        swapped = RingBurst(self, self.allocated, entries)
        self.allocated = (self.allocated + count) & U16
        if entries:
            self.open.append(swapped)
        return swapped

    def rooms(self, room: int) -> Iterator[Entry]:
        buffers = slave_buffers(self)
        region, size, offsets = buffers.region, buffers.size, buffers.offsets
        for index in range(self.allocated, self.allocated + room):
            yield 0, region, size, offsets[index & self.mask], 0

    def publish_index(self, index: int) -> None:
        self._header[HEAD] = index  # release: memory-order.md, R1


class MasterTxRing(TxRingBase):
    """M2S, written by the master: it takes the buffers that the slave posted, fills them and advances tail.

    The room in a buffer is the posted length. Region and offset go back as they came.
    """

    __slots__ = ()

    #: Posted descriptors that are copied at a time, so that a short burst does not copy a long ring.
    CHUNK = 64

    def __init__(self, memory: RingMemory) -> None:
        super().__init__(memory)
        self.reset()

    @property
    def in_flight(self) -> int:
        posted = (self._header[HEAD] - self.published) & U16  # A5
        return min(max(self.size - posted, 0), self.published_total)  # a buffer never posted was never sent either

    def room(self) -> int:
        head = self._header[HEAD]  # acquire: memory-order.md, A4
        if (head - self.published) & U16 > self.size:
            raise self.violation(f"head {head} is more than {self.size} descriptors ahead of tail {self.published}")
        free = (head - self.allocated) & U16
        if free > self.size:
            raise self.violation(f"head {head} went back behind {self.allocated}, which it had reached before")
        return free

    def rooms(self, room: int) -> Iterator[Entry]:
        index, holds = self.allocated, self.regions.holds
        while room:
            count = min(room, self.CHUNK)
            for position, entry in enumerate(list(self.read(index, count))):
                if not holds(entry):
                    raise self.out_of_bounds(index + position, entry)
                _, region, length, offset, metadata = entry
                if not length:
                    raise self.violation(f"posted descriptor {(index + position) & self.mask} has no room")
                yield 0, region, length, offset, metadata
            index += count
            room -= count

    def publish_index(self, index: int) -> None:
        self._header[TAIL] = index  # release: memory-order.md, R2


def _noting_lengths(rooms: Iterator[Entry], lengths: list[int]) -> Iterator[Entry]:
    """Yield the same rooms, and append the length of each one that is taken to ``lengths``."""
    for room in rooms:
        lengths.append(room[2])
        yield room
