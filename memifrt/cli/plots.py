"""The style of memifrt's plots, and the plot of ``memifrt bench --plot``.

Needs matplotlib (``memifrt[plot]``), which is imported where it is used.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memifrt.errors import ConfigError

if TYPE_CHECKING:
    from memifrt.cli.bench.options import Interval

OURS, OTHERS = "#2a6f97", "#b5838d"
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


def check_matplotlib() -> None:
    """Raise ConfigError if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib, which is not installed: pip install 'memifrt[plot]'")


def use_files() -> None:
    """Let matplotlib draw into files alone. The same figures give the same file."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "memifrt"


def label(axis: Any, title: str, x: str = "", y: str = "") -> None:
    """Give an axis of matplotlib its title and labels."""
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)
    axis.set_title(title, fontsize=9, loc="left")
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def save(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure of matplotlib, and forget it.

    :raises OSError: the file cannot be written.
    """
    import matplotlib.pyplot as plt

    figure.tight_layout()
    is_png = os.fspath(path).endswith(".png")
    figure.savefig(path, metadata={} if is_png else {"CreationDate" if str(path).endswith(".pdf") else "Date": None})
    plt.close(figure)


def plot_bench(path: str, title: str, intervals: Sequence[Interval], trips: Sequence[int]) -> None:
    """Draw the rate over time and, if there are any, the round trips by percentile.

    :param trips: round trips in nanoseconds.
    :raises OSError: the file cannot be written.
    """
    use_files()
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2 if trips else 1, 1, figsize=(8, 7 if trips else 4.5), squeeze=False)
    rate = axes[0, 0]
    times = [(one.start + one.end) / 2 for one in intervals]
    rate.plot(times, [one.pps / 1e6 for one in intervals], color=OURS, label="packets")
    if any(one.lost for one in intervals):
        lost = [one.lost / max(one.end - one.start, 1e-9) / 1e6 for one in intervals]
        rate.plot(times, lost, color=OTHERS, label="lost")
        rate.legend(fontsize=8, frameon=False)
    rate.set_ylim(bottom=0)
    label(rate, title, "seconds", "Mpps")
    if trips:
        ranked = sorted(trips)
        shares = [share for share in _SHARES if len(ranked) * (1 - share) >= 1] or [0.5]
        curve = axes[1, 0]
        steps = sorted({min(number, len(ranked) - 1) for number in _indexes(len(ranked))})
        curve.plot([len(ranked) / (len(ranked) - at) for at in steps], [ranked[at] / 1e3 for at in steps], color=OURS)
        curve.set_xscale("log")
        curve.set_xticks([1 / (1 - share) for share in shares], [f"p{share * 100:g}" for share in shares])
        curve.minorticks_off()
        if ranked[-1] > _WIDE_SPREAD * ranked[len(ranked) // 2] > 0:
            curve.set_yscale("log")
        else:
            curve.set_ylim(bottom=0)
        label(curve, "Round trips", "percentile", "µs")
    save(figure, path)


def _indexes(count: int) -> list[int]:
    """Return places in a sorted list, denser towards its end, where the slowest round trips are."""
    return [count - max(1, round(count * 10 ** (-step / 50))) for step in range(400)]
