"""An fd of a file system that never answers: whatever a peer sends, closing it keeps nobody waiting."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import resource
import socket
import stat
import struct
import subprocess
import sys
import threading
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memifrt import Credentials, ErrorCode, Runtime
from memifrt.control.channel import Channel
from memifrt.control.wire import AddRegion
from memifrt.memory.region import allocate_memfd
from memifrt.system import received_fds as received
from memifrt.system.original_functions import start_new_thread
from memifrt.system.received_fds import ReceivedFd, SharedEventFd
from tests.lib.forked import NOBODY, beside, in_child
from tests.lib.patched import open_fds
from tests.lib.peer import ScriptedSlave
from tests.lib.support import DEADLINE, Recorder, wait_for_closes, wait_until
from tests.lib.threads import Event

# --- who is trusted ---------------------------------------------------------------------------------------------------


def test_our_own_user_and_root_are_trusted() -> None:
    assert received.is_trusted(os.geteuid())
    assert received.is_trusted(0)
    assert not received.is_trusted(os.geteuid() + 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root's rights")
def test_a_user_without_a_mapping_is_not_our_own_user_where_we_run_as_nobody() -> None:
    """In a user namespace the kernel shows both as 65534."""
    if subprocess.run(["unshare", "--user", "true"], user=NOBODY, check=False, capture_output=True).returncode:
        pytest.skip("a user may make no user namespace here, as in a chroot")

    def in_first_namespace() -> None:
        everybody_is_mapped = Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
        assert received.is_trusted(NOBODY) is everybody_is_mapped

    def in_namespace_of_its_own() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(0x10000000) == 0, os.strerror(ctypes.get_errno())  # CLONE_NEWUSER
        assert os.geteuid() == NOBODY  # as nothing is mapped yet
        assert not received.is_trusted(NOBODY)
        assert received.is_trusted(0)

    in_child(in_first_namespace, uid=NOBODY)
    in_child(in_namespace_of_its_own, uid=NOBODY)


# --- a file system of our own, as far as open (linux/fuse.h) ----------------------------------------------------------

_LOOKUP, _GETATTR, _OPEN, _FLUSH, _INIT = 1, 3, 14, 25, 26
_MNT_DETACH = 2
_SIZE = 1 << 20


def _attributes(node: int) -> bytes:
    mode = stat.S_IFDIR | 0o755 if node == 1 else stat.S_IFREG | 0o666
    return struct.pack("<6Q3I7I", node, _SIZE, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def _answer(opcode: int, node: int) -> bytes | None:
    if opcode == _INIT:
        return struct.pack("<4I2H2I2H8I", 7, 31, 65536, 0, 16, 12, 65536, 1, 16, 0, *[0] * 8)
    if opcode == _LOOKUP:
        return struct.pack("<4Q2I", 2, 0, 3600, 3600, 0, 0) + _attributes(2)
    if opcode == _GETATTR:
        return struct.pack("<Q2I", 3600, 0, 0) + _attributes(node)
    if opcode == _OPEN:
        return struct.pack("<Q2I", 1, 0, 0)
    return None


def serve_files(device: int) -> None:
    """Answer everything that comes before the close, and no close."""
    while True:
        request = os.read(device, 1 << 17)
        _, opcode, unique, node = struct.unpack_from("<2I2Q", request)
        if opcode == _FLUSH:
            continue
        body = _answer(opcode, node)
        error = 0 if body is not None else -errno.ENOSYS
        os.write(device, struct.pack("<IiQ", 16 + len(body or b""), error, unique) + (body or b""))


@pytest.fixture
def stubborn_file(tmp_path: Path) -> Iterator[int]:
    """An fd whose close waits for as long as the test runs."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"no FUSE here: {error}")
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}".encode()
    if libc.mount(b"memifrt-test", os.fsencode(tmp_path), b"fuse", 0, options) < 0:
        os.close(device)
        pytest.skip(f"no FUSE here: {os.strerror(ctypes.get_errno())}")
    try:
        with beside(lambda: serve_files(device)):
            os.close(device)
            fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CLOEXEC)
            yield fd
        # The file system has died with its process: what waits for it fails.
        with contextlib.suppress(OSError):
            os.close(fd)
    finally:
        libc.umount2(os.fsencode(tmp_path), _MNT_DETACH)


