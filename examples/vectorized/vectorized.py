"""Answers ARP and ICMP echo requests for one IP address, a whole burst at a time, with NumPy.

python vectorized.py [--socket PATH] [--id N] [--ip A.B.C.D] [--role slave|master] [--burst N]
                     [--rx-mode interrupt|polling]
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from typing import Literal

import numpy as np
import numpy.typing as npt

from memifrt import ConfigError, Disconnected, Interface, MemifError, PollCancelled, Runtime, RxQueue, TxQueue
from memifrt.apps.packets import parse_ip, parse_mac, reply_in_place

MAC = parse_mac("02:fe:00:00:01:02")

Words = npt.NDArray[np.uint64]
Halves = npt.NDArray[np.uint16]
Mask = npt.NDArray[np.bool_]

# A row of the matrix is five 64-bit words of headers and what comes after them. The frame starts two bytes into its
# row, so that no field but a MAC address shares its word with a part of another:
#
#   word 0   (not sent)  destination MAC
#   word 1   source MAC                                        ethertype
#   word 2   version, header length   service   total length   identification   flags, fragment offset
#   word 3   TTL   protocol   header checksum                  source IP
#   word 4   destination IP                                    ICMP type   code   checksum
#
# The row's size is an odd number of cache lines, so that the first lines of many rows do not fight for one place in the
# cache. Only those lines are ever touched when packets are small.
_GAP = 2
_ROW_BYTES = 145 * 64
#: The longest frame that is answered.
MAX_FRAME = _ROW_BYTES - _GAP
_ETHERNET, _HEADERS = 14, 14 + 20 + 8

# An echo request without IP options, by what must be what in words 1 to 4: a source that is no group, IPv4, no
# fragment, ICMP, our address, type and code. The words are little-endian, these are bytes in the order of the wire.
_CARE = bytes.fromhex("0100 0000 0000 ffff  ff00 0000 0000 3fff  00ff 0000 0000 0000  ffff ffff ffff 0000")
_ECHO = bytes.fromhex("0000 0000 0000 0800  4500 0000 0000 0000  0001 0000 0000 0000  0000 0000 0800 0000")
_IPV4, _ARP, _ICMP = 0x0008, 0x0608, 1  # the first two as little-endian numbers
_TTL = 64
#: Neither an IP packet nor the padding behind it is longer than this where all goes at once; a power of two.
_USUAL = 4096

# Operands that are arrays already cost no conversion in every call.
_8, _16, _32, _48, _LOW_32, _FOLD, _TO_OUR_TTL = (
    np.array(number, "<u8") for number in (8, 16, 32, 48, 0xFFFFFFFF, 0xFFFF, 0xFFFF - (_ICMP << 8) - _TTL)
)
_MIN_TOTAL, _MIN_FRAME, _UNUSUAL = (
    np.array(number, np.uint16) for number in (_HEADERS - _ETHERNET, _HEADERS, 0x10000 - _USUAL)
)


class Views:
    """The first ``n`` rows of a vector's arrays. Making a view costs as much as a third of what is done with it, so
    they are kept for each ``n``."""

    def __init__(self, vector: Vector, n: int) -> None:
        self.frames, self.sizes = vector.frames[:n], vector.sizes[:n]
        #: Where words 1 to 4 lie in the rows, and where copies of them go, each word of all packets in one piece.
        self.header, self.words = vector.rows[:n, 1:5].T, vector.words[:, :n]
        self.asker, self.length, self.source, self.echo = self.words
        self.total = self.length.view(">u2")[1::4]
        self.care, self.request = vector.care[:, :n], vector.request[:, :n]
        self.different, self.wrong = vector.different[:, :n], vector.wrong[:n]
        self.carry, self.sum = vector.carry[:n], vector.sum[:n]
        self.excess, self.padding = vector.excess[:n], vector.padding[:n]
        #: The words that a reply has anew.
        self.row_0, self.row_1, _, self.row_3, self.row_4 = vector.rows[:n, :5].T


class Vector:
    """Room for ``capacity`` packets, to be received into ``frames`` and ``sizes``, and the turning of requests into
    replies. All of its memory is taken once."""

    def __init__(self, capacity: int, ip: bytes, mac: bytes) -> None:
        self.ip, self.mac = ip, mac
        self.rows: Words = np.zeros((capacity, _ROW_BYTES // 8), "<u8")
        self.frames = self.rows.view(np.uint8)[:, _GAP:]
        self.sizes: Halves = np.zeros(capacity, np.uint16)
        self.words, self.different = (np.zeros((4, capacity), "<u8") for _ in range(2))
        self.wrong, self.carry, self.sum = (np.zeros(capacity, "<u8") for _ in range(3))
        self.excess, self.padding = (np.zeros(capacity, np.uint16) for _ in range(2))
        # As wide as the packets, although they say the same for each: NumPy is twice as fast as when it has to repeat.
        self.care, self.request = (_repeated(word, capacity) for word in (_CARE, _ECHO[:24] + ip + _ECHO[28:]))
        self._ip = np.array(int.from_bytes(ip, "little"), "<u8")
        self._from_us = np.array(int.from_bytes(mac + _ECHO[6:8], "little"), "<u8")
        self._ip_from_us = np.array(int.from_bytes(bytes((_TTL, _ICMP, 0, 0)) + ip, "little"), "<u8")
        self._views: dict[int, Views] = {}

    def answer(self, n: int) -> int:
        """Turn the requests among the first ``n`` frames into their replies, and move these to the front, in order;
        their number. What they are is what ``reply_in_place`` says, for frames of up to ``MAX_FRAME`` bytes."""
        view = self._views.get(n)
        if view is None:
            view = self._views[n] = Views(self, n)
        np.copyto(view.words, view.header)
        if self._all_plain(view):
            self._reply(view, True)
            return n
        return self._answer_mixed(view)

    def _all_plain(self, view: Views) -> bool:
        """Whether there are but echo requests to us without anything unusual. What is wrong with which packet is left
        in ``wrong`` and ``padding``, where that of the good ones is 0."""
        # Over the whole width: arrays in one piece are done in one go, and what lies behind n is not looked at.
        different = self.different
        np.bitwise_xor(self.words, self.request, out=different)
        np.bitwise_and(different, self.care, out=different)
        np.bitwise_or(different[:2], different[2:], out=different[:2])
        np.bitwise_or(different[0], different[1], out=different[0])
        # Both numbers must be small: what an IP packet has beyond its headers, and a frame beyond its IP packet. One
        # that is less than nothing is a large one, as they wrap around.
        np.copyto(view.excess, view.total)
        np.subtract(view.excess, _MIN_TOTAL, out=view.excess)
        np.subtract(view.sizes, view.excess, out=view.padding)
        np.subtract(view.padding, _MIN_FRAME, out=view.padding)
        np.bitwise_or(view.padding, view.excess, out=view.padding)
        np.bitwise_and(view.padding, _UNUSUAL, out=view.padding)
        return not np.count_nonzero(view.wrong) and not np.count_nonzero(view.padding)

    def _reply(self, view: Views, where: Mask | Literal[True]) -> None:
        """Write the replies over the echo requests in all rows, or ``where`` one is."""
        carry, total = view.carry, view.sum
        np.left_shift(view.asker, _16, out=view.row_0, where=where)
        np.positive(self._from_us, out=view.row_1, where=where)
        # Checksums change by what leaves the words that they cover (RFC 1624). One's complement sums are the same
        # in either byte order (RFC 1071), and of 16-bit words that lie beside each other in one number: 2**16 is 1
        # modulo 0xffff. So this number is TTL + protocol + checksum, and the checksum for our TTL what remains of it.
        np.bitwise_and(view.source, _LOW_32, out=total)
        np.add(total, _TO_OUR_TTL, out=total)
        np.floor_divide(total, _FOLD, out=carry)
        np.add(total, carry, out=total)  # - 0xffff * carry, in the lower 16 bits
        np.left_shift(total, _48, out=total)
        np.right_shift(total, _32, out=total)
        np.bitwise_or(total, self._ip_from_us, out=view.row_3, where=where)
        # The type goes from 8 to 0. The sum of an ICMP message may be 0xffff, as that of an IP header may not.
        np.right_shift(view.echo, _48, out=total)
        np.add(total, _8, out=total)
        np.right_shift(total, _16, out=carry)
        np.add(total, carry, out=total)
        np.left_shift(total, _48, out=total)
        np.right_shift(view.source, _32, out=carry)
        np.bitwise_or(total, carry, out=view.row_4, where=where)

    def _answer_mixed(self, view: Views) -> int:
        plain = (view.wrong == 0) & (view.padding == 0)
        kept = plain.copy()
        for row in np.flatnonzero(self._is_candidate(view) & ~plain).tolist():
            frame = memoryview(view.frames[row])[: view.sizes[row]]
            kept[row] = reply_in_place(frame, self.ip, self.mac)
        self._reply(view, plain)
        rows = np.flatnonzero(kept)
        if not len(rows):
            return 0
        sizes = view.sizes[rows]
        view.frames[: len(rows), : sizes.max()] = view.frames[rows, : sizes.max()]
        view.sizes[: len(rows)] = sizes
        return len(rows)

    def _is_candidate(self, view: Views) -> Mask:
        """What may be a request although it is not a plain one: ARP, IP options, padding. A flood of anything else
        must not cost a Python call for each packet."""
        ethertype = view.asker >> _48
        to_us = (view.echo & _LOW_32) == self._ip
        icmp = (view.source >> _8 & np.uint64(0xFF)) == _ICMP
        fits = (view.sizes >= _HEADERS) & (view.sizes <= MAX_FRAME)
        candidate: Mask = fits & ((ethertype == _ARP) | ((ethertype == _IPV4) & to_us & icmp))
        return candidate


def _repeated(words: bytes, count: int) -> Words:
    return np.repeat(np.frombuffer(words, "<u8")[:, np.newaxis], count, axis=1)


class Responder:
    """The callbacks of one interface."""

    def __init__(self, ip: bytes, burst: int) -> None:
        self.vector = Vector(burst, ip, MAC)

    def on_connect(self, interface: Interface) -> None:
        print(f"connected to {interface.details().remote_app_name}")

    def on_disconnect(self, interface: Interface, reason: Disconnected) -> None:
        print(f"disconnected: {reason}")

    def on_interrupt(self, interface: Interface, qid: int) -> None:
        self.serve(interface.rx_queues[qid], interface.tx_queues[0])

    def serve(self, rx: RxQueue, tx: TxQueue) -> None:
        """Take one burst and answer it. What the ring has no room for is lost, as on a wire."""
        vector = self.vector
        received = rx.recv_into(vector.frames, vector.sizes)
        if received and (replies := vector.answer(received)):
            with contextlib.suppress(ConfigError):  # a reply is longer than the peer's whole ring
                tx.send_from(vector.frames[:replies], vector.sizes[:replies])

    def poll(self, runtime: Runtime, interface: Interface) -> None:
        """Look at the ring all the time, and at everything else now and then, until a signal cancels it."""
        while True:
            runtime.poll_event(0 if interface.connected else None)
            with contextlib.suppress(Disconnected):  # the next event tells
                for _ in range(64 if interface.connected else 0):
                    self.serve(interface.rx_queues[0], interface.tx_queues[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS)
    parser.add_argument("--socket", default="/run/vpp/memif.sock", help="path, or @name (default: %(default)s)")
    parser.add_argument("--id", type=int, default=0, help="interface id, the same on both sides (default: 0)")
    parser.add_argument("--ip", default="192.168.1.2", help="address to answer for (default: %(default)s)")
    parser.add_argument("--role", choices=("slave", "master"), default="slave", help="default: slave")
    parser.add_argument("--burst", type=int, default=1024, help="packets taken at once, at most (default: 1024)")
    parser.add_argument("--rx-mode", choices=("interrupt", "polling"), default="interrupt", help="default: interrupt")
    args = parser.parse_args()
    if not 0 < args.burst <= 16384:
        parser.error(f"--burst is {args.burst}; it must be a number from 1 to 16384, the slots of the largest ring")
    try:
        responder = Responder(parse_ip(args.ip), args.burst)
        with Runtime("vectorized") as runtime:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: runtime.cancel_poll_event())
            interface = runtime.create_interface(
                socket=args.socket,
                id=args.id,
                role=args.role,
                rx_mode=args.rx_mode,
                on_connect=responder.on_connect,
                on_disconnect=responder.on_disconnect,
                on_interrupt=responder.on_interrupt,
            )
            print(f"{interface} answers for {args.ip}; {interface.last_error or 'Ctrl+C ends it'}")
            if args.rx_mode == "polling":
                with contextlib.suppress(PollCancelled):
                    responder.poll(runtime, interface)
            else:
                runtime.run()  # until a signal cancels it
    except MemifError as error:
        print(f"vectorized: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
