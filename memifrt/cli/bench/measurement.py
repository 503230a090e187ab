"""One end of a measurement: an interface, turns on its queues, and the rates."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memifrt.cli.bench import limits
from memifrt.cli.bench.cores import core_warnings
from memifrt.cli.bench.options import SHORTEST_INTERVAL, Interval, Options, Result
from memifrt.cli.bench.turns import TURNS_OF, Gen, RoundTrips, Turn
from memifrt.cli.program import complain
from memifrt.cli.run_in_loop import Waiter, run
from memifrt.errors import ConfigError, Disconnected, PollCancelled
from memifrt.interface import Interface
from memifrt.options import parse_rx_mode
from memifrt.ring import __impl__
from memifrt.types import QueueCounters, RxMode

#: About how many points a plot has if no interval is given.
_POINTS = 200


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters at one moment; ``time`` and ``cpu`` in seconds."""

    time: float = 0.0
    cpu: float = 0.0
    packets: int = 0
    calls: int = 0
    bytes: int = 0
    lost: int = 0


class Meter:
    """Takes samples of time, CPU time, packets and calls. The rates are measured from the first to the last packet."""

    def __init__(
        self, live: bool, interval: float = 0.0, on_interval: Callable[[Interval], object] | None = None
    ) -> None:
        self.started = False
        #: The figures of each ``interval`` seconds; ``on_interval`` is called with each.
        self.intervals: list[Interval] = []
        self._interval = interval
        self._on_interval = on_interval
        self._counted = Sample()
        #: The last sample without packets.
        self._before = Sample(time.monotonic(), time.process_time())
        self._first = self._last = self._shown = Sample()
        self._live = live

    def sample(self, packets: int, calls: int = 0, counted_bytes: int = 0, lost: int = 0) -> float:
        """Take a sample; return the seconds since the first packet."""
        now = Sample(time.monotonic(), time.process_time(), packets, calls, counted_bytes, lost)
        if not self.started:
            if packets:
                self.started = True
                self._first = self._last = self._shown = self._counted = now
            else:
                self._before = now
            return 0.0
        if packets > self._last.packets:
            self._last = now
        if self._interval and now.time - self._counted.time >= self._interval:
            self._end_interval(now)
        if self._live and now.time - self._shown.time >= 1.0:
            rate = (packets - self._shown.packets) / (now.time - self._shown.time)
            print(f"\r{rate / 1e6:9.3f} Mpps", end="", file=sys.stderr, flush=True)
            self._shown = now
        return now.time - self._first.time

    def _end_interval(self, now: Sample) -> None:
        before, self._counted = self._counted, now
        took, start = now.time - before.time, self._first.time
        interval = Interval(
            before.time - start,
            now.time - start,
            (now.packets - before.packets) / took,
            8 * (now.bytes - before.bytes) / took,
            now.lost - before.lost,
        )
        self.intervals.append(interval)
        if self._on_interval is not None:
            self._on_interval(interval)

    def close(self) -> None:
        if self._live:
            print("\r" + " " * 20 + "\r", end="", file=sys.stderr, flush=True)

    def fill(self, result: Result) -> None:
        first, last = self._first, self._last
        if first.packets == last.packets:  # all packets came between two samples
            first = self._before
        packets = last.packets - first.packets
        if packets:
            result.seconds = last.time - first.time
            result.pps = packets / result.seconds
            result.cpu_ns = (last.cpu - first.cpu) / packets * 1e9
            result.calls_ps = (last.calls - first.calls) / result.seconds


class Worker(threading.Thread):
    """Turns on one pair of queues, until ``stop`` is set or the peer is gone."""

    def __init__(self, turn: Turn, cpu: int | None, stop: bytearray) -> None:
        super().__init__(name="bench", daemon=True)
        self._turn = turn
        self._cpu = cpu
        self._until = stop
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            if self._cpu is not None:
                os.sched_setaffinity(0, {self._cpu})
            self._turn.run_until(self._until)
        except Disconnected:
            pass
        except BaseException as error:
            self._error = error

    def check(self) -> None:
        """:raises BaseException: the exception that ended the thread."""
        if self._error is not None:
            raise self._error


