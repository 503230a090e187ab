"""``memifrt replay``: what a capture holds arrives, when it is due, and what became of it is said."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from memifrt import Interface, Mode, Runtime
from memifrt.capture.link_layer import LinkLayer
from memifrt.capture.pcap import LinkType, Packet, create_capture, open_capture
from memifrt.capture.rewrite import Rewriting, parse_maps
from memifrt.cli.arguments import Parser
from memifrt.cli.command_line import main
from memifrt.cli.commands import replay
from memifrt.cli.progress import Progress, progress
from memifrt.cli.replay import recording as replay_recording
from memifrt.cli.replay.outcome import Outcome
from memifrt.cli.replay.pace import Pace
from memifrt.cli.replay.recording import Recording
from memifrt.cli.replay.selection import Selection
from memifrt.ports.endpoint import MemifEndpoint
from tests.capture.test_lines import ip4, udp
from tests.lib.programs import command, end, finish, read_until, run, running
from tests.lib.support import DEADLINE, wait_until

SECOND = 1_000_000_000
PACKETS = [b"packet %04d" % number + bytes(number) for number in range(1000)]


def capture(path: Path, packets: Sequence[bytes] = PACKETS, step: int = 0, link: LinkType = LinkType.ETHERNET) -> Path:
    """A file with a packet every ``step`` nanoseconds."""
    with create_capture(str(path), [("x", link)]) as writer:
        for number, packet in enumerate(packets):
            writer.write([packet], 1_700_000_000 * SECOND + number * step)
    return path


def data(path: Path) -> list[bytes]:
    with open_capture(path) as reader:
        return [packet.data for packet in reader]


def listener(runtime: Runtime, socket: str, received: list[bytes], **options: Any) -> Interface:
    def on_interrupt(interface: Interface, qid: int) -> None:
        received.extend(interface.rx_queues[qid].recv())

    return runtime.create_interface(socket=socket, role="master", on_interrupt=on_interrupt, **options)


def replayed(runtime: Runtime, socket: str, *arguments: str, **options: Any) -> tuple[list[bytes], int, str, str]:
    """Run it into an interface of ours; what that received, the status and what was printed."""
    received: list[bytes] = []
    with listener(runtime, socket, received, **options), running("replay", "--socket", socket, *arguments) as program:
        wait_until(lambda: program.poll() is not None, runtime)
        status, out, err = finish(program)
        assert "Traceback" not in err
        return received, status, out, err


# --- what arrives ---------------------------------------------------------------------------------------------------


def test_a_capture_of_100000_packets_comes_out_of_dump_as_it_was(socket_name: str, tmp_path: Path) -> None:
    """Two processes, nothing else: chains among the packets, and not a byte different."""
    made = random.Random(1)
    packets = [
        number.to_bytes(4, "big") + made.randbytes(made.choice((56, 60, 86, 500, 1510))) for number in range(99_900)
    ] + [number.to_bytes(4, "big") + made.randbytes(9000) for number in range(100)]
    made.shuffle(packets)
    path, again = tmp_path / "a.pcap", tmp_path / "b.pcap"
    with create_capture(str(path), [("x", LinkType.ETHERNET)]) as writer:
        for start in range(0, len(packets), 100):
            writer.write(packets[start : start + 100], start)
    with running("dump", "--role", "master", "--socket", socket_name, "-w", str(again)) as dump:
        read_until(dump, "capturing on", stderr=True)
        done = run("replay", str(path), "--socket", socket_name, "--topspeed")
        status, _, err = end(dump)
    assert done.returncode == 0, done.stderr
    size = sum(map(len, packets))
    assert done.stdout.startswith(f"100000 packets, {size} bytes accepted, 0 dropped in ")
    assert status == 0
    assert err.endswith("memifrt dump: 100000 packets captured\n")
    assert data(again) == packets
    with open_capture(again) as reader:
        times = [packet.time or 0 for packet in reader]
    assert times == sorted(times)


def test_a_file_is_played_as_often_as_asked_for(runtime: Runtime, socket_name: str, tmp_path: Path) -> None:
    path = capture(tmp_path / "x.pcapng")
    received, status, out, _ = replayed(runtime, socket_name, str(path), "--loop", "3", "--topspeed")
    assert received == 3 * PACKETS
    assert status == 0
    assert out.startswith(f"3000 packets, {3 * sum(map(len, PACKETS))} bytes accepted, 0 dropped in ")


def test_a_file_too_large_to_keep_is_read_anew_for_each_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_recording, "_KEPT", 100)
    with Recording(str(capture(tmp_path / "x.pcap")), again=True) as recording:
        for _ in range(3):
            assert [packet.data for packet in recording] == PACKETS
            assert recording.offset == recording.size


def test_a_file_that_is_kept_is_read_once(tmp_path: Path) -> None:
    path = capture(tmp_path / "x.pcap")
    with Recording(str(path), again=True) as recording:
        first = [*recording]
        path.unlink()
        assert [*recording] == first


def test_standard_input_can_be_played(runtime: Runtime, socket_name: str, tmp_path: Path) -> None:
    path = capture(tmp_path / "x.pcap")
    received: list[bytes] = []
    arguments = command("replay", "-", "--socket", socket_name, "--topspeed", "--loop", "2")
    with (
        listener(runtime, socket_name, received),
        path.open("rb") as file,
        subprocess.Popen(
            arguments, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as program,
    ):
        wait_until(lambda: program.poll() is not None, runtime)
        out, _ = program.communicate(timeout=DEADLINE)
    assert out.startswith("2000 packets")
    assert received == 2 * PACKETS


@pytest.mark.parametrize("fifo", [False, True], ids=["standard input", "a fifo"])
@pytest.mark.parametrize("pace", ["--topspeed", "--pps=100000", "--speed=1"])
def test_packets_of_a_live_pipe_are_sent_as_they_come(
    runtime: Runtime, socket_name: str, tmp_path: Path, pace: str, fifo: bool
) -> None:
    """And Ctrl+C ends it while nothing comes."""
    path = tmp_path / "x.fifo"
    head = capture(tmp_path / "empty.pcap", []).read_bytes()
    packets = [b"packet %d" % number for number in range(3)]
    records = capture(tmp_path / "x.pcap", packets, step=1000).read_bytes()[len(head) :]
    size = len(records) // 3
    if fifo:
        os.mkfifo(path)
    arguments = command("replay", "--socket", socket_name, pace, str(path) if fifo else "-")
    received: list[bytes] = []
    with (
        listener(runtime, socket_name, received),
        subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as program,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(program.kill)
        assert program.stdin is not None
        fd = os.open(path, os.O_WRONLY) if fifo else program.stdin.fileno()
        if fifo:
            stack.callback(os.close, fd)
        os.write(fd, head)
        for number in range(3):
            os.write(fd, records[number * size : (number + 1) * size - 5])  # not the whole packet yet
            os.write(fd, records[(number + 1) * size - 5 : (number + 1) * size])
            wait_until(lambda: len(received) > number, runtime)  # noqa: B023
        assert received == packets
        program.send_signal(signal.SIGINT)
        wait_until(lambda: program.poll() is not None, runtime)
        out, err = program.communicate(timeout=DEADLINE)
    assert out.startswith("3 packets, ")
    assert "Traceback" not in err
    assert program.returncode == 0, "a pipe has no end of its own"


def test_packets_that_the_interface_cannot_carry_are_skipped(
    runtime: Runtime, socket_name: str, tmp_path: Path
) -> None:
    path = capture(tmp_path / "x.pcap", [b"\x45ip", bytes(100), b"\x45last"], link=LinkType.RAW)
    small = {"log2_ring_size": 0, "buffer_size": 64}
    arguments = ("--mode", "ip", "--topspeed", "--ring-size", "1", "--buffer-size", "64")
    received, status, out, _ = replayed(runtime, socket_name, str(path), *arguments, mode="ip", **small)
    assert received == [b"\x45ip", b"\x45last"]
    assert ", 1 skipped that this memif cannot carry in " in out
    assert status == 0


# --- link types -----------------------------------------------------------------------------------------------------

IP4 = bytes.fromhex("450000180000000040110000 0a000001 0a000002") + b"four"
#: LINUX_SLL2: IPv4 from 02:00:00:00:00:03.
COOKED = bytes.fromhex("0800 0000 00000001 0001 00 06 0200000000030000") + IP4


def pcap_of(
    path: Path, link_type: int, packets: Sequence[bytes], lengths: Sequence[int] = (), order: str = "<"
) -> Path:
    """A file with a packet every second of 2001, of any link type and any lengths."""
    with path.open("wb") as file:
        file.write(struct.pack(f"{order}IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, link_type))
        for number, packet in enumerate(packets):
            length = lengths[number] if lengths else len(packet)
            file.write(struct.pack(f"{order}IIII", 10**9 + number, 0, len(packet), length) + packet)
    return path


def pcapng_of(path: Path, link_types: Sequence[int], packets: Sequence[tuple[int, bytes]]) -> Path:
    """A file with these interfaces, and packets of them."""

    def block(kind: int, body: bytes) -> bytes:
        total = struct.pack("<I", len(body) + 12)
        return struct.pack("<I", kind) + total + body + total

    data = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
    data += b"".join(block(1, struct.pack("<HHI", link_type, 0, 0)) for link_type in link_types)
    for number, packet in packets:
        packed = packet + bytes(-len(packet) % 4)
        data += block(6, struct.pack("<IIIII", number, 0, 0, len(packet), len(packet)) + packed)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("link_type", "mode", "words"),
    [
        (276, "ethernet", ["LINUX_SLL2 (276)", "ETHERNET (1)", "--convert"]),
        (101, "ethernet", ["RAW (101)", "ETHERNET (1)", "--mode ip", "--convert"]),
        (1, "ip", ["ETHERNET (1)", "RAW (101)", "--mode ethernet", "--convert"]),
        (105, "ethernet", ["IEEE802_11 (105)", "ETHERNET (1)", "tcprewrite"]),
    ],
)
@pytest.mark.parametrize("kind", ["pcap", "pcapng"])
def test_another_link_type_is_one_line_before_any_peer_is_waited_for(
    kind: str, link_type: int, mode: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"x.{kind}"
    if kind == "pcap":
        pcap_of(path, link_type, [COOKED])
    else:
        pcapng_of(path, [link_type], [(0, COOKED)])
    assert main(["replay", str(path), "--mode", mode]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert [word for word in [str(path), *words] if word not in err] == []


@pytest.mark.parametrize("kind", ["pcap", "pcapng"])
def test_a_pipe_of_another_link_type_is_refused_by_its_header(kind: str, tmp_path: Path) -> None:
    """No packet has come, and none will before the replay ends."""
    path = pcap_of(tmp_path / "x", 113, []) if kind == "pcap" else pcapng_of(tmp_path / "x", [113], [])
    with running("replay", "-") as program:
        assert program.stdin is not None
        os.write(program.stdin.fileno(), path.read_bytes())
        assert program.wait(DEADLINE) == 2
        assert program.stderr is not None
        assert program.stderr.read().startswith("memifrt replay: standard input: its packets are LINUX_SLL (113)")


def test_packets_of_another_link_type_among_others_are_counted_and_a_failure(
    runtime: Runtime, socket_name: str, tmp_path: Path
) -> None:
    path = pcapng_of(tmp_path / "x.pcapng", [105, 1], [(0, b"radio"), (1, b"frame"), (0, b"radio")])
    received, status, out, _ = replayed(runtime, socket_name, str(path))
    assert (received, status) == ([b"frame"], 1)
    assert out.startswith("1 packets, 5 bytes accepted, 0 dropped, 2 skipped of another link type in ")


def test_packets_are_converted_when_asked_for(runtime: Runtime, socket_name: str, tmp_path: Path) -> None:
    path = pcapng_of(tmp_path / "x.pcapng", [276, 101, 1], [(0, COOKED), (1, IP4), (2, b"frame"), (1, b"?")])
    macs = ("--dst-mac", "02:00:00:00:00:02", "--src-mac", "02:00:00:00:00:01")
    received, status, out, _ = replayed(runtime, socket_name, str(path), "--convert", *macs)
    target = bytes.fromhex("020000000002")
    made = [target + bytes.fromhex(f"02000000000{end}0800") + IP4 for end in (3, 1)]
    assert (received, status) == ([*made, b"frame"], 0)
    assert ", 1 skipped that this memif cannot carry in " in out


def test_packets_are_converted_for_mode_ip(runtime: Runtime, socket_name: str, tmp_path: Path) -> None:
    path = pcapng_of(tmp_path / "x.pcapng", [276, 101, 1], [(0, COOKED), (1, IP4), (2, bytes(12) + b"\x08\x00" + IP4)])
    received, status, _, _ = replayed(runtime, socket_name, str(path), "--convert", "--mode", "ip", mode="ip")
    assert (received, status) == ([IP4] * 3, 0)


def test_packets_of_a_loopback_interface_are_converted() -> None:
    for link_type, family in ((0, b"\2\0\0\0"), (0, b"\0\0\0\2"), (108, b"\0\0\0\2")):
        for mode, start in ((Mode.ETHERNET, b"\xff" * 6 + bytes.fromhex("02fe00000000 0800")), (Mode.IP, b"")):
            conversion = LinkLayer(mode, convert=True).conversion(link_type)
            assert conversion is not None
            assert conversion(family + IP4) == start + IP4
            assert conversion(family) is None is conversion(family + b"\x10")


# --- what is sent, and how ------------------------------------------------------------------------------------------


def test_addresses_are_rewritten_and_flows_counted(runtime: Runtime, socket_name: str, tmp_path: Path) -> None:
    frame = bytes.fromhex("02fe00000002 02fe00000001 0800") + ip4(17, udp(b"data"))[14:]
    path = capture(tmp_path / "x.pcap.gz", [frame] * 3 + [b"other"])
    arguments = ("-t", "-l", "2", "--enet-dmac", "02:00:00:00:00:99", "--enet-vlan", "add", "--enet-vlan-tag", "5")
    maps = ("--pnat", "192.168.0.0/16:10.9.0.0/16", "--flow-stats", "--pad")
    received, status, out, _ = replayed(runtime, socket_name, str(path), *arguments, *maps)
    assert status == 0
    other = Rewriting(sources=parse_maps(maps[1]), targets=parse_maps(maps[1])).edit(Mode.ETHERNET)
    assert other is not None
    made = bytes.fromhex("020000000099 02fe00000001 8100 0005") + other(frame)[12:]
    assert received == 2 * [*[made.ljust(60, b"\0")] * 3, b"other".ljust(60, b"\0")]
    assert re.search(r"^1 flows, \d+\.\d\d flows/s, 6 packets of flows, 2 other packets$", out, re.M)


def test_a_limit_counts_the_packets_of_all_rounds(runtime: Runtime, socket_name: str, tmp_path: Path) -> None:
    path = capture(tmp_path / "x.pcap", PACKETS[:10])
    arguments = ("-K", "-q", "-t", "--loop", "0", "-L", "25", "--stats", "0")
    received, status, out, err = replayed(runtime, socket_name, str(path), *arguments)
    assert received == (3 * PACKETS[:10])[:25]
    assert status == 0
    assert out.startswith("25 packets, ")
    assert "onto memif0" not in err
    assert re.findall(r"^memifrt replay: (\d+) packets", err, re.M) == ["10", "20", "25"]


def test_a_duration_ends_it_and_is_no_failure(runtime: Runtime, socket_name: str, tmp_path: Path) -> None:
    path = capture(tmp_path / "x.pcap", [bytes(60)] * 10, step=3600 * SECOND)
    received, status, out, _ = replayed(runtime, socket_name, str(path), "--duration", "0.05")
    assert (len(received), status) == (1, 0)
    assert out.startswith("1 packets, ")


def test_one_packet_at_a_time_waits_for_the_user(runtime: Runtime, socket_name: str, tmp_path: Path) -> None:
    path = capture(tmp_path / "x.pcap", PACKETS[:10])
    received: list[bytes] = []

    def has(count: int) -> bool:
        return len(received) == count

    with (
        listener(runtime, socket_name, received),
        running("replay", str(path), "--socket", socket_name, "-o") as program,
    ):
        assert program.stdin is not None
        wait_until(lambda: runtime.interfaces[0].connected, runtime)
        for answer, sent in ((b"\n", 1), (b"3\n", 4), (b"many\n\n", 5)):
            os.write(program.stdin.fileno(), answer)
            wait_until(functools.partial(has, sent), runtime)
        program.stdin.close()
        program.stdin = None
        wait_until(lambda: program.poll() is not None, runtime)
        status, out, err = finish(program)
    assert (received, status) == (PACKETS[:5], 0)
    assert out.startswith("5 packets, ")
    assert "Enter sends packet 6, " in err
    assert "'many' is not a number of packets" in err


def test_a_limit_does_not_wait_for_more_of_a_pipe(tmp_path: Path) -> None:
    with Recording(str(capture(tmp_path / "x.pcap", PACKETS[:3])), again=False) as recording:
        chosen = Selection(recording, LinkLayer(Mode.ETHERNET), None, Outcome(), limit=2)
        assert [packet.data for packet in chosen.packets()] == PACKETS[:2]
        assert (chosen.left, recording.offset < recording.size) == (0, True)


def test_a_capture_that_is_preloaded_is_checked_before_a_peer_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = capture(tmp_path / "x.pcap")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert main(["replay", str(path), "-K"]) == 2
    assert "the file ends within packet 1000" in capsys.readouterr().err
    path.write_bytes(whole)
    monkeypatch.setattr(replay_recording, "_KEPT", 100)
    assert main(["replay", str(path), "--preload-pcap"]) == 2
    assert "play it without --preload-pcap" in capsys.readouterr().err


def test_one_at_a_time_needs_standard_input_for_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "-", "-o"]) == 2
    assert "so the capture must be a file" in capsys.readouterr().err


# --- packets that were cut at capture -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sent", "status", "said"),
    [
        ([], [b"whole"], 1, "2 skipped that were cut at capture"),
        (["--cut", "skip"], [b"whole"], 0, "2 skipped that were cut at capture"),
        (["--cut", "send"], [b"head", b"whole", b"x"], 0, "2 sent as they were cut at capture"),
        (["--cut", "pad"], [b"head" + bytes(60), b"whole", b"x" + bytes(63)], 0, "2 that were cut at capture padded"),
    ],
    ids=["default", "skip", "send", "pad"],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_packets_that_were_cut_at_capture_are_said(
    order: str,
    arguments: list[str],
    sent: list[bytes],
    status: int,
    said: str,
    runtime: Runtime,
    socket_name: str,
    tmp_path: Path,
) -> None:
    path = pcap_of(tmp_path / "x.pcap", 1, [b"head", b"whole", b"x"], [64, 5, 64], order)
    received, ended, out, err = replayed(runtime, socket_name, str(path), "--topspeed", *arguments)
    assert (received, ended) == (sent, status)
    assert f", {said}" in out
    assert err.count("a packet was cut at capture to 4 of its 64 bytes") == (0 if arguments else 1)


def test_a_packet_that_claims_more_than_any_has_is_not_padded(
    runtime: Runtime, socket_name: str, tmp_path: Path
) -> None:
    path = pcap_of(tmp_path / "x.pcap", 1, [b"head", b"last"], [0xFFFFFFFF, 4])
    received, status, out, _ = replayed(runtime, socket_name, str(path), "--topspeed", "--cut", "pad")
    assert (received, status) == ([b"last"], 1)
    assert ", 1 skipped that were cut at capture in " in out


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pcap", "pcapng"])
def test_a_file_without_packets_is_one_line(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = pcap_of(tmp_path / "x", 1, []) if kind == "pcap" else pcapng_of(tmp_path / "x", [1], [])
    assert main(["replay", str(path)]) == 2
    assert capsys.readouterr() == ("", f"memifrt replay: {path}: there is no packet in it\n")


def test_a_pipe_without_packets_is_a_failure(runtime: Runtime, socket_name: str, tmp_path: Path) -> None:
    path = pcap_of(tmp_path / "x", 1, [])
    with listener(runtime, socket_name, []), running("replay", "-", "--socket", socket_name) as program:
        assert program.stdin is not None
        os.write(program.stdin.fileno(), path.read_bytes())
        program.stdin.close()
        program.stdin = None
        wait_until(lambda: program.poll() is not None, runtime)
        status, out, err = finish(program)
    assert status == 2
    assert out.startswith("0 packets")
    assert err.endswith("memifrt replay: standard input: there is no packet in it\n")


def test_a_file_that_was_cut_off_is_played_as_far_as_it_goes(
    runtime: Runtime, socket_name: str, tmp_path: Path
) -> None:
    path = capture(tmp_path / "x.pcap")
    path.write_bytes(path.read_bytes()[:-1])
    received, status, out, err = replayed(runtime, socket_name, str(path), "--topspeed")
    assert received == PACKETS[:-1]
    assert status == 2
    assert out.startswith("999 packets")
    assert re.search(r"^memifrt replay: \S+/x\.pcap: at byte \d+: the file ends within packet 1000: ", err, re.M)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot read"), (b"", "the file is empty"), (b"#!/bin/sh", "not a pcap or pcapng file")],
)
def test_a_file_that_is_no_capture_is_one_line(
    content: bytes | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x"
    if content is not None:
        path.write_bytes(content)
    assert main(["replay", str(path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert str(path) in err
    assert words in err


def test_a_file_that_is_broken_before_its_first_packet_is_told_before_any_peer_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = capture(tmp_path / "x.pcap")
    path.write_bytes(path.read_bytes()[:30])
    assert main(["replay", str(path)]) == 2
    assert "the file ends within the header of packet 1" in capsys.readouterr().err


# --- when it is due -------------------------------------------------------------------------------------------------


def due(pace: Pace, times: Sequence[int | None], size: int = 125, shortened: list[None] | None = None) -> list[int]:
    clock = pace.clock((lambda: shortened.append(None)) if shortened is not None else lambda: None)
    assert clock is not None
    return [clock(Packet(when, bytes(size), size, 1)) for when in times]


def test_packets_are_due_when_they_were_captured() -> None:
    assert due(Pace(speed=1.0), [10**18, 10**18 + 5, 10**18 + 7]) == [0, 5, 7]
    assert due(Pace(speed=2.0), [10**18, 10**18 + 10]) == [0, 5]


def test_a_packet_that_is_older_than_the_one_before_it_is_due_at_once() -> None:
    assert due(Pace(speed=1.0), [100, 150, 120, 0, 160]) == [0, 50, 50, 50, 60]


YEARS = 1_700_000_000 * SECOND


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([0, YEARS, YEARS + 5], [0, 0, 5]),
        ([None, YEARS, YEARS + 5], [0, 0, 5]),
        ([0, None, 0, YEARS, None, YEARS + 5, 0, YEARS + 9], [0, 0, 0, 0, 0, 5, 5, 9]),
        ([YEARS, 0, YEARS + 7], [0, 0, 7]),
        ([None, None], [0, 0]),
    ],
)
def test_packets_without_a_time_follow_at_once(times: list[int | None], expected: list[int]) -> None:
    assert due(Pace(speed=1.0), times) == expected


def test_times_that_start_at_zero_are_times() -> None:
    assert due(Pace(speed=1.0), [0, SECOND, 2 * SECOND]) == [0, SECOND, 2 * SECOND]


def test_a_clock_that_was_set_back_counts_from_there() -> None:
    times = [YEARS, YEARS + SECOND, YEARS - 3600 * SECOND, YEARS - 3599 * SECOND]
    assert due(Pace(speed=1.0), times) == [0, SECOND, SECOND, 2 * SECOND]


def test_a_gap_is_bounded_and_counted() -> None:
    shortened: list[None] = []
    times = [YEARS, YEARS + SECOND, YEARS + 3600 * SECOND, YEARS + 3601 * SECOND, 2 * YEARS]
    found = due(Pace(speed=1.0, max_gap=2.0), times, shortened=shortened)
    assert found == [0, SECOND, 3 * SECOND, 4 * SECOND, 6 * SECOND]
    assert len(shortened) == 2
    assert due(Pace(speed=10.0, max_gap=2.0), [YEARS, YEARS + 20 * SECOND]) == [0, 2 * SECOND]


def test_a_long_wait_is_said(runtime: Runtime, socket_name: str, tmp_path: Path) -> None:
    path = capture(tmp_path / "x.pcap", [bytes(60)] * 2, step=100 * 86400 * SECOND)
    with listener(runtime, socket_name, []), running("replay", str(path), "--socket", socket_name) as program:
        wait_until(lambda: runtime.interfaces[0].connected, runtime)
        said = read_until(program, "is due in", stderr=True)
        assert re.search(r"the next packet is due in 99 days, .*; --max-gap limits the gaps of the capture$", said)


def test_a_bounded_gap_is_said(runtime: Runtime, socket_name: str, tmp_path: Path) -> None:
    path = capture(tmp_path / "x.pcap", [bytes(60)] * 3, step=86400 * SECOND)
    received, status, out, _ = replayed(runtime, socket_name, str(path), "--max-gap", "0.01")
    assert (len(received), status) == (3, 0)
    assert ", 2 gaps shortened in " in out


def test_packets_are_due_at_a_rate() -> None:
    assert due(Pace(pps=1000), [0] * 4) == [0, 10**6, 2 * 10**6, 3 * 10**6]
    assert due(Pace(pps=3), [0] * 4) == [0, 333333333, 666666666, SECOND]
    assert due(Pace(mbps=1), [0] * 3) == [0, 10**6, 2 * 10**6]  # 125 bytes are 1000 bits
    assert Pace().clock() is None


@pytest.mark.parametrize("arguments", [[], ["--pps", "100"], ["--mbps", "0.8"]], ids=["captured", "pps", "mbps"])
def test_no_packet_is_sent_before_it_is_due(
    arguments: list[str], runtime: Runtime, socket_name: str, tmp_path: Path
) -> None:
    path = capture(tmp_path / "x.pcap", [bytes(1000)] * 21, step=SECOND // 100)
    _, status, out, _ = replayed(runtime, socket_name, str(path), *arguments)
    assert status == 0
    found = re.search(r" in (\d+\.\d+) s: ", out)
    assert found
    assert float(found[1]) >= 0.2


@pytest.mark.parametrize("arguments", [["--pps", "100"], ["--mbps", "0.8"]], ids=["pps", "mbps"])
def test_a_rate_goes_on_from_round_to_round(
    arguments: list[str], runtime: Runtime, socket_name: str, tmp_path: Path
) -> None:
    path = capture(tmp_path / "x.pcap", [bytes(1000)])
    received, status, out, _ = replayed(runtime, socket_name, str(path), *arguments, "--loop", "21")
    assert (len(received), status) == (21, 0)
    found = re.search(r" in (\d+\.\d+) s: ", out)
    assert found
    assert float(found[1]) >= 0.2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pps", "0"], ["--pps", "'0'", "above 0"]),
        (["--speed", "1e-300"], ["--speed", "1e-300", "above 0"]),
        (["--mbps", "fast"], ["--mbps", "'fast'"]),
        (["--speed", "nan"], ["--speed", "'nan'"]),
        (["--pps", "1", "--topspeed"], ["--topspeed", "--pps"]),
        (["--loop", "-1"], ["--loop", "'-1'"]),
        (["--max-gap", "-1"], ["--max-gap", "'-1'"]),
        (["--max-gap", "1", "--pps", "5"], ["--max-gap", "--pps"]),
        (["--max-gap", "1", "--topspeed"], ["--max-gap", "--topspeed"]),
        (["--maxsleep", "1", "-t"], ["--maxsleep", "--topspeed"]),
        (["--maxsleep", "1", "--max-gap", "1"], ["--maxsleep", "--max-gap", "give one"]),
        (["--maxsleep", "1.5"], ["--maxsleep", "'1.5'"]),
        (["-x", "0"], ["--multiplier", "'0'", "above 0"]),
        (["-p", "1", "-M", "1"], ["--pps", "--mbps"]),
        (["-o", "-t"], ["--oneatatime", "--topspeed"]),
        (["-L", "0"], ["--limit", "'0'"]),
        (["--duration", "0"], ["--duration", "'0'"]),
        (["--pad", "--cut", "send"], ["--pad", "--cut"]),
        (["--srcipmap", "10.0.0.0/8"], ["--srcipmap", "'10.0.0.0/8'", "10.0.0.0/8:192.168.0.0/16"]),
        (["-D", "[fe80::/10]:[10.0.0.0/8]"], ["--dstipmap", "IPv6 to IPv4"]),
        (["-N", ""], ["--pnat", "''"]),
        (["--enet-dmac", "1,2"], ["--enet-dmac", "'1,2'"]),
        (["--enet-subsmac", "02:00:00:00:00:01"], ["--enet-subsmac", "OLD,NEW"]),
        (["--enet-vlan", "add"], ["--enet-vlan=add", "--enet-vlan-tag=N"]),
        (["--enet-vlan", "set"], ["--enet-vlan", "'set'", "add"]),
        (["--enet-vlan", "add", "--enet-vlan-tag", "4096"], ["--enet-vlan-tag", "'4096'", "4095"]),
        (["--enet-vlan-tag", "5"], ["--enet-vlan-tag", "--enet-vlan=add"]),
        (["--enet-vlan-pri", "0"], ["--enet-vlan-pri", "--enet-vlan=add"]),
        (["--enet-vlan-proto", "802.1ad"], ["--enet-vlan-proto", "--enet-vlan=add"]),
        (["--stats", "-1"], ["--stats -1", "seconds"]),
        (["--stats", "1.5"], ["--stats 1.5", "seconds"]),
        (["--mode", "ip", "--enet-vlan", "del"], ["--enet-…", "mode ip"]),
        (["--cut", "fill"], ["--cut", "'fill'", "pad"]),
        (["--dst-mac", "x"], ["--dst-mac", "'x'"]),
        (["--src-mac", "ff:ff:ff:ff:ff:ff"], ["--src-mac", "unicast"]),
    ],
)
def test_a_wrong_pace_is_one_line(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "x.pcap", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert [word for word in words if word not in err] == []


@pytest.mark.parametrize(
    ("given", "long"),
    [
        (["-x", "2", "--maxsleep", "1500"], ["--speed", "2", "--max-gap", "1.5"]),
        (["--multiplier", "3"], ["--speed", "3"]),
        (["-p", "5"], ["--pps", "5"]),
        (["-M", "5"], ["--mbps", "5"]),
        (["-t"], ["--topspeed"]),
    ],
)
def test_the_options_of_tcpreplay_mean_the_same(given: list[str], long: list[str]) -> None:
    def parsed(arguments: Sequence[str]) -> argparse.Namespace:
        parser = Parser("test", allow_abbrev=False)
        replay.COMMAND.add_arguments(parser)
        return parser.parse_args(["x.pcap", *arguments])

    assert replay._pace(parsed(given)) == replay._pace(parsed(long))
    assert parsed(["-l", "3", "-L", "7"]).loop == 3


def test_a_number_for_stats_is_an_interval_and_anything_else_a_socket() -> None:
    for text, every, path in (("5", 5.0, None), ("0", 0.0, None), ("./5", None, "./5"), ("@5", None, "@5")):
        arguments = argparse.Namespace(stats=text, duration=0.0, oneatatime=False, quiet=False)
        assert replay._conduct(arguments).report_every == every
        assert arguments.stats == path


# --- a peer that does not take them ---------------------------------------------------------------------------------


@contextlib.contextmanager
def deaf(runtime: Runtime, socket: str) -> Iterator[Interface]:
    """A peer that connects and reads nothing."""
    with runtime.create_interface(socket=socket, role="master") as interface:
        yield interface


def test_what_finds_no_room_is_dropped_when_asked_for(runtime: Runtime, socket_name: str, tmp_path: Path) -> None:
    path = capture(tmp_path / "x.pcap", [bytes(60)] * 1000)
    arguments = ("replay", str(path), "--socket", socket_name, "--drop", "--ring-size", "64", "--topspeed")
    with deaf(runtime, socket_name), running(*arguments) as program:
        wait_until(lambda: program.poll() is not None, runtime)
        status, out, _ = finish(program)
    assert status == 1
    assert out.startswith("64 packets, 3840 bytes accepted, 936 dropped, 64 not taken by the peer in ")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_replay_that_is_interrupted_says_what_it_did(
    how: signal.Signals, runtime: Runtime, socket_name: str, tmp_path: Path
) -> None:
    path = capture(tmp_path / "x.pcap", [bytes(60)] * 1000)
    arguments = ("replay", str(path), "--socket", socket_name, "--ring-size", "64", "--topspeed")
    with deaf(runtime, socket_name) as interface, running(*arguments) as program:
        wait_until(lambda: interface.connected, runtime)
        deadline = time.monotonic() + DEADLINE
        while interface.rx_queues[0].pending() < 64:
            assert time.monotonic() < deadline
        status, out, err = end(program, how)
        wait_until(lambda: not interface.connected, runtime)
    assert status == 128 + how
    assert out.startswith("64 packets, 3840 bytes accepted, 0 dropped, 64 not taken by the peer in ")
    assert "Traceback" not in err


def test_a_peer_that_goes_away_ends_it(runtime: Runtime, socket_name: str, tmp_path: Path) -> None:
    path = capture(tmp_path / "x.pcap", [bytes(60)] * 10, step=3600 * SECOND)
    received: list[bytes] = []
    with running("replay", str(path), "--socket", socket_name) as program:
        with listener(runtime, socket_name, received):
            wait_until(lambda: received, runtime)
        status, out, _ = finish(program)
    assert status == 1
    assert out.startswith("1 packets, 60 bytes accepted")


def test_a_replay_without_a_peer_waits_and_can_be_interrupted(socket_name: str, tmp_path: Path) -> None:
    with running("replay", str(capture(tmp_path / "x.pcap")), "--socket", socket_name) as program:
        read_until(program, "onto memif0", stderr=True)
        status, out, err = end(program)
    assert status == 130
    assert out.startswith("0 packets")
    assert "Traceback" not in err


# --- what is shown --------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(progress("replay", 10)) is Progress
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    pytest.importorskip("rich")
    with progress("replay", 200) as bar:
        assert bar.due <= time.monotonic()
        bar.update("7 packets", 100)
    assert "7 packets" in shown.getvalue()
    assert "50 %" in shown.getvalue()


def test_progress_without_rich_is_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with progress("replay", 200) as lines:
        lines.update("7 packets", 100)
    with progress("dump") as lines:
        lines.update("8 packets")
    assert shown.getvalue() == "memifrt replay: 7 packets (50 %)\nmemifrt dump: 8 packets\n"


def test_an_outcome_is_a_line() -> None:
    outcome = Outcome(1000, 125_000, 3, 2, 1, 0.5)
    assert outcome.line() == (
        "1000 packets, 125000 bytes accepted, 3 dropped, 2 skipped that this memif cannot carry, "
        "1 not taken by the peer in 0.500 s: 2000 packets/s, 2.000 Mbit/s"
    )


def test_replay_can_be_called_from_python(runtime: Runtime, socket_name: str, tmp_path: Path) -> None:
    """In this process: it ends by itself when a signal would, and leaves nothing behind."""
    path = capture(tmp_path / "x.pcap", PACKETS[:10])
    with running("dump", "--role", "master", "--socket", socket_name, "-w", str(tmp_path / "y.pcap")) as dump:
        read_until(dump, "capturing on", stderr=True)
        outcome = replay.replay(str(path), MemifEndpoint(socket_name), Pace())
        assert end(dump)[0] == 0
    assert (outcome.accepted, outcome.complete) == (10, True)
    assert data(tmp_path / "y.pcap") == PACKETS[:10]
