"""memifrt in podman's containers: the main points of docs/guides/containers.md.

``make test-containers`` runs this; ``make test`` does not collect it. It needs root, podman, debootstrap and a network,
for Debian's mirror and PyPI. A root with Debian's Python stays in ``~/.cache/memifrt/containers``; the images and
containers are gone afterwards. The containers themselves have no network.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lib.programs import read_until

#: The first one makes the root and compiles memifrt there.
pytestmark = pytest.mark.timeout(1800)

ROOT = Path(__file__).parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "memifrt" / "containers"
SUITE, MIRROR = "bookworm", os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
PACKAGES = "python3,python3-venv,python3-dev,gcc,libc6-dev,ca-certificates"
IMAGE = "localhost/memifrt-test"
SOCKET = "/run/memif/lab.sock"
#: Seconds for one podman command.
PATIENCE = 120.0

HARDENED = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--shm-size=64k")
#: Another user namespace: its root is another user of the machine.
MAPPED = ("--uidmap=0:100000:65536", "--gidmap=0:100000:65536")
#: What a machine may need, where the machine itself is limited: see _options.
LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000")

#: A slave with memory that it could truncate, like DPDK's.
UNSEALED = f"""
import os, time
from memifrt import Runtime

def allocate(size):
    fd = os.memfd_create("unsealed")
    os.ftruncate(fd, size)
    return fd

with Runtime("unsealed", region_allocator=allocate) as runtime:
    interface = runtime.create_interface(socket={SOCKET!r})
    deadline = time.monotonic() + 20
    while not interface.connected and interface.last_error is None and time.monotonic() < deadline:
        runtime.poll_event(1)
    print("connected" if interface.connected else interface.last_error)
"""


@dataclass(frozen=True)
class Podman:
    """podman with a storage of its own. Each container has ``options``, and ``shared`` as its /run/memif."""

    globals: tuple[str, ...]
    options: tuple[str, ...]
    shared: Path

    def command(self, *arguments: str) -> list[str]:
        return ["podman", *self.globals, *arguments]

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def container(self, *arguments: str) -> list[str]:
        """The command that runs a container, without a network unless the arguments name one."""
        network = () if any(argument.startswith("--network=") for argument in arguments) else ("--network=none",)
        return self.command("run", *network, *self.options, f"--volume={self.shared}:/run/memif", *arguments)

    def run(self, *options: str, memifrt: str) -> subprocess.CompletedProcess[str]:
        """Run a memifrt command in a container, to its end."""
        arguments = self.container("--rm", *options, IMAGE, *memifrt.split())
        return subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE, check=False)

    def run_python(self, *options: str, code: str) -> str:
        arguments = self.container("--rm", "--entrypoint=/opt/memifrt/bin/python", *options, IMAGE, "-c", code)
        return subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout

    def start(self, name: str, *options: str, memifrt: str) -> None:
        """Start a container, and wait until its memifrt listens."""
        arguments = self.container("--detach", f"--name={name}", *options, IMAGE, *memifrt.split())
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0, done.stderr
        self.wait_for_log(name, "waiting for a peer")

    def wait_for_log(self, name: str, words: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while words not in (log := self.log(name)):
            assert time.monotonic() < deadline, log
            time.sleep(0.05)

    def log(self, name: str) -> str:
        done = self.call("logs", name)
        return done.stdout + done.stderr


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    """The options of podman with which there is an image of this checkout."""
    if os.geteuid() != 0:
        pytest.skip("debootstrap and containers with other users need root")
    for program in ("podman", "debootstrap"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    root = _root()
    folder = tmp_path_factory.mktemp("podman")
    options = (
        *(f"--root={CACHE}/storage", f"--runroot={folder}", f"--tmpdir={folder}"),
        *("--events-backend=none", "--cgroup-manager=cgroupfs"),
    )
    changes = ('ENTRYPOINT ["memifrt"]', "USER=1000:1000", "ENV=PATH=/opt/memifrt/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as packer:
        subprocess.run(
            ["podman", *options, "import", *(f"--change={change}" for change in changes), "-", IMAGE],
            stdin=packer.stdout,
            check=True,
            capture_output=True,
        )
    yield options
    subprocess.run(["podman", *options, "rmi", "--all", "--force"], check=False, capture_output=True)
    shutil.rmtree(CACHE / "storage", ignore_errors=True)


def _root() -> Path:
    """Return a root of Debian's in which this checkout is installed."""
    root = CACHE / SUITE
    if not (CACHE / f"{SUITE}.complete").exists():
        shutil.rmtree(root, ignore_errors=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        _run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root), MIRROR)
        (CACHE / f"{SUITE}.complete").touch()
    for shared in ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt"):
        if os.path.exists(shared):
            shutil.copyfile(shared, f"{root}{shared}")
    kept = ("memifrt", "memifrt_command.py", "pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in")
    shutil.rmtree(root / "src", ignore_errors=True)
    (root / "src").mkdir()
    for name in kept:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / "src" / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copyfile(ROOT / name, root / "src" / name)
    _run("chroot", str(root), "python3", "-m", "venv", "/opt/memifrt")
    _run("chroot", str(root), "/opt/memifrt/bin/pip", "install", "-q", "--force-reinstall", "--no-deps", "/src")
    return root


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"


