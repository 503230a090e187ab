"""memifrt and a VPP that is no stand-in. ``make test-vpp`` runs this; ``make test`` does not, for Debian has no VPP.

VPP is the ``vpp`` on PATH, or the one that MEMIFRT_VPP names. ``memif`` is the plugin's own fixture, so that the report
of a failed test has what VPP traced and counted.
"""

from __future__ import annotations

import importlib.util
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from memifrt import Runtime
from memifrt.capture.pcap import LinkType, create_capture
from memifrt.options import RoleName
from memifrt.pytest_plugin import Memif, MemifPort
from memifrt.testing.vpp import Vpp
from tests.lib import programs
from tests.lib.support import DEADLINE, wait_until

if not (os.environ.get("MEMIFRT_VPP") or shutil.which("vpp")):
    raise pytest.UsageError("there is no vpp on PATH; set MEMIFRT_VPP to the path of one")

ROOT = Path(__file__).parents[2]
ETHERNET = bytes.fromhex("02fe00000002 02fe00000001 88b5")
#: Of Ethernet frames: the least, usual ones, and packets in two and in five of VPP's buffers.
SIZES = (60, 98, 1514, 2100, 9000)
#: Connections that end at a random step.
CUTS = 300

every_role = pytest.mark.parametrize("role", ["master", "slave"])
every_mode = pytest.mark.parametrize("vpp_rx_mode", ["interrupt", "adaptive", "polling"])


@pytest.fixture
def vpp(memif: Memif) -> Iterator[Vpp]:
    vpp = memif.vpp()
    yield vpp
    assert vpp.running, vpp.log


def frames(count: int, seed: int) -> list[bytes]:
    """Different ones of many sizes."""
    chance = random.Random(seed)
    heads = (ETHERNET + number.to_bytes(4, "big") for number in range(count))
    return [head + chance.randbytes(chance.choice(SIZES) - len(head)) for head in heads]


def do(vpp: Vpp, *commands: str) -> None:
    """Commands that VPP obeys without a word, or with the name of an interface."""
    for command in commands:
        said = vpp.cli(command)
        assert re.fullmatch(r"(memif\d+/\d+)?", said), said


def create_master(vpp: Vpp, socket: str) -> None:
    """VPP listens, and has the address 192.168.1.1."""
    do(
        vpp,
        f"create memif socket id 1 filename {socket}",
        "create interface memif id 0 socket-id 1 master",
        "set interface state memif1/0 up",
        "set interface ip address memif1/0 192.168.1.1/24",
    )


def cross_connect(vpp: Vpp, one: str, other: str) -> None:
    do(vpp, f"set interface l2 xconnect {one} {other}", f"set interface l2 xconnect {other} {one}")


def received(vpp: Vpp, name: str) -> int:
    """The packets that VPP has received on an interface."""
    found = re.search(r"rx packets +(\d+)", vpp.cli(f"show interface {name}"))
    return int(found[1]) if found else 0


def ping_from(vpp: Vpp, target: str) -> tuple[int, int]:
    """How many requests VPP has sent, and how many replies came."""
    vpp.cli(f"ping {target} repeat 1")  # it waits for the reply to ARP, and is lost
    said = vpp.cli(f"ping {target} repeat 3 interval 0.1")
    found = re.search(r"Statistics: (\d+) sent, (\d+) received", said)
    assert found, said
    return int(found[1]), int(found[2])


