"""The hook's contract: every fd is announced, changed and withdrawn through one function.

Owns the registry of which fd belongs to whom, and the rule *unregister, then close*. Knows nothing of memif.

For each fd the hook sees one ADD (READ and/or WRITE, without MOD or DEL), any number of MOD, and one DEL while the
fd is still open. The last matters: an epoll set holds the open file, not the number. A file that others share (the
peer has our eventfds) survives our close, and its events would go on firing under a number that soon means another
file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from memifrt.errors import ConfigError, ErrorCode, MemifError
from memifrt.types import FdEvent

#: ``control_fd_update(fd, events)``.
Hook = Callable[[int, FdEvent], object]
#: ``control_fd_handler(fd, events)``: where a loop hands on what is ready.
FdHandler = Callable[[int, FdEvent], object]
#: Called with the events that are ready.
Handler = Callable[[FdEvent], object]


@dataclass(slots=True)
class _Registration:
    events: FdEvent
    handler: Handler


class FdRegistry:
    """The fds of one runtime, and the hook that is told about them.

    :param hook: if it is a method of an adapter with a ``check_caller`` method, that one tells whether the present
        thread may change what is watched.
    """

    def __init__(self, hook: Hook) -> None:
        self._hook = hook
        self._check_caller: Callable[[], object] = getattr(
            getattr(hook, "__self__", None), "check_caller", _let_everybody
        )
        self._registrations: dict[int, _Registration] = {}

    def __len__(self) -> int:
        return len(self._registrations)

    def __contains__(self, fd: int) -> bool:
        return fd in self._registrations

    def check_caller(self) -> None:
        """Check that this thread may change what is watched. What closes fds asks first: an fd that is closed while
        its loop goes on watching it may be ready there for ever.

        :raises ConfigError: the loop runs in another thread. Nothing has happened.
        """
        self._check_caller()

    def add(self, fd: int, events: FdEvent, handler: Handler) -> None:
        """Announce an fd.

        :raises MemifError: ``CB_FDUPDATE`` if the hook raises; the fd is then not registered.
        """
        if fd in self._registrations:
            raise KeyError(f"fd {fd} is registered already")
        self._registrations[fd] = _Registration(events, handler)
        try:
            self._tell(fd, events)
        except BaseException:
            del self._registrations[fd]
            raise

    def modify(self, fd: int, events: FdEvent) -> None:
        """Change what is waited for; nothing is said if nothing changes."""
        if self._hook is _tell_nobody:
            return
        registration = self._registrations[fd]
        if registration.events != events:
            self._tell(fd, events | FdEvent.MOD)
            registration.events = events

    def remove(self, fd: int) -> None:
        """Withdraw an fd, before it is closed; harmless if it was never announced.

        :raises ConfigError: the loop runs in another thread; nothing has happened.
        :raises MemifError: ``CB_FDUPDATE`` if the hook raises; the fd is withdrawn all the same.
        """
        if fd in self._registrations:
            self._check_caller()
            del self._registrations[fd]
            self._tell(fd, FdEvent.DEL)

    def remove_all(self) -> None:
        """Withdraw every fd that is left.

        :raises MemifError: ``CB_FDUPDATE``, the first, if the hook raises; all are withdrawn all the same.
        """
        failure: MemifError | None = None
        for fd in list(self._registrations):
            try:
                self.remove(fd)
            except MemifError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def dispatch(self, fd: int, events: FdEvent) -> bool:
        """Hand events to the fd's handler. A stale event, of an fd that is gone, is harmless: False."""
        registration = self._registrations.get(fd)
        if registration is None:
            return False
        registration.handler(events)
        return True

    def abandon(self) -> None:
        """Forget everything without a word to the hook: for a forked child, whose poll set is its parent's."""
        self._registrations.clear()
        self._hook = _tell_nobody
        self._check_caller = _let_everybody

    def _tell(self, fd: int, events: FdEvent) -> None:
        try:
            self._hook(fd, events)
        except Exception as error:
            message = f"control_fd_update({fd}, {events!r}) failed: {type(error).__name__}: {error}"
            if isinstance(error, ConfigError):
                raise ConfigError(message, ErrorCode.CB_FDUPDATE) from error
            raise MemifError(ErrorCode.CB_FDUPDATE, message) from error


def _tell_nobody(fd: int, events: FdEvent) -> None:
    """The hook of a forked child."""


def _let_everybody() -> None:
    """The check of a hook that cannot tell."""
