"""A peer that stops at any step of the handshake or after it, in any way: we return to a clean state, tell why once,
and connect again when the peer is back.

Peers that are killed are in test_processes, what the system refuses is in test_faults_system.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from memifrt import Credentials, Interface, Runtime, State
from memifrt.control.wire import Disconnect
from memifrt.options import RoleName
from tests.lib.patched import open_fds
from tests.lib.peer import Peer, ScriptedMaster, ScriptedSlave, assert_packets_pass, scripted_peer
from tests.lib.support import Pair, Recorder, runtime_of, wait_until

ROLES: tuple[RoleName, ...] = ("master", "slave")
#: Long enough never to pass by itself: time is brought forward where it is to pass.
TIMEOUT = 3600.0

CLOSED = "peer closed the connection without a reason"
NOISE = "message of 77 bytes; every message has 128"
OFFERS = "ADD_REGION, ADD_RING or CONNECT"


@dataclass(frozen=True)
class Fault:
    """A peer of our ``role`` that takes all steps before ``step`` and ends there."""

    role: RoleName
    step: str | None
    ending: str
    #: What we wait for then, in the words of the reason.
    awaited: str

    @property
    def id(self) -> str:
        return f"{self.role}-{self.step or 'connected'}-{self.ending}"

    @property
    def is_ours(self) -> bool:
        """Whether the interface knows of this peer: a master's, from the INIT on."""
        return self.role == "slave" or self.step not in ("hello", "init")

    @property
    def reason(self) -> str:
        lie = "ACK" if self.role == "master" else "INIT"
        return {
            "silence": f"no {self.awaited} within {TIMEOUT:g} s",
            "close": CLOSED,
            "goodbye": f"peer disconnected: {Peer.GOODBYE}",
            "lie": f"unexpected message {lie}, expected {self.awaited.split(' to ')[0]}",
            "noise": NOISE,
        }[self.ending]


#: For each step, what we wait for while the peer does not take it.
MASTER_WAITS: dict[str | None, str] = {
    "hello": "INIT",
    "init": "INIT",
    "region": OFFERS,
    "s2m": OFFERS,
    "m2s": OFFERS,
    "connect": OFFERS,
    None: "DISCONNECT",
}
SLAVE_WAITS: dict[str | None, str] = {
    "accept": "HELLO",
    "init": "ACK to INIT",
    "region": "ACK to ADD_REGION 0",
    "s2m": "ACK to ADD_RING s2m 0",
    "m2s": "ACK to ADD_RING m2s 0",
    "connect": "CONNECTED",
    None: "DISCONNECT",
}
WAITS: dict[RoleName, dict[str | None, str]] = {"master": MASTER_WAITS, "slave": SLAVE_WAITS}
FAULTS = [
    Fault(role, step, ending, awaited)
    for role, waits in WAITS.items()
    for step, awaited in waits.items()
    for ending in Peer.ENDINGS
    if (step, ending) != (None, "silence")  # a peer that is connected may be as silent as it likes
]


def bring_forward(runtime: Runtime) -> None:
    """Let the deadlines of handshakes come now."""
    schedule = runtime._schedule
    for handle in schedule.pending:
        if handle is not runtime._reconnector.next_attempt:
            schedule.cancel(handle)
            schedule.after(0.0, handle.action)


def farewell(peer: Peer) -> str:
    """The reason in the DISCONNECT that comes, after whatever the peer has left unread."""
    while not isinstance(message := peer.receive(), Disconnect):
        pass
    return message.reason


def connect_good_peer(role: RoleName, path: str, interface: Interface, runtime: Runtime, peer_runtime: Runtime) -> None:
    """The interface is free for its next peer, and packets pass."""
    other: RoleName = "slave" if role == "master" else "master"
    peer = peer_runtime.create_interface(socket=path, role=other)
    wait_until(lambda: interface.connected and peer.connected, runtime, peer_runtime)
    ends = (interface, peer) if role == "master" else (peer, interface)
    assert_packets_pass(Pair(*ends, (runtime, peer_runtime)))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.id)
