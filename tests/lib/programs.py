"""memifrt's command line as programs of their own, for tests."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

from tests.lib.support import DEADLINE

Program = subprocess.Popen[str]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "memifrt", *arguments]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``memifrt`` to its end."""
    return subprocess.run(
        command(*arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        env={**os.environ, **environment},
    )


@contextlib.contextmanager
def running(*arguments: str, **environment: str) -> Iterator[Program]:
    """``memifrt`` while it runs, its standard streams in pipes; ended if the test has not ended it."""
    program = subprocess.Popen(
        command(*arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    with program:
        try:
            yield program
        finally:
            program.terminate()
            try:
                program.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                program.kill()


@contextlib.contextmanager
def responder(*arguments: str) -> Iterator[Program]:
    """A responder that listens or tries to connect already."""
    with running("responder", *arguments) as program:
        read_until(program, "^answering for ")
        yield program


def read_until(program: Program, pattern: str, *, stderr: bool = False) -> str:
    """Read lines until one matches; that line."""
    stream = program.stderr if stderr else program.stdout
    assert stream is not None
    seen = []
    for line in stream:
        seen.append(line)
        if re.search(pattern, line):
            return line
    raise AssertionError(f"ended without {pattern!r}: {''.join(seen)}")


def end(program: Program, how: signal.Signals = signal.SIGINT) -> tuple[int, str, str]:
    """Send a signal; the status and what was still to be read."""
    program.send_signal(how)
    return finish(program)


def finish(program: Program) -> tuple[int, str, str]:
    """Wait for the end; the status and what was still to be read."""
    out, err = program.communicate(timeout=DEADLINE)
    return program.returncode, out, err
