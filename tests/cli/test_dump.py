"""``memifrt dump``: lines, capture files that others open, filters, rotation, and the way between two memifs."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from memifrt import ConfigError, Disconnected, Interface, MemifError, MemifOSError, Mode, Runtime
from memifrt.capture import filter as bpf
from memifrt.capture.lines import LineStyle
from memifrt.capture.pcap import LinkType, Packet, check_writable, create_capture, open_capture, read_capture
from memifrt.capture.summary import scapy_summary
from memifrt.cli.command_line import main
from memifrt.cli.dump.capture import Capture
from memifrt.cli.dump.files import Files
from memifrt.cli.dump.from_file import dump_file
from memifrt.cli.dump.options import DumpOptions, Rotation
from memifrt.cli.dump.sink import Lines
from memifrt.cli.postrotate import PostRotation, parse_command
from memifrt.cli.progress import Progress
from memifrt.packets import arp_request, echo_request, parse_ip, parse_mac
from tests.cli.test_bridge import endpoint, send_all, try_until
from tests.lib.programs import Program, command, end, finish, read_until, running
from tests.lib.support import DEADLINE, wait_until

A, B = parse_ip("192.168.1.1"), parse_ip("192.168.1.2")
MAC_A, MAC_B = parse_mac("02:fe:00:00:00:01"), parse_mac("02:fe:00:00:00:02")


def echo(sequence: int, size: int = 56) -> bytes:
    return echo_request(
        source_mac=MAC_A,
        source_ip=A,
        target_mac=MAC_B,
        target_ip=B,
        identifier=7,
        sequence=sequence,
        payload=bytes(size),
    )


def everything(path: Path) -> list[Packet]:
    with open_capture(path) as reader:
        return [*reader]


def sender(runtime: Runtime, socket: str, **options: Any) -> Interface:
    interface = runtime.create_interface(socket=socket, **options)
    wait_until(lambda: interface.connected, runtime)
    return interface


def drained(interface: Interface) -> bool:
    """Whether the peer has taken everything."""
    tx = interface.tx_queues[0]
    return tx.free() == tx.ring_size


def dumping(*arguments: str) -> Any:
    return running("dump", *arguments)


def wait_for_dump(program: Program) -> None:
    read_until(program, "capturing on", stderr=True)


# --- as an endpoint -------------------------------------------------------------------------------------------------


def test_packets_are_lines_as_they_come(runtime: Runtime, socket_name: str) -> None:
    with dumping("--role", "master", "--socket", socket_name, "-c", "3") as program:
        wait_for_dump(program)
        interface = sender(runtime, socket_name)
        send_all(interface, [arp_request(MAC_A, A, B), echo(1)], runtime)
        line = read_until(program, "ICMP")  # it is there before the last packet comes
        send_all(interface, [bytes(60)], runtime)
        status, out, err = finish(program)
        wait_until(lambda: not interface.connected, runtime)
    assert re.match(
        r"^\d\d:\d\d:\d\d\.\d{6} IP 192\.168\.1\.1 > 192\.168\.1\.2: ICMP echo request, id 7, seq 1, length 64$", line
    )
    assert out.endswith("[|llc]\n")
    assert (status, out.count("\n")) == (0, 1)
    assert err.endswith("memifrt dump: 3 packets captured\n")


@pytest.mark.parametrize("name", ["x.pcap", "x.pcapng"])
def test_a_file_holds_what_was_sent_byte_for_byte(
    name: str, runtime: Runtime, socket_name: str, tmp_path: Path
) -> None:
    packets = [echo(number, 7 * number) for number in range(600)]  # some are chains
    path = tmp_path / name
    with dumping("--role", "master", "--socket", socket_name, "-w", str(path)) as program:
        wait_for_dump(program)
        interface = sender(runtime, socket_name)
        send_all(interface, packets, runtime)
        try_until(lambda: drained(interface), runtime)
        status, out, err = end(program)
        wait_until(lambda: not interface.connected, runtime)
    assert (status, out) == (0, "")
    assert err.endswith("memifrt dump: 600 packets captured\n")
    found = everything(path)
    assert [packet.data for packet in found] == packets
    assert [packet.time or 0 for packet in found] == sorted(packet.time or 0 for packet in found)
    assert_scapy_reads(path, packets)
    assert_tcpdump_reads(path, len(packets))


def assert_scapy_reads(path: Path, packets: Sequence[bytes]) -> None:
    utils = pytest.importorskip("scapy.utils")
    with utils.RawPcapReader(str(path)) as reader:
        assert [data for data, _ in reader] == packets


def assert_tcpdump_reads(path: Path, count: int) -> None:
    if not shutil.which("tcpdump"):
        pytest.skip("tcpdump is not installed")
    arguments = ["tcpdump", "-n", "-r", str(path), "icmp[icmptype] == icmp-echo"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=DEADLINE)
    assert len(done.stdout.splitlines()) == count
    assert "truncated" not in done.stdout + done.stderr


def test_a_pipe_gets_pcap_at_once(runtime: Runtime, socket_name: str) -> None:
    arguments = command("dump", "--role", "master", "--socket", socket_name, "--mode", "ip", "-w", "-", "-c", "2")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        try:
            assert program.stdout is not None
            assert program.stderr is not None
            program.stderr.readline()
            interface = sender(runtime, socket_name, mode="ip")
            send_all(interface, [b"\x45first"], runtime)
            start = program.stdout.read(24 + 16 + 6)  # not only at the end
            send_all(interface, [b"\x45second"], runtime)
            rest, _ = program.communicate(timeout=DEADLINE)
        finally:
            program.kill()
        wait_until(lambda: not interface.connected, runtime)
    found = [*read_capture(io.BytesIO(start + rest), "pipe")]
    assert [(packet.data, packet.link_type) for packet in found] == [
        (b"\x45first", LinkType.RAW),
        (b"\x45second", LinkType.RAW),
    ]


def test_a_pipe_that_nobody_reads_any_more_ends_it_quietly(runtime: Runtime, socket_name: str) -> None:
    arguments = command("dump", "--role", "master", "--socket", socket_name, "-w", "-")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            assert program.stderr is not None
            assert any("capturing on" in line for line in program.stderr)
            program.stdout.close()
            # The head of the file may have been written before or after the pipe was closed.
            interface = runtime.create_interface(socket=socket_name)
            wait_until(lambda: interface.connected or program.poll() is not None, runtime)
            with contextlib.suppress(Disconnected, IndexError):
                interface.tx_queues[0].send([echo(1)])
            wait_until(lambda: program.poll() is not None, runtime)
            said = program.stderr.read()
            assert program.wait(DEADLINE) == 1
        finally:
            program.kill()
    assert "Traceback" not in said
    assert "Exception" not in said


def test_a_full_disk_is_one_line_and_status_2(socket_name: str) -> None:
    with dumping("--role", "master", "--socket", socket_name, "-w", "/dev/full") as program:
        status, _, err = finish(program)
    assert status == 2
    assert err.endswith("memifrt dump: cannot write /dev/full: No space left on device [ENOSPC]\n")
    assert "Traceback" not in err


# --- filters --------------------------------------------------------------------------------------------------------


def needs_libpcap() -> None:
    try:
        bpf.compile_filter("arp", LinkType.ETHERNET)
    except MemifError as error:
        pytest.skip(str(error))


def test_only_packets_that_match_the_filter_are_captured(runtime: Runtime, socket_name: str, tmp_path: Path) -> None:
    needs_libpcap()
    path = tmp_path / "x.pcap"
    arguments = [
        "--role",
        "master",
        "--socket",
        socket_name,
        "-w",
        str(path),
        "-c",
        "2",
        "icmp",
        "and",
        "greater",
        "99",
    ]
    with dumping(*arguments) as program:
        wait_for_dump(program)
        interface = sender(runtime, socket_name)
        send_all(interface, [arp_request(MAC_A, A, B), echo(1, 100), echo(2, 10), echo(3, 58), echo(4, 99)], runtime)
        assert finish(program)[0] == 0
        wait_until(lambda: not interface.connected, runtime)
    assert [packet.data for packet in everything(path)] == [echo(1, 100), echo(3, 58)]


def test_a_filter_sees_ip_packets_in_ip_mode() -> None:
    needs_libpcap()
    matches = bpf.compile_filter("icmp", LinkType.RAW)
    assert [matches(packet) for packet in (echo(1)[14:], echo(1), b"")] == [True, False, False]


def test_a_filter_of_ethernet_addresses_is_refused_in_ip_mode(capsys: pytest.CaptureFixture[str]) -> None:
    needs_libpcap()
    assert main(["dump", "--mode", "ip", "ether", "host", "02:00:00:00:00:01"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "libpcap does not understand the filter 'ether host 02:00:00:00:00:01': " in err


def test_a_filter_that_is_none_is_one_line_in_libpcap_s_words(capsys: pytest.CaptureFixture[str]) -> None:
    needs_libpcap()
    assert main(["dump", "--role", "master", "--socket", "@memifrt-test-filter", "icmp or else"]) == 2
    err = capsys.readouterr().err
    assert "libpcap does not understand the filter 'icmp or else': " in err
    assert err[:-1].isprintable()


def test_without_libpcap_a_filter_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpf, "_LIBRARIES", ("libnosuchpcap.so",))
    with pytest.raises(MemifError, match=r"a filter needs libpcap, .* apt install libpcap0\.8"):
        bpf.compile_filter("arp", LinkType.ETHERNET)


# --- files ----------------------------------------------------------------------------------------------------------

SECOND = 1_000_000_000


def files(path: Path, rotation: Rotation) -> Files:
    return Files(str(path), [("x", LinkType.ETHERNET)], 65535, rotation)


def names(folder: Path) -> dict[str, list[bytes]]:
    return {path.name: [packet.data for packet in everything(path)] for path in sorted(folder.iterdir())}


def test_a_new_file_begins_when_the_last_is_full(tmp_path: Path) -> None:
    with files(tmp_path / "x.pcap", Rotation(bytes=100)) as sink:
        for letter in (b"a", b"b", b"c", b"d", b"e"):
            sink.record([letter * 30], SECOND, 0)
    assert names(tmp_path) == {
        "x-0001.pcap": [b"a" * 30, b"b" * 30],
        "x-0002.pcap": [b"c" * 30, b"d" * 30],
        "x-0003.pcap": [b"e" * 30],
    }


def test_a_new_file_begins_when_its_time_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 1000 * SECOND)
    with files(tmp_path / "x.pcapng", Rotation(seconds=10)) as sink:
        for second in (1000, 1009, 1010, 1035, 1039, 1040):
            sink.record([b"%d" % second], second * SECOND, 0)
    assert names(tmp_path) == {
        "x-0001.pcapng": [b"1000", b"1009"],
        "x-0002.pcapng": [b"1010"],
        "x-0003.pcapng": [b"1035", b"1039"],
        "x-0004.pcapng": [b"1040"],
    }


def test_a_percent_sign_is_for_strftime_and_no_file_is_written_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 1000 * SECOND)
    with files(tmp_path / "x%s.pcap", Rotation(seconds=10, bytes=30)) as sink:
        for second in (1000, 1000, 1011):
            sink.record([bytes(20)], second * SECOND, 0)
    assert [*names(tmp_path)] == ["x1000-0001.pcap", "x1000.pcap", "x1011.pcap"]


def test_no_file_is_written_twice_however_many_there_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 1000 * SECOND)
    monkeypatch.setattr("memifrt.cli.dump.files._REMEMBERED", 2)
    (tmp_path / "x43.pcap").write_bytes(b"of an earlier run")
    os.utime(tmp_path / "x43.pcap", (1, 1))
    with files(tmp_path / "x%S.pcap", Rotation(seconds=1)) as sink:
        for second in range(1000, 1120):
            sink.record([b"%d" % second], second * SECOND, 0)
    found = names(tmp_path)
    assert len(found) == 120
    assert sorted(packet for packets in found.values() for packet in packets) == sorted(
        b"%d" % second for second in range(1000, 1120)
    )


def test_a_capture_of_many_files_remembers_few_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memifrt.cli.dump.files._REMEMBERED", 10)
    with files(tmp_path / "x%s.pcap", Rotation(seconds=1)) as sink:
        kept = []
        tracemalloc.start()
        try:
            for second in range(520):
                sink.record([b"x"], (10_000_000_000 + second) * SECOND, 0)
                if second in (19, 519):
                    kept.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
    assert kept[1] - kept[0] < 500 * 60, "not even a name for each file"


def test_a_command_that_is_too_slow_does_not_make_the_capture_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("memifrt.cli.postrotate._MOST_WAITING", 2)
    monkeypatch.setattr(PostRotation, "_start", lambda self, path: None)
    monkeypatch.setattr(PostRotation, "poll", lambda self: None)
    rotation = PostRotation(["gzip"])
    for name in ("a", "b", "c"):
        rotation.add(name)
    assert capsys.readouterr().err == ("memifrt dump: gzip is too slow: 2 files wait for it; not running it on c\n")


def test_a_capture_goes_where_a_symbolic_link_points(tmp_path: Path) -> None:
    (tmp_path / "x.pcap").symlink_to(tmp_path / "y.pcap")
    check_writable(str(tmp_path / "x.pcap"))
    assert not (tmp_path / "y.pcap").exists()
    with files(tmp_path / "x.pcap", Rotation()) as sink:
        sink.record([b"a"], SECOND, 0)
    assert (tmp_path / "x.pcap").is_symlink()
    assert [packet.data for packet in everything(tmp_path / "y.pcap")] == [b"a"]


def test_rotation_without_a_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", "-G", "10"]) == 2
    assert main(["dump", "-C", "10", "-w", "-"]) == 2
    assert capsys.readouterr().err == 2 * "memifrt dump: -G and -C start new files: they need -w FILE\n"
    with pytest.raises(ConfigError, match="-w FILE"):
        DumpOptions(rotation=Rotation(seconds=1))


def test_a_capture_is_not_written_to_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with pytest.raises(ConfigError, match="standard output is a terminal: pipe it"):
        DumpOptions(path="-")


def test_the_clock_of_a_capture_never_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([5, 9, 7, 8, 10])
    path = tmp_path / "x.pcap"
    with files(path, Rotation()) as sink:
        monkeypatch.setattr("time.time_ns", lambda: next(times) * SECOND)
        capture = Capture(sink, None, None, lambda: None, Progress())
        for _ in range(5):
            capture.record([b"x"])
    assert [(packet.time or 0) // SECOND for packet in everything(path)] == [5, 9, 9, 9, 10]


def test_a_ring_of_files_has_tcpdump_s_names_and_keeps_the_last_ones(tmp_path: Path) -> None:
    with files(tmp_path / "x.pcap", Rotation(bytes=50, files=11)) as sink:
        for number in range(13):
            sink.record([b"%02d" % number * 15], SECOND, 0)
    found = names(tmp_path)
    assert [*found] == [f"x.pcap{number:02}" for number in range(11)]
    assert [found[f"x.pcap{number:02}"][0][:2] for number in (0, 1, 2, 10)] == [b"11", b"12", b"02", b"10"]


def test_the_number_of_a_ring_comes_before_the_suffix_of_a_compression(tmp_path: Path) -> None:
    with files(tmp_path / "x.pcapng.gz", Rotation(bytes=1, files=2)) as sink:
        for _ in range(3):
            sink.record([bytes(60)], SECOND, 0)
    assert {path.name for path in tmp_path.iterdir()} <= {"x.pcapng0.gz", "x.pcapng1.gz"}
    assert everything(tmp_path / "x.pcapng0.gz")


def test_a_ring_of_one_file_is_the_file_itself(tmp_path: Path) -> None:
    with files(tmp_path / "x.pcap", Rotation(bytes=1, files=1)) as sink:
        for letter in (b"a", b"b"):
            sink.record([letter], SECOND, 0)
    assert names(tmp_path) == {"x.pcap": [b"b"]}


def test_a_number_of_files_by_time_ends_the_capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 1000 * SECOND)
    ended: list[None] = []
    rotation, interfaces = Rotation(seconds=10, files=2), [("x", LinkType.ETHERNET)]
    sink = Files(str(tmp_path / "x%s.pcap"), interfaces, 65535, rotation, stop=lambda: ended.append(None))
    with sink:
        for second in (1000, 1011, 1019):
            sink.record([b"%d" % second], second * SECOND, 0)
            assert not ended
        for second in (1021, 1022):
            sink.record([b"%d" % second], second * SECOND, 0)
            sink.flush()
            assert sink.ended
    assert len(ended) == 1
    assert names(tmp_path) == {"x1000.pcap": [b"1000"], "x1011.pcap": [b"1011", b"1019"]}


def test_a_command_runs_on_each_file_that_ends_but_the_last(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "remember this"
    script.write_text('#!/bin/sh\necho "$@" >> "$0.log"\ncase "$2" in *3.pcap) exit 7;; esac\n')
    script.chmod(0o755)
    command = parse_command(f"'{script}' -a")
    folder = tmp_path / "captures"
    folder.mkdir()
    rotation, interfaces = Rotation(bytes=25), [("x", LinkType.ETHERNET)]
    with Files(str(folder / "a b.pcap"), interfaces, 65535, rotation, command=command) as sink:
        for letter in (b"a", b"b", b"c", b"d", b"e", b"f", b"g"):
            sink.record([letter], SECOND, 0)
    ran = sorted(Path(f"{script}.log").read_text().splitlines())
    assert ran == [f"-a {folder}/a b-{number:04}.pcap" for number in range(1, 7)]
    assert capfd.readouterr().err == f"memifrt dump: {script} -a {folder}/a b-0003.pcap ended with status 7\n"


def test_a_file_of_a_ring_is_not_written_anew_while_its_command_runs(tmp_path: Path) -> None:
    script = tmp_path / "copy"
    script.write_text('#!/bin/sh\nread go < "$0.fifo"\ncat "$1" >> "$0.log"\n')
    script.chmod(0o755)
    os.mkfifo(f"{script}.fifo")
    rotation = Rotation(bytes=25, files=1)
    go = os.open(f"{script}.fifo", os.O_RDWR)
    try:
        os.write(go, b"go\n" * 2)
        path, interfaces = str(tmp_path / "x.pcap"), [("x", LinkType.ETHERNET)]
        with Files(path, interfaces, 65535, rotation, command=(str(script),)) as sink:
            for letter in (b"first", b"second", b"third"):
                sink.record([letter], SECOND, 0)
    finally:
        os.close(go)
    log = Path(f"{script}.log").read_bytes()
    assert [log.count(word) for word in (b"first", b"second", b"third")] == [1, 1, 0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-W", "3"], "-W limits the files that -C or -G starts"),
        (["-W", "0", "-C", "1", "-w", "x"], "'0' is not a whole number from 1"),
        (["-z", "true"], "-z runs a command on each file that -C or -G ends"),
        (["-C", "1", "-w", "x", "-z", "no-such-program -9"], "there is no program 'no-such-program'"),
        (["-C", "1", "-w", "x", "-z", "gzip 'x"], "No closing quotation"),
        (["-C", "1", "-w", "x", "-z", ""], "it must be a program and its arguments"),
        (["-tttttt"], "-t is given 6 times"),
        (["--style", "scapy", "-e"], "-e, -v and -q print tcpdump's lines"),
        (["-s", "262145"], "'262145' is not a whole number from 0 to 262144"),
        (["-r", "/nowhere/x.pcap"], "cannot read /nowhere/x.pcap: No such file"),
        (["-r", "x", "--between", "@a", "@b"], "-r reads a file, and --between is for a memif"),
        (["-r", "x", "--connect-timeout", "1"], "-r reads a file, and --connect-timeout is for a memif"),
    ],
)
def test_a_wrong_option_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


# --- a file instead of a memif --------------------------------------------------------------------------------------


def recorded(path: Path, packets: Sequence[bytes], link_types: Sequence[int] = (1,), step: int = SECOND) -> Path:
    """A capture with a packet each ``step``, of each link type in turn; each was one byte longer before it was cut."""
    with create_capture(str(path), [(f"if{number}", number) for number in link_types]) as writer:
        for number, packet in enumerate(packets):
            at = number % len(link_types)
            writer.write_packet(Packet(1000 * SECOND + number * step + 7, packet, len(packet) + 1, link_types[at]), at)
    return path


def test_a_file_is_printed_as_far_as_it_matches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs_libpcap()
    path = recorded(tmp_path / "x.pcap.gz", [arp_request(MAC_A, A, B), echo(1), echo(2), echo(3)])
    assert main(["dump", "-r", str(path), "-ntt", "-c", "2", "icmp"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"100{second}.000000 IP 192.168.1.1 > 192.168.1.2: ICMP echo request, id 7, seq {second}, length 64"
        for second in (1, 2)
    ]
    assert err == "memifrt dump: 2 packets of the 3 read\n"


@pytest.mark.parametrize("name", ["y.pcap", "y.pcapng", "y.pcapng.gz"])
def test_a_file_is_copied_with_times_and_lengths(name: str, tmp_path: Path) -> None:
    packets = [echo(number) for number in range(5)]
    path, copy = recorded(tmp_path / "x.pcapng", packets), tmp_path / name
    assert main(["dump", "-r", str(path), "-w", str(copy)]) == 0
    assert everything(copy) == everything(path)
    assert main(["dump", "-r", str(path), "-w", str(copy), "-s", "20"]) == 0
    assert [(p.data, p.length) for p in everything(copy)] == [(p[:20], len(p) + 1) for p in packets]


def test_a_filter_of_a_file_sees_the_length_before_the_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs_libpcap()
    path = recorded(tmp_path / "x.pcap", [bytes(60), bytes(61)])
    assert main(["dump", "-r", str(path), "greater", "62"]) == 0
    assert capsys.readouterr().err == "memifrt dump: 1 packets of the 2 read\n"


def test_link_types_are_kept_in_pcapng_and_an_error_in_pcap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recorded(tmp_path / "x.pcapng", [echo(1), echo(2)[14:], echo(3)], (1, 101))
    assert main(["dump", "-r", str(path), "-w", str(tmp_path / "y.pcapng")]) == 0
    assert everything(tmp_path / "y.pcapng") == everything(path)
    capsys.readouterr()
    assert main(["dump", "-r", str(path), "-w", str(tmp_path / "y.pcap")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "a pcap file has one link type, here ETHERNET (1), and a packet is RAW (101)" in err
    assert len(everything(tmp_path / "y.pcap")) == 1


def test_a_file_is_split_by_its_own_times(tmp_path: Path) -> None:
    path = recorded(tmp_path / "x.pcap", [b"%d" % number for number in range(25)])
    (tmp_path / "parts").mkdir()
    assert main(["dump", "-r", str(path), "-w", str(tmp_path / "parts" / "y%s.pcap"), "-G", "10"]) == 0
    assert [(name, len(found)) for name, found in names(tmp_path / "parts").items()] == [
        ("y1000.pcap", 10),
        ("y1010.pcap", 10),
        ("y1020.pcap", 5),
    ]


def test_a_file_is_not_written_onto_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recorded(tmp_path / "x.pcap", [echo(1)])
    (tmp_path / "link.pcap").symlink_to(path)
    before = path.read_bytes()
    assert main(["dump", "-r", str(path), "-w", str(tmp_path / "link.pcap")]) == 2
    assert "are the same file" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_broken_file_is_printed_as_far_as_it_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recorded(tmp_path / "x.pcap", [echo(1), echo(2)])
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["dump", "-nr", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert "the file ends within packet 2" in err


def test_a_file_without_packets_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recorded(tmp_path / "x.pcap", [])
    assert main(["dump", "-r", str(path), "-w", str(tmp_path / "y.pcap")]) == 0
    assert capsys.readouterr().err == "memifrt dump: 0 packets of the 0 read\n"
    assert everything(tmp_path / "y.pcap") == []


def test_packets_of_a_pipe_are_printed_when_they_come_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    path = recorded(tmp_path / "x.pcap", [echo(1)])
    with dumping("-n", "-r", "-") as program:
        assert program.stdin is not None
        os.write(program.stdin.fileno(), path.read_bytes())
        read_until(program, "ICMP echo request, id 7, seq 1")
        status, _, err = end(program)
    assert (status, err) == (0, "memifrt dump: 1 packets of the 1 read\n")


# --- what is local is looked at before a peer is --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-w", "/nowhere/x.pcap"], "cannot write /nowhere/x.pcap: No such file"),
        (["-w", "/nowhere/x.pcap", "-C", "1"], "cannot write /nowhere/x-0001.pcap: No such file"),
        (["-w", "/nowhere/%H.pcap", "-G", "1"], "cannot write /nowhere/"),
        (["-w", "/proc"], "cannot write /proc: Is a directory"),
        (["-w", "", "-G", "1"], "-w '': it must be the name of a file"),
        (["-w", "/", "-C", "1"], "-w '/': it must be the name of a file"),
        (["--", "icmp", "or", "else"], "the filter 'icmp or else'"),
        (["--", "host \udcff"], "the filter 'host"),
    ],
)
@pytest.mark.parametrize("ends", [("--socket", "{}"), ("--between", "{}", "{},id=1")], ids=["endpoint", "between"])
def test_what_is_wrong_with_a_file_or_filter_is_one_line_and_no_peer_sees_us(
    ends: tuple[str, ...],
    arguments: list[str],
    words: str,
    runtime: Runtime,
    socket_name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if words.startswith("the filter"):
        needs_libpcap()
    listening = runtime.create_interface(socket=socket_name, role="master")
    assert main(["dump", *(part.format(socket_name) for part in ends), *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err
    runtime.poll_event(0)
    assert not listening.connected


def test_a_capture_is_not_touched_before_the_interface_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, missing = tmp_path / "there.pcap", tmp_path / "missing.pcap"
    there.write_bytes(b"of yesterday")
    for path in (there, missing):
        assert main(["dump", "-w", str(path), "--role", "master", "--socket", "/nowhere/lab.sock"]) == 2
        assert "cannot listen on /nowhere/lab.sock" in capsys.readouterr().err
    assert there.read_bytes() == b"of yesterday"
    assert not missing.exists()


# --- between two memifs ---------------------------------------------------------------------------------------------


def between(path: str, *arguments: str, options: str = "") -> Any:
    return dumping("--between", *(f"{path},role=master,id={id}{options}" for id in (0, 1)), *arguments)


@pytest.mark.parametrize("rx_mode", ["adaptive", "polling"])
def test_between_two_memifs_everything_goes_on_and_is_captured(
    rx_mode: str, runtime: Runtime, socket_path: str, tmp_path: Path
) -> None:
    left, right = list[bytes](), list[bytes]()
    path = tmp_path / "x.pcapng"
    there = [number.to_bytes(4, "big") + bytes(number % 3000) for number in range(20000)]
    back = [b"back %d" % number for number in range(700)]
    with between(socket_path, "-w", str(path), options=f",rx-mode={rx_mode}") as program:
        wait_for_dump(program)
        a, b = (endpoint(runtime, socket_path, into, id=id) for id, into in ((0, left), (1, right)))
        wait_until(lambda: a.connected and b.connected, runtime)
        send_all(a, there, runtime)
        send_all(b, back, runtime)
        wait_until(lambda: len(right) == len(there) and len(left) == len(back), runtime)
        status, _, err = end(program)
        wait_until(lambda: not a.connected and not b.connected, runtime)
    assert status == 0, err
    assert (right, left) == (there, back)
    assert sorted(packet.data for packet in everything(path)) == sorted(there + back)
    assert "memifrt dump: 20700 packets captured\n" in err
    assert f"memif0 on {socket_path} -> memif1 on {socket_path}: 20000 packets" in err
    assert err.count(" 0 dropped\n") == 2


def test_between_a_peer_that_does_not_read_is_felt_by_the_sender_and_nothing_is_lost(
    runtime: Runtime, peer_runtime: Runtime, socket_path: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.pcap"
    packets = [number.to_bytes(4, "big") * 100 for number in range(400)]
    with between(socket_path, "-w", str(path)) as program:
        wait_for_dump(program)
        small: dict[str, Any] = {"log2_ring_size": 5, "buffer_size": 512}
        a = runtime.create_interface(socket=socket_path, id=0, **small)
        b = peer_runtime.create_interface(socket=socket_path, id=1, rx_mode="polling", **small)
        wait_until(lambda: a.connected and b.connected, runtime, peer_runtime)
        rest, received = [*packets], list[bytes]()

        def stuck() -> bool:
            """Our ring and that of the other end are full: no more is taken, though it is asked again."""
            sent = a.tx_queues[0].send(rest)
            del rest[:sent]
            return b.rx_queues[0].pending() == 32 and a.tx_queues[0].free() == 0

        try_until(stuck, runtime, peer_runtime)
        assert 64 <= len(packets) - len(rest) <= 64 + 32  # what has been captured waits to be sent

        def done() -> bool:
            del rest[: a.tx_queues[0].send(rest)]
            received.extend(b.rx_queues[0].recv())
            return len(received) == len(packets)

        try_until(done, runtime, peer_runtime)
        status, _, err = end(program)
        wait_until(lambda: not a.connected and not b.connected, runtime, peer_runtime)
    assert status == 0, err
    assert received == packets == [packet.data for packet in everything(path)]


@pytest.mark.parametrize("name", ["x.pcap", "x.pcapng", "x.pcap.gz"])
def test_between_what_was_held_back_goes_on_when_there_is_room_and_nothing_else_happens(
    name: str, runtime: Runtime, peer_runtime: Runtime, socket_path: str, tmp_path: Path
) -> None:
    """The other end needs two buffers for each packet: a burst that was taken for its room does not fit."""
    packets = [bytes([number]) * 400 for number in range(30)]
    with between(socket_path, "-w", str(tmp_path / name)) as program:
        wait_for_dump(program)
        a = runtime.create_interface(socket=socket_path, id=0, log2_ring_size=5, buffer_size=512)
        b = peer_runtime.create_interface(
            socket=socket_path, id=1, log2_ring_size=5, buffer_size=256, rx_mode="polling"
        )
        wait_until(lambda: a.connected and b.connected, runtime, peer_runtime)
        assert a.tx_queues[0].send(packets) == len(packets)
        try_until(lambda: b.rx_queues[0].pending() == 32, runtime, peer_runtime)
        received = list[bytes]()

        def done() -> bool:
            received.extend(b.rx_queues[0].recv())
            return len(received) == len(packets)

        try_until(done, runtime, peer_runtime)
        status, _, err = end(program)
        wait_until(lambda: not a.connected and not b.connected, runtime, peer_runtime)
    assert status == 0, err
    assert received == packets == [packet.data for packet in everything(tmp_path / name)]


def test_lines_between_two_memifs_say_which_way(runtime: Runtime, socket_path: str) -> None:
    with between(socket_path, "-c", "2") as program:
        wait_for_dump(program)
        a, b = (endpoint(runtime, socket_path, [], id=id) for id in (0, 1))
        wait_until(lambda: a.connected and b.connected, runtime)
        send_all(a, [echo(1)], runtime)
        read_until(program, r"^\S+ A IP 192\.168\.1\.1 > ")
        send_all(b, [echo(2)], runtime)
        read_until(program, r"^\S+ B IP 192\.168\.1\.1 > ")
        assert finish(program)[0] == 0
        wait_until(lambda: not a.connected and not b.connected, runtime)


def test_between_one_and_the_same_memif_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", "--between", "@a", "memif:@a"]) == 2
    assert capsys.readouterr().err == (
        "memifrt dump: both ends are memif0 on @a; they must differ, for example by id=N\n"
    )


# --- lines ----------------------------------------------------------------------------------------------------------


def ip4(protocol: int, payload: bytes, fragment: int = 0) -> bytes:
    return (
        b"\x45\0"
        + (20 + len(payload)).to_bytes(2, "big")
        + b"\0\0"
        + fragment.to_bytes(2, "big")
        + (bytes([64, protocol, 0, 0]) + A + B + payload)
    )


def ip6(protocol: int, payload: bytes) -> bytes:
    one, two = (bytes.fromhex("fe80") + bytes(13) + bytes([last]) for last in (1, 2))
    return b"\x60\0\0\0" + len(payload).to_bytes(2, "big") + bytes([protocol, 64]) + one + two + payload


ETHER = MAC_B + MAC_A
PORTS = b"\x04\xd2\x00\x35"
TCP = PORTS + (1000).to_bytes(4, "big") + (77).to_bytes(4, "big")


def test_scapy_s_summaries_are_printed_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scapy.layers.inet6")
    assert scapy_summary(Mode.ETHERNET)(echo(1)) == "Ether / IP / ICMP 192.168.1.1 > 192.168.1.2 echo-request 0 / Raw"
    assert (scapy_summary(Mode.IP)(ip6(58, b"\x87" + bytes(23))) or "").startswith("IPv6 / ICMPv6")
    monkeypatch.setitem(__import__("sys").modules, "scapy.layers.l2", None)
    with pytest.raises(MemifError, match=r"pip install 'memifrt\[scapy\]'"):
        scapy_summary(Mode.ETHERNET)


def test_what_scapy_cannot_read_has_tcpdump_s_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines(("",), lambda data: None if data == b"x" else "scapy's line", LineStyle(1)) as sink:
        sink.record([b"y", b"x"], 1, 0)
    assert capsys.readouterr().out == "scapy's line\n [|ether]\n"


def test_lines_of_one_interface_name_no_way(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines(("",), None) as sink:
        sink.record([b"x"], 1, 0)
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.000000  \[\|ether\]\n", capsys.readouterr().out)


def test_a_next_file_that_cannot_be_created_is_the_only_error(tmp_path: Path) -> None:
    folder = tmp_path / "captures"
    folder.mkdir()
    files = Files(str(folder / "x.pcap"), [("a", 1)], 65535, Rotation(bytes=1000))
    files.record([bytes(2000)], SECOND, 0)
    (folder / "x-0001.pcap").unlink()
    folder.rmdir()
    with pytest.raises(MemifOSError, match=r"cannot write .*x-0002\.pcap: No such file or directory"):
        files.record([bytes(2000)], SECOND, 0)
    files.close()


def test_a_later_file_never_replaces_the_one_that_is_read(tmp_path: Path) -> None:
    source = tmp_path / "lab-0002.pcap"
    with Files(str(source), [("a", 1)], 65535, Rotation()) as files:
        files.record([bytes(1000)] * 3, SECOND, 0)
    before = source.read_bytes()
    with pytest.raises(ConfigError, match="are the same file; write to another one"):
        dump_file(str(source), DumpOptions(path=str(tmp_path / "lab.pcap"), rotation=Rotation(bytes=1000)))
    assert source.read_bytes() == before


@pytest.mark.parametrize("name", [".gz", "folder/.zst", "folder/", ".."])
def test_a_capture_needs_a_name_besides_the_suffix_of_a_compression(name: str) -> None:
    with pytest.raises(ConfigError, match="it must be the name of a file"):
        DumpOptions(path=name)


@pytest.mark.parametrize("options", [["--loss", "1%"], ["--web", "0"], ["--impair", "a-to-b:delay=1ms"]])
def test_options_of_a_memif_are_refused_with_a_file(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", "-r", "lab.pcap", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("memifrt dump: -r reads a file, and ")
