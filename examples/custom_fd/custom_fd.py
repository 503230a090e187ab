"""Many memif connections and a prompt in one loop: the application's loop watches memifrt's fds and standard input.

`help` lists the commands. `exit`, the end of the input and Ctrl+C end the program. Example, with a master as
connection 0:
  python custom_fd.py --socket @lab --loop poll
  > conn 0 1

In another terminal:
  memifrt ping --socket @lab 192.168.1.2
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields

from memifrt import (
    ConfigError,
    Disconnected,
    FdEvent,
    Interface,
    MemifError,
    QueueCounters,
    Role,
    Runtime,
    RxMode,
    RxQueue,
    TxQueue,
)
from memifrt.options import parse_rx_mode
from memifrt.packets import (
    echo_request,
    format_ip,
    format_mac,
    parse_echo_reply,
    parse_ip,
    parse_ipv4,
    parse_mac,
    reply_in_place,
)

# --- the loop -------------------------------------------------------------------------------------------------------


class Loop(ABC):
    """The application's loop. It watches a few fds of the application; all others belong to the runtime."""

    def __init__(self) -> None:
        self._ours: dict[int, Callable[[], object]] = {}
        self.runtime = Runtime("custom-fd", control_fd_update=self.control_fd_update)

    @abstractmethod
    def control_fd_update(self, fd: int, events: FdEvent) -> None:
        """Watch an fd for events, or stop watching it. This is the hook, which the runtime calls."""

    @abstractmethod
    def ready(self, timeout: float | None) -> Sequence[tuple[int, int]]:
        """Wait once; return the fds that are ready, with their events."""

    def wait(self, timeout: float | None) -> None:
        """Wait once, and pass each event to the owner of its fd."""
        for fd, events in self.ready(timeout):
            if fd in self._ours:
                self._ours[fd]()
            else:
                self.runtime.control_fd_handler(fd, events)

    def watch(self, fd: int, handler: Callable[[], object]) -> None:
        """Call ``handler`` whenever an fd of the application is readable."""
        self.control_fd_update(fd, FdEvent.READ)
        self._ours[fd] = handler

    def close(self) -> None:
        self.runtime.close()  # removes its fds through the hook, so the loop must still exist


class EpollLoop(Loop):
    """A loop on select.epoll. It cannot watch files: standard input must be a terminal or a pipe."""

    MASKS = (
        (FdEvent.READ, select.EPOLLIN),
        (FdEvent.WRITE, select.EPOLLOUT),
        (FdEvent.ERROR, select.EPOLLERR | select.EPOLLHUP),
    )

    def __init__(self) -> None:
        self._epoll = select.epoll()
        super().__init__()

    def control_fd_update(self, fd: int, events: FdEvent) -> None:
        mask = sum(bits for event, bits in self.MASKS if events & event)
        if events & FdEvent.DEL:
            self._epoll.unregister(fd)
        elif events & FdEvent.MOD:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)

    def ready(self, timeout: float | None) -> Sequence[tuple[int, int]]:
        found = self._epoll.poll(timeout)
        return [(fd, sum(event for event, bits in self.MASKS if mask & bits)) for fd, mask in found]

    def close(self) -> None:
        super().close()
        self._epoll.close()


class PollLoop(Loop):
    """A loop on select.poll. Registering an fd again modifies it, and there is nothing to close."""

    MASKS = (
        (FdEvent.READ, select.POLLIN),
        (FdEvent.WRITE, select.POLLOUT),
        (FdEvent.ERROR, select.POLLERR | select.POLLHUP),
    )

    def __init__(self) -> None:
        self._poll = select.poll()
        super().__init__()

    def control_fd_update(self, fd: int, events: FdEvent) -> None:
        if events & FdEvent.DEL:
            self._poll.unregister(fd)
        else:
            self._poll.register(fd, sum(bits for event, bits in self.MASKS if events & event))

    def ready(self, timeout: float | None) -> Sequence[tuple[int, int]]:
        found = self._poll.poll(None if timeout is None else timeout * 1000)
        return [(fd, sum(event for event, bits in self.MASKS if mask & bits)) for fd, mask in found]


