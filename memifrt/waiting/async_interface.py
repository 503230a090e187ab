"""The interface with calls to await, shared by asyncio and trio. Knows neither loop.

The module of a loop adds ``_drive``, which awaits the steps of a call, and a signal that wakes one task.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from memifrt.queue import DEFAULT_BURST
from memifrt.ring import Burst
from memifrt.waiting.base_interface import BaseInterface, BurstHolder
from memifrt.waiting.steps import Waiting
from memifrt.waiting.wakeup import Signal, Steps

if TYPE_CHECKING:
    from typing_extensions import Self

    from memifrt.types import ReadableBuffer

S = TypeVar("S", bound=Signal)
T = TypeVar("T")


class AsyncInterface(BaseInterface[S]):
    """An interface with calls to await in the thread of its loop.

    Any number of tasks may wait, also for the same queue; each packet goes to one of them. A call can be cancelled at
    any point. A packet that a cancelled receive call did not return stays in the ring. A cancelled :meth:`send` may
    have sent the first packets of its list, but no part of a packet.
    """

    @staticmethod
    @abstractmethod
    async def _drive(steps: Steps[S, T]) -> T:
        """Await what the steps wait for, and return their result.

        Nothing is awaited between the last step and the return. So a cancellation finds the packets either in the ring
        or returned to the caller.
        """
        raise NotImplementedError

    async def wait_connected(self) -> None:
        """Wait until there is a peer.

        If no peer listens yet, this goes on waiting: the timer tries again, and :attr:`last_error` tells why.

        :raises Disconnected: a handshake failed and ``reconnect`` is off; or the interface is deleted.
        """
        await self._drive(self._waiting.wait_connected())

    async def recv(self, limit: int = DEFAULT_BURST, *, qid: int = 0) -> list[bytes]:
        """Wait for packets, and return copies of up to ``limit`` of them: at least one.

        Packets that a peer sent before it left are returned before ``Disconnected`` is raised.

        :raises ConfigError: there is no such queue.
        :raises Disconnected: there is no peer and ``reconnect`` is off; or the interface is deleted.
        """
        return await self._drive(self._waiting.recv(qid, limit))

    def bursts(self, qid: int = 0, limit: int = DEFAULT_BURST) -> Bursts[S]:
        """Iterate over the packets of a queue without copies, in bursts of up to ``limit`` buffers.

        Each burst is given back to the peer, and its views end, when the body of the loop is done with it. The same
        happens when the loop is left by ``break``, an exception or a cancellation. If the iterator outlives the loop,
        end it with ``aclose()``, or use it as a context manager (``async with interface.bursts() as bursts``). Raises
        as :meth:`recv` does.
        """
        return Bursts(self._waiting, qid, limit, self._drive)

    async def send(self, packets: Iterable[ReadableBuffer], *, qid: int = 0) -> int:
        """Send all packets, wait for room as often as needed, and return their number.

        memif has no signal for "the ring has room again". While the ring is full this looks again after pauses that
        double from 0.1 ms to 5 ms (trio's and asyncio's own timers make at least 1 ms of the first). So a
        packet leaves up to 5 ms after it could have, and a sender that waits for long costs 200 looks a second, under
        2 % of a core. A larger ring costs less.

        Packets longer than a buffer go as chains. Several senders on one queue take turns between batches. With
        ``reconnect`` this goes on with the next peer; packets that the last peer has not received are lost.

        :raises ConfigError: a packet is empty or too long, or there is no such queue. Packets before a wrong one may
            have been sent.
        :raises Disconnected: there is no peer and ``reconnect`` is off; or the interface is deleted.
        """
        return await self._drive(self._waiting.send(packets, qid))


class Bursts(BurstHolder[S]):
    """The iterator of :meth:`AsyncInterface.bursts`."""

    def __init__(
        self, waiting: Waiting[S], qid: int, limit: int, drive: Callable[[Steps[S, Any]], Awaitable[Burst | None]]
    ) -> None:
        super().__init__(waiting, qid, limit)
        self._drive = drive

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Burst:
        burst = await self._drive(self._next())
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


__all__ = ["AsyncInterface", "Bursts"]
