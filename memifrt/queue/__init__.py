"""Receive and transmit queues: a ring with its eventfd, with which applications send and receive.

``contract`` says what a queue does. ``reference`` fulfils it in Python, ``memifrt/ring/_native_queue.pxi`` compiled:
a queue of a compiled ring is compiled.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from memifrt.queue import reference
from memifrt.queue.contract import RxQueue, TxQueue
from memifrt.types import DEFAULT_BURST

if TYPE_CHECKING:
    from memifrt.ring.protocol import RxRing, TxRing

__all__ = ["DEFAULT_BURST", "RxQueue", "TxQueue", "make_rx_queue", "make_tx_queue"]


def make_rx_queue(qid: int, ring: RxRing, *arguments: Any) -> RxQueue:
    """Return the queue of a receive ring. The arguments are those of :class:`memifrt.queue.reference.RxQueue`."""
    made: RxQueue = _module_for(ring).RxQueue(qid, ring, *arguments)
    return made


def make_tx_queue(qid: int, ring: TxRing, *arguments: Any) -> TxQueue:
    """Return the queue of a transmit ring. The arguments are those of :class:`memifrt.queue.reference.TxQueue`."""
    made: TxQueue = _module_for(ring).TxQueue(qid, ring, *arguments)
    return made


def _module_for(ring: RxRing | TxRing) -> Any:
    """Return the module with the queues for a ring: that of the compiled rings, if this is one of them."""
    module = sys.modules[type(ring).__module__]
    if not hasattr(module, "RxQueue"):
        return reference
    RxQueue.register(module.RxQueue)
    TxQueue.register(module.TxQueue)
    return module