class SelectLoop(Loop):
    """A loop on select.select, with lists that are made for each wait.

    An error makes an fd readable or writable. select.select takes only fds up to 1023.
    """

    def __init__(self) -> None:
        self._watched: dict[int, FdEvent] = {}
        super().__init__()

    def control_fd_update(self, fd: int, events: FdEvent) -> None:
        if events & FdEvent.DEL:
            del self._watched[fd]
        else:
            self._watched[fd] = events

    def ready(self, timeout: float | None) -> Sequence[tuple[int, int]]:
        readers = [fd for fd, events in self._watched.items() if events & FdEvent.READ]
        writers = [fd for fd, events in self._watched.items() if events & FdEvent.WRITE]
        readable, writable, _ = select.select(readers, writers, [], timeout)
        return [(fd, FdEvent.READ) for fd in readable] + [(fd, FdEvent.WRITE) for fd in writable]


class OneFdLoop(Loop):
    """A loop without a hook: the runtime polls by itself, and its one fd is readable when it has events."""

    def __init__(self) -> None:
        self._ours = {}
        self.runtime = Runtime("custom-fd")

    def control_fd_update(self, fd: int, events: FdEvent) -> None:
        """Do nothing: only fds of the application come here, and ready() watches them."""

    def ready(self, timeout: float | None) -> Sequence[tuple[int, int]]:
        readable, _, _ = select.select([self.runtime.fileno(), *self._ours], [], [], timeout)
        if self.runtime.fileno() in readable:
            self.runtime.poll_event(0)
        return [(fd, FdEvent.READ) for fd in readable if fd in self._ours]


LOOPS: dict[str, type[Loop]] = {"epoll": EpollLoop, "poll": PollLoop, "select": SelectLoop, "fileno": OneFdLoop}


# --- connections ----------------------------------------------------------------------------------------------------

#: The transmit queue for replies, which the loop's thread sends, and the one for a sender's thread. A queue belongs to
#: one thread at a time.
REPLIES, REQUESTS = 0, 1


class Connection:
    """One interface with its own address. Only the loop's thread uses it."""

    def __init__(self, runtime: Runtime, socket: str, index: int, role: Role, *, icmp: bool, patient: bool) -> None:
        self.index = index
        self.ip = bytes((192, 168, (index + 1) & 0xFF, 2))
        self.mac = bytes((0x02, 0xFE, 0, 0, *index.to_bytes(2, "big")))
        self.sender: Sender | None = None
        self.echo_replies = 0
        self._icmp = icmp
        #: Whether replies wait for room in a full ring; otherwise they are lost.
        self._patient = patient
        self._waiting: list[bytearray] = []
        #: The counters at the time of the last clear, because the library never resets them.
        self._cleared: dict[str, QueueCounters] = {}
        self.interface = runtime.create_interface(
            socket=socket,
            id=index,
            role=role,
            num_s2m_rings=2,
            num_m2s_rings=2,
            on_connect=self.on_connect,
            on_disconnect=self.on_disconnect,
            on_interrupt=self.on_interrupt,
        )

    def on_connect(self, interface: Interface) -> None:
        if not interface.tx_queues:
            interface.disconnect("a transmit queue is needed")
            return
        say(f"connection {self.index}: connected to {interface.details().remote_app_name or '(without a name)'!r}")

    def on_disconnect(self, interface: Interface, reason: Disconnected) -> None:
        if self.sender is not None:
            self.sender.end()
        self._waiting.clear()
        say(f"connection {self.index}: {'disconnected' if reason.established else 'not connected'}: {reason}")

    def on_interrupt(self, interface: Interface, qid: int) -> None:
        tx = interface.tx_queues[REPLIES]
        if not self._send_waiting(tx):
            return  # the queue's fd stays readable, so this is called again
        self._waiting = [packet for packet in map(bytearray, interface.rx_queues[qid].recv()) if self._answer(packet)]
        self._send_waiting(tx)
        if not self._patient:
            self._waiting.clear()

    def _answer(self, packet: bytearray) -> bool:
        """Turn a request into its reply, in place; return whether it was a request."""
        if parse_echo_reply(packet) is not None:
            self.echo_replies += 1
            return False
        return reply_in_place(memoryview(packet), self.ip, self.mac, icmp=self._icmp)

    def _send_waiting(self, tx: TxQueue) -> bool:
        """Send the replies that wait for room in the ring; return whether none is left."""
        try:
            del self._waiting[: tx.send(self._waiting)]
        except ConfigError:  # a reply is longer than the whole ring of the peer
            self._waiting.clear()
        return not self._waiting

    def poll(self) -> bool:
        """Do the work for which no fd gives an event: poll rings, and look for room in a ring that was full.

        :returns: whether there is such a ring.
        """
        if not self.interface.connected:
            return False
        polling = [queue for queue in self.interface.rx_queues if queue.rx_mode is RxMode.POLLING]
        with contextlib.suppress(Disconnected):  # on_disconnect reports it
            self._send_waiting(self.interface.tx_queues[REPLIES])
            for queue in polling:
                self.on_interrupt(self.interface, queue.qid)
        return bool(polling or self._waiting)

    def counters(self) -> Iterator[tuple[str, QueueCounters]]:
        """Return the counters of each queue since the last ``clear``."""
        for name, queue in self._queues():
            before = self._cleared.get(name, QueueCounters())
            yield name, QueueCounters(*(a - b for a, b in zip(astuple(queue.counters), astuple(before), strict=True)))

    def clear(self) -> None:
        self._cleared = {name: queue.counters for name, queue in self._queues()}
        self.echo_replies = 0

    def _queues(self) -> Iterator[tuple[str, RxQueue | TxQueue]]:
        yield from ((f"rx {queue.qid}", queue) for queue in self.interface.rx_queues)
        yield from ((f"tx {queue.qid}", queue) for queue in self.interface.tx_queues)


