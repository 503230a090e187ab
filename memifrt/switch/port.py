"""One port of a switch: what waits for room in it, what it dropped and why, and the flows that came from it.

Owns the bounded queue in front of a slow port. Knows nothing of addresses.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from itertools import islice

from memifrt.errors import Disconnected, MemifError, MemifOSError
from memifrt.ports.port import Port
from memifrt.switch.storm import FloodLimits, TokenBucket
from memifrt.switch.table import Entry
from memifrt.switch.vlan import Classified, PortVlans

#: The packets that may wait for room in one port.
DEFAULT_QUEUE = 1024
#: The bytes that may wait for room in one port. Chains of a memif make packets of up to 16 MiB.
_QUEUE_BYTES = 16 << 20
#: Packets of a queue to offer to the port at once.
_FLUSH = 256

NO_PEER, QUEUE_FULL, GONE = "without a peer", "queue full", "the interface is gone"


class Group:
    """Packets of one port that the switch treats alike.

    :ivar kind: ``unicast``, ``broadcast``, ``multicast``, ``unknown``, or ``drop``.
    :ivar target: the port of known unicast packets.
    :ivar form: the VLAN and the tag; None without VLANs.
    :ivar reason: why the packets are dropped.
    """

    __slots__ = ("form", "kind", "reason", "target")

    def __init__(self, kind: str, target: SwitchPort | None, form: Classified | None, reason: str = "") -> None:
        self.kind = kind
        self.target = target
        self.form = form
        self.reason = reason


class Flow:
    """The decision for packets with the same headers.

    It holds while the source's entry has the port that the packets come from, and the destination's entry has
    ``port``.
    """

    __slots__ = ("destination", "group", "port", "source")

    def __init__(self, source: Entry, destination: Entry, group: Group) -> None:
        self.source = source
        self.destination = destination
        self.port = destination.port
        self.group = group


class SwitchPort:
    """One port of a switch.

    :ivar number: its number, from 0 on.
    :ivar vlans: its VLANs; None if the switch has none.
    :ivar dropped: packets that came here and did not leave anywhere, by reason.
    :ivar not_sent: packets that should leave here and could not, by reason, besides those that the port refused.
    :ivar flooded: packets that came here and were sent to all ports, by kind.
    :ivar failure: the error that ended the port, or None.
    """

    def __init__(
        self,
        number: int,
        name: str,
        port: Port,
        vlans: PortVlans | None = None,
        queue: int = DEFAULT_QUEUE,
        limits: FloodLimits = FloodLimits(),  # noqa: B008 - it is frozen
    ) -> None:
        self.number = number
        self.name = name
        self.port = port
        self.vlans = vlans
        self.dropped: Counter[str] = Counter()
        self.not_sent: Counter[str] = Counter()
        self.flooded: Counter[str] = Counter()
        self.failure: MemifError | None = None
        #: Decisions for packets from this port, by their headers, and the groups that the decisions share.
        self.flows: dict[bytes, Flow] = {}
        self.groups: dict[tuple[str, int, Classified | None, str], Group] = {}
        #: Decisions that were checked a moment ago: they hold until a time, and while the table has the same version.
        self.checked: dict[bytes, Group] = {}
        self.checked_until = 0.0
        self.checked_version = -1
        #: Whether the last burst went to one memif as a whole.
        self.uniform = True
        self.queued = 0
        self._queued_bytes = 0
        self._limit = queue
        self._queues: dict[int, deque[bytes]] = {}
        rates = {"broadcast": limits.broadcast, "multicast": limits.multicast, "unknown": limits.unknown}
        self.buckets = {kind: TokenBucket(rate) for kind, rate in rates.items() if rate}

    @property
    def up(self) -> bool:
        """Whether packets can leave here."""
        return self.failure is None and self.port.can_send

    def group(self, kind: str, target: SwitchPort | None, form: Classified | None, reason: str = "") -> Group:
        """Return the group of packets from this port with this decision: always the same object."""
        key = (kind, -1 if target is None else target.number, form, reason)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Group(kind, target, form, reason)
        return group

    def forget_flows(self) -> None:
        self.flows.clear()
        self.groups.clear()
        self.checked.clear()

    # --- sending ----------------------------------------------------------------------------------------------------

    def send(self, packets: Sequence[bytes], qid: int = 0) -> None:
        """Send packets, and let those that find no room wait. The queue is bounded: it drops the newest."""
        if not self.up:
            self.not_sent[NO_PEER if self.failure is None else GONE] += len(packets)
            return
        sent = 0
        if not self._queues.get(qid):
            try:
                sent = self.port.send(packets, qid=qid)
            except Disconnected:
                self.not_sent[NO_PEER] += len(packets)
                return
            except MemifOSError as error:
                self.fail(error)
                self.not_sent[GONE] += len(packets)
                return
        if sent < len(packets):
            self.wait(packets[sent:] if sent else packets, qid)

    def wait(self, packets: Sequence[bytes], qid: int) -> None:
        """Put packets into the queue as far as it has room."""
        kept = packets[: max(self._limit - self.queued, 0)]
        size = sum(map(len, kept))
        if self._queued_bytes + size > _QUEUE_BYTES:
            kept, size = self._fitting(kept)
        if kept:
            self._queues.setdefault(qid, deque()).extend(kept)
            self.queued += len(kept)
            self._queued_bytes += size
        if len(kept) < len(packets):
            self.not_sent[QUEUE_FULL] += len(packets) - len(kept)

    def _fitting(self, packets: Sequence[bytes]) -> tuple[Sequence[bytes], int]:
        """Return the first packets that fit into the bytes of the queue, and their size."""
        size = 0
        for number, packet in enumerate(packets):
            if self._queued_bytes + size + len(packet) > _QUEUE_BYTES:
                return packets[:number], size
            size += len(packet)
        return packets, size

    def flush(self) -> bool:
        """Offer the waiting packets to the port; return whether it took any."""
        moved = False
        try:
            for qid, queue in self._queues.items():
                while queue:
                    offered = list(islice(queue, _FLUSH))
                    sent = self.port.send(offered, qid=qid)
                    for packet in offered[:sent]:
                        queue.popleft()
                        self._queued_bytes -= len(packet)
                    self.queued -= sent
                    moved = moved or sent > 0
                    if sent < len(offered):
                        break
        except Disconnected:
            self.drop_queue(NO_PEER)
        except MemifOSError as error:
            self.fail(error)
        return moved

    def drop_queue(self, reason: str) -> None:
        """Drop the packets that wait: their receiver is gone."""
        if self.queued:
            self.not_sent[reason] += self.queued
        self._queues.clear()
        self.queued = self._queued_bytes = 0

    def fail(self, error: MemifError) -> None:
        """Note that the interface behind the port is gone for good."""
        self.failure = error
        self.drop_queue(GONE)

    # --- totals -----------------------------------------------------------------------------------------------------

    def losses(self) -> dict[str, int]:
        """Return the packets that were dropped, by reason: those that came here, and those that should leave here."""
        total: Counter[str] = Counter()
        for part in (self.port.unusable, self.dropped, self.port.refused, self.not_sent):
            total.update(part)
        return {reason: count for reason, count in total.items() if count}
