"""Warn when both ends of a measurement poll, and have too few cores for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from memifrt.cli.bench.options import Options
from memifrt.interface import Interface
from memifrt.options import parse_rx_mode
from memifrt.types import RxMode

#: The flag of a ring with a receiver that polls (docs/protocol.md).
_MASK_INT = 1


def core_warnings(options: Options, interface: Interface, pairs: int) -> Iterator[str]:
    """Yield a warning if this end and the peer poll and may use fewer cores than they have polling threads.

    :param pairs: the number of pairs of queues of this end.
    """
    details = interface.details()
    peer_polls = any(queue.flags & _MASK_INT for queue in details.tx_queues)
    polls = parse_rx_mode(options.rx_mode) is RxMode.POLLING or options.mode in ("source", "gen")
    if not polls or not peer_polls:
        return
    cores = set(os.sched_getaffinity(0))
    pid = details.peer.pid if details.peer else 0
    if pid:  # 0 for a peer in another process namespace
        with contextlib.suppress(OSError):
            cores |= os.sched_getaffinity(pid)
    threads = (pairs if options.has_threads else 1) + (1 if pid != os.getpid() else 0)
    if len(cores) < threads:
        where = f"core {min(cores)}" if len(cores) == 1 else f"{len(cores)} cores"
        yield (
            f"both ends poll with {threads} threads or more on {where}, so they take turns and the figures are low; "
            f"give each a core of its own with --cpu, or use --rx-mode interrupt"
        )
