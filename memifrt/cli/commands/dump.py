"""``memifrt dump``: print a line for each packet of a memif, or write a capture file.

It is either an endpoint, which takes all packets and sends none, or it sits between two memifs and forwards each packet
after it is captured. Owns the captured packets; the pump (``memifrt.ports.forwarding``) moves them.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from memifrt.capture.filter import Matches, compile_filter
from memifrt.capture.pcap import MAX_SNAPLEN, LinkType, PcapWriter, Writer, check_writable, create_capture
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
from memifrt.cli.program import SessionOptions, complain, session
from memifrt.cli.progress import Progress, progress
from memifrt.errors import ConfigError
from memifrt.options import DEFAULT_RECONNECT_INTERVAL
from memifrt.ports.endpoint import MemifEndpoint
from memifrt.ports.forwarding import Carry, Direction, Pump, Record, Report, Watch
from memifrt.ports.port import MemifPort, Port, Traffic
from memifrt.ring import Burst
from memifrt.types import RxMode

_STYLES = ("auto", "scapy", "short")
_MEGABYTE = 1_000_000
_DAY = 86400
_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Rotation:
    """When to start a new file: after this many ``seconds`` or ``bytes``; 0 means never."""

    seconds: int = 0
    bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.seconds or self.bytes)


@dataclass(frozen=True, slots=True)
class DumpOptions:
    """What to do with captured packets.

    :ivar path: the capture file; ``-`` is standard output; None prints lines.
    :ivar count: the number of packets after which to stop; None does not stop.
    :ivar snaplen: the most bytes of a packet to keep in a file.
    :ivar style: the style of lines: ``auto``, ``scapy`` or ``short``.
    """

    path: str | None = None
    count: int | None = None
    rotation: Rotation = Rotation()
    snaplen: int = MAX_SNAPLEN
    filter: str = ""
    style: str = "auto"

    def __post_init__(self) -> None:
        if self.path is not None and not Path(self.path).name:
            raise ConfigError(f"-w {self.path!r}: it must be the name of a file, or - for standard output")
        if self.rotation and self.path in (None, "-"):
            raise ConfigError("-G and -C start new files: they need -w FILE")
        if self.path == "-" and sys.stdout.isatty():
            raise ConfigError("-w - writes a capture, and standard output is a terminal: pipe it, or use -w FILE")


# --- where captured packets go --------------------------------------------------------------------------------------


class Sink(ABC):
    """Takes captured packets. It is a context manager that closes itself."""

    @abstractmethod
    def record(self, packets: Sequence[bytes], now: int, interface: int) -> None:
        """Take packets that came at ``now``, in nanoseconds since 1970."""

    @abstractmethod
    def flush(self) -> None: ...

    def close(self) -> None:
        self.flush()

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Lines(Sink):
    """Prints a line for each packet on standard output."""

    def __init__(self, names: Sequence[str], describe: Summary) -> None:
        self._names = [f"{name} " if len(names) > 1 else "" for name in names]
        self._describe = describe

    def record(self, packets: Sequence[bytes], now: int, interface: int) -> None:
        seconds, rest = divmod(now, _SECOND)
        when = f"{datetime.fromtimestamp(seconds):%H:%M:%S}.{rest // 1000:06} {self._names[interface]}"
        sys.stdout.write("".join([f"{when}{self._describe(packet)}\n" for packet in packets]))

    def flush(self) -> None:
        sys.stdout.flush()


class Files(Sink):
    """Writes a capture file, or several one after the other.

    If there are several and the path contains a ``%``, ``strftime`` makes their names from it. Otherwise, or if this
    run has used that name already, the name gets a number.
    """

    def __init__(self, path: str, interfaces: Sequence[tuple[str, LinkType]], snaplen: int, rotation: Rotation) -> None:
        self._path = path
        self._interfaces = interfaces
        self._snaplen = snaplen
        self._rotation = rotation
        self._number = 0
        self._names: set[str] = set()
        self._rotates = bool(rotation)
        self._earlier = 0
        self._began = time.time_ns()
        self._open(self._began)

    def record(self, packets: Sequence[bytes], now: int, interface: int) -> None:
        if self._rotates:
            self._rotate(now)
        self._writer.write(packets, now, interface)

    @property
    def takes_bursts(self) -> bool:
        """Whether this kind of file can write a burst directly from its buffers."""
        return self._write_burst is not _never

    def record_burst(self, burst: Burst, now: int) -> None:
        """Record all packets of a burst; see :meth:`record`."""
        if self._rotates:
            self._rotate(now)
        self._write_burst(burst, now)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def size(self) -> int:
        """Return the bytes of all files so far."""
        return self._earlier + self._writer.written

    def _rotate(self, now: int) -> None:
        if not self._is_full(now):
            return
        self._writer.close()
        self._earlier += self._writer.written
        if self._rotation.seconds:  # files start at multiples of the period, whenever packets come
            period = self._rotation.seconds * _SECOND
            self._began += (now - self._began) // period * period
        self._open(now)

    def _is_full(self, now: int) -> bool:
        seconds, size = self._rotation.seconds, self._rotation.bytes
        return bool((seconds and now - self._began >= seconds * _SECOND) or (size and self._writer.written >= size))

    def _open(self, now: int) -> None:
        self._writer: Writer = create_capture(self._next_name(now), self._interfaces, self._snaplen)
        #: Writes a burst directly from its buffers, if this kind of file can.
        self._write_burst = self._writer.write_burst if isinstance(self._writer, PcapWriter) else _never

    def _next_name(self, now: int) -> str:
        if not self._rotation:
            return self._path
        numbered = "%" not in self._path
        path = self._path if numbered else with_time(self._path, now)
        name = path
        while numbered or name in self._names:
            self._number += 1
            name = with_number(path, self._number)
            numbered = False
        self._names.add(name)
        return name


def with_time(path: str, now: int) -> str:
    """Return a path after ``strftime``, at ``now`` in nanoseconds since 1970."""
    return datetime.fromtimestamp(now // _SECOND).strftime(path)


def with_number(path: str, number: int) -> str:
    """Return the path of one of several files."""
    whole = Path(path)
    return str(whole.with_name(f"{whole.stem}-{number:04}{whole.suffix}"))


def first_name(options: DumpOptions, now: int) -> str:
    """Return the path of the first file, if it is started at ``now``."""
    path = options.path or "-"
    if not options.rotation:
        return path
    return with_time(path, now) if "%" in path else with_number(path, 1)


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
        self.takes_bursts = whole and isinstance(sink, Files) and sink.takes_bursts
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


class _Nowhere(Port):
    """A port that drops every packet."""

    received = sent = Traffic()

    def fileno(self) -> int:
        return -1

    def room(self, qid: int = 0) -> int:
        return 1 << 16

    def recv(self, limit: int, *, qid: int = 0) -> list[bytes]:
        return []

    def send(self, packets: Sequence[bytes], *, qid: int = 0) -> int:
        return len(packets)

    def discard(self, limit: int, *, qid: int = 0) -> int:
        return 0

    def close(self) -> None:
        pass


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
            one = [Carry(ports[0], _Nowhere("nowhere"), capture.record)]
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
    :ivar describe: makes the lines; None if a file is written.
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
            return cls(matches, summary(mode, options.style))
        check_writable(first_name(options, time.time_ns()))
        return cls(matches, None)


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
        assert preparation.describe is not None
        sink, shown = Lines("AB" if len(ends) == 2 else ("",), preparation.describe), Progress()
    else:
        interfaces = [(str(end), LinkType.of(end.mode)) for end in ends]
        sink = Files(options.path, interfaces, options.snaplen, options.rotation)
        shown = progress("dump")
    with sink, shown:
        yield Capture(sink, preparation.matches, options.count, stop, shown)


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
        "-w",
        dest="path",
        metavar="FILE",
        help="write a capture: pcapng if FILE ends with .pcapng, else pcap; - is standard output",
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
        "--snaplen",
        type=whole(1, MAX_SNAPLEN),
        default=MAX_SNAPLEN,
        metavar="N",
        help=f"the most bytes of a packet to keep in a file; default {MAX_SNAPLEN}",
    )
    add(
        "--style",
        choices=_STYLES,
        default=_STYLES[0],
        help="the lines: scapy's summaries, or short ones; default auto: scapy's if it is installed",
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


def _run(arguments: argparse.Namespace) -> int:
    options = DumpOptions(
        path=arguments.path,
        count=arguments.count,
        rotation=Rotation(arguments.seconds, arguments.megabytes * _MEGABYTE),
        snaplen=arguments.snaplen,
        filter=" ".join(arguments.filter),
        style=arguments.style,
    )
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
  memifrt dump --between @left,role=master /run/vpp/memif.sock -w lab.pcapng -C 100""",
    _add_arguments,
    _run,
)
