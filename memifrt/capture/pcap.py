"""Read and write pcap and pcapng files as a stream, with timestamps in nanoseconds.

Owns both formats (draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng) and the errors of broken files. Knows nothing of
interfaces: it takes and returns bytes (or bursts) and times.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import stat
import struct
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, NoReturn, cast

from memifrt.capture.compression import (
    CompressedFile,
    CompressedFileError,
    Compression,
    DecompressedFile,
    check_library,
    without_suffix,
)
from memifrt.errors import ErrorCode, MemifError, MemifOSError, os_error
from memifrt.ring import Burst
from memifrt.types import Mode

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

#: The longest packet that libpcap accepts in a file. A longer one means that the file is broken.
MAX_SNAPLEN = 262144
_SECOND = 1_000_000_000
#: Size of the buffer for reading and writing, in bytes. For a file in memory, neither larger writes nor writev(),
#: fallocate() or a mapped file are faster: docs/performance.md has the figures.
_BUFFER = 1 << 18

_PCAP_NANOSECONDS, _PCAP_MICROSECONDS = 0xA1B23C4D, 0xA1B2C3D4
_SECTION_HEADER, _INTERFACE, _OLD_PACKET, _SIMPLE_PACKET, _ENHANCED_PACKET = 0x0A0D0D0A, 1, 2, 3, 6
_BYTE_ORDER = 0x1A2B3C4D
_NAME, _RESOLUTION, _OFFSET = 2, 9, 14  # options of an interface
_APPLICATION = 4  # an option of a section
#: The longest pcapng block that we accept, in bytes. Real blocks are much shorter.
_MAX_BLOCK = 16 << 20
#: The most options with a value that we accept for one interface. The draft defines 20; some may be repeated.
_MAX_OPTIONS = 1024
#: The most empty options that we accept in a row. No program writes them, and skipping each one takes time.
_MAX_EMPTY_OPTIONS = 65536
#: Options without a value, in either byte order, except the end-of-options mark. A block may have millions of them.
_EMPTY_OPTIONS = re.compile(rb"(?:(?!\0\0)..\0\0)*", re.DOTALL)
#: The most interfaces that we accept in one section. Each takes memory, and a compressed file may claim millions.
_MAX_INTERFACES = 65536


class LinkType(IntEnum):
    """The first header of a packet of a file, by its number in the registry of both formats.

    A memif carries ``ETHERNET``, ``RAW``, ``IPV4`` and ``IPV6`` directly. The "cooked" packets of ``tcpdump -i any``
    (``LINUX_SLL``, ``LINUX_SLL2``) can be converted.
    """

    ETHERNET = 1
    RAW = 101
    LINUX_SLL = 113
    IPV4 = 228
    IPV6 = 229
    LINUX_SLL2 = 276

    @classmethod
    def of(cls, mode: Mode) -> LinkType:
        """Return the link type of packets on an interface in this mode."""
        return cls.RAW if mode is Mode.IP else cls.ETHERNET

    @classmethod
    def mode_of(cls, number: int) -> Mode | None:
        """Return the mode of an interface that carries packets of this link type; None if there is no such mode."""
        if number == cls.ETHERNET:
            return Mode.ETHERNET
        return Mode.IP if number in (cls.RAW, cls.IPV4, cls.IPV6, *_ALSO_RAW) else None


#: Two other numbers for raw IP, which some systems used before it got its own.
_ALSO_RAW = (12, 14)


class Packet(NamedTuple):
    """A packet of a file.

    ``time`` is in nanoseconds since 1970, or None if the file has none. ``data`` are the captured bytes; ``length`` is
    the length of the packet before it was cut.
    """

    time: int | None
    data: bytes
    length: int
    link_type: int


class CaptureFileError(MemifError):
    """A file is not a capture, or it is broken. The message names the file, the position and the fault."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.INVAL_ARG, message)


# --- reading --------------------------------------------------------------------------------------------------------


