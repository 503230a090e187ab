"""Event loops that a test can run, each with an adapter of :mod:`memifrt.poll` in it, and the hook that checks them.

A driver opens its loop, hands it to a scenario and lets it turn whenever the scenario waits:

    def scenario(loop: Loop) -> Scenario:
        loop.start(handler)                 # where the adapter's events go
        loop.update(fd, FdEvent.READ)       # the hook; for a runtime: Runtime(control_fd_update=loop.update)
        yield lambda: handled               # the loop turns until this holds, or a deadline has passed
        ...
    driver.run(scenario)

The scenario's own code runs inside the loop: in its thread, and for asyncio and trio in a task. When it has ended, its
adapter must watch nothing any more, and nothing that a callback raised may be left unclaimed in ``loop.errors``.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import select
import selectors
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import gevent
import pytest
from gevent.hub import Hub, get_hub, set_hub

from memifrt import FdEvent, Runtime
from memifrt.options import OnError
from memifrt.poll.epoll import EpollPoller
from memifrt.poll.gevent import GeventPoller
from memifrt.poll.selectors import SelectorPoller
from memifrt.system.original_functions import close
from tests.lib.patched import PATCHED, SELECTORS
from tests.lib.support import DEADLINE

READ, WRITE, ERROR, DEL, MOD = FdEvent.READ, FdEvent.WRITE, FdEvent.ERROR, FdEvent.DEL, FdEvent.MOD

Predicate = Callable[[], object]
Handler = Callable[[int, FdEvent], object]
#: A test, from one wait to the next.
Scenario = Iterator[Predicate]


class Adapter(Protocol):
    """What every module of :mod:`memifrt.poll` that adapts a loop offers under these names."""

    def update(self, fd: int, events: FdEvent) -> None:
        """The hook."""

    def start(self, handler: Handler) -> None:
        """Where events go: a runtime's ``control_fd_handler``."""

    def close(self) -> None:
        """Watch nothing any more. Closing twice is harmless."""


class Loop(ABC):
    """One loop while it is open, and the adapter in it."""

    def __init__(self) -> None:
        #: Every fd that is watched, and for what.
        self.watched: dict[int, FdEvent] = {}
        #: Each call of the hook.
        self.calls: list[tuple[int, FdEvent]] = []
        #: What callbacks raised, as the loop reported it. A scenario takes out what it expects.
        self.errors: list[BaseException] = []

    @property
    @abstractmethod
    def adapter(self) -> Adapter: ...

    @abstractmethod
    def watchers(self) -> int:
        """How many watchers (keys, handles, tasks) of the adapter the loop itself still has."""

    def start(self, handler: Handler) -> None:
        self.adapter.start(handler)

    def runtime(self, reconnect_interval: float = 0.02, on_error: OnError | None = None) -> Runtime:
        """A runtime whose fds are in this loop; the scenario closes it."""
        runtime = Runtime(
            "test", control_fd_update=self.update, reconnect_interval=reconnect_interval, on_error=on_error
        )
        self.start(runtime.control_fd_handler)
        return runtime

    def check_caller(self) -> None:
        """The check of an adapter that can tell whether its loop runs in another thread."""
        check: Callable[[], object] | None = getattr(self.adapter, "check_caller", None)
        if check is not None:
            check()

    def update(self, fd: int, events: FdEvent) -> None:
        """The adapter's hook, held to the contract: one ADD, any number of MOD, one DEL while the fd is open."""
        self.calls.append((fd, events))
        os.fstat(fd)
        if events & DEL:
            assert events == DEL
            del self.watched[fd]
        elif events & MOD:
            assert events & ~MOD in (READ, WRITE, READ | WRITE)
            assert self.watched[fd] != events & ~MOD, "nothing has changed"
            self.watched[fd] = events & ~MOD
        else:
            assert events in (READ, WRITE, READ | WRITE)
            assert fd not in self.watched, "added twice"
            self.watched[fd] = events
        self.adapter.update(fd, events)

    def check_nothing_left(self) -> None:
        assert self.watched == {}
        assert self.watchers() == 0
        assert self.errors == []


