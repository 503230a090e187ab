"""Parse the endpoints of a bridge: ``memif:…``, ``tap:…`` and ``packet:…``.

Owns the syntax ``KIND:NAME,KEY=VALUE,…`` and the allowed keys and values. Opens nothing.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memifrt.cli.arguments import interface_config, own_mac, socket_path, whole, with_name
from memifrt.errors import ConfigError
from memifrt.options import DEFAULT_SOCKET, TEXT_OPTIONS, InterfaceOptions
from memifrt.ports.endpoint import DEFAULTS, Endpoint, MemifEndpoint, PacketEndpoint, TapEndpoint
from memifrt.types import Mode

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: The longest name of a kernel interface in bytes, without the NUL.
_IFNAMSIZ = 15
#: The smallest MTU of IPv4, and the largest one of a TAP device.
_MTU = (68, 65521)

#: The text for the help of commands that take endpoints.
MEMIF_SYNTAX = """\
  memif:PATH[,role=master|slave][,id=N][,mode=ethernet|ip][,secret=S]
            [,queues=N][,ring-size=N][,buffer-size=N]
            [,rx-mode=adaptive|interrupt|polling]
            [,num-s2m-rings=N][,num-m2s-rings=N][,netns=NS]
            PATH is @name for an abstract socket"""
SYNTAX = f"""{MEMIF_SYNTAX}
  tap:NAME[,mtu=N][,mac=M][,mode=ethernet|ip][,netns=NS]
            a TAP device (mode=ip: TUN), created if it does not exist
  packet:IFNAME[,mode=ethernet|ip][,netns=NS]
            a kernel interface (mode=ip: one without Ethernet headers,
            like TUN or WireGuard); NS is a name or a path"""


_Parse = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class _Kind:
    make: Callable[..., Endpoint]
    #: The key of a first value without a key.
    first: str
    keys: Mapping[str, tuple[str, _Parse]]


def parse_endpoint(text: str) -> Endpoint:
    """Parse an endpoint like ``memif:@lab,role=master``, ``tap:tap0,mtu=9000`` or ``packet:eth1``.

    :raises ConfigError: the text is not an endpoint. The message never shows a secret.
    """
    name, colon, rest = text.partition(":")
    if not colon or name not in _KINDS:
        kinds = ", ".join(f"{kind}:…" for kind in _KINDS)
        raise ConfigError(f"{name!r} is not a kind of endpoint; it must be one of {kinds}")
    kind = _KINDS[name]
    fields: dict[str, Any] = {}
    for number, part in enumerate(rest.split(",")):
        key, equals, value = part.partition("=")
        if number == 0 and not equals:
            if part == "":
                continue
            key, value = kind.first, part
        if key not in kind.keys:
            raise ConfigError(f"{key!r} is not an option of {name}:; it must be one of {', '.join(kind.keys)}")
        into, parse = kind.keys[key]
        if into in fields:
            raise ConfigError(f"{key} is given twice for {name}:")
        try:
            fields[into] = parse(value)
        except (ConfigError, argparse.ArgumentTypeError) as error:
            raise ConfigError(with_name(key, str(error))) from error
    if name != "memif" and not fields.get("name"):
        raise ConfigError(f"{name}: needs a name, like {name}:{'tap0' if name == 'tap' else 'eth1'}")
    return kind.make(**fields)


def parse_memif_endpoint(text: str) -> MemifEndpoint:
    """Parse a memif endpoint as :func:`parse_endpoint` does; ``memif:`` may be left out.

    :raises ConfigError: the text is not a memif endpoint.
    """
    endpoint = parse_endpoint(text if text.partition(":")[0] in _KINDS else f"memif:{text}")
    if not isinstance(endpoint, MemifEndpoint):
        raise ConfigError(f"{text!r} is not a memif; it must be like memif:@lab,role=master")
    return endpoint


def memif_endpoint(arguments: argparse.Namespace) -> MemifEndpoint:
    """Return the memif endpoint that the options of ``add_peer_arguments`` describe."""
    return MemifEndpoint(arguments.socket, interface_config(arguments))


def check_pair(a: Endpoint, b: Endpoint) -> None:
    """Check that two endpoints can be the ends of one bridge.

    :raises ConfigError: they have different modes, or they are the same.
    """
    if a.mode is not b.mode:
        carries = {Mode.ETHERNET: "Ethernet frames", Mode.IP: "IP packets"}
        raise ConfigError(
            f"{a} carries {carries[a.mode]} and {b} {carries[b.mode]}; both need the same mode (mode=ethernet, mode=ip)"
        )
    same = a == b
    if isinstance(a, MemifEndpoint) and isinstance(b, MemifEndpoint):
        same = (a.socket, a.config.role, a.config.id) == (b.socket, b.config.role, b.config.id)
    if same:
        raise ConfigError(f"both ends are {a}; they must differ, for example by id=N")


def _interface_name(text: str) -> str:
    if (
        not 0 < len(os.fsencode(text)) <= _IFNAMSIZ
        or "/" in text
        or any(c.isspace() for c in text)
        or text in (".", "..")
    ):
        raise ConfigError(
            f"{text!r} is not an interface's name; it must have 1 to {_IFNAMSIZ} bytes, without spaces or /"
        )
    return text


def _not_empty(text: str) -> str:
    if not text:
        raise ConfigError("it is empty; it must be a name or a path")
    return text


def _memif(socket: str = DEFAULT_SOCKET, netns: str = "", **options: Unpack[InterfaceOptions]) -> MemifEndpoint:
    if netns:
        socket = socket_path(f"{socket},netns_name={netns}")
    return MemifEndpoint(socket, DEFAULTS.replace(**options))


_NETNS = {"netns": ("netns", _not_empty)}
_KINDS = {
    "memif": _Kind(
        _memif,
        "socket",
        {
            "socket": ("socket", socket_path),
            **_NETNS,
            "netns_name": ("netns", _not_empty),  # as in VPP's names of sockets
            **{option.key: (option.name, option.parse) for option in TEXT_OPTIONS.values()},
        },
    ),
    "tap": _Kind(
        TapEndpoint,
        "name",
        {
            "name": ("name", _interface_name),
            "mode": ("mode", TEXT_OPTIONS["mode"].parse),
            "mtu": ("mtu", whole(*_MTU)),
            "mac": ("mac", own_mac),
            **_NETNS,
        },
    ),
    "packet": _Kind(
        PacketEndpoint,
        "name",
        {"name": ("name", _interface_name), "mode": ("mode", TEXT_OPTIONS["mode"].parse), **_NETNS},
    ),
}
