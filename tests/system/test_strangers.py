"""A peer of another user must not hold the control thread: whatever it sends, the loop goes on and others connect."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import select
import socket
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from memifrt import Credentials, FdEvent, Runtime
from memifrt.control.channel import Channel
from memifrt.control.wire import AddRegion
from memifrt.system import received_fds as received
from memifrt.system.original_functions import close, epoll
from memifrt.types import State
from tests.lib.blocking import deaf_epoll_set, locked_inode
from tests.lib.patched import open_fds
from tests.lib.peer import ScriptedMaster, ScriptedSlave
from tests.lib.support import DEADLINE, Recorder, wait_for_closes, wait_until
from tests.lib.threads import Event, Thread

STRANGER = 12345


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every peer is of another user, the last in this list."""
    uids = [STRANGER]
    init = Channel.__init__

    def stranger(channel: Channel, sock: socket.socket) -> None:
        init(channel, sock)  # type: ignore[arg-type,unused-ignore]
        channel.credentials = dataclasses.replace(channel.credentials, uid=uids[-1])

    monkeypatch.setattr(Channel, "__init__", stranger)
    return uids


@dataclasses.dataclass
class ExternalLoop:
    """A runtime in a loop of the application's, which polls as a Runtime in internal mode does."""

    runtime: Runtime = dataclasses.field(init=False)
    epoll: select.epoll = dataclasses.field(default_factory=epoll)

    def __post_init__(self) -> None:
        self.runtime = Runtime("external", control_fd_update=self.update)

    def update(self, fd: int, events: FdEvent) -> None:
        if events & FdEvent.DEL:
            self.epoll.unregister(fd)
        elif events & FdEvent.MOD:
            self.epoll.modify(fd, int(events & 1) | int(events & 2) << 1)
        else:
            self.epoll.register(fd, int(events & 1) | int(events & 2) << 1)

    def turn(self) -> None:
        for fd, mask in self.epoll.poll(0.01):
            self.runtime.control_fd_handler(fd, FdEvent(mask & 1 | (mask & 4) >> 1 | (4 if mask & 0x18 else 0)))

    def close(self) -> None:
        self.runtime.close()
        self.epoll.close()


class InternalLoop:
    """A runtime that polls by itself."""

    def __init__(self) -> None:
        self.runtime = Runtime("internal")

    def turn(self) -> None:
        self.runtime.poll_event(0.01)

    def close(self) -> None:
        self.runtime.close()


Loop = InternalLoop | ExternalLoop


@pytest.fixture(params=[InternalLoop, ExternalLoop], ids=["internal", "external"])
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    made: Loop = request.param()
    yield made
    made.close()


@contextlib.contextmanager
def running(loop: Loop) -> Iterator[None]:
    """The loop turns in a thread of its own, which must be there to the end."""
    stop, failures = Event(), list[BaseException]()

    def run() -> None:
        try:
            while not stop.is_set():
                loop.turn()
        except BaseException as error:
            failures.append(error)

    thread = Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(DEADLINE)
        assert not thread.is_alive(), "the loop hangs"
    assert failures == []


