"""``memifrt doctor``: each thing that can be wrong with a control socket, in words; and that no peer is disturbed."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memifrt import Runtime
from memifrt.cli.command_line import main
from memifrt.cli.commands import doctor
from memifrt.cli.commands.doctor import NOTE, OK, PROBLEM, Finding, Question, examine, unix_sockets
from memifrt.control.address import Address
from memifrt.control.wire import Ack, Disconnect, Hello, Init, Message, decode, encode
from tests.lib import testpmd
from tests.lib.forked import NOBODY, in_child
from tests.lib.peer import ScriptedSlave, assert_packets_pass
from tests.lib.programs import command
from tests.lib.support import DEADLINE, Pair, connect, running_in_thread, wait_until
from tests.lib.testpmd import DpdkTestpmd


def findings(
    path: str, *, probe_id: int | None = None, secret: bytes = b"", timeout: float = DEADLINE
) -> list[Finding]:
    return list(examine(Question(Address.parse(path), timeout, probe_id, secret)))


def problem(
    path: str, *words: str, probe_id: int | None = None, secret: bytes = b"", timeout: float = DEADLINE
) -> Finding:
    """The one problem that there must be, the last finding, with these words in it, and what to do."""
    found = findings(path, probe_id=probe_id, secret=secret, timeout=timeout)
    assert [finding.level == PROBLEM for finding in found] == [False] * (len(found) - 1) + [True], found
    last = found[-1]
    assert last.todo
    assert [word for word in words if word not in str(last)] == []
    return last


def about(check: str, found: list[Finding]) -> Finding:
    """The one finding about something."""
    (finding,) = (finding for finding in found if finding.check == check)
    return finding


def can_unshare() -> bool:
    """Whether a program can have a mount namespace of its own here."""
    if shutil.which("unshare") is None:
        return False
    probe = "mount -t tmpfs none /mnt"
    return not subprocess.run(["unshare", "--mount", "sh", "-c", probe], capture_output=True, check=False).returncode


# --- the file -------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_the_listening_end_s_to_make(socket_path: str) -> None:
    finding = problem(socket_path, f"there is no file {socket_path}", "start the listening end")
    assert finding.check == "file"


def test_the_first_missing_directory_is_named(tmp_path: Path) -> None:
    problem(f"{tmp_path}/a/b/c.sock", f"the directory {tmp_path}/a does not exist", f"mkdir -p {tmp_path}/a/b")


def test_a_relative_path_is_as_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    problem("memif.sock", "there is no file memif.sock")
    problem("a/memif.sock", f"the directory {tmp_path}/a does not exist")


def test_a_file_in_place_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    problem(f"{tmp_path}/file/memif.sock", f"{tmp_path}/file is not a directory")


def test_a_file_that_is_missing_but_listens_as_an_abstract_name(runtime: Runtime, socket_path: str) -> None:
    runtime.create_interface(socket=f"@{socket_path}", role="master")
    problem(socket_path, f"there is no file {socket_path}", f"use @{socket_path}")


def test_an_abstract_name_that_listens_as_a_file(runtime: Runtime, socket_path: str) -> None:
    runtime.create_interface(socket=socket_path, role="master")
    problem(f"@{socket_path}", f"nobody listens on @{socket_path}", f"use {socket_path}")


@pytest.mark.parametrize(
    ("make", "kind"),
    [(Path.touch, "a regular file"), (Path.mkdir, "a directory"), (os.mkfifo, "a named pipe")],
)
def test_what_is_no_socket_is_named_for_what_it_is(make: Callable[[Path], object], kind: str, socket_path: str) -> None:
    make(Path(socket_path))
    problem(socket_path, f"{socket_path} is {kind}, not a socket", "remove it")


def test_a_link_to_nowhere(tmp_path: Path, socket_path: str) -> None:
    os.symlink(tmp_path / "gone", socket_path)
    problem(socket_path, "symbolic link", f"{tmp_path}/gone, which does not exist")


def test_a_link_to_a_socket_is_followed(runtime: Runtime, tmp_path: Path, socket_path: str) -> None:
    runtime.create_interface(socket=socket_path, role="master")
    os.symlink(socket_path, tmp_path / "link")
    with running_in_thread(runtime):
        found = findings(str(tmp_path / "link"))
    assert [finding.level for finding in found] == [NOTE, OK, OK, OK, OK, OK]
    assert socket_path in found[0].text


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """One that anybody may enter, as pytest's own are not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root's rights")
@pytest.mark.parametrize(
    ("closed", "words"),
    [
        ("file", ["user nobody may not write to", "(srw------- root:root)", "run as root"]),
        ("directory", ["user nobody may not enter", "(drwx------ root:root)", "run as root"]),
        ("group", ["(srwxrwx--- root:daemon)", "join its group (usermod -aG daemon nobody"]),
    ],
)
def test_permissions_are_said_with_whose_they_are(
    closed: str, words: list[str], runtime: Runtime, public_directory: Path
) -> None:
    inner = public_directory / "inner"
    inner.mkdir()
    path = inner / "memif.sock"
    runtime.create_interface(socket=path, role="master")
    path.chmod({"file": 0o600, "directory": 0o777, "group": 0o770}[closed])
    inner.chmod(0o700 if closed == "directory" else 0o755)
    if closed == "group":
        os.chown(path, 0, grp.getgrnam("daemon").gr_gid)

    def check() -> None:
        problem(str(path), *words)

    in_child(check, uid=NOBODY)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root's rights")
