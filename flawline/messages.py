"""Every message that crosses a topic: frozen dataclasses outside, msgpack with a schema version on the wire.

A value is one msgpack map: `t` (message type), `v` (schema version) and the fields. Kafka headers repeat the type, the
version and the frame id, so that tools need not open the value. Making a message checks every limit
(`flawline.field_limits`), decoding one every type too. Times are nanoseconds UTC, boxes are x, y, width and height in
pixels.

A reader takes its own version and older ones. A field that is added later has a default, so that older messages can be
read, and a reader ignores a field that it does not know, so that newer ones can be. A change that an older reader must
not ignore needs a new version.

In this file: the vocabulary, the identity of a capture, the parts of messages, the messages, encoding and decoding.
"""

from __future__ import annotations

import re
import typing
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, ClassVar, TypeVar

import msgpack
import numpy as np
from crc32c import crc32c

from flawline.errors import FlawlineError
from flawline.field_limits import (
    NAME,
    Count,
    Crc,
    Items,
    Limited,
    Pattern,
    Prose,
    TimeMs,
    TimeNs,
    Within,
    is_optional,
)

CAMERA_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
"""The names of cameras, in messages and in settings. They become names of folders, so that none begins with a dot."""

LAST_SEQUENCE = (1 << 53) - 1
"""The largest number that every JSON reader holds exactly."""

TENSOR_DIMENSIONS = 3
REGION_LIMIT = 256
"""Most regions of one frame. The scorer gives 4."""

CameraName = Annotated[str, Pattern(CAMERA_NAME, "camera name: 1 to 64 of A-Z a-z 0-9 . _ -, not beginning with a dot")]
ObjectKey = Annotated[str, Pattern(re.compile("[0-9a-f]{64}"), "object key: the SHA-256 of its content")]
ModelUri = Annotated[
    str,
    Pattern(
        re.compile(r"(?:(?:file|s3|gs|gcs|az|abfs|abfss)://)?(?:(?!::|://)[^\x00-\x1f\x7f\ud800-\udfff]){1,1024}"),
        "folder, and no address of a bucket (file, s3, gs, gcs, az, abfs, abfss)",
    ),
]

MODEL_HISTORY_LIMIT = 20
"""Models that a rollback can reach. A judgement, not measured."""
Sequence = Annotated[int, Within(0, LAST_SEQUENCE)]

MAX_SIDE_PX = 65_535
"""A crafted header cannot ask for more memory than a real sensor has."""

REPLAYED_FROM = "replayed-from"
"""Header of a replayed frame: the dead letter that it comes from, as `dead-letters/<partition>/<offset>`."""


# The vocabulary


class Codec(StrEnum):
    """How the image of a frame is encoded; `raw` is uint8 in C order."""

    JPEG = "jpeg"
    PNG = "png"
    RAW = "raw"


class Decision(StrEnum):
    """What is decided about a frame."""

    ACCEPT = "accept"
    REVIEW = "review"
    REJECT = "reject"
    UNKNOWN_PRODUCT = "unknown-product"


class Scene(StrEnum):
    """What has changed for a camera, when most of its last frames are unlike what the model has learnt."""

    CAMERA_CHANGED = "camera-changed"
    PRODUCT_CHANGED = "product-changed"


class DropReason(StrEnum):
    """Why a capture never reached a worker; `expired`: it was deleted from the topic `frames` before one read it."""

    OVERSIZE = "oversize"
    ENCODING_FAILED = "encoding-failed"
    SPOOL_FULL = "spool-full"
    SPOOL_DAMAGED = "spool-damaged"
    NOT_AUTHORISED = "not-authorised"
    BROKER_REFUSED = "broker-refused"
    IN_FLIGHT_FULL = "in-flight-full"
    OVERLOAD = "overload"
    OVERLOAD_OLDEST = "overload-oldest"
    STOPPED = "stopped"
    EXPIRED = "expired"


class DeadLetterReason(StrEnum):
    """Why a frame that reached the workers has no verdict."""

    UNDECODABLE = "undecodable"
    WRONG_SCHEMA = "wrong-schema"
    OVERSIZE = "oversize"
    CHECKSUM = "checksum"
    MISSING_OBJECT = "missing-object"
    SCORING_FAILED = "scoring-failed"
    KILLED_WORKER = "killed-worker"
    BROKER_REFUSED = "broker-refused"


