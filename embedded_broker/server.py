"""The sockets: requests come in, answers go out in the same order, and no client can end the process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import resource
import signal
import socket
import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

from embedded_broker import admin_requests, group_requests, record_requests
from embedded_broker.broker import Broker, BrokerOptions
from embedded_broker.protocol import (
    API_VERSIONS,
    FETCH,
    PRODUCE,
    CloseConnection,
    MalformedRequest,
    Request,
    api_versions_response,
    decode_request,
    encode_response,
    peek_api_key,
    unsupported_api_versions,
)
from embedded_broker.segment import FileSlice
from flawline.errors import FlawlineError, UsageError

log = logging.getLogger(__name__)

# Only Produce carries data. Any other large request is an attack on the memory or on the decoder.
_CONTROL_REQUEST_LIMIT_BYTES: Final = 1 << 20
_FIRST_BUFFER_BYTES: Final = 64 << 10
_QUEUED_REQUESTS_LIMIT: Final = 8
_QUEUED_BYTES_LIMIT: Final = 8 << 20
_WRITE_BUFFER_BYTES: Final = 1 << 20
_READ_CHUNK_BYTES: Final = 512 << 10

_Handler = Callable[[Broker, Request], Awaitable[Any]]

_HANDLERS: Final[dict[str, _Handler]] = {
    "Produce": record_requests.produce,
    "ListOffsets": record_requests.list_offsets,
    "Metadata": record_requests.metadata,
    "OffsetForLeaderEpoch": record_requests.offset_for_leader_epoch,
    "InitProducerId": record_requests.init_producer_id,
    "FindCoordinator": record_requests.find_coordinator,
    "SyncGroup": group_requests.sync_group,
    "Heartbeat": group_requests.heartbeat,
    "LeaveGroup": group_requests.leave_group,
    "OffsetCommit": group_requests.offset_commit,
    "OffsetFetch": group_requests.offset_fetch,
    "OffsetDelete": group_requests.offset_delete,
    "ListGroups": group_requests.list_groups,
    "DescribeGroups": group_requests.describe_groups,
    "DeleteGroups": group_requests.delete_groups,
    "CreateTopics": admin_requests.create_topics,
    "DeleteTopics": admin_requests.delete_topics,
    "CreatePartitions": admin_requests.create_partitions,
    "DeleteRecords": admin_requests.delete_records,
    "DescribeConfigs": admin_requests.describe_configs,
    "AlterConfigs": admin_requests.alter_configs,
    "IncrementalAlterConfigs": admin_requests.incremental_alter_configs,
    "DescribeLogDirs": admin_requests.describe_log_dirs,
    "DescribeCluster": admin_requests.describe_cluster,
}


class Connection(asyncio.BufferedProtocol):
    """One client: each request is read into a buffer of its own, and answered after the one before it."""

    def __init__(self, broker: Broker, connections: set[Connection]) -> None:
        self._broker = broker
        self._connections = connections
        self._length = bytearray(4)
        self._frame: bytearray | None = None  # None while the four length bytes are being read
        self._frame_bytes = 0
        self._filled = 0
        self._requests: deque[bytearray] = deque()
        self._queued_bytes = 0
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    # Transport events

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        self._peer = str(transport.get_extra_info("peername")[0])
        self._connections.add(self)
        self._task = asyncio.get_running_loop().create_task(self._serve())

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def get_buffer(self, sizehint: int) -> memoryview:
        target = self._length if self._frame is None else self._frame
        return memoryview(target)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._frame is None:
            if self._filled == len(self._length):
                self._begin_frame(int.from_bytes(self._length, "big", signed=True))
        elif self._filled == self._frame_bytes:
            self._requests.append(self._frame)
            self._queued_bytes += self._frame_bytes
            self._frame, self._filled = None, 0
            self._arrived.set()
            if len(self._requests) >= _QUEUED_REQUESTS_LIMIT or self._queued_bytes >= _QUEUED_BYTES_LIMIT:
                self._transport.pause_reading()
        elif self._filled == len(self._frame):
            self._grow_frame()

    def _begin_frame(self, size_bytes: int) -> None:
        if not 0 < size_bytes <= self._broker.options.max_request_bytes:
            log.warning("%s: a frame of %d bytes is refused, connection closed", self._peer, size_bytes)
            self._transport.abort()
            return
        self._frame_bytes, self._filled = size_bytes, 0
        self._frame = bytearray(min(size_bytes, _FIRST_BUFFER_BYTES))

    def _grow_frame(self) -> None:
        """Enlarge the buffer as data arrives: a length alone must not take memory."""
        assert self._frame is not None
        if self._frame_bytes > _CONTROL_REQUEST_LIMIT_BYTES and peek_api_key(self._frame) != PRODUCE:
            log.warning("%s: a request of %d bytes is refused, connection closed", self._peer, self._frame_bytes)
            self._transport.abort()
            return
        # A frame of data grows in few steps, because each step copies it.
        grown = bytearray(min(self._frame_bytes, 8 * len(self._frame)))
        grown[: self._filled] = self._frame
        self._frame = grown

    def abort(self) -> None:
        """Close at once; harmless when the connection is closed already."""
        if self in self._connections:  # asyncio's transport raises once it is closed
            self._transport.abort()

    # Answering

    async def _serve(self) -> None:
        try:
            while True:
                while not self._requests:
                    self._arrived.clear()
                    await self._arrived.wait()
                frame = self._requests.popleft()
                self._queued_bytes -= len(frame)
                if not self._transport.is_reading():
                    self._transport.resume_reading()
                await self._answer(memoryview(frame))
        except CloseConnection as error:
            log.warning("%s: %s, connection closed", self._peer, error)
        except (OSError, sqlite3.Error) as error:
            log.error("%s: request failed on the disk (%s), connection closed", self._peer, error)
        except Exception:  # an error of one client must not reach the others
            log.exception("%s: request failed, connection closed", self._peer)
        finally:
            self.abort()

    async def _answer(self, frame: memoryview) -> None:
        request = decode_request(frame)
        if request.body is None:
            if request.api.key != API_VERSIONS:
                raise MalformedRequest(f"{request.api.name} version {request.version} is not supported")
            self._transport.write(unsupported_api_versions(request))
        elif request.api.key == API_VERSIONS:
            self._transport.write(encode_response(request, api_versions_response()))
        elif request.api.key == FETCH:
            await self._write_parts(await record_requests.fetch(self._broker, request))
        else:
            if request.api.name == "JoinGroup":
                response = await group_requests.join_group(self._broker, request, self._peer)
            else:
                response = await _HANDLERS[request.api.name](self._broker, request)
            if response is not None:
                self._transport.write(encode_response(request, response))
        await self._writable.wait()

    async def _write_parts(self, parts: list[Any]) -> None:
        """Write bytes and slices of files in order; no more than the write buffer is in memory."""
        pending: list[bytes] = []
        for part in parts:
            if not isinstance(part, FileSlice):
                pending.append(part)
                continue
            start = 0
            while start < part.size_bytes:
                chunk = part.read(start, _READ_CHUNK_BYTES)
                if not chunk:
                    raise OSError(errno.EIO, f"{part.segment.path} is shorter than it was")
                self._transport.writelines([*pending, chunk])
                pending.clear()
                start += len(chunk)
                await self._writable.wait()
        self._transport.writelines(pending)


class Server:
    """A broker with its listening socket."""

    def __init__(self, options: BrokerOptions) -> None:
        self._options = options
        self._connections: set[Connection] = set()

    async def run(self, stop: asyncio.Event, listening: Callable[[str, int], None]) -> None:
        """Serve until `stop` is set; `listening` gets host and port once clients can connect.

        Raises FlawlineError when the data directory or the port cannot be used.
        """
        _require_loopback(self._options)
        _raise_file_limit()
        broker = Broker(self._options)
        try:
            listener = await self._listen(broker)
            port = listener.sockets[0].getsockname()[1]
            broker.port = self._options.advertised_port or port
            broker.restore_groups()
            background = [asyncio.ensure_future(job) for job in (broker.housekeeping(), broker.sync_regularly())]
            listening(broker.host, port)
            try:
                await stop.wait()
            finally:
                listener.close()
                for connection in tuple(self._connections):
                    connection.abort()
                for task in background:
                    task.cancel()
                await asyncio.gather(*background, return_exceptions=True)
        finally:
            broker.close()

    async def _listen(self, broker: Broker) -> asyncio.Server:
        host, port = self._options.host, self._options.port
        try:
            return await asyncio.get_running_loop().create_server(
                lambda: Connection(broker, self._connections), host, port, family=socket.AF_INET, backlog=512
            )
        except OSError as error:
            remedy = "stop the process that listens there or choose another port (0 takes a free one)"
            reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be bound ({error.strerror})"
            raise FlawlineError(f"address {host}:{port} {reason}: {remedy}") from error


def _require_loopback(options: BrokerOptions) -> None:
    if options.allow_remote:
        if options.host in ("", "0.0.0.0") and not options.advertised_host:
            raise UsageError(
                f"clients cannot connect to {options.host or 'every address'}: name the host that they see with "
                "--advertised-host"
            )
        return
    try:
        addresses = {item[4][0] for item in socket.getaddrinfo(options.host, None, socket.AF_INET)}
    except socket.gaierror as error:
        raise UsageError(f"host {options.host!r} has no address ({error.strerror}): use 127.0.0.1") from error
    if not all(ipaddress.ip_address(address).is_loopback for address in addresses):
        raise UsageError(
            f"host {options.host} is reachable from other machines, and the embedded broker has neither TLS nor "
            "passwords: use 127.0.0.1, or --allow-remote if the network is protected by other means"
        )


def _raise_file_limit() -> None:
    """Raise the limit of open files as far as the system allows: every segment is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, 65_536)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def serve(options: BrokerOptions, listening: Callable[[str, int], None]) -> None:
    """Run a broker until SIGTERM or SIGINT; `listening` gets its address. Raises FlawlineError."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    await Server(options).run(stop, listening)