class Bench:
    """One end of a measurement: an interface, and turns on its queues until the time is over or the peer is gone."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._turns: list[Turn] = []
        self._gens: list[Gen] = []
        self._interface: Interface | None = None
        self._trips: RoundTrips | None = None
        #: Called with the figures of each interval.
        self.on_interval: Callable[[Interval], object] | None = None
        self._cores_checked = False

    def run(self, *, live: bool = False) -> Result:
        options = self.options
        if options.cpu:
            os.sched_setaffinity(0, options.cpu)
        meter = self._meter(live)

        async def main(waiter: Waiter) -> Result:
            interface = self._interface = waiter.runtime.create_interface(
                socket=options.socket,
                id=options.id,
                role=options.role,
                num_s2m_rings=options.num_s2m_rings,
                num_m2s_rings=options.num_m2s_rings,
                ring_size=options.ring_size,
                buffer_size=options.buffer_size,
                rx_mode=options.rx_mode,
                on_connect=self._on_connect,
                on_interrupt=None if options.has_threads else self._on_interrupt,
            )
            try:
                while not interface.connected:
                    await waiter.wait(None)
                if options.mode == "rr":
                    await self._rr(waiter, interface, meter)
                elif options.has_threads:
                    await self._watch_threads(waiter, interface, meter)
                else:
                    await self._loop(waiter, interface, meter)
            except (Disconnected, PollCancelled):  # Ctrl+C, or the peer is gone: report what was measured so far
                pass
            finally:
                self._sample(meter)
                meter.close()
            return self._result(meter)

        return run("bench", main, loop=options.loop, reconnect_interval=0.1, session_options=options.session_options)

    def _meter(self, live: bool) -> Meter:
        options = self.options
        if not options.plot or options.interval:
            return Meter(live and not options.interval, options.interval, self.on_interval)
        # A plot needs points, but the user has asked for no lines.
        return Meter(live, max(SHORTEST_INTERVAL, options.seconds / _POINTS))

    def _sample(self, meter: Meter) -> float:
        """Take a sample of all counters; return the seconds since the first packet."""
        if meter.started and not self._cores_checked and self._interface is not None:
            self._cores_checked = True
            for warning in core_warnings(self.options, self._interface, len(self._turns)):
                complain(f"memifrt bench: {warning}")
        counted = self._counted()
        return meter.sample(counted.packets, self._calls(), counted.bytes, self._lost())

    def _lost(self) -> int:
        return sum(turn.dropped for turn in self._turns) + (self._trips.dropped if self._trips else 0)

    @property
    def trips(self) -> Sequence[int]:
        """The round trips of rr so far, in nanoseconds."""
        return self._trips.took if self._trips else ()

    def _on_connect(self, interface: Interface) -> None:
        rx, tx = interface.rx_queues, interface.tx_queues
        if not rx or not tx:
            raise ConfigError(f"{interface}: the peer gave {len(rx)} and {len(tx)} queues; one each way is needed")
        options = self.options
        if options.has_threads and len(rx) != len(tx):
            raise ConfigError(
                f"{interface}: the peer gave {len(rx)} and {len(tx)} queues; threads need as many each way"
            )
        if options.mode == "rr":
            self._trips = RoundTrips(options, rx[0], tx[0])
            return
        make = TURNS_OF[options.mode, options.check if options.mode == "gen" else options.api]
        # A peer may offer fewer queues, and different numbers in the two directions.
        pairs = (min if options.mode == "gen" else max)(len(rx), len(tx))
        self._turns = [make(options, rx[qid % len(rx)], tx[qid % len(tx)]) for qid in range(pairs)]
        self._gens = [turn for turn in self._turns if isinstance(turn, Gen)]

    def _on_interrupt(self, interface: Interface, qid: int) -> None:
        if self._trips is not None:
            self._trips()
        elif self.options.mode in ("sink", "echo"):
            turn = self._turns[qid]
            for _ in range(limits.AT_ONCE):
                turn()
                turn.calls += 1
                if not turn.rx.pending():
                    break

    def _counted(self) -> QueueCounters:
        """Return the counters behind ``Result.packets``. Queues count packets, not buffers."""
        if self.options.mode == "rr":
            trips = 0 if self._trips is None else len(self._trips.took)
            return QueueCounters(trips, trips * self.options.size)
        return sum_of(self._interface, sends=self.options.mode in ("source", "echo"))

    def _calls(self) -> int:
        return sum(turn.calls for turn in self._turns)

    def _result(self, meter: Meter) -> Result:
        result = Result(self.options.mode, __impl__)
        meter.fill(result)
        counted = self._counted()
        result.corrupted = sum(turn.corrupted for turn in self._turns)
        result.packets = counted.packets - result.corrupted
        result.bytes = counted.bytes
        result.sent = sum_of(self._interface, sends=True).packets
        result.dropped = self._lost()
        # The packets that an echo could not send on are not in its sent packets; those that gen and rr lost are.
        tried = result.sent + (result.dropped if self.options.mode == "echo" else 0)
        result.loss = 100 * result.dropped / tried if tried else 0.0
        result.intervals = meter.intervals
        ranked = sorted(self._trips.took) if self._trips else []
        if ranked:
            result.rtt_us = {
                name: ranked[min(len(ranked) - 1, int(share * len(ranked)))] / 1e3
                for name, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))
            }
        return result

    # --- loops --------------------------------------------------------------------------------------------------

    async def _loop(self, waiter: Waiter, interface: Interface, meter: Meter) -> None:
        """Repeat turns, and look at the clock and the control channel now and then."""
        polling = parse_rx_mode(self.options.rx_mode) is RxMode.POLLING or self.options.mode in ("source", "gen")
        rounds = range(max(1, limits.TURNS // len(self._turns)))
        seen, last_progress, next_sample = 0, 0.0, 0.0
        gives_up = self._gives_up()
        while interface.connected:
            if polling:
                self._repeat(rounds)
            else:
                await waiter.run_for(limits.SAMPLE)
            now = time.monotonic()
            if now < next_sample and meter.started:
                continue
            packets = self._counted().packets
            if self._sample(meter) >= self.options.seconds > 0 or (not meter.started and now >= gives_up):
                await self._drain(waiter, interface)
                return
            if now >= next_sample:
                next_sample = now + limits.SAMPLE
                if packets > seen:
                    seen, last_progress = packets, now
                elif meter.started and now - last_progress > limits.LOST:
                    last_progress = now
                    for gen in self._gens:
                        gen.write_off()
                if polling:
                    await waiter.wait(0)

    def _repeat(self, rounds: range) -> None:
        """Do turns on every queue. Several queues take turns one by one."""
        if len(self._turns) == 1:
            self._turns[0].repeat()
            return
        for _ in rounds:
            for turn in self._turns:
                turn()
        for turn in self._turns:
            turn.calls += len(rounds)

    async def _watch_threads(self, waiter: Waiter, interface: Interface, meter: Meter) -> None:
        """Let a thread for each queue do the turns, and look at the clock and the control channel."""
        stop = bytearray(1)
        cpus = self.options.cpu
        workers = [
            Worker(turn, cpus[number % len(cpus)] if cpus else None, stop) for number, turn in enumerate(self._turns)
        ]
        for worker in workers:
            worker.start()
        try:
            while interface.connected:
                await waiter.run_for(limits.SAMPLE)
                for worker in workers:
                    worker.check()
                if self._sample(meter) >= self.options.seconds > 0:
                    return
        finally:
            stop[0] = 1
            for worker in workers:
                worker.join()

    def _gives_up(self) -> float:
        """Return the time at which to stop without a packet. Only the modes that send first have such a limit."""
        waits = self.options.mode not in ("gen", "rr") or not self.options.seconds
        return float("inf") if waits else time.monotonic() + limits.PATIENCE

    async def _drain(self, waiter: Waiter, interface: Interface) -> None:
        """Receive the packets in flight, and then count the missing ones as lost."""
        for gen in self._gens:
            gen.stop()
        deadline = time.monotonic() + limits.LINGER
        while interface.connected and time.monotonic() < deadline and not all(gen.is_complete() for gen in self._gens):
            for gen in self._gens:
                gen()
            await waiter.wait(0)
        for gen in self._gens:
            gen.write_off()

    async def _rr(self, waiter: Waiter, interface: Interface, meter: Meter) -> None:
        """Make round trips. The reply is taken in the callback, or by polling."""
        trips = self._trips
        assert trips is not None
        polling = parse_rx_mode(self.options.rx_mode) is RxMode.POLLING
        gives_up = self._gives_up()
        next_sample = time.monotonic()
        while interface.connected and (trips.under_way or not trips.stopping):
            if not trips.under_way and not trips.start():  # the slave may not have posted its buffers yet
                await waiter.run_for(0.001)
            elif polling:
                trips.look_until(next_sample)
                await waiter.wait(0)
            else:
                await waiter.run_for(limits.SAMPLE)
            now = time.monotonic()
            if now >= next_sample:
                next_sample = now + limits.SAMPLE
                trips.write_off()
                elapsed = self._sample(meter)
                if elapsed >= self.options.seconds > 0 or (not meter.started and now >= gives_up):
                    trips.stopping = True


def sum_of(interface: Interface | None, *, sends: bool) -> QueueCounters:
    queues = () if interface is None else interface.tx_queues if sends else interface.rx_queues
    return sum((queue.counters for queue in queues), QueueCounters())
