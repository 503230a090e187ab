"""Run a switch: wait for packets of all ports, and let it forward them.

Owns the loop, the retries for ports without room, ageing, and what happens at the end. Knows no addresses.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import select
import time

from memifrt.errors import MemifError, PollCancelled
from memifrt.ports.drain import INTERVAL, Drain
from memifrt.ports.port import MemifPort
from memifrt.runtime import Runtime
from memifrt.switch.port import SwitchPort
from memifrt.switch.switch import Switch

logger = logging.getLogger("memifrt")

#: Milliseconds until we offer waiting packets to a port again: no event says that a peer made room.
_ROOM_MILLISECONDS = 1
#: The most seconds to let the peers take packets before the end.
_DRAIN_LIMIT = 3.0
#: With fewer ports there is nothing to join.
_FEWEST_PORTS = 2


class SwitchLoop:
    """Runs a switch in a runtime's loop.

    :param polling: whether to look at every port all the time, instead of waiting for its events.
    """

    def __init__(self, runtime: Runtime, switch: Switch, *, polling: bool = False) -> None:
        self._runtime = runtime
        self._switch = switch
        self._polling = polling
        self._next_expiry = 0.0
        self._failed: set[int] = set()
        for port in switch.ports:
            port.port.on_packets = functools.partial(self._step, port)
            port.port.on_link = functools.partial(switch.link_changed, port)
        runtime.switch_stats = switch.stats

    def _step(self, port: SwitchPort) -> None:
        self._switch.step(port)

    def run(self) -> None:
        """Forward packets until the poll is cancelled, then let the peers take what was sent.

        :raises MemifError: fewer than two ports are left.
        """
        with contextlib.suppress(PollCancelled):
            self._run_until_cancelled()
        self._drain()

    def _run_until_cancelled(self) -> None:
        switch, control = self._switch, self._runtime.fileno()
        poll = select.poll()
        poll.register(control, select.POLLIN)
        fds = {port.port.fileno(): port for port in switch.ports if port.port.fileno() >= 0}
        for fd in fds:
            poll.register(fd, select.POLLIN)
        memifs = [port for port in switch.ports if isinstance(port.port, MemifPort)]
        while True:
            ready = poll.poll(0 if self._polling else self._timeout())
            if not ready and switch.mirror is not None:
                switch.mirror.flush()
            switch.flush()
            for fd, _ in ready:
                if fd == control:
                    self._runtime.poll_event(0)  # its callbacks call _step
                else:
                    switch.step(fds[fd])
            if self._polling:
                for port in memifs:
                    switch.step(port)
                self._runtime.poll_event(0)
            self._expire()
            for port in switch.ports:
                if port.failure is not None and port.number not in self._failed:
                    self._failed.add(port.number)
                    fd = port.port.fileno()
                    if fds.pop(fd, None) is not None:
                        poll.unregister(fd)
                    self._report(port, port.failure)

    def _timeout(self) -> float | None:
        """Return how many milliseconds to wait for packets; None waits without a limit."""
        switch = self._switch
        if any(port.queued for port in switch.ports):
            return _ROOM_MILLISECONDS
        if switch.mirror is not None and switch.mirror.dirty:
            return 0
        if len(switch.table):
            return max(self._next_expiry - time.monotonic(), 0.001) * 1000
        return None

    def _expire(self) -> None:
        now = time.monotonic()
        if now >= self._next_expiry:
            self._next_expiry = now + (self._switch.expire() or 0.0)

    def _report(self, port: SwitchPort, error: MemifError) -> None:
        """Report that the interface of a port is gone.

        :raises MemifError: fewer than two ports are left.
        """
        left = len(self._switch.ports) - len(self._failed)
        if left < _FEWEST_PORTS:
            raise error
        logger.warning("%s; the switch goes on with %d ports", error.message, left)

    def _drain(self) -> None:
        """Give the peers time to take what was sent to them. A second cancel ends the wait."""
        interfaces = [port.port.interface for port in self._switch.ports if isinstance(port.port, MemifPort)]
        for interface in interfaces:
            interface.on_interrupt = None  # forward nothing more
        drain = Drain(interfaces, _DRAIN_LIMIT)
        with contextlib.suppress(PollCancelled):
            while drain.goes_on():
                self._switch.flush()
                self._runtime.poll_event(0)
                time.sleep(INTERVAL)
