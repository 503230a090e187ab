"""libmemif's names and return codes on memifrt's objects, as thin as can be.

Owns the translation: exceptions to codes, C argument orders and defaults to ours. A socket handle is a
:class:`memifrt.Socket`, a connection handle a :class:`memifrt.Interface`, a per-thread main a :class:`memifrt.Runtime`.

A function without results returns its code, one with results ``(code, result, ...)``; what C returns by itself (a
path, a handle, an fd, a version, a text) is returned by itself. No exception of memifrt's leaves these functions: see
:func:`memif_last_error` for what is behind a code. What an application's own callback raises does.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, ParamSpec, TypeVar, cast, overload
from weakref import WeakKeyDictionary

from memifrt.errors import ConfigError, Disconnected, ErrorCode, ForkedError, MemifError, strerror
from memifrt.interface import Details, Interface, OnConnect, OnDisconnect, OnInterrupt, QueueDetails
from memifrt.memory.region import ExternalRegion, allocate_memfd
from memifrt.options import (
    DEFAULT_BUFFER_SIZE,
    DEFAULT_LOG2_RING_SIZE,
    DEFAULT_RECONNECT_INTERVAL,
    DEFAULT_SOCKET,
    RegionAllocator,
)
from memifrt.poll.hook import Hook
from memifrt.queue import RxQueue, TxQueue
from memifrt.ring import Burst, implementation
from memifrt.runtime import Runtime
from memifrt.sockets import Socket
from memifrt.types import VERSION, BufferFlag, FdEvent, Mode, Role, RxMode

_P = ParamSpec("_P")
_T = TypeVar("_T")
_E = TypeVar("_E")
_M = TypeVar("_M", Mode, RxMode)
_Q = TypeVar("_Q", RxQueue, TxQueue)

logger = logging.getLogger("memifrt")

# --- constants ------------------------------------------------------------------------------------------------------

MEMIF_ERR_SUCCESS = ErrorCode.SUCCESS
MEMIF_ERR_SYSCALL = ErrorCode.SYSCALL
MEMIF_ERR_CONNREFUSED = ErrorCode.CONNREFUSED
MEMIF_ERR_ACCES = ErrorCode.ACCES
MEMIF_ERR_NO_FILE = ErrorCode.NO_FILE
MEMIF_ERR_FILE_LIMIT = ErrorCode.FILE_LIMIT
MEMIF_ERR_PROC_FILE_LIMIT = ErrorCode.PROC_FILE_LIMIT
MEMIF_ERR_ALREADY = ErrorCode.ALREADY
MEMIF_ERR_AGAIN = ErrorCode.AGAIN
MEMIF_ERR_BAD_FD = ErrorCode.BAD_FD
MEMIF_ERR_NOMEM = ErrorCode.NOMEM
MEMIF_ERR_INVAL_ARG = ErrorCode.INVAL_ARG
MEMIF_ERR_NOCONN = ErrorCode.NOCONN
MEMIF_ERR_CONN = ErrorCode.CONN
MEMIF_ERR_CB_FDUPDATE = ErrorCode.CB_FDUPDATE
MEMIF_ERR_FILE_NOT_SOCK = ErrorCode.FILE_NOT_SOCK
MEMIF_ERR_NO_SHMFD = ErrorCode.NO_SHMFD
MEMIF_ERR_COOKIE = ErrorCode.COOKIE
MEMIF_ERR_NOBUF_RING = ErrorCode.NOBUF_RING
MEMIF_ERR_NOBUF = ErrorCode.NOBUF
MEMIF_ERR_NOBUF_DET = ErrorCode.NOBUF_DET
MEMIF_ERR_INT_WRITE = ErrorCode.INT_WRITE
MEMIF_ERR_MFMSG = ErrorCode.MFMSG
MEMIF_ERR_QID = ErrorCode.QID
MEMIF_ERR_PROTO = ErrorCode.PROTO
MEMIF_ERR_ID = ErrorCode.ID
MEMIF_ERR_ACCSLAVE = ErrorCode.ACCSLAVE
MEMIF_ERR_ALRCONN = ErrorCode.ALRCONN
MEMIF_ERR_MODE = ErrorCode.MODE
MEMIF_ERR_SECRET = ErrorCode.SECRET
MEMIF_ERR_NOSECRET = ErrorCode.NOSECRET
MEMIF_ERR_MAXREG = ErrorCode.MAXREG
MEMIF_ERR_MAXRING = ErrorCode.MAXRING
MEMIF_ERR_NO_INTFD = ErrorCode.NO_INTFD
MEMIF_ERR_DISCONNECT = ErrorCode.DISCONNECT
MEMIF_ERR_DISCONNECTED = ErrorCode.DISCONNECTED
MEMIF_ERR_UNKNOWN_MSG = ErrorCode.UNKNOWN_MSG
MEMIF_ERR_POLL_CANCEL = ErrorCode.POLL_CANCEL
MEMIF_ERR_MAX_RING = ErrorCode.MAX_RING
MEMIF_ERR_PRIVHDR = ErrorCode.PRIVHDR

MEMIF_FD_EVENT_READ = FdEvent.READ
MEMIF_FD_EVENT_WRITE = FdEvent.WRITE
MEMIF_FD_EVENT_ERROR = FdEvent.ERROR
MEMIF_FD_EVENT_DEL = FdEvent.DEL
MEMIF_FD_EVENT_MOD = FdEvent.MOD

MEMIF_RX_MODE_INTERRUPT = RxMode.INTERRUPT
MEMIF_RX_MODE_POLLING = RxMode.POLLING

MEMIF_INTERFACE_MODE_ETHERNET = Mode.ETHERNET
MEMIF_INTERFACE_MODE_IP = Mode.IP
MEMIF_INTERFACE_MODE_PUNT_INJECT = Mode.PUNT_INJECT

MEMIF_BUFFER_FLAG_NEXT = BufferFlag.NEXT

MEMIF_DEFAULT_SOCKET_PATH = DEFAULT_SOCKET
MEMIF_DEFAULT_APP_NAME = "libmemif-app"
MEMIF_DEFAULT_LOG2_RING_SIZE = DEFAULT_LOG2_RING_SIZE
MEMIF_DEFAULT_RING_SIZE = 1 << DEFAULT_LOG2_RING_SIZE
MEMIF_DEFAULT_BUFFER_SIZE = DEFAULT_BUFFER_SIZE
MEMIF_DEFAULT_TX_QUEUES = 1
MEMIF_DEFAULT_RX_QUEUES = 1
#: Seconds between two attempts to connect, after :func:`memif_init`.
MEMIF_DEFAULT_RECONNECT_PERIOD_SEC = DEFAULT_RECONNECT_INTERVAL

# --- handles, arguments, results ------------------------------------------------------------------------------------

#: What :func:`memif_per_thread_init` makes and ``main=`` takes.
MemifMain = Runtime
MemifSocketHandle = Socket
MemifConnHandle = Interface

#: libmemif 2.x: ``hook(fd, events)``. Any hook fails by raising, or in C's way by returning a number that is not 0.
ControlFdUpdate = Callable[[int, FdEvent], object]
#: With a private context at its end: :func:`memif_per_thread_init`.
ControlFdUpdateWithContext = Callable[[int, FdEvent, object], object]
#: libmemif 4.0: ``hook(fd_event, private_ctx)``.
ControlFdEventUpdate = Callable[["MemifFdEvent", object], object]

#: ``on_connect(conn, private_ctx)`` and ``on_disconnect(conn, private_ctx)``. What they return is ignored.
ConnectionCallback = Callable[[Interface, object], object]
#: ``on_interrupt(conn, private_ctx, qid)``.
InterruptCallback = Callable[[Interface, object, int], object]


class MemifFdEvent(NamedTuple):
    """What a hook of libmemif 4.0 is told: give ``private_ctx`` to :func:`memif_control_fd_handler` when the fd is
    ready."""

    fd: int
    type: FdEvent
    private_ctx: MemifFdContext


class MemifFdContext(NamedTuple):
    """Which fd of which socket's event loop; opaque to the application."""

    hook: _EventHook
    fd: int


