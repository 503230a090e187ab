"""Port mirroring: copies of a port's packets in a capture file.

The file describes two interfaces for a mirrored port, ``NAME in`` and ``NAME out``. If all ports are mirrored, each
packet is written once, where it came in. A pcap file does not distinguish interfaces; a pcapng file does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence

from memifrt.capture.pcap import MAX_SNAPLEN, LinkType, create_capture

logger = logging.getLogger("memifrt")


class Mirror:
    """Writes the packets of some ports to a capture file, with times that never go back.

    :param names: the names of all ports, in the order of their numbers.
    :param ports: the numbers of the mirrored ports, from 0 on.
    :param outgoing: whether to write the packets that leave a mirrored port, too.
    :ivar packets: the number of packets written.
    :ivar dirty: whether packets may be buffered.
    If the file cannot be written any more (the disk is full, or its reader has closed a pipe), mirroring ends with a
    warning, and the switch goes on.

    :raises MemifOSError: the file cannot be created.
    """

    def __init__(
        self, path: str, names: Sequence[str], ports: Collection[int], *, outgoing: bool, snaplen: int = MAX_SNAPLEN
    ) -> None:
        self._incoming: dict[int, int] = {}
        self._outgoing: dict[int, int] = {}
        interfaces: list[tuple[str, LinkType]] = []
        for number in sorted(ports):
            self._incoming[number] = len(interfaces)
            interfaces.append((f"{names[number]} in" if outgoing else names[number], LinkType.ETHERNET))
            if outgoing:
                self._outgoing[number] = len(interfaces)
                interfaces.append((f"{names[number]} out", LinkType.ETHERNET))
        self._writer = create_capture(path, interfaces, snaplen)
        self._last = 0
        self._ended = False
        self.dirty = False
        self.packets = 0

    def received(self, port: int, packets: Sequence[bytes]) -> None:
        """Write packets that came in, if this port is mirrored."""
        self._write(self._incoming.get(port), packets)

    def sent(self, port: int, packets: Sequence[bytes]) -> None:
        """Write packets that go out, if that is wanted for this port."""
        self._write(self._outgoing.get(port), packets)

    def _write(self, interface: int | None, packets: Sequence[bytes]) -> None:
        if interface is None or not packets:
            return
        self._last = max(time.time_ns(), self._last)
        try:
            self._writer.write(packets, self._last, interface)
        except OSError as error:
            self._end(error)
            return
        self.packets += len(packets)
        self.dirty = True

    def flush(self) -> None:
        """Write what is buffered, so that a reader of the file sees all packets."""
        if self.dirty:
            self.dirty = False
            try:
                self._writer.flush()
            except OSError as error:
                self._end(error)

    def close(self) -> None:
        try:
            self._writer.close()
        except OSError as error:
            self._end(error)

    def _end(self, error: OSError) -> None:
        self.dirty = False
        if not self._ended:
            self._ended = True
            self._incoming.clear()
            self._outgoing.clear()
            what = f"the reader of {self._writer.name} is gone" if isinstance(error, BrokenPipeError) else str(error)
            logger.warning("%s; mirroring has ended, the switch goes on", what)
