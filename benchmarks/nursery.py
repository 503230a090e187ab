"""Peers as processes that may be killed: forked by a process that holds nothing of ours.

A child that were forked beside a runtime would hold its fds: a killed peer's connection would not end. So the nursery
is forked first, and forks the peers.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import socket
import struct
import sys
import traceback
from types import TracebackType
from typing import TYPE_CHECKING

from benchmarks.traffic import End
from memifrt import Runtime

if TYPE_CHECKING:
    from typing_extensions import Self

#: A peer's socket path, its role, the seed of its random numbers.
_ORDER = struct.Struct("100sBxxxQ")
_ROLES = ("master", "slave")
_RECONNECT = 0.02


class Score:
    """What peers have done, in memory that outlives them: packets checked, packets that were wrong."""

    _FIELDS = struct.Struct("QQ")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    def add(self, received: int, wrong: int) -> None:
        before = self._FIELDS.unpack_from(self._memory)
        self._FIELDS.pack_into(self._memory, 0, before[0] + received, before[1] + wrong)

    @property
    def received(self) -> int:
        return int(self._FIELDS.unpack_from(self._memory)[0])

    @property
    def wrong(self) -> int:
        return int(self._FIELDS.unpack_from(self._memory)[1])


class Nursery:
    """Starts and buries peers. Make it before the first runtime, socket or thread."""

    def __init__(self) -> None:
        #: One for each role that the peers play: each has one writer at a time.
        self.scores = {role: Score() for role in _ROLES}
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._socket.close()
                self._serve(theirs)
            finally:
                os._exit(0)
        theirs.close()

    def start(self, path: str, role: str, seed: int) -> int:
        """The pid of a new peer."""
        self._socket.send(_ORDER.pack(path.encode(), _ROLES.index(role), seed))
        return self._answer()

    def bury(self, pid: int) -> int:
        """Wait for the end of a peer that has been killed or asked to end; its exit status, or minus its signal."""
        self._socket.send(pid.to_bytes(8, "little"))
        return self._answer()

    def _answer(self) -> int:
        answer = self._socket.recv(8)
        if not answer:
            raise RuntimeError("the process that forks the peers has died")
        return int.from_bytes(answer, "little", signed=True)

    def close(self) -> None:
        self._socket.close()
        os.waitpid(self.pid, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- in the nursery -----------------------------------------------------------------------------------------

    def _serve(self, orders: socket.socket) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the parent, which then lets us go
        alive: set[int] = set()
        while order := orders.recv(_ORDER.size):
            if len(order) == 8:
                pid = int.from_bytes(order, "little")
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                alive.discard(pid)
                orders.send(status.to_bytes(8, "little", signed=True))
                continue
            path, role, seed = _ORDER.unpack(order)
            pid = os.fork()
            if pid == 0:
                orders.close()
                self._be_a_peer(path.rstrip(b"\0").decode(), _ROLES[role], seed)
            alive.add(pid)
            orders.send(pid.to_bytes(8, "little"))
        for pid in alive:
            os.kill(pid, signal.SIGKILL)

    def _be_a_peer(self, path: str, role: str, seed: int) -> None:
        status = 1
        try:
            Peer(path, role, seed, self.scores[role]).run()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)


class Peer:
    """A process that sends and checks until it is killed. SIGTERM ends it cleanly, SIGUSR1 makes it disconnect."""

    def __init__(self, path: str, role: str, seed: int, score: Score) -> None:
        self._score = score
        self._stop = self._disconnect = False
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGUSR1, self._on_signal)
        self._runtime = Runtime("peer", reconnect_interval=_RECONNECT)
        self._end = End(self._runtime, self._wrong, seed, socket=path, role=role)
        self._pause = random.Random(seed).choice((0.0002, 0.001, 0.005))

    def run(self) -> None:
        scored = 0
        while not self._stop:
            self._runtime.poll_event(self._pause)
            self._end.work()
            self._score.add(self._end.received - scored, 0)
            scored = self._end.received
            if self._disconnect:
                self._disconnect = False
                self._end.interface.disconnect("the peer felt like it")
        self._runtime.close()

    def _wrong(self, trouble: str) -> None:
        self._score.add(0, 1)
        print(f"peer: {trouble}", file=sys.stderr)

    def _on_signal(self, number: int, frame: object) -> None:
        if number == signal.SIGTERM:
            self._stop = True
        else:
            self._disconnect = True


def kill(pid: int, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, how)
