# cython: language_level=3, cdivision=True, initializedcheck=False
"""The data plane, compiled: the same rings as in :mod:`memifrt.ring.reference`, byte for byte.

How to read it. Every method here has its twin in the reference, with the same name, the same checks and the same
order. What differs is only how a descriptor is copied (``snapshot``: one memcpy, then a compiler barrier, so that a
checked value can never be loaded from shared memory a second time) and that loads and stores of an index are real
acquires and releases.

No pointer is ever made from a number in shared memory before that number, in a copy of ours, has been checked against
the region that it points into.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_FORMAT,
    PyBUF_SIMPLE,
    PyBUF_STRIDES,
    PyBUF_WRITABLE,
    PyBuffer_FillInfo,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove

from collections import deque

from memifrt.errors import ConfigError, ErrorCode, ForkedError, RingViolation, not_a_packet
from memifrt.types import MAX_LOG2_RING_SIZE, BufferFlag, QueueCounters

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object number, int *overflow) except? -1

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>

    /* docs/protocol.md, Shared memory. */
    typedef struct { uint16_t flags, region; uint32_t length, offset, metadata; } memif_descriptor;
    typedef struct {
        uint32_t cookie; uint16_t flags, head; uint8_t reserved[56];
        uint16_t tail; uint8_t reserved2[62];
        memif_descriptor descriptors[];
    } memif_ring;
    _Static_assert(sizeof(memif_descriptor) == 16, "descriptor");
    _Static_assert(offsetof(memif_ring, head) == 6, "head");
    _Static_assert(offsetof(memif_ring, tail) == 64, "tail");
    _Static_assert(offsetof(memif_ring, descriptors) == 128, "descriptors");

    /* Acquire: what the peer wrote before it stored the index is seen by every load after this one. */
    static inline uint16_t memif_load_acquire(const uint16_t *index) {
        return __atomic_load_n(index, __ATOMIC_ACQUIRE);
    }
    static inline uint16_t memif_load(const uint16_t *index) { return __atomic_load_n(index, __ATOMIC_RELAXED); }
    /* A load that passes no earlier store: for a sender that publishes and then looks whether to kick. */
    static inline uint16_t memif_load_fence(const uint16_t *index) {
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        return __atomic_load_n(index, __ATOMIC_RELAXED);
    }
    /* Release: all that we wrote and read before is done when the peer sees the index. */
    static inline void memif_store_release(uint16_t *index, uint16_t value) {
        __atomic_store_n(index, value, __ATOMIC_RELEASE);
    }
    /* A store that no later load passes: for a receiver that unmasks interrupts and then looks at the ring. */
    static inline void memif_store_fence(uint16_t *index, uint16_t value) {
        __atomic_store_n(index, value, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    }
    /* memmove: a peer may make the memory that it sends overlap that which it posts. Small packets without a call: all
       is loaded before anything is stored, in two parts that overlap in the middle. */
    typedef struct { uint64_t word[2]; } memif_16;
    typedef struct { uint64_t word[4]; } memif_32;
    static inline void memif_move(void *into, const void *from, size_t size) {
        if (size > 64 || size < 16) {
            memmove(into, from, size);
        } else if (size < 32) {
            memif_16 head, tail;
            memcpy(&head, from, 16);
            memcpy(&tail, (const char *) from + size - 16, 16);
            memcpy(into, &head, 16);
            memcpy((char *) into + size - 16, &tail, 16);
        } else {
            memif_32 head, tail;
            memcpy(&head, from, 32);
            memcpy(&tail, (const char *) from + size - 32, 32);
            memcpy(into, &head, 32);
            memcpy((char *) into + size - 32, &tail, 32);
        }
    }
    /* How many of these descriptors of ours have NEXT, and the sum of their lengths: one load each. */
    static inline uint64_t memif_sum(const memif_descriptor *entries, int count, uint64_t *octets) {
        uint64_t chained = 0, sum = 0, word;
        for (int i = 0; i < count; i++) {
            memcpy(&word, &entries[i], 8);
            chained += word & 1;
            sum += word >> 32;
        }
        *octets = sum;
        return chained;
    }
    /* The compiler must take nothing that it copied before this from its source again. */
    #define memif_barrier() __asm__ volatile("" ::: "memory")
    #define memif_prefetch_read(p) __builtin_prefetch((p), 0)
    """
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
    uint16_t memif_load_acquire(const uint16_t *index) nogil
    uint16_t memif_load(const uint16_t *index) nogil
    uint16_t memif_load_fence(const uint16_t *index) nogil
    void memif_store_release(uint16_t *index, uint16_t value) nogil
    void memif_store_fence(uint16_t *index, uint16_t value) nogil
    uint64_t memif_sum(const memif_descriptor *entries, int count, uint64_t *octets) nogil
    void memif_move(void *into, const void *source, size_t size) nogil
    void memif_barrier() nogil
    void memif_prefetch_read(const void *address) nogil

cdef enum:
    NEXT = 1
    # Ours alone, in our copies: the packet is left out of what forward sends. A peer's flags are cut down to NEXT.
    DROPPED = 0x8000
    MASK_INT = 1
    COOKIE = 0x3E31F20
    HEADER = 128
    # Buffers ahead whose first cache line is fetched while the present one is copied: a miss across cores costs about
    # as much as copying a few small packets.
    AHEAD = 6
    # Rooms that are staged at a time (as in the reference): a short burst need not copy a long ring.
    CHUNK = 64
    # As in memifrt.types.
    MAX_RECEIVED_BUFFER = 65536
    MAX_PACKET_SIZE = 1 << 24


@cython.final
cdef class _Regions:
    """The regions as pointers, held by the buffer protocol: no mapping goes while a ring or burst can reach it."""

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

    cdef bint is_same(self, _Regions other):
        cdef Py_ssize_t i
        if self is other:
            return True
        if self.count != other.count:
            return False
        for i in range(self.count):
            if self.held[i].buf != other.held[i].buf or self.held[i].len != other.held[i].len:
                return False
        return True

    cdef inline bint holds(self, const memif_descriptor *entry) noexcept:
        """Whether a (copied) descriptor lies inside its region. The sum is in 64 bits: it cannot wrap."""
        return (
            entry.region < self.count
            and <uint64_t> entry.offset + entry.length <= <uint64_t> self.held[entry.region].len
        )

    cdef inline uint8_t *at(self, const memif_descriptor *entry) noexcept:
        """The data of a descriptor that has been checked."""
        return <uint8_t *> self.held[entry.region].buf + entry.offset


