"""Fields that vary from packet to packet: MAC and IP addresses, VLAN ids, ports, or any bytes.

Owns the syntax of a field, its checks, its place in a packet, and its values: counting up or down, random with a seed,
or a list. Knows nothing of checksums.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, cast

import numpy as np

from memifrt.errors import ConfigError, did_you_mean
from memifrt.packets import parse_mac
from memifrt.traffic.arrays import Array
from memifrt.traffic.layout import Layout

Order = Literal["increment", "decrement", "random"]
ORDERS: tuple[Order, ...] = ("increment", "decrement", "random")
#: The text for the help of commands that take fields.
SYNTAX = """\
  NAME=FIRST..LAST [increment|decrement|random] [step N] [seed N]
  NAME=VALUE,VALUE,...                          one after the other, again and again
            NAME is eth.src, eth.dst, vlan.id, vlan.priority, vlan.dei, ipv4.src, ipv4.dst, ipv4.ttl, ipv4.dscp,
            ipv4.ecn, ipv4.id, ipv4.flags, ipv4.fragment_offset, ipv4.version, ipv4.ihl, ipv6.src, ipv6.dst,
            ipv6.hop_limit, ipv6.traffic_class, ipv6.flow_label, ipv6.version, udp.src, udp.dst, tcp.src, tcp.dst,
            tcp.seq, tcp.ack, tcp.flags, tcp.window, or @OFFSET:WIDTH for any 1 to 8 bytes, like @42:4"""

_WIDEST = 8
_NUMBER = re.compile(r"\s*([0-9]{1,40}|0[xX][0-9a-fA-F]{1,32})\s*")
_U64 = np.uint64
#: Names that mean the same place in both directions, with source and destination exchanged.
_OPPOSITE = {"src": "dst", "dst": "src"}


@dataclass(frozen=True, slots=True)
class _Kind:
    """Where a named field is.

    :ivar bits: the bits of the value; the field's bytes have them at ``shift`` from the right.
    """

    anchor: Literal["ethernet", "tag", "ipv4", "ipv6", "udp", "tcp"]
    offset: int
    width: int
    bits: int
    shift: int = 0
    values: Literal["number", "mac", "ipv4", "ipv6"] = "number"


_KINDS = {
    "eth.dst": _Kind("ethernet", 0, 6, 48, values="mac"),
    "eth.src": _Kind("ethernet", 6, 6, 48, values="mac"),
    "vlan.id": _Kind("tag", 0, 2, 12),
    "vlan.priority": _Kind("tag", 0, 1, 3, 5),
    "vlan.dei": _Kind("tag", 0, 1, 1, 4),
    "ipv4.version": _Kind("ipv4", 0, 1, 4, 4),
    "ipv4.ihl": _Kind("ipv4", 0, 1, 4),
    "ipv4.dscp": _Kind("ipv4", 1, 1, 6, 2),
    "ipv4.ecn": _Kind("ipv4", 1, 1, 2),
    "ipv4.id": _Kind("ipv4", 4, 2, 16),
    "ipv4.flags": _Kind("ipv4", 6, 1, 3, 5),
    "ipv4.fragment_offset": _Kind("ipv4", 6, 2, 13),
    "ipv4.ttl": _Kind("ipv4", 8, 1, 8),
    "ipv4.src": _Kind("ipv4", 12, 4, 32, values="ipv4"),
    "ipv4.dst": _Kind("ipv4", 16, 4, 32, values="ipv4"),
    "ipv6.version": _Kind("ipv6", 0, 1, 4, 4),
    "ipv6.traffic_class": _Kind("ipv6", 0, 2, 8, 4),
    "ipv6.flow_label": _Kind("ipv6", 1, 3, 20),
    "ipv6.hop_limit": _Kind("ipv6", 7, 1, 8),
    "ipv6.src": _Kind("ipv6", 8, 16, 128, values="ipv6"),
    "ipv6.dst": _Kind("ipv6", 24, 16, 128, values="ipv6"),
    "udp.src": _Kind("udp", 0, 2, 16),
    "udp.dst": _Kind("udp", 2, 2, 16),
    "tcp.src": _Kind("tcp", 0, 2, 16),
    "tcp.dst": _Kind("tcp", 2, 2, 16),
    "tcp.seq": _Kind("tcp", 4, 4, 32),
    "tcp.ack": _Kind("tcp", 8, 4, 32),
    "tcp.flags": _Kind("tcp", 13, 1, 8),
    "tcp.window": _Kind("tcp", 14, 2, 16),
}


@dataclass(frozen=True)
class Field:
    """A field that varies from packet to packet.

    :param name: ``ipv4.src`` or another name of :data:`SYNTAX`, or ``@OFFSET:WIDTH`` in bytes.
    :param first: the first value: a number, or the text of an address.
    :param last: the last value; default: ``first``. It may not be smaller than ``first``.
    :param step: the difference between two values.
    :param order: ``"increment"`` begins with ``first``, ``"decrement"`` with ``last``. Both begin again after the other
        end of the range. ``"random"`` takes any value ``first + n * step`` of the range, each equally often.
    :param seed: makes ``"random"`` give the same values in each run; None takes another seed in each run.
    :param values: the values one after the other, instead of a range.
    :raises ConfigError: a value is wrong. The message names the field and what would be right.
    """

    name: str
    first: int | str = 0
    last: int | str | None = None
    step: int = 1
    order: Order = "increment"
    seed: int | None = None
    values: Sequence[int | str] = ()

    def __post_init__(self) -> None:
        kind = self._kind()
        if isinstance(self.values, str) or not isinstance(self.values, Sequence):
            raise ConfigError(f"field {self.name}: values is {self.values!r}; it must be a list")
        if self.values:
            alone = self.first == 0 and self.last is None and self.step == 1
            if not alone or self.order != "increment" or self.seed is not None:
                raise ConfigError(
                    f"field {self.name}: it has a list of values, so it takes no range, step, order or seed"
                )
            for value in self.values:
                self._number(kind, value)
            return
        first, last = self.range()
        if first > last:
            raise ConfigError(
                f"field {self.name}: the range {self.first}..{self.last} is empty; the smaller value must come first"
            )
        if self.order not in ORDERS:
            raise ConfigError(f"field {self.name}: the order {self.order!r} must be one of {', '.join(ORDERS)}")
        if isinstance(self.step, bool) or not isinstance(self.step, int) or self.step < 1:
            raise ConfigError(f"field {self.name}: the step {self.step!r} must be a whole number from 1 on")
        if self.seed is not None and (
            isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 64
        ):
            raise ConfigError(f"field {self.name}: the seed {self.seed!r} must be a whole number from 0 to 2**64 - 1")
        if self.seed is not None and self.order != "random":
            raise ConfigError(f"field {self.name}: a seed needs the order random, not {self.order}")
        if last - first >= 1 << 64:
            raise ConfigError(
                f"field {self.name}: the range {self.first}..{self.last} has more than 2**64 values; make it smaller"
            )

    @classmethod
    def of(cls, given: Field | str | int | Sequence[int | str] | Mapping[str, Any], name: str | None = None) -> Field:
        """Return a field that is given as a :class:`Field`, as text (see :data:`SYNTAX`) or as a mapping.

        With a name, a number is its only value, and a list has its values.

        :param name: the name, if it does not stand in the text or the mapping.
        :raises ConfigError: it is none of these.
        """
        if isinstance(given, Field):
            return given
        if isinstance(given, Mapping):
            return _of_mapping(given if name is None else {"name": name, **given})
        if name is not None and isinstance(given, int) and not isinstance(given, bool):
            return cls(name, given)
        if name is not None and isinstance(given, list | tuple):
            return cls(name, values=tuple(given))
        if not isinstance(given, str):
            raise ConfigError(f"field {name or ''}: {given!r} must be text like ipv4.src=10.0.0.1..10.0.0.254")
        return parse_field(given if name is None else f"{name}={given}")

    def opposite(self) -> Field:
        """Return the field with source and destination exchanged, for the opposite direction."""
        layer, _, end = self.name.partition(".")
        return replace(self, name=f"{layer}.{_OPPOSITE[end]}") if end in _OPPOSITE else self

    def range(self) -> tuple[int, int]:
        """Return the first and the last value as numbers."""
        kind = self._kind()
        return self._number(kind, self.first), self._number(kind, self.first if self.last is None else self.last)

    def _kind(self) -> _Kind:
        kind = _KINDS.get(self.name)
        if kind is not None:
            return kind
        match = re.fullmatch(r"@([0-9]{1,5}):([0-9]{1,2})", str(self.name))
        if not match:
            raise ConfigError(
                f"{self.name!r} is not a field; it must be one of {', '.join(_KINDS)}, or @OFFSET:WIDTH like @42:4"
                f"{did_you_mean(str(self.name), tuple(_KINDS))}"
            )
        offset, width = int(match[1]), int(match[2])
        if not 1 <= width <= _WIDEST:
            raise ConfigError(f"field {self.name}: it is {width} bytes wide; it must be 1 to {_WIDEST}")
        return _Kind("ethernet", offset, width, 8 * width)

    def _number(self, kind: _Kind, value: int | str) -> int:
        number: int | None = None
        with_text = {"mac": "a MAC address", "ipv4": "an IPv4 address", "ipv6": "an IPv6 address"}.get(kind.values)
        try:
            if isinstance(value, str) and kind.values == "mac" and ":" in value:
                number = int.from_bytes(parse_mac(value), "big")
            elif isinstance(value, str) and kind.values == "ipv4" and "." in value:
                number = int(ipaddress.IPv4Address(value))
            elif isinstance(value, str) and kind.values == "ipv6" and ":" in value and "%" not in value:
                number = int(ipaddress.IPv6Address(value))
            elif isinstance(value, str):
                number = int(value, 0) if _NUMBER.fullmatch(value) else None
            elif isinstance(value, int) and not isinstance(value, bool):
                number = value
        except ValueError:  # ConfigError is one
            number = None
        most = (1 << kind.bits) - 1
        if number is None or not 0 <= number <= most:
            raise ConfigError(
                f"field {self.name}: {value!r} must be "
                f"{f'{with_text} or ' if with_text else ''}a whole number from 0 to {most}"
            )
        return number

    def place(self, layout: Layout, data: bytes) -> Place | None:
        """Return where the field is in a packet; None if the packet has no such header."""
        kind = self._kind()
        if self.name.startswith("@"):
            at: int | None = kind.offset if kind.offset + kind.width <= len(data) else None
        else:
            anchors: dict[str, int | None] = {
                "ethernet": 0 if layout.ethernet else None,
                "tag": layout.tags[0] if layout.tags else None,
                "ipv4": layout.layer_3 if layout.version == 4 else None,
                "ipv6": layout.layer_3 if layout.version == 6 else None,
                "udp": layout.layer_4 if layout.protocol == 17 else None,
                "tcp": layout.layer_4 if layout.protocol == 6 else None,
            }
            anchor = anchors[kind.anchor]
            at = None if anchor is None else anchor + kind.offset
        if at is None:
            return None
        numbers = [self._number(kind, value) for value in self.values] or [*self.range()]
        try:
            return _narrowed(at, kind, data[at : at + kind.width], numbers)
        except ConfigError as error:
            raise ConfigError(f"field {self.name}: {error}") from error


class FieldValues(Protocol):
    """The values of a field, or of several that share bytes, for some packets at a time."""

    @property
    def now(self) -> Array: ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a field's changing bytes are in a packet.

    :ivar at: the offset of the bytes that change.
    :ivar width: how many they are: 1, 2, 4 or 8, or any number if they are written in parts.
    :ivar shift: the bits to the right of the value.
    :ivar fixed: the bits of these bytes that do not belong to the value.
    :ivar prefix: the bytes before ``at`` that belong to the field and are the same in all packets.
    :ivar base: what to take off a value to have the bytes that change.
    :ivar own: the bits of these bytes that belong to the value.
    """

    at: int
    width: int
    shift: int
    fixed: int
    prefix: bytes
    base: int
    own: int

    @property
    def span(self) -> tuple[int, int]:
        """The offsets of the field's first byte, and of the byte behind its last one."""
        return self.at - len(self.prefix), self.at + self.width

    def bits(self, end: int) -> int:
        """Return the bits of the field as a number. Its last byte is the one before the offset ``end``."""
        whole = self.own | ((1 << 8 * len(self.prefix)) - 1) << 8 * self.width
        return whole << 8 * (end - self.at - self.width)

    def shares_bits(self, other: Place) -> bool:
        """Return whether a bit belongs to both fields."""
        end = max(self.span[1], other.span[1])
        return bool(self.bits(end) & other.bits(end))


