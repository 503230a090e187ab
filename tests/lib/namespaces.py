"""Network namespaces for tests, with what runs in them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from tests.lib.support import DEADLINE


def missing(*programs: str) -> str:
    """Why there can be no namespaces with these programs here; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", *programs):
        if not shutil.which(program):
            return f"{program} is not installed"
    if not os.path.exists("/dev/net/tun"):
        return "there is no /dev/net/tun"
    name = f"memifrt-{uuid.uuid4().hex[:8]}"
    probe = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if probe.returncode:
        return f"network namespaces cannot be made here: {probe.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return ""


@dataclass(frozen=True)
class Namespace:
    """One, by its name."""

    name: str

    def ip(self, *arguments: str) -> None:
        """``ip`` for what is in it."""
        _checked("ip", "-n", self.name, *arguments)

    def run(self, *command: str, timeout: float = DEADLINE) -> str:
        """Run a program in it; what it prints."""
        return _checked("ip", "netns", "exec", self.name, *command, timeout=timeout)

    @contextlib.contextmanager
    def running(self, *command: str) -> Iterator[subprocess.Popen[str]]:
        """A program while it runs in it."""
        whole = ["ip", "netns", "exec", self.name, *command]
        with subprocess.Popen(whole, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as program:
            try:
                yield program
            finally:
                program.terminate()


def _checked(*command: str, timeout: float = DEADLINE) -> str:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def namespaces(count: int) -> Iterator[list[Namespace]]:
    """New ones, deleted afterwards with all that is in them."""
    stem = f"memifrt-{uuid.uuid4().hex[:8]}"
    made: list[Namespace] = []
    try:
        for number in range(count):
            made.append(Namespace(f"{stem}-{number}"))
            _checked("ip", "netns", "add", made[-1].name)
            made[-1].ip("link", "set", "lo", "up")
        yield made
    finally:
        for namespace in made:
            subprocess.run(["ip", "netns", "del", namespace.name], check=False)