cdef class _Ring:
    """A ring in shared memory and what we count on it."""

    cdef readonly int size
    cdef uint16_t mask
    cdef memif_ring *ring
    cdef _Regions regions
    cdef object name
    # Bursts that hold buffers, oldest first.
    cdef object open
    # In a forked child: the process to which the ring belongs.
    cdef object owner
    cdef uint64_t packets, octets, full, bad

    # All of it in __cinit__, here and below: it runs once for every object, whatever Python code does with __new__ and
    # __init__, and a method can rely on it.
    def __cinit__(self, memory, *args):
        cdef int64_t log2_size = _clamped(memory.log2_size), region = _clamped(memory.region)
        cdef int64_t offset = _clamped(memory.offset)
        self.name = memory.name
        self.open = deque()
        self.regions = _Regions(memory.regions)
        if not 0 <= log2_size <= MAX_LOG2_RING_SIZE or not 0 <= region < self.regions.count:
            raise ConfigError(f"{self.name}: there is no ring of 2^{memory.log2_size} in region {memory.region}")
        self.size = 1 << log2_size
        self.mask = <uint16_t> (self.size - 1)
        if (
            offset < 0
            or offset % 4
            or offset + HEADER + self.size * <int64_t> sizeof(memif_descriptor) > self.regions.held[region].len
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
        return memif_load_fence(&self.ring.flags)

    @property
    def capacity(self):
        return 0

    @property
    def counters(self):
        return QueueCounters(self.packets, self.octets, 0, self.full, self.bad)

    def set_mask(self, bint masked):
        memif_store_fence(&self.ring.flags, MASK_INT if masked else 0)

    def abandon(self, pid):
        cdef _Burst burst
        self.owner = pid
        for burst in list(self.open):
            burst.release_all()
            burst.ended = True
        self.open.clear()

    cdef object ended(self, kind):
        """Why a burst cannot be used any more."""
        if self.owner is not None:
            return ForkedError(self.owner, "burst")
        return kind("the burst has ended: its buffers belong to the peer")

    cdef void reset(self) noexcept:
        self.ring.flags = 0
        memif_store_release(&self.ring.head, 0)
        memif_store_release(&self.ring.tail, 0)

    cdef void read(self, memif_descriptor *into, uint16_t index, int count) noexcept:
        """A copy of ``count`` descriptors from ``index`` on. From here on shared memory is not looked at again."""
        cdef int start = index & self.mask
        cdef int fits = min(count, self.size - start)
        memcpy(into, &self.ring.descriptors[start], fits * sizeof(memif_descriptor))
        memcpy(into + fits, self.ring.descriptors, (count - fits) * sizeof(memif_descriptor))
        memif_barrier()

    cdef void write(self, const memif_descriptor *entries, uint16_t index, int count) noexcept:
        cdef int start = index & self.mask
        cdef int fits = min(count, self.size - start)
        memcpy(&self.ring.descriptors[start], entries, fits * sizeof(memif_descriptor))
        memcpy(self.ring.descriptors, entries + fits, (count - fits) * sizeof(memif_descriptor))

    cdef void room_around(
        self, uint16_t index, const memif_descriptor *entry, int64_t *start, int64_t *stop
    ) noexcept:
        """Where the memory begins and ends that the data of a taken buffer may be moved in: a master's does not."""
        start[0] = entry.offset
        stop[0] = <int64_t> entry.offset + entry.length

    cdef void tally(self, const memif_descriptor *entries, int count) noexcept:
        cdef uint64_t octets = 0
        self.packets += count - memif_sum(entries, count, &octets)
        self.octets += octets

    cdef object violation(self, what):
        self.bad += 1
        return RingViolation(f"{self.name}: {what}", sending=isinstance(self, _TxRing))

    cdef object outside(self, uint16_t index, const memif_descriptor *entry, where):
        return self.violation(
            f"descriptor {index & self.mask} points outside {where} "
            f"(region {entry.region}, offset {entry.offset}, length {entry.length})"
        )

    cdef object out_of_bounds(self, uint16_t index, const memif_descriptor *entry):
        if entry.region >= self.regions.count:
            return self.outside(index, entry, f"the {self.regions.count} region(s)")
        return self.outside(
            index, entry, f"region {entry.region} of {self.regions.held[entry.region].len} bytes"
        )

    cdef burst_ended(self, _Burst burst):
        raise NotImplementedError


@cython.final
@cython.freelist(16)
cdef class _Burst:
    """A run of buffers of one ring, as copied descriptors; views are made when they are touched.

    A view's exporter is the burst itself, so every view, and every slice of one, keeps the burst, the ring and the
    mapping alive; and when our own views are released, the exports that are left are those of somebody else's.
    """

    cdef _Ring ring
    cdef uint16_t first
    cdef int count
    cdef int sent
    cdef int exporting
    # How many views there are, each with all that was made of it.
    cdef int exports
    cdef bint ended
    # Whether a buffer is no longer as it was received: it cannot be put back.
    cdef bint changed
    cdef memif_descriptor *entries
    # What a master may fill of each buffer, as the peer had posted it; NULL where the ring itself knows.
    cdef uint32_t *posted
    cdef list views

    def __cinit__(self):
        self.exporting = -1
        self.ended = True  # until a ring has given it buffers: Python code may make one too

    def __dealloc__(self):
        free(self.entries)
        free(self.posted)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.view(self.position(index))

    def __iter__(self):
        cdef int i
        for i in range(self.sent, self.count):
            yield self.view(self.position(i))

    def packets(self):
        cdef int start = self.sent, stop
        while start < self.count:
            stop = _packet_end(self.entries, start, self.count)
            yield tuple([self.view(self.position(i)) for i in range(start, stop)])
            start = stop

    def length(self, index):
        return self.entries[self.position(index)].length

    def flags(self, index):
        return BufferFlag(self.entries[self.position(index)].flags & NEXT)

    def slot(self, index):
        return (self.first + self.position(index)) & self.ring.mask

    def pack_into(self, target, bytes stamp, limit, first=0):
        cdef Py_buffer held
        cdef uint8_t *into
        cdef uint8_t *end
        cdef const char *mark = PyBytes_AS_STRING(stamp)
        cdef size_t marked = len(stamp)
        cdef int64_t most = max(_clamped(limit), 0), wanted = _clamped(first)
        cdef int start = self.sent, stop, i
        cdef uint64_t total, left, part
        cdef uint32_t lengths[2]
        cdef memif_descriptor *entries = self.entries
        if self.ended:
            raise self.ring.ended(ValueError)
        _get_buffer(target, &held, PyBUF_SIMPLE, True, "the target")
        try:
            into = <uint8_t *> held.buf
            end = into + held.len
            while start < self.count:
                stop = start + 1 if not entries[start].flags & NEXT else _packet_end(entries, start, self.count)
                if start >= wanted:
                    if stop + AHEAD <= self.count:
                        memif_prefetch_read(self.ring.regions.at(&entries[stop + AHEAD - 1]))
                    total = 0
                    for i in range(start, stop):
                        total += entries[i].length
                    left = min(total, <uint64_t> most)
                    if <uint64_t> (end - into) < marked + sizeof(lengths) + left:
                        break
                    if marked == 8:  # what most are: without a call
                        memcpy(into, mark, 8)
                    else:
                        memcpy(into, mark, marked)
                    into += marked
                    lengths[0], lengths[1] = <uint32_t> left, <uint32_t> min(total, <uint64_t> 0xFFFFFFFF)
                    memcpy(into, lengths, sizeof(lengths))
                    into += sizeof(lengths)
                    for i in range(start, stop):
                        part = min(left, <uint64_t> entries[i].length)
                        memif_move(into, self.ring.regions.at(&entries[i]), part)
                        into += part
                        left -= part
                start = stop
            return start, into - <uint8_t *> held.buf
        finally:
            PyBuffer_Release(&held)

    @property
    def done(self):
        return self.sent

    def set_length(self, index, length):
        self.trim(index, 0, length)

    def advance(self, index, count):
        self.trim(index, count, self.length(index) - count)

    def set_flags(self, index, flags):
        cdef int position = self.position(index)
        if flags == (self.entries[position].flags & NEXT):
            return
        if not isinstance(self.ring, _TxRing):
            raise ConfigError(
                "only the flags of an allocated buffer can be set: those of a received one are the peer's"
            )
        if flags not in (0, NEXT):
            raise ConfigError(f"the flags are {flags!r}; they must be {NEXT} (the packet goes on) or 0")
        self.entries[position].flags = flags

    def drop(self, index):
        cdef int position = self.position(index)
        if not isinstance(self.ring, _RxRing):
            raise ConfigError("only a received packet can be dropped: an allocated one is not transmitted, or rewound")
        self.entries[position].flags |= DROPPED

    def close(self):
        if self.ended:
            return
        cdef bint held = self.release_all()
        self.ended = True
        self.ring.burst_ended(self)
        if held:
            raise _still_exported()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            self.close()
        except BufferError:
            if error is None:  # else the frames of that error hold the view: what went wrong first is to be seen
                raise

    def __repr__(self):
        return f"<burst of {self.count} buffers{', ended' if self.ended else ''}>"

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        # Only view() may ask: it says which buffer it means.
        if self.exporting < 0:
            buffer.obj = None
            raise BufferError("a burst is a sequence of buffers: take burst[i]")
        cdef memif_descriptor *entry = &self.entries[self.exporting]
        PyBuffer_FillInfo(buffer, self, self.ring.regions.at(entry), entry.length, 0, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self.exports -= 1

    cdef object view(self, int position):
        cdef object view
        if self.views is None:
            self.views = [None] * self.count
        view = self.views[position]
        if view is None:
            self.exporting = position
            try:
                view = PyMemoryView_FromObject(self)
            finally:
                self.exporting = -1
            self.views[position] = view
        return view

    cdef int position(self, index) except -1:
        cdef int64_t wanted = _clamped(index)
        cdef int64_t position = wanted + self.count if wanted < 0 else wanted
        if not 0 <= position < self.count:
            raise IndexError(f"buffer {index} of a burst of {self.count}")
        if self.ended:
            raise self.ring.ended(ValueError)
        if position < self.sent:
            raise ValueError(f"buffer {index} has been sent: it belongs to the peer")
        return <int> position

    cdef trim(self, index, count, length):
        cdef int position = self.position(index)
        cdef memif_descriptor *entry = &self.entries[position]
        cdef int64_t start, stop, present = entry.length, offset = entry.offset
        cdef int64_t moved = _clamped(count), wanted = _clamped(length)
        self.ring.room_around(<uint16_t> (self.first + position), entry, &start, &stop)
        if self.posted is not NULL:
            stop = offset + self.posted[position]
        if not (start <= offset + moved and 0 < wanted <= stop - offset - moved):
            raise ConfigError(
                f"buffer {index} has {present} bytes of data, room for {offset - start} before and "
                f"{stop - offset - present} behind them: they cannot start {count} bytes further and be {length} long"
            )
        if moved and isinstance(self.ring, MasterTxRing):
            raise ConfigError("a master sends from the start of a buffer: only a slave moves data inside it")
        self.drop_view(position)
        self.changed = True
        entry.length = <uint32_t> wanted
        entry.offset = <uint32_t> (offset + moved)

    cdef void arrive(self, int position, const memif_descriptor *entry) noexcept:
        """A buffer that comes from another slot. What is allocated is to be sent: nothing of the peer's but where the
        data is."""
        if isinstance(self.ring, _TxRing):
            _clean(&self.entries[position], entry)
        else:
            self.entries[position] = entry[0]

    cdef drop_view(self, int position):
        if self.views is not None and self.views[position] is not None:
            self.views[position].release()
            self.views[position] = None

    cdef bint release_views(self, int stop) except -1:
        """End the views of the first buffers; whether one could not be ended. ``close`` tries that one again."""
        cdef bint held = False
        cdef int i
        if self.views is None:
            return False
        for i in range(min(stop, <int> len(self.views))):
            try:
                self.drop_view(i)
            except BufferError:
                held = True
        return held

    cdef bint release_all(self) except -1:
        """End all views; whether something that was made of one is still held."""
        cdef bint held = self.release_views(self.count)
        return held or self.exports > 0

    cdef mark_sent(self, int sent):
        self.sent = sent
        self.release_views(sent)


cdef object _still_exported():
    return BufferError(
        "a view of this burst is still exported and its buffer goes back to the peer: copy what must outlive "
        "the burst, and drop the rest (slices, casts, NumPy arrays) before it ends"
    )


cdef int _packet_end(const memif_descriptor *entries, int start, int count) noexcept:
    """Where the packet ends that starts here; an unfinished one ends with the last descriptor."""
    while start < count:
        start += 1
        if not entries[start - 1].flags & NEXT:
            break
    return start


cdef int _whole_packet_end(const memif_descriptor *entries, int start, int count) noexcept:
    """As ``_packet_end``, but -1 for a packet that the burst cuts off (``split``)."""
    cdef int stop = _packet_end(entries, start, count)
    return -1 if entries[stop - 1].flags & NEXT else stop


cdef bint _is_dropped(const memif_descriptor *entries, int start, int stop) noexcept:
    while start < stop:
        if entries[start].flags & DROPPED:
            return True
        start += 1
    return False


cdef _Burst _new_burst(_Ring ring, uint16_t first, int room):
    cdef _Burst burst = _Burst.__new__(_Burst)
    burst.ring = ring
    burst.first = first
    burst.entries = <memif_descriptor *> malloc(max(1, room) * sizeof(memif_descriptor))
    if burst.entries is NULL:
        raise MemoryError
    burst.ended = False
    return burst


# --- receiving ------------------------------------------------------------------------------------------------------


cdef class _RxRing(_Ring):
    """What both receiving sides do. ``last`` is the index of the next buffer to take."""

    cdef uint16_t last
    cdef int64_t headroom
    cdef readonly bint more
    # Copies of descriptors that no burst needs: for recv_into and relay.
    cdef memif_descriptor *scratch

    def __cinit__(self, *args):
        self.scratch = <memif_descriptor *> malloc(self.size * sizeof(memif_descriptor))
        if self.scratch is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.scratch)

    def set_headroom(self, headroom):
        self.headroom = self.checked_headroom(headroom)

    def pending(self):
        return self.available()

    def burst(self, limit, bint split=False):
        return self.take(_limit(limit), split)

    def recv(self, limit):
        cdef _Burst burst = self.take(_limit(limit), False)
        cdef list packets = []
        cdef int start = 0, stop, i
        cdef memif_descriptor *entries = burst.entries
        for i in range(min(AHEAD, burst.count)):
            memif_prefetch_read(self.regions.at(&entries[i]))
        try:
            while start < burst.count:
                stop = start + 1 if not entries[start].flags & NEXT else _packet_end(entries, start, burst.count)
                if stop + AHEAD <= burst.count:
                    memif_prefetch_read(self.regions.at(&entries[stop + AHEAD - 1]))
                if stop == start + 1:
                    packets.append(
                        PyBytes_FromStringAndSize(<char *> self.regions.at(&entries[start]), entries[start].length)
                    )
                else:
                    packets.append(self.joined(burst, start, stop))
                start = stop
        finally:
            burst.close()
        return packets

    def recv_into(self, matrix, lengths):
        cdef _Matrix rows = _Matrix(matrix, True)
        cdef _Lengths sizes = _Lengths(lengths, True)
        cdef int limit = <int> min(rows.rows, sizes.count, 0x7FFF), taken, start, stop, row = 0, i
        cdef uint64_t total, part
        cdef memif_descriptor *entries = self.scratch
        if not limit:
            return 0
        if self.open:  # their buffers go back first: the long way keeps the order
            return self.recv_into_from_burst(rows, sizes, limit)
        taken = self.take_entries(entries, limit, False)
        for i in range(min(AHEAD, taken)):
            memif_prefetch_read(self.regions.at(&entries[i]))
        start = 0
        while start < taken:
            if start + AHEAD < taken:
                memif_prefetch_read(self.regions.at(&entries[start + AHEAD]))
            total = 0
            while True:
                part = min(<uint64_t> entries[start].length, rows.width - min(total, rows.width))
                memif_move(rows.row(row) + min(total, rows.width), self.regions.at(&entries[start]), part)
                total += entries[start].length
                start += 1
                if start == taken or not entries[start - 1].flags & NEXT:
                    break
            sizes.set(row, total)
            row += 1
        if taken:
            self.last = <uint16_t> (self.last + taken)
            self.tally(entries, taken)
            self.give_back(self.refillable(), self.headroom)  # these, and before them any that were never posted
        return row

    cdef object recv_into_from_burst(self, _Matrix rows, _Lengths sizes, int limit):
        cdef int row = 0
        cdef uint64_t size
        for packet in self.recv(limit):
            size = min(<uint64_t> len(packet), rows.width)
            memcpy(rows.row(row), PyBytes_AS_STRING(packet), size)
            sizes.set(row, len(packet))
            row += 1
        return row

    cdef int64_t checked_headroom(self, headroom) except -1:
        cdef int64_t wanted = _clamped(headroom), capacity = self.capacity
        if wanted < 0 or 0 < capacity <= wanted:
            raise ConfigError(f"headroom is {headroom} bytes; it must be less than the buffer's {capacity}")
        return wanted

    def refill(self, count=None, headroom=0):
        cdef int64_t free = self.checked_headroom(headroom)
        cdef int refillable = self.refillable()
        cdef int64_t wanted = refillable if count is None else min(_clamped(count), <int64_t> refillable)
        if wanted < 0:
            raise ConfigError(f"refill of {count} buffers; it must be at least 0")
        if wanted:
            self.give_back(<int> wanted, free)
            held = self.end_returned_bursts()
            self.give_back_ended()
            if held:
                raise _still_exported()
        return wanted

    def untake(self, burst):
        cdef _Burst own = _own(burst)
        if own.ended or own.ring is not self or not self.open or self.open[-1] is not own:
            raise ConfigError("only the newest burst can be put back")
        if own.changed:
            raise ConfigError("buffers of this burst have been trimmed or swapped: it cannot be put back")
        if own.release_all():
            raise _still_exported()
        cdef int i
        for i in range(own.sent, own.count):
            self.packets -= not own.entries[i].flags & NEXT
            self.octets -= own.entries[i].length
        own.count = own.sent
        self.last = <uint16_t> (own.first + own.count)
        if not own.count:  # it holds nothing for which later bursts would have to wait
            own.ended = True
            self.open.pop()
        self.more = True

    cdef _Burst take(self, int limit, bint split):
        cdef int available = self.available()
        cdef _Burst burst = _new_burst(self, self.last, min(available, limit))
        burst.count = self.collect(&burst.entries, available, limit, split)
        # No entries although some are available: an unfinished chain, for which the peer will kick again.
        self.more = available > limit and burst.count and available > burst.count
        self.last = <uint16_t> (self.last + burst.count)
        if burst.count:
            self.open.append(burst)
            self.tally(burst.entries, burst.count)
        return burst

    cdef int take_entries(self, memif_descriptor *into, int limit, bint split) except -1:
        """As ``take``, into memory for a whole ring, and without moving on."""
        cdef int available = self.available()
        cdef int count = self.collect(&into, available, limit, split)
        self.more = available > limit and count and available > count
        return count

    cdef int collect(self, memif_descriptor **entries, int available, int limit, bint split) except -1:
        """Checked descriptors to hand out: whole packets, at most ``limit`` buffers if the first one allows."""
        cdef int count = min(available, limit)
        cdef int whole = count
        cdef memif_descriptor *longer
        self.snapshot(entries[0], self.last, count)
        if split or not count:
            return count
        self.check_packets(entries[0], count)
        while whole and entries[0][whole - 1].flags & NEXT:
            whole -= 1
        if whole:
            return whole
        # The first packet alone is longer than the limit, or the peer has not finished it yet.
        if entries[0] != self.scratch:
            longer = <memif_descriptor *> realloc(entries[0], available * sizeof(memif_descriptor))
            if longer is NULL:
                raise MemoryError
            entries[0] = longer
        self.snapshot(entries[0] + count, <uint16_t> (self.last + count), available - count)
        self.check_packets(entries[0], available)
        for whole in range(count, available):
            if not entries[0][whole].flags & NEXT:
                return whole + 1
        if available == self.size:
            raise self.violation(f"a chain of {available} descriptors fills the ring and has no end")
        return 0

    cdef int check_packets(self, const memif_descriptor *entries, int count) except -1:
        """No chain is longer than what a packet may have: its buffers may all be the same memory."""
        cdef uint64_t size = 0
        cdef int i
        if count <= MAX_PACKET_SIZE // MAX_RECEIVED_BUFFER:
            return 0
        for i in range(count):
            size += entries[i].length
            if size > MAX_PACKET_SIZE:
                raise self.violation(
                    f"the packet that goes on in descriptor {<uint16_t> (self.last + i) & self.mask} has {size} bytes "
                    f"or more; a packet has at most {MAX_PACKET_SIZE}"
                )
            if not entries[i].flags & NEXT:
                size = 0
        return 0

    cdef object joined(self, _Burst burst, int start, int stop):
        cdef uint64_t total = 0
        cdef int i
        for i in range(start, stop):
            total += burst.entries[i].length
        cdef bytes packet = PyBytes_FromStringAndSize(NULL, total)
        cdef char *into = PyBytes_AS_STRING(packet)
        for i in range(start, stop):
            memcpy(into, self.regions.at(&burst.entries[i]), burst.entries[i].length)
            into += burst.entries[i].length
        return packet

    cdef burst_ended(self, _Burst burst):
        self.give_back_ended()

    cdef give_back_ended(self):
        # Buffers go back in the order in which they came: a burst that ends before an older one waits for it.
        cdef _Burst oldest
        cdef uint16_t missing
        while self.open and (<_Burst> self.open[0]).ended:
            oldest = self.open.popleft()
            missing = <uint16_t> (oldest.first + oldest.count - self.boundary())
            if missing <= self.size:  # else a refill has given them back already
                self.give_back(missing, self.headroom)

    cdef bint end_returned_bursts(self) except -1:
        """After a refill by count: what went back to the peer is not to be looked at any more. Whether something that
        was made of a view of a burst that has ended is still held."""
        cdef uint16_t boundary = self.boundary(), returned
        cdef bint held = False
        cdef _Burst burst
        for burst in list(self.open):
            returned = <uint16_t> (boundary - burst.first)
            if not 0 < returned <= self.size:
                break
            burst.mark_sent(max(burst.sent, min(<int> returned, burst.count)))
            if returned >= burst.count:
                held |= burst.release_all()
                burst.ended = True
                self.open.popleft()
        return held

    cdef int available(self) except -1:
        """Buffers that the peer has published and we have not taken."""
        raise NotImplementedError

    cdef int snapshot(self, memif_descriptor *into, uint16_t index, int count) except -1:
        """Copied and checked descriptors."""
        raise NotImplementedError

    cdef int refillable(self) noexcept:
        return 0

    cdef uint16_t boundary(self) noexcept:
        """The index up to which taken buffers have been given back."""
        return 0

    cdef void give_back(self, int count, int64_t headroom) noexcept:
        pass


@cython.final
cdef class MasterRxRing(_RxRing):
    """S2M, read by the master: it takes up to head and gives back by advancing tail. Region and offset stay untouched:
    slaves do not write them again (docs/protocol.md, rule 5). The flag NEXT is cleared: DPDK's client never
    does, and its next packet in that slot would seem to go on."""

    cdef uint16_t returned
    cdef uint16_t chained

    def __cinit__(self, memory):
        self.reset()

    cdef int available(self) except -1:
        cdef uint16_t head = memif_load_acquire(&self.ring.head)  # descriptors are read after this
        if <uint16_t> (head - self.returned) > self.size:
            raise self.violation(f"head {head} is more than {self.size} descriptors ahead of tail {self.returned}")
        cdef uint16_t available = <uint16_t> (head - self.last)
        if available > self.size:
            raise self.violation(f"head {head} went back behind {self.last}, which it had reached before")
        return available

    cdef int snapshot(self, memif_descriptor *into, uint16_t index, int count) except -1:
        cdef int i
        cdef uint16_t chained = 0
        cdef _Regions regions = self.regions
        self.read(into, index, count)
        for i in range(count):
            into[i].flags &= NEXT
            if not regions.holds(&into[i]):
                raise self.out_of_bounds(<uint16_t> (index + i), &into[i])
            if into[i].length > MAX_RECEIVED_BUFFER:
                raise self.violation(
                    f"descriptor {<uint16_t> (index + i) & self.mask} has {into[i].length} bytes; "
                    f"a buffer has at most {MAX_RECEIVED_BUFFER}"
                )
            chained |= into[i].flags
        self.chained |= chained
        return 0

    cdef int refillable(self) noexcept:
        return <uint16_t> (self.last - self.returned)

    cdef uint16_t boundary(self) noexcept:
        return self.returned

    cdef void give_back(self, int count, int64_t headroom) noexcept:
        cdef int i
        if self.chained:
            for i in range(count):
                self.ring.descriptors[<uint16_t> (self.returned + i) & self.mask].flags = 0
        self.returned = <uint16_t> (self.returned + count)
        if self.returned == self.last:
            self.chained = 0
        memif_store_release(&self.ring.tail, self.returned)  # we have read all that we wanted


@cython.final
cdef class SlaveRxRing(_RxRing):
    """M2S, read by the slave: it posts empty buffers by advancing head and takes up to tail."""

    cdef _Buffers buffers
    cdef uint16_t posted

    def __cinit__(self, memory, buffers):
        self.buffers = _Buffers(self.regions, buffers, self.size)
        self.ring.cookie = COOKIE
        self.reset()

    @property
    def capacity(self):
        return self.buffers.size

    cdef void room_around(
        self, uint16_t index, const memif_descriptor *entry, int64_t *start, int64_t *stop
    ) noexcept:
        start[0] = self.buffers.offsets[index & self.mask]
        stop[0] = start[0] + self.buffers.size

    cdef int available(self) except -1:
        cdef uint16_t tail = memif_load_acquire(&self.ring.tail)  # descriptors are read after this
        cdef uint16_t available = <uint16_t> (tail - self.last)
        if available > <uint16_t> (self.posted - self.last):
            raise self.violation(f"tail {tail} is not between {self.last} and head {self.posted}")
        return available

    cdef int snapshot(self, memif_descriptor *into, uint16_t index, int count) except -1:
        """A descriptor must stay inside the buffer that we posted in its slot: the peer may move the data's start
        but not hand us another buffer, which would then be in two slots at once."""
        cdef int i
        cdef uint64_t start
        cdef _Buffers own = self.buffers
        cdef const uint32_t *offsets = own.offsets
        cdef uint16_t region = own.region, mask = self.mask
        cdef uint64_t size = own.size
        self.read(into, index, count)
        for i in range(count):
            start = offsets[<uint16_t> (index + i) & mask]
            into[i].flags &= NEXT
            if (
                into[i].region != region
                or into[i].offset < start
                or <uint64_t> into[i].offset + into[i].length > start + size
            ):
                if not self.regions.holds(&into[i]):  # says it more plainly where it can
                    raise self.out_of_bounds(<uint16_t> (index + i), &into[i])
                raise self.outside(<uint16_t> (index + i), &into[i], f"its buffer of {own.size} bytes at {start}")
        return 0

    cdef int refillable(self) noexcept:
        return self.size - <uint16_t> (self.posted - self.last)

    cdef uint16_t boundary(self) noexcept:
        return <uint16_t> (self.posted - self.size)

    cdef void give_back(self, int count, int64_t headroom) noexcept:
        cdef int i
        cdef uint16_t slot, first = self.posted, mask = self.mask
        cdef const uint32_t *offsets = self.buffers.offsets
        cdef memif_descriptor *into = self.ring.descriptors
        cdef memif_descriptor fresh
        fresh.flags = 0
        fresh.region = self.buffers.region
        fresh.length = self.buffers.size - <uint32_t> headroom  # most masters take it for the room that they have
        fresh.metadata = 0
        for i in range(count):
            slot = <uint16_t> (first + i) & mask
            fresh.offset = offsets[slot] + <uint32_t> headroom
            into[slot] = fresh
        self.posted = <uint16_t> (self.posted + count)
        memif_store_release(&self.ring.head, self.posted)  # the descriptors are written


@cython.final
@cython.no_gc
cdef class _Buffers:
    """A slave's own record of which buffer sits in which slot: never read from shared memory."""

    cdef uint16_t region
    cdef uint32_t size
    cdef uint32_t *offsets
    cdef Py_buffer held
    cdef bint holding

    def __cinit__(self, _Regions regions not None, buffers, int slots):
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
        for i in range(slots):  # once: from here on they are only permuted
            if <uint64_t> self.offsets[i] + self.size > <uint64_t> regions.held[self.region].len:
                raise ConfigError(f"the buffer of slot {i} lies outside its region")

    def __dealloc__(self):
        if self.holding:
            PyBuffer_Release(&self.held)


# --- sending --------------------------------------------------------------------------------------------------------


cdef class _TxRing(_Ring):
    """What both sending sides do. ``published`` is what the peer sees, ``next`` where the next allocation starts."""

    cdef uint16_t published, next
    cdef uint32_t ever  # buffers published in all, no more counted than any ring has
    # How many of the staged descriptors hold rooms, in the call that is under way.
    cdef int prepared
    # Rooms are ours (a slave's), not the peer's to lie about.
    cdef bint buffers_are_ours
    # Python code is being asked for packets to send: it must not use the ring that they are staged for.
    cdef bint sending
    # Descriptors on their way out. They reach the ring when all is well, and then at once: a master's unused
    # descriptors must keep the length that the slave posted.
    cdef memif_descriptor *staged
    # For an allocation of a master's: the lengths of the staged rooms, as they were when they were copied.
    cdef uint32_t *posted
    cdef bint noting

    def __cinit__(self, *args):
        self.staged = <memif_descriptor *> malloc(self.size * sizeof(memif_descriptor))
        self.posted = <uint32_t *> malloc(self.size * sizeof(uint32_t))
        if self.staged is NULL or self.posted is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.staged)
        free(self.posted)

    def free(self):
        return self.room()

    def alloc(self, count, size=None):
        cdef int64_t wanted = _clamped(count), bytes_each = -1 if size is None else _clamped(size)
        cdef int room, used = 0, chain
        cdef bint ours = self.buffers_are_ours
        cdef _Regions regions = self.regions
        cdef memif_descriptor *entry
        if wanted < 1 or (size is not None and bytes_each < 1):
            raise ConfigError(f"room for {count} packets of {size} bytes; both must be at least 1")
        if bytes_each > MAX_PACKET_SIZE:
            raise ConfigError(f"a packet of {size} bytes; a packet has at most {MAX_PACKET_SIZE}")
        self.require_not_sending()
        room = self.fresh_room()
        self.noting = not ours
        while wanted:
            # The common case, without a call: a packet that fits into one buffer. The rest goes the way below.
            entry = &self.staged[used]
            if used < self.prepared and 0 < bytes_each <= entry.length and (ours or regions.holds(entry)):
                entry.flags = 0
                entry.length = <uint32_t> bytes_each
                used += 1
                wanted -= 1
                continue
            chain = self.reserve(used, room, bytes_each)
            if not chain:
                self.check_can_ever_fit(size, bytes_each, room - used)
                self.full += 1
                break
            used += chain
            wanted -= 1
        cdef _Burst burst = _new_burst(self, self.next, used)
        burst.count = used
        memcpy(burst.entries, self.staged, used * sizeof(memif_descriptor))
        if not ours:
            burst.posted = <uint32_t *> malloc(max(1, used) * sizeof(uint32_t))
            if burst.posted is NULL:
                raise MemoryError
            memcpy(burst.posted, self.posted, used * sizeof(uint32_t))
        self.next = <uint16_t> (self.next + used)
        if used:
            self.open.append(burst)
        return burst

    def transmit(self, burst, count=None):
        cdef _Burst own = _own(burst)
        cdef int start = own.sent, stop
        if not own.ended and own.ring is self and not own.count:
            return 0
        if own.ended or not self.open or self.open[0] is not own:
            raise ConfigError("this burst is not the oldest allocated one that is not sent yet")
        stop = own.count if count is None else <int> min(start + max(_clamped(count), 0), <int64_t> own.count)
        if stop == own.count and own.release_all():
            raise _still_exported()
        self.publish(own.entries + start, stop - start)
        own.mark_sent(stop)
        if stop == own.count:
            own.ended = True
            self.open.popleft()
        return stop - start

    def send(self, packets, *, bint chain=True):
        cdef int room, used = 0, got
        cdef Py_ssize_t sent = 0
        self.require_nothing_open()
        room = self.fresh_room()
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
                    self.full += 1
                    break
                used += got
                sent += 1
        finally:
            self.sending = False
        self.publish_staged(used)
        return sent

    def send_from(self, matrix, lengths, *, bint chain=True):
        cdef _Matrix rows = _Matrix(matrix, False)
        cdef _Lengths sizes = _Lengths(lengths, False)
        cdef int room, used = 0, got
        cdef Py_ssize_t row, count = min(rows.rows, sizes.count)
        cdef uint64_t size
        self.require_nothing_open()
        room = self.fresh_room()
        for row in range(count):
            size = sizes.get(row)
            if size > rows.width:
                raise ConfigError(f"packet {row} has {sizes.shown(row)} bytes, a row only {rows.width}")
            got = self.put(used, room, rows.row(row), size, chain, row)
            if not got:
                self.full += 1
                count = row
                break
            used += got
        self.publish_staged(used)
        return count

    def forward(self, burst):
        return self.copy_forward(_received(burst))

    def relay(self, source, limit):
        """One pass over the descriptors: check, copy, publish, give back."""
        cdef _RxRing ring = _source(source)
        cdef int count, consumed = 0, sent
        if ring.open:  # their buffers go back first: the long way keeps the order
            return self.relay_as_burst(ring, limit)
        count = ring.take_entries(ring.scratch, _limit(limit), False)
        try:
            sent = self.copy_entries(ring.regions, ring.scratch, 0, count, &consumed)
        except BaseException:
            ring.more |= count > 0
            raise
        ring.more |= consumed < count
        if consumed:
            ring.last = <uint16_t> (ring.last + consumed)
            ring.tally(ring.scratch, consumed)
            ring.give_back(ring.refillable(), ring.headroom)  # these, and before them any that were never posted
        return sent

    cdef object relay_as_burst(self, _RxRing ring, limit):
        cdef _Burst burst = ring.take(_limit(limit), False)
        try:
            return self.forward(burst)
        finally:
            if burst.sent < burst.count:
                ring.untake(burst)
            burst.close()

    def enqueue(self, burst, first, count):
        raise ConfigError("a master cannot swap buffers: only the rings of one slave can")

    def rewind(self, burst, index):
        cdef _Burst own = _own(burst), later
        cdef int64_t wanted = _clamped(index)
        cdef int64_t position = wanted + own.count if wanted < 0 else wanted
        if own.ended or own not in self.open or not own.sent <= position < own.count:
            raise ConfigError("this buffer is not allocated on this queue, or it is sent already")
        cdef bint held = False
        for later in list(self.open)[self.open.index(own) :]:
            held |= later.release_all()
        if held:
            raise _still_exported()
        while self.open[-1] is not own:
            later = self.open.pop()
            later.ended = True
        own.count = <int> position
        self.next = <uint16_t> (own.first + position)
        if position == own.sent:
            own.ended = True
            self.burst_ended(own)

    cdef int copy_forward(self, _Burst own) except -1:
        cdef int consumed = own.sent
        cdef int sent = self.copy_entries(own.ring.regions, own.entries, own.sent, own.count, &consumed)
        own.mark_sent(consumed)
        return sent

    cdef int copy_entries(
        self, _Regions source, const memif_descriptor *entries, int start, int count, int *consumed
    ) except -1:
        """Copy the packets of received descriptors, from ``start`` on, into free buffers and publish them; how many
        buffers were sent, and up to which descriptor all is dealt with."""
        cdef int room, used = 0, got, sent = 0, stop, prepared
        self.require_nothing_open()
        room = self.fresh_room()
        prepared = self.prepared
        cdef bint ours = self.buffers_are_ours
        cdef _Regions into = self.regions
        cdef memif_descriptor *staged = self.staged
        cdef const memif_descriptor *entry
        cdef memif_descriptor *target
        while start < count:
            if start + AHEAD < count:
                memif_prefetch_read(source.at(&entries[start + AHEAD]))
            # The common case, without a call: one buffer into one buffer. What it does not take goes the way below.
            entry = &entries[start]
            if used < prepared and not entry.flags & (NEXT | DROPPED):
                target = &staged[used]
                if (ours or into.holds(target)) and target.length >= max(entry.length, 1):
                    memif_move(into.at(target), source.at(entry), entry.length)
                    target.flags = 0
                    target.length = entry.length
                    used += 1
                    sent += 1
                    start += 1
                    continue
            stop = _whole_packet_end(entries, start, count)
            if stop < 0:
                break
            if not _is_dropped(entries, start, stop):
                got = self.gather(used, room, source, entries, start, stop)
                prepared = self.prepared
                if not got:
                    self.full += 1
                    if used or room < self.size:  # else no room will ever be larger: this packet is dropped
                        break
                else:
                    used += got
                    sent += stop - start
            start = stop
        self.publish_staged(used)
        consumed[0] = start
        return sent

    cdef burst_ended(self, _Burst burst):
        # Roll back from the newest: a burst that is given up while a newer one is open waits for that one.
        cdef _Burst newest
        while self.open and (<_Burst> self.open[-1]).ended:
            newest = self.open.pop()
            self.next = <uint16_t> (newest.first + newest.sent)

    cdef require_nothing_open(self):
        if self.open:
            raise ConfigError("buffers allocated earlier must be transmitted or given back first")
        self.require_not_sending()

    cdef require_not_sending(self):
        if self.sending:
            raise ConfigError("the packets of a send that has not ended come from code that uses the ring itself")

    cdef check_can_ever_fit(self, shown, int64_t size, int room):
        """Waiting for room would be for ever: for what a whole free ring did not take, and for what is longer than
        all of a slave's own buffers."""
        cdef int64_t capacity = self.capacity
        if room == self.size or (capacity and size > capacity * self.size):
            raise ConfigError(
                f"a packet of {shown} bytes is longer than all {self.size} buffers of the ring together"
            )

    cdef int fresh_room(self) except -1:
        """``room``, at the start of a call that stages packets into it."""
        self.prepared = 0
        self.noting = False
        return self.room()

    cdef int reserve(self, int used, int room, int64_t size) except -1:
        """Stage descriptors for one packet behind ``used`` others; how many, 0 if the room does not suffice.
        A negative size: one whole buffer."""
        cdef int64_t left = size
        cdef int count = 0, position
        cdef memif_descriptor *entry
        while used + count < room:
            position = used + count
            if position >= self.prepared:
                self.prepare(position, min(CHUNK, room - position))
            entry = &self.staged[position]
            if not self.buffers_are_ours:
                self.check_room(<uint16_t> (self.next + position), entry)
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

    cdef int put(self, int used, int room, const uint8_t *data, uint64_t size, bint chain, Py_ssize_t number) except -1:
        """Copy one of the caller's packets into free buffers and stage it; how many buffers, 0 if it does not fit."""
        cdef int count, i
        cdef memif_descriptor *entry
        if not size:
            raise ConfigError(f"packet {number} is empty")
        if size > MAX_PACKET_SIZE:
            raise ConfigError(f"packet {number} of {size} bytes; a packet has at most {MAX_PACKET_SIZE}")
        count = self.reserve(used, room, <int64_t> size)
        if not count:
            self.check_can_ever_fit(size, <int64_t> size, room - used)
            return 0
        if count > 1 and not chain:
            raise ConfigError(
                f"packet {number} has {size} bytes, a buffer {self.staged[used].length}, and chains are switched off"
            )
        for i in range(used, used + count):
            entry = &self.staged[i]
            memif_move(self.regions.at(entry), data, entry.length)
            data += entry.length
        return count

    cdef int put_buffer(self, int used, int room, packet, bint chain, Py_ssize_t number) except -1:
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
        self, int used, int room, _Regions source_regions, const memif_descriptor *entries, int start, int stop
    ) except -1:
        """Copy one received packet into free buffers and stage it; how many buffers, 0 if it does not fit.
        Both sides may be chains, and cut at different places."""
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
                # Not memcpy, here and above: a peer may make the memory that it sends overlap that which it posts.
                memmove(self.regions.at(target) + filled, source_regions.at(source) + done, part)
                done += part
                filled += part
                if filled == target.length:
                    into += 1
                    filled = 0
        return count

    cdef void publish_staged(self, int used) noexcept:
        self.next = <uint16_t> (self.next + used)
        self.publish(self.staged, used)

    cdef void publish(self, const memif_descriptor *entries, int count) noexcept:
        if count:
            self.write(entries, self.published, count)
            self.published = <uint16_t> (self.published + count)
            self.ever = min(self.ever + <uint32_t> count, <uint32_t> 0xFFFF)
            self.publish_index(self.published)
            self.tally(entries, count)

    cdef int room(self) except -1:
        """Buffers that could be allocated now."""
        raise NotImplementedError

    cdef void prepare(self, int position, int count) noexcept:
        """Stage the ``count`` free buffers from ``position`` on as descriptors of their whole rooms."""

    cdef int check_room(self, uint16_t index, const memif_descriptor *entry) except -1:
        """A room that the peer has posted, in our copy."""
        return 0

    cdef void publish_index(self, uint16_t index) noexcept:
        pass


