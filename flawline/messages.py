"""Every message that crosses a topic: frozen dataclasses, schema-versioned msgpack, nothing else on the wire.

A value is one msgpack map: `t` (message type), `v` (schema version) and the fields. Headers repeat the type, the
version and the frame id, so that tools need not open the value. Decoding checks types and bounds before anything is
built from them.
"""

from __future__ import annotations

import re
import types
import typing
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import StrEnum
from functools import cache
from typing import Any, ClassVar, TypeVar

import msgpack
import numpy as np
from crc32c import crc32c

from flawline.errors import FlawlineError

CAMERA_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
REPLAYED_FROM = "replayed-from"
"""Header of a replayed frame: the dead letter that it comes from, as `dead-letters/<partition>/<offset>`."""

MAX_SIDE_PX = 65_535  # a crafted header must not be able to ask for more memory than a real sensor has


class Codec(StrEnum):
    JPEG = "jpeg"
    PNG = "png"
    RAW = "raw"


class Decision(StrEnum):
    ACCEPT = "accept"
    REVIEW = "review"
    REJECT = "reject"
    UNKNOWN_PRODUCT = "unknown-product"


class DropReason(StrEnum):
    """Why a capture never reached the topic `frames`."""

    OVERSIZE = "oversize"
    ENCODING_FAILED = "encoding-failed"
    SPOOL_FULL = "spool-full"
    SPOOL_DAMAGED = "spool-damaged"
    NOT_AUTHORISED = "not-authorised"
    BROKER_REFUSED = "broker-refused"
    IN_FLIGHT_FULL = "in-flight-full"
    STOPPED = "stopped"


class DeadLetterReason(StrEnum):
    """Why a frame that reached the workers has no verdict."""

    UNDECODABLE = "undecodable"
    WRONG_SCHEMA = "wrong-schema"
    OVERSIZE = "oversize"
    CHECKSUM = "checksum"
    MISSING_OBJECT = "missing-object"
    SCORING_FAILED = "scoring-failed"


class ClassState(StrEnum):
    CANDIDATE = "candidate"
    CONFIRMED = "confirmed"
    DORMANT = "dormant"
    MERGED = "merged"
    DISMISSED = "dismissed"


class Transition(StrEnum):
    BORN = "born"
    CONFIRMED = "confirmed"
    GREW = "grew"
    SPLIT = "split"
    MERGED = "merged"
    DORMANT = "dormant"
    REVIVED = "revived"
    NAMED = "named"
    DISMISSED = "dismissed"
    SEVERITY_SET = "severity-set"


