"""What the system refuses or disturbs, at every point: fds, memory, room in a socket, signals, the hook. The attempt
fails with a reason, nothing is left of it, and the next one succeeds.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memifrt import ErrorCode, FdEvent, Interface, MemifError, Runtime, State
from memifrt.control.channel import Channel
from memifrt.control.wire import Ack, AddRegion, AddRing, Connected
from memifrt.memory import region
from memifrt.options import RoleName
from memifrt.poll.epoll import EpollPoller
from tests.lib.forked import beside, in_child
from tests.lib.patched import PATCHED, open_fds
from tests.lib.peer import LOG2_SIZE, ScriptedSlave, assert_packets_pass
from tests.lib.support import Pair, Recorder, wait_until

ROLES: tuple[RoleName, ...] = ("master", "slave")
other: dict[RoleName, RoleName] = {"master": "slave", "slave": "master"}


# --- fds ------------------------------------------------------------------------------------------------------------

#: What a connection takes: the channel, the memory and its mapping, two eventfds.
FDS_OF_A_CONNECTION = 5
_LIMIT = 256


def serve(role: RoleName, path: str) -> None:
    """The other end, in a process of its own."""
    runtime = Runtime("peer", reconnect_interval=0.02)
    runtime.create_interface(socket=path, role=role)
    runtime.run()


@contextlib.contextmanager
def room_for(count: int) -> Iterator[None]:
    """Let this process open so many more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_LIMIT, hard))
    fillers = []
    with contextlib.suppress(OSError):
        while True:
            fillers.append(os.dup(0))
    for _ in range(count):
        os.close(fillers.pop())
    try:
        yield
    finally:
        for filler in fillers:
            os.close(filler)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.skipif(PATCHED, reason="gevent itself needs fds to wait for a child process")
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("room", range(FDS_OF_A_CONNECTION + 1))
def test_a_process_that_runs_out_of_fds_says_so_and_recovers(socket_name: str, role: RoleName, room: int) -> None:
    def check() -> None:
        record = Recorder()
        with Runtime("exhausted", reconnect_interval=0.02) as runtime:
            home = runtime.create_socket(socket_name)
            options: dict[str, Any] = {"role": role, "on_disconnect": record.on_disconnect}
            if role == "master":
                interface = runtime.create_interface(socket=home, **options)
            before = open_fds()
            with room_for(room), beside_with_room(lambda: serve(other[role], socket_name)):
                if role == "slave":
                    interface = runtime.create_interface(socket=home, **options)
                enough = room >= FDS_OF_A_CONNECTION

                def told() -> bool:
                    failed = interface.last_error is not None and interface.last_error.code is ErrorCode.PROC_FILE_LIMIT
                    accepting = home._acceptor
                    return failed or (accepting is not None and accepting.out_of_fds)

                wait_until(lambda: interface.connected if enough else told(), runtime)
                for reason in record.reasons:
                    assert reason.code is ErrorCode.PROC_FILE_LIMIT or "closed the connection" in str(reason)
                    assert not reason.established
            interface.disconnect()
            if role == "slave":
                runtime.set_reconnect_interval(0)
            wait_until(lambda: interface.state is State.DISCONNECTED and not home._half_open, runtime)
            assert open_fds() == before
            runtime.set_reconnect_interval(0.02)
            with beside(lambda: serve(other[role], socket_name)):
                wait_until(lambda: interface.connected, runtime)

    in_child(check)


@contextlib.contextmanager
def beside_with_room(work: Callable[[], None]) -> Iterator[None]:
    """A child with work to do, which is not short of fds itself."""

    def with_room() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
        work()

    with beside(with_room):
        yield


# --- memory ---------------------------------------------------------------------------------------------------------


