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
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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
GONE = "region 0 is gone: its file was truncated while in use, or its file system is full"

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
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.mmap.restype = ctypes.c_void_p


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


# --- the compiled guard, beside others ------------------------------------------------------------------------------

#: What a child of these tests runs first: a guarded mapping with nothing behind it, and one that nobody guards.
PRELUDE = """
import ctypes, faulthandler, mmap, os, signal, sys, threading
from memifrt.memory._sigbus import Guard, HangUp
from tests.memory.test_truncation import SIZE, handler, unsealed

fd, mapping, address = unsealed()
def guard():
    global held
    held = Guard(address, SIZE, mmap.PAGESIZE)
def touch_guarded():
    os.ftruncate(fd, 0)
    assert mapping[0] == 0
def touch_other():
    other, unguarded, _ = unsealed()
    os.ftruncate(other, 0)
    unguarded[0]
"""


def program(code: str) -> subprocess.CompletedProcess[str]:
    """Run the code in a Python of its own, whose handlers nobody has touched."""
    environment = {**os.environ, "PYTHONFAULTHANDLER": ""}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code],
        cwd=Path(__file__).parents[2],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


#: The guards in Python promise none of this.
compiled = pytest.mark.parametrize("each_implementation", ["native"], indirect=True)

FAULTHANDLER = {
    "before": "faulthandler.enable(); guard()",
    "after": "guard(); faulthandler.enable()",
    # disable() restores what was there before enable(), and so removes our handler: until the next guard.
    "before and away": "faulthandler.enable(); guard(); kept = held; faulthandler.disable(); guard()",
    "after and away": "guard(); faulthandler.enable(); faulthandler.disable()",
    "after, and a new guard": "guard(); faulthandler.enable(); held.release(); guard()",
}


@compiled
@pytest.mark.parametrize("order", FAULTHANDLER)
def test_beside_faulthandler_lost_memory_is_survived_and_other_faults_are_reported(order: str) -> None:
    survived = program(FAULTHANDLER[order] + "; touch_guarded(); print('alive')")
    assert (survived.returncode, survived.stdout) == (0, "alive\n")
    died = program(FAULTHANDLER[order] + "; touch_other()")
    assert died.returncode == -signal.SIGBUS
    assert died.stderr.count("Fatal Python error: Bus error") == ("away" not in order)
    for send in ("os.kill(os.getpid(), signal.SIGBUS)", "signal.raise_signal(signal.SIGBUS)"):
        # After faulthandler, which hides whether this was a fault, the first one is only reported: memif_crash_handler.
        times = 2 if order == "after" else 1
        assert program(f"{FAULTHANDLER[order]}; [{send} for _ in range({times})]").returncode == -signal.SIGBUS


#: What was there before the guard; what a SIGBUS that is sent to the process then does; how a fault ends the process.
EARLIER = {
    "nothing": ("", None),
    "ignored": ("signal.signal(signal.SIGBUS, signal.SIG_IGN)", "went on"),
    "Python's handler": ("signal.signal(signal.SIGBUS, lambda *_: print('called', flush=True))", "called\nwent on"),
    "a C handler": (
        "kind = ctypes.CFUNCTYPE(None, ctypes.c_int)\n"
        "mine = kind(lambda number: os.write(1, b'called %d\\n' % (number == signal.SIGBUS)))\n"
        "ctypes.CDLL(None).signal(signal.SIGBUS, mine)",
        "called 1\nwent on",
    ),
    "a C handler with SA_SIGINFO": (
        "from memifrt.memory.sigbus_reference import _SigAction, _SigInfo\n"
        "kind = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.POINTER(_SigInfo), ctypes.c_void_p)\n"
        "mine = kind(lambda n, info, context: os.write(1, b'called %d\\n' % (info.contents.code == 0 < context)))\n"
        "action = _SigAction(handler=ctypes.cast(mine, ctypes.c_void_p).value, flags=4)\n"
        "assert ctypes.CDLL(None).sigaction(signal.SIGBUS, ctypes.byref(action), None) == 0",
        "called 1\nwent on",
    ),
}


@compiled
@pytest.mark.parametrize("earlier", EARLIER)
def test_what_handled_the_signal_before_still_does(earlier: str) -> None:
    install, said = EARLIER[earlier]
    send = "os.kill(os.getpid(), signal.SIGBUS); print('went on', flush=True)"
    done = program(f"{install}\nguard()\ntouch_guarded()\n{send}\n{send}")
    if said is None:
        assert (done.returncode, done.stdout) == (-signal.SIGBUS, "")
    else:
        assert (done.returncode, done.stdout) == (0, f"{said}\n" * 2)
    released = program(f"{install}\nbefore = handler(); guard(); held.release(); assert handler() == before")
    assert released.returncode == 0
    if earlier in ("nothing", "ignored"):
        assert program(f"{install}\nguard()\ntouch_other()").returncode == -signal.SIGBUS


