"""What ``memifrt switch`` costs, by the flows that it has.

A source, the switch with three memif ports and two sinks take turns in this process. A figure is the switch's CPU time
for each packet. Packets come at full rate, in bursts of 512.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from memifrt import Interface, Role, Runtime, RxMode
from memifrt.options import InterfaceConfig
from memifrt.ports.endpoint import MemifEndpoint
from memifrt.ports.port import MemifPort
from memifrt.switch.switch import Switch

_AT_ONCE = 512
#: The case's name, and how many pairs of addresses take turns. With several, every second packet is for another port.
CASES = {"switch, one flow": 1, "switch, 1024 flows to two ports": 1024}


def nanoseconds(flows: int, size: int, seconds: float) -> float:
    """Return the CPU time that the switch takes for a packet."""
    socket = f"@memifrt-benchmark-switch-{os.getpid()}"
    ends = [MemifEndpoint(socket, InterfaceConfig(id=id, role=Role.MASTER, rx_mode=RxMode.POLLING)) for id in range(3)]
    with Runtime("benchmark", reconnect_interval=0.05) as runtime:
        ports = [MemifPort(runtime, end) for end in ends]
        peers = [runtime.create_interface(socket=socket, id=id, rx_mode="polling") for id in range(3)]
        while not (all(port.connected for port in ports) and all(peer.connected for peer in peers)):
            runtime.poll_event(0.1)
        return _cost(Switch([(f"port {id}", port, None) for id, port in enumerate(ports)]), peers, flows, size, seconds)


def _cost(switch: Switch, peers: list[Interface], flows: int, size: int, seconds: float) -> float:
    source, *sinks = peers
    for id in (1, 2):  # the switch learns where the destinations are
        peers[id].tx_queues[0].send([_mac(0) + _mac(id << 16) + bytes(size - 12)])
        switch.step(switch.ports[id])
    rows: Any = np.zeros((max(_AT_ONCE, flows), size), np.uint8)
    lengths: Any = np.full(len(rows), size, np.uint32)
    for row in range(len(rows)):
        flow = row % flows
        rows[row, :12] = np.frombuffer(_mac((1 + flow % 2) << 16) + _mac(flow), np.uint8)
    tx, used, sent, at = source.tx_queues[0], 0, 0, 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(16):
            sent += tx.send_from(rows[at : at + _AT_ONCE], lengths[at : at + _AT_ONCE])
            at = (at + _AT_ONCE) % len(rows)
            before = time.thread_time_ns()
            switch.step(switch.ports[0])
            used += time.thread_time_ns() - before
            for sink in sinks:
                _empty(sink)
    came = sum(sink.rx_queues[0].counters.packets for sink in sinks)
    if came < sent:
        raise RuntimeError(f"the switch has lost {sent - came} of {sent} packets")
    return used / sent


def _mac(number: int) -> bytes:
    return b"\2\0" + number.to_bytes(4, "big")


def _empty(sink: Interface) -> None:
    while True:
        with sink.rx_queues[0].burst(_AT_ONCE) as burst:
            if not len(burst):
                return
