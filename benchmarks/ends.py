"""The two ends of a measurement as processes: memifrt's own bench, the responders, and DPDK's testpmd.

The device under test runs on one core and what faces it on another; every figure is taken at the end that faces it,
so that each device is measured by the same stick.
"""

from __future__ import annotations

import contextlib
import functools
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
from typing import IO, Any, Protocol

from tests.lib.testpmd import DpdkTestpmd

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Load:
    """What passes: packet size in bytes or ``"imix"``, burst in buffers, queues each way, log2 of the ring's slots."""

    size: int | str = 64
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


@dataclass(frozen=True)
class Running:
    """A device that runs. ``go`` is to be called when the end that faces it is on its way. ``report`` waits until the
    device has ended because its peer has, and gives what it measured."""

    go: Callable[[], None]
    report: Callable[[], dict[str, Any]]


class Device(Protocol):
    """A device under test: its role, and how it runs on a socket."""

    @property
    def role(self) -> str: ...
    def running(self, socket: str) -> AbstractContextManager[Running]: ...


@dataclass(frozen=True)
class ProgramDevice:
    """A command, with ``{socket}`` where the socket's path belongs, run in the folder whose package it is to import."""

    command: tuple[str, ...]
    role: str
    environment: tuple[tuple[str, str], ...] = ()
    folder: Path = ROOT

    @contextlib.contextmanager
    def running(self, socket: str) -> Iterator[Running]:
        command = [argument.replace("{socket}", socket) for argument in self.command]
        with tempfile.TemporaryFile() as log, tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                env={**os.environ, **dict(self.environment)},
                cwd=self.folder,
            )
            try:
                if self.role == "master":
                    _wait_for(socket, process)
                yield Running(lambda: None, functools.partial(_read_report, process, output))
            except BaseException as error:
                log.seek(0)
                raise RuntimeError(f"{' '.join(command)}:\n{log.read().decode(errors='replace')[-2000:]}") from error
            finally:
                process.kill()
                process.wait()


@dataclass(frozen=True)
class PmdDevice:
    """DPDK's testpmd. Its main thread, which only waits for its standard input, shares the first core with the first of
    the threads that forward."""

    mode: str
    role: str
    load: Load
    cpus: tuple[int, ...]
    zero_copy: bool = False
    burst: int = 0

    @contextlib.contextmanager
    def running(self, socket: str) -> Iterator[Running]:
        testpmd = DpdkTestpmd(
            socket,
            role="server" if self.role == "master" else "client",
            forward=self.mode,
            queues=self.load.queues,
            zero_copy=self.zero_copy,
            log2_ring_size=self.load.log2_ring_size,
            buffer_size=self.load.buffer_size,
            lcores=",".join(f"{lcore}@{cpu}" for lcore, cpu in enumerate((self.cpus[0], *self.cpus))),
            size=64 if isinstance(self.load.size, str) else self.load.size,
            burst=self.burst,
            threads=len(self.cpus),
        )
        with contextlib.redirect_stdout(None), testpmd:  # its log, which it prints at the end
            yield Running(testpmd.start_forwarding, dict)


def bench_device(
    mode: str,
    role: str,
    load: Load,
    *cpus: int,
    api: str = "burst",
    ring: str = "native",
    extra: Sequence[str] = (),
    folder: Path = ROOT,
) -> ProgramDevice:
    """``memifrt bench`` as the device.

    :param folder: whose package it imports.
    """
    command = (
        sys.executable, "-m", "memifrt", "bench", mode, "--socket={socket}", f"--role={role}",
        f"--api={api}", f"--cpu={','.join(map(str, cpus))}", "--seconds=0", "--json", *load.arguments(), *extra,
    )  # fmt: skip
    return ProgramDevice(command, role, (("MEMIFRT_RING", ring),), folder)


def program_device(program: str, role: str, cpu: int, *arguments: str, folder: Path = ROOT) -> ProgramDevice:
    """A Python program of the repository, pinned.

    :param folder: where the program and the package that it imports are.
    """
    command = (
        "taskset", "-c", str(cpu), sys.executable, str(folder / program), "--socket={socket}", f"--role={role}",
        *arguments,
    )  # fmt: skip
    return ProgramDevice(command, role, (("PYTHONPATH", str(folder)),), folder)


def measure(
    device: Device, mode: str, load: Load, seconds: float, cpu: int, *extra: str, wants_report: bool = False
) -> dict[str, Any]:
    """Run a device and, facing it, ``memifrt bench MODE`` on the native rings; return what the latter measured.

    :param load: of the end that faces the device. The device has its own.
    :param wants_report: also wait for what the device itself reports, as ``"device"``.
    """
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
            running = stack.enter_context(device.running(socket))
        else:
            running = stack.enter_context(device.running(socket))
            process = stack.enter_context(_face(facing))
        running.go()
        output, _ = process.communicate(timeout=seconds + 30)
        if process.returncode:
            raise RuntimeError(f"{' '.join(facing)} ended with {process.returncode}")
        result: dict[str, Any] = json.loads(output)
        return {**result, "device": running.report()} if wants_report else result


def _read_report(process: subprocess.Popen[bytes], output: IO[bytes]) -> dict[str, Any]:
    process.wait(10)
    output.seek(0)
    report: dict[str, Any] = json.loads(output.read())
    return report


@contextlib.contextmanager
def _face(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # connection reports; an error shows by the status
        env={**os.environ, "MEMIFRT_RING": "native"},
        text=True,
        cwd=ROOT,
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
