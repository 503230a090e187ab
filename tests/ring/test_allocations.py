"""The compiled rings' fast paths allocate as often for many packets as for few, and leave nothing behind.

Counts allocations with CPython's own test hook, which lets the n-th one fail: what succeeds needs no more than n.
"""

from __future__ import annotations

import gc
import itertools
import sys
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from memifrt.ring import load
from tests.lib.rings import Ends, Lane

_testcapi = pytest.importorskip("_testcapi", reason="this Python comes without its own test modules")

FEW, MANY = 4, 256
_SIZE = 32


@dataclass
class Scene:
    """A slave and a master whose rings are idle, and everything that an operation needs, made beforehand."""

    count: int
    ends: Ends = field(init=False)
    packets: list[bytes] = field(init=False)
    matrix: memoryview = field(init=False)
    lengths: array[int] = field(init=False)

    def __post_init__(self) -> None:
        self.ends = Ends(load("native"), log2_size=9, buffer_size=_SIZE)
        self.packets = [b"packet"] * self.count
        self.matrix = memoryview(bytearray(self.count * _SIZE)).cast("B", (self.count, _SIZE))
        self.lengths = array("I", [6] * self.count)

    def fill(self, *lanes: Lane) -> None:
        for lane in lanes:
            assert lane.tx.send(self.packets) == self.count

    def chain(self, lane: Lane) -> None:
        """Chains of two buffers."""
        for _ in range(self.count // 2):
            lane.tx.send([bytes(_SIZE + 1)])


Operation = Callable[[], object]


def swap(scene: Scene) -> Operation:
    scene.fill(scene.ends.m2s)
    return lambda: scene.ends.s2m.tx.relay(scene.ends.m2s.rx, scene.count)


def swap_chains(scene: Scene) -> Operation:
    scene.chain(scene.ends.m2s)
    return lambda: scene.ends.s2m.tx.relay(scene.ends.m2s.rx, scene.count)


def copy(scene: Scene) -> Operation:
    scene.fill(scene.ends.s2m)
    return lambda: scene.ends.m2s.tx.relay(scene.ends.s2m.rx, scene.count)


def forward_swap(scene: Scene) -> Operation:
    scene.fill(scene.ends.m2s)
    burst = scene.ends.m2s.rx.burst(scene.count)
    return lambda: scene.ends.s2m.tx.forward(burst)


def forward_copy(scene: Scene) -> Operation:
    scene.fill(scene.ends.s2m)
    burst = scene.ends.s2m.rx.burst(scene.count)
    return lambda: scene.ends.m2s.tx.forward(burst)


def take_and_close(scene: Scene) -> Operation:
    scene.fill(scene.ends.s2m)
    return lambda: scene.ends.s2m.rx.burst(scene.count).close()


def recv_into(scene: Scene) -> Operation:
    scene.fill(scene.ends.m2s)
    return lambda: scene.ends.m2s.rx.recv_into(scene.matrix, scene.lengths)


def recv_chains_into(scene: Scene) -> Operation:
    scene.chain(scene.ends.s2m)
    return lambda: scene.ends.s2m.rx.recv_into(scene.matrix, scene.lengths)


def send_from(scene: Scene) -> Operation:
    return lambda: scene.ends.s2m.tx.send_from(scene.matrix, scene.lengths)


def send(scene: Scene) -> Operation:
    return lambda: scene.ends.m2s.tx.send(scene.packets)


def recv(scene: Scene) -> Operation:
    scene.fill(scene.ends.s2m)
    return lambda: scene.ends.s2m.rx.recv(scene.count)


FAST = [
    swap,
    swap_chains,
    copy,
    forward_swap,
    forward_copy,
    take_and_close,
    recv_into,
    recv_chains_into,
    send_from,
    send,
]


def allocations(prepare: Callable[[Scene], Operation], count: int) -> int:
    """How often an operation on ``count`` buffers allocates Python memory."""
    prepare(Scene(count))()  # what is made once is made now
    for number in range(10_000):
        operation = prepare(Scene(count))
        _testcapi.set_nomemory(number)
        try:
            operation()
        except MemoryError:
            continue
        finally:
            _testcapi.remove_mem_hooks()
        return number
    raise AssertionError("it allocates without end")


@pytest.mark.parametrize("prepare", FAST)
def test_allocations_do_not_grow_with_the_burst(prepare: Callable[[Scene], Operation]) -> None:
    few = allocations(prepare, FEW)
    assert allocations(prepare, MANY) == few


def test_count_sees_the_bytes_that_recv_returns() -> None:
    assert allocations(recv, MANY) - allocations(recv, FEW) >= MANY - FEW


@pytest.mark.parametrize("prepare", [*FAST, recv])
def test_nothing_stays_allocated(prepare: Callable[[Scene], Operation]) -> None:
    """A round leaves no more blocks than the objects that were there before it."""

    def rounds() -> int:
        for _ in range(50):
            prepare(Scene(FEW))()
        gc.collect()
        return sys.getallocatedblocks()

    rounds()
    # A leak shows in each of them. Another thread, pytest-xdist's for one, may allocate something during one or two.
    counts = [rounds() for _ in range(4)]
    assert min(after - before for before, after in itertools.pairwise(counts)) < 50
