"""The last changes of an interface's state, with their reasons.

Owns the bounded log of one interface. Knows nothing of connections; the interface records its changes here.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from memifrt.types import State

#: The number of changes that an interface remembers.
MAX_CHANGES = 16
#: The longest reason to remember, in characters. Some of it may be the peer's text.
_LONGEST_REASON = 200


@dataclass(frozen=True, slots=True)
class StateChange:
    """One change of state, or several that follow each other and say the same.

    :ivar time: Unix time of the last of them, in seconds.
    :ivar state: the new state.
    :ivar reason: why, or the names of the peer; empty if there is nothing to say.
    :ivar count: how many there were.
    """

    time: float
    state: State
    reason: str
    count: int = 1


class ChangeLog:
    """The last :data:`MAX_CHANGES` changes of one interface."""

    def __init__(self) -> None:
        self._changes: deque[StateChange] = deque(maxlen=MAX_CHANGES)

    def record(self, state: State, reason: str = "") -> None:
        """Add a change.

        A slave that retries repeats one change or two (connecting, disconnected). They are counted instead of added,
        so that they cannot push out the changes before them.
        """
        reason, count = reason[:_LONGEST_REASON], 1
        for earlier in list(self._changes)[-2:]:
            if (earlier.state, earlier.reason) == (state, reason):
                self._changes.remove(earlier)
                count += earlier.count
        self._changes.append(StateChange(time.time(), state, reason, count))

    def __iter__(self) -> Iterator[StateChange]:
        """Iterate over the changes, the oldest first."""
        return iter(tuple(self._changes))
