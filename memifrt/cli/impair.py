"""The options of the command line that impair packets, and the file that changes them while a command runs.

Owns the syntax ``[DIRECTION:]KEY=VALUE,…`` and the thread that rereads the file. ``memifrt.ports.impairment`` owns the
values.
"""

from __future__ import annotations

import argparse
import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memifrt.cli.arguments import Parser, checked, file_name
from memifrt.errors import ConfigError, MemifError, os_error
from memifrt.ports.forwarding import Record
from memifrt.ports.impaired import Impaired
from memifrt.ports.impairment import NAMES, SETTINGS, Impairment, parse_setting
from memifrt.ports.port import Port
from memifrt.runtime import Runtime
from memifrt.types import Mode

#: Both directions, as they are written.
DIRECTIONS = ("a-to-b", "b-to-a")
#: Settings that impair nothing by themselves. Each needs one of the settings beside it.
_NEEDS = {
    "seed": {"jitter", "loss", "duplicate", "reorder", "corrupt"},
    "memory": {"delay", "jitter", "rate"},
    "match": {*NAMES} - {"seed", "memory", "match"},
}
#: Seconds between two looks at the file, and the most bytes that it may have.
_LOOK_INTERVAL, _LONGEST_FILE = 0.1, 65536

#: Values by direction, then by name.
_Values = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class ImpairmentOptions:
    """The impairments of both directions.

    :ivar values: by direction: values by name.
    :ivar path: a file with more values, which is reread when it changes; None for none.
    """

    values: _Values = field(default_factory=lambda: {way: {} for way in DIRECTIONS})
    path: str | None = None

    def __bool__(self) -> bool:
        return self.path is not None or any(self.values.values())


def add_impairment_arguments(parser: Parser) -> None:
    """Add the options; see :func:`impairment_options`."""
    group = parser.add_argument_group("impairments, in both directions unless --impair says otherwise")
    for name, setting in SETTINGS.items():
        group.add_argument(f"--{name}", type=checked(_parser(name)), metavar=setting.values, help=setting.help)
    group.add_argument(
        "--impair",
        action="append",
        default=[],
        type=checked(parse_line),
        metavar="DIRECTION:KEY=VALUE,…",
        help="impair one direction, a-to-b or b-to-a, like a-to-b:loss=1%%,delay=5ms; may be given for both",
    )
    group.add_argument(
        "--impair-file",
        type=file_name,
        metavar="FILE",
        help="read lines like those of --impair from FILE, and read it again whenever it changes",
    )


def _parser(name: str) -> Callable[[str], object]:
    def parse(text: str) -> object:
        try:
            return parse_setting(name, text)
        except ConfigError as error:
            # argparse names the option itself.
            raise ConfigError(error.message.removeprefix(f"{name}: ")) from error

    return parse


def impairment_options(arguments: argparse.Namespace) -> ImpairmentOptions:
    """Return the impairments that the arguments describe.

    :raises ConfigError: they impair nothing, or the file cannot be read.
    """
    both = {name: value for name in NAMES if (value := getattr(arguments, name)) is not None}
    values: dict[str, dict[str, object]] = {way: dict(both) for way in DIRECTIONS}
    for given in arguments.impair:
        for way in DIRECTIONS:
            values[way].update(given[way])
    if arguments.impair_file is None:  # the file may add what they need
        _check_effects(values)
    return ImpairmentOptions(values, arguments.impair_file)


def _check_effects(values: dict[str, dict[str, object]]) -> None:
    """Check that each setting has an effect in a direction, and leave directions that nothing impairs as they are.

    :raises ConfigError: one has none.
    """
    given = {name for way in DIRECTIONS for name in values[way]}
    for name in NAMES:
        others = _NEEDS.get(name)
        if name not in given or others is None:
            continue
        if not any(name in values[way] and others & values[way].keys() for way in DIRECTIONS):
            if given <= _NEEDS.keys():
                raise ConfigError(f"{name} impairs nothing by itself; add an impairment, like --loss 1%")
            raise ConfigError(f"{name} has no effect: it needs one of {', '.join(sorted(others))}")
    for way in DIRECTIONS:
        if values[way].keys() <= _NEEDS.keys():
            values[way].clear()


def impairments_given(parser: Parser) -> list[str]:
    """Return the options of :func:`add_impairment_arguments` that were given."""
    own = {f"--{name}" for name in NAMES} | {"--impair", "--impair-file"}
    return [name for name in parser.options_given() if name in own]


