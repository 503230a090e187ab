"""``memifrt top``: what it makes of programs that run, go away, come back, or are none; and how that looks."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from fcntl import ioctl
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.screen import Screen

from memifrt import Runtime
from memifrt.cli.command_line import main
from memifrt.cli.commands import top
from memifrt.cli.top.drawing import ASCII, UNICODE, bar, duration, plain, scaled, sparkline
from memifrt.cli.top.rows import direction_row
from memifrt.cli.top.screen import picture
from memifrt.cli.top.table import lines
from memifrt.cli.top.view import SORTS, View
from memifrt.stats.client import FORGET_AFTER, Observer, Program, QueueKey, parse_snapshot, rates
from memifrt.stats.snapshot import InterfaceStats, QueueStats, Snapshot, snapshot
from tests.lib.programs import command, end, finish, read_until, run, running
from tests.lib.support import DEADLINE, connect, running_in_thread, wait_until

# --- made-up snapshots ----------------------------------------------------------------------------------------------


def queue(qid: int = 0, direction: str = "rx", **changes: Any) -> QueueStats:
    made: dict[str, Any] = {
        "qid": qid, "direction": direction, "ring": "s2m", "ring_size": 1024, "used": 512, "head": 512, "tail": 0,
        "masked": False, "rx_mode": "interrupt" if direction == "rx" else None, "packets": 0, "bytes": 0,
        "interrupts": 0, "ring_full": 0, "bad_descriptors": 0, "repeated_kicks": 0,
    }  # fmt: skip
    return cast(QueueStats, {**made, **changes})


def interface(id: int = 0, *queues: QueueStats, **changes: Any) -> InterfaceStats:
    made: dict[str, Any] = {
        "id": id, "name": "memif0", "role": "slave", "mode": "ethernet", "socket": "/run/vpp/memif.sock",
        "state": "connected", "connected_since": 60.0, "error": "",
        "connects": 1, "disconnects": 0, "violations": 0,
        "peer": {"app_name": "VPP 24.02", "name": "memif0/0", "pid": 987, "uid": 0, "gid": 0},
        "queues": list(queues) or [queue(), queue(direction="tx")],
    }  # fmt: skip
    return cast(InterfaceStats, {**made, **changes})


def made(*interfaces: InterfaceStats, at: float = 100.0, **changes: Any) -> Snapshot:
    whole: dict[str, Any] = {
        "schema": "memifrt-stats", "version": 1, "name": "responder", "pid": 42, "rings": "native",
        "started": 0.0, "time": at, "monotonic": at, "interfaces": list(interfaces), "counters": [],
    }  # fmt: skip
    return cast(Snapshot, {**whole, **changes})


def program(*snapshots: Snapshot, path: str = "/run/a.stats") -> Program:
    """A program that said these, one after the other."""
    program = Program(path)
    for each in snapshots:
        program._take(parse_snapshot(json.dumps(each).encode()))
    return program


def shown(*programs: Program, width: int = 80, height: int | None = None) -> str:
    return "\n".join(plain(line) for line in lines(programs, width, height, UNICODE))


# --- numbers --------------------------------------------------------------------------------------------------------


def test_numbers_have_three_digits_and_a_prefix() -> None:
    texts = {
        0: "0", 0.25: "0.25", 5: "5", 12: "12", 12.34: "12.3", 999.4: "999", 999.6: "1.00 k", 1000: "1.00 k",
        12_345: "12.3 k", 999_499: "999 k", 999_500: "1.00 M", 1_234_567: "1.23 M", 2e9: "2.00 G", 5e12: "5.00 T",
    }  # fmt: skip
    assert {value: scaled(value) for value in texts} == texts
    assert scaled(1 << 63) == "9.22 E"


@given(st.floats(0, 1e15) | st.integers(0, 10**15))
@example(99.95)
@example(9.995)
@example(999.5)
@example(999_499.99)
def test_a_number_fits_its_column_and_is_right_to_half_a_percent(value: float) -> None:
    text = scaled(value)
    assert len(text) <= 7
    number, _, prefix = text.partition(" ")
    back = float(number) * 1000 ** ["", "k", "M", "G", "T", "P", "E"].index(prefix)
    assert back == pytest.approx(value, rel=0.006, abs=0.006)


def test_durations_have_two_units() -> None:
    texts = {-5: "0 s", 8.9: "8 s", 60: "1 m", 192: "3 m 12 s", 7500: "2 h 5 m", 273_600: "3 d 4 h"}
    assert {seconds: duration(seconds) for seconds in texts} == texts


def test_a_sparkline_has_the_newest_on_the_right() -> None:
    for history, line in (
        ([], "     "),
        ([0], "    ▁"),
        ([0, 0, 0, 0, 0, 0, 7], "▁▁▁▁█"),
        ([1, None, 2], "  ▅ █"),
        ([0.0, 50, 100], "  ▁▅█"),
        ([None, None], "     "),
    ):
        assert sparkline(cast(list[float | None], history), 5, UNICODE.levels) == line


@given(st.lists(st.none() | st.floats(0, 1e12), max_size=30), st.integers(0, 20))
def test_a_sparkline_is_as_wide_as_it_is_told(history: list[float | None], width: int) -> None:
    for symbols in (UNICODE, ASCII):
        assert len(sparkline(history, width, symbols.levels)) == width


def test_a_bar_shows_what_is_not_nothing() -> None:
    texts = {0: "....", 0.001: "#...", 0.5: "##..", 0.99: "####", 1: "####"}
    assert {share: bar(share, 4, ASCII) for share in texts} == texts


# --- rates ----------------------------------------------------------------------------------------------------------

KEY = QueueKey("/run/vpp/memif.sock", "slave", 0, "rx", 0)


def test_rates_are_differences_over_the_time_between() -> None:
    before = made(interface(0, queue(packets=100, bytes=6000, interrupts=10, ring_full=1)), at=100.0)
    after = made(interface(0, queue(packets=300, bytes=18_000, interrupts=14, ring_full=2)), at=100.5)
    found = rates(before, after)[KEY]
    assert (found.packets, found.bits, found.interrupts, found.ring_full) == (400, 192_000, 8, 2)


@pytest.mark.parametrize(
    "after",
    [
        made(interface(0, queue(packets=1)), at=101.0),  # it began anew
        made(interface(0, queue(packets=9, bytes=1)), at=100.0),  # no time has passed
        made(interface(1, queue(packets=9)), at=101.0),  # another interface
        made(interface(0, queue(packets=9), role="master"), at=101.0),
        made(at=101.0),
    ],
)
def test_there_is_no_rate_of_what_is_not_the_same(after: Snapshot) -> None:
    assert KEY not in rates(made(interface(0, queue(packets=5))), after)


def test_another_program_on_the_same_path_has_no_rates_and_no_past() -> None:
    seen = program(*(made(interface(0, queue(packets=n)), at=100.0 + n) for n in range(3)))
    assert list(seen.history[KEY]) == [None, 1, 1]
    seen._take(made(interface(0, queue(packets=1000)), at=104.0, pid=43))
    assert seen.rates == {}
    assert list(seen.history[KEY]) == [None]


def test_a_queue_that_is_gone_is_forgotten() -> None:
    seen = program(made(interface(0)), made(interface(0), at=101.0))
    assert len(seen.history) == 2
    seen._take(made(at=102.0))
    assert seen.history == {}


# --- what comes over a socket ---------------------------------------------------------------------------------------


def mutated(change: Callable[[Any], object]) -> bytes:
    value = deepcopy(made(interface()))
    change(value)
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", "not JSON"),
        (b"hello\n", "not JSON"),
        (b"\xff\xfe\n", "not JSON"),
        (b"[" * 100_000, "JSON"),
        (b"9" * 5000, "JSON"),
        (b"[]", "no schema"),
        (b"{}", "no schema 'memifrt-stats'"),
        (b'{"schema": "memifrt-stats", "version": 2}', "version '2'"),
        (mutated(lambda value: value.pop("name")), "the snapshot has no 'name'"),
        (mutated(lambda value: value.update(pid="x")), "pid is not of type int"),
        (mutated(lambda value: value.update(pid=True)), "pid is not of type int"),
        (mutated(lambda value: value.update(time=float("nan"))), "not JSON"),
        (
            mutated(lambda value: value.update(time=1)).replace(b'"time": 1', b'"time": 1e999'),
            "time is not of type float",
        ),
        (mutated(lambda value: value.update(interfaces={})), "interfaces is not a list"),
        (mutated(lambda value: value["interfaces"].append(None)), "interfaces is not an object"),
        (mutated(lambda value: value["interfaces"][0].update(peer=[])), "peer is not an object"),
        (mutated(lambda value: value["interfaces"][0]["queues"][0].update(used="x")), "used is not of type int"),
        (mutated(lambda value: value["interfaces"][0]["queues"][1].update(packets=None)), "packets is not of type int"),
        (
            mutated(lambda value: value["interfaces"][0]["queues"][1].update(packets=1 << 64)),
            "packets is not of type int",
        ),
    ],
)
def test_what_is_no_snapshot_is_refused_in_words(line: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_snapshot(line)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([*interface()]), _JSON, st.sampled_from([*queue()]), _JSON)
def test_whatever_is_accepted_can_be_shown(name: str, value: Any, of_queue: str, queue_value: Any) -> None:
    changed: Any = {**interface(0, queue(**{of_queue: queue_value})), name: value}
    whole = made(changed)
    try:
        accepted = parse_snapshot(json.dumps(whole).encode())
    except ValueError:
        return
    seen = Program("/run/a.stats")
    seen._take(accepted)
    seen._take(accepted)
    for height in (None, 3):
        text = [plain(line) for line in lines([seen], 80, height, UNICODE)]
        assert all(line.isprintable() for line in text)
    top.as_json(seen)


def test_a_snapshot_of_an_earlier_release_is_accepted(runtime: Runtime, socket_name: str) -> None:
    connect(runtime, runtime, socket_name)
    now: Any = snapshot(runtime)
    for each in now["interfaces"]:
        del each["changes"]
        for of_it in each["queues"]:
            del of_it["repeated_kicks"]
    (first, _) = parse_snapshot(json.dumps(now).encode())["interfaces"]
    assert (first["changes"], first["queues"][0]["repeated_kicks"]) == ([], 0)


def test_a_snapshot_of_a_runtime_is_accepted(runtime: Runtime, socket_name: str) -> None:
    connect(runtime, runtime, socket_name)
    now = snapshot(runtime)
    assert parse_snapshot(json.dumps(now).encode()) == now


# --- programs that come and go --------------------------------------------------------------------------------------


@pytest.fixture
def stats_path(tmp_path: Path) -> str:
    return str(tmp_path / "a.stats")


@pytest.fixture
def observe() -> Iterator[Callable[..., Observer]]:
    with contextlib.ExitStack() as stack:

        def make(*paths: str) -> Observer:
            observer = Observer(paths)
            stack.callback(observer.close)
            return observer

        yield make


def look(observer: Observer, *runtimes: Runtime) -> None:
    """One turn, while the runtimes handle their events."""
    observer.ask()
    wait_until(lambda: observer.wait(0) is not None and not any(p.waiting for p in observer.programs), *runtimes)


Observe = Callable[..., Observer]


def test_a_program_goes_away_and_comes_back(observe: Observe, stats_path: str) -> None:
    observer = observe(stats_path)
    (seen,) = observer.programs
    look(observer)
    assert "no such file" in seen.error
    for name in ("first", "second"):
        with Runtime(name, stats_socket=stats_path) as runtime:
            for _ in range(3):
                look(observer, runtime)
                assert seen.error == ""
            assert seen.snapshot is not None
            assert seen.snapshot["name"] == name
        look(observer)
        assert "gone" in seen.error
        assert seen.snapshot["name"] == name, "what it said last stays"
        assert "first" in shown(seen) or name != "first"
        look(observer)
        assert "no such file" in seen.error


def test_a_stale_file_says_that_nobody_listens(observe: Observe, stats_path: str) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as gone:
        gone.bind(stats_path)
    observer = observe(stats_path)
    look(observer)
    assert "nobody listens" in observer.programs[0].error
    os.unlink(stats_path)


def test_memif_s_own_socket_is_told_apart(observe: Observe, runtime: Runtime, socket_path: str) -> None:
    runtime.create_interface(socket=socket_path, role="master")
    observer = observe(socket_path)
    look(observer, runtime)
    assert "memifrt doctor" in observer.programs[0].error


def test_a_program_that_does_not_answer_is_named_and_waited_for_by_nobody(
    observe: Observe, stats_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memifrt.stats.client._PATIENCE", 0.0)
    with Runtime("slow", stats_socket=stats_path) as runtime:
        observer = observe(stats_path)
        observer.ask()
        observer.wait(0)
        observer.ask()
        assert "no answer for" in observer.programs[0].error
        look(observer, runtime)
        assert observer.programs[0].error == ""


@pytest.mark.parametrize("said", [b"hello\n", b"{}\n", b"x" * 5000])
def test_a_socket_of_something_else_is_told_apart(
    said: bytes, observe: Observe, stats_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memifrt.stats.client._LONGEST_LINE", 1000)
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as other:
        other.bind(stats_path)
        other.listen()
        observer = observe(stats_path)
        observer.ask()
        with contextlib.closing(other.accept()[0]) as client:
            client.sendall(said)
            observer.wait(DEADLINE)
    assert "not a stats socket of memifrt" in observer.programs[0].error
    os.unlink(stats_path)


def test_a_pattern_finds_programs_that_start_later(observe: Observe, tmp_path: Path) -> None:
    observer = observe(str(tmp_path / "*.stats"))
    assert observer.programs == []
    with (
        Runtime("a", stats_socket=tmp_path / "a.stats") as a,
        Runtime("b", stats_socket=tmp_path / "b.stats") as b,
    ):
        look(observer, a, b)
        assert [p.snapshot["name"] for p in observer.programs if p.snapshot] == ["a", "b"]


def test_a_program_of_a_pattern_is_dead_for_a_while_and_then_gone(
    observe: Observe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = 0.0
    now = time.monotonic
    monkeypatch.setattr("time.monotonic", lambda: now() + later)
    path = tmp_path / "a.stats"
    observer, named = observe(str(tmp_path / "*.stats")), observe(str(path))
    with Runtime("a", stats_socket=path) as runtime:
        for each in (observer, named):
            look(each, runtime)
    for each in (observer, named):
        look(each)
        look(each)
    (seen,) = observer.programs
    assert "no such file" in seen.error
    later = FORGET_AFTER - 1
    with Runtime("b", stats_socket=path) as runtime:
        look(observer, runtime)
        assert observer.programs == [seen]
        assert seen.error == ""
        path.unlink()  # the program goes on, and so does the connection
        later += 2 * FORGET_AFTER
        look(observer, runtime)
        assert observer.programs == [seen]
        assert seen.error == ""
    look(observer)
    assert observer.programs == [seen]
    later += FORGET_AFTER + 1
    look(observer)
    assert observer.programs == []
    look(named)
    assert [program.path for program in named.programs] == [str(path)], "what the user named stays"


# --- how it looks ---------------------------------------------------------------------------------------------------


def busy() -> Program:
    """Two interfaces, one with two queues each way and a peer with a wide and hostile name."""
    hostile = {"app_name": "[red]evil\x1b[2J[/red]", "name": "路由器" * 9, "pid": 1, "uid": 0, "gid": 0}
    steps = [
        made(
            interface(0, queue(packets=1000 * n * n), queue(direction="tx", used=1000, ring_full=n)),
            interface(7, queue(0), queue(1), queue(0, "tx"), queue(1, "tx"), peer=hostile, violations=2),
            interface(8, queue(used=None), state="disconnected", peer=None, connected_since=None, error="went home"),
            at=100.0 + n,
        )
        for n in range(50)
    ]
    return program(*steps)


def painted(width: int, height: int, *programs: Program) -> list[str]:
    """The screen as a terminal of that size gets it, without its colours."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    console.print(Screen(picture(programs, 1.0, width, height, UNICODE)))
    return cast(io.StringIO, console.file).getvalue().split("\n")


