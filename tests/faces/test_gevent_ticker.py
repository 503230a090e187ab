"""The hub is never held up: a greenlet that ticks every 5 ms keeps its beat whatever memif does.

The machine that runs this may be busy, and a thread that the kernel does not run is late whatever it does. So what
counts is the time between two beats without that which the thread has waited for a CPU, as the kernel tells.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import gevent
import pytest
from gevent import sleep

from memifrt import Interface
from memifrt.gevent import GeventInterface, open_interface, open_runtime
from tests.lib import programs
from tests.lib.support import DEADLINE
from tests.lib.ticker import BEAT, LATE, hold_up, waited_for_cpu

gevent.get_hub()  # its fds are there before any test

BEATS = 80
#: A neighbour on the same host can hold us up in ways that our kernel does not see. So a worse one may be luck, and all
#: of so many may not.
ATTEMPTS = 3


def latest_beat(until: Callable[[], object] = lambda: True) -> float:
    """Tick for some time, and until something has happened; by how much the latest beat was late, in seconds."""
    worst, count, start = 0.0, 0, time.monotonic()
    before, waited = start, waited_for_cpu()
    while count < BEATS or not until():
        sleep(BEAT)
        now, waiting = time.monotonic(), waited_for_cpu()
        worst = max(worst, now - before - BEAT - (waiting - waited))
        before, waited = now, waiting
        count += 1
        assert now - start < DEADLINE
    return worst


def keeps_its_beat(measure: Callable[[], float]) -> None:
    late = [measure()]
    while min(late) > LATE and len(late) < ATTEMPTS:
        late.append(measure())
    assert min(late) <= LATE, f"late by {late} s"


@pytest.fixture(autouse=True)
def hub() -> Iterator[None]:
    """The hub, which goes on once more in the end: it still holds what it was last busy with."""
    yield
    sleep(0.001)


@pytest.fixture
def ends(socket_name: str) -> Iterator[tuple[GeventInterface, GeventInterface]]:
    with (
        open_interface(socket=socket_name, role="master", reconnect=True) as master,
        open_interface(socket=socket_name, role="slave", reconnect=True, reconnect_interval=0.01) as slave,
    ):
        slave.wait_connected(DEADLINE)
        master.wait_connected(DEADLINE)
        yield master, slave


def test_a_hub_that_is_held_up_is_noticed() -> None:
    greenlet = gevent.spawn_later(0.01, hold_up)
    assert latest_beat(greenlet.ready) > LATE


def test_while_memif_is_idle(ends: tuple[GeventInterface, GeventInterface]) -> None:
    waiting = [gevent.spawn(end.recv) for end in ends]
    keeps_its_beat(latest_beat)
    gevent.killall(waiting)


def test_under_a_flood_that_greenlets_receive(ends: tuple[GeventInterface, GeventInterface]) -> None:
    """Who sends and who receives never has to wait."""
    master, slave = ends
    received = 0

    def send() -> None:
        while True:
            master.send([bytes(64)] * 256)

    def receive() -> None:
        nonlocal received
        for burst in slave.bursts():
            received += sum(len(packet) == 64 for packet in burst)

    flooding = [gevent.spawn(send), gevent.spawn(receive)]
    keeps_its_beat(latest_beat)
    gevent.killall(flooding)
    assert received > 10_000


def test_under_a_flood_that_callbacks_receive(socket_name: str) -> None:
    """Twenty pairs that play ball: some event is always ready."""
    packets = 0

    def hit_back(interface: Interface, qid: int) -> None:
        nonlocal packets
        with interface.rx_queues[qid].burst() as burst:
            packets += interface.tx_queues[qid].forward(burst)

    with open_runtime("flood") as runtime:
        ends = [
            runtime.create_interface(socket=socket_name, role=role, id=each, log2_ring_size=8, on_interrupt=hit_back)
            for each in range(20)
            for role in ("master", "slave")
        ]
        with gevent.Timeout(DEADLINE):
            while not all(end.announced for end in ends):
                sleep(0.001)
        for end in ends:
            end.tx_queues[0].send([bytes(64)] * 100)
        keeps_its_beat(latest_beat)
    assert packets > 10_000


def test_while_connecting_to_a_socket_that_nobody_listens_on() -> None:
    with open_runtime(reconnect_interval=0.002) as runtime:
        ends = [open_interface(runtime=runtime, socket="@nobody-listens-here", id=each) for each in range(10)]
        waiting = [gevent.spawn(end.wait_connected) for end in ends]
        keeps_its_beat(latest_beat)
        gevent.killall(waiting)


def test_while_a_peer_is_killed_and_comes_back(socket_path: str) -> None:
    arguments = ("responder", "--role", "master", "--socket", socket_path)

    def measure() -> float:
        connects = slave.interface.connects
        with programs.running(*arguments) as first:
            late = latest_beat(lambda: slave.interface.connects > connects)
            first.kill()
            late = max(late, latest_beat(lambda: not slave.connected))
            with programs.running(*arguments):
                late = max(late, latest_beat(lambda: slave.interface.connects > connects + 1))
        return late

    with open_interface(socket=socket_path, reconnect=True, reconnect_interval=0.01) as slave:
        receiver = gevent.spawn(slave.recv)
        keeps_its_beat(measure)
        receiver.kill()
