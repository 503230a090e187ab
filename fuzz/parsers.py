"""Parsers of what others write: command-line endpoints, the JSON of a stats socket, control messages.

Owns long texts, made of a short one that is repeated: what a parser is slow at shows only in those. How long an input
took is for whoever runs the target to measure.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from fuzz.script import Script
from memifrt.capture.rewrite import parse_mac_pair, parse_maps
from memifrt.cli.endpoint import parse_endpoint, parse_memif_endpoint
from memifrt.cli.postrotate import parse_command
from memifrt.control.address import Address
from memifrt.control.wire import MESSAGE_SIZE, decode, encode
from memifrt.errors import ConfigError, ProtocolError
from memifrt.stats.client import parse_snapshot
from memifrt.stats.prometheus import parse_endpoint as parse_prometheus
from memifrt.types import printable

#: Bytes of the longest text.
_LONGEST = 1 << 14
#: What the parsers look for, at the beginning, again and again, and at the end.
_WORDS = (
    b"", b"memif:", b"tap:", b"packet:", b"@x", b",", b"=", b":", b"[", b"]", b"{", b"}", b'"', b"\\", b"0", b"1", b"e",
    b"-", b".", b" ", b"\n", b"\0", b"secret=", b"id=", b"socket=", b'{"a":', b"127.0.0.1:",
    b'{"schema":"memifrt-stats","version":1,',
)  # fmt: skip


def _text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: parse(data.decode(errors="surrogateescape"))


def _message(data: bytes) -> None:
    """What is understood is said again in the same way."""
    message = decode(data[:MESSAGE_SIZE].ljust(MESSAGE_SIZE, b"\0"))
    with contextlib.suppress(ProtocolError):
        decode(encode(message))


#: Each parser, and what it says to a text that is wrong.
_PARSERS: tuple[tuple[Callable[[bytes], object], type[Exception]], ...] = (
    (_text(parse_endpoint), ConfigError),
    (_text(parse_memif_endpoint), ConfigError),
    (_text(parse_prometheus), ConfigError),
    (_text(Address.parse), ConfigError),
    (_text(parse_maps), ConfigError),
    (_text(parse_mac_pair), ConfigError),
    (_text(parse_command), ConfigError),
    (_text(printable), ConfigError),
    (parse_snapshot, ValueError),
    (_message, ProtocolError),
    (decode, ProtocolError),
)


class ParserTarget:
    """Reads one text with one parser."""

    def __init__(self) -> None:
        self.inputs = 0

    def __call__(self, data: bytes) -> None:
        self.inputs += 1
        script = Script(data)
        parse, refusal = script.pick(_PARSERS)
        start, again, end = (self._piece(script) for _ in range(3))
        times = _LONGEST // max(len(again), 1) if script.rarely() else script.below(4)
        with contextlib.suppress(refusal):
            parse(start + again * times + end)

    def _piece(self, script: Script) -> bytes:
        return b"".join(
            script.pick(_WORDS) if script.below(2) else script.take(script.below(8)) for _ in range(script.below(4))
        )

    def check(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing to give back."""
