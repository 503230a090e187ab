"""The two rings to receive from: take filled buffers, check their descriptors, give the buffers back.

The twin of ``_native_receive.pxi``. Read docs/memory-order.md before you change the order of two accesses of shared
memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memifrt.errors import ConfigError, RingViolation
from memifrt.memory.layout import DESCRIPTOR_SIZE
from memifrt.options import check_limit
from memifrt.ring.protocol import Burst, RingMemory, SlaveBuffers
from memifrt.ring.reference.burst import RingBurst, own_burst, still_exported
from memifrt.ring.reference.descriptor import FLAGS_FIELD, HEAD, NEXT, TAIL, U16, Entry, only_next
from memifrt.ring.reference.ring import RingBase, slave_buffers
from memifrt.ring.reference.vectors import check_lengths, longest_length, matrix_rows
from memifrt.types import MAX_PACKET_SIZE, MAX_RECEIVED_BUFFER

if TYPE_CHECKING:
    from memifrt.types import ReadableBuffer


class RxRingBase(RingBase):
    """What both receiving sides do."""

    __slots__ = ("headroom", "more", "taken")

    is_tx = False

    def __init__(self, memory: RingMemory) -> None:
        super().__init__(memory)
        #: The index of the next buffer to take.
        self.taken = 0
        #: Bytes that a closing burst leaves free in front of the data.
        self.headroom = 0
        self.more = False

    def set_headroom(self, headroom: int) -> None:
        self.headroom = self.checked_headroom(headroom)

    def pending(self) -> int:
        return self.available()

    def burst(self, limit: int, split: bool = False) -> RingBurst:
        return self.take(check_limit(limit), split)

    def recv(self, limit: int) -> list[bytes]:
        packets: list[bytes] = []
        before = self.octets
        while True:
            try:
                burst = self.burst(limit - len(packets))
            except RingViolation:
                if not packets:
                    raise
                self.bad_descriptors -= 1  # the next call counts and raises it; the packets before it are returned
                return packets
            with burst:
                packets += [bytes(burst.joined(start, stop)) for start, stop in burst.packet_bounds()]
            if not self.more or len(packets) >= limit or self.octets - before >= MAX_PACKET_SIZE:
                return packets

    def recv_into(self, matrix: ReadableBuffer, lengths: ReadableBuffer) -> int:
        rows, sizes = matrix_rows(matrix, writable=True), check_lengths(lengths, writable=True)
        longest = longest_length(sizes)
        limit = min(len(rows), len(sizes))
        if not limit:
            return 0
        number = 0
        while True:
            try:
                burst = self.burst(limit - number)
            except RingViolation:
                if not number:
                    raise
                self.bad_descriptors -= 1  # as in recv
                return number
            with burst:
                for start, stop in burst.packet_bounds():
                    data = burst.joined(start, stop)
                    row = rows[number]
                    fits = min(len(data), len(row))
                    row[:fits] = data[:fits]
                    sizes[number] = min(len(data), longest)
                    number += 1
            if not self.more or number >= limit:
                return number

    def untake(self, burst: Burst) -> None:
        own = own_burst(burst)
        if own.ended or not self.open or self.open[-1] is not own:
            raise ConfigError("only the newest burst can be put back")
        if own.changed:
            raise ConfigError("buffers of this burst have been trimmed or swapped: it cannot be put back")
        if own.release_all():
            raise still_exported()
        put_back = own.entries[own.sent :]
        self.packets -= sum(not entry[0] & NEXT for entry in put_back)
        self.octets -= sum(entry[2] for entry in put_back)
        del own.entries[own.sent :]
        self.taken = (own.first + len(own.entries)) & U16
        if not own.entries:  # it holds no buffers that later bursts would have to wait for
            own.ended = True
            self.open.pop()
        self.more = True

    def refill(self, count: int | None = None, headroom: int = 0) -> int:
        headroom = self.checked_headroom(headroom)
        refillable = self.refillable()
        count = refillable if count is None else min(count, refillable)
        if count < 0:
            raise ConfigError(f"refill of {count} buffers; it must be at least 0")
        if count:
            self.give_back(count, headroom)
            held = self.end_returned_bursts()
            self.give_back_ended()
            if held:
                raise still_exported()
        return count

    def checked_headroom(self, headroom: int) -> int:
        """Return ``headroom`` if it is allowed: 0 or more, and smaller than a slave's buffer.

        :raises ConfigError: it is not allowed.
        """
        if headroom < 0 or 0 < self.capacity <= headroom:
            raise ConfigError(f"headroom is {headroom} bytes; it must be less than the buffer's {self.capacity}")
        return headroom

    def take(self, limit: int, split: bool) -> RingBurst:
        """Take a burst of up to ``limit`` buffers."""
        available = self.available()
        entries = self.collect(available, limit, split)
        # An unfinished chain can leave us with no entries although some are available. That is not "more": the peer
        # kicks again when it has finished the chain.
        self.more = available > limit and bool(entries) and available > len(entries)
        burst = RingBurst(self, self.taken, entries)
        self.taken = (self.taken + len(entries)) & U16
        if entries:
            self.open.append(burst)
            self.tally(entries)
        return burst

    def collect(self, available: int, limit: int, split: bool) -> list[Entry]:
        """Return checked descriptors of whole packets: at most ``limit``, but at least the first packet."""
        entries = self.snapshot(self.taken, min(available, limit))
        if split or not entries:
            return entries
        self.check_packets(entries)
        whole = len(entries)
        while whole and entries[whole - 1][0] & NEXT:
            whole -= 1
        if not whole:
            # The first packet alone is longer than the limit, or the peer has not finished it yet.
            entries += self.snapshot(self.taken + len(entries), available - len(entries))
            self.check_packets(entries)
            ends = (index + 1 for index, entry in enumerate(entries) if not entry[0] & NEXT)
            whole = next(ends, 0)
            if not whole and available == self.size:
                raise self.violation(f"a chain of {available} descriptors fills the ring and has no end")
        return entries[:whole]

    def check_packets(self, entries: list[Entry]) -> None:
        """Check that no chain is longer than a packet may be. The buffers of a chain may all be the same memory, so the
        size of the regions does not limit it."""
        if len(entries) <= MAX_PACKET_SIZE // MAX_RECEIVED_BUFFER:
            return
        size = 0
        for position, (flags, _, length, _, _) in enumerate(entries):
            size += length
            if size > MAX_PACKET_SIZE:
                slot = (self.taken + position) & self.mask
                raise self.violation(
                    f"descriptor {slot} extends a packet to {size} bytes; a packet has at most {MAX_PACKET_SIZE}"
                )
            if not flags & NEXT:
                size = 0

    def burst_ended(self) -> None:
        self.give_back_ended()

    def give_back_ended(self) -> None:
        """Give back the buffers of ended bursts. Buffers go back in the order in which they came, so a burst that ends
        before an older one waits for it."""
        while self.open and self.open[0].ended:
            oldest = self.open.popleft()
            missing = (oldest.first + len(oldest.entries) - self.returned_index()) & U16
            if missing <= self.size:  # otherwise a refill has given them back already
                self.give_back(missing, self.headroom)

    def end_returned_bursts(self) -> bool:
        """After a refill by count: end the views of buffers that the peer has again.

        :returns: whether something that was made of a view of an ended burst is still held.
        """
        returned_index, held = self.returned_index(), False
        for burst in list(self.open):
            returned = (returned_index - burst.first) & U16
            if not 0 < returned <= self.size:
                break
            burst.mark_sent(max(burst.sent, min(returned, len(burst.entries))))
            if returned >= len(burst.entries):
                held = burst.release_all() or held
                burst.ended = True
                self.open.popleft()
        return held

    def available(self) -> int:
        """Return how many buffers the peer has published and we have not taken."""
        raise NotImplementedError

    def snapshot(self, index: int, count: int) -> list[Entry]:
        """Return checked copies of ``count`` descriptors from ``index`` on."""
        raise NotImplementedError

    def refillable(self) -> int:
        """Return how many taken buffers have not been given back."""
        raise NotImplementedError

    def returned_index(self) -> int:
        """Return the index of the next taken buffer to give back."""
        raise NotImplementedError

    def give_back(self, count: int, headroom: int) -> None:
        """Give the oldest ``count`` taken buffers back to the peer."""
        raise NotImplementedError


class MasterRxRing(RxRingBase):
    """S2M, read by the master: it takes buffers up to head and gives them back by advancing tail.

    It leaves region and offset of each descriptor alone, because slaves do not write them again (docs/protocol.md,
    rule 5). It clears the flag NEXT: DPDK's client never does, and its next packet in that slot would look chained.
    """

    __slots__ = ("returned", "saw_next")

    def __init__(self, memory: RingMemory) -> None:
        super().__init__(memory)
        #: The index of the next buffer to give back.
        self.returned = 0
        #: Whether a descriptor that has not been given back has NEXT.
        self.saw_next = False
        self.reset()

    def available(self) -> int:
        head = self._header[HEAD]  # acquire: memory-order.md, A1
        if (head - self.returned) & U16 > self.size:
            raise self.violation(f"head {head} is more than {self.size} descriptors ahead of tail {self.returned}")
        available = (head - self.taken) & U16
        if available > self.size:
            raise self.violation(f"head {head} went back behind {self.taken}, which it had reached before")
        return available

    def snapshot(self, index: int, count: int) -> list[Entry]:
        holds = self.regions.holds
        entries = [only_next(entry) for entry in self.read(index, count)]
        for position, entry in enumerate(entries):
            if not holds(entry):
                raise self.out_of_bounds(index + position, entry)
            if entry[2] > MAX_RECEIVED_BUFFER:
                raise self.violation(
                    f"descriptor {(index + position) & self.mask} has {entry[2]} bytes; "
                    f"a buffer has at most {MAX_RECEIVED_BUFFER}"
                )
        self.saw_next = self.saw_next or any(entry[0] for entry in entries)
        return entries

    def refillable(self) -> int:
        return (self.taken - self.returned) & U16

    def returned_index(self) -> int:
        return self.returned

    def give_back(self, count: int, headroom: int) -> None:
        if self.saw_next:
            for index in range(self.returned, self.returned + count):
                FLAGS_FIELD.pack_into(self._descriptors, (index & self.mask) * DESCRIPTOR_SIZE, 0)
        self.returned = (self.returned + count) & U16
        self.saw_next = self.saw_next and self.returned != self.taken
        self._header[TAIL] = self.returned  # release: memory-order.md, R3


class SlaveRxRing(RxRingBase):
    """M2S, read by the slave: it posts empty buffers by advancing head and takes filled ones up to tail."""

    __slots__ = ("posted",)

    def __init__(self, memory: RingMemory, buffers: SlaveBuffers) -> None:
        super().__init__(memory)
        self.take_buffers(buffers)
        #: The index of the next empty buffer to post.
        self.posted = 0

    def available(self) -> int:
        tail = self._header[TAIL]  # acquire: memory-order.md, A2
        available = (tail - self.taken) & U16
        if available > (self.posted - self.taken) & U16:
            raise self.violation(f"tail {tail} is not between {self.taken} and head {self.posted}")
        return available

    def snapshot(self, index: int, count: int) -> list[Entry]:
        """Return checked copies of ``count`` descriptors from ``index`` on.

        A descriptor must stay inside the buffer that we posted in its slot. The peer may move the start of the data. It
        must not name another buffer, which would then be in two slots at once.
        """
        buffers = slave_buffers(self)
        region, size, offsets = buffers.region, buffers.size, buffers.offsets
        entries = [only_next(entry) for entry in self.read(index, count)]
        for position, entry in enumerate(entries):
            start = offsets[(index + position) & self.mask]
            _, got_region, length, offset, _ = entry
            if got_region != region or offset < start or offset + length > start + size:
                if not self.regions.holds(entry):  # then this is the clearer message
                    raise self.out_of_bounds(index + position, entry)
                raise self.outside(index + position, entry, f"its buffer of {size} bytes at {start}")
        return entries

    def refillable(self) -> int:
        return self.size - ((self.posted - self.taken) & U16)

    def returned_index(self) -> int:
        return (self.posted - self.size) & U16

    def give_back(self, count: int, headroom: int) -> None:
        buffers = slave_buffers(self)
        region, size, offsets = buffers.region, buffers.size, buffers.offsets
        first = self.posted
        # Most masters take the posted length as the room in the buffer, so it is written each time.
        self.write(
            [
                (0, region, size - headroom, offsets[index & self.mask] + headroom, 0)
                for index in range(first, first + count)
            ],
            first,
        )
        self.posted = (first + count) & U16
        self._header[HEAD] = self.posted  # release: memory-order.md, R4


def receive_ring(ring: object) -> RxRingBase:
    """Return ``ring`` if it is a receive ring of this implementation.

    :raises ConfigError: it is not.
    """
    if not isinstance(ring, RxRingBase):
        raise ConfigError(f"{ring!r} is not a receive ring of this implementation")
    return ring