def outstanding() -> int:
    """How many fds wait to be closed, or are being closed."""
    return sum(backlog.outstanding for backlog in received._backlogs.values())


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    def channel(sock: socket.socket) -> Channel:
        accepted = Channel(sock)  # type: ignore[arg-type,unused-ignore]
        accepted.credentials = Credentials(1, 12345, 12345)
        return accepted

    monkeypatch.setattr("memifrt.sockets.Channel", channel)


@pytest.mark.usefixtures("stranger")
@pytest.mark.parametrize("step", ["region", "s2m", "init"])
def test_a_file_whose_close_never_comes_back_keeps_nobody_waiting(
    socket_name: str, runtime: Runtime, stubborn_file: int, step: str
) -> None:
    record = Recorder()
    runtime.create_interface(socket=socket_name, role="master", on_disconnect=record.on_disconnect)
    with ScriptedSlave(socket_name, runtime) as peer:
        peer.run(until=step)
        if step == "region":
            peer.send(AddRegion(0, _SIZE), stubborn_file)
            assert peer.reason() == "region 0 came with an fd that is not a memory file"
            assert record.reasons[0].code is ErrorCode.NO_SHMFD
        elif step == "s2m":
            peer.tx_fd = stubborn_file
            peer.s2m()
            assert "not an eventfd" in peer.reason()
        else:
            peer.send(b"\0" * 128, stubborn_file)
            assert "unknown type" in peer.reason()
        # The file itself, and nothing else: what came with it is closed by another thread.
        wait_until(lambda: outstanding() == 1, runtime)


# --- a connection over TCP that lingers over what nobody takes --------------------------------------------------------

#: Seconds that its close takes. Nobody waits for that, unless we fail.
_LINGER = 3


@pytest.fixture
def lingering() -> Iterator[list[socket.socket]]:
    """Sockets whose close waits until the test is over."""
    ours, theirs = [], []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(3):
            sock = socket.create_connection(listener.getsockname())
            theirs.append(listener.accept()[0])
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock.send(bytes(1 << 16))
            sock.setblocking(True)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, _LINGER))
            ours.append(sock)
    yield ours
    for sock in theirs:
        sock.close()  # with data unread: a reset, and nothing to linger over
    for sock in ours:
        sock.close()