@pytest.mark.parametrize("width", [20, 40, 80, 110, 200])
def test_the_screen_fits_the_terminal(width: int) -> None:
    for height in (3, 10, 24, 60):
        rows = painted(width, height, busy(), program(path="/run/never.stats"))
        assert len(rows) <= height
        assert {cell_len(row) for row in rows} <= {width}


def test_a_line_that_is_too_long_is_cut_and_not_wrapped() -> None:
    rows = painted(40, 24, busy())
    expected = [plain(line) for line in lines([busy()], 40, 23, UNICODE)]
    assert [row[:10].rstrip() for row in rows[1 : len(expected) + 1]] == [text[:10].rstrip() for text in expected]
    assert any(row.rstrip().endswith("…") for row in rows)


def test_80_columns_have_everything_that_matters() -> None:
    text = shown(busy())
    words = ["responder", "pid 42", "memif 0 slave", "connected", "VPP 24.02", "tx 0", "98%", "50%", "went home"]
    assert [word for word in words if word not in text] == []
    rows = [line for line in text.splitlines() if line.startswith(("  rx 0", "  queue"))]
    assert len({len(line) for line in rows[:2]}) == 1, "titles stand over their columns"
    assert "97.0 k" in rows[1]
    assert rows[1].endswith("▇▇████")


