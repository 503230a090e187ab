"""Before a program hangs up: its peers get time to take what is in their rings, for a disconnect throws it away.

Owns how long that is waited for, and what counts as not taken. The waiting itself is done by the program's loop, whose
timer kicks peers that leave packets (``memifrt.rekick``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from memifrt.interface import Interface
from memifrt.rekick import Glance

#: Seconds that a peer may take nothing of what is in its rings.
PATIENCE = 1.0
#: The same, where a zero-copy slave has read every kick and only keeps fewer buffers than it offers at a time.
_BRIEF = 0.1
#: Seconds between two looks.
INTERVAL = 0.001


class Drain:
    """The transmit rings of some interfaces at the end of a program.

    :param limit: seconds after which it is over even if packets are still being taken.
    """

    def __init__(self, interfaces: Sequence[Interface], limit: float = math.inf) -> None:
        self._interfaces = interfaces
        self._end = time.monotonic() + limit
        self._seen: list[tuple[int, int]] = []
        self._since = 0.0

    def goes_on(self) -> bool:
        """Look at the rings; whether to wait a moment and look again."""
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
        """Buffers that the peer has not taken."""
        return sum(map(_not_taken, _glances(interface)))


def _glances(interface: Interface) -> list[Glance]:
    if not interface.connected:
        return []
    return [glance for queue in interface.tx_queues if (glance := queue.glance()) is not None]


def _not_taken(glance: Glance) -> int:
    """How many of the buffers that are not given back hold packets that nobody has taken, as far as can be told.

    A zero-copy slave keeps some of those that it has taken. One that has read our last kick has taken what there was.
    """
    if glance.is_certain or not (glance.masked or glance.noticed):
        return glance.left
    return 0
