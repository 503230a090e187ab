"""libmemif's calls on connections: make, delete, connect, ask."""

from __future__ import annotations

from typing import TypeVar

from memifrt.errors import ConfigError, ErrorCode, MemifError
from memifrt.interface import Details, Interface, OnConnect, OnDisconnect, OnInterrupt, QueueDetails
from memifrt.libmemif.codes import nothing, pass_callback_errors, recording, required, returns_code, returns_result
from memifrt.libmemif.constants import (
    MEMIF_DEFAULT_BUFFER_SIZE,
    MEMIF_DEFAULT_LOG2_RING_SIZE,
    MEMIF_DEFAULT_SOCKET_PATH,
    MEMIF_ERR_SUCCESS,
)
from memifrt.libmemif.handles import (
    ConnectionCallback,
    InterruptCallback,
    MemifConnArgs,
    MemifDetails,
    MemifQueueDetails,
    MemifRegionDetails,
)
from memifrt.libmemif.state import runtime_of
from memifrt.runtime import Runtime
from memifrt.types import Mode, Role, RxMode, check_callback

_M = TypeVar("_M", Mode, RxMode)


@returns_result(nothing)
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
    required("args", args)
    runtime = runtime_of(args.socket)
    for what, callback in (
        ("on_connect", on_connect),
        ("on_disconnect", on_disconnect),
        ("on_interrupt", on_interrupt),
    ):
        check_callback(what, callback)
    with pass_callback_errors():
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
        mode=enum_member("mode", Mode, args.mode),
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
    return None if callback is None else recording(lambda conn: callback(conn, ctx))


def _on_disconnect(callback: ConnectionCallback | None, ctx: object) -> OnDisconnect | None:
    return None if callback is None else recording(lambda conn, reason: callback(conn, ctx))


def _on_interrupt(callback: InterruptCallback | None, ctx: object) -> OnInterrupt | None:
    return None if callback is None else recording(lambda conn, qid: callback(conn, ctx, qid))


@returns_code
def memif_delete(conn: Interface | None) -> None:
    """Disconnect and delete a connection.

    The handle still works in ``on_disconnect``, which this call runs. After that, calls on it return ``NOCONN``.
    """
    live = live_connection(conn)
    if live.deleted:  # on_disconnect of an outer memif_delete calls memif_delete again
        raise MemifError(ErrorCode.NOCONN, f"{live} is deleted")
    with pass_callback_errors():
        live.delete()


@returns_code
def memif_request_connection(conn: Interface | None) -> None:
    """Connect a slave now, without waiting for the timer. Do nothing for a master, which listens already.

    The code is ``ALRCONN`` if there is a connection. If the attempt fails, the code says why (``NO_FILE``,
    ``CONNREFUSED``, ``ACCES``, …).
    """
    with pass_callback_errors():
        live_connection(conn).request_connection()


@returns_result(nothing)
def memif_get_details(conn: Interface | None) -> tuple[int, MemifDetails]:
    """Return the details of a connection. The code is never ``NOBUF_DET``, because the call takes no buffer."""
    return MEMIF_ERR_SUCCESS, _details(live_connection(conn).details())


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


def live_connection(conn: Interface | None) -> Interface:
    if conn is None or is_gone(conn):
        if conn is not None:
            conn.check_not_forked()
        raise MemifError(ErrorCode.NOCONN, "there is no such connection" if conn is None else f"{conn} is deleted")
    return conn


def is_gone(conn: Interface) -> bool:
    """Return whether a connection is deleted. In ``on_disconnect`` the handle still works, as in C."""
    return conn.deleted and conn.ending is None


def enum_member(what: str, kind: type[_M], value: int) -> _M:
    try:
        return kind(value)
    except ValueError as error:
        raise ConfigError(f"{what} is {value!r}; it must be one of {', '.join(map(str, map(int, kind)))}") from error
