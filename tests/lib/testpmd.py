"""DPDK's testpmd as a peer: one process with one memif port, started and surely ended by a context manager.

Owns its command line, its output and its files in /var/run/dpdk. Knows nothing of memifrt.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from tests.lib.support import DEADLINE

if TYPE_CHECKING:
    from typing_extensions import Self

PROGRAM = "dpdk-testpmd"
_PROMPT = "testpmd> "
_RUN = Path("/var/run/dpdk")
_STATISTICS = re.compile(
    r"Forward statistics for port 0 .*?"
    r"RX-packets: (\d+) +RX-dropped: (\d+).*?"
    r"TX-packets: (\d+) +TX-dropped: (\d+)",
    re.DOTALL,
)
_STATISTICS_END = "+" * 76


def missing() -> str:
    """Why testpmd cannot run here; empty if it can."""
    if shutil.which(PROGRAM) is None:
        return f"{PROGRAM} is not installed: it comes with Debian's dpdk-dev"
    if os.geteuid() != 0:
        return f"{PROGRAM} needs root"
    return ""


@dataclass(frozen=True)
class PortStatistics:
    """What testpmd counted on its port."""

    rx_packets: int
    rx_dropped: int
    tx_packets: int
    tx_dropped: int


class DpdkTestpmd:
    """testpmd with one memif port. ``with`` starts it, waits for its prompt, and kills it at the end.

    :param socket: a path, or ``@name`` for the abstract namespace.
    :param role: ``server`` (listens; ready at the prompt) or ``client`` (connects once, when it starts).
    :param forward: its ``--forward-mode``; see :meth:`start_forwarding`.
    :param zero_copy: a client shares its packet memory instead of copying out of it.
    :param lcores: which of its threads runs on which core, in its own words.
    :param size: bytes of the packets that ``txonly`` sends.
    :param burst: packets of one call of its receive function, 1 to 512; 0: its default.
    :param threads: how many of its threads forward: one takes several queues, or each takes some of them.
    """

    def __init__(
        self,
        socket: str,
        *,
        role: str = "server",
        forward: str = "io",
        queues: int = 1,
        zero_copy: bool = False,
        id: int = 0,
        secret: str = "",
        log2_ring_size: int = 10,
        buffer_size: int = 2048,
        lcores: str = "0@0,1@1",
        size: int = 64,
        burst: int = 0,
        threads: int = 1,
    ) -> None:
        # With zero copy its packets fill the rings of both directions, and what has been sent is freed only when the
        # next is sent: with fewer packets than slots it would wait for ever.
        packets = (2 * queues << log2_ring_size) + 4096
        memory = 64 + packets * 4096 // (1 << 20)  # MiB; it takes time to clear more
        prefix = f"memifrt-{uuid.uuid4().hex[:12]}"
        device = {
            "role": role,
            "id": id,
            "socket": socket.removeprefix("@"),
            "socket-abstract": "yes" if socket.startswith("@") else "no",
            "rsize": log2_ring_size,
            "bsize": buffer_size,
            "zero-copy": "yes" if zero_copy else "no",
        }
        if secret:
            device["secret"] = secret
        self._files = _RUN / prefix
        self._command = [
            *("stdbuf", "-oL", PROGRAM),  # or what it prints comes when it ends
            *(f"--lcores={lcores}", "--no-huge", "-m", str(memory)),
            *("--no-pci", "--no-telemetry", f"--file-prefix={prefix}"),
            "--vdev=net_memif0," + ",".join(f"{key}={value}" for key, value in device.items()),
            *(["--single-file-segments"] if zero_copy else []),
            "--log-level=pmd.net.memif:debug",
            *("--", "-i", f"--total-num-mbufs={packets}", f"--forward-mode={forward}"),
            *(f"--rxq={queues}", f"--txq={queues}", f"--txpkts={size}"),
            *([f"--burst={burst}"] if burst else []),
            *([f"--nb-cores={threads}"] if threads > 1 else []),
            "--no-flush-rx",  # or "start" throws away what we have sent before it
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._output = bytearray()
        self._ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, name=prefix, daemon=True)

    # --- its life -----------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        # It quits at the end of its standard input: no testpmd outlives the tests, even if these are killed.
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._reader.start()
        try:
            self.wait_for(_PROMPT)
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        print(f"--- {' '.join(self._command)}\n{self.log}")  # shown by pytest where a test fails

    def kill(self) -> None:
        """SIGKILL, if it still runs, and remove what it left. Twice is harmless."""
        process = self._running()
        process.kill()
        process.wait()
        self._reader.join()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        shutil.rmtree(self._files, ignore_errors=True)

    # --- what it says -------------------------------------------------------------------------------------------

    @property
    def log(self) -> str:
        """Its standard output and error so far."""
        with self._changed:
            return self._output.decode(errors="replace")

    def wait_for(self, text: str, start: int = 0, timeout: float = DEADLINE) -> str:
        """Wait until its output, from ``start`` on, has the text; that output."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while text not in (output := self._output[start:].decode(errors="replace")):
                assert not self._ended, f"{PROGRAM} ended without saying {text!r}:\n{output}"
                assert time.monotonic() < deadline, f"{PROGRAM} did not say {text!r} within {timeout} s:\n{output}"
                self._changed.wait(1)
            return output

    # --- what it is told ----------------------------------------------------------------------------------------

    def start_forwarding(self) -> None:
        """Once it is connected, and not before: its receive function takes a ring's address first and looks then
        whether it is connected. A server whose forwarding thread is held up between the two, while we connect,
        reads from a region that was not mapped yet and crashes."""
        self.wait_for("memif_connect(): Connected.")
        self._tell("start")

    def statistics(self) -> PortStatistics:
        """What it has counted since forwarding began. Its counters are 0 after a disconnect."""
        return self._ask("show fwd stats all", _STATISTICS_END)

    def stop(self) -> PortStatistics:
        """Stop forwarding, without disconnecting; what it counted."""
        return self._ask("stop", "Done.")

    def quit(self) -> PortStatistics:
        """Make it forward to the end and go by itself; what it counted. Not after :meth:`stop`. How it goes is its own
        affair: it may crash when it tears down a port that is still connected."""
        counted = self._ask("quit", "Done.")
        self._running().wait(DEADLINE)
        return counted

    def _ask(self, command: str, end: str) -> PortStatistics:
        start = len(self._output)
        self._tell(command)
        answer = self.wait_for(end, start)
        counted = _STATISTICS.search(answer)
        assert counted, f"no statistics of the port in:\n{answer}"
        return PortStatistics(*(int(number) for number in counted.groups()))

    def _tell(self, command: str) -> None:
        stdin = self._running().stdin
        assert stdin is not None
        stdin.write(f"{command}\n".encode())
        stdin.flush()

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "it is not started"
        return self._process

    def _read(self) -> None:
        stdout = self._running().stdout
        assert stdout is not None
        while chunk := stdout.read1(65536):  # type: ignore[attr-defined]
            with self._changed:
                self._output += chunk
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
