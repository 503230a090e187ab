"""VPP and testpmd as peers of a test: a stand-in for VPP, which is not everywhere, and testpmd itself where it is."""

from __future__ import annotations

import os
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memifrt import ConfigError, Mode
from memifrt.options import RoleName
from memifrt.pytest_plugin import Memif, MemifTimeout
from memifrt.testing.process import Peer, PeerError
from memifrt.testing.vpp import Vpp, startup_conf
from tests.lib import stand_in_vpp, testpmd
from tests.lib.support import DEADLINE

ROOT = Path(__file__).parents[2]
roles = pytest.mark.parametrize("role", ["master", "slave"])


@pytest.fixture
def memif() -> Iterator[Memif]:
    """What the fixture of this name gives to others."""
    memif = Memif(DEADLINE, keep=100)
    yield memif
    memif.close()


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that MEMIFRT_VPP names."""
    program = stand_in_vpp.program(tmp_path)
    monkeypatch.setenv("MEMIFRT_VPP", str(program))
    return program


@pytest.fixture
def vpp(memif: Memif, stand_in: Path) -> Vpp:
    return memif.vpp()


def commands(vpp: Vpp) -> list[str]:
    return (vpp.directory / "commands").read_text().splitlines()


# --- VPP ------------------------------------------------------------------------------------------------------------


def test_vpp_answers_its_command_line(vpp: Vpp) -> None:
    assert vpp.cli("show version") == "vpp v0.0-stand-in built by nobody"
    assert vpp.cli("show nonsense") == ""
    assert vpp.cli("nonsense") == "unknown input `nonsense'"
    with pytest.raises(ConfigError, match="more than one command"):
        vpp.cli("show version\nshow trace")


@roles
def test_packets_cross_vpp_in_either_role(role: RoleName, vpp: Vpp) -> None:
    west, west_name = vpp.memif(role=role)
    east, east_name = vpp.memif(role=role, queues=2)
    assert (west_name, east_name) == ("memif1/0", "memif2/0")
    vpp.cli(f"set interface l2 xconnect {west_name} {east_name}")
    vpp.cli(f"set interface l2 xconnect {east_name} {west_name}")
    west.send([b"eastwards"])
    assert east.recv() == [b"eastwards"]
    east.send([b"westwards"], qid=1)
    assert west.recv() == [b"westwards"]
    trace = vpp.cli("show trace")
    assert "memif-input\n  memif: hw_if_index 2 next-index 4\n    slot: ring 1" in trace
    assert "memif1/0-output" in trace


@roles
def test_options_of_a_memif_reach_vpp(role: RoleName, vpp: Vpp) -> None:
    port, name = vpp.memif(
        role=role, id=7, mode="ip", secret="abc", num_s2m_rings=3, num_m2s_rings=2, ring_size=64, buffer_size=512,
        rx_mode="polling", vpp_rx_mode="adaptive",
    )  # fmt: skip
    assert name == "memif1/7"
    assert port.interface.mode is Mode.IP
    rx, tx, vpp_role = (3, 2, "master") if role == "slave" else (2, 3, "slave")
    assert commands(vpp)[-3:] == [
        f"create interface memif id 7 socket-id 1 ring-size 64 buffer-size 512 {vpp_role} rx-queues {rx} tx-queues {tx}"
        f" mode ip secret abc",
        "set interface state memif1/7 up",
        "set interface rx-mode memif1/7 adaptive",
    ]
    sent, received = (3, 2) if role == "slave" else (2, 3)
    assert (len(port.interface.tx_queues), len(port.interface.rx_queues)) == (sent, received)


def test_memif_of_vpp_can_be_left_down(vpp: Vpp) -> None:
    port, name = vpp.memif(role="master", up=False)
    assert not port.connected
    vpp.cli(f"set interface state {name} up")
    port.wait_connected()


def test_command_that_vpp_refuses_is_an_error_with_its_words(vpp: Vpp) -> None:
    with pytest.raises(PeerError, match=r"vpp: create interface memif .* secret refused"):
        vpp.memif(secret="refused")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vpp_rx_mode": "never"}, "vpp_rx_mode is 'never'; it must be one of interrupt, polling, adaptive"),
        ({"vpp_rx_mode": "polling", "up": False}, "vpp_rx_mode needs a connection"),
        ({"role": "boss"}, "role is 'boss'"),
        ({"ring_size": 3}, "ring_size"),
    ],
)
def test_wrong_option_of_a_memif_is_named(options: dict[str, Any], words: str, vpp: Vpp) -> None:
    with pytest.raises(ConfigError, match=words):
        vpp.memif(**options)


def test_wrong_option_of_vpp_is_named(memif: Memif, stand_in: Path) -> None:
    with pytest.raises(ConfigError, match="no option of a VPP: hugepages; there are plugins, plugin_path"):
        memif.vpp(hugepages=1)  # type: ignore[call-arg]


def test_startup_conf_has_private_files_and_no_hugepages() -> None:
    text = startup_conf(Path("/d/x"), plugins=["acl_plugin.so"], plugin_path="/plugins", workers=2, config="nat { }")
    for line in (
        "  cli-listen /d/x/cli.sock",
        "  runtime-dir /d/x",
        "api-segment { prefix x }",
        "socksvr { socket-name /d/x/api.sock }",
        "buffers { page-size default }",
        "cpu { workers 2 }",
        "  add-path /plugins",
        "  plugin default { disable }",
        "  plugin memif_plugin.so { enable }",
        "  plugin acl_plugin.so { enable }",
        "nat { }",
    ):
        assert line in text.splitlines()
    assert "cpu" not in startup_conf(Path("/d"))


def test_vpp_that_does_not_start_says_why(memif: Memif, stand_in: Path) -> None:
    with pytest.raises(PeerError) as failure:
        memif.vpp(config="stand-in { refuse }")
    lines = str(failure.value).splitlines()
    assert lines == ["vpp did not start; vpp ended with status 1", "vpp: unknown input `stand-in { refuse }'"]


def test_vpp_that_crashes_is_told_with_the_signal(vpp: Vpp) -> None:
    with pytest.raises(PeerError, match=r"vpp does not answer 'crash': .*; vpp was ended by signal 11"):
        vpp.cli("crash")
    with pytest.raises(PeerError, match="vpp was ended by signal 11"):
        vpp.cli("show version")


def test_vpp_ends_with_the_test_and_leaves_nothing(stand_in: Path) -> None:
    memif = Memif(DEADLINE)
    vpp = memif.vpp()
    directory = vpp.directory
    vpp.memif(role="master")
    assert directory.is_dir()
    assert "stand-in: ready" in vpp.log
    memif.close()
    memif.close()
    with pytest.raises(PeerError, match="vpp ended with status 0"):
        vpp.cli("show version")
    assert not directory.parent.exists()


def test_artefacts_of_vpp_and_of_its_memifs(vpp: Vpp, memif: Memif, tmp_path: Path) -> None:
    port, _ = vpp.memif(role="master")
    port.send([b"a packet"])
    text = memif.write_artefacts(tmp_path)
    assert "memif-input\n  memif: hw_if_index 1" in text
    assert "vpp# show trace" in text
    assert "'memif1/0' of 'VPP stand-in'" in text
    names = {path.name for path in tmp_path.iterdir()}
    assert {"port1-master.pcapng", "vpp1.log", "vpp1.pcap", "vpp1-show-trace.txt"} <= names
    vpp.close()
    assert "vpp ended with status 0" in memif.write_artefacts(tmp_path)
    assert not list(Path("/tmp").glob(f"{vpp.capture_name}*"))


def test_missing_vpp_skips_and_says_how_to_get_it(memif: Memif, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMIFRT_VPP", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(pytest.skip.Exception, match=r"vpp is not on PATH: install VPP .* or set MEMIFRT_VPP"):
        memif.vpp()
    with pytest.raises(pytest.skip.Exception, match=r"dpdk-testpmd is not on PATH: .*apt install dpdk-dev"):
        memif.testpmd()


def test_variable_that_names_no_program_is_an_error_and_no_skip(memif: Memif, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMIFRT_VPP", "/nowhere/vpp")
    with pytest.raises(PeerError, match="MEMIFRT_VPP is '/nowhere/vpp', which is no program"):
        memif.vpp()


def test_api_is_that_of_vpp_papi(vpp: Vpp, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []

    class Client:
        api = types.SimpleNamespace(show_version=lambda: "a version")

        def __init__(self, server_address: str) -> None:
            calls.append(("new", server_address))

        def connect(self, name: str) -> None:
            calls.append(("connect", name))

        def disconnect(self) -> None:
            calls.append(("disconnect",))

    module = types.ModuleType("vpp_papi")
    module.VPPApiClient = Client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vpp_papi", module)
    assert vpp.api.show_version() == "a version"
    assert vpp.api is Client.api
    vpp.close()
    assert calls == [("new", vpp.api_socket), ("connect", "memifrt pytest"), ("disconnect",)]


def test_missing_vpp_papi_skips(vpp: Vpp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vpp_papi", None)
    with pytest.raises(pytest.skip.Exception, match="pip install vpp_papi"):
        vpp.api.show_version()


# --- testpmd --------------------------------------------------------------------------------------------------------

MISSING = testpmd.missing()
needs_testpmd = pytest.mark.skipif(bool(MISSING) and os.environ.get("CI") != "true", reason=MISSING)


@needs_testpmd
@roles
def test_packets_cross_testpmd_in_either_role(role: RoleName, memif: Memif, tmp_path: Path) -> None:
    peer = memif.testpmd(role=role, queues=2, ring_size=256, secret="abc")
    west, east = peer.ports
    west.send([b"e" * 60] * 5, qid=1)
    assert east.recv(5) == [b"e" * 60] * 5
    east.send([b"w" * 60])
    assert west.recv() == [b"w" * 60]
    assert [statistics.rx_packets for statistics in peer.statistics()] == [5, 1]
    assert "testpmd runs as process" in memif.write_artefacts(tmp_path)
    memif.close()
    assert not peer.running


@needs_testpmd
def test_testpmd_with_one_port_sends_back(memif: Memif) -> None:
    peer = memif.testpmd(ports=1, forward="macswap")
    peer.port.send([bytes(range(60))])
    (back,) = peer.port.recv()
    assert back[:12] == bytes([*range(6, 12), *range(6)])
    assert "macswap" in peer.cli("show config fwd")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ports": 0}, "ports is 0; it must be a whole number from 1 to 32"),
        ({"mode": "ip"}, "testpmd knows no mode but ethernet"),
        ({"zero_copy": True}, "zero_copy needs a testpmd that is the slave"),
        ({"role": "boss"}, "role is 'boss'"),
    ],
)
@needs_testpmd
def test_wrong_option_of_testpmd_is_named(options: dict[str, Any], words: str, memif: Memif) -> None:
    with pytest.raises(ConfigError, match=words):
        memif.testpmd(**options)


# --- any program ----------------------------------------------------------------------------------------------------


def test_program_that_does_not_say_it_is_shown(tmp_path: Path) -> None:
    peer = Peer("cat", [shutil.which("cat") or "cat"], with_input=True)
    assert peer.state == "cat is not started"
    peer.start()
    peer.tell("hello")
    peer.wait_for("hello\n", DEADLINE)
    with pytest.raises(PeerError, match=r"cat did not say 'world' within 0\.05 s; cat runs as process \d+\nhello"):
        peer.wait_for("world", 0.05)
    peer.close()
    peer.close()
    with pytest.raises(PeerError, match="cat did not say 'world'; cat was ended by signal 15"):
        peer.wait_for("world", DEADLINE)
    assert (tmp_path / "it.log").name in peer.write_log(tmp_path, "it")


def test_program_that_cannot_be_run_is_named() -> None:
    with pytest.raises(PeerError, match="cannot run /nowhere/it: No such file"):
        Peer("it", ["/nowhere/it"]).start()


def test_ports_of_a_peer_that_does_not_connect_say_so(stand_in: Path) -> None:
    memif = Memif(0.5)
    vpp = memif.vpp()
    with pytest.raises(MemifTimeout, match=r"not connected within 0.5 s"):
        vpp.memif(role="master", up=False).port.wait_connected()
    memif.close()


def test_a_script_that_runs_the_program_as_a_child_is_ended_with_it(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nsleep 1000 &\necho child $!\nwait\n")
    script.chmod(0o755)
    peer = Peer("script", [str(script)])
    peer.start()
    child = int(peer.wait_for("\n", DEADLINE).split()[1])
    peer.close()
    peer.close()
    assert not peer.running
    stat = Path(f"/proc/{child}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"
