# The two rings to receive from: take filled buffers, check their descriptors, give the buffers back.
# The twin of reference/receive.py: the same names, the same checks, the same order.
# Read docs/memory-order.md before you change the order of two accesses of shared memory.


cdef class RxRingBase(RingBase):
    """What both receiving sides do."""

    # The index of the next buffer to take.
    cdef uint16_t taken
    # Bytes that a closing burst leaves free in front of the data.
    cdef int64_t headroom
    cdef readonly bint more
    # Copies of the descriptors that are being taken.
    cdef memif_descriptor *scratch

    def __cinit__(self, *args):
        self.scratch = <memif_descriptor *> malloc(self.size * sizeof(memif_descriptor))
        if self.scratch is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.scratch)

    @cython.critical_section
    def set_headroom(self, headroom):
        self.headroom = self.checked_headroom(headroom)

    def pending(self):
        return self.waiting()

    @cython.critical_section
    cdef int waiting(self) except -1:
        """Do as ``pending``."""
        self.require_idle()
        return self.available()

    def burst(self, limit, bint split=False):
        return self.take_burst(check_limit(limit), split)

    @cython.critical_section
    cdef RingBurst take_burst(self, int limit, bint split):
        """Do as ``burst``."""
        self.require_idle()
        return self.take(limit, split)

    def recv(self, limit):
        return self.recv_packets(check_limit(limit))

    @cython.critical_section
    cdef list recv_packets(self, int limit):
        """Do as ``recv``. No Python code runs between the look at the ring and the return, so nothing else can use the
        ring meanwhile: a list is made before, and bytes are no business of the garbage collector."""
        cdef list packets = []
        cdef uint64_t before = self.octets
        self.recv_buffers(limit, packets)
        while self.more and len(packets) < limit and self.octets - before < MAX_PACKET_SIZE:
            try:
                self.recv_buffers(limit - <int> len(packets), packets)
            except RingViolation:
                self.bad_descriptors -= 1  # the next call counts and raises it; the packets before it are returned
                break
        return packets

    cdef int recv_buffers(self, int limit, list packets) except -1:
        """Add the packets of up to ``limit`` buffers to the list."""
        cdef RingBurst burst = None
        cdef memif_descriptor *entries = self.scratch
        cdef int count, start = 0, stop, i
        self.require_idle()
        if self.open:  # their buffers go back first, and a burst keeps the order
            burst = self.take(limit, False)
            entries = burst.entries
            count = burst.count
        else:
            count = self.take_entries(limit, False)
        for i in range(min(AHEAD, count)):
            memif_prefetch_read(self.regions.at(&entries[i]))
        try:
            while start < count:
                stop = start + 1 if not entries[start].flags & NEXT else packet_end(entries, start, count)
                if stop + AHEAD <= count:
                    memif_prefetch_read(self.regions.at(&entries[stop + AHEAD - 1]))
                if stop == start + 1:
                    packets.append(
                        PyBytes_FromStringAndSize(<char *> self.regions.at(&entries[start]), entries[start].length)
                    )
                else:
                    packets.append(joined(self.regions, entries, start, stop))
                start = stop
        finally:
            if burst is not None:
                burst.close()
            elif count:
                self.consume(entries, count)
        return 0

    def recv_into(self, matrix, lengths):
        cdef Matrix rows = Matrix(matrix, True)
        cdef Lengths sizes = Lengths(lengths, True)
        return self.recv_rows(rows, sizes, <int> min(rows.rows, sizes.count, 0x7FFF))

    @cython.critical_section
    cdef int recv_rows(self, Matrix rows, Lengths sizes, int limit) except -1:
        """Do as ``recv_into``."""
        cdef int row = self.recv_rows_from(rows, sizes, 0, limit)
        while self.more and row < limit:
            try:
                row = self.recv_rows_from(rows, sizes, row, limit)
            except RingViolation:
                self.bad_descriptors -= 1  # as in recv_packets
                break
        return row

    cdef int recv_rows_from(self, Matrix rows, Lengths sizes, int row, int limit) except -1:
        """Fill rows, from ``row`` on, with the packets of as many buffers; return where the next packet goes."""
        cdef int count
        cdef uint64_t octets = 0
        if row == limit:
            return row
        self.require_idle()
        if self.open:  # their buffers go back first, and this way keeps the order
            return self.recv_into_from_burst(rows, sizes, row, limit)
        count = self.take_entries(limit - row, False)
        memif_sum(self.scratch, count, &octets)
        if octets < LARGE:
            row = self.copy_rows(rows, sizes, row, count)
        else:
            self.busy = True
            with nogil:
                row = self.copy_rows(rows, sizes, row, count)
            self.busy = False
        if count:
            self.consume(self.scratch, count)
        return row

    cdef int copy_rows(self, Matrix rows, Lengths sizes, int row, int count) noexcept nogil:
        """Copy the packets of ``count`` taken descriptors into rows, from ``row`` on; return where the next one goes."""
        cdef memif_descriptor *entries = self.scratch
        cdef int start = 0, i
        cdef uint64_t total, part
        for i in range(min(AHEAD, count)):
            memif_prefetch_read(self.regions.at(&entries[i]))
        while start < count:
            if start + AHEAD < count:
                memif_prefetch_read(self.regions.at(&entries[start + AHEAD]))
            total = 0
            while True:
                part = min(<uint64_t> entries[start].length, rows.width - min(total, rows.width))
                memif_move(rows.row(row) + min(total, rows.width), self.regions.at(&entries[start]), part)
                total += entries[start].length
                start += 1
                if start == count or not entries[start - 1].flags & NEXT:
                    break
            sizes.set(row, total)
            row += 1
        return row

    cdef int recv_into_from_burst(self, Matrix rows, Lengths sizes, int row, int limit) except -1:
        """Do as ``recv_rows_from`` while bursts are held."""
        cdef uint64_t size
        for packet in self.recv_packets(limit - row):
            size = min(<uint64_t> len(packet), rows.width)
            memcpy(rows.row(row), PyBytes_AS_STRING(packet), size)
            sizes.set(row, len(packet))
            row += 1
        return row

    cdef int64_t checked_headroom(self, headroom) except -1:
        """Return ``headroom`` if it is allowed: 0 or more, and smaller than a slave's buffer.

        :raises ConfigError: it is not allowed.
        """
        cdef int64_t wanted = clamped(headroom), capacity = self.capacity
        if wanted < 0 or 0 < capacity <= wanted:
            raise ConfigError(f"headroom is {headroom} bytes; it must be less than the buffer's {capacity}")
        return wanted

    @cython.critical_section
    def refill(self, count=None, headroom=0):
        cdef int64_t free = self.checked_headroom(headroom), asked = 0 if count is None else clamped(count)
        self.require_idle()
        cdef int refillable = self.refillable()
        cdef int64_t wanted = refillable if count is None else min(asked, <int64_t> refillable)
        if wanted < 0:
            raise ConfigError(f"refill of {count} buffers; it must be at least 0")
        if wanted:
            self.give_back(<int> wanted, free)
            held = self.end_returned_bursts()
            self.give_back_ended()
            if held:
                raise still_exported()
        return wanted

    @cython.critical_section
    def untake(self, burst):
        cdef RingBurst own = own_burst(burst)
        if own.ended or own.ring is not self or not self.open or self.open[-1] is not own:
            raise ConfigError("only the newest burst can be put back")
        if own.changed:
            raise ConfigError("buffers of this burst have been trimmed or swapped: it cannot be put back")
        if own.release_all():
            raise still_exported()
        cdef int i
        for i in range(own.sent, own.count):
            self.packets -= not own.entries[i].flags & NEXT
            self.octets -= own.entries[i].length
        own.count = own.sent
        self.taken = <uint16_t> (own.first + own.count)
        if not own.count:  # it holds no buffers that later bursts would have to wait for
            own.ended = True
            self.open.pop()
        self.more = True

    cdef RingBurst take(self, int limit, bint split):
        """Take a burst of up to ``limit`` buffers."""
        cdef RingBurst burst = new_burst(self)
        cdef int count = self.take_entries(limit, split)
        if count:
            burst.fill(self.taken, self.scratch, count)
            self.open.append(burst)
            self.taken = <uint16_t> (self.taken + count)
            self.tally(self.scratch, count)
        return burst

    cdef int take_entries(self, int limit, bint split) except -1 nogil:
        """Copy the descriptors that ``take`` would take into ``scratch``, and take nothing; return how many."""
        cdef int available = self.available()
        cdef int count = self.collect(available, limit, split) if available else 0
        # An unfinished chain can leave us with no entries although some are available. That is not "more": the peer
        # kicks again when it has finished the chain.
        self.more = available > limit and count > 0 and available > count
        return count

    cdef int consume(self, const memif_descriptor *entries, int count) except -1 nogil:
        """Take these descriptors of ``take_entries``, and give their buffers back. No burst is held."""
        self.taken = <uint16_t> (self.taken + count)
        self.tally(entries, count)
        return self.give_back(self.refillable(), self.headroom)  # also buffers that were never posted

    cdef int collect(self, int available, int limit, bint split) except -1 nogil:
        """Set ``scratch`` to checked descriptors of whole packets: at most ``limit``, but at least the first packet;
        return how many."""
        cdef int count = min(available, limit)
        cdef int whole = count
        cdef memif_descriptor *entries = self.scratch
        self.snapshot(entries, self.taken, count)
        if split:
            return count
        self.check_packets(entries, count)
        while whole and entries[whole - 1].flags & NEXT:
            whole -= 1
        if whole:
            return whole
        # The first packet alone is longer than the limit, or the peer has not finished it yet.
        self.snapshot(entries + count, <uint16_t> (self.taken + count), available - count)
        self.check_packets(entries, available)
        for whole in range(count, available):
            if not entries[whole].flags & NEXT:
                return whole + 1
        if available == self.size:
            return self.violated("a chain of {} descriptors fills the ring and has no end", available, 0, 0)
        return 0

    cdef int check_packets(self, const memif_descriptor *entries, int count) except -1 nogil:
        """Check that no chain is longer than a packet may be. The buffers of a chain may all be the same memory, so the
        size of the regions does not limit it."""
        cdef uint64_t size = 0
        cdef int i
        if count <= MAX_PACKET_SIZE // MAX_RECEIVED_BUFFER:
            return 0
        for i in range(count):
            size += entries[i].length
            if size > MAX_PACKET_SIZE:
                return self.violated(
                    "descriptor {} extends a packet to {} bytes; a packet has at most {}",
                    <uint16_t> (self.taken + i) & self.mask, <int64_t> size, MAX_PACKET_SIZE,
                )
            if not entries[i].flags & NEXT:
                size = 0
        return 0

    cdef burst_ended(self):
        self.give_back_ended()

    cdef give_back_ended(self):
        """Give back the buffers of ended bursts. Buffers go back in the order in which they came, so a burst that ends
        before an older one waits for it."""
        cdef RingBurst oldest
        cdef uint16_t missing
        while self.open and (<RingBurst> self.open[0]).ended:
            oldest = self.open.pop(0)
            missing = <uint16_t> (oldest.first + oldest.count - self.returned_index())
            if missing <= self.size:  # otherwise a refill has given them back already
                self.give_back(missing, self.headroom)

    cdef bint end_returned_bursts(self) except -1:
        """After a refill by count: end the views of buffers that the peer has again.

        :returns: whether something that was made of a view of an ended burst is still held.
        """
        cdef uint16_t returned_index = self.returned_index(), returned
        cdef bint held = False
        cdef RingBurst burst
        for burst in list(self.open):
            returned = <uint16_t> (returned_index - burst.first)
            if not 0 < returned <= self.size:
                break
            burst.mark_sent(max(burst.sent, min(<int> returned, burst.count)))
            if returned >= burst.count:
                held |= burst.release_all()
                burst.ended = True
                del self.open[0]
        return held

    cdef int available(self) except -1 nogil:
        """Return how many buffers the peer has published and we have not taken."""
        with gil:
            raise NotImplementedError

    cdef int snapshot(self, memif_descriptor *into, uint16_t index, int count) except -1 nogil:
        """Set ``into`` to checked copies of ``count`` descriptors from ``index`` on."""
        with gil:
            raise NotImplementedError

    cdef int refillable(self) except -1 nogil:
        """Return how many taken buffers have not been given back."""
        with gil:
            raise NotImplementedError

    cdef int returned_index(self) except -1 nogil:
        """Return the index of the next taken buffer to give back."""
        with gil:
            raise NotImplementedError

    cdef int give_back(self, int count, int64_t headroom) except -1 nogil:
        """Give the oldest ``count`` taken buffers back to the peer."""
        with gil:
            raise NotImplementedError


