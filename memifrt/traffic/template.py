"""The packets that a stream is made from: a scapy expression, bytes, a scapy packet, or the packets of a capture.

Owns how an expression is read (no code runs: only scapy's layers, ``/`` and literals are allowed), which addresses
scapy's layers get when none are given, and sizes: one, a list, or a mix.
"""

from __future__ import annotations

import ast
import functools
import importlib
import ipaddress
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from memifrt.capture.pcap import LinkType, open_capture
from memifrt.errors import ConfigError
from memifrt.packets import parse_mac
from memifrt.traffic.layout import FCS, resized
from memifrt.types import Mode

if TYPE_CHECKING:
    from scapy.packet import Packet

#: The mixes of sizes. IMIX is 7 packets of 64 bytes, 4 of 570 and 1 of 1518, which FD.io CSIT calls IMIX_v4_1.
MIXES = {"imix": (64, 570, 64, 64, 570, 64, 64, 1518, 570, 64, 570, 64)}
#: Addresses for benchmarks (RFC 2544, RFC 5180), for layers that do not say which they want.
_ETHER = {"src": "02:00:00:00:00:01", "dst": "02:00:00:00:00:02"}
_IP = {"src": "198.18.0.1", "dst": "198.18.0.2"}
_IPV6 = {"src": "2001:2::1", "dst": "2001:2::2"}
_ARP = {"hwsrc": _ETHER["src"], "psrc": _IP["src"]}
#: scapy's modules with layers, the usual ones first; the others take a second to import.
_MODULES = ("scapy.packet", "scapy.layers.l2", "scapy.layers.inet", "scapy.layers.inet6", "scapy.layers.vxlan")
_ALL = "scapy.layers.all"
_LONGEST_TEXT, _DEEPEST = 65536, 50
#: The largest size in bytes, with FCS.
MAX_SIZE = 65535
#: The most packets and bytes of a capture.
_MANY_PACKETS, _MANY_BYTES = 65536, 64 << 20


# --- one packet -----------------------------------------------------------------------------------------------------


def packet_bytes(packet: Any) -> bytes:
    """Return the bytes of a packet that is given as bytes, hexadecimal text, a scapy expression or a scapy packet.

    :raises ConfigError: it is none of these.
    """
    if isinstance(packet, bytes | bytearray | memoryview):
        data = bytes(packet)
    elif isinstance(packet, str):
        text = packet.strip()
        hexadecimal = re.sub(r"[\s:]", "", text.removeprefix("hex"))
        if text and re.fullmatch(r"[0-9a-fA-F]+", hexadecimal):
            if len(hexadecimal) % 2:
                raise ConfigError(f"the packet {text[:60]!r} has {len(hexadecimal)} hexadecimal digits; it needs pairs")
            data = bytes.fromhex(hexadecimal)
        else:
            data = built(parse_expression(text))
    elif hasattr(packet, "fields_desc") and hasattr(packet, "payload"):
        data = built(packet)
    else:
        raise ConfigError(
            f"the packet is {packet!r:.60}, a {type(packet).__name__}; it must be a scapy expression like "
            "Ether()/IP()/UDP(), hexadecimal text, bytes or a scapy packet"
        )
    if not data:
        raise ConfigError("the packet is empty; it needs at least one byte")
    return data


def built(packet: Packet) -> bytes:
    """Return the bytes of a scapy packet. Addresses that it leaves open are those for benchmarks, not this machine's.

    :raises ConfigError: scapy cannot build it.
    """
    from scapy.layers.inet import IP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import ARP, Ether

    made: Any = packet.copy()
    defaults: dict[Any, dict[str, str]] = {Ether: _ETHER, IP: _IP, IPv6: _IPV6, ARP: _ARP}
    layer = made
    while layer:
        for kind, addresses in defaults.items():
            if isinstance(layer, kind):
                for name, address in addresses.items():
                    if name not in layer.fields:
                        setattr(layer, name, address)
        layer = layer.payload
    try:
        return bytes(made)
    except Exception as error:  # scapy raises what its fields run into
        raise ConfigError(f"scapy cannot build {packet.summary()}: {_line(error)}") from error


def parse_expression(text: str) -> Packet:
    """Return the packet of a scapy expression like ``Ether()/IP(dst="10.0.0.1")/UDP(dport=53)``.

    Only layers of scapy, ``/``, literals and the product of bytes and a number are allowed, so text from a file runs no
    code, looks up no names and sends nothing.

    :raises ConfigError: the text is something else, or a value does not suit its field.
    """
    if len(text) > _LONGEST_TEXT:
        raise ConfigError(f"the packet expression has {len(text)} characters; it may have {_LONGEST_TEXT}")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ConfigError(
            f"{text[:60]!r} is not a packet: {getattr(error, 'msg', error)}; it must be like Ether()/IP()/UDP()"
        ) from error
    from scapy.packet import Packet

    made = _Evaluator().value(tree.body, 0)
    if not isinstance(made, Packet):
        raise ConfigError(f"{text[:60]!r} is not a packet; it must be like Ether()/IP()/UDP()")
    return made


