"""DPDK's testpmd as a peer of a test: memif ports, no hugepages, no network card.

Owns its command line and its files in /var/run/dpdk. ``memif.testpmd()`` and the fixture ``memif_testpmd`` make it.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from memifrt.errors import ConfigError
from memifrt.options import InterfaceConfig, InterfaceOptions, parse_role
from memifrt.testing.ports import MemifPort, PortMaker, PortOptions
from memifrt.testing.process import Peer, PeerMissing, find_program
from memifrt.types import Mode, Role

if TYPE_CHECKING:
    from typing_extensions import Unpack

_RUN = Path("/var/run/dpdk")
_PROMPT = "testpmd> "
_CONNECTED = "memif_connect(): Connected."
#: Seconds that testpmd may take to start: it reserves and clears its memory.
_START = 60.0
#: The memory of testpmd: MiB without packets, and bytes of a packet's buffer with what is kept about it. It clears all
#: of it when it starts.
_MEMORY, _PACKET = 64, 4096
_STATISTICS = re.compile(
    r"Forward statistics for port (\d+) .*?RX-packets: (\d+) +RX-dropped: (\d+).*?TX-packets: (\d+) +TX-dropped: (\d+)",
    re.DOTALL,
)
_STATISTICS_END = "+" * 76


class TestpmdOptions(PortOptions, total=False):
    """The options of a testpmd, and of the test's ports to it (``role``, ``queues``, ``secret``, …).

    :ivar ports: how many memif ports it has; 2 by default. It forwards from port 0 to port 1 and back, or with 1 port
        back to where a packet came from.
    :ivar forward: its ``--forward-mode``: ``io`` (default), ``mac``, ``macswap``, ``icmpecho``, ``rxonly``, …
    :ivar zero_copy: whether a testpmd that is the slave shares its packet memory instead of copying out of it.
    """

    ports: int
    forward: str
    zero_copy: bool


@dataclass(frozen=True)
class PortStatistics:
    """The counters of one of testpmd's ports since forwarding began."""

    rx_packets: int
    rx_dropped: int
    tx_packets: int
    tx_dropped: int


