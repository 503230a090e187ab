"""Memory that a peer truncates while we use it: what can be sealed is sealed, and the rest does not kill us.

What may die runs in a forked child: the test is that the child lives.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import importlib
import mmap
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from memifrt import Disconnected, ErrorCode, ExternalRegion, Interface, Runtime, RxQueue, State, TxQueue
from memifrt.control.channel import Channel
from memifrt.memory import sigbus, sigbus_reference
from memifrt.ring import load
from tests.lib.forked import in_child
from tests.lib.patched import needs_threads
from tests.lib.peer import BUFFER_SIZE, LOG2_SIZE, ScriptedMaster, ScriptedSlave, memory_file
from tests.lib.support import DEADLINE, Recorder, wait_until
from tests.lib.threads import Thread

SIZE = 4 * mmap.PAGESIZE
GONE = "region 0 is gone: its file was truncated while it was in use"

Receive = Callable[[RxQueue], object]
Transmit = Callable[[TxQueue], object]


@pytest.fixture(params=["native", "python"], autouse=True)
def each_implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The compiled rings with the compiled guards, or both in Python."""
    name: str = request.param
    monkeypatch.setattr("memifrt.connection.shared_memory.implementation", load(name))
    guards = importlib.import_module("memifrt.memory._sigbus") if name == "native" else sigbus_reference
    for what in sigbus.__all__:
        monkeypatch.setattr(sigbus, what, getattr(guards, what))
    return name


def receive_burst(rx: RxQueue) -> None:
    with rx.burst() as burst:
        for packet in burst:
            bytes(packet)


def receive_vector(rx: RxQueue) -> None:
    rx.recv_into(
        memoryview(bytearray(16 * BUFFER_SIZE)).cast("B", (16, BUFFER_SIZE)), memoryview(bytearray(64)).cast("I")
    )


def send_burst(tx: TxQueue) -> None:
    with tx.alloc(4, BUFFER_SIZE) as burst:
        for packet in burst:
            packet[:] = bytes(len(packet))
        tx.transmit(burst)


RECEIVE: dict[str, Receive] = {
    "recv": lambda rx: rx.recv(),
    "burst": receive_burst,
    "recv_into": receive_vector,
    "pending": lambda rx: rx.pending(),
}
SEND: dict[str, Transmit] = {
    "send": lambda tx: tx.send([b"x" * BUFFER_SIZE] * 4),
    "alloc": send_burst,
    "free": lambda tx: tx.free(),
}


def keep_busy(peer: ScriptedSlave) -> None:
    """Send, and post what was received into, until some hundred packets have been taken."""
    deadline = time.monotonic() + DEADLINE
    while peer.tx.tail < 300 and time.monotonic() < deadline:
        if (peer.tx.head - peer.tx.tail) & 0xFFFF < peer.tx.size:
            peer.publish(b"z" * BUFFER_SIZE, kick=False)
        peer.rx.head = peer.rx.tail + peer.rx.size


@contextlib.contextmanager
def connected_master(path: str, record: Recorder) -> Iterator[tuple[Runtime, Interface, ScriptedSlave]]:
    """Our master, and a slave whose memory nobody can seal."""
    with Runtime("survivor") as runtime:
        master = runtime.create_interface(socket=path, role="master", on_disconnect=record.on_disconnect)
        with ScriptedSlave(path, runtime, sealed=False) as peer:
            peer.run()
            wait_until(lambda: master.connected, runtime)
            peer.post()
            peer.publish(*[bytes([number]) * BUFFER_SIZE for number in range(8)])
            yield runtime, master, peer


# --- a connection ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", [*RECEIVE, *SEND])
@pytest.mark.parametrize("left", [0, mmap.PAGESIZE], ids=["to nothing", "behind the rings"])
def test_truncated_memory_ends_the_connection_and_not_the_process(socket_name: str, use: str, left: int) -> None:
    def check() -> None:
        record = Recorder()
        with connected_master(socket_name, record) as (runtime, master, peer):
            os.ftruncate(peer.memory_fd, left)
            # The rings' own page may still be there: then looking at an index does not touch what is gone.
            touches = left == 0 or use not in ("pending", "free")
            said = GONE
            try:
                if use in RECEIVE:
                    RECEIVE[use](master.rx_queues[0])
                else:
                    SEND[use](master.tx_queues[0])
            except Disconnected as error:
                said = str(error)
            assert said == GONE  # whatever the zeros look like to the ring
            if not touches:
                return
            wait_until(lambda: not master.connected, runtime)
            assert [str(reason) for reason in record.reasons] == [GONE]
            assert record.reasons[0].code is ErrorCode.NO_SHMFD
            assert peer.reason() == GONE
            with pytest.raises(Disconnected, match="is gone"):
                master.rx_queues[0].recv()

    in_child(check)


