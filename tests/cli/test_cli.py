"""The command line: arguments and their errors, ``demo``, ``responder``, and how each ends."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import select
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import memifrt
import memifrt_command
from memifrt import ConfigError
from memifrt.capture.pcap import LinkType, create_capture
from memifrt.cli import command_line
from memifrt.cli.arguments import seconds_or_zero
from memifrt.cli.command_line import main, make_parser, parse
from memifrt.cli.commands.replay import positive
from memifrt.cli.plots import plot_path
from tests.lib.programs import end, finish, read_until, responder, run, running
from tests.lib.support import DEADLINE

TARGET = "192.168.1.2"
LONG = "x" * 108
SECRET = "hunter2hunter2"

# --- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "name", "values"),
    [
        ("throughput memif:@a --sizes 64 memif:@b", "b", "memif:@b"),
        ("throughput --sizes 64 memif:@a --trial 1 memif:@b", "b", "memif:@b"),
        ("switch memif:@a --ageing 5 memif:@b tap:x", "ports", "memif:@a memif:@b tap:x"),
        ("switch memif:@a --ageing 5 memif:@b --queue 5 tap:x", "ports", "memif:@a memif:@b tap:x"),
        ("top @a --sort name @b", "paths", "@a @b"),
        ("dump udp -c 3 port 53", "filter", "udp port 53"),
        ("bridge memif:@a --loss 1% memif:@b", "b", "memif:@b"),
    ],
)
def test_arguments_may_stand_behind_options(line: str, name: str, values: str) -> None:
    together = " ".join([line.split()[0], *(["memif:@a"] if name == "b" else []), values])
    assert getattr(parse(line.split()), name) == getattr(parse(together.split()), name)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (
            "throughput memif:@a --sizes 64 memif:@b memif:@c",
            "unexpected argument memif:@c; throughput takes A [B], and options",
        ),
        (
            "throughput memif:@a memif:@b --sizes 64 memif:@c",
            "unexpected argument memif:@c; throughput takes A [B], and options",
        ),
        ("throughput memif:@a --sizes 64 tap:x", "argument B: 'tap:x'"),
        ("switch memif:@a --ageing 5 memif", "argument PORT: 'memif'"),
        ("ping 10.0.0.1 -c 1 10.0.0.2", "unexpected argument 10.0.0.2; ping takes TARGET, and options"),
        ("dump udp -c 3 port -j", "unknown argument -j"),
    ],
)
def test_wrong_arguments_behind_options_are_named(line: str, error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    assert f"memifrt {line.split()[0]}: {error}" in capsys.readouterr().err


# --- wrong arguments ------------------------------------------------------------------------------------------------

#: The arguments, and what the error must name: the thing, the value, what would be right.
WRONG: dict[str, tuple[list[str], list[str]]] = {
    "no command": ([], ["name a command: demo, responder, ping"]),
    "argument of a command without": (["responder", "x"], ["unexpected argument x; responder takes only options"]),
    "two options for one value": (
        ["responder", "--ring-size=64", "--log2-ring-size=6"],
        ["--ring-size is 64 and --log2-ring-size is 6; an interface takes one of the two"],
    ),
    "unknown command": (["frobnicate"], ["'frobnicate'", "ping", "responder", "demo"]),
    "misspelt command": (["pign"], ["'pign'", "did you mean ping?"]),
    "misspelt option of all": (["--versoin"], ["--versoin", "did you mean --version?"]),
    "unknown argument": (["demo", "--fast"], ["--fast", "see memifrt demo --help"]),
    "option like another in its dashes alone": (["dump", "--nonsense"], ["argument --nonsense (see"]),
    "misspelt option": (["ping", "--scoket", "x", TARGET], ["--scoket", "did you mean --socket?"]),
    "no file with a secret": (["ping", "--secret-file", "/nowhere", TARGET], ["--secret-file", "/nowhere", "No such"]),
    "empty file with a secret": (["ping", "--secret-file", "/dev/null", TARGET], ["/dev/null", "the secret"]),
    "shell": (["--print-completion", "fish"], ["--print-completion", "'fish'", "bash", "zsh", "tcsh"]),
    "abbreviated argument": (["responder", "--sock", "x"], ["--sock"]),
    "argument too many": (["ping", TARGET, "again"], ["again"]),
    "argument without its value": (["responder", "--id"], ["--id", "expected one argument"]),
    "no target": (["ping"], ["TARGET"]),
    "target is a name": (["ping", "localhost"], ["TARGET", "'localhost'", "192.168.1.2"]),
    "target is ourselves": (["ping", "--ip", "10.0.0.1", "10.0.0.1"], ["10.0.0.1", "--ip"]),
    "ring size no power of two": (["responder", "--ring-size", "1000"], ["--ring-size", "'1000'", "two", "16384"]),
    "ring size 0": (["responder", "--ring-size", "0"], ["--ring-size", "'0'", "power of two"]),
    "ring size too large": (["responder", "--ring-size", "32768"], ["--ring-size", "'32768'", "16384"]),
    "ring size no number": (["responder", "--ring-size", "2^10"], ["--ring-size", "'2^10'"]),
    "short ip": (["responder", "--ip", "1.2.3"], ["--ip", "'1.2.3'", "192.168.1.2"]),
    "mac": (["responder", "--mac", "xx"], ["--mac", "'xx'", "02:fe:00:00:00:01"]),
    "multicast mac": (["responder", "--mac", "01:00:5e:00:00:01"], ["--mac", "'01:00:5e:00:00:01'", "unicast"]),
    "no mac": (["responder", "--mac", "0:0:0:0:0:0"], ["--mac", "'0:0:0:0:0:0'", "unicast"]),
    "too many queues": (["responder", "--queues", "256"], ["--queues", "'256'", "1 to 255"]),
    "no queues": (["ping", "--queues", "0", TARGET], ["--queues", "'0'", "1 to 255"]),
    "id": (["responder", "--id", "4294967296"], ["--id", "'4294967296'", "0 to 4294967295"]),
    "negative id": (["responder", "--id", "-1"], ["--id", "'-1'", "0 to 4294967295"]),
    "buffer size": (["responder", "--buffer-size", "65536"], ["--buffer-size", "'65536'", "1 to 65535"]),
    "huge number": (["responder", "--id", "9" * 5000], ["--id", "0 to 4294967295"]),
    "role": (["responder", "--role", "boss"], ["--role", "'boss'", "master", "slave", "server", "client"]),
    "rx mode": (["responder", "--rx-mode", "x"], ["--rx-mode", "'x'", "interrupt", "polling"]),
    "mode": (["responder", "--mode", "x"], ["--mode", "'x'", "must be ethernet or ip"]),
    "mode without answers": (["responder", "--mode", "punt-inject"], ["--mode", "'punt-inject'", "ethernet or ip"]),
    "long secret": (["responder", "--secret", "x" * 24], ["--secret", "24 bytes", "at most 23"]),
    "long socket path": (["responder", "--socket", LONG], ["--socket", LONG, "108 bytes", "at most 107"]),
    "empty socket path": (["responder", "--socket", ""], ["--socket", "''", "path"]),
    "count": (["ping", "-c", "0", TARGET], ["-c", "'0'", "from 1"]),
    "interval": (["ping", "-i", "0", TARGET], ["-i", "'0'", "seconds from 0.001"]),
    "interval not a number": (["demo", "-i", "nan"], ["-i", "'nan'", "seconds"]),
    "how long": (["bench", "echo", "--seconds", "-1"], ["--seconds", "'-1'", "or 0"]),
    "wait": (["ping", "-W", "soon", TARGET], ["-W", "'soon'", "seconds"]),
    "size": (["ping", "-s", "65508", TARGET], ["-s", "'65508'", "0 to 65507"]),
    "more memory than a region holds": (
        ["responder", "--queues", "255", "--ring-size", "16384", "--buffer-size", "65535"],
        ["510 rings", "65535", "region"],
    ),
    "no directory": (["responder", "--role", "master", "--socket", "/nowhere/s"], ["/nowhere/s", "directory /nowhere"]),
    "directory without files": (["responder", "--role", "master", "--socket", "/proc/s"], ["/proc takes no files"]),
    "plain file": (["responder", "--role", "master", "--socket", __file__], [__file__, "not a socket"]),
    "control characters": (["responder", "--ip", "\x1b[2J"], ["--ip"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_argument_is_one_line_that_names_it_and_status_2(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = WRONG[case]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("memifrt")
    assert err.endswith("\n")
    assert err[:-1].isprintable()  # and so one line
    assert [word for word in words if word not in err] == []


#: What nobody means: nothing, no number, too much, not UTF-8.
NEVER_RIGHT = ["", "-", "-1", "nan", "1e400", "0x10", "9" * 5000, "\u0664", "\udcff", "a b", "=", ","]


def options_with_a_value() -> list[tuple[str, str]]:
    """Every option of every command that is read by a function or is one of several words."""
    parser = make_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return [
        (command, action.option_strings[-1])
        for command, sub in commands.choices.items()
        for action in sub._actions
        if action.option_strings and action.nargs is None and (action.type is not None or action.choices is not None)
    ]


@pytest.mark.parametrize(("name", "option"), options_with_a_value())
def test_whatever_an_option_is_given_it_is_taken_or_one_line(
    name: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = make_parser()
    refused = 0
    for value in NEVER_RIGHT:
        status: object = 0
        try:
            parser.parse_known_args([name, f"{option}={value}"])
        except SystemExit as error:
            status = error.code
        out, err = capsys.readouterr()
        assert (out, err[:-1].isprintable(), err.count("\n")) == ("", True, 1 if status else 0), value
        assert status in (0, 2), value
        assert not re.search(rf"{option}: (the )?{option.lstrip('-').replace('-', '[-_]')}\b", err), err
        refused += option in err
    assert refused, "it takes anything"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["responder", "--role", "boss"], "argument --role is 'boss'; it must be one of master"),
        (["responder", "--rx-mode", "x"], "argument --rx-mode is 'x'; it must be one of interrupt"),
        (["responder", "--web", "x"], "argument --web is 'x'; it must be ADDRESS:PORT"),
        (["responder", "--prometheus", "x"], "argument --prometheus is 'x'; it must be ADDRESS:PORT"),
        (["generate", "--rate", "x", "--pcap", "x"], "argument --rate: 'x' must be like 1.5Mpps"),
        (["bridge", "memif:@a,rx-mode=x", "tap:b"], "argument A: rx-mode is 'x'; it must be one of"),
        (["dump", "--between", "memif:@", "@b"], "argument --between: socket is '@'; it must be a path"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_error_names_the_argument_once(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_secret_comes_from_an_option_a_file_or_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret"
    file.write_text("from a file\nand nothing else\n")

    def secret(*arguments: str) -> object:
        return make_parser().parse_args(["responder", *arguments]).secret

    assert secret() is None
    assert secret("--secret-file", str(file)) == b"from a file"
    monkeypatch.setenv("MEMIFRT_SECRET", "from a variable")
    assert secret() == b"from a variable"
    assert secret("--secret", "given") == b"given"
    assert secret("--secret-file", str(file)) == b"from a file"


def test_doctor_takes_the_secret_from_a_file_or_a_variable_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret"
    file.write_text("from a file\n")
    assert make_parser().parse_args(["doctor", "--secret-file", str(file), "@lab"]).secret == b"from a file"
    monkeypatch.setenv("MEMIFRT_SECRET", "from a variable")
    assert make_parser().parse_args(["doctor", "@lab"]).secret == b"from a variable"


@pytest.mark.parametrize("text", ["0", "0.0", "00.", "0.000"])
def test_every_zero_is_no_time(text: str) -> None:
    assert seconds_or_zero(text) == 0


def test_plot_that_cannot_be_written_is_refused_before_the_measurement(tmp_path: Path) -> None:
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(ConfigError, match="is a directory"):
        plot_path(str(tmp_path / "folder.svg"))
    assert plot_path(str(tmp_path / "new.svg")) == str(tmp_path / "new.svg")


def test_secret_of_a_variable_that_is_wrong_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEMIFRT_SECRET", 2 * SECRET)
    assert main(["responder"]) == 2
    err = capsys.readouterr().err
    assert "MEMIFRT_SECRET: the secret is 28 bytes long" in err
    assert SECRET not in err


def test_misspelt_secret_option_does_not_show_the_secret(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["responder", "--secert", SECRET]) == 2
    err = capsys.readouterr().err
    assert "--secert; did you mean --secret?" in err
    assert SECRET not in err


def test_a_command_loads_only_what_it_needs() -> None:
    """Each would make the start of all longer."""
    code = (
        "import sys; from memifrt.cli.command_line import main; main(['ping', '--help']); "
        "print(*(name for name in sys.modules if name.startswith('memifrt.cli.commands.')), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE, check=True)
    # ping answers pings, too, as responder does.
    assert {*done.stderr.split()} == {"memifrt.cli.commands.ping", "memifrt.cli.commands.responder"}


def test_completion_script_completes_commands_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab", reason="pip install shtab")
    assert main(["--print-completion", "bash"]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)

    def complete(*words: str) -> list[str]:
        asked = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_memifrt; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(
            ["bash", "-c", f"source {script}; {asked}"], capture_output=True, text=True, timeout=DEADLINE, check=True
        )
        return done.stdout.split()

    assert complete("memifrt", "resp") == ["responder"]
    assert "--socket" in complete("memifrt", "ping", "--so")


def test_wrong_argument_of_a_program_is_status_2_without_a_traceback() -> None:
    done = run("responder", "--ring-size", "1000")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--secret", SECRET, "responder"],
        [f"--secret={SECRET}", "responder"],
        ["responder", "--secrets", SECRET],
        ["responder", f"--secrets={SECRET}"],
        ["responder", "--secret", SECRET, "--id", SECRET],
        ["responder", "--secret", SECRET, "--nonsense", SECRET],
        ["responder", "--secret", SECRET, "--role", "master", "--socket", "/nowhere/s"],
        ["ping", "--secret", SECRET, SECRET],
        ["ping", "--secret", SECRET * 2, TARGET],
        ["ping", "--secret", SECRET + "\udcff\udcff" * 6, TARGET],
    ],
)
def test_no_error_shows_the_secret(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert SECRET not in out + err


def test_debug_output_does_not_show_the_secret(socket_name: str) -> None:
    common = ["--socket", socket_name, "--secret", SECRET]
    with running("responder", "--role", "master", *common, MEMIFRT_DEBUG="1") as peer:
        read_until(peer, "^answering for ")
        done = run("ping", "-c1", *common, TARGET, MEMIFRT_DEBUG="1")
        status, out, err = end(peer)
    assert done.returncode == status == 0
    assert "Init(" in done.stderr
    assert "Init(" in err
    assert SECRET not in done.stdout + done.stderr + out + err


# --- help and version -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], ["responder"], ["ping"], ["demo"], ["top"], ["doctor"]])
def test_help_shows_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"^example.*^  {' '.join(['memifrt', *command])} ", out, re.M | re.S)
    assert "until-eof" not in out


@pytest.mark.parametrize("command", ["", *command_line.COMMANDS])
def test_help_fits_80_columns_and_its_examples_can_be_pasted(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {}
    for columns in ("80", "1000"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main([*([command] if command else []), "--help"]) == 0
        shown[columns] = capsys.readouterr().out
    assert [line for line in shown["80"].splitlines() if len(line) > 80] == []
    examples = [
        [shlex.split(line) for line in re.findall(r"^  memifrt .*$", text, re.M)]
        for text in (shown["80"].replace("\\\n", ""), shown["1000"])
    ]
    assert examples[0] == examples[1]


def test_man_page_has_the_examples_of_each_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    man, shown = (
        next(action for action in parser._actions if action.dest == "command").choices
        for parser in (command_line.make_man_parser(), make_parser())
    )
    assert isinstance(man, dict)
    assert isinstance(shown, dict)
    for name in command_line.COMMANDS:
        example = next(line for line in shown[name].format_help().splitlines() if line.startswith("  memifrt "))
        assert example in man[name].description


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"memifrt {memifrt.__version__}\n"


def test_module_and_installed_command_are_the_same() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"memifrt {memifrt.__version__}\n")
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="memifrt")
    assert entry.load() is memifrt_command.main


# --- responder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("rx_mode", ["interrupt", "polling"])
@pytest.mark.parametrize("connected", [False, True])
def test_signal_ends_the_responder_with_0_and_everything_freed(
    how: signal.Signals, rx_mode: str, connected: bool, socket_path: str
) -> None:
    with responder("--role", "master", "--socket", socket_path, "--rx-mode", rx_mode) as peer:
        assert Path(socket_path).is_socket()
        if connected:
            with running("ping", "--socket", socket_path, TARGET) as ping:
                read_until(ping, "icmp_seq=1 ")
                status, _, err = end(peer, how)
                read_until(ping, "disconnected: peer disconnected: interface deleted", stderr=True)
        else:
            status, _, err = end(peer, how)
    assert status == 0
    assert "Traceback" not in err
    assert not Path(socket_path).exists()


def test_slave_responder_says_why_it_cannot_connect(socket_path: str) -> None:
    with responder("--socket", socket_path) as peer:
        line = read_until(peer, "cannot connect", stderr=True)
        assert socket_path in line
        assert "No such file or directory" in line
        assert end(peer)[0] == 0


def test_responder_answers_for_the_addresses_it_is_given(socket_name: str) -> None:
    arguments = ["--role", "master", "--socket", socket_name, "--ip", "10.1.2.3", "--mac", "02-00-00-00-00-AA"]
    with running("responder", *arguments) as peer:
        line = read_until(peer, "^answering")
        assert line == f"answering for 10.1.2.3 (02:00:00:00:00:aa) as memif 0 (master) on {socket_name}\n"
        done = run("ping", "--socket", socket_name, "-c1", "--ip", "10.1.2.4", "10.1.2.3")
        assert done.returncode == 0
        assert "64 bytes from 10.1.2.3: icmp_seq=1 " in done.stdout


def test_second_responder_on_a_socket_is_an_error(socket_path: str) -> None:
    with responder("--role", "master", "--socket", socket_path) as peer:
        done = run("responder", "--role", "master", "--socket", socket_path)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert f"cannot listen on {socket_path}: somebody listens there already" in done.stderr
        assert end(peer)[0] == 0


def test_output_that_nobody_reads_ends_ping_without_a_traceback(socket_name: str) -> None:
    with (
        responder("--role", "master", "--socket", socket_name),
        running("ping", "--socket", socket_name, "-i0.01", TARGET) as ping,
    ):
        read_until(ping, "icmp_seq=1 ")
        assert ping.stdout is not None
        ping.stdout.close()
        assert ping.wait(DEADLINE) == 1
        assert ping.stderr is not None
        assert "Traceback" not in ping.stderr.read()


def test_a_name_that_the_output_cannot_encode_is_printed_with_escapes(tmp_path: Path) -> None:
    done = run("doctor", f"{tmp_path}/b\u00fcro\udcff.sock", PYTHONIOENCODING="ascii")
    assert done.returncode == 1, done.stderr
    assert "b\\xfcro\\udcff.sock" in done.stdout
    assert done.stderr == ""


# --- demo -----------------------------------------------------------------------------------------------------------


def responder_pid(line: str) -> int:
    found = re.match(r"^responder: process (\d+), master on @memifrt-demo-", line)
    assert found
    return int(found[1])


def wait_for_end(process: int) -> None:
    """Of a process that is not ours."""
    try:
        fd = os.pidfd_open(process)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], DEADLINE)[0], f"process {process} did not end"
    finally:
        os.close(fd)


def test_demo_prints_the_pings_and_a_summary_and_ends_with_0() -> None:
    done = run("demo")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^64 bytes from 192\.168\.1\.2: icmp_seq=(\d) ttl=64 time=", done.stdout, re.M) == list("12345")
    assert re.search(r"^5 packets transmitted, 5 received, 0% packet loss, time \d+ms$", done.stdout, re.M)
    assert re.search(r"^rtt min/avg/max/mdev = ", done.stdout, re.M)
    assert done.stdout.endswith("\n5 of 5 pings were answered over shared memory.\n")
    assert "Traceback" not in done.stderr


def test_demo_sends_as_many_as_it_is_told() -> None:
    done = run("demo", "-c", "20", "-i", "0.001")
    assert done.returncode == 0
    assert done.stdout.count("64 bytes from") == 20


def test_two_demos_at_once_do_not_meet() -> None:
    with running("demo", "-c3", "-i0.01") as one, running("demo", "-c3", "-i0.01") as other:
        assert finish(one)[0] == finish(other)[0] == 0


def test_responder_of_a_killed_demo_ends() -> None:
    with running("demo", "-c1000", "-i0.01") as program:
        process = responder_pid(read_until(program, "^responder: "))
        read_until(program, "icmp_seq=1 ")
        program.kill()
        wait_for_end(process)


def test_demo_whose_responder_dies_ends_with_1() -> None:
    with running("demo", "-c1000", "-i0.01") as program:
        process = responder_pid(read_until(program, "^responder: "))
        read_until(program, "icmp_seq=1 ")
        os.kill(process, signal.SIGKILL)
        status, out, err = finish(program)
    assert status == 1
    assert "Traceback" not in err
    assert re.search(r"^\d+ packets transmitted, ", out, re.M)
    assert re.search(r"^\d+ of 1000 pings were answered", out, re.M)


def test_interrupted_demo_prints_its_summary_and_ends_its_responder() -> None:
    with running("demo", "-c1000", "-i0.01") as program:
        process = responder_pid(read_until(program, "^responder: "))
        read_until(program, "icmp_seq=1 ")
        status, out, err = end(program)
        wait_for_end(process)
    assert status == 130
    assert re.search(r"^\d+ of 1000 pings were answered", out, re.M)
    assert "Traceback" not in err


def test_ctrl_c_in_the_terminal_of_a_demo_reaches_only_the_demo() -> None:
    with running("demo", "-c1000", "-i0.01") as program:
        process = responder_pid(read_until(program, "^responder: "))
        assert os.getpgid(process) != os.getpgid(program.pid)
        end(program)
        wait_for_end(process)


def test_demo_whose_responder_does_not_start_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == "memifrt demo: the responder ended with status 1 before it listened\n"
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == "memifrt demo: [Errno 2] No such file or directory: '/nowhere/python'\n"


@pytest.mark.parametrize("name", ["logging.py", "socket.py", "select.py", "argparse.py", "memifrt/__init__.py"])
def test_demo_imports_nothing_from_the_current_directory(name: str, tmp_path: Path) -> None:
    """As the installed command, whose own path has no current directory in it."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("raise AssertionError('imported from the current directory')")
    code = "import sys; sys.path.pop(0); from memifrt.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", "-c", "1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(memifrt.__file__).parent.parent)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1 of 1 pings were answered" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["ping", TARGET],
        ["responder"],
        ["dump"],
        ["bench", "echo"],
        ["bridge"],
    ],
    ids=lambda arguments: str(arguments[0]),
)
def test_a_peer_that_does_not_come_in_time_is_status_3(
    arguments: list[str], socket_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments == ["bridge"]:
        ends = [f"memif:{socket_name},id={number}" for number in (0, 1)]
        done = run("bridge", *ends, "--connect-timeout", "0.2")
    else:
        done = run(*arguments, "--socket", socket_name, "--connect-timeout", "0.2")
    assert done.returncode == 3, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        f"memifrt {arguments[0]}: no peer has connected within 0.2 s: cannot connect to {socket_name}"
    )


