"""Programs for :mod:`tests.faces.test_gevent_patched`, each run in a process of its own, patched by gevent before or
after memifrt is imported, or not at all:

    python -m tests.lib.gevent_programs ORDER NAME
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memifrt import Interface, Runtime

ORDERS = ("before", "after", "without")
DEADLINE = 20.0


def main(order: str, name: str) -> None:
    warnings.simplefilter("error", ResourceWarning)
    if order == "before":
        importlib.import_module("gevent.monkey").patch_all()
    importlib.import_module("memifrt")
    if order == "after":
        importlib.import_module("gevent.monkey").patch_all()
    if order == "without":
        assert "gevent" not in sys.modules, "memifrt imports gevent by itself"
    fds = _fds()
    PROGRAMS[name]()
    if "gevent" not in sys.modules:
        assert _fds() == fds
    print("done")


def _fds() -> list[str]:
    """Return what each fd is. Not libffi, which ctypes loads: since 3.5 it keeps its own library open."""
    fds = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    files = [os.readlink(fd) for fd in fds if os.path.islink(fd)]  # no longer the directory itself
    return sorted(file for file in files if "/libffi." not in file)


def connected(first: Runtime, second: Runtime, **callbacks: Any) -> tuple[Interface, Interface]:
    """A master in the first runtime and a slave in the second, which is its own thread's as well."""
    name = f"@memifrt-gevent-{os.getpid()}-{time.monotonic_ns()}"
    master = first.create_interface(socket=name, role="master", **callbacks)
    slave = second.create_interface(socket=name, role="slave")
    end = time.monotonic() + DEADLINE
    while not (master.connected and slave.connected):
        first.poll_event(0.001)
        second.poll_event(0.001)
        assert time.monotonic() < end
    return master, slave


def exchange() -> None:
    """Connect, send, receive, disconnect. Nobody needs a hub for that."""
    from memifrt import PollCancelled, Runtime

    with Runtime("first") as first, Runtime("second") as second:
        end = time.monotonic() + DEADLINE
        master, slave = connected(first, second)
        for sender, receiver in ((master, slave), (slave, master)):
            assert sender.tx_queues[0].send([b"packet"] * 3) == 3
            assert receiver.rx_queues[0].recv() == [b"packet"] * 3
        slave.disconnect()
        while master.connected:
            first.poll_event(1)
        while first.poll_event(0.01):  # the timer may have something to do
            assert time.monotonic() < end
        first.cancel_poll_event()
        with contextlib.suppress(PollCancelled):
            first.poll_event(None)
            raise AssertionError("the cancel is lost")
    if "gevent" in sys.modules:
        from gevent._hub_local import get_hub_if_exists

        assert get_hub_if_exists() is None, "something has made a hub"


def others_run() -> None:
    """While poll_event waits, greenlets run; cancelling comes from a greenlet, and from a thread."""
    import gevent
    from gevent.monkey import get_original

    from memifrt import PollCancelled, Runtime

    with Runtime("waits") as runtime:
        turns = 0

        def count() -> None:
            nonlocal turns
            for _ in range(20):
                gevent.sleep(0.002)
                turns += 1
            runtime.cancel_poll_event()

        greenlet = gevent.spawn(count)
        try:
            runtime.poll_event(None)
        except PollCancelled:
            assert turns == 20
        else:
            raise AssertionError("it returned without being cancelled")
        greenlet.join()

        start = time.monotonic()
        assert runtime.poll_event(0.05) == 0
        assert 0.04 < time.monotonic() - start < DEADLINE
        assert runtime.poll_event(0) == 0

        # From a thread of the system, which knows nothing of hubs.
        get_original("_thread", "start_new_thread")(runtime.cancel_poll_event, ())
        try:
            runtime.run()
        finally:
            assert not runtime.closed


def killed_while_it_waits() -> None:
    """A greenlet in poll_event meets a Timeout or is killed: nothing is left, and the runtime goes on."""
    import gevent

    from memifrt import Runtime

    with Runtime("first") as first, Runtime("second") as second:
        for _ in range(50):
            greenlet = gevent.spawn(first.run)
            gevent.sleep(0)
            greenlet.kill()
            with gevent.Timeout(0.001, False):
                first.poll_event(None)
        master, slave = connected(first, second)
        slave.tx_queues[0].send([b"packet"])
        assert master.rx_queues[0].recv() == [b"packet"]


