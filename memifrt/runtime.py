"""The runtime: every interface, socket and fd of one event loop.

Owns the registry of fds, the hook (the application's, or an epoll set of the runtime's own) and the timer, which serves
reconnects, handshake deadlines and pauses of listeners. One thread makes all control calls of a runtime.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, cast

from memifrt.connection.context import RuntimeContext
from memifrt.connection.reconnect import Reconnector
from memifrt.control.address import Address
from memifrt.control.peer_policy import AcceptPeer, PeerPolicy
from memifrt.control.permissions import FilePermissions
from memifrt.errors import ConfigError, ErrorCode, ForkedError, MemifError, MemifOSError, PollCancelled, os_error
from memifrt.interface import Interface, InterfaceSocket, OnConnect, OnDisconnect, OnInterrupt
from memifrt.memory.layout import plan
from memifrt.memory.region import allocate_memfd
from memifrt.options import (
    DEFAULT_APP_NAME,
    DEFAULT_HANDSHAKE_TIMEOUT,
    DEFAULT_MAX_HALF_OPEN,
    DEFAULT_RECONNECT_INTERVAL,
    DEFAULT_SOCKET,
    InterfaceConfig,
    InterfaceOptions,
    OnError,
    RegionAllocator,
    RuntimeOptions,
    check_name,
)
from memifrt.poll.dispatch import CALLBACK_RUNS
from memifrt.poll.dispatchers import make_dispatcher
from memifrt.poll.epoll import EpollPoller
from memifrt.poll.hook import FdRegistry, Hook
from memifrt.poll.schedule import Schedule
from memifrt.rekick import LeftoverWatch
from memifrt.renamed import renamed_arguments
from memifrt.ring import say_what_is_missing, unsafe_reason
from memifrt.sockets import Socket
from memifrt.system.forks import abandon_after_fork
from memifrt.system.not_copied import NotCopied
from memifrt.system.signal_wakeup import SignalWakeup
from memifrt.types import FdEvent, Role, check_callback, check_range

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from memifrt.stats.server import Server
    from memifrt.stats.switch import SwitchStats
    from memifrt.stats.web import PageServer
    from memifrt.system.timerfd import TimerFd

logger = logging.getLogger("memifrt")


class InterfaceArguments(InterfaceOptions, total=False):
    """All arguments of :meth:`Runtime.create_interface`, for functions that pass them on."""

    socket: str | os.PathLike[str] | InterfaceSocket
    on_connect: OnConnect | None
    on_disconnect: OnDisconnect | None
    on_interrupt: OnInterrupt | None
    context: object


class OpenArguments(InterfaceArguments, RuntimeOptions, total=False):
    """The arguments of an interface and of its runtime, which ``open_interface`` of each loop takes beside its own.

    Those of the runtime apply only if the call creates a runtime, not if the caller passes one.
    """

    app_name: str | None


class Runtime(NotCopied):
    """The interfaces of one event loop.

    :param app_name: the name that peers see, at most 31 bytes.
    :param control_fd_update: ``hook(fd, events)``, called for every fd that the application's loop must watch (external
        mode). The loop calls :meth:`control_fd_handler` when an fd is ready. Without a hook the runtime polls by itself
        (internal mode), in :meth:`poll_event` or :meth:`run`. If the hook is a method of an object that also has a
        ``check_caller()`` method, as in :mod:`memifrt.poll`, control calls call it first; it raises in a wrong thread.
    :param reconnect_interval: seconds between two attempts of a slave to connect; 0 for no attempts.
    :param region_allocator: ``allocate(size) -> fd``: returns a file of at least ``size`` bytes, which memifrt then
        owns and seals against shrinking if possible, because a peer can truncate an unsealed file. Default: a sealed
        memfd.
    :param accept_unsealed: accept memory that is not sealed against truncation, and huge pages, from peers of every
        user. By default only our own user and root may share such memory. SECURITY.md describes the risk.
    :param handshake_timeout: seconds that a peer of either role has from connect to the end of the handshake. Then the
        connection ends, and ``on_disconnect`` and ``last_error`` name the missing message. 0 for no limit.
    :param max_half_open: the limit of half-open connections on one listener: their peers have not named an interface
        yet. When it is exceeded, the oldest connection of the process with the most of them is closed.
    :param stats_socket: a path, or ``@name``. Every process that may open this socket can read a snapshot of all
        interfaces as JSON; see :mod:`memifrt.stats.server` and ``memifrt top``. Its fds go through the hook, too.
    :param prometheus: ``"ADDRESS:PORT"`` on which Prometheus scrapes ``/metrics``. With port 0 the system chooses a
        port; :attr:`metrics_url` then has it.
    :param web: ``"ADDRESS:PORT"``, or a port on 127.0.0.1, on which a browser finds a page with the state of all
        interfaces. With port 0 the system chooses a port; :attr:`web_url` then has it. The page has no password: every
        user who can connect to the address sees it. On a loopback address it answers only to names of this host.
    :param on_error: called with each exception that handling an event raised: from a callback, a timer, a listener or
        the statistics. :meth:`poll_event` and :meth:`control_fd_handler` then do not raise it and go on. Use it in a
        loop that drops an fd when its handler raises. ``SystemExit``, ``KeyboardInterrupt`` and others that are not an
        :class:`Exception` are still raised. If ``on_error`` itself raises, both exceptions are logged as an error.
        Calls of the application, such as :meth:`close` or :meth:`create_interface`, raise as they do without it.
        Default: the exception is raised.
    :raises ConfigError: an argument is wrong.
    :raises MemifOSError: the runtime cannot listen on ``stats_socket``, ``prometheus`` or ``web``, or the system
        refuses an fd.
    :raises MemifError: the system is not Linux.
    """

    def __init__(
        self,
        app_name: str = DEFAULT_APP_NAME,
        *,
        control_fd_update: Hook | None = None,
        reconnect_interval: float = DEFAULT_RECONNECT_INTERVAL,
        region_allocator: RegionAllocator = allocate_memfd,
        accept_unsealed: bool = False,
        handshake_timeout: float = DEFAULT_HANDSHAKE_TIMEOUT,
        max_half_open: int = DEFAULT_MAX_HALF_OPEN,
        stats_socket: str | os.PathLike[str] | None = None,
        prometheus: str | None = None,
        web: str | int | None = None,
        on_error: OnError | None = None,
    ) -> None:
        self._closed = True  # until there are fds to close
        self._wakeup: SignalWakeup | None = None
        self._closing = False
        if sys.platform != "linux":
            raise MemifError(ErrorCode.SYSCALL, f"memif needs Linux (memfd, eventfd, epoll); this is {sys.platform}")
        _debug_from_environment()
        self.app_name = check_name("app_name", app_name)
        reconnect_interval = _check_seconds("reconnect_interval", reconnect_interval)
        handshake_timeout = _check_seconds("handshake_timeout", handshake_timeout)
        check_range("max_half_open", max_half_open, 1, 0xFFFFFFFF)
        check_callback("on_error", on_error)
        self._pid = os.getpid()
        #: In a forked child: the id of the parent, which owns the runtime.
        self._owner: int | None = None
        self._poller, self._timer = _open_fds(internal=control_fd_update is None)
        hook = control_fd_update if self._poller is None else self._poller.update
        assert hook is not None
        self._registry = FdRegistry(hook)
        self._dispatcher = make_dispatcher(self._registry.handlers, self._poller, on_error)
        self._schedule = Schedule(self._timer)
        self._reconnector = Reconnector(self._schedule, reconnect_interval)
        self._context = RuntimeContext(
            self._registry,
            self._schedule,
            self._reconnector,
            LeftoverWatch(self._schedule),
            self.app_name,
            region_allocator,
            accept_unsealed,
            handshake_timeout,
            max_half_open,
        )
        self._sockets: dict[str, Socket] = {}
        self._interfaces: list[Interface] = []
        #: When the runtime was created, in Unix time (seconds).
        self.started = time.time()
        #: Counters of the application, which the stats socket and Prometheus show: a function for each group of them
        #: that returns the counters by name.
        self.application_counters: dict[str, Callable[[], Mapping[str, int]]] = {}
        #: The URL that Prometheus scrapes; empty if the runtime serves no metrics.
        self.metrics_url = ""
        #: The URL of the page for a browser; empty if the runtime serves none.
        self.web_url = ""
        #: Describes the switch that joins the interfaces, for snapshots; None if there is none.
        self.switch_stats: Callable[[], SwitchStats] | None = None
        self._servers: list[Server | PageServer] = []
        self._closed = False
        abandon_after_fork(self._abandon)
        try:
            self._registry.add(self._timer.fileno(), FdEvent.READ, lambda events: self._schedule.run())
            self._open_servers(stats_socket, prometheus, web)
        except BaseException:
            self._close()
            raise

    # --- sockets and interfaces ---------------------------------------------------------------------------------

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        """The interfaces of this runtime, in the order of their creation."""
        return tuple(self._interfaces)

    @property
    def sockets(self) -> tuple[Socket, ...]:
        """The sockets of this runtime, in the order of their creation."""
        return tuple(self._sockets.values())

    def create_socket(
        self,
        path: str | os.PathLike[str] = DEFAULT_SOCKET,
        *,
        mode: int | None = None,
        owner: int | str | None = None,
        group: int | str | None = None,
        allow_uids: Collection[int] | None = None,
        allow_gids: Collection[int] | None = None,
        accept_peer: AcceptPeer | None = None,
    ) -> Socket:
        """Create a socket that stays until it is deleted. Its file is made when the first master is created.

        The options apply to the listener. No peer can connect before the file has its mode and owner.

        :param path: a path, or ``@name`` for the abstract namespace; at most 107 bytes.
        :param mode: permissions of the socket file, such as ``0o660``, not changed by the umask. A user needs write
            permission to connect. Default: the umask decides.
        :param owner: owner of the socket file, a uid or a name; default: this process's user.
        :param group: group of the socket file, a gid or a name; default: this process's group.
        :param allow_uids: admit only peers of these users (``SO_PEERCRED``), or of ``allow_gids``.
        :param allow_gids: admit only peers with one of these as their effective group, or of ``allow_uids``.
        :param accept_peer: ``accept_peer(credentials)`` is called for each peer that the lists admit. False refuses the
            peer. An exception also refuses it, and is raised by the poll.
        :raises ConfigError: the path is too long, there is a socket for it already, or an option is wrong. An abstract
            name has no file, so it takes no mode, owner or group.
        """
        self._check_control_call()
        self._check_not_closing()
        address = Address.parse(path)
        if str(address) in self._sockets:
            raise ConfigError(f"there is a socket for {address} in this runtime already")
        permissions = FilePermissions.parse(mode, owner, group)
        if permissions and address.is_abstract:
            raise ConfigError(f"{address} has no file: mode, owner and group do not apply, allow_uids and the like do")
        policy = PeerPolicy.parse(allow_uids, allow_gids, accept_peer)
        return self._add_socket(address, permissions, policy, implicit=False)

    def create_interface(
        self,
        *,
        socket: str | os.PathLike[str] | InterfaceSocket = DEFAULT_SOCKET,
        on_connect: OnConnect | None = None,
        on_disconnect: OnDisconnect | None = None,
        on_interrupt: OnInterrupt | None = None,
        context: object = None,
        **options: Unpack[InterfaceOptions],
    ) -> Interface:
        """Create an interface. A master listens at once. A slave tries to connect at once, then with the timer.

        :param socket: a path, ``@name`` for the abstract namespace, or a :class:`Socket` of this runtime.
        :param on_connect: called with the interface when a peer is connected.
        :param on_disconnect: called with the interface and the reason when a conversation with a peer has ended.
        :param on_interrupt: called with the interface and the number of a receive queue that has packets.
        :param context: the application's own object, kept as ``interface.context``.
        :param options: ``id``, ``name``, ``role``, ``mode``, ``secret``, ``queues``, ``ring_size``, ``buffer_size``,
            ``rx_mode`` and more; :class:`memifrt.options.InterfaceOptions` lists all of them.
        :raises ConfigError: an argument is wrong, or the id is taken on this socket.
        :raises TypeError: there is no option with that name.
        :raises MemifOSError: a master cannot listen.
        """
        self._check_control_call()
        self._check_not_closing()
        if reason := unsafe_reason():
            warnings.warn(reason, RuntimeWarning, stacklevel=2)
        else:
            say_what_is_missing()
        for what, callback in (
            ("on_connect", on_connect),
            ("on_disconnect", on_disconnect),
            ("on_interrupt", on_interrupt),
        ):
            check_callback(what, callback)
        config = InterfaceConfig.of(**options)
        if config.role is Role.SLAVE:  # raises now if the memory would be too large, not at the first connection
            plan(config.num_s2m_rings, config.num_m2s_rings, config.log2_ring_size, config.buffer_size)
        home = self._socket_for(socket)
        taken = home.master(config.id) is not None if config.role is Role.MASTER else home.has_slave(config.id)
        if taken:
            raise ConfigError(
                f"there is a {config.role.name.lower()} with id {config.id} on {home} already", ErrorCode.CONN
            )
        interface = Interface(self, self._context, home, config, on_connect, on_disconnect, on_interrupt, context)
        try:
            home.add(interface)
            self._interfaces.append(interface)
            if config.role is Role.SLAVE:
                with contextlib.suppress(MemifOSError):  # kept in last_error; the timer tries again
                    interface.connect()
            self._reconnector.update(interface)
        except BaseException:
            interface.deleted = True
            self.forget(interface)
            if home.implicit and not home.interfaces:
                self.forget_socket(home)
            raise
        return interface

    @property
    def reconnect_interval(self) -> float:
        """Seconds between two attempts of a slave to connect; 0 for no attempts."""
        return self._reconnector.interval

    @renamed_arguments(seconds="reconnect_interval")
    def set_reconnect_interval(self, reconnect_interval: float) -> None:
        """Set the interval in which slaves try to connect.

        :param reconnect_interval: in seconds; 0 for no attempts.
        :raises ConfigError: it is negative or not a number.
        """
        self._check_control_call()
        self._reconnector.set_interval(_check_seconds("reconnect_interval", reconnect_interval))

    # --- events -------------------------------------------------------------------------------------------------

    def poll_event(self, timeout: float | None = None) -> int:
        """Wait once for events and handle them. Internal mode only.

        :param timeout: in seconds; 0 does not wait, None or a negative number waits without a limit.
        :returns: the number of events handled.
        :raises PollCancelled: :meth:`cancel_poll_event` was called.
        :raises ConfigError: in external mode; inside a callback, or while one runs in another greenlet or thread.
        :raises BaseException: a callback raised it, and there is no ``on_error``. The next poll reports the events that
            were not handled.
        """
        dispatcher = self._dispatcher
        if self._poller is None or dispatcher.refuses:
            self._internal("poll_event")
            self._check_not_dispatching()
        return dispatcher.poll(timeout)

    def run(self) -> None:
        """Handle events until :meth:`cancel_poll_event` is called or the runtime is closed. Internal mode only.

        In the main thread SIGINT (Ctrl+C) and SIGTERM also end it, without an exception, unless the application has
        installed handlers for them.

        :raises ConfigError: in external mode, or inside a callback.
        :raises BaseException: a callback raised it, and there is no ``on_error``.
        """
        with self._ended_by_signals(), self.woken_by_signals(), contextlib.suppress(PollCancelled):
            while not self._closed:
                self.poll_event(None)
        self.check_not_forked()

    @contextlib.contextmanager
    def _ended_by_signals(self) -> Iterator[None]:
        """Cancel the poll on SIGINT and SIGTERM while they have Python's own handlers."""
        ours = []
        if threading.current_thread() is threading.main_thread():
            defaults = ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL))
            ours = [(number, default) for number, default in defaults if signal.getsignal(number) is default]
        for number, _ in ours:
            signal.signal(number, lambda number, frame: self.cancel_poll_event())
        try:
            yield
        finally:
            for number, default in ours:
                signal.signal(number, default)

    @contextlib.contextmanager
    def woken_by_signals(self) -> Iterator[None]:
        """Have each signal wake the loop, so that its Python handler runs at once.

        Python runs handlers between two bytecodes. The handler of a signal that comes right before the loop begins to
        wait would otherwise run only after that wait. In a thread that is not the main one, and where the loop has a
        wakeup fd of its own (``signal.set_wakeup_fd``), this does nothing. :meth:`run` uses it.
        """
        if threading.current_thread() is not threading.main_thread() or self._wakeup is not None:
            yield
            return
        self._wakeup = wakeup = SignalWakeup()
        try:
            if wakeup.installed:
                self._registry.add(wakeup.fileno(), FdEvent.READ, lambda events: wakeup.drain())
            yield
        finally:
            self._wakeup = None
            fd = wakeup.fileno()
            wakeup.uninstall()
            try:
                self._registry.remove(fd)
            finally:
                wakeup.close()

    def cancel_poll_event(self) -> None:
        """End exactly one :meth:`poll_event`: the one that runs, or the next one.

        May be called from any thread or signal handler. On a closed runtime it does nothing.

        :raises ConfigError: in external mode.
        """
        # Not with _check_open, which would raise if another thread closes the runtime at this moment.
        if self._closed:
            self.check_not_forked()
            return
        if self._poller is None:
            raise ConfigError("cancel_poll_event is for internal mode: this runtime has a control_fd_update hook")
        self._poller.cancel()

    def control_fd_handler(self, fd: int, events: FdEvent | int) -> bool:
        """Handle an event: the application's loop calls this when ``fd`` is ready. Polling is level-triggered.

        A stale event is harmless, also after :meth:`close`: a callback may close the runtime while the loop still holds
        events of it.

        :param events: a combination of :class:`~memifrt.FdEvent` READ, WRITE and ERROR.
        :returns: whether the runtime had registered the fd.
        :raises ConfigError: inside a callback.
        :raises BaseException: a callback raised it, and there is no ``on_error``.
        """
        dispatcher = self._dispatcher
        if dispatcher.refuses:
            if self._closed:
                self.check_not_forked()
                return False
            self._check_not_dispatching()
        return dispatcher.handle(fd, events if type(events) is FdEvent else FdEvent(events))

    def fileno(self) -> int:
        """Return one fd to watch instead of many. It is readable while ``poll_event(0)`` has events to handle.

        :raises ConfigError: in external mode.
        """
        return self._internal("fileno").fileno()

    def _check_not_dispatching(self) -> None:
        if self._dispatcher.busy:
            raise ConfigError(CALLBACK_RUNS)

    def _internal(self, what: str) -> EpollPoller:
        self._check_open()
        if self._poller is None:
            raise ConfigError(f"{what} is for internal mode: this runtime has a control_fd_update hook")
        return self._poller

    def _open_servers(
        self, stats_socket: str | os.PathLike[str] | None, prometheus: str | None, web: str | int | None
    ) -> None:
        # Imported here because few programs serve statistics, and HTTP and JSON take longer to import than memifrt.
        if stats_socket is not None:
            from memifrt.stats.server import serve

            self._servers.append(serve(self, self._registry, self._schedule, stats_socket))
        if prometheus is not None:
            from memifrt.stats import prometheus as metrics
            from memifrt.stats.snapshot import snapshot

            server, self.metrics_url = metrics.serve(lambda: snapshot(self), self._registry, self._schedule, prometheus)
            self._servers.append(server)
        if web is not None:
            from memifrt.stats import web as page

            page_server = page.serve(self, self._registry, self._schedule, web)
            self.web_url = page_server.url
            self._servers.append(page_server)

    # --- the end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Delete every interface and socket, and close every fd. A second call does nothing.

        Each peer gets a DISCONNECT with a reason. In a forked child the fds, files and peers are the parent's, so
        nothing there is touched.

        :raises ConfigError: an adapter's loop runs in another thread. Nothing is closed.
        :raises BaseException: the first exception of a callback or the hook, after everything is closed.
        """
        if self._closed or self._closing:
            return
        if self._pid != os.getpid():  # forked without Python's hooks
            self._abandon()
            return
        self._registry.check_caller()
        self._close()

    def _close(self) -> None:
        self._closing = True
        try:
            self._close_everything()
        finally:
            self._closing = False  # a KeyboardInterrupt between two steps: the next call closes the rest

    def _close_everything(self) -> None:
        steps: list[Callable[[], object]] = []
        for interface in self._interfaces:
            # If its on_disconnect has called close(), the interface is marked as deleted, but not forgotten yet.
            steps += [interface.delete, functools.partial(self.forget, interface)]
        steps += [socket.delete for socket in self._sockets.values() if not socket.implicit]
        steps += [server.close for server in self._servers]
        # The timer's fd; also the fds of a connection, if its on_disconnect has called close().
        steps += [self._registry.remove_all, self._dispatcher.stop, self._reconnector.close, self._schedule.clear]
        steps += [self._timer.close]
        if self._poller is not None:
            steps += [self._poller.close]
        failure = _call_all(steps)
        if failure is not None and not isinstance(failure, Exception):
            # KeyboardInterrupt may have ended a step too early. For the others a second call does nothing.
            _call_all(steps)
        self._closed = True
        if failure is not None:
            raise failure

    @property
    def closed(self) -> bool:
        """Whether the runtime is closed; True in a forked child, too."""
        return self._closed

    @property
    def polls_itself(self) -> bool:
        """Whether the runtime is in internal mode, without a ``control_fd_update`` hook of the application."""
        return self._poller is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._pid == os.getpid():
            try:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            finally:  # with "-W error" the warning is an exception
                with contextlib.suppress(Exception):
                    self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._interfaces)} interface(s)"
        if self._owner is not None:
            state = f"belongs to process {self._owner}"
        return f"<memifrt.Runtime {self.app_name!r}, {state}>"

    # --- bookkeeping --------------------------------------------------------------------------------------------

    @property
    def inherited(self) -> bool:
        """Whether this process is a forked child, which does not own the runtime."""
        return self._pid != os.getpid()

    def _check_open(self) -> None:
        if self._closed:
            self.check_not_forked()
            raise MemifError(ErrorCode.INVAL_ARG, "the runtime is closed")

    def _check_control_call(self) -> None:
        """Check that this thread may make control calls.

        :raises ConfigError: the loop of an adapter's hook runs in another thread.
        :raises MemifError: the runtime is closed.
        """
        self._check_open()
        self._registry.check_caller()

    def check_not_forked(self) -> None:
        """Check that this process owns the runtime.

        :raises ForkedError: this is a forked child, which does not own the runtime.
        """
        if self._owner is not None:
            raise ForkedError(self._owner)

    def _abandon(self) -> None:
        """End the runtime in a forked child. The peers, the hook and the kernel's objects are the parent's: leave them
        alone."""
        if self._closed:
            return
        self._closed = True
        self._owner = self._pid
        self._registry.abandon()
        self._reconnector.close()
        self._schedule.abandon()
        self._dispatcher.abandon()
        for socket in self._sockets.values():
            socket.abandon()
        for interface in self._interfaces:
            interface.abandon(self._pid)

    def _check_not_closing(self) -> None:
        if self._closing:
            raise MemifError(ErrorCode.INVAL_ARG, "the runtime is closing: no socket or interface can be created")

    def check_socket(self, socket: Socket) -> None:
        """Check that a socket can be used. Called by the socket, and for each socket that an application passes.

        :raises ConfigError: the socket belongs to another runtime, or it is deleted.
        :raises MemifError: the runtime is closed.
        """
        self._check_open()
        if self._sockets.get(socket.path) is not socket:
            raise ConfigError(f"{socket!r} is not a socket of this runtime, or it is deleted")

    def _socket_for(self, socket: str | os.PathLike[str] | InterfaceSocket) -> Socket:
        self._check_open()
        if isinstance(socket, Socket):
            self.check_socket(socket)
            return socket
        address = Address.parse(cast("str | os.PathLike[str]", socket))  # raises for other types
        return self._sockets.get(str(address)) or self._add_socket(
            address, FilePermissions(), PeerPolicy(), implicit=True
        )

    def _add_socket(
        self, address: Address, permissions: FilePermissions, policy: PeerPolicy, *, implicit: bool
    ) -> Socket:
        socket = Socket(self, self._context, address, permissions, policy, implicit=implicit)
        self._sockets[str(address)] = socket
        return socket

    def forget_socket(self, socket: Socket) -> None:
        """Forget a socket that is deleted. Called by the socket."""
        if self._sockets.get(socket.path) is socket:
            del self._sockets[socket.path]

    def forget(self, interface: Interface) -> None:
        """Forget an interface that is deleted. Called by the interface."""
        if interface in self._interfaces:
            self._interfaces.remove(interface)
        try:
            interface.socket.remove(interface)
        finally:
            self._reconnector.update(interface)


def _open_fds(*, internal: bool) -> tuple[EpollPoller | None, TimerFd]:
    # Imported here because it imports ctypes, which a program that only imports memifrt does not need.
    from memifrt.system.timerfd import TimerFd

    poller: EpollPoller | None = None
    try:
        poller = EpollPoller() if internal else None
        return poller, TimerFd()
    except OSError as error:
        if poller is not None:
            poller.close()
        raise os_error("cannot make a runtime", error) from error


def _call_all(steps: list[Callable[[], object]]) -> BaseException | None:
    """Call all steps, whatever one of them raises. Return the first exception."""
    failure: BaseException | None = None
    for step in steps:
        try:
            step()
        except BaseException as error:
            failure = failure or error
    return failure


def _check_seconds(what: str, seconds: float) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e9:
        raise ConfigError(f"{what} is {seconds!r}; it must be a number of seconds, 0 for none")
    return float(seconds)


def _debug_from_environment() -> None:
    """Print every control message and state change to standard error if ``MEMIFRT_DEBUG=1`` is set."""
    if os.environ.get("MEMIFRT_DEBUG", "0") not in ("", "0") and not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
