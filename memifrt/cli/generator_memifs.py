"""The memifs of the commands that generate traffic: how they are created, and when they can send."""

from __future__ import annotations

import time
from collections.abc import Sequence

from memifrt.interface import Interface
from memifrt.ports.drain import INTERVAL
from memifrt.ports.endpoint import MemifEndpoint
from memifrt.runtime import Runtime
from memifrt.types import RxMode

#: Seconds between two attempts to connect. It is short because a user waits at the terminal.
RECONNECT_INTERVAL = 0.2
#: Seconds to wait for the first buffers of a slave. VPP offers them when its interface is up.
_BUFFERS_WAIT = 3.0


def polling(end: MemifEndpoint) -> MemifEndpoint:
    """Return an endpoint without the default of endpoints, which is adaptive.

    A generator looks at its queues all the time. Interrupts would only cost the device kicks.
    """
    if end.config.rx_mode is not RxMode.ADAPTIVE:
        return end
    return MemifEndpoint(end.socket, end.config.replace(rx_mode=RxMode.POLLING))


def create(runtime: Runtime, end: MemifEndpoint) -> Interface:
    """Create the interface of an endpoint.

    :raises MemifError: it cannot be created.
    """
    config = end.config.replace(name=str(end.config.name or f"memif{end.config.id}"))
    return runtime.create_interface(socket=end.socket, **config.options())


def wait_for_peers(runtime: Runtime, interfaces: Sequence[Interface]) -> None:
    """Wait until all interfaces are connected and can send.

    :raises PollCancelled: the user has ended it.
    """
    while not all(interface.connected for interface in interfaces):
        runtime.poll_event()
    # A slave posts its buffers after it is connected. Wait for them, so that the first packets are not late.
    deadline = time.monotonic() + _BUFFERS_WAIT
    while time.monotonic() < deadline:
        if all(queue.free() for interface in interfaces for queue in interface.tx_queues):
            return
        runtime.poll_event(INTERVAL)