@dataclass
class MemifSocketArgs:
    """``memif_socket_args_t``. ``connection_request_timer`` is in seconds, 0 for none."""

    path: str = MEMIF_DEFAULT_SOCKET_PATH
    app_name: str = MEMIF_DEFAULT_APP_NAME
    connection_request_timer: float = 0.0
    on_control_fd_update: ControlFdEventUpdate | None = None


@dataclass
class MemifConnArgs:
    """``memif_conn_args_t``. Zero takes libmemif's default: one ring each way, 1024 slots, 2048 bytes; no socket is
    the one at ``/run/vpp/memif.sock``."""

    socket: Socket | None = None
    secret: str | bytes = field(default=b"", repr=False)
    num_s2m_rings: int = 0
    num_m2s_rings: int = 0
    buffer_size: int = 0
    log2_ring_size: int = 0
    is_master: bool = False
    interface_id: int = 0
    interface_name: str = ""
    mode: int = MEMIF_INTERFACE_MODE_ETHERNET


class MemifBuffer:
    """``memif_buffer_t``: one buffer of a queue. It is valid until it is sent or given back; touched later its
    properties raise ``ValueError``."""

    __slots__ = ("_burst", "_index", "_queue")

    def __init__(self, queue: RxQueue | TxQueue, burst: Burst, index: int) -> None:
        self._queue = queue
        self._burst = burst
        self._index = index

    @property
    def queue(self) -> RxQueue | TxQueue:
        """The queue that it lies on."""
        return self._queue

    @property
    def desc_index(self) -> int:
        """The slot of its descriptor."""
        return self._burst.slot(self._index)

    @property
    def flags(self) -> BufferFlag:
        """``MEMIF_BUFFER_FLAG_NEXT``: the packet goes on in the next buffer."""
        return self._burst.flags(self._index)

    @property
    def data(self) -> memoryview:
        """Its ``len`` bytes in shared memory. To be taken anew after ``len`` or ``advance``."""
        return self._burst[self._index]

    @property
    def len(self) -> int:
        """Bytes of data. To be set before it is sent: to less, or for a slave to as much as the buffer has room for.

        :raises ConfigError: there is no room for it, or nothing would be left.
        """
        return self._burst.length(self._index)

    @len.setter
    def len(self, length: int) -> None:
        self._burst.set_length(self._index, length)

    def advance(self, count: int) -> None:
        """Let the data start ``count`` bytes later: C's ``data += count; len -= count``. A slave may go back into the
        headroom with a negative count, to prepend a header.

        :raises ConfigError: nothing would be left, there is no such room, or it is a buffer that a master is to send.
        """
        self._burst.advance(self._index, count)


