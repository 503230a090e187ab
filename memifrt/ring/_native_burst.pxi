# A burst: buffers of one ring, as checked copies of their descriptors.
# The twin of reference/burst.py: the same names, the same checks, the same order.


@cython.final
@cython.freelist(16)
cdef class RingBurst:
    """A run of buffers of one ring, as copied descriptors. A view is made when it is first asked for.

    The burst itself exports the memory of its views. So every view, and every slice of one, keeps the burst, the ring
    and the mapping alive. Exports that are left when our own views are released belong to derived views.
    """

    cdef RingBase ring
    # The ring's index of the first buffer.
    cdef uint16_t first
    cdef int count
    # Buffers from the front that have been sent.
    cdef readonly int sent
    # The buffer of the view that is being made; -1 at all other times.
    cdef int exporting
    # Without the GIL: the thread that makes it.
    cdef uint64_t exporter
    # Exports that exist: one for each view, until everything that was made of the view is gone.
    cdef int exports
    # Whether the burst is over: its buffers can no longer be used.
    cdef bint ended
    # Whether a buffer has been trimmed or swapped since it was received: it cannot be put back then.
    cdef bint changed
    cdef memif_descriptor *entries
    # Memory for the entries of a short burst.
    cdef memif_descriptor few[FEW]
    # On a master's transmit ring: the lengths that the peer posted, which are the room in each buffer. Otherwise NULL.
    cdef uint32_t *posted_lengths
    cdef list views

    def __cinit__(self):
        self.exporting = -1
        self.ended = True  # until a ring gives it buffers: Python code can make one, too

    def __dealloc__(self):
        if self.entries is not self.few:
            free(self.entries)
        free(self.posted_lengths)

    def __reduce_ex__(self, protocol):
        refuse_to_copy(self)

    def __len__(self):
        return self.count - self.sent

    def __getitem__(self, index):
        cdef RingBase ring = self.ring
        with cython.critical_section(ring):
            return self.view(self.position(index))

    def __iter__(self):
        cdef int position
        for position in range(self.sent, self.count):
            yield self.view_if_left(position)

    def packets(self):
        cdef Packets packets = Packets.__new__(Packets)
        packets.burst = self
        packets.next = self.sent
        return packets

    def length(self, index):
        return self.entries[self.position(index)].length

    def flags(self, index):
        return BufferFlag(self.entries[self.position(index)].flags & NEXT)

    def slot(self, index):
        return (self.first + self.position(index)) & self.ring.mask

    def pack_into(self, target, bytes stamp, limit, first=0):
        cdef Py_buffer held
        cdef RingBase ring = self.ring
        cdef int64_t most = max(clamped(limit), 0), wanted = max(clamped(first), 0)
        if ring is None:
            raise ValueError("the burst has no buffers: no ring has made it")
        in_place(target, &held, PyBUF_SIMPLE, "the target", True)
        try:
            with cython.critical_section(ring):
                return self.pack(&held, stamp, most, self.sent + wanted)
        finally:
            PyBuffer_Release(&held)

    cdef object pack(self, Py_buffer *held, bytes stamp, int64_t most, int64_t wanted):
        """Do as ``pack_into``, from the position ``wanted`` on."""
        cdef const uint8_t *mark = <const uint8_t *> PyBytes_AS_STRING(stamp)
        cdef size_t marked = len(stamp)
        cdef uint8_t *into = <uint8_t *> held.buf
        cdef uint64_t octets = 0
        cdef int stop
        if self.ended:
            raise self.ring.ended_error(ValueError)
        memif_sum(self.entries, self.count, &octets)
        if min(octets, <uint64_t> held.len) < LARGE:
            stop = self.pack_entries(&into, into + held.len, mark, marked, most, wanted)
        else:
            self.ring.require_idle()
            self.ring.busy = True
            with nogil:
                stop = self.pack_entries(&into, into + held.len, mark, marked, most, wanted)
            self.ring.busy = False
        return stop - self.sent, into - <uint8_t *> held.buf

    cdef int pack_entries(
        self, uint8_t **target, uint8_t *end, const uint8_t *mark, size_t marked, int64_t most, int64_t wanted
    ) noexcept nogil:
        """Pack packets into memory that ends at ``end``; return the position of the first one that did not fit.

        :param target: where to begin; is set to where the last packet stops.
        """
        cdef uint8_t *into = target[0]
        cdef int start = self.sent, stop, i
        cdef uint64_t total, left, part
        cdef uint32_t lengths[2]
        cdef memif_descriptor *entries = self.entries
        while start < self.count:
            stop = start + 1 if not entries[start].flags & NEXT else packet_end(entries, start, self.count)
            if start >= wanted:
                if stop + AHEAD <= self.count:
                    memif_prefetch_read(self.ring.regions.at(&entries[stop + AHEAD - 1]))
                total = 0
                for i in range(start, stop):
                    total += entries[i].length
                left = min(total, <uint64_t> most)
                if <uint64_t> (end - into) < marked + sizeof(lengths) + left:
                    break
                if marked == 8:  # the usual size, without a call
                    memcpy(into, mark, 8)
                else:
                    memcpy(into, mark, marked)
                into += marked
                lengths[0] = <uint32_t> left
                lengths[1] = <uint32_t> min(total, <uint64_t> 0xFFFFFFFF)
                memcpy(into, lengths, sizeof(lengths))
                into += sizeof(lengths)
                for i in range(start, stop):
                    part = min(left, <uint64_t> entries[i].length)
                    memif_move(into, self.ring.regions.at(&entries[i]), part)
                    into += part
                    left -= part
            start = stop
        target[0] = into
        return start

    @property
    def done(self):
        warn_renamed(
            "burst.done",
            "0: len(burst) and indices count the buffers that are left, burst.sent the others",
            stacklevel=2,
        )
        return 0

    def set_length(self, index, length):
        cdef RingBase ring = self.ring
        with cython.critical_section(ring):
            self.trim(index, 0, length)

    def advance(self, index, count):
        cdef RingBase ring = self.ring
        with cython.critical_section(ring):
            self.trim(index, count, self.length(index) - count)

    def set_flags(self, index, flags):
        cdef RingBase ring = self.ring
        with cython.critical_section(ring):
            self.write_flags(index, flags)

    cdef write_flags(self, index, flags):
        """Do as ``set_flags``."""
        cdef int position = self.position(index)
        if flags == (self.entries[position].flags & NEXT):
            return
        if not self.ring.is_tx:
            raise ConfigError(
                "only the flags of an allocated buffer can be set: those of a received one are the peer's"
            )
        if flags not in (0, NEXT):
            raise ConfigError(f"the flags are {flags!r}; they must be {NEXT} (the packet goes on) or 0")
        self.entries[position].flags = flags

    def drop(self, index):
        cdef RingBase ring = self.ring
        with cython.critical_section(ring):
            self.drop_at(self.position(index))

    cdef drop_at(self, int position):
        """Leave out the packet that the buffer at a position belongs to."""
        self.check_left(position)
        if self.ring.is_tx:
            raise ConfigError("only a received packet can be dropped: an allocated one is not transmitted, or rewound")
        self.entries[position].flags |= DROPPED

    def close(self):
        cdef RingBase ring = self.ring
        with cython.critical_section(ring):
            self.end()

    cdef end(self):
        """Do as ``close``."""
        if self.ended:
            return
        cdef bint held = self.release_all()
        self.ended = True
        self.ring.burst_ended()
        if held:
            raise still_exported()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            self.close()
        except BufferError:
            if error is None:  # otherwise the frames of that error hold the view: the user must see that error
                raise

    def __repr__(self):
        return f"<burst of {len(self)} buffers{', ended' if self.ended else ''}>"

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        # Only view() may ask, which says first which buffer it means; without the GIL, another thread may be in it.
        if self.exporting < 0 or self.exporter != memif_this_thread():
            buffer.obj = None
            raise BufferError("a burst is a sequence of buffers: take burst[i]")
        cdef memif_descriptor *entry = &self.entries[self.exporting]
        PyBuffer_FillInfo(buffer, self, self.ring.regions.at(entry), entry.length, 0, flags)
        memif_count(&self.exports, 1)

    def __releasebuffer__(self, Py_buffer *buffer):
        memif_count(&self.exports, -1)

    cdef int fill(self, uint16_t first, const memif_descriptor *entries, int count) except -1:
        """Take these descriptors into an empty burst."""
        if count > FEW:
            self.entries = <memif_descriptor *> malloc(count * sizeof(memif_descriptor))
            if self.entries is NULL:
                raise MemoryError
        self.first = first
        memif_copy_descriptors(self.entries, entries, count)
        self.count = count
        return 0

    cdef object view(self, int position):
        """Return the view of a buffer, a new one if there is none yet."""
        cdef object view
        if self.views is None:
            self.views = [None] * self.count
        view = self.views[position]
        if view is None:
            self.exporter = memif_this_thread()
            self.exporting = position
            try:
                view = PyMemoryView_FromObject(self)
            finally:
                self.exporting = -1
                self.exporter = 0
            self.views[position] = view
        return view

    cdef object view_if_left(self, int position):
        """Return the view of a buffer, if it may still be used."""
        cdef RingBase ring = self.ring
        with cython.critical_section(ring):
            self.check_left(position)
            return self.view(position)

    cdef int position(self, index) except -1:
        """Return the position of a buffer in ``entries``.

        Indices start at the first buffer that is not sent. Negative ones count from the end.
        """
        cdef int64_t wanted = clamped(index), left = self.count - self.sent
        if self.ended and self.ring is not None:
            raise self.ring.ended_error(ValueError)
        if wanted < 0:
            wanted += left
        if not 0 <= wanted < left:
            raise IndexError(f"buffer {index} of a burst of {left}{f', after {self.sent} sent' if self.sent else ''}")
        return self.sent + <int> wanted

    cdef int check_left(self, int position) except -1:
        """Check that the buffer at a position may still be used."""
        if self.ended:
            raise self.ring.ended_error(ValueError)
        if position < self.sent:
            raise ValueError("this buffer has been sent: it belongs to the peer")
        if position >= self.count:
            raise IndexError("this buffer has been given back")
        return 0

    cdef trim(self, index, count, length):
        """Move the start of a buffer's data by ``count`` bytes, and make the data ``length`` bytes long."""
        self.ring.require_idle()  # pack_into may be reading the entries
        cdef int position = self.position(index)
        cdef memif_descriptor *entry = &self.entries[position]
        cdef int64_t start, stop, present = entry.length, offset = entry.offset
        cdef int64_t moved = clamped(count), wanted = clamped(length)
        self.ring.buffer_bounds(<uint16_t> (self.first + position), entry, &start, &stop)
        if self.posted_lengths is not NULL:
            stop = offset + self.posted_lengths[position]
        if not (start <= offset + moved and 0 < wanted <= stop - offset - moved):
            raise ConfigError(
                f"buffer {index} has {present} bytes of data, room for {offset - start} before and "
                f"{stop - offset - present} behind them: they cannot start {count} bytes further and be {length} long"
            )
        if moved and self.ring.is_tx and self.ring.buffers is None:
            raise ConfigError("a master sends from the start of a buffer: only a slave moves data inside it")
        self.release_view(position)
        self.changed = True
        entry.length = <uint32_t> wanted
        entry.offset = <uint32_t> (offset + moved)

    cdef void replace_entry(self, int position, const memif_descriptor *entry) noexcept:
        """Take over a buffer that comes from another slot."""
        if self.ring.is_tx:
            clean(&self.entries[position], entry)
        else:
            self.entries[position] = entry[0]

    cdef release_view(self, int position):
        """End the view of one buffer.

        :raises BufferError: something still uses it.
        """
        if self.views is not None and self.views[position] is not None:
            # To drop a view that nobody else knows releases it, without the call.
            if not memif_only_reference(PyList_GET_ITEM(self.views, position)):
                self.views[position].release()
            self.views[position] = None

    cdef bint release_views(self, int stop) except -1:
        """End the views of the buffers before ``stop``, as far as possible; return whether one is still in use."""
        cdef bint held = False
        cdef int i
        if self.views is None:
            return False
        for i in range(min(stop, <int> len(self.views))):
            try:
                self.release_view(i)
            except BufferError:  # close() tries this one again
                held = True
        return held

    cdef bint release_all(self) except -1:
        """End all views; return whether something that was made of one is still held."""
        cdef bint held = self.release_views(self.count)
        return held or self.exports > 0

    cdef mark_sent(self, int sent):
        """Count the buffers before ``sent`` as sent, and end their views."""
        self.sent = sent
        self.release_views(sent)


