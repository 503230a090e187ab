"""The contract of every adapter in :mod:`memifrt.poll`, over each loop that it is for: our own epoll and its equals."""

from __future__ import annotations

import functools
import importlib.util
import os
import select
import socket
from collections.abc import Callable, Iterator

import pytest

from memifrt import ConfigError, Disconnected, FdEvent, Interface, Role, Runtime
from memifrt.poll.hook import FdRegistry
from memifrt.system.original_functions import close, poll
from tests.lib import loops, loops_async
from tests.lib.loops import ERROR, MOD, READ, WRITE, Driver, Loop, Scenario
from tests.lib.patched import PATCHED
from tests.lib.peer import ScriptedSlave, VppSlave
from tests.lib.support import Recorder
from tests.lib.threads import Thread

DRIVERS = [*loops.DRIVERS, *loops_async.DRIVERS]
#: Those that an application closes by itself: our own ends with its runtime.
OF_APPLICATIONS = pytest.mark.parametrize(
    "driver", [driver for driver in DRIVERS if driver.name != "internal"], indirect=True, ids=str
)
#: Whose adapter cannot tell: our own epoll lets any thread change it.
UNCHECKED = ("internal",)
End = socket.socket


@pytest.fixture(params=DRIVERS, ids=str)
def driver(request: pytest.FixtureRequest) -> Driver:
    assert isinstance(request.param, Driver)
    return request.param


@pytest.fixture
def ends() -> Iterator[tuple[End, End]]:
    """Two ends of a socket."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    yield pair
    for end in pair:
        end.close()


@pytest.fixture
def more_ends() -> Iterator[tuple[End, End]]:
    """Two more."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    yield pair
    for end in pair:
        end.close()


def nothing(fd: int, events: FdEvent) -> None:
    pass


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("gevent-libuv", "cffi"),
        ("twisted-epoll", "twisted"),
        ("twisted-asyncio", "twisted"),
        ("glib", "gi"),
        ("qt", "PySide6"),
    ],
)
def test_every_loop_is_held_to_the_contract(name: str, module: str) -> None:
    """A loop whose library is not there would be left out without a word."""
    if PATCHED and name in loops.NEED_EPOLL:
        pytest.skip("gevent's patches remove select.epoll, which Twisted needs")
    if importlib.util.find_spec(module) is None:
        pytest.skip(loops.MISSING.get(module, f"{module} is not installed (pip install -e '.[dev]')"))
    assert name in {driver.name for driver in DRIVERS}


# --- fds alone ------------------------------------------------------------------------------------------------------


def test_what_is_waited_for_is_what_comes(driver: Driver, ends: tuple[End, End]) -> None:
    near, far = ends
    seen: list[tuple[int, FdEvent]] = []

    def scenario(loop: Loop) -> Scenario:
        def handler(fd: int, events: FdEvent) -> None:
            seen.append((fd, events))
            if events & READ:
                near.recv(1)
            if loop.watched[fd] & WRITE:
                loop.update(fd, READ | MOD)

        loop.start(handler)
        loop.update(near.fileno(), READ)
        assert loop.watchers() == 1
        far.send(b"x")
        yield lambda: seen
        assert seen.pop() == (near.fileno(), READ)
        loop.update(near.fileno(), READ | WRITE | MOD)
        yield lambda: seen
        assert seen == [(near.fileno(), WRITE)]
        assert loop.watchers() == 1
        far.send(b"x")
        yield lambda: len(seen) > 1
        assert seen.pop() == (near.fileno(), READ)
        loop.update(near.fileno(), FdEvent.DEL)
        assert loop.watchers() == 0

    driver.run(scenario)


def test_what_is_not_read_comes_again(driver: Driver, ends: tuple[End, End]) -> None:
    seen: list[FdEvent] = []

    def scenario(loop: Loop) -> Scenario:
        loop.start(lambda fd, events: seen.append(events))
        loop.update(ends[0].fileno(), READ)
        ends[1].send(b"x")
        yield lambda: len(seen) >= 3
        loop.update(ends[0].fileno(), FdEvent.DEL)
        assert {*seen} == {READ}

    driver.run(scenario)


