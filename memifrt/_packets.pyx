# cython: language_level=3, freethreading_compatible=True
"""What is done for each packet, compiled.

``reply_in_place`` of :mod:`memifrt.packets` for the usual request (every other packet goes to Python), and the fields
and marks of generated packets: what :mod:`memifrt.traffic` does with NumPy in many passes over arrays is one pass here.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_CONTIG, PyBUF_CONTIG_RO, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from memifrt.types import Mode

cdef extern from "<arpa/inet.h>":
    uint16_t ntohs(uint16_t number) nogil
    uint16_t htons(uint16_t number) nogil

cdef extern from "<endian.h>":
    uint32_t htobe32(uint32_t number) nogil
    uint64_t htobe64(uint64_t number) nogil

cdef extern from *:
    int __builtin_clzll(unsigned long long number) nogil

cdef object ETHERNET = Mode.ETHERNET
cdef uint8_t[16] UNSPECIFIED  # C sets it to zeros
# Answers what is not the usual request: (packet, ip, mac, mode, icmp).
cdef object in_python = None

cdef enum:
    # Bytes of the usual request's headers: Ethernet 14, IPv4 without options 20, ICMP up to the checksum 4.
    HEADERS = 38
    # Ethernet 14, IPv6 without extensions 40, ICMPv6 up to the checksum 4.
    HEADERS_IPV6 = 58
    IPV6 = 0x86DD  # the ethertype


def reply_in_place(packet, ip, mac, *, mode=ETHERNET, bint icmp=True):
    cdef Py_buffer held
    cdef bint answered
    if mode is ETHERNET and icmp and is_address(ip, 4) and is_address(mac, 6):
        try:
            PyObject_GetBuffer(packet, &held, PyBUF_SIMPLE | PyBUF_WRITABLE)
        except (TypeError, BufferError):
            return in_python(packet, ip, mac, mode, icmp)
        answered = held.len >= 42 and answer_plain_echo(
            <uint8_t *> held.buf, held.len, <uint8_t *> PyBytes_AS_STRING(ip), <uint8_t *> PyBytes_AS_STRING(mac)
        )
        PyBuffer_Release(&held)
        return True if answered else reply_otherwise(packet, ip, mac)
    if mode is ETHERNET and icmp and is_address(ip, 16) and is_address(mac, 6):
        return reply_otherwise(packet, ip, mac)
    return in_python(packet, ip, mac, mode, icmp)


cdef object reply_otherwise(packet, ip, mac):
    """Answer the usual request of IPv6. Leave a packet of the other protocol than that of ``ip`` unchanged.

    This is a function of its own so that the usual request of IPv4 does not become slower.
    """
    cdef Py_buffer held
    cdef bint answered, foreign
    try:
        PyObject_GetBuffer(packet, &held, PyBUF_SIMPLE | PyBUF_WRITABLE)
    except (TypeError, BufferError):
        return in_python(packet, ip, mac, ETHERNET, True)
    answered = PyBytes_GET_SIZE(ip) == 16 and held.len >= 62 and answer_plain_echo_ipv6(
        <uint8_t *> held.buf, held.len, <uint8_t *> PyBytes_AS_STRING(ip), <uint8_t *> PyBytes_AS_STRING(mac)
    )
    foreign = (
        not answered
        and held.len >= 14
        and (number(<uint8_t *> held.buf + 12) == IPV6) != (PyBytes_GET_SIZE(ip) == 16)
    )
    PyBuffer_Release(&held)
    if answered or foreign:
        return answered
    return in_python(packet, ip, mac, ETHERNET, True)


def compiled(readable, reply):
    """Return the compiled function for ``readable``, which calls ``reply`` for all but the usual request."""
    global in_python
    in_python = reply
    reply_in_place.__module__, reply_in_place.__doc__ = readable.__module__, readable.__doc__
    return reply_in_place


cdef inline bint is_address(address, Py_ssize_t size):
    return PyBytes_CheckExact(address) and PyBytes_GET_SIZE(address) == size


cdef bint answer_plain_echo(uint8_t *packet, Py_ssize_t size, const uint8_t *ip, const uint8_t *mac) noexcept nogil:
    """Turn the usual echo request into its reply: Ethernet, IPv4 without options, not a fragment, a TTL of 64, ICMP.

    The rules are those of ``memifrt.packets.reply``. The headers are copied once, because the peer may change them meanwhile.

    :returns: whether it was one.
    """
    cdef uint8_t header[HEADERS]
    cdef uint16_t sum_
    cdef uint32_t total, sum32
    memcpy(header, packet, HEADERS)
    total = number(&header[16])
    if (
        number(&header[34]) != 0x0800  # type 8, code 0: an echo request
        or memcmp(&header[30], ip, 4)
        or number(&header[22]) != 0x4001  # TTL 64, as in the reply, and ICMP
        or number(&header[12]) != 0x0800
        or header[14] != 0x45
        or number(&header[20]) & 0x3FFF  # a fragment
        or not 28 <= <Py_ssize_t> total <= size - 14
        or header[6] & 1  # a group address is never a source
        or header[26] >= 224  # nor is a multicast address, or the broadcast address
        or not memcmp(&header[26], UNSPECIFIED, 4)
    ):
        return False
    sum32 = <uint32_t> number(&header[36]) + 0x0800
    sum_ = htons(<uint16_t> (sum32 if sum32 <= 0xFFFF else sum32 - 0xFFFF))
    memcpy(packet, &header[6], 6)
    memcpy(packet + 6, mac, 6)
    memcpy(packet + 26, ip, 4)
    memcpy(packet + 30, &header[26], 4)
    packet[34] = packet[35] = 0
    memcpy(packet + 36, &sum_, 2)
    return True


cdef bint answer_plain_echo_ipv6(
    uint8_t *packet, Py_ssize_t size, const uint8_t *ip, const uint8_t *mac
) noexcept nogil:
    """Turn the usual ICMPv6 echo request into its reply: Ethernet, IPv6 without extension headers, ICMPv6.

    The rules are those of ``memifrt.packets.ipv6.answer_echo``. The headers are copied once, because the peer may change
    them meanwhile.

    :returns: whether it was one.
    """
    cdef uint8_t header[HEADERS_IPV6]
    cdef uint16_t sum_
    cdef uint32_t length, sum32
    memcpy(header, packet, HEADERS_IPV6)
    length = number(&header[18])
    if (
        number(&header[54]) != 0x8000  # type 128, code 0: an echo request
        or memcmp(&header[38], ip, 16)
        or header[20] != 58  # ICMPv6
        or number(&header[12]) != IPV6
        or header[14] >> 4 != 6
        or not 8 <= <Py_ssize_t> length <= size - 54
        or header[6] & 1  # a group address is never a source
        or header[22] == 0xFF  # nor is a multicast address
        or not memcmp(&header[22], UNSPECIFIED, 16)
    ):
        return False
    sum32 = number(&header[56])
    sum_ = htons(<uint16_t> ((sum32 + 0xFFFF - 0x0100) % 0xFFFF))
    memcpy(packet, &header[6], 6)
    memcpy(packet + 6, mac, 6)
    packet[21] = 64
    memcpy(packet + 22, ip, 16)
    memcpy(packet + 38, &header[22], 16)
    packet[54] = 129
    memcpy(packet + 56, &sum_, 2)
    return True


cdef inline uint16_t number(const uint8_t *at) noexcept nogil:
    """Return a number of two bytes in network order."""
    cdef uint16_t value
    memcpy(&value, at, 2)
    return ntohs(value)


# --- the marks of checked packets -----------------------------------------------------------------------------------

cdef enum:
    # The layout of a mark, as memifrt/traffic/signature.py has it.
    MARK = 18
    SEQUENCE = 4
    TIME = 8
    CHECK = 16
    # The binary logarithm of the unit of time, in nanoseconds.
    UNIT = 4
    # The bits of the buckets of latencies, as memifrt/traffic/latency.py has them.
    BUCKET_BITS = 11
    # The mark of the number of a packet that came corrupted only, as _DAMAGED of memifrt/traffic/receiver.py.
    DAMAGED_BIT = 2
    # How far from the expected number a guess may be, as a share of the window.
    NEAR = 2
    # How many numbers a guess may skip and still say which one is expected next.
    FEW = 64


@cython.final
@cython.no_gc
cdef class Numbers:
    """A contiguous buffer of the caller's, as long as this object lives."""

    cdef Py_buffer held
    cdef bint holding

    def __cinit__(self, owner, bint writable):
        PyObject_GetBuffer(owner, &self.held, PyBUF_CONTIG if writable else PyBUF_CONTIG_RO)
        self.holding = True

    def __dealloc__(self):
        if self.holding:
            PyBuffer_Release(&self.held)

    cdef inline Py_ssize_t count(self, Py_ssize_t width) except -1:
        """Return how many numbers of ``width`` bytes it has.

        :raises ValueError: its numbers have another width.
        """
        if self.held.itemsize != width:
            raise ValueError(f"the numbers have {self.held.itemsize} bytes, not {width}")
        return self.held.len // width


