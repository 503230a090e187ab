# The two rings to send on: allocate free buffers, fill them, publish their descriptors.
# The twin of reference/send.py: the same names, the same checks, the same order.
# Read docs/memory-order.md before you change the order of two accesses of shared memory.


cdef class TxRingBase(RingBase):
    """What both sending sides do."""

    # The index of the next buffer to publish, and the index of the next buffer to allocate.
    cdef uint16_t published, allocated
    # Buffers published since the ring was made; the count stops at 65535, more than any ring has.
    cdef uint32_t published_total
    # How many of the staged descriptors hold rooms, in the call that is under way.
    cdef int rooms_staged
    # How many buffers that call will probably use: as many rooms are staged at once, within limits.
    cdef int64_t expected
    # Whether the rooms are a slave's own. Those of a master come from the peer, and must be checked.
    cdef bint buffers_are_ours
    # Whether send asks Python code for packets. That code must not use the ring that they are staged for.
    cdef bint sending
    # Descriptors that are to be published. They are written to the ring at the end, if all went well: a master's unused
    # descriptors must keep the length that the slave posted.
    cdef memif_descriptor *staged
    # For an allocation of a master's: the lengths of the staged rooms, as they were when they were copied.
    cdef uint32_t *posted_lengths
    cdef bint notes_lengths

    def __cinit__(self, *args):
        self.is_tx = True
        self.staged = <memif_descriptor *> malloc(self.size * sizeof(memif_descriptor))
        self.posted_lengths = <uint32_t *> malloc(self.size * sizeof(uint32_t))
        if self.staged is NULL or self.posted_lengths is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.staged)
        free(self.posted_lengths)

    @property
    def in_flight(self):
        return self.unreturned()

    def free(self):
        return self.free_room()

    @cython.critical_section
    cdef int free_room(self) except -1:
        """Do as ``free``."""
        self.require_idle()
        return self.room()

    def alloc(self, count, size=None):
        return self.allocate(count, size)

    @cython.critical_section
    cdef RingBurst allocate(self, count, size):
        """Do as ``alloc``."""
        cdef int64_t wanted = clamped(count), bytes_each = -1 if size is None else clamped(size)
        cdef int room, used = 0, chain
        cdef bint ours = self.buffers_are_ours
        cdef Regions regions = self.regions
        cdef memif_descriptor *entry
        if wanted < 1 or (size is not None and bytes_each < 1):
            raise ConfigError(f"room for {count} packets of {size} bytes; both must be at least 1")
        if bytes_each > MAX_PACKET_SIZE:
            raise ConfigError(f"a packet of {size} bytes; a packet has at most {MAX_PACKET_SIZE}")
        self.require_not_sending()
        cdef RingBurst burst = new_burst(self)
        room = self.fresh_room(wanted)
        self.notes_lengths = not ours
        while wanted:
            # The common case, without a call: a packet that fits into one buffer. The code below does the rest.
            entry = &self.staged[used]
            if used < self.rooms_staged and 0 < bytes_each <= entry.length and (ours or regions.holds(entry)):
                entry.flags = 0
                entry.length = <uint32_t> bytes_each
                used += 1
                wanted -= 1
                continue
            chain = self.reserve(used, room, bytes_each)
            if not chain:
                self.check_can_ever_fit(size, bytes_each, room - used)
                self.ring_full += 1
                break
            used += chain
            wanted -= 1
        burst.fill(self.allocated, self.staged, used)
        if not ours:
            burst.posted_lengths = <uint32_t *> malloc(max(1, used) * sizeof(uint32_t))
            if burst.posted_lengths is NULL:
                raise MemoryError
            memcpy(burst.posted_lengths, self.posted_lengths, used * sizeof(uint32_t))
        self.allocated = <uint16_t> (self.allocated + used)
        if used:
            self.open.append(burst)
        return burst

    def transmit(self, burst, count=None):
        return self.transmit_burst(burst, count)

    @cython.critical_section
    cdef int transmit_burst(self, burst, count) except -1:
        """Do as ``transmit``."""
        cdef RingBurst own = own_burst(burst)
        cdef int64_t most = MAX_PACKET_SIZE if count is None else max(clamped(count), 0)
        cdef int start = own.sent, stop
        if not own.ended and own.ring is self and not own.count:
            return 0
        if own.ended or not self.open or self.open[0] is not own:
            raise ConfigError("this burst is not the oldest allocated one that is not sent yet")
        stop = <int> min(start + most, <int64_t> own.count)
        if stop == own.count and own.release_all():
            raise still_exported()
        self.publish(own.entries + start, stop - start)
        own.mark_sent(stop)
        if stop == own.count:
            own.ended = True
            del self.open[0]
        return stop - start

    def send(self, packets, *, bint chain=True):
        return self.send_packets(packets, chain)

    @cython.critical_section
    cdef Py_ssize_t send_packets(self, packets, bint chain) except -1:
        """Do as ``send``."""
        cdef int room, used = 0, got
        cdef Py_ssize_t sent = 0
        self.require_nothing_open()
        room = self.fresh_room(len(<list> packets) if PyList_CheckExact(packets) else CHUNK)
        self.sending = True
        try:
            for packet in packets:
                if PyBytes_CheckExact(packet):
                    got = self.put(
                        used, room, <uint8_t *> PyBytes_AS_STRING(packet), PyBytes_GET_SIZE(packet), chain, sent
                    )
                else:
                    got = self.put_buffer(used, room, packet, chain, sent)
                if not got:
                    self.ring_full += 1
                    break
                used += got
                sent += 1
        finally:
            self.sending = False
        self.publish_staged(used)
        return sent

    def send_from(self, matrix, lengths, *, bint chain=True):
        return self.send_rows(Matrix(matrix, False), Lengths(lengths, False), chain)

    @cython.critical_section
    cdef Py_ssize_t send_rows(self, Matrix rows, Lengths sizes, bint chain) except -1:
        """Do as ``send_from``."""
        cdef int room, used = 0
        cdef Py_ssize_t row, count = min(rows.rows, sizes.count)
        cdef uint64_t octets = 0
        self.require_nothing_open()
        room = self.fresh_room(count)
        for row in range(min(count, <Py_ssize_t> room)):
            octets += min(sizes.get(row), rows.width)
        if octets < LARGE:
            count = self.put_rows(rows, sizes, count, room, chain, &used)
        else:
            self.busy = True
            try:
                with nogil:
                    count = self.put_rows(rows, sizes, count, room, chain, &used)
            finally:
                self.busy = False
        self.publish_staged(used)
        return count

    cdef Py_ssize_t put_rows(
        self, Matrix rows, Lengths sizes, Py_ssize_t count, int room, bint chain, int *used
    ) except -1 nogil:
        """Copy the packets of ``count`` rows into free buffers and stage them; return how many packets fitted.

        :param used: is set to the number of buffers that they take.
        """
        cdef int got
        cdef Py_ssize_t row
        cdef uint64_t size
        for row in range(count):
            size = sizes.get(row)
            if size > rows.width:
                with gil:
                    raise ConfigError(f"packet {row} has {sizes.shown(row)} bytes, a row only {rows.width}")
            got = self.put(used[0], room, rows.row(row), size, chain, row)
            if not got:
                self.ring_full += 1
                return row
            used[0] += got
        return count

    def forward(self, burst):
        return self.forward_burst(burst)

    cdef int forward_burst(self, burst) except -1:
        """Do as ``forward``."""
        cdef RingBurst own = own_burst(burst)
        cdef RingBase ring = own.ring
        with cython.critical_section(self, ring):
            return self.forward_own(received_burst(own))

    cdef int forward_own(self, RingBurst own) except -1:
        """Do as ``forward``, with a burst that was received and has not ended."""
        return self.copy_forward(own)

    def relay(self, source, limit):
        return self.relay_packets(receive_ring(source), check_limit(limit))

    cdef int relay_packets(self, RxRingBase ring, int limit) except -1:
        """Do as ``relay``."""
        with cython.critical_section(self, ring):
            ring.require_idle()
            self.require_idle()
            if self.open or self.sending:
                ring.more |= ring.available() > 0
                self.require_nothing_open()
            if ring.open:  # their buffers go back first, and this way keeps the order
                return self.relay_as_burst(ring, limit)
            return self.relay_entries(ring, limit)

    cdef int relay_entries(self, RxRingBase ring, int limit) except -1 nogil:
        """Check, copy, publish and give back in one pass over the descriptors. Nothing is held on either ring."""
        cdef int count = ring.take_entries(limit, False), consumed = 0, sent
        cdef bint more = ring.more
        if not count:
            return 0
        ring.more = True  # the packets stay if this raises
        sent = self.copy_entries(ring.regions, ring.scratch, 0, count, &consumed)
        ring.more = more or consumed < count
        if consumed:
            ring.consume(ring.scratch, consumed)
        return sent

    cdef int relay_as_burst(self, RxRingBase ring, int limit) except -1:
        """Do as ``relay`` while bursts of the other ring are held."""
        cdef RingBurst burst = ring.take(limit, False)
        if not burst.count:
            return 0
        try:
            return self.forward(burst)
        finally:
            if burst.sent < burst.count:
                ring.untake(burst)
            burst.close()

    def enqueue(self, burst, first, count):
        raise ConfigError("a master cannot swap buffers: only the rings of one slave can")

    @cython.critical_section
    def rewind(self, burst, index):
        cdef RingBurst own = own_burst(burst), later
        cdef int64_t position = clamped(index)
        position += own.count if position < 0 else own.sent
        if own.ended or own not in self.open or not own.sent <= position < own.count:
            raise ConfigError("this buffer is not allocated on this queue, or it is sent already")
        cdef bint held = False
        for later in list(self.open)[self.open.index(own) :]:
            held |= later.release_all()
        if held:
            raise still_exported()
        while self.open[-1] is not own:
            later = self.open.pop()
            later.ended = True
        own.count = <int> position
        self.allocated = <uint16_t> (own.first + position)
        if position == own.sent:
            own.ended = True
            self.burst_ended()

    cdef int copy_forward(self, RingBurst own) except -1:
        """Copy the packets of a received burst that are not sent yet into free buffers, and publish them; return how
        many buffers were sent."""
        cdef int consumed = own.sent
        self.require_nothing_open()
        cdef int sent = self.copy_entries(own.ring.regions, own.entries, own.sent, own.count, &consumed)
        own.mark_sent(consumed)
        return sent

    cdef int copy_entries(
        self, Regions source, const memif_descriptor *entries, int start, int count, int *consumed
    ) except -1 nogil:
        """Copy the packets of received descriptors, from ``start`` on, into free buffers, and publish them.

        :param consumed: is set to the index after the last entry that was sent or dropped.
        :returns: how many buffers were sent.
        """
        cdef int room = self.fresh_room(count - start), used = 0, got, sent = 0, stop, prepared = self.rooms_staged
        cdef bint ours = self.buffers_are_ours
        cdef memif_descriptor *staged = self.staged
        cdef const memif_descriptor *entry
        cdef memif_descriptor *target
        while start < count:
            if start + AHEAD < count:
                memif_prefetch_read(source.at(&entries[start + AHEAD]))
            if start + NEAR < count and used + NEAR < prepared:
                self.prefetch_room(&staged[used + NEAR], entries[start + NEAR].length)
            # The common case, without a call: one buffer into one buffer. The code below does the rest.
            entry = &entries[start]
            if used < prepared and not entry.flags & (NEXT | DROPPED):
                target = &staged[used]
                if (ours or self.regions.holds(target)) and target.length >= max(entry.length, 1):
                    memif_move(self.regions.at(target), source.at(entry), entry.length)
                    target.flags = 0
                    target.length = entry.length
                    used += 1
                    sent += 1
                    start += 1
                    continue
            stop = whole_packet_end(entries, start, count)
            if stop < 0:
                break
            if not is_dropped(entries, start, stop):
                got = self.gather(used, room, source, entries, start, stop)
                prepared = self.rooms_staged
                if not got:
                    self.ring_full += 1
                    if used or room < self.size:  # otherwise the whole ring is too small for this packet: it is dropped
                        break
                else:
                    used += got
                    sent += stop - start
            start = stop
        self.publish_staged(used)
        consumed[0] = start
        return sent

    cdef burst_ended(self):
        """Take back what ended bursts had allocated, from the newest on: a burst that ends while a newer one is open
        waits for that one."""
        cdef RingBurst newest
        while self.open and (<RingBurst> self.open[-1]).ended:
            newest = self.open.pop()
            self.allocated = <uint16_t> (newest.first + newest.sent)

    cdef require_nothing_open(self):
        """:raises ConfigError: allocated buffers are not sent yet, or a ``send`` is under way."""
        if self.open:
            raise ConfigError("buffers allocated earlier must be transmitted or given back first")
        self.require_not_sending()

    cdef require_not_sending(self):
        """:raises ConfigError: a ``send`` on this ring is under way, or ``forward_from``."""
        self.require_idle()
        if self.sending:
            raise ConfigError("a send is not finished: the iterator of its packets must not use the ring")

    cdef check_can_ever_fit(self, shown, int64_t size, int room):
        """Check that waiting for room can help a packet that has just not fitted.

        :param shown: the size, as the caller gave it.
        :param room: the buffers that were free for it.
        :raises ConfigError: the whole ring was free, or the packet is longer than all of a slave's buffers together.
        """
        cdef int64_t capacity = self.capacity
        if room == self.size or (capacity and size > capacity * self.size):
            raise ConfigError(
                f"a packet of {shown} bytes is longer than all {self.size} buffers of the ring together"
            )

    cdef int fresh_room(self, int64_t expected) except -1 nogil:
        """Return ``room()``, at the start of a call that stages packets for about ``expected`` buffers."""
        self.rooms_staged = 0
        self.expected = expected
        self.notes_lengths = False
        return self.room()

    cdef int reserve(self, int used, int room, int64_t size) except -1 nogil:
        """Stage descriptors for one packet of ``size`` bytes (negative: one whole buffer) behind ``used`` others;
        return how many, 0 if the room does not suffice."""
        cdef int64_t left = size, ahead
        cdef int count = 0, position
        cdef memif_descriptor *entry
        while used + count < room:
            position = used + count
            if position >= self.rooms_staged:
                ahead = min(max(self.expected - position, FEW), CHUNK)
                self.prepare(position, <int> min(ahead, room - position))
            entry = &self.staged[position]
            if not self.buffers_are_ours:
                self.check_room(<uint16_t> (self.allocated + position), entry)
            entry.flags = 0
            count += 1
            if left < 0:
                return count
            if entry.length > left:
                entry.length = <uint32_t> left
            left -= entry.length
            if not left:
                return count
            entry.flags = NEXT
        return 0

    cdef int put(
        self, int used, int room, const uint8_t *data, uint64_t size, bint chain, Py_ssize_t number
    ) except -1 nogil:
        """Copy one of the caller's packets into free buffers and stage it; return how many, 0 if it does not fit."""
        cdef int count, i
        cdef memif_descriptor *entry = &self.staged[used]
        # The common case, without a call: a packet that fits into one buffer. The code below does the rest.
        if (
            used < self.rooms_staged
            and 0 < size <= min(entry.length, <uint32_t> MAX_PACKET_SIZE)
            and (self.buffers_are_ours or self.regions.holds(entry))
        ):
            entry.flags = 0
            entry.length = <uint32_t> size
            memif_move(self.regions.at(entry), data, size)
            if used + 2 < self.rooms_staged:  # most packets are as long as the one before
                self.prefetch_room(entry + 2, size)
            return 1
        if not 0 < size <= MAX_PACKET_SIZE:
            with gil:
                if not size:
                    raise ConfigError(f"packet {number} is empty")
                raise ConfigError(f"packet {number} of {size} bytes; a packet has at most {MAX_PACKET_SIZE}")
        count = self.reserve(used, room, <int64_t> size)
        if not count:
            with gil:
                self.check_can_ever_fit(size, <int64_t> size, room - used)
            return 0
        if count > 1 and not chain:
            with gil:
                raise ConfigError(
                    f"packet {number} has {size} bytes, a buffer {self.staged[used].length}, and chains are switched off"
                )
        for i in range(used, used + count):
            entry = &self.staged[i]
            memif_move(self.regions.at(entry), data, entry.length)
            data += entry.length
        if used + count + 1 < self.rooms_staged:  # most packets are as long as the one before
            self.prefetch_room(&self.staged[used + count + 1], size)
        return count

    cdef int put_buffer(self, int used, int room, packet, bint chain, Py_ssize_t number) except -1:
        """Do as ``put`` with a packet that is any buffer."""
        cdef Py_buffer held
        try:
            PyObject_GetBuffer(packet, &held, PyBUF_SIMPLE)
        except BufferError as error:
            raise ConfigError(f"packet {number} is not contiguous") from error
        except TypeError as error:
            raise not_a_packet(number, packet) from error
        try:
            return self.put(used, room, <uint8_t *> held.buf, held.len, chain, number)
        finally:
            PyBuffer_Release(&held)

    cdef int gather(
        self, int used, int room, Regions source_regions, const memif_descriptor *entries, int start, int stop
    ) except -1 nogil:
        """Copy one received packet into free buffers and stage it; return how many, 0 if it does not fit. Both sides
        may be chains that are cut at different places."""
        cdef uint64_t total = 0
        cdef int count, i, into = used
        cdef uint32_t done, filled = 0, part
        cdef const memif_descriptor *source
        cdef memif_descriptor *target
        if stop - start == 1:
            source = &entries[start]
            count = self.reserve(used, room, source.length)
            if count == 1:
                memmove(self.regions.at(&self.staged[used]), source_regions.at(source), source.length)
                return 1
            if not count:
                return 0
        else:
            for i in range(start, stop):
                total += entries[i].length
            count = self.reserve(used, room, <int64_t> total)
            if not count:
                return 0
        for i in range(start, stop):
            source = &entries[i]
            done = 0
            while done < source.length:
                target = &self.staged[into]
                part = min(source.length - done, target.length - filled)
                # memmove, here and above: a peer can make the memory that it sends overlap the memory that it posts.
                memmove(self.regions.at(target) + filled, source_regions.at(source) + done, part)
                done += part
                filled += part
                if filled == target.length:
                    into += 1
                    filled = 0
        return count

    cdef inline void prefetch_room(self, const memif_descriptor *entry, size_t size) noexcept nogil:
        """Fetch the cache lines of a staged room that ``size`` bytes will be copied into. A master has not checked it."""
        if entry.region < self.regions.count:
            memif_prefetch_write(self.regions.at(entry), size)

    cdef int publish_staged(self, int used) except -1 nogil:
        """Allocate and publish staged descriptors in one step."""
        self.allocated = <uint16_t> (self.allocated + used)
        return self.publish(self.staged, used)

    cdef int publish(self, const memif_descriptor *entries, int count) except -1 nogil:
        """Write descriptors into the ring, then move the index that shows them to the peer."""
        if count:
            self.write(entries, self.published, count)
            self.published = <uint16_t> (self.published + count)
            self.published_total = min(self.published_total + <uint32_t> count, <uint32_t> 0xFFFF)
            self.publish_index(self.published)
            self.tally(entries, count)
        return 0

    cdef int unreturned(self) noexcept nogil:
        """Return ``in_flight``."""
        return 0

    cdef int room(self) except -1 nogil:
        """Return how many buffers could be allocated now."""
        with gil:
            raise NotImplementedError

    cdef int prepare(self, int position, int count) except -1 nogil:
        """Stage the ``count`` free buffers from ``position`` on as descriptors of their whole room, not checked."""
        with gil:
            raise NotImplementedError

    cdef int check_room(self, uint16_t index, const memif_descriptor *entry) except -1 nogil:
        """Check a staged room that the peer has posted. Only a master has any."""
        with gil:
            raise NotImplementedError

    cdef int publish_index(self, uint16_t index) except -1 nogil:
        """Store our index of the ring, after everything that it publishes."""
        with gil:
            raise NotImplementedError


