"""Answers ARP and ICMP echo requests for one IP address; the runtime polls by itself.

python icmp_responder.py [TX_QUEUE] [--socket PATH] [--id N] [--ip A.B.C.D] [--role slave|master]
"""

from __future__ import annotations

import argparse
import signal
import sys

from memifrt import ConfigError, Disconnected, Interface, MemifError, Runtime
from memifrt.packets import parse_ip, parse_mac, reply_in_place

MAC = parse_mac("02:fe:00:00:01:02")


class Responder:
    """The callbacks of one interface."""

    def __init__(self, ip: bytes, tx_queue: int) -> None:
        self.ip = ip
        self.tx_queue = tx_queue

    def on_connect(self, interface: Interface) -> None:
        queues = len(interface.tx_queues)
        if self.tx_queue >= queues:  # the other side has the last word on how many there are
            raise ConfigError(f"transmit queue {self.tx_queue}: the peer allows {queues}, counted from 0")
        print(f"connected to {interface.details().remote_app_name!r}")

    def on_disconnect(self, interface: Interface, reason: Disconnected) -> None:
        print(f"disconnected: {reason}")

    def on_interrupt(self, interface: Interface, qid: int) -> None:
        with interface.rx_queues[qid].burst() as burst:
            for index, packet in enumerate(burst):
                # Written over the request, where it lies. A packet longer than a buffer, which comes as several, is
                # not answered here.
                if not reply_in_place(packet, self.ip, MAC):
                    burst.drop(index)
            # What the ring has no room for is lost, as on a wire.
            interface.tx_queues[self.tx_queue].forward(burst)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, usage=argparse.SUPPRESS)
    parser.add_argument("tx_queue", nargs="?", type=int, default=0, help="queue to transmit on (default: 0)")
    parser.add_argument("--socket", default="/run/vpp/memif.sock", help="path, or @name (default: %(default)s)")
    parser.add_argument("--id", type=int, default=0, help="interface id, the same on both sides (default: 0)")
    parser.add_argument("--ip", default="192.168.1.2", help="address to answer for (default: %(default)s)")
    parser.add_argument("--role", choices=("slave", "master"), default="slave", help="default: slave")
    args = parser.parse_args()
    if not 0 <= args.tx_queue < 255:
        parser.error(f"there is no queue {args.tx_queue}: they are numbered from 0 to 254")
    try:
        responder = Responder(parse_ip(args.ip), args.tx_queue)
        with Runtime("icmp-responder") as runtime:

            def stop(*_: object) -> None:
                if not runtime.closed:  # else it is a second Ctrl+C, too late to matter
                    runtime.cancel_poll_event()

            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, stop)
            interface = runtime.create_interface(
                socket=args.socket,
                id=args.id,
                role=args.role,
                # A slave sends on the first and receives on the second; a master takes what its slave offers. As many
                # of each: DPDK drops what it would send on a queue that is missing.
                num_s2m_rings=args.tx_queue + 1,
                num_m2s_rings=args.tx_queue + 1,
                on_connect=responder.on_connect,
                on_disconnect=responder.on_disconnect,
                on_interrupt=responder.on_interrupt,
            )
            print(f"{interface} answers for {args.ip}; {interface.last_error or 'Ctrl+C ends it'}")
            runtime.run()  # until a signal cancels it
    except MemifError as error:
        print(f"icmp_responder: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
