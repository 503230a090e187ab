"""Who may connect to a listener: its file's mode and owner, the peers that it lets in, how many may be silent, and what
becomes of it when the system has no more fds or its file is gone.
"""

from __future__ import annotations

import ast
import dataclasses
import errno
import logging
import os
import resource
import select
import shutil
import signal
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import memifrt
from memifrt import ConfigError, Credentials, ErrorCode, Interface, MemifOSError, Runtime, Socket, State
from memifrt.control import address
from memifrt.control.address import Address, Listener
from memifrt.control.permissions import FilePermissions
from memifrt.control.socket_file import SocketFile
from memifrt.control.wire import Disconnect, Hello
from memifrt.poll.epoll import EpollPoller
from memifrt.system.original_functions import close, poll
from tests.lib.forked import NOBODY, in_child
from tests.lib.patched import PATCHED, open_fds
from tests.lib.peer import Peer, ScriptedSlave, assert_packets_pass, native
from tests.lib.support import DEADLINE, Pair, Recorder, runtime_of, wait_until
from tests.lib.threads import Thread

US = Credentials(os.getpid(), os.geteuid(), os.getegid())
REFUSED = f"refused: uid {US.uid}, gid {US.gid} may not connect here"

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=["umask 000", "umask 022", "umask 077"])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.fixture
def common() -> Iterator[Path]:
    """A directory that every user may use: pytest's own are for one alone."""
    with tempfile.TemporaryDirectory(prefix="memifrt-test-") as path:
        os.chmod(path, 0o777)
        yield Path(path)


def listen(runtime: Runtime, path: str, **options: Any) -> Interface:
    """A master on a socket with these options."""
    return runtime.create_interface(socket=runtime.create_socket(path, **options), role="master")


def good_slave_connects(master: Interface, runtime: Runtime, peer_runtime: Runtime) -> None:
    slave = peer_runtime.create_interface(socket=master.socket.path)
    wait_until(lambda: master.connected and slave.connected, runtime, peer_runtime)
    assert_packets_pass(Pair(master, slave, (runtime, peer_runtime)))


# --- the file -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o000])
def test_the_file_has_exactly_the_mode_that_was_asked_for(runtime: Runtime, socket_path: str, mode: int) -> None:
    listen(runtime, socket_path, mode=mode)
    assert stat.S_IMODE(os.stat(socket_path).st_mode) == mode


@pytest.mark.usefixtures("umask")
def test_without_a_mode_the_umask_decides(runtime: Runtime, socket_path: str) -> None:
    listen(runtime, socket_path)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(os.stat(socket_path).st_mode) == 0o777 & ~umask


@as_root
@pytest.mark.parametrize("by", ["number", "name"])
def test_the_file_has_the_owner_that_was_asked_for(runtime: Runtime, socket_path: str, by: str) -> None:
    import grp
    import pwd

    names = pwd.getpwuid(NOBODY).pw_name, grp.getgrgid(NOBODY).gr_name
    owner, group = (NOBODY, NOBODY) if by == "number" else names
    listen(runtime, socket_path, mode=0o640, owner=owner, group=group)
    status = os.stat(socket_path)
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (NOBODY, NOBODY, 0o640)


@as_root
def test_one_of_owner_and_group_leaves_the_other(runtime: Runtime, socket_path: str) -> None:
    listen(runtime, socket_path, group=NOBODY)
    status = os.stat(socket_path)
    assert (status.st_uid, status.st_gid) == (os.geteuid(), NOBODY)


