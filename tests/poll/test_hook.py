"""The hook's contract, and what stands behind it in internal mode: our own epoll, its cancel, the timer."""

from __future__ import annotations

import functools
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from memifrt import Runtime
from memifrt.errors import ErrorCode, MemifError
from memifrt.poll.epoll import EpollPoller, from_epoll, to_epoll
from memifrt.poll.hook import FdRegistry
from memifrt.poll.schedule import Schedule
from memifrt.system.timerfd import TimerFd
from memifrt.types import FdEvent
from tests.lib.patched import PATCHED
from tests.lib.support import DEADLINE, Recorder
from tests.lib.threads import Thread

READ, WRITE, ERROR, DEL, MOD = FdEvent.READ, FdEvent.WRITE, FdEvent.ERROR, FdEvent.DEL, FdEvent.MOD


def ignore(events: FdEvent) -> None:
    pass


class Recording:
    """A hook that notes what it is told and holds it to the contract."""

    def __init__(self, forward: Callable[[int, FdEvent], object] = lambda fd, events: None) -> None:
        self.calls: list[tuple[int, FdEvent]] = []
        self.watched: dict[int, FdEvent] = {}
        self._forward = forward

    def __call__(self, fd: int, events: FdEvent) -> None:
        self.calls.append((fd, events))
        os.fstat(fd)  # also at DEL: unregister, then close
        if events & DEL:
            assert events == DEL
            del self.watched[fd]
        elif events & MOD:
            waited = events & ~MOD
            assert waited in (READ, WRITE, READ | WRITE)
            assert self.watched[fd] != waited, "nothing has changed"
            self.watched[fd] = waited
        else:
            assert events in (READ, WRITE, READ | WRITE)
            assert fd not in self.watched, "added twice"
            self.watched[fd] = events
        self._forward(fd, events)


@pytest.fixture
def poller() -> Iterator[EpollPoller]:
    poller = EpollPoller()
    yield poller
    poller.close()


# --- the registry ---------------------------------------------------------------------------------------------------


@pytest.fixture
def fds() -> Iterator[tuple[int, int]]:
    """Two open fds."""
    pair = os.pipe()
    yield pair
    for fd in pair:
        os.close(fd)


def test_each_fd_is_added_modified_and_deleted(fds: tuple[int, int]) -> None:
    hook = Recording()
    registry = FdRegistry(hook)
    first, second = fds
    registry.add(first, READ, ignore)
    registry.add(second, READ | WRITE, ignore)
    assert len(registry) == 2
    registry.modify(first, READ | WRITE)
    registry.modify(first, READ)
    registry.modify(second, WRITE)
    registry.remove(first)
    assert first not in registry
    assert second in registry
    registry.remove(second)
    assert hook.calls == [
        (first, READ),
        (second, READ | WRITE),
        (first, READ | WRITE | MOD),
        (first, READ | MOD),
        (second, WRITE | MOD),
        (first, DEL),
        (second, DEL),
    ]
    assert len(registry) == 0


def test_nothing_is_said_when_nothing_changes(fds: tuple[int, int]) -> None:
    hook = Recording()
    registry = FdRegistry(hook)
    registry.remove(fds[0])
    registry.add(fds[0], READ, ignore)
    registry.modify(fds[0], READ)
    registry.modify(fds[0], READ | WRITE)
    registry.modify(fds[0], READ | WRITE)
    registry.remove(fds[0])
    registry.remove(fds[0])
    assert hook.calls == [(fds[0], READ), (fds[0], READ | WRITE | MOD), (fds[0], DEL)]


def test_a_number_may_come_again_once_it_is_withdrawn(fds: tuple[int, int]) -> None:
    hook = Recording()
    registry = FdRegistry(hook)
    seen: list[str] = []
    registry.add(fds[0], READ, lambda events: seen.append("first"))
    registry.remove(fds[0])
    registry.add(fds[0], WRITE, lambda events: seen.append("second"))
    assert hook.calls == [(fds[0], READ), (fds[0], DEL), (fds[0], WRITE)]
    registry.dispatch(fds[0], WRITE)
    assert seen == ["second"]


def test_a_second_add_and_a_modify_of_a_stranger_are_our_mistakes(fds: tuple[int, int]) -> None:
    hook = Recording()
    registry = FdRegistry(hook)
    registry.add(fds[0], READ, ignore)
    with pytest.raises(KeyError):
        registry.add(fds[0], WRITE, ignore)
    with pytest.raises(KeyError):
        registry.modify(fds[1], READ)
    assert hook.calls == [(fds[0], READ)]