def run_pytest(what: str | Path) -> str:
    """As a user does, in the repository."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(what)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=6 * DEADLINE, check=False)
    return done.stdout


@every_mode
@pytest.mark.parametrize("queues", [1, 2, 4])
@every_role
def test_every_packet_crosses_in_order(role: RoleName, queues: int, vpp_rx_mode: str, vpp: Vpp) -> None:
    west, west_name = vpp.memif(role=role, queues=queues, vpp_rx_mode=vpp_rx_mode)
    east, east_name = vpp.memif(role=role, queues=queues, vpp_rx_mode=vpp_rx_mode)
    cross_connect(vpp, west_name, east_name)

    def cross(sender: MemifPort, receiver: MemifPort, qid: int) -> None:
        for seed in range(6):  # more packets at once than VPP takes for one kick
            sent = frames(300, seed)  # 600 slots, which the next ring can take in any case
            sender.send(sent, qid=qid)
            assert receiver.recv(len(sent)) == sent

    for qid in range(queues):
        cross(west, east, qid)
        cross(east, west, qid)


@every_mode
def test_a_worker_forwards_as_the_main_thread_does(vpp_rx_mode: str, memif: Memif) -> None:
    vpp = memif.vpp(workers=1)
    west, west_name = vpp.memif(role="master", queues=2, vpp_rx_mode=vpp_rx_mode)
    east, east_name = vpp.memif(role="slave", queues=2, vpp_rx_mode=vpp_rx_mode)
    cross_connect(vpp, west_name, east_name)
    for qid in range(2):
        for sender, receiver in ((west, east), (east, west)):
            sent = frames(300, qid)
            sender.send(sent, qid=qid)
            assert sorted(receiver.recv(len(sent))) == sorted(sent)


@every_role
def test_every_option_of_a_memif_is_obeyed(role: RoleName, vpp: Vpp) -> None:
    port, name = vpp.memif(
        socket=f"@{uuid.uuid4().hex}", role=role, id=7, mode="ip", secret="abc", num_s2m_rings=3, num_m2s_rings=2,
        ring_size=64, buffer_size=512, vpp_rx_mode="adaptive",
    )  # fmt: skip
    queues = (len(port.interface.tx_queues), len(port.interface.rx_queues))
    assert queues == ((3, 2) if role == "slave" else (2, 3))
    assert {queue.ring_size for queue in (*port.interface.tx_queues, *port.interface.rx_queues)} == {64}
    said = vpp.cli(f"show memif {name}")
    assert "id 7 mode ip" in said
    assert "num-s2m-rings 3 num-m2s-rings 2" in said


@every_mode
@every_role
def test_a_replay_leaves_nothing_in_the_ring(role: RoleName, vpp_rx_mode: str, vpp: Vpp, tmp_path: Path) -> None:
    capture = tmp_path / "packets.pcapng"
    with create_capture(str(capture), [("x", LinkType.ETHERNET)]) as writer:
        writer.write(frames(3003, 1), 0)
    port, name = vpp.memif(role=role, vpp_rx_mode=vpp_rx_mode)
    socket = port.interface.socket.path
    port.close()
    done = programs.run("replay", str(capture), "--socket", socket, "--role", role)
    assert "3003 packets" in done.stdout, done.stdout + done.stderr
    assert (done.returncode, received(vpp, name)) == (0, 3003)


def test_memifrt_and_vpp_ping_each_other(vpp: Vpp, memif: Memif) -> None:
    socket = memif.socket()
    create_master(vpp, socket)
    done = programs.run("ping", "--socket", socket, "--ip", "192.168.1.2", "-c", "3", "-i", "0.1", "192.168.1.1")
    assert "3 received" in done.stdout, done.stderr
    with programs.responder("--socket", socket, "--ip", "192.168.1.2") as responder:
        programs.read_until(responder, "connected to", stderr=True)
        assert ping_from(vpp, "192.168.1.2") == (3, 3)


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_a_socket_in_another_network_namespace(vpp: Vpp) -> None:
    namespace, name = f"memifrt-{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
    subprocess.run(["ip", "netns", "add", namespace], check=True)
    try:
        create_master(vpp, f"abstract:{name},netns_name=/run/netns/{namespace}")
        for socket in (f"abstract:{name},netns_name={namespace}", f"@{name},netns_name=/run/netns/{namespace}"):
            done = programs.run("ping", "--socket", socket, "--ip", "192.168.1.2", "-c", "1", "192.168.1.1")
            assert "1 received" in done.stdout, done.stderr
    finally:
        subprocess.run(["ip", "netns", "delete", namespace], check=True)


def test_doctor_leaves_it_alive(vpp: Vpp, memif: Memif) -> None:
    socket = memif.socket()
    create_master(vpp, socket)
    for question, status in (([], 0), (["--probe-id", "0"], 0), (["--probe-id", "5"], 1)):
        done = programs.run("doctor", *question, socket)
        assert "says HELLO" in done.stdout, done.stdout + done.stderr
        assert done.returncode == status
        assert vpp.cli("show version")


def test_connections_that_end_at_any_step_leave_it_alive(vpp: Vpp, memif: Memif) -> None:
    """VPP dies of a connection that reads HELLO and is closed without a word."""
    socket = memif.socket()
    create_master(vpp, socket)
    chance = random.Random(1)
    connected = 0
    for _ in range(CUTS):
        with Runtime("cut") as runtime:
            interface = runtime.create_interface(socket=socket, num_s2m_rings=chance.randint(1, 2))
            for _ in range(chance.randrange(14)):
                runtime.poll_event(0.002)
            if interface.connected:
                connected += 1
                interface.tx_queues[0].send([bytes(60)] * chance.randrange(200))
            if chance.random() < 0.5:
                interface.delete()
    assert 0 < connected < CUTS
    for number in [signal.SIGINT, signal.SIGTERM, signal.SIGHUP] * 5:
        with programs.running("ping", "--socket", socket, "--ip", "192.168.1.2", "-q", "192.168.1.1") as ping:
            programs.read_until(ping, "PING")
            programs.end(ping, number)
    assert vpp.cli("show version")


def test_the_successor_of_one_that_was_killed_is_served(memif: Memif) -> None:
    socket = memif.socket()
    first = memif.vpp()
    create_master(first, socket)
    with programs.responder("--socket", socket, "--ip", "192.168.1.2") as responder:
        programs.read_until(responder, "connected to", stderr=True)
        assert ping_from(first, "192.168.1.2") == (3, 3)
        process = first._peer._process
        assert process is not None
        process.kill()
        programs.read_until(responder, "disconnected", stderr=True)
        second = memif.vpp()
        create_master(second, socket)
        programs.read_until(responder, "connected to", stderr=True)
        assert ping_from(second, "192.168.1.2") == (3, 3)


def test_what_is_lost_is_what_vpp_says_that_it_dropped(vpp: Vpp, memif: Memif) -> None:
    """A ring too small for the pauses of the receiver: VPP drops, and both count the same."""
    west, west_name = vpp.memif(role="slave", ring_size=64, wait=True)
    east, east_name = vpp.memif(role="slave", ring_size=64, receive=False)
    cross_connect(vpp, west_name, east_name)
    sent = frames(640, 3)
    west.send(sent)
    wait_until(lambda: received(vpp, west_name) == len(sent))
    came = east.collect(0)
    found = re.search(rf"(\d+) +{east_name}-tx +no free tx slots", vpp.cli("show errors"))
    assert found
    assert 0 < len(came) == len(sent) - int(found[1])


@every_role
def test_a_memif_that_vpp_refuses_says_why(role: RoleName, vpp: Vpp) -> None:
    port, name = vpp.memif(role=role, secret="right")
    socket = port.interface.socket.path
    port.close()
    with Runtime("wrong") as runtime:
        interface = runtime.create_interface(socket=socket, role=role, secret="wrong")
        if role == "slave":
            wait_until(lambda: "incorrect secret" in str(interface.last_error), runtime)
        else:
            wait_until(lambda: "secret" in vpp.cli(f"show memif {name}"), runtime)


@pytest.mark.skipif(importlib.util.find_spec("vpp_papi") is None, reason="needs vpp_papi: pip install vpp_papi")
def test_its_binary_api(tmp_path: Path) -> None:
    """In a process of its own: importing vpp_papi opens a pipe for ever."""
    (tmp_path / "test_api.py").write_text(
        "def test_api(memif_vpp):\n"
        "    _, name = memif_vpp.memif()\n"
        "    assert name in [found.interface_name for found in memif_vpp.api.sw_interface_dump()]\n"
    )
    assert "1 passed" in run_pytest(tmp_path)


def test_the_example_passes() -> None:
    assert "6 passed" in run_pytest("examples/pytest_vpp")