class Driver(ABC):
    """Opens a loop, runs a scenario in it, and closes it."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def run(self, scenario: Callable[[Loop], Scenario]) -> None:
        """Go through the scenario. It ends with its last wait, and with the first failure."""

    def __str__(self) -> str:
        return self.name


class Deadline:
    """How long one wait of a scenario may take."""

    def __init__(self, predicate: Predicate) -> None:
        self._predicate = predicate
        self._end = time.monotonic() + DEADLINE

    def reached(self) -> bool:
        """Whether the predicate holds. Fails when it is too late."""
        if self._predicate():
            return True
        assert time.monotonic() < self._end, f"not within {DEADLINE} s: {self._predicate}"
        return False


# --- our own epoll, and selectors -----------------------------------------------------------------------------------

#: Seconds that a loop waits at most before it looks at the predicate again.
TICK = 0.005


class InternalEpoll:
    """Our own epoll as an adapter like the others."""

    def __init__(self) -> None:
        self._poller = EpollPoller()
        self._handler: Handler | None = None

    def update(self, fd: int, events: FdEvent) -> None:
        self._poller.update(fd, events)

    def start(self, handler: Handler) -> None:
        self._handler = handler

    def turn(self) -> None:
        for fd, events in self._poller.wait(TICK)[0]:
            assert self._handler is not None
            self._handler(fd, events)

    def watchers(self) -> int:
        with open(f"/proc/self/fdinfo/{self._poller.fileno()}") as info:
            return sum(line.startswith("tfd:") for line in info) - 1  # and its own, for cancelling

    def close(self) -> None:
        self._poller.close()


class PlainLoop(Loop):
    """A loop that is a function to call again and again: what a callback raises comes out of it."""

    def __init__(self, adapter: Adapter, turn: Callable[[], object], watchers: Callable[[], int]) -> None:
        super().__init__()
        self._adapter, self._turn, self._watchers = adapter, turn, watchers

    @property
    def adapter(self) -> Adapter:
        return self._adapter

    def watchers(self) -> int:
        return self._watchers()

    def run(self, scenario: Scenario) -> None:
        for predicate in scenario:
            deadline = Deadline(predicate)
            while not deadline.reached():
                try:
                    self._turn()
                except Exception as error:
                    self.errors.append(error)
        self.check_nothing_left()


class EpollDriver(Driver):
    def run(self, scenario: Callable[[Loop], Scenario]) -> None:
        epoll = InternalEpoll()
        loop = PlainLoop(epoll, epoll.turn, epoll.watchers)
        try:
            loop.run(scenario(loop))
        finally:
            epoll.close()


class SelectorDriver(Driver):
    """A selector that an application owns beside a key of its own."""

    def __init__(self, kind: type[selectors.BaseSelector]) -> None:
        super().__init__(kind.__name__)
        self._kind = kind

    def run(self, scenario: Callable[[Loop], Scenario]) -> None:
        reader, writer = os.pipe()
        with self._kind() as selector:
            selector.register(reader, selectors.EVENT_READ, "the application's own")
            poller = SelectorPoller(selector)

            def turn() -> None:
                for key, mask in selector.select(TICK):
                    assert key.data is poller
                    key.data(key.fd, mask)

            loop = PlainLoop(poller, turn, lambda: len(selector.get_map()) - 1)
            try:
                loop.run(scenario(loop))
                assert selector.get_key(reader).data == "the application's own"
            finally:
                poller.close()
                close(reader)
                close(writer)


# --- gevent ---------------------------------------------------------------------------------------------------------


class GeventLoop(Loop):
    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.poller = GeventPoller(on_error=self.errors.append)
        self._hub = hub

    @property
    def adapter(self) -> Adapter:
        return self.poller

    def watchers(self) -> int:
        return len(self.poller)


class GeventDriver(Driver):
    """The scenario runs in the main greenlet, on a hub with one of gevent's two loops."""

    def __init__(self, name: str, module: str) -> None:
        """:raises ImportError: gevent cannot use this loop here."""
        super().__init__(name)
        make_loop = importlib.import_module(module).loop
        # One for all tests: a libuv loop keeps some of its fds when it is destroyed. So it is made before any test.
        before = get_hub()
        set_hub(None)
        self.hub = Hub(make_loop(default=False))
        set_hub(before)

    def run(self, scenario: Callable[[Loop], Scenario]) -> None:
        before = get_hub()
        set_hub(self.hub)
        try:
            loop = GeventLoop(self.hub)
            try:
                for predicate in scenario(loop):
                    deadline = Deadline(predicate)
                    while not deadline.reached():
                        gevent.sleep(0.001)
                loop.check_nothing_left()
                gevent.sleep(0)
                assert loop.poller.idle
            finally:
                loop.poller.close()
        finally:
            set_hub(before)