def joined_place(places: Sequence[Place]) -> Place:
    """Return the place of fields that share bytes, but no bit: values are written into these bytes together.

    A value of each field is to be shifted by its own ``shift`` and by the bytes behind it.
    """
    start, end = min(place.at for place in places), max(place.at + place.width for place in places)
    own = fixed = 0
    for place in places:
        moved = 8 * (end - place.at - place.width)
        own |= place.own << moved
        fixed |= place.fixed << moved
    return Place(start, end - start, 0, fixed & ~own, b"", 0, own)


def _narrowed(at: int, kind: _Kind, present: bytes, numbers: Sequence[int]) -> Place:
    """Return the place with as few bytes as the values differ in: 10.0.0.1..10.0.0.200 changes one byte."""
    if kind.bits < 8 * kind.width:
        own = ((1 << kind.bits) - 1) << kind.shift
        return Place(at, kind.width, kind.shift, int.from_bytes(present, "big") & ~own, b"", 0, own)
    low, high = min(numbers), max(numbers)
    width = next(
        (width for width in (1, 2, 4, 8) if width <= kind.width and low >> 8 * width == high >> 8 * width), kind.width
    )
    if width > _WIDEST:
        raise ConfigError("the values differ in more than the last 8 bytes; they must have the same first 8 bytes")
    skipped = kind.width - width
    prefix = (low >> 8 * width).to_bytes(skipped, "big") if skipped else b""
    return Place(at + skipped, width, 0, 0, prefix, low >> 8 * width << 8 * width, (1 << 8 * width) - 1)


