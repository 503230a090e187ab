"""memif in asyncio: interfaces with calls to await, in asyncio's own loops and in uvloop::

    async with memifrt.asyncio.open_interface(socket="/run/vpp/memif.sock", role="slave") as interface:
        await interface.wait_connected()
        async for burst in interface.bursts():
            await interface.send([answer(bytes(packet)) for packet in burst.packets()])

Owns how the steps of :mod:`memifrt.waiting.steps` are awaited, and closes what a program opens. Knows nothing of rings
or messages.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, TypeVar

from memifrt.options import DEFAULT_APP_NAME, RuntimeOptions
from memifrt.poll.asyncio import DEFAULT_BATCH as DEFAULT_EVENTS
from memifrt.poll.asyncio import AsyncioPoller, LoopCheck
from memifrt.runtime import OpenArguments, Runtime
from memifrt.waiting.async_interface import AsyncInterface, Bursts
from memifrt.waiting.base_interface import interface_arguments, split_arguments
from memifrt.waiting.steps import DEFAULT_BATCH, Waiting
from memifrt.waiting.wakeup import Steps, Wait

if TYPE_CHECKING:
    from typing_extensions import Unpack


T = TypeVar("T")


@contextlib.asynccontextmanager
async def open_runtime(
    app_name: str = DEFAULT_APP_NAME,
    *,
    batch: int = DEFAULT_EVENTS,
    **options: Unpack[RuntimeOptions],
) -> AsyncIterator[Runtime]:
    """Make a runtime in the running loop, for several interfaces. It is closed at the end.

    Exceptions of the callbacks of its interfaces go to the loop's exception handler.

    :param app_name: the name that peers see, at most 31 bytes.
    :param batch: the most events of fds to handle in one round of the loop. The others wait for the next round.
    :param options: as for :class:`memifrt.Runtime`.
    :raises ConfigError: an argument is wrong.
    """
    poller = AsyncioPoller(batch=batch)
    with Runtime(app_name, control_fd_update=poller.update, **options) as runtime:
        poller.start(runtime.control_fd_handler)
        yield runtime


@contextlib.asynccontextmanager
async def open_interface(
    *,
    runtime: Runtime | None = None,
    reconnect: bool = False,
    batch: int = DEFAULT_BATCH,
    **options: Unpack[OpenArguments],
) -> AsyncIterator[AsyncioInterface]:
    """Make an interface in the running loop. It is deleted at the end: callers that still wait get ``Disconnected``.

    :param runtime: a runtime of :func:`open_runtime`, which several interfaces may share. By default the interface gets
        its own, with ``app_name`` and the runtime's options in ``options``.
    :param reconnect: after a disconnect, calls wait for the next peer (True) or raise ``Disconnected`` (False).
    :param batch: the number of packets after which other tasks get a turn, even if no call had to wait.
    :param options: the options of :meth:`memifrt.Runtime.create_interface`, and those of :class:`memifrt.Runtime` if
        the interface gets its own runtime. ``on_interrupt`` is called once for each kick. It is not called again for
        packets that it leaves in the ring: ``recv`` returns them.
    :raises ConfigError: an argument is wrong, or the id is taken on this socket.
    :raises MemifOSError: a master cannot listen.
    """
    async with contextlib.AsyncExitStack() as stack:
        if runtime is None:
            app_name, own, arguments = split_arguments(options)
            runtime = await stack.enter_async_context(open_runtime(app_name, **own))
        else:
            arguments = interface_arguments(runtime, options)
        interface = AsyncioInterface(
            Waiting(runtime, _Signal, arguments, reconnect=reconnect, batch=batch, check_owner=LoopCheck())
        )
        stack.callback(interface.delete)
        yield interface


class _Signal:
    """Wakes one task."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def set(self) -> None:
        if not self._future.done():  # done if it was set before, or if its task was cancelled
            self._future.set_result(None)

    async def wait(self, timeout: float | None) -> None:
        if timeout is None:
            await self._future
            return
        timer = self._future.get_loop().call_later(timeout, self.set)
        try:
            await self._future
        finally:
            timer.cancel()


class AsyncioInterface(AsyncInterface["_Signal"]):
    """An interface with calls to await in the loop's own thread. Made by :func:`open_interface`."""

    @staticmethod
    async def _drive(steps: Steps[_Signal, T]) -> T:
        """Await what the steps wait for, and return their result."""
        try:
            while True:
                request = next(steps)
                if isinstance(request, Wait):
                    await request.signal.wait(request.timeout)
                else:
                    await asyncio.sleep(0)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            steps.close()


__all__ = ["AsyncioInterface", "Bursts", "open_interface", "open_runtime"]
