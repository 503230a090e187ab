"""``memifrt top``: show the interfaces of running programs as a live screen, a table, or JSON.

Owns the contents and the layout. Gets all data from :mod:`memifrt.stats.client`. A screen consists of lines, and a line
of pieces of text with a style each. The live screen paints them; the table prints only their text.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from memifrt.cli.arguments import Command, Parser, add_web_argument, checked, seconds, socket_path
from memifrt.cli.program import complain, one_line, signals_to
from memifrt.stats.client import Observer, Program, QueueKey, Rates, observing, queue_key
from memifrt.stats.snapshot import InterfaceStats, QueueStats, Snapshot
from memifrt.stats.switch import SwitchStats

if TYPE_CHECKING:
    from rich.text import Text

    from memifrt.stats.web import ProgramStats, StandalonePage

#: One line of the screen: pieces of text, each with a style of rich (``"bold"``, ``"green"``; empty for none).
Line = list[tuple[str, str]]

#: The most seconds to wait for programs that do not answer.
_PATIENCE = 1.0
#: Width of the bar for a ring, in columns.
_BAR = 8
#: The widths from which the table shows totals, and all columns.
_WIDE, _WIDER = 110, 150
_SHORTEST_SPARKLINE, _LONGEST_SPARKLINE = 8, 120
#: The width of the first column if each interface has one line.
_TITLE = 18
#: The share of used slots from which a ring will soon drop packets.
_FULL = 0.9


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

# Only named colours: the theme of the terminal adapts them to dark and light backgrounds.
_STATES = {"connected": "bold green", "connecting": "bold cyan", "disconnected": "bold red"}


# --- numbers --------------------------------------------------------------------------------------------------------


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


# --- one row for a queue, or for several ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """The values for one queue, or for all queues of a direction. ``rates`` and ``share`` are None if unknown."""

    name: str
    rates: Rates | None
    share: float | None
    ring_size: int
    history: Sequence[float | None]
    packets: int
    bytes: int
    ring_full: int
    bad_descriptors: int
    rx_mode: str


def queue_row(program: Program, interface: InterfaceStats, queue: QueueStats) -> Row:
    key = queue_key(interface, queue)
    used, size = queue["used"], max(queue["ring_size"], 1)
    return Row(
        f"{_text(queue['direction'])} {queue['qid']}",
        program.rates.get(key),
        None if used is None or program.error else min(max(used / size, 0.0), 1.0),
        size,
        program.history.get(key, ()),
        queue["packets"],
        queue["bytes"],
        queue["ring_full"],
        queue["bad_descriptors"],
        _text(queue["rx_mode"] or ""),
    )


def direction_row(program: Program, interface: InterfaceStats, direction: str) -> Row | None:
    """Combine all queues of a direction in one row; None if there are none."""
    rows = [queue_row(program, interface, queue) for queue in interface["queues"] if queue["direction"] == direction]
    if not rows:
        return None
    known = [row.rates for row in rows if row.rates is not None]
    shares = [row.share for row in rows if row.share is not None]
    return Row(
        f"{direction} x{len(rows)}",
        sum(known[1:], known[0]) if known else None,
        max(shares) if shares else None,  # the fullest ring, because it drops packets first
        max(row.ring_size for row in rows),
        _added([row.history for row in rows]),
        sum(row.packets for row in rows),
        sum(row.bytes for row in rows),
        sum(row.ring_full for row in rows),
        sum(row.bad_descriptors for row in rows),
        rows[0].rx_mode,
    )


def _added(histories: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Add histories sample by sample. The newest sample of each is the last."""
    added: deque[float | None] = deque()
    for back in range(1, max(map(len, histories)) + 1):
        samples = [history[-back] for history in histories if len(history) >= back]
        known = [sample for sample in samples if sample is not None]
        added.appendleft(sum(known) if known else None)
    return list(added)


# --- lines ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a queue's row."""

    title: str
    width: int
    cell: Callable[[Row], tuple[str, str]]


