"""A stream: packets that are alike, how many, how fast, and which of their fields vary.

Owns the keys of a stream and their checks. Knows nothing of interfaces and queues.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from memifrt.errors import ConfigError, did_you_mean
from memifrt.traffic.fields import Field
from memifrt.traffic.layout import reversed_packet
from memifrt.traffic.prepare import Template, check_all_room, check_room, marked, places_of
from memifrt.traffic.rate import Rate
from memifrt.traffic.signature import MAX_LANES
from memifrt.traffic.template import Sizes, capture_packets, packet_bytes, parse_sizes, sized
from memifrt.types import Mode

if TYPE_CHECKING:
    from scapy.packet import Packet

Direction = Literal["forward", "backward", "both"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward", "both")
#: The most packets of the pattern that templates and sizes make together.
_LONGEST_PATTERN = 1 << 17
_MANY = 1 << 62


@dataclass(frozen=True)
class Stream:
    """A stream of packets.

    :param packet: a scapy expression like ``Ether()/IP(dst="10.0.0.1")/UDP()``, hexadecimal text, bytes, or a scapy
        packet. Addresses that it leaves open are 02:00:00:00:00:01 to 02:00:00:00:00:02, 198.18.0.1 to 198.18.0.2 and
        2001:2::1 to 2001:2::2.
    :param pcap: the path of a capture file, instead of ``packet``: its packets one after the other.
    :param name: the name in the report.
    :param size: the size of the packets in bytes, several of them in turn, or ``"imix"``; None leaves the packet as it
        is. The size counts the 4 bytes of the frame check sequence, as RFC 2544, TRex and FD.io CSIT count it, although
        a memif does not carry it: size 64 puts 60 bytes into a buffer.
    :param fcs: False: the size does not count the frame check sequence, and 64 puts 64 bytes into a buffer.
    :param fields: the fields that vary: a list of :class:`~memifrt.traffic.Field` or of their text, or a mapping of
        names to values, like ``{"ipv4.src": "10.0.0.1..10.0.0.254"}``.
    :param rate: a rate of its own, like ``"1Mpps"``; None: its share of the rate of the run.
    :param weight: the share of the run's rate, in packets, beside the other streams without a rate of their own.
    :param burst: how many packets are sent at once. The time between bursts is such that the rate is right.
    :param count: the number of packets in each direction; None: no limit.
    :param direction: ``"forward"`` sends on the first interface, ``"backward"`` on the second one, ``"both"`` on both;
        the backward packets have source and destination exchanged. None: both if there are two interfaces.
    :raises ConfigError: a value is wrong. The message names the stream, the key and the value.
    """

    packet: str | bytes | Packet | None = None
    pcap: str | None = None
    name: str = "stream"
    size: Sizes = None
    fcs: bool = True
    fields: Sequence[Field | str | Mapping[str, Any]] | Mapping[str, Any] = ()
    rate: Rate | str | int | float | None = None
    weight: float = 1.0
    burst: int = 1
    count: int | None = None
    direction: Direction | None = None
    #: The fields, parsed.
    varied: tuple[Field, ...] = field(init=False, default=(), repr=False, compare=False)
    #: The sizes, parsed; empty: the packet's own.
    sizes: tuple[int, ...] = field(init=False, default=(), repr=False, compare=False)
    #: The rate of its own, parsed.
    own_rate: Rate | None = field(init=False, default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or not self.name.isprintable() or len(self.name) > 64:
            raise ConfigError(f"the name of a stream is {self.name!r}; it must be 1 to 64 printable characters")
        if (self.packet is None) == (self.pcap is None):
            what = "neither packet nor pcap" if self.packet is None else "both packet and pcap"
            raise ConfigError(f"{title_of(self.name)}: it has {what}; it needs one of them")
        if self.pcap is not None and (not isinstance(self.pcap, str) or "\0" in self.pcap):
            raise self._wrong("pcap", self.pcap, "the path of a capture file")
        if not isinstance(self.fcs, bool):
            raise self._wrong("fcs", self.fcs, "true or false")
        self._check_number("weight", self.weight, 1e-6, 1e6)
        self._check_whole("burst", self.burst, 1, 1 << 20)
        if self.count is not None:
            self._check_whole("count", self.count, 1, _MANY)
        if self.direction is not None and self.direction not in DIRECTIONS:
            raise self._wrong("direction", self.direction, f"one of {', '.join(DIRECTIONS)}")
        try:
            object.__setattr__(self, "sizes", parse_sizes(self.size))
            object.__setattr__(self, "varied", self._fields())
            object.__setattr__(self, "own_rate", None if self.rate is None else Rate.of(self.rate))
        except ConfigError as error:
            raise ConfigError(f"{title_of(self.name)}: {error}") from error

    def _fields(self) -> tuple[Field, ...]:
        given = self.fields
        if isinstance(given, Mapping):
            return tuple(Field.of(value, name) for name, value in given.items())
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise ConfigError(f"fields is {given!r}; it must be a list of fields, or a mapping of names to values")
        return tuple(Field.of(each) for each in given)

    def _wrong(self, key: str, value: object, right: str) -> ConfigError:
        return ConfigError(f"{title_of(self.name)}: {key} is {value!r}; it must be {right}")

    def _check_number(self, key: str, value: object, low: float, high: float) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self._wrong(key, value, f"a number from {low:g} to {high:g}")

    def _check_whole(self, key: str, value: object, low: int, high: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._wrong(key, value, f"a whole number from {low} to {high}")

    @classmethod
    def of(cls, given: Mapping[str, Any], name: str) -> Stream:
        """Return the stream that a mapping of a file describes.

        :param name: the name if it gives none.
        :raises ConfigError: a key does not exist, or a value is wrong.
        """
        shown = given.get("name", name)
        for key in given:
            if key not in KEYS:
                raise ConfigError(
                    f"{title_of(shown)}: {key!r} is not a key; it must be one of {', '.join(KEYS)}"
                    f"{did_you_mean(str(key), KEYS)}"
                )
        return cls(**{"name": name, **given})

    def with_(self, **changes: Any) -> Stream:
        """Return a copy with some values changed."""
        return replace(self, **changes)

    def opposite(self) -> Stream:
        """Return the stream of the other direction: its fields have source and destination exchanged.

        :meth:`templates` of it must be given ``backward``.
        """
        return replace(self, fields=tuple(field.opposite() for field in self.varied))

    def templates(self, mode: Mode, *, mark: bool, backward: bool = False) -> list[Template]:
        """Return the packets at their full sizes, in the order in which they are sent.

        :param mark: whether the packets get a mark.
        :param backward: whether source and destination are exchanged.
        :raises ConfigError: a packet cannot have its size, has no room for the mark, or lacks a field; or there are
            too many packets.
        :raises MemifError: the capture cannot be read.
        """
        try:
            packets = capture_packets(self.pcap, mode) if self.pcap is not None else [packet_bytes(self.packet)]
            if backward:
                packets = [reversed_packet(data, mode) for data in packets]
            length = math.lcm(len(packets), max(len(self.sizes), 1))
            if length > _LONGEST_PATTERN:
                raise ConfigError(
                    f"{len(packets)} packets in {len(self.sizes)} sizes make a pattern of {length}; "
                    f"it may have {_LONGEST_PATTERN}"
                )
            check_room(length, max([*map(len, packets), *self.sizes]))
            made = []
            sizes: Sequence[int | None] = self.sizes or (None,)
            pairs = zip(itertools.cycle(packets), itertools.cycle(sizes), strict=False)
            for data, size in itertools.islice(pairs, length):
                whole = data if size is None else sized(data, size, mode, fcs=self.fcs)
                made.append(Template.of(whole, mode))
            if mark:
                made = marked(made, fcs=self.fcs and mode is not Mode.IP)
            places_of(made, self.varied, mark=mark)
            return made
        except ConfigError as error:
            raise ConfigError(f"{title_of(self.name)}: {error}") from error


def check_names(streams: Sequence[Stream]) -> None:
    """Check that each stream has a name of its own, also beside those of opposite directions in a report.

    :raises ConfigError: one has not.
    """
    names = Counter(stream.name for stream in streams)
    for name, count in names.items():
        if count > 1:
            raise ConfigError(f"{count} streams have the name {name!r}; each needs a name of its own")
        if back_name(name) in names:
            raise ConfigError(
                f"a stream has the name {back_name(name)!r}, which the opposite direction of {name!r} has in reports; "
                "it needs another name"
            )


def directions_of(stream: Stream, interfaces: int) -> list[int]:
    """Return the interfaces that a stream is sent on, by number.

    :param interfaces: how many there are, 1 or 2.
    :raises ConfigError: the stream needs a second one.
    """
    direction = stream.direction or ("both" if interfaces == 2 else "forward")
    if direction != "forward" and interfaces == 1:
        raise ConfigError(f"{title_of(stream.name)}: direction is {direction!r}, which needs a second interface")
    return {"forward": [0], "backward": [1], "both": [0, 1]}[direction]


@dataclass(frozen=True, slots=True)
class Prepared:
    """The packets of a stream in one direction.

    :ivar index: the number of the interface that sends them.
    :ivar width: the bytes of the longest packet in a buffer.
    """

    stream: Stream
    index: int
    varied: Sequence[Field]
    templates: list[Template]
    width: int


def prepare_streams(
    streams: Sequence[Stream], modes: Sequence[Mode], *, check: bool, queues: Sequence[int]
) -> list[Prepared]:
    """Return the packets of all streams, and check all of them that needs no peer.

    :param modes: the mode of each interface.
    :param check: whether the packets get a mark.
    :param queues: how many transmit queues each interface has.
    :raises ConfigError: a packet cannot be made, names are given twice, a stream needs a second interface, or there are
        too many packets, streams and queues.
    """
    check_names(streams)
    found = []
    for stream in streams:
        for index in directions_of(stream, len(modes)):
            there = stream if index == 0 else stream.opposite()
            templates = there.templates(modes[index], mark=check, backward=index == 1)
            width = max(len(template.data) for template in templates)
            found.append(Prepared(stream, index, there.varied, templates, width))
    check_lanes(sum(queues[each.index] for each in found))
    check_all_room(sum(queues[each.index] * len(each.templates) * each.width for each in found))
    return found


def check_streams(
    streams: Sequence[Stream], modes: Sequence[Mode], *, check: bool, queues: Sequence[int] = (1, 1)
) -> int:
    """Check the streams as :func:`prepare_streams` does, and return the bytes of the longest packet in a buffer."""
    return max(each.width for each in prepare_streams(streams, modes, check=check, queues=queues))


def check_lanes(count: int) -> None:
    """Check that a mark has a number for each lane.

    :raises ConfigError: there are too many lanes.
    """
    if count > MAX_LANES:
        raise ConfigError(f"the streams have {count} lanes (directions and queues); they may have {MAX_LANES}")


def title_of(name: object) -> str:
    """Return how an error names a stream: ``stream dns``, but ``stream`` or ``stream 2`` if it has no name."""
    return str(name) if re.fullmatch(r"stream( \d+)?", str(name)) else f"stream {name}"


def back_name(name: str) -> str:
    """Return what the opposite direction of a stream is called in a report."""
    return f"{name} (back)"


#: The keys of a stream in a file.
KEYS = tuple(each.name for each in fields(Stream) if each.init)
