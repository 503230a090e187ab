"""Both conversations joined by a link that may lose, repeat and make up messages, beside a model of what each takes.

The model is written from docs/protocol.md, not from the code: for every message at every point it says whether it is
to be taken, and what is to be said next.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from memifrt.control.handshake import Established, MasterTerms, Prepare, Send, SlaveOffer, master, slave
from memifrt.control.wire import (
    Ack,
    AddRegion,
    AddRing,
    Connect,
    Connected,
    Disconnect,
    Hello,
    Init,
    Message,
    decode,
    encode,
)
from memifrt.errors import Disconnected, ProtocolError
from memifrt.types import VERSION, Direction, Mode
from tests.control.test_handshake import End
from tests.lib.exploring import machine_settings
from tests.lib.strategies import messages, names

ID, SECRET = 7, b"hush"
TERMS = MasterTerms(Mode.ETHERNET, SECRET, "master if")

# --- the model ------------------------------------------------------------------------------------------------------


@dataclass
class Model:
    """What one end has been told so far. ``over`` is for good."""

    over: bool = False
    connected: bool = False

    def takes(self, message: Message, has_fd: bool) -> bool:
        raise NotImplementedError

    def says(self, message: Message) -> list[type[Message]]:
        """What a message that is taken is answered with; the model goes on."""
        raise NotImplementedError


@dataclass
class MasterModel(Model):
    """INIT, then regions and rings in any order, each kind in the order of its indices, then CONNECT."""

    greeted: bool = False
    regions: int = 0
    rings: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})

    def takes(self, message: Message, has_fd: bool) -> bool:
        if self.connected:
            return False
        if not self.greeted:
            return (
                isinstance(message, Init)
                and (message.version, message.id, message.mode) == (VERSION, ID, Mode.ETHERNET)
                and message.secret == SECRET
            )
        match message:
            case AddRegion(index, _):
                return has_fd and index == self.regions <= 255
            case AddRing():
                shape = message.log2_ring_size <= 14 and message.private_hdr_size == 0
                in_turn = message.index == self.rings[message.s2m] <= 255
                return has_fd and shape and in_turn and message.region < self.regions
            case Connect():
                return True
        return False

    def says(self, message: Message) -> list[type[Message]]:
        match message:
            case Init():
                self.greeted = True
            case AddRegion():
                self.regions += 1
            case AddRing():
                self.rings[message.s2m] += 1
            case Connect():
                self.connected = True
                return [Connected]
        return [Ack]


@dataclass
class SlaveModel(Model):
    """HELLO, then an ACK for INIT, each region and each ring, then CONNECTED."""

    s2m: int = 1
    m2s: int = 1
    regions: int = 1
    hello: Hello | None = None
    #: What is still to be said, after the answer to the last.
    script: deque[type[Message]] = field(default_factory=deque)

    def takes(self, message: Message, has_fd: bool) -> bool:
        if self.connected:
            return False
        if self.hello is None:
            return isinstance(message, Hello) and message.min_version <= VERSION <= message.max_version
        if not self.script:
            return isinstance(message, Connected)
        wants_memory = self.script[0] is AddRegion and len(self.script) == self._messages_of_memory + 1
        too_many = wants_memory and self.regions > self.hello.max_region + 1
        return isinstance(message, Ack) and not too_many

    @property
    def _rings(self) -> int:
        assert self.hello is not None
        return min(self.s2m, self.hello.max_s2m_ring + 1) + min(self.m2s, self.hello.max_m2s_ring + 1)

    @property
    def _messages_of_memory(self) -> int:
        return self.regions + self._rings

    def says(self, message: Message) -> list[type[Message]]:
        if isinstance(message, Hello):
            self.hello = message
            self.script = deque([AddRegion] * self.regions + [AddRing] * self._rings + [Connect])
            return [Init]
        if isinstance(message, Connected):
            self.connected = True
            return []
        return [self.script.popleft()]


# --- the machine ----------------------------------------------------------------------------------------------------

small = st.integers(0, 3)
#: Messages that are right at one point or another, or nearly so.
plausible: st.SearchStrategy[Message] = st.one_of(
    st.just(Ack()),
    st.builds(
        Hello, names, st.sampled_from([0x200, 0x100, 0x201]), st.sampled_from([0x200, 0x300]), small, small, small,
    ),
    st.builds(
        Init, st.sampled_from([VERSION, VERSION, 0x100]), st.sampled_from([ID, ID, 8]), st.sampled_from([0, 0, 1]),
        st.sampled_from([SECRET, SECRET, b"", b"push"]), names,
    ),
    st.builds(AddRegion, small, st.sampled_from([4096, 0, 1 << 40])),
    st.builds(
        AddRing, st.booleans(), small, st.integers(0, 2), st.just(0), st.sampled_from([10, 0, 14, 15]),
        st.sampled_from([0, 0, 0, 1]),
    ),
    st.builds(Connect, names),
    st.builds(Connected, names),
    st.just(Disconnect(0, "enough")),
)  # fmt: skip


@dataclass
class Side:
    """An end, its model, and what is on the way to it: messages, and whether an fd comes with them."""

    end: End
    model: Model
    inbox: deque[tuple[Message, bool]] = field(default_factory=deque)


class Conversations(RuleBasedStateMachine):
    """Both ends at once, over a link that passes everything on. ``honest`` until it does anything else."""

    @initialize(s2m=st.integers(1, 4), m2s=st.integers(1, 4), regions=st.integers(1, 3))
    def meet(self, s2m: int, m2s: int, regions: int) -> None:
        offer = SlaveOffer("slave app", "slave if", ID, Mode.ETHERNET, SECRET, s2m, m2s, 10)
        self.honest = True
        self.slave = Side(End(slave(offer), [4096] * regions).start(), SlaveModel(s2m=s2m, m2s=m2s, regions=regions))
        self.master = Side(End(master("master app"), terms={ID: TERMS}).start(), MasterModel())
        self.rings = {Direction.S2M: s2m, Direction.M2S: m2s}
        assert [type(send.message) for send in self.slave.end.sent] == []
        assert [type(send.message) for send in self.master.end.sent] == [Hello]
        self._post(self.master)

    def _other(self, side: Side) -> Side:
        return self.master if side is self.slave else self.slave

    def _post(self, side: Side) -> None:
        """What an end has just said goes into the other's inbox, as bytes would."""
        for send in side.end.sent:
            self._other(side).inbox.append((decode(encode(send.message)), send.attach is not None))

    def _side(self, is_master: bool) -> Side:
        return self.master if is_master else self.slave

    def _deliver(self, side: Side, message: Message, has_fd: bool) -> None:
        if side.model.over:
            return
        if not side.model.takes(message, has_fd):
            with pytest.raises(Disconnected if isinstance(message, Disconnect) else ProtocolError):
                side.end.receive(message, has_fd)
            assert side.end.over
            side.model.over = True
            return
        side.end.receive(message, has_fd)
        assert [type(send.message) for send in side.end.sent] == side.model.says(message)
        assert side.end.established == side.model.connected
        self._post(side)

    # --- what the link does

    @precondition(lambda self: self.master.inbox or self.slave.inbox)
    @rule(is_master=st.booleans(), count=st.integers(1, 8))
    def pass_on(self, is_master: bool, count: int) -> None:
        """So many that an end gets far before it is lied to: few lies leave it in the conversation."""
        for _ in range(count):
            side = self._side(is_master)
            if not side.inbox:
                side = self._other(side)
            if side.inbox:
                self._deliver(side, *side.inbox.popleft())

    @rule()
    def wait(self) -> None:
        """Nothing happens."""

    # --- what holds at any time

    @invariant()
    def an_honest_link_has_one_message_at_most(self) -> None:
        if self.honest:
            assert len(self.master.inbox) + len(self.slave.inbox) <= 1
            assert not self.master.model.over
            assert not self.slave.model.over

    @invariant()
    def honest_ends_agree(self) -> None:
        if self.honest and self.slave.model.connected:
            assert isinstance(self.master.model, MasterModel)
            assert self.master.model.connected
            assert self.master.model.rings == {True: self.rings[Direction.S2M], False: self.rings[Direction.M2S]}

    @invariant()
    def rings_are_prepared_once_and_before_anybody_is_connected(self) -> None:
        everything = self.master.end.everything
        asked = [type(action) for action in everything]
        assert asked.count(Prepare) == asked.count(Established) <= 1
        if Established in asked:
            told = [isinstance(action, Send) and isinstance(action.message, Connected) for action in everything]
            assert asked.index(Prepare) < told.index(True) < asked.index(Established)

    def teardown(self) -> None:
        """An honest link that goes on ends in a connection."""
        if not hasattr(self, "honest") or not self.honest:
            return
        while self.master.inbox or self.slave.inbox:
            self.pass_on(bool(self.master.inbox), 1)
            self.an_honest_link_has_one_message_at_most()
        assert self.master.model.connected
        assert self.slave.model.connected