def test_a_hang_up_is_told_as_something_to_read(driver: Driver, ends: tuple[End, End]) -> None:
    seen: list[FdEvent] = []

    def scenario(loop: Loop) -> Scenario:
        loop.start(lambda fd, events: seen.append(events))
        loop.update(ends[0].fileno(), READ)
        ends[1].close()
        yield lambda: seen
        assert seen[0] & READ
        assert seen[0] in (READ, READ | ERROR)
        loop.update(ends[0].fileno(), FdEvent.DEL)

    driver.run(scenario)


def test_an_fd_that_is_withdrawn_says_nothing_more(
    driver: Driver, ends: tuple[End, End], more_ends: tuple[End, End]
) -> None:
    """Both fds are ready at once, and whose turn comes first withdraws both: the other's event is stale by then."""
    seen: list[str] = []

    def scenario(loop: Loop) -> Scenario:
        registry = FdRegistry(loop.update)
        loop.start(registry.dispatch)

        def first_come(events: FdEvent) -> None:
            seen.append("one of the two")
            for end in (ends[0], more_ends[0]):
                registry.remove(end.fileno())
                end.close()
            assert loop.watchers() == 0
            registry.add(sentinel, READ, lambda events: seen.append("the sentinel"))

        sentinel = os.eventfd(1, os.EFD_NONBLOCK)
        for near, far in (ends, more_ends):
            far.send(b"x")
            registry.add(near.fileno(), READ, first_come)
        yield lambda: seen[1:]
        assert {*seen[1:]} == {"the sentinel"}
        registry.remove(sentinel)
        close(sentinel)

    driver.run(scenario)


def test_a_number_that_comes_again_is_another_fd(driver: Driver) -> None:
    """The peer holds the same file open: closing our number of it takes nothing out of an epoll set."""
    seen: list[bytes] = []

    def scenario(loop: Loop) -> Scenario:
        loop.start(lambda fd, events: seen.append(os.read(fd, 8)))
        first = os.eventfd(1, os.EFD_NONBLOCK)
        peers = os.dup(first)
        loop.update(first, READ)
        yield lambda: seen
        loop.update(first, FdEvent.DEL)
        close(first)
        second = os.eventfd(0, os.EFD_NONBLOCK)
        assert second == first
        loop.update(second, READ)
        os.eventfd_write(peers, 2)  # a stale event, if any: reading the new eventfd would raise BlockingIOError
        third = os.eventfd(3, os.EFD_NONBLOCK)
        loop.update(third, READ)
        yield lambda: len(seen) >= 2
        assert seen[1:] == [(3).to_bytes(8, "little")]
        for fd in (second, third):
            loop.update(fd, FdEvent.DEL)
        for fd in (second, third, peers):
            close(fd)

    driver.run(scenario)


def test_callbacks_come_one_at_a_time(driver: Driver, ends: tuple[End, End], more_ends: tuple[End, End]) -> None:
    """Whatever a callback makes ready, or changes at the hook, calls nobody before it has returned."""
    inside: list[int] = []
    calls: list[int] = []

    def scenario(loop: Loop) -> Scenario:
        def handler(fd: int, events: FdEvent) -> None:
            assert inside == [], "called while a callback runs"
            inside.append(fd)
            calls.append(fd)
            for near, far in (ends, more_ends):
                far.send(b"x")
                wanted = READ | WRITE if loop.watched[near.fileno()] == READ else READ
                loop.update(near.fileno(), wanted | MOD)
                assert poll_now(near)
            inside.pop()

        loop.start(handler)
        for near, far in (ends, more_ends):
            loop.update(near.fileno(), READ)
            far.send(b"x")
        yield lambda: len(calls) >= 20
        for near, _ in (ends, more_ends):
            loop.update(near.fileno(), FdEvent.DEL)
        assert {*calls} == {ends[0].fileno(), more_ends[0].fileno()}, "one starves the other"

    driver.run(scenario)


def test_what_a_callback_raises_is_reported_and_its_event_comes_again(driver: Driver, ends: tuple[End, End]) -> None:
    seen: list[FdEvent] = []
    failure = ZeroDivisionError("from a callback")

    def scenario(loop: Loop) -> Scenario:
        def handler(fd: int, events: FdEvent) -> None:
            seen.append(events)
            if len(seen) == 1:
                raise failure
            ends[0].recv(1)

        loop.start(handler)
        loop.update(ends[0].fileno(), READ)
        ends[1].send(b"x")
        yield lambda: len(seen) == 2
        loop.update(ends[0].fileno(), FdEvent.DEL)
        assert loop.errors == [failure]
        loop.errors.clear()

    driver.run(scenario)


