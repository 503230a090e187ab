"""Capture files: what is written is read back, by us and by others, and what is broken is said so."""

from __future__ import annotations

import contextlib
import io
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.work import Counted, CountedFile
from memifrt import MemifOSError, Mode
from memifrt.capture.link_layer import LinkLayer
from memifrt.capture.pcap import (
    CaptureFileError,
    LinkType,
    Packet,
    create_capture,
    open_capture,
    read_capture,
)

TIME = 1_700_000_000_123_456_789
ENDS = ["pcap", "pcapng"]
#: Of every residue modulo 4, for pcapng's padding; one longer than a buffer.
PACKETS = [bytes(range(size)) for size in (14, 15, 16, 17, 60, 60, 61)] + [bytes(9000)]


def write(path: Path, packets: Sequence[bytes] = PACKETS, time: int = TIME, snaplen: int = 262144) -> Path:
    with create_capture(str(path), [("left", LinkType.ETHERNET), ("right", LinkType.ETHERNET)], snaplen) as writer:
        writer.write(packets[:4], time)
        writer.write(packets[4:], time + 1, 1)
    return path


def everything(path: Path) -> list[Packet]:
    with open_capture(path) as reader:
        return [*reader]


def read(data: bytes) -> list[Packet]:
    return [*read_capture(io.BytesIO(data), "test")]


@pytest.mark.parametrize("end", ENDS)
def test_packets_and_nanoseconds_are_read_back(end: str, tmp_path: Path) -> None:
    with open_capture(write(tmp_path / f"x.{end}")) as reader:
        found = [*reader]
        assert reader.offset == reader.size == (tmp_path / f"x.{end}").stat().st_size
    assert [packet.data for packet in found] == PACKETS
    assert [packet.time for packet in found] == [TIME] * 4 + [TIME + 1] * 4
    assert {packet.link_type for packet in found} == {LinkType.ETHERNET}


@pytest.mark.parametrize("end", ENDS)
def test_packets_are_cut_to_snaplen_and_keep_their_length(end: str, tmp_path: Path) -> None:
    found = everything(write(tmp_path / f"x.{end}", snaplen=16))
    assert [packet.data for packet in found] == [packet[:16] for packet in PACKETS]
    assert [packet.length for packet in found] == [len(packet) for packet in PACKETS]


@pytest.mark.parametrize("end", ENDS)
def test_scapy_reads_what_is_written(end: str, tmp_path: Path) -> None:
    utils = pytest.importorskip("scapy.utils")
    with utils.RawPcapReader(str(write(tmp_path / f"x.{end}"))) as reader:
        found = [*reader]
    assert [data for data, _ in found] == PACKETS
    assert [meta.wirelen for _, meta in found] == [len(packet) for packet in PACKETS]
    if end == "pcap":
        assert {(meta.sec, meta.usec) for _, meta in found[:4]} == {divmod(TIME, 10**9)}
    else:
        assert {meta.tsresol for _, meta in found} == {10**9}
        assert {meta.tshigh << 32 | meta.tslow for _, meta in found[:4]} == {TIME}
        assert [meta.ifname for _, meta in found] == [b"left"] * 4 + [b"right"] * 4


@pytest.mark.parametrize("end", ENDS)
def test_tcpdump_reads_what_is_written(end: str, tmp_path: Path) -> None:
    if not shutil.which("tcpdump"):
        pytest.skip("tcpdump is not installed")
    arguments = ["tcpdump", "-n", "-tt", "-xx", "--nano", "-r", str(write(tmp_path / f"x.{end}"))]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=20)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith("\t")] == ["1700000000.123456789"] * 4 + [
        "1700000000.123456790"
    ] * 4
    hexadecimal = "".join(line.partition(": ")[2] for line in lines if line.startswith("\t"))
    assert bytes.fromhex(hexadecimal) == b"".join(PACKETS)


