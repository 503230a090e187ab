"""Tests of a program that uses memif. Here it is memifrt's own responder, in a process like your program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from memifrt.options import ModeName
from memifrt.packets import arp_request, echo_request, parse_arp_reply, parse_echo_reply, parse_ip, parse_mac
from memifrt.pytest_plugin import Memif, MemifPair, MemifPort, MemifResponder

MAC, IP = parse_mac("02:fe:00:00:00:01"), parse_ip("192.168.1.1")
TARGET_MAC, TARGET_IP = parse_mac("02:fe:00:00:00:02"), parse_ip("192.168.1.2")


def ping(number: int, size: int = 56) -> bytes:
    return echo_request(
        source_mac=MAC,
        source_ip=IP,
        target_mac=TARGET_MAC,
        target_ip=TARGET_IP,
        identifier=1,
        sequence=number,
        payload=bytes(size),
    )


@pytest.fixture
def program(memif_listener: MemifPort) -> Iterator[subprocess.Popen[bytes]]:
    """The program under test: it connects to the test's listener."""
    options = ["--socket", memif_listener.socket, "--ip", "192.168.1.2", "--mac", "02:fe:00:00:00:02"]
    with subprocess.Popen([sys.executable, "-m", "memifrt", "responder", *options]) as program:
        yield program
        program.terminate()


def test_program_answers_arp(program: subprocess.Popen[bytes], memif_listener: MemifPort) -> None:
    memif_listener.wait_connected()
    memif_listener.send([arp_request(MAC, IP, TARGET_IP)])
    (reply,) = memif_listener.recv()
    assert parse_arp_reply(reply) == (TARGET_IP, TARGET_MAC)


def test_program_answers_a_burst_in_order(program: subprocess.Popen[bytes], memif_listener: MemifPort) -> None:
    memif_listener.wait_connected()
    memif_listener.send([ping(number) for number in range(500)])
    replies = [parse_echo_reply(packet) for packet in memif_listener.recv(500)]
    assert [reply.sequence for reply in replies if reply] == list(range(500))


def test_program_does_not_answer_other_packets(program: subprocess.Popen[bytes], memif_listener: MemifPort) -> None:
    memif_listener.wait_connected()
    memif_listener.send([os.urandom(60)])
    assert memif_listener.collect(0.1) == []


def test_program_says_goodbye(program: subprocess.Popen[bytes], memif_listener: MemifPort) -> None:
    memif_listener.wait_connected()
    program.send_signal(signal.SIGINT)
    assert "interface deleted" in str(memif_listener.wait_disconnected())
    assert program.wait(10) == 0


@pytest.mark.parametrize("mode", ["ethernet", "ip"])
@pytest.mark.parametrize("queues", [1, 4])
def test_every_queue_carries_packets(memif: Memif, queues: int, mode: ModeName) -> None:
    """Without a program: two ports of the test, with options."""
    master, slave = memif.pair(queues=queues, mode=mode, slave={"rx_mode": "polling"})
    for qid in range(queues):
        slave.send([b"to the master"], qid=qid)
        assert master.recv() == [b"to the master"]
        master.send([b"to the slave"], qid=qid)
        assert slave.recv() == [b"to the slave"]


def test_pair(memif_pair: MemifPair) -> None:
    master, slave = memif_pair
    master.send([b"one", b"two"])
    assert slave.recv(2) == [b"one", b"two"]


def test_program_can_ping_a_responder(memif_responder: MemifResponder) -> None:
    """The opposite: a responder in the background that the program under test can ping."""
    asker = [sys.executable, "-m", "memifrt", "ping", memif_responder.ip, "--socket", memif_responder.socket]
    subprocess.run([*asker, "-c", "3", "-i", "0.01"], timeout=20, check=True)
    assert memif_responder.answered >= 3


def test_with_scapy(memif: Memif, memif_responder: MemifResponder) -> None:
    pytest.importorskip("scapy")
    from scapy.layers.l2 import ARP, Ether

    socket = memif.scapy(socket=memif_responder.socket)
    answer = socket.sr1(Ether(dst="ff:ff:ff:ff:ff:ff") / ARP(pdst=memif_responder.ip), timeout=10, verbose=False)
    assert answer is not None
    assert answer[ARP].hwsrc == memif_responder.mac
