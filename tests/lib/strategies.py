"""Hypothesis strategies for control messages, within and beyond what is allowed of them."""

from __future__ import annotations

from hypothesis import strategies as st

from memifrt.control.wire import (
    DISCONNECT_STRING_BYTES,
    Ack,
    AddRegion,
    AddRing,
    Connect,
    Connected,
    Disconnect,
    Hello,
    Init,
    Message,
)
from memifrt.types import NAME_BYTES

u8 = st.integers(0, 0xFF)
u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFFFFFF)
u64 = st.integers(0, 0xFFFFFFFFFFFFFFFF)

#: What UTF-8 can encode, without the NUL that ends a string on the wire.
characters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])


def text(limit: int) -> st.SearchStrategy[str]:
    """Strings of at most ``limit`` bytes of UTF-8."""
    return st.text(characters, max_size=limit).filter(lambda value: len(value.encode()) <= limit)


names = text(NAME_BYTES)
secrets = st.binary(max_size=24).map(lambda value: value.replace(b"\0", b"s"))

hellos = st.builds(Hello, names, u16, u16, u16, u16, u16, u8)
inits = st.builds(Init, u16, u32, u8, secrets, names)
add_regions = st.builds(AddRegion, u16, u64)
add_rings = st.builds(AddRing, st.booleans(), u16, u16, u32, u8, u16)
disconnects = st.builds(Disconnect, u32, text(DISCONNECT_STRING_BYTES - 1))

#: Every message with any values that its fields can hold.
messages: st.SearchStrategy[Message] = st.one_of(
    st.just(Ack()),
    hellos,
    inits,
    add_regions,
    add_rings,
    st.builds(Connect, names),
    st.builds(Connected, names),
    disconnects,
)
