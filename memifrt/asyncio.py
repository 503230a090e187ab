"""memif in asyncio: interfaces to ``await``, in asyncio's own loops and in uvloop's::

    async with memifrt.asyncio.open_interface(socket="/run/vpp/memif.sock", role="slave") as interface:
        await interface.wait_connected()
        async for burst in interface.bursts():
            await interface.send([answer(packet) for packet in burst])

Owns how the steps of :mod:`memifrt.waiting.steps` are awaited, and the lifetime of what a program opens. Knows
nothing of rings or messages.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, TypeVar

from memifrt.options import DEFAULT_APP_NAME, RuntimeOptions
from memifrt.poll.asyncio import DEFAULT_BATCH as DEFAULT_EVENTS
from memifrt.poll.asyncio import AsyncioPoller, LoopCheck
from memifrt.queue import DEFAULT_BURST
from memifrt.ring import Burst
from memifrt.runtime import OpenArguments, Runtime
from memifrt.waiting.base_interface import BaseInterface, BurstHolder, interface_arguments, split_arguments
from memifrt.waiting.steps import DEFAULT_BATCH, Waiting
from memifrt.waiting.wakeup import Steps, Wait

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from memifrt.types import ReadableBuffer

T = TypeVar("T")


@contextlib.asynccontextmanager
async def open_runtime(
    app_name: str = DEFAULT_APP_NAME,
    *,
    batch: int = DEFAULT_EVENTS,
    **options: Unpack[RuntimeOptions],
) -> AsyncIterator[Runtime]:
    """A runtime whose fds the running loop watches, for several interfaces to share; closed at the end.

    What callbacks of its interfaces raise goes to the loop's exception handler.

    :param batch: events of fds that one round of the loop may handle; the others wait for the next one.
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
    """An interface in the running loop, deleted at the end: whoever still waits on it then gets ``Disconnected``.

    :param runtime: one of :func:`open_runtime`, which several interfaces may share. Default: one of its own, with
        the ``app_name`` and the runtime's options among ``options``.
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
        interface = AsyncioInterface(
            Waiting(runtime, _Signal, arguments, reconnect=reconnect, batch=batch, check_owner=LoopCheck())
        )
        stack.callback(interface.delete)
        yield interface


class AsyncioInterface(BaseInterface["_Signal"]):
    """An interface whose calls are awaited, in the loop's own thread. Made by :func:`open_interface`.

    Any number of tasks may wait, also for the same queue; each packet goes to one of them. Cancelling a call is safe at
    any point: a packet that it did not return stays in the ring, or with :meth:`send` is sent or is not.
    """

    async def wait_connected(self) -> None:
        """Wait until there is a peer. That nobody listens yet is not an error: the timer tries again, and
        :attr:`last_error` says why it has to.

        :raises Disconnected: a peer came and refused, or went before everything was agreed, and ``reconnect`` is off;
            or the interface is deleted.
        """
        await _drive(self._waiting.wait_connected())

    async def recv(self, limit: int = DEFAULT_BURST, *, qid: int = 0) -> list[bytes]:
        """Wait for packets and take those of up to ``limit`` buffers, copied: at least one packet.

        :raises ConfigError: there is no such queue.
        :raises Disconnected: there is no peer (any more), and ``reconnect`` is off; or the interface is deleted.
        """
        return await _drive(self._waiting.recv(qid, limit))

    def bursts(self, qid: int = 0, limit: int = DEFAULT_BURST) -> Bursts:
        """Iterate over what a queue receives, without copies: memoryviews into the peer's memory, up to ``limit``
        buffers at a time.

        Each burst is given back to the peer when the body of the loop is done with it, and its views end. So it is
        when the loop is left, by ``break``, an exception or a cancellation; where the iterator outlives the loop, by
        ``aclose()``, or by using it as a context manager (``async with interface.bursts() as bursts``). Raises as
        :meth:`recv` does.
        """
        return Bursts(self._waiting, qid, limit)

    async def send(self, packets: Iterable[ReadableBuffer], *, qid: int = 0) -> int:
        """Send all packets, and wait for room as often as it takes; their number.

        memif has no signal for "the ring has room again". While it is full this looks again after pauses that double
        from 0.1 ms (asyncio's own loops: 1 ms) to 5 ms, until there is room: a packet leaves up to 5 ms after it could
        have, and a sender who waits for long costs 200 looks a second, under 2 % of a core. A larger ring costs less.

        Packets longer than a buffer go as chains. Several senders on one queue take turns in between batches. With
        ``reconnect`` it goes on with the next peer; what the last one has not received is lost.

        :raises ConfigError: a packet is empty or too long, or there is no such queue. Packets before it may have been
            sent.
        :raises Disconnected: there is no peer (any more), and ``reconnect`` is off; or the interface is deleted.
        """
        return await _drive(self._waiting.send(packets, qid))


class Bursts(BurstHolder["_Signal"]):
    """The iterator of :meth:`AsyncioInterface.bursts`."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Burst:
        burst = await _drive(self._next())
        if burst is None:
            raise StopAsyncIteration
        return burst

    async def aclose(self) -> None:
        """Give the present burst back, and end the iteration. A second call is harmless."""
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()


class _Signal:
    """Wakes one task."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def set(self) -> None:
        if not self._future.done():  # set already, or its task is cancelled
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


async def _drive(steps: Steps[_Signal, T]) -> T:
    """Await what the steps wait for; their result. Nothing is awaited between the last step and the return, so that a
    cancellation finds the packets in the ring or in the caller's hands."""
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
