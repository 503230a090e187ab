"""The reconnect timer: which slaves try to connect, and when there is a timer at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from memifrt.connection.reconnect import Reconnector
from memifrt.errors import MemifOSError, os_error
from memifrt.poll.schedule import Schedule
from memifrt.system.timerfd import TimerFd


@pytest.fixture
def schedule() -> Iterator[Schedule]:
    timer = TimerFd()
    yield Schedule(timer)
    timer.close()


@dataclass(eq=False)
class Slave:
    """An interface that notes its attempts to connect; each raises, or runs an action."""

    wants_connection: bool = True
    attempts: int = 0
    error: BaseException | None = None
    action: Callable[[], object] = field(default=lambda: None)

    def connect(self) -> None:
        self.attempts += 1
        self.action()
        if self.error is not None:
            raise self.error


def has_timer(reconnector: Reconnector) -> bool:
    return reconnector.next_attempt is not None


def attempt(reconnector: Reconnector) -> None:
    assert reconnector.next_attempt is not None
    reconnector.next_attempt.action()


def refused() -> MemifOSError:
    return os_error("cannot connect", ConnectionRefusedError(111, "Connection refused"))


def test_there_is_a_timer_while_a_slave_waits_and_no_longer(schedule: Schedule) -> None:
    reconnector, slave = Reconnector(schedule, 3600), Slave()
    assert not has_timer(reconnector)
    reconnector.update(slave)
    assert schedule.pending == (reconnector.next_attempt,)
    slave.wants_connection = False
    reconnector.update(slave)
    assert not has_timer(reconnector)
    assert len(schedule) == 0


def test_a_second_slave_does_not_put_the_attempt_off(schedule: Schedule) -> None:
    reconnector = Reconnector(schedule, 3600)
    reconnector.update(Slave())
    first = reconnector.next_attempt
    reconnector.update(Slave())
    assert reconnector.next_attempt is first


def test_a_slave_that_is_refused_tries_again_and_does_not_keep_others_from_trying(schedule: Schedule) -> None:
    reconnector, slaves = Reconnector(schedule, 3600), [Slave(error=refused()), Slave()]
    for slave in slaves:
        reconnector.update(slave)
    for _ in range(2):
        attempt(reconnector)
    assert [slave.attempts for slave in slaves] == [2, 2]


def test_what_a_connect_raises_comes_out_and_the_timer_goes_on(schedule: Schedule) -> None:
    reconnector = Reconnector(schedule, 3600)
    reconnector.update(Slave(error=ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        attempt(reconnector)
    assert has_timer(reconnector)


def test_a_slave_that_the_attempt_of_another_has_deleted_does_not_try(schedule: Schedule) -> None:
    reconnector, deleted = Reconnector(schedule, 3600), Slave()

    def delete() -> None:
        deleted.wants_connection = False
        reconnector.update(deleted)

    reconnector.update(Slave(action=delete))
    reconnector.update(deleted)
    attempt(reconnector)
    assert deleted.attempts == 0


def test_without_an_interval_there_is_no_attempt(schedule: Schedule) -> None:
    reconnector = Reconnector(schedule, 0)
    reconnector.update(Slave())
    assert not has_timer(reconnector)
    reconnector.set_interval(3600)
    assert has_timer(reconnector)
    reconnector.set_interval(0)
    assert not has_timer(reconnector)


def test_a_closed_one_sets_no_timer(schedule: Schedule) -> None:
    reconnector = Reconnector(schedule, 3600)
    reconnector.close()
    reconnector.update(Slave())
    assert len(schedule) == 0
