"""How far a command has come, on standard error, for who watches it there.

With rich (``memifrt[cli]``) a bar or a running line, without it a line now and then, and nothing at all where standard
error is no terminal.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from memifrt.cli.program import complain

if TYPE_CHECKING:
    from typing_extensions import Self

#: Seconds between two updates of a bar, and of plain lines.
_OFTEN, _NOW_AND_THEN = 0.1, 5.0


class Progress:
    """A context manager; outside of it nothing is shown. This one shows nothing inside either.

    :ivar due: ``time.monotonic()`` from which on an update would be shown. Callers that count fast look here first.
    """

    due = float("inf")

    def update(self, text: str, done: int = 0) -> None:
        """Show this.

        :param done: of the total, if there is one.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the terminal as it was."""


def progress(command: str, total: int = 0) -> Progress:
    """The best that standard error has room for.

    :param total: what ``done`` reaches at the end, 0 if nobody knows.
    """
    if not sys.stderr.isatty():
        return Progress()
    try:
        return _Bar(command, total)
    except ImportError:
        return _Lines(command, total)


class _Lines(Progress):
    def __init__(self, command: str, total: int) -> None:
        self._command = command
        self._total = total
        self.due = time.monotonic() + _NOW_AND_THEN

    def update(self, text: str, done: int = 0) -> None:
        self.due = time.monotonic() + _NOW_AND_THEN
        share = f" ({min(100 * done // self._total, 100)} %)" if self._total else ""
        complain(f"memifrt {self._command}: {text}{share}")


class _Bar(Progress):
    def __init__(self, command: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        middle = (BarColumn(), TextColumn("{task.percentage:3.0f} %")) if total else ()
        times = (TimeRemainingColumn() if total else TimeElapsedColumn(),)
        self._progress = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.fields[command]}"),
            *middle,
            TextColumn("{task.description}"),
            *times,
            console=Console(stderr=True),
            auto_refresh=False,  # by a thread, which would outlive a fork and take time from the packets
            transient=True,
        )
        self._task = self._progress.add_task("", total=total or None, command=command)
        self.due = 0.0

    def update(self, text: str, done: int = 0) -> None:
        self.due = time.monotonic() + _OFTEN
        self._progress.update(self._task, description=text, completed=done)
        self._progress.refresh()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
