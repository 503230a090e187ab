"""The pytest plugin: what its fixtures make, what they say when nobody comes, and that everything is closed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from memifrt import ConfigError, Disconnected, Interface, Mode
from memifrt.capture.pcap import open_capture
from memifrt.control.address import Address
from memifrt.packets import arp_request, echo_request, parse_arp_reply, parse_echo_reply, parse_ip, parse_mac
from memifrt.pytest_plugin import Memif, MemifTimeout, PortOptions
from tests.lib import stand_in_vpp, testpmd
from tests.lib.support import DEADLINE

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "pytest"
VPP_EXAMPLE = ROOT / "examples" / "pytest_vpp"
#: The plugin whether or not this installation has its entry point already; never both.
PLUGIN = ["-p", "no:memifrt", "-p", "memifrt.pytest_plugin"]
SHORT = 0.05


@pytest.fixture
def memif() -> Iterator[Memif]:
    """What the fixture of this name gives to others."""
    memif = Memif(DEADLINE)
    yield memif
    memif.close()


def run_pytest(directory: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """pytest as a user has it, in a project of its own."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        command,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=4 * DEADLINE,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": "", **environment},
    )


# --- ports ----------------------------------------------------------------------------------------------------------


def test_pair_is_connected_and_carries_packets_both_ways(memif: Memif) -> None:
    master, slave = memif.pair()
    assert master.connected
    assert slave.connected
    assert master.socket == slave.socket
    slave.send([b"one", bytearray(b"two"), memoryview(b"three")])
    assert master.recv(2) == [b"one", b"two"]
    assert master.recv() == [b"three"]
    master.send([b"back"])
    assert slave.recv(1) == [b"back"]


def test_pair_has_common_options_and_options_of_one_end(memif: Memif) -> None:
    master, slave = memif.pair(queues=3, mode="ip", id=7, master={"name": "west"}, slave={"log2_ring_size": 5})
    assert master.interface.mode is slave.interface.mode is Mode.IP
    assert master.interface.id == slave.interface.id == 7
    assert master.interface.name == "west"
    assert len(master.interface.rx_queues) == len(master.interface.tx_queues) == 3
    assert slave.interface.tx_queues[0].ring_size == 32


def test_packets_of_every_queue_come(memif: Memif) -> None:
    master, slave = memif.pair(queues=3)
    for qid in range(3):
        assert slave.send([bytes([qid])], qid=qid) == 1
    assert sorted(master.recv(3)) == [b"\0", b"\1", b"\2"]
    with pytest.raises(ConfigError, match="qid is 3; it must be a whole number below 3"):
        slave.send([b"x"], qid=3)


def test_polling_port_receives(memif: Memif) -> None:
    master, slave = memif.pair(master={"rx_mode": "polling"})
    slave.send([b"unannounced"])
    assert master.recv() == [b"unannounced"]


@pytest.mark.parametrize("receive", [True, False])
def test_more_packets_than_the_ring_has_slots_are_sent_as_the_peer_takes_them(memif: Memif, receive: bool) -> None:
    master, slave = memif.pair(log2_ring_size=5, master={"receive": receive})
    packets = [number.to_bytes(4, "big") for number in range(1000)]
    sender = threading.Thread(target=slave.send, args=(packets,))
    sender.start()
    assert master.recv(1000) == packets
    sender.join()


def test_collect_gives_what_comes_in_a_time(memif: Memif) -> None:
    master, slave = memif.pair()
    assert master.collect(0) == []
    slave.send([b"one", b"two"])
    assert master.collect(SHORT) == [b"one", b"two"]
    assert master.collect(SHORT) == []


def test_packets_can_be_left_in_the_ring(memif: Memif) -> None:
    master, slave = memif.pair(receive=False)
    slave.send([b"one", b"two", b"three"])
    assert master.interface.rx_queues[0].pending() == 3
    assert master.recv() == [b"one"]
    assert master.collect(0) == [b"two", b"three"]
    slave.send([b"four"])
    with master.interface.rx_queues[0].burst() as burst:
        assert [bytes(packet) for packet in burst] == [b"four"]


def test_callback_of_the_test_s_own_takes_the_packets(memif: Memif) -> None:
    taken: list[bytes] = []
    come = threading.Event()

    def on_interrupt(interface: Interface, qid: int) -> None:
        taken.extend(interface.rx_queues[qid].recv())
        come.set()

    memif.pair(master={"on_interrupt": on_interrupt}).slave.send([b"one"])
    assert come.wait(DEADLINE)
    assert taken == [b"one"]


