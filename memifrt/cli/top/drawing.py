"""How ``memifrt top`` draws numbers, times, bars and sparklines. Knows nothing of programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from memifrt.cli.program import one_line

#: One line of the screen: pieces of text, each with a style of rich (``"bold"``, ``"green"``; empty for none).
Line = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Symbols:
    """The symbols that the terminal can show."""

    up: str
    between: str
    down: str
    filled: str
    empty: str
    levels: str
    dot: str
    ellipsis: str


UNICODE = Symbols("●", "◌", "○", "█", "░", "▁▂▃▄▅▆▇█", "·", "…")
ASCII = Symbols("*", "+", "o", "#", ".", "_.:-=+*#", "-", "...")


def scaled(value: float) -> str:
    """Format a number with a prefix, in at most seven columns: ``0``, ``12.3``, ``999``, ``1.23 k``, ``45.6 M``."""
    for prefix in ("", " k", " M", " G", " T", " P"):
        if value < 999.5:
            digits = 0 if value >= 99.95 or (value == int(value) and not prefix) else 1 if value >= 9.995 else 2
            return f"{value:.{digits}f}{prefix}"
        value /= 1000
    return f"{value:.3g} E"


def duration(value: float) -> str:
    """Format seconds in the two largest units: ``8 s``, ``3 m 12 s``, ``2 h 5 m``, ``3 d 4 h``."""
    rest = max(int(value), 0)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def sparkline(values: Iterable[float | None], width: int, levels: str) -> str:
    """Draw the last ``width`` values as bars relative to the largest, the newest on the right; None is blank."""
    shown = list(values)[-width:] if width > 0 else []
    highest = max((value for value in shown if value is not None), default=0.0)
    bars = "".join(
        " " if value is None else levels[0 if highest <= 0 else round(value / highest * (len(levels) - 1))]
        for value in shown
    )
    return bars.rjust(width)


def bar(share: float, width: int, symbols: Symbols) -> str:
    """Draw a share from 0 to 1 as a bar. A share above 0 fills at least one column."""
    filled = min(width, max(round(share * width), 1 if share > 0 else 0))
    return symbols.filled * filled + symbols.empty * (width - filled)


def safe_text(text: str) -> str:
    """Make a text of a program or its peer safe for the terminal, with at most 200 characters."""
    return one_line(text if len(text) <= 200 else text[:200])


def plain(line: Line) -> str:
    return "".join(text for text, _ in line).rstrip()
