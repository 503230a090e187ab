"""``memifrt dump``: print a line for each packet of a memif, or write a capture file.

It is either an endpoint, which takes all packets and sends none, or it sits between two memifs and forwards each packet
after it is captured. With ``-r`` the packets come from a capture file, and there is no memif. Owns the captured
packets; the pump (``memifrt.ports.forwarding``) moves them.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from memifrt.capture.compression import without_suffix
from memifrt.capture.filter import Matches, compile_filter
from memifrt.capture.lines import LinePrinter, LineStyle
from memifrt.capture.link_layer import link_type_name
from memifrt.capture.pcap import (
    MAX_SNAPLEN,
    LinkType,
    Packet,
    PcapngWriter,
    PcapWriter,
    Reader,
    Writer,
    check_writable,
    create_capture,
    open_capture,
)
from memifrt.capture.summary import Summary, summary
from memifrt.cli.arguments import (
    MANY,
    Command,
    Parser,
    add_peer_arguments,
    checked,
    session_options,
    whole,
)
from memifrt.cli.endpoint import MEMIF_SYNTAX, check_pair, memif_endpoint, parse_memif_endpoint
from memifrt.cli.impair import (
    ImpairmentOptions,
    Impairments,
    add_impairment_arguments,
    impairment_options,
    watching,
)
from memifrt.cli.postrotate import PostRotation, parse_command
from memifrt.cli.program import SessionOptions, complain, session, signals_to
from memifrt.cli.progress import Progress, progress
from memifrt.errors import ConfigError
from memifrt.options import DEFAULT_RECONNECT_INTERVAL
from memifrt.ports.endpoint import MemifEndpoint
from memifrt.ports.forwarding import Carry, Direction, Pump, Record, Report, Watch
from memifrt.ports.nowhere import Nowhere
from memifrt.ports.port import MemifPort
from memifrt.ring import Burst
from memifrt.types import Mode, RxMode

#: ``auto`` is scapy's if it is installed, else ``short``; ``tcpdump`` if an option of tcpdump's asks for it.
_STYLES = ("auto", "scapy", "short", "tcpdump")
_MEGABYTE = 1_000_000
_DAY = 86400
_SECOND = 1_000_000_000
_MOST_TIMES = 5
_LINE_STYLE = LineStyle()
#: Packets of a file between two looks at the progress.
_OFTEN = 1024


@dataclass(frozen=True, slots=True)
class Rotation:
    """When to start a new file: after this many ``seconds`` or ``bytes``; 0 means never.

    :ivar files: the most files; 0 for no limit. With ``bytes``, the files form a ring: the oldest is written anew.
        Without ``bytes``, the capture ends after the last file.
    """

    seconds: int = 0
    bytes: int = 0
    files: int = 0

    def __bool__(self) -> bool:
        return bool(self.seconds or self.bytes)


@dataclass(frozen=True, slots=True)
class DumpOptions:
    """What to do with captured packets.

    :ivar path: the capture file; ``-`` is standard output; None prints lines.
    :ivar count: the number of packets after which to stop; None does not stop.
    :ivar snaplen: the most bytes of a packet to keep in a file.
    :ivar style: the style of lines: ``auto``, ``scapy``, ``short`` or ``tcpdump``.
    :ivar lines: tcpdump's options for times, headers and hex dumps.
    :ivar command: the program, with its arguments, to run on each finished file of several.
    """

    path: str | None = None
    count: int | None = None
    rotation: Rotation = Rotation()
    snaplen: int = MAX_SNAPLEN
    filter: str = ""
    style: str = "auto"
    lines: LineStyle = _LINE_STYLE
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.path is not None and not Path(self.path).name:
            raise ConfigError(f"-w {self.path!r}: it must be the name of a file, or - for standard output")
        if self.rotation and self.path in (None, "-"):
            raise ConfigError("-G and -C start new files: they need -w FILE")
        if self.rotation.files and not self.rotation:
            raise ConfigError("-W limits the files that -C or -G starts: it needs one of them")
        if self.command and not self.rotation:
            raise ConfigError("-z runs a command on each file that -C or -G ends: it needs one of them")
        lines = self.lines
        if self.style not in ("auto", "tcpdump") and (lines.link or lines.verbose or lines.quiet):
            raise ConfigError(f"-e, -v and -q print tcpdump's lines: they need --style tcpdump, not {self.style}")
        if lines.time > _MOST_TIMES:
            raise ConfigError(f"-t is given {lines.time} times; it has a meaning for up to {_MOST_TIMES}")
        if self.path == "-" and sys.stdout.isatty():
            raise ConfigError("-w - writes a capture, and standard output is a terminal: pipe it, or use -w FILE")


# --- where captured packets go --------------------------------------------------------------------------------------


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
        style: LineStyle = _LINE_STYLE,
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


class Files(Sink):
    """Writes a capture file, or several one after the other. See :func:`file_name` for their names.

    :param stop: called when the last file of a limited number is complete.
    :param command: the program to run on each file that is complete, except the last one.
    :param began: when the first file begins, in nanoseconds since 1970; None means now.
    """

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
    ) -> None:
        self._path = path
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
        self._names: set[str] = set()
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
            if not self.ended:
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
        if name in self._names and not self._rotation.files:
            base, suffix = without_suffix(name)
            name = with_number(base, self._number) + suffix  # never write a file of this run anew
        if not self._rotation.files:
            self._names.add(name)
        self._finished.wait_for(name)
        self._writer: Writer = create_capture(name, self._interfaces, self._snaplen)
        #: Writes a burst directly from its buffers, if this kind of file can.
        self._write_burst = self._writer.write_burst if isinstance(self._writer, PcapWriter) else _never


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


class Capture:
    """Filters, counts and time-stamps packets on their way into a sink. Its clock never goes back.

    :param stop: called when ``limit`` packets have been captured.
    """

    def __init__(
        self, sink: Sink, matches: Matches | None, limit: int | None, stop: Callable[[], None], shown: Progress
    ) -> None:
        self.packets = 0
        self._sink = sink
        self._matches = matches
        self._limit = limit
        self._stop = stop
        self._shown = shown
        self._last = 0
        whole = matches is None and limit is None
        #: Whether whole bursts can be recorded: no filter or limit needs single packets.
        self.takes_bursts = whole and isinstance(sink, Files) and sink.takes_bursts and not sink.is_limited
        if self.takes_bursts:
            assert isinstance(sink, Files)
            self._record_burst = sink.record_burst
            self._size = sink.size
        #: The time of the next progress update after a burst, in nanoseconds since 1970.
        self._look_at = 0.0 if shown.due < math.inf else math.inf

    def record(self, packets: Sequence[bytes], interface: int = 0) -> None:
        """Capture packets that came now."""
        now = self._last = max(time.time_ns(), self._last)
        if self._matches is not None:
            packets = [*filter(self._matches, packets)]
        if self._limit is not None:
            packets = packets[: self._limit - self.packets]
        if packets:
            self._sink.record(packets, now, interface)
            if self._sink.ended:  # by the number of files
                return
        self.packets += len(packets)
        if self._limit is not None and self.packets >= self._limit:
            self._stop()
        if time.monotonic() >= self._shown.due:
            self._shown.update(f"{self.packets} packets")

    def record_burst(self, burst: Burst) -> None:
        """Capture a burst that came now, directly from its buffers. It does not count in ``packets``."""
        now = time.time_ns()
        if now < self._last:
            now = self._last
        self._last = now
        self._record_burst(burst, now)
        if now >= self._look_at:
            self._look_at = now + _SECOND // 10
            if time.monotonic() >= self._shown.due:
                self._shown.update(f"{self._size() / _MEGABYTE:.1f} MB")

    def flush(self) -> None:
        """Flush the sink while no packets come, so that a reader of the output sees all of them."""
        self._sink.flush()


# --- the command ----------------------------------------------------------------------------------------------------


def dump(
    ends: Sequence[MemifEndpoint],
    options: DumpOptions,
    *,
    session_options: SessionOptions = SessionOptions(),  # noqa: B008 - it is frozen
    impairment_options: ImpairmentOptions = ImpairmentOptions(),  # noqa: B008 - it is frozen
    on_ready: Callable[[Sequence[str]], object] = lambda lines: None,
) -> tuple[int, list[Report]]:
    """Capture packets of one memif, or between two, until Ctrl+C, SIGTERM or the last packet.

    :param impairment_options: between two memifs, the impairments; packets are captured when they leave them.
    :param on_ready: called when the interfaces are created, with a line for each impaired direction.
    :returns: the number of captured packets, and between two memifs the totals of each direction.
    :raises MemifError: an option is wrong, an interface cannot be created, or a file cannot be written.
    """
    if len(ends) == 2:
        check_pair(*ends)
    elif impairment_options:
        raise ConfigError("impairments are for packets between two memifs: they need --between A B")
    polling = any(end.config.rx_mode is RxMode.POLLING for end in ends)
    impairments = Impairments(impairment_options, ends[0].mode)
    preparation = Preparation.of(options, ends)
    with session("dump", reconnect_interval=DEFAULT_RECONNECT_INTERVAL, session_options=session_options) as runtime:
        ports = [MemifPort(runtime, end) for end in ends]
        impairments.count_in(runtime)
        with capturing(options, ends, runtime.cancel_poll_event, preparation) as capture:
            one = [Carry(ports[0], Nowhere("nowhere"), capture.record)]
            ways: Sequence[Direction] = between(ports, capture, impairments) if len(ports) == 2 else one
            pump = Pump(runtime, ways, polling=polling, on_idle=capture.flush)
            on_ready(impairments.describe())
            try:
                with watching(impairments, impairment_options, lambda line: complain(f"memifrt dump: {line}")):
                    pump.run()
                reports = [way.report() for way in ways]
            finally:
                pump.close()
        # A burst that is recorded as a whole does not count its packets.
        capture.packets += sum(way.source.received.packets for way in ways if isinstance(way, Watch))
        return capture.packets, reports if len(ends) == 2 else []


def between(
    ports: Sequence[MemifPort], capture: Capture, impairments: Impairments | None = None
) -> Sequence[Direction]:
    """Return both directions between two ports, each with the capture."""
    records = [functools.partial(capture.record, interface=number) for number in (0, 1)]
    impaired = (None, None) if impairments is None else impairments.directions(ports[0], ports[1], records)
    return [
        way or _captured(source, target, capture, record)
        for way, source, target, record in zip(impaired, ports, ports[::-1], records, strict=True)
    ]


def _captured(source: MemifPort, target: MemifPort, capture: Capture, record: Record) -> Direction:
    if capture.takes_bursts:
        return Watch(source, target, capture.record_burst)
    return Carry(source, target, record)


@dataclass(frozen=True, slots=True)
class Preparation:
    """The steps that may fail without a peer. They run before a peer sees us.

    :ivar matches: the compiled filter, or None.
    :ivar describe: makes the lines; None if a file is written, or for tcpdump's lines.
    """

    matches: Matches | None
    describe: Summary | None

    @classmethod
    def of(cls, options: DumpOptions, ends: Sequence[MemifEndpoint]) -> Preparation:
        """Compile the filter, and check that the file can be written.

        :raises MemifError: the filter is wrong, a library is not installed, or the file cannot be written.
        """
        mode = ends[0].mode
        matches = compile_filter(options.filter, LinkType.of(mode)) if options.filter else None
        if options.path is None:
            return cls(matches, _describe(options, mode))
        check_writable(first_name(options, time.time_ns()))
        return cls(matches, None)


def _describe(options: DumpOptions, mode: Mode) -> Summary | None:
    """Return what makes the lines; None for tcpdump's lines."""
    lines = options.lines
    tcpdump = options.style == "tcpdump" or lines.link or lines.verbose or lines.quiet
    return None if tcpdump else summary(mode, options.style)


