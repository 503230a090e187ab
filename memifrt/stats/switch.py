"""The part of a snapshot that describes a switch (``memifrt switch``). Only the schema: the switch fills it in."""

from __future__ import annotations

from typing import TypedDict


class LossStats(TypedDict):
    """Packets of a port that were dropped for one reason."""

    reason: str
    packets: int


class PortStats(TypedDict):
    """One port of a switch.

    ``vlans`` is empty, ``vlan=N`` or ``trunk=…``. ``addresses`` is the number of its MAC addresses, and ``evicted`` is
    how many it lost because of a limit. ``flooded`` counts packets that came here and went to all ports. ``waiting`` is
    the number of packets that wait for room in the port.
    """

    name: str
    vlans: str
    up: bool
    addresses: int
    evicted: int
    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int
    flooded: int
    waiting: int
    losses: list[LossStats]


class AddressStats(TypedDict):
    """One MAC address.

    ``port`` is an index into the ports. ``age`` is the time since its last packet in seconds. ``vlan`` is 0 without
    VLANs.
    """

    mac: str
    vlan: int
    port: int
    age: float


class SwitchStats(TypedDict):
    """A switch: its limits (``ageing`` in seconds), its counters, its ports and the table of MAC addresses."""

    ageing: float
    limit: int
    port_limit: int
    learned: int
    moved: int
    expired: int
    ports: list[PortStats]
    addresses: list[AddressStats]
