"""Interfaces: connecting, the reasons for the end, what details tells, queues and their modes; both roles."""

from __future__ import annotations

import os
import select
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memifrt import (
    ConfigError,
    Disconnected,
    ErrorCode,
    Interface,
    MemifError,
    MemifOSError,
    Mode,
    Role,
    Runtime,
    RxMode,
    RxQueue,
    State,
)
from memifrt.connection.changes import ChangeLog
from memifrt.options import RoleName
from tests.lib.forked import NOBODY, in_child
from tests.lib.peer import ScriptedMaster, ScriptedSlave, assert_packets_pass, scripted_peer
from tests.lib.support import Pair, Recorder, runtime_of, wait_until

ROLES: tuple[RoleName, ...] = ("master", "slave")
MakePair = Callable[..., Pair]
MASK_INT = 1


def readable(queue: RxQueue) -> bool:
    return bool(select.select([queue], [], [], 0)[0])


# --- coming and going -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_a_disconnect_gives_both_sides_its_reason_and_the_slave_returns(make_pair: MakePair, role: RoleName) -> None:
    records = {side: Recorder() for side in ROLES}
    pair = make_pair(
        master_on_connect=records["master"].on_connect,
        master_on_disconnect=records["master"].on_disconnect,
        slave_on_connect=records["slave"].on_connect,
        slave_on_disconnect=records["slave"].on_disconnect,
    )
    pair.side(role).disconnect("time for a change")
    assert pair.side(role).state is State.DISCONNECTED
    pair.wait(lambda: all(record.events.count(("connect", side)) == 2 for side, record in records.items()))
    for side, record in records.items():
        assert record.events == [("connect", side), ("disconnect", side), ("connect", side)]
        (reason,) = record.reasons
        assert reason.established
        near = side == role
        assert str(reason) == ("time for a change" if near else "peer disconnected: time for a change")
        assert reason.code is (ErrorCode.DISCONNECTED if near else ErrorCode.DISCONNECT)
    assert_packets_pass(pair)


@pytest.mark.parametrize("role", ROLES)
def test_an_interface_that_never_had_a_peer_is_not_called_disconnected(
    runtime: Runtime, make_pair: MakePair, role: RoleName
) -> None:
    alone = runtime.create_interface(socket=f"@{uuid.uuid4()}", role=role)
    assert "not connected yet" in repr(alone)
    pair = make_pair()
    interface = pair.side(role)
    assert "connected" in repr(interface)
    interface.disconnect()
    assert interface.state_name == "disconnected"
    alone.delete()


@pytest.mark.parametrize("role", ROLES)
def test_deleting_an_interface_tells_both_sides_and_frees_the_id(
    runtime: Runtime, peer_runtime: Runtime, make_pair: MakePair, role: RoleName
) -> None:
    near, far = Recorder(), Recorder()
    far_role = ROLES[1 - ROLES.index(role)]
    pair = make_pair(**{f"{role}_on_disconnect": near.on_disconnect, f"{far_role}_on_disconnect": far.on_disconnect})
    with pair.side(role) as ending:
        pass
    assert ending.deleted
    ending.delete()
    assert [str(reason) for reason in near.reasons] == ["interface deleted"]
    pair.wait(lambda: far.reasons)
    assert str(far.reasons[0]) == "peer disconnected: interface deleted"
    assert pair.side(far_role).details().error == "peer disconnected: interface deleted"
    with pytest.raises(MemifError, match="is deleted") as caught:
        ending.request_connection()
    assert caught.value.code is ErrorCode.NOCONN
    home = runtime if role == "master" else peer_runtime
    again = home.create_interface(socket=ending.socket.path, role=role)
    pair.wait(lambda: again.connected and pair.side(far_role).connected)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("end", "told"),
    [("hangs up", "peer closed the connection without a reason"), ("gives no reason", "no reason given")],
)
def test_a_peer_that_goes_without_a_reason(
    runtime: Runtime, socket_name: str, role: RoleName, end: str, told: str
) -> None:
    record = Recorder()
    interface, peer = meet(runtime, socket_name, role, record)
    with peer:
        if end == "gives no reason":
            peer.send(b"\x08\x00".ljust(128, b"\0"))
        peer.hang_up()
        wait_until(lambda: record.reasons, runtime)
    assert told in str(record.reasons[0])
    assert record.reasons[0].established
    assert interface.last_error is record.reasons[0]


