"""Which packets of a capture are sent on a memif, and in which form: converted, rewritten, filled up.

Owns what happens to packets that were cut at capture or have another link type. Sends nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memifrt.capture.flows import Flows
from memifrt.capture.link_layer import Conversion, LinkLayer
from memifrt.capture.pcap import MAX_SNAPLEN, CaptureFileError, Packet
from memifrt.capture.rewrite import Edit
from memifrt.cli.program import complain
from memifrt.cli.replay.outcome import Outcome
from memifrt.cli.replay.recording import Recording
from memifrt.errors import ConfigError

#: The bytes of the shortest Ethernet frame, without its check sequence.
SHORTEST_FRAME = 60

#: The ways to treat packets that were cut at capture.
CUT_CHOICES = ("pad", "send", "skip")


class Selection:
    """Selects the packets to send, converts and rewrites them, and handles those that were cut at capture.

    :ivar left: how many packets may still be sent; None for no limit.
    """

    def __init__(
        self,
        recording: Recording,
        link_layer: LinkLayer,
        cut: str | None,
        outcome: Outcome,
        *,
        edits: Sequence[Edit] = (),
        limit: int | None = None,
        flows: Flows | None = None,
    ) -> None:
        self.left = limit
        self._edits = edits
        self._flows = flows
        self._recording = recording
        self._link_layer = link_layer
        self._cut = cut
        self._outcome = outcome
        self._conversions: dict[int, Conversion | None] = {}

    def check(self) -> None:
        """Check that the memif carries at least one link type of the file.

        :raises ConfigError: it carries none of those that the file has described so far.
        """
        types = self._recording.link_types
        if types and all(self._conversion(number) is None for number in types):
            raise ConfigError(f"{self._recording.name}: {self._link_layer.mismatch(types[0])}")

    def packets(self) -> Iterator[Packet]:
        outcome = self._outcome
        try:
            for packet in self._recording:
                conversion = self._conversion(packet.link_type)
                if conversion is None:
                    self.check()  # perhaps no packet can ever be sent
                    outcome.foreign += 1
                    continue
                data: bytes | None = packet.data
                if data and len(data) < packet.length:
                    data = self._mended(packet)
                    if data is None:
                        continue
                data = conversion(data) if data else None
                if data:
                    for edit in self._edits:
                        data = edit(data)
                    if self._flows is not None:
                        self._flows.add(data)
                    if self.left is not None:
                        self.left -= 1
                    yield packet if data is packet.data else packet._replace(data=data)
                    if self.left == 0:  # the next packet of a pipe may never come
                        return
                else:
                    outcome.skipped += 1
        except (CaptureFileError, ConfigError) as error:  # the packets before the error are still sent
            outcome.broken = error

    def _conversion(self, link_type: int) -> Conversion | None:
        if link_type not in self._conversions:
            self._conversions[link_type] = self._link_layer.conversion(link_type)
        return self._conversions[link_type]

    def _mended(self, packet: Packet) -> bytes | None:
        """Return the bytes to send for a packet that was cut at capture; None to leave it out."""
        outcome = self._outcome
        if self._cut == "send":
            outcome.sent_cut += 1
            return packet.data
        if self._cut == "pad" and packet.length <= MAX_SNAPLEN:
            outcome.padded += 1
            return packet.data.ljust(packet.length, b"\0")
        if not outcome.cut and self._cut is None:
            left = f"{len(packet.data)} of its {packet.length} bytes"
            complain(
                f"memifrt replay: a packet was cut at capture to {left}: such packets are not sent; "
                "--cut pad fills them up with zeros, --cut send sends what was captured"
            )
        outcome.cut += 1
        return None


def padded(frame: bytes) -> bytes:
    return frame.ljust(SHORTEST_FRAME, b"\0")
