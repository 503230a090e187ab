"""Programs that end: what is in the ring is taken first, by a peer with VPP's habits, or they say what was left."""

from __future__ import annotations

import re
import select
import signal
import time
from pathlib import Path

import pytest

from memifrt import Runtime
from memifrt.capture.pcap import LinkType, create_capture
from tests.lib.peer import VppMaster, VppSlave
from tests.lib.programs import Program, end, finish, read_until, running
from tests.lib.support import DEADLINE, wait_until

PACKET = bytes(range(60))
ROLES = ["master", "slave"]


def capture(path: Path, count: int) -> str:
    writer = create_capture(str(path), [("test", LinkType.ETHERNET)], 1 << 16)
    writer.write([PACKET] * count, 1_000_000_000, 0)
    writer.close()
    return str(path)


def serve(peer: VppMaster | VppSlave, program: Program, *runtimes: Runtime) -> None:
    """Let the peer look at its ring when it is kicked, until the program has ended."""
    poll = select.poll()
    poll.register(peer.rx_fd, select.POLLIN)
    for runtime in runtimes:
        poll.register(runtime.fileno(), select.POLLIN)
    deadline = time.monotonic() + DEADLINE
    while program.poll() is None:
        assert time.monotonic() < deadline
        poll.poll(50)
        peer.on_kick()
        for runtime in runtimes:
            runtime.poll_event(0)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("count", [20, 1000, 3000])
def test_replay_ends_when_the_peer_has_taken_everything(
    role: str, count: int, socket_path: str, tmp_path: Path
) -> None:
    path = capture(tmp_path / "x.pcap", count)
    master = VppMaster(socket_path) if role == "slave" else None
    with running("replay", path, "--role", role, "--socket", socket_path, "--topspeed") as program:
        peer: VppMaster | VppSlave
        if master is not None:
            peer = master.run()
        else:
            read_until(program, "Ctrl.C ends it", stderr=True)
            peer = VppSlave(socket_path).run()
        with peer:
            if isinstance(peer, VppSlave):
                peer.post()
            serve(peer, program)
            status, out, err = finish(program)
            assert (status, peer.taken) == (0, count), (out, err)
            assert out.startswith(f"{count} packets, {count * 60} bytes accepted, 0 dropped in ")


def test_replay_waits_for_the_first_buffers_of_a_slave_before_it_drops(socket_path: str, tmp_path: Path) -> None:
    path = capture(tmp_path / "x.pcap", 100)
    arguments = ("replay", path, "--role", "master", "--socket", socket_path, "--topspeed", "--drop")
    with running(*arguments) as program:
        read_until(program, "Ctrl.C ends it", stderr=True)
        with VppSlave(socket_path).run() as peer:
            read_until(program, "connected to", stderr=True)
            peer.post()
            serve(peer, program)
            assert finish(program)[0] == 0
            assert peer.taken == 100


def test_replay_to_a_slave_that_never_offers_a_buffer_fails(socket_path: str, tmp_path: Path) -> None:
    path = capture(tmp_path / "x.pcap", 100)
    arguments = ("replay", path, "--role", "master", "--socket", socket_path, "--topspeed", "--drop")
    with running(*arguments) as program:
        read_until(program, "Ctrl.C ends it", stderr=True)
        with VppSlave(socket_path).run():
            status, out, _ = finish(program)
            assert (status, out.partition(" in ")[0]) == (1, "0 packets, 0 bytes accepted, 100 dropped")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("count", [5, 500])
def test_replay_says_what_a_peer_has_not_taken(role: str, count: int, socket_path: str, tmp_path: Path) -> None:
    path = capture(tmp_path / "x.pcap", count)
    master = VppMaster(socket_path) if role == "slave" else None
    with running("replay", path, "--role", role, "--socket", socket_path, "--topspeed") as program:
        if master is None:
            read_until(program, "Ctrl.C ends it", stderr=True)
        with master.run() if master is not None else VppSlave(socket_path).run() as peer:
            if isinstance(peer, VppSlave):
                peer.post()
            status, out, _ = finish(program)
    assert status == 1
    assert f", {count} not taken by the peer in " in out


@pytest.mark.parametrize("command", [("bridge",), ("dump", "-w", "/dev/null", "--between")])
@pytest.mark.parametrize("takes", [True, False])
def test_what_goes_between_two_memifs_is_taken_or_reported(
    command: tuple[str, ...], takes: bool, runtime: Runtime, socket_path: str, socket_name: str
) -> None:
    left = socket_name + "-left"
    with VppMaster(socket_path) as peer:
        with running(*command, f"memif:{left},role=master", f"memif:{socket_path}") as program:
            read_until(program, "Ctrl.C ends it", stderr=command[0] == "dump")
            peer.run()
            source = runtime.create_interface(socket=left, role="slave")
            wait_until(lambda: source.connected, runtime)
            wait_until(lambda: source.tx_queues[0].send([PACKET] * 900), runtime)
            wait_until(lambda: source.tx_queues[0].in_flight() == 0, runtime)
            program.send_signal(signal.SIGINT)
            if takes:
                serve(peer, program, runtime)
            wait_until(lambda: program.poll() is not None, runtime)
            status, out, err = finish(program)
        assert status == 0
        assert re.search(r"900 packets, 54000 bytes, 0 dropped(, 900 not taken by the peer)?$", out + err, re.M)
        assert ("900 not taken by the peer" in out + err) == (not takes)
        assert peer.taken == (900 if takes else 0)
        source.delete()


def test_ping_says_what_a_peer_has_not_taken(socket_path: str) -> None:
    with VppMaster(socket_path) as peer:
        arguments = ("ping", "--socket", socket_path, "--mode", "ip", "-c3", "-i0.01", "-W0.1", "192.168.1.2")
        with running(*arguments) as program:
            peer.run()
            status, out, err = finish(program)
    assert status == 1
    assert "3 packets transmitted, 0 received" in out
    assert "memifrt ping: 3 packets were not taken by the peer" in err


def test_a_second_signal_ends_the_waiting(socket_path: str, tmp_path: Path) -> None:
    path = capture(tmp_path / "x.pcap", 5000)
    with VppMaster(socket_path) as peer:
        with running("replay", path, "--socket", socket_path, "--topspeed") as program:
            peer.run()
            while peer.rx.head != 1024:
                assert program.poll() is None
            program.send_signal(signal.SIGINT)
            status, out, _ = end(program)
        assert status == 130
        assert ", 1024 not taken by the peer in " in out