def test_thousands_of_fds_come_and_go(driver: Driver) -> None:
    """One after the other, each with an event, some with a change: no watcher stays."""
    handled = 0

    def scenario(loop: Loop) -> Scenario:
        nonlocal handled

        def handler(fd: int, events: FdEvent) -> None:
            nonlocal handled
            os.eventfd_read(fd)
            loop.update(fd, FdEvent.DEL)
            close(fd)
            handled += 1

        def all_handled() -> bool:
            return handled == 100

        loop.start(handler)
        for turn in range(30):
            handled = 0
            for _ in range(100):
                fd = os.eventfd(1, os.EFD_NONBLOCK)
                loop.update(fd, READ)
                if turn % 3 == 0:
                    loop.update(fd, READ | WRITE | MOD)
            yield all_handled
            assert loop.watchers() == 0

    driver.run(scenario)


@OF_APPLICATIONS
def test_closing_the_adapter_watches_nothing_any_more(driver: Driver, ends: tuple[End, End]) -> None:
    def scenario(loop: Loop) -> Scenario:
        loop.start(nothing)
        loop.update(ends[0].fileno(), READ)
        ends[1].send(b"x")
        assert loop.watchers() == 1
        loop.adapter.close()
        loop.adapter.close()
        loop.watched.clear()
        yield lambda: True

    driver.run(scenario)


# --- a runtime ------------------------------------------------------------------------------------------------------


@OF_APPLICATIONS
def test_a_runtime_may_be_closed_after_its_adapter(driver: Driver, socket_name: str) -> None:
    def scenario(loop: Loop) -> Scenario:
        with loop.runtime() as runtime:
            runtime.create_interface(socket=socket_name, role="master")
            loop.adapter.close()
        yield lambda: runtime.closed

    driver.run(scenario)


def both_ends(runtime: Runtime, socket_name: str, recorder: Recorder) -> tuple[Interface, Interface]:
    """A master and a slave on the same loop."""
    master, slave = (
        runtime.create_interface(
            socket=socket_name,
            role=role,
            log2_ring_size=4,
            buffer_size=64,
            on_connect=recorder.on_connect,
            on_disconnect=recorder.on_disconnect,
            on_interrupt=recorder.on_interrupt,
        )
        for role in ("master", "slave")
    )
    return master, slave


def test_a_whole_life_of_a_runtime(driver: Driver, socket_name: str) -> None:
    recorder = Recorder()

    def scenario(loop: Loop) -> Scenario:
        with loop.runtime() as runtime:
            master, slave = both_ends(runtime, socket_name, recorder)
            yield lambda: recorder.count("connect") == 2
            watched = loop.watchers()
            assert watched == len(loop.watched) == 6  # timer, listener, two channels, two queues
            slave.tx_queues[0].send([b"packet"])
            yield lambda: ("interrupt", "master", 0) in recorder.events
            assert master.rx_queues[0].recv() == [b"packet"]
            slave.rx_queues[0].set_rx_mode("polling")
            assert loop.watchers() == watched - 1
            master.disconnect()
            yield lambda: recorder.count("connect") == 4
            assert loop.watchers() == watched
        assert recorder.count("disconnect") == 4

    driver.run(scenario)


def test_many_connects_and_disconnects_leave_no_watcher(driver: Driver, socket_name: str) -> None:
    recorder = Recorder()

    def scenario(loop: Loop) -> Scenario:
        with loop.runtime(reconnect_interval=0) as runtime:
            master, slave = both_ends(runtime, socket_name, recorder)
            yield lambda: master.announced and slave.announced
            watched = loop.watchers()
            for turn in range(150):
                (master, slave)[turn % 2].disconnect()
                yield lambda: not master.connected and not slave.connected
                slave.request_connection()
                yield lambda: master.announced and slave.announced
                assert loop.watchers() == watched == len(loop.watched)

    driver.run(scenario)


