# cython: language_level=3, freethreading_compatible=True
"""The dispatcher, compiled: the twin of :class:`memifrt.poll.dispatch.PythonDispatcher`.

It waits in the epoll set itself, unless gevent may have patched the process: then the poller waits, and lets other
greenlets run.
"""

cimport cython
from cpython.dict cimport PyDict_GetItemWithError
from cpython.ref cimport PyObject
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint32_t

import sys

from memifrt.errors import ConfigError, PollCancelled
from memifrt.poll.dispatch import CALLBACK_RUNS, report_failure
from memifrt.poll.epoll import EVENTS, LONGEST_WAIT, MAX_EVENTS

cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1
    object PyErr_SetFromErrno(object kind)

cdef extern from "<time.h>":
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *now) nogil
    const int CLOCK_MONOTONIC

cdef extern from "<sys/epoll.h>":
    ctypedef union epoll_data_t:
        int fd
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_wait(int epoll, epoll_event *events, int count, int milliseconds) nogil

cdef enum:
    # As many as MAX_EVENTS.
    MOST = 256

cdef tuple events_of = EVENTS
cdef uint32_t BITS = len(EVENTS) - 1
cdef double longest_wait = LONGEST_WAIT
cdef dict modules = sys.modules

assert MAX_EVENTS == MOST


cdef class NativeDispatcher:
    """See :class:`memifrt.poll.dispatch.Dispatcher`."""

    cdef dict handlers
    cdef object poller, on_error
    cdef readonly bint busy
    cdef bint stopped
    # The fds of the poller.
    cdef int epoll, cancel

    def __init__(self, dict handlers not None, poller=None, on_error=None):
        self.handlers = handlers
        self.poller = poller
        self.on_error = on_error
        self.epoll = self.cancel = -1
        if poller is not None:
            self.epoll, self.cancel = poller.fileno(), poller.cancel_fileno()

    @property
    def refuses(self):
        return self.busy or self.stopped

    def poll(self, timeout):
        cdef double seconds = -1
        cdef epoll_event ready[MOST]
        cdef int count, index, fd, handled = 0
        cdef bint cancelled = False
        if timeout is not None:
            if type(timeout) is not int and type(timeout) is not float:
                return self.poll_slowly(timeout)
            if not 0 <= timeout <= longest_wait:
                return self.poll_slowly(timeout)
            seconds = timeout
        if seconds and "gevent.monkey" in modules:
            return self.poll_slowly(timeout)
        count = self.wait(ready, seconds)
        if self.busy:  # another thread polls, too, and a handler runs there
            raise ConfigError(CALLBACK_RUNS)
        for index in range(count):
            if self.stopped:
                return handled
            fd = ready[index].data.fd
            if fd == self.cancel:
                cancelled = True
            else:
                handled += self.call_handler(fd, <object> events_of[ready[index].events & BITS])
        if cancelled and not self.stopped and self.poller.consume_cancel():
            raise PollCancelled
        return handled

    def handle(self, fd, events):
        return self.call_handler(fd, events)

    def stop(self):
        self.stopped = True

    def abandon(self):
        self.stopped = True
        self.busy = False

    cdef object poll_slowly(self, timeout):
        """Wait as the poller waits."""
        cdef int handled = 0
        try:
            ready, cancelled = self.poller.wait(timeout)
        except OSError:
            if self.stopped:  # a signal handler closed the poller during the wait
                return 0
            raise
        if self.busy:  # another greenlet or thread polls, too, and a handler runs there
            raise ConfigError(CALLBACK_RUNS)
        for fd, events in ready:
            if self.stopped:
                return handled
            handled += self.call_handler(fd, events)
        if cancelled and not self.stopped and self.poller.consume_cancel():
            raise PollCancelled
        return handled

    cdef int wait(self, epoll_event *ready, double seconds) except -1:
        """Wait for events; return how many there are.

        :param seconds: negative to wait without a limit.
        :raises BaseException: a signal handler raised it.
        """
        cdef int count, milliseconds = -1
        cdef double end = 0
        if seconds > 0:
            end = now() + seconds
        if seconds >= 0:
            milliseconds = to_milliseconds(seconds)
        while not self.stopped:  # a signal handler may have closed the set, or have forked: then this is the child
            with nogil:
                count = epoll_wait(self.epoll, ready, MOST, milliseconds)
            if count >= 0:
                return count
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)
            PyErr_CheckSignals()
            if seconds > 0:
                milliseconds = to_milliseconds(max(0.0, end - now()))
        return 0

    cdef bint call_handler(self, fd, events) except -1:
        """Pass events to the handler of an fd; return whether it has one."""
        cdef PyObject *found
        with cython.critical_section(self.handlers):  # another thread may take the handler out of them
            found = PyDict_GetItemWithError(self.handlers, fd)
            if found is NULL:
                return False
            handler = <object> found
        self.busy = True
        try:
            handler(events)
        except Exception as error:
            if self.on_error is None:
                raise
            report_failure(self.on_error, error)
        finally:
            self.busy = False
        return True


cdef double now() noexcept:
    """Return the monotonic clock in seconds."""
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return time.tv_sec + time.tv_nsec * 1e-9


cdef int to_milliseconds(double seconds) noexcept:
    """Return the number of milliseconds, rounded up: a wait must not end before its time."""
    cdef int milliseconds = <int> (seconds * 1000)
    return milliseconds + (milliseconds < seconds * 1000)