def test_events_reach_the_handler_and_stale_ones_nobody(fds: tuple[int, int]) -> None:
    registry = FdRegistry(Recording())
    seen: list[FdEvent] = []
    registry.add(fds[0], READ, seen.append)
    assert registry.dispatch(fds[0], READ | ERROR)
    assert not registry.dispatch(fds[1], READ)
    registry.remove(fds[0])
    assert not registry.dispatch(fds[0], READ)
    assert seen == [READ | ERROR]


def test_a_handler_may_withdraw_its_own_fd_and_raise(fds: tuple[int, int]) -> None:
    hook = Recording()
    registry = FdRegistry(hook)

    def handler(events: FdEvent) -> None:
        registry.remove(fds[0])
        raise ZeroDivisionError

    registry.add(fds[0], READ, handler)
    with pytest.raises(ZeroDivisionError):
        registry.dispatch(fds[0], READ)
    assert not registry.dispatch(fds[0], READ)
    assert hook.calls == [(fds[0], READ), (fds[0], DEL)]


class Refusing:
    """A hook that raises on demand, and notes what it took."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.taken: list[FdEvent] = []

    def __call__(self, fd: int, events: FdEvent) -> None:
        if self.error is not None:
            raise self.error
        self.taken.append(events)


def fails(call: Callable[[], object], cause: BaseException) -> None:
    with pytest.raises(MemifError) as caught:
        call()
    assert caught.value.code is ErrorCode.CB_FDUPDATE
    assert caught.value.__cause__ is cause
    assert "RuntimeError: loop is closed" in str(caught.value)


def test_a_hook_that_raises_fails_the_call_and_leaves_the_registry_right() -> None:
    hook = Refusing()
    registry = FdRegistry(hook)

    hook.error = error = RuntimeError("loop is closed")
    fails(lambda: registry.add(5, READ, ignore), error)
    assert 5 not in registry
    assert not registry.dispatch(5, READ)

    hook.error = None
    registry.add(5, READ, ignore)
    hook.error = error
    fails(lambda: registry.modify(5, READ | WRITE), error)

    hook.error = None
    registry.modify(5, READ)  # still what the hook knows: nothing to say
    registry.modify(5, READ | WRITE)  # the change that failed is said again
    hook.error = error
    fails(lambda: registry.remove(5), error)
    assert 5 not in registry
    assert hook.taken == [READ, READ | WRITE | MOD]


def test_an_interrupt_in_the_hook_is_not_disguised_and_undoes_the_add() -> None:
    hook = Refusing()
    registry = FdRegistry(hook)
    hook.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        registry.add(5, READ, ignore)
    assert 5 not in registry


def test_a_forked_child_forgets_without_a_word(fds: tuple[int, int]) -> None:
    hook = Recording()
    registry = FdRegistry(hook)
    registry.add(fds[0], READ, ignore)
    registry.abandon()
    assert len(registry) == 0
    assert hook.calls == [(fds[0], READ)]


def test_a_whole_connection_keeps_to_the_contract(poller: EpollPoller, socket_name: str) -> None:
    """Master and slave in external mode: connect, change a receive mode, disconnect, connect again, close."""
    hook = Recording(poller.update)
    recorder = Recorder()

    def pump(runtime: Runtime, predicate: Callable[[], object]) -> None:
        while not predicate():
            ready, _ = poller.wait(DEADLINE)
            assert ready, "nothing happens any more"
            for fd, events in ready:
                runtime.control_fd_handler(fd, events)

    with Runtime("external", control_fd_update=hook, reconnect_interval=0.01) as runtime:
        master = runtime.create_interface(socket=socket_name, role="master", on_interrupt=recorder.on_interrupt)
        slave = runtime.create_interface(socket=socket_name, role="slave", on_interrupt=recorder.on_interrupt)
        pump(runtime, lambda: master.connected and slave.connected)
        slave.tx_queues[0].send([b"packet"])
        pump(runtime, lambda: recorder.count("interrupt"))
        watched = {*hook.watched}
        master.rx_queues[0].set_rx_mode("polling")
        assert watched - {*hook.watched} == {master.rx_queues[0].fileno()}
        master.rx_queues[0].set_rx_mode("interrupt")
        assert {*hook.watched} == watched
        master.disconnect()
        pump(runtime, lambda: not slave.connected)
        pump(runtime, lambda: master.connected and slave.connected)
        assert len(hook.watched) == len(watched)
    assert hook.watched == {}


# --- our own epoll --------------------------------------------------------------------------------------------------


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield ends
    for end in ends:
        end.close()


def test_the_hook_of_the_poller_adds_modifies_and_deletes(
    poller: EpollPoller, ends: tuple[socket.socket, socket.socket]
) -> None:
    fd = ends[0].fileno()
    poller.update(fd, READ)
    assert poller.wait(0) == ([], False)
    poller.update(fd, READ | WRITE | MOD)
    assert poller.wait(0) == ([(fd, WRITE)], False)
    ends[1].send(b"x")
    assert poller.wait(None) == ([(fd, READ | WRITE)], False)
    poller.update(fd, READ | MOD)
    # Level-triggered: what is not read comes again.
    assert poller.wait(-1) == ([(fd, READ)], False)
    assert poller.wait(0) == ([(fd, READ)], False)
    poller.update(fd, DEL)
    assert poller.wait(0) == ([], False)


def test_a_hang_up_is_an_error_that_reading_explains(
    poller: EpollPoller, ends: tuple[socket.socket, socket.socket]
) -> None:
    poller.update(ends[0].fileno(), READ)
    ends[1].close()
    assert poller.wait(None) == ([(ends[0].fileno(), READ | ERROR)], False)
    poller.update(ends[0].fileno(), DEL)


def test_the_poller_s_own_fd_is_readable_whenever_a_wait_finds_something(
    poller: EpollPoller, ends: tuple[socket.socket, socket.socket]
) -> None:
    outer = select.poll()
    outer.register(poller.fileno(), select.POLLIN)
    poller.update(ends[0].fileno(), READ)
    assert outer.poll(0) == []
    ends[1].send(b"x")
    assert outer.poll(0) == [(poller.fileno(), select.POLLIN)]
    ends[0].recv(1)
    assert outer.poll(0) == []
    poller.cancel()
    assert outer.poll(0) == [(poller.fileno(), select.POLLIN)]
    assert poller.consume_cancel()
    assert outer.poll(0) == []
    poller.update(ends[0].fileno(), DEL)


@pytest.mark.parametrize(
    ("events", "mask"),
    [
        (READ, select.EPOLLIN),
        (WRITE, select.EPOLLOUT),
        (READ | WRITE, select.EPOLLIN | select.EPOLLOUT),
        (ERROR, select.EPOLLERR),
        (READ | MOD, select.EPOLLIN),
        (FdEvent(0), 0),
    ],
)
def test_events_become_epoll_s_and_back(events: FdEvent, mask: int) -> None:
    assert to_epoll(events) == mask
    assert from_epoll(mask) == events & ~MOD


def test_each_cancel_ends_exactly_one_wait(poller: EpollPoller) -> None:
    poller.cancel()
    poller.cancel()
    for _ in range(2):
        assert poller.wait(None) == ([], True)
        assert poller.consume_cancel()
    assert poller.wait(0) == ([], False)
    assert not poller.consume_cancel()


def test_a_cancel_does_not_hide_what_is_ready(poller: EpollPoller, ends: tuple[socket.socket, socket.socket]) -> None:
    poller.update(ends[0].fileno(), READ)
    ends[1].send(b"x")
    poller.cancel()
    assert poller.wait(None) == ([(ends[0].fileno(), READ)], True)
    poller.update(ends[0].fileno(), DEL)


def test_a_cancel_from_a_thread_ends_a_wait(poller: EpollPoller) -> None:
    thread = Thread(target=poller.cancel)
    thread.start()
    assert poller.wait(DEADLINE) == ([], True)
    thread.join()


def sleeps_in_epoll(thread: int) -> bool:
    """Whether a thread of this process waits in the kernel's epoll; True where the kernel does not tell."""
    try:
        with open(f"/proc/self/task/{thread}/wchan") as file:
            where = file.read()
    except OSError:
        return True
    return where in ("", "0") or "ep_poll" in where or "epoll" in where


