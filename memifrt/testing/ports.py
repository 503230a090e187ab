"""The memif ports of a test: send and receive with a deadline, while a background thread handles the interface.

Owns the waiting, the messages of what did not come, and a record of the last packets. Knows nothing of pytest.
"""

from __future__ import annotations

import contextlib
import functools
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, SupportsBytes, TypeVar, cast

from memifrt.errors import ConfigError, Disconnected, ForkedError, check_packets, packet_bytes
from memifrt.interface import Interface, OnConnect, OnDisconnect
from memifrt.options import parse_rx_mode
from memifrt.queue import RxQueue, TxQueue
from memifrt.renamed import renamed_arguments, warn_renamed
from memifrt.runtime import InterfaceArguments
from memifrt.system.not_copied import NotCopied
from memifrt.threaded.inbox import Inbox
from memifrt.types import Counters, Mode, RxMode, peer_names

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from memifrt.threaded.runtime_thread import Background
    from memifrt.types import ReadableBuffer

    #: A packet to send: a bytes-like object or a scapy packet.
    Sendable = ReadableBuffer | SupportsBytes

_T = TypeVar("_T")
_Q = TypeVar("_Q", RxQueue, TxQueue)

#: Seconds between two looks where no event comes: for room in a ring, or at a queue that is polled.
_TICK = 0.0005
_LONGEST_POLL = 0.25


class MemifTimeout(AssertionError):
    """A wait of a test reached its timeout. The message says what happened until then."""


class PortOptions(InterfaceArguments, total=False):
    """The options of a port: those of :meth:`memifrt.Runtime.create_interface`, and ``receive``.

    ``receive=False`` leaves packets in the rings until the test calls :meth:`MemifPort.recv`. Use it to fill a ring, or
    to read from ``port.interface.rx_queues`` in the test. ``on_interrupt`` and ``rx_mode="polling"`` have the same
    effect. When the peer goes away, the port takes what is still in the rings, so that :meth:`MemifPort.recv` and
    :meth:`MemifPort.collect` return it; with ``on_interrupt`` that is up to the callback.
    """

    receive: bool


# --- ports and what is made of them ---------------------------------------------------------------------------------


