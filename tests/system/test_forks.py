"""A forked child owns nothing: each call says so at once, and the parent notices nothing."""

from __future__ import annotations

import asyncio
import gc
import importlib
import multiprocessing
import os
import select
import selectors
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import trio
import uvloop

import memifrt.asyncio
import memifrt.trio
from memifrt import ForkedError, Runtime, libmemif
from memifrt.poll.selectors import SelectorPoller
from memifrt.pytest_plugin import Memif
from memifrt.ring import load
from memifrt.scapy import MemifSocket
from memifrt.stats import snapshot as stats
from memifrt.system import received_fds
from memifrt.system.received_fds import ReceivedFd
from memifrt.threaded.runtime_thread import Background
from tests.lib.forked import in_child
from tests.lib.patched import PATCHED, open_fds
from tests.lib.peer import VppMaster, VppSlave
from tests.lib.support import DEADLINE, Pair, wait_for_closes, wait_until
from tests.lib.threads import Event

# Its first loop opens fds that stay.
uvloop.new_event_loop().close()


@pytest.fixture(params=["native", "python"])
def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, make_pair: Callable[..., Pair]) -> Pair:
    monkeypatch.setattr("memifrt.connection.shared_memory.implementation", load(request.param))
    return make_pair()


def check_program(program: str) -> None:
    """Run a program that prints "done". It must leave no fd open, and end without a word."""
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-W", "ignore::DeprecationWarning", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def assert_packets_pass(pair: Pair) -> None:
    for sender, receiver in ((pair.master, pair.slave), (pair.slave, pair.master)):
        assert sender.tx_queues[0].send([b"packet"]) == 1
        assert receiver.rx_queues[0].recv() == [b"packet"]
    for runtime in pair.runtimes:
        runtime.poll_event(0)
    assert pair.master.connected
    assert pair.slave.connected


def refused(call: Callable[[], object]) -> None:
    """The call raises at once, and names both processes."""
    with pytest.raises(ForkedError) as caught:
        call()
    assert f"belongs to process {os.getppid()} " in str(caught.value)
    assert f"in process {os.getpid()}: a forked child makes one of its own" in str(caught.value)


def test_each_call_on_a_queue_is_refused_and_the_parent_goes_on(pair: Pair) -> None:
    rx, tx = pair.master.rx_queues[0], pair.slave.tx_queues[0]
    tx.send([b"for the parent"])

    def child() -> None:
        room = bytearray(64)
        matrix = memoryview(room).cast("B", (1, 64))
        lengths = memoryview(bytearray(2)).cast("H")
        for call in (
            rx.recv,
            rx.burst,
            rx.pending,
            rx.refill,
            rx.drain,
            rx.fileno,
            lambda: rx.recv_into(matrix, lengths),
            lambda: rx.set_rx_mode("polling"),
            lambda: rx.counters,
            lambda: tx.send([b"from the child"]),
            lambda: tx.send_from(matrix, lengths),
            lambda: tx.alloc(1),
            lambda: tx.forward(rx),
            tx.free,
            tx.fileno,
            lambda: tx.counters,
        ):
            refused(call)
        assert not rx.connected
        assert not tx.connected

    in_child(child)
    assert rx.recv() == [b"for the parent"]
    assert_packets_pass(pair)


def test_bursts_that_are_held_end_in_the_child_alone(pair: Pair) -> None:
    rx, tx = pair.master.rx_queues[0], pair.slave.tx_queues[0]
    tx.send([b"received"])
    received, allocated = rx.burst(), tx.alloc(1, 9)
    view = allocated[0]
    view[:] = b"allocated"
    assert bytes(received[0]) == b"received"

    def child() -> None:
        for burst in (received, allocated):
            refused(lambda burst=burst: burst[0])  # type: ignore[misc]
            refused(lambda burst=burst: burst.pack_into(bytearray(64), b"", 64))  # type: ignore[misc]
            burst.close()
        with pytest.raises(ValueError, match="released"):
            view[0] = 0

    in_child(child)
    assert bytes(received[0]) == b"received"
    received.close()
    tx.transmit(allocated)
    assert rx.recv() == [b"allocated"]


