"""The capture that is replayed: once or several times, from a file, a pipe or memory.

Owns the reader and the packets that are kept. Knows nothing of times and memifs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from memifrt.capture.pcap import CaptureFileError, Packet, Reader, open_capture
from memifrt.errors import ConfigError

#: The most bytes of packets to keep for the next round. A longer capture is read again.
_KEPT = 256 << 20


class Recording:
    """A capture file that can be played more than once. It keeps the packets in memory if they fit."""

    def __init__(self, path: str, *, again: bool) -> None:
        self._path = path
        #: Waits until the fd of a pipe is readable. Until it is set, reading waits by itself.
        self.wait: Callable[[int], object] | None = None
        self._reader: Reader | None = open_capture(path, wait=self._wait)
        self._kept: list[Packet] | None = [] if again else None
        self._whole = False
        #: The packets of the reader. The first one may have been read already.
        self._packets: Iterator[Packet] = iter(self._reader)
        self._found = False
        self.size = self._reader.size
        self.link_types: Sequence[int] = ()
        try:
            self._look_ahead(self._reader)
        except BaseException:
            self._reader.close()
            raise

    def _look_ahead(self, reader: Reader) -> None:
        """Read the start of the capture, so that a broken or empty file fails before we wait for a peer.

        Of a file this is the first packet. Of a pipe it is only the header, because its first packet may come much
        later.

        :raises CaptureFileError: the start is broken, or the file has no packets.
        """
        if not reader.regular:
            reader.describe()
        elif (first := next(self._packets, None)) is not None:
            self._packets = itertools.chain((first,), self._packets)
        else:
            self._fail_without_packets()
        self.link_types = reader.link_types

    def _wait(self, fd: int) -> None:
        if self.wait is not None:
            self.wait(fd)

    def _fail_without_packets(self) -> NoReturn:
        raise CaptureFileError(f"{self.name}: there is no packet in it")

    def preload(self) -> None:
        """Read all packets into memory.

        :raises CaptureFileError: the file is broken.
        :raises ConfigError: they take too much memory.
        """
        for _ in self:
            if self._kept is None:
                raise ConfigError(
                    f"{self.name}: more than {_KEPT >> 20} MiB of packets; play it without --preload-pcap"
                )

    @property
    def name(self) -> str:
        """The name of the file in messages."""
        return "standard input" if self._path == "-" else self._path

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *error: object) -> None:
        if self._reader is not None:
            self._reader.close()

    @property
    def offset(self) -> int:
        """The bytes read in this round; the size of the file once all packets are in memory."""
        return self.size if self._reader is None else self._reader.offset

    def __iter__(self) -> Iterator[Packet]:
        """Iterate over all packets from the start.

        :raises CaptureFileError: the file is broken, after the packets before that position; or it has no packets.
        :raises ConfigError: standard input is to be played again and is too large to keep in memory.
        """
        if self._whole and self._kept is not None:
            return iter(self._kept)
        return self._read()

    def _read(self) -> Iterator[Packet]:
        if self._reader is None:
            self._reader = open_capture(self._path, wait=self._wait)
            self._packets = iter(self._reader)
        size = 0
        for packet in self._packets:
            self._found = True
            size += len(packet.data)
            if self._kept is not None:
                if size > _KEPT:
                    self._kept = None
                    if self._path == "-":
                        raise ConfigError(f"more than {_KEPT >> 20} MiB from standard input; --loop needs a file")
                else:
                    self._kept.append(packet)
            self.link_types = self._reader.link_types
            yield packet
        if not self._found:
            self._fail_without_packets()
        self._whole = True
        self._reader.close()
        self._reader = None
