"""The options of an interface: each refusal names the option, its value and what would be right."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from memifrt import Runtime
from memifrt.errors import ConfigError, ErrorCode
from memifrt.options import (
    TEXT_OPTIONS,
    InterfaceConfig,
    InterfaceOptions,
    check_name,
    check_secret,
    parse_mode,
    parse_role,
    parse_rx_mode,
)
from memifrt.types import Mode, Role, RxMode, check_range


def test_the_defaults_are_libmemif_s() -> None:
    config = InterfaceConfig()
    assert (config.num_s2m_rings, config.num_m2s_rings) == (1, 1)
    assert (config.log2_ring_size, config.buffer_size) == (10, 2048)
    assert (config.role, config.mode, config.secret) == (Role.SLAVE, Mode.ETHERNET, b"")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log2_ring_size": 15}, "log2_ring_size is 15; it must be a whole number from 0 to 14"),
        ({"log2_ring_size": -1}, "log2_ring_size is -1; it must be a whole number from 0 to 14"),
        ({"log2_ring_size": 9.5}, "log2_ring_size is 9.5; it must be a whole number from 0 to 14"),
        ({"num_s2m_rings": 256}, "num_s2m_rings is 256; it must be a whole number from 1 to 255"),
        ({"num_s2m_rings": 0}, "num_s2m_rings is 0; it must be a whole number from 1 to 255"),
        ({"num_m2s_rings": 256}, "num_m2s_rings is 256; it must be a whole number from 1 to 255"),
        ({"num_m2s_rings": 0}, "num_m2s_rings is 0; it must be a whole number from 1 to 255"),
        ({"buffer_size": 0}, "buffer_size is 0; it must be a whole number from 1 to 65535"),
        ({"buffer_size": 65536}, "buffer_size is 65536; it must be a whole number from 1 to 65535"),
        ({"buffer_size": True}, "buffer_size is True; it must be a whole number from 1 to 65535"),
        ({"rx_headroom": -1}, "rx_headroom is -1; it must be a whole number from 0 to 2047"),
        ({"rx_headroom": 2048}, "rx_headroom is 2048; it must be a whole number from 0 to 2047"),
        (
            {"rx_headroom": 64, "buffer_size": 64},
            "rx_headroom is 64; it must be a whole number from 0 to 63",
        ),
        ({"id": -1}, "id is -1; it must be a whole number from 0 to 4294967295"),
        ({"id": 1 << 32}, "id is 4294967296; it must be a whole number from 0 to 4294967295"),
        ({"id": "0"}, "id is '0'; it must be a whole number from 0 to 4294967295"),
        ({"name": "n" * 32}, f"name {'n' * 32!r} is 32 bytes long; at most 31 fit into a message"),
        ({"name": "é" * 16}, f"name {'é' * 16!r} is 32 bytes long; at most 31 fit into a message"),
        ({"name": "a\0b"}, "name 'a\\x00b' has a NUL byte in it"),
        ({"name": b"bytes"}, "name is b'bytes'; it must be a string"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_refusal_names_the_option_its_value_and_the_limits(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        InterfaceConfig(**options)
    assert str(caught.value) == message
    ring_size = "log2_ring_size" in options
    assert caught.value.code is (ErrorCode.MAX_RING if ring_size else ErrorCode.INVAL_ARG)


@pytest.mark.parametrize(
    "options",
    [
        {"log2_ring_size": 0},
        {"log2_ring_size": 14},
        {"num_s2m_rings": 1, "num_m2s_rings": 255},
        {"num_s2m_rings": 255, "num_m2s_rings": 1},
        {"buffer_size": 1},
        {"buffer_size": 65535, "rx_headroom": 65534},
        {"id": 0xFFFFFFFF},
        {"name": "n" * 31},
        {"name": ""},
        {"name": "é" * 15 + "n"},
    ],
    ids=str,
)
def test_the_limits_themselves_are_accepted(options: dict[str, Any]) -> None:
    config = InterfaceConfig(**options)
    assert {key: getattr(config, key) for key in options} == options


def test_a_configuration_does_not_change_and_does_not_show_its_secret() -> None:
    config = InterfaceConfig(secret=b"hush-hush")
    assert "hush" not in repr(config)
    with pytest.raises(AttributeError):
        config.id = 1  # type: ignore[misc]


@pytest.mark.parametrize("value", [None, "", b""])
def test_no_secret_is_an_empty_one(value: str | bytes | None) -> None:
    assert check_secret(value) == b""


@pytest.mark.parametrize(("value", "secret"), [("hush", b"hush"), (b"\xff", b"\xff"), ("s" * 23, b"s" * 23)])
def test_a_secret_is_bytes(value: str | bytes, secret: bytes) -> None:
    assert check_secret(value) == secret


def test_a_secret_from_the_command_line_keeps_bytes_that_are_no_utf8() -> None:
    assert check_secret("hush\udcff") == b"hush\xff"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("s" * 24, "the secret is 24 bytes long; at most 23 fit into a message"),
        (b"s" * 24, "the secret is 24 bytes long; at most 23 fit into a message"),
        ("é" * 12, "the secret is 24 bytes long; at most 23 fit into a message"),
        (b"hush\0", "the secret has a NUL byte in it"),
        ("hush\ud800", "the secret has a character that UTF-8 cannot encode"),
        (23, "the secret is of type int; it must be a string or bytes"),
    ],
)
def test_a_refused_secret_is_not_shown(value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_secret(value)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("parse", "names"),
    [
        (
            parse_role,
            {"master": Role.MASTER, "server": Role.MASTER, "slave": Role.SLAVE, "client": Role.SLAVE},
        ),
        (parse_mode, {"ethernet": Mode.ETHERNET, "ip": Mode.IP, "punt-inject": Mode.PUNT_INJECT}),
        (parse_rx_mode, {"interrupt": RxMode.INTERRUPT, "polling": RxMode.POLLING}),
    ],
)
def test_a_choice_is_taken_by_member_and_by_name(parse: Callable[[object], object], names: dict[str, object]) -> None:
    for name, member in names.items():
        assert parse(name) is member
        assert parse(name.upper()) is member
        assert parse(member) is member


@pytest.mark.parametrize("value", ["both", 0, None, RxMode.POLLING, b"master"])
def test_another_choice_is_refused_with_those_that_there_are(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_role(value)
    assert str(caught.value) == f"role is {value!r}; it must be one of master, server, slave, client"


def test_checks_return_what_they_accept() -> None:
    assert check_range("thing", 5, 5, 5) == 5
    assert check_name("thing", "four", limit=4) == "four"
    with pytest.raises(ConfigError, match="thing 'fours' is 5 bytes long; at most 4"):
        check_name("thing", "fours", limit=4)


# --- one vocabulary -------------------------------------------------------------------------------------------------


def test_queues_and_ring_size_say_the_same_as_libmemif_s_names() -> None:
    named = InterfaceConfig.of(queues=3, ring_size=512, role="server", mode="ip", rx_mode="adaptive", secret="hush")
    assert named == InterfaceConfig(
        num_s2m_rings=3,
        num_m2s_rings=3,
        log2_ring_size=9,
        role=Role.MASTER,
        mode=Mode.IP,
        rx_mode=RxMode.ADAPTIVE,
        secret=b"hush",
    )
    assert (named.num_s2m_rings, named.num_m2s_rings, named.log2_ring_size, named.ring_size) == (3, 3, 9, 512)
    assert (named.role, named.mode, named.rx_mode, named.secret) == (Role.MASTER, Mode.IP, RxMode.ADAPTIVE, b"hush")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queues": 0}, "queues is 0; it must be a whole number from 1 to 255"),
        ({"queues": "2"}, "queues is '2'; it must be a whole number from 1 to 255"),
        ({"ring_size": 1000}, "ring_size is 1000; it must be a power of two from 1 to 16384"),
        ({"ring_size": 32768}, "ring_size is 32768; it must be a power of two from 1 to 16384"),
        ({"ring_size": True}, "ring_size is True; it must be a power of two from 1 to 16384"),
        (
            {"queues": 2, "num_m2s_rings": 3},
            "queues is 2 and num_m2s_rings is 3; an interface takes one of the two",
        ),
        (
            {"ring_size": 64, "log2_ring_size": 6},
            "ring_size is 64 and log2_ring_size is 6; an interface takes one of the two",
        ),
    ],
    ids=str,
)
def test_a_wrong_or_contradicting_option_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        InterfaceConfig.of(**options)
    assert str(caught.value) == message


def test_an_option_that_does_not_exist_is_named_with_the_one_that_was_meant(runtime: Runtime) -> None:
    options: dict[str, Any] = {"queue": 2}
    with pytest.raises(TypeError, match=r"no option 'queue'; did you mean 'queues'\?"):
        runtime.create_interface(**options)
    options = {"colour": "red"}
    with pytest.raises(TypeError, match=r"no option 'colour'; it has id, name, role, mode, .*chained_tx"):
        runtime.create_interface(**options)
    assert runtime.interfaces == ()


def test_a_configuration_is_the_options_again() -> None:
    config = InterfaceConfig.of(id=3, queues=2, ring_size=64, secret="hush", chained_tx=False)
    assert InterfaceConfig.of(**config.options()) == config
    assert config.replace(queues=4, ring_size=32).options() == {
        **config.options(),
        "num_s2m_rings": 4,
        "num_m2s_rings": 4,
        "log2_ring_size": 5,
    }


def test_every_field_of_a_configuration_is_an_option_with_a_description() -> None:
    fields = {found.name for found in dataclasses.fields(InterfaceConfig)}
    assert fields | {"queues", "ring_size"} == {*InterfaceOptions.__annotations__}
    described = InterfaceOptions.__doc__ or ""
    assert [name for name in InterfaceOptions.__annotations__ if f"``{name}``" not in described] == []
    assert {*TEXT_OPTIONS} <= {*InterfaceOptions.__annotations__}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("role", "client", Role.SLAVE),
        ("id", "7", 7),
        ("mode", "IP", Mode.IP),
        ("queues", "255", 255),
        ("ring_size", "16384", 16384),
        ("buffer_size", "9000", 9000),
        ("rx_mode", "adaptive", RxMode.ADAPTIVE),
        ("secret", "hush\udcff", b"hush\xff"),
    ],
)
def test_an_option_is_read_from_text(name: str, text: str, value: object) -> None:
    assert TEXT_OPTIONS[name].parse(text) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("id", "-1"),
        ("id", "x"),
        ("queues", "0"),
        ("ring_size", "1000"),
        ("ring_size", ""),
        ("buffer_size", "65536"),
        ("mode", "punt-inject"),
        ("rx_mode", "busy"),
        ("role", "boss"),
    ],
)
def test_text_that_is_no_value_of_an_option_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is {text!r}; it must be "):
        TEXT_OPTIONS[name].parse(text)