def _gevent_drivers() -> list[Driver]:
    drivers: list[Driver] = [GeventDriver("gevent-libev", "gevent.libev.corecext")]
    with contextlib.suppress(ImportError):  # which is for those who have cffi
        drivers.append(GeventDriver("gevent-libuv", "gevent.libuv.loop"))
    return drivers


# --- Twisted --------------------------------------------------------------------------------------------------------


class TwistedDriver(Driver):
    """One of Twisted's reactors, turned by hand."""

    def __init__(self, name: str, module: str, reactor: str, *arguments: object) -> None:
        """:raises ImportError: Twisted is not installed."""
        super().__init__(name)
        # One for all tests, made before any of them: a reactor keeps its own fds as long as it exists.
        self._reactor: Any = getattr(importlib.import_module(module), reactor)(*arguments)

    def turn(self) -> None:
        self._reactor.iterate(TICK)

    def run(self, scenario: Callable[[Loop], Scenario]) -> None:
        from twisted.python import threadable

        from memifrt.poll.twisted import TwistedPoller

        reactor = self._reactor
        before = len(reactor.getReaders())
        loop = PlainLoop(
            poller := TwistedPoller(reactor, on_error=lambda error: loop.errors.append(error)),  # noqa: PLW0108
            self.turn,
            lambda: len(reactor.getReaders()) - before + len(reactor.getWriters()),
        )
        # What a reactor that runs says of itself.
        threadable.registerAsIOThread()
        reactor.running = True
        try:
            loop.run(scenario(loop))
        finally:
            reactor.running = False
            threadable.ioThread = None
            poller.close()


class TwistedAsyncioDriver(TwistedDriver):
    """Twisted's reactor on an asyncio loop. Its ``iterate`` takes its time, so a round of the loop is one here."""

    def __init__(self, name: str) -> None:
        """:raises ImportError: Twisted is not installed."""
        self._selector = selectors.EpollSelector()
        self._loop = asyncio.SelectorEventLoop(self._selector)
        super().__init__(name, "twisted.internet.asyncioreactor", "AsyncioSelectorReactor", self._loop)

    def turn(self) -> None:
        select.select([self._selector.fileno()], [], [], TICK)
        self._loop.call_soon(self._loop.stop)
        self._loop.run_forever()


#: The drivers whose loop polls with ``select.epoll``, which gevent's patches remove.
NEED_EPOLL = {"twisted-epoll", "twisted-asyncio"}


def _twisted_drivers() -> list[Driver]:
    with contextlib.suppress(ImportError):
        makers: dict[str, Callable[[], Driver]] = {
            "twisted-epoll": lambda: TwistedDriver("twisted-epoll", "twisted.internet.epollreactor", "EPollReactor"),
            "twisted-poll": lambda: TwistedDriver("twisted-poll", "twisted.internet.pollreactor", "PollReactor"),
            "twisted-select": lambda: TwistedDriver(
                "twisted-select", "twisted.internet.selectreactor", "SelectReactor"
            ),
            "twisted-asyncio": lambda: TwistedAsyncioDriver("twisted-asyncio"),
        }
        return [make() for name, make in makers.items() if not (PATCHED and name in NEED_EPOLL)]
    return []


# --- eventlet -------------------------------------------------------------------------------------------------------


