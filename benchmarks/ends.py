"""The two ends of a measurement as processes: memifrt's own bench, the responders, and DPDK's testpmd.

The device under test runs on one core and what faces it on another; every figure is taken at the end that faces it,
so that each device is measured by the same stick.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from tests.lib.testpmd import DpdkTestpmd

_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Load:
    """What passes: packet size in bytes, burst in buffers, queues each way, log2 of the ring's slots."""

    size: int = 64
    burst: int = 256
    queues: int = 1
    log2_ring_size: int = 10
    buffer_size: int = 2048
    rx_mode: str = "polling"

    def arguments(self) -> list[str]:
        return [
            f"--size={self.size}",
            f"--burst={self.burst}",
            f"--queues={self.queues}",
            f"--ring-size={1 << self.log2_ring_size}",
            f"--buffer-size={self.buffer_size}",
            f"--rx-mode={self.rx_mode}",
        ]

    def with_(self, **changes: Any) -> Load:
        return replace(self, **changes)


#: To be called when the end that faces a device is on its way.
Go = Callable[[], None]


class Device(Protocol):
    """A device under test: its role, and how it runs on a socket."""

    @property
    def role(self) -> str: ...
    def running(self, socket: str) -> AbstractContextManager[Go]: ...


@dataclass(frozen=True)
class ProgramDevice:
    """A command, with ``{socket}`` where the socket's path belongs, run in the folder whose package it is to import."""

    command: tuple[str, ...]
    role: str
    environment: tuple[tuple[str, str], ...] = ()
    folder: Path = _ROOT

    @contextlib.contextmanager
    def running(self, socket: str) -> Iterator[Go]:
        command = [argument.replace("{socket}", socket) for argument in self.command]
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **dict(self.environment)},
                cwd=self.folder,
            )
            try:
                if self.role == "master":
                    _wait_for(socket, process)
                yield lambda: None
            except BaseException as error:
                log.seek(0)
                raise RuntimeError(f"{' '.join(command)}:\n{log.read().decode(errors='replace')[-2000:]}") from error
            finally:
                process.kill()
                process.wait()


@dataclass(frozen=True)
class PmdDevice:
    """DPDK's testpmd, both of its threads on one core: the main one only waits for its standard input."""

    mode: str
    role: str
    load: Load
    cpu: int
    zero_copy: bool = False

    @contextlib.contextmanager
    def running(self, socket: str) -> Iterator[Go]:
        testpmd = DpdkTestpmd(
            socket,
            role="server" if self.role == "master" else "client",
            forward=self.mode,
            queues=self.load.queues,
            zero_copy=self.zero_copy,
            log2_ring_size=self.load.log2_ring_size,
            buffer_size=self.load.buffer_size,
            lcores=f"0@{self.cpu},1@{self.cpu}",
            size=self.load.size,
        )
        with contextlib.redirect_stdout(None), testpmd:  # its log, which it prints at the end
            yield testpmd.start_forwarding


def bench_device(
    mode: str,
    role: str,
    load: Load,
    cpu: int,
    *,
    api: str = "burst",
    ring: str = "native",
    extra: Sequence[str] = (),
) -> ProgramDevice:
    """``memifrt bench`` as the device."""
    command = (
        sys.executable, "-m", "memifrt", "bench", mode, "--socket={socket}", f"--role={role}",
        f"--api={api}", f"--cpu={cpu}", "--seconds=0", "--json", *load.arguments(), *extra,
    )  # fmt: skip
    return ProgramDevice(command, role, (("MEMIFRT_RING", ring),))


def program_device(program: str, role: str, cpu: int, *arguments: str) -> ProgramDevice:
    """A Python program of the repository, pinned."""
    command = (
        "taskset", "-c", str(cpu), sys.executable, str(_ROOT / program), "--socket={socket}", f"--role={role}",
        *arguments,
    )  # fmt: skip
    return ProgramDevice(command, role)


def measure(device: Device, mode: str, load: Load, seconds: float, cpu: int, *extra: str) -> dict[str, Any]:
    """Run a device and, facing it, ``memifrt bench MODE`` on the native rings; what the latter measured."""
    role = "slave" if device.role == "master" else "master"
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        socket = f"{folder}/memif.sock"
        facing = [
            sys.executable, "-m", "memifrt", "bench", mode, f"--socket={socket}", f"--role={role}",
            f"--cpu={cpu}", f"--seconds={seconds}", "--json", *load.arguments(), *extra,
        ]  # fmt: skip
        # Who listens comes first: a testpmd that connects never tries again.
        if role == "master":
            process = stack.enter_context(_face(facing))
            _wait_for(socket, process)
            go = stack.enter_context(device.running(socket))
        else:
            go = stack.enter_context(device.running(socket))
            process = stack.enter_context(_face(facing))
        go()
        output, _ = process.communicate(timeout=seconds + 30)
        if process.returncode:
            raise RuntimeError(f"{' '.join(facing)} ended with {process.returncode}")
        result: dict[str, Any] = json.loads(output)
        return result


@contextlib.contextmanager
def _face(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # connection reports; an error shows by the status
        env={**os.environ, "MEMIFRT_RING": "native"},
        text=True,
        cwd=_ROOT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _wait_for(socket: str, process: subprocess.Popen[Any]) -> None:
    """Until the socket file is there."""
    deadline = time.monotonic() + 30
    while not os.path.exists(socket):
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode} before it listened")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{process.args!r} does not listen on {socket}")
        select.select([], [], [], 0.01)
