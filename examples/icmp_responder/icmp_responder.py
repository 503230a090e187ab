"""Answers ARP and ICMP echo requests for one IP address; the runtime polls by itself.

Ctrl+C ends it. Example:
  python icmp_responder.py --role master --socket @lab --ip 192.168.1.2

In another terminal:
  memifrt ping --socket @lab 192.168.1.2
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
        if self.tx_queue >= queues:  # the peer may allow fewer queues than we asked for
            raise ConfigError(f"transmit queue {self.tx_queue}: the peer allows {queues}, counted from 0")
        print(f"connected to {interface.details().remote_app_name or '(without a name)'!r}")

    def on_disconnect(self, interface: Interface, reason: Disconnected) -> None:
        print(f"{'disconnected' if reason.established else 'not connected'}: {reason}")

    def on_interrupt(self, interface: Interface, qid: int) -> None:
        with interface.rx_queues[qid].burst() as burst:
            for packet in burst.packets():
                # The reply is written over the request.
                if not reply_in_place(packet, self.ip, MAC):
                    packet.drop()
            # If the ring is full, the remaining replies are lost, as on a wire.
            interface.tx_queues[self.tx_queue].forward(burst)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, usage=argparse.SUPPRESS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tx_queue", nargs="?", type=int, default=0, help="queue to transmit on (default: 0)")
    parser.add_argument("--socket", default="/run/vpp/memif.sock", help="path, or @name (default: %(default)s)")
    parser.add_argument("--id", type=int, default=0, help="interface id, the same at both ends (default: 0)")
    parser.add_argument("--ip", default="192.168.1.2", help="address to answer for (default: %(default)s)")
    parser.add_argument("--role", choices=("slave", "master"), default="slave", help="default: slave")
    args = parser.parse_args()
    if not 0 <= args.tx_queue < 255:
        parser.error(f"there is no queue {args.tx_queue}: queues are numbered from 0 to 254")
    try:
        responder = Responder(parse_ip(args.ip), args.tx_queue)
        with Runtime("icmp-responder") as runtime:

            def stop(*_: object) -> None:
                if not runtime.closed:  # a second Ctrl+C may come after the end
                    runtime.cancel_poll_event()

            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, stop)
            interface = runtime.create_interface(
                socket=args.socket,
                id=args.id,
                role=args.role,
                # A slave sends on s2m rings and receives on m2s rings; a master takes its slave's. The numbers are
                # equal because DPDK drops packets for a queue that does not exist.
                num_s2m_rings=args.tx_queue + 1,
                num_m2s_rings=args.tx_queue + 1,
                on_connect=responder.on_connect,
                on_disconnect=responder.on_disconnect,
                on_interrupt=responder.on_interrupt,
            )
            print(f"{interface} answers for {args.ip}; Ctrl+C ends it")
            runtime.run()  # until a signal cancels it
    except MemifError as error:
        print(f"icmp_responder: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
