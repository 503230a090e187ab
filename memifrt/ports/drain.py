"""Give peers time to take their packets before a program disconnects, because a disconnect throws the packets away.

Owns how long to wait, and which packets count as not taken. The loop of the program does the waiting. Its timer kicks
peers that leave packets in a ring (``memifrt.rekick``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from memifrt.interface import Interface
from memifrt.ring.protocol import Glance

#: Seconds to wait while a peer takes no packets.
PATIENCE = 1.0
#: Seconds to wait for a zero-copy slave that has read every kick: it has taken all packets, but keeps some buffers.
_BRIEF = 0.1
#: Seconds between two looks at the rings.
INTERVAL = 0.001


class Drain:
    """Watches the transmit rings of some interfaces at the end of a program.

    :param limit: seconds after which the wait ends even if peers still take packets.
    """

    def __init__(self, interfaces: Sequence[Interface], limit: float = math.inf) -> None:
        self._interfaces = interfaces
        self._end = time.monotonic() + limit
        self._seen: list[tuple[int, int]] = []
        self._since = 0.0

    def goes_on(self) -> bool:
        """Look at the rings; return whether to wait :data:`INTERVAL` and look again."""
        now = time.monotonic()
        glances = [glance for interface in self._interfaces for glance in _glances(interface)]
        seen = [(glance.taken, glance.left) for glance in glances]
        if seen != self._seen:
            self._seen, self._since = seen, now
        if not any(glance.left for glance in glances):
            return False
        patience = PATIENCE if any(map(_not_taken, glances)) else _BRIEF
        return now < min(self._since + patience, self._end)

    @staticmethod
    def left(interface: Interface) -> int:
        """Estimate how many buffers the peer has not taken; 0 without a connection."""
        return sum(map(_not_taken, _glances(interface)))


def _glances(interface: Interface) -> list[Glance]:
    if not interface.connected:
        return []
    return [glance for queue in interface.tx_queues if (glance := queue.glance()) is not None]


def _not_taken(glance: Glance) -> int:
    """Estimate how many buffers of a ring hold packets that the peer has not taken.

    A zero-copy slave keeps some buffers of packets that it has taken. If it has read our last kick, it has taken all.
    """
    if glance.is_certain or not (glance.masked or glance.noticed):
        return glance.left
    return 0