@cython.final
cdef class SlaveTxRing(_TxRing):
    """S2M, written by the slave: it fills its own buffers and advances head."""

    cdef _Buffers buffers

    def __cinit__(self, memory, buffers):
        self.buffers = _Buffers(self.regions, buffers, self.size)
        self.buffers_are_ours = True
        self.ring.cookie = COOKIE
        self.reset()

    @property
    def capacity(self):
        return self.buffers.size

    cdef void room_around(
        self, uint16_t index, const memif_descriptor *entry, int64_t *start, int64_t *stop
    ) noexcept:
        start[0] = self.buffers.offsets[index & self.mask]
        stop[0] = start[0] + self.buffers.size

    @property
    def in_flight(self):
        cdef uint16_t in_flight = <uint16_t> (self.published - memif_load_acquire(&self.ring.tail))
        return in_flight if in_flight <= self.size else 0  # a violation, which the next send reports

    cdef int room(self) except -1:
        cdef uint16_t tail = memif_load_acquire(&self.ring.tail)  # buffers are written after this
        cdef uint16_t in_flight = <uint16_t> (self.published - tail)
        if in_flight > self.size:
            raise self.violation(f"tail {tail} is more than {self.size} away from head {self.published}")
        cdef int free = self.size - in_flight - <uint16_t> (self.next - self.published)
        if free < 0:
            raise self.violation(f"tail {tail} went back: buffers that it had returned are allocated")
        return free

    cdef void prepare(self, int position, int count) noexcept:
        cdef int i
        cdef uint16_t first = self.next, mask = self.mask
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
        self.prepared = position + count

    cdef void publish_index(self, uint16_t index) noexcept:
        memif_store_release(&self.ring.head, index)  # data and descriptors are written

    def forward(self, burst):
        cdef _Burst own = _received(burst)
        if not _are_siblings(own.ring, self):
            return self.copy_forward(own)
        cdef _Buffers theirs = _buffers_of(own.ring)
        cdef int room, sent = 0, start = own.sent, stop, i
        self.require_nothing_open()
        room = self.room()
        while start < own.count:
            stop = _whole_packet_end(own.entries, start, own.count)
            if stop < 0:
                break
            if not _is_dropped(own.entries, start, stop):
                if sent + stop - start > room:
                    self.full += 1
                    break
                for i in range(start, stop):
                    _clean(&self.staged[sent], &own.entries[i])
                    # Which buffer sits in which of our two slots; the peer sees it with the new index, below.
                    _swap(theirs, <uint16_t> (own.first + i) & own.ring.mask,
                          self.buffers, <uint16_t> (self.published + sent) & self.mask)
                    sent += 1
            start = stop
        own.mark_sent(start)
        self.publish_staged(sent)
        return sent

    def relay(self, source, limit):
        """One pass over the descriptors: check, swap, publish, refill."""
        cdef _RxRing ring = _source(source)
        if not isinstance(ring, SlaveRxRing) or not _are_siblings(ring, self) or ring.open or self.open or self.sending:
            return _TxRing.relay(self, source, limit)  # copies
        cdef _Buffers theirs = _buffers_of(ring)
        cdef memif_descriptor *entries = ring.scratch
        cdef int i, room, count = ring.take_entries(entries, _limit(limit), False), whole = count
        try:
            room = self.room()
        except RingViolation:
            ring.more |= count > 0
            raise
        if count > room:
            whole = room
            while whole and entries[whole - 1].flags & NEXT:
                whole -= 1
            self.full += 1
            ring.more = True
        for i in range(whole):
            _swap(theirs, <uint16_t> (ring.last + i) & ring.mask,
                  self.buffers, <uint16_t> (self.published + i) & self.mask)
            entries[i].metadata = 0
        if whole:
            ring.last = <uint16_t> (ring.last + whole)
            ring.tally(entries, whole)
            self.next = <uint16_t> (self.next + whole)
            self.publish(entries, whole)
            ring.give_back(ring.refillable(), ring.headroom)  # these, and before them any that were never posted
        return whole

    def enqueue(self, burst, first, count):
        cdef _Burst own = _received(burst)
        if not _are_siblings(own.ring, self):
            raise ConfigError("the burst was not received on a ring of the same slave")
        if count < 0 or not own.sent <= first <= own.count:
            raise ConfigError(f"{count} buffers from {first} on, of a burst of {own.count} with {own.sent} sent")
        cdef _Buffers theirs = _buffers_of(own.ring)
        self.require_not_sending()
        cdef int begin = first, asked = <int> min(_clamped(count), <int64_t> (own.count - begin)), i, position
        cdef uint16_t slot
        cdef int wanted = min(asked, self.room())
        self.full += wanted < asked
        cdef _Burst swapped = _new_burst(self, self.next, wanted)
        for i in range(wanted):  # before the first swap: a view that cannot be ended stops it all
            own.drop_view(begin + i)
        own.changed |= wanted > 0
        for i in range(wanted):
            position = begin + i
            slot = <uint16_t> (own.first + position) & own.ring.mask
            _clean(&swapped.entries[i], &own.entries[position])
            _swap(theirs, slot, self.buffers, <uint16_t> (self.next + i) & self.mask)
            own.entries[position].flags = 0
            own.entries[position].region = theirs.region
            own.entries[position].length = theirs.size
            own.entries[position].offset = theirs.offsets[slot]
        swapped.count = wanted
        self.next = <uint16_t> (self.next + wanted)
        if wanted:
            self.open.append(swapped)
        return swapped