def refuses(number: int) -> Callable[..., Any]:
    def refuse(*args: object, **kwargs: object) -> Any:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize(
    ("role", "module", "name", "number", "words"),
    [
        ("slave", os, "memfd_create", errno.ENOMEM, "cannot allocate region 0"),
        ("slave", os, "memfd_create", errno.EMFILE, "cannot allocate region 0"),
        ("slave", os, "ftruncate", errno.ENOSPC, "cannot allocate region 0"),
        ("slave", region, "_Mapping", errno.ENOMEM, "cannot map region 0"),
        ("slave", os, "eventfd", errno.ENFILE, "cannot make the eventfd of"),
        ("master", region, "_Mapping", errno.ENOMEM, "cannot map region 0"),
        ("master", region, "_Mapping", errno.EPERM, "cannot map region 0"),
    ],
)
def test_a_call_that_the_system_refuses_ends_the_attempt(
    runtime: Runtime,
    peer_runtime: Runtime,
    socket_name: str,
    role: RoleName,
    module: Any,
    name: str,
    number: int,
    words: str,
) -> None:
    ours, theirs = Recorder(), Recorder()
    ends: list[tuple[Runtime, RoleName]] = [(runtime, "master"), (peer_runtime, "slave")]
    master, slave = (
        end.create_interface(
            socket=socket_name,
            role=kind,
            on_disconnect=(ours if kind == role else theirs).on_disconnect,
            on_connect=(ours if kind == role else theirs).on_connect,
        )
        for end, kind in ends
    )
    slave.disconnect()
    wait_until(lambda: master.state is State.DISCONNECTED, runtime)
    ours.reasons.clear()
    theirs.reasons.clear()
    before = open_fds()
    with pytest.MonkeyPatch.context() as patch:
        second = name == "_Mapping" and role == "master"
        patch.setattr(module, name, _refuse_second_mapping(number) if second else refuses(number))
        wait_until(lambda: ours.reasons and theirs.reasons, runtime, peer_runtime)
        assert ours.reasons[0].code is not ErrorCode.SUCCESS
        assert words in str(ours.reasons[0])
        assert errno.errorcode[number] in str(ours.reasons[0])
        # The peer reads why in the DISCONNECT.
        assert str(theirs.reasons[0]).startswith(f"peer disconnected: {words}")
        slave.disconnect()
        peer_runtime.set_reconnect_interval(0)
        wait_until(lambda: master.state is State.DISCONNECTED, runtime)
        assert open_fds() == before
    assert ours.count("connect") == 0
    peer_runtime.set_reconnect_interval(0.02)
    wait_until(lambda: master.connected and slave.connected, runtime, peer_runtime)
    assert_packets_pass(Pair(master, slave, (runtime, peer_runtime)))


def _refuse_second_mapping(number: int) -> Callable[[int, int], mmap.mmap]:
    """The slave maps a region first, then the master."""
    mapping, calls = region._Mapping, itertools.count()

    def map_or_refuse(fd: int, size: int) -> mmap.mmap:
        if next(calls) % 2:
            raise OSError(number, os.strerror(number))
        return mapping(fd, size)

    return map_or_refuse


FILL_A_FILE_SYSTEM = """
import os, select, sys, uuid, memifrt

def allocate(size):
    path = os.path.join(sys.argv[1], "region")
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.unlink(path)
    os.ftruncate(fd, size)
    return fd

name, ended = f"@{uuid.uuid4().hex}", []
with memifrt.Runtime(region_allocator=allocate, reconnect_interval=0) as runtime:
    master = runtime.create_interface(socket=name, role="master")
    slave = runtime.create_interface(socket=name, role="slave", on_disconnect=lambda _, reason: ended.append(reason))
    while not ended:
        runtime.poll_event(1)
        try:
            if slave.connected:
                slave.tx_queues[0].send([bytes(2000)] * 64)
        except memifrt.Disconnected:
            pass
    print(ended[0])
"""


def can_mount() -> bool:
    """Whether a program can have a mount namespace of its own here."""
    if os.geteuid() or PATCHED:
        return False
    probe = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /mnt"]
    return not subprocess.run(probe, capture_output=True, check=False).returncode


@pytest.mark.skipif(not can_mount(), reason="needs root and unshare --mount")
def test_memory_in_a_file_system_that_is_full_ends_the_connection_and_says_so(tmp_path: Path) -> None:
    script = f'mount -t tmpfs -o size=64k none {tmp_path} && exec {sys.executable} -c "$0" {tmp_path}'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, FILL_A_FILE_SYSTEM],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "region 0 is gone" in done.stdout
    assert "its file system is full" in done.stdout


# --- a socket without room ------------------------------------------------------------------------------------------


