"""Handle the events of a runtime in a thread, for programs without a loop: a test, scapy's prompt.

Owns the thread and the requests of other threads to it. The control side of the runtime runs only in this thread. Knows
nothing of packets or peers.
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
from memifrt.system.not_copied import NotCopied
from memifrt.system.original_functions import poll, threads_are_patched

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger("memifrt")

_T = TypeVar("_T")


class Background(NotCopied):
    """A daemon thread that handles the events of a runtime in internal mode.

    Use :meth:`call` for everything that belongs to the control thread of the runtime: to create, delete or disconnect
    an interface, or to set a callback. Any thread may use queues. If a callback raises, the thread logs the exception,
    keeps the first one as :attr:`failure`, and continues.

    :param close_runtime: whether to close the runtime when the thread ends.
    :raises ConfigError: the runtime is in external mode.
    """

    def __init__(self, runtime: Runtime, *, close_runtime: bool = True) -> None:
        self.runtime = runtime
        #: The first exception that a callback raised.
        self.failure: BaseException | None = None
        # A real thread needs the kernel's poll(). If gevent turned threads into greenlets, its poll() lets others run.
        self._ready = select.poll() if threads_are_patched() else poll()
        # A copy, because the owner may close the runtime while we poll: gevent's libev aborts the process if a watched
        # fd is closed.
        self._events = _copy_fd(runtime.fileno())
        self._ready.register(self._events.fileno(), select.POLLIN)
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

    # --- requests to the thread ---------------------------------------------------------------------------------

    def call(self, function: Callable[[], _T]) -> _T:
        """Call a function in the thread, between two events, and return its result.

        :raises MemifError: the thread has ended.
        :raises BaseException: the exception that the function raised.
        """
        if threading.current_thread() is self._thread and self._is_ours():
            return function()
        done: Future[_T] = Future()
        self._ask(functools.partial(_fulfil, done, function), done.set_exception)
        return done.result()

    def post(self, function: Callable[[], object]) -> None:
        """Ask the thread to call a function, and do not wait for it.

        If the thread has ended, the function is not called. A finalizer may use this: it takes no lock that is held
        while a thread waits.
        """
        self._ask(function, lambda ended: None)

    def _ask(self, function: Callable[[], object], refuse: Callable[[MemifError], object]) -> None:
        self._requests.append((function, refuse))
        if self._is_ours():
            self._wake.up()
        if self._ended or not self._is_ours():  # after the append: a thread that ends refuses requests last
            self._refuse_all()

    def _is_ours(self) -> bool:
        """Return whether this process has the thread; a forked child does not."""
        return self._pid == os.getpid()

    def _abandon(self) -> None:
        """Forget all requests in a forked child, which has no such thread; the parent handles them."""
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
                    else MemifError(ErrorCode.INVAL_ARG, f"the thread for the events of {self.runtime!r} has ended")
                )

    # --- users and end ------------------------------------------------------------------------------------------

    def retain(self) -> bool:
        """Add a user, which must call :meth:`release`. Return False if the thread has ended."""
        try:
            return self.call(lambda: self._count(1) > 0)
        except MemifError:
            return False

    def release(self, *, wait: bool = True) -> None:
        """Remove a user; the creator is the first one. The thread ends when the last user is removed.

        :param wait: whether to wait for that end.
        """
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
        """End the thread even if it has other users, and wait for its end. A second call is harmless."""
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
            self._events.close()

    def _handle(self) -> None:
        while self._requests:
            function, _ = self._requests.popleft()
            self._guarded(function)
        if self._stopping or self.runtime.closed:
            return
        try:
            with contextlib.suppress(PollCancelled):  # a cancel cannot be meant for another poll
                self.runtime.poll_event(0)
        except (OSError, MemifError):
            if not self.runtime.closed:  # its owner may close it in another thread at this moment
                raise

    def _guarded(self, function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:  # SystemExit and the outcomes of pytest do not derive from Exception
            self.failure = self.failure or error
            logger.exception("%r: a callback failed", self.runtime)


class _Wake:
    """An eventfd that wakes the thread.

    The lock keeps a late caller from writing to the fd after it is closed, when its number may belong to another file.
    It is reentrant because a finalizer may run while the same thread holds it.
    """

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
        """Replace the lock in a forked child: a thread that exists only in the parent may hold it."""
        self._lock = threading.RLock()

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd.fileno())

    def close(self) -> None:
        with self._lock:
            self._fd.close()


def _copy_fd(fd: int) -> OwnedFd:
    try:
        return OwnedFd(os.dup(fd), "events of a runtime")
    except OSError as error:
        raise os_error("cannot copy the fd of the runtime", error) from error


def _fulfil(done: Future[_T], function: Callable[[], _T]) -> None:
    try:
        done.set_result(function())
    except BaseException as error:
        done.set_exception(error)


_running: weakref.WeakSet[Background] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """End all threads before the interpreter stops daemon threads.

    Peers then get a DISCONNECT, and no finalizer waits for a thread that has been stopped.
    """
    for background in list(_running):
        background.close()
