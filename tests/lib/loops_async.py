"""The loops of :mod:`tests.lib.loops` whose scenarios run in a task: asyncio, uvloop, trio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import trio
import trio.testing
import uvloop

from memifrt import FdEvent
from memifrt.poll.asyncio import AsyncioPoller
from memifrt.poll.trio import TrioPoller
from tests.lib.loops import Adapter, Deadline, Driver, Handler, Loop, Scenario
from tests.lib.patched import PATCHED

#: Seconds between two looks at what a scenario waits for.
_TICK = 0.001


class AsyncioLoop(Loop):
    """What callbacks raise comes through the loop's exception handler."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        loop.set_exception_handler(self._on_error)
        self._loop = loop
        self._before = self._selected()
        self.poller = AsyncioPoller(loop)

    @property
    def adapter(self) -> Adapter:
        return self.poller

    def watchers(self) -> int:
        selected = self._selected()
        return len(self.poller) if selected is None else selected - (self._before or 0)

    def _selected(self) -> int | None:
        """The fds in the selector of an asyncio loop; uvloop shows nothing of the kind."""
        selector = getattr(self._loop, "_selector", None)
        return None if selector is None else len(selector.get_map())

    def _on_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.errors.append(context["exception"])


class AsyncioDriver(Driver):
    """The scenario runs in a task of a new loop, in asyncio's debug mode."""

    def __init__(self, name: str, make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        super().__init__(name)
        self._make_loop = make_loop

    def run(self, scenario: Callable[[Loop], Scenario]) -> None:
        loop = self._make_loop()
        try:
            loop.set_debug(True)
            loop.run_until_complete(self._main(AsyncioLoop(loop), scenario))
        finally:
            loop.close()

    async def _main(self, loop: AsyncioLoop, scenario: Callable[[Loop], Scenario]) -> None:
        try:
            for predicate in scenario(loop):
                deadline = Deadline(predicate)
                while not deadline.reached():
                    await asyncio.sleep(_TICK)
            loop.check_nothing_left()
        finally:
            loop.poller.close()


class TrioLoop(Loop):
    """What callbacks raise would come out of the nursery and end the scenario with it: it is taken on its way there."""

    def __init__(self, nursery: trio.Nursery) -> None:
        super().__init__()
        self._nursery = nursery
        self._others = len(nursery.child_tasks)
        self.poller = TrioPoller(nursery)

    @property
    def adapter(self) -> Adapter:
        return self.poller

    def start(self, handler: Handler) -> None:
        def guarded(fd: int, events: FdEvent) -> None:
            try:
                handler(fd, events)
            except Exception as error:
                self.errors.append(error)

        super().start(guarded)

    def watchers(self) -> int:
        return len(self.poller)

    def check_nothing_left(self) -> None:
        super().check_nothing_left()
        assert len(self._nursery.child_tasks) == self._others


class TrioDriver(Driver):
    """The scenario runs in trio's main task."""

    def run(self, scenario: Callable[[Loop], Scenario]) -> None:
        trio.run(self._main, scenario)

    async def _main(self, scenario: Callable[[Loop], Scenario]) -> None:
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            loop = TrioLoop(nursery)
            try:
                for predicate in scenario(loop):
                    deadline = Deadline(predicate)
                    while not deadline.reached():
                        await trio.sleep(_TICK)
                await trio.testing.wait_all_tasks_blocked()  # tasks that were stopped end with their next step
                loop.check_nothing_left()
            except Exception as error:  # kept from the nursery, which would make a group of it
                failure = error
            finally:
                loop.poller.close()
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure


# libuv makes a pipe for signals with the first loop of a process, and keeps it: no test is to blame for it.
uvloop.new_event_loop().close()

#: Every loop of this module.
DRIVERS: list[Driver] = [
    AsyncioDriver("asyncio", asyncio.SelectorEventLoop),
    AsyncioDriver("uvloop", uvloop.new_event_loop),
    # trio does not run under gevent's patches, which remove select.epoll.
    *([] if PATCHED else [TrioDriver("trio")]),
]
