"""The wire codec: every message against literal bytes, there and back, and against garbage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memifrt.control.wire import (
    DISCONNECT_STRING_BYTES,
    MESSAGE_SIZE,
    Ack,
    AddRegion,
    AddRing,
    Connect,
    Connected,
    Disconnect,
    Hello,
    Init,
    Message,
    MessageType,
    decode,
    encode,
)
from memifrt.errors import ErrorCode, ProtocolError
from tests.lib.strategies import characters, messages

#: Each message, and its fields at their offsets; all other bytes are zero.
LAYOUTS: list[tuple[Message, dict[int, bytes]]] = [
    (Ack(), {0: b"\x01\x00"}),
    (
        Hello("vpp", 0x0102, 0x0304, 0x0506, 0x0708, 0x090A, 0x0B),
        {
            0: b"\x02\x00",
            2: b"vpp",
            34: b"\x02\x01",
            36: b"\x04\x03",
            38: b"\x06\x05",
            40: b"\x08\x07",
            42: b"\x0a\x09",
            44: b"\x0b",
        },
    ),
    (
        Init(0x0200, 0x01020304, 1, b"hush", "client"),
        {0: b"\x03\x00", 2: b"\x00\x02", 4: b"\x04\x03\x02\x01", 8: b"\x01", 9: b"hush", 33: b"client"},
    ),
    (
        AddRegion(0x0102, 0x0102030405060708),
        {0: b"\x04\x00", 2: b"\x02\x01", 4: b"\x08\x07\x06\x05\x04\x03\x02\x01"},
    ),
    (
        AddRing(True, 0x0203, 0x0405, 0x06070809, 0x0A, 0x0B0C),
        {
            0: b"\x05\x00",
            2: b"\x01\x00",
            4: b"\x03\x02",
            6: b"\x05\x04",
            8: b"\x09\x08\x07\x06",
            12: b"\x0a",
            13: b"\x0c\x0b",
        },
    ),
    (AddRing(False, 1, 0, 0, 0), {0: b"\x05\x00", 2: b"\x00\x00", 4: b"\x01"}),
    (Connect("memif0/0"), {0: b"\x06\x00", 2: b"memif0/0"}),
    (Connected("net_memif0"), {0: b"\x07\x00", 2: b"net_memif0"}),
    (Disconnect(0x01020304, "bye"), {0: b"\x08\x00", 2: b"\x04\x03\x02\x01", 6: b"bye"}),
]

#: Where the fields of each message end, and the (start, size) of its strings: all the rest is padding.
FIELDS: dict[type[Message], tuple[int, tuple[tuple[int, int], ...]]] = {
    Ack: (2, ()),
    Hello: (45, ((2, 32),)),
    Init: (65, ((9, 24), (33, 32))),
    AddRegion: (12, ()),
    AddRing: (15, ()),
    Connect: (34, ((2, 32),)),
    Connected: (34, ((2, 32),)),
    Disconnect: (102, ((6, 96),)),
}


def at_offsets(fields: dict[int, bytes]) -> bytes:
    data = bytearray(MESSAGE_SIZE)
    for offset, value in fields.items():
        data[offset : offset + len(value)] = value
    return bytes(data)


def name_of(value: object) -> str:
    return type(value).__name__ if isinstance(value, Message) else ""


@pytest.mark.parametrize(("message", "fields"), LAYOUTS, ids=name_of)
def test_every_field_lies_where_the_protocol_has_it(message: Message, fields: dict[int, bytes]) -> None:
    assert encode(message) == at_offsets(fields)
    assert decode(at_offsets(fields)) == message


def test_the_layouts_above_cover_every_message() -> None:
    assert {type(message) for message, _ in LAYOUTS} == set(FIELDS)
    assert {encode(message)[0] for message, _ in LAYOUTS} == set(MessageType)


@given(messages)
def test_a_message_comes_back_as_it_went(message: Message) -> None:
    data = encode(message)
    assert len(data) == MESSAGE_SIZE
    assert decode(data) == message


@given(messages, st.binary(min_size=MESSAGE_SIZE, max_size=MESSAGE_SIZE))
def test_garbage_in_padding_and_behind_a_nul_is_ignored(message: Message, garbage: bytes) -> None:
    clean = encode(message)
    end, strings = FIELDS[type(message)]
    data = bytearray(clean[:end] + garbage[end:])
    for start, size in strings:
        nul = data.find(b"\0", start, start + size)
        if nul >= 0:  # a secret of 24 bytes has none
            data[nul + 1 : start + size] = garbage[nul + 1 : start + size]
    assert decode(bytes(data)) == message


@given(st.binary(max_size=2 * MESSAGE_SIZE).filter(lambda data: len(data) != MESSAGE_SIZE))
def test_a_message_of_another_length_is_malformed(data: bytes) -> None:
    with pytest.raises(ProtocolError, match=f"message of {len(data)} bytes") as caught:
        decode(data)
    assert caught.value.code is ErrorCode.MFMSG


@given(st.integers(0, 0xFFFF).filter(lambda kind: kind not in set(MessageType)), st.binary(min_size=126, max_size=126))
def test_an_unknown_type_is_named(kind: int, rest: bytes) -> None:
    with pytest.raises(ProtocolError, match=f"unknown type {kind}$") as caught:
        decode(kind.to_bytes(2, "little") + rest)
    assert caught.value.code is ErrorCode.UNKNOWN_MSG


@given(st.sampled_from(MessageType), st.binary(min_size=126, max_size=126))
def test_a_known_type_with_any_contents_is_a_message(kind: MessageType, rest: bytes) -> None:
    message = decode(kind.to_bytes(2, "little") + rest)
    repr(message)
    # What came as garbage can be shown and passed on: encoding its strings again does not fail.
    assert len(encode(message)) == MESSAGE_SIZE


@pytest.mark.parametrize(("flags", "s2m"), [(0x0000, False), (0x0001, True), (0xFFFE, False), (0xFFFF, True)])
def test_only_the_lowest_bit_of_a_ring_s_flags_counts(flags: int, s2m: bool) -> None:
    data = at_offsets({0: b"\x05\x00", 2: flags.to_bytes(2, "little")})
    assert decode(data) == AddRing(s2m, 0, 0, 0, 0)


def test_a_name_without_nul_fills_its_field() -> None:
    assert decode(at_offsets({0: b"\x06\x00", 2: b"n" * 32, 34: b"behind it"})) == Connect("n" * 32)


def test_bytes_that_are_no_utf8_become_visible() -> None:
    assert decode(at_offsets({0: b"\x08\x00", 6: b"caf\xe9 closed"})) == Disconnect(0, "caf\\xe9 closed")


@pytest.mark.parametrize("length", [DISCONNECT_STRING_BYTES, DISCONNECT_STRING_BYTES + 1, 500])
def test_a_reason_that_is_too_long_is_cut_and_keeps_its_nul(length: int) -> None:
    data = encode(Disconnect(0, "x" * length))
    assert data[6:102] == b"x" * (DISCONNECT_STRING_BYTES - 1) + b"\0"
    assert data[102:] == bytes(26)


def test_a_reason_is_cut_between_characters() -> None:
    assert decode(encode(Disconnect(0, "é" * 100))) == Disconnect(0, "é" * 47)


@given(st.text(characters, max_size=300))
def test_a_cut_reason_is_the_start_of_the_reason(reason: str) -> None:
    decoded = decode(encode(Disconnect(0, reason)))
    assert isinstance(decoded, Disconnect)
    assert reason.startswith(decoded.reason)
    missing = len(reason.encode()) - len(decoded.reason.encode())
    # Nothing is lost needlessly: one more character would not have left room for the NUL.
    assert missing == 0 or len(reason[: len(decoded.reason) + 1].encode()) >= DISCONNECT_STRING_BYTES


@given(st.binary(min_size=6, max_size=23).map(lambda secret: secret.replace(b"\0", b"s")))
def test_a_secret_is_never_shown(secret: bytes) -> None:
    quiet = Init(0x0200, 0, 0, b"", "app")
    assert repr(Init(0x0200, 0, 0, secret, "app")) == repr(quiet)
    assert repr(decode(encode(Init(0x0200, 0, 0, secret, "app")))) == repr(quiet)
