"""The claim check store gives back exactly what was put, or says that it cannot."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flawline.errors import UsageError
from flawline.object_store import FRESH_S, MARKER, MissingObjectError, ObjectStore, StoreAway
from tests.support.folders import remove, replace_by_a_file, unmount

LINE = "line-1"


@pytest.fixture(params=["directory", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    made = ObjectStore(f"file://{tmp_path}/objects" if request.param == "directory" else f"memory://{tmp_path}", LINE)
    made.create()
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a store."""
    ObjectStore(f"file://{tmp_path}/objects", LINE).create()
    return tmp_path / "objects"


def store_in(folder: Path, line: str = LINE) -> ObjectStore:
    return ObjectStore(f"file://{folder}", line)


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_object_is_found_by_the_hash_of_its_content(store: ObjectStore, data: bytes) -> None:
    key = store.put(data)
    assert key == hashlib.sha256(data).hexdigest()
    assert store.put(data) == key
    assert store.get(key, len(data)) == data


def test_absent_object_is_missing(store: ObjectStore) -> None:
    with pytest.raises(MissingObjectError, match="a" * 64):
        store.get("a" * 64, 3)


def test_object_of_another_size_is_missing(store: ObjectStore) -> None:
    with pytest.raises(MissingObjectError, match="3 bytes instead of 4"):
        store.get(store.put(b"abc"), 4)


def test_altered_object_is_missing(folder: Path) -> None:
    store = store_in(folder)
    key = store.put(b"abc")
    (folder / key[:2] / key).write_bytes(b"abd")
    with pytest.raises(MissingObjectError, match="altered"):
        store.get(key, 3)


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "A" * 64, "a" * 63, "/" + "a" * 63])
def test_key_that_is_no_hash_never_becomes_a_path(store: ObjectStore, key: str) -> None:
    with pytest.raises(MissingObjectError, match="no SHA-256"):
        store.get(key, 1)


def test_many_writers_of_the_same_object_agree(folder: Path) -> None:
    store, data = store_in(folder), bytes(200_000)
    errors: list[Exception] = []

    def put() -> None:
        try:
            store.put(data)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.get(hashlib.sha256(data).hexdigest(), len(data)) == data
    assert [path for path in folder.rglob("*") if path.suffix == ".part"] == []


def test_check_leaves_nothing_behind(folder: Path) -> None:
    store_in(folder).check()
    assert [path.name for path in folder.rglob("*") if path.is_file()] == [MARKER]


def test_unknown_protocol_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="nosuch"):
        ObjectStore("nosuch://bucket", LINE)


class EndpointConnectionError(Exception):
    """What a bucket's library raises: no OSError."""


