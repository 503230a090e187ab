"""An fd of a file system that never answers: whatever a peer sends, closing it keeps nobody waiting."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import stat
import struct
import threading
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from memifrt import Credentials, ErrorCode, Runtime
from memifrt.control.channel import Channel
from memifrt.control.wire import AddRegion
from memifrt.memory.region import allocate_memfd
from memifrt.system import received_fds as received
from memifrt.system.received_fds import ReceivedFd
from tests.lib.forked import beside
from tests.lib.peer import ScriptedSlave
from tests.lib.support import DEADLINE, Recorder, wait_until

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


@pytest.fixture
def all_closed() -> Iterator[None]:
    yield
    deadline = threading.Event()
    for _ in range(int(DEADLINE / 0.01)):
        if not received._closing:
            return
        deadline.wait(0.01)
    raise AssertionError("a close has not come back")


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    def channel(sock: socket.socket) -> Channel:
        accepted = Channel(sock)  # type: ignore[arg-type,unused-ignore]
        accepted.credentials = Credentials(1, 12345, 12345)
        return accepted

    monkeypatch.setattr("memifrt.sockets.Channel", channel)


@pytest.mark.usefixtures("all_closed", "stranger")
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
            assert peer.reason().startswith("region 0 is not sealed against shrinking")
            assert record.reasons[0].code is ErrorCode.NO_SHMFD
        elif step == "s2m":
            peer.tx_fd = stubborn_file
            peer.s2m()
            assert "not an eventfd" in peer.reason()
        else:
            peer.send(b"\0" * 128, stubborn_file)
            assert "unknown type" in peer.reason()
        assert len(received._closing) == 1


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


@pytest.mark.usefixtures("all_closed")
@pytest.mark.parametrize("beside", [0, 15, 252])
def test_one_of_many_fds_that_lingers_keeps_nobody_waiting(
    socket_name: str, runtime: Runtime, lingering: list[socket.socket], beside: int
) -> None:
    runtime.create_interface(socket=socket_name, role="master")
    with ScriptedSlave(socket_name, runtime) as peer:
        peer.run(until="init")
        send_away(peer, lingering[0], beside)
        peer.reason()
        assert len(received._closing) == 1


@pytest.mark.usefixtures("all_closed")
@pytest.mark.parametrize("first", [b"", bytes(128)], ids=["empty", "bad"])
def test_what_a_peer_leaves_unread_keeps_nobody_waiting(
    socket_name: str, runtime: Runtime, lingering: list[socket.socket], first: bytes
) -> None:
    runtime.create_interface(socket=socket_name, role="master")
    with ScriptedSlave(socket_name, runtime) as peer:
        peer.socket.send(first)
        peer.socket.send(b"")
        send_away(peer, lingering[0])
        wait_until(lambda: received._closing, runtime)


@pytest.mark.usefixtures("all_closed")
def test_what_waits_to_be_accepted_keeps_nobody_waiting(socket_name: str, lingering: list[socket.socket]) -> None:
    with Runtime() as runtime:
        runtime.create_interface(socket=socket_name, role="master")
        peer = ScriptedSlave(socket_name, runtime)
        send_away(peer, lingering[0])
    assert len(received._closing) == 1
    peer.close()


@pytest.mark.usefixtures("all_closed")
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
        assert peer.reason() == f"fds that uid {os.getuid()} has sent do not close: no more are taken from it"
    assert len(received._closing) == 2
    assert not received.closes_too_slowly(12345)


# --- how an fd is closed ----------------------------------------------------------------------------------------------


def test_memory_and_eventfds_are_closed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(received, "start_new_thread", None)
    for fd in (allocate_memfd(4096), os.eventfd(0)):
        ReceivedFd(fd, "sent").close()
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)


@pytest.mark.usefixtures("all_closed")
def test_what_else_is_sent_is_closed_too() -> None:
    reader, writer = os.pipe()
    fds = [reader, writer, os.open("/", os.O_RDONLY), os.open("/dev/null", os.O_RDWR), socket.socket().detach()]
    for fd in fds:
        ReceivedFd(fd, "sent").close()


@pytest.mark.usefixtures("all_closed")
def test_many_that_are_stuck_cost_no_more_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, closed = threading.Event(), []

    def close(fd: int) -> None:
        go_on.wait(DEADLINE)
        closed.append(fd)
        os.close(fd)

    monkeypatch.setattr(received, "_close", close)
    fds = [os.open("/dev/null", os.O_RDWR) for _ in range(received._STUCK + 20)]
    monkeypatch.setattr(received, "_PATIENCE", 0.0001)
    for fd in fds[: received._STUCK]:
        ReceivedFd(fd, "sent").close()
    assert len(received._closing) == received._STUCK
    monkeypatch.setattr(received, "_PATIENCE", DEADLINE)  # nobody has it any more
    for fd in fds[received._STUCK :]:
        ReceivedFd(fd, "sent").close()
    assert closed == []
    go_on.set()


def test_without_another_thread_the_fd_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(function: object, arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(received, "start_new_thread", no_thread)
    fd = os.open("/dev/null", os.O_RDWR)
    ReceivedFd(fd, "sent").close()
    assert not received._closing
    os.close(fd)