@cython.final
cdef class MasterTxRing(_TxRing):
    """M2S, written by the master: it takes the buffers that the slave posted, fills them and advances tail.

    The room in a buffer is the posted ``length``; region and offset go back as they came.
    """

    def __cinit__(self, memory):
        self.reset()

    @property
    def in_flight(self):
        cdef uint16_t posted = <uint16_t> (memif_load_acquire(&self.ring.head) - self.published)
        cdef uint32_t kept = self.size - posted if posted < self.size else 0
        return min(kept, self.ever)  # what was never posted is nothing that was sent

    cdef int room(self) except -1:
        cdef uint16_t head = memif_load_acquire(&self.ring.head)  # posted descriptors are read after this
        if <uint16_t> (head - self.published) > self.size:
            raise self.violation(f"head {head} is more than {self.size} descriptors ahead of tail {self.published}")
        cdef uint16_t free = <uint16_t> (head - self.next)
        if free > self.size:
            raise self.violation(f"head {head} went back behind {self.next}, which it had reached before")
        return free

    cdef void prepare(self, int position, int count) noexcept:
        # Many at a time: their cache lines come from the peer's core side by side, not one after the other.
        cdef int i
        self.read(&self.staged[position], <uint16_t> (self.next + position), count)
        if self.noting:
            for i in range(position, position + count):
                self.posted[i] = self.staged[i].length
        self.prepared = position + count

    cdef int check_room(self, uint16_t index, const memif_descriptor *entry) except -1:
        if not self.regions.holds(entry):
            raise self.out_of_bounds(index, entry)
        if not entry.length:
            raise self.violation(f"posted descriptor {index & self.mask} has no room")
        return 0

    cdef void publish_index(self, uint16_t index) noexcept:
        memif_store_release(&self.ring.tail, index)  # data, lengths and flags are written


