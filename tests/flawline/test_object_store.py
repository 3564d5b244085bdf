"""The claim check store gives back exactly what was put, or says that it cannot."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flawline.errors import UsageError
from flawline.object_store import MissingObjectError, ObjectStore, StoreAway


@pytest.fixture(params=["directory", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return ObjectStore(f"file://{tmp_path}/objects" if request.param == "directory" else f"memory://{tmp_path}")


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
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


def test_altered_object_is_missing(tmp_path: Path) -> None:
    store = ObjectStore(f"file://{tmp_path}")
    key = store.put(b"abc")
    (tmp_path / key[:2] / key).write_bytes(b"abd")
    with pytest.raises(MissingObjectError, match="altered"):
        store.get(key, 3)


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "A" * 64, "a" * 63, "/" + "a" * 63])
def test_key_that_is_no_hash_never_becomes_a_path(store: ObjectStore, key: str) -> None:
    with pytest.raises(MissingObjectError, match="no SHA-256"):
        store.get(key, 1)


def test_failed_write_leaves_no_object(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where a folder must be")
    store = ObjectStore(f"file://{tmp_path}/taken")
    with pytest.raises(OSError):
        store.put(b"abc")
    assert (tmp_path / "taken").read_text() == "a file where a folder must be"


def test_many_writers_of_the_same_object_agree(tmp_path: Path) -> None:
    store, data = ObjectStore(f"file://{tmp_path}"), bytes(200_000)
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
    assert [path for path in tmp_path.rglob("*") if path.suffix == ".part"] == []


def test_check_leaves_nothing_behind(tmp_path: Path) -> None:
    ObjectStore(f"file://{tmp_path}").check()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_unknown_protocol_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="nosuch"):
        ObjectStore("nosuch://bucket")


class EndpointConnectionError(Exception):
    """What a bucket's library raises: no OSError."""


@pytest.mark.parametrize("operation", ["put", "get", "check"])
def test_error_of_a_bucket_library_means_that_the_store_is_away(
    operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(f"file://{tmp_path}")

    def refuse(*_: object, **__: object) -> None:
        raise EndpointConnectionError("could not connect to the endpoint")

    for name in ("exists", "size"):
        monkeypatch.setattr(store._filesystem, name, refuse)
    calls = {"put": lambda: store.put(b"abc"), "get": lambda: store.get("a" * 64, 3), "check": store.check}
    with pytest.raises(StoreAway, match="EndpointConnectionError: could not connect"):
        calls[operation]()