class SchemaError(FlawlineError):
    """A value that is not a message of the expected type and version; `reason` is its dead-letter reason."""

    def __init__(self, reason: DeadLetterReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Tensor:
    """A small array in a message: C order, little endian."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    DTYPES: ClassVar[frozenset[str]] = frozenset({"float16", "float32", "uint8"})

    def __post_init__(self) -> None:
        if self.dtype not in self.DTYPES:
            raise ValueError(f"tensor dtype {self.dtype!r} is none of {sorted(self.DTYPES)}")
        if any(side < 0 for side in self.shape):
            raise ValueError(f"tensor shape {self.shape} has a negative side")
        size = int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=object))
        if size != len(self.data):
            raise ValueError(f"tensor {self.dtype}{list(self.shape)} needs {size} bytes and holds {len(self.data)}")

    @classmethod
    def of(cls, array: np.ndarray, dtype: str = "float16") -> Tensor:
        return cls(
            dtype,
            tuple(array.shape),
            np.ascontiguousarray(array, np.dtype(dtype).newbyteorder("<")).tobytes(),
        )

    def array(self) -> np.ndarray:
        return np.frombuffer(self.data, np.dtype(self.dtype).newbyteorder("<")).reshape(self.shape)


@dataclass(frozen=True)
class Frame:
    """One capture of one camera. `data` is empty when the bytes are behind `object_key` (claim check)."""

    SCHEMA: ClassVar[int] = 1

    camera: str
    epoch: int
    sequence: int
    captured_at: int
    codec: Codec
    height: int
    width: int
    channels: int
    data: bytes = field(repr=False)  # a log line must not hold a picture
    checksum: int
    size_bytes: int
    object_key: str | None = None
    part: str | None = None
    view: str | None = None
    lot: str | None = None
    trigger: str | None = None

    def __post_init__(self) -> None:
        _check_identity(self.camera, self.epoch, self.sequence)
        if not (1 <= self.height <= MAX_SIDE_PX and 1 <= self.width <= MAX_SIDE_PX):
            raise ValueError(f"frame size {self.height}x{self.width} is outside 1..{MAX_SIDE_PX}")
        if self.channels not in (1, 3, 4):
            raise ValueError(f"{self.channels} channels: 1, 3 or 4 are known")
        if self.codec is Codec.RAW and self.size_bytes != self.height * self.width * self.channels:
            raise ValueError(f"raw frame of {self.height}x{self.width}x{self.channels} with {self.size_bytes} bytes")
        if self.object_key is None and self.size_bytes != len(self.data):
            raise ValueError(f"frame announces {self.size_bytes} bytes and holds {len(self.data)}")

    @property
    def frame_id(self) -> str:
        return frame_id(self.camera, self.epoch, self.sequence)


@dataclass(frozen=True)
class Region:
    """A connected piece of a defect. `box` is x, y, width, height in image pixels; `peak` in aligned units."""

    box: tuple[int, int, int, int]
    area_px: int
    peak: float


@dataclass(frozen=True)
class Timings:
    """Seconds that one frame spent in each stage of a worker."""

    broker_s: float
    decode_s: float
    wait_s: float
    score_s: float


@dataclass(frozen=True)
class Verdict:
    """What the active model says of one frame."""

    SCHEMA: ClassVar[int] = 1

    camera: str
    epoch: int
    sequence: int
    captured_at: int
    decided_at: int
    model_version: str
    group: int
    raw_score: float
    score: float
    p_value: float
    decision: Decision
    regions: tuple[Region, ...]
    timings: Timings
    part: str | None = None
    view: str | None = None
    lot: str | None = None

    def __post_init__(self) -> None:
        _check_identity(self.camera, self.epoch, self.sequence)

    @property
    def frame_id(self) -> str:
        return frame_id(self.camera, self.epoch, self.sequence)


@dataclass(frozen=True)
class DefectRegion:
    """A region with what discovery needs to group it and a person needs to see it.

    `mask` is a PNG of the crop's size (0 or 255), `crop` a JPEG, `embedding` a unit vector (float16, D).
    """

    box: tuple[int, int, int, int]
    area_px: int
    peak: float
    crop_box: tuple[int, int, int, int]
    mask: bytes
    crop: bytes
    embedding: Tensor


@dataclass(frozen=True)
class Defect:
    """The regions of one frame that was not accepted."""

    SCHEMA: ClassVar[int] = 1

    camera: str
    epoch: int
    sequence: int
    captured_at: int
    model_version: str
    group: int
    score: float
    p_value: float
    decision: Decision
    height: int
    width: int
    embedding_version: str
    heatmap: Tensor
    regions: tuple[DefectRegion, ...]
    part: str | None = None
    lot: str | None = None

    def __post_init__(self) -> None:
        _check_identity(self.camera, self.epoch, self.sequence)

    @property
    def frame_id(self) -> str:
        return frame_id(self.camera, self.epoch, self.sequence)


@dataclass(frozen=True)
class ClassEvent:
    """A change in a defect class's life, with the class's whole state after it (the topic is compacted by class id)."""

    SCHEMA: ClassVar[int] = 1

    event_id: str
    class_id: str
    transition: Transition
    at: int
    round: int
    state: ClassState
    members: int
    name: str | None = None
    severity: str | None = None
    parents: tuple[str, ...] = ()
    merged_into: str | None = None
    who: str | None = None
    why: str | None = None


@dataclass(frozen=True)
class DeadLetter:
    """A record that could not be processed: its original bytes and headers, and why."""

    SCHEMA: ClassVar[int] = 1

    reason: DeadLetterReason
    error: str
    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...]
    at: int
    frame_id: str | None = None


@dataclass(frozen=True)
class ModelPointer:
    """Which model artefact plays a role (`active`, `shadow`)."""

    SCHEMA: ClassVar[int] = 1

    role: str
    version: str
    uri: str
    published_at: int
    by: str | None = None


@dataclass(frozen=True)
class DroppedRange:
    """Sequences `first` to `last`, both included, that were dropped for one reason."""

    first: int
    last: int
    reason: DropReason

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last:
            raise ValueError(f"dropped range {self.first}..{self.last} runs backwards")


@dataclass(frozen=True)
class LedgerEntry:
    """How far a camera has captured in one epoch, and what was dropped since the last entry.

    `captured` counts the captures so far, which is the next sequence; `closed` says that the epoch has ended.
    """

    SCHEMA: ClassVar[int] = 1

    camera: str
    epoch: int
    captured: int
    dropped: tuple[DroppedRange, ...]
    at: int
    closed: bool = False

    def __post_init__(self) -> None:
        _check_identity(self.camera, self.epoch, self.captured)


Message = Frame | Verdict | Defect | ClassEvent | DeadLetter | ModelPointer | LedgerEntry
M = TypeVar("M", Frame, Verdict, Defect, ClassEvent, DeadLetter, ModelPointer, LedgerEntry)


def _check_identity(camera: str, epoch: int, sequence: int) -> None:
    if not CAMERA_NAME.fullmatch(camera):
        raise ValueError(f"camera name {camera!r} is not 1 to 64 of A-Z a-z 0-9 . _ -")
    if not (0 <= epoch < 1 << 63 and 0 <= sequence < 1 << 63):
        raise ValueError(f"epoch {epoch} or sequence {sequence} is outside 0..2^63-1")


def frame_id(camera: str, epoch: int, sequence: int) -> str:
    """The deterministic name of a capture."""
    return f"{camera}:{epoch}:{sequence}"


def parse_frame_id(text: str) -> tuple[str, int, int]:
    """Camera, epoch and sequence of a frame id; ValueError when it is none."""
    camera, epoch, sequence = text.split(":")
    identity = camera, int(epoch), int(sequence)
    _check_identity(*identity)
    return identity


def checksum(data: bytes) -> int:
    """CRC-32C of a frame's encoded bytes."""
    return crc32c(data)


def type_name(cls: type) -> str:
    """`LedgerEntry` -> `ledger-entry`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()


def headers(message: Message) -> list[tuple[str, bytes]]:
    """Kafka headers of a message: its schema and, where it has one, its frame id."""
    result = [("schema", f"{type_name(type(message))}/{message.SCHEMA}".encode())]
    identity = getattr(message, "frame_id", None)
    return [*result, ("frame-id", identity.encode())] if identity else result


def encode(message: Message) -> bytes:
    """One message as msgpack bytes."""
    return msgpack.packb({"t": type_name(type(message)), "v": message.SCHEMA, **_to_plain(message)}, use_bin_type=True)


def decode(cls: type[M], data: bytes) -> M:
    """The message of type `cls` in `data`.

    Raises SchemaError with reason `wrong-schema` (another type or version) or `undecodable` (anything else).
    """
    try:
        plain = msgpack.unpackb(data, raw=False, strict_map_key=True, use_list=False)
    except (ValueError, msgpack.UnpackException, UnicodeDecodeError) as error:
        raise SchemaError(
            DeadLetterReason.UNDECODABLE, f"value of {len(data)} bytes is no msgpack message: {error}"
        ) from error
    if not isinstance(plain, dict) or "t" not in plain or "v" not in plain:
        raise SchemaError(DeadLetterReason.UNDECODABLE, f"value of {len(data)} bytes has no message type and version")
    kind, version = plain.pop("t"), plain.pop("v")
    if (kind, version) != (type_name(cls), cls.SCHEMA):
        found = ascii(f"{kind}/{version}")[1:-1][:80]  # a foreign value must not break the line of the error
        raise SchemaError(
            DeadLetterReason.WRONG_SCHEMA,
            f"schema {found} is not {type_name(cls)}/{cls.SCHEMA}, which is read here: upgrade the reader",
        )
    try:
        return _from_plain(cls, plain, type_name(cls))
    except (TypeError, ValueError) as error:
        raise SchemaError(DeadLetterReason.UNDECODABLE, f"{type_name(cls)}: {error}") from error


# Frozen dataclasses to and from the plain values that msgpack knows, checked type by type


def _to_plain(value: Any) -> Any:
    """Maps, lists and scalars of a dataclass, with enums as their text."""
    if is_dataclass(value):
        return {each.name: _to_plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, tuple):
        return [_to_plain(item) for item in value]
    return str(value) if isinstance(value, StrEnum) else value


@cache
def _field_types(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {each.name: hints[each.name] for each in fields(cls)}


@cache
def _required(cls: type) -> frozenset[str]:
    return frozenset(each.name for each in fields(cls) if each.default is MISSING)


def _from_plain(expected: Any, value: Any, where: str) -> Any:
    """`value` as `expected`: a dataclass, enum, tuple, optional or scalar, the few types that messages are made of.

    Raises TypeError or ValueError that names the place (`where`, then dotted field names) of what does not fit.
    """
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is types.UnionType:
        return None if value is None else _from_plain(arguments[0], value, where)
    if origin is tuple:
        if not isinstance(value, tuple):
            raise TypeError(f"{where} is no list")
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(inner) != len(value):
            raise ValueError(f"{where} has {len(value)} items instead of {len(inner)}")
        return tuple(_from_plain(kind, item, where) for kind, item in zip(inner, value, strict=True))
    if is_dataclass(expected):
        return _dataclass_of(typing.cast(type, expected), value, where)
    if issubclass(expected, StrEnum):
        return expected(value)
    if expected is float and type(value) is int:
        return float(value)
    if type(value) is not expected:
        raise TypeError(f"{where} is {type(value).__name__} instead of {expected.__name__}")
    return value


def _dataclass_of(cls: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise TypeError(f"{where} is no map")
    types_ = _field_types(cls)
    if unknown := value.keys() - types_.keys():
        raise ValueError(f"{where} has the unknown field {min(map(str, unknown))!r}")
    if missing := _required(cls) - value.keys():
        raise ValueError(f"{where} lacks the field {min(missing)!r}")
    return cls(**{name: _from_plain(types_[name], item, f"{where}.{name}") for name, item in value.items()})