@dataclass(frozen=True)
class MemifRegionDetails:
    """``memif_region_details_t``."""

    index: int
    addr: int
    size: int
    fd: int
    is_external: bool


@dataclass(frozen=True)
class MemifQueueDetails:
    """``memif_queue_details_t``. A master does not know the buffer size: 0."""

    region: int
    qid: int
    ring_size: int
    flags: int
    head: int
    tail: int
    buffer_size: int


@dataclass(frozen=True)
class MemifDetails:
    """``memif_details_t``; ``regions_num`` and its like are the tuples' lengths."""

    if_name: str
    inst_name: str
    remote_if_name: str
    remote_inst_name: str
    id: int
    secret: bytes = field(repr=False)
    role: Role
    mode: Mode
    socket_path: str
    regions: tuple[MemifRegionDetails, ...]
    rx_queues: tuple[MemifQueueDetails, ...]
    tx_queues: tuple[MemifQueueDetails, ...]
    error: str
    link_up_down: bool


# --- from exceptions to codes ---------------------------------------------------------------------------------------

_last = threading.local()


def memif_last_error() -> MemifError | None:
    """The exception behind the last code but SUCCESS that a function here returned in this thread: its text names
    what failed, and a system call's has ``errno`` and ``filename``. Not in C."""
    error: MemifError | None = getattr(_last, "error", None)
    return error


def _failed(error: MemifError) -> int:
    """The code of an error, which is kept for :func:`memif_last_error`."""
    link: BaseException | None = error
    while link is not None:  # frames would keep buffers, and with them mappings, alive
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    if isinstance(error, ForkedError):  # no code says whose the handle is
        raise error
    _last.error = error
    logger.debug("code %d (%s): %s", error.code, error.code.name, error)
    return error.code


def _code(call: Callable[_P, None]) -> Callable[_P, int]:
    """A function without results: it returns its code."""

    @functools.wraps(call)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> int:
        try:
            call(*args, **kwargs)
        except MemifError as error:
            return _failed(error)
        return MEMIF_ERR_SUCCESS

    return wrapper


def _result(nothing: Callable[[], _E]) -> Callable[[Callable[_P, tuple[int, _T]]], Callable[_P, tuple[int, _T | _E]]]:
    """A function that returns its code and a result: ``nothing()`` on an error."""

    def decorate(call: Callable[_P, tuple[int, _T]]) -> Callable[_P, tuple[int, _T | _E]]:
        @functools.wraps(call)
        def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> tuple[int, _T | _E]:
            try:
                return call(*args, **kwargs)
            except MemifError as error:
                return _failed(error), nothing()

        return wrapper

    return decorate


def _none() -> None:
    return None


def _no_buffers() -> list[MemifBuffer]:
    return []


def _no_fd() -> int:
    return -1


# --- the state ------------------------------------------------------------------------------------------------------


@dataclass
class _SocketState:
    """What C keeps in a socket and a :class:`memifrt.Socket` does not."""

    private_ctx: object
    owns_runtime: bool


_main: Runtime | None = None
_sockets: WeakKeyDictionary[Socket, _SocketState] = WeakKeyDictionary()


