"""The dispatcher: which handlers run, and what becomes of their exceptions. The compiled one and the readable one."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from memifrt import ConfigError, FdEvent, PollCancelled, Runtime
from memifrt.poll._dispatch import NativeDispatcher
from memifrt.poll.dispatch import Dispatcher, OnError, PythonDispatcher
from memifrt.poll.dispatchers import make_dispatcher
from memifrt.poll.epoll import EpollPoller
from memifrt.poll.hook import Handler
from tests.lib.support import DEADLINE
from tests.lib.threads import Thread


class Bench:
    """A poller, a dispatcher, and pipes whose read ends have handlers."""

    def __init__(self, make: Callable[..., Dispatcher]) -> None:
        self._make = make
        self.poller = EpollPoller()
        self.handlers: dict[int, Handler] = {}
        self.called: list[tuple[int, FdEvent]] = []
        self.dispatcher = self.make()
        self._fds: list[int] = []

    def make(self, on_error: OnError | None = None) -> Dispatcher:
        self.dispatcher = self._make(self.handlers, self.poller, on_error)
        return self.dispatcher

    def ready(self, handler: Callable[[int, FdEvent], object] | None = None) -> int:
        """Return an fd that is readable. Its handler reads it and notes the call, then calls ``handler``."""
        fd, writer = os.pipe()
        self._fds += [fd, writer]
        os.write(writer, b".")

        def handle(events: FdEvent) -> None:
            self.called.append((fd, events))
            if handler is not None:
                handler(fd, events)
            os.read(fd, 1)

        self.handlers[fd] = handle
        self.poller.update(fd, FdEvent.READ)
        return fd

    def close(self) -> None:
        self.poller.close()
        for fd in self._fds:
            os.close(fd)


@pytest.fixture(params=[NativeDispatcher, PythonDispatcher], ids=["native", "python"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(request.param)
    yield bench
    bench.close()


def test_the_compiled_one_is_used_where_it_is() -> None:
    assert isinstance(make_dispatcher({}), NativeDispatcher)


def test_every_ready_fd_is_handled_once_and_counted(bench: Bench) -> None:
    fds = {bench.ready() for _ in range(5)}
    assert bench.dispatcher.poll(0) == 5
    assert {fd for fd, _ in bench.called} == fds
    assert {events for _, events in bench.called} == {FdEvent.READ}
    assert bench.dispatcher.poll(0) == 0


@pytest.mark.parametrize("timeout", [0, 0.0, 0.001, 1e-9, 1, 10.5, 2**40, 10**400, None])
def test_any_timeout_finds_what_is_ready(bench: Bench, timeout: float | None) -> None:
    bench.ready()
    assert bench.dispatcher.poll(timeout) == 1


def test_timeout_that_is_no_number_is_refused(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="timeout is nan"):
        bench.dispatcher.poll(float("nan"))


def test_a_stale_event_is_told(bench: Bench) -> None:
    fd = bench.ready()
    assert bench.dispatcher.handle(fd, FdEvent.READ) is True
    del bench.handlers[fd]
    assert bench.dispatcher.handle(fd, FdEvent.READ) is False
    assert bench.called == [(fd, FdEvent.READ)]


def test_fd_that_a_handler_forgets_is_not_handled_in_the_same_round(bench: Bench) -> None:
    first: list[int] = []

    def forget_the_others(fd: int, events: FdEvent) -> None:
        first.append(fd)
        for other in fds - {fd}:
            bench.handlers.pop(other, None)

    fds = {bench.ready(forget_the_others) for _ in range(3)}
    assert bench.dispatcher.poll(0) == 1
    assert [fd for fd, _ in bench.called] == first


def test_busy_only_while_a_handler_runs(bench: Bench) -> None:
    seen: list[tuple[bool, bool]] = []
    bench.ready(lambda fd, events: seen.append((bench.dispatcher.busy, bench.dispatcher.refuses)))
    assert not bench.dispatcher.busy
    bench.dispatcher.poll(0)
    assert seen == [(True, True)]
    assert not bench.dispatcher.busy
    assert not bench.dispatcher.refuses


@pytest.mark.parametrize("timeout", [0, DEADLINE, 10**400])
def test_a_wait_that_ends_while_a_handler_runs_calls_none(bench: Bench, timeout: float) -> None:
    refused: list[ConfigError] = []

    def poll() -> None:
        try:
            bench.dispatcher.poll(timeout)
        except ConfigError as error:
            refused.append(error)

    def poll_beside(fd: int, events: FdEvent) -> None:
        other = Thread(target=poll)
        other.start()
        other.join(DEADLINE)
        assert not other.is_alive()

    fd = bench.ready(poll_beside)
    assert bench.dispatcher.poll(0) == 1
    assert [str(error).partition(",")[0] for error in refused] == ["a callback must not poll"]
    assert bench.called == [(fd, FdEvent.READ)]
    assert not bench.dispatcher.busy


def fail(fd: int, events: FdEvent) -> None:
    raise ValueError(f"of {fd}")


def test_exception_comes_out_and_the_other_events_come_again(bench: Bench) -> None:
    bad = bench.ready(fail)
    good = bench.ready()
    with pytest.raises(ValueError, match=f"of {bad}"):
        bench.dispatcher.poll(0)
    assert not bench.dispatcher.busy
    del bench.handlers[bad]
    bench.dispatcher.poll(0)
    assert [fd for fd, _ in bench.called].count(good) == 1


def test_on_error_gets_the_exception_and_the_other_events_are_handled(bench: Bench) -> None:
    errors: list[Exception] = []
    bench.make(errors.append)
    bad = bench.ready(fail)
    good = bench.ready()
    assert bench.dispatcher.poll(0) == 2
    assert [str(error) for error in errors] == [f"of {bad}"]
    assert {fd for fd, _ in bench.called} == {bad, good}


def test_what_is_no_exception_comes_out_beside_on_error(bench: Bench) -> None:
    def interrupt(fd: int, events: FdEvent) -> None:
        raise KeyboardInterrupt

    errors: list[Exception] = []
    bench.make(errors.append)
    bench.ready(interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench.dispatcher.poll(0)
    assert not bench.dispatcher.busy
    assert errors == []


def test_exception_of_on_error_is_logged_with_the_one_that_it_was_given(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    def raise_another(error: Exception) -> None:
        raise RuntimeError("another")

    bench.make(raise_another)
    bad = bench.ready(fail)
    with caplog.at_level(logging.ERROR, logger="memifrt"):
        assert bench.dispatcher.poll(0) == 1
    (record,) = caplog.records
    assert record.exc_info is not None
    error = record.exc_info[1]
    assert isinstance(error, RuntimeError)
    assert str(error.__context__) == f"of {bad}"


def test_stopped_by_a_handler_it_handles_nothing_more(bench: Bench) -> None:
    for _ in range(3):
        bench.ready(lambda fd, events: bench.dispatcher.stop())
    assert bench.dispatcher.poll(0) == 1
    assert len(bench.called) == 1
    assert bench.dispatcher.refuses
    assert not bench.dispatcher.busy


def test_abandoned_by_a_handler_it_handles_nothing_more(bench: Bench) -> None:
    for _ in range(3):
        bench.ready(lambda fd, events: bench.dispatcher.abandon())
    assert bench.dispatcher.poll(0) == 1
    assert len(bench.called) == 1


@pytest.mark.parametrize("timeout", [0, 1.0, None])
def test_cancel_is_raised_after_every_event_is_handled(bench: Bench, timeout: float | None) -> None:
    bench.poller.cancel()
    fd = bench.ready()
    with pytest.raises(PollCancelled):
        bench.dispatcher.poll(timeout)
    assert bench.called == [(fd, FdEvent.READ)]
    assert bench.dispatcher.poll(0) == 0


def test_cancel_from_another_thread_ends_a_wait(bench: Bench) -> None:
    thread = threading.Thread(target=bench.poller.cancel)
    thread.start()
    with pytest.raises(PollCancelled):
        bench.dispatcher.poll(DEADLINE)
    thread.join()


@pytest.mark.parametrize("timeout", [DEADLINE, None])
def test_exception_of_a_signal_handler_ends_a_wait(bench: Bench, timeout: float | None) -> None:
    def handle(number: int, frame: object) -> None:
        raise InterruptedError("by a signal")

    before = signal.signal(signal.SIGALRM, handle)
    try:
        with pytest.raises(InterruptedError, match="by a signal"):  # noqa: PT012 - the machine may be slow
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            bench.dispatcher.poll(timeout)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_signal_does_not_end_a_wait(bench: Bench) -> None:
    fd = bench.ready()
    bench.poller.update(fd, FdEvent.DEL)
    before = signal.signal(signal.SIGALRM, lambda number, frame: bench.poller.update(fd, FdEvent.READ))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        assert bench.dispatcher.poll(DEADLINE) == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("make", [NativeDispatcher, PythonDispatcher], ids=["native", "python"])
@pytest.mark.parametrize("timeout", [DEADLINE, None])
def test_runtime_that_a_signal_handler_closes_ends_its_wait(
    make: Callable[..., Dispatcher], timeout: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memifrt.runtime.make_dispatcher", make)
    runtime = Runtime()
    before = signal.signal(signal.SIGALRM, lambda number, frame: runtime.close())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        assert runtime.poll_event(timeout) == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        runtime.close()
