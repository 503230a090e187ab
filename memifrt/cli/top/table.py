"""The lines of ``memifrt top``: the columns that fit, and as much detail as the screen has room for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from memifrt import columns
from memifrt.cli.program import one_line
from memifrt.cli.top.drawing import Line, Symbols, bar, duration, safe_text, scaled, sparkline
from memifrt.cli.top.rows import Row, each_direction, each_queue, state_name
from memifrt.cli.top.view import View
from memifrt.stats.client import Program
from memifrt.stats.snapshot import InterfaceStats, Snapshot
from memifrt.stats.switch import SwitchStats

#: Width of the bar for a ring, in columns.
_BAR = 8
#: The widths from which the table shows totals, and all columns.
WIDE, _WIDER = 110, 150
_SHORTEST_SPARKLINE, _LONGEST_SPARKLINE = 8, 120
#: The width of the first column if each interface has one line.
_TITLE = 18
#: The share of used slots from which a ring will soon drop packets.
FULL = 0.9

# Only named colours: the theme of the terminal adapts them to dark and light backgrounds.
_STATES = {"connected": "bold green", "connecting": "bold cyan", "disconnected": "bold red"}


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
        yield Column("queue", 6, lambda row: (columns.left(row.name, 6), "bold"))
        yield Column("packet/s", 8, lambda row: rate(row, "packets"))
        yield Column("bit/s", 7, lambda row: rate(row, "bits"))
        yield Column("ring used", _BAR + 5, self._ring)
        yield Column("irq/s", 6, lambda row: rate(row, "interrupts"))
        yield Column("full", 6, lambda row: (scaled(row.ring_full), "red" if _growing(row) else ""))
        if width >= WIDE:
            yield Column("packets", 8, lambda row: (scaled(row.packets), ""))
            yield Column("bytes", 8, lambda row: (scaled(row.bytes), ""))
        if width >= _WIDER:
            yield Column("slots", 5, lambda row: (str(row.ring_size), ""))
            yield Column("bad", 5, lambda row: (scaled(row.bad_descriptors), "red" if row.bad_descriptors else ""))
            yield Column("rx mode", 9, lambda row: (row.rx_mode or "-", ""))

    def _ring(self, row: Row) -> tuple[str, str]:
        if row.share is None:
            return "-", "dim"
        style = "bold red" if row.share >= FULL else "cyan"
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
            line.append((columns.right(text, column.width) + "  ", style))
        return [*line, (sparkline(row.history, self._sparkline, self._symbols.levels), "green")]

    # --- above the rows ---------------------------------------------------------------------------------------------

    def program(self, program: Program) -> Line:
        snapshot, dot = program.snapshot, f" {self._symbols.dot} "
        if snapshot is None:
            return [(one_line(program.path), "bold")]
        name = [(safe_text(snapshot["name"]) or "(without a name)", "bold"), (f"{dot}pid {snapshot['pid']}", "")]
        if program.error:
            return [*name, (f"{dot}{one_line(program.path)}", "dim")]
        up = f"{dot}up {duration(snapshot['time'] - snapshot['started'])}{dot}{safe_text(snapshot['rings'])} rings"
        return [*name, (up, ""), (f"{dot}{one_line(program.path)}", "dim")]

    def trouble(self, program: Program) -> Line:
        error, since = one_line(program.error), program.lost_since
        if program.snapshot is not None and since is not None and not program.is_silent:
            error = f"dead for {duration(time.monotonic() - since)}: {error}"
        return [(f" {self._symbols.down} ", "bold red"), (error, "red")]

    def interface(self, snapshot: Snapshot, interface: InterfaceStats) -> list[Line]:
        """Return two lines: the name of an interface, and its state."""
        dot = f" {self._symbols.dot} "
        about = f"{dot}{safe_text(interface['mode'])}{dot}{safe_text(interface['socket'])}"
        return [[*self._title(interface), (about, "")], [("   ", ""), *self._state(snapshot, interface, dot)]]

    def folded(self, snapshot: Snapshot, interface: InterfaceStats) -> Line:
        """Return one line: the name of an interface, its state, and its socket."""
        dot = f" {self._symbols.dot} "
        state = self._state(snapshot, interface, dot)
        return [*self._title(interface), (dot, ""), *state, (f"{dot}{safe_text(interface['socket'])}", "dim")]

    def one_line(self, program: Program, snapshot: Snapshot, interface: InterfaceStats) -> Line:
        """Return one line: the id of an interface, its rates, and its state."""
        line = self._title(interface, with_name=False)
        line.append((" " * (_TITLE - sum(columns.width(text) for text, _ in line)), ""))
        for row in each_direction(program, interface):
            packets, bits = rate(row, "packets")[0], rate(row, "bits")[0]
            style = "bold red" if row.share is not None and row.share >= FULL else ""
            line.append((f"{row.name[:2]} {packets:>6} p/s {bits:>6} bit/s  ", style))
        dot = f" {self._symbols.dot} "
        name = f"{safe_text(interface['name'])}{dot}" if interface["name"] else ""
        return [*line, (name, "dim"), *self._state(snapshot, interface, dot)]

    def _title(self, interface: InterfaceStats, *, with_name: bool = True) -> Line:
        symbols, state = self._symbols, interface["state"]
        sign = {"connected": symbols.up, "connecting": symbols.between}.get(state, symbols.down)
        name = f" ({safe_text(interface['name'])})" if interface["name"] and with_name else ""
        title = f"memif {interface['id']} {safe_text(interface['role'])}"
        return [(f" {sign} ", _STATES.get(state, "")), (title, "bold"), (name, "")]

    def _state(self, snapshot: Snapshot, interface: InterfaceStats, dot: str) -> Line:
        line: Line = [(state_name(interface), _STATES.get(interface["state"], ""))]
        since, peer = interface["connected_since"], interface["peer"]
        if interface["error"]:
            line.append((f": {safe_text(interface['error'])}", "red"))
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
            line.append((f"{dot}peer {safe_text(peer['app_name']) or 'without a name'} ", ""))
            process = f"pid {peer['pid']}" if peer["pid"] else "in another process namespace"
            line.append((f"({safe_text(peer['name']) or 'no name'}, {process})", "dim"))
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
                (f" {safe_text(port['name'])}{dot}{safe_text(port['vlans']) + dot if port['vlans'] else ''}", ""),
                (f"{count} address{'' if count == 1 else 'es'}{dot}{scaled(port['rx_packets'])} in", ""),
                (f"{dot}{scaled(port['tx_packets'])} out", ""),
            ]
            dropped = sum(loss["packets"] for loss in port["losses"])
            if dropped:
                line.append((f"{dot}{scaled(dropped)} dropped", "red"))
            found.append(line)
        return found


def rate(row: Row, name: str) -> tuple[str, str]:
    if row.rates is None:
        return "-", "dim"
    return scaled(max(float(getattr(row.rates, name)), 0.0)), ""


def _growing(row: Row) -> bool:
    return row.rates is not None and row.rates.ring_full > 0


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
    return [*table.interface(snapshot, interface), *map(table.row, each_queue(program, interface))]


def _folded(table: Table, program: Program, snapshot: Snapshot, interface: InterfaceStats) -> list[Line]:
    return [table.folded(snapshot, interface), *map(table.row, each_queue(program, interface))]


def _summed_up(table: Table, program: Program, snapshot: Snapshot, interface: InterfaceStats) -> list[Line]:
    return [table.folded(snapshot, interface), *map(table.row, each_direction(program, interface))]


def _one_line(table: Table, program: Program, snapshot: Snapshot, interface: InterfaceStats) -> list[Line]:
    return [table.one_line(program, snapshot, interface)]
