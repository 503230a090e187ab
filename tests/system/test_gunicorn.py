"""memifrt in workers of gunicorn's gevent kind, opened after the fork as it must be, or before it by mistake."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests.lib.support import DEADLINE

pytest.importorskip("gunicorn", reason="needs gunicorn: pip install memifrt[dev]")
pytest.importorskip("gevent", reason="needs gevent: pip install memifrt[dev]")


class Server:
    """One gunicorn with one worker."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], log: str) -> None:
        self.port = port
        self.process = process
        self.log = log

    def ask(self, path: str = "/") -> tuple[int, str]:
        """The worker's process and what it says. Asks until it answers."""
        end = time.monotonic() + DEADLINE
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=DEADLINE) as answer:
                    pid, _, said = answer.read().decode().partition(": ")
                    return int(pid), said
            except (OSError, urllib.error.URLError):
                if self.process.poll() is not None or time.monotonic() > end:
                    raise AssertionError(self.written()) from None
                time.sleep(0.02)

    def ask_another(self, than: int) -> tuple[int, str]:
        """Ask until another worker answers."""
        end = time.monotonic() + DEADLINE
        while (answer := self.ask())[0] == than:
            assert time.monotonic() < end, self.written()
        return answer

    def written(self) -> str:
        with open(self.log) as file:
            return file.read()


@contextlib.contextmanager
def gunicorn(name: str, when: str, *options: str) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        log = f"{home}/log"
        with open(log, "wb") as out:
            process = subprocess.Popen(
                [
                    *(
                        sys.executable,
                        "-m",
                        "gunicorn",
                        "-k",
                        "gevent",
                        "-w",
                        "1",
                        "-c",
                        "python:tests.lib.gunicorn_app",
                    ),
                    *("--graceful-timeout", "1", *options, "tests.lib.gunicorn_app:application"),
                ],
                env={
                    **os.environ,
                    "MEMIFRT_BIND": f"127.0.0.1:{port}",
                    "MEMIFRT_SOCKET": name,
                    "MEMIFRT_WHEN": when,
                },
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            yield Server(port, process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(DEADLINE)
            finally:
                process.kill()
                process.wait()


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["plain", "preload"])
def test_opened_in_post_fork_it_works_and_survives_a_reload(socket_name: str, options: tuple[str, ...]) -> None:
    with gunicorn(socket_name, "post_fork", *options) as server:
        first, said = server.ask()
        assert said == "1 packets", server.written()
        server.process.send_signal(signal.SIGHUP)
        _, said = server.ask_another(first)
        assert said == "1 packets", server.written()


def test_opened_before_the_fork_each_call_in_the_worker_says_so(socket_name: str) -> None:
    with gunicorn(socket_name, "before", "--preload") as server:
        worker, said = server.ask()
        assert said == (
            f"this interface belongs to process {server.process.pid} and cannot be used in process {worker}: "
            "a forked child makes one of its own"
        )


def test_a_worker_that_ends_after_max_requests_is_followed_by_one_that_works(socket_name: str) -> None:
    with gunicorn(socket_name, "post_fork", "--max-requests", "1") as server:
        first, said = server.ask()
        assert said == "1 packets", server.written()
        assert server.ask_another(first)[1] == "1 packets"


def test_a_worker_that_is_killed_for_its_timeout_is_followed_by_one_that_works(socket_name: str) -> None:
    with gunicorn(socket_name, "post_fork", "--timeout", "1") as server:
        first, _ = server.ask()
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/hang", timeout=DEADLINE).read()
        assert server.ask_another(first)[1] == "1 packets"
