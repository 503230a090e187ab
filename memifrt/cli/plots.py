"""The plot of ``memifrt bench --plot``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memifrt import drawing
from memifrt.capture.whole_file import write_whole
from memifrt.errors import ConfigError

if TYPE_CHECKING:
    from memifrt.cli.bench.options import Interval

#: The kinds of files that a plot may have.
SUFFIXES = (".svg", ".png", ".pdf")
#: The shares of round trips to mark, and up to which the curve is drawn.
_SHARES = (0.5, 0.9, 0.99, 0.999, 0.9999)
#: The ratio of the slowest round trip to the median from which the axis is logarithmic.
_WIDE_SPREAD = 50


def plot_path(text: str) -> str:
    """Check the name of a plot's file, before anything is measured.

    :raises ConfigError: it has another suffix, or its directory takes no files.
    """
    folder = os.path.dirname(text) or "."
    if os.path.splitext(text)[1] not in SUFFIXES:
        raise ConfigError(f"{text!r} is not the name of a plot; it must end in {', '.join(SUFFIXES)}")
    if not os.path.isdir(folder):
        raise ConfigError(f"{text!r}: there is no directory {folder}")
    if os.path.isdir(text):
        raise ConfigError(f"{text!r} is a directory; it must be the name of a file")
    if not os.access(text if os.path.exists(text) else folder, os.W_OK):
        raise ConfigError(f"{text!r}: permission denied to write it")
    return text


def plot_bench(path: str, title: str, intervals: Sequence[Interval], trips: Sequence[int]) -> None:
    """Draw the rate over time and, if there are any, the round trips by percentile.

    :param trips: round trips in nanoseconds.
    :raises MemifOSError: the file cannot be written.
    """
    with drawing.style():
        figure = drawing.figure(8, 7 if trips else 4)
        axes = figure.subplots(2 if trips else 1, 1, squeeze=False)[:, 0]
        _draw_rate(axes[0], title, intervals)
        if trips:
            _draw_trips(axes[1], trips)
        data = drawing.picture(figure, os.path.splitext(path)[1][1:])
    write_whole(path, data)


def _draw_rate(axes: Any, title: str, intervals: Sequence[Interval]) -> None:
    times = [(one.start + one.end) / 2 for one in intervals]
    axes.plot(times, [one.pps / 1e6 for one in intervals], color=drawing.OURS, label="packets")
    if any(one.lost for one in intervals):
        lost = [one.lost / max(one.end - one.start, 1e-9) / 1e6 for one in intervals]
        axes.plot(times, lost, color=drawing.OTHERS, label="lost")
        axes.legend()
    axes.set_ylim(bottom=0)
    drawing.label(axes, title, "seconds", "Mpps")


def _draw_trips(axes: Any, trips: Sequence[int]) -> None:
    ranked = sorted(trips)
    shares = [share for share in _SHARES if len(ranked) * (1 - share) >= 1] or [0.5]
    steps = sorted({min(number, len(ranked) - 1) for number in _indexes(len(ranked))})
    percents = [len(ranked) / (len(ranked) - at) for at in steps]
    axes.plot(percents, [ranked[at] / 1e3 for at in steps], color=drawing.OURS)
    axes.set_xscale("log")
    axes.set_xticks([1 / (1 - share) for share in shares], [f"p{share * 100:g}" for share in shares])
    axes.minorticks_off()
    if ranked[-1] > _WIDE_SPREAD * ranked[len(ranked) // 2] > 0:
        drawing.logarithmic(axes.yaxis)
    else:
        axes.set_ylim(bottom=0)
    drawing.label(axes, "Round trips", "percentile", "µs")


def _indexes(count: int) -> list[int]:
    """Return places in a sorted list, denser towards its end, where the slowest round trips are."""
    return [count - max(1, round(count * 10 ** (-step / 50))) for step in range(400)]
