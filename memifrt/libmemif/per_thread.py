"""libmemif 3.x: the calls for the state of one thread. Each calls its counterpart with that state."""

from __future__ import annotations

import os

from memifrt.errors import ConfigError
from memifrt.libmemif.codes import failed
from memifrt.libmemif.constants import MEMIF_DEFAULT_SOCKET_PATH
from memifrt.libmemif.events import (
    memif_cancel_poll_event,
    memif_control_fd_handler,
    memif_poll_event,
    memif_set_connection_request_timer,
)
from memifrt.libmemif.sockets import memif_create_socket
from memifrt.libmemif.state import memif_cleanup
from memifrt.runtime import Runtime
from memifrt.sockets import Socket
from memifrt.types import FdEvent


def memif_per_thread_cleanup(main: Runtime | None) -> int:
    """Call :func:`memif_cleanup` for the state of a thread."""
    return _no_main() if main is None else memif_cleanup(main)


def memif_per_thread_create_socket(
    main: Runtime | None, filename: str | os.PathLike[str] = MEMIF_DEFAULT_SOCKET_PATH, private_ctx: object = None
) -> tuple[int, Socket | None]:
    """Call :func:`memif_create_socket` for the state of a thread."""
    if main is None:
        return _no_main(), None
    return memif_create_socket(filename, private_ctx, main=main)


def memif_per_thread_poll_event(main: Runtime | None, timeout: float | None = None) -> int:
    """Call :func:`memif_poll_event` for the state of a thread. ``timeout`` is in **seconds**."""
    return _no_main() if main is None else memif_poll_event(timeout=timeout, main=main)


def memif_per_thread_cancel_poll_event(main: Runtime | None) -> int:
    """Call :func:`memif_cancel_poll_event` for the state of a thread."""
    return _no_main() if main is None else memif_cancel_poll_event(main=main)


def memif_per_thread_control_fd_handler(main: Runtime | None, fd: int, events: FdEvent | int) -> int:
    """Call :func:`memif_control_fd_handler` for the state of a thread."""
    return _no_main() if main is None else memif_control_fd_handler(fd, events, main=main)


def memif_per_thread_set_connection_request_timer(main: Runtime | None, period: float) -> int:
    """Call :func:`memif_set_connection_request_timer` for the state of a thread. ``period`` is in **seconds**."""
    return _no_main() if main is None else memif_set_connection_request_timer(period, main=main)


def _no_main() -> int:
    return failed(ConfigError("main is None; it must be what memif_per_thread_init made"))
