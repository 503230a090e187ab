"""Offer libmemif's names, argument orders and return codes on memifrt's objects.

Owns the translation: exceptions become codes, C's argument orders and defaults become memifrt's. Adds no behaviour of
its own. A socket handle is a :class:`memifrt.Socket`, a connection handle a :class:`memifrt.Interface`, and a
per-thread main a :class:`memifrt.Runtime`.

A function without results returns its code. A function with results returns ``(code, result)``. A function that
returns a plain value in C (a path, a handle, an fd, a version, a text) returns that value alone. These functions turn
memifrt's errors into codes; :func:`memif_last_error` returns the error behind a code. An exception that a callback of
the application raises passes through. :class:`memifrt.ForkedError` is raised too: no code says that the handle belongs
to the parent process.
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

# The constants of memif.h, from the protocol.
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

#: The state that :func:`memif_per_thread_init` makes and the argument ``main`` takes.
MemifMain = Runtime
MemifSocketHandle = Socket
MemifConnHandle = Interface

#: libmemif 3.x: ``hook(fd, events, private_ctx)``; 3.0's :func:`memif_init` passes None.
ControlFdUpdateWithContext = Callable[[int, FdEvent, object], object]
#: libmemif 2.x: ``hook(fd, events)``, or the hook of 3.x. A hook fails by raising an exception or, as in C, by
#: returning a number that is not 0.
ControlFdUpdate = Callable[[int, FdEvent], object] | ControlFdUpdateWithContext
#: libmemif 4.0: ``hook(fd_event, private_ctx)``.
ControlFdEventUpdate = Callable[["MemifFdEvent", object], object]

#: ``on_connect(conn, private_ctx)`` and ``on_disconnect(conn, private_ctx)``. What they return is ignored.
ConnectionCallback = Callable[[Interface, object], object]
#: ``on_interrupt(conn, private_ctx, qid)``.
InterruptCallback = Callable[[Interface, object, int], object]


class MemifFdEvent(NamedTuple):
    """The argument of a hook of libmemif 4.0.

    When the fd is ready, pass ``private_ctx`` to :func:`memif_control_fd_handler`.
    """

    fd: int
    type: FdEvent
    private_ctx: MemifFdContext


class MemifFdContext(NamedTuple):
    """Names an fd and the event loop that it belongs to. Opaque to the application."""

    hook: _EventHook
    fd: int


@dataclass
class MemifSocketArgs:
    """``memif_socket_args_t``. ``connection_request_timer`` is in seconds; 0 turns the timer off."""

    path: str = MEMIF_DEFAULT_SOCKET_PATH
    app_name: str = MEMIF_DEFAULT_APP_NAME
    connection_request_timer: float = 0.0
    on_control_fd_update: ControlFdEventUpdate | None = None


@dataclass
class MemifConnArgs:
    """``memif_conn_args_t``.

    A zero means libmemif's default: one ring in each direction, 1024 slots, buffers of 2048 bytes. Without a
    ``socket`` the connection uses ``/run/vpp/memif.sock``.
    """

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
    """``memif_buffer_t``: one buffer of a queue.

    It is valid until it is sent or given back. After that its properties raise ``ValueError``.
    """

    __slots__ = ("_burst", "_number", "_queue")

    def __init__(self, queue: RxQueue | TxQueue, burst: Burst, number: int) -> None:
        self._queue = queue
        self._burst = burst
        self._number = number

    @property
    def queue(self) -> RxQueue | TxQueue:
        """The queue of the buffer."""
        return self._queue

    @property
    def desc_index(self) -> int:
        """The slot of the buffer's descriptor."""
        return self._burst.slot(self.index)

    @property
    def flags(self) -> BufferFlag:
        """``MEMIF_BUFFER_FLAG_NEXT`` if the packet continues in the next buffer, otherwise 0.

        The flag can be set on an allocated buffer, before it is sent: ``tx.flags = rx.flags``.

        :raises ConfigError: the buffer was received, or there is no such flag.
        """
        return self._burst.flags(self.index)

    @flags.setter
    def flags(self, flags: int) -> None:
        self._burst.set_flags(self.index, flags)

    @property
    def data(self) -> memoryview:
        """The ``len`` bytes of data, in shared memory. Setting ``len`` and ``advance`` end the view: read it again."""
        return self._burst[self.index]

    @property
    def len(self) -> int:
        """The number of bytes of data. Set it before the buffer is sent.

        The data can shrink, or grow as far as the buffer has room. On a slave that is its whole buffer. On a master it
        is as much as the slave had posted when the buffer was allocated.

        :raises ConfigError: the buffer has no room for this length, or the length is less than 1.
        """
        return self._burst.length(self.index)

    @len.setter
    def len(self, length: int) -> None:
        self._burst.set_length(self.index, length)

    def advance(self, count: int) -> None:
        """Move the start of the data ``count`` bytes forward: C's ``data += count; len -= count``.

        On a slave a negative count moves the start back into the headroom, to prepend a header.

        :raises ConfigError: no byte would be left, there is not so much headroom, or this is a transmit buffer of a
            master.
        """
        self._burst.advance(self.index, count)

    # --- for the functions of this module -----------------------------------------------------------------------

    @property
    def burst(self) -> Burst:
        """The burst that the buffer is in."""
        return self._burst

    @property
    def number(self) -> int:
        """The buffer's place in its burst, counted from the first buffer that the burst ever had."""
        return self._number

    @property
    def index(self) -> int:
        """The buffer's index in its burst.

        :raises ValueError: the buffer has been sent or given back.
        """
        index = self._number - self._burst.sent
        if index < 0:
            raise ValueError("this buffer has been sent or given back: it belongs to the peer")
        return index

    def move(self, queue: RxQueue | TxQueue, burst: Burst, number: int) -> None:
        """Note that the buffer is in a burst of another queue now."""
        self._queue, self._burst, self._number = queue, burst, number

    def exchange(self, other: MemifBuffer) -> None:
        """Swap the places of two buffers of one slave.

        :raises ConfigError: they are not of one slave.
        """
        implementation.exchange(self.burst, self.index, other.burst, other.index)
        place = self._queue, self._burst, self._number
        self.move(other.queue, other.burst, other.number)
        other.move(*place)

    def check_held(self) -> None:
        """Check that the application holds the buffer.

        :raises ConfigError: the buffer was sent, or was given back to the peer.
        """
        try:
            self._burst.length(self.index)
        except (ValueError, IndexError) as error:
            raise ConfigError(str(error)) from error


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
    """``memif_queue_details_t``. ``buffer_size`` is 0 on a master, because the protocol does not carry it."""

    region: int
    qid: int
    ring_size: int
    flags: int
    head: int
    tail: int
    buffer_size: int


