"""Run streams on one or two memif interfaces, and report what came back.

Owns the loop: send what is due, check what came, handle the events of the runtime. Knows nothing of terminals.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from memifrt.errors import ConfigError, Disconnected, PollCancelled
from memifrt.queue import RxQueue, TxQueue
from memifrt.system.original_functions import let_greenlets_run
from memifrt.traffic.latency import merged
from memifrt.traffic.layout import FCS
from memifrt.traffic.prepare import Lane
from memifrt.traffic.rate import MAX_SPEED, Rate
from memifrt.traffic.receiver import LaneCheck, Receiver, make_receiver
from memifrt.traffic.report import Ending, Report, Sample, StreamReport
from memifrt.traffic.sender import Flow, Sender
from memifrt.traffic.stream import Stream, back_name, check_names, check_streams, prepare_streams, title_of
from memifrt.traffic.template import Sizes, parse_sizes
from memifrt.types import Mode

_SECOND = 1_000_000_000
#: Nanoseconds between two looks at the runtime's events, and between two samples.
_EVENTS, _SAMPLES = 1_000_000, 100_000_000
#: The most samples to keep; then every second one is left out, and samples are half as often.
_MANY_SAMPLES = 2000
#: Packets that are not checked are only taken from the ring, so many at a time.
_TAKEN = 512
#: The seconds to wait at the end for the next packet. If packets are not checked, nobody knows how many are to come.
_SETTLE, _UNCHECKED_SETTLE = 0.5, 0.1
#: How often to look at the runtime's events before we believe that none comes: we may have been kept from them.
_QUIET = 3
#: How often to take packets of earlier runs. It is enough for the largest ring, and a peer that never stops ends it.
_DRAINS = 128
#: The most nanoseconds to send longer than the duration, to catch up.
_GRACE = 50_000_000
#: The longest sleep while packets are not checked, in seconds.
_NAP = 0.0005


class TrafficInterface(Protocol):
    """The part of an interface that the generator needs: :class:`memifrt.Interface` has it."""

    @property
    def mode(self) -> Mode: ...

    @property
    def connected(self) -> bool: ...

    @property
    def rx_queues(self) -> tuple[RxQueue, ...]: ...

    @property
    def tx_queues(self) -> tuple[TxQueue, ...]: ...


@dataclass
class _End:
    """One interface, with the flows that are sent on it and the receiver that checks the packets from it."""

    interface: TrafficInterface
    sender: Sender
    receiver: Receiver | None
    #: The packets and bytes that had come on the interface when the run began.
    before: tuple[int, int] = (0, 0)

    def drain(self) -> int:
        """Take what has come; return how many packets or buffers."""
        receiver = self.receiver
        if receiver is not None:
            return sum(map(receiver.poll, self.interface.rx_queues))
        count = 0
        for queue in self.interface.rx_queues:
            if queue.pending():
                with queue.burst(_TAKEN) as burst:
                    count += len(burst)
        return count

    def totals(self) -> tuple[int, int]:
        """Return the packets and bytes that have come on the interface since it was created."""
        counters = [queue.counters for queue in self.interface.rx_queues]
        return sum(each.packets for each in counters), sum(each.bytes for each in counters)

    def taken(self) -> tuple[int, int]:
        """Return the packets and bytes that have come in this run."""
        packets, size = self.totals()
        return packets - self.before[0], size - self.before[1]


class Generator:
    """Sends streams of packets on a memif, and checks what comes back on it, or on a second one.

    ::

        fields = ["ipv4.src=10.0.0.1..10.0.0.254"]
        stream = Stream("Ether()/IP()/UDP()", size=64, fields=fields)
        generator = Generator(interface, stream)
        report = generator.run(duration=1, rate="100kpps")
        assert report.total.lost == 0

    The interfaces must be connected and stay so. While a run lasts nothing else may use their queues, and they should
    have no ``on_interrupt``. Create them with ``rx_mode="polling"``, so that their peers do not kick for each burst.
    Packets are prepared when the generator is made. Each run goes on where the last one has ended: with the next packet
    of each stream, and the next values of its fields.

    :param interfaces: a connected interface, or two: what is sent on one is then expected on the other.
    :param streams: what to send.
    :param check: whether packets get a mark in their last 18 bytes, and what comes back is checked. Otherwise received
        packets are counted only.
    :param queues: how many transmit queues to use; None: all that the peer has.
    :param link_speed: the speed in bits a second that rates in per cent are of.
    :param poll: handles the events of the runtime if no other thread does: ``lambda: runtime.poll_event(0)``. It is
        called about every millisecond.
    :raises ConfigError: a stream is wrong, or an interface has no peer.
    """

    def __init__(
        self,
        interfaces: TrafficInterface | Sequence[TrafficInterface],
        streams: Stream | Sequence[Stream],
        *,
        check: bool = True,
        queues: int | None = None,
        link_speed: float | None = None,
        poll: Callable[[], object] | None = None,
    ) -> None:
        self._interfaces = tuple(interfaces) if isinstance(interfaces, Sequence) else (interfaces,)
        self._streams = (streams,) if isinstance(streams, Stream) else tuple(streams)
        self._check = check
        self._queues = queues
        self._link_speed = link_speed
        self._poll = poll
        self._run = int.from_bytes(os.urandom(2), "little")
        self._prepared: dict[tuple[int, ...], list[_End]] = {}
        self._check_arguments()
        self._ends = self._prepare(None)

    def _check_arguments(self) -> None:
        if not 1 <= len(self._interfaces) <= 2:
            raise ConfigError(f"a generator has 1 or 2 interfaces, not {len(self._interfaces)}")
        if not self._streams:
            raise ConfigError("there is no stream; a generator needs at least one")
        check_names(self._streams)
        if self._link_speed is not None and not 0 < self._link_speed <= MAX_SPEED:
            raise ConfigError(f"link_speed is {self._link_speed!r}; it must be above 0 and up to {MAX_SPEED:g} bit/s")
        for interface in self._interfaces:
            if not interface.connected:
                raise ConfigError(f"{interface} has no peer; wait until it is connected")
        if self._queues is not None and self._queues < 1:
            raise ConfigError(f"queues is {self._queues}; it must be at least 1")

    # --- preparing ----------------------------------------------------------------------------------------------

    def _prepare(self, size: Sizes) -> list[_End]:
        """Return the ends with packets of this size; None: of the streams' own sizes."""
        sizes = parse_sizes(size)
        found = self._prepared.get(sizes)
        if found is not None:
            return found
        ends = self._make_ends([stream.with_(size=sizes) if sizes else stream for stream in self._streams])
        self._prepared[sizes] = ends
        return ends

    def check_size(self, size: Sizes) -> None:
        """Check that the packets of all streams can have a size, without preparing them.

        :raises ConfigError: a packet is longer, or has no room for the mark.
        """
        check_streams(
            [stream.with_(size=parse_sizes(size)) for stream in self._streams],
            [interface.mode for interface in self._interfaces],
            check=self._check,
        )

    def _make_ends(self, streams: Sequence[Stream]) -> list[_End]:
        flows: list[list[Flow]] = [[] for _ in self._interfaces]
        checks: list[dict[int, LaneCheck]] = [{} for _ in self._interfaces]
        number = 0
        width = 0
        queues = [len(interface.tx_queues) if self._queues is None else self._queues for interface in self._interfaces]
        for interface, count in zip(self._interfaces, queues, strict=True):
            if not 1 <= count <= len(interface.tx_queues):
                raise ConfigError(f"queues is {count}, and {interface} has {len(interface.tx_queues)} transmit queues")
        modes = [interface.mode for interface in self._interfaces]
        for made in prepare_streams(streams, modes, check=self._check, queues=queues):
            stream, count, lanes = made.stream, queues[made.index], []
            for queue in range(count):
                try:
                    lane = Lane(
                        made.templates,
                        made.varied,
                        number=number if self._check else None,
                        start=queue,
                        stride=count,
                    )
                except ConfigError as error:
                    raise ConfigError(f"{title_of(stream.name)}: {error}") from error
                lanes.append(lane)
                if self._check:
                    checks[-1 - made.index][number] = LaneCheck(made.templates, made.varied)
                number += 1
                width = max(width, lane.width)
            name = stream.name if made.index == 0 else back_name(stream.name)
            flows[made.index].append(Flow(name, stream, lanes))
        return [
            _End(interface, Sender(flows[index]), make_receiver(width, checks[index]) if self._check else None)
            for index, interface in enumerate(self._interfaces)
        ]

    # --- running ------------------------------------------------------------------------------------------------

    def send_trial(self, rate: float, duration: float, size: Sizes = None) -> Report:
        """Send for some seconds at a rate, as a search for a device's throughput does, and return the report.

        No connection is made, and packets of a size are prepared once, so a trial costs little besides its time.

        :param rate: packets a second in each direction, shared by the streams by weight; their own rates do not count.
        :param duration: seconds.
        :param size: the size of the packets, as :class:`Stream` has it; None: the streams' own sizes.
        :raises ConfigError: an argument is wrong.
        """
        return self.run(duration=duration, rate=rate, size=size, own_rates=False)

    def run(
        self,
        *,
        duration: float | None = None,
        rate: Rate | str | float = "max",
        count: int | None = None,
        size: Sizes = None,
        own_rates: bool = True,
        settle: float | None = None,
        on_sample: Callable[[Report], object] | None = None,
        sample_interval: float | None = None,
    ) -> Report:
        """Send, check what comes back, and return the report.

        :param duration: seconds to send; None: until the count is sent or the program is interrupted.
        :param rate: the rate of all streams together that have none of their own, in each direction.
        :param count: the packets of all streams together, in each direction.
        :param size: another size of the packets of all streams; None: their own.
        :param own_rates: False: streams with rates of their own share ``rate``, too.
        :param settle: the most seconds to wait for packets that are still on their way, since the last one came, and
            1 second and ten times as long in all; None: 0.5, or 0.1 if packets are not checked.
        :param on_sample: called with a report of what is known so far, about every ``sample_interval`` seconds. In it,
            packets that are still on their way count as lost.
        :param sample_interval: seconds between two samples; None: 0.1.
        :returns: the report. If the peer leaves, or :class:`~memifrt.PollCancelled` comes out of ``poll``, it has
            what is known so far, and says so in :attr:`Report.ended`.
        :raises ConfigError: an argument is wrong.
        """
        if duration is not None and not 0 < duration <= 1e7:
            raise ConfigError(f"duration is {duration!r}; it must be above 0 and up to 1e7 seconds")
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise ConfigError(f"count is {count!r}; it must be a whole number from 1 on")
        if settle is None:
            settle = _SETTLE if self._check else _UNCHECKED_SETTLE
        if not 0 <= settle <= 3600:
            raise ConfigError(f"settle is {settle!r}; it must be from 0 to 3600 seconds")
        if sample_interval is not None and not 0 < sample_interval <= 1e7:
            raise ConfigError(f"sample_interval is {sample_interval!r}; it must be above 0 and up to 1e7 seconds")
        self._ends = self._prepare(size)
        parsed = Rate.of(rate)
        self._run = (self._run + 1) & 0xFFFF
        for end in self._ends:
            self._begin(end, parsed, duration, count, own_rates)
        return _Run(self._ends, self._poll, duration, settle, on_sample, sample_interval, self._check).report()

    def _begin(self, end: _End, rate: Rate, duration: float | None, count: int | None, own_rates: bool) -> None:
        flows = end.sender.flows
        if end.receiver is not None:
            end.receiver.begin(self._run)
        shared = [flow for flow in flows if not (own_rates and flow.stream.own_rate)]
        weights = sum(flow.stream.weight for flow in shared)
        size = sum(flow.stream.weight * flow.mean_size for flow in shared) / weights if shared else 0.0
        mode = end.interface.mode
        counts = _shares(count, [flow.stream.weight for flow in flows])
        for flow, share in zip(flows, counts, strict=True):
            stream = flow.stream
            own = stream.own_rate if own_rates else None
            if own is not None:
                pps = own.pps(flow.mean_size, mode, self._link_speed)
            else:
                pps = rate.pps(size, mode, self._link_speed) * stream.weight / weights
            limits = [limit for limit in (stream.count, share) if limit is not None]
            due = math.inf if duration is None or pps == math.inf else max(round(pps * duration), 1)
            limit = min([*limits, due])
            flow.begin(self._run, pps, stream.burst, None if limit == math.inf else int(limit))
            flow.timed = limit == due != math.inf
        end.sender.begin()


