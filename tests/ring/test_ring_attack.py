"""A peer that rewrites the shared memory while packets pass, and how much work it can make of one call."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest

from memifrt import ConfigError
from memifrt.errors import RingViolation
from memifrt.ring import RingImplementation
from memifrt.types import MAX_PACKET_SIZE, MAX_RECEIVED_BUFFER
from tests.lib.rings import IMPLEMENTATIONS, NEXT, Descriptor, Ends, name_of
from tests.lib.support import DEADLINE

#: Seconds that one attack takes. ``python -m tests.lib.attack`` takes its time.
_SECONDS = 1.0


@pytest.mark.parametrize("ring", ["native", "python"])
@pytest.mark.parametrize("role", ["master", "slave"])
def test_peer_that_rewrites_the_memory_while_packets_pass_gets_disconnects_and_nothing_else(
    role: str, ring: str
) -> None:
    """In a process of its own: what it is to show is that the process lives."""
    attack = [sys.executable, "-m", "tests.lib.attack", f"--role={role}", f"--ring={ring}", f"--seconds={_SECONDS}"]
    done = subprocess.run(attack, capture_output=True, text=True, timeout=4 * DEADLINE, check=False)
    assert done.returncode == 0, f"status {done.returncode}:\n{done.stdout}\n{done.stderr}"


# --- how much work one call can be ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=IMPLEMENTATIONS, ids=name_of)
def implementation(request: pytest.FixtureRequest) -> RingImplementation:
    chosen: RingImplementation = request.param
    return chosen


@pytest.fixture
def ends(implementation: RingImplementation) -> Ends:
    """Rings that have room for more than a packet may have."""
    return Ends(implementation, log2_size=9, buffer_size=1024)


def overlap(ends: Ends, count: int, length: int, flags: int = 0) -> None:
    """The slave sends ``count`` buffers that are all the same memory."""
    for slot in range(count):
        ends.s2m.raw[slot] = Descriptor(flags, ends.buffer_region, length, 0)
    ends.s2m.raw.head = count


def calls(ends: Ends, limit: int) -> list[Callable[[], object]]:
    """All the ways to receive on the master's side."""
    rx, tx = ends.crossing("master")
    rows, lengths = memoryview(bytearray(limit)).cast("B", (limit, 1)), memoryview(bytearray(4 * limit)).cast("I")
    return [
        partial(rx.recv, limit),
        partial(rx.burst, limit),
        partial(tx.relay, rx, limit),
        partial(rx.recv_into, rows, lengths),
    ]


def test_buffer_of_a_slave_has_a_limit_however_large_its_region_is(ends: Ends) -> None:
    overlap(ends, 2, MAX_RECEIVED_BUFFER)
    assert [len(packet) for packet in ends.s2m.rx.recv(2)] == [MAX_RECEIVED_BUFFER] * 2
    ends.s2m.raw[2] = Descriptor(0, ends.buffer_region, MAX_RECEIVED_BUFFER + 1, 0)
    ends.s2m.raw.head = 3
    for call in calls(ends, 8):
        with pytest.raises(RingViolation, match=f"^rx ring 0: descriptor 2 has 65537 bytes.* {MAX_RECEIVED_BUFFER}$"):
            call()
    assert ends.s2m.rx.counters.bad_descriptors == 4


@pytest.mark.parametrize("limit", [1, 256, 300, 512])
def test_chain_that_is_the_same_memory_again_and_again_has_a_limit(ends: Ends, limit: int) -> None:
    overlap(ends, 300, MAX_RECEIVED_BUFFER, NEXT)
    for call in calls(ends, limit):
        said = f"^rx ring 0: descriptor 256 extends a packet to 16842752 .* {MAX_PACKET_SIZE}$"
        with pytest.raises(RingViolation, match=said):
            call()
    assert ends.s2m.rx.counters.packets == 0


@pytest.mark.parametrize("limit", [1, 300])
def test_chain_of_just_the_limit_is_received(ends: Ends, limit: int) -> None:
    overlap(ends, 258, MAX_RECEIVED_BUFFER, NEXT)
    ends.s2m.raw.change(255, flags=0)
    ends.s2m.raw.change(257, flags=0)
    assert len(ends.s2m.rx.recv(limit)[0]) == MAX_PACKET_SIZE


def test_posted_buffer_may_be_larger_than_one_that_is_received(ends: Ends) -> None:
    """It is room for what we choose to write."""
    ends.m2s.raw.change(0, offset=0, length=4 * MAX_RECEIVED_BUFFER)
    with ends.m2s.tx.alloc(1) as burst:
        assert len(burst[0]) == 4 * MAX_RECEIVED_BUFFER


@pytest.mark.parametrize("sender", ["slave", "master"])
def test_packet_beyond_the_limit_is_not_sent(ends: Ends, sender: str) -> None:
    """The other end would have to take it for an attack."""
    tx = ends.lane(sender).tx
    size = MAX_PACKET_SIZE + 1
    matrix, lengths = memoryview(bytes(size)).cast("B", (1, size)), memoryview(bytearray(4)).cast("I")
    lengths[0] = size
    for call in (partial(tx.send, [bytes(size)]), partial(tx.alloc, 1, size), partial(tx.send_from, matrix, lengths)):
        with pytest.raises(ConfigError, match=f"of {size} bytes; a packet has at most {MAX_PACKET_SIZE}$"):
            call()
    assert tx.free() == ends.size