class Testpmd:
    """A testpmd with its ports, from :meth:`start` to :meth:`close`.

    :ivar ports: the test's ends, in the order of testpmd's ports.
    :raises PeerMissing: testpmd cannot run here.
    :raises ConfigError: an option is wrong.
    """

    __test__ = False
    name = "testpmd"

    def __init__(self, memif: PortMaker, timeout: float, **options: Unpack[TestpmdOptions]) -> None:
        program = find_program("dpdk-testpmd", "MEMIFRT_TESTPMD", "install DPDK (Debian: apt install dpdk-dev)")
        if os.geteuid() != 0:
            raise PeerMissing("dpdk-testpmd needs root: run pytest as root")
        self._memif = memif
        self._timeout = timeout
        self.ports: list[MemifPort] = []
        self._number = options.pop("ports", 2)
        if not 1 <= self._number <= 32:
            raise ConfigError(f"ports is {self._number!r}; it must be a whole number from 1 to 32")
        forward, zero_copy = options.pop("forward", "io"), options.pop("zero_copy", False)
        self._options = cast("PortOptions", options)
        self._role = parse_role(self._options.setdefault("role", Role.SLAVE))
        known = {key: value for key, value in options.items() if key in InterfaceOptions.__annotations__}
        config = InterfaceConfig.of(**cast("InterfaceOptions", known))
        if config.mode is not Mode.ETHERNET:
            raise ConfigError("testpmd knows no mode but ethernet")
        if zero_copy and self._role is Role.SLAVE:
            raise ConfigError("zero_copy needs a testpmd that is the slave: give role='master' for the test's ports")
        self._sockets = [memif.socket() for _ in range(self._number)]
        prefix = f"memifrt-{uuid.uuid4().hex[:12]}"
        self._files = _RUN / prefix
        self._peer = Peer("testpmd", self._command(program, prefix, config, forward, zero_copy), with_input=True)

    def _command(self, program: str, prefix: str, config: InterfaceConfig, forward: str, zero_copy: bool) -> list[str]:
        # A slave sends on the rings "s2m" and receives on the rings "m2s". testpmd is the other end.
        rx, tx = config.num_s2m_rings, config.num_m2s_rings
        if self._role is Role.MASTER:
            rx, tx = tx, rx
        # With zero copy its packets fill the rings, and what has been sent is freed only when the next is sent.
        packets = self._number * ((rx + tx << config.log2_ring_size) + 4096)
        memory = _MEMORY + packets * _PACKET // (1 << 20)
        command = ["stdbuf", "-oL"] if shutil.which("stdbuf") else []  # or what it prints comes when it ends
        command += [program, "--lcores=0@0,1@0", "--no-huge", "-m", str(memory), "--no-pci"]
        command += ["--no-telemetry", f"--file-prefix={prefix}", "--log-level=pmd.net.memif:debug"]
        command += ["--single-file-segments"] if zero_copy else []
        for number, path in enumerate(self._sockets):
            device = {
                "role": "server" if self._role is Role.SLAVE else "client",
                "id": config.id,
                "socket": path,
                "socket-abstract": "no",
                "rsize": config.log2_ring_size,
                "bsize": config.buffer_size,
                "zero-copy": "yes" if zero_copy else "no",
            }
            if config.secret:
                device["secret"] = config.secret.decode(errors="replace")
            command.append(f"--vdev=net_memif{number}," + ",".join(f"{key}={value}" for key, value in device.items()))
        command += ["--", "-i", f"--total-num-mbufs={packets}", f"--forward-mode={forward}"]
        return [*command, f"--rxq={rx}", f"--txq={tx}", "--no-flush-rx"]

    def start(self) -> None:
        """Start it, connect the ports, and let it forward.

        :raises PeerError: it does not start. The message has the end of its output.
        :raises MemifTimeout: a port does not connect.
        """
        if self._role is Role.MASTER:  # a client of testpmd connects once, when it starts
            self._make_ports()
        self._peer.start()
        self._peer.wait_for(_PROMPT, _START)
        if self._role is Role.SLAVE:
            self._make_ports()
        for port in self.ports:
            port.wait_connected()
        # Not before it is connected: its receive function takes a ring's address first, and looks then whether it is.
        start = 0
        for _ in self.ports:
            start += self._peer.wait_for(_CONNECTED, self._timeout, start).index(_CONNECTED) + len(_CONNECTED)
        self._peer.tell("start")
        self._wait_for_prompt_behind("packet forwarding", start)

    def _make_ports(self) -> None:
        for path in self._sockets:
            options = self._options.copy()
            options["socket"] = path
            self.ports.append(self._memif.port(**options))

    @property
    def port(self) -> MemifPort:
        """The test's end of its first port."""
        return self.ports[0]

    @property
    def log(self) -> str:
        """Its standard output and error so far."""
        return self._peer.log

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._peer.running

    def cli(self, command: str, end: str = _PROMPT) -> str:
        """Type a command at its prompt, and return what it prints until the next prompt (or another text)."""
        __tracebackhide__ = True
        start = self._peer.said()
        self._peer.tell(command)
        if end != _PROMPT:
            return self._wait_for_prompt_behind(end, start)
        return self._peer.wait_for(_PROMPT, self._timeout, start).removesuffix(_PROMPT)

    def _wait_for_prompt_behind(self, text: str, start: int) -> str:
        """Wait for a text and for the next prompt, so that the next command does not take it for its own."""
        said = self._peer.wait_for(text, self._timeout, start)
        self._peer.wait_for(_PROMPT, self._timeout, start + said.index(text))
        return said

    def statistics(self) -> list[PortStatistics]:
        """Return what it has counted on each port. Its counters are 0 after a disconnect."""
        said = self.cli("show fwd stats all", _STATISTICS_END)
        return [PortStatistics(*map(int, found[1:])) for found in _STATISTICS.findall(said)]

    def close(self) -> None:
        """End testpmd, and remove what it left. A second call is harmless."""
        self._peer.close()
        shutil.rmtree(self._files, ignore_errors=True)

    def write_artefacts(self, directory: Path, stem: str) -> str:
        """Write its output into a directory, and return a text about it."""
        said = f"{self.statistics()}\n" if self._peer.running else ""
        return self._peer.write_log(directory, stem) + said