def test_nobody_connects_before_the_file_has_its_mode(socket_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then it has less than was asked for, and nobody listens."""
    seen = []
    set_permissions = SocketFile.set_permissions

    def watch(file: SocketFile, wanted: FilePermissions) -> None:
        seen.append(stat.S_IMODE(os.stat(socket_path).st_mode))
        with pytest.raises(MemifOSError, match="ECONNREFUSED"):
            address.connect(Address.parse(socket_path))
        set_permissions(file, wanted)

    monkeypatch.setattr(SocketFile, "set_permissions", watch)
    before = os.umask(0o027)
    try:
        listener = Listener.bind(Address.parse(socket_path), permissions=FilePermissions(0o606))
    finally:
        os.umask(before)
    assert seen == [0o600]
    assert stat.S_IMODE(os.stat(socket_path).st_mode) == 0o606
    listener.close()


def test_an_owner_that_we_may_not_give_is_an_error_and_leaves_no_file(common: Path) -> None:
    path = str(common / "memif.sock")

    def check() -> None:
        with Runtime("nobody") as runtime:
            with pytest.raises(
                MemifOSError, match=f"cannot give the socket file {path} to uid 0, gid .*EPERM"
            ) as caught:
                listen(runtime, path, owner=0)
            assert (caught.value.errno, caught.value.filename) == (errno.EPERM, path)
            assert not os.path.exists(path)
            assert runtime.interfaces == ()

    in_child(check, uid=NOBODY)


@pytest.mark.parametrize("trick", ["symbolic link", "hard link", "plain file"])
def test_a_file_that_takes_the_place_of_ours_keeps_its_mode(
    tmp_path: Path, socket_path: str, monkeypatch: pytest.MonkeyPatch, trick: str
) -> None:
    """Whoever may write in the directory moves another file there between bind and open."""
    victim = tmp_path / "victim"
    if trick == "hard link":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(victim))
    else:
        victim.touch()
    victim.chmod(0o600)
    bind = address._bind_file

    def bind_and_lose(sock: socket.socket, *rest: Any) -> SocketFile:
        file = bind(sock, *rest)
        file.close()
        os.unlink(socket_path)
        match trick:
            case "symbolic link":
                os.symlink(victim, socket_path)
            case "hard link":
                os.link(victim, socket_path)
            case _:
                os.link(victim, socket_path)
        return SocketFile(socket_path)

    monkeypatch.setattr(address, "_bind_file", bind_and_lose)
    with pytest.raises(MemifOSError, match=r"another process replaced the socket file .*EPERM"):
        Listener.bind(Address.parse(socket_path), permissions=FilePermissions(0o666))
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600
    for file in tmp_path.iterdir():
        file.unlink()


@as_root
@pytest.mark.parametrize(("mode", "may"), [(0o600, False), (0o666, True)])
def test_the_mode_decides_who_may_connect(runtime: Runtime, common: Path, mode: int, may: bool) -> None:
    path = str(common / "memif.sock")
    listen(runtime, path, mode=mode)

    def check() -> None:
        if may:
            address.connect(Address.parse(path)).close()
            return
        with pytest.raises(MemifOSError, match="EACCES"):
            address.connect(Address.parse(path))

    in_child(check, uid=NOBODY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": 0o1777}, "mode is 0o1777; it must be a file's permissions, 0 to 0o777"),
        ({"mode": -1}, "mode is -0o1;"),
        ({"mode": "660"}, "mode is '660';"),
        ({"mode": True}, "mode is"),
        ({"owner": "nobody-of-that-name"}, "owner is 'nobody-of-that-name'; there is no such user"),
        ({"owner": -1}, "owner is -1; it must be a whole number from 0"),
        ({"group": "no-such-group"}, "group is 'no-such-group'; there is no such group"),
        ({"group": 1.5}, "group is 1.5;"),
        ({"allow_uids": 0}, "allow_uids is 0; it must be a collection of numbers"),
        ({"allow_uids": ["root"]}, "allow_uids is 'root'; it must be a whole number"),
        ({"allow_gids": "0"}, "allow_gids is '0'; it must be a collection"),
        ({"accept_peer": True}, "accept_peer is True; it must be a function"),
    ],
)
def test_an_option_that_cannot_be_is_refused_with_its_value(
    runtime: Runtime, socket_path: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        runtime.create_socket(socket_path, **options)
    assert message in str(caught.value)
    assert runtime.sockets == ()


@pytest.mark.parametrize("options", [{"mode": 0o600}, {"owner": 0}, {"group": 0}])
def test_a_name_without_a_file_has_no_mode_and_no_owner(
    runtime: Runtime, socket_name: str, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="has no file: mode, owner and group do not apply"):
        runtime.create_socket(socket_name, **options)


def test_a_listener_that_is_brought_has_a_file_already(runtime: Runtime, socket_path: str) -> None:
    home = runtime.create_socket(socket_path, mode=0o600)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as brought:
        brought.bind(socket_path)
        brought.listen()
        with pytest.raises(ConfigError, match="they do not apply to an existing listener"):
            home.set_listener_fd(brought.fileno())
    os.unlink(socket_path)


# --- the peers ------------------------------------------------------------------------------------------------------


def farewell(peer: Peer) -> str:
    """The reason in the DISCONNECT that comes, after whatever comes before it."""
    while not isinstance(message := peer.receive(), Disconnect):
        pass
    return message.reason


@pytest.mark.parametrize(
    ("options", "may"),
    [
        ({}, True),
        ({"allow_uids": {US.uid}}, True),
        ({"allow_uids": [US.uid + 1]}, False),
        ({"allow_uids": ()}, False),
        ({"allow_gids": {US.gid}}, True),
        ({"allow_gids": {US.gid + 1}}, False),
        ({"allow_uids": {US.uid + 1}, "allow_gids": {US.gid}}, True),
        ({"accept_peer": lambda peer: peer == US}, True),
        ({"accept_peer": lambda peer: False}, False),
        ({"accept_peer": lambda peer: None}, False),
        ({"allow_uids": {US.uid}, "accept_peer": lambda peer: False}, False),
    ],
)
def test_who_is_listed_and_accepted_may_connect(
    runtime: Runtime, peer_runtime: Runtime, socket_name: str, options: dict[str, Any], may: bool
) -> None:
    record = Recorder()
    master = listen(runtime, socket_name, **options)
    slave = peer_runtime.create_interface(socket=socket_name, on_disconnect=record.on_disconnect)
    if may:
        wait_until(lambda: master.connected and slave.connected, runtime, peer_runtime)
        assert master.details().peer == US
    else:
        wait_until(lambda: record.reasons, runtime, peer_runtime)
        assert str(record.reasons[0]) == f"peer disconnected: {REFUSED}"
        assert master.state is State.DISCONNECTED
        assert master.last_error is None  # it was never this interface's peer


def test_a_peer_that_is_not_listed_is_not_asked_about(runtime: Runtime, socket_name: str) -> None:
    asked: list[Credentials] = []

    def accept_peer(peer: Credentials) -> bool:
        asked.append(peer)
        return True

    listen(runtime, socket_name, allow_uids=(), accept_peer=accept_peer)
    with ScriptedSlave(socket_name, runtime) as peer:
        assert peer.reason() == REFUSED
    assert asked == []


@as_root
def test_the_credentials_are_those_of_the_peer(runtime: Runtime, socket_name: str) -> None:
    master = listen(runtime, socket_name, allow_uids={NOBODY})
    with ScriptedSlave(socket_name, runtime) as stranger:
        assert stranger.reason() == REFUSED
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            close(writer)
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            ScriptedSlave(socket_name).run()
            os.read(reader, 1)
        finally:
            os._exit(0)
    os.close(reader)
    try:
        wait_until(lambda: master.connected, runtime)
        assert master.details().peer == Credentials(pid, NOBODY, NOBODY)
    finally:
        os.close(writer)
        os.waitpid(pid, 0)


def test_a_peer_in_another_process_namespace_has_no_pid_in_messages() -> None:
    assert Credentials(42, 0, 0).process == "peer pid 42"
    assert Credentials(0, 0, 0).process == "peer in another process namespace"


def test_what_accept_peer_raises_refuses_and_comes_out_once(
    runtime: Runtime, peer_runtime: Runtime, socket_name: str
) -> None:
    errors = [ZeroDivisionError("no idea")]

    def accept_peer(peer: Credentials) -> bool:
        if errors:
            raise errors.pop()
        return True

    master = listen(runtime, socket_name, accept_peer=accept_peer)
    with ScriptedSlave(socket_name) as peer:
        with pytest.raises(ZeroDivisionError, match="no idea"):
            runtime.poll_event(DEADLINE)
        assert peer.reason() == REFUSED
    good_slave_connects(master, runtime, peer_runtime)


def delete_socket(master: Interface) -> None:
    master.delete()
    master.socket.delete()


@pytest.mark.parametrize("admit", [True, False])
@pytest.mark.parametrize("act", [Interface.delete, delete_socket, lambda master: runtime_of(master).close()])
def test_accept_peer_may_end_it_all(socket_name: str, act: Callable[[Interface], object], admit: bool) -> None:
    with Runtime("test") as runtime:

        def accept_peer(peer: Credentials) -> bool:
            act(master)
            return admit

        master = listen(runtime, socket_name, accept_peer=accept_peer)
        with ScriptedSlave(socket_name) as first, ScriptedSlave(socket_name) as second:
            runtime.poll_event(DEADLINE)
            if runtime.sockets and admit:  # the listener is still there, and nobody on it
                first.expect(Hello)
                first.init()
                first.runtimes = (runtime,)
                assert "no interface with id 0" in first.reason()
            elif not runtime.sockets:
                assert first.reason() == REFUSED
                assert second.reason() == "the listener was closed"  # it was never accepted


# --- the secret -----------------------------------------------------------------------------------------------------


SECRET = "xyzzy-plugh"


def test_a_secret_is_nowhere_to_be_seen(
    runtime: Runtime, peer_runtime: Runtime, socket_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    record = Recorder()
    with caplog.at_level(logging.DEBUG, "memifrt"):
        master = runtime.create_interface(
            socket=socket_name, role="master", secret=SECRET, on_disconnect=record.on_disconnect
        )
        right = peer_runtime.create_interface(socket=socket_name, secret=SECRET)
        wait_until(lambda: master.connected and right.connected, runtime, peer_runtime)
        connection = master.connection
        seen = [repr(each) for each in (runtime, master, right, master.details(), right.details(), master.config)]
        seen += [repr(connection), str(connection), repr(vars(master)), repr(master.socket)]
        right.delete()
        wait_until(lambda: not master.connected, runtime)
        for guess in ("wrong-" + SECRET, ""):
            wrong = peer_runtime.create_interface(socket=socket_name, secret=guess, on_disconnect=record.on_disconnect)
            told = len(record.reasons)
            wait_until(lambda: len(record.reasons) > told, runtime, peer_runtime)  # noqa: B023
            seen += [repr(wrong.details()), str(wrong.last_error), repr(wrong.last_error)]
            wrong.delete()
        with pytest.raises(ConfigError) as caught:
            runtime.create_interface(socket=socket_name, id=1, secret=SECRET * 3)
        seen.append(str(caught.value))
    seen += [repr(reason) for reason in record.reasons]
    seen += [repr(reason.__cause__) for reason in record.reasons]
    seen += [record.getMessage() for record in caplog.records]
    assert [text for text in seen if SECRET in text] == []
    assert any("wrong secret" in text for text in seen)
    assert dataclasses.asdict(master.details())["secret"] == SECRET.encode()  # to who asks for it by name


def test_no_class_shows_a_secret_that_it_holds() -> None:
    shown = []
    for path in Path(memifrt.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_type_alone = isinstance(node, ast.ClassDef) and "TypedDict" in map(ast.unparse, node.bases)
            fields = node.body if isinstance(node, ast.ClassDef) and not is_type_alone else []
            shown += [
                f"{path.name}:{each.lineno}"
                for each in fields
                if isinstance(each, ast.AnnAssign)
                and ast.unparse(each.target) == "secret"
                and not (each.value is not None and "repr=False" in ast.unparse(each.value))
            ]
    assert shown == []


# --- silence and floods ---------------------------------------------------------------------------------------------


def silent(path: str) -> socket.socket:
    """Somebody who connects and says nothing."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(native(path))
    return sock


def is_closed(sock: socket.socket) -> bool:
    """Whether the other end has closed, whatever it said before. gevent's ``select.poll`` would not tell."""
    waiting = poll()
    waiting.register(sock, select.POLLRDHUP)
    return bool(waiting.poll(0))


def test_a_silent_connector_costs_nothing_after_its_deadline(socket_name: str) -> None:
    with Runtime("impatient", handshake_timeout=0.05) as runtime:
        listen(runtime, socket_name)
        watched, before = len(runtime._registry), open_fds()
        connectors = [silent(socket_name) for _ in range(20)]
        wait_until(lambda: all(map(is_closed, connectors)), runtime)
        for connector in connectors:
            connector.close()
        assert len(runtime._registry) == watched
        assert open_fds() == before
        assert not runtime._timer.armed


def test_with_too_many_the_oldest_goes_and_is_told(socket_name: str) -> None:
    with Runtime("crowded", max_half_open=3) as runtime:
        listen(runtime, socket_name)
        peers = []
        for _ in range(5):
            peers.append(ScriptedSlave(socket_name, runtime).run(until="init"))
        told = "more than 3 peers have not said which interface they want"
        assert [peer.reason() for peer in peers[:2]] == [told, told]
        for peer in peers[2:]:
            peer.init()
        for peer in peers[2:3]:
            peer.answer("init")
        for peer in peers:
            peer.close()


def test_who_has_said_whose_it_is_does_not_count_and_does_not_go(socket_name: str) -> None:
    with Runtime("crowded", max_half_open=1) as runtime:
        home = runtime.create_socket(socket_name)
        for number in range(3):
            runtime.create_interface(socket=home, id=number, role="master")
        peers = [ScriptedSlave(socket_name, runtime, interface_id=number).run(until="region") for number in range(3)]
        for peer in peers:
            for step in ("region", "s2m", "m2s", "connect"):
                peer.say(step)
                peer.answer(step)
        assert all(interface.connected for interface in runtime.interfaces)
        for peer in peers:
            peer.close()


def test_a_crowd_pushes_out_its_own_and_not_who_came_alone(socket_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the users that with the most, of its processes that with the most, of its connections the oldest."""
    who = iter([(1, 10), (2, 20), (2, 20), (2, 21), (3, 30)])

    def channel(sock: socket.socket) -> Any:
        made = make(sock)
        uid, pid = next(who)
        made.credentials = Credentials(pid, uid, uid)
        return made

    from memifrt import sockets

    make = sockets.Channel  # type: ignore[attr-defined]
    monkeypatch.setattr(sockets, "Channel", channel)
    with Runtime("crowded", max_half_open=4) as runtime:
        listen(runtime, socket_name)
        connectors = []
        for _ in range(5):
            connectors.append(silent(socket_name))
            runtime.poll_event(DEADLINE)
        assert [is_closed(connector) for connector in connectors] == [False, True, False, False, False]
        for connector in connectors:
            connector.close()


def test_a_good_peer_connects_among_a_thousand_silent_ones(socket_path: str, peer_runtime: Runtime) -> None:
    """Whatever the others do: each that is turned away comes again at once.

    It takes as long as the crowd, in its own process, lets it: what counts is that the good peer is not turned away.
    """
    pid = os.fork()
    if pid == 0:
        try:
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            crowd(socket_path, 1000)
        finally:
            os._exit(0)
    try:
        with Runtime("besieged") as runtime:
            master = listen(runtime, socket_path)
            home = master.socket
            assert isinstance(home, Socket)
            wait_until(lambda: len(home._half_open) == 128, runtime)
            slave = peer_runtime.create_interface(socket=socket_path)
            while not (master.connected and slave.connected):
                runtime.poll_event(0)
                peer_runtime.poll_event(0)
                assert len(home._half_open) <= 128
                assert slave.disconnects == 0, slave.last_error
            assert_packets_pass(Pair(master, slave, (runtime, peer_runtime)))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def crowd(path: str, size: int) -> None:
    """``size`` connections at a time that say nothing, for as long as this process lives."""
    connectors: list[socket.socket] = []
    while True:
        try:
            connectors.append(silent(path))
        except OSError:  # nobody listens yet, or the backlog is full
            time.sleep(0.001)
        if len(connectors) > size:
            connectors = [each for each in connectors if not is_closed(each)]


def test_a_flood_does_not_flood_the_log(socket_name: str, caplog: pytest.LogCaptureFixture) -> None:
    with Runtime("flooded") as runtime:
        home = listen(runtime, socket_name).socket
        assert isinstance(home, Socket)
        with caplog.at_level(logging.WARNING, "memifrt"):
            for _ in range(50):
                with ScriptedSlave(socket_name, runtime) as peer:
                    peer.run(until="init").end("lie")
                    assert "unexpected message" in peer.reason()
            assert 1 <= len(caplog.messages) <= 10  # one in a second, on the slowest machine
            home._warn.due = 0.0
            kept = home._warn.suppressed
            with ScriptedSlave(socket_name, runtime) as peer:
                peer.run(until="init").end("lie")
                assert "unexpected message" in peer.reason()
            assert caplog.messages[-1].endswith(f"(and {kept} more like it)")


@pytest.mark.parametrize("number", [0, -1, 1.5, "128", True])
def test_a_limit_that_is_none_is_refused(number: Any) -> None:
    with pytest.raises(ConfigError, match="max_half_open is"):
        Runtime(max_half_open=number)


@pytest.mark.parametrize("seconds", [-1, float("nan"), "5", None])
def test_a_timeout_that_is_none_is_refused(seconds: Any) -> None:
    with pytest.raises(ConfigError, match="handshake_timeout is"):
        Runtime(handshake_timeout=seconds)


# --- no more fds ----------------------------------------------------------------------------------------------------


def test_a_listener_without_fds_rests_says_so_once_and_recovers(
    socket_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    def check() -> None:
        with Runtime("exhausted") as runtime, Runtime("good", reconnect_interval=0.02) as peer_runtime:
            master = listen(runtime, socket_name)
            connector = silent(socket_name)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
            with caplog.at_level(logging.DEBUG, "memifrt"):
                assert runtime.poll_event(DEADLINE) == 1
                # No busy loop: the listener is readable, and nobody is woken for it.
                assert runtime.poll_event(0) == 0
                for _ in range(3):
                    assert runtime.poll_event(DEADLINE) == 1  # the timer: it is watched again
                    assert runtime.poll_event(DEADLINE) == 1  # and found no better
            (warning,) = [line for line in caplog.messages if "cannot accept" in line]
            assert "EMFILE" in warning
            assert "trying again every 0.1 s" in warning
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            good_slave_connects(master, runtime, peer_runtime)
            connector.close()

    in_child(check)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
def test_a_listener_that_rests_may_be_deleted(
    runtime: Runtime, socket_name: str, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def accept(listener: Listener) -> None:
        raise MemifOSError(ErrorCode.SYSCALL, "cannot accept", OSError(number, os.strerror(number)))

    monkeypatch.setattr(Listener, "accept", accept)
    master = listen(runtime, socket_name)
    with silent(socket_name):
        runtime.poll_event(DEADLINE)
        delete_socket(master)
        assert not runtime._timer.armed


# --- the file goes away ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["removed", "replaced", "directory removed"])
def test_a_socket_file_that_goes_leaves_its_connections(
    runtime: Runtime, peer_runtime: Runtime, tmp_path: Path, what: str
) -> None:
    """What is connected stays, nobody new finds the listener, and what lies there now is not ours to remove."""
    directory = tmp_path / "run"
    directory.mkdir()
    path = str(directory / "memif.sock")
    home = runtime.create_socket(path)
    master = runtime.create_interface(socket=home, role="master")
    slave = peer_runtime.create_interface(socket=path)
    wait_until(lambda: master.connected and slave.connected, runtime, peer_runtime)
    if what == "directory removed":
        shutil.rmtree(directory)
    else:
        os.unlink(path)
    if what == "replaced":
        Path(path).write_text("precious")
    assert_packets_pass(Pair(master, slave, (runtime, peer_runtime)))
    slave.disconnect()
    with pytest.raises(MemifOSError) as caught:
        slave.request_connection()
    assert caught.value.code is (ErrorCode.FILE_NOT_SOCK if what == "replaced" else ErrorCode.NO_FILE)
    wait_until(lambda: not master.connected, runtime)
    master.delete()
    home.delete()
    assert os.path.exists(path) == (what == "replaced")
    if what != "directory removed":  # a new listener is what brings it back
        Path(path).unlink(missing_ok=True)
        again = runtime.create_interface(socket=path, role="master")
        wait_until(lambda: again.connected and slave.connected, runtime, peer_runtime)


def test_a_new_socket_with_the_inode_of_ours_is_not_taken_for_it(socket_path: str) -> None:
    """File systems give a number that is free again to the next file: as long as ours is open it is not free."""
    listener = Listener.bind(Address.parse(socket_path))
    ours = os.stat(socket_path).st_ino
    os.unlink(socket_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as theirs:
        theirs.bind(socket_path)
        assert os.stat(socket_path).st_ino != ours
        listener.close()
        assert os.path.exists(socket_path)
    os.unlink(socket_path)


def test_a_link_in_the_place_of_the_file_stays_and_the_listener_is_closed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "memif.sock")

    def check() -> None:
        with Runtime("nobody") as runtime:
            home = listen(runtime, path).socket
            os.rename(path, f"{path}-moved")
            os.symlink(f"{path}-moved", path)
            fd = home.listener_fd
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
        assert "another file has replaced our socket file" in caplog.text

    in_child(check)
    for file in tmp_path.iterdir():
        file.unlink()


def test_a_file_that_is_gone_and_one_that_cannot_be_looked_at_give_different_log_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "memifrt")
    folder = tmp_path / "folder"
    for name in ("gone.sock", "hidden.sock"):
        folder.mkdir()
        listener = Listener.bind(Address.parse(str(folder / name)))
        if name == "gone.sock":
            (folder / name).unlink()
        else:
            folder.rename(tmp_path / "moved")
            folder.symlink_to(folder)  # the system now answers ELOOP for everything below it
        listener.close()
        folder.rmdir() if name == "gone.sock" else folder.unlink()
    (tmp_path / "moved" / "hidden.sock").unlink()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", f"another process has already removed the socket file {folder / 'gone.sock'}"),
        ("WARNING", f"cannot remove the socket file {folder / 'hidden.sock'}: {os.strerror(errno.ELOOP)}"),
    ]


# --- another thread -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(PATCHED, reason="gevent's Barrier does not wait for threads of the operating system")
def test_a_cancel_that_races_with_close_reaches_no_other_file() -> None:
    failures: list[BaseException] = []

    def cancel(runtime: Runtime, started: threading.Barrier) -> None:
        try:
            started.wait()
            while not runtime.closed:
                runtime.cancel_poll_event()
            runtime.cancel_poll_event()
        except BaseException as error:
            failures.append(error)

    for _ in range(50):
        runtime, started = Runtime("test"), threading.Barrier(3)
        threads = [Thread(target=cancel, args=(runtime, started)) for _ in range(2)]
        for thread in threads:
            thread.start()
        started.wait()
        runtime.close()
        for thread in threads:
            thread.join()
    assert failures == []


def test_a_poller_that_is_closed_takes_cancels_in_silence() -> None:
    poller = EpollPoller()
    number = poller._cancel.fileno()
    poller.close()
    other = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        assert other <= number  # the lowest that is free: it may be the poller's old one
        poller.cancel()
        with pytest.raises(BlockingIOError):
            os.eventfd_read(other)
    finally:
        os.close(other)


def test_a_socket_keeps_what_it_was_given(runtime: Runtime, socket_path: str) -> None:
    home = runtime.create_socket(socket_path, mode=0o600, allow_uids={1})
    assert isinstance(home, Socket)
    for _ in range(2):  # each listener of its life has them
        master = runtime.create_interface(socket=home, role="master")
        assert stat.S_IMODE(os.stat(socket_path).st_mode) == 0o600
        master.delete()
