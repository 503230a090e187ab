"""Run trials with memifrt.traffic: through a device on one or two memifs, and of the generator against itself.

Owns how a trial becomes a run of the generator, and the interfaces of the generator's own test. It knows no search.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from memifrt.errors import ConfigError, Disconnected, PollCancelled
from memifrt.interface import Interface
from memifrt.options import InterfaceConfig
from memifrt.runtime import Runtime
from memifrt.throughput.sizes import IMIX, LONGEST, FrameSize
from memifrt.throughput.trial import Latency, TrialResult
from memifrt.types import Mode, Role, RxMode

if TYPE_CHECKING:
    from typing_extensions import Self

    from memifrt.traffic import Generator

Direction = Literal["forward", "backward", "both"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward", "both")
#: The packet of each mode if the caller gives none. memifrt.traffic fills in addresses for benchmarks (RFC 2544).
DEFAULT_PACKETS = {Mode.ETHERNET: "Ether()/IP()/UDP()", Mode.IP: "IP()/UDP()"}
#: Seconds between two calls of ``poll``, and from which a longer time between them is a pause.
_POLL_INTERVAL, _NOTICEABLE = 0.001, 0.0005
#: Seconds to connect the two ends of the generator's own test, which needs milliseconds.
_CONNECT_LIMIT = 10.0


def require() -> None:
    """Check that the packages of the traffic generator are installed, before anything is opened.

    :raises ConfigError: they are not, and how to install them.
    """
    try:
        import hdrh.histogram  # noqa: F401
        import numpy  # noqa: F401
        import scapy  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed: pip install 'memifrt[throughput]'") from error


class Pauses:
    """Notices when this process did not run: the generator calls its ``poll`` every millisecond while it does."""

    def __init__(self, poll: Callable[[], object]) -> None:
        self._poll = poll
        self._last: float | None = None
        #: The seconds of all pauses since :meth:`begin`.
        self.seconds = 0.0

    def begin(self) -> None:
        self._last = None
        self.seconds = 0.0

    def __call__(self) -> None:
        now = time.monotonic()
        if self._last is not None and now - self._last > _POLL_INTERVAL + _NOTICEABLE:
            self.seconds += now - self._last - _POLL_INTERVAL
        self._last = now
        self._poll()


class MemifTrial:
    """Runs trials on connected interfaces. It is a :class:`memifrt.throughput.Trial`.

    The interfaces should have ``rx_mode="polling"`` and no ``on_interrupt``; nothing else may use their queues.

    :param interfaces: one interface, on which the device sends back what it gets; or two, with the device between.
    :param poll: handles the events of the runtime; it is called about every millisecond.
    :param packet: the packet as :class:`memifrt.traffic.Stream` has it; None: UDP with addresses for benchmarks.
    :param fields: the fields that vary, as :class:`memifrt.traffic.Stream` has them.
    :param direction: ``forward`` sends on the first interface, ``backward`` on the second, ``both`` on both at the
        same time: rates are then those of each direction, and counts those of both together.
    :param settle: the most seconds to wait for the next of the frames that are still on their way.
    :raises ConfigError: an argument is wrong, or an interface has no peer.
    """

    def __init__(
        self,
        interfaces: Sequence[Interface],
        *,
        poll: Callable[[], object],
        packet: str | None = None,
        fields: Sequence[str] = (),
        direction: Direction = "forward",
        settle: float = 0.2,
    ) -> None:
        from memifrt.traffic import Generator, Stream

        self._interfaces = interfaces
        self._settle = settle
        self._directions = 2 if direction == "both" else 1
        packet = DEFAULT_PACKETS[interfaces[0].mode] if packet is None else packet
        # Each trial names a size of its own. This one has room for any packet.
        stream = Stream(packet, name="throughput", size=LONGEST, fields=fields, direction=direction)
        self._pauses = Pauses(poll)
        self._generator: Generator = Generator(interfaces, stream, poll=self._pauses)

    def check_size(self, size: FrameSize) -> None:
        """Check that the packet fits into frames of a size.

        :raises ConfigError: it does not.
        """
        try:
            self._generator.check_size(_traffic_size(size))
        except ConfigError as error:
            raise ConfigError(f"frames of {size}: {error}") from error

    def measure(self, rate: float, duration: float, size: FrameSize, *, latency: bool = False) -> TrialResult:
        """Run one trial.

        :raises PollCancelled: ``poll`` has raised it.
        :raises Disconnected: a peer is gone.
        """
        fast = rate == math.inf
        full_before = self._ring_full()
        self._pauses.begin()
        report = self._generator.run(
            duration=duration, rate=rate, size=_traffic_size(size), own_rates=False, settle=self._settle
        )
        if report.ended == "interrupted":
            raise PollCancelled
        if report.ended == "disconnected":
            raise Disconnected(f"the device is gone: {report.error}")
        total = report.total
        offered = total.sent if fast else self._directions * max(round(rate * duration), 1)
        received = total.intact
        missed = 0.0 if fast else self._pauses.seconds * rate * self._directions
        return TrialResult(
            size=size,
            rate=total.sent / duration / self._directions if fast else rate,
            duration=duration,
            offered=offered,
            sent=total.sent,
            received=received,
            late=not fast and may_be_ours(offered, total.sent, received, missed, self._ring_full() > full_before),
            latency=Latency.of(total.latency.histogram) if latency and total.latency is not None else None,
        )

    def _ring_full(self) -> int:
        """Return how many calls have found too little room in a ring of the device."""
        return sum(interface.counters.tx.ring_full for interface in self._interfaces)


def may_be_ours(offered: int, sent: int, received: int, missed: float, ring_was_full: bool) -> bool:
    """Return whether a loss may be the generator's own.

    It is if frames were not sent although the device had room. It may be if this process was paused: while it is, the
    device's frames fill our receive ring, and after it ours fill the device's.

    :param missed: the number of frames that were due while this process was paused.
    :param ring_was_full: whether the device had no room at least once.
    """
    if sent < offered and not ring_was_full:
        return True
    return 0 < offered - received <= 2 * missed


def _traffic_size(size: FrameSize) -> int | str | None:
    """Return a frame size as the streams of memifrt.traffic have it."""
    if size == IMIX:
        return "imix"
    lengths = [str(length) for length, count in size.mix for _ in range(count)]
    return ",".join(lengths)


def _nothing() -> None:
    """Do nothing: there is no other runtime."""


class SelfTrial:
    """Runs trials of the generator against itself: two memifs of this process, joined without a device.

    Use it as a context manager. The work for each frame is the same as with a device: one packet is sent and received.

    :param config: the rings, the buffers and the mode, as they are with the device.
    :ivar poll: handles the events of other runtimes meanwhile.

    The other parameters are those of :class:`MemifTrial`.
    """

    def __init__(
        self,
        config: InterfaceConfig,
        *,
        packet: str | None = None,
        fields: Sequence[str] = (),
        direction: Direction = "forward",
    ) -> None:
        self._config = config
        self.poll: Callable[[], object] = _nothing
        self._packet = packet
        self._fields = fields
        self._direction = direction
        self._runtime = Runtime("memifrt throughput, generator")
        self._trial: MemifTrial | None = None
        #: The sending interface and the receiving one, inside of the ``with`` block.
        self.ends: Sequence[Interface] = ()

    def __enter__(self) -> Self:
        try:
            socket = f"@memifrt-throughput-{uuid.uuid4().hex}"
            config = self._config.replace(id=0, rx_mode=RxMode.POLLING, secret=None)
            self.ends = [
                self._runtime.create_interface(socket=socket, **config.replace(role=role, name=name).options())
                for role, name in ((Role.MASTER, "generator"), (Role.SLAVE, "receiver"))
            ]
            self._connect()
            self._trial = MemifTrial(
                self.ends, poll=self._poll, packet=self._packet, fields=self._fields, direction=self._direction
            )
        except BaseException:
            self._runtime.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._runtime.close()

    def check_size(self, size: FrameSize) -> None:
        """Check that the packet fits into frames of a size; see :meth:`MemifTrial.check_size`."""
        assert self._trial is not None, "it is used outside of its with block"
        self._trial.check_size(size)

    def _connect(self) -> None:
        deadline = time.monotonic() + _CONNECT_LIMIT
        while not all(end.connected for end in self.ends):
            if time.monotonic() >= deadline:
                raise Disconnected(f"the generator's own memifs do not connect within {_CONNECT_LIMIT:g} s")
            self._runtime.poll_event(0.01)
            self.poll()

    def _poll(self) -> None:
        self._runtime.poll_event(0)
        self.poll()

    def measure(self, rate: float, duration: float, size: FrameSize, *, latency: bool = False) -> TrialResult:
        """Run one trial; see :meth:`MemifTrial.measure`."""
        assert self._trial is not None, "it is used outside of its with block"
        return self._trial.measure(rate, duration, size, latency=latency)