cdef int require_rows(Numbers rows) except -1:
    """:raises ValueError: the buffer is not a matrix of bytes."""
    if rows.held.ndim != 2 or rows.held.itemsize != 1:
        raise ValueError("the rows must be a matrix of bytes")
    return 0


def write_marks(matrix, lengths, Py_ssize_t first, Py_ssize_t last, uint32_t key, uint32_t sequence, rest, uint64_t time):
    """Write the marks into some rows.

    :param key: the first 4 bytes of each mark.
    :param sequence: the number of the packet in row 0; the others follow.
    :param rest: the sum of the words behind the headers without the mark, and of those of the key: a number, or an
        array of 32 bits with one for each row. Each is below 2**30.
    :param time: the 8 bytes of the time.
    """
    cdef Numbers rows = Numbers(matrix, True), sizes = Numbers(lengths, False), sums = None
    cdef uint32_t same = 0
    require_rows(rows)
    if not 0 <= first <= last <= min(rows.held.shape[0], sizes.count(4)):
        raise ValueError(f"there are no rows from {first} to {last}")
    if isinstance(rest, int):
        same = rest
    else:
        sums = Numbers(rest, False)
        if sums.count(4) < last:
            raise ValueError("there are fewer sums than rows")
    cdef const uint32_t *size = <const uint32_t *> sizes.held.buf
    cdef const uint32_t *each = NULL if sums is None else <const uint32_t *> sums.held.buf
    cdef Py_ssize_t width = rows.held.shape[1], row
    cdef uint8_t *at
    cdef uint32_t number, total, length
    cdef uint16_t check
    for row in range(first, last):
        length = size[row]  # read once: another thread may change it
        if not MARK <= length <= width:
            raise ValueError(f"row {row} has {length} bytes of {width}")
        at = <uint8_t *> rows.held.buf + row * width + length - MARK
        number = sequence + <uint32_t> row
        total = same if each is NULL else each[row]
        check = <uint16_t> (folded(total + (number >> 16) + (number & 0xFFFF)) ^ 0xFFFF)
        memcpy(at, &key, 4)
        memcpy(at + SEQUENCE, &number, 4)
        memcpy(at + TIME, &time, 8)
        memcpy(at + CHECK, &check, 2)