@_code
def memif_init(
    control_fd_update: ControlFdUpdate | None = None,
    app_name: str = MEMIF_DEFAULT_APP_NAME,
    region_allocator: RegionAllocator | None = None,
) -> None:
    """Make the global state (libmemif 2.x): ``ALREADY`` if there is one.

    :param control_fd_update: ``hook(fd, events)``; without it memifrt polls by itself: :func:`memif_poll_event`.
    :param region_allocator: ``allocate(size) -> fd``, in the place of C's ``malloc`` and its like.
    """
    global _main
    if _main is not None and not _main.inherited:
        raise MemifError(ErrorCode.ALREADY, "memif_init has been called already, and memif_cleanup has not")
    _main = _new_runtime(control_fd_update, app_name, region_allocator)


@_result(_none)
def memif_per_thread_init(
    private_ctx: object = None,
    control_fd_update: ControlFdUpdateWithContext | None = None,
    app_name: str = MEMIF_DEFAULT_APP_NAME,
    region_allocator: RegionAllocator | None = None,
) -> tuple[int, Runtime]:
    """Make a state of a thread's own, to be passed as ``main=``; its hook is ``hook(fd, events, private_ctx)``."""
    hook = control_fd_update
    with_context = None if hook is None else lambda fd, events: hook(fd, events, private_ctx)
    return MEMIF_ERR_SUCCESS, _new_runtime(with_context, app_name, region_allocator)


@_code
def memif_cleanup(main: Runtime | None = None) -> None:
    """Delete the global state, or a thread's, with all its connections and sockets; ``INVAL_ARG`` if there is none.
    A forked child only forgets its parent's."""
    global _main
    inherited = _main if main is None else main
    runtime = inherited if inherited is not None and inherited.inherited else _runtime(None, main)
    if runtime is _main:
        _main = None
    for sock in runtime.sockets:
        _sockets.pop(sock, None)
    runtime.close()


def _new_runtime(
    hook: ControlFdUpdate | None,
    app_name: str,
    allocator: RegionAllocator | None,
    reconnect_interval: float = MEMIF_DEFAULT_RECONNECT_PERIOD_SEC,
) -> Runtime:
    return Runtime(
        app_name,
        control_fd_update=None if hook is None else _checked(hook),
        region_allocator=allocator or allocate_memfd,
        reconnect_interval=reconnect_interval,
    )


def _checked(hook: ControlFdUpdate) -> Hook:
    """C's hook says by its return value that it failed, Python's by raising: both are understood."""

    def checked(fd: int, events: FdEvent) -> None:
        result = hook(fd, events)
        if isinstance(result, int) and not isinstance(result, bool) and result != 0:
            raise MemifError(ErrorCode.CB_FDUPDATE, f"it returned {result}")

    return checked


def _owner(sock: Socket) -> Runtime:
    """Return the event loop that a socket belongs to."""
    return cast(Runtime, sock.owner)


def _runtime(sock: Socket | None = None, main: Runtime | None = None) -> Runtime:
    """The event loop that is meant: a socket's, a thread's, or the global one."""
    if sock is not None:
        return _owner(sock)
    runtime = _main if main is None else main
    if runtime is not None:
        runtime.check_not_forked()
    if runtime is None or runtime.closed:
        raise ConfigError("there is no state: memif_init has not been called, or memif_cleanup has")
    return runtime


# --- sockets --------------------------------------------------------------------------------------------------------


class _EventHook:
    """A hook of libmemif 4.0 behind the one of 2.x."""

    def __init__(self, hook: ControlFdEventUpdate, private_ctx: object) -> None:
        self._hook = hook
        self._private_ctx = private_ctx
        #: Known only after the first call, with the runtime's own timer.
        self.runtime: Runtime | None = None

    def __call__(self, fd: int, events: FdEvent) -> object:
        return self._hook(MemifFdEvent(fd, events, MemifFdContext(self, fd)), self._private_ctx)


@overload
def memif_create_socket(
    args: str | os.PathLike[str] = ..., private_ctx: object = None, *, main: Runtime | None = None
) -> tuple[int, Socket | None]: ...
@overload
def memif_create_socket(args: MemifSocketArgs, private_ctx: object = None) -> tuple[int, Socket | None]: ...
@_result(_none)
def memif_create_socket(
    args: str | os.PathLike[str] | MemifSocketArgs = MEMIF_DEFAULT_SOCKET_PATH,
    private_ctx: object = None,
    *,
    main: Runtime | None = None,
) -> tuple[int, Socket]:
    """A socket: on a path in the global or a thread's state (2.x), or with an event loop of its own (4.0).

    A path that starts with ``@`` or NUL is an abstract name.
    """
    if isinstance(args, MemifSocketArgs):
        return MEMIF_ERR_SUCCESS, _create_own_socket(args, private_ctx)
    sock = _runtime(None, main).create_socket(args)
    _sockets[sock] = _SocketState(private_ctx, owns_runtime=False)
    return MEMIF_ERR_SUCCESS, sock