class EventletDriver(Driver):
    """The scenario runs in the main green thread of this thread's hub."""

    def __init__(self, name: str) -> None:
        """:raises ImportError: eventlet is not installed."""
        super().__init__(name)
        self._eventlet: Any = importlib.import_module("eventlet")
        self._hub: Any = self._eventlet.hubs.get_hub()  # made before any test: it keeps an fd of its own
        self._eventlet.sleep(0)

    def run(self, scenario: Callable[[Loop], Scenario]) -> None:
        from memifrt.poll.eventlet import EventletPoller

        loop = PlainLoop(
            poller := EventletPoller(on_error=lambda error: loop.errors.append(error)),  # noqa: PLW0108
            lambda: self._eventlet.sleep(0.001),
            lambda: len(poller),
        )
        try:
            loop.run(scenario(loop))
        finally:
            poller.close()


def _eventlet_drivers() -> list[Driver]:
    """In a process of its own alone (see tests/poll/test_eventlet.py): eventlet's import makes every fork warn."""
    return [EventletDriver("eventlet")] if os.environ.get("MEMIFRT_TEST_EVENTLET") else []


# --- GLib and Qt ----------------------------------------------------------------------------------------------------


class GLibDriver(Driver):
    """GLib's default main context, turned by hand."""

    def __init__(self, name: str) -> None:
        """:raises ImportError: PyGObject is not installed."""
        super().__init__(name)
        self._glib: Any = importlib.import_module("gi.repository.GLib")
        self._context = self._glib.MainContext.default()
        self._context.iteration(False)  # before any test: the context keeps an fd of its own

    def run(self, scenario: Callable[[Loop], Scenario]) -> None:
        from memifrt.poll.glib import GLibPoller

        loop = PlainLoop(
            poller := GLibPoller(on_error=lambda error: loop.errors.append(error)),  # noqa: PLW0108
            lambda: self._context.iteration(True),
            lambda: len(poller),
        )
        tick = self._glib.timeout_add(int(1000 * TICK), lambda: True)
        try:
            loop.run(scenario(loop))
        finally:
            poller.close()
            self._glib.source_remove(tick)


class QtDriver(Driver):
    """The event loop of a QCoreApplication, turned by hand."""

    def __init__(self, name: str) -> None:
        """:raises ImportError: PySide6 is not installed."""
        super().__init__(name)
        core: Any = importlib.import_module("PySide6.QtCore")
        self._core = core
        # Made before any test: its loop keeps an fd of its own. And without GLib, whose default context is GLib's
        # tests' here. The program of docs/loops/qt.md runs with what Qt takes by itself.
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("QT_NO_GLIB", "1")
            self._application = core.QCoreApplication.instance() or core.QCoreApplication([])
        self._application.processEvents()

    def run(self, scenario: Callable[[Loop], Scenario]) -> None:
        from memifrt.poll.qt import QtPoller

        wait = self._core.QEventLoop.ProcessEventsFlag.WaitForMoreEvents
        loop = PlainLoop(
            poller := QtPoller(on_error=lambda error: loop.errors.append(error)),  # noqa: PLW0108
            lambda: self._application.processEvents(wait),
            lambda: len(poller),
        )
        tick = self._core.QTimer()
        tick.start(int(1000 * TICK))
        try:
            loop.run(scenario(loop))
        finally:
            poller.close()
            tick.stop()


#: Why a loop is not there, by the module that it needs.
MISSING = {
    "gi": "PyGObject is not installed: install pkg-config, libcairo2-dev and libgirepository1.0-dev (or -2.0-dev), "
    "delete .venv/.dev and run make again",
}


def _desktop_drivers() -> list[Driver]:
    drivers: list[Driver] = []
    with contextlib.suppress(ImportError):
        drivers.append(GLibDriver("glib"))
    with contextlib.suppress(ImportError):
        drivers.append(QtDriver("qt"))
    return drivers


#: Every loop of this module; see also :mod:`tests.lib.loops_async`.
DRIVERS: list[Driver] = [
    EpollDriver("internal"),
    *map(SelectorDriver, SELECTORS),
    *_gevent_drivers(),
    *_twisted_drivers(),
    *_desktop_drivers(),
    *_eventlet_drivers(),
]
