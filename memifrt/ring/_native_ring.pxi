# The common parts of all four rings: the header, descriptors, counters, and a slave's record of its buffers.
# The twin of reference/ring.py: the same names, the same checks, the same order.
# Read docs/memory-order.md before you change the order of two accesses of shared memory.


cdef class RingBase:
    """A ring in shared memory, and what we count on it."""

    # The fork handler refers to it weakly, to call abandon().
    cdef object __weakref__
    cdef readonly int size
    cdef uint16_t mask
    cdef memif_ring *ring
    cdef Regions regions
    cdef object name
    # Bursts that hold buffers, oldest first.
    cdef list open
    # In a forked child: the id of the process to which the ring belongs.
    cdef object owner
    # A slave's own buffers; None for a master.
    cdef OwnBuffers buffers
    # Whether this is a ring to send on.
    cdef bint is_tx
    cdef uint64_t packets, octets, ring_full, bad_descriptors
    # Whether forward_from uses the ring without the GIL: nothing else may.
    cdef bint busy

    # Everything is set up in __cinit__, here and below. It runs once for every object, whatever Python code does with
    # __new__ and __init__, so that methods can rely on it.
    def __cinit__(self, memory, *args):
        cdef int64_t log2_size = clamped(memory.log2_size), region = clamped(memory.region)
        cdef int64_t offset = clamped(memory.offset)
        self.name = memory.name
        self.open = []
        self.regions = Regions(memory.regions)
        if not 0 <= log2_size <= MAX_LOG2_RING_SIZE or not 0 <= region < self.regions.count:
            raise ConfigError(f"{self.name}: there is no ring of 2^{memory.log2_size} in region {memory.region}")
        self.size = 1 << log2_size
        self.mask = <uint16_t> (self.size - 1)
        if (
            offset < 0
            or offset % 4
            or offset + HEADER_SIZE + self.size * <int64_t> sizeof(memif_descriptor) > self.regions.held[region].len
        ):
            raise ConfigError(f"{self.name}: the ring at {memory.offset} lies outside its region, or is not aligned")
        self.ring = <memif_ring *> (<uint8_t *> self.regions.held[region].buf + offset)

    @property
    def head(self):
        return memif_load(&self.ring.head)

    @property
    def tail(self):
        return memif_load(&self.ring.tail)

    @property
    def flags(self):
        return memif_load_fence(&self.ring.flags)  # memory-order.md, F2

    @property
    def capacity(self):
        return 0 if self.buffers is None else self.buffers.size

    @property
    def counters(self):
        return QueueCounters(self.packets, self.octets, 0, self.ring_full, self.bad_descriptors)

    def set_mask(self, bint masked):
        self.set_interrupts(not masked)

    cdef void set_interrupts(self, bint wanted) noexcept nogil:
        """Tell the peer whether to kick."""
        memif_store_fence(&self.ring.flags, 0 if wanted else MASK_INT)  # memory-order.md, F1

    @property
    def is_held(self):
        return bool(self.open)

    def abandon(self, pid):
        cdef RingBurst burst
        self.owner = pid
        for burst in list(self.open):
            burst.release_all()
            burst.ended = True
        self.open.clear()

    cdef int require_idle(self) except -1:
        """:raises ConfigError: a call that has given up the GIL uses the ring."""
        if self.busy:
            raise ConfigError(f"{self.name} is in use: another thread copies, or forward_from() runs or called this one")
        return 0

    cdef object ended_error(self, kind):
        """Return the error for a use of a burst that has ended."""
        if self.owner is not None:
            return ForkedError(self.owner, "burst")
        return kind("the burst has ended: its buffers belong to the peer")

    cdef void take_buffers(self, buffers) except *:
        """Become a slave's ring: check the slave's own buffers, and make the header."""
        self.buffers = OwnBuffers(self.regions, buffers, self.size)
        self.ring.cookie = COOKIE
        self.reset()

    cdef void reset(self) noexcept:
        """Set both indices and the flags to 0, whatever the peer's memory has in them."""
        self.ring.flags = 0
        memif_store_release(&self.ring.head, 0)
        memif_store_release(&self.ring.tail, 0)  # memory-order.md, R5

    cdef void read(self, memif_descriptor *into, uint16_t index, int count) noexcept nogil:
        """Copy ``count`` descriptors from ``index`` on. The caller checks and uses only this copy."""
        cdef int start = index & self.mask
        cdef int fits = min(count, self.size - start)
        memif_copy_descriptors(into, &self.ring.descriptors[start], fits)
        if fits < count:
            memif_copy_descriptors(into + fits, self.ring.descriptors, count - fits)
        memif_barrier()  # memory-order.md, B1

    cdef void write(self, const memif_descriptor *entries, uint16_t index, int count) noexcept nogil:
        """Write descriptors into the slots from ``index`` on."""
        cdef int start = index & self.mask
        cdef int fits = min(count, self.size - start)
        memif_copy_descriptors(&self.ring.descriptors[start], entries, fits)
        if fits < count:
            memif_copy_descriptors(self.ring.descriptors, entries + fits, count - fits)

    cdef void buffer_bounds(
        self, uint16_t index, const memif_descriptor *entry, int64_t *start, int64_t *stop
    ) noexcept:
        """Set where the memory starts and stops in which the data of a buffer may be moved: a slave's own buffer, or
        just the present data of a master's."""
        if self.buffers is None:
            start[0] = entry.offset
            stop[0] = <int64_t> entry.offset + entry.length
        else:
            start[0] = self.buffers.offsets[index & self.mask]
            stop[0] = start[0] + self.buffers.size

    cdef void tally(self, const memif_descriptor *entries, int count) noexcept nogil:
        """Count packets and bytes of received or sent descriptors."""
        cdef uint64_t octets = 0
        self.packets += count - memif_sum(entries, count, &octets)
        self.octets += octets

    cdef int violated(self, str what, int64_t first, int64_t second, int64_t third) except -1 with gil:
        """:raises RingViolation: always. ``what`` is a format for the numbers."""
        raise self.violation(what.format(first, second, third))

    cdef object violation(self, what):
        """Count a violation, and return the error that reports it."""
        self.bad_descriptors += 1
        return RingViolation(f"{self.name}: {what}", sending=self.is_tx)

    cdef object outside(self, uint16_t index, const memif_descriptor *entry, where):
        """Return the error for a descriptor that points outside ``where``."""
        return self.violation(
            f"descriptor {index & self.mask} points outside {where} "
            f"(region {entry.region}, offset {entry.offset}, length {entry.length})"
        )

    cdef int out_of_bounds(self, uint16_t index, const memif_descriptor *entry) except -1 with gil:
        """:raises RingViolation: always: this descriptor does not lie inside its region."""
        if entry.region >= self.regions.count:
            raise self.outside(index, entry, f"the {self.regions.count} region(s)")
        raise self.outside(
            index, entry, f"region {entry.region} of {self.regions.held[entry.region].len} bytes"
        )

    cdef burst_ended(self):
        """Take back the buffers of bursts that have ended, as far as the order of the ring allows."""
        raise NotImplementedError


