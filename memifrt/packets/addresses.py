"""MAC and IP addresses, as bytes and as text."""

from __future__ import annotations

import socket

from memifrt.errors import ConfigError
from memifrt.packets.common import check_mac

_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")
#: The address family of an IP address, by its length in bytes.
_FAMILIES = {4: socket.AF_INET, 16: socket.AF_INET6}


def parse_mac(text: str) -> bytes:
    """Return the 6 bytes of a MAC address such as ``02:fe:00:00:00:01`` (or with ``-``).

    :raises ConfigError: the text is not a MAC address.
    """
    parts = text.replace("-", ":").split(":")
    if len(parts) == 6 and all(len(part) in (1, 2) and set(part) <= _HEX_DIGITS for part in parts):
        return bytes(int(part, 16) for part in parts)
    raise ConfigError(f"{text!r} is not a MAC address; it must be like 02:fe:00:00:00:01")


def format_mac(mac: bytes) -> str:
    """Return a MAC address as text, such as ``02:fe:00:00:00:01``.

    :raises ConfigError: ``mac`` does not have 6 bytes.
    """
    check_mac(mac)
    return mac.hex(":")


def parse_ipv4(text: str) -> bytes:
    """Return the 4 bytes of an IPv4 address such as ``192.168.1.2``.

    :raises ConfigError: the text is not an IPv4 address.
    """
    try:
        return socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        raise ConfigError(
            f"{text!r} is not an IPv4 address; it must be four numbers up to 255, like 192.168.1.2"
        ) from None


def parse_ip(text: str) -> bytes:
    """Return the 4 bytes of an IPv4 address such as ``192.168.1.2``, or the 16 bytes of an IPv6 address.

    An IPv6 address has no zone: write ``fe80::2``, not ``fe80::2%eth0``.

    :raises ConfigError: the text is not an IP address.
    """
    for family in _FAMILIES.values():
        try:
            return socket.inet_pton(family, text)
        except (OSError, ValueError):
            continue
    raise ConfigError(f"{text!r} is not an IP address; it must be like 192.168.1.2 or 2001:db8::2")


def format_ip(ip: bytes) -> str:
    """Return an IP address as text, such as ``192.168.1.2`` or ``2001:db8::2``.

    :raises ConfigError: ``ip`` has neither 4 nor 16 bytes.
    """
    if len(ip) not in _FAMILIES:
        raise ConfigError(f"{ip!r} is not an IP address; it must have 4 bytes (IPv4) or 16 bytes (IPv6)")
    return socket.inet_ntop(_FAMILIES[len(ip)], ip)
