"""VLANs of a switch (IEEE 802.1Q): which frames a port may receive and send, and their tags.

Owns the configuration of a port, its text, and the change of tags. Knows nothing of ports or tables.

A frame with a tag of another type, such as 802.1ad (0x88a8), counts as untagged. A frame with a tag of VLAN 0 (a
priority tag) counts as untagged, too; its priority is kept if the frame leaves with a tag.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memifrt.errors import ConfigError

#: The bytes of a frame that say where it goes: two addresses, the EtherType, and the tag's value if there is one.
HEADER_BYTES = 16
_TAG_TYPE = b"\x81\x00"
#: The bits of a tag's value that are the VLAN.
_ID_BITS = 0x0FFF
_FIRST, _LAST = 1, 4094
ALL = frozenset(range(_FIRST, _LAST + 1))

TAGGED_ON_ACCESS = "tagged on an access port"
UNTAGGED_ON_TRUNK = "untagged on a trunk without a native VLAN"
NOT_ALLOWED = "of a VLAN that the port does not carry"


@dataclass(frozen=True, slots=True)
class PortVlans:
    """The VLANs of a port: one (an access port), or several with tags (a trunk).

    :ivar untagged: the VLAN of frames without a tag, the only one of an access port and the native one of a trunk; 0 if
        a trunk has none.
    :ivar tagged: the VLANs with a tag in their frames. Empty for an access port.
    """

    untagged: int = 0
    tagged: frozenset[int] = frozenset()

    def carries(self, vlan: int) -> bool:
        """Return whether frames of this VLAN may leave here."""
        return vlan == self.untagged or vlan in self.tagged

    def __str__(self) -> str:
        if not self.tagged:
            return f"vlan={self.untagged}"
        native = f",native={self.untagged}" if self.untagged else ""
        return f"trunk={_ranges(self.tagged)}{native}"


@dataclass(frozen=True, slots=True)
class Classified:
    """An incoming frame: its VLAN (0 if ``dropped`` has a reason), and how its tag changes.

    :ivar cut: the number of bytes after the addresses that are its tag.
    :ivar tag: the tag of the frame if it leaves with one.
    """

    vlan: int
    cut: int = 0
    tag: bytes = b""
    dropped: str = ""

    def without_tag(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        return [frame[:12] + frame[16:] for frame in frames] if self.cut else frames

    def with_tag(self, frames: Sequence[bytes]) -> Sequence[bytes]:
        tag, start = self.tag, 12 + self.cut
        if not frames or frames[0][12:16] == tag:
            return frames
        return [frame[:12] + tag + frame[start:] for frame in frames]


def classify(vlans: PortVlans, header: bytes) -> Classified:
    """Return the VLAN of a frame that came to a port with these VLANs.

    :param header: the first :data:`HEADER_BYTES` of the frame.
    """
    value = int.from_bytes(header[14:16], "big") if header[12:14] == _TAG_TYPE else 0
    cut = 4 if header[12:14] == _TAG_TYPE else 0
    vlan = value & _ID_BITS
    if vlan == 0:
        vlan = vlans.untagged
        if vlan == 0:
            return Classified(0, dropped=UNTAGGED_ON_TRUNK)
    elif not vlans.tagged:
        return Classified(0, dropped=TAGGED_ON_ACCESS)
    elif not vlans.carries(vlan):
        return Classified(0, dropped=NOT_ALLOWED)
    return Classified(vlan, cut, _TAG_TYPE + (value & ~_ID_BITS | vlan).to_bytes(2, "big"))


# --- text -----------------------------------------------------------------------------------------------------------


def parse_vlan(text: str) -> int:
    """Parse the number of a VLAN.

    :raises ConfigError: it is not a whole number from 1 to 4094.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and _FIRST <= int(text) <= _LAST):
        raise ConfigError(f"{text!r} is not a VLAN; it must be a whole number from {_FIRST} to {_LAST}")
    return int(text)


def parse_vlans(text: str) -> frozenset[int]:
    """Parse VLANs like ``10+20``, ``10-19+30`` or ``all``.

    :raises ConfigError: the text is none of these.
    """
    if text == "all":
        return ALL
    found: set[int] = set()
    for part in text.split("+"):
        first, dash, last = part.partition("-")
        low = parse_vlan(first)
        high = parse_vlan(last) if dash else low
        if high < low:
            raise ConfigError(f"{part!r}: the last VLAN of a range must not be lower than the first")
        found.update(range(low, high + 1))
    return frozenset(found)


def _ranges(vlans: frozenset[int]) -> str:
    if vlans == ALL:
        return "all"
    parts: list[list[int]] = []
    for vlan in sorted(vlans):
        if parts and parts[-1][1] == vlan - 1:
            parts[-1][1] = vlan
        else:
            parts.append([vlan, vlan])
    return "+".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
