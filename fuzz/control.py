"""Hostile peers on the control channel: whole conversations with a real runtime, over real sockets.

Owns both roles of the peer and what must hold after each conversation. A conversation follows the protocol but for what
its script says: messages that are changed, left out, doubled, cut or made up, with fds of every kind or none, closed at
any point; and once connected, rings and eventfds that lie.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import re
import socket
import struct
import tempfile
import uuid
from collections.abc import Callable
from typing import ClassVar

from fuzz.leaks import Held, lowest_free_fd, wait_for
from fuzz.script import Script
from memifrt import ConfigError, Disconnected, Interface, Runtime, State
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
from memifrt.options import RoleName
from memifrt.types import COOKIE, Role, RxMode
from tests.lib.peer import RawRing, memory_file, native
from tests.lib.support import connect

LOG2_SIZE = 4
BUFFER_SIZE = 256
_RING_BYTES = 128 + (16 << LOG2_SIZE)
_REGION_SIZE = 4096 + 2 * (BUFFER_SIZE << LOG2_SIZE)
#: The interfaces of the runtime under attack, by id: open, with a secret, and in the other role.
_OPEN, _SECRET, _OTHER_ROLE = 0, 1, 2
_SECRET_WORD = b"the secret"
#: Conversations between two full looks for leaks; a quick look follows each.
_CHECK_EVERY = 512
_SAMPLES: tuple[Message, ...] = (
    Ack(),
    Hello("x"),
    Init(0x0200, _OPEN, 0, b"", "x"),
    AddRegion(0, _REGION_SIZE),
    AddRing(True, 0, 0, 0, LOG2_SIZE),
    AddRing(False, 0, 0, _RING_BYTES, LOG2_SIZE),
    Connect("x"),
    Connected("x"),
    Disconnect(0, "x"),
)


class Gone(Exception):
    """The script has closed the channel, or the runtime has."""


class Provoked(Exception):
    """What a callback raises because the script says so."""


class Fds:
    """Fds of every kind that a peer may send; made once."""

    def __init__(self) -> None:
        memory, unwritable = memory_file(_REGION_SIZE), memory_file(_REGION_SIZE)
        fcntl.fcntl(unwritable, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        file, path = tempfile.mkstemp()
        os.ftruncate(file, _REGION_SIZE)
        os.unlink(path)
        self.memory = memory
        self.all = [
            memory,
            memory_file(_REGION_SIZE, sealed=False),
            memory_file(4096),
            memory_file(0),
            unwritable,
            os.open(f"/proc/self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC),
            os.open(f"/proc/self/fd/{memory}", os.O_PATH | os.O_CLOEXEC),
            os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC),
            os.eventfd(5, os.EFD_CLOEXEC | os.EFD_SEMAPHORE),
            *os.pipe(),
            *(end.detach() for end in ends),
            os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC),
            os.open("/dev/zero", os.O_RDWR | os.O_CLOEXEC),
            os.open("/", os.O_RDONLY | os.O_CLOEXEC),
            file,
            os.pidfd_open(os.getpid()),
        ]

    def close(self) -> None:
        for fd in self.all:
            os.close(fd)


class Attacker:
    """One peer in one conversation."""

    def __init__(self, target: ControlTarget, script: Script) -> None:
        self.target = target
        self.script = script
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        #: Messages of the runtime's, as they came.
        self.heard: list[Message] = []
        self.fds: list[int] = []
        self.memory: mmap.mmap | None = None
        self.tx: RawRing | None = None
        self.rx: RawRing | None = None
        self.tx_fd = self.rx_fd = -1

    def run(self) -> None:
        """The whole conversation."""
        raise NotImplementedError

    # --- talking ------------------------------------------------------------------------------------------------

    def say(self, message: Message, fd: int = -1) -> None:
        """Send what is due, or what the script makes of it, and let the runtime answer.

        :raises Gone: the conversation is over.
        """
        script = self.script
        choice = script.byte()
        data = encode(message)
        fds = self._fds(fd)
        if choice < 144:
            self._send(data, fds)
        else:
            _LIES[choice % len(_LIES)](self, data, fds)
        if not script.rarely():
            self.listen()

    def _fds(self, due: int) -> list[int]:
        choice = self.script.byte()
        if choice < 208:
            return [due] if due >= 0 else []
        kinds = self.target.fds.all
        if choice < 240:
            return [self.script.pick(kinds)]
        return [self.script.pick(kinds) for _ in range(choice - 240 - 8 * (choice >= 248))]

    def _send(self, data: bytes, fds: list[int]) -> None:
        try:
            socket.send_fds(self.socket, [data], fds)
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ETOOMANYREFS):
                raise
            raise Gone from error

    def listen(self) -> None:
        """Let the runtime handle what has come, and hear what it says.

        :raises Gone: it has closed the channel.
        """
        self.target.poll()
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.socket, 256, 4, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ECONNRESET:
                    continue
                raise Gone from error
            self.fds += fds
            if not data:
                raise Gone
            assert len(data) == 128, f"the runtime sent a message of {len(data)} bytes"
            self.heard.append(decode(data))

    # --- lies ---------------------------------------------------------------------------------------------------

    def _change_bytes(self, data: bytes, fds: list[int]) -> None:
        changed = bytearray(data)
        for _ in range(1 + self.script.below(4)):
            changed[self.script.below(128)] = self.script.byte()
        self._send(bytes(changed), fds)

    def _change_number(self, data: bytes, fds: list[int]) -> None:
        changed = bytearray(data)
        size = self.script.pick((1, 2, 4, 8))
        at = self.script.below(40)
        changed[at : at + size] = self.script.edge(size).to_bytes(size, "little")
        self._send(bytes(changed), fds)

    def _change_length(self, data: bytes, fds: list[int]) -> None:
        length = self.script.byte()
        self._send((data * 2)[:length], fds)

    def _say_something_else(self, data: bytes, fds: list[int]) -> None:
        self._send(encode(self.script.pick(_SAMPLES)), fds)

    def _say_nonsense(self, data: bytes, fds: list[int]) -> None:
        self._send(self.script.take(self.script.byte()), fds)

    def _say_nothing(self, data: bytes, fds: list[int]) -> None:
        pass

    def _say_it_twice(self, data: bytes, fds: list[int]) -> None:
        self._send(data, fds)
        self._send(data, fds)

    def _say_it_often(self, data: bytes, fds: list[int]) -> None:
        for _ in range(self.script.below(40)):
            self._send(data, fds)

    def _close(self, data: bytes, fds: list[int]) -> None:
        if self.script.rarely():
            self._send(data, fds)
        raise Gone

    def _shut_down(self, data: bytes, fds: list[int]) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(self.script.pick((socket.SHUT_WR, socket.SHUT_RD, socket.SHUT_RDWR)))

    def _disconnect(self, data: bytes, fds: list[int]) -> None:
        self._send(encode(Disconnect(0, "")).replace(b"\0" * 96, self.script.take(96).ljust(96, b"\xff")), fds)

    # --- memory -------------------------------------------------------------------------------------------------

    def traffic(self) -> None:
        """Use the rings, well or badly, for as long as the script has something to say."""
        steps = 1 + self.script.below(24)
        for _ in range(steps):
            _MEMORY[self.script.below(len(_MEMORY))](self)
            if not self.script.rarely():
                self.listen()
            if self.script.over:
                break

    def _publish(self) -> None:
        """Send a packet, as the role does it."""
        raise NotImplementedError

    def _publish_and_kick(self) -> None:
        self._publish()
        self._kick()

    def _kick(self) -> None:
        if self.tx_fd >= 0:
            os.set_blocking(self.tx_fd, False)  # not for our own write
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(self.tx_fd, 1)

    def _fill_eventfds(self) -> None:
        """To the brim, and blocking: whoever reads or writes without care waits for ever."""
        for fd in (self.tx_fd, self.rx_fd):
            if fd >= 0:
                os.set_blocking(fd, False)
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_write(fd, 0xFFFFFFFFFFFFFFFE)
                os.set_blocking(fd, self.script.byte() < 128)

    def _poke_index(self) -> None:
        for ring in self.script.pick(((self.tx,), (self.rx,), (self.tx, self.rx))):
            if ring is not None:
                at = ring.offset + self.script.pick((6, 64, 4, 0))
                struct.pack_into("<H", ring.memory, at, self.script.edge(2))

    def _move_index(self) -> None:
        for ring in (self.tx, self.rx):
            if ring is not None:
                ring.head += self.script.below(20)
                ring.tail += self.script.below(20)

    def _poke_descriptor(self) -> None:
        ring = self.script.pick((self.tx, self.rx))
        if ring is not None:
            at = ring.offset + 128 + self.script.below(ring.size) * 16 + self.script.pick((0, 2, 4, 8))
            struct.pack_into("<I", ring.memory, at, self.script.edge(4))

    def _take_the_memory_away(self) -> None:
        self._truncate()

    def _truncate(self) -> None:
        """While the runtime uses it. From then on a look at our own mapping would kill us."""
        raise NotImplementedError

    def _let_it_send(self) -> None:
        interface = self.target.interface
        if interface.connected:
            for queue in interface.tx_queues:
                # A slave may post buffers so small that no packet fits: the documented error.
                with contextlib.suppress(Disconnected, ConfigError):
                    queue.send([b"packet" * (1 + self.script.byte())] * (1 + self.script.below(20)))

    def _let_it_receive(self) -> None:
        interface = self.target.interface
        if interface.connected:
            for queue in interface.rx_queues:
                with contextlib.suppress(Disconnected):
                    queue.recv(1 + self.script.below(20))

    # --- the end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        self.socket.close()
        if self.memory is not None:
            self.memory.close()
        for fd in self.fds:
            os.close(fd)


_LIES: tuple[Callable[[Attacker, bytes, list[int]], None], ...] = (
    Attacker._change_bytes,
    Attacker._change_number,
    Attacker._change_number,
    Attacker._change_number,
    Attacker._change_length,
    Attacker._say_something_else,
    Attacker._say_nonsense,
    Attacker._say_nothing,
    Attacker._say_it_twice,
    Attacker._say_it_often,
    Attacker._close,
    Attacker._shut_down,
    Attacker._disconnect,
)

_MEMORY: tuple[Callable[[Attacker], None], ...] = (
    Attacker._publish_and_kick,
    Attacker._publish_and_kick,
    Attacker._let_it_send,
    Attacker._let_it_receive,
    Attacker._poke_index,
    Attacker._move_index,
    Attacker._poke_descriptor,
    Attacker._kick,
    Attacker._fill_eventfds,
    Attacker._take_the_memory_away,
)


class HostileSlave(Attacker):
    """Connects to the runtime's master. Its memory is sealed, or its own to truncate."""

    def run(self) -> None:
        script = self.script
        self.memory_fd = self.target.fds.memory
        self.can_truncate = script.rarely()
        if self.can_truncate:
            self.memory_fd = memory_file(_REGION_SIZE, sealed=False)
            self.fds.append(self.memory_fd)
        self.socket.connect(native(self.target.path))
        self.listen()
        wanted = script.pick((_OPEN, _OPEN, _OPEN, _SECRET, _OTHER_ROLE))
        self.say(Init(0x0200, wanted, 0, _SECRET_WORD if wanted == _SECRET else b"", "hostile slave"))
        if script.rarely():
            self.say(script.pick(_SAMPLES), self.target.fds.memory)
        for index in range(1 + (script.below(3) if script.rarely() else 0)):
            self.say(AddRegion(index, _REGION_SIZE), self.memory_fd)
        self._make_rings()
        queues = 1 + (script.below(3) if script.rarely() else 0)
        for s2m in (True, False):
            for index in range(queues):
                offset = 0 if s2m else _RING_BYTES
                self.say(AddRing(s2m, index, 0, offset, LOG2_SIZE), self.tx_fd if s2m else self.rx_fd)
        self.say(Connect("hostile"))
        self.traffic()
        for _ in range(script.below(4)):
            self.say(script.pick(_SAMPLES), self.target.fds.memory)

    def _make_rings(self) -> None:
        self.memory = mmap.mmap(self.memory_fd, _REGION_SIZE)
        self.memory[: 2 * _RING_BYTES] = bytes(2 * _RING_BYTES)
        self.tx, self.rx = (RawRing(self.memory, offset, LOG2_SIZE) for offset in (0, _RING_BYTES))
        for number, ring in enumerate((self.tx, self.rx)):
            ring.write_cookie(COOKIE if not self.script.rarely() else self.script.edge(4))
            start = 4096 + (number * BUFFER_SIZE << LOG2_SIZE)
            for slot in range(ring.size):
                ring.set_descriptor(slot, BUFFER_SIZE, start + slot * BUFFER_SIZE)
        for _ in range(2):
            self.fds.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        self.tx_fd, self.rx_fd = self.fds[-2:]

    def _truncate(self) -> None:
        if self.can_truncate and self.memory is not None and not self.memory.closed:
            self.tx = self.rx = None
            self.memory.close()
            os.ftruncate(self.memory_fd, self.script.pick((0, 4096, 8192)))

    def _publish(self) -> None:
        if self.tx is None or self.rx is None:
            return
        self.tx.head += 1 + self.script.below(4)
        self.rx.head = self.rx.tail + self.rx.size


