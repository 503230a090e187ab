"""Threads of the operating system for tests, under gevent's patches as well."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from memifrt.system.original_functions import Lock, start_new_thread
from tests.lib.patched import PATCHED


class _RealThread:
    """What the tests use of ``threading.Thread``, which gevent's patches turn into a greenlet.

    A greenlet never runs beside a test that blocks or computes, so the test would wait for it in vain.
    """

    def __init__(
        self,
        target: Callable[..., object],
        name: str = "",
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        daemon: bool = False,
    ) -> None:
        self._name = name
        self._call = (target, tuple(args), dict(kwargs or {}))
        self._running = Lock()

    def start(self) -> None:
        self._running.acquire()
        start_new_thread(self._run, ())

    def _run(self) -> None:
        target, args, kwargs = self._call
        if self._name:
            threading.current_thread().name = self._name
        try:
            target(*args, **kwargs)
        finally:
            hub = importlib.import_module("gevent._hub_local").get_hub_if_exists()
            if hub is not None:  # a patched function made one for this thread: it keeps fds
                hub.destroy(destroy_loop=True)
            self._running.release()

    def join(self, timeout: float | None = None) -> None:
        if self._running.acquire(timeout=-1 if timeout is None else timeout):
            self._running.release()

    def is_alive(self) -> bool:
        return self._running.locked()


class _RealEvent:
    """What the tests use of ``threading.Event``, which with gevent's patches belongs to one thread's hub.

    A thread that waits for it blocks; no greenlet of the same thread runs meanwhile.
    """

    def __init__(self) -> None:
        self._unset = Lock()
        self._unset.acquire()
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        if not self._is_set:
            self._is_set = True
            self._unset.release()

    def wait(self, timeout: float | None = None) -> bool:
        if self._unset.acquire(timeout=-1 if timeout is None else timeout):
            self._unset.release()
        return self._is_set


if TYPE_CHECKING or not PATCHED:
    Event = threading.Event
    Thread = threading.Thread
else:
    Event = _RealEvent
    Thread = _RealThread
