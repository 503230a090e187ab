"""``memifrt bench``: both ends as programs, what they report, and how they end. Nothing here judges a speed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memifrt import Runtime
from memifrt.cli.bench import limits
from memifrt.cli.bench.cores import core_warnings
from memifrt.cli.bench.measurement import Bench, Meter
from memifrt.cli.bench.options import APIS, Interval, Options, Result
from memifrt.cli.bench.turns import mix
from memifrt.cli.command_line import main
from memifrt.options import RxModeName
from tests.lib.programs import Program, command, end, finish, read_until, responder, run, running
from tests.lib.support import DEADLINE, Pair, wait_until

SHORT = "--seconds=0.1"
FIELDS = {
    "mode", "impl", "packets", "bytes", "seconds", "pps", "cpu_ns", "calls_ps", "sent", "dropped", "corrupted",
    "loss", "rtt_us", "intervals",
}  # fmt: skip
#: What source and sink have, too.
LEVELS = [api for api in APIS if api != "loop"]
OTHER = {"master": "slave", "slave": "master"}
RX_MODES = ["polling", "interrupt", "adaptive"]

Report = dict[str, Any]


@contextlib.contextmanager
def bench_at(socket: str, what: str, role: str, *arguments: str) -> Iterator[Program]:
    with running("bench", what, f"--socket={socket}", f"--role={role}", "--json", *arguments) as program:
        yield program


def report(program: Program) -> Report:
    """What a bench printed when it ended by itself."""
    status, out, err = finish(program)
    assert status == 0, err
    return read_report(out)


def read_report(out: str) -> Report:
    (line,) = out.splitlines()
    found: Report = json.loads(line)
    assert set(found) == FIELDS
    return found


def measure(
    socket: str, what: str, against: str, role: str, *arguments: str, own: tuple[str, ...] = (SHORT,)
) -> tuple[Report, Report]:
    """Run one end for a short time, facing another that runs until its peer is gone; what both report."""
    with (
        bench_at(socket, against, OTHER[role], "--seconds=0", *arguments) as other,
        bench_at(socket, what, role, *arguments, *own) as one,
    ):
        return report(one), report(other)


def check(found: Report, what: str, size: int, *, counts_calls: bool = True) -> None:
    """Something was measured, and the figures fit together."""
    assert found["mode"] == what
    assert found["impl"] in ("native", "python")
    assert found["packets"] > 0
    assert found["bytes"] == found["packets"] * size
    assert found["seconds"] > 0
    assert 0 < found["pps"] * found["seconds"] <= found["packets"] + 0.5
    assert found["cpu_ns"] > 0
    assert found["corrupted"] == found["dropped"] == 0
    assert (found["calls_ps"] > 0) == (what != "rr" and counts_calls)
    assert list(found["rtt_us"]) == (["p50", "p99", "p99.9"] if what == "rr" else [])


# --- every mode over every level of the data plane ------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 9000])
@pytest.mark.parametrize("role", ["master", "slave"])
@pytest.mark.parametrize("api", LEVELS)
def test_sink_gets_what_the_source_sent_before_it_left(api: str, role: str, size: int, socket_name: str) -> None:
    # The sink ends first: what it took is part of what was sent.
    sink, source = measure(socket_name, "sink", "source", role, f"--api={api}", f"--size={size}")
    check(sink, "sink", size)
    check(source, "source", size)
    assert sink["sent"] == 0
    assert sink["packets"] <= source["packets"] == source["sent"]


@pytest.mark.parametrize("size", [64, 9000])
@pytest.mark.parametrize("role", ["master", "slave"])
@pytest.mark.parametrize("api", APIS)
def test_echo_gives_back_every_packet_of_gen_whole(api: str, role: str, size: int, socket_name: str) -> None:
    gen, echo = measure(socket_name, "gen", "echo", role, f"--api={api}", f"--size={size}")
    check(gen, "gen", size)
    check(echo, "echo", size, counts_calls=api != "loop")
    assert gen["packets"] == gen["sent"] == echo["packets"] == echo["sent"]


@pytest.mark.parametrize("size", [64, 9000])
@pytest.mark.parametrize("role", ["master", "slave"])
def test_gen_that_only_counts_loses_nothing_either(role: str, size: int, socket_name: str) -> None:
    gen, echo = measure(socket_name, "gen", "echo", role, f"--size={size}", own=(SHORT, "--check=count"))
    check(gen, "gen", size)
    assert gen["packets"] == gen["sent"] == echo["sent"]


@pytest.mark.parametrize("rx_mode", RX_MODES)
@pytest.mark.parametrize("role", ["master", "slave"])
def test_rr_measures_round_trips_in_every_rx_mode(role: str, rx_mode: str, socket_name: str) -> None:
    rr, echo = measure(socket_name, "rr", "echo", role, f"--rx-mode={rx_mode}")
    check(rr, "rr", 64)
    times = rr["rtt_us"]
    assert 0 < times["p50"] <= times["p99"] <= times["p99.9"]
    assert rr["packets"] == rr["sent"] == echo["sent"]


def test_rr_of_chained_packets(socket_name: str) -> None:
    rr, echo = measure(socket_name, "rr", "echo", "slave", "--size=9000")
    check(rr, "rr", 9000)
    assert echo["bytes"] == rr["bytes"]


@pytest.mark.parametrize("rx_mode", RX_MODES)
@pytest.mark.parametrize("role", ["master", "slave"])
def test_echo_and_gen_in_every_rx_mode(role: str, rx_mode: str, socket_name: str) -> None:
    gen, echo = measure(socket_name, "gen", "echo", role, f"--rx-mode={rx_mode}")
    check(gen, "gen", 64)
    assert gen["packets"] == gen["sent"] == echo["sent"]


@pytest.mark.parametrize("rx_mode", RX_MODES[1:])
@pytest.mark.parametrize("role", ["master", "slave"])
@pytest.mark.parametrize("api", LEVELS)
def test_sink_that_waits_for_interrupts(api: str, role: str, rx_mode: str, socket_name: str) -> None:
    sink, source = measure(socket_name, "sink", "source", role, f"--api={api}", f"--rx-mode={rx_mode}")
    check(sink, "sink", 64)
    check(source, "source", 64)


@pytest.mark.parametrize("ring", ["native", "python"])
def test_report_names_the_rings_in_use(ring: str, socket_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMIFRT_RING", ring)
    gen, echo = measure(socket_name, "gen", "echo", "slave")
    assert gen["impl"] == echo["impl"] == ring
    check(gen, "gen", 64)


@pytest.mark.parametrize("buffer_size", [512, 2048])
@pytest.mark.parametrize("role", ["master", "slave"])
def test_gen_sends_a_mix_of_sizes(role: str, buffer_size: int, socket_name: str) -> None:
    gen, echo = measure(
        socket_name,
        *("gen", "echo", role, "--size=imix", f"--buffer-size={buffer_size}", "--burst=24"),
        own=(SHORT, "--check=count"),
    )
    assert gen["packets"] == gen["sent"] == echo["packets"] > 0
    assert gen["bytes"] == echo["bytes"]
    assert gen["corrupted"] == gen["dropped"] == 0
    # Of every 24 packets 14 have 64 bytes, 8 have 570, and 2 have 1518. The last 24 may be cut short.
    cycles, rest = divmod(gen["packets"], 24)
    assert gen["bytes"] == cycles * 2 * (7 * 64 + 4 * 570 + 1518) + sum(([64] * 14 + [570] * 8 + [1518] * 2)[:rest])


def test_mix_is_as_long_as_a_burst() -> None:
    assert list(itertools.islice(mix(1), 4)) == [(64, 7), (570, 4), (1518, 1), (64, 7)]
    assert list(itertools.islice(mix(256), 3)) == [(64, 147), (570, 84), (1518, 21)]


# --- threads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("--threads",), ("--api=loop",), ("--api=loop", "--rx-mode=interrupt")])
@pytest.mark.parametrize("role", ["master", "slave"])
def test_echo_with_a_thread_for_each_queue(role: str, arguments: tuple[str, ...], socket_name: str) -> None:
    with (
        bench_at(socket_name, "echo", role, "--seconds=0", "--queues=2", *arguments) as echo,
        bench_at(socket_name, "gen", OTHER[role], SHORT, "--queues=2") as gen,
    ):
        sent, answered = report(gen), report(echo)
    check(sent, "gen", 64)
    check(answered, "echo", 64, counts_calls="--threads" in arguments)
    assert sent["packets"] == sent["sent"] == answered["sent"]


@pytest.mark.parametrize(("what", "against"), [("sink", "source"), ("source", "sink")])
def test_one_way_with_a_thread_for_each_queue(what: str, against: str, socket_name: str) -> None:
    with (
        bench_at(socket_name, against, "master", "--seconds=0", "--queues=2") as other,
        bench_at(socket_name, what, "slave", SHORT, "--queues=2", "--threads") as one,
    ):
        check(report(one), what, 64)
        check(report(other), against, 64)


@pytest.mark.parametrize("arguments", [("--threads",), ("--api=loop",)])
def test_threads_end_with_ctrl_c(arguments: tuple[str, ...], socket_name: str) -> None:
    with (
        bench_at(socket_name, "gen", "master", "--seconds=0", "--queues=2"),
        bench_at(socket_name, "echo", "slave", "--seconds=0", "--queues=2", *arguments) as echo,
    ):
        read_until(echo, "connected to ", stderr=True)
        status, out, err = end(echo)
    assert (status, "Traceback" in err) == (0, False)
    assert read_report(out)["mode"] == "echo"


def test_no_two_threads_share_a_queue(socket_name: str, runtime: Runtime) -> None:
    with bench_at(socket_name, "echo", "master", "--seconds=0", "--api=loop") as echo:
        runtime.create_interface(socket=socket_name, role="slave", num_s2m_rings=2, num_m2s_rings=1)
        wait_until(lambda: echo.poll() is not None, runtime)
        status, out, err = finish(echo)
    assert (status, out, "Traceback" in err) == (2, "", False)
    assert "the peer gave 2 and 1 queues; threads need as many each way" in err


def test_error_in_a_thread_ends_the_bench(socket_name: str) -> None:
    # Packets are longer than the rows of the matrix.
    with (
        bench_at(socket_name, "gen", "master", "--seconds=0", "--size=9000"),
        bench_at(socket_name, "echo", "slave", "--seconds=0", "--api=vector", "--threads") as echo,
    ):
        status, out, err = finish(echo)
    assert (status, out, "Traceback" in err) == (2, "", False)
    assert "--size must be the size of the received packets" in err


# --- queues, rings, bursts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["master", "slave"])
def test_every_one_of_several_queues_carries(role: str, socket_name: str) -> None:
    gen, echo = measure(socket_name, "gen", "echo", role, "--queues=4", "--size=60")
    check(gen, "gen", 60)
    assert gen["packets"] == gen["sent"] == echo["sent"]


@pytest.mark.parametrize(("ours", "theirs"), [(1, 4), (4, 1), (255, 255)])
def test_master_takes_as_many_queues_as_its_slave_gives(ours: int, theirs: int, socket_name: str) -> None:
    with (
        bench_at(socket_name, "echo", "master", "--seconds=0", f"--queues={ours}", "--ring-size=64") as echo,
        bench_at(socket_name, "gen", "slave", SHORT, f"--queues={theirs}", "--ring-size=64") as gen,
    ):
        check(report(gen), "gen", 64)
        check(report(echo), "echo", 64)


@pytest.mark.parametrize("rings", [(4, 1), (1, 4)])
@pytest.mark.parametrize("rx_mode", ["polling", "interrupt"])
def test_sink_reads_every_queue_of_a_peer_that_has_not_as_many_each_way(
    rings: tuple[int, int], rx_mode: str, socket_name: str, runtime: Runtime
) -> None:
    arguments = ("--seconds=0", f"--rx-mode={rx_mode}")
    with bench_at(socket_name, "sink", "master", *arguments) as sink:
        interface = runtime.create_interface(
            socket=socket_name, role="slave", num_s2m_rings=rings[0], num_m2s_rings=rings[1]
        )
        wait_until(lambda: interface.connected, runtime)
        for queue in interface.tx_queues:
            assert queue.send([b"packet"] * 5) == 5
        wait_until(lambda: all(queue.free() == queue.ring_size for queue in interface.tx_queues))
        interface.delete()
        found = report(sink)
    assert found["packets"] == 5 * rings[0]
    assert found["bytes"] == 30 * rings[0]


@pytest.mark.parametrize("api", LEVELS)
@pytest.mark.parametrize("ring", [1, 2, 16])
def test_burst_larger_than_the_ring(api: str, ring: int, socket_name: str) -> None:
    arguments = (f"--api={api}", f"--ring-size={ring}", "--burst=256")
    sink, source = measure(socket_name, "sink", "source", "master", *arguments)
    check(sink, "sink", 64)
    check(source, "source", 64)


@pytest.mark.parametrize(("ring", "burst", "size"), [(1, 256, 64), (8, 1, 9000), (16, 256, 9000), (16384, 16384, 64)])
def test_window_fits_into_the_ring(ring: int, burst: int, size: int, socket_name: str) -> None:
    gen, echo = measure(
        socket_name, "gen", "echo", "slave", f"--ring-size={ring}", f"--burst={burst}", f"--size={size}"
    )
    check(gen, "gen", size)
    assert gen["packets"] == gen["sent"] == echo["sent"]


@pytest.mark.parametrize("api", APIS)
def test_packet_of_the_largest_size(api: str, socket_name: str) -> None:
    gen, echo = measure(socket_name, "gen", "echo", "slave", f"--api={api}", "--size=65535")
    check(gen, "gen", 65535)
    check(echo, "echo", 65535, counts_calls=api != "loop")


# --- drops ----------------------------------------------------------------------------------------------------------


def against(socket: str, options: Options, peer: Callable[[Runtime], None], monkeypatch: pytest.MonkeyPatch) -> Report:
    """A bench in this process, and the peer's next step each time that it looks at its control channel."""
    poll_event = Runtime.poll_event
    with Runtime("peer") as peer_runtime:

        def both(runtime: Runtime, timeout: float | None = None) -> int:
            if runtime is not peer_runtime:
                peer(peer_runtime)
                timeout = 0  # the peer's turn comes again
            return poll_event(runtime, timeout)

        peer_runtime.create_interface(socket=socket, role="master", rx_mode="polling")
        monkeypatch.setattr(Runtime, "poll_event", both)
        return read_report(Bench(options).run().json())


