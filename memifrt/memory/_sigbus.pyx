# cython: language_level=3, freethreading_compatible=True
"""The guards of memory that a peer may truncate, compiled: the same as :mod:`memifrt.memory.sigbus_reference`.

``memif_sigbus.h`` has the handler, and says why it is safe in any thread and at any moment.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_SetFromErrno
from libc.stdint cimport uintptr_t

from memifrt.errors import os_error


cdef extern from "memif_sigbus.h":
    ctypedef struct memif_hangup:
        int fd
    ctypedef struct memif_guard:
        int lost
    memif_guard *memif_guard_new(uintptr_t start, size_t size, size_t block, memif_hangup *hangup) nogil
    bint memif_guard_release(memif_guard *guard) nogil
    int memif_get(const int *place) nogil
    void memif_hangup_forget(memif_hangup *hangup) nogil
    bint memif_make_private(uintptr_t address, size_t size, int fd) nogil
    void memif_before_fork() noexcept nogil
    void memif_after_fork() noexcept nogil
    void memif_after_fork_in_child() noexcept nogil

cdef extern from "pthread.h":
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil, void (*child)() noexcept nogil)

if pthread_atfork(memif_before_fork, memif_after_fork, memif_after_fork_in_child):
    raise ImportError("pthread_atfork has failed")


@cython.final
@cython.no_gc
cdef class HangUp:
    cdef memif_hangup state

    def __cinit__(self, int fd):
        self.state.fd = fd

    def forget(self):
        memif_hangup_forget(&self.state)


# Without the garbage collector, which could drop the HangUp before the guard is released. It has no references back.
@cython.final
@cython.no_gc
cdef class Guard:
    cdef memif_guard *guard
    cdef HangUp hang_up
    cdef bint was_lost

    def __cinit__(self, uintptr_t address, size_t size, size_t block, HangUp hang_up=None):
        self.hang_up = hang_up
        self.guard = memif_guard_new(address, size, block, NULL if hang_up is None else &hang_up.state)
        if self.guard is NULL:
            try:
                PyErr_SetFromErrno(OSError)
            except OSError as error:
                raise os_error("cannot guard memory that may be truncated", error) from error

    def __dealloc__(self):
        if self.guard is not NULL:
            memif_guard_release(self.guard)

    @property
    @cython.critical_section
    def lost(self):
        return self.was_lost if self.guard is NULL else memif_get(&self.guard.lost) != 0

    @cython.critical_section
    def release(self):
        cdef memif_guard *guard = self.guard
        if guard is not NULL:
            self.guard = NULL
            self.was_lost = memif_guard_release(guard)


def make_private(uintptr_t address, size_t size, int fd):
    return memif_make_private(address, size, fd)


def address_of(memory):
    cdef Py_buffer held
    PyObject_GetBuffer(memory, &held, PyBUF_SIMPLE | PyBUF_WRITABLE)
    address = <uintptr_t> held.buf
    PyBuffer_Release(&held)
    return address