@cython.final
@cython.no_gc
cdef class LaneState:
    """Checks the packets of one lane and counts them. The readable twin is ``LaneCheck`` of memifrt/traffic/receiver.py.

    :param bodies: for each size, in ascending order, four numbers of 64 bits: the size, the bytes behind the headers
        without the mark, the sum of their words (negative: packets of this size differ), and their sum as numbers of 64
        bits.
    :param seen: for each place of the window the number that was seen there last, of 32 bits; a power of two of them.
    :param buckets: the counts of latencies, of 64 bits.
    """

    cdef readonly int64_t received, received_bytes, duplicated, reordered, corrupted, unidentified, repeated
    cdef Numbers bodies, seen, buckets
    # The number after the largest one that was proven, and the one that is expected.
    cdef int64_t next, expected
    cdef uint32_t mask
    cdef Py_ssize_t sizes
    cdef int64_t most
    # The size of the last packet, and its body.
    cdef int64_t size
    cdef const int64_t *body

    def __cinit__(self, bodies, seen, buckets):
        self.bodies, self.seen, self.buckets = Numbers(bodies, False), Numbers(seen, True), Numbers(buckets, True)
        self.sizes = self.bodies.count(8) // 4
        self.mask = <uint32_t> (self.seen.count(4) - 1)
        self.most = self.buckets.count(8) - 1
        if self.sizes < 1 or self.most < 1 or self.seen.count(4) & self.mask:
            raise ValueError("the arrays are too small, or the window is no power of two")
        self.size = -1
        self.body = self.nearest(0)  # never NULL, whatever threads do

    @property
    def arrived(self):
        """The sent packets that came, whole or corrupted, each counted once."""
        return self.received - self.duplicated - self.unidentified

    @property
    def intact(self):
        """The sent packets that came whole, each counted once."""
        return self.received - self.corrupted - self.repeated

    cdef inline void take(self, const uint8_t *packet, int64_t size, uint32_t key, uint64_t now) noexcept nogil:
        """Check and count one packet.

        :param now: when it came, in units of the mark's time.
        """
        cdef const uint8_t *mark = packet + size - MARK
        cdef uint32_t number
        cdef uint32_t time[2]
        self.received += 1
        self.received_bytes += size
        memcpy(time, mark + TIME, 8)
        memcpy(&number, mark + SEQUENCE, 4)
        cdef uint32_t total
        cdef bint whole = self.judge(mark, size, key, number, &total) and time[0] == <uint32_t> ~time[1]
        if whole:
            self.count(number, True)
            self.record(<uint64_t> (<uint32_t> now - time[0]) << UNIT)
            return
        self.corrupted += 1
        if total == 0xFFFF:
            self.count(number, False)
        else:
            self.guess(number, total, self.body[2] < 0)

    cdef inline bint judge(
        self, const uint8_t *mark, int64_t size, uint32_t key, uint32_t number, uint32_t *total
    ) noexcept nogil:
        """Return whether nothing behind the headers has changed, apart from the time.

        :param total: becomes the sum of words that is 0xffff if it proves the number.
        """
        cdef uint64_t words = (key >> 16) + (key & 0xFFFF) + (number >> 16) + (number & 0xFFFF)
        cdef uint16_t check
        cdef int64_t length
        if size != self.size:
            self.size = size
            self.body = self.nearest(size)
        length = min(self.body[1], size - MARK)
        memcpy(&check, mark + CHECK, 2)
        words += check
        if self.body[2] < 0:
            total[0] = folded64(words + word_sum(mark - length, length))
            return total[0] == 0xFFFF
        total[0] = folded64(words + <uint64_t> self.body[2])
        return total[0] == 0xFFFF and (not length or long_sum(mark - length, length) == <uint64_t> self.body[3])

    cdef const int64_t *nearest(self, int64_t size) noexcept nogil:
        """Return the body of the nearest size that the lane has; the smaller one of two that are as near."""
        cdef const int64_t *bodies = <const int64_t *> self.bodies.held.buf
        cdef Py_ssize_t low = 0, high = self.sizes - 1, middle
        while low < high:
            middle = (low + high) // 2
            if bodies[4 * middle] < size:
                low = middle + 1
            else:
                high = middle
        if low and size - bodies[4 * (low - 1)] <= abs64(bodies[4 * low] - size):
            low -= 1
        return &bodies[4 * low]

    cdef inline void count(self, uint32_t number, bint whole) noexcept nogil:
        """Tell a lost, duplicated or reordered packet from one in order."""
        cdef uint32_t *seen = <uint32_t *> self.seen.held.buf
        cdef int64_t full = self.full(number)
        cdef uint32_t *place = &seen[number & self.mask]
        if place[0] == number:
            self.duplicated += 1
            self.repeated += whole
        else:
            if place[0] == number ^ DAMAGED_BIT:
                self.duplicated += 1
            elif full < self.next - 1:
                self.reordered += 1
            place[0] = number if whole else number ^ DAMAGED_BIT
        if full >= self.next:
            self.next = full + 1
        self.expected = self.next

    cdef void guess(self, uint32_t claim, uint32_t total, bint varying) noexcept nogil:
        """Count a corrupted packet by its most likely number: its own is not proven.

        :param claim: the number in its mark.
        :param total: the sum of words that would be 0xffff if it were right.
        :param varying: whether the damage may be in bytes that differ from packet to packet.
        """
        cdef uint32_t *seen = <uint32_t *> self.seen.held.buf
        cdef int64_t likely = self.full(claim)
        cdef bint flipped = varying
        cdef uint32_t number
        cdef uint32_t *place
        cdef int bit
        for bit in range(16):
            if total == <uint32_t> 1 << bit or total == 0xFFFF - (<uint32_t> 1 << bit):
                flipped = True
                likely = self.likelier(likely, claim, bit, total == <uint32_t> 1 << bit)
                likely = self.likelier(likely, claim, bit + 16, total == <uint32_t> 1 << bit)
        if not flipped or likely < 0 or abs64(likely - self.expected) >= (<int64_t> self.mask + 1) // NEAR:
            self.unidentified += 1
            return
        if 0 <= likely - self.expected < FEW:
            self.expected = likely + 1
        number = <uint32_t> likely
        place = &seen[number & self.mask]
        if place[0] == number or place[0] == number ^ DAMAGED_BIT:
            self.duplicated += 1
            return
        place[0] = number ^ DAMAGED_BIT
        if likely < self.next - 1:
            self.reordered += 1

    cdef inline int64_t likelier(self, int64_t likely, uint32_t claim, int place, bint became) noexcept nogil:
        """Return the number that a flipped bit may have changed into ``claim``, if it is nearer than ``likely``.

        :param became: what the bit is now, if it was flipped.
        """
        cdef int64_t other = self.full(claim ^ <uint32_t> 1 << place)
        if (claim >> place & 1) == <uint32_t> became and abs64(other - self.expected) < abs64(likely - self.expected):
            return other
        return likely

    cdef inline int64_t full(self, uint32_t number) noexcept nogil:
        """Return the number next to the expected one that has these 32 bits."""
        return self.next + <int32_t> (number - <uint32_t> self.next)

    cdef inline void record(self, uint64_t latency) noexcept nogil:
        """Count a latency in its bucket."""
        cdef int64_t *buckets = <int64_t *> self.buckets.held.buf
        cdef int shift = 0
        if latency >> BUCKET_BITS:
            shift = 64 - BUCKET_BITS - __builtin_clzll(latency)
        buckets[min(self.most, (<int64_t> shift << (BUCKET_BITS - 1)) + <int64_t> (latency >> shift))] += 1


