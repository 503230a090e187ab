"""A bridge between two memifs: threads forward while both ends have a peer, and the main thread does without."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from memifrt import ErrorCode, Interface, MemifError, Runtime, RxMode
from memifrt.options import InterfaceConfig
from memifrt.ports.endpoint import MemifEndpoint
from memifrt.ports.forward_threads import are_useful
from memifrt.ports.forwarding import Direction, Pump, direction
from memifrt.ports.port import MemifPort
from memifrt.queue import TxQueue
from memifrt.types import Role
from tests.lib.support import DEADLINE, wait_until
from tests.lib.threads import Thread


class Bridge:
    """A bridge in a thread, and the peers of its ends in the test's thread."""

    def __init__(self, path: str, rx_mode: RxMode) -> None:
        self.path = path
        self.runtime = Runtime("bridge")
        self.ports = [
            MemifPort(self.runtime, MemifEndpoint(path, InterfaceConfig(id=number, role=Role.MASTER, rx_mode=rx_mode)))
            for number in (0, 1)
        ]
        a, b = self.ports
        self.ways: list[Direction] = [direction(a, b), direction(b, a)]
        self._pump = Pump(self.runtime, self.ways, polling=rx_mode is RxMode.POLLING)
        self.failure: MemifError | None = None
        self._thread = Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._pump.run()
        except MemifError as error:
            self.failure = error

    def end(self) -> None:
        self.runtime.cancel_poll_event()
        self.join()

    def join(self) -> None:
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def bridge(path: str, rx_mode: RxMode = RxMode.ADAPTIVE) -> Iterator[Bridge]:
    running = Bridge(path, rx_mode)
    try:
        yield running
    finally:
        running.end()
        running.runtime.close()


def peer(runtime: Runtime, path: str, id: int, queues: tuple[int, int] = (1, 1), **options: Any) -> Interface:
    """A slave with so many queues to the bridge and from it, which polls."""
    return runtime.create_interface(
        socket=path, id=id, role="slave", num_s2m_rings=queues[0], num_m2s_rings=queues[1], rx_mode="polling", **options
    )


def forwarding() -> int:
    """How many threads forward."""
    return sum(thread.name.startswith("memifrt-forward-") for thread in threading.enumerate())


def exchange(near: Interface, far: Interface, packets: Sequence[bytes], runtime: Runtime, qid: int = 0) -> list[bytes]:
    """Send packets into the bridge; return what comes out, from all queues."""
    left, back = [*packets], list[bytes]()
    deadline = time.monotonic() + DEADLINE
    while len(back) < len(packets):
        assert time.monotonic() < deadline
        del left[: near.tx_queues[qid].send(left)]
        for queue in far.rx_queues:
            back += queue.recv()
        runtime.poll_event(0)
    return back


def until(predicate: Any, runtime: Runtime) -> None:
    """Until it holds, in a thread that no event tells."""
    deadline = time.monotonic() + DEADLINE
    while not predicate():
        assert time.monotonic() < deadline
        runtime.poll_event(0.001)


