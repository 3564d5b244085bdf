"""The members of consumer groups: what a group keeps of each, their requests to join and the answers."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass
from enum import Enum
from typing import Any

from embedded_broker.protocol import ErrorCode


class GroupState(Enum):
    """The states of a classic group, named as clients show them."""

    EMPTY = "Empty"
    PREPARING = "PreparingRebalance"
    COMPLETING = "CompletingRebalance"
    STABLE = "Stable"


@dataclass(frozen=True, slots=True)
class JoinCall:
    """A JoinGroup request; `protocols` maps the member's assignors, best first, to their metadata."""

    member_id: str
    instance_id: str | None
    client_id: str
    client_host: str
    session_timeout_ms: int
    rebalance_timeout_ms: int
    protocol_type: str
    protocols: dict[str, bytes]
    needs_member_id: bool  # since JoinGroup v4 a new member asks for an id first
    skips_assignment: bool  # since v9 the answer can tell a static leader to skip it


@dataclass(frozen=True, slots=True)
class JoinAnswer:
    """The answer to a request to join; `members` is filled for the leader only."""

    error: ErrorCode
    member_id: str
    generation: int = -1
    protocol_type: str = ""
    protocol: str = ""
    leader: str = ""
    members: tuple[tuple[str, str | None, bytes], ...] = ()
    skip_assignment: bool = False


@dataclass(slots=True, eq=False)
class Member:
    """One member; a waiter is set while its JoinGroup or SyncGroup waits for the answer."""

    member_id: str
    instance_id: str | None
    client_id: str
    client_host: str
    session_timeout_s: float
    rebalance_timeout_s: float
    protocols: dict[str, bytes]
    assignment: bytes = b""
    join_waiter: asyncio.Future[JoinAnswer] | None = None
    sync_waiter: asyncio.Future[ErrorCode] | None = None
    expiry: asyncio.TimerHandle | None = None

    @property
    def joined(self) -> bool:
        """Whether its JoinGroup waits, on a connection that is alive."""
        return self.join_waiter is not None and not self.join_waiter.done()

    @property
    def waiting(self) -> bool:
        """Whether it waits for an answer: meanwhile it cannot send heartbeats, and need not."""
        return self.joined or (self.sync_waiter is not None and not self.sync_waiter.done())

    def snapshot(self) -> dict[str, Any]:
        """Return the part that survives a restart, as values for JSON."""
        return {
            "member_id": self.member_id,
            "instance_id": self.instance_id,
            "client_id": self.client_id,
            "client_host": self.client_host,
            "session_timeout_s": self.session_timeout_s,
            "rebalance_timeout_s": self.rebalance_timeout_s,
            "protocols": {name: _text(data) for name, data in self.protocols.items()},
            "assignment": _text(self.assignment),
        }

    @classmethod
    def restored(cls, snapshot: dict[str, Any]) -> Member:
        """Return the member of a `snapshot`."""
        protocols = {name: base64.b64decode(data) for name, data in snapshot["protocols"].items()}
        assignment = base64.b64decode(snapshot["assignment"])
        return cls(**snapshot | {"protocols": protocols, "assignment": assignment})


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