class ClassState(StrEnum):
    """Where a defect class stands."""

    CANDIDATE = "candidate"
    CONFIRMED = "confirmed"
    DORMANT = "dormant"
    MERGED = "merged"
    DISMISSED = "dismissed"


class Transition(StrEnum):
    """What happened to a defect class."""

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


# The identity of a capture


_FRAME_ID = re.compile("[^:]{1,64}:[0-9]{1,19}:[0-9]{1,19}")


def frame_id(camera: str, epoch: int, sequence: int) -> str:
    """Return the name of a capture, which is the same wherever and whenever it is made."""
    return f"{camera}:{epoch}:{sequence}"


def parse_frame_id(text: str) -> tuple[str, int, int]:
    """Return camera, epoch and sequence of a frame id. Raises ValueError for other text."""
    if not _FRAME_ID.fullmatch(text):
        raise ValueError(f"frame id {text[:120]!a} is no camera:epoch:sequence")
    camera, epoch, sequence = text.split(":")
    capture = _Identity(camera, int(epoch), int(sequence))
    return capture.camera, capture.epoch, capture.sequence


def checksum(data: bytes) -> int:
    """Return the CRC-32C of a frame's encoded image."""
    return crc32c(data)


@dataclass(frozen=True)
class _Identity(Limited):
    """Names a capture: `epoch` is the start of the producer in milliseconds UTC, `sequence` counts captures from 0."""

    camera: CameraName
    epoch: TimeMs
    sequence: Sequence

    @property
    def frame_id(self) -> str:
        """The name of the capture."""
        return frame_id(self.camera, self.epoch, self.sequence)


@dataclass(frozen=True)
class _OfCapture(_Identity):
    """What every message about one capture begins with."""

    captured_at: TimeNs


# The parts of messages