@cython.final
@cython.freelist(64)
cdef class Packet:
    """A whole packet of a burst: where it starts and stops. The views are the burst's."""

    cdef RingBurst burst
    cdef int start
    cdef int stop

    cdef RingBurst of(self):
        """Return the burst. Python code can make a packet without one."""
        if self.burst is None:
            raise ValueError("the packet is of no burst: no burst has made it")
        return self.burst

    @property
    def views(self):
        cdef RingBurst burst = self.of()
        if self.stop == self.start + 1:
            return (burst.view_if_left(self.start),)
        return tuple([burst.view_if_left(i) for i in range(self.start, self.stop)])

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        cdef RingBurst burst = self.of()
        cdef RingBase ring = burst.ring
        cdef memif_descriptor *entry
        with cython.critical_section(ring):
            burst.check_left(self.start)
            if self.stop != self.start + 1:
                raise in_several(self.stop - self.start)
            entry = &burst.entries[self.start]
            # The burst is the owner of this memory and counts its exports, those of its views and these.
            PyBuffer_FillInfo(buffer, burst, ring.regions.at(entry), entry.length, 0, flags)
            memif_count(&burst.exports, 1)

    def __bytes__(self):
        cdef RingBurst burst = self.of()
        cdef RingBase ring = burst.ring
        with cython.critical_section(ring):
            burst.check_left(self.start)
            return joined(ring.regions, burst.entries, self.start, self.stop)

    def __len__(self):
        cdef RingBurst burst = self.of()
        cdef RingBase ring = burst.ring
        cdef Py_ssize_t total = 0
        cdef int i
        with cython.critical_section(ring):
            burst.check_left(self.start)
            for i in range(self.start, self.stop):
                total += burst.entries[i].length
        return total

    def drop(self):
        cdef RingBurst burst = self.of()
        cdef RingBase ring = burst.ring
        with cython.critical_section(ring):
            burst.drop_at(self.start)

    def __iter__(self):
        warn_renamed("iterating over a packet", "iterating over packet.views", stacklevel=2)
        return iter(self.views)

    def __getitem__(self, index):
        warn_renamed("packet[i]", "packet.views[i]", stacklevel=2)
        return self.views[index]

    def __repr__(self):
        return f"<packet in {self.stop - self.start} buffers>"