@pytest.mark.skipif(PATCHED, reason="gevent's patches hide the thread ids with which the test sends its signal")
def test_a_cancel_from_a_signal_handler_ends_a_wait(poller: EpollPoller) -> None:
    main = threading.get_native_id()
    handled = []

    def handler(number: int, frame: object) -> None:
        handled.append(number)
        poller.cancel()

    def interrupt() -> None:
        while not sleeps_in_epoll(main):
            os.sched_yield()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    thread = Thread(target=interrupt)
    try:
        thread.start()
        assert poller.wait(DEADLINE) == ([], True)
        assert handled == [signal.SIGUSR1]
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def test_cancels_from_many_threads_are_all_counted(poller: EpollPoller) -> None:
    threads = [Thread(target=poller.cancel) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [poller.consume_cancel() for _ in range(9)] == [True] * 8 + [False]


# --- the timer ------------------------------------------------------------------------------------------------------


@pytest.fixture
def timer() -> Iterator[TimerFd]:
    timer = TimerFd()
    yield timer
    timer.close()


def expires(timer: TimerFd) -> bool:
    poll = select.poll()
    poll.register(timer.fileno(), select.POLLIN)
    return bool(poll.poll(DEADLINE * 1000))


def soon(seconds: float = 0.001) -> float:
    return time.monotonic() + seconds


def test_a_timer_expires_once_for_each_time_that_it_is_armed(timer: TimerFd) -> None:
    assert (timer.armed, timer.drain()) == (False, False)
    for _ in range(3):
        timer.arm(soon())
        assert timer.armed
        assert expires(timer)
        assert timer.drain()
        assert (timer.armed, timer.drain()) == (False, False)


def test_a_timer_that_is_disarmed_has_nothing_to_say(timer: TimerFd) -> None:
    timer.disarm()
    timer.arm(soon())
    assert expires(timer)
    timer.disarm()
    assert not timer.armed
    assert not timer.drain()


def test_a_timer_that_is_armed_anew_forgets_what_was_before(timer: TimerFd) -> None:
    timer.arm(soon())
    assert expires(timer)
    timer.arm(soon(3600))
    assert not timer.drain()


@pytest.mark.parametrize("due", [-1.0, 0.0, 1e-12, 1e-9, 1.0])
def test_a_moment_that_is_past_is_now(timer: TimerFd, due: float) -> None:
    timer.arm(due)
    assert expires(timer)


@pytest.mark.parametrize("seconds", [3600.5, 86400.25, 999999999.0])
def test_a_moment_is_what_the_kernel_waits_for(timer: TimerFd, seconds: float) -> None:
    timer.arm(soon(seconds))
    with open(f"/proc/self/fdinfo/{timer.fileno()}") as info:
        (value,) = (line for line in info if line.startswith("it_value"))
    whole, nanoseconds = value.partition(":")[2].strip(" ()\n").split(",")
    assert seconds - DEADLINE < int(whole) + int(nanoseconds) / 1e9 <= seconds


def run_until(schedule: Schedule, timer: TimerFd, done: Callable[[], object]) -> None:
    while not done():
        assert expires(timer)
        schedule.run()


def test_what_is_due_is_called_in_its_order_and_once(timer: TimerFd) -> None:
    schedule = Schedule(timer)
    called: list[float] = []
    for delay in (0.003, 0.001, 0.002, 3600, 0.001):
        schedule.after(delay, functools.partial(called.append, delay))
    run_until(schedule, timer, lambda: len(called) == 4)
    assert called == [0.001, 0.001, 0.002, 0.003]
    assert len(schedule) == 1
    assert timer.armed
    schedule.run()
    assert len(called) == 4


def test_what_is_cancelled_is_not_called_and_the_last_one_disarms(timer: TimerFd) -> None:
    schedule = Schedule(timer)
    called: list[str] = []
    first, second = (schedule.after(0.0, functools.partial(called.append, name)) for name in "ab")
    assert expires(timer)
    for _ in range(2):
        schedule.cancel(first)
    schedule.cancel(None)
    run_until(schedule, timer, lambda: called)
    schedule.cancel(second)
    assert called == ["b"]
    last = schedule.after(0.0, lambda: called.append("c"))
    assert expires(timer)
    schedule.cancel(last)
    schedule.run()
    assert not timer.armed
    assert called == ["b"]


def test_an_action_may_make_and_cancel_calls(timer: TimerFd) -> None:
    schedule = Schedule(timer)
    called: list[str] = []

    def first() -> None:
        called.append("first")
        schedule.cancel(second)
        schedule.after(0.0, lambda: called.append("third"))

    schedule.after(0.0, first)
    second = schedule.after(0.0, lambda: called.append("second"))
    run_until(schedule, timer, lambda: len(called) == 2)
    assert called == ["first", "third"]
    assert len(schedule) == 0


def test_what_an_action_raises_does_not_lose_the_next(timer: TimerFd) -> None:
    schedule = Schedule(timer)
    called: list[str] = []
    schedule.after(0.0, lambda: 1 / 0)
    schedule.after(0.0, lambda: called.append("next"))
    assert expires(timer)
    with pytest.raises(ZeroDivisionError):
        schedule.run()
    run_until(schedule, timer, lambda: called)


def test_a_schedule_of_thousands_stays_in_order(timer: TimerFd) -> None:
    schedule = Schedule(timer)
    called: list[int] = []
    delays = [(number * 7919) % 5000 / 1e6 for number in range(5000)]
    made = [schedule.after(delay, functools.partial(called.append, number)) for number, delay in enumerate(delays)]
    for appointment in made[::2]:
        schedule.cancel(appointment)
    run_until(schedule, timer, lambda: len(called) == 2500)
    assert [made[number].due for number in called] == sorted(appointment.due for appointment in made[1::2])


def test_a_timer_is_not_inherited_and_does_not_block(timer: TimerFd) -> None:
    assert not os.get_inheritable(timer.fileno())
    assert not os.get_blocking(timer.fileno())