def test_200_columns_have_totals_too() -> None:
    text = shown(busy(), width=200)
    words = ["packets", "bytes", "slots", "bad", "rx mode", "interrupt", "1024", "2.40 M"]
    assert [word for word in words if word not in text] == []


def test_what_a_peer_calls_itself_is_text_and_nothing_else() -> None:
    rows = "\n".join(painted(80, 24, busy()))
    assert "[red]evil\\x1b[2J[/red]" in rows
    assert "\x1b[2J" not in rows


def test_little_room_folds_headers_first_then_sums_up_queues_and_keeps_the_rates() -> None:
    whole = shown(busy())
    size = len(whole.splitlines())
    folded = shown(busy(), height=size - 1)
    assert "rx 1" in folded
    assert "memif 0 slave" in folded
    assert len(folded.splitlines()) < size
    summed = shown(busy(), height=len(folded.splitlines()) - 1)
    assert "rx x2" in summed
    assert "rx 1 " not in summed
    single = shown(busy(), height=len(summed.splitlines()) - 1)
    (row,) = [line for line in single.splitlines() if "memif 0 slave" in line]
    assert "97.0 k p/s" in row
    assert "memif 8 slave" in single


def many(count: int = 40) -> Program:
    """A program with interfaces of rising rates."""

    def at(seconds: int) -> Snapshot:
        made_ones = [
            interface(n, queue(packets=n * 10 * seconds, bytes=n * 999 * seconds), name=f"if{count - n:02}")
            for n in range(count)
        ]
        return made(*made_ones, at=100.0 + seconds)

    return program(at(0), at(1))