class Narrow:
    """A channel's socket that takes every message only when it is asked again."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._refuse = True

    def sendmsg(self, *args: Any) -> int:
        self._refuse = not self._refuse
        if not self._refuse:
            raise BlockingIOError
        return int(self._sock.sendmsg(*args))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def narrow_channel(sock: Any) -> Channel:
    channel = Channel(sock)
    channel._socket = Narrow(sock)  # type: ignore[assignment]
    return channel


def test_messages_that_find_no_room_wait_and_arrive_in_order(
    runtime: Runtime, peer_runtime: Runtime, socket_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("memifrt.interface", "memifrt.sockets"):
        monkeypatch.setattr(f"{module}.Channel", narrow_channel)
    master = runtime.create_interface(socket=socket_name, role="master", num_m2s_rings=4)
    slave = peer_runtime.create_interface(socket=socket_name, num_s2m_rings=4, num_m2s_rings=4)
    wait_until(lambda: master.connected and slave.connected, runtime, peer_runtime)
    for qid in range(4):
        assert_packets_pass(Pair(master, slave, (runtime, peer_runtime)), qid)


def test_a_peer_that_asks_without_reading_is_answered_when_it_reads(
    runtime: Runtime, socket_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More answers than our side of the socket holds."""

    def small(sock: Any) -> Channel:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least that the system gives
        return Channel(sock)

    monkeypatch.setattr("memifrt.sockets.Channel", small)
    master = runtime.create_interface(socket=socket_name, role="master")
    rings = 24
    with ScriptedSlave(socket_name, runtime) as peer:
        peer.run(until="init")
        peer.init()
        peer.region()
        for index in range(rings):
            peer.send(AddRing(True, index, 0, peer.offsets[0], LOG2_SIZE), peer.tx_fd)
        peer.send(AddRing(False, 0, 0, peer.offsets[1], LOG2_SIZE), peer.rx_fd)
        wait_until(lambda: master.connection is not None and master.connection._channel.wants_write, runtime)
        connection = master.connection
        assert connection is not None
        for _ in range(2 + rings + 1):
            peer.expect(Ack)
        assert not connection._channel.wants_write
        peer.connect()
        peer.expect(Connected)
        wait_until(lambda: master.connected, runtime)
        assert len(master.rx_queues) == rings


