"""Answers ARP and ICMP echo requests for one IP address, a whole burst at a time, with NumPy.

Ctrl+C ends it. Example:
  python vectorized.py --role master --socket @lab --burst 256

In another terminal:
  memifrt ping --socket @lab -f -q -c 10000 192.168.1.2
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys

import numpy as np
import numpy.typing as npt

from memifrt import ConfigError, Disconnected, Interface, MemifError, PollCancelled, Runtime
from memifrt.packets import parse_ipv4, parse_mac, reply_in_place

MAC = parse_mac("02:fe:00:00:01:02")

Mask = npt.NDArray[np.bool_]

# A frame starts two bytes into its row, so that every field is aligned in a row of 64-bit words:
#
#   word 0   (not sent)  destination MAC
#   word 1   source MAC                                        ethertype
#   word 2   version, header length   service   total length   identification   flags, fragment offset
#   word 3   TTL   protocol   header checksum                  source IP
#   word 4   destination IP                                    ICMP type   code   checksum
#
# Numbers are little-endian here: the first byte on the wire is the lowest. A row has room for a little more than the
# usual buffer of 2048 bytes. It is an odd number of cache lines long, which spreads the starts of rows over the cache.
_WORDS, _GAP, _ROW_BYTES = 5, 2, 33 * 64
#: The longest frame that is answered.
MAX_FRAME = _ROW_BYTES - _GAP

_FIELDS_KEPT = 1024

_ETHERNET, _HEADERS = 14, 14 + 20 + 8
_TTL, _ICMP = 64, 1
#: The first byte of the first multicast address. Neither these nor the broadcast address nor 0.0.0.0 is ever a source.
_FIRST_GROUP = 224

# Words 1 to 4 of an echo request, and the bits that identify one: no group address as source, IPv4 without options, no
# fragment, ICMP, to us, type and code. A usual request also has our own TTL and less than 2048 bytes.
_REQUEST = bytes.fromhex("0000 0000 0000 0800  4500 0000 0000 0000  4001 0000 0000 0000  0000 0000 0800 0000")
_CARE = bytes.fromhex("0100 0000 0000 ffff  ff00 0000 0000 3fff  00ff 0000 0000 0000  ffff ffff ffff 0000")
_USUAL = bytes.fromhex("0000 0000 0000 0000  0000 f800 0000 0000  ff00 0000 0000 0000  0000 0000 0000 0000")

# Operands as arrays: converting a number into an array costs half as much as adding it to a thousand numbers.
_SHIFT = np.array(16, "<u8")
_ECHO_REQUEST, _CARRIED, _TO_FRAME, _SHORTEST = (np.array(number, "<u2") for number in (8, 1, _ETHERNET, _HEADERS))


class Fields:
    """Views of the first ``n`` columns of a vector's arrays, and of the fields in its words.

    Making these views costs half as much as the work on them, so they are kept for each ``n``.
    """

    def __init__(self, vector: Vector, n: int) -> None:
        self.sizes, self.odd, self.wrapped = vector.sizes[:n], vector.odd[:, :n], vector.wrapped[:n]
        self.ends, self.sum = vector.ends[:n], vector.sum[:n]
        #: The words in the rows, and our copy, in which each word is contiguous for all packets.
        self.in_rows, self.words = vector.rows[:n, :_WORDS].T, vector.words[:, :n]
        self.to_read, self.read = self.in_rows[1:], self.words[1:]
        word_2, word_3, word_4 = self.words[2:]
        self.total = word_2.view(">u2")[1::4]
        self.ttl, self.header_sum = word_3.view("u1")[::8], word_3.view("<u2")[1::4]
        self.source, self.target = word_3.view("<u4")[1::2], word_4.view("<u4")[::2]
        self.source_start = word_3.view("u1")[4::8]
        self.kind, self.echo_sum = word_4.view("<u2")[2::4], word_4.view("<u2")[3::4]


class Vector:
    """Room for up to ``capacity`` packets, which are received into ``frames`` and ``sizes`` and answered in place."""

    def __init__(self, capacity: int, ip: bytes, mac: bytes) -> None:
        self.ip, self.mac = ip, mac
        self.rows = np.zeros((capacity, _ROW_BYTES // 8), "<u8")
        self.frames = self.rows.view(np.uint8)[:, _GAP:]
        self.sizes = np.zeros(capacity, "<u2")
        # All results go into these arrays, so that a usual burst allocates nothing.
        self.words, self.masked = np.zeros((_WORDS, capacity), "<u8"), np.zeros((_WORDS - 1, capacity), "<u8")
        self.odd, self.wrapped = np.zeros((_WORDS - 1 + 4, capacity), np.bool_), np.zeros(capacity, np.bool_)
        self.read, self.odd_words = self.words[1:], self.odd[: _WORDS - 1]
        self.ends, self.sum = np.zeros(capacity, "<u2"), np.zeros(capacity, "<u2")
        # Repeated for each packet, because NumPy takes twice as long if it has to repeat them.
        care = bytes(a | b for a, b in zip(_CARE, _USUAL, strict=True))
        self._request, self._care, self._care_usual = (
            np.frombuffer(words, "<u8").repeat(capacity).reshape(-1, capacity)
            for words in (_REQUEST[:24] + ip + _REQUEST[28:], _CARE, care)
        )
        self._usual = self._request & self._care_usual
        self._our_word_1 = int.from_bytes(mac + _REQUEST[6:8], "little")
        self._our_ip = int.from_bytes(ip, "little")
        self._fields: dict[int, Fields] = {}

    def answer(self, n: int) -> int:
        """Turn the requests among the first ``n`` frames into replies, and move those to the front, in order.

        Requests and replies are the same as with ``reply_in_place``.

        :returns: the number of replies.
        """
        fields = self._fields.get(n)
        if fields is None:
            if len(self._fields) == _FIELDS_KEPT:
                self._fields.clear()
            fields = self._fields[n] = Fields(self, n)
        np.copyto(fields.read, fields.to_read)
        if not self._all_usual(fields):
            return self._answer_mixed(fields)
        self._reply(fields)
        np.copyto(fields.in_rows, fields.words)
        return n

    def _all_usual(self, fields: Fields) -> bool:
        """Return whether all frames are usual echo requests to us."""
        # Use all columns, not only the first n: NumPy handles a contiguous array in one pass.
        np.bitwise_and(self.read, self._care_usual, self.masked)
        np.not_equal(self.masked, self._usual, self.odd_words)
        # There is no padding, and at least the headers. The comparison above has limited the length to a row.
        np.copyto(fields.ends, fields.total)
        np.add(fields.ends, _TO_FRAME, fields.ends)
        np.not_equal(fields.ends, fields.sizes, fields.odd[4])
        np.less(fields.sizes, _SHORTEST, fields.odd[5])
        np.greater_equal(fields.source_start, _FIRST_GROUP, fields.odd[6])
        np.equal(fields.source, 0, fields.odd[7])
        return not np.count_nonzero(fields.odd)

    def _reply(self, fields: Fields) -> None:
        """Turn echo requests into replies, in our copy of the words. TTL and header checksum stay the same."""
        words = fields.words
        np.left_shift(words[1], _SHIFT, words[0])
        words[1].fill(self._our_word_1)
        # The type changes from 8 to 0, and the checksum changes by the same number. One's complement sums work in both
        # byte orders (RFC 1071, RFC 1624). A carry at the top is added at the bottom.
        np.add(fields.echo_sum, _ECHO_REQUEST, fields.sum)
        np.less(fields.sum, _ECHO_REQUEST, fields.wrapped)
        np.add(fields.sum, _CARRIED, fields.sum, where=fields.wrapped)
        np.copyto(fields.echo_sum, fields.sum)
        fields.kind.fill(0)
        # Swapping the addresses does not change the sum.
        np.copyto(fields.target, fields.source)
        fields.source.fill(self._our_ip)

    def _answer_mixed(self, fields: Fields) -> int:
        """Answer any frames. Echo requests without IP options are answered together; ARP and options one by one."""
        n, sizes = len(fields.sizes), fields.sizes
        ends = fields.total.astype(np.int64) + _ETHERNET
        plain = ((fields.read ^ self._request[:, :n]) & self._care[:, :n]).any(axis=0) == 0
        plain &= (ends >= _HEADERS) & (ends <= sizes) & (sizes <= MAX_FRAME)
        plain &= (fields.source_start < _FIRST_GROUP) & (fields.source != 0)
        replied = plain.copy()
        for row in np.flatnonzero(self._candidates(fields) & ~plain).tolist():
            frame = self.frames[row, : sizes[row]].data
            replied[row] = reply_in_place(frame, self.ip, self.mac)
        header_sum = (fields.header_sum.astype(np.int64) + fields.ttl - _TTL) % 0xFFFF
        np.copyto(fields.header_sum, header_sum.astype("<u2"), where=fields.ttl != _TTL)
        fields.ttl.fill(_TTL)
        self._reply(fields)
        np.copyto(fields.in_rows, fields.words, where=plain)
        return self._gather(np.flatnonzero(replied))

    def _candidates(self, fields: Fields) -> Mask:
        """Return which frames may be requests: ARP, and ICMP to us. The others must not cost a Python call each."""
        ethertype, protocol = fields.words[1].view(">u2")[3::4], fields.words[3].view("u1")[1::8]
        to_us = (ethertype == 0x0800) & (protocol == _ICMP) & (fields.target == self._our_ip)
        fits = (fields.sizes >= _HEADERS) & (fields.sizes <= MAX_FRAME)
        candidates: Mask = fits & (to_us | (ethertype == 0x0806))
        return candidates

    def _gather(self, rows: npt.NDArray[np.intp]) -> int:
        """Move these rows to the front; return their number."""
        count = len(rows)
        if 0 < count < rows[-1] + 1:
            self.sizes[:count] = self.sizes[rows]
            longest = self.sizes[:count].max()
            self.frames[:count, :longest] = self.frames[rows, :longest]
        return count


class Responder:
    """The callbacks of one interface."""

    def __init__(self, ip: bytes, burst: int) -> None:
        self.vector = Vector(burst, ip, MAC)

    def on_connect(self, interface: Interface) -> None:
        print(f"connected to {interface.details().remote_app_name or '(without a name)'!r}")

    def on_disconnect(self, interface: Interface, reason: Disconnected) -> None:
        print(f"{'disconnected' if reason.established else 'not connected'}: {reason}")

    def on_interrupt(self, interface: Interface, qid: int) -> None:
        """Take one burst and answer it. If the ring is full, replies are lost, as on a wire."""
        vector, tx_queues = self.vector, interface.tx_queues
        received = interface.rx_queues[qid].recv_into(vector.frames.data, vector.sizes.data)
        if received and tx_queues and (replies := vector.answer(received)):  # a slave may offer no queue
            with contextlib.suppress(ConfigError):  # a reply is longer than the peer's whole ring
                tx_queues[qid % len(tx_queues)].send_from(vector.frames[:replies].data, vector.sizes[:replies].data)

    def poll(self, runtime: Runtime, interface: Interface) -> None:
        """Poll the rings, and handle other events now and then, until a signal cancels it."""
        while True:
            runtime.poll_event(0 if interface.connected else None)
            with contextlib.suppress(Disconnected):  # the next event reports it
                for _ in range(64 if interface.connected else 0):
                    for rx in interface.rx_queues:
                        self.on_interrupt(interface, rx.qid)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, usage=argparse.SUPPRESS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--socket", default="/run/vpp/memif.sock", help="path, or @name (default: %(default)s)")
    parser.add_argument("--id", type=int, default=0, help="interface id, the same at both ends (default: 0)")
    parser.add_argument("--ip", default="192.168.1.2", help="address to answer for (default: %(default)s)")
    parser.add_argument("--role", choices=("slave", "master"), default="slave", help="default: slave")
    parser.add_argument("--burst", type=int, default=1024, help="the most packets to take at once (default: 1024)")
    parser.add_argument("--rx-mode", choices=("interrupt", "polling"), default="interrupt", help="default: interrupt")
    args = parser.parse_args()
    if not 0 < args.burst <= 16384:
        parser.error(f"--burst is {args.burst}; it must be a number from 1 to 16384, the slots of the largest ring")
    try:
        responder = Responder(parse_ipv4(args.ip), args.burst)
        with Runtime("vectorized") as runtime:

            def stop(*_: object) -> None:
                if not runtime.closed:  # a second Ctrl+C may come after the end
                    runtime.cancel_poll_event()

            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, stop)
            interface = runtime.create_interface(
                socket=args.socket,
                id=args.id,
                role=args.role,
                rx_mode=args.rx_mode,
                on_connect=responder.on_connect,
                on_disconnect=responder.on_disconnect,
                on_interrupt=responder.on_interrupt,
            )
            print(f"{interface} answers for {args.ip}; Ctrl+C ends it")
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
