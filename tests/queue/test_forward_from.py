"""``forward_from``: a loop that forwards until something ends it, in a thread of its own or in the caller's."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from memifrt import Burst, ConfigError, Disconnected, ForkedError, MemifOSError, Runtime, RxMode, RxQueue, TxQueue
from memifrt.queue import reference
from tests.lib.forked import beside, in_child
from tests.lib.patched import fork
from tests.lib.peer import ScriptedSlave
from tests.lib.support import DEADLINE, Pair, connect, wait_until
from tests.lib.threads import Thread

MakePair = Callable[..., Pair]


class Loop:
    """A thread in ``forward_from`` between the queues of one side, which echoes what its peer sends."""

    def __init__(self, pair: Pair, role: str = "slave", **options: Any) -> None:
        side = pair.slave if role == "slave" else pair.master
        far = pair.master if role == "slave" else pair.slave
        self.rx, self.tx = side.rx_queues[0], side.tx_queues[0]
        self.near_tx, self.near_rx = far.tx_queues[0], far.rx_queues[0]
        self.stop = os.eventfd(0)
        self.sent = -1
        self.failure: BaseException | None = None
        self._options = {"until": self.stop, **options}
        self._thread = Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.sent = self.tx.forward_from(self.rx, **self._options)
        except BaseException as error:
            self.failure = error

    def exchange(self, packets: list[bytes]) -> list[bytes]:
        """Send packets, and return what comes back."""
        back: list[bytes] = []
        left = packets
        while len(back) < len(packets):
            left = left[self.near_tx.send(left) :]
            back += self.near_rx.recv()
            if not self.near_rx.polling and not back:
                assert select.select([self.near_rx], [], [], DEADLINE)[0]
        return back

    def end(self) -> int:
        os.eventfd_write(self.stop, 1)
        return self.join()

    def join(self) -> int:
        self._thread.join()
        os.close(self.stop)
        return self.sent


@contextlib.contextmanager
def on_alarm(handler: Callable[..., object]) -> Iterator[None]:
    """Handle SIGALRM with ``handler``."""
    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=["interrupt", "polling", "adaptive"])
def rx_mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("role", ["slave", "master"])
def test_what_comes_in_goes_out_until_an_eventfd_ends_it(make_pair: MakePair, role: str, rx_mode: str) -> None:
    loop = Loop(make_pair(rx_mode=rx_mode), role)
    packets = [number.to_bytes(4, "big") * 16 for number in range(3000)]
    assert loop.exchange(packets) == packets
    assert loop.end() == len(packets)
    assert loop.tx.counters.packets == loop.rx.counters.packets == len(packets)


def test_a_chain_is_one_packet(make_pair: MakePair) -> None:
    loop = Loop(make_pair(buffer_size=64, ring_size=16), packets=3)
    packets = [bytes([number]) * 200 for number in range(3)]
    assert loop.exchange(packets) == packets
    assert loop.join() == 3


def test_a_budget_is_kept_exactly(make_pair: MakePair, rx_mode: str) -> None:
    pair = make_pair(rx_mode=rx_mode)
    pair.master.tx_queues[0].send([b"x"] * 10)
    rx, tx = pair.slave.rx_queues[0], pair.slave.tx_queues[0]
    assert tx.forward_from(rx, packets=7, limit=4) == 7
    assert tx.forward_from(rx, packets=0) == 0
    assert rx.pending() == 3
    assert tx.forward_from(rx, timeout=0.01) == 3


def test_a_byte_ends_it(make_pair: MakePair, rx_mode: str) -> None:
    pair = make_pair(rx_mode=rx_mode)
    rx, tx = pair.slave.rx_queues[0], pair.slave.tx_queues[0]
    flag = bytearray(1)
    timer = threading.Timer(0.02, lambda: flag.__setitem__(0, 1))
    timer.start()
    assert tx.forward_from(rx, until=flag, timeout=DEADLINE) == 0
    timer.join()
    assert flag == b"\x01"
    assert tx.forward_from(rx, until=memoryview(flag)) == 0  # at once


def test_packets_that_stay_behind_wake_the_next_caller(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.master.tx_queues[0].send([b"x"] * 3)
    rx, tx = pair.slave.rx_queues[0], pair.slave.tx_queues[0]
    assert tx.forward_from(rx, packets=1) == 1
    assert select.select([rx], [], [], 0)[0]
    assert len(rx.recv()) == 2


def test_a_full_ring_does_not_end_it(make_pair: MakePair, rx_mode: str) -> None:
    loop = Loop(make_pair(ring_size=8, rx_mode=rx_mode))
    sent = [bytes([number]) * 20 for number in range(40)]
    left = list(sent)
    while left:  # nothing is taken until everything that fits is on its way
        left = left[loop.near_tx.send(left) :]
        if loop.near_tx.in_flight() == 8:
            break
    back: list[bytes] = []
    while len(back) < len(sent):
        left = left[loop.near_tx.send(left) :]
        back += loop.near_rx.recv()
    assert back == sent
    assert loop.end() == len(sent)


def test_other_calls_on_its_queues_are_refused_while_it_runs(make_pair: MakePair) -> None:
    loop = Loop(make_pair(), timeout=DEADLINE)
    loop.exchange([b"running"])
    calls: list[Callable[[RxQueue, TxQueue], object]] = [
        lambda rx, tx: rx.recv(),
        lambda rx, tx: rx.burst(),
        lambda rx, tx: rx.pending(),
        lambda rx, tx: rx.drain(),
        lambda rx, tx: rx.refill(),
        lambda rx, tx: rx.set_rx_mode("polling"),
        lambda rx, tx: tx.send([b"x"]),
        lambda rx, tx: tx.alloc(1),
        lambda rx, tx: tx.free(),
        lambda rx, tx: tx.forward(rx),
        lambda rx, tx: tx.forward_from(rx, timeout=0),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match=r"queue 0 is in use: forward_from\(\) runs"):
            call(loop.rx, loop.tx)
    assert loop.rx.connected
    assert loop.tx.connected
    assert loop.tx.counters.packets == 1
    loop.end()
    assert loop.rx.recv() == []


@pytest.mark.parametrize("who", ["slave", "master"])
def test_a_disconnect_ends_it_and_counts_everything(make_pair: MakePair, who: str, rx_mode: str) -> None:
    pair = make_pair(rx_mode=rx_mode)
    loop = Loop(pair)
    loop.exchange([b"x"] * 100)
    (pair.slave if who == "slave" else pair.master).disconnect()
    pair.wait(lambda: not pair.slave.connected)
    loop.join()
    assert isinstance(loop.failure, Disconnected)
    assert pair.slave.counters.tx.packets == pair.slave.counters.rx.packets == 100


def test_ctrl_c_ends_it(make_pair: MakePair, rx_mode: str) -> None:
    pair = make_pair(rx_mode=rx_mode)
    rx, tx = pair.slave.rx_queues[0], pair.slave.tx_queues[0]
    timer = threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        tx.forward_from(rx, timeout=DEADLINE)
    timer.join()
    pair.master.tx_queues[0].send([b"x"])
    assert tx.forward(rx) == 1  # the queues are as before


def test_a_signal_handler_may_close_the_runtime(make_pair: MakePair) -> None:
    pair = make_pair()
    rx, tx = pair.slave.rx_queues[0], pair.slave.tx_queues[0]
    with on_alarm(lambda *_: pair.runtimes[-1].close()):
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Disconnected):
            tx.forward_from(rx, timeout=DEADLINE)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a stop that is a float": ({"until": 1.5}, r"until is 1\.5; it must be an fd"),
    "a stop that is True": ({"until": True}, "until is True; it must be an fd"),
    "a negative fd": ({"until": -1}, "until is -1; it must be an fd"),
    "an empty buffer": ({"until": b""}, r"until is b''; it must be .* a buffer of at least one byte"),
    "a negative budget": ({"packets": -1}, "packets is -1; it must be a whole number"),
    "half a packet": ({"packets": 0.5}, r"packets is 0\.5; it must be a whole number"),
    "a negative time": ({"timeout": -1}, "timeout is -1; it must be a number, at least 0"),
    "no time": ({"timeout": "1"}, "timeout is '1'; it must be a number, at least 0"),
    "not a number": ({"timeout": float("nan")}, "timeout is nan; it must be a number, at least 0"),
    "a limit of none": ({"limit": 0}, "a burst of 0 buffers; it must be at least 1"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_refused_before_anything_happens(make_pair: MakePair, wrong: str) -> None:
    options, message = WRONG[wrong]
    pair = make_pair()
    pair.master.tx_queues[0].send([b"x"])
    rx, tx = pair.slave.rx_queues[0], pair.slave.tx_queues[0]
    with pytest.raises(ConfigError, match=message):
        tx.forward_from(rx, **options)
    assert rx.recv() == [b"x"]


def test_held_buffers_are_in_its_way(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.master.tx_queues[0].send([b"x"])
    rx, tx = pair.slave.rx_queues[0], pair.slave.tx_queues[0]
    with rx.burst(), pytest.raises(ConfigError, match="held"):
        tx.forward_from(rx, timeout=0)
    with tx.alloc(1), pytest.raises(ConfigError, match="held"):
        tx.forward_from(rx, timeout=0)


# --- attacks --------------------------------------------------------------------------------------------------------


def test_what_came_before_the_disconnect_is_forwarded(make_pair: MakePair, rx_mode: str) -> None:
    pair = make_pair(rx_mode=rx_mode)
    rx, tx = pair.slave.rx_queues[0], pair.slave.tx_queues[0]
    thread = Thread(target=_until_disconnected, args=(tx, rx))
    thread.start()
    assert pair.master.tx_queues[0].send([b"last"] * 200) == 200
    rx.disconnect(Disconnected("gone"))
    forwarded = tx.counters.packets
    tx.disconnect(Disconnected("gone"))
    thread.join()
    counted = rx.counters.packets, tx.counters.packets, len(pair.master.rx_queues[0].recv())
    if isinstance(rx, reference.RxQueue):
        # In Python, a disconnect does not wait for the loop: it may come before, after, or between any two of these.
        assert {*counted} <= {0, 200}
    else:
        assert counted == (forwarded, forwarded, forwarded) == (200, 200, 200)


def _until_disconnected(tx: TxQueue, rx: RxQueue) -> None:
    with pytest.raises(Disconnected):
        tx.forward_from(rx, timeout=DEADLINE)


@pytest.mark.parametrize("rings", ["native"], indirect=True)
def test_a_handler_that_closes_forwards_and_counts_nothing_more(make_pair: MakePair, rx_mode: str) -> None:
    """Packets that come after the close, while the loop still has its rings, stay where they are.

    In the queues in Python a handler may run anywhere, also when a round of the loop has begun.
    """
    pair = make_pair(rx_mode=rx_mode)
    rx, tx = pair.slave.rx_queues[0], pair.slave.tx_queues[0]
    far = pair.master.tx_queues[0]

    def close(*_: object) -> None:
        pair.slave.close()
        far.send([b"late"] * 10)

    with on_alarm(close):
        signal.setitimer(signal.ITIMER_REAL, 0.03)
        with pytest.raises(Disconnected):
            tx.forward_from(rx, timeout=DEADLINE)
    assert rx.counters.packets == tx.counters.packets == 0
    assert pair.master.rx_queues[0].recv() == []


def test_an_exception_of_a_signal_handler_ends_it_and_the_queues_go_on(make_pair: MakePair, rx_mode: str) -> None:
    pair = make_pair(rx_mode=rx_mode)
    rx, tx = pair.slave.rx_queues[0], pair.slave.tx_queues[0]

    def handler(*_: object) -> None:
        raise ZeroDivisionError

    with on_alarm(handler):
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the machine may be slow
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                tx.forward_from(rx, timeout=DEADLINE)
            pair.master.tx_queues[0].send([b"x"])
            assert tx.forward_from(rx, packets=1, timeout=DEADLINE) == 1
            assert pair.master.rx_queues[0].recv() == [b"x"]


def test_a_handler_cannot_use_its_queues(make_pair: MakePair) -> None:
    pair = make_pair()
    rx, tx = pair.slave.rx_queues[0], pair.slave.tx_queues[0]
    with on_alarm(lambda *_: tx.forward_from(rx, timeout=0)):
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)  # again and again, because the first may come too early
        with pytest.raises(ConfigError, match=r"or called this one"):
            tx.forward_from(rx, timeout=DEADLINE)


def test_a_child_of_a_handler_leaves_the_packets_to_the_parent(make_pair: MakePair, rx_mode: str) -> None:
    pair = make_pair(rx_mode=rx_mode)
    rx, tx = pair.slave.rx_queues[0], pair.slave.tx_queues[0]
    far = pair.master.tx_queues[0]
    children: list[int] = []

    def handler(*_: object) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = fork()
        if pid:
            children.append(pid)
            far.send([b"x"] * 5)

    before = signal.signal(signal.SIGALRM, handler)
    parent = os.getpid()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        status = 1
        try:
            assert tx.forward_from(rx, packets=5, timeout=DEADLINE) == 5
        except ForkedError:
            status = 0
        finally:
            if os.getpid() != parent:
                os._exit(status)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
    assert len(pair.master.rx_queues[0].recv()) == 5


def test_a_child_forked_beside_it_has_no_queues(make_pair: MakePair, rx_mode: str) -> None:
    loop = Loop(make_pair(rx_mode=rx_mode), timeout=DEADLINE)
    loop.exchange([b"x"] * 10)

    def child() -> None:
        for call in (loop.rx.recv, loop.tx.free, lambda: loop.tx.forward_from(loop.rx, timeout=0), loop.rx.fileno):
            with pytest.raises(ForkedError):
                call()

    in_child(child)
    assert loop.exchange([b"y"] * 10) == [b"y"] * 10
    loop.end()


def test_only_one_of_many_threads_gets_the_queues(make_pair: MakePair) -> None:
    """The fileno() of the stop lets other threads run just before the loop begins."""
    pair = make_pair(num_s2m_rings=2, num_m2s_rings=2)
    side = pair.slave
    start, outcomes = threading.Barrier(4), list[object]()
    stop = os.eventfd(0)

    class Stop:
        def fileno(self) -> int:
            with contextlib.suppress(threading.BrokenBarrierError):
                start.wait(DEADLINE)
            return stop

    def run(tx: TxQueue) -> None:
        try:
            outcomes.append(tx.forward_from(side.rx_queues[0], until=Stop(), timeout=DEADLINE))
        except ConfigError as error:
            outcomes.append(error)
        if len(outcomes) == 3:
            os.eventfd_write(stop, 1)

    threads = [Thread(target=run, args=(side.tx_queues[number % 2],)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(stop)
    assert sorted(map(str, outcomes))[0] == "0"
    assert sum(isinstance(outcome, ConfigError) for outcome in outcomes) == 3


def test_a_thousand_starts_and_stops_leave_nothing(make_pair: MakePair, rx_mode: str) -> None:
    pair = make_pair(rx_mode=rx_mode)
    rx, tx = pair.slave.rx_queues[0], pair.slave.tx_queues[0]
    before = len(os.listdir("/proc/self/fd"))
    for number in range(1000):
        pair.master.tx_queues[0].send([b"%d" % number])
        assert tx.forward_from(rx, packets=1, timeout=DEADLINE) == 1
        assert pair.master.rx_queues[0].recv() == [b"%d" % number]
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_fd_is_left_for_it(make_pair: MakePair) -> None:
    pair = make_pair()
    rx, tx = pair.slave.rx_queues[0], pair.slave.tx_queues[0]
    pair.master.tx_queues[0].send([b"x"])
    if isinstance(tx, reference.TxQueue):
        assert tx.forward_from(rx, timeout=0.01) == 1  # it needs none
        return
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    taken: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        with pytest.raises(MemifOSError, match="queue 0: cannot duplicate an eventfd") as caught:
            tx.forward_from(rx, timeout=0.1)
        assert caught.value.errno == errno.EMFILE
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert tx.forward_from(rx, timeout=0.01) == 1


def test_counters_and_details_are_there_meanwhile(make_pair: MakePair, rx_mode: str) -> None:
    pair = make_pair(rx_mode=rx_mode)
    loop = Loop(pair, timeout=DEADLINE)
    loop.exchange([b"x"] * 100)
    details = pair.slave.details()
    assert pair.slave.counters.rx.packets == 100
    assert details.rx_queues[0].ring_size == loop.rx.ring_size
    assert loop.rx.connected
    loop.end()


def test_it_goes_between_two_runtimes_and_modes(make_pair: MakePair, runtime: Runtime, peer_runtime: Runtime) -> None:
    first = make_pair()
    second = connect(runtime, peer_runtime, f"{first.master.socket.path}-2", master_rx_mode="polling")
    tx, rx = second.master.tx_queues[0], first.slave.rx_queues[0]  # of different runtimes
    assert first.master.tx_queues[0].send([b"across"] * 5) == 5
    assert tx.forward_from(rx, packets=5, timeout=DEADLINE) == 5
    assert second.slave.rx_queues[0].recv() == [b"across"] * 5


def test_a_budget_counts_chains_and_a_small_limit_takes_one(make_pair: MakePair, rx_mode: str) -> None:
    pair = make_pair(buffer_size=64, ring_size=64, rx_mode=rx_mode)
    chains = [bytes([number]) * 300 for number in range(8)]
    assert pair.master.tx_queues[0].send(chains) == 8
    rx, tx = pair.slave.rx_queues[0], pair.slave.tx_queues[0]
    assert tx.forward_from(rx, packets=2, limit=1, timeout=DEADLINE) == 2
    assert tx.forward_from(rx, packets=3, timeout=DEADLINE) == 3
    assert tx.forward_from(rx, timeout=0.01) == 3
    assert pair.master.rx_queues[0].recv() == chains


@pytest.mark.parametrize("stop", ["eventfd", "byte", "timeout"])
def test_a_peer_that_never_takes_keeps_nothing_from_ending_it(make_pair: MakePair, rx_mode: str, stop: str) -> None:
    pair = make_pair(ring_size=8, rx_mode=rx_mode)
    rx, tx = pair.slave.rx_queues[0], pair.slave.tx_queues[0]
    pair.master.tx_queues[0].send([b"x"] * 8)
    assert tx.forward_from(rx, packets=8, timeout=DEADLINE) == 8
    pair.master.tx_queues[0].send([b"y"] * 8)
    fd, flag = os.eventfd(0), bytearray(1)
    timer = threading.Timer(0.03, lambda: os.eventfd_write(fd, 1) if stop == "eventfd" else flag.__setitem__(0, 1))
    timer.start()
    until = fd if stop == "eventfd" else flag if stop == "byte" else None
    assert tx.forward_from(rx, until=until, timeout=0.03 if stop == "timeout" else DEADLINE) == 0
    timer.join()
    os.close(fd)
    assert rx.pending() == 8
    assert pair.master.rx_queues[0].recv() == [b"x"] * 8
    assert tx.forward_from(rx, packets=8, timeout=DEADLINE) == 8
    assert pair.master.rx_queues[0].recv() == [b"y"] * 8


def test_adaptive_masks_while_busy_and_waits_for_kicks_when_idle(make_pair: MakePair) -> None:
    pair = make_pair(rx_mode="adaptive")
    loop = Loop(pair, limit=1, timeout=DEADLINE)
    for number in range(200):
        packets = [b"%d" % number] * 3
        assert loop.exchange(packets) == packets
    deadline = time.monotonic() + DEADLINE
    while pair.slave.details().rx_queues[0].flags:
        assert time.monotonic() < deadline
        time.sleep(0)
    assert loop.end() == 600


def test_a_killed_peer_ends_it(runtime: Runtime, socket_path: str, rx_mode: str) -> None:
    interface = runtime.create_interface(socket=socket_path, role="master", rx_mode=RxMode[rx_mode.upper()])

    def echo_for_ever() -> None:
        with Runtime("peer") as own, own.create_interface(socket=socket_path, role="slave") as far:
            wait_until(lambda: far.connected, own)
            while True:
                far.tx_queues[0].send([b"x"] * 10)
                far.rx_queues[0].recv()

    with beside(echo_for_ever):
        wait_until(lambda: interface.connected, runtime)
        rx, tx = interface.rx_queues[0], interface.tx_queues[0]
        thread = Thread(target=_until_disconnected, args=(tx, rx))
        thread.start()
        deadline = time.monotonic() + DEADLINE
        while tx.counters.packets < 100:
            assert time.monotonic() < deadline
            runtime.poll_event(0.001)
    wait_until(lambda: not interface.connected, runtime)
    thread.join()
    assert rx.counters.packets == tx.counters.packets


def test_memory_truncated_under_it_ends_it(runtime: Runtime, socket_name: str, rx_mode: str) -> None:
    interface = runtime.create_interface(
        socket=socket_name, role="master", rx_mode=RxMode[rx_mode.upper()], log2_ring_size=4, buffer_size=256
    )
    with ScriptedSlave(socket_name, runtime, sealed=False) as peer:
        peer.run()
        wait_until(lambda: interface.connected, runtime)
        rx, tx = interface.rx_queues[0], interface.tx_queues[0]
        thread = Thread(target=_until_disconnected, args=(tx, rx))
        thread.start()
        os.ftruncate(peer.memory_fd, 0)
        wait_until(lambda: not interface.connected, runtime)
        thread.join()
        assert interface.last_error is not None
        assert "region 0 is gone: its file was truncated" in str(interface.last_error)


class TakesABurst:
    """Takes a burst when it is asked for its fd. Not in the test: Python 3.13t keeps a local class for ever."""

    def __init__(self, rx: RxQueue, bursts: list[Burst]) -> None:
        self.rx, self.bursts = rx, bursts

    def fileno(self) -> int:
        self.bursts.append(self.rx.burst())
        return 0


def test_a_burst_that_the_stop_takes_is_in_its_way(make_pair: MakePair) -> None:
    """Its fileno() is called after the queues were found free."""
    pair = make_pair()
    pair.master.tx_queues[0].send([b"x"])
    rx, tx = pair.slave.rx_queues[0], pair.slave.tx_queues[0]
    bursts: list[Burst] = []
    with pytest.raises(ConfigError, match="held"):
        tx.forward_from(rx, until=TakesABurst(rx, bursts), timeout=0)
    bursts[0].close()
