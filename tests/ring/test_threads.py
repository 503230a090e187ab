"""Several threads use one ring at once, which they must not: an error or a wrong count comes of it, never a crash.

These tests run on every Python. Without the GIL they show that each call locks its ring: make test-freethreaded.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import sys
import sysconfig
import threading
import time
from collections.abc import Callable

import pytest

from memifrt import Interface, Runtime
from memifrt.errors import ConfigError, Disconnected
from memifrt.options import RxModeName
from memifrt.ring import Burst, load
from tests.lib.patched import needs_threads
from tests.lib.rings import Ends, Lane
from tests.lib.support import DEADLINE, wait_until
from tests.lib.threads import Thread

pytestmark = needs_threads

#: Whether this Python can do without the GIL.
FREE = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
#: Steps of each thread.
OPERATIONS = int(os.environ.get("MEMIFRT_OPERATIONS", "400"))
#: What a misused ring may raise. A violation is not among them: the peer has done nothing wrong.
REFUSED = (ConfigError, ValueError, IndexError, BufferError)
WAIT = DEADLINE + OPERATIONS / 100


def at_once(*tasks: Callable[[], object]) -> None:
    """Run the tasks in threads of their own that start together; raise what one of them raised."""
    failures: list[BaseException] = []
    start = threading.Barrier(len(tasks))

    def run(task: Callable[[], object]) -> None:
        try:
            start.wait(DEADLINE)
            task()
        except BaseException as error:
            failures.append(error)

    threads = [Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
        if failures:
            raise failures[0]
        assert not thread.is_alive()


@pytest.mark.skipif(not FREE, reason="make test-freethreaded runs this")
def test_memifrt_does_not_switch_the_gil_on() -> None:
    is_enabled: Callable[[], bool] = vars(sys)["_is_gil_enabled"]
    load("native")
    assert not is_enabled()


class Misuse:
    """One thread's random calls on rings and bursts that other threads use, too."""

    def __init__(self, ends: Ends, bursts: list[Burst], seed: int) -> None:
        self.ends = ends
        self.bursts = bursts
        self.random = random.Random(seed)
        self.matrix = memoryview(bytearray(4 * 100)).cast("B", (4, 100))
        self.lengths = memoryview(bytearray(16)).cast("I")

    def lane(self) -> Lane:
        return self.random.choice(self.ends.lanes)

    def keep(self, burst: Burst) -> None:
        self.bursts[self.random.randrange(len(self.bursts))] = burst

    def burst(self) -> Burst:
        return self.random.choice(self.bursts)

    def receive(self) -> None:
        rx = self.lane().rx
        self.random.choice(
            [
                lambda: rx.recv(self.random.randint(1, 9)),
                lambda: rx.recv_into(self.matrix, self.lengths),
                lambda: self.keep(rx.burst(self.random.randint(1, 9), self.random.random() < 0.2)),
                lambda: rx.refill(self.random.choice([None, 1, 3])),
                lambda: rx.untake(self.burst()),
                rx.pending,
            ]
        )()

    def send(self) -> None:
        tx = self.lane().tx
        self.lengths[0] = self.lengths[1] = 60
        self.random.choice(
            [
                lambda: tx.send([b"x" * self.random.randint(1, 200) for _ in range(3)]),
                lambda: tx.send(bytes([self.random.randint(0, 255)]) * 40 for _ in range(5)),
                lambda: tx.send_from(self.matrix, self.lengths),
                lambda: self.keep(tx.alloc(self.random.randint(1, 5), self.random.choice([None, 10, 100]))),
                lambda: tx.transmit(self.burst(), self.random.choice([None, 1])),
                lambda: tx.rewind(self.burst(), self.random.randint(0, 3)),
                lambda: tx.forward(self.burst()),
                lambda: tx.enqueue(self.burst(), 0, 1),
                lambda: tx.relay(self.lane().rx, 4),
                tx.free,
            ]
        )()

    def use_burst(self) -> None:
        burst, index = self.burst(), self.random.randint(0, 3)
        call: Callable[[], object] = self.random.choice(
            [
                burst.close,
                lambda: [bytes(view) for view in burst],
                lambda: [bytes(packet) for packet in burst.packets()],
                lambda: burst[index][:5],
                lambda: burst.set_length(index, self.random.randint(1, 64)),
                lambda: burst.advance(index, self.random.choice([-2, 2])),
                lambda: burst.drop(index),
                lambda: burst.set_flags(index, self.random.randint(0, 1)),
                lambda: (burst.length(index), burst.flags(index), burst.slot(index), len(burst), repr(burst)),
                lambda: burst.pack_into(bytearray(200), b"8 bytes.", 50),
                lambda: self.ends.implementation.exchange(burst, index, self.burst(), 0),
                lambda: memoryview(burst),  # type: ignore[arg-type]  # only the burst itself may ask
            ]
        )
        call()

    def look(self) -> None:
        lane = self.lane()
        assert lane.tx.counters.packets >= 0
        assert lane.rx.counters.packets >= 0
        assert 0 <= lane.tx.in_flight <= lane.tx.size

    def run(self) -> None:
        for _ in range(OPERATIONS):
            with contextlib.suppress(*REFUSED):
                self.random.choice([self.receive, self.send, self.use_burst, self.use_burst, self.look])()


