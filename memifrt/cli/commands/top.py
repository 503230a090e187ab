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
        return [(f" {self._symbols.down} ", "bold red"), (one_line(program.error), "red")]

    def interface(self, snapshot: Snapshot, interface: InterfaceStats) -> list[Line]:
        """Return two lines: the name of an interface, and its state."""
        symbols, state = self._symbols, _text(interface["state"])
        dot = f" {symbols.dot} "
        sign = {"connected": symbols.up, "connecting": symbols.between}.get(state, symbols.down)
        name = f" ({_text(interface['name'])})" if interface["name"] else ""
        title: Line = [
            (f" {sign} ", _STATES.get(state, "")),
            (f"memif {interface['id']} {_text(interface['role'])}", "bold"),
            (f"{name}{dot}{_text(interface['mode'])}{dot}{_text(interface['socket'])}", ""),
        ]
        return [title, [("   ", ""), *self._state(snapshot, interface, state, dot)]]

    def _state(self, snapshot: Snapshot, interface: InterfaceStats, state: str, dot: str) -> Line:
        line: Line = [(state, _STATES.get(state, ""))]
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
            line.append((f"{dot}peer {_text(peer['app_name'])} ", ""))
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


def lines(programs: Sequence[Program], width: int, height: int | None, symbols: Symbols) -> list[Line]:
    """Return all lines, with as much detail as fits into ``height`` lines (None: no limit).

    Each queue has a row, or all queues of a direction share one, or queues are left out.
    """
    table = Table(width, symbols)
    found: list[Line] = []
    for rows in (_each_queue, _each_direction, _no_queues):
        found = [] if rows is _no_queues else [table.titles()]
        for program in programs:
            found += _program_lines(program, table, rows)
        if height is None or len(found) <= height:
            return found
    last = (height or 1) - 1
    return [*found[:last], [(f"{symbols.ellipsis} {len(found) - last} lines do not fit into this terminal", "dim")]]


def _program_lines(
    program: Program, table: Table, rows: Callable[[Program, InterfaceStats], list[Row]]
) -> Iterator[Line]:
    yield table.program(program)
    if program.error:
        yield table.trouble(program)
    if program.snapshot is None:
        return
    for interface in program.snapshot["interfaces"]:
        shown = [*table.interface(program.snapshot, interface), *map(table.row, rows(program, interface))]
        # If a program does not answer, show its last snapshot dimmed.
        yield from (_dimmed(line) for line in shown) if program.error else shown
    switch = _switch_lines(program, table)
    yield from (_dimmed(line) for line in switch) if program.error else switch


def _switch_lines(program: Program, table: Table) -> list[Line]:
    snapshot = program.snapshot
    return [] if snapshot is None or "switch" not in snapshot else table.switch(snapshot["switch"])


def _dimmed(line: Line) -> Line:
    return [(text, "dim") for text, _ in line]


def _each_queue(program: Program, interface: InterfaceStats) -> list[Row]:
    return [queue_row(program, interface, queue) for queue in interface["queues"]]


def _each_direction(program: Program, interface: InterfaceStats) -> list[Row]:
    return [row for direction in ("rx", "tx") if (row := direction_row(program, interface, direction))]


def _no_queues(program: Program, interface: InterfaceStats) -> list[Row]:
    return []


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


def once(observer: Observer, interval: float, stop: int, *, as_lines_of_json: bool, width: int) -> int:
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
        _print(map(plain, lines(observer.programs, width, None, symbols)))
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


def live(observer: Observer, interval: float, stop: int) -> None:
    """Draw the screen every ``interval`` seconds, until q is pressed or ``stop`` is readable."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, markup=False, emoji=False)
    symbols = UNICODE if _speaks_unicode() else ASCII
    with _keys() as keys, Live(console=console, screen=True, auto_refresh=False) as screen:
        also = (stop, *keys)
        while True:
            started = time.monotonic()
            observer.ask()
            ready = observer.wait(min(interval, _PATIENCE), *also)
            screen.update(picture(observer.programs, interval, console.width, console.height, symbols), refresh=True)
            while not ready and time.monotonic() < started + interval:
                ready = observer.pause(started + interval - time.monotonic(), *also)
            if stop in ready or any(_is_quit(key) for key in keys if key in ready):
                return


def picture(programs: Sequence[Program], interval: float, width: int, height: int, symbols: Symbols) -> Text:
    """Return the screen as a text of rich."""
    from rich.text import Text

    clock = time.strftime("%H:%M:%S")
    head: Line = [("memifrt top", "bold"), (f"  {clock}  every {interval:g} s  ", ""), ("q quits", "dim")]
    # Pieces with styles, never markup: the name of a peer must not be read as a style.
    painted = [Text.assemble(*line) for line in [head, *lines(programs, width, max(height - 1, 2), symbols)]]
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


def _is_quit(fd: int) -> bool:
    """Read the pressed keys; return whether one is q, or the input has ended."""
    keys = os.read(fd, 64)
    return not keys or b"q" in keys.lower()


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
    add("--once", action="store_true", help="print one table, from two snapshots, and exit")
    add("--json", action="store_true", help="print one line of JSON for each program and snapshot")
    add_web_argument(add)


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
    if arguments.once:
        width = os.get_terminal_size().columns if sys.stdout.isatty() else _WIDE
        status = once(observer, arguments.interval, stop, as_lines_of_json=arguments.json, width=width)
        if not status and not observer.programs:
            complain(f"memifrt top: nothing matches {' '.join(arguments.paths)}: start a program with --stats PATH")
            return 1
        return status
    if arguments.web is not None:
        serve_page(observer, arguments.web, arguments.interval, stop)
        return 0
    if is_live:
        live(observer, arguments.interval, stop)
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
sent (tx). q or Ctrl+C ends it.
--web serves the same as a page on http://127.0.0.1:8080/ instead of the screen.

exit status of --once: 0 if every program answered, 1 if one did not, 2 on other errors""",
    _add_arguments,
    _run,
)