def test_a_peer_that_comes_in_time_is_not_hurried(socket_name: str) -> None:
    with responder("--role", "master", "--socket", socket_name):
        done = run("ping", TARGET, "--socket", socket_name, "-c", "3", "-i", "0.3", "--connect-timeout", "0.5")
    assert done.returncode == 0, done.stderr
    assert " 0% packet loss" in done.stdout


@pytest.mark.parametrize("ignored", [False, True])
def test_ctrl_c_while_the_command_still_starts_ends_it_quietly(ignored: bool) -> None:
    """Also where SIGINT was ignored, as it is in the background of a script."""
    code = (
        "import os, signal, sys, memifrt_command\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'memifrt':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.exit(memifrt_command.main())\n"
    )
    if ignored:
        code = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE, check=False, env={**os.environ}
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("name", ["memifrt.control", "memifrt.runtime", "memifrt.cli.commands.demo"])
@pytest.mark.parametrize("how", ["module", "command"])
def test_ctrl_c_during_any_import_ends_both_commands_quietly(tmp_path: Path, how: str, name: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {name!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    command = [sys.executable, "-m", "memifrt"] if how == "module" else [str(Path(sys.executable).with_name("memifrt"))]
    done = subprocess.run(
        [*command, "--version"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


# --- standard streams -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("arguments", "status"), [("--help", 0), ("doctor --socket @nobody --nonsense", 2)])
def test_a_closed_standard_stream_is_the_null_device(closed: str, arguments: str, status: int) -> None:
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m memifrt {arguments} {closed}"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == status
    assert "Traceback" not in done.stderr


def test_sockets_do_not_take_the_numbers_of_closed_streams() -> None:
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m memifrt demo -c 2 <&- >&-"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


FULL = {
    "help": ["ping", "--help"],
    "lines, once a file is read": ["dump", "-r", "{capture}"],
    "a capture": ["dump", "-r", "{capture}", "-w", "-"],
    "ping in it": ["demo", "-c", "1"],
}


def run_with_capture(arguments: list[str], folder: Path, *, full: str) -> subprocess.CompletedProcess[str]:
    """Run a command that may name ``{capture}``, with standard output or standard error on a full disk."""
    capture = str(folder / "x.pcap")
    with create_capture(capture, [("x", LinkType.ETHERNET)]) as writer:
        writer.write([bytes(60)], 0)
    with open("/dev/full", "w") as disk:
        return subprocess.run(
            [sys.executable, "-m", "memifrt", *(argument.format(capture=capture) for argument in arguments)],
            stdout=disk if full == "stdout" else subprocess.PIPE,
            stderr=disk if full == "stderr" else subprocess.PIPE,
            text=True,
            timeout=DEADLINE,
            check=False,
        )


@pytest.mark.parametrize("arguments", FULL.values(), ids=FULL)
def test_a_full_standard_output_is_named(arguments: list[str], tmp_path: Path) -> None:
    done = run_with_capture(arguments, tmp_path, full="stdout")
    assert done.returncode == 2
    *_, last = done.stderr.splitlines()
    assert last.startswith(f"memifrt {arguments[0]}: cannot write ")
    assert last.endswith("standard output: No space left on device [ENOSPC]")


@pytest.mark.parametrize("arguments", [["demo", "-c", "1"], ["dump", "-r", "{capture}"]], ids=["demo", "dump"])
def test_a_full_standard_error_leaves_the_exit_status(arguments: list[str], tmp_path: Path) -> None:
    done = run_with_capture(arguments, tmp_path, full="stderr")
    assert done.returncode == 0
    assert done.stdout


@pytest.mark.parametrize("text", ["1_0", "1_000.5", "_1"])
def test_numbers_with_underscores_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(repr(text))):
        seconds_or_zero(text)
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(repr(text))):
        positive(text)