@pytest.mark.parametrize("closed", ["file", "directory", "group"])
def test_fix_hints_are_the_commands_for_this_user_and_path(
    closed: str, runtime: Runtime, public_directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    inner = public_directory / "the inner"
    inner.mkdir()
    path = inner / "memif.sock"
    runtime.create_interface(socket=path, role="master")
    path.chmod({"file": 0o600, "directory": 0o777, "group": 0o770}[closed])
    inner.chmod(0o700 if closed == "directory" else 0o755)
    if closed == "group":
        os.chown(path, 0, grp.getgrnam("daemon").gr_gid)

    def ask() -> None:
        assert main(["doctor", "--fix-hints", str(path)]) == 1

    in_child(ask, uid=NOBODY)
    out = capfd.readouterr().out
    assert "root or root" not in out
    hints = [line.strip() for line in out.splitlines() if line.strip().startswith("$ ")]
    target, letters = (inner, "x") if closed == "directory" else (path, "rw")
    assert any(hint.startswith(f"$ sudo setfacl -m u:nobody:{letters} '{target}'") for hint in hints)
    assert any(hint.startswith(f"$ sudo memifrt doctor '{path}'") for hint in hints)
    gid = grp.getgrnam("daemon").gr_gid if closed == "group" else 0
    options = f"--group-add {gid}" if closed == "group" else "--user 0:0"
    assert any(hint.startswith(f"$ docker run {options} -v '{inner}:{inner}' IMAGE") for hint in hints)
    assert any(hint.startswith("$ sudo usermod -aG daemon nobody") for hint in hints) is (closed == "group")


def test_fix_hints_of_a_missing_directory_make_or_share_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "none"
    assert main(["doctor", "--fix-hints", f"{folder}/memif.sock"]) == 1
    out = capsys.readouterr().out
    assert f"$ sudo mkdir -p {folder}\n" in out
    assert f"$ docker run -v {folder}:{folder} IMAGE" in out
    assert main(["doctor", f"{folder}/memif.sock"]) == 1
    assert "$" not in capsys.readouterr().out


# --- who listens ----------------------------------------------------------------------------------------------------


@pytest.fixture
def raw_listener(socket_path: str) -> Iterator[Callable[..., socket.socket]]:
    """``raw_listener(kind)``: bound to the path; listening unless told otherwise. It and the file go afterwards."""
    with contextlib.ExitStack() as stack:

        def make(kind: socket.SocketKind = socket.SOCK_SEQPACKET, backlog: int | None = 8) -> socket.socket:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            sock.bind(socket_path)
            if backlog is not None:
                sock.listen(backlog)
            return sock

        yield make
    with contextlib.suppress(FileNotFoundError):
        os.unlink(socket_path)


RawListener = Callable[..., socket.socket]


def test_a_stale_file_is_told_with_who_replaces_it(raw_listener: RawListener, socket_path: str) -> None:
    raw_listener().close()
    finding = problem(socket_path, "nobody listens", "left behind by a program that is gone", f"rm {socket_path}")
    assert finding.check == "connect"


def test_an_abstract_name_that_nobody_has(socket_name: str) -> None:
    problem(socket_name, f"nobody listens on {socket_name} in this network namespace", "nsenter")


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_socket_of_another_kind(kind: socket.SocketKind, raw_listener: RawListener, socket_path: str) -> None:
    raw_listener(kind, 8 if kind is socket.SOCK_STREAM else None)
    problem(
        socket_path, "is not memif's kind of socket, SOCK_SEQPACKET", kind.name if kind.name == "SOCK_STREAM" else ""
    )


def test_a_stats_socket_is_not_memif_s(tmp_path: Path) -> None:
    path = str(tmp_path / "stats.sock")
    with Runtime(stats_socket=path):
        problem(path, "SOCK_STREAM", "stats sockets are others")


def test_a_program_that_lost_its_file(raw_listener: RawListener, socket_path: str) -> None:
    raw_listener()
    os.unlink(socket_path)
    problem(socket_path, f"process {os.getpid()} (", "was removed or replaced", "restart it")


def test_a_program_whose_file_was_replaced_by_a_stale_one(raw_listener: RawListener, socket_path: str) -> None:
    raw_listener()
    os.unlink(socket_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
        stale.bind(socket_path)
    found = findings(socket_path)
    assert found[-1].level == PROBLEM
    assert f"nobody listens on this file {socket_path}, but process {os.getpid()} (" in found[-1].text


@pytest.mark.skipif(not can_unshare(), reason="needs root and unshare --mount")
def test_a_program_in_a_file_system_of_its_own(public_directory: Path) -> None:
    path = public_directory / "memif.sock"
    responder = shlex.join(command("responder", "--role", "master", "--socket", str(path)))
    script = f"mount -t tmpfs none {public_directory} && exec {responder}"
    with subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline().startswith("answering for")
            finding = problem(str(path), f"there is no {path} here", "in another file system")
            assert f"/proc/{program.pid}/root{path}" in finding.todo
            found = findings(f"/proc/{program.pid}/root{path}")
            assert about("hello", found).level == OK
        finally:
            program.terminate()


def test_two_that_listen_under_one_name(raw_listener: RawListener, runtime: Runtime, socket_path: str) -> None:
    raw_listener()
    os.unlink(socket_path)
    runtime.create_interface(socket=socket_path, role="master")
    with running_in_thread(runtime):
        found = findings(socket_path)
    assert "2 sockets listen under this name" in next(finding.text for finding in found if finding.level == NOTE)


def test_a_full_backlog(raw_listener: RawListener, socket_path: str) -> None:
    raw_listener(backlog=0)
    with contextlib.ExitStack() as clients:
        with contextlib.suppress(BlockingIOError):
            while True:
                client = clients.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                client.setblocking(False)
                client.connect(socket_path)
        found = findings(socket_path)
    assert [finding.level for finding in found] == [OK, OK, NOTE, PROBLEM]
    assert "waiting for the program to accept" in found[2].text
    assert "the backlog" in found[3].text


def test_the_process_that_listens_is_named_and_its_peers_are_counted(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    path = pair.master.socket.path
    with running_in_thread(pair.runtimes[0]):
        found = findings(path)
    assert re.search(
        rf"process {os.getpid()} \(.+\) listens \(SOCK_SEQPACKET\), 1 peer connected", about("listener", found).text
    )
    assert f"process {os.getpid()} (" in about("peer", found).text
    assert "1 peer is connected" in about("id", found).text
    assert "--probe-id" in about("id", found).todo


def test_an_abstract_name_of_several_lines_breaks_no_row_but_its_own(socket_name: str) -> None:
    with socket.socket(socket.AF_UNIX) as odd, socket.socket(socket.AF_UNIX) as plain:
        odd.bind("\0" + socket_name + "odd\nz z z z z z z z\x0bz z z z z z z z\n")
        plain.bind("\0" + socket_name)
        assert "@" + socket_name.removeprefix("@") in {row.path.replace("@@", "@") for row in unix_sockets()}


def test_without_the_kernel_s_table_the_rest_is_told(
    runtime: Runtime, socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_TABLE", "/nowhere")
    assert list(unix_sockets()) == []
    runtime.create_interface(socket=socket_path, role="master")
    with running_in_thread(runtime):
        found = findings(socket_path)
    assert [finding.check for finding in found] == ["file", "peer", "hello", "id"]
    assert "cannot be seen" in found[-1].text


# --- what it says ---------------------------------------------------------------------------------------------------


class Script:
    """A master that says this, and what it heard. Its first words follow the accept, each other a message heard."""

    def __init__(self, listener: socket.socket, *words: Message | bytes, hangs_up: bool = False) -> None:
        self.heard: list[bytes] = []
        self._listener, self._words, self._hangs_up = listener, words, hangs_up
        listener.settimeout(DEADLINE)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self._listener.accept()[0] as peer:
            peer.settimeout(DEADLINE)
            for index, word in enumerate(self._words):
                if index:
                    self.heard.append(peer.recv(256))
                peer.send(word if isinstance(word, bytes) else encode(word))
            while not self._hangs_up and (data := peer.recv(256)):
                self.heard.append(data)

    def __enter__(self) -> Script:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()


HELLO = Hello("scripted")


def test_a_peer_that_is_not_asked_for_an_id_hears_only_a_goodbye(raw_listener: RawListener, socket_path: str) -> None:
    with Script(raw_listener(), HELLO) as script:
        found = findings(socket_path)
    assert [type(decode(data)) for data in script.heard] == [Disconnect]
    assert [finding.level for finding in found] == [OK] * 5


def test_hello_is_told_in_words(raw_listener: RawListener, socket_path: str) -> None:
    with Script(raw_listener(), Hello("a master", 0x0200, 0x0201, 3, 1, 0, 10)):
        text = about("hello", findings(socket_path)).text
    assert (
        text
        == "'a master' says HELLO: memif 2.0 to 2.1, up to 1 rings to it and 2 from it, of 1024 slots, in 4 regions"
    )


def test_another_version_is_a_problem(raw_listener: RawListener, socket_path: str) -> None:
    with Script(raw_listener(), Hello("new", 0x0300, 0x0301)):
        found = findings(socket_path)
    assert about("hello", found).level == PROBLEM
    assert "memif 3.0 to 3.1; memifrt speaks 2.0" in about("hello", found).text


@pytest.mark.parametrize(
    ("word", "words"),
    [
        (Disconnect(0, "not for you"), ["refuses this connection: not for you"]),
        (Ack(), ["begins with ACK instead of HELLO"]),
        (b"HTTP/1.1 400 Bad Request", ["message of 24 bytes"]),
        (b"\xff" * 128, ["unknown type 65535"]),
    ],
)
def test_anything_but_hello_is_a_problem(
    word: Message | bytes, words: list[str], raw_listener: RawListener, socket_path: str
) -> None:
    with Script(raw_listener(), word):
        assert problem(socket_path, *words).check == "hello"


def test_a_peer_that_hangs_up(raw_listener: RawListener, socket_path: str) -> None:
    with Script(raw_listener(), hangs_up=True):
        problem(socket_path, "no HELLO: the peer closed the connection")


def test_a_peer_that_says_nothing(raw_listener: RawListener, socket_path: str) -> None:
    raw_listener()
    problem(socket_path, "no HELLO within 0.05 s", timeout=0.05)


def test_a_name_that_moves_the_cursor_stays_text(
    raw_listener: RawListener, socket_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    listener = raw_listener()
    for word, status in ((Hello("\x1b[2J\n[red]x"), 0), (Disconnect(0, "\x1b[2J\n[red]x"), 1)):
        with Script(listener, word):
            assert main(["doctor", socket_path]) == status
        out = capsys.readouterr().out
        assert out.replace("\n", "").isprintable()
        assert {line[:8] for line in out.splitlines()} <= {"ok      ", "problem "}


# --- whether an id is taken -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "level", "words"),
    [
        ("unmatched interface id", PROBLEM, "no interface with id 7"),  # VPP
        ("already connected", PROBLEM, "id 7 is taken"),
        ("cannot connect to slave", PROBLEM, "is a slave too"),
        ("mode mismatch", OK, "id 7 is free"),
        ("secret required", PROBLEM, "requires another secret"),
        ("incorrect secret", PROBLEM, "requires another secret"),
        ("ID not found", PROBLEM, "no interface with id 7"),  # DPDK
        ("Already connected", PROBLEM, "id 7 is taken"),
        ("Only ethernet mode supported", OK, "id 7 is free"),
        ("", NOTE, "no reason given"),
        ("moon in the wrong house", NOTE, "moon in the wrong house"),
    ],
)
def test_refusals_are_understood(
    reason: str, level: str, words: str, raw_listener: RawListener, socket_path: str
) -> None:
    with Script(raw_listener(), HELLO, Disconnect(0, reason), hangs_up=True) as script:
        finding = about("id", findings(socket_path, probe_id=7))
    assert (finding.level, words in finding.text) == (level, True)
    (heard,) = script.heard
    init = decode(heard)
    assert isinstance(init, Init)
    assert (init.id, init.mode) == (7, 255)


def test_a_peer_that_does_not_look_at_modes(raw_listener: RawListener, socket_path: str) -> None:
    """libmemif: an ACK, and then the end if it has no such id."""
    listener = raw_listener()
    with Script(listener, HELLO, Ack(), hangs_up=True):
        assert "no interface with id 7" in problem(socket_path, "the peer hung up", probe_id=7).text
    with Script(listener, HELLO, Ack()) as script:
        assert about("id", findings(socket_path, probe_id=7)) == Finding(OK, "id", "id 7 is free")
    assert [type(decode(data)) for data in script.heard] == [Init, Disconnect]


@pytest.mark.parametrize(("word", "words"), [(None, "closed the connection"), (HELLO, "answers HELLO")])
def test_other_answers_to_a_probe(
    word: Message | None, words: str, raw_listener: RawListener, socket_path: str
) -> None:
    with Script(raw_listener(), *([HELLO] if word is None else [HELLO, word]), hangs_up=True):
        finding = about("id", findings(socket_path, probe_id=7))
    assert finding.level == PROBLEM
    assert words in finding.text


def test_no_answer_to_a_probe(raw_listener: RawListener, socket_path: str) -> None:
    with Script(raw_listener(), HELLO):
        problem(socket_path, "no answer about id 7 within 0.05 s", probe_id=7, timeout=0.05)


def test_our_own_master_is_understood(runtime: Runtime, peer_runtime: Runtime, socket_path: str) -> None:
    connect(runtime, peer_runtime, socket_path, id=1)
    free = runtime.create_interface(socket=socket_path, role="master", id=2)
    runtime.create_interface(socket=socket_path, role="master", id=3, secret="hush")
    with running_in_thread(runtime):
        assert "id 1 is taken" in problem(socket_path, probe_id=1).text
        assert about("id", findings(socket_path, probe_id=2)) == Finding(OK, "id", "id 2 is free")
        assert "requires another secret" in problem(socket_path, "--secret", probe_id=3).text
        assert about("id", findings(socket_path, probe_id=3, secret=b"hush")).level == OK
        assert "no interface with id 4" in problem(socket_path, probe_id=4).text
    assert (free.connects, free.disconnects) == (0, 0)


@pytest.mark.parametrize("probe_id", [None, 0])
def test_a_connected_pair_is_not_disturbed(probe_id: int | None, make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    with running_in_thread(pair.runtimes[0]):
        findings(pair.master.socket.path, probe_id=probe_id)
    for runtime in pair.runtimes:
        runtime.poll_event(0)
    assert [(end.connects, end.disconnects, end.connected) for end in (pair.master, pair.slave)] == [(1, 0, True)] * 2
    assert_packets_pass(pair)


def test_a_slave_connects_after_a_visit(runtime: Runtime, socket_path: str) -> None:
    master = runtime.create_interface(socket=socket_path, role="master")
    with running_in_thread(runtime):
        for probe_id in (None, 0):
            findings(socket_path, probe_id=probe_id)
    with ScriptedSlave(socket_path, runtime).run() as peer:
        peer.wait(lambda: master.connected)


@pytest.mark.testpmd
@pytest.mark.skipif(bool(testpmd.missing()), reason=testpmd.missing())
def test_testpmd_is_understood_and_not_disturbed(runtime: Runtime, socket_path: str) -> None:
    with DpdkTestpmd(socket_path, id=5) as peer:
        found = findings(socket_path)
        assert [finding.level for finding in found] == [OK] * 5
        assert "'DPDK " in about("hello", found).text
        assert about("id", findings(socket_path, probe_id=5)) == Finding(OK, "id", "id 5 is free")
        assert "no interface with id 6" in problem(socket_path, probe_id=6).text
        slave = runtime.create_interface(socket=socket_path, id=5)
        wait_until(lambda: slave.connected, runtime)
        peer.start_forwarding()
        assert "1 peer is connected" in about("id", findings(socket_path)).text
        assert "id 5 is taken" in problem(socket_path, probe_id=5).text
        assert slave.tx_queues[0].send([b"x" * 60] * 10) == 10
        back: list[bytes] = []

        def arrived() -> bool:
            back.extend(slave.rx_queues[0].recv())
            return len(back) == 10

        wait_until(arrived, runtime)
        slave.delete()
    os.unlink(socket_path)  # testpmd was killed


# --- the command ----------------------------------------------------------------------------------------------------


def test_all_well_is_status_0_and_a_problem_1(
    runtime: Runtime, socket_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", socket_path]) == 1
    assert capsys.readouterr().out.startswith("problem  there is no file ")
    runtime.create_interface(socket=socket_path, role="master")
    with running_in_thread(runtime):
        assert main(["doctor", socket_path]) == 0
    out = capsys.readouterr().out
    assert [line[:9] for line in out.splitlines()] == ["ok       "] * 5
    assert "no peer is connected, so no id is taken" in out


def test_json_has_every_finding(socket_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", socket_path]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["path"], report["problems"]) == (socket_path, 1)
    (finding,) = report["findings"]
    assert (finding["level"], finding["check"]) == ("problem", "file")
    assert socket_path in finding["text"]
    assert finding["todo"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["PATH"]),
        ([""], ["PATH", "''"]),
        (["x" * 108], ["PATH", "108 bytes"]),
        (["--probe-id", "-1", "x"], ["--probe-id", "'-1'"]),
        (["--timeout", "0", "x"], ["--timeout", "'0'"]),
        (["--secret", "x" * 24, "x"], ["--secret", "24 bytes"]),
    ],
)
def test_wrong_arguments_are_one_line_and_status_2(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert [word for word in words if word not in error] == []