def until(predicate: Callable[[], object]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + DEADLINE
    while not predicate():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def good_peer_connects(path: str) -> None:
    """A slave with a runtime of its own meets the master with id 1."""
    with Runtime("good", reconnect_interval=0.02) as runtime:
        slave = runtime.create_interface(socket=path, id=1)
        wait_until(lambda: slave.connected, runtime)


# --- the lock of an inode -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trusted", [True, False], ids=["our own user", "another user"])
@pytest.mark.parametrize("seals", [fcntl.F_SEAL_SHRINK, 0], ids=["sealed", "unsealed"])
def test_memory_whose_inode_is_locked_holds_nobody(
    loop: Loop, socket_name: str, request: pytest.FixtureRequest, trusted: bool, seals: int
) -> None:
    if not trusted:
        request.getfixturevalue("strangers")
    for number in (0, 1):
        loop.runtime.create_interface(socket=socket_name, role="master", id=number)
    with running(loop), ScriptedSlave(socket_name) as peer:
        memory = os.memfd_create("memif region of a stranger", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(memory, peer.region_size)
        os.pwrite(memory, bytes(peer.memory or b""), 0)
        if seals:
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
        with locked_inode(memory):
            peer.run(until="region")
            peer.send(AddRegion(0, peer.region_size), memory)
            if seals or trusted:
                peer.answer("region")
                for step in peer.STEPS[3:]:
                    peer.say(step)
                    peer.answer(step)
            else:
                assert peer.reason() == "region 0 is not sealed against shrinking and the peer runs as another user"
            good_peer_connects(socket_name)
            peer.hang_up()
        close(memory)


@pytest.mark.parametrize("trusted", [True, False])
def test_no_seal_is_added_to_what_a_peer_sent(
    runtime: Runtime, socket_name: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, trusted: bool
) -> None:
    """Where the kernel cannot be made to wait, the call itself must not be made."""
    if not trusted:
        request.getfixturevalue("strangers")
    commands = []
    real = fcntl.fcntl

    def watch(fd: int, command: int, argument: int = 0) -> int:
        commands.append(command)
        return real(fd, command, argument)

    runtime.create_interface(socket=socket_name, role="master")
    with ScriptedSlave(socket_name, runtime) as peer:
        forgetful = os.memfd_create("memif region of a stranger", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(forgetful, peer.region_size)
        monkeypatch.setattr(fcntl, "fcntl", watch)
        peer.run(until="region")
        peer.send(AddRegion(0, peer.region_size), forgetful)
        peer.receive()
        assert set(commands) == {fcntl.F_GET_SEALS}
        close(forgetful)


# --- an eventfd in a peer's epoll set -------------------------------------------------------------------------------


@pytest.mark.usefixtures("strangers")
@pytest.mark.parametrize("role", ["master", "slave"])
def test_an_eventfd_that_a_deaf_epoll_set_watches_holds_nobody(loop: Loop, socket_name: str, role: str) -> None:
    """Whoever closes it last waits for that set. Our own eventfd can be in it, too: the peer has a copy."""
    record = Recorder()
    loop.runtime.create_interface(socket=f"{socket_name}-good", role="master", id=1)
    if role == "master":
        victim = loop.runtime.create_interface(socket=socket_name, role="master", on_disconnect=record.on_disconnect)
    with contextlib.ExitStack() as stack:
        if role == "slave":
            master = stack.enter_context(ScriptedMaster(socket_name))
            victim = loop.runtime.create_interface(socket=socket_name, on_disconnect=record.on_disconnect)
        stack.enter_context(running(loop))
        peer = master if role == "slave" else stack.enter_context(ScriptedSlave(socket_name))
        peer.run()
        until(lambda: victim.connected)
        with deaf_epoll_set(peer.tx_fd):
            peer.fds.remove(peer.tx_fd)
            close(peer.tx_fd)
            peer.hang_up()
            until(lambda: record.reasons)
            good_peer_connects(f"{socket_name}-good")
            assert received._backlogs[STRANGER].outstanding > 0
        wait_for_closes()


@pytest.mark.usefixtures("strangers")
def test_a_runtime_closes_while_a_peer_holds_an_eventfd(loop: Loop, socket_name: str) -> None:
    victim = loop.runtime.create_interface(socket=socket_name, role="master")
    with ScriptedSlave(socket_name) as peer:
        with running(loop):
            peer.run()
            until(lambda: victim.connected)
        with deaf_epoll_set(peer.tx_fd):
            peer.fds.remove(peer.tx_fd)
            close(peer.tx_fd)
            loop.close()
        wait_for_closes()


# --- many connections, many fds -------------------------------------------------------------------------------------


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[int]]:
    """Closes in helper threads hang until the test is over; yields the threads that have closed anything."""
    go_on, close_range, threads = Event(), received._close_range, set[int]()
    close_all, helpers = received._close_all, set[int]()

    def work(*arguments: Any) -> None:
        helpers.add(threading.get_native_id())
        close_all(*arguments)

    def close(first: int, end: int) -> None:
        if threading.get_native_id() in helpers:
            threads.add(threading.get_native_id())
            go_on.wait(DEADLINE)
        close_range(first, end)

    monkeypatch.setattr(received, "_close_all", work)
    monkeypatch.setattr(received, "_close_range", close)
    yield threads
    go_on.set()
    wait_for_closes()


def send_fds(sock: socket.socket, fds: list[int]) -> None:
    sock.sendmsg([bytes(128)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))])


@pytest.mark.parametrize("admitted", [True, False])
def test_hundreds_of_connections_whose_fds_do_not_close_take_neither_time_nor_fds(
    loop: Loop, socket_name: str, hanging: set[int], strangers: list[int], admitted: bool
) -> None:
    """Each leaves an fd unread, whose close hangs; a peer that may not even connect can do so."""
    home = loop.runtime.create_socket(socket_name, accept_peer=lambda peer: admitted or peer.uid != STRANGER)
    loop.runtime.create_interface(socket=home, role="master", id=1)
    reader, writer = os.pipe()
    before = len(open_fds())
    with running(loop):
        for _ in range(300):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
                peer.settimeout(DEADLINE)
                peer.connect(home.address.native)
                with suppress(BrokenPipeError):  # one that may not connect can be refused before it has sent anything
                    send_fds(peer, [reader, writer])
        until(lambda: not select.select([home.listener_fd], [], [], 0)[0])
        strangers.append(STRANGER + 1)
        good_peer_connects(socket_name)
        assert len(received._backlogs[STRANGER]._threads) <= received._THREADS
        # Of the two fds of each connection, and the connection itself.
        assert len(open_fds()) < before + 2 * received.MAX_CLOSING
    close(reader)
    close(writer)


