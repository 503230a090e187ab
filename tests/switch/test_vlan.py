"""VLANs of a port: their text, which frames it may receive, and the tags of what leaves."""

from __future__ import annotations

import pytest

from memifrt import ConfigError
from memifrt.switch.vlan import (
    ALL,
    HEADER_BYTES,
    NOT_ALLOWED,
    TAGGED_ON_ACCESS,
    UNTAGGED_ON_TRUNK,
    Classified,
    PortVlans,
    classify,
    parse_vlan,
    parse_vlans,
)

ADDRESSES = bytes.fromhex("020000000001020000000002")
PLAIN = ADDRESSES + b"\x08\x00" + b"payload of a frame"
ACCESS, TRUNK, NATIVE = PortVlans(10), PortVlans(0, frozenset({10, 20})), PortVlans(1, frozenset({10}))


def tagged(vlan: int, priority: int = 0) -> bytes:
    return ADDRESSES + b"\x81\x00" + (priority << 13 | vlan).to_bytes(2, "big") + PLAIN[12:]


def seen(vlans: PortVlans, frame: bytes) -> Classified:
    return classify(vlans, frame[:HEADER_BYTES])


@pytest.mark.parametrize(
    ("vlans", "frame", "vlan", "dropped"),
    [
        (ACCESS, PLAIN, 10, ""),
        (ACCESS, tagged(0, 5), 10, ""),
        (ACCESS, tagged(10), 0, TAGGED_ON_ACCESS),
        (ACCESS, tagged(20), 0, TAGGED_ON_ACCESS),
        (TRUNK, tagged(10), 10, ""),
        (TRUNK, tagged(20, 7), 20, ""),
        (TRUNK, tagged(30), 0, NOT_ALLOWED),
        (TRUNK, tagged(4095), 0, NOT_ALLOWED),
        (TRUNK, PLAIN, 0, UNTAGGED_ON_TRUNK),
        (TRUNK, tagged(0), 0, UNTAGGED_ON_TRUNK),
        (NATIVE, PLAIN, 1, ""),
        (NATIVE, tagged(1), 1, ""),
        (NATIVE, tagged(0, 3), 1, ""),
    ],
)
def test_a_port_takes_frames_of_its_vlans(vlans: PortVlans, frame: bytes, vlan: int, dropped: str) -> None:
    found = seen(vlans, frame)
    assert (found.vlan, found.dropped) == (vlan, dropped)


@pytest.mark.parametrize("frame", [PLAIN, tagged(10), tagged(10, 6)])
def test_a_tag_is_put_in_and_taken_out(frame: bytes) -> None:
    found = seen(PortVlans(10, frozenset({10})), frame)
    priority = frame[14] >> 5 if frame[12:14] == b"\x81\x00" else 0
    assert found.without_tag([frame, frame]) == [PLAIN, PLAIN]
    assert found.with_tag([frame, frame]) == [tagged(10, priority)] * 2


def test_the_priority_of_a_priority_tag_is_kept() -> None:
    found = seen(ACCESS, tagged(0, 5))
    assert found.with_tag([tagged(0, 5)]) == [tagged(10, 5)]
    assert found.without_tag([tagged(0, 5)]) == [PLAIN]


def test_a_service_tag_is_payload() -> None:
    frame = ADDRESSES + b"\x88\xa8\x00\x14" + PLAIN[12:]
    assert seen(ACCESS, frame).without_tag([frame]) == [frame]
    assert seen(ACCESS, frame).with_tag([frame]) == [ADDRESSES + b"\x81\x00\x00\x0a" + frame[12:]]


def test_vlans_are_read_and_written() -> None:
    assert parse_vlan("4094") == 4094
    assert parse_vlans("10") == {10}
    assert parse_vlans("10-12+20+30-30") == {10, 11, 12, 20, 30}
    assert parse_vlans("all") == ALL
    assert str(PortVlans(0, parse_vlans("20+10-12"))) == "trunk=10-12+20"
    assert str(PortVlans(7, ALL)) == "trunk=all,native=7"
    assert str(PortVlans(7)) == "vlan=7"


@pytest.mark.parametrize("text", ["", "0", "4095", "x", "1.5", "-1", "10+", "20-10", "1-2-3", "99999", "٣"])
def test_what_is_no_vlan_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="VLAN"):
        parse_vlans(text)