# --- text -----------------------------------------------------------------------------------------------------------


def parse_field(text: str) -> Field:
    """Parse a field as :data:`SYNTAX` describes it.

    :raises ConfigError: the text is not a field.
    """
    name, equals, rest = text.partition("=")
    words = rest.split()
    name = name.strip()
    if not equals or not name or not words:
        raise ConfigError(f"{text!r} is not a field; it must be like ipv4.src=10.0.0.1..10.0.0.254")
    while len(words) > 1 and (words[0].endswith(",") or words[1].startswith(",")):  # spaces around commas
        words[:2] = [words[0] + words[1]]
    given: dict[str, Any] = {"name": name}
    if "," in words[0]:
        given["values"] = tuple(words[0].split(","))
    else:
        given["first"], dots, last = words[0].partition("..")
        if dots:
            given["last"] = last
    rest_of: Iterator[str] = iter(words[1:])
    for word in rest_of:
        if word in ORDERS:
            key, value = "order", str(word)
        elif word in ("step", "seed"):
            key, value = str(word), next(rest_of, "")
        else:
            raise ConfigError(
                f"field {name}: {word!r} must be one of {', '.join(ORDERS)}, step N or seed N, behind the values"
            )
        if key in given:
            raise ConfigError(f"field {name}: {key} is given twice")
        given[key] = value
    return _of_mapping(given)


