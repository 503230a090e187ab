"""Run a program of the command line in the event loop that ``--loop`` names.

A program is a coroutine that waits on a :class:`Waiter`, so it is written once for all loops. In loops with blocking
waits (the internal loop, selectors, gevent's greenlets) the coroutine never suspends, and runs straight to its end.

Owns how to wait in each loop, and how a signal ends a wait. Knows nothing of the programs.
"""

from __future__ import annotations

import contextlib
import selectors
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator
from typing import TypeVar

from memifrt.cli.program import SessionOptions, session
from memifrt.errors import ConfigError, PollCancelled
from memifrt.poll.hook import FdHandler, Hook
from memifrt.runtime import Runtime
from memifrt.system.fds import EventFd
from memifrt.types import FdEvent

LOOPS = ("internal", "selectors", "gevent", "asyncio", "trio")

T = TypeVar("T")
#: The coroutine of a program. Only the event loop uses the values that it yields.
Main = Callable[["Waiter"], Coroutine[object, object, T]]


def run(
    program: str,
    main: Main[T],
    *,
    loop: str,
    reconnect_interval: float,
    session_options: SessionOptions = SessionOptions(),  # noqa: B008 - it is frozen
) -> T:
    """Run a program's ``main`` in a loop, inside a :func:`~memifrt.cli.program.session`, and return its result.

    :param loop: one of :data:`LOOPS`.
    :raises ConfigError: there is no such loop, or its package is not installed.
    """

    @contextlib.contextmanager
    def open_session(hook: Hook | None, cancel: Callable[[], None] | None) -> Iterator[Runtime]:
        with session(
            program, reconnect_interval=reconnect_interval, session_options=session_options, hook=hook, cancel=cancel
        ) as runtime:
            yield runtime

    if loop not in LOOPS:
        raise ConfigError(f"loop is {loop!r}; it must be one of {', '.join(LOOPS)}")
    try:
        return _RUN[loop](main, open_session)
    except ImportError as error:
        hint = f"pip install 'memifrt[{loop}]'"
        raise ConfigError(f"--loop {loop} needs {loop}, which is not installed: {hint}") from error


class Waiter(ABC):
    """Waits for the events of a runtime in one of the loops."""

    runtime: Runtime

    @abstractmethod
    async def wait(self, timeout: float | None) -> None:
        """Wait until at least one event was handled.

        :param timeout: the most seconds to wait; None waits without a limit.
        :raises PollCancelled: :meth:`cancel` was called.
        :raises BaseException: the exception of a callback.
        """

    @abstractmethod
    async def run_for(self, seconds: float | None) -> None:
        """Handle events for ``seconds`` (None: until cancelled). Raises what :meth:`wait` raises."""

    @abstractmethod
    def cancel(self) -> None:
        """End the current wait, or else the next one. Any thread and any signal handler may call this."""


def _to_its_end(program: Coroutine[object, object, T]) -> T:
    """Run a coroutine that never suspends."""
    try:
        program.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("a waiter that blocks has suspended")


# --- loops with a blocking call that waits for events -----------------------------------------------------------------


class _Turning(Waiter):
    async def wait(self, timeout: float | None) -> None:
        self._turn(timeout)

    async def run_for(self, seconds: float | None) -> None:
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return
            self._turn(left)

    @abstractmethod
    def _turn(self, timeout: float | None) -> None:
        """Wait once and handle the events."""


class _Internal(_Turning):
    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def _turn(self, timeout: float | None) -> None:
        self.runtime.poll_event(timeout)

    def cancel(self) -> None:
        self.runtime.cancel_poll_event()


_OpenSession = Callable[["Hook | None", "Callable[[], None] | None"], contextlib.AbstractContextManager[Runtime]]


def _run_internal(main: Main[T], open_session: _OpenSession) -> T:
    with open_session(None, None) as runtime:
        return _to_its_end(main(_Internal(runtime)))