class Table:
    """The columns that fit into ``width``, and the lines of a screen."""

    def __init__(self, width: int, symbols: Symbols) -> None:
        self._symbols = symbols
        self._columns = list(self._fitting(width))
        used = sum(column.width + 2 for column in self._columns) + 2
        self._sparkline = max(_SHORTEST_SPARKLINE, min(_LONGEST_SPARKLINE, width - used - 1))

    def _fitting(self, width: int) -> Iterator[Column]:
        yield Column("queue", 6, lambda row: (row.name.ljust(6), "bold"))
        yield Column("packet/s", 8, lambda row: _rate(row, "packets"))
        yield Column("bit/s", 7, lambda row: _rate(row, "bits"))
        yield Column("ring used", _BAR + 5, self._ring)
        yield Column("irq/s", 6, lambda row: _rate(row, "interrupts"))
        yield Column("full", 6, lambda row: (scaled(row.ring_full), "red" if _growing(row) else ""))
        if width >= _WIDE:
            yield Column("packets", 8, lambda row: (scaled(row.packets), ""))
            yield Column("bytes", 8, lambda row: (scaled(row.bytes), ""))
        if width >= _WIDER:
            yield Column("slots", 5, lambda row: (str(row.ring_size), ""))
            yield Column("bad", 5, lambda row: (scaled(row.bad_descriptors), "red" if row.bad_descriptors else ""))
            yield Column("rx mode", 9, lambda row: (row.rx_mode or "-", ""))

    def _ring(self, row: Row) -> tuple[str, str]:
        if row.share is None:
            return "-", "dim"
        style = "bold red" if row.share >= _FULL else "cyan"
        return f"{bar(row.share, _BAR, self._symbols)} {row.share * 100:3.0f}%", style

    def titles(self) -> Line:
        line: Line = [("  ", "")]
        for column in self._columns:
            title = column.title.ljust if column.title == "queue" else column.title.rjust
            line.append((title(column.width) + "  ", "dim"))
        return [*line, ("packet/s over time".rjust(self._sparkline), "dim")]

    def row(self, row: Row) -> Line:
        line: Line = [("  ", "")]
        for column in self._columns:
            text, style = column.cell(row)
            line.append((text.rjust(column.width) + "  ", style))
        return [*line, (sparkline(row.history, self._sparkline, self._symbols.levels), "green")]

    # --- above the rows ---------------------------------------------------------------------------------------------

    def program(self, program: Program) -> Line:
        snapshot, dot = program.snapshot, f" {self._symbols.dot} "
        if snapshot is None:
            return [(one_line(program.path), "bold")]
        name = [(_text(snapshot["name"]) or "(without a name)", "bold"), (f"{dot}pid {snapshot['pid']}", "")]
        if program.error:
            return [*name, (f"{dot}{one_line(program.path)}", "dim")]
        up = f"{dot}up {duration(snapshot['time'] - snapshot['started'])}{dot}{_text(snapshot['rings'])} rings"
        return [*name, (up, ""), (f"{dot}{one_line(program.path)}", "dim")]

    def trouble(self, program: Program) -> Line:
        error, since = one_line(program.error), program.lost_since
        if program.snapshot is not None and since is not None and not program.is_silent:
            error = f"dead for {duration(time.monotonic() - since)}: {error}"
        return [(f" {self._symbols.down} ", "bold red"), (error, "red")]

    def interface(self, snapshot: Snapshot, interface: InterfaceStats) -> list[Line]:
        """Return two lines: the name of an interface, and its state."""
        dot = f" {self._symbols.dot} "
        about = f"{dot}{_text(interface['mode'])}{dot}{_text(interface['socket'])}"
        return [[*self._title(interface), (about, "")], [("   ", ""), *self._state(snapshot, interface, dot)]]

    def folded(self, snapshot: Snapshot, interface: InterfaceStats) -> Line:
        """Return one line: the name of an interface, its state, and its socket."""
        dot = f" {self._symbols.dot} "
        state = self._state(snapshot, interface, dot)
        return [*self._title(interface), (dot, ""), *state, (f"{dot}{_text(interface['socket'])}", "dim")]

    def one_line(self, program: Program, snapshot: Snapshot, interface: InterfaceStats) -> Line:
        """Return one line: the id of an interface, its rates, and its state."""
        line = self._title(interface, with_name=False)
        width = sum(len(text) for text, _ in line)
        line.append((" " * (_TITLE - width), ""))
        for row in _each_direction(program, interface):
            packets, bits = _rate(row, "packets")[0], _rate(row, "bits")[0]
            style = "bold red" if row.share is not None and row.share >= _FULL else ""
            line.append((f"{row.name[:2]} {packets:>6} p/s {bits:>6} bit/s  ", style))
        dot = f" {self._symbols.dot} "
        name = f"{_text(interface['name'])}{dot}" if interface["name"] else ""
        return [*line, (name, "dim"), *self._state(snapshot, interface, dot)]

    def _title(self, interface: InterfaceStats, *, with_name: bool = True) -> Line:
        symbols, state = self._symbols, interface["state"]
        sign = {"connected": symbols.up, "connecting": symbols.between}.get(state, symbols.down)
        name = f" ({_text(interface['name'])})" if interface["name"] and with_name else ""
        title = f"memif {interface['id']} {_text(interface['role'])}"
        return [(f" {sign} ", _STATES.get(state, "")), (title, "bold"), (name, "")]

    def _state(self, snapshot: Snapshot, interface: InterfaceStats, dot: str) -> Line:
        line: Line = [(_state_name(interface), _STATES.get(interface["state"], ""))]
        since, peer = interface["connected_since"], interface["peer"]
        if interface["error"]:
            line.append((f": {_text(interface['error'])}", "red"))
        if since is not None:
            line.append((f" {duration(snapshot['time'] - since)}", ""))
        bad = sum(queue["bad_descriptors"] for queue in interface["queues"])
        again = sum(queue["repeated_kicks"] for queue in interface["queues"])
        for count, what, style in (
            (interface["disconnects"], "disconnect", ""),
            (interface["violations"], "violation", "red"),
            (bad, "bad descriptor", "red"),
            (again, "repeated kick", ""),
        ):
            if count:
                line.append((f"{dot}{count} {what}{'s' if count > 1 else ''}", style))
        if peer is not None and (peer["app_name"] or peer["name"]):
            line.append((f"{dot}peer {_text(peer['app_name']) or 'without a name'} ", ""))
            line.append((f"({_text(peer['name']) or 'no name'}, pid {peer['pid']})", "dim"))
        return line

    def switch(self, switch: SwitchStats) -> list[Line]:
        """Return a line for a switch, and one for each of its ports."""
        symbols, dot = self._symbols, f" {self._symbols.dot} "
        known = f"{len(switch['addresses'])} of {switch['limit']} addresses"
        found: list[Line] = [[("   switch", "bold"), (f"{dot}{len(switch['ports'])} ports{dot}{known}", "")]]
        for number, port in enumerate(switch["ports"], 1):
            count = port["addresses"]
            sign, style = (symbols.up, "green") if port["up"] else (symbols.down, "red")
            line: Line = [
                (f" {sign} ", style),
                (f"port {number}", "bold"),
                (f" {_text(port['name'])}{dot}{_text(port['vlans']) + dot if port['vlans'] else ''}", ""),
                (f"{count} address{'' if count == 1 else 'es'}{dot}{scaled(port['rx_packets'])} in", ""),
                (f"{dot}{scaled(port['tx_packets'])} out", ""),
            ]
            dropped = sum(loss["packets"] for loss in port["losses"])
            if dropped:
                line.append((f"{dot}{scaled(dropped)} dropped", "red"))
            found.append(line)
        return found