@needs_threads
def test_memory_that_is_truncated_by_another_process_during_traffic(socket_name: str) -> None:
    """A thread receives and sends as fast as it can; the peer's process truncates in the middle, again and again."""

    def check() -> None:
        stop = threading.Event()
        failures: list[BaseException] = []

        def work(interface: Interface) -> None:
            try:
                while not stop.is_set() and interface.connected:
                    interface.tx_queues[0].send(interface.rx_queues[0].recv() or [b"y" * 64])
                    receive_burst(interface.rx_queues[0])
            except Disconnected:
                pass
            except BaseException as error:
                failures.append(error)

        record = Recorder()
        with Runtime("survivor", reconnect_interval=0.02) as runtime:
            master = runtime.create_interface(socket=socket_name, role="master", on_disconnect=record.on_disconnect)
            for attempt in range(1, 6):
                with ScriptedSlave(socket_name, runtime, sealed=False) as peer:
                    peer.run()
                    wait_until(lambda: master.connected, runtime)
                    peer.post()
                    thread = Thread(target=work, args=(master,))
                    thread.start()
                    truncating = os.fork()
                    if truncating == 0:
                        keep_busy(peer)
                        os.ftruncate(peer.memory_fd, 0)
                        os._exit(0)
                    wait_until(lambda: len(record.reasons) == attempt, runtime)  # noqa: B023
                    os.waitpid(truncating, 0)
                    stop.set()
                    thread.join()
                    stop.clear()
        assert failures == []
        assert {str(reason) for reason in record.reasons} == {GONE}

    in_child(check)


def test_a_burst_that_is_held_reads_zeros_even_after_the_connection(socket_name: str) -> None:
    def check() -> None:
        with connected_master(socket_name, Recorder()) as (_, master, peer):
            burst = master.rx_queues[0].burst(1)
            view = next(iter(burst))
            assert view[0] == 0
            assert bytes(burst[0]) == bytes(BUFFER_SIZE)
            second = master.rx_queues[0].burst(1)
            kept = second[0]
            assert bytes(kept) == bytes([1]) * BUFFER_SIZE
            master.disconnect()
            os.ftruncate(peer.memory_fd, 0)
            assert bytes(kept) == bytes(BUFFER_SIZE)

    in_child(check)


def test_a_region_that_is_truncated_during_the_handshake(socket_name: str) -> None:
    def check() -> None:
        record = Recorder()
        with Runtime("survivor") as runtime:
            runtime.create_interface(socket=socket_name, role="master", on_disconnect=record.on_disconnect)
            with ScriptedSlave(socket_name, runtime, sealed=False) as peer:
                peer.run(until="s2m")
                os.ftruncate(peer.memory_fd, 0)
                peer.s2m()
                assert peer.reason() == GONE
        assert [str(reason) for reason in record.reasons] == [GONE]

    in_child(check)


@pytest.mark.parametrize("where", ["region", "external region"])
def test_a_slave_survives_a_master_that_truncates_what_it_was_given(socket_name: str, where: str) -> None:
    """Our own memory is sealed; an application's need not be."""

    def add(size: int) -> tuple[int, memoryview]:
        fd = memory_file(size, sealed=False)
        return fd, memoryview(mmap.mmap(fd, size))

    def check() -> None:
        record = Recorder()
        external = where == "external region"
        with Runtime("survivor", region_allocator=lambda size: memory_file(size, sealed=False)) as runtime:
            home = runtime.create_socket(socket_name)
            if external:
                home.register_external_region(ExternalRegion(add, lambda size, fd: memoryview(b"")))
            with ScriptedMaster(socket_name, runtime) as peer:
                slave = runtime.create_interface(
                    socket=home, on_disconnect=record.on_disconnect, log2_ring_size=LOG2_SIZE, buffer_size=BUFFER_SIZE
                )
                for step in peer.STEPS:
                    peer.hear(step)
                    if external and step == "region":
                        peer.answer(step)
                        peer.hear(step)
                    peer.answer(step)
                wait_until(lambda: slave.connected, runtime)
                os.ftruncate(peer.fds[external], 0)
                with contextlib.suppress(Disconnected):
                    slave.tx_queues[0].send([b"x" * 64])
                wait_until(lambda: slave.state is State.DISCONNECTED, runtime)
                assert str(record.reasons[0]) == GONE.replace("0", str(int(external)))

    in_child(check)


