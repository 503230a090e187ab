"""Show a report as text: a table for the end of a run, and a live view while it lasts.

Owns which columns a width has room for. The live view paints the same lines as the table, with rich.
"""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from memifrt import columns
from memifrt.traffic.report import Report, StreamReport, intervals
from memifrt.types import printable

if TYPE_CHECKING:
    from typing_extensions import Self

_BETWEEN = "  "
_LONGEST_NAME, _SHORTEST_NAME = 40, 12
#: Counts have up to so many digits before they are cut to four, if the width is small.
_DIGITS = 6
_LEVELS = "▁▂▃▄▅▆▇█"
_ASCII_LEVELS = "_.:-=+*#"
_LONGEST_SPARKLINE = 60
#: Seconds between two updates of the live view.
INTERVAL = 0.25


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the table.

    :ivar rank: when it is left out: the largest rank first; 0 never.
    """

    head: str
    cell: Callable[[_Row, bool], str]
    rank: int
    checked: bool = False


@dataclass(frozen=True, slots=True)
class _Row:
    """A stream, and what has changed since an earlier report."""

    now: StreamReport
    sent_pps: float
    sent_bps: float
    received_pps: float


def number(value: int, short: bool) -> str:
    """Return a count: all digits, or four of them and a letter."""
    return str(value) if not short or len(str(value)) <= _DIGITS else si(value)


def si(value: float) -> str:
    """Return a number with up to four digits and the letter of its power of 1000."""
    for letter in ("", "k", "M", "G", "T"):
        if value < 999.95 or letter == "T":
            break
        value /= 1000
    text = f"{value:.3g}" if value < 100 else f"{value:.4g}"
    return f"{text}{letter}"


def microseconds(value: float) -> str:
    """Return a latency with its unit."""
    for unit in ("us", "ms"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}s"


def _latency(name: str) -> Callable[[_Row, bool], str]:
    def cell(row: _Row, short: bool) -> str:
        latency = row.now.latency
        return "-" if latency is None else microseconds(getattr(latency, name))

    return cell


def _share(row: _Row, short: bool) -> str:
    """Return the lost packets in per cent: of those sent, because those unsent have a column."""
    lost, sent = row.now.lost, row.now.sent
    return "-" if not sent else "0" if not lost else f"{100 * lost / sent:.3g}"


_COLUMNS = (
    _Column("sent", lambda row, short: number(row.now.sent, short), 0),
    _Column("sent/s", lambda row, short: si(row.sent_pps), 1),
    _Column("bit/s", lambda row, short: si(row.sent_bps), 6),
    _Column("unsent", lambda row, short: number(row.now.unsent, short), 7),
    _Column("received", lambda row, short: number(row.now.received, short), 0, True),
    _Column("recv/s", lambda row, short: si(row.received_pps), 8, True),
    _Column("lost", lambda row, short: number(row.now.lost, short), 0, True),
    _Column("lost %", _share, 9, True),
    _Column("dup", lambda row, short: number(row.now.duplicated, short), 2, True),
    _Column("reord", lambda row, short: number(row.now.reordered, short), 2, True),
    _Column("corr", lambda row, short: number(row.now.corrupted, short), 2, True),
    _Column("min", _latency("min"), 10, True),
    _Column("p50", _latency("p50"), 3, True),
    _Column("p90", _latency("p90"), 10, True),
    _Column("p99", _latency("p99"), 4, True),
    _Column("p99.9", _latency("p999"), 5, True),
    _Column("max", _latency("max"), 3, True),
)


def table(
    report: Report, width: int, earlier: Report | None = None, limit: int | None = None, *, running: bool = False
) -> list[str]:
    """Return the lines of a table: a head, a line for each stream, and their sum.

    :param width: the columns of the terminal.
    :param earlier: another report of the same run: rates are since then, not since the begin.
    :param limit: the most streams to show.
    :param running: whether the run lasts: lost packets may then still be on their way, and are called missing.
    """
    rows = [_row(each, report, earlier) for each in report.rows()]
    left_out = 0
    if limit is not None and len(rows) > max(limit, 2):
        left_out = len(rows) - max(limit, 2)
        rows = [*rows[: max(limit, 2) - 1], rows[-1]]
    longest = max(columns.width(printable(row.now.name)) for row in rows)
    # First numbers lose digits, then columns are left out.
    shown = [column for column in _COLUMNS if report.checked or not column.checked]
    name_width = min(max(longest, len("stream")), _LONGEST_NAME)
    short = False
    while True:
        heads = [column.head.replace("lost", "missing") if running else column.head for column in shown]
        cells = [heads, *[[column.cell(row, short) for column in shown] for row in rows]]
        widths = [max(len(line[index]) for line in cells) for index in range(len(shown))]
        if name_width + sum(len(_BETWEEN) + each for each in widths) <= width:
            break
        name_width = min(name_width, max(_SHORTEST_NAME, len("stream")))
        if not short:
            short = True
            continue
        rank = max(column.rank for column in shown)
        if not rank:
            break
        shown = [column for column in shown if column.rank != rank]
    names = ["stream", *(columns.cut_middle(printable(row.now.name), name_width, "~") for row in rows)]
    made = [
        _BETWEEN.join(
            [columns.left(name, name_width), *(cell.rjust(size) for cell, size in zip(line, widths, strict=True))]
        )
        for name, line in zip(names, cells, strict=True)
    ]
    if left_out:
        made.insert(-1, f"... and {left_out} more")
    return [columns.cut(line.rstrip(), width) for line in made]


def _row(now: StreamReport, report: Report, earlier: Report | None) -> _Row:
    before, seconds = None, report.seconds
    if earlier is not None and report.seconds > earlier.seconds:
        before = earlier.total if now.name == "total" and now.name not in earlier.streams else None
        before = before or earlier.streams.get(now.name)
        seconds = report.seconds - earlier.seconds if before is not None else seconds
    seconds = max(seconds, 1e-9)
    sent, bits, received = now.sent, now.sent_bits, now.received
    if before is not None:
        sent, bits, received = sent - before.sent, bits - before.sent_bits, received - before.received
    return _Row(now, sent / seconds, bits / seconds, received / seconds)


def summary(report: Report) -> str:
    """Return the whole run in one line."""
    total = report.total
    seconds = max(report.seconds, 1e-9)
    bits = total.sent_bits / seconds
    text = f"{total.sent} packets sent in {report.seconds:.3f} s ({si(report.sent_pps)} packets/s, {si(bits)}bit/s)"
    if total.unsent:
        text += f", {total.unsent} more were due"
    if report.checked:
        share = f" ({100 * total.lost / total.sent:.3g} %)" if total.lost and total.sent else ""
        text += f"; {total.received} came back, {total.lost} lost{share}"
        for count, what in (
            (total.duplicated, "duplicated"),
            (total.reordered, "reordered"),
            (total.corrupted, "corrupted"),
            (report.foreign, "foreign"),
        ):
            if count:
                text += f", {count} {what}"
    else:
        text += f"; {report.received} received"
    return text


def sparkline(report: Report, width: int, unicode: bool) -> str:
    """Return the rate of sent packets over time as a line of ``width`` symbols at most."""
    shown = intervals(report.samples)
    rates = [each.sent for each in shown[max(len(shown) - min(width, _LONGEST_SPARKLINE), 0) :]]
    highest = max(rates, default=0)
    levels = _LEVELS if unicode else _ASCII_LEVELS
    return "".join(levels[min(8 * rate // highest, 7)] if highest else levels[0] for rate in rates)


def screen(
    report: Report, earlier: Report | None, duration: float | None, size: tuple[int, int], unicode: bool
) -> list[str]:
    """Return the lines of the live view.

    :param size: the columns and lines of the terminal.
    """
    width, height = size
    time = f"{report.seconds:.1f} s" + (f" of {duration:g} s" if duration else "")
    head = f"memifrt generate  {time}  "
    line = head + sparkline(report, max(width - len(head) - 1, 0), unicode)
    return [line[:width], *table(report, width, earlier, max(height - 4, 2), running=True)]


class View:
    """A live view on a terminal; nothing on anything else.

    :param file: standard error, usually.
    :param duration: the seconds of the run, if they are known.
    """

    def __init__(self, file: TextIO, duration: float | None) -> None:
        self._duration = duration
        self._earlier: Report | None = None
        self._live = None
        if file.isatty() and importlib.util.find_spec("rich") is not None:
            from rich.console import Console
            from rich.live import Live

            self._console = Console(file=file, highlight=False, markup=False, emoji=False)
            # No thread refreshes it: that would take time from packets.
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._unicode = (getattr(file, "encoding", None) or "").lower().startswith("utf")

    @property
    def shown(self) -> bool:
        """Whether there is a terminal to show it on."""
        return self._live is not None

    def update(self, report: Report) -> None:
        """Show a report."""
        if self._live is None:
            return
        from rich.text import Text

        size = (self._console.width, self._console.height)
        lines = screen(report, self._earlier, self._duration, size, self._unicode)
        self._live.update(Text("\n".join(lines), no_wrap=True, overflow="crop"), refresh=True)
        self._earlier = report

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()


def page(report: Report, width: int) -> str:
    """Return what is printed at the end of a run: the table, and the whole run in one line if it is not too long."""
    lines: Sequence[str] = [*table(report, width), "", *textwrap.wrap(summary(report), max(width, 20))]
    return "\n".join(lines)
