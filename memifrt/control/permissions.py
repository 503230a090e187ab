"""The mode, owner and group of a listener's socket file, as options of the user.

Owns the options and their check. Knows nothing of files or sockets.
"""

from __future__ import annotations

import grp
import pwd
from collections.abc import Callable
from dataclasses import dataclass

from memifrt.errors import ConfigError
from memifrt.types import MAX_ID, check_range


@dataclass(frozen=True, slots=True)
class FilePermissions:
    """Mode, uid and gid of a socket file. None: the umask decides the mode, and the ids are those of this process."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None

    def __bool__(self) -> bool:
        return (self.mode, self.uid, self.gid) != (None, None, None)

    @classmethod
    def parse(
        cls, mode: int | None = None, owner: int | str | None = None, group: int | str | None = None
    ) -> FilePermissions:
        """Check the user's options. Users and groups are numbers or names.

        :raises ConfigError: the mode is not between 0 and 0o777, or there is no such user or group.
        """
        if mode is not None and (isinstance(mode, bool) or not isinstance(mode, int) or not 0 <= mode <= 0o777):
            shown = oct(mode) if isinstance(mode, int) else repr(mode)
            raise ConfigError(f"mode is {shown}; it must be a file's permissions, 0 to 0o777")
        return cls(
            mode,
            _id_of("owner", "user", owner, lambda name: pwd.getpwnam(name).pw_uid),
            _id_of("group", "group", group, lambda name: grp.getgrnam(name).gr_gid),
        )


def _id_of(what: str, kind: str, value: int | str | None, look_up: Callable[[str], int]) -> int | None:
    if not isinstance(value, str):
        return None if value is None else check_range(what, value, 0, MAX_ID)
    try:
        return look_up(value)
    except KeyError:
        raise ConfigError(f"{what} is {value!r}; there is no such {kind}") from None