_KEYS = ("name", "first", "last", "step", "order", "seed", "values")


def _of_mapping(given: Mapping[str, Any]) -> Field:
    name = given.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"a field needs a name, like ipv4.src; this is {dict(given)!r}")
    for key in given:
        if key not in _KEYS:
            raise ConfigError(
                f"field {name}: {key!r} is not a key; it must be one of {', '.join(_KEYS)}"
                f"{did_you_mean(str(key), _KEYS)}"
            )
    made = dict(given)
    for key in ("step", "seed"):
        if isinstance(made.get(key), str):
            try:
                made[key] = int(cast("str", made[key]), 0)
            except ValueError:
                raise ConfigError(f"field {name}: the {key} {made[key]!r} must be a whole number") from None
    if "values" in made:
        if not isinstance(made["values"], Sequence) or isinstance(made["values"], str) or not made["values"]:
            raise ConfigError(f"field {name}: values is {made['values']!r}; it must be a list")
        made["values"] = tuple(made["values"])
    elif "first" not in made:
        raise ConfigError(f"field {name}: it needs first and last, or values")
    return Field(**made)


# --- values ---------------------------------------------------------------------------------------------------------


class JoinedValues:
    """The values of fields that share bytes, together.

    :param fields: the place and the values of each field; :func:`joined_place` says where they are together.
    """

    def __init__(self, fields: Sequence[tuple[Place, FieldValues]]) -> None:
        end = max(place.at + place.width for place, _ in fields)
        width = end - min(place.at for place, _ in fields)
        self._type: Any = np.uint32 if width <= 4 else np.uint64
        self._parts = [(8 * (end - place.at - place.width) + place.shift, values) for place, values in fields]

    @property
    def now(self) -> Array:
        """The values of the present packets."""
        total: Array = np.zeros(len(self._parts[0][1].now), self._type)
        for shift, values in self._parts:
            total |= values.now.astype(self._type) << self._type(shift)
        return total


