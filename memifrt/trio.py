"""memif in trio: interfaces to ``await``, in the manner of :mod:`memifrt.asyncio`::

    async with memifrt.trio.open_interface(socket="/run/vpp/memif.sock", role="slave") as interface:
        await interface.wait_connected()
        async for burst in interface.bursts():
            await interface.send([answer(bytes(packet)) for packet in burst.packets()])

Owns how the steps of :mod:`memifrt.waiting.steps` are awaited, and the lifetime of what a program opens. Knows
nothing of rings or messages.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, TypeVar

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
    """A runtime whose fds are watched by trio, for several interfaces to share; closed at the end.

    Its tasks run in a nursery of its own. What callbacks of its interfaces raise comes out of this block, as a group of
    exceptions like from any nursery, and cancels what runs in it. What the block itself raises comes out as it is.

    :param batch: events of fds that one round of the scheduler may handle; the others wait for the next one.
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
                failure = error  # kept from the nursery, which would make a group of it
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
    """An interface in trio, deleted at the end: whoever still waits on it then gets ``Disconnected``.

    :param runtime: one of :func:`open_runtime`, which several interfaces may share. Default: one of its own, with
        the ``app_name`` and the runtime's options among ``options``; then what callbacks raise comes out of this block.
    :param reconnect: whether those who wait go on waiting across a disconnect; without it they get ``Disconnected``.
    :param batch: packets that may pass without a wait before other tasks get a turn.
    :param options: as for :meth:`memifrt.Runtime.create_interface` and, for a runtime of its own, as for
        :class:`memifrt.Runtime`. ``on_interrupt`` is called once for each kick, and
        not again for packets that it leaves: those are for ``recv``.
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
    """An interface whose calls are awaited. Made by :func:`open_interface`.

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