# --- matrices: a row for each packet --------------------------------------------------------------------------------


@cython.final
@cython.no_gc
cdef class _Matrix:
    """A 2-D buffer of single bytes, rows contiguous: NumPy's uint8 arrays, without NumPy."""

    cdef Py_buffer held
    cdef bint holding
    cdef Py_ssize_t rows
    cdef uint64_t width

    def __cinit__(self, matrix, bint writable):
        _get_buffer(matrix, &self.held, PyBUF_STRIDES, writable, "the matrix")
        self.holding = True
        if self.held.ndim != 2 or self.held.itemsize != 1 or (self.held.shape[1] > 1 and self.held.strides[1] != 1):
            raise ConfigError("the matrix must be a 2-D buffer of bytes with contiguous rows")
        self.rows = self.held.shape[0]
        self.width = self.held.shape[1]

    def __dealloc__(self):
        if self.holding:
            PyBuffer_Release(&self.held)

    cdef inline uint8_t *row(self, Py_ssize_t index) noexcept:
        return <uint8_t *> self.held.buf + index * self.held.strides[0]


_SIGNED, _UNSIGNED = frozenset(b"h i l q n".split()), frozenset(b"H I L Q N".split())


@cython.final
@cython.no_gc
cdef class _Lengths:
    """A 1-D buffer of whole numbers of 2, 4 or 8 bytes; they may lie apart from each other."""

    cdef Py_buffer held
    cdef bint holding
    cdef bint signed
    cdef Py_ssize_t count
    cdef uint64_t longest

    def __cinit__(self, lengths, bint writable):
        _get_buffer(lengths, &self.held, PyBUF_STRIDES | PyBUF_FORMAT, writable, "lengths")
        self.holding = True
        cdef bytes kind = (b"B" if self.held.format is NULL else <bytes> self.held.format).lstrip(b"@")
        self.signed = kind in _SIGNED
        if self.held.ndim != 1 or not (self.signed or kind in _UNSIGNED) or self.held.itemsize not in (2, 4, 8):
            raise ConfigError("lengths must be a 1-D buffer of whole numbers of 2, 4 or 8 bytes")
        self.count = self.held.shape[0]
        self.longest = (<uint64_t> -1) >> (64 - 8 * self.held.itemsize + self.signed)

    def __dealloc__(self):
        if self.holding:
            PyBuffer_Release(&self.held)

    cdef inline uint8_t *at(self, Py_ssize_t index) noexcept:
        return <uint8_t *> self.held.buf + index * self.held.strides[0]

    cdef inline uint64_t get(self, Py_ssize_t index) noexcept:
        """A negative length becomes one that no row has."""
        cdef uint64_t value = 0
        # Little-endian, as all of memif; and a copy, because they need not be aligned.
        if self.held.itemsize == 2:
            memcpy(&value, self.at(index), 2)
        elif self.held.itemsize == 4:
            memcpy(&value, self.at(index), 4)
        else:
            memcpy(&value, self.at(index), 8)
        return value if value <= self.longest else <uint64_t> -1

    cdef inline void set(self, Py_ssize_t index, uint64_t value) noexcept:
        value = min(value, self.longest)
        if self.held.itemsize == 2:
            memcpy(self.at(index), &value, 2)
        elif self.held.itemsize == 4:
            memcpy(self.at(index), &value, 4)
        else:
            memcpy(self.at(index), &value, 8)

    cdef object shown(self, Py_ssize_t index):
        """A length as its owner wrote it, for messages."""
        data = PyBytes_FromStringAndSize(<char *> self.at(index), self.held.itemsize)
        return int.from_bytes(data, "little", signed=self.signed)