def _create_own_socket(args: MemifSocketArgs, private_ctx: object) -> Socket:
    hook = args.on_control_fd_update
    event_hook = None if hook is None else _EventHook(hook, private_ctx)
    runtime = _new_runtime(event_hook, args.app_name or MEMIF_DEFAULT_APP_NAME, None, args.connection_request_timer)
    if event_hook is not None:
        event_hook.runtime = runtime
    try:
        sock = runtime.create_socket(args.path)
    except MemifError:
        runtime.close()
        raise
    _sockets[sock] = _SocketState(private_ctx, owns_runtime=True)
    return sock


@_code
def memif_delete_socket(sock: Socket | None) -> None:
    """Forget a socket: ``INVAL_ARG`` while connections use it, or if there is none."""
    if sock is None or sock not in _owner(sock).sockets:
        raise ConfigError("there is no such socket, or it is deleted already")
    sock.delete()
    state = _sockets.pop(sock, None)
    if state is not None and state.owns_runtime:
        _owner(sock).close()


def memif_get_socket_path(sock: Socket | None) -> str | None:
    """The path as it was given, an abstract one as ``@name``."""
    return None if sock is None else sock.path


def memif_get_socket_handle(conn: Interface | None) -> Socket | None:
    """The socket that a connection uses."""
    return None if conn is None or conn.deleted else cast(Socket, conn.socket)


def memif_get_listener_fd(sock: Socket | None) -> int:
    """The listener's fd; -1 while the socket does not listen."""
    return -1 if sock is None else sock.listener_fd


@_code
def memif_set_listener_fd(sock: Socket | None, fd: int) -> None:
    """Accept peers on a listener that somebody else made, and own it from now on: ``FILE_NOT_SOCK``, ``BAD_FD``."""
    if fd < 0:
        raise MemifError(ErrorCode.BAD_FD, f"{fd} is not an fd")
    _existing(sock).set_listener_fd(fd)


@_code
def memif_register_external_region(
    sock: Socket | None,
    add_external_region: Callable[[int, object], tuple[int, memoryview]],
    get_external_region_addr: Callable[[int, int, object], memoryview],
    del_external_region: Callable[[memoryview, int, int, object], object] | None = None,
    get_external_buffer_offset: Callable[[object], int] | None = None,
) -> None:
    """Let buffers live in the application's own memory (:class:`memifrt.ExternalRegion`); each callback gets the
    socket's private context as its last argument. ``INVAL_ARG`` once a connection exists.

    :param add_external_region: slave: ``add(size, private_ctx) -> (fd, memory)``.
    :param get_external_region_addr: master: ``map(size, fd, private_ctx) -> memory``.
    :param del_external_region: ``delete(memory, size, fd, private_ctx)``.
    :param get_external_buffer_offset: ``next_offset(private_ctx) -> offset`` of the next slot's buffer.
    """
    home = _existing(sock)
    state = _sockets.get(home)
    ctx = None if state is None else state.private_ctx
    delete, offset = del_external_region, get_external_buffer_offset

    def deleted(memory: memoryview, size: int, fd: int) -> None:
        if delete is not None:
            delete(memory, size, fd, ctx)

    home.register_external_region(
        ExternalRegion(
            add=lambda size: add_external_region(size, ctx),
            map=lambda size, fd: get_external_region_addr(size, fd, ctx),
            delete=deleted,
            next_buffer_offset=None if offset is None else lambda: offset(ctx),
        )
    )


def _existing(sock: Socket | None) -> Socket:
    if sock is None:
        raise ConfigError("there is no such socket")
    return sock


# --- events ---------------------------------------------------------------------------------------------------------


@overload
def memif_poll_event(sock: Socket, timeout: float | None = None) -> int: ...
@overload
def memif_poll_event(timeout: float | None = None, /, *, main: Runtime | None = None) -> int: ...
@overload
def memif_poll_event(*, timeout: float | None, main: Runtime | None = None) -> int: ...
@_code
def memif_poll_event(
    sock: Socket | float | None = None, timeout: float | None = None, *, main: Runtime | None = None
) -> None:
    """Wait once and handle what is ready: ``memif_poll_event(sock, timeout)`` as in 4.0, ``memif_poll_event(timeout)``
    as in 2.x. ``POLL_CANCEL`` if cancelled, ``INVAL_ARG`` with a hook.

    :param timeout: in **seconds**; 0 does not wait, None or a negative number waits for as long as it takes.
    """
    if isinstance(sock, Socket):
        _runtime(sock).poll_event(timeout)
    else:
        _runtime(None, main).poll_event(timeout if sock is None else sock)


