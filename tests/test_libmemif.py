"""libmemif's names and return codes: each row of its surface, over two event loops in one process."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import resource
import select
import socket
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from memifrt import ConfigError, Disconnected, FdEvent, MemifOSError, Runtime
from memifrt import libmemif as m
from memifrt.control.wire import AddRegion, AddRing, Disconnect, Hello, Message
from memifrt.errors import os_error
from memifrt.libmemif import MemifBuffer, MemifConnArgs, MemifConnHandle, MemifFdEvent, MemifSocketArgs
from memifrt.memory.layout import buffer_stride
from memifrt.system.fds import EventFd
from memifrt.system.original_functions import close
from tests.lib.peer import ScriptedMaster, ScriptedSlave, native
from tests.lib.support import DEADLINE, runtime_of, wait_until
from tests.lib.threads import Thread

_T = TypeVar("_T")

OK = m.MEMIF_ERR_SUCCESS


def got(answer: tuple[int, _T | None]) -> _T:
    """The result of a call that succeeds."""
    code, result = answer
    assert code == OK, m.memif_last_error()
    assert result is not None
    return result


@dataclass
class End:
    """One end: its event loop, socket and connection, and what its callbacks were called with."""

    role: str
    main: Runtime
    sock: m.MemifSocketHandle
    refill: bool = True
    events: list[tuple[Any, ...]] = field(default_factory=list)
    conn: MemifConnHandle | None = None

    def on_connect(self, conn: MemifConnHandle, ctx: object) -> None:
        self.events.append(("connect", conn, ctx))
        if self.refill:
            for qid in range(len(conn.rx_queues)):
                assert m.memif_refill_queue(conn, qid, -1, 0) == OK

    def on_disconnect(self, conn: MemifConnHandle, ctx: object) -> None:
        self.events.append(("disconnect", conn, ctx))

    def create(self, on_interrupt: m.InterruptCallback | None = None, **args: Any) -> MemifConnHandle:
        arguments = MemifConnArgs(socket=self.sock, is_master=self.role == "master", **args)
        self.conn = got(m.memif_create(arguments, self.on_connect, self.on_disconnect, on_interrupt, self.role))
        return self.conn

    @property
    def handle(self) -> MemifConnHandle:
        assert self.conn is not None
        return self.conn

    @property
    def connected(self) -> bool:
        return self.handle.connected

    def send(self, *packets: bytes, qid: int = 0) -> None:
        for packet in packets:
            buffers = got(m.memif_buffer_alloc(self.conn, qid, 1, len(packet)))
            fill(buffers, packet)
            assert m.memif_tx_burst(self.conn, qid, buffers) == (OK, len(buffers))

    def receive(self, count: int = 64, qid: int = 0) -> list[bytes]:
        """Packets, with their buffers given back."""
        buffers = got(m.memif_rx_burst(self.conn, qid, count))
        packets = [bytes(buffer.data) for buffer in buffers]
        assert m.memif_refill_queue(self.conn, qid, len(buffers), 0) == OK
        return packets


def fill(buffers: list[MemifBuffer], packet: bytes) -> None:
    for buffer in buffers:
        buffer.data[:] = packet[: buffer.len]
        packet = packet[buffer.len :]


@dataclass
class Link:
    master: End
    slave: End

    def end(self, role: str) -> End:
        return self.master if role == "master" else self.slave

    def other(self, role: str) -> End:
        return self.slave if role == "master" else self.master

    def wait(self, predicate: Callable[[], object]) -> None:
        wait_until(predicate, self.master.main, self.slave.main)


@pytest.fixture(autouse=True)
def no_global_state() -> Iterator[None]:
    yield
    m.memif_cleanup()


@pytest.fixture
def make_end() -> Iterator[Callable[..., End]]:
    """``make_end(role, path)``: an event loop and a socket; the connection is still to be created."""
    mains: list[Runtime] = []

    def make(role: str, path: str, *, refill: bool = True, allocator: Any = None) -> End:
        main = got(m.memif_per_thread_init(None, None, f"{role}-app", allocator))
        mains.append(main)
        assert m.memif_set_connection_request_timer(0.02, main=main) == OK
        return End(role, main, got(m.memif_create_socket(path, role, main=main)), refill)

    yield make
    for main in mains:
        m.memif_cleanup(main)


@pytest.fixture
def ends(make_end: Callable[..., End], socket_name: str) -> Link:
    """Both ends on one socket, without connections."""
    return Link(make_end("master", socket_name), make_end("slave", socket_name))


@pytest.fixture
def link(ends: Link) -> Callable[..., Link]:
    """``link(**args)``: both ends, connected. Arguments are those of ``MemifConnArgs``, for both."""

    def make(**args: Any) -> Link:
        for end in (ends.master, ends.slave):
            end.create(**args)
        ends.wait(lambda: ends.master.connected and ends.slave.connected)
        return ends

    return make


@pytest.fixture(params=["master", "slave"])
def role(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


@contextlib.contextmanager
def few_fds(more: int) -> Iterator[None]:
    """Only ``more`` fds can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- memif_init, memif_cleanup, memif_per_thread_init ---------------------------------------------------------------


class TestState:
    def test_a_second_init_is_refused_until_the_first_is_cleaned_up(self) -> None:
        assert m.memif_init() == OK
        assert m.memif_init() == m.MEMIF_ERR_ALREADY
        assert m.memif_cleanup() == OK
        assert m.memif_init() == OK

    def test_without_init_there_is_no_state(self) -> None:
        assert m.memif_cleanup() == m.MEMIF_ERR_INVAL_ARG
        assert m.memif_create_socket("@x") == (m.MEMIF_ERR_INVAL_ARG, None)
        assert m.memif_create(MemifConnArgs()) == (m.MEMIF_ERR_INVAL_ARG, None)
        assert m.memif_poll_event(0) == m.MEMIF_ERR_INVAL_ARG
        assert m.memif_cancel_poll_event() == m.MEMIF_ERR_INVAL_ARG
        assert m.memif_control_fd_handler(0, m.MEMIF_FD_EVENT_READ) == m.MEMIF_ERR_INVAL_ARG
        assert m.memif_set_connection_request_timer(1) == m.MEMIF_ERR_INVAL_ARG

    def test_cleanup_disconnects_and_forgets_everything(self, link: Callable[..., Link], role: str) -> None:
        ends = link()
        end, other = ends.end(role), ends.other(role)
        assert m.memif_cleanup(end.main) == OK
        assert end.events[-1] == ("disconnect", end.conn, role)
        assert m.memif_delete(end.conn) == m.MEMIF_ERR_NOCONN
        assert m.memif_delete_socket(end.sock) == m.MEMIF_ERR_INVAL_ARG
        assert m.memif_cleanup(end.main) == m.MEMIF_ERR_INVAL_ARG
        wait_until(lambda: other.events[-1][0] == "disconnect", other.main)

    def test_the_application_has_libmemifs_name_unless_it_gives_one(self, ends: Link, socket_name: str) -> None:
        assert m.memif_init() == OK
        sock = got(m.memif_create_socket(socket_name))
        ends.master.create(interface_id=7)
        got(m.memif_create(MemifConnArgs(socket=sock, interface_id=7)))
        wait_until(lambda: ends.master.connected, ends.master.main, runtime_of(sock))
        assert got(m.memif_get_details(ends.master.conn)).remote_inst_name == m.MEMIF_DEFAULT_APP_NAME == "libmemif-app"

    def test_a_name_that_does_not_fit_into_a_message_is_refused(self) -> None:
        assert m.memif_init(None, "x" * 32) == m.MEMIF_ERR_INVAL_ARG
        assert m.memif_per_thread_init(None, None, "x" * 32) == (m.MEMIF_ERR_INVAL_ARG, None)

    def test_threads_have_states_of_their_own(self, socket_name: str) -> None:
        mains = [got(m.memif_per_thread_init()) for _ in range(2)]
        assert m.memif_init() == OK
        for main in (None, *mains):
            assert m.memif_create_socket(socket_name, main=main)[0] == OK
        assert m.memif_cleanup(mains[0]) == OK
        assert m.memif_create_socket(f"{socket_name}-2", main=mains[0]) == (m.MEMIF_ERR_INVAL_ARG, None)
        assert m.memif_create_socket(f"{socket_name}-2", main=mains[1])[0] == OK
        assert m.memif_cleanup(mains[1]) == OK
        assert m.memif_poll_event(0) == OK

    @pytest.mark.parametrize("more", [0, 1, 2])
    def test_running_out_of_fds_is_a_code_and_leaves_nothing_open(self, more: int) -> None:
        with few_fds(more):
            code = m.memif_init()
        assert code == m.MEMIF_ERR_PROC_FILE_LIMIT
        error = m.memif_last_error()
        assert isinstance(error, MemifOSError)
        assert error.errno == errno.EMFILE
        assert m.memif_init() == OK

    def test_the_allocator_makes_every_region(self, make_end: Callable[..., End], socket_name: str) -> None:
        sizes = []

        def allocate(size: int) -> int:
            sizes.append(size)
            fd = os.memfd_create("memif region of the application", os.MFD_CLOEXEC)
            os.ftruncate(fd, size)
            return fd

        ends = Link(make_end("master", socket_name), make_end("slave", socket_name, allocator=allocate))
        ends.master.create()
        ends.slave.create()
        ends.wait(lambda: ends.slave.connected)
        assert [region.size for region in got(m.memif_get_details(ends.slave.conn)).regions] == sizes

    @pytest.mark.parametrize(
        ("number", "code"),
        [
            (errno.ENFILE, m.MEMIF_ERR_FILE_LIMIT),
            (errno.EMFILE, m.MEMIF_ERR_PROC_FILE_LIMIT),
            (errno.ENOMEM, m.MEMIF_ERR_NOMEM),
            (errno.EPERM, m.MEMIF_ERR_SYSCALL),
        ],
    )
    def test_an_allocator_that_fails_ends_the_attempt_with_its_errno(
        self, make_end: Callable[..., End], socket_name: str, number: int, code: int
    ) -> None:
        def allocate(size: int) -> int:
            raise OSError(number, os.strerror(number))

        ends = Link(make_end("master", socket_name), make_end("slave", socket_name, allocator=allocate))
        ends.master.create()
        conn = ends.slave.create()
        ends.wait(lambda: conn.last_error is not None)
        assert conn.last_error is not None
        assert conn.last_error.code == code
        assert os.strerror(number) in got(m.memif_get_details(conn)).error

    def test_running_out_of_fds_while_connecting_is_not_an_exception_of_the_poll(self, ends: Link) -> None:
        ends.master.create()
        conn = ends.slave.create()
        ends.slave.main.set_reconnect_interval(0)
        wait_until(lambda: len(ends.master.sock._half_open), ends.master.main)  # HELLO is on its way
        assert m.memif_poll_event(0, main=ends.slave.main) == OK
        wait_until(lambda: ends.master.handle.connection, ends.master.main)  # so is the ACK
        with few_fds(1):  # enough for the region, not for the eventfds
            assert m.memif_poll_event(0, main=ends.slave.main) == OK
        assert conn.last_error is not None
        assert conn.last_error.code == m.MEMIF_ERR_PROC_FILE_LIMIT


# --- sockets --------------------------------------------------------------------------------------------------------