# --- a slave's record of its buffers ---------------------------------------------------------------------------------


@cython.final
@cython.no_gc
cdef class OwnBuffers:
    """A slave's own record of the buffer in each slot. It is never read from shared memory."""

    cdef uint16_t region
    cdef uint32_t size
    cdef uint32_t *offsets
    cdef Py_buffer held
    cdef bint holding

    def __cinit__(self, Regions regions not None, buffers, int slots):
        cdef int i
        self.region = buffers.region
        self.size = buffers.size
        PyObject_GetBuffer(buffers.offsets, &self.held, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self.holding = True
        self.offsets = <uint32_t *> self.held.buf
        if (
            self.held.len != <Py_ssize_t> (slots * sizeof(uint32_t))
            or self.region >= regions.count
            or not self.size
        ):
            raise ConfigError(f"{slots} slots need {slots} offsets of buffers in a region that exists")
        for i in range(slots):  # once: afterwards they are only swapped between slots
            if <uint64_t> self.offsets[i] + self.size > <uint64_t> regions.held[self.region].len:
                raise ConfigError(f"the buffer of slot {i} lies outside its region")

    def __dealloc__(self):
        if self.holding:
            PyBuffer_Release(&self.held)


def check_cookie(memory):
    """Check that there is a ring.

    :raises RingViolation: with the code ``COOKIE``, if there is none.
    """
    cookie = int.from_bytes(memory.regions[memory.region][memory.offset : memory.offset + 4], "little")
    if cookie != COOKIE:
        raise RingViolation(
            f"{memory.name}: the header's cookie is {cookie:#x}, not {COOKIE:#x}", ErrorCode.COOKIE
        )


def exchange(burst_a, index_a, burst_b, index_b):
    """Swap two buffers of one slave's rings, received or allocated, between their slots.

    :raises ConfigError: the rings are not of one slave.
    """
    cdef RingBurst a = own_burst(burst_a), b = own_burst(burst_b)
    if not are_siblings(a.ring, b.ring):
        raise ConfigError("buffers can be exchanged only between the rings of one slave")
    cdef RingBase ring_a = a.ring, ring_b = b.ring
    cdef int at_a, at_b
    cdef memif_descriptor entry
    with cython.critical_section(ring_a, ring_b):
        ring_a.require_idle()  # pack_into may be reading the entries
        ring_b.require_idle()
        at_a, at_b = a.position(index_a), b.position(index_b)
        a.release_view(at_a)
        b.release_view(at_b)
        entry = a.entries[at_a]
        swap(ring_a.buffers, <uint16_t> (a.first + at_a) & ring_a.mask,
              ring_b.buffers, <uint16_t> (b.first + at_b) & ring_b.mask)
        a.changed = b.changed = True
        a.replace_entry(at_a, &b.entries[at_b])
        b.replace_entry(at_b, &entry)


cdef inline void swap(OwnBuffers a, uint16_t slot_a, OwnBuffers b, uint16_t slot_b) noexcept nogil:
    """Swap, in the slave's own record, the buffers of two slots."""
    cdef uint32_t offset = a.offsets[slot_a]
    a.offsets[slot_a] = b.offsets[slot_b]
    b.offsets[slot_b] = offset


cdef bint are_siblings(RingBase a, RingBase b) noexcept nogil:
    """Return whether both are rings of one slave, and a buffer of one fits into a slot of the other."""
    if a is None or b is None or a.buffers is None or b.buffers is None or not a.regions.is_same(b.regions):
        return False
    return a.buffers.region == b.buffers.region and a.buffers.size == b.buffers.size