class ChangingLink(Conversations):
    """Numbers in messages are changed, early or late."""

    @precondition(lambda self: self.master.inbox or self.slave.inbox)
    @rule(
        after=st.integers(0, 12),
        which=st.integers(0, 5),
        value=st.one_of(small, st.sampled_from([15, 256, 0xFFFF])),
    )
    def change_a_number(self, after: int, which: int, value: int) -> None:
        """Of what an end says: of what a slave says, if it goes on to say anything."""
        self.pass_on(True, after)
        if not self.master.inbox:
            self.pass_on(False, 1)
        side = self.master if self.master.inbox else self.slave
        if not side.inbox:
            return
        message, has_fd = side.inbox.popleft()
        numbers = [one.name for one in fields(message) if type(getattr(message, one.name)) is int]
        if numbers:
            self.honest = False
            name = numbers[which % len(numbers)]
            limit = 0xFF if name in ("mode", "log2_ring_size", "max_log2_ring_size") else 0xFFFF
            changes: dict[str, Any] = {name: value & limit}
            message = decode(encode(replace(message, **changes)))
        self._deliver(side, message, has_fd)


class LyingLink(Conversations):
    """Messages are lost, repeated, robbed of their fds and made up."""

    @rule(is_master=st.booleans(), message=st.one_of(plausible, plausible, plausible, messages), has_fd=st.booleans())
    def make_up(self, is_master: bool, message: Message, has_fd: bool) -> None:
        self.honest = False
        self._deliver(self._side(is_master), message, has_fd)

    @precondition(lambda self: self.master.inbox or self.slave.inbox)
    @rule(is_master=st.booleans())
    def lose(self, is_master: bool) -> None:
        if self._side(is_master).inbox:
            self.honest = False
            self._side(is_master).inbox.popleft()

    @precondition(lambda self: self.master.inbox or self.slave.inbox)
    @rule(is_master=st.booleans())
    def repeat(self, is_master: bool) -> None:
        side = self._side(is_master)
        if side.inbox:
            self.honest = False
            side.inbox.appendleft(side.inbox[0])

    @precondition(lambda self: self.master.inbox or self.slave.inbox)
    @rule(is_master=st.booleans())
    def lose_the_fd(self, is_master: bool) -> None:
        side = self._side(is_master)
        if side.inbox and side.inbox[0][1]:
            self.honest = False
            side.inbox[0] = (side.inbox[0][0], False)


@pytest.mark.stateful
@pytest.mark.parametrize("machine", [Conversations, ChangingLink, LyingLink], ids=["honest", "changing", "lying"])
def test_both_conversations_take_what_the_protocol_allows_and_nothing_else(machine: type[Conversations]) -> None:
    run_state_machine_as_test(
        machine,
        settings=machine_settings(20 if machine is Conversations else 150, 40),
    )
