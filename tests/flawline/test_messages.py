"""Every message comes back from the wire as it was, and only a message does."""

from __future__ import annotations

import json
import typing
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawline import field_limits, messages
from flawline.field_limits import LAST_MS
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
    ExpiredFrames,
    Frame,
    Judgement,
    JudgementEvent,
    LedgerEntry,
    LedgerSnapshot,
    ModelHistory,
    ModelPointer,
    ModelReport,
    ReadPosition,
    Region,
    RunningModel,
    Scene,
    SchemaError,
    ShadowVerdict,
    Tensor,
    Timings,
    Transition,
    Verdict,
    decode,
    encode,
)
from tests.support.example_messages import example

TYPES = (
    Frame,
    Verdict,
    Defect,
    ClassEvent,
    JudgementEvent,
    DeadLetter,
    ModelPointer,
    ModelHistory,
    ModelReport,
    ShadowVerdict,
    LedgerEntry,
    ExpiredFrames,
    LedgerSnapshot,
    CameraPartition,
)

camera = st.from_regex(messages.CAMERA_NAME, fullmatch=True)
number = st.integers(0, (1 << 63) - 1)
sequence = st.integers(0, messages.LAST_SEQUENCE)
time_ms = st.integers(0, LAST_MS)
time_ns = st.integers(0, LAST_MS * 1_000_000)
integer = st.integers(-(1 << 63), (1 << 63) - 1)
real = st.floats(allow_nan=False)
text = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]), max_size=20)
uri = st.from_regex(r"(file://|s3://|)[a-z0-9/._ -]{1,40}", fullmatch=True)
maybe_text = st.none() | text
data = st.binary(max_size=64)
box = st.tuples(integer, integer, integer, integer)
identity = {"camera": camera, "epoch": time_ms, "sequence": sequence}


crc = st.integers(0, (1 << 32) - 1)
read_position = st.builds(
    ReadPosition,
    topic=text,
    partition=number,
    offset=number,
    last_offset=integer,
    last_timestamp=integer,
    last_checksum=crc,
)


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
        captured_at=draw(time_ns),
        codec=codec,
        height=height,
        width=width,
        channels=channels,
        data=b"" if by_claim_check else body,
        checksum=draw(st.integers(0, (1 << 32) - 1)),
        size_bytes=len(body),
        object_key=draw(st.binary(min_size=32, max_size=32)).hex() if by_claim_check else None,
        **{name: draw(maybe_text) for name in ("part", "view", "lot", "trigger")},
    )


dropped = st.tuples(sequence, sequence, st.sampled_from(DropReason)).map(
    lambda item: DroppedRange(min(item[:2]), max(item[:2]), item[2])
)
regions = st.builds(Region, box, number, real)
defect_regions = st.builds(DefectRegion, box, number, real, box, data, data, tensors())