def test_a_peer_that_stops_leaves_nothing_and_may_come_back(
    peer_runtime: Runtime, socket_name: str, fault: Fault
) -> None:
    record = Recorder()
    options = {"on_connect": record.on_connect, "on_disconnect": record.on_disconnect}
    with Runtime("test", reconnect_interval=0.02, handshake_timeout=TIMEOUT) as runtime:
        if fault.role == "master":
            interface = runtime.create_interface(socket=socket_name, role="master", **options)  # type: ignore[arg-type]
        watched, before = len(runtime._registry), open_fds()
        with scripted_peer(fault.role, socket_name, runtime) as peer:
            if fault.role == "slave":
                interface = runtime.create_interface(socket=socket_name, **options)  # type: ignore[arg-type]
            peer.run(until=fault.step)
            wait_until(lambda: len(runtime._registry) > watched, runtime)
            if isinstance(peer, ScriptedMaster):
                peer.listener.close()  # it does not come back before the fault is told
            peer.end(fault.ending)
            if fault.ending == "silence":
                bring_forward(runtime)
            if fault.ending in ("silence", "lie", "noise"):
                assert farewell(peer) == fault.reason
            wait_until(lambda: len(runtime._registry) == watched, runtime)
            reasons = [str(reason).partition(" while we waited for ")[0] for reason in record.reasons]
            assert reasons == [fault.reason] * fault.is_ours
        assert interface.state is State.DISCONNECTED
        assert open_fds() == before
        assert record.count("connect") == (fault.step is None)
        if fault.is_ours:
            assert record.reasons[0].established == (fault.step is None)
            assert interface.last_error is record.reasons[0] or fault.role == "slave"  # which has tried again
        connect_good_peer(fault.role, socket_name, interface, runtime, peer_runtime)


# --- time -----------------------------------------------------------------------------------------------------------


def test_a_slave_whose_master_is_silent_gives_up_and_tries_again(socket_name: str) -> None:
    record = Recorder()
    with (
        Runtime("impatient", reconnect_interval=0.02, handshake_timeout=0.05) as runtime,
        ScriptedMaster(socket_name, runtime) as peer,
    ):
        slave = runtime.create_interface(socket=socket_name, on_disconnect=record.on_disconnect)
        for attempt in range(1, 4):
            peer.accept()
            wait_until(lambda: len(record.reasons) >= attempt, runtime)  # noqa: B023
        assert {str(reason) for reason in record.reasons} == {"no HELLO within 0.05 s"}
        assert slave.details().error in ("no HELLO within 0.05 s", "")


def test_a_slave_in_the_backlog_of_a_listener_that_never_accepts_gives_up(socket_name: str) -> None:
    record = Recorder()
    with (
        Runtime("impatient", reconnect_interval=0, handshake_timeout=0.05) as runtime,
        ScriptedMaster(socket_name, runtime),
    ):
        slave = runtime.create_interface(socket=socket_name, on_disconnect=record.on_disconnect)
        assert not record.reasons
        wait_until(lambda: record.reasons, runtime)
        assert slave.state is State.DISCONNECTED
        assert not runtime._timer.armed  # without an interval the application asks


def test_a_silent_peer_does_not_keep_an_interface_from_another(socket_name: str, peer_runtime: Runtime) -> None:
    with Runtime("impatient", handshake_timeout=0.2) as runtime:
        master = runtime.create_interface(socket=socket_name, role="master")
        with ScriptedSlave(socket_name, runtime) as silent:
            silent.run(until="region")
            assert master.state is State.CONNECTING
            slave = peer_runtime.create_interface(socket=socket_name)  # which is refused until the silent one is gone
            wait_until(lambda: master.connected and slave.connected, runtime, peer_runtime)
            assert "no ADD_REGION" in silent.reason()


def test_a_peer_that_says_a_little_at_a_time_has_no_more_time(socket_name: str) -> None:
    with Runtime("impatient", handshake_timeout=TIMEOUT) as runtime:
        runtime.create_interface(socket=socket_name, role="master")
        with ScriptedSlave(socket_name, runtime) as slow:
            slow.run(until="init")
            (deadline,) = runtime._schedule.pending
            for step in ("init", "region", "s2m"):
                slow.say(step)
                slow.answer(step)
                assert runtime._schedule.pending == (deadline,)