def check_marks(matrix, lengths, Py_ssize_t count, uint32_t run, int64_t now, lanes):
    """Check the packets in the first rows.

    :param run: the number of the run that is measured.
    :param now: when they came, in nanoseconds.
    :param lanes: by number, an object for each lane; its ``state()`` returns the :class:`LaneState`.
    :returns: how many packets are of no lane or of another run.
    """
    cdef Numbers rows = Numbers(matrix, False), sizes = Numbers(lengths, False)
    require_rows(rows)
    if not 0 <= count <= min(rows.held.shape[0], sizes.count(4)):
        raise ValueError(f"there are no {count} rows")
    cdef const uint8_t *packet = <const uint8_t *> rows.held.buf
    cdef const uint32_t *size = <const uint32_t *> sizes.held.buf
    cdef Py_ssize_t width = rows.held.shape[1], row
    cdef uint64_t units = <uint64_t> now >> UNIT
    cdef int64_t foreign = 0
    cdef uint32_t key, length, known = 0
    cdef LaneState lane = None
    for row in range(count):
        length = size[row]  # read once: another thread may change it
        if not MARK <= length <= width:
            foreign += 1
        else:
            memcpy(&key, packet + length - MARK, 4)
            if key != known or lane is None:
                known = key
                found = lanes.get(key >> 16) if key & 0xFFFF == run else None
                lane = None if found is None else found.state()
            if lane is None:
                foreign += 1
            else:
                lane.take(packet, length, key, units)
        packet += width
    return foreign


