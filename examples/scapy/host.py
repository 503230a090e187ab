"""A host behind a memif, made with scapy. Answers ARP and ping, and accepts and closes TCP connections on one port.

Ctrl+C ends it. Example:
  python host.py --role master --socket @lab --port 80

In another terminal:
  python probe.py --socket @lab --port 80 192.168.1.2
"""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.l2 import ARP, Ether

from memifrt import MemifError
from memifrt.packets import parse_ipv4
from memifrt.scapy import MemifSocket

# scapy's packets have no useful types, so this file uses Any for a packet.
MAC = "02:fe:00:00:00:02"
FIRST_SEQUENCE = 1000


def answer(packet: Any, ip: str, port: int) -> Any:
    """Return the reply of the host to a packet, or None."""
    if ARP in packet and packet[ARP].op == 1 and packet[ARP].pdst == ip:
        asked = packet[ARP]
        reply: Any = Ether(src=MAC, dst=packet.src)
        return reply / ARP(op=2, hwsrc=MAC, psrc=ip, hwdst=asked.hwsrc, pdst=asked.psrc)
    if IP not in packet or packet[IP].dst != ip:
        return None
    if ICMP in packet and packet[ICMP].type == 8:
        echo = packet[ICMP]
        payload = ICMP(type=0, id=echo.id, seq=echo.seq) / echo.payload
    elif TCP in packet:
        payload = answer_tcp(packet[TCP], port)
    else:
        return None
    if payload is None:
        return None
    reply = IP(src=ip, dst=packet[IP].src) / payload
    return Ether(src=MAC, dst=packet.src) / reply if Ether in packet else reply


def answer_tcp(segment: Any, port: int) -> Any:
    """Answer a segment without any state: accept and close connections on one port, refuse them on others."""
    flow: dict[str, Any] = {"sport": segment.dport, "dport": segment.sport, "ack": segment.seq + 1 & 0xFFFFFFFF}
    if segment.dport != port:
        return None if segment.flags.R else TCP(flags="RA", **flow)
    if segment.flags.S:
        return TCP(flags="SA", seq=FIRST_SEQUENCE, **flow)
    if segment.flags.F:
        return TCP(flags="FA", seq=segment.ack, **flow)
    return None  # an acknowledgement needs no reply


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, usage=argparse.SUPPRESS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--socket", default="/run/vpp/memif.sock", help="path, or @name (default: %(default)s)")
    parser.add_argument("--id", type=int, default=0, help="interface id, the same at both ends (default: 0)")
    parser.add_argument("--role", choices=("slave", "master"), default="slave", help="default: slave")
    parser.add_argument("--mode", choices=("ethernet", "ip"), default="ethernet", help="default: ethernet")
    parser.add_argument("--ip", default="192.168.1.2", help="address to answer for (default: %(default)s)")
    parser.add_argument("--port", type=int, default=80, help="port that is open (default: 80)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends sniff(), as Ctrl+C does
    try:
        parse_ipv4(args.ip)
        with MemifSocket(args.socket, id=args.id, role=args.role, mode=args.mode, timeout=0) as socket:
            print(f"{args.ip} is up; Ctrl+C ends it", flush=True)

            def on_packet(packet: Any) -> None:
                reply = answer(packet, args.ip, args.port)
                print(packet.summary(), "" if reply is None else f"-> {reply.summary()}", flush=True)
                if reply is not None:
                    socket.send(reply)

            socket.sniff(prn=on_packet, store=False)  # continues when the peer comes back
    except MemifError as error:
        print(f"host: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass  # Ctrl+C before sniff() started
    return 0


if __name__ == "__main__":
    sys.exit(main())
