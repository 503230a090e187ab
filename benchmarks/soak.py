"""``make soak``: traffic between processes while peers are killed, stopped, ended and disconnected at random.

A survivor with both roles faces one peer process for each. Every packet's sequence and checksum is checked at both
ends; fds and mappings must be the same whenever both connections stand, and memory must stay flat. The exit status
tells.
"""

from __future__ import annotations

import argparse
import collections
import logging
import random
import re
import signal
import sys
import time

from benchmarks.nursery import Nursery
from benchmarks.survivor import Broken, Facing, Held, Survivor

#: What may be heard of an end. Anything else is a peer that was taken for hostile, and none is.
_REASONS = (
    "peer closed the connection without a reason",
    "peer disconnected: the peer felt like it",
    "peer disconnected: interface deleted",
    "peer disconnected: there is no interface with id",
    "disconnected by the soak",
    "interface deleted",
)
#: What a peer that was stopped in the middle of a handshake may be told or tell.
_PATIENCE = re.compile("within|deadline|timed? ?out|in time")
#: Seconds between two looks at what is held, and bytes by which memory may grow once it is warm.
_LOOK, _GROWTH = 2.0, 4 << 20


class Soak:
    """Trouble for a survivor, and a record of it."""

    def __init__(self, survivor: Survivor, seed: int) -> None:
        self._survivor = survivor
        self._numbers = random.Random(seed)
        self.did: collections.Counter[str] = collections.Counter()
        self._deeds = (self.kill, self.kill, self.stall, self.end, self.ask_it_to_leave, self.disconnect, self.delete)
        self.longest_gap = 0.0

    def trouble(self) -> None:
        """Do something to one of the peers, then wait until packets pass again."""
        facing = self._numbers.choice(self._survivor.facings)
        deed = self._numbers.choice(self._deeds)
        before = time.monotonic()
        deed(facing)
        self.did[f"{deed.__name__.replace('_', ' ')}, {facing.role}"] += 1
        self._survivor.settle()
        self.longest_gap = max(self.longest_gap, time.monotonic() - before)

    def kill(self, facing: Facing) -> None:
        facing.end_peer(signal.SIGKILL)
        self._pause()
        if self._numbers.random() < 0.3:  # and the next one, as soon as it has begun
            facing.start()
            self._pause()
            facing.end_peer(signal.SIGKILL)

    def stall(self, facing: Facing) -> None:
        if self._numbers.random() < 0.3:  # a new one, perhaps in the middle of its handshake
            facing.end_peer(signal.SIGKILL)
            facing.start()
            self._survivor.run_for(self._numbers.uniform(0, 0.006))
        facing.signal_peer(signal.SIGSTOP)
        self._survivor.run_for(self._numbers.choice((0.02, 0.1, 0.5)))
        facing.signal_peer(signal.SIGCONT)

    def end(self, facing: Facing) -> None:
        facing.end_peer(signal.SIGTERM)
        self._pause()

    def ask_it_to_leave(self, facing: Facing) -> None:
        facing.signal_peer(signal.SIGUSR1)
        self._pause()

    def disconnect(self, facing: Facing) -> None:
        facing.end.interface.disconnect("disconnected by the soak")

    def delete(self, facing: Facing) -> None:
        facing.end.interface.delete()
        self._pause()
        facing.end.create(self._survivor.runtime)

    def _pause(self) -> None:
        self._survivor.run_for(self._numbers.choice((0.0, 0.001, 0.01, 0.05)))

    def check_reasons(self) -> None:
        """:raises Broken: a connection ended for a reason that nothing here gives."""
        for facing in self._survivor.facings:
            for reason in facing.end.reasons:
                if not reason.startswith(_REASONS) and not _PATIENCE.search(reason):
                    raise Broken(f"the {facing.role}'s connection ended: {reason}")


def soak(seconds: float, seed: int) -> int:
    """Run for so long; the exit status."""
    with Nursery() as nursery, Survivor(nursery, seed) as survivor:
        record = Soak(survivor, seed)
        started = time.monotonic()
        try:
            memory = _run(survivor, record, started, seconds)
        except Broken as broken:
            print(f"BROKEN after {time.monotonic() - started:.0f} s, seed {seed}: {broken}")
            return 1
        finally:
            _print(survivor, record, time.monotonic() - started)
        print(f"nothing lost, doubled or changed; {memory}")
        return 0


def _run(survivor: Survivor, record: Soak, started: float, seconds: float) -> str:
    survivor.settle()
    held, look = Held.now(), started
    warm = 0
    while (now := time.monotonic()) < started + seconds:
        record.trouble()
        survivor.run_for(record._numbers.expovariate(10))
        if now > look:
            look = now + _LOOK
            survivor.settle()
            survivor.check(held)
            record.check_reasons()
        if not warm and now > started + seconds / 5:
            warm = survivor.resident()
    survivor.settle()
    survivor.check(held)
    record.check_reasons()
    grown = survivor.resident() - warm if warm else 0
    if grown > _GROWTH:
        raise Broken(f"memory grew by {grown / (1 << 20):.1f} MiB since a fifth of the time")
    return (
        f"{held.fds} fds and {held.mappings} mappings at the start and at the end, "
        f"memory {survivor.resident() / (1 << 20):.1f} MiB, {grown / (1 << 20):+.1f} MiB since a fifth of the time"
    )


def _print(survivor: Survivor, record: Soak, seconds: float) -> None:
    print(f"{seconds:.0f} s, {sum(record.did.values())} troubles; the longest took {record.longest_gap:.2f} s to mend")
    for what, count in sorted(record.did.items()):
        print(f"  {count:6} x {what}")
    for facing in survivor.facings:
        print(
            f"{facing.role}: {facing.end.connections} connections, {facing.end.received} packets received and checked, "
            f"{facing.score} checked by its peers"
        )
        for reason, count in sorted(facing.end.reasons.items(), key=lambda item: -item[1]):
            print(f"  {count:6} x {reason}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=600.0, help="default 600")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers; default: another each time")
    arguments = parser.parse_args()
    logging.getLogger("memifrt").setLevel(logging.ERROR)  # peers that die in the middle of a handshake are the point
    return soak(arguments.seconds, arguments.seed or random.SystemRandom().randrange(1, 1 << 31))


if __name__ == "__main__":
    sys.exit(main())
