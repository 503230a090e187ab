"""The two ends of a measurement as processes: memifrt's own bench, the responders, and DPDK's testpmd.

The device under test runs on one core and what faces it on another; every figure is taken at the end that faces it,
so that each device is measured by the same stick.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
_numbers = itertools.count()


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


@dataclass(frozen=True)
class Device:
    """A device under test: ``command`` is started on its core with the socket filled in for ``{socket}``."""

    command: tuple[str, ...]
    role: str
    environment: tuple[tuple[str, str], ...] = ()
    is_testpmd: bool = False

    @property
    def peer_role(self) -> str:
        return "slave" if self.role == "master" else "master"


def bench_device(mode: str, role: str, load: Load, cpu: int, *, api: str = "burst", ring: str = "native") -> Device:
    """``memifrt bench`` as the device."""
    command = (
        sys.executable, "-m", "memifrt", "bench", mode, "--socket={socket}", f"--role={role}",
        f"--api={api}", f"--cpu={cpu}", "--seconds=0", "--json", *load.arguments(),
    )  # fmt: skip
    return Device(command, role, (("MEMIFRT_RING", ring),))


def program_device(program: str, role: str, cpu: int, *arguments: str) -> Device:
    """A Python program of the repository, pinned."""
    command = (
        "taskset", "-c", str(cpu), sys.executable, str(_ROOT / program), "--socket={socket}", f"--role={role}",
        *arguments,
    )  # fmt: skip
    return Device(command, role)


def pmd_device(mode: str, role: str, load: Load, cpu: int, *, zero_copy: bool = False) -> Device:
    """DPDK's testpmd, both of its lcores on one core: the main one only waits for its standard input."""
    name = f"memifrt-bench-{os.getpid()}-{next(_numbers)}"
    device = f"net_memif0,role={'server' if role == 'master' else 'client'},id=0,socket={{socket}},socket-abstract=no"
    device += f",rsize={load.log2_ring_size},bsize={load.buffer_size}" + ",zero-copy=yes" * zero_copy
    command = (
        "dpdk-testpmd", f"--lcores=0@{cpu},1@{cpu}", "--no-huge", "-m", "256", "--no-pci",
        f"--file-prefix={name}", f"--vdev={device}", *(["--single-file-segments"] if zero_copy else []), "--",
        "-i", "--total-num-mbufs=16384", f"--forward-mode={mode}", "--auto-start",
        f"--rxq={load.queues}", f"--txq={load.queues}", f"--txpkts={load.size}",
    )  # fmt: skip
    return Device(command, role, is_testpmd=True)


def have_testpmd() -> bool:
    return os.geteuid() == 0 and shutil.which("dpdk-testpmd") is not None


def measure(device: Device, mode: str, load: Load, seconds: float, cpu: int, *extra: str) -> dict[str, Any]:
    """Run a device and, facing it, ``memifrt bench MODE`` on the native rings; what the latter measured."""
    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/memif.sock"
        facing = [
            sys.executable, "-m", "memifrt", "bench", mode, f"--socket={socket}", f"--role={device.peer_role}",
            f"--cpu={cpu}", f"--seconds={seconds}", "--json", *load.arguments(), *extra,
        ]  # fmt: skip
        with contextlib.ExitStack() as stack:
            # Who listens comes first: a testpmd that connects never tries again.
            if device.role == "slave":
                process = _face(facing)
                stack.callback(process.wait)
                _wait_for(socket, process)
                stack.enter_context(_running(device, socket))
            else:
                running = stack.enter_context(_running(device, socket))
                _wait_for(socket, running)
                process = _face(facing)
                stack.callback(process.wait)
            try:
                output, _ = process.communicate(timeout=seconds + 30)
            except BaseException:
                process.kill()
                raise
            if process.returncode:
                raise RuntimeError(f"{' '.join(facing)} ended with {process.returncode}")
            result: dict[str, Any] = json.loads(output)
            return result


def _face(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # connection reports; an error shows by the status
        env={**os.environ, "MEMIFRT_RING": "native"},
        text=True,
        cwd=_ROOT,
    )


@contextlib.contextmanager
def _running(device: Device, socket: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [argument.replace("{socket}", socket) for argument in device.command]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**os.environ, **dict(device.environment)},
            cwd=_ROOT,
        )
        try:
            yield process
        except BaseException as error:
            log.seek(0)
            raise RuntimeError(f"{' '.join(command)}:\n{log.read().decode(errors='replace')[-2000:]}") from error
        finally:
            process.kill()
            process.wait()
            if device.is_testpmd:
                prefix = next(word for word in command if word.startswith("--file-prefix=")).partition("=")[2]
                shutil.rmtree(f"/var/run/dpdk/{prefix}", ignore_errors=True)


def _wait_for(socket: str, process: subprocess.Popen[Any]) -> None:
    """Until the socket file is there."""
    import select
    import time

    deadline = time.monotonic() + 30
    while not os.path.exists(socket):
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode} before it listened")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{process.args!r} does not listen on {socket}")
        select.select([], [], [], 0.01)
