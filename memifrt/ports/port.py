"""The ports of a bridge, which receive and send packets.

Owns the contract of a port, its counters, and the memif port. The kernel's ports are in ``tap`` and ``packet_socket``.
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

#: The reason in ``Port.unusable`` for packets that the kernel dropped before the port could read them.
LOST = "lost in the kernel"
#: Seconds between two checks for losses while packets keep coming.
_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """A number of packets and their bytes."""

    packets: int = 0
    bytes: int = 0


class Port(ABC):
    """One end of a bridge. Every method except ``close`` may raise :class:`~memifrt.Disconnected`.

    :ivar refused: the number of packets that the port failed to send and dropped, by reason.
    :ivar unusable: the number of incoming packets that cannot be forwarded, by reason. They do not count as received.
    :ivar on_packets: called when packets have come, if the port has no fd (see :meth:`fileno`).
    :ivar on_link: called with the new value when :attr:`can_send` changes.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.refused: Counter[str] = Counter()
        self.unusable: Counter[str] = Counter()
        self.on_packets: Callable[[], object] = _nothing
        self.on_link: Callable[[bool], object] = _nothing

    @property
    def can_send(self) -> bool:
        """Whether packets can be sent: the port has a link, or a peer with a queue."""
        return True

    @property
    def queues(self) -> int:
        """The number of receive queues."""
        return 1

    @property
    @abstractmethod
    def received(self) -> Traffic: ...

    @property
    @abstractmethod
    def sent(self) -> Traffic: ...

    @abstractmethod
    def fileno(self) -> int:
        """Return an fd that is readable when packets come; -1 if the runtime calls ``on_packets`` instead."""

    @abstractmethod
    def room(self, qid: int = 0) -> int:
        """Return how many packets can probably be sent now."""

    @abstractmethod
    def recv(self, limit: int, *, qid: int = 0) -> list[bytes]:
        """Take at most ``limit`` packets or buffers."""

    @abstractmethod
    def send(self, packets: Sequence[bytes], *, qid: int = 0) -> int:
        """Send packets in order; return how many were sent, or refused and counted in ``refused``.

        The caller may try the others again later.
        """

    @abstractmethod
    def discard(self, limit: int, *, qid: int = 0) -> int:
        """Drop at most ``limit`` packets or buffers; return how many were dropped."""

    def count_losses(self) -> None:  # noqa: B027 - most ports lose nothing
        """Add to ``unusable`` the packets that were lost before they reached this port since the last call."""

    def link_changed(self, up: bool) -> None:  # noqa: B027 - most ports do nothing
        """Note that the port on the other side got a peer, or lost it."""

    @abstractmethod
    def close(self) -> None:
        """Close the port."""


class MemifPort(Port):
    """A memif interface as a port.

    :raises MemifError: the interface cannot be created.
    """

    def __init__(self, runtime: Runtime, endpoint: MemifEndpoint) -> None:
        super().__init__(str(endpoint))
        self.interface: Interface = runtime.create_interface(
            socket=endpoint.socket,
            on_connect=lambda interface: self.on_link(self.can_send),
            on_disconnect=lambda interface, reason: self.on_link(False),
            on_interrupt=self._on_interrupt,
            **endpoint.config.replace(name=str(endpoint.config.name or f"memif{endpoint.config.id}")).options(),
        )
        # In polling mode no interrupt says what the peer sent just before it left.
        self.interface.on_ending = lambda interface: self.on_packets()

    @property
    def connected(self) -> bool:
        """Whether there is a peer and ``on_connect`` has been called for it."""
        return self.interface.connected

    @property
    def counters(self) -> Counters:
        """The counters of all queues since the interface was created, reconnects included."""
        return self.interface.counters

    @property
    def can_send(self) -> bool:
        # A slave may offer no queue in this direction.
        return self.connected and bool(self.interface.tx_queues)

    @property
    def queues(self) -> int:
        return len(self.interface.rx_queues)

    def rx(self, qid: int = 0) -> RxQueue:
        return self.interface.rx_queues[qid]

    def tx(self, qid: int = 0) -> TxQueue:
        """Return the transmit queue for packets from this queue of another port."""
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

    def set_watched(self, watched: bool) -> None:
        """Choose whether the runtime calls ``on_packets``. It must not while threads receive the packets."""
        self.interface.on_interrupt = self._on_interrupt if watched else None

    def _on_interrupt(self, interface: Interface, qid: int) -> None:
        self.on_packets()

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
        """Send packets one by one, and refuse those that can never be sent."""
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
    """Logs once that the kernel drops packets of a port, and limits the checks to one a second.

    :param what: the name of the port in the message.
    :param hint: the cause and a remedy.
    """

    def __init__(self, what: str, hint: str) -> None:
        self._what = what
        self._hint = hint
        self._next = 0.0

    def is_due(self) -> bool:
        """Return whether it is time to check for losses."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + _BETWEEN_LOOKS
        return True

    def lost(self, count: int) -> None:
        """Log that ``count`` packets were lost, unless it is 0. After that :meth:`is_due` returns False."""
        if count:
            self._next = math.inf
            logger.warning(
                "%s: the kernel has dropped %d packets, and may drop more: %s", self._what, count, self._hint
            )


def _nothing(*arguments: object) -> None:
    """Do nothing: the default callback."""


def _total(queues: Sequence[RxQueue] | Sequence[TxQueue]) -> Traffic:
    counters = [queue.counters for queue in queues]
    return Traffic(sum(each.packets for each in counters), sum(each.bytes for each in counters))
