"""``memifrt extcap``: what Wireshark reads, what it captures, and Debian's tshark itself."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from memifrt import ConfigError, Role, Runtime
from memifrt.capture.pcap import LinkType, Packet, open_capture
from memifrt.cli.command_line import main
from memifrt.cli.wireshark import interfaces as interfaces_module
from memifrt.cli.wireshark.install import PROGRAM, folder
from memifrt.cli.wireshark.interfaces import configured, discovered, find, interfaces, says_hello
from memifrt.control.address import Address
from memifrt.ports.endpoint import MemifEndpoint
from tests.lib.programs import Program, end, finish, run, running
from tests.lib.support import DEADLINE, wait_until
from tests.lib.threads import Thread

FRAME = bytes.fromhex("02000000000202000000000188b5") + bytes(46)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration file of a home of the test's own, which is not there yet."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))
    path = tmp_path / ".config" / "memifrt" / "extcap.toml"
    path.parent.mkdir(parents=True)
    return path


# --- the list -------------------------------------------------------------------------------------------------------


def test_configured_memifs_are_listed(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(
        '[interfaces]\nlab = "@lab,id=3,secret=hunter2"\ntwo = ["@left,role=master", "@right,mode=ethernet"]\n'
    )
    assert main(["extcap", "--extcap-interfaces", "--extcap-version=4.0"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("extcap {version=")
    assert "interface {value=memif-lab}{display=lab: memif3 on @lab}" in lines
    assert "interface {value=memif-two}{display=two: memif0 on @left <-> memif0 on @right}" in lines
    assert lines[-1] == "interface {value=memif}{display=memif: the socket is an option}"
    assert (err, "hunter2" in out) == ("", False)


def test_the_options_of_an_interface_have_its_values_as_defaults_but_no_secret(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text('[interfaces]\nlab = "/run/{a}.sock,id=3,role=master,mode=ip,secret=hunter2"\n')
    assert main(["extcap", "--extcap-config", "--extcap-interface", "memif-lab"]) == 0
    out = capsys.readouterr().out
    assert "{call=--socket}{display=Socket}{type=string}{default=/run/(a).sock}" in out
    assert "{call=--id}{display=Interface id}{type=unsigned}{range=0,4294967295}{default=3}" in out
    assert "{value=master}{display=master}{default=true}" in out
    assert "{value=ip}{display=ip}{default=true}" in out
    assert "{call=--secret}{display=Secret}{type=password}" in out
    assert "{call=--between}" in out
    assert "{type=double}" not in out  # Wireshark shows and saves an empty one as 0: no limit
    assert "hunter2" not in out
    assert main(["extcap", "--extcap-dlts", "--extcap-interface", "memif-lab"]) == 0
    assert capsys.readouterr().out == "dlt {number=101}{name=RAW}{display=Raw IP}\n"
    assert main(["extcap", "--extcap-dlts", "--extcap-interface", "memif"]) == 0
    assert capsys.readouterr().out == "dlt {number=1}{name=EN10MB}{display=Ethernet}\n"


WRONG_FILES = {
    "[interfaces": "it is not TOML",
    "[interface]": "unknown 'interface'",
    "interfaces = 3": "interfaces is not a table",
    "[interfaces]\nlab = 3": "lab: it must be a memif",
    '[interfaces]\nlab = ["@a", "@b", "@c"]': "or a list of two",
    '[interfaces]\n"a b" = "@a"': "'a b' is not a name",
    '[interfaces]\nlab = "@a,secret=hunter2,id=x"': "lab: id is 'x'",
    '[interfaces]\nlab = ["@a", "@a"]': "lab: both ends are memif0 on @a",
}


@pytest.mark.parametrize("text", WRONG_FILES)
def test_a_wrong_configuration_file_is_one_line_and_hides_nothing(
    text: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(text)
    with pytest.raises(ConfigError) as caught:
        configured(config)
    assert WRONG_FILES[text] in str(caught.value)
    assert str(config) in str(caught.value)
    assert main(["extcap", "--extcap-interfaces"]) == 0
    out, err = capsys.readouterr()
    assert "interface {value=memif}" in out
    assert err.count("\n") == 1
    assert "hunter2" not in err


# --- sockets that are found -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def unix_socket(path: str, kind: int) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(path)
        listener.listen()
        try:
            yield listener
        finally:
            os.unlink(path)


def test_listening_sockets_in_the_usual_places_are_found_and_others_are_not(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = uuid.uuid4().hex[:8]
    memif, other, stream = (f"/tmp/memifrt-{kind}-{name}.sock" for kind in ("memif", "other", "stream"))
    quiet = f"/tmp/lab-{name}.sock"
    monkeypatch.setattr(interfaces_module, "_PATIENCE", 0)
    master = runtime.create_interface(socket=memif, role="master")
    with unix_socket(quiet, socket.SOCK_SEQPACKET), unix_socket(stream, socket.SOCK_STREAM):
        found = {interface.value: interface.ends for interface in discovered(says_hello)}
        asked = {interface.value for interface in discovered(lambda address: True)}
    assert found[f"memif-tmp-memifrt-memif-{name}.sock"][0].socket == memif
    assert not any(name in value and value != f"memif-tmp-memifrt-memif-{name}.sock" for value in found)
    assert f"memif-tmp-lab-{name}.sock" in asked
    assert not any("stream" in value for value in asked if name in value)
    runtime.poll_event(0)
    assert master.violations == 0
    assert not os.path.exists(other)
    master.close()


def test_a_socket_of_another_name_is_asked_and_told_goodbye(runtime: Runtime, socket_path: str) -> None:
    reasons: list[str] = []
    master = runtime.create_interface(
        socket=socket_path, role="master", on_disconnect=lambda interface, reason: reasons.append(str(reason))
    )
    answers: list[bool] = []
    asking = Thread(target=lambda: answers.append(says_hello(Address.parse(socket_path))))
    asking.start()
    wait_until(lambda: bool(answers), runtime)
    asking.join(DEADLINE)
    assert answers == [True]
    runtime.poll_event(0)
    assert (master.violations, master.connects) == (0, 0)


def test_a_socket_that_says_nothing_is_none(socket_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces_module, "_PATIENCE", 0)
    with unix_socket(socket_path, socket.SOCK_SEQPACKET):
        assert not says_hello(Address.parse(socket_path))
    assert not says_hello(Address.parse(socket_path))


def test_a_name_is_found_again_without_asking(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces_module, "says_hello", None)
    config.write_text('[interfaces]\nlab = "@lab"\n')
    assert find("memif-lab").ends == (find("memif-lab").ends[0],)
    assert find("memif-lab").ends[0].socket == "@lab"
    with pytest.raises(ConfigError, match="there is no interface 'memif-x': nobody listens"):
        find("memif-x")


def test_the_list_ends_with_the_interface_for_any_socket(config: Path) -> None:
    complaints: list[str] = []
    found = interfaces(complaints.append)
    assert (found[-1].value, complaints) == ("memif", [])
    assert isinstance(found[-1].ends[0], MemifEndpoint)
    assert found[-1].ends[0].config.role is Role.SLAVE


# --- wrong arguments ------------------------------------------------------------------------------------------------

WRONG = {
    "": ["--install"],
    "--capture --extcap-interface memif": ["--fifo"],
    "--capture --fifo /nowhere/x": ["--extcap-interface is missing"],
    "--capture --extcap-interface nosuch --fifo x": ["'nosuch'"],
    "--capture --extcap-interface memif --fifo /nowhere/x": ["cannot write /nowhere/x"],
    "--capture --extcap-interface memif --fifo x --role boss": ["--role", "'boss'"],
    "--capture --extcap-interface memif --fifo x --id -1": ["--id"],
    "--capture --extcap-interface memif --fifo x --between tap:a": ["--between", "is not a memif"],
    "--capture --extcap-interface memif --fifo x --between /run/vpp/memif.sock": ["both ends"],
    "--capture --extcap-interface memif --fifo x --mode ip --between tap0,x": ["--between"],
    "--capture --extcap-interface memif --fifo x --connect-timeout no": ["--connect-timeout", "'no'"],
    "--capture --extcap-interface memif --fifo x --secret hunter2hunter2hunter2hunter2": ["secret"],
    "--install /dev/null/x": ["cannot write /dev/null/x"],
    "--uninstall /nowhere": ["/nowhere/memifrt-extcap is not there"],
}


@pytest.mark.parametrize("arguments", WRONG)
def test_a_wrong_argument_is_one_line_and_status_2(
    arguments: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["extcap", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err[:-1].isprintable()
    assert [word for word in WRONG[arguments] if word not in err] == []
    assert "hunter2" not in err


def test_an_empty_field_of_the_dialogue_is_not_given(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = [word for option in ("socket", "secret", "between", "connect-timeout") for word in (f"--{option}", "")]
    assert main(["extcap", "--capture", "--extcap-interface", "memif", "--fifo", "/nowhere/x", *empty]) == 2
    assert "cannot write /nowhere/x" in capsys.readouterr().err


def test_a_filter_is_checked_and_its_fault_is_on_standard_output(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check = ["extcap", "--extcap-interface", "memif", "--extcap-capture-filter"]
    assert main([*check, "udp port 53"]) == 0
    if "libpcap is" in (out := capsys.readouterr().out):
        pytest.skip(out)
    assert out == ""
    assert main([*check, "udp foo"]) == 0
    assert "does not understand the filter 'udp foo'" in capsys.readouterr().out


# --- the capture ----------------------------------------------------------------------------------------------------


class Reader:
    """Reads a fifo as Wireshark does, in a thread."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.packets: list[Packet] = []
        self.names: list[int] = []
        self.enough = threading.Event()
        self._path = path
        self._count = 0
        self._thread = Thread(target=self._read)

    @contextlib.contextmanager
    def reading(self, count: int) -> Iterator[Reader]:
        """Read so many packets, then close the fifo; or as many as come, if it is 0."""
        self._count = count
        self._thread.start()
        yield self
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()

    def _read(self) -> None:
        with open_capture(self._path) as reader:
            for packet in reader:
                self.packets.append(packet)
                if len(self.packets) == self._count:
                    return


