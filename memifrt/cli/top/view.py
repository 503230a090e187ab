"""The choice and order of what ``memifrt top`` shows, and the keys that change them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from memifrt.cli.program import one_line
from memifrt.cli.top.drawing import Line
from memifrt.cli.top.rows import each_queue, state_name
from memifrt.stats.client import Program
from memifrt.stats.snapshot import InterfaceStats

#: The orders of interfaces: as they were created, by the highest value, or by name.
SORTS = ("created", "packets", "bits", "ring", "full", "name")


@dataclass(slots=True)
class View:
    """What the user wants to see.

    :ivar sort: one of :data:`SORTS`.
    :ivar filter: show only interfaces with this text, in any case, in their names, paths, peers or states.
    :ivar offset: the first line to show.
    :ivar typing: whether the user types the filter.
    """

    sort: str = SORTS[0]
    filter: str = ""
    offset: int = 0
    typing: bool = False

    def choose(self, programs: Sequence[Program]) -> list[tuple[Program, list[InterfaceStats]]]:
        """Return the programs and interfaces that the filter lets through, in order."""
        chosen = []
        for program in programs:
            interfaces = list(program.snapshot["interfaces"]) if program.snapshot else []
            if not self._matches(_program_text(program)):
                interfaces = [interface for interface in interfaces if self._matches(_interface_text(interface))]
                if not interfaces:
                    continue
            if self.sort != "created":
                interfaces.sort(key=lambda interface: self._key(program, interface))
            chosen.append((program, interfaces))
        if self.sort == "name":
            chosen.sort(key=lambda pair: pair[0].snapshot["name"] if pair[0].snapshot else pair[0].path)
        elif self.sort != "created":  # the program of the first interface first; those without interfaces last
            chosen.sort(key=lambda pair: self._key(pair[0], pair[1][0]) if pair[1] else (1.0, ""))
        return chosen

    def note(
        self, programs: Sequence[Program], chosen: Sequence[tuple[Program, Sequence[InterfaceStats]]]
    ) -> list[Line]:
        """Return a line that says what the filter hides; none without a filter."""
        if not self.filter and not self.typing:
            return []
        total = sum(len(program.snapshot["interfaces"]) for program in programs if program.snapshot)
        hidden = total - sum(len(interfaces) for _, interfaces in chosen)
        text = f"filter: {one_line(self.filter)}{'_' if self.typing else ''}"
        programs_hidden = len(programs) - len(chosen)
        what = f"{hidden} of {total} interfaces and {programs_hidden} of {len(programs)} programs are hidden"
        return [[(text, "bold"), (f"  ({what}; Esc shows all)", "dim")]]

    def press(self, keys: bytes, page: int) -> bool:
        """Handle the keys that were pressed.

        :param page: the lines of a page.
        :returns: whether one of them ends the program.
        """
        for key in _KEY.findall(keys):
            if self.typing and not (len(key) > 1 and key.startswith(b"\x1b")):
                self._type(key)
            elif key in (b"q", b"Q"):
                return True
            elif key == b"/":
                self.typing, self.filter = True, ""
            elif key == b"s":
                self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]
            elif key == b"\x1b":
                self.filter = ""
            else:
                self.offset = max(0, self.offset + _SCROLLS.get(key, 0) * (page if key in _PAGES else 1))
        return False

    def _type(self, key: bytes) -> None:
        if key in (b"\r", b"\n", b"\x1b"):
            self.typing = False
            if key == b"\x1b":
                self.filter = ""
        elif key in (b"\x7f", b"\b"):
            self.filter = self.filter[:-1]
        else:
            self.filter = (self.filter + key.decode(errors="ignore"))[:LONGEST_FILTER]

    def _matches(self, text: str) -> bool:
        return self.filter.casefold() in text.casefold()

    def _key(self, program: Program, interface: InterfaceStats) -> tuple[float, str]:
        """Return the key to sort by: the highest value comes first."""
        if self.sort == "name":
            return 0.0, interface["name"]
        rows = each_queue(program, interface)
        rates = [row.rates for row in rows if row.rates is not None]
        values = {
            "packets": sum(rate.packets for rate in rates),
            "bits": sum(rate.bits for rate in rates),
            "ring": max((row.share for row in rows if row.share is not None), default=0.0),
            "full": float(sum(row.ring_full for row in rows)),
        }
        return -values[self.sort], ""


#: Keys: an escape sequence, a character of UTF-8, or a byte.
_KEY = re.compile(rb"\x1b\[[0-9;]*[A-Za-z~]|\x1bO[A-Z]|[\xc2-\xf4][\x80-\xbf]+|[\x00-\xff]")
_PAGES = (b"\x1b[5~", b"\x1b[6~", b" ")
_FAR = 1 << 30
_SCROLLS = {
    b"\x1b[A": -1, b"\x1bOA": -1, b"k": -1, b"\x1b[B": 1, b"\x1bOB": 1, b"j": 1,
    b"\x1b[5~": -1, b"\x1b[6~": 1, b" ": 1,
    b"\x1b[H": -_FAR, b"\x1b[1~": -_FAR, b"g": -_FAR, b"\x1b[F": _FAR, b"\x1b[4~": _FAR, b"G": _FAR,
}  # fmt: skip
LONGEST_FILTER = 100


def _program_text(program: Program) -> str:
    return f"{program.snapshot['name'] if program.snapshot else ''} {program.path}"


def _interface_text(interface: InterfaceStats) -> str:
    peer = interface["peer"]
    words = [f"memif {interface['id']} {interface['role']}", interface["name"], interface["mode"], interface["socket"]]
    words += [state_name(interface), interface["error"]]
    return " ".join(words + ([peer["app_name"], peer["name"]] if peer else []))
