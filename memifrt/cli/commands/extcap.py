"""``memifrt extcap``: memifs in Wireshark's and tshark's list of interfaces.

Owns the lines and the arguments of Wireshark's extcap protocol (man 4 extcap). Wireshark runs this program for its list
of interfaces, for the options of one, and to capture. See ``memifrt.cli.wireshark`` for the parts.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator

import memifrt
from memifrt.capture.filter import compile_filter
from memifrt.capture.pcap import LinkType
from memifrt.cli.arguments import Command, Parser, checked, seconds_or_zero, socket_path
from memifrt.cli.endpoint import parse_memif_endpoint
from memifrt.cli.program import complain
from memifrt.cli.wireshark.capture import capture
from memifrt.cli.wireshark.install import install, uninstall
from memifrt.cli.wireshark.interfaces import CaptureInterface, config_path, find, interfaces
from memifrt.errors import ConfigError, MemifError
from memifrt.options import TEXT_OPTIONS
from memifrt.ports.endpoint import MemifEndpoint
from memifrt.types import Mode, Role, printable

#: Seconds that a slave has for its first connection: without a peer, Wireshark would wait in silence.
_CONNECT_TIMEOUT = 5.0
#: The page that the dialogue's Help button opens.
_HELP = "https://memifrt.github.io/memifrt/wireshark.html"
#: The options of an interface that Wireshark's dialogue has.
_OPTIONS = ("role", "id", "secret", "mode")


# --- what Wireshark reads -------------------------------------------------------------------------------------------


def interface_lines(found: list[CaptureInterface]) -> Iterator[str]:
    """Return the list of interfaces."""
    yield f"extcap {{version={memifrt.__version__}}}{{help={_HELP}}}{{display=memif}}"
    for interface in found:
        yield f"interface {{value={interface.value}}}{{display={_text(interface.display)}}}"


def link_lines(interface: CaptureInterface) -> Iterator[str]:
    """Return the link type of an interface."""
    if interface.ends[0].mode is Mode.IP:
        yield f"dlt {{number={LinkType.RAW.value}}}{{name=RAW}}{{display=Raw IP}}"
    else:
        yield f"dlt {{number={LinkType.ETHERNET.value}}}{{name=EN10MB}}{{display=Ethernet}}"


def option_lines(interface: CaptureInterface) -> Iterator[str]:
    """Return the options of an interface for Wireshark's dialogue. A configured secret stays in its file."""
    end = interface.ends[0]
    config = end.config
    yield (
        f"arg {{number=0}}{{call=--socket}}{{display=Socket}}{{type=string}}{{default={_text(end.socket)}}}"
        "{tooltip=Path of the control socket, or @name for an abstract one}"
    )
    yield "arg {number=1}{call=--role}{display=Role}{type=selector}{tooltip=A master listens, a slave connects}"
    for role in (Role.SLAVE, Role.MASTER):
        yield _choice(1, role.name.lower(), config.role is role)
    yield (
        f"arg {{number=2}}{{call=--id}}{{display=Interface id}}{{type=unsigned}}{{range=0,4294967295}}"
        f"{{default={config.id}}}{{tooltip=The same on both ends}}"
    )
    secret = "leave empty for the one of the configuration file" if config.secret else "if the peer requires one"
    yield f"arg {{number=3}}{{call=--secret}}{{display=Secret}}{{type=password}}{{tooltip={secret}}}"
    yield "arg {number=4}{call=--mode}{display=Mode}{type=selector}{tooltip=What the packets begin with}"
    for mode in (Mode.ETHERNET, Mode.IP):
        yield _choice(4, mode.name.lower(), config.mode is mode)
    if len(interface.ends) == 1:
        yield (
            "arg {number=5}{call=--between}{display=Second memif}{type=string}"
            "{placeholder=/run/vpp/memif.sock,role=slave,id=1}"
            "{tooltip=Capture between this memif and a second one: both are forwarded to each other}"
        )
    # A string: Wireshark shows and saves an empty number as 0, which is no limit.
    yield (
        "arg {number=6}{call=--connect-timeout}{display=Seconds to wait for a peer}{type=string}"
        rf"{{placeholder={_CONNECT_TIMEOUT:g} for a slave, no limit for a master}}{{validation=^([0-9]+(\.[0-9]*)?)?$}}"
        "{tooltip=0 waits without a limit}"
    )


def _choice(number: int, value: str, is_default: bool) -> str:
    return f"value {{arg={number}}}{{value={value}}}{{display={value}}}{{default={str(is_default).lower()}}}"


def _text(text: str) -> str:
    """Make a text safe for a line of the protocol, which has its values in braces."""
    return printable(text).replace("{", "(").replace("}", ")")


# --- the interface to capture ---------------------------------------------------------------------------------------


def chosen(name: str | None) -> CaptureInterface:
    """Return the interface of this name.

    :raises ConfigError: there is none.
    """
    if not name:
        raise ConfigError("--extcap-interface is missing: memifrt extcap --extcap-interfaces lists the interfaces")
    return find(name)


