"""The totals of a replay, and their text."""

from __future__ import annotations

from dataclasses import dataclass

from memifrt.errors import MemifError


@dataclass(slots=True)
class Outcome:
    """The totals of a replay, in packets unless said otherwise.

    :ivar skipped: packets that the memif cannot carry: empty, too long, or without a packet that can be converted.
    :ivar unread: packets that the peer left in the ring.
    :ivar complete: whether the whole file was played, and not ended early by Ctrl+C, SIGTERM or the peer.
    :ivar broken: the error of a broken file; the packets before it were played.
    :ivar cut: packets that were cut at capture and left out.
    :ivar sent_cut: packets that were cut at capture and sent that way.
    :ivar padded: packets that were cut at capture and filled up with zeros.
    :ivar foreign: packets with a link type that the memif does not carry.
    :ivar shortened: the number of gaps that were longer than ``Pace.max_gap``.
    """

    accepted: int = 0
    bytes: int = 0
    dropped: int = 0
    skipped: int = 0
    unread: int = 0
    seconds: float = 0.0
    complete: bool = False
    broken: MemifError | None = None
    cut: int = 0
    sent_cut: int = 0
    padded: int = 0
    foreign: int = 0
    shortened: int = 0

    def line(self) -> str:
        """Return the totals as one line of text."""
        text = f"{self.accepted} packets, {self.bytes} bytes accepted, {self.dropped} dropped"
        if self.skipped:
            text += f", {self.skipped} skipped that this memif cannot carry"
        for count, what in (
            (self.foreign, "skipped of another link type"),
            (self.cut, "skipped that were cut at capture"),
            (self.sent_cut, "sent as they were cut at capture"),
            (self.padded, "that were cut at capture padded with zeros"),
            (self.shortened, "gaps shortened"),
        ):
            if count:
                text += f", {count} {what}"
        if self.unread:
            text += f", {self.unread} not taken by the peer"
        seconds = max(self.seconds, 1e-9)
        pps, mbps = self.accepted / seconds, 8e-6 * self.bytes / seconds
        return f"{text} in {self.seconds:.3f} s: {pps:.0f} packets/s, {mbps:.3f} Mbit/s"
