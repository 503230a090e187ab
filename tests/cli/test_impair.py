"""The impairments of ``memifrt bridge`` and ``memifrt dump --between``: options, directions, and the file."""

from __future__ import annotations

import inspect
import json
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from memifrt import Interface, MemifError, Mode, Runtime
from memifrt.capture.pcap import open_capture
from memifrt.cli.arguments import Parser
from memifrt.cli.command_line import main
from memifrt.cli.impair import ImpairmentOptions, Impairments, add_impairment_arguments, impairment_options, watching
from memifrt.impairments import GilbertElliott, Impairment, Reorder
from memifrt.ports.impairment import SETTINGS
from memifrt.stats.client import parse_snapshot
from memifrt.stats.prometheus import metrics
from memifrt.stats.snapshot import snapshot
from tests.lib.programs import Program, finish, read_until, running
from tests.lib.support import wait_until

# --- options --------------------------------------------------------------------------------------------------------


def options_of(*arguments: str) -> ImpairmentOptions:
    parser = Parser()
    add_impairment_arguments(parser)
    return impairment_options(parser.parse_args(arguments))


def made(*arguments: str) -> Impairments:
    return Impairments(options_of(*arguments), Mode.ETHERNET)


def test_without_options_nothing_is_impaired() -> None:
    assert not options_of()
    impairments = made()
    assert (impairments.a_to_b, impairments.b_to_a, impairments.describe()) == (None, None, [])


def test_plain_options_are_for_both_directions() -> None:
    impairments = made(
        *("--delay", "10ms", "--jitter", "2ms", "--distribution", "pareto", "--loss", "gemodel 1% 10%"),
        *("--duplicate", "1%", "--reorder", "25% 50% gap 5", "--corrupt", "0.1%", "--rate", "100mbit"),
        *("--queue", "50", "--memory", "1mb", "--seed", "7", "--match", "udp port 53"),
    )
    for each in (impairments.a_to_b, impairments.b_to_a):
        assert each is not None
        assert (each.delay, each.jitter, each.distribution, each.loss) == (
            0.01,
            0.002,
            "pareto",
            GilbertElliott(0.01, 0.1),
        )
        assert (each.duplicate, each.reorder, each.corrupt) == (0.01, Reorder(0.25, 0.5, 5), 0.001)
        assert (each.rate, each.queue, each.memory, each.seed, each.match) == (1e8, 50, 1 << 20, 7, "udp port 53")
    assert impairments.describe()[0] == (
        "impairing a-to-b: delay=10ms, jitter=2ms, distribution=pareto, loss=gemodel 1% 10% 100% 0%, duplicate=1%, "
        "reorder=25% 50% gap 5, corrupt=0.1%, rate=100mbit, queue=50, memory=1048576, match=udp port 53, seed=7"
    )


def test_a_direction_adds_to_what_is_said_of_both() -> None:
    impairments = made("--loss", "1%", "--impair", "a-to-b:loss=5%,delay=5ms", "--impair", "b-to-a:rate=1gbit")
    there, back = impairments.a_to_b, impairments.b_to_a
    assert there is not None
    assert back is not None
    assert (there.loss, there.delay, there.rate) == (0.05, 0.005, 0)
    assert (back.loss, back.delay, back.rate) == (0.01, 0, 1e9)


def test_a_seed_is_for_the_direction_that_needs_it() -> None:
    impairments = made("--seed", "5", "--memory", "1mb", "--impair", "a-to-b:loss=1%,delay=1ms")
    assert impairments.describe() == ["impairing a-to-b: delay=1ms, loss=1%, memory=1048576, seed=5"]
    assert impairments.b_to_a is None


def test_one_direction_alone_leaves_the_other_as_it_is() -> None:
    impairments = made("--impair", "b-to-a:loss=1%")
    assert impairments.a_to_b is None
    assert impairments.b_to_a is not None


