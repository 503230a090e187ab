"""The arguments that commands share: the options of an interface, and parsers of single arguments.

A command is a :class:`Command` value in its own module; ``memifrt.cli.command_line`` lists them.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TypeVar, cast

from memifrt.cli.program import ProgramInterface, SessionOptions, default_mac, one_line
from memifrt.cli.run_in_loop import LOOPS
from memifrt.control.address import Address
from memifrt.errors import ConfigError, did_you_mean
from memifrt.options import (
    DEFAULT_BUFFER_SIZE,
    DEFAULT_RING_SIZE,
    DEFAULT_SOCKET,
    TEXT_OPTIONS,
    InterfaceConfig,
    InterfaceOptions,
)
from memifrt.packets import format_mac, parse_ip, parse_mac
from memifrt.stats.prometheus import parse_endpoint

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

_T = TypeVar("_T")

#: The limits of counts, and of times in seconds.
MANY = 1_000_000_000
_SHORTEST, _LONGEST = 0.001, 86400
#: The variable with the secret of a command to which none is given.
SECRET_VARIABLE = "MEMIFRT_SECRET"
#: The options of :func:`add_peer_arguments`, and those of :func:`add_session_arguments`.
PEER_OPTIONS = ("--socket", "--secret-file", *(f"--{option.key}" for option in TEXT_OPTIONS.values()))
SESSION_OPTIONS = ("--connect-timeout", "--stats", "--prometheus", "--web")
#: The options by the names of Python's arguments.
_TYPED = {option.name: f"--{option.key}" for option in TEXT_OPTIONS.values()}
#: Characters of a line that are read at most: more than the longest secret has.
_LONGEST_LINE = 256
#: The most secrets to search for in an error message; and the length from which a secret needs no word boundaries.
_MANY_SECRETS, _LONG_SECRET = 64, 100


@dataclass(frozen=True, slots=True)
class Command:
    """One ``memifrt NAME``.

    :ivar help: one line, in lower case, without a full stop.
    :ivar epilog: the text below the options in ``--help``: an example, and the exit statuses if they are special.
    :ivar add_arguments: adds the arguments to the parser.
    :ivar run: runs the command with the parsed arguments and returns the exit status. A :class:`~memifrt.MemifError` or
        ``OSError`` that it raises becomes one line on standard error and status 2.
    """

    name: str
    help: str
    epilog: str
    add_arguments: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], int]


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keep the lines of descriptions and epilogs, and wrap those that are wider than the terminal."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(f"{indent}{line}\n" for line in wrapped(text, width - len(indent)))


def wrapped(text: str, width: int) -> list[str]:
    """Return the lines of a text, with those that are too wide in several parts."""
    return [part for line in text.splitlines() for part in _wrapped(line, width)]


def _wrapped(line: str, width: int) -> Iterator[str]:
    """Yield the parts of a line. Those of a command can be pasted: each but the last ends with a backslash."""
    margin = " " * (len(line) - len(line.lstrip()))
    end = " \\" if line.startswith(f"{margin}memifrt ") else ""
    parts = textwrap.wrap(
        line,
        width - len(end) if len(line) > width else width,
        subsequent_indent=margin + "    " if margin else "",
        break_long_words=False,
        break_on_hyphens=False,
    )
    yield from (part + end for part in parts[:-1])
    yield parts[-1] if parts else ""


class Parser(argparse.ArgumentParser):
    """Prints an error in one line, and removes secrets from it."""

    given: Sequence[str] = ()

    def refuse_unknown_options(self, arguments: Sequence[str]) -> None:
        """End with an error for the first long option that does not exist, and name the one that is most like it.

        argparse would take its value for a positional argument, and complain about that first. The message has only
        the option's name: the value may be the secret of a misspelt ``--secret``.
        """
        known = self._option_string_actions
        for argument in itertools.takewhile(lambda argument: argument != "--", arguments):
            name = argument.partition("=")[0]
            if name.startswith("--") and name not in known:
                options = [option for option in known if option.startswith("--")]
                self.error(f"unknown argument {name}{did_you_mean(name, options)}")

    def take_late(self, parsed: argparse.Namespace, unknown: list[str]) -> list[str]:
        """Give arguments that argparse did not take to the last positional argument, if it can take more.

        For argparse it ends at the first option behind it: ``A --rate 1M B`` would have no B.

        :returns: what it cannot take.
        """
        positional = self._get_positional_actions()
        if not positional:
            return unknown
        action = positional[-1]
        before = getattr(parsed, action.dest)
        try:
            if action.nargs in (argparse.ZERO_OR_MORE, argparse.ONE_OR_MORE):
                setattr(parsed, action.dest, [*before, *cast("list[object]", self._get_values(action, unknown))])
                return []
            if action.nargs == argparse.OPTIONAL and before is action.default:
                setattr(parsed, action.dest, self._get_values(action, unknown[:1]))
                return unknown[1:]
        except argparse.ArgumentError as error:
            self.error(str(error))
        return unknown

    def refuse(self, argument: str) -> NoReturn:
        """End with an error for an argument that nothing takes. It does not show a value, which may be a secret."""
        argument = argument.partition("=")[0]
        if argument.startswith("-"):
            self.error(f"unknown argument {argument}")
        taken = " ".join(map(_usage, self._get_positional_actions()))
        takes = f"takes {taken}, and options" if taken else "takes only options"
        self.error(f"unexpected argument {argument}; {self.prog.split()[-1]} {takes}")

    def options_given(self) -> list[str]:
        """Return the long names of the options that were given, also of those with their default values."""
        actions = [action for action in self._actions if action.option_strings]
        kept = [(action, action.default, action.type, action.choices) for action in self._actions]
        defaults, self._defaults = self._defaults, {}
        try:
            for action in self._actions:
                # Nothing is parsed again: a type may read a file, which may be a pipe.
                action.default, action.type, action.choices = argparse.SUPPRESS, None, None
            given = vars(self.parse_known_args(self.given[1:])[0])
        finally:
            self._defaults = defaults
            for action, default, kind, choices in kept:
                action.default, action.type, action.choices = default, kind, choices
        found = [action for action in actions if action.dest in given]
        shared = Counter(action.dest for action in found)
        return [
            action.option_strings[-1]
            for action in found
            if shared[action.dest] == 1 or any(self._names(action, argument) for argument in self.given)
        ]

    @staticmethod
    def _names(action: argparse.Action, argument: str) -> bool:
        return argument.partition("=")[0] in action.option_strings

    def refuse_given(self, names: Collection[str], why: str) -> None:
        """End with an error if one of these options was given.

        :param why: the rest of the sentence, behind the option and "has no effect".
        """
        for name in self.options_given():
            if name in names:
                raise ConfigError(f"{name} has no effect {why}")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> object:
        """Return the value of an argument. argparse would take ``--option=--`` for an option without a value."""
        if action.option_strings and action.nargs in (None, "?") and arg_strings == ["--"]:
            value = self._get_value(action, "--")
            self._check_value(action, value)
            return value
        return super()._get_values(action, arg_strings)

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        """Print help. argparse would ignore that it cannot be written."""
        if message:
            (sys.stderr if file is None else file).write(message)

    def error(self, message: str) -> NoReturn:
        if found := re.match(r"argument (\S+): ", message):
            message = f"argument {with_name(found[1], message[found.end() :])}"
        secrets = set(_secrets(self.given))
        if len(secrets) > _MANY_SECRETS:  # each one needs a search of the message, which may be as long as all
            message = f"more than {_MANY_SECRETS} secrets are given"
            secrets = set()
        for secret in secrets:
            for shown in (secret, repr(secret)[1:-1]):
                if len(shown) > _LONG_SECRET:  # no word of a message is that long, and replace() is fast
                    message = message.replace(shown, "***")
                else:
                    message = re.sub(rf"(?<!\w){re.escape(shown)}(?!\w)", "***", message)
        self.exit(2, one_line(f"{self.prog}: {message} (see {self.prog} --help)") + "\n")


def _usage(action: argparse.Action) -> str:
    """Return a positional argument as the usage line of a command has it."""
    name = str(action.metavar or action.dest)
    shown = {argparse.OPTIONAL: f"[{name}]", argparse.ZERO_OR_MORE: f"[{name} ...]"}
    return shown.get(str(action.nargs), name)


def _secrets(arguments: Sequence[str]) -> list[str]:
    following = [value for option, value in itertools.pairwise(arguments) if option == "--secret"]
    attached = [value.partition("=")[2] for value in arguments if value.startswith("--secret=")]
    in_endpoints = [found for value in arguments for found in re.findall(r"[:,]secret=([^,]*)", value)]
    in_environment = [os.environ.get(SECRET_VARIABLE, "")]
    return [secret for secret in following + attached + in_endpoints + in_environment if secret]


# --- an interface --------------------------------------------------------------------------------------------------


def add_interface_arguments(parser: Parser, *ips: str) -> None:
    """Add the options of an interface that has addresses.

    :param ips: the default addresses, at least one.
    """
    add = add_peer_arguments(parser, "interrupt").add_argument
    add(
        "--ip",
        type=checked(unicast_ip),
        action="append",
        metavar="ADDRESS",
        help=f"own IPv4 or IPv6 address; give several with an --ip each; default {' and '.join(ips)}",
    )
    parser.set_defaults(default_ips=tuple(map(parse_ip, ips)))
    mac = format_mac(default_mac(parse_ip(ips[0])))
    add(
        "--mac",
        type=checked(own_mac),
        metavar="M",
        help=f"own MAC address; default 02:fe and the last four bytes of the first IP address ({mac})",
    )


def add_peer_arguments(parser: Parser, rx_mode: str) -> argparse._ArgumentGroup:
    """Add the options that a peer may require: :func:`add_ring_arguments`, secret and mode."""
    group = add_ring_arguments(parser, rx_mode)
    add_secret_arguments(group)
    _add_option(group, "mode", "ethernet")
    return group


def add_secret_arguments(group: argparse._ArgumentGroup) -> None:
    """Add ``--secret`` and ``--secret-file``. Without them the variable ``MEMIFRT_SECRET`` counts.

    Everybody on the machine can read the arguments of a process, but not its files and its environment.
    """
    option = TEXT_OPTIONS["secret"]
    parse = checked(option.parse)
    variable = os.environ.get(SECRET_VARIABLE)

    def parse_secret(text: str) -> object:
        try:
            return parse(text)
        except argparse.ArgumentTypeError as error:
            if text is not variable:
                raise
            raise argparse.ArgumentTypeError(f"{SECRET_VARIABLE}: {error}") from error

    group.add_argument(
        "--secret",
        type=parse_secret,
        default=variable,  # argparse parses a default that is a string
        metavar=option.values,
        help=f"{option.help}; default: the variable {SECRET_VARIABLE}, else none",
    )
    group.add_argument(
        "--secret-file",
        dest="secret",
        type=lambda path: parse(_first_line(file_name(path))),
        default=argparse.SUPPRESS,
        metavar="PATH",
        help="a file with the secret in its first line; other users of the machine can see --secret",
    )


def _first_line(path: str) -> str:
    """Return the first line of a file, without its end.

    :raises argparse.ArgumentTypeError: the file cannot be read, or has no first line.
    """
    try:
        with open(path, errors="surrogateescape") as file:
            line = file.readline(_LONGEST_LINE).rstrip("\r\n")
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path}: {error.strerror}") from error
    if not line:
        raise argparse.ArgumentTypeError(f"{path}: the first line must be the secret, and it is empty")
    return line


def add_ring_arguments(parser: Parser, rx_mode: str) -> argparse._ArgumentGroup:
    """Add the options of every command that has an interface."""
    group = parser.add_argument_group("interface")
    _add_option(group, "role", "slave")
    group.add_argument(
        "--socket",
        type=checked(socket_path),
        default=DEFAULT_SOCKET,
        metavar="PATH",
        help=f"control socket, @name for an abstract one; default {DEFAULT_SOCKET}",
    )
    _add_option(group, "id", "0")
    # No default for argparse: it would contradict the other option for the same value.
    _add_option(group, "queues", None, "1")
    _add_option(group, "num_s2m_rings", None)
    _add_option(group, "num_m2s_rings", None)
    _add_option(group, "ring_size", None, str(DEFAULT_RING_SIZE))
    _add_option(group, "log2_ring_size", None)
    _add_option(group, "buffer_size", str(DEFAULT_BUFFER_SIZE))
    _add_option(group, "rx_mode", rx_mode)
    add_session_arguments(parser)
    return group


def _add_option(group: argparse._ArgumentGroup, name: str, default: str | None, otherwise: str | None = None) -> None:
    """Add an option of an interface.

    :param default: the default for argparse.
    :param otherwise: the default to show in the help if argparse has none.
    """
    option = TEXT_OPTIONS[name]
    shown = otherwise if default is None else default
    group.add_argument(
        f"--{option.key}",
        type=checked(option.parse),
        default=default,  # argparse parses a default that is a string
        metavar=option.values,
        help=option.help if shown is None else f"{option.help}; default {shown}",
    )


def interface_config(arguments: argparse.Namespace) -> InterfaceConfig:
    """Return the options of the interface that the arguments describe."""
    given = {name: value for name in TEXT_OPTIONS if (value := getattr(arguments, name, None)) is not None}
    try:
        return InterfaceConfig.of(**cast("InterfaceOptions", {"name": f"memif{arguments.id}", **given}))
    except ConfigError as error:
        # The names of options, not those of Python's arguments.
        typed = re.sub(r"\b\w+(?= is )", lambda found: _TYPED.get(found[0], found[0]), error.message)
        raise ConfigError(typed, error.code) from error


def add_loop_argument(parser: Parser) -> None:
    """Add ``--loop``: see :mod:`memifrt.cli.run_in_loop`."""
    parser.add_argument(
        "--loop",
        choices=LOOPS,
        default=LOOPS[0],
        metavar="LOOP",
        help=f"the event loop to run in: {', '.join(LOOPS)}; default {LOOPS[0]}",
    )


def add_session_arguments(parser: Parser) -> None:
    """Add the options of every command that runs a session; see :func:`session_options`."""
    parser.add_argument(
        "--connect-timeout",
        type=seconds,
        metavar="SECONDS",
        help="how long to wait for the first peer; if none comes the exit status is 3; default: no limit",
    )
    add = parser.add_argument_group("statistics").add_argument
    add("--stats", type=checked(socket_path), metavar="PATH", help="open a stats socket, for memifrt top PATH")
    add(
        "--prometheus",
        type=checked(endpoint),
        metavar="ADDRESS:PORT",
        help="serve /metrics for Prometheus on this address; port 0 lets the system choose",
    )
    add_web_argument(add)


def add_web_argument(add: Callable[..., object]) -> None:
    """Add ``--web`` with ``add``, an ``add_argument``."""
    add(
        "--web",
        type=checked(web_endpoint),
        metavar="[ADDRESS:]PORT",
        help="serve a page for a browser on this address, by default 127.0.0.1; port 0 lets the system choose",
    )


def session_options(arguments: argparse.Namespace) -> SessionOptions:
    return SessionOptions(arguments.stats, arguments.prometheus, arguments.connect_timeout, arguments.web)


def program_interface(arguments: argparse.Namespace) -> ProgramInterface:
    """Return the interface, with its addresses, that the arguments describe."""
    ips = arguments.default_ips if arguments.ip is None else tuple(dict.fromkeys(arguments.ip))
    return ProgramInterface(
        ips=ips,
        mac=default_mac(ips[0]) if arguments.mac is None else arguments.mac,
        socket=arguments.socket,
        config=interface_config(arguments),
        session_options=session_options(arguments),
    )


# --- one argument ---------------------------------------------------------------------------------------------------


def with_name(name: str, text: str) -> str:
    """Return the text of an error behind the name of an argument, and not behind two names.

    :param name: as it is typed: ``--ring-size``, or ``ring-size`` in an endpoint.
    :param text: such as ``ring_size is 'x'; it must be …``, or ``the rate 'x' must be …``.
    """
    word = name.lstrip("-").replace("-", "_")
    if found := re.match(rf"((the )?{re.escape(word)}|the endpoint (of|for) [\w ]+) is ", text):
        return f"{name} is {text[found.end() :]}"
    if (found := re.match(r"(?:the )?(\w+)(?: path)? (?=')", text)) and found[1] in word.split("_"):
        return f"{name}: {text[found.end() :]}"
    return f"{name}: {text}"


def checked(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """Wrap ``parse`` for argparse, and keep the text of its errors."""

    def checked(text: str) -> _T:
        try:
            return parse(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked


def whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,20}", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


def number(text: str) -> float:
    """Return a decimal number; NaN if the text is none. Python's underscores and other scripts are not part of one."""
    try:
        return math.nan if "_" in text or not text.isascii() else float(text)
    except ValueError:
        return math.nan