def parse_line(text: str) -> _Values:
    """Parse ``[DIRECTION:]KEY=VALUE,…``. Without a direction it means both.

    :raises ConfigError: it is something else.
    """
    head, colon, rest = text.partition(":")
    ways: Sequence[str] = DIRECTIONS
    if colon and "=" not in head:
        way = head.strip()
        if way not in DIRECTIONS:
            raise ConfigError(f"{way!r} is not a direction; it must be {' or '.join(DIRECTIONS)}")
        ways, text = (way,), rest
    found: dict[str, object] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        name = name.strip()
        if not equals:
            raise ConfigError(f"{part.strip()!r} is not like KEY=VALUE; it must be like a-to-b:loss=1%,delay=5ms")
        if name in found:
            raise ConfigError(f"{name} is given twice")
        found[name] = parse_setting(name, value.strip())
    return {way: found if way in ways else {} for way in DIRECTIONS}


def parse_lines(text: str) -> _Values:
    """Parse a file: lines of :func:`parse_line`, empty lines, and comments after ``#``.

    :raises ConfigError: a line is wrong; the message has its number.
    """
    values: dict[str, dict[str, object]] = {way: {} for way in DIRECTIONS}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        try:
            parsed = parse_line(line)
        except ConfigError as error:
            raise ConfigError(f"line {number}: {error.message}") from error
        for way in DIRECTIONS:
            values[way].update(parsed[way])
    return values


# --- the impairments of a command -------------------------------------------------------------------------------------


class Impairments:
    """The impairments of a command's two directions. :func:`impairing` makes them.

    :ivar a_to_b: one direction; None if it is never impaired.
    :ivar b_to_a: the other direction.
    """

    def __init__(self, options: ImpairmentOptions, mode: Mode) -> None:
        self._options = options
        made = [
            Impairment(mode=mode) if options.values[way] or options.path is not None else None for way in DIRECTIONS
        ]
        self.a_to_b, self.b_to_a = made
        self._by_direction = dict(zip(DIRECTIONS, made, strict=True))
        self._text = "" if options.path is None else self._read(options.path)
        self._apply(self._text)

    def describe(self) -> list[str]:
        """Return a line for each impaired direction."""
        return [f"impairing {way}: {made.settings}" for way, made in self._by_direction.items() if made is not None]

    def count_in(self, runtime: Runtime) -> None:
        """Show the counters of each impaired direction in the statistics of a runtime."""
        for way, made in self._by_direction.items():
            if made is not None:
                runtime.application_counters[way] = made.counters.counts

    def directions(self, a: Port, b: Port, records: Sequence[Record | None] = (None, None)) -> list[Impaired | None]:
        """Return both directions between two ports; None for one that is not impaired."""
        pairs = ((a, b, self.a_to_b), (b, a, self.b_to_a))
        return [
            None if made is None else Impaired(source, target, made, records[stream], stream=stream)
            for stream, (source, target, made) in enumerate(pairs)
        ]

    def look(self) -> str | None:
        """Return the text of the file; None if it cannot be read now: an editor may be replacing it."""
        path = self._options.path
        assert path is not None
        try:
            # A pipe such as <(echo loss=1%) has been read to its end: it would now be empty, and undo everything.
            return self._read(path) if Path(path).is_file() else None
        except (MemifError, OSError):
            return None

    def adopt(self, text: str | None) -> bool:
        """Apply a new text of the file; return whether anything is new.

        :raises ConfigError: a value is wrong. No impairment has changed; the same text raises only once.
        """
        if text is None or text == self._text:
            return False
        self._apply(text)
        return True

    def _apply(self, text: str) -> None:
        self._text = text
        try:
            values = parse_lines(text)
            changed = [
                (made, made.replaced({**self._options.values[way], **values[way]}))
                for way, made in self._by_direction.items()
                if made is not None
            ]
        except ConfigError as error:
            raise ConfigError(f"{self._options.path}: {error.message}" if text else error.message) from error
        for made, settings in changed:
            made.settings = settings

    @staticmethod
    def _read(path: str) -> str:
        try:
            with Path(path).open("rb") as file:
                data = file.read(_LONGEST_FILE + 1)
        except OSError as error:
            raise os_error(f"cannot read {path}", error, path=path) from error
        if len(data) > _LONGEST_FILE:
            raise ConfigError(f"{path} is longer than {_LONGEST_FILE} bytes; it must have lines like a-to-b:loss=1%")
        return data.decode(errors="replace")


@contextlib.contextmanager
def watching(impairments: Impairments, options: ImpairmentOptions, say: Callable[[str], object]) -> Iterator[None]:
    """Reread the file of the impairments while it changes, in a thread.

    :param say: called with a line about each change.
    """
    if options.path is None:
        yield
        return
    stop = threading.Event()

    def watch() -> None:
        before = None
        while not stop.wait(_LOOK_INTERVAL):
            text = impairments.look()
            # Apply a text that has been the same in two looks: a program that writes the file may first empty it.
            try:
                if text == before and impairments.adopt(text):
                    for line in impairments.describe():
                        say(line)
            except MemifError as error:
                say(f"{error.message}; nothing is changed")
            before = text

    thread = threading.Thread(target=watch, name="memifrt-impair-file", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
