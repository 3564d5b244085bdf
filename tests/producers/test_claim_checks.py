"""Claim checks: when a producer makes a store, and what keeps the objects of waiting frames young."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flawline.errors import UsageError
from flawline.messages import Codec, Frame
from flawline.object_store import FRESH_S, MARKER, Marker, ObjectStore, StoreAway, object_store
from flawline.settings.tree import Settings
from producers.claim_checks import NOTE, ClaimChecks, Note, Opening, create, opening
from producers.framing import to_frame
from tests.producers.doubles import FakeClock, capture

SEEN = Marker("a1", "line-1")
OTHER = Marker("b2", "line-1")


@pytest.mark.parametrize(
    ("seen", "marker", "is_empty", "expected"),
    [
        (None, None, True, Opening.CREATE),
        (None, None, False, Opening.WAIT),  # somebody's files
        ("a1", None, True, Opening.WAIT),  # not mounted
        ("a1", None, False, Opening.WAIT),
        (None, SEEN, False, Opening.USE),
        ("a1", SEEN, False, Opening.USE),
        ("a1", OTHER, False, Opening.WAIT),
    ],
)
def test_store_is_made_only_where_none_was_seen_and_nothing_lies(
    seen: str | None, marker: Marker | None, is_empty: bool, expected: Opening
) -> None:
    assert opening(seen, marker, is_empty) is expected


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        frames={"objects_url": f"file://{tmp_path}/objects", "inline_limit_bytes": 100},
        cameras=[{"kind": "folder", "name": "cam", "path": tmp_path}],
    )


@pytest.fixture
def store(settings: Settings) -> ObjectStore:
    store = object_store(settings)
    assert store is not None
    return store


def frame(settings: Settings, seed: int = 0) -> Frame:
    made = to_frame(capture(seed), settings.cameras[0], 1, seed)
    assert made.codec in (Codec.JPEG, Codec.PNG) and made.size_bytes > 100
    return made


def test_small_frame_stays_in_its_record_and_asks_no_store(settings: Settings, store: ObjectStore) -> None:
    small = replace(frame(settings), data=b"x", size_bytes=1)
    assert ClaimChecks(settings).check(small)[0] is small
    assert not Path(store.root).exists()


def test_first_large_frame_makes_the_store_and_its_object_holds_the_bytes(
    settings: Settings, store: ObjectStore
) -> None:
    large = frame(settings)
    claimed, _ = ClaimChecks(settings).check(large)
    assert claimed.object_key and claimed == replace(large, data=b"", object_key=claimed.object_key)
    assert store.get(claimed.object_key, large.size_bytes) == large.data


def test_store_that_was_seen_is_not_made_anew_until_a_person_says_so(
    settings: Settings, store: ObjectStore, tmp_path: Path
) -> None:
    ClaimChecks(settings).check(frame(settings))
    Path(store.root).rename(tmp_path / "aside")
    started_again = ClaimChecks(settings)
    for _ in range(2):
        with pytest.raises(StoreAway, match="flawline objects create"):
            started_again.check(frame(settings))
    assert not Path(store.root).exists()
    create(object_store(settings), Note(settings.data_dir))
    assert started_again.check(frame(settings))[0].object_key
    assert (Path(store.root) / MARKER).is_file()


def test_another_store_in_the_place_of_the_one_that_was_seen_is_refused(
    settings: Settings, store: ObjectStore, tmp_path: Path
) -> None:
    ClaimChecks(settings).check(frame(settings))
    Path(store.root).rename(tmp_path / "aside")
    object_store(settings).create()
    with pytest.raises(StoreAway, match="another store"):
        ClaimChecks(settings).check(frame(settings))
    (tmp_path / "data" / NOTE).write_text("{")
    with pytest.raises(StoreAway, match="correct it or remove it"):
        ClaimChecks(settings).check(frame(settings))


def test_object_of_a_frame_that_waits_for_its_acknowledgement_is_written_again(
    settings: Settings, store: ObjectStore
) -> None:
    clock = FakeClock()
    checks = ClaimChecks(settings, clock)
    waiting, settled = checks.check(frame(settings, 1))
    done, done_settled = checks.check(frame(settings, 2))
    done_settled("acknowledged")
    for claimed in (waiting, done):
        store.remove(claimed.object_key)
    clock.advance(FRESH_S)
    checks.refresh()
    assert list(store.objects()) == []
    clock.advance(1)
    checks.refresh()
    assert [stored.key for stored in store.objects()] == [waiting.object_key]
    settled("acknowledged")
    store.remove(waiting.object_key)
    clock.advance(2 * FRESH_S)
    checks.refresh()
    assert list(store.objects()) == []


def test_store_whose_library_is_missing_is_away_for_large_frames_and_small_ones_go(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    settings.frames.objects_url = "s3://bucket/objects"
    checks = ClaimChecks(settings)
    small = replace(frame(settings), data=b"x", size_bytes=1)
    assert checks.check(small)[0] is small
    with pytest.raises(StoreAway, match=r"frames\.objects_url 's3://bucket/objects' cannot be used.*s3fs"):
        checks.check(frame(settings))
    settings.frames.objects_url = "nonsense://bucket"
    with pytest.raises(UsageError, match="nonsense"):
        ClaimChecks(settings)
