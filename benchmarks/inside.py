"""Queues over plain memory inside one process: a connection's rings and queues, without a peer and without a socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memifrt.errors import Disconnected, RingViolation
from memifrt.queue import make_rx_queue, make_tx_queue
from memifrt.ring import load
from memifrt.system.fds import EventFd
from memifrt.types import QueueCounters, RxMode
from tests.lib.rings import Ends

if TYPE_CHECKING:
    from memifrt.queue import RxQueue, TxQueue
    from memifrt.ring import RxRing, TxRing


class Wires:
    """A slave and a master, connected, with rings of 1024 slots. Every queue polls, and none kicks.

    :param buffer_size: bytes of a buffer.
    """

    def __init__(self, buffer_size: int = 2048) -> None:
        self.ends = Ends(load("native"), log2_size=10, buffer_size=buffer_size)
        self._event = EventFd.create("eventfd that nobody uses")
        for lane in self.ends.lanes:
            lane.rx.set_mask(True)

    def rx(self, ring: RxRing) -> RxQueue:
        return make_rx_queue(
            0, ring, self._event, QueueCounters(), _violated, RxMode.POLLING, lambda queue: None, lambda: None
        )

    def tx(self, ring: TxRing) -> TxQueue:
        return make_tx_queue(0, ring, self._event, QueueCounters(), _violated, True, lambda queue: None)

    def crossing(self, role: str) -> tuple[RxQueue, TxQueue]:
        """The queues between which one side forwards."""
        rx, tx = self.ends.crossing(role)
        return self.rx(rx), self.tx(tx)

    def circle(self) -> tuple[RxQueue, TxQueue]:
        """The two ends of one ring: what is forwarded from the one to the other comes again and again."""
        return self.rx(self.ends.s2m.rx), self.tx(self.ends.s2m.tx)

    def close(self) -> None:
        self._event.close()


def _violated(violation: RingViolation) -> Disconnected:
    raise violation