class Sender(threading.Thread):
    """Sends ICMP echo requests on a queue that only this thread uses, and prints the result."""

    BATCH = 64

    def __init__(self, connection: Connection, tx: TxQueue, count: int, ip: bytes, mac: bytes) -> None:
        super().__init__(name=f"sender {connection.index}")
        self._index, self._source_ip, self._source_mac = connection.index, connection.ip, connection.mac
        self._tx, self._count, self._ip, self._mac = tx, count, ip, mac
        self._end = threading.Event()

    def run(self) -> None:
        sent, ending, start = 0, "", time.monotonic()
        try:
            while sent < self._count and not self._end.is_set():
                stop = min(sent + self.BATCH, self._count)
                taken = self._tx.send([self._request(number) for number in range(sent, stop)])
                sent += taken
                if not taken:
                    self._end.wait(0.001)  # the ring is full, and no fd says when there is room again
        except Disconnected as reason:
            ending = f"; ended by: {reason}"
        seconds = time.monotonic() - start
        rate = sent / seconds if seconds else 0
        say(f"send {self._index}: {sent} of {self._count} packets in {seconds:.3f} s, {rate:.0f} packets/s{ending}")

    def end(self) -> None:
        """Stop early, and wait for the end of the thread."""
        self._end.set()
        self.join()

    def _request(self, number: int) -> bytes:
        return echo_request(
            source_mac=self._source_mac,
            source_ip=self._source_ip,
            target_mac=self._mac,
            target_ip=self._ip,
            identifier=self._index,
            sequence=number & 0xFFFF,
            payload=b"memifrt!" * 7,
        )


# --- the prompt -----------------------------------------------------------------------------------------------------


class CommandError(Exception):
    """A command failed; the text says why."""


@dataclass(frozen=True)
class Command:
    """A command of the prompt."""

    run: Callable[..., None]
    arguments: str
    text: str

    def accepts(self, count: int) -> bool:
        optional = self.arguments.count("[")
        return self.arguments.count("<") - optional <= count <= self.arguments.count("<")


