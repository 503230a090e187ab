"""Capture a memif, or between two, into Wireshark's fifo: pcapng with nanoseconds.

Owns the fifo and its end: the capture ends when Wireshark closes the fifo, on SIGTERM, or on Ctrl+C. Nothing is printed
unless it fails, because Wireshark shows every line on standard error as an error.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from memifrt.capture.filter import Matches, compile_filter
from memifrt.capture.pcap import MAX_SNAPLEN, LinkType, PcapngWriter
from memifrt.cli.endpoint import check_pair
from memifrt.cli.program import NoPeerError, SessionOptions, complain, session
from memifrt.errors import MemifError, os_error
from memifrt.options import DEFAULT_RECONNECT_INTERVAL
from memifrt.ports.endpoint import MemifEndpoint
from memifrt.ports.forwarding import Carry, Direction, Pump
from memifrt.ports.nowhere import Nowhere
from memifrt.ports.port import MemifPort
from memifrt.types import RxMode

_BUFFER = 1 << 16


class _Recorder:
    """Writes the packets that match, with times that never go back."""

    def __init__(self, writer: PcapngWriter, matches: Matches | None) -> None:
        self._writer = writer
        self._matches = matches
        self._last = 0

    def record(self, packets: Sequence[bytes], interface: int = 0) -> None:
        now = self._last = max(time.time_ns(), self._last)
        if self._matches is not None:
            packets = [*filter(self._matches, packets)]
        self._writer.write(packets, now, interface)


def capture(ends: Sequence[MemifEndpoint], fifo: str, expression: str, connect_timeout: float | None) -> None:
    """Capture until Wireshark closes the fifo, or until a signal.

    :param ends: one memif, or two to capture between.
    :param expression: only packets that match this filter; empty for all.
    :param connect_timeout: seconds to wait for the first peer; None waits without a limit.
    :raises MemifError: an option is wrong, or the fifo cannot be opened.
    :raises SystemExit: an interface cannot be created, or no peer came; the reason is printed.
    """
    if len(ends) == 2:
        check_pair(*ends)
    links = [(str(end), LinkType.of(end.mode)) for end in ends]
    matches = compile_filter(expression, links[0][1]) if expression else None
    # Open the fifo before signals are handled: the open waits for the reader, and a signal must end the wait.
    with contextlib.suppress(BrokenPipeError), _opened(fifo) as file, _quiet(), contextlib.ExitStack() as stack:
        writer = PcapngWriter(file, fifo, links, MAX_SNAPLEN)
        stack.callback(_close, writer)
        writer.flush()  # Wireshark waits for the header
        options = SessionOptions(connect_timeout=connect_timeout)
        with (
            _reported_before_the_end(),
            session("extcap", reconnect_interval=DEFAULT_RECONNECT_INTERVAL, session_options=options) as runtime,
            _until_closed(file.fileno(), runtime.cancel_poll_event),
        ):
            ports = [MemifPort(runtime, end) for end in ends]
            recorder = _Recorder(writer, matches)
            polling = any(end.config.rx_mode is RxMode.POLLING for end in ends)
            pump = Pump(runtime, _ways(ports, recorder), polling=polling, on_idle=writer.flush)
            stack.callback(pump.close)
            pump.run()


def _ways(ports: Sequence[MemifPort], recorder: _Recorder) -> list[Direction]:
    if len(ports) == 1:
        return [Carry(ports[0], Nowhere("nowhere"), recorder.record)]
    a, b = ports
    return [
        Carry(a, b, functools.partial(recorder.record, interface=0)),
        Carry(b, a, functools.partial(recorder.record, interface=1)),
    ]


def _opened(fifo: str) -> BinaryIO:
    try:
        return open(fifo, "wb", buffering=_BUFFER)
    except OSError as error:
        raise os_error(f"cannot write {fifo}", error, path=fifo) from error


def _close(writer: PcapngWriter) -> None:
    with contextlib.suppress(BrokenPipeError):  # Wireshark has closed the fifo
        writer.close()


@contextlib.contextmanager
def _reported_before_the_end() -> Iterator[None]:
    """Print an error before the fifo is closed: at the end of the fifo, Wireshark reads no further lines.

    :raises SystemExit: there was an error, and it is printed.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (MemifError, OSError) as error:
        complain(f"memifrt extcap: {error}")
        raise SystemExit(3 if isinstance(error, NoPeerError) else 2) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the reports of connections from standard error: a logger with a handler gets no other."""
    logger, handler = logging.getLogger("memifrt"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def _until_closed(fd: int, stop: Callable[[], None]) -> Iterator[None]:
    """Call ``stop`` when the reader of a fifo closes it, even while there are no packets to write."""
    done = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def watch() -> None:
        poll = select.poll()
        poll.register(fd, 0)  # errors are always reported
        poll.register(done, select.POLLIN)
        if any(ready == fd for ready, _ in poll.poll()):
            stop()

    thread = threading.Thread(target=watch, name="memifrt extcap fifo", daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.eventfd_write(done, 1)
        thread.join()
        os.close(done)
