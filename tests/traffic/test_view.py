"""What is printed and drawn: tables that fit, JSON, CSV, plots."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len

from memifrt import ConfigError, MemifOSError
from memifrt.traffic import Report, Sample, StreamReport
from memifrt.traffic.latency import LatencyRecorder
from memifrt.traffic.plot import check_plot, plot
from memifrt.traffic.stream import back_name
from memifrt.traffic.view import View, microseconds, page, screen, si, sparkline, summary, table


@pytest.fixture(autouse=True, scope="module")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """matplotlib keeps its fonts open: open them before a test counts fds."""
    plot(report(1), str(tmp_path_factory.mktemp("fonts") / "x.png"))


def report(streams: int = 2, *, checked: bool = True, seconds: float = 10.0, scale: int = 1) -> Report:
    recorder = LatencyRecorder()
    recorder.record(np.arange(1000, 500_000, 100, dtype=np.uint64))
    made = {}
    for index in range(streams):
        sent = scale * (100_000_000 + index)
        figures = (sent - 100, 60 * sent, 10, 20, 30, recorder.latency()) if checked else ()
        name = f"stream number {index}"
        made[name] = StreamReport(name, sent + 5, sent, 60 * sent, checked, *figures)
    samples = tuple(Sample(at / 10, at * at, 60 * at * at, at * at, 60 * at * at) for at in range(100))
    return Report(seconds, made, checked, 5, 300, 3, "complete", samples)


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("width", [20, 60, 80, 120, 200])
@pytest.mark.parametrize("streams", [1, 2, 30])
def test_a_table_fits_into_every_width(width: int, streams: int, checked: bool) -> None:
    lines = table(report(streams, checked=checked), width)
    assert all(len(line) <= width for line in lines)
    assert len(lines) == 1 + streams + (streams > 1)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_wide_names_keep_the_columns_below_each_other(width: int) -> None:
    made = report(1)
    (stream,) = made.streams.values()
    names = ("路由器" * 9, "e\u0301" * 4, "🚀")
    lines = table(replace(made, streams={name: replace(stream, name=name) for name in names}), width)
    assert len({cell_len(line) for line in lines}) == 1
    assert cell_len(lines[0]) <= width


def test_80_columns_have_room_for_what_counts_and_200_for_all() -> None:
    narrow, wide = table(report(), 80), table(report(), 200)
    assert narrow[0].split() == ["stream", "sent", "sent/s", "received", "lost", "dup", "reord", "corr", "p50", "max"]
    assert wide[0].split()[:9] == ["stream", "sent", "sent/s", "bit/s", "unsent", "received", "recv/s", "lost", "lost"]
    assert wide[0].split()[9:] == ["%", "dup", "reord", "corr", "min", "p50", "p90", "p99", "p99.9", "max"]
    assert "100000001" in wide[2]
    assert wide[-1].startswith("total ")
    assert "200000001" in wide[-1]


def test_both_directions_of_a_stream_with_a_long_name_are_told_apart() -> None:
    made = report()
    name = "web traffic of a long name"
    streams = {key: replace(made.streams["stream number 0"], name=key) for key in (name, back_name(name))}
    lines = table(replace(made, streams=streams), 80)
    assert [line[:12] for line in lines[1:3]] == ["web t~g name", "web t~(back)"]


def test_many_streams_are_cut_to_the_height() -> None:
    lines = screen(report(30), None, 60, (80, 24), True)
    assert len(lines) <= 24
    assert lines[-2] == "... and 11 more"
    assert lines[-1].startswith("total")
    assert all(len(line) <= 80 for line in lines)


def test_the_live_view_shows_rates_since_the_last_picture() -> None:
    now = table(report(1, seconds=11, scale=2), 200, report(1, seconds=10))
    assert "100M" in now[1].split()


def test_a_view_on_a_file_shows_nothing() -> None:
    file = io.StringIO()
    with View(file, 5) as view:
        view.update(report())
    assert not view.shown
    assert file.getvalue() == ""


def test_a_view_on_a_terminal_shows_the_table() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    file = Terminal()
    with View(file, 5) as view:
        view.update(report())
        view.update(report(seconds=11))
    assert view.shown
    assert "strea~mber 0" in file.getvalue()
    assert "11.0 s of 5 s" in file.getvalue()


def test_the_summary_is_one_line_with_all_digits() -> None:
    assert summary(report()) == (
        "200000001 packets sent in 10.000 s (20M packets/s, 9.6Gbit/s), 10 more were due; "
        "199999801 came back, 220 lost (0.00011 %), 20 duplicated, 40 reordered, 60 corrupted, 3 foreign"
    )
    assert summary(report(1, checked=False)).endswith("; 5 received")
    assert page(report(), 200).count("\n") == 5
    assert [line for line in page(report(), 80).splitlines() if len(line) > 80] == []
    assert " ".join(page(report(), 80).splitlines()[5:]) == summary(report())


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (1000, "1k"), (12345, "12.3k"), (999_960, "1M"), (3.2e9, "3.2G")]
)
def test_short_numbers(value: float, text: str) -> None:
    assert si(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.016, "0.016us"), (12.34, "12.3us"), (12345, "12.3ms"), (3e6, "3s")])
def test_latencies_have_their_unit(value: float, text: str) -> None:
    assert microseconds(value) == text


def test_a_sparkline_is_as_high_as_the_rate() -> None:
    assert sparkline(report(), 20, True)[-1] == "█"
    assert sparkline(report(), 20, False)[-1] == "#"
    assert len(sparkline(report(), 20, True)) == 20
    assert sparkline(report(), 0, True) == ""


def test_json_and_csv_have_every_figure() -> None:
    made = report()
    figures = json.loads(json.dumps(made.as_dict()))
    assert figures["ended"] == "complete"
    first = figures["streams"][0]
    assert (first["lost"], first["unsent"], first["duplicated"]) == (110, 5, 10)
    assert set(first["latency_us"]) == {"min", "mean", "p50", "p90", "p99", "p999", "max"}
    assert figures["total"]["sent"] == 200_000_001
    assert len(figures["samples"]) == 100
    rows = list(csv.DictReader(io.StringIO(made.csv())))
    assert [row["name"] for row in rows] == ["stream number 0", "stream number 1"]
    assert rows[0]["lost"] == "110"
    assert float(rows[0]["latency_p50_us"]) == first["latency_us"]["p50"]
    unchecked = list(csv.DictReader(io.StringIO(report(1, checked=False).csv())))
    assert unchecked[0]["lost"] == ""


@pytest.mark.parametrize(
    ("name", "start", "checked"), [("x.png", b"\x89PNG", True), ("x.svg", b"<?xml", True), ("x.svg", b"<?xml", False)]
)
def test_a_plot_is_drawn(tmp_path: Path, name: str, start: bytes, checked: bool) -> None:
    path = str(tmp_path / name)
    plot(report(checked=checked), path)
    assert Path(path).read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["_x", "$\\\\nonsense$", "100 $", "a_b^c"])
def test_a_plot_shows_any_name_of_a_stream(name: str, tmp_path: Path) -> None:
    made = report(1)
    (stream,) = made.streams.values()
    plot(replace(made, streams={name: replace(stream, name=name)}), str(tmp_path / "x.svg"))
    # Each text stands as a comment beside its shapes.
    assert f"<!--  {name} -->" in (tmp_path / "x.svg").read_text()


def test_a_run_without_samples_can_be_drawn(tmp_path: Path) -> None:
    empty = Report(0.0, {"a": StreamReport("a", checked=True)}, True, 0, 0)
    plot(empty, str(tmp_path / "x.svg"))
    assert table(empty, 80)
    assert summary(empty).startswith("0 packets sent")


def test_a_plot_that_cannot_be_written_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'x.gif' must end with .png or .svg"):
        check_plot("x.gif")
    with pytest.raises(MemifOSError, match=r"cannot write .*/none/x.png: No such file"):
        check_plot(str(tmp_path / "none" / "x.png"))
    check_plot(str(tmp_path / "x.png"))
    assert not list(tmp_path.iterdir())
