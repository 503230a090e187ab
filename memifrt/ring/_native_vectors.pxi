# Matrices with a row for each packet, and their lengths: the buffers of recv_into and send_from; and numbers of the
# caller's. The twin of reference/vectors.py.


@cython.final
@cython.no_gc
cdef class Matrix:
    """A 2-D buffer of single bytes with contiguous rows: NumPy's uint8 arrays, without NumPy."""

    cdef Py_buffer held
    cdef bint holding
    cdef Py_ssize_t rows
    cdef uint64_t width

    def __cinit__(self, matrix, bint writable):
        in_place(matrix, &self.held, PyBUF_STRIDES, "the matrix", writable)
        self.holding = True
        if self.held.ndim != 2 or self.held.itemsize != 1 or (self.held.shape[1] > 1 and self.held.strides[1] != 1):
            raise ConfigError("the matrix must be a 2-D buffer of bytes with contiguous rows")
        self.rows = self.held.shape[0]
        self.width = self.held.shape[1]

    def __dealloc__(self):
        if self.holding:
            PyBuffer_Release(&self.held)

    cdef inline uint8_t *row(self, Py_ssize_t index) noexcept nogil:
        return <uint8_t *> self.held.buf + index * self.held.strides[0]


SIGNED_FORMATS, UNSIGNED_FORMATS = frozenset(b"h i l q n".split()), frozenset(b"H I L Q N".split())


@cython.final
@cython.no_gc
cdef class Lengths:
    """A 1-D buffer of whole numbers of 2, 4 or 8 bytes, which may lie apart from each other."""

    cdef Py_buffer held
    cdef bint holding
    cdef bint signed
    cdef Py_ssize_t count
    cdef uint64_t longest

    def __cinit__(self, lengths, bint writable):
        in_place(lengths, &self.held, PyBUF_STRIDES | PyBUF_FORMAT, "lengths", writable)
        self.holding = True
        cdef bytes kind = (b"B" if self.held.format is NULL else <bytes> self.held.format).lstrip(b"@")
        self.signed = kind in SIGNED_FORMATS
        if self.held.ndim != 1 or not (self.signed or kind in UNSIGNED_FORMATS) or self.held.itemsize not in (2, 4, 8):
            raise ConfigError("lengths must be a 1-D buffer of whole numbers of 2, 4 or 8 bytes")
        self.count = self.held.shape[0]
        self.longest = (<uint64_t> -1) >> (64 - 8 * self.held.itemsize + self.signed)

    def __dealloc__(self):
        if self.holding:
            PyBuffer_Release(&self.held)

    cdef inline uint8_t *at(self, Py_ssize_t index) noexcept nogil:
        return <uint8_t *> self.held.buf + index * self.held.strides[0]

    cdef inline uint64_t get(self, Py_ssize_t index) noexcept nogil:
        """Return a length; a negative one becomes a length that no row has."""
        cdef uint64_t value = 0
        # Little-endian, like all of memif; and a copy, because the numbers need not be aligned.
        if self.held.itemsize == 2:
            memcpy(&value, self.at(index), 2)
        elif self.held.itemsize == 4:
            memcpy(&value, self.at(index), 4)
        else:
            memcpy(&value, self.at(index), 8)
        return value if value <= self.longest else <uint64_t> -1

    cdef inline void set(self, Py_ssize_t index, uint64_t value) noexcept nogil:
        """Set a length, at most to the largest number that its type can hold."""
        value = min(value, self.longest)
        if self.held.itemsize == 2:
            memcpy(self.at(index), &value, 2)
        elif self.held.itemsize == 4:
            memcpy(self.at(index), &value, 4)
        else:
            memcpy(self.at(index), &value, 8)

    cdef object shown(self, Py_ssize_t index):
        """Return a length as the caller wrote it, for messages."""
        data = PyBytes_FromStringAndSize(<char *> self.at(index), self.held.itemsize)
        return int.from_bytes(data, "little", signed=self.signed)


cdef int in_place(owner, Py_buffer *into, int flags, what, bint writable) except -1:
    """Get a caller's buffer.

    :raises ConfigError: it must be writable and is not, or has not the layout that ``flags`` ask for.
    """
    try:
        return PyObject_GetBuffer(owner, into, flags | (PyBUF_WRITABLE if writable else 0))
    except BufferError as error:
        raise ConfigError(f"{what} cannot be {'written' if writable else 'read'} in place") from error


cdef int64_t clamped(value) except? -1:
    """Return a whole number of the caller's, cut down to 48 bits and a sign. Nothing that we count is larger (a ring of
    4 GiB buffers has 2^46 bytes), and sums of a few such numbers stay within 64 bits."""
    cdef int overflow = 0
    cdef int64_t most = <int64_t> 1 << 48, number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow:
        return most if overflow > 0 else -most
    return max(-most, min(number, most))