def test_last_words_of_a_peer_are_received(memif: Memif) -> None:
    master, slave = memif.pair()
    slave.send([b"last", b"words"])
    slave.close()
    master.wait_disconnected()
    with pytest.raises(Disconnected, match="interface deleted; 2 packets came"):
        master.recv(3)
    assert master.recv(2) == [b"last", b"words"]
    assert master.collect(0) == []


def test_peer_that_goes_and_comes(memif: Memif) -> None:
    master, slave = memif.pair()
    master.disconnect("for the test")
    assert "for the test" in str(slave.wait_disconnected())
    slave.wait_connected()
    master.wait_connected()
    slave.send([b"again"])
    assert master.recv() == [b"again"]
    slave.close()
    slave.close()
    assert "interface deleted" in str(master.wait_disconnected())
    with pytest.raises(Disconnected, match=r"memif 0 \(master\) on .*: not connected: .*interface deleted"):
        master.recv()
    with pytest.raises(Disconnected, match=r"not connected: .*interface deleted"):
        master.send([b"x"])


def test_callbacks_of_the_test_are_called(memif: Memif) -> None:
    seen: list[str] = []
    listener = memif.listener(
        on_connect=lambda interface: seen.append("connect"),
        on_disconnect=lambda interface, reason: seen.append("disconnect"),
    )
    slave = memif.port(socket=listener.socket, wait=True)
    listener.wait_connected()
    slave.close()
    listener.wait_disconnected()
    assert listener.call(lambda: list(seen)) == ["connect", "disconnect"]  # in order, after both


def test_listener_waits_for_a_peer_that_comes_later(memif: Memif) -> None:
    port = memif.port()
    assert not port.connected
    listener = memif.listener(socket=port.socket)
    assert listener.wait_connected() is listener
    assert repr(port.wait_connected()) == f"<MemifPort memif 0 (slave) on {port.socket}, connected>"


def test_socket_paths_are_short_and_each_is_new(memif: Memif) -> None:
    paths = [memif.socket() for _ in range(3)]
    assert len({*paths}) == 3
    for path in paths:
        assert Address.parse(path).path == path
        assert not os.path.exists(path)
        assert os.path.isdir(os.path.dirname(path))


# --- responder and scapy --------------------------------------------------------------------------------------------


def test_responder_answers_arp_and_ping_in_the_background(memif: Memif) -> None:
    responder = memif.responder("10.0.0.9")
    assert (responder.ip, responder.mac) == ("10.0.0.9", "02:fe:0a:00:00:09")
    port = memif.port(socket=responder.socket)  # to send waits for the peer
    ip, mac, target = parse_ip("10.0.0.1"), parse_mac("02:fe:00:00:00:01"), parse_ip(responder.ip)
    port.send([arp_request(mac, ip, target)])
    assert parse_arp_reply(port.recv()[0]) == (target, parse_mac(responder.mac))
    request = echo_request(
        source_mac=mac,
        source_ip=ip,
        target_mac=parse_mac(responder.mac),
        target_ip=target,
        identifier=1,
        sequence=2,
        payload=b"",
    )
    port.send([request])
    reply = parse_echo_reply(port.recv()[0])
    assert reply is not None
    assert reply.sequence == 2
    assert responder.answered == 2


def test_responder_can_be_the_slave_and_speak_ip(memif: Memif) -> None:
    listener = memif.listener(mode="ip")
    memif.responder("10.0.0.9", "02:00:00:00:00:01", role="slave", socket=listener.socket, mode="ip", wait=True)
    listener.wait_connected()
    request = echo_request(
        source_mac=b"",
        source_ip=parse_ip("10.0.0.1"),
        target_mac=b"",
        target_ip=parse_ip("10.0.0.9"),
        identifier=1,
        sequence=3,
        payload=b"",
        mode=Mode.IP,
    )
    listener.send([request])
    reply = parse_echo_reply(listener.recv()[0], Mode.IP)
    assert reply is not None
    assert reply.sequence == 3


def test_scapy_socket_is_closed_with_the_rest(memif: Memif) -> None:
    pytest.importorskip("scapy")
    listener = memif.listener()
    socket = memif.scapy(socket=listener.socket)
    socket.send(b"from scapy")
    assert listener.recv() == [b"from scapy"]
    memif.close()
    assert socket.closed