@compiled
def test_the_handler_keeps_errno() -> None:
    code = """
import errno
libc = ctypes.CDLL(None, use_errno=True)
guard()
held_channel = HangUp(2 ** 20)  # no fd: the shutdown fails
held.release()
held = Guard(address, SIZE, mmap.PAGESIZE, held_channel)
os.ftruncate(fd, 0)
ctypes.set_errno(errno.EXDEV)
libc.memcpy(ctypes.create_string_buffer(8), ctypes.c_void_p(address), 8)
assert held.lost and ctypes.get_errno() == errno.EXDEV
"""
    assert program(code).returncode == 0


@needs_threads
@compiled
def test_many_threads_lose_many_mappings_at_once_without_the_lock_of_the_interpreter() -> None:
    """Each mapping is copied by several threads. Meanwhile other guards come and go."""

    def check() -> None:
        files = [unsealed() for _ in range(60)]
        start = threading.Barrier(9)
        stop = threading.Event()
        with contextlib.ExitStack() as stack:
            channels = [stack.enter_context(channel())[0] for _ in files]
            guards = [
                sigbus.Guard(address, SIZE, mmap.PAGESIZE, sigbus.HangUp(ours.fileno()))
                for (_, _, address), ours in zip(files, channels, strict=True)
            ]

            def copy(first: int) -> None:
                into = ctypes.create_string_buffer(SIZE)
                start.wait(DEADLINE)
                for _, _, address in files[first:] + files[:first]:
                    _libc.memcpy(into, ctypes.c_void_p(address), SIZE)

            def guard_others() -> None:
                _, mapping, address = unsealed()
                while not stop.is_set():
                    for guard in [sigbus.Guard(address, SIZE, mmap.PAGESIZE) for _ in range(10)]:
                        guard.release()
                assert mapping[0] == ord("x")

            others = Thread(target=guard_others)
            others.start()
            threads = [Thread(target=copy, args=(7 * number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for fd, _, _ in files:
                os.ftruncate(fd, 0)
            start.wait(DEADLINE)
            for thread in threads:
                thread.join(DEADLINE)
                assert not thread.is_alive()
            stop.set()
            others.join(DEADLINE)
            assert all(guard.lost for guard in guards)
            assert all(is_shut_down(ours) for ours in channels)

    in_child(check)


@needs_threads
@compiled
def test_guards_released_in_a_storm_of_faults_touch_nothing_afterwards() -> None:
    """After a release neither the mapping's address nor the channel's fd may be used: both belong to others then."""

    def check() -> None:
        rounds = 300
        ready, touch = threading.Semaphore(0), [threading.Semaphore(0) for _ in range(3)]
        addresses: list[int] = []

        def fault(turn: threading.Semaphore) -> None:
            into = ctypes.create_string_buffer(8)
            for number in range(rounds):
                assert turn.acquire(timeout=DEADLINE)
                # Its own guard stays: that this one faults does no harm, whatever happens to the others.
                _libc.memcpy(into, ctypes.c_void_p(addresses[number]), 8)
                ready.release()

        threads = [Thread(target=fault, args=(turn,)) for turn in touch]
        for thread in threads:
            thread.start()
        for _ in range(rounds):
            fd, mapping, address = unsealed()
            addresses.append(address)
            with channel() as (ours, _):
                number = ours.fileno()
                hang_up = sigbus.HangUp(number)
                # Two guards of one mapping: a thread that comes late meets the second, which stays.
                first, second = (sigbus.Guard(address, SIZE, mmap.PAGESIZE, hang_up) for _ in range(2))
                os.ftruncate(fd, 0)
                for turn in touch:
                    turn.release()
                first.release()
                hang_up.forget()
            with channel() as (reused, _):  # most likely the same number
                for _ in threads:
                    assert ready.acquire(timeout=DEADLINE)
                assert not is_shut_down(reused)
            assert first.lost or second.lost
            second.release()
            mapping[:] = b"y" * SIZE
            mapping.close()
            os.close(fd)
        for thread in threads:
            thread.join(DEADLINE)

    in_child(check)


@needs_threads
@compiled
def test_a_child_forked_amid_faults_can_release_its_guards() -> None:
    """A handler of a thread that the child lacks does not keep the child waiting."""

    def check() -> None:
        signal.alarm(60)
        stop = threading.Event()
        files = [unsealed() for _ in range(2)]
        guards = [sigbus.Guard(address, SIZE, mmap.PAGESIZE) for _, _, address in files]

        def storm(fd: int, address: int) -> None:
            into = ctypes.create_string_buffer(8)
            while not stop.is_set():
                os.ftruncate(fd, 0)
                # The file again over the zeros, so that the next touch faults, too.
                _libc.mmap(ctypes.c_void_p(address), SIZE, 3, 0x11, fd, 0)
                _libc.memcpy(into, ctypes.c_void_p(address), 8)

        threads = [Thread(target=storm, args=(fd, address)) for fd, _, address in files]
        for thread in threads:
            thread.start()

        def release() -> None:
            for guard in guards:
                guard.release()
            fd, mapping, address = unsealed()
            again = sigbus.Guard(address, SIZE, mmap.PAGESIZE)
            os.ftruncate(fd, 0)
            assert mapping[0] == 0
            assert again.lost

        for _ in range(30):
            in_child(release)
        stop.set()
        for thread in threads:
            thread.join(DEADLINE)
        assert all(guard.lost for guard in guards)

    in_child(check)