def ends_of(interface: CaptureInterface, arguments: argparse.Namespace) -> tuple[MemifEndpoint, ...]:
    """Return the memifs to capture: those of the interface, changed by the options of the dialogue."""
    first, *others = interface.ends
    given = {name: value for name in _OPTIONS if (value := getattr(arguments, name)) is not None}
    first = MemifEndpoint(arguments.socket or first.socket, first.config.replace(**given))
    if arguments.between is not None:
        others = [arguments.between]
    if "mode" in given:
        others = [dataclasses.replace(end, config=end.config.replace(mode=given["mode"])) for end in others]
    return (first, *others)


def _timeout(ends: tuple[MemifEndpoint, ...], given: float | None) -> float | None:
    if given is not None:
        return given or None
    return _CONNECT_TIMEOUT if len(ends) == 1 and ends[0].config.role is Role.SLAVE else None


# --- the command line ------------------------------------------------------------------------------------------------


def _add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--install",
        nargs="?",
        const="",
        metavar="DIR",
        help="put a small program into Wireshark's folder for extcap programs (or DIR), and print its path",
    )
    add("--uninstall", nargs="?", const="", metavar="DIR", help="remove that program")
    wireshark = parser.add_argument_group("for Wireshark").add_argument
    wireshark("--extcap-interfaces", action="store_true", help="list the interfaces")
    wireshark("--extcap-dlts", action="store_true", help="print the link type of an interface")
    wireshark("--extcap-config", action="store_true", help="print the options of an interface")
    wireshark("--capture", action="store_true", help="capture into --fifo")
    wireshark("--extcap-interface", metavar="NAME", help="the interface")
    wireshark("--fifo", metavar="PATH", help="the pipe for the capture")
    wireshark("--extcap-capture-filter", default="", metavar="FILTER", help="only packets that match; needs libpcap")
    for ignored in ("--extcap-version", "--extcap-reload-option", "--extcap-cleanup-postkill"):
        wireshark(ignored, nargs="?", help=argparse.SUPPRESS)
    options = parser.add_argument_group("interface").add_argument
    options(
        "--socket", type=_unless_empty(socket_path), metavar="PATH", help="control socket, @name for an abstract one"
    )
    for name in _OPTIONS:
        option = TEXT_OPTIONS[name]
        options(f"--{option.key}", type=_unless_empty(option.parse), metavar=option.values, help=option.help)
    options(
        "--between",
        type=_unless_empty(parse_memif_endpoint),
        metavar="B",
        help="capture between the interface and this second memif, like @lab,role=master,id=1",
    )
    options(
        "--connect-timeout",
        type=_unless_empty(seconds_or_zero),
        metavar="SECONDS",
        help=f"how long to wait for the first peer, 0 for no limit; default: {_CONNECT_TIMEOUT:g} for a slave, else 0",
    )


def _unless_empty(parse: Callable[[str], object]) -> Callable[[str], object]:
    """Wrap a parser: a field that is empty in Wireshark's dialogue is not given."""
    return checked(lambda text: parse(text) if text else None)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.install is not None or arguments.uninstall is not None:
        given = arguments.parser.options_given()
        if len(given) > 1:
            raise ConfigError(f"{given[1]} has no effect with {given[0]}: give one of them")
    if arguments.install is not None:
        print(f"installed {install(arguments.install)}; its memifs are in Wireshark's list from its next start on")
        print(f"memifs to list besides those that are found: {config_path()}")
        return 0
    if arguments.uninstall is not None:
        print(f"removed {uninstall(arguments.uninstall)}")
        return 0
    if arguments.extcap_interfaces:
        return _print(interface_lines(interfaces(lambda error: complain(f"memifrt extcap: {error}"))))
    if arguments.extcap_dlts:
        return _print(link_lines(chosen(arguments.extcap_interface)))
    if arguments.extcap_config:
        return _print(option_lines(chosen(arguments.extcap_interface)))
    if arguments.capture:
        if not arguments.fifo:
            raise ConfigError("--capture needs --fifo PATH, the pipe that Wireshark reads")
        ends = ends_of(chosen(arguments.extcap_interface), arguments)
        capture(ends, arguments.fifo, arguments.extcap_capture_filter, _timeout(ends, arguments.connect_timeout))
        return 0
    if arguments.extcap_interface and arguments.extcap_capture_filter:
        return _check_filter(chosen(arguments.extcap_interface), arguments.extcap_capture_filter)
    raise ConfigError("nothing to do: --install makes Wireshark call this program")


def _check_filter(interface: CaptureInterface, expression: str) -> int:
    """Check a capture filter. Wireshark takes every text on standard output as the error."""
    try:
        compile_filter(expression, LinkType.of(interface.ends[0].mode))
    except MemifError as error:
        print(error.message)
    return 0


def _print(lines: Iterator[str]) -> int:
    for line in lines:
        print(line)
    return 0


COMMAND = Command(
    "extcap",
    "list memifs in Wireshark and tshark, and capture them there",
    """examples:
  memifrt extcap --install
  tshark -D
  tshark -i memif-run-vpp-memif.sock -c 10
  memifrt extcap --uninstall""",
    _add_arguments,
    _run,
)
