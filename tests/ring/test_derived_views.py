"""What is made of a burst's views must not outlive the burst in silence: it would show another packet's bytes."""

from __future__ import annotations

import ctypes
import pickle
import struct
from collections.abc import Callable, Iterator

import pytest

from memifrt.ring import Burst
from tests.lib.rings import IMPLEMENTATIONS, Ends, Lane, fill, name_of


def _numpy_of(view: memoryview) -> object:
    return pytest.importorskip("numpy", reason="NumPy is not installed: pip install numpy").frombuffer(view, "u1")


def _array_of(view: memoryview) -> object:
    return pytest.importorskip("numpy", reason="NumPy is not installed: pip install numpy").asarray(view)


FORMS: dict[str, Callable[[memoryview], object]] = {
    "slice": lambda view: view[1:3],
    "slice of a slice": lambda view: view[1:][:2],
    "empty slice": lambda view: view[:0],
    "cast": lambda view: view.cast("H"),
    "two dimensions": lambda view: view.cast("B", (2, 2)),
    "memoryview": memoryview,
    "read-only view": lambda view: view.toreadonly(),
    "pickle buffer": pickle.PickleBuffer,
    "pickle buffer of a slice": lambda view: pickle.PickleBuffer(view[1:]),
    "struct iterator": lambda view: struct.iter_unpack("B", view),
    "ctypes array": (ctypes.c_char * 4).from_buffer,
    "numpy.frombuffer": _numpy_of,
    "numpy.asarray": _array_of,
    "numpy of a slice": lambda view: _numpy_of(view[1:]),
}

#: What ends a received burst whose buffers all go back to the peer.
RECEIVED_ENDS: dict[str, Callable[[Lane, Burst], object]] = {
    "close": lambda lane, burst: burst.close(),
    "block": lambda lane, burst: burst.__exit__(None, None, None),
    "refill of all": lambda lane, burst: lane.rx.refill(),
    "refill by count": lambda lane, burst: lane.rx.refill(2),
}


@pytest.fixture(params=IMPLEMENTATIONS, ids=name_of)
def ends(request: pytest.FixtureRequest) -> Ends:
    return Ends(request.param)


@pytest.fixture(params=["s2m", "m2s"])
def lane(ends: Ends, request: pytest.FixtureRequest) -> Iterator[Lane]:
    chosen: Lane = getattr(ends, request.param)
    yield chosen
    ends.check_canaries()


@pytest.mark.parametrize("end", RECEIVED_ENDS)
@pytest.mark.parametrize("form", FORMS)
def test_end_of_a_received_burst_reports_what_is_still_held(lane: Lane, form: str, end: str) -> None:
    lane.tx.send(fill(2, 4))
    burst = lane.rx.burst(2)
    derived = FORMS[form](burst[1])
    with pytest.raises(BufferError, match="still exported"):
        RECEIVED_ENDS[end](lane, burst)
    assert lane.tx.free() == 8, "the buffers are the peer's all the same"
    del derived
    burst.close()


@pytest.mark.parametrize("form", FORMS)
def test_derived_view_that_is_dropped_in_time_is_no_fault(lane: Lane, form: str) -> None:
    for _ in range(3):
        lane.tx.send(fill(2, 4))
        with lane.rx.burst(2) as burst:
            for packet in burst:
                derived = FORMS[form](packet)
                del derived
    assert lane.tx.free() == 8


@pytest.mark.parametrize("form", FORMS)
def test_transmission_is_refused_while_something_could_still_change_the_packet(lane: Lane, form: str) -> None:
    burst = lane.tx.alloc(2, 4)
    derived = FORMS[form](burst[1])
    assert lane.tx.transmit(burst, 1) == 1
    with pytest.raises(BufferError, match="still exported"):
        lane.tx.transmit(burst)
    assert burst.sent == 1, "nothing more is published"
    del derived
    assert lane.tx.transmit(burst) == 1
    assert len(lane.rx.recv(8)) == 2


def test_allocation_that_is_given_up_reports_what_is_still_held(lane: Lane) -> None:
    burst = lane.tx.alloc(2, 4)
    derived = burst[0][1:]
    with pytest.raises(BufferError):
        burst.close()
    assert lane.tx.free() == 8
    del derived


def test_rewind_is_refused_while_something_is_held(lane: Lane) -> None:
    first, second = lane.tx.alloc(2, 4), lane.tx.alloc(2, 4)
    derived = second[1][1:]
    with pytest.raises(BufferError):
        lane.tx.rewind(first, 1)
    assert lane.tx.free() == 4, "nothing is given back"
    del derived
    lane.tx.rewind(first, 1)
    assert lane.tx.free() == 7


def test_burst_is_not_put_back_while_something_is_held(lane: Lane) -> None:
    lane.tx.send(fill(2, 4))
    burst = lane.rx.burst(2)
    derived = burst[0][1:]
    with pytest.raises(BufferError):
        lane.rx.untake(burst)
    del derived
    lane.rx.untake(burst)
    assert lane.rx.recv(8) == fill(2, 4)


@pytest.mark.parametrize("role", ["slave", "master"])
def test_derived_view_of_a_forwarded_packet_is_reported_at_the_end_of_the_burst(ends: Ends, role: str) -> None:
    rx, tx = ends.crossing(role)
    (ends.m2s if role == "slave" else ends.s2m).tx.send([b"packet"])
    burst = rx.burst(1)
    derived = burst[0][1:]
    assert tx.forward(burst) == 1
    with pytest.raises(BufferError):
        burst.close()
    del derived


def test_burst_can_be_used_again_once_what_was_held_is_dropped(lane: Lane) -> None:
    """A refusal ends the views: new ones are taken, and watched as well."""
    burst = lane.tx.alloc(1, 4)
    derived = burst[0][1:]
    for _ in range(2):
        with pytest.raises(BufferError):
            lane.tx.transmit(burst)
    burst[0][:] = b"data"
    again = burst[0][1:]
    del derived
    with pytest.raises(BufferError):
        lane.tx.transmit(burst)
    del again
    lane.tx.transmit(burst)
    assert lane.rx.recv(1) == [b"data"]


def test_error_of_the_block_is_not_hidden_by_the_views_that_its_frames_hold(lane: Lane) -> None:
    def parse(packet: memoryview) -> None:
        header = packet[:2]
        raise KeyError(bytes(header))

    lane.tx.send(fill(1, 4))
    with pytest.raises(KeyError), lane.rx.burst(1) as burst:
        parse(burst[0])
    assert lane.tx.free() == 8


def test_mapping_stays_as_long_as_a_derived_view(lane: Lane) -> None:
    lane.tx.send([b"data"])
    burst = lane.rx.burst(1)
    derived = burst[0][1:]
    with pytest.raises(BufferError):
        burst.close()
    del burst
    assert bytes(derived) == b"ata"
