"""A program that a test talks to: started, listened to and surely ended.

Owns the process, its output, and the messages of what it did not do. Knows nothing of memif.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

#: Seconds that a program gets to end by itself before it is killed.
_GRACE = 5.0
#: Lines of its output that a message shows.
_LINES = 20


class PeerError(AssertionError):
    """A peer did not start, ended, or did not answer. The message has the end of its output."""


class PeerMissing(Exception):
    """A peer is not installed here. The message says how to get it. The fixtures skip the test."""


def find_program(name: str, variable: str, how: str) -> str:
    """Return the path of a program.

    :param variable: an environment variable that may name it.
    :param how: how to get the program.
    :raises PeerMissing: it is not on ``PATH``, and the variable is not set.
    :raises PeerError: the variable does not name a program.
    """
    if chosen := os.environ.get(variable):
        found = shutil.which(chosen)
        if found is None:
            raise PeerError(f"{variable} is {chosen!r}, which is no program; it must be the path of {name}")
        return found
    found = shutil.which(name)
    if found is None:
        raise PeerMissing(f"{name} is not on PATH: {how}, or set {variable} to its path")
    return found


class Peer:
    """A process, and a thread that collects its output.

    :param name: its name for messages and files.
    :param with_input: whether its standard input is a pipe, for :meth:`tell`. It ends with us.
    """

    def __init__(self, name: str, command: list[str], *, with_input: bool = False) -> None:
        self.name = name
        self.command = command
        self._with_input = with_input
        self._process: subprocess.Popen[bytes] | None = None
        self._output = bytearray()
        self._ended = False
        self._is_closed = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, name=f"output of {name}", daemon=True)

    def start(self) -> None:
        """Start the process.

        :raises PeerError: the program cannot be run.
        """
        stdin = subprocess.PIPE if self._with_input else subprocess.DEVNULL
        try:
            self._process = subprocess.Popen(
                self.command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise PeerError(f"cannot run {self.command[0]}: {error.strerror}") from error
        self._reader.start()

    @property
    def log(self) -> str:
        """Its standard output and error so far."""
        with self._changed:
            return self._output.decode(errors="replace")

    @property
    def state(self) -> str:
        """Return a text about it: that it runs, or how it ended."""
        if self._process is None:
            return f"{self.name} is not started"
        status = self._process.poll()
        if status is None:
            return f"{self.name} runs as process {self._process.pid}"
        return f"{self.name} was ended by signal {-status}" if status < 0 else f"{self.name} ended with status {status}"

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def wait_ended(self, timeout: float) -> None:
        """Wait until it has ended, or ``timeout`` seconds."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)

    def wait_for(self, text: str, timeout: float, start: int = 0) -> str:
        """Wait until its output, from the byte ``start`` on, has a text, and return that output.

        :raises PeerError: it ended before, or did not say it in ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while text not in (output := self._output[start:].decode(errors="replace")):
                if self._ended:
                    raise self.error(f"did not say {text!r}")
                if time.monotonic() >= deadline:
                    raise self.error(f"did not say {text!r} within {timeout:g} s")
                self._changed.wait(min(1.0, max(deadline - time.monotonic(), 0)))
            return output

    def said(self) -> int:
        """Return the number of bytes of its output so far."""
        return len(self._output)

    def tell(self, line: str) -> None:
        """Write a line to its standard input.

        :raises PeerError: it has ended.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
        except OSError as error:
            raise self.error(f"does not read {line!r}") from error

    def error(self, what: str) -> PeerError:
        """Return the error that the program did not do something, with the end of its output."""
        lines = self.log.splitlines()[-_LINES:]
        return PeerError("\n".join([f"{self.name} {what}; {self.state}", *lines]))

    def close(self) -> None:
        """End the process and its children, by SIGKILL if SIGTERM does not. A second call is harmless."""
        process = self._process
        if process is None or self._is_closed:
            return
        self._is_closed = True
        # The command may be a script that runs the program as a child. The child is in the script's process group, and
        # holds the pipe that the thread reads.
        self._signal_group(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
            self._reader.join(_GRACE)
        self._signal_group(process, signal.SIGKILL)
        process.wait()
        self._reader.join()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    @staticmethod
    def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)

    def write_log(self, directory: Path, stem: str) -> str:
        """Write the command and the output to a file, and return a line about it."""
        path = directory / f"{stem}.log"
        path.write_text(f"{' '.join(self.command)}\n{self.log}", encoding="utf-8")
        return f"{self.state}; output: {path}\n"

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        # By the pipe's own method: under gevent's patches the fd itself does not block.
        while chunk := self._process.stdout.read1(65536):  # type: ignore[attr-defined]
            with self._changed:
                self._output += chunk
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
