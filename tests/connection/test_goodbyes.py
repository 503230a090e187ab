"""No connection of ours ends in silence: a peer that counts hang-ups without a DISCONNECT, as VPP feels them, counts
none, whatever ends the connection and at whichever step of the handshake."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from memifrt import Disconnected, MemifError, Runtime
from memifrt.control.address import Address, Listener, connect
from memifrt.control.channel import Channel
from memifrt.control.wire import Ack, Disconnect, decode
from memifrt.types import FdEvent
from tests.lib.peer import Peer, PeerClosed, ScriptedMaster, ScriptedSlave
from tests.lib.programs import command, running
from tests.lib.support import DEADLINE, wait_until

#: How far the scripted peer goes: it takes no step from this one on.
MASTER_STEPS = [*ScriptedMaster.STEPS, None]
SLAVE_STEPS = [*ScriptedSlave.STEPS[1:], None]
STEPS = [("slave", step) for step in MASTER_STEPS] + [("master", step) for step in SLAVE_STEPS]


def stopped_peer(role: str, step: str | None, path: str, runtime: Runtime) -> Peer:
    """A peer that has gone so far with an interface of ``role`` in the runtime."""
    if role == "slave":
        master = ScriptedMaster(path, runtime)
        runtime.create_interface(socket=path, role="slave")
        peer: Peer = master.run(until=step)
    else:
        runtime.create_interface(socket=path, role="master")
        peer = ScriptedSlave(path, runtime).run(until=step)
        if step == "init":
            return peer  # nobody's yet
    if step is None:
        wait_until(lambda: runtime.interfaces[0].connected, runtime)
    return peer


def silent_hang_ups(peer: Peer) -> int:
    """Read to the end of the channel; 1 if it ended without a DISCONNECT."""
    peer.runtimes = ()
    last: object = None
    while True:
        try:
            last = peer.receive()
        except PeerClosed:
            return int(not isinstance(last, Disconnect))


def _delete(runtime: Runtime) -> None:
    runtime.interfaces[0].delete()


def _disconnect(runtime: Runtime) -> None:
    runtime.interfaces[0].disconnect()


def _close(runtime: Runtime) -> None:
    runtime.close()


ENDINGS: list[Callable[[Runtime], None]] = [_delete, _disconnect, _close]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(("role", "step"), STEPS)
def test_ends_that_the_application_asks_for(
    role: str, step: str | None, ending: Callable[[Runtime], None], socket_path: str
) -> None:
    with Runtime("test", reconnect_interval=0) as runtime, stopped_peer(role, step, socket_path, runtime) as peer:
        ending(runtime)
        if (role, step) == ("master", "init"):
            runtime.close()  # this peer is no interface's: it is the listener's
        assert silent_hang_ups(peer) == 0


@pytest.mark.parametrize(("role", "step"), [(role, step) for role, step in STEPS if step is not None])
def test_a_handshake_that_takes_too_long(role: str, step: str, socket_path: str) -> None:
    with (
        Runtime("test", reconnect_interval=0, handshake_timeout=0.05) as runtime,
        stopped_peer(role, step, socket_path, runtime) as peer,
    ):
        peer.runtimes = (runtime,)
        assert "within 0.05 s" in peer.reason()


@pytest.mark.parametrize("how", ["lie", "noise", "goodbye", "half"])
@pytest.mark.parametrize(("role", "step"), STEPS)
def test_ends_that_the_peer_brings_about(role: str, step: str | None, how: str, socket_path: str) -> None:
    with Runtime("test", reconnect_interval=0) as runtime, stopped_peer(role, step, socket_path, runtime) as peer:
        if how == "half":
            peer.socket.shutdown(socket.SHUT_WR)
        elif how == "goodbye":
            peer.send(Disconnect(0, peer.GOODBYE))  # and it waits for an answer
        else:
            peer.end(how)
        peer.reason()


@pytest.mark.parametrize(("role", "step"), STEPS)
def test_a_runtime_that_is_forgotten(role: str, step: str | None, socket_path: str) -> None:
    runtime = Runtime("test", reconnect_interval=0)
    with stopped_peer(role, step, socket_path, runtime) as peer, warnings.catch_warnings():
        peer.runtimes = ()
        warnings.simplefilter("ignore", ResourceWarning)
        del runtime
        gc.collect()
        assert silent_hang_ups(peer) == 0


def test_an_allocator_of_the_application_that_raises(socket_path: str) -> None:
    def fail(size: int) -> int:
        raise RuntimeError("no memory today")

    with (
        Runtime("test", reconnect_interval=0, region_allocator=fail) as runtime,
        stopped_peer("slave", "init", socket_path, runtime) as peer,
    ):
        peer.send(Ack())
        with pytest.raises(RuntimeError, match="no memory today"):
            wait_until(lambda: False, runtime)
        assert silent_hang_ups(peer) == 0


def test_a_hook_that_raises(socket_path: str) -> None:
    def hook(fd: int, events: FdEvent) -> None:
        if fail_now and not events & FdEvent.DEL:
            raise RuntimeError("no more fds")

    fail_now = False
    with Runtime("test", control_fd_update=hook, reconnect_interval=0) as runtime, ScriptedMaster(socket_path) as peer:
        fail_now = True
        with pytest.raises(MemifError, match="no more fds"):
            runtime.create_interface(socket=socket_path)
        peer.accept()
        assert silent_hang_ups(peer) == 0


def test_an_eviction_of_a_half_open_peer(socket_path: str) -> None:
    with Runtime("test", max_half_open=1) as runtime:
        runtime.create_interface(socket=socket_path, role="master")
        with ScriptedSlave(socket_path, runtime).run(until="init") as first, ScriptedSlave(socket_path, runtime):
            assert "have not said which interface they want" in first.reason()


def test_peers_that_were_never_accepted(runtime: Runtime, socket_path: str) -> None:
    interface = runtime.create_interface(socket=socket_path, role="master")
    peers = [ScriptedSlave(socket_path) for _ in range(5)]
    interface.delete()
    for peer in peers:
        with peer:
            assert peer.reason() == "the listener was closed"


def test_a_shared_listener_leaves_its_waiting_peers_to_others(runtime: Runtime, socket_path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(socket_path)
        listener.listen()
        home = runtime.create_socket(socket_path)
        home.set_listener_fd(os.dup(listener.fileno()))
        with ScriptedSlave(socket_path) as peer:
            home.delete()
            accepted, _ = listener.accept()
            with accepted:
                peer.socket.setblocking(False)
                with pytest.raises(BlockingIOError):
                    peer.socket.recv(256)
    os.unlink(socket_path)


def test_a_channel_whoever_closes_or_forgets_it() -> None:
    for end in (Channel.close, lambda channel: None):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            channel = Channel(ours)
            end(channel)
            del channel, ours
            gc.collect()
            assert isinstance(decode(theirs.recv(256)), Disconnect)
            assert theirs.recv(256) == b""


def test_a_channel_whose_peer_reads_nothing() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        channel = Channel(ours)
        while not channel.wants_write:
            channel.send(Disconnect(0, "one of many"))
        channel.close("the last of them")
        while data := theirs.recv(256):
            last = decode(data)
    assert last == Disconnect(0, "the last of them")


def test_a_channel_says_goodbye_once() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        channel = Channel(ours)
        channel.say_goodbye("the reason")
        channel.close()
        channel.close()
        assert decode(theirs.recv(256)) == Disconnect(0, "the reason")
        assert theirs.recv(256) == b""


def test_a_listener_that_looks_whether_the_path_is_in_use_connects_to_nobody(socket_path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(socket_path)
        listener.listen()
        listener.setblocking(False)
        with pytest.raises(MemifError, match="somebody listens there already"):
            Listener.bind(Address.parse(socket_path))
        with pytest.raises(BlockingIOError):
            listener.accept()
    os.unlink(socket_path)


def test_a_slave_that_cannot_be_bound(runtime: Runtime, socket_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedMaster(socket_path) as peer:
        monkeypatch.setattr("memifrt.interface.Interface.connection_bound", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            runtime.create_interface(socket=socket_path)
        peer.accept()
        assert silent_hang_ups(peer) == 0


# --- processes that end ---------------------------------------------------------------------------------------------

UNCLOSED = """
    import sys, memifrt
    runtime = memifrt.Runtime("unclosed", reconnect_interval=0.05)
    runtime.create_interface(socket=sys.argv[1], role=sys.argv[2])
    while True:
        runtime.poll_event(0.05)
        sys.stdin.readline() and sys.exit(0) if __import__("select").select([0], [], [], 0)[0] else None
