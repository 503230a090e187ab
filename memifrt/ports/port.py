"""What a bridge joins: ports that packets come from and go to.

Owns the contract, what a port counts, and the memif port. The kernel's ports are in ``tap`` and ``packet_socket``.
"""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memifrt.errors import ConfigError
from memifrt.interface import Interface
from memifrt.ports.endpoint import MemifEndpoint
from memifrt.queue import RxQueue, TxQueue
from memifrt.runtime import Runtime
from memifrt.types import Counters

logger = logging.getLogger("memifrt")

#: Why packets of the kernel never came to a port.
LOST = "lost in the kernel"
#: Seconds between two looks for losses while packets keep coming.
_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """Packets and their bytes."""

    packets: int = 0
    bytes: int = 0


class Port(ABC):
    """One end of a bridge. Every method but ``close`` may raise :class:`~memifrt.Disconnected`.

    :ivar refused: how many packets were not sent, by the reason.
    :ivar unusable: how many packets came that nobody can be given, by the reason; they do not count as received.
    :ivar on_packets: called when packets have come, by ports without a ``fileno`` of their own.
    :ivar on_link: called with whether packets can be sent, when that changes.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.refused: Counter[str] = Counter()
        self.unusable: Counter[str] = Counter()
        self.on_packets: Callable[[], object] = _nothing
        self.on_link: Callable[[bool], object] = _nothing

    @property
    def can_send(self) -> bool:
        """Whether the port has an open way for packets: a link, or a peer with a queue for them."""
        return True

    @property
    def queues(self) -> int:
        """How many there are in each direction."""
        return 1

    @property
    @abstractmethod
    def received(self) -> Traffic: ...

    @property
    @abstractmethod
    def sent(self) -> Traffic: ...

    @abstractmethod
    def fileno(self) -> int:
        """What becomes readable when packets come; -1 if the runtime sees to that."""

    @abstractmethod
    def room(self, qid: int = 0) -> int:
        """Packets that can probably be sent now."""

    @abstractmethod
    def recv(self, limit: int, *, qid: int = 0) -> list[bytes]:
        """Take at most ``limit`` packets, or buffers of them."""

    @abstractmethod
    def send(self, packets: Sequence[bytes], *, qid: int = 0) -> int:
        """Send packets; return how many are dealt with: sent, or refused. The others can be sent later."""

    @abstractmethod
    def discard(self, limit: int, *, qid: int = 0) -> int:
        """Take at most ``limit`` packets and forget them; return how many they were, or their buffers."""

    def count_losses(self) -> None:  # noqa: B027 - most ports lose nothing
        """Add to ``unusable`` what was lost on the way to this port since the last call."""

    def link_changed(self, up: bool) -> None:  # noqa: B027 - for most ports it is nothing to act on
        """The port on the other side has got its peer, or lost it."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back."""


class MemifPort(Port):
    """A memif interface as a port.

    :raises MemifError: the endpoint cannot be made.
    """

    def __init__(self, runtime: Runtime, endpoint: MemifEndpoint) -> None:
        super().__init__(str(endpoint))
        self.interface: Interface = runtime.create_interface(
            socket=endpoint.socket,
            on_connect=lambda interface: self.on_link(self.can_send),
            on_disconnect=lambda interface, reason: self.on_link(False),
            on_interrupt=lambda interface, qid: self.on_packets(),
            **endpoint.config.replace(name=str(endpoint.config.name or f"memif{endpoint.config.id}")).options(),
        )

    @property
    def connected(self) -> bool:
        """Whether there is a peer, and ``on_connect`` has been called for it."""
        return self.interface.connected

    @property
    def counters(self) -> Counters:
        """What all queues of the interface did since it was created, reconnects included."""
        return self.interface.counters

    @property
    def can_send(self) -> bool:
        # A slave need not offer any queue in the other direction.
        return self.connected and bool(self.interface.tx_queues)

    @property
    def queues(self) -> int:
        return len(self.interface.rx_queues)

    def rx(self, qid: int = 0) -> RxQueue:
        return self.interface.rx_queues[qid]

    def tx(self, qid: int = 0) -> TxQueue:
        """The transmit queue for packets that came on this queue of another port."""
        queues = self.interface.tx_queues
        return queues[qid % len(queues)]

    @property
    def received(self) -> Traffic:
        return _total(self.interface.rx_queues)

    @property
    def sent(self) -> Traffic:
        return _total(self.interface.tx_queues)

    def fileno(self) -> int:
        return -1

    def room(self, qid: int = 0) -> int:
        return self.tx(qid).free()

    def recv(self, limit: int, *, qid: int = 0) -> list[bytes]:
        return self.rx(qid).recv(limit)

    def send(self, packets: Sequence[bytes], *, qid: int = 0) -> int:
        tx = self.tx(qid)
        try:
            return tx.send(packets)
        except ConfigError:
            return self._send_singly(tx, packets)

    def _send_singly(self, tx: TxQueue, packets: Sequence[bytes]) -> int:
        """One of them can never be sent."""
        for number, packet in enumerate(packets):
            try:
                if not tx.send((packet,)):
                    return number
            except ConfigError:
                self.refused["empty" if not packet else "longer than the ring has room for"] += 1
        return len(packets)

    def discard(self, limit: int, *, qid: int = 0) -> int:
        with self.rx(qid).burst(limit) as burst:
            return len(burst)

    def close(self) -> None:
        self.interface.close()


class LossWarning:
    """Logs once that a port loses packets, and looks at most once a second whether it does.

    :param what: the port, for people.
    :param hint: what helps.
    """

    def __init__(self, what: str, hint: str) -> None:
        self._what = what
        self._hint = hint
        self._next = 0.0

    def is_due(self) -> bool:
        """Whether it is time to look."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + _BETWEEN_LOOKS
        return True

    def lost(self, count: int) -> None:
        """Log that so many packets have been lost so far, if there are any; later calls of :meth:`is_due` say no."""
        if count:
            self._next = math.inf
            logger.warning(
                "%s: the kernel has dropped %d packets, and may drop more: %s", self._what, count, self._hint
            )


def _nothing(*arguments: object) -> None:
    """Nobody wants to be told."""


def _total(queues: Sequence[RxQueue] | Sequence[TxQueue]) -> Traffic:
    counters = [queue.counters for queue in queues]
    return Traffic(sum(each.packets for each in counters), sum(each.bytes for each in counters))