def test_what_is_derived_from_a_view_does_not_write_to_the_parents_memory(pair: Pair) -> None:
    burst = pair.slave.tx_queues[0].alloc(1, 4)
    derived = burst[0][:]
    derived[:] = b"mine"

    def child() -> None:
        assert bytes(derived) == b"mine"
        derived[:] = b"gone"

    in_child(child)
    assert bytes(derived) == b"mine"
    derived.release()
    burst.close()


def test_nothing_pretends_in_the_child(pair: Pair) -> None:
    runtime, interface = pair.runtimes[0], pair.master
    socket = interface.socket

    def child() -> None:
        before = open_fds()
        assert not interface.connected
        assert interface.state.value == "disconnected"
        assert f"belongs to process {os.getppid()}" in repr(interface)
        assert f"belongs to process {os.getppid()}" in repr(runtime)
        for call in (
            interface.details,
            interface.disconnect,
            interface.request_connection,
            runtime.run,
            runtime.poll_event,
            runtime.fileno,
            runtime.cancel_poll_event,
            lambda: runtime.control_fd_handler(0, 1),
            lambda: runtime.set_reconnect_interval(1),
            lambda: runtime.create_interface(socket="@memifrt-other"),
            lambda: socket.set_listener_fd(0),
            lambda: stats.snapshot(runtime),
        ):
            refused(call)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            interface.delete()
            socket.delete()
            runtime.close()
            gc.collect()
        assert open_fds() == before

    in_child(child)
    assert_packets_pass(pair)


def test_a_handle_of_libmemif_is_refused(socket_name: str) -> None:
    assert libmemif.memif_init(None, "parent") == 0
    try:
        _, sock = libmemif.memif_create_socket(socket_name)
        _, handle = libmemif.memif_create(libmemif.MemifConnArgs(socket=sock))
        in_child(lambda: refused(lambda: libmemif.memif_get_details(handle)))
        in_child(lambda: refused(lambda: libmemif.memif_poll_event(0)))

        def child() -> None:
            assert libmemif.memif_cleanup() == 0
            assert libmemif.memif_init(None, "child") == 0
            assert libmemif.memif_poll_event(0) == 0

        in_child(child)
    finally:
        libmemif.memif_cleanup()


def test_a_background_runtime_is_refused(socket_name: str) -> None:
    with Background(Runtime("background")) as background:
        background.call(lambda: background.runtime.create_interface(socket=socket_name, role="master"))

        def child() -> None:
            refused(lambda: background.call(lambda: None))
            background.close()

        in_child(child)
        assert background.call(lambda: 1) == 1


@pytest.mark.skipif(
    PATCHED,
    reason="gevent's os.close closes later, so multiprocessing's helpers cannot be ended here; "
    "tests/faces/test_gevent_patched.py starts such children in programs",
)
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_children_of_multiprocessing_leave_the_parent_alone(make_pair: Callable[..., Pair], method: str) -> None:
    pair = make_pair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = multiprocessing.get_context(method).Process(target=os.getpid)  # type: ignore[attr-defined]
        child.start()
    child.join()
    assert child.exitcode == 0
    child.close()
    if method == "forkserver":
        importlib.import_module("multiprocessing.forkserver")._forkserver._stop()
    if method != "fork":
        importlib.import_module("multiprocessing.resource_tracker")._resource_tracker._stop()
    assert_packets_pass(pair)