class MemifPort(NotCopied):
    """One interface of a test, connected or not. :class:`Memif` makes it.

    A call that waits takes a ``timeout`` in seconds; None means the ini option ``memif_timeout``. It raises
    :class:`MemifTimeout` after that time, and :class:`~memifrt.Disconnected` if the peer goes away. :meth:`send`,
    :meth:`recv` and :meth:`collect` also wait for the first peer.
    """

    def __init__(self, background: Background, timeout: float, options: PortOptions, keep: int = 0) -> None:
        self._background = background
        self._timeout = timeout
        #: The last packets, oldest first: the time in nanoseconds since 1970, whether it was sent, and its bytes.
        self._record: deque[tuple[int, bool, bytes]] = deque(maxlen=keep)
        # A queue belongs to one thread at a time: the test's, or at the end of a connection the background thread. The
        # lock is reentrant, because a ring that the peer broke ends the connection in the thread that finds it.
        self._taking = threading.RLock()
        self._has_callback = options.get("on_interrupt") is not None
        self._inbox = Inbox("port")
        self._then_connect: OnConnect | None = None
        self._then_disconnect: OnDisconnect | None = None
        self._receives = True
        #: The interface, for its state, queues and counters. To change it, use :meth:`call`.
        self.interface = self._create(options)

    def _create(self, options: PortOptions) -> Interface:
        self._then_connect, self._then_disconnect = options.get("on_connect"), options.get("on_disconnect")
        wanted = {key: value for key, value in options.items() if key != "receive"}
        wanted |= {"on_connect": self._on_connect, "on_disconnect": self._on_disconnect}
        polling = parse_rx_mode(options.get("rx_mode", RxMode.INTERRUPT)) is RxMode.POLLING
        self._receives = options.get("receive", True) and options.get("on_interrupt") is None and not polling
        if self._receives:
            wanted["on_interrupt"] = self._on_interrupt
        return self._background.call(functools.partial(self._create_here, cast("InterfaceArguments", wanted)))

    def _create_here(self, wanted: InterfaceArguments) -> Interface:
        interface = self._background.runtime.create_interface(**wanted)
        if not self._has_callback:
            interface.on_ending = self._on_ending
        return interface

    # --- the connection -----------------------------------------------------------------------------------------

    @property
    def socket(self) -> str:
        """The path of the socket, for the configuration of the peer."""
        return self.interface.socket.path

    @property
    def connected(self) -> bool:
        """Whether there is a peer and ``on_connect`` has been called for it."""
        return self._inbox.connected

    @property
    def counters(self) -> Counters:
        """The counters of all queues since the interface was created, reconnects included."""
        return self.interface.counters

    def wait_connected(self, timeout: float | None = None) -> MemifPort:
        """Wait until a peer is connected, and return the port.

        :param timeout: in seconds; None: the deadline of the fixture, ``memif_timeout``.
        :raises MemifTimeout: no peer connected in time. The message says why the last attempt failed.
        """
        __tracebackhide__ = True
        if not self._inbox.wait_connected(limit := self._limit(timeout)):
            why = self.interface.last_error or "nobody has connected to it"
            raise MemifTimeout(f"{self.interface}: not connected within {limit:g} s: {why}")
        return self

    def wait_disconnected(self, timeout: float | None = None) -> Disconnected:
        """Wait until no peer is connected, and return the reason.

        :param timeout: in seconds; None: the deadline of the fixture, ``memif_timeout``.
        :raises MemifTimeout: the peer is still connected.
        """
        __tracebackhide__ = True
        if not self._inbox.wait_disconnected(limit := self._limit(timeout)):
            raise MemifTimeout(f"{self.interface}: still connected after {limit:g} s")
        return self._inbox.reason or Disconnected(f"{self.interface}: never connected")

    def disconnect(self, reason: str = "disconnected by the test") -> None:
        """End the connection and send the reason to the peer. A slave then connects again."""
        self._background.call(lambda: self.interface.disconnect(reason))

    def close(self) -> None:
        """Delete the interface before the end of the test. A second call is harmless."""
        with contextlib.suppress(ForkedError):
            self._background.call(self.interface.delete)

    def call(self, function: Callable[[], _T]) -> _T:
        """Call a function in the thread that handles the interface's events, and return its result."""
        return self._background.call(function)

    # --- packets ------------------------------------------------------------------------------------------------

    @renamed_arguments(queue="qid")
    def send(
        self, packets: Iterable[Sendable] = (), *more: Sendable, qid: int = 0, timeout: float | None = None
    ) -> int:
        """Send all packets. Wait for room while the ring is full.

        :param packets: bytes-like objects or scapy packets. To pass one packet, or each packet as an argument
            (``more``), is deprecated and warns.
        :param qid: the number of the transmit queue.
        :param timeout: in seconds; None: the deadline of the fixture, ``memif_timeout``.
        :returns: the number of packets.
        :raises MemifTimeout: the peer did not make room for all packets. The message says how many were sent.
        :raises ConfigError: a packet is empty or too long, or there is no such queue.
        """
        __tracebackhide__ = True
        if more or _is_packet(packets):
            warn_renamed("send(packet, ...) of a MemifPort", "send([packet, ...])", stacklevel=4)
            packets = (cast("Sendable", packets), *more)
        rest = [
            packet_bytes(number, packet)
            for number, packet in enumerate(check_packets(cast("Iterable[ReadableBuffer]", packets)))
        ]
        total = len(rest)
        deadline = self._begin(limit := self._limit(timeout))
        tx = self._queue(self.interface.tx_queues, qid)
        while rest:
            with self._named():
                sent = tx.send(rest)
            self._note(rest[:sent], True)
            del rest[:sent]
            if rest and time.monotonic() >= deadline:
                done = f"{total - len(rest)} of {total}"
                raise MemifTimeout(f"{self.interface}: the ring is full after {limit:g} s: {done} packets are sent")
            if rest:
                time.sleep(_TICK)
        return total

    def recv(self, count: int = 1, timeout: float | None = None) -> list[bytes]:
        """Wait for exactly ``count`` packets from all queues. Further packets stay for the next call.

        :param timeout: in seconds; None: the deadline of the fixture, ``memif_timeout``.
        :raises MemifTimeout: fewer packets came. The message says how many; they stay for the next call.
        """
        __tracebackhide__ = True
        deadline = self._begin(limit := self._limit(timeout))
        while not self._has(count, deadline):
            if time.monotonic() >= deadline:
                got = len(self._inbox)
                raise MemifTimeout(f"{self.interface}: {got} of {count} packets have come within {limit:g} s")
        return self._inbox.take_all(count)

    @renamed_arguments(seconds="timeout")
    def collect(self, timeout: float) -> list[bytes]:
        """Return the packets that have come, or come within ``timeout`` seconds: ``assert port.collect(0.1) == []``."""
        __tracebackhide__ = True
        deadline = self._begin(timeout)
        with contextlib.suppress(Disconnected):  # return what came before
            while time.monotonic() < deadline:
                self._has(None, deadline)
        if not self._receives:
            with contextlib.suppress(Disconnected):
                self._take(self.interface)
        return self._inbox.take_all()

    def _has(self, count: int | None, deadline: float) -> bool:
        """Wait for packets, at most until the deadline; return whether ``count`` of them have come (None: never).

        :raises Disconnected: fewer have come, and the peer is gone.
        """
        left = max(deadline - time.monotonic(), 0)
        try:
            if self._receives:
                return self._inbox.wait(count, left, needs_peer=True)
            if count is None or len(self._inbox) < count:
                self._wait_for_rings(left)
                self._take(self.interface)
        except Disconnected as error:
            if count is None or len(self._inbox) < count:  # else the peer left what was missing
                came = f"{len(self._inbox)} packets came"
                why = error.message if self._receives else f"not connected: {error.message}"
                raise Disconnected(f"{self.interface}: {why}; {came}") from error
        return count is not None and len(self._inbox) >= count

    def _wait_for_rings(self, seconds: float) -> None:
        queues = self.interface.rx_queues
        wait = _TICK if any(queue.rx_mode is RxMode.POLLING for queue in queues) else _LONGEST_POLL
        poll = select.poll()
        for queue in queues:
            poll.register(queue.fileno(), select.POLLIN)
        poll.poll(min(seconds, wait) * 1000)

    def _take(self, interface: Interface) -> None:
        """Take the packets out of the rings."""
        with self._taking:
            for queue in interface.rx_queues:
                self._put(queue.recv(queue.ring_size))

    def _put(self, packets: list[bytes]) -> None:
        self._note(packets, False)
        self._inbox.put(packets)

    def _note(self, packets: Iterable[ReadableBuffer], sent: bool) -> None:
        if self._record.maxlen:
            now = time.time_ns()
            self._record.extend((now, sent, bytes(packet)) for packet in packets)

    def _queue(self, queues: tuple[_Q, ...], number: int) -> _Q:
        if not 0 <= number < len(queues):
            raise ConfigError(f"{self.interface}: qid is {number}; it must be a whole number below {len(queues)}")
        return queues[number]

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Add the interface to the message of a :class:`Disconnected`, which a queue does not know."""
        try:
            yield
        except Disconnected as error:
            raise Disconnected(f"{self.interface}: not connected: {error}") from error

    def _begin(self, limit: float) -> float:
        """Wait for the first peer; return the deadline of the call."""
        __tracebackhide__ = True
        self.interface.check_not_forked()
        deadline = time.monotonic() + limit
        if not self.interface.rx_queues and not self.interface.tx_queues:
            self.wait_connected(limit)
        return deadline

    def _limit(self, timeout: float | None) -> float:
        self.interface.check_not_forked()
        return self._timeout if timeout is None else timeout

    # --- artefacts ----------------------------------------------------------------------------------------------

    def write_artefacts(self, directory: Path, stem: str) -> str:
        """Write the last packets to a capture in a directory, and return a text about the port's state.

        Packets that a callback of the test, or the test itself, took from the rings are not in the capture.
        """
        from memifrt.capture.pcap import LinkType, create_capture

        text = f"{self!r}\n  counters: {self.counters}\n  last error: {self.interface.last_error}\n"
        details = self.call(self.interface.details)
        text += f"  peer: {peer_names(details.remote_name, details.remote_app_name)}, {details.peer}\n"
        text += "".join(f"  {line}\n" for line in (*details.regions, *details.rx_queues, *details.tx_queues))
        packets = list(self._record)
        if packets:
            path = directory / f"{stem}.pcapng"
            link = LinkType.RAW if self.interface.mode is Mode.IP else LinkType.ETHERNET
            names = [(f"{self.interface} {way}", link) for way in ("received", "sent")]
            with create_capture(str(path), names) as writer:
                for moment, sent, packet in packets:
                    writer.write([packet], moment, int(sent))
            text += f"  the last {len(packets)} packets: {path}\n"
        return text

    # --- callbacks, in the background thread --------------------------------------------------------------------

    def _on_connect(self, interface: Interface) -> None:
        self._inbox.peer_came()
        if self._then_connect is not None:
            self._then_connect(interface)

    def _on_interrupt(self, interface: Interface, qid: int) -> None:
        """Take packets at once, because those in a ring are lost when the peer goes away."""
        with contextlib.suppress(Disconnected):  # on_disconnect reports it
            self._put(interface.rx_queues[qid].recv())

    def _on_ending(self, interface: Interface) -> None:
        """Take the packets that are still in the rings, which end with the connection."""
        with contextlib.suppress(Disconnected):  # the peer broke the ring: the packets before that are here
            self._take(interface)

    def _on_disconnect(self, interface: Interface, reason: Disconnected) -> None:
        self._inbox.peer_left(reason)
        if self._then_disconnect is not None:
            self._then_disconnect(interface, reason)

    def __repr__(self) -> str:
        return f"<MemifPort {self.interface}, {self.interface.state_name}>"


class PortMaker(Protocol):
    """The maker of the ports to a peer: :class:`memifrt.testing.memif.Memif`."""

    def directory(self) -> Path: ...
    def socket(self) -> str: ...
    def port(self, *, wait: bool = False, **options: Unpack[PortOptions]) -> MemifPort: ...


class MemifPair(NamedTuple):
    """Two ports that are connected to each other: ``master, slave = memif.pair()``."""

    master: MemifPort
    slave: MemifPort


@dataclass(frozen=True)
class MemifResponder:
    """A port in the background that answers ARP and ICMP echo for one address."""

    port: MemifPort
    ip: str
    mac: str

    @property
    def socket(self) -> str:
        """The path of the socket, for the configuration of the peer."""
        return self.port.socket

    @property
    def connected(self) -> bool:
        """Whether there is a peer."""
        return self.port.connected

    @property
    def counters(self) -> Counters:
        """The counters of all queues of the port, reconnects included."""
        return self.port.counters

    def close(self) -> None:
        """Delete the interface before the end of the test. A second call is harmless."""
        self.port.close()

    @property
    def answered(self) -> int:
        """The number of replies so far."""
        return sum(queue.counters.packets for queue in self.port.interface.tx_queues)


def _is_packet(value: object) -> bool:
    """Return whether this is one packet and not several. A scapy packet is iterable too."""
    if isinstance(value, SupportsBytes):
        return True
    try:
        return memoryview(cast("ReadableBuffer", value)).ndim == 1
    except TypeError:
        return False
