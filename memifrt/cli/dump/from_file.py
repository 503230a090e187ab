"""``dump -r``: print the packets of a capture file, or write them to another file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from memifrt.capture.filter import Matches, compile_filter
from memifrt.capture.link_layer import link_type_name
from memifrt.capture.pcap import LinkType, Packet, Reader, check_writable, open_capture
from memifrt.cli.dump.files import Files, check_other_file, first_name
from memifrt.cli.dump.options import DumpOptions
from memifrt.cli.dump.sink import Lines, Sink, describe
from memifrt.cli.program import signals_to
from memifrt.cli.progress import Progress, progress
from memifrt.types import Mode

#: Packets of a file between two looks at the progress.
_OFTEN = 1024


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
            name = first_name(options, time.time_ns())
            check_writable(name)
            check_other_file(source, name)
        with contextlib.suppress(_Interrupted), signals_to(interrupt):
            _record_file(source, reader, chosen, options)
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


def _record_file(source: str, reader: Reader, chosen: _Chosen, options: DumpOptions) -> None:
    packets = iter(chosen)
    first = next(packets, None)
    link_types = [first.link_type] if first is not None else [*reader.link_types[:1]] or [LinkType.ETHERNET.value]
    shown: Progress
    sink: Sink
    if options.path is None:
        mode = LinkType.mode_of(link_types[0]) or Mode.ETHERNET
        sink, shown = Lines(("",), describe(options, mode), options.lines, mode, options.snaplen), Progress()
    else:
        sink = Files(
            options.path,
            [(link_type_name(number), number) for number in link_types],
            options.snaplen,
            options.rotation,
            command=options.command,
            source=source,
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
