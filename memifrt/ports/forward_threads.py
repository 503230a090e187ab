"""Threads that forward between two memifs while both have a peer.

Owns the threads, which queues each one serves, and how they end. While they run, nothing else may receive from or send
to the queues, and the main thread handles the events of the runtime alone. The compiled queues forward without the GIL,
so the threads run at the same time on any Python.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Sequence

from memifrt.errors import Disconnected, MemifError
from memifrt.ports.port import MemifPort
from memifrt.queue import RxQueue, TxQueue
from memifrt.ring import __impl__
from memifrt.system.fds import EventFd
from memifrt.system.original_functions import threads_are_patched

#: Packets (buffers) that a thread takes at a time.
_BURST = 256
#: Milliseconds to wait for room while packets wait in a queue that shares its target.
_ROOM_MILLISECONDS = 1


def are_useful() -> bool:
    """Return whether threads forward faster than the main thread alone.

    The queues in Python hold the GIL. A greenlet, which gevent and eventlet make of a thread, would block all others.
    """
    return __impl__ == "native" and not threads_are_patched()


def _cores() -> int:
    return len(os.sched_getaffinity(0))


class ForwardThreads:
    """A thread for each transmit queue that packets go to, in both directions.

    Usually that is a thread for each receive queue. If the source has more queues than the target, several of its
    queues share a thread, because only one thread at a time may use a transmit queue.

    :param directions: the source and the target of each direction.
    """

    def __init__(self, directions: Sequence[tuple[MemifPort, MemifPort]]) -> None:
        self._directions = directions
        self._threads: list[threading.Thread] = []
        self._failure: BaseException | None = None
        #: Readable when the threads must end.
        self._stop = EventFd.create("eventfd that ends the threads")
        #: Readable when a thread has failed.
        self._failed = EventFd.create("eventfd of a failed thread")

    @property
    def running(self) -> bool:
        """Whether the threads have the queues, even if all of them have ended because a peer has gone."""
        return bool(self._threads)

    @property
    def can_run(self) -> bool:
        """Whether both ends have a peer with queues in both directions, and polling threads have a core each."""
        return all(target.can_send for _, target in self._directions) and self._polling_threads() < _cores()

    def _polling_threads(self) -> int:
        """Return how many of the threads would poll. More than there are cores would wait for each other."""
        return sum(
            any(rx.polling for rx in sources)
            for source, target in self._directions
            for _, sources in _by_target(source, target)
        )

    def fileno(self) -> int:
        """Return an fd that becomes readable when a thread has failed; then call :meth:`check`."""
        return self._failed.fileno()

    def start(self) -> None:
        """Hand the queues to the threads. Nobody may hold a burst of them."""
        for source, _ in self._directions:
            source.set_watched(False)
        for source, target in self._directions:
            for number, (tx, sources) in enumerate(_by_target(source, target)):
                thread = threading.Thread(
                    target=self._run, args=(tx, sources), name=f"memifrt-forward-{source.interface.name}-{number}"
                )
                thread.start()
                self._threads.append(thread)

    def stop(self) -> None:
        """End the threads, and take the queues back. Do nothing if no threads run."""
        if not self._threads:
            return
        self._stop.notify()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self._stop.drain()
        for source, _ in self._directions:
            source.set_watched(True)

    def check(self) -> None:
        """Raise the error of a thread that has failed, other than by the end of a connection."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """End the threads and close the fds."""
        self.stop()
        self._stop.close()
        self._failed.close()

    def _run(self, tx: TxQueue, sources: Sequence[RxQueue]) -> None:
        try:
            self._serve(tx, sources)
        except Disconnected:
            pass  # the main thread learns of it from the control channel
        except (MemifError, OSError) as error:
            self._failure = error
            self._failed.notify()

    def _serve(self, tx: TxQueue, sources: Sequence[RxQueue]) -> None:
        if len(sources) == 1:
            tx.forward_from(sources[0], until=self._stop, limit=_BURST)
        else:
            self._serve_in_turn(tx, sources)

    def _serve_in_turn(self, tx: TxQueue, sources: Sequence[RxQueue]) -> None:
        """Forward from several queues to one, a burst from each in turn."""
        polling = any(rx.polling for rx in sources)
        poll = select.poll()
        poll.register(self._stop, select.POLLIN)
        stop_alone = select.poll()
        stop_alone.register(self._stop, select.POLLIN)
        if not polling:
            for rx in sources:
                poll.register(rx.fileno(), select.POLLIN)
        while True:
            moved = [tx.forward(rx, _BURST) for rx in sources]
            if any(moved) or polling:
                ready = stop_alone.poll(0)
            elif any(rx.pending() for rx in sources):
                ready = stop_alone.poll(_ROOM_MILLISECONDS)  # waiting packets keep their eventfd readable
            else:
                ready = poll.poll()
            if any(fd == self._stop.fileno() for fd, _ in ready):
                return


def _by_target(source: MemifPort, target: MemifPort) -> list[tuple[TxQueue, list[RxQueue]]]:
    """Return each transmit queue that a direction uses, with the receive queues that it serves."""
    groups: dict[int, tuple[TxQueue, list[RxQueue]]] = {}
    for qid in range(source.queues):
        tx = target.tx(qid)
        groups.setdefault(tx.qid, (tx, []))[1].append(source.rx(qid))
    return list(groups.values())
