"""What must stay flat: the cost of an interface among many, what ten thousand reconnects or two thousand kills leave.

Each figure prints what was measured, and fails if it is not what it must be. ``python -m benchmarks.scale`` takes them
all; name some to take those.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import logging
import random
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass

from benchmarks.nursery import Nursery
from benchmarks.survivor import Broken, Facing, Held, Survivor
from fuzz.leaks import Held as HeldExactly
from fuzz.leaks import resident_bytes
from memifrt import Interface, Runtime
from memifrt.options import RoleName
from tests.lib.peer import native
from tests.lib.support import wait_until

_MIB = 1 << 20
#: How many interfaces in one runtime.
CROWDS = (10, 100, 250, 500)
#: Crowds of each size, the best of which counts: what else the machine does costs time, and never saves any.
_TRIES = 3


# --- interfaces in one runtime --------------------------------------------------------------------------------------


class Crowd:
    """``count`` masters in one runtime, and as many slaves in another, all connected to each other."""

    def __init__(self, count: int, path: str) -> None:
        self.masters, self.slaves = Runtime("crowd", reconnect_interval=0.1), Runtime("peers", reconnect_interval=0.1)
        self.interrupts = self.connected = 0
        started, cpu = time.perf_counter(), time.process_time()
        ends: list[tuple[Runtime, RoleName]] = [(self.masters, "master"), (self.slaves, "slave")]
        for runtime, role in ends:
            for number in range(count):
                runtime.create_interface(
                    socket=path,
                    id=number,
                    role=role,
                    on_connect=self._on_connect,
                    on_interrupt=self._on_interrupt,
                    log2_ring_size=5,
                    buffer_size=256,
                )
        wait_until(lambda: self.connected == 2 * count, self.masters, self.slaves)
        self.connect_seconds = time.perf_counter() - started
        #: CPU time: what an interface costs, whatever else the machine does.
        self.connect_cpu_seconds = time.process_time() - cpu

    def _on_connect(self, interface: Interface) -> None:
        self.connected += 1

    def _on_interrupt(self, interface: Interface, qid: int) -> None:
        self.interrupts += len(interface.rx_queues[qid].recv())

    def ping_all(self) -> float:
        """A packet from every slave to its master and back; seconds."""
        started = time.perf_counter()
        for runtime, other in ((self.slaves, self.masters), (self.masters, self.slaves)):
            wanted = self.interrupts + len(runtime.interfaces)
            for interface in runtime.interfaces:
                assert interface.tx_queues[0].send([b"ping"]) == 1
            while self.interrupts < wanted:
                other.poll_event(1)
        return time.perf_counter() - started

    def seconds_per_poll(self, turns: int = 4000, *, busy: int = 1) -> float:
        """One packet to one of ``busy`` masters, in turn, and the poll that handles it; the fastest tenth.

        With one of them busy this is what the number of interfaces costs; with all of them, also what it costs that
        memory and objects of each are in no cache.
        """
        queues = [interface.tx_queues[0] for interface in self.slaves.interfaces[:busy]]
        taken = []
        for turn in range(turns):
            queues[turn % len(queues)].send([b"ping"])
            started = time.perf_counter()
            handled = self.masters.poll_event(0)
            taken.append(time.perf_counter() - started)
            assert handled == 1
        return statistics.quantiles(taken, n=10)[0]

    def close(self) -> float:
        """Seconds to delete one interface."""
        count = len(self.masters.interfaces)
        started = time.perf_counter()
        self.masters.close()
        self.slaves.close()
        return (time.perf_counter() - started) / (2 * count)


@contextlib.contextmanager
def crowd(count: int) -> Iterator[Crowd]:
    with tempfile.TemporaryDirectory(prefix="memifrt-scale-") as folder:
        made = Crowd(count, f"{folder}/memif.sock")
        try:
            yield made
        finally:
            made.close()


def poll_microseconds(count: int, *, all_busy: bool = False) -> float:
    """What a poll costs that handles one interrupt, with ``count`` connected interfaces; one or all are busy."""
    with crowd(count) as made:
        return 1e6 * made.seconds_per_poll(busy=count if all_busy else 1)


def connect_microseconds(count: int) -> float:
    """What it costs in CPU time, per interface, to create and connect both ends of ``count``."""
    with crowd(count) as made:
        return 1e6 * made.connect_cpu_seconds / count


@dataclass(frozen=True)
class CrowdFigures:
    """Seconds: until all are connected, and the CPU time for each of them; until all are pinged; for a poll with one
    of them busy, or all in turn."""

    connected: float
    connect_cpu: float
    pinged: float
    one_polled: float
    polled_in_turn: float

    @classmethod
    def take(cls, count: int) -> CrowdFigures:
        with crowd(count) as made:
            return cls(
                made.connect_seconds,
                made.connect_cpu_seconds / count,
                made.ping_all(),
                made.seconds_per_poll(),
                made.seconds_per_poll(busy=count),
            )

    @classmethod
    def best(cls, count: int) -> CrowdFigures:
        """The best of some crowds in each figure."""
        return cls(*map(min, zip(*(astuple(cls.take(count)) for _ in range(_TRIES)), strict=True)))


def interfaces(options: argparse.Namespace) -> None:
    """10 to 500 interfaces in one runtime, all connected and pinged."""
    poll_microseconds(10)  # imports and caches
    found = {}
    print(f"{'interfaces':>10} {'connected':>12} {'CPU each':>10} {'all pinged':>12} {'one busy':>12} {'in turn':>12}")
    for count in CROWDS:
        best = found[count] = CrowdFigures.best(count)
        print(
            f"{count:10} {best.connected:10.3f} s {1e6 * best.connect_cpu:7.0f} us {1e3 * best.pinged:9.2f} ms "
            f"{1e6 * best.one_polled:9.2f} us {1e6 * best.polled_in_turn:9.2f} us"
        )
        if best.connected > 10:
            raise Broken(f"{count} interfaces took {best.connected:.1f} s to connect; 10 s at most")
    least, most = found[CROWDS[0]], found[CROWDS[-1]]
    for what, ratio in (
        ("a poll", most.one_polled / least.one_polled),
        ("connecting an interface", most.connect_cpu / least.connect_cpu),
    ):
        print(f"{what} among {CROWDS[-1]} costs {ratio:.2f} times what it costs among {CROWDS[0]}")
        if ratio > 1.5:
            raise Broken(f"{what} is not flat: {ratio:.2f} times as much")


# --- reconnects -----------------------------------------------------------------------------------------------------


def reconnects(options: argparse.Namespace) -> None:
    """One interface of each role in this process, connected again and again, ended from either side."""
    numbers = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="memifrt-scale-") as folder, contextlib.ExitStack() as stack:
        runtimes = [stack.enter_context(Runtime(name, reconnect_interval=60)) for name in ("one", "other")]
        roles: tuple[RoleName, ...] = ("master", "slave")
        ends = [
            runtime.create_interface(socket=f"{folder}/memif.sock", role=role)
            for runtime, role in zip(runtimes, roles, strict=True)
        ]
        started, first, held = time.monotonic(), 0, None
        wait_until(lambda: all(end.connected for end in ends), *runtimes)
        for number in range(1, options.reconnects + 1):
            numbers.choice(ends).disconnect()
            wait_until(lambda: not any(end.connected for end in ends), *runtimes)
            ends[1].request_connection()
            wait_until(lambda: all(end.connected for end in ends), *runtimes)
            for end, other in (ends, reversed(ends)):
                assert end.tx_queues[0].send([b"packet %d" % number]) == 1
                assert other.rx_queues[0].recv() == [b"packet %d" % number]
            if number == 100:
                first, held = resident_bytes(), HeldExactly.now()
        assert held is not None, "a hundred reconnects at least"
        held.check()
        grown = resident_bytes() - first
        seconds = time.monotonic() - started
        print(
            f"{options.reconnects} reconnects in {seconds:.1f} s ({1e3 * seconds / options.reconnects:.2f} ms each): "
            f"the same {len(held.fds)} fds and {held.mappings} mappings, RSS {resident_bytes() / _MIB:.2f} MiB, "
            f"{grown / _MIB:+.2f} MiB since the hundredth (at most 2)"
        )
        if grown > 2 * _MIB:
            raise Broken(f"RSS grew by {grown / _MIB:.2f} MiB")


# --- kill -9 --------------------------------------------------------------------------------------------------------


def kills(options: argparse.Namespace) -> None:
    """kill -9 of a peer at a random point, of its handshake or its traffic, then a new one; both roles."""
    numbers = random.Random(options.seed)
    points: collections.Counter[str] = collections.Counter()
    with Nursery() as nursery, Survivor(nursery, options.seed) as survivor:
        survivor.settle()
        held, started, slowest, warm = Held.now(), time.monotonic(), 0.0, survivor.resident()
        for number in range(options.kills):
            facing = survivor.facings[number % 2]
            if numbers.random() < 0.5:  # a new peer that does not get far
                facing.end_peer(signal.SIGKILL)
                facing.start()
                survivor.run_for(numbers.uniform(0, 0.006))
            else:
                survivor.run_for(numbers.uniform(0, 0.02))
            points[f"{facing.role}: {_point(facing)}"] += 1
            facing.end_peer(signal.SIGKILL)
            before = time.monotonic()
            survivor.settle()
            slowest = max(slowest, time.monotonic() - before)
            survivor.check(held)
            if number == options.kills // 10:
                warm = survivor.resident()
        packets = sum(facing.end.received + facing.score for facing in survivor.facings)
        print(
            f"{options.kills} times kill -9 and recovery in {time.monotonic() - started:.0f} s: "
            f"{packets} packets checked, 0 wrong, the same {held.fds} fds and {held.mappings} mappings after each, "
            f"memory {(survivor.resident() - warm) / _MIB:+.2f} MiB since the first tenth; "
            f"slowest recovery {slowest:.2f} s"
        )
        for point, count in sorted(points.items()):
            print(f"  {count:6} x {point}")


def _point(facing: Facing) -> str:
    """Where the survivor stands as it kills the peer."""
    interface = facing.end.interface
    if interface.connection is None:
        return "not connected yet"
    return "packets pass" if facing.works else f"{interface.state.value}"


# --- half-open connectors -------------------------------------------------------------------------------------------


@dataclass
class HalfOpen:
    """Connectors that say nothing."""

    path: str
    sockets: list[socket.socket]

    @classmethod
    def open(cls, path: str, count: int) -> HalfOpen:
        made = cls(path, [])
        for _ in range(count):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            made.sockets.append(sock)
            sock.connect(native(path))
        return made

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


def half_open(options: argparse.Namespace) -> None:
    """A thousand connectors that say nothing, and a good peer that comes after them."""
    with (
        tempfile.TemporaryDirectory(prefix="memifrt-scale-") as folder,
        Runtime("victim") as runtime,
        Runtime("good peer", reconnect_interval=0.1) as peer,
    ):
        path = f"{folder}/memif.sock"
        master = runtime.create_interface(socket=path, role="master")
        before = HeldExactly.now()
        silent = HalfOpen.open(path, options.half_open)
        with contextlib.closing(silent):
            started = time.monotonic()
            slave = peer.create_interface(socket=path)
            wait_until(lambda: master.connected and slave.connected, runtime, peer)
            seconds = time.monotonic() - started
            # Each silent one has an fd of ours at its own end; the rest is what they cost the victim.
            cost = len(HeldExactly.now().fds) - len(before.fds) - options.half_open
        print(
            f"{options.half_open} half-open connectors: a good peer among them is connected in {seconds:.3f} s "
            f"(2 s at most); they and it hold {cost} fds of the victim and the peer"
        )
        if seconds > 2:
            raise Broken(f"the good peer took {seconds:.2f} s")
        slave.delete()
        wait_until(lambda: len(HeldExactly.now().fds) <= len(before.fds), runtime, peer)


# --- all of them ----------------------------------------------------------------------------------------------------

FIGURES: dict[str, Callable[[argparse.Namespace], None]] = {
    "interfaces": interfaces,
    "reconnects": reconnects,
    "kills": kills,
    "half-open": half_open,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"of {', '.join(FIGURES)}; default: all")
    parser.add_argument("--reconnects", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=2_000)
    parser.add_argument("--half-open", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if unknown := set(options.figures) - set(FIGURES):
        parser.error(f"no such figure: {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    logging.getLogger("memifrt").setLevel(logging.ERROR)  # that a thousand peers went away is what is measured
    status = 0
    for name in options.figures or FIGURES:
        try:
            FIGURES[name](options)
        except Broken as broken:
            print(f"{name}: BROKEN: {broken}")
            status = 1
        sys.stdout.flush()
    return status


if __name__ == "__main__":
    sys.exit(main())
