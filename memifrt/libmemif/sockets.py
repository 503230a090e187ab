"""libmemif's calls on sockets: make, delete, ask, and the application's own listener or memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import cast, overload

from memifrt.errors import ConfigError, ErrorCode, MemifError
from memifrt.interface import Interface
from memifrt.libmemif.codes import nothing, recording, required, returns_code, returns_result
from memifrt.libmemif.connections import is_gone
from memifrt.libmemif.constants import MEMIF_DEFAULT_APP_NAME, MEMIF_DEFAULT_SOCKET_PATH, MEMIF_ERR_SUCCESS
from memifrt.libmemif.handles import EventHook, MemifSocketArgs
from memifrt.libmemif.state import SocketState, new_runtime, owner_of, runtime_of, socket_states
from memifrt.memory.region import ExternalRegion
from memifrt.runtime import Runtime
from memifrt.sockets import Socket
from memifrt.types import check_callback


@overload
def memif_create_socket(
    args: str | os.PathLike[str] = ..., private_ctx: object = None, *, main: Runtime | None = None
) -> tuple[int, Socket | None]: ...
@overload
def memif_create_socket(args: MemifSocketArgs, private_ctx: object = None) -> tuple[int, Socket | None]: ...
@returns_result(nothing)
def memif_create_socket(
    args: str | os.PathLike[str] | MemifSocketArgs = MEMIF_DEFAULT_SOCKET_PATH,
    private_ctx: object = None,
    *,
    main: Runtime | None = None,
) -> tuple[int, Socket]:
    """Make a socket.

    With a path, the socket belongs to the global state or to ``main`` (libmemif 2.x). With a
    :class:`MemifSocketArgs`, it has its own event loop (4.0).

    :param args: a path or a :class:`MemifSocketArgs`. A path that starts with ``@`` or NUL is an abstract name.
    :param private_ctx: passed to the hook of 4.0 and to the callbacks of an external region.
    """
    required("args", args)
    if isinstance(args, MemifSocketArgs):
        required("args.path", args.path)
        return MEMIF_ERR_SUCCESS, _create_own_socket(args, private_ctx)
    sock = runtime_of(None, main).create_socket(args)
    socket_states[sock] = SocketState(private_ctx, owns_runtime=False)
    return MEMIF_ERR_SUCCESS, sock


def _create_own_socket(args: MemifSocketArgs, private_ctx: object) -> Socket:
    hook = args.on_control_fd_update
    check_callback("on_control_fd_update", hook)
    event_hook = None if hook is None else EventHook(hook, private_ctx)
    runtime = new_runtime(event_hook, args.app_name or MEMIF_DEFAULT_APP_NAME, None, args.connection_request_timer)
    if event_hook is not None:
        event_hook.runtime = runtime
    try:
        sock = runtime.create_socket(args.path)
    except MemifError:
        runtime.close()
        raise
    socket_states[sock] = SocketState(private_ctx, owns_runtime=True)
    return sock


@returns_code
def memif_delete_socket(sock: Socket | None) -> None:
    """Delete a socket. The code is ``INVAL_ARG`` while connections use it, or if it is deleted already."""
    if sock is None or sock not in owner_of(sock).sockets:
        raise ConfigError("there is no such socket, or it is deleted already")
    sock.delete()
    state = socket_states.pop(sock, None)
    if state is not None and state.owns_runtime:
        owner_of(sock).close()


def memif_get_socket_path(sock: Socket | None) -> str | None:
    """Return the path of a socket as it was given. An abstract name is shown as ``@name``."""
    return None if sock is None else sock.path


def memif_get_socket_filename(sock: Socket | None) -> str | None:
    """Do what :func:`memif_get_socket_path` does. This is its name in libmemif 3.x."""
    return memif_get_socket_path(sock)


def memif_get_socket_handle(conn: Interface | None) -> Socket | None:
    """Return the socket of a connection; None if the connection is deleted."""
    return None if conn is None or is_gone(conn) else cast(Socket, conn.socket)


def memif_get_listener_fd(sock: Socket | None) -> int:
    """Return the fd of the listener; -1 while the socket does not listen."""
    return -1 if sock is None else sock.listener_fd


@returns_code
def memif_set_listener_fd(sock: Socket | None, fd: int) -> None:
    """Accept peers on a listener that the application or its parent made, and take ownership of the fd.

    The code is ``FILE_NOT_SOCK`` or ``BAD_FD`` if the fd is not a listening socket.
    """
    required("fd", fd)
    if fd < 0:
        raise MemifError(ErrorCode.BAD_FD, f"{fd} is not an fd")
    existing(sock).set_listener_fd(fd)


@returns_code
def memif_register_external_region(
    sock: Socket | None,
    add_external_region: Callable[[int, object], tuple[int, memoryview]] | None,
    get_external_region_addr: Callable[[int, int, object], memoryview] | None,
    del_external_region: Callable[[memoryview, int, int, object], object] | None = None,
    get_external_buffer_offset: Callable[[object], int] | None = None,
) -> None:
    """Put the buffers into memory of the application: see :class:`memifrt.ExternalRegion`.

    Each callback gets the private context of the socket as its last argument. The code is ``INVAL_ARG`` once a
    connection exists.

    :param add_external_region: for a slave: ``add(size, private_ctx) -> (fd, memory)``. The application owns the fd,
        as in C. It closes the fd in ``delete``, which gets the same number.
    :param get_external_region_addr: for a master: ``map(size, fd, private_ctx) -> memory``. memifrt owns the fd.
    :param del_external_region: ``delete(memory, size, fd, private_ctx)``.
    :param get_external_buffer_offset: ``next_offset(private_ctx) -> offset``: the offset in bytes of the buffer of the
        next slot.
    """
    home = existing(sock)
    for what, callback in (
        ("add_external_region", add_external_region),
        ("get_external_region_addr", get_external_region_addr),
        ("del_external_region", del_external_region),
        ("get_external_buffer_offset", get_external_buffer_offset),
    ):
        check_callback(what, callback)
    add, get = recording(required("add_external_region", add_external_region)), get_external_region_addr
    get = recording(required("get_external_region_addr", get))
    state = socket_states.get(home)
    ctx = None if state is None else state.private_ctx
    delete = None if del_external_region is None else recording(del_external_region)
    offset = None if get_external_buffer_offset is None else recording(get_external_buffer_offset)

    def deleted(memory: memoryview, size: int, fd: int) -> None:
        if delete is not None:
            delete(memory, size, fd, ctx)

    home.register_external_region(
        ExternalRegion(
            add=lambda size: add(size, ctx),
            map=lambda size, fd: get(size, fd, ctx),
            delete=deleted,
            next_buffer_offset=None if offset is None else lambda: offset(ctx),
        )
    )


def existing(sock: Socket | None) -> Socket:
    if sock is None:
        raise ConfigError("there is no such socket")
    return sock