class Reader(ABC):
    """Reads the packets of a file, in order. It is a context manager that closes the file.

    Iteration raises :class:`CaptureFileError` at the broken part of a file, after it has given the packets before that.

    :ivar size: the length of the file in bytes, 0 for a pipe.
    :ivar regular: whether this is a file on a disk, which can be read ahead without waiting for a writer.
    """

    def __init__(self, file: BinaryIO, name: str, start: bytes) -> None:
        self._file = file
        self.name = name
        self._offset = len(start)
        self.size, self.regular = _size(file)
        raw = getattr(file, "raw", None)
        self._compressed = raw if isinstance(raw, DecompressedFile) else None

    @property
    def offset(self) -> int:
        """The number of bytes of the file read so far."""
        return self._offset if self._compressed is None else self._compressed.consumed

    @abstractmethod
    def __iter__(self) -> Iterator[Packet]: ...

    @property
    @abstractmethod
    def link_types(self) -> Sequence[int]:
        """The link types of the interfaces that the file has described so far."""

    def describe(self) -> None:  # noqa: B027 - pcap has the link type in its header
        """Read up to the first description of an interface, so that :attr:`link_types` is known.

        :raises CaptureFileError: the file is broken.
        """

    def close(self) -> None:
        if self._file is not sys.stdin.buffer:
            self._file.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read(self, count: int) -> bytes:
        data = _read(self._file, count, self.name)
        self._offset += len(data)
        return data

    def _whole(self, count: int, what: str) -> bytes:
        start = self._offset
        data = self._read(count)
        if len(data) != count:
            self._fail(f"the file ends within {what}: {count - len(data)} bytes are missing; it was cut off", start)
        return data

    def _fail(self, what: str, offset: int) -> NoReturn:
        where = f"byte {offset}" if self._compressed is None else f"byte {offset} after decompression"
        raise CaptureFileError(f"{self.name}: at {where}: {what}")


class _PcapReader(Reader):
    def __init__(self, file: BinaryIO, name: str, start: bytes) -> None:
        super().__init__(file, name, start)
        order = "<" if start[:4] in (_little(_PCAP_NANOSECONDS), _little(_PCAP_MICROSECONDS)) else ">"
        (magic,) = struct.unpack(order + "I", start)
        self._unit = 1 if magic == _PCAP_NANOSECONDS else 1000
        self._record = struct.Struct(order + "IIII")
        major, minor, _, _, _, link = struct.unpack(order + "HHiIII", self._whole(20, "its header"))
        if major != 2:
            self._fail(f"version {major}.{minor} of pcap; it must be 2.4", 4)
        self._link_type = link & 0xFFFF  # the upper bits are the length of a frame check sequence

    @property
    def link_types(self) -> Sequence[int]:
        return (self._link_type,)

    def __iter__(self) -> Iterator[Packet]:
        link_type, unit, size = self._link_type, self._unit, self._record.size
        for number in itertools.count(1):
            header = self._read(size)
            if not header:
                return
            if len(header) < size:
                missing = size - len(header)
                self._fail(
                    f"the file ends within the header of packet {number}: {missing} bytes are missing; it was cut off",
                    self._offset - len(header),
                )
            seconds, fraction, captured, length = self._record.unpack(header)
            if captured > MAX_SNAPLEN:
                self._fail(
                    f"packet {number} claims {captured} bytes; a packet has at most {MAX_SNAPLEN}", self._offset - size
                )
            data = self._whole(captured, f"packet {number}")
            yield Packet(seconds * _SECOND + fraction * unit, data, length, link_type)


#: Returned for a block without a packet.
_NO_PACKET = Packet(None, b"", 0, -1)


class _Interface(NamedTuple):
    link_type: int
    snaplen: int
    units: int  # ticks of a timestamp per second
    offset: int  # seconds to add to a timestamp