@pytest.mark.parametrize("writable", [True, False])
def test_sockets_find_a_short_place_under_a_long_tmpdir(
    memif: Memif, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writable: bool
) -> None:
    long = tmp_path / ("d" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    runtime_directory = tmp_path / "run"
    if writable:
        runtime_directory.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime_directory))
    _, slave = memif.pair()
    directory = Path(slave.socket).parent
    assert len(slave.socket) < 108
    assert directory.parent == (runtime_directory if writable and len(str(runtime_directory)) <= 67 else Path("/tmp"))
    memif.close()
    assert not directory.exists()


# --- what does not come ---------------------------------------------------------------------------------------------


def test_peer_that_does_not_come_is_named_with_the_reason(memif: Memif) -> None:
    listener = memif.listener()
    with pytest.raises(MemifTimeout) as failure:
        listener.wait_connected(SHORT)
    assert str(failure.value) == (
        f"memif 0 (master) on {listener.socket}: not connected within 0.05 s: nobody has connected to it"
    )
    port = memif.port()
    with pytest.raises(MemifTimeout, match=r"not connected within 0\.05 s: cannot connect to .*No such file"):
        port.wait_connected(SHORT)
    for use in (
        lambda: port.send([b"x"], timeout=SHORT),
        lambda: port.recv(timeout=SHORT),
        lambda: port.collect(SHORT),
    ):
        with pytest.raises(MemifTimeout, match=r"not connected within 0\.05 s: cannot connect to .*No such file"):
            use()
    assert "never connected" in str(port.wait_disconnected())


def test_ends_that_do_not_agree_say_why() -> None:
    memif = Memif(0.5)
    with pytest.raises(MemifTimeout, match="secret"):
        memif.pair(secret="right", slave={"secret": "wrong"})
    memif.close()


def test_packets_that_do_not_come_are_counted_and_those_that_came_are_kept(memif: Memif) -> None:
    master, slave = memif.pair()
    slave.send([b"one", b"two"])
    with pytest.raises(MemifTimeout, match=r"memif 0 \(master\) on .*: 2 of 3 packets have come within 0\.05 s"):
        master.recv(3, timeout=SHORT)
    assert master.recv(2) == [b"one", b"two"]


def test_full_ring_says_how_many_were_sent(memif: Memif) -> None:
    slave = memif.pair(log2_ring_size=3, master={"receive": False}).slave
    with pytest.raises(MemifTimeout, match=r"the ring is full after 0\.05 s: 8 of 10 packets are sent"):
        slave.send([b"x"] * 10, timeout=SHORT)


def test_peer_that_stays_is_told(memif: Memif) -> None:
    with pytest.raises(MemifTimeout, match=r"still connected after 0\.05 s"):
        memif.pair().master.wait_disconnected(SHORT)


def test_wrong_option_is_named_and_the_rest_goes_on(memif: Memif) -> None:
    with pytest.raises(ConfigError, match="role is 'boss'"):
        memif.port(role="boss")  # type: ignore[arg-type]
    memif.pair()


# --- closing --------------------------------------------------------------------------------------------------------


def test_close_leaves_no_thread_fd_or_file() -> None:
    memif = Memif(DEADLINE)
    threads = threading.active_count()
    pair, directory = memif.pair(), os.path.dirname(memif.socket())
    memif.responder()
    assert threading.active_count() == threads + 1  # one for all
    memif.close()
    memif.close()
    assert threading.active_count() == threads
    assert not os.path.exists(directory)
    assert pair.slave.interface.deleted


def test_path_alone_takes_no_thread() -> None:
    memif = Memif(DEADLINE)
    threads = threading.active_count()
    memif.socket()
    assert threading.active_count() == threads
    memif.close()


def test_exception_of_a_callback_comes_out_of_close() -> None:
    def fail(interface: Interface) -> NoReturn:
        pytest.fail("raised in a callback")

    memif = Memif(DEADLINE)
    slave = memif.pair(master={"on_connect": fail}).slave
    slave.send([b"the thread goes on"])
    with pytest.raises(pytest.fail.Exception, match="raised in a callback"):
        memif.close()


def test_wait_ends_when_the_thread_of_a_port_does(memif: Memif) -> None:
    """A close in the middle of a wait, as by a fixture of the test's own, is a disconnect."""
    master = memif.pair().master
    ended: list[Disconnected] = []

    def wait() -> None:
        try:
            master.recv()
        except Disconnected as error:
            ended.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    memif.close()
    waiting.join(DEADLINE)
    assert "interface deleted" in str(ended)