@pytest.fixture(scope="session")
def options(image: tuple[str, ...]) -> tuple[str, ...]:
    """The options that a container needs on this machine: without SYS_RESOURCE, podman cannot raise limits."""
    errors = []
    for found in ((), LIMITS, ("--cgroups=disabled",), (*LIMITS, "--cgroups=disabled")):
        arguments = ["podman", *image, "run", "--rm", "--network=none", *found, IMAGE, "--version"]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE, check=False)
        if done.returncode == 0:
            return found
        errors.append(done.stderr)
    pytest.fail(f"podman starts no container here: {errors}")


@pytest.fixture
def podman(image: tuple[str, ...], options: tuple[str, ...], tmp_path: Path) -> Iterator[Podman]:
    shared = tmp_path / "memif"
    shared.mkdir()
    os.chown(shared, 1000, 1000)
    found = Podman(image, options, shared)
    yield found
    found.call("rm", "--all", "--force", "--time=2")


PING = f"ping --socket {SOCKET} -c 3 -i 0.05 -w 20 192.168.1.2"
RESPONDER = f"responder --role master --socket {SOCKET}"


def pings(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 packets transmitted, 3 received" in done.stdout


def test_two_hardened_containers_need_nothing_but_a_directory(podman: Podman) -> None:
    podman.start("responder", *HARDENED, memifrt=RESPONDER)
    pings(podman.run(*HARDENED, memifrt=PING))
    assert podman.call("stop", "responder").returncode == 0
    assert podman.call("inspect", "--format={{.State.ExitCode}}", "responder").stdout == "0\n"
    assert list(podman.shared.iterdir()) == []


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_a_slave_connects_again_when_its_master_has_started_again(podman: Podman, how: str) -> None:
    command = podman.container("--rm", "--name=ping", IMAGE, *f"ping --socket {SOCKET} -i 0.1 192.168.1.2".split())
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as slave:
        read_until(slave, "cannot connect", stderr=True)  # the slave is first
        podman.start("responder", memifrt=RESPONDER)
        read_until(slave, ": connected to", stderr=True)
        podman.call(how, "responder")
        read_until(slave, ": disconnected", stderr=True)
        if how == "kill":
            podman.call("start", "responder")
        read_until(slave, ": connected to", stderr=True)
        read_until(slave, "bytes from 192.168.1.2")
        podman.call("stop", "ping")
        slave.communicate(timeout=PATIENCE)
        assert slave.returncode == 0


def test_a_profile_may_refuse_what_memifrt_can_do_without(podman: Podman, tmp_path: Path) -> None:
    refused = ["io_setup", "io_submit", "io_getevents", "preadv2"]
    profile = json.loads(Path("/usr/share/containers/seccomp.json").read_text())
    for rule in profile["syscalls"]:
        rule["names"] = [name for name in rule["names"] if name not in refused]
    profile["syscalls"].append({"names": refused, "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": []})
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile))
    option = f"--security-opt=seccomp={path}"
    podman.start("responder", option, memifrt=RESPONDER)
    pings(podman.run(option, memifrt=PING))


def test_the_default_profile_lets_memifrt_kick_without_a_write(podman: Podman) -> None:
    code = "import os; from memifrt.system.kick import kick_for; print(kick_for(os.eventfd(0)) is not None)"
    assert podman.run_python(code=code) == "True\n"


