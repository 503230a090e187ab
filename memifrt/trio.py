"""memif in trio: interfaces with calls to await, as in :mod:`memifrt.asyncio`::

    async with memifrt.trio.open_interface(socket="/run/vpp/memif.sock", role="slave") as interface:
        await interface.wait_connected()
        async for burst in interface.bursts():
            await interface.send([answer(bytes(packet)) for packet in burst.packets()])

Owns how the steps of :mod:`memifrt.waiting.steps` are awaited, and closes what a program opens. Knows nothing of rings
or messages.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, TypeVar

from memifrt.system.optional import Needs

with Needs("memifrt.trio", "memifrt[trio]"):
    import trio

from memifrt.options import DEFAULT_APP_NAME, RuntimeOptions
from memifrt.poll.trio import DEFAULT_BATCH as DEFAULT_EVENTS
from memifrt.poll.trio import RunCheck, TrioPoller
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
    """Make a runtime in trio, for several interfaces. It is closed at the end.

    Its tasks run in their own nursery. An exception of a callback cancels the block and is raised from it, in a group
    of exceptions as from any nursery. An exception of the block itself is raised without a group.

    :param app_name: the name that peers see, at most 31 bytes.
    :param batch: the most events of fds to handle in one round of the scheduler. The others wait for the next round.
    :param options: as for :class:`memifrt.Runtime`.
    :raises ConfigError: an argument is wrong.
    """
    failure: Exception | KeyboardInterrupt | SystemExit | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                poller = TrioPoller(nursery, batch=batch)
                with Runtime(app_name, control_fd_update=poller.update, **options) as runtime:
                    poller.start(runtime.control_fd_handler)
                    yield runtime
            except (Exception, KeyboardInterrupt, SystemExit) as error:
                failure = error  # hide it from the nursery, which would put it into a group
            nursery.cancel_scope.cancel()
    finally:
        if failure is not None:
            raise failure


@contextlib.asynccontextmanager
async def open_interface(
    *,
    runtime: Runtime | None = None,
    reconnect: bool = False,
    batch: int = DEFAULT_BATCH,
    **options: Unpack[OpenArguments],
) -> AsyncIterator[TrioInterface]:
    """Make an interface in trio. It is deleted at the end: callers that still wait get ``Disconnected``.

    :param runtime: a runtime of :func:`open_runtime`, which several interfaces may share. By default the interface gets
        its own, with ``app_name`` and the runtime's options in ``options``. Then this block raises the exceptions of
        callbacks.
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
        interface = TrioInterface(
            Waiting(runtime, _Signal, arguments, reconnect=reconnect, batch=batch, check_owner=RunCheck())
        )
        stack.callback(interface.delete)
        yield interface


class _Signal:
    """Wakes one task."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = trio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self, timeout: float | None) -> None:
        if timeout is None:
            await self._event.wait()
        else:
            with trio.move_on_after(timeout):
                await self._event.wait()


class TrioInterface(AsyncInterface["_Signal"]):
    """An interface with calls to await. Made by :func:`open_interface`.

    Every call is a cancellation point. A call that need not wait is a schedule point once in ``batch`` packets.
    """

    @staticmethod
    async def _drive(steps: Steps[_Signal, T]) -> T:
        """Await what the steps wait for, and return their result."""
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            while True:
                request = next(steps)
                if isinstance(request, Wait):
                    await request.signal.wait(request.timeout)
                else:
                    await trio.lowlevel.checkpoint()
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            steps.close()


__all__ = ["Bursts", "TrioInterface", "open_interface", "open_runtime"]