# --- as a plugin ----------------------------------------------------------------------------------------------------


def test_example_passes() -> None:
    done = run_pytest(EXAMPLE, *PLUGIN, "-q", "-W", "error")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)
    assert "failed" not in done.stdout


def test_example_with_vpp_passes_with_a_stand_in_for_it(tmp_path: Path) -> None:
    program = stand_in_vpp.program(tmp_path)
    done = run_pytest(VPP_EXAMPLE, *PLUGIN, "-q", "-W", "error", MEMIFRT_VPP=str(program))
    assert "6 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("example", [EXAMPLE, VPP_EXAMPLE], ids=lambda path: path.name)
def test_examples_run_from_the_repository_as_their_page_says(example: Path) -> None:
    done = run_pytest(ROOT, "-q", str(example.relative_to(ROOT)), MEMIFRT_VPP="", MEMIFRT_TESTPMD="")
    assert done.returncode == 0, done.stdout + done.stderr


def test_example_with_vpp_takes_testpmd_or_is_skipped_with_the_reason(tmp_path: Path) -> None:
    done = run_pytest(VPP_EXAMPLE, *PLUGIN, "-q", "-rs", "-W", "error", MEMIFRT_VPP="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout
    if not shutil.which("vpp"):
        assert ("dpdk-testpmd" if testpmd.missing() else "this test needs a VPP: install one") in done.stdout


def test_failures_are_short_and_the_next_test_starts_clean(tmp_path: Path) -> None:
    test = """
        import threading

        def test_nobody_comes(memif_listener):
            memif_listener.wait_connected()

        def test_nothing_comes(memif_pair):
            memif_pair.slave.send([b"x"])
            memif_pair.master.recv(2)

        def test_callback(memif):
            def fail(interface):
                raise ValueError("in a callback")
            memif.pair(slave={"on_connect": fail})

        def test_path(memif_socket, memif_responder):
            assert memif_socket != memif_responder.socket

        def test_clean():
            assert threading.active_count() == 1
    """
    (tmp_path / "test_it.py").write_text(textwrap.dedent(test))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmemif_timeout = 0.5\n")
    done = run_pytest(tmp_path, *PLUGIN, "-p", "no:timeout")
    assert "2 failed, 3 passed, 1 error" in done.stdout, done.stdout + done.stderr
    assert "MemifTimeout: memif 0 (master) on /tmp/memif-" in done.stdout
    assert ": not connected within 0.5 s: nobody has connected to it\n" in done.stdout
    assert ": 1 of 2 packets have come within 0.5 s\n" in done.stdout
    assert "ValueError: in a callback" in done.stdout


def test_timeout_that_is_no_number_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(memif):\n    pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmemif_timeout = soon\n")
    done = run_pytest(tmp_path, *PLUGIN)
    assert done.returncode != 0
    assert "memif_timeout is 'soon'; it must be a number of seconds" in done.stdout + done.stderr


def test_fixtures_are_listed_with_what_they_are(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, *PLUGIN, "--fixtures", "-q")
    for name in (
        "memif",
        "memif_socket",
        "memif_pair",
        "memif_listener",
        "memif_responder",
        "memif_vpp",
        "memif_testpmd",
    ):
        assert re.search(rf"^{name}( |$)", done.stdout, re.MULTILINE), done.stdout
    assert "A master and a slave, connected to each other." in done.stdout


def test_no_fixture_hides_one_of_our_own() -> None:
    ours = re.findall(r"@pytest\.fixture.*\ndef (\w+)", (ROOT / "tests" / "conftest.py").read_text())
    plugin = re.findall(r"@pytest\.fixture.*\ndef (\w+)", (ROOT / "memifrt" / "pytest_plugin.py").read_text())
    assert plugin
    assert ours
    assert not {*ours} & {*plugin}


def test_pytest_finds_the_plugin_by_its_entry_point() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert '[project.entry-points.pytest11]\nmemifrt = "memifrt.pytest_plugin"\n' in pyproject


# --- scopes and artefacts -------------------------------------------------------------------------------------------


def test_fixtures_of_other_scopes_are_made_by_name(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        textwrap.dedent("""
        from memifrt.pytest_plugin import Memif, memif_fixture

        lab = memif_fixture(scope="session")
        pair = memif_fixture(Memif.pair)
        wide = memif_fixture(lambda memif: memif.pair(queues=4), scope="session", name="wide_pair")
        """)
    )
    test = """
        import threading

        def test_one(lab, pair, wide_pair, memif_pair):
            pair.slave.send([b"kept for the next test"])
            wide_pair.slave.send([b"and this"], qid=3)
            lab.first = lab.listener()

        def test_two(lab, pair, wide_pair, memif_pair):
            assert pair.master.recv() == [b"kept for the next test"]
            assert wide_pair.master.recv() == [b"and this"]
            assert memif_pair.master.collect(0) == []
            assert lab.first.socket != lab.socket()
    """
    other = """
        def test_other_module(pair, wide_pair, lab):
            assert pair.master.counters.rx.packets == 0
            assert wide_pair.master.counters.rx.packets == 1
            assert lab.first.interface.deleted is False
    """
    (tmp_path / "test_a.py").write_text(textwrap.dedent(test))
    (tmp_path / "test_b.py").write_text(textwrap.dedent(other))
    done = run_pytest(tmp_path, *PLUGIN, "-p", "no:timeout", "-W", "error")
    assert "3 passed" in done.stdout, done.stdout + done.stderr


def test_failing_test_leaves_captures_and_its_report_says_where(tmp_path: Path) -> None:
    test = """
        from memifrt.pytest_plugin import memif_fixture

        pair = memif_fixture(lambda memif: memif.pair(mode="ip"), scope="module")

        def test_good(pair):
            pair.slave.send([b"from the test before"])

        def test_bad(memif_pair, pair):
            memif_pair.slave.send([b"one", b"two"])
            assert memif_pair.master.recv(2) == [b"one", b"three"]

        def test_in_setup(memif_listener, nobody):
            pass

        import pytest

        @pytest.fixture
        def nobody(memif_listener):
            memif_listener.wait_connected(0.05)
    """
    (tmp_path / "test_it.py").write_text(textwrap.dedent(test))
    done = run_pytest(tmp_path, *PLUGIN, "-p", "no:timeout", f"--basetemp={tmp_path / 'base'}")
    assert "1 failed, 1 passed, 1 error" in done.stdout, done.stdout + done.stderr
    found = re.findall(r"^captures and logs: (.*)$", done.stdout, re.MULTILINE)
    assert [Path(path).name for path in found] == ["memif-test_bad0", "memif-test_in_setup0"] or [
        Path(path).name for path in found
    ] == ["memif-test_in_setup0", "memif-test_bad0"]
    directory = tmp_path / "base" / "memif-test_bad0"
    assert {str(directory)} <= {*found}
    assert re.search(r"^ +peer: an interface without a name of 'memifrt pytest'", done.stdout, re.MULTILINE)
    for name in ("port1-master.pcapng", "port2-slave.pcapng"):
        with open_capture(directory / name) as capture:
            assert [packet.data for packet in capture] in ([b"one", b"two"], [b"from the test before"])
    assert "memif 0 (master)" in (directory / "report.txt").read_text()


def test_captures_can_be_turned_off(tmp_path: Path) -> None:
    test = "def test_it(memif_pair):\n    memif_pair.slave.send([b'x'])\n    assert False\n"
    (tmp_path / "test_it.py").write_text(test)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmemif_capture = 0\n")
    done = run_pytest(tmp_path, *PLUGIN, f"--basetemp={tmp_path / 'base'}")
    assert "1 failed" in done.stdout
    assert [path.name for path in (tmp_path / "base").rglob("*") if path.is_file()] == ["report.txt"]
    (tmp_path / "pytest.ini").write_text("[pytest]\nmemif_capture = all\n")
    done = run_pytest(tmp_path, *PLUGIN)
    assert "memif_capture is 'all'; it must be a whole number of packets" in done.stdout + done.stderr


# --- packets in the ring at the end ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"receive": False}, {"rx_mode": "polling"}])
def test_packets_in_the_ring_survive_the_end_of_the_peer(options: PortOptions, memif: Memif) -> None:
    master, slave = memif.pair(master=options)
    slave.send([b"last", b"words"])
    slave.close()
    master.wait_disconnected()
    with pytest.raises(Disconnected, match=r"memif 0 \(master\) on .*interface deleted; 2 packets came"):
        master.recv(3)
    assert master.recv() == [b"last"]
    assert master.collect(0) == [b"words"]
    assert master.collect(0) == []
