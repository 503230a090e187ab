"""The runtime, its sockets and its reconnect timer: who may live where, who listens, what is left afterwards."""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest

from memifrt import (
    ConfigError,
    Disconnected,
    ErrorCode,
    ExternalRegion,
    FdEvent,
    MemifError,
    MemifOSError,
    Runtime,
    Socket,
    State,
)
from memifrt.connection.reconnect import Reconnector
from memifrt.options import RoleName
from memifrt.poll.epoll import EpollPoller
from memifrt.poll.hook import FdRegistry
from memifrt.poll.schedule import Schedule
from memifrt.system import original_functions
from memifrt.system.original_functions import close
from tests.lib.forked import in_child
from tests.lib.peer import ScriptedSlave, assert_packets_pass, memory_file, native
from tests.lib.support import DEADLINE, Pair, Recorder, connect, interrupted_once, wait_until

ROLES: tuple[RoleName, ...] = ("master", "slave")


def other(role: RoleName) -> RoleName:
    return "slave" if role == "master" else "master"


@pytest.fixture
def patient() -> Iterator[Runtime]:
    """A runtime whose timer never comes in the time of a test: what connects, connects by itself."""
    with Runtime("patient", reconnect_interval=3600) as runtime:
        yield runtime


# --- paths ----------------------------------------------------------------------------------------------------------


def test_both_roles_and_several_interfaces_share_a_path_and_an_id(runtime: Runtime, socket_path: str) -> None:
    pairs = [connect(runtime, runtime, socket_path, id=number) for number in (0, 1, 0xFFFFFFFF)]
    assert len(runtime.sockets) == 1
    assert len(runtime.interfaces) == len(runtime.sockets[0].interfaces) == 6
    for pair in pairs:
        pair.slave.tx_queues[0].send([f"for {pair.master.id}".encode()])
    assert [pair.master.rx_queues[0].recv() for pair in pairs] == [[b"for 0"], [b"for 1"], [b"for 4294967295"]]
    for pair in pairs:
        assert_packets_pass(pair)


@pytest.mark.parametrize("form", ["@{}", "\0{}", "abstract:{}"])
def test_every_form_of_an_abstract_name_means_the_same_socket(
    runtime: Runtime, peer_runtime: Runtime, socket_name: str, form: str
) -> None:
    written = form.format(socket_name[1:])
    master = runtime.create_interface(socket=socket_name, role="master")
    slave = peer_runtime.create_interface(socket=written)
    assert slave.socket.path == master.socket.path == socket_name
    wait_until(lambda: slave.connected and master.connected, runtime, peer_runtime)
    assert_packets_pass(Pair(master, slave, (runtime, peer_runtime)))
    with pytest.raises(ConfigError, match="already"):
        runtime.create_socket(written)