class Prompt:
    """Reads commands from standard input and runs them."""

    def __init__(self, loop: Loop, slaves_connect_to: str, masters_listen_on: str) -> None:
        self.running = True
        self.connections: dict[int, Connection] = {}
        self._loop = loop
        self._sockets = {Role.SLAVE: slaves_connect_to, Role.MASTER: masters_listen_on}
        self._unfinished_line = b""
        self._commands = {
            "help": Command(self.help, "", "show this list"),
            "exit": Command(self.exit, "", "delete every connection and end"),
            "conn": Command(
                self.conn,
                "<index> <0 slave|1 master> [<interrupt-desc>]",
                "connect; interrupt-desc: none: answer ARP and ICMP; 0: the same, and wait when the ring is full; "
                "1: answer only ARP",
            ),
            "del": Command(self.delete, "<index>", "delete a connection"),
            "show": Command(self.show, "", "show the connections and their queues"),
            "ip-set": Command(self.ip_set, "<index> <ip>", "set the address to answer for"),
            "rx-mode": Command(self.rx_mode, "<index> <qid> <interrupt|polling|adaptive>", "until the connection ends"),
            "sh-count": Command(self.sh_count, "", "show the counters"),
            "cl-count": Command(self.cl_count, "", "clear the counters"),
            "send": Command(self.send, "<index> <count> <ip> <mac>", "send ICMP echo requests from a thread"),
        }

    def on_input(self) -> None:
        data = os.read(sys.stdin.fileno(), 4096)
        *lines, self._unfinished_line = (self._unfinished_line + data).split(b"\n")
        if not data:
            lines, self._unfinished_line = [self._unfinished_line], b""
        for line in lines:
            if self.running:
                self.execute(line.decode(errors="replace").split())
        if not data:
            self.exit()
        self.ask()

    def ask(self) -> None:
        if self.running and sys.stdin.isatty():
            print("custom-fd> ", end="", flush=True)

    def execute(self, words: list[str]) -> None:
        """Run one command. A wrong command prints one line and changes nothing."""
        if not words:
            return
        name, *arguments = words
        command = self._commands.get(name)
        try:
            if command is None:
                raise CommandError("no such command; try help")
            if not command.accepts(len(arguments)):
                raise CommandError(f"usage: {name} {command.arguments}")
            command.run(*arguments)
        except (CommandError, MemifError) as error:
            say(f"{name}: {error}")

    def help(self) -> None:
        for name, command in self._commands.items():
            say(f"{name} {command.arguments}".ljust(55) + command.text)

    def exit(self) -> None:
        self.running = False

    def conn(self, index: str, role: str, interrupt_desc: str = "") -> None:
        number = parse_number("index", index, 0, 0xFFFF)
        if number in self.connections:
            raise CommandError(f"connection {number} exists already")
        wanted = Role.MASTER if parse_choice("the role", role, ("0", "1")) == "1" else Role.SLAVE
        desc = parse_choice("interrupt-desc", interrupt_desc, ("", "0", "1"))
        self.connections[number] = connection = Connection(
            self._loop.runtime, self._sockets[wanted], number, wanted, icmp=desc != "1", patient=desc == "0"
        )
        say(f"connection {number}: {connection.interface} answers for {format_ip(connection.ip)}")
        if connection.interface.last_error is not None:
            say(f"connection {number}: {connection.interface.last_error}; trying again")

    def delete(self, index: str) -> None:
        connection = self._connection(index)
        connection.interface.delete()
        del self.connections[connection.index]
        say(f"connection {connection.index}: deleted")

    def show(self) -> None:
        for connection in self.connections.values():
            interface, details = connection.interface, connection.interface.details()
            peer = f" to {details.remote_app_name!r}" if interface.connected else ""
            error = f" ({details.error})" if details.error else ""
            say(
                f"connection {connection.index}: {interface}, {interface.state_name}{peer}{error}, "
                f"ip {format_ip(connection.ip)}, mac {format_mac(connection.mac)}"
            )
            for rx in interface.rx_queues if interface.connected else ():
                say(f"  rx {rx.qid}: {rx.ring_size} slots, {rx.rx_mode.name.lower()}")
            for tx in interface.tx_queues if interface.connected else ():
                say(f"  tx {tx.qid}: {tx.ring_size} slots")
        say(f"{len(self.connections)} connection(s)")

    def ip_set(self, index: str, ip: str) -> None:
        connection = self._connection(index)
        connection.ip = parse_ip(ip)
        say(f"connection {connection.index}: answers for {format_ip(connection.ip)}")

    def rx_mode(self, index: str, qid: str, mode: str) -> None:
        connection = self._connected(index)
        queues = connection.interface.rx_queues
        queue = queues[parse_number("qid", qid, 0, len(queues) - 1)]
        queue.set_rx_mode(parse_rx_mode(mode))
        say(f"connection {connection.index}: rx {queue.qid} is in {mode} mode")

    def sh_count(self) -> None:
        for connection in self.connections.values():
            say(f"connection {connection.index}: {connection.echo_replies} echo replies received")
            for name, counters in connection.counters():
                values = [f"{field.name} {getattr(counters, field.name)}" for field in fields(counters)]
                say(f"  {name}: {', '.join(values)}")
        say(f"{len(self.connections)} connection(s)")

    def cl_count(self) -> None:
        for connection in self.connections.values():
            connection.clear()
        say("counters cleared")

    def send(self, index: str, count: str, ip: str, mac: str) -> None:
        connection = self._connected(index)
        if connection.sender is not None and connection.sender.is_alive():
            raise CommandError(f"connection {connection.index} is sending already")
        queues = connection.interface.tx_queues
        if len(queues) <= REQUESTS:
            raise CommandError("the peer allows only one transmit queue, and the replies use it")
        number = parse_number("count", count, 1, 10**9)
        connection.sender = Sender(connection, queues[REQUESTS], number, parse_ipv4(ip), parse_mac(mac))
        connection.sender.start()

    def _connection(self, index: str) -> Connection:
        connection = self.connections.get(parse_number("index", index, 0, 0xFFFF))
        if connection is None:
            raise CommandError(f"there is no connection {index}")
        return connection

    def _connected(self, index: str) -> Connection:
        connection = self._connection(index)
        if not connection.interface.connected:
            raise CommandError(f"connection {index} is not connected")
        return connection


