"""The ends of a bridge as data: a memif, a TAP device, a kernel interface. Opens nothing.

:mod:`memifrt.cli.endpoint` parses them from text.
"""

from __future__ import annotations

from dataclasses import dataclass

from memifrt.options import DEFAULT_SOCKET, InterfaceConfig
from memifrt.types import Mode, RxMode

#: The defaults of a bridge: it adapts to its load.
DEFAULTS = InterfaceConfig(rx_mode=RxMode.ADAPTIVE)


@dataclass(frozen=True, slots=True)
class MemifEndpoint:
    """A memif interface: its control socket and its options."""

    socket: str = DEFAULT_SOCKET
    config: InterfaceConfig = DEFAULTS

    @property
    def mode(self) -> Mode:
        return self.config.mode

    def __str__(self) -> str:
        return f"memif{self.config.id} on {self.socket}"


@dataclass(frozen=True, slots=True)
class TapEndpoint:
    """A TAP device, or a TUN device in mode ip. ``netns`` is a name or a path; empty means our own."""

    name: str
    mode: Mode = Mode.ETHERNET
    mtu: int | None = None
    mac: bytes | None = None
    netns: str = ""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class PacketEndpoint:
    """A kernel network interface. In mode ip its packets have no Ethernet header."""

    name: str
    netns: str = ""
    mode: Mode = Mode.ETHERNET

    def __str__(self) -> str:
        return self.name


Endpoint = MemifEndpoint | TapEndpoint | PacketEndpoint
