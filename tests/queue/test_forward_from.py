"""``forward_from``: a loop that forwards until something ends it, in a thread of its own or in the caller's."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from memifrt import ConfigError, Disconnected, RxQueue, TxQueue
from tests.lib.support import DEADLINE, Pair
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
    before = signal.signal(signal.SIGALRM, lambda *_: pair.runtimes[-1].close())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Disconnected):
            tx.forward_from(rx, timeout=DEADLINE)
    finally:
        signal.signal(signal.SIGALRM, before)


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