def meet(
    runtime: Runtime, path: str, role: RoleName, record: Recorder
) -> tuple[Interface, ScriptedMaster | ScriptedSlave]:
    """An interface of ``role`` that is connected to a scripted peer."""

    def create() -> Interface:
        return runtime.create_interface(
            socket=path,
            role=role,
            log2_ring_size=4,
            buffer_size=256,
            on_connect=record.on_connect,
            on_disconnect=record.on_disconnect,
        )

    if role == "master":
        interface = create()
        peer = scripted_peer(role, path, runtime)
    else:
        peer = scripted_peer(role, path, runtime)
        interface = create()
    peer.run()
    wait_until(lambda: interface.connected, runtime)
    return interface, peer


@pytest.mark.parametrize("read", [True, False], ids=["after reading us", "with our message unread"])
@pytest.mark.parametrize("role", ROLES)
def test_the_reason_arrives_however_the_peer_closes(
    runtime: Runtime, socket_name: str, role: RoleName, read: bool
) -> None:
    # A socket closed with unread messages resets its peer, and that must not hide the reason in front of it.
    record = Recorder()
    reason = b"\x08\x00\x00\x00\x00\x00go away".ljust(128, b"\0")
    if role == "slave":
        with ScriptedMaster(socket_name, runtime) as master:
            runtime.create_interface(socket=socket_name, on_disconnect=record.on_disconnect)
            if read:
                master.run(until="region")
            else:
                master.accept()
                master.answer("accept")
                wait_until(lambda: select.select([master.socket], [], [], 0)[0], runtime)  # our INIT is there
            master.send(reason)
            master.hang_up()
            wait_until(lambda: record.reasons, runtime)
    else:
        runtime.create_interface(socket=socket_name, role="master", on_disconnect=record.on_disconnect)
        with ScriptedSlave(socket_name, runtime) as slave:
            slave.run(until="region")
            if not read:
                slave.say("region")
                wait_until(lambda: select.select([slave.socket], [], [], 0)[0], runtime)  # our ACK is there
            slave.send(reason)
            slave.hang_up()
            wait_until(lambda: record.reasons, runtime)
    assert str(record.reasons[0]) == "peer disconnected: go away"


def test_a_reason_that_comes_with_the_hello_is_not_lost(runtime: Runtime, socket_name: str) -> None:
    # Our INIT cannot be sent any more; the reason is still to be read.
    record = Recorder()
    with ScriptedMaster(socket_name) as master:
        runtime.create_interface(socket=socket_name, on_disconnect=record.on_disconnect)
        master.accept()
        master.answer("accept")
        master.send(b"\x08\x00\x00\x00\x00\x00closing down".ljust(128, b"\0"))
        master.hang_up()
        wait_until(lambda: record.reasons, runtime)
    assert str(record.reasons[0]) == "peer disconnected: closing down"


def test_a_reason_is_cut_to_the_message_and_comes_whole_at_home(make_pair: MakePair) -> None:
    near, far = Recorder(), Recorder()
    pair = make_pair(master_on_disconnect=near.on_disconnect, slave_on_disconnect=far.on_disconnect)
    pair.master.disconnect("é" * 100)
    assert str(near.reasons[0]) == "é" * 100
    pair.wait(lambda: far.reasons)
    assert str(far.reasons[0]) == "peer disconnected: " + "é" * 47


# --- asking for a connection ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_asking_while_connected_is_alrconn(make_pair: MakePair, role: RoleName) -> None:
    interface = make_pair().side(role)
    with pytest.raises(MemifError, match="is connected already") as caught:
        interface.request_connection()
    assert caught.value.code is ErrorCode.ALRCONN


