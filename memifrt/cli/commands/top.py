"""``memifrt top``: show the interfaces of running programs as a live screen, a table, JSON, or a page for browsers.

Gets all data from :mod:`memifrt.stats.client`; :mod:`memifrt.cli.top` draws the table and the live screen.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from memifrt.cli.arguments import Command, Parser, add_web_argument, checked, seconds, socket_path
from memifrt.cli.program import complain, signals_to, status_of_signal
from memifrt.cli.top.drawing import ASCII, UNICODE, plain
from memifrt.cli.top.screen import PATIENCE, live, speaks_unicode
from memifrt.cli.top.table import WIDE, lines
from memifrt.cli.top.view import LONGEST_FILTER, SORTS, View
from memifrt.stats.client import Observer, Program, QueueKey, observing, queue_key

if TYPE_CHECKING:
    from memifrt.stats.web import ProgramStats, StandalonePage


# --- the table and JSON ---------------------------------------------------------------------------------------------


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
            return status_of_signal()
        observer.ask()
        observer.wait(PATIENCE, stop)
    if as_lines_of_json:
        _print(map(as_json, observer.programs))
    else:
        symbols = UNICODE if speaks_unicode() else ASCII
        _print(map(plain, lines(observer.programs, width, None, symbols, view)))
    return int(any(program.error or program.snapshot is None for program in observer.programs))


def _print(text: Iterable[str]) -> None:
    for line in text:
        print(line, flush=True)


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
    if not 0 < len(text) <= LONGEST_FILTER:
        raise argparse.ArgumentTypeError(f"{text!r} is not a filter; it must have 1 to {LONGEST_FILTER} characters")
    return text


def _run(arguments: argparse.Namespace) -> int:
    if arguments.web is not None and (arguments.once or arguments.json):
        complain(f"memifrt top: --web {arguments.web} serves a page until Ctrl+C: leave out --once and --json")
        return 2
    if arguments.web is not None or arguments.json:
        why = (
            "on the page, which shows everything"
            if arguments.web is not None
            else "with --json, which prints everything"
        )
        arguments.parser.refuse_given(["--sort", "--filter"], why)
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
        width = shutil.get_terminal_size((WIDE, 0)).columns  # COLUMNS counts, too
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
        if stop in observer.wait(min(arguments.interval, PATIENCE), stop):
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

ring used: slots that the sender cannot fill; full: calls that found too
little room; irq/s: kicks received (rx) or sent (tx).

keys: q or Ctrl+C ends it; s changes the order; / filters (Enter ends the
input, Esc shows all); the arrow keys, Page Up, Page Down, Home and End scroll.

--web serves the same as a page on http://127.0.0.1:8080/ instead of the screen.

exit status of --once: 0 if every program answered, 1 if one did not, 2 on other errors""",
    _add_arguments,
    _run,
)