def _rate(row: Row, name: str) -> tuple[str, str]:
    if row.rates is None:
        return "-", "dim"
    return scaled(max(float(getattr(row.rates, name)), 0.0)), ""


def _growing(row: Row) -> bool:
    return row.rates is not None and row.rates.ring_full > 0


def _text(text: str) -> str:
    """Make a text of a program or its peer safe for the terminal, with at most 200 characters."""
    return one_line(text if len(text) <= 200 else text[:200])


def lines(
    programs: Sequence[Program], width: int, height: int | None, symbols: Symbols, view: View | None = None
) -> list[Line]:
    """Return all lines, with as much detail as fits into ``height`` lines (None: no limit).

    With little room the headers of interfaces get shorter first. Then all queues of a direction share a row. Then each
    interface has one line, with its rates. The user can scroll to lines that still do not fit.

    :param view: what to show. Its offset is limited to the last line.
    """
    view = View() if view is None else view
    table = Table(width, symbols)
    chosen = view.choose(programs)
    note = view.note(programs, chosen)
    room = None if height is None else height - len(note)
    found: list[Line] = []
    for style in (_whole, _folded, _summed_up, _one_line):
        found = [] if style is _one_line else [table.titles()]
        for program, interfaces in chosen:
            found += _program_lines(program, interfaces, table, style)
        if room is None or len(found) <= room:
            view.offset = 0
            return [*found, *note]
    assert room is not None
    return [*_scrolled(found, max(room, 2), symbols, view), *note]


