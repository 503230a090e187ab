"""Answers ARP and ICMP echo requests for one IP address, with libmemif's calls and its own epoll.

Ctrl+C ends it. Example:
  python libmemif_responder.py --role master --socket @lab --ip 192.168.1.2

In another terminal:
  memifrt ping --socket @lab 192.168.1.2
"""

from __future__ import annotations

import argparse
import select
import signal
import sys

from memifrt import libmemif as m
from memifrt.packets import parse_ip, parse_mac, reply_in_place

MAX_MEMIF_BUFS = 256
MAC = parse_mac("02:fe:00:00:01:02")

epoll = select.epoll()
ip = b""
running = True


def check(what: str, err: int) -> None:
    """End the program if a call has failed. memif_strerror(err) would give only the text of the code."""
    if err != m.MEMIF_ERR_SUCCESS:
        print(f"libmemif_responder: {what}: {m.memif_last_error()}", file=sys.stderr)
        raise SystemExit(2)


def control_fd_update(fd: int, events: int, private_ctx: object) -> int:
    if events & m.MEMIF_FD_EVENT_DEL:
        epoll.unregister(fd)
        return 0
    mask = 0
    if events & m.MEMIF_FD_EVENT_READ:
        mask |= select.EPOLLIN
    if events & m.MEMIF_FD_EVENT_WRITE:
        mask |= select.EPOLLOUT
    if events & m.MEMIF_FD_EVENT_MOD:
        epoll.modify(fd, mask)
    else:
        epoll.register(fd, mask)
    return 0


#: The connections that have a peer.
connected: set[m.MemifConnHandle] = set()


def on_connect(conn: m.MemifConnHandle, private_ctx: object) -> int:
    # A slave posts its receive buffers here. A master has nothing to post.
    m.memif_refill_queue(conn, 0, -1, 0)
    connected.add(conn)
    _, details = m.memif_get_details(conn)
    if details is not None:
        print(f"connected to {details.remote_inst_name or '(without a name)'!r}")
    return 0


def on_disconnect(conn: m.MemifConnHandle, private_ctx: object) -> int:
    # It is also called for a peer that never connected: one with a wrong secret, for example.
    what = "disconnected" if conn in connected else "not connected"
    connected.discard(conn)
    _, details = m.memif_get_details(conn)
    print(f"{what}: {details.error if details is not None else ''}")
    return 0


def answer(conn: m.MemifConnHandle, qid: int, request: m.MemifBuffer) -> None:
    """Copy one request into a transmit buffer, make it the reply there, and send it."""
    err, replies = m.memif_buffer_alloc(conn, qid, 1, request.len)
    if err != m.MEMIF_ERR_SUCCESS:
        return  # the ring is full: the reply is lost, as on a wire
    reply = replies[0]
    reply.len = request.len
    reply.flags = request.flags
    reply.data[:] = request.data
    if reply_in_place(reply.data, ip, MAC):
        m.memif_tx_burst(conn, qid, replies, 1)
    else:
        m.memif_set_next_free_buffer(conn, qid, reply)


def on_interrupt(conn: m.MemifConnHandle, private_ctx: object, qid: int) -> int:
    err: int = m.MEMIF_ERR_NOBUF
    while err == m.MEMIF_ERR_NOBUF:
        err, requests = m.memif_rx_burst(conn, qid, MAX_MEMIF_BUFS)
        chained = False
        for request in requests:
            # A packet that is longer than one buffer comes as several; this example does not answer it.
            if not chained and not request.flags & m.MEMIF_BUFFER_FLAG_NEXT:
                answer(conn, qid, request)
            chained = bool(request.flags & m.MEMIF_BUFFER_FLAG_NEXT)
        m.memif_refill_queue(conn, qid, len(requests), 0)
    return 0


def poll_event(timeout: float) -> None:
    """Run one turn of the application's loop. Events of an fd that was closed meanwhile are harmless."""
    for fd, mask in epoll.poll(timeout):
        events = 0
        if mask & select.EPOLLIN:
            events |= m.MEMIF_FD_EVENT_READ
        if mask & select.EPOLLOUT:
            events |= m.MEMIF_FD_EVENT_WRITE
        if mask & (select.EPOLLERR | select.EPOLLHUP):
            events |= m.MEMIF_FD_EVENT_ERROR
        check("memif_control_fd_handler", m.memif_control_fd_handler(fd, events))


def stop(*_: object) -> None:
    global running
    running = False


def main() -> int:
    global ip
    parser = argparse.ArgumentParser(
        description=__doc__, usage=argparse.SUPPRESS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--socket", default=m.MEMIF_DEFAULT_SOCKET_PATH, help="path, or @name (default: %(default)s)")
    parser.add_argument("--id", type=int, default=0, help="interface id, the same at both ends (default: 0)")
    parser.add_argument("--ip", default="192.168.1.2", help="address to answer for (default: %(default)s)")
    parser.add_argument("--role", choices=("slave", "master"), default="slave", help="default: slave")
    args = parser.parse_args()
    try:
        ip = parse_ip(args.ip)
    except ValueError as error:
        parser.error(str(error))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)

    check("memif_init", m.memif_init(control_fd_update, "libmemif-responder", None))
    try:
        err, sock = m.memif_create_socket(args.socket, None)
        check("memif_create_socket", err)
        conn_args = m.MemifConnArgs(socket=sock, interface_id=args.id, is_master=args.role == "master")
        err, conn = m.memif_create(conn_args, on_connect, on_disconnect, on_interrupt, None)
        check("memif_create", err)
        print(f"{conn} answers for {args.ip}; Ctrl+C ends it")
        while running:
            poll_event(0.5)  # in seconds; after a signal the loop ends within this time
        check("memif_delete", m.memif_delete(conn))
        check("memif_delete_socket", m.memif_delete_socket(sock))
    finally:
        m.memif_cleanup()
        epoll.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