WRONG = {
    ("--delay", "10"): ["--delay", "'10'", "10ms"],
    ("--delay", "-1ms"): ["--delay"],
    ("--jitter", "2h"): ["--jitter", "'2h'", "10ms"],
    ("--distribution", "gauss"): ["--distribution", "'gauss'", "normal, uniform, pareto"],
    ("--distribution", "pareto"): ["pareto needs a jitter"],
    ("--loss", "1"): ["--loss", "'1'", "1%"],
    ("--loss", "gemodel"): ["--loss", "'gemodel'", "gemodel 1% 10%"],
    ("--duplicate", "101%"): ["--duplicate", "'101%'", "0% to 100%"],
    ("--reorder", "often"): ["--reorder", "'often'", "25% 50% gap 5"],
    ("--reorder", "25%"): ["reorder needs a delay"],
    ("--corrupt", "x"): ["--corrupt", "'x'", "1%"],
    ("--rate", "100mbps"): ["--rate", "'100mbps'", "100mbit"],
    ("--queue", "0", "--rate", "1gbit"): ["--queue", "0", "at least 1"],
    ("--queue", "5"): ["queue needs a rate"],
    ("--memory", "1000"): ["--memory", "'1000'", "256mb"],
    ("--match", ""): ["--match", "the filter is empty", "udp port 53"],
    ("--seed", "x"): ["--seed", "'x'", "whole number"],
    ("--seed", "1"): ["seed impairs nothing by itself"],
    ("--match", "udp"): ["match impairs nothing by itself"],
    ("--match", "port port", "--loss", "1%"): ["'port port'"],
    ("--delay", "1ms", "--seed", "1"): ["seed has no effect", "jitter, loss"],
    ("--loss", "1%", "--memory", "1mb"): ["memory has no effect", "delay, jitter, rate"],
    ("--impair-file", ""): ["--impair-file", "'' is not the name of a file"],
    ("--impair", "c-to-d:loss=1%"): ["--impair", "'c-to-d'", "a-to-b or b-to-a"],
    ("--impair", "a-to-b:loss"): ["--impair", "'loss'", "a-to-b:loss=1%,delay=5ms"],
    ("--impair", "a-to-b:lost=1%"): ["--impair", "'lost'", "delay, jitter"],
    ("--impair", "a-to-b:loss=1"): ["--impair", "loss: '1'", "1%"],
    ("--impair", "loss=1%,loss=2%"): ["--impair", "loss is given twice"],
    ("--impair-file", "/nowhere/file"): ["/nowhere/file", "No such file"],
}


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
@pytest.mark.parametrize("command", [("bridge",), ("dump", "--between")], ids=["bridge", "dump"])
def test_a_wrong_option_is_one_line_and_status_2(
    command: tuple[str, ...], arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "memif:@memifrt-test-a", "memif:@memifrt-test-b", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert [word for word in WRONG[arguments] if word not in err] == []


def test_dump_at_the_end_of_a_memif_has_nothing_to_impair(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", "--delay", "1ms", "--socket", "@memifrt-test-a"]) == 2
    assert "they need --between A B" in capsys.readouterr().err


# --- the file -------------------------------------------------------------------------------------------------------


def test_a_file_adds_to_the_options_and_what_it_no_longer_says_is_as_before(tmp_path: Path) -> None:
    path = tmp_path / "impairments"
    path.write_text("# both\nloss=5%, delay=1ms\n\na-to-b: rate=10mbit # one\n")
    impairments = made("--loss", "1%", "--seed", "3", "--impair-file", str(path))
    there, back = impairments.a_to_b, impairments.b_to_a
    assert there is not None
    assert back is not None
    assert (there.loss, there.delay, there.rate, there.seed) == (0.05, 0.001, 1e7, 3)
    assert (back.loss, back.delay, back.rate, back.seed) == (0.05, 0.001, 0, 3)
    assert not impairments.adopt(impairments.look())
    path.write_text("delay=2ms")
    assert impairments.adopt(impairments.look())
    assert (there.loss, there.delay, there.rate, there.seed) == (0.01, 0.002, 0, 3)
    path.write_text("")
    assert impairments.adopt(impairments.look())
    assert (there.loss, there.delay) == (0.01, 0)
    path.unlink()  # as an editor does that replaces it
    assert not impairments.adopt(impairments.look())
    assert there.loss == 0.01


def test_the_statistics_have_the_counters_of_each_impaired_direction(runtime: Runtime) -> None:
    impairments = made("--impair", "b-to-a:loss=1%")
    impairments.count_in(runtime)
    assert impairments.b_to_a is not None
    impairments.b_to_a.counters.lost += 3
    stats = snapshot(runtime)
    assert {each["group"] for each in stats["counters"]} == {"b-to-a"}
    assert {each["name"]: each["value"] for each in stats["counters"]} == {
        **dict.fromkeys(("duplicated", "corrupted", "reordered", "delayed", "queue_full", "memory_full"), 0),
        "lost": 3,
    }
    assert parse_snapshot(json.dumps(stats).encode()) == stats
    earlier = {name: value for name, value in stats.items() if name != "counters"}
    assert parse_snapshot(json.dumps(earlier).encode())["counters"] == []
    assert 'memifrt_application_total{group="b-to-a",counter="lost"} 3\n' in metrics(stats)


def test_a_wrong_file_changes_nothing_and_is_said_once(tmp_path: Path) -> None:
    path = tmp_path / "impairments"
    path.write_text("loss=5%")
    impairments = made("--impair-file", str(path))
    for text, words in {
        "a-to-b:loss=1%\nb-to-a:loss=x": f"{path}: line 2: loss: 'x'",
        "reorder=25%": f"{path}: reorder needs a delay",
        "#" * 70_000: f"{path} is longer than 65536 bytes",
    }.items():
        path.write_text(text)
        if len(text) < 65536:
            with pytest.raises(MemifError) as caught:
                impairments.adopt(impairments.look())
            assert words in caught.value.message
        assert not impairments.adopt(impairments.look())
        assert impairments.a_to_b is not None
        assert impairments.a_to_b.loss == 0.05


def test_a_change_of_the_file_is_noticed_and_told(tmp_path: Path, runtime: Runtime) -> None:
    path = tmp_path / "impairments"
    path.write_text("loss=5%")
    options = options_of("--impair-file", str(path), "--seed", "1")
    impairments = Impairments(options, Mode.ETHERNET)
    said: list[str] = []
    with watching(impairments, options, said.append):
        path.write_text("loss=6%")
        wait_until(lambda: len(said) == 2, runtime)
        path.write_text("loss=6")
        wait_until(lambda: len(said) == 3, runtime)
    assert said[:2] == [f"impairing {way}: loss=6%, seed=1" for way in ("a-to-b", "b-to-a")]
    assert said[2].endswith("'6' is not a percentage; write it like 1%; nothing is changed")


# --- the commands ---------------------------------------------------------------------------------------------------


@pytest.fixture
def ends(runtime: Runtime, socket_path: str) -> tuple[Interface, Interface, list[bytes]]:
    """Both peers of a command between memif0 and memif1 of a socket, and what the second receives."""
    received: list[bytes] = []

    def on_interrupt(interface: Interface, qid: int) -> None:
        received.extend(interface.rx_queues[qid].recv())

    a = runtime.create_interface(socket=socket_path, id=0)
    b = runtime.create_interface(socket=socket_path, id=1, on_interrupt=on_interrupt)
    return a, b, received


def between(path: str) -> list[str]:
    return [f"memif:{path},role=master,id={id}" for id in (0, 1)]


def send(interface: Interface, packets: Sequence[bytes], runtime: Runtime) -> None:
    rest = [*packets]

    def sent() -> bool:
        del rest[: interface.tx_queues[0].send(rest)]
        return not rest

    wait_until(sent, runtime)


def end(program: Program, runtime: Runtime) -> tuple[int, str, str]:
    """Interrupt a program while the peers take packets."""
    program.send_signal(signal.SIGINT)
    wait_until(lambda: program.poll() is not None, runtime)
    return finish(program)


PACKETS = [number.to_bytes(2, "big") * 30 for number in range(400)]


def test_a_bridge_impairs_and_reports_each_direction(
    ends: tuple[Interface, Interface, list[bytes]], runtime: Runtime, socket_path: str
) -> None:
    a, b, received = ends
    arguments = ["--delay", "1ms", "--impair", "b-to-a:loss=100%", "--impair", "a-to-b:duplicate=100%", "--seed", "1"]
    with running("bridge", *between(socket_path), *arguments) as program:
        assert "impairing a-to-b: delay=1ms, duplicate=100%, seed=1" in read_until(program, "^impairing")
        read_until(program, "^bridging ")
        wait_until(lambda: a.connected and b.connected, runtime)
        send(a, PACKETS, runtime)
        send(b, PACKETS[:7], runtime)
        wait_until(lambda: len(received) == 800 and not b.tx_queues[0].in_flight(), runtime)
        status, out, err = end(program, runtime)
    assert status == 0, err
    assert received == [packet for packet in PACKETS for _ in range(2)]
    assert ": 800 packets, 48000 bytes, 0 dropped, 400 duplicated, 800 delayed\n" in out
    assert ": 0 packets, 0 bytes, 7 dropped (7 lost)\n" in out


@pytest.mark.parametrize(("delay", "arrive"), [("700ms", 400), ("60s", 0)])
def test_at_the_end_delayed_packets_are_delivered_or_reported(
    delay: str,
    arrive: int,
    ends: tuple[Interface, Interface, list[bytes]],
    runtime: Runtime,
    socket_path: str,
) -> None:
    a, b, received = ends
    with running("bridge", *between(socket_path), "--delay", delay) as program:
        read_until(program, "^bridging ")
        wait_until(lambda: a.connected and b.connected, runtime)
        send(a, PACKETS, runtime)
        wait_until(lambda: not a.tx_queues[0].in_flight(), runtime)
        status, out, err = end(program, runtime)
    assert status == 0, err
    assert received == PACKETS[:arrive]
    assert ("400 still delayed" in out) == (not arrive)
    assert f": {arrive} packets" in out


def test_dump_captures_what_leaves_an_impairment(
    ends: tuple[Interface, Interface, list[bytes]], runtime: Runtime, socket_path: str, tmp_path: Path
) -> None:
    a, b, received = ends
    path = tmp_path / "x.pcap"
    arguments = ["--impair", "a-to-b:loss=50%,delay=1ms,seed=5", "-w", str(path)]
    with running("dump", "--between", *between(socket_path), *arguments) as program:
        read_until(program, "impairing a-to-b: delay=1ms, loss=50%, seed=5", stderr=True)
        read_until(program, "capturing on", stderr=True)
        wait_until(lambda: a.connected and b.connected, runtime)
        send(a, PACKETS, runtime)
        wait_until(lambda: not a.tx_queues[0].in_flight(), runtime)
        send(b, [b"back" * 15], runtime)
        wait_until(lambda: not b.tx_queues[0].in_flight(), runtime)
        status, _, err = end(program, runtime)
    assert status == 0, err
    with open_capture(str(path)) as capture:
        captured = [packet.data for packet in capture]
    assert [packet for packet in captured if packet != b"back" * 15] == received
    assert len(captured) == len(received) + 1
    assert 100 < len(received) < 300
    assert f"{len(captured)} packets captured" in err
    assert f"{400 - len(received)} dropped ({400 - len(received)} lost), {len(received)} delayed" in err


def test_every_setting_has_an_option_and_a_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        Parser.parse_args(_with_impairments(), ["--help"])
    out = capsys.readouterr().out
    assert [name for name in Impairment().settings.__slots__ if name != "matches" and f"--{name} " not in out] == []


def test_the_list_of_settings_is_that_of_the_python_object() -> None:
    assert (*inspect.signature(Impairment).parameters,) == (*SETTINGS, "mode")
    assert sorted(Impairment().settings.__slots__) == sorted([*SETTINGS, "matches"])


def _with_impairments() -> Parser:
    parser = Parser()
    add_impairment_arguments(parser)
    return parser
