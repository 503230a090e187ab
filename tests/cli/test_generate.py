"""``memifrt generate``: what it sends, what it prints, and that every wrong value is one line and status 2."""

from __future__ import annotations

import csv
import io
import json
import signal
import sys
from pathlib import Path

import pytest

from memifrt import Interface, Runtime
from memifrt.cli.command_line import main
from memifrt.traffic.generator import Generator
from tests.lib.programs import end, finish, read_until, running
from tests.lib.support import wait_until

PACKET = ("--packet", "Ether()/IP()/UDP()")


def echoing(runtime: Runtime, socket: str, received: list[bytes]) -> Interface:
    """A master that sends everything back, to itself or to the interface that is set as its target."""

    def on_interrupt(interface: Interface, qid: int) -> None:
        packets = interface.rx_queues[qid].recv()
        received.extend(packets)
        interface.tx_queues[qid].send(packets)

    return runtime.create_interface(socket=socket, role="master", on_interrupt=on_interrupt)


def generated(runtime: Runtime, socket: str, *arguments: str) -> tuple[list[bytes], int, str, str]:
    """Run it against an echo; what that received, the status and what was printed."""
    received: list[bytes] = []
    echoing(runtime, socket, received)
    with running("generate", "--socket", socket, *arguments) as program:
        wait_until(lambda: program.poll() is not None, runtime)
        status, out, err = finish(program)
    assert "Traceback" not in err
    return received, status, out, err


# --- what it sends and prints ---------------------------------------------------------------------------------------


def test_signed_packets_come_back_and_are_reported(runtime: Runtime, socket_name: str) -> None:
    fields = ("--field", "ipv4.src=10.0.0.1..10.0.0.9", "--field", "udp.src=1..100 random seed 1")
    received, status, out, _ = generated(
        runtime, socket_name, *PACKET, "--size", "64", *fields, "--count", "500", "--signed"
    )
    assert status == 0
    assert len(received) == 500
    assert {len(data) for data in received} == {60}
    assert "500 packets sent" in out
    assert "; 500 came back, 0 lost" in out
    assert out.splitlines()[0].startswith("stream ")


def test_json_csv_and_a_plot(runtime: Runtime, socket_name: str, tmp_path: Path) -> None:
    plot = tmp_path / "run.svg"
    arguments = (*PACKET, "--size", "imix", "--rate", "5kpps", "--count", "500", "--signed")
    received, status, out, _ = generated(runtime, socket_name, *arguments, "--json", "--plot", str(plot))
    report = json.loads(out)
    assert status == 0
    assert (report["total"]["sent"], report["total"]["lost"], report["ended"]) == (500, 0, "complete")
    assert len(received) == 500
    assert plot.read_text().startswith("<?xml")


def test_csv_has_a_line_for_each_stream_of_a_file(runtime: Runtime, socket_name: str, tmp_path: Path) -> None:
    path = tmp_path / "streams.yaml"
    path.write_text(
        "count: 400\nstreams:\n"
        "- {name: a, packet: Ether()/IP()/UDP(), size: 64, weight: 3}\n"
        "- {name: b, packet: Ether()/IPv6()/UDP(), size: 128}\n"
    )
    received, status, out, _ = generated(runtime, socket_name, "--file", str(path), "--csv", "--signed")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert status == 0
    assert [(row["name"], row["sent"], row["lost"]) for row in rows] == [("a", "300", "0"), ("b", "100", "0")]
    assert sorted({len(data) for data in received}) == [60, 124]


def test_a_capture_is_sent_again_and_again(runtime: Runtime, socket_name: str, tmp_path: Path) -> None:
    from memifrt.capture.pcap import LinkType, create_capture

    packets = [bytes(12) + b"\x90\x00" + bytes([number]) * 50 for number in range(3)]
    with create_capture(str(tmp_path / "x.pcap"), [("x", LinkType.ETHERNET)]) as writer:
        writer.write(packets, 0)
    received, status, out, _ = generated(runtime, socket_name, "--pcap", str(tmp_path / "x.pcap"), "--count", "7")
    assert status == 0
    assert received == (3 * packets)[:7]
    assert "7 packets sent" in out