def test_the_group_of_the_socket_file_may_connect_and_doctor_names_it(podman: Podman) -> None:
    podman.start("responder", memifrt=RESPONDER)
    (podman.shared / "lab.sock").chmod(0o660)
    refused = podman.run("--user=1001:1001", memifrt=f"doctor --fix-hints {SOCKET}")
    assert refused.returncode == 1
    assert "docker run --group-add 1000 -v /run/memif:/run/memif IMAGE" in refused.stdout
    member = ("--user=1001:1001", "--group-add=1000")
    assert podman.run(*member, memifrt=f"doctor {SOCKET}").returncode == 0
    pings(podman.run(*member, memifrt=PING))


def test_doctor_in_a_container_is_a_probe(podman: Podman) -> None:
    podman.start("responder", memifrt=RESPONDER)
    assert podman.call("exec", "responder", "memifrt", "doctor", SOCKET).returncode == 0
    assert podman.call("exec", "responder", "memifrt", "doctor", "/run/memif/other.sock").returncode == 1


def test_memory_that_can_shrink_is_refused_from_the_root_of_another_namespace(podman: Podman) -> None:
    podman.start("responder", memifrt=RESPONDER)
    (podman.shared / "lab.sock").chmod(0o666)
    assert podman.run_python("--user=0:0", code=UNSEALED) == "connected\n"
    refused = "peer disconnected: region 0 is not sealed against shrinking and the peer runs as another user\n"
    assert podman.run_python(*MAPPED, "--user=0:0", code=UNSEALED) == refused
    pings(podman.run(*MAPPED, memifrt=PING))  # sealed memory is accepted


def test_nobody_in_a_namespace_does_not_trust_a_user_from_outside(podman: Podman) -> None:
    os.chown(podman.shared, 165534, 165534)
    podman.start("responder", *MAPPED, "--user=65534:65534", memifrt=RESPONDER)
    (podman.shared / "lab.sock").chmod(0o666)
    refused = "peer disconnected: region 0 is not sealed against shrinking and the peer runs as another user\n"
    assert podman.run_python(code=UNSEALED) == refused


def test_an_abstract_name_belongs_to_a_network_namespace(podman: Podman) -> None:
    podman.start("responder", memifrt="responder --role master --socket @lab")
    ping = PING.replace(SOCKET, "@lab")
    apart = podman.run(memifrt=f"{ping} --connect-timeout 1")
    assert apart.returncode == 3
    assert "Connection refused" in apart.stderr
    pings(podman.run("--network=container:responder", memifrt=ping))


def test_the_container_that_fills_a_buffer_pays_for_it(podman: Podman) -> None:
    if "--cgroups=disabled" in podman.options:
        pytest.skip("containers have no cgroups here")
    podman.start("responder", "--memory=256m", memifrt=RESPONDER)
    podman.start("other", memifrt="responder --role master --socket @other")
    command = f"ping --socket {SOCKET} --ring-size 16384 -f -q -w 60 192.168.1.2"
    subprocess.run(
        podman.container("--detach", "--name=ping", IMAGE, *command.split()), check=True, capture_output=True
    )
    half = 30 << 20  # of 2 rings of 16384 buffers of 2048 bytes, 64 MiB, a little less than a half
    deadline = time.monotonic() + PATIENCE
    while min(found := [_shared_memory(podman, name) for name in ("responder", "ping")]) < half:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    assert max(found) < 40 << 20
    assert _shared_memory(podman, "other") < 1 << 20


def _shared_memory(podman: Podman, name: str) -> int:
    """The bytes of shared memory for which a container pays."""
    pid = podman.call("inspect", "--format={{.State.Pid}}", name).stdout.strip()
    groups = Path(f"/proc/{pid}/cgroup").read_text()
    found = re.search(r"^\d+:memory:(.*)$", groups, re.MULTILINE)
    if found:
        return _number("shmem", Path(f"/sys/fs/cgroup/memory{found[1]}/memory.stat"))
    found = re.search(r"^0::(.*)$", groups, re.MULTILINE)
    assert found
    return _number("shmem", Path(f"/sys/fs/cgroup{found[1]}/memory.stat"))


def _number(name: str, path: Path) -> int:
    found = re.search(rf"^{name} (\d+)$", path.read_text(), re.MULTILINE)
    assert found
    return int(found[1])