@pytest.mark.parametrize("role", ["master", "slave"])
@pytest.mark.parametrize("callback", ["on_connect", "on_disconnect", "on_interrupt"])
def test_a_callback_may_close_the_runtime(driver: Driver, socket_name: str, callback: str, role: str) -> None:
    called: list[str] = []

    def scenario(loop: Loop) -> Scenario:
        def close(interface: Interface, *_: object) -> None:
            called.append(callback)
            runtime.close()

        runtime = loop.runtime()
        recorder = Recorder()
        ends = dict(zip(("master", "slave"), both_ends(runtime, socket_name, recorder), strict=True))
        setattr(ends[role], callback, close)
        if callback != "on_connect":
            yield lambda: all(end.announced for end in ends.values())
            other = ends["slave" if role == "master" else "master"]
            if callback == "on_interrupt":
                other.tx_queues[0].send([b"packet"])
            else:
                other.disconnect()
        yield lambda: called
        assert runtime.closed
        assert loop.watchers() == 0

    driver.run(scenario)


def test_a_peer_that_is_gone_is_noticed(driver: Driver, socket_name: str) -> None:
    reasons: list[Disconnected] = []

    def scenario(loop: Loop) -> Scenario:
        with loop.runtime() as runtime:
            master = runtime.create_interface(
                socket=socket_name, role="master", on_disconnect=lambda interface, reason: reasons.append(reason)
            )
            for _ in range(3):
                reasons.clear()
                with ScriptedSlave(socket_name) as peer:
                    for step in peer.STEPS:
                        peer.say(step)
                        yield functools.partial(poll_now, peer.socket)
                        peer.answer(step)
                    yield lambda: master.announced
                yield lambda: reasons
                assert "closed" in str(reasons[0])
                assert loop.watchers() == 2

    driver.run(scenario)


def test_a_slave_whose_master_comes_later_connects(driver: Driver, socket_name: str, peer_runtime: Runtime) -> None:
    def scenario(loop: Loop) -> Scenario:
        with loop.runtime(reconnect_interval=0.01) as runtime:
            slave = runtime.create_interface(socket=socket_name, role="slave")
            assert slave.last_error is not None
            master = peer_runtime.create_interface(socket=socket_name, role="master")

            def connected() -> bool:
                peer_runtime.poll_event(0)
                return slave.announced and master.announced

            yield connected

    driver.run(scenario)


def test_a_peer_of_few_packets_a_kick_is_kicked_until_it_has_them_all(driver: Driver, socket_name: str) -> None:
    """By the runtime's own timer, which every loop must watch."""

    def scenario(loop: Loop) -> Scenario:
        with loop.runtime() as runtime:
            master = runtime.create_interface(socket=socket_name, role="master")
            with VppSlave(socket_name) as peer:
                for step in peer.STEPS:
                    peer.say(step)
                    yield functools.partial(poll_now, peer.socket)
                    peer.answer(step)
                yield lambda: master.announced
                peer.post()
                assert master.tx_queues[0].send([b"packet"] * 1024) == 1024
                yield lambda: peer.on_kick() and peer.taken == 1024
                assert master.tx_queues[0].counters.repeated_kicks >= 3

    driver.run(scenario)


# --- errors, threads, and the end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("taken_by", ["the runtime's on_error", "the loop"])
def test_memif_goes_on_in_a_loop_whose_callbacks_raise_every_time(
    driver: Driver, socket_name: str, taken_by: str
) -> None:
    """Some loops drop an fd when its callback raises. Each kind of callback fails, and is called again."""
    failure = ZeroDivisionError("from a callback")
    taken: list[BaseException] = []
    packets: list[bytes] = []

    def scenario(loop: Loop) -> Scenario:
        errors = loop.errors if taken_by == "the loop" else taken

        def fail(interface: Interface, *_: object) -> None:
            if interface.role is Role.MASTER and interface.connected:
                packets.extend(interface.rx_queues[0].recv())
            raise failure

        def calls() -> int:
            return sum(error is failure for error in errors)

        with loop.runtime(on_error=None if taken_by == "the loop" else taken.append) as runtime:
            master, slave = (
                runtime.create_interface(
                    socket=socket_name, role=role, on_connect=fail, on_disconnect=fail, on_interrupt=fail
                )
                for role in ("master", "slave")
            )
            for turn in (1, 2):
                yield lambda wanted=turn: master.connects == slave.connects == wanted  # type: ignore[misc]
                for number in (1, 2, 3):
                    before = calls()
                    slave.tx_queues[0].send([b"packet"])
                    yield lambda limit=before: calls() > limit  # type: ignore[misc]
                    assert len(packets) == 3 * turn - 3 + number
                with pytest.raises(ZeroDivisionError):  # as a call of the application raises
                    master.disconnect()
                yield lambda wanted=turn: slave.disconnects == wanted  # type: ignore[misc]
            master.on_disconnect = slave.on_disconnect = None
        assert {*map(id, errors)} == {id(failure)}
        loop.errors.clear()

    driver.run(scenario)