def test_asking_while_connecting_is_alrconn(runtime: Runtime, socket_name: str) -> None:
    with ScriptedMaster(socket_name, runtime) as peer:
        slave = runtime.create_interface(socket=socket_name)
        peer.run(until="init")
        assert slave.state is State.CONNECTING
        with pytest.raises(MemifError, match="is connecting already") as caught:
            slave.request_connection()
        assert caught.value.code is ErrorCode.ALRCONN


def test_a_master_has_nothing_to_ask_for(runtime: Runtime, socket_name: str) -> None:
    master = runtime.create_interface(socket=socket_name, role="master")
    master.request_connection()
    assert master.state is State.DISCONNECTED


@pytest.mark.parametrize(
    ("what", "code", "name"),
    [
        ("nothing", ErrorCode.NO_FILE, "ENOENT"),
        ("no directory", ErrorCode.NO_FILE, "ENOENT"),
        ("stale", ErrorCode.CONNREFUSED, "ECONNREFUSED"),
        ("plain file", ErrorCode.FILE_NOT_SOCK, "ECONNREFUSED"),
        ("stream", ErrorCode.FILE_NOT_SOCK, "EPROTOTYPE"),
        ("full", ErrorCode.AGAIN, "EAGAIN"),
    ],
)
def test_why_nobody_answers_is_named(runtime: Runtime, socket_path: str, what: str, code: ErrorCode, name: str) -> None:
    kind = socket.SOCK_STREAM if what == "stream" else socket.SOCK_SEQPACKET
    path = socket_path + "/below" if what == "no directory" else socket_path
    if what == "no directory":
        path = os.path.join(os.path.dirname(socket_path), "missing", "memif.sock")
    with socket.socket(socket.AF_UNIX, kind) as there, socket.socket(socket.AF_UNIX, kind) as waiting:
        if what == "plain file":
            Path(path).touch()
        elif what in ("stale", "stream", "full"):
            there.bind(path)
        if what in ("stream", "full"):
            there.listen(0)
        if what == "full":
            waiting.connect(path)
        slave = runtime.create_interface(socket=path)
        assert slave.state is State.DISCONNECTED
        for _ in range(2):
            with pytest.raises(MemifOSError, match=name) as caught:
                slave.request_connection()
            assert (caught.value.code, caught.value.filename) == (code, path)
            assert path in str(caught.value)
            assert slave.last_error is caught.value
    Path(path).unlink(missing_ok=True)


def test_a_socket_that_we_may_not_use_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0)

    def check() -> None:
        with Runtime("nobody") as runtime:
            slave = runtime.create_interface(socket=tmp_path / "memif.sock")
            with pytest.raises(MemifOSError, match="EACCES") as caught:
                slave.request_connection()
            assert caught.value.code is ErrorCode.ACCES
            with pytest.raises(MemifOSError, match="EACCES") as caught:
                runtime.create_interface(socket=tmp_path / "memif.sock", role="master")
            assert caught.value.code is ErrorCode.ACCES
            assert runtime.interfaces == (slave,)

    try:
        in_child(check, uid=NOBODY)
    finally:
        tmp_path.chmod(0o700)


# --- details --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_details_tell_everything_on_both_sides(make_pair: MakePair, socket_name: str, role: RoleName) -> None:
    pair = make_pair(
        id=7,
        secret="shared",
        mode="ip",
        num_s2m_rings=2,
        num_m2s_rings=3,
        log2_ring_size=6,
        buffer_size=512,
        master_name="master-if",
        slave_name="slave-if",
    )
    details = pair.side(role).details()
    far = "slave" if role == "master" else "master"
    apps = {"master": "test", "slave": "peer"}
    assert (details.name, details.remote_name) == (f"{role}-if", f"{far}-if")
    assert (details.app_name, details.remote_app_name) == (apps[role], apps[far])
    assert (details.id, details.mode, details.role) == (7, Mode.IP, Role[role.upper()])
    assert (details.secret, details.socket_path) == (b"shared", socket_name)
    assert (details.state, details.link_up, details.error) == (State.CONNECTED, True, "")
    assert details.peer is not None
    assert (details.peer.pid, details.peer.uid, details.peer.gid) == (os.getpid(), os.geteuid(), os.getegid())
    (region,) = details.regions
    assert (region.index, region.is_external) == (0, False)
    assert os.fstat(region.fd).st_size >= region.size >= 5 * 64 * 512
    assert region.address > 0
    rings = {"s2m": 2, "m2s": 3}
    receives, sends = ("s2m", "m2s") if role == "master" else ("m2s", "s2m")
    assert [queue.qid for queue in details.rx_queues] == list(range(rings[receives]))
    assert [queue.qid for queue in details.tx_queues] == list(range(rings[sends]))
    for queue in details.rx_queues + details.tx_queues:
        assert (queue.region, queue.ring_size, queue.tail) == (0, 64, 0)
        assert queue.buffer_size == (512 if role == "slave" else 0)
    s2m, m2s = (details.rx_queues, details.tx_queues) if role == "master" else (details.tx_queues, details.rx_queues)
    assert all(queue.head == 0 for queue in s2m)
    assert all(queue.head == 64 for queue in m2s)  # posted
    assert "shared" not in repr(details)
    assert "shared" not in repr(pair.side(role).config)


