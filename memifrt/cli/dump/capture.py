"""Packets of a memif on their way into a sink: filtered, counted and time-stamped."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from memifrt.capture.filter import Matches, compile_filter
from memifrt.capture.pcap import LinkType, check_writable
from memifrt.capture.summary import Summary
from memifrt.cli.dump.files import Files, first_name
from memifrt.cli.dump.options import DumpOptions
from memifrt.cli.dump.sink import Lines, Sink, describe
from memifrt.cli.progress import Progress, progress
from memifrt.ports.endpoint import MemifEndpoint
from memifrt.ring import Burst

_MEGABYTE = 1_000_000
_SECOND = 1_000_000_000


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
            return cls(matches, describe(options, mode))
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
