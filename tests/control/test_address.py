"""Where a socket lives: names as people write them, files that are in the way, and whose they are to remove."""

from __future__ import annotations

import errno
import os
import re
import resource
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memifrt.control.address import Address, Listener, connect
from memifrt.errors import ConfigError, ErrorCode, MemifOSError
from tests.lib.forked import NOBODY, in_child


@pytest.fixture
def address(socket_path: str) -> Address:
    return Address.parse(socket_path)


def new_socket(kind: int = socket.SOCK_SEQPACKET, family: int = socket.AF_UNIX) -> socket.socket:
    return socket.socket(family, kind)


@pytest.fixture
def stale(address: Address) -> Address:
    """An address with a socket file whose listener is gone."""
    with new_socket() as sock:
        sock.bind(address.path)
        sock.listen()
    return address


def fails(call: Callable[[], object], number: int, code: ErrorCode, *words: str) -> MemifOSError:
    """The call fails as the system said, with words that help."""
    with pytest.raises(MemifOSError) as caught:
        call()
    error = caught.value
    assert error.errno == number
    assert error.code is code
    for word in (*words, f"[{errno.errorcode[number]}]"):
        assert word in str(error)
    assert isinstance(error.__cause__, OSError)
    return error


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["@name", "\0name", "abstract:name"])
def test_an_abstract_name_has_three_spellings(spelling: str) -> None:
    address = Address.parse(spelling)
    assert address == Address("@name")
    assert address.is_abstract
    assert str(address) == "@name"
    assert address.native == b"\0name"


@pytest.mark.parametrize("spelling", ["@{}", "\0{}", "abstract:{}"])
def test_an_abstract_name_in_any_spelling_meets_all_others(spelling: str, socket_name: str) -> None:
    name = socket_name.removeprefix("@")
    listener = Listener.bind(Address.parse(spelling.format(name)))
    for other in (f"@{name}", f"\0{name}", f"abstract:{name}"):
        connect(Address.parse(other)).close()
    with new_socket() as raw:
        raw.connect(b"\0" + name.encode())  # its exact length, without a NUL at the end
    listener.close()


@pytest.mark.parametrize("path", ["/run/vpp/memif.sock", "relative.sock", "./@file", "/a/abstract:b"])
def test_anything_else_is_a_file(path: str) -> None:
    address = Address.parse(path)
    assert not address.is_abstract
    assert address.native == path.encode()
    assert str(address) == path


def test_a_path_object_will_do() -> None:
    assert Address.parse(Path("/run/x.sock")) == Address("/run/x.sock")


