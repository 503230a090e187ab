"""``memifrt doctor PATH``: say what is wrong with a control socket, one finding in each line.

Owns the checks and their order: the file, the listener, its HELLO, whether an id is taken. The checks do not disturb a
running peer: it sees a connection that sends DISCONNECT after the HELLO and closes. Only ``--probe-id`` sends more.
"""

from __future__ import annotations

import argparse
import contextlib
import grp
import json
import os
import pwd
import select
import shlex
import signal
import stat
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from memifrt.cli.arguments import Command, Parser, add_secret_arguments, checked, seconds, socket_path, whole
from memifrt.cli.program import one_line, signals_to
from memifrt.control.address import Address, connect
from memifrt.control.channel import Channel, ChannelClosed
from memifrt.control.wire import Ack, Disconnect, Hello, Init, Message
from memifrt.errors import ErrorCode, MemifError, MemifOSError
from memifrt.types import VERSION

OK, NOTE, PROBLEM = "ok", "note", "problem"

#: A mode that no interface has. VPP, DPDK and memifrt first check whether the id is taken, and then refuse the mode.
_NO_MODE = 255
#: Seconds to wait after an ACK: a libmemif master that has no such id closes the connection in that time.
_SECOND_THOUGHTS = 0.5
_TABLE = "/proc/net/unix"
_LISTENS = 0x10000
_STREAM, _DGRAM, _SEQPACKET = 1, 2, 5
_KINDS = {_STREAM: "SOCK_STREAM", _DGRAM: "SOCK_DGRAM", _SEQPACKET: "SOCK_SEQPACKET"}
_CONNECTED, _WAITING = 3, 2


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: ``level`` is ok, note or problem, ``check`` names the check, and ``todo`` says what to do.

    :ivar fixes: shell commands; each mends the problem. Text after ``#`` says when.
    """

    level: str
    check: str
    text: str
    todo: str = ""
    fixes: tuple[str, ...] = ()

    def hints(self) -> list[str]:
        """Return a line for each of the commands."""
        return [one_line(f"{'':8} $ {fix}") for fix in self.fixes]

    def __str__(self) -> str:
        return one_line(f"{self.level:8} {self.text}" + (f": {self.todo}" if self.todo else ""))


@dataclass(frozen=True, slots=True)
class Question:
    """What to check.

    ``probe_id`` None probes no id. ``timeout`` is the time in seconds that the peer has for each answer.
    """

    address: Address
    timeout: float = 2.0
    probe_id: int | None = None
    secret: bytes = field(default=b"", repr=False)


def examine(question: Question) -> Generator[Finding, None, None]:
    """Yield findings as they come. Stop at the first problem that makes further checks impossible."""
    address = question.address
    sockets = _listening(address)
    found: list[Finding] = []
    if not address.is_abstract:
        for finding in _file(address.path, sockets):
            found.append(finding)
            yield finding
    if any(finding.level == PROBLEM for finding in found):
        return
    yield from _listener(address, sockets)
    peers = sum(row.state == _CONNECTED for row in _bound(address))
    try:
        with _signals_held():  # until the socket is a channel, a signal would close it without a DISCONNECT
            channel = Channel(connect(address))
    except MemifOSError as error:
        yield _refusal(address, sockets, error)
        return
    with contextlib.closing(channel):
        yield from _conversation(question, channel, peers if sockets else None)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Delay signal handlers until the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- the file -------------------------------------------------------------------------------------------------------


def _file(path: str, sockets: list[UnixSocket]) -> Iterator[Finding]:
    problem = _directory(os.path.dirname(os.path.abspath(path)), path)
    if problem is not None:
        yield problem
        return
    try:
        here = os.lstat(path)
    except FileNotFoundError:
        yield _missing(path, sockets)
        return
    if stat.S_ISLNK(here.st_mode):
        target = os.path.realpath(path)
        if not os.path.exists(target):
            todo = "start the program that makes it, or correct the link"
            yield Finding(PROBLEM, "file", f"{path} is a symbolic link to {target}, which does not exist", todo)
            return
        yield Finding(NOTE, "file", f"{path} is a symbolic link to {target}")
    status = os.stat(path)
    shown = f"{stat.filemode(status.st_mode)} {_user(status.st_uid)}:{_group(status.st_gid)}"
    if not stat.S_ISSOCK(status.st_mode):
        yield Finding(
            PROBLEM,
            "file",
            f"{path} is {_KIND_OF_FILE.get(stat.S_IFMT(status.st_mode), 'something else')}, not a socket ({shown})",
            "give the path of a control socket; if nothing needs what is there, remove it and start the master again",
        )
    elif not os.access(path, os.W_OK, effective_ids=True):
        yield Finding(
            PROBLEM,
            "file",
            f"{_me()} may not write to {path} ({shown}), which connecting needs",
            _join(status, stat.S_IWGRP),
            _permission_fixes(path, path, status, "w"),
        )
    else:
        yield Finding(OK, "file", f"{path} is a socket: {shown}")


def _directory(path: str, socket: str) -> Finding | None:
    """Return the first problem with the directory of a socket, or with its parents; None if there is none."""
    for directory in [*reversed(Path(path).parents), Path(path)]:
        try:
            status = directory.stat()
        except FileNotFoundError:
            todo = f"start the program that makes it (VPP makes /run/vpp), or mkdir -p {path}"
            make = (f"sudo mkdir -p {shlex.quote(path)}", _docker(path))
            return Finding(PROBLEM, "directory", f"the directory {directory} does not exist", todo, make)
        if not stat.S_ISDIR(status.st_mode):
            return Finding(PROBLEM, "directory", f"{directory} is not a directory", "correct the path")
        if not os.access(directory, os.X_OK, effective_ids=True):
            shown = f"{stat.filemode(status.st_mode)} {_user(status.st_uid)}:{_group(status.st_gid)}"
            text = f"{_me()} may not enter {directory} ({shown})"
            fixes = _permission_fixes(str(directory), socket, status, "x")
            return Finding(PROBLEM, "directory", text, _join(status, stat.S_IXGRP), fixes)
    return None


def _missing(path: str, sockets: list[UnixSocket]) -> Finding:
    """Return the finding for a missing file. A listener may still run: its file was removed, or is elsewhere."""
    if sockets:
        return _elsewhere(path, sockets, "file", f"there is no {path} here")
    todo = "start the listening end (master, server) first, or correct the path; memifrt's slaves try again"
    return Finding(PROBLEM, "file", f"there is no file {path}", _other_form(Address(path)) or todo)


def _other_form(address: Address) -> str | None:
    """Return advice if a program listens on the same name of the other kind (abstract or file); otherwise None."""
    path = address.path[1:] if address.is_abstract else f"@{os.path.abspath(address.path)}"
    names = {path} if address.is_abstract else {path, f"@{address.path}"}
    for row in unix_sockets():
        if row.listens and row.path in names:
            kind = "a file" if address.is_abstract else "an abstract name (the default of DPDK's net_memif)"
            return f"a program listens on {row.path}, {kind}: use {row.path}, or change the program's socket"
    return None


def _elsewhere(path: str, sockets: list[UnixSocket], check: str, text: str) -> Finding:
    """Return the finding for a listener of this path that we cannot reach: its file was removed, or is elsewhere."""
    for row in sockets:
        for pid, name in row.owners():
            who = f"process {pid} ({name}) listens under that name"
            theirs = f"/proc/{pid}/root{os.path.abspath(path)}"
            if _is_another_file(theirs, path):
                todo = f"a container, or systemd's PrivateTmp: share the directory, or use {theirs} as root"
                fixes = (_docker(os.path.dirname(os.path.abspath(path))), f"sudo memifrt doctor {shlex.quote(theirs)}")
                return Finding(PROBLEM, check, f"{text}, but {who} in another file system", todo, fixes)
            return Finding(PROBLEM, check, f"{text}, but {who}: its file was removed or replaced", "restart it")
    todo = "in a container, or with systemd's PrivateTmp, share the directory; else restart the program"
    return Finding(PROBLEM, check, f"{text}, but a program listens under that name", todo)


def _is_another_file(theirs: str, ours: str) -> bool:
    try:
        return os.path.exists(theirs) and not os.path.samefile(theirs, ours)
    except FileNotFoundError:  # our file does not exist
        return True


def _join(status: os.stat_result, needed: int) -> str:
    """Return advice for a file that our permissions do not let us use.

    :param needed: the permission that a group needs.
    """
    group = _group(status.st_gid)
    if status.st_gid and status.st_mode & needed:
        return f"join its group (usermod -aG {group} {_user(os.geteuid())}, and log in again), or run as root"
    owner = "root" if status.st_uid == 0 else f"{_user(status.st_uid)} or root"
    return f"run as {owner}, or let its owner change the mode; --fix-hints gives the commands"


def _permission_fixes(path: str, socket: str, status: os.stat_result, needed: str) -> tuple[str, ...]:
    """Return commands that let this user use a file.

    :param path: the file or directory that refuses us.
    :param socket: the control socket.
    :param needed: ``w`` or ``x``.
    """
    uid, gid = os.geteuid(), os.getegid()
    user, quoted = _user(uid), shlex.quote(path)
    bit = stat.S_IWGRP if needed == "w" else stat.S_IXGRP
    fixes = []
    if status.st_gid and status.st_mode & bit:
        fixes.append(f"sudo usermod -aG {_group(status.st_gid)} {user}  # then log in again")
    until = "until its program makes it anew" if needed == "w" else "it stays"
    letters = "rw" if needed == "w" else "x"
    fixes.append(f"sudo setfacl -m u:{user}:{letters} {quoted}  # this user alone, {until}")
    if gid:
        change = f"sudo chown :{_group(gid)} {quoted} && sudo chmod g+{letters} {quoted}"
        fixes.append(f"{change}  # the group {_group(gid)}, {until}")
    owner = "" if status.st_uid == 0 else f"-u {_user(status.st_uid)} "
    fixes.append(f"sudo {owner}memifrt doctor {shlex.quote(socket)}  # or your program, as the owner")
    # In its group, if that is enough: --user would change the owner of the files that the container makes.
    in_group = status.st_gid and status.st_mode & bit
    options = f"--group-add {status.st_gid} " if in_group else f"--user {status.st_uid}:{status.st_gid} "
    fixes.append(_docker(os.path.dirname(os.path.abspath(socket)), options))
    return tuple(fixes)


def _docker(directory: str, options: str = "") -> str:
    """Return the command that shares the directory of a socket with a container."""
    volume = shlex.quote(f"{directory}:{directory}")
    return f"docker run {options}-v {volume} IMAGE  # if this program runs in a container"


_KIND_OF_FILE = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a block device",
}


def _user(uid: int) -> str:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


def _group(gid: int) -> str:
    with contextlib.suppress(KeyError):
        return grp.getgrgid(gid).gr_name
    return str(gid)


def _me() -> str:
    return f"user {_user(os.geteuid())}"


# --- the listener ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """One row of the kernel's table of Unix sockets in our network namespace."""

    kind: int
    listens: bool
    state: int
    inode: int
    path: str

    def owners(self) -> list[tuple[int, str]]:
        """Return pid and name of each process that holds the socket, as far as we may see them."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit() and _holds(name, f"socket:[{self.inode}]"):
                found.append((int(name), _process_name(int(name))))
        return found


def unix_sockets() -> Iterator[UnixSocket]:
    """Iterate over the table. It is empty if the kernel does not show it."""
    try:
        with open(_TABLE, errors="surrogateescape") as table:
            rows = table.read().split("\n")[1:]
    except OSError:
        return
    for row in rows:
        columns = row.split(maxsplit=7)
        if len(columns) == 8:
            _, _, _, flags, kind, state, inode, path = columns
            with contextlib.suppress(ValueError):  # an abstract name may contain a newline; the rest of it is not a row
                yield UnixSocket(int(kind, 16), bool(int(flags, 16) & _LISTENS), int(state, 16), int(inode), path)


def _bound(address: Address) -> list[UnixSocket]:
    """Return the sockets of this name: the listener, and its end of each connection, which has the same name."""
    names = {address.path} if address.is_abstract else {address.path, os.path.realpath(address.path)}
    return [row for row in unix_sockets() if row.path in names]


def _listening(address: Address) -> list[UnixSocket]:
    return [row for row in _bound(address) if row.listens]


def _holds(pid: str, target: str) -> bool:
    with contextlib.suppress(OSError):
        return any(os.readlink(entry.path) == target for entry in _entries(f"/proc/{pid}/fd"))
    return False


def _entries(path: str) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return list(entries)


def _process_name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    return "?"


def _listener(address: Address, sockets: list[UnixSocket]) -> Iterator[Finding]:
    if not sockets:
        return
    rows = _bound(address)
    connected = sum(row.state == _CONNECTED for row in rows)
    waiting = sum(row.state == _WAITING for row in rows)
    owners = [f"process {pid} ({name})" for row in sockets for pid, name in row.owners()]
    who = ", ".join(owners) or "a process that we may not see"
    kinds = ", ".join(sorted({_KINDS.get(row.kind, str(row.kind)) for row in sockets}))
    peers = f"{connected} peer{'s' if connected != 1 else ''} connected"
    yield Finding(OK, "listener", f"{who} listens ({kinds}), {peers}")
    if len(sockets) > 1:
        todo = "end the program that should not be there"
        yield Finding(
            NOTE, "listener", f"{len(sockets)} sockets listen under this name, and only one has the file", todo
        )
    if waiting:
        todo = "see whether it is stopped, or does not run its event loop"
        text = f"{waiting} connection{'s' if waiting != 1 else ''} waiting for the program to accept"
        yield Finding(NOTE, "listener", text, todo)


def _refusal(address: Address, sockets: list[UnixSocket], error: MemifOSError) -> Finding:
    """Return the finding for a failed connect."""
    match error.code:
        case ErrorCode.CONNREFUSED if address.is_abstract:
            return Finding(
                PROBLEM,
                "connect",
                f"nobody listens on {address} in this network namespace",
                _other_form(address)
                or "start the master; names are compared byte for byte, a container has its own (nsenter -t PID -n)",
            )
        case ErrorCode.CONNREFUSED if sockets:
            return _elsewhere(address.path, sockets, "connect", f"nobody listens on this file {address}")
        case ErrorCode.CONNREFUSED:
            return Finding(
                PROBLEM,
                "connect",
                f"nobody listens on {address}: the file was left behind by a program that is gone",
                _other_form(address)
                or f"start it again; VPP and memifrt replace the file, libmemif and DPDK need: rm {address}",
            )
        case ErrorCode.FILE_NOT_SOCK:
            kinds = {_KINDS.get(row.kind, "of another kind") for row in sockets}
            return Finding(
                PROBLEM,
                "connect",
                f"{address} is not memif's kind of socket, SOCK_SEQPACKET, but {', '.join(sorted(kinds)) or 'another'}",
                "give the path of a memif socket (vppctl show memif); cli.sock, api.sock and stats sockets are others",
            )
        case ErrorCode.AGAIN:
            return Finding(
                PROBLEM,
                "connect",
                f"the backlog of {address} is full: the program accepts no connections",
                "see whether it is stopped, or does not run its event loop",
            )
        case ErrorCode.ACCES:
            return Finding(
                PROBLEM,
                "connect",
                f"permission denied, although the file's mode allows it{_label(address)}",
                "SELinux or AppArmor: look for the denial with ausearch -m avc -ts recent, or in dmesg",
            )
    return Finding(PROBLEM, "connect", error.message)


def _label(address: Address) -> str:
    with contextlib.suppress(OSError):
        label = os.getxattr(address.path, "security.selinux").rstrip(b"\0").decode(errors="replace")
        return f" (its SELinux label is {label})"
    return ""


# --- the conversation -----------------------------------------------------------------------------------------------


def _conversation(question: Question, channel: Channel, peers: int | None) -> Iterator[Finding]:
    who = channel.credentials
    if who.pid:
        user = f"user {_user(who.uid)}, group {_group(who.gid)}"
        yield Finding(OK, "peer", f"connected to process {who.pid} ({_process_name(who.pid)}), {user}")
    else:
        yield Finding(NOTE, "peer", "the listener is in another process namespace: a container's, or the host's")
    answer = _answer(channel, question.timeout)
    match answer:
        case Hello():
            yield from _hello(answer)
        case Disconnect(_, reason):
            todo = "let the listening end admit this user"
            yield Finding(PROBLEM, "hello", f"the peer refuses this connection: {reason or 'no reason given'}", todo)
        case None:
            text = f"the peer sent no HELLO within {question.timeout:g} s"
            todo = "it is stopped, busy, or not a memif master: look at the process"
            yield Finding(PROBLEM, "hello", text, todo)
        case str():
            todo = "it is not a memif master, or it has no room for another peer: look at its log"
            yield Finding(PROBLEM, "hello", f"no HELLO: {answer}", todo)
        case _:
            text = f"the peer begins with {type(answer).__name__.upper()} instead of HELLO"
            yield Finding(PROBLEM, "hello", text, "it is not a memif master: look at the process")
    if isinstance(answer, Hello):
        if question.probe_id is None:
            yield from _ids(peers)
        else:
            yield _probe(question, channel, question.probe_id)


def _hello(hello: Hello) -> Iterator[Finding]:
    versions = f"memif {_version(hello.min_version)}"
    if hello.max_version != hello.min_version:
        versions += f" to {_version(hello.max_version)}"
    name = f"{hello.name!r} says HELLO" if hello.name else "the peer says HELLO, without a name"
    if not hello.min_version <= VERSION <= hello.max_version:
        todo = "use releases of both ends that share a version"
        yield Finding(PROBLEM, "hello", f"{name} with {versions}; memifrt speaks {_version(VERSION)}", todo)
        return
    yield Finding(
        OK,
        "hello",
        f"{name}: {versions}, up to {hello.max_s2m_ring + 1} rings to it and {hello.max_m2s_ring + 1} from it, "
        f"of {1 << min(hello.max_log2_ring_size, 31)} slots, in {hello.max_region + 1} regions",
    )


def _version(version: int) -> str:
    return f"{version >> 8}.{version & 0xFF}"


def _answer(channel: Channel, timeout: float) -> Message | str | None:
    """Return the next message, None if none came in time, or a text that says why none will come."""
    deadline = time.monotonic() + timeout
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while True:
        try:
            received = channel.receive()
        except ChannelClosed:
            return "the peer closed the connection"
        except MemifError as error:
            return error.message
        if received is not None:
            message, fd = received
            if fd is not None:
                fd.close()
            return message
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        poll.poll(left * 1000)


# --- whether an id is taken -----------------------------------------------------------------------------------------


def _ids(peers: int | None) -> Iterator[Finding]:
    """Yield what is known about ids without a probe. Some peers reserve a free id for a probe."""
    if peers is None:
        text = "the number of its peers cannot be seen from here: it listens under another name or in another namespace"
        yield Finding(NOTE, "id", text)
    elif peers == 0:
        yield Finding(OK, "id", "no peer is connected, so no id is taken")
    else:
        has = "1 peer is" if peers == 1 else f"{peers} peers are"
        yield Finding(
            NOTE, "id", f"{has} connected, each with an id of its own", "--probe-id N asks whether N is taken"
        )


def _probe(question: Question, channel: Channel, number: int) -> Finding:
    """Ask for an id, with a mode that no interface has.

    VPP, DPDK and memifrt check the id, then whether it is taken, then the mode, so this never connects. libmemif and
    gomemif do not check the mode: they reserve the id for us until we close the connection.
    """
    try:
        channel.send(Init(VERSION, number, _NO_MODE, question.secret, "memifrt doctor"))
    except (ChannelClosed, MemifError):
        return Finding(PROBLEM, "id", f"the peer closed the connection when asked for id {number}", "look at its log")
    answer = _answer(channel, question.timeout)
    match answer:
        case Disconnect(_, reason):
            return _verdict(number, reason)
        case Ack():
            if _answer(channel, _SECOND_THOUGHTS) is None:
                return Finding(OK, "id", f"id {number} is free")
            return _no_such_id(number, "the peer hung up")
        case None:
            text = f"no answer about id {number} within {question.timeout:g} s"
            return Finding(PROBLEM, "id", text, "the peer is stopped or busy: look at the process")
        case str():
            return Finding(PROBLEM, "id", f"no answer about id {number}: {answer}", "look at the peer's log")
    return Finding(PROBLEM, "id", f"the peer answers {type(answer).__name__.upper()} when asked for id {number}")


def _verdict(number: int, reason: str) -> Finding:
    """Return the finding for a refusal, by the first words in it that known peers use."""
    words = reason.lower()
    meanings: tuple[tuple[tuple[str, ...], Callable[[], Finding]], ...] = (
        (("unmatched", "not found", "no interface"), lambda: _no_such_id(number, reason)),
        (("already",), lambda: _taken(number, reason)),
        (("slave",), lambda: _is_slave(number, reason)),
        (("mode",), lambda: Finding(OK, "id", f"id {number} is free")),
        (("secret",), lambda: _wants_secret(number, reason)),
    )
    for needles, verdict in meanings:
        if any(needle in words for needle in needles):
            return verdict()
    return Finding(NOTE, "id", f"the peer refuses id {number}: {reason or 'no reason given'}")


def _no_such_id(number: int, reason: str) -> Finding:
    todo = f"create it there (VPP: create interface memif id {number} master), or use another id"
    return Finding(PROBLEM, "id", f"there is no interface with id {number} on this socket ({reason})", todo)


def _taken(number: int, reason: str) -> Finding:
    todo = "use another id, or end the peer that has it"
    return Finding(PROBLEM, "id", f"id {number} is taken: another peer is connected to it ({reason})", todo)


def _is_slave(number: int, reason: str) -> Finding:
    todo = "one end must be master (server), the other slave (client)"
    return Finding(PROBLEM, "id", f"the interface with id {number} is a slave too ({reason})", todo)


def _wants_secret(number: int, reason: str) -> Finding:
    todo = "give it with --secret to learn whether the id is taken"
    return Finding(PROBLEM, "id", f"the interface with id {number} requires another secret ({reason})", todo)


# --- the command line ------------------------------------------------------------------------------------------------


def _add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("path", type=checked(socket_path), metavar="PATH", help="control socket, @name for an abstract one")
    add(
        "--probe-id",
        type=whole(0, 0xFFFFFFFF),
        metavar="N",
        help="ask whether interface N exists and is free; the peer logs a refusal; libmemif and gomemif reserve a free "
        "id for a moment",
    )
    add_secret_arguments(parser.add_argument_group("for --probe-id"))
    add(
        "--timeout",
        type=seconds,
        default=2.0,
        metavar="SECONDS",
        help="how long to wait for each answer of the peer; default 2",
    )
    add(
        "--fix-hints",
        action="store_true",
        help="print commands that mend problems with permissions and directories; it runs none of them",
    )
    add("--json", action="store_true", help="print one line of JSON")


def _interrupt() -> None:
    raise KeyboardInterrupt


def _run(arguments: argparse.Namespace) -> int:
    parser: Parser = arguments.parser
    if arguments.probe_id is None:
        parser.refuse_given(["--secret", "--secret-file"], "without --probe-id, which sends it")
    if arguments.json:
        parser.refuse_given(["--fix-hints"], "with --json")
    address = Address.parse(arguments.path)
    findings = []
    question = Question(address, arguments.timeout, arguments.probe_id, arguments.secret or b"")
    # A signal raises inside the examination, so that the peer still gets a DISCONNECT.
    with signals_to(_interrupt), contextlib.closing(examine(question)) as examination:
        for finding in examination:
            findings.append(finding)
            if not arguments.json:
                print("\n".join([str(finding), *(finding.hints() if arguments.fix_hints else ())]), flush=True)
    problems = sum(finding.level == PROBLEM for finding in findings)
    if arguments.json:
        report = {"path": address.path, "problems": problems, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(report))
    return 1 if problems else 0


COMMAND = Command(
    "doctor",
    "say what is wrong with a control socket, without disturbing its peer",
    """example:
  memifrt doctor /run/vpp/memif.sock
  memifrt doctor --probe-id 0 /run/vpp/memif.sock
  memifrt doctor --fix-hints /run/vpp/memif.sock

It examines the file and the kernel's tables, connects, reads the HELLO, sends DISCONNECT, and closes the connection.

exit status: 0 if all is well, 1 if there are problems, 2 on wrong arguments""",
    _add_arguments,
    _run,
)
