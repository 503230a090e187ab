"""The hook in an asyncio loop: ``add_reader`` and ``add_writer``, of asyncio's own loops and of uvloop's.

Owns which fds the loop watches, and how many of their events one round of the loop may handle. Knows nothing of memif.
"""

from __future__ import annotations

import asyncio
import itertools
import threading

from memifrt.errors import ConfigError
from memifrt.poll.hook import FdHandler
from memifrt.system.forks import abandon_after_fork
from memifrt.types import FdEvent, check_range

#: Events handled in one round of the loop. An event is one callback, some 20 us for a small burst that is answered: a
#: round of 64 takes a millisecond or two, however many interfaces are ready. Measured with 200 of them, others run as
#: punctually as with 16 and twice as punctually as with 256; the rate is the same.
DEFAULT_BATCH = 64
_NOTHING = FdEvent(0)


class LoopCheck:
    """Raises where a loop is used from outside: by another loop, or by another thread.

    :param loop: default: the running one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.loop = asyncio.get_running_loop() if loop is None else loop
        self._thread = threading.current_thread().name

    def __call__(self, waiting: bool) -> None:
        """Check the caller.

        :param waiting: whether the call could wait. One that cannot is right anywhere while the loop does not run.
        :raises ConfigError: the caller is not in the loop.
        """
        running = asyncio._get_running_loop()
        if running is self.loop or not (waiting or self.loop.is_running()):
            return
        raise ConfigError(
            f"this belongs to the asyncio loop of thread {self._thread!r}, but was used "
            + ("outside of any loop" if running is None else "in another loop")
            + f", in thread {threading.current_thread().name!r}: open an interface in this loop, or have the call run "
            "in its own with asyncio.run_coroutine_threadsafe() or loop.call_soon_threadsafe()"
        )


class AsyncioPoller:
    """Fds watched by a running asyncio loop.

    Events go to the handler from the loop itself, one at a time; what the handler raises goes to the loop's exception
    handler. Level-triggered: an event that nobody has dealt with comes again in the next round.

    :param loop: default: the running one.
    :param batch: events that one round of the loop may handle; the others wait for the next one, in their order.
    :raises RuntimeError: no loop runs, and none is given.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None, *, batch: int = DEFAULT_BATCH) -> None:
        self.check_owner = LoopCheck(loop)
        self._loop = self.check_owner.loop
        self._batch = check_range("batch", batch, 1, 1 << 30)
        self._handler: FdHandler | None = None
        #: What is to be watched, and what the loop watches.
        self._wanted: dict[int, FdEvent] = {}
        self._watched: dict[int, FdEvent] = {}
        self._modified: set[int] = set()
        #: Events that may still be handled before the loop goes round; and whether it will tell us that it has.
        self._left = self._batch
        self._round_planned = False
        #: Fds that were ready in vain, the oldest first; and those among them for which this round keeps room.
        self._postponed: dict[int, None] = {}
        self._reserved: set[int] = set()
        abandon_after_fork(self._abandon)

    def __len__(self) -> int:
        """How many fds are watched."""
        return len(self._wanted)

    def start(self, handler: FdHandler) -> None:
        """Where events go: a runtime's ``control_fd_handler``. To be called before the loop goes on."""
        self._handler = handler

    def check_caller(self) -> None:
        """Check that what is watched may be changed from here.

        :raises ConfigError: the loop runs, and this is not called in it.
        """
        self.check_owner(False)

    def update(self, fd: int, events: FdEvent) -> None:
        """The hook.

        :raises ConfigError: the loop runs, and this is not called in it.
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
        """Watch nothing any more. Closing twice is harmless."""
        for fd in list(self._wanted):
            self._unwatch(fd)

    def _abandon(self) -> None:
        """In a forked child: the loop's poll set is the parent's too. Take nothing out of it, and hand nothing on."""
        for fds in (self._wanted, self._watched, self._postponed):
            fds.clear()
        self._modified.clear()
        self._reserved.clear()

    def _modify(self, fd: int, wanted: FdEvent) -> None:
        """With the next round: libuv forgets an event that it has for an fd when what the fd is watched for changes,
        and a handler that changed another's fd in every round would starve it."""
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
        if self._loop.is_closed():  # and has forgotten every fd
            return
        if events & FdEvent.READ:
            self._loop.remove_reader(fd)
        if events & FdEvent.WRITE:
            self._loop.remove_writer(fd)

    def _ready(self, fd: int, event: FdEvent) -> None:
        """Handle the event, if this round has room for it; else its fd will be ready again in the next one."""
        event &= self._wanted.get(fd, _NOTHING)
        if not event:  # not waited for any more
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
        """Runs before the events of a new round: those that have waited longest get room in it first."""
        self._round_planned = False
        self._left = self._batch
        for fd in self._reserved:  # there was room, but the fd was not ready any more
            del self._postponed[fd]
        self._reserved = set(itertools.islice(self._postponed, self._batch))

    def _handle(self, fd: int, event: FdEvent) -> None:
        handler = self._handler
        if handler is None:
            raise ConfigError(f"fd {fd} is ready, but nobody is told: start(handler) was not called")
        try:
            handler(fd, event)
        except Exception as error:
            # Said here, and not left to the loop: it would name its handle, and not what this is about.
            self._loop.call_exception_handler(
                {"message": f"memifrt: exception while handling {event!r} of fd {fd}", "exception": error}
            )