@pytest.mark.parametrize("operation", ["put", "get", "check"])
def test_error_of_a_bucket_library_means_that_the_store_is_away(
    operation: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_in(folder)

    def refuse(*_: object, **__: object) -> None:
        raise EndpointConnectionError("could not connect to the endpoint")

    for name in ("info", "size"):
        monkeypatch.setattr(store._filesystem, name, refuse)
    calls = {"put": lambda: store.put(b"abc"), "get": lambda: store.get("a" * 64, 3), "check": store.check}
    with pytest.raises(StoreAway, match="EndpointConnectionError: could not connect"):
        calls[operation]()


# A store that is not there


def _put_another_in_its_place(folder: Path) -> None:
    remove(folder)
    store_in(folder).create()


def _bring_back(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)
    folder.unlink(missing_ok=True)
    folder.with_name("aside").rename(folder)


GOINGS: dict[str, Callable[[Path], None]] = {
    "removed": remove,
    "replaced by a file": replace_by_a_file,
    "replaced by an empty folder": unmount,
    "replaced by another store": _put_another_in_its_place,
}


@pytest.mark.parametrize("going", GOINGS)
def test_store_that_goes_away_is_an_outage_for_put_and_get_and_works_when_it_is_back(going: str, folder: Path) -> None:
    store = store_in(folder)
    key = store.put(b"abc")
    GOINGS[going](folder)
    for _ in range(2):
        with pytest.raises(StoreAway) as away:
            store.get(key, 3)
        assert "\n" not in str(away.value) and str(folder) in str(away.value)
        with pytest.raises(StoreAway):
            store.put(b"abcd")
    if going != "replaced by another store":
        with pytest.raises(StoreAway):
            store_in(folder).get(key, 3)  # as a process does that starts now
    written = [path.name for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    assert written in ([], [MARKER]), "nothing is written below the place of a volume"
    _bring_back(folder)
    assert store.get(key, 3) == b"abc"
    assert store.get(store.put(b"abcd"), 4) == b"abcd"
    with pytest.raises(MissingObjectError):
        store.get("a" * 64, 3)


def test_volume_that_goes_away_during_a_write_costs_the_write_and_not_the_object(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_in(folder)
    write = store._write

    def unmount_and_write(path: str, data: bytes) -> None:
        unmount(folder)
        write(path, data)

    monkeypatch.setattr(store, "_write", unmount_and_write)
    with pytest.raises(StoreAway, match=MARKER):
        store.put(b"abc")


@contextmanager
def without_permission(folder: Path) -> Iterator[None]:
    """Be, for a while, someone who may not enter a folder; root may enter all, so it becomes another user."""
    folder.chmod(0o000)
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.seteuid(65_534)
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o750)


def test_permission_that_is_taken_away_is_an_outage() -> None:
    above = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users as a whole
    try:
        above.chmod(0o755)
        folder = above / "objects"
        store = store_in(folder)
        store.create()
        key = store.put(b"abc")
        with without_permission(folder):
            with pytest.raises(StoreAway, match=r"PermissionError.*check its rights"):
                store.get(key, 3)
            with pytest.raises(StoreAway, match="PermissionError"):
                store.put(b"abcd")
        assert store.get(key, 3) == b"abc"
    finally:
        shutil.rmtree(above)


def test_store_that_was_never_made_is_away_and_is_not_made_by_a_put(tmp_path: Path) -> None:
    store = store_in(tmp_path / "objects")
    for call in (lambda: store.put(b"abc"), lambda: store.get("a" * 64, 3), store.check, store.now_s):
        with pytest.raises(StoreAway, match="flawline objects create"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_store_of_another_line_is_refused(folder: Path) -> None:
    with pytest.raises(StoreAway, match="belongs to line 'line-1', this is 'line-2'"):
        store_in(folder, "line-2").put(b"abc")


def test_damaged_marker_is_an_outage(folder: Path) -> None:
    (folder / MARKER).write_text("{")
    with pytest.raises(StoreAway, match="damaged"):
        store_in(folder).put(b"abc")


def test_stores_that_are_made_at_the_same_moment_are_one_store(tmp_path: Path) -> None:
    ids: list[str] = []
    threads = [
        threading.Thread(target=lambda: ids.append(store_in(tmp_path / "objects").create().id)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8 and len(set(ids)) == 1


@pytest.mark.parametrize("content", [(), ("lost+found",)])
def test_place_without_objects_is_empty(tmp_path: Path, content: tuple[str, ...]) -> None:
    for name in content:
        (tmp_path / "objects" / name).mkdir(parents=True)
    assert store_in(tmp_path / "objects").is_empty()
    (tmp_path / "objects").mkdir(exist_ok=True)
    (tmp_path / "objects" / "somebody's").touch()
    assert not store_in(tmp_path / "objects").is_empty()


# Age


def test_object_that_is_put_again_when_it_is_old_becomes_new(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = store.put(b"abc")
    [before] = store.objects()
    store.put(b"abc")
    assert list(store.objects()) == [before]
    monkeypatch.setattr("flawline.object_store.time.time", lambda: before.written_at_s + FRESH_S)
    store.put(b"abc")
    [after] = store.objects()
    assert (after.key, after.size_bytes) == (key, 3)
    assert after.written_at_s > before.written_at_s


def test_object_is_removed_unless_it_was_written_since(store: ObjectStore) -> None:
    key = store.put(b"abc")
    [listed] = store.objects()
    assert not store.remove(key, written_before_s=listed.written_at_s)
    assert store.get(key, 3) == b"abc"
    assert store.remove(key, written_before_s=listed.written_at_s + 1)
    assert list(store.objects()) == []
    assert store.remove(key)


def test_clock_of_the_store_goes_with_its_objects(store: ObjectStore) -> None:
    store.put(b"abc")
    [listed] = store.objects()
    assert 0 <= store.now_s() - listed.written_at_s < 60
