"""``memifrt responder``: answer ARP, neighbour discovery and echo on every queue until a signal ends it."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import threading
from collections.abc import Callable

from memifrt.cli.arguments import Command, Parser, add_interface_arguments, add_loop_argument, program_interface
from memifrt.cli.program import ProgramInterface
from memifrt.cli.run_in_loop import Waiter, run
from memifrt.errors import Disconnected, PollCancelled
from memifrt.interface import Interface
from memifrt.options import DEFAULT_RECONNECT_INTERVAL
from memifrt.packets import format_ip, format_mac, reply_in_place
from memifrt.queue import TxQueue
from memifrt.ring import Burst, Packet

#: Turns a packet into its reply, in place; returns False if it needs no reply.
Answer = Callable[[Packet], bool]


def respond(options: ProgramInterface, *, until_eof: bool = False, loop: str = "internal") -> None:
    """Answer until Ctrl+C, SIGTERM, or (``until_eof``) the end of standard input.

    :param loop: one of :data:`memifrt.cli.run_in_loop.LOOPS`.
    :raises MemifError: an option is wrong, or a master cannot listen.
    """
    answer = answer_for(options)

    def on_interrupt(interface: Interface, qid: int) -> None:
        serve(interface, qid, answer)

    async def main(waiter: Waiter) -> None:
        interface = options.create(waiter.runtime, on_interrupt)
        addresses = ", ".join(map(format_ip, options.ips))
        print(f"answering for {addresses} ({format_mac(options.mac)}) as {interface}", flush=True)
        if until_eof:
            threading.Thread(target=_cancel_at_eof, args=(waiter,), daemon=True).start()
        with contextlib.suppress(PollCancelled):
            while options.polling:
                # Only a connected interface has queues to poll.
                await waiter.wait(0 if interface.connected else None)
                if interface.connected:
                    poll_queues(interface, on_interrupt)
            await waiter.run_for(None)

    run(
        "responder",
        main,
        loop=loop,
        reconnect_interval=DEFAULT_RECONNECT_INTERVAL,
        session_options=options.session_options,
    )


def answer_for(program: ProgramInterface) -> Answer:
    """Return the function that answers requests to the program's addresses."""
    first, *others = [
        functools.partial(reply_in_place, ip=ip, mac=program.mac, mode=program.config.mode) for ip in program.ips
    ]
    if not others:
        return first
    # The first address has the most packets, so that one costs no generator.
    return lambda packet: first(packet) or any(other(packet) for other in others)


def serve(interface: Interface, qid: int, answer: Answer) -> None:
    """Take one burst of a receive queue and send the replies of ``answer``.

    :raises Disconnected: there is no peer.
    """
    tx_queues = interface.tx_queues
    with interface.rx_queues[qid].burst() as burst:
        if tx_queues:  # a slave may offer no queue in this direction
            send_back(burst, tx_queues[qid % len(tx_queues)], answer)


def send_back(burst: Burst, tx: TxQueue, answer: Answer) -> None:
    """Send the replies to the packets of a burst. Drop all other packets, and replies for which there is no room."""
    for packet in burst.packets():
        if not answer(packet):
            packet.drop()
    tx.forward(burst)


def poll_queues(interface: Interface, on_interrupt: Callable[[Interface, int], None]) -> None:
    """Call ``on_interrupt`` once for every receive queue."""
    with contextlib.suppress(Disconnected):  # the next event of the control channel reports it
        for queue in interface.rx_queues:
            on_interrupt(interface, queue.qid)


def _cancel_at_eof(waiter: Waiter) -> None:
    with contextlib.suppress(OSError):  # standard input is closed: end now
        while os.read(0, 4096):
            pass
    waiter.cancel()


# --- the command line ------------------------------------------------------------------------------------------------


def _add_arguments(parser: Parser) -> None:
    add_interface_arguments(parser, "192.168.1.2", "fe80::2")
    add_loop_argument(parser)
    parser.add_argument("--until-eof", action="store_true", help=argparse.SUPPRESS)  # for the demo, which may be killed


def _run(arguments: argparse.Namespace) -> int:
    respond(program_interface(arguments), until_eof=arguments.until_eof, loop=arguments.loop)
    return 0


COMMAND = Command(
    "responder",
    "answer ping over IPv4 and IPv6 (ARP, neighbour discovery, echo) until Ctrl+C",
    """example, against VPP (create interface memif id 0 master; set interface state
memif0/0 up; set interface ip address memif0/0 192.168.1.1/24; ping
192.168.1.2):
  memifrt responder --socket /run/vpp/memif.sock --ip 192.168.1.2 --ip 2001:db8::2""",
    _add_arguments,
    _run,
)
