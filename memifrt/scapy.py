"""A memif as a scapy socket, for ``send``, ``sr``, ``sniff``, ``bridge_and_sniff`` and scapy's other functions.

Owns :class:`MemifSocket`, the limit on packets that wait for scapy, and the one background thread of all sockets. Knows
nothing of rings: it moves packets from queues to an inbox, and sends packets to a queue. Needs the extra
``memifrt[scapy]``, and is the only module that imports scapy.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
import warnings
import weakref
from typing import TYPE_CHECKING, Any, cast

from memifrt.system.optional import Needs

with Needs("memifrt.scapy", "memifrt[scapy]"):
    from scapy.config import conf
    from scapy.data import MTU
    from scapy.error import log_runtime
    from scapy.layers.inet import IP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Ether
    from scapy.packet import Packet
    from scapy.supersocket import SuperSocket

from memifrt.errors import ConfigError, Disconnected, ErrorCode, ForkedError, MemifError, packet_bytes
from memifrt.interface import Interface
from memifrt.options import DEFAULT_SOCKET, InterfaceOptions
from memifrt.queue import DEFAULT_BURST
from memifrt.runtime import Runtime
from memifrt.sockets import Socket
from memifrt.system.forks import abandon_after_fork
from memifrt.threaded.inbox import Inbox
from memifrt.threaded.runtime_thread import Background
from memifrt.types import Counters, Mode, RxMode, check_range

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self, Unpack

    from memifrt.types import ReadableBuffer

__all__ = ["MemifSocket"]

#: The application's name that peers see.
APP_NAME = "memifrt scapy"
#: Seconds between two attempts of a slave to connect. It is short because the user waits for the connection.
_RECONNECT_INTERVAL = 0.25
#: Seconds between two looks at a full ring: no event says that the peer made room.
_TICK = 0.0005
#: The default ring size. It is large because scapy may delay the background thread, and a peer drops packets when the
#: ring is full.
_RING_SIZE = 4096
#: The number of packets that may wait for scapy before the background thread leaves the rest in the ring.
DEFAULT_BACKLOG = 65536


class MemifSocket(SuperSocket):
    """A memif interface as a scapy socket. It is a context manager.

    ::

        with MemifSocket(socket="/run/vpp/memif.sock", id=0) as s:
            reply = s.sr1(Ether(dst=mac) / IP(dst="192.168.1.1") / ICMP(), timeout=1)
            packets = s.sniff(count=10)
            sendp(packets, socket=s)
            bridge_and_sniff(s, other)

    **Packets** are :class:`~scapy.layers.l2.Ether` in Ethernet mode. In IP mode they are
    :class:`~scapy.layers.inet.IP` or :class:`~scapy.layers.inet6.IPv6`, by their first nibble. The socket receives on
    every queue and sends on the first one.

    **A background thread**, one for all sockets of the process, handles the control channel and takes packets from the
    rings at once, even while no scapy function runs. So the peer finds room, no packet is lost between two calls, and a
    slave connects again when its peer comes back. Up to ``backlog`` packets wait for scapy. The rest stays in the ring,
    and the ring is then full for the peer. ``fileno()`` is readable exactly when ``recv()`` returns at once. Any number
    of threads may send; only one thread at a time may receive.

    **Time**: ``packet.time`` is the time at which the thread found the packet in the ring. memif carries no
    timestamps, so all packets of one burst (up to 256) have the same time.

    **When the peer goes away**, packets that were received before can still be read. Then ``sniff`` waits for the peer
    to come back, and says so in scapy's log. With ``reconnect=False``, ``sniff`` and the socket end. In both cases
    ``send`` raises :class:`~memifrt.Disconnected` while there is no peer.

    :param socket: a path, or ``@name`` for the abstract namespace.
    :param id: the number of the interface on this socket; both ends need the same.
    :param role: ``"slave"`` (or ``"client"``) connects; ``"master"`` (or ``"server"``) listens.
    :param mode: ``"ethernet"`` or ``"ip"``; both ends need the same.
    :param secret: at most 23 bytes; a master requires it, a slave sends it.
    :param timeout: seconds to wait for the connection. 0 does not wait; None waits without a limit.
    :param interface: an existing interface, instead of ``socket`` and all options. Its runtime must be in internal
        mode. The background thread handles the events of that runtime until the last of its sockets is closed; the
        application must not poll it meanwhile. ``on_connect`` and ``on_disconnect`` of the interface are still called,
        in that thread. Closing the socket leaves the interface open.
    :param options: ``id``, ``role``, ``mode``, ``secret``, ``queues``, ``ring_size``, ``buffer_size`` and the others of
        :class:`memifrt.options.InterfaceOptions`. The default name is ``memif`` and the id. The default ring size is
        4096, because Python may delay the thread by some milliseconds.
    :param reconnect: whether the socket stays open when the connection ends.
    :param backlog: the number of packets that may wait for scapy before the rest stays in the ring.
    :param send_timeout: the seconds that ``send`` waits for room in a full ring.
    :param basecls: a class for received packets, instead of the ones above.
    :raises ConfigError: an argument is wrong.
    :raises MemifOSError: a master cannot listen.
    :raises Disconnected: there was no connection within ``timeout``. The message says why the last attempt failed.
    """

    desc = "send and receive packets on a memif (shared memory packet interface)"

    def __init__(
        self,
        socket: str | os.PathLike[str] | Socket = DEFAULT_SOCKET,
        *positional: Any,
        timeout: float | None = 10.0,
        interface: Interface | None = None,
        reconnect: bool = True,
        backlog: int = DEFAULT_BACKLOG,
        send_timeout: float = 1.0,
        basecls: type[Packet] | None = None,
        **options: Unpack[InterfaceOptions],
    ) -> None:
        self.closed = True  # so that __del__ closes nothing if the arguments are wrong
        _check_seconds("timeout", timeout)
        self._send_timeout = _check_seconds("send_timeout", send_timeout) or 0.0
        check_range("backlog", backlog, 1, 1 << 30)
        self._sending = threading.Lock()
        self._background = _acquire(interface)
        try:
            self._link = link = _Link(self._background, backlog, reconnect=reconnect)
        except BaseException:
            self._background.release()
            raise
        self.closed = False
        abandon_after_fork(self._abandon)
        if positional:
            options = _named(positional, options)
        options.setdefault("name", f"memif{options.get('id', 0)}")
        if "log2_ring_size" not in options:
            options.setdefault("ring_size", _RING_SIZE)
        create = functools.partial(
            self._background.runtime.create_interface,
            socket=socket,
            **options,
        )
        try:
            self._background.call(lambda: link.make(create) if interface is None else link.adopt(interface))
            self.iface = self.interface.name or f"memif{self.interface.id}"
            self._class_of = _class_of(self.interface.mode) if basecls is None else lambda packet: basecls
            self._await_connection(timeout)
        except BaseException:
            self.close()
            raise

    # --- state --------------------------------------------------------------------------------------------------

    @property
    def interface(self) -> Interface:
        """The interface, for its state and counters. Only the background thread may change it."""
        return self._link.interface

    @property
    def connected(self) -> bool:
        """Whether there is a peer and ``on_connect`` has been called for it."""
        return not self.closed and self._link.inbox.connected

    @property
    def counters(self) -> Counters:
        """The counters of all queues since the interface was created, reconnects included."""
        return self.interface.counters

    @property
    def waiting(self) -> int:
        """The number of received packets that scapy has not read yet."""
        return len(self._link.inbox)

    def fileno(self) -> int:
        """Return an fd that is readable exactly when :meth:`recv` returns at once; -1 once the socket is closed."""
        return -1 if self.closed else self._link.inbox.fileno()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "connected" if self.connected else "not connected"
        return f"<MemifSocket {self.iface}: {self.interface}, {state}>"

    def _abandon(self) -> None:
        """Replace the lock in a forked child: a thread that exists only in the parent may hold it."""
        self._sending = threading.Lock()

    # --- packets ------------------------------------------------------------------------------------------------

    def send(self, x: Packet | ReadableBuffer) -> int:
        """Send one packet and return its length in bytes. Wait for room if the ring is full.

        :param x: a scapy packet, or bytes, which are sent unchanged.
        :raises Disconnected: there is no peer.
        :raises MemifError: the peer made no room within ``send_timeout`` (``NOBUF_RING``), or the socket is closed
            (``BAD_FD``).
        :raises ConfigError: the packet is empty or too long for the ring, or a scapy packet starts with the wrong layer
            for the mode of the interface.
        """
        data, patience = packet_bytes(0, x), self._send_timeout
        if isinstance(x, Packet):
            _check_layer(self.interface, x)
            x.sent_time = time.time()  # before it is sent, so that no answer is older than its request
        with self._sending:
            deadline = time.monotonic() + patience
            while not self._transmit(data):
                if time.monotonic() >= deadline:
                    message = f"{self.interface}: the ring is full: the peer took no packet for {patience:g} s"
                    raise MemifError(ErrorCode.NOBUF_RING, message)
                time.sleep(_TICK)
        return len(data)

    def _transmit(self, data: bytes) -> bool:
        """Send a packet; return False if the ring is full."""
        interface = self.interface
        if self.closed:
            raise MemifError(ErrorCode.BAD_FD, f"{interface}: this socket is closed")
        queues = interface.tx_queues
        if not queues:
            interface.check_not_forked()
        if not queues and self.connected:  # a slave may offer no queue in this direction
            raise MemifError(ErrorCode.QID, f"{interface}: the peer offers no queue to send on")
        if not queues:
            raise _not_connected(interface, "", interface.last_error)
        try:
            return queues[0].send([data]) == 1
        except Disconnected as error:
            raise _not_connected(interface, "", error) from error

    def recv_raw(self, x: int = MTU) -> tuple[type[Packet], bytes, float]:
        """Wait for the next packet; return its class, its first ``x`` bytes, and its time in seconds.

        :raises EOFError: the socket is closed, or the peer is gone and ``reconnect`` is off.
        """
        while (taken := self._take()) is None:
            self._link.inbox.wait(1, None, needs_peer=False)
        data, when = taken
        return self._class_of(data), data[:x], when

    def nonblock_recv(self, x: int = MTU) -> Packet | None:
        """Return the next packet, or None if there is none now.

        :raises EOFError: the socket is closed, or the peer is gone and ``reconnect`` is off.
        """
        return self.recv(x) if self._link.inbox.readable else None

    def _take(self) -> tuple[bytes, float] | None:
        try:
            taken = self._link.inbox.take()
        except ForkedError as error:  # scapy's functions end a socket at an EOFError alone
            raise EOFError(str(error)) from error
        self._link.after_take()
        return taken

    # --- opening and closing ------------------------------------------------------------------------------------

    def _await_connection(self, timeout: float | None) -> None:
        if timeout == 0 or self._link.inbox.wait_connected(timeout):
            return
        last = self.interface.last_error
        raise _not_connected(self.interface, f" within {timeout:g} s", last)

    def close(self) -> None:
        """Close the socket and delete its interface, unless the application gave it. A second call is harmless.

        A thread that waits in :meth:`recv` gets an ``EOFError``.
        """
        self._close(wait=True)

    def _close(self, *, wait: bool) -> None:
        if self.closed:
            return
        self.closed = True
        link = self._link
        try:
            if wait:
                with contextlib.suppress(MemifError):  # the thread and the interface have ended already
                    self._background.call(link.close)
            else:
                self._background.post(link.close)
        finally:
            self._background.release(wait=wait)
            link.inbox.close()

    def __enter__(self) -> Self:
        return self

    def __del__(self) -> None:
        # The garbage collector may run while any lock is held, so this must not wait for the thread.
        if not getattr(self, "closed", True):
            self._close(wait=False)

    def __call__(self, *args: object, **kwargs: object) -> SuperSocket:
        """Return a view of this socket that scapy can open and close without closing this socket.

        ``conf.L2socket = conf.L2listen = s`` makes ``srp``, ``sendp``, ``sniff`` and ``arping`` use this memif. In IP
        mode ``conf.L3socket = s`` does so for ``sr`` and ``send``.

        :raises ConfigError: ``sniff`` asks for a BPF filter. A memif has none; use scapy's ``lfilter``.
        """
        # sr and its relatives pass "nofilter" and a filter that only spares them other packets: they work without it.
        if kwargs.get("filter") and "nofilter" not in kwargs:
            raise ConfigError(f"filter is {kwargs['filter']!r}: a memif has no BPF filter; use lfilter")
        return _NonClosingView(self)


class _NonClosingView(SuperSocket):
    """A view of a :class:`MemifSocket`. Closing the view leaves the socket open."""

    def __init__(self, owner: MemifSocket) -> None:
        self._owner = owner
        self.iface = owner.iface

    def send(self, x: Packet) -> int:
        return self._owner.send(x)

    def recv_raw(self, x: int = MTU) -> tuple[type[Packet], bytes, float]:
        return self._owner.recv_raw(x)

    def fileno(self) -> int:
        return self._owner.fileno()

    def close(self) -> None:
        self.closed = True


class _Link:
    """One interface and its callbacks, which run in the background thread.

    It holds no reference to the socket, so that the garbage collector closes a socket that is no longer used.
    """

    interface: Interface

    def __init__(self, background: Background, backlog: int, *, reconnect: bool) -> None:
        self.inbox = Inbox("memif socket")
        self.inbox.fileno()  # makes the fd, which scapy selects, or fails now
        self._background = background
        self._backlog = backlog
        self._reconnect = reconnect
        self._paused = False
        self._closing = False
        self._undo: Callable[[], object] = _nothing
        self._before_connect: Callable[[Interface], object] | None = None
        self._before_disconnect: Callable[[Interface, Disconnected], object] | None = None

    def make(self, create: Callable[..., Interface]) -> None:
        """Create an interface. :meth:`close` deletes it."""
        self.interface = create(
            on_connect=self.on_connect, on_disconnect=self.on_disconnect, on_interrupt=self.on_interrupt
        )
        self.interface.on_ending = self.on_ending
        self._undo = self.interface.delete

    def adopt(self, interface: Interface) -> None:
        """Use an interface of the application. :meth:`close` restores its callbacks.

        :raises ConfigError: the interface is deleted, has a socket already, or is polled.
        """
        if interface.deleted:
            raise ConfigError(f"{interface} is deleted")
        if interface in _adopted:
            raise ConfigError(f"{interface} has a MemifSocket already")
        if interface.config.rx_mode is RxMode.POLLING:
            raise ConfigError(f"{interface} has rx_mode polling; a MemifSocket needs interrupt or adaptive")
        self.interface = interface
        before = interface.on_connect, interface.on_disconnect, interface.on_interrupt
        self._before_connect, self._before_disconnect, _ = before

        def undo() -> None:
            interface.on_connect, interface.on_disconnect, interface.on_interrupt = before
            interface.on_ending = None
            _adopted.discard(interface)

        interface.on_connect, interface.on_disconnect = self.on_connect, self.on_disconnect
        interface.on_interrupt = self.on_interrupt
        interface.on_ending = self.on_ending
        self._undo = undo
        _adopted.add(interface)
        if interface.connected:
            self.inbox.peer_came()

    def close(self) -> None:
        """Delete the interface, or give it back to the application. A second call is harmless."""
        undo, self._undo = self._undo, _nothing
        self._closing = True
        undo()
        self._end()

    def _end(self) -> None:
        self.inbox.peer_left()
        self.inbox.end()

    # --- callbacks ----------------------------------------------------------------------------------------------

    def on_connect(self, interface: Interface) -> None:
        self.inbox.peer_came()
        if self._before_connect is not None:
            self._before_connect(interface)

    def on_disconnect(self, interface: Interface, reason: Disconnected) -> None:
        self.inbox.peer_left(reason)
        if interface.deleted:  # by the application, or by closing the runtime
            self._end()
        elif reason.established:
            what = "waiting for the peer to come back" if self._reconnect else "this socket ends"
            log_runtime.warning("%s: disconnected: %s; %s", interface, reason, what)
            if not self._reconnect:
                self.close()
        if self._before_disconnect is not None:
            self._before_disconnect(interface, reason)

    def on_interrupt(self, interface: Interface, qid: int) -> None:
        if len(self.inbox) >= self._backlog:
            # Stop reading until scapy has caught up. Unread packets keep the fds of the queues readable.
            interface.on_interrupt = None
            self._paused = True
            self.after_take()  # scapy may have caught up before it saw _paused
            return
        with contextlib.suppress(Disconnected):  # on_disconnect reports it
            self.inbox.put(interface.rx_queues[qid].recv())

    def on_ending(self, interface: Interface) -> None:
        """Take what the peer sent before it left, although the backlog is full: afterwards it would be lost.

        For one connection only: peers that come and go must not fill the memory of a program that reads nothing.
        """
        if len(self.inbox) < self._backlog + DEFAULT_BURST:
            for queue in interface.rx_queues:
                with contextlib.suppress(Disconnected):  # on_disconnect reports it
                    self.inbox.put(queue.recv(queue.ring_size))

    def after_take(self) -> None:
        """Read from the queues again once half of the backlog is read."""
        if self._paused and len(self.inbox) <= self._backlog // 2:
            self._paused = False
            self._background.post(self._resume)

    def _resume(self) -> None:
        if not self._closing and not self.interface.deleted:
            self.interface.on_interrupt = self.on_interrupt


# --- the background thread ------------------------------------------------------------------------------------------

_lock = threading.Lock()
#: Interfaces of the application that have a socket now.
_adopted: weakref.WeakSet[Interface] = weakref.WeakSet()
#: The threads by the ``id()`` of the application's runtime. 0 is the runtime of sockets that make their own interfaces.
_backgrounds: weakref.WeakValueDictionary[int, Background] = weakref.WeakValueDictionary()


def _acquire(interface: Interface | None) -> Background:
    """Return the background thread of an interface, or of new interfaces (None). The caller must release it."""
    key = 0 if interface is None else id(interface.owner)
    with _lock:
        background = _backgrounds.get(key)
        if background is not None and background.retain():
            return background
        if interface is not None:
            background = Background(cast(Runtime, interface.owner), close_runtime=False)
        else:
            background = Background(Runtime(APP_NAME, reconnect_interval=_RECONNECT_INTERVAL))
        _backgrounds[key] = background
        return background


def _reset_after_fork() -> None:
    """Start without threads in a forked child: it has none, and the parent may have held the lock."""
    global _lock
    _lock = threading.Lock()
    _backgrounds.clear()


os.register_at_fork(after_in_child=_reset_after_fork)


# --- helpers --------------------------------------------------------------------------------------------------------


def _nothing() -> None:
    return None


def _class_of(mode: Mode) -> Callable[[bytes], type[Packet]]:
    """Return a function that returns the class of a packet, for an interface in this mode."""
    match mode:
        case Mode.ETHERNET:
            return lambda packet: Ether
        case Mode.IP:
            versions: dict[int, type[Packet]] = {4: IP, 6: IPv6}
            return lambda packet: versions.get(packet[0] >> 4 if packet else 0, conf.raw_layer)
        case _:
            return lambda packet: conf.raw_layer


def _check_layer(interface: Interface, packet: Packet) -> None:
    """Refuse a packet that starts with the wrong layer, which a peer would drop silently.

    :raises ConfigError: the packet does not fit the mode of the interface.
    """
    if interface.mode is Mode.ETHERNET and isinstance(packet, IP | IPv6):
        wrong, right = f"Ethernet mode, and this packet starts with {packet.name}", "put Ether() in front of it"
    elif interface.mode is Mode.IP and isinstance(packet, Ether):
        wrong, right = "IP mode, and this packet starts with Ethernet", "send its IP layer, or use mode='ethernet'"
    else:
        return
    raise ConfigError(f"{interface} is in {wrong}: {right}")


def _not_connected(interface: Interface, when: str, last: MemifError | None) -> Disconnected:
    why = last.message if last is not None else "nobody has connected to it yet"
    error = Disconnected(f"{interface}: not connected{when}: {why}", last.code if last else ErrorCode.DISCONNECTED)
    error.__cause__ = last
    return error


def _check_seconds(what: str, value: float | None) -> float | None:
    if value is None and what == "timeout":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise ConfigError(f"{what} is {value!r}; it must be a number of seconds, 0 for none")
    return float(value)


def _named(positional: tuple[Any, ...], options: InterfaceOptions) -> InterfaceOptions:
    """Name the arguments that older versions took by position: ``MemifSocket(socket, id, role, mode, secret)``."""
    names = ("id", "role", "mode", "secret")
    if len(positional) > len(names):
        raise TypeError(f"MemifSocket takes at most {1 + len(names)} positional arguments")
    warnings.warn(
        "MemifSocket takes its options by name: id=…, role=…, mode=…, secret=…", DeprecationWarning, stacklevel=3
    )
    return cast("InterfaceOptions", {**dict(zip(names, positional, strict=False)), **options})
