"""The common part of all programs of the command line.

Creates the interface, reports changes of the connection on standard error, and ends on Ctrl+C or SIGTERM.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from memifrt.cli.listen_fds import InheritedListeners
from memifrt.errors import ErrorCode, MemifError, PollCancelled, os_error
from memifrt.interface import Interface, InterfaceSocket, OnConnect, OnDisconnect, OnInterrupt
from memifrt.options import DEFAULT_SOCKET, InterfaceConfig, InterfaceOptions
from memifrt.poll.hook import Hook
from memifrt.runtime import Runtime
from memifrt.sockets import Socket
from memifrt.types import Role, RxMode, printable

if TYPE_CHECKING:
    from typing_extensions import Unpack

logger = logging.getLogger("memifrt")

#: The signals that end a program cleanly.
_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: The number of reports to remember, so that retries do not repeat them.
_REMEMBERED = 64


def default_mac(ip: bytes) -> bytes:
    """Return a locally administered MAC address made from ``ip``, so that each end has its own.

    :param ip: 4 or 16 bytes; the last four are used.
    """
    return b"\x02\xfe" + ip[-4:]


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """The options of every program with an interface, besides those of the interface.

    :ivar stats: the path of a stats socket, or None.
    :ivar prometheus: ``ADDRESS:PORT`` for Prometheus, or None.
    :ivar web: ``ADDRESS:PORT``, or a port on 127.0.0.1, for the page in the browser, or None.
    :ivar connect_timeout: seconds to wait for the first peer; None waits without a limit.
    """

    stats: str | None = None
    prometheus: str | None = None
    connect_timeout: float | None = None
    web: str | None = None


class NoPeerError(MemifError):
    """No peer has connected within ``--connect-timeout``. The exit status is then 3."""


_DEFAULT_CONFIG = InterfaceConfig(name="memif0")


@dataclass(frozen=True, slots=True)
class ProgramInterface:
    """The interface of a program on the command line, with the addresses that it answers for.

    :ivar ips: IPv4 and IPv6 addresses, 4 or 16 bytes each; at least one.
    """

    ips: tuple[bytes, ...]
    mac: bytes
    socket: str = DEFAULT_SOCKET
    config: InterfaceConfig = _DEFAULT_CONFIG
    session_options: SessionOptions = SessionOptions()

    @property
    def polling(self) -> bool:
        return self.config.rx_mode is RxMode.POLLING

    def create(
        self,
        runtime: Runtime,
        on_interrupt: OnInterrupt,
        on_connect: OnConnect | None = None,
        on_disconnect: OnDisconnect | None = None,
    ) -> Interface:
        """Create the interface.

        :raises MemifError: an option is wrong, or a master cannot listen.
        """
        return runtime.create_interface(
            socket=self.socket,
            on_connect=on_connect,
            on_disconnect=on_disconnect,
            on_interrupt=on_interrupt,
            **self.config.options(),
        )


class _ProgramRuntime(Runtime):
    """A runtime that tells when it waits for a peer. Its masters use the listeners of socket activation."""

    listeners = InheritedListeners([])

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
        is_master = InterfaceConfig.of(**options).role is Role.MASTER
        interface = super().create_interface(
            socket=self._with_listener(socket) if is_master and isinstance(socket, str) else socket,
            on_connect=on_connect,
            on_disconnect=on_disconnect,
            on_interrupt=on_interrupt,
            context=context,
            **options,
        )
        if is_master:  # a slave without a peer tells of its retries
            logger.info("waiting for a peer on %s; Ctrl+C ends it", interface.socket.path)
        return interface

    def _with_listener(self, path: str) -> str | Socket:
        """Return the socket with the inherited listener for a path, or the path if this process must listen itself."""
        if any(socket.path == path and socket.listener_fd >= 0 for socket in self.sockets):
            return path  # a second master on the same socket
        fd = self.listeners.claim(path)
        if fd is None:
            return path
        socket = self.create_socket(path)
        socket.set_listener_fd(fd)
        return socket


@contextlib.contextmanager
def session(
    program: str,
    *,
    reconnect_interval: float,
    session_options: SessionOptions = SessionOptions(),
    hook: Hook | None = None,
    cancel: Callable[[], None] | None = None,
) -> Iterator[Runtime]:
    """Open a runtime that reports to standard error. Ctrl+C and SIGTERM end its poll with ``PollCancelled``.

    :param hook: the hook of a runtime in external mode.
    :param cancel: ends the wait of the application's loop in external mode.
    :raises NoPeerError: no peer connected within ``session_options.connect_timeout``.
    :raises ConfigError: socket activation passed something else than listeners of memif.
    """
    listeners = InheritedListeners.take()
    runtime = _ProgramRuntime(
        f"memifrt {program}",
        control_fd_update=hook,
        reconnect_interval=reconnect_interval,
        stats_socket=session_options.stats,
        prometheus=session_options.prometheus,
        web=session_options.web,
    )
    runtime.listeners = listeners
    if runtime.metrics_url:
        complain(f"memifrt {program}: metrics on {runtime.metrics_url}")
    if runtime.web_url:
        complain(f"memifrt {program}: page on {runtime.web_url}")
    # Handle the signals until the runtime is closed: a second Ctrl+C must not interrupt the cleanup.
    stop = cancel or runtime.cancel_poll_event
    timeout = session_options.connect_timeout
    with _reporting(program), signals_to(stop), runtime, runtime.woken_by_signals(), _deadline(runtime, stop, timeout):
        yield runtime


@contextlib.contextmanager
def _deadline(runtime: Runtime, stop: Callable[[], None], seconds: float | None) -> Iterator[None]:
    """Stop the program after ``seconds`` if no peer has connected by then.

    :raises NoPeerError: no peer has connected.
    """
    if seconds is None:
        yield
        return
    expired: list[str] = []  # the reason, once the time is over

    def on_alarm(number: int, frame: FrameType | None) -> None:
        if not any(interface.connects for interface in runtime.interfaces):
            reasons = [interface.last_error for interface in runtime.interfaces if interface.last_error is not None]
            expired.append(f": {reasons[0].message}" if reasons else "")
            stop()

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with contextlib.suppress(PollCancelled):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if expired:
            raise NoPeerError(ErrorCode.NOCONN, f"no peer has connected within {seconds:g} s{expired[0]}")


class _Reports(logging.Handler):
    """Prints a line for each change of a connection, but a reason that retries repeat only once."""

    def __init__(self, program: str) -> None:
        super().__init__(logging.INFO)
        self._program = program
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        line = one_line(record.getMessage())
        if "; retrying every " in line:
            line += "; Ctrl+C ends it"
        if ": connected to " in line or len(self._told) >= _REMEMBERED:
            self._told.clear()
        if line not in self._told:
            self._told.add(line)
            complain(f"memifrt {self._program}: {line}")


def complain(text: str) -> None:
    """Print one line on standard error."""
    with contextlib.suppress(OSError):  # the reader of standard error is gone
        sys.stderr.write(one_line(text) + "\n")  # in one write: other processes write to the same terminal
        sys.stderr.flush()


def print_whole(text: str) -> None:
    """Print text that ends with a newline on standard output, at once.

    :raises BrokenPipeError: its reader is gone.
    :raises MemifOSError: it takes no more, as on a full disk.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise os_error("cannot write to standard output", error) from error


