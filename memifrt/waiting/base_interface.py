"""The parts that the interfaces of all loops share: everything that does not wait, and the iteration over bursts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar, cast

from memifrt.errors import ConfigError, MemifError
from memifrt.interface import Details, Interface
from memifrt.options import DEFAULT_APP_NAME, RuntimeOptions
from memifrt.queue import RxQueue, TxQueue
from memifrt.system.not_copied import NotCopied
from memifrt.types import Counters, Mode, Role, State
from memifrt.waiting.kept import BURST
from memifrt.waiting.steps import Receiving, Waiting
from memifrt.waiting.wakeup import PASS, Signal, Steps

if TYPE_CHECKING:
    from memifrt.ring import Burst
    from memifrt.runtime import InterfaceArguments, OpenArguments, Runtime

S = TypeVar("S", bound=Signal)

_RUNTIME_OPTIONS = tuple(RuntimeOptions.__annotations__)


class BurstHolder(NotCopied, Generic[S]):
    """The iteration over the bursts of one queue. It holds at most one burst.

    The next step and ``close`` give the present burst back. If a loop is left (by ``break``, an exception or a
    cancellation), its iterator is dropped, and CPython closes it at once.
    """

    def __init__(self, waiting: Waiting[S], qid: int, limit: int) -> None:
        self._waiting = waiting
        self._qid = qid
        self._limit = limit
        self._burst: Burst | None = None
        #: Whether a caller waits for the next burst.
        self._taking = False
        #: Whether the iteration has ended.
        self.closed = False

    def _begin(self) -> Receiving[S, Burst]:
        """Give the present burst back, and return a call that takes the next one.

        :raises ConfigError: another caller waits for the next burst already, or the caller is in another thread or
            loop.
        """
        call = self._waiting.receiving(self._qid, self._limit, BURST)
        if self._taking:
            raise ConfigError(
                f"{self._waiting.interface}: another caller waits for the next of these bursts: "
                "callers that share a queue must each call bursts()"
            )
        self._give_back()
        self._taking = True
        return call

    def _next(self) -> Steps[S, Burst | None]:
        """Take the next burst; return None if the iteration was closed, before the call or during it.

        Raises as :meth:`_begin`.
        """
        call = self._begin()
        try:
            while not self.closed:  # close() wakes us
                self._burst = self._waiting.look(call)
                if self._burst is not None:
                    break
                yield call if call.waits else PASS
        finally:
            self._taking = False
            self._waiting.leave(call)
        return self._burst

    def close(self) -> None:
        """Give the present burst back and end the iteration, also for a caller that waits for the next burst.

        A second call is harmless.

        :raises BufferError: a slice of one of the views is still held. The burst is given back all the same.
        :raises ConfigError: the caller is in another thread or loop.
        """
        self._waiting.check_owner(False)
        self._close()

    def _close(self) -> None:
        self.closed = True
        if self._taking:
            self._waiting.wake_all()
        self._give_back()

    def _give_back(self) -> None:
        burst, self._burst = self._burst, None
        if burst is not None:
            burst.close()

    def __del__(self) -> None:
        self._close()


class BaseInterface(NotCopied, Generic[S]):
    """An interface of a loop, without the calls that wait. :attr:`interface` is the interface itself."""

    def __init__(self, waiting: Waiting[S]) -> None:
        self._waiting = waiting

    @property
    def interface(self) -> Interface:
        """The interface itself. Do not set its callbacks: pass yours to ``open_interface``."""
        return self._waiting.interface

    @property
    def runtime(self) -> Runtime:
        """The runtime of the interface."""
        return self._waiting.runtime

    _runtime = runtime  # the name that older programs use

    @property
    def id(self) -> int:
        return self.interface.id

    @property
    def name(self) -> str:
        return self.interface.name

    @property
    def role(self) -> Role:
        return self.interface.role

    @property
    def mode(self) -> Mode:
        return self.interface.mode

    @property
    def state(self) -> State:
        return self.interface.state

    @property
    def connected(self) -> bool:
        """Whether there is a peer and ``on_connect`` has been called for it."""
        return self._waiting.connected

    @property
    def last_error(self) -> MemifError | None:
        """Why the last connection or attempt to connect ended."""
        return self.interface.last_error

    @property
    def rx_queues(self) -> tuple[RxQueue, ...]:
        """The receive queues of the present connection, or of the last one."""
        return self.interface.rx_queues

    @property
    def tx_queues(self) -> tuple[TxQueue, ...]:
        """The transmit queues of the present connection, or of the last one."""
        return self.interface.tx_queues

    @property
    def counters(self) -> Counters:
        """The sums of the counters of all queues since the interface was created, over all connections."""
        return self.interface.counters

    def details(self) -> Details:
        """Return the details of the interface; see :meth:`memifrt.Interface.details`."""
        return self.interface.details()

    def request_connection(self) -> None:
        """Connect a slave now, without waiting for the timer; see :meth:`memifrt.Interface.request_connection`."""
        self._waiting.check_owner(False)
        self.interface.request_connection()

    def disconnect(self, reason: str = "disconnected by the application") -> None:
        """End the present connection, if there is one. A slave then connects again with the timer."""
        self._waiting.check_owner(False)
        self.interface.disconnect(reason)

    def delete(self) -> None:
        """Delete the interface: callers that wait on it get :class:`~memifrt.Disconnected`."""
        self._waiting.check_owner(False)
        self.interface.delete()

    def close(self) -> None:
        """Delete the interface: callers that wait on it get :class:`~memifrt.Disconnected`. A second call is harmless.

        :raises ConfigError: the caller is in another thread or loop.
        """
        self.delete()

    def __str__(self) -> str:
        return str(self.interface)

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__name__} {self}, {self._waiting.waiters} waiting>"


def split_arguments(arguments: OpenArguments) -> tuple[str, RuntimeOptions, InterfaceArguments]:
    """Return the name and the options of a new runtime, and the arguments of the interface.

    An option of the runtime that is None stands for its default.
    """
    given = {**arguments}
    app_name = given.pop("app_name", None)
    own = {name: value for name in _RUNTIME_OPTIONS if (value := given.pop(name, None)) is not None}
    return (
        DEFAULT_APP_NAME if app_name is None else cast("str", app_name),
        cast("RuntimeOptions", own),
        cast("InterfaceArguments", given),
    )


def interface_arguments(runtime: Runtime, arguments: OpenArguments) -> InterfaceArguments:
    """Return the arguments of an interface in a runtime that it shares with others.

    :raises ConfigError: the runtime polls by itself, or an argument is an option for a new runtime.
    """
    if runtime.polls_itself:
        raise ConfigError(f"{runtime!r} polls by itself, not in this loop: use a runtime of open_runtime()")
    given = {**arguments}
    for name in ("app_name", *_RUNTIME_OPTIONS):
        value = given.pop(name, None)
        if value is not None:
            raise ConfigError(f"{name} is {value!r}, but the runtime that is given has its own: leave it out")
    return cast("InterfaceArguments", given)


__all__ = ["BaseInterface", "BurstHolder", "interface_arguments", "split_arguments"]
