"""A peer on a raw socket that a test drives step by step, as master or as slave.

Owns its own socket, memory, eventfds and rings; it can leave steps out, lie, or close. Nothing in it is checked.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from memifrt import Runtime
from memifrt.control.wire import (
    Ack,
    AddRegion,
    AddRing,
    Connect,
    Connected,
    Disconnect,
    Hello,
    Init,
    Message,
    decode,
    encode,
)
from memifrt.system.original_functions import close
from memifrt.system.original_functions import socket as unpatched_socket
from memifrt.types import COOKIE, VERSION
from tests.lib.support import DEADLINE, Pair, wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

_M = TypeVar("_M", Ack, AddRegion, AddRing, Connect, Connected, Disconnect, Hello, Init)

#: The default shape of a scripted slave's memory.
LOG2_SIZE = 4
BUFFER_SIZE = 256


class PeerClosed(Exception):
    """The runtime has closed its end of the channel."""


class RawRing:
    """One ring as bytes in shared memory (docs/protocol.md, Shared memory)."""

    def __init__(self, memory: mmap.mmap, offset: int, log2_size: int) -> None:
        self.memory = memory
        self.offset = offset
        self.size = 1 << log2_size

    def _get(self, at: int) -> int:
        return int(struct.unpack_from("<H", self.memory, self.offset + at)[0])

    def _set(self, at: int, value: int) -> None:
        # In one piece: struct.pack_into would write zeros first, for the other side to see.
        self.memory[self.offset + at : self.offset + at + 2] = (value & 0xFFFF).to_bytes(2, "little")

    @property
    def flags(self) -> int:
        return self._get(4)

    @flags.setter
    def flags(self, value: int) -> None:
        self._set(4, value)

    @property
    def head(self) -> int:
        return self._get(6)

    @head.setter
    def head(self, value: int) -> None:
        self._set(6, value)

    @property
    def tail(self) -> int:
        return self._get(64)

    @tail.setter
    def tail(self, value: int) -> None:
        self._set(64, value)

    def write_cookie(self, cookie: int = COOKIE) -> None:
        struct.pack_into("<I", self.memory, self.offset, cookie)

    def descriptor(self, index: int) -> tuple[int, int, int, int]:
        """``flags, region, length, offset`` of a slot."""
        flags, region, length, offset = struct.unpack_from("<HHII", self.memory, self._at(index))
        return flags, region, length, offset

    def set_descriptor(self, index: int, length: int, offset: int, *, flags: int = 0, region: int = 0) -> None:
        struct.pack_into("<HHIII", self.memory, self._at(index), flags, region, length, offset, 0)

    def _at(self, index: int) -> int:
        return self.offset + 128 + (index & (self.size - 1)) * 16


class Peer:
    """One end of a control channel. While it waits it lets the given runtimes handle their events.

    ``tx`` carries packets to the runtime, ``rx`` the other way; ``tx_fd`` and ``rx_fd`` are their eventfds.
    """

    def __init__(self, *runtimes: Runtime) -> None:
        self.runtimes = runtimes
        self.socket = unpatched_socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(DEADLINE)
        #: Every fd that this peer made or was sent, closed with it.
        self.fds: list[int] = []
        self.memory: mmap.mmap | None = None
        self.tx: RawRing
        self.rx: RawRing
        self.tx_fd = self.rx_fd = -1

    # --- the channel --------------------------------------------------------------------------------------------

    def send(self, message: Message | bytes, *fds: int) -> None:
        data = message if isinstance(message, bytes) else encode(message)
        socket.send_fds(self.socket, [data], list(fds))

    def receive(self) -> Message:
        """The next message; fds that come with it are put into ``fds``.

        :raises PeerClosed: there is none, and none will come.
        """
        if self.runtimes:
            wait_until(lambda: select.select([self.socket], [], [], 0)[0], *self.runtimes)
        try:
            data, fds, _, _ = socket.recv_fds(self.socket, 256, 4)
        except ConnectionResetError:  # the other end closed with our messages unread; its own may still be here
            return self.receive()
        self.fds += fds
        if not data:
            raise PeerClosed
        return decode(data)

    def expect(self, kind: type[_M]) -> _M:
        message = self.receive()
        assert isinstance(message, kind), f"{message!r} where {kind.__name__} was due"
        return message

    def reason(self) -> str:
        """What the DISCONNECT says that must come next, followed by the close of the channel."""
        reason = self.expect(Disconnect).reason
        with contextlib.suppress(PeerClosed):
            raise AssertionError(f"{self.receive()!r} after the DISCONNECT")
        return reason

    def wait(self, predicate: Callable[[], object]) -> None:
        wait_until(predicate, *self.runtimes)

    # --- packets ------------------------------------------------------------------------------------------------

    def kick(self) -> None:
        os.eventfd_write(self.tx_fd, 1)

    def eventfd(self) -> int:
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.fds.append(fd)
        return fd

    # --- the end ------------------------------------------------------------------------------------------------

    #: Ways to stop at any step. By "silence" the peer goes on living and says nothing more.
    ENDINGS = ("silence", "close", "goodbye", "lie", "noise")
    GOODBYE = "a scripted goodbye"
    #: A message that this side may never send.
    LIE: Message

    def end(self, how: str) -> None:
        """Stop in one of the ``ENDINGS``; ``kill -9`` is what happens to a child that runs this peer."""
        match how:
            case "silence":
                pass
            case "close":
                self.hang_up()
            case "goodbye":
                self.send(Disconnect(0, self.GOODBYE))
                self.hang_up()
            case "lie":
                self.send(self.LIE)
            case "noise":
                self.send(b"\xff" * 77)
            case _:
                raise AssertionError(how)

    def hang_up(self) -> None:
        """Close the channel alone."""
        self.socket.close()

    def close(self) -> None:
        self.socket.close()
        if self.memory is not None:
            self.memory.close()
        fds, self.fds = self.fds, []
        for fd in fds:
            close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ScriptedSlave(Peer):
    """Connects to a master of the runtimes, with one region: the S2M rings, the M2S rings, the buffers of each.

    ``run(until=step)`` takes all steps before ``step``, each with its answer.
    """

    LIE = Ack()
    #: What a slave says, in order; "hello" is what it waits for first.
    STEPS: tuple[str, ...] = ("hello", "init", "region", "s2m", "m2s", "connect")

    def __init__(self, path: str, *runtimes: Runtime, interface_id: int = 0, sealed: bool = True) -> None:
        super().__init__(*runtimes)
        self.id = interface_id
        ring_bytes = 128 + (16 << LOG2_SIZE)
        self.offsets = (0, ring_bytes)
        self.region_size = 4096 + 2 * (BUFFER_SIZE << LOG2_SIZE)
        self.memory_fd = memory_file(self.region_size, sealed=sealed)
        self.fds.append(self.memory_fd)
        self.memory = mmap.mmap(self.memory_fd, self.region_size)
        self.tx, self.rx = (RawRing(self.memory, offset, LOG2_SIZE) for offset in self.offsets)
        for ring in (self.tx, self.rx):
            ring.write_cookie()
        self.tx_fd, self.rx_fd = self.eventfd(), self.eventfd()
        try:
            self.socket.connect(native(path))
        except OSError:
            self.close()
            raise

    def init(self, *, version: int = VERSION, mode: int = 0, secret: bytes = b"") -> None:
        self.send(Init(version, self.id, mode, secret, "scripted slave"))

    def region(self, index: int = 0) -> None:
        self.send(AddRegion(index, self.region_size), self.memory_fd)

    def s2m(self, index: int = 0) -> None:
        self.send(AddRing(True, index, 0, self.offsets[0], LOG2_SIZE), self.tx_fd)

    def m2s(self, index: int = 0) -> None:
        self.send(AddRing(False, index, 0, self.offsets[1], LOG2_SIZE), self.rx_fd)

    def connect(self) -> None:
        self.send(Connect("scripted if"))

    def say(self, step: str) -> None:
        """Take a step without waiting for its answer."""
        if step != "hello":
            getattr(self, step)()

    def answer(self, step: str) -> None:
        """Wait for the answer to a step."""
        match step:
            case "hello":
                self.expect(Hello)
            case "connect":
                self.expect(Connected)
            case _:
                self.expect(Ack)

    def run(self, until: str | None = None) -> Self:
        for step in self.STEPS:
            if step == until:
                break
            self.say(step)
            self.answer(step)
        return self

    def post(self) -> None:
        """Offer an empty buffer in every slot of the M2S ring."""
        start = 4096 + (BUFFER_SIZE << LOG2_SIZE)
        for slot in range(self.rx.size):
            self.rx.set_descriptor(slot, BUFFER_SIZE, start + slot * BUFFER_SIZE)
        self.rx.head = self.rx.size

    def publish(self, *packets: bytes, kick: bool = True, flags: int = 0) -> None:
        """Put packets on the S2M ring."""
        assert self.memory is not None
        for packet in packets:
            slot = self.tx.head & (self.tx.size - 1)
            offset = 4096 + slot * BUFFER_SIZE
            self.memory[offset : offset + len(packet)] = packet
            self.tx.set_descriptor(slot, len(packet), offset, flags=flags)
            self.tx.head += 1
        if kick:
            self.kick()


class ScriptedMaster(Peer):
    """Listens for a slave of the runtimes, which must be created afterwards or retry.

    ``run(until=step)`` gives all answers before the one to ``step``.
    """

    LIE = Init(VERSION, 0, 0, b"", "a scripted lie")
    #: What a master answers to, in order; "accept" is the connection itself.
    STEPS = ("accept", "init", "region", "s2m", "m2s", "connect")

    def __init__(self, path: str, *runtimes: Runtime) -> None:
        super().__init__(*runtimes)
        self.path = path
        self.listener = unpatched_socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.settimeout(DEADLINE)
        self.listener.bind(native(path))
        self.listener.listen()
        self.regions: list[tuple[int, int]] = []
        self.asked = Init(0, 0, 0, b"", "")

    def accept(self) -> None:
        if self.runtimes:
            wait_until(lambda: select.select([self.listener], [], [], 0)[0], *self.runtimes)
        self.socket.close()
        self.socket, _ = self.listener.accept()
        self.socket.settimeout(DEADLINE)

    def hear(self, step: str) -> None:
        """Wait for what the slave says in a step."""
        match step:
            case "accept":
                self.accept()
            case "init":
                self.asked = self.expect(Init)
            case "region":
                region = self.expect(AddRegion)
                self.memory = mmap.mmap(self.fds[-1], region.size)
            case "s2m" | "m2s":
                ring = self.expect(AddRing)
                assert ring.s2m == (step == "s2m")
                assert self.memory is not None
                raw = RawRing(self.memory, ring.offset, ring.log2_ring_size)
                if ring.s2m:
                    self.rx, self.rx_fd = raw, self.fds[-1]
                else:
                    self.tx, self.tx_fd = raw, self.fds[-1]
            case "connect":
                self.expect(Connect)

    def answer(self, step: str) -> None:
        match step:
            case "accept":
                self.send(Hello("scripted master"))
            case "connect":
                self.send(Connected("scripted if"))
            case _:
                self.send(Ack())

    def run(self, until: str | None = None) -> Self:
        for step in self.STEPS:
            self.hear(step)
            if step == until:
                break
            self.answer(step)
        return self

    def publish(self, *packets: bytes, kick: bool = True, flags: int = 0) -> None:
        """Put packets into posted buffers of the M2S ring."""
        assert self.memory is not None
        for packet in packets:
            slot = self.tx.tail & (self.tx.size - 1)
            _, region, _, offset = self.tx.descriptor(slot)
            self.memory[offset : offset + len(packet)] = packet
            self.tx.set_descriptor(slot, len(packet), offset, flags=flags, region=region)
            self.tx.tail += 1
        if kick:
            self.kick()

    def close(self) -> None:
        self.listener.close()
        if not self.path.startswith("@"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
        super().close()


def native(path: str) -> str:
    """A path as the kernel takes it."""
    return "\0" + path[1:] if path.startswith("@") else path


def memory_file(size: int, *, sealed: bool = True) -> int:
    """A memfd, sealed against shrinking, or one that nobody can seal; the caller closes it."""
    flags = os.MFD_CLOEXEC | (os.MFD_ALLOW_SEALING if sealed else 0)
    fd = os.memfd_create("memif region of a scripted peer", flags)
    os.ftruncate(fd, size)
    if sealed:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


def scripted_peer(role: str, path: str, *runtimes: Runtime) -> ScriptedMaster | ScriptedSlave:
    """The peer for an interface of ``role``: a slave for a master, which must listen already, or a master."""
    return ScriptedSlave(path, *runtimes) if role == "master" else ScriptedMaster(path, *runtimes)


def assert_packets_pass(pair: Pair, qid: int = 0) -> None:
    """One packet each way. Earlier ones may still be in the rings."""
    for sender, receiver in ((pair.master, pair.slave), (pair.slave, pair.master)):
        packet = f"from the {sender.role.name} through queue {qid}".encode()
        assert sender.tx_queues[qid].send([packet]) == 1
        assert receiver.rx_queues[qid].recv()[-1] == packet


# --- peers with VPP's habits ----------------------------------------------------------------------------------------

#: Packets that VPP takes for one kick in interrupt and adaptive mode; it does not look again before the next.
VPP_FRAME = 256
#: Receive buffers that a zero-copy slave offers at a time, and never fewer.
VPP_BATCH = 32
_VPP_LOG2_SIZE = 10
_VPP_POOL = 64 << 20


class VppHabits:
    """Take at most so many packets for one kick, and look at nothing without one."""

    rx: RawRing
    rx_fd: int
    #: Packets that one kick is good for.
    frame = VPP_FRAME

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        #: The next descriptor to take, and how many packets were taken.
        self.last = 0
        self.taken = 0
        #: Kicks that were read.
        self.kicks = 0

    def on_kick(self) -> bool:
        """Read the eventfd, and take a frame if there was a kick; whether there was one."""
        try:
            os.eventfd_read(self.rx_fd)
        except BlockingIOError:
            return False
        self.kicks += 1
        count = min((self._filled() - self.last) & 0xFFFF, self.frame)
        self.last = (self.last + count) & 0xFFFF
        self.taken += count
        self._give_back()
        return True

    def _filled(self) -> int:
        """The index up to which there are packets."""
        raise NotImplementedError

    def _give_back(self) -> None:
        raise NotImplementedError


class VppMaster(VppHabits, ScriptedMaster):
    """A VPP master: gives buffers back at once."""

    def hear(self, step: str) -> None:
        super().hear(step)
        if step in ("s2m", "m2s"):
            os.set_blocking(self.fds[-1], False)

    def _filled(self) -> int:
        return self.rx.head

    def _give_back(self) -> None:
        self.rx.tail = self.last


class VppSlave(VppHabits, ScriptedSlave):
    """A VPP slave with zero copy, its default: two regions, the second of 64 MiB, and buffers that come late and in
    batches of 32."""

    STEPS = ("hello", "init", "region", "pool", "s2m", "m2s", "connect")
    #: Buffers that are offered at a time.
    batch = VPP_BATCH

    def __init__(self, path: str, *runtimes: Runtime, log2_size: int = _VPP_LOG2_SIZE) -> None:
        super().__init__(path, *runtimes)
        assert self.memory is not None
        self.memory.close()
        self.log2_size = log2_size
        ring_bytes = 128 + (16 << log2_size)
        self.offsets = (0, ring_bytes)
        self.region_size = (2 * ring_bytes + 4095) & ~4095
        self.memory_fd, self.pool_fd = memory_file(self.region_size), memory_file(_VPP_POOL)
        self.fds += [self.memory_fd, self.pool_fd]
        self.memory = mmap.mmap(self.memory_fd, self.region_size)
        self.tx, self.rx = (RawRing(self.memory, offset, log2_size) for offset in self.offsets)
        for ring in (self.tx, self.rx):
            ring.write_cookie()

    def pool(self) -> None:
        self.send(AddRegion(1, _VPP_POOL), self.pool_fd)

    def s2m(self, index: int = 0) -> None:
        self.send(AddRing(True, index, 0, self.offsets[0], self.log2_size), self.tx_fd)

    def m2s(self, index: int = 0) -> None:
        self.send(AddRing(False, index, 0, self.offsets[1], self.log2_size), self.rx_fd)

    def post(self) -> None:
        """Offer buffers for all slots that have none: what VPP does once its interface is up."""
        self._give_back()

    def _filled(self) -> int:
        return self.rx.tail

    def _give_back(self) -> None:
        missing = self.rx.size - ((self.rx.head - self.last) & 0xFFFF)
        missing -= missing % self.batch
        for index in range(self.rx.head, self.rx.head + missing):
            self.rx.set_descriptor(index, 2048, (index & 0x7FFF) * 2048, region=1)
        self.rx.head += missing


def vpp_peer(role: str, path: str, *runtimes: Runtime) -> VppMaster | VppSlave:
    """The peer with VPP's habits for an interface of ``role``; as :func:`scripted_peer`."""
    return VppSlave(path, *runtimes) if role == "master" else VppMaster(path, *runtimes)
