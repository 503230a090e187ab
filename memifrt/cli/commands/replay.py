"""``memifrt replay``: send the packets of a capture file on a memif, with their own timing or at a rate.

Owns when each packet is due, and the totals. It sleeps until the next packet is due.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import math
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import NoReturn

from memifrt.capture.flows import Flows
from memifrt.capture.link_layer import BROADCAST, OURS, Conversion, LinkLayer
from memifrt.capture.pcap import MAX_SNAPLEN, CaptureFileError, Packet, Reader, open_capture
from memifrt.capture.rewrite import (
    VLAN_MODES,
    VLAN_PROTOCOLS,
    Edit,
    Rewriting,
    parse_mac_pair,
    parse_maps,
)
from memifrt.cli.arguments import (
    MANY,
    Command,
    Parser,
    add_peer_arguments,
    checked,
    own_mac,
    seconds,
    session_options,
    whole,
)
from memifrt.cli.endpoint import memif_endpoint
from memifrt.cli.program import SessionOptions, complain, session
from memifrt.cli.progress import Progress, progress
from memifrt.errors import ConfigError, Disconnected, MemifError, PollCancelled
from memifrt.packets import format_mac, parse_mac
from memifrt.ports.drain import INTERVAL, Drain
from memifrt.ports.endpoint import MemifEndpoint
from memifrt.ports.port import MemifPort
from memifrt.runtime import Runtime
from memifrt.types import Mode

#: Seconds between two attempts to connect. It is short because a user waits at the terminal.
_RECONNECT_INTERVAL = 0.2
#: The most packets to send in one call.
_BURST = 256
#: Seconds until we look for room again: no event says that a peer made room.
_BACKOFF = 0.0001
#: Seconds to wait for the first buffers of a slave. VPP offers them when its interface is up.
_BUFFERS_WAIT = 3.0
#: The most bytes of packets to keep for the next round. A longer capture is read again.
_KEPT = 256 << 20
_SECOND = 1_000_000_000
_PR_SET_TIMERSLACK = 29
#: The longest wait in seconds that is not announced.
_LONG = 10.0
#: A capture without dates starts at time 0. It is recognized by a next time within this many nanoseconds.
_DAY = 86400 * _SECOND
#: The smallest rate or speed. With less, the time of a packet in nanoseconds does not fit into a float.
_LEAST = 1e-9

Clock = Callable[[Packet], int]

#: The bytes of the shortest Ethernet frame, without its check sequence.
_SHORTEST_FRAME = 60
#: The longest answer of a user to ``--oneatatime``, in bytes.
_ANSWER = 4096

#: The ways to treat packets that were cut at capture.
CUT_CHOICES = ("pad", "send", "skip")


def _nothing() -> None:
    """Do nothing: the default callback."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast to send. If all values are 0, as fast as the peer takes packets.

    :ivar speed: a multiple of the speed of the capture.
    :ivar pps: packets a second.
    :ivar mbps: megabits a second, counted without any framing.
    :ivar max_gap: the most seconds between two packets of the capture; 0 for no limit.
    """

    speed: float = 0.0
    pps: float = 0.0
    mbps: float = 0.0
    max_gap: float = 0.0

    def __post_init__(self) -> None:
        if self.max_gap and not self.speed:
            raise ConfigError(
                "--max-gap and --maxsleep limit the gaps of captured times; --pps, --mbps, --topspeed and --oneatatime "
                "do not use them"
            )

    def clock(self, on_shortened: Callable[[], object] = _nothing) -> Clock | None:
        """Return a function that says when a packet is due, in nanoseconds after the first one.

        Call it for each packet in order. Return None if all packets are due at once.

        :param on_shortened: called for each gap that ``max_gap`` shortens.
        """
        if self.speed:
            return _captured_times(self.speed, int(self.max_gap * _SECOND), on_shortened)
        if self.pps:
            period = _SECOND / self.pps
            numbers = itertools.count()
            return lambda packet: int(next(numbers) * period)
        if self.mbps:
            return _bit_times(self.mbps)
        return None


def _captured_times(speed: float, max_gap: int, on_shortened: Callable[[], object]) -> Clock:
    #: A captured time, and when a packet with that time is due. None until a packet has a time.
    origin: int | None = None
    start = 0
    #: The latest captured time, and when the previous packet was due.
    latest = last = 0
    starts_at_zero = False

    def due(packet: Packet) -> int:
        """Return when a packet is due. Without a time, or with an earlier one, it is due with the previous packet."""
        nonlocal origin, start, latest, last, starts_at_zero
        captured = packet.time
        if not captured:  # programs write 0 if they do not know the time
            starts_at_zero = starts_at_zero or (captured == 0 and origin is None)
            return last
        if origin is None:
            origin = latest = 0 if starts_at_zero and captured <= _DAY else captured
        if captured < latest - _SECOND:  # too much for reordered packets: the clock was set back
            origin, start, latest = captured, last, captured
        when = start + int((captured - origin) / speed)
        if max_gap and when - last > max_gap:
            on_shortened()
            origin, start = captured, last + max_gap
            when = start
        latest, last = max(latest, captured), max(last, when)
        return last

    return due


def _bit_times(mbps: float) -> Clock:
    bits = 0

    def due(packet: Packet) -> int:
        nonlocal bits
        before = bits
        bits += 8 * len(packet.data)
        return int(before * 1000 / mbps)

    return due


@dataclass(slots=True)
class Outcome:
    """The totals of a replay, in packets unless said otherwise.

    :ivar skipped: packets that the memif cannot carry: empty, too long, or without a packet that can be converted.
    :ivar unread: packets that the peer left in the ring.
    :ivar complete: whether the whole file was played, and not ended early by Ctrl+C, SIGTERM or the peer.
    :ivar broken: the error of a broken file; the packets before it were played.
    :ivar cut: packets that were cut at capture and left out.
    :ivar sent_cut: packets that were cut at capture and sent that way.
    :ivar padded: packets that were cut at capture and filled up with zeros.
    :ivar foreign: packets with a link type that the memif does not carry.
    :ivar shortened: the number of gaps that were longer than ``Pace.max_gap``.
    """

    accepted: int = 0
    bytes: int = 0
    dropped: int = 0
    skipped: int = 0
    unread: int = 0
    seconds: float = 0.0
    complete: bool = False
    broken: MemifError | None = None
    cut: int = 0
    sent_cut: int = 0
    padded: int = 0
    foreign: int = 0
    shortened: int = 0

    def line(self) -> str:
        """Return the totals as one line of text."""
        text = f"{self.accepted} packets, {self.bytes} bytes accepted, {self.dropped} dropped"
        if self.skipped:
            text += f", {self.skipped} skipped that this memif cannot carry"
        for count, what in (
            (self.foreign, "skipped of another link type"),
            (self.cut, "skipped that were cut at capture"),
            (self.sent_cut, "sent as they were cut at capture"),
            (self.padded, "that were cut at capture padded with zeros"),
            (self.shortened, "gaps shortened"),
        ):
            if count:
                text += f", {count} {what}"
        if self.unread:
            text += f", {self.unread} not taken by the peer"
        seconds = max(self.seconds, 1e-9)
        pps, mbps = self.accepted / seconds, 8e-6 * self.bytes / seconds
        return f"{text} in {self.seconds:.3f} s: {pps:.0f} packets/s, {mbps:.3f} Mbit/s"


# --- the packets ----------------------------------------------------------------------------------------------------


class Recording:
    """A capture file that can be played more than once. It keeps the packets in memory if they fit."""

    def __init__(self, path: str, *, again: bool) -> None:
        self._path = path
        self._reader: Reader | None = open_capture(path)
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
            self._reader = open_capture(self._path)
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


class _Selection:
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


def _padded(frame: bytes) -> bytes:
    return frame.ljust(_SHORTEST_FRAME, b"\0")


# --- playing --------------------------------------------------------------------------------------------------------


class _TimeIsOver(Exception):
    """``--duration`` has passed."""


@dataclass(frozen=True, slots=True)
class Conduct:
    """How a replay behaves towards its user.

    :ivar duration: the seconds after which to stop; 0 for no limit.
    :ivar report_every: the seconds between two reports of the totals; 0 reports after each round; None reports nothing.
    :ivar ask: whether to ask the user on standard input before each packet.
    :ivar quiet: whether to print no progress and no announcements.
    """

    duration: float = 0.0
    report_every: float | None = None
    ask: bool = False
    quiet: bool = False


class _Player:
    """Sends packets when they are due, and handles events of the control channel meanwhile."""

    def __init__(
        self,
        runtime: Runtime,
        port: MemifPort,
        shown: Progress,
        *,
        outcome: Outcome,
        drop: bool,
        hint: str,
        conduct: Conduct,
    ) -> None:
        self.outcome = outcome
        self._conduct = conduct
        self._granted = 0  # packets that the user allowed to send
        self._answer = b""
        #: When sending began, and when it ends or the next report is due, in ``time.monotonic()``.
        self._began: float | None = None
        self._ends = self._reports = math.inf
        self._runtime = runtime
        self._port = port
        self._shown = shown
        self._drop = drop
        #: A hint for the message about a long wait.
        self._hint = hint
        self.position = 0
        port.on_packets = self._discard

    def wait_for_peer(self) -> None:
        while not self._port.can_send:
            self._runtime.poll_event()
        # A slave posts its buffers after it is connected. Wait for them, so that the first packets are not late.
        deadline = time.monotonic() + _BUFFERS_WAIT
        while not self._port.room() and time.monotonic() < deadline:
            self._sleep(_BACKOFF)

    def play(self, packets: Iterable[Packet], clock: Clock | None, position: Callable[[], int]) -> None:
        """Send all packets.

        :raises PollCancelled: a signal ended the program.
        :raises Disconnected: the peer is gone.
        :raises _TimeIsOver: ``--duration`` has passed, or the user ended the input.
        """
        start = time.monotonic_ns()
        if self._began is None:
            self._began = time.monotonic()
            self._ends = self._began + (self._conduct.duration or math.inf)
            self._reports = self._began + (self._conduct.report_every or math.inf)
        asks = self._conduct.ask
        try:
            for batch in _batches(packets, clock, start, 1 if asks else _BURST):
                if asks:
                    self._ask()
                if batch.due:
                    self._wait_until(start + batch.due)
                self._send(batch.packets)
                self._look_at_clock()
                if time.monotonic() >= self._shown.due:
                    self._shown.update(f"{self.outcome.accepted} packets", position())
        finally:
            self.outcome.seconds = (time.monotonic_ns() - start) / _SECOND

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if now >= self._reports:
            assert self._began is not None
            self._reports = now + (self._conduct.report_every or math.inf)
            self.report(now - self._began)
        if now >= self._ends:
            raise _TimeIsOver

    def report(self, seconds: float) -> None:
        """Print the totals so far on standard error."""
        complain(f"memifrt replay: {replace(self.outcome, seconds=seconds).line()}")

    def _ask(self) -> None:
        """Wait until the user allows one more packet: each line of standard input allows one, or as many as it says.

        :raises _TimeIsOver: the user ended the input.
        """
        if not self._granted:
            number = self.outcome.accepted + self.outcome.dropped + self.outcome.skipped + 1
            complain(f"memifrt replay: Enter sends packet {number}, a number sends as many packets, Ctrl+D ends")
        while not self._granted:
            line, newline, rest = self._answer.partition(b"\n")
            if newline:
                self._answer = rest
                words = line.strip()
                self._granted = int(words) if re.fullmatch(rb"[0-9]{1,9}", words) else 0 if words else 1
                if not self._granted:
                    complain(f"memifrt replay: {words[:40].decode(errors='replace')!r} is not a number of packets")
                continue
            self._sleep(3600, sys.stdin.fileno())
            if select.select((sys.stdin,), (), (), 0)[0]:
                data = os.read(sys.stdin.fileno(), _ANSWER)
                if not data or len(self._answer) > _ANSWER:
                    raise _TimeIsOver
                self._answer += data
        self._granted -= 1

    def _wait_until(self, due: int) -> None:
        left = due - time.monotonic_ns()
        if left > _LONG * _SECOND and not self._conduct.quiet:
            how_long = timedelta(seconds=left // _SECOND) if left < MANY * _SECOND else f"{left // _SECOND} s"
            complain(f"memifrt replay: the next packet is due in {how_long}{self._hint}")
        while (left := due - time.monotonic_ns()) > 0:
            self._sleep(left / _SECOND)

    def _sleep(self, seconds: float, *fds: int) -> None:
        """Sleep for a time, or until the next event of the control channel or of an fd, or the end of the time.

        :raises Disconnected: the peer is gone.
        :raises _TimeIsOver: ``--duration`` has passed.
        """
        left = max(min(self._ends, self._reports) - time.monotonic(), 0)
        # select() counts in microseconds; epoll in milliseconds.
        if select.select((self._runtime.fileno(), *fds), (), (), min(seconds, left, 3600))[0]:
            self._runtime.poll_event(0)
        self._look_at_clock()
        if not self._port.can_send:
            raise Disconnected("the peer is gone")

    def _send(self, packets: Sequence[bytes]) -> None:
        self._runtime.poll_event(0)
        port, outcome = self._port, self.outcome
        while packets:
            refused = sum(port.refused.values())
            before = port.sent
            taken = port.send(packets)
            after = port.sent
            outcome.accepted += after.packets - before.packets
            outcome.bytes += after.bytes - before.bytes
            outcome.skipped += sum(port.refused.values()) - refused
            packets = packets[taken:]
            if packets and self._drop:
                outcome.dropped += len(packets)
                return
            if packets:
                self._sleep(_BACKOFF)

    def drain(self) -> None:
        """Wait until the peer has taken the packets in the ring, because a disconnect throws them away."""
        self._ends = self._reports = math.inf
        drain = Drain([self._port.interface])
        try:
            while drain.goes_on():
                self._sleep(INTERVAL)
        finally:
            self.outcome.unread = drain.left(self._port.interface)

    def _discard(self) -> None:
        for qid in range(self._port.queues):
            while self._port.discard(_BURST, qid=qid):
                pass


@dataclass(frozen=True, slots=True)
class _Batch:
    packets: Sequence[bytes]
    #: When to send, in nanoseconds after the start; 0 means at once.
    due: int


def _batches(packets: Iterable[Packet], clock: Clock | None, start: int, most: int = _BURST) -> Iterator[_Batch]:
    """Group packets into batches: each has the packets that are due by the time at which its first one is sent."""
    if clock is None:
        rest = iter(packets)
        while batch := [packet.data for packet in itertools.islice(rest, most)]:
            yield _Batch(batch, 0)
        return
    together: list[bytes] = []
    when = 0
    for packet in packets:
        due = clock(packet)
        # A packet that is due later must not delay those before it.
        if together and (len(together) >= _BURST or due > max(when, time.monotonic_ns() - start)):
            yield _Batch(together, when)
            together = []
        if not together:
            when = due
        together.append(packet.data)
    if together:
        yield _Batch(together, when)


def replay(
    path: str,
    end: MemifEndpoint,
    pace: Pace,
    *,
    loops: int = 1,
    drop: bool = False,
    cut: str | None = None,
    link_layer: LinkLayer | None = None,
    limit: int | None = None,
    preload: bool = False,
    pad: bool = False,
    rewriting: Rewriting = Rewriting(),  # noqa: B008 - it is frozen
    flows: Flows | None = None,
    conduct: Conduct = Conduct(),
    session_options: SessionOptions = SessionOptions(),  # noqa: B008 - it is frozen
    on_ready: Callable[[], object] = lambda: None,
) -> Outcome:
    """Wait for a peer and send it the packets of a capture.

    :param path: a pcap or pcapng file; ``-`` is standard input.
    :param loops: how often to play it; 0 repeats it until a signal. Every round has the same timing.
    :param drop: whether to drop packets for which the ring has no room, and keep the timing, instead of waiting.
    :param cut: what to do with packets that were cut at capture. ``pad`` fills them up with zeros, ``send`` sends the
        captured part, ``skip`` leaves them out; None leaves them out too and counts as a failure.
    :param link_layer: how to convert packets that the memif cannot carry; None does not convert them.
    :param limit: the most packets to send, over all rounds; None for no limit.
    :param preload: whether to read the whole capture before the peer is waited for.
    :param pad: whether to fill up frames that are shorter than the shortest of Ethernet.
    :param rewriting: the addresses and tags to rewrite.
    :param flows: counts the flows of the packets that are sent, if it is given.
    :param conduct: when to stop, what to print and whether to ask.
    :param on_ready: called when the interface is created.
    :returns: the totals.
    :raises CaptureFileError: the file is not a capture, or has no packet.
    :raises ConfigError: the memif carries none of the link types of the file.
    :raises MemifError: the file cannot be read, or the interface cannot be created.
    """
    _be_punctual()
    hint = "; --max-gap limits the gaps of the capture" if pace.speed and not pace.max_gap else ""
    with contextlib.ExitStack() as stack:
        edit = rewriting.edit(end.mode)
        if conduct.ask and path == "-":
            raise ConfigError("--oneatatime reads answers from standard input, so the capture must be a file")
        recording = stack.enter_context(Recording(path, again=loops != 1 or preload))
        outcome = Outcome()
        edits = [*(() if edit is None else (edit,)), *((_padded,) if pad and end.mode is not Mode.IP else ())]
        layer = link_layer or LinkLayer(end.mode)
        selection = _Selection(recording, layer, cut, outcome, edits=edits, limit=limit, flows=flows)
        selection.check()
        if preload:
            recording.preload()
        runtime = stack.enter_context(
            session("replay", reconnect_interval=_RECONNECT_INTERVAL, session_options=session_options)
        )
        port = MemifPort(runtime, end)
        on_ready()
        with Progress() if conduct.quiet or conduct.ask else progress("replay", recording.size * loops) as shown:
            player = _Player(runtime, port, shown, outcome=outcome, drop=drop, hint=hint, conduct=conduct)
            played = False
            with contextlib.suppress(PollCancelled, Disconnected):
                player.wait_for_peer()
                with contextlib.suppress(_TimeIsOver):
                    _play_rounds(player, recording, selection, pace, loops, conduct.report_every == 0)
                played = True
            with contextlib.suppress(PollCancelled, Disconnected):  # a second signal also ends this
                player.drain()
                player.outcome.complete = played
        return player.outcome


def _play_rounds(
    player: _Player, recording: Recording, selection: _Selection, pace: Pace, loops: int, reports: bool
) -> None:
    seconds = 0.0
    outcome = player.outcome

    def count_shortened() -> None:
        outcome.shortened += 1

    try:
        for number in itertools.count() if loops == 0 else range(loops):
            base = number * recording.size
            before = player.outcome.accepted
            try:
                player.play(
                    selection.packets(),
                    pace.clock(count_shortened),
                    lambda: base + recording.offset,  # noqa: B023
                )
            finally:
                seconds += player.outcome.seconds
            if reports:
                player.report(seconds)
            if selection.left == 0:
                return
            nothing = player.outcome.accepted == before  # an endless loop would send nothing for ever
            if player.outcome.broken is not None or (nothing and loops == 0):
                return
    finally:
        player.outcome.seconds = seconds


def _be_punctual() -> None:
    """Reduce the timer slack of this process: by default the kernel may prolong a sleep by 50 us."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1000))


