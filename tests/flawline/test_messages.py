"""Every message comes back from the wire as it was, and only a message does."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawline import messages
from flawline.messages import (
    CameraPartition,
    ClassEvent,
    ClassState,
    Codec,
    DeadLetter,
    DeadLetterReason,
    Decision,
    Defect,
    DefectRegion,
    DroppedRange,
    DropReason,
    Frame,
    LedgerEntry,
    ModelPointer,
    Region,
    SchemaError,
    Tensor,
    Timings,
    Transition,
    Verdict,
    decode,
    encode,
)

TYPES = (Frame, Verdict, Defect, ClassEvent, DeadLetter, ModelPointer, LedgerEntry, CameraPartition)

camera = st.from_regex(messages.CAMERA_NAME, fullmatch=True)
number = st.integers(0, (1 << 63) - 1)
integer = st.integers(-(1 << 63), (1 << 63) - 1)
real = st.floats(allow_nan=False)
text = st.text(max_size=20)
maybe_text = st.none() | text
data = st.binary(max_size=64)
box = st.tuples(integer, integer, integer, integer)
identity = {"camera": camera, "epoch": number, "sequence": number}


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    dtype = draw(st.sampled_from(sorted(Tensor.DTYPES)))
    return Tensor(dtype, shape, bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize))


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    codec = draw(st.sampled_from(Codec))
    height, width, channels = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.sampled_from([1, 3, 4]))
    size = height * width * channels
    body = draw(st.binary(min_size=size, max_size=size) if codec is Codec.RAW else data)
    by_claim_check = draw(st.booleans())
    return Frame(
        **{name: draw(strategy) for name, strategy in identity.items()},
        captured_at=draw(integer),
        codec=codec,
        height=height,
        width=width,
        channels=channels,
        data=b"" if by_claim_check else body,
        checksum=draw(number),
        size_bytes=len(body),
        object_key=draw(text) if by_claim_check else None,
        **{name: draw(maybe_text) for name in ("part", "view", "lot", "trigger")},
    )


dropped = st.tuples(number, number, st.sampled_from(DropReason)).map(
    lambda item: DroppedRange(min(item[:2]), max(item[:2]), item[2])
)
regions = st.builds(Region, box, integer, real)
defect_regions = st.builds(DefectRegion, box, integer, real, box, data, data, tensors())

ANY: dict[type, st.SearchStrategy[Any]] = {
    Frame: frames(),
    Verdict: st.builds(
        Verdict,
        **identity,
        captured_at=integer,
        decided_at=integer,
        model_version=text,
        group=integer,
        raw_score=real,
        score=real,
        p_value=real,
        decision=st.sampled_from(Decision),
        regions=st.lists(regions, max_size=3).map(tuple),
        timings=st.builds(Timings, real, real, real, real),
        part=maybe_text,
        view=maybe_text,
        lot=maybe_text,
    ),
    Defect: st.builds(
        Defect,
        **identity,
        captured_at=integer,
        model_version=text,
        group=integer,
        score=real,
        p_value=real,
        decision=st.sampled_from(Decision),
        height=integer,
        width=integer,
        embedding_version=text,
        heatmap=tensors(),
        regions=st.lists(defect_regions, max_size=2).map(tuple),
        part=maybe_text,
        lot=maybe_text,
    ),
    ClassEvent: st.builds(
        ClassEvent,
        event_id=text,
        class_id=text,
        transition=st.sampled_from(Transition),
        at=integer,
        round=integer,
        state=st.sampled_from(ClassState),
        members=integer,
        name=maybe_text,
        severity=maybe_text,
        parents=st.lists(text, max_size=3).map(tuple),
        merged_into=maybe_text,
        who=maybe_text,
        why=maybe_text,
    ),
    DeadLetter: st.builds(
        DeadLetter,
        reason=st.sampled_from(DeadLetterReason),
        error=text,
        topic=text,
        partition=integer,
        offset=integer,
        key=st.none() | data,
        value=data,
        headers=st.lists(st.tuples(text, data), max_size=3).map(tuple),
        at=integer,
        frame_id=maybe_text,
    ),
    ModelPointer: st.builds(ModelPointer, role=text, version=text, uri=text, published_at=integer, by=maybe_text),
    CameraPartition: st.builds(CameraPartition, camera=camera, partition=number, assigned_at=integer),
    LedgerEntry: st.builds(
        LedgerEntry,
        camera=camera,
        epoch=number,
        captured=number,
        dropped=st.lists(dropped, max_size=4).map(tuple),
        at=integer,
        closed=st.booleans(),
    ),
}
any_message = st.one_of(*ANY.values())


def test_every_message_type_has_a_strategy() -> None:
    assert set(ANY) == set(TYPES) == set(messages.Message.__args__)


@pytest.mark.parametrize("cls", TYPES)
def test_message_survives_the_wire(cls: type) -> None:
    @given(ANY[cls])
    @settings(max_examples=60)
    def check(message: Any) -> None:
        assert decode(cls, encode(message)) == message

    check()


@pytest.mark.parametrize("cls", TYPES)
def test_next_schema_version_is_a_clear_error(cls: type, monkeypatch: pytest.MonkeyPatch) -> None:
    message = example(cls)
    version = cls.SCHEMA
    monkeypatch.setattr(cls, "SCHEMA", version + 1)
    newer = encode(message)
    monkeypatch.setattr(cls, "SCHEMA", version)
    with pytest.raises(SchemaError, match=rf"{messages.type_name(cls)}/{version + 1} is not .*upgrade") as caught:
        decode(cls, newer)
    assert caught.value.reason is DeadLetterReason.WRONG_SCHEMA


@pytest.mark.parametrize("cls", TYPES)
@pytest.mark.parametrize("other", TYPES)
def test_message_of_another_type_is_wrong_schema(cls: type, other: type) -> None:
    if cls is other:
        assert decode(cls, encode(example(cls))) == example(cls)
        return
    with pytest.raises(SchemaError) as caught:
        decode(cls, encode(example(other)))
    assert caught.value.reason is DeadLetterReason.WRONG_SCHEMA


@given(any_message, st.data())
def test_truncated_message_is_a_schema_error(message: Any, draw: st.DataObject) -> None:
    whole = encode(message)
    cut = draw.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(SchemaError) as caught:
        decode(type(message), whole[:cut])
    assert caught.value.reason is DeadLetterReason.UNDECODABLE


@given(any_message, st.data())
@settings(max_examples=300)
def test_damaged_message_is_a_message_or_a_schema_error_and_nothing_else(message: Any, draw: st.DataObject) -> None:
    whole = bytearray(encode(message))
    for _ in range(draw.draw(st.integers(1, 4))):
        whole[draw.draw(st.integers(0, len(whole) - 1))] = draw.draw(st.integers(0, 255))
    try:
        assert isinstance(decode(type(message), bytes(whole)), type(message))
    except SchemaError as error:
        assert "\n" not in str(error)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_schema_error(content: bytes) -> None:
    for cls in TYPES:
        with pytest.raises(SchemaError):
            decode(cls, content)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=8) | data,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(TYPES), st.data())
@settings(max_examples=300)
def test_wrong_value_in_any_field_is_a_message_or_a_schema_error(cls: type, draw: st.DataObject) -> None:
    content = msgpack.unpackb(encode(example(cls)))
    content[draw.draw(st.sampled_from(sorted(content)))] = draw.draw(plain)
    try:
        assert isinstance(decode(cls, msgpack.packb(content)), cls)
    except SchemaError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("cls", TYPES)
def test_unknown_and_missing_fields_are_named(cls: type) -> None:
    content = msgpack.unpackb(encode(example(cls)))
    with pytest.raises(SchemaError, match="unknown field 'colour'"):
        decode(cls, msgpack.packb(content | {"colour": 1}))
    name = fields(cls)[0].name
    content.pop(name)
    with pytest.raises(SchemaError, match=f"lacks the field '{name}'"):
        decode(cls, msgpack.packb(content))


@pytest.mark.parametrize("nested", ["[" * 2000, "{" * 2000])
def test_deeply_nested_bytes_are_a_schema_error(nested: str) -> None:
    byte = b"\x91" if nested[0] == "[" else b"\x81\xa1a"
    with pytest.raises(SchemaError):
        decode(Frame, byte * len(nested))


@pytest.mark.parametrize(
    "change",
    [
        {"height": 0},
        {"width": messages.MAX_SIDE_PX + 1},
        {"channels": 2},
        {"camera": "no spaces"},
        {"sequence": -1},
        {"size_bytes": 5},
        {"codec": Codec.RAW},
    ],
)
def test_impossible_frame_cannot_be_made_nor_decoded(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        replace(example(Frame), **change)
    content = msgpack.unpackb(encode(example(Frame))) | {
        key: str(v) if key == "codec" else v for key, v in change.items()
    }
    with pytest.raises(SchemaError) as caught:
        decode(Frame, msgpack.packb(content))
    assert caught.value.reason is DeadLetterReason.UNDECODABLE


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [("float64", (1,), 8), ("float16", (2, 2), 7), ("uint8", (-1, -1), 1), ("uint8", (1 << 40,), 3)],
)
def test_tensor_whose_bytes_do_not_fit_is_refused(dtype: str, shape: tuple[int, ...], size: int) -> None:
    with pytest.raises(ValueError, match="tensor"):
        Tensor(dtype, shape, bytes(size))


def test_tensor_gives_its_array_back() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(Tensor.of(array, "float32").array(), array)


@given(camera, number, number)
def test_frame_id_names_exactly_one_capture(name: str, epoch: int, sequence: int) -> None:
    assert messages.parse_frame_id(messages.frame_id(name, epoch, sequence)) == (name, epoch, sequence)


@pytest.mark.parametrize("wrong", ["", "a", "a:1", "a:1:2:3", "a b:1:2", "a:-1:2", "a:x:2", "a:1:99999999999999999999"])
def test_malformed_frame_id_is_a_value_error(wrong: str) -> None:
    with pytest.raises(ValueError):
        messages.parse_frame_id(wrong)


@pytest.mark.parametrize("cls", TYPES)
def test_headers_name_schema_and_frame_without_opening_the_value(cls: type) -> None:
    message = example(cls)
    sent = dict(messages.headers(message))
    assert sent["schema"] == f"{messages.type_name(cls)}/{cls.SCHEMA}".encode()
    expected = getattr(message, "frame_id", None)
    assert sent.get("frame-id") == (expected.encode() if expected else None)


def example(cls: type) -> Any:
    """Return the same message of a type each time."""
    ident = {"camera": "cam-1", "epoch": 1, "sequence": 2}
    judged = {"captured_at": 3, "model_version": "m", "group": 0, "score": 1.0, "p_value": 0.5}
    made = {
        Frame: lambda: Frame(
            **ident,
            captured_at=3,
            codec=Codec.PNG,
            height=1,
            width=2,
            channels=3,
            data=b"abcd",
            checksum=1,
            size_bytes=4,
        ),
        Verdict: lambda: Verdict(
            **ident,
            **judged,
            decided_at=4,
            raw_score=0.1,
            decision=Decision.REJECT,
            regions=(Region((1, 2, 3, 4), 12, 0.5),),
            timings=Timings(0.1, 0.2, 0.3, 0.4),
        ),
        Defect: lambda: Defect(
            **ident,
            **judged,
            decision=Decision.REJECT,
            height=4,
            width=4,
            embedding_version="e",
            heatmap=Tensor("float16", (1, 1), b"ab"),
            regions=(
                DefectRegion((0, 0, 2, 2), 4, 0.5, (0, 0, 4, 4), b"mask", b"crop", Tensor("float16", (1,), b"ab")),
            ),
        ),
        ClassEvent: lambda: ClassEvent("e1", "c1", Transition.BORN, 1, 2, ClassState.CANDIDATE, 10, parents=("c0",)),
        DeadLetter: lambda: DeadLetter(
            DeadLetterReason.CHECKSUM,
            "why",
            "frames",
            0,
            7,
            b"cam-1",
            b"value",
            (("h", b"v"),),
            9,
            frame_id="cam-1:1:2",
        ),
        ModelPointer: lambda: ModelPointer("active", "v1", "/models/v1", 5),
        CameraPartition: lambda: CameraPartition("cam-1", 3, 8),
        LedgerEntry: lambda: LedgerEntry("cam-1", 1, 9, (DroppedRange(3, 4, DropReason.OVERSIZE),), 8),
    }
    return made[cls]()
