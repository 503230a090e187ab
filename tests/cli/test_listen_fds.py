"""Commands that listen on a socket that systemd, or the test, passes (socket activation)."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memifrt import ConfigError, Runtime
from memifrt.cli import listen_fds
from memifrt.cli.command_line import main
from memifrt.cli.listen_fds import InheritedListeners
from tests.lib.programs import Program, end, read_until
from tests.lib.support import wait_until

VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
UNITS = Path(__file__).parents[2] / "examples" / "systemd"
#: Starts memifrt with a listener, in the way of the protocol.
LAUNCHER = """\
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="memif")
os.execv(sys.executable, [sys.executable, "-m", "memifrt", *sys.argv[2:]])
"""

Listening = Callable[[str], socket.socket]


@pytest.fixture
def listening() -> Iterator[Listening]:
    """A function that listens as a socket unit does, and closes at the end."""
    with contextlib.ExitStack() as stack:

        def make(path: str, kind: socket.SocketKind = socket.SOCK_SEQPACKET) -> socket.socket:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            sock.bind("\0" + path[1:] if path.startswith("@") else path)
            sock.listen(8)
            if not path.startswith("@"):
                stack.callback(os.unlink, path)
            return sock

        yield make


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that passes an fd to this process."""

    def set_variables(fd: int, names: str | None = "memif", **others: str) -> None:
        monkeypatch.setattr(listen_fds, "_FIRST", fd)
        values = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", **others}
        for variable, value in values.items():
            monkeypatch.setenv(variable, value)
        if names is not None:
            monkeypatch.setenv("LISTEN_FDNAMES", names)

    return set_variables


@contextlib.contextmanager
def activated(listener: socket.socket, *arguments: str) -> Iterator[Program]:
    program = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(listener.fileno()), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[listener.fileno()],
    )
    with program:
        try:
            yield program
        finally:
            program.kill()


def test_responder_accepts_its_peer_on_the_inherited_listener_and_leaves_it_open(
    listening: Listening, runtime: Runtime, tmp_path: Path
) -> None:
    path = str(tmp_path / "memif.sock")
    listener = listening(path)
    slave = runtime.create_interface(socket=path, role="slave")  # waits in the backlog
    with activated(listener, "responder", "--role", "master", "--socket", path) as program:
        wait_until(lambda: slave.connected, runtime)
        assert read_until(program, "waiting for a peer", stderr=True) == (
            f"memifrt responder: waiting for a peer on {path}; Ctrl+C ends it\n"
        )
        status, _, err = end(program)
        assert status == 0, err
    assert stat.S_ISSOCK(os.stat(path).st_mode)  # the next start takes it again
    wait_until(lambda: not slave.connected, runtime)


def test_variables_and_the_close_on_exec_flag_keep_children_out(
    listening: Listening, passed: Callable[..., None], socket_name: str
) -> None:
    listener = listening(socket_name)
    listener.set_inheritable(True)
    passed(listener.fileno())
    listeners = InheritedListeners.take()
    assert not any(variable in os.environ for variable in VARIABLES)
    assert not listener.get_inheritable()
    assert listeners.claim(socket_name) == listener.fileno()
    assert listeners.claim(socket_name) is None  # it is in use now


def test_fds_for_another_process_are_not_taken(listening: Listening, passed: Callable[..., None]) -> None:
    passed(3, LISTEN_PID="1")
    assert InheritedListeners.take().claim("@other") is None


def test_listener_on_another_path_is_an_error_that_names_both(
    listening: Listening, passed: Callable[..., None], socket_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    listener = listening(socket_name)
    passed(listener.fileno())
    assert main(["responder", "--role", "master", "--socket", "@elsewhere"]) == 2
    err = capsys.readouterr().err
    assert f"none of the sockets that LISTEN_FDS passes listens on @elsewhere: fd {listener.fileno()} (memif)" in err
    assert f"listens on {socket_name}" in err
    assert err.count("\n") == 1


def test_path_may_be_written_in_another_way(listening: Listening, passed: Callable[..., None], tmp_path: Path) -> None:
    listener = listening(str(tmp_path / "memif.sock"))
    passed(listener.fileno(), None)
    assert InheritedListeners.take().claim(f"{tmp_path}/./memif.sock") is not None


def test_stream_socket_is_an_error_that_says_what_the_unit_needs(
    passed: Callable[..., None], socket_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.bind("\0" + socket_name[1:])
        stream.listen()
        passed(stream.fileno())
        assert main(["ping", "--role", "master", "--socket", socket_name, "192.168.1.2"]) == 2
    err = capsys.readouterr().err
    assert "not a listening AF_UNIX SOCK_SEQPACKET socket; a socket unit needs ListenSequentialPacket=PATH" in err
    assert err.count("\n") == 1


def test_connected_socket_is_no_listener(passed: Callable[..., None]) -> None:
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with a, b:
        passed(a.fileno())
        with pytest.raises(ConfigError, match="Accept=no"):
            InheritedListeners.take()


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"LISTEN_FDS": "x"}, "LISTEN_FDS is 'x'; it must be a whole number from 0 to 4096"),
        ({"LISTEN_FDS": "-1"}, "LISTEN_FDS is '-1'"),
        ({"LISTEN_FDS": "5000"}, "LISTEN_FDS is '5000'"),
        ({"LISTEN_PID": "me"}, "LISTEN_PID is 'me'"),
        ({}, "fd 1000000 (memif), which LISTEN_FDS passes, is not a socket: Bad file descriptor"),
    ],
)
def test_wrong_variables_are_one_line_and_status_2(
    variables: dict[str, str],
    named: str,
    passed: Callable[..., None],
    socket_name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    passed(1000000, **variables)
    assert main(["responder", "--role", "master", "--socket", socket_name]) == 2
    err = capsys.readouterr().err
    assert named in err
    assert err.count("\n") == 1


def test_units_to_copy_agree_on_the_path_and_name_real_options() -> None:
    service = (UNITS / "memifrt-responder.service").read_text()
    unit = (UNITS / "memifrt-responder.socket").read_text()
    path = unit.partition("ListenSequentialPacket=")[2].splitlines()[0]
    arguments = service.partition("\nExecStart=/usr/local/bin/memifrt ")[2].splitlines()[0].split()
    assert arguments[arguments.index("--socket") + 1] == path
    from memifrt.cli.command_line import make_parser

    assert make_parser().parse_args(arguments).role is not None
