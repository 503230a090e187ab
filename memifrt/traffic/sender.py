"""Send what is due: several streams by rate or weight, on the queues of one interface.

Owns which stream sends next, and how many packets. Knows nothing of what comes back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from memifrt.queue import TxQueue
from memifrt.traffic.prepare import Lane
from memifrt.traffic.rate import Pacer
from memifrt.traffic.stream import Stream

#: The most packets to send in one call: enough that the time of a call is small for each packet, and few enough that
#: what comes back is looked at often.
VECTOR = 512


class Flow:
    """A stream in one direction: its lanes, and how many packets it has sent.

    :param name: its name in the report.
    :param lanes: one for each queue.
    """

    def __init__(self, name: str, stream: Stream, lanes: Sequence[Lane]) -> None:
        self.name = name
        self.stream = stream
        self.lanes = lanes
        self.pacer = Pacer(math.inf)
        #: The number of packets of this run; None: no limit.
        self.limit: int | None = None
        #: Whether the number is that of a rate and a duration.
        self.timed = False
        self.sent = 0
        #: For a flow as fast as it goes: the packets that it may send before the others have sent theirs.
        self.credit = 0.0
        self._turn = 0

    @property
    def sent_bytes(self) -> int:
        return sum(lane.sent_bytes for lane in self.lanes)

    @property
    def mean_size(self) -> float:
        """The mean bytes of a packet."""
        return self.lanes[0].mean_size

    @property
    def done(self) -> bool:
        """Whether all packets of the run are sent."""
        return self.limit is not None and self.sent >= self.limit

    def begin(self, run: int, pps: float, burst: int, limit: int | None) -> None:
        """Begin a run.

        :param pps: packets a second; infinity: as fast as the peer takes them.
        """
        self.pacer = Pacer(pps, burst, limit)
        self.limit = limit
        self.sent = 0
        self.credit = 0.0
        for lane in self.lanes:
            lane.begin(run)

    def offered(self, elapsed: int) -> int:
        """Return how many packets were due in the first ``elapsed`` nanoseconds; as fast as it goes: those sent."""
        return self.sent if self.pacer.is_max else max(self.pacer.due(elapsed), self.sent)

    def send(self, queues: Sequence[TxQueue], wanted: int) -> int:
        """Send up to ``wanted`` packets, on each queue in turn; return how many were sent."""
        sent = tries = 0
        lanes = self.lanes
        while sent < wanted and tries < len(lanes):
            index = self._turn
            self._turn = (index + 1) % len(lanes)
            now = time.monotonic_ns()
            count = lanes[index].send(queues[index], min(wanted - sent, VECTOR), now)
            sent += count
            tries = 0 if count else tries + 1
        self.sent += sent
        return sent


class Sender:
    """Sends the flows of one direction.

    :param flows: what to send.
    """

    def __init__(self, flows: Sequence[Flow]) -> None:
        self.flows = flows
        #: The flow, if there is one alone that goes as fast as it can: the usual case, in which each call counts.
        self._only: Flow | None = None

    def begin(self) -> None:
        """Begin a run of flows that have begun."""
        self._only = self.flows[0] if len(self.flows) == 1 and self.flows[0].pacer.is_max else None

    def turn(self, queues: Sequence[TxQueue], elapsed: int) -> int:
        """Send what is due, at most a vector of each flow; return how many packets were sent.

        :param elapsed: nanoseconds since the begin of the run.
        :raises Disconnected: the interface has no peer.
        """
        if self._only is not None and self._only.limit is None:
            return self._only.send(queues, VECTOR)
        sent = 0
        fast: list[Flow] = []
        for flow in self.flows:
            if flow.done:
                continue
            if flow.pacer.is_max:
                fast.append(flow)
                continue
            wanted = flow.pacer.due(elapsed) - flow.sent
            if wanted > 0:
                sent += flow.send(queues, min(wanted, VECTOR))
        if fast:
            sent += self._turn_of_fast(queues, fast)
        return sent

    def _turn_of_fast(self, queues: Sequence[TxQueue], fast: Sequence[Flow]) -> int:
        """Send a vector of the flows that go as fast as the peer takes packets, shared by their weights."""
        if all(flow.credit < 1 for flow in fast):
            weights = sum(flow.stream.weight for flow in fast)
            for flow in fast:
                flow.credit += VECTOR * flow.stream.weight / weights
        sent = 0
        for flow in fast:
            wanted = int(flow.credit)
            if flow.limit is not None:
                wanted = min(wanted, flow.limit - flow.sent)
            if wanted:
                count = flow.send(queues, wanted)
                flow.credit -= count
                sent += count
        return sent

    @property
    def done(self) -> bool:
        """Whether all flows have sent all packets of the run."""
        return all(flow.done for flow in self.flows)

    def next_due(self) -> float:
        """Return the nanosecond of the run at which the next packet is due; infinity: never."""
        times = [0.0 if flow.pacer.is_max else flow.pacer.next_due(flow.sent) for flow in self.flows if not flow.done]
        return min(times, default=math.inf)