def numbered(count: int, size: int = 64) -> list[bytes]:
    return [number.to_bytes(4, "big") * (size // 4) for number in range(count)]


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for threads that poll, on any machine."""
    monkeypatch.setattr("memifrt.ports.forward_threads._cores", lambda: 64)


@pytest.fixture(params=[RxMode.INTERRUPT, RxMode.ADAPTIVE, RxMode.POLLING], ids=lambda mode: mode.name.lower())
def rx_mode(request: pytest.FixtureRequest) -> RxMode:
    mode = request.param
    assert isinstance(mode, RxMode)
    return mode


def test_each_direction_and_queue_has_its_thread(runtime: Runtime, socket_path: str, rx_mode: RxMode) -> None:
    with bridge(socket_path, rx_mode) as running:
        a, b = (peer(runtime, socket_path, id) for id in (0, 1))
        wait_until(lambda: a.connected and b.connected, runtime)
        until(lambda: forwarding() == (2 if are_useful() else 0), runtime)
        packets = numbered(3000)
        assert exchange(a, b, packets, runtime) == packets
        assert exchange(b, a, packets, runtime) == packets
        running.end()
        assert forwarding() == 0
        assert [way.report().line().partition(": ")[2] for way in running.ways] == [
            "3000 packets, 192000 bytes, 0 dropped"
        ] * 2


def test_threads_that_poll_need_a_core_each_and_one_to_spare(
    runtime: Runtime, socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two directions, two cores: the main thread polls for both."""
    monkeypatch.setattr("memifrt.ports.forward_threads._cores", lambda: 2)
    with bridge(socket_path, RxMode.POLLING):
        a, b = (peer(runtime, socket_path, id) for id in (0, 1))
        wait_until(lambda: a.connected and b.connected, runtime)
        packets = numbered(300)
        assert exchange(a, b, packets, runtime) == packets
        assert forwarding() == 0


def test_an_end_that_loses_its_peer_stops_them_until_it_has_one_again(
    runtime: Runtime, socket_path: str, rx_mode: RxMode
) -> None:
    packets = numbered(100)
    with bridge(socket_path, rx_mode) as running:
        a = peer(runtime, socket_path, 0)
        sent = 0
        for _ in range(3):
            b = peer(runtime, socket_path, 1)
            wait_until(lambda b=b: a.connected and b.connected, runtime)  # type: ignore[misc]
            until(lambda: running.ports[1].connected, runtime)
            assert exchange(a, b, packets, runtime) == packets
            assert exchange(b, a, packets, runtime) == packets
            sent += len(packets)
            b.close()
            until(lambda: not running.ports[1].connected and not forwarding(), runtime)
            assert a.tx_queues[0].send([b"dropped"] * 3) == 3
            until(lambda sent=sent: running.ways[0].report().dropped * 100 == sent * 3, runtime)
        running.end()
        there, back = (way.report() for way in running.ways)
        assert (there.packets, there.dropped, there.reasons) == (300, 9, {"without a peer": 9})
        assert (back.packets, back.dropped) == (300, 0)


def test_what_a_peer_sent_before_it_left_is_forwarded(runtime: Runtime, socket_path: str, rx_mode: RxMode) -> None:
    packets = numbered(50)
    with bridge(socket_path, rx_mode):
        b = peer(runtime, socket_path, 1)
        for _ in range(20):
            a = peer(runtime, socket_path, 0)
            wait_until(lambda a=a: a.connected and b.connected, runtime)  # type: ignore[misc]
            assert a.tx_queues[0].send(packets) == len(packets)
            a.close()
            received = list[bytes]()
            deadline = time.monotonic() + DEADLINE
            while len(received) < len(packets) and time.monotonic() < deadline:
                received += b.rx_queues[0].recv()
                runtime.poll_event(0)
            assert received == packets


def test_a_full_target_leaves_packets_in_their_source(runtime: Runtime, socket_path: str, rx_mode: RxMode) -> None:
    with bridge(socket_path, rx_mode) as running:
        a, b = (peer(runtime, socket_path, id, log2_ring_size=4) for id in (0, 1))
        wait_until(lambda: a.connected and b.connected, runtime)
        packets, left = numbered(40), numbered(40)

        def both_rings_are_full() -> bool:
            del left[: a.tx_queues[0].send(left)]
            return len(left) == 8

        until(both_rings_are_full, runtime)
        assert running.ways[0].report().packets == 16
        received = list[bytes]()
        while len(received) < len(packets):
            del left[: a.tx_queues[0].send(left)]
            received += b.rx_queues[0].recv()
            runtime.poll_event(0)
        assert received == packets
        running.end()
        report = running.ways[0].report()
        assert (report.packets, report.dropped) == (40, 0)


@pytest.mark.parametrize(("queues", "threads"), [((3, 1), 2), ((1, 3), 2), ((3, 2), 4)])
def test_queues_that_share_a_target_share_a_thread(
    runtime: Runtime, socket_path: str, rx_mode: RxMode, queues: tuple[int, int], threads: int
) -> None:
    there, back = queues
    with bridge(socket_path, rx_mode) as running:
        a = peer(runtime, socket_path, 0, (there, there))
        b = peer(runtime, socket_path, 1, (back, back))
        wait_until(lambda: a.connected and b.connected, runtime)
        until(lambda: forwarding() == (threads if are_useful() else 0), runtime)
        for near, far in ((a, b), (b, a)):
            for queue in near.tx_queues:
                packets = numbered(500)
                assert exchange(near, far, packets, runtime, queue.qid) == packets
        running.end()
        assert [(way.report().packets, way.report().dropped) for way in running.ways] == [
            (500 * there, 0),
            (500 * back, 0),
        ]


@pytest.mark.skipif(not are_useful(), reason="the queues in Python, and greenlets, forward in the main thread")
def test_what_fails_in_a_thread_ends_the_bridge(
    runtime: Runtime, socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process has too many open files, for example."""
    error = MemifError(ErrorCode.PROC_FILE_LIMIT, "cannot duplicate an eventfd")

    def fail(self: object, tx: TxQueue, sources: object) -> None:
        raise error

    monkeypatch.setattr("memifrt.ports.forward_threads.ForwardThreads._serve", fail)
    with bridge(socket_path) as running:
        a, b = (peer(runtime, socket_path, id) for id in (0, 1))
        wait_until(lambda: a.connected and b.connected, runtime)
        running.join()
        assert running.failure is error
        assert forwarding() == 0
