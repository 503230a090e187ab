"""A runtime whose events a thread handles, for programs without a loop: a test, scapy's prompt.

Owns the thread, in which alone the control side of the runtime then runs, and how others ask it to do something
there. Knows nothing of packets or peers.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import select
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from memifrt.errors import ErrorCode, ForkedError, MemifError, PollCancelled, os_error
from memifrt.runtime import Runtime
from memifrt.system.fds import OwnedFd
from memifrt.system.forks import abandon_after_fork
from memifrt.system.original_functions import poll, threads_are_patched

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger("memifrt")

_T = TypeVar("_T")


class Background:
    """A runtime in internal mode, and the daemon thread that handles its events from now on.

    Whatever belongs to the runtime's control thread (to create, delete or disconnect an interface, to set a callback)
    is done with :meth:`call`. Queues may be used anywhere. What a callback raises is logged and kept as
    :attr:`failure`; the thread goes on.

    :param close_runtime: whether the runtime is closed when the thread ends.
    :raises ConfigError: the runtime is in external mode: a loop drives it already.
    """

    def __init__(self, runtime: Runtime, *, close_runtime: bool = True) -> None:
        self.runtime = runtime
        #: The first exception that a callback raised.
        self.failure: BaseException | None = None
        # A thread that is none of gevent's must wait for itself; one that is a greenlet must let the others run.
        self._ready = select.poll() if threads_are_patched() else poll()
        self._ready.register(runtime.fileno(), select.POLLIN)
        self._wake = _Wake()
        self._ready.register(self._wake.fileno(), select.POLLIN)
        self._close_runtime = close_runtime
        self._requests: deque[tuple[Callable[[], object], Callable[[MemifError], object]]] = deque()
        self._users = 1
        self._stopping = self._ended = False
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name=f"events of {runtime.app_name}", daemon=True)
        _running.add(self)
        abandon_after_fork(self._abandon)
        self._thread.start()

    # --- asking the thread --------------------------------------------------------------------------------------

    def call(self, function: Callable[[], _T]) -> _T:
        """Call a function in the thread, between two events, and wait for what it returns.

        :raises MemifError: the thread has ended.
        :raises BaseException: what the function raises.
        """
        if threading.current_thread() is self._thread and self._is_ours():
            return function()
        done: Future[_T] = Future()
        self._ask(functools.partial(_fulfil, done, function), done.set_exception)
        return done.result()

    def post(self, function: Callable[[], object]) -> None:
        """Call a function in the thread some time soon; not at all if the thread has ended. Takes no lock that anybody
        waits under, and so may be called by a finalizer."""
        self._ask(function, lambda ended: None)

    def _ask(self, function: Callable[[], object], refuse: Callable[[MemifError], object]) -> None:
        self._requests.append((function, refuse))
        if self._is_ours():
            self._wake.up()
        if self._ended or not self._is_ours():  # after the append: who ends looks at the requests last
            self._refuse_all()

    def _is_ours(self) -> bool:
        """Whether this is the process that has the thread, and no forked child."""
        return self._pid == os.getpid()

    def _abandon(self) -> None:
        """In a forked child, which has no such thread: what was asked for there is the parent's to do."""
        self._ended = True
        self._requests.clear()
        self._wake.abandon()

    def _refuse_all(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                _, refuse = self._requests.popleft()
                refuse(
                    ForkedError(self._pid)
                    if not self._is_ours()
                    else MemifError(ErrorCode.INVAL_ARG, f"nobody handles the events of {self.runtime!r} any more")
                )

    # --- its users and its end ----------------------------------------------------------------------------------

    def retain(self) -> bool:
        """One more user, who calls :meth:`release`; False if the thread has ended."""
        try:
            return self.call(lambda: self._count(1) > 0)
        except MemifError:
            return False

    def release(self, *, wait: bool = True) -> None:
        """One user less (its creator is the first). With the last the thread ends, and ``wait`` waits for that."""
        if not wait:
            self.post(lambda: self._count(-1))
            return
        with contextlib.suppress(MemifError):  # it has ended
            self.call(lambda: self._count(-1))
        if self._stopping:
            self._join()

    def _count(self, change: int) -> int:
        if not self._stopping:
            self._users += change
            self._stopping = self._users == 0
        return 0 if self._stopping else self._users

    def close(self) -> None:
        """End the thread, whoever uses it, and wait for it; then the runtime is closed. Twice is harmless."""
        self.post(self._stop)
        self._join()

    def _stop(self) -> None:
        self._stopping = True

    def _join(self) -> None:
        if self._is_ours() and threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- in the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping and not self.runtime.closed:
                self._ready.poll()
                self._wake.drain()
                self._guarded(self._handle)
        finally:
            if self._close_runtime:
                self._guarded(self.runtime.close)
            self._ended = True
            self._refuse_all()
            self._wake.close()

    def _handle(self) -> None:
        while self._requests:
            function, _ = self._requests.popleft()
            self._guarded(function)
        if self._stopping or self.runtime.closed:
            return
        try:
            with contextlib.suppress(PollCancelled):  # nobody's poll but ours
                self.runtime.poll_event(0)
        except (OSError, MemifError):
            if not self.runtime.closed:  # by its owner, in another thread, just now
                raise

    def _guarded(self, function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:  # outcomes of pytest, and SystemExit, are no Exception
            self.failure = self.failure or error
            logger.exception("%r: a callback failed", self.runtime)


class _Wake:
    """An eventfd that makes the thread look. The lock keeps a late caller from writing to an fd that is closed, and
    whose number may be another file's; a finalizer may come in the middle of it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        try:
            self._fd = OwnedFd(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), "wake-up")
        except OSError as error:
            raise os_error("cannot make the wake-up fd", error) from error

    def fileno(self) -> int:
        return self._fd.fileno()

    def up(self) -> None:
        with self._lock:
            if not self._fd.closed:
                os.eventfd_write(self._fd.fileno(), 1)

    def abandon(self) -> None:
        """In a forked child: a thread that it does not have may hold the lock."""
        self._lock = threading.RLock()

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd.fileno())

    def close(self) -> None:
        with self._lock:
            self._fd.close()


def _fulfil(done: Future[_T], function: Callable[[], _T]) -> None:
    try:
        done.set_result(function())
    except BaseException as error:
        done.set_exception(error)


_running: weakref.WeakSet[Background] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Before daemon threads stop: peers hear goodbye, and no finalizer waits for a thread that will never run."""
    for background in list(_running):
        background.close()
