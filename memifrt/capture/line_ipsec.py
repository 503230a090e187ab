"""The texts of ESP, AH and IPComp, in tcpdump's words."""

from __future__ import annotations

from collections.abc import Iterator

from memifrt.capture.line_parts import Cut, Datagram, unpack

#: The part of AH in front of the integrity check value.
_AH_HEADER = 12


def esp_pieces(ip: Datagram) -> Iterator[str]:
    """Yield the parts of the text of ESP.

    :raises Cut: the header is cut off.
    """
    yield ip.ends
    number, sequence = unpack("!IIx", ip.data)  # with the first byte of the payload
    yield f"ESP(spi=0x{number:08x},seq=0x{sequence:x}), length {ip.length}"


def ipcomp_pieces(ip: Datagram) -> Iterator[str]:
    """Yield the parts of the text of IPComp.

    :raises Cut: the header is cut off.
    """
    yield ip.ends
    yield f"IPComp(cpi=0x{unpack('!2xH', ip.data)[0]:04x})"


def ah_size(data: bytes, at: int) -> int:
    """Return the size of an authentication header by its length field, 0 if that is cut off."""
    return 4 * (data[at + 1] + 2) if at + 2 <= len(data) else 0


def ah_pieces(data: bytes, at: int, verbose: int) -> Iterator[str]:
    """Yield the parts of the text of an authentication header.

    :raises Cut: the header is cut off.
    """
    if at >= len(data):
        raise Cut
    yield "AH("
    if at + _AH_HEADER > len(data):
        if verbose and at + 2 <= len(data):
            yield f"length={data[at + 1]}({4 * data[at + 1] + 8}-bytes),"
        raise Cut
    units, reserved, number, sequence = unpack("!xBHII", data, at)
    if verbose:
        yield f"length={units}({4 * units + 8}-bytes),"
    if reserved:
        yield f"reserved=0x{reserved:x}[MustBeZero],"
    yield f"spi=0x{number:08x},seq=0x{sequence:x},icv=0x"
    end = at + ah_size(data, at)
    yield data[at + _AH_HEADER : end].hex()
    if end > len(data):
        raise Cut
    yield "): "
