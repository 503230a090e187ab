"""What a peer or a user does wrong ends in a clear error, and the runtime goes on serving everybody else."""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memifrt import ConfigError, Credentials, ErrorCode, Interface, MemifOSError, Runtime, State
from memifrt.control.channel import Channel
from memifrt.control.wire import (
    Ack,
    AddRegion,
    AddRing,
    Connect,
    Connected,
    Hello,
    Init,
    Message,
    encode,
)
from memifrt.options import RoleName
from tests.lib.forked import NOBODY, in_child
from tests.lib.patched import open_fds
from tests.lib.peer import LOG2_SIZE, ScriptedMaster, ScriptedSlave, assert_packets_pass, memory_file
from tests.lib.support import Pair, Recorder, connect, wait_until

VALID = Init(0x0200, 0, 0, b"", "scripted slave")
RING_BYTES = 128 + (16 << LOG2_SIZE)


@pytest.fixture(autouse=True)
def witness(runtime: Runtime, socket_name: str) -> Iterator[Pair]:
    """Two interfaces on the same runtime that pass packets before and after whatever happens to others."""
    pair = connect(runtime, runtime, f"{socket_name}-witness")
    assert_packets_pass(pair)
    yield pair
    runtime.poll_event(0)
    assert pair.master.connected
    assert pair.slave.connected
    assert_packets_pass(pair)


# --- a slave that is wrong ------------------------------------------------------------------------------------------


@pytest.fixture
def record() -> Recorder:
    return Recorder()


@pytest.fixture
def master(runtime: Runtime, socket_name: str, record: Recorder) -> Interface:
    return runtime.create_interface(
        socket=socket_name,
        role="master",
        secret="right",
        on_connect=record.on_connect,
        on_disconnect=record.on_disconnect,
    )


@pytest.fixture
def slave_peer(runtime: Runtime, socket_name: str, master: Interface) -> Iterator[ScriptedSlave]:
    with ScriptedSlave(socket_name, runtime) as peer:
        yield peer


def good_slave_connects(runtime: Runtime, master: Interface) -> None:
    """The interface is free for the next peer."""
    with ScriptedSlave(master.socket.path, runtime) as peer:
        peer.run(until="init")
        peer.init(secret=b"right")
        peer.answer("init")
        for step in ("region", "s2m", "m2s", "connect"):
            peer.say(step)
            peer.answer(step)
        wait_until(lambda: master.connected, runtime)
        peer.post()
        assert master.tx_queues[0].send([b"hello"]) == 1
    wait_until(lambda: not master.connected, runtime)


@pytest.mark.parametrize(
    ("init", "reason"),
    [
        (replace(VALID, id=1), "there is no interface with id 1 on this socket"),
        (replace(VALID, secret=b"wrong"), "wrong secret for interface 0"),
        (replace(VALID, secret=b"right but longer"), "wrong secret for interface 0"),
        (replace(VALID, secret=b""), "interface 0 requires a secret"),
        (
            replace(VALID, secret=b"right", mode=1),
            "mode mismatch: interface 0 is in mode ethernet, the peer asks for ip",
        ),
        (replace(VALID, secret=b"right", mode=77), "the peer asks for 77"),
        (replace(VALID, secret=b"right", version=0x0300), "the peer speaks memif 3.0, we speak 2.0"),
        (replace(VALID, secret=b"right", version=0x0201), "the peer speaks memif 2.1, we speak 2.0"),
    ],
)
def test_an_init_that_does_not_fit_is_refused_with_a_reason(
    runtime: Runtime, master: Interface, record: Recorder, slave_peer: ScriptedSlave, init: Init, reason: str
) -> None:
    slave_peer.run(until="init")
    slave_peer.send(init)
    told = slave_peer.reason()
    assert reason in told
    assert "right" not in told  # the secret is not the peer's to learn
    # It never was this interface's peer.
    assert record.events == []
    assert master.state is State.DISCONNECTED
    good_slave_connects(runtime, master)


