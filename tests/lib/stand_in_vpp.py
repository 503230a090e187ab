"""A program that behaves like a VPP as far as memifrt's fixtures use one: its startup.conf, its command line on a
socket, and memifs, which memifrt serves.

Knows the commands of a memif, of a cross-connect and of a trace. To others it says what VPP
says to them.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from memifrt import Disconnected, Interface, Runtime
from memifrt.threaded.runtime_thread import Background

_QUESTIONS = bytes.fromhex("fffb01 fffe22 fffb03 fffd18 fffd1f fffa1801fff0")
_OUR_TYPE = b"\xff\xfa\x18\0vppctl\xff\xf0"


def program(folder: Path) -> Path:
    """Write a program for MEMIFRT_VPP into a folder."""
    path = folder / "vpp"
    root = Path(__file__).parents[2]
    path.write_text(f'#!/bin/sh\nPYTHONPATH={root} exec {sys.executable} -m {__name__} "$@"\n')
    path.chmod(0o755)
    return path


@dataclass
class Memif:
    """One interface, and what is to be made once it is up."""

    options: dict[str, str]
    path: str
    up: bool = False
    made: Interface | None = None
    target: str = ""
    rx_mode: str = "default"


@dataclass
class StandIn:
    """Its state."""

    background: Background
    log: Path
    sockets: dict[str, str] = field(default_factory=dict)
    memifs: dict[str, Memif] = field(default_factory=dict)
    trace: list[str] = field(default_factory=list)
    capture: str = ""

    def command(self, line: str) -> str:
        """Run one command; what it prints."""
        with self.log.open("a") as log:
            log.write(f"{line}\n")
        words = line.split()
        match words:
            case ["show", "version"]:
                return "vpp v0.0-stand-in built by nobody"
            case ["show", "trace"]:
                return "\n".join(self.trace) or "No packets in trace buffer"
            case ["show", "memif"]:
                return "\n".join(f"interface {name}\n  rx-mode {memif.rx_mode}" for name, memif in self.memifs.items())
            case ["show", *_] | ["trace", "add", *_]:
                return ""
            case ["pcap", "trace", "off"]:
                Path("/tmp", self.capture).write_bytes(b"a capture")
                return f"Write 1 packets to /tmp/{self.capture}, and stop capture..."
            case ["pcap", "trace", *_, name]:
                self.capture = name
                return ""
            case ["create", "memif", "socket", "id", number, "filename", path]:
                self.sockets[number] = path
                return ""
            case ["create", "interface", "memif", *rest]:
                return self._create(rest)
            case ["set", "interface", "state", name, state]:
                return self._state(name, state)
            case ["set", "interface", "rx-mode", name, mode]:
                self.memifs[name].rx_mode = mode
                return ""
            case ["set", "interface", "l2", "xconnect", name, target]:
                self.memifs[name].target = target
                return ""
            case ["crash"]:
                signal.raise_signal(signal.SIGSEGV)
        return f"unknown input `{line}'"

    def _create(self, words: list[str]) -> str:
        options = {"role": next(word for word in words if word in ("master", "slave"))}
        words.remove(options["role"])
        options |= dict(zip(words[::2], words[1::2], strict=True))
        if options.get("secret") == "refused":
            return "create interface memif: memif: secret refused"
        name = f"memif{options['socket-id']}/{options['id']}"
        self.memifs[name] = Memif(options, self.sockets[options["socket-id"]])
        return ""

    def _state(self, name: str, state: str) -> str:
        memif = self.memifs.get(name)
        if memif is None:
            return f"unknown interface `{name}'"
        memif.up = state == "up"
        if memif.up and memif.made is None:
            memif.made = self.background.call(lambda: self._make(name, memif))
        return ""

    def _make(self, name: str, memif: Memif) -> Interface:
        options = memif.options
        rx, tx = int(options["rx-queues"]), int(options["tx-queues"])
        is_master = options["role"] == "master"
        return self.background.runtime.create_interface(
            socket=memif.path.replace("abstract:", "@"),
            role="master" if is_master else "slave",
            id=int(options["id"]),
            name=name,
            mode="ip" if options.get("mode") == "ip" else "ethernet",
            secret=options.get("secret"),
            num_s2m_rings=rx if is_master else tx,
            num_m2s_rings=tx if is_master else rx,
            ring_size=int(options["ring-size"]),
            buffer_size=int(options["buffer-size"]),
            on_interrupt=lambda interface, qid: self._forward(name, interface, qid),
        )

    def _forward(self, name: str, interface: Interface, qid: int) -> None:
        packets = interface.rx_queues[qid].recv()
        number = [*self.memifs].index(name) + 1
        target_name = self.memifs[name].target
        target = self.memifs.get(target_name)
        # VPP drops what goes to an interface that is in no cross-connect itself.
        made = target.made if target is not None and target.up and target.target else None
        for _ in packets:
            self.trace.append(f"memif-input\n  memif: hw_if_index {number} next-index 4\n    slot: ring {qid}")
            if made is not None:
                self.trace.append(f"{target_name}-output\n  {target_name} flags 0x00180001")
        if made is None:
            return
        try:
            made.tx_queues[min(qid, len(made.tx_queues) - 1)].send(packets)
        except Disconnected:
            return


def serve(listener: socket.socket, vpp: StandIn) -> None:
    """One conversation after another, as vppctl has them."""
    while True:
        connection, _ = listener.accept()
        with connection:
            try:
                connection.sendall(_QUESTIONS)
                received = b""
                while chunk := connection.recv(4096):
                    received += chunk
                    if _OUR_TYPE not in received and len(received) < 100:
                        continue
                    received = received.replace(_OUR_TYPE, b"")
                    *lines, received = received.split(b"\n")
                    received = _OUR_TYPE + received
                    for line in lines:
                        if line == b"quit":
                            raise ConnectionResetError
                        connection.sendall(vpp.command(line.decode()).replace("\n", "\r\n").encode() + b"\r\n\0")
            except ConnectionError:
                continue


def main() -> int:
    text = Path(sys.argv[sys.argv.index("-c") + 1]).read_text()
    found = re.search(r"cli-listen (\S+)", text)
    directory = re.search(r"runtime-dir (\S+)", text)
    if found is None or directory is None or "page-size default" not in text:
        print("stand-in: startup.conf is incomplete")
        return 1
    if "stand-in { refuse }" in text:
        print("vpp: unknown input `stand-in { refuse }'", flush=True)
        return 1
    background = Background(Runtime("VPP stand-in", reconnect_interval=0.02))

    def end(number: int, frame: FrameType | None) -> None:
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(found[1])
    listener.listen()
    print("stand-in: ready", flush=True)
    vpp = StandIn(background, Path(directory[1]) / "commands")
    threading.Thread(target=serve, args=(listener, vpp), daemon=True).start()
    while True:
        signal.pause()


if __name__ == "__main__":
    sys.exit(main())
