"""A direction of a bridge that delays, loses or changes packets.

Owns the way of packets through a line (``memifrt.ports.impaired_line``) and out of it in time, and what happens to the
packets in it when the peer of the target goes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence

from memifrt.errors import Disconnected
from memifrt.ports.forwarding import BURST, Carry, Record, Report
from memifrt.ports.impaired_line import Line
from memifrt.ports.impairment import Impairment
from memifrt.ports.port import Port

_SECOND = 1_000_000_000


class Impaired(Carry):
    """Forwards packets through an impairment. Packets are recorded when they leave it.

    While packets that should have left wait for room in the target, no further packets are taken from the source, so
    that a fast sender gets back-pressure.

    :param stream: the number of the direction; see :class:`~memifrt.ports.impaired_line.Line`.
    :param clock: returns the time in nanoseconds.
    """

    def __init__(
        self,
        source: Port,
        target: Port,
        impairment: Impairment,
        record: Record | None = None,
        *,
        stream: int = 0,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        super().__init__(source, target, record)
        self.impairment = impairment
        self._line = Line(impairment, stream)
        self._clock = clock

    def step(self) -> bool:
        delivered = self.deliver()
        blocked = self.blocked
        moved = super().step()
        self.blocked = self.blocked or blocked
        return moved or delivered

    def deliver(self) -> bool:
        self.blocked = False
        moved = False
        if self.target.can_send:
            with contextlib.suppress(Disconnected):  # the next event of the control channel reports it
                for qid in {*self._line.qids, *self._left}:
                    moved = self._deliver(qid) or moved
        return moved

    def wake_at(self) -> float:
        if self._left or not self.target.can_send:  # it is blocked, or waits for a peer
            return math.inf
        due = self._line.due()
        return math.inf if due is None else due / _SECOND

    def _turn(self, qid: int) -> int:
        if qid in self._left:  # it has no room
            self.blocked = True
            return 0
        packets = self.source.recv(BURST, qid=qid)
        if packets:
            self._line.put(packets, self._clock(), qid)
            self._deliver(qid)
        return len(packets)

    def _deliver(self, qid: int) -> bool:
        """Send the packets of a queue that are due, as far as there is room; return whether any were sent."""
        packets: Sequence[bytes] = self._left.pop(qid, ())
        if not packets:
            packets = self._line.take(self._clock(), qid)
            if not packets:
                return False
            if self._record is not None:
                self._record(packets)
        self._left[qid] = packets  # if the target loses its peer now, they count as left
        taken = self.target.send(packets, qid=qid)
        if taken == len(packets):
            del self._left[qid]
        else:
            self._left[qid] = packets[taken:]
            self.blocked = True
        return taken > 0

    def link_changed(self, up: bool) -> None:
        """Drop the packets for a peer that is gone."""
        if not up:
            self._without_peer += self._line.discard() + self._waiting
            self._left.clear()
        super().link_changed(up)

    def report(self) -> Report:
        report = super().report()
        counters = self.impairment.counters
        return dataclasses.replace(
            report, reasons={**counters.drops(), **report.reasons}, impaired=counters.changes(), delayed=len(self._line)
        )

    @property
    def _added(self) -> int:
        return self.impairment.counters.duplicated - len(self._line)
