"""A VPP of a test's own: private files, no hugepages, one thread, and memifs to the test.

Owns its startup.conf and its commands. ``memif.vpp()`` and the fixture ``memif_vpp`` make it.
"""

from __future__ import annotations

import re
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, cast

import pytest

from memifrt.errors import ConfigError
from memifrt.options import InterfaceConfig, InterfaceOptions, parse_role
from memifrt.testing.ports import MemifPort, PortMaker, PortOptions
from memifrt.testing.process import Peer, PeerError, find_program
from memifrt.types import Mode, Role

if TYPE_CHECKING:
    from typing_extensions import Unpack

_HOW = "install VPP (https://s3-docs.fd.io/vpp says how; Debian packages are on packagecloud.io/fdio)"
#: Seconds that VPP may take to start; it maps its memory and loads its plugins.
_START = 30.0
#: Seconds to wait for the end of a VPP that closed a connection, to be able to tell how it ended.
_LAST = 1.0
#: Seconds between two looks whether it has started.
_TICK = 0.02
#: Packets that its trace keeps, and its capture.
_TRACED, _CAPTURED = 100, 1000
_RX_MODES = ("interrupt", "polling", "adaptive")


class VppOptions(TypedDict, total=False):
    """The options of a VPP.

    :ivar plugins: names of further plugins to load, such as ``acl_plugin.so``. All others stay unloaded.
    :ivar plugin_path: a directory of plugins, for one that you have built.
    :ivar workers: worker threads besides the main thread; VPP refuses more than there are cores.
    :ivar config: further text for startup.conf.
    """

    plugins: Sequence[str]
    plugin_path: str
    workers: int
    config: str


class VppMemif(NamedTuple):
    """A memif between a test and its VPP: ``port, name = vpp.memif()``."""

    #: The test's end.
    port: MemifPort
    #: The name of VPP's end, such as ``memif1/0``, for its commands.
    name: str


