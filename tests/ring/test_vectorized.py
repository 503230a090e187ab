"""The vectorized responder: what it answers and with which bytes is what ``reply_in_place`` says of each packet alone.

On the vector by itself, between interfaces, and as a program.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import numpy as np
import pytest

from examples.vectorized import vectorized
from examples.vectorized.vectorized import MAC, MAX_FRAME, Responder, Vector
from memifrt import ConfigError, Interface, Runtime
from memifrt.packets import arp_request, echo_request, parse_ip, parse_mac, reply_in_place
from memifrt.ring import RingImplementation
from tests.examples import test_examples
from tests.examples.test_examples import MASK_INT, Peer, Program
from tests.lib.rings import IMPLEMENTATIONS, Ends, fill, name_of
from tests.lib.support import Pair

start = test_examples.start  # the fixture
OUR_MAC, OUR_IP = parse_mac("02:fe:00:00:00:99"), parse_ip("192.168.1.1")
THEIR_IP = parse_ip("192.168.1.2")
CAPACITY = 256


def request(sequence: int = 1, size: int = 22, target: bytes = THEIR_IP) -> bytes:
    return echo_request(
        source_mac=OUR_MAC,
        source_ip=OUR_IP,
        target_mac=MAC,
        target_ip=target,
        identifier=99,
        sequence=sequence,
        payload=bytes(index & 0xFF for index in range(size)),
    )


def patched(packet: bytes, *changes: tuple[int, bytes]) -> bytes:
    changed = bytearray(packet)
    for offset, data in changes:
        changed[offset : offset + len(data)] = data
    return bytes(changed)


def with_options(packet: bytes, count: int) -> bytes:
    """With ``count`` words of IP options; the header checksum, which nobody checks, stays."""
    header = patched(packet[14:34], (0, bytes((0x45 + count,))), (2, struct.pack("!H", len(packet) - 14 + 4 * count)))
    return packet[:14] + header + b"\x01" * (4 * count) + packet[34:]


PLAIN = request()
ARP = arp_request(OUR_MAC, OUR_IP, THEIR_IP)

#: Packets that a responder answers.
ANSWERED = {
    "shortest": request(size=0),
    "odd size": request(size=3),
    "full size": request(size=1472),
    "longer than a buffer": request(size=2048),
    "longest": request(size=MAX_FRAME - 42),
    "padded": request(size=0) + bytes(18),
    "padded to the longest": request(size=0) + bytes(MAX_FRAME - 42),
    "ttl 0": patched(PLAIN, (22, b"\x00")),
    "ttl 63": patched(PLAIN, (22, b"\x3f")),
    "ttl 255": patched(PLAIN, (22, b"\xff")),
    "service": patched(PLAIN, (15, b"\xff")),
    "may be fragmented": patched(PLAIN, (20, b"\x00\x00")),
    "reserved flag": patched(PLAIN, (20, b"\x80\x00")),
    "header sum 0": patched(PLAIN, (24, b"\x00\x00")),
    "header sum 0xffff": patched(PLAIN, (24, b"\xff\xff")),
    "header sum 0xffff and ttl 65": patched(PLAIN, (22, b"\x41"), (24, b"\xff\xff")),
    "header sum becomes 0": patched(PLAIN, (22, b"\x4f"), (24, b"\xf0\xff")),
    "echo sum 0": patched(PLAIN, (36, b"\x00\x00")),
    "echo sum becomes 0xffff": patched(PLAIN, (36, b"\xf7\xff")),
    "echo sum carries": patched(PLAIN, (36, b"\xf8\x00")),
    "echo sum 0xffff": patched(PLAIN, (36, b"\xff\xff")),
    "to the broadcast address": patched(PLAIN, (0, b"\xff" * 6)),
    "ip options": with_options(PLAIN, 1),
    "as many ip options as can be": with_options(PLAIN, 10),
    "arp": ARP,
    "padded arp": ARP + bytes(18),
}
#: What no responder answers.
DROPPED = {
    "empty ethernet": PLAIN[:14],
    "one byte": b"\x00",
    "without echo header": PLAIN[:41],
    "shorter than its ip packet": PLAIN[:-1],
    "total length below the headers": patched(PLAIN, (16, b"\x00\x1b")),
    "total length 0": patched(PLAIN, (16, b"\x00\x00")),
    "total length 65535": patched(PLAIN, (16, b"\xff\xff")),
    "from a group": patched(PLAIN, (6, b"\x03")),
    "another address": request(target=parse_ip("192.168.1.3")),
    "another network": request(target=parse_ip("192.169.1.2")),
    "vlan": PLAIN[:12] + b"\x81\x00\x00\x05" + PLAIN[12:],
    "ipv6": patched(PLAIN, (12, b"\x86\xdd")),
    "ip version 6": patched(PLAIN, (14, b"\x65")),
    "ip header of 16 bytes": patched(PLAIN, (14, b"\x44")),
    "ip header beyond the packet": patched(PLAIN, (14, b"\x4f")),
    "udp": patched(PLAIN, (23, b"\x11")),
    "first fragment": patched(PLAIN, (20, b"\x20\x00")),
    "last fragment": patched(PLAIN, (20, b"\x00\x01")),
    "fragment far behind": patched(PLAIN, (20, b"\x10\x00")),
    "echo reply": patched(PLAIN, (34, b"\x00")),
    "unreachable": patched(PLAIN, (34, b"\x03")),
    "code 1": patched(PLAIN, (35, b"\x01")),
    "arp for another": arp_request(OUR_MAC, OUR_IP, parse_ip("192.168.1.3")),
    "arp reply": patched(ARP, (20, b"\x00\x02")),
    "arp from a group": patched(ARP, (6, b"\xff" * 6)),
    "short arp": ARP[:41],
    "arp for ipx": patched(ARP, (16, b"\x81\x37")),
}
#: What this one does not answer, for it has no row that is as long.
TOO_LONG = {
    "one byte too long": request(size=MAX_FRAME - 41),
    "padded to one byte too much": request(size=0) + bytes(MAX_FRAME - 41),
    "arp in a frame too long": ARP + bytes(MAX_FRAME),
    "jumbo": request(size=8958),
    "longest that ip has": request(size=65507 - 14),
}


def expected(packets: list[bytes]) -> list[bytes]:
    """What ``reply_in_place`` makes of them."""
    replies = [bytearray(packet) for packet in packets]
    return [bytes(reply) for reply in replies if reply_in_place(memoryview(reply), THEIR_IP, MAC)]


@pytest.fixture(scope="module")
def vector() -> Vector:
    """One for all tests, so that each finds what others have left in and behind its rows."""
    return Vector(CAPACITY, THEIR_IP, MAC)


def answers(vector: Vector, packets: list[bytes]) -> list[bytes]:
    """What the vector makes of packets that were received into it."""
    for row, packet in enumerate(packets):
        cut = np.frombuffer(packet[:MAX_FRAME], np.uint8)
        vector.frames[row, : len(cut)] = cut
        vector.sizes[row] = min(len(packet), 0xFFFF)
    count = vector.answer(len(packets))
    return [vector.frames[row, : vector.sizes[row]].tobytes() for row in range(count)]


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The packets that were looked at one by one."""
    seen: list[bytes] = []

    def reply(packet: memoryview, ip: bytes, mac: bytes) -> bool:
        seen.append(bytes(packet))
        return reply_in_place(packet, ip, mac)

    monkeypatch.setattr(vectorized, "reply_in_place", reply)
    return seen


