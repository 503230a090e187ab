"""The state of libmemif: the global one, that of a thread, and what belongs to a socket.

Owns the global runtime and the contexts of sockets. A runtime handles the events.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast
from weakref import WeakKeyDictionary

from memifrt.errors import ConfigError, ErrorCode, MemifError
from memifrt.libmemif.codes import nothing, pass_callback_errors, returns_code, returns_result
from memifrt.libmemif.constants import MEMIF_DEFAULT_APP_NAME, MEMIF_DEFAULT_RECONNECT_PERIOD_SEC, MEMIF_ERR_SUCCESS
from memifrt.libmemif.handles import ControlFdUpdate
from memifrt.memory.region import allocate_memfd
from memifrt.options import RegionAllocator
from memifrt.poll.hook import Hook
from memifrt.runtime import Runtime
from memifrt.sockets import Socket
from memifrt.types import FdEvent, check_callback


@dataclass
class SocketState:
    """The state of a socket in C that a :class:`memifrt.Socket` does not have."""

    private_ctx: object
    owns_runtime: bool


class NotGiven:
    """Marks an argument that was not given. None stands for C's NULL."""


NOT_GIVEN = NotGiven()
_main: Runtime | None = None
socket_states: WeakKeyDictionary[Socket, SocketState] = WeakKeyDictionary()


@returns_code
def memif_init(
    control_fd_update: ControlFdUpdate | None = None,
    app_name: str | None = MEMIF_DEFAULT_APP_NAME,
    region_allocator: RegionAllocator | None = None,
    memif_realloc: None = None,
    memif_free: None = None,
) -> None:
    """Make the global state (libmemif 2.x and 3.x). The code is ``ALREADY`` if it exists.

    :param control_fd_update: ``hook(fd, events)``, or ``hook(fd, events, None)`` as in 3.x. Without a hook memifrt
        polls by itself: see :func:`memif_poll_event`.
    :param app_name: the name that peers see; None for the default.
    :param region_allocator: ``allocate(size) -> fd``; it replaces C's three allocators.
    :param memif_realloc: must be None.
    :param memif_free: must be None.
    """
    if memif_realloc is not None or memif_free is not None:
        raise ConfigError("memif_realloc and memif_free must be None: region_allocator replaces all three")
    global _main
    if _main is not None and not _main.inherited:
        raise MemifError(ErrorCode.ALREADY, "memif_init has been called already, and memif_cleanup has not")
    _main = new_runtime(_with_context(control_fd_update, None), app_name, region_allocator)


@returns_result(nothing)
def memif_per_thread_init(
    private_ctx: object = None,
    control_fd_update: ControlFdUpdate | None = None,
    app_name: str | None = MEMIF_DEFAULT_APP_NAME,
    region_allocator: RegionAllocator | None = None,
    memif_realloc: None = None,
    memif_free: None = None,
) -> tuple[int, Runtime]:
    """Make the state of one thread (libmemif 3.x). Pass it as ``main`` to the other calls.

    The arguments are those of :func:`memif_init`. The hook is ``hook(fd, events, private_ctx)``, or
    ``hook(fd, events)``.
    """
    if memif_realloc is not None or memif_free is not None:
        raise ConfigError("memif_realloc and memif_free must be None: region_allocator replaces all three")
    hook = _with_context(control_fd_update, private_ctx)
    return MEMIF_ERR_SUCCESS, new_runtime(hook, app_name, region_allocator)


def _with_context(hook: ControlFdUpdate | None, private_ctx: object) -> Callable[[int, FdEvent], object] | None:
    """Turn a hook of two arguments (2.x) or of three (3.x) into a hook of two.

    :raises ConfigError: the hook is not callable, or takes another number of arguments.
    """
    check_callback("control_fd_update", hook)
    if hook is None:
        return None
    call: Callable[..., object] = hook
    if _takes(call, 3):
        return lambda fd, events: call(fd, events, private_ctx)
    if _takes(call, 2):
        return call
    raise ConfigError(f"control_fd_update is {hook!r}; it must take (fd, events) or (fd, events, private_ctx)")


def _takes(function: Callable[..., object], count: int) -> bool:
    """Return whether a function takes ``count`` arguments. A built-in function without a signature takes two."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:
        return count == 2
    return True


@returns_code
def memif_cleanup(main: Runtime | None = None) -> None:
    """Delete the global state, or that of a thread, with its connections and sockets.

    The code is ``INVAL_ARG`` if there is none. A forked child only forgets the state of its parent.
    """
    global _main
    inherited = _main if main is None else main
    runtime = inherited if inherited is not None and inherited.inherited else runtime_of(None, main)
    if runtime is _main:
        _main = None
    for sock in runtime.sockets:
        socket_states.pop(sock, None)
    with pass_callback_errors():
        runtime.close()


def new_runtime(
    hook: Callable[[int, FdEvent], object] | None,
    app_name: str | None,
    allocator: RegionAllocator | None,
    reconnect_interval: float = MEMIF_DEFAULT_RECONNECT_PERIOD_SEC,
) -> Runtime:
    check_callback("region_allocator", allocator)
    return Runtime(
        MEMIF_DEFAULT_APP_NAME if app_name is None else app_name,
        control_fd_update=None if hook is None else _checked(hook),
        region_allocator=allocator or allocate_memfd,
        reconnect_interval=reconnect_interval,
    )


def _checked(hook: Callable[[int, FdEvent], object]) -> Hook:
    """Make a hook that fails in C's way, by returning a number that is not 0, raise an error."""

    def checked(fd: int, events: FdEvent) -> None:
        result = hook(fd, events)
        if isinstance(result, int) and not isinstance(result, bool) and result != 0:
            raise MemifError(ErrorCode.CB_FDUPDATE, f"it returned {result}")

    return checked


def owner_of(sock: Socket) -> Runtime:
    """Return the event loop that a socket belongs to."""
    return cast(Runtime, sock.owner)


def runtime_of(sock: Socket | None = None, main: Runtime | None = None) -> Runtime:
    """Return the event loop of a socket, of a thread (``main``), or the global one."""
    if sock is not None:
        return owner_of(sock)
    runtime = _main if main is None else main
    if runtime is not None:
        runtime.check_not_forked()
    if runtime is None or runtime.closed:
        raise ConfigError("there is no state: memif_init has not been called, or memif_cleanup has")
    return runtime