def test_a_slave_is_no_master_for_its_id(runtime: Runtime, socket_name: str) -> None:
    runtime.create_interface(socket=socket_name, role="master", id=1)
    runtime.create_interface(socket=socket_name, role="slave", id=5)
    with ScriptedSlave(socket_name, runtime, interface_id=5) as peer:
        peer.run(until="init")
        peer.init()
        assert peer.reason() == "interface 5 is a slave and accepts no connection"


def test_a_second_slave_is_refused_and_the_first_stays(runtime: Runtime, socket_name: str) -> None:
    master = runtime.create_interface(socket=socket_name, role="master")
    with ScriptedSlave(socket_name, runtime) as first, ScriptedSlave(socket_name, runtime) as second:
        first.run()
        second.run(until="init")
        second.init()
        assert second.reason() == "interface 0 is already connected"
        assert master.connected
        first.publish(b"still here")
        assert master.rx_queues[0].recv() == [b"still here"]


#: After which steps, what is sent with how many eventfds, and the reason that comes back.
_OUT_OF_ORDER: list[tuple[str, Message, str]] = [
    ("init", AddRegion(0, 4096), "unexpected message ADD_REGION, expected INIT"),
    ("init", Connect(""), "unexpected message CONNECT, expected INIT"),
    ("init", Hello(""), "unexpected message HELLO, expected INIT"),
    ("region", VALID, "unexpected message INIT, expected ADD_REGION, ADD_RING or CONNECT"),
    ("region", Ack(), "unexpected message ACK, expected "),
    ("s2m", Connected(""), "unexpected message CONNECTED, expected "),
    ("connect", Hello(""), "unexpected message HELLO, expected "),
]


@pytest.mark.parametrize(("step", "message", "reason"), _OUT_OF_ORDER)
def test_a_message_out_of_order_ends_the_conversation(
    runtime: Runtime, socket_name: str, step: str, message: Message, reason: str
) -> None:
    record = Recorder()
    master = runtime.create_interface(socket=socket_name, role="master", on_disconnect=record.on_disconnect)
    with ScriptedSlave(socket_name, runtime) as peer:
        peer.run(until=step)
        peer.send(message)
        assert reason in peer.reason()
    assert [ended.code for ended in record.reasons] == ([] if step == "init" else [ErrorCode.UNKNOWN_MSG])
    assert master.state is State.DISCONNECTED


@pytest.mark.parametrize("message", [Ack(), Connect("again"), AddRegion(1, 4096)])
def test_a_connected_peer_that_goes_on_talking_is_disconnected(
    runtime: Runtime, socket_name: str, record: Recorder, message: Message
) -> None:
    runtime.create_interface(socket=socket_name, role="master", on_disconnect=record.on_disconnect)
    with ScriptedSlave(socket_name, runtime) as peer:
        peer.run()
        peer.send(message)
        assert ", expected DISCONNECT" in peer.reason()
    assert [reason.established for reason in record.reasons] == [True]


@pytest.mark.parametrize("data", [b"\x01", bytes(127), bytes(129), bytes(4096)], ids=len)
def test_a_message_of_the_wrong_length_ends_the_conversation(
    runtime: Runtime, master: Interface, slave_peer: ScriptedSlave, data: bytes
) -> None:
    slave_peer.run(until="init")
    slave_peer.send(data)
    assert f"message of {min(len(data), 129)} bytes; every message has 128" in slave_peer.reason()


@pytest.mark.parametrize("kind", [0, 9, 0xFFFF])
def test_a_message_of_unknown_type_ends_the_conversation(
    runtime: Runtime, master: Interface, slave_peer: ScriptedSlave, kind: int
) -> None:
    slave_peer.run(until="init")
    slave_peer.send(struct.pack("<H", kind).ljust(128, b"\0"))
    assert slave_peer.reason() == f"message of unknown type {kind}"


def region(**changes: Any) -> Callable[[ScriptedSlave], None]:
    return lambda peer: peer.send(replace(AddRegion(0, peer.region_size), **changes), peer.memory_fd)


def ring(**changes: Any) -> Callable[[ScriptedSlave], None]:
    return lambda peer: peer.send(replace(AddRing(True, 0, 0, 0, LOG2_SIZE), **changes), peer.tx_fd)