def closed_while_it_waits() -> None:
    """Another greenlet closes the runtime: run() returns."""
    import gevent

    from memifrt import Runtime

    runtime = Runtime("closed")
    greenlet = gevent.spawn(runtime.run)
    gevent.sleep(0.01)
    runtime.close()
    greenlet.join(DEADLINE)
    assert greenlet.successful(), greenlet.exception


def forked() -> None:
    """A forked child has a copy of the greenlet that polls. The events are its parent's, and so it is told."""
    import gevent

    from memifrt import MemifError, Runtime

    logging.getLogger("memifrt").setLevel(logging.ERROR)  # nobody listens, and that is no news
    answer, say = os.pipe()
    with Runtime("parent", reconnect_interval=0.005) as runtime:
        interface = runtime.create_interface(socket=f"@nobody-listens-to-{os.getpid()}")
        polling = gevent.spawn(runtime.run)
        gevent.sleep(0.01)
        child = os.fork()
        if child == 0:
            gevent.get_hub().print_exception = lambda *args: None
            attempt = interface.last_error
            polling.join(DEADLINE)
            told = isinstance(polling.exception, MemifError) and "belongs to process" in str(polling.exception)
            os.write(say, b"right" if told and interface.last_error is attempt else b"wrong")
            os._exit(0)
        assert _said(answer) == b"right"
        attempt = interface.last_error
        with gevent.Timeout(DEADLINE):
            while interface.last_error is attempt:
                gevent.sleep(0.001)
        polling.kill()


def children() -> None:
    """Greenlets, and the main one, wait for packets while another makes children. The children do their work and print
    nothing, and the parent misses no packet."""
    import multiprocessing

    import gevent
    from gevent import subprocess

    import memifrt.gevent

    name = f"@memifrt-gevent-{os.getpid()}"
    ends: list[str] = []
    with (
        memifrt.gevent.open_interface(
            socket=name, role="master", on_disconnect=lambda interface, reason: ends.append(str(reason))
        ) as master,
        memifrt.gevent.open_interface(socket=name, role="slave") as slave,
    ):
        master.wait_connected(DEADLINE)
        slave.wait_connected(DEADLINE)
        bursts: list[bytes] = []

        def receive_bursts() -> None:
            for burst in slave.bursts():
                bursts.extend(bytes(packet) for packet in burst.packets())

        def make_children() -> None:
            assert subprocess.call(["true"]) == 0
            # From 3.14 on, gevent's patches break multiprocessing's forkserver: its socket no longer blocks.
            for method in ("fork", "spawn") if sys.version_info >= (3, 14) else ("fork", "forkserver", "spawn"):
                context: Any = multiprocessing.get_context(method)
                child = context.Process(target=time.sleep, args=(0.05,))
                child.start()
                with gevent.Timeout(DEADLINE):
                    child.join()
                assert child.exitcode == 0
            slave.send([b"after the children"])

        receiving = gevent.spawn(receive_bursts)
        making = gevent.spawn(make_children)
        with gevent.Timeout(2 * DEADLINE):
            assert master.recv() == [b"after the children"]
            making.get()
            master.send([b"question"])
            while not bursts:
                gevent.sleep(0.001)
        assert bursts == [b"question"]
        assert not ends
        receiving.kill()


def _said(answer: int) -> bytes:
    """What a child wrote. Not its exit status: gevent may collect that itself, in its handler of SIGCHLD."""
    import gevent

    os.set_blocking(answer, False)
    with gevent.Timeout(2 * DEADLINE):
        while True:
            with contextlib.suppress(BlockingIOError):
                return os.read(answer, 16)
            gevent.sleep(0.001)


