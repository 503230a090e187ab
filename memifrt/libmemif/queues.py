"""libmemif's calls on queues: take, give back, allocate, send and swap buffers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

from memifrt.errors import ConfigError, Disconnected, ErrorCode, MemifError
from memifrt.interface import Interface
from memifrt.libmemif.buffers import MemifBuffer
from memifrt.libmemif.codes import failed, required, returns_code, returns_result
from memifrt.libmemif.connections import enum_member, live_connection
from memifrt.libmemif.constants import MEMIF_ERR_SUCCESS
from memifrt.queue import RxQueue, TxQueue
from memifrt.ring import Burst
from memifrt.types import BufferFlag, RxMode

_Q = TypeVar("_Q", RxQueue, TxQueue)


def _no_buffers() -> list[MemifBuffer]:
    return []


def _no_fd() -> int:
    return -1


@returns_result(_no_fd)
def memif_get_queue_efd(conn: Interface | None, qid: int) -> tuple[int, int]:
    """Return the eventfd of a receive queue, for an application that polls it.

    The code is ``DISCONNECTED`` without a connection, and ``QID`` if there is no such queue.
    """
    return MEMIF_ERR_SUCCESS, _rx(conn, qid).fileno()


@returns_code
def memif_set_rx_mode(conn: Interface | None, rx_mode: int, qid: int) -> None:
    """Set the mode of one receive queue: ``MEMIF_RX_MODE_INTERRUPT`` or ``MEMIF_RX_MODE_POLLING``."""
    _rx(conn, qid).set_rx_mode(enum_member("rx_mode", RxMode, rx_mode))


@returns_result(_no_buffers)
def memif_rx_burst(conn: Interface | None, qid: int, count: int) -> tuple[int, list[MemifBuffer]]:
    """Take up to ``count`` received buffers. :func:`memif_refill_queue` gives them back.

    The code is ``NOBUF`` if more buffers wait; the queue then interrupts again. It is SUCCESS, with no buffers, if the
    ring is empty.
    """
    queue = _rx(conn, qid)
    buffers: list[MemifBuffer] = []
    if count != 0:
        burst = queue.burst(count, split=True)
        buffers = [MemifBuffer(queue, burst, index) for index in range(len(burst))]
    if len(buffers) == count and queue.pending():
        return failed(MemifError(ErrorCode.NOBUF)), buffers
    return MEMIF_ERR_SUCCESS, buffers


@returns_code
def memif_refill_queue(conn: Interface | None, qid: int, count: int = -1, headroom: int = 0) -> None:
    """Give the ``count`` oldest received buffers back to the peer.

    :param count: -1, or a number larger than the ring, gives all of them back (C's -1 is 65535).
    :param headroom: bytes that stay free in front of the data of the next packets; only for a slave.
    """
    queue = _rx(conn, qid)
    try:
        queue.refill(None if count == -1 else count, headroom)
    except BufferError as error:
        raise ConfigError(str(error)) from error


@returns_result(_no_buffers)
def memif_buffer_alloc(conn: Interface | None, qid: int, count: int, size: int) -> tuple[int, list[MemifBuffer]]:
    """Allocate buffers for ``count`` packets of ``size`` bytes, to fill and to send.

    A packet longer than a buffer takes several buffers. All except the last have ``MEMIF_BUFFER_FLAG_NEXT``. The code
    is ``NOBUF_RING``, with fewer buffers, if the ring is full.
    """
    queue = _tx(conn, qid)
    if count == 0:
        return MEMIF_ERR_SUCCESS, []
    burst = queue.alloc(count, size)
    buffers = [MemifBuffer(queue, burst, index) for index in range(len(burst))]
    if sum(not buffer.flags & BufferFlag.NEXT for buffer in buffers) < count:
        return failed(MemifError(ErrorCode.NOBUF_RING)), buffers
    return MEMIF_ERR_SUCCESS, buffers


@returns_result(int)
def memif_tx_burst(
    conn: Interface | None, qid: int, buffers: Sequence[MemifBuffer], count: int | None = None
) -> tuple[int, int]:
    """Send the first ``count`` buffers (None: all) and return how many were sent.

    Buffers must be sent in the order in which they were allocated. At a buffer out of order the code is ``INVAL_ARG``,
    and only the buffers before it are sent. The peer is kicked once for each allocation that the buffers come from.
    """
    queue = _tx(conn, qid)
    sent = 0
    try:
        for burst, first, length in _runs(buffers, count):
            if first != burst.sent:
                raise ConfigError(f"buffer {sent} is out of order: it must be the oldest unsent buffer of queue {qid}")
            try:
                queue.transmit(burst, length)
            except BufferError as error:
                raise ConfigError(str(error)) from error
            finally:  # the kick fails after the packets are sent: count them
                sent += burst.sent - first
    except MemifError as error:
        return failed(error), sent
    return MEMIF_ERR_SUCCESS, sent


@returns_result(int)
def memif_buffer_enq_tx(
    conn: Interface | None, qid: int, buffers: Sequence[MemifBuffer], count: int | None = None
) -> tuple[int, int]:
    """Swap the first ``count`` received buffers (None: all) into a transmit queue, without a copy.

    Return how many were swapped. They become buffers of that queue, ready for :func:`memif_tx_burst`. The receive queue
    gets free buffers in exchange; :func:`memif_refill_queue` still has to give those to the peer. The code is
    ``NOBUF_RING`` if the queue is full, and ``INVAL_ARG`` on a master.
    """
    queue = _tx(conn, qid)
    done = 0
    for burst, first, length in _runs(buffers, count):
        with _no_derived_views():
            swapped = queue.enqueue(burst, first - burst.sent, length)
        for index in range(len(swapped)):
            buffers[done + index].move(queue, swapped, index)
        done += len(swapped)
        if len(swapped) < length:
            return failed(MemifError(ErrorCode.NOBUF_RING)), done
    return MEMIF_ERR_SUCCESS, done


@returns_code
def memif_buffer_requeue(conn: Interface | None, buffer_a: MemifBuffer, buffer_b: MemifBuffer) -> None:
    """Swap the places of two buffers, on one queue or on two, without a copy.

    Each buffer keeps its data and takes the queue and index of the other. The code is ``INVAL_ARG`` on a master.
    """
    live_connection(conn)
    a, b = required("buffer_a", buffer_a), required("buffer_b", buffer_b)
    _check_held(a)
    _check_held(b)
    with _no_derived_views():
        a.exchange(b)


@returns_code
def memif_set_next_free_buffer(conn: Interface | None, qid: int, buffer: MemifBuffer) -> None:
    """Give back this allocated buffer and all after it. The next allocation starts at this buffer.

    The code is ``INVAL_ARG`` if the buffer is not allocated, or is sent already.
    """
    queue = _tx(conn, qid)
    _check_held(required("buffer", buffer))
    with _no_derived_views():
        queue.rewind(buffer.burst, buffer.burst_index)


def _rx(conn: Interface | None, qid: int) -> RxQueue:
    live = live_connection(conn)
    return _pick(live, "receive", live.rx_queues, qid)


def _tx(conn: Interface | None, qid: int) -> TxQueue:
    live = live_connection(conn)
    return _pick(live, "transmit", live.tx_queues, qid)


def _pick(conn: Interface, direction: str, queues: tuple[_Q, ...], qid: int) -> _Q:
    if 0 <= qid < len(queues):
        return queues[qid]
    if not conn.connected:
        raise Disconnected(f"{conn} is not connected")
    raise MemifError(ErrorCode.QID, f"{conn} has {len(queues)} {direction} queue(s); there is no queue {qid}")


@contextlib.contextmanager
def _no_derived_views() -> Iterator[None]:
    """Turn the ``BufferError`` of a view that the application still holds into a ``ConfigError``.

    :raises ConfigError: the application still holds a slice or a cast of a buffer's ``data``.
    """
    try:
        yield
    except BufferError as error:
        raise ConfigError(str(error)) from error


def _runs(buffers: Sequence[MemifBuffer], count: int | None) -> list[tuple[Burst, int, int]]:
    """Return the first ``count`` buffers as runs of neighbours in their bursts: burst, first number, length."""
    required("buffers", buffers)
    if count is not None and not 0 <= count <= len(buffers):
        raise ConfigError(f"count is {count}; it must be from 0 to {len(buffers)}, the number of buffers")
    runs: list[tuple[Burst, int, int]] = []
    for buffer in buffers if count is None else buffers[:count]:
        _check_held(buffer)
        if runs:
            burst, first, length = runs[-1]
            if burst is buffer.burst and first + length == buffer.number:
                runs[-1] = burst, first, length + 1
                continue
        runs.append((buffer.burst, buffer.number, 1))
    return runs


def _check_held(buffer: MemifBuffer) -> None:
    """Check that the application holds a buffer.

    :raises ConfigError: the buffer is None, was sent, or was given back to the peer.
    """
    required("buffer", buffer).check_held()
