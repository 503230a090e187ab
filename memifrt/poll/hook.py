"""The contract of the hook: one function that adds, changes and removes every fd.

Owns the registry of fds and their handlers, and the rule *unregister, then close*. Knows nothing of memif.

**Unregister, then close.** For each fd the hook gets one ADD (READ and/or WRITE, without MOD or DEL), any number of
MOD, and one DEL while the fd is still open. The DEL must come before the close, because an epoll set holds the open
file and not its number. A file that another process shares (the peer has our eventfds) stays open after our close. Its
events would continue under a number that may soon belong to another file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from memifrt.errors import ConfigError, ErrorCode, MemifError
from memifrt.types import FdEvent

#: ``control_fd_update(fd, events)``.
Hook = Callable[[int, FdEvent], object]
#: ``control_fd_handler(fd, events)``: a loop calls it with the events that are ready.
FdHandler = Callable[[int, FdEvent], object]
#: Called with the events that are ready.
Handler = Callable[[FdEvent], object]


class FdRegistry:
    """The fds of one runtime, their handlers, and the hook that watches them.

    :param hook: the hook. If it is a method of an adapter with a ``check_caller`` method, that method checks whether
        the current thread may change the watched fds.
    """

    def __init__(self, hook: Hook) -> None:
        self._hook = hook
        self._check_caller: Callable[[], object] = getattr(
            getattr(hook, "__self__", None), "check_caller", _allow_any_caller
        )
        #: The handler of each fd, for the dispatcher.
        self.handlers: dict[int, Handler] = {}
        self._events: dict[int, FdEvent] = {}

    def __len__(self) -> int:
        return len(self.handlers)

    def __contains__(self, fd: int) -> bool:
        return fd in self.handlers

    def check_caller(self) -> None:
        """Check that this thread may change the watched fds.

        Code that closes fds checks this first: if a loop still watches a closed fd, it may be ready there for ever.

        :raises ConfigError: the loop runs in another thread. Nothing was changed.
        """
        self._check_caller()

    def add(self, fd: int, events: FdEvent, handler: Handler) -> None:
        """Register an fd and its handler, and add the fd to the hook.

        :raises MemifError: ``CB_FDUPDATE`` if the hook raises; the fd is then not registered.
        """
        if fd in self.handlers:
            raise KeyError(f"fd {fd} is registered already")
        self.handlers[fd] = handler
        self._events[fd] = events
        try:
            self._call_hook(fd, events)
        except BaseException:
            self._forget(fd)
            raise

    def modify(self, fd: int, events: FdEvent) -> None:
        """Change the events of an fd. Do not call the hook if they stay the same."""
        if self._hook is _ignore_update:
            return
        if self._events[fd] != events:
            self._call_hook(fd, events | FdEvent.MOD)
            self._events[fd] = events

    def remove(self, fd: int) -> None:
        """Remove an fd, before it is closed. This is harmless if the fd is not registered.

        :raises ConfigError: the loop runs in another thread. Nothing was changed.
        :raises MemifError: ``CB_FDUPDATE`` if the hook raises. The fd is removed all the same.
        """
        if fd in self.handlers:
            self._check_caller()
            self._forget(fd)
            self._call_hook(fd, FdEvent.DEL)

    def remove_all(self) -> None:
        """Remove every fd.

        :raises MemifError: ``CB_FDUPDATE`` if the hook raises: the first such error. All fds are removed all the same.
        """
        failure: MemifError | None = None
        for fd in list(self.handlers):
            try:
                self.remove(fd)
            except MemifError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def dispatch(self, fd: int, events: FdEvent) -> bool:
        """Pass events to the handler of an fd. Return False for a stale event, of an fd that is not registered."""
        handler = self.handlers.get(fd)
        if handler is None:
            return False
        handler(events)
        return True

    def abandon(self) -> None:
        """Forget all fds without calling the hook, in a forked child: the parent shares the poll set."""
        self.handlers.clear()
        self._events.clear()
        self._hook = _ignore_update
        self._check_caller = _allow_any_caller

    def _forget(self, fd: int) -> None:
        self.handlers.pop(fd, None)
        self._events.pop(fd, None)  # a KeyboardInterrupt in add() may have come before it was set

    def _call_hook(self, fd: int, events: FdEvent) -> None:
        try:
            self._hook(fd, events)
        except Exception as error:
            message = f"control_fd_update({fd}, {events!r}) failed: {type(error).__name__}: {error}"
            if isinstance(error, ConfigError):
                raise ConfigError(message, ErrorCode.CB_FDUPDATE) from error
            raise MemifError(ErrorCode.CB_FDUPDATE, message) from error


def report(
    error: BaseException,
    on_error: Callable[[BaseException], object] | None,
    otherwise: Callable[[BaseException], object],
) -> None:
    """Report the exception of a callback. For adapters of loops that drop an fd when a callback raises.

    :param on_error: called with the exception, if it is not None.
    :param otherwise: called with the exception if there is no ``on_error``, and with an exception that ``on_error``
        raises.
    """
    try:
        if on_error is not None:
            on_error(error)
            return
    except Exception as worse:
        error = worse
    otherwise(error)


def call_excepthook(error: BaseException) -> None:
    """Report an exception with ``sys.excepthook``, which prints it."""
    sys.excepthook(type(error), error, error.__traceback__)


def _ignore_update(fd: int, events: FdEvent) -> None:
    """Do nothing: the hook in a forked child."""


def _allow_any_caller() -> None:
    """Allow every caller: the check for a hook that has none."""
