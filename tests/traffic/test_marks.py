"""Marks and their checks: the readable and the compiled code write the same bytes and count the same."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from memifrt.traffic import Stream, prepare, signature
from memifrt.traffic.prepare import Lane, Template
from memifrt.traffic.receiver import CompiledReceiver, LaneCheck, Receiver
from memifrt.types import Mode

compiled = pytest.mark.skipif(
    importlib.util.find_spec("memifrt._packets") is None,
    reason="memifrt._packets is not compiled here: install memifrt where there is a C compiler",
)
#: Streams whose packets differ in what the check value covers.
STREAMS = {
    "one size": Stream("Ether()/IP()/UDP()", size=64, fields=["ipv4.src=10.0.0.1..10.0.3.10"]),
    "nothing behind the headers": Stream("Ether()/IP()/UDP()", size=64, fcs=True),
    "sizes": Stream("Ether()/IP()/UDP()", size=(64, 65, 570, 101, 1518), fields=["udp.src=1..999"]),
    "fields behind the headers": Stream("Ether()/IP()/UDP()", size=(120, 121), fields=["@50:8=0..0xffffffff random"]),
    "odd fields": Stream("Ether()/IP()/UDP()", size=121, fields=["@43:3=0..0xffffff random seed 4"]),
    "IPv6": Stream("Ether()/IPv6()/UDP()", size=(90, 300)),
}


class Queue:
    """Gives packets as a receive queue does."""

    def __init__(self, packets: Sequence[bytes]) -> None:
        self._packets = list(packets)

    def recv_into(self, matrix: Any, lengths: Any) -> int:
        part, self._packets = self._packets[: len(lengths)], self._packets[len(lengths) :]
        for row, packet in enumerate(part):
            fits = packet[: matrix.shape[1]]
            matrix[row, : len(fits)] = np.frombuffer(fits, np.uint8)
            lengths[row] = len(packet)
        return len(part)


@pytest.fixture(params=["readable", pytest.param("compiled", marks=compiled)])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Receiver]]:
    """Each of both: what writes marks is it, too."""
    if request.param == "readable":
        monkeypatch.setattr(prepare, "write_marks", None)
        yield Receiver
    else:
        yield CompiledReceiver


def lane_of(stream: Stream, number: int) -> tuple[Lane, list[Template]]:
    templates = stream.templates(Mode.ETHERNET, mark=True)
    lane = Lane(templates, stream.varied, number=number)
    lane.begin(77)
    return lane, templates


def taken(kind: type[Receiver], lanes: dict[int, LaneCheck], packets: Sequence[bytes], width: int) -> Receiver:
    """A receiver that has taken packets, at a time of 5 s."""
    made = kind(width, lanes)
    made.begin(77)
    queue: Any = Queue(packets)
    while made.poll(queue):
        pass
    made.finish()
    return made


def figures(made: Receiver) -> dict[str, Any]:
    found: dict[str, Any] = {"foreign": made.foreign}
    for number, lane in made.lanes.items():
        names = ["received", "received_bytes", "duplicated", "reordered", "corrupted"]
        names += ["unidentified", "repeated", "arrived", "intact"]
        latency = None if lane.recorder is None else lane.recorder.latency()
        found[str(number)] = (
            [int(getattr(lane.tally, name)) for name in names],
            None if latency is None else latency.counts.tolist(),
        )
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = SimpleNamespace(monotonic_ns=lambda: 5_000_000_000)
    monkeypatch.setattr("memifrt.traffic.receiver.time", stopped)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("name", STREAMS)
def test_packets_that_nobody_changes_are_whole_and_in_order(name: str, kind: type[Receiver]) -> None:
    lane, templates = lane_of(STREAMS[name], 3)
    packets = lane.packets(5000, now=4_999_990_000) + lane.packets(5000, now=4_999_000_000)
    check = LaneCheck(templates, STREAMS[name].varied)
    made = taken(kind, {3: check}, packets, lane.width)
    assert figures(made)["foreign"] == 0
    assert figures(made)["3"][0] == [10_000, sum(map(len, packets)), 0, 0, 0, 0, 0, 10_000, 10_000]
    latency = None if check.recorder is None else check.recorder.latency()
    assert latency is not None
    assert latency.count == 10_000
    assert [latency.min, latency.max] == pytest.approx([10, 1000], 0.01)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("name", STREAMS)
def test_every_changed_byte_behind_the_headers_is_noticed(name: str, kind: type[Receiver]) -> None:
    lane, templates = lane_of(STREAMS[name], 3)
    packets = lane.packets(20)
    changed = []
    for packet in packets:
        for at in range(templates[0].covered, len(packet)):
            if not len(packet) - signature.SIZE <= at < len(packet) - signature.SIZE + 4:  # another run's or lane's
                changed.append(packet[:at] + bytes([packet[at] ^ 0x55]) + packet[at + 1 :])
    check = LaneCheck(templates, STREAMS[name].varied)
    made = taken(kind, {3: check}, changed, lane.width)
    found = figures(made)["3"][0]
    assert (found[:2], found[4], found[-1]) == ([len(changed), sum(map(len, changed))], len(changed), 0)
    if not name.endswith("fields") and "fields behind" not in name:
        # The 4 bytes of the number and the 2 of the check value: nobody can tell which packet it was.
        assert found[-2] == check.tally.arrived == 20
        assert check.tally.unidentified == 6 * 20


#: Where a damaged bit is, as bytes and bit from the begin of the mark.
DAMAGES = {
    "t": (signature.TIME + 2, 1),
    "s": (signature.SEQUENCE + 3, 16),
    "c": (signature.CHECK, 4),
    "k": (2, 2),
    "b": (-1, 1),
}


def damaged(packet: bytes, kind: str) -> bytes:
    """A packet with one bit changed: in the time, the sequence number, the check value, the key, or the body."""
    if kind == "n":  # several bits of the number: nobody can tell what it was
        at = len(packet) - signature.SIZE + signature.SEQUENCE
        return packet[:at] + b"\xa5\x5a\x99\x66" + packet[at + 4 :]
    offset, bit = DAMAGES[kind]
    at = len(packet) - signature.SIZE + offset
    return packet[:at] + bytes([packet[at] ^ bit]) + packet[at + 1 :]


#: What comes of the packets 0 to 4, by number and damage. What is counted: received, duplicated, reordered, corrupted,
#: unidentified, lost, intact and foreign.
PATHS = {
    "0 1 2 3 4": (5, 0, 0, 0, 0, 0, 5, 0),
    "0 1 3 4": (4, 0, 0, 0, 0, 1, 4, 0),
    "0 1 1 2 3 4 1": (7, 2, 0, 0, 0, 0, 5, 0),
    "0 2 1 4 3": (5, 0, 2, 0, 0, 0, 5, 0),
    "0 2 1 1 3 4": (6, 1, 1, 0, 0, 0, 5, 0),
    # one corrupted packet, whatever bit it is
    "0 1t 2 3 4": (5, 0, 0, 1, 0, 0, 4, 0),
    "0 1s 2 3 4": (5, 0, 0, 1, 0, 0, 4, 0),
    "0 1c 2 3 4": (5, 0, 0, 1, 0, 0, 4, 0),
    "0 1b 2 3 4": (5, 0, 0, 1, 0, 0, 4, 0),
    "0 1s 2s 3c 4": (5, 0, 0, 3, 0, 0, 2, 0),
    "0s 1s 2c 3s 4b": (5, 0, 0, 5, 0, 0, 0, 0),
    # a mark that names no stream, and one that names no packet
    "0 1k 2 3 4": (4, 0, 0, 0, 0, 1, 4, 1),
    "0 1n 2 3 4": (5, 0, 0, 1, 1, 1, 4, 0),
    # copies of which one or both are corrupted, in each order
    "0 1 1t 2 3 4": (6, 1, 0, 1, 0, 0, 5, 0),
    "0 1t 1 2 3 4": (6, 1, 0, 1, 0, 0, 5, 0),
    "0 1t 1t 2 3 4": (6, 1, 0, 2, 0, 0, 4, 0),
    "0 1t 1 1 2 3 4": (7, 2, 0, 1, 0, 0, 5, 0),
    "0 1 2 3 4 1s": (6, 1, 0, 1, 0, 0, 5, 0),
    "0 1b 2 3 4 1b 1": (7, 2, 0, 2, 0, 0, 5, 0),
    "0 1 1n 2 3 4": (6, 0, 0, 1, 1, 0, 5, 0),
    # and another packet is lost: a copy does not take its place
    "0 1 1t 2 4": (5, 1, 0, 1, 0, 1, 4, 0),
    "0 1t 1 2 4": (5, 1, 0, 1, 0, 1, 4, 0),
    "0 1 1k 2 4": (4, 0, 0, 0, 0, 1, 4, 1),
    "0 1 1n 2 4": (5, 0, 0, 1, 1, 1, 4, 0),
    # late and corrupted
    "0 2 1t 3 4": (5, 0, 1, 1, 0, 0, 4, 0),
    "0 2t 1 3 4": (5, 0, 1, 1, 0, 0, 4, 0),
    "0 2 1t 1 4": (5, 1, 1, 1, 0, 1, 4, 0),
}


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("path", PATHS)
def test_loss_copies_order_and_damage_are_told_apart_in_each_combination(path: str, kind: type[Receiver]) -> None:
    stream = Stream("Ether()/IP()/UDP()", size=80)
    lane, templates = lane_of(stream, 3)
    packets = lane.packets(5)
    came = [damaged(packets[int(word[0])], word[1:]) if word[1:] else packets[int(word)] for word in path.split()]
    for step in (1, len(came)):
        check = LaneCheck(templates, ())
        made = kind(lane.width, {3: check})
        made.begin(77)
        for start in range(0, len(came), step):
            queue: Any = Queue(came[start : start + step])
            made.poll(queue)
            made.finish()
        tally = check.tally
        found = (tally.received, tally.duplicated, tally.reordered, tally.corrupted, tally.unidentified)
        assert (*found, 5 - tally.arrived, tally.intact, made.foreign) == PATHS[path]


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("seed", range(3))
def test_a_path_that_does_everything_is_reported_as_it_was(seed: int, kind: type[Receiver]) -> None:
    chance = random.Random(seed)
    stream = Stream("Ether()/IP()/UDP()", size=90, fields=["udp.src=1..999"])
    lane, templates = lane_of(stream, 3)
    packets = lane.packets(20_000)
    timed: list[tuple[float, int, bytes]] = []
    lost = copies = corrupted = 0
    for number, packet in enumerate(packets):
        first = chance.random() < 0.02
        both = chance.random() < 0.05
        if first and not both:
            lost += 1
            continue
        copies += both and not first
        for at in (number, number + 1.5)[first : 1 + both]:
            bad = chance.random() < 0.03
            corrupted += bad
            late = 9 * (chance.random() < 0.01)
            timed.append((at + late, number, damaged(packet, chance.choice("tsbc")) if bad else packet))
    timed.sort()
    check = LaneCheck(templates, stream.varied)
    taken(kind, {3: check}, [packet for _, _, packet in timed], lane.width)
    numbers = [number for _, number, _ in timed]
    largest, seen, reordered = -1, set(), 0
    for number in numbers:
        reordered += number not in seen and number < largest
        seen.add(number)
        largest = max(largest, number)
    tally = check.tally
    assert (tally.received, tally.corrupted, tally.unidentified) == (len(timed), corrupted, 0)
    # A flipped bit of a number or a check value beside a late packet may be taken for the packet next to it.
    assert 20_000 - tally.arrived == pytest.approx(lost, abs=5)
    assert tally.duplicated == pytest.approx(copies, abs=5)
    assert tally.reordered == pytest.approx(reordered, abs=20)


@pytest.mark.usefixtures("clock")
def test_packets_of_other_runs_and_lanes_and_of_other_lengths_are_foreign(kind: type[Receiver]) -> None:
    lane, templates = lane_of(STREAMS["one size"], 3)
    own = lane.packets(2)
    lane.begin(78)
    other, unknown = lane.packets(2), lane_of(STREAMS["one size"], 9)[0].packets(3)
    rest = [b"", b"x" * 17, bytes(60), b"y" * 5000]
    made = taken(kind, {3: LaneCheck(templates, ())}, [*other, own[0], *unknown, *rest, own[1]], lane.width)
    assert figures(made)["foreign"] == len([*other, *unknown, *rest])
    assert figures(made)["3"][0][0] == 2


@compiled
@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("seed", range(6))
def test_both_count_the_same_whatever_comes(seed: int) -> None:
    chance = random.Random(seed)
    streams = list(STREAMS.values())
    made = {number: lane_of(stream, number) for number, stream in enumerate(streams)}
    packets = []
    for _ in range(60):
        lane, _ = made[chance.randrange(len(streams))]
        packets += lane.packets(chance.randrange(1, 90), now=chance.randrange(1 << 40))
    packets = [packet for packet in packets if chance.random() > 0.05]
    for _ in range(150):
        at = chance.randrange(len(packets) - 60)
        packet = bytearray(packets[at])
        spot = chance.randrange(len(packet))
        packet[spot] ^= chance.randrange(256)
        packets[at] = bytes(packet)
        packets.insert(at + chance.randrange(60), packets[chance.randrange(at + 1)])
        other = at + chance.randrange(60)
        packets[at], packets[other] = packets[other], packets[at]
        cut = packets[at]
        packets[at] = chance.choice([cut, cut, cut[:-4], cut[:4] + b"tags" + cut[4:]])
    width = max(lane.width for lane, _ in made.values())
    found = []
    for each in (Receiver, CompiledReceiver):
        lanes = {number: LaneCheck(made[number][1], streams[number].varied) for number in made}
        found.append(figures(taken(each, lanes, packets, width)))
    assert found[0] == found[1]


@compiled
@pytest.mark.parametrize("name", STREAMS)
def test_both_write_the_same_marks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = STREAMS[name].with_(fields=[field.name + "=1..250" for field in STREAMS[name].varied])
    fast = lane_of(stream, 65535)[0]
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "write_marks", None)
        slow = lane_of(stream, 65535)[0]
    for now in (0, 123456789, 2**63 - 1):
        assert fast.packets(3000, now) == slow.packets(3000, now)


@compiled
def test_a_packet_that_is_stamped_again_keeps_its_number() -> None:
    lane, _ = lane_of(STREAMS["one size"], 0)
    (first,) = lane.packets(1, 16)
    lane.begin(77)
    assert lane._marks is not None
    lane._marks.stamp(1, 5, 999)
    second, third = lane.packets(2, 16)
    at = len(first) - signature.SIZE + signature.SEQUENCE
    assert [packet[at : at + 4] for packet in (first, second, third)] == [b"\0\0\0\0", b"\0\0\0\0", b"\1\0\0\0"]


@compiled
def test_arrays_that_do_not_fit_are_refused() -> None:
    from memifrt import _packets

    matrix, lengths = np.zeros((4, 64), np.uint8), np.full(4, 64, np.uint32)
    for first, last in ((-1, 2), (3, 2), (0, 5)):
        with pytest.raises(ValueError, match=f"there are no rows from {first} to {last}"):
            _packets.write_marks(matrix, lengths, first, last, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="there are fewer sums than rows"):
        _packets.write_marks(matrix, lengths, 0, 4, 0, 0, np.zeros(3, np.uint32), 0)
    with pytest.raises(ValueError, match="the numbers have 8 bytes, not 4"):
        _packets.check_marks(matrix, np.zeros(4, np.uint64), 4, 0, 0, {})
    with pytest.raises(ValueError, match="there are no 5 rows"):
        _packets.check_marks(matrix, lengths, 5, 0, 0, {})
    with pytest.raises(ValueError, match="row 0 has 65 bytes of 64"):
        _packets.write_marks(matrix, np.full(4, 65, np.uint32), 0, 4, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="the rows must be a matrix of bytes"):
        _packets.check_marks(lengths, lengths, 1, 0, 0, {})