def test_a_path_that_is_no_utf8_keeps_its_bytes() -> None:
    assert Address.parse(os.fsdecode(b"/run/\xff.sock")).native == b"/run/\xff.sock"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", "socket is ''; it must be a path or @name"),
        ("@", "socket is '@'; it must be a path or @name"),
        ("\0", "socket is '\\x00'; it must be a path or @name"),
        ("abstract:", "socket is 'abstract:'; it must be a path or @name"),
        (b"/run/x.sock", "socket is b'/run/x.sock'; it must be a path or @name"),
        (7, "socket is 7; it must be a path or @name"),
        (None, "socket is None; it must be a path or @name"),
        ("/run/a\0b", "socket path '/run/a\\x00b' has a NUL byte in it"),
        ("@a\0b", "socket path '@a\\x00b' has a NUL byte in it"),
        ("/" + "p" * 107, "is 108 bytes long; at most 107 fit into an address"),
        ("@" + "p" * 107, "is 108 bytes long; at most 107 fit into an address"),
        ("/" + "é" * 54, "is 109 bytes long; at most 107 fit into an address"),
    ],
)
def test_what_is_no_address_is_refused_with_its_value(path: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        Address.parse(path)
    assert caught.value.code is ErrorCode.INVAL_ARG


def test_the_longest_name_works(socket_name: str) -> None:
    address = Address.parse(socket_name.ljust(107, "x"))
    listener = Listener.bind(address)
    connect(address).close()
    listener.close()


def test_the_longest_path_works(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    prefix = f"/proc/self/fd/{directory}/"
    address = Address.parse(prefix.ljust(107, "x"))
    assert len(address.native) == 107
    listener = Listener.bind(address)
    connect(address).close()
    listener.close()
    os.close(directory)


# --- listening and connecting ---------------------------------------------------------------------------------------


def test_a_listener_accepts_who_connects(address: Address) -> None:
    listener = Listener.bind(address)
    assert listener.accept() is None
    client = connect(address)
    server = listener.accept()
    assert server is not None
    assert listener.accept() is None
    assert not client.getblocking()
    server.send(b"hello")
    assert client.recv(10) == b"hello"
    for sock in (client, server, listener):
        sock.close()


def test_no_fd_is_inherited(address: Address) -> None:
    listener = Listener.bind(address)
    client = connect(address)
    server = listener.accept()
    assert server is not None
    for sock in (client, server, listener):
        assert not os.get_inheritable(sock.fileno())
        sock.close()


def test_a_listener_without_fds_left_says_so(address: Address) -> None:
    def check() -> None:
        listener = Listener.bind(address)  # the child's own: what it inherits it does not touch
        client = connect(address)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        fails(listener.accept, errno.EMFILE, ErrorCode.PROC_FILE_LIMIT, f"cannot accept on {address}")
        fails(lambda: connect(address), errno.EMFILE, ErrorCode.PROC_FILE_LIMIT, f"a socket for {address}")
        fails(lambda: Listener.bind(address), errno.EMFILE, ErrorCode.PROC_FILE_LIMIT, f"a socket for {address}")
        client.close()
        listener.close()

    in_child(check)


def test_nobody_there_is_no_file(address: Address) -> None:
    error = fails(lambda: connect(address), errno.ENOENT, ErrorCode.NO_FILE, f"cannot connect to {address}")
    assert error.filename == address.path


def test_nobody_there_is_a_refused_connection(stale: Address, socket_name: str) -> None:
    fails(lambda: connect(stale), errno.ECONNREFUSED, ErrorCode.CONNREFUSED, f"cannot connect to {stale}")
    name = Address.parse(socket_name)
    fails(lambda: connect(name), errno.ECONNREFUSED, ErrorCode.CONNREFUSED, f"cannot connect to {name}")
    os.unlink(stale.path)


def test_a_full_backlog_is_an_error_that_does_not_wait(address: Address) -> None:
    with new_socket() as listener:
        listener.bind(address.path)
        listener.listen(0)
        clients = [connect(address)]
        fails(lambda: connect(address), errno.EAGAIN, ErrorCode.AGAIN, f"cannot connect to {address}")
        for client in clients:
            client.close()
    os.unlink(address.path)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_socket_of_another_type_is_named(address: Address, kind: int) -> None:
    with new_socket(kind) as other:
        other.bind(address.path)
        if kind == socket.SOCK_STREAM:
            other.listen()
        words = f"cannot connect to {address}: not a SOCK_SEQPACKET socket"
        fails(lambda: connect(address), errno.EPROTOTYPE, ErrorCode.FILE_NOT_SOCK, words)
        error = fails(lambda: Listener.bind(address), errno.EPROTOTYPE, ErrorCode.FILE_NOT_SOCK)
        assert "SOCK_SEQPACKET" in str(error)
        assert os.path.exists(address.path)
    os.unlink(address.path)


# --- files in the way -----------------------------------------------------------------------------------------------


def test_a_stale_file_is_replaced(stale: Address) -> None:
    listener = Listener.bind(stale)
    connect(stale).close()
    listener.close()
    assert not os.path.exists(stale.path)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root's rights")
@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_a_stale_file_of_another_user_is_named(mode: int) -> None:
    """In a directory such as /tmp, after a run of root's that was killed."""
    may_connect = mode == 0o777
    why = "remove it" if may_connect else "connect to it"
    number, code = (errno.EPERM, ErrorCode.SYSCALL) if may_connect else (errno.EACCES, ErrorCode.ACCES)

    def check() -> None:
        words = f"cannot listen on {path}: a socket of uid 0 is there, and this user may not {why}; remove it"
        fails(lambda: Listener.bind(Address.parse(path)), number, code, words)

    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o1777)
        path = f"{directory}/memif.sock"
        with new_socket() as sock:
            sock.bind(path)
        os.chmod(path, mode)
        in_child(check, uid=NOBODY)


def test_a_live_file_is_in_use_and_stays(address: Address) -> None:
    listener = Listener.bind(address)
    words = f"cannot listen on {address}: somebody listens there already"
    error = fails(lambda: Listener.bind(address), errno.EADDRINUSE, ErrorCode.SYSCALL, words)
    assert error.filename == address.path
    connect(address).close()
    listener.close()


def test_a_live_file_with_a_full_backlog_is_in_use_and_stays(address: Address) -> None:
    with new_socket() as listener:
        listener.bind(address.path)
        listener.listen(0)
        client = connect(address)
        fails(lambda: Listener.bind(address), errno.EADDRINUSE, ErrorCode.SYSCALL, "somebody listens there already")
        client.close()
        connect_again, _ = listener.accept()
        connect_again.close()
        connect(address).close()
    os.unlink(address.path)


@pytest.mark.parametrize("has_target", [True, False], ids=["to a stale socket", "to nothing"])
def test_a_link_stays_and_is_named(stale: Address, has_target: bool) -> None:
    if not has_target:
        os.unlink(stale.path)
    link = Address.parse(f"{stale.path}.link")
    os.symlink(stale.path, link.path)
    words = f"cannot listen on {link}: it is a symbolic link to {stale}; name the file itself, or remove the link"
    error = fails(lambda: Listener.bind(link), errno.EADDRINUSE, ErrorCode.SYSCALL, words)
    assert error.filename == link.path
    assert os.readlink(link.path) == stale.path
    assert os.path.exists(stale.path) == has_target
    os.unlink(link.path)
    Listener.bind(stale).close()


def test_a_link_to_a_live_socket_is_in_use_and_stays(address: Address) -> None:
    link = Address.parse(f"{address.path}.link")
    listener = Listener.bind(address)
    os.symlink(address.path, link.path)
    fails(lambda: Listener.bind(link), errno.EADDRINUSE, ErrorCode.SYSCALL, "somebody listens there already")
    connect(link).close()
    os.unlink(link.path)
    listener.close()


def test_an_abstract_name_in_use_says_so(socket_name: str) -> None:
    address = Address.parse(socket_name)
    listener = Listener.bind(address)
    fails(lambda: Listener.bind(address), errno.EADDRINUSE, ErrorCode.SYSCALL, "somebody listens there already")
    listener.close()
    Listener.bind(address).close()


def test_a_plain_file_stays(address: Address) -> None:
    Path(address.path).write_text("precious")
    words = f"cannot listen on {address}: a file that is not a socket is there"
    fails(lambda: Listener.bind(address), errno.EADDRINUSE, ErrorCode.FILE_NOT_SOCK, words)
    words = f"cannot connect to {address}: a file that is not a socket is there"
    fails(lambda: connect(address), errno.ECONNREFUSED, ErrorCode.FILE_NOT_SOCK, words)
    assert Path(address.path).read_text() == "precious"


def test_a_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    address = Address.parse(tmp_path / "missing" / "memif.sock")
    words = f"cannot listen on {address}: the directory {tmp_path / 'missing'} does not exist"
    error = fails(lambda: Listener.bind(address), errno.ENOENT, ErrorCode.NO_FILE, words)
    assert error.filename == address.path
    fails(lambda: connect(address), errno.ENOENT, ErrorCode.NO_FILE, f"cannot connect to {address}")


def test_a_file_where_a_directory_should_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    address = Address.parse(tmp_path / "file" / "memif.sock")
    fails(lambda: Listener.bind(address), errno.ENOTDIR, ErrorCode.SYSCALL, f"cannot listen on {address}")
    fails(lambda: connect(address), errno.ENOTDIR, ErrorCode.SYSCALL, f"cannot connect to {address}")


def test_a_path_without_permission_says_so(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    address = Address.parse(closed / "memif.sock")
    closed.chmod(0)

    def check() -> None:
        fails(lambda: Listener.bind(address), errno.EACCES, ErrorCode.ACCES, f"cannot listen on {address}")
        fails(lambda: connect(address), errno.EACCES, ErrorCode.ACCES, f"cannot connect to {address}")

    in_child(check, uid=NOBODY)
    closed.chmod(0o700)


# --- the end of a listener ------------------------------------------------------------------------------------------


def test_the_file_goes_with_its_listener(address: Address) -> None:
    listener = Listener.bind(address)
    assert os.path.exists(address.path)
    listener.close()
    listener.close()
    assert listener.closed
    assert not os.path.exists(address.path)


def test_a_file_that_is_another_s_by_now_stays(address: Address) -> None:
    first = Listener.bind(address)
    # Renamed, not removed: the number of a removed file may be used again for the next.
    os.rename(address.path, f"{address.path}.old")
    second = Listener.bind(address)
    first.close()
    connect(address).close()
    second.close()
    assert not os.path.exists(address.path)
    os.unlink(f"{address.path}.old")


def test_a_file_that_is_gone_already_is_not_missed(address: Address) -> None:
    listener = Listener.bind(address)
    os.unlink(address.path)
    listener.close()
    assert listener.closed


def test_a_forked_child_leaves_the_file_and_the_listener(address: Address) -> None:
    listener = Listener.bind(address)
    in_child(listener.close)
    client = connect(address)
    server = listener.accept()
    assert server is not None
    for sock in (client, server, listener):
        sock.close()
    assert not os.path.exists(address.path)


def test_a_failed_bind_leaves_no_file(address: Address) -> None:
    def check() -> None:
        os.chdir(os.path.dirname(address.path))
        os.rmdir(os.getcwd())  # a directory that is gone takes no file
        fails(lambda: Listener.bind(Address.parse("x.sock")), errno.ENOENT, ErrorCode.NO_FILE, "the directory .")

    in_child(check)
    os.mkdir(os.path.dirname(address.path))


# --- listeners that somebody else made ------------------------------------------------------------------------------


@pytest.fixture
def foreign(address: Address) -> Iterator[socket.socket]:
    """A listening socket, blocking as most are."""
    with new_socket() as sock:
        sock.bind(address.path)
        sock.listen()
        yield sock
    os.unlink(address.path)


def test_a_foreign_listener_is_adopted_and_its_file_stays(address: Address, foreign: socket.socket) -> None:
    fd = os.dup(foreign.fileno())
    listener = Listener.adopt(fd, address)
    assert listener.fileno() == fd
    assert listener.accept() is None  # it does not block, whatever it did before
    client = connect(address)
    server = listener.accept()
    assert server is not None
    server.close()
    client.close()
    listener.close()
    assert os.path.exists(address.path)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def _bound_only() -> int:
    sock = new_socket()
    sock.bind("")
    return sock.detach()


def _listening(kind: int, family: int = socket.AF_UNIX) -> int:
    sock = new_socket(kind, family)
    sock.bind("" if family == socket.AF_UNIX else ("127.0.0.1", 0))
    sock.listen()
    return sock.detach()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(_bound_only, id="not-listening"),
        pytest.param(lambda: _listening(socket.SOCK_STREAM), id="stream"),
        pytest.param(lambda: _listening(socket.SOCK_STREAM, socket.AF_INET), id="tcp"),
        pytest.param(lambda: new_socket(socket.SOCK_DGRAM).detach(), id="datagram"),
    ],
)
def test_what_is_no_listener_is_refused_and_stays_the_caller_s(make: Callable[[], int]) -> None:
    fd = make()
    before = os.fstat(fd)
    with pytest.raises(ConfigError, match=f"fd {fd} is not a listening AF_UNIX SOCK_SEQPACKET socket") as caught:
        Listener.adopt(fd, Address("@x"))
    assert caught.value.code is ErrorCode.FILE_NOT_SOCK
    assert os.fstat(fd).st_ino == before.st_ino
    os.close(fd)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: os.open("/dev/null", os.O_RDWR), id="file"),
        pytest.param(lambda: os.eventfd(0), id="eventfd"),
    ],
)
def test_what_is_no_socket_is_refused_and_stays_the_caller_s(make: Callable[[], int]) -> None:
    fd = make()
    fails(lambda: Listener.adopt(fd, Address("@x")), errno.ENOTSOCK, ErrorCode.FILE_NOT_SOCK, f"fd {fd} cannot be")
    os.close(fd)


@pytest.mark.parametrize("fd", [1 << 20, -1])
def test_a_number_that_is_no_fd_is_refused(fd: int) -> None:
    error = fails(lambda: Listener.adopt(fd, Address("@x")), errno.EBADF, ErrorCode.BAD_FD, f"fd {fd} cannot be")
    assert error.filename == "@x"