def seconds(text: str) -> float:
    value = number(text)
    if not _SHORTEST <= value <= _LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from {_SHORTEST} to {_LONGEST}")
    return value


def seconds_or_zero(text: str) -> float:
    try:
        return 0.0 if re.fullmatch(r"0+(\.0*)?", text) else seconds(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or 0") from error


def unicast_ip(text: str) -> bytes:
    ip = parse_ip(text)
    if not any(ip) or (ip[0] == 0xFF if len(ip) == 16 else ip[0] >= 224):
        raise ConfigError(f"{text!r} is not the address of one host; it must be unicast, like 192.168.1.2 or fe80::2")
    return ip


def own_mac(text: str) -> bytes:
    mac = parse_mac(text)
    if mac[0] & 1 or not any(mac):
        raise ConfigError(f"{text!r} cannot be an interface's own address; it must be unicast, like 02:fe:00:00:00:01")
    return mac


def file_name(text: str) -> str:
    """Parse the name of a file for argparse."""
    if not text:
        raise argparse.ArgumentTypeError("'' is not the name of a file: it is empty")
    return text


def socket_path(text: str) -> str:
    return str(Address.parse(text))


def endpoint(text: str) -> str:
    parse_endpoint(text)
    return text


def web_endpoint(text: str) -> str:
    from memifrt.stats.web import parse_endpoint  # only now, for the programs without a page

    parse_endpoint(text)
    return text