cdef int _get_buffer(owner, Py_buffer *into, int flags, bint writable, what) except -1:
    try:
        return PyObject_GetBuffer(owner, into, flags | (PyBUF_WRITABLE if writable else 0))
    except BufferError as error:
        raise ConfigError(f"{what} cannot be {'written' if writable else 'read'} in place") from error


# --- what a module exports ------------------------------------------------------------------------------------------


def slave_rx(memory, buffers):
    return SlaveRxRing(memory, buffers)


def slave_tx(memory, buffers):
    return SlaveTxRing(memory, buffers)


def master_rx(memory):
    return MasterRxRing(memory)


def master_tx(memory):
    return MasterTxRing(memory)


def check_cookie(memory):
    """:raises RingViolation: ``COOKIE`` if there is no ring."""
    cookie = int.from_bytes(memory.regions[memory.region][memory.offset : memory.offset + 4], "little")
    if cookie != COOKIE:
        raise RingViolation(
            f"{memory.name}: the header's cookie is {cookie:#x}, not {COOKIE:#x}", ErrorCode.COOKIE
        )


def exchange(burst_a, index_a, burst_b, index_b):
    """Swap two buffers of one slave's rings, received or allocated, between their slots.

    :raises ConfigError: the rings are not of one slave.
    """
    cdef _Burst a = _own(burst_a), b = _own(burst_b)
    if not _are_siblings(a.ring, b.ring):
        raise ConfigError("buffers can be exchanged only between the rings of one slave")
    cdef int at_a = a.position(index_a), at_b = b.position(index_b)
    cdef memif_descriptor entry = a.entries[at_a]
    a.drop_view(at_a)
    b.drop_view(at_b)
    _swap(_buffers_of(a.ring), <uint16_t> (a.first + at_a) & a.ring.mask,
          _buffers_of(b.ring), <uint16_t> (b.first + at_b) & b.ring.mask)
    a.changed = b.changed = True
    a.arrive(at_a, &b.entries[at_b])
    b.arrive(at_b, &entry)