# --- fields that vary --------------------------------------------------------------------------------------------------

cdef enum:
    # Rows that are done at a time: their numbers stay in the nearest cache, and each loop is long enough for vectors.
    CHUNK = 64
    MOST_COLUMNS = 16
    MOST_SUMS = 8
    MOST_TERMS = 64

cdef struct Column:
    # The values, of 32 or of 64 bits: the other one is NULL.
    const uint32_t *narrow
    const uint64_t *wide
    Py_ssize_t at
    int width, shift
    uint64_t fixed

cdef struct Term:
    int column, right, left
    uint64_t mask
    # Whether all bits of the value count.
    bint whole

cdef struct Sum:
    Py_ssize_t at
    # The sum of the words that do not change, for each row; NULL: ``same`` for all.
    const uint32_t *each
    uint32_t same
    bint never_zero
    # Which terms are its own.
    int first, stop

# Columns, terms and sums, and the numbers of one chunk.
cdef struct Work:
    Column columns[MOST_COLUMNS]
    Term terms[MOST_TERMS]
    Sum sums[MOST_SUMS]
    int column_count, term_count, sum_count
    uint64_t values[MOST_COLUMNS][CHUNK]
    uint32_t words[MOST_COLUMNS][CHUNK]
    uint32_t total[CHUNK]