@pytest.mark.usefixtures("strangers")
def test_messages_of_253_fds_never_take_253_numbers(loop: Loop, socket_name: str, hanging: set[int]) -> None:
    loop.runtime.create_interface(socket=socket_name, role="master", id=1)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    before = len(open_fds())
    with running(loop):
        for _ in range(12):
            with ScriptedSlave(socket_name, interface_id=1) as peer:
                peer.run(until="init")
                send_fds(peer.socket, [null] * 253)
                assert peer.reason() == "more than one fd came with a message"
                peer.hang_up()
                assert len(open_fds()) < before + received.MAX_CLOSING
        good_peer_connects(socket_name)
    close(null)


def test_a_connection_of_a_stranger_ends_without_a_thread_if_nothing_is_left_in_it(
    runtime: Runtime, socket_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What good peers do costs no thread."""
    monkeypatch.setattr(received, "start_new_thread", None)
    master = runtime.create_interface(socket=socket_name, role="master")
    with ScriptedSlave(socket_name, runtime) as peer:
        peer.run()
        wait_until(lambda: master.connected, runtime)
        peer.hang_up()
        wait_until(lambda: master.state is State.DISCONNECTED, runtime)


# --- what is none, and says it is -----------------------------------------------------------------------------------


def test_a_file_whose_path_is_too_long_to_tell_is_no_eventfd(
    runtime: Runtime, socket_name: str, tmp_path: Path
) -> None:
    """The kernel cannot say what it is: ENAMETOOLONG."""
    directories = [os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)]
    name = "d" * 250
    for _ in range(18):
        os.mkdir(name, dir_fd=directories[-1])
        directories.append(os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=directories[-1]))
    fd = os.open("file", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, dir_fd=directories[-1])
    try:
        with pytest.raises(OSError, match="too long"):
            os.readlink(f"/proc/self/fd/{fd}")
        runtime.create_interface(socket=socket_name, role="master")
        with ScriptedSlave(socket_name, runtime) as peer:
            peer.run(until="s2m")
            peer.tx_fd = fd
            peer.s2m()
            assert "came with an fd that is not an eventfd" in peer.reason()
    finally:
        close(fd)
        os.unlink("file", dir_fd=directories[-1])
        while len(directories) > 1:
            close(directories.pop())
            os.rmdir(name, dir_fd=directories[-1])
        close(directories.pop())


def test_a_listener_that_passes_credentials_leaves_room_for_the_fd(runtime: Runtime, socket_name: str) -> None:
    """As systemd's PassCredentials= does: connections inherit it, and each message has more beside it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        listener.bind("\0" + socket_name[1:])
        listener.listen()
        home = runtime.create_socket(socket_name)
        home.set_listener_fd(os.dup(listener.fileno()))
        master = runtime.create_interface(socket=home, role="master")
        with ScriptedSlave(socket_name, runtime) as peer:
            peer.run()
            wait_until(lambda: master.connected, runtime)


# --- the stats socket -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [0, socket.MSG_OOB], ids=["data", "urgent data"])
def test_fds_that_a_client_of_the_stats_socket_sends_are_not_closed_by_the_loop(
    socket_name: str, hanging: set[int], kind: int
) -> None:
    reader, writer = os.pipe()
    with Runtime("watched", stats_socket=socket_name) as runtime, socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + socket_name[1:])
        client.settimeout(DEADLINE)
        wait_until(lambda: select.select([client], [], [], 0)[0], runtime)
        client.recv(1 << 20)
        client.sendmsg([b"\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [reader, writer]))], kind)
        wait_until(lambda: hanging, runtime)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1 << 20) == b""
    close(reader)
    close(writer)


def test_the_credentials_of_a_peer_are_asked_for_by_what_cannot_wait() -> None:
    """SO_PEERCRED has them ready; a pidfd, or /proc of the peer, would have to be looked for."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        channel = Channel(ours)  # type: ignore[arg-type,unused-ignore]
        assert channel.credentials == Credentials(os.getpid(), os.geteuid(), os.getegid())
        channel.close()
