"""memifrt: memif, the shared memory packet interface, spoken natively in Python.

See :class:`Runtime` for where to start; :mod:`memifrt.libmemif` has the C library's names.
"""

import memifrt._start  # noqa: F401  (first: it handles Ctrl+C during the other imports)
from memifrt.control.channel import Credentials
from memifrt.errors import (
    ConfigError,
    Disconnected,
    ErrorCode,
    ForkedError,
    MemifError,
    MemifOSError,
    PollCancelled,
    ProtocolError,
    RingViolation,
    strerror,
)
from memifrt.interface import Details, Interface, QueueDetails, RegionDetails
from memifrt.memory.region import ExternalRegion
from memifrt.queue import RxQueue, TxQueue
from memifrt.ring import Burst, Packet
from memifrt.runtime import Runtime
from memifrt.sockets import Socket
from memifrt.types import BufferFlag, FdEvent, Mode, QueueCounters, Role, RxMode, State

__version__ = "0.2.0"

__all__ = [
    "BufferFlag",
    "Burst",
    "ConfigError",
    "Credentials",
    "Details",
    "Disconnected",
    "ErrorCode",
    "ExternalRegion",
    "FdEvent",
    "ForkedError",
    "Interface",
    "MemifError",
    "MemifOSError",
    "Mode",
    "Packet",
    "PollCancelled",
    "ProtocolError",
    "QueueCounters",
    "QueueDetails",
    "RegionDetails",
    "RingViolation",
    "Role",
    "Runtime",
    "RxMode",
    "RxQueue",
    "Socket",
    "State",
    "TxQueue",
    "__version__",
    "strerror",
]
