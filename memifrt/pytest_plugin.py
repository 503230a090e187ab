"""pytest fixtures for tests of programs that use memif: a VPP plugin, a DPDK application, your own program.

Owns everything that a test opens, and closes it afterwards. The fixture :func:`memif` makes ports, pairs, listeners and
responders with any options. :func:`memif_socket`, :func:`memif_pair`, :func:`memif_listener` and
:func:`memif_responder` are shorthands. A background thread handles every interface, so a test is a sequence of sends
and receives, each with a deadline::

    def test_plugin_counts_what_it_forwards(memif, vpp):
        listener = memif.listener()
        vpp.cli(f"create memif socket id 1 filename {listener.socket}")
        vpp.cli("create interface memif id 0 socket-id 1 slave")
        listener.wait_connected()
        listener.send(packet)
        assert listener.recv() == [expected]

pytest imports this module in every run where memifrt is installed. So modules that only some tests need are imported in
the functions that use them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, SupportsBytes, TypeVar, cast

import pytest

from memifrt.errors import ConfigError, Disconnected, ForkedError, check_packets, packet_bytes
from memifrt.interface import Interface, OnConnect, OnDisconnect
from memifrt.options import InterfaceOptions, parse_rx_mode
from memifrt.queue import RxQueue, TxQueue
from memifrt.renamed import renamed_arguments, warn_renamed
from memifrt.runtime import InterfaceArguments, Runtime
from memifrt.threaded.inbox import Inbox
from memifrt.types import PATH_BYTES, Counters, Role, RxMode

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from memifrt.scapy import MemifSocket
    from memifrt.threaded.runtime_thread import Background
    from memifrt.types import ReadableBuffer

    #: A packet to send: a bytes-like object or a scapy packet.
    Sendable = ReadableBuffer | SupportsBytes

_T = TypeVar("_T")
_Q = TypeVar("_Q", RxQueue, TxQueue)

#: The application's name that peers see.
APP_NAME = "memifrt pytest"
#: Seconds between two attempts of a slave to connect. It is short because a test waits for it.
_RECONNECT_INTERVAL = 0.02
#: Seconds between two looks where no event comes: for room in a ring, or at a queue that is polled.
_TICK = 0.0005
_LONGEST_POLL = 0.25
#: Bytes that the names of our directory and of a socket in it need.
_ROOM = 40


class MemifTimeout(AssertionError):
    """A wait of a test reached its timeout. The message says what happened until then."""


class PortOptions(InterfaceArguments, total=False):
    """The options of a port: those of :meth:`memifrt.Runtime.create_interface`, and ``receive``.

    ``receive=False`` leaves packets in the rings until the test calls :meth:`MemifPort.recv`. Use it to fill a ring, or
    to read from ``port.interface.rx_queues`` in the test. ``on_interrupt`` and ``rx_mode="polling"`` have the same
    effect.
    """

    receive: bool


# --- ports and what is made of them ---------------------------------------------------------------------------------


class MemifPort:
    """One interface of a test, connected or not. :class:`Memif` makes it.

    A call that waits takes a ``timeout`` in seconds; None means the ini option ``memif_timeout``. It raises
    :class:`MemifTimeout` after that time, and :class:`~memifrt.Disconnected` if the peer goes away. :meth:`send`,
    :meth:`recv` and :meth:`collect` also wait for the first peer.
    """

    def __init__(self, background: Background, timeout: float, options: PortOptions) -> None:
        self._background = background
        self._timeout = timeout
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
        create = functools.partial(self._background.runtime.create_interface, **cast("InterfaceArguments", wanted))
        return self._background.call(create)

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

        :raises MemifTimeout: no peer connected in time. The message says why the last attempt failed.
        """
        __tracebackhide__ = True
        if not self._inbox.wait_connected(limit := self._limit(timeout)):
            why = self.interface.last_error or "nobody has connected to it"
            raise MemifTimeout(f"{self.interface}: not connected within {limit:g} s: {why}")
        return self

    def wait_disconnected(self, timeout: float | None = None) -> Disconnected:
        """Wait until no peer is connected, and return the reason.

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
                del rest[: tx.send(rest)]
            if rest and time.monotonic() >= deadline:
                sent = f"{total - len(rest)} of {total}"
                raise MemifTimeout(f"{self.interface}: the ring is full after {limit:g} s: {sent} packets are sent")
            if rest:
                time.sleep(_TICK)
        return total

    def recv(self, count: int = 1, timeout: float | None = None) -> list[bytes]:
        """Wait for exactly ``count`` packets from all queues. Further packets stay for the next call.

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
            self._take()
        return self._inbox.take_all()

    def _has(self, count: int | None, deadline: float) -> bool:
        """Wait for packets, at most until the deadline; return whether ``count`` of them have come (None: never).

        :raises Disconnected: fewer have come, and the peer is gone.
        """
        left = max(deadline - time.monotonic(), 0)
        if self._receives:
            try:
                return self._inbox.wait(count, left, needs_peer=True)
            except Disconnected as error:
                came = f"{len(self._inbox)} packets came"
                raise Disconnected(f"{self.interface}: {error.message}; {came}") from error
        if count is None or len(self._inbox) < count:
            self._wait_for_rings(left)
            self._take()
        return count is not None and len(self._inbox) >= count

    def _wait_for_rings(self, seconds: float) -> None:
        queues = self.interface.rx_queues
        wait = _TICK if any(queue.rx_mode is RxMode.POLLING for queue in queues) else _LONGEST_POLL
        poll = select.poll()
        with self._named():
            for queue in queues:
                poll.register(queue.fileno(), select.POLLIN)
            poll.poll(min(seconds, wait) * 1000)

    def _take(self) -> None:
        with self._named():
            for queue in self.interface.rx_queues:
                self._inbox.put(queue.recv(queue.ring_size))

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

    # --- callbacks, in the background thread --------------------------------------------------------------------

    def _on_connect(self, interface: Interface) -> None:
        self._inbox.peer_came()
        if self._then_connect is not None:
            self._then_connect(interface)

    def _on_interrupt(self, interface: Interface, qid: int) -> None:
        """Take packets at once, because those in a ring are lost when the peer goes away."""
        with contextlib.suppress(Disconnected):  # on_disconnect reports it
            self._inbox.put(interface.rx_queues[qid].recv())

    def _on_disconnect(self, interface: Interface, reason: Disconnected) -> None:
        self._inbox.peer_left(reason)
        if self._then_disconnect is not None:
            self._then_disconnect(interface, reason)

    def __repr__(self) -> str:
        return f"<MemifPort {self.interface}, {self.interface.state.value}>"


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


