"""The runtime: every interface, socket and fd of one event loop.

Owns the registry of fds, the hook behind it (the application's, or our own epoll), and the reconnect timer. The control
side of a runtime belongs to one thread.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from memifrt.connection import SlaveConnection, Surroundings
from memifrt.control.address import Address
from memifrt.control.channel import Channel
from memifrt.errors import ConfigError, ErrorCode, MemifError, MemifOSError, PollCancelled, os_error
from memifrt.interface import Interface, OnConnect, OnDisconnect, OnInterrupt
from memifrt.memory.layout import plan
from memifrt.memory.region import RegionAllocator, allocate_memfd
from memifrt.poll.epoll import EpollPoller
from memifrt.poll.hook import FdRegistry, Hook
from memifrt.poll.timer import TimerFd
from memifrt.ring import say_what_is_missing, unsafe_reason
from memifrt.sockets import Socket
from memifrt.types import (
    DEFAULT_APP_NAME,
    DEFAULT_BUFFER_SIZE,
    DEFAULT_LOG2_RING_SIZE,
    DEFAULT_RECONNECT_INTERVAL,
    DEFAULT_SOCKET,
    FdEvent,
    InterfaceConfig,
    Mode,
    Role,
    RxMode,
    check_name,
    check_secret,
    parse_mode,
    parse_role,
    parse_rx_mode,
)

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger("memifrt")


class Runtime:
    """The interfaces of one event loop.

    :param app_name: what peers see of us, at most 31 bytes.
    :param control_fd_update: ``hook(fd, events)``, called with every fd that is to be watched (external mode); the
        loop then calls :meth:`control_fd_handler`. Without it the runtime polls by itself (internal mode), with
        :meth:`poll_event` or :meth:`run`.
    :param reconnect_interval: seconds between two attempts of a slave to connect; 0 for none.
    :param region_allocator: ``allocate(size) -> fd`` of a file at least ``size`` bytes large, which memifrt then owns;
        default: a sealed memfd.
    :param accept_unsealed: accept memory that can still be truncated from peers of any user, not just our own and
        root. Such a peer can kill this process.
    :raises ConfigError: an argument is wrong.
    """

    def __init__(
        self,
        app_name: str = DEFAULT_APP_NAME,
        *,
        control_fd_update: Hook | None = None,
        reconnect_interval: float = DEFAULT_RECONNECT_INTERVAL,
        region_allocator: RegionAllocator = allocate_memfd,
        accept_unsealed: bool = False,
    ) -> None:
        self._closed = True  # until there is something to close
        self._closing = False
        if sys.platform != "linux":
            raise MemifError(ErrorCode.SYSCALL, f"memif needs Linux (memfd, eventfd, epoll); this is {sys.platform}")
        _debug_from_environment()
        self.app_name = check_name("app_name", app_name)
        self._interval = _check_interval(reconnect_interval)
        self._pid = os.getpid()
        self._poller, self._timer = _open_fds(internal=control_fd_update is None)
        hook = control_fd_update if self._poller is None else self._poller.update
        assert hook is not None
        self._registry = FdRegistry(hook)
        self._around = Surroundings(self._registry, self.app_name, region_allocator, accept_unsealed)
        self._sockets: dict[str, Socket] = {}
        self._interfaces: list[Interface] = []
        self._dispatching = False
        self._closed = False
        try:
            self._registry.add(self._timer.fileno(), FdEvent.READ, self._on_timer)
        except BaseException:
            self.close()
            raise

    # --- sockets and interfaces ---------------------------------------------------------------------------------

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        return tuple(self._interfaces)

    @property
    def sockets(self) -> tuple[Socket, ...]:
        return tuple(self._sockets.values())

    def create_socket(self, path: str | os.PathLike[str] = DEFAULT_SOCKET) -> Socket:
        """A socket that stays until it is deleted. Nothing happens on the path before an interface is created.

        :raises ConfigError: the path is too long, or there is a socket for it already.
        """
        self._check_open()
        self._check_not_closing()
        address = Address.parse(path)
        if address.path in self._sockets:
            raise ConfigError(f"there is a socket for {address} in this runtime already")
        return self._add_socket(address, implicit=False)

    def create_interface(
        self,
        *,
        socket: str | os.PathLike[str] | Socket = DEFAULT_SOCKET,
        id: int = 0,
        name: str = "",
        role: Role | str = Role.SLAVE,
        mode: Mode | str = Mode.ETHERNET,
        secret: str | bytes | None = None,
        num_s2m_rings: int = 1,
        num_m2s_rings: int = 1,
        log2_ring_size: int = DEFAULT_LOG2_RING_SIZE,
        buffer_size: int = DEFAULT_BUFFER_SIZE,
        rx_mode: RxMode | str = RxMode.INTERRUPT,
        rx_headroom: int = 0,
        auto_refill: bool = True,
        chained_tx: bool = True,
        on_connect: OnConnect | None = None,
        on_disconnect: OnDisconnect | None = None,
        on_interrupt: OnInterrupt | None = None,
        context: object = None,
    ) -> Interface:
        """A new interface. A master listens at once; a slave connects at once if it can, else with the timer.

        :param socket: a path, ``@name`` for the abstract namespace, or a :class:`Socket` of this runtime.
        :param role: ``"master"`` or ``"server"``; ``"slave"`` or ``"client"``.
        :param secret: at most 23 bytes; a master demands it, a slave presents it.
        :param num_s2m_rings: rings (queues) from slave to master, 1 to 255; a master takes what its slave offers.
        :param num_m2s_rings: rings from master to slave, 1 to 255.
        :param log2_ring_size: 0 to 14, for 1 to 16384 slots; the slave's choice. Fewer than 32 slots get nothing from
            zero-copy peers, which take buffers in batches of 32.
        :param buffer_size: bytes, 1 to 65535; the slave's choice.
        :param rx_mode: ``"interrupt"``, ``"polling"`` or ``"adaptive"`` (interrupts, masked while packets stay behind).
        :param rx_headroom: bytes left free in front of each packet that a slave receives.
        :param auto_refill: whether a slave's receive buffers are posted on connect; without it the application
            calls ``refill`` in ``on_connect``, as with libmemif.
        :param chained_tx: whether packets longer than a buffer are sent as chains, or refused.
        :param context: the application's own; ``interface.context``.
        :raises ConfigError: an argument is wrong, or the id is taken on this socket.
        :raises MemifOSError: a master cannot listen.
        """
        self._check_open()
        self._check_not_closing()
        if reason := unsafe_reason():
            warnings.warn(reason, RuntimeWarning, stacklevel=2)
        else:
            say_what_is_missing()
        config = InterfaceConfig(
            id=id,
            name=name,
            role=parse_role(role),
            mode=parse_mode(mode),
            secret=check_secret(secret),
            num_s2m_rings=num_s2m_rings,
            num_m2s_rings=num_m2s_rings,
            log2_ring_size=log2_ring_size,
            buffer_size=buffer_size,
            rx_mode=parse_rx_mode(rx_mode),
            rx_headroom=rx_headroom,
            auto_refill=auto_refill,
            chained_tx=chained_tx,
        )
        if config.role is Role.SLAVE:  # says at once if the memory cannot be laid out
            plan(num_s2m_rings, num_m2s_rings, log2_ring_size, buffer_size)
        home = self._socket_for(socket)
        if (home._master if config.role is Role.MASTER else home._slave)(id) is not None:
            raise ConfigError(f"there is a {config.role.name.lower()} with id {id} on {home} already", ErrorCode.CONN)
        interface = Interface(self, home, config, on_connect, on_disconnect, on_interrupt, context)
        try:
            home._add(interface)
            self._interfaces.append(interface)
            if config.role is Role.SLAVE:
                with contextlib.suppress(MemifOSError):  # kept in last_error; the timer tries again
                    interface._connect()
            self._update_timer()
        except BaseException:
            interface.deleted = True
            self._forget(interface)
            if home.implicit and not home.interfaces:
                self._forget_socket(home)
            raise
        return interface

    def set_reconnect_interval(self, seconds: float) -> None:
        """The period in which slaves try to connect; 0 for none.

        :raises ConfigError: it is negative or not a number.
        """
        self._check_open()
        self._interval = _check_interval(seconds)
        self._timer.disarm()
        self._update_timer()

    # --- events -------------------------------------------------------------------------------------------------

    def poll_event(self, timeout: float | None = None) -> int:
        """Wait once for events and handle them; how many were handled. Internal mode.

        :param timeout: in seconds; 0 does not wait, None or a negative number waits for as long as it takes.
        :raises PollCancelled: :meth:`cancel_poll_event` was called.
        :raises ConfigError: in external mode.
        :raises BaseException: what a callback raised; events that were not handled come again.
        """
        poller = self._internal("poll_event")
        self._check_not_dispatching()
        ready, cancelled = poller.wait(timeout)
        handled = 0
        for fd, events in ready:
            handled += self._dispatch(fd, events)
            if self._closed:
                return handled
        if cancelled and poller.consume_cancel():
            raise PollCancelled
        return handled

    def run(self) -> None:
        """Handle events until :meth:`cancel_poll_event` is called or the runtime is closed. Internal mode."""
        with contextlib.suppress(PollCancelled):
            while not self._closed:
                self.poll_event(None)

    def cancel_poll_event(self) -> None:
        """End exactly one :meth:`poll_event`, the present or the next. From any thread or signal handler; on a closed
        runtime, where no poll is left to end, it does nothing.

        :raises ConfigError: in external mode.
        """
        if not self._closed:
            self._internal("cancel_poll_event").cancel()

    def control_fd_handler(self, fd: int, events: FdEvent | int) -> bool:
        """The one way back in: the loop says that ``fd`` is ready. Level-triggered; a stale event is harmless.

        :returns: whether the fd was one of ours.
        :raises BaseException: what a callback raised.
        """
        self._check_open()
        self._check_not_dispatching()
        return self._dispatch(fd, FdEvent(events))

    def fileno(self) -> int:
        """One fd to watch instead of many: readable whenever ``poll_event(0)`` has something to do. Internal mode.

        :raises ConfigError: in external mode.
        """
        return self._internal("fileno").fileno()

    def _dispatch(self, fd: int, events: FdEvent) -> bool:
        self._dispatching = True
        try:
            return self._registry.dispatch(fd, events)
        finally:
            self._dispatching = False

    def _check_not_dispatching(self) -> None:
        if self._dispatching:
            raise ConfigError("a callback must not poll: it would be called again while it runs")

    def _internal(self, what: str) -> EpollPoller:
        self._check_open()
        if self._poller is None:
            raise ConfigError(f"{what} is for internal mode: this runtime has a control_fd_update hook")
        return self._poller

    # --- the reconnect timer ------------------------------------------------------------------------------------

    def _update_timer(self) -> None:
        """Armed while a slave is disconnected, disarmed when there is none."""
        if self._closed:
            return
        wanted = self._interval > 0 and any(interface._wants_connection for interface in self._interfaces)
        if wanted and not self._timer.armed:
            self._timer.arm(self._interval)
        elif not wanted:
            self._timer.disarm()

    def _on_timer(self, events: FdEvent) -> None:
        if not self._timer.drain():
            return
        for interface in self.interfaces:
            if interface._wants_connection:
                with contextlib.suppress(MemifOSError):  # kept in last_error; the timer comes again
                    interface._connect()
        self._update_timer()

    def _slave_connection(self, interface: Interface, channel: Channel) -> SlaveConnection:
        return SlaveConnection(self._around, channel, interface.socket, interface)

    # --- the end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Delete everything: each interface disconnects with a reason, sockets and fds are closed. Closing twice is
        harmless. In a forked child nothing is touched: the fds, files and peers are the parent's.

        :raises BaseException: the first that a callback or the hook raised, after everything is closed.
        """
        if self._closed or self._closing:
            return
        if self._pid != os.getpid():
            self._closed = True
            self._registry.abandon()
            return
        failure: BaseException | None = None
        self._closing = True
        steps: list[Callable[[], object]] = []
        for interface in self._interfaces:
            # An interface whose on_disconnect called this is deleted, but not forgotten yet.
            steps += [interface.delete, functools.partial(self._forget, interface)]
        steps += [socket.delete for socket in self._sockets.values() if not socket.implicit]
        steps += [lambda: self._registry.remove(self._timer.fileno())]
        for step in steps:
            try:
                step()
            except BaseException as error:
                failure = failure or error
        self._closed = True
        self._timer.close()
        if self._poller is not None:
            self._poller.close()
        if failure is not None:
            raise failure

    @property
    def closed(self) -> bool:
        return self._closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._pid == os.getpid():
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            with contextlib.suppress(Exception):
                self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._interfaces)} interface(s)"
        return f"<memifrt.Runtime {self.app_name!r}, {state}>"

    # --- bookkeeping --------------------------------------------------------------------------------------------

    @property
    def _inherited(self) -> bool:
        """Whether this is a forked child, to which nothing of this runtime belongs."""
        return self._pid != os.getpid()

    def _check_open(self) -> None:
        if self._closed:
            raise MemifError(ErrorCode.INVAL_ARG, "the runtime is closed")
        if self._pid != os.getpid():
            raise MemifError(
                ErrorCode.INVAL_ARG,
                f"this runtime belongs to process {self._pid}: a forked child makes one of its own",
            )

    def _check_not_closing(self) -> None:
        if self._closing:
            raise MemifError(ErrorCode.INVAL_ARG, "the runtime is closing: nothing new can be created")

    def _socket_for(self, socket: str | os.PathLike[str] | Socket) -> Socket:
        if isinstance(socket, Socket):
            if self._sockets.get(socket.path) is not socket:
                raise ConfigError(f"{socket!r} is not a socket of this runtime, or it is deleted")
            return socket
        address = Address.parse(socket)
        return self._sockets.get(address.path) or self._add_socket(address, implicit=True)

    def _add_socket(self, address: Address, *, implicit: bool) -> Socket:
        socket = self._sockets[address.path] = Socket(self, self._around, address, implicit=implicit)
        return socket

    def _forget_socket(self, socket: Socket) -> None:
        if self._sockets.get(socket.path) is socket:
            del self._sockets[socket.path]

    def _forget(self, interface: Interface) -> None:
        if interface in self._interfaces:
            self._interfaces.remove(interface)
        try:
            interface.socket._remove(interface)
        finally:
            self._update_timer()


def _open_fds(*, internal: bool) -> tuple[EpollPoller | None, TimerFd]:
    poller: EpollPoller | None = None
    try:
        poller = EpollPoller() if internal else None
        return poller, TimerFd()
    except OSError as error:
        if poller is not None:
            poller.close()
        raise os_error("cannot make a runtime", error) from error


def _check_interval(seconds: float) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e9:
        raise ConfigError(f"reconnect_interval is {seconds!r}; it must be a number of seconds, 0 for none")
    return float(seconds)


def _debug_from_environment() -> None:
    """``MEMIFRT_DEBUG=1`` prints every control message and state change to standard error."""
    if os.environ.get("MEMIFRT_DEBUG", "0") not in ("", "0") and not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
