"""The Kafka protocol byte by byte, for requests that no client sends."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Any

from kafka.protocol.producer import ProduceRequest, ProduceResponse
from kafka.record.default_records import DefaultRecordBatchBuilder


class Wire:
    """Holds a connection that sends frames and reads answers."""

    def __init__(self, bootstrap: str, timeout_s: float = 10.0, receive_buffer_bytes: int | None = None) -> None:
        host, _, port = bootstrap.rpartition(":")
        self._socket = socket.socket()
        self._socket.settimeout(timeout_s)
        if receive_buffer_bytes is not None:  # it counts only when it is set before the connection is made
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self._socket.connect((host, int(port)))

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def finish_sending(self) -> None:
        with contextlib.suppress(OSError):  # the broker was faster and has closed already
            self._socket.shutdown(socket.SHUT_WR)

    def receive_frame(self) -> bytes | None:
        """Return the next frame without its length, None when the broker has closed the connection."""
        length = self._receive(4)
        return None if length is None else self._receive(int.from_bytes(length, "big"))

    def receive(self, limit_bytes: int) -> bytes:
        """Return the bytes that have come, at most `limit_bytes`; none when the broker has closed the connection."""
        try:
            return self._socket.recv(limit_bytes)
        except ConnectionError:
            return b""

    def _receive(self, size_bytes: int) -> bytes | None:
        data = b""
        while len(data) < size_bytes:
            try:
                more = self._socket.recv(size_bytes - len(data))
            except ConnectionError:
                return None
            if not more:
                return None
            data += more
        return data

    def ask(self, request: Any, response_class: Any, version: int) -> Any:
        """Send a request of kafka-python's schemas and return the decoded answer."""
        self.send(frame_of(request, version))
        answer = self.receive_frame()
        assert answer is not None, "the broker closed the connection"
        flexible = response_class.flexible_version_q(version)
        return response_class.decode(answer[5 if flexible else 4 :], version=version)

    def produce(self, topic: str, records: bytes, *, partition: int = 0, acks: int = -1, version: int = 8) -> Any:
        """Send one batch and return `(error code, base offset)`."""
        data = ProduceRequest.TopicProduceData
        body = ProduceRequest(
            transactional_id=None,
            acks=acks,
            timeout_ms=10_000,
            topic_data=[data(name=topic, partition_data=[data.PartitionProduceData(index=partition, records=records)])],
        )
        answer = self.ask(body, ProduceResponse, version)
        result = answer.responses[0].partition_responses[0]
        return result.error_code, result.base_offset

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def frame_of(request: Any, version: int, correlation_id: int = 7) -> bytes:
    """Encode a request with its header and length."""
    header = struct.pack(">hhih", request.API_KEY, version, correlation_id, 4) + b"wire"
    if request.flexible_version_q(version):
        header += b"\0"
    body = header + bytes(request.encode(version=version))
    return struct.pack(">i", len(body)) + body


def record_batch(
    values: list[bytes],
    *,
    key: bytes | None = None,
    timestamp: int = 0,
    producer: tuple[int, int, int] = (-1, -1, -1),
    compression: int = 0,
    transactional: bool = False,
) -> bytes:
    """Build a v2 batch; `producer` is `(id, epoch, first sequence)`."""
    producer_id, epoch, sequence = producer
    builder = DefaultRecordBatchBuilder(2, compression, transactional, producer_id, epoch, sequence, 1 << 30)
    for index, value in enumerate(values):
        builder.append(index, timestamp, key, value, [])
    return bytes(builder.build())
