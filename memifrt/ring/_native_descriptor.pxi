# The layout of shared memory, as Cython sees memif_ring.h, and the regions that descriptors point into.
# The twin of reference/descriptor.py.

cdef extern from "memif_ring.h":
    ctypedef struct memif_descriptor:
        uint16_t flags
        uint16_t region
        uint32_t length
        uint32_t offset
        uint32_t metadata
    ctypedef struct memif_ring:
        uint32_t cookie
        uint16_t flags
        uint16_t head
        uint16_t tail
        memif_descriptor *descriptors
    enum:
        COOKIE "MEMIF_COOKIE"
        HEADER_SIZE "MEMIF_HEADER_SIZE"
        MASK_INT "MEMIF_MASK_INT"
        NEXT "MEMIF_NEXT"
    uint16_t memif_load_acquire(const uint16_t *index) nogil
    uint16_t memif_load(const uint16_t *index) nogil
    uint16_t memif_load_fence(const uint16_t *flags) nogil
    void memif_store_release(uint16_t *index, uint16_t value) nogil
    void memif_store_fence(uint16_t *flags, uint16_t value) nogil
    void memif_barrier() nogil
    void memif_prefetch_read(const void *address) nogil
    void memif_prefetch_write(const void *address, size_t size) nogil
    void memif_copy_descriptors(memif_descriptor *into, const memif_descriptor *source, int count) nogil
    void memif_move(void *into, const void *source, size_t size) nogil
    uint64_t memif_this_thread() nogil
    void memif_count(int *counter, int number) nogil
    bint memif_only_reference(PyObject *object)
    uint64_t memif_sum(const memif_descriptor *entries, int count, uint64_t *octets) nogil

cdef enum:
    # A flag that exists only in our copies: forward leaves this packet out. A peer cannot set it, because a copy keeps
    # no flag of the peer's but NEXT.
    DROPPED = 0x8000
    # Buffers ahead to fetch the first cache line of, while the present one is copied: a miss across cores costs about
    # as much as copying a few small packets.
    AHEAD = 6
    # Buffers ahead to fetch all cache lines of, to copy into. Further ahead, large packets would lose them again.
    NEAR = 3
    # Posted descriptors that are copied at a time, so that a short burst does not copy a long ring.
    CHUNK = 64
    # Descriptors that a burst holds without memory of its own.
    FEW = 4
    # Bytes from which on a copy is made without the GIL. To give it up and take it again costs about as much as copying
    # a few KiB.
    LARGE = 65536
    # As in memifrt.types.
    MAX_RECEIVED_BUFFER = 65536
    MAX_PACKET_SIZE = 1 << 24


@cython.final
cdef class Regions:
    """The regions of a connection, as pointers. The buffer protocol holds them: no region is unmapped while a ring or a
    burst can reach it."""

    cdef object views
    cdef Py_buffer *held
    cdef Py_ssize_t count

    def __cinit__(self, views):
        self.views = tuple(views)
        self.held = <Py_buffer *> malloc(max(1, len(self.views)) * sizeof(Py_buffer))
        if self.held is NULL:
            raise MemoryError
        self.count = 0
        for view in self.views:
            PyObject_GetBuffer(view, &self.held[self.count], PyBUF_SIMPLE | PyBUF_WRITABLE)
            self.count += 1

    def __dealloc__(self):
        while self.count:
            self.count -= 1
            PyBuffer_Release(&self.held[self.count])
        free(self.held)

    cdef bint is_same(self, Regions other) noexcept nogil:
        """Return whether both hold the same memory."""
        cdef Py_ssize_t i
        if self is other:
            return True
        if self.count != other.count:
            return False
        for i in range(self.count):
            if self.held[i].buf != other.held[i].buf or self.held[i].len != other.held[i].len:
                return False
        return True

    cdef inline bint holds(self, const memif_descriptor *entry) noexcept nogil:
        """Return whether a copied descriptor lies inside its region. The sum is in 64 bits, so that it cannot wrap."""
        return (
            entry.region < self.count
            and <uint64_t> entry.offset + entry.length <= <uint64_t> self.held[entry.region].len
        )

    cdef inline uint8_t *at(self, const memif_descriptor *entry) noexcept nogil:
        """Return the data of a descriptor that has been checked."""
        return <uint8_t *> self.held[entry.region].buf + entry.offset


cdef inline void clean(memif_descriptor *into, const memif_descriptor *entry) noexcept nogil:
    """Set ``into`` to a received descriptor as we send it: without our flags and without the metadata of the peer."""
    into.flags = entry.flags & NEXT
    into.region = entry.region
    into.length = entry.length
    into.offset = entry.offset
    into.metadata = 0