@contextlib.contextmanager
def capturing(
    options: DumpOptions,
    ends: Sequence[MemifEndpoint],
    stop: Callable[[], None],
    preparation: Preparation | None = None,
) -> Iterator[Capture]:
    """Open a capture with these options, and close it afterwards.

    :param preparation: the preparation for these options and ends, if there is one already.
    """
    preparation = preparation or Preparation.of(options, ends)
    sink: Sink
    if options.path is None:
        names = "AB" if len(ends) == 2 else ("",)
        sink = Lines(names, preparation.describe, options.lines, ends[0].mode, options.snaplen)
        shown = Progress()
    else:
        interfaces = [(str(end), LinkType.of(end.mode)) for end in ends]
        path, snaplen, command = options.path, options.snaplen, options.command
        sink = Files(path, interfaces, snaplen, options.rotation, stop=stop, command=command)
        shown = progress("dump")
    with sink, shown:
        yield Capture(sink, preparation.matches, options.count, stop, shown)


# --- a file instead of a memif ---------------------------------------------------------------------------------------


class _Interrupted(Exception):
    """A signal has ended the reading."""


def dump_file(source: str, options: DumpOptions) -> tuple[int, int]:
    """Print the packets of a capture file that match the filter, or write them to another file.

    The packets keep their times, link types and lengths. ``-G`` counts their times.

    :param source: a pcap or pcapng file, perhaps compressed; ``-`` is standard input.
    :returns: the number of packets that matched, and of those that were read.
    :raises CaptureFileError: the file is broken. The packets before that position have been printed or written.
    :raises MemifError: an option is wrong, or a file cannot be read or written.
    """

    def interrupt() -> None:
        raise _Interrupted

    with open_capture(source) as reader:
        reader.describe()
        chosen = _Chosen(reader, options)
        if options.path is not None:
            _check_other_file(source, first_name(options, time.time_ns()))
        with contextlib.suppress(_Interrupted), signals_to(interrupt):
            _record_file(reader, chosen, options)
        return chosen.matched, chosen.read


