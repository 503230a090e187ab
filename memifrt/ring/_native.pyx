# cython: language_level=3, cdivision=True, initializedcheck=False, freethreading_compatible=True
"""The data plane, compiled: the same rings as in :mod:`memifrt.ring.reference`, byte for byte.

How to read it. The parts are included below, and each is the twin of a readable module: the same names, the same
checks, the same order. ``_native_queue.pxi`` is the twin of ``memifrt/queue/reference.py``. ``tests/ring/test_twins.py`` compares the names and knows the exceptions. ``memif_ring.h``
has the layout of shared memory, and the loads and stores that must keep their order (docs/memory-order.md).

Without the GIL, a method that uses the state of a ring or of its bursts holds the ring's critical section, so nothing
changes that the GIL would keep (docs/memory-order.md, Without the GIL).

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
from cpython.list cimport PyList_CheckExact, PyList_GET_ITEM
from cpython.object cimport PyObject
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove

from memifrt.system._eventfd cimport NativeCalls, kick_number

import functools
import os

from memifrt.errors import ConfigError, Disconnected, ErrorCode, ForkedError, RingViolation, check_packets, not_a_packet, os_error
from memifrt.options import parse_budget, parse_rx_mode, parse_stop
from memifrt.renamed import warn_renamed
from memifrt.ring.protocol import BATCH, Glance
from memifrt.system.forks import call_after_fork
from memifrt.system.not_copied import refuse_to_copy
from memifrt.types import DEFAULT_BURST, MAX_LOG2_RING_SIZE, BufferFlag, QueueCounters, RxMode

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object number, int *overflow) except? -1

include "_native_descriptor.pxi"
include "_native_ring.pxi"
include "_native_burst.pxi"
include "_native_receive.pxi"
include "_native_send.pxi"
include "_native_vectors.pxi"
include "_native_queue.pxi"


# --- what the module exports -----------------------------------------------------------------------------------------


def slave_rx(memory, buffers):
    """Make the slave's end of an M2S ring."""
    return SlaveRxRing(memory, buffers)


def slave_tx(memory, buffers):
    """Make the slave's end of an S2M ring."""
    return SlaveTxRing(memory, buffers)


def master_rx(memory):
    """Make the master's end of an S2M ring."""
    return MasterRxRing(memory)


def master_tx(memory):
    """Make the master's end of an M2S ring."""
    return MasterTxRing(memory)
