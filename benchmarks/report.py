"""The page of figures: tables, plots, and the machine that they come from."""

from __future__ import annotations

import datetime
import os
import platform
import re
import textwrap
from pathlib import Path

import memifrt
from benchmarks.cases import DEVICE_CPU, FACING_CPU, Case, Group
from memifrt import drawing
from memifrt.drawing import OTHERS, OURS

_LINES = ("-", "--", ":")
#: The most characters in a line of a title beside names of cases.
_TITLE = 70


def page(groups: list[Group], rounds: int, seconds: float) -> str:
    """Return docs/benchmarks.md."""
    lines = ["# Benchmarks", "", *machine(rounds, seconds), ""]
    for group in groups:
        lines += [f"## {group.title}", ""]
        if group.note:
            lines += [group.note, ""]
        if group.plot:
            lines += [f"![{group.title}]({group.plot}.svg)", ""]
        lines += [*(matrix(group) if group.x else table(group)), ""]
    if any(is_bars(group) for group in groups):
        lines += ["## All in one picture", "", "![The figures in Mpps](benchmarks.svg)", ""]
    return "\n".join(lines).rstrip() + "\n"


def table(group: Group) -> list[str]:
    """Return a row for each case."""
    lines = [f"| case | median, {group.unit} | lowest | highest |", "|---|---:|---:|---:|"]
    for case in group.cases:
        if case.figures:
            row = f"{case.median:.3f} | {min(case.figures):.3f} | {max(case.figures):.3f}"
        else:
            row = f"{case.why} | | "
        lines.append(f"| {case.name} | {row} |")
    return lines


def matrix(group: Group) -> list[str]:
    """Return a row for each ``x``, and a column of medians for each series."""
    series = list(dict.fromkeys(case.series for case in group.cases))
    medians = {(case.x, case.series): f"{case.median:.2f}" for case in group.cases if case.figures}
    lines = [
        f"| {group.x} | " + " | ".join(f"{name}, {group.unit}" for name in series) + " |",
        "|---|" + "---:|" * len(series),
    ]
    for x in dict.fromkeys(case.x for case in group.cases):
        lines.append(f"| {x} | " + " | ".join(medians.get((x, name), "") for name in series) + " |")
    return lines


def machine(rounds: int, seconds: float) -> list[str]:
    """Return two lines: the machine, and how it was measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return [
        f"{datetime.date.today().isoformat()}: {model}, {os.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}, memifrt {memifrt.__version__}.",
        f"Medians of {rounds} rounds of {seconds:g} s, cases alternating, the device on core {DEVICE_CPU} and what "
        f"faces it on core {FACING_CPU}; figures drift with the machine, so compare them within one run.",
    ]


def plots(groups: list[Group], folder: Path) -> None:
    """Write the SVG files that the page shows."""
    with drawing.style():
        for group in groups:
            if group.plot:
                curves(group, folder / f"{group.plot}.svg")
        if together := [group for group in groups if is_bars(group)]:
            bars(together, folder / "benchmarks.svg")


def read(text: str) -> list[Group]:
    """Return the groups of a page, with what the plots need: medians, without the functions that take them."""
    groups = []
    for section in text.split("\n## ")[1:]:
        title, *lines = section.splitlines()
        picture = next((found[1] for line in lines if (found := re.match(r"!\[.*\]\((.*)\.svg\)$", line))), "")
        head, _, *rows = [_cells(line) for line in lines if line.startswith("|")] or [[""], [""]]
        if head[0] == "case":
            unit = head[1].removeprefix("median, ")
            cases = [Case(row[0], None, figures=[float(row[1])]) for row in rows if row[2]]
            groups.append(Group(title, unit, cases))
        elif rows:
            names, units = zip(*(name.rsplit(", ", 1) for name in head[1:]), strict=True)
            points = [(x, name, value) for x, *row in rows for name, value in zip(names, row, strict=True) if value]
            cases = [Case(f"{x}: {name}", None, series=name, x=x, figures=[float(value)]) for x, name, value in points]
            groups.append(Group(title, units[0], cases, x=head[0], plot=picture))
    return groups


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def is_bars(group: Group) -> bool:
    """Return whether the group is part of the picture of all groups in Mpps."""
    return group.unit == "Mpps" and not group.plot


def curves(group: Group, path: Path) -> None:
    """Draw a line for each series. ``x`` doubles from one mark to the next."""
    figure = drawing.figure(8, 4.5)
    axis = figure.subplots()
    drawn = dict.fromkeys((OURS, OTHERS), 0)
    for name in dict.fromkeys(case.series for case in group.cases):
        points = [(int(case.x), case.median) for case in group.cases if case.series == name and case.figures]
        color = OTHERS if name.startswith("testpmd") else OURS
        style = _LINES[drawn[color] % len(_LINES)]
        drawn[color] += 1
        axis.plot(*zip(*points, strict=True), style, color=color, marker="o", markersize=4, label=name)
    marks = sorted({int(case.x) for case in group.cases})
    axis.set_xscale("log", base=2)
    axis.set_xticks(marks, [str(mark) for mark in marks])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    drawing.label(axis, group.title, group.x, group.unit)
    axis.legend()
    path.write_bytes(drawing.picture(figure, "svg"))


def bars(groups: list[Group], path: Path) -> None:
    """Draw a bar for each case."""
    rows = [sum(bool(case.figures) for case in group.cases) + 2 for group in groups]
    figure = drawing.figure(9, 0.32 * sum(rows))
    axes = figure.subplots(len(groups), 1, gridspec_kw={"height_ratios": rows}, squeeze=False)[:, 0]
    for axis, group in zip(axes, groups, strict=True):
        shown = [case for case in reversed(group.cases) if case.figures]
        names = [case.name for case in shown]
        medians = [case.median for case in shown]
        colors = [OTHERS if "testpmd" in name else OURS for name in names]
        drawn = axis.barh(names, medians, color=colors)
        axis.bar_label(drawn, labels=[f"{value:.2f}" for value in medians], padding=3, fontsize=8)
        drawing.label(axis, textwrap.fill(f"{group.title} ({group.unit})", _TITLE))
        axis.grid(False)
        axis.margins(x=0.12)
    path.write_bytes(drawing.picture(figure, "svg"))
