"""Test a VPP plugin: packets go in at one memif and come out, or not, at another.

One VPP with two memifs is started for the whole module. Where there is no VPP, DPDK's testpmd takes its place in the
tests that need no command line: it forwards between two memifs, too. Where there is neither, the tests are skipped, and
the reason says how to get them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from memifrt.packets import echo_request, parse_ip, parse_mac
from memifrt.pytest_plugin import Memif, MemifPort, memif_fixture
from memifrt.testing.vpp import Vpp


@dataclass
class Lab:
    """Two ports: a packet that goes in at ``west`` comes out at ``east``, and back."""

    west: MemifPort
    east: MemifPort
    vpp: Vpp | None = None
    west_name: str = ""
    east_name: str = ""


def make_lab(memif: Memif) -> Lab:
    try:
        vpp = memif.vpp()  # plugins=["my_plugin.so"], plugin_path="/where/I/built/it"
    except pytest.skip.Exception as no_vpp:
        try:
            west, east = memif.testpmd(ports=2).ports
            return Lab(west, east)
        except pytest.skip.Exception as no_testpmd:
            pytest.skip(f"{no_vpp}; {no_testpmd}")
    west, west_name = vpp.memif(role="master")
    east, east_name = vpp.memif(role="slave", queues=2, vpp_rx_mode="polling")
    # Put your feature in the place of VPP's cross-connect.
    vpp.cli(f"set interface l2 xconnect {west_name} {east_name}")
    vpp.cli(f"set interface l2 xconnect {east_name} {west_name}")
    return Lab(west, east, vpp, west_name, east_name)


lab = memif_fixture(make_lab, scope="module")


@pytest.fixture
def vpp(lab: Lab) -> Vpp:
    """For a test that needs VPP itself."""
    if lab.vpp is None:
        pytest.skip("this test needs a VPP: install one, or set MEMIFRT_VPP to its path")
    return lab.vpp


def ping(number: int, size: int = 56) -> bytes:
    return echo_request(
        source_mac=parse_mac("02:fe:00:00:00:01"),
        source_ip=parse_ip("2001:db8::1"),
        target_mac=parse_mac("02:fe:00:00:00:02"),
        target_ip=parse_ip("2001:db8::2"),
        identifier=1,
        sequence=number,
        payload=bytes(size),
    )


@pytest.fixture(autouse=True)
def nothing_left(lab: Lab) -> Iterator[None]:
    """The lab is the same for all tests: a test must not leave packets for the next one."""
    yield
    left = [packet for port in (lab.west, lab.east) for packet in port.collect(0)]
    assert left == []


def test_packet_comes_out_at_the_other_side(lab: Lab) -> None:
    lab.west.send([ping(1)])
    assert lab.east.recv() == [ping(1)]
    assert lab.west.collect(0.1) == []  # and not at this one


@pytest.mark.parametrize("size", [0, 56, 1400])
def test_burst_keeps_its_order(lab: Lab, size: int) -> None:
    packets = [ping(number, size) for number in range(200)]
    lab.east.send(packets)
    assert lab.west.recv(200) == packets


def test_trace_shows_the_way_of_a_packet(lab: Lab, vpp: Vpp) -> None:
    vpp.cli("clear trace")
    vpp.cli("trace add memif-input 10")
    lab.west.send([ping(1)])
    assert lab.east.recv() == [ping(1)]
    trace = vpp.cli("show trace")
    assert "memif-input" in trace  # where it came from has no name there, only a number
    assert f"{lab.east_name}-output" in trace


def test_interface_that_is_down_drops(lab: Lab, vpp: Vpp) -> None:
    vpp.cli(f"set interface state {lab.east_name} down")
    try:
        lab.west.send([ping(1)])
        assert lab.east.collect(0.1) == []
    finally:
        vpp.cli(f"set interface state {lab.east_name} up")
        lab.east.wait_connected()