class _Evaluator:
    """Computes the value of an expression that holds nothing but layers and literals."""

    def value(self, node: ast.expr, depth: int) -> Any:
        if depth > _DEEPEST:
            raise ConfigError(f"the packet expression is nested more than {_DEEPEST} deep")
        match node:
            case ast.Constant(value) if isinstance(value, str | bytes | int | float | None):
                return value
            case ast.List(items):
                return [self.value(item, depth + 1) for item in items]
            case ast.Tuple(items):
                return tuple(self.value(item, depth + 1) for item in items)
            case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)):
                return -value
            case ast.BinOp(left, ast.Div(), right):
                return self._stacked(self.value(left, depth + 1), self.value(right, depth + 1), node)
            case ast.BinOp(left, ast.Mult(), right):
                return self._repeated(self.value(left, depth + 1), self.value(right, depth + 1), node)
            case ast.Call(ast.Name(name), arguments, keywords):
                return self._layer(name, arguments, keywords, depth)
        raise ConfigError(
            f"{ast.unparse(node)[:60]!r} is not allowed in a packet; it may have scapy's layers, / and literals, "
            "like Ether()/IP(dst='10.0.0.1')/UDP()"
        )

    def _stacked(self, upper: Any, lower: Any, node: ast.expr) -> Any:
        from scapy.packet import Packet

        if not isinstance(upper, Packet) or not isinstance(lower, Packet | bytes | str):
            raise ConfigError(f"{ast.unparse(node)[:60]!r}: / joins layers, and bytes behind them")
        return upper / lower

    def _repeated(self, data: Any, count: Any, node: ast.expr) -> Any:
        if not isinstance(data, bytes | str) or not isinstance(count, int) or not 0 <= len(data) * count <= MAX_SIZE:
            raise ConfigError(f"{ast.unparse(node)[:60]!r}: * repeats bytes, up to {MAX_SIZE} in all, like b'x' * 100")
        return data * count

    def _layer(self, name: str, arguments: list[ast.expr], keywords: list[ast.keyword], depth: int) -> Any:
        layer = _layer_class(name)
        names = {field.name: field for field in layer.fields_desc}
        given: dict[str, Any] = {}
        for keyword in keywords:
            if keyword.arg is None or keyword.arg not in names:
                raise ConfigError(f"{name} has no field {keyword.arg!r}; it has {', '.join(names) or 'none'}")
            given[keyword.arg] = self.value(keyword.value, depth + 1)
        for key, value in given.items():
            others = {other: each for other, each in given.items() if other != key}
            _check_value(name, names[key], value, functools.partial(layer, **others))
        values = [self.value(argument, depth + 1) for argument in arguments]
        if values and (name not in ("Raw", "Padding") or len(values) > 1 or not isinstance(values[0], bytes | str)):
            raise ConfigError(f"{name} takes its fields by name, like {name}({next(iter(names), 'load')}=...)")
        try:
            return layer(*values, **given)
        except Exception as error:  # scapy raises what its fields run into
            raise ConfigError(f"{name}: {_line(error)}") from error


def _layer_class(name: str) -> Any:
    from scapy.packet import Packet

    for module in (*_MODULES, _ALL):
        found = getattr(importlib.import_module(module), name, None)
        if isinstance(found, type) and issubclass(found, Packet) and found is not Packet:
            return found
    raise ConfigError(f"{name!r} is not a layer of scapy, such as Ether, Dot1Q, IP, IPv6, UDP, TCP, ICMP and Raw")