@_code
def memif_cancel_poll_event(sock: Socket | None = None, *, main: Runtime | None = None) -> None:
    """End one poll, from any thread or signal handler; ``INVAL_ARG`` with a hook."""
    _runtime(sock, main).cancel_poll_event()


@overload
def memif_control_fd_handler(ptr: MemifFdContext, events: FdEvent | int) -> int: ...
@overload
def memif_control_fd_handler(ptr: int, events: FdEvent | int, *, main: Runtime | None = None) -> int: ...
@_code
def memif_control_fd_handler(ptr: MemifFdContext | int, events: FdEvent | int, *, main: Runtime | None = None) -> None:
    """Say that an fd is ready: by its number (2.x), or by the ``private_ctx`` of its :class:`MemifFdEvent` (4.0)."""
    if isinstance(ptr, MemifFdContext):
        _runtime(None, ptr.hook.runtime).control_fd_handler(ptr.fd, events)
    else:
        _runtime(None, main).control_fd_handler(ptr, events)


@overload
def memif_set_connection_request_timer(sock: Socket, period: float) -> int: ...
@overload
def memif_set_connection_request_timer(period: float, /, *, main: Runtime | None = None) -> int: ...
@_code
def memif_set_connection_request_timer(
    sock: Socket | float, period: float | None = None, *, main: Runtime | None = None
) -> None:
    """The period in **seconds** in which slaves try to connect, 0 for none: of a socket's event loop
    (``(sock, period)``, 4.0) or the global one (``(period)``, 2.x)."""
    if isinstance(sock, Socket):
        if period is None:
            raise ConfigError("there is no period")
        _runtime(sock).set_reconnect_interval(period)
    else:
        _runtime(None, main).set_reconnect_interval(sock)


# --- connections ----------------------------------------------------------------------------------------------------


@_result(_none)
def memif_create(
    args: MemifConnArgs,
    on_connect: ConnectionCallback | None = None,
    on_disconnect: ConnectionCallback | None = None,
    on_interrupt: InterruptCallback | None = None,
    private_ctx: object = None,
) -> tuple[int, Interface]:
    """A connection: a master listens at once; a slave tries at once, and goes on trying when nobody listens.

    ``CONN`` if the id is taken, ``MAX_RING`` for more than 2^14 slots. A slave receives nothing before
    ``memif_refill_queue(conn, qid, -1, 0)`` in its ``on_connect``. ``conn.last_error`` says why a connection ended.
    """
    runtime = _runtime(args.socket)
    conn = runtime.create_interface(
        socket=MEMIF_DEFAULT_SOCKET_PATH if args.socket is None else args.socket,
        id=args.interface_id,
        name=args.interface_name,
        role=Role.MASTER if args.is_master else Role.SLAVE,
        mode=_member("mode", Mode, args.mode),
        secret=args.secret,
        num_s2m_rings=args.num_s2m_rings or 1,
        num_m2s_rings=args.num_m2s_rings or 1,
        log2_ring_size=args.log2_ring_size or MEMIF_DEFAULT_LOG2_RING_SIZE,
        buffer_size=args.buffer_size or MEMIF_DEFAULT_BUFFER_SIZE,
        auto_refill=False,
        on_connect=_on_connect(on_connect, private_ctx),
        on_disconnect=_on_disconnect(on_disconnect, private_ctx),
        on_interrupt=_on_interrupt(on_interrupt, private_ctx),
        context=private_ctx,
    )
    return MEMIF_ERR_SUCCESS, conn


def _on_connect(callback: ConnectionCallback | None, ctx: object) -> OnConnect | None:
    return None if callback is None else lambda conn: callback(conn, ctx)


def _on_disconnect(callback: ConnectionCallback | None, ctx: object) -> OnDisconnect | None:
    return None if callback is None else lambda conn, reason: callback(conn, ctx)


def _on_interrupt(callback: InterruptCallback | None, ctx: object) -> OnInterrupt | None:
    return None if callback is None else lambda conn, qid: callback(conn, ctx, qid)


@_code
def memif_delete(conn: Interface | None) -> None:
    """Disconnect (``on_disconnect`` is called) and forget: the handle is ``NOCONN`` from then on."""
    _live(conn).delete()


@_code
def memif_request_connection(conn: Interface | None) -> None:
    """Connect now, without waiting for the timer: ``ALRCONN``, or the errno of the attempt (``NO_FILE``,
    ``CONNREFUSED``, ``ACCES``, …). A master that listens has nothing to do."""
    _live(conn).request_connection()