def test_a_stale_event_after_close_is_harmless(driver: Driver, socket_name: str) -> None:
    """Both ends are ready at once; the first callback closes the runtime while the loop has the other's event."""
    closed: list[str] = []

    def scenario(loop: Loop) -> Scenario:
        def close_runtime(interface: Interface, *_: object) -> None:
            closed.append(interface.role.name)
            runtime.close()

        recorder = Recorder()
        runtime = loop.runtime()
        master, slave = both_ends(runtime, socket_name, recorder)
        yield lambda: master.announced and slave.announced
        fds = [*loop.watched]
        master.on_interrupt = slave.on_interrupt = close_runtime
        for end in (master, slave):
            end.tx_queues[0].send([b"packet"])
        yield lambda: runtime.closed
        loop.start(runtime.control_fd_handler)
        assert [runtime.control_fd_handler(fd, READ) for fd in fds] == [False] * len(fds)
        sentinel = os.eventfd(1, os.EFD_NONBLOCK)
        seen: list[FdEvent] = []
        loop.start(lambda fd, events: seen.append(events))
        loop.update(sentinel, READ)
        yield lambda: seen
        loop.update(sentinel, FdEvent.DEL)
        close(sentinel)
        assert len(closed) == 1
        assert loop.errors == []

    driver.run(scenario)


@pytest.mark.parametrize(
    "driver", [driver for driver in DRIVERS if driver.name not in UNCHECKED], indirect=True, ids=str
)
def test_another_thread_than_the_loop_s_is_refused_at_once(driver: Driver, socket_name: str) -> None:
    """The loop would not notice, or watch an fd on that is closed. Nothing happens to the runtime."""
    refused: list[BaseException] = []
    asked: list[str] = []

    def scenario(loop: Loop) -> Scenario:
        def ask(interface: Interface) -> None:
            """In the loop: let another thread try."""
            if interface.role is Role.MASTER:
                thread = Thread(target=call_everything, args=(interface,))
                thread.start()
                thread.join()
            asked.append(interface.role.name)

        def call_everything(interface: Interface) -> None:
            calls: list[Callable[[], object]] = [
                runtime.close,
                runtime.create_socket,
                lambda: runtime.create_interface(socket=f"{socket_name}-2"),
                lambda: runtime.create_interface(socket=f"{socket_name}-2", role="master"),
                lambda: runtime.set_reconnect_interval(1),
                interface.delete,
                interface.disconnect,
                interface.request_connection,
                lambda: setattr(interface, "on_interrupt", None),
                lambda: interface.rx_queues[0].set_rx_mode("polling"),
                runtime.sockets[0].delete,
            ]
            for call in calls:
                try:
                    call()
                except Exception as error:
                    refused.append(error)
                else:
                    refused.append(AssertionError(f"{call} did not raise"))

        recorder = Recorder()
        with loop.runtime() as runtime:
            master, slave = both_ends(runtime, socket_name, recorder)
            master.on_connect = slave.on_connect = ask
            yield lambda: len(asked) == 2
            assert [error for error in refused if not isinstance(error, ConfigError)] == []
            assert len(refused) == 11
            assert all("thread" in str(error) for error in refused)
            assert len(runtime.interfaces) == 2
            assert loop.watchers() == len(loop.watched) == 6
            slave.tx_queues[0].send([b"packet"])
            yield lambda: ("interrupt", "master", 0) in recorder.events
            slave.rx_queues[0].set_rx_mode("interrupt")

    driver.run(scenario)


def poll_now(end: End) -> bool:
    """Whether there is something to read."""
    waiting = poll()
    waiting.register(end, select.POLLIN)
    return bool(waiting.poll(0))
