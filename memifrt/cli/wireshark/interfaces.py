"""The memifs that Wireshark lists: those of a configuration file, and sockets found in the usual places.

Owns the file's format and the search. The search reads the kernel's table of sockets. It connects only to a socket
without ``memif`` in its name: it waits for the HELLO, and says DISCONNECT before it closes.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import re
import select
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from memifrt.cli.commands.doctor import unix_sockets
from memifrt.cli.endpoint import check_pair, parse_memif_endpoint
from memifrt.control.address import Address, connect
from memifrt.control.channel import Channel
from memifrt.control.wire import Hello
from memifrt.errors import ConfigError, MemifError, os_error
from memifrt.options import DEFAULT_SOCKET
from memifrt.ports.endpoint import MemifEndpoint
from memifrt.types import printable

#: The interface for which the user gives the socket.
ANY = "memif"
_PREFIX = "memif-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,47}")
_SEQPACKET = 5
#: The usual places of memif's sockets.
_PLACES = re.compile(r"(/var)?/run/(vpp/[^/]+|memif[^/]*(/[^/]+)?)|/tmp/[^/]+\.sock")
#: VPP's own sockets, which are not memif's.
_OTHERS = {"api.sock", "cli.sock", "stats.sock"}
#: The most sockets to list, and to ask whether they are memif's.
_MOST, _MOST_ASKED = 64, 8
#: Milliseconds that a socket has for its HELLO. Wireshark waits for the list when it starts.
_PATIENCE = 200


@dataclass(frozen=True, slots=True)
class CaptureInterface:
    """An interface in Wireshark's list.

    :ivar value: the name that tshark's ``-i`` takes.
    :ivar ends: one memif, or two to capture between.
    """

    value: str
    display: str
    ends: tuple[MemifEndpoint, ...]


def interfaces(complain: Callable[[str], None]) -> list[CaptureInterface]:
    """Return all interfaces. A broken configuration file is reported and does not hide the sockets that are found.

    :param complain: called with the error of the configuration file.
    """
    found: list[CaptureInterface] = []
    try:
        found = configured(config_path())
    except MemifError as error:
        complain(error.message)
    names = {interface.value for interface in found}
    found += [interface for interface in discovered(says_hello) if interface.value not in names]
    return [*found, _any()]


def find(name: str) -> CaptureInterface:
    """Return the interface of this name. This asks no socket.

    :raises ConfigError: there is none.
    """
    error = ""
    try:
        known = configured(config_path())
    except MemifError as broken:
        known, error = [], f" ({broken.message})"
    for interface in itertools.chain(known, (_any(),), discovered(lambda address: True)):
        if interface.value == name:
            return interface
    raise ConfigError(
        f"there is no interface {name!r}: nobody listens on its socket, and {config_path()} does not name it{error}"
    )


def _any() -> CaptureInterface:
    return CaptureInterface(ANY, "memif: the socket is an option", (parse_memif_endpoint(DEFAULT_SOCKET),))


# --- the configuration file -------------------------------------------------------------------------------------------


def config_path() -> Path:
    """Return the path of the configuration file, which need not exist."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return Path(base) / "memifrt" / "extcap.toml"


def configured(path: Path) -> list[CaptureInterface]:
    """Return the interfaces of a configuration file; none if there is no file.

    :raises MemifError: the file cannot be read, or is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise os_error(f"cannot read {path}", error, path=str(path)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: it is not text in UTF-8: {error}") from error
    try:
        content = _parser()(text)
    except ValueError as error:
        raise ConfigError(f"{path}: it is not TOML: {error}") from error
    table = content.get("interfaces", {})
    unknown = sorted(content.keys() - {"interfaces"})
    if unknown or not isinstance(table, dict):
        wrong = f"unknown {unknown[0]!r}" if unknown else "interfaces is not a table"
        raise ConfigError(f'{path}: {wrong}; it must be [interfaces] with lines like lab = "@lab,role=master"')
    return [_configured(path, name, value) for name, value in table.items()]


def _parser() -> Callable[[str], Mapping[str, object]]:
    """Return the function that parses TOML.

    :raises ConfigError: it is not installed.
    """
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        module = importlib.import_module(name)
    except ImportError:
        raise ConfigError("a configuration file needs tomli on Python 3.10: pip install 'memifrt[wireshark]'") from None
    return cast("Callable[[str], Mapping[str, object]]", module.loads)


def _configured(path: Path, name: str, value: object) -> CaptureInterface:
    texts = [value] if isinstance(value, str) else value
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{path}: {name!r} is not a name; it must have 1 to 48 letters, digits, _ - or .")
    if not isinstance(texts, list) or len(texts) not in (1, 2) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f'{path}: {name}: it must be a memif like "@lab,role=master", or a list of two')
    try:
        ends = tuple(parse_memif_endpoint(text) for text in texts)
        if len(ends) == 2:
            check_pair(*ends)
    except ConfigError as error:
        raise ConfigError(f"{path}: {name}: {error.message}") from error
    display = f"{name}: {' <-> '.join(map(str, ends))}"
    return CaptureInterface(f"{_PREFIX}{name}", display, ends)


# --- the search -----------------------------------------------------------------------------------------------------


def discovered(is_memif: Callable[[Address], bool]) -> Iterator[CaptureInterface]:
    """Iterate over the sockets on which a memif master listens, as far as they are in the usual places.

    :param is_memif: asks a socket without ``memif`` in its name.
    """
    seen: set[str] = set()
    asked = 0
    for path in sorted({row.path for row in unix_sockets() if row.listens and row.kind == _SEQPACKET}):
        if len(seen) >= _MOST or not _is_usual(path):
            continue
        with contextlib.suppress(MemifError):
            address = Address.parse(path)
            if "memif" not in os.path.basename(path):
                asked += 1
                if asked > _MOST_ASKED or not is_memif(address):
                    continue
            value = _PREFIX + re.sub(r"[^A-Za-z0-9_.-]+", "-", path).strip("-")
            if value not in seen:
                seen.add(value)
                end = parse_memif_endpoint(str(address))
                yield CaptureInterface(value, f"memif on {printable(path)}", (end,))


def _is_usual(path: str) -> bool:
    if "," in path or not path.isprintable() or os.path.basename(path) in _OTHERS:
        return False
    return bool(_PLACES.fullmatch(path)) and os.access(path, os.W_OK)


def says_hello(address: Address) -> bool:
    """Return whether a memif master listens there. Connect, wait for its HELLO, and say DISCONNECT."""
    try:
        channel = Channel(connect(address))
    except MemifError:
        return False
    try:
        poll = select.poll()
        poll.register(channel.fileno(), select.POLLIN)
        received = channel.receive() if poll.poll(_PATIENCE) else None
        if received is None:
            return False
        message, fd = received
        if fd is not None:
            fd.close()
        return isinstance(message, Hello)
    except MemifError:
        return False
    finally:
        channel.close("memifrt extcap looks for memifs")
