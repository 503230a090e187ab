"""Peers that are killed, children that are forked, runtimes that are forgotten, two runtimes in two threads."""

from __future__ import annotations

import gc
import os
import select
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memifrt import ForkedError, Interface, MemifError, Runtime, State
from memifrt.options import RoleName
from tests.lib.forked import in_child
from tests.lib.patched import open_fds
from tests.lib.peer import ScriptedMaster, ScriptedSlave, assert_packets_pass
from tests.lib.support import DEADLINE, Pair, Recorder, connect, wait_until
from tests.lib.threads import Thread

ROLES: tuple[RoleName, ...] = ("master", "slave")


def other(role: RoleName) -> RoleName:
    return "slave" if role == "master" else "master"


class Children:
    """Forked children, killed at the end if they live that long."""

    def __init__(self) -> None:
        self.pids: set[int] = set()

    def start(self, body: Callable[[], object]) -> int:
        """Run ``body`` in a child, which is killed, as by ``kill -9``, when it returns."""
        pid = os.fork()
        if pid == 0:
            try:
                body()
                os.kill(os.getpid(), signal.SIGKILL)
            finally:
                os._exit(1)
        self.pids.add(pid)
        return pid

    def wait(self, pid: int, runtime: Runtime) -> None:
        """Handle events until the child has died, as it must, by SIGKILL."""
        pidfd = os.pidfd_open(pid)
        try:
            while pidfd not in (ready := select.select([pidfd, runtime.fileno()], [], [], DEADLINE)[0]):
                assert ready, "the child does not die"
                runtime.poll_event(0)
        finally:
            os.close(pidfd)
        self.pids.remove(pid)
        assert os.waitpid(pid, 0) == (pid, signal.SIGKILL)

    def kill(self, pid: int) -> None:
        self.pids.remove(pid)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture
def children() -> Iterator[Children]:
    children = Children()
    yield children
    for pid in list(children.pids):
        children.kill(pid)


# --- kill -9 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [False, True], ids=["before saying it", "after saying it"])
@pytest.mark.parametrize("step", [*ScriptedSlave.STEPS, None])
def test_a_slave_killed_at_any_step_leaves_nothing_and_may_come_back(
    runtime: Runtime, peer_runtime: Runtime, socket_name: str, children: Children, step: str | None, said: bool
) -> None:
    record = Recorder()
    master = runtime.create_interface(
        socket=socket_name, role="master", on_connect=record.on_connect, on_disconnect=record.on_disconnect
    )
    before, watched = open_fds(), len(runtime._registry)

    def slave() -> None:
        peer = ScriptedSlave(socket_name).run(until=step)
        if step is not None and said:
            peer.say(step)

    pid = children.start(slave)
    children.wait(pid, runtime)
    wait_until(lambda: len(runtime._registry) == watched, runtime)
    assert open_fds() == before
    assert master.state is State.DISCONNECTED
    steps = ScriptedSlave.STEPS
    was_ours = step is None or steps.index(step) > steps.index("init") or (step == "init" and said)
    reasons = [str(reason).partition(" while we waited for ")[0] for reason in record.reasons]
    assert reasons == ["peer closed the connection without a reason"] * was_ours
    assert sum(reason.established for reason in record.reasons) == record.count("connect")
    slave_again = peer_runtime.create_interface(socket=socket_name)
    wait_until(lambda: master.connected and slave_again.connected, runtime, peer_runtime)
    assert_packets_pass(Pair(master, slave_again, (runtime, peer_runtime)))