class _Cancelling(Waiter):
    """The common part of external loops: an eventfd in the loop makes :meth:`cancel` end a wait.

    A signal interrupts the wait of a loop only while Python runs the signal handler; then the loop waits again. The
    handler writes to the eventfd, and that event ends the wait.
    """

    def __init__(self) -> None:
        self._cancel_fd = EventFd.create("cancel eventfd")
        self._failure: BaseException | None = None

    def handle(self, fd: int, events: FdEvent) -> None:
        """Handle the events of an fd; the adapter calls this."""
        try:
            if fd != self._cancel_fd.fileno():
                self.runtime.control_fd_handler(fd, events)
            elif self._cancel_fd.drain():
                raise PollCancelled
        except BaseException as error:  # wait() raises it, because loops treat exceptions of callbacks differently
            self._failure = self._failure or error

    def cancel(self) -> None:
        self._cancel_fd.notify()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    @contextlib.contextmanager
    def opened(self, hook: Hook, start: Callable[[FdHandler], None], open_session: _OpenSession) -> Iterator[None]:
        """Open the session, with the cancel eventfd in the loop."""
        fd = self._cancel_fd.fileno()
        with self._cancel_fd_closed(), open_session(hook, self.cancel) as self.runtime:
            start(self.handle)
            hook(fd, FdEvent.READ)
            try:
                yield
            finally:
                hook(fd, FdEvent.DEL)

    @contextlib.contextmanager
    def _cancel_fd_closed(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._cancel_fd.close()


class _Selectors(_Cancelling, _Turning):
    def __init__(self, selector: selectors.BaseSelector) -> None:
        super().__init__()
        self._select = selector.select

    def _turn(self, timeout: float | None) -> None:
        for key, mask in self._select(timeout):
            key.data(key.fd, mask)
        if self._failure is not None:
            self._raise_failure()


def _run_selectors(main: Main[T], open_session: _OpenSession) -> T:
    from memifrt.poll.selectors import SelectorPoller

    with selectors.DefaultSelector() as selector:
        poller = SelectorPoller(selector)
        waiter = _Selectors(selector)
        with waiter.opened(poller.update, poller.start, open_session):
            return _to_its_end(main(waiter))


# --- loops with callbacks: the waiter sleeps until a callback wakes it ------------------------------------------------


class _Sleeping(_Cancelling):
    def __init__(self) -> None:
        super().__init__()
        self._handled = 0
        self._seen = 0
        #: Whether every event wakes the sleeper, or only an exception.
        self._wake_for_any = False

    def handle(self, fd: int, events: FdEvent) -> None:
        super().handle(fd, events)
        self._handled += 1
        if self._wake_for_any or self._failure is not None:
            self._wake()

    async def wait(self, timeout: float | None) -> None:
        if self._handled == self._seen and self._failure is None:
            self._wake_for_any = True
            try:
                await self._sleep(timeout)
            finally:
                self._wake_for_any = False
        self._seen = self._handled
        self._raise_failure()

    async def run_for(self, seconds: float | None) -> None:
        if self._failure is None:
            await self._sleep(seconds)
        self._seen = self._handled
        self._raise_failure()

    @abstractmethod
    def _wake(self) -> None:
        """End the current sleep, if there is one."""

    @abstractmethod
    async def _sleep(self, timeout: float | None) -> None:
        """Let the loop run until :meth:`_wake` is called.

        :param timeout: the most seconds to sleep; 0 runs one round of the loop, None sleeps without a limit.
        """


def _run_gevent(main: Main[T], open_session: _OpenSession) -> T:
    import gevent
    from gevent.event import Event

    from memifrt.poll.gevent import GeventPoller

    class Greenlets(_Sleeping):
        def __init__(self) -> None:
            super().__init__()
            self._event = Event()

        def _wake(self) -> None:
            self._event.set()

        async def _sleep(self, timeout: float | None) -> None:
            self._event.clear()
            if timeout == 0:
                gevent.sleep(0)
            else:
                self._event.wait(timeout)

    poller, waiter = GeventPoller(), Greenlets()
    with waiter.opened(poller.update, poller.start, open_session):
        return _to_its_end(main(waiter))


def _run_asyncio(main: Main[T], open_session: _OpenSession) -> T:
    import asyncio

    from memifrt.poll.asyncio import AsyncioPoller

    class Tasks(_Sleeping):
        _future: asyncio.Future[None] | None = None

        def _wake(self) -> None:
            if self._future is not None and not self._future.done():
                self._future.set_result(None)

        async def _sleep(self, timeout: float | None) -> None:
            if timeout == 0:
                await asyncio.sleep(0)
                return
            loop = asyncio.get_running_loop()
            self._future = loop.create_future()
            timer = None if timeout is None else loop.call_later(timeout, self._wake)
            try:
                await self._future
            finally:
                self._future = None
                if timer is not None:
                    timer.cancel()

    async def whole() -> T:
        poller, waiter = AsyncioPoller(), Tasks()
        with waiter.opened(poller.update, poller.start, open_session):
            return await main(waiter)

    return asyncio.run(whole())


def _run_trio(main: Main[T], open_session: _OpenSession) -> T:
    import trio

    from memifrt.poll.trio import TrioPoller

    class Tasks(_Sleeping):
        def __init__(self) -> None:
            super().__init__()
            self._event = trio.Event()

        def _wake(self) -> None:
            self._event.set()

        async def _sleep(self, timeout: float | None) -> None:
            self._event = trio.Event()
            if timeout == 0:
                await trio.lowlevel.checkpoint()
                return
            with trio.move_on_after(float("inf") if timeout is None else timeout):
                await self._event.wait()

    async def whole() -> T:
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            poller, waiter = TrioPoller(nursery), Tasks()
            try:
                with waiter.opened(poller.update, poller.start, open_session):
                    return await main(waiter)
            except trio.Cancelled:
                raise
            except BaseException as error:  # hidden from the nursery, which would wrap it in an exception group
                failure = error
            finally:
                nursery.cancel_scope.cancel()
        assert failure is not None
        raise failure

    return trio.run(whole)


_RUN: dict[str, Callable[[Main[T], _OpenSession], T]] = {
    "internal": _run_internal,
    "selectors": _run_selectors,
    "gevent": _run_gevent,
    "asyncio": _run_asyncio,
    "trio": _run_trio,
}