@contextlib.contextmanager
def capturing(fifo: Path, *arguments: str) -> Iterator[Program]:
    common = ("--capture", "--extcap-interface", "memif", "--fifo", str(fifo))
    with running("extcap", *common, *arguments) as program:
        yield program


def test_a_capture_ends_when_the_fifo_is_closed(config: Path, runtime: Runtime, socket_path: str) -> None:
    reader = Reader(config.parent / "fifo")
    slave = runtime.create_interface(socket=socket_path)
    with (
        reader.reading(2),
        capturing(config.parent / "fifo", "--socket", socket_path, "--role", "master", "--secret", "") as program,
    ):
        wait_until(lambda: slave.connected, runtime)
        slave.tx_queues[0].send([FRAME, FRAME])
        wait_until(lambda: not slave.connected, runtime)
        status, out, err = finish(program)
    assert (status, out, err) == (0, "", "")
    assert [(packet.data, packet.link_type) for packet in reader.packets] == [(FRAME, LinkType.ETHERNET)] * 2
    assert all(packet.time is not None and packet.time > 10**18 for packet in reader.packets)


def test_a_capture_ends_on_a_signal_and_the_file_is_whole(config: Path, runtime: Runtime, socket_path: str) -> None:
    reader = Reader(config.parent / "fifo")
    slave = runtime.create_interface(socket=socket_path)
    with (
        reader.reading(0),
        capturing(config.parent / "fifo", "--socket", socket_path, "--role", "master") as program,
    ):
        wait_until(lambda: slave.connected, runtime)
        slave.tx_queues[0].send([FRAME])
        wait_until(lambda: bool(reader.packets), runtime)
        status, _, err = end(program)
    assert (status, err) == (0, "")
    assert [packet.data for packet in reader.packets] == [FRAME]


