"""libmemif's calls that handle events, and the timer of disconnected slaves."""

from __future__ import annotations

import warnings
from typing import overload

from memifrt.errors import ConfigError
from memifrt.libmemif.codes import pass_callback_errors, required, returns_code
from memifrt.libmemif.handles import MemifFdContext
from memifrt.libmemif.sockets import existing
from memifrt.libmemif.state import NOT_GIVEN, NotGiven, runtime_of
from memifrt.runtime import Runtime
from memifrt.sockets import Socket
from memifrt.types import FdEvent


@overload
def memif_poll_event(sock: Socket, timeout: float | None = None) -> int: ...
@overload
def memif_poll_event(timeout: float | None = None, /, *, main: Runtime | None = None) -> int: ...
@overload
def memif_poll_event(*, timeout: float | None, main: Runtime | None = None) -> int: ...
@returns_code
def memif_poll_event(
    sock: Socket | float | NotGiven | None = NOT_GIVEN,
    timeout: float | NotGiven | None = NOT_GIVEN,
    *,
    main: Runtime | None = None,
) -> None:
    """Wait for events once and handle them.

    Call it as ``memif_poll_event(sock, timeout)`` as in 4.0, or as ``memif_poll_event(timeout)`` as in 2.x. The code is
    ``POLL_CANCEL`` if the poll was cancelled, and ``INVAL_ARG`` if the event loop has a hook.

    :param timeout: in **seconds**. 0 does not wait. None or a negative number waits without a limit. The first integer
        of 100 or more causes a RuntimeWarning, because it looks like milliseconds.
    """
    if isinstance(sock, NotGiven):
        runtime, seconds = runtime_of(None, main), timeout
    elif isinstance(sock, Socket) or not isinstance(timeout, NotGiven):
        if not isinstance(sock, Socket):
            raise ConfigError(f"sock is {sock!r}; it must be a socket handle")
        runtime, seconds = runtime_of(sock), timeout
    else:
        runtime, seconds = runtime_of(None, main), sock
    _warn_of_milliseconds(seconds)
    with pass_callback_errors():
        runtime.poll_event(None if isinstance(seconds, NotGiven) else seconds)


_milliseconds_warned = False


def _warn_of_milliseconds(timeout: object) -> None:
    """Warn once of a timeout that looks like milliseconds: C programs pass those, and 1000 s looks like a hang."""
    global _milliseconds_warned
    if isinstance(timeout, int) and timeout >= 100 and not _milliseconds_warned:
        _milliseconds_warned = True
        warnings.warn(
            f"memif_poll_event waits for {timeout} seconds: its timeout is in seconds, not in milliseconds",
            RuntimeWarning,
            stacklevel=4,
        )


@returns_code
def memif_cancel_poll_event(sock: Socket | NotGiven | None = NOT_GIVEN, *, main: Runtime | None = None) -> None:
    """End one poll. This can be called in any thread and in a signal handler.

    The code is ``INVAL_ARG`` if the event loop has a hook, and if ``sock`` is None.
    """
    runtime_of(None if isinstance(sock, NotGiven) else existing(sock), main).cancel_poll_event()


@overload
def memif_control_fd_handler(ptr: MemifFdContext, events: FdEvent | int) -> int: ...
@overload
def memif_control_fd_handler(ptr: int, events: FdEvent | int, *, main: Runtime | None = None) -> int: ...
@returns_code
def memif_control_fd_handler(ptr: MemifFdContext | int, events: FdEvent | int, *, main: Runtime | None = None) -> None:
    """Handle the events of an fd that is ready.

    :param ptr: the fd (2.x), or the ``private_ctx`` of its :class:`MemifFdEvent` (4.0).
    :param events: the events, a combination of ``MEMIF_FD_EVENT_*``.
    """
    if isinstance(ptr, MemifFdContext):
        runtime, fd = runtime_of(None, ptr.hook.runtime), ptr.fd
    else:
        runtime, fd = runtime_of(None, main), required("fd", ptr)
    with pass_callback_errors():
        runtime.control_fd_handler(fd, required("events", events))


@overload
def memif_set_connection_request_timer(sock: Socket, period: float) -> int: ...
@overload
def memif_set_connection_request_timer(period: float, /, *, main: Runtime | None = None) -> int: ...
@returns_code
def memif_set_connection_request_timer(
    sock: Socket | float, period: float | NotGiven | None = NOT_GIVEN, *, main: Runtime | None = None
) -> None:
    """Set the time between two attempts of disconnected slaves to connect.

    Call it with ``(sock, period)`` for the event loop of a socket (4.0), or with ``(period)`` for the global state
    (2.x).

    :param period: in **seconds**; 0 turns the timer off.
    """
    if isinstance(sock, Socket):
        if period is None or isinstance(period, NotGiven):
            raise ConfigError("period is missing; it must be a number of seconds, 0 for none")
        runtime_of(sock).set_reconnect_interval(period)
    elif isinstance(period, NotGiven):
        runtime_of(None, main).set_reconnect_interval(required("period", sock))
    else:
        raise ConfigError(f"sock is {sock!r}; it must be a socket handle")