@pytest.mark.parametrize("step", [*ScriptedMaster.STEPS, None])
def test_a_master_killed_at_any_step_leaves_nothing_and_may_come_back(
    runtime: Runtime, peer_runtime: Runtime, socket_name: str, children: Children, step: str | None
) -> None:
    record = Recorder()
    before = open_fds()
    pid = children.start(lambda: ScriptedMaster(socket_name).run(until=step))
    slave = runtime.create_interface(
        socket=socket_name, on_connect=record.on_connect, on_disconnect=record.on_disconnect
    )
    children.wait(pid, runtime)
    wait_until(lambda: slave.state is State.DISCONNECTED, runtime)
    assert open_fds() == before
    reasons = {str(reason).partition(" while we waited for ")[0] for reason in record.reasons}
    assert reasons == {"peer closed the connection without a reason"}
    assert record.count("connect") == (step is None)
    assert record.reasons[-1].established == (step is None)
    assert runtime._timer.armed
    master = peer_runtime.create_interface(socket=socket_name, role="master")
    wait_until(lambda: master.connected and slave.connected, runtime, peer_runtime)
    assert_packets_pass(Pair(master, slave, (runtime, peer_runtime)))


def echo(path: str, role: RoleName) -> None:
    """A peer in a process of its own: gives every packet back."""

    def on_interrupt(interface: Interface, qid: int) -> None:
        interface.tx_queues[qid].send(interface.rx_queues[qid].recv())

    runtime = Runtime("echo", reconnect_interval=0.02)
    runtime.create_interface(socket=path, role=role, on_interrupt=on_interrupt)
    runtime.run()


@pytest.mark.parametrize("role", ROLES)
def test_a_peer_killed_while_packets_flow_is_noticed_and_welcome_again(
    runtime: Runtime, socket_path: str, children: Children, role: RoleName
) -> None:
    record, answers = Recorder(), []

    def on_interrupt(interface: Interface, qid: int) -> None:
        answers.extend(interface.rx_queues[qid].recv())

    interface = runtime.create_interface(
        socket=socket_path,
        role=role,
        on_connect=record.on_connect,
        on_disconnect=record.on_disconnect,
        on_interrupt=on_interrupt,
    )
    for life in range(1, 4):  # a killed master leaves a stale socket file, which the next one replaces
        pid = children.start(lambda: echo(socket_path, other(role)))
        wait_until(lambda: interface.connected, runtime)
        assert interface.details().peer.pid == pid  # type: ignore[union-attr]
        wait_until(lambda: interface.tx_queues[0].send([b"echo"]), runtime)
        wait_until(lambda: answers, runtime)
        children.kill(pid)
        wait_until(lambda: len(record.reasons) == life, runtime)  # noqa: B023
        answers.clear()
    assert record.events == [("connect", role), ("disconnect", role)] * 3
    interface.delete()
    Path(socket_path).unlink(missing_ok=True)


# --- fork -----------------------------------------------------------------------------------------------------------


def test_a_forked_child_does_not_close_unlink_or_speak_for_its_parent(
    runtime: Runtime, peer_runtime: Runtime, socket_path: str
) -> None:
    record = Recorder()
    home = runtime.create_socket(socket_path)
    pair = connect(
        runtime,
        peer_runtime,
        socket_path,
        on_disconnect=record.on_disconnect,
        on_interrupt=record.on_interrupt,
    )

    def child() -> None:
        here = open_fds()
        with pytest.raises(ForkedError):
            pair.slave.disconnect()
        for interface in (pair.master, pair.slave):
            interface.delete()
        home.delete()
        for each in (runtime, peer_runtime):
            each.close()
            each.close()
        assert record.events == []
        # Its copies are its own to close, and it does not: numbers may be somebody else's by now.
        assert open_fds() == here

    in_child(child)
    assert Path(socket_path).is_socket()
    for near in (runtime, peer_runtime):
        near.poll_event(0)
    assert record.events == []
    assert_packets_pass(pair)
    record.events.clear()
    pair.slave.tx_queues[0].send([b"interrupts"])
    pair.wait(lambda: ("interrupt", "master", 0) in record.events)  # our epoll still watches


