"""Plot a report: the rate over time, and latencies by percentile. Needs the extra ``memifrt[plot]``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memifrt import drawing
from memifrt.capture.pcap import check_writable
from memifrt.capture.whole_file import write_whole
from memifrt.errors import ConfigError
from memifrt.traffic.latency import Latency
from memifrt.traffic.report import Report, intervals

#: The endings of file names that a plot can have.
FORMATS = (".png", ".svg")
_PERCENTILES = (0, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.95, 99.99, 99.999)
_MILLION = 1e6
#: The most streams with a curve of their own.
_MANY = 8


def check_plot(path: str) -> None:
    """Check that :func:`plot` could write to this path.

    :raises ConfigError: its name does not end with .png or .svg, or matplotlib is not installed.
    :raises MemifOSError: it cannot be written.
    """
    plot_path(path)
    drawing.check_matplotlib("a plot")
    check_writable(path)


def plot_path(path: str) -> str:
    """Return a path of a known format.

    :raises ConfigError: its name does not end with .png or .svg.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise ConfigError(f"{path!r} must end with {' or '.join(FORMATS)}")
    return path


def plot(report: Report, path: str) -> None:
    """Write the plot of a report into a file.

    :param path: ends with ``.png`` or ``.svg``, which is the format.
    :raises ConfigError: it ends with something else, or matplotlib is not installed.
    :raises MemifOSError: the file cannot be written.
    """
    check_plot(path)
    streams = report.streams if len(report.streams) <= _MANY else {"all streams": report.total}
    latencies = {name: each.latency for name, each in streams.items() if each.latency is not None}
    with drawing.style():
        columns = 2 if latencies else 1
        figure = drawing.figure(5.3 * columns, 3.4)
        axes = figure.subplots(1, columns, squeeze=False)[0]
        _plot_rates(axes[0], report)
        if latencies:
            _plot_latencies(axes[1], latencies)
        data = drawing.picture(figure, Path(path).suffix[1:].lower())
    write_whole(path, data)


def _shown(latency: Latency) -> list[float]:
    """Return the percentiles above which there is at least one packet."""
    return [p for p in _PERCENTILES if (100 - p) * latency.count >= 100 or p == 0]


def _plot_latencies(axes: Any, latencies: dict[str, Latency]) -> None:
    for latency in latencies.values():
        percents = _shown(latency)
        values = [max(latency.percentile(p), 1e-3) for p in percents]
        axes.plot([1 / (1 - p / 100) for p in percents], values, marker=".")
    axes.set_xscale("log")
    drawing.logarithmic(axes.yaxis)
    highest = max(p for latency in latencies.values() for p in _shown(latency))
    shown = [p for p in (50, 90, 99, 99.9, 99.99, 99.999) if p <= highest or p == 50]
    axes.set_xticks([1 / (1 - p / 100) for p in shown], [f"{p:g} %" for p in shown])
    axes.minorticks_off()
    drawing.label(axes, "Latency by percentile", "percentile", "µs")
    # Names are text, not formulas in dollars. matplotlib leaves out labels that begin with an underscore.
    legend = axes.legend(axes.get_lines(), [f" {name}" for name in latencies])
    for text in legend.get_texts():
        text.set_parse_math(False)


def _plot_rates(axes: Any, report: Report) -> None:
    times, sent, received = [], [], []
    before = report.samples[0].seconds if report.samples else 0.0
    for each in intervals(report.samples):
        seconds = max(each.seconds - before, 1e-9)
        times.append((each.seconds + before) / 2)
        sent.append(each.sent / seconds / _MILLION)
        received.append(each.received / seconds / _MILLION)
        before = each.seconds
    axes.plot(times, sent, linewidth=3, label="sent")
    axes.plot(times, received, label="received")
    axes.set_ylim(bottom=0)
    drawing.label(axes, "Rate over time", "seconds", "Mpps")
    axes.legend()
