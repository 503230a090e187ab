"""A learning switch: where each packet goes.

Owns the decision for each packet, and its way to other ports. The table, the VLANs, the limits and the queues are in
modules of their own. Knows nothing of loops: the caller steps a port when it may have packets.

Packets are handled in bulk. The decision for a packet depends on its headers only, so a burst needs one decision for
each distinct header, and decisions are kept (:class:`~memifrt.switch.port.Flow`). A burst from one memif that goes to
another memif as a whole is forwarded from the source's buffers, without a copy in Python.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence

from memifrt.errors import ConfigError, Disconnected, MemifOSError
from memifrt.ports.port import MemifPort, Port
from memifrt.ring import Burst
from memifrt.stats.switch import AddressStats, PortStats, SwitchStats
from memifrt.switch.mirror import Mirror
from memifrt.switch.port import DEFAULT_QUEUE, NO_PEER, Flow, Group, SwitchPort
from memifrt.switch.storm import FloodLimits
from memifrt.switch.table import NOWHERE, Entry, ForwardingTable
from memifrt.switch.vlan import HEADER_BYTES, Classified, PortVlans, classify

#: Packets (buffers of a memif) in one burst, and bursts in a row from one queue while packets keep coming. With more
#: bursts in a row, other ports would wait longer for a port that floods.
_BURST, _TURNS = 256, 4
#: The bytes of an Ethernet header.
_ETHERNET = 14
#: The most decisions to keep for one port. A peer may send from any number of addresses.
_MAX_FLOWS = 4096
#: The share of the ageing time, and the most seconds, by which an entry's time may lag behind its last packet.
_LAG_SHARE, _LAG = 0.05, 1.0

_BROADCAST = b"\xff" * 6
#: 01:80:c2:00:00:00 to 0f: for the bridge itself, such as spanning tree and LLDP (IEEE 802.1D, table 7-10).
_RESERVED = b"\x01\x80\xc2\x00\x00"
_UNICAST, _DROP = "unicast", "drop"

TOO_SHORT, BAD_SOURCE, RESERVED = "too short", "from a group address", "to a reserved address"
SAME_PORT, NO_TARGET = "to the port that they came from", "without another port"


class Headers:
    """Reads the headers of a burst's packets into one buffer, in one call."""

    #: A record of ``Burst.pack_into``: the number of bytes kept, the packet's length, and the bytes.
    _LENGTHS = 8
    _RECORD = _LENGTHS + _ETHERNET

    def __init__(self) -> None:
        self._room = memoryview(bytearray(2 * _BURST * self._RECORD))
        #: A layout for each number of packets.
        self._layouts: dict[int, struct.Struct] = {}

    def read(self, burst: Burst) -> set[bytes] | None:
        """Return the different Ethernet headers of the packets; None if a packet is shorter than a header."""
        first, size = burst.pack_into(self._room, b"", _ETHERNET)
        count, rest = divmod(size, self._RECORD)
        if rest or not count or first < len(burst):
            return None
        data = bytes(self._room[:size])
        # Each record that kept all bytes of a header ends where the next one starts.
        if data[0 :: self._RECORD] != bytes((_ETHERNET,)) * count:
            return None
        if data == data[: self._RECORD] * count:
            return {data[self._LENGTHS : self._RECORD]}
        layout = self._layouts.get(count)
        if layout is None:
            layout = self._layouts[count] = struct.Struct(f"{self._LENGTHS}x{_ETHERNET}s" * count)
        return set(layout.unpack(data))


