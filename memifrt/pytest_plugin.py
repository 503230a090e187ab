"""Fixtures of pytest for tests of what speaks memif: a VPP plugin, a DPDK application, a program of one's own.

Owns what a test opens, and that it is all closed afterwards. The fixtures: :func:`memif` makes ports, pairs,
listeners and responders with any options; :func:`memif_socket`, :func:`memif_pair`, :func:`memif_listener` and
:func:`memif_responder` are the usual ones. Every interface is handled by a background thread, so that a test is a
straight line of sends and receives, each with a deadline::

    def test_plugin_counts_what_it_forwards(memif, vpp):
        listener = memif.listener()
        vpp.cli(f"create memif socket id 1 filename {listener.socket}")
        vpp.cli("create interface memif id 0 socket-id 1 slave")
        listener.wait_connected()
        listener.send(packet)
        assert listener.recv() == [expected]

Every run of pytest imports this module, where memifrt is installed: what only some tests need is imported there.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, SupportsBytes, TypeVar, cast

import pytest

from memifrt.errors import ConfigError, Disconnected, ForkedError, packet_bytes
from memifrt.interface import Interface, OnConnect, OnDisconnect
from memifrt.options import InterfaceOptions, parse_rx_mode
from memifrt.queue import RxQueue, TxQueue, check_packets
from memifrt.renamed import renamed_arguments, warn_renamed
from memifrt.runtime import InterfaceArguments, Runtime
from memifrt.system.forks import abandon_after_fork
from memifrt.types import PATH_BYTES, Counters, Role, RxMode

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from memifrt.scapy import MemifSocket
    from memifrt.threaded.runtime_thread import Background
    from memifrt.types import ReadableBuffer

    #: What can be sent: bytes of any kind, or a packet of scapy's.
    Sendable = ReadableBuffer | SupportsBytes

_T = TypeVar("_T")
_Q = TypeVar("_Q", RxQueue, TxQueue)

#: What peers see of us.
APP_NAME = "memifrt pytest"
#: Seconds between two attempts of a slave to connect: a test waits for it.
_RECONNECT_INTERVAL = 0.02
#: Seconds between two looks where no event tells: room in a ring, a queue whose eventfd is gone.
_TICK = 0.0005
_LONGEST_POLL = 0.25
#: Bytes that the name of a directory of ours and of a socket in it take.
_ROOM = 40


class MemifTimeout(AssertionError):
    """What a test waited for has not come in time; the message says what has."""


class PortOptions(InterfaceArguments, total=False):
    """The options of a port: those of :meth:`memifrt.Runtime.create_interface`, and ``receive``.

    ``receive=False`` leaves packets in the rings until :meth:`MemifPort.recv` asks for them, for a test that wants a
    full ring, or uses ``port.interface.rx_queues`` itself. So does an ``on_interrupt``, and ``rx_mode="polling"``.
    """

    receive: bool


# --- what a test holds ----------------------------------------------------------------------------------------------


class MemifPort:
    """One interface of a test, connected or not. Made by :class:`Memif`.

    Waits last at most ``timeout`` seconds; None is the ini option ``memif_timeout``. They raise
    :class:`MemifTimeout`, and :class:`~memifrt.Disconnected` when the peer is gone. To send or receive waits for the
    first peer too.
    """

    def __init__(self, background: Background, timeout: float) -> None:
        self._background = background
        self._timeout = timeout
        self._changed = threading.Condition()
        self._up = False
        self._reason: Disconnected | None = None
        self._then_connect: OnConnect | None = None
        self._then_disconnect: OnDisconnect | None = None
        self._received: list[bytes] = []
        self._receives = True
        #: For its state, queues and counters; what changes it is to be called with :meth:`call`.
        self.interface: Interface
        abandon_after_fork(self._abandon)

    def _create(self, options: PortOptions) -> None:
        self._then_connect, self._then_disconnect = options.get("on_connect"), options.get("on_disconnect")
        wanted = {key: value for key, value in options.items() if key != "receive"}
        wanted |= {"on_connect": self._on_connect, "on_disconnect": self._on_disconnect}
        polling = parse_rx_mode(options.get("rx_mode", RxMode.INTERRUPT)) is RxMode.POLLING
        self._receives = options.get("receive", True) and options.get("on_interrupt") is None and not polling
        if self._receives:
            wanted["on_interrupt"] = self._on_interrupt
        create = functools.partial(self._background.runtime.create_interface, **cast("InterfaceArguments", wanted))
        self.interface = self._background.call(create)

    # --- the connection -----------------------------------------------------------------------------------------

    @property
    def socket(self) -> str:
        """The path of its socket, for the other side's configuration."""
        return self.interface.socket.path

    @property
    def connected(self) -> bool:
        """Whether there is a peer, and ``on_connect`` has been called for it."""
        return self._up

    @property
    def counters(self) -> Counters:
        """What all queues did since the interface was created, reconnects included."""
        return self.interface.counters

    def wait_connected(self, timeout: float | None = None) -> MemifPort:
        """Wait for the peer; the port itself.

        :raises MemifTimeout: none has come; with what the last attempt to connect met.
        """
        __tracebackhide__ = True
        with self._changed:
            if not self._changed.wait_for(lambda: self._up, limit := self._limit(timeout)):
                why = self.interface.last_error or "nobody has connected to it"
                raise MemifTimeout(f"{self.interface}: not connected within {limit:g} s: {why}")
        return self

    def wait_disconnected(self, timeout: float | None = None) -> Disconnected:
        """Wait until the peer is gone; why it went.

        :raises MemifTimeout: it is still there.
        """
        __tracebackhide__ = True
        with self._changed:
            if not self._changed.wait_for(lambda: not self._up, limit := self._limit(timeout)):
                raise MemifTimeout(f"{self.interface}: still connected after {limit:g} s")
            return self._reason or Disconnected(f"{self.interface}: never connected")

    def disconnect(self, reason: str = "disconnected by the test") -> None:
        """End the connection, with a reason that the peer hears; a slave then connects again."""
        self._background.call(lambda: self.interface.disconnect(reason))

    def close(self) -> None:
        """Delete the interface, before the end of the test does. Twice is harmless."""
        with contextlib.suppress(ForkedError):
            self._background.call(self.interface.delete)

    def call(self, function: Callable[[], _T]) -> _T:
        """Call a function in the thread that handles the interface's events; what it returns."""
        return self._background.call(function)

    # --- packets ------------------------------------------------------------------------------------------------

    @renamed_arguments(queue="qid")
    def send(
        self, packets: Iterable[Sendable] = (), *more: Sendable, qid: int = 0, timeout: float | None = None
    ) -> int:
        """Send all packets, and wait for room where the ring is full.

        :param packets: bytes of any kind, or packets of scapy's. One packet, or packets as arguments of their own
            (``more``), are the old way: it warns.
        :param qid: the number of the transmit queue.
        :returns: how many were sent: all of them.
        :raises MemifTimeout: the peer has not made room for all; the message says for how many.
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
        """Wait for exactly ``count`` packets, of all queues. What comes beyond them is kept for the next call.

        :raises MemifTimeout: fewer have come; the message says how many, and they are kept.
        """
        __tracebackhide__ = True
        deadline = self._begin(limit := self._limit(timeout))
        while not self._has(count, deadline):
            if time.monotonic() >= deadline:
                got = len(self._received)
                raise MemifTimeout(f"{self.interface}: {got} of {count} packets have come within {limit:g} s")
        return self._give(count)

    @renamed_arguments(seconds="timeout")
    def collect(self, timeout: float) -> list[bytes]:
        """Return every packet that is here or comes within ``timeout`` seconds: ``assert port.collect(0.1) == []``."""
        __tracebackhide__ = True
        deadline = self._begin(timeout)
        with contextlib.suppress(Disconnected):  # what came before is what came
            while time.monotonic() < deadline:
                self._has(None, deadline)
        if not self._receives:
            self._take()
        return self._give(len(self._received))

    def _has(self, count: int | None, deadline: float) -> bool:
        """Wait for packets until the deadline, or for a while; whether there are so many (None: never enough).

        :raises Disconnected: there are fewer, and the peer is gone.
        """

        def enough() -> bool:
            return count is not None and len(self._received) >= count

        left = max(deadline - time.monotonic(), 0)
        if not self._receives:
            if not enough():
                self._wait_for_rings(left)
                self._take()
            return enough()
        with self._changed:
            self._changed.wait_for(lambda: enough() or not self._up, left)
            if not enough() and not self._up:
                raise Disconnected(
                    f"{self.interface}: not connected: {self._reason}; {len(self._received)} packets came"
                )
            return enough()

    def _give(self, count: int) -> list[bytes]:
        with self._changed:
            taken, self._received = self._received[:count], self._received[count:]
        return taken

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
                self._received += queue.recv(queue.ring_size)

    def _queue(self, queues: tuple[_Q, ...], number: int) -> _Q:
        if not 0 <= number < len(queues):
            raise ConfigError(f"{self.interface}: qid is {number}; it must be a whole number below {len(queues)}")
        return queues[number]

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """A queue does not know whose it is."""
        try:
            yield
        except Disconnected as error:
            raise Disconnected(f"{self.interface}: not connected: {error}") from error

    def _begin(self, limit: float) -> float:
        """Wait for the first peer; until when the rest may last."""
        __tracebackhide__ = True
        self.interface.check_not_forked()
        deadline = time.monotonic() + limit
        if not self.interface.rx_queues and not self.interface.tx_queues:
            self.wait_connected(limit)
        return deadline

    def _limit(self, timeout: float | None) -> float:
        self.interface.check_not_forked()
        return self._timeout if timeout is None else timeout

    def _abandon(self) -> None:
        """In a forked child: a thread that it does not have may hold the lock."""
        self._changed = threading.Condition()
        self._up = False

    # --- callbacks, in the background thread --------------------------------------------------------------------

    def _on_connect(self, interface: Interface) -> None:
        with self._changed:
            self._up = True
            self._changed.notify_all()
        if self._then_connect is not None:
            self._then_connect(interface)

    def _on_interrupt(self, interface: Interface, qid: int) -> None:
        """Packets are taken at once: what is still in a ring goes with the peer."""
        with contextlib.suppress(Disconnected), self._changed:  # on_disconnect tells
            self._received += interface.rx_queues[qid].recv()
            self._changed.notify_all()

    def _on_disconnect(self, interface: Interface, reason: Disconnected) -> None:
        with self._changed:
            self._up = False
            self._reason = reason
            self._changed.notify_all()
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
        """The path of its socket, for the other side's configuration."""
        return self.port.socket

    @property
    def connected(self) -> bool:
        """Whether there is a peer."""
        return self.port.connected

    @property
    def counters(self) -> Counters:
        """What all queues of its port did, reconnects included."""
        return self.port.counters

    def close(self) -> None:
        """Delete the interface, before the end of the test does. A second call is harmless."""
        self.port.close()

    @property
    def answered(self) -> int:
        """Replies so far."""
        return sum(queue.counters.packets for queue in self.port.interface.tx_queues)


