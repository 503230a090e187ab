"""The objects and settings of a runtime that its sockets, interfaces and connections share.

Owns nothing. It passes them to the layers below the runtime.
"""

from __future__ import annotations

from dataclasses import dataclass

from memifrt.connection.reconnect import Reconnector
from memifrt.options import RegionAllocator
from memifrt.poll.hook import FdRegistry
from memifrt.poll.schedule import Schedule
from memifrt.rekick import LeftoverWatch


@dataclass(frozen=True, slots=True)
class RuntimeContext:
    """The parts and settings of one runtime.

    :ivar handshake_timeout: seconds from connect to the end of the handshake; 0 for no limit.
    :ivar max_half_open: how many peers of one listener may be connected without having named an interface.
    """

    registry: FdRegistry
    schedule: Schedule
    reconnector: Reconnector
    leftovers: LeftoverWatch
    app_name: str
    allocator: RegionAllocator
    accept_unsealed: bool
    handshake_timeout: float
    max_half_open: int
