"""What a process holds: fds, mappings of regions, resident memory. Flat, or something leaks."""

from __future__ import annotations

import gc
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

#: Seconds until what is still held is held for good.
_PATIENCE = 5.0


def open_fds() -> dict[int, str]:
    """Every open fd and what it is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the fd of the listing itself
            continue
    return found


def mappings() -> int:
    """How many mappings of regions there are: memfds that memifrt, or a scripted peer, made."""
    with open("/proc/self/maps") as maps:
        return sum("memif region" in line for line in maps)


def resident_bytes(pid: int | str = "self") -> int:
    """Memory of a process that is in use right now."""
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def lowest_free_fd() -> int:
    """The number that the next fd will have: a quick look for leaks."""
    fd = os.dup(0)
    os.close(fd)
    return fd


def wait_for(predicate: Callable[[], bool]) -> bool:
    """Whether it holds, now or soon: a file whose close may take its time is closed by another thread."""
    deadline = time.monotonic() + _PATIENCE
    while not predicate():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.0002)
    return True


@dataclass(frozen=True)
class Held:
    """What a process holds at one moment."""

    fds: dict[int, str]
    mappings: int

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        return cls(open_fds(), mappings())

    def check(self) -> None:
        """:raises AssertionError: something is held that was not held then, and is not given back."""
        wait_for(lambda: not self._left(Held.now()))
        left = self._left(Held.now())
        assert not left, f"leaked: {left}"

    def _left(self, now: Held) -> list[str]:
        left = [f"fd {fd}, {what}" for fd, what in now.fds.items() if fd not in self.fds]
        if now.mappings > self.mappings:
            left.append(f"{now.mappings} mappings of regions where {self.mappings} were")
        return left
