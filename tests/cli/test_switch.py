"""``memifrt switch``: its ports, its table on request, and the kernel's own tools through it."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import cast

import pytest
from rich.cells import cell_len

from memifrt import ConfigError, Runtime
from memifrt.capture.pcap import open_capture
from memifrt.cli.command_line import main
from memifrt.cli.commands.switch import SwitchEnd, mirrored_ports, parse_end, port_names, table_lines
from memifrt.cli.top.drawing import ASCII, plain
from memifrt.cli.top.table import lines
from memifrt.ports.endpoint import TapEndpoint
from memifrt.ports.packet_socket import PacketPort
from memifrt.stats.client import Program as StatsProgram
from memifrt.stats.client import parse_snapshot
from memifrt.stats.prometheus import metrics
from memifrt.stats.snapshot import snapshot
from memifrt.stats.switch import PortStats, SwitchStats
from memifrt.switch.vlan import PortVlans
from tests.lib.namespaces import Namespace, missing, namespaces
from tests.lib.programs import Program, end, finish, read_until, run, running
from tests.lib.support import wait_until

STATS: SwitchStats = {
    "ageing": 300.0,
    "limit": 8192,
    "port_limit": 4096,
    "learned": 1,
    "moved": 0,
    "expired": 0,
    "ports": [
        {
            "name": "tap0",
            "vlans": "vlan=10",
            "up": True,
            "addresses": 1,
            "evicted": 3,
            "rx_packets": 1234,
            "rx_bytes": 9,
            "tx_packets": 5,
            "tx_bytes": 9,
            "flooded": 7,
            "waiting": 0,
            "losses": [{"reason": "queue full", "packets": 2}],
        }
    ],
    "addresses": [{"mac": "02:00:00:00:00:01", "vlan": 10, "port": 0, "age": 12.3}],
}

# --- ports ----------------------------------------------------------------------------------------------------------


def test_a_port_is_an_endpoint_with_vlans() -> None:
    assert parse_end("tap:a") == SwitchEnd(TapEndpoint("a"))
    assert parse_end("tap:a,vlan=10,mtu=9000") == SwitchEnd(TapEndpoint("a", mtu=9000), PortVlans(10))
    trunk = PortVlans(1, frozenset({10, 20}))
    assert parse_end("tap:a,trunk=10+20,native=1,netns=red") == SwitchEnd(TapEndpoint("a", netns="red"), trunk)


WRONG = {
    "tap:a": ["at least two ports", "1 is given"],
    "tap:a tap:a": ["both ends are a"],
    "tap:a tap:b tap:a": ["both ends are a"],
    "tap:a memif:@x,mode=ip": ["memif0 on @x", "mode=ethernet"],
    "tap:a eth0": ["'eth0'", "memif:"],
    "tap:a tap:b,vlan=0": ["vlan", "'0'", "1 to 4094"],
    "tap:a tap:b,vlan=": ["vlan", "''", "1 to 4094"],
    "tap:a tap:b,trunk=10+x": ["trunk", "'x'", "1 to 4094"],
    "tap:a tap:b,trunk=20-10": ["trunk", "'20-10'"],
    "tap:a tap:b,native=1": ["native needs trunk"],
    "tap:a tap:b,vlan=1,trunk=2": ["vlan", "trunk", "one or the other"],
    "tap:a tap:b,vlan=1,vlan=2": ["vlan is given twice"],
    "tap:a tap:b,vlan=1": ["a has no VLAN", "vlan=N or trunk="],
    "tap:a tap:b --mirror 1": ["--mirror", "--write"],
    "tap:a tap:b --write /tmp/x": ["--mirror", "--write"],
    "tap:a tap:b --mirror 3 --write /tmp/x": ["--mirror '3'", "1 to 2", "a, b"],
    "tap:a tap:b --mirror all --write /nowhere/x": ["/nowhere/x", "No such file"],
    "tap:a tap:b --ageing 0": ["--ageing", "'0'"],
    "tap:a tap:b --max-addresses 0": ["--max-addresses", "'0'"],
    "tap:a tap:b --queue -1": ["--queue"],
    "tap:a tap:b --limit-broadcast x": ["--limit-broadcast", "'x'"],
    "--show /nowhere/stats": ["/nowhere/stats", "no such file"],
    "tap:a --show /nowhere/stats": ["--show", "no ports"],
    "--show /nowhere/stats --queue 5": ["--show", "no --queue"],
}


@pytest.mark.parametrize("arguments", WRONG)
def test_a_wrong_argument_is_one_line_that_says_what_is_right(
    arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["switch", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err[:-1].isprintable()
    assert [word for word in WRONG[arguments] if word not in err] == []


def test_no_error_shows_a_secret(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["switch", "memif:@a,secret=hunter2hunter2,vlan=x", "tap:mif"]) == 2
    assert main(["switch", "memif:@a,vlan=1,secret=hunter2hunter2", "tap:mif"]) == 2
    assert "hunter2" not in capsys.readouterr().err


def test_ports_of_one_name_are_told_apart() -> None:
    ends = [parse_end(text) for text in ("tap:mif,netns=red", "tap:x", "tap:mif,netns=blue")]
    names = port_names(ends)
    assert names == ["mif#1", "x", "mif#3"]
    assert mirrored_ports(["x", "3"], names) == {1, 2}
    assert mirrored_ports(["all"], names) == {0, 1, 2}
    with pytest.raises(ConfigError, match="'mif'"):
        mirrored_ports(["mif"], names)


# --- the table on request -------------------------------------------------------------------------------------------


def test_the_table_is_columns_of_text() -> None:
    lines = list(table_lines(STATS))
    assert lines[0].split() == [
        "port", "name", "vlan", "link", "macs", "rx", "packets", "tx", "packets", "flooded", "waiting", "dropped",
    ]  # fmt: skip
    assert lines[1].split() == ["1", "tap0", "vlan=10", "up", "1", "1234", "5", "7", "0", "2"]
    assert lines[2:4] == ["port 1 dropped: 2 queue full", "port 1 lost 3 addresses to the limits"]
    assert lines[6].split() == ["02:00:00:00:00:01", "10", "1", "tap0", "12", "s"]
    assert lines[7].startswith("1 of at most 8192 addresses (4096 a port), forgotten after 300 s")


@pytest.mark.parametrize("width", [66, 80])
def test_the_table_fits_into_a_narrow_terminal(width: int) -> None:
    (port,) = STATS["ports"]
    ports = [{**port, "name": f"memif{number} on /run/vpp/memif.sock", "losses": []} for number in (0, 1)]
    lines = list(table_lines({**STATS, "ports": cast("list[PortStats]", ports)}, width))
    assert [line for line in lines if len(line) > width] == []
    assert lines[0].split() == ["port", "name", "vlan", "link", "macs", "rx", "tx", "flood", "wait", "drop"]
    assert "of at most 8192 addresses" in " ".join(lines)


def test_a_wide_name_keeps_the_columns_below_each_other() -> None:
    wide = deepcopy(STATS)
    wide["ports"][0]["name"] = "路由器"
    titles, row, *_ = table_lines(wide)
    assert cell_len(titles[: titles.index("vlan")]) == cell_len(row[: row.index("vlan=10")])


def test_a_snapshot_has_the_switch_if_there_is_one(runtime: Runtime) -> None:
    assert "switch" not in parse_snapshot(json.dumps(snapshot(runtime)).encode())
    runtime.switch_stats = lambda: STATS
    assert parse_snapshot(json.dumps(snapshot(runtime)).encode())["switch"] == STATS
    shown = json.loads(json.dumps(snapshot(runtime)))
    shown["switch"]["ports"] = 7
    with pytest.raises(ValueError, match="ports is not a list"):
        parse_snapshot(json.dumps(shown).encode())


def test_prometheus_and_top_have_the_ports(runtime: Runtime) -> None:
    runtime.switch_stats = lambda: STATS
    text = metrics(snapshot(runtime))
    assert 'memifrt_switch_port_packets_total{port="tap0",direction="rx"} 1234\n' in text
    assert 'memifrt_switch_port_dropped_total{port="tap0",reason="queue full"} 2\n' in text
    program = StatsProgram("/nowhere")
    program.snapshot, program.error = snapshot(runtime), ""
    shown = "\n".join(plain(line) for line in lines([program], 80, None, ASCII))
    assert "switch" in shown
    assert re.search(r"port 1 tap0 . vlan=10 . 1 address . 1.23 k in . 5 out . 2 dropped", shown)


def test_a_program_that_is_no_switch_is_said_to_be_none(runtime: Runtime, socket_path: str) -> None:
    stats = f"{socket_path}.stats"
    with running("responder", "--socket", socket_path, "--role", "master", "--stats", stats) as program:
        read_until(program, "^answering")
        shown = run("switch", "--show", stats)
        end(program)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert "memifrt responder is not a switch" in shown.stderr


# --- programs -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def switching(*arguments: str) -> Iterator[Program]:
    with running("switch", *arguments) as program:
        read_until(program, "switching between", stderr=True)
        yield program


def test_memifs_talk_through_a_switch_and_its_table_is_shown(
    runtime: Runtime, socket_path: str, tmp_path: Path
) -> None:
    received: list[list[bytes]] = [[], []]
    stats, capture = f"{socket_path}.stats", tmp_path / "lab.pcapng"
    mine = [f"memif:{socket_path},role=master,id={number}" for number in (0, 1)]
    with switching(*mine, "--stats", stats, "--mirror", "1", "--write", str(capture)) as program:
        peers = [
            runtime.create_interface(
                socket=socket_path,
                id=number,
                on_interrupt=lambda each, qid: received[each.id].extend(each.rx_queues[qid].recv()),
            )
            for number in (0, 1)
        ]
        wait_until(lambda: all(peer.connected for peer in peers), runtime)
        there = bytes.fromhex("02000000000202000000000188b5") + bytes(46)
        back = bytes.fromhex("02000000000102000000000288b5") + bytes(46)
        peers[0].tx_queues[0].send([there])
        wait_until(lambda: received[1], runtime)
        peers[1].tx_queues[0].send([back])
        wait_until(lambda: received[0], runtime)
        shown = run("switch", "--show", stats)
        peers[1].close()
        while " down " not in (left := run("switch", "--show", stats)).stdout:
            assert left.returncode == 0, left.stderr
        status, out, err = end(program)
    assert status == 0, err
    assert shown.returncode == 0, shown.stderr
    assert re.search(rf"^1 +memif0 on {socket_path} +- +up +1 +1 +1 +1 ", shown.stdout, re.M)
    assert re.search(rf"^02:00:00:00:00:02 +- +2 +memif1 on {socket_path} +\d s$", shown.stdout, re.M)
    assert "02:00:00:00:00:02" not in left.stdout, "a peer that leaves takes its addresses along"
    assert "02:00:00:00:00:01" in left.stdout
    assert f"memif0 on {socket_path}: 1 packets in (60 bytes), 1 out (60 bytes), 0 dropped\n" in out
    with open_capture(capture) as reader:
        assert [packet.data for packet in reader] == [there, back]


NAMESPACES = missing("ping")
needs_namespaces = pytest.mark.skipif(bool(NAMESPACES), reason=NAMESPACES)
IPERF3 = missing("ping", "iperf3")
LEFT, RIGHT, PEER = "10.98.0.1", "10.98.0.2", "10.98.0.3"


def addressed(left: Namespace, right: Namespace, *devices: str) -> None:
    for namespace, address, device in zip((left, right), (LEFT, RIGHT), devices, strict=True):
        namespace.ip("address", "add", f"{address}/24", "dev", device)
        namespace.ip("link", "set", device, "up")


def ping(namespace: Namespace, address: str, *options: str) -> str:
    return namespace.run("ping", "-n", "-q", "-c", "3", "-i", "0.05", "-w", "10", *options, address)


@needs_namespaces
def test_two_namespaces_and_a_memif_peer_talk_with_the_kernels_own_tools(socket_path: str) -> None:
    with (
        namespaces(2) as (left, right),
        switching(
            f"tap:mif,netns={left.name}", f"tap:mif,netns={right.name}", f"memif:{socket_path},role=master"
        ) as program,
        running("responder", "--socket", socket_path, "--ip", PEER) as responder,
    ):
        read_until(responder, "^answering")
        read_until(program, "connected to", stderr=True)
        addressed(left, right, "mif", "mif")
        for namespace, address in ((left, RIGHT), (left, PEER), (right, PEER), (right, LEFT)):
            assert " 0% packet loss" in ping(namespace, address, "-s", "1400")
        if not IPERF3:
            with right.running("iperf3", "-s", "-1", "--forceflush") as server:
                assert server.stdout is not None
                while "listening" not in (line := server.stdout.readline()):
                    assert line, "iperf3 did not start"
                result = json.loads(left.run("iperf3", "-c", RIGHT, "-J", "-n", "20M", timeout=60))
            assert "error" not in result
            print(f"TAP to TAP, iperf3: {result['end']['sum_received']['bits_per_second'] / 1e9:.2f} Gbit/s")
        status, out, err = end(program)
        assert status == 0, err
        assert "Traceback" not in err
        end(responder)
    assert re.search(r"^mif#1: \d+ packets in", out, re.M)


@needs_namespaces
def test_a_trunk_between_two_switches_carries_vlans_that_stay_apart(socket_path: str) -> None:
    trunk = f"{socket_path}.trunk"
    with (
        namespaces(2) as (left, right),
        switching(f"tap:mif,netns={left.name},vlan=10", f"memif:{trunk},role=master,trunk=10+20") as a,
        switching(
            f"tap:mif,netns={right.name},vlan=10",
            f"memif:{trunk},trunk=10+20",
            f"memif:{socket_path},role=master,vlan=20",
        ) as b,
        running("responder", "--socket", socket_path, "--ip", PEER) as responder,
    ):
        read_until(a, "connected to", stderr=True)
        read_until(responder, "connected to", stderr=True)
        addressed(left, right, "mif", "mif")
        assert " 0% packet loss" in ping(left, RIGHT)
        alone = ["ping", "-n", "-q", "-c", "2", "-i", "0.05", "-W", "0.3", PEER]
        assert " 100% packet loss" in left.run("sh", "-c", f"{' '.join(alone)} || true")
        for program in (a, b, responder):
            status, _, err = end(program)
            assert status == 0, err
            assert "Traceback" not in err


@needs_namespaces
def test_a_device_that_goes_away_ends_its_port_and_the_last_but_one_ends_the_switch() -> None:
    with (
        namespaces(1) as (host,),
        switching(*(f"tap:t{number},netns={host.name}" for number in range(3))) as program,
    ):
        host.ip("link", "delete", "t0")
        line = read_until(program, "is gone", stderr=True)
        assert "TAP device t0 is gone" in line
        assert "the switch goes on with 2 ports" in line
        host.ip("link", "delete", "t1")
        status, _, err = finish(program)
    assert status == 2
    assert re.search(r"^memifrt switch: TAP device t1 is gone", err, re.M)
    assert "Traceback" not in err


@needs_namespaces
def test_a_packet_socket_that_does_not_wait_gives_a_short_count() -> None:
    with namespaces(2) as (inside, host):
        inside.ip("link", "add", "name", "mif", "type", "veth", "peer", "name", "va", "netns", host.name)
        inside.ip("link", "set", "mif", "up")
        host.ip("link", "set", "va", "up")
        end_of_kernel = parse_end(f"packet:va,netns={host.name}").endpoint
        port = PacketPort(end_of_kernel, waits=False)  # type: ignore[arg-type]
        with contextlib.closing(port):
            assert port.send([b"\xff" * 12 + b"\x88\xb5" + bytes(50)]) == 1
            host.ip("link", "set", "va", "down")
            assert port.send([b"\xff" * 12 + b"\x88\xb5" + bytes(50)]) == 1
            assert port.refused == {"Network is down": 1}
