"""The style of plots: what a dark screen shows, and whose settings stay as they are."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from memifrt import drawing
from memifrt.errors import ConfigError

pytest.importorskip("matplotlib", reason="pip install 'memifrt[plot]'")

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module", autouse=True)
def fonts() -> None:
    """Draw once: matplotlib keeps its fonts open, and a test counts its fds."""
    svg()


def svg() -> str:
    with drawing.style():
        figure = drawing.figure(4, 3)
        axes = figure.subplots()
        for number in range(8):
            axes.plot([0, number], label=str(number))
        drawing.label(axes, "title", "x", "y")
        axes.legend()
        return drawing.picture(figure, "svg").decode()


def without_counterpart(text: str) -> set[str]:
    """Return the colours of an SVG that stay as they are on a dark screen."""
    used = set(re.findall(r"(?:fill|stroke): (#\w+)(?! !important)\b(?!\"\])", text))
    exchanged = set(re.findall(r'(?:fill|stroke): (#\w+)"\]', text))
    return used - exchanged - set(re.findall(r"(#\w+) !important", text))


def test_every_colour_of_a_plot_has_one_for_dark_screens() -> None:
    text = svg()
    assert "@media (prefers-color-scheme: dark)" in text
    assert without_counterpart(text) == set()


@pytest.mark.parametrize("name", ["benchmarks", "burst-sizes", "threads", "threads-inside"])
def test_plots_of_the_site_have_this_style(name: str) -> None:
    text = (DOCS / f"{name}.svg").read_text()
    assert "@media (prefers-color-scheme: dark)" in text
    assert without_counterpart(text) == set()


def test_the_same_figures_give_the_same_file() -> None:
    assert svg() == svg()


def test_settings_of_the_caller_stay() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    svg()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(("kind", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_other_formats_are_drawn(kind: str, start: bytes) -> None:
    with drawing.style():
        assert drawing.picture(drawing.figure(1, 1), kind).startswith(start)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"--plot needs matplotlib.*pip install 'memifrt\[plot\]'"):
        drawing.check_matplotlib()
