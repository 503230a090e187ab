"""libmemif's names and return codes on memifrt's objects, as thin as can be.

Owns the translation: exceptions to codes, C argument orders and defaults to ours. A socket handle is a
:class:`memifrt.Socket`, a connection handle a :class:`memifrt.Interface`, a per-thread main a :class:`memifrt.Runtime`.

A function without results returns its code, one with results ``(code, result, ...)``; what C returns by itself (a
path, a handle, an fd, a version, a text) is returned by itself. No exception of memifrt's leaves these functions: see
:func:`memif_last_error` for what is behind a code. What an application's own callback raises does.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
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
from memifrt.types import (
    COOKIE,
    MAX_INDEX,
    MAX_LOG2_RING_SIZE,
    SECRET_BYTES,
    VERSION,
    BufferFlag,
    FdEvent,
    Mode,
    Role,
    RxMode,
    check_callback,
)

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
MEMIF_DEFAULT_RECONNECT_PERIOD_NSEC = 0
MEMIF_DEFAULT_SOCKET_DIR, MEMIF_DEFAULT_SOCKET_FILENAME = os.path.split(DEFAULT_SOCKET)

# memif.h: the protocol's.
MEMIF_COOKIE = COOKIE
MEMIF_VERSION = VERSION
MEMIF_VERSION_MAJOR = VERSION >> 8
MEMIF_VERSION_MINOR = VERSION & 0xFF
MEMIF_MAX_M2S_RING = MEMIF_MAX_S2M_RING = MEMIF_MAX_REGION = MAX_INDEX
MEMIF_MAX_LOG2_RING_SIZE = MAX_LOG2_RING_SIZE
MEMIF_SECRET_SIZE = SECRET_BYTES + 1
MEMIF_RING_S2M = 0
MEMIF_RING_M2S = 1
MEMIF_RING_FLAG_MASK_INT = 1
MEMIF_DESC_FLAG_NEXT = BufferFlag.NEXT

# --- handles, arguments, results ------------------------------------------------------------------------------------

#: What :func:`memif_per_thread_init` makes and ``main=`` takes.
MemifMain = Runtime
MemifSocketHandle = Socket
MemifConnHandle = Interface

#: libmemif 3.x: ``hook(fd, events, private_ctx)``; 3.0's :func:`memif_init` passes None.
ControlFdUpdateWithContext = Callable[[int, FdEvent, object], object]
#: libmemif 2.x: ``hook(fd, events)``, or 3.x's. Any hook fails by raising, or in C's way by returning a number that is
#: not 0.
ControlFdUpdate = Callable[[int, FdEvent], object] | ControlFdUpdateWithContext
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
        """``MEMIF_BUFFER_FLAG_NEXT``: the packet goes on in the next buffer. To be set on an allocated buffer, before
        it is sent (``tx.flags = rx.flags``).

        :raises ConfigError: the buffer was received, or there is no such flag.
        """
        return self._burst.flags(self._index)

    @flags.setter
    def flags(self, flags: int) -> None:
        self._burst.set_flags(self._index, flags)

    @property
    def data(self) -> memoryview:
        """Its ``len`` bytes in shared memory. To be taken anew after ``len`` or ``advance``."""
        return self._burst[self._index]

    @property
    def len(self) -> int:
        """Bytes of data. To be set before it is sent: to less, or to as much as the buffer has room for. A slave knows
        the room of its buffers; a master may use what the slave had posted when the buffer was allocated.

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


class _CallbackError(Exception):
    """Carries a :class:`MemifError` that a callback raised past the place where our own become codes."""

    def __init__(self, error: MemifError) -> None:
        self.error = error