def with_fds(message: Message, *fds: str) -> Callable[[ScriptedSlave], None]:
    return lambda peer: peer.send(message, *(getattr(peer, fd) for fd in fds))


def with_pipe(message: Message) -> Callable[[ScriptedSlave], None]:
    def send(peer: ScriptedSlave) -> None:
        peer.fds += os.pipe()
        peer.send(message, peer.fds[-1])

    return send


def read_only_memory(peer: ScriptedSlave) -> None:
    peer.fds.append(os.open(f"/proc/self/fd/{peer.memory_fd}", os.O_RDONLY))
    peer.send(AddRegion(0, peer.region_size), peer.fds[-1])


def wrong_cookie(peer: ScriptedSlave) -> None:
    peer.tx.write_cookie(0xDEAD)
    peer.s2m()


_REGION, _RING = AddRegion(0, 4096), AddRing(True, 0, 0, 0, LOG2_SIZE)
_OUTSIDE = 4096 + 2 * (256 << LOG2_SIZE)


@pytest.mark.parametrize(
    ("step", "lie", "reason", "code"),
    [
        ("region", with_fds(_REGION), "region 0 came without a shared memory fd", ErrorCode.NO_SHMFD),
        ("region", with_fds(_REGION, "memory_fd", "tx_fd"), "more than one fd came with a message", ErrorCode.MFMSG),
        ("region", with_fds(_REGION, *["tx_fd"] * 9), "more than one fd came with a message", ErrorCode.MFMSG),
        ("region", with_fds(_REGION, "tx_fd"), "an fd that is not a memory file", ErrorCode.NO_SHMFD),
        ("region", with_pipe(_REGION), "an fd that is not a memory file", ErrorCode.NO_SHMFD),
        ("region", read_only_memory, "cannot map region 0", ErrorCode.ACCES),
        ("region", region(size=1 << 20), "region 0 claims 1048576 bytes, but its file has", ErrorCode.INVAL_ARG),
        ("region", region(size=0), "region 0 has 0 bytes", ErrorCode.INVAL_ARG),
        ("region", region(size=(1 << 64) - 1), "a region has 1 to 4294967296", ErrorCode.INVAL_ARG),
        ("region", region(index=1), "region 1 came, expected region 0", ErrorCode.MAXREG),
        ("region", region(index=256), "region index 256 is above the advertised 255", ErrorCode.MAXREG),
        ("s2m", with_fds(_RING), "s2m ring 0 came without an interrupt fd", ErrorCode.NO_INTFD),
        ("s2m", with_fds(_RING, "tx_fd", "rx_fd"), "more than one fd came with a message", ErrorCode.MFMSG),
        ("s2m", with_fds(_RING, "memory_fd"), "came with an fd that is not an eventfd", ErrorCode.NO_INTFD),
        ("s2m", with_pipe(_RING), "came with an fd that is not an eventfd", ErrorCode.NO_INTFD),
        ("s2m", ring(index=1), "s2m ring 1 came, expected s2m ring 0", ErrorCode.MAXRING),
        ("s2m", ring(index=256), "s2m ring index 256 is above the advertised 255", ErrorCode.MAXRING),
        ("s2m", ring(s2m=False, index=3), "m2s ring 3 came, expected m2s ring 0", ErrorCode.MAXRING),
        ("s2m", ring(log2_ring_size=15), "has 2^15 descriptors; the advertised limit is 2^14", ErrorCode.MAX_RING),
        ("s2m", ring(log2_ring_size=255), "has 2^255 descriptors", ErrorCode.MAX_RING),
        ("s2m", ring(private_hdr_size=8), "private headers of 8 bytes", ErrorCode.PRIVHDR),
        ("s2m", ring(region=1), "lies in region 1, but only 1 came", ErrorCode.MAXREG),
        ("s2m", ring(offset=_OUTSIDE - RING_BYTES + 4), "lies outside region 0", ErrorCode.INVAL_ARG),
        ("s2m", ring(offset=0xFFFFFFFC), "lies outside region 0", ErrorCode.INVAL_ARG),
        ("s2m", ring(log2_ring_size=14), "lies outside region 0", ErrorCode.INVAL_ARG),
        ("s2m", ring(offset=2), "which is not a multiple of 4", ErrorCode.INVAL_ARG),
        ("s2m", wrong_cookie, "the header's cookie is 0xdead, not 0x3e31f20", ErrorCode.COOKIE),
    ],
)
def test_memory_that_is_not_as_it_says_ends_the_conversation(
    runtime: Runtime,
    socket_name: str,
    record: Recorder,
    step: str,
    lie: Callable[[ScriptedSlave], None],
    reason: str,
    code: ErrorCode,
) -> None:
    master = runtime.create_interface(socket=socket_name, role="master", on_disconnect=record.on_disconnect)
    with ScriptedSlave(socket_name, runtime) as peer:
        peer.run(until=step)
        lie(peer)
        assert reason in peer.reason()
    assert [(ended.code, ended.established) for ended in record.reasons] == [(code, False)]
    assert reason in master.details().error
    assert master.state is State.DISCONNECTED