class _Chosen:
    """The packets of a file that match the filter, up to the limit.

    :raises ConfigError: libpcap does not understand the filter for a link type of the file.
    """

    def __init__(self, reader: Reader, options: DumpOptions) -> None:
        self._reader = reader
        self._expression = options.filter
        self._limit = options.count
        self._filters: dict[int, Matches] = {}
        self.matched = self.read = 0
        if self._expression:
            for link_type in reader.link_types or (LinkType.ETHERNET.value,):
                self._matches(link_type)

    def _matches(self, link_type: int) -> Matches:
        if link_type not in self._filters:
            self._filters[link_type] = compile_filter(self._expression, link_type)
        return self._filters[link_type]

    def __iter__(self) -> Iterator[Packet]:
        for packet in self._reader:
            self.read += 1
            if self._expression and not self._matches(packet.link_type)(packet.data, packet.length):
                continue
            self.matched += 1
            yield packet
            if self.matched == self._limit:
                return


def _check_other_file(source: str, target: str) -> None:
    check_writable(target)
    with contextlib.suppress(OSError):
        if source != "-" and target != "-" and os.path.samefile(source, target):
            raise ConfigError(f"-r {source} and -w {target} are the same file; write to another one")


def _record_file(reader: Reader, chosen: _Chosen, options: DumpOptions) -> None:
    packets = iter(chosen)
    first = next(packets, None)
    link_types = [first.link_type] if first is not None else [*reader.link_types[:1]] or [LinkType.ETHERNET.value]
    shown: Progress
    sink: Sink
    if options.path is None:
        mode = LinkType.mode_of(link_types[0]) or Mode.ETHERNET
        sink, shown = Lines(("",), _describe(options, mode), options.lines, mode, options.snaplen), Progress()
    else:
        sink = Files(
            options.path,
            [(link_type_name(number), number) for number in link_types],
            options.snaplen,
            options.rotation,
            command=options.command,
            began=None if first is None else first.time or 0,
        )
        shown = progress("dump", reader.size)
    with sink, shown:
        while first is not None and not sink.ended:
            sink.record_packet(first)
            if not reader.regular:  # a packet of a pipe is seen when it comes
                sink.flush()
            if chosen.read % _OFTEN == 0 and time.monotonic() >= shown.due:
                shown.update(f"{chosen.matched} packets", reader.offset)
            first = next(packets, None)
        if sink.ended:
            chosen.matched -= 1


