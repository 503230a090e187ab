"""The live screen of ``memifrt top``, and its keys. Needs rich, which is imported where it is used."""

from __future__ import annotations

import contextlib
import os
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from memifrt.cli.top.drawing import ASCII, UNICODE, Line, Symbols
from memifrt.cli.top.table import lines
from memifrt.cli.top.view import View
from memifrt.stats.client import Observer, Program

if TYPE_CHECKING:
    from rich.text import Text

#: The most seconds to wait for programs that do not answer.
PATIENCE = 1.0


def speaks_unicode() -> bool:
    try:
        "".join(asdict(UNICODE).values()).encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def live(observer: Observer, interval: float, stop: int, view: View | None = None) -> None:
    """Draw the screen every ``interval`` seconds and after each key, until q is pressed or ``stop`` is readable."""
    from rich.console import Console
    from rich.live import Live

    view = View() if view is None else view
    console = Console(highlight=False, markup=False, emoji=False)
    symbols = UNICODE if speaks_unicode() else ASCII
    with _keys() as keys, Live(console=console, screen=True, auto_refresh=False) as screen:
        also = (stop, *keys)
        while True:
            started = time.monotonic()
            observer.ask()
            ready = observer.wait(min(interval, PATIENCE), *also)
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
