"""A client for stats sockets: asks programs for snapshots again and again, and connects again to those that return.

Owns the connections, the checks of snapshots, the rates between two snapshots, and their history. Knows nothing of
terminals. Nothing here waits for a program that does not answer.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import json
import os
import select
import socket
import time
import types
import typing
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

from memifrt.control.address import Address, connect
from memifrt.errors import ErrorCode, MemifError
from memifrt.stats.snapshot import SCHEMA, VERSION, InterfaceStats, QueueStats, Snapshot
from memifrt.system.received_fds import UNKNOWN_USER, close_channel, receive_without_fds

#: The number of samples in the history of a queue.
HISTORY = 240
#: The longest snapshot in bytes. An interface with 255 queues in each direction needs a tenth of a megabyte.
_LONGEST_LINE = 16 << 20
#: Seconds for which a program that a pattern has found stays after its socket and its connection are gone.
FORGET_AFTER = 60.0
#: Seconds without an answer after which a program counts as hanging.
_PATIENCE = 2.0
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class QueueKey:
    """Identifies a queue of a program. It stays the same over reconnects."""

    socket: str
    role: str
    id: int
    direction: str
    qid: int


@dataclass(frozen=True, slots=True)
class Rates:
    """The rates of a queue, for one second."""

    packets: float
    bits: float
    interrupts: float
    ring_full: float

    def __add__(self, other: Rates) -> Rates:
        return Rates(
            self.packets + other.packets,
            self.bits + other.bits,
            self.interrupts + other.interrupts,
            self.ring_full + other.ring_full,
        )


class Program:
    """The program behind one stats socket.

    :ivar snapshot: the last snapshot. It stays when the program is gone.
    :ivar error: why there is no answer; empty while the program answers.
    :ivar rates: the rates of each queue between the last two snapshots.
    :ivar history: packets a second of each queue, the newest last; None for a time without an answer.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.snapshot: Snapshot | None = None
        self.error = "not asked yet"
        #: When the error began, by ``time.monotonic()``; None while the program answers.
        self.lost_since: float | None = None
        self.rates: dict[QueueKey, Rates] = {}
        self.history: dict[QueueKey, deque[float | None]] = {}
        self._address = Address.parse(path)
        self._socket: socket.socket | None = None
        self._line = bytearray()
        self._asked_at: float | None = None

    @property
    def is_silent(self) -> bool:
        """Whether the program is there, but does not answer."""
        return self._socket is not None and bool(self.error)

    @property
    def waiting(self) -> bool:
        """Whether an answer is pending."""
        return self._asked_at is not None

    def fileno(self) -> int:
        """Return the fd of the socket; -1 without a connection."""
        return -1 if self._socket is None else self._socket.fileno()

    def ask(self) -> None:
        """Ask for a snapshot without waiting for it. Connect first if there is no connection."""
        if self._asked_at is not None:
            silence = time.monotonic() - self._asked_at
            if silence >= _PATIENCE:
                self._lost(f"no answer for {silence:.0f} s: the program is stopped, or busy without polling")
            return
        try:
            if self._socket is None:
                self._socket = connect(self._address, socket.SOCK_STREAM)  # the server then sends a snapshot
            else:
                self._socket.send(b"\n", socket.MSG_NOSIGNAL)
        except MemifError as error:
            self._hang_up(_why(error))
        except OSError:
            self._hang_up("the program is gone")
        else:
            self._asked_at = time.monotonic()

    def receive(self) -> None:
        """Receive data. Call this when the socket is readable."""
        if self._socket is None:
            return
        try:
            data = receive_without_fds(self._socket, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._hang_up("the program is gone")
            return
        self._line += data
        if len(self._line) > _LONGEST_LINE:
            self._hang_up(f"{_LONGEST_LINE >> 20} MiB without an end of line: this is not a stats socket of memifrt")
        elif self._line.endswith(b"\n"):
            line, self._line = bytes(self._line), bytearray()
            self._asked_at = None
            try:
                self._take(parse_snapshot(line))
            except ValueError as error:
                self._hang_up(f"this is not a stats socket of memifrt: {error}")

    def close(self) -> None:
        self._asked_at = None
        self._line.clear()
        if self._socket is not None:
            close_channel(self._socket, UNKNOWN_USER)
            self._socket = None

    def _take(self, snapshot: Snapshot) -> None:
        before, self.snapshot, self.error = self.snapshot, snapshot, ""
        self.lost_since = None
        if before is not None and (before["pid"], before["started"]) != (snapshot["pid"], snapshot["started"]):
            before = None  # another program, with counters from zero
            self.history.clear()
        self.rates = {} if before is None else rates(before, snapshot)
        self._remember([key for key, _ in queues(snapshot)])

    def _hang_up(self, why: str) -> None:
        self.close()
        self._lost(why)

    def _lost(self, why: str) -> None:
        self.error = why
        if self.lost_since is None:
            self.lost_since = time.monotonic()
        self.rates = {}
        self._remember(list(self.history))

    def _remember(self, keys: list[QueueKey]) -> None:
        for gone in self.history.keys() - set(keys):
            del self.history[gone]
        for key in keys:
            rate = self.rates.get(key)
            self.history.setdefault(key, deque(maxlen=HISTORY)).append(None if rate is None else rate.packets)


class Observer:
    """Watches several programs.

    :param paths: the paths of stats sockets. A path with ``*``, ``?`` or ``[`` is a pattern, which each :meth:`ask`
        expands. A program that a pattern has found is forgotten when it and its socket have been gone for
        :data:`FORGET_AFTER` seconds.
    :raises ConfigError: a path is not valid.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._patterns = list(paths)
        self._programs: dict[str, Program] = {}
        self._look_up()

    @property
    def programs(self) -> list[Program]:
        return list(self._programs.values())

    def ask(self) -> None:
        """Ask all programs for a snapshot; :meth:`wait` takes the answers."""
        self._look_up()
        for program in self.programs:
            program.ask()

    def wait(self, timeout: float, *also: int) -> set[int]:
        """Receive the answers to :meth:`ask`, until every program has answered or ``timeout`` seconds have passed.

        :param also: fds that end the wait when they are readable.
        :returns: the fds of ``also`` that are readable.
        """
        deadline = time.monotonic() + timeout
        while any(program.waiting for program in self.programs):
            ready = self._poll(deadline - time.monotonic(), also)
            if ready & set(also) or time.monotonic() >= deadline:
                return ready & set(also)
        return set()

    def pause(self, timeout: float, *also: int) -> set[int]:
        """Wait for ``timeout`` seconds, or until a fd of ``also`` is readable; return the readable ones."""
        deadline = time.monotonic() + timeout
        ready: set[int] = set()
        while not ready and time.monotonic() < deadline:
            ready = self._poll(deadline - time.monotonic(), also) & set(also)
        return ready

    def close(self) -> None:
        for program in self.programs:
            program.close()

    def _look_up(self) -> None:
        present = set()
        for pattern in self._patterns:
            found = sorted(glob.glob(pattern)) if glob.has_magic(pattern) and not os.path.exists(pattern) else [pattern]
            present.update(found)
            for path in found:
                if path not in self._programs:
                    self._programs[path] = Program(path)
        gone = time.monotonic() - FORGET_AFTER
        for path, program in list(self._programs.items()):
            since = program.lost_since
            if path not in present and not program.is_silent and since is not None and since <= gone:
                program.close()
                del self._programs[path]

    def _poll(self, timeout: float, also: tuple[int, ...]) -> set[int]:
        """Wait once and receive data from the programs; return the fds that are ready."""
        poll = select.poll()
        connected = {program.fileno(): program for program in self.programs if program.fileno() >= 0}
        for fd in (*connected, *also):
            poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(max(timeout, 0) * 1000)}
        for fd in ready & connected.keys():
            connected[fd].receive()
        return ready


# --- the contents of a snapshot -------------------------------------------------------------------------------------


def queues(snapshot: Snapshot) -> Iterator[tuple[QueueKey, QueueStats]]:
    for interface in snapshot["interfaces"]:
        for queue in interface["queues"]:
            yield queue_key(interface, queue), queue


def queue_key(interface: InterfaceStats, queue: QueueStats) -> QueueKey:
    return QueueKey(interface["socket"], interface["role"], interface["id"], queue["direction"], queue["qid"])


def rates(before: Snapshot, after: Snapshot) -> dict[QueueKey, Rates]:
    """Return the rates of each queue between two snapshots, except of queues that are new or were reset."""
    seconds = after["monotonic"] - before["monotonic"]
    if seconds <= 0:
        return {}
    earlier = dict(queues(before))
    found = {}
    for key, queue in queues(after):
        old = earlier.get(key)
        if old is not None and queue["packets"] >= old["packets"] and queue["bytes"] >= old["bytes"]:
            found[key] = Rates(
                (queue["packets"] - old["packets"]) / seconds,
                8 * (queue["bytes"] - old["bytes"]) / seconds,
                (queue["interrupts"] - old["interrupts"]) / seconds,
                (queue["ring_full"] - old["ring_full"]) / seconds,
            )
    return found


def parse_snapshot(line: bytes) -> Snapshot:
    """Parse a snapshot, and check that it has every name of the schema, with a value of the right type.

    :raises ValueError: the line is not a snapshot. The text says what is wrong.
    """
    try:
        value = json.loads(line, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    except ValueError:
        raise ValueError("the answer is not JSON") from None
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise ValueError(f"the answer has no schema {SCHEMA!r}")
    if value.get("version") != VERSION:
        raise ValueError(f"it has version {str(value.get('version'))[:20]!r} of the schema; it must be {VERSION}")
    wrong = _difference(value, Snapshot, "the snapshot")
    if wrong:
        raise ValueError(wrong)
    return cast(Snapshot, value)


def _difference(value: object, kind: object, where: str) -> str:
    """Return a text that says which part of a JSON value has the wrong type; empty if none has."""
    if typing.is_typeddict(kind):
        if not isinstance(value, dict):
            return f"{where} is not an object"
        for name, hint in _fields(kind).items():
            if name in _SINCE_THEN:
                value.setdefault(name, [] if typing.get_origin(hint) is list else 0)
            if name in _OPTIONAL and name not in value:
                continue
            wrong = _difference(value[name], hint, name) if name in value else f"{where} has no {name!r}"
            if wrong:
                return wrong
        return ""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        if not isinstance(value, list):
            return f"{where} is not a list"
        return next(filter(None, (_difference(element, arguments[0], where) for element in value)), "")
    if origin in (types.UnionType, typing.Union):
        differences = [_difference(value, argument, where) for argument in arguments]
        return "" if "" in differences else differences[0]
    return "" if _is_scalar(value, kind) else f"{where} is not of type {getattr(kind, '__name__', kind)}"


#: Counters and lists that earlier releases do not send.
_SINCE_THEN = {"repeated_kicks", "counters", "changes"}
#: Parts that only some programs have.
_OPTIONAL = {"switch"}


@functools.cache
def _fields(kind: object) -> dict[str, object]:
    return typing.get_type_hints(kind)


def _is_scalar(value: object, kind: object) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float) and abs(value) < 1e15
    if kind is int:
        return isinstance(value, int) and abs(value) < 1 << 64
    return isinstance(value, cast(type, kind))


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _why(error: MemifError) -> str:
    """Return a short text that says why a socket does not answer. The caller shows its path."""
    words = {
        ErrorCode.NO_FILE: "there is no such file: the program is gone, or was started without --stats",
        ErrorCode.CONNREFUSED: "nobody listens there: the program is gone",
        ErrorCode.ACCES: "permission denied: only the program's user and root may connect",
        ErrorCode.FILE_NOT_SOCK: "this is not a stats socket (SOCK_STREAM); memifrt doctor checks memif's own sockets",
        ErrorCode.AGAIN: "it takes no connections: the program is stopped, or busy without polling",
    }
    return words.get(error.code, error.message)


@contextlib.contextmanager
def observing(paths: Iterable[str]) -> Iterator[Observer]:
    """Open an :class:`Observer`, and close its connections afterwards."""
    observer = Observer(paths)
    try:
        yield observer
    finally:
        observer.close()