def flood() -> None:
    """Under a flood of packets, in which poll_event never has to wait, other greenlets keep their beat."""
    import gevent

    from memifrt import Runtime
    from tests.faces.test_gevent_ticker import keeps_its_beat, latest_beat

    packets = 0
    with Runtime("first") as first, Runtime("second") as second:

        def again(interface: Interface, qid: int) -> None:
            nonlocal packets
            packets += len(interface.rx_queues[qid].recv(32))
            slave.tx_queues[0].send([b"packet"] * 64)

        _, slave = connected(first, second, on_interrupt=again)
        slave.tx_queues[0].send([b"packet"] * 64)
        ticking = gevent.spawn(keeps_its_beat, latest_beat)
        while not ticking.ready():
            first.poll_event(None)
        ticking.get()
        assert packets > 1000


def pool() -> None:
    """A thread of gevent's pool owns a runtime, and the main thread's greenlets run meanwhile."""
    import gevent

    from memifrt import PollCancelled, Runtime

    runtimes: list[Runtime] = []

    def work() -> int:
        with Runtime("first") as first, Runtime("second") as second:
            master, slave = connected(first, second)
            slave.tx_queues[0].send([b"packet"])
            assert master.rx_queues[0].recv() == [b"packet"]
            runtimes.append(first)
            try:
                while True:
                    first.poll_event(None)
            except PollCancelled:
                return os.getpid()

    result = gevent.get_hub().threadpool.spawn(work)
    turns = 0
    while not runtimes:
        gevent.sleep(0.001)
        turns += 1
    for _ in range(20):
        gevent.sleep(0.001)
    assert not result.ready()
    runtimes[0].cancel_poll_event()
    with gevent.Timeout(DEADLINE):
        assert result.get() == os.getpid()
    gevent.get_hub().threadpool.kill()


def native() -> None:
    """The waiting calls of memifrt.gevent make no difference between patched and not."""
    import gevent

    import memifrt.gevent
    from memifrt import Disconnected

    name = f"@memifrt-gevent-{os.getpid()}"
    with (
        memifrt.gevent.open_interface(
            socket=name, role="master", on_connect=lambda interface: time.sleep(0.01)
        ) as master,
        memifrt.gevent.open_interface(socket=name, role="slave") as slave,
    ):
        master.wait_connected(DEADLINE)
        slave.wait_connected(DEADLINE)

        def answer() -> None:
            with contextlib.suppress(Disconnected):
                for burst in slave.bursts():
                    slave.send(list(burst))

        echo = gevent.spawn(answer)
        for number in range(100):
            packet = number.to_bytes(4, "big")
            master.send([packet])
            assert master.recv(timeout=DEADLINE) == [packet]
        master.close()
        echo.get(timeout=DEADLINE)


def busy() -> None:
    """A link that polls and a generator never wait, and yet other greenlets run."""
    import gevent

    from memifrt import PollCancelled, Runtime
    from memifrt.impairments import ImpairedLink, Impairment
    from memifrt.traffic import Generator, Stream

    ends = [f"@memifrt-gevent-{os.getpid()}-{end}" for end in "ab"]
    with ImpairedLink(*ends, a_to_b=Impairment(delay="1ms"), rx_mode="polling"), Runtime("ends") as runtime:
        interfaces = [runtime.create_interface(socket=end, role="slave", rx_mode="polling") for end in ends]
        with gevent.Timeout(DEADLINE):
            while not all(interface.connected for interface in interfaces):
                runtime.poll_event(0.001)
        interfaces[0].tx_queues[0].send([b"packet"])
        with gevent.Timeout(DEADLINE):
            while not interfaces[1].rx_queues[0].recv():
                gevent.sleep(0)

    with Runtime("first") as first, Runtime("second") as second:
        _, slave = connected(first, second)
        over = False

        def poll() -> None:
            if over:
                raise PollCancelled

        generator = Generator(slave, Stream(bytes(60)), check=False, poll=poll)
        greenlet = gevent.spawn(generator.run, duration=DEADLINE)
        gevent.sleep(0.001)
        over = True
        assert greenlet.get().ended == "interrupted"


PROGRAMS = {
    program.__name__: program
    for program in (
        exchange,
        others_run,
        killed_while_it_waits,
        closed_while_it_waits,
        forked,
        children,
        flood,
        pool,
        native,
        busy,
    )
}

if __name__ == "__main__":
    main(*sys.argv[1:])
