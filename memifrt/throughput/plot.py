"""Draw the results of a throughput measurement with matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from memifrt import drawing
from memifrt.capture.whole_file import write_whole
from memifrt.errors import ConfigError
from memifrt.throughput.report import Report, SizeReport
from memifrt.throughput.search import Rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The formats of pictures, by the ends of their names.
FORMATS = (".png", ".svg", ".pdf")
_NINES = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99)


def picture_path(text: str) -> str:
    """Check that a file's name says which format the picture has.

    :raises ConfigError: it does not.
    """
    if Path(text).suffix.lower() not in FORMATS:
        raise ConfigError(f"{text!r} is not the name of a picture; it must end in {', '.join(FORMATS)}")
    return text


def plot(report: Report, path: str) -> None:
    """Write a picture: NDR and PDR by frame size, and below it the latencies by percentile, size and load.

    :raises ConfigError: matplotlib is not installed.
    :raises MemifOSError: the file cannot be written.
    """
    drawing.check_matplotlib()
    measured = [size for size in report.sizes if any(found.latency for found in size.latencies)]
    rows = 1 + len(measured)
    with drawing.style():
        figure = drawing.figure(9, 3.2 * rows)
        # Each picture below the first has the latencies of one frame size.
        axes = figure.subplots(rows, 1, squeeze=False)[:, 0]
        _draw_rates(axes[0], report.sizes)
        for below, size in zip(axes[1:], measured, strict=True):
            _draw_latencies(below, size)
        data = drawing.picture(figure, Path(path).suffix[1:].lower())
    write_whole(path, data)


def _draw_rates(axes: Axes, sizes: list[SizeReport]) -> None:
    series: tuple[tuple[str, float, Callable[[SizeReport], float | None]], ...] = (
        ("NDR", -0.27, lambda size: _reached(size.ndr)),
        ("PDR", 0.0, lambda size: _reached(size.pdr)),
        ("generator against itself", 0.27, lambda size: size.generator),
    )
    for label, offset, value in series:
        heights = [(value(size) or 0.0) / 1e6 for size in sizes]
        bars = axes.bar([place + offset for place in range(len(sizes))], heights, 0.25, label=label)
        axes.bar_label(bars, [f"{height:.3g}" if height else "" for height in heights], fontsize=8)
    axes.set_xticks(range(len(sizes)), [str(size.size) for size in sizes])
    drawing.label(axes, "Throughput by frame size", "frame size", "Mpps")
    axes.grid(False, axis="x")
    axes.margins(y=0.3)
    axes.legend(loc="upper center", ncols=len(series))


def _reached(rate: Rate | None) -> float | None:
    return None if rate is None else rate.throughput


def _draw_latencies(axes: Axes, report: SizeReport) -> None:
    for found in report.latencies:
        if found.latency is not None:
            # Each nine is as far from the next as in the plots of the HdrHistogram tools.
            points = [
                (100 / (100 - percentile), value / 1000) for percentile, value in _finite(found.latency.percentiles)
            ]
            axes.plot(*zip(*points, strict=True), marker=".", label=f"{100 * found.share:.0f} % of PDR")
    axes.set_xscale("log")
    drawing.logarithmic(axes.yaxis)
    axes.set_xticks([100 / (100 - percentile) for percentile in _NINES], [f"{percentile:g} %" for percentile in _NINES])
    axes.xaxis.minorticks_off()
    drawing.label(axes, f"Latency, {report.size}", "percentile", "µs")
    axes.legend(loc="upper left")


def _finite(percentiles: tuple[tuple[float, int], ...]) -> Iterator[tuple[float, int]]:
    return ((percentile, max(value, 1)) for percentile, value in percentiles if percentile < 100)
