"""The page of figures: tables, plots, and the machine that they come from."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

import memifrt
from benchmarks.cases import DEVICE_CPU, FACING_CPU, Group
from memifrt.cli.plots import OTHERS, OURS, label, save, use_files

_LINES = ("-", "--", ":")


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
    use_files()
    for group in groups:
        if group.plot:
            curves(group, folder / f"{group.plot}.svg")
    bars([group for group in groups if is_bars(group)], folder / "benchmarks.svg")


def is_bars(group: Group) -> bool:
    """Return whether the group is part of the picture of all groups in Mpps."""
    return group.unit == "Mpps" and not group.plot


def curves(group: Group, path: Path) -> None:
    """Draw a line for each series. ``x`` doubles from one mark to the next."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.5))
    drawn = dict.fromkeys((OURS, OTHERS), 0)
    for name in dict.fromkeys(case.series for case in group.cases):
        points = [(case.x, case.median) for case in group.cases if case.series == name and case.figures]
        color = OTHERS if name.startswith("testpmd") else OURS
        style = _LINES[drawn[color] % len(_LINES)]
        drawn[color] += 1
        axis.plot(*zip(*points, strict=True), style, color=color, marker="o", markersize=4, label=name)
    marks = sorted({int(case.x) for case in group.cases})
    axis.set_xscale("log", base=2)
    axis.set_xticks(marks, [str(mark) for mark in marks])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    label(axis, group.title, group.x, group.unit)
    axis.legend(fontsize=8, frameon=False)
    save(figure, path)


def bars(groups: list[Group], path: Path) -> None:
    """Draw a bar for each case."""
    if not groups:
        return
    import matplotlib.pyplot as plt

    rows = [sum(bool(case.figures) for case in group.cases) + 2 for group in groups]
    figure, axes = plt.subplots(
        len(groups), 1, figsize=(9, 0.32 * sum(rows)), gridspec_kw={"height_ratios": rows}, squeeze=False
    )
    for axis, group in zip(axes[:, 0], groups, strict=True):
        shown = [case for case in reversed(group.cases) if case.figures]
        names = [case.name for case in shown]
        medians = [case.median for case in shown]
        colors = [OTHERS if "testpmd" in name else OURS for name in names]
        drawn = axis.barh(names, medians, color=colors)
        axis.bar_label(drawn, labels=[f"{value:.2f}" for value in medians], padding=3, fontsize=8)
        label(axis, f"{group.title} ({group.unit})")
        axis.margins(x=0.12)
    save(figure, path)
