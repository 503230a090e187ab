"""The hook in an asyncio loop, with ``add_reader`` and ``add_writer``. Works with asyncio's own loops and uvloop.

Owns which fds the loop watches, and how many of their events one round of the loop handles. Knows nothing of memif.
"""

from __future__ import annotations

import asyncio
import itertools
import threading

from memifrt.errors import ConfigError
from memifrt.poll.hook import FdHandler
from memifrt.system.forks import abandon_after_fork
from memifrt.types import FdEvent, check_range

#: The most events to handle in one round of the loop. An event is one callback, about 20 us for a small burst with its
#: replies, so 64 of them take a millisecond or two. Measured with 200 ready interfaces: other tasks are delayed as
#: little as with 16, and half as much as with 256. The packet rate is the same.
DEFAULT_BATCH = 64
_NOTHING = FdEvent(0)


class LoopCheck:
    """Checks that a call comes from inside a loop, and not from another loop or thread.

    :param loop: the loop; by default the running one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.loop = asyncio.get_running_loop() if loop is None else loop
        self._thread = threading.current_thread().name

    def __call__(self, waiting: bool) -> None:
        """Check the caller.

        :param waiting: whether the call may wait. A call that does not wait is also allowed while the loop is stopped.
        :raises ConfigError: the caller is not in the loop.
        """
        running = asyncio._get_running_loop()
        if running is self.loop or not (waiting or self.loop.is_running()):
            return
        raise ConfigError(
            f"this object belongs to the asyncio loop of thread {self._thread!r}, but was used "
            + ("outside of any loop" if running is None else "in another loop")
            + f", in thread {threading.current_thread().name!r}: open an interface in the loop that uses it, or pass "
            "the call to the object's loop with asyncio.run_coroutine_threadsafe() or loop.call_soon_threadsafe()"
        )


class AsyncioPoller:
    """Fds watched by a running asyncio loop.

    The loop calls the handler, with one event at a time. An exception of the handler goes to the exception handler of
    the loop. Events are level-triggered: an event that was not handled comes again in the next round.

    :param loop: the loop; by default the running one.
    :param batch: the most events to handle in one round of the loop. The others wait for the next round, in order.
    :raises RuntimeError: no loop is given, and none is running.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None, *, batch: int = DEFAULT_BATCH) -> None:
        self.check_owner = LoopCheck(loop)
        self._loop = self.check_owner.loop
        self._batch = check_range("batch", batch, 1, 1 << 30)
        self._handler: FdHandler | None = None
        #: The events to watch, and the events that the loop watches now.
        self._wanted: dict[int, FdEvent] = {}
        self._watched: dict[int, FdEvent] = {}
        self._modified: set[int] = set()
        #: Events that this round may still handle; and whether _next_round is scheduled.
        self._left = self._batch
        self._round_planned = False
        #: Fds that had to wait for another round, the oldest first; and those that have a place in this round.
        self._postponed: dict[int, None] = {}
        self._reserved: set[int] = set()
        abandon_after_fork(self._abandon)

    def __len__(self) -> int:
        """Return the number of watched fds."""
        return len(self._wanted)

    def start(self, handler: FdHandler) -> None:
        """Pass events to ``handler(fd, events)``, a runtime's ``control_fd_handler``.

        Call this before the loop goes on.
        """
        self._handler = handler

    def check_caller(self) -> None:
        """Check that the caller may change the watched fds.

        :raises ConfigError: the loop is running, and the caller is not in it.
        """
        self.check_owner(False)

    def update(self, fd: int, events: FdEvent) -> None:
        """Add, change or remove an fd: this is the hook, ``control_fd_update``.

        :raises ConfigError: the loop is running, and the caller is not in it.
        :raises RuntimeError: the loop is closed, or uses this fd itself.
        """
        self.check_caller()
        if events & FdEvent.DEL:
            self._unwatch(fd)
        elif events & FdEvent.MOD:
            self._modify(fd, events & (FdEvent.READ | FdEvent.WRITE))
        else:
            self._watch(fd, events & (FdEvent.READ | FdEvent.WRITE))

    def close(self) -> None:
        """Stop watching all fds. A second call is harmless."""
        for fd in list(self._wanted):
            self._unwatch(fd)

    def _abandon(self) -> None:
        """Forget all fds in a forked child. Remove none of them: the parent shares the poll set of the loop."""
        for fds in (self._wanted, self._watched, self._postponed):
            fds.clear()
        self._modified.clear()
        self._reserved.clear()

    def _modify(self, fd: int, wanted: FdEvent) -> None:
        """Change the events of an fd in the next round.

        libuv drops a pending event of an fd when its watched events change. A handler that changed another fd in every
        round would starve that fd.
        """
        self._wanted[fd] = wanted
        if not self._modified:
            self._loop.call_soon(self._apply_modified)
        self._modified.add(fd)

    def _apply_modified(self) -> None:
        modified, self._modified = self._modified, set()
        for fd in modified & self._wanted.keys():
            self._watch(fd, self._wanted[fd])

    def _watch(self, fd: int, wanted: FdEvent) -> None:
        present = self._watched.get(fd, _NOTHING)
        added, removed = wanted & ~present, present & ~wanted
        if added & FdEvent.READ:
            self._loop.add_reader(fd, self._ready, fd, FdEvent.READ)
        try:
            if added & FdEvent.WRITE:
                self._loop.add_writer(fd, self._ready, fd, FdEvent.WRITE)
        except BaseException:
            self._remove(fd, added & FdEvent.READ)
            raise
        self._wanted[fd] = self._watched[fd] = wanted
        self._remove(fd, removed)

    def _unwatch(self, fd: int) -> None:
        self._remove(fd, self._watched.pop(fd, _NOTHING))
        self._wanted.pop(fd, None)
        self._postponed.pop(fd, None)
        self._reserved.discard(fd)

    def _remove(self, fd: int, events: FdEvent) -> None:
        if self._loop.is_closed():  # a closed loop watches no fd
            return
        if events & FdEvent.READ:
            self._loop.remove_reader(fd)
        if events & FdEvent.WRITE:
            self._loop.remove_writer(fd)

    def _ready(self, fd: int, event: FdEvent) -> None:
        """Handle an event if this round has a place for it. Otherwise the fd is ready again in the next round."""
        wanted = self._wanted.get(fd, _NOTHING)
        if wanted is not event:  # combining enum members takes a microsecond
            event &= wanted
            if not event:  # this event is no longer watched
                return
        if fd in self._reserved:
            self._reserved.discard(fd)
            del self._postponed[fd]
        elif self._left <= len(self._reserved):
            self._postponed.setdefault(fd)
            self._plan_round()
            return
        self._left -= 1
        if not self._left:
            self._plan_round()
        self._handle(fd, event)

    def _plan_round(self) -> None:
        if not self._round_planned:
            self._round_planned = True
            self._loop.call_soon(self._next_round)

    def _next_round(self) -> None:
        """Start a round, before its events come. Reserve places for the fds that have waited longest."""
        self._round_planned = False
        self._left = self._batch
        for fd in self._reserved:  # these had a place, but were no longer ready
            del self._postponed[fd]
        self._reserved = set(itertools.islice(self._postponed, self._batch))

    def _handle(self, fd: int, event: FdEvent) -> None:
        handler = self._handler
        if handler is None:
            raise ConfigError(f"fd {fd} is ready, but there is no handler: call start(handler) first")
        try:
            handler(fd, event)
        except Exception as error:
            # Report it here: the loop's own message would name its handle, but not the fd and the event.
            self._loop.call_exception_handler(
                {"message": f"memifrt: exception while handling {event!r} of fd {fd}", "exception": error}
            )