def _scrolled(found: list[Line], room: int, symbols: Symbols, view: View) -> list[Line]:
    """Return the lines from the view's offset on, and a line that says what is hidden."""
    size = room - 1
    view.offset = max(0, min(view.offset, len(found) - size))
    end = view.offset + size
    hidden = f"{symbols.ellipsis} lines {view.offset + 1} to {end} of {len(found)}; the arrow keys scroll, / filters"
    return [*found[view.offset : end], [(hidden, "dim")]]


#: Returns the lines of one interface.
Style = Callable[["Table", Program, Snapshot, InterfaceStats], "list[Line]"]


def _program_lines(
    program: Program, interfaces: Sequence[InterfaceStats], table: Table, style: Style
) -> Iterator[Line]:
    yield table.program(program)
    if program.error:
        yield table.trouble(program)
    if program.snapshot is None:
        return
    for interface in interfaces:
        shown = style(table, program, program.snapshot, interface)
        # If a program does not answer, show its last snapshot dimmed.
        yield from (_dimmed(line) for line in shown) if program.error else shown
    switch = _switch_lines(program, table)
    yield from (_dimmed(line) for line in switch) if program.error else switch


def _switch_lines(program: Program, table: Table) -> list[Line]:
    snapshot = program.snapshot
    return [] if snapshot is None or "switch" not in snapshot else table.switch(snapshot["switch"])


def _dimmed(line: Line) -> Line:
    return [(text, "dim") for text, _ in line]


def _whole(table: Table, program: Program, snapshot: Snapshot, interface: InterfaceStats) -> list[Line]:
    return [*table.interface(snapshot, interface), *map(table.row, _each_queue(program, interface))]


def _folded(table: Table, program: Program, snapshot: Snapshot, interface: InterfaceStats) -> list[Line]:
    return [table.folded(snapshot, interface), *map(table.row, _each_queue(program, interface))]


def _summed_up(table: Table, program: Program, snapshot: Snapshot, interface: InterfaceStats) -> list[Line]:
    return [table.folded(snapshot, interface), *map(table.row, _each_direction(program, interface))]


def _one_line(table: Table, program: Program, snapshot: Snapshot, interface: InterfaceStats) -> list[Line]:
    return [table.one_line(program, snapshot, interface)]


def _each_queue(program: Program, interface: InterfaceStats) -> list[Row]:
    return [queue_row(program, interface, queue) for queue in interface["queues"]]


def _each_direction(program: Program, interface: InterfaceStats) -> list[Row]:
    return [row for direction in ("rx", "tx") if (row := direction_row(program, interface, direction))]


# --- what is shown, and in which order --------------------------------------------------------------------------------

#: The orders of interfaces: as they were created, by the highest value, or by name.
SORTS = ("created", "packets", "bits", "ring", "full", "name")