def _check_value(layer: str, field: Any, value: Any, probe: Callable[[], Any]) -> None:
    """Check that an address is one, and that a field has one value.

    scapy would look up any other text as a name, and it would make many packets of a network or a list.

    :param probe: makes the layer with its other fields: the kind of this field may depend on them.
    :raises ConfigError: it is not.
    """
    from scapy.fields import FieldListField, IP6Field, IPField, MACField, MultipleTypeField, StrFixedLenField
    from scapy.layers.inet6 import IP6ListField

    # A field of several types gives the attributes of one of them.
    inner = field if isinstance(field, MultipleTypeField) else getattr(field, "fld", field)
    if isinstance(inner, FieldListField):
        inner = inner.field
    elif isinstance(inner, IP6ListField):
        inner = IP6Field(field.name, None)
    elif isinstance(value, list | tuple) and not inner.islist:
        raise ConfigError(f"{layer}: {field.name} is {value!r}; it must be one value (fields vary it)")
    values = value if isinstance(value, list | tuple) else [value]
    for each in values:
        if not isinstance(each, str):
            continue
        chosen = inner
        kinds = [inner]
        if isinstance(inner, MultipleTypeField):
            kinds = [kind for kind, _ in inner.flds]
            if any(_is_address(kind, each) for kind in kinds):
                continue
            chosen = inner._find_fld_pkt_val(probe(), each)[0]
        addresses = [kind for kind in kinds if isinstance(kind, MACField | IPField | IP6Field)]
        if not addresses or _is_address(chosen, each):
            continue
        if chosen in addresses or isinstance(chosen, StrFixedLenField):
            kind = chosen if chosen in addresses else addresses[0]
            what = "a MAC" if isinstance(kind, MACField) else "an IPv4" if isinstance(kind, IPField) else "an IPv6"
            raise ConfigError(f"{layer}: {field.name} is {each!r}; it must be {what} address (fields vary it)")


def _is_address(field: Any, text: str) -> bool:
    """Return whether a text is an address of the kind that a field has."""
    from scapy.fields import IP6Field, IPField, MACField

    try:
        if isinstance(field, MACField):
            parse_mac(text)
        elif isinstance(field, IPField):
            ipaddress.IPv4Address(text)
        elif isinstance(field, IP6Field):
            ipaddress.IPv6Address(text)
        else:
            return False
    except ValueError:
        return False
    return True


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def capture_packets(path: str, mode: Mode) -> list[bytes]:
    """Return the packets of a capture file, if a memif of this mode carries its link type.

    :raises CaptureFileError: the file is not a capture.
    :raises ConfigError: it has no such packet, or too many.
    """
    wanted = LinkType.of(mode)
    packets: list[bytes] = []
    size = others = 0
    with open_capture(path) as reader:
        for packet in reader:
            if LinkType.mode_of(packet.link_type) is not mode or not packet.data:
                others += 1
                continue
            packets.append(packet.data.ljust(min(packet.length, MAX_SIZE), b"\0"))
            size += len(packets[-1])
            if len(packets) > _MANY_PACKETS or size > _MANY_BYTES:
                raise ConfigError(
                    f"{path} has more than {_MANY_PACKETS} packets or {_MANY_BYTES >> 20} MiB; "
                    "memifrt replay sends long captures"
                )
    if not packets:
        found = f"{others} packets of another link type, and none" if others else "no packet"
        raise ConfigError(f"{path} has {found} of link type {wanted.name}, which a memif in this mode carries")
    return packets


# --- sizes ----------------------------------------------------------------------------------------------------------

#: Sizes of a stream: one, several in turn, a mix by name, or None for the packet's own.
Sizes = int | str | Sequence[int] | None


def parse_sizes(given: Sizes) -> tuple[int, ...]:
    """Return sizes in bytes, in the order in which packets take them; empty: the packet's own size.

    :param given: a number, a list of numbers, ``"imix"``, or text like ``64,512,1518``.
    :raises ConfigError: it is none of these.
    """
    if given is None:
        return ()
    if isinstance(given, str):
        if given.strip().lower() in MIXES:
            return MIXES[given.strip().lower()]
        items: list[Any] = [part.strip() for part in given.split(",")]
    else:
        items = list(given) if isinstance(given, list | tuple) else [given]
    sizes = []
    for item in items:
        number = int(item) if isinstance(item, str) and re.fullmatch("[0-9]{1,6}", item) else item
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= MAX_SIZE:
            raise ConfigError(
                f"the size {item!r} must be a whole number of bytes from 1 to {MAX_SIZE}, several of them like "
                f"64,512,1518, or {' or '.join(MIXES)}"
            )
        sizes.append(number)
    if not sizes:
        raise ConfigError("the list of sizes is empty; it needs at least one")
    return tuple(sizes)


def sized(data: bytes, size: int, mode: Mode, *, fcs: bool) -> bytes:
    """Return a packet of a size; see :func:`memifrt.traffic.layout.resized`.

    :param fcs: whether the size counts the 4 bytes of an Ethernet FCS, which the memif does not carry.
    :raises ConfigError: the packet is longer.
    """
    wanted = size - (FCS if fcs and mode is not Mode.IP else 0)
    if wanted < len(data):
        least = len(data) + size - wanted
        raise ConfigError(f"the size {size} is too small for this packet; it must be at least {least}")
    return resized(data, wanted, mode)