@cython.final
cdef class MasterRxRing(RxRingBase):
    """S2M, read by the master: it takes buffers up to head and gives them back by advancing tail.

    It leaves region and offset of each descriptor alone, because slaves do not write them again (docs/protocol.md,
    rule 5). It clears the flag NEXT: DPDK's client never does, and its next packet in that slot would look chained.
    """

    # The index of the next buffer to give back.
    cdef uint16_t returned
    # Whether a descriptor that has not been given back has NEXT.
    cdef uint16_t saw_next

    def __cinit__(self, memory):
        self.reset()

    cdef int available(self) except -1 nogil:
        cdef uint16_t head = memif_load_acquire(&self.ring.head)  # acquire: memory-order.md, A1
        if <uint16_t> (head - self.returned) > self.size:
            return self.violated(
                "head {} is more than {} descriptors ahead of tail {}", head, self.size, self.returned
            )
        cdef uint16_t available = <uint16_t> (head - self.taken)
        if available > self.size:
            return self.violated("head {} went back behind {}, which it had reached before", head, self.taken, 0)
        return available

    cdef int snapshot(self, memif_descriptor *into, uint16_t index, int count) except -1 nogil:
        cdef int i
        cdef uint16_t chained = 0
        self.read(into, index, count)
        for i in range(count):
            into[i].flags &= NEXT
            if not self.regions.holds(&into[i]):
                return self.out_of_bounds(<uint16_t> (index + i), &into[i])
            if into[i].length > MAX_RECEIVED_BUFFER:
                return self.too_long(<uint16_t> (index + i), &into[i])
            chained |= into[i].flags
        self.saw_next |= chained
        return 0

    cdef int too_long(self, uint16_t index, const memif_descriptor *entry) except -1 with gil:
        """:raises RingViolation: always: a received buffer is not so long."""
        raise self.violation(
            f"descriptor {index & self.mask} has {entry.length} bytes; a buffer has at most {MAX_RECEIVED_BUFFER}"
        )

    cdef int refillable(self) except -1 nogil:
        return <uint16_t> (self.taken - self.returned)

    cdef int returned_index(self) except -1 nogil:
        return self.returned

    cdef int give_back(self, int count, int64_t headroom) except -1 nogil:
        cdef int i
        if self.saw_next:
            for i in range(count):
                self.ring.descriptors[<uint16_t> (self.returned + i) & self.mask].flags = 0
        self.returned = <uint16_t> (self.returned + count)
        if self.returned == self.taken:
            self.saw_next = 0
        memif_store_release(&self.ring.tail, self.returned)  # release: memory-order.md, R3
        return 0


