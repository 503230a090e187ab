"""Fields: their text, their checks, where they are, and that their values are those of their definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memifrt import ConfigError
from memifrt.traffic import Field
from memifrt.traffic.fields import Values, parse_field
from memifrt.traffic.layout import layout_of
from memifrt.traffic.template import packet_bytes
from memifrt.types import Mode

UDP = packet_bytes('Ether()/Dot1Q(vlan=5, prio=3)/IP()/UDP()/Raw(b"x" * 40)')
UDP6 = packet_bytes("Ether()/IPv6()/UDP()")


def values(text: str, count: int, data: bytes = UDP, *, block: int = 7, start: int = 0, stride: int = 1) -> list[int]:
    """The first values of a field, drawn a block at a time."""
    field = parse_field(text)
    place = field.place(layout_of(data, Mode.ETHERNET), data)
    assert place is not None
    drawn = Values(field, place, block, start=start, stride=stride)
    found: list[int] = []
    while len(found) < count:
        found += [place.base + int(value) for value in drawn.now]
        drawn.advance()
    return found[:count]


# --- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("udp.src=1..9", Field("udp.src", "1", "9")),
        ("ipv4.src = 10.0.0.1..10.0.0.9 decrement step 2", Field("ipv4.src", "10.0.0.1", "10.0.0.9", 2, "decrement")),
        ("@42:4=0..0xffff random seed 7", Field("@42:4", "0", "0xffff", order="random", seed=7)),
        ("vlan.id=10,20, 30", Field("vlan.id", values=("10", "20", "30"))),
        ("eth.src=02:00:00:00:00:01..02:00:00:00:00:ff", Field("eth.src", "02:00:00:00:00:01", "02:00:00:00:00:ff")),
    ],
)
def test_text_becomes_a_field(text: str, field: Field) -> None:
    assert parse_field(text) == field


def test_a_file_may_give_a_field_as_a_mapping_a_list_a_number_or_text() -> None:
    assert Field.of({"first": 1, "last": 9, "step": 2}, "udp.src") == Field("udp.src", 1, 9, 2)
    assert Field.of([1, 2], "udp.src") == Field("udp.src", values=(1, 2))
    assert Field.of("1..9 step 2", "udp.src") == Field("udp.src", "1", "9", 2)
    assert Field.of(5, "udp.src") == Field("udp.src", 5)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("udp.src", "is not a field"),
        ("=1..2", "is not a field"),
        ("udp.source=1..2", "'udp.source' is not a field; it must be one of eth.dst"),
        ("udp.src=9..1", "field udp.src: the range 9..1 is empty"),
        ("udp.src=1..65536", "field udp.src: '65536' must be a whole number from 0 to 65535"),
        ("ipv4.src=10.0.0.1..10.0.0", "field ipv4.src: '10.0.0' must be an IPv4 address or a whole number"),
        ("ipv6.src=::1..x", "field ipv6.src: 'x' must be an IPv6 address"),
        ("eth.src=02:00", "field eth.src: '02:00' must be a MAC address"),
        ("udp.src=1..9 step 0", "field udp.src: the step 0 must be a whole number from 1 on"),
        ("udp.src=1..9 step x", "field udp.src: the step 'x' must be a whole number"),
        ("udp.src=1..9 step", "field udp.src: the step '' must be a whole number"),
        ("udp.src=1..9 seed 1", "field udp.src: a seed needs the order random"),
        ("udp.src=1..9 random random", "field udp.src: order is given twice"),
        ("udp.src=1..9 upwards", "field udp.src: 'upwards' must be one of increment, decrement, random"),
        ("udp.src=1,x", "field udp.src: 'x' must be a whole number"),
        ("udp.source=1", "did you mean udp.src?"),
        ("udp.src=1_0", "field udp.src: '1_0' must be a whole number"),
        ("udp.src=-1", "field udp.src: '-1' must be a whole number"),
        ("udp.src=1,2 seed 3", "field udp.src: it has a list of values, so it takes no range, step, order or seed"),
        ("ipv6.src=fe80::1%eth0", "field ipv6.src: 'fe80::1%eth0' must be an IPv6 address"),
        ("@1:9=0..1", "field @1:9: it is 9 bytes wide; it must be 1 to 8"),
        ("@:1=0..1", "'@:1' is not a field"),
        ("ipv6.src=::1..1::1", "field ipv6.src: the range ::1..1::1 has more than 2**64 values"),
    ],
)
def test_a_wrong_field_is_refused_in_one_line_that_names_it(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_field(text)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "given", "part"),
    [
        (5, 1, "5 is not a field; it must be one of"),
        ("udp.src", True, "True must be text like"),
        ("udp.src", {"first": True}, "True must be a whole number"),
        ("udp.src", {"first": 1.5}, "1.5 must be a whole number"),
        ("udp.src", {"first": 1, "last": 9, "order": "random", "seed": True}, "the seed True must be a whole number"),
        ("udp.src", {"first": 1, "step": True}, "the step True must be a whole number"),
        ("udp.src", {"values": "12"}, "values is '12'; it must be a list"),
        ("udp.src", {"first_": 1}, "did you mean first?"),
    ],
)
def test_a_wrong_value_of_a_file_is_refused(name: Any, given: Any, part: str) -> None:
    with pytest.raises(ConfigError) as error:
        Field.of(given, name)
    assert part in str(error.value)


# --- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("udp.src=1..3", [1, 2, 3, 1, 2, 3, 1]),
        ("udp.src=1..3 decrement", [3, 2, 1, 3, 2, 1, 3]),
        ("udp.src=10..20 step 4", [10, 14, 18, 10, 14, 18]),
        ("udp.src=10..20 step 4 decrement", [18, 14, 10, 18]),
        ("udp.src=7", [7, 7, 7]),
        ("udp.src=5,1,9", [5, 1, 9, 5, 1]),
        ("@60:8=0..0xffffffffffffffff decrement", [2**64 - 1, 2**64 - 2]),
        ("@60:8=0xfffffffffffffffe..0xffffffffffffffff", [2**64 - 2, 2**64 - 1, 2**64 - 2]),
        ("@60:4=4294967290..4294967295 step 3", [4294967290, 4294967293, 4294967290]),
        ("@60:5=0xfffffffe..0x100000001", [0xFFFFFFFE, 0xFFFFFFFF, 0x100000000, 0x100000001, 0xFFFFFFFE]),
    ],
)
def test_values_follow_their_definition(text: str, expected: list[int]) -> None:
    assert values(text, len(expected)) == expected


@pytest.mark.parametrize(
    "text", ["udp.src=1..1000 step 7", "udp.src=3..999 decrement", "@60:8=5..18446744073709551000 step 1000000007"]
)
@pytest.mark.parametrize(("block", "stride"), [(5, 1), (64, 3), (1000, 2)])
def test_many_blocks_give_the_values_of_the_definition(text: str, block: int, stride: int) -> None:
    field = parse_field(text)
    first, last = field.range()
    count = (last - first) // field.step + 1
    numbers = [(1 + stride * index) % count for index in range(4000)]
    if field.order == "decrement":
        numbers = [count - 1 - number for number in numbers]
    expected = [first + number * field.step for number in numbers]
    assert values(text, 4000, block=block, start=1, stride=stride) == expected


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("udp.src=100..199", range(100, 200)),
        ("udp.src=100..199 step 10", range(100, 200, 10)),
        ("ipv4.src=10.0.0.0..10.0.0.99", range(0x0A000000, 0x0A000064)),
    ],
)
def test_random_values_are_of_the_range_each_equally_often_and_repeat_with_their_seed(text: str, span: range) -> None:
    drawn = values(f"{text} random seed 3", 40000, block=1000)
    assert drawn == values(f"{text} random seed 3", 40000, block=1000)
    assert drawn != values(f"{text} random seed 4", 40000, block=1000)
    assert drawn != values(f"{text} random", 40000, block=1000)
    counts = np.bincount([span.index(value) for value in drawn], minlength=len(span))
    expected = 40000 / len(span)
    assert ((counts - expected) ** 2 / expected).sum() < 2 * len(span) + 40  # chi square


@pytest.mark.parametrize("text", ["@60:4=0..0xffffffff", "@60:8=0..0xffffffffffffffff", "@60:8=1..0x10000000000"])
def test_wide_random_values_use_the_whole_range(text: str) -> None:
    drawn = values(f"{text} random seed 1", 2000, block=500)
    first, last = parse_field(text).range()
    assert all(first <= value <= last for value in drawn)
    assert len(set(drawn)) > 1990
    assert max(drawn) > last * 0.99
    assert min(drawn) < last * 0.01


# --- places ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "at"),
    [
        ("eth.dst", UDP, 0),
        ("eth.src", UDP, 6),
        ("vlan.id", UDP, 14),
        ("ipv4.ttl", UDP, 26),
        ("ipv4.src", UDP, 30),
        ("ipv4.dst", UDP, 34),
        ("udp.src", UDP, 38),
        ("udp.dst", UDP, 40),
        ("ipv6.hop_limit", UDP6, 21),
        ("udp.dst", UDP6, 56),
        ("@3:2", UDP6, 3),
    ],
)
def test_a_field_is_where_its_header_is(name: str, data: bytes, at: int) -> None:
    place = Field(name, values=(0, 255)).place(layout_of(data, Mode.ETHERNET), data)
    assert place is not None
    assert place.at - len(place.prefix) == at


@pytest.mark.parametrize("name", ["ipv6.src", "tcp.src", "@200:4"])
def test_a_packet_without_the_header_has_no_place_for_the_field(name: str) -> None:
    assert Field(name).place(layout_of(UDP, Mode.ETHERNET), UDP) is None


def test_only_the_bytes_that_differ_are_written() -> None:
    layout = layout_of(UDP6, Mode.ETHERNET)
    place = parse_field("ipv6.src=2001:db8::10..2001:db8::1f").place(layout, UDP6)
    assert place is not None
    assert (place.at, place.width, place.prefix) == (37, 1, bytes.fromhex("20010db8") + bytes(11))
    with pytest.raises(ConfigError, match=r"field ipv6.src: the values differ in more than the last 8 bytes"):
        parse_field("ipv6.src=2001:db8:0:0:ffff::..2001:db8:0:1:1::").place(layout, UDP6)