def test_details_follow_the_rings(make_pair: MakePair) -> None:
    pair = make_pair(log2_ring_size=4, buffer_size=256)
    pair.slave.tx_queues[0].send([b"one", b"three"])
    assert (pair.master.details().rx_queues[0].head, pair.master.details().rx_queues[0].tail) == (2, 0)
    pair.master.rx_queues[0].recv()
    received = pair.master.details().rx_queues[0]
    assert (received.head, received.tail) == (2, 2)
    assert (received.counters.packets, received.counters.bytes) == (2, 8)
    sent = pair.slave.details().tx_queues[0]
    assert (sent.counters.packets, sent.counters.bytes, sent.counters.interrupts) == (2, 8, 1)


@pytest.mark.parametrize("role", ROLES)
def test_details_of_an_interface_without_a_peer(runtime: Runtime, socket_name: str, role: RoleName) -> None:
    details = runtime.create_interface(socket=socket_name, role=role, name="alone").details()
    assert (details.state, details.link_up, details.peer) == (State.DISCONNECTED, False, None)
    assert (details.remote_name, details.remote_app_name) == ("", "")
    assert not any((details.regions, details.rx_queues, details.tx_queues))
    assert bool(details.error) == (role == "slave")


@pytest.mark.parametrize("role", ROLES)
def test_counters_outlive_a_connection(make_pair: MakePair, role: RoleName) -> None:
    pair = make_pair()
    assert_packets_pass(pair)
    interface = pair.side(role)
    before = [interface.rx_queues[0].counters, interface.tx_queues[0].counters]
    old = interface.rx_queues[0]
    pair.master.disconnect()
    pair.wait(lambda: not pair.slave.connected)
    assert old.counters == before[0]
    pair.wait(lambda: pair.master.connected and pair.slave.connected)
    assert interface.rx_queues[0] is not old
    assert [interface.rx_queues[0].counters, interface.tx_queues[0].counters] == before
    assert_packets_pass(pair)
    assert interface.rx_queues[0].counters == before[0] + before[0]
    assert old.counters == before[0]


# --- queues ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 4, 255])
def test_every_queue_carries_packets_of_its_own(make_pair: MakePair, count: int) -> None:
    pair = make_pair(num_s2m_rings=count, num_m2s_rings=count, log2_ring_size=2, buffer_size=64)
    for sender, receiver in ((pair.master, pair.slave), (pair.slave, pair.master)):
        assert len(sender.tx_queues) == len(receiver.rx_queues) == count
        for queue in sender.tx_queues:
            assert queue.send([f"queue {queue.qid}".encode()]) == 1
        assert [queue.recv() for queue in receiver.rx_queues] == [[f"queue {qid}".encode()] for qid in range(count)]


def test_a_master_takes_the_rings_that_its_slave_offers(make_pair: MakePair) -> None:
    pair = make_pair(slave_num_s2m_rings=3, slave_num_m2s_rings=2, slave_log2_ring_size=3, slave_buffer_size=128)
    assert (len(pair.master.rx_queues), len(pair.master.tx_queues)) == (3, 2)
    assert {queue.ring_size for queue in pair.master.rx_queues} == {queue.ring_size for queue in pair.master.tx_queues}
    assert pair.master.rx_queues[0].ring_size == 8
    assert_packets_pass(pair, qid=1)