@cython.final
@cython.freelist(8)
cdef class Packets:
    """Iterates over the packets of a burst that are left. A generator would cost more for each packet."""

    cdef RingBurst burst
    # Where the next packet starts.
    cdef int next

    def __iter__(self):
        return self

    def __next__(self):
        cdef int start = self.next, stop
        if self.burst is None or start >= self.burst.count:
            raise StopIteration
        stop = packet_end(self.burst.entries, start, self.burst.count)
        packet = new_packet(self.burst, start, stop)
        self.next = stop
        return packet


cdef Packet new_packet(RingBurst burst, int start, int stop):
    """Return the packet in these buffers, which must be left."""
    cdef Packet packet = Packet.__new__(Packet)
    cdef RingBase ring = burst.ring
    cdef int i
    with cython.critical_section(ring):
        for i in range(start, stop):
            burst.check_left(i)
    packet.burst = burst
    packet.start = start
    packet.stop = stop
    return packet


cdef object in_several(int buffers):
    return BufferError(f"the packet lies in {buffers} buffers: take packet.views, or bytes(packet) for a copy")


cdef object still_exported():
    return BufferError(
        "a view of this burst is still exported and its buffer goes back to the peer: copy what must outlive "
        "the burst, and drop the rest (slices, casts, NumPy arrays) before it ends"
    )