# --- the command line ------------------------------------------------------------------------------------------------


def _add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "filter",
        nargs="*",
        metavar="FILTER",
        help="only packets that match, in tcpdump's language, like: icmp or arp; needs libpcap",
    )
    add(
        "-r",
        dest="source",
        metavar="FILE",
        help="read packets from a capture, perhaps compressed, instead of a memif; - is standard input",
    )
    add(
        "-w",
        dest="path",
        metavar="FILE",
        help="write a capture: pcapng if FILE ends with .pcapng, else pcap; .gz or .zst after that compresses it; "
        "- is standard output",
    )
    add("-c", type=whole(1, MANY), dest="count", metavar="COUNT", help="stop after COUNT packets")
    add(
        "-G",
        type=whole(1, _DAY),
        default=0,
        dest="seconds",
        metavar="SECONDS",
        help="start a new file every SECONDS seconds",
    )
    add(
        "-C",
        type=whole(1, MANY),
        default=0,
        dest="megabytes",
        metavar="MB",
        help="start a new file after MB million bytes; the files are FILE-0001, FILE-0002, … or, if FILE contains a "
        "%%, what strftime makes of FILE",
    )
    add(
        "-W",
        type=whole(1, MANY),
        default=0,
        dest="files",
        metavar="COUNT",
        help="with -C: keep COUNT files as a ring, named FILE0, FILE1, … as by tcpdump; with -G alone: end after COUNT "
        "files",
    )
    add(
        "-z",
        type=checked(parse_command),
        default=(),
        dest="postrotate",
        metavar="COMMAND",
        help="run COMMAND FILE, without a shell, on each file that -C or -G ends",
    )
    add(
        "-s",
        "--snaplen",
        type=whole(0, MAX_SNAPLEN),
        default=0,
        metavar="N",
        help=f"the most bytes of a packet to keep in a file or to print; 0 and default: {MAX_SNAPLEN}",
    )
    _add_line_arguments(parser)
    add(
        "--style",
        choices=_STYLES,
        help="the lines: scapy's summaries, short ones, or tcpdump's; default: tcpdump with -n, -e, -v or -q, else "
        "auto: scapy's if it is installed, else short",
    )
    add(
        "--between",
        nargs=2,
        type=checked(parse_memif_endpoint),
        metavar=("A", "B"),
        help="capture between two memifs, in both directions, instead of at the end of one",
    )
    add_impairment_arguments(parser)
    add_peer_arguments(parser, "adaptive")


