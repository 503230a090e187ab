"""memifrt in GLib's main context and in Qt's event loop. What every adapter does is in :mod:`tests.poll.test_loops`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from memifrt import ConfigError, FdEvent, Runtime
from memifrt.system.original_functions import close
from tests.lib import loops
from tests.lib.loops import Driver, Loop, Scenario
from tests.lib.support import DEADLINE
from tests.lib.threads import Event, Thread

NAMES = ("glib", "qt")


@pytest.fixture(params=NAMES)
def driver(request: pytest.FixtureRequest) -> Driver:
    for driver in loops.DRIVERS:
        if driver.name == request.param:
            return driver
    pytest.skip(loops.MISSING.get("gi", "") if request.param == "glib" else "PySide6 is not installed")


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.eventfd(1, os.EFD_NONBLOCK)
    yield fd
    close(fd)


def test_an_interrupt_in_a_callback_is_printed_and_memif_goes_on(
    driver: Driver, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither loop lets it out. GLib removes the source whose callback raised it."""
    printed: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: printed.append(kind))
    calls: list[FdEvent] = []

    def scenario(loop: Loop) -> Scenario:
        def handler(fd: int, events: FdEvent) -> None:
            calls.append(events)
            if len(calls) < 3:
                raise KeyboardInterrupt
            os.eventfd_read(fd)

        loop.start(handler)
        loop.update(fd, FdEvent.READ)
        yield lambda: len(calls) == 3
        loop.update(fd, FdEvent.DEL)
        assert printed == [KeyboardInterrupt] * 2

    driver.run(scenario)


def test_what_nobody_takes_goes_to_the_excepthook(driver: Driver, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[str] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: printed.append(str(error)))

    def scenario(loop: Loop) -> Scenario:
        adapter: Any = loop.adapter
        for adapter._on_error in (None, fail_again):
            calls: list[FdEvent] = []

            def handler(fd: int, events: FdEvent, calls: list[FdEvent] = calls) -> None:
                calls.append(events)
                if len(calls) > 1:
                    loop.update(fd, FdEvent.DEL)
                raise ValueError("of a callback")

            loop.start(handler)
            loop.update(fd, FdEvent.READ)
            yield lambda calls=calls: len(calls) > 1  # type: ignore[misc]
        assert printed == ["of a callback"] * 2 + ["of on_error"] * 2

    driver.run(scenario)


def fail_again(error: BaseException) -> None:
    raise LookupError("of on_error")


def test_events_before_the_start_are_not_lost(driver: Driver, fd: int) -> None:
    calls: list[FdEvent] = []

    def scenario(loop: Loop) -> Scenario:
        loop.update(fd, FdEvent.READ)
        turns = iter(range(3))
        yield lambda: next(turns, None) is None
        loop.start(lambda fd, events: calls.append(events))
        yield lambda: calls
        loop.update(fd, FdEvent.DEL)

    driver.run(scenario)


def test_a_main_context_that_runs_in_a_thread_refuses_the_others() -> None:
    glib: Any = pytest.importorskip("gi.repository.GLib", reason=loops.MISSING["gi"])
    from memifrt.poll.glib import GLibPoller

    poller = GLibPoller()
    runtime = Runtime(control_fd_update=poller.update)
    poller.start(runtime.control_fd_handler)
    main = glib.MainLoop()
    thread = Thread(target=main.run)
    running = Event()
    glib.idle_add(running.set)
    thread.start()
    try:
        assert running.wait(DEADLINE)
        with pytest.raises(ConfigError, match=r"default main context, which another thread runs.*GLib\.idle_add"):
            runtime.close()
        assert not runtime.closed
        glib.idle_add(runtime.close)
    finally:
        glib.idle_add(main.quit)
        thread.join(DEADLINE)
    assert len(poller) == 0


def test_qt_s_event_loop_is_there_before_the_poller() -> None:
    pytest.importorskip("PySide6.QtCore", reason="PySide6 is not installed (pip install -e '.[dev]')")
    from memifrt.poll.qt import QtPoller

    raised: list[BaseException] = []

    def make() -> None:
        try:
            QtPoller()
        except ConfigError as error:
            raised.append(error)

    thread = Thread(target=make, name="without Qt")
    thread.start()
    thread.join()
    assert "there is no Qt event loop in thread 'without Qt': make a QCoreApplication" in str(raised[0])