@pytest.mark.parametrize("role", ROLES)
def test_the_interrupt_names_the_queue(make_pair: MakePair, role: RoleName) -> None:
    record = Recorder()
    pair = make_pair(num_s2m_rings=3, num_m2s_rings=3, **{f"{role}_on_interrupt": record.on_interrupt})
    receiver, sender = pair.side(role), pair.side("slave" if role == "master" else "master")
    assert record.events == []
    for qid in (2, 0):
        sender.tx_queues[qid].send([b"packet"])
        pair.wait(lambda: record.events)  # level-triggered: again and again until the packet is taken
        assert set(record.events) == {("interrupt", role, qid)}
        receiver.rx_queues[qid].recv()
        record.events.clear()
    pair.runtimes[ROLES.index(role)].poll_event(0)
    assert record.events == []


@pytest.mark.parametrize("role", ROLES)
def test_an_application_without_on_interrupt_watches_the_queue_itself(make_pair: MakePair, role: RoleName) -> None:
    pair = make_pair()
    queue = pair.side(role).rx_queues[0]
    peer = pair.side("slave" if role == "master" else "master")
    sender = peer.tx_queues[0]
    assert queue.fileno() not in runtime_of(pair.side(role))._registry
    assert not readable(queue)
    sender.send([b"one", b"two"])
    assert readable(queue)
    assert runtime_of(pair.side(role)).poll_event(0) == 0
    assert runtime_of(peer).poll_event(0) <= 1  # its timer, on a busy machine: are the packets still there?
    assert queue.recv(1) == [b"one"]
    assert readable(queue)  # one stayed behind
    assert queue.recv(1) == [b"two"]
    assert not readable(queue)


@pytest.mark.parametrize("role", ROLES)
def test_the_eventfd_of_a_queue_is_open_until_on_disconnect_returned(make_pair: MakePair, role: RoleName) -> None:
    seen = []

    def on_disconnect(interface: Interface, reason: Disconnected) -> None:
        for queue in interface.rx_queues:
            assert readable(queue)  # who waits on it in a thread wakes up
            os.fstat(queue.fileno())
            seen.append(queue)

    interface = make_pair(**{f"{role}_on_disconnect": on_disconnect}).side(role)
    interface.disconnect("done")
    (queue,) = seen
    with pytest.raises(Disconnected, match="done"):
        queue.fileno()


# --- receive modes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("mode", ["interrupt", "polling"])
def test_the_mode_stands_on_the_ring_from_the_start(make_pair: MakePair, role: RoleName, mode: str) -> None:
    pair = make_pair(**{f"{role}_rx_mode": mode})
    receiver, sender = pair.side(role), pair.side("slave" if role == "master" else "master")
    queue = receiver.rx_queues[0]
    assert queue.rx_mode is RxMode[mode.upper()]
    assert receiver.details().rx_queues[0].flags == (MASK_INT if mode == "polling" else 0)
    sender.tx_queues[0].send([b"packet"])
    assert readable(queue) == (mode == "interrupt")
    assert sender.tx_queues[0].counters.interrupts == (mode == "interrupt")
    assert queue.recv() == [b"packet"]


@pytest.mark.parametrize("role", ROLES)
def test_a_flag_that_the_peer_has_preset_is_overwritten(runtime: Runtime, socket_name: str, role: RoleName) -> None:
    # gomemif's slave presets MASK_INT on the ring that its peer receives from.
    interface, peer = meet_with_flags(runtime, socket_name, role)
    with peer:
        assert peer.tx.flags == 0
        assert interface.rx_queues[0].rx_mode is RxMode.INTERRUPT


