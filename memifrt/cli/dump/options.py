"""The options of ``memifrt dump`` for captured packets, as checked values."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from memifrt.capture.compression import without_suffix
from memifrt.capture.lines import LineStyle
from memifrt.capture.pcap import MAX_SNAPLEN
from memifrt.errors import ConfigError

_MOST_TIMES = 5
DEFAULT_LINE_STYLE = LineStyle()


@dataclass(frozen=True, slots=True)
class Rotation:
    """When to start a new file: after this many ``seconds`` or ``bytes``; 0 means never.

    :ivar files: the most files; 0 for no limit. With ``bytes``, the files form a ring: the oldest is written anew.
        Without ``bytes``, the capture ends after the last file.
    """

    seconds: int = 0
    bytes: int = 0
    files: int = 0

    def __bool__(self) -> bool:
        return bool(self.seconds or self.bytes)


@dataclass(frozen=True, slots=True)
class DumpOptions:
    """What to do with captured packets.

    :ivar path: the capture file; ``-`` is standard output; None prints lines.
    :ivar count: the number of packets after which to stop; None does not stop.
    :ivar snaplen: the most bytes of a packet to keep in a file.
    :ivar style: the lines: ``tcpdump``, or ``scapy`` for its summaries.
    :ivar lines: tcpdump's options for times, headers and hex dumps.
    :ivar command: the program, with its arguments, to run on each finished file of several.
    """

    path: str | None = None
    count: int | None = None
    rotation: Rotation = Rotation()
    snaplen: int = MAX_SNAPLEN
    filter: str = ""
    style: str = "tcpdump"
    lines: LineStyle = DEFAULT_LINE_STYLE
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.path is not None and os.path.basename(without_suffix(self.path)[0]) in ("", ".", ".."):
            raise ConfigError(f"-w {self.path!r}: it must be the name of a file, or - for standard output")
        if self.rotation and self.path in (None, "-"):
            raise ConfigError("-G and -C start new files: they need -w FILE")
        if self.rotation.files and not self.rotation:
            raise ConfigError("-W limits the files that -C or -G starts: it needs one of them")
        if self.command and not self.rotation:
            raise ConfigError("-z runs a command on each file that -C or -G ends: it needs one of them")
        lines = self.lines
        if self.style != "tcpdump" and (lines.link or lines.verbose or lines.quiet):
            raise ConfigError(f"-e, -v and -q print tcpdump's lines: they need --style tcpdump, not {self.style}")
        if lines.time > _MOST_TIMES:
            raise ConfigError(f"-t is given {lines.time} times; it has a meaning for up to {_MOST_TIMES}")
        if self.path == "-" and sys.stdout.isatty():
            raise ConfigError("-w - writes a capture, and standard output is a terminal: pipe it, or use -w FILE")