class _PcapngReader(Reader):
    def __init__(self, file: BinaryIO, name: str, start: bytes) -> None:
        super().__init__(file, name, start)
        self._order = "<"
        self._interfaces: list[_Interface] = []
        #: The link types of all sections, in order. The dictionary keeps each of them once.
        self._link_types: dict[int, None] = {}
        self._section(self._read(4), 0)

    def __iter__(self) -> Iterator[Packet]:
        while (found := self._block()) is not None:
            if found is not _NO_PACKET:
                yield found

    @property
    def link_types(self) -> Sequence[int]:
        return [*self._link_types]

    def describe(self) -> None:
        # If a packet comes before any description, _block raises the error.
        while not self._link_types and self._block() is not None:
            pass

    def _block(self) -> Packet | None:
        """Read one block: its packet, ``_NO_PACKET``, or None at the end of the file."""
        start = self._offset
        head = self._read(8)
        if not head:
            return None
        if len(head) < 8:
            self._fail("the file ends within the header of a block; it was cut off", start)
        if head[:4] == _little(_SECTION_HEADER):  # the same in both byte orders
            self._section(head[4:], start)
            return _NO_PACKET
        kind, length = self._unpack("II", head)
        body = self._body(kind, length, start)
        if kind in (_ENHANCED_PACKET, _OLD_PACKET):
            return self._packet(kind, body, start)
        if kind == _SIMPLE_PACKET:
            return self._simple_packet(body, start)
        if kind == _INTERFACE:
            self._add_interface(body, start)
        return _NO_PACKET

    def _unpack(self, layout: str, data: bytes) -> tuple[int, ...]:
        return struct.unpack_from(self._order + layout, data)

    def _section(self, raw_length: bytes, start: int) -> None:
        order = self._read(4)
        if len(order) < 4:
            self._fail("the file ends within a section's header; it was cut off", start)
        self._order = "<" if order == _little(_BYTE_ORDER) else ">"
        if self._unpack("I", order)[0] != _BYTE_ORDER:
            self._fail(f"byte order mark 0x{order.hex()}; it must be 0x1a2b3c4d: this is not a pcapng file", start)
        body = order + self._body(_SECTION_HEADER, self._unpack("I", raw_length)[0], start, 4)
        if len(body) < 16:
            self._fail("a section's header that is too short", start)
        major, minor = self._unpack("HH", body[4:])
        if major != 1:
            self._fail(f"version {major}.{minor} of pcapng; it must be 1.0", start)
        self._interfaces = []

    def _body(self, kind: int, length: int, start: int, already: int = 0) -> bytes:
        """Read the body of a block after its first ``already`` bytes, and check the length at its end."""
        if not 12 + already <= length <= _MAX_BLOCK or length % 4:
            self._fail(f"a block of type 0x{kind:x} that claims {length} bytes; this is not a pcapng block", start)
        data = self._whole(length - 8 - already, f"a block of type 0x{kind:x}")
        (again,) = self._unpack("I", data[-4:])
        if again != length:
            self._fail(f"a block that starts with length {length} and ends with {again}", start)
        return data[:-4]

    def _add_interface(self, body: bytes, start: int) -> None:
        if len(body) < 8:
            self._fail("an interface description that is too short", start)
        link_type, _, snaplen = self._unpack("HHI", body)
        units, offset = 1_000_000, 0
        for code, value in self._options(body, 8, start):
            if code == _RESOLUTION and len(value) == 1:
                power = value[0] & 0x7F
                if power > 63:
                    self._fail(f"a timestamp resolution of {value[0]}", start)
                units = 2**power if value[0] & 0x80 else 10**power
            elif code == _OFFSET and len(value) == 8:
                (offset,) = self._unpack("q", value)
        if len(self._interfaces) >= _MAX_INTERFACES:
            self._fail(f"more than {_MAX_INTERFACES} interfaces in a section", start)
        self._interfaces.append(_Interface(link_type, snaplen, units, offset))
        self._link_types[link_type] = None

    def _options(self, body: bytes, at: int, start: int) -> Iterator[tuple[int, bytes]]:
        """Iterate over the options of a block that have a value, from this byte of its body on."""
        layout = struct.Struct(self._order + "HH")
        for _ in range(_MAX_OPTIONS):
            if (empty := _EMPTY_OPTIONS.match(body, at)) is not None:
                at = empty.end()
                if at - empty.start() > _MAX_EMPTY_OPTIONS * layout.size:
                    self._fail(f"an interface description with more than {_MAX_EMPTY_OPTIONS} empty options", start)
            if at + layout.size > len(body):
                return
            code, size = layout.unpack_from(body, at)
            if code == 0:
                return
            at += layout.size
            yield code, body[at : at + size]
            at += _padded(size)
        self._fail(f"an interface description with more than {_MAX_OPTIONS} options; this is not a pcapng block", start)

    def _packet(self, kind: int, body: bytes, start: int) -> Packet:
        if len(body) < 20:
            self._fail("a packet that is too short", start)
        if kind == _ENHANCED_PACKET:
            number, high, low, captured, length = self._unpack("IIIII", body)
        else:
            number, _, high, low, captured, length = self._unpack("HHIIII", body)
        interface = self._interface(number, start)
        if captured > len(body) - 20:
            self._fail(f"a packet that claims {captured} bytes in a block with room for {len(body) - 20}", start)
        ticks = high << 32 | low
        time = ticks * _SECOND // interface.units + interface.offset * _SECOND
        return Packet(time, body[20 : 20 + captured], length, interface.link_type)

    def _simple_packet(self, body: bytes, start: int) -> Packet:
        """Parse a simple packet block, which has no time."""
        if len(body) < 4:
            self._fail("a packet that is too short", start)
        interface = self._interface(0, start)
        (length,) = self._unpack("I", body)
        captured = min(length, interface.snaplen or length)
        if captured > len(body) - 4:
            self._fail(f"a packet that claims {captured} bytes in a block with room for {len(body) - 4}", start)
        return Packet(None, body[4 : 4 + captured], length, interface.link_type)

    def _interface(self, number: int, start: int) -> _Interface:
        if number >= len(self._interfaces):
            self._fail(f"a packet of interface {number}, but the file describes only {len(self._interfaces)}", start)
        return self._interfaces[number]


