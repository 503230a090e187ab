"""Both conversations without any I/O: against each other, at every step with every message, and with nonsense."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memifrt.control.handshake import (
    AcceptRegion,
    AcceptRing,
    Action,
    Bind,
    Claim,
    Conversation,
    CreateMemory,
    Established,
    MasterTerms,
    Prepare,
    Receive,
    Received,
    RegionFd,
    Result,
    RingFd,
    Send,
    SharedMemory,
    SlaveOffer,
    master,
    slave,
)
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
from memifrt.errors import Disconnected, ErrorCode, MemifError, ProtocolError
from memifrt.types import Direction, Mode
from tests.lib.strategies import hellos, messages, u16

OFFER = SlaveOffer("slave app", "slave if", 7, Mode.ETHERNET, b"hush", 1, 1, 10)
TERMS = MasterTerms(Mode.ETHERNET, b"hush", "master if")
INIT = Init(0x0200, 7, 0, b"hush", "slave app")
REGION = AddRegion(0, 4096)
S2M = AddRing(True, 0, 0, 0, 10)
M2S = AddRing(False, 0, 0, 16512, 10)


# --- a driver that does no I/O --------------------------------------------------------------------------------------


@dataclass
class End:
    """One conversation: what it asked for since it last waited, and what answers it gets."""

    conversation: Conversation
    regions: Sequence[int] = (4096,)
    terms: dict[int, MasterTerms] = field(default_factory=lambda: {7: TERMS})
    asked: list[Action] = field(default_factory=list)
    everything: list[Action] = field(default_factory=list)

    def start(self) -> End:
        self._advance(None)
        return self

    def receive(self, message: Message, has_fd: bool | None = None) -> list[Action]:
        """Hand over a message, with an fd if it is one that needs it; what the conversation asks for then."""
        if has_fd is None:
            has_fd = isinstance(message, AddRegion | AddRing)
        self._advance(Received(message, has_fd))
        return self.asked

    def feed(self, *script: Message) -> End:
        for message in script:
            self.receive(message)
        return self

    @property
    def sent(self) -> list[Send]:
        return [action for action in self.asked if isinstance(action, Send)]

    @property
    def established(self) -> bool:
        return any(isinstance(action, Established) for action in self.everything)

    @property
    def over(self) -> bool:
        return inspect.getgeneratorstate(self.conversation) == inspect.GEN_CLOSED

    def _advance(self, result: Result) -> None:
        self.asked = []
        while True:
            action = self.conversation.send(result)
            if isinstance(action, Receive):
                return
            self.asked.append(action)
            self.everything.append(action)
            result = self._answer(action)

    def _answer(self, action: Action) -> Result:
        match action:
            case CreateMemory(s2m, m2s, log2_size):
                rings = [AddRing(True, index, 0, 0, log2_size) for index in range(s2m)]
                rings += [AddRing(False, index, 0, 0, log2_size) for index in range(m2s)]
                return SharedMemory(self.regions, rings)
            case Claim(interface_id):
                return self.terms.get(interface_id)
            case _:
                return None


def slave_end(offer: SlaveOffer = OFFER, regions: Sequence[int] = (4096,)) -> End:
    return End(slave(offer), regions).start()


def master_end(terms: MasterTerms = TERMS) -> End:
    return End(master("master app"), terms={7: terms}).start()


ENDS: dict[str, Callable[[], End]] = {"slave": slave_end, "master": master_end}


def converse(slave_side: End, master_side: End) -> None:
    """Join two ends by a link of encoded messages until both have nothing more to say."""
    to_slave, to_master = master_side.sent, slave_side.sent
    while to_slave or to_master:
        # Lock-step: neither end speaks twice before it is answered.
        assert len(to_slave) + len(to_master) == 1
        sender, receiver = (to_slave, slave_side) if to_slave else (to_master, master_side)
        (send,) = sender
        receiver.receive(decode(encode(send.message)), has_fd=send.attach is not None)
        to_slave, to_master = ([], slave_side.sent) if receiver is slave_side else (master_side.sent, [])


def refused(end: End, message: Message, code: ErrorCode, words: str, *, has_fd: bool | None = None) -> ProtocolError:
    """The end refuses the message with just that error, asks for nothing more, and is over."""
    with pytest.raises(MemifError) as caught:
        end.receive(message, has_fd)
    error = caught.value
    assert type(error) is ProtocolError
    assert error.code is code
    assert words in str(error)
    assert [action for action in end.asked if not isinstance(action, Claim)] == []
    assert end.over
    return error


# --- the two against each other -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("s2m", "m2s"), [(1, 1), (1, 3), (4, 2), (255, 1), (1, 255), (255, 255)])
@pytest.mark.parametrize("regions", [(4096,), (4096, 8192), (4096,) * 256], ids=len)
def test_slave_and_master_come_to_an_agreement(s2m: int, m2s: int, regions: Sequence[int]) -> None:
    offer = replace(OFFER, num_s2m_rings=s2m, num_m2s_rings=m2s)
    slave_side, master_side = slave_end(offer, regions), master_end()
    converse(slave_side, master_side)

    assert slave_side.everything[-1] == Established("master app", "master if")
    assert master_side.everything[-1] == Established("slave app", "slave if")
    accepted = [action for action in master_side.everything if not isinstance(action, Send)]
    rings = [(Direction.S2M, index) for index in range(s2m)] + [(Direction.M2S, index) for index in range(m2s)]
    assert accepted == [
        Claim(7),
        Bind(7, "slave app"),
        *(AcceptRegion(index, size) for index, size in enumerate(regions)),
        *(AcceptRing(direction, index, 0, 0, 10) for direction, index in rings),
        Prepare(),
        Established("slave app", "slave if"),
    ]
    attached = [action.attach for action in slave_side.everything if isinstance(action, Send) and action.attach]
    assert attached == [
        *(RegionFd(index) for index in range(len(regions))),
        *(RingFd(direction, index) for direction, index in rings),
    ]


def test_the_peer_is_told_that_it_is_connected_after_the_rings_are_reset_and_before_anything_is_sent() -> None:
    end = master_end().feed(INIT, REGION, S2M, M2S)
    assert end.receive(Connect("slave if")) == [
        Prepare(),
        Send(Connected("master if")),
        Established("slave app", "slave if"),
    ]


def test_the_slave_speaks_only_after_hello() -> None:
    assert slave_end().asked == []
    assert master_end().asked == [Send(Hello("master app"))]


def test_the_master_advertises_limits_that_no_peer_takes_for_none() -> None:
    (send,) = master_end().sent
    assert send.message == Hello("master app", 0x0200, 0x0200, 255, 255, 255, 14)


@given(hellos, st.integers(1, 255), st.integers(1, 255), st.integers(0, 14))
def test_the_slave_makes_what_both_sides_can(hello: Hello, s2m: int, m2s: int, log2_size: int) -> None:
    end = slave_end(replace(OFFER, num_s2m_rings=s2m, num_m2s_rings=m2s, log2_ring_size=log2_size))
    end.feed(replace(hello, min_version=0x0200, max_version=0x0200))
    (create, _) = end.receive(Ack())
    assert create == CreateMemory(
        min(hello.max_s2m_ring + 1, s2m), min(hello.max_m2s_ring + 1, m2s), min(hello.max_log2_ring_size, log2_size)
    )


@pytest.mark.parametrize(
    ("highest", "configured", "made"), [(0, 4, 1), (2, 4, 3), (3, 4, 4), (255, 4, 4), (254, 255, 255), (256, 255, 255)]
)
def test_the_highest_index_is_one_less_than_the_number_of_rings(highest: int, configured: int, made: int) -> None:
    offer = replace(OFFER, num_s2m_rings=configured, num_m2s_rings=configured)
    for hello, expected in (
        (Hello("peer", max_s2m_ring=highest), (made, configured)),
        (Hello("peer", max_m2s_ring=highest), (configured, made)),
    ):
        end = slave_end(offer).feed(hello, Ack())
        (create,) = (action for action in end.asked if isinstance(action, CreateMemory))
        assert (create.num_s2m_rings, create.num_m2s_rings) == expected


# --- every message at every step ------------------------------------------------------------------------------------

#: One of each message. Those that a step accepts are given with the step.
SAMPLES: dict[str, Message] = {
    "ACK": Ack(),
    "HELLO": Hello("peer"),
    "INIT": INIT,
    "ADD_REGION": REGION,
    "ADD_RING": S2M,
    "CONNECT": Connect("slave if"),
    "CONNECTED": Connected("master if"),
    "DISCONNECT": Disconnect(0, "going home"),
}


@dataclass(frozen=True)
class Step:
    """Where a conversation stands: how it came there, and what it asks for on each message that it accepts."""

    role: str
    name: str
    before: tuple[Message, ...]
    accepts: tuple[tuple[Message, list[Action]], ...] = ()

    def accepted(self, sample: str) -> tuple[Message, list[Action]] | None:
        kind = type(SAMPLES[sample])
        return next((case for case in self.accepts if isinstance(case[0], kind)), None)


SLAVE_STEPS = (
    Step("slave", "before-hello", (), ((Hello("peer"), [Send(INIT)]),)),
    Step(
        "slave",
        "init-sent",
        (Hello("peer"),),
        ((Ack(), [CreateMemory(1, 1, 10), Send(REGION, RegionFd(0))]),),
    ),
    Step(
        "slave",
        "region-sent",
        (Hello("peer"), Ack()),
        ((Ack(), [Send(AddRing(True, 0, 0, 0, 10), RingFd(Direction.S2M, 0))]),),
    ),
    Step(
        "slave",
        "s2m-ring-sent",
        (Hello("peer"), Ack(), Ack()),
        ((Ack(), [Send(AddRing(False, 0, 0, 0, 10), RingFd(Direction.M2S, 0))]),),
    ),
    Step(
        "slave",
        "m2s-ring-sent",
        (Hello("peer"), Ack(), Ack(), Ack()),
        ((Ack(), [Send(Connect("slave if"))]),),
    ),
    Step(
        "slave",
        "connect-sent",
        (Hello("peer"), Ack(), Ack(), Ack(), Ack()),
        ((Connected("master if"), [Established("peer", "master if")]),),
    ),
    Step("slave", "established", (Hello("peer"), Ack(), Ack(), Ack(), Ack(), Connected("master if"))),
)

CONNECTS: tuple[Message, list[Action]] = (
    Connect("slave if"),
    [Prepare(), Send(Connected("master if")), Established("slave app", "slave if")],
)


def region_accepted(index: int) -> tuple[Message, list[Action]]:
    return AddRegion(index, 4096), [AcceptRegion(index, 4096), Send(Ack())]


def ring_accepted(ring: AddRing, direction: Direction) -> tuple[Message, list[Action]]:
    accept = AcceptRing(direction, ring.index, ring.region, ring.offset, ring.log2_ring_size)
    return ring, [accept, Send(Ack())]


MASTER_STEPS = (
    Step("master", "hello-sent", (), ((INIT, [Claim(7), Bind(7, "slave app"), Send(Ack())]),)),
    # A ring before any region is refused, but not as a message out of order: see the refusals below.
    Step("master", "admitted", (INIT,), (region_accepted(0), CONNECTS)),
    Step(
        "master",
        "has-region",
        (INIT, REGION),
        (region_accepted(1), ring_accepted(S2M, Direction.S2M), CONNECTS),
    ),
    Step(
        "master",
        "has-s2m-ring",
        (INIT, REGION, S2M),
        (region_accepted(1), ring_accepted(replace(S2M, index=1), Direction.S2M), CONNECTS),
    ),
    Step(
        "master",
        "has-both-rings",
        (INIT, REGION, S2M, M2S),
        (region_accepted(1), ring_accepted(replace(M2S, index=1), Direction.M2S), CONNECTS),
    ),
    Step("master", "established", (INIT, REGION, S2M, M2S, Connect("slave if"))),
)

PAIRS = [
    pytest.param(step, sample, id=f"{step.role}-{step.name}-{sample}")
    for step in SLAVE_STEPS + MASTER_STEPS
    for sample in SAMPLES
]


@pytest.mark.parametrize(("step", "sample"), PAIRS)
def test_each_step_takes_its_own_messages_and_refuses_all_others(step: Step, sample: str) -> None:
    end = ENDS[step.role]().feed(*step.before)
    case = step.accepted(sample)
    if case is not None:
        message, asked = case
        assert end.receive(message) == asked
        assert not end.over
    elif sample == "DISCONNECT":
        with pytest.raises(Disconnected) as caught:
            end.receive(SAMPLES[sample])
        assert caught.value.code is ErrorCode.DISCONNECT
        assert str(caught.value) == "peer disconnected: going home"
        assert end.asked == []
        assert end.over
    elif (step.name, sample) == ("admitted", "ADD_RING"):
        refused(end, SAMPLES[sample], ErrorCode.MAXREG, "s2m ring 0 lies in region 0, but only 0 came")
    else:
        refused(end, SAMPLES[sample], ErrorCode.UNKNOWN_MSG, f"unexpected message {sample}, expected ")


def test_the_samples_are_all_messages_there_are() -> None:
    assert [encode(message)[0] for message in SAMPLES.values()] == list(range(1, 9))


def test_the_steps_are_all_steps_there_are() -> None:
    """Each step is the one before it and a message that it accepts, from the start to the end of the conversation."""
    for steps in (SLAVE_STEPS, MASTER_STEPS):
        assert steps[0].before == ()
        for earlier, later in itertools.pairwise(steps):
            assert later.before[:-1] == earlier.before
            assert type(later.before[-1]) in {type(message) for message, _ in earlier.accepts}
        assert not steps[-1].accepts


def test_a_disconnect_without_words_says_so() -> None:
    with pytest.raises(Disconnected, match="no reason given"):
        slave_end().receive(Disconnect(0, ""))


# --- what the slave refuses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lowest", "highest"), [(0x0200, 0x0200), (0x0100, 0x0200), (0x0200, 0x0300), (0, 0xFFFF)])
def test_the_slave_speaks_to_a_master_whose_versions_include_ours(lowest: int, highest: int) -> None:
    end = slave_end()
    assert end.receive(Hello("peer", lowest, highest)) == [Send(INIT)]


@pytest.mark.parametrize(
    ("lowest", "highest", "words"),
    [(0x0201, 0x0300, "2.1 to 3.0"), (0x0100, 0x01FF, "1.0 to 1.255"), (0x0300, 0x0100, "3.0 to 1.0")],
)
def test_the_slave_refuses_a_master_of_other_versions(lowest: int, highest: int, words: str) -> None:
    hello = Hello("peer", lowest, highest)
    refused(slave_end(), hello, ErrorCode.PROTO, f"memif versions {words}, we speak 2.0")


@pytest.mark.parametrize(("highest", "regions"), [(0, 2), (1, 3), (255, 257)])
def test_the_slave_does_not_send_more_regions_than_the_master_accepts(highest: int, regions: int) -> None:
    end = slave_end(regions=(4096,) * regions).feed(Hello("peer", max_region=highest))
    with pytest.raises(ProtocolError, match=rf"accepts {highest + 1} region\(s\), we need {regions}") as caught:
        end.receive(Ack())
    assert caught.value.code is ErrorCode.MAXREG
    assert end.sent == []
    assert end.over


def test_the_slave_sends_as_many_regions_as_the_master_accepts() -> None:
    end = slave_end(regions=(4096, 8192)).feed(Hello("peer", max_region=1), Ack(), Ack())
    assert end.sent == [Send(AddRegion(1, 8192), RegionFd(1))]


# --- what the master refuses: the INIT ------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "words"), [(0x0100, "1.0"), (0x0201, "2.1"), (0, "0.0"), (0xFFFF, "255.255")])
def test_the_master_refuses_another_version(version: int, words: str) -> None:
    end = master_end()
    refused(end, replace(INIT, version=version), ErrorCode.PROTO, f"the peer speaks memif {words}, we speak 2.0")
    assert end.asked == []


def test_the_master_refuses_an_unknown_id() -> None:
    refused(master_end(), replace(INIT, id=8), ErrorCode.ID, "no interface with id 8")


def test_the_master_refuses_the_id_of_a_slave() -> None:
    end = master_end(MasterTerms(Mode.ETHERNET, b"", "", is_slave=True))
    refused(end, INIT, ErrorCode.ACCSLAVE, "interface 7 is a slave")


def test_the_master_refuses_a_missing_secret() -> None:
    refused(master_end(), replace(INIT, secret=b""), ErrorCode.NOSECRET, "interface 7 requires a secret")


@pytest.mark.parametrize("secret", [b"hus", b"hush!", b"HUSH", b"h" * 24])
def test_the_master_refuses_a_wrong_secret_without_showing_either(secret: bytes) -> None:
    error = refused(master_end(), replace(INIT, secret=secret), ErrorCode.SECRET, "wrong secret for interface 7")
    assert secret.decode() not in str(error)
    assert "hush" not in str(error)


def test_a_master_without_a_secret_takes_any() -> None:
    end = master_end(replace(TERMS, secret=b""))
    assert end.receive(INIT)[-1] == Send(Ack())


@pytest.mark.parametrize(("mode", "words"), [(1, "ip"), (2, "punt_inject"), (3, "3"), (255, "255")])
def test_the_master_refuses_another_mode(mode: int, words: str) -> None:
    expected = f"mode mismatch: interface 7 is in mode ethernet, the peer asks for {words}"
    refused(master_end(), replace(INIT, mode=mode), ErrorCode.MODE, expected)


def test_the_master_refuses_a_second_peer() -> None:
    refused(master_end(replace(TERMS, connected=True)), INIT, ErrorCode.ALRCONN, "interface 7 is already connected")


def test_the_master_says_taken_before_it_looks_at_the_mode() -> None:
    end = master_end(replace(TERMS, connected=True))
    refused(end, replace(INIT, mode=255), ErrorCode.ALRCONN, "interface 7 is already connected")


def test_a_stranger_does_not_learn_whether_somebody_is_connected() -> None:
    end = master_end(replace(TERMS, connected=True))
    refused(end, replace(INIT, secret=b"guess"), ErrorCode.SECRET, "wrong secret")


# --- what the master refuses: regions and rings ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "message", "code", "words"),
    [
        ((), replace(REGION, index=1), ErrorCode.MAXREG, "region 1 came, expected region 0"),
        ((REGION,), REGION, ErrorCode.MAXREG, "region 0 came, expected region 1"),
        ((), replace(REGION, index=256), ErrorCode.MAXREG, "region index 256 is above the advertised 255"),
        ((REGION,), replace(S2M, index=1), ErrorCode.MAXRING, "s2m ring 1 came, expected s2m ring 0"),
        ((REGION,), replace(M2S, index=1), ErrorCode.MAXRING, "m2s ring 1 came, expected m2s ring 0"),
        ((REGION, S2M), S2M, ErrorCode.MAXRING, "s2m ring 0 came, expected s2m ring 1"),
        ((REGION, S2M), replace(M2S, index=1), ErrorCode.MAXRING, "m2s ring 1 came, expected m2s ring 0"),
        ((REGION,), replace(S2M, index=256), ErrorCode.MAXRING, "s2m ring index 256 is above the advertised 255"),
        ((REGION,), replace(S2M, log2_ring_size=15), ErrorCode.MAX_RING, "2^15 descriptors; the advertised limit"),
        ((REGION,), replace(M2S, log2_ring_size=255), ErrorCode.MAX_RING, "2^255 descriptors"),
        ((REGION,), replace(S2M, private_hdr_size=16), ErrorCode.PRIVHDR, "private headers of 16 bytes"),
        ((), S2M, ErrorCode.MAXREG, "s2m ring 0 lies in region 0, but only 0 came"),
        ((REGION,), replace(M2S, region=1), ErrorCode.MAXREG, "m2s ring 0 lies in region 1, but only 1 came"),
    ],
)
def test_the_master_refuses_what_is_wrong(
    before: tuple[Message, ...], message: Message, code: ErrorCode, words: str
) -> None:
    refused(master_end().feed(INIT, *before), message, code, words)


def test_the_master_refuses_a_region_without_an_fd() -> None:
    end = master_end().feed(INIT)
    refused(end, REGION, ErrorCode.NO_SHMFD, "region 0 came without a shared memory fd", has_fd=False)


@pytest.mark.parametrize("ring", [S2M, M2S])
def test_the_master_refuses_a_ring_without_an_fd(ring: AddRing) -> None:
    end = master_end().feed(INIT, REGION)
    refused(end, ring, ErrorCode.NO_INTFD, "ring 0 came without an interrupt fd", has_fd=False)


def test_regions_and_rings_come_in_any_order_each_kind_counted_apart() -> None:
    end = master_end().feed(INIT, REGION)
    for message in (M2S, replace(M2S, index=1), S2M, replace(REGION, index=1), replace(S2M, index=1, region=1)):
        assert end.receive(message)[-1] == Send(Ack())
    end.receive(Connect(""))
    assert end.established


@pytest.mark.parametrize("what", [REGION, S2M, M2S], ids=["region", "s2m", "m2s"])
def test_the_master_takes_256_of_each_and_not_one_more(what: AddRegion | AddRing) -> None:
    end = master_end().feed(INIT)
    if isinstance(what, AddRing):
        end.feed(REGION)
    end.feed(*(replace(what, index=index) for index in range(256)))
    code = ErrorCode.MAXREG if isinstance(what, AddRegion) else ErrorCode.MAXRING
    refused(end, replace(what, index=256), code, "index 256 is above the advertised 255")


@pytest.mark.parametrize("log2_size", [0, 14])
def test_the_master_takes_the_smallest_and_the_largest_ring(log2_size: int) -> None:
    end = master_end().feed(INIT, REGION)
    assert end.receive(replace(S2M, log2_ring_size=log2_size)) == [
        AcceptRing(Direction.S2M, 0, 0, 0, log2_size),
        Send(Ack()),
    ]


# --- any sequence of messages ---------------------------------------------------------------------------------------

SCRIPTS: dict[str, tuple[Message, ...]] = {
    "slave": SLAVE_STEPS[-1].before,
    "master": (INIT, REGION, S2M, replace(REGION, index=1), M2S, replace(S2M, index=1), Connect("slave if")),
}
#: Values near those that are right, so that a sequence gets past the checks of single fields.
near = st.integers(0, 2)
plausible: st.SearchStrategy[Message] = st.one_of(
    st.builds(AddRegion, near, st.just(4096)),
    st.builds(AddRing, st.booleans(), near, near, u16, st.integers(9, 15)),
    st.sampled_from([*SAMPLES.values()]),
)
#: None stands for the message that is due.
sequences = st.lists(
    st.tuples(st.one_of(st.none(), st.none(), plausible, messages), st.sampled_from([None, None, None, False, True])),
    max_size=12,
)


@pytest.mark.parametrize("role", ["slave", "master"])
@given(sequence=sequences)
def test_any_sequence_ends_in_nothing_but_a_protocol_error_or_a_disconnect(
    role: str, sequence: list[tuple[Message | None, bool | None]]
) -> None:
    end = ENDS[role]()
    due = iter(SCRIPTS[role])
    try:
        for message, has_fd in sequence:
            end.receive(message or next(due, Ack()), has_fd)
    except (ProtocolError, Disconnected):
        assert end.over
    else:
        assert not end.over
    check_order(end.everything)


def check_order(actions: list[Action]) -> None:
    """What holds of the actions of any conversation, however it went."""
    regions = [action.index for action in actions if isinstance(action, AcceptRegion)]
    assert regions == list(range(len(regions)))
    for direction in Direction:
        rings = [action for action in actions if isinstance(action, AcceptRing) and action.direction is direction]
        assert [ring.index for ring in rings] == list(range(len(rings)))
        assert all(ring.region < len(regions) and ring.log2_ring_size <= 14 for ring in rings)
    kinds = [type(action) for action in actions]
    for once in (Claim, Bind, CreateMemory, Prepare, Established):
        assert kinds.count(once) <= 1
    if Established in kinds:
        assert kinds[-1] is Established
        assert Bind in kinds or CreateMemory in kinds
    if AcceptRegion in kinds:
        assert kinds.index(Bind) < kinds.index(AcceptRegion)


def test_secrets_are_not_shown() -> None:
    assert "hush" not in repr(OFFER) + repr(TERMS) + repr(INIT)
    assert "hush" not in repr(slave_end().feed(Hello("peer")).everything)