def _add_line_arguments(parser: Parser) -> None:
    add = parser.add_argument_group("lines, as by tcpdump").add_argument
    add("-n", action="store_true", help="numbers instead of names, which memifrt never looks up anyway")
    add("-e", action="store_true", help="print the link-level header: MAC addresses, EtherType, VLAN tags")
    add("-v", action="count", default=0, help="print more: the fields of the IP header, checksums; -vv: also of UDP")
    add("-q", action="store_true", help="print less about protocols")
    add("-x", action="count", default=0, help="dump the packet in hex, without its link-level header; -xx: with it")
    add("-X", action="count", default=0, help="like -x and -xx, in hex and ASCII")
    add("-A", action="count", default=0, help="dump the packet in ASCII; -AA: with its link-level header")
    add(
        "-t",
        action="count",
        default=0,
        help="-t: no times; -tt: seconds since 1970; -ttt: since the previous line; -tttt: with the date; "
        "-ttttt: since the first line",
    )
    add("--nano", action="store_true", help="print times in nanoseconds instead of microseconds")


def _line_style(arguments: argparse.Namespace) -> LineStyle:
    dumps = (("X", arguments.X), ("x", arguments.x), ("A", arguments.A))  # the first one wins, as in tcpdump
    dump = next((sign * min(count, 2) for sign, count in dumps if count), "")
    return LineStyle(arguments.t, arguments.nano, arguments.e, arguments.v, arguments.q, dump)


def _check_no_memif(arguments: argparse.Namespace) -> None:
    """Check that no option of a memif is given together with ``-r``.

    :raises ConfigError: there is one.
    """
    given = {
        "--between": arguments.between,
        "--stats": arguments.stats,
        "--prometheus": arguments.prometheus,
        "--connect-timeout": arguments.connect_timeout,
    }
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"-r reads a file, and {name} is for a memif; give one of them")


def _run(arguments: argparse.Namespace) -> int:
    options = DumpOptions(
        path=arguments.path,
        count=arguments.count,
        rotation=Rotation(arguments.seconds, arguments.megabytes * _MEGABYTE, arguments.files),
        snaplen=arguments.snaplen or MAX_SNAPLEN,
        filter=" ".join(arguments.filter),
        style=arguments.style or ("tcpdump" if arguments.n else "auto"),
        lines=_line_style(arguments),
        command=arguments.postrotate,
    )
    if arguments.source is not None:
        _check_no_memif(arguments)
        matched, read = dump_file(arguments.source, options)
        complain(f"memifrt dump: {matched} packets of the {read} read")
        return 0
    ends = arguments.between or [memif_endpoint(arguments)]

    def on_ready(impairments: Sequence[str]) -> None:
        for line in impairments:
            complain(f"memifrt dump: {line}")
        complain(f"memifrt dump: capturing on {' and '.join(map(str, ends))}; Ctrl+C ends it")

    packets, reports = dump(
        ends,
        options,
        session_options=session_options(arguments),
        impairment_options=impairment_options(arguments),
        on_ready=on_ready,
    )
    complain(f"memifrt dump: {packets} packets captured")
    for report in reports:
        complain(f"memifrt dump: {report.line()}")
    return 0


COMMAND = Command(
    "dump",
    "capture the packets of a memif, as lines or into a file, at its end or between two memifs",
    f"""A and B of --between:
{MEMIF_SYNTAX}

examples:
  memifrt dump --role master --socket @lab
  memifrt dump --socket /run/vpp/memif.sock -w - | wireshark -k -i -
  memifrt dump --between @left,role=master /run/vpp/memif.sock -w lab.pcapng -C 100
  memifrt dump --socket @lab -w lab.pcap.zst -C 100 -W 10
  memifrt dump -r lab.pcap.zst -ne -ttt udp port 53""",
    _add_arguments,
    _run,
)