cdef inline void _swap(_Buffers a, uint16_t slot_a, _Buffers b, uint16_t slot_b) noexcept:
    """Swap, in our own record, the buffers of two slots."""
    cdef uint32_t offset = a.offsets[slot_a]
    a.offsets[slot_a] = b.offsets[slot_b]
    b.offsets[slot_b] = offset


cdef inline void _clean(memif_descriptor *into, const memif_descriptor *entry) noexcept:
    """A received descriptor as we send it: nothing of the peer's but where the data is."""
    into.flags = entry.flags & NEXT
    into.region = entry.region
    into.length = entry.length
    into.offset = entry.offset
    into.metadata = 0


cdef bint _is_slave(_Ring ring):
    return isinstance(ring, (SlaveRxRing, SlaveTxRing))


cdef bint _are_siblings(_Ring a, _Ring b):
    """Whether both are rings of one slave, and a buffer of one fits into a slot of the other."""
    cdef _Buffers first, second
    if not (_is_slave(a) and _is_slave(b)) or not a.regions.is_same(b.regions):
        return False
    first, second = _buffers_of(a), _buffers_of(b)
    return first.region == second.region and first.size == second.size


cdef _Buffers _buffers_of(_Ring ring):
    return (<SlaveRxRing> ring).buffers if isinstance(ring, SlaveRxRing) else (<SlaveTxRing> ring).buffers


cdef _Burst _own(burst):
    if not isinstance(burst, _Burst):
        raise ConfigError(f"{burst!r} is not a burst of this ring implementation")
    return burst


cdef _RxRing _source(ring):
    if not isinstance(ring, _RxRing):
        raise ConfigError(f"{ring!r} is not a receive ring of this implementation")
    return ring


cdef _Burst _received(burst):
    cdef _Burst own = _own(burst)
    if not isinstance(own.ring, _RxRing):
        raise ConfigError("only a received burst can be forwarded: transmit an allocated one")
    if own.ended:
        raise own.ring.ended(ConfigError)
    return own


cdef int _limit(limit) except -1:
    cdef int64_t wanted = _clamped(limit)
    if wanted < 1:
        raise ConfigError(f"a burst of {limit} buffers; it must be at least 1")
    return <int> min(wanted, 0x7FFF)


cdef int64_t _clamped(value) except? -1:
    """A whole number of the caller's. One beyond all that we count (a ring of 4 GiB buffers has 2^46 bytes) is as good
    as 2^48, and sums of a few of these stay within 64 bits."""
    cdef int overflow = 0
    cdef int64_t most = <int64_t> 1 << 48, number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow:
        return most if overflow > 0 else -most
    return max(-most, min(number, most))