def one_line(text: str) -> str:
    """Return ``text`` for a terminal, with control characters as escapes: a peer may have chosen parts of it."""
    return printable(text)


@contextlib.contextmanager
def _reporting(program: str) -> Iterator[None]:
    if logger.handlers:  # MEMIFRT_DEBUG or an embedding application prints all log lines already
        yield
        return
    handler, level = _Reports(program), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


#: The first signal that has ended the program, in a list of at most one.
_ended_by: list[int] = []


def ended_by_signal() -> bool:
    """Return whether a signal has ended the last program of :func:`signals_to`."""
    return bool(_ended_by)


def status_of_signal() -> int:
    """Return the exit status of work that a signal has cut short: 128 and the number of the signal, as in shells."""
    return 128 + (_ended_by[0] if _ended_by else signal.SIGINT)


@contextlib.contextmanager
def signals_to(stop: Callable[[], None]) -> Iterator[None]:
    """Call ``stop`` on SIGINT, SIGTERM and SIGHUP. Outside the main thread, do nothing: signals cannot be set there."""
    _ended_by.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if not _ended_by:
            _ended_by.append(number)
        with contextlib.suppress(MemifError):  # the runtime is closed already
            stop()

    before = [(number, signal.signal(number, on_signal)) for number in _ENDINGS]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