def test_a_path_object_names_a_socket_file(runtime: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    assert_packets_pass(connect(runtime, runtime, path))  # type: ignore[arg-type]
    assert path.is_socket()


@pytest.mark.parametrize("kind", ["abstract", "file"])
def test_deleting_the_last_master_frees_the_address_at_once(
    runtime: Runtime, peer_runtime: Runtime, socket_name: str, socket_path: str, kind: str
) -> None:
    address = socket_name if kind == "abstract" else socket_path
    first = runtime.create_interface(socket=address, role="master")
    with pytest.raises(MemifOSError, match="somebody listens"):
        peer_runtime.create_interface(socket=address, role="master")
    first.delete()
    assert not os.path.exists(socket_path)
    peer_runtime.create_interface(socket=address, role="master")


def test_a_stale_socket_file_is_replaced(runtime: Runtime, socket_path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(socket_path)
        dead.listen()
    assert Path(socket_path).is_socket()
    assert_packets_pass(connect(runtime, runtime, socket_path))


def test_a_live_socket_file_is_reported_and_left_alone(
    runtime: Runtime, peer_runtime: Runtime, socket_path: str
) -> None:
    pair = connect(runtime, peer_runtime, socket_path)
    with pytest.raises(MemifOSError, match="somebody listens there already") as caught, Runtime("third") as third:
        third.create_interface(socket=socket_path, role="master")
    assert (caught.value.code, caught.value.filename) == (ErrorCode.SYSCALL, socket_path)
    assert "EADDRINUSE" in str(caught.value)
    assert Path(socket_path).is_socket()
    pair.wait(lambda: pair.master.connected)
    assert_packets_pass(pair)


def test_a_socket_file_that_somebody_replaced_is_not_removed(runtime: Runtime, socket_path: str) -> None:
    master = runtime.create_interface(socket=socket_path, role="master")
    os.unlink(socket_path)
    Path(socket_path).write_text("not ours")
    master.delete()
    assert Path(socket_path).read_text() == "not ours"


# --- sockets as objects ---------------------------------------------------------------------------------------------


def test_an_implicit_socket_goes_with_its_last_interface(runtime: Runtime, socket_path: str) -> None:
    pair = connect(runtime, runtime, socket_path)
    home = pair.master.socket
    assert runtime.sockets == (home,)
    assert home.implicit
    pair.master.delete()
    assert runtime.sockets == (home,)
    assert home.listener_fd == -1
    assert not os.path.exists(socket_path)
    pair.slave.delete()
    assert not runtime.sockets


def test_an_explicit_socket_stays_and_listens_until_it_is_deleted(runtime: Runtime, socket_path: str) -> None:
    home = runtime.create_socket(socket_path)
    assert home.listener_fd == -1
    assert not os.path.exists(socket_path)
    first = connect(runtime, runtime, home)  # type: ignore[arg-type]
    assert_packets_pass(first)
    listener = home.listener_fd
    assert listener >= 0
    first.slave.delete()
    first.master.delete()
    assert home.listener_fd == listener
    assert Path(socket_path).is_socket()
    second = connect(runtime, runtime, socket_path)  # by its path, the same socket
    assert second.master.socket is home
    assert_packets_pass(second)
    second.slave.delete()
    second.master.delete()
    home.delete()
    assert runtime.sockets == ()
    assert not os.path.exists(socket_path)


def test_a_socket_in_use_is_not_deleted(runtime: Runtime, socket_path: str) -> None:
    pair = connect(runtime, runtime, runtime.create_socket(socket_path))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="in use by 2 interface") as caught:
        pair.master.socket.delete()
    assert caught.value.code is ErrorCode.INVAL_ARG
    assert_packets_pass(pair)


def test_a_deleted_socket_is_of_no_use(runtime: Runtime, socket_path: str) -> None:
    home = runtime.create_socket(socket_path)
    home.delete()
    home.delete()
    with pytest.raises(ConfigError, match="deleted"):
        runtime.create_interface(socket=home)
    assert runtime.create_socket(socket_path) is not home


def test_a_socket_of_another_runtime_is_refused(runtime: Runtime, peer_runtime: Runtime, socket_name: str) -> None:
    with pytest.raises(ConfigError, match="not a socket of this runtime"):
        runtime.create_interface(socket=peer_runtime.create_socket(socket_name))


def test_a_peer_that_waits_at_a_listener_is_told_when_the_listener_closes(runtime: Runtime, socket_name: str) -> None:
    master = runtime.create_interface(socket=socket_name, role="master")
    with ScriptedSlave(socket_name, runtime) as peer:
        peer.run(until="init")
        master.delete()
        assert peer.reason() == "the listener was closed"


# --- listeners that somebody else made ------------------------------------------------------------------------------


@pytest.fixture
def activated(socket_path: str) -> Iterator[socket.socket]:
    """A listener as systemd hands it over. Its file stays systemd's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(socket_path)
        listener.listen()
        yield listener
    os.unlink(socket_path)


def test_a_master_takes_its_peers_from_a_listener_that_is_brought(
    runtime: Runtime, peer_runtime: Runtime, socket_path: str, activated: socket.socket
) -> None:
    home = runtime.create_socket(socket_path)
    fd = activated.detach()
    home.set_listener_fd(fd)
    assert home.listener_fd == fd
    pair = connect(runtime, peer_runtime, socket_path)
    assert pair.master.socket is home
    assert_packets_pass(pair)
    pair.master.delete()
    home.delete()
    with pytest.raises(OSError):
        os.fstat(fd)  # taken, and closed
    assert Path(socket_path).is_socket()  # the file is not ours to remove


def test_a_second_listener_is_refused_and_stays_the_callers(runtime: Runtime, activated: socket.socket) -> None:
    home = runtime.create_socket("@" + os.urandom(8).hex())
    runtime.create_interface(socket=home, role="master")
    with pytest.raises(ConfigError, match="listens already"):
        home.set_listener_fd(activated.fileno())
    activated.getsockname()


@pytest.mark.parametrize("kind", ["file", "stream", "not listening", "datagram over IP"])
def test_what_is_no_listener_is_refused_and_stays_the_callers(runtime: Runtime, tmp_path: Path, kind: str) -> None:
    home = runtime.create_socket("@" + os.urandom(8).hex())
    with open(tmp_path / "plain", "wb") as plain, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.bind("\0" + os.urandom(8).hex())
        stream.listen()
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as idle,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram,
        ):
            files: dict[str, IO[bytes] | socket.socket] = {
                "file": plain,
                "stream": stream,
                "not listening": idle,
                "datagram over IP": datagram,
            }
            fd = files[kind].fileno()
            with pytest.raises(MemifError, match="cannot be the listener") as caught:
                home.set_listener_fd(fd)
            assert caught.value.code is ErrorCode.FILE_NOT_SOCK
            os.fstat(fd)
    assert home.listener_fd == -1


def test_a_listener_fd_that_is_closed_is_a_named_error(runtime: Runtime) -> None:
    home = runtime.create_socket("@" + os.urandom(8).hex())
    fd = os.open("/dev/null", os.O_RDONLY)
    close(fd)
    with pytest.raises(MemifOSError, match="EBADF") as caught:
        home.set_listener_fd(fd)
    assert caught.value.code is ErrorCode.BAD_FD


def test_a_deleted_socket_takes_no_listener(runtime: Runtime, socket_path: str, activated: socket.socket) -> None:
    home = runtime.create_socket(socket_path)
    home.delete()
    with pytest.raises(ConfigError, match="deleted"):
        home.set_listener_fd(activated.fileno())
    activated.getsockname()


# --- memory of the application's own --------------------------------------------------------------------------------


@dataclass
class OwnMemory:
    """An external region in a file of the test's own, with a record of what it was asked."""

    calls: list[tuple[str, int]] = field(default_factory=list)
    fds: list[int] = field(default_factory=list)

    def add(self, size: int) -> tuple[int, memoryview]:
        self.calls.append(("add", size))
        fd = memory_file(size)
        self.fds.append(fd)
        return fd, memoryview(mmap.mmap(fd, size))

    def map(self, size: int, fd: int) -> memoryview:
        self.calls.append(("map", size))
        return memoryview(mmap.mmap(fd, size))

    def delete(self, memory: memoryview, size: int, fd: int) -> None:
        assert len(memory) == size
        if fd not in self.fds:  # ours may be closed already: what a peer sent is open
            os.fstat(fd)
        self.calls.append(("delete", size))

    def region(self, next_buffer_offset: Callable[[], int] | None = None) -> ExternalRegion:
        return ExternalRegion(self.add, self.map, self.delete, next_buffer_offset)

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def own_memory() -> Iterator[OwnMemory]:
    memory = OwnMemory()
    yield memory
    memory.close()


@pytest.mark.parametrize("role", ROLES)
def test_buffers_live_in_the_applications_memory(
    runtime: Runtime, peer_runtime: Runtime, socket_name: str, own_memory: OwnMemory, role: RoleName
) -> None:
    sockets: dict[str, Socket] = {
        "master": runtime.create_socket(socket_name),
        "slave": peer_runtime.create_socket(socket_name),
    }
    # A region of its own for the buffers is the slave's doing: a master only maps what it is sent.
    plain = OwnMemory()
    sockets["slave"].register_external_region((own_memory if role == "slave" else plain).region())
    if role == "master":
        sockets["master"].register_external_region(own_memory.region())
    pair = connect(runtime, peer_runtime, socket_name)
    size = 2 * 1024 * 2048
    assert own_memory.calls == [("add" if role == "slave" else "map", size)]
    regions = pair.side(role).details().regions
    assert [(region.index, region.is_external) for region in regions] == [(0, False), (1, True)]
    assert regions[1].size == size
    assert_packets_pass(pair)
    with pytest.raises(ConfigError, match="register external regions before the first"):
        sockets[role].register_external_region(own_memory.region())
    pair.side(role).delete()
    assert own_memory.calls[1:] == [("delete", size)]
    plain.close()


def test_the_application_places_each_buffer(
    runtime: Runtime, peer_runtime: Runtime, socket_name: str, own_memory: OwnMemory
) -> None:
    count, size = 4, 256
    offsets = iter(range((2 * count - 1) * size, -1, -size))
    home = peer_runtime.create_socket(socket_name)
    home.register_external_region(own_memory.region(lambda: next(offsets)))
    pair = connect(runtime, peer_runtime, socket_name, log2_ring_size=2, buffer_size=size)
    assert_packets_pass(pair)
    assert next(offsets, None) is None


def test_a_buffer_placed_outside_the_region_ends_the_attempt(
    runtime: Runtime, peer_runtime: Runtime, socket_name: str, own_memory: OwnMemory
) -> None:
    ends = Recorder()
    home = peer_runtime.create_socket(socket_name)
    home.register_external_region(own_memory.region(lambda: 1 << 20))
    runtime.create_interface(socket=socket_name, role="master")
    peer_runtime.create_interface(socket=home, on_disconnect=ends.on_disconnect, log2_ring_size=2, buffer_size=256)
    wait_until(lambda: ends.reasons, runtime, peer_runtime)
    assert "next_buffer_offset() gave 1048576" in str(ends.reasons[0])


def test_a_region_comes_from_the_allocator(runtime: Runtime, socket_name: str) -> None:
    sizes = []

    def allocate(size: int) -> int:
        sizes.append(size)
        return memory_file(size)

    with Runtime("allocates", region_allocator=allocate) as allocates:
        pair = connect(runtime, allocates, socket_name)
        assert sizes == [region.size for region in pair.slave.details().regions]
        assert sizes == [region.size for region in pair.master.details().regions]
        assert_packets_pass(pair)


def test_an_allocator_that_gives_too_little_ends_the_attempt(runtime: Runtime, socket_name: str) -> None:
    ends = Recorder()
    runtime.create_interface(socket=socket_name, role="master")
    with Runtime("allocates", region_allocator=lambda size: memory_file(4096)) as allocates:
        allocates.create_interface(socket=socket_name, on_disconnect=ends.on_disconnect)
        wait_until(lambda: ends.reasons, runtime, allocates)
    assert "the region allocator returned a file of 4096 bytes" in str(ends.reasons[0])
    assert not ends.reasons[0].established


@pytest.mark.parametrize("error", [OSError(28, "no room"), RuntimeError("allocator out of order")])
def test_an_allocator_that_raises_ends_the_attempt_and_leaves_nothing(
    runtime: Runtime, socket_name: str, error: Exception
) -> None:
    ends = Recorder()
    master = runtime.create_interface(socket=socket_name, role="master")

    def allocate(size: int) -> int:
        raise error

    with Runtime("allocates", region_allocator=allocate, reconnect_interval=3600) as allocates:
        slave = allocates.create_interface(socket=socket_name, on_disconnect=ends.on_disconnect)
        if isinstance(error, OSError):
            wait_until(lambda: ends.reasons, runtime, allocates)
        else:
            with pytest.raises(RuntimeError, match="allocator out of order"):
                wait_until(lambda: ends.reasons, runtime, allocates)
        assert slave.state is State.DISCONNECTED
        assert len(ends.reasons) == 1
        assert not ends.reasons[0].established
        wait_until(lambda: master.state is State.DISCONNECTED, runtime, allocates)


@pytest.mark.parametrize("action", [Runtime.close, lambda runtime: runtime.interfaces[0].delete()])
@pytest.mark.parametrize("where", ["allocator", "external region"])
def test_what_allocates_may_end_it_all_and_leaves_nothing(
    runtime: Runtime, socket_name: str, own_memory: OwnMemory, where: str, action: Callable[[Runtime], object]
) -> None:
    ends = Recorder()
    master = runtime.create_interface(socket=socket_name, role="master")

    def ended(size: int) -> None:
        if not ends.reasons:
            action(allocates)

    def allocate(size: int) -> int:
        ended(size)
        return memory_file(size)

    def add(size: int) -> tuple[int, memoryview]:
        ended(size)
        return own_memory.add(size)

    external = where == "external region"
    with Runtime("allocates", region_allocator=memory_file if external else allocate) as allocates:
        home = allocates.create_socket(socket_name)
        if external:
            home.register_external_region(ExternalRegion(add, own_memory.map, own_memory.delete))
        allocates.create_interface(socket=home, on_disconnect=ends.on_disconnect)
        while not ends.reasons:  # not wait_until: the runtime may be closed from within
            runtime.poll_event(0)
            allocates.poll_event(0)
        wait_until(lambda: master.state is State.DISCONNECTED, runtime)
    assert str(ends.reasons[0]) == "interface deleted"
    assert not ends.reasons[0].established
    if external:
        assert [call for call, _ in own_memory.calls] == ["add", "delete"]


# --- the reconnect timer --------------------------------------------------------------------------------------------


def next_attempt(runtime: Runtime) -> float | None:
    """Seconds until slaves try to connect, None if they do not, and the timer wakes the runtime by then."""
    appointment = runtime._reconnector.next_attempt
    if appointment is None:
        return None
    assert runtime._timer.due is not None
    assert runtime._timer.due <= appointment.due
    return appointment.due - time.monotonic()


def is_armed(runtime: Runtime) -> bool:
    return runtime._timer.armed


def within(seconds: float) -> object:
    """Equal to a remaining time of a little less."""
    return pytest.approx(seconds - min(DEADLINE, seconds) / 2, abs=min(DEADLINE, seconds) / 2 + 1e-9)


def test_the_timer_runs_only_while_a_slave_is_disconnected(
    runtime: Runtime, patient: Runtime, socket_name: str
) -> None:
    assert not is_armed(patient)
    patient.create_interface(socket=socket_name + "-other", role="master")
    assert not is_armed(patient)
    slave = patient.create_interface(socket=socket_name)
    assert next_attempt(patient) == within(3600)
    master = runtime.create_interface(socket=socket_name, role="master")
    slave.request_connection()
    assert next_attempt(patient) is None
    assert is_armed(patient)  # for the deadline of the handshake
    wait_until(lambda: slave.connected, runtime, patient)
    assert not is_armed(patient)
    master.disconnect()
    wait_until(lambda: not slave.connected, runtime, patient)
    assert next_attempt(patient) == within(3600)
    slave.delete()
    assert not is_armed(patient)


def test_the_timer_runs_while_one_of_several_slaves_is_disconnected(
    runtime: Runtime, patient: Runtime, socket_name: str
) -> None:
    first = patient.create_interface(socket=socket_name, id=1)
    second = patient.create_interface(socket=socket_name, id=2)
    runtime.create_interface(socket=socket_name, id=1, role="master")
    first.request_connection()
    wait_until(lambda: first.connected, runtime, patient)
    assert next_attempt(patient) == within(3600)
    second.delete()
    assert not is_armed(patient)


def test_the_default_period_is_libmemifs() -> None:
    with Runtime() as runtime:
        runtime.create_interface(socket="@nobody-listens-here")
        assert next_attempt(runtime) == within(2)


def test_the_period_can_be_changed_and_switched_off(runtime: Runtime, patient: Runtime, socket_name: str) -> None:
    slave = patient.create_interface(socket=socket_name)
    patient.set_reconnect_interval(60)
    assert next_attempt(patient) == within(60)
    patient.set_reconnect_interval(0)
    assert not is_armed(patient)
    runtime.create_interface(socket=socket_name, role="master")
    assert patient.poll_event(0) == 0
    assert slave.state is State.DISCONNECTED
    patient.set_reconnect_interval(0.01)
    wait_until(lambda: slave.connected, runtime, patient)
    assert not is_armed(patient)


def test_a_runtime_without_a_period_connects_on_request_alone(runtime: Runtime, socket_name: str) -> None:
    with Runtime("never", reconnect_interval=0) as never:
        slave = never.create_interface(socket=socket_name)
        assert not is_armed(never)
        runtime.create_interface(socket=socket_name, role="master")
        slave.request_connection()
        wait_until(lambda: slave.connected, runtime, never)


def test_a_timeout_that_is_not_a_number_is_refused(runtime: Runtime) -> None:
    with pytest.raises(ConfigError, match="timeout is nan"):
        runtime.poll_event(float("nan"))


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "2", None, True])
def test_a_period_that_is_none_is_refused(runtime: Runtime, seconds: float) -> None:
    with pytest.raises(ConfigError, match="reconnect_interval is"):
        runtime.set_reconnect_interval(seconds)
    with pytest.raises(ConfigError, match="reconnect_interval is"):
        Runtime(reconnect_interval=seconds)


