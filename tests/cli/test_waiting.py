"""What commands say while they have no peer, and about peers without names."""

from __future__ import annotations

import logging

import pytest

from memifrt import Runtime
from memifrt.types import peer_names
from tests.lib.programs import end, read_until, running
from tests.lib.support import wait_until

COMMANDS = {
    "responder": ["responder"],
    "ping": ["ping", "192.168.1.2"],
    "bench": ["bench", "echo"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_master_says_that_it_waits_for_a_peer(command: str, socket_name: str) -> None:
    with running(*COMMANDS[command], "--role", "master", "--socket", socket_name) as program:
        line = read_until(program, "waiting", stderr=True)
        assert line == f"memifrt {command}: waiting for a peer on {socket_name}; Ctrl+C ends it\n"
        end(program)


@pytest.mark.parametrize("command", COMMANDS)
def test_slave_says_that_it_retries_until_ctrl_c(command: str, socket_name: str) -> None:
    with running(*COMMANDS[command], "--socket", socket_name) as program:
        line = read_until(program, "retrying every", stderr=True)
        assert line.endswith(" s; Ctrl+C ends it\n")
        assert "disconnected" not in line
        end(program)


def test_bridge_says_for_each_master_that_it_waits(socket_name: str) -> None:
    ends = [f"memif:{socket_name}-{side},role=master" for side in "ab"]
    with running("bridge", *ends) as program:
        for side in "ab":
            assert read_until(program, "waiting", stderr=True).endswith(
                f"peer on {socket_name}-{side}; Ctrl+C ends it\n"
            )
        end(program)


def test_peer_that_hangs_up_in_the_handshake_did_not_connect(
    runtime: Runtime, socket_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    master = runtime.create_interface(socket=socket_name, role="master")
    with caplog.at_level(logging.INFO, logger="memifrt"), Runtime("peer") as other:
        slave = other.create_interface(socket=socket_name, role="slave")
        wait_until(lambda: master.connection is not None, runtime, other)
        assert not master.connected
        slave.delete()
        wait_until(lambda: master.disconnects == 1, runtime)
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith(str(master))]
    assert any(": the peer did not connect: " in line for line in told)
    assert not any(line.startswith(f"{master}: disconnected") for line in told)


@pytest.mark.parametrize(
    ("interface", "program", "text"),
    [
        ("memif0", "VPP", "'memif0' of 'VPP'"),
        ("", "VPP", "an interface without a name of 'VPP'"),
        ("memif0", "", "'memif0' of a program without a name"),
        ("", "", "a peer without a name"),
        ("a\n'", "", '"a\\n\'" of a program without a name'),
    ],
)
def test_empty_names_of_a_peer_are_told_in_words(interface: str, program: str, text: str) -> None:
    assert peer_names(interface, program) == text
