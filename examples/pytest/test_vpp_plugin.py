"""Tests a VPP plugin: packets go in at one memif and come out, or not, at another.

The tests run if VPP runs (`vppctl` answers), and are skipped otherwise. Put your feature in the place of VPP's L2
cross-connect.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest

from memifrt import Mode
from memifrt.packets import echo_request, parse_ip, parse_mac
from memifrt.pytest_plugin import Memif, MemifPort

PACKET = echo_request(
    source_mac=parse_mac("02:fe:00:00:00:01"),
    source_ip=parse_ip("192.168.1.1"),
    target_mac=parse_mac("02:fe:00:00:00:02"),
    target_ip=parse_ip("192.168.1.2"),
    identifier=1,
    sequence=1,
    payload=b"through the plugin",
)


class Vpp:
    """A running VPP."""

    def cli(self, command: str) -> str:
        done = subprocess.run(["vppctl", *command.split()], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout


@pytest.fixture
def vpp() -> Vpp:
    if shutil.which("vppctl") is None:
        pytest.skip("vppctl is not installed")
    try:
        Vpp().cli("show version")
    except subprocess.SubprocessError as error:
        pytest.skip(f"VPP does not answer: {error}")
    return Vpp()


@pytest.fixture
def ports(memif: Memif, vpp: Vpp) -> Iterator[tuple[MemifPort, MemifPort]]:
    """Two memifs of VPP, cross-connected; VPP is the slave and connects to our listeners."""
    listeners = memif.listener(name="west"), memif.listener(name="east")
    for number, listener in enumerate(listeners, 101):
        vpp.cli(f"create memif socket id {number} filename {listener.socket}")
        vpp.cli(f"create interface memif id 0 socket-id {number} slave")
        vpp.cli(f"set interface state memif{number}/0 up")
    vpp.cli("set interface l2 xconnect memif101/0 memif102/0")
    vpp.cli("set interface l2 xconnect memif102/0 memif101/0")
    for listener in listeners:
        listener.wait_connected()
    yield listeners
    for number in (101, 102):
        vpp.cli(f"delete interface memif memif{number}/0")
        vpp.cli(f"delete memif socket id {number}")


def test_packet_comes_out_at_the_other_side(ports: tuple[MemifPort, MemifPort]) -> None:
    west, east = ports
    assert west.interface.mode is Mode.ETHERNET
    west.send([PACKET])
    assert east.recv() == [PACKET]
    assert west.collect(0.1) == []  # and not at this one


def test_interface_that_is_down_drops(ports: tuple[MemifPort, MemifPort], vpp: Vpp) -> None:
    west, east = ports
    vpp.cli("set interface state memif102/0 down")
    west.send([PACKET])
    assert east.collect(0.1) == []