def test_two_memifs_send_to_each_other(runtime: Runtime, socket_name: str) -> None:
    ends: list[Interface] = []

    def on_interrupt(interface: Interface, qid: int) -> None:
        other = ends[1 - ends.index(interface)]
        other.tx_queues[0].forward(interface.rx_queues[qid])

    for name in ("a", "b"):
        ends.append(runtime.create_interface(socket=socket_name + name, role="master", on_interrupt=on_interrupt))
    arguments = ("--to", f"memif:{socket_name}b", *PACKET, "--size", "64", "--count", "300", "--signed", "--json")
    with running("generate", "--socket", socket_name + "a", *arguments) as program:
        wait_until(lambda: program.poll() is not None, runtime)
        status, out, err = finish(program)
    assert status == 0, err
    report = json.loads(out)
    assert [(each["name"], each["sent"], each["lost"]) for each in report["streams"]] == [
        ("stream", 300, 0),
        ("stream (back)", 300, 0),
    ]


def test_ctrl_c_reports_what_is_known(runtime: Runtime, socket_name: str) -> None:
    received: list[bytes] = []
    echoing(runtime, socket_name, received)
    with running(
        "generate", "--socket", socket_name, *PACKET, "--size", "64", "--rate", "1kpps", "--signed"
    ) as program:
        wait_until(lambda: len(received) > 20, runtime)
        status, out, _ = end(program)
    assert status == 0
    assert " packets sent in " in out
    assert " came back, " in out


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_count_is_sent_cuts_it_short(
    how: signal.Signals, runtime: Runtime, socket_name: str
) -> None:
    received: list[bytes] = []
    echoing(runtime, socket_name, received)
    with running("generate", "--socket", socket_name, *PACKET, "--rate", "1kpps", "--count", "1000000") as program:
        wait_until(lambda: len(received) > 20, runtime)
        status, out, _ = end(program, how)
    assert status == 128 + how
    assert " packets sent in " in out


@pytest.mark.parametrize(("count", "expected"), [((), 1), (("--count", "5"), 130)])
def test_ctrl_c_before_a_peer_is_there_says_so(count: tuple[str, ...], expected: int, socket_name: str) -> None:
    with running("generate", "--socket", socket_name, "--role", "master", *PACKET, *count) as program:
        read_until(program, "1 stream on memif0", stderr=True)
        status, out, err = end(program)
    assert (status, out) == (expected, "")
    assert err.endswith("ended before a peer was there; nothing was sent\n")