@cython.final
cdef class SlaveTxRing(TxRingBase):
    """S2M, written by the slave: it fills its own buffers and advances head."""

    def __cinit__(self, memory, buffers):
        self.take_buffers(buffers)
        self.buffers_are_ours = True

    cdef int unreturned(self) noexcept nogil:
        cdef uint16_t in_flight = <uint16_t> (self.published - memif_load_acquire(&self.ring.tail))  # A5
        return in_flight if in_flight <= self.size else 0  # the next send reports the violation

    cdef int room(self) except -1 nogil:
        cdef uint16_t tail = memif_load_acquire(&self.ring.tail)  # acquire: memory-order.md, A3
        cdef uint16_t in_flight = <uint16_t> (self.published - tail)
        if in_flight > self.size:
            return self.violated("tail {} is more than {} away from head {}", tail, self.size, self.published)
        cdef int free = self.size - in_flight - <uint16_t> (self.allocated - self.published)
        if free < 0:
            return self.violated("tail {} went back: buffers that it had returned are allocated", tail, 0, 0)
        return free

    cdef int prepare(self, int position, int count) except -1 nogil:
        cdef int i
        cdef uint16_t first = self.allocated, mask = self.mask
        cdef const uint32_t *offsets = self.buffers.offsets
        cdef memif_descriptor *into = self.staged
        cdef memif_descriptor fresh
        fresh.flags = 0
        fresh.region = self.buffers.region
        fresh.length = self.buffers.size
        fresh.metadata = 0
        for i in range(position, position + count):
            fresh.offset = offsets[<uint16_t> (first + i) & mask]
            into[i] = fresh
        self.rooms_staged = position + count
        return 0

    cdef int publish_index(self, uint16_t index) except -1 nogil:
        memif_store_release(&self.ring.head, index)  # release: memory-order.md, R1
        return 0

    cdef int forward_own(self, RingBurst own) except -1:
        if not are_siblings(own.ring, self):
            return self.copy_forward(own)
        cdef OwnBuffers theirs = own.ring.buffers
        cdef int room, sent = 0, start = own.sent, stop, i
        self.require_nothing_open()
        room = self.room()
        while start < own.count:
            stop = whole_packet_end(own.entries, start, own.count)
            if stop < 0:
                break
            if not is_dropped(own.entries, start, stop):
                if sent + stop - start > room:
                    self.ring_full += 1
                    break
                for i in range(start, stop):
                    clean(&self.staged[sent], &own.entries[i])
                    # Only our record changes here. The peer gets the buffer with the new index, below.
                    swap(theirs, <uint16_t> (own.first + i) & own.ring.mask,
                          self.buffers, <uint16_t> (self.published + sent) & self.mask)
                    sent += 1
            start = stop
        own.mark_sent(start)
        self.publish_staged(sent)
        return sent

    cdef int relay_entries(self, RxRingBase ring, int limit) except -1 nogil:
        """Check, swap, publish and refill in one pass over the descriptors."""
        if not are_siblings(ring, self):
            return TxRingBase.relay_entries(self, ring, limit)  # copies
        cdef memif_descriptor *entries = ring.scratch
        cdef int i, room, count = ring.take_entries(limit, False), whole = count
        cdef bint more = ring.more
        if not count:
            return 0
        ring.more = True  # the packets stay if this raises
        room = self.room()
        ring.more = more
        if count > room:
            whole = room
            while whole and entries[whole - 1].flags & NEXT:
                whole -= 1
            self.ring_full += 1
            ring.more = True
        for i in range(whole):
            swap(ring.buffers, <uint16_t> (ring.taken + i) & ring.mask,
                  self.buffers, <uint16_t> (self.published + i) & self.mask)
            entries[i].metadata = 0
        if whole:
            self.allocated = <uint16_t> (self.allocated + whole)
            self.publish(entries, whole)
            ring.consume(entries, whole)
        return whole

    def enqueue(self, burst, first, count):
        cdef RingBurst own = own_burst(burst)
        cdef RingBase ring = own.ring
        with cython.critical_section(self, ring):
            return self.enqueue_own(received_burst(own), clamped(first), clamped(count))

    cdef RingBurst enqueue_own(self, RingBurst own, int64_t first, int64_t count):
        """Do as ``enqueue``, with a burst that was received and has not ended."""
        if not are_siblings(own.ring, self):
            raise ConfigError("the burst was not received on a ring of the same slave")
        if count < 0 or not 0 <= first <= own.count - own.sent:
            raise ConfigError(f"{count} buffers from {first} on, of a burst of {len(own)}")
        cdef OwnBuffers theirs = own.ring.buffers
        cdef RingBurst swapped = new_burst(self)
        self.require_not_sending()
        own.ring.require_idle()  # pack_into may be reading the entries
        cdef int begin = own.sent + <int> first, asked = <int> min(count, <int64_t> (own.count - begin)), i, position
        cdef uint16_t slot
        cdef int wanted = min(asked, self.room())
        self.ring_full += wanted < asked
        swapped.fill(self.allocated, self.staged, wanted)  # for the room alone: they are set below
        swapped.count = 0
        for i in range(wanted):  # before the first swap: a view that is in use stops it all
            own.release_view(begin + i)
        own.changed |= wanted > 0
        for i in range(wanted):
            position = begin + i
            slot = <uint16_t> (own.first + position) & own.ring.mask
            clean(&swapped.entries[i], &own.entries[position])
            swap(theirs, slot, self.buffers, <uint16_t> (self.allocated + i) & self.mask)
            own.entries[position].flags = 0
            own.entries[position].region = theirs.region
            own.entries[position].length = theirs.size
            own.entries[position].offset = theirs.offsets[slot]
        swapped.count = wanted
        self.allocated = <uint16_t> (self.allocated + wanted)
        if wanted:
            self.open.append(swapped)
        return swapped


