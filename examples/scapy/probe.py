"""Asks a host behind a memif for its MAC address, pings it, and opens and closes a TCP connection, with scapy.

Example, with a responder in another terminal (memifrt responder --role master --socket @lab):
  python probe.py --socket @lab --count 3 --port 0 192.168.1.2
"""

from __future__ import annotations

import argparse
import random
import sys
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from memifrt import MemifError
from memifrt.packets import parse_ipv4
from memifrt.scapy import MemifSocket

# scapy's packets have no useful types, so this file uses Any for a packet.
MAC = "02:fe:00:00:00:01"


class Probe:
    """Sends requests to one host. Each method prints the result and returns whether there was a reply."""

    def __init__(self, socket: MemifSocket, args: argparse.Namespace) -> None:
        self.socket = socket
        self.target = args.target
        self.own = args.ip
        self.timeout = args.timeout
        self.link: Any = None  # the Ethernet header; None in IP mode

    def ask(self, packet: Any) -> Any:
        """Send a packet and return the reply, or None."""
        return self.socket.sr1(packet, timeout=self.timeout, verbose=False)

    def over_ip(self, payload: Any) -> Any:
        """Return a packet to the host."""
        packet: Any = IP(src=self.own, dst=self.target)
        return packet / payload if self.link is None else self.link / packet / payload

    def arp(self) -> bool:
        question: Any = Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff")
        answer = self.ask(question / ARP(hwsrc=MAC, psrc=self.own, pdst=self.target))
        if answer is None:
            print(f"arp: nobody has {self.target}")
            return False
        print(f"arp: {self.target} is at {answer[ARP].hwsrc}")
        self.link = Ether(src=MAC, dst=answer[ARP].hwsrc)
        return True

    def ping(self, number: int) -> bool:
        echo: Any = ICMP(id=1, seq=number)
        question = self.over_ip(echo / Raw(b"memifrt" * 8))
        answer = self.ask(question)
        if answer is None or answer[Raw].load != question[Raw].load:
            print(f"ping {number}: no answer")
            return False
        # sent_time: when scapy sent it to the ring. time: when the background thread found the reply in the ring.
        print(f"ping {number}: {len(answer)} bytes, {(answer.time - question.sent_time) * 1000:.2f} ms")
        return True

    def tcp(self, port: int) -> bool:
        flow: dict[str, Any] = {"sport": random.randrange(1024, 65536), "dport": port}
        start = random.randrange(1 << 32)
        answer = self.ask(self.over_ip(TCP(flags="S", seq=start, **flow)))
        if answer is None or TCP not in answer:
            print(f"tcp: no answer from port {port}")
            return False
        if answer[TCP].flags != "SA":
            print(f"tcp: port {port} answers with {answer[TCP].flags}")
            return False
        flow |= {"seq": start + 1 & 0xFFFFFFFF, "ack": answer[TCP].seq + 1 & 0xFFFFFFFF}
        self.socket.send(self.over_ip(TCP(flags="A", **flow)))
        print(f"tcp: connected to port {port}")
        goodbye = self.ask(self.over_ip(TCP(flags="FA", **flow)))
        print("tcp: closed" if goodbye is not None and goodbye[TCP].flags.F else "tcp: no answer to FIN")
        return goodbye is not None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, usage=argparse.SUPPRESS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", nargs="?", default="192.168.1.2", help="address to ask (default: %(default)s)")
    parser.add_argument("--socket", default="/run/vpp/memif.sock", help="path, or @name (default: %(default)s)")
    parser.add_argument("--id", type=int, default=0, help="interface id, the same at both ends (default: 0)")
    parser.add_argument("--role", choices=("slave", "master"), default="slave", help="default: slave")
    parser.add_argument("--mode", choices=("ethernet", "ip"), default="ethernet", help="default: ethernet")
    parser.add_argument("--ip", default="192.168.1.1", help="our own address (default: %(default)s)")
    parser.add_argument("--count", type=int, default=3, help="pings (default: 3)")
    parser.add_argument("--port", type=int, default=80, help="for the TCP handshake; 0 for none (default: 80)")
    parser.add_argument("--timeout", type=float, default=2.0, help="seconds to wait for an answer (default: 2)")
    args = parser.parse_args()
    try:
        for address in (args.target, args.ip):
            parse_ipv4(address)  # scapy would look up a name
        with MemifSocket(args.socket, id=args.id, role=args.role, mode=args.mode) as socket:
            print(socket)
            probe = Probe(socket, args)
            if args.mode == "ethernet" and not probe.arp():
                return 1
            answers = [probe.ping(number) for number in range(args.count)]
            if args.port:
                answers.append(probe.tcp(args.port))
    except MemifError as error:
        print(f"probe: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130  # 128 and the number of SIGINT
    return 0 if all(answers) else 1


if __name__ == "__main__":
    sys.exit(main())