def test_a_peer_that_never_reads_is_gone_with_its_deadline(socket_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(sock: Any) -> Channel:
        channel = Channel(sock)
        channel._socket = Full(sock)  # type: ignore[assignment]
        return channel

    class Full(Narrow):
        def sendmsg(self, *args: Any) -> int:
            raise BlockingIOError

    monkeypatch.setattr("memifrt.sockets.Channel", full)
    with Runtime("test", handshake_timeout=0.05) as runtime:
        master = runtime.create_interface(socket=socket_name, role="master")
        before, watched = open_fds(), len(runtime._registry)
        with ScriptedSlave(socket_name, runtime) as peer:
            wait_until(lambda: len(runtime._registry) == watched + 1, runtime)
            wait_until(lambda: len(runtime._registry) == watched, runtime)
            peer.close()
        assert open_fds() == before
        assert master.state is State.DISCONNECTED


# --- fds that are lost on the way -----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["region", "s2m"])
def test_an_fd_that_does_not_arrive_for_want_of_room_is_named(socket_name: str, step: str) -> None:
    def check() -> None:
        record = Recorder()
        with Runtime("exhausted") as runtime:
            runtime.create_interface(socket=socket_name, role="master", on_disconnect=record.on_disconnect)
            with ScriptedSlave(socket_name, runtime) as peer:
                peer.run(until=step)
                peer.say(step)
                with room_for(0):
                    wait_until(lambda: record.reasons, runtime)
        (reason,) = record.reasons
        assert str(reason) == "cannot take the fd of a message: this process has too many open files"
        assert reason.code is ErrorCode.PROC_FILE_LIMIT

    in_child(check)


# --- signals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_a_storm_of_signals_disturbs_nothing(socket_name: str, role: RoleName) -> None:
    def check() -> None:
        signals = itertools.count(1)
        seen = 0

        def on_alarm(number: int, frame: object) -> None:
            nonlocal seen
            seen = next(signals)

        signal.signal(signal.SIGALRM, on_alarm)
        received: list[bytes] = []

        def on_interrupt(interface: Interface, qid: int) -> None:
            received.extend(interface.rx_queues[qid].recv())

        def echo() -> None:
            def back(interface: Interface, qid: int) -> None:
                interface.tx_queues[qid].send(interface.rx_queues[qid].recv())

            runtime = Runtime("echo", reconnect_interval=0.02)
            runtime.create_interface(socket=socket_name, role=other[role], on_interrupt=back)
            runtime.run()

        with beside(echo), Runtime("stormy", reconnect_interval=0.02) as runtime:
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
            try:
                interface = runtime.create_interface(socket=socket_name, role=role, on_interrupt=on_interrupt)
                for life in range(3):
                    wait_until(lambda: interface.connected, runtime)
                    packets = [b"%d-%d" % (life, number) for number in range(300)]
                    for packet in packets:
                        wait_until(lambda: interface.tx_queues[0].send([packet]), runtime)  # noqa: B023
                    wait_until(lambda: len(received) == 300, runtime)
                    assert received == packets
                    received.clear()
                    interface.disconnect()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        assert seen > 10

    in_child(check)


# --- the hook -------------------------------------------------------------------------------------------------------


class FailingHook:
    """An application's hook that raises once, at one of its calls."""

    def __init__(self, fails_at: int) -> None:
        self.poller = EpollPoller()
        self.calls = 0
        self.failed = False
        self._fails_at = fails_at

    def __call__(self, fd: int, events: FdEvent) -> None:
        fails = self.calls == self._fails_at
        self.calls += 1
        if not fails or events & FdEvent.DEL:  # what is to be withdrawn is withdrawn, whatever comes then
            self.poller.update(fd, events)
        if fails:
            self.failed = True
            raise ZeroDivisionError(f"call {self._fails_at}")


def live(hook: FailingHook, path: str) -> list[str]:
    """A whole life of two interfaces in one runtime, whatever fails; what came out of its calls."""
    errors: list[str] = []
    runtimes: list[Runtime] = []
    ends: list[Interface] = []

    def attempt(call: Callable[[], object]) -> None:
        for _ in range(2):  # what failed once does not fail again
            try:
                call()
            except MemifError as error:
                errors.append(str(error))
            else:
                return
        raise AssertionError(errors)

    def handle() -> None:
        ready, _ = hook.poller.wait(1)
        for fd, events in ready:
            try:
                runtimes[0].control_fd_handler(fd, events)
            except MemifError as error:
                errors.append(str(error))

    def until(done: Callable[[], bool]) -> None:
        for _ in range(1000):
            if done():
                return
            handle()
        raise AssertionError(f"no end in sight: {errors}")

    attempt(lambda: runtimes.append(Runtime("hooked", control_fd_update=hook, reconnect_interval=0.005)))
    runtime = runtimes[0]
    for role in ROLES:
        attempt(lambda role=role: ends.append(create(runtime, path, role)))  # type: ignore[misc]
    for _ in range(2):
        until(lambda: all(end.connected for end in ends))
        # The peer of an end may have gone in the same moment: then they connect again.
        with contextlib.suppress(MemifError):
            assert ends[0].tx_queues[0].send([b"packet"]) == 1
        attempt(ends[1].disconnect)
    attempt(ends[1].delete)
    with contextlib.suppress(MemifError):
        ends[0].delete()
    try:
        runtime.close()
    except MemifError as error:
        errors.append(str(error))
    assert runtime.closed
    assert len(runtime._registry) == 0
    return errors


def create(runtime: Runtime, path: str, role: RoleName) -> Interface:
    return runtime.create_interface(socket=path, role=role, on_interrupt=lambda interface, qid: None)


def test_a_hook_that_raises_at_any_of_its_calls_loses_nothing(socket_path: str) -> None:
    before = open_fds()
    for number in itertools.count():
        hook = FailingHook(number)
        errors = live(hook, socket_path)
        hook.poller.close()
        gc.collect()  # an error that was raised holds the frames that it came through
        assert open_fds() == before
        assert not os.path.exists(socket_path)
        if not hook.failed:
            assert errors == []
            break
        assert all(f"ZeroDivisionError: call {number}" in error for error in errors)
        assert number < 200
    assert number > 15  # listener, timer, channels, eventfds, with ADD, MOD and DEL


# --- the interpreter's end ------------------------------------------------------------------------------------------


_AT_THE_END = """
import socket, sys, threading
from memifrt import Runtime

runtime = Runtime("ends", reconnect_interval=0.02, handshake_timeout=60)
ends = [runtime.create_interface(socket=sys.argv[1], role=role) for role in ("master", "slave")]
silent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
silent.connect("\\0" + sys.argv[1][1:])
while not all(end.connected for end in ends) or len(ends[0].socket._half_open) < 1:
    runtime.poll_event(1)
burst = ends[1].tx_queues[0].alloc(1)
"""


@pytest.mark.parametrize(
    "how",
    [
        "pass",
        "sys.exit(0)",
        "threading.Thread(target=runtime.run, daemon=True).start()",
        "import atexit; atexit.register(runtime.close)",
        "ends[0].on_disconnect = lambda interface, reason: runtime.close()",
    ],
)
def test_an_interpreter_ends_with_live_interfaces(socket_name: str, how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{_AT_THE_END}{how}\n", socket_name],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert "Fatal" not in done.stderr


# --- messages that nobody asked for ---------------------------------------------------------------------------------


def test_a_flood_of_messages_starves_nobody(runtime: Runtime, socket_name: str) -> None:
    """All that a peer may say, said at once, is handled in portions: others have their turn in between."""
    flooded = runtime.create_interface(socket=socket_name, role="master")
    quiet = runtime.create_interface(socket=socket_name, id=1, role="master")
    with ScriptedSlave(socket_name, runtime) as peer, ScriptedSlave(socket_name, runtime, interface_id=1) as second:
        peer.run(until="region")
        second.run(until="init")
        for index in range(40):
            peer.send(AddRegion(index, peer.region_size), peer.memory_fd)
        second.init()
        runtime.poll_event(0)
        runtime.poll_event(0)
        assert quiet.state is State.CONNECTING
        assert flooded.connection is not None
        assert len(flooded.connection.regions) < 40
        second.answer("init")