def test_a_daemon_that_was_forked_makes_a_runtime_of_its_own(socket_name: str) -> None:
    program = f"""
import os, memifrt
before = memifrt.Runtime("before")
if os.fork():
    before.close()
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
os.setsid()
try:
    before.poll_event(0)
except memifrt.ForkedError:
    with memifrt.Runtime("daemon") as runtime:
        master, slave = (runtime.create_interface(socket={socket_name!r}, role=role) for role in ("master", "slave"))
        while not (master.connected and slave.connected):
            runtime.poll_event(1)
    print("done", flush=True)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.parametrize("closes_fds", [False, True])
def test_a_daemon_that_was_forked_twice_makes_a_runtime_of_its_own(socket_name: str, closes_fds: bool) -> None:
    """Daemons fork twice, and close every fd that they inherit. The new runtime gets the numbers of the old one's."""
    program = f"""
import gc, os, traceback, memifrt

def connected(runtime, name):
    ends = [runtime.create_interface(socket=name, role=role) for role in ("master", "slave")]
    while not all(end.connected for end in ends):
        runtime.poll_event(1)
    return ends

def assert_packets_pass(runtime, master, slave):
    assert slave.tx_queues[0].send([b"packet"]) == 1
    assert master.rx_queues[0].recv() == [b"packet"]
    while runtime.poll_event(0):
        pass
    assert master.connected and slave.connected

def daemon():
    global before, ends
    if {closes_fds}:
        os.closerange(3, 256)
    with memifrt.Runtime("daemon") as runtime:
        own = connected(runtime, {socket_name!r} + "-daemon")
        for call in (before.poll_event, ends[0].details, ends[1].tx_queues[0].free):
            try:
                call()
            except memifrt.ForkedError as error:
                assert f"process {{original}} " in str(error), error
            else:
                raise AssertionError(call)
        before.close()
        before = ends = call = None
        gc.collect()
        assert_packets_pass(runtime, *own)
    print("done", flush=True)

original = os.getpid()
before = memifrt.Runtime("before", reconnect_interval=0.01)
ends = connected(before, {socket_name!r})
ended, in_daemon = os.pipe()
if child := os.fork():
    os.close(in_daemon)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert os.read(ended, 1) == b"", "the daemon wrote something"
    assert_packets_pass(before, *ends)
    before.close()
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
os.dup2(in_daemon, 0)  # standard input keeps the pipe open until the daemon ends
try:
    daemon()
except BaseException:
    traceback.print_exc()
finally:
    os._exit(0)
"""
    check_program(program)