def test_pcap_of_scapy_is_read(tmp_path: Path) -> None:
    utils = pytest.importorskip("scapy.utils")
    utils.wrpcap(str(tmp_path / "x.pcap"), PACKETS, linktype=1)
    assert [packet.data for packet in everything(tmp_path / "x.pcap")] == PACKETS


def test_old_pcap_in_microseconds_and_the_other_byte_order_is_read() -> None:
    data = struct.pack(">IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101) + struct.pack(">IIII", 5, 7, 3, 9) + b"abc"
    assert read(data) == [Packet(5_000_007_000, b"abc", 9, LinkType.RAW)]


# --- pcapng of others -----------------------------------------------------------------------------------------------


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += bytes(-len(body) % 4)
    total = struct.pack(f"{order}I", len(body) + 12)
    return struct.pack(f"{order}I", kind) + total + body + total


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(options: bytes = b"", order: str = "<", link: int = 1, snaplen: int = 0) -> bytes:
    return block(1, struct.pack(f"{order}HHI", link, 0, snaplen) + options, order)


def packet(ticks: int, data: bytes, number: int = 0, order: str = "<") -> bytes:
    fields = (number, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data))
    return block(6, struct.pack(f"{order}IIIII", *fields) + data, order)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("options", "ticks", "nanoseconds"),
    [
        (b"", 5_000_007, 5_000_007_000),
        (b"\x09\x00\x01\x00\x09\x00\x00\x00", 5_000_000_007, 5_000_000_007),
        (b"\x09\x00\x01\x00\x8a\x00\x00\x00", 1536, 1_500_000_000),
        (b"\x0e\x00\x08\x00" + (10).to_bytes(8, "little"), 1, 10_000_001_000),
    ],
    ids=["microseconds", "nanoseconds", "powers of two", "offset"],
)
def test_pcapng_times_follow_the_interface(order: str, options: bytes, ticks: int, nanoseconds: int) -> None:
    if order == ">" and options:
        code, size = struct.unpack("<HH", options[:4])
        options = struct.pack(">HH", code, size) + (options[4:][::-1] if code == 14 else options[4:])
    data = section(order) + interface(options, order) + packet(ticks, b"data!", order=order)
    assert read(data) == [Packet(nanoseconds, b"data!", 5, 1)]


def test_pcapng_skips_blocks_that_it_does_not_know_and_begins_anew_at_a_section() -> None:
    simple = block(3, struct.pack("<I", 4) + b"abcd")
    old = block(2, struct.pack("<HHIIII", 0, 0, 0, 8, 2, 2) + b"zz")
    data = section() + block(0xBAD, b"what") + interface() + simple + old + section() + interface(link=228)
    data += packet(1, b"x") + block(5, bytes(12))
    assert read(data) == [
        Packet(None, b"abcd", 4, LinkType.ETHERNET),
        Packet(8000, b"zz", 2, LinkType.ETHERNET),
        Packet(1000, b"x", 1, LinkType.IPV4),
    ]


def test_the_description_is_read_without_a_packet_and_link_types_grow_with_the_file() -> None:
    """Of a pipe, in which the first packet may be long in coming."""
    start = section() + block(0xBAD, b"what") + interface(link=113)
    with read_capture(io.BytesIO(start), "test") as reader:
        assert reader.link_types == []
        reader.describe()
        assert (reader.link_types, reader.offset, reader.regular) == ([113], len(start), False)
    with read_capture(io.BytesIO(start + interface() + packet(1, b"x", 1) + section() + interface()), "test") as reader:
        assert [(each.link_type, each.data) for each in reader] == [(1, b"x")]
        assert reader.link_types == [113, 1]
    with read_capture(io.BytesIO(section() + packet(1, b"x")), "test") as reader, pytest.raises(CaptureFileError):
        reader.describe()


# --- work that is linear ---------------------------------------------------------------------------------------------