@dataclass(frozen=True)
class MemifDetails:
    """``memif_details_t``. The lengths of the tuples replace the fields ``*_num``."""

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
    """Return the error behind the last code of this thread that was not SUCCESS; None if there was none.

    Its text says what failed. The error of a system call has ``errno`` and ``filename``. C has no such function.
    """
    error: MemifError | None = getattr(_last, "error", None)
    return error


def _failed(error: MemifError) -> int:
    """Keep an error for :func:`memif_last_error` and return its code."""
    link: BaseException | None = error
    while link is not None:  # a traceback's frames would keep buffers, and so mappings, alive
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    if isinstance(error, ForkedError):  # no code says that the handle belongs to the parent
        raise error
    _last.error = error
    logger.debug("code %d (%s): %s", error.code, error.code.name, error)
    return error.code


class _CallbackError(Exception):
    """Carries a :class:`MemifError` of a callback past the code that turns memifrt's own errors into codes."""

    def __init__(self, error: MemifError) -> None:
        self.error = error


def _recording(callback: Callable[_P, _T]) -> Callable[_P, _T]:
    """Wrap an application's callback, and record the :class:`MemifError` that it raises.

    :func:`_pass_callback_errors` then tells it from an error of memifrt's own.
    """

    @functools.wraps(callback)
    def recorded(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return callback(*args, **kwargs)
        except MemifError as error:
            if getattr(_last, "watched", False):
                _last.raised = error
            raise

    return recorded


@contextlib.contextmanager
def _pass_callback_errors() -> Iterator[None]:
    """Let what a callback raises pass through a call, even if it is a :class:`MemifError`."""
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
    """Make a function without results return its code."""

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


def _result(empty: Callable[[], _E]) -> Callable[[Callable[_P, tuple[int, _T]]], Callable[_P, tuple[int, _T | _E]]]:
    """Make a function return its code and a result; on an error the result is ``empty()``."""

    def decorate(call: Callable[_P, tuple[int, _T]]) -> Callable[_P, tuple[int, _T | _E]]:
        @functools.wraps(call)
        def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> tuple[int, _T | _E]:
            try:
                return call(*args, **kwargs)
            except _CallbackError as raised:
                raise raised.error from raised.error.__cause__
            except MemifError as error:
                return _failed(error), empty()

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
    """The state of a socket in C that a :class:`memifrt.Socket` does not have."""

    private_ctx: object
    owns_runtime: bool


class _NotGiven:
    """Marks an argument that was not given. None stands for C's NULL."""


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
    """Make the state of one thread (libmemif 3.x). Pass it as ``main`` to the other calls.

    The arguments are those of :func:`memif_init`. The hook is ``hook(fd, events, private_ctx)``, or
    ``hook(fd, events)``.
    """
    if memif_realloc is not None or memif_free is not None:
        raise ConfigError("memif_realloc and memif_free must be None: region_allocator replaces all three")
    hook = _with_context(control_fd_update, private_ctx)
    return MEMIF_ERR_SUCCESS, _new_runtime(hook, app_name, region_allocator)


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


@_code
def memif_cleanup(main: Runtime | None = None) -> None:
    """Delete the global state, or that of a thread, with its connections and sockets.

    The code is ``INVAL_ARG`` if there is none. A forked child only forgets the state of its parent.
    """
    global _main
    inherited = _main if main is None else main
    runtime = inherited if inherited is not None and inherited.inherited else _runtime(None, main)
    if runtime is _main:
        _main = None
    for sock in runtime.sockets:
        _sockets.pop(sock, None)
    with _pass_callback_errors():
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
    """Make a hook that fails in C's way, by returning a number that is not 0, raise an error."""

    def checked(fd: int, events: FdEvent) -> None:
        result = hook(fd, events)
        if isinstance(result, int) and not isinstance(result, bool) and result != 0:
            raise MemifError(ErrorCode.CB_FDUPDATE, f"it returned {result}")

    return checked


def _owner(sock: Socket) -> Runtime:
    """Return the event loop that a socket belongs to."""
    return cast(Runtime, sock.owner)


def _runtime(sock: Socket | None = None, main: Runtime | None = None) -> Runtime:
    """Return the event loop of a socket, of a thread (``main``), or the global one."""
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
    """Calls a hook of libmemif 4.0 as a hook of 2.x."""

    def __init__(self, hook: ControlFdEventUpdate, private_ctx: object) -> None:
        self._hook = hook
        self._private_ctx = private_ctx
        #: Set after the runtime is made. The runtime calls the hook before that, for its own timer.
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
    """Make a socket.

    With a path, the socket belongs to the global state or to ``main`` (libmemif 2.x). With a
    :class:`MemifSocketArgs`, it has its own event loop (4.0).

    :param args: a path or a :class:`MemifSocketArgs`. A path that starts with ``@`` or NUL is an abstract name.
    :param private_ctx: passed to the hook of 4.0 and to the callbacks of an external region.
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
    """Delete a socket. The code is ``INVAL_ARG`` while connections use it, or if it is deleted already."""
    if sock is None or sock not in _owner(sock).sockets:
        raise ConfigError("there is no such socket, or it is deleted already")
    sock.delete()
    state = _sockets.pop(sock, None)
    if state is not None and state.owns_runtime:
        _owner(sock).close()


def memif_get_socket_path(sock: Socket | None) -> str | None:
    """Return the path of a socket as it was given. An abstract name is shown as ``@name``."""
    return None if sock is None else sock.path


def memif_get_socket_filename(sock: Socket | None) -> str | None:
    """Do what :func:`memif_get_socket_path` does. This is its name in libmemif 3.x."""
    return memif_get_socket_path(sock)


def memif_get_socket_handle(conn: Interface | None) -> Socket | None:
    """Return the socket of a connection; None if the connection is deleted."""
    return None if conn is None or _is_gone(conn) else cast(Socket, conn.socket)


def memif_get_listener_fd(sock: Socket | None) -> int:
    """Return the fd of the listener; -1 while the socket does not listen."""
    return -1 if sock is None else sock.listener_fd


@_code
def memif_set_listener_fd(sock: Socket | None, fd: int) -> None:
    """Accept peers on a listener that the application or its parent made, and take ownership of the fd.

    The code is ``FILE_NOT_SOCK`` or ``BAD_FD`` if the fd is not a listening socket.
    """
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
    home = _existing(sock)
    for what, callback in (
        ("add_external_region", add_external_region),
        ("get_external_region_addr", get_external_region_addr),
        ("del_external_region", del_external_region),
        ("get_external_buffer_offset", get_external_buffer_offset),
    ):
        check_callback(what, callback)
    add, get = _recording(_required("add_external_region", add_external_region)), get_external_region_addr
    get = _recording(_required("get_external_region_addr", get))
    state = _sockets.get(home)
    ctx = None if state is None else state.private_ctx
    delete = None if del_external_region is None else _recording(del_external_region)
    offset = None if get_external_buffer_offset is None else _recording(get_external_buffer_offset)

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
    """Wait for events once and handle them.

    Call it as ``memif_poll_event(sock, timeout)`` as in 4.0, or as ``memif_poll_event(timeout)`` as in 2.x. The code is
    ``POLL_CANCEL`` if the poll was cancelled, and ``INVAL_ARG`` if the event loop has a hook.

    :param timeout: in **seconds**. 0 does not wait. None or a negative number waits without a limit. The first integer
        of 100 or more causes a RuntimeWarning, because it looks like milliseconds.
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
    with _pass_callback_errors():
        runtime.poll_event(None if isinstance(seconds, _NotGiven) else seconds)


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


@_code
def memif_cancel_poll_event(sock: Socket | _NotGiven | None = _NOT_GIVEN, *, main: Runtime | None = None) -> None:
    """End one poll. This can be called in any thread and in a signal handler.

    The code is ``INVAL_ARG`` if the event loop has a hook, and if ``sock`` is None.
    """
    _runtime(None if isinstance(sock, _NotGiven) else _existing(sock), main).cancel_poll_event()


@overload
def memif_control_fd_handler(ptr: MemifFdContext, events: FdEvent | int) -> int: ...
@overload
def memif_control_fd_handler(ptr: int, events: FdEvent | int, *, main: Runtime | None = None) -> int: ...
@_code
def memif_control_fd_handler(ptr: MemifFdContext | int, events: FdEvent | int, *, main: Runtime | None = None) -> None:
    """Handle the events of an fd that is ready.

    :param ptr: the fd (2.x), or the ``private_ctx`` of its :class:`MemifFdEvent` (4.0).
    :param events: the events, a combination of ``MEMIF_FD_EVENT_*``.
    """
    if isinstance(ptr, MemifFdContext):
        runtime, fd = _runtime(None, ptr.hook.runtime), ptr.fd
    else:
        runtime, fd = _runtime(None, main), _required("fd", ptr)
    with _pass_callback_errors():
        runtime.control_fd_handler(fd, _required("events", events))


@overload
def memif_set_connection_request_timer(sock: Socket, period: float) -> int: ...
@overload
def memif_set_connection_request_timer(period: float, /, *, main: Runtime | None = None) -> int: ...
@_code
def memif_set_connection_request_timer(
    sock: Socket | float, period: float | _NotGiven | None = _NOT_GIVEN, *, main: Runtime | None = None
) -> None:
    """Set the time between two attempts of disconnected slaves to connect.

    Call it with ``(sock, period)`` for the event loop of a socket (4.0), or with ``(period)`` for the global state
    (2.x).

    :param period: in **seconds**; 0 turns the timer off.
    """
    if isinstance(sock, Socket):
        if period is None or isinstance(period, _NotGiven):
            raise ConfigError("period is missing; it must be a number of seconds, 0 for none")
        _runtime(sock).set_reconnect_interval(period)
    elif isinstance(period, _NotGiven):
        _runtime(None, main).set_reconnect_interval(_required("period", sock))
    else:
        raise ConfigError(f"sock is {sock!r}; it must be a socket handle")


# --- libmemif 3.x: the same for the state of a thread ----------------------------------------------------------------


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
    """Create a connection. A master listens at once. A slave tries to connect at once, and again with the timer.

    The code is ``CONN`` if the id is taken, and ``MAX_RING`` for more than 2^14 slots. A slave receives nothing until
    it calls ``memif_refill_queue(conn, qid, -1, 0)``, usually in ``on_connect``. ``conn.last_error`` says why a
    connection ended.

    :param on_connect: ``on_connect(conn, private_ctx)``.
    :param on_disconnect: ``on_disconnect(conn, private_ctx)``.
    :param on_interrupt: ``on_interrupt(conn, private_ctx, qid)``.
    """
    _required("args", args)
    runtime = _runtime(args.socket)
    for what, callback in (
        ("on_connect", on_connect),
        ("on_disconnect", on_disconnect),
        ("on_interrupt", on_interrupt),
    ):
        check_callback(what, callback)
    with _pass_callback_errors():
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
    return None if callback is None else _recording(lambda conn: callback(conn, ctx))


def _on_disconnect(callback: ConnectionCallback | None, ctx: object) -> OnDisconnect | None:
    return None if callback is None else _recording(lambda conn, reason: callback(conn, ctx))


def _on_interrupt(callback: InterruptCallback | None, ctx: object) -> OnInterrupt | None:
    return None if callback is None else _recording(lambda conn, qid: callback(conn, ctx, qid))


@_code
def memif_delete(conn: Interface | None) -> None:
    """Disconnect and delete a connection.

    The handle still works in ``on_disconnect``, which this call runs. After that, calls on it return ``NOCONN``.
    """
    live = _live(conn)
    if live.deleted:  # on_disconnect of an outer memif_delete calls memif_delete again
        raise MemifError(ErrorCode.NOCONN, f"{live} is deleted")
    with _pass_callback_errors():
        live.delete()


@_code
def memif_request_connection(conn: Interface | None) -> None:
    """Try to connect now, without waiting for the timer.

    The code is ``ALRCONN`` if the connection exists, or that of the failed attempt (``NO_FILE``, ``CONNREFUSED``,
    ``ACCES``, …). A master that listens does nothing.
    """
    with _pass_callback_errors():
        _live(conn).request_connection()


@_result(_none)
def memif_get_details(conn: Interface | None) -> tuple[int, MemifDetails]:
    """Return the details of a connection. The code is never ``NOBUF_DET``, because the call takes no buffer."""
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
    """Return whether a connection is deleted. In ``on_disconnect`` the handle still works, as in C."""
    return conn.deleted and conn.ending is None


def _member(what: str, kind: type[_M], value: int) -> _M:
    try:
        return kind(value)
    except ValueError as error:
        raise ConfigError(f"{what} is {value!r}; it must be one of {', '.join(map(str, map(int, kind)))}") from error


# --- queues ---------------------------------------------------------------------------------------------------------


@_result(_no_fd)
def memif_get_queue_efd(conn: Interface | None, qid: int) -> tuple[int, int]:
    """Return the eventfd of a receive queue, for an application that polls it.

    The code is ``DISCONNECTED`` without a connection, and ``QID`` if there is no such queue.
    """
    return MEMIF_ERR_SUCCESS, _rx(conn, qid).fileno()


@_code
def memif_set_rx_mode(conn: Interface | None, rx_mode: int, qid: int) -> None:
    """Set the mode of one receive queue: ``MEMIF_RX_MODE_INTERRUPT`` or ``MEMIF_RX_MODE_POLLING``."""
    _rx(conn, qid).set_rx_mode(_member("rx_mode", RxMode, rx_mode))


@_result(_no_buffers)
def memif_rx_burst(conn: Interface | None, qid: int, count: int) -> tuple[int, list[MemifBuffer]]:
    """Take up to ``count`` received buffers. :func:`memif_refill_queue` gives them back.

    The code is ``NOBUF`` if more buffers wait; the queue then interrupts again. It is SUCCESS, with no buffers, if the
    ring is empty.
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
    """Give the ``count`` oldest received buffers back to the peer.

    :param count: -1, or a number larger than the ring, gives all of them back (C's -1 is 65535).
    :param headroom: bytes that stay free in front of the data of the next packets; only for a slave.
    """
    queue = _rx(conn, qid)
    try:
        queue.refill(None if count == -1 else count, headroom)
    except BufferError as error:
        raise ConfigError(str(error)) from error


@_result(_no_buffers)
def memif_buffer_alloc(conn: Interface | None, qid: int, count: int, size: int) -> tuple[int, list[MemifBuffer]]:
    """Allocate buffers for ``count`` packets of ``size`` bytes, to fill and to send.

    A packet longer than a buffer takes several buffers. All except the last have ``MEMIF_BUFFER_FLAG_NEXT``. The code
    is ``NOBUF_RING``, with fewer buffers, if the ring is full.
    """
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
    """Send the first ``count`` buffers (None: all) and return how many were sent.

    Buffers must be sent in the order in which they were allocated. At a buffer out of order the code is ``INVAL_ARG``,
    and only the buffers before it are sent. The peer is kicked once for each allocation that the buffers come from.
    """
    queue = _tx(conn, qid)
    sent = 0
    try:
        for burst, first, length in _runs(buffers, count):
            if first != burst.sent:
                raise ConfigError(f"buffer {sent} is out of order: it must be the oldest unsent buffer of queue {qid}")
            try:
                queue.transmit(burst, length)
            except BufferError as error:
                raise ConfigError(str(error)) from error
            finally:  # the kick fails after the packets are sent: count them
                sent += burst.sent - first
    except MemifError as error:
        return _failed(error), sent
    return MEMIF_ERR_SUCCESS, sent


@_result(int)
def memif_buffer_enq_tx(
    conn: Interface | None, qid: int, buffers: Sequence[MemifBuffer], count: int | None = None
) -> tuple[int, int]:
    """Swap the first ``count`` received buffers (None: all) into a transmit queue, without a copy.

    Return how many were swapped. They become buffers of that queue, ready for :func:`memif_tx_burst`. The receive queue
    gets free buffers in exchange; :func:`memif_refill_queue` still has to give those to the peer. The code is
    ``NOBUF_RING`` if the queue is full, and ``INVAL_ARG`` on a master.
    """
    queue = _tx(conn, qid)
    done = 0
    for burst, first, length in _runs(buffers, count):
        with _no_derived_views():
            swapped = queue.enqueue(burst, first - burst.sent, length)
        for index in range(len(swapped)):
            buffers[done + index].move(queue, swapped, index)
        done += len(swapped)
        if len(swapped) < length:
            return _failed(MemifError(ErrorCode.NOBUF_RING)), done
    return MEMIF_ERR_SUCCESS, done


@_code
def memif_buffer_requeue(conn: Interface | None, buffer_a: MemifBuffer, buffer_b: MemifBuffer) -> None:
    """Swap the places of two buffers, on one queue or on two, without a copy.

    Each buffer keeps its data and takes the queue and index of the other. The code is ``INVAL_ARG`` on a master.
    """
    _live(conn)
    a, b = _required("buffer_a", buffer_a), _required("buffer_b", buffer_b)
    _check_held(a)
    _check_held(b)
    with _no_derived_views():
        a.exchange(b)


@_code
def memif_set_next_free_buffer(conn: Interface | None, qid: int, buffer: MemifBuffer) -> None:
    """Give back this allocated buffer and all after it. The next allocation starts at this buffer.

    The code is ``INVAL_ARG`` if the buffer is not allocated, or is sent already.
    """
    queue = _tx(conn, qid)
    _check_held(_required("buffer", buffer))
    with _no_derived_views():
        queue.rewind(buffer.burst, buffer.index)


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
    """Turn the ``BufferError`` of a view that the application still holds into a ``ConfigError``.

    :raises ConfigError: the application still holds a slice or a cast of a buffer's ``data``.
    """
    try:
        yield
    except BufferError as error:
        raise ConfigError(str(error)) from error


def _runs(buffers: Sequence[MemifBuffer], count: int | None) -> list[tuple[Burst, int, int]]:
    """Return the first ``count`` buffers as runs of neighbours in their bursts: burst, first number, length."""
    _required("buffers", buffers)
    if count is not None and not 0 <= count <= len(buffers):
        raise ConfigError(f"count is {count}; it must be from 0 to {len(buffers)}, the number of buffers")
    runs: list[tuple[Burst, int, int]] = []
    for buffer in buffers if count is None else buffers[:count]:
        _check_held(buffer)
        if runs:
            burst, first, length = runs[-1]
            if burst is buffer.burst and first + length == buffer.number:
                runs[-1] = burst, first, length + 1
                continue
        runs.append((buffer.burst, buffer.number, 1))
    return runs


def _check_held(buffer: MemifBuffer) -> None:
    """Check that the application holds a buffer.

    :raises ConfigError: the buffer is None, was sent, or was given back to the peer.
    """
    _required("buffer", buffer).check_held()


# --- version and error texts -----------------------------------------------------------------------------------------


def memif_get_version() -> int:
    """Return the version of the protocol: 0x0200."""
    return VERSION


def memif_get_version_str() -> str:
    """Return the version of the protocol as a text: ``"2.0"``."""
    return f"{VERSION >> 8}.{VERSION & 0xFF}"


def memif_strerror(code: int) -> str:
    """Return the text for a code. A number that is not a code gives "undefined error"."""
    return strerror(code)


__all__ = [name for name in globals() if name.startswith(("memif_", "MEMIF_", "Memif"))]