@_result(_none)
def memif_get_details(conn: Interface | None) -> tuple[int, MemifDetails]:
    """Everything about a connection. No buffer is passed in, so ``NOBUF_DET`` never comes."""
    return MEMIF_ERR_SUCCESS, _details(_live(conn).details())


def _details(details: Details) -> MemifDetails:
    return MemifDetails(
        if_name=details.name,
        inst_name=details.app_name,
        remote_if_name=details.remote_name,
        remote_inst_name=details.remote_app_name,
        id=details.id,
        secret=details.secret,
        role=details.role,
        mode=details.mode,
        socket_path=details.socket_path,
        regions=tuple(
            MemifRegionDetails(region.index, region.address, region.size, region.fd, region.is_external)
            for region in details.regions
        ),
        rx_queues=tuple(map(_queue_details, details.rx_queues)),
        tx_queues=tuple(map(_queue_details, details.tx_queues)),
        error=details.error,
        link_up_down=details.link_up,
    )


def _queue_details(queue: QueueDetails) -> MemifQueueDetails:
    return MemifQueueDetails(
        queue.region, queue.qid, queue.ring_size, queue.flags, queue.head, queue.tail, queue.buffer_size
    )


def _live(conn: Interface | None) -> Interface:
    if conn is None or conn.deleted:
        if conn is not None:
            conn.check_not_forked()
        raise MemifError(ErrorCode.NOCONN, "there is no such connection" if conn is None else f"{conn} is deleted")
    return conn


def _member(what: str, kind: type[_M], value: int) -> _M:
    try:
        return kind(value)
    except ValueError as error:
        raise ConfigError(f"{what} is {value!r}; it must be one of {', '.join(map(str, map(int, kind)))}") from error


# --- queues ---------------------------------------------------------------------------------------------------------


@_result(_no_fd)
def memif_get_queue_efd(conn: Interface | None, qid: int) -> tuple[int, int]:
    """The eventfd of a receive queue, for an application that polls it itself: ``DISCONNECTED``, ``QID``."""
    return MEMIF_ERR_SUCCESS, _rx(conn, qid).fileno()


@_code
def memif_set_rx_mode(conn: Interface | None, rx_mode: int, qid: int) -> None:
    """Interrupts or polling, for one receive queue."""
    _rx(conn, qid).set_mode(_member("rx_mode", RxMode, rx_mode))


@_result(_no_buffers)
def memif_rx_burst(conn: Interface | None, qid: int, count: int) -> tuple[int, list[MemifBuffer]]:
    """Take up to ``count`` received buffers, which :func:`memif_refill_queue` gives back.

    ``NOBUF`` if more wait, and the interrupt is then not consumed; SUCCESS and no buffer if the ring is empty.
    """
    queue = _rx(conn, qid)
    buffers: list[MemifBuffer] = []
    if count != 0:
        burst = queue.burst(count, split=True)
        buffers = [MemifBuffer(queue, burst, index) for index in range(len(burst))]
    if len(buffers) == count and queue.pending():
        return _failed(MemifError(ErrorCode.NOBUF)), buffers
    return MEMIF_ERR_SUCCESS, buffers


@_code
def memif_refill_queue(conn: Interface | None, qid: int, count: int = -1, headroom: int = 0) -> None:
    """Give the ``count`` oldest received buffers back to the peer, or all: -1, or any number above the ring's size
    (C's -1 is 65535).

    :param headroom: bytes that stay free in front of the next packet; for a slave.
    """
    _rx(conn, qid).refill(None if count == -1 else count, headroom)


@_result(_no_buffers)
def memif_buffer_alloc(conn: Interface | None, qid: int, count: int, size: int) -> tuple[int, list[MemifBuffer]]:
    """Room for ``count`` packets of ``size`` bytes, to be filled and sent; ``NOBUF_RING`` and fewer if the ring is
    full. A packet longer than a buffer takes several, all but its last with ``MEMIF_BUFFER_FLAG_NEXT``."""
    queue = _tx(conn, qid)
    if count == 0:
        return MEMIF_ERR_SUCCESS, []
    burst = queue.alloc(count, size)
    buffers = [MemifBuffer(queue, burst, index) for index in range(len(burst))]
    if sum(not buffer.flags & BufferFlag.NEXT for buffer in buffers) < count:
        return _failed(MemifError(ErrorCode.NOBUF_RING)), buffers
    return MEMIF_ERR_SUCCESS, buffers