def test_a_forked_child_is_told_to_make_a_runtime_of_its_own(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    runtime = pair.runtimes[0]

    def child() -> None:
        for call in (runtime.poll_event, runtime.create_interface, runtime.cancel_poll_event, runtime.fileno):
            with pytest.raises(MemifError, match="a forked child makes one of its own"):
                call()
        with Runtime("child") as own:
            assert own.poll_event(0) == 0

    in_child(child)
    assert_packets_pass(pair)


_FORGETFUL = """
import gc, os, sys
from memifrt import Runtime

def connected():
    runtime = Runtime("forgetful", reconnect_interval=0.02)
    ends = [runtime.create_interface(socket=sys.argv[1], role=role) for role in ("master", "slave")]
    while not all(end.connected for end in ends):
        runtime.poll_event(1)
    return runtime, ends
"""


def run_script(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "always::ResourceWarning", "-c", _FORGETFUL + script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_child_that_forgets_its_parents_runtime_is_silent(socket_path: str) -> None:
    done = run_script(
        """
runtime, ends = connected()
if os.fork() == 0:
    del runtime, ends
    gc.collect()
    os._exit(0)
assert os.wait()[1] == 0
ends[0].tx_queues[0].send([b"packet"])
assert ends[1].rx_queues[0].recv() == [b"packet"]
assert os.path.exists(sys.argv[1])
runtime.poll_event(0)
assert all(end.connected for end in ends)
runtime.close()
""",
        socket_path,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("how", ["del runtime, ends; gc.collect()", "pass", "sys.exit(0)"])
def test_a_process_that_forgets_its_runtime_is_warned_and_leaves_no_file(socket_path: str, how: str) -> None:
    done = run_script(f"runtime, ends = connected()\n{how}\n", socket_path)
    assert done.returncode == 0
    assert "ResourceWarning: unclosed <memifrt.Runtime 'forgetful', 2 interface(s)>" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert not os.path.exists(socket_path)


def test_a_forgotten_runtime_warns_once_and_frees_everything(socket_name: str) -> None:
    before = open_fds()

    def forget() -> None:
        runtime = Runtime("forgotten", reconnect_interval=0.02)
        connect(runtime, runtime, socket_name)

    # A collection in between would move the runtime to another generation than its parts; which of them is then
    # finalized first, and warns, is up to the collector.
    gc.collect()
    gc.disable()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            forget()
            gc.collect()
    finally:
        gc.enable()
    told = [str(warning.message) for warning in caught]
    assert told == ["unclosed <memifrt.Runtime 'forgotten', 2 interface(s)>"]
    assert caught[0].category is ResourceWarning
    assert open_fds() == before


# --- threads --------------------------------------------------------------------------------------------------------


def test_two_runtimes_run_in_two_threads(socket_name: str) -> None:
    rounds, failures = 2000, []
    done = threading.Event()
    runtimes = {role: Runtime(role, reconnect_interval=0.02) for role in ROLES}

    def bounce(interface: Interface, qid: int) -> None:
        for packet in interface.rx_queues[qid].recv():
            number = int.from_bytes(packet, "little")
            if number == rounds:
                done.set()
            else:
                assert interface.tx_queues[qid].send([(number + 1).to_bytes(4, "little")]) == 1

    def serve(interface: Interface) -> None:
        interface.tx_queues[0].send([bytes(4)])

    def work(role: RoleName) -> None:
        try:
            runtimes[role].create_interface(
                socket=socket_name,
                role=role,
                on_interrupt=bounce,
                on_connect=serve if role == "slave" else None,
            )
            runtimes[role].run()
        except BaseException as error:
            failures.append(error)
            done.set()

    threads = [Thread(target=work, args=(role,)) for role in ROLES]
    for thread in threads:
        thread.start()
    finished = done.wait(60)
    for runtime in runtimes.values():
        runtime.cancel_poll_event()
    for thread in threads:
        thread.join()
    for runtime in runtimes.values():
        runtime.close()
    assert finished
    assert failures == []
