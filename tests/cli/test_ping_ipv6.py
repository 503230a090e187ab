"""``memifrt ping`` and ``memifrt responder`` over IPv6, with each other and with the Linux kernel."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator

import pytest

from memifrt import Mode
from memifrt.cli.command_line import main
from memifrt.cli.commands.ping import PingOptions
from memifrt.errors import ConfigError
from memifrt.packets import parse_ip
from tests.lib.namespaces import Namespace, missing, namespaces
from tests.lib.programs import end, read_until, responder, running
from tests.lib.support import DEADLINE

TARGET = "2001:db8::2"
LINE = r"^{size} bytes from {target}: icmp_seq={sequence} ttl=64 time=\d+(\.\d+)? ms$"


def assert_all_answered(out: str, target: str, count: int, size: int = 56) -> None:
    """The whole output of a ping whose every request was answered, as iputils prints it for IPv6."""
    lines = out.splitlines()
    assert lines[0] == f"PING {target}({target}) {size} data bytes"
    for sequence, line in enumerate(lines[1 : count + 1], 1):
        assert re.match(LINE.format(size=size + 8, target=target, sequence=sequence), line)
    assert lines[count + 1 : count + 3] == ["", f"--- {target} ping statistics ---"]
    assert re.match(rf"^{count} packets transmitted, {count} received, 0% packet loss, time \d+ms$", lines[count + 3])
    assert re.match(r"^rtt min/avg/max/mdev = \d+\.\d{3}/", lines[count + 4])
    assert len(lines) == count + 5


# --- the two with each other ----------------------------------------------------------------------------------------


def test_one_responder_answers_both_protocols_and_all_its_addresses(
    socket_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    addresses = ["10.0.0.2", TARGET, "fe80::2"]
    given = [word for address in addresses for word in ("--ip", address)]
    with running("responder", "--role", "master", "--socket", socket_name, *given) as peer:
        assert read_until(peer, "^answering").startswith(
            "answering for 10.0.0.2, 2001:db8::2, fe80::2 (02:fe:0a:00:00:02) as "
        )
        for target in addresses[1:]:
            assert main(["ping", "--socket", socket_name, "-c2", "-i0.01", target]) == 0
            assert_all_answered(capsys.readouterr().out, target, 2)
        assert main(["ping", "--socket", socket_name, "-c1", "10.0.0.2"]) == 0
        assert "64 bytes from 10.0.0.2: " in capsys.readouterr().out
        assert end(peer)[0] == 0


@pytest.mark.parametrize("mode", ["ethernet", "ip"])
def test_by_default_each_has_an_address_of_each_protocol(
    mode: str, socket_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--socket", socket_path, "--mode", mode]
    with responder("--role", "master", *common):
        assert main(["ping", *common, "-c1", "-s", "65527", "fe80::2"]) == 0
    assert_all_answered(capsys.readouterr().out, "fe80::2", 1, 65527)


def test_address_that_nobody_has_is_unreachable(socket_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with responder("--role", "master", "--socket", socket_name):
        assert main(["ping", "--socket", socket_name, "-c1", "-W0.1", "2001:db8::77"]) == 1
    out = capsys.readouterr().out
    assert "\nFrom fe80::3 icmp_seq=1 Destination unreachable: Address unreachable\n" in out
    assert "1 packets transmitted, 0 received, +1 errors, 100% packet loss" in out


WRONG = {
    "a target with a zone": (["ping", "fe80::2%eth0"], ["TARGET", "'fe80::2%eth0'", "2001:db8::2"]),
    "a group as target": (["ping", "ff02::1"], ["TARGET", "'ff02::1'", "unicast"]),
    "a group as own address": (["responder", "--ip", "ff02::1"], ["--ip", "'ff02::1'", "unicast"]),
    "no own address": (["responder", "--ip", "::"], ["--ip", "'::'", "unicast"]),
    "no IPv4 address of its own": (["ping", "--ip", "::1", "1.2.3.4"], ["1.2.3.4 is an IPv4", "--ip 192.168.1.3"]),
    "no IPv6 address of its own": (["ping", "--ip", "1.2.3.4", "::1"], ["::1 is an IPv6", "--ip 2001:db8::3"]),
    "the target is ourselves": (["ping", "--ip", "::1", "--ip", "::2", "::2"], ["::2", "--ip"]),
    "a size for IPv6 alone": (["ping", "-s", "65527", "1.2.3.4"], ["-s", "'65527'", "0 to 65507"]),
    "a size for neither": (["ping", "-s", "65528", "::1"], ["-s", "'65528'", "0 to 65527"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_value_is_one_line_and_status_2(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = WRONG[case]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert [word for word in words if word not in err] == []


def test_most_payload_depends_on_the_protocol() -> None:
    PingOptions(parse_ip("::1"), size=65527)
    with pytest.raises(ConfigError, match="65507"):
        PingOptions(parse_ip("1.2.3.4"), size=65508)


# --- with the Linux kernel ------------------------------------------------------------------------------------------

NAMESPACES = missing("ping")
needs_namespaces = pytest.mark.skipif(bool(NAMESPACES), reason=NAMESPACES)


@contextlib.contextmanager
def kernel(socket: str, mode: Mode, role: str) -> Iterator[Namespace]:
    """A namespace with 2001:db8::1 on a TAP or TUN device behind a bridge to the memif."""
    name = mode.name.lower()
    with namespaces(1) as (namespace,):
        ends = f"memif:{socket},role={role},mode={name}", f"tap:mif,mode={name},netns={namespace.name}"
        with running("bridge", *ends) as bridge:
            read_until(bridge, "^bridging ")
            namespace.ip("address", "add", "2001:db8::1/64", "dev", "mif", "nodad")
            yield namespace


modes = pytest.mark.parametrize("mode", [Mode.ETHERNET, Mode.IP])


@needs_namespaces
@modes
def test_kernel_pings_the_responder(mode: Mode, socket_path: str) -> None:
    given = ["--role", "master", "--socket", socket_path, "--mode", mode.name.lower()]
    with responder(*given, "--ip", TARGET, "--ip", "fe80::2"), kernel(socket_path, mode, "slave") as namespace:
        # The kernel acts on a carrier some time after it is there: until one packet has come back.
        namespace.run("ping", "-6", "-n", "-q", "-c", "1", "-i", "0.1", "-w", "15", TARGET)
        for size in ("56", "1452"):
            out = namespace.run("ping", "-6", "-n", "-c", "3", "-i", "0.05", "-W", "5", "-s", size, TARGET)
            assert "3 received, 0% packet loss" in out
            assert "BAD" not in out
        if mode is Mode.ETHERNET:
            assert "02:fe:00:00:00:02" in namespace.run("ip", "-6", "neighbour", "show", TARGET)
            out = namespace.run("ping", "-6", "-n", "-c", "2", "-i", "0.05", "-W", "5", "-w", "15", "fe80::2%mif")
            assert "0% packet loss" in out


@needs_namespaces
@modes
def test_ping_reaches_the_kernel(mode: Mode, socket_path: str) -> None:
    given = ["--role", "master", "--socket", socket_path, "--mode", mode.name.lower(), "-i", "0.05", "-W", "10"]
    with running("ping", *given, "-c", "200", "--ip", TARGET, "2001:db8::1") as ping:
        read_until(ping, "^PING")
        with kernel(socket_path, mode, "slave") as namespace:
            read_until(ping, "^64 bytes from 2001:db8::1: ")
            # Meanwhile the kernel's own questions and pings are answered.
            assert " 0% packet loss" in namespace.run(
                "ping", "-6", "-n", "-q", "-c", "2", "-i", "0.05", "-w", "15", TARGET
            )
            status, out, err = end(ping)
    assert status == 0, err
    assert re.search(r"^rtt min/avg/max/mdev = ", out, re.M)


@needs_namespaces
def test_kernel_that_takes_our_address_finds_the_duplicate(socket_path: str) -> None:
    given = ["--role", "master", "--socket", socket_path, "--ip", TARGET]
    with responder(*given), kernel(socket_path, Mode.ETHERNET, "slave") as namespace:
        namespace.run("ping", "-6", "-n", "-q", "-c", "1", "-i", "0.1", "-w", "15", TARGET)
        namespace.ip("address", "add", f"{TARGET}/64", "dev", "mif")
        deadline = time.monotonic() + DEADLINE
        while "dadfailed" not in namespace.run("ip", "-6", "address", "show", "dev", "mif"):
            assert time.monotonic() < deadline, "the kernel found no duplicate"
