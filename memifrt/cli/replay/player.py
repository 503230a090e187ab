"""Send the packets of a replay when they are due.

Owns the waiting: for the peer, for the time of a packet, for room in the ring, and for the user of ``--oneatatime``.
"""

from __future__ import annotations

import math
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from memifrt.capture.pcap import Packet
from memifrt.cli.arguments import MANY
from memifrt.cli.program import complain
from memifrt.cli.progress import Progress
from memifrt.cli.replay.outcome import Outcome
from memifrt.cli.replay.pace import Clock
from memifrt.errors import Disconnected
from memifrt.ports.drain import INTERVAL, Drain
from memifrt.ports.port import MemifPort
from memifrt.runtime import Runtime

#: The most packets to send in one call.
_BURST = 256
#: Seconds until we look for room again: no event says that a peer made room.
_BACKOFF = 0.0001
#: Seconds to wait for the first buffers of a slave. VPP offers them when its interface is up.
_BUFFERS_WAIT = 3.0
_SECOND = 1_000_000_000
#: The longest wait in seconds that is not announced.
_LONG = 10.0
#: The longest answer of a user to ``--oneatatime``, in bytes.
_ANSWER = 4096


class TimeIsOver(Exception):
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


class Player:
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
        #: The packets of the round that is under way.
        self._batches: _Batches | None = None
        port.on_packets = self._discard

    def wait_for_peer(self) -> None:
        while not self._port.can_send:
            self._runtime.poll_event()
        # A slave posts its buffers after it is connected. Wait for them, so that the first packets are not late.
        deadline = time.monotonic() + _BUFFERS_WAIT
        while not self._port.room() and time.monotonic() < deadline:
            self._sleep(_BACKOFF)

    def play(
        self,
        packets: Iterable[Packet],
        clock: Clock | None,
        position: Callable[[], int],
        started: int | None = None,
    ) -> None:
        """Send all packets.

        :param started: when the clock began, by ``time.monotonic_ns()``; None: now.
        :raises PollCancelled: a signal ended the program.
        :raises Disconnected: the peer is gone.
        :raises TimeIsOver: ``--duration`` has passed, or the user ended the input.
        """
        now = time.monotonic_ns()
        start = now if started is None else started
        if self._began is None:
            self._began = time.monotonic()
            self._ends = self._began + (self._conduct.duration or math.inf)
            self._reports = self._began + (self._conduct.report_every or math.inf)
        self._batches = batches = _Batches(clock, start, 1 if self._conduct.ask else _BURST)
        try:
            for batch in batches.of(packets):
                self._send_batch(batch, start)
                if time.monotonic() >= self._shown.due:
                    self._shown.update(f"{self.outcome.accepted} packets", position())
        finally:
            self._batches = None
            self.outcome.seconds = (time.monotonic_ns() - now) / _SECOND

    def _send_batch(self, batch: _Batch, start: int) -> None:
        if self._conduct.ask:
            self._ask()
        if batch.due:
            self._wait_until(start + batch.due)
        self._send(batch.packets)
        self._look_at_clock()

    def wait_for_input(self, fd: int) -> None:
        """Wait until a pipe with packets is readable. Send the packets that have come, and handle events meanwhile.

        :raises PollCancelled: a signal ended the program.
        :raises Disconnected: the peer is gone.
        :raises TimeIsOver: ``--duration`` has passed.
        """
        while not select.select((fd,), (), (), 0)[0]:
            batches = self._batches
            if batches is not None and (batch := batches.take()) is not None:
                self._send_batch(batch, batches.start)
            else:
                self._sleep(3600, fd)

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if now >= self._reports:
            assert self._began is not None
            self._reports = now + (self._conduct.report_every or math.inf)
            self.report(now - self._began)
        if now >= self._ends:
            raise TimeIsOver

    def report(self, seconds: float) -> None:
        """Print the totals so far on standard error."""
        complain(f"memifrt replay: {replace(self.outcome, seconds=seconds).line()}")

    def _ask(self) -> None:
        """Wait until the user allows one more packet: each line of standard input allows one, or as many as it says.

        :raises TimeIsOver: the user ended the input.
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
                    raise TimeIsOver
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
        :raises TimeIsOver: ``--duration`` has passed.
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


class _Batches:
    """Groups packets into batches: each has the packets that are due by the time at which its first one is sent.

    :ivar start: when the clock began, by ``time.monotonic_ns()``.
    """

    def __init__(self, clock: Clock | None, start: int, most: int = _BURST) -> None:
        self.start = start
        self._clock = clock
        self._most = most
        self._together: list[bytes] = []
        self._due = 0

    def of(self, packets: Iterable[Packet]) -> Iterator[_Batch]:
        """Yield the batches of these packets, without what :meth:`take` has taken meanwhile."""
        clock = self._clock
        for packet in packets:
            due = 0 if clock is None else clock(packet)
            # A packet that is due later must not delay those before it.
            if self._together and due and due > max(self._due, time.monotonic_ns() - self.start):
                yield self._batch()
            if not self._together:
                self._due = due
            self._together.append(packet.data)
            if len(self._together) >= self._most:
                yield self._batch()
        if self._together:
            yield self._batch()

    def take(self) -> _Batch | None:
        """Return the packets that wait for others to come with them; None if there are none."""
        return self._batch() if self._together else None

    def _batch(self) -> _Batch:
        batch = _Batch(self._together, self._due)
        self._together = []
        return batch
