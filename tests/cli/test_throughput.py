"""``memifrt throughput``: a device that sends back, one between two memifs, Ctrl+C, and wrong arguments."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from memifrt.cli import command_line
from memifrt.cli.commands.throughput import Setup, size_line, step_line, write_report
from memifrt.cli.program import SessionOptions
from memifrt.errors import Disconnected, MemifOSError
from memifrt.throughput import IMIX, METHODS, FrameSize, Rate, Report, SizeReport, Step
from memifrt.throughput import throughput as run_throughput
from tests.lib.programs import end, read_until, running
from tests.lib.support import DEADLINE
from tests.throughput.devices import Device, hard_limit

#: A search of some seconds, at rates that any machine reaches.
SHORT = ("--trial", "0.05", "--sum", "0.05", "--width", "20", "--min-rate", "100", "--max-rate", "2000")
SHORT_OPTIONS = (*SHORT, "--sizes", "64")


# --- a real device ----------------------------------------------------------------------------------------------------


def test_a_device_that_sends_back_is_measured_and_reported(socket_name: str, tmp_path: Path) -> None:
    results = tmp_path / "x.json"
    with (
        running("bench", "echo", "--socket", socket_name, "--seconds", "0", "--rx-mode", "adaptive") as device,
        running(
            "throughput",
            f"memif:{socket_name},role=master",
            *SHORT,
            "--sizes",
            "imix",
            "--json",
            str(results),
        ) as program,
    ):
        out, err = program.communicate(timeout=3 * DEADLINE)  # on a busy machine trials are made again
        end(device)
    assert program.returncode == 0, err
    assert re.search(r"^IMIX .* k?pps ", out, re.MULTILINE)
    assert re.search(r"memifrt throughput: IMIX: NDR .*, PDR .* in \d+ trials$", err, re.MULTILINE)
    values = json.loads(results.read_text())
    assert [size["size"] for size in values["sizes"]] == ["imix"]
    for size in values["sizes"]:
        assert size["pdr"]["decided"]
        assert size["generator_pps"] > 2000
        assert all(100 <= trial["pps"] <= 2000 for trial in size["trials"])
        assert all(found["latency_ns"]["hdrh"] for found in size["latency"])


def test_ctrl_c_reports_what_a_device_between_two_memifs_did_so_far(socket_name: str) -> None:
    ends = (f"memif:{socket_name}a,role=master", f"memif:{socket_name}b,role=master")
    with (
        running("throughput", *ends, *SHORT_OPTIONS, "--trial", "30", "--sum", "30", "--direction", "both") as own,
        running("bridge", f"memif:{socket_name}a", f"memif:{socket_name}b") as device,
    ):
        read_until(own, r"64 bytes: 2 kpps \(#1\)", stderr=True)
        status, out, err = end(own)
        end(device)
    assert status == 130
    assert err.count("64 bytes: NDR unknown, PDR unknown in 0 trials; interrupted") == 1
    assert out.splitlines()[1].split()[:4] == ["64", "bytes", "-", "-"]


def test_ctrl_c_before_the_device_is_there_ends_it_with_status_130(socket_name: str) -> None:
    with running("throughput", f"memif:{socket_name}", *SHORT_OPTIONS) as program:
        read_until(program, "cannot connect", stderr=True)
        status, out, err = end(program)
    assert (status, out) == (130, "")
    assert "Traceback" not in err


def test_without_a_device_in_time_the_status_is_3(socket_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("throughput", f"memif:{socket_name},role=master", "--connect-timeout", "0.01", *SHORT_OPTIONS)
    assert command_line.main(arguments) == 3
    assert "no peer has connected within 0.01 s" in capsys.readouterr().err


# --- where the report goes, with a device that is a formula -----------------------------------------------------------


def simulate(monkeypatch: pytest.MonkeyPatch, device: Device) -> None:
    """Let the command measure this device."""

    def measure(setup: Setup, *, session_options: SessionOptions, **callbacks: Any) -> Report:
        return run_throughput(device, generator=hard_limit(10e6), sizes=setup.sizes, method=setup.method, **callbacks)

    monkeypatch.setattr("memifrt.cli.commands.throughput.throughput", measure)


def test_json_can_take_the_place_of_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate(monkeypatch, hard_limit(1e6))
    assert command_line.main(["throughput", "memif:@a", "--method", "quick", "--sizes", "128", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["sizes"][0]["ndr"]["throughput_pps"] == pytest.approx(1e6, rel=0.01)
    first, last = err.splitlines()
    assert first == "memifrt throughput: 128 bytes: 10 Mpps (#1); NDR ?, PDR ?"
    assert re.fullmatch(r"memifrt throughput: 128 bytes: NDR .*pps, PDR .*pps in \d+ trials", last)


def test_a_table_a_file_and_a_picture_are_written_after_ctrl_c_as_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    drawn: list[tuple[Report, str]] = []
    monkeypatch.setattr("memifrt.cli.commands.throughput.plot", lambda report, path: drawn.append((report, path)))

    def forward(rate: float, duration: float, size: FrameSize) -> float:
        if rate < 1e6:
            raise KeyboardInterrupt
        return 1e6

    simulate(monkeypatch, Device(forward))
    results, picture = tmp_path / "x.json", tmp_path / "x.svg"
    files = ["--json", str(results), "--plot", str(picture)]
    assert command_line.main(["throughput", "memif:@a", "--sizes", "64", *files]) == 130
    out, err = capsys.readouterr()
    assert "~: from the trials so far; the search did not come to its end" in out
    assert err.endswith("; interrupted\n")
    assert json.loads(results.read_text())["complete"] is False
    ((report, path),) = drawn
    assert path == str(picture)
    assert report.sizes[0].trials


def test_a_device_that_goes_away_is_one_line_and_status_2_after_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forward(rate: float, duration: float, size: FrameSize) -> float:
        if rate < 1e6:
            raise Disconnected("the device is gone: memif0: interface deleted")
        return 1e6

    simulate(monkeypatch, Device(forward))
    assert command_line.main(["throughput", "memif:@a", "--sizes", "64"]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("frames ")
    assert err.splitlines()[-1] == "memifrt throughput: the device is gone: memif0: interface deleted"


# --- wrong arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["memif:@b,ring-size=4", "--sizes", "64,9000"],
            "--sizes: a frame of 9000 bytes is a packet of 8996; a ring of 4",
        ),
        (["--sizes", "63"], "'63' is not a frame size from 64 to 16384 bytes, or imix"),
        (["--sizes", "64,64"], "the frame size 64 is given twice"),
        (["--sizes", ""], "is not a frame size"),
        (["--method", "fast"], "invalid choice: 'fast'"),
        (["--direction", "up"], "invalid choice: 'up'"),
        (["--direction", "both"], "--direction both needs two memifs"),
        (["--trial", "0"], "'0' is not a number of seconds"),
        (["--trial", "x"], "'x' is not a number of seconds"),
        (["--sum", "nan"], "'nan' is not a number of seconds"),
        (["--sum", "0.5"], "trials of 0.5 s together are shorter than one trial of 1 s"),
        (["--trial", "0.001"], "a trial of 0.001 s is not from 0.01 to 86400 s long"),
        (["--width", "0"], "'0' is not a percentage from 0.01 to 50"),
        (["--width", "1e1"], "'1e1' is not a percentage"),
        (["--pdr", "51"], "'51' is not a percentage from 0.01 to 50"),
        (["--pdr", "-1"], "'-1' is not a percentage"),
        (["--min-rate", "0"], "'0' is not a rate from 1pps to 1000Mpps"),
        (["--min-rate", "1Gbps"], "'1Gbps' is not a rate"),
        (["--max-rate", "2000Mpps"], "'2000Mpps' is not a rate"),
        (["--max-rate", "1k"], "a highest rate of 1000 packets/s is not above the lowest one of 1000"),
        (["--time-limit", "0"], "'0' is not a number of seconds"),
        (["--settle", "-"], "'-' is not a number of seconds"),
        (["--packet", "os.system('x')"], "os.system"),
        (["--packet", ""], "is not a packet"),
        (["--field", "nothing=1..2"], "nothing"),
        (["--field", "tcp.src=1..2"], "tcp.src"),
        (["--plot", "x.txt"], "'x.txt' is not the name of a picture"),
        (["--plot", "/nowhere/x.png"], "cannot write /nowhere/x.png: No such file"),
        (["--json", "/nowhere/x.json"], "cannot write /nowhere/x.json: No such file"),
        (["--sizes", "1518,64", "--packet", "Ether()/IP()/TCP()"], "frames of 64 bytes: stream throughput: a packet"),
        (["--json", "x.svg", "--plot", "./x.svg"], "--json and --plot have the same file"),
        (["--connect-timeout", "0"], "'0' is not a number of seconds"),
        (["--prometheus", "x"], "'x'"),
        (["memif:@b,role=first"], "role is 'first'"),
        (["tap:x"], "is not a memif"),
        (["memif:@a,mode=ip"], "both need the same mode"),
        (["memif:@a"], "both ends are memif0 on @a"),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_2(
    arguments: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["throughput", "memif:@a", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert message in err


def test_a_measurement_needs_a_memif(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["throughput"]) == 2
    assert "the following arguments are required: A" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["MLRsearch", "numpy", "scapy", "hdrh.histogram"])
def test_a_missing_package_is_one_line_that_says_how_to_install_it(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert command_line.main(["throughput", "memif:@a"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not installed: pip install 'memifrt[throughput]'" in line


def test_without_matplotlib_plot_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert command_line.main(["throughput", "memif:@a", "--plot", str(tmp_path / "x.png")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--plot needs matplotlib, which is not installed: pip install 'memifrt[plot]'" in line


def test_a_file_that_was_there_is_kept_until_there_are_results(tmp_path: Path) -> None:
    results, other = tmp_path / "x.json", tmp_path / "y.json"
    results.write_text("before")
    for path in (results, other):
        assert command_line.main(["throughput", "memif:@a", "--json", str(path), "--packet", "?"]) == 2
    assert results.read_text() == "before"
    assert not other.exists()


class Full(io.StringIO):
    """Standard output on a full disk."""

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_results_are_written_even_if_standard_output_takes_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    report = Report(METHODS["quick"], [SizeReport(FrameSize.of(64))])
    arguments = argparse.Namespace(json=str(tmp_path / "x.json"), plot=str(tmp_path / "x.svg"))
    nowhere = os.open(os.devnull, os.O_RDWR)
    full = Full()
    monkeypatch.setattr(full, "fileno", lambda: nowhere)
    monkeypatch.setattr(sys, "stdout", full)
    with pytest.raises(MemifOSError, match="cannot write to standard output: No space left on device"):
        write_report(report, arguments)
    os.close(nowhere)
    assert json.loads((tmp_path / "x.json").read_text())["complete"]
    assert (tmp_path / "x.svg").read_text().startswith("<?xml")


# --- what is shown while it runs --------------------------------------------------------------------------------------


def test_each_step_says_what_is_tried() -> None:
    size, ndr = FrameSize.of(64), Rate(0.0, 6.9e6, 7.3e6)
    assert step_line(Step(size, "generator", 2, float("inf"), 0.3)) == "64 bytes: generator against itself, trial 2"
    first = Step(IMIX, "search", 1, 12e6, 0.5, Rate(0.0), Rate(0.005))
    assert step_line(first) == "IMIX: 12 Mpps (#1); NDR ?, PDR ?"
    later = Step(size, "search", 9, 7.1e6, 1, ndr, Rate(0.005, None, 81e3))
    assert step_line(later) == "64 bytes: 7.1 Mpps (#9); NDR 6.9M-7.3M, PDR <81k"
    above = Step(size, "search", 9, 7.1e6, 1, Rate(0.0, 7e6), Rate(0.005, 700))
    assert step_line(above).endswith("NDR >7M, PDR >700")
    assert step_line(Step(size, "latency", 1, 710e3, 1, ndr, ndr)) == "64 bytes: latency at 710 kpps"


def test_each_size_says_its_result() -> None:
    report = SizeReport(IMIX, Rate(0.0, 1e6, 1.1e6, 1e6), Rate(0.005), reason="interrupted")
    assert size_line(report) == "IMIX: NDR 1 Mpps, PDR unknown in 0 trials; interrupted"


@pytest.mark.parametrize("name", METHODS)
def test_trials_longer_than_the_method_s_are_possible(name: str) -> None:
    arguments = ["throughput", "memif:@a", "--method", name, "--trial", "300", "--packet", "?"]
    assert command_line.main(arguments) == 2  # for the packet alone
