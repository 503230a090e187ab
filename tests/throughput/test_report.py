"""Frame sizes, methods, and the report as a table, as JSON and as a picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from memifrt.errors import ConfigError
from memifrt.throughput import (
    DEFAULT_SIZES,
    IMIX,
    METHODS,
    FrameSize,
    Latency,
    LoadLatency,
    Method,
    Report,
    SizeReport,
    TrialResult,
    parse_sizes,
    throughput,
)
from memifrt.throughput.plot import picture_path, plot
from memifrt.throughput.report import pps
from memifrt.throughput.trial import PERCENTILES
from tests.throughput.devices import by_length, hard_limit, lossy

QUICK = METHODS["quick"]


@pytest.fixture(scope="module")
def report() -> Report:
    """All sizes, through a device of 10 Gbit/s."""
    return throughput(by_length(1e10), generator=hard_limit(12.5e6), method=QUICK)


# --- sizes and methods ------------------------------------------------------------------------------------------------


def test_sizes_are_parsed_in_their_order() -> None:
    assert parse_sizes("64,512,1518,9000,imix") == DEFAULT_SIZES
    assert parse_sizes("IMIX, 128") == (IMIX, FrameSize.of(128))


def test_imix_is_the_mix_of_csit() -> None:
    assert IMIX.mean == pytest.approx(353.83, abs=0.01)
    assert IMIX.longest == 1518


@pytest.mark.parametrize(
    "text", ["", "63", "16385", "64,", "64,64", "imix,imix", "abc", "-64", "6e1", "1 518", "9" * 99]
)
def test_a_wrong_size_is_an_error_that_names_it(text: str) -> None:
    with pytest.raises(ConfigError, match="frame size"):
        parse_sizes(text)


@pytest.mark.parametrize("nanoseconds", [16, 99_999_499, 123_456_789, 68_719_476_720])
def test_any_latency_and_loss_fits_into_80_columns(nanoseconds: int) -> None:
    percentiles = tuple((percentile, nanoseconds) for percentile in PERCENTILES)
    latency = Latency(10**8, nanoseconds, nanoseconds, nanoseconds, percentiles)
    size = FrameSize.of(16384)
    trial = TrialResult(
        size=size, rate=1e5, duration=1e3, offered=10**8, sent=10**8, received=10**8 - 1, latency=latency
    )
    found = SizeReport(size, latencies=[LoadLatency(0.9, 123_456.0, trial)])
    text = Report(QUICK, [found]).table()
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[-1].endswith("<0.01 %")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trial": 0}, "a trial of 0 s"),
        ({"trial": 30.0}, "shorter than one trial"),
        ({"initial_trial": 2.0}, "first trials of 2 s"),
        ({"duration_sum": 0.5}, "shorter than one trial"),
        ({"width": 0}, "a width of 0 %"),
        ({"pdr": 0.9}, "a PDR loss ratio of 90 %"),
        ({"exceed_ratio": 1}, "an exceed ratio of 1"),
        ({"min_rate": 0}, "a lowest rate of 0"),
        ({"max_rate": 1000.0}, "a highest rate of 1000"),
        ({"time_limit": 0}, "a time limit of 0 s"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_it(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Method(**changes)


# --- the report -------------------------------------------------------------------------------------------------------


def test_the_table_has_a_line_for_each_size_and_each_load_and_fits_into_80_columns(report: Report) -> None:
    text = report.table()
    rates, latencies, notes = text.split("\n\n")
    assert [line for line in notes.splitlines() if not line.startswith("  ")] == [
        line for line in notes.splitlines() if line.startswith("64 bytes: ")
    ]
    assert len(rates.splitlines()) == 1 + 5
    assert len(latencies.splitlines()) == 1 + 15
    assert max(map(len, text.splitlines())) <= 80
    row = rates.splitlines()[2].split()
    assert (row[:2], row[3]) == (["512", "bytes"], "Mpps")
    assert float(row[2]) == pytest.approx(2.44, rel=0.01)
    assert float(row[4]) == pytest.approx(10, rel=0.01)
    assert latencies.splitlines()[1].split() == [
        *("64", "bytes", "10", "%", "1.25", "Mpps", "5", "5.05", "5.09", "5.1", "5.1", "5.1", "0")
    ]


def test_a_table_without_results_has_dashes() -> None:
    text = throughput(lossy(1.0), generator=hard_limit(1e6), sizes=(IMIX,), method=QUICK).table()
    assert text.splitlines()[1].split()[:5] == ["IMIX", "-", "-", "-", "-"]
    assert "IMIX: there is no PDR: the device loses frames even at 1 kpps" in text


def test_json_has_every_figure_and_every_trial(report: Report) -> None:
    values = json.loads(report.json())
    assert values["complete"] is True
    assert values["method"]["width"] == 0.01
    size = values["sizes"][1]
    assert size["size"] == "512"
    assert size["mix"] == [{"bytes": 512, "frames": 1}]
    assert size["ndr"]["throughput_pps"] == pytest.approx(2.44e6, rel=0.01)
    assert size["ndr"]["throughput_bps"] == pytest.approx(1e10, rel=0.01)
    assert size["ndr"]["lower_pps"] < size["ndr"]["upper_pps"]
    assert size["generator_pps"] == 12.5e6
    assert [found["load"] for found in size["latency"]] == [0.1, 0.5, 0.9]
    assert size["latency"][0]["latency_ns"]["percentiles"]["99.9"] == 5100
    trial = size["trials"][0]
    assert trial["lost"] == trial["offered"] - trial["received"] > 0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """One size. Matplotlib keeps the files of fonts open: this draws once, before a test counts its fds."""
    made = throughput(by_length(1e10), generator=hard_limit(12.5e6), sizes=(IMIX,), method=QUICK)
    plot(made, str(tmp_path_factory.mktemp("fonts") / "x.png"))
    return made


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_picture_is_drawn(small: Report, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    plot(small, str(path))
    assert path.stat().st_size > 10_000


@pytest.mark.usefixtures("small")
def test_a_picture_without_results_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    plot(Report(method=QUICK), str(path))
    assert path.stat().st_size > 1000


def test_a_picture_of_another_format_is_an_error() -> None:
    assert picture_path("a/B.PNG") == "a/B.PNG"
    with pytest.raises(ConfigError, match=r"'x\.txt' is not the name of a picture; it must end in \.png, \.svg, \.pdf"):
        picture_path("x.txt")


def test_without_matplotlib_a_picture_is_an_error_that_says_how_to_install_it(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'memifrt\[plot\]'"):
        plot(report, str(tmp_path / "x.png"))


def test_a_latency_has_the_figures_of_its_histogram_and_the_histogram() -> None:
    from hdrh.histogram import HdrHistogram

    histogram = HdrHistogram(1, 10**9, 3)
    assert Latency.of(histogram) is None
    for value in range(1, 1001):
        histogram.record_value(value)
    latency = Latency.of(histogram)
    assert latency is not None
    assert (latency.count, latency.minimum, latency.maximum) == (1000, 1, 1000)
    assert latency.at(50) == 500
    assert latency.at(99.9) == 999
    again = HdrHistogram.decode(latency.hdrh)
    assert again.get_value_at_percentile(90) == 900


@pytest.mark.parametrize(
    ("rate", "text"),
    [(1.0, "1 pps"), (999, "999 pps"), (1000, "1 kpps"), (123_456, "123.5 kpps"), (14_880_952, "14.88 Mpps")],
)
def test_rates_have_a_unit(rate: float, text: str) -> None:
    assert pps(rate) == text