@dataclass(slots=True)
class View:
    """What the user wants to see.

    :ivar sort: one of :data:`SORTS`.
    :ivar filter: show only interfaces with this text, in any case, in their names, paths, peers or states.
    :ivar offset: the first line to show.
    :ivar typing: whether the user types the filter.
    """

    sort: str = SORTS[0]
    filter: str = ""
    offset: int = 0
    typing: bool = False

    def choose(self, programs: Sequence[Program]) -> list[tuple[Program, list[InterfaceStats]]]:
        """Return the programs and interfaces that the filter lets through, in order."""
        chosen = []
        for program in programs:
            interfaces = list(program.snapshot["interfaces"]) if program.snapshot else []
            if not self._matches(_program_text(program)):
                interfaces = [interface for interface in interfaces if self._matches(_interface_text(interface))]
                if not interfaces:
                    continue
            if self.sort != "created":
                interfaces.sort(key=lambda interface: self._key(program, interface))
            chosen.append((program, interfaces))
        if self.sort == "name":
            chosen.sort(key=lambda pair: pair[0].snapshot["name"] if pair[0].snapshot else pair[0].path)
        elif self.sort != "created":  # the program of the first interface first; those without interfaces last
            chosen.sort(key=lambda pair: self._key(pair[0], pair[1][0]) if pair[1] else (1.0, ""))
        return chosen

    def note(
        self, programs: Sequence[Program], chosen: Sequence[tuple[Program, Sequence[InterfaceStats]]]
    ) -> list[Line]:
        """Return a line that says what the filter hides; none without a filter."""
        if not self.filter and not self.typing:
            return []
        total = sum(len(program.snapshot["interfaces"]) for program in programs if program.snapshot)
        hidden = total - sum(len(interfaces) for _, interfaces in chosen)
        text = f"filter: {one_line(self.filter)}{'_' if self.typing else ''}"
        programs_hidden = len(programs) - len(chosen)
        what = f"{hidden} of {total} interfaces and {programs_hidden} of {len(programs)} programs are hidden"
        return [[(text, "bold"), (f"  ({what}; Esc shows all)", "dim")]]

    def press(self, keys: bytes, page: int) -> bool:
        """Handle the keys that were pressed.

        :param page: the lines of a page.
        :returns: whether one of them ends the program.
        """
        for key in _KEY.findall(keys):
            if self.typing and not (len(key) > 1 and key.startswith(b"\x1b")):
                self._type(key)
            elif key in (b"q", b"Q"):
                return True
            elif key == b"/":
                self.typing, self.filter = True, ""
            elif key == b"s":
                self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]
            elif key == b"\x1b":
                self.filter = ""
            else:
                self.offset = max(0, self.offset + _SCROLLS.get(key, 0) * (page if key in _PAGES else 1))
        return False

    def _type(self, key: bytes) -> None:
        if key in (b"\r", b"\n", b"\x1b"):
            self.typing = False
            if key == b"\x1b":
                self.filter = ""
        elif key in (b"\x7f", b"\b"):
            self.filter = self.filter[:-1]
        else:
            self.filter = (self.filter + key.decode(errors="ignore"))[:_LONGEST_FILTER]

    def _matches(self, text: str) -> bool:
        return self.filter.casefold() in text.casefold()

    def _key(self, program: Program, interface: InterfaceStats) -> tuple[float, str]:
        """Return the key to sort by: the highest value comes first."""
        if self.sort == "name":
            return 0.0, interface["name"]
        rows = _each_queue(program, interface)
        rates = [row.rates for row in rows if row.rates is not None]
        values = {
            "packets": sum(rate.packets for rate in rates),
            "bits": sum(rate.bits for rate in rates),
            "ring": max((row.share for row in rows if row.share is not None), default=0.0),
            "full": float(sum(row.ring_full for row in rows)),
        }
        return -values[self.sort], ""


#: Keys: an escape sequence, a character of UTF-8, or a byte.
_KEY = re.compile(rb"\x1b\[[0-9;]*[A-Za-z~]|\x1bO[A-Z]|[\xc2-\xf4][\x80-\xbf]+|[\x00-\xff]")
_PAGES = (b"\x1b[5~", b"\x1b[6~", b" ")
_FAR = 1 << 30
_SCROLLS = {
    b"\x1b[A": -1, b"\x1bOA": -1, b"k": -1, b"\x1b[B": 1, b"\x1bOB": 1, b"j": 1,
    b"\x1b[5~": -1, b"\x1b[6~": 1, b" ": 1,
    b"\x1b[H": -_FAR, b"\x1b[1~": -_FAR, b"g": -_FAR, b"\x1b[F": _FAR, b"\x1b[4~": _FAR, b"G": _FAR,
}  # fmt: skip
_LONGEST_FILTER = 100


def _program_text(program: Program) -> str:
    return f"{program.snapshot['name'] if program.snapshot else ''} {program.path}"


def _interface_text(interface: InterfaceStats) -> str:
    peer = interface["peer"]
    words = [f"memif {interface['id']} {interface['role']}", interface["name"], interface["mode"], interface["socket"]]
    words += [_state_name(interface), interface["error"]]
    return " ".join(words + ([peer["app_name"], peer["name"]] if peer else []))


def _state_name(interface: InterfaceStats) -> str:
    """Return the state in words. An interface that never had a peer is not called disconnected."""
    if interface["state"] == "disconnected" and not interface["connects"]:
        return "waiting for a peer" if interface["role"] == "master" else "no peer yet"
    return _text(interface["state"])


# --- the table and JSON ---------------------------------------------------------------------------------------------


def plain(line: Line) -> str:
    return "".join(text for text, _ in line).rstrip()


def as_json(program: Program) -> str:
    """Return one line of JSON: the path, the error, and the snapshot with the ``rates`` of each queue."""
    snapshot = program.snapshot if not program.error else None
    interfaces = [
        {
            **interface,
            "queues": [
                {**queue, "rates": _rates_json(program, queue_key(interface, queue))} for queue in interface["queues"]
            ],
        }
        for interface in (snapshot["interfaces"] if snapshot else ())
    ]
    stats = {**snapshot, "interfaces": interfaces} if snapshot else None
    return json.dumps({"path": program.path, "error": program.error, "stats": stats})