@_result(int)
def memif_tx_burst(
    conn: Interface | None, qid: int, buffers: Sequence[MemifBuffer], count: int | None = None
) -> tuple[int, int]:
    """Send the first ``count`` (None: all) buffers; how many were sent.

    ``INVAL_ARG`` at the first that is not the oldest one allocated: those before it are sent. The peer is kicked once
    for each allocation that the buffers come from.
    """
    queue = _tx(conn, qid)
    sent = 0
    try:
        for burst, first, length in _runs(buffers, count):
            if first != burst.done:
                raise ConfigError(f"buffer {sent} is not the next that is to be sent on queue {qid}")
            try:
                queue.transmit(burst, length)
            finally:  # a failed kick comes after the packets
                sent += burst.done - first
    except MemifError as error:
        return _failed(error), sent
    return MEMIF_ERR_SUCCESS, sent


@_result(int)
def memif_buffer_enq_tx(
    conn: Interface | None, qid: int, buffers: Sequence[MemifBuffer], count: int | None = None
) -> tuple[int, int]:
    """Zero copy: swap the first ``count`` (None: all) received buffers into a transmit queue; how many were swapped.

    They become buffers of that queue, ready for :func:`memif_tx_burst`; the receive queue gets free ones, still to
    be refilled. ``NOBUF_RING`` if the queue is full, ``INVAL_ARG`` for a master.
    """
    queue = _tx(conn, qid)
    done = 0
    for burst, first, length in _runs(buffers, count):
        swapped = queue.enqueue(burst, first, length)
        for index in range(len(swapped)):
            buffer = buffers[done + index]
            buffer._queue, buffer._burst, buffer._index = queue, swapped, index
        done += len(swapped)
        if len(swapped) < length:
            return _failed(MemifError(ErrorCode.NOBUF_RING)), done
    return MEMIF_ERR_SUCCESS, done


@_code
def memif_buffer_requeue(conn: Interface | None, buffer_a: MemifBuffer, buffer_b: MemifBuffer) -> None:
    """Zero copy: let two buffers change places, within a queue or across. Each keeps its data, and has the other's
    queue and index then. ``INVAL_ARG`` for a master."""
    _live(conn)
    a, b = buffer_a, buffer_b
    _check_held(a)
    _check_held(b)
    implementation.exchange(a._burst, a._index, b._burst, b._index)
    a._queue, a._burst, a._index, b._queue, b._burst, b._index = (
        b._queue, b._burst, b._index, a._queue, a._burst, a._index,
    )  # fmt: skip


@_code
def memif_set_next_free_buffer(conn: Interface | None, qid: int, buffer: MemifBuffer) -> None:
    """Give back this allocated buffer and all after it: the next allocation starts here. ``INVAL_ARG`` if it is not
    allocated, or sent."""
    queue = _tx(conn, qid)
    _check_held(buffer)
    queue.rewind(buffer._burst, buffer._index)


def _rx(conn: Interface | None, qid: int) -> RxQueue:
    live = _live(conn)
    return _pick(live, live.rx_queues, qid)


def _tx(conn: Interface | None, qid: int) -> TxQueue:
    live = _live(conn)
    return _pick(live, live.tx_queues, qid)


def _pick(conn: Interface, queues: tuple[_Q, ...], qid: int) -> _Q:
    if 0 <= qid < len(queues):
        return queues[qid]
    if not conn.connected:
        raise Disconnected(f"{conn} is not connected")
    raise MemifError(ErrorCode.QID, f"{conn} has {len(queues)} such queue(s); there is no queue {qid}")


def _runs(buffers: Sequence[MemifBuffer], count: int | None) -> list[tuple[Burst, int, int]]:
    """The first ``count`` buffers as runs of neighbours in their bursts: burst, first index, length."""
    if count is not None and not 0 <= count <= len(buffers):
        raise ConfigError(f"count is {count}, of {len(buffers)} buffers")
    runs: list[tuple[Burst, int, int]] = []
    for buffer in buffers if count is None else buffers[:count]:
        _check_held(buffer)
        if runs:
            burst, first, length = runs[-1]
            if burst is buffer._burst and first + length == buffer._index:
                runs[-1] = burst, first, length + 1
                continue
        runs.append((buffer._burst, buffer._index, 1))
    return runs


def _check_held(buffer: MemifBuffer) -> None:
    """:raises ConfigError: the buffer is the peer's (again)."""
    try:
        buffer._burst.length(buffer._index)
    except (ValueError, IndexError) as error:
        raise ConfigError(str(error)) from error


# --- words ----------------------------------------------------------------------------------------------------------


def memif_get_version() -> int:
    """The protocol's version: 0x0200."""
    return VERSION


def memif_get_version_str() -> str:
    """``"2.0"``."""
    return f"{VERSION >> 8}.{VERSION & 0xFF}"


def memif_strerror(code: int) -> str:
    """The text for a code, from any thread; "undefined error" for a number that is none."""
    return strerror(code)


__all__ = [name for name in globals() if name.startswith(("memif_", "MEMIF_", "Memif"))]
