"""The rows of ``memifrt top``: the values of one queue, or of all queues of a direction, and the names of states."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from memifrt.cli.top.drawing import safe_text
from memifrt.stats.client import Program, Rates, queue_key
from memifrt.stats.snapshot import InterfaceStats, QueueStats


@dataclass(frozen=True, slots=True)
class Row:
    """The values for one queue, or for all queues of a direction. ``rates`` and ``share`` are None if unknown."""

    name: str
    rates: Rates | None
    share: float | None
    ring_size: int
    history: Sequence[float | None]
    packets: int
    bytes: int
    ring_full: int
    bad_descriptors: int
    rx_mode: str


def queue_row(program: Program, interface: InterfaceStats, queue: QueueStats) -> Row:
    key = queue_key(interface, queue)
    used, size = queue["used"], max(queue["ring_size"], 1)
    return Row(
        f"{safe_text(queue['direction'])} {queue['qid']}",
        program.rates.get(key),
        None if used is None or program.error else min(max(used / size, 0.0), 1.0),
        size,
        program.history.get(key, ()),
        queue["packets"],
        queue["bytes"],
        queue["ring_full"],
        queue["bad_descriptors"],
        safe_text(queue["rx_mode"] or ""),
    )


def direction_row(program: Program, interface: InterfaceStats, direction: str) -> Row | None:
    """Combine all queues of a direction in one row; None if there are none."""
    rows = [queue_row(program, interface, queue) for queue in interface["queues"] if queue["direction"] == direction]
    if not rows:
        return None
    known = [row.rates for row in rows if row.rates is not None]
    shares = [row.share for row in rows if row.share is not None]
    return Row(
        f"{direction} x{len(rows)}",
        sum(known[1:], known[0]) if known else None,
        max(shares) if shares else None,  # the fullest ring, because it drops packets first
        max(row.ring_size for row in rows),
        _added([row.history for row in rows]),
        sum(row.packets for row in rows),
        sum(row.bytes for row in rows),
        sum(row.ring_full for row in rows),
        sum(row.bad_descriptors for row in rows),
        rows[0].rx_mode,
    )


def _added(histories: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Add histories sample by sample. The newest sample of each is the last."""
    added: deque[float | None] = deque()
    for back in range(1, max(map(len, histories)) + 1):
        samples = [history[-back] for history in histories if len(history) >= back]
        known = [sample for sample in samples if sample is not None]
        added.appendleft(sum(known) if known else None)
    return list(added)


def each_queue(program: Program, interface: InterfaceStats) -> list[Row]:
    return [queue_row(program, interface, queue) for queue in interface["queues"]]


def each_direction(program: Program, interface: InterfaceStats) -> list[Row]:
    return [row for direction in ("rx", "tx") if (row := direction_row(program, interface, direction))]


def state_name(interface: InterfaceStats) -> str:
    """Return the state in words. An interface that never had a peer is not called disconnected."""
    if interface["state"] == "disconnected" and not interface["connects"]:
        return "waiting for a peer" if interface["role"] == "master" else "no peer yet"
    return safe_text(interface["state"])
