"""Who may connect to a listener: the mode and owner of its file, and which of the peers that come are let in.

Owns the options and the decision. Knows the peer by its credentials alone, and nothing of files or sockets.
"""

from __future__ import annotations

import grp
import pwd
from collections.abc import Callable, Collection
from dataclasses import dataclass

from memifrt.control.channel import Credentials
from memifrt.errors import ConfigError
from memifrt.types import check_range

#: ``accept_peer(credentials)``: whether this peer may connect.
AcceptPeer = Callable[[Credentials], bool]

#: -1 would mean "leave it", to the kernel.
_MAX_ID = 0xFFFFFFFE


@dataclass(frozen=True, slots=True)
class FilePermissions:
    """Mode, uid and gid of a socket file; None for what the system gives: the umask, the process's own ids."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None

    def __bool__(self) -> bool:
        return (self.mode, self.uid, self.gid) != (None, None, None)

    @classmethod
    def parse(
        cls, mode: int | None = None, owner: int | str | None = None, group: int | str | None = None
    ) -> FilePermissions:
        """From what users write: users and groups by number or by name.

        :raises ConfigError: the mode is none, or there is no such user or group.
        """
        if mode is not None and (isinstance(mode, bool) or not isinstance(mode, int) or not 0 <= mode <= 0o777):
            shown = oct(mode) if isinstance(mode, int) else repr(mode)
            raise ConfigError(f"mode is {shown}; it must be a file's permissions, 0 to 0o777")
        return cls(
            mode,
            _id_of("owner", "user", owner, lambda name: pwd.getpwnam(name).pw_uid),
            _id_of("group", "group", group, lambda name: grp.getgrnam(name).gr_gid),
        )


@dataclass(frozen=True, slots=True)
class PeerPolicy:
    """Which peers are let in: those of a uid or gid that is listed, if any is, and whom ``accept_peer`` takes."""

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
        """From what users write.

        :raises ConfigError: a number is none, or ``accept_peer`` cannot be called.
        """
        if accept_peer is not None and not callable(accept_peer):
            raise ConfigError(f"accept_peer is {accept_peer!r}; it must be a function of the peer's credentials")
        return cls(_ids("allow_uids", allow_uids), _ids("allow_gids", allow_gids), accept_peer)

    def admits(self, peer: Credentials) -> bool:
        """Whether the peer may connect.

        :raises BaseException: what ``accept_peer`` raised.
        """
        listed = self.uids is None and self.gids is None
        listed = listed or peer.uid in (self.uids or ()) or peer.gid in (self.gids or ())
        return listed and (self.accept_peer is None or bool(self.accept_peer(peer)))


def _id_of(what: str, kind: str, value: int | str | None, look_up: Callable[[str], int]) -> int | None:
    if not isinstance(value, str):
        return None if value is None else check_range(what, value, 0, _MAX_ID)
    try:
        return look_up(value)
    except KeyError:
        raise ConfigError(f"{what} is {value!r}; there is no such {kind}") from None


def _ids(what: str, values: Collection[int] | None) -> frozenset[int] | None:
    if values is None:
        return None
    if isinstance(values, str | bytes) or not isinstance(values, Collection):
        raise ConfigError(f"{what} is {values!r}; it must be a collection of numbers")
    return frozenset(check_range(what, value, 0, _MAX_ID) for value in values)