def order_of(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"memif (\d+) slave", text)]


def test_what_does_not_fit_is_told_and_scrolled_to() -> None:
    view = View()
    first = "\n".join(plain(line) for line in lines([many()], 100, 10, UNICODE, view))
    assert first.splitlines()[-1] == "… lines 1 to 9 of 41; the arrow keys scroll, / filters"
    assert order_of(first) == list(range(8))
    assert not view.press(b"\x1b[B\x1b[B\x1b[A", 8)
    second = "\n".join(plain(line) for line in lines([many()], 100, 10, UNICODE, view))
    assert order_of(second) == list(range(9))
    view.press(b"\x1b[6~", 8)
    third = shown_with(view, many())
    assert order_of(third) == list(range(8, 17))
    view.press(b"G", 8)
    last = shown_with(view, many())
    assert order_of(last)[-1] == 39
    assert "lines 33 to 41 of 41" in last
    view.press(b"\x1b[A", 8)
    assert "lines 32 to 40 of 41" in shown_with(view, many())
    view.press(b"\x1b[H", 8)
    assert shown_with(view, many()) == first


def shown_with(view: View, *programs: Program, height: int | None = 10) -> str:
    return "\n".join(plain(line) for line in lines(programs, 100, height, UNICODE, view))


def test_interfaces_are_sorted_by_rate_or_name() -> None:
    for sort, first in (("created", 0), ("packets", 39), ("bits", 39), ("name", 39), ("ring", 0), ("full", 0)):
        assert order_of(shown_with(View(sort), many(), height=None))[0] == first, sort
    view = View()
    view.press(b"s", 8)
    assert view.sort == "packets"
    view.press(b"s" * (len(SORTS) - 1), 8)
    assert view.sort == "created"