# --- the vector -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ANSWERED)
def test_reply_is_byte_for_byte_that_of_reply_in_place(vector: Vector, name: str) -> None:
    packet = ANSWERED[name]
    (reply,) = expected([packet])
    plain = expected([PLAIN])
    assert answers(vector, [packet]) == [reply]
    assert answers(vector, [packet] * CAPACITY) == [reply] * CAPACITY
    assert answers(vector, [PLAIN, packet, PLAIN, packet]) == [*plain, reply, *plain, reply]


@pytest.mark.parametrize("name", [*DROPPED, *TOO_LONG])
def test_anything_else_is_dropped_and_the_others_keep_their_order(vector: Vector, name: str) -> None:
    packet = {**DROPPED, **TOO_LONG}[name]
    assert bool(expected([packet])) == (name in TOO_LONG)
    numbered = [request(number) for number in range(3)]
    first, second, third = expected(numbered)
    assert answers(vector, [packet]) == []
    assert answers(vector, [packet] * CAPACITY) == []
    assert answers(vector, [packet, numbered[0], packet, numbered[1], numbered[2]]) == [first, second, third]
    assert answers(vector, [numbered[0], ARP, packet, numbered[1], packet]) == [first, *expected([ARP]), second]


def test_packet_is_judged_by_its_own_bytes_not_by_what_an_earlier_one_left_in_its_row(vector: Vector) -> None:
    assert answers(vector, [PLAIN] * 4) == expected([PLAIN]) * 4
    for size in range(1, len(PLAIN)):
        assert answers(vector, [PLAIN]) == expected([PLAIN])  # a request lies in the row, whole, but for its first word
        assert answers(vector, [PLAIN[:size]]) == []


