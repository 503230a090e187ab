"""Waiting without a loop: the steps that every face drives, taken one by one."""

from __future__ import annotations

import inspect
import random
import re
import select
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import pytest

from memifrt import ConfigError, Disconnected, ForkedError, Interface, MemifError, Runtime, RxQueue
from memifrt.options import RuntimeOptions
from memifrt.queue import reference
from memifrt.ring import Burst
from memifrt.system.fds import EventFd
from memifrt.types import Counters
from memifrt.waiting.base_interface import BaseInterface, BurstHolder, interface_arguments, split_arguments
from memifrt.waiting.kept import BURST
from memifrt.waiting.steps import Waiting
from memifrt.waiting.wakeup import FIRST_PAUSE, LONGEST_PAUSE, Pass, Steps, Wait, Wakeup
from tests.lib.forked import in_child
from tests.lib.peer import ScriptedSlave
from tests.lib.support import Recorder, connect, wait_until

T = TypeVar("T")


class Flag:
    """A signal that notes whether it is set."""

    def __init__(self) -> None:
        self.is_set = False

    def set(self) -> None:
        self.is_set = True


class Call(Generic[T]):
    """One call, driven as a loop would: a step when its signal is set, and at once when it only lets others run."""

    def __init__(self, steps: Steps[Flag, T]) -> None:
        self._steps = steps
        self.requests: list[Wait[Flag] | Pass] = []
        self.results: list[T] = []
        self.error: Exception | None = None
        self.step()

    @property
    def done(self) -> bool:
        return bool(self.results) or self.error is not None

    @property
    def result(self) -> T:
        assert self.error is None, self.error
        return self.results[0]

    @property
    def request(self) -> Wait[Flag] | Pass:
        assert not self.done
        return self.requests[-1]

    @property
    def timeout(self) -> float | None:
        request = self.request
        assert isinstance(request, Wait)
        return request.timeout

    def step(self) -> None:
        try:
            self.requests.append(next(self._steps))
        except StopIteration as end:
            self.results.append(end.value)
        except Exception as error:
            self.error = error

    def turn(self) -> bool:
        """Go on as far as it gets; whether it has ended."""
        while not self.done:
            request = self.request
            if isinstance(request, Wait) and not request.signal.is_set:
                break
            self.step()
        return self.done

    def cancel(self) -> None:
        self._steps.close()

    def fails(self) -> str:
        """The reason, of the Disconnected that it ends with."""
        assert isinstance(self.error, Disconnected), (self.error, self.results)
        return str(self.error)


class Near:
    """The end under test, with another end to play with."""

    def __init__(self, runtime: Runtime, peer_runtime: Runtime, socket: str) -> None:
        self.runtimes = (runtime, peer_runtime)
        self.socket = socket
        self.far: Interface
        self.waiting: Waiting[Flag]

    def open(self, *, role: str = "master", reconnect: bool = False, batch: int = 256, **options: Any) -> Waiting[Flag]:
        self.waiting = Waiting(
            self.runtimes[0],
            Flag,
            {"socket": self.socket, "role": role, **options},  # type: ignore[typeddict-item]
            reconnect=reconnect,
            batch=batch,
        )
        return self.waiting

    def connect(self, **options: Any) -> Waiting[Flag]:
        """Both ends, connected."""
        mine = {key: options.pop(key) for key in list(options) if key in ("reconnect", "batch") or key[:3] == "on_"}
        role = options.pop("role", "master")
        self.open(role=role, **mine, **options)
        self.far = self.runtimes[1].create_interface(
            socket=self.socket, role="slave" if role == "master" else "master", **options
        )
        self.wait(lambda: self.waiting.connected and self.far.announced)
        return self.waiting

    def wait(self, predicate: Callable[[], object]) -> None:
        wait_until(predicate, *self.runtimes)

    def publish(self, *packets: bytes, qid: int = 0) -> None:
        assert self.far.tx_queues[qid].send(packets) == len(packets)

    def settle(self) -> None:
        """Until no event is left to handle."""
        while any(runtime.poll_event(0) for runtime in self.runtimes):
            pass

    def drop(self) -> None:
        """The far end hangs up; a slave there comes again with the timer."""
        self.far.disconnect("enough")
        self.wait(lambda: not self.waiting.interface.connected)


@pytest.fixture(params=["interrupt", "polling", "adaptive"])
def rx_mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def near(runtime: Runtime, peer_runtime: Runtime, socket_name: str) -> Near:
    return Near(runtime, peer_runtime, socket_name)