def test_program_with_the_busiest_interface_comes_first_when_sorted() -> None:
    text = shown_with(View("packets"), program(path="/run/never.stats"), many(3), many(5), height=None)
    assert order_of(text) == [4, 3, 2, 1, 0, 2, 1, 0]
    assert text.splitlines()[-2] == "/run/never.stats"


def test_filter_shows_what_matches_and_says_what_it_hides() -> None:
    view = View()
    assert not view.press(b"/IF0q\x7f3\r", 8)  # in any case; q does not end it while a filter is typed
    assert (view.filter, view.typing) == ("IF03", False)
    text = shown_with(view, many(), program(path="/run/other.stats"), height=30)
    assert order_of(text) == [37]
    assert text.splitlines()[-1] == (
        "filter: IF03  (39 of 40 interfaces and 1 of 2 programs are hidden; Esc shows all)"
    )
    view.press(b"\x1b", 8)
    assert len(order_of(shown_with(view, many(), height=None))) == 40


def test_filter_that_is_typed_is_shown_and_may_be_cancelled() -> None:
    view = View()
    view.press("/ä".encode(), 8)
    assert "filter: ä_" in shown_with(view, many(), height=30)
    assert not order_of(shown_with(view, many(), height=30))
    view.press(b"\x1b", 8)
    assert (view.filter, view.typing) == ("", False)
    assert view.press(b"q", 8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"role": "master"}, "waiting for a peer"),
        ({}, "no peer yet: nobody listens"),
        ({"connects": 2}, "disconnected: nobody listens"),
    ],
)
def test_interface_that_never_had_a_peer_is_not_disconnected(changes: dict[str, Any], words: str) -> None:
    never = {"state": "disconnected", "connects": 0, "connected_since": None, "peer": None, "error": "nobody listens"}
    text = shown(program(made(interface(0, **{**never, **changes}))))
    assert words in text
    assert "disconnected" in words or "disconnected" not in text


