"""``memifrt generate`` as a device: what it sends to a sink, and what it sends, gets back and checks."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile

from benchmarks.ends import ROOT, Load, ProgramDevice, bench_device

#: Four fields that do not begin again soon, so that each packet is made anew.
FIELDS = (
    "ipv4.src=10.0.0.1..10.255.255.254",
    "ipv4.dst=20.0.0.1..20.0.255.254",
    "udp.src=1024..65000",
    "udp.dst=1..1000 decrement",
)


def _command(role: str, cpu: int, load: Load, fields: tuple[str, ...], *extra: str) -> tuple[str, ...]:
    return (
        "taskset", "-c", str(cpu), sys.executable, "-m", "memifrt", "generate", "--socket={socket}", f"--role={role}",
        "--packet=Ether()/IP()/UDP()", f"--size={load.size}", "--no-fcs", f"--queues={load.queues}",
        f"--ring-size={1 << load.log2_ring_size}", *(f"--field={field}" for field in fields), *extra,
    )  # fmt: skip


def device(role: str, cpu: int, load: Load, fields: tuple[str, ...] = (), *extra: str) -> ProgramDevice:
    """Return the generator as a device that sends as fast as it goes until its peer leaves."""
    return ProgramDevice(_command(role, cpu, load, fields, *extra), role)


def checked_pps(role: str, cpus: tuple[int, int], load: Load, fields: tuple[str, ...], seconds: float) -> float:
    """Return how many millions of packets a second come back from ``memifrt bench echo`` and are checked.

    :param cpus: those of the echo and of the generator.
    """
    echo = bench_device("echo", "slave" if role == "master" else "master", load, cpus[0], api="loop")
    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/memif.sock"
        command = _command(role, cpus[1], load, fields, "--signed", "--json", f"--duration={seconds:g}")
        with echo.running(socket):
            done = subprocess.run(
                [word.replace("{socket}", socket) for word in command],
                capture_output=True,
                text=True,
                timeout=seconds + 30,
                check=True,
                cwd=ROOT,
            )
    report = json.loads(done.stdout)
    if report["total"]["lost"] or report["total"]["corrupted"] or report["total"]["duplicated"]:
        raise RuntimeError(f"the echo or the check is wrong: {report['total']}")
    return float(report["total"]["received"] / report["seconds"] / 1e6)