def test_an_fd_that_nothing_claims_is_closed(runtime: Runtime, socket_name: str) -> None:
    master = runtime.create_interface(socket=socket_name, role="master")
    with ScriptedSlave(socket_name, runtime) as peer:
        peer.run(until="init")
        before = open_fds()
        peer.send(VALID, peer.tx_fd)
        peer.answer("init")
        assert open_fds() == before
        for step in ("region", "s2m", "m2s"):
            peer.say(step)
            peer.answer(step)
        # Nobody wants interrupts here, so that being connected adds no fd either.
        before = open_fds()
        peer.send(Connect(""), peer.rx_fd)
        peer.answer("connect")
        wait_until(lambda: master.connected, runtime)
        assert open_fds() == before


# --- memory that its owner can still truncate -----------------------------------------------------------------------


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every peer that is accepted runs, by its credentials, as another user."""

    def channel(sock: socket.socket) -> Channel:
        accepted = Channel(sock)
        if b"witness" not in bytes(sock.getsockname()):
            accepted.credentials = Credentials(1, 12345, 12345)
        return accepted

    monkeypatch.setattr("memifrt.sockets.Channel", channel)


@pytest.mark.usefixtures("stranger")
def test_unsealed_memory_of_another_user_is_refused(runtime: Runtime, socket_name: str, record: Recorder) -> None:
    runtime.create_interface(socket=socket_name, role="master", on_disconnect=record.on_disconnect)
    with ScriptedSlave(socket_name, runtime, sealed=False) as peer:
        peer.run(until="region")
        peer.region()
        assert "region 0 is not sealed against shrinking and the peer runs as another user" in peer.reason()
    assert record.reasons[0].code is ErrorCode.NO_SHMFD


@pytest.mark.usefixtures("stranger")
@pytest.mark.parametrize(("sealed", "trusting"), [(True, False), (False, True)])
def test_sealed_memory_or_a_trusting_runtime_takes_other_users(socket_name: str, sealed: bool, trusting: bool) -> None:
    with Runtime("trusting", accept_unsealed=trusting) as runtime:
        master = runtime.create_interface(socket=socket_name, role="master")
        with ScriptedSlave(socket_name, runtime, sealed=sealed) as peer:
            peer.run()
            wait_until(lambda: master.connected, runtime)
            details = master.details()
            assert details.peer == Credentials(1, 12345, 12345)


def test_unsealed_memory_of_our_own_user_is_accepted(runtime: Runtime, socket_name: str) -> None:
    master = runtime.create_interface(socket=socket_name, role="master")
    with ScriptedSlave(socket_name, runtime, sealed=False) as peer:
        peer.run()
        wait_until(lambda: master.connected, runtime)


# --- a master that is wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "message", "reason", "code"),
    [
        ("accept", Ack(), "unexpected message ACK, expected HELLO", ErrorCode.UNKNOWN_MSG),
        ("accept", Hello("", 0x0300, 0x0301), "the peer speaks memif versions 3.0 to 3.1", ErrorCode.PROTO),
        ("accept", Hello("", 0x0100, 0x01FF), "the peer speaks memif versions 1.0 to 1.255", ErrorCode.PROTO),
        ("accept", encode(Ack())[:-1], "message of 127 bytes", ErrorCode.MFMSG),
        ("init", Hello(""), "unexpected message HELLO, expected ACK", ErrorCode.UNKNOWN_MSG),
        ("region", Connected(""), "unexpected message CONNECTED, expected ACK", ErrorCode.UNKNOWN_MSG),
        ("m2s", VALID, "unexpected message INIT, expected ACK", ErrorCode.UNKNOWN_MSG),
        ("connect", Ack(), "unexpected message ACK, expected CONNECTED", ErrorCode.UNKNOWN_MSG),
        ("connect", encode(Ack()) + b"\0", "message of 129 bytes", ErrorCode.MFMSG),
        ("connect", b"\x63".ljust(128, b"\0"), "message of unknown type 99", ErrorCode.UNKNOWN_MSG),
    ],
)
def test_a_master_that_answers_wrongly_is_left_with_a_reason(
    runtime: Runtime,
    socket_name: str,
    record: Recorder,
    step: str,
    message: Message | bytes,
    reason: str,
    code: ErrorCode,
) -> None:
    with ScriptedMaster(socket_name, runtime) as peer:
        slave = runtime.create_interface(socket=socket_name, on_disconnect=record.on_disconnect)
        peer.run(until=step)
        peer.send(message)
        assert reason in peer.reason()
        assert [(ended.code, ended.established) for ended in record.reasons] == [(code, False)]
        # The timer brings it back, and a right answer is all that it takes.
        peer.run()
        wait_until(lambda: slave.connected, runtime)


def test_a_slave_offers_no_more_than_the_master_takes(runtime: Runtime, socket_name: str) -> None:
    with ScriptedMaster(socket_name, runtime) as peer:
        slave = runtime.create_interface(socket=socket_name, num_s2m_rings=4, num_m2s_rings=4, log2_ring_size=10)
        peer.accept()
        peer.send(Hello("modest", max_s2m_ring=0, max_m2s_ring=0, max_log2_ring_size=5))
        for step in ("init", "region", "s2m", "m2s", "connect"):
            peer.hear(step)
            peer.answer(step)
        wait_until(lambda: slave.connected, runtime)
        assert [queue.ring_size for queue in slave.rx_queues] == [32]
        assert [queue.ring_size for queue in slave.tx_queues] == [32]


def test_an_fd_from_a_master_is_closed(runtime: Runtime, socket_name: str) -> None:
    with ScriptedMaster(socket_name, runtime) as peer:
        slave = runtime.create_interface(socket=socket_name)
        peer.run(until="connect")
        before = open_fds()
        fd = memory_file(4096)
        peer.fds.append(fd)
        peer.send(Connected("with a present"), fd)
        wait_until(lambda: slave.connected, runtime)
        assert len(open_fds() - before) == 1


# --- what a user asks for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["master", "slave"])
@pytest.mark.parametrize(
    ("options", "reason", "code"),
    [
        ({"log2_ring_size": 15}, "log2_ring_size is 15; it must be a whole number from 0 to 14", ErrorCode.MAX_RING),
        ({"num_s2m_rings": 256}, "num_s2m_rings is 256; it must be a whole number from 1 to 255", ErrorCode.INVAL_ARG),
        ({"num_m2s_rings": 256}, "num_m2s_rings is 256; it must be a whole number from 1 to 255", ErrorCode.INVAL_ARG),
        ({"num_m2s_rings": 0}, "num_m2s_rings is 0", ErrorCode.INVAL_ARG),
        ({"buffer_size": 65536}, "buffer_size is 65536", ErrorCode.INVAL_ARG),
        ({"id": -1}, "id is -1", ErrorCode.INVAL_ARG),
        ({"id": 1 << 32}, "id is 4294967296", ErrorCode.INVAL_ARG),
        ({"name": "n" * 32}, "is 32 bytes long; at most 31 fit into a message", ErrorCode.INVAL_ARG),
        ({"name": "a\0b"}, "has a NUL byte", ErrorCode.INVAL_ARG),
        ({"secret": "s" * 24}, "the secret is 24 bytes long; at most 23", ErrorCode.INVAL_ARG),
        ({"mode": "token-ring"}, "mode is 'token-ring'; it must be one of", ErrorCode.INVAL_ARG),
        ({"rx_mode": "never"}, "rx_mode is 'never'", ErrorCode.INVAL_ARG),
        ({"socket": "/" + "p" * 107}, "is 108 bytes long; at most 107", ErrorCode.INVAL_ARG),
        ({"socket": ""}, "it must be a path or @name", ErrorCode.INVAL_ARG),
        ({"socket": "@"}, "it must be a path or @name", ErrorCode.INVAL_ARG),
        ({"rx_headroom": 2048}, "rx_headroom is 2048", ErrorCode.INVAL_ARG),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    runtime: Runtime, socket_name: str, role: RoleName, options: dict[str, Any], reason: str, code: ErrorCode
) -> None:
    before = (runtime.interfaces, runtime.sockets)
    with pytest.raises(ConfigError, match=re.escape(reason)) as caught:
        runtime.create_interface(**{"socket": socket_name, "role": role, **options})
    assert caught.value.code is code
    assert "sss" not in str(caught.value)
    assert (runtime.interfaces, runtime.sockets) == before


def test_a_layout_that_no_region_holds_is_refused_at_once(runtime: Runtime, socket_name: str) -> None:
    with pytest.raises(ConfigError, match="a region holds at most 4294967296"):
        runtime.create_interface(
            socket=socket_name, num_s2m_rings=255, num_m2s_rings=255, log2_ring_size=14, buffer_size=65535
        )
    # A master's sizes are its slave's choice.
    runtime.create_interface(
        socket=socket_name,
        role="master",
        num_s2m_rings=255,
        num_m2s_rings=255,
        log2_ring_size=14,
        buffer_size=65535,
    )


@pytest.mark.parametrize("role", ["master", "slave"])
def test_an_id_that_is_taken_is_refused(runtime: Runtime, socket_name: str, role: RoleName) -> None:
    first = runtime.create_interface(socket=socket_name, role=role, id=3)
    with pytest.raises(ConfigError, match=f"there is a {role} with id 3 on socket {socket_name} already") as caught:
        runtime.create_interface(socket=socket_name, role=role, id=3)
    assert caught.value.code is ErrorCode.CONN
    assert not first.deleted
    assert first in runtime.interfaces


@pytest.mark.parametrize("role", ["captain", 7, None])
def test_a_role_that_is_none_is_refused(runtime: Runtime, role: Any) -> None:
    with pytest.raises(ConfigError, match="it must be one of master, server, slave, client"):
        runtime.create_interface(role=role)


def test_a_directory_that_does_not_exist_is_named(runtime: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "missing" / "memif.sock"
    with pytest.raises(MemifOSError) as caught:
        runtime.create_interface(socket=path, role="master")
    assert f"cannot listen on {path}: the directory {path.parent} does not exist" in str(caught.value)
    assert (caught.value.code, caught.value.filename) == (ErrorCode.NO_FILE, str(path))


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_path_that_is_no_socket_is_named_and_left_alone(runtime: Runtime, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "memif.sock"
    if kind == "file":
        path.write_text("precious")
    else:
        path.mkdir()
    with pytest.raises(MemifOSError, match="a file that is not a socket is there") as caught:
        runtime.create_interface(socket=path, role="master")
    assert (caught.value.code, caught.value.filename) == (ErrorCode.FILE_NOT_SOCK, str(path))
    assert path.exists()
    assert kind == "directory" or path.read_text() == "precious"


def test_a_directory_that_we_may_not_write_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)

    def check() -> None:
        with Runtime("nobody") as runtime, pytest.raises(MemifOSError, match="EACCES") as caught:
            runtime.create_interface(socket=tmp_path / "memif.sock", role="master")
        assert caught.value.code is ErrorCode.ACCES
        assert str(tmp_path) in str(caught.value)

    try:
        in_child(check, uid=NOBODY)
    finally:
        tmp_path.chmod(0o700)