# --- the command line ------------------------------------------------------------------------------------------------


def positive(text: str) -> float:
    """Parse a number above 0 for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not _LEAST <= value <= MANY:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 (from {_LEAST:g} on) and up to {MANY}")
    return value


def _add_arguments(parser: Parser) -> None:
    parser.add_argument("path", metavar="FILE", help="pcap or pcapng; - reads standard input")
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument(
        "-x", "--speed", "--multiplier", type=positive, metavar="X", help="X times as fast as captured; default 1"
    )
    pace.add_argument("-p", "--pps", type=positive, metavar="N", help="packets a second")
    pace.add_argument("-M", "--mbps", type=positive, metavar="N", help="megabits a second, without any framing")
    pace.add_argument("-t", "--topspeed", action="store_true", help="as fast as the peer takes them")
    pace.add_argument(
        "-o",
        "--oneatatime",
        action="store_true",
        help="one packet for each line of standard input, or as many as it says",
    )
    add = parser.add_argument
    add(
        "-l",
        "--loop",
        type=whole(0, MANY),
        default=1,
        metavar="N",
        help="play the file N times, 0: until Ctrl+C; default 1",
    )
    add("-L", "--limit", type=whole(1, MANY), metavar="N", help="send at most N packets, over all rounds")
    add("--duration", type=seconds, default=0.0, metavar="SECONDS", help="stop after SECONDS; default: no limit")
    add(
        "-K",
        "--preload-pcap",
        action="store_true",
        dest="preload",
        help="read the whole file into memory before waiting for the peer",
    )
    add("-q", "--quiet", action="store_true", help="print no progress and no announcements, only the totals")
    add("--flow-stats", action="store_true", help="print a line with the number of flows, and of flows a second")
    add(
        "--max-gap",
        type=seconds,
        default=0.0,
        metavar="SECONDS",
        help="the longest gap between two packets, whatever the captured times say; default: no limit",
    )
    add(
        "--maxsleep",
        type=whole(0, MANY),
        default=0,
        metavar="MS",
        help="like --max-gap, in milliseconds; 0 and default: no limit",
    )
    short = parser.add_mutually_exclusive_group()
    short.add_argument(
        "--pad",
        action="store_true",
        help="fill up with zeros: packets that were cut at capture, and frames shorter than "
        f"the {_SHORTEST_FRAME} bytes of the shortest Ethernet frame",
    )
    short.add_argument(
        "--cut",
        choices=CUT_CHOICES,
        help="packets that were cut at capture: pad fills them up with zeros, send sends the captured part, skip "
        "leaves them out; default: they are left out, and the exit status is 1",
    )
    add(
        "--convert",
        action="store_true",
        help="convert packets that the memif cannot carry: raw IP packets and the cooked packets of tcpdump -i any get "
        "an Ethernet header; in mode ip, Ethernet frames and cooked packets lose their headers",
    )
    add(
        "--src-mac",
        type=checked(own_mac),
        default=OURS,
        metavar="M",
        help="source address of Ethernet headers that --convert makes; default: the sender's if the capture has it, "
        f"else {format_mac(OURS)}",
    )
    add(
        "--dst-mac",
        type=checked(parse_mac),
        default=BROADCAST,
        metavar="M",
        help=f"destination address of Ethernet headers that --convert makes; default {format_mac(BROADCAST)}",
    )
    add("--drop", action="store_true", help="drop packets when the ring is full, instead of waiting for room")
    _add_rewriting(parser)
    add_peer_arguments(parser, "interrupt")


def _add_rewriting(parser: Parser) -> None:
    add = parser.add_argument_group("rewriting, as by tcprewrite; checksums stay right").add_argument
    mac, maps = checked(parse_mac), checked(parse_maps)
    add("--enet-dmac", type=mac, metavar="MAC", help="destination address of all frames")
    add("--enet-smac", type=mac, metavar="MAC", help="source address of all frames")
    add(
        "--enet-subsmac",
        type=checked(parse_mac_pair),
        action="append",
        default=[],
        metavar="OLD,NEW",
        help="replace a MAC address wherever it is source or destination; may be given again",
    )
    add("--enet-vlan", choices=VLAN_MODES, help="add a VLAN tag in front of others, or delete the first one")
    add("--enet-vlan-tag", type=whole(0, 4095), metavar="N", help="number of the VLAN to add")
    add("--enet-vlan-pri", type=whole(0, 7), default=0, metavar="N", help="priority of the tag to add; default 0")
    add(
        "--enet-vlan-cfi",
        type=whole(0, 1),
        default=0,
        metavar="N",
        help="drop eligible bit (CFI) of the tag; default 0",
    )
    add(
        "--enet-vlan-proto",
        choices=tuple(VLAN_PROTOCOLS),
        default=next(iter(VLAN_PROTOCOLS)),
        help="kind of the tag to add; default 802.1q",
    )
    syntax = "OLD:NEW,…, networks like 10.0.0.0/8:192.168.0.0/16 or [2001:db8::/32]:[fd00::/32]"
    add("-S", "--srcipmap", type=maps, default=(), metavar="MAP", help=f"move source addresses of IP and ARP: {syntax}")
    add("-D", "--dstipmap", type=maps, default=(), metavar="MAP", help="move destination addresses, in the same way")
    add("-N", "--pnat", type=maps, default=(), metavar="MAP", help="move both, in the same way")


def _rewriting(arguments: argparse.Namespace) -> Rewriting:
    return Rewriting(
        arguments.enet_dmac,
        arguments.enet_smac,
        tuple(arguments.enet_subsmac),
        arguments.enet_vlan,
        arguments.enet_vlan_tag,
        arguments.enet_vlan_pri,
        arguments.enet_vlan_cfi,
        arguments.enet_vlan_proto,
        arguments.srcipmap + arguments.pnat,
        arguments.dstipmap + arguments.pnat,
    )


def _pace(arguments: argparse.Namespace) -> Pace:
    if arguments.max_gap and arguments.maxsleep:
        raise ConfigError("--max-gap and --maxsleep are the same limit; give one of them")
    paced = arguments.pps or arguments.mbps or arguments.topspeed or arguments.oneatatime
    return Pace(
        0.0 if paced else arguments.speed or 1.0,
        arguments.pps or 0.0,
        arguments.mbps or 0.0,
        arguments.max_gap or arguments.maxsleep / 1000,
    )


def _conduct(arguments: argparse.Namespace) -> Conduct:
    """Return the conduct. A whole number for ``--stats`` means seconds, as for tcpreplay, and no stats socket."""
    report_every = None
    if arguments.stats is not None and re.fullmatch("[0-9]{1,6}", arguments.stats):
        report_every, arguments.stats = float(arguments.stats), None
    return Conduct(arguments.duration, report_every, arguments.oneatatime, arguments.quiet)


def _run(arguments: argparse.Namespace) -> int:
    pace, conduct, rewriting = _pace(arguments), _conduct(arguments), _rewriting(arguments)
    end = memif_endpoint(arguments)
    flows = Flows(end.mode) if arguments.flow_stats else None

    def on_ready() -> None:
        if not conduct.quiet:
            complain(f"memifrt replay: {arguments.path} onto {end}; Ctrl+C ends it")

    outcome = replay(
        arguments.path,
        end,
        pace,
        loops=arguments.loop,
        drop=arguments.drop,
        cut="pad" if arguments.pad else arguments.cut,
        limit=arguments.limit,
        preload=arguments.preload,
        pad=arguments.pad,
        rewriting=rewriting,
        flows=flows,
        conduct=conduct,
        link_layer=LinkLayer(end.mode, arguments.convert, arguments.src_mac, arguments.dst_mac),
        session_options=session_options(arguments),
        on_ready=on_ready,
    )
    print(outcome.line(), flush=True)
    if flows is not None:
        print(flows.line(outcome.seconds), flush=True)
    if outcome.broken is not None:
        raise outcome.broken
    nothing = outcome.dropped and not outcome.accepted  # the peer never offered room
    left_out = outcome.foreign or (outcome.cut and arguments.cut != "skip")
    return 0 if outcome.complete and not outcome.unread and not nothing and not left_out else 1


COMMAND = Command(
    "replay",
    "send the packets of a capture file, with their own timing or at a rate",
    """examples:
  memifrt replay lab.pcap --socket @lab
  memifrt replay lab.pcapng --socket /run/vpp/memif.sock --pps 1000 --loop 10
  memifrt replay lab.pcap.gz --socket @lab -t -L 1000 --enet-dmac 02:fe:00:00:00:02 --pnat 10.0.0.0/8:192.168.0.0/16

--stats with a number instead of a PATH prints the totals every so many seconds, with 0 after each round, as tcpreplay
does.

exit status: 0 if the peer has taken all packets; 1 if not, or if packets were left out because they were cut at capture
or have another link type; 2 on other errors""",
    _add_arguments,
    _run,
)