class TestSockets:
    @pytest.mark.parametrize(
        ("given", "path"), [("/a/path", "/a/path"), ("@name", "@name"), ("\0name", "@name"), ("x" * 107, "x" * 107)]
    )
    def test_a_socket_knows_its_path(self, given: str, path: str) -> None:
        assert m.memif_init() == OK
        assert m.memif_get_socket_path(got(m.memif_create_socket(given))) == path

    @pytest.mark.parametrize("path", ["", "@", "x" * 108])
    def test_a_path_that_is_no_address_is_refused(self, path: str) -> None:
        assert m.memif_init() == OK
        assert m.memif_create_socket(path) == (m.MEMIF_ERR_INVAL_ARG, None)
        assert m.memif_create_socket(MemifSocketArgs(path)) == (m.MEMIF_ERR_INVAL_ARG, None)

    def test_a_path_has_one_socket_in_a_state(self, socket_name: str) -> None:
        assert m.memif_init() == OK
        got(m.memif_create_socket(socket_name))
        assert m.memif_create_socket(socket_name) == (m.MEMIF_ERR_INVAL_ARG, None)

    def test_a_socket_in_use_cannot_be_deleted(self, ends: Link, role: str) -> None:
        end = ends.end(role)
        conn = end.create()
        assert m.memif_get_socket_handle(conn) is end.sock
        assert m.memif_delete_socket(end.sock) == m.MEMIF_ERR_INVAL_ARG
        assert m.memif_delete(conn) == OK
        assert m.memif_get_socket_handle(conn) is None
        assert m.memif_delete_socket(end.sock) == OK
        assert m.memif_delete_socket(end.sock) == m.MEMIF_ERR_INVAL_ARG

    def test_no_handle_is_no_socket(self) -> None:
        assert m.memif_delete_socket(None) == m.MEMIF_ERR_INVAL_ARG
        assert m.memif_get_socket_path(None) is None
        assert m.memif_get_socket_handle(None) is None
        assert m.memif_get_listener_fd(None) == -1
        assert m.memif_set_listener_fd(None, 0) == m.MEMIF_ERR_INVAL_ARG

    def test_a_socket_with_its_own_arguments_has_an_event_loop_of_its_own(self, socket_name: str) -> None:
        socks = [
            got(m.memif_create_socket(MemifSocketArgs(socket_name, name, connection_request_timer=0.02), name))
            for name in ("one", "two")
        ]
        conns = [
            got(m.memif_create(MemifConnArgs(socket=sock, is_master=not index))) for index, sock in enumerate(socks)
        ]
        while not all(conn.connected for conn in conns):
            for sock in socks:
                assert m.memif_poll_event(sock, 0) == OK
        assert got(m.memif_get_details(conns[0])).remote_inst_name == "two"
        for conn, sock in zip(conns, socks, strict=True):
            assert m.memif_delete(conn) == OK
            assert m.memif_delete_socket(sock) == OK
            assert m.memif_poll_event(sock, 0) == m.MEMIF_ERR_INVAL_ARG


