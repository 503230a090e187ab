"""The data plane: one Protocol, and the implementation that is in use.

``__impl__`` names the implementation. Memory in, bursts out: nothing in this folder knows of sockets, callbacks or
configuration, and all that must be distrusted in shared memory is distrusted here.
"""

from memifrt.ring import reference
from memifrt.ring.protocol import Burst, RingImplementation, RingMemory, RxRing, SlaveBuffers, TxRing

#: The implementation in use, and its name.
implementation: RingImplementation = reference
__impl__ = "python"

__all__ = [
    "Burst",
    "RingImplementation",
    "RingMemory",
    "RxRing",
    "SlaveBuffers",
    "TxRing",
    "__impl__",
    "implementation",
]