def test_a_peer_that_leaves_ends_it_with_a_report(runtime: Runtime, socket_name: str) -> None:
    received: list[bytes] = []
    master = echoing(runtime, socket_name, received)
    with running("generate", "--socket", socket_name, *PACKET, "--rate", "1kpps") as program:
        wait_until(lambda: len(received) > 20, runtime)
        master.delete()
        wait_until(lambda: program.poll() is not None, runtime)
        status, out, err = finish(program)
    assert status == 1
    assert " packets sent in " in out
    assert "the peer is gone; the report ends here" in err


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "one of the arguments --file --packet --pcap is required"),
        ((*PACKET, "--pcap", "x"), "not allowed with argument"),
        (("--packet", "os.system('x')"), "is not allowed in a packet"),
        (("--packet", "Ether()/Nothing()"), "'Nothing' is not a layer of scapy"),
        (("--packet", ""), "is not a packet"),
        (("--file", "none.yaml"), "cannot read none.yaml: No such file"),
        (("--file", "x.txt"), "its name must end with .yaml"),
        (("--pcap", "none.pcap"), "none.pcap: No such file"),
        ((*PACKET, "--size", "0"), "argument --size: '0' must be"),
        ((*PACKET, "--size", "64,x"), "argument --size: 'x' must be"),
        ((*PACKET, "--size", "40"), "the size 40 is too small for this packet; it must be at least 46"),
        ((*PACKET, "--size", "60", "--signed"), "give it a size of at least 64"),
        ((*PACKET, "--field", "udp.src"), "argument --field: 'udp.src' is not a field"),
        ((*PACKET, "--field", "udp.src=9..1"), "argument --field: field udp.src: the range 9..1 is empty"),
        ((*PACKET, "--rate", "fast"), "argument --rate: 'fast' must be like"),
        ((*PACKET, "--rate", "50%"), "needs the speed of a link: --link-speed"),
        ((*PACKET, "--link-speed", "x"), "argument --link-speed: 'x' must be like"),
        ((*PACKET, "--burst", "0"), "argument --burst: '0' is not a whole number"),
        ((*PACKET, "--count", "-1"), "argument --count"),
        ((*PACKET, "--duration", "0"), "argument --duration: the time '0' must be"),
        ((*PACKET, "--settle", "x"), "argument --settle: 'x' is not a number of seconds"),
        ((*PACKET, "--to", "tap:x"), "argument --to: 'tap:x' is not a memif"),
        ((*PACKET, "--to", "memif:/run/vpp/memif.sock"), "both ends are"),
        ((*PACKET, "--to", "memif:@b,mode=ip"), "both need the same mode"),
        ((*PACKET, "--direction", "up"), "argument --direction: invalid choice"),
        ((*PACKET, "--direction", "both"), "--direction both needs a second memif: --to"),
        ((*PACKET, "--json", "--csv"), "not allowed with argument"),
        ((*PACKET, "--plot", "x.gif"), "argument --plot: 'x.gif' must end with .png or .svg"),
        ((*PACKET, "--plot", "/none/x.png"), "cannot write /none/x.png: No such file"),
        ((*PACKET, "--queues", "0"), "argument --queues"),
        ((*PACKET, "--size", "9000", "--ring-size", "4"), "8996 bytes; a ring of 4 buffers of 2048 bytes holds 8192"),
        (
            (*PACKET, "--size", "90", "--to", "@b,ring-size=1,buffer-size=64"),
            "a ring of 1 buffers of 64 bytes holds 64",
        ),
        ((*PACKET, "--size", ",".join(["9000"] * 500), "--queues", "250"), "streams and queues need 1072 MiB, more"),
        ((*PACKET, "--queues", "255", "--ring-size", "16384"), "a region holds at most"),
        ((*PACKET, "--burst", "4"), "stream: a burst of 4 has no effect as fast as it goes; it needs a rate"),
        ((*PACKET, "--link-speed", "1Gbps", "--rate", "5"), "--link-speed has no effect"),
        (("--packet", "Ether()/IP()/TCP()", "--field", "udp.src=1..2"), "the packet has no such bytes"),
    ],
)
def test_a_wrong_value_is_one_line_and_status_2(
    arguments: tuple[str, ...], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("memifrt generate: ")
    assert part in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("option", [("--size", "64"), ("--field", "udp.src=1..2"), ("--burst", "2"), ("--no-fcs",)])
def test_options_that_the_file_decides_are_refused(
    option: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.yaml").write_text("streams: [{packet: Ether()}]")
    assert main(["generate", "--file", str(tmp_path / "x.yaml"), *option]) == 2
    assert "the file says it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stream", "option", "part"),
    [
        ("rate: 5", ("--rate", "6"), "--rate 6 pps has no effect: each stream of"),
        ("burst: 5", (), "stream a: a burst of 5 has no effect as fast as it goes"),
        ("direction: both", (), "stream a: direction is 'both', which needs a second interface"),
        ("direction: both", ("--direction", "forward"), "the file says direction both, and --direction says forward"),
    ],
)
def test_what_would_have_no_effect_in_a_file_is_refused_before_a_peer_is_there(
    stream: str, option: tuple[str, ...], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.yaml").write_text(f"streams: [{{name: a, packet: Ether(), {stream}}}]")
    assert main(["generate", "--file", str(tmp_path / "x.yaml"), *option]) == 2
    err = capsys.readouterr().err
    assert part in err
    assert err.count("\n") == 1


def test_a_missing_package_is_one_line_that_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("memifrt.traffic")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert main(["generate", *PACKET, "--rate", "5"]) == 2
    err = capsys.readouterr().err
    assert "numpy is not installed: pip install 'memifrt[traffic]'" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["yaml", "scapy"])
def test_a_package_that_is_missing_later_is_one_line_too(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.yaml").write_text("streams: [{packet: Ether()}]")
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["generate", "--file", str(tmp_path / "x.yaml")]) == 2
    err = capsys.readouterr().err
    assert "is not installed: pip install 'memifrt[traffic]'" in err
    assert err.count("\n") == 1


def test_nothing_of_it_is_imported_before_it_runs() -> None:
    assert Generator is not None
    import subprocess

    program = "import memifrt.cli.command_line, sys; print([n for n in ('numpy', 'scapy') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"[]\n"