def meet_with_flags(runtime: Runtime, path: str, role: RoleName) -> tuple[Interface, ScriptedMaster | ScriptedSlave]:
    if role == "master":
        interface = runtime.create_interface(socket=path, role=role)
        peer = scripted_peer(role, path, runtime)
        peer.run(until="connect")
    else:
        peer = scripted_peer(role, path, runtime)
        interface = runtime.create_interface(socket=path, role=role)
        peer.run(until="connect")
    peer.tx.flags = MASK_INT
    if isinstance(peer, ScriptedSlave):
        peer.say("connect")
    peer.answer("connect")
    wait_until(lambda: interface.connected, runtime)
    return interface, peer


@pytest.mark.parametrize("role", ROLES)
def test_the_mode_changes_while_packets_flow(make_pair: MakePair, role: RoleName) -> None:
    record = Recorder()
    pair = make_pair(**{f"{role}_on_interrupt": record.on_interrupt})
    receiver, sender = pair.side(role), pair.side("slave" if role == "master" else "master")
    queue, registry = receiver.rx_queues[0], runtime_of(receiver)._registry
    assert queue.fileno() in registry

    queue.set_rx_mode("polling")
    assert receiver.details().rx_queues[0].flags == MASK_INT
    assert queue.fileno() not in registry
    sender.tx_queues[0].send([b"polled"])
    runtime_of(receiver).poll_event(0)
    assert record.events == []
    assert queue.recv() == [b"polled"]

    queue.set_rx_mode(RxMode.INTERRUPT)
    assert receiver.details().rx_queues[0].flags == 0
    assert queue.fileno() in registry
    queue.recv()  # ends the look that unmasking asks for
    sender.tx_queues[0].send([b"interrupts"])
    pair.wait(lambda: record.events)
    assert queue.recv() == [b"interrupts"]


@pytest.mark.parametrize("role", ROLES)
def test_the_mode_of_a_lost_connection_cannot_be_changed(make_pair: MakePair, role: RoleName) -> None:
    pair = make_pair()
    queue = pair.side(role).rx_queues[0]
    pair.side(role).disconnect("gone")
    with pytest.raises(Disconnected, match="gone"):
        queue.set_rx_mode("polling")


def test_a_slave_that_refills_itself_receives_nothing_before(make_pair: MakePair) -> None:
    pair = make_pair(slave_auto_refill=False, log2_ring_size=3)
    assert pair.master.tx_queues[0].send([b"too early"]) == 0
    assert pair.slave.rx_queues[0].refill() == 8
    assert_packets_pass(pair)


def test_a_slaves_packets_come_with_headroom(make_pair: MakePair) -> None:
    pair = make_pair(slave_rx_headroom=64, buffer_size=256)
    assert pair.master.tx_queues[0].alloc(1)[0].nbytes == 192
    pair.master.disconnect()
    pair.wait(lambda: pair.master.connected and pair.slave.connected and pair.slave.rx_queues[0].connected)
    assert pair.master.tx_queues[0].alloc(1)[0].nbytes == 192


def test_names_of_a_peer_are_shown_whatever_bytes_they_are(runtime: Runtime, socket_name: str) -> None:
    master = runtime.create_interface(socket=socket_name, role="master")
    with ScriptedSlave(socket_name, runtime) as peer:
        peer.run(until="connect")
        peer.send(b"\x06\x00" + b"\xff" * 126)
        peer.answer("connect")
        wait_until(lambda: master.connected, runtime)
        assert master.details().remote_name == r"\xff" * 32
        assert master.details().remote_app_name == "scripted slave"


def test_a_queue_before_the_first_connection_says_what_to_wait_for(runtime: Runtime, socket_name: str) -> None:
    interface = runtime.create_interface(socket=socket_name, role="slave")
    everything: list[tuple[object, ...]] = [interface.rx_queues, interface.tx_queues]
    for queues in everything:
        assert list(queues) == []
        with pytest.raises(IndexError, match="not connected yet; wait for on_connect"):
            queues[0]