@pytest.mark.parametrize("checked", ["content", "count"])
def test_gen_counts_what_a_peer_loses_and_goes_on(
    checked: str, socket_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LOST", 0.01)
    monkeypatch.setattr(limits, "LINGER", 0.1)
    lost = 0

    def peer(runtime: Runtime) -> None:
        nonlocal lost
        runtime.poll_event(0)
        (interface,) = runtime.interfaces
        if interface.connected:
            packets = interface.rx_queues[0].recv(7)
            lost += len(packets[5:])
            assert interface.tx_queues[0].send(packets[:5]) == len(packets[:5])

    options = Options("gen", socket_name, seconds=0.3, check=checked, window=64, burst=16)
    found = against(socket_name, options, peer, monkeypatch)
    assert found["dropped"] == lost > 0
    assert found["corrupted"] == 0
    assert found["packets"] + found["dropped"] == found["sent"] > 64


def test_gen_tells_changed_packets_from_lost_ones(socket_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = 0

    def peer(runtime: Runtime) -> None:
        nonlocal changed
        runtime.poll_event(0)
        (interface,) = runtime.interfaces
        if interface.connected:
            packets = interface.rx_queues[0].recv(4)
            changed += len(packets[:1])
            interface.tx_queues[0].send([packet[:-1] + b"!" for packet in packets[:1]] + packets[1:])

    found = against(socket_name, Options("gen", socket_name, seconds=0.2), peer, monkeypatch)
    assert found["corrupted"] == changed > 0
    assert found["dropped"] == 0
    assert found["packets"] + found["corrupted"] == found["sent"]


@pytest.mark.parametrize("checked", ["content", "count"])
def test_what_a_slow_peer_gives_back_late_is_not_lost(
    checked: str, socket_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Gen holds for lost what is not back when it looks again.
    monkeypatch.setattr(limits, "SAMPLE", 0.0)
    monkeypatch.setattr(limits, "LOST", 0.0)
    looks = 0

    def peer(runtime: Runtime) -> None:
        nonlocal looks
        looks += 1
        runtime.poll_event(0)
        (interface,) = runtime.interfaces
        if interface.connected and looks % 5 == 0:
            interface.tx_queues[0].send(interface.rx_queues[0].recv(256))

    found = against(socket_name, Options("gen", socket_name, seconds=0.1, check=checked), peer, monkeypatch)
    assert found["corrupted"] == found["dropped"] == 0
    assert found["packets"] == found["sent"] > 0


@pytest.mark.parametrize("mode", ["gen", "rr"])
@pytest.mark.parametrize("rx_mode", ["polling", "interrupt"])
def test_peer_that_gives_nothing_back_is_given_up(
    mode: str, rx_mode: RxModeName, socket_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PATIENCE", 0.1)
    monkeypatch.setattr(limits, "LOST", 0.02)

    def peer(runtime: Runtime) -> None:
        runtime.poll_event(0)
        for interface in runtime.interfaces:
            for queue in interface.rx_queues:
                queue.recv()

    found = against(socket_name, Options(mode, socket_name, seconds=60, rx_mode=rx_mode), peer, monkeypatch)
    assert found["packets"] == found["pps"] == found["seconds"] == 0
    assert found["dropped"] == found["sent"] > 0
    assert found["rtt_us"] == {}


@pytest.mark.parametrize("mode", ["gen", "rr"])
def test_command_fails_if_nothing_comes_back(
    mode: str, socket_name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(limits, "PATIENCE", 0.1)
    monkeypatch.setattr(limits, "LINGER", 0.1)
    with responder("--role", "master", "--socket", socket_name):  # it answers ARP and ping alone
        assert main(["bench", mode, "--socket", socket_name, "--json"]) == 1
    out, err = capsys.readouterr()
    assert read_report(out)["packets"] == 0
    *_, last = err.splitlines()
    assert last == "memifrt bench: no packet came back: the peer must send packets back, as memifrt bench echo does"


# --- how it ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("rx_mode", ["polling", "interrupt"])
@pytest.mark.parametrize(
    ("what", "against"), [("source", "sink"), ("sink", "source"), ("echo", "gen"), ("gen", "echo"), ("rr", "echo")]
)
def test_interrupted_bench_prints_what_it_measured(
    what: str, against: str, rx_mode: str, how: signal.Signals, socket_name: str
) -> None:
    arguments = ("--seconds=0", f"--rx-mode={rx_mode}")
    with (
        bench_at(socket_name, against, "master", *arguments) as other,
        bench_at(socket_name, what, "slave", *arguments) as one,
    ):
        read_until(other, "connected to ", stderr=True)
        status, out, err = end(one, how)
        assert (status, "Traceback" in err) == (0, False)
        found, facing = read_report(out), report(other)  # whose peer has left
    assert (found["mode"], facing["mode"]) == (what, against)
    assert found["sent"] == found["packets"] or what not in ("source", "echo")


@pytest.mark.parametrize("role", ["master", "slave"])
def test_bench_without_a_peer_ends_with_ctrl_c(role: str, socket_path: str) -> None:
    with bench_at(socket_path, "sink", role) as program:
        if role == "slave":
            read_until(program, "cannot connect", stderr=True)
        else:
            wait_until(lambda: os.path.exists(socket_path))
        status, out, err = end(program)
    assert (status, "Traceback" in err) == (130, False)
    assert read_report(out)["packets"] == 0
    assert not os.path.exists(socket_path)


@pytest.mark.parametrize("rx_mode", ["polling", "interrupt"])
@pytest.mark.parametrize(
    ("what", "against"), [("source", "sink"), ("sink", "source"), ("echo", "gen"), ("gen", "echo"), ("rr", "echo")]
)
def test_bench_whose_peer_is_killed_ends_with_what_it_measured(
    what: str, against: str, rx_mode: str, socket_name: str
) -> None:
    arguments = ("--seconds=0", f"--rx-mode={rx_mode}")
    with (
        bench_at(socket_name, what, "master", *arguments) as one,
        bench_at(socket_name, against, "slave", *arguments) as other,
    ):
        read_until(other, "connected to ", stderr=True)
        other.kill()
        status, out, err = finish(one)
    assert status == 0
    assert "peer closed the connection" in err
    assert "Traceback" not in err
    assert read_report(out)["mode"] == what


# --- what people see ------------------------------------------------------------------------------------------------


def test_report_for_people(socket_name: str) -> None:
    with (
        running("bench", "echo", "--socket", socket_name, "--role=master", "--seconds=0"),
        running("bench", "rr", "--socket", socket_name, SHORT) as rr,
    ):
        status, out, err = finish(rr)
    assert status == 0
    first, second, third = out.splitlines()
    assert re.fullmatch(
        r"rr \((native|python) rings\): \d+ packets in \d\.\d\d s: \d+\.\d{3} Mpps, \d+\.\d\d Gbit/s, "
        r"\d+\.\d ns of CPU a packet",
        first,
    )
    assert re.fullmatch(r"sent \d+, lost 0 \(0 %\), corrupted 0", second)
    assert re.fullmatch(r"round trip: p50 \d+\.\d us, p99 \d+\.\d us, p99\.9 \d+\.\d us", third)
    assert "connected to" in err


def test_terminal_has_a_live_line(socket_name: str) -> None:
    terminal, program_side = pty.openpty()
    with running("bench", "echo", "--socket", socket_name, "--role=master", "--seconds=0"):
        gen = subprocess.Popen(
            command("bench", "gen", "--socket", socket_name, "--seconds=0"), stdout=subprocess.PIPE, stderr=program_side
        )
        os.close(program_side)
        with open(terminal, "rb", buffering=0) as screen, gen:
            shown = b""
            while b"Mpps" not in shown:
                shown += screen.read(100)
            gen.send_signal(signal.SIGINT)
            with contextlib.suppress(OSError):  # EIO: the program has closed its side
                while part := screen.read(100):
                    shown += part
            assert gen.wait(DEADLINE) == 0
    assert re.search(rb"\r +\d+\.\d{3} Mpps", shown)
    assert b"\r" + b" " * 20 + b"\r" in shown  # and it is gone at the end


def test_bench_stays_on_its_cores(socket_name: str) -> None:
    cpus = sorted(os.sched_getaffinity(0))[:2]
    listed = ",".join(str(cpu) for cpu in cpus)
    with bench_at(socket_name, "sink", "master", f"--cpu={listed}") as program:
        wait_until(lambda: os.sched_getaffinity(program.pid) == set(cpus))


def test_bench_stays_on_its_core(socket_name: str) -> None:
    cpu = max(os.sched_getaffinity(0))
    with bench_at(socket_name, "sink", "master", f"--cpu={cpu}") as program:
        wait_until(lambda: os.sched_getaffinity(program.pid) == {cpu})


# --- wrong arguments ------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[list[str], list[str]]] = {
    "size of the ring": (["source", "--size=9000", "--ring-size=4"], ["size is 9000", "a ring of 4", "holds 8192"]),
    "nothing to do": ([], ["WHAT"]),
    "unknown mode": (["fly"], ["WHAT", "'fly'", "'source'", "'rr'"]),
    "size 0": (["gen", "--size=0"], ["--size", "'0'", "1 to 65535"]),
    "size too large": (["gen", "--size=65536"], ["--size", "'65536'", "1 to 65535"]),
    "size too small for the check": (["gen", "--size=7"], ["size is 7", "at least 8"]),
    "burst 0": (["echo", "--burst=0"], ["--burst", "'0'", "1 to 16384"]),
    "burst too large": (["echo", "--burst=16385"], ["--burst", "'16385'", "1 to 16384"]),
    "seconds": (["sink", "--seconds=-1"], ["--seconds", "'-1'", "seconds"]),
    "seconds not a number": (["sink", "--seconds=nan"], ["--seconds", "'nan'", "seconds"]),
    "api": (["sink", "--api=matrix"], ["--api", "'matrix'", "'vector'"]),
    "check": (["gen", "--check=no"], ["--check", "'no'", "'content'"]),
    "payload": (["gen", "--payload=text"], ["--payload", "'text'", "'icmp'"]),
    "payload that cannot be checked": (["gen", "--payload=icmp"], ["payload is icmp", "count"]),
    "payload without room": (["source", "--payload=icmp", "--size=41"], ["size is 41", "42"]),
    "window": (["gen", "--window=65537"], ["--window", "'65537'", "65536"]),
    "cpu": (["sink", "--cpu=4095"], ["cpu is 4095", "may run on"]),
    "one cpu of several": (["sink", "--cpu=0,x"], ["--cpu", "'x'", "4095"]),
    "loop of a sink": (["sink", "--api=loop"], ["api is loop", "only echo"]),
    "threads of gen": (["gen", "--threads"], ["gen cannot have threads", "sink"]),
    "threads that wait": (["echo", "--threads", "--rx-mode=interrupt"], ["rx_mode is interrupt", "--api=loop"]),
    "mix that is checked": (["gen", "--size=imix"], ["size is imix", "count"]),
    "mix of a source": (["source", "--size=imix"], ["size is imix", "only gen"]),
    "mix without a name": (["gen", "--size=mix"], ["--size", "'mix'", "1 to 65535", "imix"]),
    "queues": (["sink", "--queues=256"], ["--queues", "'256'", "1 to 255"]),
    "ring size": (["sink", "--ring-size=1000"], ["--ring-size", "'1000'", "power of two"]),
    "rx mode": (["sink", "--rx-mode=x"], ["--rx-mode", "'x'", "adaptive"]),
    "role": (["sink", "--role=x"], ["--role", "'x'", "master"]),
    "no directory": (["sink", "--role=master", "--socket=/nowhere/s"], ["/nowhere/s", "directory /nowhere"]),
    "plain file": (["sink", "--role=master", f"--socket={__file__}"], [__file__, "not a socket"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_argument_is_one_line_that_names_it_and_status_2(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = WRONG[case]
    assert main(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("memifrt bench: ")
    assert err.count("\n") == 1
    assert [word for word in words if word not in err] == []


@pytest.mark.parametrize("what", ["source", "gen", "rr"])
def test_packet_that_the_ring_has_no_room_for_is_an_error(what: str, socket_name: str) -> None:
    with bench_at(socket_name, "sink", "master", "--seconds=0"):
        done = run("bench", what, "--socket", socket_name, "--size=9000", "--ring-size=2", SHORT)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert "9000" in done.stderr.splitlines()[-1]


def test_echo_of_packets_wider_than_its_rows_says_what_to_do(socket_name: str) -> None:
    with (
        bench_at(socket_name, "echo", "master", "--seconds=0", "--api=vector") as echo,
        bench_at(socket_name, "gen", "slave", "--seconds=0", "--size=9000"),
    ):
        status, out, err = finish(echo)
    assert (status, out) == (2, "")
    assert re.search(r"^memifrt bench: .*9000.*--size", err, re.M)


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    assert re.search(r"^example.*^  memifrt bench ", capsys.readouterr().out, re.M | re.S)


def test_packets_that_all_come_between_two_samples_have_a_rate() -> None:
    meter, result = Meter(live=False), Result("sink", "native")
    meter.sample(0)
    meter.sample(1000, calls=10)
    meter.sample(1000, calls=20)
    meter.fill(result)
    assert result.seconds > 0
    assert result.pps == 1000 / result.seconds


# --- intervals, loss, plots, cores -----------------------------------------------------------------------------------


def test_t_is_seconds_and_i_prints_lines_with_the_loss(socket_name: str) -> None:
    with (
        bench_at(socket_name, "echo", "master", "-t0"),
        running("bench", "gen", f"--socket={socket_name}", "-t", "0.6", "-i", "0.1") as gen,
    ):
        status, out, err = finish(gen)
    assert status == 0, err
    *lines, first, second = out.splitlines()
    assert lines
    for line in lines:
        assert re.fullmatch(r" +\d+\.\d\d-\d+\.\d\d s: +\d+\.\d{3} [Mk]pps, +\d+\.\d\d Gbit/s, lost \d+", line)
    assert first.startswith("gen (")
    assert re.fullmatch(r"sent \d+, lost \d+ \([\d.e-]+ %\), corrupted 0", second)


def test_intervals_follow_each_other_and_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 1.5, 2.0, 3.0])
    monkeypatch.setattr("memifrt.cli.bench.measurement.time.monotonic", lambda: next(now))
    told: list[Interval] = []
    meter = Meter(live=False, interval=1.0, on_interval=told.append)
    for packets, lost in ((10, 0), (20, 1), (30, 1), (60, 4)):
        meter.sample(packets, 0, packets * 100, lost)
    assert told == meter.intervals
    assert told == [Interval(0.0, 1.0, 20.0, 16000.0, 1), Interval(1.0, 2.0, 30.0, 24000.0, 3)]


@pytest.mark.parametrize(
    ("mode", "sent", "dropped", "text"), [("gen", 200, 3, "lost 3 (1.5 %)"), ("rr", 4, 0, "lost 0 (0 %)")]
)
def test_loss_is_a_share_of_the_sent_packets(mode: str, sent: int, dropped: int, text: str) -> None:
    result = Result(mode, "native", packets=1, sent=sent, dropped=dropped, loss=100 * dropped / sent)
    assert text in result.lines()[1]


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_plot_of_round_trips_is_a_file_of_the_kind_that_its_name_says(
    suffix: str, socket_name: str, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'memifrt[plot]'")
    path = tmp_path / f"plot{suffix}"
    with bench_at(socket_name, "echo", "master", "--seconds=0"):
        # A program of its own, because matplotlib keeps its fonts open.
        done = run("bench", "rr", f"--socket={socket_name}", "-t", "0.3", "--plot", str(path))
    assert done.returncode == 0, done.stderr
    assert "round trip" in done.stdout
    content = path.read_bytes()
    assert content.startswith({".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}[suffix])
    if suffix == ".svg":
        assert b"<!-- p50 -->" in content
        assert b"<!-- Mpps -->" in content


def test_plot_without_any_packet_is_still_a_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'memifrt[plot]'")
    program = "import sys; from memifrt.cli.plots import plot_bench; plot_bench(sys.argv[1], 'nothing', [], [])"
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "nothing.svg")], check=True, timeout=DEADLINE)
    assert (tmp_path / "nothing.svg").stat().st_size


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-t", "-1"], "argument -t/--seconds: '-1' is not a number of seconds"),
        (["-i", "0.05"], "argument -i/--interval: '0.05' is not 0, or a number of seconds from 0.1"),
        (["-i", "x"], "argument -i/--interval: 'x' is not a number of seconds"),
        (["--plot", "plot.xls"], "'plot.xls' is not the name of a plot; it must end in .svg, .png, .pdf"),
        (["--plot", "/no/such/plot.svg"], "'/no/such/plot.svg': there is no directory /no/such"),
        (["--plot", ""], "'' is not the name of a plot"),
    ],
)
def test_bad_interval_or_plot_is_one_line_and_status_2(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "sink", "--socket=@none", *arguments]) == 2
    err = capsys.readouterr().err
    assert named in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("cpus", "rx_mode", "peer_rx_mode", "warns"),
    [
        ({3}, "polling", "polling", True),
        ({3, 4}, "polling", "polling", False),
        ({3}, "interrupt", "polling", False),
        ({3}, "polling", "interrupt", False),
    ],
)
def test_two_ends_that_poll_on_one_core_are_warned(
    cpus: set[int],
    rx_mode: RxModeName,
    peer_rx_mode: RxModeName,
    warns: bool,
    make_pair: Callable[..., Pair],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = make_pair(rx_mode=peer_rx_mode)
    options = Options("echo", "@unused", rx_mode=rx_mode)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cpus)
    with monkeypatch.context() as patched:
        details = pair.slave.details()
        assert details.peer is not None
        elsewhere = replace(details, peer=replace(details.peer, pid=1))
        patched.setattr(type(pair.slave), "details", lambda interface: elsewhere)
        told = list(core_warnings(options, pair.slave, 1))
    assert bool(told) is warns
    if warns:
        assert told[0].startswith("both ends poll with 2 threads or more on core 3, so they take turns")
