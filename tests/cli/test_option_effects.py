"""Every option of every command: bad values, and options without an effect, are one line and status 2."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from memifrt.capture.pcap import LinkType, create_capture
from memifrt.cli import command_line
from memifrt.cli.arguments import PEER_OPTIONS, SESSION_OPTIONS, Parser
from memifrt.runtime import Runtime
from memifrt.stats.client import Observer


class Accepted(BaseException):
    """The command would now wait for a peer."""


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no command go further than its arguments, in a directory with some files."""

    def accept(*arguments: object, **options: object) -> None:
        raise Accepted

    for target, name in ((Runtime, "__init__"), (subprocess.Popen, "__init__"), (Observer, "ask")):
        monkeypatch.setattr(target, name, accept)
    monkeypatch.setattr("memifrt.cli.commands.doctor.examine", accept)
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("hello\n")
    with create_capture("ok.pcap", [("x", LinkType.ETHERNET)]) as writer:
        writer.write([bytes(64)], 0)


#: The shortest arguments of each command.
BASE = {
    "demo": (),
    "responder": (),
    "ping": ("192.168.1.2",),
    "dump": (),
    "replay": ("ok.pcap",),
    "generate": ("--packet", "Ether()/IP()/UDP()", "--size", "64"),
    "throughput": ("memif:@a",),
    "bridge": ("memif:@a", "memif:@b"),
    "switch": ("memif:@a", "memif:@b"),
    "top": ("@x", "--once"),
    "doctor": ("@x",),
    "bench": ("gen",),
}
VALUES = (
    "",
    "-1",
    "9" * 25,
    "1e400",
    "nan",
    "inf",
    "x",
    "10 parsecs",
    "\u0663",
    "/nowhere/x",
    "folder",
    "--",
    ",",
    "=",
)
#: Texts that these options may have: names of files and sockets, secrets and filters.
ANY = {
    *("--socket", "--secret", "--stats", "--mirror", "--write", "--filter", "--to", "-r", "-w", "-z", "--between"),
    *("--impair-file", "--secret-file", "--file", "--pcap", "--packet", "--plot", "--json", "--field", "--match"),
}


def options() -> Iterator[tuple[str, str]]:
    for command in BASE:
        parser: Parser = command_line.make_parsers([command])[1][command]
        valued = [each for each in parser._actions if each.option_strings and each.nargs is None]
        for name in (each.option_strings[-1] for each in valued):
            # They are the same in each command.
            if command == "responder" or name not in (*PEER_OPTIONS, *SESSION_OPTIONS, "--loop"):
                yield command, name


@pytest.mark.parametrize(("command", "name"), list(options()))
def test_no_value_of_an_option_is_a_traceback_or_more_than_a_line(
    command: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    accepted = []
    for value in VALUES:
        given = [f"{name}={value}"] if name.startswith("--") else [name, value]
        base = (
            BASE[command][2:] if command == "generate" and name in ("--packet", "--pcap", "--file") else BASE[command]
        )
        try:
            status = command_line.main([command, *base, *given])
        except Accepted:
            accepted.append(value)
            continue
        _, err = capsys.readouterr()
        assert (status, err.count("\n")) in ((2, 1), (0, 1)), (value, err)
        assert status == 2 or name == "-r", value
        assert err.startswith(f"memifrt {command}: ")
        if name not in ANY:
            assert name in err or f"{name.lstrip('-')} " in err, (value, err)
    if name not in ANY:
        assert not {"", "x", "nan", "inf", "10 parsecs", "\u0663", "--", ",", "="} & {*accepted}


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ("switch --show @x --ageing 300", "--ageing"),
        ("switch --show @x --snaplen 65535", "--snaplen"),
        ("switch memif:@a memif:@b --snaplen 65535", "--snaplen"),
        ("dump -r ok.pcap --socket /run/vpp/memif.sock", "--socket"),
        ("dump -r ok.pcap --id 0", "--id"),
        ("dump -r ok.pcap --web 8080", "--web"),
        ("dump -r ok.pcap --between @a @b", "--between"),
        ("dump -r ok.pcap --delay 0", "--delay"),
        ("dump --between @a @b --role slave", "--role"),
        ("dump --between @a @b --secret-file text", "--secret-file"),
        ("dump --impair a-to-b:loss=1%", "--impair"),
        ("replay ok.pcap --dst-mac ff:ff:ff:ff:ff:ff", "--dst-mac"),
        ("replay ok.pcap --convert --mode ip --src-mac 02:00:00:00:00:01", "--src-mac"),
        ("replay ok.pcap --pps 5 --max-gap 1", "--max-gap"),
        ("replay ok.pcap -t --maxsleep 5", "--maxsleep"),
        ("generate --packet Ether() --no-fcs", "--no-fcs"),
        ("top @x --json --sort name", "--sort"),
        ("top @x --web 8080 --filter x", "--filter"),
        ("doctor @x --secret x", "--secret"),
        ("doctor @x --json --fix-hints", "--fix-hints"),
        ("extcap --install --uninstall", "--uninstall"),
        ("extcap --install=here --fifo x", "--fifo"),
    ],
)
def test_an_option_without_effect_is_refused_also_with_its_default_value(
    arguments: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert option in err


@pytest.mark.parametrize(
    "arguments",
    [
        "switch --show @x",
        "switch memif:@a memif:@b --mirror all --write x.pcap --snaplen 96",
        "dump --between @a @b --delay 1ms",
        "replay ok.pcap --convert --src-mac 02:00:00:00:00:01",
        "replay ok.pcap --max-gap 1 --maxsleep 0",
        "top @x --once --sort name",
        "doctor @x --probe-id 0 --secret x",
    ],
)
def test_an_option_with_an_effect_is_accepted(arguments: str) -> None:
    with pytest.raises(Accepted):
        command_line.main(arguments.split())