def test_a_capture_between_two_memifs_forwards_and_has_both_directions(
    config: Path, runtime: Runtime, socket_path: str
) -> None:
    reader = Reader(config.parent / "fifo")
    second = f"{socket_path},role=master,id=1"
    received: list[bytes] = []
    ends = [
        runtime.create_interface(
            socket=socket_path, id=number, on_interrupt=lambda each, qid: received.extend(each.rx_queues[qid].recv())
        )
        for number in (0, 1)
    ]
    with (
        reader.reading(2),
        capturing(config.parent / "fifo", "--socket", socket_path, "--role", "master", "--between", second) as program,
    ):
        wait_until(lambda: all(end.connected for end in ends), runtime)
        back = FRAME[:14] + bytes(100)
        ends[0].tx_queues[0].send([FRAME])
        wait_until(lambda: received == [FRAME], runtime)
        ends[1].tx_queues[0].send([back])
        wait_until(lambda: not any(end.connected for end in ends), runtime)
        status, _, err = finish(program)
    assert (status, err) == (0, "")
    assert [packet.data for packet in reader.packets] == [FRAME, back]


def test_a_slave_without_a_peer_ends_with_one_line(config: Path, socket_path: str) -> None:
    reader = Reader(config.parent / "fifo")
    with (
        reader.reading(0),
        capturing(config.parent / "fifo", "--socket", socket_path, "--connect-timeout", "0.2") as program,
    ):
        status, out, err = finish(program)
    assert (status, out) == (3, "")
    assert err.startswith("memifrt extcap: no peer has connected within 0.2 s: cannot connect to ")
    assert err.count("\n") == 1


# --- the installation -----------------------------------------------------------------------------------------------


