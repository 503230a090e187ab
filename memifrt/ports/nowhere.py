"""The port behind a capture at the end of a memif: what is sent there is gone."""

from __future__ import annotations

from collections.abc import Sequence

from memifrt.ports.port import Port, Traffic


class Nowhere(Port):
    """A port that drops every packet."""

    received = sent = Traffic()

    def fileno(self) -> int:
        return -1

    def room(self, qid: int = 0) -> int:
        return 1 << 16

    def recv(self, limit: int, *, qid: int = 0) -> list[bytes]:
        return []

    def send(self, packets: Sequence[bytes], *, qid: int = 0) -> int:
        return len(packets)

    def discard(self, limit: int, *, qid: int = 0) -> int:
        return 0

    def close(self) -> None:
        pass