def test_the_servers_of_statistics_stay_the_parents(tmp_path: Path) -> None:
    path = str(tmp_path / "stats.sock")
    with (
        Runtime("watched", stats_socket=path, prometheus="127.0.0.1:0", web=0) as runtime,
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.settimeout(DEADLINE)
        client.connect(path)

        def snapshot_comes() -> bool:
            while runtime.poll_event(0):
                pass
            return bool(select.select([client], [], [], 0)[0]) and client.recv(1 << 16).endswith(b"\n")

        wait_until(snapshot_comes, runtime)
        client.sendall(b"\n")  # the parent has this request to answer when it forks

        def child() -> None:
            refused(runtime.poll_event)
            runtime.close()
            gc.collect()
            assert os.path.exists(path)
            with Runtime("own", stats_socket=f"{path}-own") as own, socket.socket(socket.AF_UNIX) as another:
                another.connect(f"{path}-own")
                wait_until(lambda: select.select([another], [], [], 0)[0], own)
                assert b'"own"' in another.recv(1 << 16)
            assert not select.select([client], [], [], 0)[0]

        in_child(child)
        wait_until(snapshot_comes, runtime)
        client.sendall(b"\n")
        wait_until(snapshot_comes, runtime)
        with socket.socket(socket.AF_UNIX) as later:
            later.connect(path)
            wait_until(lambda: select.select([later], [], [], 0)[0], runtime)


@pytest.mark.parametrize("role", ["master", "slave"])
def test_kicks_that_a_slow_peer_still_needs_are_the_parents(socket_name: str, runtime: Runtime, role: str) -> None:
    if role == "master":
        interface = runtime.create_interface(socket=socket_name, role="master")
        peer: VppSlave | VppMaster = VppSlave(socket_name, runtime)
    else:
        peer = VppMaster(socket_name, runtime)
        interface = runtime.create_interface(socket=socket_name)
    with peer.run():
        wait_until(lambda: interface.connected, runtime)
        if isinstance(peer, VppSlave):
            peer.post()
        tx = interface.tx_queues[0]
        assert tx.send([b"packet"] * 1024) == 1024
        assert peer.on_kick()
        assert runtime._schedule._posted

        def child() -> None:
            assert not runtime._schedule._posted
            refused(lambda: tx.send([b"packet"]))
            refused(runtime.poll_event)
            runtime.close()
            gc.collect()

        in_child(child)
        assert not peer.on_kick()
        peer.wait(lambda: peer.on_kick() and peer.taken == 1024)


def test_a_child_takes_nothing_out_of_a_selector_it_shares(socket_name: str) -> None:
    with selectors.DefaultSelector() as selector:
        poller = SelectorPoller(selector)
        with Runtime("selects", control_fd_update=poller.update) as runtime:
            poller.start(runtime.control_fd_handler)
            master, slave = (runtime.create_interface(socket=socket_name, role=role) for role in ("master", "slave"))

            def turn() -> None:
                for key, mask in selector.select(DEADLINE):
                    key.data(key.fd, mask)

            while not (master.connected and slave.connected):
                turn()

            def child() -> None:
                poller.close()
                runtime.close()

            in_child(child)
            slave.disconnect()
            while master.connected:
                turn()


@pytest.mark.parametrize("make_loop", [asyncio.SelectorEventLoop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_child_takes_nothing_out_of_an_asyncio_loop_it_shares(
    socket_name: str, make_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def main() -> None:
        async with (
            memifrt.asyncio.open_interface(socket=socket_name, role="master") as master,
            memifrt.asyncio.open_interface(socket=socket_name, role="slave", reconnect_interval=0.01) as slave,
        ):
            await master.wait_connected()
            await slave.wait_connected()

            def child() -> None:
                refused(lambda: master.send([b"packet"]).send(None))
                refused(lambda: master.recv().send(None))
                refused(lambda: master.counters)
                assert not master.connected
                for face in (master, slave):
                    face.delete()

            in_child(child)
            await slave.send([b"packet"])
            assert await master.recv() == [b"packet"]

    loop = make_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(main(), DEADLINE))
    finally:
        loop.close()


@pytest.mark.skipif(PATCHED, reason="gevent's patches remove select.epoll, which trio needs")
def test_a_child_takes_nothing_out_of_a_trio_run_it_shares(socket_name: str) -> None:
    async def main() -> None:
        with trio.fail_after(DEADLINE):
            async with (
                memifrt.trio.open_interface(socket=socket_name, role="master") as master,
                memifrt.trio.open_interface(socket=socket_name, role="slave", reconnect_interval=0.01) as slave,
            ):
                await master.wait_connected()
                await slave.wait_connected()

                def child() -> None:
                    refused(lambda: master.counters)
                    assert not master.connected
                    for face in (master, slave):
                        face.delete()

                in_child(child)
                await slave.send([b"packet"])
                assert await master.recv() == [b"packet"]

    trio.run(main)


def test_a_pool_of_processes_leaves_the_parent_alone(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
            assert os.getpid() not in set(pool.map(use_nothing, range(4)))
            assert_packets_pass(pair)
    assert_packets_pass(pair)


def use_nothing(_: int) -> int:
    return os.getpid()


def test_a_child_that_ends_as_a_program_does_says_nothing_to_the_peers(socket_name: str) -> None:
    """By the end of its main module, with everything that Python does then."""
    program = f"""
import os, memifrt
with memifrt.Runtime("before", reconnect_interval=0.01) as runtime:
    ends = []
    master, slave = (
        runtime.create_interface(socket={socket_name!r}, role=role, on_disconnect=lambda i, r: ends.append(str(r)))
        for role in ("master", "slave")
    )
    while not (master.connected and slave.connected):
        runtime.poll_event(1)
    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        slave.tx_queues[0].send([b"packet"])
        assert master.rx_queues[0].recv() == [b"packet"]
        while runtime.poll_event(0):
            pass
        assert not ends, ends
        print("done")
"""
    check_program(program)


def test_a_burst_of_an_earlier_connection_ends_in_the_child_alone(pair: Pair) -> None:
    pair.slave.tx_queues[0].send([b"before"])
    burst = pair.master.rx_queues[0].burst()
    earlier = pair.master.rx_queues[0]
    ends = pair.slave.tx_queues[0]
    pair.slave.disconnect()
    wait_until(
        lambda: pair.master.connected and pair.slave.connected and pair.slave.tx_queues[0] is not ends, *pair.runtimes
    )

    def child() -> None:
        refused(lambda: burst[0])
        refused(earlier.recv)
        burst.close()

    in_child(child)
    assert bytes(burst[0]) == b"before"
    burst.close()
    assert_packets_pass(pair)


def test_what_waits_to_be_closed_is_the_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads that close what peers sent are not in the child."""
    go_on, close_range = Event(), received_fds._close_range

    def close(first: int, end: int) -> None:
        go_on.wait(DEADLINE)
        close_range(first, end)

    monkeypatch.setattr(received_fds, "_close_range", close)
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    for fd in fds:
        ReceivedFd(fd, "sent", 12345).close()

    def child() -> None:
        assert not received_fds.closes_too_slowly(12345)
        assert not received_fds._backlogs
        own = os.open("/dev/null", os.O_RDONLY)
        go_on.set()
        ReceivedFd(own, "sent", 12345).close()
        wait_for_closes()
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(own)

    in_child(child)
    go_on.set()
    wait_for_closes()
    for fd in fds:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)


def test_a_socket_of_scapy_is_refused(socket_name: str) -> None:
    with (
        MemifSocket(socket_name, role="master", timeout=0) as receiver,
        MemifSocket(socket_name, role="slave", timeout=DEADLINE) as sender,
    ):

        def child() -> None:
            refused(lambda: sender.send(b"packet"))
            refused(lambda: receiver.counters)
            assert not receiver.connected
            refused(receiver.fileno)
            for receive in (receiver.recv, receiver.nonblock_recv):
                with pytest.raises(EOFError, match=f"belongs to process {os.getppid()} "):
                    receive()
            assert receiver.waiting == 0
            for sock in (sender, receiver):
                sock.close()

        sender.send(b"for the parent")
        assert select.select([receiver], [], [], DEADLINE)[0]
        in_child(child)
        sender.send(b"packet")
        assert [receiver.recv_raw()[1] for _ in range(2)] == [b"for the parent", b"packet"]


def test_a_port_of_a_test_is_refused() -> None:
    memif = Memif(DEADLINE)
    try:
        pair = memif.pair()

        def child() -> None:
            refused(lambda: pair.slave.send([b"packet"]))
            refused(lambda: pair.master.recv(1))
            refused(lambda: pair.master.collect(0))
            refused(lambda: pair.master.counters)
            refused(pair.master.wait_connected)
            refused(pair.master.wait_disconnected)
            assert not pair.master.connected
            memif.close()

        in_child(child)
        pair.slave.send([b"packet"])
        assert pair.master.recv(1) == [b"packet"]
    finally:
        memif.close()


def test_objects_that_end_with_the_interpreter_end_in_silence() -> None:
    program = "import memifrt; runtime = memifrt.Runtime(); runtime.cycle = runtime; runtime.close()"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert ended.stderr == b""