@pytest.mark.parametrize("offset", [24, 36], ids=["header sum", "echo sum"])
def test_every_checksum(vector: Vector, offset: int) -> None:
    for first in range(0, 0x10000, CAPACITY):
        packets = [patched(PLAIN, (offset, struct.pack("!H", first + i))) for i in range(CAPACITY)]
        assert answers(vector, packets) == expected(packets)


def test_every_ttl_with_sums_about_to_wrap(vector: Vector) -> None:
    for number in (*range(0x0200), *range(0x7F00, 0x8000, 16), *range(0xFE00, 0x10000)):
        packets = [patched(PLAIN, (22, bytes((ttl,))), (24, struct.pack("<H", number))) for ttl in range(CAPACITY)]
        assert answers(vector, packets) == expected(packets)


@pytest.mark.parametrize("seed", range(8))
def test_random_mixes(vector: Vector, seed: int) -> None:
    """Bursts of any size, of all kinds of packets, some with a byte changed somewhere or cut somewhere."""
    rng = random.Random(seed)
    kinds = [packet for packet in (*ANSWERED.values(), *DROPPED.values()) if len(packet) < 2000]
    for _ in range(60):
        share = rng.choice((0, 0.02, 0.3, 1))
        packets = []
        for _ in range(rng.randint(1, CAPACITY)):
            packet = rng.choice(kinds) if rng.random() < share else request(rng.randrange(0x10000), rng.randrange(200))
            if rng.random() < share / 2:
                packet = patched(packet, (rng.randrange(min(len(packet), 64)), rng.randbytes(1)))[: len(packet)]
            if rng.random() < share / 8:
                packet = packet[: rng.randint(1, len(packet))]
            packets.append(packet)
        assert answers(vector, packets) == expected(packets)