@dataclass(frozen=True)
class Tensor(Limited):
    """A small array in a message: C order, little endian."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    DTYPES: ClassVar[frozenset[str]] = frozenset({"float16", "float32", "uint8"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in self.DTYPES:
            raise ValueError(f"tensor dtype {self.dtype!r} is none of {sorted(self.DTYPES)}")
        if len(self.shape) > TENSOR_DIMENSIONS or not all(0 <= side <= MAX_SIDE_PX for side in self.shape):
            raise ValueError(
                f"tensor shape {self.shape[:TENSOR_DIMENSIONS]} of {len(self.shape)} sides: "
                f"{TENSOR_DIMENSIONS} sides of 0 to {MAX_SIDE_PX} are read"
            )
        size = int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=object))
        if size != len(self.data):
            raise ValueError(f"tensor {self.dtype}{list(self.shape)} needs {size} bytes and holds {len(self.data)}")

    @classmethod
    def of(cls, array: np.ndarray, dtype: str = "float16") -> Tensor:
        """Return `array` as a tensor of type `dtype`."""
        return cls(
            dtype,
            tuple(array.shape),
            np.ascontiguousarray(array, np.dtype(dtype).newbyteorder("<")).tobytes(),
        )

    def array(self) -> np.ndarray:
        """Return the tensor as a read-only array."""
        return np.frombuffer(self.data, np.dtype(self.dtype).newbyteorder("<")).reshape(self.shape)


@dataclass(frozen=True)
class Region(Limited):
    """A connected piece of a defect; `peak` is its highest value in the anomaly map, in units of the aligned score."""

    box: tuple[int, int, int, int]
    area_px: Count
    peak: float


@dataclass(frozen=True)
class DefectRegion(Limited):
    """A region with what discovery needs to group it, and what a person needs to see it.

    `crop` is a JPEG of `crop_box`, `mask` a PNG of the same size (0 or 255), `embedding` a unit vector (float16, D).
    """

    box: tuple[int, int, int, int]
    area_px: Count
    peak: float
    crop_box: tuple[int, int, int, int]
    mask: bytes
    crop: bytes
    embedding: Tensor


@dataclass(frozen=True)
class Timings(Limited):
    """Seconds that one frame spent in each stage of a worker."""

    broker_s: float
    decode_s: float
    wait_s: float
    score_s: float


@dataclass(frozen=True)
class RunningModel(Limited):
    """A model version in use, and since when."""

    version: str
    since: TimeNs


@dataclass(frozen=True)
class DroppedRange(Limited):
    """Sequences `first` to `last`, both included, that were dropped for one reason."""

    first: Sequence
    last: Sequence
    reason: DropReason

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first > self.last:
            raise ValueError(f"dropped range {self.first}..{self.last} runs backwards")


# The messages


@dataclass(frozen=True)
class Frame(_OfCapture):
    """The image of one capture, as the producer encoded it.

    `data` holds the encoded image; it is empty when the image is in the object store under `object_key` (claim
    check). `size_bytes` and `checksum` (CRC-32C) are those of the encoded image, wherever it is. `height`, `width`
    and `channels` are those of the decoded image.
    """

    SCHEMA: ClassVar[int] = 1

    codec: Codec
    height: int
    width: int
    channels: int
    data: bytes = field(repr=False)  # a log line must not hold a picture
    checksum: Crc
    size_bytes: Count
    object_key: ObjectKey | None = None
    part: str | None = None
    view: str | None = None
    lot: str | None = None
    trigger: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (1 <= self.height <= MAX_SIDE_PX and 1 <= self.width <= MAX_SIDE_PX):
            raise ValueError(f"frame size {self.height}x{self.width} is outside 1..{MAX_SIDE_PX}")
        if self.channels not in (1, 3, 4):
            raise ValueError(f"{self.channels} channels: 1, 3 or 4 are known")
        if self.codec is Codec.RAW and self.size_bytes != self.height * self.width * self.channels:
            raise ValueError(f"raw frame of {self.height}x{self.width}x{self.channels} with {self.size_bytes} bytes")
        if self.object_key is None and self.size_bytes != len(self.data):
            raise ValueError(f"frame announces {self.size_bytes} bytes and holds {len(self.data)}")


@dataclass(frozen=True)
class Verdict(_OfCapture):
    """The decision about one frame, and what it rests on.

    `score` is `raw_score` aligned over all groups of products; `p_value` is the share of good parts that score at least
    as high. `scene` says that not only the part may be to blame.
    """

    SCHEMA: ClassVar[int] = 1

    decided_at: TimeNs
    model_version: str
    group: int
    raw_score: float
    score: float
    p_value: float
    decision: Decision
    regions: Annotated[tuple[Region, ...], Items(REGION_LIMIT)]
    timings: Timings
    part: str | None = None
    view: str | None = None
    lot: str | None = None
    scene: Scene | None = None


@dataclass(frozen=True)
class Defect(_OfCapture):
    """The regions of one frame that was not accepted; none when the workers had no time to describe it.

    `heatmap` is the anomaly map of the frame, smaller than the image of `height` x `width` pixels.
    """

    SCHEMA: ClassVar[int] = 1

    model_version: str
    group: int
    score: float
    p_value: float
    decision: Decision
    height: int
    width: int
    embedding_version: str
    heatmap: Tensor
    regions: Annotated[tuple[DefectRegion, ...], Items(REGION_LIMIT)]
    part: str | None = None
    lot: str | None = None


@dataclass(frozen=True)
class ClassEvent(Limited):
    """A change of a defect class, with its whole state afterwards: the topic keeps the last event of each class.

    `selected` counts the members that a person has picked out, of a class that was split off by hand.
    """

    SCHEMA: ClassVar[int] = 1

    event_id: str
    class_id: str
    transition: Transition
    at: TimeNs
    round: int
    state: ClassState
    members: int
    name: str | None = None
    severity: str | None = None
    parents: tuple[str, ...] = ()
    merged_into: str | None = None
    who: str | None = None
    why: Prose | None = None
    selected: int = 0


class Judgement(StrEnum):
    """What a person says of a frame."""

    REAL = "real"
    """It shows a defect."""
    FALSE = "false"
    """It shows none."""
    UNSURE = "unsure"
    """The picture does not tell."""


@dataclass(frozen=True)
class JudgementEvent(Limited):
    """What people say of a frame from now on: the topic keeps the last event of each frame.

    `judgement` is None when all that was said has been taken back. `is_offered` says that the frame came from a queue:
    one that a person looked up tells nothing of the others. `who` is the person who judged, or took back, at `at`.
    """

    SCHEMA: ClassVar[int] = 1

    event_id: str
    frame_id: str
    camera: str
    captured_at: TimeNs
    decision: Decision
    model_version: str
    judgement: Judgement | None
    is_offered: bool
    who: str
    at: TimeNs
    why: Prose | None = None


@dataclass(frozen=True)
class DeadLetter(Limited):
    """A record that could not be processed: where it was, its original key, value and headers, and the reason."""

    SCHEMA: ClassVar[int] = 1

    reason: DeadLetterReason
    error: Prose
    topic: str
    partition: Count
    offset: Count
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...]
    at: TimeNs
    frame_id: str | None = None


@dataclass(frozen=True)
class ModelPointer(Limited):
    """The model artefact that plays a role (`active`, `shadow`), and who published it."""

    SCHEMA: ClassVar[int] = 1

    role: str
    version: str
    uri: ModelUri
    published_at: TimeNs
    by: str | None = None


@dataclass(frozen=True)
class ModelHistory(Limited):
    """The models that played a role before the one that does, the last one first."""

    SCHEMA: ClassVar[int] = 1

    role: str
    models: Annotated[tuple[ModelPointer, ...], Items(MODEL_HISTORY_LIMIT)]


@dataclass(frozen=True)
class ModelReport(Limited):
    """What one actor runs, as its supervisor last heard: the actor's name in the consumer group, host and process.

    A model is `None` while none is in use. The problem says why a wanted model is not in use.
    """

    SCHEMA: ClassVar[int] = 1

    member: str
    host: str
    pid: Count
    at: TimeNs
    active: RunningModel | None
    shadow: RunningModel | None
    problem: Prose | None = None


@dataclass(frozen=True)
class ShadowVerdict(_OfCapture):
    """What the shadow model would have decided about a frame, beside what the active one has decided.

    `partition` and `offset` are the frame's place in the topic `frames`.
    """

    SCHEMA: ClassVar[int] = 1

    scored_at: TimeNs
    partition: Count
    offset: Count
    model_version: str
    score: float
    p_value: float
    decision: Decision
    active_version: str
    active_score: float
    active_decision: Decision
    part: str | None = None


@dataclass(frozen=True)
class CameraPartition(Limited):
    """The partition of a camera in the per-camera topics, which it keeps for good."""

    SCHEMA: ClassVar[int] = 1

    camera: CameraName
    partition: Count
    assigned_at: TimeNs


@dataclass(frozen=True)
class LedgerEntry(Limited):
    """How far a camera has captured in one epoch, and what was dropped since the last entry.

    `captured` is the number of captures so far, which is also the next sequence; `closed` means that the epoch ended.
    When a later process closes it, it is not `exact`: one that was killed may have captured more than it could note.
    """

    SCHEMA: ClassVar[int] = 1

    camera: CameraName
    epoch: TimeMs
    captured: Sequence
    dropped: tuple[DroppedRange, ...]
    at: TimeNs
    closed: bool = False
    exact: bool = True


@dataclass(frozen=True)
class ExpiredFrames(Limited):
    """A worker's report that frames of a camera may have been deleted from the topic `frames` before it read them.

    Captures from `epoch`, `sequence` on, which follows the last finished frame of the camera, are gone when they have
    no outcome, up to the next capture that has one; 0, 0 when no frame of the camera was finished before. Of
    `partition` the offsets from `first_offset` to `stop_offset - 1` are deleted.
    """

    SCHEMA: ClassVar[int] = 1

    camera: CameraName
    epoch: TimeMs
    sequence: Sequence
    partition: Count
    first_offset: Count
    stop_offset: Count
    at: TimeNs


@dataclass(frozen=True)
class ReadPosition(Limited):
    """How far a partition is read: to before `offset`.

    `last_offset`, `last_timestamp` (milliseconds UTC) and `last_checksum` (CRC-32C of the value) are of the last record
    that was read; -1, -1 and 0 before the first one.
    """

    topic: str
    partition: Count
    offset: Count
    last_offset: int = -1
    last_timestamp: int = -1
    last_checksum: Crc = 0


@dataclass(frozen=True)
class LedgerSnapshot(Limited):
    """The accounting of all records before `positions`; `state` is what the ledger knows, `checksum` its CRC-32C."""

    SCHEMA: ClassVar[int] = 1

    at: TimeNs
    positions: tuple[ReadPosition, ...]
    state: bytes = field(repr=False)
    checksum: Crc


Message = (
    Frame
    | Verdict
    | Defect
    | ClassEvent
    | JudgementEvent
    | DeadLetter
    | ModelPointer
    | ModelHistory
    | ModelReport
    | ShadowVerdict
    | LedgerEntry
    | ExpiredFrames
    | LedgerSnapshot
    | CameraPartition
)
M = TypeVar("M", bound=Message)


# Encoding


def type_name(cls: type) -> str:
    """Return the name of a message type on the wire: `LedgerEntry` is `ledger-entry`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()


