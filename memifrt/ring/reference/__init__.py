"""The data plane in Python, written to be read: what the compiled rings do, byte for byte.

Read the modules in this order: ``descriptor`` (the layout of shared memory), ``burst`` (buffers that are handed out),
``ring`` (what all rings share), ``receive``, ``send``, ``vectors`` (matrices of packets). Each has a twin with the same
names and the same checks in a ``_native_*.pxi`` beside this folder.

Nothing in shared memory is trusted. The peer can write to all of it at any moment. So a descriptor is copied once, the
copy is checked, and only the copy is used. Our own state (which buffer sits in which slot, how far we are) is
kept in private memory. docs/memory-order.md says in which order shared memory is read and written, and why.

The classes have attributes and methods beyond those of :mod:`memifrt.ring.protocol`. They are for the modules of this
folder alone; those of the compiled rings cannot be reached from Python.
"""

from __future__ import annotations

from memifrt.ring.protocol import RingMemory, SlaveBuffers
from memifrt.ring.reference.receive import MasterRxRing, SlaveRxRing
from memifrt.ring.reference.ring import check_cookie, exchange
from memifrt.ring.reference.send import MasterTxRing, SlaveTxRing

__all__ = [
    "MasterRxRing",
    "MasterTxRing",
    "SlaveRxRing",
    "SlaveTxRing",
    "check_cookie",
    "exchange",
    "master_rx",
    "master_tx",
    "slave_rx",
    "slave_tx",
]


def slave_rx(memory: RingMemory, buffers: SlaveBuffers) -> SlaveRxRing:
    """Make the slave's end of an M2S ring."""
    return SlaveRxRing(memory, buffers)


def slave_tx(memory: RingMemory, buffers: SlaveBuffers) -> SlaveTxRing:
    """Make the slave's end of an S2M ring."""
    return SlaveTxRing(memory, buffers)


def master_rx(memory: RingMemory) -> MasterRxRing:
    """Make the master's end of an S2M ring."""
    return MasterRxRing(memory)


def master_tx(memory: RingMemory) -> MasterTxRing:
    """Make the master's end of an M2S ring."""
    return MasterTxRing(memory)