def copied(data: bytes) -> int:
    """Bytes that are copied while this capture is read, besides those that are read."""
    Counted.copied = 0
    with contextlib.suppress(CaptureFileError), read_capture(CountedFile(data), "test") as reader:
        for _ in reader:
            pass
    return Counted.copied


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("size", [0, 1, 4, 300])
def test_a_block_full_of_options_is_read_in_linear_time_or_refused(order: str, size: int) -> None:
    option = struct.pack(f"{order}HH", 0x7777, size) + bytes(size + 3 & ~3)
    data = section(order) + interface(option * (1_000_000 // len(option)), order) + packet(1, b"x", order=order)
    assert copied(data) < 3 * len(data)
    many = "65536 empty" if size == 0 else "1024"
    with pytest.raises(CaptureFileError, match=f"at byte 28: an interface description with more than {many} options"):
        read(data)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_block_of_many_empty_options_is_read(order: str) -> None:
    empty = struct.pack(f"{order}HH", 0x7777, 0) * 65536
    data = section(order) + interface(empty, order) + packet(1, b"x", order=order)
    assert [each.data for each in read(data)] == [b"x"]


@pytest.mark.parametrize("order", ["<", ">"])
def test_options_behind_empty_ones_are_read(order: str) -> None:
    empty = struct.pack(f"{order}HHHHHH", 1, 0, 0x0100, 0, 9, 0)
    nanoseconds = struct.pack(f"{order}HHB3x", 9, 1, 9)
    end = struct.pack(f"{order}HHHHB3x", 0, 0, 9, 1, 0)
    data = section(order) + interface(empty + nanoseconds + empty + end, order) + packet(7, b"x", order=order)
    assert [each.time for each in read(data)] == [7]


@given(
    st.lists(
        st.one_of(
            st.builds(
                lambda link, options: interface(options, link=link), st.integers(0, 65535), st.binary(max_size=99)
            ),
            st.builds(lambda code, size: interface(struct.pack("<HH", code, size) * 50), *[st.integers(0, 9)] * 2),
            st.builds(packet, st.integers(0, 1 << 63), st.binary(max_size=99), st.integers(0, 3)),
            st.builds(block, st.integers(0, 9), st.binary(max_size=99)),
            st.just(section()),
        ),
        max_size=20,
    ),
    st.integers(1, 50),
)
def test_no_file_of_blocks_costs_more_than_its_size(blocks: list[bytes], times: int) -> None:
    data = section() + b"".join(blocks) * times
    assert copied(data) <= 3 * len(data)


# --- what is broken -------------------------------------------------------------------------------------------------


def read_until_broken(data: bytes) -> tuple[list[bytes], str]:
    """The packets, and what is wrong behind them."""
    found: list[bytes] = []
    try:
        for each in read_capture(io.BytesIO(data), "cut"):
            found.append(each.data)
    except CaptureFileError as error:
        return found, str(error)
    return found, ""


@pytest.mark.parametrize("end", ENDS)
def test_a_file_that_was_cut_off_gives_what_is_whole_and_then_says_so(end: str, tmp_path: Path) -> None:
    data = write(tmp_path / f"x.{end}", PACKETS[:5]).read_bytes()
    ends = []
    for size in range(len(data)):
        found, said = read_until_broken(data[:size])
        if not said:
            ends.append(size)
        else:
            assert said.startswith("cut: ")
            assert "cut off" in said or size < 4
        assert found == PACKETS[: len(found)]
    assert len(ends) == (5 if end == "pcap" else 7)  # between two records it ends as any file does


@given(st.sampled_from(ENDS), st.binary(max_size=200), st.integers(0, 400), st.booleans())
def test_garbage_is_a_clear_error_and_nothing_else(end: str, garbage: bytes, at: int, from_start: bool) -> None:
    start = section() + interface() + packet(1, b"abc") * 3
    if end == "pcap":
        start = (
            struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 1) + (struct.pack("<IIII", 1, 2, 3, 3) + b"abc") * 9
        )
    data = garbage if from_start else start[:at] + garbage + start[at + len(garbage) :]
    said = "test: "
    try:
        read(data)
    except CaptureFileError as error:
        said = str(error)
    assert said.startswith("test: ")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "test: the file is empty"),
        (b"hello", "not a pcap or pcapng file: it starts with 0x68656c6c"),
        (struct.pack("<IHHiIII", 0xA1B23C4D, 3, 0, 0, 0, 9, 1), "at byte 4: version 3.0"),
        (struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 9, 1) + b"\xff" * 16, "byte 24: packet 1 claims 4294967295"),
        (section() + packet(1, b"x"), "a packet of interface 0, but the file describes only 0"),
        (section() + struct.pack("<II", 9, 5), "claims 5 bytes"),
        (section() + interface()[:-4] + b"oops", "ends with 1936748399"),
        (section()[:8] + b"abcd" + bytes(20), "byte order mark"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_place(data: bytes, words: str) -> None:
    with pytest.raises(CaptureFileError) as error:
        read(data)
    assert words in str(error.value)


def test_a_file_that_cannot_be_opened_or_written_is_an_os_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(MemifOSError, match=r"cannot read .*/none: No such file") as missing:
        open_capture(tmp_path / "none")
    assert missing.value.filename == str(tmp_path / "none")
    with pytest.raises(MemifOSError, match=r"cannot write /nowhere/x\.pcap: No such file"):
        create_capture("/nowhere/x.pcap", [("x", LinkType.ETHERNET)])
    with (
        pytest.raises(MemifOSError, match=r"cannot write /dev/full: No space left on device \[ENOSPC\]"),
        create_capture("/dev/full", [("x", LinkType.ETHERNET)]) as writer,
    ):
        writer.write([bytes(1000)] * 1000, TIME)


def test_link_types_and_modes() -> None:
    assert LinkType.of(Mode.ETHERNET) is LinkType.ETHERNET
    assert LinkType.of(Mode.IP) is LinkType.RAW
    modes = {number: LinkType.mode_of(number) for number in (1, 101, 228, 229, 12, 14, 113, 276, 0)}
    assert modes == {
        1: Mode.ETHERNET,
        **dict.fromkeys((101, 228, 229, 12, 14), Mode.IP),
        **dict.fromkeys((113, 276, 0)),
    }


# --- link layers ----------------------------------------------------------------------------------------------------

IP4 = bytes.fromhex("450000180000000040110000 0a000001 0a000002") + b"four"
IP6 = bytes.fromhex("6000000000043b40") + bytes(32) + b"six!"
SOURCE, TARGET, SENDER = bytes.fromhex("020000000001"), bytes.fromhex("020000000002"), bytes.fromhex("020000000003")
ETHERNET = LinkLayer(Mode.ETHERNET, True, SOURCE, TARGET)
IP = LinkLayer(Mode.IP, True)


def sll(protocol: int, payload: bytes, sender: bytes = SENDER) -> bytes:
    return struct.pack("!HHH8sH", 0, 1, len(sender), sender, protocol) + payload


def sll2(protocol: int, payload: bytes, sender: bytes = SENDER) -> bytes:
    return struct.pack("!HHIHBB8s", protocol, 0, 3, 1, 0, len(sender), sender) + payload


def converted(layer: LinkLayer, link_type: int, data: bytes) -> bytes | None:
    conversion = layer.conversion(link_type)
    assert conversion is not None
    return conversion(data)


@pytest.mark.parametrize("link_type", [101, 228, 229, 12, 14])
def test_raw_ip_gets_an_ethernet_header(link_type: int) -> None:
    assert converted(ETHERNET, link_type, IP4) == TARGET + SOURCE + b"\x08\x00" + IP4
    assert converted(ETHERNET, link_type, IP6) == TARGET + SOURCE + b"\x86\xdd" + IP6
    assert converted(ETHERNET, link_type, b"\x10" + IP4) is None
    assert converted(ETHERNET, link_type, b"") is None


@pytest.mark.parametrize(("link_type", "cooked"), [(113, sll), (276, sll2)], ids=["SLL", "SLL2"])
def test_cooked_packets_become_frames_and_ip_packets(link_type: int, cooked: Callable[..., bytes]) -> None:
    assert converted(ETHERNET, link_type, cooked(0x800, IP4)) == TARGET + SENDER + b"\x08\x00" + IP4
    arp = b"arp" * 10
    assert converted(ETHERNET, link_type, cooked(0x806, arp, b"")) == TARGET + SOURCE + b"\x08\x06" + arp
    assert converted(ETHERNET, link_type, cooked(0x800, IP4, bytes(6))) == TARGET + SOURCE + b"\x08\x00" + IP4
    assert converted(ETHERNET, link_type, cooked(4, b"llc")) == TARGET + SENDER + b"\x00\x03llc"
    assert converted(ETHERNET, link_type, cooked(0x0C, IP4)) is None
    assert converted(ETHERNET, link_type, cooked(0x800, IP4)[:10]) is None
    assert converted(IP, link_type, cooked(0x800, IP4)) == IP4
    assert converted(IP, link_type, cooked(0x86DD, IP6, b"")) == IP6
    assert converted(IP, link_type, cooked(0x8100, b"\x00\x05\x08\x00" + IP4)) == IP4
    assert converted(IP, link_type, cooked(0x806, arp)) is None
    assert converted(IP, link_type, cooked(0x800, b"")) is None


def test_frames_lose_their_header_their_vlan_tags_and_their_padding() -> None:
    for data in (IP4, IP6):
        kind = b"\x08\x00" if data is IP4 else b"\x86\xdd"
        assert converted(IP, 1, bytes(12) + kind + data + bytes(20)) == data
        assert converted(IP, 1, bytes(12) + b"\x88\xa8\x00\x01\x81\x00\x00\x02" + kind + data) == data
        assert converted(IP, 1, bytes(12) + kind + data[:-1]) == data[:-1], "cut, and sent so"
    assert converted(IP, 1, bytes(12) + b"\x08\x06" + bytes(28)) is None
    assert converted(IP, 1, bytes(12) + b"\x81\x00\x00\x01") is None
    assert converted(IP, 1, b"short") is None


@given(st.sampled_from([1, 101, 113, 276]), st.binary(max_size=80))
def test_no_packet_makes_a_conversion_raise(link_type: int, data: bytes) -> None:
    for layer in (ETHERNET, IP):
        made = converted(layer, link_type, data)
        assert made is None or len(made) <= len(data) + 14


@pytest.mark.parametrize(
    ("layer", "link_type", "words"),
    [
        (LinkLayer(Mode.ETHERNET), 101, ["RAW (101)", "ETHERNET (1)", "--mode ip ", "--convert makes Ethernet frames"]),
        (LinkLayer(Mode.ETHERNET), 276, ["LINUX_SLL2 (276)", "ETHERNET (1); --convert makes Ethernet frames"]),
        (LinkLayer(Mode.IP), 1, ["ETHERNET (1)", "RAW (101)", "--mode ethernet ", "--convert makes IP packets"]),
        (LinkLayer(Mode.IP), 113, ["LINUX_SLL (113)", "RAW (101); --convert makes IP packets"]),
        (ETHERNET, 105, ["IEEE802_11 (105)", "ETHERNET (1)", "tcprewrite"]),
        (LinkLayer(Mode.IP), 60000, ["link type (60000)", "tcprewrite"]),
    ],
)
def test_a_mismatch_names_both_link_types_and_the_way_out(layer: LinkLayer, link_type: int, words: list[str]) -> None:
    assert layer.conversion(link_type) is None
    assert [word for word in words if word not in layer.mismatch(link_type)] == []