_READERS: dict[int, Callable[[BinaryIO, str, bytes], Reader]] = {
    _PCAP_NANOSECONDS: _PcapReader,
    _PCAP_MICROSECONDS: _PcapReader,
    _SECTION_HEADER: _PcapngReader,
}


class _Pipe(io.RawIOBase):
    """A pipe, with a function that waits for it.

    :param file: the pipe; it is closed with this, unless it is standard input.
    """

    def __init__(self, file: BinaryIO, wait: Callable[[int], object]) -> None:
        self._file = file
        self._wait = wait

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        into = memoryview(buffer).cast("B")
        self._wait(self.fileno())
        data = os.read(self.fileno(), len(into))
        into[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed and self._file is not sys.stdin.buffer:
            self._file.close()
        super().close()


def open_capture(path: str | os.PathLike[str], *, wait: Callable[[int], object] | None = None) -> Reader:
    """Open a pcap or pcapng file for reading. Its first bytes say which it is. ``-`` is standard input.

    A file that gzip or zstd has compressed is decompressed while it is read.

    :param wait: is called with the fd of a pipe before each read of it, and returns when there is something to read.
        None: the read itself waits.
    :raises CaptureFileError: the file is neither, or ends within its header.
    :raises ConfigError: zstd has compressed the file, and there is no library for that.
    :raises MemifOSError: the file cannot be read.
    """
    name = os.fspath(path)
    if name == "-":
        return read_capture(_waiting(sys.stdin.buffer, wait), "standard input")
    try:
        file = open(name, "rb", buffering=_BUFFER)  # noqa: SIM115 - the reader owns it
    except OSError as error:
        raise os_error(f"cannot read {name}", error, path=name) from error
    try:
        return read_capture(_waiting(file, wait), name)
    except BaseException:
        file.close()
        raise


def _waiting(file: BinaryIO, wait: Callable[[int], object] | None) -> BinaryIO:
    """Return the file, or what waits for it if it is a pipe."""
    if wait is None or _size(file)[1]:
        return file
    try:
        file.fileno()
    except OSError:  # it is in memory
        return file
    return cast("BinaryIO", io.BufferedReader(_Pipe(file, wait), _BUFFER))


def read_capture(file: BinaryIO, name: str) -> Reader:
    """Return a reader for an open file. Messages call the file ``name``.

    :raises CaptureFileError: the file is not a capture, or ends within its header.
    """
    start = _read(file, 4, name)
    kind = Compression.of_content(start)
    if kind is not None:
        file = cast("BinaryIO", io.BufferedReader(DecompressedFile(file, name, kind, start), _BUFFER))
        start = _read(file, 4, name)
    for order in ("<I", ">I"):
        if len(start) == 4:
            reader = _READERS.get(struct.unpack(order, start)[0])
            if reader is not None:
                return reader(file, name, start)
    if not start:
        raise CaptureFileError(f"{name}: the file is empty; it must be a pcap or pcapng file")
    after = "" if kind is None else " after decompression"
    raise CaptureFileError(f"{name}: not a pcap or pcapng file: it starts with 0x{start.hex()}{after}")


# --- writing --------------------------------------------------------------------------------------------------------


class Writer(ABC):
    """Writes a capture file. It is a context manager that closes the file.

    All packets of one call get the same time: that of their burst.

    :param snaplen: the most bytes to keep of a packet.
    :ivar written: the number of bytes written so far, before compression.
    """

    def __init__(self, file: BinaryIO, name: str, snaplen: int = MAX_SNAPLEN) -> None:
        self._file = file
        self.name = name
        self.snaplen = snaplen
        self.written = 0

    @property
    def size(self) -> int:
        """The length of the file so far, in bytes. A compressor and buffers may hold back some of it."""
        return self._file.size if isinstance(self._file, CompressedFile) else self.written

    def write(self, packets: Sequence[bytes], time: int, interface: int = 0) -> None:
        """Add packets.

        :param time: when they were seen, in nanoseconds since 1970.
        :param interface: the number of the interface that they were seen on.
        :raises MemifOSError: the file cannot be written.
        :raises BrokenPipeError: the reader of the pipe has closed it.
        """
        if not packets:
            return
        lengths = [*map(len, packets)]
        # For speed, make the headers once for each length: the packets of a burst share their time.
        fronts, backs = {}, {}
        for length in set(lengths):
            fronts[length], backs[length] = self._record(length, min(length, self.snaplen), time, interface)
        if max(fronts) > self.snaplen:
            packets = [packet[: self.snaplen] for packet in packets]
        if len(fronts) == 1:
            front, back = fronts[lengths[0]], backs[lengths[0]]
            self._write(b"".join((front, (back + front).join(packets), back)))
            return
        records: list[bytes] = [b""] * (3 * len(packets))
        records[0::3] = map(fronts.__getitem__, lengths)
        records[1::3] = packets
        records[2::3] = map(backs.__getitem__, lengths)
        self._write(b"".join(records))

    def write_packet(self, packet: Packet, interface: int = 0) -> None:
        """Add a packet of another capture, with its time and its length before it was cut. No time becomes 0.

        :param interface: the number of the interface that it was seen on; its link type is that of the packet.
        :raises MemifOSError: the file cannot be written.
        :raises BrokenPipeError: the reader of the pipe has closed it.
        """
        data = packet.data[: self.snaplen]
        front, back = self._record(packet.length, len(data), packet.time or 0, interface)
        self._write(b"".join((front, data, back)))

    @abstractmethod
    def _record(self, length: int, captured: int, time: int, interface: int) -> tuple[bytes, bytes]:
        """Return the bytes to write before and after the data of a packet."""

    def flush(self) -> None:
        """Write all buffered data to the file.

        :raises MemifOSError: the file cannot be written.
        :raises BrokenPipeError: the reader of the pipe has closed it.
        """
        try:
            self._file.flush()
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        try:
            self.flush()
        finally:
            if self._file is not sys.stdout.buffer:
                try:
                    self._file.close()
                except OSError as error:
                    self._fail(error)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write(self, data: bytes | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            self._fail(error)
        self.written += len(data)

    def _fail(self, error: OSError) -> NoReturn:
        if isinstance(error, MemifOSError | BrokenPipeError):
            raise error
        raise os_error(f"cannot write {self.name}", error, path=self.name) from error


class PcapWriter(Writer):
    """Writes classic pcap, with timestamps in nanoseconds. The format does not distinguish interfaces."""

    _HEADER = struct.Struct("<IHHiIII")
    _FRONT = struct.Struct("<IIII")
    _STAMP = struct.Struct("<II")

    def __init__(
        self, file: BinaryIO, name: str, link_types: Sequence[tuple[str, int]], snaplen: int = MAX_SNAPLEN
    ) -> None:
        super().__init__(file, name, snaplen)
        self._write(self._HEADER.pack(_PCAP_NANOSECONDS, 2, 4, 0, 0, snaplen, link_types[0][1]))
        #: Buffers the records of bursts until there are enough for a write. The longest record fits.
        self._room = memoryview(bytearray(_BUFFER + snaplen + self._FRONT.size))
        self._used = 0

    def write_burst(self, burst: Burst, time: int) -> None:
        """Add the packets of a received burst, directly from its buffers.

        A record of the file is a time stamp, two lengths, and the data.

        :param time: when the burst was received, in nanoseconds since 1970.
        :raises MemifOSError: the file cannot be written.
        :raises BrokenPipeError: the reader of the pipe has closed it.
        """
        seconds, nanoseconds = divmod(time, _SECOND)
        stamp = self._STAMP.pack(seconds & 0xFFFFFFFF, nanoseconds)
        first = 0
        while True:
            first, size = burst.pack_into(self._room[self._used :], stamp, self.snaplen, first)
            self._used += size
            if first >= len(burst) and self._used < _BUFFER:
                return
            self._write_room()
            if first >= len(burst):
                return

    def write(self, packets: Sequence[bytes], time: int, interface: int = 0) -> None:
        self._write_room()
        super().write(packets, time, interface)

    def write_packet(self, packet: Packet, interface: int = 0) -> None:
        self._write_room()
        super().write_packet(packet, interface)

    def flush(self) -> None:
        self._write_room()
        super().flush()

    def _write_room(self) -> None:
        used, self._used = self._used, 0
        if used:
            self._write(self._room[:used])

    def _record(self, length: int, captured: int, time: int, interface: int) -> tuple[bytes, bytes]:
        seconds, nanoseconds = divmod(time, _SECOND)
        return self._FRONT.pack(seconds & 0xFFFFFFFF, nanoseconds, captured, length), b""


class PcapngWriter(Writer):
    """Writes pcapng, with timestamps in nanoseconds and the names of the interfaces."""

    _FRONT = struct.Struct("<IIIIIII")

    def __init__(
        self, file: BinaryIO, name: str, link_types: Sequence[tuple[str, int]], snaplen: int = MAX_SNAPLEN
    ) -> None:
        super().__init__(file, name, snaplen)
        self._write(
            _block(_SECTION_HEADER, struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1) + _option(_APPLICATION, b"memifrt"))
        )
        for interface, link_type in link_types:
            self.add_interface(interface, link_type)

    def add_interface(self, name: str, link_type: int) -> None:
        """Describe one more interface; its number is that of the interfaces before it."""
        options = _option(_NAME, name.encode(errors="backslashreplace")) + _option(_RESOLUTION, b"\x09")
        self._write(_block(_INTERFACE, struct.pack("<HHI", link_type, 0, self.snaplen) + options))

    def _record(self, length: int, captured: int, time: int, interface: int) -> tuple[bytes, bytes]:
        total = self._FRONT.size + _padded(captured) + 4
        high, low = time >> 32 & 0xFFFFFFFF, time & 0xFFFFFFFF
        front = self._FRONT.pack(_ENHANCED_PACKET, total, interface, high, low, captured, length)
        return front, bytes(_padded(captured) - captured) + _little(total)


def create_capture(path: str, link_types: Sequence[tuple[str, int]], snaplen: int = MAX_SNAPLEN) -> Writer:
    """Create a capture file: pcapng if the path ends with ``.pcapng``, otherwise pcap.

    If ``.gz`` or ``.zst`` follows, the file is compressed, and complete once it is closed.

    :param path: the file; ``-`` writes pcap to standard output.
    :param link_types: the name and link type of each interface. pcap stores only the first link type.
    :raises MemifOSError: the file cannot be created.
    """
    if path == "-":
        return PcapWriter(sys.stdout.buffer, "standard output", link_types, snaplen)
    kind = PcapngWriter if without_suffix(path)[0].lower().endswith(".pcapng") else PcapWriter
    compression = Compression.of_name(path)
    check_library(compression)
    try:
        file: BinaryIO = open(path, "wb", buffering=_BUFFER // 4)  # noqa: SIM115 - the writer owns it
    except OSError as error:
        raise os_error(f"cannot write {path}", error, path=path) from error
    try:
        if compression is not None:
            file = cast("BinaryIO", CompressedFile(file, compression))
        return kind(file, path, link_types, snaplen)
    except BaseException:
        file.close()
        raise


def check_writable(path: str) -> None:
    """Check that :func:`create_capture` could write to this path, without changing anything.

    :raises ConfigError: compression needs a package that is not installed.
    :raises MemifOSError: it could not.
    """
    if path == "-":
        return
    check_library(Compression.of_name(path))
    try:
        try:
            there = os.stat(path)
        except FileNotFoundError:
            new = os.path.realpath(path)  # a symbolic link may point to a file that is not there yet
            os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            os.unlink(new)
            return
        if stat.S_ISREG(there.st_mode) or stat.S_ISDIR(there.st_mode):  # opening a pipe would wake its reader
            os.close(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
    except OSError as error:
        raise os_error(f"cannot write {path}", error, path=path) from error


# --- helpers --------------------------------------------------------------------------------------------------------


def _read(file: BinaryIO, count: int, name: str) -> bytes:
    """Read ``count`` bytes, or fewer at the end of the file."""
    try:
        return file.read(count)
    except CompressedFileError as error:
        raise CaptureFileError(error.message) from error
    except MemifOSError:
        raise
    except OSError as error:
        raise os_error(f"cannot read {name}", error, path=name) from error


def _size(file: BinaryIO) -> tuple[int, bool]:
    """Return the length of a file in bytes, and whether it is a file on a disk."""
    try:
        status = os.fstat(file.fileno())
    except (OSError, ValueError):  # the object has no fd
        return 0, False
    return status.st_size, stat.S_ISREG(status.st_mode)


def _little(number: int) -> bytes:
    return number.to_bytes(4, "little")


def _padded(size: int) -> int:
    return size + 3 & ~3


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value.ljust(_padded(len(value)), b"\0")


def _block(kind: int, body: bytes) -> bytes:
    """Build a block. The options at the end of ``body`` are terminated here."""
    body += bytes(4)
    total = _little(len(body) + 12)
    return _little(kind) + total + body + total