"""


def program(path: str, role: str) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(UNCLOSED), path, role]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE)


def joined(role: str, path: str) -> Peer:
    """A peer of a program that is starting."""
    if role == "slave":
        return ScriptedMaster(path)
    wait_until(lambda: os.path.exists(path) and accepts(path))
    return ScriptedSlave(path)


def accepts(path: str) -> bool:
    try:
        Channel(connect(Address(path))).close()
    except MemifError:
        return False
    return True


@pytest.mark.parametrize(
    ("role", "step"), [("slave", "accept"), ("slave", "m2s"), ("master", "init"), ("master", "connect")]
)
def test_an_interpreter_that_exits_with_a_runtime_open(role: str, step: str, socket_path: str) -> None:
    with program(socket_path, role) as process, joined(role, socket_path) as peer:
        assert isinstance(peer, ScriptedMaster | ScriptedSlave)
        peer.run(until=step)
        assert process.stdin is not None
        process.stdin.write(b"exit\n")
        process.stdin.flush()
        assert silent_hang_ups(peer) == 0
        assert process.wait(DEADLINE) == 0
    if os.path.exists(socket_path):
        os.unlink(socket_path)


@pytest.mark.parametrize(
    ("role", "step", "number"),
    [
        ("slave", "accept", signal.SIGTERM),
        ("slave", "region", signal.SIGHUP),
        ("slave", "connect", signal.SIGINT),
        ("master", "init", signal.SIGHUP),
        ("master", "m2s", signal.SIGTERM),
        ("master", "connect", signal.SIGINT),
    ],
)
def test_a_command_that_a_signal_ends(role: str, step: str, number: signal.Signals, socket_path: str) -> None:
    with running("dump", "--role", role, "--socket", socket_path) as process, joined(role, socket_path) as peer:
        assert isinstance(peer, ScriptedMaster | ScriptedSlave)
        peer.run(until=step)
        process.send_signal(number)
        assert silent_hang_ups(peer) == 0


def test_doctor_says_goodbye(socket_path: str) -> None:
    with ScriptedMaster(socket_path) as peer:
        doctor = subprocess.Popen(command("doctor", socket_path), stdout=subprocess.DEVNULL)
        with doctor:
            peer.accept()
            peer.answer("accept")
            assert silent_hang_ups(peer) == 0
            assert doctor.wait(DEADLINE) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_doctor_says_goodbye_when_a_signal_ends_it(number: signal.Signals, socket_path: str) -> None:
    with ScriptedMaster(socket_path) as peer:
        arguments = command("doctor", "--timeout", "60", "--probe-id", "0", socket_path)
        with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as doctor:
            peer.accept()
            if number is not signal.SIGINT:
                peer.answer("accept")
                peer.hear("init")
            doctor.send_signal(number)
            assert silent_hang_ups(peer) == 0
            assert doctor.communicate(timeout=DEADLINE)[1] == b""
            assert doctor.returncode == 128 + number


# --- the step at which a peer hung up -------------------------------------------------------------------------------

STOPS = {
    ("slave", "accept"): "HELLO: it may be no memif master",
    ("slave", "init"): "ACK to INIT: it may have no interface with id 0",
    ("slave", "region"): "ACK to ADD_REGION 0: it may have no interface with id 0, or accept fewer regions",
    ("slave", "s2m"): "ACK to ADD_RING s2m 0: it may accept fewer rings",
    ("slave", "m2s"): "ACK to ADD_RING m2s 0: it may accept fewer rings",
    ("slave", "connect"): "CONNECTED: it may have failed to map our memory",
    ("master", "region"): "ADD_REGION, ADD_RING or CONNECT: it may have failed to make its memory",
    ("master", "connect"): "ADD_REGION, ADD_RING or CONNECT: it may have failed to make its memory",
}


@pytest.mark.parametrize(("role", "step"), STOPS)
@pytest.mark.parametrize("how", ["close", "goodbye without a reason"])
def test_the_message_names_the_step_at_which_a_peer_hung_up(role: str, step: str, how: str, socket_path: str) -> None:
    with Runtime("test", reconnect_interval=0) as runtime, stopped_peer(role, step, socket_path, runtime) as peer:
        if how != "close":
            peer.send(Disconnect(0, ""))
        peer.hang_up()
        interface = runtime.interfaces[0]
        wait_until(lambda: interface.last_error, runtime)
        start = (
            "peer closed the connection without a reason" if how == "close" else "peer disconnected: no reason given"
        )
        assert isinstance(interface.last_error, Disconnected)
        assert interface.last_error.message.startswith(f"{start} while we waited for {STOPS[role, step]}")


@pytest.mark.parametrize("role", ["slave", "master"])
def test_after_the_handshake_there_is_no_step_to_name(role: str, socket_path: str) -> None:
    with Runtime("test", reconnect_interval=0) as runtime, stopped_peer(role, None, socket_path, runtime) as peer:
        peer.hang_up()
        interface = runtime.interfaces[0]
        wait_until(lambda: interface.last_error, runtime)
        assert str(interface.last_error).startswith("peer closed the connection without a reason")
        assert "waited" not in str(interface.last_error)


def test_the_page_on_troubleshooting_has_every_step() -> None:
    """Each message, without its numbers, stands on the page."""
    root = Path(__file__).parents[2]
    page = " ".join((root / "docs" / "troubleshooting.md").read_text().split())
    for text in STOPS.values():
        step, _, hint = text.partition(": ")
        words = step.replace(" s2m 0", "").replace(" m2s 0", "").replace(" 0", "")
        assert words in page, words
        assert hint.replace(" with id 0", "").split(", or")[0] in page, hint