def _shares(count: int | None, weights: Sequence[float]) -> list[int | None]:
    """Share a number of packets by weights, so that the shares add up to it."""
    if count is None:
        return [None] * len(weights)
    total = sum(weights)
    ends = [round(count * sum(weights[: index + 1]) / total) for index in range(len(weights))]
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]


class _Run:
    """One run: the loop, its samples and its report."""

    def __init__(
        self,
        ends: Sequence[_End],
        poll: Callable[[], object] | None,
        duration: float | None,
        settle: float,
        on_sample: Callable[[Report], object] | None,
        sample_interval: float | None,
        check: bool,
    ) -> None:
        self._ends = ends
        self._poll = poll
        self._duration = None if duration is None else int(duration * _SECOND)
        self._settle = int(settle * _SECOND)
        self._on_sample = on_sample
        self._interval = _SAMPLES if sample_interval is None else max(int(sample_interval * _SECOND), 1)
        self._check = check
        self._ended: Ending = "complete"
        self._error = ""
        self._samples: list[Sample] = []
        self._start = time.monotonic_ns()
        #: Nanoseconds for which packets were sent, and whether that time is over.
        self._sending = 0
        self._sent_all = False
        self._next_events = self._next_sample = 0

    def report(self) -> Report:
        """Run to the end, and return the report."""
        for end in self._ends:
            for _ in range(_DRAINS):  # packets of earlier runs must not take the place of ours
                if not end.drain():
                    break
            if end.receiver is not None:
                end.receiver.finish()
                end.receiver.foreign = 0
            end.before = end.totals()
        self._start = time.monotonic_ns()
        try:
            try:
                self._send()
            finally:
                self._sent_all = True
                self._sending = time.monotonic_ns() - self._start
                if self._duration is not None:
                    self._sending = min(self._sending, self._duration)
            self._wait_for_the_rest()
        except PollCancelled:
            self._ended = "interrupted"
            self._finish_interrupted()
        except Disconnected as error:
            self._ended = "disconnected"
            self._error = str(error)
        self._last_sample(time.monotonic_ns() - self._start)
        return self._made()

    def _send(self) -> None:
        ends = self._ends
        duration = math.inf if self._duration is None else self._duration
        busy = self._check  # sleeping would make latencies longer
        turns = [(end.sender.turn, end.interface.tx_queues) for end in ends if end.sender.flows]
        drains = [end.drain for end in ends]
        # A rate is packets over time: the time of the last packet belongs to it.
        ended_by_count = not any(flow.timed for end in ends for flow in end.sender.flows)
        while True:
            elapsed = time.monotonic_ns() - self._start
            if elapsed >= duration:
                self._catch_up()
                return
            sent = received = 0
            for turn, queues in turns:
                sent += turn(queues, elapsed)
            if not sent and ended_by_count and all(end.sender.done for end in ends):
                return
            for drain in drains:
                received += drain()
            if elapsed >= self._next_events:
                self._look(elapsed)
            if sent or received:
                continue
            self._finish()
            if busy:
                os.sched_yield()
            else:
                self._nap(elapsed)

    def _turn(self, elapsed: int) -> int:
        """Send what is due; return how many packets were sent."""
        return sum(end.sender.turn(end.interface.tx_queues, elapsed) for end in self._ends if end.sender.flows)

    def _catch_up(self) -> None:
        """Send what was due within the duration: the system may have kept us from the last packets.

        End this when a ring is full. Otherwise a device that is too slow would get more time for its packets.
        """
        assert self._duration is not None
        limit = self._start + self._duration + min(self._duration // 20, _GRACE)
        if any(flow.pacer.is_max for end in self._ends for flow in end.sender.flows):
            return
        full = self._full_rings()
        while time.monotonic_ns() < limit and self._turn(self._duration) and self._full_rings() == full:
            for end in self._ends:
                end.drain()

    def _full_rings(self) -> int:
        """Return how many calls have found too little room in a ring."""
        return sum(queue.counters.ring_full for end in self._ends for queue in end.interface.tx_queues)

    def _nap(self, elapsed: int) -> None:
        due = min(end.sender.next_due() for end in self._ends)
        wait = min((due - elapsed) / _SECOND - 0.0001, _NAP)
        if wait > 0:
            time.sleep(wait)
        else:
            os.sched_yield()

    def _wait_for_the_rest(self) -> None:
        """Wait until all packets have come back, or none has come for the time to settle."""
        last = begin = time.monotonic_ns()
        settle, quiet = self._settle, 0
        known = -1
        while True:
            progress = sum(end.drain() for end in self._ends)
            now = time.monotonic_ns()
            self._finish()
            # Packets of others do not let us wait for ours.
            received = self._received()[0]
            if received != known:
                last, quiet, known = now, 0, received
            if self._check and self._has_all():
                return
            if (quiet >= _QUIET and now - last >= settle) or now - begin >= 10 * settle + _SECOND:
                return
            if now - self._start >= self._next_events:
                self._look(now - self._start)
                quiet += 1
            if not progress:
                os.sched_yield()

    def _has_all(self) -> bool:
        """Return whether all sent packets have come back, and no copy of them is to be expected."""
        sent = sum(flow.sent for end in self._ends for flow in end.sender.flows)
        tallies = [lane.tally for end in self._ends if end.receiver for lane in end.receiver.lanes.values()]
        arrived = sum(tally.arrived for tally in tallies)
        return arrived >= sent and not any(tally.duplicated for tally in tallies)

    def _finish_interrupted(self) -> None:
        """Wait for packets that are on their way, until the program is interrupted again."""
        try:
            self._wait_for_the_rest()
        except PollCancelled:
            pass
        except Disconnected as error:
            self._error = str(error)

    def _look(self, elapsed: int) -> None:
        """Handle the events of the runtime, and take a sample if it is time."""
        self._next_events = elapsed + _EVENTS
        if self._poll is not None:
            self._poll()
        let_greenlets_run()
        for end in self._ends:
            if not end.interface.connected:
                raise Disconnected(f"{end.interface}: the peer is gone")
        if elapsed >= self._next_sample:
            self._next_sample = elapsed + self._interval
            self._sample(elapsed)
            if self._on_sample is not None:
                if not self._sent_all:
                    self._sending = elapsed
                self._on_sample(self._made())

    def _finish(self) -> None:
        """Check the packets that were taken."""
        for end in self._ends:
            if end.receiver is not None:
                end.receiver.finish()

    def _sample(self, elapsed: int) -> None:
        self._finish()
        if self._samples and elapsed <= self._samples[-1].seconds * _SECOND:
            return
        flows = [flow for end in self._ends for flow in end.sender.flows]
        self._samples.append(
            Sample(
                elapsed / _SECOND,
                sum(flow.sent for flow in flows),
                sum(flow.sent_bytes for flow in flows),
                *self._received(),
            )
        )
        if len(self._samples) > _MANY_SAMPLES:
            del self._samples[1::2]
            self._interval *= 2

    def _last_sample(self, elapsed: int) -> None:
        """Take a sample instead of one that is so close that the rate between both would mean nothing."""
        if len(self._samples) > 1 and elapsed - self._samples[-1].seconds * _SECOND < self._interval / 2:
            del self._samples[-1]
        self._sample(elapsed)

    def _received(self) -> tuple[int, int]:
        if not self._check:
            taken = [end.taken() for end in self._ends]
            return sum(packets for packets, _ in taken), sum(size for _, size in taken)
        tallies = [lane.tally for end in self._ends if end.receiver for lane in end.receiver.lanes.values()]
        return sum(tally.received for tally in tallies), sum(tally.received_bytes for tally in tallies)

    def _made(self) -> Report:
        received, received_bytes = self._received()
        streams: dict[str, StreamReport] = {}
        for index, end in enumerate(self._ends):
            facing = self._ends[-1 - index].receiver
            for flow in end.sender.flows:
                fcs = 0 if end.interface.mode is Mode.IP else FCS
                streams[flow.name] = self._stream(flow, facing, fcs)
        foreign = sum(end.receiver.foreign for end in self._ends if end.receiver)
        return Report(
            self._sending / _SECOND,
            streams,
            self._check,
            received + foreign,
            received_bytes,
            foreign,
            self._ended,
            tuple(self._samples),
            self._error,
        )

    def _stream(self, flow: Flow, receiver: Receiver | None, fcs: int) -> StreamReport:
        offered = flow.offered(self._sending)
        if receiver is None:
            return StreamReport(flow.name, offered, flow.sent, flow.sent_bytes, fcs=fcs)
        lanes = [receiver.lanes[lane.number] for lane in flow.lanes if lane.number is not None]
        tallies = [lane.tally for lane in lanes]
        return StreamReport(
            flow.name,
            offered,
            flow.sent,
            flow.sent_bytes,
            True,
            sum(tally.received for tally in tallies),
            sum(tally.received_bytes for tally in tallies),
            sum(tally.duplicated for tally in tallies),
            sum(tally.reordered for tally in tallies),
            sum(tally.corrupted for tally in tallies),
            merged(lane.recorder.latency() for lane in lanes if lane.recorder is not None),
            fcs,
            sum(tally.unidentified for tally in tallies),
            sum(tally.intact for tally in tallies),
        )