def _noting(callback: Callable[_P, _T]) -> Callable[_P, _T]:
    """An application's callback, whose errors are known again although they are of our classes."""

    @functools.wraps(callback)
    def noted(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return callback(*args, **kwargs)
        except MemifError as error:
            if getattr(_last, "watched", False):
                _last.raised = error
            raise

    return noted


@contextlib.contextmanager
def _callbacks_run() -> Iterator[None]:
    """Around a call that may run callbacks: what one of them raises comes out, whatever its class."""
    watched, outer = getattr(_last, "watched", False), getattr(_last, "raised", None)
    _last.watched, _last.raised = True, None
    try:
        try:
            yield
        except MemifError:
            if _last.raised is None:
                raise
        if _last.raised is not None:
            raise _CallbackError(_last.raised)
    finally:
        _last.watched, _last.raised = watched, outer


def _code(call: Callable[_P, None]) -> Callable[_P, int]:
    """A function without results: it returns its code."""

    @functools.wraps(call)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> int:
        try:
            call(*args, **kwargs)
        except _CallbackError as raised:
            raise raised.error from raised.error.__cause__
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
            except _CallbackError as raised:
                raise raised.error from raised.error.__cause__
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


class _NotGiven:
    """An argument that is not there, which differs from C's NULL."""


_NOT_GIVEN = _NotGiven()
_main: Runtime | None = None
_sockets: WeakKeyDictionary[Socket, _SocketState] = WeakKeyDictionary()


@_code
def memif_init(
    control_fd_update: ControlFdUpdate | None = None,
    app_name: str | None = MEMIF_DEFAULT_APP_NAME,
    region_allocator: RegionAllocator | None = None,
    memif_realloc: None = None,
    memif_free: None = None,
) -> None:
    """Make the global state (libmemif 2.x and 3.x): ``ALREADY`` if there is one.

    :param control_fd_update: ``hook(fd, events)``, or ``hook(fd, events, None)`` as in 3.x; without it memifrt polls by
        itself: :func:`memif_poll_event`.
    :param app_name: None takes the default.
    :param region_allocator: ``allocate(size) -> fd``, in the place of C's ``malloc`` and its like.
    :param memif_realloc: only None, as is ``memif_free``: memory is not allocated this way here.
    """
    if memif_realloc is not None or memif_free is not None:
        raise ConfigError("memif_realloc and memif_free must be None: a region_allocator stands in for all three")
    global _main
    if _main is not None and not _main.inherited:
        raise MemifError(ErrorCode.ALREADY, "memif_init has been called already, and memif_cleanup has not")
    _main = _new_runtime(_with_context(control_fd_update, None), app_name, region_allocator)


@_result(_none)
def memif_per_thread_init(
    private_ctx: object = None,
    control_fd_update: ControlFdUpdate | None = None,
    app_name: str | None = MEMIF_DEFAULT_APP_NAME,
    region_allocator: RegionAllocator | None = None,
    memif_realloc: None = None,
    memif_free: None = None,
) -> tuple[int, Runtime]:
    """Make a state of a thread's own, to be passed as ``main=``; its hook is ``hook(fd, events, private_ctx)``."""
    if memif_realloc is not None or memif_free is not None:
        raise ConfigError("memif_realloc and memif_free must be None: a region_allocator stands in for all three")
    hook = _with_context(control_fd_update, private_ctx)
    return MEMIF_ERR_SUCCESS, _new_runtime(hook, app_name, region_allocator)


def _with_context(hook: ControlFdUpdate | None, private_ctx: object) -> Callable[[int, FdEvent], object] | None:
    """A hook of two arguments (2.x) or three (3.x) as one of two.

    :raises ConfigError: it is not a function, or takes neither.
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
    """Whether a function can be called with ``count`` arguments; a built-in one that does not tell takes two."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:
        return count == 2
    return True


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
    with _callbacks_run():
        runtime.close()


def _new_runtime(
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
    _required("args", args)
    if isinstance(args, MemifSocketArgs):
        _required("args.path", args.path)
        return MEMIF_ERR_SUCCESS, _create_own_socket(args, private_ctx)
    sock = _runtime(None, main).create_socket(args)
    _sockets[sock] = _SocketState(private_ctx, owns_runtime=False)
    return MEMIF_ERR_SUCCESS, sock


def _create_own_socket(args: MemifSocketArgs, private_ctx: object) -> Socket:
    hook = args.on_control_fd_update
    check_callback("on_control_fd_update", hook)
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


def memif_get_socket_filename(sock: Socket | None) -> str | None:
    """:func:`memif_get_socket_path`, as libmemif 3.x names it."""
    return memif_get_socket_path(sock)


def memif_get_socket_handle(conn: Interface | None) -> Socket | None:
    """The socket that a connection uses."""
    return None if conn is None or _is_gone(conn) else cast(Socket, conn.socket)


def memif_get_listener_fd(sock: Socket | None) -> int:
    """The listener's fd; -1 while the socket does not listen."""
    return -1 if sock is None else sock.listener_fd


@_code
def memif_set_listener_fd(sock: Socket | None, fd: int) -> None:
    """Accept peers on a listener that somebody else made, and own it from now on: ``FILE_NOT_SOCK``, ``BAD_FD``."""
    _required("fd", fd)
    if fd < 0:
        raise MemifError(ErrorCode.BAD_FD, f"{fd} is not an fd")
    _existing(sock).set_listener_fd(fd)


@_code
def memif_register_external_region(
    sock: Socket | None,
    add_external_region: Callable[[int, object], tuple[int, memoryview]] | None,
    get_external_region_addr: Callable[[int, int, object], memoryview] | None,
    del_external_region: Callable[[memoryview, int, int, object], object] | None = None,
    get_external_buffer_offset: Callable[[object], int] | None = None,
) -> None:
    """Let buffers live in the application's own memory (:class:`memifrt.ExternalRegion`); each callback gets the
    socket's private context as its last argument. ``INVAL_ARG`` once a connection exists.

    :param add_external_region: slave: ``add(size, private_ctx) -> (fd, memory)``. The fd stays the application's, as in
        C: close it in ``delete``, which gets the same number.
    :param get_external_region_addr: master: ``map(size, fd, private_ctx) -> memory``.
    :param del_external_region: ``delete(memory, size, fd, private_ctx)``.
    :param get_external_buffer_offset: ``next_offset(private_ctx) -> offset`` of the next slot's buffer.
    """
    home = _existing(sock)
    for what, callback in (
        ("add_external_region", add_external_region),
        ("get_external_region_addr", get_external_region_addr),
        ("del_external_region", del_external_region),
        ("get_external_buffer_offset", get_external_buffer_offset),
    ):
        check_callback(what, callback)
    add, get = _noting(_required("add_external_region", add_external_region)), get_external_region_addr
    get = _noting(_required("get_external_region_addr", get))
    state = _sockets.get(home)
    ctx = None if state is None else state.private_ctx
    delete = None if del_external_region is None else _noting(del_external_region)
    offset = None if get_external_buffer_offset is None else _noting(get_external_buffer_offset)

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


def _existing(sock: Socket | None) -> Socket:
    if sock is None:
        raise ConfigError("there is no such socket")
    return sock


def _required(what: str, value: _T | None) -> _T:
    """Refuse C's NULL."""
    if value is None:
        raise ConfigError(f"{what} is None")
    return value


# --- events ---------------------------------------------------------------------------------------------------------


@overload
def memif_poll_event(sock: Socket, timeout: float | None = None) -> int: ...
@overload
def memif_poll_event(timeout: float | None = None, /, *, main: Runtime | None = None) -> int: ...
@overload
def memif_poll_event(*, timeout: float | None, main: Runtime | None = None) -> int: ...
@_code
def memif_poll_event(
    sock: Socket | float | _NotGiven | None = _NOT_GIVEN,
    timeout: float | _NotGiven | None = _NOT_GIVEN,
    *,
    main: Runtime | None = None,
) -> None:
    """Wait once and handle what is ready: ``memif_poll_event(sock, timeout)`` as in 4.0, ``memif_poll_event(timeout)``
    as in 2.x. ``POLL_CANCEL`` if cancelled, ``INVAL_ARG`` with a hook.

    :param timeout: in **seconds**; 0 does not wait, None or a negative number waits for as long as it takes. The first
        whole number from 100 on, which looks like milliseconds, makes a RuntimeWarning.
    """
    if isinstance(sock, _NotGiven):
        runtime, seconds = _runtime(None, main), timeout
    elif isinstance(sock, Socket) or not isinstance(timeout, _NotGiven):
        if not isinstance(sock, Socket):
            raise ConfigError(f"sock is {sock!r}; it must be a socket handle")
        runtime, seconds = _runtime(sock), timeout
    else:
        runtime, seconds = _runtime(None, main), sock
    _warn_of_milliseconds(seconds)
    with _callbacks_run():
        runtime.poll_event(None if isinstance(seconds, _NotGiven) else seconds)


_milliseconds_warned = False


def _warn_of_milliseconds(timeout: object) -> None:
    """C's programs pass milliseconds, whatever its documentation says: one that waits for 1000 s seems to hang."""
    global _milliseconds_warned
    if isinstance(timeout, int) and timeout >= 100 and not _milliseconds_warned:
        _milliseconds_warned = True
        warnings.warn(
            f"memif_poll_event waits for {timeout} seconds: its timeout is in seconds, not in milliseconds",
            RuntimeWarning,
            stacklevel=4,
        )


@_code
def memif_cancel_poll_event(sock: Socket | _NotGiven | None = _NOT_GIVEN, *, main: Runtime | None = None) -> None:
    """End one poll, from any thread or signal handler; ``INVAL_ARG`` with a hook, and for None, which is no socket."""
    _runtime(None if isinstance(sock, _NotGiven) else _existing(sock), main).cancel_poll_event()


@overload
def memif_control_fd_handler(ptr: MemifFdContext, events: FdEvent | int) -> int: ...
@overload
def memif_control_fd_handler(ptr: int, events: FdEvent | int, *, main: Runtime | None = None) -> int: ...
@_code
def memif_control_fd_handler(ptr: MemifFdContext | int, events: FdEvent | int, *, main: Runtime | None = None) -> None:
    """Say that an fd is ready: by its number (2.x), or by the ``private_ctx`` of its :class:`MemifFdEvent` (4.0)."""
    if isinstance(ptr, MemifFdContext):
        runtime, fd = _runtime(None, ptr.hook.runtime), ptr.fd
    else:
        runtime, fd = _runtime(None, main), _required("fd", ptr)
    with _callbacks_run():
        runtime.control_fd_handler(fd, _required("events", events))


@overload
def memif_set_connection_request_timer(sock: Socket, period: float) -> int: ...
@overload
def memif_set_connection_request_timer(period: float, /, *, main: Runtime | None = None) -> int: ...
@_code
def memif_set_connection_request_timer(
    sock: Socket | float, period: float | _NotGiven | None = _NOT_GIVEN, *, main: Runtime | None = None
) -> None:
    """The period in **seconds** in which slaves try to connect, 0 for none: of a socket's event loop
    (``(sock, period)``, 4.0) or the global one (``(period)``, 2.x)."""
    if isinstance(sock, Socket):
        if period is None or isinstance(period, _NotGiven):
            raise ConfigError("there is no period")
        _runtime(sock).set_reconnect_interval(period)
    elif isinstance(period, _NotGiven):
        _runtime(None, main).set_reconnect_interval(_required("period", sock))
    else:
        raise ConfigError(f"sock is {sock!r}; it must be a socket handle")


# --- libmemif 3.x: the same, for a thread's state --------------------------------------------------------------------


def memif_per_thread_cleanup(main: Runtime | None) -> int:
    """:func:`memif_cleanup` of a thread's state."""
    return _no_main() if main is None else memif_cleanup(main)


def memif_per_thread_create_socket(
    main: Runtime | None, filename: str | os.PathLike[str] = MEMIF_DEFAULT_SOCKET_PATH, private_ctx: object = None
) -> tuple[int, Socket | None]:
    """:func:`memif_create_socket` in a thread's state."""
    if main is None:
        return _no_main(), None
    return memif_create_socket(filename, private_ctx, main=main)


def memif_per_thread_poll_event(main: Runtime | None, timeout: float | None = None) -> int:
    """:func:`memif_poll_event` of a thread's state; ``timeout`` is in **seconds**."""
    return _no_main() if main is None else memif_poll_event(timeout=timeout, main=main)


def memif_per_thread_cancel_poll_event(main: Runtime | None) -> int:
    """:func:`memif_cancel_poll_event` of a thread's state."""
    return _no_main() if main is None else memif_cancel_poll_event(main=main)


def memif_per_thread_control_fd_handler(main: Runtime | None, fd: int, events: FdEvent | int) -> int:
    """:func:`memif_control_fd_handler` of a thread's state."""
    return _no_main() if main is None else memif_control_fd_handler(fd, events, main=main)


def memif_per_thread_set_connection_request_timer(main: Runtime | None, period: float) -> int:
    """:func:`memif_set_connection_request_timer` of a thread's state; ``period`` is in **seconds**."""
    return _no_main() if main is None else memif_set_connection_request_timer(period, main=main)


def _no_main() -> int:
    return _failed(ConfigError("main is None; it must be what memif_per_thread_init made"))


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
    _required("args", args)
    runtime = _runtime(args.socket)
    for what, callback in (
        ("on_connect", on_connect),
        ("on_disconnect", on_disconnect),
        ("on_interrupt", on_interrupt),
    ):
        check_callback(what, callback)
    with _callbacks_run():
        conn = _create(runtime, args, on_connect, on_disconnect, on_interrupt, private_ctx)
    conn.reports_before_unregister = True
    return MEMIF_ERR_SUCCESS, conn


def _create(
    runtime: Runtime,
    args: MemifConnArgs,
    on_connect: ConnectionCallback | None,
    on_disconnect: ConnectionCallback | None,
    on_interrupt: InterruptCallback | None,
    private_ctx: object,
) -> Interface:
    return runtime.create_interface(
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


def _on_connect(callback: ConnectionCallback | None, ctx: object) -> OnConnect | None:
    return None if callback is None else _noting(lambda conn: callback(conn, ctx))


def _on_disconnect(callback: ConnectionCallback | None, ctx: object) -> OnDisconnect | None:
    return None if callback is None else _noting(lambda conn, reason: callback(conn, ctx))


def _on_interrupt(callback: InterruptCallback | None, ctx: object) -> OnInterrupt | None:
    return None if callback is None else _noting(lambda conn, qid: callback(conn, ctx, qid))


@_code
def memif_delete(conn: Interface | None) -> None:
    """Disconnect (``on_disconnect`` is called, in which the handle still works) and forget: the handle is ``NOCONN``
    from then on."""
    live = _live(conn)
    if live.deleted:  # by the call that on_disconnect runs in
        raise MemifError(ErrorCode.NOCONN, f"{live} is deleted")
    with _callbacks_run():
        live.delete()


@_code
def memif_request_connection(conn: Interface | None) -> None:
    """Connect now, without waiting for the timer: ``ALRCONN``, or the errno of the attempt (``NO_FILE``,
    ``CONNREFUSED``, ``ACCES``, …). A master that listens has nothing to do."""
    with _callbacks_run():
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
    if conn is None or _is_gone(conn):
        if conn is not None:
            conn.check_not_forked()
        raise MemifError(ErrorCode.NOCONN, "there is no such connection" if conn is None else f"{conn} is deleted")
    return conn


def _is_gone(conn: Interface) -> bool:
    """Whether a connection is deleted. In on_disconnect it still works, as in C."""
    return conn.deleted and conn.ending is None


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
    _rx(conn, qid).set_rx_mode(_member("rx_mode", RxMode, rx_mode))


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
    queue = _rx(conn, qid)
    try:
        queue.refill(None if count == -1 else count, headroom)
    except BufferError as error:
        raise ConfigError(str(error)) from error


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
            except BufferError as error:
                raise ConfigError(str(error)) from error
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
        with _no_derived_views():
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
    a, b = _required("buffer_a", buffer_a), _required("buffer_b", buffer_b)
    _check_held(a)
    _check_held(b)
    with _no_derived_views():
        implementation.exchange(a._burst, a._index, b._burst, b._index)
    a._queue, a._burst, a._index, b._queue, b._burst, b._index = (
        b._queue, b._burst, b._index, a._queue, a._burst, a._index,
    )  # fmt: skip


@_code
def memif_set_next_free_buffer(conn: Interface | None, qid: int, buffer: MemifBuffer) -> None:
    """Give back this allocated buffer and all after it: the next allocation starts here. ``INVAL_ARG`` if it is not
    allocated, or sent."""
    queue = _tx(conn, qid)
    _check_held(_required("buffer", buffer))
    with _no_derived_views():
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


@contextlib.contextmanager
def _no_derived_views() -> Iterator[None]:
    """:raises ConfigError: a slice or the like of a buffer's ``data`` is still held."""
    try:
        yield
    except BufferError as error:
        raise ConfigError(str(error)) from error


def _runs(buffers: Sequence[MemifBuffer], count: int | None) -> list[tuple[Burst, int, int]]:
    """The first ``count`` buffers as runs of neighbours in their bursts: burst, first index, length."""
    _required("buffers", buffers)
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
    """:raises ConfigError: the buffer is the peer's (again), or None."""
    _required("buffer", buffer)
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