def test_sealed_memory_is_not_guarded_and_cannot_be_truncated(socket_name: str, runtime: Runtime) -> None:
    before = handler()
    master = runtime.create_interface(socket=socket_name, role="master")
    with ScriptedSlave(socket_name, runtime) as peer:
        peer.run()
        wait_until(lambda: master.connected, runtime)
        assert handler() == before
        with pytest.raises(PermissionError):
            os.ftruncate(peer.memory_fd, 0)


def test_memory_that_its_peer_forgot_to_seal_is_guarded(socket_name: str, runtime: Runtime) -> None:
    before = handler()
    master = runtime.create_interface(socket=socket_name, role="master")
    with ScriptedSlave(socket_name, runtime) as peer:
        os.close(peer.memory_fd)
        size = peer.region_size
        forgetful = os.memfd_create("memif region of a forgetful peer", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        assert forgetful == peer.memory_fd  # the number that was just closed
        os.ftruncate(forgetful, size)
        old, peer.memory = peer.memory, mmap.mmap(forgetful, size)
        assert old is not None
        old.close()
        for ring in (peer.tx, peer.rx):
            ring.memory = peer.memory
            ring.write_cookie()
        peer.run()
        wait_until(lambda: master.connected, runtime)
        assert fcntl.fcntl(forgetful, fcntl.F_GET_SEALS) == 0
        assert handler() != before
        peer.publish(b"packet")
        wait_until(master.rx_queues[0].pending, runtime)
        assert master.rx_queues[0].recv() == [b"packet"]


# --- the guard ------------------------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None)


def handler() -> bytes:
    """The process's SIGBUS handler, as the C library has it."""
    action = ctypes.create_string_buffer(256)
    assert _libc.sigaction(signal.SIGBUS, None, action) == 0
    return action.raw[: ctypes.sizeof(ctypes.c_void_p)]


def unsealed() -> tuple[int, mmap.mmap, int]:
    fd = memory_file(SIZE, sealed=False)
    mapping = mmap.mmap(fd, SIZE)
    mapping[:] = b"x" * SIZE
    return fd, mapping, ctypes.addressof(ctypes.c_char.from_buffer(mapping))


@contextlib.contextmanager
def channel() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection, as a guard shuts it down."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs


def is_shut_down(ours: socket.socket) -> bool:
    try:
        return ours.recv(1) == b""
    except BlockingIOError:
        return False


def test_a_guard_hangs_up_and_leaves_zeros() -> None:
    def check() -> None:
        fd, mapping, address = unsealed()
        with channel() as (ours, theirs):
            guard = sigbus.Guard(address, SIZE, mmap.PAGESIZE, sigbus.HangUp(ours.fileno()))
            os.ftruncate(fd, mmap.PAGESIZE)
            assert mapping[0] == ord("x")
            assert (is_shut_down(ours), guard.lost) == (False, False)
            assert mapping[SIZE - 1] == 0
            assert (is_shut_down(ours), guard.lost) == (True, True)
            ours.send(b"the reason")  # this direction stays open
            assert theirs.recv(100) == b"the reason"
            assert mapping[:] == bytes(SIZE)  # all of it: what is there still is of no use without the rest
            mapping[:] = b"y" * SIZE
            assert mapping[SIZE - 1] == ord("y")
            guard.release()
            assert guard.lost

    in_child(check)


def test_a_channel_that_is_forgotten_is_not_shut_down() -> None:
    """Its number may belong to another file by then."""

    def check() -> None:
        fd, mapping, address = unsealed()
        with channel() as (ours, _):
            hang_up = sigbus.HangUp(ours.fileno())
            guard = sigbus.Guard(address, SIZE, mmap.PAGESIZE, hang_up)
            hang_up.forget()
            hang_up.forget()
            os.ftruncate(fd, 0)
            assert mapping[0] == 0
            assert (is_shut_down(ours), guard.lost) == (False, True)

    in_child(check)


def test_a_channel_forgets_its_fd_when_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[bool] = []
    with channel() as (ours, _):
        control = Channel(socket.socket(fileno=os.dup(ours.fileno())))
        hang_up = control.hang_up
        assert control.hang_up is hang_up

        class Spy:
            def forget(self) -> None:
                forgotten.append(control.fileno() >= 0)

        monkeypatch.setattr(control, "_hang_up", Spy())
        control.close()
    assert forgotten == [True]  # while it was still open


def test_a_forked_child_leaves_the_channel_of_its_parent_alone() -> None:
    def check() -> None:
        fd, mapping, address = unsealed()
        with channel() as (ours, _):
            guard = sigbus.Guard(address, SIZE, mmap.PAGESIZE, sigbus.HangUp(ours.fileno()))
            os.ftruncate(fd, 0)

            def touch() -> None:
                assert mapping[0] == 0
                assert guard.lost

            in_child(touch)
            assert (is_shut_down(ours), guard.lost) == (False, False)
            assert mapping[0] == 0
            assert (is_shut_down(ours), guard.lost) == (True, True)

    in_child(check)


def test_many_guards() -> None:
    """More than the compiled table has places at first."""

    def check() -> None:
        before = handler()
        for _ in range(2):  # the places are used again
            files = [unsealed() for _ in range(500)]
            guards = [sigbus.Guard(address, SIZE, mmap.PAGESIZE) for _, _, address in files]
            for fd, _, _ in files[::2]:
                os.ftruncate(fd, 0)
            assert [mapping[SIZE - 1] for _, mapping, _ in files] == [0, ord("x")] * 250
            assert [guard.lost for guard in guards] == [True, False] * 250
            for guard in guards[1::2]:
                guard.release()
            assert handler() != before
            for guard in guards[::2]:
                guard.release()
            assert handler() == before
            for fd, mapping, _ in files:
                mapping.close()
                os.close(fd)

    in_child(check)


def test_the_handler_is_there_only_as_long_as_a_guard_is() -> None:
    before = handler()
    fd, mapping, address = unsealed()
    first, second = (sigbus.Guard(address, SIZE, mmap.PAGESIZE) for _ in range(2))
    assert handler() != before
    first.release()
    first.release()
    assert handler() != before
    second.release()
    assert handler() == before
    mapping.close()
    os.close(fd)


def test_a_guard_that_is_collected_amid_the_end_of_another_waits_for_nobody() -> None:
    def check() -> None:
        signal.alarm(10)  # it would be for ever
        before = handler()
        _, _, address = unsealed()
        for moment in range(1, 40):
            gc.disable()
            garbage = _Holder(sigbus.Guard(address, SIZE, mmap.PAGESIZE))
            garbage.itself = garbage
            del garbage
            guard = sigbus.Guard(address, SIZE, mmap.PAGESIZE)
            gc.set_threshold(gc.get_count()[0] + moment)
            gc.enable()
            guard.release()
        gc.collect()
        assert handler() == before

    in_child(check)


class _Holder:
    itself: object = None

    def __init__(self, guard: sigbus.Guard) -> None:
        self.guard = guard

    def __del__(self) -> None:
        self.guard.release()


def test_a_handler_that_came_after_ours_stays() -> None:
    def check() -> None:
        _, _, address = unsealed()
        guard = sigbus.Guard(address, SIZE, mmap.PAGESIZE)
        signal.signal(signal.SIGBUS, signal.SIG_IGN)
        theirs = handler()
        guard.release()
        assert handler() == theirs

    in_child(check)


def dies_of_sigbus(act: Callable[[], object]) -> None:
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        _, _, address = unsealed()
        guard = sigbus.Guard(address, SIZE, mmap.PAGESIZE)
        act()
        guard.release()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGBUS


def test_a_fault_in_memory_that_is_not_guarded_is_what_it_was() -> None:
    def act() -> None:
        fd, mapping, _ = unsealed()
        os.ftruncate(fd, 0)
        mapping[0]

    dies_of_sigbus(act)


def test_a_sigbus_that_somebody_sends_is_what_it_was() -> None:
    dies_of_sigbus(lambda: os.kill(os.getpid(), signal.SIGBUS))


def test_a_fault_without_the_lock_of_the_interpreter_is_survived_too() -> None:
    """Compiled code may touch the memory in a thread that does not hold it."""

    def check() -> None:
        fd, _, address = unsealed()
        guard = sigbus.Guard(address, SIZE, mmap.PAGESIZE)
        os.ftruncate(fd, 0)
        copy = ctypes.create_string_buffer(SIZE)
        thread = Thread(target=_libc.memcpy, args=(copy, ctypes.c_void_p(address), SIZE))
        thread.start()
        thread.join(DEADLINE)
        assert not thread.is_alive()
        assert copy.raw == bytes(SIZE)
        assert guard.lost

    in_child(check)
