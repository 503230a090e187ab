"""The text of LLC and SNAP headers, which 802.3 frames have instead of an EtherType, in tcpdump's words."""

from __future__ import annotations

from dataclasses import dataclass

from memifrt.capture.line_parts import ETHERTYPES, Layers, joined, unpack
from memifrt.capture.line_stp import stp_pieces

_IP, _STP, _SNAP = 0x06, 0x42, 0xAA
_SAPS = {
    0x00: "Null",
    0x02: "Global",
    0x04: "SNA",
    _IP: "IP",
    0x0E: "ProWay NM",
    _STP: "STP",
    0x8E: "ProWay ASM",
    _SNAP: "SNAP",
    0xE0: "IPX",
    0xF0: "NetBeui",
    0xFE: "OSI",
}
_UNNUMBERED, _POLL = 3, 0x10
_UI, _XID = 0x03, 0xAF
_COMMANDS = {_UI: "ui", 0x6F: "sabme", 0xE3: "test", 0x63: "ua", 0x43: "disc", 0x0F: "dm", _XID: "xid", 0x87: "frmr"}
_SUPERVISORY = ("Receiver Ready", "Receiver not Ready", "Reject", "?")
_FLAGS = ("Command", "Response", "Poll", "Final")
_ETHERNET, _CISCO, _CISCO_BRIDGED, _BRIDGED = 0x000000, 0x00000C, 0x0000F8, 0x0080C2
_ORGANIZATIONS = {
    _ETHERNET: "Ethernet",
    _CISCO: "Cisco",
    _CISCO_BRIDGED: "Cisco bridged",
    _BRIDGED: "Ethernet bridged",
    0x080007: "Appletalk",
}
_PROTOCOLS = {
    _CISCO: {0x010B: "PVST", 0x2000: "CDP", 0x2003: "VTP", 0x2004: "DTP", 0x0111: "UDLD", 0x010C: "VLAN Bridge"},
    _BRIDGED: {0x0001: "Ethernet + FCS", 0x0007: "Ethernet w/o FCS", 0x000E: "BPDU"},
    _CISCO_BRIDGED: ETHERTYPES,
}
#: The bytes in front of a bridged frame.
_PADDING = 2
_FRAMES, _BPDU, _PVST = (0x0001, 0x0007), 0x000E, 0x010B


@dataclass(frozen=True, slots=True)
class _Header:
    target: int
    source: int
    control: int
    is_unnumbered: bool

    @property
    def flags(self) -> str:
        poll = self.control & (_POLL if self.is_unnumbered else 0x100)
        return _FLAGS[(self.source & 1) + (2 if poll else 0)]


def llc_text(layers: Layers, data: bytes, length: int, ends: tuple[str, str]) -> str:
    """Return the text of the payload of an 802.3 frame.

    :param length: its length before it was cut.
    :param ends: the addresses of the frame, which are printed with what is unknown unless they have been printed.
    """
    if len(data) < 3:
        return " [|llc]" + layers.dump(data)
    target, source, control = unpack("!BBB", data)
    is_unnumbered = control & 3 == _UNNUMBERED
    if not is_unnumbered:
        if len(data) < 4:
            return " [|llc]" + layers.dump(data)
        (control,) = unpack("<2xH", data)
    header = _Header(target, source, control, is_unnumbered)
    text = _link_text(header) if layers.link else ""
    made = None
    if is_unnumbered and control & ~_POLL == _UI and target == source:
        made = _known(layers, target, data[3:], length - 3)
    if made is not None:
        return text + made
    if target == source == _SNAP and control == _UI:
        return text + _snap(layers, data, length, ends)
    if not layers.link:
        text = _ends(header, ends)
    return text + _unknown(layers, header, data, length)


def llc_size(data: bytes, at: int) -> int:
    """Return the size of the LLC header at a place, with that of SNAP, as far as it is there."""
    header = data[at : at + 8]
    if len(header) < 3:
        return len(header)
    if header[2] & 3 != _UNNUMBERED:
        return min(len(header), 4)
    return len(header) if header[:3] == bytes((_SNAP, _SNAP, _UI)) else 3


def _link_text(header: _Header) -> str:
    target, source = (_SAPS.get(sap & 0xFE, "Unknown") for sap in (header.target, header.source))
    group = "Group" if header.target & 1 else "Individual"
    way = "Response" if header.source & 1 else "Command"
    digits = 2 if header.is_unnumbered else 4
    return (
        f"LLC, dsap {target} (0x{header.target & 0xFE:02x}) {group}, "
        f"ssap {source} (0x{header.source & 0xFE:02x}) {way}, ctrl 0x{header.control:0{digits}x}: "
    )


def _ends(header: _Header, ends: tuple[str, str]) -> str:
    target, source = header.target & 0xFE, header.source & 0xFE
    if target == source:
        return f"{ends[0]} > {ends[1]} {_SAPS.get(target, f'Unknown DSAP 0x{target:02x}')} "
    return (
        f"{ends[0]} {_SAPS.get(source, f'Unknown SSAP 0x{source:02x}')} > "
        f"{ends[1]} {_SAPS.get(target, f'Unknown DSAP 0x{target:02x}')} "
    )


def _known(layers: Layers, sap: int, data: bytes, length: int) -> str | None:
    if sap == _STP:
        return joined(stp_pieces(data, length, layers.verbose), "stp")
    return layers.ip(data, length, 4) if sap == _IP else None


def _unknown(layers: Layers, header: _Header, data: bytes, length: int) -> str:
    control = header.control
    if header.is_unnumbered:
        command = control & ~_POLL
        text = f"Unnumbered, {_COMMANDS.get(command, f'{command:02x}')}, Flags [{header.flags}], length {length}"
        if command == _XID and data[3:4] == b"\x81":
            return text + f": {data[4:5].hex()} {data[5:6].hex()}"
        return text + layers.dump(data)
    number = control >> 9
    if control & 3 == 1:
        text = f"Supervisory, {_SUPERVISORY[control >> 2 & 3]}, rcv seq {number}, Flags [{header.flags}]"
        return f"{text}, length {length}"
    text = f"Information, send seq {control >> 1 & 0x7F}, rcv seq {number}, Flags [{header.flags}], length {length}"
    return text + layers.dump(data)


def _snap(layers: Layers, data: bytes, length: int, ends: tuple[str, str]) -> str:
    if len(data) < 8:
        return " [|snap]"
    high, low, kind = unpack("!3xBHH", data)
    organization = high << 16 | low
    payload, left = data[8:], length - 8
    if organization == _ETHERNET:
        shown = f"ethertype {ETHERTYPES.get(kind, 'Unknown')} (0x{kind:04x})"
    else:
        shown = f"pid {_PROTOCOLS.get(organization, {}).get(kind, 'Unknown')} (0x{kind:04x})"
    of = f"oui {_ORGANIZATIONS.get(organization, 'Unknown')} (0x{organization:06x}), "
    full = f"{of}{shown}, length {left}: "
    text = full if layers.link else ""
    made: str | None = None
    if organization in (_ETHERNET, _CISCO_BRIDGED):
        made = layers.payload(kind, payload, left)
    elif organization == _BRIDGED and kind in _FRAMES:
        made = layers.inside.frame(payload[_PADDING:], left - _PADDING)
    elif (organization, kind) in ((_BRIDGED, _BPDU), (_CISCO, _PVST)):
        made = joined(stp_pieces(payload, left, layers.verbose), "stp")
    if made is not None:
        return text + made
    if not layers.link:
        text = f"{ends[0]} > {ends[1]} SNAP, {full if organization else full.removeprefix(of)}"
    return text + layers.dump(data)
