"""Make a snapshot of the state and the counters of a runtime, which can be written as JSON.

Owns the snapshot and its schema. Knows nothing of how a snapshot is requested or shown.

The schema is that of :class:`Snapshot`. Readers must ignore names that they do not know. A name keeps its meaning while
``version`` stays the same. Times are Unix times in seconds. A snapshot never contains the secret of an interface.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypedDict

from memifrt.interface import Interface
from memifrt.queue import RxQueue, TxQueue
from memifrt.ring import RxRing, TxRing, __impl__
from memifrt.stats.switch import SwitchStats
from memifrt.types import Direction, Role

SCHEMA = "memifrt-stats"
VERSION = 1
_MASK_INT = 1


class SnapshotSource(Protocol):
    """The source of a snapshot: a runtime."""

    @property
    def app_name(self) -> str: ...

    def check_not_forked(self) -> None:
        """Raise ForkedError in a forked child."""

    @property
    def started(self) -> float:
        """The Unix time at which the runtime was made, in seconds."""

    @property
    def interfaces(self) -> Iterable[Interface]: ...

    @property
    def application_counters(self) -> Mapping[str, Callable[[], Mapping[str, int]]]: ...

    @property
    def switch_stats(self) -> Callable[[], SwitchStats] | None:
        """Return the switch that joins the interfaces, if there is one."""


# --- the schema -----------------------------------------------------------------------------------------------------


class PeerStats(TypedDict):
    """The peer: its names, and its credentials at the time of ``connect``, from the kernel."""

    app_name: str
    name: str
    pid: int
    uid: int
    gid: int


class QueueStats(TypedDict):
    """One queue of the current connection, or of the last one.

    ``direction`` is ``rx`` or ``tx``, from our side. ``ring`` is ``s2m`` or ``m2s``, as in the protocol. ``head``,
    ``tail``, ``used`` and ``masked`` are null without a connection. ``used`` is the number of slots that the sender
    cannot fill now: they are filled and not given back (s2m), or not offered to it (m2s). ``masked`` says that the
    receiver wants no interrupts. ``rx_mode`` is null for a transmit queue. The counters are those of
    :class:`~memifrt.QueueCounters`; they continue over reconnects.
    """

    qid: int
    direction: str
    ring: str
    ring_size: int
    used: int | None
    head: int | None
    tail: int | None
    masked: bool | None
    rx_mode: str | None
    packets: int
    bytes: int
    interrupts: int
    ring_full: int
    bad_descriptors: int
    repeated_kicks: int


class InterfaceStats(TypedDict):
    """One interface.

    ``state`` is ``disconnected``, ``connecting`` or ``connected``. ``connected_since`` is null unless it is connected.
    ``peer`` is null unless it is connected or connecting. ``error`` says why the last connection or attempt ended; it
    is empty if there was no error. ``connects``, ``disconnects`` and ``violations`` are those of
    :class:`~memifrt.Interface`.
    """

    id: int
    name: str
    role: str
    mode: str
    socket: str
    state: str
    peer: PeerStats | None
    connected_since: float | None
    error: str
    connects: int
    disconnects: int
    violations: int
    queues: list[QueueStats]


class CounterStats(TypedDict):
    """A counter of the application. ``memifrt bridge`` has a group of counters for each impaired direction."""

    group: str
    name: str
    value: int


class _Switched(TypedDict, total=False):
    switch: SwitchStats


class Snapshot(_Switched):
    """The state of a runtime at one time.

    ``switch`` is there only if the program is a switch.

    ``name`` is its ``app_name``. ``rings`` is the ring implementation, ``native`` or ``python``. ``started`` is the
    time at which the runtime was made. ``monotonic`` is the system's monotonic clock in seconds, for rates.
    ``counters`` are those of the application (:attr:`memifrt.Runtime.application_counters`).
    """

    schema: str
    version: int
    name: str
    pid: int
    rings: str
    started: float
    time: float
    monotonic: float
    interfaces: list[InterfaceStats]
    counters: list[CounterStats]


def snapshot(runtime: SnapshotSource) -> Snapshot:
    """Return the state of a runtime now. This only reads: it takes no packet from a ring and ends no connection.

    :raises ForkedError: this is a forked child, and the runtime belongs to the parent.
    """
    runtime.check_not_forked()
    found: Snapshot = {
        "schema": SCHEMA,
        "version": VERSION,
        "name": runtime.app_name,
        "pid": os.getpid(),
        "rings": __impl__,
        "started": runtime.started,
        "time": time.time(),
        "monotonic": time.monotonic(),
        "interfaces": [_interface(interface) for interface in runtime.interfaces],
        "counters": [
            {"group": group, "name": name, "value": value}
            for group, counts in runtime.application_counters.items()
            for name, value in counts().items()
        ],
    }
    if runtime.switch_stats is not None:
        found["switch"] = runtime.switch_stats()
    return found


def _interface(interface: Interface) -> InterfaceStats:
    return {
        "id": interface.id,
        "name": interface.name,
        "role": interface.role.name.lower(),
        "mode": interface.mode.name.lower(),
        "socket": interface.socket.path,
        "state": interface.state.value,
        "peer": _peer(interface),
        "connected_since": interface.connected_since,
        "error": interface.last_error.message if interface.last_error else "",
        "connects": interface.connects,
        "disconnects": interface.disconnects,
        "violations": interface.violations,
        "queues": _queues(interface),
    }


def _peer(interface: Interface) -> PeerStats | None:
    connection = interface.connection
    if connection is None:
        return None
    who = connection.credentials
    return {
        "app_name": connection.peer_name,
        "name": connection.peer_if_name,
        "pid": who.pid,
        "uid": who.uid,
        "gid": who.gid,
    }


def _queues(interface: Interface) -> list[QueueStats]:
    connection = interface.connection
    if connection is None or not connection.established:
        receive = [_queue(interface, queue, None) for queue in interface.rx_queues]
        return receive + [_queue(interface, queue, None) for queue in interface.tx_queues]
    receive = [_queue(interface, queue, ring) for queue, (_, ring, _) in connection.rx()]
    return receive + [_queue(interface, queue, ring) for queue, (_, ring, _) in connection.tx()]


def _queue(interface: Interface, queue: RxQueue | TxQueue, ring: RxRing | TxRing | None) -> QueueStats:
    receives = isinstance(queue, RxQueue)
    direction = Direction.M2S if receives == (interface.role is Role.SLAVE) else Direction.S2M
    head, tail = (None, None) if ring is None else (ring.head, ring.tail)
    counters = queue.counters
    return {
        "qid": queue.qid,
        "direction": "rx" if receives else "tx",
        "ring": direction.value,
        "ring_size": queue.ring_size,
        "used": None if head is None or tail is None else _used(direction, head, tail, queue.ring_size),
        "head": head,
        "tail": tail,
        "masked": None if ring is None else bool(ring.flags & _MASK_INT),
        "rx_mode": queue.rx_mode.name.lower() if isinstance(queue, RxQueue) else None,
        "packets": counters.packets,
        "bytes": counters.bytes,
        "interrupts": counters.interrupts,
        "ring_full": counters.ring_full,
        "bad_descriptors": counters.bad_descriptors,
        "repeated_kicks": counters.repeated_kicks,
    }


def _used(direction: Direction, head: int, tail: int, size: int) -> int:
    """Return the number of used slots, from the two indices (docs/protocol.md says which end advances which).

    The peer owns one of the indices and may write anything there, so the result is kept within the ring.
    """
    ahead = min((head - tail) & 0xFFFF, size)
    return ahead if direction is Direction.S2M else size - ahead