def parse_number(what: str, text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise CommandError(f"{what} is {text!r}; it must be a number from {low} to {high}")
    return int(text)


def parse_choice(what: str, text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        raise CommandError(f"{what} is {text!r}; it must be {' or '.join(filter(None, choices))}")
    return text


def say(line: str) -> None:
    """Print a line in one write, because senders print from their own threads."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def run(args: argparse.Namespace) -> None:
    with contextlib.ExitStack() as at_end:
        loop = LOOPS[args.loop]()
        at_end.callback(loop.close)
        prompt = Prompt(loop, args.socket, args.listen or args.socket)
        try:
            loop.watch(sys.stdin.fileno(), prompt.on_input)
        except PermissionError:
            raise CommandError("epoll cannot watch a file: standard input must be a terminal or a pipe") from None
        # A signal handler may run at any point, so it only makes an fd readable, and the loop does the rest.
        signalled = os.eventfd(0)
        at_end.callback(os.close, signalled)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: os.eventfd_write(signalled, 1))
            at_end.callback(signal.signal, number, signal.SIG_IGN)  # before the fd is closed
        loop.watch(signalled, prompt.exit)
        say("help lists the commands")
        prompt.ask()
        while prompt.running:
            busy = [connection.poll() for connection in prompt.connections.values()]
            loop.wait(0 if any(busy) else None)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, usage=argparse.SUPPRESS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--socket", default="/run/vpp/memif.sock", help="path, or @name (default: %(default)s)")
    parser.add_argument("--listen", metavar="PATH", help="where masters listen (default: the same socket)")
    parser.add_argument("--loop", choices=LOOPS, default="epoll", help="the kind of loop (default: %(default)s)")
    args = parser.parse_args()
    try:
        run(args)
    except (CommandError, MemifError) as error:
        print(f"custom_fd: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
