"""Decide which peers a listener admits, and which of them to give up when there are too many.

Owns the options and both decisions. Knows only the credentials of a peer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from memifrt.control.channel import Credentials
from memifrt.errors import ConfigError
from memifrt.types import MAX_ID, check_range

#: ``accept_peer(credentials)`` returns whether this peer may connect.
AcceptPeer = Callable[[Credentials], bool]


@dataclass(frozen=True, slots=True)
class PeerPolicy:
    """Admits a peer if its uid or gid is listed, or there are no lists, and ``accept_peer`` returns True."""

    uids: frozenset[int] | None = None
    gids: frozenset[int] | None = None
    accept_peer: AcceptPeer | None = None

    @classmethod
    def parse(
        cls,
        allow_uids: Collection[int] | None = None,
        allow_gids: Collection[int] | None = None,
        accept_peer: AcceptPeer | None = None,
    ) -> PeerPolicy:
        """Check the user's options.

        :raises ConfigError: an id is not a number, or ``accept_peer`` cannot be called.
        """
        if accept_peer is not None and not callable(accept_peer):
            raise ConfigError(f"accept_peer is {accept_peer!r}; it must be a function of the peer's credentials")
        return cls(_ids("allow_uids", allow_uids), _ids("allow_gids", allow_gids), accept_peer)

    def admits(self, peer: Credentials) -> bool:
        """Return whether the peer may connect.

        :raises BaseException: ``accept_peer`` raised it.
        """
        listed = self.uids is None and self.gids is None
        listed = listed or peer.uid in (self.uids or ()) or peer.gid in (self.gids or ())
        return listed and (self.accept_peer is None or bool(self.accept_peer(peer)))


class HasCredentials(Protocol):
    """A connection of a peer."""

    @property
    def credentials(self) -> Credentials: ...


_Peer = TypeVar("_Peer", bound=HasCredentials)


def oldest_of_busiest(connections: Iterable[_Peer]) -> _Peer:
    """Return the oldest connection of the busiest process of the busiest user (the most connections).

    :param connections: one or more, the oldest first.
    """
    connections = list(connections)
    peers = [connection.credentials for connection in connections]
    users = Counter(peer.uid for peer in peers)
    processes = Counter((peer.uid, peer.pid) for peer in peers)

    def load(connection: _Peer) -> tuple[int, int]:
        peer = connection.credentials
        return users[peer.uid], processes[peer.uid, peer.pid]

    return max(connections, key=load)


def _ids(what: str, values: Collection[int] | None) -> frozenset[int] | None:
    if values is None:
        return None
    if isinstance(values, str | bytes) or not isinstance(values, Collection):
        raise ConfigError(f"{what} is {values!r}; it must be a collection of numbers")
    return frozenset(check_range(what, value, 0, MAX_ID) for value in values)