def test_echo_requests_and_noise_cost_no_call_for_each(vector: Vector, one_by_one: list[bytes]) -> None:
    for name in ("full size", "padded", "ttl 63", "header sum becomes 0", "echo sum carries", "service"):
        packets = [PLAIN, ANSWERED[name]] * (CAPACITY // 2)
        assert answers(vector, packets) == expected(packets)
    for name in ("udp", "ipv6", "vlan", "another address", "arp for another"):
        answers(vector, [DROPPED[name], PLAIN] * (CAPACITY // 2))
    assert set(one_by_one) == {DROPPED["arp for another"]}
    one_by_one.clear()
    assert answers(vector, [PLAIN, ARP, PLAIN]) == expected([PLAIN, ARP, PLAIN])
    assert one_by_one == [ARP]


# --- between interfaces ---------------------------------------------------------------------------------------------


def exchange(pair: Pair, asker: Interface, packets: list[bytes]) -> None:
    """Send all the packets, as many at a time as the ring holds. Each time the replies that are due come, no more."""
    tx, rx = asker.tx_queues[0], asker.rx_queues[0]
    while packets:
        pair.wait(lambda: tx.free() == tx.ring_size)
        sent = tx.send(packets)
        due = expected(packets[:sent])
        received: list[bytes] = []

        def all_came(due: list[bytes] = due, received: list[bytes] = received) -> bool:
            received += rx.recv()
            return len(received) >= len(due)

        pair.wait(all_came)
        assert received == due
        packets = packets[sent:]


@pytest.mark.parametrize("role", ["slave", "master"])
def test_requests_of_all_kinds_between_interfaces(make_pair: Callable[..., Pair], role: str) -> None:
    """More than a ring holds, longer than a buffer; each burst is another mix."""
    responder = Responder(THEIR_IP, burst=100)
    pair = make_pair(log2_ring_size=7, **{f"{role}_on_interrupt": responder.on_interrupt})
    rng = random.Random(role)
    packets = [*rng.choices([*ANSWERED.values(), *DROPPED.values()], k=300), *(request(n) for n in range(300))]
    rng.shuffle(packets)
    packets.append(PLAIN)  # behind it nothing comes that is not due
    exchange(pair, pair.master if role == "slave" else pair.slave, packets)


def test_longer_than_the_whole_ring_of_the_peer_is_dropped(make_pair: Callable[..., Pair]) -> None:
    """The slave's rings have 4 buffers of 256 bytes; its own driver could send more to us than we may send back."""
    responder = Responder(THEIR_IP, burst=8)
    pair = make_pair(log2_ring_size=2, buffer_size=256, master_on_interrupt=responder.on_interrupt)
    tx = pair.slave.tx_queues[0]
    assert tx.send([request(1, size=4 * 256 - 42)]) == 1
    pair.wait(lambda: pair.slave.rx_queues[0].pending() == 4)
    assert pair.slave.rx_queues[0].recv() == expected([request(1, size=4 * 256 - 42)])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=name_of)
def test_rows_of_a_matrix_may_lie_apart(implementation: RingImplementation) -> None:
    lane = Ends(implementation).lane("slave")
    matrix, sizes = np.zeros((6, 100), np.uint8), np.full(3, 40, np.uint16)
    rows = matrix[::2, 2:50]
    packets = fill(3, 40)
    assert lane.tx.send(packets) == 3
    assert lane.rx.recv_into(rows.data, sizes.data) == 3
    assert [row[:40].tobytes() for row in rows] == packets
    assert not matrix[1::2].any()
    assert lane.tx.send_from(rows.data, sizes.data) == 3
    assert lane.rx.recv(3) == packets
    apart = np.zeros((3, 100), np.uint8)[:, ::2]
    with pytest.raises(ConfigError, match="contiguous rows"):
        lane.tx.send_from(apart.data, sizes.data)


@pytest.mark.parametrize(("s2m", "m2s"), [(3, 1), (2, 3)])
def test_every_queue_that_a_slave_offers_is_served(make_pair: Callable[..., Pair], s2m: int, m2s: int) -> None:
    responder = Responder(THEIR_IP, burst=8)
    pair = make_pair(num_s2m_rings=s2m, num_m2s_rings=m2s, master_on_interrupt=responder.on_interrupt)
    for qid, tx in enumerate(pair.slave.tx_queues):
        rx = pair.slave.rx_queues[qid % m2s]
        assert tx.send([request(qid)]) == 1
        pair.wait(rx.pending)
        assert rx.recv() == expected([request(qid)])


# --- as a program ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rx_mode", ["interrupt", "polling"])
@pytest.mark.parametrize("role", ["slave", "master"])
def test_program_answers_and_ends_with_0(
    start: Callable[..., Program], runtime: Runtime, socket_path: str, role: str, rx_mode: str
) -> None:
    arguments = ["--socket", socket_path, "--id", "7", "--ip", "192.168.1.2", "--role", role]
    master_first = role == "slave"
    peer = Peer(runtime, socket_path, "master", id=7) if master_first else None
    program = start("vectorized", *arguments, "--burst", "16", "--rx-mode", rx_mode)
    program.line("answers for 192.168.1.2")
    peer = peer or Peer(runtime, socket_path, "slave", id=7)
    peer.connect(program)
    packets = [*ANSWERED.values(), *DROPPED.values(), request(0xFFFF)]
    assert peer.interface.tx_queues[0].send(packets) == len(packets)
    assert [packet for _, packet in peer.replies(program, len(expected(packets)))] == expected(packets)
    assert peer.interface.details().tx_queues[0].flags == (MASK_INT if rx_mode == "polling" else 0)
    assert program.interrupt() == (0, "")


@pytest.mark.parametrize("rx_mode", ["interrupt", "polling"])
def test_program_outlives_its_peer(
    start: Callable[..., Program], runtime: Runtime, socket_path: str, rx_mode: str
) -> None:
    program = start("vectorized", "--socket", socket_path, "--role", "master", "--rx-mode", rx_mode)
    program.line("answers for")
    for _ in range(2):
        peer = Peer(runtime, socket_path, "slave")
        peer.connect(program)
        peer.ping(program)
        peer.interface.delete()
        program.line("disconnected: ")
    assert program.interrupt() == (0, "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--burst", "0"], "--burst is 0"),
        (["--burst", "16385"], "--burst is 16385"),
        (["--rx-mode", "x"], "invalid choice: 'x'"),
        (["--ip", "1.2.3"], "'1.2.3' is not an IPv4 address"),
        (["--ip", "2001:db8::1"], "'2001:db8::1' is not an IPv4 address"),
        (["--socket", "/nowhere/memif.sock", "--role", "master"], "the directory /nowhere does not exist"),
    ],
)
def test_wrong_argument_of_the_program_is_said(start: Callable[..., Program], arguments: list[str], words: str) -> None:
    status, error = start("vectorized", *arguments).finish()
    assert status == 2
    assert words in error
    assert "Traceback" not in error
