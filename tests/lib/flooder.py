"""A peer in its own process that sends as fast as it can until it is killed: ``python -m tests.lib.flooder SOCKET``."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from memifrt import Disconnected, Runtime

#: Small packets: the most for the other side to do.
BURST = [bytes(range(64))] * 256


def flood(socket: str) -> None:
    """A slave that only sends."""
    with Runtime("flooder", reconnect_interval=0.02) as runtime:
        interface = runtime.create_interface(socket=socket, role="slave", log2_ring_size=10, buffer_size=64)
        while True:
            runtime.poll_event(0 if interface.connected else 1.0)
            with contextlib.suppress(Disconnected):
                for tx in interface.tx_queues:
                    tx.send(BURST)


@contextlib.contextmanager
def flooding(socket: str) -> Iterator[subprocess.Popen[bytes]]:
    """The program while it runs; killed at the end, if not before."""
    program = subprocess.Popen([sys.executable, "-m", "tests.lib.flooder", socket])
    with program:
        try:
            yield program
        finally:
            program.kill()


if __name__ == "__main__":
    flood(sys.argv[1])
