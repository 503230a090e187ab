"""Report what a run has sent and what came back: figures for each stream, as objects, JSON, CSV and a table."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from memifrt.traffic.latency import Latency, merged

#: Why a run has ended: its time is over or its packets are sent; the program was told to stop; the peer is gone.
Ending = Literal["complete", "interrupted", "disconnected"]

#: What happened to received packets.
_COUNTS = ("duplicated", "reordered", "corrupted", "unidentified", "intact")


@dataclass(frozen=True)
class StreamReport:
    """The figures of a stream, in packets unless said otherwise.

    :ivar offered: the packets that were due. More than ``sent`` if the peer did not make room in time.
    :ivar sent: the packets that were sent.
    :ivar sent_bytes: their bytes in buffers, without FCS.
    :ivar checked: whether what comes back was checked. If not, all that follows is 0.
    :ivar received: the packets that came back, duplicated and corrupted ones included.
    :ivar lost: sent packets that did not come back, neither whole nor corrupted.
    :ivar duplicated: packets that came once more, whole or corrupted.
    :ivar reordered: packets that came after a later one.
    :ivar corrupted: packets with a change behind the headers.
    :ivar latency: the latencies of whole packets; None if none came.
    :ivar fcs: the bytes of a frame check sequence, which a frame has besides its bytes in a buffer: 4, or 0 in mode ip.
    :ivar unidentified: corrupted packets that nobody can identify: the sent ones count as lost.
    :ivar intact: sent packets that came back whole at least once.
    """

    name: str
    offered: int = 0
    sent: int = 0
    sent_bytes: int = 0
    checked: bool = False
    received: int = 0
    received_bytes: int = 0
    duplicated: int = 0
    reordered: int = 0
    corrupted: int = 0
    latency: Latency | None = None
    fcs: int = 0
    unidentified: int = 0
    intact: int = 0

    @property
    def sent_bits(self) -> int:
        """The bits of layer 2 that were sent: a rate in bits counts the same."""
        return 8 * (self.sent_bytes + self.fcs * self.sent)

    @property
    def lost(self) -> int:
        arrived = self.received - self.duplicated - self.unidentified
        return max(self.sent - arrived, 0) if self.checked else 0

    @property
    def unsent(self) -> int:
        """The packets that were due and for which the peer made no room in time."""
        return max(self.offered - self.sent, 0)

    @property
    def loss_ratio(self) -> float:
        """The share of the offered packets that did not come back, from 0 to 1."""
        return (self.lost + self.unsent) / self.offered if self.offered else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        figures: dict[str, Any] = {"name": self.name}
        figures |= {name: getattr(self, name) for name in ("offered", "sent", "sent_bytes", "unsent")}
        if self.checked:
            names = ("received", "received_bytes", "lost", *_COUNTS)
            figures |= {name: getattr(self, name) for name in names}
            figures["loss_ratio"] = self.loss_ratio
            figures["latency_us"] = None if self.latency is None else self.latency.as_dict()
        return figures


@dataclass(frozen=True, slots=True)
class Sample:
    """The totals of all streams at one time of a run.

    :ivar seconds: since the begin of the run.
    :ivar received: the packets that came back, or, if they are not checked, all packets that came.
    """

    seconds: float
    sent: int
    sent_bytes: int
    received: int
    received_bytes: int


@dataclass(frozen=True)
class Report:
    """The figures of a run.

    :ivar seconds: how long packets were sent.
    :ivar streams: the figures by name. A stream of both directions has two: ``NAME`` and ``NAME (back)``.
    :ivar checked: whether what came back was checked.
    :ivar foreign: received packets that are none of this run's.
    :ivar received: all packets that came on the interfaces.
    :ivar ended: ``"complete"``, ``"interrupted"`` or ``"disconnected"``.
    :ivar samples: the totals over time.
    :ivar error: why the peer is gone; empty otherwise.
    """

    seconds: float
    streams: dict[str, StreamReport]
    checked: bool
    received: int
    received_bytes: int
    foreign: int = 0
    ended: Ending = "complete"
    samples: Sequence[Sample] = field(default=(), repr=False)
    error: str = ""

    @property
    def total(self) -> StreamReport:
        """The sums of all streams; the latencies are those of all packets together."""
        streams = self.streams.values()
        names = ("offered", "sent", "sent_bytes", "received", "received_bytes", *_COUNTS)
        sums = {name: sum(getattr(each, name) for each in streams) for name in names}
        latency = merged(each.latency for each in streams)
        fcs = max((each.fcs for each in streams), default=0)
        return StreamReport("total", checked=self.checked, latency=latency, fcs=fcs, **sums)

    @property
    def sent_pps(self) -> float:
        """Packets sent a second."""
        return self.total.sent / max(self.seconds, 1e-9)

    def as_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {
            "seconds": round(self.seconds, 6),
            "ended": self.ended,
            "error": self.error,
            "checked": self.checked,
            "foreign": self.foreign,
            "received": self.received,
            "streams": [each.as_dict() for each in self.streams.values()],
            "total": self.total.as_dict(),
            "samples": [
                {
                    "seconds": round(each.seconds, 6),
                    "sent": each.sent,
                    "sent_bytes": each.sent_bytes,
                    "received": each.received,
                    "received_bytes": each.received_bytes,
                }
                for each in self.samples
            ],
        }

    def csv(self) -> str:
        """Return a line for each stream, below a line with the names of the columns."""
        out = io.StringIO()
        latencies = ("min", "mean", "p50", "p90", "p99", "p999", "max")
        names = (
            *("name", "seconds", "offered", "sent", "sent_bytes", "unsent"),
            *("received", "received_bytes", "lost", *_COUNTS, "loss_ratio"),
            *(f"latency_{name}_us" for name in latencies),
        )
        writer = csv.DictWriter(out, names, lineterminator="\n", restval="")
        writer.writeheader()
        for each in self.streams.values():
            figures = each.as_dict()
            figures["seconds"] = round(self.seconds, 6)
            latency = figures.pop("latency_us", None) or {}
            writer.writerow(figures | {f"latency_{name}_us": value for name, value in latency.items()})
        return out.getvalue()

    def rows(self) -> list[StreamReport]:
        """Return the streams, and their sum if there are several."""
        rows = list(self.streams.values())
        return [*rows, self.total] if len(rows) > 1 else rows


def intervals(samples: Iterable[Sample]) -> list[Sample]:
    """Return what was sent and received between each two samples, with the time of the second one."""
    found = list(samples)
    return [
        Sample(
            later.seconds,
            later.sent - earlier.sent,
            later.sent_bytes - earlier.sent_bytes,
            later.received - earlier.received,
            later.received_bytes - earlier.received_bytes,
        )
        for earlier, later in itertools.pairwise(found)
    ]
