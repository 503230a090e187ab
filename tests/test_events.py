"""Both event modes: the hook's contract as it is recorded, and polling, cancelling and nesting the internal epoll."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from memifrt import (
    ConfigError,
    Disconnected,
    ErrorCode,
    FdEvent,
    Interface,
    MemifError,
    PollCancelled,
    Runtime,
    State,
)
from memifrt.control.wire import AddRegion
from memifrt.options import RoleName
from memifrt.poll.epoll import from_epoll, to_epoll
from memifrt.system.original_functions import epoll
from tests.lib.peer import ScriptedSlave, assert_packets_pass
from tests.lib.support import DEADLINE, Pair, Recorder, connect, wait_until
from tests.lib.threads import Thread

READ, WRITE, MOD, DEL = FdEvent.READ, FdEvent.WRITE, FdEvent.MOD, FdEvent.DEL
ROLES: tuple[RoleName, ...] = ("master", "slave")


class HookFailed(Exception):
    pass


class Loop:
    """An application's loop: an epoll of its own, and a hook that records what it is told and checks each rule.

    Its ``failing``-th call raises ``error``, an ADD or MOD undone, a DEL done.
    """

    def __init__(self, failing: int | None = None, error: type[BaseException] = HookFailed) -> None:
        self.epoll = epoll()
        self.failing = failing
        self.error = error
        #: What kind of file each call was about, and the events.
        self.calls: list[tuple[str, FdEvent]] = []
        self.watched: dict[int, FdEvent] = {}

    def hook(self, fd: int, events: FdEvent) -> None:
        kind = os.readlink(f"/proc/self/fd/{fd}")  # raises for an fd that is not open
        self.calls.append((kind.removeprefix("anon_inode:[").partition(":")[0].rstrip("]"), events))
        fails = len(self.calls) - 1 == self.failing
        if events & DEL:
            assert events == DEL
            del self.watched[fd]
            self.epoll.unregister(fd)
        elif fails:
            pass
        elif events & MOD:
            assert self.watched[fd] | MOD != events, "a MOD that changes nothing"
            self.watched[fd] = events & ~MOD
            self.epoll.modify(fd, to_epoll(events))
        else:
            assert fd not in self.watched
            assert events & (READ | WRITE)
            self.watched[fd] = events
            self.epoll.register(fd, to_epoll(events))
        if fails:
            raise self.error(f"call {self.failing}")

    def step(self, runtime: Runtime, timeout: float) -> None:
        for fd, mask in self.epoll.poll(timeout):
            runtime.control_fd_handler(fd, from_epoll(mask))

    def wait(self, runtime: Runtime, predicate: Callable[[], object], *others: Runtime) -> None:
        deadline = time.monotonic() + DEADLINE
        while not predicate():
            assert time.monotonic() < deadline, predicate
            self.step(runtime, 0.0 if others else 1.0)
            for other in others:
                other.poll_event(0)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    assert loop.watched == {}, "announced and never withdrawn"
    loop.epoll.close()


@pytest.fixture
def external(loop: Loop) -> Iterator[Runtime]:
    with Runtime("external", control_fd_update=loop.hook, reconnect_interval=0.02) as runtime:
        yield runtime
    told = len(loop.calls)
    runtime.close()
    assert len(loop.calls) == told


# --- the hook's contract --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_the_hook_is_told_of_a_whole_life_in_order(peer_runtime: Runtime, socket_name: str, role: RoleName) -> None:
    loop, record = Loop(), Recorder()
    with Runtime("external", control_fd_update=loop.hook, reconnect_interval=3600) as runtime:
        expected = [("timerfd", READ)]
        assert loop.calls == expected
        far_role = ROLES[1 - ROLES.index(role)]
        far = peer_runtime.create_interface(socket=socket_name, role=far_role) if role == "slave" else None
        near = runtime.create_interface(
            socket=socket_name, role=role, num_s2m_rings=2, num_m2s_rings=2, on_interrupt=record.on_interrupt
        )
        far = far or peer_runtime.create_interface(socket=socket_name, role=far_role, num_s2m_rings=2, num_m2s_rings=2)
        expected += [("socket", READ)]  # the listener, or a slave's channel
        assert loop.calls == expected

        loop.wait(runtime, lambda: near.connected and far.connected, peer_runtime)
        expected += [("socket", READ)] if role == "master" else []  # the channel that it accepted
        expected += [("eventfd", READ)] * 2
        assert loop.calls == expected

        far.tx_queues[1].send([b"packet"])
        loop.wait(runtime, lambda: record.events)
        assert near.rx_queues[1].recv() == [b"packet"]
        near.rx_queues[0].set_rx_mode("polling")
        expected += [("eventfd", DEL)]
        assert loop.calls == expected
        near.rx_queues[0].set_rx_mode("polling")
        assert loop.calls == expected
        near.rx_queues[0].set_rx_mode("interrupt")
        expected += [("eventfd", READ)]
        assert loop.calls == expected

        near.delete()
        expected += [("eventfd", DEL)] * 2 + [("socket", DEL)]
        expected += [("socket", DEL)] if role == "master" else []
        assert loop.calls == expected
    assert loop.calls == [*expected, ("timerfd", DEL)]
    assert loop.watched == {}
    loop.epoll.close()


def test_a_queue_that_nobody_is_told_of_is_not_announced(
    loop: Loop, external: Runtime, peer_runtime: Runtime, socket_name: str
) -> None:
    near = external.create_interface(socket=socket_name, role="master")
    far = peer_runtime.create_interface(socket=socket_name)
    loop.wait(external, lambda: near.connected and far.connected, peer_runtime)
    assert {kind for kind, _ in loop.calls} == {"timerfd", "socket"}
    near.rx_queues[0].set_rx_mode("polling")
    near.rx_queues[0].set_rx_mode("interrupt")
    assert {kind for kind, _ in loop.calls} == {"timerfd", "socket"}


def test_a_full_channel_is_watched_for_writing_until_it_is_sent(
    loop: Loop, external: Runtime, socket_name: str
) -> None:
    master = external.create_interface(socket=socket_name, role="master")
    regions = 40
    with ScriptedSlave(socket_name) as peer:
        loop.wait(external, lambda: select.select([peer.socket], [], [], 0)[0])
        peer.answer("hello")
        peer.init()
        loop.wait(external, lambda: select.select([peer.socket], [], [], 0)[0])
        peer.answer("init")
        assert master.connection is not None
        master.connection._channel._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        for index in range(regions):
            peer.send(AddRegion(index, 4096), peer.memory_fd)
        loop.wait(external, lambda: ("socket", READ | WRITE | MOD) in loop.calls)
        loop.wait(external, lambda: len(master.details().regions) == regions)
        acknowledged = 0
        while acknowledged < regions:
            loop.wait(external, lambda: select.select([peer.socket], [], [], 0)[0])
            peer.answer("region")
            acknowledged += 1
        loop.wait(external, lambda: loop.calls[-1] == ("socket", READ | MOD))
        changes = [events for _, events in loop.calls if events & MOD]
        assert changes == [READ | WRITE | MOD, READ | MOD] * (len(changes) // 2)
        assert master.state is State.CONNECTING


def life(loop: Loop, runtime: Runtime, path: str) -> None:
    """Both roles from creation to deletion, with packets and a change of mode between."""
    record = Recorder()
    master = runtime.create_interface(socket=path, role="master", on_interrupt=record.on_interrupt)
    slave = runtime.create_interface(socket=path, on_interrupt=record.on_interrupt)
    loop.wait(runtime, lambda: master.connected and slave.connected)
    for near, far in ((master, slave), (slave, master)):
        record.events.clear()
        near.tx_queues[0].send([b"packet"])
        loop.wait(runtime, lambda: record.events)
        assert far.rx_queues[0].recv() == [b"packet"]
    master.rx_queues[0].set_rx_mode("polling")
    master.rx_queues[0].set_rx_mode("interrupt")
    slave.disconnect("once")
    loop.wait(runtime, lambda: master.connected and slave.connected)
    slave.delete()
    loop.wait(runtime, lambda: not master.connected)
    master.delete()


#: How often the hook is called in a life: timer, listener, 2 x (2 channels, 2 queues), a change of mode, and the DELs.
CALLS = 22


def test_a_life_has_so_many_calls(socket_name: str) -> None:
    loop = Loop()
    with Runtime("external", control_fd_update=loop.hook, reconnect_interval=0.02) as runtime:
        life(loop, runtime, socket_name)
    assert len(loop.calls) == CALLS
    loop.epoll.close()


@pytest.mark.parametrize("error", [HookFailed, KeyboardInterrupt])
@pytest.mark.parametrize("nth", range(CALLS))
def test_a_hook_that_fails_once_fails_that_call_and_leaves_nothing(
    socket_path: str, nth: int, error: type[BaseException]
) -> None:
    loop = Loop(failing=nth, error=error)
    failures: list[BaseException] = []
    runtime = None
    try:
        runtime = Runtime("external", control_fd_update=loop.hook, reconnect_interval=0.02)
        life(loop, runtime, socket_path)
        runtime.close()
    except BaseException as failure:
        failures.append(failure)
    assert len(failures) == 1
    if error is HookFailed:
        assert isinstance(failures[0], MemifError), failures[0]
        assert failures[0].code is ErrorCode.CB_FDUPDATE
        assert isinstance(failures[0].__cause__, HookFailed)
        assert f"HookFailed: call {nth}" in str(failures[0])
    else:
        assert isinstance(failures[0], KeyboardInterrupt), failures[0]
    if runtime is not None and not runtime.closed:
        life(loop, runtime, socket_path + "2")
        runtime.close()
    assert loop.watched == {}
    loop.epoll.close()


class DeletingLoop(Loop):
    """Its hook deletes every interface of ``runtime`` once, at the first call that ``chooses`` picks."""

    runtime: Runtime | None = None
    chooses: Callable[[str, FdEvent], bool] = staticmethod(lambda kind, events: False)

    def hook(self, fd: int, events: FdEvent) -> None:
        super().hook(fd, events)
        if self.runtime is not None and self.chooses(*self.calls[-1]):
            runtime, self.runtime = self.runtime, None
            for interface in runtime.interfaces:
                interface.delete()


#: The nth call of a kind with these events: a channel's, and that of each of two queues at two ends.
MOMENTS = [("socket", READ, 1), ("socket", READ, 2), ("socket", READ, 3), *(("eventfd", READ, n) for n in range(1, 5))]


@pytest.mark.parametrize(("kind", "events", "nth"), MOMENTS)
def test_a_hook_may_delete_every_interface(socket_name: str, kind: str, events: FdEvent, nth: int) -> None:
    loop, record = DeletingLoop(), Recorder()
    with Runtime("external", control_fd_update=loop.hook, reconnect_interval=0.02) as runtime:
        # The first socket is the listener, announced before there is an interface.
        loop.runtime = runtime
        loop.chooses = lambda *call: loop.calls.count((kind, events)) == nth and call == (kind, events)
        options: dict[str, Any] = {
            "socket": socket_name,
            "num_s2m_rings": 2,
            "num_m2s_rings": 2,
            "on_connect": record.on_connect,
            "on_interrupt": record.on_interrupt,
        }
        runtime.create_interface(role="master", **options)
        runtime.create_interface(**options)
        loop.wait(runtime, lambda: loop.runtime is None)
        if nth > 1:
            loop.wait(runtime, lambda: not runtime.interfaces)
            assert list(loop.watched.values()) == [READ]  # the timer
        for interface in runtime.interfaces:
            interface.delete()
        life(loop, runtime, socket_name)
    assert loop.watched == {}
    loop.epoll.close()


@pytest.mark.parametrize("role", ROLES)
def test_a_conversation_that_the_hook_ended_was_not_established(
    peer_runtime: Runtime, socket_name: str, role: RoleName
) -> None:
    # The queue's eventfd is announced before on_connect: what fails there ends what the application never saw begin.
    failing = 3 if role == "master" else 2
    loop, record = Loop(failing=failing), Recorder()
    with Runtime("external", control_fd_update=loop.hook, reconnect_interval=3600) as runtime:
        far = None if role == "master" else peer_runtime.create_interface(socket=socket_name, role="master")
        near = runtime.create_interface(
            socket=socket_name,
            role=role,
            on_connect=record.on_connect,
            on_disconnect=record.on_disconnect,
            on_interrupt=record.on_interrupt,
        )
        far = far or peer_runtime.create_interface(socket=socket_name)
        with pytest.raises(MemifError, match="call"):
            loop.wait(runtime, lambda: near.connected, peer_runtime)
        assert loop.calls[failing] == ("eventfd", READ)
        assert record.events == [("disconnect", role)]
        assert not record.reasons[0].established
        wait_until(lambda: not far.connected, peer_runtime)
        far.delete()
    loop.epoll.close()


def test_waiting_peers_are_let_go_although_the_hook_fails_at_the_first(socket_path: str) -> None:
    loop = Loop()
    runtime = Runtime("external", control_fd_update=loop.hook)
    master = runtime.create_interface(socket=socket_path, role="master")
    with ScriptedSlave(socket_path) as first, ScriptedSlave(socket_path) as second:
        loop.wait(runtime, lambda: len(loop.watched) == 4)
        loop.failing = len(loop.calls)
        with pytest.raises(MemifError, match="HookFailed"):
            master.delete()
        for peer in (first, second):
            peer.answer("hello")
            assert peer.reason() == "the listener was closed"
    runtime.close()
    assert loop.watched == {}
    assert not Path(socket_path).exists()
    loop.epoll.close()


def test_stale_and_spurious_events_are_harmless(
    loop: Loop, external: Runtime, peer_runtime: Runtime, socket_name: str
) -> None:
    record = Recorder()
    near = external.create_interface(socket=socket_name, role="master", on_interrupt=record.on_interrupt)
    far = peer_runtime.create_interface(socket=socket_name)
    loop.wait(external, lambda: near.connected and far.connected, peer_runtime)
    for fd in list(loop.watched):
        for events in range(8):
            assert external.control_fd_handler(fd, events)
    fds = list(loop.watched)
    assert near.connected
    assert_packets_pass(Pair(near, far, ()))
    near.delete()
    gone = set(fds) - set(loop.watched)
    assert len(gone) == 3
    for fd in gone:
        assert not external.control_fd_handler(fd, READ)
    assert not external.control_fd_handler(-1, READ)
    assert not external.control_fd_handler(1 << 20, READ)


def test_what_is_for_internal_mode_says_so(external: Runtime) -> None:
    for call in (external.poll_event, external.cancel_poll_event, external.fileno, external.run):
        with pytest.raises(
            ConfigError, match="is for internal mode: this runtime has a control_fd_update hook"
        ) as caught:
            call()
        assert caught.value.code is ErrorCode.INVAL_ARG


# --- polling --------------------------------------------------------------------------------------------------------


def ready(runtime: Runtime) -> bool:
    return bool(select.select([runtime], [], [], 0)[0])


@pytest.mark.parametrize("role", ROLES)
def test_fileno_is_readable_exactly_while_there_is_something_to_do(
    runtime: Runtime, peer_runtime: Runtime, socket_name: str, role: RoleName
) -> None:
    runtime.set_reconnect_interval(0)
    handled: list[bytes] = []

    def on_interrupt(interface: Interface, qid: int) -> None:
        handled.extend(interface.rx_queues[qid].recv())

    def settle() -> None:
        """Handle everything; each call has something to do exactly when the fd says so."""
        while ready(runtime):
            assert runtime.poll_event(0) >= 1
        assert runtime.poll_event(0) == 0

    settle()
    far_role = ROLES[1 - ROLES.index(role)]
    far = peer_runtime.create_interface(socket=socket_name, role=far_role) if role == "slave" else None
    near = runtime.create_interface(socket=socket_name, role=role, on_interrupt=on_interrupt)
    settle()
    far = far or peer_runtime.create_interface(socket=socket_name)
    while not (near.connected and far.connected):
        assert ready(runtime) or ready(peer_runtime)
        peer_runtime.poll_event(0)
        settle()
    far.tx_queues[0].send([b"packet"])
    assert ready(runtime)
    settle()
    assert handled == [b"packet"]
    runtime.cancel_poll_event()
    assert ready(runtime)
    with pytest.raises(PollCancelled):
        runtime.poll_event(0)
    settle()
    far.delete()
    assert ready(runtime)
    settle()
    assert near.state is State.DISCONNECTED


def test_the_expired_timer_makes_fileno_readable(runtime: Runtime, socket_name: str) -> None:
    runtime.create_interface(socket=socket_name)
    assert select.select([runtime], [], [], DEADLINE)[0]
    assert runtime.poll_event(0) == 1


@pytest.mark.parametrize("timeout", [None, -1, -0.5])
def test_poll_event_waits_for_an_event(runtime: Runtime, socket_name: str, timeout: float | None) -> None:
    runtime.create_interface(socket=socket_name, role="master")
    peers: list[ScriptedSlave] = []
    thread = Thread(target=lambda: peers.append(ScriptedSlave(socket_name)))
    thread.start()
    assert runtime.poll_event(timeout) == 1
    thread.join()
    for peer in peers:
        peer.close()


@pytest.mark.parametrize("timeout", [2**31 / 1000, 1e12, float("inf")])
def test_poll_event_takes_longer_waits_than_the_kernel(runtime: Runtime, timeout: float) -> None:
    runtime.cancel_poll_event()
    with pytest.raises(PollCancelled):
        runtime.poll_event(timeout)


@pytest.mark.parametrize("timeout", [0, 0.0, 0.001])
def test_poll_event_returns_when_nothing_happens(runtime: Runtime, timeout: float) -> None:
    assert runtime.poll_event(timeout) == 0


def test_one_cancel_ends_exactly_one_poll(runtime: Runtime) -> None:
    for _ in range(3):
        runtime.cancel_poll_event()
    for _ in range(3):
        with pytest.raises(PollCancelled) as caught:
            runtime.poll_event(None)
        assert caught.value.code is ErrorCode.POLL_CANCEL
    assert runtime.poll_event(0) == 0


def test_a_cancel_from_a_thread_ends_the_wait(runtime: Runtime) -> None:
    thread = Thread(target=runtime.cancel_poll_event)
    thread.start()
    with pytest.raises(PollCancelled):
        runtime.poll_event(None)
    thread.join()
    assert runtime.poll_event(0) == 0


@pytest.fixture
def signalled() -> Iterator[Callable[[Callable[[], None]], None]]:
    """``signalled(handler)``: from another thread the process gets a signal, whose handler runs in this one."""
    threads = []

    def send(handler: Callable[[], None]) -> None:
        def on_signal(number: int, frame: FrameType | None) -> None:
            handler()

        signal.signal(signal.SIGUSR1, on_signal)
        thread = Thread(target=os.kill, args=(os.getpid(), signal.SIGUSR1))
        threads.append(thread)
        thread.start()

    before = signal.getsignal(signal.SIGUSR1)
    yield send
    for thread in threads:
        thread.join()
    signal.signal(signal.SIGUSR1, before)


def test_a_cancel_from_a_signal_handler_ends_the_wait(
    runtime: Runtime, signalled: Callable[[Callable[[], None]], None]
) -> None:
    with pytest.raises(PollCancelled):  # noqa: PT012
        signalled(runtime.cancel_poll_event)
        runtime.poll_event(None)
    assert runtime.poll_event(0) == 0


def test_an_interrupt_from_the_keyboard_leaves_the_runtime_usable(
    make_pair: Callable[..., Pair], signalled: Callable[[Callable[[], None]], None]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    pair = make_pair()
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        signalled(interrupt)
        pair.runtimes[0].poll_event(None)
    assert_packets_pass(pair)
    pair.slave.disconnect()
    pair.wait(lambda: pair.master.connected and pair.slave.connected and pair.slave.rx_queues[0].connected)
    assert_packets_pass(pair)


def test_run_handles_events_until_it_is_cancelled(runtime: Runtime, peer_runtime: Runtime, socket_name: str) -> None:
    events = []

    def on_connect(interface: Interface) -> None:
        events.append("connect")
        interface.disconnect()

    def on_disconnect(interface: Interface, reason: Disconnected) -> None:
        events.append("disconnect")
        if events.count("disconnect") == 3:
            runtime.cancel_poll_event()

    runtime.create_interface(socket=socket_name, role="master")
    runtime.create_interface(socket=socket_name, on_connect=on_connect, on_disconnect=on_disconnect)
    runtime.run()
    assert events == ["connect", "disconnect"] * 3


def test_run_ends_when_a_callback_closes_the_runtime(socket_name: str) -> None:
    with Runtime("one shot", reconnect_interval=0.02) as runtime:
        runtime.create_interface(socket=socket_name, role="master")
        runtime.create_interface(socket=socket_name, on_connect=lambda interface: runtime.close())
        runtime.run()
        assert runtime.closed


# --- one at a time --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["poll_event", "run", "control_fd_handler"])
@pytest.mark.parametrize("callback", ["on_connect", "on_disconnect", "on_interrupt"])
def test_a_callback_that_polls_is_refused(runtime: Runtime, socket_name: str, callback: str, how: str) -> None:
    refused = []

    def poll(interface: Interface, *rest: object) -> None:
        call = getattr(runtime, how)
        with pytest.raises(ConfigError, match="a callback must not poll") as caught:
            call(*((runtime._timer.fileno(), READ) if how == "control_fd_handler" else ()))
        refused.append(caught.value)
        if callback == "on_interrupt":
            interface.rx_queues[0].recv()

    pair = connect(runtime, runtime, socket_name, **{f"slave_{callback}": poll})
    pair.master.tx_queues[0].send([b"packet"])
    if callback == "on_disconnect":
        pair.master.disconnect()
    pair.wait(lambda: refused)
    setattr(pair.slave, callback, None)
    pair.wait(lambda: pair.master.connected and pair.slave.connected and pair.slave.rx_queues[0].connected)
    assert_packets_pass(pair)