@cython.final
cdef class SlaveRxRing(RxRingBase):
    """M2S, read by the slave: it posts empty buffers by advancing head and takes filled ones up to tail."""

    # The index of the next empty buffer to post.
    cdef uint16_t posted

    def __cinit__(self, memory, buffers):
        self.take_buffers(buffers)

    cdef int available(self) except -1 nogil:
        cdef uint16_t tail = memif_load_acquire(&self.ring.tail)  # acquire: memory-order.md, A2
        cdef uint16_t available = <uint16_t> (tail - self.taken)
        if available > <uint16_t> (self.posted - self.taken):
            return self.violated("tail {} is not between {} and head {}", tail, self.taken, self.posted)
        return available

    cdef int snapshot(self, memif_descriptor *into, uint16_t index, int count) except -1 nogil:
        """Set ``into`` to checked copies of ``count`` descriptors from ``index`` on.

        A descriptor must stay inside the buffer that we posted in its slot. The peer may move the start of the data. It
        must not name another buffer, which would then be in two slots at once.
        """
        cdef int i
        cdef uint64_t start
        cdef const uint32_t *offsets = self.buffers.offsets
        cdef uint16_t region = self.buffers.region, mask = self.mask
        cdef uint64_t size = self.buffers.size
        self.read(into, index, count)
        for i in range(count):
            start = offsets[<uint16_t> (index + i) & mask]
            into[i].flags &= NEXT
            if (
                into[i].region != region
                or into[i].offset < start
                or <uint64_t> into[i].offset + into[i].length > start + size
            ):
                return self.outside_its_buffer(<uint16_t> (index + i), &into[i])
        return 0

    cdef int outside_its_buffer(self, uint16_t index, const memif_descriptor *entry) except -1 with gil:
        """:raises RingViolation: always: this descriptor does not lie inside the buffer that we posted."""
        if not self.regions.holds(entry):  # then this is the clearer message
            return self.out_of_bounds(index, entry)
        start = self.buffers.offsets[index & self.mask]
        raise self.outside(index, entry, f"its buffer of {self.buffers.size} bytes at {start}")

    cdef int refillable(self) except -1 nogil:
        return self.size - <uint16_t> (self.posted - self.taken)

    cdef int returned_index(self) except -1 nogil:
        return <uint16_t> (self.posted - self.size)

    cdef int give_back(self, int count, int64_t headroom) except -1 nogil:
        cdef int i
        cdef uint16_t slot, first = self.posted, mask = self.mask
        cdef const uint32_t *offsets = self.buffers.offsets
        cdef memif_descriptor *into = self.ring.descriptors
        cdef memif_descriptor fresh
        fresh.flags = 0
        fresh.region = self.buffers.region
        fresh.length = self.buffers.size - <uint32_t> headroom  # most masters take it as the room
        fresh.metadata = 0
        for i in range(count):
            slot = <uint16_t> (first + i) & mask
            fresh.offset = offsets[slot] + <uint32_t> headroom
            into[slot] = fresh
        self.posted = <uint16_t> (self.posted + count)
        memif_store_release(&self.ring.head, self.posted)  # release: memory-order.md, R4
        return 0


cdef RxRingBase receive_ring(ring):
    """Return ``ring`` if it is a receive ring of this implementation.

    :raises ConfigError: it is not.
    """
    if not isinstance(ring, RxRingBase):
        raise ConfigError(f"{ring!r} is not a receive ring of this implementation")
    return ring


cdef int check_limit(limit) except -1:
    """Return the limit of a burst, at most the size of the largest ring.

    :raises ConfigError: it is less than 1.
    """
    cdef int64_t wanted = clamped(limit)
    if wanted < 1:
        raise ConfigError(f"a burst of {limit} buffers; it must be at least 1")
    return <int> min(wanted, 0x7FFF)