def send_away(peer: ScriptedSlave, sock: socket.socket, beside: int = 0) -> None:
    """Send a socket and close it: the last to hold it is who is to receive it."""
    fds = array("i", [0] * beside + [sock.fileno()])
    peer.socket.sendmsg([bytes(128)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    sock.close()


@pytest.mark.parametrize("beside", [0, 15, 252])
def test_one_of_many_fds_that_lingers_keeps_nobody_waiting(
    socket_name: str, runtime: Runtime, lingering: list[socket.socket], beside: int
) -> None:
    runtime.create_interface(socket=socket_name, role="master")
    with ScriptedSlave(socket_name, runtime) as peer:
        peer.run(until="init")
        send_away(peer, lingering[0], beside)
        peer.reason()
        wait_until(lambda: outstanding() == 1, runtime)


@pytest.mark.parametrize("first", [b"", bytes(128)], ids=["empty", "bad"])
def test_what_a_peer_leaves_unread_keeps_nobody_waiting(
    socket_name: str, runtime: Runtime, lingering: list[socket.socket], first: bytes
) -> None:
    runtime.create_interface(socket=socket_name, role="master")
    with ScriptedSlave(socket_name, runtime) as peer:
        peer.socket.send(first)
        peer.socket.send(b"")
        send_away(peer, lingering[0])
        wait_until(outstanding, runtime)


def test_what_waits_to_be_accepted_keeps_nobody_waiting(socket_name: str, lingering: list[socket.socket]) -> None:
    with Runtime() as runtime:
        runtime.create_interface(socket=socket_name, role="master")
        peer = ScriptedSlave(socket_name, runtime)
        send_away(peer, lingering[0])
    assert outstanding() == 1
    peer.close()


def test_a_user_whose_fds_do_not_close_sends_no_more_of_them(
    socket_name: str, runtime: Runtime, lingering: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(received, "MAX_CLOSING", 2)
    runtime.create_interface(socket=socket_name, role="master")
    for sock in lingering[:2]:
        with ScriptedSlave(socket_name, runtime) as peer:
            peer.run(until="init")
            send_away(peer, sock)
            assert "unknown type" in peer.reason()
    with ScriptedSlave(socket_name, runtime) as peer:
        peer.run(until="init")
        peer.send(b"\0" * 128)
        assert peer.reason() == f"fds from uid {os.getuid()} do not close; no more are accepted from this user"
    assert outstanding() == 2
    assert not received.closes_too_slowly(12345)


# --- how an fd is closed ----------------------------------------------------------------------------------------------


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Event]:
    """Closes in threads do not come back before the event is set, at the end at the latest."""
    go_on, close_range, test = Event(), received._close_range, threading.get_native_id()

    def close(first: int, end: int) -> None:
        if threading.get_native_id() != test:
            go_on.wait(DEADLINE)
        close_range(first, end)

    monkeypatch.setattr(received, "_close_range", close)
    yield go_on
    go_on.set()
    wait_for_closes()


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(received, "start_new_thread", no_thread_at_all)


@pytest.mark.usefixtures("no_threads")
def test_memory_and_eventfds_of_our_own_user_are_closed_at_once() -> None:
    for fd in (allocate_memfd(4096), os.eventfd(0)):
        ReceivedFd(fd, "sent", os.geteuid()).close()
        assert not is_open(fd)
    fd = os.eventfd(0)
    SharedEventFd(fd, "shared", os.geteuid()).close()
    assert not is_open(fd)


@pytest.mark.parametrize("make", [lambda: allocate_memfd(4096), lambda: os.eventfd(0)], ids=["memory", "eventfd"])
def test_nothing_of_a_stranger_is_closed_by_the_caller(hanging: Event, make: Callable[[], int]) -> None:
    fds = [make(), os.eventfd(0)]
    ReceivedFd(fds[0], "sent", 12345).close()
    SharedEventFd(fds[1], "shared", 12345).close()
    assert all(map(is_open, fds))
    hanging.set()
    wait_for_closes()
    assert not any(map(is_open, fds))


def test_large_memory_is_not_freed_by_the_caller_whoever_sent_it(
    hanging: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(received, "_LARGE", 4096)
    fd = allocate_memfd(1 << 16)
    with mmap.mmap(fd, 1 << 16) as memory:
        memory[:] = b"x" * (1 << 16)
    ReceivedFd(fd, "sent", os.geteuid()).close()
    assert is_open(fd)


def test_what_else_is_sent_is_closed_too() -> None:
    reader, writer = os.pipe()
    fds = [reader, writer, os.open("/", os.O_RDONLY), os.open("/dev/null", os.O_RDWR), socket.socket().detach()]
    for fd in fds:
        ReceivedFd(fd, "sent").close()
    wait_for_closes()
    assert not any(map(is_open, fds))


def test_the_threads_of_one_user_are_few_and_another_user_has_its_own(
    hanging: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(received, "_STUCK_AFTER", 0)
    for _ in range(received._THREADS + 20):
        ReceivedFd(os.open("/dev/null", os.O_RDWR), "sent", 12345).close()
    ReceivedFd(os.open("/dev/null", os.O_RDWR), "sent", 12346).close()
    wait_until(lambda: len(received._backlogs[12345]._threads) == received._THREADS)
    assert received._backlogs[12345].standby is None
    assert len(received._backlogs[12346]._threads) == 1
    assert outstanding() == received._THREADS + 21


def test_a_thread_that_gets_on_closes_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    start = start_new_thread

    def count(function: Callable[..., object], arguments: tuple[object, ...]) -> int:
        started.append(1)
        return start(function, arguments)

    monkeypatch.setattr(received, "start_new_thread", count)
    monkeypatch.setattr(received, "_STUCK_AFTER", DEADLINE)
    go_on = Event()
    close_range = received._close_range

    def close(first: int, end: int) -> None:
        go_on.wait(DEADLINE)
        close_range(first, end)

    monkeypatch.setattr(received, "_close_range", close)
    monkeypatch.setattr(received, "_PARK_ABOVE", 1000)
    for _ in range(100):
        ReceivedFd(os.eventfd(0), "sent", 12345).close()
    assert len(started) <= 2, "one that closes, and one that stands by"
    go_on.set()
    wait_for_closes()
    assert not received.closes_too_slowly(12345)


def test_a_user_is_stopped_by_its_own_fds_alone(hanging: Event) -> None:
    for number in range(received.MAX_CLOSING):
        assert not received.closes_too_slowly(12345), number
        ReceivedFd(os.open("/dev/null", os.O_RDWR), "sent", 12345).close()
    assert received.closes_too_slowly(12345)
    assert not received.closes_too_slowly(12346)


def test_a_crowd_of_users_cannot_take_all_fds(hanging: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 256))
    for uid in range(1000, 1128):
        ReceivedFd(os.open("/dev/null", os.O_RDWR), "sent", uid).close()
    assert received.closes_too_slowly(1000)
    assert not received.closes_too_slowly(999)  # who has none that hang may go on


def test_sockets_memory_and_eventfds_of_a_flood_take_no_numbers(hanging: Event) -> None:
    def make(number: int) -> int:
        kinds: list[Callable[[], int]] = [
            lambda: os.eventfd(0),
            lambda: allocate_memfd(4096),
            lambda: os.eventfd(0),
        ]
        return kinds[number % 3]()

    for number in range(1000):
        ReceivedFd(make(number), "sent", 12345).close()
    assert outstanding() < received.MAX_CLOSING
    assert not received.closes_too_slowly(12345)
    assert len(open_fds()) < 500


def test_without_another_thread_the_fd_waits_for_the_next() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(received, "start_new_thread", no_thread_at_all)
        fd = os.open("/dev/null", os.O_RDWR)
        ReceivedFd(fd, "sent").close()
        assert is_open(fd)
        assert outstanding() == 1
    ReceivedFd(os.open("/dev/null", os.O_RDWR), "sent").close()
    wait_for_closes()
    assert not is_open(fd)


def no_thread_at_all(function: object, arguments: object) -> None:
    raise RuntimeError("can't start new thread")


def test_a_forked_child_leaves_to_its_parent_what_hangs(hanging: Event) -> None:
    for _ in range(received._PARK_ABOVE + 5):
        ReceivedFd(os.eventfd(0), "sent", 12345).close()

    def check() -> None:
        assert received._backlogs == {}
        ReceivedFd(os.eventfd(0), "sent", 12345).close()
        hanging.set()  # in the child alone
        wait_for_closes()

    in_child(check)
    assert outstanding() > received._PARK_ABOVE


def test_an_interpreter_ends_while_a_close_hangs() -> None:
    program = """
import os, threading
from memifrt.system import received_fds as received
def close(first, end):
    if threading.current_thread() is not threading.main_thread():
        threading.Event().wait()
received._close_range = close
for number in range(40):
    received.ReceivedFd(os.open("/dev/null", os.O_RDWR), "sent", 12345).close()
    received.ReceivedFd(os.eventfd(0), "sent", 12345).close()
print(len(received._backlogs))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=DEADLINE, check=True)
    assert (done.stdout, done.stderr) == (b"1\n", b"")