class Values:
    """The values of a field for some packets at a time, as whole numbers without the bytes that never change.

    :param count: how many packets at a time.
    :param start: the number of the first packet.
    :param stride: the distance between two packets: with several queues, each one takes every nth packet.
    """

    def __init__(self, field: Field, place: Place, count: int, *, start: int = 0, stride: int = 1) -> None:
        self._count = count
        self._type = np.uint32 if place.width <= 4 else np.uint64
        #: The values of the present packets.
        self.now: Array = np.zeros(count, self._type)
        series = _series(field)
        if field.values:
            every = [Field(field.name, value).range()[0] - place.base for value in field.values]
        elif field.order == "random":
            self.advance = self._draw
            self._first, self._step, self._size = series.first - place.base, series.step, series.size
            seed = field.seed
            self._random = np.random.SFC64(np.random.SeedSequence(None if seed is None else [seed, start]))
            self.advance()
            return
        elif series.size > count:
            self.advance = self._count_on
            self._first, self._step, self._size = series.first - place.base, series.step, series.size
            self._stride, self._number = stride, start % series.size
            ramp = [index * stride * series.step & (1 << 64) - 1 for index in range(count)]
            self._ramp: Array = np.array(ramp, np.uint64).astype(self._type)
            self.advance()
            return
        else:
            every = [series.first - place.base + number * series.step for number in range(series.size)]
        # They begin again soon: all values stand in one array, and the present ones are a part of it.
        self.advance = self._turn
        self._period = len(every) // math.gcd(len(every), stride)
        numbers = (start + stride * np.arange(self._period + count)) % len(every)
        self._every: Array = np.array(every, np.uint64).astype(self._type)[numbers]
        self._at = -count % self._period
        self.advance()

    #: Go on to the next packets.
    advance: Callable[[], None]

    def _turn(self) -> None:
        self._at = (self._at + self._count) % self._period
        self.now = self._every[self._at : self._at + self._count]

    def _count_on(self) -> None:
        done, kind = 0, self._type
        most = (1 << 8 * kind(0).itemsize) - 1
        while done < self._count:
            # Up to the end of the range, values are a straight line.
            part = min(self._count - done, -(-(self._size - self._number) // self._stride))
            begin = kind((self._first + self._number * self._step) & most)
            np.add(self._ramp[:part], begin, out=self.now[done : done + part])
            self._number = (self._number + part * self._stride) % self._size
            done += part

    def _draw(self) -> None:
        """Draw random values: the high bits of a product with the size, which differ from uniform by 2**-32 of it."""
        size = self._size
        if size <= 1 << 32:
            raw = self._random.random_raw(-(-self._count // 2)).view(np.uint32)[: self._count]
            numbers = raw.astype(np.uint64)
            if size < 1 << 32:
                np.multiply(numbers, _U64(size), out=numbers)
                np.right_shift(numbers, _U64(32), out=numbers)
        elif size < 1 << 64:
            generator = np.random.Generator(self._random)
            numbers = generator.integers(0, size, self._count, dtype=np.uint64)
        else:
            numbers = self._random.random_raw(self._count)
        if self._step != 1:
            np.multiply(numbers, _U64(self._step & (1 << 64) - 1), out=numbers)
        np.add(numbers, _U64(self._first), out=self.now, casting="unsafe")


@dataclass(frozen=True, slots=True)
class _Series:
    """A range as its first value in the order of packets, and how many steps it has. A step down is negative."""

    first: int
    step: int
    size: int


def _series(field: Field) -> _Series:
    if field.values:
        return _Series(0, 1, len(field.values))
    first, last = field.range()
    size = (last - first) // field.step + 1
    if field.order == "decrement":
        return _Series(first + (size - 1) * field.step, -field.step, size)
    return _Series(first, field.step, size)


def period(field: Field, stride: int) -> int:
    """Return after how many packets of a queue a field begins again; 0: never."""
    size = _series(field).size
    return 0 if field.order == "random" and size > 1 else size // math.gcd(size, stride)


def joint_period(periods: Sequence[int]) -> int:
    """Return after how many packets fields with these periods are together where they began; 0: never."""
    return 0 if 0 in periods else math.lcm(*periods) if periods else 1