class TestListener:
    def test_a_master_listens_from_its_creation_on(self, ends: Link) -> None:
        assert m.memif_get_listener_fd(ends.master.sock) == -1
        ends.master.create()
        with socket.socket(fileno=os.dup(m.memif_get_listener_fd(ends.master.sock))) as listener:
            assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)

    def test_peers_are_accepted_on_a_listener_of_the_applications(self, ends: Link, socket_name: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(native(socket_name))
            listener.listen()
            fd = listener.detach()
        assert m.memif_set_listener_fd(ends.master.sock, fd) == OK
        assert m.memif_get_listener_fd(ends.master.sock) == fd
        ends.master.create()
        ends.slave.create()
        ends.wait(lambda: ends.slave.connected)

    def test_only_a_listener_of_the_right_kind_is_taken(self, ends: Link) -> None:
        read_end, write_end = os.pipe()
        assert m.memif_set_listener_fd(ends.master.sock, read_end) == m.MEMIF_ERR_FILE_NOT_SOCK
        close(read_end)
        close(write_end)
        assert m.memif_set_listener_fd(ends.master.sock, read_end) == m.MEMIF_ERR_BAD_FD
        assert m.memif_set_listener_fd(ends.master.sock, -1) == m.MEMIF_ERR_BAD_FD
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
            assert m.memif_set_listener_fd(ends.master.sock, silent.fileno()) == m.MEMIF_ERR_FILE_NOT_SOCK


# --- memif_create, memif_delete -------------------------------------------------------------------------------------


class TestConnections:
    def test_zeros_take_libmemifs_defaults(self, link: Callable[..., Link], role: str) -> None:
        details = got(m.memif_get_details(link().end(role).conn))
        assert [queue.ring_size for queue in details.rx_queues] == [1024]
        assert [queue.ring_size for queue in details.tx_queues] == [1024]
        # Rings, and then 2048 bytes for each slot of both, at a distance of our own.
        slots = 2 * 1024 * (buffer_stride(2048) + 16)
        assert sum(region.size for region in details.regions) == pytest.approx(slots, abs=3 * 4096)
        if role == "slave":
            assert {queue.buffer_size for queue in details.rx_queues + details.tx_queues} == {2048}

    def test_without_a_socket_it_is_vpps(self, monkeypatch: pytest.MonkeyPatch, socket_name: str) -> None:
        assert m.MEMIF_DEFAULT_SOCKET_PATH == "/run/vpp/memif.sock"
        monkeypatch.setattr("memifrt.libmemif.connections.MEMIF_DEFAULT_SOCKET_PATH", socket_name)
        assert m.memif_init() == OK
        conn = got(m.memif_create(MemifConnArgs()))
        assert m.memif_get_socket_path(m.memif_get_socket_handle(conn)) == socket_name

    def test_a_slave_is_created_even_when_nobody_listens(self, ends: Link) -> None:
        conn = ends.slave.create()
        assert not conn.connected
        ends.master.create()
        ends.wait(lambda: conn.connected)

    def test_callbacks_get_the_connection_and_the_private_context(self, link: Callable[..., Link], role: str) -> None:
        ends = link()
        end, other = ends.end(role), ends.other(role)
        assert end.events == [("connect", end.conn, role)]
        assert m.memif_delete(other.conn) == OK
        ends.wait(lambda: len(end.events) > 1)
        assert end.events[1] == ("disconnect", end.conn, role)
        assert end.handle.context == role

    def test_deleting_disconnects_and_clears_the_handle(self, link: Callable[..., Link], role: str) -> None:
        end = link().end(role)
        assert m.memif_delete(end.conn) == OK
        assert end.events[-1][0] == "disconnect"
        assert m.memif_delete(end.conn) == m.MEMIF_ERR_NOCONN
        assert m.memif_delete(None) == m.MEMIF_ERR_NOCONN

    def test_an_exception_of_on_disconnect_leaves_memif_delete_with_the_connection_gone(
        self, link: Callable[..., Link], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        end = link().slave

        def on_disconnect(conn: MemifConnHandle, reason: Exception) -> None:
            raise KeyError("the application's")

        monkeypatch.setattr(end.conn, "on_disconnect", on_disconnect)
        with pytest.raises(KeyError):
            m.memif_delete(end.conn)
        assert m.memif_delete(end.conn) == m.MEMIF_ERR_NOCONN

    def test_both_roles_and_many_ids_share_a_socket_but_an_id_is_taken_once(self, ends: Link, role: str) -> None:
        end = ends.end(role)
        end.create(interface_id=3)
        end.create(interface_id=4)
        twice = MemifConnArgs(socket=end.sock, is_master=role == "master", interface_id=3)
        assert m.memif_create(twice) == (m.MEMIF_ERR_CONN, None)
        twice.is_master = not twice.is_master
        assert m.memif_create(twice)[0] == OK

    @pytest.mark.parametrize(
        ("args", "code"),
        [
            ({"log2_ring_size": 15}, m.MEMIF_ERR_MAX_RING),
            ({"num_s2m_rings": 256}, m.MEMIF_ERR_INVAL_ARG),
            ({"num_m2s_rings": 256}, m.MEMIF_ERR_INVAL_ARG),
            ({"buffer_size": 65536}, m.MEMIF_ERR_INVAL_ARG),
            ({"interface_name": "x" * 32}, m.MEMIF_ERR_INVAL_ARG),
            ({"secret": "x" * 24}, m.MEMIF_ERR_INVAL_ARG),
            ({"mode": 3}, m.MEMIF_ERR_INVAL_ARG),
            ({"interface_id": -1}, m.MEMIF_ERR_INVAL_ARG),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_arguments_out_of_range_are_refused(self, ends: Link, args: dict[str, Any], code: int) -> None:
        assert m.memif_create(MemifConnArgs(socket=ends.slave.sock, **args)) == (code, None)
        assert m.memif_delete_socket(ends.slave.sock) == OK

    def test_a_deleted_socket_takes_no_connection(self, ends: Link) -> None:
        assert m.memif_delete_socket(ends.slave.sock) == OK
        assert m.memif_create(MemifConnArgs(socket=ends.slave.sock)) == (m.MEMIF_ERR_INVAL_ARG, None)

    def test_what_keeps_a_master_from_listening_is_told_with_errno_and_path(
        self, make_end: Callable[..., End], tmp_path: Path
    ) -> None:
        plain = tmp_path / "plain"
        plain.write_text("not a socket")
        for path, code, number in (
            (plain, m.MEMIF_ERR_FILE_NOT_SOCK, errno.EADDRINUSE),
            (tmp_path / "missing" / "sock", m.MEMIF_ERR_NO_FILE, errno.ENOENT),
        ):
            end = make_end("master", str(path))
            assert m.memif_create(MemifConnArgs(socket=end.sock, is_master=True)) == (code, None)
            error = m.memif_last_error()
            assert isinstance(error, MemifOSError)
            assert (error.errno, error.filename) == (number, str(path))

    def test_a_live_listener_elsewhere_is_a_system_error_that_says_so(
        self, make_end: Callable[..., End], socket_path: str
    ) -> None:
        make_end("master", socket_path).create()
        second = make_end("master", socket_path)
        code, _ = m.memif_create(MemifConnArgs(socket=second.sock, is_master=True))
        error = m.memif_last_error()
        assert code == m.MEMIF_ERR_SYSCALL
        assert isinstance(error, MemifOSError)
        assert error.errno == errno.EADDRINUSE
        assert socket_path in str(error)

    def test_the_secret_never_shows(self, ends: Link) -> None:
        args = MemifConnArgs(socket=ends.slave.sock, secret="hush-hush")
        conn = got(m.memif_create(args))
        assert "hush" not in repr(args)
        details = got(m.memif_get_details(conn))
        assert details.secret == b"hush-hush"
        assert "hush" not in repr(details)


# --- memif_poll_event, memif_cancel_poll_event, memif_control_fd_handler --------------------------------------------


class Loop:
    """An application's own event loop: what a hook has announced, and a token for the way back in."""

    def __init__(self) -> None:
        self.watched: dict[int, tuple[FdEvent, Any]] = {}
        self.kinds: dict[int, list[str]] = {}

    def update(self, fd: int, events: FdEvent, token: object) -> int:
        kind = "DEL" if events & FdEvent.DEL else "MOD" if events & FdEvent.MOD else "ADD"
        self.kinds.setdefault(fd, []).append(kind)
        if events & FdEvent.DEL:
            del self.watched[fd]
        else:
            self.watched[fd] = (events, token)
        return 0

    def ready(self) -> list[tuple[Any, FdEvent]]:
        poll = select.poll()
        for fd, (events, _) in self.watched.items():
            mask = (select.POLLIN if events & FdEvent.READ else 0) | (select.POLLOUT if events & FdEvent.WRITE else 0)
            poll.register(fd, mask)
        return [
            (self.watched[fd][1], FdEvent.READ if mask & select.POLLIN else FdEvent.ERROR) for fd, mask in poll.poll(50)
        ]


class TestEvents:
    def test_a_timeout_is_in_seconds_and_zero_does_not_wait(self, ends: Link) -> None:
        main = ends.slave.main
        assert m.memif_poll_event(0, main=main) == OK
        assert m.memif_poll_event(timeout=0.001, main=main) == OK
        assert m.memif_poll_event(ends.slave.sock, 0.001) == OK

    @pytest.mark.parametrize("timeout", [-1, None])
    def test_a_cancel_ends_exactly_one_poll(self, ends: Link, timeout: float | None) -> None:
        main = ends.slave.main
        canceller = Thread(target=m.memif_cancel_poll_event, kwargs={"main": main})
        canceller.start()
        assert m.memif_poll_event(timeout, main=main) == m.MEMIF_ERR_POLL_CANCEL
        canceller.join()
        assert m.memif_poll_event(0, main=main) == OK
        assert m.memif_cancel_poll_event(ends.slave.sock) == OK
        assert m.memif_poll_event(ends.slave.sock, timeout) == m.MEMIF_ERR_POLL_CANCEL

    def test_an_exception_of_a_callback_passes_through_the_poll(self, ends: Link) -> None:
        def on_connect(conn: MemifConnHandle, ctx: object) -> None:
            raise KeyError("the application's")

        ends.master.create()
        conn = got(m.memif_create(MemifConnArgs(socket=ends.slave.sock), on_connect))
        with pytest.raises(KeyError):
            ends.wait(lambda: False)
        assert conn.connected
        assert m.memif_poll_event(0, main=ends.slave.main) == OK

    def test_polling_inside_a_callback_is_refused(self, ends: Link) -> None:
        codes: list[int] = []

        def on_connect(conn: MemifConnHandle, ctx: object) -> None:
            codes.append(m.memif_poll_event(0, main=ends.slave.main))

        ends.master.create()
        got(m.memif_create(MemifConnArgs(socket=ends.slave.sock), on_connect))
        ends.wait(lambda: codes)
        assert codes == [m.MEMIF_ERR_INVAL_ARG]

    @pytest.mark.parametrize("style", ["2.x", "per thread", "4.0"])
    def test_an_application_polls_what_its_hook_is_told(self, ends: Link, socket_name: str, style: str) -> None:
        loop, contexts, main = Loop(), [], None
        if style == "2.x":
            assert m.memif_init(lambda fd, events: loop.update(fd, events, fd)) == OK
            sock = got(m.memif_create_socket(socket_name))
        elif style == "per thread":

            def thread_hook(fd: int, events: FdEvent, ctx: object) -> int:
                contexts.append(ctx)
                return loop.update(fd, events, fd)

            main = got(m.memif_per_thread_init("mine", thread_hook))
            sock = got(m.memif_create_socket(socket_name, main=main))
        else:

            def event_hook(event: MemifFdEvent, ctx: object) -> int:
                contexts.append(ctx)
                return loop.update(event.fd, event.type, event.private_ctx)

            sock = got(m.memif_create_socket(MemifSocketArgs(socket_name, on_control_fd_update=event_hook), "mine"))
        interrupts = []
        ends.master.create()
        conn = got(
            m.memif_create(
                MemifConnArgs(socket=sock),
                lambda conn, ctx: m.memif_refill_queue(conn, 0, -1, 0),
                None,
                lambda conn, ctx, qid: interrupts.append((conn, ctx, qid, m.memif_rx_burst(conn, qid, 8)[0])),
                "ctx",
            )
        )

        def turn() -> None:
            m.memif_poll_event(0, main=ends.master.main)
            for token, events in loop.ready():
                assert m.memif_control_fd_handler(token, events, **({"main": main} if main else {})) == OK

        while not (conn.connected and ends.master.connected):
            turn()
        ends.master.send(b"packet")
        while not interrupts:
            turn()
        assert interrupts == [(conn, "ctx", 0, OK)]
        assert set(contexts) == ({"mine"} if style != "2.x" else set())
        assert m.memif_delete(conn) == OK
        assert m.memif_delete_socket(sock) == OK
        if style != "4.0":
            assert m.memif_cleanup(main) == OK
        assert not loop.watched
        assert all(kinds[0] == "ADD" and kinds[-1] == "DEL" for kinds in loop.kinds.values())

    def test_with_a_hook_there_is_nothing_to_poll(self) -> None:
        assert m.memif_init(lambda fd, events: 0) == OK
        assert m.memif_poll_event(0) == m.MEMIF_ERR_INVAL_ARG
        assert m.memif_cancel_poll_event() == m.MEMIF_ERR_INVAL_ARG

    def test_a_stale_event_is_harmless(self) -> None:
        assert m.memif_init(lambda fd, events: 0) == OK
        assert m.memif_control_fd_handler(12345, m.MEMIF_FD_EVENT_READ | m.MEMIF_FD_EVENT_ERROR) == OK

    def test_a_hook_fails_by_raising_or_by_a_number(self, socket_name: str) -> None:
        def raises(fd: int, events: FdEvent) -> None:
            raise KeyError("the application's")

        assert m.memif_init(raises) == m.MEMIF_ERR_CB_FDUPDATE
        error = m.memif_last_error()
        assert error is not None
        assert isinstance(error.__cause__, KeyError)
        assert m.memif_init(lambda fd, events: -1) == m.MEMIF_ERR_CB_FDUPDATE
        args = MemifSocketArgs(socket_name, on_control_fd_update=lambda event, ctx: -1)
        assert m.memif_create_socket(args) == (m.MEMIF_ERR_CB_FDUPDATE, None)

    def test_a_hook_that_refuses_the_listener_keeps_the_master_from_being_created(self, socket_name: str) -> None:
        refusing: list[int] = []
        assert m.memif_init(lambda fd, events: -1 if refusing and not events & FdEvent.DEL else None) == OK
        sock = got(m.memif_create_socket(socket_name))
        refusing.append(1)
        assert m.memif_create(MemifConnArgs(socket=sock, is_master=True)) == (m.MEMIF_ERR_CB_FDUPDATE, None)
        refusing.clear()
        assert m.memif_create(MemifConnArgs(socket=sock, is_master=True))[0] == OK


# --- memif_request_connection, memif_set_connection_request_timer ---------------------------------------------------


class TestRequests:
    def test_a_slave_connects_at_once_when_it_is_asked_to(self, ends: Link) -> None:
        conn = ends.slave.create()
        assert m.memif_set_connection_request_timer(ends.slave.sock, 0) == OK
        assert m.memif_request_connection(conn) == m.MEMIF_ERR_CONNREFUSED
        ends.master.create()
        assert m.memif_request_connection(ends.master.conn) == OK  # it listens
        assert m.memif_request_connection(conn) == OK
        assert m.memif_request_connection(conn) == m.MEMIF_ERR_ALRCONN  # connecting
        ends.wait(lambda: conn.connected and ends.master.connected)
        assert m.memif_request_connection(conn) == m.MEMIF_ERR_ALRCONN
        assert m.memif_request_connection(ends.master.conn) == m.MEMIF_ERR_ALRCONN

    def test_the_timer_connects_again_after_a_disconnect(self, link: Callable[..., Link]) -> None:
        ends = link()
        ends.master.handle.disconnect("for the test")
        ends.wait(lambda: [event[0] for event in ends.slave.events] == ["connect", "disconnect", "connect"])

    def test_without_a_timer_nothing_connects_by_itself(self, ends: Link) -> None:
        assert m.memif_set_connection_request_timer(0, main=ends.slave.main) == OK
        conn = ends.slave.create()
        ends.master.create()
        assert m.memif_poll_event(0.05, main=ends.slave.main) == OK
        assert conn.connection is None
        assert m.memif_set_connection_request_timer(0.01, main=ends.slave.main) == OK
        ends.wait(lambda: conn.connected)

    def test_a_period_must_be_one(self, ends: Link) -> None:
        assert m.memif_set_connection_request_timer(-1, main=ends.slave.main) == m.MEMIF_ERR_INVAL_ARG
        assert m.memif_set_connection_request_timer(ends.slave.sock, -1) == m.MEMIF_ERR_INVAL_ARG

    def test_a_missing_directory_is_told(self, make_end: Callable[..., End], tmp_path: Path) -> None:
        conn = make_end("slave", str(tmp_path / "missing" / "sock")).create()
        assert m.memif_request_connection(conn) == m.MEMIF_ERR_NO_FILE

    def test_a_path_without_permission_is_told(self, make_end: Callable[..., End], tmp_path: Path) -> None:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0)
        conn = make_end("slave", str(closed / "sock")).create()
        privileged = os.geteuid() == 0
        if privileged:
            os.seteuid(65534)
        try:
            code = m.memif_request_connection(conn)
        finally:
            if privileged:
                os.seteuid(0)
        error = m.memif_last_error()
        assert code == m.MEMIF_ERR_ACCES
        assert isinstance(error, MemifOSError)
        assert (error.errno, error.filename) == (errno.EACCES, str(closed / "sock"))

    def test_a_listener_with_a_full_backlog_is_told_and_not_waited_for(
        self, make_end: Callable[..., End], socket_name: str
    ) -> None:
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first,
        ):
            listener.bind(native(socket_name))
            listener.listen(0)
            first.connect(native(socket_name))
            conn = make_end("slave", socket_name).create()
            assert m.memif_request_connection(conn) == m.MEMIF_ERR_AGAIN


# --- memif_get_queue_efd, memif_set_rx_mode -------------------------------------------------------------------------

#: Every call on a queue, each as it would be right otherwise.
QUEUE_CALLS: dict[str, Callable[[MemifConnHandle | None, int], object]] = {
    "memif_get_queue_efd": m.memif_get_queue_efd,
    "memif_set_rx_mode": lambda conn, qid: m.memif_set_rx_mode(conn, m.MEMIF_RX_MODE_POLLING, qid),
    "memif_rx_burst": lambda conn, qid: m.memif_rx_burst(conn, qid, 1),
    "memif_refill_queue": lambda conn, qid: m.memif_refill_queue(conn, qid, -1, 0),
    "memif_buffer_alloc": lambda conn, qid: m.memif_buffer_alloc(conn, qid, 1, 64),
    "memif_tx_burst": lambda conn, qid: m.memif_tx_burst(conn, qid, [], 0),
    "memif_buffer_enq_tx": lambda conn, qid: m.memif_buffer_enq_tx(conn, qid, [], 0),
}
EMPTY = {
    "memif_get_queue_efd": -1,
    "memif_rx_burst": [],
    "memif_buffer_alloc": [],
    "memif_tx_burst": 0,
    "memif_buffer_enq_tx": 0,
}


def failing(name: str, code: int) -> object:
    """What a call returns with a code but SUCCESS."""
    return (code, EMPTY[name]) if name in EMPTY else code


class TestQueues:
    @pytest.mark.parametrize("name", QUEUE_CALLS)
    def test_every_call_on_a_queue_tells_what_is_wrong(
        self, link: Callable[..., Link], ends: Link, role: str, name: str
    ) -> None:
        call = QUEUE_CALLS[name]
        assert call(None, 0) == failing(name, m.MEMIF_ERR_NOCONN)
        early = got(m.memif_create(MemifConnArgs(socket=ends.end(role).sock, interface_id=99)))
        assert call(early, 0) == failing(name, m.MEMIF_ERR_DISCONNECTED)
        link(num_s2m_rings=2, num_m2s_rings=2)
        end, other = ends.end(role), ends.other(role)
        assert call(end.conn, 2) == failing(name, m.MEMIF_ERR_QID)
        assert call(end.conn, -1) == failing(name, m.MEMIF_ERR_QID)
        assert m.memif_delete(other.conn) == OK
        ends.wait(lambda: not end.connected)
        if name not in ("memif_tx_burst", "memif_buffer_enq_tx"):  # of no buffers: nothing was asked of the queue
            assert call(end.conn, 1) == failing(name, m.MEMIF_ERR_DISCONNECTED)
        assert m.memif_delete(end.conn) == OK
        assert call(end.conn, 1) == failing(name, m.MEMIF_ERR_NOCONN)

    def test_without_on_interrupt_the_queues_eventfd_is_the_applications_to_poll(
        self, link: Callable[..., Link], role: str
    ) -> None:
        ends = link()
        end = ends.end(role)
        fd = got(m.memif_get_queue_efd(end.conn, 0))
        m.memif_rx_burst(end.conn, 0, 1)  # takes what a peer's early kick may have left
        assert not readable(fd)
        ends.other(role).send(b"packet")
        assert readable(fd)
        assert end.receive() == [b"packet"]
        assert not readable(fd)

    def test_polling_masks_the_peers_interrupts(self, link: Callable[..., Link], role: str) -> None:
        ends = link()
        end, other = ends.end(role), ends.other(role)
        fd = got(m.memif_get_queue_efd(end.conn, 0))
        assert m.memif_rx_burst(end.conn, 0, 1) == (OK, [])
        assert m.memif_set_rx_mode(end.conn, m.MEMIF_RX_MODE_POLLING, 0) == OK
        assert got(m.memif_get_details(end.conn)).rx_queues[0].flags == 1
        other.send(b"unannounced")
        assert not readable(fd)
        assert end.receive() == [b"unannounced"]
        assert m.memif_set_rx_mode(end.conn, m.MEMIF_RX_MODE_INTERRUPT, 0) == OK
        assert end.receive() == []
        other.send(b"announced")
        assert readable(fd)
        assert m.memif_set_rx_mode(end.conn, 3, 0) == m.MEMIF_ERR_INVAL_ARG

    def test_on_interrupt_is_told_the_queue(self, ends: Link, role: str) -> None:
        end, other = ends.end(role), ends.other(role)
        told: list[tuple[object, int, list[bytes]]] = []
        end.create(
            lambda conn, ctx, qid: told.append((ctx, qid, end.receive(qid=qid))), num_s2m_rings=3, num_m2s_rings=3
        )
        other.create(num_s2m_rings=3, num_m2s_rings=3)
        ends.wait(lambda: end.connected and other.connected)
        other.send(b"for the last queue", qid=2)
        ends.wait(lambda: told)
        assert told == [(role, 2, [b"for the last queue"])]


# --- memif_rx_burst, memif_refill_queue, memif_buffer_alloc, memif_tx_burst -----------------------------------------


class TestBursts:
    def test_an_empty_ring_is_success_and_no_buffer(self, link: Callable[..., Link], role: str) -> None:
        assert m.memif_rx_burst(link().end(role).conn, 0, 8) == (OK, [])

    def test_packets_that_stay_behind_are_told_and_keep_the_interrupt(
        self, link: Callable[..., Link], role: str
    ) -> None:
        ends = link()
        end = ends.end(role)
        fd = got(m.memif_get_queue_efd(end.conn, 0))
        ends.other(role).send(*[b"%d" % number for number in range(7)])
        assert m.memif_rx_burst(end.conn, 0, 0) == (m.MEMIF_ERR_NOBUF, [])
        for expected, code in ((3, m.MEMIF_ERR_NOBUF), (3, m.MEMIF_ERR_NOBUF), (1, OK)):
            assert readable(fd)
            got_code, buffers = m.memif_rx_burst(end.conn, 0, 3)
            assert (got_code, len(buffers)) == (code, expected)
        assert not readable(fd)
        assert m.memif_rx_burst(end.conn, 0, 0) == (OK, [])
        assert m.memif_rx_burst(end.conn, 0, -1) == (m.MEMIF_ERR_INVAL_ARG, [])

    def test_taking_exactly_what_is_there_is_success(self, link: Callable[..., Link], role: str) -> None:
        ends = link()
        ends.other(role).send(b"a", b"b")
        code, buffers = m.memif_rx_burst(ends.end(role).conn, 0, 2)
        assert (code, [bytes(buffer.data) for buffer in buffers]) == (OK, [b"a", b"b"])

    def test_a_buffer_has_the_fields_of_cs(self, link: Callable[..., Link], role: str) -> None:
        ends = link()
        ends.other(role).send(b"first", b"second")
        buffers = got(m.memif_rx_burst(ends.end(role).conn, 0, 8))
        assert [buffer.desc_index for buffer in buffers] == [0, 1]
        assert [buffer.len for buffer in buffers] == [5, 6]
        assert [buffer.flags for buffer in buffers] == [0, 0]
        assert {buffer.queue for buffer in buffers} == {ends.end(role).handle.rx_queues[0]}
        assert bytes(buffers[1].data) == b"second"

    def test_a_buffer_that_is_given_back_cannot_be_read(self, link: Callable[..., Link], role: str) -> None:
        ends = link()
        end = ends.end(role)
        ends.other(role).send(b"a", b"b", b"c")
        buffers = got(m.memif_rx_burst(end.conn, 0, 8))
        view = buffers[1].data
        assert m.memif_refill_queue(end.conn, 0, 2, 0) == OK
        for touch in (lambda: buffers[0].data, lambda: buffers[1].len, lambda: bytes(view)):
            with pytest.raises(ValueError):
                touch()
        assert bytes(buffers[2].data) == b"c"
        assert m.memif_buffer_enq_tx(end.conn, 0, buffers[:1]) == (m.MEMIF_ERR_INVAL_ARG, 0)

    @pytest.mark.parametrize("everything", [-1, 65535])
    def test_a_ring_that_is_not_refilled_runs_full(self, link: Callable[..., Link], role: str, everything: int) -> None:
        ends = link(log2_ring_size=3)
        end, other = ends.end(role), ends.other(role)
        for _ in range(3):
            other.send(*[b"x"] * 8)
            assert m.memif_buffer_alloc(other.conn, 0, 1, 1) == (m.MEMIF_ERR_NOBUF_RING, [])
            assert len(got(m.memif_rx_burst(end.conn, 0, 8))) == 8
            assert m.memif_buffer_alloc(other.conn, 0, 1, 1) == (m.MEMIF_ERR_NOBUF_RING, [])
            assert m.memif_refill_queue(end.conn, 0, 3, 0) == OK
            code, buffers = m.memif_buffer_alloc(other.conn, 0, 8, 1)
            assert (code, len(buffers)) == (m.MEMIF_ERR_NOBUF_RING, 3)
            assert m.memif_set_next_free_buffer(other.conn, 0, buffers[0]) == OK
            assert m.memif_refill_queue(end.conn, 0, everything, 0) == OK
        assert m.memif_refill_queue(end.conn, 0, -2, 0) == m.MEMIF_ERR_INVAL_ARG

    def test_a_slave_receives_nothing_before_it_refills(self, make_end: Callable[..., End], socket_name: str) -> None:
        ends = Link(make_end("master", socket_name), make_end("slave", socket_name, refill=False))
        ends.master.create()
        ends.slave.create()
        ends.wait(lambda: ends.master.connected and ends.slave.connected)
        assert m.memif_buffer_alloc(ends.master.conn, 0, 1, 1) == (m.MEMIF_ERR_NOBUF_RING, [])
        assert m.memif_refill_queue(ends.slave.conn, 0, -1, 0) == OK
        ends.master.send(b"now")
        assert ends.slave.receive() == [b"now"]

    def test_headroom_shortens_what_a_slave_posts(self, make_end: Callable[..., End], socket_name: str) -> None:
        ends = Link(make_end("master", socket_name), make_end("slave", socket_name, refill=False))
        ends.master.create(buffer_size=256)
        ends.slave.create(buffer_size=256)
        ends.wait(lambda: ends.master.connected and ends.slave.connected)
        assert m.memif_refill_queue(ends.slave.conn, 0, -1, 256) == m.MEMIF_ERR_INVAL_ARG
        assert m.memif_refill_queue(ends.slave.conn, 0, -1, 56) == OK
        ends.master.send(bytes(200), bytes(201))
        assert [buffer.len for buffer in got(m.memif_rx_burst(ends.slave.conn, 0, 8))] == [200, 200, 1]

    def test_a_packet_longer_than_a_buffer_is_a_chain(self, link: Callable[..., Link], role: str) -> None:
        ends = link(buffer_size=128)
        end, other = ends.end(role), ends.other(role)
        packet = bytes(range(256)) + bytes(44)
        buffers = got(m.memif_buffer_alloc(other.conn, 0, 2, len(packet)))
        assert [buffer.len for buffer in buffers] == [128, 128, 44] * 2
        assert [buffer.flags for buffer in buffers] == [m.MEMIF_BUFFER_FLAG_NEXT, m.MEMIF_BUFFER_FLAG_NEXT, 0] * 2
        fill(buffers, packet + packet)
        assert m.memif_tx_burst(other.conn, 0, buffers) == (OK, 6)
        code, first = m.memif_rx_burst(end.conn, 0, 4)  # a burst may end inside a packet
        assert (code, len(first)) == (m.MEMIF_ERR_NOBUF, 4)
        received = first + got(m.memif_rx_burst(end.conn, 0, 4))
        assert b"".join(bytes(buffer.data) for buffer in received) == packet + packet
        assert [bool(buffer.flags & m.MEMIF_BUFFER_FLAG_NEXT) for buffer in received] == [True, True, False] * 2

    def test_a_chain_that_does_not_fit_is_rolled_back(self, link: Callable[..., Link], role: str) -> None:
        end = link(buffer_size=128, log2_ring_size=3).end(role)
        code, buffers = m.memif_buffer_alloc(end.conn, 0, 3, 300)
        assert (code, len(buffers)) == (m.MEMIF_ERR_NOBUF_RING, 6)
        assert len(got(m.memif_buffer_alloc(end.conn, 0, 2, 128))) == 2
        assert m.memif_buffer_alloc(end.conn, 0, 1, 1) == (m.MEMIF_ERR_NOBUF_RING, [])

    def test_sizes_and_counts_that_make_no_sense_are_refused(self, link: Callable[..., Link], role: str) -> None:
        end = link(buffer_size=128, log2_ring_size=3).end(role)
        assert m.memif_buffer_alloc(end.conn, 0, 1, 0) == (m.MEMIF_ERR_INVAL_ARG, [])
        assert m.memif_buffer_alloc(end.conn, 0, -1, 64) == (m.MEMIF_ERR_INVAL_ARG, [])
        assert m.memif_buffer_alloc(end.conn, 0, 1, 8 * 128 + 1) == (m.MEMIF_ERR_INVAL_ARG, [])
        assert m.memif_buffer_alloc(end.conn, 0, 0, 64) == (OK, [])
        buffers = got(m.memif_buffer_alloc(end.conn, 0, 1, 64))
        assert m.memif_tx_burst(end.conn, 0, buffers, 2) == (m.MEMIF_ERR_INVAL_ARG, 0)
        assert m.memif_tx_burst(end.conn, 0, buffers, 1) == (OK, 1)

    def test_a_buffer_may_be_shortened_before_it_is_sent(self, link: Callable[..., Link], role: str) -> None:
        ends = link()
        end = ends.end(role)
        (buffer,) = got(m.memif_buffer_alloc(end.conn, 0, 1, 2048))
        buffer.data[:5] = b"short"
        buffer.len = 5
        assert (buffer.len, bytes(buffer.data)) == (5, b"short")
        with pytest.raises(ValueError):
            buffer.len = 2049
        assert m.memif_tx_burst(end.conn, 0, [buffer]) == (OK, 1)
        assert ends.other(role).receive() == [b"short"]

    def test_a_slave_may_move_the_data_inside_its_buffer(self, link: Callable[..., Link]) -> None:
        ends = link()
        (buffer,) = got(m.memif_buffer_alloc(ends.slave.conn, 0, 1, 12))
        buffer.data[:] = b"header|data."
        buffer.advance(7)
        assert (buffer.len, bytes(buffer.data)) == (5, b"data.")
        assert m.memif_tx_burst(ends.slave.conn, 0, [buffer]) == (OK, 1)
        assert ends.master.receive() == [b"data."]
        (buffer,) = got(m.memif_buffer_alloc(ends.master.conn, 0, 1, 12))
        with pytest.raises(ValueError):
            buffer.advance(7)

    def test_buffers_are_sent_in_the_order_of_allocation_alone(self, link: Callable[..., Link], role: str) -> None:
        ends = link()
        end = ends.end(role)
        buffers = got(m.memif_buffer_alloc(end.conn, 0, 3, 1)) + got(m.memif_buffer_alloc(end.conn, 0, 2, 1))
        for number, buffer in enumerate(buffers):
            buffer.data[:] = b"%d" % number
        assert m.memif_tx_burst(end.conn, 0, buffers[1:]) == (m.MEMIF_ERR_INVAL_ARG, 0)
        assert m.memif_tx_burst(end.conn, 0, buffers[3:]) == (m.MEMIF_ERR_INVAL_ARG, 0)
        assert m.memif_tx_burst(end.conn, 0, [buffers[0], buffers[2], buffers[1]]) == (m.MEMIF_ERR_INVAL_ARG, 1)
        assert m.memif_tx_burst(end.conn, 0, buffers) == (m.MEMIF_ERR_INVAL_ARG, 0)  # the first is sent
        assert m.memif_tx_burst(end.conn, 0, buffers[1:], 3) == (OK, 3)
        assert m.memif_tx_burst(end.conn, 0, buffers[4:]) == (OK, 1)
        assert ends.other(role).receive() == [b"0", b"1", b"2", b"3", b"4"]

    def test_buffers_of_another_queue_or_connection_are_refused(self, link: Callable[..., Link], role: str) -> None:
        ends = link(num_s2m_rings=2, num_m2s_rings=2)
        end, other = ends.end(role), ends.other(role)
        buffers = got(m.memif_buffer_alloc(end.conn, 0, 1, 1))
        assert m.memif_tx_burst(end.conn, 1, buffers) == (m.MEMIF_ERR_INVAL_ARG, 0)
        assert m.memif_tx_burst(other.conn, 0, buffers) == (m.MEMIF_ERR_INVAL_ARG, 0)
        assert m.memif_tx_burst(end.conn, 0, buffers) == (OK, 1)
        received = got(m.memif_rx_burst(other.conn, 0, 1))
        assert m.memif_tx_burst(other.conn, 0, received) == (m.MEMIF_ERR_INVAL_ARG, 0)

    def test_one_allocation_is_one_kick(self, link: Callable[..., Link], role: str) -> None:
        ends = link()
        end = ends.end(role)
        buffers = got(m.memif_buffer_alloc(end.conn, 0, 5, 1))
        assert m.memif_tx_burst(end.conn, 0, buffers) == (OK, 5)
        assert end.handle.tx_queues[0].counters.interrupts == 1

    @pytest.mark.usefixtures("readable_calls")
    def test_a_kick_that_fails_is_told_with_the_count(
        self, link: Callable[..., Link], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        end = link().slave
        buffers = got(m.memif_buffer_alloc(end.conn, 0, 2, 1))

        def refuse(event: EventFd) -> None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

        with monkeypatch.context() as patch:
            patch.setattr(EventFd, "notify", refuse)
            assert m.memif_tx_burst(end.conn, 0, buffers) == (m.MEMIF_ERR_INT_WRITE, 2)

    def test_a_peer_that_breaks_a_ring_is_a_code_and_a_disconnect(
        self, make_end: Callable[..., End], socket_name: str
    ) -> None:
        end = make_end("master", socket_name)
        end.create()
        with ScriptedSlave(socket_name, end.main) as peer:
            peer.run()
            peer.wait(lambda: end.connected)
            peer.tx.set_descriptor(0, 64, 1 << 30)
            peer.tx.head = 1
            assert m.memif_rx_burst(end.conn, 0, 8) == (m.MEMIF_ERR_DISCONNECTED, [])
            assert "outside" in str(m.memif_last_error())
            peer.wait(lambda: not end.connected)
            assert "outside" in got(m.memif_get_details(end.conn)).error


# --- memif_buffer_enq_tx, memif_buffer_requeue, memif_set_next_free_buffer ------------------------------------------


class TestZeroCopy:
    def test_received_buffers_are_swapped_into_the_transmit_ring(self, link: Callable[..., Link]) -> None:
        ends = link(log2_ring_size=3)
        for turn in range(5):  # several times around the ring
            ends.master.send(*[b"%d-%d" % (turn, number) for number in range(6)])
            buffers = got(m.memif_rx_burst(ends.slave.conn, 0, 6))
            picked = [buffers[4], buffers[0], buffers[1]]
            assert m.memif_buffer_enq_tx(ends.slave.conn, 0, picked) == (OK, 3)
            assert {buffer.queue for buffer in picked} == {ends.slave.handle.tx_queues[0]}
            assert [bytes(buffer.data) for buffer in picked] == [b"%d-%d" % (turn, number) for number in (4, 0, 1)]
            assert m.memif_refill_queue(ends.slave.conn, 0, 6, 0) == OK
            assert m.memif_tx_burst(ends.slave.conn, 0, picked) == (OK, 3)
            assert ends.master.receive() == [b"%d-%d" % (turn, number) for number in (4, 0, 1)]

    def test_no_buffer_is_in_two_places_afterwards(self, link: Callable[..., Link]) -> None:
        ends = link(log2_ring_size=3)
        for _ in range(5):
            ends.master.send(*[b"a", b"b", b"c"])
            buffers = got(m.memif_rx_burst(ends.slave.conn, 0, 3))
            assert m.memif_buffer_enq_tx(ends.slave.conn, 0, buffers[1:]) == (OK, 2)
            assert m.memif_refill_queue(ends.slave.conn, 0, -1, 0) == OK
            ends.master.send(*[b"overwrites"] * 7)
            assert [bytes(buffer.data) for buffer in buffers[1:]] == [b"b", b"c"]
            assert m.memif_tx_burst(ends.slave.conn, 0, buffers[1:]) == (OK, 2)
            assert ends.master.receive() == [b"b", b"c"]
            assert ends.slave.receive() == [b"overwrites"] * 7

    def test_a_full_transmit_ring_takes_what_it_can(self, link: Callable[..., Link]) -> None:
        ends = link(log2_ring_size=3)
        ends.slave.send(*[b"x"] * 6)
        ends.master.send(*[b"y"] * 5)
        buffers = got(m.memif_rx_burst(ends.slave.conn, 0, 8))
        assert m.memif_buffer_enq_tx(ends.slave.conn, 0, buffers) == (m.MEMIF_ERR_NOBUF_RING, 2)
        assert buffers[2].queue is ends.slave.handle.rx_queues[0]
        assert m.memif_tx_burst(ends.slave.conn, 0, buffers, 2) == (OK, 2)
        assert ends.master.receive() == [b"x"] * 6 + [b"y"] * 2

    def test_a_chain_stays_a_chain(self, link: Callable[..., Link]) -> None:
        ends = link(buffer_size=128)
        ends.master.send(bytes(range(200)))
        buffers = got(m.memif_rx_burst(ends.slave.conn, 0, 8))
        assert m.memif_buffer_enq_tx(ends.slave.conn, 0, buffers) == (OK, 2)
        assert m.memif_tx_burst(ends.slave.conn, 0, buffers) == (OK, 2)
        received = got(m.memif_rx_burst(ends.master.conn, 0, 8))
        assert b"".join(bytes(buffer.data) for buffer in received) == bytes(range(200))
        assert [buffer.flags for buffer in received] == [m.MEMIF_BUFFER_FLAG_NEXT, 0]

    def test_buffers_that_change_places_keep_their_data(self, link: Callable[..., Link]) -> None:
        ends = link(num_s2m_rings=2, num_m2s_rings=2)
        ends.master.send(b"zero", b"one", qid=0)
        ends.master.send(b"other queue", qid=1)
        a, b = got(m.memif_rx_burst(ends.slave.conn, 0, 8))
        (c,) = got(m.memif_rx_burst(ends.slave.conn, 1, 8))
        for one, two in ((a, b), (b, c)):
            before = (one.queue, one.desc_index, two.queue, two.desc_index)
            assert m.memif_buffer_requeue(ends.slave.conn, one, two) == OK
            assert (two.queue, two.desc_index, one.queue, one.desc_index) == before
        assert [bytes(buffer.data) for buffer in (a, b, c)] == [b"zero", b"one", b"other queue"]
        assert [buffer.queue.qid for buffer in (a, b, c)] == [0, 1, 0]
        assert m.memif_refill_queue(ends.slave.conn, 1, 1, 0) == OK
        with pytest.raises(ValueError):
            bytes(b.data)
        assert bytes(c.data) == b"other queue"
        assert m.memif_buffer_requeue(ends.slave.conn, a, b) == m.MEMIF_ERR_INVAL_ARG

    def test_a_master_copies(self, link: Callable[..., Link]) -> None:
        ends = link()
        ends.slave.send(b"a", b"b")
        buffers = got(m.memif_rx_burst(ends.master.conn, 0, 8))
        assert m.memif_buffer_enq_tx(ends.master.conn, 0, buffers) == (m.MEMIF_ERR_INVAL_ARG, 0)
        assert m.memif_buffer_requeue(ends.master.conn, *buffers) == m.MEMIF_ERR_INVAL_ARG
        assert m.memif_buffer_requeue(None, *buffers) == m.MEMIF_ERR_NOCONN

    def test_the_next_allocation_starts_where_it_is_told_to(self, link: Callable[..., Link], role: str) -> None:
        ends = link()
        end = ends.end(role)
        assert m.memif_buffer_alloc(None, 0, 1, 1)[0] == m.MEMIF_ERR_NOCONN
        old = got(m.memif_buffer_alloc(end.conn, 0, 3, 1)) + got(m.memif_buffer_alloc(end.conn, 0, 2, 1))
        slot = old[2].desc_index
        assert m.memif_set_next_free_buffer(end.conn, 0, old[2]) == OK
        assert m.memif_tx_burst(end.conn, 0, old) == (m.MEMIF_ERR_INVAL_ARG, 0)
        new = got(m.memif_buffer_alloc(end.conn, 0, 1, 1))
        assert new[0].desc_index == slot
        for buffer, data in zip(old[:2] + new, (b"a", b"b", b"c"), strict=True):
            buffer.data[:] = data
        assert m.memif_tx_burst(end.conn, 0, old[:2] + new) == (OK, 3)
        assert ends.other(role).receive() == [b"a", b"b", b"c"]
        assert m.memif_set_next_free_buffer(end.conn, 0, old[0]) == m.MEMIF_ERR_INVAL_ARG
        ends.other(role).send(b"received")
        (received,) = got(m.memif_rx_burst(end.conn, 0, 1))
        assert m.memif_set_next_free_buffer(end.conn, 0, received) == m.MEMIF_ERR_INVAL_ARG
        assert m.memif_set_next_free_buffer(None, 0, received) == m.MEMIF_ERR_NOCONN
        assert m.memif_set_next_free_buffer(end.conn, 1, received) == m.MEMIF_ERR_QID


# --- memif_register_external_region ---------------------------------------------------------------------------------


@dataclass
class OwnMemory:
    """An application's shared memory, as the four callbacks; it notes each call but the offsets'."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    fds: list[int] = field(default_factory=list)
    offsets: Iterator[int] = field(default_factory=lambda: iter(()))

    def add(self, size: int, ctx: object) -> tuple[int, memoryview]:
        self.calls.append(("add", size, ctx))
        fd = os.memfd_create("memory of the application", os.MFD_CLOEXEC)
        self.fds.append(fd)
        os.ftruncate(fd, size)
        return fd, memoryview(mmap.mmap(fd, size))

    def get(self, size: int, fd: int, ctx: object) -> memoryview:
        self.calls.append(("get", size, ctx))
        return memoryview(mmap.mmap(fd, size))

    def delete(self, memory: memoryview, size: int, fd: int, ctx: object) -> None:
        self.calls.append(("delete", size, ctx))

    def offset(self, ctx: object) -> int:
        return next(self.offsets)

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


class TestExternalRegions:
    @pytest.mark.parametrize("own_offsets", [False, True])
    def test_buffers_live_in_the_applications_memory(self, ends: Link, role: str, own_offsets: bool) -> None:
        buffers = 2 << 5
        memory = OwnMemory(offsets=iter(range((buffers - 1) * 256, -1, -256)))
        end = ends.end(role)
        assert (
            m.memif_register_external_region(
                end.sock, memory.add, memory.get, memory.delete, memory.offset if own_offsets else None
            )
            == OK
        )
        if role == "master":  # a slave's second region is what a master maps
            peers = OwnMemory()
            assert m.memif_register_external_region(ends.slave.sock, peers.add, peers.get) == OK
        for one in (ends.master, ends.slave):
            one.create(buffer_size=256, log2_ring_size=5)
        ends.wait(lambda: ends.master.connected and ends.slave.connected)
        regions = got(m.memif_get_details(end.conn)).regions
        assert [region.is_external for region in regions] == [False, True]
        for sender, receiver in ((ends.master, ends.slave), (ends.slave, ends.master)):
            sender.send(b"through the application's memory")
            assert receiver.receive() == [b"through the application's memory"]
        assert m.memif_register_external_region(end.sock, memory.add, memory.get) == m.MEMIF_ERR_INVAL_ARG
        assert m.memif_delete(end.conn) == OK
        size = regions[1].size
        assert size == buffers * 256
        assert memory.calls == [("add" if role == "slave" else "get", size, role), ("delete", size, role)]
        memory.close()
        if role == "master":
            peers.close()

    def test_an_exception_of_the_application_passes_and_ends_the_attempt(self, ends: Link) -> None:
        def add(size: int, ctx: object) -> tuple[int, memoryview]:
            raise KeyError(ctx)

        assert m.memif_register_external_region(ends.slave.sock, add, lambda size, fd, ctx: memoryview(b"")) == OK
        ends.master.create()
        conn = ends.slave.create()
        with pytest.raises(KeyError, match="slave"):
            ends.wait(lambda: conn.connected)
        assert conn.connection is None

    def test_there_is_no_region_without_a_socket(self) -> None:
        memory = OwnMemory()
        assert m.memif_register_external_region(None, memory.add, memory.get) == m.MEMIF_ERR_INVAL_ARG


# --- memif_get_details, memif_get_version, memif_get_version_str, memif_strerror ------------------------------------


class TestDetails:
    def test_details_hold_both_sides(self, ends: Link, socket_name: str, role: str) -> None:
        for one in (ends.master, ends.slave):
            one.create(
                interface_id=5,
                interface_name=f"{one.role}-if",
                secret=b"psst",
                num_s2m_rings=2,
                num_m2s_rings=3,
                log2_ring_size=4,
                buffer_size=512,
                mode=1,
            )
        ends.wait(lambda: ends.master.connected and ends.slave.connected)
        end, other = ends.end(role), ends.other(role)
        details = got(m.memif_get_details(end.conn))
        assert (details.if_name, details.inst_name) == (f"{role}-if", f"{role}-app")
        assert (details.remote_if_name, details.remote_inst_name) == (f"{other.role}-if", f"{other.role}-app")
        assert (details.id, details.secret, details.mode) == (5, b"psst", m.MEMIF_INTERFACE_MODE_IP)
        assert details.role == (0 if role == "master" else 1)
        assert details.socket_path == socket_name
        assert (details.error, details.link_up_down) == ("", True)
        (region,) = details.regions
        assert (region.index, region.is_external) == (0, False)
        assert os.fstat(region.fd).st_size == region.size
        assert region.addr > 0
        s2m, m2s = (details.rx_queues, details.tx_queues)[:: 1 if role == "master" else -1]
        assert [queue.qid for queue in s2m] == [0, 1]
        assert [queue.qid for queue in m2s] == [0, 1, 2]
        assert {(queue.region, queue.ring_size, queue.flags, queue.tail) for queue in s2m + m2s} == {(0, 16, 0, 0)}
        assert {queue.head for queue in s2m} == {0}
        assert {queue.head for queue in m2s} == {16}  # posted
        assert {queue.buffer_size for queue in s2m + m2s} == {512 if role == "slave" else 0}

    def test_a_peers_last_words_are_the_error(self, link: Callable[..., Link], role: str) -> None:
        ends = link()
        end, other = ends.end(role), ends.other(role)
        assert m.memif_delete(other.conn) == OK
        ends.wait(lambda: not end.connected)
        details = got(m.memif_get_details(end.conn))
        assert "interface deleted" in details.error
        assert not details.link_up_down
        assert (details.regions, details.rx_queues, details.tx_queues) == ((), (), ())
        assert end.handle.last_error is not None
        assert end.handle.last_error.code == m.MEMIF_ERR_DISCONNECT

    def test_without_a_connection_there_are_none(self) -> None:
        assert m.memif_get_details(None) == (m.MEMIF_ERR_NOCONN, None)
        assert m.memif_request_connection(None) == m.MEMIF_ERR_NOCONN


#: libmemif.h's order.
# fmt: off
CODES = (
    "SUCCESS", "SYSCALL", "CONNREFUSED", "ACCES", "NO_FILE", "FILE_LIMIT", "PROC_FILE_LIMIT", "ALREADY", "AGAIN",
    "BAD_FD", "NOMEM", "INVAL_ARG", "NOCONN", "CONN", "CB_FDUPDATE", "FILE_NOT_SOCK", "NO_SHMFD", "COOKIE",
    "NOBUF_RING", "NOBUF", "NOBUF_DET", "INT_WRITE", "MFMSG", "QID", "PROTO", "ID", "ACCSLAVE", "ALRCONN", "MODE",
    "SECRET", "NOSECRET", "MAXREG", "MAXRING", "NO_INTFD", "DISCONNECT", "DISCONNECTED", "UNKNOWN_MSG", "POLL_CANCEL",
    "MAX_RING", "PRIVHDR",
)
# fmt: on


class TestWords:
    def test_every_code_has_its_number_and_a_text_of_its_own(self) -> None:
        assert [getattr(m, f"MEMIF_ERR_{name}") for name in CODES] == list(range(40))
        texts = [m.memif_strerror(code) for code in range(40)]
        assert len(set(texts)) == 40
        assert "undefined error" not in texts

    @pytest.mark.parametrize("code", [40, -1, 1000])
    def test_other_numbers_are_undefined(self, code: int) -> None:
        assert m.memif_strerror(code) == "undefined error"

    def test_constants_are_libmemifs(self) -> None:
        values = {name: int(getattr(m, name)) for name in m.__all__ if name.startswith("MEMIF_FD_EVENT_")}
        assert values == {
            "MEMIF_FD_EVENT_READ": 1,
            "MEMIF_FD_EVENT_WRITE": 2,
            "MEMIF_FD_EVENT_ERROR": 4,
            "MEMIF_FD_EVENT_DEL": 8,
            "MEMIF_FD_EVENT_MOD": 16,
        }
        assert (m.MEMIF_RX_MODE_INTERRUPT, m.MEMIF_RX_MODE_POLLING) == (0, 1)
        modes = (m.MEMIF_INTERFACE_MODE_ETHERNET, m.MEMIF_INTERFACE_MODE_IP, m.MEMIF_INTERFACE_MODE_PUNT_INJECT)
        assert modes == (0, 1, 2)
        assert m.MEMIF_BUFFER_FLAG_NEXT == 1
        assert (m.MEMIF_DEFAULT_RING_SIZE, m.MEMIF_DEFAULT_LOG2_RING_SIZE, m.MEMIF_DEFAULT_BUFFER_SIZE) == (
            1024,
            10,
            2048,
        )
        assert (m.MEMIF_DEFAULT_RX_QUEUES, m.MEMIF_DEFAULT_TX_QUEUES) == (1, 1)
        assert m.MEMIF_DEFAULT_RECONNECT_PERIOD_SEC == 2

    def test_the_version_is_2_0(self) -> None:
        assert m.memif_get_version() == 0x0200
        assert m.memif_get_version_str() == "2.0"


# --- codes of the control channel -----------------------------------------------------------------------------------


class TestLastError:
    def test_each_thread_has_its_own(self) -> None:
        assert m.memif_delete(None) == m.MEMIF_ERR_NOCONN
        seen = []
        thread = Thread(target=lambda: seen.append(m.memif_last_error()))
        thread.start()
        thread.join()
        assert seen == [None]
        error = m.memif_last_error()
        assert error is not None
        assert error.code == m.MEMIF_ERR_NOCONN

    def test_success_does_not_forget_it(self) -> None:
        assert m.memif_delete(None) == m.MEMIF_ERR_NOCONN
        assert m.memif_init() == OK
        error = m.memif_last_error()
        assert error is not None
        assert error.code == m.MEMIF_ERR_NOCONN

    def test_it_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("DEBUG", "memifrt"):
            m.memif_create_socket("@x")
        assert "INVAL_ARG" in caplog.text
        assert "memif_init" in caplog.text


RING = AddRing(True, 0, 0, 0, 4)

#: What a slave says wrongly, after which step of the handshake, and the code that its master has for it.
WRONG_FROM_A_SLAVE: list[tuple[str, Message | bytes, bool, int]] = [
    ("region", b"too short", False, m.MEMIF_ERR_MFMSG),
    ("region", Hello("not a master"), False, m.MEMIF_ERR_UNKNOWN_MSG),
    ("region", AddRegion(0, 4096), False, m.MEMIF_ERR_NO_SHMFD),
    ("region", AddRegion(3, 4096), True, m.MEMIF_ERR_MAXREG),
    ("s2m", AddRing(True, 3, 0, 0, 4), True, m.MEMIF_ERR_MAXRING),
    ("s2m", AddRing(True, 0, 0, 0, 15), True, m.MEMIF_ERR_MAX_RING),
    ("s2m", AddRing(True, 0, 0, 0, 4, private_hdr_size=8), True, m.MEMIF_ERR_PRIVHDR),
    ("s2m", RING, False, m.MEMIF_ERR_NO_INTFD),
    ("s2m", AddRing(True, 0, 0, 4096, 4), True, m.MEMIF_ERR_COOKIE),
    ("connect", Disconnect(0, "bye"), False, m.MEMIF_ERR_DISCONNECT),
]


class TestPeers:
    @pytest.mark.parametrize(("step", "message", "with_fd", "code"), WRONG_FROM_A_SLAVE)
    def test_what_a_slave_does_wrong_ends_the_connection_with_a_code(
        self,
        make_end: Callable[..., End],
        socket_name: str,
        step: str,
        message: Message | bytes,
        with_fd: bool,
        code: int,
    ) -> None:
        end = make_end("master", socket_name)
        conn = end.create()
        with ScriptedSlave(socket_name, end.main) as peer:
            peer.run(until=step)
            peer.send(message, *([peer.eventfd()] if with_fd else []))
            peer.wait(lambda: conn.last_error is not None)
        assert conn.last_error is not None
        assert conn.last_error.code == code
        assert m.memif_poll_event(0, main=end.main) == OK

    def test_another_version_is_refused(self, make_end: Callable[..., End], socket_name: str) -> None:
        end = make_end("slave", socket_name)
        with ScriptedMaster(socket_name, end.main) as peer:
            conn = end.create()
            peer.run(until="accept")
            peer.send(Hello("from the future", 0x0300, 0x0300))
            peer.wait(lambda: conn.last_error is not None)
        assert conn.last_error is not None
        assert conn.last_error.code == m.MEMIF_ERR_PROTO

    @pytest.mark.parametrize(
        ("master", "slave", "reason"),
        [
            ({"interface_id": 1}, {"interface_id": 2}, "no interface with id 2"),
            ({"mode": m.MEMIF_INTERFACE_MODE_IP}, {}, "mode"),
            ({"secret": "right"}, {"secret": "wrong"}, "wrong secret"),
            ({"secret": "right"}, {}, "requires a secret"),
        ],
    )
    def test_a_slave_that_is_refused_learns_why(
        self, ends: Link, master: dict[str, Any], slave: dict[str, Any], reason: str
    ) -> None:
        ends.master.create(**master)
        conn = ends.slave.create(**slave)
        ends.wait(lambda: conn.last_error is not None)
        assert conn.last_error is not None
        assert conn.last_error.code == m.MEMIF_ERR_DISCONNECT
        assert reason in got(m.memif_get_details(conn)).error

    def test_an_id_that_is_connected_or_a_slave_takes_no_second_peer(
        self, link: Callable[..., Link], make_end: Callable[..., End], socket_name: str
    ) -> None:
        ends = link()
        got(m.memif_create(MemifConnArgs(socket=ends.master.sock, interface_id=8)))  # a slave on the listener's socket
        third = make_end("slave", socket_name)
        for interface_id, reason in ((0, "already connected"), (8, "is a slave")):
            conn = third.create(interface_id=interface_id)
            wait_until(lambda: conn.last_error is not None, ends.master.main, third.main)  # noqa: B023
            assert reason in got(m.memif_get_details(conn)).error


# --- libmemif's example, ported -------------------------------------------------------------------------------------

PACKETS = 500
#: Echo requests that may be on their way, less than the ring holds.
WINDOW = 48


def checksum(data: bytes | memoryview) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def echo_request(number: int) -> bytes:
    """Ethernet, IPv4 and ICMP, with a payload that depends on the number."""
    payload = bytes(number & 0xFF for _ in range(2 * (16 + number % 300)))
    icmp = struct.pack(">BBHHH", 8, 0, 0, 1, number) + payload
    icmp = icmp[:2] + struct.pack(">H", checksum(icmp)) + icmp[4:]
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(icmp), 0, 0, 64, 1, 0, b"\xc0\xa8\1\1", b"\xc0\xa8\1\2")
    header = header[:10] + struct.pack(">H", checksum(header)) + header[12:]
    return b"\2\0\0\0\0\2" + b"\2\0\0\0\0\1" + b"\x08\0" + header + icmp


def reply_in_place(packet: memoryview) -> None:
    """Turn an echo request into its reply: addresses change sides, so the IP checksum stays."""
    packet[:12] = bytes(packet[6:12]) + bytes(packet[:6])
    packet[26:34] = bytes(packet[30:34]) + bytes(packet[26:30])
    packet[34] = 0
    packet[36:38] = bytes(2)
    packet[36:38] = struct.pack(">H", checksum(packet[34:]))


def assert_reply(packet: bytes, number: int) -> None:
    request = echo_request(number)
    assert packet[:12] == request[6:12] + request[:6]
    assert packet[26:34] == request[30:34] + request[26:30]
    assert checksum(packet[14:34]) == checksum(packet[34:]) == 0
    assert packet[34] == 0
    assert packet[38:] == request[38:]


def respond_by_copy(conn: MemifConnHandle, ctx: object, qid: int) -> None:
    while True:
        code, received = m.memif_rx_burst(conn, qid, 16)
        assert code in (OK, m.MEMIF_ERR_NOBUF)
        buffers = got(m.memif_buffer_alloc(conn, qid, len(received), 2048))
        for request, reply in zip(received, buffers, strict=True):
            reply.len = request.len
            reply.data[:] = request.data
            reply_in_place(reply.data)
        assert m.memif_refill_queue(conn, qid, len(received), 0) == OK
        assert m.memif_tx_burst(conn, qid, buffers, len(buffers)) == (OK, len(buffers))
        if code == OK:
            return


def respond_without_a_copy(conn: MemifConnHandle, ctx: object, qid: int) -> None:
    while True:
        code, buffers = m.memif_rx_burst(conn, qid, 16)
        assert code in (OK, m.MEMIF_ERR_NOBUF)
        for buffer in buffers:
            reply_in_place(buffer.data)
        assert m.memif_buffer_enq_tx(conn, qid, buffers, len(buffers)) == (OK, len(buffers))
        assert m.memif_refill_queue(conn, qid, len(buffers), 0) == OK
        assert m.memif_tx_burst(conn, qid, buffers, len(buffers)) == (OK, len(buffers))
        if code == OK:
            return


class TestIcmpResponder:
    @pytest.mark.parametrize(
        ("role", "respond"),
        [("master", respond_by_copy), ("slave", respond_by_copy), ("slave", respond_without_a_copy)],
        ids=["master-copy", "slave-copy", "slave-zero-copy"],
    )
    def test_every_echo_request_is_answered(self, ends: Link, role: str, respond: m.InterruptCallback) -> None:
        responder, pinger = ends.end(role), ends.other(role)
        replies: list[bytes] = []
        responder.create(respond, log2_ring_size=6)
        pinger.create(lambda conn, ctx, qid: replies.extend(pinger.receive()), log2_ring_size=6)
        ends.wait(lambda: responder.connected and pinger.connected)
        sent = 0
        while len(replies) < PACKETS:
            while sent < min(PACKETS, len(replies) + WINDOW):
                pinger.send(echo_request(sent))
                sent += 1
            expected = min(PACKETS, len(replies) + 1)
            ends.wait(lambda: len(replies) >= expected)  # noqa: B023
        assert len(replies) == PACKETS
        for number, reply in enumerate(replies):
            assert_reply(reply, number)


# --- what a callback may do, and what it raises ---------------------------------------------------------------------


class TestOnDisconnectOfADeletion:
    """The handle works as in C: everything is released only afterwards."""

    @pytest.mark.parametrize("how", ["memif_delete", "memif_cleanup"])
    def test_the_handle_still_works(self, link: Callable[..., Link], role: str, how: str) -> None:
        ends = link()
        end, seen = ends.end(role), []

        def on_disconnect(conn: MemifConnHandle, ctx: object) -> None:
            details = got(m.memif_get_details(conn))
            seen.append((details.remote_inst_name, len(details.regions), len(details.rx_queues)))
            os.fstat(got(m.memif_get_queue_efd(conn, 0)))
            os.fstat(details.regions[0].fd)
            assert m.memif_get_socket_handle(conn) is end.sock
            if how == "memif_delete":
                assert m.memif_cancel_poll_event(m.memif_get_socket_handle(conn)) == OK
            assert m.memif_rx_burst(conn, 0, 1) == (m.MEMIF_ERR_DISCONNECTED, [])
            assert m.memif_delete(conn) == m.MEMIF_ERR_NOCONN
            assert m.memif_request_connection(conn) == m.MEMIF_ERR_NOCONN

        conn = end.handle
        conn.on_disconnect = lambda conn, reason: on_disconnect(conn, None)
        assert (m.memif_delete(conn) if how == "memif_delete" else m.memif_cleanup(end.main)) == OK
        assert seen == [(f"{ends.other(role).role}-app", 1, 1)]
        if how == "memif_delete":
            assert m.memif_poll_event(0, main=end.main) == m.MEMIF_ERR_POLL_CANCEL
        assert m.memif_get_details(conn) == (m.MEMIF_ERR_NOCONN, None)
        assert m.memif_get_socket_handle(conn) is None
        assert m.memif_get_queue_efd(conn, 0) == (m.MEMIF_ERR_NOCONN, -1)

    @pytest.mark.parametrize("end", ["memif_delete", "memif_cleanup", "memif_cleanup inside", "the peer"])
    def test_the_hook_hears_of_the_fds_afterwards(
        self, make_end: Callable[..., End], socket_name: str, end: str
    ) -> None:
        told: list[object] = []
        watched: dict[int, FdEvent] = {}

        def hook(fd: int, events: FdEvent, ctx: object) -> int:
            assert ctx == "mine"
            told.append("del" if events & m.MEMIF_FD_EVENT_DEL else "other")
            if events & m.MEMIF_FD_EVENT_DEL:
                os.fstat(fd)
                del watched[fd]
            else:
                watched[fd] = events
            return 0

        def on_disconnect(conn: MemifConnHandle, ctx: object) -> None:
            told.append("disconnect")
            for fd in list(watched):  # what the application's loop has still to hand over is harmless
                assert m.memif_per_thread_control_fd_handler(main, fd, m.MEMIF_FD_EVENT_READ) in (
                    OK,
                    m.MEMIF_ERR_INVAL_ARG,  # inside the handler already
                )
            if end == "memif_cleanup inside":
                assert m.memif_per_thread_cleanup(main) == OK

        main = got(m.memif_per_thread_init("mine", hook))
        sock = got(m.memif_per_thread_create_socket(main, socket_name))
        conn = got(
            m.memif_create(MemifConnArgs(socket=sock, is_master=True), None, on_disconnect, lambda conn, ctx, qid: None)
        )
        peer = make_end("slave", socket_name)
        peer.create()

        def turn() -> bool:
            for fd in [fd for fd in watched if readable(fd)]:
                assert m.memif_control_fd_handler(fd, m.MEMIF_FD_EVENT_READ, main=main) == OK
            return m.memif_poll_event(0.005, main=peer.main) == OK

        def drive(predicate: Callable[[], object]) -> None:
            deadline = time.monotonic() + DEADLINE
            while not predicate():
                assert turn()
                assert time.monotonic() < deadline

        drive(lambda: conn.connected and peer.connected)
        told.clear()
        if end == "the peer":
            assert m.memif_delete(peer.conn) == OK
            drive(lambda: not conn.connected)
        elif end == "memif_cleanup":
            assert m.memif_cleanup(main) == OK
        else:
            assert m.memif_delete(conn) == OK
        assert told[0] == "disconnect"
        assert "del" in told[1:]
        m.memif_cleanup(main)
        assert watched == {}


ERRORS: list[BaseException] = [
    KeyError("mine"),
    ConfigError("mine"),
    Disconnected("mine"),
    os_error("mine", FileNotFoundError(errno.ENOENT, "mine")),
    SystemExit(3),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
class TestWhatACallbackRaises:
    """It comes out, whatever its class: only our own errors become codes."""

    @pytest.mark.parametrize("callback", ["on_connect", "on_disconnect", "on_interrupt"])
    def test_of_a_connection(self, ends: Link, callback: str, error: BaseException) -> None:
        def fail(*args: object) -> None:
            raise error

        def refill(conn: MemifConnHandle, ctx: object) -> None:
            m.memif_refill_queue(conn, 0, -1, 0)

        callbacks: dict[str, Any] = {"on_connect": refill, callback: fail}
        ends.master.create()
        conn = got(m.memif_create(MemifConnArgs(socket=ends.slave.sock), **callbacks))

        def happens() -> None:
            poll(ends, lambda: conn.connected and ends.master.connected)
            if callback == "on_interrupt":
                ends.master.send(b"packet")
            else:
                assert m.memif_delete(ends.master.conn) == OK
            poll(ends, lambda: False)

        with pytest.raises(type(error)) as caught:
            happens()
        assert caught.value is error
        conn.on_disconnect = None

    def test_of_a_deletion(self, link: Callable[..., Link], error: BaseException) -> None:
        def fail(conn: MemifConnHandle, ctx: object) -> None:
            raise error

        link_ = link()
        end = link_.slave
        other = got(m.memif_create(MemifConnArgs(socket=end.sock, interface_id=7), None, fail))
        link_.master.conn = got(m.memif_create(MemifConnArgs(socket=link_.master.sock, is_master=True, interface_id=7)))
        link_.wait(lambda: other.connected)
        with pytest.raises(type(error)) as caught:
            m.memif_delete(other)
        assert caught.value is error
        assert m.memif_delete(other) == m.MEMIF_ERR_NOCONN

    def test_of_an_external_region(self, ends: Link, error: BaseException) -> None:
        def add(size: int, ctx: object) -> tuple[int, memoryview]:
            raise error

        assert m.memif_register_external_region(ends.slave.sock, add, lambda size, fd, ctx: memoryview(b"")) == OK
        ends.master.create()
        conn = ends.slave.create()
        with pytest.raises(type(error)) as caught:
            poll(ends, lambda: False)
        assert caught.value is error
        assert conn.connection is None
        assert m.memif_poll_event(0, main=ends.slave.main) == OK, "it does not come twice"


def poll(ends: Link, predicate: Callable[[], object]) -> None:
    """Let both ends poll by libmemif's call alone."""
    deadline = time.monotonic() + DEADLINE
    while not predicate():
        assert time.monotonic() < deadline, f"not within {DEADLINE} s: {predicate}"
        for end in (ends.slave, ends.master):
            assert m.memif_poll_event(0.005, main=end.main) == OK


#: For what no type checker lets pass.
untyped: Any = m


class TestWhatIsNotThere:
    """C's NULL gives INVAL_ARG where C gives it, and never an exception."""

    @pytest.mark.parametrize(
        "call",
        [
            lambda conn, sock: untyped.memif_create_socket(None)[0],
            lambda conn, sock: untyped.memif_create_socket(untyped.MemifSocketArgs(None))[0],
            lambda conn, sock: untyped.memif_create(None)[0],
            lambda conn, sock: untyped.memif_delete_socket(None),
            lambda conn, sock: untyped.memif_set_listener_fd(sock, None),
            lambda conn, sock: untyped.memif_poll_event(None, 0),
            lambda conn, sock: untyped.memif_poll_event(None, -1),
            lambda conn, sock: untyped.memif_cancel_poll_event(None),
            lambda conn, sock: untyped.memif_control_fd_handler(None, 1),
            lambda conn, sock: untyped.memif_set_connection_request_timer(None, 1),
            lambda conn, sock: untyped.memif_set_connection_request_timer(None),
            lambda conn, sock: untyped.memif_set_connection_request_timer(sock, None),
            lambda conn, sock: untyped.memif_register_external_region(sock, None, len),
            lambda conn, sock: untyped.memif_register_external_region(sock, len, None),
            lambda conn, sock: untyped.memif_tx_burst(conn, 0, None)[0],
            lambda conn, sock: untyped.memif_tx_burst(conn, 0, [None])[0],
            lambda conn, sock: untyped.memif_buffer_enq_tx(conn, 0, None)[0],
            lambda conn, sock: untyped.memif_buffer_requeue(conn, None, None),
            lambda conn, sock: untyped.memif_set_next_free_buffer(conn, 0, None),
            lambda conn, sock: untyped.memif_per_thread_cleanup(None),
            lambda conn, sock: untyped.memif_per_thread_create_socket(None, "@x")[0],
            lambda conn, sock: untyped.memif_per_thread_poll_event(None, 0),
            lambda conn, sock: untyped.memif_per_thread_cancel_poll_event(None),
            lambda conn, sock: untyped.memif_per_thread_control_fd_handler(None, 0, 1),
            lambda conn, sock: untyped.memif_per_thread_set_connection_request_timer(None, 1),
        ],
    )
    def test_it_is_an_invalid_argument(self, link: Callable[..., Link], call: Any) -> None:
        ends = link()
        assert m.memif_init() == OK
        assert call(ends.slave.conn, ends.slave.sock) == m.MEMIF_ERR_INVAL_ARG

    @pytest.mark.parametrize("callback", ["on_connect", "on_disconnect", "on_interrupt"])
    def test_a_callback_that_cannot_be_called_is_refused(self, ends: Link, callback: str) -> None:
        arguments: dict[str, Any] = {callback: 5}
        assert m.memif_create(MemifConnArgs(socket=ends.slave.sock), **arguments) == (m.MEMIF_ERR_INVAL_ARG, None)
        assert callback in str(m.memif_last_error())
        assert ends.slave.main.interfaces == ()

    def test_a_hook_that_cannot_be_called_is_refused(self, socket_name: str) -> None:
        five: Any = 5
        for hook in (five, lambda: 0, lambda fd: 0, lambda a, b, c, d: 0):
            assert untyped.memif_init(hook) == m.MEMIF_ERR_INVAL_ARG
            assert untyped.memif_per_thread_init(None, hook) == (m.MEMIF_ERR_INVAL_ARG, None)
        args = MemifSocketArgs(socket_name, on_control_fd_update=five)
        assert m.memif_create_socket(args) == (m.MEMIF_ERR_INVAL_ARG, None)
        assert m.memif_init(None, "app", five) == m.MEMIF_ERR_INVAL_ARG
        assert untyped.memif_init(None, "app", None, five) == m.MEMIF_ERR_INVAL_ARG


# --- libmemif 3.x ---------------------------------------------------------------------------------------------------


class TestLibmemif3:
    def test_init_takes_its_arguments_and_its_hook_three(self) -> None:
        told: list[tuple[object, ...]] = []
        assert m.memif_init(lambda *args: told.append(args), "app", None, None, None) == OK
        ((fd, events, ctx),) = told
        assert (events, ctx) == (m.MEMIF_FD_EVENT_READ, None)
        assert m.memif_cleanup() == OK
        assert told[1] == (fd, m.MEMIF_FD_EVENT_DEL, None)
        assert m.memif_init(None, None) == OK, "NULL takes the default name"

    def test_a_hook_of_two_arguments_works_for_a_thread_as_well(self) -> None:
        told: list[tuple[object, ...]] = []
        main = got(m.memif_per_thread_init("mine", lambda fd, events: told.append((fd, events))))
        assert m.memif_per_thread_cleanup(main) == OK
        assert [events for _, events in told] == [m.MEMIF_FD_EVENT_READ, m.MEMIF_FD_EVENT_DEL]
        assert m.memif_per_thread_cleanup(main) == m.MEMIF_ERR_INVAL_ARG

    def test_a_thread_has_its_own_calls(self, socket_name: str) -> None:
        main = got(m.memif_per_thread_init())
        sock = got(m.memif_per_thread_create_socket(main, socket_name, "mine"))
        assert m.memif_get_socket_filename(sock) == m.memif_get_socket_path(sock) == socket_name
        assert m.memif_get_socket_filename(None) is None
        assert m.memif_per_thread_set_connection_request_timer(main, 3) == OK
        assert main.reconnect_interval == 3
        assert m.memif_per_thread_poll_event(main, 0) == OK
        assert m.memif_per_thread_cancel_poll_event(main) == OK
        assert m.memif_per_thread_poll_event(main, -1) == m.MEMIF_ERR_POLL_CANCEL
        assert m.memif_per_thread_control_fd_handler(main, 12345, m.MEMIF_FD_EVENT_READ) == OK
        assert m.memif_per_thread_cleanup(main) == OK

    def test_flags_are_copied_from_what_came_in(self, link: Callable[..., Link], role: str) -> None:
        """A responder in C copies buffer by buffer, and the flag with each: a chain stays one."""
        ends = link(buffer_size=64)
        end, other = ends.end(role), ends.other(role)
        other.send(bytes(range(150)))
        received = got(m.memif_rx_burst(end.conn, 0, 8))
        assert len(received) == 3
        for rx in received:
            (tx,) = got(m.memif_buffer_alloc(end.conn, 0, 1, 1))
            tx.len = rx.len
            tx.data[:] = rx.data
            tx.flags = rx.flags
            assert m.memif_tx_burst(end.conn, 0, [tx]) == (OK, 1)
        assert m.memif_refill_queue(end.conn, 0, -1, 0) == OK
        assert b"".join(other.receive()) == bytes(range(150))
        assert other.handle.rx_queues[0].counters.packets == 1
        (tx,) = got(m.memif_buffer_alloc(end.conn, 0, 1, 1))
        with pytest.raises(ValueError, match="flags"):
            tx.flags = 2
        assert tx.flags == 0

    def test_a_timeout_in_milliseconds_is_warned_of_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("memifrt.libmemif.events._milliseconds_warned", False)
        assert m.memif_init() == OK
        for _ in range(2):
            assert m.memif_cancel_poll_event() == OK
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                assert m.memif_poll_event(1000) == m.MEMIF_ERR_POLL_CANCEL
            assert [str(warning.message) for warning in caught] == (
                [] if _ else ["memif_poll_event waits for 1000 seconds: its timeout is in seconds, not in milliseconds"]
            )
            assert all(warning.filename == __file__ for warning in caught)

    @pytest.mark.parametrize("timeout", [0, 0.5, 99, None, -1, 100.5])
    def test_other_timeouts_are_not(self, timeout: float | None) -> None:
        assert m.memif_init() == OK
        assert m.memif_cancel_poll_event() == OK
        assert m.memif_poll_event(timeout) == m.MEMIF_ERR_POLL_CANCEL

    def test_constants(self) -> None:
        assert (m.MEMIF_COOKIE, m.MEMIF_VERSION, m.MEMIF_SECRET_SIZE) == (0x3E31F20, 0x0200, 24)
        assert (m.MEMIF_VERSION_MAJOR, m.MEMIF_VERSION_MINOR) == (2, 0)
        assert f"{m.MEMIF_DEFAULT_SOCKET_DIR}/{m.MEMIF_DEFAULT_SOCKET_FILENAME}" == m.MEMIF_DEFAULT_SOCKET_PATH
        assert (m.MEMIF_MAX_REGION, m.MEMIF_MAX_S2M_RING, m.MEMIF_MAX_M2S_RING) == (255, 255, 255)
        assert (m.MEMIF_MAX_LOG2_RING_SIZE, m.MEMIF_RING_FLAG_MASK_INT, m.MEMIF_DESC_FLAG_NEXT) == (14, 1, 1)


class TestViewsOfBuffers:
    """A slice of a buffer's data that is still held is a code, not another packet's bytes."""

    def test_refill(self, link: Callable[..., Link], role: str) -> None:
        ends = link()
        ends.other(role).send(b"packet")
        conn = ends.end(role).conn
        (buffer,) = got(m.memif_rx_burst(conn, 0, 1))
        header = buffer.data[:2]
        assert m.memif_refill_queue(conn, 0, -1, 0) == m.MEMIF_ERR_INVAL_ARG
        assert "still exported" in str(m.memif_last_error())
        del header
        assert m.memif_refill_queue(conn, 0, -1, 0) == OK

    def test_transmission(self, link: Callable[..., Link], role: str) -> None:
        ends = link()
        conn = ends.end(role).conn
        buffers = got(m.memif_buffer_alloc(conn, 0, 1, 4))
        header = buffers[0].data[:2]
        assert m.memif_tx_burst(conn, 0, buffers) == (m.MEMIF_ERR_INVAL_ARG, 0)
        assert m.memif_set_next_free_buffer(conn, 0, buffers[0]) == m.MEMIF_ERR_INVAL_ARG
        del header
        assert m.memif_tx_burst(conn, 0, buffers) == (OK, 1)


def test_fd_of_an_external_region_is_the_applications_to_close(ends: Link) -> None:
    added: list[int] = []
    deleted: list[int] = []

    def add(size: int, ctx: object) -> tuple[int, memoryview]:
        fd = os.memfd_create("memory of the application", os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
        added.append(fd)
        return fd, memoryview(mmap.mmap(fd, size))

    def delete(memory: memoryview, size: int, fd: int, ctx: object) -> None:
        deleted.append(fd)
        os.close(fd)

    get = OwnMemory().get
    assert m.memif_register_external_region(ends.slave.sock, add, get, delete) == OK
    ends.master.create()
    ends.slave.create()
    ends.wait(lambda: ends.master.connected and ends.slave.connected)
    os.fstat(added[0])
    assert m.memif_delete(ends.slave.conn) == OK
    assert deleted == added