@pytest.mark.parametrize("buffers", ["together", "separate"])
def test_misuse_of_rings_by_several_threads_breaks_nothing(buffers: str) -> None:
    ends = Ends(load("native"), log2_size=3, rings=2, separate=buffers == "separate")
    bursts = [ends.s2m.rx.burst(1) for _ in range(6)]
    at_once(*(Misuse(ends, bursts, seed).run for seed in range(4)))
    ends.check_canaries()
    ends.check_each_buffer_is_in_one_slot()


@pytest.mark.parametrize(
    "implementation",
    [
        "native",
        # Its rings share the memoryview of a region, and memoryviews of Python 3.13 are not safe in several threads.
        pytest.param("python", marks=pytest.mark.skipif(FREE, reason="the rings in Python need the GIL")),
    ],
)
def test_threads_on_queues_of_their_own_lose_nothing(implementation: str) -> None:
    ends = Ends(load(implementation), log2_size=5, rings=2)
    count = OPERATIONS
    seen: list[list[int]] = [[] for _ in ends.lanes]

    def send(lane: Lane) -> None:
        number = 0
        while number < count:
            packets = [value.to_bytes(4, "little") for value in range(number, min(count, number + 16))]
            sent = lane.tx.send(packets)
            number += sent
            if not sent:
                time.sleep(0)

    def receive(lane: Lane, into: list[int]) -> None:
        while len(into) < count:
            packets = lane.rx.recv(32)
            into.extend(int.from_bytes(packet, "little") for packet in packets)
            if not packets:
                time.sleep(0)

    tasks: list[Callable[[], object]] = []
    for lane, into in zip(ends.lanes, seen, strict=True):
        tasks += [functools.partial(send, lane), functools.partial(receive, lane, into)]
    at_once(*tasks)
    assert seen == [list(range(count))] * len(seen)
    assert [lane.rx.counters.packets for lane in ends.lanes] == [count] * len(seen)


def use_queues(interface: Interface, peer: Interface, chance: random.Random) -> None:
    """Use the queues of a connection once, at random."""
    rx, tx = interface.rx_queues[0], interface.tx_queues[0]
    chance.choice(
        [
            lambda: peer.tx_queues[0].send([b"p" * 60] * 4),
            lambda: rx.recv(3),
            lambda: tx.send([b"q" * 60]),
            lambda: tx.forward(rx, 4),
            lambda: tx.forward_from(rx, packets=4, timeout=0.001, limit=4),
            lambda: [bytes(view) for view in rx.burst(2)],
            lambda: peer.rx_queues[0].recv(8),
            lambda: (rx.counters, tx.counters, rx.pending(), tx.free(), tx.in_flight(), rx.connected),
            lambda: (interface.details(), rx.refill()),
            rx.drain,
        ]
    )()


def end_a_connection_in_use(runtime: Runtime, slave: Interface, master: Interface, seed: int) -> None:
    """Have four threads use the queues of both ends, and end the connection meanwhile."""
    stop, failures = threading.Event(), list[BaseException]()

    def use(interface: Interface, peer: Interface, chance: random.Random) -> None:
        try:
            while not stop.is_set():
                with contextlib.suppress(*REFUSED, Disconnected):
                    use_queues(interface, peer, chance)
        except BaseException as error:
            failures.append(error)

    received = slave.rx_queues[0]
    pairs = [(slave, master), (master, slave)] * 2
    threads = [Thread(target=use, args=(*pair, random.Random(seed + n))) for n, pair in enumerate(pairs)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: received.counters.packets > 20, runtime)
        assert slave.connected
        slave.close()
        master.close()
    finally:
        stop.set()
        for thread in threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()
    assert failures == []


@pytest.mark.parametrize("rx_mode", ["interrupt", "polling"])
def test_threads_that_share_queues_survive_the_end_of_the_connection(
    socket_name: str, runtime: Runtime, rx_mode: RxModeName
) -> None:
    for attempt in range(max(3, OPERATIONS // 5000)):
        slave = runtime.create_interface(socket=socket_name, rx_mode=rx_mode)
        master = runtime.create_interface(socket=socket_name, role="master", rx_mode=rx_mode)
        connect(runtime, slave, master)
        end_a_connection_in_use(runtime, slave, master, 4 * attempt)


def connect(runtime: Runtime, *interfaces: Interface) -> None:
    wait_until(lambda: all(interface.connected for interface in interfaces), runtime)
