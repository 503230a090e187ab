"""``--loop``: the same programs in every loop, with the same output and the same ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine

import gevent
import pytest

from memifrt import ConfigError, PollCancelled
from memifrt.cli import run_in_loop as loops
from memifrt.cli.run_in_loop import LOOPS, Waiter
from tests.lib import programs
from tests.lib.support import DEADLINE

gevent.get_hub()  # whose fds stay open for as long as the process lives


def in_loop(loop: str, main: Callable[[Waiter], Coroutine[object, object, object]]) -> object:
    return loops.run("test", main, loop=loop, reconnect_interval=0.1)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("rx_mode", ["interrupt", "polling"])
def test_responder_answers_and_ping_counts(loop: str, rx_mode: str, socket_path: str) -> None:
    ends = ("--socket", socket_path, "--loop", loop, "--rx-mode", rx_mode)
    with programs.responder("--role", "master", *ends) as responder:
        done = programs.run("ping", *ends, "-c", "3", "-i", "0.01", "192.168.1.2")
        assert done.returncode == 0, done.stderr
        assert "3 packets transmitted, 3 received, 0% packet loss" in done.stdout
        status, _, err = programs.end(responder)
    assert status == 0
    assert "Traceback" not in err


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_program_that_waits(loop: str, how: signal.Signals, socket_path: str) -> None:
    """Nothing else happens: the signal alone wakes the loop."""
    with programs.responder("--role", "master", "--socket", socket_path, "--loop", loop) as responder:
        status, _, err = programs.end(responder, how)
    assert (status, err) == (0, f"memifrt responder: waiting for a peer on {socket_path}; Ctrl+C ends it\n")


@pytest.mark.parametrize("loop", LOOPS)
def test_bench_measures_in_every_loop(loop: str, socket_path: str) -> None:
    ends = ("--socket", socket_path, "--rx-mode", "interrupt", "--json")
    with programs.running("bench", "echo", "--loop", loop, "--seconds", "0", *ends) as echo:
        gen = programs.run("bench", "gen", "--role", "master", "--seconds", "0.1", *ends)
        assert gen.returncode == 0, gen.stderr
        result = json.loads(gen.stdout)
        assert result["packets"] == result["sent"] > 0
        assert result["corrupted"] == result["dropped"] == 0
        assert programs.finish(echo)[0] == 0


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("rx_mode", ["interrupt", "polling"])
def test_bench_takes_round_trips_in_every_loop(loop: str, rx_mode: str, socket_path: str) -> None:
    ends = ("--socket", socket_path, "--json")
    with programs.running("bench", "echo", "--seconds", "0", "--rx-mode", "interrupt", *ends):
        done = programs.run(
            "bench", "rr", "--role", "master", "--loop", loop, "--seconds", "0.1", "--rx-mode", rx_mode, *ends
        )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["packets"] > 0
    assert 0 < result["rtt_us"]["p50"] <= result["rtt_us"]["p99.9"]


def test_demo_takes_a_loop() -> None:
    done = programs.run("demo", "-c", "1", "--loop", "asyncio")
    assert done.returncode == 0, done.stderr
    assert "1 of 1 pings" in done.stdout


@pytest.mark.parametrize("loop", LOOPS)
def test_exception_of_a_callback_comes_out_of_the_wait(loop: str, socket_path: str) -> None:
    class Oops(Exception):
        pass

    def fail(interface: object) -> None:
        raise Oops

    async def main(waiter: Waiter) -> None:
        for role in ("master", "slave"):
            waiter.runtime.create_interface(socket=socket_path, role=role, on_connect=fail)
        with pytest.raises(Oops):
            await waiter.run_for(DEADLINE)
        raise Oops

    with pytest.raises(Oops):
        in_loop(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_cancel_ends_one_wait(loop: str) -> None:
    async def main(waiter: Waiter) -> str:
        waiter.cancel()
        with pytest.raises(PollCancelled):
            await waiter.run_for(DEADLINE)
        await waiter.wait(0)
        await waiter.wait(0.001)
        waiter.cancel()
        with pytest.raises(PollCancelled):
            await waiter.run_for(DEADLINE)
        return "result"

    assert in_loop(loop, main) == "result"


def test_unknown_loop_is_refused() -> None:
    async def main(waiter: Waiter) -> None:
        raise AssertionError

    with pytest.raises(ConfigError, match="loop is 'libev'; it must be one of internal, selectors, gevent"):
        in_loop("libev", main)
    done = programs.run("responder", "--loop", "libev")
    assert done.returncode == 2
    assert "--loop: invalid choice: 'libev'" in done.stderr


@pytest.mark.parametrize("loop", ["gevent", "trio"])
def test_missing_package_is_named(loop: str) -> None:
    code = f"""
import sys
sys.modules[{loop!r}] = None
from memifrt.cli.command_line import main
sys.exit(main(["responder", "--socket", "@memifrt-nobody", "--loop", {loop!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"memifrt responder: --loop {loop} needs {loop}, which is not installed: pip install 'memifrt[{loop}]'"
    ]
