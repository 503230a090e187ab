"""Runs against peers in this process, some of which drop, duplicate, reorder or corrupt on purpose."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from memifrt import ConfigError, Interface, Runtime
from memifrt.errors import PollCancelled
from memifrt.traffic import Generator, Report, Stream
from memifrt.traffic import generator as module
from memifrt.traffic.view import summary, table
from tests.lib.support import wait_until

FIELDS = ["ipv4.src=10.0.0.1..10.0.3.254", "udp.src=1024..65535 random seed 1"]
STREAM = Stream("Ether()/IP()/UDP()", size=68, fields=FIELDS)
#: What a peer makes of the packets that it has received together.
Impair = Callable[[list[bytes]], list[bytes]]


def unchanged(packets: list[bytes]) -> list[bytes]:
    return packets


class Peer:
    """Sends back what it receives, on the same or on another interface."""

    def __init__(self, impair: Impair = unchanged) -> None:
        self.impair = impair
        self.received: list[bytes] = []
        self.target: Interface | None = None

    def on_interrupt(self, interface: Interface, qid: int) -> None:
        packets = interface.rx_queues[qid].recv()
        self.received += packets
        made = self.impair(packets)
        target = self.target or interface
        if made and target.tx_queues:
            target.tx_queues[qid % len(target.tx_queues)].send(made)


def device(runtime: Runtime, socket: str, peer: Peer, **options: Any) -> tuple[Interface, Interface]:
    """An interface for the generator, and that of its peer."""
    ours = runtime.create_interface(socket=socket, role="master", rx_mode="polling")
    theirs = runtime.create_interface(socket=socket, role="slave", on_interrupt=peer.on_interrupt, **options)
    wait_until(lambda: ours.connected and theirs.connected, runtime)
    return ours, theirs


def generator(runtime: Runtime, socket: str, peer: Peer, streams: Any = STREAM, **options: Any) -> Generator:
    queues = options.pop("device_queues", 1)
    ours, _ = device(runtime, socket, peer, queues=queues)
    return Generator(ours, streams, poll=lambda: runtime.poll_event(0), **options)


# --- what comes back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 68, 69, 200, 9000, "imix", (64, 1518)], ids=str)
def test_nothing_is_lost_or_wrong_where_all_is_sent_back(runtime: Runtime, socket_name: str, size: Any) -> None:
    report = generator(runtime, socket_name, Peer(), STREAM.with_(size=size)).run(count=3000)
    total = report.total
    assert (total.offered, total.sent, total.received) == (3000, 3000, 3000)
    assert (total.lost, total.duplicated, total.reordered, total.corrupted, report.foreign) == (0, 0, 0, 0, 0)
    assert total.received_bytes == total.sent_bytes
    assert total.latency is not None
    assert total.latency.count == 3000
    assert 0 < total.latency.p50 <= total.latency.p99 <= total.latency.p999 <= total.latency.max
    assert report.ended == "complete"


def test_the_packets_are_those_of_the_stream(runtime: Runtime, socket_name: str) -> None:
    peer = Peer()
    generator(runtime, socket_name, peer, check=False).run(count=500)
    assert len(peer.received) == 500
    for index, data in enumerate(peer.received):
        packet = Ether(data)
        assert len(data) == 64
        assert packet[IP].src == f"10.0.{(index + 1) >> 8}.{(index + 1) & 255}"
        assert packet[UDP].sport >= 1024


def test_a_drop_is_a_loss(runtime: Runtime, socket_name: str) -> None:
    counter = iter(range(10**6))
    report = generator(runtime, socket_name, Peer(lambda packets: [p for p in packets if next(counter) % 10])).run(
        count=2000, settle=0.05
    )
    assert (report.total.lost, report.total.received) == (200, 1800)
    assert (report.total.duplicated, report.total.reordered, report.total.corrupted) == (0, 0, 0)
    assert report.total.loss_ratio == 0.1


def test_a_packet_twice_is_a_duplicate(runtime: Runtime, socket_name: str) -> None:
    counter = iter(range(10**6))
    report = generator(
        runtime, socket_name, Peer(lambda packets: [p for p in packets for _ in range(2 - bool(next(counter) % 20))])
    ).run(count=2000)
    assert (report.total.duplicated, report.total.received, report.total.lost) == (100, 2100, 0)
    assert report.total.reordered == 0


def test_a_late_packet_is_reordered(runtime: Runtime, socket_name: str) -> None:
    def swap(packets: list[bytes]) -> list[bytes]:
        made = list(packets)
        for index in range(0, len(made) - 1, 10):
            made[index], made[index + 1] = made[index + 1], made[index]
            swaps.append(index)
        return made

    swaps: list[int] = []
    report = generator(runtime, socket_name, Peer(swap)).run(count=2000)
    assert report.total.reordered == len(swaps) > 0
    assert (report.total.lost, report.total.duplicated, report.total.corrupted) == (0, 0, 0)


@pytest.mark.parametrize("size", [64, 68, 69, 101, 400, 1518, "imix"], ids=str)
@pytest.mark.parametrize("field", [(), ("@42:2=0..65535",)], ids=["constant", "varying payload"])
def test_a_flipped_bit_behind_the_headers_is_a_corruption(
    runtime: Runtime, socket_name: str, size: Any, field: tuple[str, ...]
) -> None:
    if size in (64, "imix") and field:
        size = 70  # 64 has no byte for it
    made = random.Random(1)
    flipped = []

    def flip(packets: list[bytes]) -> list[bytes]:
        changed = []
        for packet in packets:
            if made.random() < 0.2:
                data = bytearray(packet)
                # Not the first 4 bytes of the mark: with them, the packet is not known as ours.
                places = [*range(42, len(data) - 18), *range(len(data) - 14, len(data))]
                data[made.choice(places)] ^= 1 << made.randrange(8)
                flipped.append(packet)
                packet = bytes(data)
            changed.append(packet)
        return changed

    stream = STREAM.with_(size=size, fields=[*FIELDS, *field])
    report = generator(runtime, socket_name, Peer(flip), stream).run(count=1500)
    assert report.total.corrupted == len(flipped) > 0
    assert (report.total.lost, report.total.duplicated, report.total.reordered) == (0, 0, 0)
    assert report.total.latency is not None
    assert report.total.latency.count == 1500 - len(flipped)


def test_what_a_device_may_change_is_no_corruption(runtime: Runtime, socket_name: str) -> None:
    """Addresses, TTL and ports, and a VLAN tag that is added."""

    def routed(packets: list[bytes]) -> list[bytes]:
        changed = []
        for data in packets:
            packet = bytearray(data)
            packet[:12] = b"\2\0\0\0\0\7\2\0\0\0\0\10"
            packet[22] -= 1
            packet[26:30] = b"\12\1\1\1"
            packet[34:36] = b"\0\1"
            changed.append(bytes(packet[:12]) + b"\x81\0\0\5" + bytes(packet[12:]))
        return changed

    report = generator(runtime, socket_name, Peer(routed), STREAM.with_(size=(68, 300))).run(count=1000)
    assert (report.total.lost, report.total.corrupted, report.total.received) == (0, 0, 1000)


def test_other_packets_are_foreign(runtime: Runtime, socket_name: str) -> None:
    others = [b"x" * 60, b"y", bytes(3000)]
    report = generator(runtime, socket_name, Peer(lambda packets: [*others, *packets])).run(count=500, settle=0.05)
    assert report.total.received == 500
    assert report.foreign > 0
    assert report.foreign % 3 == 0
    assert report.received == 500 + report.foreign


def test_late_packets_of_another_run_do_not_count(runtime: Runtime, socket_name: str) -> None:
    kept: list[bytes] = []

    def keep(packets: list[bytes]) -> list[bytes]:
        late, kept[:] = kept[:], packets[:5]
        return [*late, *packets[5:]]

    made = generator(runtime, socket_name, Peer(keep))
    first = made.run(count=200, settle=0.05)
    second = made.run(count=200, settle=0.05)
    assert first.total.lost >= 5
    assert second.total.lost >= 5
    assert second.foreign >= 5
    assert second.total.duplicated == second.total.corrupted == 0


# --- streams, rates, queues, directions -----------------------------------------------------------------------------


@pytest.fixture
def two(runtime: Runtime, socket_name: str) -> tuple[Interface, Interface, Peer, Peer]:
    """Two interfaces for the generator, joined by a device."""
    a, b = Peer(), Peer()
    ours_a, theirs_a = device(runtime, socket_name + "a", a)
    ours_b, theirs_b = device(runtime, socket_name + "b", b)
    a.target, b.target = theirs_b, theirs_a
    return ours_a, ours_b, a, b


def test_two_interfaces_send_to_each_other(runtime: Runtime, two: tuple[Interface, Interface, Peer, Peer]) -> None:
    ours_a, ours_b, a, b = two
    made = Generator([ours_a, ours_b], STREAM, poll=lambda: runtime.poll_event(0))
    report = made.run(count=600)
    assert list(report.streams) == ["stream", "stream (back)"]
    for each in report.streams.values():
        assert (each.sent, each.received, each.lost, each.corrupted) == (600, 600, 0, 0)
    there, back = Ether(a.received[0]), Ether(b.received[0])
    assert (there.src, there[IP].src) == (back.dst, back[IP].dst) == ("02:00:00:00:00:01", "10.0.0.1")
    assert (there.dst, there[IP].dst, there[UDP].dport) == (back.src, back[IP].src, back[UDP].sport)
    assert back[UDP].chksum
    assert report.total.sent == 1200


@pytest.mark.parametrize(("direction", "index"), [("forward", 0), ("backward", 1)])
def test_a_stream_of_one_direction_is_sent_on_one_interface(
    runtime: Runtime, two: tuple[Interface, Interface, Peer, Peer], direction: str, index: int
) -> None:
    made = Generator(two[:2], STREAM.with_(direction=direction), poll=lambda: runtime.poll_event(0))
    report = made.run(count=300)
    assert [len(peer.received) for peer in two[2:]] == ([300, 0] if index == 0 else [0, 300])
    assert (report.total.sent, report.total.lost) == (300, 0)


def test_a_packet_on_the_wrong_interface_is_foreign_and_lost(
    runtime: Runtime, two: tuple[Interface, Interface, Peer, Peer]
) -> None:
    two[2].target = None  # sends back where it came from
    made = Generator(two[:2], STREAM.with_(direction="forward"), poll=lambda: runtime.poll_event(0))
    report = made.run(count=300, settle=0.05)
    assert (report.total.lost, report.total.received, report.foreign) == (300, 0, 300)


def test_streams_share_a_rate_and_a_count_by_weight(runtime: Runtime, socket_name: str) -> None:
    streams = [STREAM.with_(name="a", weight=3), STREAM.with_(name="b", size=200), STREAM.with_(name="c", weight=0.5)]
    made = generator(runtime, socket_name, Peer(), streams)
    report = made.run(count=900)
    assert [each.sent for each in report.streams.values()] == [600, 200, 100]
    assert report.total.lost == 0
    report = made.run(rate=4500, duration=0.1)
    assert [each.offered for each in report.streams.values()] == [300, 100, 50]


def test_streams_as_fast_as_it_goes_are_mixed_by_weight(runtime: Runtime, socket_name: str) -> None:
    peer = Peer()
    streams = [STREAM.with_(name="a", weight=3, size=100, fields=()), STREAM.with_(name="b", size=200, fields=())]
    generator(runtime, socket_name, peer, streams, check=False).run(count=4000)
    for end in (1000, 2000, 4000):
        first = [len(data) for data in peer.received[:end]].count(96)
        assert abs(first - end * 3 / 4) <= 256


def test_a_stream_with_its_own_rate_keeps_it_unless_told_otherwise(runtime: Runtime, socket_name: str) -> None:
    streams = [STREAM.with_(name="own", rate="2000"), STREAM.with_(name="shared")]
    made = generator(runtime, socket_name, Peer(), streams)
    report = made.run(rate=500, duration=0.1)
    assert [each.offered for each in report.streams.values()] == [200, 50]
    report = made.send_trial(1000, 0.1)
    assert [each.offered for each in report.streams.values()] == [50, 50]


def test_trials_of_other_sizes_need_no_new_generator(runtime: Runtime, socket_name: str) -> None:
    peer = Peer()
    made = generator(runtime, socket_name, peer)
    for size, length in ((64, {60}), (512, {508}), ("imix", {60, 566, 1514}), ([64, 65], {60, 61}), ("64", {60})):
        peer.received.clear()
        report = made.send_trial(2000, 0.05, size)
        assert (report.total.offered, report.total.lost, report.foreign) == (100, 0, 0)
        assert {len(data) for data in peer.received} == length


def test_a_stream_is_spread_over_the_queues_and_each_is_in_order(runtime: Runtime, socket_name: str) -> None:
    made = generator(runtime, socket_name, Peer(), device_queues=3)
    report = made.run(count=3000)
    assert (report.total.lost, report.total.reordered, report.total.duplicated) == (0, 0, 0)
    assert len(report.streams) == 1


def test_bursts_come_together(runtime: Runtime, socket_name: str) -> None:
    report = generator(runtime, socket_name, Peer(), STREAM.with_(burst=50)).run(rate=1000, duration=0.1)
    assert report.total.offered == 100
    assert all(sample.sent % 50 == 0 for sample in report.samples)


def test_an_unchecked_run_counts_what_comes(runtime: Runtime, socket_name: str) -> None:
    report = generator(runtime, socket_name, Peer(), check=False).run(count=700)
    assert (report.total.sent, report.received, report.checked) == (700, 700, False)
    assert report.total.lost == report.total.received == 0


def test_an_unchecked_run_waits_as_long_as_it_is_told(runtime: Runtime, socket_name: str) -> None:
    report = generator(runtime, socket_name, Peer(), check=False).run(count=5, settle=0.3)
    assert report.samples[-1].seconds >= 0.3
    assert report.seconds < report.samples[-1].seconds


def test_an_ip_memif_carries_ip_packets(runtime: Runtime, socket_name: str) -> None:
    peer = Peer()
    ours = runtime.create_interface(socket=socket_name, role="master", mode="ip", rx_mode="polling")
    theirs = runtime.create_interface(socket=socket_name, mode="ip", on_interrupt=peer.on_interrupt)
    wait_until(lambda: ours.connected and theirs.connected, runtime)
    made = Generator(ours, Stream("IP()/UDP()", size=64, fields=FIELDS), poll=lambda: runtime.poll_event(0))
    report = made.run(count=300)
    assert report.total.lost == 0
    assert {IP(data).version for data in peer.received} == {4}
    assert {len(data) for data in peer.received} == {64}


# --- the end of a run -----------------------------------------------------------------------------------------------


def test_a_peer_without_room_leaves_packets_unsent(runtime: Runtime, socket_name: str) -> None:
    ours, _ = device(runtime, socket_name, Peer(), ring_size=64)
    report = Generator(ours, STREAM).run(rate=10_000, duration=0.05, settle=0)  # nobody drives the peer
    assert (report.total.sent, report.total.unsent, report.total.lost) == (64, 436, 64)
    assert report.total.loss_ratio == 1.0


def test_a_peer_that_leaves_ends_the_run_with_a_report(runtime: Runtime, socket_name: str) -> None:
    peer = Peer()
    ours, theirs = device(runtime, socket_name, peer)

    def poll() -> None:
        runtime.poll_event(0)
        if len(peer.received) > 200:
            theirs.disconnect()

    report = Generator(ours, STREAM, poll=poll).run(rate=50_000)
    assert report.ended == "disconnected"
    assert report.error
    assert report.total.sent > 200
    with pytest.raises(ConfigError, match="has no peer; wait until it is connected"):
        Generator(ours, STREAM)


def test_a_cancelled_poll_ends_the_run_with_a_report(runtime: Runtime, socket_name: str) -> None:
    peer = Peer()
    ours, _ = device(runtime, socket_name, peer)

    def poll() -> None:
        runtime.poll_event(0)
        if len(peer.received) > 200:
            raise PollCancelled

    report = Generator(ours, STREAM, poll=poll).run(rate=50_000)
    assert report.ended == "interrupted"
    assert report.total.sent >= report.total.received > 0


def test_the_time_of_the_last_packet_belongs_to_a_rate(runtime: Runtime, socket_name: str) -> None:
    report = generator(runtime, socket_name, Peer()).run(rate=20, duration=0.1)
    assert (report.total.sent, report.seconds) == (2, 0.1)
    assert report.sent_pps == 20


def test_the_wait_for_packets_on_their_way_is_not_part_of_the_time(runtime: Runtime, socket_name: str) -> None:
    reports: list[Report] = []
    made = generator(runtime, socket_name, Peer(lambda packets: packets[1:]))
    report = made.run(rate=1000, duration=0.1, settle=0.1, on_sample=reports.append, sample_interval=0.01)
    assert report.total.lost > 0
    assert report.seconds == 0.1
    assert reports[-1].seconds == 0.1
    assert report.samples[-1].seconds >= 0.2
    assert report.samples[-1].received == report.total.received
    assert report.total.sent + report.total.unsent == 100  # a busy machine may keep us from the last packets


def test_a_peer_that_never_stops_sending_does_not_keep_a_run_from_its_begin_and_end(
    runtime: Runtime, socket_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = generator(runtime, socket_name, Peer(), check=False)
    monkeypatch.setattr(module._End, "drain", lambda end: 1)
    assert made.run(count=5, settle=0).total.sent == 5


def test_bits_count_the_frame_check_sequence_as_a_rate_does(runtime: Runtime, socket_name: str) -> None:
    report = generator(runtime, socket_name, Peer(), STREAM.with_(size=72)).run(rate="57600bps", duration=0.1)
    assert (report.total.sent, report.total.sent_bytes, report.total.sent_bits) == (10, 680, 5760)
    assert "57.6k" in table(report, 200)[1].split()
    assert "57.6kbit/s" in summary(report)


def test_samples_grow_and_reports_come_meanwhile(runtime: Runtime, socket_name: str) -> None:
    reports: list[Report] = []
    made = generator(runtime, socket_name, Peer())
    report = made.run(rate=20_000, count=4000, on_sample=reports.append, sample_interval=0.02)
    assert len(reports) > 2
    sent = [sample.sent for sample in report.samples]
    assert sent == sorted(sent)
    assert report.samples[-1].sent == report.total.sent == 4000
    assert [each.total.sent for each in reports] == sorted(each.total.sent for each in reports)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("streams", "options", "part"),
    [
        ((), {}, "there is no stream"),
        ((STREAM, STREAM), {}, "2 streams have the name 'stream'"),
        (STREAM.with_(direction="both"), {}, "stream: direction is 'both', which needs a second interface"),
        (STREAM, {"queues": 5}, "queues is 5"),
        (STREAM, {"queues": 0}, "queues is 0"),
        (STREAM, {"link_speed": 0}, "link_speed is 0"),
        (STREAM, {"link_speed": float("nan")}, "link_speed is nan"),
        (STREAM.with_(fields=["tcp.src=1..2"]), {}, "stream: field tcp.src: the packet has no such bytes"),
        (STREAM.with_(size=60), {}, "stream: a packet of 56 bytes has 14 behind the headers"),
    ],
)
def test_a_wrong_argument_is_refused(runtime: Runtime, socket_name: str, streams: Any, options: Any, part: str) -> None:
    with pytest.raises(ConfigError) as error:
        generator(runtime, socket_name, Peer(), streams, **options)
    assert part in str(error.value)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"duration": 0}, "duration is 0"),
        ({"count": 0}, "count is 0"),
        ({"count": 1.5}, "count is 1.5"),
        ({"count": 1, "sample_interval": 0}, "sample_interval is 0"),
        ({"count": 1, "sample_interval": float("nan")}, "sample_interval is nan"),
        ({"settle": -1, "count": 1}, "settle is -1"),
        ({"rate": "50%", "count": 1}, "needs the speed of a link"),
        ({"rate": "fast", "count": 1}, "the rate 'fast' must be"),
        ({"size": 20, "count": 1}, "stream: the size 20 is too small"),
    ],
)
def test_a_wrong_argument_of_a_run_is_refused(runtime: Runtime, socket_name: str, options: Any, part: str) -> None:
    made = generator(runtime, socket_name, Peer())
    with pytest.raises(ConfigError) as error:
        made.run(**options)
    assert part in str(error.value)
