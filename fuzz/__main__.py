"""``make fuzz``: hostile peers and hostile memory until the time is up, or until something breaks.

Each target runs in a process of its own, so that even a crash of the interpreter is told, with the input that caused
it. Give a target and files to run those inputs again.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fuzz.worker import TARGETS, has_atheris

#: Seconds that a target may take besides its time: imports, the last looks for leaks, an input that hangs.
_GRACE = 120
#: Reasons that are shown of each target; the number of all is shown too.
_REASONS = 5


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("target", nargs="?", choices=("all", "control", "ring", *TARGETS), default="all")
    parser.add_argument("files", nargs="*", type=Path, help="inputs to run again")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together; default 60")
    parser.add_argument(
        "--inputs", type=int, default=0, help="run so many inputs on each target, however long it takes"
    )
    parser.add_argument("--engine", choices=("atheris", "random"), default="atheris" if has_atheris() else "random")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers; default: another each time")
    parser.add_argument("--folder", type=Path, default=Path(".fuzz"), help="of corpora and of what broke")
    arguments = parser.parse_args()
    if arguments.engine == "atheris" and not has_atheris():
        parser.error("atheris is not installed here: pip install 'memifrt[fuzz]', or --engine=random")
    if arguments.files and arguments.target not in TARGETS:
        parser.error(f"whose inputs are these? One of {', '.join(TARGETS)}")
    for path in arguments.files:
        if not path.is_file():
            parser.error(f"{path} is no file of an input; targets are named one at a time, or as control, ring or all")
    if arguments.files:
        replay = [*_worker(arguments.target), "--replay", *map(str, arguments.files)]
        return subprocess.run(replay, check=False).returncode
    if not has_atheris():
        print("without atheris, which has no wheel for this Python: random bytes, not led by coverage")
    return _run_all(arguments, [name for name in TARGETS if arguments.target in ("all", name, name.partition("-")[0])])


def _run_all(arguments: argparse.Namespace, names: list[str]) -> int:
    arguments.folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    reports = []
    for name in names:
        report = _run(arguments, name, arguments.seconds / len(names))
        reports.append(report)
        print("\n".join(_lines(report)), flush=True)
    broken = [report["target"] for report in reports if report["status"]]
    handshakes = sum(report.get("inputs", 0) for report in reports if report["target"].startswith("control"))
    steps = sum(report.get("steps", 0) for report in reports if report["target"].startswith("ring"))
    packets = sum(report.get("steps", 0) for report in reports if report["target"] == "capture")
    print(
        f"{handshakes} handshakes, {steps} steps on rings and {packets} packets of captures "
        f"in {time.monotonic() - started:.0f} s "
        f"({arguments.engine}): "
        + (f"BROKEN: {', '.join(broken)}; see {arguments.folder}" if broken else "no crash, no hang, no leak")
    )
    return 1 if broken else 0


def _worker(name: str) -> list[str]:
    return [sys.executable, "-m", "fuzz.worker", name]


def _run(arguments: argparse.Namespace, name: str, seconds: float) -> dict[str, Any]:
    """Run one target; its report, its exit status, its coverage."""
    options = [f"--{option}={getattr(arguments, option)}" for option in ("engine", "inputs", "seed", "folder")]
    log = arguments.folder / f"{name}.log"
    limit = None if arguments.inputs else seconds + _GRACE
    started = time.monotonic()
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*_worker(name), *options, f"--seconds={seconds}"], stdout=subprocess.PIPE, stderr=errors, text=True
        )
        with process:
            try:
                output, _ = process.communicate(timeout=limit)
            except BaseException:  # it hangs, or we are interrupted
                process.kill()
                output, _ = process.communicate()
    report = {"target": name, "status": process.returncode, "seconds": time.monotonic() - started, "log": str(log)}
    last = output.strip().rpartition("\n")[2]
    with_report = json.loads(last) if last.startswith("{") else {}
    with log.open("a") as errors:
        errors.write(output)  # the whole report; and atheris prints exceptions there
    covered = re.findall(r"cov: (\d+)", log.read_text(errors="replace"))
    return {**report, **with_report, "edges": int(covered[-1]) if covered else None}


def _lines(report: dict[str, Any]) -> list[str]:
    """A target's report for people."""
    name = report["target"]
    if report["status"] or "inputs" not in report:
        report["status"] = report["status"] or 1
        return [f"{name}: BROKEN, exit status {report['status']}; see the end of {report['log']}"]
    rate = report["inputs"] / report["seconds"]
    line = f"{name}: {report['inputs']} inputs in {report['seconds']:.0f} s ({rate:.0f}/s)"
    if report["edges"] is not None:
        line += f", {report['edges']} edges covered"
    if "established" in report:
        line += f", {report['established']} connected"
    if "steps" in report:
        words = ("packets", "errors") if report["target"] == "capture" else ("steps", "violations")
        line += f", {report['steps']} {words[0]}, {report['violations']} {words[1]} found"
    lines = [
        line,
        f"  at the end: {report['fds']} fds and {report['mappings']} mappings, as at the start; "
        f"memory grew by {report['grown_bytes'] / (1 << 20):.1f} MiB; the slowest input took {report['slowest_ms']} ms",
    ]
    reasons = sorted(report.get("reasons", {}).items(), key=lambda item: -item[1])
    if reasons:
        lines.append(
            f"  {len(reasons)} different reasons: " + "; ".join(f"{n} x {why}" for why, n in reasons[:_REASONS])
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
