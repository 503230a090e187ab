"""A process that lives through whatever its peers do: a master and a slave, each with a peer in a process of its own.

Owns the runtime, both interfaces and the processes that face them, and what must hold: every packet is right, nothing
is left of a peer that is gone, and the next one is welcome.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from benchmarks.nursery import Nursery, kill
from benchmarks.traffic import End
from fuzz.leaks import mappings, open_fds, resident_bytes
from memifrt import Runtime

if TYPE_CHECKING:
    from typing_extensions import Self

#: Seconds in which a connection must be back, and packets with it.
DEADLINE = 20.0
_RECONNECT = 0.01
#: Packets each way after which a connection is held to work.
_PROOF = 20


class Broken(Exception):
    """What must hold does not."""


@dataclass(frozen=True)
class Held:
    """What the survivor holds while both connections stand."""

    fds: int
    mappings: int

    @classmethod
    def now(cls) -> Held:
        return cls(len(open_fds()), mappings())


class Facing:
    """One interface of the survivor, and the process that faces it."""

    def __init__(self, survivor: Survivor, nursery: Nursery, role: str, folder: str, seed: int) -> None:
        self.role = role
        self._nursery = nursery
        self._peer_role = "slave" if role == "master" else "master"
        self._path = f"{folder}/{role}.sock"
        self._numbers = random.Random(seed)
        self.pid = 0
        self.end = End(survivor.runtime, survivor.wrong, seed, socket=self._path, role=role)
        #: How many packets the peers of this interface had checked when the present one was started.
        self._scored = 0

    @property
    def score(self) -> int:
        """Packets that the peers have checked."""
        return self._nursery.scores[self._peer_role].received

    @property
    def peer_wrong(self) -> int:
        return self._nursery.scores[self._peer_role].wrong

    def start(self) -> None:
        assert not self.pid
        self._scored = self.score
        self.pid = self._nursery.start(self._path, self._peer_role, self._numbers.randrange(1 << 60))

    def end_peer(self, how: signal.Signals) -> None:
        """Kill the peer, or ask it to end; it is gone then.

        :raises Broken: it ended in another way.
        """
        pid, self.pid = self.pid, 0
        kill(pid, how)
        status = self._nursery.bury(pid)
        if status != (0 if how is signal.SIGTERM else -how):
            raise Broken(f"the peer of the {self.role} ended with {status}")

    def signal_peer(self, number: signal.Signals) -> None:
        kill(self.pid, number)

    @property
    def works(self) -> bool:
        """Whether packets pass both ways with the present peer."""
        both = self.end.received_now >= _PROOF and self.score - self._scored >= _PROOF
        return self.end.interface.connected and both


class Survivor:
    """A runtime with both roles, and the peers that try it."""

    def __init__(self, nursery: Nursery, seed: int) -> None:
        self.troubles: list[str] = []
        self._folder = tempfile.TemporaryDirectory(prefix="memifrt-survivor-")
        self.runtime = Runtime("survivor", reconnect_interval=_RECONNECT)
        self.facings = [
            Facing(self, nursery, role, self._folder.name, seed + number)
            for number, role in enumerate(("master", "slave"))
        ]
        self._numbers = random.Random(seed)

    def wrong(self, trouble: str) -> None:
        self.troubles.append(trouble)
        print(f"survivor: {trouble}", file=sys.stderr)

    def step(self, timeout: float = 0.001) -> None:
        """Handle events and send a few packets."""
        self.runtime.poll_event(timeout)
        for facing in self.facings:
            facing.end.work()

    def run_until(self, predicate: Callable[[], bool], what: str) -> None:
        """Go on until the predicate holds.

        :raises Broken: it does not in time.
        """
        deadline = time.monotonic() + DEADLINE
        while not predicate():
            self.step()
            if time.monotonic() > deadline:
                raise Broken(f"not within {DEADLINE:g} s: {what}")

    def run_for(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.step(min(left, 0.001))

    def settle(self) -> None:
        """Until both connections work."""
        for facing in self.facings:
            if not facing.pid:
                facing.start()
        self.run_until(lambda: all(facing.works for facing in self.facings), "packets pass both ways on both")

    @property
    def wrong_packets(self) -> int:
        return len(self.troubles) + sum(facing.peer_wrong for facing in self.facings)

    def check(self, held: Held) -> None:
        """:raises Broken: packets were wrong, or more is held than then."""
        if self.wrong_packets:
            raise Broken(f"{self.wrong_packets} wrong packets: {'; '.join(self.troubles[:5]) or 'see the peers'}")
        now = Held.now()
        if now != held:
            raise Broken(f"{now} where {held} was held: {sorted(open_fds().items())}")

    def resident(self) -> int:
        return resident_bytes(os.getpid())

    def close(self) -> None:
        for facing in self.facings:
            if facing.pid:
                facing.end_peer(signal.SIGKILL)
        self.runtime.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
