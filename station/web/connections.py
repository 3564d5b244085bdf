"""How long the console waits for a client, so that clients that send nothing, or too slowly, hold no connection."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_TIMEOUT_S = 10.0
"""A whole request comes within this time of its connection, or of the answer before it. A judgement, not measured."""

CONNECTION_LIMIT = 500
"""With more connections the console answers 503. A judgement: half of the files that Linux lets a process open."""


class PatientProtocol(H11Protocol):
    """Closes a connection whose request does not come whole in time. uvicorn itself limits idle time only."""

    REQUEST_TIMEOUT_S = REQUEST_TIMEOUT_S

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._follow()

    def data_received(self, data: bytes) -> None:
        """Take data; a request that is whole ends the wait."""
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        super().on_response_complete()
        self._follow()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the wait."""
        self._end_wait()
        super().connection_lost(exc)

    def _follow(self) -> None:
        """Wait while a request is to come; data does not lengthen the wait."""
        if self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body:
            self._end_wait()
        elif self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(self.REQUEST_TIMEOUT_S, self.transport.abort)

    def _end_wait(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
