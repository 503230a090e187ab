"""Adaptive receiving: the mask is set while packets stay behind, kicks are spared, and no wake-up is lost."""

from __future__ import annotations

import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest

from memifrt import ConfigError, Interface, Runtime, RxQueue, TxQueue
from memifrt.options import RoleName
from tests.lib.support import DEADLINE, Pair, wait_until

MakePair = Callable[..., Pair]

ROLES = pytest.mark.parametrize("role", ["master", "slave"])


def readable(queue: RxQueue) -> bool:
    return bool(select.select([queue], [], [], 0)[0])


def ends(pair: Pair, role: RoleName) -> tuple[RxQueue, TxQueue]:
    """The receive queue of one side and the queue that the other side sends on."""
    far = pair.slave if role == "master" else pair.master
    return pair.side(role).rx_queues[0], far.tx_queues[0]


def is_masked(interface: Interface) -> bool:
    return bool(interface.details().rx_queues[0].flags)


# --- the mask -------------------------------------------------------------------------------------------------------


@ROLES
def test_mask_is_set_while_packets_stay_behind_and_cleared_when_the_ring_is_drained(
    make_pair: MakePair, role: RoleName
) -> None:
    pair = make_pair(rx_mode="adaptive")
    receiver = pair.side(role)
    rx, tx = ends(pair, role)
    assert tx.send([b"packet"] * 10) == 10
    assert len(rx.recv(10)) == 10
    assert not is_masked(receiver)
    tx.send([b"packet"] * 10)
    rx.recv(4)
    assert is_masked(receiver)
    rx.recv(4)
    assert is_masked(receiver)
    rx.recv(4)
    assert not is_masked(receiver)


@ROLES
def test_sender_is_spared_its_kicks_while_the_receiver_is_behind(make_pair: MakePair, role: RoleName) -> None:
    pair = make_pair(rx_mode="adaptive")
    rx, tx = ends(pair, role)
    tx.send([b"packet"] * 2)
    rx.recv(1)
    kicks = tx.counters.interrupts
    for _ in range(5):
        tx.send([b"packet"])
        assert readable(rx)
    assert tx.counters.interrupts == kicks
    while rx.recv(4):
        pass
    assert not readable(rx)
    tx.send([b"packet"])
    assert tx.counters.interrupts == kicks + 1
    assert readable(rx)


@ROLES
def test_receiver_looks_again_after_it_cleared_the_mask(make_pair: MakePair, role: RoleName) -> None:
    """A packet that is published while the mask is being cleared comes without a kick."""
    pair = make_pair(rx_mode="adaptive")
    rx, tx = ends(pair, role)
    tx.send([b"packet"] * 2)
    rx.recv(1)
    rx.recv(1)
    assert readable(rx)
    assert rx.recv() == []
    assert not readable(rx)


@ROLES
def test_leaving_adaptive_mode_clears_the_mask(make_pair: MakePair, role: RoleName) -> None:
    pair = make_pair(rx_mode="adaptive")
    rx, tx = ends(pair, role)
    tx.send([b"packet"] * 2)
    rx.recv(1)
    rx.set_rx_mode("interrupt")
    assert not is_masked(pair.side(role))
    assert readable(rx)
    rx.set_rx_mode("polling")
    assert is_masked(pair.side(role))


@ROLES
@pytest.mark.parametrize("mode", ["interrupt", "adaptive"])
def test_refused_arguments_lose_no_wake_up(make_pair: MakePair, role: RoleName, mode: str) -> None:
    pair = make_pair(rx_mode=mode)
    rx, tx = ends(pair, role)
    tx.send([b"packet"])
    with pytest.raises(ConfigError):
        rx.recv_into(bytearray(8), array("I", [0]))
    assert readable(rx)
    assert rx.recv() == [b"packet"]


# --- a sender with random pauses ------------------------------------------------------------------------------------

_PACKET = struct.Struct("=Q")


def send_numbers(socket: str, role: RoleName, count: int) -> None:
    """The sending process: ``count`` numbered packets in bursts, between which it pauses, or waits until the receiver
    has taken them all: a wake-up that was lost then is not made good by the next kick. Says what it did."""
    rng = random.Random(count)
    sends = 0
    with Runtime("sender", reconnect_interval=0.02) as runtime:
        interface = runtime.create_interface(socket=socket, role=role)
        wait_until(lambda: interface.connected, runtime)
        queue = interface.tx_queues[0]
        number = 0
        while number < count:
            last = min(number + rng.choice((1, 2, 8, 32, 128, 256)), count)
            packets = [_PACKET.pack(number) for number in range(number, last)]
            while packets:
                sent = queue.send(packets)
                del packets[:sent]
                sends += sent > 0
            number = last
            pause = rng.random()
            if pause < 0.3 or number == count:
                await_receiver(queue)
            elif pause < 0.6:
                linger(rng.random() * 100e-6)
        print(json.dumps({"sends": sends, "kicks": queue.counters.interrupts}), flush=True)
        wait_until(lambda: not interface.connected, runtime)


def await_receiver(queue: TxQueue) -> None:
    deadline = time.monotonic() + DEADLINE
    while queue.free() < queue.ring_size:
        assert time.monotonic() < deadline, f"{queue.ring_size - queue.free()} packets wait in the ring"
        os.sched_yield()


def linger(seconds: float) -> None:
    """A pause that is shorter than any sleep."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


@ROLES
@pytest.mark.parametrize(("rings", "count"), [("native", 1_000_000), ("python", 100_000)], indirect=["rings"])
def test_no_packet_is_lost_or_waits_for_the_next_kick(
    runtime: Runtime, socket_name: str, role: RoleName, count: int
) -> None:
    rng = random.Random(count)
    received = 0
    masked = 0
    wakeups = 0

    def on_interrupt(interface: Interface, qid: int) -> None:
        nonlocal received, masked, wakeups
        packets = interface.rx_queues[qid].recv(rng.choice((1, 16, 64, 256)))
        expected = array("Q", range(received, received + len(packets)))
        assert b"".join(packets) == expected.tobytes()
        received += len(packets)
        wakeups += 1
        masked += is_masked(interface)

    interface = runtime.create_interface(socket=socket_name, role=role, rx_mode="adaptive", on_interrupt=on_interrupt)
    other = "slave" if role == "master" else "master"
    code = "import sys; from tests.connection.test_adaptive import send_numbers; "
    code += "send_numbers(sys.argv[1], sys.argv[2], int(sys.argv[3]))"
    command = [sys.executable, "-c", code, socket_name, other, str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as sender:
        try:
            while received < count:
                assert runtime.poll_event(DEADLINE), f"asleep after {received} packets of {count}"
                assert sender.poll() is None, f"the sender gave up after {received} packets of {count}"
            while runtime.poll_event(0):
                pass
            assert not is_masked(interface)
            assert sender.stdout is not None
            did = json.loads(sender.stdout.readline())
            interface.delete()
            assert sender.wait(DEADLINE) == 0
        finally:
            sender.kill()
    assert masked, "the receiver was never behind"
    assert did["kicks"] <= did["sends"], "more than one kick for a send"
