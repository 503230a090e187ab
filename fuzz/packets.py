"""Packets of others, as ``memifrt.packets`` answers and parses them.

Owns how an input becomes a packet: a good one, changed at any place, cut or continued. What is answered, and how, must
be the same from the readable and the compiled function.
"""

from __future__ import annotations

from fuzz.script import Script
from memifrt.packets import (
    arp_request,
    checksum,
    echo_request,
    neighbour_solicitation,
    parse_arp_reply,
    parse_echo_reply,
    parse_ip,
    parse_mac,
    parse_neighbour_advertisement,
    reply,
    reply_in_place,
)
from memifrt.types import Mode

_MAC, _ASKER_MAC = parse_mac("02:fe:00:00:00:02"), parse_mac("02:fe:00:00:00:01")
_IPS = parse_ip("2001:db8::2"), parse_ip("192.168.1.2")
_ASKERS = parse_ip("2001:db8::1"), parse_ip("192.168.1.1")
_MODES = (Mode.ETHERNET, Mode.IP, Mode.PUNT_INJECT)
_ETHERNET, _IPV6 = 14, 40


def _echo(number: int, mode: Mode) -> bytes:
    return echo_request(
        source_mac=_ASKER_MAC,
        source_ip=_ASKERS[number],
        target_mac=_MAC,
        target_ip=_IPS[number],
        identifier=1,
        sequence=2,
        payload=b"payload",
        mode=mode,
    )


_TEMPLATES = (
    _echo(0, Mode.ETHERNET),
    neighbour_solicitation(_ASKER_MAC, _ASKERS[0], _IPS[0]),
    _echo(0, Mode.IP),
    _echo(1, Mode.ETHERNET),
    _echo(1, Mode.IP),
    arp_request(_ASKER_MAC, _ASKERS[1], _IPS[1]),
    b"",
)


class PacketTarget:
    """Answers and parses one packet."""

    def __init__(self) -> None:
        self.inputs = 0

    def __call__(self, data: bytes) -> None:
        self.inputs += 1
        script = Script(data)
        packet = _packet(script)
        ip, mode, icmp = script.pick(_IPS), script.pick(_MODES), not script.rarely()
        compiled, readable = bytearray(packet), bytearray(packet)
        answered = reply_in_place(memoryview(compiled), ip, _MAC, mode=mode, icmp=icmp)
        assert reply(memoryview(readable), ip, _MAC, mode, icmp) == answered
        assert compiled == readable
        assert answered or compiled == packet
        for seen in (packet, bytes(compiled)):
            parse_arp_reply(seen)
            parse_neighbour_advertisement(seen)
            for either in (Mode.ETHERNET, Mode.IP):
                parse_echo_reply(seen, either)

    def check(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing to give back."""


def _packet(script: Script) -> bytes:
    packet = bytearray(script.pick(_TEMPLATES))
    for _ in range(script.below(6)):
        at = script.below(len(packet) + 1)
        change = script.take(1 + script.below(4))
        if script.below(3):
            packet[at : at + len(change)] = change
        else:
            packet[at:at] = change * (script.below(20) + 1)
    if script.rarely():
        del packet[script.byte() :]
    if script.below(2):
        _sum_up(packet)
    return bytes(packet)


def _sum_up(packet: bytearray) -> None:
    """Give an Ethernet frame with ICMPv6 a right checksum, without which few packets get far."""
    message = bytes(packet[_ETHERNET + _IPV6 : _ETHERNET + _IPV6 + int.from_bytes(packet[18:20], "big")])
    if len(message) >= 4:
        pseudo = bytes(packet[22:54]) + len(message).to_bytes(4, "big") + bytes([0, 0, 0, 58])
        packet[56:58] = checksum(pseudo + message[:2] + bytes(2) + message[4:]).to_bytes(2, "big")