def test_the_shortest_periods_still_arm_the_timer(patient: Runtime, socket_name: str) -> None:
    patient.create_interface(socket=socket_name)
    patient.set_reconnect_interval(1e-12)
    assert is_armed(patient)


def test_a_slave_created_before_its_master_connects_with_the_timer(
    runtime: Runtime, peer_runtime: Runtime, socket_path: str
) -> None:
    slave = runtime.create_interface(socket=socket_path)
    assert slave.state is State.DISCONNECTED
    assert isinstance(slave.last_error, MemifOSError)
    assert slave.last_error.code is ErrorCode.NO_FILE
    assert socket_path in slave.details().error
    master = peer_runtime.create_interface(socket=socket_path, role="master")
    wait_until(lambda: slave.connected and master.connected, runtime, peer_runtime)
    assert slave.details().error == ""
    assert_packets_pass(Pair(master, slave, (runtime, peer_runtime)))


# --- the end --------------------------------------------------------------------------------------------------------


def test_closing_deletes_everything_and_says_why(runtime: Runtime, socket_name: str, socket_path: str) -> None:
    ends, far_ends = Recorder(), Recorder()
    with Runtime("short-lived") as ending:
        ending.create_socket(socket_path)
        here = []
        for role in ROLES:
            runtimes = (ending, runtime) if role == "master" else (runtime, ending)
            callbacks: dict[str, Any] = {
                f"{role}_on_disconnect": ends.on_disconnect,
                f"{other(role)}_on_disconnect": far_ends.on_disconnect,
            }
            here.append(connect(*runtimes, f"{socket_name}-{role}", **callbacks).side(role))
    assert ending.closed
    assert (ending.interfaces, ending.sockets) == ((), ())
    assert all(interface.deleted for interface in here)
    assert [str(reason) for reason in ends.reasons] == ["interface deleted"] * 2
    wait_until(lambda: len(far_ends.reasons) == 2, runtime)
    assert {str(reason) for reason in far_ends.reasons} == {"peer disconnected: interface deleted"}
    ending.close()