def write_fields(matrix, columns, sums):
    """Write the values of fields into all rows, and the checksums that cover them.

    The readable twin is ``_Writer`` of memifrt/traffic/prepare.py.

    :param columns: for each field its values, an array of 32 or 64 bits with one for each row, and four numbers. They
        are: where its bytes begin, how many there are (1 to 8), how far a value is shifted to the left, and the bits
        that are set in each.
    :param sums: for each checksum where it is, the sum of the words that do not change (a number, or an array of 32
        bits with one for each row; below 2**30), whether 0 is written as 0xffff, and its terms. A term has four numbers:
        the index of a field, how far its value is shifted to the right, and the mask of the bits that count. The last
        one is how far the result is shifted to the left: 0 or 8.
    :returns: whether they are written: False if there are more fields, checksums or terms than this function takes.
    :raises ValueError: a number does not fit into the rows.
    """
    cdef Numbers rows = Numbers(matrix, True), held
    cdef list keep = []  # the arrays, until the end
    cdef Py_ssize_t count, width, first = 0
    cdef Column *column
    cdef Term *term
    cdef Sum *total
    cdef Work work
    require_rows(rows)
    count, width = rows.held.shape[0], rows.held.shape[1]
    if len(columns) > MOST_COLUMNS or len(sums) > MOST_SUMS or sum([len(each[3]) for each in sums]) > MOST_TERMS:
        return False
    work.column_count = work.term_count = work.sum_count = 0
    for values, start, size, shift, fixed in columns:
        held = Numbers(values, False)
        keep.append(held)
        column = &work.columns[work.column_count]
        column.at, column.width, column.shift, column.fixed = start, size, shift, fixed
        column.narrow = <const uint32_t *> held.held.buf if held.held.itemsize == 4 else NULL
        column.wide = NULL if held.held.itemsize == 4 else <const uint64_t *> held.held.buf
        if held.count(4 if column.wide is NULL else 8) < count:
            raise ValueError("there are fewer values than rows")
        if not (
            1 <= column.width <= 8
            and 0 <= column.at <= width - column.width
            and 0 <= column.shift < 8 * held.held.itemsize
        ):
            raise ValueError(f"a field of {size} bytes at {start} is not in rows of {width}")
        work.column_count += 1
    for start, constant, never_zero, terms in sums:
        total = &work.sums[work.sum_count]
        total.at, total.never_zero, total.first = start, never_zero, work.term_count
        total.each, total.same = NULL, 0
        if not 0 <= total.at <= width - 2:
            raise ValueError(f"a checksum at {start} is not in rows of {width}")
        if isinstance(constant, int):
            total.same = constant
        else:
            held = Numbers(constant, False)
            keep.append(held)
            if held.count(4) < count:
                raise ValueError("there are fewer sums than rows")
            total.each = <const uint32_t *> held.held.buf
        for which, right, mask, left in terms:
            term = &work.terms[work.term_count]
            term.column, term.right, term.mask, term.left = which, right, mask, left
            if not (0 <= term.column < work.column_count and 0 <= term.right < 64 and 0 <= term.left <= 8):
                raise ValueError(f"there is no field {which}, or its bits are not there")
            size = work.columns[term.column].width
            term.whole = not term.right and mask >= (1 << 8 * size) - 1
            work.term_count += 1
        total.stop = work.term_count
        work.sum_count += 1
    with nogil:
        while first < count:
            write_chunk(
                &work, <uint8_t *> rows.held.buf + first * width, width, first, <int> min(count - first, <Py_ssize_t> CHUNK)
            )
            first += CHUNK
    return True