def _rates_json(program: Program, key: QueueKey) -> dict[str, float] | None:
    rates = program.rates.get(key)
    return None if rates is None else asdict(rates)


def once(
    observer: Observer, interval: float, stop: int, *, as_lines_of_json: bool, width: int, view: View | None = None
) -> int:
    """Take two snapshots ``interval`` seconds apart and print the result. Return 0 if every program answered."""
    for turn in range(2):
        if turn and observer.pause(interval, stop):
            return 130
        observer.ask()
        observer.wait(_PATIENCE, stop)
    if as_lines_of_json:
        _print(map(as_json, observer.programs))
    else:
        symbols = UNICODE if _speaks_unicode() else ASCII
        _print(map(plain, lines(observer.programs, width, None, symbols, view)))
    return int(any(program.error or program.snapshot is None for program in observer.programs))


def _print(text: Iterable[str]) -> None:
    for line in text:
        print(line, flush=True)


def _speaks_unicode() -> bool:
    try:
        "".join(asdict(UNICODE).values()).encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


# --- the live screen ------------------------------------------------------------------------------------------------


def live(observer: Observer, interval: float, stop: int, view: View | None = None) -> None:
    """Draw the screen every ``interval`` seconds and after each key, until q is pressed or ``stop`` is readable."""
    from rich.console import Console
    from rich.live import Live

    view = View() if view is None else view
    console = Console(highlight=False, markup=False, emoji=False)
    symbols = UNICODE if _speaks_unicode() else ASCII
    with _keys() as keys, Live(console=console, screen=True, auto_refresh=False) as screen:
        also = (stop, *keys)
        while True:
            started = time.monotonic()
            observer.ask()
            ready = observer.wait(min(interval, _PATIENCE), *also)
            left = interval
            while left > 0:
                if stop in ready or any(_press(view, key, console.height - 3) for key in keys if key in ready):
                    return
                text = picture(observer.programs, interval, console.width, console.height, symbols, view)
                screen.update(text, refresh=True)
                left = started + interval - time.monotonic()
                ready = observer.pause(left, *also)


def picture(
    programs: Sequence[Program], interval: float, width: int, height: int, symbols: Symbols, view: View | None = None
) -> Text:
    """Return the screen as a text of rich."""
    from rich.text import Text

    view = View() if view is None else view
    clock = time.strftime("%H:%M:%S")
    keys = f"q quits, s sorts ({view.sort}), / filters"
    head: Line = [("memifrt top", "bold"), (f"  {clock}  every {interval:g} s  ", ""), (keys, "dim")]
    # Pieces with styles, never markup: the name of a peer must not be read as a style.
    painted = [Text.assemble(*line) for line in [head, *lines(programs, width, max(height - 1, 2), symbols, view)]]
    return Text("\n", no_wrap=True, overflow="ellipsis" if symbols is UNICODE else "crop").join(painted)


@contextlib.contextmanager
def _keys() -> Iterator[tuple[int, ...]]:
    """Read standard input key by key. Yield its fd, or nothing if it is not a terminal."""
    if not sys.stdin.isatty():
        yield ()
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield (fd,)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _press(view: View, fd: int, page: int) -> bool:
    """Read the pressed keys; return whether one of them ends the program, or the input has ended."""
    keys = os.read(fd, 64)
    return not keys or view.press(keys, max(page, 1))


# --- the page in the browser -----------------------------------------------------------------------------------------


def serve_page(observer: Observer, endpoint: str, interval: float, stop: int) -> None:
    """Serve what the programs say as a page for browsers, until ``stop`` is readable."""
    from memifrt.stats.web import standalone_page

    with standalone_page(lambda: list(map(_program_stats, observer.programs)), endpoint, interval) as page:
        complain(f"memifrt top: page on {page.url}")
        while not _publish_once(observer, page, interval, stop):
            pass