class HostileMaster(Attacker):
    """Listens for the runtime's slave."""

    def run(self) -> None:
        script = self.script
        slave = self.target.interface
        with contextlib.suppress(Provoked):
            slave.request_connection()
        self.socket.close()
        self.socket = self.target.accept()
        self.say(self._hello())
        for _ in range(1 + 1 + 2 * max(slave.config.num_s2m_rings, 1)):  # INIT, the region, the rings
            self.say(Ack())
        self.say(Connected("hostile"))
        self._find_rings()
        self.traffic()
        for _ in range(script.below(4)):
            self.say(script.pick(_SAMPLES), self.target.fds.memory)

    def _hello(self) -> Hello:
        """One within the protocol: limits of a master's own are its right."""
        script = self.script
        if not script.rarely():
            return Hello("hostile master")
        return Hello("hostile master", max_region=script.byte(), max_m2s_ring=0, max_s2m_ring=0, max_log2_ring_size=3)

    def _find_rings(self) -> None:
        """Map the region that the slave has sent, and look where its rings are."""
        rings = [message for message in self.heard if isinstance(message, AddRing)]
        regions = [message for message in self.heard if isinstance(message, AddRegion)]
        if not regions or len(self.fds) < 3:
            return
        self.memory = mmap.mmap(self.fds[0], regions[0].size)
        for ring, fd in zip(rings, self.fds[1:], strict=False):
            raw = RawRing(self.memory, ring.offset, ring.log2_ring_size)
            if ring.s2m:
                self.rx, self.rx_fd = raw, fd
            else:
                self.tx, self.tx_fd = raw, fd

    def _truncate(self) -> None:
        """A slave's memory is sealed: nobody can."""
        if self.memory is not None:
            with contextlib.suppress(PermissionError):
                os.ftruncate(self.fds[0], self.script.pick((0, 4096)))
                raise AssertionError("the slave's memory could be truncated")

    def _publish(self) -> None:
        if self.tx is not None:
            count = min(1 + self.script.below(4), (self.tx.head - self.tx.tail) & 0xFFFF)
            self.tx.tail += count


