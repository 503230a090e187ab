"""The forwarding table of a switch: which port has which MAC address, by VLAN.

Owns ageing and the limits on the number of addresses. Knows ports only by their numbers, and time only as a number.

A peer can send from any number of addresses, so both limits evict. At the limit of a port, the port loses the address
that it has used longest ago. At the limit of the table, the port with the most addresses loses one, as in Open vSwitch:
a port that floods pushes out its own addresses and not those of other ports.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator

#: Seconds after which an unused address is removed: the default of Linux' bridge and of Open vSwitch.
DEFAULT_AGEING = 300.0
DEFAULT_LIMIT = 8192
DEFAULT_PORT_LIMIT = 4096

#: The port of an address that is no longer in the table.
NOWHERE = -1

_Key = tuple[int, bytes]


class Entry:
    """One address.

    :ivar port: the number of its port; :data:`NOWHERE` once it has been removed from the table.
    :ivar seen: when a packet last came from it, in seconds of the caller's clock.
    """

    __slots__ = ("mac", "port", "seen", "vlan")

    def __init__(self, vlan: int, mac: bytes, port: int, seen: float) -> None:
        self.vlan = vlan
        self.mac = mac
        self.port = port
        self.seen = seen


class ForwardingTable:
    """The addresses of all ports. Each method takes the time, which must not go back.

    :param ageing: seconds after which an address that was not seen is removed.
    :param limit: the most addresses of all ports together.
    :param port_limit: the most addresses of one port.
    :ivar learned: the number of addresses that were new.
    :ivar moved: how often an address came to another port.
    :ivar expired: the number of addresses that were removed because of their age.
    :ivar evicted: the number of addresses that each port lost because of a limit.
    :ivar version: another number after each removal. Decisions that used the addresses hold while it is the same.
    """

    def __init__(
        self, *, ageing: float = DEFAULT_AGEING, limit: int = DEFAULT_LIMIT, port_limit: int = DEFAULT_PORT_LIMIT
    ) -> None:
        self.ageing = ageing
        self.limit = limit
        self.port_limit = port_limit
        self.learned = self.moved = self.expired = self.version = 0
        self.evicted: Counter[int] = Counter()
        self._entries: dict[_Key, Entry] = {}
        #: The addresses of each port, the one that was seen longest ago first.
        self._by_port: dict[int, OrderedDict[_Key, Entry]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        """Iterate over the addresses, by port."""
        for entries in self._by_port.values():
            yield from entries.values()

    def count(self, port: int) -> int:
        """Return the number of addresses of a port."""
        return len(self._by_port.get(port, ()))

    def lookup(self, vlan: int, mac: bytes, now: float) -> Entry | None:
        """Return the entry of an address, or None if the address is unknown or too old."""
        entry = self._entries.get((vlan, mac))
        if entry is None or now - entry.seen >= self.ageing:
            return None
        return entry

    def learn(self, vlan: int, mac: bytes, port: int, now: float) -> Entry:
        """Note that a packet from this address came to this port. The caller passes unicast addresses only."""
        key = (vlan, mac)
        entry = self._entries.get(key)
        if entry is not None and entry.port == port:
            self.refresh(entry, now)
            return entry
        if entry is not None:  # an entry keeps its port: a flow that holds it sees that it is no longer valid
            self._remove(key, entry)
            self.moved += 1
        else:
            self.learned += 1
        own = self._by_port.setdefault(port, OrderedDict())
        if len(own) >= self.port_limit:
            self._evict(port)
        elif len(self._entries) >= self.limit:
            self._evict(max(self._by_port, key=lambda number: (len(self._by_port[number]), number == port)))
        own[key] = self._entries[key] = entry = Entry(vlan, mac, port, now)
        return entry

    def refresh(self, entry: Entry, now: float) -> None:
        """Note that a packet came from an address of the table."""
        entry.seen = now
        self._by_port[entry.port].move_to_end((entry.vlan, entry.mac))

    def forget(self, port: int) -> None:
        """Remove all addresses of a port."""
        for key, entry in self._by_port.pop(port, OrderedDict()).items():
            del self._entries[key]
            entry.port = NOWHERE
        self.version += 1

    def expire(self, now: float) -> None:
        """Remove the addresses that are too old."""
        for own in self._by_port.values():
            while own:
                key = next(iter(own))
                if now - own[key].seen < self.ageing:
                    break
                self._remove(key, own[key])
                self.expired += 1

    def next_expiry(self) -> float | None:
        """Return when the oldest address will be too old; None if there is no address."""
        oldest = [next(iter(own.values())).seen for own in self._by_port.values() if own]
        return min(oldest) + self.ageing if oldest else None

    def _evict(self, port: int) -> None:
        key, entry = next(iter(self._by_port[port].items()))
        self._remove(key, entry)
        self.evicted[port] += 1

    def _remove(self, key: _Key, entry: Entry) -> None:
        del self._entries[key]
        del self._by_port[entry.port][key]
        entry.port = NOWHERE
        self.version += 1
