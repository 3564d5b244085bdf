"""A TCP proxy that can cut, stop and slow the connections that go through it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any

CHUNK_BYTES = 64 << 10


class TcpProxy:
    """Forwards connections on a port of 127.0.0.1 to `target_port`, in a thread of its own.

    `refuse` closes the port, as the end of the server does; `accept` opens it again.
    `cut` resets every connection and lets new ones through. `hold` keeps connections open and forwards nothing, as a
    network that drops packets does. `slow` limits each direction of each connection to `bytes_per_s`. `resume` ends
    both.
    """

    def __init__(self, target_port: int = 0) -> None:
        self.target_port = target_port
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._bytes_per_s: float | None = None
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> TcpProxy:
        self._thread.start()
        self.accept()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def accept(self) -> None:
        """Listen, on the port of before if there was one."""
        if self._server is None:
            self._server = self._call(asyncio.start_server(self._serve, "127.0.0.1", self.port))
            self.port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Close the port and every connection."""
        if self._server is not None:
            self._loop.call_soon_threadsafe(self._server.close)
            self._server = None
        self.cut()

    def cut(self) -> None:
        """Reset every connection."""
        self._call(self._cut())

    def hold(self) -> None:
        """Forward nothing until `resume`."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def slow(self, bytes_per_s: float) -> None:
        """Forward at most so many bytes a second in each direction of a connection until `resume`."""
        self._bytes_per_s = bytes_per_s

    def resume(self) -> None:
        """Forward everything again."""
        self._bytes_per_s = None
        self._loop.call_soon_threadsafe(self._flowing.set)

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:  # the broker is away
            writer.transport.abort()
            self._writers.discard(writer)
            return
        self._writers.add(far_writer)
        await asyncio.gather(self._forward(reader, far_writer), self._forward(far_reader, writer))

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await self._flowing.wait()
                if self._bytes_per_s is not None:
                    await asyncio.sleep(len(data) / self._bytes_per_s)
                writer.write(data)
                await writer.drain()
        self._writers.discard(writer)
        writer.transport.abort() if reader.exception() else writer.close()
