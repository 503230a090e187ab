"""What callbacks may do and raise, how often they are called, and what is left in the hands of a user afterwards."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memifrt import Disconnected, ErrorCode, Interface, MemifError, RingViolation, Runtime, State
from memifrt.connection.connection import Connection
from memifrt.control.channel import Channel
from memifrt.options import RoleName
from memifrt.poll.hook import FdRegistry
from memifrt.poll.schedule import Schedule
from tests.lib.peer import ScriptedMaster, ScriptedSlave, assert_packets_pass, scripted_peer
from tests.lib.support import Pair, Recorder, connect, interrupted_once, wait_until

ROLES: tuple[RoleName, ...] = ("master", "slave")
CALLBACKS = ("on_connect", "on_disconnect", "on_interrupt")


def far_of(pair: Pair, role: RoleName) -> Interface:
    return pair.slave if role == "master" else pair.master


def trigger(pair: Pair, role: RoleName, callback: str) -> None:
    """Cause the callback of the interface of ``role``, which is connected."""
    match callback:
        case "on_connect" | "on_disconnect":  # the slave comes back
            far_of(pair, role).disconnect("on purpose")
        case "on_interrupt":
            far_of(pair, role).tx_queues[0].send([b"packet"])


class Once:
    """A callback that does something the first time that it is called after it has been armed."""

    def __init__(self, action: Callable[[Interface], object]) -> None:
        self.action = action
        self.armed = False
        self.calls = 0

    def __call__(self, interface: Interface, *rest: object) -> None:
        if self.armed:
            self.armed = False
            self.calls += 1
            self.action(interface)


# --- doing things from inside ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("role", ROLES)
def test_a_callback_deletes_its_own_interface(
    runtime: Runtime, socket_name: str, role: RoleName, callback: str
) -> None:
    record = Recorder()
    once = Once(Interface.delete)
    options: dict[str, Any] = {f"{role}_on_disconnect": record.on_disconnect, f"{role}_{callback}": once}
    pair = connect(runtime, runtime, socket_name, **options)
    once.armed = True
    trigger(pair, role, callback)
    pair.wait(lambda: once.calls and far_of(pair, role).state is not State.CONNECTED)
    assert pair.side(role).deleted
    assert runtime.interfaces == (far_of(pair, role),)
    if callback == "on_interrupt":
        assert [str(reason) for reason in record.reasons] == ["interface deleted"]
    again = runtime.create_interface(socket=socket_name, role=role)
    pair.wait(lambda: again.connected and far_of(pair, role).connected)


@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("role", ROLES)
def test_a_callback_deletes_every_other_interface(
    runtime: Runtime, socket_name: str, role: RoleName, callback: str
) -> None:
    def delete_others(interface: Interface) -> None:
        for each in runtime.interfaces:
            if each is not interface:
                each.delete()

    once = Once(delete_others)
    bystanders = [connect(runtime, runtime, f"{socket_name}-{number}") for number in range(3)]
    pair = connect(runtime, runtime, socket_name, **{f"{role}_{callback}": once})
    for bystander in bystanders:  # so that their events are in the same wait
        bystander.master.disconnect()
    once.armed = True
    trigger(pair, role, callback)
    pair.wait(lambda: once.calls)
    assert runtime.interfaces == (pair.side(role),)
    pair.wait(lambda: not pair.side(role).connected)


@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("role", ROLES)
def test_a_callback_closes_the_runtime(socket_path: str, role: RoleName, callback: str) -> None:
    with Runtime("closing", reconnect_interval=0.02) as runtime:
        once = Once(lambda interface: runtime.close())
        runtime.create_socket(socket_path)
        bystander = connect(runtime, runtime, socket_path, id=1)
        pair = connect(runtime, runtime, socket_path, **{f"{role}_{callback}": once})
        once.armed = True
        trigger(pair, role, callback)
        while not runtime.closed:
            runtime.poll_event(1)
        assert once.calls == 1
        assert bystander.master.deleted
        assert not runtime.interfaces


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("role", ROLES)
def test_the_runtime_is_closed_by_the_end_of_an_interface_that_is_deleted(
    socket_path: str, role: RoleName, explicit: bool
) -> None:
    with Runtime("closing", reconnect_interval=0.02) as runtime:
        if explicit:
            runtime.create_socket(socket_path)
        callbacks: dict[str, Any] = {f"{role}_on_disconnect": lambda interface, reason: runtime.close()}
        pair = connect(runtime, runtime, socket_path, **callbacks)
        pair.side(role).delete()
        assert runtime.closed
        assert (len(runtime.interfaces), len(runtime.sockets)) == (0, 0)


@pytest.mark.parametrize("role", ROLES)
def test_closing_the_runtime_while_it_closes_is_harmless(socket_path: str, role: RoleName) -> None:
    with Runtime("closing", reconnect_interval=0.02) as runtime:
        runtime.create_socket(socket_path)
        callbacks: dict[str, Any] = {f"{role}_on_disconnect": lambda interface, reason: runtime.close()}
        connect(runtime, runtime, socket_path, **callbacks)
        runtime.close()
        assert runtime.closed
        assert (len(runtime.interfaces), len(runtime.sockets)) == (0, 0)


@pytest.mark.parametrize("create", ["create_interface", "create_socket"])
def test_nothing_is_created_while_the_runtime_closes(socket_path: str, create: str) -> None:
    runtime = Runtime("closing", reconnect_interval=0.02)
    once = Once(lambda interface: getattr(runtime, create)())
    once.armed = True
    connect(runtime, runtime, socket_path, slave_on_disconnect=once)
    with pytest.raises(MemifError, match="the runtime is closing"):
        runtime.close()
    assert once.calls == 1
    assert (len(runtime.interfaces), len(runtime.sockets)) == (0, 0)


@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("role", ROLES)
def test_a_callback_creates_interfaces(runtime: Runtime, socket_name: str, role: RoleName, callback: str) -> None:
    made: list[Interface] = []

    def create(interface: Interface) -> None:
        made.append(runtime.create_interface(socket=socket_name, role="master", id=1))
        made.append(runtime.create_interface(socket=socket_name, role="slave", id=1))

    once = Once(create)
    pair = connect(runtime, runtime, socket_name, **{f"{role}_{callback}": once})
    once.armed = True
    trigger(pair, role, callback)
    pair.wait(lambda: made and all(interface.connected for interface in made))
    assert_packets_pass(Pair(made[0], made[1], (runtime,)))


@pytest.mark.parametrize("callback", ["on_connect", "on_interrupt"])
@pytest.mark.parametrize("role", ROLES)
def test_a_callback_disconnects(runtime: Runtime, socket_name: str, role: RoleName, callback: str) -> None:
    record = Recorder()
    once = Once(lambda interface: interface.disconnect("enough"))
    options: dict[str, Any] = {f"{role}_on_disconnect": record.on_disconnect, f"{role}_{callback}": once}
    pair = connect(runtime, runtime, socket_name, **options)
    once.armed = True
    trigger(pair, role, callback)
    pair.wait(lambda: once.calls)
    assert str(record.reasons[-1]) == "enough"
    pair.wait(lambda: pair.master.connected and pair.slave.connected and pair.slave.rx_queues[0].connected)
    assert_packets_pass(pair)


def test_a_slave_asks_for_the_next_connection_when_one_ends(socket_name: str) -> None:
    with Runtime("eager", reconnect_interval=0) as runtime:
        pair = connect(runtime, runtime, socket_name, slave_on_disconnect=Once(Interface.request_connection))
        once = pair.slave.on_disconnect
        assert isinstance(once, Once)
        once.armed = True
        pair.slave.disconnect()
        assert pair.slave.state is State.CONNECTING
        pair.wait(lambda: pair.slave.connected and pair.master.connected)
        # The master may have been busy with the old peer, then the request was refused.
        assert_packets_pass(pair)


# --- raising --------------------------------------------------------------------------------------------------------


class Oops(Exception):
    pass


def oops(interface: Interface) -> None:
    raise Oops(str(interface.role.name))


@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("role", ROLES)
def test_what_a_callback_raises_comes_out_once(
    runtime: Runtime, socket_name: str, role: RoleName, callback: str
) -> None:
    once = Once(oops)
    pair = connect(runtime, runtime, socket_name, **{f"{role}_{callback}": once})
    once.armed = True
    trigger(pair, role, callback)
    if callback == "on_disconnect":
        raised = pytest.raises(Oops)
        with raised:
            pair.wait(lambda: not pair.side(role).connected)
        assert pair.side(role).state is State.DISCONNECTED
    else:
        with pytest.raises(Oops):
            pair.wait(lambda: False)
    assert once.calls == 1
    if callback == "on_interrupt":  # the event is not lost: the packet is still there, and the fd readable
        seen = []
        setattr(pair.side(role), callback, lambda interface, qid: seen.extend(interface.rx_queues[qid].recv()))
        pair.wait(lambda: seen)
        assert seen == [b"packet"]
    pair.wait(lambda: pair.master.connected and pair.slave.connected and pair.slave.rx_queues[0].connected)
    assert_packets_pass(pair)


@pytest.mark.parametrize("role", ROLES)
def test_what_on_disconnect_raises_comes_out_of_the_call_that_ends_it(
    runtime: Runtime, socket_name: str, role: RoleName
) -> None:
    once = Once(oops)
    pair = connect(runtime, runtime, socket_name, **{f"{role}_on_disconnect": once})
    once.armed = True
    with pytest.raises(Oops):
        pair.side(role).disconnect()
    pair.wait(lambda: pair.master.connected and pair.slave.connected and pair.slave.rx_queues[0].connected)
    once.armed = True
    with pytest.raises(Oops):
        pair.side(role).delete()
    assert runtime.interfaces == (far_of(pair, role),)


def test_an_error_does_not_lose_what_is_ready_beside_it(runtime: Runtime, socket_name: str) -> None:
    seen: list[int] = []

    def on_interrupt(interface: Interface, qid: int) -> None:
        interface.rx_queues[qid].recv()
        seen.append(interface.id)
        raise Oops(str(interface.id))

    pairs = [connect(runtime, runtime, socket_name, id=number, master_on_interrupt=on_interrupt) for number in range(4)]
    for pair in pairs:
        pair.slave.tx_queues[0].send([b"packet"])
    for _ in pairs:
        with pytest.raises(Oops):
            runtime.poll_event(0)
    assert sorted(seen) == [0, 1, 2, 3]
    assert runtime.poll_event(0) == 0


# --- how often ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_on_disconnect_is_called_once_for_each_conversation(runtime: Runtime, socket_name: str, role: RoleName) -> None:
    record = Recorder()
    options: dict[str, Any] = {
        "role": role,
        "on_connect": record.on_connect,
        "on_disconnect": record.on_disconnect,
        "socket": socket_name,
    }
    if role == "master":
        runtime.create_interface(**options)
        steps = ScriptedSlave.STEPS
    else:
        steps = ScriptedMaster.STEPS
    # Each conversation gets one step further than the one before; an INIT makes a slave this master's peer.
    told = 0
    with scripted_peer(role, socket_name, runtime) as first:
        if role == "slave":
            runtime.create_interface(**options)
        for step in steps[2 if role == "master" else 1 :]:
            peer: ScriptedMaster | ScriptedSlave = first
            if isinstance(first, ScriptedSlave) and told:
                peer = ScriptedSlave(socket_name, runtime)
            peer.run(until=step)
            peer.hang_up()
            told += 1
            wait_until(lambda: len(record.reasons) == told, runtime)  # noqa: B023
            if peer is not first:
                peer.close()
        assert record.events == [("disconnect", role)] * told
        assert not any(reason.established for reason in record.reasons)
        peer = ScriptedSlave(socket_name, runtime) if isinstance(first, ScriptedSlave) else first
        peer.run()
        wait_until(lambda: record.count("connect"), runtime)
        peer.hang_up()
        wait_until(lambda: len(record.reasons) == told + 1, runtime)
        assert record.reasons[-1].established
        assert record.count("connect") == 1
        if peer is not first:
            peer.close()


# --- queues that have lost their peer -------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_every_operation_after_the_end_raises_its_reason(make_pair: Callable[..., Pair], role: RoleName) -> None:
    pair = make_pair()
    rx, tx = pair.side(role).rx_queues[0], pair.side(role).tx_queues[0]
    counters = rx.counters, tx.counters
    pair.side(role).disconnect("the end")
    operations: list[Callable[[], object]] = [
        rx.pending,
        rx.burst,
        rx.recv,
        rx.refill,
        rx.fileno,
        lambda: rx.set_rx_mode("polling"),
        tx.free,
        tx.fileno,
        lambda: tx.send([b"packet"]),
        lambda: tx.send([]),
        lambda: tx.alloc(1),
    ]
    for operation in operations:
        with pytest.raises(Disconnected, match="the end") as caught:
            operation()
        assert caught.value.established
        assert caught.value.code is ErrorCode.DISCONNECTED
    assert (rx.connected, tx.connected) == (False, False)
    assert (rx.counters, tx.counters) == counters
    assert pair.side(role).rx_queues == (rx,)


@pytest.mark.parametrize("role", ROLES)
def test_bursts_that_are_held_over_the_end_stay_usable(make_pair: Callable[..., Pair], role: RoleName) -> None:
    pair = make_pair()
    near, far = pair.side(role), far_of(pair, role)
    far.tx_queues[0].send([b"one", b"two"])
    with near.rx_queues[0].burst() as burst, near.tx_queues[0].alloc(1) as room:
        view = burst[0]
        near.disconnect("under the burst")
        far.delete()
        assert (bytes(view), bytes(burst[1])) == (b"one", b"two")
        room[0][:3] = b"own"
        with pytest.raises(Disconnected, match="under the burst"):
            near.tx_queues[0].transmit(room)
        with pytest.raises(Disconnected, match="under the burst"):
            near.tx_queues[0].forward(burst)
    with pytest.raises(ValueError, match="released"):
        bytes(view)


# --- a peer that breaks a ring --------------------------------------------------------------------------------------


def break_ring(peer: ScriptedMaster | ScriptedSlave) -> None:
    """Publish more than the ring holds, and kick."""
    if isinstance(peer, ScriptedSlave):
        peer.tx.head = 1000
    else:
        peer.tx.tail = 1000
    peer.kick()


@pytest.mark.parametrize("role", ROLES)
def test_a_ring_broken_under_on_interrupt_shows_itself_as_on_disconnect_alone(
    runtime: Runtime, socket_name: str, role: RoleName
) -> None:
    record = Recorder()

    def on_interrupt(interface: Interface, qid: int) -> None:
        interface.rx_queues[qid].recv()
        raise AssertionError("recv returned")

    options: dict[str, Any] = {
        "socket": socket_name,
        "role": role,
        "log2_ring_size": 4,
        "buffer_size": 256,
        "on_connect": record.on_connect,
        "on_disconnect": record.on_disconnect,
        "on_interrupt": on_interrupt,
    }
    interface = runtime.create_interface(**options) if role == "master" else None
    with scripted_peer(role, socket_name, runtime) as peer:
        interface = interface or runtime.create_interface(**options)
        peer.run()
        wait_until(lambda: interface.connected, runtime)
        break_ring(peer)
        reason = peer.reason()
        assert "rx ring 0: " in reason
        assert "1000" in reason
        wait_until(lambda: record.reasons, runtime)
        assert record.events == [("connect", role), ("disconnect", role)]
        assert reason == str(record.reasons[0])
        assert record.reasons[0].established
        assert isinstance(record.reasons[0].__cause__, RingViolation)
        assert interface.rx_queues[0].counters.bad_descriptors == 1
        # The interface is free for a peer that behaves.
        successor = peer if isinstance(peer, ScriptedMaster) else ScriptedSlave(socket_name, runtime)
        successor.run()
        wait_until(lambda: record.count("connect") == 2, runtime)
        if successor is not peer:
            successor.close()


@pytest.mark.parametrize("role", ROLES)
def test_a_broken_ring_ends_every_queue_at_once_and_is_told_once(
    runtime: Runtime, socket_name: str, role: RoleName
) -> None:
    record = Recorder()
    options: dict[str, Any] = {
        "socket": socket_name,
        "role": role,
        "log2_ring_size": 4,
        "buffer_size": 256,
        "on_disconnect": record.on_disconnect,
    }
    interface = runtime.create_interface(**options) if role == "master" else None
    with scripted_peer(role, socket_name, runtime) as peer:
        interface = interface or runtime.create_interface(**options)
        peer.run()
        wait_until(lambda: interface.connected, runtime)
        break_ring(peer)
        rx, tx = interface.rx_queues[0], interface.tx_queues[0]
        for operation in (lambda: tx.forward_from(rx), rx.recv, rx.recv, rx.pending, tx.free):
            with pytest.raises(Disconnected, match="rx ring 0: ") as caught:
                operation()
            assert isinstance(caught.value.__cause__, RingViolation)
        assert record.reasons == []  # the control thread's to tell
        wait_until(lambda: record.reasons, runtime)
        runtime.poll_event(0)
        assert len(record.reasons) == 1
        assert "rx ring 0: " in interface.details().error


@pytest.mark.parametrize("role", ROLES)
def test_the_memory_of_a_peer_that_broke_a_ring_is_given_up(runtime: Runtime, socket_name: str, role: RoleName) -> None:
    options: dict[str, Any] = {"socket": socket_name, "role": role, "log2_ring_size": 4, "buffer_size": 256}
    interface = runtime.create_interface(**options) if role == "master" else None
    with scripted_peer(role, socket_name, runtime) as peer:
        interface = interface or runtime.create_interface(**options)
        peer.run()
        wait_until(lambda: interface.connected, runtime)
        break_ring(peer)
        with pytest.raises(Disconnected):
            interface.rx_queues[0].recv()
        wait_until(lambda: interface.state is not State.CONNECTED, runtime)
    gc.collect()
    # The interface still knows why, and its queues do; neither keeps the frames that had the memory at hand.
    assert "rx ring 0" in str(interface.last_error)
    with pytest.raises(Disconnected, match="rx ring 0"):
        interface.rx_queues[0].recv()
    assert "memif region" not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("junk", [b"\0", b"\x01".ljust(128, b"\0")], ids=["malformed", "unexpected"])
def test_the_broken_ring_stays_the_reason_whatever_else_the_peer_sent(
    runtime: Runtime, socket_name: str, junk: bytes
) -> None:
    record = Recorder()
    master = runtime.create_interface(socket=socket_name, role="master", on_disconnect=record.on_disconnect)
    with ScriptedSlave(socket_name, runtime) as peer:
        peer.run()
        wait_until(lambda: master.connected, runtime)
        break_ring(peer)
        peer.send(junk)
        with pytest.raises(Disconnected, match="rx ring 0"):
            master.rx_queues[0].recv()
        wait_until(lambda: record.reasons, runtime)
        assert "rx ring 0" in str(record.reasons[0])


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Schedule, "cancel"),
        (Connection, "_disconnect_queues"),
        (Connection, "_unregister"),
        (Connection, "_report"),
        (Channel, "say_goodbye"),
        (FdRegistry, "remove"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_an_interrupt_does_not_keep_a_connection_from_ending(
    runtime: Runtime, peer_runtime: Runtime, socket_name: str, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    pair = connect(runtime, peer_runtime, socket_name, master_on_interrupt=lambda interface, qid: None)
    connection = pair.master.connection
    assert connection is not None
    fds = [connection._channel.fileno(), pair.master.rx_queues[0].fileno()]
    monkeypatch.setattr(owner, name, interrupted_once(getattr(owner, name)))
    with pytest.raises(KeyboardInterrupt):
        pair.master.disconnect()
    monkeypatch.undo()
    assert connection._channel.fileno() == -1
    assert not [fd for fd in fds if fd in runtime._registry]
    assert pair.master.connection is None
    pair.wait(lambda: pair.master.connected and pair.slave.connected)
    assert_packets_pass(pair)