def test_a_closed_runtime_refuses_everything_by_name() -> None:
    runtime = Runtime()
    runtime.close()
    for call in (
        runtime.create_interface,
        runtime.create_socket,
        runtime.poll_event,
        runtime.fileno,
        lambda: runtime.set_reconnect_interval(1),
    ):
        with pytest.raises(MemifError, match="the runtime is closed"):
            call()


def test_an_event_for_a_closed_runtime_is_stale_and_does_nothing() -> None:
    """A callback closes the runtime while the application's loop has more of its events in hand."""
    fds: list[int] = []
    runtime = Runtime(control_fd_update=lambda fd, events: fds.append(fd))
    runtime.close()
    assert not any(runtime.control_fd_handler(fd, FdEvent.READ) for fd in [*fds, 0])


def test_a_hook_s_config_error_stays_one() -> None:
    def refuse(fd: int, events: FdEvent) -> None:
        raise ConfigError("not in this thread")

    with pytest.raises(ConfigError, match=r"control_fd_update\(\d+, .*READ.*\) failed.*not in this thread") as caught:
        Runtime(control_fd_update=refuse)
    assert caught.value.code is ErrorCode.CB_FDUPDATE


class _Refusing:
    """An adapter whose loop runs in another thread, once it says so."""

    refuses = False

    def update(self, fd: int, events: FdEvent) -> None:
        self.check_caller()

    def check_caller(self) -> None:
        if self.refuses:
            raise ConfigError("in another thread")