@pytest.fixture(params=["master", "slave"])
def role(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def readable(queue: RxQueue) -> bool:
    return bool(select.select([queue], [], [], 0)[0])


# --- wake-ups -------------------------------------------------------------------------------------------------------


def test_everybody_who_waits_is_woken_once() -> None:
    wakeup = Wakeup(Flag)
    first, second = Call(wakeup.wait(wakeup.count)), Call(wakeup.wait(wakeup.count))
    assert not first.turn()
    wakeup.wake()
    assert first.turn()
    assert second.turn()
    assert wakeup.waiters == 0
    assert not Call(wakeup.wait(wakeup.count)).done


def test_what_happened_since_the_look_is_not_waited_for() -> None:
    wakeup = Wakeup(Flag)
    seen = wakeup.count
    wakeup.wake()
    assert Call(wakeup.wait(seen)).done


def test_a_waiter_that_gives_up_is_forgotten() -> None:
    wakeup = Wakeup(Flag)
    call = Call(wakeup.wait(wakeup.count))
    assert wakeup.waiters == 1
    call.cancel()
    assert wakeup.waiters == 0
    wakeup.wake()


# --- connecting -----------------------------------------------------------------------------------------------------


def test_connected_is_waited_for_until_on_connect_has_been_called(near: Near, role: str) -> None:
    order: list[str] = []
    waiting = near.open(role=role, on_connect=lambda interface: order.append("on_connect"))
    call = Call(waiting.wait_connected())
    near.settle()
    assert not call.turn()
    near.runtimes[1].create_interface(socket=near.socket, role="slave" if role == "master" else "master")
    near.wait(call.turn)
    assert call.result is None
    assert order == ["on_connect"]
    assert Call(waiting.wait_connected()).done, "it is connected already"


def test_a_refusal_ends_the_wait_with_its_reason(near: Near) -> None:
    near.runtimes[1].create_interface(socket=near.socket, role="master", secret="right")
    call = Call(near.open(role="slave", secret="wrong").wait_connected())
    near.wait(call.turn)
    assert "secret" in call.fails()


def test_with_reconnect_a_refusal_is_waited_out(near: Near) -> None:
    master = near.runtimes[1].create_interface(socket=near.socket, role="master", secret="right")
    call = Call(near.open(role="slave", secret="wrong", reconnect=True).wait_connected())
    near.wait(lambda: near.waiting.interface.last_error)
    assert not call.turn()
    master.delete()
    near.runtimes[1].create_interface(socket=near.socket, role="master", secret="wrong")
    near.wait(call.turn)
    assert call.result is None


@pytest.mark.parametrize("how", ["delete", "close"])
@pytest.mark.parametrize("reconnect", [False, True])
def test_deleting_wakes_who_waits_for_a_first_connection(near: Near, how: str, reconnect: bool) -> None:
    waiting = near.open(role="slave", reconnect=reconnect)
    calls: list[Call[Any]] = [Call(waiting.wait_connected())]
    if reconnect:
        calls += [Call(waiting.recv(0, 1)), Call(waiting.send([b"x"], 0))]
    if how == "delete":
        waiting.interface.delete()
    else:
        near.runtimes[0].close()
    for call in calls:
        assert call.turn()
        assert "deleted" in call.fails()
    assert waiting.waiters == 0


# --- receiving ------------------------------------------------------------------------------------------------------


def test_packets_that_are_there_are_returned_without_a_wait(near: Near, role: str) -> None:
    waiting = near.connect(role=role)
    near.publish(b"one", b"two")
    call = Call(waiting.recv(0, 10))
    assert call.result == [b"one", b"two"]
    assert call.requests == []


def test_a_kick_wakes_who_waits_for_its_queue_alone(near: Near, role: str) -> None:
    waiting = near.connect(role=role, num_s2m_rings=2, num_m2s_rings=2)
    first, second = Call(waiting.recv(0, 10)), Call(waiting.recv(1, 10))
    assert first.timeout is None
    near.publish(b"packet", qid=1)
    near.wait(second.turn)
    assert second.result == [b"packet"]
    request = first.request
    assert isinstance(request, Wait)
    assert not request.signal.is_set


@pytest.mark.parametrize("rings", ["python"], indirect=True)  # the compiled queue takes no patches
def test_a_packet_that_comes_between_the_look_and_the_wait_is_not_waited_for(
    near: Near, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = near.connect()
    pending = reference.RxQueue.pending

    def pending_and_then(queue: reference.RxQueue) -> int:
        count = pending(queue)
        monkeypatch.setattr(reference.RxQueue, "pending", pending)
        near.publish(b"late")
        near.settle()  # the kick is read away
        assert not readable(queue)
        return count

    monkeypatch.setattr(reference.RxQueue, "pending", pending_and_then)
    call = Call(waiting.recv(0, 10))
    assert call.requests == []
    assert call.result == [b"late"]


def test_with_nobody_receiving_the_loop_has_nothing_to_do(near: Near, role: str) -> None:
    waiting = near.connect(role=role)
    near.publish(b"one")
    near.settle()  # would not end
    near.publish(b"two")
    near.settle()
    assert not readable(waiting.interface.rx_queues[0])
    assert waiting.interface.rx_queues[0].counters.interrupts == 2
    assert Call(waiting.recv(0, 10)).result == [b"one", b"two"]


def test_what_a_limit_leaves_behind_comes_with_the_next_call(near: Near, role: str) -> None:
    waiting = near.connect(role=role)
    near.publish(*[bytes([number]) for number in range(10)])
    taken: list[bytes] = []
    for _ in range(4):
        near.settle()
        taken += Call(waiting.recv(0, 3)).result
    assert taken == [bytes([number]) for number in range(10)]
    assert not Call(waiting.recv(0, 3)).done


def test_each_of_several_waiters_gets_a_packet(near: Near) -> None:
    waiting = near.connect()
    calls = [Call(waiting.recv(0, 1)) for _ in range(3)]
    near.publish(b"0", b"1", b"2")
    for call in calls:
        near.wait(call.turn)
    assert [call.result for call in calls] == [[b"0"], [b"1"], [b"2"]]
    assert waiting.waiters == 0


def test_a_queue_that_polls_is_looked_at_after_bounded_pauses(near: Near) -> None:
    waiting = near.connect(rx_mode="polling")
    call = Call(waiting.recv(0, 10))
    pauses = []
    for _ in range(10):
        pauses.append(call.timeout)
        call.step()
    assert pauses[:3] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert {*pauses[-2:]} == {LONGEST_PAUSE}
    near.publish(b"packet")
    call.step()
    assert call.result == [b"packet"]


def test_a_change_of_mode_reaches_who_waits_already(near: Near) -> None:
    waiting = near.connect()
    call = Call(waiting.recv(0, 10))
    pauses = [call.timeout]
    for mode in ("polling", "interrupt"):
        waiting.interface.rx_queues[0].set_rx_mode(mode)
        assert not call.turn()
        pauses.append(call.timeout)
    assert pauses == [None, FIRST_PAUSE, None]
    near.publish(b"packet")
    near.wait(call.turn)
    assert call.result == [b"packet"]


def test_an_adaptive_queue_wakes_its_waiter_again(near: Near) -> None:
    waiting = near.connect(rx_mode="adaptive", role="slave")
    for turn in range(3):
        near.publish(*[b"x"] * 5)
        assert Call(waiting.recv(0, 2)).result == [b"x"] * 2
        assert Call(waiting.recv(0, 10)).result == [b"x"] * 3
        near.settle()
        call = Call(waiting.recv(0, 10))
        near.publish(b"%d" % turn)
        near.wait(call.turn)
        assert call.result == [b"%d" % turn]


def test_who_never_waits_lets_the_others_run_once_in_a_batch(near: Near) -> None:
    waiting = near.connect(batch=10)
    near.publish(*[b"x"] * 64)
    passes = []
    for _ in range(16):
        call = Call(waiting.recv(0, 4))
        call.turn()
        assert len(call.result) == 4
        passes.append(call.requests)
    assert [len(requests) for requests in passes] == [0, 0, 0, 1, 0, 0, 1] + [0, 0, 1] * 3
    assert {type(request) for requests in passes for request in requests} == {Pass}


@pytest.mark.parametrize("qid", [1, -1, 255, True, "0"])
def test_a_queue_that_is_not_there_is_named(near: Near, qid: Any) -> None:
    waiting = near.connect()
    calls: list[Callable[[], Steps[Flag, Any]]] = [
        lambda: waiting.recv(qid, 1),
        lambda: waiting.receive(qid, 1, BURST),
        lambda: waiting.send([b"x"], qid),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match=re.escape(f"queue is {qid!r}; there are 1")):
            next(call())


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_1_is_refused(near: Near, limit: int) -> None:
    assert isinstance(Call(near.connect().recv(0, limit)).error, ConfigError)


def test_waiters_are_served_in_the_order_in_which_they_came(near: Near, rx_mode: str) -> None:
    waiting = near.connect(rx_mode=rx_mode)
    calls = [Call(waiting.recv(0, 1)) for _ in range(4)]
    served = []
    for _ in range(12):
        near.publish(b"x")
        near.settle()
        for index, call in enumerate(calls):
            if rx_mode == "polling" and call.timeout is not None:
                call.step()  # its pause is over
            if call.turn():
                served.append(index)
                calls[index] = Call(waiting.recv(0, 1))
                break
    assert served == [0, 1, 2, 3] * 3


def test_a_caller_that_need_not_wait_does_not_overtake_those_that_wait(near: Near) -> None:
    waiting = near.connect()
    first = Call(waiting.recv(0, 1))
    near.publish(b"one", b"two", b"three")
    late = Call(waiting.recv(0, 1))
    assert not late.done
    near.settle()
    assert first.turn()
    assert first.result == [b"one"]
    assert late.turn(), "the turn is passed on"
    assert late.result == [b"two"]
    assert Call(waiting.recv(0, 1)).result == [b"three"]


def test_a_woken_waiter_that_is_cancelled_passes_its_turn_on(near: Near, rx_mode: str) -> None:
    waiting = near.connect(rx_mode=rx_mode)
    first, second = Call(waiting.recv(0, 1)), Call(waiting.recv(0, 1))
    near.publish(b"x")
    near.settle()
    first.cancel()
    assert second.turn()
    assert second.result == [b"x"]


def test_waiters_keep_their_order_across_a_reconnect(near: Near, role: str) -> None:
    waiting = near.connect(role=role, reconnect=True)
    first, second = Call(waiting.recv(0, 1)), Call(waiting.recv(0, 1))
    near.drop()
    near.wait(lambda: waiting.connected and near.far.announced)
    for call in (second, first):
        assert not call.turn()
    near.publish(b"x")
    near.settle()
    assert not second.turn()
    assert first.turn()


def test_one_kick_is_read_once(readable_calls: None, near: Near, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = near.connect()
    drains: list[EventFd] = []
    drain = EventFd.drain

    def note_drain(event: EventFd) -> bool:
        drains.append(event)
        return drain(event)

    monkeypatch.setattr(EventFd, "drain", note_drain)
    for _ in range(5):
        call = Call(waiting.recv(0, 10))
        assert not call.done
        near.publish(b"x")
        near.settle()
        assert call.turn()
    assert len(drains) == 5


def test_calls_from_where_the_interface_does_not_belong_are_refused(near: Near) -> None:
    def refuse(waiting: bool) -> None:
        raise ConfigError("elsewhere")

    waiting = near.connect()
    bursts = BurstHolder(waiting, 0, 1)
    waiting.check_owner = refuse
    face = BaseInterface(waiting)
    calls: list[Callable[[], object]] = [
        waiting.wait_connected,
        lambda: waiting.recv(0, 1),
        lambda: waiting.receive(0, 1, BURST),
        lambda: waiting.send([b"x"], 0),
        lambda: next(bursts._next()),
        bursts.close,
        face.disconnect,
        face.request_connection,
        face.delete,
    ]
    for call in calls:
        with pytest.raises(ConfigError, match="elsewhere"):
            call()
    assert waiting.connected


# --- sending --------------------------------------------------------------------------------------------------------


def test_what_there_is_room_for_is_sent_without_a_wait(near: Near, role: str) -> None:
    waiting = near.connect(role=role)
    call = Call(waiting.send((packet for packet in (b"one", b"two")), 0))
    assert call.result == 2
    assert call.requests == []
    assert near.far.rx_queues[0].recv() == [b"one", b"two"]
    assert Call(waiting.send([], 0)).result == 0


def test_a_full_ring_is_looked_at_after_growing_bounded_pauses(near: Near, role: str) -> None:
    waiting = near.connect(role=role, log2_ring_size=2)
    call = Call(waiting.send([bytes([number]) for number in range(10)], 0))
    pauses = [call.timeout]
    for _ in range(9):
        call.step()
        pauses.append(call.timeout)
    assert pauses[:3] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert {*pauses[-2:]} == {LONGEST_PAUSE}
    received = near.far.rx_queues[0].recv()
    call.step()
    assert call.timeout == FIRST_PAUSE, "there was room: the pauses start anew"
    received += near.far.rx_queues[0].recv()
    call.step()
    received += near.far.rx_queues[0].recv()
    assert call.result == 10
    assert received == [bytes([number]) for number in range(10)]


def test_a_long_send_lets_the_others_run_between_batches(near: Near) -> None:
    waiting = near.connect(batch=10)
    call = Call(waiting.send([b"x"] * 35, 0))
    call.turn()
    assert call.result == 35
    assert [type(request) for request in call.requests] == [Pass] * 3


def test_senders_take_turns_of_a_batch_in_the_order_in_which_they_came(near: Near, role: str) -> None:
    waiting = near.connect(role=role, batch=2, log2_ring_size=1)
    assert Call(waiting.send([b"full"] * 2, 0)).turn()
    first, second = Call(waiting.send([b"A"] * 4, 0)), Call(waiting.send([b"B"] * 4, 0))
    received: list[bytes] = []
    while not (first.done and second.done):
        received += near.far.rx_queues[0].recv()
        for call in (second, first):
            if not call.done:
                if isinstance(call.request, Wait) and call.request.timeout is not None:
                    call.step()
                call.turn()
    received += near.far.rx_queues[0].recv()
    assert received == [b"full"] * 2 + [b"A", b"A", b"B", b"B"] * 2


def test_a_wrong_packet_is_named_by_its_number_in_the_call(near: Near) -> None:
    waiting = near.connect(batch=2)
    call = Call(waiting.send([b"x", b"x", b"x", "text"], 0))  # type: ignore[list-item]
    call.turn()
    assert isinstance(call.error, TypeError)
    assert "packet 3 is 'text', a str" in str(call.error)
    with pytest.raises(ConfigError, match=r"not one packet \(bytes\): send\(\[packet\]\)"):
        waiting.send(b"x", 0)  # type: ignore[arg-type]


def test_a_packet_that_cannot_be_sent_is_an_error(near: Near) -> None:
    waiting = near.connect()
    assert isinstance(Call(waiting.send([b"fine", b""], 0)).error, ConfigError)
    assert near.far.rx_queues[0].recv() == []


# --- disconnecting --------------------------------------------------------------------------------------------------


def test_a_disconnect_wakes_everybody_with_its_reason(near: Near, role: str) -> None:
    waiting = near.connect(role=role, log2_ring_size=1)
    calls: list[Call[Any]] = [
        Call(waiting.recv(0, 1)),
        Call(waiting.recv(0, 1)),
        Call(waiting.receive(0, 1, BURST)),
        Call(waiting.send([b"x"] * 5, 0)),
    ]
    near.drop()
    for call in calls:
        assert call.turn()
        assert "enough" in call.fails()
    assert waiting.waiters == 0
    for later in (Call(waiting.recv(0, 1)), Call(waiting.send([b"x"], 0))):
        assert "enough" in later.fails() or waiting.connected


# --- what a peer sent before it left ---------------------------------------------------------------------------------


def test_packets_come_before_the_end_to_a_caller_that_waits(near: Near, role: str, rx_mode: str) -> None:
    waiting = near.connect(role=role, rx_mode=rx_mode)
    calls = [Call(waiting.recv(0, 1)) for _ in range(3)]
    near.publish(b"one", b"two")
    near.drop()
    assert [call.turn() for call in calls] == [True] * 3
    assert [call.result for call in calls[:2]] == [[b"one"], [b"two"]]
    assert "enough" in calls[2].fails()


def test_packets_come_before_the_end_to_a_caller_that_comes_later(near: Near, role: str, rx_mode: str) -> None:
    waiting = near.connect(role=role, rx_mode=rx_mode)
    near.publish(b"one", b"two", b"three", b"four")
    near.drop()
    assert Call(waiting.recv(0, 3)).result == [b"one", b"two", b"three"]
    burst = Call(waiting.receive(0, 256, BURST)).result
    with burst:
        assert [bytes(packet) for packet in burst.packets()] == [b"four"]
    assert "enough" in Call(waiting.recv(0, 1)).fails()
    assert waiting.interface.counters.rx.packets == 4


def test_a_chain_that_was_left_stays_whole(near: Near, role: str) -> None:
    waiting = near.connect(role=role, buffer_size=64)
    packet = bytes(range(200))
    near.publish(b"short", packet, packet)
    near.drop()
    assert Call(waiting.recv(0, 3)).result == [b"short"]
    assert Call(waiting.recv(0, 3)).result == [packet]
    burst = Call(waiting.receive(0, 1, BURST)).result
    with burst:
        assert [bytes(packet) for packet in burst.packets()] == [packet]


def test_packets_that_were_left_come_before_those_of_the_next_peer(near: Near, role: str) -> None:
    waiting = near.connect(role=role, reconnect=True)
    near.publish(b"old")
    near.drop()
    near.wait(lambda: waiting.connected and near.far.announced)
    near.publish(b"new")
    assert [Call(waiting.recv(0, 256)).result for _ in range(2)] == [[b"old"], [b"new"]]


def test_packets_of_the_last_connection_alone_are_kept(near: Near) -> None:
    """Otherwise a peer that comes and goes could fill the address space with what nobody takes."""
    waiting = near.connect(reconnect=True)
    for packet in (b"first", b"second"):
        near.wait(lambda: waiting.connected and near.far.announced)
        near.publish(packet)
        near.drop()
    assert Call(waiting.recv(0, 256)).result == [b"second"]


def test_packets_that_were_left_can_be_forwarded_to_another_interface(
    near: Near, runtime: Runtime, peer_runtime: Runtime, socket_name: str
) -> None:
    waiting = near.connect()
    other = connect(runtime, peer_runtime, f"{socket_name}-2")
    near.publish(b"packet")
    near.drop()
    with Call(waiting.receive(0, 256, BURST)).result as burst:
        assert other.master.tx_queues[0].forward(burst) == 1
    assert other.slave.rx_queues[0].recv() == [b"packet"]


def test_packets_that_were_left_are_dropped_with_the_interface(near: Near) -> None:
    waiting = near.connect()
    near.publish(b"packet")
    near.drop()
    waiting.interface.delete()
    assert "deleted" in Call(waiting.recv(0, 1)).fails()


def test_packets_that_were_left_are_the_parents_after_a_fork(near: Near) -> None:
    waiting = near.connect()
    near.publish(b"one", b"two")
    near.drop()

    def child() -> None:
        with pytest.raises(ForkedError):
            waiting.recv(0, 1)
        waiting.interface.delete()

    in_child(child)
    assert Call(waiting.recv(0, 2)).result == [b"one", b"two"]


def test_an_end_that_the_application_asks_for_keeps_nothing(near: Near) -> None:
    waiting = near.connect()
    near.publish(b"packet")
    waiting.interface.disconnect("ours")
    assert "ours" in Call(waiting.recv(0, 1)).fails()


def test_before_the_first_connection_there_is_nothing_to_wait_for(near: Near) -> None:
    waiting = near.open()
    for call in (Call(waiting.recv(0, 1)), Call(waiting.send([b"x"], 0))):
        assert "wait_connected" in call.fails()


def test_a_waiter_misses_no_disconnect_that_is_followed_by_a_connect(near: Near) -> None:
    """The waiter runs only when both have happened."""
    waiting = near.connect()
    call = Call(waiting.recv(0, 1))
    near.drop()
    near.wait(lambda: waiting.connected)
    assert call.turn()
    assert "enough" in call.fails()


def test_with_reconnect_waiting_goes_on_with_the_next_peer(near: Near, role: str) -> None:
    waiting = near.connect(role=role, reconnect=True, log2_ring_size=2)
    receive, send = Call(waiting.recv(0, 10)), Call(waiting.send([bytes([number]) for number in range(8)], 0))
    for _ in range(2):
        near.drop()
        assert not receive.turn()
        assert not send.turn()
        near.wait(lambda: waiting.connected and near.far.announced)
    near.publish(b"packet")
    near.wait(receive.turn)
    assert receive.result == [b"packet"]
    received: list[bytes] = []
    while not send.turn():
        near.settle()
        received += near.far.rx_queues[0].recv()
        if not send.turn():
            send.step()
    received += near.far.rx_queues[0].recv()
    assert received == [bytes([number]) for number in range(8 - len(received), 8)]


@pytest.mark.parametrize("reconnect", [False, True])
def test_a_peer_that_breaks_a_ring_ends_or_interrupts_the_wait(
    runtime: Runtime, socket_name: str, reconnect: bool
) -> None:
    waiting = Waiting(runtime, Flag, {"socket": socket_name, "role": "master"}, reconnect=reconnect)
    with ScriptedSlave(socket_name, runtime).run() as peer:
        peer.wait(lambda: waiting.connected)
        call = Call(waiting.recv(0, 10))
        peer.tx.head = 60000
        peer.kick()
        peer.wait(lambda: call.turn() or not waiting.interface.connected)
        assert call.done != reconnect
    wait_until(lambda: not waiting.interface.connected, runtime)
    if not reconnect:
        assert "ring" in call.fails()
        return
    with ScriptedSlave(socket_name, runtime).run() as peer:
        peer.wait(lambda: waiting.connected)
        peer.publish(b"packet")
        peer.wait(call.turn)
        assert call.result == [b"packet"]


# --- the application's own callbacks --------------------------------------------------------------------------------


def test_callbacks_of_the_application_are_called_all_the_same(near: Near) -> None:
    recorder = Recorder()
    waiting = near.connect(
        on_connect=recorder.on_connect, on_disconnect=recorder.on_disconnect, on_interrupt=recorder.on_interrupt
    )
    near.publish(b"left")
    near.settle()
    near.publish(b"alone")
    near.settle()
    near.drop()
    assert recorder.events == [
        ("connect", "master"),
        ("interrupt", "master", 0),
        ("interrupt", "master", 0),
        ("disconnect", "master"),
    ]
    assert waiting.interface.last_error is not None


@pytest.mark.parametrize("callback", ["on_connect", "on_disconnect", "on_interrupt"])
def test_what_a_callback_raises_comes_out_and_waiters_are_woken(near: Near, callback: str) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError(callback)

    options: dict[str, Any] = {callback: fail}
    waiting = near.open(**options)
    call: Call[Any] = Call(waiting.wait_connected())
    near.far = near.runtimes[1].create_interface(socket=near.socket, role="slave")
    if callback != "on_connect":
        near.wait(lambda: call.turn() and near.far.announced)
        call = Call(waiting.recv(0, 1))
        if callback == "on_interrupt":
            near.publish(b"packet")
        else:
            near.far.delete()
    with pytest.raises(ZeroDivisionError, match=callback):
        near.wait(lambda: False)
    assert call.turn()
    assert (call.error is not None) == (callback == "on_disconnect")
    waiting.interface.on_disconnect = None


# --- giving up ------------------------------------------------------------------------------------------------------


def test_a_call_that_is_cancelled_leaves_no_waiter_and_every_packet(near: Near) -> None:
    """Whenever it is cancelled: before the packet, when it is there, when the waiter is woken but has not run."""
    waiting = near.connect()
    for moment in ("before", "there", "woken"):
        call = Call(waiting.recv(0, 1))
        if moment != "before":
            near.publish(moment.encode())
        if moment == "woken":
            near.settle()
        call.cancel()
        assert waiting.waiters == 0
        if moment != "before":
            assert Call(waiting.recv(0, 10)).result == [moment.encode()]


def test_any_mix_of_calls_and_cancellations_loses_no_packet(near: Near) -> None:
    waiting = near.connect(batch=3, reconnect=False)
    rng = random.Random(5)
    sent = 0
    received: list[int] = []
    calls: list[Call[list[bytes]]] = []
    for _ in range(2000):
        match rng.randrange(5):
            case 0:
                near.publish(sent.to_bytes(4, "little"))
                sent += 1
            case 1 if len(calls) < 4:
                calls.append(Call(waiting.recv(0, rng.randrange(1, 4))))
            case 2 if calls:
                call = calls.pop(rng.randrange(len(calls)))
                received += [int.from_bytes(packet, "little") for packet in (call.results or [[]])[0]]
                call.cancel()
            case 3:
                near.settle()
            case _:
                for call in calls:
                    call.turn()
    near.settle()
    for call in calls:
        call.turn()
        received += [int.from_bytes(packet, "little") for packet in (call.results or [[]])[0]]
        call.cancel()
    rest = Call(waiting.recv(0, 1024))
    rest.turn()
    received += [int.from_bytes(packet, "little") for packet in (rest.results or [[]])[0]]
    rest.cancel()
    assert sorted(received) == list(range(sent))
    assert waiting.waiters == 0


# --- bursts ---------------------------------------------------------------------------------------------------------


class Bursts(BurstHolder[Flag]):
    """An iteration whose waits are in the test's hands."""

    def take(self) -> Call[Burst | None]:
        return Call(self._next())


@pytest.fixture
def bursts(near: Near) -> Iterator[Bursts]:
    bursts = Bursts(near.connect(role="slave", log2_ring_size=3), 0, 4)
    yield bursts
    bursts.close()


def posted(near: Near) -> int:
    """Buffers of the slave that the far end may fill."""
    return near.far.tx_queues[0].free()


def test_each_burst_is_given_back_when_the_next_is_taken(near: Near, bursts: Bursts) -> None:
    for number in range(20):
        near.publish(b"%d" % number)
        burst = bursts.take().result
        assert burst is not None
        assert [bytes(packet) for packet in burst] == [b"%d" % number]
        assert posted(near) == 7
    assert not bursts.take().turn()
    assert posted(near) == 8


def test_closing_gives_the_burst_back_and_ends_the_iteration(near: Near, bursts: Bursts) -> None:
    near.publish(b"packet")
    burst = bursts.take().result
    assert burst is not None
    view = burst[0]
    bursts.close()
    bursts.close()
    assert posted(near) == 8
    with pytest.raises(ValueError):
        view[0]
    assert bursts.take().result is None


def test_closing_ends_the_wait_for_the_next_burst(near: Near, bursts: Bursts) -> None:
    call = bursts.take()
    assert not call.done
    bursts.close()
    assert call.turn()
    assert call.result is None
    assert near.waiting.waiters == 0
    near.publish(b"packet")
    assert Call(near.waiting.recv(0, 1)).result == [b"packet"]


def test_closing_ends_the_wait_for_the_next_peer(near: Near) -> None:
    bursts = Bursts(near.open(reconnect=True), 0, 4)
    call = bursts.take()
    bursts.close()
    assert call.turn()
    assert call.result is None
    assert near.waiting.waiters == 0


def test_an_iteration_that_is_dropped_gives_its_burst_back(near: Near, bursts: Bursts) -> None:
    dropped = Bursts(near.waiting, 0, 4)
    near.publish(b"packet")
    burst = dropped.take().result
    assert burst is not None
    assert posted(near) == 7
    del dropped
    assert posted(near) == 8


def test_a_burst_held_across_a_disconnect_stays_readable_and_the_iteration_goes_on(near: Near) -> None:
    bursts = Bursts(near.connect(reconnect=True), 0, 4)
    near.publish(b"before")
    burst = bursts.take().result
    assert burst is not None
    near.drop()
    assert bytes(burst[0]) == b"before"
    call = bursts.take()
    near.wait(lambda: near.waiting.connected and near.far.announced)
    near.publish(b"after")
    near.wait(call.turn)
    assert call.result is not None
    assert bytes(call.result[0]) == b"after"
    bursts.close()


def test_a_second_who_waits_for_the_same_iteration_is_refused(near: Near, bursts: Bursts) -> None:
    first = bursts.take()
    second = bursts.take()
    assert isinstance(second.error, ConfigError)
    assert "bursts()" in str(second.error)
    near.publish(b"packet")
    near.wait(first.turn)
    assert first.result is not None
    first.cancel()
    assert not bursts.take().done, "one that has ended is in nobody's way"


def test_iterations_of_the_same_queue_share_its_packets(near: Near, bursts: Bursts) -> None:
    other = Bursts(near.waiting, 0, 4)
    near.publish(*[bytes([number]) for number in range(8)])
    first, second = bursts.take().result, other.take().result
    assert first is not None
    assert second is not None
    assert [bytes(packet)[0] for packet in (*first, *second)] == list(range(8))
    bursts.close()
    other.close()
    assert posted(near) == 8


# --- what is asked for ----------------------------------------------------------------------------------------------


def test_the_options_are_those_of_the_runtime() -> None:
    parameters = inspect.signature(Runtime.__init__).parameters
    assert {name: hint.__forward_arg__ for name, hint in RuntimeOptions.__annotations__.items()} == {
        name: parameter.annotation
        for name, parameter in parameters.items()
        if name not in {"self", "app_name", "control_fd_update"}
    }


@pytest.mark.parametrize("callback", ["on_connect", "on_disconnect", "on_interrupt"])
def test_a_callback_that_cannot_be_called_is_refused(near: Near, callback: str) -> None:
    options: dict[str, Any] = {callback: "a name"}
    with pytest.raises(ConfigError, match=f"{callback} is 'a name'"):
        near.open(**options)
    with pytest.raises(ConfigError, match=f"{callback} is 'a name'"):
        near.runtimes[0].create_interface(socket=near.socket, role="master", **options)
    assert near.runtimes[0].interfaces == ()


@pytest.mark.parametrize("batch", [0, -1, 1.5, True])
def test_a_batch_is_a_whole_number_from_1_on(near: Near, batch: Any) -> None:
    with pytest.raises(ConfigError, match="batch is"):
        near.open(batch=batch)
    assert near.runtimes[0].interfaces == ()


def test_a_runtime_that_polls_by_itself_is_refused(runtime: Runtime) -> None:
    with pytest.raises(ConfigError, match="open_runtime"):
        interface_arguments(runtime, {})


def test_what_only_a_new_runtime_could_give_is_refused() -> None:
    with Runtime("external", control_fd_update=lambda fd, events: None) as runtime:
        assert interface_arguments(runtime, {"app_name": None, "stats_socket": None, "id": 3}) == {"id": 3}
        with pytest.raises(ConfigError, match=r"reconnect_interval is 0\.5, but"):
            interface_arguments(runtime, {"reconnect_interval": 0.5})


def test_arguments_are_the_runtime_s_or_the_interface_s() -> None:
    assert split_arguments({"id": 3, "reconnect_interval": 0.5, "app_name": "us"}) == (
        "us",
        {"reconnect_interval": 0.5},
        {"id": 3},
    )
    assert split_arguments({"app_name": None, "prometheus": None}) == ("memifrt", {}, {})


def test_a_face_shows_what_its_interface_is(near: Near) -> None:
    waiting = near.connect(id=7, name="seven")
    face = BaseInterface(waiting)
    interface = waiting.interface
    assert face.interface is interface
    for name in ("id", "name", "role", "mode", "state", "connected", "last_error", "rx_queues", "tx_queues"):
        assert getattr(face, name) == getattr(interface, name)
    assert face.details() == interface.details()
    assert str(face) == str(interface)
    near.publish(b"packet")
    assert face.rx_queues[0].recv() == [b"packet"]
    rx = interface.rx_queues[0].counters
    assert face.counters == Counters(rx, interface.tx_queues[0].counters)
    assert (rx.packets, rx.bytes) == (1, 6)
    face.disconnect("enough")
    assert not face.connected
    assert face.counters.rx.packets == 1
    face.delete()
    with pytest.raises(MemifError):
        face.request_connection()


def test_counters_go_on_over_connections(near: Near) -> None:
    waiting = near.connect(num_s2m_rings=2, num_m2s_rings=2)
    face = BaseInterface(waiting)
    for _ in range(2):
        near.publish(b"x", qid=0)
        near.publish(b"yz", qid=1)
        assert [Call(waiting.recv(qid, 1)).result for qid in (0, 1)] == [[b"x"], [b"yz"]]
        near.drop()
        near.wait(lambda: waiting.connected and near.far.announced)
    assert (face.counters.rx.packets, face.counters.rx.bytes) == (4, 6)


def test_counters_keep_queues_that_the_next_peer_does_not_have(near: Near) -> None:
    waiting = near.connect(num_s2m_rings=2, num_m2s_rings=2)
    near.publish(b"x", qid=1)
    assert Call(waiting.recv(1, 1)).result == [b"x"]
    assert Call(waiting.send([b"yz"], 1)).result == 1
    near.far.delete()
    near.far = near.runtimes[1].create_interface(socket=near.socket, role="slave")
    near.wait(lambda: waiting.connected and near.far.announced)
    near.publish(b"x")
    assert Call(waiting.recv(0, 1)).result == [b"x"]
    assert len(waiting.interface.rx_queues) == 1
    counters = BaseInterface(waiting).counters
    assert (counters.rx.packets, counters.tx.packets) == (2, 1)


def test_pairs_without_waiting_are_not_touched(runtime: Runtime, peer_runtime: Runtime, socket_name: str) -> None:
    """An eventfd that nobody waits on through here stays readable, as the contract of the hook has it."""
    recorder = Recorder()
    pair = connect(runtime, peer_runtime, socket_name, master_on_interrupt=recorder.on_interrupt)
    pair.slave.tx_queues[0].send([b"packet"])
    pair.wait(lambda: recorder.count("interrupt") >= 3)
