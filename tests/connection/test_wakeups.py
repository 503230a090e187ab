"""No wake-up is lost: whenever a packet is in a ring and nobody looks, the queue's eventfd is readable."""

from __future__ import annotations

import os
import random
import select
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from memifrt import ConfigError, Disconnected, Interface, Runtime, RxQueue, TxQueue
from memifrt.options import RoleName
from memifrt.queue import reference
from memifrt.ring.protocol import RxRing
from memifrt.system.fds import EventFd
from tests.lib.peer import ScriptedMaster, ScriptedSlave, scripted_peer
from tests.lib.support import DEADLINE, Pair, runtime_of, wait_until
from tests.lib.threads import Thread

ROLES: tuple[RoleName, ...] = ("master", "slave")
MakePair = Callable[..., Pair]
Take = Callable[[RxQueue, int], list[bytes]]


def readable(queue: RxQueue) -> bool:
    return bool(select.select([queue], [], [], 0)[0])


def by_recv(queue: RxQueue, limit: int) -> list[bytes]:
    return queue.recv(limit)


def by_burst(queue: RxQueue, limit: int) -> list[bytes]:
    with queue.burst(limit) as burst:
        return [bytes(packet) for packet in burst.packets()]


TAKES = pytest.mark.parametrize("take", [by_recv, by_burst], ids=["recv", "burst"])


def ends(pair: Pair, role: RoleName) -> tuple[RxQueue, TxQueue]:
    """The receive queue of the side under test and the queue that the other side sends on."""
    far = pair.slave if role == "master" else pair.master
    return pair.side(role).rx_queues[0], far.tx_queues[0]


# --- packets that come at the worst moment --------------------------------------------------------------------------


