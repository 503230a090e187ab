"""The style of every plot: ``memifrt bench``, ``generate`` and ``throughput --plot``, and the site's benchmarks.

Needs matplotlib (``memifrt[plot]``), which is imported where it is used. An SVG has a light and a dark variant; the
program that shows it chooses, by the media feature ``prefers-color-scheme``. Other formats are light.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Iterator
from typing import Any

from memifrt.errors import ConfigError

INK, PAPER, _LINE, _GRID = "#24292f", "#ffffff", "#6e7781", "#d8dee4"
OURS, OTHERS = "#2a6f97", "#b0727f"
#: Colours of further series: each differs from those before it in lightness or in hue, and reads on both papers.
_SERIES = (OURS, "#c2740c", "#3a8a4d", OTHERS, "#7b5ea7", "#117a7a", "#8a6d3b", "#8a939c")
#: Each colour's counterpart on dark paper, which is the site's in its dark variant.
_DARK = {
    INK: "#d8dee4",
    PAPER: "#131416",
    _LINE: "#8b949e",
    _GRID: "#343a42",
    OURS: "#6cb6e0",
    "#c2740c": "#f0a53c",
    "#3a8a4d": "#6fcf85",
    OTHERS: "#dda5b1",
    "#7b5ea7": "#bba4e6",
    "#117a7a": "#4fc4c4",
    "#8a6d3b": "#cbb47e",
    "#8a939c": "#9aa3ac",
}


def check_matplotlib(what: str = "--plot") -> None:
    """Check that matplotlib is installed, before anything is measured.

    :param what: what needs it, for the message.
    :raises ConfigError: it is not; the message says how to install it.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(f"{what} needs matplotlib, which is not installed: pip install 'memifrt[plot]'")


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw in memifrt's style within the block. The caller's own settings of matplotlib stay as they are.

    The same figures give the same file.
    """
    import matplotlib

    settings: dict[Any, Any] = {
        "axes.edgecolor": _LINE,
        "axes.facecolor": PAPER,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.labelcolor": INK,
        "axes.labelsize": 9,
        "axes.prop_cycle": f"cycler('color', {list(_SERIES)})",
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": INK,
        "axes.titlelocation": "left",
        "axes.titlesize": 10,
        "figure.facecolor": PAPER,
        "font.size": 9,
        "grid.color": _GRID,
        "grid.linewidth": 0.6,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "legend.labelcolor": INK,
        "lines.markersize": 5,
        "savefig.facecolor": "auto",
        "svg.hashsalt": "memifrt",
        "text.color": INK,
        "xtick.color": _LINE,
        "xtick.labelcolor": INK,
        "xtick.labelsize": 8,
        "ytick.color": _LINE,
        "ytick.labelcolor": INK,
        "ytick.labelsize": 8,
    }
    with matplotlib.rc_context(settings):
        yield


def figure(width: float, height: float) -> Any:
    """Return an empty figure of matplotlib, in inches. It belongs to no window and is freed like any object."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def label(axes: Any, title: str, x: str = "", y: str = "") -> None:
    """Give axes a title and labels."""
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def logarithmic(axis: Any) -> None:
    """Make one axis of axes, their ``yaxis`` for example, logarithmic, with plain numbers instead of powers of ten."""
    from matplotlib.ticker import LogFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_formatter("{x:g}")
    # Between the powers of ten there are numbers only where the axis has few powers.
    axis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))


def picture(drawn: Any, kind: str) -> bytes:
    """Return a figure as a file.

    :param kind: ``svg``, ``png`` or ``pdf``.
    """
    data = io.BytesIO()
    # Without a date, so that the same figures give the same file.
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    drawn.savefig(data, format=kind, metadata=undated)
    return _with_dark_variant(data.getvalue()) if kind == "svg" else data.getvalue()


def _with_dark_variant(svg: bytes) -> bytes:
    """Add rules that exchange the colours on a dark screen. Programs that do not know them show the light ones."""
    rules = [
        f'    [style*="{what}: {light}"] {{ {what}: {dark} !important }}'
        for light, dark in _DARK.items()
        for what in ("fill", "stroke")
    ]
    added = "\n".join([" <style>", "   @media (prefers-color-scheme: dark) {", *rules, "   }", " </style>", ""])
    head, _, rest = svg.partition(b" <metadata>")
    return head + added.encode() + b" <metadata>" + rest