def _publish_once(observer: Observer, page: StandalonePage, interval: float, stop: int) -> bool:
    """Ask the programs, publish as soon as all have answered, and handle the page's events until the next turn.

    :returns: whether ``stop`` is readable.
    """
    end = time.monotonic() + interval
    published = False
    observer.ask()
    while (left := end - time.monotonic()) > 0:
        ready = (observer.pause if published else observer.wait)(left, stop, page.fileno())
        if stop in ready:
            return True
        page.handle_events()
        if not published and not any(program.waiting for program in observer.programs):
            page.publish()
            published = True
    if not published:
        page.publish()
    return False


def _program_stats(program: Program) -> ProgramStats:
    return {"path": program.path, "error": program.error, "stats": program.snapshot}


# --- the command line ------------------------------------------------------------------------------------------------


def _add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "paths",
        nargs="+",
        type=checked(socket_path),
        metavar="PATH",
        help="stats socket of a program (its --stats, or Runtime(stats_socket=...)), @name, or a quoted pattern with "
        "* or ?, which also finds programs that start later",
    )
    add("-i", type=seconds, default=1.0, dest="interval", metavar="SECONDS", help="between two snapshots; default 1")
    add(
        "--sort",
        choices=SORTS,
        default=SORTS[0],
        metavar="KEY",
        help=f"the order of interfaces: {', '.join(SORTS)}; default {SORTS[0]}",
    )
    add(
        "--filter",
        type=_filter,
        metavar="TEXT",
        help="show only interfaces and programs with this text in a name, path, peer or state",
    )
    add("--once", action="store_true", help="print one table, from two snapshots, and exit")
    add("--json", action="store_true", help="print one line of JSON for each program and snapshot")
    add_web_argument(add)


def _filter(text: str) -> str:
    if not 0 < len(text) <= _LONGEST_FILTER:
        raise argparse.ArgumentTypeError(f"{text!r} is not a filter; it must have 1 to {_LONGEST_FILTER} characters")
    return text


def _run(arguments: argparse.Namespace) -> int:
    if arguments.web is not None and (arguments.once or arguments.json):
        complain(f"memifrt top: --web {arguments.web} serves a page until Ctrl+C: leave out --once and --json")
        return 2
    is_live = not arguments.once and not arguments.json and arguments.web is None
    if is_live and importlib.util.find_spec("rich") is None:
        complain("memifrt top: the live screen needs rich: pip install 'memifrt[cli]' (--once and --json do not)")
        return 2
    if is_live and not sys.stdout.isatty():
        complain("memifrt top: standard output is not a terminal: use --once or --json")
        return 2
    stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        with observing(arguments.paths) as observer, signals_to(lambda: os.eventfd_write(stop, 1)):
            return _watch(observer, arguments, stop, is_live=is_live)
    finally:
        os.close(stop)


def _watch(observer: Observer, arguments: argparse.Namespace, stop: int, *, is_live: bool) -> int:
    view = View(arguments.sort, arguments.filter or "")
    if arguments.once:
        width = shutil.get_terminal_size((_WIDE, 0)).columns  # COLUMNS counts, too
        status = once(observer, arguments.interval, stop, as_lines_of_json=arguments.json, width=width, view=view)
        if not status and not observer.programs:
            complain(f"memifrt top: nothing matches {' '.join(arguments.paths)}: start a program with --stats PATH")
            return 1
        return status
    if arguments.web is not None:
        serve_page(observer, arguments.web, arguments.interval, stop)
        return 0
    if is_live:
        live(observer, arguments.interval, stop, view)
        return 0
    while True:
        observer.ask()
        if stop in observer.wait(min(arguments.interval, _PATIENCE), stop):
            return 0
        _print(map(as_json, observer.programs))
        if observer.pause(arguments.interval, stop):
            return 0


COMMAND = Command(
    "top",
    "show the interfaces of running programs: rates, rings, drops, interrupts",
    """example, with a program in another terminal (memifrt responder --stats /run/lab.stats --socket @lab):
  memifrt top /run/lab.stats
  memifrt top '/run/*.stats' -i 0.5
  memifrt top --once --json /run/lab.stats
  memifrt top --web 8080 '/run/*.stats'

ring used: slots that the sender cannot fill; full: calls that found too little room; irq/s: kicks received (rx) or
sent (tx).

keys: q or Ctrl+C ends it; s changes the order; / filters (Enter ends the input, Esc shows all); the arrow keys,
Page Up, Page Down, Home and End scroll.
--web serves the same as a page on http://127.0.0.1:8080/ instead of the screen.

exit status of --once: 0 if every program answered, 1 if one did not, 2 on other errors""",
    _add_arguments,
    _run,
)