cdef object joined(Regions regions, const memif_descriptor *entries, int start, int stop):
    """Return the data of the packet in these buffers."""
    cdef uint64_t total = 0
    cdef int i
    for i in range(start, stop):
        total += entries[i].length
    cdef bytes packet = PyBytes_FromStringAndSize(NULL, total)
    cdef char *into = PyBytes_AS_STRING(packet)
    for i in range(start, stop):
        memcpy(into, regions.at(&entries[i]), entries[i].length)
        into += entries[i].length
    return packet


cdef int packet_end(const memif_descriptor *entries, int start, int count) noexcept nogil:
    """Return where the packet that starts here stops; an unfinished one stops with the last descriptor."""
    while start < count:
        start += 1
        if not entries[start - 1].flags & NEXT:
            break
    return start


cdef int whole_packet_end(const memif_descriptor *entries, int start, int count) noexcept nogil:
    """Do as ``packet_end``, but return -1 for a packet that the burst cuts off (``split``)."""
    cdef int stop = packet_end(entries, start, count)
    return -1 if entries[stop - 1].flags & NEXT else stop


cdef bint is_dropped(const memif_descriptor *entries, int start, int stop) noexcept nogil:
    """Return whether the packet in these buffers has been dropped."""
    while start < stop:
        if entries[start].flags & DROPPED:
            return True
        start += 1
    return False


cdef RingBurst new_burst(RingBase ring):
    """Return a burst without buffers. To make an object can run Python code, in a collection of garbage, that uses the
    ring: callers do this before they look at the ring."""
    cdef RingBurst burst = RingBurst.__new__(RingBurst)
    burst.ring = ring
    burst.entries = burst.few
    burst.ended = False
    return burst


cdef RingBurst own_burst(burst):
    """Return ``burst`` if this implementation made it.

    :raises ConfigError: it did not.
    """
    if not isinstance(burst, RingBurst):
        raise ConfigError(f"{burst!r} is not a burst of this ring implementation")
    return burst



cdef RingBurst received_burst(burst):
    """Return ``burst`` if it was received and has not ended.

    :raises ConfigError: it was not, or has ended.
    """
    cdef RingBurst own = own_burst(burst)
    if own.ring is None or own.ring.is_tx:
        raise ConfigError("only a received burst can be forwarded: transmit an allocated one")
    if own.ended:
        raise own.ring.ended_error(ConfigError)
    return own