class Meddler:
    """Does something once, right before or after a step of taking packets, as a peer on another core might."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.happened = 0

    def _wrap(self, owner: type, name: str, target: RxQueue, action: Callable[[], object], *, before: bool) -> None:
        original = getattr(owner, name)

        def wrapped(self_: EventFd, *args: Any, **options: Any) -> Any:
            meddle = self_.fileno() == target.fileno() and not self.happened
            if meddle and before:
                self.happened += 1
                action()
            result = original(self_, *args, **options)
            if meddle and not before:
                self.happened += 1
                action()
            return result

        self.monkeypatch.setattr(owner, name, wrapped)

    def before_the_drain(self, queue: RxQueue, action: Callable[[], object]) -> None:
        self._wrap(EventFd, "drain", queue, action, before=True)

    def after_the_drain(self, queue: RxQueue, action: Callable[[], object]) -> None:
        self._wrap(EventFd, "drain", queue, action, before=False)

    def after_the_take(self, take: Take, action: Callable[[], object]) -> Take:
        """Once the index has been read and the packets are out."""

        def taking(queue: RxQueue, limit: int) -> list[bytes]:
            ring = getattr(queue, "_ring", None)
            if ring is None:  # a compiled queue takes no patches, and does nothing after it has read an empty ring
                taken = take(queue, limit)
                self._act(action)
                return taken
            assert isinstance(queue, reference.RxQueue)
            queue._ring = _Proxy(ring, "recv" if take is by_recv else "burst", lambda: self._act(action))
            return take(queue, limit)

        return taking

    def _act(self, action: Callable[[], object]) -> None:
        if not self.happened:
            self.happened += 1
            action()


class _Proxy:
    """A ring whose method ``name`` is followed by an action."""

    def __init__(self, ring: RxRing, name: str, act: Callable[[], None]) -> None:
        self._target, self._name, self._act = ring, name, act

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if name != self._name:
            return found

        def called(*args: Any, **options: Any) -> Any:
            result = found(*args, **options)
            self._act()
            return result

        return called


@pytest.fixture
def meddler(monkeypatch: pytest.MonkeyPatch, readable_calls: None) -> Meddler:
    return Meddler(monkeypatch)


@TAKES
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("moment", ["before the drain", "after the drain", "after the take"])
def test_a_packet_that_comes_while_others_are_taken_is_taken_or_wakes_us(
    make_pair: MakePair, meddler: Meddler, role: RoleName, take: Take, moment: str
) -> None:
    rx, tx = ends(make_pair(), role)
    tx.send([b"first"])
    match moment:
        case "before the drain":
            meddler.before_the_drain(rx, lambda: tx.send([b"second"]))
        case "after the drain":
            meddler.after_the_drain(rx, lambda: tx.send([b"second"]))
        case _:
            take = meddler.after_the_take(take, lambda: tx.send([b"second"]))
    taken = take(rx, 8)
    assert meddler.happened == 1
    assert taken[0] == b"first"
    if moment == "after the take":
        assert taken == [b"first"]
        assert readable(rx)
    elif len(taken) == 1:
        assert readable(rx)
    if readable(rx):
        taken += take(rx, 8)
    assert taken == [b"first", b"second"]
    assert not readable(rx) or take(rx, 8) == []
    assert not readable(rx)


@TAKES
@pytest.mark.parametrize("role", ROLES)
def test_a_spurious_look_at_an_empty_ring_does_not_eat_the_next_wake_up(
    make_pair: MakePair, meddler: Meddler, role: RoleName, take: Take
) -> None:
    rx, tx = ends(make_pair(), role)
    take = meddler.after_the_take(take, lambda: tx.send([b"packet"]))
    assert take(rx, 8) == []
    assert readable(rx)
    assert take(rx, 8) == [b"packet"]
    assert not readable(rx)


# --- packets that stay behind ---------------------------------------------------------------------------------------


@TAKES
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_packets_that_stay_behind_leave_the_fd_readable(
    make_pair: MakePair, role: RoleName, take: Take, limit: int
) -> None:
    rx, tx = ends(make_pair(log2_ring_size=4, buffer_size=64), role)
    packets = [bytes([number]) for number in range(7)]
    assert tx.send(packets) == 7
    taken: list[bytes] = []
    while len(taken) < 7:
        assert readable(rx)
        taken += take(rx, limit)
    assert taken == packets
    assert not readable(rx)


@TAKES
@pytest.mark.parametrize("role", ROLES)
def test_packets_that_come_while_others_wait_are_not_lost(make_pair: MakePair, role: RoleName, take: Take) -> None:
    rx, tx = ends(make_pair(log2_ring_size=4, buffer_size=64), role)
    taken: list[bytes] = []
    for number in range(64):
        tx.send([bytes([number, 0]), bytes([number, 1])])
        assert readable(rx)
        taken += take(rx, 1 + number % 3)
    while readable(rx):
        taken += take(rx, 2)
    assert taken == [bytes([number, part]) for number in range(64) for part in range(2)]


@pytest.mark.parametrize("role", ROLES)
def test_on_interrupt_comes_again_for_what_it_left(make_pair: MakePair, role: RoleName) -> None:
    taken: list[bytes] = []

    def on_interrupt(interface: Interface, qid: int) -> None:
        taken.extend(interface.rx_queues[qid].recv(1))

    pair = make_pair(**{f"{role}_on_interrupt": on_interrupt})
    _, tx = ends(pair, role)
    tx.send([b"a", b"b", b"c"])
    pair.wait(lambda: len(taken) == 3)
    runtime = runtime_of(pair.side(role))
    assert not select.select([runtime], [], [], 0)[0]


@pytest.mark.parametrize("role", ROLES)
def test_an_application_that_reads_the_eventfd_itself_loses_nothing(make_pair: MakePair, role: RoleName) -> None:
    # libmemif's own examples do not read it, but a program that waits on an fd may.
    rx, tx = ends(make_pair(log2_ring_size=4, buffer_size=64), role)
    tx.send([b"a", b"b", b"c"])
    taken = rx.recv(1)
    while readable(rx):
        assert os.eventfd_read(rx.fileno())
        taken += rx.recv(1)
    assert taken == [b"a", b"b", b"c"]


FAILING: dict[str, Callable[[RxQueue, TxQueue], object]] = {
    "no limit": lambda rx, tx: rx.recv(0),
    "a burst of none": lambda rx, tx: rx.burst(0),
    "a matrix that cannot be written": lambda rx, tx: rx.recv_into(b"", bytes(2)),
    "a relay of none": lambda rx, tx: tx.forward(rx, 0),
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("call", FAILING)
def test_a_call_that_fails_leaves_the_wake_up(make_pair: MakePair, role: RoleName, call: str) -> None:
    pair = make_pair()
    rx, tx = ends(pair, role)
    tx.send([b"packet"])
    with pytest.raises(ConfigError):
        FAILING[call](rx, pair.side(role).tx_queues[0])
    assert readable(rx)
    assert rx.recv() == [b"packet"]


@pytest.mark.parametrize("role", ROLES)
def test_a_relay_onto_a_broken_ring_leaves_the_wake_up(
    runtime: Runtime, make_pair: MakePair, socket_name: str, role: RoleName
) -> None:
    rx, tx = ends(make_pair(), role)
    out, peer = meet(runtime, socket_name + "-out", "slave", auto_refill=False)
    tx.send([b"packet"])
    peer.rx.tail = 1000  # more than was ever sent
    with pytest.raises(Disconnected):
        out.tx_queues[0].forward(rx)
    assert readable(rx)
    assert rx.recv() == [b"packet"]
    peer.close()


# --- chains ---------------------------------------------------------------------------------------------------------


def meet(
    runtime: Runtime, path: str, role: RoleName, **options: Any
) -> tuple[Interface, ScriptedMaster | ScriptedSlave]:
    """An interface of ``role`` that is connected to a scripted peer with rings of 16 slots."""
    options = {"log2_ring_size": 4, "buffer_size": 256, "socket": path, "role": role, **options}
    interface = runtime.create_interface(**options) if role == "master" else None
    peer = scripted_peer(role, path, runtime)
    interface = interface or runtime.create_interface(**options)
    peer.run()
    wait_until(lambda: interface.connected, runtime)
    return interface, peer


@TAKES
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("limit", [1, 2, 8])
def test_an_unfinished_chain_waits_without_spinning(
    runtime: Runtime, socket_name: str, role: RoleName, take: Take, limit: int
) -> None:
    interface, peer = meet(runtime, socket_name, role)
    rx = interface.rx_queues[0]
    with peer:
        peer.publish(b"one, ", b"two, ", flags=1)
        assert readable(rx)
        assert take(rx, limit) == []
        assert not readable(rx)
        peer.publish(b"three")
        assert readable(rx)
        assert take(rx, limit) == [b"one, two, three"]
        assert not readable(rx)


@TAKES
@pytest.mark.parametrize("role", ROLES)
def test_a_packet_before_an_unfinished_chain_is_taken(
    runtime: Runtime, socket_name: str, role: RoleName, take: Take
) -> None:
    interface, peer = meet(runtime, socket_name, role)
    rx = interface.rx_queues[0]
    with peer:
        peer.publish(b"whole", kick=False)
        peer.publish(b"half, ", flags=1)
        taken = take(rx, 1)
        while readable(rx):
            taken += take(rx, 1)
            if taken == [b"whole"]:
                assert not readable(rx)
        assert taken == [b"whole"]
        peer.publish(b"half")
        assert take(rx, 8) == [b"half, half"]


# --- peers that kick as they like -----------------------------------------------------------------------------------


@TAKES
@pytest.mark.parametrize("role", ROLES)
def test_kicks_without_packets_are_taken_and_forgotten(
    runtime: Runtime, socket_name: str, role: RoleName, take: Take
) -> None:
    # DPDK writes the eventfd even when it sent nothing.
    interface, peer = meet(runtime, socket_name, role)
    rx = interface.rx_queues[0]
    with peer:
        for _ in range(3):
            peer.kick()
        assert readable(rx)
        assert take(rx, 8) == []
        assert not readable(rx)
        assert rx.counters.interrupts == 1
        peer.publish(b"packet")
        assert take(rx, 8) == [b"packet"]


@pytest.mark.parametrize("role", ROLES)
def test_a_kick_that_comes_late_is_spurious(runtime: Runtime, socket_name: str, role: RoleName) -> None:
    interface, peer = meet(runtime, socket_name, role)
    rx = interface.rx_queues[0]
    with peer:
        peer.publish(b"packet", kick=False)
        assert rx.recv() == [b"packet"]
        peer.kick()
        assert readable(rx)
        assert rx.recv() == []
        assert not readable(rx)


# --- masks ----------------------------------------------------------------------------------------------------------


@TAKES
@pytest.mark.parametrize("role", ROLES)
def test_unmasking_looks_at_the_ring_again(make_pair: MakePair, role: RoleName, take: Take) -> None:
    rx, tx = ends(make_pair(**{f"{role}_rx_mode": "polling"}), role)
    tx.send([b"not kicked"])
    assert not readable(rx)
    rx.set_rx_mode("interrupt")
    assert readable(rx)
    assert take(rx, 8) == [b"not kicked"]
    assert not readable(rx)


@pytest.mark.parametrize("role", ROLES)
def test_unmasking_brings_on_interrupt(make_pair: MakePair, role: RoleName) -> None:
    taken: list[bytes] = []

    def on_interrupt(interface: Interface, qid: int) -> None:
        taken.extend(interface.rx_queues[qid].recv())

    pair = make_pair(**{f"{role}_rx_mode": "polling", f"{role}_on_interrupt": on_interrupt})
    rx, tx = ends(pair, role)
    tx.send([b"not kicked"])
    rx.set_rx_mode("interrupt")
    pair.wait(lambda: taken)
    assert taken == [b"not kicked"]


@pytest.mark.parametrize("role", ROLES)
def test_a_mode_that_goes_to_polling_and_back_forgets_nothing_that_stayed_behind(
    make_pair: MakePair, role: RoleName
) -> None:
    rx, tx = ends(make_pair(), role)
    tx.send([b"a", b"b", b"c", b"d"])
    assert rx.recv(1) == [b"a"]
    rx.set_rx_mode("polling")
    assert rx.recv(1) == [b"b"]
    rx.set_rx_mode("interrupt")
    assert readable(rx)
    assert rx.recv(1) == [b"c"]
    assert readable(rx)
    assert rx.recv(1) == [b"d"]
    assert not readable(rx)


# --- two threads ----------------------------------------------------------------------------------------------------

PACKETS = 100_000


@pytest.mark.parametrize("role", ROLES)
def test_every_one_of_many_packets_arrives_by_interrupts_alone(make_pair: MakePair, role: RoleName) -> None:
    rx, tx = ends(make_pair(log2_ring_size=7, buffer_size=64), role)
    stop = threading.Event()

    def send() -> None:
        chance = random.Random(1)
        number = 0
        while number < PACKETS and not stop.is_set():
            batch = [struct.pack("<I", number + more) for more in range(min(chance.randint(1, 40), PACKETS - number))]
            sent = tx.send(batch)
            number += sent
            if not sent or chance.random() < 0.05:
                time.sleep(0 if chance.random() < 0.9 else 0.0005)  # an uneven peer, not a wait

    thread = Thread(target=send)
    thread.start()
    chance = random.Random(2)
    expected = 0
    try:
        while expected < PACKETS:
            # What is lost here is lost for ever: nobody looks at the ring unless the fd says so.
            assert select.select([rx], [], [], DEADLINE)[0], f"no wake-up after packet {expected}, {rx.pending()} wait"
            for packet in rx.recv(chance.randint(1, 64)):
                assert struct.unpack("<I", packet) == (expected,)
                expected += 1
    finally:
        stop.set()
        thread.join()
    assert rx.counters.packets == PACKETS
    assert rx.pending() == 0


def near_and_far(pair: Pair, role: RoleName) -> tuple[Interface, Interface, Runtime]:
    """The side under test, the other side, and the runtime of the side under test."""
    if role == "master":
        return pair.master, pair.slave, pair.runtimes[0]
    return pair.slave, pair.master, pair.runtimes[-1]


@pytest.mark.parametrize("role", ROLES)
def test_what_a_peer_sent_before_it_left_is_handed_on_whichever_event_comes_first(
    make_pair: MakePair, role: RoleName
) -> None:
    calls: list[object] = []

    def on_interrupt(interface: Interface, qid: int) -> None:
        calls.append(interface.rx_queues[qid].recv(2))

    pair = make_pair(**{f"{role}_on_disconnect": lambda interface, reason: calls.append("end")})
    near, far, runtime = near_and_far(pair, role)
    near.on_interrupt = None
    assert far.tx_queues[0].send([b"1", b"2", b"3", b"4", b"5"]) == 5
    far.disconnect()
    near.on_interrupt = on_interrupt  # its fd is watched from here on: behind the channel, which has an event by now
    wait_until(lambda: "end" in calls, runtime)
    assert calls == [[b"1", b"2"], [b"3", b"4"], [b"5"], "end"]


@pytest.mark.parametrize("role", ROLES)
def test_a_callback_that_takes_nothing_does_not_hold_up_the_end(make_pair: MakePair, role: RoleName) -> None:
    calls: list[object] = []
    pair = make_pair(**{f"{role}_on_disconnect": lambda interface, reason: calls.append("end")})
    near, far, runtime = near_and_far(pair, role)
    near.on_interrupt = None
    far.tx_queues[0].send([b"packet"])
    far.disconnect()
    near.on_interrupt = lambda interface, qid: calls.append("interrupt")
    wait_until(lambda: "end" in calls, runtime)
    assert calls == ["interrupt", "end"]


@pytest.mark.parametrize("role", ROLES)
def test_what_the_last_interrupt_raises_ends_the_connection_all_the_same(make_pair: MakePair, role: RoleName) -> None:
    calls: list[object] = []

    def on_interrupt(interface: Interface, qid: int) -> None:
        raise ValueError("on purpose")

    pair = make_pair(**{f"{role}_on_disconnect": lambda interface, reason: calls.append("end")})
    near, far, runtime = near_and_far(pair, role)
    near.on_interrupt = None
    far.tx_queues[0].send([b"packet"])
    far.disconnect()
    near.on_interrupt = on_interrupt
    with pytest.raises(ValueError, match="on purpose"):
        wait_until(lambda: "end" in calls, runtime)
    assert calls == ["end"]