def _is_packet(value: object) -> bool:
    """Whether this is one packet and not several: bytes of any kind, or a packet of scapy's, which one can iterate."""
    if isinstance(value, SupportsBytes):
        return True
    try:
        return memoryview(cast("ReadableBuffer", value)).ndim == 1
    except TypeError:
        return False


def _short_directory() -> Path:
    """Make a directory in which the path of a socket fits into an address, whatever TMPDIR is.

    :raises ConfigError: no directory for temporary files is both short and writable.
    """
    places = [tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp", "/var/tmp", "/dev/shm"]
    for place in places:
        if place and len(os.fsencode(place)) <= PATH_BYTES - _ROOM:
            with contextlib.suppress(OSError):
                return Path(tempfile.mkdtemp(prefix="memif-", dir=place))
    raise ConfigError(
        f"no directory for a socket: a path may have {PATH_BYTES} bytes, and none of {', '.join(filter(None, places))} "
        "is short and writable; set TMPDIR to a shorter one"
    )


class Memif:
    """Makes what a test needs of memif. Everything is closed after the test, in whatever state it is, and an exception
    that a callback raised meanwhile fails the test.

    What a port is asked for with are :class:`PortOptions`: ``role``, ``id``, ``mode``, ``queues``, ``secret``, …
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._stack = contextlib.ExitStack()
        self._made: Background | None = None
        self._directory: Path | None = None
        self._sockets = 0

    def socket(self) -> str:
        """A new path for a socket, short enough for an address. Nothing is there yet; what is goes after the test."""
        if self._directory is None:
            # Not pytest's tmp_path: with the test's name in it it may be longer than the 107 bytes of an address.
            self._directory = _short_directory()
            self._stack.callback(shutil.rmtree, self._directory, ignore_errors=True)
        self._sockets += 1
        return str(self._directory / f"{self._sockets}.sock")

    def port(self, *, wait: bool = False, **options: Unpack[PortOptions]) -> MemifPort:
        """One interface: a slave on a new socket, if nothing else is said.

        :param wait: whether to wait for its peer.
        :raises MemifError: an option is wrong, or a master cannot listen.
        :raises MemifTimeout: no peer has come.
        """
        __tracebackhide__ = True
        options.setdefault("socket", self.socket())
        port = MemifPort(self._background, self._timeout)
        port._create(options)
        return port.wait_connected() if wait else port

    def listener(self, *, wait: bool = False, **options: Unpack[PortOptions]) -> MemifPort:
        """A master, for the program under test to connect to."""
        options.setdefault("role", Role.MASTER)
        return self.port(wait=wait, **options)

    def pair(
        self, *, master: PortOptions | None = None, slave: PortOptions | None = None, **common: Unpack[PortOptions]
    ) -> MemifPair:
        """Two ports, connected to each other.

        :param master: options for the master alone: ``memif.pair(queues=2, master={"rx_mode": "polling"})``.
        :param slave: options for the slave alone.
        :raises MemifTimeout: they do not agree, as with two different secrets; the message says why.
        """
        __tracebackhide__ = True
        common.setdefault("socket", self.socket())
        first: PortOptions = {**common, **(master or {}), "role": Role.MASTER}
        second: PortOptions = {**common, **(slave or {}), "role": Role.SLAVE}
        pair = MemifPair(self.port(**first), self.port(**second))
        for port in (pair.slave, pair.master):  # it is the slave that is told why not
            port.wait_connected()
        return pair

    def responder(
        self, ip: str = "192.168.1.2", mac: str | None = None, *, wait: bool = False, **options: Unpack[PortOptions]
    ) -> MemifResponder:
        """A port that answers ARP and ICMP echo requests for ``ip`` in the background: a master, if nothing else is
        said.

        :param mac: default 02:fe and the four bytes of the IP address.
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

        :param timeout: seconds to wait for its peer; 0 does not wait. None is the ini option ``memif_timeout``.
        :param reconnect: whether the socket outlives its connection.
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

        :raises BaseException: the first that a callback raised.
        """
        self._stack.close()
        if self._made is not None and self._made.failure is not None:
            raise self._made.failure

    @property
    def _background(self) -> Background:
        """Made when it is needed: a test that wants a path alone has no thread."""
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
    """A path for a memif socket; what is there after the test is removed."""
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
