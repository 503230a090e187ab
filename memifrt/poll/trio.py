"""The hook in trio: an epoll set, and one task in a nursery that waits for it.

Owns the set, the task, and how many events to handle before trio's other tasks get a turn. Knows nothing of memif.

One task with a set is simpler and faster than a task for each fd. A removed fd leaves the set at once, without
cancelling a task, and many events need only one turn of the scheduler.
"""

from __future__ import annotations

import contextlib
import select
import threading

from memifrt.system.optional import Needs

with Needs("memifrt.poll.trio", "memifrt[trio]"):
    import trio

from memifrt.errors import ConfigError
from memifrt.poll.epoll import from_epoll, to_epoll
from memifrt.poll.hook import FdHandler
from memifrt.system import original_functions
from memifrt.system.forks import abandon_after_fork
from memifrt.types import FdEvent, check_range

#: The events that epoll reports without being asked.
_ERRORS = select.EPOLLERR | select.EPOLLHUP

#: The most events to handle before other tasks get a turn; see :data:`memifrt.poll.asyncio.DEFAULT_BATCH`.
DEFAULT_BATCH = 64


class RunCheck:
    """Checks that a call comes from inside the ``trio.run`` in which this object was made."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.current_thread().name

    def __call__(self, waiting: bool) -> None:
        """Check the caller.

        :param waiting: whether the call may wait. A call that does not wait is also allowed after the run has ended.
        :raises ConfigError: the caller is not in the run.
        """
        try:
            present = trio.lowlevel.current_trio_token()
        except RuntimeError:
            present = None
        if present is self._token or not (waiting or self._goes_on()):
            return
        raise ConfigError(
            f"this object belongs to the trio.run() of thread {self._thread!r}, but was used "
            + ("outside of trio" if present is None else "in another run")
            + f", in thread {threading.current_thread().name!r}: open an interface in the run that uses it, or pass "
            "the call to the object's run with trio.from_thread"
        )

    def _goes_on(self) -> bool:
        try:
            self._token.run_sync_soon(_do_nothing)
        except trio.RunFinishedError:
            return False
        return True


def _do_nothing() -> None:
    """Do nothing: scheduling this shows whether a run has ended."""


class TrioPoller:
    """Fds watched by a task in a nursery. The task runs while there are any fds.

    The task calls the handler, with one event at a time. An exception of the handler comes out of the nursery, and the
    poller then stops watching.

    :param nursery: the nursery of the task. The poller stops watching when it is cancelled.
    :param batch: the most events to handle before other tasks get a turn.
    """

    def __init__(self, nursery: trio.Nursery, *, batch: int = DEFAULT_BATCH) -> None:
        self._nursery = nursery
        self.check_owner = RunCheck()
        self._batch = check_range("batch", batch, 1, 1 << 30)
        self._handler: FdHandler | None = None
        #: The events of each fd, as an epoll mask.
        self._wanted: dict[int, int] = {}
        #: Fds that were removed after the current events were read: their events are stale.
        self._withdrawn: set[int] = set()
        self._epoll: original_functions.epoll | None = None
        self._scope = trio.CancelScope()
        abandon_after_fork(self._abandon)

    def __len__(self) -> int:
        """Return the number of watched fds."""
        return len(self._wanted)

    def start(self, handler: FdHandler) -> None:
        """Pass events to ``handler(fd, events)``, a runtime's ``control_fd_handler``.

        Call this before the next checkpoint.
        """
        self._handler = handler

    def check_caller(self) -> None:
        """Check that the caller may change the watched fds.

        :raises ConfigError: the run has not ended, and the caller is not in it.
        """
        self.check_owner(False)

    def update(self, fd: int, events: FdEvent) -> None:
        """Add, change or remove an fd: this is the hook, ``control_fd_update``.

        :raises ConfigError: the run has not ended, and the caller is not in it.
        :raises RuntimeError: the nursery is closed.
        """
        self.check_caller()
        wanted = to_epoll(events)
        if events & FdEvent.DEL:
            self._unwatch(fd)
        elif events & FdEvent.MOD:
            if self._epoll is not None:
                self._epoll.modify(fd, wanted)
            self._wanted[fd] = wanted
        else:
            self._opened().register(fd, wanted)
            self._wanted[fd] = wanted

    def close(self) -> None:
        """Stop watching all fds. A second call is harmless."""
        for fd in list(self._wanted):
            self._unwatch(fd)

    def _abandon(self) -> None:
        """Forget all fds in a forked child. Remove none of them: the parent shares our poll set and trio's."""
        self._wanted.clear()
        epoll, self._epoll = self._epoll, None
        if epoll is not None:
            epoll.close()  # this closes only the child's fd

    def _unwatch(self, fd: int) -> None:
        if self._wanted.pop(fd, None) is None:
            return
        self._withdrawn.add(fd)
        if self._epoll is not None:
            self._epoll.unregister(fd)
        # Wake a task of the application that waits for this fd, for example for a queue's fileno().
        _notify_closing(fd)
        if not self._wanted:
            self._close()

    def _opened(self) -> original_functions.epoll:
        """Return the set. Make it, and start the task that waits for it, if there is none."""
        if self._epoll is None:
            epoll, scope = original_functions.epoll(), trio.CancelScope()
            try:
                self._nursery.start_soon(self._run, epoll, scope, name="memifrt: fds")
            except BaseException:
                epoll.close()
                raise
            self._epoll, self._scope = epoll, scope
        return self._epoll

    def _close(self) -> None:
        epoll, self._epoll = self._epoll, None
        if epoll is not None:
            self._scope.cancel()
            _notify_closing(epoll.fileno())
            epoll.close()

    async def _run(self, epoll: original_functions.epoll, scope: trio.CancelScope) -> None:
        with scope:
            try:
                while not epoll.closed:
                    await trio.lowlevel.wait_readable(epoll.fileno())
                    self._handle_batch(epoll)
            finally:
                if self._epoll is epoll:
                    self._close()

    def _handle_batch(self, epoll: original_functions.epoll) -> None:
        """Handle a batch of events. The kernel lists ready fds in turn, so the remaining ones come first next time."""
        left = self._batch
        while left and not epoll.closed:
            ready = epoll.poll(0, left)
            if not ready:
                break
            left -= len(ready)
            self._withdrawn.clear()
            for fd, mask in ready:
                if fd not in self._withdrawn and fd in self._wanted:
                    self._handle(fd, from_epoll(mask & (self._wanted[fd] | _ERRORS)))

    def _handle(self, fd: int, events: FdEvent) -> None:
        if self._handler is None:
            raise ConfigError(f"fd {fd} is ready, but there is no handler: call start(handler) first")
        if events:
            self._handler(fd, events)


def _notify_closing(fd: int) -> None:
    with contextlib.suppress(RuntimeError):  # trio has ended
        trio.lowlevel.notify_closing(fd)