def test_peer_without_a_name_is_told_in_words() -> None:
    text = shown(program(made(interface(peer={"app_name": "", "name": "if", "pid": 1, "uid": 0, "gid": 0}))), width=200)
    assert "peer without a name (if, pid 1)" in text


def test_peer_in_another_container_has_no_pid() -> None:
    peer = {"app_name": "vpp", "name": "if", "pid": 0, "uid": 0, "gid": 0}
    assert "peer vpp (if, in another process namespace)" in shown(program(made(interface(peer=peer))), width=200)


def test_dead_program_is_dead_for_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = busy()
    seen._hang_up("the program is gone")
    assert seen.lost_since is not None
    later = seen.lost_since + 75.0
    seen._hang_up("there is no such file")  # asked again: it is not dead for a shorter time
    monkeypatch.setattr("memifrt.cli.top.table.time.monotonic", lambda: later)
    assert "dead for 1 m 15 s: there is no such file" in shown(seen)
    monkeypatch.undo()
    seen._take(parse_snapshot(json.dumps(made()).encode()))
    assert "dead" not in shown(seen)


def test_program_that_never_answered_is_not_dead() -> None:
    never = program(path="/run/never.stats")
    never._hang_up("there is no such file")
    assert "dead" not in shown(never)


def test_queues_summed_up_have_the_sum_of_their_past() -> None:
    seen = program(
        *(
            made(interface(0, queue(0, packets=10 * n), queue(1, packets=5 * n, used=1024)), at=100.0 + n)
            for n in range(4)
        )
    )
    assert seen.snapshot is not None
    row = direction_row(seen, seen.snapshot["interfaces"][0], "rx")
    assert row is not None
    assert list(row.history) == [None, 15, 15, 15]
    assert row.rates is not None
    assert row.rates.packets == 15
    assert (row.packets, row.share) == (45, 1.0)
    assert direction_row(seen, seen.snapshot["interfaces"][0], "tx") is None


