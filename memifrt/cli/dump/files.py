"""Write captured packets to a file, or to several one after the other: their names, and when the next one starts."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from memifrt.capture.compression import without_suffix
from memifrt.capture.link_layer import link_type_name
from memifrt.capture.pcap import Packet, PcapngWriter, PcapWriter, Writer, create_capture
from memifrt.cli.dump.options import DumpOptions, Rotation
from memifrt.cli.dump.sink import Sink
from memifrt.cli.postrotate import PostRotation
from memifrt.errors import ConfigError
from memifrt.ring import Burst

_SECOND = 1_000_000_000
#: Names of the latest files to remember. Older files are found on the disk, so that a long capture does not grow.
_REMEMBERED = 1024


class Files(Sink):
    """Writes a capture file, or several one after the other. See :func:`file_name` for their names.

    :param stop: called when the last file of a limited number is complete.
    :param command: the program to run on each file that is complete, except the last one.
    :param began: when the first file begins, in nanoseconds since 1970; None means now.
    :param source: the file that the packets come from, which is never written over; None if there is none.
    """

    #: Whether the latest file is complete, and no other is open.
    _closed = False

    def __init__(
        self,
        path: str,
        interfaces: Sequence[tuple[str, int]],
        snaplen: int,
        rotation: Rotation,
        *,
        stop: Callable[[], None] = lambda: None,
        command: Sequence[str] = (),
        began: int | None = None,
        source: str | None = None,
    ) -> None:
        self._path = path
        self._source = source
        self._interfaces = [*interfaces]
        #: The number of the first interface with each link type.
        self._by_link_type = {number: at for at, (_, number) in reversed([*enumerate(interfaces)])}
        self._snaplen = snaplen
        self._rotation = rotation
        self._stop = stop
        self._finished = PostRotation(command)
        #: The number of the file within its ring, or of all files.
        self._number = 0
        self._count = 0
        #: The latest names that strftime made. ``-z`` may have moved these files away.
        self._names: deque[str] = deque(maxlen=_REMEMBERED)
        #: When the first file was created, by the clock of its file system; None without one.
        self._created: int | None = None
        self._rotates = bool(rotation)
        self._earlier = 0
        self._began = time.time_ns() if began is None else began
        self._open(self._began)

    def record(self, packets: Sequence[bytes], now: int, interface: int) -> None:
        if self._rotates:
            self._rotate(now)
        if not self.ended:
            self._writer.write(packets, now, interface)

    def record_packet(self, packet: Packet) -> None:
        if self._rotates:
            self._rotate(packet.time or 0)
        if not self.ended:
            self._writer.write_packet(packet, self._interface(packet.link_type))

    def _interface(self, link_type: int) -> int:
        """Return the number of the interface with this link type, and describe it first if it is new.

        :raises ConfigError: the file is pcap, and has another link type.
        """
        if link_type in self._by_link_type:
            return self._by_link_type[link_type]
        writer = self._writer
        if not isinstance(writer, PcapngWriter):
            here = link_type_name(self._interfaces[0][1])
            raise ConfigError(
                f"{writer.name}: a pcap file has one link type, here {here}, and a packet is "
                f"{link_type_name(link_type)}; write a .pcapng file, or choose packets with a filter"
            )
        name = link_type_name(link_type)
        writer.add_interface(name, link_type)
        self._interfaces.append((name, link_type))
        number = self._by_link_type[link_type] = len(self._interfaces) - 1
        return number

    @property
    def takes_bursts(self) -> bool:
        """Whether this kind of file can write a burst directly from its buffers."""
        return self._write_burst is not _never

    @property
    def is_limited(self) -> bool:
        """Whether the number of files may end the capture."""
        return bool(self._rotation.files) and not self._rotation.bytes

    def record_burst(self, burst: Burst, now: int) -> None:
        """Record all packets of a burst; see :meth:`record`."""
        if self._rotates:
            self._rotate(now)
        self._write_burst(burst, now)

    def flush(self) -> None:
        self._finished.poll()
        if not self.ended:
            self._writer.flush()

    def close(self) -> None:
        try:
            if not self._closed:
                self._writer.close()
        finally:
            self._finished.close()

    def size(self) -> int:
        """Return the bytes of all files so far."""
        return self._earlier + self._writer.size

    def _rotate(self, now: int) -> None:
        rotation, passed = self._rotation, now - self._began
        time_is_over = bool(rotation.seconds) and passed >= rotation.seconds * _SECOND
        if not time_is_over and not (rotation.bytes and self._writer.size >= rotation.bytes):
            return
        self._closed = True
        self._writer.close()
        self._earlier += self._writer.size
        self._finished.add(self._writer.name)
        self._count += 1
        if rotation.files and not rotation.bytes and self._count >= rotation.files:
            self.ended, self._rotates = True, False
            self._stop()
            return
        self._number += 1
        if time_is_over:  # files start at multiples of the period, whenever packets come
            period = rotation.seconds * _SECOND
            self._began += passed // period * period
            if rotation.files:
                self._number = 0
        if rotation.files and rotation.bytes:
            self._number %= rotation.files
        self._open(now)

    def _open(self, now: int) -> None:
        name = file_name(self._path, self._rotation, self._number, now)
        if "%" in self._path and not self._rotation.files:
            if self._is_ours(name):
                base, suffix = without_suffix(name)
                name = with_number(base, self._number) + suffix
            self._names.append(name)
        if self._source is not None:
            check_other_file(self._source, name)
        self._finished.wait_for(name)
        self._writer: Writer = create_capture(name, self._interfaces, self._snaplen)
        if self._created is None and self._names:
            self._created = os.stat(name).st_mtime_ns
        self._closed = False
        #: Writes a burst directly from its buffers, if this kind of file can.
        self._write_burst = self._writer.write_burst if isinstance(self._writer, PcapWriter) else _never

    def _is_ours(self, name: str) -> bool:
        """Return whether a file with this name was written since this run began: it must not be written anew."""
        if name in self._names:
            return True
        with contextlib.suppress(OSError):  # there is no such file
            status = os.stat(name)
            return self._created is not None and stat.S_ISREG(status.st_mode) and status.st_mtime_ns >= self._created
        return False


def check_other_file(source: str, target: str) -> None:
    """Check that a file to write is not the one that is read.

    :raises ConfigError: they are the same.
    """
    with contextlib.suppress(OSError):  # there is no such file yet
        if source != "-" and target != "-" and os.path.samefile(source, target):
            raise ConfigError(f"-r {source} and -w {target} are the same file; write to another one")


def file_name(path: str, rotation: Rotation, number: int, now: int) -> str:
    """Return the path of a file.

    If there are several and the path contains a ``%``, ``strftime`` makes their names from it. Otherwise the names get
    a number: ``lab-0001.pcap``. The files of a ring have tcpdump's names: ``lab.pcap0``, with as many digits as the
    last one needs. The suffix of a compression stays last.

    :param number: how many files there were before; in a ring, the position.
    :param now: when the file begins, in nanoseconds since 1970.
    """
    if not rotation:
        return path
    base, suffix = without_suffix(path)
    timed = "%" in base
    if timed:
        base = with_time(base, now)
    if rotation.files and rotation.bytes:
        digits = len(str(rotation.files - 1)) if rotation.files > 1 else 0
        return f"{base}{number:0{digits}}{suffix}" if digits else base + suffix
    return base + suffix if timed else with_number(base, number + 1) + suffix


def with_time(path: str, now: int) -> str:
    """Return a path after ``strftime``, at ``now`` in nanoseconds since 1970."""
    try:
        return datetime.fromtimestamp(now // _SECOND).strftime(path)
    except (ValueError, OverflowError, OSError) as error:  # the packets of a file may have any time
        raise ConfigError(f"-w {path!r}: there is no date for the time {now // _SECOND} of a packet") from error


def with_number(path: str, number: int) -> str:
    """Return the path of one of several files."""
    whole = Path(path)
    return str(whole.with_name(f"{whole.stem}-{number:04}{whole.suffix}"))


def first_name(options: DumpOptions, now: int) -> str:
    """Return the path of the first file, if it is started at ``now``."""
    return file_name(options.path or "-", options.rotation, 0, now)


def _never(burst: Burst, now: int) -> None:
    raise TypeError("this kind of file takes no bursts")
