"""Impair the packets between two memifs, for tests: delay, loss, duplicates, reordering, corruption, a rate.

:class:`ImpairedLink` is ``memifrt bridge`` with impairments, in a thread of the test's process. Owns the link; the
impairments themselves are in ``memifrt.ports``.
"""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

from memifrt.errors import ConfigError, ErrorCode, MemifError
from memifrt.options import InterfaceConfig, InterfaceOptions
from memifrt.ports.endpoint import MemifEndpoint
from memifrt.ports.forwarding import Pump, Report
from memifrt.ports.impaired import Impaired
from memifrt.ports.impaired_line import Line
from memifrt.ports.impairment import GilbertElliott, Impairment, ImpairmentCounters, Reorder
from memifrt.ports.port import MemifPort
from memifrt.runtime import Runtime
from memifrt.types import RxMode

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["GilbertElliott", "ImpairedLink", "Impairment", "ImpairmentCounters", "Line", "Reorder", "Report"]

#: Seconds between two attempts of a slave to connect. It is short because a test waits for it.
_RECONNECT_INTERVAL = 0.02
#: Seconds between two looks at the connections.
_TICK = 0.001


class ImpairedLink:
    """A link between two memifs that delays, loses or changes packets; a thread forwards them.

    It is a context manager that closes itself. Change the impairments while it runs::

        with ImpairedLink("/tmp/a.sock", "/tmp/b.sock", a_to_b=Impairment(loss="1%")) as link:
            link.a_to_b.delay = "10ms"

    :param a: the control socket of one end, or a :class:`~memifrt.ports.endpoint.MemifEndpoint`.
    :param b: the other end.
    :param a_to_b: the impairment of packets from ``a`` to ``b``; default none.
    :param b_to_a: the impairment of packets from ``b`` to ``a``; default none.
    :param options: options of both ends, as for :meth:`memifrt.Runtime.create_interface`. The role is ``master`` by
        default, so that both peers are slaves.
    :raises MemifError: an option is wrong, or an interface cannot be created.

    :ivar a_to_b: the impairment in that direction; its attributes can be changed at any time.
    :ivar b_to_a: the impairment in the other direction.
    """

    def __init__(
        self,
        a: str | os.PathLike[str] | MemifEndpoint,
        b: str | os.PathLike[str] | MemifEndpoint,
        *,
        a_to_b: Impairment | None = None,
        b_to_a: Impairment | None = None,
        **options: Unpack[InterfaceOptions],
    ) -> None:
        if a_to_b is not None and a_to_b is b_to_a:
            raise ConfigError("a_to_b and b_to_a are the same Impairment; make one for each direction")
        options.setdefault("role", "master")
        options.setdefault("rx_mode", "adaptive")
        config = InterfaceConfig.of(**options)
        ends = [end if isinstance(end, MemifEndpoint) else MemifEndpoint(os.fspath(end), config) for end in (a, b)]
        self.a_to_b = Impairment() if a_to_b is None else a_to_b
        self.b_to_a = Impairment() if b_to_a is None else b_to_a
        self._runtime = Runtime("impaired link", reconnect_interval=_RECONNECT_INTERVAL)
        try:
            near, far = self._ports = [MemifPort(self._runtime, end) for end in ends]
        except BaseException:
            self._runtime.close()
            raise
        self._ways = (Impaired(near, far, self.a_to_b), Impaired(far, near, self.b_to_a, stream=1))
        polling = any(end.config.rx_mode is RxMode.POLLING for end in ends)
        self._pump = Pump(self._runtime, self._ways, polling=polling, patient=False)
        self._failure: Exception | None = None
        self._last_reports: tuple[Report, Report] | None = None
        self._thread = threading.Thread(target=self._run, name="memifrt-impaired-link", daemon=True)
        self._thread.start()

    @property
    def connected(self) -> bool:
        """Whether both ends have a peer."""
        return all(port.connected for port in self._ports)

    @property
    def running(self) -> bool:
        """Whether the link forwards packets: it is not closed, and has not failed."""
        return self._thread.is_alive()

    def wait_connected(self, timeout: float = 10.0) -> Self:
        """Wait until both ends have a peer, and return the link.

        :param timeout: in seconds.
        :raises MemifError: an end has no peer by then, or the link has failed.
        """
        deadline = time.monotonic() + timeout
        while not self.connected:
            if self._failure is not None:
                raise self._failure
            if time.monotonic() >= deadline:
                lonely = " and ".join(port.name for port in self._ports if not port.connected)
                raise MemifError(ErrorCode.NOCONN, f"{lonely}: no peer has connected within {timeout:g} s")
            time.sleep(_TICK)
        return self

    def reports(self) -> tuple[Report, Report]:
        """Return the totals from ``a`` to ``b``, and from ``b`` to ``a``."""
        if self._last_reports is not None:
            return self._last_reports
        there, back = self._ways
        return there.report(), back.report()

    def close(self) -> None:
        """End the link. Packets that are still delayed are dropped. A second call is harmless.

        :raises MemifError: the link had failed before, or any exception of the function of ``match``.
        """
        if self._thread.is_alive():
            self._runtime.cancel_poll_event()
            self._thread.join()
        self._last_reports = self.reports()  # before the ends lose their peers, and with them the delayed packets
        self._runtime.close()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _run(self) -> None:
        try:
            self._pump.run()
        except Exception as error:  # the function of ``match`` may raise anything
            self._failure = error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