@cython.final
cdef class MasterTxRing(TxRingBase):
    """M2S, written by the master: it takes the buffers that the slave posted, fills them and advances tail.

    The room in a buffer is the posted length. Region and offset go back as they came.
    """

    def __cinit__(self, memory):
        self.reset()

    cdef int unreturned(self) noexcept nogil:
        cdef uint16_t posted = <uint16_t> (memif_load_acquire(&self.ring.head) - self.published)  # A5
        cdef uint32_t kept = self.size - posted if posted < self.size else 0
        return <int> min(kept, self.published_total)  # a buffer never posted was never sent either

    cdef int room(self) except -1 nogil:
        cdef uint16_t head = memif_load_acquire(&self.ring.head)  # acquire: memory-order.md, A4
        if <uint16_t> (head - self.published) > self.size:
            return self.violated(
                "head {} is more than {} descriptors ahead of tail {}", head, self.size, self.published
            )
        cdef uint16_t free = <uint16_t> (head - self.allocated)
        if free > self.size:
            return self.violated(
                "head {} went back behind {}, which it had reached before", head, self.allocated, 0
            )
        return free

    cdef int prepare(self, int position, int count) except -1 nogil:
        # Many at a time: their cache lines then come from the peer's core side by side.
        cdef int i
        self.read(&self.staged[position], <uint16_t> (self.allocated + position), count)
        if self.notes_lengths:
            for i in range(position, position + count):
                self.posted_lengths[i] = self.staged[i].length
        self.rooms_staged = position + count
        return 0

    cdef int check_room(self, uint16_t index, const memif_descriptor *entry) except -1 nogil:
        if not self.regions.holds(entry):
            return self.out_of_bounds(index, entry)
        if not entry.length:
            return self.violated("posted descriptor {} has no room", index & self.mask, 0, 0)
        return 0

    cdef int publish_index(self, uint16_t index) except -1 nogil:
        memif_store_release(&self.ring.tail, index)  # release: memory-order.md, R2
        return 0
