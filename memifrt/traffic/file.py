"""Read streams from a YAML or TOML file."""

from __future__ import annotations

import functools
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memifrt.errors import ConfigError, did_you_mean, os_error
from memifrt.traffic.rate import Rate, parse_speed, parse_time
from memifrt.traffic.stream import Stream, check_names

#: The largest file in bytes.
_LARGEST = 1 << 20
#: The most values in a file, keys and aliases included, and the most bits of a number.
_MOST_VALUES, _LONGEST_NUMBER = 1 << 20, 128
_SUFFIXES = (".yaml", ".yml", ".toml")
#: The keys besides the streams.
_KEYS = ("streams", "rate", "duration", "count", "link_speed")


@dataclass(frozen=True)
class TrafficFile:
    """The content of a file: the streams, and values for the whole run, each None if it does not stand there.

    :ivar duration: seconds.
    :ivar link_speed: bits a second.
    """

    streams: tuple[Stream, ...]
    rate: Rate | None = None
    duration: float | None = None
    count: int | None = None
    link_speed: float | None = None


def load_streams(path: str | os.PathLike[str]) -> list[Stream]:
    """Return the streams of a YAML or TOML file.

    :raises ConfigError: the file is not like ``docs/generate.md`` says. The message names stream, key and value.
    :raises MemifOSError: it cannot be read.
    """
    return list(load_file(path).streams)


def load_file(path: str | os.PathLike[str]) -> TrafficFile:
    """Return the content of a YAML or TOML file, which its name's ending tells; raises as :func:`load_streams`."""
    name = os.fspath(path)
    suffix = Path(name).suffix.lower()
    if suffix not in _SUFFIXES:
        raise ConfigError(f"{name}: its name must end with {', '.join(_SUFFIXES)}, which tells its format")
    try:
        with open(name, "rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise os_error(f"cannot read {name}", error, path=name) from error
    if len(data) > _LARGEST:
        raise ConfigError(f"{name} is larger than {_LARGEST >> 20} MiB, too large for a list of streams")
    try:
        text = data.decode()
        content = _toml(text) if suffix == ".toml" else _yaml(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8 text: {error}") from error
    except _BrokenFile as error:
        raise ConfigError(f"{name} is not {'TOML' if suffix == '.toml' else 'YAML'}: {error}") from error
    try:
        return _content(content, Path(name).parent)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


class _BrokenFile(Exception):
    """The text does not have its format."""


def _toml(text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError; so is a number that is too long
        raise _BrokenFile(" ".join(str(error).split())) from error


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.load(text, _yaml_loader())  # it is a safe loader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise _BrokenFile(" ".join(str(error).split())) from error


@functools.cache
def _yaml_loader() -> Any:
    """Return PyYAML's safe loader with the numbers of YAML 1.2, that refuses a key that is given twice.

    YAML 1.1 reads the MAC address ``22:33:44:55:11:22`` as a number of base 60, and the port ``0080`` as octal.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            if isinstance(node, yaml.MappingNode):
                keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
                for key, count in Counter(keys).items():
                    if count > 1:
                        line = node.start_mark.line + 1
                        raise _BrokenFile(f"the key {key!r} is given twice in the mapping of line {line}")
            return super().construct_mapping(node, deep)

    integer, real = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (integer, real)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(integer, re.compile(r"[-+]?(?:0|[1-9][0-9]*)$|0x[0-9a-fA-F]+$"), list("-+0123456789"))
    Loader.add_implicit_resolver(
        real,
        re.compile(
            r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?$|[-+]?[0-9]+[eE][-+]?[0-9]+$|"
            r"[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
        ),
        list("-+0123456789."),
    )
    return Loader


def _check_extent(content: Any) -> None:
    """Check that nothing in a file is longer or larger than streams need, so that messages can show each value.

    In YAML, few characters can make a value of any size: each alias is one more copy of its anchor.

    :raises ConfigError: something is.
    """
    waiting, values = [content], 0
    while waiting:
        each = waiting.pop()
        values += 1
        if values > _MOST_VALUES:
            raise ConfigError(f"it has more than {_MOST_VALUES} values, too many for a list of streams")
        if isinstance(each, int) and each.bit_length() > _LONGEST_NUMBER:
            raise ConfigError(f"it has a number of {each.bit_length()} bits; {_LONGEST_NUMBER} are the most")
        if each == math.inf:  # also 1e400
            raise ConfigError("it has a number that is infinite or too large; the fastest rate is max")
        if isinstance(each, Mapping):
            waiting += [*each, *each.values()]
        elif isinstance(each, list | tuple):
            waiting += each


def _content(content: Any, folder: Path) -> TrafficFile:
    _check_extent(content)
    if not isinstance(content, Mapping):
        raise ConfigError("it must have a list of streams, under the key streams")
    for key in content:
        if key not in _KEYS:
            raise ConfigError(
                f"{key!r} is not a key; it must be one of {', '.join(_KEYS)}{did_you_mean(str(key), _KEYS)}"
            )
    given = content.get("streams")
    if not isinstance(given, list) or not given:
        raise ConfigError("it has no list of streams, under the key streams")
    streams = []
    for number, each in enumerate(given, 1):
        if not isinstance(each, Mapping):
            raise ConfigError(f"stream {number} is {each!r}; it must have keys and values, such as packet and size")
        values = dict(each)
        if isinstance(values.get("pcap"), str):
            values["pcap"] = str(folder / values["pcap"])  # beside the file that names it
        streams.append(Stream.of(values, f"stream {number}" if len(given) > 1 else "stream"))
    check_names(streams)
    count = content.get("count")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise ConfigError(f"count is {count!r}; it must be a whole number from 1 on")
    rate, duration, speed = (content.get(key) for key in ("rate", "duration", "link_speed"))
    return TrafficFile(
        tuple(streams),
        None if rate is None else Rate.of(rate),
        None if duration is None else parse_time(str(duration)),
        count,
        None if speed is None else parse_speed(str(speed)),
    )
