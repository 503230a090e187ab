# cython: language_level=3, freethreading_compatible=True
"""The calls of an eventfd, compiled: the twin of :class:`memifrt.system.eventfd.PythonCalls`.

The compiled queues call them without Python in between. The number of the fd is read and used in one step, so a thread
that closes the fd cannot come in between.
"""

cimport cython
from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport errno

from memifrt.system.original_functions import Lock

import os

cdef extern from "eventfd_calls.h":
    int memif_kick(int fd) nogil
    int memif_drain(int fd) nogil
    int memif_polls(int fd, short events) nogil
    int memif_create_aio_context() nogil
    void memif_forget_aio_context() nogil
    void memif_kick_by_write(int fd) nogil

cdef extern from "<poll.h>":
    const short POLLIN

cdef extern from "<errno.h>":
    enum:
        EAGAIN
        EMFILE
        ENFILE
        ENOMEM

#: Held while the context is made, so that two threads do not make two.
cdef object creating = Lock()
cdef bint refused = False


cdef void create_context():
    """Make the context of this process if it has none yet."""
    global refused
    cdef int failed
    if refused:
        return
    with creating:
        failed = memif_create_aio_context()
        # These may go away: the next eventfd tries again.
        refused = failed not in (0, EMFILE, ENFILE, ENOMEM, EAGAIN)


cdef int failed_with(int number) except -1:
    """:raises OSError: always, with this number."""
    global errno
    errno = number
    PyErr_SetFromErrno(OSError)
    return -1


cdef class NativeCalls:
    """See :class:`memifrt.system.eventfd.PythonCalls`."""

    def __cinit__(self, int fd):
        self.fd = fd
        create_context()

    def kick(self):
        return self.submit_kick()

    def drain(self):
        return self.read_kicks()

    def is_readable(self):
        cdef int ready = 0
        with cython.critical_section(self):
            if self.fd >= 0:
                ready = memif_polls(self.fd, POLLIN)
        if ready < 0:
            failed_with(-ready)
        return ready > 0

    def forget(self):
        with cython.critical_section(self):
            self.fd = -1

    def abandon(self):
        self.fd = -1

    cdef bint submit_kick(self) noexcept:
        """Make the fd readable; return False if only a write can. A closed one needs nothing."""
        cdef bint done = True
        with cython.critical_section(self):
            if self.fd >= 0:
                done = memif_kick(self.fd)
        return done

    cdef bint read_kicks(self) except -1:
        """Make the fd unreadable; return whether it was readable."""
        cdef int found = 0
        with cython.critical_section(self):
            if self.fd >= 0:
                found = memif_drain(self.fd)
        if found < 0:
            failed_with(-found)
        return found


cdef void kick_number(int fd) noexcept nogil:
    """Make an eventfd readable that the caller alone can close."""
    if not memif_kick(fd):
        memif_kick_by_write(fd)


def _after_fork():
    """Begin anew in a forked child: the kernel does not pass the context on, and a thread may have held the lock."""
    global creating, refused
    creating = Lock()
    refused = False
    memif_forget_aio_context()


os.register_at_fork(after_in_child=_after_fork)
