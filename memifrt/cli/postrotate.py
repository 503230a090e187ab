"""Run a command on each finished file of a capture: ``dump -z``.

Owns the child processes. No shell is involved. The commands run beside the capture, with the lowest priority.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
from collections import deque
from collections.abc import Sequence

from memifrt.cli.program import complain
from memifrt.errors import ConfigError, os_error

#: The most commands at the same time. More files wait for their turn.
_AT_ONCE = 4
#: The most files that wait: a command that is too slow must not make a long capture grow.
_MOST_WAITING = 10_000
#: Seconds to wait at the end for each command that still runs.
_PATIENCE = 30.0
_LOWEST_PRIORITY = 19


def parse_command(text: str) -> tuple[str, ...]:
    """Parse ``-z``: a program and its arguments, quoted as in a shell.

    :raises ConfigError: it is empty or badly quoted, or there is no such program.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{text!r}: {error}; it must be a program and its arguments, like: gzip -9") from error
    if not words:
        raise ConfigError(f"{text!r}: it must be a program and its arguments, like: gzip -9")
    if shutil.which(words[0]) is None:
        raise ConfigError(f"{text!r}: there is no program {words[0]!r}; give its path, or a name that PATH finds")
    return tuple(words)


class PostRotation:
    """Runs the command, with the path of a file as its last argument, for each file that is passed to it."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._waiting: deque[str] = deque()
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def add(self, path: str) -> None:
        """Run the command on this file, now or when others have ended. Say so if too many files wait for it.

        :raises MemifOSError: the command cannot be started.
        """
        if not self._command:
            return
        self.poll()
        if len(self._waiting) >= _MOST_WAITING:
            waiting = f"{self._command[0]} is too slow: {_MOST_WAITING} files wait for it"
            complain(f"memifrt dump: {waiting}; not running it on {path}")
            return
        self._waiting.append(path)
        self.poll()

    def poll(self) -> None:
        """Collect the commands that have ended, and start those that wait."""
        for path, process in self._running:
            if process.poll() is not None:
                self._report(path, process)
        self._running = [one for one in self._running if one[1].returncode is None]
        while self._waiting and len(self._running) < _AT_ONCE:
            self._start(self._waiting.popleft())

    def wait_for(self, path: str) -> None:
        """Wait until no command needs this file any more, because it is about to be written anew.

        This holds up the capture. Otherwise the command would read half of each file, or remove the new one.
        """
        if path in self._waiting:
            self._waiting.remove(path)
            self._start(path)
        for one in [one for one in self._running if one[0] == path]:
            self._wait(*one)

    def close(self) -> None:
        """Run the command on the files that wait, and wait for all commands, but for each only a limited time."""
        while self._running or self._waiting:
            self.poll()
            if not self._running:
                continue
            self._wait(*self._running[0])

    def _wait(self, path: str, process: subprocess.Popen[bytes]) -> None:
        self._running.remove((path, process))
        try:
            process.wait(_PATIENCE)
            self._report(path, process)
        except subprocess.TimeoutExpired:
            complain(f"memifrt dump: {self._command[0]} {path} still runs as process {process.pid}; not waiting")
            process.returncode = 0  # nobody collects it, and Popen must not warn of that

    def _start(self, path: str) -> None:
        try:
            # In a session of its own, so that Ctrl+C ends the capture and not the compression of its files.
            process = subprocess.Popen([*self._command, path], stdin=subprocess.DEVNULL, start_new_session=True)
        except OSError as error:
            raise os_error(f"cannot run {self._command[0]}", error, path=self._command[0]) from error
        with contextlib.suppress(OSError):  # it has ended already
            os.setpriority(os.PRIO_PROCESS, process.pid, _LOWEST_PRIORITY)
        self._running.append((path, process))

    def _report(self, path: str, process: subprocess.Popen[bytes]) -> None:
        if process.returncode:
            how = f"status {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
            complain(f"memifrt dump: {' '.join(self._command)} {path} ended with {how}")