def test_what_waits_unread_is_our_delay_and_gets_more_time_but_once(socket_name: str) -> None:
    with Runtime("busy", handshake_timeout=TIMEOUT) as runtime:
        runtime.create_interface(socket=socket_name, role="master")
        with ScriptedSlave(socket_name, runtime) as peer:
            peer.run(until="init")
            peer.init()
            bring_forward(runtime)
            runtime._schedule.run()  # the timer first, as it may come
            peer.answer("init")
            peer.region()
            bring_forward(runtime)
            runtime._schedule.run()
            assert f"no {OFFERS} within" in peer.reason()


def test_a_connection_has_no_deadline(socket_name: str) -> None:
    with Runtime("test", handshake_timeout=TIMEOUT) as runtime:
        master = runtime.create_interface(socket=socket_name, role="master")
        with ScriptedSlave(socket_name, runtime) as peer:
            peer.run()
            wait_until(lambda: master.connected, runtime)
            assert len(runtime._schedule) == 0
            assert not runtime._timer.armed


def test_no_timeout_is_no_deadline(socket_name: str) -> None:
    with Runtime("patient", handshake_timeout=0) as runtime:
        runtime.create_interface(socket=socket_name, role="master")
        with ScriptedSlave(socket_name, runtime) as peer:
            peer.run(until="init")
            assert not runtime._timer.armed


@pytest.mark.parametrize("role", ROLES)
def test_what_on_disconnect_raises_at_a_deadline_comes_out_of_the_poll(socket_name: str, role: RoleName) -> None:
    def fail(interface: Interface, reason: object) -> None:
        raise ZeroDivisionError(str(reason))

    with Runtime("test", reconnect_interval=3600, handshake_timeout=TIMEOUT) as runtime:
        if role == "master":
            interface = runtime.create_interface(socket=socket_name, role=role, on_disconnect=fail)
        with scripted_peer(role, socket_name, runtime) as peer:
            if role == "slave":
                interface = runtime.create_interface(socket=socket_name, role=role, on_disconnect=fail)
            peer.run(until="region")
            runtime.poll_event(0)
            bring_forward(runtime)
            with pytest.raises(ZeroDivisionError, match="within"):
                runtime.poll_event(20)
            assert interface.state is State.DISCONNECTED
            assert runtime.poll_event(0) == 0


def delete(interface: Interface) -> None:
    interface.delete()


def close_runtime(interface: Interface) -> None:
    runtime_of(interface).close()


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("act", [delete, close_runtime])
def test_on_disconnect_at_a_deadline_may_end_it_all(
    socket_name: str, role: RoleName, act: Callable[[Interface], None]
) -> None:
    with Runtime("test", reconnect_interval=3600, handshake_timeout=TIMEOUT) as runtime:
        told = []

        def on_disconnect(interface: Interface, reason: object) -> None:
            told.append(reason)
            act(interface)

        if role == "master":
            runtime.create_interface(socket=socket_name, role=role, on_disconnect=on_disconnect)
        with scripted_peer(role, socket_name, runtime) as peer:
            if role == "slave":
                runtime.create_interface(socket=socket_name, role=role, on_disconnect=on_disconnect)
            peer.run(until="region")
            runtime.poll_event(0)
            bring_forward(runtime)
            runtime.poll_event(20)
            assert len(told) == 1
            assert runtime.interfaces == ()


# --- the peer's own affairs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_details_name_the_peer_from_the_start(runtime: Runtime, socket_name: str, role: RoleName) -> None:
    if role == "master":
        interface = runtime.create_interface(socket=socket_name, role=role)
    with scripted_peer(role, socket_name, runtime) as peer:
        if role == "slave":
            interface = runtime.create_interface(socket=socket_name, role=role)
        peer.run(until="region")
        assert interface.details().peer == Credentials(os.getpid(), os.geteuid(), os.getegid())