ANY: dict[type, st.SearchStrategy[Any]] = {
    Frame: frames(),
    Verdict: st.builds(
        Verdict,
        **identity,
        captured_at=time_ns,
        decided_at=time_ns,
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
        scene=st.none() | st.sampled_from(Scene),
    ),
    Defect: st.builds(
        Defect,
        **identity,
        captured_at=time_ns,
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
        at=time_ns,
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
    JudgementEvent: st.builds(
        JudgementEvent,
        event_id=text,
        frame_id=text,
        camera=text,
        captured_at=time_ns,
        decision=st.sampled_from(Decision),
        model_version=text,
        judgement=st.sampled_from(Judgement) | st.none(),
        is_offered=st.booleans(),
        who=text,
        at=time_ns,
        why=maybe_text,
    ),
    DeadLetter: st.builds(
        DeadLetter,
        reason=st.sampled_from(DeadLetterReason),
        error=text,
        topic=text,
        partition=number,
        offset=number,
        key=st.none() | data,
        value=data,
        headers=st.lists(st.tuples(text, data), max_size=3).map(tuple),
        at=time_ns,
        frame_id=maybe_text,
    ),
    ModelPointer: st.builds(ModelPointer, role=text, version=text, uri=uri, published_at=time_ns, by=maybe_text),
    ModelHistory: st.builds(
        ModelHistory,
        role=text,
        models=st.lists(st.builds(ModelPointer, text, text, uri, time_ns, maybe_text), max_size=3).map(tuple),
    ),
    ModelReport: st.builds(
        ModelReport,
        member=text,
        host=text,
        pid=number,
        at=time_ns,
        active=st.none() | st.builds(RunningModel, text, time_ns),
        shadow=st.none() | st.builds(RunningModel, text, time_ns),
        problem=maybe_text,
    ),
    ShadowVerdict: st.builds(
        ShadowVerdict,
        **identity,
        captured_at=time_ns,
        scored_at=time_ns,
        partition=number,
        offset=number,
        model_version=text,
        score=real,
        p_value=real,
        decision=st.sampled_from(Decision),
        active_version=text,
        active_score=real,
        active_decision=st.sampled_from(Decision),
        part=maybe_text,
    ),
    CameraPartition: st.builds(CameraPartition, camera=camera, partition=number, assigned_at=time_ns),
    LedgerEntry: st.builds(
        LedgerEntry,
        camera=camera,
        epoch=time_ms,
        captured=sequence,
        dropped=st.lists(dropped, max_size=4).map(tuple),
        at=time_ns,
        closed=st.booleans(),
        exact=st.booleans(),
    ),
    ExpiredFrames: st.builds(
        ExpiredFrames,
        camera=camera,
        epoch=time_ms,
        sequence=sequence,
        partition=number,
        first_offset=number,
        stop_offset=number,
        at=time_ns,
    ),
    LedgerSnapshot: st.builds(
        LedgerSnapshot,
        at=time_ns,
        positions=st.lists(read_position, max_size=3).map(tuple),
        state=data,
        checksum=crc,
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
def test_missing_field_is_named(cls: type) -> None:
    content = msgpack.unpackb(encode(example(cls)))
    name = fields(cls)[0].name
    content.pop(name)
    with pytest.raises(SchemaError, match=f"lacks the field '{name}'"):
        decode(cls, msgpack.packb(content))


# Limits


def parts_of(expected: Any) -> set[type]:
    """Return the dataclasses that a type is made of."""
    if is_dataclass(expected):
        inner = (parts_of(hint) for hint in typing.get_type_hints(expected).values())
        return {expected}.union(*inner)
    return set().union(*(parts_of(item) for item in typing.get_args(expected)))


@pytest.mark.parametrize("cls", sorted(set().union(*map(parts_of, TYPES)), key=lambda cls: cls.__name__))
def test_every_text_and_every_number_of_every_part_has_a_limit(cls: type) -> None:
    assert issubclass(cls, field_limits.Limited)
    hints = typing.get_type_hints(cls)
    names = {item.name for item in fields(cls) if {str, int} & {hints[item.name], *typing.get_args(hints[item.name])}}
    assert names <= {name for name, _ in field_limits.checks(cls)}


@pytest.mark.parametrize("cls", [cls for cls in TYPES if cls is not LedgerSnapshot])  # which has no text
@pytest.mark.parametrize("wrong", ["x" * (1 << 20), "a\x00b", "\ud800"])
def test_text_beyond_its_limit_is_refused_in_every_field_in_one_short_line(cls: type, wrong: str) -> None:
    checked = 0
    hints = typing.get_type_hints(cls)
    for name in (item.name for item in fields(cls) if hints[item.name] in (str, str | None)):
        with pytest.raises(ValueError, match=name):
            replace(example(cls), **{name: wrong})
        content = msgpack.unpackb(encode(example(cls))) | {name: wrong}
        with pytest.raises(SchemaError) as caught:
            decode(cls, msgpack.packb(content, unicode_errors="surrogatepass"))
        assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
        checked += 1
    assert checked


@given(st.text(st.characters()), st.sampled_from([field_limits.NAME, field_limits.PROSE, field_limits.Text(5)]))
def test_a_fitted_text_keeps_its_limit_and_a_text_within_it_stays(value: str, limit: field_limits.Text) -> None:
    fitted = limit.fitted(value)
    limit.check(fitted, "text")
    try:
        limit.check(value, "text")
    except ValueError:
        return
    assert fitted == value


def test_more_regions_than_any_frame_has_are_refused() -> None:
    region = example(Verdict).regions[0]
    with pytest.raises(ValueError, match="regions has 257 items"):
        replace(example(Verdict), regions=(region,) * 257)


# Versions

RECORDS = json.loads((Path(__file__).parent / "records_of_version_1.json").read_text())
"""What the code of before these versions were told apart has written: value and headers of each type of message."""


LATER_FIELDS: dict[type, set[str]] = {LedgerEntry: {"exact"}, ClassEvent: {"selected"}, Verdict: {"scene"}}
"""Fields that came after the first version; readers of before ignore them."""


@pytest.mark.parametrize("cls", TYPES)
def test_records_of_the_first_version_are_read_and_written_as_they_were(cls: type) -> None:
    record = RECORDS.get(messages.type_name(cls))
    if record is None:
        pytest.skip("this type is younger")
    message = decode(cls, bytes.fromhex(record["value"]))
    assert message == example(cls)
    then, today = (msgpack.unpackb(value) for value in (bytes.fromhex(record["value"]), encode(message)))
    assert today == then | {name: today[name] for name in LATER_FIELDS.get(cls, ())}, "readers of before would not know"
    assert [[name, value.decode()] for name, value in messages.headers(message)] == record["headers"]


@pytest.mark.parametrize("cls", TYPES)
def test_a_field_that_is_not_known_is_ignored(cls: type) -> None:
    content = msgpack.unpackb(encode(example(cls))) | {"colour": {"deep": [1, b"2"]}}
    assert decode(cls, msgpack.packb(content)) == example(cls)


def test_a_field_that_is_not_known_is_ignored_in_parts_of_messages_too() -> None:
    content = msgpack.unpackb(encode(example(Verdict)))
    content["regions"][0]["colour"] = content["timings"]["network_s"] = 1.5
    assert decode(Verdict, msgpack.packb(content)) == example(Verdict)


def test_an_older_version_is_read_and_a_later_field_has_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    old = encode(example(LedgerEntry))

    @dataclass(frozen=True)
    class Newer(LedgerEntry):
        SCHEMA: ClassVar[int] = 3
        site: str = "here"

    monkeypatch.setattr(messages, "type_name", lambda cls: "ledger-entry")
    assert decode(Newer, old) == Newer(**vars(example(LedgerEntry)))
    with pytest.raises(SchemaError, match=r"ledger-entry/3 is not ledger-entry/1, the newest .* upgrade the reader"):
        decode(LedgerEntry, encode(decode(Newer, old)))


@pytest.mark.parametrize("version", [0, -1, 2, 1.0, True, "1", None, [1], 1 << 63])
def test_what_is_no_known_version_is_wrong_schema(version: object) -> None:
    content = msgpack.unpackb(encode(example(Frame))) | {"v": version}
    with pytest.raises(SchemaError) as caught:
        decode(Frame, msgpack.packb(content))
    assert caught.value.reason is DeadLetterReason.WRONG_SCHEMA


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
        {"camera": ".."},
        {"camera": "../frames"},
        {"camera": "cam\n1"},
        {"camera": "c" * 65},
        {"sequence": -1},
        {"sequence": messages.LAST_SEQUENCE + 1},
        {"epoch": LAST_MS + 1},
        {"captured_at": -1},
        {"captured_at": LAST_MS * 1_000_000 + 1},
        {"captured_at": (1 << 64) - 1},
        {"checksum": 1 << 32},
        {"part": "p" * 257},
        {"part": "ö" * 129},
        {"lot": "lot\n7"},
        {"view": "top\x00"},
        {"trigger": "\x1b[2J"},
        {"object_key": "../../etc/passwd"},
        {"object_key": "A" * 64},
        {"object_key": "s3://elsewhere/image"},
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
    [
        ("float64", (1,), 8),
        ("float16", (2, 2), 7),
        ("uint8", (-1, -1), 1),
        ("uint8", (1 << 40,), 3),
        ("uint8", (0, 1 << 62), 0),
        ("uint8", (1,) * 65, 1),
    ],
)
def test_tensor_whose_bytes_do_not_fit_is_refused(dtype: str, shape: tuple[int, ...], size: int) -> None:
    with pytest.raises(ValueError, match="tensor"):
        Tensor(dtype, shape, bytes(size))


def test_tensor_gives_its_array_back() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(Tensor.of(array, "float32").array(), array)


@given(camera, time_ms, sequence)
def test_frame_id_names_exactly_one_capture(name: str, epoch: int, sequence: int) -> None:
    assert messages.parse_frame_id(messages.frame_id(name, epoch, sequence)) == (name, epoch, sequence)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "a",
        "a:1",
        "a:1:2:3",
        "a b:1:2",
        "a:-1:2",
        "a:x:2",
        "a:1:99999999999999999999",
        "..:1:2",
        "a:+1:2",
        "a:1_0:2",
        "a:１:2",
        "a: 1:2",
    ],
)
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
