"""The arguments and results of libmemif's calls: handles, structures of arguments and of details, kinds of callbacks.

Owns the names of libmemif.h for them. Adds nothing to the objects behind the handles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from memifrt.interface import Interface
from memifrt.libmemif.constants import MEMIF_DEFAULT_APP_NAME, MEMIF_DEFAULT_SOCKET_PATH, MEMIF_INTERFACE_MODE_ETHERNET
from memifrt.runtime import Runtime
from memifrt.sockets import Socket
from memifrt.types import FdEvent, Mode, Role

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

    hook: EventHook
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


class EventHook:
    """Calls a hook of libmemif 4.0 as a hook of 2.x."""

    def __init__(self, hook: ControlFdEventUpdate, private_ctx: object) -> None:
        self._hook = hook
        self._private_ctx = private_ctx
        #: Set after the runtime is made. The runtime calls the hook before that, for its own timer.
        self.runtime: Runtime | None = None

    def __call__(self, fd: int, events: FdEvent) -> object:
        return self._hook(MemifFdEvent(fd, events, MemifFdContext(self, fd)), self._private_ctx)