cdef void write_chunk(Work *work, uint8_t *rows, Py_ssize_t width, Py_ssize_t first, int count) noexcept nogil:
    """Do as ``write_fields`` for some rows.

    :param rows: the first of them, which has the number ``first``.
    """
    cdef uint64_t *values
    cdef uint32_t *words
    cdef uint32_t *total = work.total
    cdef const uint32_t *narrow
    cdef const uint32_t *each
    cdef const uint64_t *wide
    cdef uint64_t fixed
    cdef uint32_t same
    cdef uint16_t sum_
    cdef int i, number, shift
    cdef Column *column
    cdef Sum *checksum
    for number in range(work.column_count):
        column = &work.columns[number]
        values, words = work.values[number], work.words[number]
        shift, fixed = column.shift, column.fixed
        if column.wide is NULL:
            narrow = column.narrow + first
            for i in range(count):
                values[i] = <uint32_t> (narrow[i] << shift | <uint32_t> fixed)
            for i in range(count):
                words[i] = (<uint32_t> values[i] >> 16) + (<uint32_t> values[i] & 0xFFFF)
        else:
            wide = column.wide + first
            for i in range(count):
                values[i] = wide[i] << shift | fixed
            for i in range(count):
                words[i] = sum_of_four(values[i])
        write_column(rows + column.at, width, column.width, values, count)
    for number in range(work.sum_count):
        checksum = &work.sums[number]
        if checksum.each is NULL:
            same = checksum.same
            for i in range(count):
                total[i] = same
        else:
            each = checksum.each + first
            for i in range(count):
                total[i] = each[i]
        for i in range(checksum.first, checksum.stop):
            add_term(work, &work.terms[i], total, count)
        for i in range(count):
            total[i] = folded(total[i])
        if checksum.never_zero:
            for i in range(count):
                total[i] = 0 if total[i] == 0xFFFF else total[i]
        for i in range(count):
            sum_ = htons(<uint16_t> (total[i] ^ 0xFFFF))
            memcpy(rows + checksum.at + i * width, &sum_, 2)


