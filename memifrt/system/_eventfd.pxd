cdef class NativeCalls:
    cdef int fd

    cdef bint submit_kick(self) noexcept
    cdef bint read_kicks(self) except -1


cdef void kick_number(int fd) noexcept nogil
