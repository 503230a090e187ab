"""Objects that a test makes with memifrt: ports, pairs, listeners, responders, and other programs to talk to.

Owns the background thread, the directory of the sockets and the programs, and ends them all.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from memifrt.errors import ConfigError
from memifrt.interface import Interface
from memifrt.options import InterfaceOptions
from memifrt.runtime import Runtime
from memifrt.testing.ports import MemifPair, MemifPort, MemifResponder, PortOptions
from memifrt.types import PATH_BYTES, Role

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from memifrt.scapy import MemifSocket
    from memifrt.testing.testpmd import Testpmd, TestpmdOptions
    from memifrt.testing.vpp import Vpp, VppOptions
    from memifrt.threaded.runtime_thread import Background

#: The application's name that peers see.
APP_NAME = "memifrt pytest"
#: Seconds between two attempts of a slave to connect. It is short because a test waits for it.
_RECONNECT_INTERVAL = 0.02
#: Bytes that the names of our directory and of a socket in it need.
_ROOM = 40


def _short_directory() -> Path:
    """Make a directory with a path that is short enough for a socket in it, even if TMPDIR is too long.

    :raises ConfigError: no directory for temporary files is both short and writable.
    """
    places = [tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp", "/var/tmp", "/dev/shm"]
    for place in places:
        if place and len(os.fsencode(place)) <= PATH_BYTES - _ROOM:
            with contextlib.suppress(OSError):
                return Path(tempfile.mkdtemp(prefix="memif-", dir=place))
    raise ConfigError(
        f"cannot make a directory for a socket: {', '.join(filter(None, places))} are not writable, or too long for a "
        f"socket path of at most {PATH_BYTES} bytes; set TMPDIR to a short, writable directory"
    )


class Memif:
    """Makes ports, pairs, listeners, responders and peers for a test, and closes them after it.

    An exception that a callback raised fails the test. The options of a port are :class:`PortOptions`: ``role``,
    ``id``, ``mode``, ``queues``, ``secret``, …
    """

    def __init__(self, timeout: float, keep: int = 0) -> None:
        """Start with nothing.

        :param timeout: seconds of every wait that has none of its own.
        :param keep: how many packets of each port to keep for the artefacts of a test that fails.
        """
        self._timeout = timeout
        self._keep = keep
        self._ports: list[MemifPort] = []
        self._programs: list[Vpp | Testpmd] = []
        self._stack = contextlib.ExitStack()
        self._made: Background | None = None
        self._directory: Path | None = None
        self._sockets = 0

    def socket(self) -> str:
        """Return a new path for a socket, short enough for an address. A file there is removed after the test."""
        self._sockets += 1
        return str(self.directory() / f"{self._sockets}.sock")

    def directory(self) -> Path:
        """Return a directory with a short path, for sockets and other files. It is removed after the test."""
        if self._directory is None:
            # pytest's tmp_path contains the name of the test and may be longer than the 107 bytes of an address.
            self._directory = _short_directory()
            self._stack.callback(shutil.rmtree, self._directory, ignore_errors=True)
        return self._directory

    def port(self, *, wait: bool = False, **options: Unpack[PortOptions]) -> MemifPort:
        """Make one interface; by default a slave on a new socket.

        :param wait: whether to wait for a peer.
        :raises MemifError: an option is wrong, or a master cannot listen.
        :raises MemifTimeout: no peer connected in time.
        """
        __tracebackhide__ = True
        options.setdefault("socket", self.socket())
        port = MemifPort(self._background, self._timeout, options, self._keep)
        self._ports.append(port)
        return port.wait_connected() if wait else port

    def listener(self, *, wait: bool = False, **options: Unpack[PortOptions]) -> MemifPort:
        """Make a master that the program under test can connect to. The arguments are those of :meth:`port`."""
        options.setdefault("role", Role.MASTER)
        return self.port(wait=wait, **options)

    def pair(
        self, *, master: PortOptions | None = None, slave: PortOptions | None = None, **common: Unpack[PortOptions]
    ) -> MemifPair:
        """Make two ports that are connected to each other.

        :param master: options only for the master: ``memif.pair(queues=2, master={"rx_mode": "polling"})``.
        :param slave: options only for the slave.
        :raises MemifTimeout: they do not connect, for example because the secrets differ. The message says why.
        """
        __tracebackhide__ = True
        common.setdefault("socket", self.socket())
        first: PortOptions = {**common, **(master or {}), "role": Role.MASTER}
        second: PortOptions = {**common, **(slave or {}), "role": Role.SLAVE}
        pair = MemifPair(self.port(**first), self.port(**second))
        for port in (pair.slave, pair.master):  # the slave first: it gets the reason of a refusal
            port.wait_connected()
        return pair

    def responder(
        self, ip: str = "192.168.1.2", mac: str | None = None, *, wait: bool = False, **options: Unpack[PortOptions]
    ) -> MemifResponder:
        """Make a port that answers ARP and ICMP echo requests for ``ip`` in the background; by default a master.

        :param mac: the MAC address; by default 02:fe and the four bytes of the IP address.
        """
        __tracebackhide__ = True
        from memifrt.cli.commands.responder import serve
        from memifrt.cli.program import default_mac
        from memifrt.packets import format_ip, format_mac, parse_ip, parse_mac, reply_in_place

        own_ip = parse_ip(ip)
        own_mac = default_mac(own_ip) if mac is None else parse_mac(mac)

        def on_interrupt(interface: Interface, qid: int) -> None:
            mode = interface.mode
            serve(interface, qid, lambda packet: reply_in_place(packet, own_ip, own_mac, mode=mode))

        options.setdefault("role", Role.MASTER)
        options["on_interrupt"] = on_interrupt
        return MemifResponder(self.port(wait=wait, **options), format_ip(own_ip), format_mac(own_mac))

    def scapy(
        self,
        *,
        socket: str | None = None,
        timeout: float | None = None,
        reconnect: bool = True,
        **options: Unpack[InterfaceOptions],
    ) -> MemifSocket:
        """Open a :class:`memifrt.scapy.MemifSocket`, on a new socket by default, and close it after the test.

        :param timeout: seconds to wait for its peer. 0 does not wait; None means the ini option ``memif_timeout``.
        :param reconnect: whether the socket stays open when the connection ends.
        :param options: as for every interface: ``role``, ``queues``, ``ring_size``, …
        :raises ImportError: scapy is missing: install ``memifrt[scapy]``.
        """
        __tracebackhide__ = True
        from memifrt.scapy import MemifSocket

        path = self.socket() if socket is None else socket
        limit = self._timeout if timeout is None else timeout
        made = MemifSocket(path, timeout=limit, reconnect=reconnect, **options)
        self._stack.callback(made.close)
        return made

    def vpp(self, **options: Unpack[VppOptions]) -> Vpp:
        """Start a VPP of the test's own, and end it after the test. Skip the test if there is no VPP here.

        ``MEMIFRT_VPP`` names the program; without it, ``vpp`` is looked for on ``PATH``. See
        :class:`memifrt.testing.vpp.Vpp`.

        :raises PeerError: VPP does not start. The message has the end of its output.
        """
        from memifrt.testing.process import PeerMissing
        from memifrt.testing.vpp import Vpp

        try:
            vpp = Vpp(self, self._timeout, **options)
        except PeerMissing as missing:
            pytest.skip(str(missing))
        self._programs.append(vpp)
        self._stack.callback(vpp.close)
        vpp.start()
        return vpp

    def testpmd(self, **options: Unpack[TestpmdOptions]) -> Testpmd:
        """Start DPDK's testpmd with ports connected to it, and end it after the test.

        Skip the test if testpmd is not installed. See :class:`memifrt.testing.testpmd.Testpmd`.

        :raises PeerError: testpmd does not start. The message has the end of its output.
        """
        from memifrt.testing.process import PeerMissing
        from memifrt.testing.testpmd import Testpmd

        try:
            testpmd = Testpmd(self, self._timeout, **options)
        except PeerMissing as missing:
            pytest.skip(str(missing))
        self._programs.append(testpmd)
        self._stack.callback(testpmd.close)
        testpmd.start()
        return testpmd

    def write_artefacts(self, directory: Path) -> str:
        """Write captures and logs into a directory, and return a text about all ports and programs for a report."""
        texts = []
        for number, port in enumerate(self._ports, 1):
            role = port.interface.role.name.lower()
            texts.append(_artefacts_of(port, directory, f"port{number}-{role}"))
        for number, program in enumerate(self._programs, 1):
            texts.append(_artefacts_of(program, directory, f"{program.name}{number}"))
        return "\n".join(texts)

    def close(self) -> None:
        """Close everything.

        :raises BaseException: the first exception that a callback raised.
        """
        self._stack.close()
        if self._made is not None and self._made.failure is not None:
            raise self._made.failure

    @property
    def _background(self) -> Background:
        """The background thread. It starts at the first use, so a test that only needs a path has none."""
        if self._made is None:
            from memifrt.threaded.runtime_thread import Background

            self._made = Background(Runtime(APP_NAME, reconnect_interval=_RECONNECT_INTERVAL))
            self._stack.callback(self._made.close)
        return self._made


def _artefacts_of(source: MemifPort | Vpp | Testpmd, directory: Path, stem: str) -> str:
    """Write artefacts; return their text. Whatever is broken must not hide the failure of the test."""
    try:
        return source.write_artefacts(directory, stem)
    except Exception as error:
        return f"{stem}: no artefacts: {error!r}"