def test_what_an_adapter_refuses_has_not_happened(socket_name: str) -> None:
    adapter = _Refusing()
    with Runtime(control_fd_update=adapter.update) as runtime:
        master = runtime.create_interface(socket=socket_name, role="master")
        adapter.refuses = True
        for call in (runtime.close, master.delete, master.disconnect, master.socket.delete, runtime.create_socket):
            with pytest.raises(ConfigError, match="in another thread"):
                call()
        with pytest.raises(ConfigError, match="in another thread"):
            Runtime(control_fd_update=adapter.update, stats_socket=f"{socket_name}-stats")
        assert not runtime.closed
        assert not master.deleted
        assert master.socket.listener_fd >= 0
        adapter.refuses = False


def test_cancelling_a_closed_runtime_does_nothing() -> None:
    # A second Ctrl+C, whose handler calls this, comes when it comes.
    runtime = Runtime()
    runtime.close()
    runtime.cancel_poll_event()


def test_a_failed_close_still_closes_everything(runtime: Runtime, socket_name: str) -> None:
    def on_disconnect(interface: object, reason: Disconnected) -> None:
        raise RuntimeError("from on_disconnect")

    ending = Runtime("ending")
    for number in range(2):
        connect(runtime, ending, socket_name, id=number, slave_on_disconnect=on_disconnect)
    with pytest.raises(RuntimeError, match="from on_disconnect"):
        ending.close()
    assert ending.closed
    assert ending.interfaces == ()


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (FdRegistry, "remove_all"),
        (FdRegistry, "remove"),
        (Reconnector, "close"),
        (Schedule, "cancel"),
        (Schedule, "clear"),
        (EpollPoller, "close"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_an_interrupt_does_not_keep_a_close_from_closing(
    runtime: Runtime, socket_name: str, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    ending = Runtime("ending")
    ending.create_interface(socket=f"{socket_name}-listens", role="master")
    monkeypatch.setattr(owner, name, interrupted_once(getattr(owner, name)))
    with pytest.raises(KeyboardInterrupt):
        ending.close()
    assert ending.closed
    assert ending.interfaces == ()
    assert not len(ending._registry)


def test_a_close_that_is_interrupted_between_its_steps_can_be_repeated(
    runtime: Runtime, socket_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = Runtime("ending")
    connect(runtime, ending, socket_name)
    monkeypatch.setattr(Runtime, "_close_everything", interrupted_once(Runtime._close_everything))
    with pytest.raises(KeyboardInterrupt):
        ending.close()
    ending.close()
    assert ending.closed


def test_an_application_name_has_31_bytes(runtime: Runtime, socket_name: str) -> None:
    with pytest.raises(ConfigError, match="32 bytes"):
        Runtime("ä" * 16)
    with Runtime("ä" * 15 + "a") as longest:
        pair = connect(runtime, longest, socket_name)
        assert pair.master.details().remote_app_name == "ä" * 15 + "a"


def test_nothing_is_created_when_a_master_cannot_listen(runtime: Runtime, socket_name: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as busy:
        busy.bind(native(socket_name))
        busy.listen()
        with pytest.raises(MemifOSError, match="somebody listens"):
            runtime.create_interface(socket=socket_name, role="master")
    assert (runtime.interfaces, runtime.sockets) == ((), ())
    runtime.create_interface(socket=socket_name, role="master")


# --- what is told ---------------------------------------------------------------------------------------------------

SECRET = "correct horse battery"


@pytest.mark.parametrize("role", ROLES)
def test_the_log_tells_every_message_and_state_and_never_the_secret(
    make_pair: Callable[..., Pair], caplog: pytest.LogCaptureFixture, role: RoleName
) -> None:
    with caplog.at_level("DEBUG", logger="memifrt"):
        pair = make_pair(secret=SECRET)
        pair.side(role).disconnect("on purpose")
        pair.wait(lambda: pair.master.last_error and pair.slave.last_error)
    told = [record.getMessage() for record in caplog.records]
    near, far = str(pair.side(role)), str(pair.side(other(role)))
    for ours, theirs in ((str(pair.master), str(pair.slave)), (str(pair.slave), str(pair.master))):
        assert any(line.startswith(ours) and line.endswith(": connecting") for line in told)
        assert any(line.startswith(f"{ours}: connected to ") for line in told)
        assert any(line.startswith(f"{ours}: disconnected: ") for line in told), theirs
    conversation = ["Hello", "Init", "Ack", "AddRegion", "Ack", "AddRing", "Ack", "AddRing", "Ack", "Connect"]
    for verb in ("sending", "received"):
        messages = [line.partition(f": {verb} ")[2].partition("(")[0] for line in told if f": {verb} " in line]
        assert [name for name in messages if name[:1].isupper()][:11] == [*conversation, "Connected"]
    assert any(line.startswith(near) and line.endswith(": sending a disconnect: on purpose") for line in told)
    assert any(line.startswith(far) and "received Disconnect(code=0, reason='on purpose')" in line for line in told)
    assert SECRET not in caplog.text


@pytest.fixture
def quiet_logger() -> Iterator[None]:
    """The logger as a fresh process has it, and as it was again afterwards."""
    logger = logging.getLogger("memifrt")
    handlers, level = logger.handlers[:], logger.level
    logger.handlers.clear()
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.mark.usefixtures("quiet_logger")
@pytest.mark.parametrize(("value", "tells"), [("1", True), ("0", False), ("", False)])
def test_the_environment_switches_the_log_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], socket_name: str, value: str, tells: bool
) -> None:
    monkeypatch.setenv("MEMIFRT_DEBUG", value)
    with Runtime("debugged") as debugged:
        debugged.create_interface(socket=socket_name, role="master")
        with ScriptedSlave(socket_name) as peer:
            debugged.poll_event(None)
            peer.answer("hello")
    assert ("sending Hello(name='debugged'" in capsys.readouterr().err) == tells


# --- on_error -------------------------------------------------------------------------------------------------------


def test_on_error_takes_what_callbacks_raise_and_the_polls_go_on(socket_path: str) -> None:
    errors: list[BaseException] = []

    def fail(*args: object) -> None:
        raise ValueError("of a callback")

    with Runtime(on_error=errors.append) as runtime:
        for role in ROLES:
            runtime.create_interface(socket=socket_path, role=role, on_connect=fail, on_interrupt=fail)
        master, slave = runtime.interfaces
        wait_until(lambda: len(errors) == 2, runtime)
        assert master.connected
        assert slave.connected
        slave.tx_queues[0].send([b"packet"])
        wait_until(lambda: len(errors) == 3, runtime)
        assert {str(error) for error in errors} == {"of a callback"}


class _External:
    """A loop of an application's own: what comes out of ``control_fd_handler`` would end it."""

    def __init__(self) -> None:
        self._poll = original_functions.poll()

    def update(self, fd: int, events: FdEvent) -> None:
        if events & FdEvent.DEL:
            self._poll.unregister(fd)
        else:
            self._poll.register(fd, select.POLLIN * bool(events & FdEvent.READ))

    def turn(self, runtime: Runtime) -> None:
        for fd, _ in self._poll.poll(10):
            runtime.control_fd_handler(fd, FdEvent.READ)


def _fail(*args: object) -> bool:
    raise ValueError("on purpose")


@contextlib.contextmanager
def _failing_timer(runtime: Runtime, name: str, turn: Callable[[], object]) -> Iterator[None]:
    """A peer that says nothing: its deadline comes, and on_disconnect raises in the timer's call."""
    runtime.create_interface(socket=f"{name}-timer", on_disconnect=_fail)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.bind(native(f"{name}-timer"))
        silent.listen()
        runtime.interfaces[0].request_connection()
        yield


@contextlib.contextmanager
def _failing_accept(runtime: Runtime, name: str, turn: Callable[[], object]) -> Iterator[None]:
    """accept_peer raises in the listener's call."""
    runtime.create_interface(socket=runtime.create_socket(f"{name}-accept", accept_peer=_fail), role="master")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.connect(native(f"{name}-accept"))
        yield


@contextlib.contextmanager
def _failing_statistics(runtime: Runtime, name: str, turn: Callable[[], object]) -> Iterator[None]:
    """The snapshot raises; the client is not left to wait for it."""
    with pytest.MonkeyPatch.context() as patch, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        patch.setattr("memifrt.stats.server.snapshot", _fail)
        client.connect(native(f"{name}-stats"))
        yield
        client.settimeout(DEADLINE)
        assert client.recv(1) == b""


@contextlib.contextmanager
def _failing_disconnect(runtime: Runtime, name: str, turn: Callable[[], object]) -> Iterator[None]:
    """The peer goes, and on_disconnect raises in the call of the channel."""
    master = runtime.create_interface(socket=f"{name}-channel", role="master", on_disconnect=_fail)
    with Runtime("peer") as peer:
        slave = peer.create_interface(socket=f"{name}-channel")
        while not (master.connected and slave.connected):
            turn()
            peer.poll_event(0)
    yield


_Source = Callable[[Runtime, str, Callable[[], object]], contextlib.AbstractContextManager[None]]
_SOURCES: list[_Source] = [_failing_timer, _failing_accept, _failing_statistics, _failing_disconnect]


@pytest.mark.parametrize("mode", ["internal", "external"])
@pytest.mark.parametrize("taken", [True, False], ids=["on_error", "without"])
@pytest.mark.parametrize("source", _SOURCES, ids=lambda source: source.__name__.removeprefix("_failing_"))
def test_on_error_takes_what_any_event_raises(socket_name: str, source: _Source, taken: bool, mode: str) -> None:
    errors: list[BaseException] = []
    external = _External()
    with Runtime(
        control_fd_update=external.update if mode == "external" else None,
        on_error=errors.append if taken else None,
        stats_socket=f"{socket_name}-stats",
        handshake_timeout=0.05 if source is _failing_timer else DEADLINE,
        reconnect_interval=0,
    ) as runtime:

        def turn() -> None:
            if mode == "external":
                external.turn(runtime)
            else:
                runtime.poll_event(0.01)

        with source(runtime, socket_name, turn):
            raised: list[BaseException] = []
            deadline = time.monotonic() + DEADLINE
            while not errors and not raised:
                assert time.monotonic() < deadline
                try:
                    turn()
                except ValueError as error:
                    raised.append(error)
            assert [str(error) for error in errors + raised] == ["on purpose"]
            assert bool(errors) == taken
        # The loop and the runtime go on.
        master, slave = (runtime.create_interface(socket=socket_name, role=role) for role in ROLES)
        while not (master.connected and slave.connected):
            assert time.monotonic() < deadline
            if slave.state is State.DISCONNECTED:  # this end was too slow for its own deadline
                slave.request_connection()
            turn()
        for interface in runtime.interfaces:
            interface.on_disconnect = None


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_on_error_leaves_what_is_to_end_the_program(socket_path: str, kind: type[BaseException]) -> None:
    errors: list[BaseException] = []

    def end(*args: object) -> None:
        raise kind

    with Runtime(on_error=errors.append) as runtime:
        runtime.create_interface(socket=socket_path, role="master", on_connect=end)
        runtime.create_interface(socket=socket_path)
        with pytest.raises(kind):
            wait_until(lambda: False, runtime)
    assert not errors


def test_what_on_error_raises_is_logged_with_its_cause(socket_path: str, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*args: object) -> None:
        raise ValueError("of a callback")

    def fail_again(error: BaseException) -> None:
        raise LookupError("of on_error")

    with Runtime(on_error=fail_again) as runtime:
        runtime.create_interface(socket=socket_path, role="master", on_connect=fail)
        slave = runtime.create_interface(socket=socket_path)
        wait_until(lambda: slave.connected and "of on_error" in caplog.text, runtime)
    assert "of a callback" in caplog.text


def test_on_error_must_be_a_function() -> None:
    with pytest.raises(ConfigError, match="on_error is 'no'; it must be a function"):
        Runtime(on_error="no")  # type: ignore[arg-type]


# --- run and signals ------------------------------------------------------------------------------------------------

_RUNS = """
import os, signal, sys, threading
import memifrt
number = getattr(signal, sys.argv[1])
own = sys.argv[2] == "own"
if own:
    signal.signal(number, lambda number, frame: (print("mine"), runtime.cancel_poll_event()))
before = signal.getsignal(number)
with memifrt.Runtime("runs") as runtime:
    threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
    runtime.run()
assert signal.getsignal(number) is before
print("ended")
"""


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """The signals SIGUSR1 that were handled."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_ends_a_wait_that_it_came_before(runtime: Runtime, handled: list[int]) -> None:
    with runtime.woken_by_signals():
        assert not select.select([runtime], [], [], 0)[0]
        os.kill(os.getpid(), signal.SIGUSR1)  # whenever Python runs the handler
        assert select.select([runtime], [], [], 0)[0]
        assert runtime.poll_event(None) == 1
        assert handled == [signal.SIGUSR1]
        assert not select.select([runtime], [], [], 0)[0]
        with runtime.woken_by_signals():  # a second one does nothing
            pass
        os.kill(os.getpid(), signal.SIGUSR1)
        assert select.select([runtime], [], [], 0)[0]
    assert signal.set_wakeup_fd(-1) == -1
    os.kill(os.getpid(), signal.SIGUSR1)
    assert not select.select([runtime], [], [], 0)[0]


def test_the_wakeup_fd_of_a_loop_stays_its_own(runtime: Runtime, handled: list[int]) -> None:
    near, far = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(far)
    try:
        with runtime.woken_by_signals():
            os.kill(os.getpid(), signal.SIGUSR1)
            assert not select.select([runtime], [], [], 0)[0]
        assert os.read(near, 8) == bytes([signal.SIGUSR1])
    finally:
        assert signal.set_wakeup_fd(-1) == far
        os.close(near)
        os.close(far)


def test_signals_of_a_forked_child_do_not_wake_its_parent(runtime: Runtime, handled: list[int]) -> None:
    def check() -> None:
        assert signal.set_wakeup_fd(-1) == -1
        os.kill(os.getpid(), signal.SIGUSR1)

    with runtime.woken_by_signals():
        in_child(check)
        assert not select.select([runtime], [], [], 0)[0]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(("handler", "printed"), [("none", "ended\n"), ("own", "mine\nended\n")])
def test_a_signal_ends_run_quietly_and_an_own_handler_is_respected(name: str, handler: str, printed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RUNS, name, handler], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, printed, "")