cdef inline uint32_t sum_of_four(uint64_t value) noexcept nogil:
    """Return the sum of the 16-bit words of a number."""
    return <uint32_t> ((value >> 48) + (value >> 32 & 0xFFFF) + (value >> 16 & 0xFFFF) + (value & 0xFFFF))


cdef void add_term(Work *work, const Term *term, uint32_t *total, int count) noexcept nogil:
    """Add what a checksum adds for a field."""
    cdef const uint64_t *values = work.values[term.column]
    cdef const uint32_t *words = work.words[term.column]
    cdef int i, right = term.right, left = term.left
    cdef uint64_t mask = term.mask
    if term.whole:
        for i in range(count):
            total[i] += words[i] << left
    else:
        for i in range(count):
            total[i] += sum_of_four(values[i] >> right & mask) << left


cdef void write_column(uint8_t *at, Py_ssize_t stride, int width, const uint64_t *values, int count) noexcept nogil:
    """Write the lowest ``width`` bytes of numbers, the highest first."""
    cdef int i
    cdef uint64_t moved
    cdef uint32_t narrow
    cdef uint16_t short
    if width == 4:
        for i in range(count):
            narrow = htobe32(<uint32_t> values[i])
            memcpy(at + i * stride, &narrow, 4)
    elif width == 2:
        for i in range(count):
            short = htons(<uint16_t> values[i])
            memcpy(at + i * stride, &short, 2)
    elif width == 1:
        for i in range(count):
            at[i * stride] = <uint8_t> values[i]
    else:
        for i in range(count):
            moved = htobe64(values[i] << (64 - 8 * width))
            memcpy(at + i * stride, &moved, width)


cdef inline uint32_t folded(uint32_t total) noexcept nogil:
    """Return the one's complement sum of both halves, in 16 bits. Only 0 becomes 0."""
    total = (total & 0xFFFF) + (total >> 16)
    return (total & 0xFFFF) + (total >> 16)


cdef inline uint32_t folded64(uint64_t total) noexcept nogil:
    """Return the one's complement sum of four words, in 16 bits. Only 0 becomes 0."""
    total = <uint64_t> <uint32_t> total + (total >> 32)
    return folded(folded(<uint32_t> total) + <uint32_t> (total >> 32))


cdef inline int64_t abs64(int64_t number) noexcept nogil:
    return number if number >= 0 else -number


cdef inline uint64_t word_sum(const uint8_t *data, int64_t size) noexcept nogil:
    """Return the sum of the little-endian words, aligned to the end."""
    cdef uint64_t total = 0
    cdef uint16_t word
    if size & 1:
        total = <uint64_t> data[0] << 8
        data += 1
    for _ in range(size // 2):
        memcpy(&word, data, 2)
        total += word
        data += 2
    return total


cdef inline uint64_t long_sum(const uint8_t *data, int64_t size) noexcept nogil:
    """Return the sum, modulo 2**64, of the bytes as numbers of 8, aligned to the end, and of those before: 4, 2 and 1."""
    cdef uint64_t total = 0, number
    cdef uint32_t four
    cdef uint16_t two
    if size & 4:
        memcpy(&four, data, 4)
        total += four
        data += 4
    if size & 2:
        memcpy(&two, data, 2)
        total += two
        data += 2
    if size & 1:
        total += data[0]
        data += 1
    for _ in range(size // 8):
        memcpy(&number, data, 8)
        total += number
        data += 8
    return total
