"""What ``make bench`` makes of its figures: tables, plots and what must be reached. Nothing is measured here."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import alternatives, calls, checks, groups, promises, report
from benchmarks.cases import Case, Group, Plan

RINGS = Path(checks.__file__).parent.parent / "memifrt" / "ring"


def taken(name: str, *figures: float, series: str = "", x: int | str = 0) -> Case:
    return Case(name, lambda: 0.0, series=series, x=x, figures=list(figures))


def curve() -> Group:
    cases = [
        taken(f"{series} {x}", x * factor, series=series, x=x)
        for series, factor in (("memifrt", 2.0), ("testpmd", 1.0))
        for x in (1, 2)
    ]
    return Group("A curve", "Mpps", cases, note="A note.", x="burst", plot="curve")


def test_table_has_the_median_and_the_ends_of_the_figures() -> None:
    group = Group("", "us", [taken("a", 3, 1, 2), Case("b", None, why="not installed here")])
    assert report.table(group)[2:] == ["| a | 2.000 | 1.000 | 3.000 |", "| b | not installed here | |  |"]


def test_matrix_has_a_row_for_each_x_and_a_column_for_each_series() -> None:
    group = curve()
    group.cases.pop()
    assert report.matrix(group) == [
        "| burst | memifrt, Mpps | testpmd, Mpps |",
        "|---|---:|---:|",
        "| 1 | 2.00 | 1.00 |",
        "| 2 | 4.00 |  |",
    ]


def test_page_says_how_it_was_measured_and_has_no_targets() -> None:
    page = report.page([curve(), Group("Bars", "Mpps", [taken(groups.NATIVE_SLAVE, 1)])], 3, 0.5)
    assert page.startswith("# Benchmarks\n")
    assert "Medians of 3 rounds of 0.5 s" in page
    assert "## A curve\n\nA note.\n\n![A curve](curve.svg)\n\n| burst |" in page
    assert page.endswith("![The figures in Mpps](benchmarks.svg)\n")
    assert "must be" not in page


def test_plots_can_be_drawn_from_the_page_again(tmp_path: Path) -> None:
    bars = Group("Bars", "Mpps", [taken(groups.NATIVE_SLAVE, 1, 2, 4), Case("b", None, why="not here")])
    sizes = [taken("64: memifrt", 3, series="memifrt", x="64")]
    written = [curve(), bars, Group("Sizes", "Mpps", sizes, x="size"), Group("Trips", "us", [taken("a", 1)])]
    again = report.read(report.page(written, 3, 0.5))
    for made, folder in ((written, tmp_path / "made"), (again, tmp_path / "again")):
        folder.mkdir()
        report.plots(made, folder)
    for name in ("curve.svg", "benchmarks.svg"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "made" / name).read_bytes()


@pytest.mark.parametrize(("ours", "kept"), [(2.0, True), (1.9, False)])
def test_promise_is_a_ratio_of_medians(ours: float, kept: bool) -> None:
    cases = [taken(groups.NATIVE_SLAVE, 0, ours, 9), taken(groups.PMD_CLIENT, 1.0)]
    lines, all_kept = promises.promises([Group("", "Mpps", cases)])
    assert all_kept is kept
    assert lines[-1].endswith("reached |" if kept else "missed |")
    assert len(lines) == 3  # what was not measured is left out


def test_promise_against_the_best_of_the_others() -> None:
    name, other = list(alternatives.TRANSPORTS)[:2]
    cases = [taken(groups.BURST, 100), taken(name, 1), taken(other, 2), Case("none", None)]
    lines, _ = promises.promises([Group("", "Mpps", cases)])
    assert "| 50.00 |" in lines[-1]


def test_promises_name_cases_that_exist() -> None:
    plan = Plan(baseline=Path("elsewhere"), free_threaded="python")
    made = [group for name in groups.GROUPS if name != "bridge" for group in groups.GROUPS[name](plan)]
    names = [case.name for group in made for case in group.cases]
    assert len(names) == len(set(names))
    pmd = {groups.PMD_CLIENT, groups.PMD_SERVER, groups.PMD_RX, groups.PMD_ICMP}
    known = {*names, *pmd, promises._BEST, "", groups.SIZED.format("1500 bytes", groups.PMD_SERVER)}
    known |= {groups.INSIDE.format("forward_from", 2), groups.FREE_THREADED.format(2)}  # with one core there are none
    for promise in promises.PROMISES:
        assert {promise.case, promise.against} <= known, promise


@pytest.mark.parametrize("name", calls.CALLS)
def test_every_call_can_be_timed(name: str) -> None:
    assert calls.nanoseconds(name, 0.001, 0) > 0


def test_checks_can_be_taken_out_of_the_compiled_rings() -> None:
    found = bounds = 0
    for path in RINGS.glob("_native_*.pxi"):
        text, checked, holds = checks.without_checks(path.read_text())
        found += checked
        bounds += holds
        assert text.count("if False and") == checked
    assert found >= checks._LEAST_CHECKS
    assert bounds == 1