def test_a_terminal_without_unicode_gets_ascii() -> None:
    text = "\n".join(plain(line) for line in lines([program(made(interface(name="x")))], 80, None, ASCII))
    assert text.isascii()


def test_a_program_that_is_gone_shows_what_it_said_last_and_no_rates() -> None:
    seen = busy()
    seen._hang_up("the program is gone")
    text = shown(seen)
    assert "the program is gone" in text
    assert "memif 0 slave" in text
    assert "50%" not in text
    assert {style for line in lines([seen], 80, None, UNICODE)[3:] for _, style in line} == {"dim"}


# --- the command ----------------------------------------------------------------------------------------------------


def test_once_says_that_nothing_matches_a_pattern(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pattern = str(tmp_path / "*.stats")
    assert main(["top", "--once", "-i", "0.01", pattern]) == 1
    assert capsys.readouterr().err == f"memifrt top: nothing matches {pattern}: start a program with --stats PATH\n"


def test_once_prints_a_table_of_every_program(
    stats_path: str, socket_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Runtime("here", stats_socket=stats_path) as runtime:
        connect(runtime, runtime, socket_name)
        with running_in_thread(runtime):
            assert main(["top", "--once", "-i", "0.01", stats_path]) == 0
            out = capsys.readouterr().out
            assert re.search(r"^here . pid \d+", out, re.M)
            assert out.count("connected") == 2
            assert out.count("  rx 0 ") == out.count("  tx 0 ") == 2
            assert main(["top", "--once", "-i", "0.01", stats_path, "/nowhere/s"]) == 1
            assert "there is no such file" in capsys.readouterr().out


def test_json_has_the_snapshot_and_the_rates(
    stats_path: str, socket_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Runtime("here", stats_socket=stats_path) as runtime:
        connect(runtime, runtime, socket_name)
        with running_in_thread(runtime):
            assert main(["top", "--once", "--json", "-i", "0.01", stats_path, "/nowhere/s"]) == 1
    here, nowhere = map(json.loads, capsys.readouterr().out.splitlines())
    assert (here["path"], here["error"]) == (stats_path, "")
    queues = [queue for interface in here["stats"]["interfaces"] for queue in interface["queues"]]
    assert [queue["rates"] for queue in queues] == [{"packets": 0, "bits": 0, "interrupts": 0, "ring_full": 0}] * 4
    assert nowhere["stats"] is None
    assert "no such file" in nowhere["error"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_json_goes_on_until_it_is_told_to_end(how: signal.Signals, stats_path: str) -> None:
    with running("top", "--json", "-i", "0.05", stats_path) as watcher:
        read_until(watcher, "no such file")
        with Runtime("late", stats_socket=stats_path) as runtime, running_in_thread(runtime):
            read_until(watcher, '"name": "late"')
        read_until(watcher, "gone|no such file")
        status, _, err = end(watcher, how)
    assert (status, err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["PATH"]),
        ([""], ["PATH", "''"]),
        (["-i", "0", "x"], ["-i", "'0'"]),
        (["x"], ["not a terminal", "--once", "--json"]),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert [word for word in words if word not in error] == []


def test_without_rich_one_line_says_what_to_install_and_the_rest_works(stats_path: str) -> None:
    code = "import sys; sys.modules['rich'] = None; from memifrt.cli import main; sys.exit(main(sys.argv[1:]))"

    def without_rich(*arguments: str) -> subprocess.CompletedProcess[str]:
        everything = [sys.executable, "-c", code, "top", *arguments, stats_path]
        return subprocess.run(everything, capture_output=True, text=True, timeout=DEADLINE, check=False)

    live = without_rich()
    assert live.returncode == 2
    assert live.stderr.count("\n") == 1
    assert "pip install 'memifrt[cli]'" in live.stderr
    once = without_rich("--once", "-i", "0.01")
    assert (once.returncode, once.stderr) == (1, "")
    assert stats_path in once.stdout


def test_output_that_cannot_be_unicode_is_ascii(stats_path: str) -> None:
    done = run("top", "--once", "-i", "0.01", stats_path, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 1
    assert done.stdout.isascii()


# --- the live screen ------------------------------------------------------------------------------------------------


class Terminal:
    """``memifrt top`` in a terminal of its own."""

    def __init__(self, *arguments: str, columns: int = 100, rows: int = 30) -> None:
        self.master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.output = b""
        self.program = subprocess.Popen(
            command("top", "-i", "0.05", *arguments),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "xterm-256color", "PYTHONUTF8": "1", "COLUMNS": "", "LINES": ""},
            start_new_session=True,
            preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 (so that Ctrl+C sends it a signal)
        )

    def read_until(self, word: str) -> None:
        """Wait for a word in what is written from now on."""
        self.output = b""
        deadline = time.monotonic() + DEADLINE
        while word.encode() not in self.output:
            assert time.monotonic() < deadline, self.output.decode(errors="replace")
            if select.select([self.master], [], [], 1)[0]:
                self.output += os.read(self.master, 65536)

    def end(self) -> int:
        """Wait for the end; what it still writes is read, or it could not."""
        deadline = time.monotonic() + DEADLINE
        while self.program.poll() is None:
            assert time.monotonic() < deadline
            if select.select([self.master], [], [], 0.05)[0]:
                self.output += os.read(self.master, 65536)
        while select.select([self.master], [], [], 0)[0]:
            self.output += os.read(self.master, 65536)
        return self.program.returncode

    def close(self) -> None:
        if self.program.poll() is None:
            self.program.kill()
            self.program.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    with contextlib.ExitStack() as stack:

        def make(*arguments: str, **size: int) -> Terminal:
            made = Terminal(*arguments, **size)
            stack.callback(made.close)
            return made

        yield make


@pytest.mark.parametrize("how", ["q", "Ctrl+C", "SIGTERM"])
def test_the_live_screen_follows_a_program_and_leaves_the_terminal_as_it_was(
    how: str, terminal: Callable[..., Terminal], stats_path: str, socket_name: str
) -> None:
    watcher = terminal(stats_path)
    watcher.read_until("there is no such file")
    with Runtime("comes late", stats_socket=stats_path) as runtime:
        connect(runtime, runtime, socket_name)
        with running_in_thread(runtime):
            watcher.read_until("comes late")
            watcher.read_until("memif 0 slave")
    watcher.read_until("gone")
    match how:
        case "q":
            os.write(watcher.master, b"q")
        case "Ctrl+C":
            os.write(watcher.master, b"\x03")
        case "SIGTERM":
            watcher.program.terminate()
    assert watcher.end() == 0
    assert b"Traceback" not in watcher.output
    assert b"\x1b[?1049l" in watcher.output, "back from the alternate screen"
    assert b"\x1b[?25h" in watcher.output, "the cursor is shown"
    assert termios.tcgetattr(watcher.slave) == watcher.before


def test_a_responder_is_watched_while_it_answers(
    terminal: Callable[..., Terminal], stats_path: str, socket_name: str
) -> None:
    arguments = ["--role", "master", "--socket", socket_name, "--stats", stats_path]
    with running("responder", *arguments) as responder:
        read_until(responder, "^answering for ")
        with running("ping", "--socket", socket_name, "-i", "0.001", "192.168.1.2") as pinger:
            read_until(pinger, "icmp_seq=1 ")
            watcher = terminal(stats_path)
            watcher.read_until("memifrt responder")
            watcher.read_until("memifrt ping")
            os.write(watcher.master, b"q")
            assert watcher.end() == 0
            end(pinger)
        end(responder)
    assert finish(responder)[0] == 0
