"""What others write is read in a time that grows linearly with its length.

Each parser gets long texts of what it looks for. A quadratic parser takes minutes, and the deadline ends it.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from memifrt.cli.arguments import Parser
from memifrt.cli.endpoint import parse_endpoint
from memifrt.control.address import Address
from memifrt.control.wire import MESSAGE_SIZE, decode
from memifrt.errors import MemifError
from memifrt.stats.client import parse_snapshot
from memifrt.stats.prometheus import parse_endpoint as parse_prometheus
from memifrt.stats.web import parse_endpoint as parse_page
from memifrt.types import printable
from tests.lib.support import DEADLINE

#: Characters of an argument, and bytes of what a stats socket says.
TYPED, SIZE = 1 << 15, 1 << 17


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """Even code in C that does not come back ends."""
    before = signal.signal(signal.SIGALRM, _too_slow)
    signal.alarm(int(DEADLINE))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _too_slow(number: int, frame: object) -> None:
    raise AssertionError("this takes more than linear time")


def refuse_arguments(text: str) -> None:
    """The command line's own words for an argument that is wrong, without the secrets in it."""
    parser = Parser(prog="memifrt")
    parser.given = [text, "--secret", text[: TYPED // 4]]
    parser.error(f"argument: {text}")


def snapshot(**fields: Any) -> bytes:
    return json.dumps({"schema": "memifrt-stats", "version": 1, **fields}).encode()


#: Repetitions of what a parser looks for.
PIECES = ["a", ",", "=", ":", "@", "[", "]", " ", "-", "0", "1", "\n", "\0", "\x1b", "\udc80", ",a=b", ",secret=a-"]
TEXTS = [piece * (TYPED // len(piece)) for piece in PIECES] + [",".join(f"secret={n}" for n in range(TYPED // 14))]


@pytest.mark.parametrize(
    "parse", [parse_endpoint, parse_prometheus, parse_page, Address.parse, printable, refuse_arguments]
)
def test_what_is_typed(parse: Callable[[str], object], capsys: pytest.CaptureFixture[str]) -> None:
    for text in TEXTS:
        for start in ("", "tap:"):
            with contextlib.suppress(MemifError, SystemExit):
                parse(start + text)


INTERFACE = {"id": 1 << 63, "name": "x"}


@pytest.mark.parametrize(
    "line",
    [
        b"[" * SIZE,
        b'{"a":' * (SIZE // 5),
        b'"' + b"\\u0041" * (SIZE // 6) + b'"',
        b'"' + b"\\" * SIZE,
        b" " * SIZE,
        b"1" * SIZE,
        b"-" * SIZE,
        b"1e" + b"9" * SIZE,
        b"0." + b"1" * SIZE,
        b"\xff" * SIZE,
        b"[" + b"1," * (SIZE // 2) + b"1]",
        b"{" + b'"a":1,' * (SIZE // 6) + b'"a":1}',
        b"{" + b",".join(b'"%d":%d' % (n, n) for n in range(SIZE // 14)) + b"}",
        snapshot(interfaces=[INTERFACE] * (SIZE // 40)),
        snapshot(interfaces="x" * SIZE),
        snapshot(name="x" * SIZE),
    ],
    ids=range(16),
)
def test_what_comes_from_a_stats_socket(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_snapshot(line)


def test_a_message_has_one_length() -> None:
    for kind in range(256):
        for filler in (b"\0", b"\xff", b"a", b"\x80"):
            with contextlib.suppress(MemifError):
                decode(kind.to_bytes(2, "little") + filler * (MESSAGE_SIZE - 2))
    with pytest.raises(MemifError, match=f"message of {SIZE} bytes"):
        decode(bytes(SIZE))
