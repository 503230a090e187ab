"""The files of ``tests/capture/protocol_lines``: packets, and what tcpdump prints for them.

A file has a block for each packet: the options, the length of the packet on the wire, and the bytes that were captured,
then the lines. They were made with ``tcpdump -n -S -t`` of 4.99.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

FILES = sorted((Path(__file__).parents[1] / "capture" / "protocol_lines").glob("*.txt"))


def blocks(path: Path) -> Iterator[tuple[str, int, bytes, str]]:
    """The options, length, captured bytes and expected lines of each packet."""
    for block in path.read_text().split("\n\n"):
        head, _, lines = block.partition("\n")
        options, length, data = head.split(" ")
        yield options.strip("-"), int(length), bytes.fromhex(data), lines.rstrip("\n") + "\n"