def test_the_program_is_installed_and_removed(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = config.parent / "it's here"
    assert main(["extcap", "--install", str(where)]) == 0
    program = where / PROGRAM
    out = capsys.readouterr().out
    assert str(program) in out
    assert str(config) in out
    assert stat.S_IMODE(program.stat().st_mode) == 0o755
    assert main(["extcap", "--install", str(where)]) == 0, "a second time replaces it"
    listed = subprocess.run(
        [str(program), "--extcap-interfaces"], capture_output=True, text=True, check=True, timeout=DEADLINE
    )
    assert "interface {value=memif}" in listed.stdout
    assert main(["extcap", "--uninstall", str(where)]) == 0
    assert [*where.iterdir()] == []


def test_a_symbolic_link_to_the_program_stays_one(config: Path) -> None:
    (where := config.parent / "links").mkdir()
    (where / PROGRAM).symlink_to(config.parent / "program")
    for _ in range(2):
        assert main(["extcap", "--install", str(where)]) == 0
    assert (where / PROGRAM).is_symlink()
    assert stat.S_IMODE((config.parent / "program").stat().st_mode) == 0o755


def test_another_program_of_that_name_is_left_alone(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = config.parent / PROGRAM
    program.write_text("#!/bin/sh\n")
    assert main(["extcap", "--install", str(config.parent)]) == 2
    assert main(["extcap", "--uninstall", str(config.parent)]) == 2
    assert capsys.readouterr().err.count("is not from memifrt extcap --install") == 2
    assert program.read_text() == "#!/bin/sh\n"


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (
            "Personal configuration:\t{home}/.config/wireshark\nExtcap path:\t/usr/x\n",
            "{home}/.config/wireshark/extcap",
        ),
        ("Personal configuration:\t/a\nPersonal Extcap path:\t{home}/.local/x\n", "{home}/.local/x"),
        ("", "{home}/.local/lib/wireshark/extcap"),
    ],
)
def test_wireshark_names_its_folder(named: str, expected: str, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = os.environ["HOME"]
    program = Path(home) / "tshark"
    program.write_text(f"#!/bin/sh\nprintf '%s' '{named.format(home=home)}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}:/bin:/usr/bin" if named else "/nowhere")
    assert str(folder()) == expected.format(home=home)


# --- Debian's tshark ------------------------------------------------------------------------------------------------

TSHARK = shutil.which("tshark")
needs_tshark = pytest.mark.skipif(TSHARK is None, reason="tshark is not installed (apt-get install tshark)")


@contextlib.contextmanager
def tshark(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        ["tshark", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        try:
            yield program
        finally:
            program.terminate()


@needs_tshark
def test_tshark_lists_and_captures_with_nanoseconds(config: Path, runtime: Runtime, socket_path: str) -> None:
    config.write_text(f'[interfaces]\nlab = "{socket_path},role=master,secret=s3cret"\n')
    assert main(["extcap", "--install"]) == 0
    listed = subprocess.run(["tshark", "-D"], capture_output=True, text=True, check=False, timeout=2 * DEADLINE)
    assert f"memif-lab (lab: memif0 on {socket_path})" in listed.stdout
    slave = runtime.create_interface(socket=socket_path, secret="s3cret")
    fields = ("frame.time_epoch", "frame.interface_name", "frame.encap_type", "frame.len")
    shown = [word for field in fields for word in ("-e", field)]
    with tshark("-i", "memif-lab", "-c", "3", "-T", "fields", *shown) as program:
        wait_until(lambda: slave.connected, runtime, timeout=2 * DEADLINE)
        slave.tx_queues[0].send([FRAME] * 3)
        out, err = program.communicate(timeout=2 * DEADLINE)
    assert program.returncode == 0, err
    rows = [line.split("\t") for line in out.splitlines()]
    assert [row[1:] for row in rows] == [[f"memif0 on {socket_path}", "1", "60"]] * 3
    assert all(len(row[0].partition(".")[2]) == 9 and not row[0].endswith("000") for row in rows), rows


@needs_tshark
def test_tshark_shows_why_a_capture_fails(config: Path, socket_path: str) -> None:
    config.write_text(f'[interfaces]\nlab = "{socket_path}"\n')
    assert main(["extcap", "--install"]) == 0
    with tshark("-i", "memif-lab", "-o", "extcap.memif_lab.connecttimeout:0.2", "-c", "1") as program:
        _, err = program.communicate(timeout=3 * DEADLINE)
    assert f"no peer has connected within 0.2 s: cannot connect to {socket_path}" in err
    assert "Traceback" not in err


def test_help_is_short_and_says_how_to_start() -> None:
    shown = run("extcap", "--help")
    assert shown.returncode == 0
    assert "memifrt extcap --install" in shown.stdout
    assert "--extcap-version" not in shown.stdout
