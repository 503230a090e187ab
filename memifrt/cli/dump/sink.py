"""Where captured packets go: the contract of a sink, and lines on standard output."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence

from memifrt.capture.lines import LinePrinter, LineStyle
from memifrt.capture.pcap import MAX_SNAPLEN, LinkType, Packet
from memifrt.capture.summary import Summary, scapy_summary
from memifrt.cli.dump.options import DEFAULT_LINE_STYLE, DumpOptions
from memifrt.types import Mode


class Sink(ABC):
    """Takes captured packets. It is a context manager that closes itself.

    :ivar ended: whether it takes no more packets.
    """

    ended = False

    @abstractmethod
    def record(self, packets: Sequence[bytes], now: int, interface: int) -> None:
        """Take packets that came at ``now``, in nanoseconds since 1970."""

    @abstractmethod
    def record_packet(self, packet: Packet) -> None:
        """Take a packet of another capture, with its own time, link type and length."""

    @abstractmethod
    def flush(self) -> None: ...

    def close(self) -> None:
        self.flush()

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Lines(Sink):
    """Prints a line for each packet on standard output.

    :param describe: makes the line of a packet that a memif in ``mode`` carries; None prints tcpdump's line.
    :param snaplen: the most bytes of a packet to look at and to dump.
    """

    def __init__(
        self,
        names: Sequence[str],
        describe: Summary | None,
        style: LineStyle = DEFAULT_LINE_STYLE,
        mode: Mode = Mode.ETHERNET,
        snaplen: int = MAX_SNAPLEN,
    ) -> None:
        self._names = [f"{name} " if len(names) > 1 else "" for name in names]
        self._printer = LinePrinter(style, describe, mode)
        self._link_type = LinkType.of(mode)
        self._snaplen = snaplen

    def record(self, packets: Sequence[bytes], now: int, interface: int) -> None:
        name, text = self._names[interface], self._printer.text
        snaplen, link_type = self._snaplen, self._link_type
        sys.stdout.write(
            "".join([text(packet[:snaplen], now, len(packet), link_type, name) for packet in packets]),
        )

    def record_packet(self, packet: Packet) -> None:
        data, time = packet.data[: self._snaplen], packet.time or 0
        sys.stdout.write(self._printer.text(data, time, packet.length, packet.link_type))

    def flush(self) -> None:
        sys.stdout.flush()


def describe(options: DumpOptions, mode: Mode) -> Summary | None:
    """Return what makes the lines; None for tcpdump's lines.

    :raises MemifError: the lines shall be scapy's, and it is not installed.
    """
    return scapy_summary(mode) if options.style == "scapy" else None