class Switch:
    """A switch with these ports.

    :param ports: the name, the port and the VLANs of each; the VLANs are None for all or for none.
    :param clock: the time in seconds; it must not go back.
    :raises ConfigError: some ports have VLANs, and others have none.
    """

    def __init__(
        self,
        ports: Sequence[tuple[str, Port, PortVlans | None]],
        table: ForwardingTable | None = None,
        *,
        queue: int = DEFAULT_QUEUE,
        limits: FloodLimits = FloodLimits(),  # noqa: B008 - it is frozen
        mirror: Mirror | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_vlans([(name, vlans) for name, _, vlans in ports])
        self.table = ForwardingTable() if table is None else table
        self.ports = [
            SwitchPort(number, name, port, vlans, queue, limits) for number, (name, port, vlans) in enumerate(ports)
        ]
        self.mirror = mirror
        self._clock = clock
        self._vlans = any(port.vlans is not None for port in self.ports)
        self._header = HEADER_BYTES if self._vlans else _ETHERNET
        self._lag = min(self.table.ageing * _LAG_SHARE, _LAG)
        self._headers = Headers()
        #: The other end of a flow that needs no entry: always valid.
        self._anywhere = Entry(0, b"", NOWHERE, 0.0)

    # --- one port has packets ---------------------------------------------------------------------------------------

    def step(self, port: SwitchPort) -> bool:
        """Forward the packets that have come to a port; return whether there were any."""
        moved = False
        try:
            for qid in range(port.port.queues):
                for _ in range(_TURNS):
                    count = self._turn(port, qid)
                    moved = moved or count > 0
                    if count < _BURST // 2:  # the queue is almost empty
                        break
        except Disconnected:  # the next event of the control channel reports it
            pass
        except MemifOSError as error:
            self.fail(port, error)
        return moved

    def _turn(self, port: SwitchPort, qid: int) -> int:
        if port.uniform and not self._vlans and self._may_forward_bursts(port):
            assert isinstance(port.port, MemifPort)
            return self._forward_burst(port, port.port, qid)
        packets = port.port.recv(_BURST, qid=qid)
        if packets:
            self.forward(port, packets, qid)
        return len(packets)

    def _may_forward_bursts(self, port: SwitchPort) -> bool:
        return isinstance(port.port, MemifPort) and self.mirror is None

    def link_changed(self, port: SwitchPort, up: bool) -> None:
        """Note that a port got a peer, or lost it. Its addresses and the packets for the old peer are dropped."""
        if not up:
            self.table.forget(port.number)
            port.drop_queue(NO_PEER)
            port.forget_flows()

    def fail(self, port: SwitchPort, error: MemifOSError) -> None:
        """Note that the interface of a port is gone. The other ports go on."""
        port.fail(error)
        self.link_changed(port, False)

    # --- decisions --------------------------------------------------------------------------------------------------

    def forward(self, port: SwitchPort, packets: Sequence[bytes], qid: int = 0) -> None:
        """Forward packets that came to a port."""
        now = self._clock()
        if self.mirror is not None:
            self.mirror.received(port.number, packets)
        size = self._header
        headers = [packet[:size] for packet in packets]
        groups = list(map(self._checked(port, now).get, headers))
        distinct = set(groups)
        if None in distinct:
            decided = self._groups(port, set(headers), now)
            groups = [decided[header] for header in headers]
            distinct = set(groups)
        if len(distinct) == 1:
            group = distinct.pop()
            assert group is not None
            port.uniform = group.target is not None and isinstance(group.target.port, MemifPort)
            self._dispatch(port, group, packets, qid, now)
            return
        port.uniform = False
        members: dict[Group | None, list[bytes]] = {group: [] for group in distinct}
        for group, packet in zip(groups, packets, strict=True):
            members[group].append(packet)
        for group, part in members.items():
            assert group is not None
            self._dispatch(port, group, part, qid, now)

    def _checked(self, port: SwitchPort, now: float) -> dict[bytes, Group]:
        """Return the decisions of a port that need no check now."""
        if now >= port.checked_until or port.checked_version != self.table.version:
            port.checked.clear()
            port.checked_until, port.checked_version = now + self._lag / 2, self.table.version
        return port.checked

    def _groups(self, port: SwitchPort, headers: set[bytes], now: float) -> dict[bytes, Group]:
        """Return the group of each header, and learn the sources."""
        checked = self._checked(port, now)
        groups: dict[bytes, Group] = {}
        for header in headers:
            groups[header] = checked.get(header) or self._group(port, header, now)
        return groups

    def _group(self, port: SwitchPort, header: bytes, now: float) -> Group:
        """Return the group of packets with this header, and learn their source."""
        flow = port.flows.get(header)
        if flow is None or flow.source.port != port.number or flow.destination.port != flow.port:
            return self._decide(port, header, now)
        if flow.source.seen <= now - self._lag / 2:
            self.table.refresh(flow.source, now)
        port.checked[header] = flow.group
        return flow.group

    def _decide(self, port: SwitchPort, header: bytes, now: float) -> Group:
        """Decide about packets with this header, and learn their source."""
        if len(header) < _ETHERNET:
            return port.group(_DROP, None, None, TOO_SHORT)
        form: Classified | None = None
        if port.vlans is not None:
            form = classify(port.vlans, header)
            if form.dropped:
                return port.group(_DROP, None, None, form.dropped)
            if len(header) < _ETHERNET + form.cut // 2:  # the tag is cut off
                return port.group(_DROP, None, None, TOO_SHORT)
        vlan = 0 if form is None else form.vlan
        destination, origin = header[:6], header[6:12]
        if origin[0] & 1 or not any(origin):
            return port.group(_DROP, None, None, BAD_SOURCE)
        if max(len(port.flows), len(port.groups)) >= _MAX_FLOWS:
            port.forget_flows()
        source = self.table.learn(vlan, origin, port.number, now)
        if destination[0] & 1:
            if destination[:5] == _RESERVED and destination[5] < 0x10:
                return port.group(_DROP, None, None, RESERVED)
            group = port.group("broadcast" if destination == _BROADCAST else "multicast", None, form)
            port.flows[header] = Flow(source, self._anywhere, group)
            return group
        entry = self.table.lookup(vlan, destination, now)
        if entry is None:  # not kept: the address may be learned at any time
            return port.group("unknown", None, form)
        if entry.port == port.number:
            return port.group(_DROP, None, None, SAME_PORT)
        group = port.group(_UNICAST, self.ports[entry.port], form)
        port.flows[header] = Flow(source, entry, group)
        return group

    # --- the way of packets -----------------------------------------------------------------------------------------

    def _dispatch(self, port: SwitchPort, group: Group, packets: Sequence[bytes], qid: int, now: float) -> None:
        if group.kind is _UNICAST:
            assert group.target is not None
            self._send(group.target, packets if group.form is None else _shaped(group, group.target, packets), qid)
        elif group.kind is _DROP:
            port.dropped[group.reason] += len(packets)
        else:
            self._flood(port, group, packets, qid, now)

    def _flood(self, port: SwitchPort, group: Group, packets: Sequence[bytes], qid: int, now: float) -> None:
        """Send packets to every other port, as far as storm control allows."""
        bucket = port.buckets.get(group.kind)
        if bucket is not None:
            allowed = bucket.take(len(packets), now)
            if allowed < len(packets):
                port.dropped[f"over the limit of {group.kind} packets"] += len(packets) - allowed
                packets = packets[:allowed]
        form = group.form
        targets = [other for other in self.ports if other is not port and other.up and _carries(other, form)]
        if not targets:
            port.dropped[NO_TARGET] += len(packets)
            return
        if not packets:
            return
        port.flooded[group.kind] += len(packets)
        for other in targets:
            self._send(other, packets if form is None else _shaped(group, other, packets), qid)

    def _send(self, target: SwitchPort, packets: Sequence[bytes], qid: int) -> None:
        if self.mirror is not None:
            self.mirror.sent(target.number, packets)
        target.send(packets, qid)
        if target.failure is not None:
            self.link_changed(target, False)

    # --- whole bursts between memifs ----------------------------------------------------------------------------------

    def _forward_burst(self, port: SwitchPort, source: MemifPort, qid: int) -> int:
        """Forward one burst of a memif. Return how many buffers it had.

        The peer can change a packet after its header was read. The packet then goes to the port of the old header,
        where the peer could send it anyway. With VLANs that would be a way around them, so packets are copied first.
        """
        with source.rx(qid).burst(_BURST) as burst:
            count = len(burst)
            if not count:
                return 0
            target = self._only_target(port, burst)
            if target is None:
                self.forward(port, [bytes(packet) for packet in burst.packets()], qid)
                return count
            sink = target.port
            if target.queued or not isinstance(sink, MemifPort) or not target.up:
                port.uniform = isinstance(sink, MemifPort)
                target.send([bytes(packet) for packet in burst.packets()], qid)
                return count
            try:
                sink.tx(qid).forward(burst, _BURST)
            except Disconnected:
                target.not_sent[NO_PEER] += sum(1 for _ in burst.packets())
                return count
            if len(burst):
                target.wait([bytes(packet) for packet in burst.packets()], qid)
        return count

    def _only_target(self, port: SwitchPort, burst: Burst) -> SwitchPort | None:
        """Return the port that all packets of a burst go to; None if there is no such port."""
        headers = self._headers.read(burst)
        if headers is None:
            return None
        groups = set(self._groups(port, headers, self._clock()).values())
        if len(groups) != 1:
            return None
        return groups.pop().target

    # --- time and statistics ----------------------------------------------------------------------------------------

    def flush(self) -> bool:
        """Offer waiting packets to their ports again; return whether a port took any."""
        moved = False
        for port in self.ports:
            if port.queued:
                moved = port.flush() or moved
                if port.failure is not None:
                    self.link_changed(port, False)
        return moved

    def expire(self) -> float | None:
        """Remove old addresses. Return in how many seconds to call this again; None if there is no address."""
        now = self._clock()
        self.table.expire(now)
        due = self.table.next_expiry()
        return None if due is None else max(due - now, self._lag)

    def stats(self) -> SwitchStats:
        """Return the table and the counters as they are now."""
        now, table = self._clock(), self.table
        return {
            "ageing": table.ageing,
            "limit": table.limit,
            "port_limit": table.port_limit,
            "learned": table.learned,
            "moved": table.moved,
            "expired": table.expired,
            "ports": [self._port_stats(port) for port in self.ports],
            "addresses": [_address(entry, now) for entry in table if now - entry.seen < table.ageing],
        }

    def _port_stats(self, port: SwitchPort) -> PortStats:
        received, sent = port.port.received, port.port.sent
        return {
            "name": port.name,
            "vlans": "" if port.vlans is None else str(port.vlans),
            "up": port.up,
            "addresses": self.table.count(port.number),
            "evicted": self.table.evicted[port.number],
            "rx_packets": received.packets,
            "rx_bytes": received.bytes,
            "tx_packets": sent.packets,
            "tx_bytes": sent.bytes,
            "flooded": port.flooded.total(),
            "waiting": port.queued,
            "losses": [{"reason": reason, "packets": count} for reason, count in port.losses().items()],
        }


def check_vlans(ports: Sequence[tuple[str, PortVlans | None]]) -> None:
    """Check that all ports have VLANs, or none.

    :raises ConfigError: some ports have VLANs, and others have none.
    """
    without = [name for name, vlans in ports if vlans is None]
    if without and len(without) < len(ports):
        raise ConfigError(
            f"{without[0]} has no VLAN, and other ports have: give every port vlan=N or trunk=N+N (trunk=all,native=1)"
        )


def _carries(port: SwitchPort, form: Classified | None) -> bool:
    return form is None or port.vlans is None or port.vlans.carries(form.vlan)


def _shaped(group: Group, target: SwitchPort, packets: Sequence[bytes]) -> Sequence[bytes]:
    """Return the packets as they leave the target: with a tag or without."""
    form, vlans = group.form, target.vlans
    if form is None or vlans is None:
        return packets
    return form.without_tag(packets) if form.vlan == vlans.untagged else form.with_tag(packets)


def _address(entry: Entry, now: float) -> AddressStats:
    mac = entry.mac.hex(":")
    return {"mac": mac, "vlan": entry.vlan, "port": entry.port, "age": round(max(now - entry.seen, 0.0), 1)}
