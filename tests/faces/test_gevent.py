"""memif in gevent's hub: what only greenlets can show. Its adapter's contract is in :mod:`tests.poll.test_loops`."""

from __future__ import annotations

import contextlib
import gc
import os
import select
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.hub import set_hub

import memifrt.gevent
from memifrt import ConfigError, Disconnected, ErrorCode, FdEvent, Interface, MemifError, Runtime
from memifrt.gevent import GeventInterface, open_interface, open_runtime
from memifrt.poll.gevent import GeventPoller, let_others_run
from memifrt.system.original_functions import close
from tests.lib.forked import in_child
from tests.lib.loops import DRIVERS, MOD, READ, WRITE, GeventDriver
from tests.lib.peer import ScriptedSlave
from tests.lib.support import DEADLINE
from tests.lib.threads import Thread

DEL = FdEvent.DEL


def wait_until(predicate: Callable[[], object]) -> None:
    with gevent.Timeout(DEADLINE):
        while not predicate():
            gevent.sleep(0.001)


def greenlets() -> int:
    """Those that are not dead."""
    gc.collect()
    return sum(isinstance(found, gevent.Greenlet) and not found.dead for found in gc.get_objects())


@pytest.fixture(autouse=True, params=[driver for driver in DRIVERS if isinstance(driver, GeventDriver)], ids=str)
def hub(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test runs on both of gevent's loops."""
    before = gevent.get_hub()
    set_hub(request.param.hub)
    yield
    set_hub(before)


@pytest.fixture(autouse=True)
def no_greenlet_left(hub: None) -> Iterator[None]:
    before = greenlets()
    yield
    for _ in range(3):
        let_others_run()
    assert greenlets() == before


@pytest.fixture
def eventfd() -> Iterator[int]:
    """An eventfd that is readable, and stays so."""
    fd = os.eventfd(1, os.EFD_NONBLOCK)
    yield fd
    close(fd)


# --- the adapter ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def watching(poller: GeventPoller, fd: int, handler: Callable[[int, FdEvent], object]) -> Iterator[None]:
    poller.start(handler)
    poller.update(fd, READ)
    try:
        yield
    finally:
        poller.close()


def test_a_callback_may_wait_while_everybody_else_runs(eventfd: int) -> None:
    poller, gate = GeventPoller(), Event()
    seen: list[str] = []

    def handler(fd: int, events: FdEvent) -> None:
        seen.append("begins")
        assert gate.wait(DEADLINE)
        seen.append("ends")
        poller.update(fd, DEL)

    with watching(poller, eventfd, handler):
        wait_until(lambda: seen)
        for _ in range(10):
            gevent.sleep(0.001)
        assert seen == ["begins"]
        gate.set()
        wait_until(lambda: len(seen) == 2)


def test_the_hub_does_not_spin_while_a_callback_is_at_work(eventfd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    note = GeventPoller._on_ready

    def counted(self: GeventPoller, *args: object) -> None:
        nonlocal calls
        calls += 1
        note(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(GeventPoller, "_on_ready", counted)
    poller, gate, begun = GeventPoller(), Event(), Event()

    def handler(fd: int, events: FdEvent) -> None:
        begun.set()
        gate.wait(DEADLINE)

    with watching(poller, eventfd, handler):
        begun.wait(DEADLINE)
        for _ in range(50):
            gevent.sleep(0.001)
        assert calls <= 3, "an event that waits for its turn is told again and again"
        gate.set()
        wait_until(lambda: calls > 3)


def test_what_changes_while_a_callback_is_at_work_is_waited_for(eventfd: int) -> None:
    """The watcher of an fd is stopped just then, and must start with what it is to wait for now."""
    poller, gate, begun = GeventPoller(), Event(), Event()
    seen: list[FdEvent] = []

    def handler(fd: int, events: FdEvent) -> None:
        seen.append(events)
        begun.set()
        gate.wait(DEADLINE)

    with watching(poller, eventfd, handler):
        begun.wait(DEADLINE)
        gevent.sleep(0.005)  # told once more, and stopped
        poller.update(eventfd, WRITE | MOD)
        gate.set()
        wait_until(lambda: WRITE in seen)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_flood_of_events_gives_others_a_turn_after_each_batch(batch: int) -> None:
    fds = [os.eventfd(1, os.EFD_NONBLOCK) for _ in range(20)]
    poller = GeventPoller(batch=batch)
    events = 0
    between: list[int] = []

    def handler(fd: int, happens: FdEvent) -> None:
        nonlocal events
        events += 1

    poller.start(handler)
    for fd in fds:
        poller.update(fd, READ)
    for _ in range(50):
        before = events
        let_others_run()
        between.append(events - before)
    for fd in fds:
        poller.update(fd, DEL)
        close(fd)
    assert batch <= max(between) <= 2 * batch
    assert sum(between) >= 25 * batch


def test_a_turn_under_a_flood_is_one_round_of_the_loop(eventfd: int) -> None:
    """A timer that is due is not behind more than a batch or two, however long the callbacks take."""
    poller = GeventPoller(batch=4)
    events = 0

    def handler(fd: int, happens: FdEvent) -> None:
        nonlocal events
        events += 1
        end = gevent.get_hub().loop.now() + 0.002
        while not gevent.get_hub().loop.update_now() and gevent.get_hub().loop.now() < end:
            pass

    fds = [os.eventfd(1, os.EFD_NONBLOCK) for _ in range(8)]
    poller.start(handler)
    for fd in fds:
        poller.update(fd, READ)
    counts = []
    for _ in range(5):
        before = events
        gevent.sleep(0.001)
        counts.append(events - before)
    for fd in fds:
        poller.update(fd, DEL)
        close(fd)
    assert max(counts) <= 3 * 4


def test_a_dispatcher_that_is_killed_is_replaced(eventfd: int) -> None:
    poller = GeventPoller()
    victims: list[gevent.Greenlet] = []

    def handler(fd: int, events: FdEvent) -> None:
        victims.append(gevent.getcurrent())
        if len(victims) == 1:
            gevent.sleep(DEADLINE)
        os.eventfd_read(fd)

    with watching(poller, eventfd, handler):
        wait_until(lambda: victims)
        victims[0].kill()  # in a callback
        wait_until(lambda: len(victims) == 2)
        victims[1].kill()  # while it waits for events
        os.eventfd_write(eventfd, 1)
        wait_until(lambda: len(victims) == 3)
        assert len({*map(id, victims)}) == 3


def test_a_dispatcher_that_is_killed_before_it_runs_is_replaced(eventfd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    handled: list[int] = []
    victims: list[gevent.Greenlet] = []
    spawn: Callable[..., Any] = gevent.spawn

    def spawn_and_kill(function: Callable[[], object]) -> gevent.Greenlet:
        monkeypatch.setattr(gevent, "spawn", spawn)
        victims.append(spawn(function))
        victims[0].kill(block=False)
        return victims[0]

    monkeypatch.setattr(gevent, "spawn", spawn_and_kill)
    poller = GeventPoller()
    with watching(poller, eventfd, lambda fd, events: handled.append(os.eventfd_read(fd))):
        wait_until(lambda: handled)
        assert victims[0].dead


def test_what_a_callback_raises_goes_to_the_hub(eventfd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[object] = []
    hub = gevent.get_hub()
    monkeypatch.setattr(hub, "print_exception", lambda context, kind, value, trace: reported.append(value))
    poller = GeventPoller()
    failure = ZeroDivisionError()

    def handler(fd: int, events: FdEvent) -> None:
        os.eventfd_read(fd)
        raise failure

    with watching(poller, eventfd, handler):
        wait_until(lambda: reported)
    assert reported == [failure]


def test_a_keyboard_interrupt_in_a_callback_reaches_the_main_greenlet(eventfd: int) -> None:
    poller = GeventPoller(on_error=lambda error: None)

    def handler(fd: int, events: FdEvent) -> None:
        os.eventfd_read(fd)
        raise KeyboardInterrupt

    hub = gevent.get_hub()
    before = hub.print_exception
    hub.print_exception = lambda *args: None
    try:
        with watching(poller, eventfd, handler), pytest.raises(KeyboardInterrupt):
            gevent.sleep(DEADLINE)
    finally:
        hub.print_exception = before


def test_another_thread_cannot_use_the_hub(eventfd: int) -> None:
    poller = GeventPoller()
    failures: list[BaseException] = []

    def elsewhere() -> None:
        try:
            poller.update(eventfd, READ)
        except ConfigError as error:
            failures.append(error)

    thread = Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "another thread" in str(failures[0])
    assert len(poller) == 0


@pytest.mark.parametrize("batch", [0, -1, 1.5, True, None])
def test_a_batch_that_is_none_is_refused(batch: int) -> None:
    with pytest.raises(ConfigError, match="batch"):
        GeventPoller(batch=batch)


def test_a_forked_child_is_not_called(eventfd: int) -> None:
    poller = GeventPoller()
    called: list[int] = []

    with watching(poller, eventfd, lambda fd, events: called.append(os.getpid())):
        wait_until(lambda: called)  # the dispatcher is there, and the child will have a copy of it

        def check() -> None:
            called.clear()
            gevent.reinit(gevent.get_hub())
            gevent.sleep(0.01)
            assert called == []
            assert poller.idle
            assert len(poller) == 0
            poller.close()

        in_child(check)
        called.clear()
        wait_until(lambda: called)  # the parent's watcher is as it was
        assert {*called} == {os.getpid()}


# --- the calls that wait --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def joined(socket_name: str, **options: object) -> Iterator[tuple[GeventInterface, GeventInterface]]:
    """A master and a slave in one hub, each with a runtime of its own, connected. Options as ``open_interface``'s."""
    with (
        open_interface(socket=socket_name, role="master", **options) as master,  # type: ignore[arg-type]
        open_interface(socket=socket_name, role="slave", reconnect_interval=0.01, **options) as slave,  # type: ignore[arg-type]
    ):
        master.wait_connected(DEADLINE)
        slave.wait_connected(DEADLINE)
        yield master, slave


def number(packets: list[bytes]) -> list[int]:
    return [int.from_bytes(packet, "big") for packet in packets]


def packets(numbers: range) -> list[bytes]:
    return [value.to_bytes(4, "big") for value in numbers]


def test_packets_pass_between_greenlets(socket_name: str) -> None:
    with joined(socket_name) as (master, slave):

        def echo() -> None:
            for burst in slave.bursts():
                slave.send(list(burst))

        echoing = gevent.spawn(echo)
        for start in range(0, 2000, 100):
            assert master.send(packets(range(start, start + 100))) == 100
            received: list[int] = []
            while len(received) < 100:
                received += number(master.recv(timeout=DEADLINE))
            assert received == [*range(start, start + 100)]
        assert (master.counters.tx.packets, slave.counters.rx.packets) == (2000, 2000)
        echoing.kill()


def test_waiting_for_nobody_times_out(socket_name: str) -> None:
    with open_interface(socket=socket_name) as slave:
        for timeout in (0, 0.01):
            with pytest.raises(TimeoutError, match="disconnected"):
                slave.wait_connected(timeout)
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
            slave.wait_connected()
        with pytest.raises(Disconnected, match="not connected yet"):
            slave.recv()


@pytest.mark.parametrize("timeout", [float("nan"), "1", True])
def test_a_timeout_that_is_no_number_is_refused(socket_name: str, timeout: Any) -> None:
    with open_interface(socket=socket_name) as slave, pytest.raises(ConfigError, match="timeout is "):
        slave.wait_connected(timeout)


@pytest.mark.parametrize("timeout", [float("inf"), 1e300])
def test_a_timeout_may_be_longer_than_any_timer(socket_name: str, timeout: float) -> None:
    with open_interface(socket=socket_name) as slave, gevent.Timeout(0.01, False):
        slave.wait_connected(timeout)
        pytest.fail("there is nobody to connect to")


def test_receiving_nothing_times_out(socket_name: str) -> None:
    with joined(socket_name) as (master, slave):
        with pytest.raises(TimeoutError):
            slave.recv(timeout=0.01)
        with pytest.raises(TimeoutError):
            slave.recv(timeout=0)
        master.send([b"packet"])
        assert slave.recv(timeout=0) == [b"packet"]


def test_whoever_is_killed_or_timed_out_loses_no_packet(socket_name: str) -> None:
    """Receivers are killed, or meet their Timeout, at every point; what the others return is all there was."""
    received: list[int] = []
    total = 3000
    with joined(socket_name, batch=4) as (master, slave):

        def receive() -> None:
            while True:
                with gevent.Timeout(0.001, False):
                    taken = slave.recv(3)
                    received.extend(number(taken))  # nothing can come in between

        def receive_in_bursts() -> None:
            for burst in slave.bursts(limit=3):
                received.extend(int.from_bytes(packet, "big") for packet in burst)

        def send() -> None:
            for start in range(0, total, 10):
                master.send(packets(range(start, start + 10)))
                if start % 100 == 0:
                    gevent.sleep(0)

        sender = gevent.spawn(send)
        receivers = [gevent.spawn(receive), gevent.spawn(receive_in_bursts)]
        turn = 0
        with gevent.Timeout(DEADLINE):
            while len(received) < total:
                gevent.sleep(0.001 if turn % 3 else 0)
                victim = turn % 2
                receivers[victim].kill()
                receivers[victim] = gevent.spawn((receive, receive_in_bursts)[turn // 2 % 2])
                turn += 1
        gevent.killall([*receivers, sender])
        assert turn > 10
        assert master._waiting.waiters == slave._waiting.waiters == 0
        assert sorted(received) == [*range(total)]


def test_a_sender_waits_for_room(socket_name: str) -> None:
    with joined(socket_name, log2_ring_size=3) as (master, slave):
        sender = gevent.spawn(master.send, packets(range(100)))
        received: list[int] = []
        while len(received) < 100:
            received += number(slave.recv(timeout=DEADLINE))
        assert received == [*range(100)]
        assert sender.get(timeout=DEADLINE) == 100

        stuck = gevent.spawn(master.send, packets(range(100)))
        wait_until(lambda: master.tx_queues[0].free() == 0)
        stuck.kill()
        sent = number(slave.recv(timeout=DEADLINE))
        assert sent == [*range(len(sent))]
        assert master.send([b"next"]) == 1
        assert slave.recv(timeout=DEADLINE) == [b"next"]


def waiters(interface: GeventInterface) -> list[gevent.Greenlet]:
    """One in each call that waits for a peer's packets or room."""
    return [
        gevent.spawn(interface.recv),
        gevent.spawn(lambda: list(interface.bursts())),
        gevent.spawn(interface.send, [b"packet"] * 5000),
    ]


def outcome(greenlet: gevent.Greenlet) -> object:
    """What it raised, or what it returned."""
    with contextlib.suppress(Disconnected):
        return greenlet.get(timeout=DEADLINE)
    return greenlet.exception


@pytest.fixture
def quiet(hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A greenlet that fails says so where its end is looked at."""
    monkeypatch.setattr(gevent.get_hub(), "print_exception", lambda *args: None)


@pytest.mark.usefixtures("quiet")
def test_a_disconnect_wakes_everybody(socket_name: str) -> None:
    with joined(socket_name, log2_ring_size=4) as (master, slave):
        waiting = waiters(slave)
        wait_until(lambda: slave._waiting.waiters == 3)
        master.disconnect("enough")
        for greenlet in waiting:
            error = outcome(greenlet)
            assert isinstance(error, Disconnected)
            assert "enough" in str(error)
        assert slave._waiting.waiters == 0
        slave.wait_connected(DEADLINE)


@pytest.mark.usefixtures("quiet")
def test_closing_wakes_everybody(socket_name: str) -> None:
    with joined(socket_name, log2_ring_size=4) as (_, slave), open_interface(socket="@nobody") as lonely:
        waiting = [*waiters(slave), gevent.spawn(lonely.wait_connected)]
        wait_until(lambda: slave._waiting.waiters == 3 and lonely._waiting.waiters == 1)
        lonely.close()
        slave.close()
        slave.close()
        for greenlet in waiting:
            assert isinstance(outcome(greenlet), Disconnected)


def test_with_reconnect_waiting_goes_on_across_a_disconnect(socket_name: str) -> None:
    with (
        open_interface(socket=socket_name, role="master", reconnect=True) as master,
        open_interface(socket=socket_name, reconnect=True, reconnect_interval=0.01) as slave,
    ):
        received: list[bytes] = []
        ends: list[int] = []

        def receive() -> None:
            for burst in slave.bursts():
                received.extend(map(bytes, burst))

        receiver = gevent.spawn(receive)
        for turn in range(5):
            master.send([b"%d" % turn])  # waits for the peer too
            wait_until(lambda: received)
            assert received.pop() == b"%d" % turn
            (master, slave)[turn % 2].disconnect()
            ends.append(turn)
            wait_until(lambda: master.interface.disconnects == len(ends))  # what is sent before it is lost
        receiver.kill()


def test_a_peer_that_breaks_the_ring_is_a_disconnect(socket_name: str) -> None:
    with open_interface(socket=socket_name, role="master") as master, ScriptedSlave(socket_name) as peer:

        def answer(step: str) -> None:
            wait_until(lambda: readable(peer))
            peer.answer(step)

        for step in peer.STEPS:
            peer.say(step)
            answer(step)
        master.wait_connected(DEADLINE)
        peer.tx.set_descriptor(0, 60000, 0)
        peer.tx.head = 1
        peer.kick()
        with pytest.raises(Disconnected):
            master.recv(timeout=DEADLINE)


def readable(peer: ScriptedSlave) -> bool:
    return bool(select.select([peer.socket], [], [], 0)[0])


def test_a_callback_cannot_wait_for_its_own_runtime(socket_name: str) -> None:
    errors: list[BaseException] = []
    with open_runtime(on_error=errors.append) as runtime:

        def on_connect(interface: Interface) -> None:
            master.recv()

        master = open_interface(runtime=runtime, socket=socket_name, role="master", on_connect=on_connect)
        slave = open_interface(runtime=runtime, socket=socket_name)
        slave.wait_connected(DEADLINE)
        wait_until(lambda: errors)
        assert isinstance(errors[0], ConfigError)
        assert "callback" in str(errors[0])


def test_callbacks_of_ones_own_are_called_in_a_greenlet_that_may_wait(socket_name: str) -> None:
    calls: list[str] = []

    def note(what: str) -> Callable[..., None]:
        def callback(interface: Interface, *_: object) -> None:
            gevent.sleep(0.001)
            calls.append(f"{interface.role.name} {what}")

        return callback

    with open_runtime("both", reconnect_interval=0.01) as runtime:
        ends = [
            open_interface(
                runtime=runtime,
                socket=socket_name,
                role=role,
                on_connect=note("connects"),
                on_disconnect=note("disconnects"),
                on_interrupt=note("is kicked"),
            )
            for role in ("master", "slave")
        ]
        for end in ends:
            end.wait_connected(DEADLINE)
        receiver = gevent.spawn(ends[1].recv)
        wait_until(lambda: ends[1]._waiting.waiters)  # who finds a packet without waiting reads its kick
        ends[0].send([b"packet"])
        assert receiver.get(timeout=DEADLINE) == [b"packet"]
        wait_until(lambda: "SLAVE is kicked" in calls)
    everything = {"MASTER connects", "SLAVE connects", "SLAVE is kicked", "MASTER disconnects", "SLAVE disconnects"}
    wait_until(lambda: {*calls} == everything)  # closing does not wait for a callback that waits


def test_interfaces_share_a_runtime_and_leave_it_open(socket_name: str) -> None:
    with open_runtime("shared") as runtime:
        with open_interface(runtime=runtime, socket=socket_name, role="master") as master:
            assert [*runtime.interfaces] == [master.interface]
        assert not runtime.closed
        assert [*runtime.interfaces] == []
        with pytest.raises(ConfigError, match="app_name"):
            open_interface(runtime=runtime, app_name="another")
    with Runtime() as internal, pytest.raises(ConfigError, match="open_runtime"):
        open_interface(runtime=internal)


def test_what_cannot_be_opened_leaves_nothing(socket_name: str) -> None:
    with open_interface(socket=socket_name, role="master"):
        with pytest.raises(OSError, match="somebody listens") as caught:
            open_interface(socket=socket_name, role="master")
        assert isinstance(caught.value, MemifError)
    with pytest.raises(ConfigError, match="secret"):
        open_interface(socket=socket_name, secret=bytes(99))
    with pytest.raises(ConfigError, match="app_name"):
        open_interface(socket=socket_name, app_name="x" * 99)


def test_there_is_no_such_queue(socket_name: str) -> None:
    with joined(socket_name) as (master, _), pytest.raises(ConfigError, match="there are 1") as caught:
        master.recv(qid=1)
    assert caught.value.code is ErrorCode.QID


def test_the_module_says_what_it_has() -> None:
    assert [name for name in memifrt.gevent.__all__ if not hasattr(memifrt.gevent, name)] == []


# --- many -----------------------------------------------------------------------------------------------------------


def test_two_hundred_interfaces_in_one_hub_are_pinged_killed_and_back(socket_name: str) -> None:
    count = 200
    before = greenlets()
    with open_runtime("masters") as masters, open_runtime("slaves", reconnect_interval=0.02) as slaves:
        shape = {"socket": socket_name, "log2_ring_size": 2, "buffer_size": 64, "reconnect": True}
        ends = [
            (
                open_interface(runtime=masters, role="master", id=each, **shape),  # type: ignore[arg-type]
                open_interface(runtime=slaves, role="slave", id=each, **shape),  # type: ignore[arg-type]
            )
            for each in range(count)
        ]

        def answer(slave: GeventInterface) -> None:
            for burst in slave.bursts():
                slave.send([bytes(packet) for packet in burst])

        answering = [gevent.spawn(answer, slave) for _, slave in ends]

        def ping(each: int, turn: int) -> None:
            master = ends[each][0]
            request = b"%d of %d" % (turn, each)
            while True:  # one that falls into a disconnect is lost, as on a wire
                master.send([request])
                with contextlib.suppress(TimeoutError):
                    while master.recv(timeout=0.5) != [request]:
                        pass
                    return

        for turn in range(3):
            pinging = [gevent.spawn(ping, each, turn) for each in range(count)]
            for each in range(0, count, 2):
                (ends[each][0] if turn == 1 else ends[each][1]).disconnect()
            assert len(gevent.joinall(pinging, timeout=DEADLINE, raise_error=True)) == count
        assert all(master.connected and slave.connected for master, slave in ends)
        gevent.killall(answering)
    gevent.sleep(0)
    assert greenlets() == before