FRAME_OFFSET = "frame-offset"
"""Header of a verdict: the offset of its frame in the partition of `frames` with the same number."""


def headers(message: Message) -> list[tuple[str, bytes]]:
    """Return the Kafka headers of a message: its schema and, where it has one, its frame id."""
    result = [("schema", f"{type_name(type(message))}/{message.SCHEMA}".encode())]
    identity = getattr(message, "frame_id", None)
    return [*result, ("frame-id", identity.encode())] if identity else result


def encode(message: Message) -> bytes:
    """Return a message as msgpack bytes."""
    return msgpack.packb({"t": type_name(type(message)), "v": message.SCHEMA, **_to_plain(message)}, use_bin_type=True)


def _to_plain(value: Any) -> Any:
    """Return a dataclass as maps, lists and scalars, which msgpack knows; enums become their text."""
    if is_dataclass(value):
        return {item.name: _to_plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple):
        return [_to_plain(item) for item in value]
    return str(value) if isinstance(value, StrEnum) else value


# Decoding


class SchemaError(FlawlineError):
    """A value is no message of the expected type and version; `reason` is the one that its dead letter gives."""

    def __init__(self, reason: DeadLetterReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def decode(cls: type[M], data: bytes) -> M:
    """Return the message of type `cls` in `data`.

    Raises SchemaError with the reason `wrong-schema` (another type or a newer version) or `undecodable` (all else).
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
    if kind != type_name(cls) or type(version) is not int or not 1 <= version <= cls.SCHEMA:
        schema = ascii(f"{kind}/{version}")[1:-1][:80]  # a foreign value must not break the line of the error
        raise SchemaError(
            DeadLetterReason.WRONG_SCHEMA,
            f"schema {schema} is not {type_name(cls)}/{cls.SCHEMA}, the newest that is read here: upgrade the reader",
        )
    try:
        return _from_plain(cls, plain, type_name(cls))
    except (TypeError, ValueError) as error:
        raise SchemaError(DeadLetterReason.UNDECODABLE, NAME.fitted(f"{type_name(cls)}: {error}")) from error


def _from_plain(expected: Any, value: Any, where: str) -> Any:
    """Return `value` as `expected`: a dataclass, enum, tuple, optional or scalar, the types that messages are made of.

    Raises TypeError or ValueError, which name the place of what does not fit: `where`, then dotted field names.
    """
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if is_optional(expected):
        return None if value is None else _from_plain(arguments[0], value, where)
    if origin is tuple:
        if not isinstance(value, tuple):
            raise TypeError(f"{where} is no list")
        item_types = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(item_types) != len(value):
            raise ValueError(f"{where} has {len(value)} items instead of {len(item_types)}")
        return tuple(_from_plain(kind, item, where) for kind, item in zip(item_types, value, strict=True))
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
    field_types = _field_types(cls)
    if missing := _required(cls) - value.keys():
        raise ValueError(f"{where} lacks the field {min(missing)!r}")
    return cls(
        **{
            name: _from_plain(field_types[name], item, f"{where}.{name}")
            for name, item in value.items()
            if name in field_types
        }
    )


@cache
def _field_types(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {item.name: hints[item.name] for item in fields(cls)}


@cache
def _required(cls: type) -> frozenset[str]:
    return frozenset(item.name for item in fields(cls) if item.default is MISSING)