def _short_directory() -> Path:
    """Make a directory with a path that is short enough for a socket in it, even if TMPDIR is too long.

    :raises ConfigError: no directory for temporary files is both short and writable.
    """
    places = [tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp", "/var/tmp", "/dev/shm"]
    for place in places:
        if place and len(os.fsencode(place)) <= PATH_BYTES - _ROOM:
            with contextlib.suppress(OSError):
                return Path(tempfile.mkdtemp(prefix="memif-", dir=place))
    raise ConfigError(
        f"cannot make a directory for a socket: {', '.join(filter(None, places))} are not writable, or too long for a "
        f"socket path of at most {PATH_BYTES} bytes; set TMPDIR to a short, writable directory"
    )


class Memif:
    """Makes ports, pairs, listeners and responders for a test, and closes them after it.

    An exception that a callback raised fails the test. The options of a port are :class:`PortOptions`: ``role``,
    ``id``, ``mode``, ``queues``, ``secret``, …
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._stack = contextlib.ExitStack()
        self._made: Background | None = None
        self._directory: Path | None = None
        self._sockets = 0

    def socket(self) -> str:
        """Return a new path for a socket, short enough for an address. A file there is removed after the test."""
        if self._directory is None:
            # pytest's tmp_path contains the name of the test and may be longer than the 107 bytes of an address.
            self._directory = _short_directory()
            self._stack.callback(shutil.rmtree, self._directory, ignore_errors=True)
        self._sockets += 1
        return str(self._directory / f"{self._sockets}.sock")

    def port(self, *, wait: bool = False, **options: Unpack[PortOptions]) -> MemifPort:
        """Make one interface; by default a slave on a new socket.

        :param wait: whether to wait for a peer.
        :raises MemifError: an option is wrong, or a master cannot listen.
        :raises MemifTimeout: no peer connected in time.
        """
        __tracebackhide__ = True
        options.setdefault("socket", self.socket())
        port = MemifPort(self._background, self._timeout, options)
        return port.wait_connected() if wait else port

    def listener(self, *, wait: bool = False, **options: Unpack[PortOptions]) -> MemifPort:
        """Make a master that the program under test can connect to. The arguments are those of :meth:`port`."""
        options.setdefault("role", Role.MASTER)
        return self.port(wait=wait, **options)

    def pair(
        self, *, master: PortOptions | None = None, slave: PortOptions | None = None, **common: Unpack[PortOptions]
    ) -> MemifPair:
        """Make two ports that are connected to each other.

        :param master: options only for the master: ``memif.pair(queues=2, master={"rx_mode": "polling"})``.
        :param slave: options only for the slave.
        :raises MemifTimeout: they do not connect, for example because the secrets differ. The message says why.
        """
        __tracebackhide__ = True
        common.setdefault("socket", self.socket())
        first: PortOptions = {**common, **(master or {}), "role": Role.MASTER}
        second: PortOptions = {**common, **(slave or {}), "role": Role.SLAVE}
        pair = MemifPair(self.port(**first), self.port(**second))
        for port in (pair.slave, pair.master):  # the slave first: it gets the reason of a refusal
            port.wait_connected()
        return pair

    def responder(
        self, ip: str = "192.168.1.2", mac: str | None = None, *, wait: bool = False, **options: Unpack[PortOptions]
    ) -> MemifResponder:
        """Make a port that answers ARP and ICMP echo requests for ``ip`` in the background; by default a master.

        :param mac: the MAC address; by default 02:fe and the four bytes of the IP address.
        """
        __tracebackhide__ = True
        from memifrt.cli.commands.responder import serve
        from memifrt.cli.program import default_mac
        from memifrt.packets import format_ip, format_mac, parse_ip, parse_mac, reply_in_place

        own_ip = parse_ip(ip)
        own_mac = default_mac(own_ip) if mac is None else parse_mac(mac)

        def on_interrupt(interface: Interface, qid: int) -> None:
            mode = interface.mode
            serve(interface, qid, lambda packet: reply_in_place(packet, own_ip, own_mac, mode=mode))

        options.setdefault("role", Role.MASTER)
        options["on_interrupt"] = on_interrupt
        return MemifResponder(self.port(wait=wait, **options), format_ip(own_ip), format_mac(own_mac))

    def scapy(
        self,
        *,
        socket: str | None = None,
        timeout: float | None = None,
        reconnect: bool = True,
        **options: Unpack[InterfaceOptions],
    ) -> MemifSocket:
        """Open a :class:`memifrt.scapy.MemifSocket`, on a new socket by default, and close it after the test.

        :param timeout: seconds to wait for its peer. 0 does not wait; None means the ini option ``memif_timeout``.
        :param reconnect: whether the socket stays open when the connection ends.
        :param options: as for every interface: ``role``, ``queues``, ``ring_size``, …
        :raises ImportError: scapy is missing: install ``memifrt[scapy]``.
        """
        __tracebackhide__ = True
        from memifrt.scapy import MemifSocket

        path = self.socket() if socket is None else socket
        limit = self._timeout if timeout is None else timeout
        made = MemifSocket(path, timeout=limit, reconnect=reconnect, **options)
        self._stack.callback(made.close)
        return made

    def close(self) -> None:
        """Close everything.

        :raises BaseException: the first exception that a callback raised.
        """
        self._stack.close()
        if self._made is not None and self._made.failure is not None:
            raise self._made.failure

    @property
    def _background(self) -> Background:
        """The background thread. It starts at the first use, so a test that only needs a path has none."""
        if self._made is None:
            from memifrt.threaded.runtime_thread import Background

            self._made = Background(Runtime(APP_NAME, reconnect_interval=_RECONNECT_INTERVAL))
            self._stack.callback(self._made.close)
        return self._made


# --- fixtures -------------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("memif_timeout", "seconds that the memif fixtures wait for a peer or a packet", default="10")


@pytest.fixture
def memif(request: pytest.FixtureRequest) -> Iterator[Memif]:
    """A :class:`memifrt.pytest_plugin.Memif`: makes ports, pairs, listeners and responders, and closes them."""
    made = Memif(_timeout(request.config))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def memif_socket(memif: Memif) -> str:
    """A path for a memif socket. A file there is removed after the test."""
    return memif.socket()


@pytest.fixture
def memif_pair(memif: Memif) -> MemifPair:
    """A master and a slave, connected to each other."""
    return memif.pair()


@pytest.fixture
def memif_listener(memif: Memif) -> MemifPort:
    """A master that listens on a temporary socket."""
    return memif.listener()


@pytest.fixture
def memif_responder(memif: Memif) -> MemifResponder:
    """Answers ARP and ping for 192.168.1.2, as a master on a temporary socket."""
    return memif.responder()


def _timeout(config: pytest.Config) -> float:
    text = config.getini("memif_timeout")
    with contextlib.suppress(ValueError):
        if (seconds := float(text)) > 0:
            return seconds
    raise pytest.UsageError(f"memif_timeout is {text!r}; it must be a number of seconds")
