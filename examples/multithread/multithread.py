"""Answers ARP and ICMP echo requests on several queues, with a thread for each. The main thread only connects.

Threads of even queues wait for interrupts; threads of odd queues poll their ring. With --forward the threads send every
packet back as it is, without Python and without the GIL. Ctrl+C ends it. Example:
  python multithread.py --role master --socket @lab

In another terminal:
  memifrt ping --socket @lab --queues 2 192.168.1.2
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

from memifrt import Disconnected, Interface, MemifError, Packet, Runtime, RxMode, RxQueue, TxQueue
from memifrt.cli.commands.responder import send_back
from memifrt.packets import parse_ip, parse_mac, reply_in_place

MAC = parse_mac("02:fe:00:00:01:02")


class Workers:
    """The threads of one connection. Each one alone uses one receive queue and one transmit queue."""

    def __init__(self, interface: Interface, ip: bytes, forward: bool) -> None:
        self._ip = ip
        self._stop = os.eventfd(0)
        self._queues = list(zip(interface.rx_queues, interface.tx_queues, strict=False))
        self._threads = []
        for rx, tx in self._queues:
            polls = rx.qid % 2 == 1
            rx.set_rx_mode(RxMode.POLLING if polls else RxMode.INTERRUPT)  # only the control thread may call this
            work = self._forward if forward else self._poll if polls else self._wait
            self._threads.append(threading.Thread(target=work, args=(rx, tx)))
            print(f"queue {rx.qid}: a thread {'polls' if polls else 'waits for interrupts'}")
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Stop the threads and wait for them: they use fds that are closed after this."""
        os.eventfd_write(self._stop, 1)
        for thread in self._threads:
            thread.join()
        os.close(self._stop)
        for rx, tx in self._queues:
            print(f"queue {rx.qid}: {rx.counters.packets} packets received, {tx.counters.packets} answered in all")

    def _forward(self, rx: RxQueue, tx: TxQueue) -> None:
        """Send every packet back in one call, without the GIL. It polls or sleeps as the mode of the queue says."""
        with contextlib.suppress(Disconnected):
            tx.forward_from(rx, until=self._stop)

    def _wait(self, rx: RxQueue, tx: TxQueue) -> None:
        poll = select.poll()
        poll.register(rx.fileno(), select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        while rx.connected:
            poll.poll()
            self._answer(rx, tx)

    def _poll(self, rx: RxQueue, tx: TxQueue) -> None:
        while rx.connected:
            if not self._answer(rx, tx):
                time.sleep(0)  # let other threads run

    def _answer(self, rx: RxQueue, tx: TxQueue) -> int:
        """Answer the packets in the ring; return how many buffers there were."""
        # After a disconnect the main thread ends this thread.
        with contextlib.suppress(Disconnected), rx.burst() as burst:
            taken = len(burst)
            send_back(burst, tx, self._reply)
            return taken
        return 0

    def _reply(self, packet: Packet) -> bool:
        return reply_in_place(packet, self._ip, MAC)


class Application:
    """The callbacks, which run on the main thread. There is no on_interrupt: the workers watch their queues."""

    def __init__(self, ip: bytes, forward: bool) -> None:
        self._ip = ip
        self._forward = forward
        self._workers: Workers | None = None

    def on_connect(self, interface: Interface) -> None:
        print(f"connected to {interface.details().remote_app_name or '(without a name)'!r}")
        self._workers = Workers(interface, self._ip, self._forward)

    def on_disconnect(self, interface: Interface, reason: Disconnected) -> None:
        workers, self._workers = self._workers, None
        if workers is not None:  # None if the peer went away before on_connect
            workers.end()
        print(f"{'disconnected' if reason.established else 'not connected'}: {reason}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, usage=argparse.SUPPRESS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--socket", default="/run/vpp/memif.sock", help="path, or @name (default: %(default)s)")
    parser.add_argument("--id", type=int, default=0, help="interface id, the same at both ends (default: 0)")
    parser.add_argument("--ip", default="192.168.1.2", help="address to answer for (default: %(default)s)")
    parser.add_argument("--role", choices=("slave", "master"), default="slave", help="default: slave")
    parser.add_argument("--queues", type=int, default=2, help="queues each way; the slave chooses (default: 2)")
    parser.add_argument("--forward", action="store_true", help="send every packet back as it is, instead of answering")
    args = parser.parse_args()
    if not 0 < args.queues <= 255:
        parser.error(f"--queues is {args.queues}; it must be a number from 1 to 255")
    try:
        application = Application(parse_ip(args.ip), args.forward)
        with Runtime("multithread") as runtime:

            def stop(*_: object) -> None:
                if not runtime.closed:  # a second Ctrl+C may come after the end
                    runtime.cancel_poll_event()

            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, stop)
            interface = runtime.create_interface(
                socket=args.socket,
                id=args.id,
                role=args.role,
                num_s2m_rings=args.queues,
                num_m2s_rings=args.queues,
                on_connect=application.on_connect,
                on_disconnect=application.on_disconnect,
            )
            what = "sends packets back" if args.forward else f"answers for {args.ip}"
            print(f"{interface} {what}; Ctrl+C ends it")
            runtime.run()  # until a signal; then the interface is deleted, which ends the workers
    except MemifError as error:
        print(f"multithread: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