class Vpp:
    """A VPP, from :meth:`start` to :meth:`close`.

    :raises PeerMissing: there is no VPP here.
    :raises ConfigError: an option is wrong.
    """

    name = "vpp"

    def __init__(self, memif: PortMaker, timeout: float, **options: Unpack[VppOptions]) -> None:
        if unknown := {*options} - {*VppOptions.__annotations__}:
            raise ConfigError(
                f"no option of a VPP: {', '.join(sorted(unknown))}; there are {', '.join(VppOptions.__annotations__)}"
            )
        program = find_program("vpp", "MEMIFRT_VPP", _HOW)
        self._memif = memif
        self._timeout = timeout
        self._sockets = 0
        #: The name of its capture in /tmp, where VPP writes all of them.
        self.capture_name = f"memifrt-{uuid.uuid4().hex[:12]}.pcap"
        #: Its private directory, with startup.conf, its sockets and its log.
        self.directory: Path = memif.directory() / f"vpp-{uuid.uuid4().hex[:8]}"
        self.directory.mkdir()
        #: The sockets of its command line and of its API.
        self.cli_socket, self.api_socket = str(self.directory / "cli.sock"), str(self.directory / "api.sock")
        self._program = program
        self._client: Any = None
        configuration = self.directory / "startup.conf"
        configuration.write_text(startup_conf(self.directory, **options))
        self._peer = Peer("vpp", [program, "-c", str(configuration)])

    def start(self) -> None:
        """Start it, and wait until its command line answers.

        :raises PeerError: it does not start. The message has the end of its output.
        """
        self._peer.start()
        deadline = time.monotonic() + _START
        while True:
            try:
                self.cli("show version")
                break
            except PeerError as error:
                if not self._peer.running or time.monotonic() >= deadline:
                    raise self._peer.error("did not start") from error
            time.sleep(_TICK)
        self.cli(f"trace add memif-input {_TRACED}")
        self.cli(f"pcap trace rx tx max {_CAPTURED} max-bytes-per-pkt 9216 intfc any file {self.capture_name}")

    @property
    def log(self) -> str:
        """Its standard output and error so far."""
        return self._peer.log

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._peer.running

    # --- its commands -------------------------------------------------------------------------------------------

    def cli(self, command: str, timeout: float | None = None) -> str:
        """Run a command of its command line, and return what it prints: ``vpp.cli("show interface")``.

        A command that VPP refuses prints why; nothing is raised.

        :param timeout: seconds to wait for the answer; None means the ini option ``memif_timeout``.
        :raises PeerError: VPP does not answer.
        """
        __tracebackhide__ = True
        from memifrt.testing.vpp_cli import run_command

        if "\n" in command:
            raise ConfigError(f"{command!r} is more than one command; call cli() once for each line")
        try:
            return run_command(self.cli_socket, command, self._timeout if timeout is None else timeout)
        except OSError as error:
            if isinstance(error, ConnectionError) and not isinstance(error, ConnectionRefusedError):
                self._peer.wait_ended(_LAST)  # it has closed the connection, perhaps because it ends
            raise self._peer.error(f"does not answer {command!r}: {error}") from error

    @property
    def api(self) -> Any:
        """The calls of its binary API, by ``vpp_papi``: ``vpp.api.show_version()``. The first use connects.

        Skips the test if vpp_papi is not installed.
        """
        if self._client is None:
            make_client = pytest.importorskip(
                "vpp_papi", reason="vpp_papi is not installed: pip install vpp_papi"
            ).VPPApiClient
            described = Path(self._program).resolve().parent.parent / "share" / "vpp" / "api"
            if described.is_dir():  # a VPP that is not installed in /usr brings the description of its API
                make_client.apidir = str(described)
            client = make_client(server_address=self.api_socket)
            client.connect("memifrt pytest")
            self._client = client
        return self._client.api

    def memif(
        self, *, vpp_rx_mode: str | None = None, up: bool = True, wait: bool = True, **options: Unpack[PortOptions]
    ) -> VppMemif:
        """Make a memif between the test and VPP, on a socket of its own.

        :param vpp_rx_mode: how VPP receives: ``interrupt``, ``polling`` or ``adaptive``; None leaves VPP's default. It
            is set once the memif is connected.
        :param up: whether to set VPP's interface up, without which it does not connect.
        :param wait: whether to wait for the connection.
        :param options: those of every port. ``role`` is that of the test's end, by default ``slave``; VPP gets the
            other one, and the same id, mode, secret, queues, ring size and buffer size.
        :raises PeerError: VPP refuses. The message has its words.
        :raises MemifTimeout: they do not connect.
        """
        __tracebackhide__ = True
        if vpp_rx_mode not in (None, *_RX_MODES):
            raise ConfigError(f"vpp_rx_mode is {vpp_rx_mode!r}; it must be one of {', '.join(_RX_MODES)}")
        if vpp_rx_mode is not None and not (up and wait):
            raise ConfigError("vpp_rx_mode needs a connection; leave up and wait as they are")
        options.setdefault("socket", self._memif.socket())
        role = parse_role(options.setdefault("role", Role.SLAVE))
        known = {key: value for key, value in options.items() if key in InterfaceOptions.__annotations__}
        config = InterfaceConfig.of(**cast("InterfaceOptions", known))
        port = self._memif.port(**options) if role is Role.MASTER else None  # it listens before VPP's slave connects
        self._sockets += 1
        name = self._create(self._sockets, str(options["socket"]), config)
        if up:
            self._do(f"set interface state {name} up")
        if port is None:
            port = self._memif.port(**options)
        if up and wait:
            port.wait_connected()
        if vpp_rx_mode is not None:
            self._do(f"set interface rx-mode {name} {vpp_rx_mode}")
        return VppMemif(port, name)

    def _create(self, number: int, path: str, config: InterfaceConfig) -> str:
        """Create VPP's end; return its name."""
        if path.startswith("@"):
            path = f"abstract:{path[1:]}"
        ours_is_slave = config.role is Role.SLAVE
        # A slave sends on the rings "s2m" and receives on the rings "m2s". VPP is the other end.
        rings = (config.num_s2m_rings, config.num_m2s_rings)
        rx, tx = rings if ours_is_slave else rings[::-1]
        command = f"create interface memif id {config.id} socket-id {number} ring-size {1 << config.log2_ring_size}"
        command += f" buffer-size {config.buffer_size} {'master' if ours_is_slave else 'slave'}"
        command += f" rx-queues {rx} tx-queues {tx}"
        if config.mode is Mode.IP:
            command += " mode ip"
        if config.secret:
            command += f" secret {config.secret.decode(errors='replace')}"
        self._do(f"create memif socket id {number} filename {path}")
        self._do(command)
        return f"memif{number}/{config.id}"

    def _do(self, command: str) -> None:
        """Run a command that prints nothing if it succeeds."""
        __tracebackhide__ = True
        said = self.cli(command)
        if said and not re.fullmatch(r"memif\d+/\d+", said.strip()):  # some versions print the name of an interface
            raise PeerError(f"vpp: {command}: {said}")

    # --- its end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End VPP. A second call is harmless."""
        if self._client is not None:
            self._client.disconnect()
            self._client = None
        self._peer.close()
        shutil.rmtree(self.directory, ignore_errors=True)
        Path("/tmp", self.capture_name).unlink(missing_ok=True)

    def write_artefacts(self, directory: Path, stem: str) -> str:
        """Write its log, its trace and its capture into a directory, and return a text about it."""
        text = self._peer.write_log(directory, stem)
        if not self._peer.running:
            return text + "".join(f"  {line}\n" for line in self.log.splitlines()[-10:])
        for command in ("show interface", "show memif", "show errors", "show trace", "show logging"):
            said = self.cli(command)
            path = directory / f"{stem}-{command.replace(' ', '-')}.txt"
            path.write_text(said + "\n", encoding="utf-8")
            text += f"vpp# {command}    ({path})\n{said}\n"
        self.cli("pcap trace off")  # which writes it
        captured = Path("/tmp", self.capture_name)
        if captured.exists():
            path = directory / f"{stem}.pcap"
            shutil.copyfile(captured, path)
            text += f"what VPP received and sent: {path}\n"
        self.cli(f"pcap trace rx tx max {_CAPTURED} max-bytes-per-pkt 9216 intfc any file {self.capture_name}")
        return text


def startup_conf(
    directory: Path, *, plugins: Sequence[str] = (), plugin_path: str = "", workers: int = 0, config: str = ""
) -> str:
    """Return the text of a startup.conf that needs no hugepages and keeps its files in a directory."""
    enabled = dict.fromkeys(["memif_plugin.so", "ping_plugin.so", *plugins])
    lines = [
        "unix {",
        "  nodaemon",
        "  nobanner",
        f"  cli-listen {directory}/cli.sock",
        f"  runtime-dir {directory}",
        f"  log {directory}/vpp.log",
        "}",
        f"api-segment {{ prefix {directory.name} }}",
        f"socksvr {{ socket-name {directory}/api.sock }}",
        f"statseg {{ socket-name {directory}/stats.sock page-size default }}",
        "memory { main-heap-page-size default }",
        "buffers { page-size default }",
        f"cpu {{ workers {workers} }}" if workers else "",
        "plugins {",
        f"  add-path {plugin_path}" if plugin_path else "",
        "  plugin default { disable }",
        *(f"  plugin {name} {{ enable }}" for name in enabled),
        "}",
        config,
    ]
    return "\n".join(filter(None, lines)) + "\n"