@pytest.mark.parametrize(
    ("packets", "what"),
    [
        (b"x", r"not one packet \(bytes\)"),
        (b"", r"not one packet \(bytes\)"),
        ("x", "this is 'x'"),
        (None, "this is None"),
        ([b"x", None], "packet 1 is None, a NoneType"),
        (["x"], "packet 0 is 'x', a str"),
    ],
)
def test_what_is_no_list_of_packets_is_named(
    runtime: Runtime, peer_runtime: Runtime, socket_name: str, packets: Any, what: str
) -> None:
    master = runtime.create_interface(socket=socket_name, role="master")
    slave = peer_runtime.create_interface(socket=socket_name, role="slave")
    wait_until(lambda: master.announced and slave.announced, runtime, peer_runtime)
    for interface in (master, slave):
        with pytest.raises(ConfigError, match=what) as caught:
            interface.tx_queues[0].send(packets)
        assert isinstance(caught.value, TypeError)
        assert interface.tx_queues[0].counters.packets == 0


def test_the_first_failure_to_connect_is_a_warning_and_its_repetition_is_silent(
    runtime: Runtime, socket_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="memifrt"):
        interface = runtime.create_interface(socket=socket_name, role="slave")
        for _ in range(3):
            with pytest.raises(MemifError):
                interface.request_connection()
        master = runtime.create_interface(socket=socket_name, role="master", id=0)
        wait_until(lambda: interface.connected and master.connected, runtime)
    levels = [(record.levelname, "connect" in record.message) for record in caplog.records]
    assert [level for level, _ in levels if level == "WARNING"] == ["WARNING"]
    assert levels[0] == ("WARNING", True)
    assert any("connected to" in record.message for record in caplog.records[1:])


def told(interface: Interface) -> list[tuple[State, str, int]]:
    """The last changes of an interface, without their times."""
    return [(change.state, change.reason, change.count) for change in interface.changes]


@pytest.mark.parametrize("role", ROLES)
def test_the_last_changes_of_state_are_kept_with_their_reasons(make_pair: MakePair, role: RoleName) -> None:
    pair = make_pair(slave_name="s", master_name="m")
    interface = pair.side(role)
    peer = "m" if role == "slave" else "s"
    connecting = (State.CONNECTING, "", 1)
    assert told(interface)[0][0] is State.CONNECTING
    assert (interface.changes[-1].state, interface.changes[-1].count) == (State.CONNECTED, 1)
    assert interface.changes[-1].reason.startswith(f"{peer!r} of ")
    interface.disconnect("for a test")
    assert told(interface)[:1] == [connecting]
    assert told(interface)[-1] == (State.DISCONNECTED, "for a test", 1)
    times = [change.time for change in interface.changes]
    assert times == sorted(times)


def test_attempts_that_fail_alike_are_counted_and_push_nothing_out(runtime: Runtime, tmp_path: Path) -> None:
    slave = runtime.create_interface(socket=tmp_path / "nobody", role="slave")
    for _ in range(3):
        with pytest.raises(MemifOSError):
            slave.request_connection()
    ((state, reason, count),) = told(slave)
    assert (state, count) == (State.DISCONNECTED, 4)
    assert str(tmp_path / "nobody") in reason


def test_a_peer_that_comes_and_goes_takes_its_entries(runtime: Runtime, socket_path: str) -> None:
    master = runtime.create_interface(socket=socket_path, role="master")
    for attempt in range(1, 4):
        with ScriptedSlave(socket_path, runtime).run() as peer:
            peer.wait(lambda: master.connected)
        wait_until(lambda: not master.connected, runtime)
        assert master.disconnects == attempt
    states = [change.state for change in master.changes]
    assert states == 3 * [State.CONNECTING, State.CONNECTED, State.DISCONNECTED]


def test_attempts_that_fail_after_connecting_take_two_entries() -> None:
    log = ChangeLog()
    for _ in range(50):
        log.record(State.CONNECTING)
        log.record(State.DISCONNECTED, "wrong secret")
    assert [(change.state, change.count) for change in log] == [(State.CONNECTING, 50), (State.DISCONNECTED, 50)]


def test_the_log_of_changes_is_bounded() -> None:
    log = ChangeLog()
    for number in range(1000):
        log.record(State.DISCONNECTED, f"{number} " + "x" * 1000)
    assert [change.reason.split()[0] for change in log] == [str(number) for number in range(984, 1000)]
    assert all(len(change.reason) == 200 for change in log)
