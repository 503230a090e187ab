"""What many tests need: waiting for events with a deadline, a pair of interfaces, recorded callbacks."""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from memifrt import Disconnected, Interface, Runtime, Socket
from memifrt.options import RoleName
from memifrt.system import received_fds as received
from tests.lib.threads import Thread

#: Seconds after which a wait has failed. Generous: the machine may be busy, and nothing waits that long in vain.
DEADLINE = 20.0


def runtime_of(thing: Interface | Socket) -> Runtime:
    """Return the runtime that an interface or a socket belongs to."""
    assert isinstance(thing.owner, Runtime)
    return thing.owner


def wait_until(predicate: Callable[[], object], *runtimes: Runtime, timeout: float = DEADLINE) -> None:
    """Handle events of all runtimes until the predicate holds."""
    deadline = time.monotonic() + timeout
    poll = select.poll()
    for runtime in runtimes:
        poll.register(runtime.fileno(), select.POLLIN)
    while not predicate():
        left = deadline - time.monotonic()
        assert left > 0, f"not within {timeout} s: {predicate}"
        poll.poll(min(left, 1.0) * 1000)
        for runtime in runtimes:
            runtime.poll_event(0)


def wait_for_closes() -> None:
    """Wait until the threads that close what peers sent have nothing left to do."""
    deadline = time.monotonic() + DEADLINE
    while received._backlogs:
        assert time.monotonic() < deadline, f"a close has not come back: {received._backlogs}"
        time.sleep(0.001)


@dataclass
class Recorder:
    """Callbacks that note what they are called with, in order."""

    events: list[tuple[Any, ...]] = field(default_factory=list)
    reasons: list[Disconnected] = field(default_factory=list)

    def on_connect(self, interface: Interface) -> None:
        self.events.append(("connect", interface.role.name.lower()))

    def on_disconnect(self, interface: Interface, reason: Disconnected) -> None:
        self.events.append(("disconnect", interface.role.name.lower()))
        self.reasons.append(reason)

    def on_interrupt(self, interface: Interface, qid: int) -> None:
        self.events.append(("interrupt", interface.role.name.lower(), qid))

    def count(self, kind: str) -> int:
        return sum(event[0] == kind for event in self.events)


@dataclass
class Pair:
    """A master and a slave that are connected to each other."""

    master: Interface
    slave: Interface
    runtimes: tuple[Runtime, ...]

    def wait(self, predicate: Callable[[], object], timeout: float = DEADLINE) -> None:
        wait_until(predicate, *self.runtimes, timeout=timeout)

    def side(self, role: RoleName) -> Interface:
        return self.master if role == "master" else self.slave


def connect(master_runtime: Runtime, slave_runtime: Runtime, socket: str, **options: Any) -> Pair:
    """Create both ends on a socket and wait until both are connected.

    Options are ``create_interface``'s, for both; those that start with ``master_`` or ``slave_`` are for one end.
    """
    common = {key: value for key, value in options.items() if not key.startswith(("master_", "slave_"))}
    ends = []
    sides: list[tuple[Runtime, RoleName]] = [(master_runtime, "master"), (slave_runtime, "slave")]
    for runtime, role in sides:
        own = {key.removeprefix(f"{role}_"): value for key, value in options.items() if key.startswith(f"{role}_")}
        ends.append(runtime.create_interface(socket=socket, role=role, **{**common, **own}))
    runtimes = (master_runtime,) if master_runtime is slave_runtime else (master_runtime, slave_runtime)
    pair = Pair(ends[0], ends[1], runtimes)
    pair.wait(lambda: pair.master.connected and pair.slave.connected)
    return pair


@contextlib.contextmanager
def running_in_thread(runtime: Runtime) -> Iterator[None]:
    """The runtime handles its events in a thread; what a callback raises there fails the test here."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            runtime.run()
        except BaseException as error:
            failures.append(error)

    thread = Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        runtime.cancel_poll_event()
        thread.join(DEADLINE)
    assert not thread.is_alive()
    assert not failures, failures


def interrupted_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function: its first call raises KeyboardInterrupt before it does anything, as Ctrl+C can."""
    left = [1]

    def call(*args: Any, **options: Any) -> Any:
        if left:
            left.pop()
            raise KeyboardInterrupt
        return function(*args, **options)

    return call
