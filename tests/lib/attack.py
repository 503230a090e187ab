"""An interface under attack: its peer rewrites the memory that they share while packets pass.

    python -m tests.lib.attack --role master --ring native --seconds 600

Owns both processes: a peer that connects again and again and writes whatever it likes, and in this process the victim,
which does with its queues all that they offer. Every region lies between pages that nobody may touch. The status is 0
if nothing came of it but disconnects that name what the peer did.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import mmap
import os
import random
import re
import select
import struct
import sys
import time
import uuid
import weakref
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from memifrt import ConfigError, Disconnected, Interface, Runtime, RxQueue, TxQueue
from memifrt.errors import RingViolation
from memifrt.memory import region
from memifrt.memory.layout import buffer_stride, plan
from memifrt.options import RoleName
from memifrt.ring import Burst, __impl__
from memifrt.types import QueueCounters
from tests.lib.forked import beside
from tests.lib.peer import BUFFER_SIZE, LOG2_SIZE, PeerClosed, RawRing, ScriptedMaster, ScriptedSlave
from tests.lib.support import DEADLINE, connect, wait_until

U16, U32 = 0xFFFF, 0xFFFFFFFF
#: The largest count that an eventfd holds.
_FULL = 0xFFFFFFFFFFFFFFFE
_RING_SIZE = 1 << LOG2_SIZE
#: A scripted slave's rings end here, and its buffers begin.
_SLAVES_BUFFERS = 4096
#: Seconds that a peer stays with one connection, if the victim lets it.
_CONNECTION = 0.2
#: What a disconnect says that the peer has caused: the ring, and what is wrong with it.
_REASON = re.compile(r"[rt]x ring 0: .*(descriptor|head|tail|chain|packet)")


# --- the attacker -----------------------------------------------------------------------------------------------------


class Attacker:
    """What a hostile peer does in its own process. ``mutations`` counts what it has written, in shared memory."""

    def __init__(self, path: str, victim: str, seed: int, mutations: mmap.mmap) -> None:
        self.path = path
        self.victim = victim
        self.random = random.Random(seed)
        self._mutations = mutations
        self.peer: ScriptedMaster | ScriptedSlave
        self.memory: mmap.mmap
        self.buffers: list[int] = []

    def run(self) -> None:
        """Attack one connection after the other, until this process is killed or the victim is gone."""
        victim = os.getppid()
        if self.victim == "slave":
            peer = ScriptedMaster(self.path)
            layout = plan(1, 1, LOG2_SIZE, BUFFER_SIZE)
            self.buffers = list(
                range(layout.rings[0].first_buffer, layout.region_sizes[0] - BUFFER_SIZE, layout.stride)
            )
        else:
            self.buffers = list(range(_SLAVES_BUFFERS, _SLAVES_BUFFERS + 2 * _RING_SIZE * BUFFER_SIZE, BUFFER_SIZE))
        while os.getppid() == victim:
            # Its goodbye may come at any moment, and its memory may hold anything.
            with contextlib.suppress(PeerClosed, ConnectionError, TimeoutError, AssertionError):
                if self.victim == "slave":
                    self._attack(peer)
                    peer.hang_up()
                    _forget(peer)
                else:
                    with ScriptedSlave(self.path) as slave:
                        self._attack(slave)

    def _attack(self, peer: ScriptedMaster | ScriptedSlave) -> None:
        peer.run()
        assert peer.memory is not None
        self.peer, self.memory = peer, peer.memory
        if isinstance(peer, ScriptedSlave):
            peer.post()
        deeds = self.random.choice(_MOODS)
        until = time.monotonic() + _CONNECTION
        while time.monotonic() < until and not select.select([peer.socket], [], [], 0)[0]:
            self._pass_packets()
            done = 0
            for _ in range(8):
                done += self.random.choice(deeds)(self)
            (before,) = struct.unpack("<Q", self._mutations[:8])
            self._mutations[:8] = struct.pack("<Q", before + done)

    # --- traffic that makes the victim go on

    def _pass_packets(self) -> None:
        """Take what the victim sent, and send it something. What lies in memory may be our own lie."""
        tx, rx = self.peer.tx, self.peer.rx
        with contextlib.suppress(IndexError, ValueError, struct.error):
            if isinstance(self.peer, ScriptedSlave):
                self._post_again(rx)
                room = _RING_SIZE - (tx.head - tx.tail & U16)
            else:
                rx.tail = rx.head
                room = tx.head - tx.tail & U16
            for _ in range(min(room, self.random.randrange(8))):
                packet = bytes(self.random.randrange(1, BUFFER_SIZE))
                self.peer.publish(packet, kick=False, flags=self.random.choice((0, 0, 0, 1)))
        self._kick()

    def _post_again(self, rx: RawRing) -> None:
        """The victim's receive buffers, all that it has used."""
        while rx.head - rx.tail & U16 < _RING_SIZE:
            slot = rx.head & (_RING_SIZE - 1)
            rx.set_descriptor(slot, BUFFER_SIZE, self.buffers[_RING_SIZE + slot])
            rx.head += 1

    def _kick(self) -> None:
        os.set_blocking(self.peer.tx_fd, False)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self.peer.tx_fd, 1)

    # --- what it writes; each returns how often

    def _write(self, at: int, value: int, size: int) -> None:
        self.memory[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")

    def _flip(self, at: int, size: int, choose: Callable[[int], int]) -> int:
        """Lie and tell the truth by turns, faster than it can be looked at twice."""
        truth = int.from_bytes(self.memory[at : at + size], "little")
        lies = [choose(truth) for _ in range(4)]
        turns = self.random.choice((1, 4, 16))
        for turn in range(turns):
            self._write(at, lies[turn & 3], size)
            self._write(at, truth, size)
        return 2 * turns

    def _ring(self) -> RawRing:
        return self.random.choice((self.peer.tx, self.peer.rx))

    def flip_descriptor(self) -> int:
        field, size = self.random.choice(((0, 2), (2, 2), (4, 4), (8, 4), (12, 4)))
        at = self._ring().offset + 128 + 16 * self.random.randrange(_RING_SIZE) + field
        return self._flip(at, size, self._any_u16 if size == 2 else self._any_u32)

    def flip_index(self) -> int:
        by = self.random.choice((1, -1, 2, _RING_SIZE, _RING_SIZE + 1, -_RING_SIZE, 0x8000, self.random.randrange(U16)))
        return self._flip(self._ring().offset + self.random.choice((6, 64)), 2, lambda truth: truth + by)

    def flip_data(self) -> int:
        at = self.random.choice(self.buffers)
        return self._flip(at + self.random.randrange(BUFFER_SIZE - 4), 4, self._any_u32)

    def rewrite_header(self) -> int:
        """What a ring keeps for its peers and we do not need: the cookie, the flags, the reserved bytes."""
        ring = self._ring()
        self._write(ring.offset, self._any_u32(0), 4)
        self._write(ring.offset + 4, self._any_u16(0), 2)
        self._write(ring.offset + self.random.randrange(8, 60), self._any_u32(0), 4)
        self._write(ring.offset + self.random.randrange(66, 124), self._any_u32(0), 4)
        return 4

    def rewrite_descriptor(self) -> int:
        """A lie that stays."""
        ring = self._ring()
        at = ring.offset + 128 + 16 * self.random.randrange(_RING_SIZE)
        self._write(at, self._any_u16(0), 2)
        self._write(at + 2, self.random.choice((0, 0, 0, 1, U16)), 2)
        self._write(at + 4, self._any_u32(0), 4)
        self._write(at + 8, self._any_u32(0), 4)
        return 4

    def rewrite_all(self) -> int:
        """One descriptor in every slot: buffers that overlap, and chains without an end."""
        ring = self._ring()
        flags, offset = self.random.choice((0, 1)), self.random.choice(self.buffers)
        for slot in range(_RING_SIZE):
            ring.set_descriptor(slot, BUFFER_SIZE, offset, flags=flags)
        return _RING_SIZE

    def rewrite_bytes(self) -> int:
        ring = self._ring()
        for _ in range(4):
            self._write(ring.offset + self.random.randrange(128 + 16 * _RING_SIZE), self.random.getrandbits(8), 1)
        return 4

    def meddle_with_kicks(self) -> int:
        """Make the eventfds that we share full, empty, or such that who writes to a full one waits."""
        fd = self.random.choice((self.peer.tx_fd, self.peer.rx_fd))
        os.set_blocking(fd, False)
        with contextlib.suppress(BlockingIOError):
            if self.random.randrange(2):
                os.eventfd_write(fd, _FULL)
            else:
                os.eventfd_read(fd)
        os.set_blocking(fd, bool(self.random.randrange(2)))
        return 2

    def _any_u16(self, truth: int) -> int:
        return self.random.choice((0, 1, 2, 255, 256, 0x8000, U16, truth ^ 1, self.random.randrange(U16)))

    def _any_u32(self, truth: int) -> int:
        size = len(self.memory)
        edges = (0, 1, size - 1, size, size - BUFFER_SIZE, 65536, 65537, 0x80000000, U32, U32 - BUFFER_SIZE + 1)
        near = (truth + 1, truth - 1, self.random.choice(self.buffers), BUFFER_SIZE, BUFFER_SIZE + 1)
        return self.random.choice((*edges, *near, self.random.randrange(size), self.random.getrandbits(32)))


Deed = Callable[[Attacker], int]
_HARMLESS: list[Deed] = [Attacker.rewrite_header, Attacker.flip_data, Attacker.meddle_with_kicks]
_RACES: list[Deed] = [*_HARMLESS, Attacker.flip_descriptor, Attacker.flip_index]
_VANDALISM: list[Deed] = [Attacker.rewrite_descriptor, Attacker.rewrite_all, Attacker.rewrite_bytes]
_MOODS: list[list[Deed]] = [
    _HARMLESS,
    [Attacker.flip_descriptor],
    [Attacker.flip_index],
    _RACES,
    _RACES,
    [*_RACES, *_VANDALISM],
]


def _forget(peer: ScriptedMaster) -> None:
    """What a connection has left with a peer that listens on."""
    if peer.memory is not None:
        peer.memory.close()
        peer.memory = None
    while peer.fds:
        os.close(peer.fds.pop())


# --- the victim -------------------------------------------------------------------------------------------------------


class Victim:
    """An interface that does all that its queues offer, in any order."""

    def __init__(self, runtime: Runtime, path: str, role: RoleName, seed: int) -> None:
        self.random = random.Random(seed)
        self.runtime = runtime
        self.violations: Counter[str] = Counter()
        self.other_ends: Counter[str] = Counter()
        self.connections = self.operations = self.refused = 0
        self._held: list[Burst] = []
        self._memory = memoryview(b"")
        self.interface = runtime.create_interface(
            socket=path,
            role=role,
            log2_ring_size=LOG2_SIZE,
            buffer_size=BUFFER_SIZE,
            on_connect=self._connected,
            on_disconnect=self._disconnected,
            on_interrupt=lambda interface, qid: self._operate(),
        )

    def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            faulthandler.dump_traceback_later(3 * DEADLINE, exit=True)  # nothing may take this long
            self.runtime.poll_event(0 if self.interface.connected else 0.05)
            for _ in range(8):
                with contextlib.suppress(Disconnected):
                    self._operate()
        faulthandler.cancel_dump_traceback_later()

    @property
    def bad(self) -> int:
        """Violations, as the queues have counted them."""
        return sum(counters.bad_descriptors for counters in self._counters())

    @property
    def packets(self) -> int:
        return sum(counters.packets for counters in self._counters())

    def _counters(self) -> list[QueueCounters]:
        interface = self.interface
        return [queue.counters for queue in interface.rx_queues] + [queue.counters for queue in interface.tx_queues]

    def _connected(self, interface: Interface) -> None:
        self.connections += 1
        assert interface.connection is not None
        self._memory = interface.connection.regions[0].memory

    def _disconnected(self, interface: Interface, reason: Disconnected) -> None:
        held, self._held = self._held, []
        for burst in held:
            for view in burst:
                bytes(view)  # a burst that is held stays readable
            burst.close()
        kinds = self.violations if isinstance(reason.__cause__, RingViolation) else self.other_ends
        kinds[re.sub(r"\d+", "N", reason.message)] += 1
        if kinds is self.violations and not _REASON.match(reason.message):
            raise AssertionError(f"a reason that does not say what the peer did: {reason}")
        if interface.role.name == "SLAVE" and self._memory:
            _check_gaps(self._memory)
        self._memory = memoryview(b"")

    # --- what it does with its queues

    def _operate(self) -> None:
        if not self.interface.connected:
            return
        rx, tx = self.interface.rx_queues[0], self.interface.tx_queues[0]
        self.operations += 1
        try:
            self.random.choice(_OPERATIONS)(self, rx, tx)
        except ConfigError:  # a packet longer than all the room that the peer has posted, and the like
            self.refused += 1

    def recv(self, rx: RxQueue, tx: TxQueue) -> None:
        rx.recv(self.random.randrange(1, 20))

    def recv_into(self, rx: RxQueue, tx: TxQueue) -> None:
        rows = self.random.randrange(1, 20)
        width = self.random.choice((1, 60, BUFFER_SIZE, 1000))
        matrix = memoryview(bytearray(rows * width)).cast("B", (rows, width))
        rx.recv_into(matrix, array("H", bytes(2 * rows)))

    def change_and_forward(self, rx: RxQueue, tx: TxQueue) -> None:
        with rx.burst(self.random.randrange(1, 20), split=self.random.random() < 0.2) as burst:
            for index in range(len(burst)):
                burst[index][:] = bytes(len(burst[index]))
                with contextlib.suppress(ConfigError):
                    self.random.choice((burst.set_length, burst.advance))(index, self.random.randrange(-9, BUFFER_SIZE))
                if self.random.random() < 0.1:
                    burst.drop(index)
            for packet in burst.packets():
                bytes(packet)
            tx.forward(burst)

    def relay(self, rx: RxQueue, tx: TxQueue) -> None:
        tx.forward(rx, self.random.randrange(1, 20))

    def relay_for_a_while(self, rx: RxQueue, tx: TxQueue) -> None:
        timeout = self.random.choice((0.0001, 0.001, 0.005))
        tx.forward_from(rx, timeout=timeout, limit=self.random.randrange(1, 20))

    def hold(self, rx: RxQueue, tx: TxQueue) -> None:
        burst = rx.burst(self.random.randrange(1, 6))
        if len(burst):
            self._held.append(burst)

    def let_go(self, rx: RxQueue, tx: TxQueue) -> None:
        while self._held:
            self._held.pop(self.random.randrange(len(self._held))).close()

    def refill(self, rx: RxQueue, tx: TxQueue) -> None:
        rx.refill(self.random.choice((None, 1, 3)))

    def enqueue(self, rx: RxQueue, tx: TxQueue) -> None:
        with rx.burst(4) as burst, tx.enqueue(burst) as swapped:
            tx.transmit(swapped)

    def _packet(self) -> bytes:
        return bytes(self.random.choice((1, 60, BUFFER_SIZE, BUFFER_SIZE + 1, 3 * BUFFER_SIZE)))

    def send(self, rx: RxQueue, tx: TxQueue) -> None:
        tx.send([self._packet() for _ in range(self.random.randrange(1, 20))])

    def send_from(self, rx: RxQueue, tx: TxQueue) -> None:
        matrix = memoryview(bytearray(8 * 100)).cast("B", (8, 100))
        tx.send_from(matrix, array("H", [self.random.randrange(1, 101) for _ in range(8)]))

    def fill_in_place(self, rx: RxQueue, tx: TxQueue) -> None:
        count, size = self.random.randrange(1, 20), self.random.choice((None, 1, 60, 2 * BUFFER_SIZE))
        with tx.alloc(count, size) as burst:
            for view in burst:
                view[:] = bytes(len(view))
            tx.transmit(burst, self.random.choice((None, 1, 2)))
            if len(burst):
                tx.rewind(burst, 0)

    def look(self, rx: RxQueue, tx: TxQueue) -> None:
        self.interface.details()
        rx.pending()
        tx.free()

    def change_mode(self, rx: RxQueue, tx: TxQueue) -> None:
        rx.set_rx_mode(self.random.choice(("interrupt", "polling", "adaptive")))


_OPERATIONS: list[Callable[[Victim, RxQueue, TxQueue], None]] = [
    *3 * [Victim.recv, Victim.recv_into, Victim.change_and_forward, Victim.relay, Victim.send, Victim.fill_in_place],
    *(Victim.send_from, Victim.hold, Victim.let_go, Victim.refill, Victim.enqueue, Victim.look, Victim.change_mode),
    Victim.relay_for_a_while,
]


def _check_gaps(memory: memoryview) -> None:
    """Between a slave's buffers nobody writes: not its peer, which knows that, nor the slave, whatever it is told."""
    layout, stride = plan(1, 1, LOG2_SIZE, BUFFER_SIZE), buffer_stride(BUFFER_SIZE)
    first = layout.rings[0].first_buffer
    for start in range(first, first + 2 * _RING_SIZE * stride, stride):
        gap = memory[start + BUFFER_SIZE : start + stride]
        assert not any(gap), f"written behind the buffer at {start}"


# --- mappings between pages that nobody may touch ---------------------------------------------------------------------

_libc = ctypes.CDLL(None)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_PAGE = mmap.PAGESIZE


class FencedMapping(region._Mapping):
    """A mapping with a page on either side that kills who touches it."""

    #: How many there have been.
    fenced = 0

    def __new__(cls, fd: int, size: int) -> FencedMapping:
        whole = -(-size // _PAGE) * _PAGE
        base = _reserve(whole + 2 * _PAGE)
        _libc.munmap(base + _PAGE, whole)
        while (found := _reserve(whole)) != base + _PAGE:  # plugs the gaps that the system fills first
            pass
        _libc.munmap(found, whole)
        mapping = super().__new__(cls, fd, size)
        assert ctypes.addressof(ctypes.c_char.from_buffer(mapping)) == found
        for fence in (base, found + whole):
            weakref.finalize(mapping, _libc.munmap, fence, _PAGE)
        cls.fenced += 1
        return mapping


def _reserve(size: int) -> int:
    """Addresses that nobody may touch."""
    return int(_libc.mmap(None, size, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0))


# --- both -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def attacked(path: str, role: RoleName, seed: int) -> Iterator[Callable[[], int]]:
    """An attacker on ``path`` for a victim of ``role``; what it yields tells how often it has written."""
    with mmap.mmap(-1, _PAGE) as mutations, beside(Attacker(path, role, seed, mutations).run) as pid:
        yield lambda: int(struct.unpack("<Q", mutations[:8])[0])
        assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None, "the attacker has given up"


def attack(role: RoleName, seconds: float, seed: int) -> dict[str, Any]:
    """Let an interface of ``role`` be attacked; what happened.

    :raises AssertionError: what must not happen.
    """
    setattr(region, "_Mapping", FencedMapping)  # noqa: B010
    path = f"@memifrt-attack-{uuid.uuid4().hex}"
    fds = len(os.listdir("/proc/self/fd"))
    with Runtime("victim", reconnect_interval=0.01) as runtime:
        victim = Victim(runtime, path, role, seed)
        with attacked(path, role, seed) as mutations:
            victim.run(seconds)
            written = mutations()
        wait_until(lambda: not victim.interface.connected, runtime)
        assert victim.bad == victim.violations.total(), f"{victim.bad} counted, {victim.violations} told"
        assert victim.connections > 0, "the peer never came"
        assert FencedMapping.fenced >= victim.connections, "a region lay between no fences"
        victim.interface.delete()
        _check_peace(runtime)
    assert len(os.listdir("/proc/self/fd")) == fds
    return {
        "role": role,
        "ring": __impl__,
        "mutations": written,
        "connections": victim.connections,
        "fenced": FencedMapping.fenced,
        "operations": victim.operations,
        "packets": victim.packets,
        "refused": victim.refused,
        "violations": victim.violations.total(),
        "kinds": dict(victim.violations.most_common()),
        "other ends": dict(victim.other_ends.most_common()),
    }


def _check_peace(runtime: Runtime) -> None:
    """The same runtime serves an honest peer."""
    with Runtime("honest peer", reconnect_interval=0.01) as other:
        pair = connect(runtime, other, f"@memifrt-attack-{uuid.uuid4().hex}")
        assert pair.master.tx_queues[0].send([b"packet"]) == 1
        pair.wait(lambda: pair.slave.rx_queues[0].recv() == [b"packet"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.lib.attack", description=__doc__)
    parser.add_argument("--role", choices=("master", "slave"), required=True, help="the victim's")
    parser.add_argument("--ring", choices=("native", "python"), default="native")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    if __impl__ != arguments.ring:  # the implementation is chosen at import
        environment = {**os.environ, "MEMIFRT_RING": arguments.ring}
        os.execve(sys.executable, [sys.executable, "-m", "tests.lib.attack", *sys.argv[1:]], environment)
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    print(f"a {arguments.role} on {arguments.ring} rings under attack, seed {seed}", flush=True)
    faulthandler.enable()
    started = time.monotonic()
    report = attack(arguments.role, arguments.seconds, seed)
    print(
        f"{time.monotonic() - started:.0f} s:",
        *(f"{key} {value:,}" for key, value in report.items() if type(value) is int),
        sep="\n  ",
    )
    for title in ("kinds", "other ends"):
        print(f"{title}:", *(f"{count:8,}  {reason}" for reason, count in report[title].items()), sep="\n  ")


if __name__ == "__main__":
    main()