class ControlTarget:
    """A runtime, and one hostile conversation with it for each input.

    A pair of its own passes packets all the while: nobody else is to notice what happens to the interface under attack.
    """

    attackers: ClassVar[dict[Role, type[Attacker]]] = {Role.MASTER: HostileSlave, Role.SLAVE: HostileMaster}

    def __init__(self, role: Role) -> None:
        self.role = role
        self.inputs = 0
        self.established = 0
        #: What ended the conversations, numbers left out.
        self.reasons: dict[str, int] = {}
        self.path = f"@memifrt-fuzz-{uuid.uuid4().hex}"
        self.fds = Fds()
        self.runtime = Runtime("victim", reconnect_interval=0)
        # Small rings: the pages of larger ones would become resident one by one, and look like a leak.
        small = {"log2_ring_size": LOG2_SIZE, "buffer_size": BUFFER_SIZE}
        self._witness = connect(self.runtime, self.runtime, f"{self.path}-witness", **small)
        self._listener: socket.socket | None = None
        if role is Role.SLAVE:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._connected = 0
        self._reasons: list[Disconnected] = []
        self._set_up()
        self.interface = self._create()
        self._look_around()

    def _set_up(self) -> None:
        """Interfaces beside the one under attack, or the listener that attacks it."""
        if self._listener is not None:
            self._listener.bind(native(self.path))
            self._listener.listen()
        else:
            self.runtime.create_interface(socket=self.path, id=_SECRET, role="master", secret=_SECRET_WORD)
            self.runtime.create_interface(socket=self.path, id=_OTHER_ROLE, role="slave")
            while self.runtime.poll_event(0):  # it has asked our own master for an id that is not there
                pass

    def _create(self) -> Interface:
        """The interface under attack."""
        self._script = Script(b"")
        made = self.runtime.create_interface(
            socket=self.path,
            id=_OPEN,
            role=self.role,
            log2_ring_size=LOG2_SIZE,
            buffer_size=BUFFER_SIZE,
            on_connect=self._on_connect,
            on_disconnect=self._on_disconnect,
            on_interrupt=self._on_interrupt,
        )
        if self.role is Role.SLAVE:  # it has connected at once, and is to connect when an attacker asks it to
            made.disconnect()
            self.accept().close()
        self._reasons.clear()
        return made

    def poll(self) -> int:
        """Let the runtime handle what is ready; what a callback raises comes out of it."""
        try:
            return self.runtime.poll_event(0)
        except Provoked:
            return 1

    def _look_around(self) -> None:
        """What is held before there is a peer."""
        self._watched = len(self.runtime._registry)
        self._held = Held.now()
        self._lowest_free = lowest_free_fd()

    def accept(self) -> socket.socket:
        assert self._listener is not None
        sock, _ = self._listener.accept()
        sock.setblocking(False)
        return sock

    def __call__(self, data: bytes) -> None:
        """One conversation, and what must hold after it.

        :raises AssertionError: it does not hold.
        """
        if not self.inputs:  # the engine may have opened files of its own since
            self._look_around()
        self._script = Script(data)
        attacker = self.attackers[self.role](self, self._script)
        try:
            with contextlib.suppress(Gone):
                attacker.run()
        finally:
            attacker.close()
        self.inputs += 1
        self._settle()
        self._check_callbacks()
        if self.interface.deleted:  # by a callback
            self.interface = self._create()
        if self.inputs % _CHECK_EVERY == 0:
            self.check()

    def _settle(self) -> None:
        """The peer is gone: the runtime notices, and clears up. (Another master keeps the listener.)"""
        for _ in range(50):
            if not self.poll():
                break
        else:
            raise AssertionError("the runtime is still busy although the peer is gone")
        assert all(interface.state is State.DISCONNECTED for interface in self._attacked()), "still in a connection"
        assert len(self.runtime._registry) == self._watched, "an fd is still watched"
        assert wait_for(lambda: lowest_free_fd() == self._lowest_free), "an fd is still open"

    def _attacked(self) -> list[Interface]:
        return [interface for interface in self.runtime.interfaces if interface.socket.path == self.path]

    def _check_callbacks(self) -> None:
        reasons, self._reasons = self._reasons, []
        connected, self._connected = self._connected, 0
        assert sum(reason.established for reason in reasons) == connected, (connected, reasons)
        assert len(reasons) <= 1, f"told {len(reasons)} times of one end: {reasons}"
        self.established += connected
        for reason in reasons:
            words = re.sub(r"0x[0-9a-f]+|\d+", "N", reason.message.partition(": ")[0])
            self.reasons[words] = self.reasons.get(words, 0) + 1

    def check(self) -> None:
        """Nothing is left of all conversations so far, and the others did not notice."""
        self._held.check()
        assert self._witness.master.connected
        assert self._witness.slave.connected
        directions: list[tuple[RoleName, RoleName]] = [("master", "slave"), ("slave", "master")]
        for sender, receiver in directions:
            assert self._witness.side(sender).tx_queues[0].send([b"witness"]) == 1
            assert self._witness.side(receiver).rx_queues[0].recv() == [b"witness"]

    def _on_connect(self, interface: Interface) -> None:
        self._connected += 1
        self._react(interface)

    def _on_disconnect(self, interface: Interface, reason: Disconnected) -> None:
        self._reasons.append(reason)
        self._react(interface)

    def _on_interrupt(self, interface: Interface, qid: int) -> None:
        _echo(interface, qid)
        self._react(interface)

    def _react(self, interface: Interface) -> None:
        """What an application may do in a callback, if the script says so."""
        choice = self._script.byte()
        if choice >= 208:
            _REACTIONS[choice % len(_REACTIONS)](interface)

    def close(self) -> None:
        self.runtime.close()
        if self._listener is not None:
            self._listener.close()
        self.fds.close()


def _raise(interface: Interface) -> None:
    raise Provoked


def _poll_by_itself(interface: Interface) -> None:
    for queue in interface.rx_queues:
        with contextlib.suppress(Disconnected):
            queue.set_rx_mode("polling" if queue.rx_mode is not RxMode.POLLING else "adaptive")


def _turn_interrupts_off(interface: Interface) -> None:
    """And on again: the eventfds leave the poll set and come back."""
    callback, interface.on_interrupt = interface.on_interrupt, None
    interface.on_interrupt = callback


_REACTIONS: tuple[Callable[[Interface], object], ...] = (
    Interface.disconnect,
    Interface.delete,
    Interface.details,
    _raise,
    _poll_by_itself,
    _turn_interrupts_off,
)


def _echo(interface: Interface, qid: int) -> None:
    with interface.rx_queues[qid].burst(32) as burst:
        for packet in burst.packets():
            for view in packet.views:
                view[:1] = view[:1]
        if qid < len(interface.tx_queues):
            interface.tx_queues[qid].forward(burst)
