"""Show the progress of a command on standard error.

With rich (``memifrt[cli]``) this is a bar or a line that changes. Without rich it is a line every few seconds. If
standard error is not a terminal, nothing is shown, or a line every few seconds if the command asks for it.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from memifrt.cli.program import complain

if TYPE_CHECKING:
    from typing_extensions import Self

#: Seconds between two updates of a bar, and between two plain lines.
_OFTEN, _NOW_AND_THEN = 0.1, 5.0


class Progress:
    """Shows progress between entering and leaving it as a context manager. This base class shows nothing.

    :ivar due: the ``time.monotonic()`` at which the next update would be shown. Fast callers check it first.
    """

    due = float("inf")

    def update(self, text: str, done: int = 0) -> None:
        """Show a text.

        :param done: how much of the total is done, if there is a total.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Restore the terminal."""


def progress(command: str, total: int = 0, *, plain: bool = False) -> Progress:
    """Return the best display that standard error supports.

    :param total: the value of ``done`` at the end; 0 if it is not known.
    :param plain: whether to print lines if standard error is not a terminal; otherwise nothing is shown there.
    """
    if not sys.stderr.isatty():
        return _Lines(command, total) if plain else Progress()
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
            auto_refresh=False,  # automatic refresh needs a thread, which takes time from packets and is lost in a fork
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
